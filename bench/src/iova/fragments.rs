//! B4: a space full of fragments.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Instant;

use buddy_system_allocator::FrameAllocator;
use iommu_iova::{CachedAllocator, CoreCache, IovaAllocator, IovaRequest};
use iommu_types::{AddrRange, Iova};
use vm_allocator::{AddressAllocator, AllocPolicy};

use super::linux::{Linux, Range};
use super::{Ours, Outcome};
use crate::floors::Cold;
use crate::pair::{compare, median};
use crate::peers::PAGE;
use crate::row::Row;

/// Single pages of the fragmented space.
const FRAGMENTS: [usize; 4] = [10_000, 500_000, 1000, 100_000];
/// Spaces of a smoke test.
const FEW: usize = 2;
/// Operations that are timed one by one.
const SINGLE: usize = 1000;

/// A map of gaps searched from the top: what allocators without a summary of their gaps do.
struct GapScan(BTreeMap<u64, u64>);

impl GapScan {
    /// Takes the highest gap of at least `pages` pages apart and puts it back.
    fn allocate_free(&mut self, pages: u64) -> bool {
        let found = self.0.iter().rev().find(|&(_, &len)| len >= pages);
        let Some((&first, &len)) = found else { return false };
        self.0.insert(first, len - pages);
        self.0.insert(first, len);
        true
    }
}

/// The fragmented space of each allocator: `fragments` single pages from the top down, every second one freed.
struct Fragmented {
    ours: Ours,
    /// The first page below the fragments.
    below: u64,
    scan: GapScan,
}

/// The last page of the space.
const TOP: u64 = (1 << 36) - 1;

impl Fragmented {
    fn new(fragments: usize) -> Outcome<Self> {
        let mut ours = Ours::new()?;
        // Above the fragments nothing is free; below them everything. No class holds what is claimed singly.
        let mut leases = Vec::new();
        for number in 0..fragments as u64 {
            let page = TOP - number;
            let range = AddrRange::page_around(Iova::new(page * PAGE), iommu_types::PageSize::Size4K);
            leases.push(ours.iovas.claim(&mut ours.core, range)?);
        }
        let mut gaps = BTreeMap::from([(1, TOP - fragments as u64)]);
        for (number, lease) in leases.drain(..).enumerate() {
            if number % 2 == 1 {
                gaps.insert(lease.iova().raw() / PAGE, 1);
                ours.iovas.free(&mut ours.core, lease);
            } else {
                ours.ring.add(Some(lease));
            }
        }
        Ok(Self {
            ours,
            below: TOP - fragments as u64,
            scan: GapScan(gaps),
        })
    }
}

/// Allocates and frees, and counts what failed.
#[inline]
fn pair(iovas: &CachedAllocator, core: &mut CoreCache, request: IovaRequest) -> u64 {
    match iovas.allocate(core, black_box(request)) {
        Ok(lease) => {
            iovas.free(core, lease);
            0
        }
        Err(_) => 1,
    }
}

/// Operations one by one, in microseconds: the 99th of a hundred, and the worst.
fn singly(case: &str, mut work: impl FnMut()) -> [Row; 2] {
    let mut times: Vec<f64> = (0..SINGLE)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e6
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let at = |place: usize| times.get(place).copied().unwrap_or(f64::NAN);
    let row = |what: &str, time: f64| Row::figure("B4", format!("{case}, {what} of {SINGLE}"), time, "us");
    [row("p99", at(SINGLE * 99 / 100)), row("worst", at(SINGLE - 1))]
}

