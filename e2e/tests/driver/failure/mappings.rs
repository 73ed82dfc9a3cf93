//! Mapping, unmapping and flushing that fails at step N.

use std::cell::Cell;
use std::rc::Rc;

use iommu_types::{AddressSpace, HostPhys, Iova, PAGE_SIZE, Perms, Piece};
use vtd_driver::{DomainError, DomainOptions, FlushError, MapError, Reachable, SpaceError};

use super::{ABORT, BLOCK, DEAFEN, FAR, FRAME, Kind, SCATTERED, at_every_step, hard_and, scattered};
use crate::machine::range;

fn every(_: &Kind) -> bool {
    true
}

#[test]
pub(super) fn what_was_not_mapped_cannot_be_reached_or_is_named() {
    let phys = HostPhys::new(0xb000);
    at_every_step(every, &hard_and(&[FRAME, ABORT]), |bench, moments| {
        let (a, nic) = (&bench.a, &bench.nic);
        moments.arm();
        let result = a.map(FAR, phys, PAGE_SIZE, Perms::READ);
        moments.mend();
        match result {
            Ok(()) => {
                bench.judge(None);
                assert_eq!(bench.reach(nic, FAR), Some(phys));
            }
            Err(MapError::Unconfirmed(unconfirmed)) => {
                bench.judge(Some(unconfirmed));
                let (domain, range) = (a.id(), range(FAR.raw(), PAGE_SIZE));
                assert_eq!(unconfirmed.reachable, Reachable::Range { domain, range });
            }
            Err(error) => {
                bench.judge(None);
                assert_eq!(bench.reach(nic, FAR), None, "{error}");
            }
        }
        if bench.is_good() && result.is_err() {
            a.map(FAR, phys, PAGE_SIZE, Perms::READ).expect("works again");
            bench.judge(None);
            assert_eq!(bench.reach(nic, FAR), Some(phys));
        }
        result.is_ok()
    });
}

#[test]
fn pieces_that_were_not_mapped_cannot_be_reached_or_are_named() {
    let pieces: Vec<Piece> = (0..SCATTERED)
        .map(|number| Piece {
            offset: number * 2 * PAGE_SIZE,
            phys: HostPhys::new(0x200_0000 + number * 3 * PAGE_SIZE),
            len: PAGE_SIZE,
        })
        .collect();
    let base = scattered(0).first();
    at_every_step(every, &hard_and(&[FRAME, ABORT]), |bench, moments| {
        let (a, nic) = (&bench.a, &bench.nic);
        moments.arm();
        let result = a.map_pieces(base, &pieces, Perms::READ);
        moments.mend();
        let done = match &result {
            Ok(()) => pieces.len(),
            Err((done, _)) => *done,
        };
        let unconfirmed = match result {
            Err((_, SpaceError::Map(MapError::Unconfirmed(unconfirmed)))) => Some(unconfirmed),
            _ => None,
        };
        bench.judge(unconfirmed);
        for (number, piece) in (0..).zip(&pieces).filter(|(number, _)| *number < done) {
            let at = scattered(u64::try_from(number).expect("small")).first();
            assert_eq!(bench.reach(nic, at), Some(piece.phys));
        }
        if bench.is_good() && result.is_err() {
            let left = pieces.get(done..).expect("a tail");
            a.map_pieces(base, left, Perms::READ).expect("works again");
            bench.judge(None);
        }
        result.is_ok()
    });
}

