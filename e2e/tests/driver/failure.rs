//! Failure at step N, for every N of every operation: no page to be had, a unit that stops answering, one that
//! vanishes, a descriptor that arrives spoilt, a completion that nobody waits for. Each time the hardware comes back
//! afterwards and finishes what it was told, late: no device may then reach what the error does not admit.

mod bring_up;

use std::cell::Cell;
use std::rc::Rc;

use iommu_types::{Access, HostPhys, Iova, PAGE_SIZE, Pasid, Perms};
use vtd_driver::{
    AtsListing, AttachError, DetachError, DeviceTlb, DomainError, DomainOptions, FlushError, InterruptError,
    InterruptOptions, InterruptSource, InterruptTarget, MapError, Reachable, Requester, TableMode, Timeouts,
    Translating, Unit, UnitOptions,
};
use vtd_model::{Interrupt, Profile, UnitConfig};

use crate::machine::{Break, Machine, TestDomain, range, source};

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Frame,
    Hardware(Break),
}

const FAILURES: [Failure; 5] = [
    Failure::Frame,
    Failure::Hardware(Break::Stop),
    Failure::Hardware(Break::Vanish),
    Failure::Hardware(Break::Spoil),
    Failure::Hardware(Break::Stray),
];

/// More steps than any operation has.
const MAX_STEPS: u64 = 2_000;
/// Enough for a unit that works, in nanoseconds of the machine.
const PATIENCE: u64 = 200_000;

/// Units that are told different things.
fn machines() -> [Machine; 4] {
    let legacy = UnitConfig::builder().profile(Profile::Silicon).device_tlb(true);
    let scalable = legacy
        .scalable_mode(true)
        .scalable_second_stage(true)
        .first_stage(true)
        .pasid_bits(Some(20));
    let configs = [
        (legacy, TableMode::Legacy),
        (legacy.caching_mode(true), TableMode::Legacy),
        (legacy.write_buffer_flush(true), TableMode::Legacy),
        (scalable.caching_mode(true), TableMode::Scalable),
    ];
    configs.map(|(config, mode)| Machine::new(config.build().expect("valid")).in_mode(mode))
}

/// A machine at work: `nic` is in domain `a`, `disk` nowhere. Address 1000h leads to 9000h in `a`, to a000h in `b`.
struct Bench<'m> {
    machine: &'m Machine,
    unit: Unit<&'m Machine, &'m Machine, Translating>,
    a: TestDomain<'m>,
    b: TestDomain<'m>,
    nic: Requester,
    disk: Requester,
}

const AT: Iova = Iova::new(0x1000);
const A: HostPhys = HostPhys::new(0x9000);
const B: HostPhys = HostPhys::new(0xa000);

fn options(machine: &Machine) -> UnitOptions {
    let timeouts = Timeouts {
        command_ns: PATIENCE,
        invalidation_ns: PATIENCE,
    };
    UnitOptions {
        timeouts,
        ..machine.options()
    }
}

fn up(machine: &Machine) -> Unit<&Machine, &Machine, Translating> {
    let unit = Unit::found(machine, machine, options(machine)).expect("found");
    let unit = unit.take_over().map_err(|error| error.cause).expect("taken over");
    unit.enable().map_err(|error| error.cause).expect("enabled")
}

fn bench(machine: &Machine) -> Bench<'_> {
    let unit = up(machine);
    // Small pages, so that tables come and go.
    let options = DomainOptions {
        superpages: false,
        ..DomainOptions::default()
    };
    let [a, b] = [A, B].map(|phys| {
        let domain = unit.create_domain(options).expect("a domain");
        domain.map(AT, phys, PAGE_SIZE, Perms::READ).expect("mapped");
        domain
    });
    let [nic, disk] = ["02:00.0", "03:00.0"].map(|text| Requester::new(source(text)));
    unit.attach(&nic, &a).expect("attached");
    assert_eq!(machine.dma(nic.rid, AT, Access::Read), Ok(A));
    assert!(machine.dma(disk.rid, AT, Access::Read).is_err());
    Bench {
        machine,
        unit,
        a,
        b,
        nic,
        disk,
    }
}

