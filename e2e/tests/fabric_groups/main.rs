//! Strict groups against traffic: who reaches whom through the software fabric, on random machines.
//!
//! Every function of a machine sends to the registers of every other, and to memory. No unit lets anything
//! through, so what arrives at a peer got there by a shortcut, and what arrives at the root complex shows its
//! requester ID. Functions that are connected by either, over any number of steps, are what
//! [`Rules::Strict`] must join, no more and no less.
//!
//! What Strict joins although this fabric has no traffic to show for it is listed as [`Excuse`]s: each names a
//! place and a reason, and is counted. There are none for the other direction: functions that traffic connects
//! and Strict keeps apart are a mistake.
//!
//! The fabric shares its facts about particular devices with the group rules (the quirk tables), and nothing
//! else. Virtual functions, alternative routing IDs, translated requests and forged requester IDs are not sent.
//!
//! `PORTCULLIS_FABRIC_SEED` and `PORTCULLIS_FABRIC_MACHINES` choose other machines.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unreachable,
    reason = "a test may fail this way"
)]
#![allow(
    clippy::indexing_slicing,
    missing_docs,
    reason = "indices come from the machine that the test itself made"
)]

mod shapes;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use iommu_devices::{Bus, DmaErrorKind};
use iommu_groups::pci::{acs, header};
use iommu_groups::{AliasVia, BusId, Difference, Groups, LinuxVersion, Rules, Topology, differences, group};
use iommu_types::{Bdf, DevFn, Iova, Segment, SourceId};
use shapes::{Shape, USES_FUNCTION_0, USES_FUNCTION_1};
use soft_platform::{FunctionKind, Machine, MachineOptions, Route, Shortcut, Uncovered};

/// Machines of a usual run.
const MACHINES: u64 = 300;
/// An address that nobody but memory answers to.
const MEMORY: Iova = Iova::new(0x10_0000);

/// Disjoint sets of functions.
#[derive(Clone)]
struct Partition(Vec<usize>);

impl Partition {
    fn new(len: usize) -> Self {
        Self((0..len).collect())
    }

    fn find(&self, mut of: usize) -> usize {
        while self.0[of] != of {
            of = self.0[of];
        }
        of
    }

    fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.find(a), self.find(b));
        self.0[a.max(b)] = a.min(b);
    }

    fn together(&self, a: usize, b: usize) -> bool {
        self.find(a) == self.find(b)
    }
}

/// Why Strict joins what the fabric keeps apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Excuse {
    /// Functions send their own requester ID here. With source validation off they could send each other's.
    SourceValidation,
    /// The fabric has no completions on the way that anybody could forge.
    CompletionRedirect,
    /// A port here refuses what its own link sends back to it, or passes it to other ports correctly; PCIe
    /// leaves what becomes of redirected requests to the port.
    UpstreamForwarding,
    /// Registers of ports can be reached from below; whoever sets them commands what is below the port, which
    /// no traffic shows.
    PortRegisters,
    /// Redirect is off, but the port catches requests for its own registers, so that nothing below gets to it.
    OwnRegistersOnly,
}

impl fmt::Display for Excuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SourceValidation => "SV off: no forged requester IDs are sent",
            Self::CompletionRedirect => "CR off: no completions are forged",
            Self::UpstreamForwarding => "UF off: the fabric's ports refuse rather than misroute",
            Self::PortRegisters => "registers of ports are open: who commands a port commands what is below",
            Self::OwnRegistersOnly => "RR off, but nothing is beside the port and its own registers are closed",
        })
    }
}

/// A machine that lets nothing through, with everything about it that the judge needs.
struct Subject<'s> {
    shape: &'s Shape,
    machine: Machine,
    topology: Topology,
    /// Functions that have registers, and so can be sent to: those that take part.
    parties: Vec<usize>,
}

/// What traffic showed.
struct Traffic {
    connected: Partition,
    /// Requests that arrived at a peer, by the place where they turned.
    shortcuts: BTreeMap<&'static str, usize>,
    /// Functions whose requester ID is another's, too.
    shared_ids: usize,
}

