//! Failure at step N, for every N of every operation, on units of every kind: no page to be had, a unit that stops
//! answering, one that vanishes, descriptors and waits that arrive spoilt or not at all, devices that do not answer,
//! completions that nobody waits for. Each time the hardware comes back afterwards and finishes what it was told, late.
//!
//! What devices then reach is compared with what the tables say, as the testkit's oracle reads them. They may differ
//! only by what the driver's error admits. If the driver calls the unit good, the same operation has to succeed next;
//! if not, nothing may change any more.

mod bring_up;
mod devices;
mod dma_api;
mod interrupts;
mod mappings;
mod memory_map;
mod noticed;

use std::cell::{Cell, RefCell};

use iommu_types::{Access, AddrRange, DomainId, HostPhys, Iova, PAGE_SIZE, Perms, SourceId};
use vtd_driver::{
    AtsListing, DeviceTlb, DomainOptions, Reachable, Requester, ReservedRegion, Stage, TableMode, Timeouts,
    Translating, Unconfirmed, Unit, UnitOptions,
};
use vtd_model::{Profile, UnitConfig};

use crate::machine::{Break, Machine, TestDomain, range, source};

/// What fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Failure {
    Frame,
    Hardware(Break),
}

const FAILURES: [Failure; 11] = [
    Failure::Frame,
    Failure::Hardware(Break::Stop),
    Failure::Hardware(Break::Vanish),
    Failure::Hardware(Break::Spoil),
    Failure::Hardware(Break::SpoilWait),
    Failure::Hardware(Break::LoseWait),
    Failure::Hardware(Break::Stray),
    Failure::Hardware(Break::Deafen),
    Failure::Hardware(Break::Miss),
    Failure::Hardware(Break::Abort),
    Failure::Hardware(Break::AbortOnce),
];

/// What every operation feels that has the unit confirm something.
const HARD: [Failure; 5] = [
    Failure::Hardware(Break::Stop),
    Failure::Hardware(Break::Vanish),
    Failure::Hardware(Break::Spoil),
    Failure::Hardware(Break::SpoilWait),
    Failure::Hardware(Break::LoseWait),
];

/// [`HARD`], and others.
fn hard_and(others: &[Failure]) -> Vec<Failure> {
    let mut all: Vec<Failure> = HARD.into_iter().chain(others.iter().copied()).collect();
    all.sort_unstable();
    all
}

const FRAME: Failure = Failure::Frame;
const DEAFEN: Failure = Failure::Hardware(Break::Deafen);
const ABORT: Failure = Failure::Hardware(Break::Abort);

impl Failure {
    /// Whether the driver has to cope with it without a word.
    fn is_harmless(self) -> bool {
        use Break::{AbortOnce, Miss, Stray};
        matches!(self, Self::Hardware(Stray | Miss | AbortOnce))
    }

    /// Whether the unit is as good as before when it is over.
    fn leaves_the_unit_good(self) -> bool {
        self.is_harmless() || matches!(self, Self::Frame | Self::Hardware(Break::Deafen | Break::Abort))
    }
}

/// More steps than any operation has.
const MAX_STEPS: u64 = 2_000;
/// Enough for a unit that works, in nanoseconds of the machine.
const PATIENCE: u64 = 200_000;

/// A kind of unit, and how it is driven.
#[derive(Clone, Copy, Debug)]
struct Kind {
    config: UnitConfig,
    mode: TableMode,
    stage: Stage,
    /// `nic` keeps translations of its own.
    ats: bool,
}

impl Kind {
    fn has_queue(&self) -> bool {
        self.config.extended_capability().qi()
    }

    fn is_scalable(&self) -> bool {
        self.mode == TableMode::Scalable
    }

    fn can_nest(&self) -> bool {
        self.is_scalable() && self.stage == Stage::Second
    }
}

