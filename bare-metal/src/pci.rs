//! PCI configuration space through the two ports of mechanism 1, bus 0 only.

use iommu_types::SourceId;
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
/// Offset of the first base address register.
const BAR0: u8 = 0x10;

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

    /// The first function on bus 0 with this vendor (low half) and device (high half).
    pub(crate) fn find(identity: u32) -> Option<Self> {
        (0..=0xffu16)
            .map(|devfn| Self(SourceId::from_raw(devfn)))
            .find(|function| function.read(0) == identity)
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

    /// Puts the first BAR at `base`, and turns memory decoding and bus mastering on.
    pub(crate) fn enable(self, base: u32) {
        let command = self.read(COMMAND) & 0xffff;
        self.write(COMMAND, command & !MEMORY_AND_MASTER);
        self.write(BAR0, base);
        self.write(COMMAND, command | MEMORY_AND_MASTER);
    }
}