impl<'s> Subject<'s> {
    fn new(shape: &'s Shape) -> Self {
        let options = MachineOptions {
            uncovered: Uncovered::Blocked,
            ..MachineOptions::default()
        };
        let table = shape.description.to_dmar().expect("an empty table");
        let machine = Machine::build_with(&shape.description, &table, options).expect("builds");
        for (function, control) in shape.description.functions.iter().zip(&shape.controls) {
            machine.set_command(function.bdf, header::COMMAND_BUS_MASTER, true);
            let at = machine
                .with_function(function.bdf, |function, _| function.config().acs_at())
                .expect("there");
            if let Some(at) = at {
                machine.config_write(function.bdf, at + acs::CONTROL, &control.to_le_bytes());
                let set = machine.config_read16(function.bdf, at + acs::CONTROL);
                assert_eq!(set, *control, "{shape}{}: the control cannot be set", function.bdf);
            }
        }
        let roots = shape.description.host_bridges.iter();
        let roots: Vec<BusId> = roots.map(|host| BusId::new(Segment(0), host.buses.first)).collect();
        let topology = Topology::scan(&machine, &roots);
        assert_eq!(topology.problems(), [], "{shape}");
        assert_eq!(topology.functions().len(), shape.description.functions.len(), "{shape}");
        let bdfs = shape.description.functions.iter().map(|function| function.bdf);
        let parties = bdfs
            .enumerate()
            .filter(|(_, bdf)| machine.bar_range(*bdf, 0).is_some())
            .map(|(index, _)| index)
            .collect();
        Self {
            shape,
            machine,
            topology,
            parties,
        }
    }

    fn bdf(&self, index: usize) -> Bdf {
        self.shape.description.functions[index].bdf
    }

    /// Sends from everybody to everybody.
    fn traffic(&self) -> Traffic {
        let mut traffic = Traffic {
            connected: Partition::new(self.shape.description.functions.len()),
            shortcuts: BTreeMap::new(),
            shared_ids: 0,
        };
        for from in &self.parties {
            for to in self.parties.iter().filter(|to| *to != from) {
                if let Some(via) = self.send(*from, *to) {
                    traffic.connected.join(*from, *to);
                    *traffic.shortcuts.entry(via).or_default() += 1;
                }
            }
        }
        let mut users: BTreeMap<SourceId, usize> = BTreeMap::new();
        for from in &self.parties {
            for source in self.requester_ids(*from) {
                let first = *users.entry(source).or_insert(*from);
                if first != *from {
                    traffic.connected.join(first, *from);
                    traffic.shared_ids += 1;
                }
            }
        }
        traffic
    }

