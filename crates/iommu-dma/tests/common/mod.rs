//! An address space that can fail on demand, and remembers what hardware may still have cached.

use std::collections::BTreeMap;
use std::sync::Mutex;

use iommu_testkit::SparseMemory;
use iommu_types::{AddrRange, AddressSpace, HostPhys, Iova, Perms, SystemMemory, UnmapRefused};

#[derive(Debug, PartialEq)]
pub enum Refused {
    Overlap,
    NotMapped,
    OnPurpose,
    Timeout,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Refused {}

#[derive(Debug, Default)]
struct State {
    /// What the tables say: page → output page and rights.
    live: BTreeMap<u64, (u64, Perms)>,
    /// What devices can reach: the tables, and what no flush has confirmed gone.
    reach: BTreeMap<u64, (u64, Perms)>,
    maps_until_failure: Option<u64>,
    /// A mapping that fails is not confirmed to be forgotten.
    loses_maps: bool,
    hang: bool,
    flushes: u64,
}

#[derive(Debug, Default)]
pub struct Space(Mutex<State>);

#[derive(Debug)]
pub struct Pending<L> {
    range: AddrRange<Iova>,
    lease: L,
}

fn pages(range: AddrRange<Iova>) -> std::ops::RangeInclusive<u64> {
    range.first().raw() >> 12..=range.last().raw() >> 12
}

impl Space {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no panic inside")
    }

    pub fn fail_map_after(&self, n: u64) {
        self.state().maps_until_failure = Some(n);
    }

    /// From now on devices can use what is not mapped any more because mapping it failed.
    pub fn lose_maps(&self) {
        self.state().loses_maps = true;
    }

    pub fn hang(&self, on: bool) {
        self.state().hang = on;
    }

    pub fn flushes(&self) -> u64 {
        self.state().flushes
    }

    pub fn mapped_pages(&self) -> usize {
        self.state().live.len()
    }

    pub fn reachable_pages(&self) -> usize {
        self.state().reach.len()
    }

    /// Where a device's access to a byte goes.
    pub fn translate(&self, at: Iova, write: bool) -> Option<HostPhys> {
        let state = self.state();
        let &(page, perms) = state.reach.get(&(at.raw() >> 12))?;
        let allowed = if write { perms.write } else { perms.read };
        allowed.then(|| HostPhys::new(page << 12 | at.page_offset()))
    }

    fn confirm<L>(state: &mut State, pending: Pending<L>) -> L {
        for page in pages(pending.range) {
            if !state.live.contains_key(&page) {
                state.reach.remove(&page);
            }
        }
        pending.lease
    }
}

impl AddressSpace for &Space {
    type Error = Refused;
    type Pending<L> = Pending<L>;

    fn aperture(&self) -> AddrRange<Iova> {
        AddrRange::new(Iova::ZERO, Iova::new((1 << 39) - 1)).expect("ordered")
    }

    fn map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), Refused> {
        let mut state = self.state();
        let range = AddrRange::from_base_len(iova, len).expect("a range");
        if let Some(left) = &mut state.maps_until_failure {
            if *left == 0 {
                state.maps_until_failure = None;
                if !state.loses_maps {
                    return Err(Refused::OnPurpose);
                }
                let first = phys.raw() >> 12;
                state
                    .reach
                    .extend(pages(range).zip(first..).map(|(page, to)| (page, (to, perms))));
                return Err(Refused::Timeout);
            }
            *left -= 1;
        }
        assert!(range.is_aligned(iommu_types::PageSize::Size4K) && phys.page_offset() == 0);
        if pages(range).any(|page| state.reach.contains_key(&page)) {
            return Err(Refused::Overlap);
        }
        for (n, page) in pages(range).enumerate() {
            let target = (phys.raw() >> 12) + u64::try_from(n).expect("small");
            state.live.insert(page, (target, perms));
            state.reach.insert(page, (target, perms));
        }
        Ok(())
    }

    fn may_be_reachable(error: &Refused) -> bool {
        *error == Refused::Timeout
    }

    fn unmap<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<Pending<L>, UnmapRefused<Refused, L>> {
        let mut state = self.state();
        if !pages(range).all(|page| state.live.contains_key(&page)) {
            return Err(UnmapRefused {
                error: Refused::NotMapped,
                lease,
            });
        }
        for page in pages(range) {
            state.live.remove(&page);
        }
        Ok(Pending { range, lease })
    }

    fn flush<L>(&self, pending: Pending<L>) -> Result<L, (Refused, Pending<L>)> {
        let mut state = self.state();
        if state.hang {
            return Err((Refused::Timeout, pending));
        }
        state.flushes += 1;
        Ok(Space::confirm(&mut state, pending))
    }

    fn flush_all<L>(
        &self,
        pending: impl Iterator<Item = Pending<L>>,
        mut confirmed: impl FnMut(L),
        mut kept: impl FnMut(Pending<L>),
    ) -> Result<(), Refused> {
        let mut state = self.state();
        if state.hang {
            pending.for_each(&mut kept);
            return Err(Refused::Timeout);
        }
        state.flushes += 1;
        pending.for_each(|pending| confirmed(Space::confirm(&mut state, pending)));
        Ok(())
    }
}

/// `len` bytes of memory.
pub(crate) fn bytes(memory: &SparseMemory, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(HostPhys::new(at), &mut bytes).expect("memory");
    bytes
}

/// Fills memory with a pattern that tells where it is.
pub(crate) fn paint(memory: &SparseMemory, at: u64, len: u64, seed: u8) {
    let bytes: Vec<u8> = (0..len)
        .map(|n| seed.wrapping_add(u8::try_from(n % 251).expect("small")))
        .collect();
    memory.write(HostPhys::new(at), &bytes).expect("memory");
}
