//! Putting devices on buses, and growing whole trees of them.

use super::{AcsSetting, Machine, RootFunction};

/// The first device number of the root bus that the chipset takes; number 0 is the host bridge.
const ROOT_SLOTS: u8 = 0x1f;
/// Deeper trees than this run out of address space for bridge windows.
const DEPTH: u8 = 4;
/// Bridges in one machine: firmware gives each a window of memory.
const BRIDGES: usize = 40;
/// Bytes of the kernel's command line for ACS settings.
const SETTINGS: usize = 1800;

/// What kind of bus something is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The root bus of the chipset.
    Root,
    /// A further root bus, where QEMU wants bridges only.
    Expander,
    /// Below a root port or a downstream port: one device.
    Link,
    /// The inside of a switch.
    Switch,
    /// Conventional PCI.
    Conventional,
}

/// A bus under construction.
#[derive(Clone, Debug)]
pub(super) struct Bus {
    id: String,
    kind: Kind,
    /// The number, of a root bus.
    number: u8,
    /// The way here, as the kernel's command line writes it.
    path: String,
    /// The next free device number.
    next: u8,
}

impl Bus {
    fn is_root(&self) -> bool {
        matches!(self.kind, Kind::Root | Kind::Expander)
    }

    /// Leaves a device number free.
    pub(super) const fn skip(&mut self) {
        self.next += 1;
    }
}

/// Where a function goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    device: u8,
    function: u8,
    multifunction: bool,
}

/// Bridges and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bridge {
    RootPort,
    /// A root port of another model.
    Ioh,
    Upstream,
    Downstream,
    PcieToPci,
    Conventional,
    /// A conventional bridge of Intel's chipsets, which is taken for a PCIe-to-PCI bridge in hiding where it
    /// stands below a port.
    Chipset,
}

/// Pseudo-random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: u8) -> u8 {
        u8::try_from(self.next() % u64::from(limit.max(1))).unwrap_or_default()
    }

    /// True in `percent` of 100 cases.
    pub(super) fn chance(&mut self, percent: u8) -> bool {
        self.below(100) < percent
    }

    /// One of several by weight.
    pub(super) fn choose<T: Copy>(&mut self, of: &[(T, u8)]) -> Option<T> {
        let mut left = self.below(of.iter().map(|(_, weight)| weight).sum());
        for (what, weight) in of {
            if left < *weight {
                return Some(*what);
            }
            left -= weight;
        }
        None
    }
}

/// A machine under construction.
#[derive(Clone, Debug)]
pub(super) struct Build {
    pub(super) random: Random,
    root: Bus,
    machine: Machine,
    ids: usize,
    bridges: usize,
    functions: usize,
    /// Length of all ACS settings as text.
    settings: usize,
}

impl Build {
    pub(super) fn new(seed: u64) -> Self {
        let mut machine = Machine::default();
        for (device, function) in [(0, 0), (0x1f, 0), (0x1f, 2), (0x1f, 3)] {
            machine.root_functions.push(RootFunction {
                bus: 0,
                device,
                function,
                is_bridge: false,
            });
        }
        Self {
            random: Random::new(seed),
            root: Bus {
                id: "pcie.0".to_owned(),
                kind: Kind::Root,
                number: 0,
                path: "0:".to_owned(),
                next: 1,
            },
            machine,
            ids: 0,
            bridges: 0,
            functions: 0,
            settings: 0,
        }
    }

    pub(super) fn finish(mut self, name: String) -> Machine {
        self.machine.name = name;
        self.machine
    }

    /// The next free device number of a bus, for a device of one function.
    pub(super) const fn single(&mut self, bus: &mut Bus) -> Place {
        let device = bus.next;
        bus.next += 1;
        Place {
            device,
            function: 0,
            multifunction: false,
        }
    }

    /// The next free device number of a bus, for a device with these functions, of which 0 must be one.
    pub(super) fn several(&mut self, bus: &mut Bus, functions: &[u8]) -> Vec<Place> {
        let Place { device, .. } = self.single(bus);
        let place = |function: &u8| Place {
            device,
            function: *function,
            multifunction: true,
        };
        functions.iter().map(place).collect()
    }

    /// Adds a device of a QEMU model, which properties may follow, and returns its id.
    pub(super) fn device(&mut self, bus: &Bus, at: Place, model: &str) -> String {
        self.add(bus, at, model, false)
    }

