//! The line that names a function.

use iommu_groups::pci::{class, header};
use iommu_types::Bdf;

use super::{CLASS_AT, numbers_not_shown};
use crate::config::ConfigSpace;
use crate::knowledge::Knowledge;

/// What the line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) bdf: Bdf,
    /// Base class and subclass.
    class: Option<u16>,
    vendor: Option<u16>,
    device: Option<u16>,
    revision: Option<u8>,
    interface: Option<u8>,
    /// Everything behind the address.
    pub(super) description: String,
}

/// Class names of `lspci` for classes that rules look at, and for those that make a listing readable.
const CLASSES: [(&str, u16); 24] = [
    ("Host bridge", class::HOST_BRIDGE),
    ("PCI bridge", class::PCI_BRIDGE),
    ("ISA bridge", 0x0601),
    ("Bridge", class::OTHER_BRIDGE),
    ("CardBus bridge", 0x0607),
    ("Non-Volatile memory controller", 0x0108),
    ("SATA controller", 0x0106),
    ("IDE interface", 0x0101),
    ("RAID bus controller", 0x0104),
    ("Serial Attached SCSI controller", 0x0107),
    ("SCSI storage controller", 0x0100),
    ("Ethernet controller", 0x0200),
    ("Network controller", 0x0280),
    ("VGA compatible controller", 0x0300),
    ("3D controller", 0x0302),
    ("Display controller", 0x0380),
    ("Multimedia audio controller", 0x0401),
    ("Audio device", 0x0403),
    ("USB controller", 0x0c03),
    ("SMBus", 0x0c05),
    ("System peripheral", 0x0880),
    ("SD Host controller", 0x0805),
    ("Communication controller", 0x0780),
    ("Signal processing controller", 0x1180),
];

/// Vendors that rules look at without the device: a listing without numbers still names them.
const VENDORS: [(&str, u16); 4] = [
    ("Intel Corporation", 0x8086),
    ("Advanced Micro Devices, Inc.", 0x1022),
    ("NVIDIA Corporation", 0x10de),
    ("Red Hat, Inc.", 0x1af4),
];

/// A function that is there, but whose numbers are not known, gets these: no vendor and no device has them.
const NO_VENDOR: u16 = 0xfffe;
const NO_DEVICE: u16 = 0xfffe;

/// Reads a line; `None` if it is no such line.
pub(super) fn parse(line: &str) -> Option<Header> {
    let (name, rest) = line.split_once(' ')?;
    if !(7..=16).contains(&name.len()) || !name.contains('.') || rest.is_empty() {
        return None;
    }
    let bdf = name.parse::<Bdf>().ok()?;
    let (class_text, name_text) = rest.split_once(": ")?;
    let mut header = Header {
        bdf,
        class: None,
        vendor: None,
        device: None,
        revision: bracketed(name_text, "(rev ", 2).and_then(|value| u8::try_from(value).ok()),
        interface: bracketed(name_text, "(prog-if ", 2).and_then(|value| u8::try_from(value).ok()),
        description: rest.to_owned(),
    };
    // `lspci -n`: `0604: 8086:a110 (rev f1)`.
    if class_text.len() == 4
        && let Ok(class) = u16::from_str_radix(class_text, 16)
    {
        header.class = Some(class);
        let ids = name_text.split(' ').next().unwrap_or_default();
        (header.vendor, header.device) = pair(ids).unzip();
        return Some(header);
    }
    header.class = class_text
        .rsplit_once('[')
        .and_then(|(_, code)| u16::from_str_radix(code.strip_suffix(']')?, 16).ok())
        .or_else(|| {
            let plain = class_text.split(" [").next().unwrap_or_default();
            CLASSES.iter().find(|(name, _)| *name == plain).map(|(_, code)| *code)
        });
    let ids = name_text
        .split('[')
        .skip(1)
        .filter_map(|part| pair(part.split(']').next()?))
        .last();
    (header.vendor, header.device) = ids.unzip();
    if header.vendor.is_none() {
        header.vendor = VENDORS
            .iter()
            .find(|(name, _)| name_text.starts_with(name))
            .map(|(_, id)| *id);
    }
    Some(header)
}

/// `8086:a110`.
fn pair(text: &str) -> Option<(u16, u16)> {
    let (vendor, device) = text.split_once(':')?;
    let number = |text: &str| (text.len() == 4).then(|| u16::from_str_radix(text, 16).ok()).flatten();
    Some((number(vendor)?, number(device)?))
}

