//! Random machines: every structure that decides about isolation, in places where it may stand.

use iommu_groups::pci::acs;
use iommu_types::{AddrRange, Bdf, DevFn, HostPhys, NodeId, Segment, SourceId};
use soft_platform::{BusRange, FunctionDescription, FunctionKind, HostBridge, MachineDescription, MemoryRange};

/// Functions of a machine; nothing new is started past it.
const MOST: usize = 24;
/// Switches and bridges below each other; nothing deeper is started.
const DEEPEST: u32 = 5;

/// A machine and how software sets its ACS controls.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    pub seed: u64,
    pub description: MachineDescription,
    /// The ACS control of each function, in the order of the description.
    pub controls: Vec<u16>,
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of the choices, as often as its weight says.
    fn pick<T: Copy>(&mut self, choices: &[(u64, T)]) -> T {
        let mut at = self.below(choices.iter().map(|choice| choice.0).sum());
        for (weight, choice) in choices {
            if at < *weight {
                return *choice;
            }
            at -= weight;
        }
        unreachable!("weights were summed up")
    }

    fn small(&mut self, first: u8, last: u8) -> u8 {
        first + u8::try_from(self.below(u64::from(last - first) + 1)).expect("small")
    }

    fn bits(&mut self, of: u16, chance: u64) -> u16 {
        (0..16)
            .map(|bit| 1 << bit)
            .filter(|bit| of & bit != 0 && self.percent(chance))
            .sum()
    }
}

/// The ACS capability of a function and its control.
type Acs = (Option<u16>, u16);

const INTEL: u16 = 0x8086;
const PLAIN: (u16, u16) = (0x1af4, 0x1041);
/// Cannot reach its siblings, by word of its vendor.
const ISOLATED_NIC: (u16, u16) = (INTEL, 0x1521);
/// Uses the requester ID of function 1 of its device, too.
pub(crate) const USES_FUNCTION_1: (u16, u16) = (0x1b4b, 0x9230);
/// Uses the requester ID of function 0 of its device, too.
pub(crate) const USES_FUNCTION_0: (u16, u16) = (0x1180, 0xe832);
/// A PCIe-to-PCI bridge without a PCI Express capability.
const HIDDEN_BRIDGE: (u16, u16) = (0x1b21, 0x1080);

struct Builder {
    random: Random,
    functions: Vec<FunctionDescription>,
    controls: Vec<u16>,
    next_bus: u8,
}

impl Shape {
    /// The machine that belongs to `seed`. With `registers`, ports and bridges have memory of their own.
    pub(crate) fn random(seed: u64, registers: bool) -> Self {
        let mut builder = Builder {
            random: Random(seed),
            functions: Vec::new(),
            controls: Vec::new(),
            next_bus: 0,
        };
        let mut host_bridges = Vec::new();
        let hosts = if builder.random.percent(25) { 2 } else { 1 };
        for host in 0..hosts {
            let first = builder.take_bus();
            builder.root_bus(first);
            host_bridges.push(HostBridge {
                segment: Segment(0),
                buses: BusRange {
                    first,
                    last: builder.next_bus - 1,
                },
                window: AddrRange::from_base_len(HostPhys::new(0x8000_0000 + host * 0x2000_0000), 0x2000_0000)
                    .expect("range"),
            });
        }
        for function in &mut builder.functions {
            function.registers = registers && function.kind.is_bridge();
        }
        Self {
            seed,
            controls: builder.controls,
            description: MachineDescription {
                name: format!("seed {seed:#x}"),
                host_address_width: 46,
                interrupt_remapping: false,
                x2apic_opt_out: false,
                dma_opt_in: false,
                memory: vec![MemoryRange {
                    node: NodeId(0),
                    range: AddrRange::from_base_len(HostPhys::new(0x10_0000), 0x10_0000).expect("range"),
                }],
                host_bridges,
                units: Vec::new(),
                rmrrs: Vec::new(),
                atsrs: Vec::new(),
                satcs: Vec::new(),
                functions: builder.functions,
            },
        }
    }
}

