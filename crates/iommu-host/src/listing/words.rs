//! The indented lines below a function, in words, turned back into registers.

use iommu_groups::pci::{
    self, PortType, acs, advanced, ari, ats, bar, bridge, capability, express, extended, header, pasid, power, pri,
    sriov,
};

use crate::config::ConfigSpace;

/// Capabilities that are taken from one function.
const MAX_CAPABILITIES: usize = 256;

/// Base address registers that are taken from one function.
const MAX_REGIONS: usize = 6;
/// Registers that are taken from one capability.
const MAX_REGISTERS: usize = 32;

/// A capability as listed.
#[derive(Clone, Debug)]
struct Listed {
    at: u16,
    extended: bool,
    kind: u16,
    /// Registers of it that the words tell: offset in the capability and bytes.
    registers: Vec<(u16, Vec<u8>)>,
}

/// What the lines say.
#[derive(Clone, Debug, Default)]
pub(super) struct Words {
    pub(super) group: Option<u32>,
    pub(super) driver: Option<String>,
    pub(super) node: Option<u32>,
    command: Option<u16>,
    /// Whether the status register says that there are capabilities.
    has_capabilities: Option<bool>,
    buses: Option<[u8; 3]>,
    regions: Vec<(u8, u32)>,
    subsystem: Option<(u16, u16)>,
    capabilities: Vec<Listed>,
    denied: bool,
}

impl Words {
    /// Whether the function was listed with `-v` at least.
    pub(super) const fn is_verbose(&self) -> bool {
        self.has_capabilities.is_some() || self.driver.is_some() || !self.capabilities.is_empty()
    }

    /// Offset of the ACS capability and its capability register, if the words tell both.
    pub(super) fn acs(&self) -> Option<(u16, u16)> {
        let listed = self
            .capabilities
            .iter()
            .find(|listed| listed.extended && listed.kind == extended::ACS)?;
        let (_, bytes) = listed.registers.iter().find(|(at, _)| *at == acs::CAPABILITIES)?;
        Some((listed.at, u16::from_le_bytes(bytes.as_slice().try_into().ok()?)))
    }

    /// Takes a line in.
    pub(super) fn line(&mut self, line: &str) {
        let text = line.trim();
        let Some((key, value)) = text.split_once(':') else {
            self.detail(text);
            return;
        };
        let value = value.trim();
        match key {
            "IOMMU group" => self.group = value.parse().ok(),
            "NUMA node" => self.node = value.parse().ok(),
            "Kernel driver in use" => self.driver = Some(value.to_owned()),
            "Control" if value.starts_with("I/O") => self.command = Some(command(value)),
            // Capabilities have a line of that name too.
            "Status" if value.starts_with("Cap") => self.has_capabilities = Some(is_on(value, "Cap")),
            "Flags" if value.contains("bus master") || value.contains("devsel") => {
                self.has_capabilities.get_or_insert(true);
            }
            "Bus" if value.starts_with("primary=") => self.buses = buses(value),
            "Subsystem" => {
                self.subsystem = value
                    .rsplit_once('[')
                    .and_then(|(_, ids)| ids.strip_suffix(']')?.split_once(':'))
                    .and_then(|(v, d)| Some((u16::from_str_radix(v, 16).ok()?, u16::from_str_radix(d, 16).ok()?)));
            }
            "Capabilities" => self.capability(value),
            _ => match key.strip_prefix("Region ") {
                Some(number) => self.region(number, value),
                None => self.detail(text),
            },
        }
    }

