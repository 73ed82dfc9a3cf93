//! Random sequences of operations on random units, with DMA of every device after each.

use std::collections::BTreeMap;

use iommu_types::{Access, AddrRange, HostPhys, Iova, PAGE_SIZE, Perms, SourceId};
use proptest::prelude::*;
use vtd_driver::{AttachError, DomainOptions, PendingFlush, Requester, Stage, TableMode, Translating, Unit};
use vtd_model::{Profile, UnitConfig};

use crate::machine::{Machine, TestDomain, range, source};

const DOMAINS: usize = 3;
const DEVICES: usize = 4;

/// Input pages around which mappings begin: low ones, around 2 MiB, around 1 GiB.
const BASES: [u64; 8] = [0x1, 0x2, 0x8, 0x1fe, 0x200, 0x400, 0x3_fffe, 0x4_0000];
/// Sizes of mappings in pages.
const SIZES: [u64; 6] = [1, 2, 3, 5, 512, 514];
/// Output pages: two that superpages can use, two that they cannot.
const TARGETS: [u64; 4] = [0x1000, 0x2000, 0x3001, 0x4033];

#[derive(Clone, Copy, Debug)]
enum Op {
    Attach {
        device: usize,
        domain: usize,
    },
    Detach {
        device: usize,
    },
    Map {
        domain: usize,
        base: usize,
        size: usize,
        target: usize,
        perms: Perms,
    },
    Unmap {
        domain: usize,
        which: usize,
    },
    Flush {
        domain: usize,
        which: usize,
    },
    FlushAll {
        domain: usize,
    },
    DrainFaults,
}

fn op() -> impl Strategy<Value = Op> {
    let domain = 0..DOMAINS;
    let device = 0..DEVICES;
    let perms = prop_oneof![Just(Perms::READ), Just(Perms::WRITE), Just(Perms::READ_WRITE)];
    prop_oneof![
        3 => (device.clone(), domain.clone()).prop_map(|(device, domain)| Op::Attach { device, domain }),
        2 => device.prop_map(|device| Op::Detach { device }),
        5 => (domain.clone(), 0..BASES.len(), 0..SIZES.len(), 0..TARGETS.len(), perms)
            .prop_map(|(domain, base, size, target, perms)| Op::Map { domain, base, size, target, perms }),
        4 => (domain.clone(), any::<usize>()).prop_map(|(domain, which)| Op::Unmap { domain, which }),
        3 => (domain.clone(), any::<usize>()).prop_map(|(domain, which)| Op::Flush { domain, which }),
        1 => domain.prop_map(|domain| Op::FlushAll { domain }),
        1 => Just(Op::DrainFaults),
    ]
}

/// A unit, the mode that it is driven in, and the stages of its domains.
#[derive(Clone, Copy, Debug)]
struct Setting {
    config: UnitConfig,
    mode: TableMode,
    stages: [Stage; DOMAINS],
}

/// Units that differ in everything that changes what the driver owes them.
fn setting() -> impl Strategy<Value = Setting> {
    let page_selective = prop_oneof![Just(None), Just(Some(0)), Just(Some(9)), Just(Some(18))];
    let levels = prop_oneof![
        Just((true, false, false)),
        Just((false, true, false)),
        Just((true, true, true))
    ];
    let flags = proptest::array::uniform8(any::<bool>());
    let stages = proptest::array::uniform3(prop_oneof![Just(Stage::Second), Just(Stage::First)]);
    (page_selective, levels, flags, stages).prop_map(|(selective, levels, flags, stages)| {
        let [
            caching,
            write_buffer,
            coherent,
            enhanced,
            superpages,
            snoop,
            queue,
            scalable,
        ] = flags;
        let queue = queue || scalable;
        let config = UnitConfig::builder()
            .profile(Profile::Silicon)
            .three_levels(levels.0)
            .four_levels(levels.1)
            .five_levels(levels.2)
            .domain_id_bits(4)
            .caching_mode(caching)
            .write_buffer_flush(write_buffer && !scalable)
            .coherent(coherent)
            .scalable_walk_coherency(scalable && coherent)
            .enhanced_root_pointer(enhanced)
            .pages_2m(superpages)
            .pages_1g(false)
            .snoop_control(snoop)
            .page_selective(selective)
            .queued_invalidation(queue)
            .interrupt_remapping(queue)
            .extended_interrupts(queue)
            .scalable_mode(scalable)
            .scalable_second_stage(scalable)
            .first_stage(scalable)
            .build()
            .expect("a possible unit");
        if scalable {
            let mode = TableMode::Scalable;
            Setting { config, mode, stages }
        } else {
            let (mode, stages) = (TableMode::Legacy, [Stage::Second; DOMAINS]);
            Setting { config, mode, stages }
        }
    })
}