/// Units that are told different things.
fn kinds() -> Vec<Kind> {
    let plain = UnitConfig::builder().profile(Profile::Silicon);
    let legacy = plain.device_tlb(true);
    let scalable = legacy
        .scalable_mode(true)
        .scalable_second_stage(true)
        .scalable_walk_coherency(true)
        .first_stage(true)
        .nested(true)
        .pasid_bits(Some(20));
    let registers = plain
        .queued_invalidation(false)
        .interrupt_remapping(false)
        .extended_interrupts(false);
    let (old, new) = (TableMode::Legacy, TableMode::Scalable);
    [
        (legacy, old, Stage::Second, false),
        (legacy.caching_mode(true), old, Stage::Second, true),
        (
            legacy.write_buffer_flush(true).coherent(false),
            old,
            Stage::Second,
            false,
        ),
        (registers, old, Stage::Second, false),
        (registers.caching_mode(true), old, Stage::Second, false),
        (scalable.caching_mode(true), new, Stage::Second, false),
        (scalable, new, Stage::Second, true),
        (scalable.scalable_walk_coherency(false), new, Stage::First, false),
        (scalable, new, Stage::First, true),
    ]
    .map(|(config, mode, stage, ats)| Kind {
        config: config.build().expect("valid"),
        mode,
        stage,
        ats,
    })
    .into()
}

/// A machine at work: `nic` is in domain `a`, `disk` nowhere, and firmware has two regions for `usb`. Address 1000h
/// leads to 9000h in `a`, to a000h in `b`.
struct Bench<'m> {
    machine: &'m Machine,
    kind: Kind,
    unit: Unit<&'m Machine, &'m Machine, Translating>,
    a: TestDomain<'m>,
    b: TestDomain<'m>,
    nic: Requester,
    disk: Requester,
    usb: Requester,
    /// Behind a bridge to conventional PCI: its requests carry two IDs, of two buses.
    bridged: Requester,
    /// Which device is, or shall be, in which domain.
    members: RefCell<Vec<(Requester, DomainId)>>,
}

const AT: Iova = Iova::new(0x1000);
const A: HostPhys = HostPhys::new(0x9000);
const B: HostPhys = HostPhys::new(0xa000);
/// What firmware keeps for `usb`.
const RESERVED: [u64; 2] = [0x50_0000, 0x6000_0000];
/// Another table of every level.
const FAR: Iova = Iova::new(0x7f_c020_3000);
/// All that a table translates: its frame waits for the flush too.
const BLOCK: (u64, u64) = (0x20_0000, 0x20_0000);
/// Single pages with pages between them that are not mapped.
const SCATTERED: u64 = 12;

/// In two tables.
fn scattered(number: u64) -> AddrRange<Iova> {
    range(0x101f_0000 + number * 2 * PAGE_SIZE, PAGE_SIZE)
}

/// Addresses that matter to any of the tests.
fn places() -> impl Iterator<Item = Iova> {
    let single = [AT, FAR, Iova::new(BLOCK.0), Iova::new(BLOCK.0 + 0x3000)];
    let reserved = RESERVED.map(Iova::new);
    let scattered = (0..SCATTERED).map(|number| scattered(number).first());
    single.into_iter().chain(reserved).chain(scattered)
}

/// A function that keeps translations, and has to be told twice.
const FUNCTION: DeviceTlb = DeviceTlb {
    queue_depth: 8,
    page_aligned: true,
    pasid: true,
    physical_function: None,
    listed: Some(AtsListing::RootPort),
    trusted: true,
    twice: true,
};

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

fn regions() -> [ReservedRegion; 2] {
    RESERVED.map(|base| ReservedRegion {
        range: AddrRange::from_base_len(HostPhys::new(base), PAGE_SIZE).expect("a page"),
        requesters: vec![Requester::new(source("00:14.0"))],
        relaxable: false,
    })
}