    fn region(&mut self, number: &str, value: &str) {
        let Ok(number) = number.parse::<u8>() else { return };
        let value = value.strip_prefix("[virtual] ").unwrap_or(value);
        let address = |text: &str| {
            let digits = text.split(' ').next().unwrap_or_default();
            u64::from_str_radix(digits, 16).unwrap_or(0)
        };
        // Only what the words tell; an unassigned memory region keeps its type bits.
        let low = if let Some(rest) = value.strip_prefix("Memory at ") {
            let kind = if value.contains("64-bit") { bar::TYPE_64 } else { 0 };
            let base = u32::try_from(address(rest) & u64::from(bar::MEMORY_ADDRESS)).unwrap_or(0);
            // A base that the words do not tell is some base: memory that others could reach.
            (if base == 0 { 1 << 20 } else { base }) | kind
        } else if let Some(rest) = value.strip_prefix("I/O ports at ") {
            let base = u32::try_from(address(rest) & u64::from(bar::IO_ADDRESS)).unwrap_or(0);
            base | bar::IO
        } else {
            return;
        };
        if number < 6 && self.regions.len() < MAX_REGIONS {
            self.regions.push((number, low));
        }
    }

    fn capability(&mut self, value: &str) {
        if value.starts_with("<access denied>") {
            self.denied = true;
            return;
        }
        let Some((place, name)) = value.strip_prefix('[').and_then(|value| value.split_once(']')) else {
            return;
        };
        let digits = place.split(' ').next().unwrap_or_default();
        let Ok(at) = u16::from_str_radix(digits, 16) else {
            return;
        };
        let extended = at >= pci::CONVENTIONAL_LEN;
        if !(capability::FIRST..pci::EXTENDED_LEN).contains(&at)
            || at % 4 != 0
            || self.capabilities.len() >= MAX_CAPABILITIES
        {
            return;
        }
        let name = name.trim();
        let mut registers = Vec::new();
        let kind = if extended {
            extended_kind(name)
        } else {
            if let Some(flags) = express_flags(name) {
                registers.push((express::CAPABILITIES, flags.to_le_bytes().to_vec()));
            }
            conventional_kind(name)
        };
        self.capabilities.push(Listed {
            at,
            extended,
            kind,
            registers,
        });
    }

    /// A line about the capability listed last.
    fn detail(&mut self, text: &str) {
        let Some(listed) = self.capabilities.last_mut() else {
            return;
        };
        let registers = &mut listed.registers;
        let mut put = |at: u16, bytes: &[u8]| {
            if registers.len() < MAX_REGISTERS {
                registers.push((at, bytes.to_vec()));
            }
        };
        if listed.extended {
            extended_detail(listed.kind, text, &mut put);
            return;
        }
        match u8::try_from(listed.kind) {
            Ok(capability::PCI_EXPRESS) => {
                if let Some(on) = on_or_off(text, "FLReset") {
                    let value = if on { express::FLR_CAPABLE } else { 0 };
                    put(express::DEVICE_CAPABILITIES, &value.to_le_bytes());
                }
                // DevCap2 of a port has a flag of that name too, on a line of its own.
                if text.starts_with("DevCtl2:")
                    && let Some(on) = on_or_off(text, "ARIFwd")
                {
                    let value = if on { express::ARI_FORWARDING } else { 0 };
                    put(express::DEVICE_CONTROL_2, &u32::from(value).to_le_bytes());
                }
            }
            Ok(capability::POWER_MANAGEMENT) => {
                if let Some(on) = on_or_off(text, "NoSoftRst") {
                    let value = if on { power::NO_SOFT_RESET } else { 0 };
                    put(power::CONTROL, &u32::from(value).to_le_bytes());
                }
            }
            Ok(capability::ADVANCED_FEATURES) => {
                if let Some(on) = on_or_off(text, "FLR") {
                    put(advanced::CAPABILITIES, &[if on { advanced::FLR_CAPABLE } else { 0 }]);
                }
            }
            _ => {}
        }
    }