/// One line for each function, as deep as it stands.
impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "machine of seed {:#x}:", self.seed)?;
        for (function, control) in self.description.functions.iter().zip(&self.controls) {
            let mut depth = 0;
            let mut above = function.parent;
            while let Some(parent) = above {
                depth += 2;
                above = self.description.functions[parent].parent;
            }
            write!(f, "{:depth$}{} {}", "", function.bdf, function.kind)?;
            write!(f, " {:04x}:{:04x}", function.vendor, function.device)?;
            if let Some(capability) = function.acs {
                write!(f, " ACS capability {capability:#04x} control {:#06x}", control)?;
            }
            writeln!(f, "{}", if function.registers { " registers" } else { "" })?;
        }
        Ok(())
    }
}

impl Builder {
    fn take_bus(&mut self) -> u8 {
        self.next_bus += 1;
        self.next_bus - 1
    }

    fn is_full(&self) -> bool {
        self.functions.len() >= MOST
    }

    fn add(
        &mut self,
        parent: Option<usize>,
        (bus, devfn): (u8, DevFn),
        kind: FunctionKind,
        (vendor, device): (u16, u16),
        (capability, control): Acs,
        multifunction: bool,
    ) -> usize {
        let bdf = Bdf::new(Segment(0), SourceId::new(bus, devfn));
        self.functions.push(FunctionDescription {
            name: format!("{kind} {bdf}"),
            bdf,
            kind,
            parent,
            vendor,
            device,
            class: if kind.is_bridge() { 0x06_0400 } else { 0x08_8000 },
            multifunction,
            buses: None,
            acs: capability,
            dma_bits: if kind.is_conventional() { 32 } else { 64 },
            engine: false,
            registers: false,
            synthetic: false,
        });
        self.controls.push(capability.map_or(0, |_| control));
        self.functions.len() - 1
    }

    /// Gives bridge `index` a bus and lets `fill` put something on it.
    fn below(&mut self, index: usize, fill: impl FnOnce(&mut Self, u8)) {
        let first = self.take_bus();
        fill(self, first);
        let last = self.next_bus - 1;
        self.functions[index].buses = Some(BusRange { first, last });
    }

    /// Controls of a root port or downstream port.
    fn port_acs(&mut self) -> Acs {
        let random = &mut self.random;
        let enhanced = |random: &mut Random| {
            let field = |random: &mut Random, block, redirect| random.pick(&[(2, 0), (1, block), (5, redirect)]);
            field(random, acs::DSP_TARGET_BLOCKING, acs::DSP_TARGET_REDIRECT)
                | field(random, acs::USP_TARGET_BLOCKING, acs::USP_TARGET_REDIRECT)
                | random.bits(acs::UNCLAIMED_REDIRECT, 50)
        };
        match random.below(10) {
            0 | 1 => (None, 0),
            // All that isolation needs.
            2..=5 => (Some(acs::REQUIRED | acs::TRANSLATION_BLOCKING), acs::REQUIRED),
            // Hard-wired.
            6 => (Some(0), 0),
            7 => (Some(acs::REQUIRED | acs::ENHANCED), acs::REQUIRED | enhanced(random)),
            _ => {
                let has_enhanced = random.percent(30);
                let capability = random.bits(acs::BASIC, 80) | if has_enhanced { acs::ENHANCED } else { 0 };
                let wanted = random.bits(acs::REQUIRED, 80)
                    | random.bits(acs::EGRESS_CONTROL, 15)
                    | random.bits(acs::TRANSLATION_BLOCKING | acs::DIRECT_TRANSLATED, 30);
                let control = capability & wanted | if has_enhanced { enhanced(random) } else { 0 };
                (Some(capability), control)
            }
        }
    }