/// B4: requests that no gap between the fragments can serve, and one that nothing can serve.
pub(super) fn rows(quick: bool) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for &fragments in FRAGMENTS.iter().take(if quick { FEW } else { FRAGMENTS.len() }) {
        let Fragmented {
            mut ours,
            below,
            mut scan,
        } = Fragmented::new(fragments)?;
        let mut shaped = LinuxShaped::new(fragments)?;
        let mut buddy = BuddyShaped::new(fragments)?;
        // Longer than what is kept in stock, so that every turn asks the tree; then the reference's own lengths.
        for (pages, align) in [(513, false), (2, false), (16, true)] {
            let request = IovaRequest::pages(pages);
            let request = if align { request.naturally_aligned() } else { request };
            let lease = ours.iovas.allocate(&mut ours.core, request)?;
            // The last fragment was given back, and touches what is free below.
            if lease.range().last().raw() / PAGE > below + 1 {
                return Err(format!("{:?} overlaps the fragments", lease.range()).into());
            }
            ours.iovas.free(&mut ours.core, lease);
            let Ours {
                iovas, core, failed, ..
            } = &mut ours;
            let mut subject = |turns| (0..turns).for_each(|_| *failed += pair(iovas, core, request));
            let case = format!("alloc + free, {pages} pages, {fragments} fragments");
            let against_scan = compare(quick, &mut subject, &mut |turns| {
                for _ in 0..turns {
                    black_box(scan.allocate_free(black_box(pages)));
                }
            });
            let row = Row::at_most("B4", case.clone(), &against_scan, "BTreeMap gap scan", 1000.0);
            rows.push(row);
            // A search takes the peer up to milliseconds.
            let few = quick || fragments > 10_000;
            let against_linux = compare(few, &mut subject, &mut |turns| shaped.run(turns, pages));
            rows.push(if fragments == 500_000 {
                Row::at_least("B4", case.clone(), &against_linux, "Linux-shaped", 5000.0)
            } else {
                Row::reported("B4", case.clone(), &against_linux, "Linux-shaped")
            });
            let against_buddy = compare(quick, &mut subject, &mut |turns| buddy.run(turns, pages));
            rows.push(Row::reported(
                "B4",
                case.clone(),
                &against_buddy,
                "buddy_system_allocator",
            ));
            if fragments <= if quick { 0 } else { 10_000 } {
                let mut first = FirstMatch::new(fragments)?;
                let against_vm = compare(quick, &mut subject, &mut |turns| first.run(turns, pages));
                first.done()?;
                rows.push(Row::reported("B4", case.clone(), &against_vm, "vm-allocator"));
            }
            if fragments == 500_000 && pages == 513 {
                let mut cold = Cold::new();
                let least = compare(quick, &mut subject, &mut |turns| cold.run(3 * turns));
                let limit = format!("{case}, limit");
                rows.push(Row::within(
                    "B4",
                    limit,
                    &least,
                    "three loads that miss all caches",
                    5.0,
                ));
            }
            rows.extend(singly(&case, || *failed += pair(iovas, core, request)));
        }
        ours.done()?;
        shaped.done()?;
        buddy.done()?;
        if fragments == 500_000 {
            rows.extend(failing_rows(quick, ours, below)?);
        }
    }
    rows.extend(full_window(quick)?);
    Ok(rows)
}

/// The Linux-shaped peer, caches off: its tree holds the fragments.
///
/// A search begins where the last one ended, unless a range above was freed meanwhile, as a ring of long-lived mappings
/// does. So each turn frees one of two pages near the top, searches from there, and puts both pages back.
struct LinuxShaped {
    linux: Linux,
    processor: super::linux::Processor,
    _kept: Vec<Range>,
    near_top: [Option<Range>; 2],
    failed: u64,
}

impl LinuxShaped {
    fn new(fragments: usize) -> Outcome<Self> {
        let (linux, processor) = (Linux::new(false), Linux::processor());
        let (mut kept, mut gone, mut near_top) = (Vec::new(), Vec::new(), [None, None]);
        for number in 0..fragments {
            let range = linux.allocate(&processor, 1).ok_or("no room")?;
            match number {
                1 => near_top[0] = Some(range),
                3 => near_top[1] = Some(range),
                _ if number % 2 == 1 => gone.push(range),
                _ => kept.push(range),
            }
        }
        for range in gone {
            linux.free(&processor, range);
        }
        Ok(Self {
            linux,
            processor,
            _kept: kept,
            near_top,
            failed: 0,
        })
    }

