//! Configuration space, as much of it as is used.
//!
//! Each dword that sysfs is asked for is a transaction to the device, and below a hypervisor often an exit on top: a whole
//! space costs a thousand of them, its first 256 bytes sixty-four, and servers have hundreds of functions. So what builds
//! a topology is let loose on the file itself, and what it asks for is kept. What was not read is unknown, as what could
//! not be read is.

use std::cell::RefCell;

use iommu_groups::{ConfigAccess, Function};
use iommu_types::Bdf;

use crate::config::ConfigSpace;
use crate::tree::{Parts, Tree};

/// The header, all of which is looked at: one read is cheaper than sixteen.
const HEADER_LEN: usize = 64;

/// A file that is read where somebody looks, and what was seen so far.
struct Recorder<'a> {
    parts: Parts<'a>,
    seen: RefCell<ConfigSpace>,
}

impl ConfigAccess for Recorder<'_> {
    fn read32(&self, _: Bdf, offset: u16) -> Option<u32> {
        let known = self.seen.borrow().read32(offset);
        known.or_else(|| {
            let bytes = self.parts.read(offset, 4);
            let mut seen = self.seen.borrow_mut();
            seen.put(offset, &bytes);
            seen.read32(offset)
        })
    }
}

/// Reads the space of `function`, whose file is at `path`.
pub(super) fn read(tree: &Tree, path: &str, function: Bdf) -> ConfigSpace {
    let Some(parts) = tree.parts(path) else {
        return ConfigSpace::default();
    };
    let header = ConfigSpace::from_bytes(&parts.read(0, HEADER_LEN));
    let recorder = Recorder {
        parts,
        seen: RefCell::new(header),
    };
    Function::prefetch(&recorder, function);
    recorder.seen.into_inner()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Archive, Entry};
    use iommu_groups::pci::{acs, capability, express, extended, header, power, sriov};

    fn space(bytes: &[u8]) -> ConfigSpace {
        let mut archive = Archive::default();
        archive.insert("config".to_owned(), Entry::File(bytes.to_vec()));
        read(&Tree::Archive(archive), "config", "00:01.0".parse().expect("valid"))
    }

    fn put(bytes: &mut [u8], at: u16, what: &[u8]) {
        let at = usize::from(at);
        bytes[at..at + what.len()].copy_from_slice(what);
    }

    fn head(id: u16, next: u32) -> [u8; 4] {
        (u32::from(id) | 1 << extended::VERSION_SHIFT | next << extended::NEXT_SHIFT).to_le_bytes()
    }

    /// An endpoint with a list of three capabilities: MSI, power management, PCI Express.
    fn endpoint() -> Vec<u8> {
        let mut bytes = vec![0x5a; 4096];
        put(&mut bytes, 0, &[0; 64]);
        put(&mut bytes, header::VENDOR_ID, &[0x86, 0x80, 0x33, 0x15]);
        put(&mut bytes, header::STATUS, &header::STATUS_CAPABILITIES.to_le_bytes());
        put(&mut bytes, header::CAPABILITIES, &[0x40]);
        put(&mut bytes, 0x40, &[capability::MSI, 0x60]);
        put(&mut bytes, 0x60, &[capability::POWER_MANAGEMENT, 0x80]);
        put(&mut bytes, 0x80, &[capability::PCI_EXPRESS, 0, 2, 0]);
        put(&mut bytes, extended::FIRST, &[0; 4]);
        bytes
    }

    #[test]
    fn of_the_first_256_bytes_header_and_list_are_read_and_what_is_used_in_it() {
        let space = space(&endpoint());
        assert_eq!(space.known_len(), 64 + 4, "header and the head of the first capability");
        let known = |at: u16| space.read32(at).is_some();
        assert!(!known(0x44), "nobody looks at the message of an interrupt");
        assert!(known(0x60 + power::CONTROL) && known(0x80 + express::DEVICE_CAPABILITIES));
        assert!(!known(0x80 + express::LINK_CAPABILITIES));
        let read = (0..256_u16).step_by(4).filter(|at| known(*at)).count();
        assert!(read < 32, "{read} of 64 dwords");
    }

    #[test]
    fn capabilities_that_are_used_are_known_and_others_only_by_their_header() {
        let mut bytes = endpoint();
        put(&mut bytes, 0x100, &head(extended::SERIAL_NUMBER, 0x120));
        put(&mut bytes, 0x120, &head(extended::ACS, 0x200));
        put(&mut bytes, 0x200, &head(extended::SRIOV, 0));
        let space = space(&bytes);
        let known = |at: u16| space.read32(at).is_some();
        assert!(known(0x100) && !known(0x104), "a serial number is nobody's business");
        assert!(known(0x120 + acs::CAPABILITIES) && known(0x200 + sriov::CONTROL));
        assert!(known(0x200 + (sriov::VF_DEVICE_ID & !3)) && !known(0x200 + sriov::VF_BAR0));
    }

    #[test]
    fn an_entry_inside_what_was_read_of_the_one_before_is_followed() {
        let mut bytes = endpoint();
        put(&mut bytes, 0x100, &head(extended::ATS, 0x108));
        put(&mut bytes, 0x108, &head(extended::ACS, 0x300));
        put(&mut bytes, 0x300, &head(extended::PASID, 0));
        assert!(space(&bytes).byte(0x307).is_some());
    }

    #[test]
    fn a_virtual_function_without_an_identity_is_read_all_the_same() {
        let mut bytes = endpoint();
        put(&mut bytes, header::VENDOR_ID, &[0xff; 4]);
        put(&mut bytes, 0x100, &head(extended::ATS, 0));
        assert!(space(&bytes).byte(0x107).is_some());
    }

    #[test]
    fn short_files_and_lists_that_lead_astray_end() {
        let whole = endpoint();
        assert_eq!(space(&whole[..64]).known_len(), 64);
        assert_eq!(space(&whole[..256]).byte(0x100), None);
        assert_eq!(space(&[1; 20]).known_len(), 20);
        assert_eq!(space(&[]).known_len(), 0);
        let mut circle = endpoint();
        put(&mut circle, 0x80, &[capability::PCI_EXPRESS, 0x40]);
        put(&mut circle, 0x100, &head(extended::ACS, 0x180));
        put(&mut circle, 0x180, &head(extended::ATS, 0x100));
        assert_eq!(space(&circle).byte(0x190), None);
        let mut last = endpoint();
        put(&mut last, 0x100, &head(extended::ACS, 0xffc));
        put(&mut last, 0xffc, &head(extended::SRIOV, 0x40));
        assert!(space(&last).byte(0xfff).is_some());
        assert_eq!(space(&[0xff; 4096]).known_len(), 64, "nobody answers");
    }
}