    fn add(&mut self, bus: &Bus, at: Place, model: &str, is_bridge: bool) -> String {
        self.ids += 1;
        let id = format!("d{}", self.ids);
        let several = if at.multifunction { ",multifunction=on" } else { "" };
        let Place { device, function, .. } = at;
        self.object(&format!(
            "{model},id={id},bus={},addr={device:x}.{function:x}{several}",
            bus.id
        ));
        self.functions += 1;
        if bus.is_root() {
            self.machine.root_functions.push(RootFunction {
                bus: bus.number,
                device,
                function,
                is_bridge,
            });
        }
        id
    }

    /// Adds an NVMe function with virtual ones, by its properties. Only its driver can switch them on.
    pub(super) fn nvme_with_virtual_functions(&mut self, bus: &Bus, at: Place, model: &str) {
        self.machine.needs_nvme_driver = true;
        self.device(bus, at, model);
    }

    /// Adds something that is no function.
    pub(super) fn object(&mut self, model: &str) {
        self.machine.arguments.extend(["-device".to_owned(), model.to_owned()]);
    }

    /// Adds an endpoint that fits the bus.
    pub(super) fn endpoint(&mut self, bus: &Bus, at: Place) {
        // Models without I/O ports: bridges would have to open windows of 4 KiB for them, of which there are few.
        let express = [
            ("virtio-rng-pci-non-transitional", 5),
            ("qemu-xhci", 2),
            ("nec-usb-xhci", 1),
            ("nvme,serial=x", 1),
        ];
        let conventional = [("edu", 2), ("sdhci-pci", 2), ("ich9-intel-hda", 1), ("usb-ehci", 1)];
        let model = if bus.kind == Kind::Conventional || self.random.chance(10) {
            self.random.choose(&conventional)
        } else {
            self.random.choose(&express)
        };
        self.device(bus, at, model.unwrap_or("edu"));
    }

    /// Adds a bridge and returns the bus below it.
    pub(super) fn bridge(&mut self, bus: &Bus, at: Place, bridge: Bridge) -> Bus {
        self.bridges += 1;
        let number = self.bridges;
        let model = match bridge {
            Bridge::RootPort => format!("pcie-root-port,chassis={number}"),
            Bridge::Ioh => format!("ioh3420,chassis={number}"),
            Bridge::Upstream => "x3130-upstream".to_owned(),
            Bridge::Downstream => format!("xio3130-downstream,chassis={number}"),
            Bridge::PcieToPci => "pcie-pci-bridge".to_owned(),
            Bridge::Conventional => format!("pci-bridge,chassis_nr={number},shpc=off"),
            Bridge::Chipset => "i82801b11-bridge".to_owned(),
        };
        let kind = match bridge {
            Bridge::RootPort | Bridge::Ioh | Bridge::Downstream => Kind::Link,
            Bridge::Upstream => Kind::Switch,
            Bridge::PcieToPci | Bridge::Conventional | Bridge::Chipset => Kind::Conventional,
        };
        let slash = if bus.is_root() { "" } else { "/" };
        let path = format!("{}{slash}{:x}.{:x}", bus.path, at.device, at.function);
        Bus {
            id: self.add(bus, at, &model, true),
            kind,
            number: 0,
            path,
            // QEMU keeps number 0 of a conventional bus for a hot-plug controller.
            next: u8::from(kind == Kind::Conventional),
        }
    }

    /// A bridge that is a device of its own.
    pub(super) fn single_bridge(&mut self, bus: &mut Bus, bridge: Bridge) -> Bus {
        let at = self.single(bus);
        self.bridge(bus, at, bridge)
    }

    /// An endpoint that is a device of its own.
    pub(super) fn single_endpoint(&mut self, bus: &mut Bus) {
        let at = self.single(bus);
        self.endpoint(bus, at);
    }

    /// Another root bus, with its number and further properties.
    pub(super) fn expander(&mut self, number: u8, properties: &str) -> Bus {
        self.on_root(|build, root| {
            let at = build.single(root);
            Bus {
                id: build.device(root, at, &format!("pxb-pcie,bus_nr={number}{properties}")),
                kind: Kind::Expander,
                number,
                path: format!("{number:x}:"),
                next: 0,
            }
        })
    }

