//! Bring-up that fails at step N: the unit comes back, and can be tried again.

use std::cell::Cell;

use iommu_types::{Access, PAGE_SIZE, Perms};
use vtd_driver::{DomainOptions, InterruptOptions, Requester, Unit};

use super::{A, AT, FAILURES, Failure, MAX_STEPS, Moments, machines, options, up};
use crate::machine::{Break, source};

#[test]
fn a_unit_that_does_not_come_up_comes_back_and_can_be_tried_again() {
    for failure in FAILURES {
        for which in 0..machines().len() {
            let mut failed = 0;
            for step in 0..=MAX_STEPS {
                assert!(step < MAX_STEPS, "{failure:?}: bring-up does not end");
                let machine = machines().into_iter().nth(which).expect("counted");
                // Somebody had it before, and left everything on.
                let nic = Requester::new(source("02:00.0"));
                {
                    let old = up(&machine);
                    let domain = old.create_domain(DomainOptions::default()).expect("a domain");
                    domain.map(AT, A, PAGE_SIZE, Perms::READ).expect("mapped");
                    old.attach(&nic, &domain).expect("attached");
                    old.start_interrupt_remapping(InterruptOptions::default()).expect("on");
                    assert_eq!(machine.dma(nic.rid, AT, Access::Read), Ok(A));
                }
                let moments = Moments {
                    machine: &machine,
                    failure,
                    step,
                    refused: Cell::new(0),
                    fired: Cell::new(false),
                };
                moments.arm();
                let found = Unit::found(&machine, &machine, options(&machine));
                let result = match found {
                    Ok(unit) => unit.take_over().map_err(|error| Some(error.unit)),
                    // Not there when it was looked at.
                    Err(_) => Err(None),
                };
                let enabled = match result {
                    Ok(unit) => unit.enable().map_err(|error| {
                        // Taken over and not translating: the unit itself says so, and its health too.
                        assert!(!error.unit.health().is_good(), "{}", error.cause);
                    }),
                    Err(unit) => {
                        failed += 1;
                        moments.mend();
                        let unit = match unit {
                            Some(unit) => *unit,
                            None => Unit::found(&machine, &machine, options(&machine)).expect("it is back"),
                        };
                        let unit = unit
                            .take_over()
                            .unwrap_or_else(|error| panic!("{failure:?} at {step}, machine {which}: {}", error.cause));
                        let unit = unit.enable().map_err(|error| error.cause).expect("enabled");
                        assert!(machine.dma(nic.rid, AT, Access::Read).is_err(), "{failure:?} at {step}");
                        assert!(unit.health().is_good());
                        continue;
                    }
                };
                moments.mend();
                match enabled {
                    // Whatever went wrong before: the old mappings are gone.
                    Ok(_unit) => assert!(machine.dma(nic.rid, AT, Access::Read).is_err(), "{failure:?} at {step}"),
                    Err(()) => failed += 1,
                }
                assert_eq!(machine.memory.violations(), []);
                if !moments.fired() {
                    break;
                }
            }
            let hard = matches!(failure, Failure::Frame | Failure::Hardware(Break::Stop | Break::Vanish));
            assert!(failed > 0 || !hard, "{failure:?} was never felt");
        }
    }
}
