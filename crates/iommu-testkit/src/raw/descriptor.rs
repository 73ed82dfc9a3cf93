//! Invalidation descriptors (VT-d §6.5.2), 128 bits; [`wide`] makes 256 of them.

/// The same descriptor for a queue of 256-bit descriptors.
#[must_use]
pub const fn wide(descriptor: [u64; 2]) -> [u64; 4] {
    [descriptor[0], descriptor[1], 0, 0]
}

/// Context-cache, global.
pub const CONTEXT_GLOBAL: [u64; 2] = [1 | 1 << 4, 0];
/// IOTLB, global, draining reads and writes.
pub const IOTLB_GLOBAL: [u64; 2] = [2 | 1 << 4 | 3 << 6, 0];
/// Interrupt entry cache, global.
pub const INTERRUPT_GLOBAL: [u64; 2] = [4, 0];
/// PASID cache, global.
pub const PASID_GLOBAL: [u64; 2] = [7 | 3 << 4, 0];

/// Context-cache, entries of domain `did`.
#[must_use]
pub const fn context_domain(did: u16) -> [u64; 2] {
    [1 | 2 << 4 | (did as u64) << 16, 0]
}

/// Context-cache, entries of `sid` in domain `did`; `fm` masks function bits.
#[must_use]
pub const fn context_device(did: u16, sid: u16, fm: u64) -> [u64; 2] {
    [1 | 3 << 4 | (did as u64) << 16 | (sid as u64) << 32 | fm << 48, 0]
}

/// IOTLB, all of domain `did`, draining.
#[must_use]
pub const fn iotlb_domain(did: u16) -> [u64; 2] {
    [2 | 2 << 4 | 3 << 6 | (did as u64) << 16, 0]
}

/// IOTLB, `2^am` pages at `address` in domain `did`, draining; `leaf_only` sets the hint IH.
#[must_use]
pub const fn iotlb_pages(did: u16, address: u64, am: u64, leaf_only: bool) -> [u64; 2] {
    let hint = if leaf_only { 1 << 6 } else { 0 };
    [2 | 3 << 4 | 3 << 6 | (did as u64) << 16, address | hint | am]
}

/// Device-TLB of `sid`, the page at `address`.
#[must_use]
pub const fn device_tlb_page(sid: u16, address: u64) -> [u64; 2] {
    [3 | (sid as u64) << 32, address]
}

/// Device-TLB of `sid`, everything.
#[must_use]
pub const fn device_tlb_all(sid: u16) -> [u64; 2] {
    [3 | (sid as u64) << 32, 0x7fff_ffff_ffff_f001]
}

/// Interrupt entry cache, `2^im` entries from `index`.
#[must_use]
pub const fn interrupt_entries(index: u16, im: u64) -> [u64; 2] {
    [4 | 1 << 4 | im << 27 | (index as u64) << 32, 0]
}

/// Wait that writes `data` to `address` when everything before is done.
#[must_use]
pub const fn wait_status(address: u64, data: u32) -> [u64; 2] {
    [5 | 1 << 5 | (data as u64) << 32, address]
}

/// Wait that raises the completion interrupt.
pub const WAIT_INTERRUPT: [u64; 2] = [5 | 1 << 4, 0];
/// Fence without anything else.
pub const WAIT_FENCE: [u64; 2] = [5 | 1 << 6, 0];

/// PASID-based IOTLB, all of `pasid` in domain `did`.
#[must_use]
pub const fn pasid_iotlb_all(did: u16, pasid: u32) -> [u64; 2] {
    [6 | 2 << 4 | (did as u64) << 16 | (pasid as u64) << 32, 0]
}

/// PASID-based IOTLB, `2^am` pages at `address` of `pasid` in domain `did`.
#[must_use]
pub const fn pasid_iotlb_pages(did: u16, pasid: u32, address: u64, am: u64) -> [u64; 2] {
    [6 | 3 << 4 | (did as u64) << 16 | (pasid as u64) << 32, address | am]
}

/// PASID cache, all of domain `did`.
#[must_use]
pub const fn pasid_cache_domain(did: u16) -> [u64; 2] {
    [7 | (did as u64) << 16, 0]
}

/// PASID cache, `pasid` of domain `did`.
#[must_use]
pub const fn pasid_cache(did: u16, pasid: u32) -> [u64; 2] {
    [7 | 1 << 4 | (did as u64) << 16 | (pasid as u64) << 32, 0]
}

/// PASID-based device-TLB of `sid`, everything of `pasid`.
#[must_use]
pub const fn pasid_device_tlb_all(sid: u16, pasid: u32) -> [u64; 2] {
    [8 | (sid as u64) << 16 | (pasid as u64) << 32, 0x7fff_ffff_ffff_f800]
}
