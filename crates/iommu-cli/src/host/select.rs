//! How functions are chosen on a command line.

use iommu_host::Machine;
use iommu_types::{Bdf, DevFn};

use crate::exit::Failure;

/// The functions that a selector means: an address with or without domain, `pci_0000_04_00_0`, a path in sysfs,
/// `vendor:device`, a network interface, a disk, or an address of `lspci -s` with parts left out.
pub(crate) fn select(machine: &Machine, selector: &str) -> Result<Vec<Bdf>, Failure> {
    let found: Vec<Bdf> = if let Some(bdf) = address(selector) {
        machine.functions.keys().copied().filter(|at| *at == bdf).collect()
    } else if let Some((vendor, device)) = model(selector) {
        let is = |f: &&iommu_host::PciFunction| f.identity.known() == Some(&(vendor, device));
        machine.functions.values().filter(is).map(|f| f.bdf).collect()
    } else if let Some(pattern) = Pattern::parse(selector) {
        machine
            .functions
            .keys()
            .copied()
            .filter(|at| pattern.matches(*at))
            .collect()
    } else {
        let provides = |f: &&iommu_host::PciFunction| f.interfaces.iter().chain(&f.disks).any(|name| name == selector);
        machine.functions.values().filter(provides).map(|f| f.bdf).collect()
    };
    if found.is_empty() {
        return Err(Failure::Input(format!(
            "{selector}: no such function on this machine; give an address such as 0000:3b:00.0, a model such as 8086:1533, or the \
             name of an interface or disk"
        )));
    }
    Ok(found)
}

/// Exactly one function.
pub(crate) fn select_one(machine: &Machine, selector: &str) -> Result<Bdf, Failure> {
    let found = select(machine, selector)?;
    match found.as_slice() {
        [one] => Ok(*one),
        several => {
            let list: Vec<String> = several.iter().take(8).map(Bdf::to_string).collect();
            Err(Failure::Input(format!(
                "{selector} means {} functions ({}…); name one of them",
                several.len(),
                list.join(", ")
            )))
        }
    }
}

fn address(text: &str) -> Option<Bdf> {
    let last = text.trim_end_matches('/').rsplit('/').next()?;
    if let Some(rest) = last.strip_prefix("pci_") {
        let parts: Vec<&str> = rest.split('_').collect();
        let [domain, bus, device, function] = parts.as_slice() else {
            return None;
        };
        return format!("{domain}:{bus}:{device}.{function}").parse().ok();
    }
    last.parse().ok()
}

/// `8086:1533`.
fn model(text: &str) -> Option<(u16, u16)> {
    let (vendor, device) = text.split_once(':')?;
    let number = |text: &str| (text.len() == 4).then(|| u16::from_str_radix(text, 16).ok()).flatten();
    Some((number(vendor)?, number(device)?))
}

/// `[[domain]:][bus]:[device][.function]`, parts left out mean any; a text without colon is a device number.
#[derive(Debug, Default)]
struct Pattern {
    domain: Option<u16>,
    bus: Option<u8>,
    device: Option<u8>,
    function: Option<u8>,
}

impl Pattern {
    fn parse(text: &str) -> Option<Self> {
        if !text.contains([':', '.']) {
            return None;
        }
        let part = |text: &str| match text {
            "" | "*" => Some(None),
            digits => u8::from_str_radix(digits, 16).ok().map(Some),
        };
        let mut pattern = Self::default();
        let mut rest = text;
        if let Some((before, slot)) = text.rsplit_once(':') {
            rest = slot;
            let bus = match before.rsplit_once(':') {
                Some((domain, bus)) => {
                    pattern.domain = match domain {
                        "" | "*" => None,
                        digits => Some(u16::from_str_radix(digits, 16).ok()?),
                    };
                    bus
                }
                None => before,
            };
            pattern.bus = part(bus)?;
        }
        let (device, function) = rest.split_once('.').unwrap_or((rest, ""));
        pattern.device = part(device)?;
        pattern.function = part(function)?;
        Some(pattern)
    }

    fn matches(&self, at: Bdf) -> bool {
        let devfn: DevFn = at.devfn();
        self.domain.is_none_or(|domain| domain == at.segment.0)
            && self.bus.is_none_or(|bus| bus == at.bus())
            && self.device.is_none_or(|device| device == devfn.device())
            && self.function.is_none_or(|function| function == devfn.function())
    }
}
