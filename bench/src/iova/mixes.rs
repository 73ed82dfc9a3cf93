//! B1, B2 and B3 against the Linux-shaped peer.

use std::hint::black_box;

use super::linux::Linux;
use super::sides::{LockedBuddy, Side, disjoint, ours};
use super::{LONG, Outcome, Ring, VmAllocator, mix};
use crate::pair::{compare, medians, timed};
use crate::row::Row;

/// A ring of live ranges on one allocator.
struct Turning<'a, S: Side> {
    side: &'a S,
    core: S::Core,
    ring: Ring<S::Range>,
    short: Ring<S::Range>,
    turn: usize,
    failed: u64,
}

impl<'a, S: Side> Turning<'a, S> {
    fn new(side: &'a S, live: usize, pages: impl Fn(usize) -> u64) -> Outcome<Self> {
        let mut turning = Self {
            side,
            core: side.core(),
            ring: Ring::new(),
            short: Ring::new(),
            turn: 0,
            failed: 0,
        };
        for turn in 0..live {
            let range = side.take(&mut turning.core, pages(turn)).ok_or("no room")?;
            turning.ring.add(Some(range));
        }
        Ok(turning)
    }

    #[inline]
    fn replace(&mut self, pages: u64) {
        let Self {
            side,
            core,
            ring,
            failed,
            ..
        } = self;
        ring.turn(|oldest| {
            if let Some(range) = oldest {
                side.give(core, range);
            }
            let range = side.take(core, pages);
            *failed += u64::from(range.is_none());
            range
        });
    }

    #[inline]
    fn replace_short(&mut self, pages: u64) {
        std::mem::swap(&mut self.ring, &mut self.short);
        self.replace(pages);
        std::mem::swap(&mut self.ring, &mut self.short);
    }

    fn judge(&self) -> Outcome<()> {
        if self.failed > 0 {
            return Err(format!("{} requests failed", self.failed).into());
        }
        disjoint::<S>(self.ring.live().chain(self.short.live()))
    }
}

/// B1: the ring of single pages.
pub(super) fn ring_rows(quick: bool) -> Outcome<Vec<Row>> {
    let (side, linux) = (ours()?, Linux::new(true));
    let mut rows = Vec::new();
    for live in super::RINGS {
        let mut ours = Turning::new(&side, live, |_| 1)?;
        let mut peer = Turning::new(&linux, live, |_| 1)?;
        let comparison = compare(
            quick,
            &mut |turns| (0..turns).for_each(|_| ours.replace(black_box(1))),
            &mut |turns| (0..turns).for_each(|_| peer.replace(black_box(1))),
        );
        ours.judge()?;
        peer.judge()?;
        let case = format!("free + alloc, 1 page, {live} live");
        rows.push(Row::at_least("B1", case, &comparison, "Linux-shaped", 2.5));
    }
    Ok(rows)
}

/// B2: the mix of sizes.
pub(super) fn mix_rows(quick: bool) -> Outcome<Vec<Row>> {
    let draws: Vec<u64> = mix().iter().map(|request| request.page_count()).collect();
    let pages = |turn: usize| draws[turn % draws.len()];
    let (side, linux) = (ours()?, Linux::new(true));
    let mut ours = Turning::new(&side, super::MIX_LIVE, pages)?;
    let mut peer = Turning::new(&linux, super::MIX_LIVE, pages)?;
    let comparison = compare(
        quick,
        &mut |turns| {
            for _ in 0..turns {
                ours.replace(pages(ours.turn));
                ours.turn += 1;
            }
        },
        &mut |turns| {
            for _ in 0..turns {
                peer.replace(pages(peer.turn));
                peer.turn += 1;
            }
        },
    );
    ours.judge()?;
    peer.judge()?;
    let case = "free + alloc, 1..256 pages, all aligned".to_owned();
    Ok(vec![Row::at_least("B2", case, &comparison, "Linux-shaped", 3.0)])
}

/// B3 (a): long-lived single pages and short-lived ones of 1 and 16 or 64 pages, all caches off.
pub(super) fn uncached_rows(quick: bool) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    let mut flat = Vec::new();
    let all = [16, 64].into_iter().flat_map(|size| LONG.map(|long| (long, size)));
    // The ends show it.
    for (long, size) in all.filter(|(long, _)| !quick || [64, 16_384].contains(long)) {
        let side = ours()?.without_stock();
        let (linux, buddy) = (Linux::new(false), LockedBuddy::new());
        let mut subject = two_rings(&side, long, size)?;
        let mut peer = two_rings(&linux, long, size)?;
        let mut other = two_rings(&buddy, long, size)?;
        let against_linux = compare(quick, &mut |n| subject.pairs(n, size), &mut |n| peer.pairs(n, size));
        let against_buddy = compare(quick, &mut |n| subject.pairs(n, size), &mut |n| other.pairs(n, size));
        subject.judge()?;
        peer.judge()?;
        other.judge()?;
        let case = format!("(a) no caches, two pairs, {long} long-lived, S {size}");
        let row = Row::at_most("B3", case.clone(), &against_linux, "Linux-shaped", 150.0);
        rows.push(match long {
            16_384 => row.and_at_least(&against_linux, 400.0),
            _ => row,
        });
        rows.push(Row::reported(
            "B3",
            case,
            &against_buddy,
            "buddy_system_allocator, locked",
        ));
        // The peer looks at every range, also to fill the space.
        if long == 256 || (!quick && long <= 4096) {
            let mut vm = vm_rings(long, size)?;
            let against_vm = compare(quick, &mut |n| subject.pairs(n, size), &mut |n| {
                vm_pairs(&mut vm, n, size)
            });
            let case = format!("(a) no caches, two pairs, {long} long-lived, S {size}");
            rows.push(Row::reported("B3", case, &against_vm, "vm-allocator"));
        }
        flat.push((long, against_linux.ours_ns));
        if long == 16_384 {
            if let Some(&(_, first)) = flat.first() {
                let case = format!("(a) slope, 16384 against 64 long-lived, S {size}");
                let slope = against_linux.ours_ns / first;
                rows.push(Row::counted("B3", case, [slope, 1.5], "the target", 1.5));
            }
            flat.clear();
        }
    }
    Ok(rows)
}

