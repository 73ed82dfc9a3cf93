//! What Linux prints at boot about a DMAR table, and what it should print given how we read the table.

use acpi_dmar::{Dmar, ScopeType, Structure};

/// The starts of the messages that show a field of the table.
const ABOUT_STRUCTURES: [&str; 7] = [
    "DMAR: Host address width ",
    "DMAR: DRHD base: ",
    "DMAR: RMRR base: ",
    "DMAR: ATSR flags: ",
    "DMAR: RHSA base: ",
    "DMAR: ANDD device: ",
    "DMAR: SATC flags: ",
];
const ABOUT_SCOPES: [&str; 2] = ["DMAR-IR: IOAPIC id ", "DMAR-IR: HPET id "];

/// The messages that show fields of the table, in their order: first those that follow the structures, then
/// those about interrupt sources.
#[must_use]
pub fn about_the_table(messages: &[String]) -> Vec<String> {
    let starting = |starts: &'static [&'static str]| {
        let about = move |message: &&String| starts.iter().any(|start| message.starts_with(start));
        messages.iter().filter(about).map(|message| evenly_spaced(message))
    };
    // The firmware's table is announced, then the one that replaces it; the last one counts.
    let header = starting(&["ACPI: DMAR 0x"])
        .next_back()
        .map(|line| without_address(&line));
    header
        .into_iter()
        .chain(starting(&ABOUT_STRUCTURES))
        .chain(starting(&ABOUT_SCOPES))
        .collect()
}

/// The same messages, from our reading of the table.
#[must_use]
pub fn expected(table: Dmar<'_>) -> Vec<String> {
    let header = table.header();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut lines = vec![
        evenly_spaced(&format!(
            "ACPI: DMAR {:06X} (v{:02} {} {} {:08X} {} {:08X})",
            header.length,
            header.revision,
            text(&header.oem_id),
            text(&header.oem_table_id),
            header.oem_revision,
            text(&header.creator_id),
            header.creator_revision,
        )),
        format!("DMAR: Host address width {}", table.host_address_bits()),
    ];
    let mut sources = Vec::new();
    for (index, unit) in table.units().enumerate() {
        let base = unit.register_base().raw();
        for scope in unit.scopes().flatten() {
            let id = scope.enumeration_id();
            match scope.kind() {
                ScopeType::IO_APIC => sources.push(format!(
                    "DMAR-IR: IOAPIC id {id} under DRHD base {base:#x} IOMMU {index}"
                )),
                ScopeType::HPET => sources.push(format!("DMAR-IR: HPET id {id} under DRHD base {base:#x}")),
                _ => {}
            }
        }
    }
    let of_structures = table.structures().flatten().filter_map(|structure| match structure {
        Structure::Drhd(unit) => Some(format!(
            "DMAR: DRHD base: {} flags: {}",
            address(unit.register_base().raw()),
            hex(u64::from(unit.flags()))
        )),
        Structure::Rmrr(region) => Some(format!(
            "DMAR: RMRR base: {} end: {}",
            address(region.base().raw()),
            address(region.limit().raw())
        )),
        Structure::Atsr(ports) => Some(format!("DMAR: ATSR flags: {}", hex(u64::from(ports.flags())))),
        Structure::Rhsa(affinity) => Some(format!(
            "DMAR: RHSA base: {} proximity domain: {}",
            address(affinity.register_base().raw()),
            hex(u64::from(affinity.proximity_domain()))
        )),
        Structure::Andd(device) => Some(format!(
            "DMAR: ANDD device: {:x} name: {}",
            device.device_number(),
            device.name().unwrap_or_default()
        )),
        Structure::Satc(endpoints) => Some(format!("DMAR: SATC flags: {:#x}", endpoints.flags())),
        // Linux says nothing about the others.
        _ => None,
    });
    lines.extend(of_structures);
    lines.extend(sources);
    lines
}

/// An address as the kernel's `%#016llx` prints it: 14 digits, since the `0x` counts.
fn address(value: u64) -> String {
    format!("{value:#016x}")
}

/// A number as the kernel's `%#x` prints it.
fn hex(value: u64) -> String {
    format!("{value:#x}")
}

/// One space between words: names are padded, and one message has two before its address.
fn evenly_spaced(line: &str) -> String {
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// `ACPI: DMAR 0x000000001FFE24E8 000070 (…)` without the address.
fn without_address(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').filter(|word| !word.starts_with("0x")).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use acpi_dmar::{OwnedAndd, OwnedDmar, OwnedDrhd, OwnedScope};
    use iommu_types::{HostPhys, Segment};

    #[test]
    fn messages_of_a_boot_are_those_of_its_table() {
        let messages = [
            "ACPI: DMAR 0x000000001FFE24E8 000070 (v01 BOCHS  BXPC     00000001 BXPC 00000001)",
            "ACPI: DMAR 0x000000001FFE2000 000065 (v01 PORTCU PORTCULL 00000001 PORT 00000001)",
            "ACPI: Reserving DMAR table memory at [mem 0x1ffe24e8-0x1ffe2557]",
            "DMAR: IOMMU enabled",
            "DMAR: Host address width 39",
            "DMAR: DRHD base: 0x000000fed90000 flags: 0x1",
            "DMAR: dmar0: reg_base_addr fed90000 ver 1:0 cap 80d2008c222f0686 ecap f00f4a",
            "DMAR: ANDD device: 2 name: \\_SB.I2C1",
            "DMAR-IR: IOAPIC id 3 under DRHD base  0xfed90000 IOMMU 0",
        ]
        .map(str::to_owned);
        let scope = OwnedScope::io_apic(3, "f0:1f.0".parse::<iommu_types::Bdf>().unwrap().source);
        let bytes = OwnedDmar::new(39)
            .with(
                OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_0000))
                    .include_pci_all()
                    .scope(scope),
            )
            .with(OwnedAndd::new(2, "\\_SB.I2C1"))
            .build()
            .unwrap();
        let expected = expected(Dmar::parse(&bytes).unwrap());
        let said = about_the_table(&messages);
        assert_eq!(said.len(), 5);
        assert_eq!(said[1..], expected[1..]);
        assert!(expected[0].ends_with("(v01 PORTCU PORTCULL 00000001 PORT 00000001)"));
    }
}
