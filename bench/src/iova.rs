//! B1 to B5: allocators of I/O virtual addresses.
//!
//! Every trace runs once against a naive account of what is live before anything is timed.

mod fragments;
pub(crate) mod linux;
mod mixes;
pub(crate) mod sides;
mod threads;

use std::collections::BTreeMap;
use std::hint::black_box;

use buddy_system_allocator::FrameAllocator;
use iommu_iova::{CachedAllocator, CoreCache, IovaAllocator, IovaRequest, IovaSpace, Lease};
use iommu_types::{AddrRange, Iova};
use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};

use crate::floors::Magazine;
use crate::pair::{Random, compare};
use crate::peers::PAGE;
use crate::row::{Row, measured};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// Live mappings of the ring.
const RINGS: [usize; 5] = [64, 256, 1024, 4096, 16_384];
/// Live ranges of the mix.
const MIX_LIVE: usize = 1024;
/// Long-lived mappings beside short-lived ones.
const LONG: [usize; 5] = [64, 256, 1024, 4096, 16_384];
/// Draws of sizes, taken before the timed loop.
const DRAWS: usize = 4096;
/// Pages of the peers' space.
const PEER_PAGES: usize = 1 << 24;

/// Runs the comparisons; says why there are none if one of the allocators gives out.
pub(crate) fn rows(quick: bool) -> Vec<Row> {
    measured(
        quick,
        &[
            ("B1", ring_rows),
            ("B1", mixes::peer_rows),
            ("B1", mixes::ring_rows),
            ("B2", mix_rows),
            ("B2", mixes::mix_rows),
            ("B3", mixes::uncached_rows),
            ("B3", long_and_short_rows),
            ("B4", fragments::rows),
            ("B5", threads::rows),
        ],
    )
}

/// What is live, in slots that are replaced oldest first.
struct Ring<T> {
    slots: Vec<Option<T>>,
    at: usize,
}

impl<T> Ring<T> {
    const fn new() -> Self {
        Self {
            slots: Vec::new(),
            at: 0,
        }
    }

    fn add(&mut self, value: Option<T>) {
        self.slots.push(value);
    }

    fn live(&self) -> impl Iterator<Item = &T> {
        self.slots.iter().flatten()
    }

    /// Empties the oldest slot, and fills it again.
    #[inline]
    fn turn(&mut self, replace: impl FnOnce(Option<T>) -> Option<T>) {
        let Some(slot) = self.slots.get_mut(self.at) else {
            return;
        };
        *slot = replace(slot.take());
        self.at += 1;
        if self.at == self.slots.len() {
            self.at = 0;
        }
    }
}

/// Our side: an allocator, one core, and a ring of leases.
struct Ours {
    iovas: CachedAllocator,
    core: CoreCache,
    ring: Ring<Lease>,
    failed: u64,
}

impl Ours {
    /// A 48-bit space.
    fn new() -> Outcome<Self> {
        let aperture = AddrRange::new(Iova::ZERO, Iova::new((1 << 48) - 1)).ok_or("no aperture")?;
        let iovas = CachedAllocator::new(IovaSpace::new(aperture)?);
        let core = iovas.new_core();
        Ok(Self {
            iovas,
            core,
            ring: Ring::new(),
            failed: 0,
        })
    }

    fn add(&mut self, request: IovaRequest) {
        let lease = self.iovas.allocate(&mut self.core, request);
        self.failed += u64::from(lease.is_err());
        self.ring.add(lease.ok());
    }

    #[inline]
    fn turn(&mut self, request: IovaRequest) {
        Self::turn_of(&mut self.ring, &self.iovas, &mut self.core, &mut self.failed, request);
    }

    #[inline]
    fn turn_of(
        ring: &mut Ring<Lease>,
        iovas: &CachedAllocator,
        core: &mut CoreCache,
        failed: &mut u64,
        request: IovaRequest,
    ) {
        ring.turn(|oldest| {
            if let Some(lease) = oldest {
                iovas.free(core, lease);
            }
            let lease = iovas.allocate(core, request).ok();
            *failed += u64::from(lease.is_none());
            lease
        });
    }