    /// Controls of a function of a device: only those exist there that are about peers.
    fn function_acs(&mut self, multifunction: bool) -> Acs {
        const PEERS: u16 = acs::REQUEST_REDIRECT | acs::COMPLETION_REDIRECT;
        let random = &mut self.random;
        if !multifunction && random.percent(80) {
            return (None, 0);
        }
        match random.below(8) {
            0 | 1 => (None, 0),
            2..=4 => (Some(PEERS), PEERS),
            5 => (Some(0), 0),
            _ => {
                let capability = random.bits(PEERS | acs::EGRESS_CONTROL | acs::DIRECT_TRANSLATED, 80);
                let wanted = random.bits(PEERS, 75) | random.bits(acs::EGRESS_CONTROL, 20);
                (Some(capability), capability & wanted)
            }
        }
    }

    fn root_bus(&mut self, bus: u8) {
        for device in 1..=self.random.small(2, 5) {
            if self.is_full() {
                return;
            }
            match self.random.below(12) {
                0..=5 => self.device(bus, device, 1, &[FunctionKind::RootPort]),
                6 | 7 => {
                    let count = self.random.small(2, 3);
                    self.device(bus, device, count, &[FunctionKind::RootPort]);
                }
                8 | 9 => {
                    let count = self.random.small(1, 3);
                    self.device(bus, device, count, &[FunctionKind::IntegratedEndpoint]);
                }
                10 => {
                    let kinds = [
                        FunctionKind::RootPort,
                        FunctionKind::IntegratedEndpoint,
                        FunctionKind::Conventional,
                    ];
                    let count = self.random.small(2, 3);
                    self.device(bus, device, count, &kinds);
                }
                _ => {
                    let count = self.random.small(1, 2);
                    self.device(
                        bus,
                        device,
                        count,
                        &[FunctionKind::Conventional, FunctionKind::PciBridge],
                    );
                }
            }
        }
    }

    /// A device on a root bus.
    fn device(&mut self, bus: u8, device: u8, count: u8, kinds: &[FunctionKind]) {
        let mut bridges = Vec::new();
        for function in 0..count {
            let kind = kinds[usize::from(self.random.small(0, u8::try_from(kinds.len()).expect("few") - 1))];
            let at = (bus, DevFn::new(device, function).expect("in range"));
            let (ids, acs) = match kind {
                FunctionKind::RootPort => self.root_port(),
                FunctionKind::IntegratedEndpoint => {
                    let ids = self.random.pick(&[(1, (INTEL, 0x0b25)), (2, (0x1022, 0x1480))]);
                    (ids, self.function_acs(count > 1))
                }
                _ => (PLAIN, (None, 0)),
            };
            let index = self.add(None, at, kind, ids, acs, count > 1);
            if kind.is_bridge() {
                bridges.push((index, kind));
            }
        }
        for (index, kind) in bridges {
            self.below(index, |builder, bus| match kind {
                FunctionKind::RootPort => builder.link(index, bus, 1),
                _ => builder.conventional_bus(index, bus, 1),
            });
        }
    }

    /// A root port: usual, or a model that isolates without an ACS capability, or one that does so only after
    /// its chipset has been told to.
    fn root_port(&mut self) -> ((u16, u16), Acs) {
        match self.random.below(16) {
            0 => ((0x17cb, 0x0400), (None, 0)),
            1 => ((0x1c36, 0x0031), (None, 0)),
            2 => ((INTEL, 0x1c10), (None, 0)),
            _ => ((0x1b36, 0x000c), self.port_acs()),
        }
    }

    /// What is at the end of a link.
    fn link(&mut self, port: usize, bus: u8, depth: u32) {
        if self.is_full() {
            return;
        }
        let deeper = depth < DEEPEST;
        match self.random.below(16) {
            0 => {}
            1..=3 => self.endpoints(port, bus, 1),
            4..=7 => {
                let count = self.random.small(2, 4);
                self.endpoints(port, bus, count);
            }
            8..=12 if deeper => self.switch(port, bus, depth),
            13..=15 if deeper => self.bridges(port, bus, depth),
            _ => self.endpoints(port, bus, 1),
        }
    }

