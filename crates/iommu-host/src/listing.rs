//! A machine from text: `lspci -vvv`, `-xxx` and `-xxxx`, with the kernel's log and `acpidump` where they stand in the
//! same file.
//!
//! What the text says in words becomes configuration space again, so that everything else needs to know only
//! one form; hex lines count more than words. Bytes that no word tells stay unknown.

mod acpidump;
mod header;
mod words;

use std::collections::BTreeMap;

use iommu_groups::pci::{acs, header as offset};
use iommu_types::{Bdf, NodeId};

use crate::config::ConfigSpace;
use crate::knowledge::{Knowledge, Obstacle};
use crate::log::{self, BootEvent, Log};
use crate::machine::{self, KernelGroup, Machine, Origin, PciFunction, Unit};
use crate::platform::Platform;
use crate::vmd;
use header::Header;
use words::Words;

/// Functions that are taken from one listing.
const MAX_FUNCTIONS: usize = 1 << 17;
/// Bytes of a line that are looked at.
const MAX_LINE: usize = 4096;

/// One function while its lines are read.
#[derive(Debug)]
struct Draft {
    header: Header,
    words: Words,
    hex: ConfigSpace,
}

/// Reads a listing. What is no part of a listing is passed over.
pub(crate) fn read(bytes: &[u8]) -> Machine {
    let bytes = bytes.get(..log::MAX_BYTES).unwrap_or(bytes);
    let mut drafts: BTreeMap<Bdf, Draft> = BTreeMap::new();
    let mut current: Option<Bdf> = None;
    let mut odd_hex = 0usize;
    for line in bytes.split(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(line.get(..MAX_LINE).unwrap_or(line));
        let line = line.trim_end();
        if let Some(header) = header::parse(line) {
            current = (drafts.len() < MAX_FUNCTIONS || drafts.contains_key(&header.bdf)).then_some(header.bdf);
            if current.is_some() {
                let bdf = header.bdf;
                match drafts.get_mut(&bdf) {
                    // Two listings in one file (`lspci` and `lspci -vvv`): the fuller header counts.
                    Some(draft) => draft.header.complete(header),
                    None => {
                        drafts.insert(
                            bdf,
                            Draft {
                                header,
                                words: Words::default(),
                                hex: ConfigSpace::default(),
                            },
                        );
                    }
                }
            }
            continue;
        }
        let Some(draft) = current.and_then(|bdf| drafts.get_mut(&bdf)) else {
            continue;
        };
        if line.starts_with(['\t', ' ']) {
            draft.words.line(line);
        } else if let Some((at, bytes)) = hex_line(line) {
            draft.hex.put(at, &bytes);
        } else if line.is_empty() {
            // The end of a function; hex may still follow it in some mails.
        } else if looks_like_hex(line) {
            odd_hex += 1;
        } else if !line.starts_with("lspci:") && !line.starts_with("pcilib:") {
            current = None;
        }
    }
    let log = log::read(bytes);
    assemble(drafts, odd_hex, log, bytes)
}

/// `1f0: 00 11 …`: up to 16 bytes at an offset.
fn hex_line(line: &str) -> Option<(u16, Vec<u8>)> {
    let (at, rest) = line.split_once(": ")?;
    if !(2..=3).contains(&at.len()) {
        return None;
    }
    let at = u16::from_str_radix(at, 16).ok()?;
    let bytes: Option<Vec<u8>> = rest
        .split_ascii_whitespace()
        .map(|byte| (byte.len() == 2).then(|| u8::from_str_radix(byte, 16).ok())?)
        .collect();
    bytes
        .filter(|bytes| (1..=16).contains(&bytes.len()))
        .map(|bytes| (at, bytes))
}

fn looks_like_hex(line: &str) -> bool {
    line.split_once(": ")
        .is_some_and(|(at, rest)| at.len() <= 3 && at.bytes().all(|b| b.is_ascii_hexdigit()) && rest.len() > 20)
}

const SHOW_NUMBERS: Obstacle = Obstacle::NotShown("list with `lspci -nnvvv` or `lspci -nnvvvxxxx`, as root");
const SHOW_VERBOSE: Obstacle = Obstacle::NotShown("list with `lspci -nnvvv`, as root");
const SHOW_SYSFS: Obstacle = Obstacle::NotShown("take a snapshot on that machine with `iommu snapshot`");

