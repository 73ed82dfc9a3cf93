//! Text over the first serial port, and the exit device of the emulator.

use core::fmt::{self, Write};

use crate::hardware::{halt, in8, out8, out32};

/// I/O ports of COM1.
const COM1: u16 = 0x3f8;
/// Offset of the line status register, in which this bit says that a byte can be written.
const LINE_STATUS: (u16, u8) = (5, 1 << 5);
/// Port of `isa-debug-exit`; QEMU ends with status `value * 2 + 1`.
const EXIT: u16 = 0xf4;
/// Most turns of waiting for the serial port.
const PATIENCE: u32 = 1_000_000;

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let (register, ready) = LINE_STATUS;
            for _ in 0..PATIENCE {
                if in8(COM1 + register) & ready != 0 {
                    break;
                }
            }
            out8(COM1, byte);
        }
        Ok(())
    }
}

/// Prints one line.
pub(crate) fn line(text: fmt::Arguments<'_>) {
    // Writing to the port cannot fail.
    let _ = writeln!(Console, "{text}");
}

/// Ends the emulator.
pub(crate) fn exit(success: bool) -> ! {
    out32(EXIT, if success { 0x10 } else { 0x11 });
    halt()
}
