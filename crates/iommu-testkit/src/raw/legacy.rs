//! Root, context and second-stage entries of legacy mode.

/// Codes of the context entry's TT field (VT-d §9.3, legacy context entry, bits 3:2).
pub mod translation_type {
    /// Second-stage translation of untranslated requests; translation and translated requests blocked.
    pub const UNTRANSLATED: u64 = 0;
    /// Second-stage translation of untranslated and translation requests; translated requests pass.
    pub const DEVICE_TLB: u64 = 1;
    /// Untranslated requests pass through; others blocked.
    pub const PASS_THROUGH: u64 = 2;
    /// Reserved.
    pub const RESERVED: u64 = 3;
}

/// A present legacy root entry that points to the context table at `ctp` (VT-d §9.1).
#[must_use]
pub const fn legacy_root_entry(ctp: u64) -> [u64; 2] {
    [ctp | 1, 0]
}

/// A present legacy context entry (VT-d §9.3): translation type, second-stage root, address-width code (1, 2, 3
/// for 39, 48, 57 bits) and domain-id.
#[must_use]
pub const fn legacy_context_entry(tt: u64, ssptptr: u64, aw: u64, did: u16) -> [u64; 2] {
    [ssptptr | tt << 2 | 1, (did as u64) << 8 | aw]
}

/// Table levels of address-width code `aw` (VT-d §3.6): code n has n + 2.
#[must_use]
pub const fn levels_of_aw(aw: u64) -> u32 {
    match aw {
        1 => 3,
        2 => 4,
        _ => 5,
    }
}

/// A second-stage entry (VT-d §9.8): target address and flag bits.
#[must_use]
pub const fn second_stage_entry(address: u64, flags: u64) -> u64 {
    address | flags
}
