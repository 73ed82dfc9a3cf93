//! The rules of type 1, version 2, about ranges: enforced by the software backend, and how the Linux backend explains
//! what the kernel refused.

use iommu_types::{AddrRange, Iova, Perms};

use crate::error::VfioError;

/// Size and alignment, in VFIO's order; `other` are further values that must be aligned.
pub(crate) fn check_range(
    iova: Iova,
    size: u64,
    granule: u64,
    other: &[(&'static str, u64)],
) -> Result<AddrRange<Iova>, VfioError> {
    if size == 0 {
        return Err(VfioError::Empty { iova });
    }
    let own = [("size", size), ("iova", iova.raw())];
    for (what, value) in own.iter().chain(other) {
        if !value.is_multiple_of(granule) {
            return Err(VfioError::Misaligned {
                what,
                value: *value,
                granule,
            });
        }
    }
    AddrRange::from_base_len(iova, size).ok_or(VfioError::Overflow { iova, size })
}

/// The checks of MAP_DMA that need no state, in VFIO's order.
pub(crate) fn check_map(
    iova: Iova,
    size: u64,
    granule: u64,
    other: &[(&'static str, u64)],
    perms: Perms,
) -> Result<AddrRange<Iova>, VfioError> {
    if perms.is_none() {
        return Err(VfioError::NoRights { iova });
    }
    check_range(iova, size, granule, other)
}

/// Version 2: no bisecting, neither at the start nor at the end. `at` finds the mapping that holds an address.
pub(crate) fn check_whole(
    range: AddrRange<Iova>,
    at: impl Fn(Iova) -> Option<AddrRange<Iova>>,
) -> Result<(), VfioError> {
    for edge in [range.first(), range.last()] {
        if let Some(mapping) = at(edge)
            && !range.covers(mapping)
        {
            return Err(VfioError::Bisects { range, mapping });
        }
    }
    Ok(())
}

/// A request about dirty pages: tracking on, pages of the smallest size, whole mappings.
pub(crate) fn check_dirty(
    iova: Iova,
    size: u64,
    page_size: u64,
    granule: u64,
    tracking: bool,
) -> Result<AddrRange<Iova>, VfioError> {
    if !tracking {
        return Err(VfioError::NotTracking);
    }
    if page_size != granule {
        return Err(VfioError::BitmapPageSize { page_size, granule });
    }
    check_range(iova, size, granule, &[])
}
