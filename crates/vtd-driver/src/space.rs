//! One second-stage address space on one unit: its tables and what they owe the unit's caches.

use alloc::vec::Vec;

use iommu_pagetable::{Config, LeafSizes, Levels, PageTable, SecondStage, UnmapRules, Unmapped};
use iommu_types::sync::{AtomicU64, Ordering};
use iommu_types::{AddrRange, DomainId, HostPhys, Iova, PAGE_SIZE, Perms, Registers};
use spin::Mutex;
use vtd_spec::Agaw;
use vtd_spec::message::{INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST};

use crate::attach::identity;
use crate::domain::{DomainError, DomainOptions, MapError, UnmapError};
use crate::error::{HardwareError, Reachable, Unconfirmed};
use crate::invalidate::Invalidation;
use crate::pages::{Plan, plan};
use crate::shared::{Host, Shared};

/// Most bytes of one reserved region that are identity-mapped. Firmware tables are not trusted to be sane, and
/// the tables for a region cost memory.
pub(crate) const MAX_RESERVED_BYTES: u64 = 64 << 30;

/// Distinguishes spaces for the life of the program.
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// Tables, identifier and limits.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) id: DomainId,
    pub(crate) serial: u64,
    pub(crate) agaw: Agaw,
    pub(crate) aperture: AddrRange<Iova>,
    pub(crate) table: PageTable<SecondStage>,
    /// Reserved regions that are identity-mapped here, in pages, in no order and without overlap.
    identity: Mutex<Vec<AddrRange<Iova>>>,
}

impl Space {
    pub(crate) fn new<R: Registers, P: Host>(
        shared: &Shared<R, P>,
        id: DomainId,
        options: DomainOptions,
    ) -> Result<Self, DomainError> {
        let capabilities = &shared.capabilities;
        let agaw = capabilities.agaw_for(options.width).ok_or(DomainError::NoTranslation)?;
        let levels = match agaw {
            Agaw::Bits39 => Levels::Three,
            Agaw::Bits48 => Levels::Four,
            Agaw::Bits57 => Levels::Five,
        };
        let sizes = LeafSizes {
            size_2m: options.superpages && capabilities.cap.second_stage_2m(),
            size_1g: options.superpages && capabilities.cap.second_stage_1g(),
        };
        let page = shared.options.page();
        let config = Config::new(levels)
            .leaf_sizes(sizes)
            .last_phys(page.last)
            .node(page.node);
        let config = if capabilities.coherent() {
            config
        } else {
            config.non_coherent()
        };
        let format = SecondStage::default();
        // SNP is reserved on units without snoop control: every access would fault.
        let format = if capabilities.ecap.sc() {
            format.force_snoop()
        } else {
            format
        };
        // VT-d §3.6: input addresses are limited by the tables' width and by the unit's MGAW.
        let bits = agaw.width().min(capabilities.cap.max_guest_address_width());
        let last = 1u64.checked_shl(u32::from(bits)).map_or(u64::MAX, |end| end - 1);
        let aperture = AddrRange::new(Iova::ZERO, Iova::new(last)).ok_or(DomainError::NoTranslation)?;
        Ok(Self {
            id,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            agaw,
            aperture,
            table: PageTable::new(format, config, &shared.host)?,
            identity: Mutex::new(Vec::new()),
        })
    }

