//! Taking out what tells one machine, or its owner, from another of the same model.

use iommu_groups::pci::{EXTENDED_LEN, extended, serial};

/// Capabilities that fit into extended configuration space.
const MAX_CAPABILITIES: usize = 960;

/// Scrubs a file by what it is.
pub(super) fn scrub(path: &str, bytes: &mut Vec<u8>) {
    if path.ends_with("/config") {
        serial_numbers(bytes);
    } else if path.starts_with("proc/") || path.starts_with("var/") {
        let text = String::from_utf8_lossy(bytes);
        *bytes = text
            .lines()
            .flat_map(|line| line_without_names(line).into_bytes().into_iter().chain([b'\n']))
            .collect();
    }
}

/// Zeroes the Device Serial Number capability. PCIe §7.9.3.
fn serial_numbers(config: &mut [u8]) {
    let mut at = extended::FIRST;
    for _ in 0..MAX_CAPABILITIES {
        let start = usize::from(at);
        let Some(head) = config
            .get(start..start + 4)
            .and_then(|head| <[u8; 4]>::try_from(head).ok())
        else {
            return;
        };
        let head = u32::from_le_bytes(head);
        if head == 0 || head == u32::MAX {
            return;
        }
        if head & extended::ID == u32::from(extended::SERIAL_NUMBER) {
            let from = start + usize::from(serial::NUMBER);
            if let Some(number) = config.get_mut(from..start + usize::from(serial::LEN)) {
                number.fill(0);
            }
        }
        let next = u16::try_from(head >> extended::NEXT_SHIFT).unwrap_or(0) & !3;
        if !(extended::FIRST..EXTENDED_LEN).contains(&next) {
            return;
        }
        at = next;
    }
}

/// A line without addresses, identifiers and names.
fn line_without_names(line: &str) -> String {
    let line = if let Some((before, rest)) = line.split_once("Linux version ") {
        // `6.1.0 (user@host) (gcc …)`: the builder.
        let rest = match (rest.find('('), rest.find(')')) {
            (Some(open), Some(close)) if open < close && rest.get(open..close).is_some_and(|who| who.contains('@')) => {
                format!(
                    "{}(builder){}",
                    rest.get(..open).unwrap_or_default(),
                    rest.get(close + 1..).unwrap_or_default()
                )
            }
            _ => rest.to_owned(),
        };
        format!("{before}Linux version {rest}")
    } else {
        line.to_owned()
    };
    let mut out = String::with_capacity(line.len());
    let mut word = String::new();
    for c in line.chars() {
        // Characters that addresses and identifiers are made of.
        if c.is_ascii_alphanumeric() || matches!(c, ':' | '-') {
            word.push(c);
        } else {
            push_word(&mut out, &word);
            word.clear();
            out.push(c);
        }
    }
    push_word(&mut out, &word);
    for marker in ["SerialNumber: ", "serial ", "Serial Number ", "hostname=", "Hostname: "] {
        if let Some(at) = out.find(marker) {
            let from = at + marker.len();
            let end = out
                .get(from..)
                .and_then(|rest| rest.find([' ', ',']))
                .map_or(out.len(), |end| from + end);
            out.replace_range(from..end, "<removed>");
        }
    }
    out
}

fn push_word(out: &mut String, word: &str) {
    // A colon at the end belongs to the sentence.
    let core = word.trim_end_matches(':');
    if is_mac(core) {
        out.push_str("<mac>");
    } else if is_uuid(core) {
        out.push_str("<uuid>");
    } else {
        out.push_str(word);
        return;
    }
    out.push_str(word.get(core.len()..).unwrap_or_default());
}

fn parts_of(text: &str, separator: char, lengths: &[usize]) -> bool {
    let mut parts = text.split(separator);
    lengths.iter().all(|length| {
        parts
            .next()
            .is_some_and(|part| part.len() == *length && part.bytes().all(|b| b.is_ascii_hexdigit()))
    }) && parts.next().is_none()
}

fn is_mac(word: &str) -> bool {
    parts_of(word, ':', &[2; 6]) || parts_of(word, ':', &[2; 8]) || parts_of(word, '-', &[2; 6])
}

fn is_uuid(word: &str) -> bool {
    parts_of(word, '-', &[8, 4, 4, 4, 12]) || parts_of(word, '-', &[4, 4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_identifiers_go_and_pci_addresses_stay() {
        let line = "igb 0000:15:00.0 eth0: MAC: 00:1b:21:aa:bb:cc root=UUID=3f1b2c4d-0000-1111-2222-abcdefabcdef EFI=12AB-34CD x";
        assert_eq!(
            line_without_names(line),
            "igb 0000:15:00.0 eth0: MAC: <mac> root=UUID=<uuid> EFI=<uuid> x"
        );
        assert_eq!(
            line_without_names("Linux version 6.1.0 (joe@box) (gcc 12) #1"),
            "Linux version 6.1.0 (builder) (gcc 12) #1"
        );
        assert_eq!(
            line_without_names("usb 1-1: SerialNumber: ABC123"),
            "usb 1-1: SerialNumber: <removed>"
        );
    }

    #[test]
    fn the_serial_number_capability_is_zeroed_and_circles_end() {
        let mut config = vec![0u8; 4096];
        config[0x100..0x104].copy_from_slice(&(0x1400_0000u32 | 1 << 16 | 1).to_le_bytes());
        config[0x140..0x144].copy_from_slice(&(0x1000_0000u32 | 1 << 16 | 3).to_le_bytes());
        config[0x144..0x14c].fill(0xaa);
        config[0x14c] = 0x55;
        serial_numbers(&mut config);
        assert!(config[0x144..0x14c].iter().all(|byte| *byte == 0));
        assert_eq!(config[0x14c], 0x55);
        serial_numbers(&mut [0xff; 300]);
    }
}
