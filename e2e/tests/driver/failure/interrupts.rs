//! Interrupt remapping that fails at step N.

use vtd_driver::{InterruptError, InterruptOptions, InterruptSource, InterruptTarget, Reachable};
use vtd_model::Interrupt;

use super::{ABORT, FRAME, Kind, at_every_step, hard_and};

#[test]
fn interrupt_remapping_that_did_not_come_up_lets_nothing_through() {
    at_every_step(Kind::has_queue, &hard_and(&[FRAME, ABORT]), |bench, moments| {
        moments.arm();
        let result = bench.unit.start_interrupt_remapping(InterruptOptions::default());
        moments.mend();
        bench.judge(None);
        let source = InterruptSource::Requester(bench.nic.rid);
        match result {
            Ok(()) => {}
            Err(error) => {
                let refused = bench.unit.allocate_interrupts(1, source);
                assert_eq!(refused, Err(InterruptError::NotOn), "{error}");
                if !bench.is_good() {
                    return false;
                }
                bench
                    .unit
                    .start_interrupt_remapping(InterruptOptions::default())
                    .expect("works again");
            }
        }
        // No entry is present, and compatibility format is blocked.
        for address in [0xfee0_0010, 0xfee0_1000] {
            assert!(bench.machine.interrupt(bench.nic.rid, address, 0x31).is_err());
        }
        result.is_ok()
    });
}

#[test]
pub(super) fn an_interrupt_that_was_not_moved_goes_where_it_went_or_is_named() {
    at_every_step(Kind::has_queue, &hard_and(&[ABORT]), |bench, moments| {
        let (unit, nic) = (&bench.unit, bench.nic.rid);
        unit.start_interrupt_remapping(InterruptOptions::default()).expect("on");
        let block = unit
            .allocate_interrupts(1, InterruptSource::Requester(nic))
            .expect("an entry");
        let message = block.message(0).expect("one");
        let arrives = || match bench.machine.interrupt(nic, message.address, message.data) {
            Ok(Interrupt::Remapped(arrived)) => Some(arrived.vector),
            _ => None,
        };
        unit.set_interrupt(&block, 0, Some(InterruptTarget::fixed(0x41, 1)))
            .expect("set");
        assert_eq!(arrives(), Some(0x41));
        moments.arm();
        let target = Some(InterruptTarget::fixed(0x52, 1));
        let moved = unit.set_interrupt(&block, 0, target);
        let (block, released) = match moved {
            Ok(()) => match unit.release_interrupts(block) {
                Ok(()) => (None, Some(Ok(()))),
                Err((error, block)) => (Some(block), Some(Err(error))),
            },
            Err(_) => (Some(block), None),
        };
        moments.mend();
        bench.judge(None);
        let reachable = Reachable::Interrupts { first: 0, count: 1 };
        match (moved, released, block) {
            (Ok(()), Some(Ok(())), None) => {
                assert_eq!(arrives(), None);
                true
            }
            (Err(InterruptError::Unconfirmed(unconfirmed)), None, Some(block)) => {
                assert_eq!(unconfirmed.reachable, reachable);
                assert!(matches!(arrives(), Some(0x41 | 0x52)));
                if bench.is_good() {
                    unit.set_interrupt(&block, 0, target).expect("works again");
                    assert_eq!(arrives(), Some(0x52));
                }
                false
            }
            (Ok(()), Some(Err(InterruptError::Unconfirmed(unconfirmed))), Some(block)) => {
                assert_eq!(unconfirmed.reachable, reachable);
                assert!(matches!(arrives(), None | Some(0x52)));
                // The entries are not anybody else's.
                let next = unit
                    .allocate_interrupts(1, InterruptSource::Requester(nic))
                    .expect("another");
                assert_ne!(next.first(), block.first());
                if bench.is_good() {
                    unit.release_interrupts(block).expect("works again");
                    assert_eq!(arrives(), None);
                }
                false
            }
            other => panic!("{other:?}"),
        }
    });
}