/// The hexadecimal number of `digits` digits behind a marker.
fn bracketed(text: &str, marker: &str, digits: usize) -> Option<u32> {
    let (_, rest) = text.split_once(marker)?;
    u32::from_str_radix(rest.get(..digits)?, 16).ok()
}

impl Header {
    pub(super) fn is_bridge(&self) -> bool {
        self.class == Some(class::PCI_BRIDGE)
    }

    /// Takes over what another line about the same function says more.
    pub(super) fn complete(&mut self, other: Self) {
        self.class = self.class.or(other.class);
        self.vendor = other.vendor.or(self.vendor);
        self.device = other.device.or(self.device);
        self.revision = self.revision.or(other.revision);
        self.interface = self.interface.or(other.interface);
        if other.description.len() > self.description.len() {
            self.description = other.description;
        }
    }

    /// Vendor and device, from hex before words; and whether the hex says it.
    pub(super) fn identity(&self, hex: &ConfigSpace) -> (Knowledge<(u16, u16)>, bool) {
        if let Some([a, b, c, d]) = hex.read32(header::VENDOR_ID).map(u32::to_le_bytes) {
            return (
                Knowledge::Known((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]))),
                true,
            );
        }
        let known = self.vendor.zip(self.device);
        (
            known.map_or(Knowledge::Unknown(numbers_not_shown()), Knowledge::Known),
            false,
        )
    }

    /// Writes what the line says into configuration space.
    pub(super) fn write(&self, space: &mut ConfigSpace, multifunction: bool) {
        space.put(header::VENDOR_ID, &self.vendor.unwrap_or(NO_VENDOR).to_le_bytes());
        space.put(header::DEVICE_ID, &self.device.unwrap_or(NO_DEVICE).to_le_bytes());
        if let Some(class) = self.class {
            let [sub, base] = class.to_le_bytes();
            let revision = self.revision.unwrap_or(0);
            space.put(CLASS_AT, &[revision, self.interface.unwrap_or(0), sub, base]);
        }
        let layout = match self.class {
            Some(class::PCI_BRIDGE) => header::LAYOUT_BRIDGE,
            Some(0x0607) => header::LAYOUT_CARDBUS,
            _ => header::LAYOUT_FUNCTION,
        };
        // The listing does not show the multifunction bit; siblings do.
        let several = if multifunction { header::HEADER_MULTIFUNCTION } else { 0 };
        // Cache line size, latency timer and BIST stand in the same dword: nobody reads them.
        space.put(header::CACHE_LINE_SIZE, &[0, 0, layout | several, 0]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ok(line: &str) -> Header {
        parse(line).expect("a header")
    }

    #[test]
    fn all_header_forms_of_lspci_are_read() {
        let numbers = ok(
            "00:1c.0 PCI bridge [0604]: Intel Corporation 100 Series [Sunrise] Port #1 [8086:a110] (rev f1) (prog-if 00 [Normal decode])",
        );
        assert_eq!(
            (numbers.vendor, numbers.device, numbers.class),
            (Some(0x8086), Some(0xa110), Some(0x0604))
        );
        assert_eq!((numbers.revision, numbers.interface), (Some(0xf1), Some(0)));
        let terse = ok("0001:00:1c.0 0604: 8086:a110 (rev f1)");
        assert_eq!(
            (terse.vendor, terse.device, terse.class),
            (Some(0x8086), Some(0xa110), Some(0x0604))
        );
        assert_eq!(terse.bdf.segment.0, 1);
        let words = ok("00:02.0 VGA compatible controller: Intel Corporation UHD Graphics (rev 02)");
        assert_eq!(
            (words.vendor, words.device, words.class),
            (Some(0x8086), None, Some(0x0300))
        );
        let other = ok("3b:00.0 Ethernet controller: Somebody Else NIC");
        assert_eq!((other.vendor, other.device), (None, None));
    }

    #[test]
    fn wide_domains_are_read_and_other_lines_are_not_headers() {
        let wide = ok("10000:e1:00.0 Non-Volatile memory controller: Intel Corporation X");
        assert_eq!(wide.bdf.segment.0, 0x1_0000);
        for line in [
            "00: 86 80 41 46",
            "\tSubsystem: Intel Corporation [8086:2015]",
            "-[0000:00]-+-00.0  Intel",
            "[    0.1] pci 0000:00:1c.0: x",
            "00:1c.9 PCI bridge: x",
            "",
            "17.5: x",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