    /// Sends one request past every unit, to the registers of `to`; where it turned, if it arrived.
    fn send(&self, from: usize, to: usize) -> Option<&'static str> {
        let (sender, receiver) = (self.bdf(from), self.bdf(to));
        let registers = self.machine.bar_range(receiver, 0).expect("has registers");
        let offset = 8 * u64::try_from(from).expect("small");
        let at = registers.first().checked_add(offset).expect("in range");
        let token = 0x5eed_0000 | u32::try_from(from << 8 | to).expect("small");
        let sent = self
            .machine
            .with_function(sender, |function, bus| {
                function.dma_write(bus, Iova::new(at.raw()), &token.to_le_bytes())
            })
            .expect("there");
        let mut found = [0; 4];
        self.machine.mmio_read(at, &mut found).expect("answers");
        let arrived = u32::from_le_bytes(found) == token;
        assert_eq!(sent.is_ok(), arrived, "{}{sender} to {receiver}: {sent:?}", self.shape);
        let route = self.machine.route(sender, Iova::new(at.raw())).expect("there");
        match route {
            Route::Peer { function, via, .. } => {
                assert!(
                    arrived && function == receiver,
                    "{}{sender} to {receiver}: {route}",
                    self.shape
                );
                Some(match via {
                    Shortcut::Device => "inside a device",
                    Shortcut::SharedBus(_) => "on a conventional bus",
                    Shortcut::Switch(_) => "inside a switch",
                    Shortcut::RootPort(_) => "at a root port",
                    Shortcut::Port(_) => "at a port's own registers",
                })
            }
            Route::Upstream { .. } | Route::Refused { .. } => {
                assert!(!arrived, "{}{sender} to {receiver}: {route}", self.shape);
                None
            }
        }
    }

    /// The requester IDs with which requests of a function arrive at the root complex.
    fn requester_ids(&self, from: usize) -> BTreeSet<SourceId> {
        let function = &self.shape.description.functions[from];
        let own = function.bdf.source;
        let mut sends = vec![own];
        let also = match (function.vendor, function.device) {
            USES_FUNCTION_0 => DevFn::new(own.devfn().device(), 0),
            USES_FUNCTION_1 => DevFn::new(own.devfn().device(), 1),
            _ => None,
        };
        sends.extend(also.map(|devfn| SourceId::new(own.bus(), devfn)));
        let mut arrived = BTreeSet::new();
        for source in sends {
            let bus = self.machine.bus(function.bdf).expect("there").forging(source);
            let error = bus.dma_read(MEMORY, &mut [0; 4]).expect_err("nothing passes");
            assert_eq!(
                error.kind,
                DmaErrorKind::Blocked,
                "{}{} as {source}",
                self.shape,
                function.bdf
            );
            let blocks = self.machine.take_platform_blocks();
            arrived.insert(blocks.last().expect("one").source);
        }
        self.check_aliases(function.bdf, &arrived);
        arrived
    }

    /// Those who share a bus are connected anyway, so their requester IDs are held against the aliases one by
    /// one: the bridge nearest to the root complex has the last word, without a bridge all arrive unchanged.
    fn check_aliases(&self, bdf: Bdf, arrived: &BTreeSet<SourceId>) {
        let aliases = self.topology.aliases(bdf);
        let given = aliases.iter().rev().find(|alias| {
            matches!(
                alias.via,
                AliasVia::PcieToPci(_) | AliasVia::HiddenExpress(_) | AliasVia::Conventional(_)
            )
        });
        let expected: BTreeSet<SourceId> = match given {
            Some(alias) => [alias.source].into(),
            None => aliases.iter().map(|alias| alias.source).collect(),
        };
        assert_eq!(*arrived, expected, "{}{bdf}: {aliases:?}", self.shape);
    }

    /// Functions of the same device.
    fn mates(&self, index: usize) -> Vec<usize> {
        let own = &self.shape.description.functions[index];
        let functions = self.shape.description.functions.iter().enumerate();
        functions
            .filter(|(other, function)| {
                let (a, b) = (function.bdf, own.bdf);
                *other != index && a.bus() == b.bus() && a.devfn().device() == b.devfn().device()
            })
            .map(|(other, _)| other)
            .collect()
    }

    /// A function and everything below it.
    fn and_below(&self, top: usize) -> Vec<usize> {
        let mut found = vec![top];
        for (index, function) in self.shape.description.functions.iter().enumerate() {
            if function.parent.is_some_and(|parent| found.contains(&parent)) {
                found.push(index);
            }
        }
        found
    }

    /// Places where Strict joins more than this fabric can show, and what it joins there.
    fn excuses(&self) -> Vec<(Excuse, Vec<usize>)> {
        let functions = &self.shape.description.functions;
        let mut excuses = Vec::new();
        for (index, (function, control)) in functions.iter().zip(&self.shape.controls).enumerate() {
            let Some(capability) = function.acs else { continue };
            let on = |bit| capability & bit == 0 || control & bit != 0;
            let redirects = on(acs::REQUEST_REDIRECT) && capability & control & acs::EGRESS_CONTROL == 0;
            let is_port = matches!(function.kind, FunctionKind::RootPort | FunctionKind::SwitchDownstream);
            let enhanced = is_port && capability & acs::ENHANCED != 0;
            let open = |field: u16| enhanced && control & field == 0;
            let downstream_open = open(acs::DSP_TARGET_REDIRECT | acs::DSP_TARGET_BLOCKING);
            let upstream_open = function.kind == FunctionKind::SwitchDownstream
                && open(acs::USP_TARGET_REDIRECT | acs::USP_TARGET_BLOCKING);
            let mates = self.mates(index);
            let scope: Vec<usize> = match function.kind {
                FunctionKind::RootPort if redirects || enhanced => {
                    let all = mates.iter().copied().chain([index]);
                    all.flat_map(|function| self.and_below(function)).collect()
                }
                FunctionKind::SwitchDownstream => {
                    let above = function.parent.expect("a switch");
                    self.and_below(above)
                        .into_iter()
                        .filter(|index| *index != above)
                        .collect()
                }
                FunctionKind::Endpoint | FunctionKind::SwitchUpstream | FunctionKind::IntegratedEndpoint
                    if !mates.is_empty() && !self.isolates_by_word_of_vendor(index) =>
                {
                    let all = mates.iter().copied().chain([index]);
                    all.flat_map(|function| self.and_below(function)).collect()
                }
                _ => continue,
            };
            let found = [
                (
                    Excuse::SourceValidation,
                    redirects && is_port && !on(acs::SOURCE_VALIDATION),
                ),
                (Excuse::CompletionRedirect, redirects && !on(acs::COMPLETION_REDIRECT)),
                (
                    Excuse::UpstreamForwarding,
                    redirects && is_port && !on(acs::UPSTREAM_FORWARDING),
                ),
                (Excuse::PortRegisters, redirects && (downstream_open || upstream_open)),
                (Excuse::OwnRegistersOnly, !redirects && enhanced && !downstream_open),
            ];
            for (excuse, holds) in found {
                if holds {
                    excuses.push((excuse, scope.clone()));
                }
            }
        }
        excuses
    }

    /// Intel's integrated endpoints and one of its network cards, whatever their capability says.
    fn isolates_by_word_of_vendor(&self, index: usize) -> bool {
        self.shape.description.functions[index].vendor == 0x8086
    }

    fn group(&self, rules: Rules) -> Groups {
        group(&self.topology, rules)
    }

    fn together(&self, groups: &Groups, a: usize, b: usize) -> bool {
        groups.together(self.bdf(a), self.bdf(b)).expect("both are there")
    }

    fn pairs(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let parties = &self.parties;
        parties
            .iter()
            .flat_map(move |a| parties.iter().filter(move |b| a < b).map(move |b| (*a, *b)))
    }

    fn say(&self, a: usize, b: usize, what: &str) -> String {
        let strict = self.group(Rules::Strict);
        let why = strict.explain(&self.topology, self.bdf(a), self.bdf(b));
        format!("{}{} and {}: {what}\n{why:#?}", self.shape, self.bdf(a), self.bdf(b))
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// The seeds of a run.
fn seeds() -> impl Iterator<Item = u64> {
    let first = number("PORTCULLIS_FABRIC_SEED").unwrap_or(1);
    let count = number("PORTCULLIS_FABRIC_MACHINES").unwrap_or(MACHINES);
    (0..count).map(move |index| first.wrapping_add(index))
}

/// Adds up by name.
fn tally<K: Ord>(into: &mut BTreeMap<K, usize>, from: impl IntoIterator<Item = (K, usize)>) {
    for (key, count) in from {
        *into.entry(key).or_default() += count;
    }
}

#[test]
fn traffic_connects_exactly_the_functions_that_strict_joins() {
    let (mut machines, mut pairs, mut joined) = (0, 0, 0);
    let (mut shared_ids, mut shortcuts) = (0, BTreeMap::new());
    let mut excused: BTreeMap<Excuse, usize> = BTreeMap::new();
    for seed in seeds() {
        let shape = Shape::random(seed, true);
        let subject = Subject::new(&shape);
        let strict = subject.group(Rules::Strict);
        let traffic = subject.traffic();
        assert_eq!(
            subject.parties.len(),
            shape.description.functions.len(),
            "{shape}everybody takes part"
        );

        for (a, b) in subject.pairs() {
            pairs += 1;
            let together = subject.together(&strict, a, b);
            joined += usize::from(together);
            assert!(
                together || !traffic.connected.together(a, b),
                "{}",
                subject.say(a, b, "traffic connects them, Strict keeps them apart")
            );
        }

        let mut connected = traffic.connected.clone();
        for (excuse, scope) in subject.excuses() {
            let before = connected.clone();
            for other in &scope {
                connected.join(scope[0], *other);
            }
            let new = subject
                .pairs()
                .filter(|(a, b)| connected.together(*a, *b) && !before.together(*a, *b))
                .count();
            *excused.entry(excuse).or_default() += new;
        }
        for (a, b) in subject.pairs() {
            assert_eq!(
                subject.together(&strict, a, b),
                connected.together(a, b),
                "{}",
                subject.say(
                    a,
                    b,
                    "Strict joins them, neither traffic nor an excuse does (or the other way round)"
                )
            );
        }
        machines += 1;
        shared_ids += traffic.shared_ids;
        tally(&mut shortcuts, traffic.shortcuts);
    }
    println!("{machines} machines, {pairs} pairs, {joined} of them in one group");
    println!("arrived at a peer: {shortcuts:?}; requester IDs in common: {shared_ids}");
    for (excuse, count) in &excused {
        println!("joined without traffic: {count} pairs, {excuse}");
    }
    if machines >= MACHINES {
        assert_eq!(shortcuts.len(), 5, "every kind of shortcut is taken");
        assert!(shared_ids > 0);
        assert_eq!(excused.len(), 5, "an excuse that is never needed has to go");
        assert!(
            excused.values().all(|count| *count > 0),
            "an excuse that is never needed has to go"
        );
    }
}

/// Ports and bridges of most machines have no registers and send nothing. They still hold groups together, as
/// somebody who is plugged in below them, or their own DMA, would: the machine with registers in them shows it.
#[test]
fn ports_without_registers_join_no_more_than_the_same_ports_with_them() {
    let (mut pairs, mut silent) = (0, 0);
    for seed in seeds() {
        let shape = Shape::random(seed, false);
        let subject = Subject::new(&shape);
        let strict = subject.group(Rules::Strict);
        let connected = subject.traffic().connected;

        let loud_shape = Shape::random(seed, true);
        let loud = Subject::new(&loud_shape);
        let mut most = loud.traffic().connected;
        for (_, scope) in loud.excuses() {
            for other in &scope {
                most.join(scope[0], *other);
            }
        }
        for (a, b) in subject.pairs() {
            pairs += 1;
            let together = subject.together(&strict, a, b);
            assert!(
                together || !connected.together(a, b),
                "{}",
                subject.say(a, b, "traffic connects them, Strict keeps them apart")
            );
            assert!(
                !together || most.together(a, b),
                "{}",
                subject.say(a, b, "Strict joins them, which not even ports with registers would")
            );
            silent += usize::from(together && !connected.together(a, b));
        }
    }
    println!("{pairs} pairs; {silent} joined by silent ports or an excuse");
}

#[test]
fn linux_is_never_stricter_and_every_hole_is_listed() {
    let (mut holes, mut wider) = (0, 0);
    for seed in seeds() {
        for registers in [false, true] {
            let shape = Shape::random(seed, registers);
            let subject = Subject::new(&shape);
            let strict = subject.group(Rules::Strict);
            let linux = subject.group(Rules::Linux(LinuxVersion::LATEST));
            let index: BTreeMap<Bdf, usize> = (0..shape.description.functions.len())
                .map(|index| (subject.bdf(index), index))
                .collect();

            let mut with_holes_filled = Partition::new(index.len());
            for group in linux.all() {
                for member in &group.members {
                    with_holes_filled.join(index[&group.members[0]], index[member]);
                }
            }
            for difference in differences(&linux, &strict) {
                match difference {
                    Difference::Hole { a, b, chain } => {
                        assert_eq!(linux.together(a, b), Some(false), "{shape}{a} {b}");
                        assert_eq!(strict.together(a, b), Some(true), "{shape}{a} {b}");
                        assert!(!chain.is_empty(), "{shape}{a} {b}");
                        with_holes_filled.join(index[&a], index[&b]);
                        holes += 1;
                    }
                    Difference::Wider { a, b, .. } => {
                        // The one place where Linux joins more than it has to: a PCIe-to-PCI bridge without
                        // registers has a requester ID that those below it do not use.
                        let bridge = [a, b].into_iter().any(|bdf| {
                            let function = &shape.description.functions[index[&bdf]];
                            matches!(function.kind, FunctionKind::PcieToPciBridge | FunctionKind::PciBridge)
                                && !function.registers
                        });
                        assert!(bridge, "{shape}{a} and {b}: together in Linux, apart in Strict");
                        wider += 1;
                    }
                }
            }
            for a in 0..index.len() {
                for b in 0..a {
                    let together = subject.together(&strict, a, b);
                    assert!(
                        !together || with_holes_filled.together(a, b),
                        "{}",
                        subject.say(a, b, "apart in Linux, and no difference says so")
                    );
                }
            }
        }
    }
    println!("{holes} holes of Linux, {wider} bridges that Linux joins with what is below");
    assert!(holes > 0 && wider > 0);
}

/// The root complex passes what goes from one of its devices to another to a unit. Ports of one device may do
/// otherwise.
#[test]
fn a_request_turns_round_between_root_ports_of_one_device_only() {
    let ports = |seed| {
        let shape = Shape::random(seed, false);
        let functions = shape.description.functions.clone();
        let subject = Subject::new(&shape);
        let root = |mut index: usize| {
            while let Some(parent) = functions[index].parent {
                index = parent;
            }
            index
        };
        let mut seen = (0, 0);
        for (a, b) in subject.pairs() {
            let (x, y) = (functions[root(a)].bdf, functions[root(b)].bdf);
            let same_device = x.bus() == y.bus() && x.devfn().device() == y.devfn().device();
            let reached = [(a, b), (b, a)].into_iter().any(|(a, b)| subject.send(a, b).is_some());
            assert!(
                same_device || !reached,
                "{}",
                subject.say(a, b, "reached across the root complex")
            );
            seen.0 += usize::from(reached && x != y);
            seen.1 += usize::from(!same_device);
        }
        seen
    };
    let seen: Vec<_> = seeds().take(100).map(ports).collect();
    assert!(seen.iter().any(|seen| seen.0 > 0), "between root ports of one device");
    assert!(seen.iter().any(|seen| seen.1 > 0), "between devices");
}