#[derive(Clone, Copy, Debug)]
struct Mapping {
    pages: u64,
    target: u64,
    perms: Perms,
}

/// What the test knows of a domain.
#[derive(Default)]
struct Expected {
    mapped: BTreeMap<u64, Mapping>,
    pending: Vec<(u64, Mapping, PendingFlush<u64>)>,
}

impl Expected {
    fn overlaps(&self, first: u64, pages: u64) -> bool {
        let pending = self.pending.iter().map(|(first, mapping, _)| (*first, *mapping));
        let mapped = self.mapped.iter().map(|(first, mapping)| (*first, *mapping));
        let mut all = mapped.chain(pending);
        all.any(|(other, mapping)| first < other + mapping.pages && other < first + pages)
    }
}

fn through(first: u64, mapping: Mapping, page: u64, access: Access) -> Option<HostPhys> {
    let inside = (first..first + mapping.pages).contains(&page) && mapping.perms.allows(access);
    inside.then(|| HostPhys::new((mapping.target + page - first) * PAGE_SIZE))
}

struct World<'m> {
    machine: &'m Machine,
    unit: Unit<&'m Machine, &'m Machine, Translating>,
    domains: Vec<TestDomain<'m>>,
    stages: [Stage; DOMAINS],
    expected: Vec<Expected>,
    devices: Vec<Requester>,
    attached: [Option<usize>; DEVICES],
    /// Pages that hardware sees otherwise before anything was done.
    snooped: Vec<HostPhys>,
}

