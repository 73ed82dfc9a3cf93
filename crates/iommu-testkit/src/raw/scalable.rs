//! Root, context and PASID structures of scalable mode, and first-stage entries.

/// Codes of the PASID entry's PGTT field (VT-d §9.6, bits 8:6).
pub mod pasid_translation {
    /// First stage only.
    pub const FIRST_STAGE: u64 = 1;
    /// Second stage only.
    pub const SECOND_STAGE: u64 = 2;
    /// First stage over second stage.
    pub const NESTED: u64 = 3;
    /// Pass-through.
    pub const PASS_THROUGH: u64 = 4;
}

/// Bit 0, first stage: present.
pub const FS_PRESENT: u64 = 1;
/// Bit 1, first stage: writable.
pub const FS_WRITE: u64 = 2;
/// Bit 2, first stage: reachable by requests with user privilege.
pub const FS_USER: u64 = 4;
/// Bit 5, first stage: accessed.
pub const FS_ACCESSED: u64 = 1 << 5;
/// Bit 6, first stage: dirty.
pub const FS_DIRTY: u64 = 1 << 6;
/// Bit 8, second stage: accessed (with SSADE).
pub const SS_ACCESSED: u64 = 1 << 8;
/// Bit 9, second stage: dirty (with SSADE).
pub const SS_DIRTY: u64 = 1 << 9;

/// Half of a scalable root entry (VT-d §9.2): present, pointing to the context table at `ctp`.
#[must_use]
pub const fn scalable_root_half(ctp: u64) -> u64 {
    ctp | 1
}

/// A present scalable context entry (VT-d §9.4): PASID directory, its size code PDTS, RID_PASID, and the enable
/// bits as they lie in the entry (DTE bit 2, PASIDE 3, PRE 4, HPTE 5, EPTR 6).
#[must_use]
pub const fn scalable_context_entry(directory: u64, pdts: u64, rid_pasid: u64, enables: u64) -> [u64; 4] {
    [directory | pdts << 9 | enables | 1, rid_pasid, 0, 0]
}

/// A present PASID directory entry (VT-d §9.5).
#[must_use]
pub const fn pasid_directory_entry(table: u64) -> u64 {
    table | 1
}

/// A present PASID entry for second-stage translation (VT-d §9.6).
#[must_use]
pub const fn pasid_second_stage(ssptptr: u64, aw: u64, did: u16) -> [u64; 8] {
    [
        ssptptr | pasid_translation::SECOND_STAGE << 6 | aw << 2 | 1,
        did as u64,
        0,
        0,
        0,
        0,
        0,
        0,
    ]
}

/// A present PASID entry for first-stage translation with 4 or 5 levels (VT-d §9.6).
#[must_use]
pub const fn pasid_first_stage(fsptptr: u64, levels: u32, did: u16) -> [u64; 8] {
    let fspm = if levels == 5 { 1 } else { 0 };
    [
        pasid_translation::FIRST_STAGE << 6 | 1,
        did as u64,
        fsptptr | fspm << 2,
        0,
        0,
        0,
        0,
        0,
    ]
}

/// A present PASID entry for nested translation; `fsptptr` is a guest address (VT-d §9.6).
#[must_use]
pub const fn pasid_nested(fsptptr: u64, levels: u32, ssptptr: u64, aw: u64, did: u16) -> [u64; 8] {
    let mut entry = pasid_first_stage(fsptptr, levels, did);
    entry[0] = ssptptr | pasid_translation::NESTED << 6 | aw << 2 | 1;
    entry
}

/// A present PASID entry for pass-through (VT-d §9.6).
#[must_use]
pub const fn pasid_pass_through(did: u16) -> [u64; 8] {
    [pasid_translation::PASS_THROUGH << 6 | 1, did as u64, 0, 0, 0, 0, 0, 0]
}
