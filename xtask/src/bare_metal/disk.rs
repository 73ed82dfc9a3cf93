//! The disk of the bare-metal runs: what the host puts on it, and what has to be on it when the kernel is done.
//!
//! The kernel has the same rule for contents and the same plan of the disk, in `bare-metal/src/disk.rs`.

/// Bytes of a sector.
const SECTOR: usize = 512;
/// Sectors of the disk.
const SECTORS: usize = 2048;
/// Sectors that the host fills, from 0 on.
const GIVEN: usize = 1024;
/// The first sector that stays zero; those from [`GIVEN`] on are filled by the kernel.
const END: usize = GIVEN + 3 * 256 + 8 + 56;

/// Who wrote a sector.
#[derive(Clone, Copy)]
enum Author {
    Host = 1,
    Kernel = 2,
}

/// What a byte of the disk holds when `author` wrote it.
fn byte(author: Author, at: usize) -> u8 {
    let position = u64::try_from(at).unwrap_or(0) | (author as u64) << 40;
    let [.., high] = position.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
    high
}

/// Contents, by the number of the first sector that is not the kernel's.
fn content(end: usize) -> Vec<u8> {
    let author = |at: usize| match at / SECTOR {
        sector if sector < GIVEN => byte(Author::Host, at),
        sector if sector < end => byte(Author::Kernel, at),
        _ => 0,
    };
    (0..SECTORS * SECTOR).map(author).collect()
}

/// The disk before the run.
pub(super) fn given() -> Vec<u8> {
    content(GIVEN)
}

/// Compares the disk after the run, byte for byte.
pub(super) fn compare(left: &[u8]) -> Result<(), String> {
    let expected = content(END);
    if left.len() != expected.len() {
        return Err(format!("the disk has {} bytes, not {}", left.len(), expected.len()));
    }
    match left.iter().zip(&expected).position(|(left, expected)| left != expected) {
        None => Ok(()),
        Some(at) => Err(format!(
            "byte {} of sector {} of the disk is not what was to be written there",
            at % SECTOR,
            at / SECTOR
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_passes_only_if_every_byte_is_right() {
        assert!(compare(&content(END)).is_ok());
        assert!(compare(&given()).is_err(), "nothing was written");
        assert!(compare(&content(END + 1)).is_err(), "too much was written");
        for at in [0, GIVEN * SECTOR, END * SECTOR - 1, END * SECTOR, SECTORS * SECTOR - 1] {
            let mut disk = content(END);
            disk[at] ^= 1;
            assert!(compare(&disk).is_err(), "byte {at}");
        }
    }
}