    /// Writes everything into configuration space.
    pub(super) fn write(&self, space: &mut ConfigSpace, is_bridge: bool) {
        if let Some(has) = self.has_capabilities {
            let status = if has { header::STATUS_CAPABILITIES } else { 0 };
            space.put(header::COMMAND, &self.command.unwrap_or(0).to_le_bytes());
            space.put(header::STATUS, &status.to_le_bytes());
            let bars = if is_bridge { 2 } else { 6 };
            for number in 0..bars {
                let listed = self.regions.iter().find(|(region, _)| *region == number);
                let value = listed.map_or(0, |(_, value)| *value);
                space.put(header::BAR0 + 4 * u16::from(number), &value.to_le_bytes());
            }
        }
        if let Some([primary, secondary, subordinate]) = self.buses.filter(|_| is_bridge) {
            space.put(bridge::PRIMARY, &[primary, secondary, subordinate, 0]);
        }
        if let Some((vendor, device)) = self.subsystem.filter(|_| !is_bridge) {
            space.put(header::SUBSYSTEM, &vendor.to_le_bytes());
            space.put(header::SUBSYSTEM + 2, &device.to_le_bytes());
        }
        if self.denied || self.has_capabilities != Some(true) {
            return;
        }
        self.write_lists(space);
    }

    /// Both capability lists, linked in the order in which they are listed.
    fn write_lists(&self, space: &mut ConfigSpace) {
        let conventional: Vec<&Listed> = self.capabilities.iter().filter(|listed| !listed.extended).collect();
        let first = conventional.first().map_or(0, |listed| listed.at);
        // The three bytes behind the pointer are reserved.
        space.put(header::CAPABILITIES, &u32::from(first).to_le_bytes());
        for (index, listed) in conventional.iter().enumerate() {
            let next = conventional.get(index + 1).map_or(0, |next| next.at);
            let ([kind, _], [next, _]) = (listed.kind.to_le_bytes(), next.to_le_bytes());
            // Two bytes of registers stand in the same dword; where words do not tell them nobody asks.
            space.put(listed.at, &[kind, next, 0, 0]);
            listed.write_registers(space);
        }
        let express = conventional
            .iter()
            .any(|listed| listed.kind == u16::from(capability::PCI_EXPRESS));
        if !express {
            return;
        }
        let mut others: Vec<&Listed> = self.capabilities.iter().filter(|listed| listed.extended).collect();
        // The list starts at 0x100, whatever the order of the lines.
        if let Some(first) = others.iter().position(|listed| listed.at == extended::FIRST) {
            others.rotate_left(first);
        } else {
            // None listed, or none at the start: nothing that could be found from there.
            space.put(extended::FIRST, &[0; 4]);
            return;
        }
        for (index, listed) in others.iter().enumerate() {
            let next = others.get(index + 1).map_or(0, |next| next.at);
            let head = u32::from(listed.kind) | 1 << extended::VERSION_SHIFT | u32::from(next) << extended::NEXT_SHIFT;
            space.put(listed.at, &head.to_le_bytes());
            listed.write_registers(space);
        }
    }
}

impl Listed {
    fn write_registers(&self, space: &mut ConfigSpace) {
        for (at, bytes) in &self.registers {
            space.put(self.at.saturating_add(*at), bytes);
        }
    }
}

/// Whether a flag is on: `Cap+`.
fn is_on(text: &str, flag: &str) -> bool {
    on_or_off(text, flag) == Some(true)
}

/// The state of a flag, if the text has it as a word.
fn on_or_off(text: &str, flag: &str) -> Option<bool> {
    text.split([' ', '\t', ',', ':'])
        .find_map(|word| match word.strip_prefix(flag)? {
            "+" => Some(true),
            "-" => Some(false),
            _ => None,
        })
}

fn command(value: &str) -> u16 {
    [
        ("I/O", header::COMMAND_IO),
        ("Mem", header::COMMAND_MEMORY),
        ("BusMaster", header::COMMAND_BUS_MASTER),
        ("ParErr", header::COMMAND_PARITY),
        ("SERR", header::COMMAND_SERR),
        ("DisINTx", header::COMMAND_INTX_DISABLE),
    ]
    .iter()
    .filter(|(flag, _)| is_on(value, flag))
    .fold(0, |bits, (_, bit)| bits | bit)
}