fn up(machine: &Machine) -> Unit<&Machine, &Machine, Translating> {
    let unit = Unit::found(machine, machine, options(machine)).expect("found");
    let mut unit = unit.take_over().map_err(|error| error.cause).expect("taken over");
    for region in regions() {
        unit.reserve(&region).expect("reserved");
    }
    unit.enable().map_err(|error| error.cause).expect("enabled")
}

/// The IDs of a device.
fn ids(device: &Requester) -> impl Iterator<Item = SourceId> {
    core::iter::once(device.rid).chain(device.aliases.iter().copied())
}

impl<'m> Bench<'m> {
    fn new(machine: &'m Machine, kind: Kind) -> Self {
        let unit = up(machine);
        // Small pages, so that tables come and go.
        let options = DomainOptions {
            superpages: false,
            stage: kind.stage,
            ..DomainOptions::default()
        };
        let [a, b] = [A, B].map(|phys| {
            let domain = unit.create_domain(options).expect("a domain");
            domain.map(AT, phys, PAGE_SIZE, Perms::READ).expect("mapped");
            domain
        });
        let [nic, disk, usb] = ["02:00.0", "03:00.0", "00:14.0"].map(|text| Requester::new(source(text)));
        if kind.ats {
            unit.attach_with_ats(&nic, &a, FUNCTION, || {}).expect("attached");
        } else {
            unit.attach(&nic, &a).expect("attached");
        }
        let bridged = Requester::with_aliases(source("05:00.0"), [source("06:00.0")]);
        let members = RefCell::new(vec![(nic.clone(), a.id())]);
        let bench = Self {
            machine,
            kind,
            unit,
            a,
            b,
            nic,
            disk,
            usb,
            bridged,
            members,
        };
        assert_eq!(bench.reach(&bench.nic, AT), Some(A));
        assert_eq!(bench.reach(&bench.disk, AT), None);
        for base in RESERVED {
            assert_eq!(bench.reach(&bench.usb, Iova::new(base)), Some(HostPhys::new(base)));
        }
        bench
    }

    /// What the device gets under its first or its only ID.
    fn reach(&self, device: &Requester, at: Iova) -> Option<HostPhys> {
        self.reach_as(device, device.rid, at)
    }

    /// What the device gets under one of its IDs, by the unit and by its own device-TLB if it has one.
    fn reach_as(&self, device: &Requester, id: SourceId, at: Iova) -> Option<HostPhys> {
        let by_the_unit = self.machine.dma(id, at, Access::Read).ok();
        if self.kind.ats && device.rid == self.nic.rid {
            return self.machine.dma_with_ats(device.rid, None, at).or(by_the_unit);
        }
        by_the_unit
    }

    /// As [`Self::reach`], if it is the same under each of its IDs.
    fn reach_as_all(&self, device: &Requester, at: Iova) -> Option<HostPhys> {
        let reached = self.reach(device, at);
        for id in ids(device) {
            assert_eq!(self.reach_as(device, id, at), reached, "{id} of {device:?}");
        }
        reached
    }

    /// The device is in the domain, or shall be.
    fn joins(&self, device: &Requester, domain: DomainId) {
        self.members.borrow_mut().push((device.clone(), domain));
    }

    fn everything_of(&self, device: &Requester, domain: &TestDomain<'_>) -> Reachable {
        let _ = self;
        Reachable::Requester {
            requester: device.rid,
            domain: Some(domain.id()),
        }
    }

    fn is_member(&self, device: &Requester, domain: DomainId) -> bool {
        let members = self.members.borrow();
        members
            .iter()
            .any(|(member, other)| member.rid == device.rid && *other == domain)
    }