/// The same two rings of rust-vmm's allocator.
fn vm_rings(long: usize, size: u64) -> Outcome<[VmAllocator; 2]> {
    let mut vm = VmAllocator::new()?;
    for _ in 0..long {
        vm.add(1);
    }
    // The short-lived ring shares the space: only its slots are its own.
    let mut short = VmAllocator::new()?;
    std::mem::swap(&mut vm.addresses, &mut short.addresses);
    for turn in 0..64 {
        short.add(if turn % 2 == 0 { 1 } else { size });
    }
    std::mem::swap(&mut vm.addresses, &mut short.addresses);
    Ok([vm, short])
}

fn vm_pairs([vm, short]: &mut [VmAllocator; 2], turns: u64, size: u64) {
    for turn in 0..turns {
        vm.turn(1);
        std::mem::swap(&mut vm.addresses, &mut short.addresses);
        short.turn(if turn % 2 == 0 { 1 } else { size });
        std::mem::swap(&mut vm.addresses, &mut short.addresses);
    }
}

/// Whether the Linux-shaped peer costs what the original costs, before ratios to it mean anything: the table of the
/// reference, from a quiet to a loaded machine.
pub(super) fn peer_rows(quick: bool) -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    let cases: [(&str, bool, u64, usize, [f64; 2]); 7] = [
        ("cached", true, 1, 256, [19.9, 25.0]),
        ("cached", true, 1, 4096, [20.0, 28.0]),
        ("64 pages", true, 64, 256, [33.0, 94.0]),
        ("64 pages", true, 64, 4096, [84.0, 192.0]),
        ("tree only", false, 1, 256, [31.0, 79.0]),
        ("tree only", false, 1, 4096, [84.0, 176.0]),
        ("tree only", false, 1, 65_536, [96.0, 216.0]),
    ];
    for (name, cached, pages, live, known) in cases {
        let linux = Linux::new(cached);
        let mut peer = Turning::new(&linux, live, |_| pages)?;
        let times = medians(
            quick,
            &mut [&mut |turns| timed(|| (0..turns).for_each(|_| peer.replace(black_box(pages))))],
        );
        peer.judge()?;
        let ns = times.first().copied().unwrap_or(f64::NAN);
        let case = format!("the Linux-shaped peer itself, {name}, {live} live");
        rows.push(Row::stands_in("B1", case, ns, known));
    }
    let mixes: [(usize, [f64; 2]); 5] = [
        (64, [480.0, 860.0]),
        (256, [880.0, 2200.0]),
        (1024, [2700.0, 5700.0]),
        (4096, [11_300.0, 23_900.0]),
        (16_384, [65_800.0, 97_600.0]),
    ];
    for (long, known) in mixes {
        let linux = Linux::new(false);
        let mut peer = two_rings(&linux, long, 64)?;
        let times = medians(quick, &mut [&mut |turns| timed(|| peer.pairs(turns, 64))]);
        peer.judge()?;
        let ns = times.first().copied().unwrap_or(f64::NAN);
        let case = format!("the Linux-shaped peer itself, two pairs, {long} long-lived");
        rows.push(Row::stands_in("B3", case, ns, known));
    }
    Ok(rows)
}

fn two_rings<S: Side>(side: &S, long: usize, size: u64) -> Outcome<Turning<'_, S>> {
    let mut turning = Turning::new(side, long, |_| 1)?;
    for turn in 0..64 {
        let pages = if turn % 2 == 0 { 1 } else { size };
        let range = side.take(&mut turning.core, pages).ok_or("no room")?;
        turning.short.add(Some(range));
    }
    turning.judge()?;
    Ok(turning)
}

impl<S: Side> Turning<'_, S> {
    /// Each turn is a long-lived pair and a short-lived one.
    fn pairs(&mut self, turns: u64, size: u64) {
        for _ in 0..turns {
            self.replace(1);
            let pages = if self.turn.is_multiple_of(2) { 1 } else { size };
            self.replace_short(pages);
            self.turn += 1;
        }
    }
}