    /// Runs `turns` requests against an account of what is live: nothing overlaps, and alignment is kept.
    fn check(&mut self, turns: usize, request: impl Fn(usize) -> IovaRequest) -> Outcome<()> {
        let mut account: BTreeMap<u64, u64> = BTreeMap::new();
        for lease in self.ring.live() {
            account.insert(lease.iova().raw(), lease.range().last().raw());
        }
        for turn in 0..turns {
            let at = self.ring.at;
            if let Some(Some(oldest)) = self.ring.slots.get(at) {
                account.remove(&oldest.iova().raw());
            }
            self.turn(request(turn));
            let lease = self.ring.slots.get(at).and_then(Option::as_ref);
            let lease = lease.ok_or("nothing was allocated")?;
            let (first, last) = (lease.iova().raw(), lease.range().last().raw());
            let below = account.range(..=last).next_back();
            let aligned = first.is_multiple_of(request(turn).align_pages() * PAGE);
            if below.is_some_and(|(_, &end)| end >= first) || !aligned || lease.pages() != request(turn).page_count() {
                return Err(format!("turn {turn}: {first:#x} to {last:#x} is not right").into());
            }
            account.insert(first, last);
        }
        self.done()
    }

    fn done(&self) -> Outcome<()> {
        if self.failed > 0 {
            return Err(format!("{} requests failed", self.failed).into());
        }
        Ok(())
    }
}

/// The buddy allocator: powers of two, no limits on addresses.
struct Buddy {
    frames: FrameAllocator<33>,
    ring: Ring<(usize, usize)>,
}

impl Buddy {
    fn new() -> Self {
        let mut frames = FrameAllocator::new();
        frames.add_frame(1, PEER_PAGES);
        Self {
            frames,
            ring: Ring::new(),
        }
    }

    fn add(&mut self, pages: usize) {
        self.ring.add(self.frames.alloc(pages).map(|first| (first, pages)));
    }

    #[inline]
    fn turn(&mut self, pages: usize) {
        Self::turn_of(&mut self.ring, &mut self.frames, pages);
    }

    #[inline]
    fn turn_of(ring: &mut Ring<(usize, usize)>, frames: &mut FrameAllocator<33>, pages: usize) {
        ring.turn(|oldest| {
            if let Some((first, pages)) = oldest {
                frames.dealloc(first, pages);
            }
            frames.alloc(pages).map(|first| (first, pages))
        });
    }
}

/// rust-vmm's allocator: the first gap that fits, in an interval tree.
struct VmAllocator {
    addresses: AddressAllocator,
    ring: Ring<RangeInclusive>,
}

impl VmAllocator {
    fn new() -> Outcome<Self> {
        let addresses = AddressAllocator::new(PAGE, PAGE << 24).map_err(|error| format!("{error:?}"))?;
        Ok(Self {
            addresses,
            ring: Ring::new(),
        })
    }

    fn allocate(addresses: &mut AddressAllocator, pages: u64) -> Option<RangeInclusive> {
        addresses.allocate(pages * PAGE, PAGE, AllocPolicy::FirstMatch).ok()
    }

    fn add(&mut self, pages: u64) {
        self.ring.add(Self::allocate(&mut self.addresses, pages));
    }

    fn turn(&mut self, pages: u64) {
        let addresses = &mut self.addresses;
        self.ring.turn(|oldest| {
            if let Some(range) = oldest {
                let _ = addresses.free(&range);
            }
            Self::allocate(addresses, pages)
        });
    }
}

