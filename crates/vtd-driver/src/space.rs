//! One address space on one unit: its tables and what they owe the unit's caches.

mod device_tlb;
mod identity;

use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_pagetable::{Config, FirstStage, LeafSizes, Levels, PageTable, SecondStage, UnmapRules, Unmapped};
use iommu_types::omission::{Step, kept};
use iommu_types::sync::{AtomicBool, AtomicU64, Ordering};
use iommu_types::{AddrRange, DomainId, GuestPhys, HostPhys, Iova, Pasid, Perms, Piece, Registers};
use spin::Mutex;
use vtd_spec::Agaw;
use vtd_spec::message::{INTERRUPT_RANGE_FIRST, INTERRUPT_RANGE_LAST};

pub(crate) use self::device_tlb::Holder;
use self::identity::Identity;
pub(crate) use self::identity::{MAX_RESERVED_BYTES, identity};
use crate::domain::{DomainError, DomainOptions, MapError, Stage, UnmapError};
use crate::error::{HardwareError, Reachable, Unconfirmed};
use crate::invalidate::Invalidation;
use crate::options::TableMode;
use crate::pages::{MAX_BLOCKS, Stale, plan};
use crate::scalable::NO_PASID;
use crate::shared::{Host, Shared};

/// The largest address mask of PASID-based invalidation, which takes any (`VT-d §6.5.2.4`): all of a 57-bit space.
const MAX_PASID_MASK: u8 = 45;

/// Distinguishes spaces for the life of the program.
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A guest's own first-stage tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestTable {
    /// Where the guest has its root table, in addresses of the parent domain.
    pub root: GuestPhys,
    /// Whether it has 5 levels rather than 4.
    pub five_levels: bool,
}

/// What translates the requests of a space.
#[derive(Debug)]
pub(crate) enum Stages {
    /// Second-stage tables of the driver's.
    Second {
        agaw: Agaw,
        table: PageTable<SecondStage>,
        /// The unit notes accesses and writes in them.
        flags: bool,
    },
    /// First-stage tables of the driver's. Scalable mode only.
    First {
        five_levels: bool,
        table: PageTable<FirstStage>,
    },
    /// First-stage tables of a guest's, in the addresses of a second-stage space. Scalable mode only.
    Nested { parent: Arc<Space>, guest: GuestTable },
}

/// Tables, identifier and limits.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) id: DomainId,
    pub(crate) serial: u64,
    pub(crate) aperture: AddrRange<Iova>,
    pub(crate) stages: Stages,
    /// Identifiers of the nested spaces that translate through this one: what is cached under them depends on
    /// these tables too.
    nested: Mutex<Vec<DomainId>>,
    /// Something was mapped here without the right to write.
    read_only: AtomicBool,
    /// PASIDs that lead here, once for each requester.
    pasids: Mutex<Vec<Pasid>>,
    /// Functions that may hold translations of the space in a device-TLB.
    holders: Mutex<Vec<Holder>>,
    /// Reserved regions that are identity-mapped here.
    identity: Mutex<Identity>,
}

/// Calls a method of the page table, whichever format it has; gives `$none` for nested spaces.
macro_rules! with_table {
    ($space:expr, $table:ident => $call:expr, $none:expr) => {
        match &$space.stages {
            Stages::Second { table: $table, .. } => $call,
            Stages::First { table: $table, .. } => $call,
            Stages::Nested { .. } => $none,
        }
    };
}

impl Space {
    pub(crate) fn new<R: Registers, P: Host>(
        shared: &Shared<R, P>,
        id: DomainId,
        options: DomainOptions,
    ) -> Result<Self, DomainError> {
        let (stages, aperture) = match options.stage {
            Stage::Second => second_stage(shared, options)?,
            Stage::First => first_stage(shared, options)?,
        };
        Self::with(id, stages, aperture)
    }

    /// A space of a guest's tables over `parent`.
    pub(crate) fn nested<R: Registers, P: Host>(
        shared: &Shared<R, P>,
        id: DomainId,
        parent: &Arc<Self>,
        guest: GuestTable,
    ) -> Result<Self, DomainError> {
        let capabilities = &shared.capabilities;
        let strict = shared.options.quirks.no_read_only_parents;
        let possible = shared.options.mode == TableMode::Scalable
            && capabilities.ecap.nest()
            && matches!(parent.stages, Stages::Second { .. })
            && (capabilities.cap.fs5lp() || !guest.five_levels);
        // The guest chose the address: the unit must not be sent past what the parent translates.
        let root = Iova::new(guest.root.raw());
        if !possible || guest.root.page_offset() != 0 || !parent.aperture.contains(root) {
            return Err(DomainError::NotNestable);
        }
        let aperture = up_to(if guest.five_levels { 56 } else { 47 })?;
        let parent = parent.clone();
        {
            let mut nested = parent.nested.lock();
            if strict && parent.read_only.load(Ordering::Acquire) {
                return Err(DomainError::NotNestable);
            }
            nested.push(id);
        }
        Self::with(id, Stages::Nested { parent, guest }, aperture)
    }

