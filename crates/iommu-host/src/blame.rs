//! Who is behind a fault, what the address was, and what to do.

use std::fmt;

use acpi_dmar::Dmar;
use acpi_dmar::lint::MemoryKind;
use iommu_groups::{Topology, pci};
use iommu_types::{AddrRange, Bdf, HostPhys, Segment, SourceId};
use vtd_spec::fault::FaultReason;
use vtd_spec::message::{INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST};

use crate::buses::Buses;
use crate::knowledge::Knowledge;
use crate::log::{BootEvent, Fault, Request};
use crate::machine::Machine;

/// Which device sent a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// The function with that requester ID.
    Function(Bdf),
    /// A function that is known to use that requester ID besides its own.
    Alias(Bdf),
    /// A guess: there is no such function, but this one is in the same slot.
    SameSlot(Bdf),
    /// A guess: there is no such function, but this bridge leads to the bus, and may have issued the request.
    BridgeAbove(Bdf),
    /// Nothing is known at that requester ID.
    Nobody,
    /// The functions of the machine are not known.
    Unknown,
}

impl Culprit {
    /// The function, guessed or not.
    #[must_use]
    pub const fn function(self) -> Option<Bdf> {
        match self {
            Self::Function(bdf) | Self::Alias(bdf) | Self::SameSlot(bdf) | Self::BridgeAbove(bdf) => Some(bdf),
            Self::Nobody | Self::Unknown => None,
        }
    }

    /// Whether it is no more than a guess.
    #[must_use]
    pub const fn is_guess(self) -> bool {
        matches!(self, Self::SameSlot(_) | Self::BridgeAbove(_))
    }
}

/// What kind of address a request named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AddressKind {
    /// In a reserved region that the firmware names this device for.
    OwnReserved(AddrRange<HostPhys>),
    /// In a reserved region of other devices, or of devices that are not known.
    OtherReserved(AddrRange<HostPhys>),
    /// In memory that the firmware keeps for itself, and for which it names no device.
    FirmwareMemory(AddrRange<HostPhys>),
    /// Where interrupts are written to.
    InterruptRange,
    /// In the first 64 KiB.
    NearZero,
    /// In the last 512 MiB below 4 GiB, where the kernel hands out addresses first.
    BelowFourGiB,
    /// Beyond what any unit of the machine translates.
    BeyondWidth,
    /// Nothing special.
    Ordinary,
    /// No address: it was an interrupt.
    Interrupt,
}

/// Who has to do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// The firmware.
    Firmware,
    /// The driver of the device.
    Driver,
    /// The device uses a requester ID that the kernel does not expect.
    Alias,
    /// The device used a mapping after it was removed.
    UseAfterUnmap,
    /// Interrupts are not set up as the unit wants them.
    Interrupts,
    /// It cannot be told from this.
    Unclear,
}

/// What is behind a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blame {
    /// Who.
    pub culprit: Culprit,
    /// Where.
    pub address: AddressKind,
    /// Whose fault it is, most likely.
    pub verdict: Verdict,
}

/// Addresses that unset pointers lead to.
const NEAR_ZERO: u64 = 0x1_0000;
/// The window that Linux allocates from first, from above.
const BELOW_FOUR_GIB: (u64, u64) = (0xe000_0000, 0xffff_ffff);

/// Finds out what is behind a fault, from what is known of the machine. Kernels do not print the segment: segment
/// 0 is meant.
#[must_use]
pub fn blame(machine: &Machine, topology: &Topology, fault: &Fault) -> Blame {
    let culprit = culprit(machine, topology, fault.requester);
    let address = match fault.request {
        Request::Interrupt { .. } => AddressKind::Interrupt,
        Request::Dma { address, .. } => {
            address_kind(machine, topology, suspect(culprit, fault.requester), address.raw())
        }
    };
    Blame {
        culprit,
        address,
        verdict: verdict(culprit, address, fault.reason),
    }
}

fn culprit(machine: &Machine, topology: &Topology, requester: SourceId) -> Culprit {
    if machine.functions.is_empty() {
        return Culprit::Unknown;
    }
    let bdf = Bdf::new(Segment(0), requester);
    if topology.get(bdf).is_some() {
        return Culprit::Function(bdf);
    }
    let uses = |f: &&iommu_groups::Function| {
        f.bdf.segment == bdf.segment
            && (f.bdf.bus() == bdf.bus() || f.is_bridge() || topology.parent(f.bdf).is_some())
            && topology.aliases(f.bdf).iter().any(|alias| alias.source == requester)
    };
    if let Some(f) = topology.functions().iter().find(uses) {
        return Culprit::Alias(f.bdf);
    }
    let same_slot = |f: &&iommu_groups::Function| {
        f.bdf.segment == bdf.segment && f.bdf.bus() == bdf.bus() && f.bdf.devfn().device() == bdf.devfn().device()
    };
    if let Some(f) = topology.functions().iter().find(same_slot) {
        return Culprit::SameSlot(f.bdf);
    }
    let leads = |f: &&iommu_groups::Function| {
        f.bdf.segment == bdf.segment && f.buses.is_some_and(|buses| buses.secondary == bdf.bus())
    };
    topology
        .functions()
        .iter()
        .find(leads)
        .map_or(Culprit::Nobody, |f| Culprit::BridgeAbove(f.bdf))
}

