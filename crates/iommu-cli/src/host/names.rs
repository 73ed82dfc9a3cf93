//! How functions are named.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use iommu_groups::pci::header;
use iommu_host::{Knowledge, Machine, PciIds};
use iommu_types::Bdf;

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
            let vendor_name = self.ids.vendor(vendor).unwrap_or("Vendor");
            let device_name = self.ids.device(vendor, device).unwrap_or("Device");
            format!("{vendor_name} {device_name}")
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
                format!("{} [{code:04x}]", self.ids.class(code).unwrap_or("Class"))
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

/// An address as people write it: without the domain where that is 0.
pub(crate) fn short(bdf: Bdf) -> String {
    if bdf.segment.0 == 0 {
        bdf.source.to_string()
    } else {
        bdf.to_string()
    }
}

/// Text of somebody else, with nothing in it that a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}