    fn free(&mut self, which: usize) {
        if let Some(range) = self.near_top.get_mut(which).and_then(Option::take) {
            self.linux.free(&self.processor, range);
        }
    }

    fn run(&mut self, turns: u64, pages: u64) {
        for _ in 0..turns {
            self.free(0);
            match self.linux.allocate(&self.processor, black_box(pages)) {
                Some(range) => self.linux.free(&self.processor, range),
                None => self.failed += 1,
            }
            // From the top once more, where the two places are the first that fit.
            self.free(1);
            self.near_top = [(); 2].map(|()| self.linux.allocate(&self.processor, 1));
            self.failed += u64::from(self.near_top.contains(&None));
        }
    }

    fn done(&self) -> Outcome<()> {
        match self.failed {
            0 => Ok(()),
            failed => Err(format!("{failed} requests of the peer failed").into()),
        }
    }
}

/// The buddy allocator with every second page freed.
struct BuddyShaped {
    frames: FrameAllocator<33>,
    failed: u64,
}

impl BuddyShaped {
    fn new(fragments: usize) -> Outcome<Self> {
        let mut frames = FrameAllocator::new();
        frames.add_frame(1, super::PEER_PAGES);
        let mut taken = Vec::new();
        for _ in 0..fragments {
            taken.push(frames.alloc(1).ok_or("no room")?);
        }
        for frame in taken.into_iter().skip(1).step_by(2) {
            frames.dealloc(frame, 1);
        }
        Ok(Self { frames, failed: 0 })
    }

    fn run(&mut self, turns: u64, pages: u64) {
        let Ok(pages) = usize::try_from(black_box(pages)) else {
            return;
        };
        for _ in 0..turns {
            match self.frames.alloc(pages) {
                Some(first) => self.frames.dealloc(first, pages),
                None => self.failed += 1,
            }
        }
    }

    fn done(&self) -> Outcome<()> {
        match self.failed {
            0 => Ok(()),
            failed => Err(format!("{failed} requests of the peer failed").into()),
        }
    }
}

/// rust-vmm's allocator with fragments at its low end, where it looks first.
struct FirstMatch {
    addresses: AddressAllocator,
    failed: u64,
}

impl FirstMatch {
    fn new(fragments: usize) -> Outcome<Self> {
        let mut addresses = AddressAllocator::new(PAGE, PAGE << 24).map_err(|error| format!("{error:?}"))?;
        // Every second page is taken: as it looks after the others were freed.
        for number in 0..fragments as u64 / 2 {
            let at = AllocPolicy::ExactMatch((2 + 2 * number) * PAGE);
            addresses
                .allocate(PAGE, PAGE, at)
                .map_err(|error| format!("{error:?}"))?;
        }
        Ok(Self { addresses, failed: 0 })
    }

    fn run(&mut self, turns: u64, pages: u64) {
        for _ in 0..turns {
            let len = black_box(pages) * PAGE;
            match self.addresses.allocate(len, PAGE, AllocPolicy::FirstMatch) {
                Ok(range) => drop(self.addresses.free(&range)),
                Err(_) => self.failed += 1,
            }
        }
    }

    fn done(&self) -> Outcome<()> {
        match self.failed {
            0 => Ok(()),
            failed => Err(format!("{failed} requests of the peer failed").into()),
        }
    }
}