    fn with(id: DomainId, stages: Stages, aperture: AddrRange<Iova>) -> Result<Self, DomainError> {
        Ok(Self {
            id,
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            aperture,
            stages,
            nested: Mutex::new(Vec::new()),
            read_only: AtomicBool::new(false),
            pasids: Mutex::new(Vec::new()),
            holders: Mutex::new(Vec::new()),
            identity: Mutex::default(),
        })
    }

    /// Whether nested spaces translate through this one.
    pub(crate) fn is_parent(&self) -> bool {
        !self.nested.lock().is_empty()
    }

    /// Where the root of the tables lies; a nested space has none of the driver's.
    pub(crate) fn root(&self) -> Option<HostPhys> {
        with_table!(self, table => Some(table.root()), None)
    }

    /// Width and depth of the tables.
    pub(crate) fn agaw(&self) -> Agaw {
        let five_levels = match &self.stages {
            Stages::Second { agaw, .. } => return *agaw,
            Stages::First { five_levels, .. } => *five_levels,
            Stages::Nested { guest, .. } => guest.five_levels,
        };
        if five_levels { Agaw::Bits57 } else { Agaw::Bits48 }
    }

    /// Gives the tables back, or takes the space off its parent. The caller has the unit's confirmation that
    /// it forgot everything under the identifier.
    pub(crate) fn free<R: Registers, P: Host>(self, shared: &Shared<R, P>) {
        self.identity
            .into_inner()
            .into_frames()
            .for_each(|frame| shared.host.free(frame));
        match self.stages {
            Stages::Second { table, .. } => table.free(&shared.host),
            Stages::First { table, .. } => table.free(&shared.host),
            Stages::Nested { parent, .. } => parent.nested.lock().retain(|id| *id != self.id),
        }
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
        self.mappable(iova, phys, len)?;
        self.writable(shared, iova, perms)?;
        with_table!(self, table => table.map(&shared.host, iova, phys, len, perms)?, return Err(MapError::GuestTables));
        let Some(range) = AddrRange::from_base_len(iova, len) else {
            return Ok(());
        };
        self.mapped(shared, range).map_err(|cause| {
            // The caller is told that nothing is mapped. What the unit saw in between cannot be called back:
            // tables that come free are not reused.
            drop(self.unmap(shared, range));
            let reachable = Reachable::Range { domain: self.id, range };
            MapError::Unconfirmed(Unconfirmed { reachable, cause })
        })
    }