/// B1: free the oldest page, allocate one.
fn ring_rows(quick: bool) -> Outcome<Vec<Row>> {
    let page = IovaRequest::pages(1);
    let mut rows = Vec::new();
    let mut times: Vec<f64> = Vec::new();
    for ring in RINGS {
        let mut ours = Ours::new()?;
        let mut buddy = Buddy::new();
        for _ in 0..ring {
            ours.add(page);
            buddy.add(1);
        }
        ours.check(2 * ring, |_| page)?;
        let mut run = |turns| {
            for _ in 0..turns {
                ours.turn(IovaRequest::pages(black_box(1)));
            }
        };
        let against_buddy = compare(quick, &mut run, &mut |turns| {
            for _ in 0..turns {
                buddy.turn(black_box(1));
            }
        });
        let case = format!("free + alloc, 1 page, {ring} live");
        let name = "buddy_system_allocator";
        rows.push(Row::at_most("B1", case.clone(), &against_buddy, name, 8.0));
        rows.push(Row::at_least("B1", case.clone(), &against_buddy, name, 3.0));
        times.push(against_buddy.ours_ns);
        let mut floor = Magazine::new(ring);
        let least = compare(quick, &mut run, &mut |turns| {
            for _ in 0..turns {
                black_box(floor.turn());
            }
        });
        let limit = format!("{case}, limit");
        rows.push(Row::within("B1", limit, &least, "an array of one thread", 3.0));
        // The peer looks at every range: to fill a long ring takes it seconds.
        if ring <= 1024 || (!quick && ring <= 4096) {
            let mut peer = VmAllocator::new()?;
            for _ in 0..ring {
                peer.add(1);
            }
            let against_vm = compare(quick, &mut run, &mut |turns| {
                for _ in 0..turns {
                    peer.turn(black_box(1));
                }
            });
            rows.push(Row::at_least("B1", case, &against_vm, "vm-allocator", 100.0));
        }
        ours.done()?;
    }
    let most = times.iter().copied().fold(0.0, f64::max);
    let least = times.iter().copied().fold(f64::INFINITY, f64::min);
    let case = "free + alloc, most over least of all rings".to_owned();
    rows.push(Row::figure("B1", case, most / least, ""));
    Ok(rows)
}

/// Sizes from 1 to 256 pages with a chance of 1 / size, every second one aligned to the next power of two.
fn mix() -> Vec<IovaRequest> {
    let weights: Vec<u64> = (1..=256_u64).map(|pages| (1 << 20) / pages).collect();
    let all: u64 = weights.iter().sum();
    let mut random = Random::new(2);
    let mut draw = || {
        let mut left = random.next() % all;
        for (weight, pages) in weights.iter().zip(1..) {
            if left < *weight {
                return pages;
            }
            left -= weight;
        }
        1
    };
    (0..DRAWS)
        .map(|turn| {
            let request = IovaRequest::pages(draw());
            if turn % 2 == 0 {
                request
            } else {
                request.naturally_aligned()
            }
        })
        .collect()
}