    /// Whether the error said that `device` may get `phys` at `at`.
    fn is_admitted(&self, said: Reachable, device: &Requester, at: Iova, phys: HostPhys) -> bool {
        // Only `b` leads to what `b` leads to, and only `a` to the rest; the reserved regions are in every domain.
        let leads = |domain: DomainId| match phys {
            B => domain == self.b.id(),
            _ if RESERVED.contains(&phys.raw()) => true,
            _ => domain == self.a.id(),
        };
        match said {
            Reachable::Range { domain, range } => self.is_member(device, domain) && leads(domain) && range.contains(at),
            Reachable::Requester { requester, domain } => requester == device.rid && domain.is_some_and(leads),
            Reachable::Reserved { requester, domain } => {
                RESERVED.contains(&phys.raw()) && (requester == device.rid || self.is_member(device, domain))
            }
            other => panic!("nothing here may end as {other}"),
        }
    }

    /// Devices reach what the tables say, and beyond that only what the driver admits.
    fn judge(&self, unconfirmed: Option<Unconfirmed>) {
        for device in [&self.nic, &self.disk, &self.usb, &self.bridged] {
            for (id, at) in ids(device).flat_map(|id| places().map(move |at| (id, at))) {
                let tables = self.machine.oracle(id, at, Access::Read).ok();
                let reached = self.reach_as(device, id, at);
                let admitted = |phys| {
                    let said = unconfirmed.map(|unconfirmed| unconfirmed.reachable);
                    said.is_some_and(|said| self.is_admitted(said, device, at, phys))
                };
                match (reached, tables) {
                    _ if reached == tables => {}
                    (Some(phys), _) => assert!(
                        admitted(phys),
                        "{device:?} reaches {phys} at {at}, the tables say {tables:?}, the driver {unconfirmed:?}"
                    ),
                    // In caching mode the unit may keep an absence that it was not made to forget.
                    (None, Some(phys)) => assert!(
                        admitted(phys),
                        "{device:?} is kept from {phys} at {at}, the driver says {unconfirmed:?}"
                    ),
                    (None, None) => {}
                }
            }
        }
    }

    /// Whether the driver still relies on the unit.
    fn is_good(&self) -> bool {
        self.unit.health().is_good()
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

impl<'m> Moments<'m> {
    fn new(machine: &'m Machine, failure: Failure, step: u64) -> Self {
        Self {
            machine,
            failure,
            step,
            refused: Cell::new(0),
            fired: Cell::new(false),
        }
    }

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
        self.machine.mend();
        self.machine.memory.heal_allocations();
        self.machine.settle();
    }

    /// Whether the failure came between the two moments.
    fn fired(&self) -> bool {
        self.fired.get()
    }
}

/// Runs `operation` with every failure at every step on every unit that is `fit`, until it is over before the failure
/// comes. It tells whether it succeeded, and has judged by itself what it left behind.
///
/// What is `felt` is what made it fail anywhere.
fn at_every_step(fit: impl Fn(&Kind) -> bool, felt: &[Failure], operation: impl Fn(&Bench<'_>, &Moments<'_>) -> bool) {
    let mut seen: Vec<Failure> = Vec::new();
    for (kind, failure) in kinds()
        .into_iter()
        .filter(fit)
        .flat_map(|kind| FAILURES.map(|failure| (kind, failure)))
    {
        for step in 0..=MAX_STEPS {
            assert!(step < MAX_STEPS, "{failure:?}: the operation does not end");
            let machine = Machine::new(kind.config).in_mode(kind.mode);
            let moments = Moments::new(&machine, failure, step);
            let bench = Bench::new(&machine, kind);
            let succeeded = operation(&bench, &moments);
            let context = || format!("{failure:?} at {step} in {:?} mode, {:?} stage", kind.mode, kind.stage);
            assert_eq!(machine.memory.violations(), [], "{}", context());
            if !moments.fired() {
                assert!(succeeded, "failed by itself: {}", context());
                break;
            }
            if failure.is_harmless() {
                assert!(succeeded, "nobody's failure: {}", context());
            }
            if failure.leaves_the_unit_good() {
                assert!(bench.is_good(), "{}: {}", bench.unit.health(), context());
            }
            if !succeeded && !seen.contains(&failure) {
                seen.push(failure);
            }
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, felt, "what the operation feels");
}
