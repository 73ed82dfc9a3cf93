//! Lines about how the machine started: units, table contents, groups, complaints about firmware.

use iommu_types::{AddrRange, Bdf, HostPhys, Segment};
use vtd_spec::register::{Capability, ExtendedCapability};

use super::cursor::{Cursor, fit};

/// How interrupt remapping works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IrqMode {
    /// With 32-bit processor identifiers.
    X2Apic,
    /// With 8-bit processor identifiers.
    XApic,
}

/// Something the kernel says when it starts, or when devices come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BootEvent {
    /// `Linux version …`
    Version(String),
    /// `Command line: …`
    CommandLine(String),
    /// `Hypervisor detected: …`: the kernel runs in a virtual machine.
    Hypervisor,
    /// `ACPI: DMAR 0x…`: the table exists; its length in bytes.
    TableFound {
        /// Length in bytes.
        length: u32,
    },
    /// `BIOS-e820: [mem 0x…-0x…] reserved`: a range of the firmware's memory map.
    Memory {
        /// The range.
        range: AddrRange<HostPhys>,
        /// What it is: `usable`, `reserved`, `ACPI data`, …
        kind: String,
    },
    /// `IOMMU enabled`: the command line asks for it, no more.
    Asked,
    /// `Host address width N`.
    HostAddressWidth(u8),
    /// A DRHD structure.
    Drhd {
        /// Register base.
        base: HostPhys,
        /// Its flags.
        flags: u8,
    },
    /// The registers of a unit.
    Unit {
        /// Number, as in `dmar0`.
        index: u32,
        /// Register base.
        base: HostPhys,
        /// Major and minor version of the architecture.
        version: (u8, u8),
        /// Capability register.
        cap: Capability,
        /// Extended capability register.
        ecap: ExtendedCapability,
    },
    /// An RMRR structure.
    Rmrr(AddrRange<HostPhys>),
    /// An ATSR structure.
    Atsr {
        /// Its flags.
        flags: u8,
    },
    /// An RHSA structure.
    Rhsa {
        /// Register base of the unit.
        base: HostPhys,
        /// Proximity domain.
        domain: u32,
    },
    /// An ANDD structure.
    Andd {
        /// Number of the device.
        number: u8,
        /// Its name in the ACPI namespace.
        name: String,
    },
    /// An I/O APIC in the scope of a unit.
    IoApic {
        /// Its identifier.
        id: u32,
        /// Register base of the unit.
        base: HostPhys,
    },
    /// An HPET in the scope of a unit.
    Hpet {
        /// Its number.
        id: u32,
        /// Register base of the unit.
        base: HostPhys,
    },
    /// Interrupt remapping is on.
    IrqRemapping(IrqMode),
    /// The firmware asks to leave x2APIC off.
    X2ApicOptOut,
    /// The firmware asked for DMA protection, so the kernel turned it on without being told.
    PlatformOptIn,
    /// The kernel uses the units: it prints this once they work.
    Initialised,
    /// A device joined a group.
    GroupAdded {
        /// The device as the kernel names it; not always a PCI function.
        device: String,
        /// The kernel's number of the group.
        group: u32,
    },
    /// A device left a group.
    GroupRemoved {
        /// The device.
        device: String,
        /// The group.
        group: u32,
    },
    /// A device could not join a group.
    GroupFailed {
        /// The device.
        device: String,
        /// The error number, without its sign.
        error: u32,
    },
    /// A PCI domain of its own is behind a function (a VMD): its requests carry that function's requester ID.
    DomainBehind {
        /// The domain.
        domain: Segment,
        /// The function.
        function: Bdf,
    },
    /// A reserved region is mapped for a device.
    IdentityMap {
        /// The device.
        device: String,
        /// The region.
        range: AddrRange<HostPhys>,
    },
    /// A unit for graphics is left off.
    GraphicsOff,
    /// A unit offers no address width that the kernel can use: it is left off.
    NoAddressWidth {
        /// Number of the unit.
        unit: u32,
    },
    /// A device could not be given to its unit.
    DeviceFailed {
        /// The device.
        device: String,
        /// The error number, without its sign.
        error: u32,
    },
    /// Translation or remapping was on when the kernel started.
    LeftOn {
        /// Number of the unit.
        unit: u32,
    },
    /// A unit's interrupt table was taken over from the kernel before.
    CopiedTable {
        /// Number of the unit.
        unit: u32,
    },
    /// `[Firmware Bug]: …` about the table; its words.
    FirmwareBug(String),
    /// The kernel gave the table up.
    ParseFailure,
    /// A device is kept from VFIO by a reserved region.
    Ineligible {
        /// The device.
        device: String,
    },
    /// A root port with wide ACS registers was handled.
    WideAcsEnabled {
        /// The port.
        device: String,
    },
    /// The isolation of chipset ports could not be turned on.
    PchAcsFailed,
}