impl<'m> World<'m> {
    fn new(machine: &'m Machine, stages: [Stage; DOMAINS]) -> Self {
        let unit = machine.translating();
        let bridge = source("04:00.0");
        let mut snooped: Vec<HostPhys> = machine.memory.unseen_by_hardware().iter().map(|at| at.page()).collect();
        snooped.dedup();
        assert!(snooped.len() <= 1);
        Self {
            machine,
            domains: stages
                .map(|stage| {
                    let options = DomainOptions {
                        stage,
                        ..DomainOptions::default()
                    };
                    unit.create_domain(options).expect("a domain")
                })
                .into(),
            stages,
            unit,
            expected: (0..DOMAINS).map(|_| Expected::default()).collect(),
            devices: vec![
                Requester::new(source("02:00.0")),
                Requester::new(source("02:00.1")),
                // Two conventional devices behind a bridge whose ID their requests may carry.
                Requester::with_aliases(source("05:00.0"), [bridge, bridge]),
                Requester::with_aliases(source("05:01.0"), [bridge]),
            ],
            attached: [None; DEVICES],
            snooped,
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Attach { device, domain } => {
                let result = self.unit.attach(&self.devices[device], &self.domains[domain]);
                let sibling = [None, None, Some(3), Some(2)][device].and_then(|other: usize| self.attached[other]);
                match (self.attached[device], sibling) {
                    (Some(_), _) => assert!(matches!(result, Err(AttachError::AlreadyAttached { .. })), "{result:?}"),
                    (None, Some(other)) if other != domain => {
                        assert!(matches!(result, Err(AttachError::AliasInUse { .. })), "{result:?}");
                    }
                    (None, _) => {
                        result.expect("attached");
                        self.attached[device] = Some(domain);
                    }
                }
            }
            Op::Detach { device } => {
                let result = self.unit.detach(&self.devices[device]);
                assert_eq!(result.is_ok(), self.attached[device].take().is_some(), "{result:?}");
            }
            Op::Map {
                domain,
                base,
                size,
                target,
                perms,
            } => {
                let (first, pages, target) = (BASES[base], SIZES[size], TARGETS[target]);
                // A first-stage page that can be written can be read.
                let read = perms.read || self.stages[domain] == Stage::First;
                let mapping = Mapping {
                    pages,
                    target,
                    perms: Perms { read, ..perms },
                };
                if self.expected[domain]
                    .pending
                    .iter()
                    .any(|(other, mapping, _)| first < other + mapping.pages && *other < first + pages)
                {
                    // The lease on these addresses is not free yet.
                    return;
                }
                let free = !self.expected[domain].overlaps(first, pages);
                let (iova, phys) = (Iova::new(first * PAGE_SIZE), HostPhys::new(target * PAGE_SIZE));
                let result = self.domains[domain].map(iova, phys, pages * PAGE_SIZE, perms);
                assert_eq!(result.is_ok(), free, "{result:?}");
                if free {
                    self.expected[domain].mapped.insert(first, mapping);
                }
            }
            Op::Unmap { domain, which } => {
                let expected = &mut self.expected[domain];
                let count = expected.mapped.len();
                let Some((&first, &mapping)) = expected.mapped.iter().nth(which % count.max(1)) else {
                    return;
                };
                expected.mapped.remove(&first);
                let pages = range(first * PAGE_SIZE, mapping.pages * PAGE_SIZE);
                let pending = self.domains[domain].unmap(pages, first).expect("mapped");
                expected.pending.push((first, mapping, pending));
            }
            Op::Flush { domain, which } => {
                let expected = &mut self.expected[domain];
                if !expected.pending.is_empty() {
                    let (first, _, pending) = expected.pending.swap_remove(which % expected.pending.len());
                    assert_eq!(self.domains[domain].flush(pending).expect("flushed"), first);
                }
            }
            Op::FlushAll { domain } => {
                let pending = std::mem::take(&mut self.expected[domain].pending);
                let (leases, tokens): (Vec<u64>, Vec<_>) =
                    pending.into_iter().map(|(first, _, token)| (first, token)).unzip();
                assert_eq!(self.domains[domain].flush_all(tokens).expect("flushed"), leases);
            }
            Op::DrainFaults => {
                let drained = self.unit.drain_faults(|_| {}).expect("answers");
                assert!(!drained.more);
            }
        }
    }

    /// Lets every ID of every device access every place where something is, was, or begins.
    fn check(&self) {
        for (device, requester) in self.devices.iter().enumerate() {
            for &id in requester.aliases.iter().chain([&requester.rid]) {
                let domain = self.domain_of(device, id);
                for page in self.pages() {
                    for access in [Access::Read, Access::Write] {
                        self.check_one(id, domain, page, access);
                    }
                }
            }
        }
        assert!(self.unit.health().is_good());
        assert_eq!(self.machine.memory.violations(), []);
        // Wait status is written coherently by every unit, so that page alone needs no write-back.
        let mut unseen: Vec<HostPhys> = self
            .machine
            .memory
            .unseen_by_hardware()
            .iter()
            .map(|at| at.page())
            .collect();
        unseen.dedup();
        assert_eq!(unseen, self.snooped);
    }

    /// Where requests with this ID go: an alias is wherever one of its devices is.
    fn domain_of(&self, device: usize, id: SourceId) -> Option<usize> {
        if id == self.devices[device].rid {
            return self.attached[device];
        }
        self.attached[2].or(self.attached[3])
    }

    fn pages(&self) -> Vec<u64> {
        let mapped = self
            .expected
            .iter()
            .flat_map(|domain| domain.mapped.iter().map(|(first, m)| (*first, m.pages)));
        let pending = self
            .expected
            .iter()
            .flat_map(|domain| domain.pending.iter().map(|(first, m, _)| (*first, m.pages)));
        let ends = |(first, pages): (u64, u64)| [first - 1, first, first + pages / 2, first + pages - 1, first + pages];
        let mut pages: Vec<u64> = mapped.chain(pending).flat_map(ends).chain([0x7777]).collect();
        pages.sort_unstable();
        pages.dedup();
        pages
    }