fn buses(value: &str) -> Option<[u8; 3]> {
    let number = |key: &str| {
        let (_, rest) = value.split_once(key)?;
        u8::from_str_radix(rest.get(..2)?, 16).ok()
    };
    Some([number("primary=")?, number("secondary=")?, number("subordinate=")?])
}

/// The Express capability register from `Express (v2) Root Port (Slot+), MSI 00`.
fn express_flags(name: &str) -> Option<u16> {
    let rest = name.strip_prefix("Express")?.trim_start();
    let rest = rest
        .strip_prefix('(')
        .and_then(|rest| rest.split_once(')'))
        .map_or(rest, |(_, rest)| rest)
        .trim_start();
    let kinds = [
        ("Endpoint", PortType::ENDPOINT),
        ("Legacy Endpoint", PortType::LEGACY_ENDPOINT),
        ("Root Port", PortType::ROOT_PORT),
        ("Upstream Port", PortType::UPSTREAM_PORT),
        ("Downstream Port", PortType::DOWNSTREAM_PORT),
        ("PCI-Express to PCI", PortType::PCIE_TO_PCI_BRIDGE),
        ("PCI/PCI-X to PCI-Express", PortType::PCI_TO_PCIE_BRIDGE),
        ("Root Complex Integrated Endpoint", PortType::INTEGRATED_ENDPOINT),
        ("Root Complex Event Collector", PortType::EVENT_COLLECTOR),
    ];
    let (_, kind) = kinds.iter().find(|(name, _)| rest.starts_with(name))?;
    Some(express::VERSION_2 | u16::from(kind.0) << express::TYPE_SHIFT)
}

/// The identifier of a capability by its name; 0, the null capability, for others.
fn conventional_kind(name: &str) -> u16 {
    let kinds = [
        ("Express", capability::PCI_EXPRESS),
        ("Power Management", capability::POWER_MANAGEMENT),
        ("MSI-X", capability::MSI_X),
        ("MSI", capability::MSI),
        ("PCI-X", capability::PCI_X),
        ("Subsystem", capability::BRIDGE_SUBSYSTEM),
        ("PCI Advanced Features", capability::ADVANCED_FEATURES),
    ];
    kinds
        .iter()
        .find(|(start, _)| name.starts_with(start))
        .map_or(0, |(_, kind)| u16::from(*kind))
}

fn extended_kind(name: &str) -> u16 {
    let kinds = [
        ("Access Control Services", extended::ACS),
        ("Alternative Routing-ID Interpretation", extended::ARI),
        ("Address Translation Service", extended::ATS),
        ("Single Root I/O Virtualization", extended::SRIOV),
        ("Page Request Interface", extended::PRI),
        ("Process Address Space ID", extended::PASID),
        ("Device Serial Number", extended::SERIAL_NUMBER),
    ];
    kinds
        .iter()
        .find(|(start, _)| name.starts_with(start))
        .map_or(0, |(_, kind)| *kind)
}

/// Bits from `SrcValid+ TransBlk- …`, in the order of the register.
fn acs_bits(text: &str) -> u16 {
    const NAMES: [(&str, u16); 7] = [
        ("SrcValid", acs::SOURCE_VALIDATION),
        ("TransBlk", acs::TRANSLATION_BLOCKING),
        ("ReqRedir", acs::REQUEST_REDIRECT),
        ("CmpltRedir", acs::COMPLETION_REDIRECT),
        ("UpstreamFwd", acs::UPSTREAM_FORWARDING),
        ("EgressCtrl", acs::EGRESS_CONTROL),
        ("DirectTrans", acs::DIRECT_TRANSLATED),
    ];
    NAMES
        .iter()
        .filter(|(name, _)| is_on(text, name))
        .fold(0, |bits, (_, bit)| bits | bit)
}

