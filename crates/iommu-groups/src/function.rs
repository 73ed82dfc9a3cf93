//! One PCI function, as its configuration space shows it.

use alloc::boxed::Box;
use alloc::vec::Vec;

use iommu_types::{Bdf, DevFn};

use crate::access::{ConfigAccess, Presence, Reader};
use crate::capability::{self, End};
use crate::groups::LinuxVersion;
use crate::pci::{
    self, PortType, acs, advanced, ari, ats, bridge, capability as cap, express, extended, header, pasid, power, pri,
    sriov,
};
use crate::problem::{ListFault, Problem};
use crate::quirks;
use crate::topology::BusNumbers;

/// The header layout of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Type 0: not a bridge.
    Function,
    /// Type 1: a PCI-to-PCI bridge or a PCI Express port.
    Bridge,
    /// Type 2: a CardBus bridge.
    CardBus,
    /// Anything else, with its number.
    Other(u8),
}

/// The ACS capability as found. Bits as in [`acs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AcsState {
    /// The capability register.
    pub capability: u16,
    /// The control register.
    pub control: u16,
}

/// The ATS capability as found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AtsState {
    /// Whether the device-TLB is on.
    pub enabled: bool,
    /// Invalidations the device can hold, 1 to 32.
    pub queue_depth: u8,
    /// Whether the model is known to get ATS wrong, so that it must stay off.
    pub broken: bool,
}

/// The PASID capability as found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PasidState {
    /// Whether requests may carry a PASID.
    pub enabled: bool,
    /// Bits of a PASID, at most 20.
    pub width: u8,
}

/// The page request capability as found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PriState {
    /// Whether page requests are on.
    pub enabled: bool,
}

/// The SR-IOV capability as found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SriovState {
    /// Whether virtual functions exist now.
    pub enabled: bool,
    /// Virtual functions that can exist.
    pub total: u16,
    /// Virtual functions that exist while enabled.
    pub count: u16,
    /// Requester IDs from the physical function to its first virtual function.
    pub first_offset: u16,
    /// Requester IDs from one virtual function to the next.
    pub stride: u16,
    /// Device ID of the virtual functions.
    pub device: u16,
}

/// Ways to reset a function, apart from resetting the bus above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Resets {
    /// Function level reset of PCI Express.
    pub flr: Presence<()>,
    /// Function level reset of the conventional advanced features.
    pub advanced: Presence<()>,
    /// The way from D3hot to D0, where it resets.
    pub power: Presence<()>,
}

/// A switch port where only the other side of a switch can stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Misplaced {
    /// What its register says.
    pub(crate) claims: PortType,
    /// Whether Linux notices. It does not where the port above is misplaced too: that one counts as an endpoint.
    pub(crate) noticed: bool,
}

/// The first release of Linux that corrects misplaced ports. `drivers/pci/probe.c` (`set_pcie_port_type`).
const LINUX_CORRECTS: (u16, u16) = (5, 4);

/// A set of device and function numbers on one bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DevFnSet([u64; 4]);

impl DevFnSet {
    pub(crate) fn insert(&mut self, devfn: DevFn) {
        let (word, bit) = (usize::from(devfn.raw() >> 6), devfn.raw() & 63);
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << bit;
        }
    }

    pub(crate) fn contains(&self, devfn: DevFn) -> bool {
        let (word, bit) = (usize::from(devfn.raw() >> 6), devfn.raw() & 63);
        self.0.get(word).is_some_and(|word| word >> bit & 1 != 0)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = DevFn> {
        (0..=u8::MAX).map(DevFn::from_raw).filter(|devfn| self.contains(*devfn))
    }
}

