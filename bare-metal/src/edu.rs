//! QEMU's `edu` device: DMA in both directions and message-signalled interrupts, on command.

use iommu_types::{Clock, Iova, PAGE_SIZE, Registers, SourceId};
use vtd_driver::EventMessage;

use crate::hardware::Window;
use crate::memory::BOARD;
use crate::pci::Function;

/// Vendor 1234h, device 11e8h.
const IDENTITY: u32 = 0x11e8_1234;
/// Where the registers of the one on bus 0 are put: free in QEMU's q35 machine. A device behind a root port stays
/// where firmware put it, in the port's window.
const BASE: u32 = 0xfe00_0000;
pub(crate) const WINDOW: u32 = 1 << 20;

// Registers.
const IDENTIFICATION: u32 = 0x00;
const RAISE: u32 = 0x60;
const ACKNOWLEDGE: u32 = 0x64;
pub(crate) const SOURCE: u32 = 0x80;
pub(crate) const DESTINATION: u32 = 0x88;
pub(crate) const COUNT: u32 = 0x90;
pub(crate) const COMMAND: u32 = 0x98;
/// The device's side of a DMA: its buffer of one page.
pub(crate) const BUFFER: u64 = 0x4_0000;
const RUN: u64 = 1;
const TO_MEMORY: u64 = 2;

/// Its MSI capability (64-bit address): control, address, data.
const MSI: u8 = 0x40;
const MSI_ENABLE: u32 = 1 << 16;

/// Bytes of a transfer that touches nearly a whole page. QEMU 7.2 takes the last byte of the buffer for out of bounds.
pub(crate) const TRANSFER: u64 = PAGE_SIZE - 8;

/// How long a DMA may take. The device starts it after 100 ms.
const PATIENCE_NS: u64 = 2_000_000_000;

/// The device.
pub(crate) struct Edu {
    function: Function,
    registers: Window,
}

impl Edu {
    /// Finds the devices: one on bus 0 and one behind a root port.
    pub(crate) fn find() -> Option<[Self; 2]> {
        let mut functions = Function::find(IDENTITY);
        let [near, far] = [functions.next()?, functions.next()?];
        near.place(BASE);
        Some([Self::new(near)?, Self::new(far)?])
    }

    fn new(function: Function) -> Option<Self> {
        let registers = Window::new(function.enable().into(), WINDOW)?;
        // The low byte is a fixed marker, the high ones are a version.
        (registers.read32(IDENTIFICATION) & 0xff == 0xed).then_some(Self { function, registers })
    }

    /// Its requester ID.
    pub(crate) fn source(&self) -> SourceId {
        self.function.0
    }

    /// Whether the transfer ended in time. It says nothing about whether it was let through.
    fn transfer(&self, source: u64, destination: u64, bytes: u64, command: u64) -> bool {
        self.registers.write64(SOURCE, source);
        self.registers.write64(DESTINATION, destination);
        self.registers.write64(COUNT, bytes);
        self.registers.write64(COMMAND, command);
        let start = BOARD.now_ns();
        while self.registers.read64(COMMAND) & RUN != 0 {
            if BOARD.now_ns() - start > PATIENCE_NS {
                return false;
            }
            BOARD.relax();
        }
        true
    }

    /// The device reads memory into its buffer.
    pub(crate) fn read_memory(&self, from: Iova, bytes: u64) -> bool {
        self.transfer(from.raw(), BUFFER, bytes, RUN)
    }

    /// The device writes its buffer to memory.
    pub(crate) fn write_memory(&self, to: Iova, bytes: u64) -> bool {
        self.transfer(BUFFER, to.raw(), bytes, RUN | TO_MEMORY)
    }

    /// Sends a message-signalled interrupt.
    pub(crate) fn interrupt(&self, message: EventMessage) {
        let [a, b, c, d, e, f, g, h] = message.address.to_le_bytes();
        let control = self.function.read(MSI);
        self.function.write(MSI, control & !MSI_ENABLE);
        self.function.write(MSI + 4, u32::from_le_bytes([a, b, c, d]));
        self.function.write(MSI + 8, u32::from_le_bytes([e, f, g, h]));
        self.function.write(MSI + 12, message.data);
        self.function.write(MSI, control | MSI_ENABLE);
        self.registers.write32(RAISE, 1);
        self.registers.write32(ACKNOWLEDGE, 1);
    }
}