fn assemble(drafts: BTreeMap<Bdf, Draft>, odd_hex: usize, log: Log, bytes: &[u8]) -> Machine {
    let mut notes = Vec::new();
    if odd_hex > 0 {
        notes.push(format!("{odd_hex} hex lines are damaged and were left out"));
    }
    let groups_shown = drafts.values().any(|draft| draft.words.group.is_some())
        || log
            .boot()
            .any(|(_, event)| matches!(event, BootEvent::GroupAdded { .. }));
    let mut inferred_controls = 0usize;
    let multifunction = siblings(drafts.keys().copied());
    let mut functions = BTreeMap::new();
    let mut numberless = 0usize;
    let verbose = drafts.values().any(|draft| draft.words.is_verbose());
    for (bdf, draft) in drafts {
        let mut config = draft.hex;
        let (identity, guessed) = draft.header.identity(&config);
        numberless += usize::from(!guessed && identity.is_unknown());
        let mut words = ConfigSpace::default();
        draft.header.write(
            &mut words,
            multifunction.contains(&(bdf.bus(), bdf.segment, bdf.devfn().device())),
        );
        draft.words.write(&mut words, draft.header.is_bridge());
        if groups_shown && let Some((at, capability)) = draft.words.acs() {
            // Ports of Intel's 100 and 200 series hold ACS in dwords, and `lspci` does not show their control
            // register. Where the kernel uses the IOMMU it has set what it wants at boot. No other function
            // has anything there without egress control.
            let control = at.saturating_add(acs::EGRESS_VECTOR);
            if capability & acs::EGRESS_CONTROL == 0 && config.byte(control).is_none() {
                words.put(control, &u32::from(capability & acs::REQUIRED).to_le_bytes());
                inferred_controls += 1;
            }
        }
        for (at, byte) in (0..iommu_groups::pci::EXTENDED_LEN).filter_map(|at| Some((at, words.byte(at)?))) {
            config.put_missing(at, &[byte]);
        }
        functions.insert(
            bdf,
            PciFunction {
                bdf,
                config,
                identity,
                description: Some(draft.header.description),
                group: shown(draft.words.group, groups_shown && verbose),
                driver: shown(draft.words.driver, verbose),
                node: shown(draft.words.node.map(NodeId), verbose),
                physical_function: None,
                real_dma: None,
                interfaces: Vec::new(),
                disks: Vec::new(),
                boot_display: Knowledge::Unknown(SHOW_SYSFS),
                reset_methods: Knowledge::Unknown(SHOW_SYSFS),
            },
        );
    }
    if numberless > 0 {
        notes.push(format!(
            "{numberless} functions are listed without vendor and device numbers: quirks of particular models were not applied to \
             them (list with `lspci -nnvvv`)"
        ));
    }
    if inferred_controls > 0 {
        notes.push(
            "ACS controls that lspci does not show (Intel 100 and 200 series root ports) are taken as Linux sets them"
                .to_owned(),
        );
    }
    vmd::resolve(&mut functions, Some(&log));
    let groups = groups(&functions, &log);
    let text = String::from_utf8_lossy(bytes);
    let boot_parameters = log
        .boot()
        .find_map(|(_, event)| match event {
            BootEvent::CommandLine(line) => Some(line.clone()),
            _ => None,
        })
        .or_else(|| {
            let start = |line: &&str| line.starts_with("BOOT_IMAGE=");
            text.lines().map(str::trim).find(start).map(str::to_owned)
        });
    let kernel = log.boot().find_map(|(_, event)| match event {
        BootEvent::Version(version) => version.split(' ').next().map(str::to_owned),
        _ => None,
    });
    let kernel = kernel.or_else(|| {
        // `uname -a`: Linux HOST RELEASE …
        text.lines().find_map(|line| {
            let mut words = line.strip_prefix("Linux ")?.split(' ');
            let release = words.nth(1)?;
            release
                .split('.')
                .next()?
                .parse::<u16>()
                .is_ok()
                .then(|| release.to_owned())
        })
    });
    let unknown = |value: Option<String>| value.map_or(Knowledge::Unknown(SHOW_SYSFS), Knowledge::Known);
    Machine {
        origin: Origin::Listing,
        functions,
        root_buses: None,
        wide_domains: Vec::new(),
        groups,
        units: units(&log),
        other_iommus: Vec::new(),
        dmar: acpidump::table(&text, "DMAR").map_or(Knowledge::Unknown(SHOW_ACPI), Knowledge::Known),
        ivrs: if text.contains("AMD-Vi:") || acpidump::table(&text, "IVRS").is_some() {
            Knowledge::Known(())
        } else {
            Knowledge::Unknown(SHOW_ACPI)
        },
        platform: Platform::from_text(&SHOW_ACPI, &log, |signature| acpidump::table(&text, signature)),
        boot_parameters: unknown(boot_parameters),
        kernel: unknown(kernel),
        log: if log.records.is_empty() && log.unread_count == 0 {
            Knowledge::Unknown(SHOW_LOG)
        } else {
            Knowledge::Known(log)
        },
        module_parameters: Knowledge::Unknown(SHOW_SYSFS),
        vital_disks: Knowledge::Unknown(SHOW_SYSFS),
        vital_interfaces: Knowledge::Unknown(SHOW_SYSFS),
        notes,
    }
}

