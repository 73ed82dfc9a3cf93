//! Configuration space, as much of it as is used.
//!
//! Each dword that sysfs is asked for is a transaction to the device: a whole space costs a thousand of them, and servers
//! have hundreds of functions. So the list of extended capabilities is followed, and of what is in it only that is read
//! which somebody looks at. What was not read is unknown, as what could not be read is.

use std::collections::BTreeSet;

use iommu_groups::pci::{CONVENTIONAL_LEN, EXTENDED_LEN, NO_FUNCTION, extended};

use crate::config::ConfigSpace;
use crate::tree::{Parts, Tree};

/// Entries of a list that is followed: more do not fit without overlapping.
const MAX_ENTRIES: u16 = (EXTENDED_LEN - extended::FIRST) / 8;
/// Bytes of the single-root I/O virtualization capability.
const SRIOV_LEN: usize = 0x40;
/// Bytes of the other capabilities, those included that some chipset keeps at an offset of its own.
const OTHER_LEN: usize = 0x10;

/// Reads the space of the function whose file is at `path`.
pub(super) fn read(tree: &Tree, path: &str) -> ConfigSpace {
    let Some(parts) = tree.parts(path) else {
        return ConfigSpace::default();
    };
    let start = parts.read(0, usize::from(CONVENTIONAL_LEN));
    let mut space = ConfigSpace::from_bytes(&start);
    if start.len() == usize::from(CONVENTIONAL_LEN) {
        read_extended(&parts, &mut space);
    }
    space
}

fn read_extended(parts: &Parts<'_>, space: &mut ConfigSpace) {
    let mut at = extended::FIRST;
    let mut seen = BTreeSet::new();
    for _ in 0..MAX_ENTRIES {
        if !seen.insert(at) {
            return;
        }
        space.put(at, &parts.read(at, 4));
        let Some(head) = space.read32(at) else { return };
        if head == 0 || head == NO_FUNCTION {
            return;
        }
        let [low, high, ..] = head.to_le_bytes();
        let length = match u16::from_le_bytes([low, high]) {
            extended::SRIOV => SRIOV_LEN,
            extended::ACS | extended::ARI | extended::ATS | extended::PRI | extended::PASID => OTHER_LEN,
            _ => 4,
        };
        if length > 4
            && let Some(body) = at.checked_add(4)
        {
            space.put(body, &parts.read(body, length - 4));
        }
        let next = u16::try_from(head >> extended::NEXT_SHIFT).unwrap_or(0) & !3;
        if next < extended::FIRST {
            return;
        }
        at = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Archive, Entry};

    fn space(bytes: &[u8]) -> ConfigSpace {
        let mut archive = Archive::default();
        archive.insert("config".to_owned(), Entry::File(bytes.to_vec()));
        read(&Tree::Archive(archive), "config")
    }

    fn head(id: u16, next: u32) -> [u8; 4] {
        (u32::from(id) | 1 << extended::VERSION_SHIFT | next << extended::NEXT_SHIFT).to_le_bytes()
    }

    #[test]
    fn capabilities_that_are_used_are_known_and_others_only_by_their_header() {
        let mut bytes = vec![0x5a; 4096];
        bytes[0x100..0x104].copy_from_slice(&head(extended::SERIAL_NUMBER, 0x120));
        bytes[0x120..0x124].copy_from_slice(&head(extended::ACS, 0x200));
        bytes[0x200..0x204].copy_from_slice(&head(extended::SRIOV, 0));
        let space = space(&bytes);
        assert_eq!((space.known_len(), space.byte(0x104)), (0x104, None));
        assert_eq!((space.read32(0x12c), space.byte(0x130)), (Some(0x5a5a_5a5a), None));
        assert_eq!((space.read32(0x23c), space.byte(0x240)), (Some(0x5a5a_5a5a), None));
    }

    #[test]
    fn an_entry_inside_what_was_read_of_the_one_before_is_followed() {
        let mut bytes = vec![0; 4096];
        bytes[0x100..0x104].copy_from_slice(&head(extended::ATS, 0x108));
        bytes[0x108..0x10c].copy_from_slice(&head(extended::ACS, 0x300));
        bytes[0x300..0x304].copy_from_slice(&head(extended::PASID, 0));
        assert!(space(&bytes).byte(0x30f).is_some());
    }

    #[test]
    fn short_files_and_lists_that_lead_astray_end() {
        assert_eq!(space(&[1; 64]).known_len(), 64);
        assert_eq!(space(&[1; 256]).known_len(), 256);
        assert_eq!(space(&[]).known_len(), 0);
        let mut circle = vec![0; 4096];
        circle[0x100..0x104].copy_from_slice(&head(extended::ACS, 0x180));
        circle[0x180..0x184].copy_from_slice(&head(extended::ATS, 0x100));
        assert_eq!(space(&circle).byte(0x190), None);
        let mut last = vec![0; 4096];
        last[0x100..0x104].copy_from_slice(&head(extended::ACS, 0xffc));
        last[0xffc..].copy_from_slice(&head(extended::SRIOV, 0x40));
        assert!(space(&last).byte(0xfff).is_some());
        assert_eq!(space(&vec![0xff; 4096]).known_len(), 0x104);
    }
}
