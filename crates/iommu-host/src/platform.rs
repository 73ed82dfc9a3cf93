//! What firmware and processor say besides the DMAR table, as far as the table is judged by it.
//!
//! Everything comes from bytes and texts of the machine: the MADT (ACPI §5.2.12), HPET tables (IA-PC HPET
//! specification §3.2.4), `/proc/iomem` or the memory map in the log, `/proc/cpuinfo`, the paths of ACPI devices.

use acpi_dmar::lint::{MemoryKind, MemoryRegion};
use iommu_types::{AddrRange, HostPhys};

use crate::knowledge::{Knowledge, Obstacle};
use crate::log::{BootEvent, Log};
use crate::sysfs::{TABLES, acpi_table};
use crate::tree::Tree;

/// HPET tables of a machine: sysfs has them as `HPET`, `HPET2`, `HPET3` and so on.
const MAX_HPETS: usize = 8;
/// Ranges of a memory map. Linux itself takes a few thousand at most.
const MAX_RANGES: usize = 1 << 14;
/// Bytes of `/proc/iomem`.
const MAX_IOMEM: usize = 4 << 20;
/// Devices of the ACPI namespace that are looked at.
const MAX_DEVICES: usize = 1 << 13;
/// Where the kernel shows the devices of the ACPI namespace.
pub(crate) const NAMESPACE: &str = "sys/bus/acpi/devices";
/// Where processors are described.
pub(crate) const CPUINFO: &str = "proc/cpuinfo";
/// Bytes of it that hold the first processor.
pub(crate) const CPUINFO_HEAD: usize = 8192;
/// Memory as the kernel divides it.
pub(crate) const IOMEM: &str = "proc/iomem";

/// Offset of the first entry of a MADT: behind the header, the APIC's address and the flags.
const MADT_ENTRIES: usize = 44;
/// Type of an I/O APIC entry of a MADT.
const MADT_IO_APIC: u8 = 1;
/// Offset of the sequence number in an HPET table.
const HPET_NUMBER: usize = 52;

/// What firmware and processor say besides the DMAR table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    /// Identifiers of the I/O APICs in the MADT, ascending.
    pub io_apics: Knowledge<Vec<u8>>,
    /// Numbers of the HPET timer blocks, ascending.
    pub hpets: Knowledge<Vec<u8>>,
    /// The firmware's memory map: what the system may use and what is reserved.
    pub memory: Knowledge<Vec<MemoryRegion>>,
    /// Physical address bits of the processor.
    pub address_bits: Knowledge<u8>,
    /// Whether the processor is one of a virtual machine.
    pub is_guest: Knowledge<bool>,
    /// Full paths of the devices in the ACPI namespace, padded names (`_SB_`) and plain ones (`_SB`).
    pub namespace: Knowledge<Vec<String>>,
}

impl Platform {
    /// Nothing is known, for one reason.
    pub(crate) fn unknown(why: &Obstacle) -> Self {
        Self {
            io_apics: Knowledge::Unknown(why.clone()),
            hpets: Knowledge::Unknown(why.clone()),
            memory: Knowledge::Unknown(why.clone()),
            address_bits: Knowledge::Unknown(why.clone()),
            is_guest: Knowledge::Unknown(why.clone()),
            namespace: Knowledge::Unknown(why.clone()),
        }
    }

    /// From a live machine, a copy of its folders, or a snapshot.
    pub(crate) fn read(tree: &Tree, log: Option<&Log>) -> Self {
        let cpuinfo = tree
            .head(CPUINFO, CPUINFO_HEAD)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Self {
            io_apics: acpi_table(tree, "APIC").and_then(|bytes| io_apics(&bytes)),
            hpets: hpets(tree),
            memory: memory(tree, log),
            address_bits: cpuinfo.clone().and_then(|text| address_bits(&text)),
            is_guest: cpuinfo.and_then(|text| is_guest(&text)),
            namespace: namespace(tree),
        }
    }

    /// From the text of a listing: tables that `acpidump` printed, and the log.
    pub(crate) fn from_text(why: &Obstacle, log: &Log, table: impl Fn(&str) -> Option<Vec<u8>>) -> Self {
        let mut platform = Self::unknown(why);
        if log.boot().any(|(_, event)| matches!(event, BootEvent::Hypervisor)) {
            platform.is_guest = Knowledge::Known(true);
        }
        if let Some(bytes) = table("APIC") {
            platform.io_apics = io_apics(&bytes);
        }
        if let Some(number) = table("HPET").and_then(|bytes| bytes.get(HPET_NUMBER).copied()) {
            platform.hpets = Knowledge::Known(vec![number]);
        }
        if let Some(map) = memory_of_log(log) {
            platform.memory = Knowledge::Known(map);
        }
        platform
    }
}

/// Identifiers of the I/O APICs. Every entry has two bytes at least, which bounds the walk.
fn io_apics(madt: &[u8]) -> Knowledge<Vec<u8>> {
    let malformed = || Knowledge::Unknown(Obstacle::Malformed(format!("/{TABLES}/APIC")));
    if !madt.starts_with(b"APIC") || madt.len() < MADT_ENTRIES {
        return malformed();
    }
    let mut found = Vec::new();
    let mut rest = madt.get(MADT_ENTRIES..).unwrap_or_default();
    while let [kind, length, ..] = *rest {
        let Some((entry, behind)) = rest.split_at_checked(usize::from(length)).filter(|_| length >= 2) else {
            return malformed();
        };
        if kind == MADT_IO_APIC {
            let Some(id) = entry.get(2) else { return malformed() };
            found.push(*id);
        }
        rest = behind;
    }
    found.sort_unstable();
    found.dedup();
    Knowledge::Known(found)
}

