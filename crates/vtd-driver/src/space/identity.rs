//! Reserved regions, identity-mapped in a space (rule D14).

use alloc::vec::Vec;

use iommu_types::omission::{Step, kept};
use iommu_types::{AddrRange, HostPhys, Iova, PAGE_SIZE, PageSize, Perms, Registers, TableFrame};

use super::Space;
use crate::domain::MapError;
use crate::error::HardwareError;
use crate::pages::Stale;
use crate::shared::{Host, Shared};

/// Most bytes of one reserved region that are identity-mapped. Firmware tables are not trusted to be sane, and
/// the tables for a region cost memory.
pub(crate) const MAX_RESERVED_BYTES: u64 = 64 << 30;

/// What is identity-mapped in a space.
#[derive(Debug, Default)]
pub(crate) struct Identity {
    /// In pages, in no order and without overlap.
    mapped: Vec<AddrRange<Iova>>,
    /// Taken out of the tables, and the unit did not confirm it: with the tables that came free.
    unconfirmed: Vec<(AddrRange<Iova>, Vec<TableFrame>)>,
}

impl Identity {
    /// The tables that no mapping is left for. The caller has the unit's confirmation that it forgot the space.
    pub(super) fn into_frames(self) -> impl Iterator<Item = TableFrame> {
        self.unconfirmed.into_iter().flat_map(|(_, frames)| frames)
    }
}

impl Space {
    /// Identity-maps a reserved region, except where another region did so before.
    pub(crate) fn map_identity<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        region: AddrRange<HostPhys>,
    ) -> Result<(), MapError> {
        let mapped = &mut self.identity.lock().mapped;
        let mut pieces = [identity(region)].to_vec();
        // At most the number of regions mapped so far, each of which cuts a piece in two at most.
        for &other in mapped.iter() {
            pieces = pieces
                .into_iter()
                .flat_map(|piece| without(piece, other))
                .flatten()
                .collect();
        }
        for piece in pieces {
            let len = piece.len().filter(|len| *len <= MAX_RESERVED_BYTES);
            let len = len.ok_or(MapError::OutsideAperture {
                range: piece,
                aperture: self.aperture,
            })?;
            let phys = HostPhys::new(piece.first().raw());
            self.map(shared, piece.first(), phys, len, Perms::READ_WRITE)?;
            mapped.push(piece);
        }
        Ok(())
    }

    /// Unmaps the identity-mapped pieces that no region in `wanted` touches. What the unit does not confirm is asked for
    /// again by the next call.
    ///
    /// # Errors
    /// The first failure; every piece was tried.
    pub(crate) fn keep_identity<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        wanted: &[AddrRange<HostPhys>],
    ) -> Result<(), HardwareError> {
        let mut identity = self.identity.lock();
        let needed = |piece: &AddrRange<Iova>| wanted.iter().any(|region| super::identity(*region).overlaps(*piece));
        let (keep, gone): (Vec<_>, Vec<_>) = identity.mapped.drain(..).partition(needed);
        identity.mapped = keep;
        for range in gone {
            // Only the driver itself maps here; a piece that somebody unmapped by address is gone already.
            if let Ok(unmapped) = self.unmap(shared, range) {
                identity.unconfirmed.push((range, unmapped.into_frames()));
            }
        }
        let mut result = Ok(());
        for (range, frames) in core::mem::take(&mut identity.unconfirmed) {
            let leaf_only = false;
            match self.invalidate(shared, &[Stale { range, leaf_only }]) {
                Ok(()) => frames.into_iter().for_each(|frame| shared.host.free(frame)),
                Err(cause) => {
                    identity.unconfirmed.push((range, frames));
                    result = result.and(Err(cause));
                }
            }
        }
        result
    }
}

/// `range` as addresses that a device issues, rounded outwards to pages.
pub(crate) fn identity(range: AddrRange<HostPhys>) -> AddrRange<Iova> {
    let pages = range.to_pages();
    let first = Iova::new(pages.first().raw());
    let last = if kept(Step::ReservedOutwards) {
        pages.last().raw()
    } else {
        (range.last().raw() & !(PAGE_SIZE - 1)).saturating_sub(1)
    };
    AddrRange::new(first, Iova::new(last)).unwrap_or(AddrRange::page_around(first, PageSize::Size4K))
}

/// The parts of `piece` below and above `other`.
fn without(piece: AddrRange<Iova>, other: AddrRange<Iova>) -> [Option<AddrRange<Iova>>; 2] {
    if !piece.overlaps(other) {
        return [Some(piece), None];
    }
    let below = other
        .first()
        .checked_sub(PAGE_SIZE)
        .map(|before| before.raw() | (PAGE_SIZE - 1));
    let below = below.and_then(|last| AddrRange::new(piece.first(), Iova::new(last)));
    let above = other
        .last()
        .checked_add(1)
        .and_then(|first| AddrRange::new(first, piece.last()));
    [below, above]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> AddrRange<Iova> {
        AddrRange::new(Iova::new(first), Iova::new(last)).expect("ordered")
    }

    #[test]
    fn cutting_a_region_leaves_what_is_below_and_above() {
        let piece = range(0x1000, 0x8fff);
        assert_eq!(without(piece, range(0x9000, 0x9fff)), [Some(piece), None]);
        assert_eq!(
            without(piece, range(0x3000, 0x4fff)),
            [Some(range(0x1000, 0x2fff)), Some(range(0x5000, 0x8fff))]
        );
        assert_eq!(without(piece, range(0, 0x1fff)), [None, Some(range(0x2000, 0x8fff))]);
        assert_eq!(without(piece, range(0, 0xffff)), [None, None]);
    }
}