/// A fact that a listing shows where it is so, if it shows such facts at all.
fn shown<T>(value: Option<T>, shows: bool) -> Knowledge<T> {
    match value {
        Some(value) => Knowledge::Known(value),
        None if shows => Knowledge::Absent,
        None => Knowledge::Unknown(SHOW_VERBOSE),
    }
}

const SHOW_ACPI: Obstacle = Obstacle::NotShown("add the output of `acpidump` to the file");
const SHOW_LOG: Obstacle = Obstacle::NotShown("add the output of `dmesg` to the file");

/// Devices with more than one listed function.
fn siblings(functions: impl Iterator<Item = Bdf>) -> std::collections::BTreeSet<(u8, iommu_types::Segment, u8)> {
    functions
        .filter(|bdf| bdf.devfn().function() != 0)
        .map(|bdf| (bdf.bus(), bdf.segment, bdf.devfn().device()))
        .collect()
}

/// Groups from the listing, else from what the log says about additions.
fn groups(functions: &BTreeMap<Bdf, PciFunction>, log: &Log) -> Knowledge<BTreeMap<u32, KernelGroup>> {
    let mut groups: BTreeMap<u32, KernelGroup> = BTreeMap::new();
    let empty = |number| KernelGroup {
        number,
        functions: Vec::new(),
        others: Vec::new(),
        kind: Knowledge::Unknown(SHOW_SYSFS),
        reserved: Knowledge::Unknown(SHOW_SYSFS),
    };
    for f in functions.values() {
        if let Some(number) = f.group.known() {
            groups
                .entry(*number)
                .or_insert_with(|| empty(*number))
                .functions
                .push(f.bdf);
        }
    }
    if groups.is_empty() {
        for (_, event) in log.boot() {
            if let BootEvent::GroupAdded { device, group } = event {
                let entry = groups.entry(*group).or_insert_with(|| empty(*group));
                match device.parse::<Bdf>() {
                    Ok(bdf) => entry.functions.push(bdf),
                    Err(_) => entry.others.push(device.clone()),
                }
            }
        }
    }
    for group in groups.values_mut() {
        // Devices come and go, so that a log may add one twice.
        group.functions.sort_unstable();
        group.functions.dedup();
        group.others.sort_unstable();
        group.others.dedup();
    }
    if groups.is_empty() {
        Knowledge::Unknown(SHOW_VERBOSE)
    } else {
        Knowledge::Known(groups)
    }
}

/// Units from the kernel's boot lines.
pub(crate) fn units(log: &Log) -> Knowledge<Vec<Unit>> {
    let mut units: Vec<Unit> = Vec::new();
    for (_, event) in log.boot() {
        if let BootEvent::Unit {
            index,
            base,
            version,
            cap,
            ecap,
        } = event
        {
            let name = format!("dmar{index}");
            if units.iter().all(|unit| unit.name != name) && units.len() < 1024 {
                units.push(Unit {
                    name,
                    address: Knowledge::Known(*base),
                    version: machine::version(version.0, version.1)
                        .map_or(Knowledge::Unknown(SHOW_LOG), Knowledge::Known),
                    cap: Knowledge::Known(*cap),
                    ecap: Knowledge::Known(*ecap),
                    domains_used: Knowledge::Unknown(SHOW_SYSFS),
                });
            }
        }
    }
    if units.is_empty() {
        Knowledge::Unknown(SHOW_LOG)
    } else {
        Knowledge::Known(units)
    }
}

/// What a listing without numbers leaves open.
pub(crate) const fn numbers_not_shown() -> Obstacle {
    SHOW_NUMBERS
}

/// Offset of the class code, for those that read it from a listing.
pub(crate) const CLASS_AT: u16 = offset::REVISION;

#[cfg(test)]
mod tests;
