//! Interrupt remapping entries and interrupt messages.

/// A present IRTE that remaps (VT-d §9.10): fixed, edge, physical destination.
///
/// `dst` is the raw field: the APIC ID in bits 15:8 without EIME, all 32 bits with it. `validation` holds SID,
/// SQ and SVT as they lie in the upper word's bits 19:0.
#[must_use]
pub const fn irte(vector: u8, dst: u32, validation: u64) -> [u64; 2] {
    [(dst as u64) << 32 | (vector as u64) << 16 | 1, validation]
}

/// A present IRTE that posts to the descriptor at `descriptor` (VT-d §9.11).
#[must_use]
pub const fn irte_posted(vector: u8, descriptor: u64, urgent: bool, validation: u64) -> [u64; 2] {
    let urgent = if urgent { 1 << 14 } else { 0 };
    [
        (descriptor >> 6 & 0x3ff_ffff) << 38 | (vector as u64) << 16 | 1 << 15 | urgent | 1,
        descriptor >> 32 << 32 | validation,
    ]
}

/// SVT 01, SQ 00: the whole source-id must match.
#[must_use]
pub const fn exact_source(sid: u16) -> u64 {
    1 << 18 | sid as u64
}

/// SVT 10: the bus must lie in `first..=last`.
#[must_use]
pub const fn bus_range(first: u8, last: u8) -> u64 {
    2 << 18 | (first as u64) << 8 | last as u64
}

/// Address of a remappable message (VT-d §5.1.2.2): handle, and whether the data holds a sub-handle.
#[must_use]
pub const fn remappable_address(handle: u16, sub_handle_valid: bool) -> u64 {
    let handle = handle as u64;
    let shv = if sub_handle_valid { 1 << 3 } else { 0 };
    0xfee0_0000 | (handle & 0x7fff) << 5 | 1 << 4 | shv | handle >> 15 << 2
}

/// A posted interrupt descriptor without pending interrupts (VT-d §9.12); `ndst` is the raw field.
#[must_use]
pub const fn posted_descriptor(vector: u8, ndst: u32) -> [u64; 8] {
    [0, 0, 0, 0, (ndst as u64) << 32 | (vector as u64) << 16, 0, 0, 0]
}