    /// Maps every piece of a block: the tables are walked once for neighbours, and the unit is told once.
    ///
    /// An error comes with the number of pieces at the front that are in the tables.
    pub(crate) fn map_pieces<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        base: Iova,
        pieces: &[Piece],
        perms: Perms,
    ) -> Result<(), (usize, MapError)> {
        let range = |piece: &Piece| AddrRange::from_base_len(base.checked_add(piece.offset)?, piece.len);
        for piece in pieces {
            // An address that does not exist is refused by the tables.
            if let Some(iova) = base.checked_add(piece.offset) {
                self.mappable(iova, piece.phys, piece.len).map_err(|error| (0, error))?;
            }
        }
        self.writable(shared, base, perms).map_err(|error| (0, error))?;
        let none = (0, MapError::GuestTables);
        let done = with_table!(self, table => table.map_pieces(&shared.host, base, pieces, perms), return Err(none));
        done.map_err(|(done, error)| (done, error.into()))?;
        let Some(all) = pieces.iter().filter_map(range).reduce(AddrRange::hull) else {
            return Ok(());
        };
        self.mapped(shared, all).map_err(|cause| {
            // As for a single mapping.
            for range in pieces.iter().filter_map(range) {
                drop(self.unmap(shared, range));
            }
            let reachable = Reachable::Range {
                domain: self.id,
                range: all,
            };
            (0, MapError::Unconfirmed(Unconfirmed { reachable, cause }))
        })
    }

    /// Refuses what must not be mapped, whatever the tables hold.
    fn mappable(&self, iova: Iova, phys: HostPhys, len: u64) -> Result<(), MapError> {
        // What is no range is refused by the tables.
        let Some(range) = AddrRange::from_base_len(iova, len) else {
            return Ok(());
        };
        if !self.aperture.covers(range) {
            let aperture = self.aperture;
            return Err(MapError::OutsideAperture { range, aperture });
        }
        // Writes there are never translated, and a mapping to there would let a device forge interrupts.
        let target = AddrRange::from_base_len(phys, len).map(identity);
        if [Some(range), target].into_iter().flatten().any(touches_interrupts) {
            return Err(MapError::InterruptWindow { iova, phys, len });
        }
        Ok(())
    }

    /// Refuses mappings for reading only under guests' tables where an erratum makes them writable.
    fn writable<R: Registers, P: Host>(&self, shared: &Shared<R, P>, at: Iova, perms: Perms) -> Result<(), MapError> {
        if shared.options.quirks.no_read_only_parents && !perms.contains(Perms::WRITE) {
            // Under the lock that nested spaces are entered by: none comes in between.
            let nested = self.nested.lock();
            if !nested.is_empty() {
                return Err(MapError::ReadOnlyParent { at });
            }
            self.read_only.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// What a unit needs to notice that entries became present (`VT-d §6.1`, `§6.8`, rule D3).
    fn mapped<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        range: AddrRange<Iova>,
    ) -> Result<(), HardwareError> {
        // First-stage entries that are not present are never cached, also in caching mode (VT-d §6.1).
        if shared.capabilities.caching_mode() && matches!(self.stages, Stages::Second { .. }) {
            // Upper tables may have been missing before, and that may be cached too: no hint.
            if kept(Step::AbsentPageForgotten) {
                let leaf_only = false;
                self.invalidate_unit(shared, &[Stale { range, leaf_only }])
            } else {
                Ok(())
            }
        } else {
            shared.flush_write_buffer()
        }
    }

    pub(crate) fn unmap<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        range: AddrRange<Iova>,
    ) -> Result<Unmapped, UnmapError> {
        let none = iommu_pagetable::UnmapError::NotMapped { at: range.first() };
        Ok(with_table!(self, table => table.unmap(&shared.host, range, UnmapRules::STRICT)?, return Err(none.into())))
    }

    /// Makes the unit, and then the functions that hold translations themselves, forget what is stale.
    pub(crate) fn invalidate<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        stale: &[Stale],
    ) -> Result<(), HardwareError> {
        let last = kept(Step::DeviceTlbLast);
        if !last {
            self.invalidate_device_tlbs(shared, Some(stale))?;
        }
        self.invalidate_unit(shared, stale)?;
        if last {
            self.invalidate_device_tlbs(shared, Some(stale))?;
        }
        Ok(())
    }

    fn invalidate_unit<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        stale: &[Stale],
    ) -> Result<(), HardwareError> {
        let first_stage = !matches!(self.stages, Stages::Second { .. });
        let max_mask = if first_stage {
            Some(MAX_PASID_MASK)
        } else {
            shared.page_selective()
        };
        let plan = plan(stale, max_mask);
        let whole = |domain, pasid| match first_stage {
            true => Invalidation::PasidIotlbAll { domain, pasid },
            false => Invalidation::IotlbDomain(domain),
        };
        let pages = |domain, pasid, block, leaf_only| match first_stage {
            true => Invalidation::PasidIotlbPages {
                domain,
                pasid,
                block,
                leaf_only,
            },
            false => Invalidation::IotlbPages {
                domain,
                block,
                leaf_only,
            },
        };
        // Second-stage results are invalidated for every PASID at once, first-stage ones for each.
        let mut others = Vec::new();
        if first_stage {
            others.clone_from(&self.pasids.lock());
            others.sort_unstable();
            others.dedup();
        }
        // One batch for this identifier and one for each nested one, which caches results of these tables.
        self.for_each_id(|domain| {
            core::iter::once(&NO_PASID)
                .chain(&others)
                .try_for_each(|&pasid| match plan.blocks() {
                    None => shared.invalidate(&[whole(domain, pasid)]),
                    Some(blocks) => {
                        let mut batch = [whole(domain, pasid); MAX_BLOCKS];
                        for (slot, (block, leaf_only)) in batch.iter_mut().zip(blocks) {
                            *slot = pages(domain, pasid, *block, *leaf_only);
                        }
                        shared.invalidate(batch.get(..blocks.len()).unwrap_or(&batch))
                    }
                })
        })
    }

    /// Makes the unit forget everything of the space.
    pub(crate) fn invalidate_all<R: Registers, P: Host>(&self, shared: &Shared<R, P>) -> Result<(), HardwareError> {
        self.for_each_id(|domain| shared.invalidate(&[Invalidation::IotlbDomain(domain)]))?;
        self.invalidate_device_tlbs(shared, None)
    }

    /// A PASID of some requester leads here from now on.
    pub(crate) fn add_pasid(&self, pasid: Pasid) {
        self.pasids.lock().push(pasid);
    }

    /// One requester less uses `pasid` to get here.
    pub(crate) fn remove_pasid(&self, pasid: Pasid) {
        let mut pasids = self.pasids.lock();
        if let Some(index) = pasids.iter().position(|other| *other == pasid) {
            pasids.swap_remove(index);
        }
    }

    /// Unlinks tables in `range` that map nothing.
    pub(crate) fn prune<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        range: AddrRange<Iova>,
    ) -> Result<Unmapped, UnmapError> {
        let none = iommu_pagetable::UnmapError::NotMapped { at: range.first() };
        Ok(with_table!(self, table => table.prune(&shared.host, range)?, return Err(none.into())))
    }

    fn for_each_id(&self, mut each: impl FnMut(DomainId) -> Result<(), HardwareError>) -> Result<(), HardwareError> {
        each(self.id)?;
        let nested = self.nested.lock().clone();
        nested.into_iter().try_for_each(each)
    }
}

