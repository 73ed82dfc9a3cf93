//! The kernel's own log buffer.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use crate::knowledge::{Knowledge, Obstacle};
use crate::log::MAX_BYTES;

/// `O_NONBLOCK` on Linux for all architectures that have an IOMMU of this kind: without it the read waits for
/// the next message at the end of the buffer.
const NONBLOCKING: i32 = 0o4000;
/// Bytes of one record, prefix and continuation lines included; the kernel refuses smaller buffers.
const MAX_RECORD: usize = 8192;
/// Records that one pass reads.
const MAX_RECORDS: usize = 1 << 20;

/// Everything in the buffer, as `dmesg` would print it.
pub(crate) fn read() -> Knowledge<Vec<u8>> {
    const PATH: &str = "/dev/kmsg";
    let mut device = match OpenOptions::new().read(true).custom_flags(NONBLOCKING).open(PATH) {
        Ok(device) => device,
        Err(why) if why.kind() == ErrorKind::NotFound => {
            return Knowledge::Unknown(Obstacle::NotIncluded(PATH.to_owned()));
        }
        Err(_) => return Knowledge::Unknown(Obstacle::NotPermitted(PATH.to_owned())),
    };
    let mut text = Vec::new();
    let mut record = [0; MAX_RECORD];
    for _ in 0..MAX_RECORDS {
        match device.read(&mut record) {
            Ok(0) => break,
            Ok(length) => line(record.get(..length).unwrap_or_default(), &mut text),
            // The kernel overwrote the next record: go on with the one after it.
            Err(why) if matches!(why.kind(), ErrorKind::BrokenPipe | ErrorKind::Interrupted) => {}
            Err(why) if why.kind() == ErrorKind::WouldBlock => break,
            Err(why) if why.kind() == ErrorKind::PermissionDenied => {
                return Knowledge::Unknown(Obstacle::NotPermitted(PATH.to_owned()));
            }
            Err(why) if text.is_empty() => {
                return Knowledge::Unknown(Obstacle::Failed(PATH.to_owned(), why.to_string()));
            }
            Err(_) => break,
        }
        if text.len() > MAX_BYTES {
            break;
        }
    }
    Knowledge::Known(text)
}

/// `6,339,5140900,-;message`, then lines about the device that do not count.
fn line(record: &[u8], text: &mut Vec<u8>) {
    let record = String::from_utf8_lossy(record);
    let Some((prefix, message)) = record.split_once(';') else {
        return;
    };
    let micros: u64 = prefix
        .split(',')
        .nth(2)
        .and_then(|micros| micros.parse().ok())
        .unwrap_or(0);
    let message = message.split('\n').next().unwrap_or_default();
    text.extend(format!("[{:5}.{:06}] {message}\n", micros / 1_000_000, micros % 1_000_000).bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_lines_with_stamps() {
        let mut text = Vec::new();
        line(
            b"6,339,5140900,-;DMAR: hello\n SUBSYSTEM=pci\n DEVICE=+pci:0000:00:02.0\n",
            &mut text,
        );
        line(b"nothing", &mut text);
        assert_eq!(text, b"[    5.140900] DMAR: hello\n");
    }
}