    fn endpoints(&mut self, port: usize, bus: u8, count: u8) {
        let multifunction = count > 1;
        let device = self.random.pick(&[
            (7, PLAIN),
            (1, ISOLATED_NIC),
            (1, USES_FUNCTION_1),
            (1, USES_FUNCTION_0),
        ]);
        for function in 0..count {
            // Functions of one device need not be alike.
            let ids = if self.random.percent(20) { PLAIN } else { device };
            let acs = self.function_acs(multifunction);
            let at = (bus, DevFn::new(0, function).expect("in range"));
            self.add(Some(port), at, FunctionKind::Endpoint, ids, acs, multifunction);
        }
    }

    fn switch(&mut self, port: usize, bus: u8, depth: u32) {
        // Some switches have a DMA engine beside the upstream port.
        let beside = self.random.percent(20);
        let acs = if beside { self.function_acs(true) } else { (None, 0) };
        let at = (bus, DevFn::default());
        let upstream = self.add(
            Some(port),
            at,
            FunctionKind::SwitchUpstream,
            (0x104c, 0x8232),
            acs,
            beside,
        );
        if beside {
            let acs = self.function_acs(true);
            let at = (bus, DevFn::new(0, 1).expect("in range"));
            self.add(Some(port), at, FunctionKind::Endpoint, PLAIN, acs, true);
        }
        self.below(upstream, |builder, bus| builder.internal_bus(upstream, bus, depth));
    }

    fn internal_bus(&mut self, upstream: usize, bus: u8, depth: u32) {
        let one_device = self.random.percent(20);
        let count = self.random.small(1, 4);
        let mut ports = Vec::new();
        for number in 0..count {
            let devfn = if one_device {
                DevFn::new(0, number)
            } else {
                DevFn::new(number, 0)
            };
            let (ids, acs) = if self.random.percent(6) {
                ((0x1d17, 0x0710), (None, 0))
            } else {
                ((0x104c, 0x8233), self.port_acs())
            };
            let at = (bus, devfn.expect("in range"));
            let kind = FunctionKind::SwitchDownstream;
            ports.push(self.add(Some(upstream), at, kind, ids, acs, one_device && count > 1));
        }
        if self.random.percent(8) {
            let acs = self.function_acs(false);
            let at = (bus, DevFn::new(16, 0).expect("in range"));
            self.add(Some(upstream), at, FunctionKind::Endpoint, PLAIN, acs, false);
        }
        for port in ports {
            self.below(port, |builder, bus| builder.link(port, bus, depth + 1));
        }
    }

    /// One bridge to conventional PCI at the end of a link, or a device with two of them.
    fn bridges(&mut self, port: usize, bus: u8, depth: u32) {
        let count = self.random.pick(&[(5, 1), (1, 2)]);
        let mut bridges = Vec::new();
        for function in 0..count {
            let (kind, ids) = self.random.pick(&[
                (6, (FunctionKind::PcieToPciBridge, (0x10b5, 0x8112))),
                (1, (FunctionKind::PciBridge, HIDDEN_BRIDGE)),
                (1, (FunctionKind::PciBridge, (0x3388, 0x0021))),
            ]);
            let at = (bus, DevFn::new(0, function).expect("in range"));
            bridges.push(self.add(Some(port), at, kind, ids, (None, 0), count > 1));
        }
        for bridge in bridges {
            self.below(bridge, |builder, bus| builder.conventional_bus(bridge, bus, depth + 1));
        }
    }

    fn conventional_bus(&mut self, bridge: usize, bus: u8, depth: u32) {
        let mut bridges = Vec::new();
        for device in 0..self.random.small(0, 3) {
            let count = self.random.pick(&[(4, 1), (1, 2)]);
            for function in 0..count {
                let kind = match self.random.below(4) {
                    0 if depth < DEEPEST && !self.is_full() => FunctionKind::PciBridge,
                    _ => FunctionKind::Conventional,
                };
                let at = (bus, DevFn::new(device, function).expect("in range"));
                let index = self.add(Some(bridge), at, kind, PLAIN, (None, 0), count > 1);
                if kind.is_bridge() {
                    bridges.push(index);
                }
            }
        }
        for index in bridges {
            self.below(index, |builder, bus| builder.conventional_bus(index, bus, depth + 1));
        }
    }
}