/// A lease that tells when it is dropped.
#[derive(Debug)]
struct Lease(Rc<Cell<bool>>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

#[test]
pub(super) fn what_was_not_flushed_keeps_lease_and_tables() {
    let (base, len) = BLOCK;
    at_every_step(every, &hard_and(&[DEAFEN, ABORT]), |bench, moments| {
        let (a, nic) = (&bench.a, &bench.nic);
        a.map(Iova::new(base), HostPhys::new(0x100_0000), len, Perms::READ)
            .expect("mapped");
        let reach = || bench.reach(nic, Iova::new(base + 0x3000));
        assert!(reach().is_some());
        let dropped = Rc::new(Cell::new(false));
        let live = || bench.machine.memory.live_frames().len();
        let frames = live();
        moments.arm();
        let pending = a
            .unmap(range(base, len), Lease(dropped.clone()))
            .expect("takes no memory");
        let result = a.flush(pending);
        moments.mend();
        match result {
            Ok(lease) => {
                bench.judge(None);
                assert_eq!((reach(), live()), (None, frames - 1));
                drop(lease);
                true
            }
            Err((FlushError::Unconfirmed(unconfirmed), pending)) => {
                bench.judge(Some(unconfirmed));
                let (domain, range) = (a.id(), range(base, len));
                assert_eq!(unconfirmed.reachable, Reachable::Range { domain, range });
                assert_eq!((live(), dropped.get()), (frames, false));
                if bench.is_good() {
                    let lease = a.flush(pending).expect("works again");
                    bench.judge(None);
                    assert_eq!((reach(), live()), (None, frames - 1));
                    drop(lease);
                } else {
                    let (_, pending) = a.flush(pending).expect_err("nothing can be confirmed any more");
                    drop(pending);
                    assert_eq!(
                        (live(), dropped.get()),
                        (frames, false),
                        "a dropped token gives nothing back"
                    );
                }
                false
            }
            Err((error, _)) => panic!("{error}"),
        }
    });
}

#[test]
fn tables_that_make_place_are_kept_until_the_unit_left_them() {
    let (base, len) = BLOCK;
    at_every_step(every, &hard_and(&[DEAFEN, ABORT]), |bench, moments| {
        let (a, nic) = (&bench.a, &bench.nic);
        let page = range(base + 0x3000, PAGE_SIZE);
        a.map(page.first(), HostPhys::new(0x100_0000), PAGE_SIZE, Perms::READ)
            .expect("mapped");
        assert!(bench.reach(nic, page.first()).is_some());
        let pending = a.unmap(page, ()).expect("mapped");
        a.flush(pending).expect("confirmed");
        let live = || bench.machine.memory.live_frames().len();
        let frames = live();
        moments.arm();
        let pending = a.prune(range(base, len), ()).expect("its own");
        let result = a.flush(pending);
        moments.mend();
        match result {
            Ok(()) => {
                assert_eq!(live(), frames - 1);
                bench.judge(None);
                true
            }
            Err((FlushError::Unconfirmed(unconfirmed), pending)) => {
                assert_eq!(live(), frames);
                bench.judge(Some(unconfirmed));
                if bench.is_good() {
                    a.flush(pending).expect("works again");
                    assert_eq!(live(), frames - 1);
                }
                false
            }
            Err((error, _)) => panic!("{error}"),
        }
    });
}

#[test]
pub(super) fn a_flush_queue_that_was_not_flushed_keeps_every_token() {
    // A few are flushed by page, more by domain.
    for count in [3, SCATTERED] {
        at_every_step(every, &hard_and(&[DEAFEN, ABORT]), |bench, moments| {
            let (a, nic) = (&bench.a, &bench.nic);
            for number in 0..count {
                let phys = HostPhys::new(0x100_0000 + number * PAGE_SIZE);
                let at = scattered(number).first();
                a.map(at, phys, PAGE_SIZE, Perms::READ).expect("mapped");
                assert_eq!(bench.reach(nic, at), Some(phys));
            }
            let tokens: Vec<_> = (0..count)
                .map(|number| a.unmap(scattered(number), number).expect("mapped"))
                .collect();
            moments.arm();
            let result = a.flush_all(tokens);
            moments.mend();
            let all: Vec<u64> = (0..count).collect();
            match result {
                Ok(leases) => {
                    bench.judge(None);
                    assert_eq!(leases, all);
                    true
                }
                Err((FlushError::Unconfirmed(unconfirmed), tokens)) => {
                    bench.judge(Some(unconfirmed));
                    let range = range(scattered(0).first().raw(), (2 * count - 1) * PAGE_SIZE);
                    let domain = a.id();
                    assert_eq!(unconfirmed.reachable, Reachable::Range { domain, range });
                    if bench.is_good() {
                        assert_eq!(a.flush_all(tokens).expect("works again"), all);
                        bench.judge(None);
                    } else {
                        let (_, tokens) = a.flush_all(tokens).expect_err("nothing can be confirmed any more");
                        assert_eq!(tokens.len(), all.len());
                    }
                    false
                }
                Err((error, _)) => panic!("{error}"),
            }
        });
    }
}

#[test]
pub(super) fn a_domain_that_was_not_created_takes_no_identifier_and_one_not_destroyed_keeps_its_own() {
    at_every_step(every, &hard_and(&[FRAME, ABORT]), |bench, moments| {
        let live = || bench.machine.memory.live_frames().len();
        let before = live();
        let options = DomainOptions {
            stage: bench.kind.stage,
            ..DomainOptions::default()
        };
        moments.arm();
        let domain = match bench.unit.create_domain(options) {
            Ok(domain) => domain,
            Err(error) => {
                assert!(matches!(error, DomainError::OutOfFrames(_)), "{error}");
                assert_eq!(live(), before);
                moments.mend();
                return false;
            }
        };
        let id = domain.id();
        let result = domain.destroy();
        moments.mend();
        bench.judge(None);
        let other = bench.unit.create_domain(options).expect("a domain");
        match result {
            Ok(()) => {
                assert_eq!(live(), before + 1);
                true
            }
            Err(kept) => {
                assert_eq!((live(), kept.domain.id()), (before + 2, id));
                assert_ne!(other.id(), id, "the identifier is not anybody else's");
                if bench.is_good() {
                    kept.domain.destroy().expect("works again");
                    assert_eq!(live(), before + 1);
                }
                false
            }
        }
    });
}