/// B2: a mix of sizes.
fn mix_rows(quick: bool) -> Outcome<Vec<Row>> {
    let draws = mix();
    let sizes = draws
        .iter()
        .map(|request| Ok(usize::try_from(request.page_count())?))
        .collect::<Outcome<Vec<usize>>>()?;
    let mut ours = Ours::new()?;
    let mut buddy = Buddy::new();
    for (request, &pages) in draws.iter().zip(&sizes).take(MIX_LIVE) {
        ours.add(*request);
        buddy.add(pages);
    }
    ours.check(2 * DRAWS, |turn| draws[turn % DRAWS])?;
    let reserved: u64 = ours.ring.live().map(Lease::reserved_pages).sum();
    let asked: u64 = ours.ring.live().map(Lease::pages).sum();
    let doubled: u64 = ours.ring.live().map(|lease| lease.pages().next_power_of_two()).sum();
    let percent = |pages: u64| {
        f64::from(u32::try_from(pages - asked).unwrap_or(0)) * 100.0 / f64::from(u32::try_from(asked).unwrap_or(1))
    };
    let (waste, doubled) = (percent(reserved), percent(doubled));
    let (mut our_turn, mut peer_turn) = (0, 0);
    let comparison = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                ours.turn(draws[our_turn % DRAWS]);
                our_turn += 1;
            }
        },
        &mut |turns| {
            for _ in 0..turns {
                buddy.turn(sizes[peer_turn % DRAWS]);
                peer_turn += 1;
            }
        },
    );
    ours.done()?;
    let mut other = VmAllocator::new()?;
    for &pages in draws.iter().take(MIX_LIVE) {
        other.add(pages.page_count());
    }
    let (mut our_turn, mut peer_turn) = (our_turn, MIX_LIVE);
    let against_vm = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                ours.turn(draws[our_turn % DRAWS]);
                our_turn += 1;
            }
        },
        &mut |turns| {
            for _ in 0..turns {
                other.turn(draws[peer_turn % DRAWS].page_count());
                peer_turn += 1;
            }
        },
    );
    let mut floor = Magazine::new(MIX_LIVE);
    let least = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                ours.turn(draws[our_turn % DRAWS]);
                our_turn += 1;
            }
        },
        &mut |turns| {
            for _ in 0..turns {
                black_box(floor.turn());
            }
        },
    );
    ours.done()?;
    let case = || "free + alloc, 1..256 pages".to_owned();
    let limit = format!("{}, limit", case());
    let most = doubled.min(25.0);
    Ok(vec![
        Row::at_most("B2", case(), &comparison, "buddy_system_allocator", 20.0).and_at_least(&comparison, 1.5),
        Row::reported("B2", case(), &against_vm, "vm-allocator"),
        Row::within("B2", limit, &least, "an array of one thread", 4.0),
        Row::counted(
            "B2",
            "waste in percent, 1..256 pages".into(),
            [waste, doubled],
            "rounded to powers of two",
            most,
        ),
    ])
}

/// B3 (b): a long-lived ring of single pages, and 64 short-lived slots of 1 and 64 pages.
fn long_and_short_rows(quick: bool) -> Outcome<Vec<Row>> {
    let request = |turn: usize| match turn % 2 {
        0 => IovaRequest::pages(1),
        _ => IovaRequest::pages(64).naturally_aligned(),
    };
    let mut rows = Vec::new();
    for long in LONG {
        let mut ours = Ours::new()?;
        let mut buddy = Buddy::new();
        for _ in 0..long {
            ours.add(request(0));
            buddy.add(1);
        }
        ours.check(2 * long, |_| request(0))?;
        // The second ring shares the allocator: its leases wait in a list of their own.
        let mut short = Ring::new();
        let mut buddy_short = Ring::new();
        for turn in 0..64 {
            short.add(Some(ours.iovas.allocate(&mut ours.core, request(turn))?));
            let pages = if turn % 2 == 0 { 1 } else { 64 };
            buddy_short.add(buddy.frames.alloc(pages).map(|first| (first, pages)));
        }
        let (mut our_turn, mut peer_turn) = (0_usize, 0_usize);
        let comparison = compare(
            quick,
            &mut |turns| {
                for _ in 0..turns {
                    ours.turn(request(0));
                    let Ours {
                        iovas, core, failed, ..
                    } = &mut ours;
                    Ours::turn_of(&mut short, iovas, core, failed, request(our_turn));
                    our_turn += 1;
                }
            },
            &mut |turns| {
                for _ in 0..turns {
                    buddy.turn(1);
                    let pages = if peer_turn.is_multiple_of(2) { 1 } else { 64 };
                    Buddy::turn_of(&mut buddy_short, &mut buddy.frames, pages);
                    peer_turn += 1;
                }
            },
        );
        ours.done()?;
        let case = format!("(b) two pairs, {long} long-lived, 64 short-lived");
        rows.push(Row::at_most("B3", case, &comparison, "buddy_system_allocator", 25.0).and_at_least(&comparison, 1.7));
    }
    Ok(rows)
}