/// A PCI function: what is known of it, and where it stands.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Function {
    /// Where it is.
    pub bdf: Bdf,
    /// Vendor ID; a virtual function has that of its physical function. All-ones for a function that was listed
    /// but did not answer.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor and subsystem, of functions that are not bridges.
    pub subsystem: Option<(u16, u16)>,
    /// Base class, subclass and programming interface in bits 23:0.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
    /// Header layout.
    pub layout: Layout,
    /// Whether it is one of several functions of a device: its header says so, or its function number is not 0.
    /// Virtual functions are not counted.
    pub multifunction: bool,
    /// The kind of PCI Express function; absent for conventional PCI.
    pub port: Presence<PortType>,
    /// PCI-X, of a conventional function or bridge: its requests carry a requester ID of their own up to the first
    /// bridge, which passes it on or puts its own in its place. Both count ([`crate::Topology::aliases`]).
    pub pci_x: Presence<()>,
    /// What it says it is, where it stands in a place for the other side of a switch and `port` is that.
    pub(crate) misplaced: Option<Misplaced>,
    /// Bus numbers of a bridge.
    pub buses: Option<BusNumbers>,
    /// Whether it has memory that others could reach: a memory BAR that is not zero.
    pub has_memory: bool,
    /// Access control services.
    pub acs: Presence<AcsState>,
    /// Address translation services.
    pub ats: Presence<AtsState>,
    /// Process address space identifiers.
    pub pasid: Presence<PasidState>,
    /// Page requests.
    pub pri: Presence<PriState>,
    /// Virtual functions.
    pub sriov: Presence<SriovState>,
    /// Alternative routing-ID interpretation; the next function, zero for the last.
    pub ari: Presence<u8>,
    /// Whether a port forwards to more than eight functions.
    pub ari_forwarding: bool,
    /// Ways to reset it.
    pub resets: Resets,
    /// The physical function, of a virtual one.
    pub physical_function: Option<Bdf>,
    /// The function whose requester ID it really uses (children of a VMD).
    pub real_dma: Option<Bdf>,
    /// Requester IDs on its own bus that it uses besides its own.
    pub(crate) alias_mask: Option<Box<DevFnSet>>,
    /// Whether the source validation of a chipset port that keeps it in a private register is on.
    pub(crate) private_validation: bool,
    /// The bridge above, as an index into the topology.
    pub(crate) parent: Option<usize>,
}

/// Base address registers by layout.
const BARS: [u16; 6] = [0x10, 0x14, 0x18, 0x1c, 0x20, 0x24];

impl Function {
    /// Whether it is a bridge of any kind.
    #[must_use]
    pub const fn is_bridge(&self) -> bool {
        matches!(self.layout, Layout::Bridge | Layout::CardBus)
    }

    /// Whether it is a virtual function.
    #[must_use]
    pub const fn is_virtual(&self) -> bool {
        self.physical_function.is_some()
    }

    /// The kind of function that a release of Linux takes it for.
    ///
    /// Where Linux notices a misplaced port it means to store the other kind, and stores it in the wrong bits of its
    /// copy of the register: the port then counts as an endpoint, which is 0.
    pub(crate) fn linux_port(&self, version: LinuxVersion) -> Presence<PortType> {
        match self.misplaced {
            None => self.port,
            Some(misplaced) if misplaced.noticed && version.at_least(LINUX_CORRECTS) => {
                Presence::Present(PortType::ENDPOINT)
            }
            Some(misplaced) => Presence::Present(misplaced.claims),
        }
    }

    /// Whether its requests carry the requester ID of a function that is not known: its domain is none of the
    /// firmware's, so it is behind a function of another domain.
    #[must_use]
    pub fn has_unknown_requester(&self) -> bool {
        self.real_dma.is_none() && self.bdf.segment.firmware().is_none()
    }

    /// Base class and subclass.
    #[must_use]
    pub fn class_code(&self) -> u16 {
        u16::try_from(self.class >> 8 & 0xffff).unwrap_or(0)
    }

