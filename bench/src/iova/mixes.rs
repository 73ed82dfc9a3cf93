//! B1, B2 and B3 against the Linux-shaped peer.

use std::hint::black_box;

use super::linux::Linux;
use super::sides::{LockedBuddy, Side, disjoint, ours};
use super::{Outcome, Ring, mix};
use crate::pair::compare;
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
    for live in [256, 4096] {
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
    for (long, size) in [(64, 64), (1024, 64), (16_384, 16), (16_384, 64)] {
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
        if size == 64 {
            flat.push(against_linux.ours_ns);
        }
    }
    if let (Some(&first), Some(&last)) = (flat.first(), flat.last()) {
        let case = "(a) slope, 16384 against 64 long-lived".to_owned();
        rows.push(Row::counted("B3", case, [last / first, 1.5], "the target", 1.5));
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