impl Bench<'_> {
    fn reach(&self, device: &Requester, at: Iova) -> Option<HostPhys> {
        self.machine.dma(device.rid, at, Access::Read).ok()
    }

    fn everything_of(&self, device: &Requester, domain: &TestDomain<'_>) -> Reachable {
        let _ = self;
        Reachable::Requester {
            requester: device.rid,
            domain: Some(domain.id()),
        }
    }
}

/// When to break and when to mend.
struct Moments<'m> {
    machine: &'m Machine,
    failure: Failure,
    step: u64,
    refused: Cell<u64>,
    fired: Cell<bool>,
}

impl Moments<'_> {
    /// From now on steps count.
    fn arm(&self) {
        self.refused.set(self.machine.memory.counters().refused);
        match self.failure {
            Failure::Frame => self.machine.memory.fail_allocation(self.step),
            Failure::Hardware(what) => self.machine.breaks.set(Some((self.step, what))),
        }
    }

    /// The hardware works again, and finishes what it was told.
    fn mend(&self) {
        self.fired.set(match self.failure {
            Failure::Frame => self.machine.memory.counters().refused > self.refused.get(),
            Failure::Hardware(_) => self.machine.breaks.get().is_none(),
        });
        self.machine.breaks.set(None);
        self.machine.frozen.set(false);
        self.machine.gone.set(false);
        self.machine.memory.heal_allocations();
        self.machine.settle();
    }

    /// Whether the failure came between the two moments.
    fn fired(&self) -> bool {
        self.fired.get()
    }
}

/// Runs `operation` with every failure at every step, until it is over before the failure comes. It tells whether it
/// succeeded, and has judged by itself what it left behind.
fn at_every_step(scalable_only: bool, operation: impl Fn(Bench<'_>, &Moments<'_>) -> bool) {
    for failure in FAILURES {
        for which in 0..machines().len() {
            for step in 0..=MAX_STEPS {
                assert!(step < MAX_STEPS, "{failure:?}: the operation does not end");
                let machine = machines().into_iter().nth(which).expect("counted");
                if scalable_only && machine.options().mode != TableMode::Scalable {
                    break;
                }
                let moments = Moments {
                    machine: &machine,
                    failure,
                    step,
                    refused: Cell::new(0),
                    fired: Cell::new(false),
                };
                let succeeded = operation(bench(&machine), &moments);
                assert_eq!(machine.memory.violations(), [], "{failure:?} at {step}");
                if !moments.fired() {
                    assert!(succeeded, "{failure:?}: failed by itself at {step}");
                    break;
                }
                if failure == Failure::Hardware(Break::Stray) {
                    assert!(succeeded, "a stray completion is nobody's failure");
                }
            }
        }
    }
}

#[test]
fn a_device_that_was_not_attached_is_where_it_was_or_in_doubt() {
    at_every_step(false, |bench, moments| {
        moments.arm();
        let result = bench.unit.attach(&bench.disk, &bench.b);
        moments.mend();
        let reached = bench.reach(&bench.disk, AT);
        assert_eq!(bench.reach(&bench.nic, AT), Some(A), "others are not concerned");
        match result {
            Ok(()) => assert_eq!(reached, Some(B)),
            Err(AttachError::Unconfirmed(unconfirmed)) => {
                assert_eq!(unconfirmed.reachable, bench.everything_of(&bench.disk, &bench.b));
                assert!(reached.is_none_or(|reached| reached == B));
                assert!(!bench.unit.health().is_good());
            }
            Err(error) => assert_eq!(reached, None, "{error}"),
        }
        result.is_ok()
    });
}