/// Input addresses of at most `bits` bits.
fn up_to(bits: u8) -> Result<AddrRange<Iova>, DomainError> {
    let last = 1u64.checked_shl(u32::from(bits)).map_or(u64::MAX, |end| end - 1);
    AddrRange::new(Iova::ZERO, Iova::new(last)).ok_or(DomainError::NoTranslation)
}

/// How the walker sees tables, and where they shall lie.
fn config<R: Registers, P: Host>(shared: &Shared<R, P>, levels: Levels, sizes: LeafSizes) -> Config {
    let page = shared.options.page();
    let config = Config::new(levels)
        .leaf_sizes(sizes)
        .last_phys(page.last)
        .node(page.node);
    if shared.walks_snoop() || !kept(Step::PagesWrittenBack) {
        config
    } else {
        config.non_coherent()
    }
}

fn second_stage<R: Registers, P: Host>(
    shared: &Shared<R, P>,
    options: DomainOptions,
) -> Result<(Stages, AddrRange<Iova>), DomainError> {
    let capabilities = &shared.capabilities;
    if shared.options.mode == TableMode::Scalable && !capabilities.ecap.ssts() {
        return Err(DomainError::NoTranslation);
    }
    let agaw = capabilities.agaw_for(options.width).ok_or(DomainError::NoTranslation)?;
    let levels = match agaw {
        Agaw::Bits39 => Levels::Three,
        Agaw::Bits48 => Levels::Four,
        Agaw::Bits57 => Levels::Five,
    };
    let superpages = options.superpages && !shared.options.quirks.no_superpages;
    let sizes = LeafSizes {
        size_2m: superpages && capabilities.cap.second_stage_2m(),
        size_1g: superpages && capabilities.cap.second_stage_1g(),
    };
    let format = SecondStage::default();
    // SNP is reserved on units without snoop control: every access would fault.
    let format = if capabilities.ecap.sc() {
        format.force_snoop()
    } else {
        format
    };
    let format = if options.track_writes {
        let possible = shared.options.mode == TableMode::Scalable && capabilities.ecap.ssads() && shared.walks_snoop();
        if !possible {
            return Err(DomainError::NoDirtyTracking);
        }
        format.track_dirty()
    } else {
        format
    };
    let table = PageTable::new(format, config(shared, levels, sizes), &shared.host)?;
    // VT-d §3.6: input addresses are limited by the tables' width and by the unit's MGAW.
    let aperture = up_to(agaw.width().min(capabilities.cap.max_guest_address_width()))?;
    let flags = options.track_writes;
    Ok((Stages::Second { agaw, table, flags }, aperture))
}

fn first_stage<R: Registers, P: Host>(
    shared: &Shared<R, P>,
    options: DomainOptions,
) -> Result<(Stages, AddrRange<Iova>), DomainError> {
    let capabilities = &shared.capabilities;
    if shared.options.mode != TableMode::Scalable || !capabilities.ecap.fsts() {
        return Err(DomainError::NoFirstStage);
    }
    if options.track_writes {
        return Err(DomainError::NoDirtyTracking);
    }
    // Only the lower canonical half is used: one bit less than the tables have.
    let five_levels = options.width > 47 && capabilities.cap.fs5lp();
    let (levels, bits) = if five_levels {
        (Levels::Five, 56)
    } else {
        (Levels::Four, 47)
    };
    let sizes = LeafSizes {
        size_2m: options.superpages,
        size_1g: options.superpages && capabilities.cap.fs1gp(),
    };
    let table = PageTable::new(FirstStage::default(), config(shared, levels, sizes), &shared.host)?;
    let aperture = up_to(bits.min(capabilities.cap.max_guest_address_width()))?;
    Ok((Stages::First { five_levels, table }, aperture))
}

/// Whether `range` touches the addresses that are interrupts and not memory on this platform.
fn touches_interrupts(range: AddrRange<Iova>) -> bool {
    let window = AddrRange::new(Iova::new(INTERRUPT_RANGE_FIRST), Iova::new(INTERRUPT_RANGE_LAST));
    window.is_some_and(|window| window.overlaps(range))
}