    /// Maps, and makes the mapping usable by devices.
    pub(crate) fn map<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        iova: Iova,
        phys: HostPhys,
        len: u64,
        perms: Perms,
    ) -> Result<(), MapError> {
        if let Some(range) = AddrRange::from_base_len(iova, len) {
            if !self.aperture.covers(range) {
                let aperture = self.aperture;
                return Err(MapError::OutsideAperture { range, aperture });
            }
            // Writes there are never translated, and a mapping to there would let a device forge interrupts.
            let target = AddrRange::from_base_len(phys, len).map(identity);
            if [Some(range), target].into_iter().flatten().any(touches_interrupts) {
                return Err(MapError::InterruptWindow { iova, phys, len });
            }
        }
        self.table.map(&shared.host, iova, phys, len, perms)?;
        let Some(range) = AddrRange::from_base_len(iova, len) else {
            return Ok(());
        };
        self.mapped(shared, range).map_err(|cause| {
            // The caller is told that nothing is mapped. What the unit saw in between cannot be called back:
            // tables that come free are not reused.
            drop(self.table.unmap(&shared.host, range, UnmapRules::STRICT));
            let reachable = Reachable::Range { domain: self.id, range };
            MapError::Unconfirmed(Unconfirmed { reachable, cause })
        })
    }

    /// What a unit needs to notice that entries became present (`VT-d §6.1`, `§6.8`, rule D3).
    fn mapped<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        range: AddrRange<Iova>,
    ) -> Result<(), HardwareError> {
        if shared.capabilities.caching_mode() {
            // Upper tables may have been missing before, and that may be cached too: no hint.
            self.invalidate(shared, range, false)
        } else {
            shared.flush_write_buffer()
        }
    }

    pub(crate) fn unmap<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        range: AddrRange<Iova>,
    ) -> Result<Unmapped, UnmapError> {
        Ok(self.table.unmap(&shared.host, range, UnmapRules::STRICT)?)
    }

    /// Makes the unit forget the translations of `range`. `leaf_only` states that no table page was unlinked
    /// (rule D9).
    pub(crate) fn invalidate<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        range: AddrRange<Iova>,
        leaf_only: bool,
    ) -> Result<(), HardwareError> {
        let domain = self.id;
        match plan(range, shared.capabilities.page_selective()) {
            Plan::Domain => shared.invalidate(&[Invalidation::IotlbDomain(domain)]),
            Plan::Blocks(blocks, count) => {
                let mut batch = [Invalidation::IotlbDomain(domain); crate::pages::MAX_BLOCKS];
                for (slot, block) in batch.iter_mut().zip(blocks) {
                    *slot = Invalidation::IotlbPages {
                        domain,
                        block,
                        leaf_only,
                    };
                }
                shared.invalidate(batch.get(..count).unwrap_or(&batch))
            }
        }
    }

    /// Identity-maps a reserved region, except where another region did so before.
    pub(crate) fn map_identity<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        region: AddrRange<HostPhys>,
    ) -> Result<(), MapError> {
        let mut mapped = self.identity.lock();
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
            self.map(
                shared,
                piece.first(),
                HostPhys::new(piece.first().raw()),
                len,
                Perms::READ_WRITE,
            )?;
            mapped.push(piece);
        }
        Ok(())
    }

    /// Unmaps the identity-mapped pieces that no region in `wanted` touches.
    pub(crate) fn keep_identity<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        wanted: &[AddrRange<HostPhys>],
    ) -> Result<(), Unconfirmed> {
        let mut mapped = self.identity.lock();
        let needed = |piece: &AddrRange<Iova>| wanted.iter().any(|region| identity(*region).overlaps(*piece));
        let (keep, gone): (Vec<_>, Vec<_>) = mapped.drain(..).partition(needed);
        *mapped = keep;
        let mut result = Ok(());
        for range in gone {
            // Only the driver itself maps here; a piece that somebody unmapped by address is gone already.
            let Ok(unmapped) = self.unmap(shared, range) else {
                continue;
            };
            match self.invalidate(shared, range, false) {
                Ok(()) => unmapped
                    .into_frames()
                    .into_iter()
                    .for_each(|frame| shared.host.free(frame)),
                Err(cause) => {
                    let reachable = Reachable::Range { domain: self.id, range };
                    result = Err(Unconfirmed { reachable, cause });
                }
            }
        }
        result
    }
}

/// Whether `range` touches the addresses that are interrupts and not memory on this platform.
fn touches_interrupts(range: AddrRange<Iova>) -> bool {
    let window = AddrRange::new(Iova::new(INTERRUPT_RANGE_FIRST), Iova::new(INTERRUPT_RANGE_LAST));
    window.is_some_and(|window| window.overlaps(range))
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
