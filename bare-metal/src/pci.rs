//! PCI configuration space through the two ports of mechanism 1.

use acpi_dmar::{BusTopology, Seen, Upstream};
use iommu_types::{Bdf, Segment, SourceId};
use vtd_driver::FunctionId;

use crate::hardware::{in32, out32};

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;

/// Offset of the command register.
const COMMAND: u8 = 0x04;
/// Memory space and bus mastering on.
const MEMORY_AND_MASTER: u32 = 0x6;
/// Offset of revision and class code.
const CLASS: u8 = 0x08;
/// Class and subclass of PCI bridges.
const PCI_BRIDGE: u32 = 0x0604;
/// Offset of the first base address register.
const BAR0: u8 = 0x10;
/// Type bits of a base address register: a 64-bit one, whose upper half is the next register.
const BAR_IS_WIDE: u32 = 0b100;
/// Offset of the pointer to the first capability.
const CAPABILITIES: u8 = 0x34;
/// Capabilities that fit a configuration space: the end of a list that does not end.
const MOST_CAPABILITIES: usize = 48;

/// Offset of the header type, in the third byte.
const HEADER_TYPE: u8 = 0x0c;
/// Offset of a bridge's bus numbers: primary, secondary, subordinate.
const BUS_NUMBERS: u8 = 0x18;
/// What is read where there is no function.
const ABSENT: u32 = u32::MAX;

/// A function's configuration space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function(pub(crate) SourceId);

impl Function {
    /// The first function of the machine.
    pub(crate) const HOST_BRIDGE: Self = Self(SourceId::from_raw(0));

    /// What its header says it is.
    pub(crate) fn id(self) -> FunctionId {
        let [vendor_low, vendor_high, device_low, device_high] = self.read(0).to_le_bytes();
        let [.., base_class] = self.read(CLASS).to_le_bytes();
        FunctionId {
            vendor: u16::from_le_bytes([vendor_low, vendor_high]),
            device: u16::from_le_bytes([device_low, device_high]),
            base_class,
        }
    }

    /// The functions on buses 0 and 1 with this vendor (low half) and device (high half). Firmware has numbered the
    /// buses; bus 1 is the one behind the only root port.
    pub(crate) fn find(identity: u32) -> impl Iterator<Item = Self> {
        (0..=0x1ffu16)
            .map(|source| Self(SourceId::from_raw(source)))
            .filter(move |function| function.read(0) == identity)
    }

    /// The capabilities with this identifier, by their offsets.
    pub(crate) fn capabilities(self, identifier: u8) -> impl Iterator<Item = u8> {
        let next = move |at: u8| {
            let [.., next, _, _] = self.read(at).to_le_bytes();
            (next & !3 != 0).then_some(next & !3)
        };
        let [first, ..] = self.read(CAPABILITIES).to_le_bytes();
        core::iter::successors((first & !3 != 0).then_some(first & !3), move |at| next(*at))
            .take(MOST_CAPABILITIES)
            .filter(move |at| self.read(*at).to_le_bytes().starts_with(&[identifier]))
    }

    /// Where memory behind a base address register begins.
    pub(crate) fn memory(self, bar: u8) -> u64 {
        let at = BAR0.saturating_add(bar.saturating_mul(4));
        let low = self.read(at);
        let high = if low & BAR_IS_WIDE == 0 {
            0
        } else {
            self.read(at.saturating_add(4))
        };
        u64::from(high) << 32 | u64::from(low & !0xf)
    }

    fn select(self, register: u8) {
        out32(
            ADDRESS,
            1 << 31 | u32::from(self.0.raw()) << 8 | u32::from(register & !3),
        );
    }

    /// Reads the aligned register.
    pub(crate) fn read(self, register: u8) -> u32 {
        self.select(register);
        in32(DATA)
    }

    /// Writes the aligned register.
    pub(crate) fn write(self, register: u8, value: u32) {
        self.select(register);
        out32(DATA, value);
    }

    /// Puts the first BAR at `base`.
    pub(crate) fn place(self, base: u32) {
        let command = self.read(COMMAND) & 0xffff;
        self.write(COMMAND, command & !MEMORY_AND_MASTER);
        self.write(BAR0, base);
    }

    /// Turns memory decoding and bus mastering on, also of the root ports; gives the first BAR.
    pub(crate) fn enable(self) -> u32 {
        let port = |function: &Self| function.read(CLASS) >> 16 == PCI_BRIDGE;
        let ports = (0..=0xffu16).map(|devfn| Self(SourceId::from_raw(devfn))).filter(port);
        for function in ports.chain([self]) {
            let command = function.read(COMMAND) & 0xffff;
            function.write(COMMAND, command | MEMORY_AND_MASTER);
        }
        self.read(BAR0) & !0xf
    }
}

/// The buses as firmware numbered them, for resolving what the DMAR table says.
pub(crate) struct Buses;

impl BusTopology for Buses {
    fn function(&self, at: Bdf) -> Seen {
        let function = Function(at.source);
        if at.segment != Segment(0) || function.read(0) == ABSENT {
            return Seen::Absent;
        }
        let [_, _, header, _] = function.read(HEADER_TYPE).to_le_bytes();
        if header & 0x7f != 1 {
            return Seen::Endpoint;
        }
        let [_, secondary, subordinate, _] = function.read(BUS_NUMBERS).to_le_bytes();
        Seen::Bridge { secondary, subordinate }
    }

    fn parent_bridge(&self, segment: Segment, bus: u8) -> Upstream {
        if bus == 0 {
            return Upstream::Root;
        }
        (0..=0x1ffu16)
            .map(SourceId::from_raw)
            .find(|source| {
                let seen = self.function(Bdf::new(segment, *source));
                matches!(seen, Seen::Bridge { secondary, .. } if secondary == bus)
            })
            .map_or(Upstream::Unknown, Upstream::Bridge)
    }
}