/// Reads one line.
pub(super) fn read_boot(text: &str) -> Option<BootEvent> {
    // Nearly all lines of a log are something else: look before trying.
    if ![
        "DMAR",
        "dmar",
        "iommu",
        "IOMMU",
        "No supported address widths",
        "x2apic",
        "Linux version",
        "Hypervisor detected",
        "ommand line:",
        "ACS",
        "vmd ",
        "BIOS-e820",
    ]
    .iter()
    .any(|word| text.contains(word))
    {
        return None;
    }
    kernel(text)
        .or_else(|| table(text))
        .or_else(|| state(text))
        .or_else(|| device(text))
}

fn kernel(text: &str) -> Option<BootEvent> {
    if let Some(version) = text.strip_prefix("Linux version ") {
        return Some(BootEvent::Version(version.to_owned()));
    }
    if text.starts_with("Hypervisor detected: ") {
        return Some(BootEvent::Hypervisor);
    }
    let line = text
        .strip_prefix("Kernel command line: ")
        .or_else(|| text.strip_prefix("Command line: "))?;
    Some(BootEvent::CommandLine(line.to_owned()))
}

fn table(text: &str) -> Option<BootEvent> {
    if let Some(mut at) = Cursor::after(text, "ACPI: DMAR 0x") {
        at.hex()?;
        let length = at.hex().and_then(fit)?;
        return Some(BootEvent::TableFound { length });
    }
    if let Some(mut at) = Cursor::after(text, "BIOS-e820: [mem ") {
        let first = at.hex()?;
        at.literal("-")?;
        let range = AddrRange::new(HostPhys::new(first), HostPhys::new(at.hex()?))?;
        at.literal("]")?;
        let kind = at.0.trim().to_owned();
        return Some(BootEvent::Memory { range, kind });
    }
    if let Some(mut at) = Cursor::after(text, "Host address width ") {
        return at.decimal().and_then(fit).map(BootEvent::HostAddressWidth);
    }
    if let Some(mut at) = Cursor::after(text, "DRHD base: ") {
        let base = HostPhys::new(at.hex()?);
        at.literal("flags:")?;
        let flags = at.hex().and_then(fit)?;
        return Some(BootEvent::Drhd { base, flags });
    }
    if let Some(mut at) = Cursor::after(text, "RMRR base: ") {
        let base = at.hex()?;
        at.literal("end:")?;
        let range = AddrRange::new(HostPhys::new(base), HostPhys::new(at.hex()?))?;
        return Some(BootEvent::Rmrr(range));
    }
    if let Some(mut at) = Cursor::after(text, "ATSR flags: ") {
        let flags = at.hex().and_then(fit)?;
        return Some(BootEvent::Atsr { flags });
    }
    if let Some(mut at) = Cursor::after(text, "RHSA base: ") {
        let base = HostPhys::new(at.hex()?);
        at.literal("proximity domain:")?;
        let domain = at.hex().and_then(fit)?;
        return Some(BootEvent::Rhsa { base, domain });
    }
    if let Some(mut at) = Cursor::after(text, "ANDD device: ") {
        let number = at.hex().and_then(fit)?;
        at.literal("name:")?;
        let name = at.word().to_owned();
        return Some(BootEvent::Andd { number, name });
    }
    if let Some(mut at) = Cursor::after(text, "IOAPIC id ") {
        let id = at.decimal().and_then(fit)?;
        at.literal("under DRHD base")?;
        let base = HostPhys::new(at.hex()?);
        return Some(BootEvent::IoApic { id, base });
    }
    if let Some(mut at) = Cursor::after(text, "HPET id ") {
        let id = at.decimal().and_then(fit)?;
        at.literal("under DRHD base")?;
        let base = HostPhys::new(at.hex()?);
        return Some(BootEvent::Hpet { id, base });
    }
    unit(text)
}

/// `dmar0: reg_base_addr d37fc000 ver 1:0 cap 8d2078c106f0466 ecap f020df`.
fn unit(text: &str) -> Option<BootEvent> {
    let mut at = Cursor::after(text, "reg_base_addr ")?;
    let (before, _) = text.split_once(": reg_base_addr ")?;
    let digits = before.rsplit("dmar").next()?;
    let index = digits.parse().ok()?;
    let base = HostPhys::new(at.hex()?);
    at.literal("ver")?;
    let major = at.hex().and_then(fit)?;
    at.literal(":")?;
    let minor = at.hex().and_then(fit)?;
    at.literal("cap")?;
    let cap = Capability::new_with_raw_value(at.hex()?);
    at.literal("ecap")?;
    let ecap = ExtendedCapability::new_with_raw_value(at.hex()?);
    Some(BootEvent::Unit {
        index,
        base,
        version: (major, minor),
        cap,
        ecap,
    })
}

