//! Bring-up that fails at step N: the unit comes back, and can be tried again.

use iommu_types::{Access, HostPhys, Iova, PAGE_SIZE, Perms};
use vtd_driver::{
    Blocked, DomainOptions, Found, InterruptOptions, Requester, ReserveError, Translating, Unit, UnitError,
};

use super::{A, ABORT, AT, FAILURES, FRAME, Failure, Kind, MAX_STEPS, Moments, RESERVED, hard_and, kinds, options};
use super::{regions, up};
use crate::machine::{Machine, source};

type Of<'m, S> = Unit<&'m Machine, &'m Machine, S>;

/// How far bring-up came.
enum Reached<'m> {
    Nothing(UnitError),
    Found(Box<Of<'m, Found>>, UnitError),
    Blocked(Box<Of<'m, Blocked>>, Option<UnitError>, Option<ReserveError>),
    Translating(Of<'m, Translating>),
}

fn look(machine: &Machine) -> Reached<'_> {
    match Unit::found(machine, machine, options(machine)) {
        Ok(unit) => take_over(unit),
        Err(cause) => Reached::Nothing(cause),
    }
}

fn take_over(unit: Of<'_, Found>) -> Reached<'_> {
    match unit.take_over() {
        Ok(unit) => enable(unit),
        Err(error) => Reached::Found(error.unit, error.cause),
    }
}

fn enable(mut unit: Of<'_, Blocked>) -> Reached<'_> {
    if let Some(error) = regions().iter().find_map(|region| unit.reserve(region).err()) {
        return Reached::Blocked(Box::new(unit), None, Some(error));
    }
    match unit.enable() {
        Ok(unit) => Reached::Translating(unit),
        Err(error) => Reached::Blocked(error.unit, Some(error.cause), None),
    }
}

/// Somebody had it before, and left everything on.
fn left_by_somebody(machine: &Machine, kind: &Kind, nic: &Requester) {
    let old = up(machine);
    let options = DomainOptions {
        stage: kind.stage,
        ..DomainOptions::default()
    };
    let domain = old.create_domain(options).expect("a domain");
    domain.map(AT, A, PAGE_SIZE, Perms::READ).expect("mapped");
    old.attach(nic, &domain).expect("attached");
    if kind.has_queue() {
        old.start_interrupt_remapping(InterruptOptions::default()).expect("on");
    }
    assert_eq!(machine.dma(nic.rid, AT, Access::Read), Ok(A));
}

/// Nothing of the previous owner's is left, and firmware has its memory.
fn judge(machine: &Machine, nic: &Requester, context: &str) {
    let usb = source("00:14.0");
    assert!(machine.dma(nic.rid, AT, Access::Read).is_err(), "{context}");
    for base in RESERVED {
        assert!(
            machine.dma(nic.rid, Iova::new(base), Access::Read).is_err(),
            "{context}"
        );
        let reached = machine.dma(usb, Iova::new(base), Access::Read);
        assert_eq!(reached, Ok(HostPhys::new(base)), "{context}");
    }
}

#[test]
fn a_unit_that_does_not_come_up_comes_back_and_can_be_tried_again() {
    let mut felt: Vec<Failure> = Vec::new();
    let cases = kinds()
        .into_iter()
        .flat_map(|kind| FAILURES.map(|failure| (kind, failure)));
    for (kind, failure) in cases {
        for step in 0..=MAX_STEPS {
            assert!(step < MAX_STEPS, "{failure:?}: bring-up does not end");
            let context = format!("{failure:?} at {step} in {:?} mode, {:?} stage", kind.mode, kind.stage);
            let machine = Machine::new(kind.config).in_mode(kind.mode);
            let nic = Requester::new(source("02:00.0"));
            left_by_somebody(&machine, &kind, &nic);
            let moments = Moments::new(&machine, failure, step);
            moments.arm();
            let first = look(&machine);
            moments.mend();
            if !matches!(first, Reached::Translating(_)) && !felt.contains(&failure) {
                felt.push(failure);
            }
            // From where it stopped, if the unit is good; from the start otherwise.
            let second = match first {
                Reached::Found(unit, _) => take_over(*unit),
                Reached::Blocked(unit, ..) if unit.health().is_good() => enable(*unit),
                Reached::Blocked(unit, ..) => {
                    // Whatever is tried with it: it says so, and does not translate by mistake.
                    assert!(unit.enable().is_err(), "{context}");
                    look(&machine)
                }
                Reached::Nothing(_) => look(&machine),
                done @ Reached::Translating(_) => done,
            };
            let unit = match second {
                Reached::Translating(unit) => unit,
                Reached::Nothing(cause) | Reached::Found(_, cause) => panic!("{context}: {cause}"),
                Reached::Blocked(_, enabling, reserving) => panic!("{context}: {enabling:?} {reserving:?}"),
            };
            assert!(unit.health().is_good(), "{context}");
            judge(&machine, &nic, &context);
            assert_eq!(machine.memory.violations(), [], "{context}");
            if !moments.fired() {
                break;
            }
        }
    }
    felt.sort_unstable();
    assert_eq!(felt, hard_and(&[FRAME, ABORT]), "what bring-up feels");
}
