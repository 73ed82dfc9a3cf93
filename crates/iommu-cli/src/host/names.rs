//! How functions are named.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use iommu_groups::pci::header;
use iommu_host::{Knowledge, Machine, PciIds};
use iommu_types::{Bdf, SourceId};

use crate::exit::{self, Failure};

/// Names for one run.
#[derive(Debug, Default)]
pub(crate) struct Names {
    ids: PciIds,
    /// Names of models that were looked up: the list is searched line by line, and large machines repeat models.
    models: RefCell<BTreeMap<(u16, u16), String>>,
}

impl Names {
    /// With the system's `pci.ids`, if it has one.
    pub(crate) fn of_system() -> Self {
        Self {
            ids: PciIds::of_system(),
            ..Self::default()
        }
    }

    /// With a file like `pci.ids`.
    pub(crate) fn of_file(file: &Path) -> Result<Self, Failure> {
        let ids = PciIds::from_bytes(&exit::read(file)?).ok_or_else(|| {
            Failure::Input(format!(
                "{}: no list of names: it does not unpack, or is too large",
                file.display()
            ))
        })?;
        Ok(Self { ids, ..Self::default() })
    }

    /// Vendor and device in words.
    fn model(&self, vendor: u16, device: u16) -> String {
        let mut models = self.models.borrow_mut();
        let name = models.entry((vendor, device)).or_insert_with(|| {
            let device_name = self.ids.device(vendor, device).unwrap_or("Device");
            match self.ids.vendor(vendor) {
                Some(vendor_name) => format!("{vendor_name} {device_name}"),
                None => device_name.to_owned(),
            }
        });
        name.clone()
    }

    /// The line of `lspci -nn` behind the address, as far as names are known.
    pub(crate) fn label(&self, machine: &Machine, bdf: Bdf) -> String {
        let Some(f) = machine.functions.get(&bdf) else {
            return "not listed".to_owned();
        };
        if let Some(description) = &f.description {
            // The verbose form of lspci names the programming interface as well.
            let plain = description.split(" (prog-if ").next().unwrap_or(description);
            return printable(plain);
        }
        let class = f.config.read32(header::REVISION);
        let mut text = match class {
            Some(class) => {
                let code = u16::try_from(class >> 16).unwrap_or(0);
                let name = self.ids.class(code).or_else(|| base_class(code)).unwrap_or("Class");
                format!("{name} [{code:04x}]")
            }
            None => "Function".to_owned(),
        };
        match f.identity {
            Knowledge::Known((vendor, device)) => {
                text.push_str(&format!(": {} [{vendor:04x}:{device:04x}]", self.model(vendor, device)));
            }
            _ => text.push_str(": model not known"),
        }
        if let Some(revision) = class.map(|class| class & 0xff).filter(|revision| *revision != 0) {
            text.push_str(&format!(" (rev {revision:02x})"));
        }
        printable(&text)
    }
}

/// The kind of a function, for systems without a list of names: a guest, a container, a rescue disk.
fn base_class(code: u16) -> Option<&'static str> {
    let [base, _] = code.to_be_bytes();
    // PCI Code and ID Assignment Specification, base classes.
    Some(match base {
        0x01 => "Mass storage controller",
        0x02 => "Network controller",
        0x03 => "Display controller",
        0x04 => "Multimedia controller",
        0x05 => "Memory controller",
        0x06 => "Bridge",
        0x07 => "Communication controller",
        0x08 => "System peripheral",
        0x09 => "Input device controller",
        0x0a => "Docking station",
        0x0b => "Processor",
        0x0c => "Serial bus controller",
        0x0d => "Wireless controller",
        0x0e => "Intelligent controller",
        0x0f => "Satellite controller",
        0x10 => "Encryption controller",
        0x11 => "Signal processing controller",
        0x12 => "Processing accelerator",
        0x13 => "Non-essential instrumentation",
        _ => return None,
    })
}

/// An address as people write it: without the domain where that is 0.
pub(crate) fn short(bdf: Bdf) -> String {
    if bdf.segment.0 == 0 {
        bdf.source.to_string()
    } else {
        bdf.to_string()
    }
}

/// Words of the libraries, which name functions in full, as people write them: without the domain where that is 0.
pub(crate) fn prose(text: &str) -> String {
    const DOMAIN: &str = "0000:";
    /// Of `00:00.0`.
    const SHORT: usize = 7;
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(DOMAIN) {
        let (before, found) = rest.split_at(at);
        out.push_str(before);
        let behind = found.get(DOMAIN.len()..).unwrap_or_default();
        let inside = before.ends_with(|c: char| c.is_ascii_alphanumeric() || c == ':' || c == '/');
        let is_function = behind
            .get(..SHORT)
            .is_some_and(|short| short.parse::<SourceId>().is_ok());
        if inside || !is_function {
            out.push_str(DOMAIN);
        }
        rest = behind;
    }
    out.push_str(rest);
    printable(&out)
}

/// Text of somebody else, with nothing in it that a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_functions_of_domain_0_in_short() {
        let text = "0000:00:1c.0 and 0001:00:1c.0: on 0000:3b:00.1; bus 0000:3b, 10000:00:1c.0 (0000:01:00.0) 0000:";
        let short = "00:1c.0 and 0001:00:1c.0: on 3b:00.1; bus 0000:3b, 10000:00:1c.0 (01:00.0) 0000:";
        assert_eq!(prose(text), short);
        assert_eq!(
            prose("/sys/bus/pci/devices/0000:01:00.0/x"),
            "/sys/bus/pci/devices/0000:01:00.0/x"
        );
    }

    #[test]
    fn without_a_list_classes_have_names_and_models_numbers() {
        let machine = Machine::from_listing(
            b"00:03.0 0200: 1af4:1041\n\tStatus: Cap-\n\n00:04.0 ffff: 1af4:1053\n\tStatus: Cap-\n",
        );
        let names = Names::default();
        let label = |bdf: &str| {
            let mut f = machine.clone();
            let bdf = bdf.parse().expect("valid");
            // As sysfs tells it, without words.
            f.functions.get_mut(&bdf).expect("there").description = None;
            names.label(&f, bdf)
        };
        assert_eq!(label("00:03.0"), "Network controller [0200]: Device [1af4:1041]");
        assert_eq!(label("00:04.0"), "Class [ffff]: Device [1af4:1053]");
    }
}
