//! The registers in BAR 0 of the DMA engine.
//!
//! Offsets below 0xa0 and their meaning are those of QEMU's `edu` (its documentation: `docs/specs/edu.rst`);
//! those from 0xa0 to 0xbf are an extension. Below 0x80 accesses are 4 bytes wide, from there 4 or 8. An access
//! of 4 bytes to an 8-byte register reads its low half and writes the whole of it, with a high half of zero.

/// PCI vendor ID of `edu`.
pub const VENDOR: u16 = 0x1234;
/// PCI device ID of `edu`.
pub const DEVICE: u16 = 0x11e8;

/// Identification, read-only: version in the high bytes, `ed` in the low one.
pub const ID: u64 = 0x00;
/// What [`ID`] reads.
pub const ID_VALUE: u32 = 0x0100_00ed;
/// Liveness check: reads the inverse of what was written.
pub const LIVENESS: u64 = 0x04;
/// Writing n computes n! modulo 2^32; reads the result.
pub const FACTORIAL: u64 = 0x08;
/// Status: [`FACTORIAL_INTERRUPT`].
pub const STATUS: u64 = 0x20;
/// Interrupt causes, read-only.
pub const INTERRUPT_STATUS: u64 = 0x24;
/// Raises the causes written; write-only.
pub const INTERRUPT_RAISE: u64 = 0x60;
/// Clears the causes written; write-only.
pub const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
/// DMA source address.
pub const SOURCE: u64 = 0x80;
/// DMA destination address.
pub const DESTINATION: u64 = 0x88;
/// DMA count in bytes.
pub const COUNT: u64 = 0x90;
/// DMA command.
pub const COMMAND: u64 = 0x98;
/// Address of the internal buffer: one of source and destination lies in it, the other on the bus.
/// The extension: the buffer is also readable and writable here, in BAR 0.
pub const BUFFER: u64 = 0x4_0000;

/// [`STATUS`]: raise an interrupt when a factorial is done.
pub const FACTORIAL_INTERRUPT: u32 = 0x80;
/// [`COMMAND`]: start; reads as zero once the DMA is done.
pub const COMMAND_START: u64 = 1 << 0;
/// [`COMMAND`]: from the buffer to the bus, instead of from the bus to the buffer.
pub const COMMAND_TO_BUS: u64 = 1 << 1;
/// [`COMMAND`]: raise [`INTERRUPT_DMA`] when done.
pub const COMMAND_INTERRUPT: u64 = 1 << 2;
/// [`COMMAND`]: the bits that mean something.
pub const COMMAND_BITS: u64 = COMMAND_START | COMMAND_TO_BUS | COMMAND_INTERRUPT;
/// Interrupt cause: a factorial is done.
pub const INTERRUPT_FACTORIAL: u32 = 0x1;
/// Interrupt cause: a DMA is done.
pub const INTERRUPT_DMA: u32 = 0x100;

/// Extension: what became of the last DMA. The flags are cleared by ones and by the next command.
pub const DMA_STATUS: u64 = 0xa0;
/// Extension, read-only: the first address that the last DMA did not reach; zero without an error.
pub const ERROR_ADDRESS: u64 = 0xa8;
/// Extension, read-only: length of the internal buffer in bytes.
pub const BUFFER_LEN: u64 = 0xb0;
/// Extension, read-only: bytes moved since the last reset.
pub const BYTES_MOVED: u64 = 0xb8;

/// [`DMA_STATUS`]: the DMA moved all its bytes.
pub const STATUS_DONE: u32 = 1 << 0;
/// [`DMA_STATUS`]: the DMA was stopped; [`STATUS_REASON`] and [`ERROR_ADDRESS`] say why and where.
pub const STATUS_ERROR: u32 = 1 << 1;
/// [`DMA_STATUS`]: the address had more bits than the engine drives, and the high ones were lost.
pub const STATUS_ADDRESS_CUT: u32 = 1 << 2;
/// [`DMA_STATUS`]: an interrupt message did not get through.
pub const STATUS_INTERRUPT_LOST: u32 = 1 << 3;
/// [`DMA_STATUS`]: all flags.
pub const STATUS_FLAGS: u32 = STATUS_DONE | STATUS_ERROR | STATUS_ADDRESS_CUT | STATUS_INTERRUPT_LOST;
/// [`DMA_STATUS`]: the reason, as [`crate::DmaErrorKind::code`] numbers it.
pub const STATUS_REASON: u32 = 0xff << STATUS_REASON_SHIFT;
/// [`DMA_STATUS`]: lowest bit of the reason.
pub const STATUS_REASON_SHIFT: u32 = 8;