/// The number behind a label.
fn number(text: &str, label: &str, radix: u32) -> Option<u16> {
    let (_, rest) = text.split_once(label)?;
    let rest = rest.trim_start();
    let end = rest.find(|c: char| !c.is_digit(radix)).unwrap_or(rest.len());
    u16::from_str_radix(rest.get(..end)?, radix).ok()
}

fn extended_detail(kind: u16, text: &str, put: &mut impl FnMut(u16, &[u8])) {
    let bit = |on: bool, bit: u16| if on { bit } else { 0 };
    match kind {
        extended::ACS if text.starts_with("ACSCap:") => put(acs::CAPABILITIES, &acs_bits(text).to_le_bytes()),
        extended::ACS if text.starts_with("ACSCtl:") => put(acs::CONTROL, &acs_bits(text).to_le_bytes()),
        extended::ATS if text.starts_with("ATSCap:") => {
            let depth = number(text, "Queue Depth:", 16).unwrap_or(0) & ats::QUEUE_DEPTH;
            put(ats::CAPABILITIES, &depth.to_le_bytes());
        }
        extended::ATS if text.starts_with("ATSCtl:") => {
            put(ats::CONTROL, &bit(is_on(text, "Enable"), ats::ENABLE).to_le_bytes());
        }
        extended::PASID if text.starts_with("PASIDCap:") => {
            let width = number(text, "Max PASID Width:", 16).unwrap_or(0) & pasid::WIDTH_MASK;
            put(pasid::CAPABILITIES, &(width << pasid::WIDTH_SHIFT).to_le_bytes());
        }
        extended::PASID if text.starts_with("PASIDCtl:") => {
            put(pasid::CONTROL, &bit(is_on(text, "Enable"), pasid::ENABLE).to_le_bytes());
        }
        extended::PRI if text.starts_with("PRICtl:") => {
            put(
                pri::CONTROL,
                &u32::from(bit(is_on(text, "Enable"), pri::ENABLE)).to_le_bytes(),
            );
        }
        extended::ARI if text.starts_with("ARICap:") => {
            let next = number(text, "Next Function:", 10).unwrap_or(0);
            let next = u8::try_from(next).unwrap_or(0);
            put(ari::CAPABILITIES, &[0, next, 0, 0]);
        }
        extended::SRIOV => sriov_detail(text, put),
        _ => {}
    }
}

fn sriov_detail(text: &str, put: &mut impl FnMut(u16, &[u8])) {
    if text.starts_with("IOVCtl:") {
        let enable = if is_on(text, "Enable") { sriov::VF_ENABLE } else { 0 };
        put(sriov::CONTROL, &enable.to_le_bytes());
        put(sriov::CONTROL + 2, &[0, 0]);
    }
    if let Some(initial) = number(text, "Initial VFs:", 10) {
        put(sriov::INITIAL_VFS, &initial.to_le_bytes());
    }
    if let Some(total) = number(text, "Total VFs:", 10) {
        put(sriov::TOTAL_VFS, &total.to_le_bytes());
    }
    if let Some(count) = number(text, "Number of VFs:", 10) {
        put(sriov::NUM_VFS, &count.to_le_bytes());
        put(sriov::NUM_VFS + 2, &[0, 0]);
    }
    if let Some(offset) = number(text, "VF offset:", 10) {
        put(sriov::FIRST_OFFSET, &offset.to_le_bytes());
    }
    if let Some(stride) = number(text, "stride:", 10) {
        put(sriov::STRIDE, &stride.to_le_bytes());
    }
    if let Some(device) = number(text, "Device ID:", 16) {
        put(sriov::VF_DEVICE_ID - 2, &[0, 0]);
        put(sriov::VF_DEVICE_ID, &device.to_le_bytes());
    }
}