/// A request whose limit lies above fragments of one page and nothing else; then the same a hundred thousand times
/// later.
fn failing_rows(quick: bool, mut ours: Ours, last: u64) -> Outcome<Vec<Row>> {
    // Everything below the fragments is taken as well.
    loop {
        let all = [1 << 18, 1 << 9, 2].into_iter().find_map(|pages| {
            let request = IovaRequest::pages(pages);
            ours.iovas.allocate(&mut ours.core, request).ok()
        });
        let Some(lease) = all else { break };
        if lease.range().last().raw() / PAGE > last + 1 {
            return Err("a lease reaches into the fragments".into());
        }
        ours.ring.add(Some(lease));
    }
    let mut scan = GapScan((0..500_000 / 2).map(|page| (2 * page, 1)).collect());
    let mut served = 0_u64;
    let mut fail = |turns: u64| {
        for _ in 0..turns {
            let request = black_box(IovaRequest::pages(2));
            served += u64::from(ours.iovas.allocate(&mut ours.core, request).is_ok());
        }
    };
    let case = "failing request, 2 pages, 250000 gaps of one";
    let batches = |count: usize, fail: &mut dyn FnMut(u64)| {
        let mut times: Vec<f64> = (0..count)
            .map(|_| {
                let start = Instant::now();
                fail(100);
                start.elapsed().as_secs_f64() * 1e7
            })
            .collect();
        median(&mut times)
    };
    let early = batches(20, &mut fail);
    fail(100_000);
    let late = batches(20, &mut fail);
    let comparison = compare(quick, &mut fail, &mut |turns| {
        for _ in 0..turns {
            black_box(scan.allocate_free(black_box(2)));
        }
    });
    let mut rows = singly(case, || fail(1)).to_vec();
    if served > 0 {
        return Err(format!("{served} requests were served from a full space").into());
    }
    rows.push(Row::at_most(
        "B4",
        case.to_owned(),
        &comparison,
        "BTreeMap gap scan",
        300.0,
    ));
    let again = format!("{case}, after 100000 failures");
    rows.push(Row {
        peer: early,
        peer_name: "the first failures",
        ratio: early / late,
        ..Row::alone("B4", again, late, None)
    });
    Ok(rows)
}

/// All addresses of 32 bits are in use, and there is space above: requests that must be below fail, requests that would
/// rather be below go above.
fn full_window(quick: bool) -> Outcome<Vec<Row>> {
    let mut ours = Ours::new()?;
    let limit = Iova::new((1 << 32) - 1);
    for pages in [1 << 18, 1 << 9, 1] {
        while let Ok(lease) = ours
            .iovas
            .allocate(&mut ours.core, IovaRequest::pages(pages).below(limit))
        {
            ours.ring.add(Some(lease));
        }
    }
    let mut rows = Vec::new();
    let mut wrong = 0_u64;
    let mut scan = GapScan(BTreeMap::from([(1 << 20, TOP - (1 << 20))]));
    let mut above = |turns: u64| {
        for _ in 0..turns {
            black_box(scan.allocate_free(black_box(1)));
        }
    };
    let Ours { iovas, core, .. } = &mut ours;
    let below = IovaRequest::pages(1).below(limit);
    let fails = compare(
        quick,
        &mut |turns| (0..turns).for_each(|_| wrong += 1 - pair(iovas, core, below)),
        &mut above,
    );
    let case = "failing request, 1 page, 32-bit window full".to_owned();
    rows.push(Row::at_most("B4", case, &fails, "BTreeMap, above the window", 300.0));
    for pages in [1, 513] {
        let request = IovaRequest::pages(pages).low_first();
        let lease = iovas.allocate(core, request)?;
        wrong += u64::from(lease.iova() <= limit);
        iovas.free(core, lease);
        let served = compare(
            quick,
            &mut |turns| (0..turns).for_each(|_| wrong += pair(iovas, core, request)),
            &mut above,
        );
        let case = format!("alloc + free, {pages} pages, low first, 32-bit window full");
        rows.push(Row::at_most("B4", case, &served, "BTreeMap, above the window", 1000.0));
    }
    if wrong > 0 {
        return Err(format!("{wrong} requests were not answered as they must be").into());
    }
    Ok(rows)
}