fn state(text: &str) -> Option<BootEvent> {
    let event = if text.contains("Enabled IRQ remapping in x2apic mode") {
        BootEvent::IrqRemapping(IrqMode::X2Apic)
    } else if text.contains("Enabled IRQ remapping in xapic mode") {
        BootEvent::IrqRemapping(IrqMode::XApic)
    } else if text.contains("x2apic is disabled because BIOS sets x2apic opt out bit") {
        BootEvent::X2ApicOptOut
    } else if text.contains("force enabled due to platform opt in") {
        BootEvent::PlatformOptIn
    } else if text.contains("Intel(R) Virtualization Technology for Directed I/O") {
        BootEvent::Initialised
    } else if text.ends_with("DMAR: IOMMU enabled") || text.ends_with("Intel-IOMMU: enabled") {
        BootEvent::Asked
    } else if text.contains("Disabling IOMMU for graphics on this chipset") {
        BootEvent::GraphicsOff
    } else if text.contains("Parse DMAR table failure") {
        BootEvent::ParseFailure
    } else if text.contains("Failed to enable Intel PCH ACS quirk") {
        BootEvent::PchAcsFailed
    } else if let Some(mut at) = Cursor::after(text, "IRQ remapping was enabled on dmar") {
        BootEvent::LeftOn {
            unit: at.decimal().and_then(fit)?,
        }
    } else if let Some(mut at) = Cursor::after(text, "Translation was enabled for dmar") {
        BootEvent::LeftOn {
            unit: at.decimal().and_then(fit)?,
        }
    } else if let Some(mut at) = Cursor::after(text, "Copied IR table for dmar") {
        BootEvent::CopiedTable {
            unit: at.decimal().and_then(fit)?,
        }
    } else if let Some((before, _)) = text.split_once(": No supported address widths") {
        BootEvent::NoAddressWidth {
            unit: before.rsplit("dmar").next()?.parse().ok()?,
        }
    } else if let Some(at) = Cursor::after(text, "[Firmware Bug]: ")
        && (text.contains("DMAR") || text.contains("RMRR") || at.0.contains("DRHD"))
    {
        BootEvent::FirmwareBug(at.0.to_owned())
    } else {
        return None;
    };
    Some(event)
}

/// Lines about one device: `pci 0000:00:1f.0: Adding to iommu group 12`.
fn device(text: &str) -> Option<BootEvent> {
    if let Some(mut at) = Cursor::after(text, ": Adding to iommu group ") {
        let group = at.decimal().and_then(fit)?;
        let device = name_before(text, ": Adding to")?;
        return Some(BootEvent::GroupAdded { device, group });
    }
    if let Some(mut at) = Cursor::after(text, ": Removing from iommu group ") {
        let group = at.decimal().and_then(fit)?;
        let device = name_before(text, ": Removing from")?;
        return Some(BootEvent::GroupRemoved { device, group });
    }
    if let Some(mut at) = Cursor::after(text, ": Failed to add to iommu group ") {
        at.decimal()?;
        at.literal(": -")?;
        let error = at.decimal().and_then(fit)?;
        let device = name_before(text, ": Failed to add")?;
        return Some(BootEvent::GroupFailed { device, error });
    }
    if let Some(mut at) = Cursor::after(text, ": Adding to IOMMU failed: -") {
        let error = at.decimal().and_then(fit)?;
        let device = name_before(text, ": Adding to IOMMU")?;
        return Some(BootEvent::DeviceFailed { device, error });
    }
    if let Some(mut at) = Cursor::after(text, "DMAR: Setting identity map [") {
        let base = at.hex()?;
        at.literal("-")?;
        let range = AddrRange::new(HostPhys::new(base), HostPhys::new(at.hex()?))?;
        at.literal("]")?;
        let device = name_before(text, ": DMAR: Setting")?;
        return Some(BootEvent::IdentityMap { device, range });
    }
    if text.contains("ineligible for IOMMU domain attach") {
        let device = name_before(text, ": D")?;
        return Some(BootEvent::Ineligible { device });
    }
    if let Some(mut at) = Cursor::after(text, ": PCI host bridge to bus ")
        && text.starts_with("vmd ")
    {
        let domain = at.hex().and_then(fit).map(Segment)?;
        at.literal(":")?;
        let function = name_before(text, ": PCI host")?.parse().ok()?;
        return Some(BootEvent::DomainBehind { domain, function });
    }
    if let Some(event) = quirk(text) {
        return Some(event);
    }
    None
}

/// Quirks of ports that the kernel applied.
fn quirk(text: &str) -> Option<BootEvent> {
    if text.contains("Intel SPT PCH root port ACS workaround enabled") {
        let device = name_before(text, ": Intel SPT")?;
        return Some(BootEvent::WideAcsEnabled { device });
    }
    None
}

/// The device in `driver device: message`; the driver is left out.
fn name_before(text: &str, marker: &str) -> Option<String> {
    let (before, _) = text.split_once(marker)?;
    let mut words = before.split_whitespace();
    let (driver, device) = (words.next()?, words.next()?);
    // Two words, no more: anything else has lost characters.
    (words.next().is_none() && !driver.is_empty()).then(|| device.to_owned())
}
