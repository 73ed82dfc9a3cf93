//! Names of vendors, devices and classes from the system's `pci.ids`.

use std::collections::BTreeMap;
use std::path::Path;

use crate::tar::gunzip;

/// Bytes of the file; today's has 1.5 MB.
const MAX_BYTES: usize = 16 << 20;
/// Where systems keep it, the first that exists counts.
const PLACES: [&str; 6] = [
    "/usr/share/misc/pci.ids",
    "/usr/share/hwdata/pci.ids",
    "/usr/share/pci.ids",
    "/usr/share/misc/pci.ids.gz",
    "/usr/share/hwdata/pci.ids.gz",
    "/usr/share/pci.ids.gz",
];

/// The names, or none at all: everything works without, with numbers.
#[derive(Clone, Debug, Default)]
pub struct PciIds {
    text: String,
    /// Where the line of each vendor starts.
    vendors: BTreeMap<u16, usize>,
    /// Where the line of each base class starts.
    classes: BTreeMap<u8, usize>,
}

impl PciIds {
    /// The system's file; without one, an empty list.
    #[must_use]
    pub fn of_system() -> Self {
        PLACES
            .iter()
            .find_map(|place| {
                let path = Path::new(place);
                let length = std::fs::metadata(path).ok()?.len();
                if length > MAX_BYTES as u64 {
                    return None;
                }
                Self::from_bytes(&std::fs::read(path).ok()?)
            })
            .unwrap_or_default()
    }

    /// A file, plain or compressed with gzip; `None` if it expands to more than any such file has.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let text = if bytes.starts_with(&[0x1f, 0x8b]) {
            let (expanded, _) = gunzip(bytes, MAX_BYTES).ok()?;
            String::from_utf8_lossy(&expanded).into_owned()
        } else {
            String::from_utf8_lossy(bytes.get(..MAX_BYTES).unwrap_or(bytes)).into_owned()
        };
        let (mut vendors, mut classes) = (BTreeMap::new(), BTreeMap::new());
        let mut at = 0;
        for line in text.split_inclusive('\n') {
            if let Some(digits) = line.strip_prefix("C ").and_then(|rest| rest.get(..2)) {
                if let Ok(class) = u8::from_str_radix(digits, 16) {
                    classes.entry(class).or_insert(at);
                }
            } else if !line.starts_with(['\t', '#', '\n'])
                && line.get(4..6) == Some("  ")
                && let Some(Ok(vendor)) = line.get(..4).map(|digits| u16::from_str_radix(digits, 16))
            {
                vendors.entry(vendor).or_insert(at);
            }
            at += line.len();
        }
        Some(Self { text, vendors, classes })
    }

    /// The name of a vendor.
    #[must_use]
    pub fn vendor(&self, vendor: u16) -> Option<&str> {
        name(self.text.get(*self.vendors.get(&vendor)?..)?.lines().next()?, 4)
    }

    /// The name of a device.
    #[must_use]
    pub fn device(&self, vendor: u16, device: u16) -> Option<&str> {
        self.below(*self.vendors.get(&vendor)?, &format!("{device:04x}"))
    }

    /// The name of a class: base class in the high byte, subclass in the low one.
    #[must_use]
    pub fn class(&self, class: u16) -> Option<&str> {
        let [base, sub] = class.to_be_bytes();
        let start = *self.classes.get(&base)?;
        self.below(start, &format!("{sub:02x}"))
            .or_else(|| name(self.text.get(start + 2..)?.lines().next()?, 2))
    }

    /// The name of an entry one level below the line at `start`.
    fn below(&self, start: usize, digits: &str) -> Option<&str> {
        let lines = self.text.get(start..)?.lines().skip(1);
        lines
            .take_while(|line| line.starts_with('\t') || line.starts_with('#') || line.is_empty())
            .filter_map(|line| line.strip_prefix('\t'))
            .find(|line| line.starts_with(digits))
            .and_then(|line| name(line, digits.len()))
    }
}

/// What stands behind the digits.
fn name(line: &str, digits: usize) -> Option<&str> {
    line.get(digits..).map(str::trim).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# comment\n\n8086  Intel Corporation\n\t1533  I210 Gigabit Network Connection\n\t\t1849 1533  Board\n\
        \ta110  Port #1\n8088  Wangxun\n\t0100  WX1860\n\nC 02  Network controller\n\t00  Ethernet controller\n\t80  Network controller\n";

    #[test]
    fn names_are_found_by_number_and_nothing_is_made_up() {
        let ids = PciIds::from_bytes(TEXT.as_bytes()).expect("small");
        assert_eq!(ids.vendor(0x8086), Some("Intel Corporation"));
        assert_eq!(ids.device(0x8086, 0xa110), Some("Port #1"));
        assert_eq!(ids.device(0x8086, 0x0100), None, "of the next vendor");
        assert_eq!(ids.class(0x0200), Some("Ethernet controller"));
        assert_eq!(
            ids.class(0x0207),
            Some("Network controller"),
            "the base class has a name"
        );
        assert_eq!(ids.class(0x0300), None);
        assert_eq!(PciIds::default().vendor(0x8086), None);
        assert_eq!(
            PciIds::from_bytes(b"\xff\xfe8086  x\n").and_then(|ids| ids.vendor(0x8086).map(str::to_owned)),
            None
        );
    }
}