/// The function, or what would be at the requester ID: logs name devices that are not listed.
fn suspect(culprit: Culprit, requester: SourceId) -> Bdf {
    culprit.function().unwrap_or(Bdf::new(Segment(0), requester))
}

fn address_kind(machine: &Machine, topology: &Topology, suspect: Bdf, address: u64) -> AddressKind {
    let at = HostPhys::new(address);
    if let Some(table) = machine.dmar.known().and_then(|bytes| Dmar::inspect(bytes).ok()) {
        let mut other = None;
        for rmrr in table.rmrrs() {
            let Some(region) = rmrr.region().filter(|region| region.contains(at)) else {
                continue;
            };
            let own = rmrr.applies_to(suspect, &Buses(topology)).is_yes();
            if own {
                return AddressKind::OwnReserved(region);
            }
            other = Some(region);
        }
        if let Some(region) = other {
            return AddressKind::OtherReserved(region);
        }
    }
    // The log tells for which devices regions are mapped, and which regions there are.
    let mut other = None;
    for (_, event) in machine.boot_events() {
        match event {
            BootEvent::IdentityMap { device, range } if range.contains(at) => {
                if suspect.to_string() == *device {
                    return AddressKind::OwnReserved(*range);
                }
                other = Some(*range);
            }
            BootEvent::Rmrr(range) if range.contains(at) => other = other.or(Some(*range)),
            _ => {}
        }
    }
    if let Some(range) = other {
        return AddressKind::OtherReserved(range);
    }
    if (INTERRUPT_RANGE_FIRST..=INTERRUPT_RANGE_LAST).contains(&address) {
        return AddressKind::InterruptRange;
    }
    if address < NEAR_ZERO {
        return AddressKind::NearZero;
    }
    let widest = machine
        .units
        .known()
        .into_iter()
        .flatten()
        .filter_map(|unit| unit.cap.known())
        .map(|cap| u32::from(cap.max_guest_address_width()))
        .max();
    if widest.is_some_and(|bits| address.checked_shr(bits).unwrap_or(0) != 0) {
        return AddressKind::BeyondWidth;
    }
    if (BELOW_FOUR_GIB.0..=BELOW_FOUR_GIB.1).contains(&address) {
        return AddressKind::BelowFourGiB;
    }
    // Behind the window just below 4 GiB, where addresses of the kernel's choice and the firmware's flash coincide.
    let map = machine.platform.memory.known().into_iter().flatten();
    let kept = map
        .filter(|region| region.kind == MemoryKind::Reserved)
        .find(|region| region.range.contains(at));
    kept.map_or(AddressKind::Ordinary, |region| {
        AddressKind::FirmwareMemory(region.range)
    })
}

/// Reasons that say: the requester has no entry at all.
const NO_ENTRY: [FaultReason; 6] = [
    FaultReason::ROOT_NOT_PRESENT,
    FaultReason::CONTEXT_NOT_PRESENT,
    FaultReason::SCALABLE_ROOT_NOT_PRESENT,
    FaultReason::SCALABLE_CONTEXT_NOT_PRESENT,
    FaultReason::PASID_DIRECTORY_NOT_PRESENT,
    FaultReason::PASID_ENTRY_NOT_PRESENT,
];

fn verdict(culprit: Culprit, address: AddressKind, reason: Option<FaultReason>) -> Verdict {
    let no_entry = reason.is_some_and(|reason| NO_ENTRY.contains(&reason));
    match (culprit, address) {
        (_, AddressKind::Interrupt | AddressKind::InterruptRange) => Verdict::Interrupts,
        (_, AddressKind::OwnReserved(_) | AddressKind::OtherReserved(_)) => Verdict::Firmware,
        (Culprit::Alias(_) | Culprit::SameSlot(_), _) => Verdict::Alias,
        (_, AddressKind::NearZero | AddressKind::BeyondWidth) => Verdict::Driver,
        (_, AddressKind::FirmwareMemory(_)) => Verdict::Firmware,
        _ if no_entry => Verdict::Unclear,
        (_, AddressKind::BelowFourGiB) => Verdict::UseAfterUnmap,
        _ => Verdict::Unclear,
    }
}