    fn check_one(&self, id: SourceId, domain: Option<usize>, page: u64, access: Access) {
        let iova = Iova::new(page * PAGE_SIZE);
        let expected = domain.map(|domain| &self.expected[domain]);
        let now = expected.and_then(|domain| {
            domain
                .mapped
                .iter()
                .find_map(|(&first, &m)| through(first, m, page, access))
        });
        let before = expected
            .into_iter()
            .flat_map(|domain| domain.pending.iter())
            .find_map(|(first, mapping, _)| through(*first, *mapping, page, access));
        let what = format!("{id} {access} {iova}, attached to {domain:?}");
        assert_eq!(self.machine.oracle(id, iova, access).ok(), now, "the tables: {what}");
        let answer = self.machine.dma(id, iova, access).ok();
        // Only what was unmapped and not flushed may still be reached, and only where it was.
        let stale = before.is_some() && answer == before;
        assert!(answer == now || stale, "{what}: got {answer:?}, expected {now:?}");
    }

    /// Gives everything back; only what the unit itself uses may stay allocated.
    fn finish(mut self, before: usize) {
        for domain in 0..DOMAINS {
            self.run(Op::FlushAll { domain });
        }
        for device in 0..DEVICES {
            self.run(Op::Detach { device }.only_if(self.attached[device].is_some()));
        }
        self.check();
        for domain in std::mem::take(&mut self.domains) {
            domain.destroy().expect("destroyed");
        }
        // Context tables of three buses stay, and in scalable mode two PASID tables for each of five IDs.
        assert!(self.machine.memory.live_frames().len() <= before + 3 + 10);
        assert_eq!(self.machine.memory.violations(), []);
    }
}

impl Op {
    fn only_if(self, condition: bool) -> Self {
        if condition { self } else { Self::DrainFaults }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn devices_reach_exactly_what_is_mapped_for_them(setting in setting(), ops in prop::collection::vec(op(), 1..60)) {
        let machine = Machine::new(setting.config).in_mode(setting.mode);
        let mut world = World::new(&machine, setting.stages);
        // Three domains have a root table each; the rest is the unit's own.
        let before = machine.memory.live_frames().len() - DOMAINS;
        for op in ops {
            world.run(op);
            world.check();
        }
        world.finish(before);
    }
}

#[test]
fn a_range_is_flushed_as_a_whole_also_where_its_start_is_unaligned() {
    // 8 page-selective pieces and the domain flush beyond them, on pages that the unit has all cached.
    let config = UnitConfig::builder().profile(Profile::Silicon).build().expect("valid");
    let machine = Machine::new(config);
    let unit = machine.translating();
    let nic = Requester::new(source("02:00.0"));
    let domain = unit
        .create_domain(DomainOptions {
            superpages: false,
            ..DomainOptions::default()
        })
        .expect("a domain");
    unit.attach(&nic, &domain).expect("attached");
    for (first, pages) in [
        (1, 2),
        (3, 2),
        (0x1ff, 1),
        (0x102, 4),
        (0x7ff, 2),
        (0xf_fffe, 3),
        (1, 0x5fe),
    ] {
        let all: AddrRange<Iova> = range(first * PAGE_SIZE, pages * PAGE_SIZE);
        domain
            .map(all.first(), HostPhys::new(0x100_0000), pages * PAGE_SIZE, Perms::READ)
            .expect("mapped");
        let each =
            || (first..first + pages).map(|page| machine.dma(nic.rid, Iova::new(page * PAGE_SIZE), Access::Read));
        assert!(each().all(|answer| answer.is_ok()));
        let pending = domain.unmap(all, ()).expect("unmapped");
        domain.flush(pending).expect("flushed");
        assert!(each().all(|answer| answer.is_err()), "{pages} pages from {first:#x}");
    }
}
