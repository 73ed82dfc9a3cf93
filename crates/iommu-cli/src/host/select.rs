//! How functions are chosen on a command line.

use clap::Args;
use iommu_groups::pci::header;
use iommu_host::{Machine, PciFunction};
use iommu_types::{Bdf, DevFn};

use crate::exit::Failure;

/// Functions that a command is about.
#[derive(Debug, Default, Args)]
pub(crate) struct Filter {
    // As a text: the brackets would be links in documentation.
    #[arg(
        short = 's',
        long = "slot",
        value_name = "SLOT",
        help = "Only functions here, as in lspci: [[domain]:][bus]:[device][.function]; or an interface or disk"
    )]
    pub(crate) slot: Option<String>,
    #[arg(
        short = 'd',
        long = "device",
        value_name = "MODEL",
        help = "Only functions of this model, as in lspci: [vendor]:[device][:class[:interface]]"
    )]
    pub(crate) device: Option<String>,
}

impl Filter {
    /// What is chosen; `None` if everything is.
    pub(crate) fn select(&self, machine: &Machine) -> Result<Option<Vec<Bdf>>, Failure> {
        let slot = self.slot.as_deref().map(|slot| select(machine, slot)).transpose()?;
        let model = self
            .device
            .as_deref()
            .map(|model| of_model(machine, model))
            .transpose()?;
        let both = match (slot, model) {
            (Some(slot), Some(model)) => slot.into_iter().filter(|bdf| model.contains(bdf)).collect(),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => return Ok(None),
        };
        if both.is_empty() {
            return Err(Failure::Input(
                "no function is at that place and of that model".to_owned(),
            ));
        }
        Ok(Some(both))
    }

    /// All functions that one of `selectors` means, or that are at that place and of that model, each once.
    pub(crate) fn with(&self, machine: &Machine, selectors: &[String]) -> Result<Vec<Bdf>, Failure> {
        let mut chosen = self.select(machine)?.unwrap_or_default();
        for selector in selectors {
            chosen.extend(select(machine, selector)?);
        }
        chosen.sort_unstable();
        chosen.dedup();
        if chosen.is_empty() {
            return Err(Failure::Input(
                "name at least one function, as in 3b:00.0, 8086:1533 or eth0; `iommu groups` lists them".to_owned(),
            ));
        }
        Ok(chosen)
    }
}

/// The functions that a selector means: an address with or without domain, `pci_0000_04_00_0`, a path in sysfs,
/// `vendor:device`, a network interface, a disk, or an address of `lspci -s` with parts left out.
pub(crate) fn select(machine: &Machine, selector: &str) -> Result<Vec<Bdf>, Failure> {
    let all = machine.functions.values();
    let found: Vec<Bdf> = if let Some(bdf) = address(selector) {
        machine.functions.keys().copied().filter(|at| *at == bdf).collect()
    } else if let Some(model) = Model::parse(selector).filter(Model::is_whole) {
        all.filter(|f| model.matches(f)).map(|f| f.bdf).collect()
    } else if let Some(pattern) = Pattern::parse(selector) {
        all.map(|f| f.bdf).filter(|at| pattern.matches(*at)).collect()
    } else {
        let provides = |f: &&PciFunction| f.interfaces.iter().chain(&f.disks).any(|name| name == selector);
        all.filter(provides).map(|f| f.bdf).collect()
    };
    if found.is_empty() {
        let why = if machine.wide_domains.iter().any(|name| name == selector) {
            "its name is no PCI address, so it is not judged"
        } else {
            "no such function on this machine; give an address such as 0000:3b:00.0, a model such as 8086:1533, or the name of an \
             interface or disk (`iommu groups` lists them)"
        };
        return Err(Failure::Input(format!("{selector}: {why}")));
    }
    Ok(found)
}

/// Exactly one function.
pub(crate) fn select_one(machine: &Machine, selector: &str) -> Result<Bdf, Failure> {
    const SHOWN: usize = 8;
    let found = select(machine, selector)?;
    match found.as_slice() {
        [one] => Ok(*one),
        several => {
            let list: Vec<String> = several.iter().take(SHOWN).map(Bdf::to_string).collect();
            let more = if several.len() > SHOWN { ", …" } else { "" };
            Err(Failure::Input(format!(
                "{selector} means {} functions ({}{more}); name one of them",
                several.len(),
                list.join(", ")
            )))
        }
    }
}

/// The functions of a model, any part of which may be left out.
fn of_model(machine: &Machine, text: &str) -> Result<Vec<Bdf>, Failure> {
    let Some(model) = Model::parse(text) else {
        return Err(Failure::Input(format!(
            "-d {text}: expected [vendor]:[device][:class[:interface]] in hexadecimal, as in 8086:1533, 10de: or ::0300"
        )));
    };
    let all = machine.functions.values();
    let found: Vec<Bdf> = all.filter(|f| model.matches(f)).map(|f| f.bdf).collect();
    if found.is_empty() {
        return Err(Failure::Input(format!(
            "-d {text}: no function of that model on this machine (`iommu groups` lists what is)"
        )));
    }
    Ok(found)
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

/// `[vendor]:[device][:class[:interface]]`, as `lspci -d` takes it; parts left out or `*` mean any.
#[derive(Debug, Default)]
struct Model {
    vendor: Option<u16>,
    device: Option<u16>,
    class: Option<u16>,
    interface: Option<u8>,
    /// Whether vendor and device are written with all four digits, as no bus is.
    whole: bool,
}

impl Model {
    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split(':').collect();
        if !(2..=4).contains(&parts.len()) {
            return None;
        }
        let number = |at: usize, digits: usize| match parts.get(at).copied() {
            None | Some("" | "*") => Some(None),
            Some(text) if text.len() <= digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u16::from_str_radix(text, 16).ok().map(Some)
            }
            Some(_) => None,
        };
        let interface = number(3, 2)?.map(u8::try_from).transpose().ok()?;
        Some(Self {
            vendor: number(0, 4)?,
            device: number(1, 4)?,
            class: number(2, 4)?,
            interface,
            whole: parts.iter().take(3).all(|part| part.len() == 4),
        })
    }

    const fn is_whole(&self) -> bool {
        self.whole && self.vendor.is_some() && self.device.is_some()
    }

    fn matches(&self, f: &PciFunction) -> bool {
        let identity = f.identity.known().copied();
        let [_, interface, sub, base] = f.config.read32(header::REVISION).unwrap_or(u32::MAX).to_le_bytes();
        self.vendor
            .is_none_or(|vendor| identity.is_some_and(|(found, _)| found == vendor))
            && self
                .device
                .is_none_or(|device| identity.is_some_and(|(_, found)| found == device))
            && self.class.is_none_or(|class| class == u16::from_be_bytes([base, sub]))
            && self.interface.is_none_or(|wanted| wanted == interface)
    }
}

/// `[[domain]:][bus]:[device][.function]`, parts left out mean any; a text without colon is a device number.
#[derive(Debug, Default)]
struct Pattern {
    domain: Option<u32>,
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
                        digits => Some(u32::from_str_radix(digits, 16).ok()?),
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