impl fmt::Display for AddressKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |f: &mut fmt::Formatter<'_>, range: &AddrRange<HostPhys>| write!(f, "{range}");
        match self {
            Self::OwnReserved(region) => {
                f.write_str("in the reserved region ")?;
                range(f, region)?;
                f.write_str(", which the firmware names this device for: it should be mapped, and is not")
            }
            Self::OtherReserved(region) => {
                f.write_str("in the reserved region ")?;
                range(f, region)?;
                f.write_str(", which the firmware does not name this device for, as far as is known")
            }
            Self::FirmwareMemory(region) => {
                f.write_str("in memory that the firmware keeps, ")?;
                range(f, region)?;
                f.write_str(", and names no device for: traffic of firmware or of a management engine that it does not declare")
            }
            Self::InterruptRange => f.write_str("in the range of interrupts: an interrupt that is sent as plain memory access"),
            Self::NearZero => f.write_str("close to 0: most likely a pointer that was never set"),
            Self::BelowFourGiB => f.write_str(
                "just below 4 GiB, where the kernel's DMA addresses come from: most likely one that was unmapped too early, or \
                 belongs to another requester ID",
            ),
            Self::BeyondWidth => f.write_str("beyond the address width of every unit"),
            Self::Ordinary => f.write_str("nothing special"),
            Self::Interrupt => f.write_str("none: the request was an interrupt"),
        }
    }
}

impl Blame {
    /// One thing to do next.
    #[must_use]
    pub fn next_step(&self, machine: &Machine) -> String {
        let storage = self
            .culprit
            .function()
            .and_then(|bdf| machine.functions.get(&bdf))
            .is_some_and(|f| {
                f.config
                    .read32(pci::header::REVISION)
                    .is_some_and(|class| class >> 24 == 0x01)
            });
        match self.verdict {
            Verdict::Firmware => "update the firmware or the management controller's; until then, on servers, look for a setup option \
                                  about shared memory of that slot. The table's own words: `iommu dmar show`"
                .to_owned(),
            Verdict::Alias => match self.culprit {
                Culprit::Alias(_) => "the kernel should know this alias: update it".to_owned(),
                _ => "the device seems to send requests under an ID that is not its own: look for a DMA alias quirk of this model in a \
                      newer kernel, or report it with `lspci -nnvvv`"
                    .to_owned(),
            },
            Verdict::Interrupts => "check that interrupt remapping is on (`iommu doctor`) and that the device's driver uses MSI through \
                                    the kernel"
                .to_owned(),
            Verdict::UseAfterUnmap | Verdict::Driver => format!(
                "update the driver{}; to see who maps what, boot with CONFIG_DMA_API_DEBUG or `iommu.strict=1`",
                if storage { " or the device's firmware" } else { "" }
            ),
            Verdict::Unclear => match self.culprit {
                Culprit::Nobody => "no function is known at this requester ID: list all functions (`lspci -nn`) of the machine that \
                                    logged this"
                    .to_owned(),
                Culprit::Unknown => "give the machine with --root (a snapshot or `lspci -nnvvv` text) to see which device this is".to_owned(),
                _ => "check that the device is bound to a driver and was not left running by firmware or an earlier kernel".to_owned(),
            },
        }
    }

    /// The verdict in a few words.
    #[must_use]
    pub const fn verdict_text(&self) -> &'static str {
        match self.verdict {
            Verdict::Firmware => "the firmware",
            Verdict::Driver => "the driver",
            Verdict::Alias => "the device uses a requester ID besides its own",
            Verdict::UseAfterUnmap => "a mapping was used after it was removed",
            Verdict::Interrupts => "interrupts are not set up as the unit wants them",
            Verdict::Unclear => "it cannot be told from this alone",
        }
    }
}