#[test]
fn a_device_that_was_not_detached_keeps_its_domain_from_being_destroyed() {
    at_every_step(false, |bench, moments| {
        moments.arm();
        let result = bench.unit.detach(&bench.nic);
        moments.mend();
        let reached = bench.reach(&bench.nic, AT);
        assert!(reached.is_none_or(|reached| reached == A));
        match result {
            Ok(()) => assert_eq!(reached, None),
            Err(DetachError::Unconfirmed(unconfirmed)) => {
                assert_eq!(unconfirmed.reachable, bench.everything_of(&bench.nic, &bench.a));
                assert!(bench.a.destroy().is_err(), "the domain is in use");
            }
            Err(error) => panic!("{error}"),
        }
        result.is_ok()
    });
}

#[test]
fn what_was_not_mapped_cannot_be_reached_or_is_named() {
    // Another table of every level.
    let (at, phys) = (Iova::new(0x7f_c020_3000), HostPhys::new(0xb000));
    at_every_step(false, |bench, moments| {
        moments.arm();
        let result = bench.a.map(at, phys, PAGE_SIZE, Perms::READ);
        moments.mend();
        let reached = bench.reach(&bench.nic, at);
        assert_eq!(bench.reach(&bench.nic, AT), Some(A), "other mappings are not concerned");
        match result {
            Ok(()) => assert_eq!(reached, Some(phys)),
            Err(MapError::Unconfirmed(unconfirmed)) => {
                let range = range(at.raw(), PAGE_SIZE);
                let domain = bench.a.id();
                assert_eq!(unconfirmed.reachable, Reachable::Range { domain, range });
                assert!(reached.is_none_or(|reached| reached == phys));
            }
            Err(error) => assert_eq!(reached, None, "{error}"),
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
fn what_was_not_flushed_keeps_lease_and_tables() {
    // All that a table translates: its frame waits for the flush too.
    let (base, len) = (0x20_0000, 0x20_0000);
    at_every_step(false, |bench, moments| {
        bench
            .a
            .map(Iova::new(base), HostPhys::new(0x100_0000), len, Perms::READ)
            .expect("mapped");
        let reach = || bench.reach(&bench.nic, Iova::new(base + 0x3000));
        assert!(reach().is_some());
        let dropped = Rc::new(Cell::new(false));
        let frames = bench.machine.memory.live_frames().len();
        moments.arm();
        let pending = bench
            .a
            .unmap(range(base, len), Lease(dropped.clone()))
            .expect("takes no memory");
        let result = bench.a.flush(pending);
        moments.mend();
        let live = bench.machine.memory.live_frames().len();
        match result {
            Ok(lease) => {
                assert_eq!((reach(), live), (None, frames - 1));
                drop(lease);
                true
            }
            Err((FlushError::Unconfirmed(unconfirmed), pending)) => {
                let (domain, range) = (bench.a.id(), range(base, len));
                assert_eq!(unconfirmed.reachable, Reachable::Range { domain, range });
                assert_eq!(live, frames);
                drop(pending);
                assert!(!dropped.get(), "a dropped token gives nothing back");
                false
            }
            Err((error, _)) => panic!("{error}"),
        }
    });
}

#[test]
fn a_flush_queue_that_was_not_flushed_keeps_every_token() {
    const PAGES: u64 = 12;
    at_every_step(false, |bench, moments| {
        let page = |number: u64| range(0x10_0000 + number * 2 * PAGE_SIZE, PAGE_SIZE);
        for number in 0..PAGES {
            let phys = HostPhys::new(0x100_0000 + number * PAGE_SIZE);
            bench
                .a
                .map(page(number).first(), phys, PAGE_SIZE, Perms::READ)
                .expect("mapped");
        }
        let tokens: Vec<_> = (0..PAGES)
            .map(|number| bench.a.unmap(page(number), number).expect("mapped"))
            .collect();
        moments.arm();
        let result = bench.a.flush_all(tokens);
        moments.mend();
        match result {
            Ok(leases) => {
                assert_eq!(leases, (0..PAGES).collect::<Vec<u64>>());
                assert!((0..PAGES).all(|number| bench.reach(&bench.nic, page(number).first()).is_none()));
                true
            }
            Err((FlushError::Unconfirmed(unconfirmed), tokens)) => {
                let range = range(0x10_0000, (2 * PAGES - 1) * PAGE_SIZE);
                let domain = bench.a.id();
                assert_eq!(unconfirmed.reachable, Reachable::Range { domain, range });
                assert_eq!(tokens.len(), 12);
                false
            }
            Err((error, _)) => panic!("{error}"),
        }
    });
}

#[test]
fn a_domain_that_was_not_created_takes_no_identifier_and_one_not_destroyed_keeps_its_own() {
    at_every_step(false, |bench, moments| {
        let before = bench.machine.memory.live_frames().len();
        moments.arm();
        let result = bench.unit.create_domain(DomainOptions::default());
        let domain = match result {
            Ok(domain) => domain,
            Err(error) => {
                assert!(matches!(error, DomainError::OutOfFrames(_)), "{error}");
                assert_eq!(bench.machine.memory.live_frames().len(), before);
                moments.mend();
                return false;
            }
        };
        let result = domain.destroy();
        moments.mend();
        let after = bench.machine.memory.live_frames().len();
        assert_eq!(after, if result.is_ok() { before } else { before + 1 });
        result.is_ok()
    });
}

#[test]
fn interrupt_remapping_that_did_not_come_up_lets_nothing_through() {
    at_every_step(false, |bench, moments| {
        moments.arm();
        let result = bench.unit.start_interrupt_remapping(InterruptOptions::default());
        moments.mend();
        match result {
            Ok(()) => {
                // No entry is present, and compatibility format is blocked.
                for address in [0xfee0_0010, 0xfee0_1000] {
                    assert!(bench.machine.interrupt(bench.nic.rid, address, 0x31).is_err());
                }
                true
            }
            Err(error) => {
                let source = InterruptSource::Requester(bench.nic.rid);
                let refused = bench.unit.allocate_interrupts(1, source);
                assert_eq!(refused, Err(InterruptError::NotOn), "{error}");
                false
            }
        }
    });
}

#[test]
fn an_interrupt_that_was_not_moved_goes_where_it_went_or_is_named() {
    at_every_step(false, |bench, moments| {
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
        let moved = unit.set_interrupt(&block, 0, Some(InterruptTarget::fixed(0x52, 1)));
        let released = moved.is_ok().then(|| unit.release_interrupts(block));
        moments.mend();
        let reachable = Reachable::Interrupts { first: 0, count: 1 };
        match (moved, released) {
            (Ok(()), Some(Ok(()))) => {
                assert_eq!(arrives(), None);
                true
            }
            (Err(InterruptError::Unconfirmed(unconfirmed)), None) => {
                assert_eq!(unconfirmed.reachable, reachable);
                assert!(matches!(arrives(), Some(0x41 | 0x52)));
                false
            }
            (Ok(()), Some(Err((InterruptError::Unconfirmed(unconfirmed), block)))) => {
                assert_eq!(unconfirmed.reachable, reachable);
                assert!(matches!(arrives(), None | Some(0x52)));
                assert_eq!(block.count(), 1);
                // The entries are not anybody else's.
                let next = unit
                    .allocate_interrupts(1, InterruptSource::Requester(nic))
                    .expect("another");
                assert_ne!(next.first(), block.first());
                false
            }
            other => panic!("{other:?}"),
        }
    });
}

const FUNCTION: DeviceTlb = DeviceTlb {
    queue_depth: 8,
    page_aligned: true,
    pasid: true,
    physical_function: None,
    listed: Some(AtsListing::RootPort),
    trusted: true,
    twice: true,
};

#[test]
fn ats_is_not_turned_on_for_a_device_that_was_not_attached() {
    at_every_step(false, |bench, moments| {
        let on = Cell::new(false);
        moments.arm();
        let result = bench
            .unit
            .attach_with_ats(&bench.disk, &bench.b, FUNCTION, || on.set(true));
        moments.mend();
        assert_eq!(on.get(), result.is_ok());
        let reached = bench.reach(&bench.disk, AT);
        match result {
            Ok(()) => assert_eq!(bench.machine.dma_with_ats(bench.disk.rid, None, AT), Some(B)),
            Err(AttachError::Unconfirmed(unconfirmed)) => {
                assert_eq!(unconfirmed.reachable, bench.everything_of(&bench.disk, &bench.b));
            }
            Err(error) => assert_eq!(reached, None, "{error}"),
        }
        result.is_ok()
    });
}

#[test]
fn a_function_with_ats_that_was_not_detached_counts_as_attached() {
    at_every_step(false, |bench, moments| {
        let disk = &bench.disk;
        bench
            .unit
            .attach_with_ats(disk, &bench.b, FUNCTION, || {})
            .expect("attached");
        assert_eq!(bench.machine.dma_with_ats(disk.rid, None, AT), Some(B));
        moments.arm();
        let result = bench.unit.detach_with_ats(disk, || {});
        moments.mend();
        match result {
            Ok(()) => {
                assert_eq!(bench.machine.dma_with_ats(disk.rid, None, AT), None);
                true
            }
            Err(DetachError::Unconfirmed(unconfirmed)) => {
                assert_eq!(unconfirmed.reachable, bench.everything_of(disk, &bench.b));
                assert!(bench.b.destroy().is_err(), "the domain is in use");
                false
            }
            Err(error) => panic!("{error}"),
        }
    });
}

#[test]
fn a_pasid_that_was_not_attached_or_detached_is_blocked_or_in_doubt() {
    let pasid = Pasid::new(0x105).expect("20 bits");
    at_every_step(true, |bench, moments| {
        let nic = bench.nic.rid;
        let reach = || bench.machine.dma_with_pasid(nic, pasid, AT).ok();
        moments.arm();
        let attached = bench.unit.attach_pasid(nic, pasid, &bench.b);
        let detached = attached.is_ok().then(|| bench.unit.detach_pasid(nic, pasid));
        moments.mend();
        assert!(reach().is_none_or(|reached| reached == B));
        match (attached, detached) {
            (Ok(()), Some(Ok(()))) => {
                assert_eq!(reach(), None);
                bench.b.destroy().expect("unused");
                true
            }
            (Ok(()), Some(Err(DetachError::Unconfirmed(unconfirmed))))
            | (Err(AttachError::Unconfirmed(unconfirmed)), None) => {
                assert_eq!(unconfirmed.reachable, bench.everything_of(&bench.nic, &bench.b));
                assert!(bench.b.destroy().is_err(), "the domain is in use");
                false
            }
            (Err(error), None) => {
                assert_eq!(reach(), None, "{error}");
                false
            }
            other => panic!("{other:?}"),
        }
    });
}

/// The tests above, with a driver that leaves something out: they have to notice.
mod noticed {
    use iommu_types::omission::{Step, leave_out};

    #[test]
    #[should_panic(expected = "assertion `left == right` failed")]
    fn tables_that_are_freed_before_the_flush_is_confirmed() {
        let _without = leave_out(Step::TablesWait);
        super::what_was_not_flushed_keeps_lease_and_tables();
    }

    #[test]
    #[should_panic(expected = "assertion `left == right` failed")]
    fn a_context_entry_that_stays_cached() {
        let _without = leave_out(Step::ContextForgotten);
        super::a_device_that_was_not_detached_keeps_its_domain_from_being_destroyed();
    }

    #[test]
    #[should_panic(expected = "assertion `left == right` failed")]
    fn ats_that_is_on_before_the_entry_is_valid() {
        let _without = leave_out(Step::AtsAfterEntry);
        super::ats_is_not_turned_on_for_a_device_that_was_not_attached();
    }

    #[test]
    #[should_panic]
    fn an_interrupt_entry_that_stays_cached() {
        let _without = leave_out(Step::InterruptForgotten);
        super::an_interrupt_that_was_not_moved_goes_where_it_went_or_is_named();
    }
}