/// Several tables of one kind are numbered from 1, a single one is not.
fn hpets(tree: &Tree) -> Knowledge<Vec<u8>> {
    let mut numbers = Vec::new();
    for index in 0..=MAX_HPETS {
        let name = if index == 0 {
            "HPET".to_owned()
        } else {
            format!("HPET{index}")
        };
        match acpi_table(tree, &name) {
            Knowledge::Known(bytes) => match bytes.get(HPET_NUMBER) {
                Some(number) => numbers.push(*number),
                None => return Knowledge::Unknown(Obstacle::Malformed(format!("/{TABLES}/{name}"))),
            },
            Knowledge::Unknown(why) if index == 0 => return Knowledge::Unknown(why),
            Knowledge::Absent | Knowledge::Unknown(_) => {}
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    Knowledge::Known(numbers)
}

/// `address sizes\t: 46 bits physical, 48 bits virtual`.
fn address_bits(cpuinfo: &str) -> Knowledge<u8> {
    let bits = cpuinfo.lines().find_map(|line| {
        let (_, sizes) = line.strip_prefix("address sizes")?.split_once(':')?;
        sizes.trim().split_once(" bits physical")?.0.parse().ok()
    });
    // Other architectures do not say it there.
    bits.map_or(
        Knowledge::Unknown(Obstacle::Malformed(format!("/{CPUINFO}"))),
        Knowledge::Known,
    )
}

/// The flag that hypervisors set in CPUID, among those of the first processor.
fn is_guest(cpuinfo: &str) -> Knowledge<bool> {
    let flags = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("flags")?.split_once(':'));
    flags.map_or(
        Knowledge::Unknown(Obstacle::Malformed(format!("/{CPUINFO}"))),
        |(_, flags)| Knowledge::Known(flags.split_whitespace().any(|flag| flag == "hypervisor")),
    )
}

/// The map that the firmware gave: from the log, where it stands as it was, else from what the kernel made of it.
fn memory(tree: &Tree, log: Option<&Log>) -> Knowledge<Vec<MemoryRegion>> {
    if let Some(map) = log.and_then(memory_of_log) {
        return Knowledge::Known(map);
    }
    tree.read(IOMEM, MAX_IOMEM)
        .and_then(|bytes| memory_of_iomem(&String::from_utf8_lossy(&bytes)))
}

fn memory_of_log(log: &Log) -> Option<Vec<MemoryRegion>> {
    let map: Vec<MemoryRegion> = log
        .boot()
        .filter_map(|(_, event)| match event {
            BootEvent::Memory { range, kind } => Some((*range, kind.as_str())),
            _ => None,
        })
        .filter_map(|(range, kind)| {
            let kind = match kind {
                "usable" => MemoryKind::Usable,
                "reserved" => MemoryKind::Reserved,
                _ => return None,
            };
            Some(MemoryRegion { range, kind })
        })
        .take(MAX_RANGES)
        .collect();
    (!map.is_empty()).then_some(map)
}

/// Lines such as `  7b800000-7fffffff : Reserved`; what is inside something is indented below it.
fn memory_of_iomem(text: &str) -> Knowledge<Vec<MemoryRegion>> {
    let mut map = Vec::new();
    let (mut inside_ram, mut zeros, mut lines) = (false, 0, 0);
    for line in text.lines().take(MAX_RANGES) {
        let Some((bounds, name)) = line.split_once(" : ") else {
            continue;
        };
        let is_top = !bounds.starts_with(' ');
        let Some((first, last)) = bounds.trim().split_once('-') else {
            continue;
        };
        let (Ok(first), Ok(last)) = (u64::from_str_radix(first, 16), u64::from_str_radix(last, 16)) else {
            continue;
        };
        lines += 1;
        zeros += usize::from(last == 0);
        if is_top {
            inside_ram = name == "System RAM";
        }
        let kind = match name {
            "System RAM" if is_top => MemoryKind::Usable,
            // Reserved inside RAM is the kernel's own doing.
            "Reserved" | "reserved" if !inside_ram => MemoryKind::Reserved,
            _ => continue,
        };
        if let Some(range) = AddrRange::new(HostPhys::new(first), HostPhys::new(last)) {
            map.push(MemoryRegion { range, kind });
        }
    }
    if lines > 0 && zeros == lines {
        // Without rights the kernel shows zeros in place of all addresses.
        Knowledge::Unknown(Obstacle::NotPermitted(format!("/{IOMEM}")))
    } else if map.is_empty() {
        Knowledge::Unknown(Obstacle::Malformed(format!("/{IOMEM}")))
    } else {
        Knowledge::Known(map)
    }
}

/// Paths of devices, each with padded and with plain names: tables are written either way.
fn namespace(tree: &Tree) -> Knowledge<Vec<String>> {
    let names = match tree.names(NAMESPACE) {
        Knowledge::Known(names) => names,
        Knowledge::Absent => return Knowledge::Unknown(Obstacle::NotIncluded(NAMESPACE.to_owned())),
        Knowledge::Unknown(why) => return Knowledge::Unknown(why),
    };
    let mut paths = Vec::new();
    for name in names.iter().take(MAX_DEVICES) {
        if let Knowledge::Known(path) = tree.text(&format!("{NAMESPACE}/{name}/path")) {
            let plain: Vec<&str> = path.split('.').map(|part| part.trim_end_matches('_')).collect();
            paths.push(plain.join("."));
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Knowledge::Unknown(Obstacle::NotIncluded(NAMESPACE.to_owned()));
    }
    Knowledge::Known(paths)
}

#[cfg(test)]
mod tests;