/// The driver and the kernel's group of a function, for display.
#[must_use]
pub fn driver_and_group(machine: &Machine, bdf: Bdf) -> (Option<&str>, Option<u32>) {
    let Some(f) = machine.functions.get(&bdf) else {
        return (None, None);
    };
    let group = match &f.group {
        Knowledge::Known(group) => Some(*group),
        _ => None,
    };
    (f.driver.known().map(String::as_str), group)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log;

    fn ask(text: &str) -> Vec<Blame> {
        let machine = Machine::from_listing(text.as_bytes());
        let topology = machine.topology();
        let log = log::read(text.as_bytes());
        log.faults()
            .map(|(_, fault)| blame(&machine, &topology, fault))
            .collect()
    }

    fn bdf(text: &str) -> Bdf {
        text.parse().expect("valid")
    }

    #[test]
    fn a_ghost_function_is_found_by_quirk_or_guessed_by_slot() {
        let marvell = "00:1c.0 0604: 8086:a110\n\tStatus: Cap+\n\tBus: primary=00, secondary=03, subordinate=03, sec\n\
            \tCapabilities: [40] Express (v2) Root Port\n\
            03:00.0 0106: 1b4b:9125\n\tStatus: Cap+\n\tCapabilities: [40] Express (v2) Legacy Endpoint\n\n\
            DMAR: [DMA Write NO_PASID] Request device [03:00.1] fault addr 0xfffc0000 [fault reason 0x02] Present\n\
            DMAR: [DMA Write NO_PASID] Request device [03:00.0] fault addr 0x0 [fault reason 0x05] Write\n";
        let found = ask(marvell);
        assert_eq!(found[0].culprit, Culprit::Alias(bdf("03:00.0")));
        assert_eq!(
            (found[0].address, found[0].verdict),
            (AddressKind::BelowFourGiB, Verdict::Alias)
        );
        assert_eq!(found[1].culprit, Culprit::Function(bdf("03:00.0")));
        assert_eq!(
            (found[1].address, found[1].verdict),
            (AddressKind::NearZero, Verdict::Driver)
        );
        let heci = "00:16.0 0780: 8086:9cba\n\n\
            DMAR: [DMA Read] Request device [00:16.7] PASID ffffffff fault addr 9cdff000 [fault reason 02] x\n\
            DMAR: [DMA Read] Request device [09:16.7] PASID ffffffff fault addr 9cdff000 [fault reason 02] x\n";
        let found = ask(heci);
        assert_eq!(found[0].culprit, Culprit::SameSlot(bdf("00:16.0")));
        assert!(found[0].culprit.is_guess());
        assert_eq!(found[1].culprit, Culprit::Nobody);
        assert_eq!(
            ask("DMAR: [DMA Read] Request device [00:16.7] fault addr 9cdff000 [fault reason 02] x\n")[0].culprit,
            Culprit::Unknown
        );
    }

    #[test]
    fn memory_that_the_firmware_keeps_is_told_from_addresses_of_the_kernel() {
        let map = "BIOS-e820: [mem 0x0000000000000000-0x000000000009ffff] usable\n\
            BIOS-e820: [mem 0x000000009cdff000-0x000000009cffffff] reserved\n\
            BIOS-e820: [mem 0x00000000ff000000-0x00000000ffffffff] reserved\n";
        let fault = |requester: &str, address: &str| {
            format!(
                "DMAR: [DMA Read NO_PASID] Request device [{requester}] fault addr {address} [fault reason 0x06] x\n"
            )
        };
        let text = format!(
            "00:16.0 0780: 8086:9cba\n\n{map}{}{}{}",
            fault("00:16.0", "0x9cdff000"),
            fault("00:16.7", "0x9cdff000"),
            fault("00:16.0", "0xffffd000"),
        );
        let found = ask(&text);
        assert!(matches!(found[0].address, AddressKind::FirmwareMemory(_)));
        assert_eq!(found[0].verdict, Verdict::Firmware);
        assert_eq!(found[1].verdict, Verdict::Alias, "who asks says more than where");
        assert_eq!(found[2].address, AddressKind::BelowFourGiB);
    }

    #[test]
    fn reserved_regions_come_from_the_log_where_the_table_is_not_known() {
        let text = "00:1a.0 0c03: 8086:1d2d\n\nDMAR: RMRR base: 0x000000000e8000 end: 0x000000000e8fff\n\
            DMAR: RMRR base: 0x000000bdf6f000 end: 0x000000bdf7efff\n\
            ehci 0000:00:1a.0: DMAR: Setting identity map [0xe8000 - 0xe8fff]\n\
            DMAR: [DMA Read] Request device [00:1a.0] PASID ffffffff fault addr e8000 [fault reason 06] x\n\
            DMAR: [DMA Read] Request device [00:1a.0] PASID ffffffff fault addr bdf6f000 [fault reason 06] x\n\
            DMAR: [INTR-REMAP] Request device [00:1a.0] fault index 0x8800 [fault reason 0x25] x\n";
        let found = ask(text);
        assert!(matches!(found[0].address, AddressKind::OwnReserved(_)));
        assert!(matches!(found[1].address, AddressKind::OtherReserved(_)));
        assert_eq!(found[1].verdict, Verdict::Firmware);
        assert_eq!(found[2].verdict, Verdict::Interrupts);
    }
}
