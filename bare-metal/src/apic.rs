//! The local APIC: which interrupts wait. Interrupts are off, so that they wait for ever.

use iommu_types::Registers;

use crate::hardware::Window;

const BASE: u64 = 0xfee0_0000;
const ID: u32 = 0x20;
const SPURIOUS: u32 = 0xf0;
const ENABLE: u32 = 1 << 8;
const REQUESTS: u32 = 0x200;

/// The local APIC of this processor.
pub(crate) struct Apic(Window);

impl Apic {
    /// Turns it on.
    pub(crate) fn enable() -> Option<Self> {
        let registers = Window::new(BASE, 0x1000)?;
        registers.write32(SPURIOUS, registers.read32(SPURIOUS) | ENABLE);
        Some(Self(registers))
    }

    /// Its ID.
    pub(crate) fn id(&self) -> u8 {
        let [.., id] = self.0.read32(ID).to_le_bytes();
        id
    }

    /// Whether an interrupt with this vector has arrived.
    pub(crate) fn requested(&self, vector: u8) -> bool {
        let register = REQUESTS + u32::from(vector / 32) * 0x10;
        self.0.read32(register) & 1 << (vector % 32) != 0
    }
}