    /// Has Linux leave some of the controls of the port above a bus off, at least one of those that isolate.
    pub(super) fn weaken(&mut self, below: &Bus) {
        const ISOLATING: [usize; 4] = [0, 2, 3, 4];
        let mut controls = [(); 5].map(|()| self.random.chance(60));
        let off = ISOLATING
            .get(usize::from(self.random.below(4)))
            .copied()
            .unwrap_or_default();
        if let Some(control) = controls.get_mut(off) {
            *control = false;
        }
        let setting = AcsSetting {
            path: below.path.clone(),
            controls,
        };
        self.settings += setting.to_string().len() + 1;
        if self.settings < SETTINGS {
            self.machine.acs.push(setting);
        }
    }

    /// Runs `fill` with the root bus.
    pub(super) fn on_root<T>(&mut self, fill: impl FnOnce(&mut Self, &mut Bus) -> T) -> T {
        let mut root = self.root.clone();
        let result = fill(self, &mut root);
        self.root = root;
        result
    }

    /// Fills the machine at random with about this number of functions.
    pub(super) fn grow_all(&mut self, functions: usize) {
        if self.random.chance(50) {
            let mut bus = self.expander(0x80, "");
            self.grow(&mut bus, 0, functions / 3);
        }
        while self.functions < functions && self.root.next < ROOT_SLOTS {
            self.on_root(|build, root| build.grow_device(root, 0, functions));
        }
    }

    /// Fills a bus.
    fn grow(&mut self, bus: &mut Bus, depth: u8, functions: usize) {
        let devices = match bus.kind {
            // An empty link is a shape too.
            Kind::Link => u8::from(self.random.chance(85)),
            Kind::Root | Kind::Expander | Kind::Switch | Kind::Conventional => 1 + self.random.below(3),
        };
        for _ in 0..devices {
            self.grow_device(bus, depth, functions);
            // Device numbers need not follow each other.
            if bus.kind != Kind::Link && self.random.chance(20) {
                bus.skip();
            }
        }
    }

    fn grow_device(&mut self, bus: &mut Bus, depth: u8, functions: usize) {
        let places = if self.random.chance(30) {
            let mut numbers = vec![0];
            numbers.extend((1..8).filter(|_| self.random.chance(35)));
            self.several(bus, &numbers)
        } else {
            vec![self.single(bus)]
        };
        for place in places {
            let may_branch = depth < DEPTH && self.functions < functions && self.bridges < BRIDGES;
            match self
                .choose_bridge(bus.kind)
                .filter(|_| may_branch || bus.kind == Kind::Expander)
            {
                None => self.endpoint(bus, place),
                Some(bridge) => {
                    let mut below = self.bridge(bus, place, bridge);
                    if self.random.chance(35) {
                        self.weaken(&below);
                    }
                    self.grow(&mut below, depth + 1, functions);
                }
            }
        }
    }

    /// What may stand on a bus; `None` for an endpoint. Some choices make no sense, and kernels have to cope.
    fn choose_bridge(&mut self, kind: Kind) -> Option<Bridge> {
        use Bridge::{Chipset, Conventional, Downstream, Ioh, PcieToPci, RootPort, Upstream};
        let choices: &[(Option<Bridge>, u8)] = match kind {
            Kind::Root => &[
                (None, 25),
                (Some(RootPort), 40),
                (Some(Ioh), 10),
                (Some(PcieToPci), 8),
                (Some(Conventional), 8),
                (Some(Chipset), 5),
                (Some(Upstream), 2),
                (Some(Downstream), 2),
            ],
            Kind::Expander => &[
                (Some(RootPort), 60),
                (Some(Ioh), 20),
                (Some(PcieToPci), 10),
                (Some(Conventional), 10),
            ],
            Kind::Link => &[
                (None, 45),
                (Some(Upstream), 30),
                (Some(PcieToPci), 12),
                (Some(Chipset), 6),
                (Some(Conventional), 3),
                (Some(RootPort), 2),
                (Some(Downstream), 2),
            ],
            Kind::Switch => &[
                (None, 10),
                (Some(Downstream), 78),
                (Some(PcieToPci), 4),
                (Some(Chipset), 2),
                (Some(Conventional), 2),
                (Some(RootPort), 2),
                (Some(Upstream), 2),
            ],
            Kind::Conventional => &[
                (None, 62),
                (Some(Conventional), 24),
                (Some(Chipset), 8),
                (Some(PcieToPci), 3),
                (Some(RootPort), 3),
            ],
        };
        self.random.choose(choices).flatten()
    }
}