    /// What the function is, in a few words.
    #[must_use]
    pub fn describe(&self) -> &'static str {
        if self.is_virtual() {
            return "virtual function";
        }
        match (self.port, self.layout) {
            (Presence::Present(port), _) => port.describe(),
            (_, Layout::CardBus) => "CardBus bridge",
            (Presence::Absent, Layout::Bridge) if self.pci_x.is_present() => "PCI-X bridge",
            (Presence::Absent, _) if self.pci_x.is_present() => "PCI-X function",
            (Presence::Absent, Layout::Bridge) => "conventional PCI bridge",
            (Presence::Absent, _) => "conventional PCI function",
            (Presence::Unknown, Layout::Bridge) => "bridge of unknown kind",
            (Presence::Unknown, _) => "function of unknown kind",
        }
    }

    /// Reads a function; `None` if nothing answers there.
    pub(crate) fn read<A: ConfigAccess>(access: &A, bdf: Bdf, problems: &mut Vec<Problem>) -> Option<Self> {
        let reader = Reader { access, function: bdf };
        let identity = reader.read32(header::VENDOR_ID)?;
        let [v0, v1, d0, d1] = identity.to_le_bytes();
        // All-ones: nobody. The other values are what bridges return while a device is not ready.
        if matches!(identity, pci::NO_FUNCTION | 0 | 0x0000_ffff | 0xffff_0000) {
            return None;
        }
        let mut function = Self::empty(bdf);
        function.vendor = u16::from_le_bytes([v0, v1]);
        function.device = u16::from_le_bytes([d0, d1]);
        function.read_header(&reader);
        function.read_capabilities(&reader, problems);
        function.read_extended(&reader, problems);
        function.apply_quirks(&reader, problems);
        Some(function)
    }

    /// Asks `access` for every dword of `bdf` that [`Topology`](crate::Topology) looks at, and forgets the answers.
    ///
    /// Reads of a live function cost time: somebody who keeps what is read, for a topology to be made of it later, need
    /// not read whole spaces.
    pub fn prefetch<A: ConfigAccess>(access: &A, bdf: Bdf) {
        let reader = Reader { access, function: bdf };
        // A virtual function has no identity of its own, but the rest of a header.
        if reader.read32(header::COMMAND) == Some(pci::NO_FUNCTION) {
            return;
        }
        let mut function = Self::empty(bdf);
        let mut forgotten = Vec::new();
        if let Some([v0, v1, d0, d1]) = reader.read32(header::VENDOR_ID).map(u32::to_le_bytes) {
            function.vendor = u16::from_le_bytes([v0, v1]);
            function.device = u16::from_le_bytes([d0, d1]);
        }
        function.read_header(&reader);
        function.read_capabilities(&reader, &mut forgotten);
        function.read_extended(&reader, &mut forgotten);
        function.apply_quirks(&reader, &mut forgotten);
    }

    /// Reads virtual function `bdf` of `physical`. Its identity is the physical function's; its own registers
    /// count where they can be read.
    pub(crate) fn read_virtual<A: ConfigAccess>(
        access: &A,
        bdf: Bdf,
        physical: &Self,
        sriov: SriovState,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let reader = Reader { access, function: bdf };
        let mut function = Self::empty(bdf);
        function.vendor = physical.vendor;
        function.device = sriov.device;
        function.class = physical.class;
        function.revision = physical.revision;
        function.subsystem = physical.subsystem;
        let answers = reader
            .read32(header::COMMAND)
            .is_some_and(|command| command != pci::NO_FUNCTION);
        if answers {
            function.read_capabilities(&reader, problems);
            function.read_extended(&reader, problems);
        }
        function.port = Presence::Present(PortType::ENDPOINT);
        function.layout = Layout::Function;
        function.multifunction = false;
        function.sriov = Presence::Absent;
        function.has_memory = true;
        function.physical_function = Some(physical.bdf);
        function.parent = physical.parent;
        function
    }

    /// A function that is known to exist and does not answer.
    pub(crate) fn silent(bdf: Bdf, parent: Option<usize>) -> Self {
        let mut function = Self::empty(bdf);
        (function.vendor, function.device) = (u16::MAX, u16::MAX);
        function.multifunction = bdf.devfn().function() != 0;
        function.has_memory = true;
        function.parent = parent;
        function
    }

    const fn empty(bdf: Bdf) -> Self {
        Self {
            bdf,
            vendor: 0,
            device: 0,
            subsystem: None,
            class: 0,
            revision: 0,
            layout: Layout::Function,
            multifunction: false,
            port: Presence::Unknown,
            pci_x: Presence::Unknown,
            misplaced: None,
            buses: None,
            has_memory: false,
            acs: Presence::Unknown,
            ats: Presence::Unknown,
            pasid: Presence::Unknown,
            pri: Presence::Unknown,
            sriov: Presence::Unknown,
            ari: Presence::Unknown,
            ari_forwarding: false,
            resets: Resets {
                flr: Presence::Unknown,
                advanced: Presence::Unknown,
                power: Presence::Unknown,
            },
            physical_function: None,
            real_dma: None,
            alias_mask: None,
            private_validation: false,
            parent: None,
        }
    }

    fn read_header<A: ConfigAccess>(&mut self, reader: &Reader<'_, A>) {
        if let Some(class) = reader.read32(header::REVISION) {
            self.class = class >> 8;
            self.revision = class.to_le_bytes()[0];
        }
        let kind = reader.read8(header::HEADER_TYPE).unwrap_or(0);
        self.layout = match kind & header::HEADER_LAYOUT {
            header::LAYOUT_FUNCTION => Layout::Function,
            header::LAYOUT_BRIDGE => Layout::Bridge,
            header::LAYOUT_CARDBUS => Layout::CardBus,
            other => Layout::Other(other),
        };
        self.multifunction = kind & header::HEADER_MULTIFUNCTION != 0 || self.bdf.devfn().function() != 0;
        let bars = match self.layout {
            Layout::Function => BARS.get(..6),
            Layout::Bridge => BARS.get(..2),
            Layout::CardBus => BARS.get(..1),
            Layout::Other(_) => None,
        };
        self.has_memory = bars.unwrap_or_default().iter().any(|at| {
            reader
                .read32(*at)
                .is_some_and(|bar| bar != 0 && bar & pci::bar::IO == 0)
        });
        if self.is_bridge()
            && let Some([primary, secondary, subordinate, _]) = reader.read32(bridge::PRIMARY).map(u32::to_le_bytes)
        {
            self.buses = Some(BusNumbers {
                primary,
                secondary,
                subordinate,
            });
        }
        if self.layout == Layout::Function {
            self.subsystem = reader
                .read32(header::SUBSYSTEM)
                .map(u32::to_le_bytes)
                .map(|[a, b, c, d]| (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])));
        }
    }

    fn read_capabilities<A: ConfigAccess>(&mut self, reader: &Reader<'_, A>, problems: &mut Vec<Problem>) {
        let (mut express_at, mut power_at, mut advanced_at) = (None, None, None);
        let mut pci_x_at = None;
        let end = capability::walk(reader, self.layout == Layout::CardBus, |id, at| match id {
            // The first of a kind counts, as it does for every operating system.
            cap::PCI_EXPRESS => express_at = express_at.or(Some(at)),
            cap::PCI_X => pci_x_at = pci_x_at.or(Some(at)),
            cap::POWER_MANAGEMENT => power_at = power_at.or(Some(at)),
            cap::ADVANCED_FEATURES => advanced_at = advanced_at.or(Some(at)),
            _ => {}
        });
        report(self.bdf, end, problems);

        let register = |at: u16, offset: u16| reader.read16(at + offset);
        self.pci_x = found(pci_x_at, end, |_| Some(()));
        self.port = found(express_at, end, |at| {
            let value = register(at, express::CAPABILITIES)? >> express::TYPE_SHIFT & express::TYPE_MASK;
            u8::try_from(value).ok().map(PortType)
        });
        self.resets.flr = match found(express_at, end, |at| reader.read32(at + express::DEVICE_CAPABILITIES)) {
            Presence::Present(value) if value & express::FLR_CAPABLE == 0 => Presence::Absent,
            other => other.map(|_| ()),
        };
        self.resets.advanced = match found(advanced_at, end, |at| reader.read8(at + advanced::CAPABILITIES)) {
            Presence::Present(value) if value & advanced::FLR_CAPABLE == 0 => Presence::Absent,
            other => other.map(|_| ()),
        };
        self.resets.power = match found(power_at, end, |at| register(at, power::CONTROL)) {
            Presence::Present(value) if value & power::NO_SOFT_RESET != 0 => Presence::Absent,
            other => other.map(|_| ()),
        };
        self.ari_forwarding = express_at
            .and_then(|at| register(at, express::DEVICE_CONTROL_2))
            .is_some_and(|control| self.is_bridge() && control & express::ARI_FORWARDING != 0);

        let port_is_bridge = match self.port {
            Presence::Present(
                PortType::ROOT_PORT
                | PortType::UPSTREAM_PORT
                | PortType::DOWNSTREAM_PORT
                | PortType::PCIE_TO_PCI_BRIDGE
                | PortType::PCI_TO_PCIE_BRIDGE,
            ) => true,
            Presence::Present(_) => false,
            Presence::Absent | Presence::Unknown => return,
        };
        if port_is_bridge != self.is_bridge() {
            problems.push(Problem::HeaderAgainstPort { function: self.bdf });
            if self.is_bridge() {
                // A conventional bridge is the kind of bridge that isolates nothing.
                self.port = Presence::Absent;
            }
        }
    }

    fn read_extended<A: ConfigAccess>(&mut self, reader: &Reader<'_, A>, problems: &mut Vec<Problem>) {
        // Only PCI Express functions have these; a function of unknown kind is asked too.
        let end = if self.port == Presence::Absent {
            Some(End::Clean)
        } else {
            None
        };
        let (mut acs_at, mut ats_at, mut pasid_at, mut pri_at, mut sriov_at, mut ari_at) =
            (None, None, None, None, None, None);
        let end = end.unwrap_or_else(|| {
            capability::walk_extended(reader, |id, at| {
                let slot = match id {
                    extended::ACS => &mut acs_at,
                    extended::ATS => &mut ats_at,
                    extended::PASID => &mut pasid_at,
                    extended::PRI => &mut pri_at,
                    extended::SRIOV => &mut sriov_at,
                    extended::ARI => &mut ari_at,
                    _ => return,
                };
                *slot = slot.or(Some(at));
            })
        });
        report(self.bdf, end, problems);

        let read16 = |at: u16, offset: u16| reader.read16(at + offset);
        self.acs = found(acs_at, end, |at| {
            if quirks::has_wide_acs_registers(self) {
                // The control register stands where the layout of dwords puts it.
                let low = |value: u32| u16::try_from(value & 0xffff).ok();
                return Some(AcsState {
                    capability: low(reader.read32(at + acs::CAPABILITIES)?)?,
                    control: low(reader.read32(at + quirks::WIDE_ACS_CONTROL)?)?,
                });
            }
            Some(AcsState {
                capability: read16(at, acs::CAPABILITIES)?,
                control: read16(at, acs::CONTROL)?,
            })
        });
        self.ats = found(ats_at, end, |at| {
            let depth = u8::try_from(read16(at, ats::CAPABILITIES)? & ats::QUEUE_DEPTH).ok()?;
            Some(AtsState {
                enabled: read16(at, ats::CONTROL)? & ats::ENABLE != 0,
                queue_depth: if depth == 0 { 32 } else { depth },
                broken: quirks::ats_is_broken(self),
            })
        });
        self.pasid = found(pasid_at, end, |at| {
            let width = read16(at, pasid::CAPABILITIES)? >> pasid::WIDTH_SHIFT & pasid::WIDTH_MASK;
            Some(PasidState {
                enabled: read16(at, pasid::CONTROL)? & pasid::ENABLE != 0,
                width: u8::try_from(width).ok()?.min(20),
            })
        });
        self.pri = found(pri_at, end, |at| {
            let enabled = read16(at, pri::CONTROL)? & pri::ENABLE != 0;
            Some(PriState { enabled })
        });
        self.ari = found(ari_at, end, |at| {
            let next = read16(at, ari::CAPABILITIES)? >> ari::NEXT_FUNCTION_SHIFT;
            u8::try_from(next).ok()
        });
        self.sriov = found(sriov_at, end, |at| {
            Some(SriovState {
                enabled: read16(at, sriov::CONTROL)? & sriov::VF_ENABLE != 0,
                total: read16(at, sriov::TOTAL_VFS)?,
                count: read16(at, sriov::NUM_VFS)?,
                first_offset: read16(at, sriov::FIRST_OFFSET)?,
                stride: read16(at, sriov::STRIDE)?,
                device: read16(at, sriov::VF_DEVICE_ID)?,
            })
        });
    }

    fn apply_quirks<A: ConfigAccess>(&mut self, reader: &Reader<'_, A>, problems: &mut Vec<Problem>) {
        self.private_validation = quirks::is_pch_port(self)
            && reader
                .read32(quirks::PCH_VALIDATION)
                .is_some_and(|value| value & quirks::PCH_VALIDATION_ON != 0);
        for quirk in quirks::dma_aliases(self) {
            match quirk.effect {
                quirks::AliasEffect::FromRegisters => {
                    problems.push(Problem::AliasesNotKnown { function: self.bdf });
                }
                effect => {
                    let mask = self.alias_mask.get_or_insert_default();
                    effect.add_to(self.bdf.devfn(), mask);
                }
            }
        }
    }
}

/// What a list that ended with `end` says about a capability seen at `at`, read by `read`.
fn found<T>(at: Option<u16>, end: End, read: impl FnOnce(u16) -> Option<T>) -> Presence<T> {
    match at {
        Some(at) => read(at).map_or(Presence::Unknown, Presence::Present),
        None if end == End::Clean => Presence::Absent,
        None => Presence::Unknown,
    }
}

fn report(function: Bdf, end: End, problems: &mut Vec<Problem>) {
    // That a dump ends, or that rights are missing, shows in the answers: they are unknown. It is no
    // contradiction in the machine.
    if let End::Fault(at, fault) = end
        && fault != ListFault::Unreadable
    {
        problems.push(Problem::CapabilityList { function, at, fault });
    }
}
