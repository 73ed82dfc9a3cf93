//! Building a configuration space from what the device is.

use iommu_groups::pci::{
    self, PortType, acs, advanced, ari, ats, bridge, capability, express, extended, header, msi, msix, pasid, power,
    pri, serial, sriov,
};
use iommu_types::{AddrRange, HostPhys};

use super::{BARS, Bar, BarKind, ConfigSpace, Image, Places};

/// Whether a function forgets its state on the way from D3hot to D0: a way to reset it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftReset {
    /// The function resets (No Soft Reset is clear).
    Resets,
    /// The function keeps its state (No Soft Reset is set).
    Keeps,
}

/// The ACS capability: which controls exist and how firmware left them. Bits as in [`acs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acs {
    /// The capability register.
    pub capability: u16,
    /// The control register before software changes it.
    pub control: u16,
}

impl Acs {
    /// Everything that isolation needs is there and on.
    pub const ISOLATING: Self = Self {
        capability: acs::REQUIRED | acs::TRANSLATION_BLOCKING,
        control: acs::REQUIRED,
    };
    /// The same capability, with every control off.
    pub const OFF: Self = Self {
        capability: acs::REQUIRED | acs::TRANSLATION_BLOCKING,
        control: 0,
    };
}

/// The ATS capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ats {
    /// Invalidations the device-TLB can hold, 1 to 32.
    pub queue_depth: u8,
    /// Whether untranslated addresses in translation requests are always page aligned.
    pub page_aligned: bool,
}

/// The MSI-X capability; table and pending bits lie in a BAR of the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiX {
    /// Vectors, 1 to 2048.
    pub vectors: u16,
    /// The BAR that holds both structures.
    pub bar: u8,
    /// Byte offset of the table in that BAR, a multiple of 8.
    pub table: u32,
    /// Byte offset of the pending bits in that BAR, a multiple of 8.
    pub pending: u32,
}

/// The SR-IOV capability of a physical function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sriov {
    /// Virtual functions that can exist.
    pub total: u16,
    /// Virtual functions that firmware enabled; zero leaves VF Enable clear.
    pub enabled: u16,
    /// Requester IDs from the physical function to its first virtual function.
    pub first_offset: u16,
    /// Requester IDs from one virtual function to the next.
    pub stride: u16,
    /// Device ID of the virtual functions.
    pub device: u16,
    /// Memory per virtual function behind VF BAR 0, a power of two of at least 4096; zero for none.
    pub bar_size: u32,
}

/// A configuration space that cannot be built as described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The capability does not fit any more.
    #[error("no room for the {0} capability: the capabilities before it fill the space; leave one out")]
    NoRoom(&'static str),
    /// Extended capabilities lie in space that only PCI Express functions have.
    #[error("the {0} capability needs PCI Express: call `express` with a port type, or leave it out")]
    NeedsExpress(&'static str),
    /// A port type that goes with the other header layout.
    #[error("{} does not go with a type {} header", port.describe(), u8::from(*bridge))]
    WrongHeader {
        /// The port type asked for.
        port: PortType,
        /// Whether the header is a bridge's.
        bridge: bool,
    },
    /// A BAR number that the header does not have, or that a 64-bit BAR already uses.
    #[error("BAR {0} does not exist in this header, or is the upper half of a 64-bit BAR")]
    NoSuchBar(u8),
    /// Size not a power of two within limits, or an address that is not a multiple of it or out of reach.
    #[error(
        "BAR {index}: size {size:#x} or address {base:#x} is not possible; sizes are powers of two, addresses multiples of the size"
    )]
    ImpossibleBar {
        /// The BAR number.
        index: u8,
        /// Its size in bytes.
        size: u64,
        /// Its programmed address.
        base: u64,
    },
    /// A number outside what its field can hold.
    #[error("{field}: {value} is not possible, {allowed}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What was asked for.
        value: u32,
        /// What is possible.
        allowed: &'static str,
    },
}

fn limit(field: &'static str, value: u32, ok: bool, allowed: &'static str) -> Result<(), ConfigError> {
    if ok {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange { field, value, allowed })
    }
}

/// Describes a function; [`Self::build`] turns the description into bytes with behaviour.
///
/// Capabilities stand in a fixed order from offsets 0x40 and 0x100. Whatever firmware would have programmed
/// (BAR addresses, bus numbers, windows, command register, ACS control) is lost by a reset, as on hardware.
#[derive(Clone, Debug)]
pub struct ConfigBuilder {
    vendor: u16,
    device: u16,
    bridge: bool,
    class: u32,
    revision: u8,
    subsystem: Option<(u16, u16)>,
    multifunction: bool,
    interrupt_pin: u8,
    bars: Vec<(u8, Bar)>,
    buses: Option<(u8, u8, u8)>,
    memory_window: Option<AddrRange<HostPhys>>,
    prefetchable_window: Option<AddrRange<HostPhys>>,
    command: u16,
    express: Option<PortType>,
    flr: bool,
    ari_forwarding: bool,
    power: Option<SoftReset>,
    msi: Option<u8>,
    msi_x: Option<MsiX>,
    advanced: bool,
    acs: Option<Acs>,
    ats: Option<Ats>,
    pri: Option<u32>,
    pasid: Option<u8>,
    sriov: Option<Sriov>,
    ari: Option<u8>,
    serial: Option<u64>,
    virtual_function: bool,
}

impl ConfigBuilder {
    pub(super) const fn new(vendor: u16, device: u16, bridge: bool) -> Self {
        Self {
            vendor,
            device,
            bridge,
            class: if bridge {
                (pci::class::PCI_BRIDGE as u32) << 8
            } else {
                0xff_0000
            },
            revision: 0,
            subsystem: None,
            multifunction: false,
            interrupt_pin: 0,
            bars: Vec::new(),
            buses: None,
            memory_window: None,
            prefetchable_window: None,
            command: 0,
            express: None,
            flr: false,
            ari_forwarding: false,
            power: None,
            msi: None,
            msi_x: None,
            advanced: false,
            acs: None,
            ats: None,
            pri: None,
            pasid: None,
            sriov: None,
            ari: None,
            serial: None,
            virtual_function: false,
        }
    }

    /// Class code: base class, subclass and programming interface in bits 23:0, as in `0x02_00_00`.
    #[must_use]
    pub const fn class(mut self, class: u32) -> Self {
        self.class = class;
        self
    }

    /// Revision ID.
    #[must_use]
    pub const fn revision(mut self, revision: u8) -> Self {
        self.revision = revision;
        self
    }

    /// Subsystem vendor and subsystem. A bridge gets the capability that holds them for bridges.
    #[must_use]
    pub const fn subsystem(mut self, vendor: u16, id: u16) -> Self {
        self.subsystem = Some((vendor, id));
        self
    }

    /// Sets the Multi-Function Device bit.
    #[must_use]
    pub const fn multifunction(mut self) -> Self {
        self.multifunction = true;
        self
    }

    /// The interrupt pin: 1 to 4 for INTA to INTD.
    #[must_use]
    pub const fn interrupt_pin(mut self, pin: u8) -> Self {
        self.interrupt_pin = pin;
        self
    }

    /// Adds base address register `index`.
    #[must_use]
    pub fn bar(mut self, index: u8, bar: Bar) -> Self {
        self.bars.push((index, bar));
        self
    }

    /// Primary, secondary and subordinate bus number of a bridge, as firmware left them.
    #[must_use]
    pub const fn buses(mut self, primary: u8, secondary: u8, subordinate: u8) -> Self {
        self.buses = Some((primary, secondary, subordinate));
        self
    }

    /// The memory that a bridge forwards downstream, rounded outwards to 1 MiB.
    #[must_use]
    pub const fn memory_window(mut self, window: AddrRange<HostPhys>) -> Self {
        self.memory_window = Some(window);
        self
    }

    /// The prefetchable memory that a bridge forwards downstream, rounded outwards to 1 MiB.
    #[must_use]
    pub const fn prefetchable_window(mut self, window: AddrRange<HostPhys>) -> Self {
        self.prefetchable_window = Some(window);
        self
    }

    /// Firmware set Bus Master Enable.
    #[must_use]
    pub const fn bus_master(mut self) -> Self {
        self.command |= header::COMMAND_BUS_MASTER;
        self
    }

    /// Firmware set Memory Space Enable.
    #[must_use]
    pub const fn memory_space(mut self) -> Self {
        self.command |= header::COMMAND_MEMORY;
        self
    }

    /// PCI Express, as this kind of function or port. Without it the function is conventional PCI.
    #[must_use]
    pub const fn express(mut self, port: PortType) -> Self {
        self.express = Some(port);
        self
    }

    /// Function level reset through the PCI Express capability.
    #[must_use]
    pub const fn flr(mut self) -> Self {
        self.flr = true;
        self
    }

    /// Function level reset through the conventional advanced features capability.
    #[must_use]
    pub const fn advanced_features(mut self) -> Self {
        self.advanced = true;
        self
    }

    /// A port that can forward to more than eight functions; software turns it on.
    #[must_use]
    pub const fn ari_forwarding(mut self) -> Self {
        self.ari_forwarding = true;
        self
    }

    /// Power management.
    #[must_use]
    pub const fn power_management(mut self, soft_reset: SoftReset) -> Self {
        self.power = Some(soft_reset);
        self
    }

    /// MSI with 64-bit addresses and `2^log2_vectors` vectors, at most 32.
    #[must_use]
    pub const fn msi(mut self, log2_vectors: u8) -> Self {
        self.msi = Some(log2_vectors);
        self
    }

    /// MSI-X.
    #[must_use]
    pub const fn msi_x(mut self, msi_x: MsiX) -> Self {
        self.msi_x = Some(msi_x);
        self
    }

    /// Access control services.
    #[must_use]
    pub const fn acs(mut self, acs: Acs) -> Self {
        self.acs = Some(acs);
        self
    }

    /// Address translation services.
    #[must_use]
    pub const fn ats(mut self, ats: Ats) -> Self {
        self.ats = Some(ats);
        self
    }

    /// The page request interface with this many outstanding requests.
    #[must_use]
    pub const fn pri(mut self, capacity: u32) -> Self {
        self.pri = Some(capacity);
        self
    }

    /// Process address spaces with identifiers of `width` bits, at most 20.
    #[must_use]
    pub const fn pasid(mut self, width: u8) -> Self {
        self.pasid = Some(width);
        self
    }

    /// Virtual functions.
    #[must_use]
    pub const fn sriov(mut self, sriov: Sriov) -> Self {
        self.sriov = Some(sriov);
        self
    }

    /// Alternative routing-ID interpretation, naming the next function (zero for the last).
    #[must_use]
    pub const fn ari(mut self, next_function: u8) -> Self {
        self.ari = Some(next_function);
        self
    }

    /// Device serial number.
    #[must_use]
    pub const fn serial_number(mut self, number: u64) -> Self {
        self.serial = Some(number);
        self
    }

    /// A virtual function: vendor and device read all-ones and Memory Space Enable stays clear, since both are
    /// the physical function's (PCIe §9.3.4.1, VF Type 0 Configuration Space Header).
    #[must_use]
    pub const fn virtual_function(mut self) -> Self {
        self.virtual_function = true;
        self
    }

    /// Lays everything out.
    ///
    /// # Errors
    /// [`ConfigError`] for a description that no configuration space can hold.
    pub fn build(self) -> Result<ConfigSpace, ConfigError> {
        self.check_port()?;
        let mut layout = Layout::new(self.express.is_some());
        self.header(&mut layout)?;
        let bars = self.base_registers(&mut layout)?;
        if self.bridge {
            bridge_header(&mut layout);
        }
        let mut places = Places::default();
        self.capabilities(&mut layout, &mut places)?;
        self.extended_capabilities(&mut layout, &mut places)?;

        let mut space = ConfigSpace {
            after_reset: layout.image.bytes.clone(),
            image: layout.image,
            bars,
            bridge: self.bridge,
            places,
        };
        self.program(&mut space);
        Ok(space)
    }

    /// A port type must go with the header layout.
    fn check_port(&self) -> Result<(), ConfigError> {
        let Some(port) = self.express else {
            return Ok(());
        };
        let is_bridge = matches!(
            port,
            PortType::ROOT_PORT
                | PortType::UPSTREAM_PORT
                | PortType::DOWNSTREAM_PORT
                | PortType::PCIE_TO_PCI_BRIDGE
                | PortType::PCI_TO_PCIE_BRIDGE
        );
        if is_bridge == self.bridge {
            Ok(())
        } else {
            Err(ConfigError::WrongHeader {
                port,
                bridge: self.bridge,
            })
        }
    }

    fn header(&self, layout: &mut Layout) -> Result<(), ConfigError> {
        limit("class code", self.class, self.class < 1 << 24, "it has 24 bits")?;
        limit(
            "interrupt pin",
            self.interrupt_pin.into(),
            self.interrupt_pin <= 4,
            "0 to 4",
        )?;
        let (vendor, device) = if self.virtual_function {
            (0xffff, 0xffff)
        } else {
            (self.vendor, self.device)
        };
        layout.set16(header::VENDOR_ID, vendor);
        layout.set16(header::DEVICE_ID, device);
        layout.set32(header::REVISION, self.class << 8 | u32::from(self.revision));
        let multifunction = if self.multifunction {
            header::HEADER_MULTIFUNCTION
        } else {
            0
        };
        layout.set8(header::HEADER_TYPE, u8::from(self.bridge) | multifunction);
        layout.set8(header::INTERRUPT_PIN, self.interrupt_pin);
        layout.writable(header::INTERRUPT_LINE, &[0xff]);
        layout.writable(header::CACHE_LINE_SIZE, &[0xff]);

        let mut command =
            header::COMMAND_BUS_MASTER | header::COMMAND_PARITY | header::COMMAND_SERR | header::COMMAND_INTX_DISABLE;
        if !self.virtual_function {
            command |= header::COMMAND_MEMORY;
        }
        if self.bridge || self.bars.iter().any(|(_, bar)| bar.kind() == BarKind::Io) {
            command |= header::COMMAND_IO;
        }
        layout.writable(header::COMMAND, &command.to_le_bytes());
        layout.cleared_by_one(header::STATUS, &header::STATUS_W1C.to_le_bytes());
        if let (Some((vendor, id)), false) = (self.subsystem, self.bridge) {
            layout.set16(header::SUBSYSTEM, vendor);
            layout.set16(header::SUBSYSTEM + 2, id);
        }
        Ok(())
    }

    fn base_registers(&self, layout: &mut Layout) -> Result<[Option<Bar>; BARS], ConfigError> {
        let count = if self.virtual_function {
            0
        } else if self.bridge {
            2
        } else {
            BARS
        };
        let mut bars = [None; BARS];
        let mut taken = [false; BARS];
        for &(index, bar) in &self.bars {
            let slot = usize::from(index);
            let width = if bar.kind() == BarKind::Memory64 { 2 } else { 1 };
            let free = slot + width <= count && taken.iter().skip(slot).take(width).all(|taken| !taken);
            if !free {
                return Err(ConfigError::NoSuchBar(index));
            }
            if !bar.is_possible() {
                return Err(ConfigError::ImpossibleBar {
                    index,
                    size: bar.size(),
                    base: bar.programmed(),
                });
            }
            taken.iter_mut().skip(slot).take(width).for_each(|taken| *taken = true);
            layout.base_register(header::BAR0 + 4 * u16::from(index), bar);
            if let Some(slot) = bars.get_mut(slot) {
                *slot = Some(bar);
            }
        }
        Ok(bars)
    }

    fn capabilities(&self, layout: &mut Layout, places: &mut Places) -> Result<(), ConfigError> {
        if let Some(soft_reset) = self.power {
            let at = layout.place("power management", capability::POWER_MANAGEMENT, power::LEN)?;
            layout.set16(at + power::CAPABILITIES, power::VERSION_3);
            layout.writable(at + power::CONTROL, &power::STATE.to_le_bytes());
            layout.cleared_by_one(at + power::CONTROL, &power::PME_STATUS.to_le_bytes());
            if soft_reset == SoftReset::Keeps {
                layout.set16(at + power::CONTROL, power::NO_SOFT_RESET);
            }
            places.power = Some(at);
        }
        if let Some(log2) = self.msi {
            limit(
                "MSI vectors (log2)",
                log2.into(),
                log2 <= msi::MAX_LOG2_VECTORS,
                "at most 5, for 32 vectors",
            )?;
            let at = layout.place("MSI", capability::MSI, msi::LEN)?;
            layout.set16(
                at + msi::CONTROL,
                msi::ADDRESS_64 | u16::from(log2) << msi::CAPABLE_SHIFT,
            );
            let control = msi::ENABLE | msi::COUNT_MASK << msi::ENABLED_SHIFT;
            layout.writable(at + msi::CONTROL, &control.to_le_bytes());
            layout.writable(at + msi::ADDRESS, &0xffff_fffcu32.to_le_bytes());
            layout.writable(at + msi::ADDRESS_UPPER, &u32::MAX.to_le_bytes());
            layout.writable(at + msi::DATA, &u16::MAX.to_le_bytes());
            places.msi = Some(at);
        }
        if let (Some((vendor, id)), true) = (self.subsystem, self.bridge) {
            let at = layout.place("bridge subsystem", capability::BRIDGE_SUBSYSTEM, 8)?;
            layout.set16(at + 4, vendor);
            layout.set16(at + 6, id);
        }
        if let Some(port) = self.express {
            places.express = Some(self.express_capability(layout, port)?);
        }
        if let Some(m) = self.msi_x {
            limit(
                "MSI-X vectors",
                m.vectors.into(),
                (1..=2048).contains(&m.vectors),
                "1 to 2048",
            )?;
            limit(
                "MSI-X BAR",
                m.bar.into(),
                self.bars.iter().any(|(i, _)| *i == m.bar),
                "name a BAR that exists",
            )?;
            limit(
                "MSI-X table offset",
                m.table,
                m.table & msix::BAR == 0,
                "a multiple of 8",
            )?;
            limit(
                "MSI-X pending offset",
                m.pending,
                m.pending & msix::BAR == 0,
                "a multiple of 8",
            )?;
            let at = layout.place("MSI-X", capability::MSI_X, msix::LEN)?;
            layout.set16(at + msix::CONTROL, m.vectors - 1);
            layout.writable(at + msix::CONTROL, &(msix::ENABLE | msix::MASK).to_le_bytes());
            layout.set32(at + msix::TABLE, m.table | u32::from(m.bar));
            layout.set32(at + msix::PENDING, m.pending | u32::from(m.bar));
        }
        if self.advanced {
            let at = layout.place("advanced features", capability::ADVANCED_FEATURES, advanced::LEN)?;
            layout.set8(at + advanced::LENGTH, 6);
            layout.set8(
                at + advanced::CAPABILITIES,
                advanced::TRANSACTIONS_PENDING | advanced::FLR_CAPABLE,
            );
            places.advanced = Some(at);
        }
        Ok(())
    }

    fn express_capability(&self, layout: &mut Layout, port: PortType) -> Result<u16, ConfigError> {
        let at = layout.place("PCI Express", capability::PCI_EXPRESS, express::LEN)?;
        let register = express::VERSION_2 | u16::from(port.0) << express::TYPE_SHIFT;
        layout.set16(at + express::CAPABILITIES, register);
        let flr = if self.flr { express::FLR_CAPABLE } else { 0 };
        layout.set32(at + express::DEVICE_CAPABILITIES, express::ROLE_BASED_ERRORS | flr);
        layout.writable(at + express::DEVICE_CONTROL, &express::DEVICE_CONTROL_RW.to_le_bytes());
        layout.cleared_by_one(at + express::DEVICE_STATUS, &express::DEVICE_STATUS_W1C.to_le_bytes());
        if !matches!(port, PortType::INTEGRATED_ENDPOINT | PortType::EVENT_COLLECTOR) {
            // One lane at 2.5 GT/s, link up: the least that software expects of a function with a link.
            layout.set32(at + express::LINK_CAPABILITIES, 0x11);
            layout.writable(at + express::LINK_CONTROL, &0x0fffu16.to_le_bytes());
            layout.set16(at + express::LINK_STATUS, 0x11);
        }
        if self.ari_forwarding {
            layout.set32(at + express::DEVICE_CAPABILITIES_2, express::ARI_FORWARDING.into());
            layout.writable(at + express::DEVICE_CONTROL_2, &express::ARI_FORWARDING.to_le_bytes());
        }
        Ok(at)
    }

    fn extended_capabilities(&self, layout: &mut Layout, places: &mut Places) -> Result<(), ConfigError> {
        if let Some(number) = self.serial {
            let at = layout.place_extended("serial number", extended::SERIAL_NUMBER, serial::LEN)?;
            layout.set(at + serial::NUMBER, &number.to_le_bytes());
        }
        if let Some(next) = self.ari {
            let at = layout.place_extended("ARI", extended::ARI, ari::LEN)?;
            layout.set16(at + ari::CAPABILITIES, u16::from(next) << ari::NEXT_FUNCTION_SHIFT);
        }
        if let Some(a) = self.acs {
            let basic = a.capability & acs::BASIC;
            let egress = a.capability & acs::EGRESS_CONTROL != 0;
            let at = layout.place_extended("ACS", extended::ACS, acs::LEN + if egress { 4 } else { 0 })?;
            // A vector of eight bits is the smallest that covers the functions of a device.
            let vector = if egress { 8 << acs::EGRESS_SIZE_SHIFT } else { 0 };
            layout.set16(at + acs::CAPABILITIES, basic | a.capability & acs::ENHANCED | vector);
            let enhanced = if a.capability & acs::ENHANCED != 0 {
                acs::ENHANCED_CONTROL
            } else {
                0
            };
            layout.writable(at + acs::CONTROL, &(basic | enhanced).to_le_bytes());
            if egress {
                layout.writable(at + acs::EGRESS_VECTOR, &[0xff]);
            }
            places.acs = Some(at);
        }
        if let Some(a) = self.ats {
            limit(
                "ATS queue depth",
                a.queue_depth.into(),
                (1..=32).contains(&a.queue_depth),
                "1 to 32",
            )?;
            let at = layout.place_extended("ATS", extended::ATS, ats::LEN)?;
            let aligned = if a.page_aligned { ats::PAGE_ALIGNED } else { 0 };
            layout.set16(
                at + ats::CAPABILITIES,
                u16::from(a.queue_depth) & ats::QUEUE_DEPTH | aligned,
            );
            layout.writable(at + ats::CONTROL, &(ats::ENABLE | ats::SMALLEST_UNIT).to_le_bytes());
        }
        if let Some(s) = self.sriov {
            places.sriov = Some(sriov_capability(layout, s)?);
        }
        if let Some(capacity) = self.pri {
            let at = layout.place_extended("page request", extended::PRI, pri::LEN)?;
            layout.writable(at + pri::CONTROL, &pri::ENABLE.to_le_bytes());
            layout.set16(at + pri::STATUS, pri::STOPPED);
            layout.cleared_by_one(at + pri::STATUS, &pri::STATUS_W1C.to_le_bytes());
            layout.set32(at + pri::CAPACITY, capacity);
            layout.writable(at + pri::ALLOCATION, &u32::MAX.to_le_bytes());
        }
        if let Some(width) = self.pasid {
            limit("PASID width", width.into(), (1..=20).contains(&width), "1 to 20 bits")?;
            let at = layout.place_extended("PASID", extended::PASID, pasid::LEN)?;
            layout.set16(at + pasid::CAPABILITIES, u16::from(width) << pasid::WIDTH_SHIFT);
            layout.writable(at + pasid::CONTROL, &pasid::ENABLE.to_le_bytes());
        }
        Ok(())
    }

    /// What firmware does after power-on, through the same writes. Nothing here can ask for a reset.
    fn program(&self, space: &mut ConfigSpace) {
        for &(index, bar) in &self.bars {
            let at = header::BAR0 + 4 * u16::from(index);
            let len = if bar.kind() == BarKind::Memory64 { 8 } else { 4 };
            let base = bar.programmed().to_le_bytes();
            let _ = space.write(at, base.get(..len).unwrap_or_default());
        }
        if let (Some((primary, secondary, subordinate)), true) = (self.buses, self.bridge) {
            let _ = space.write(bridge::PRIMARY, &[primary, secondary, subordinate]);
        }
        if self.bridge {
            window(space, bridge::MEMORY_WINDOW, self.memory_window);
            window(space, bridge::PREFETCHABLE_WINDOW, self.prefetchable_window);
            let (first, last) = self
                .prefetchable_window
                .map_or((0, 0), |w| (w.first().raw(), w.last().raw()));
            let upper = |address: u64| u32::try_from(address >> 32).unwrap_or(u32::MAX);
            let _ = space.write32(bridge::PREFETCHABLE_BASE_UPPER, upper(first));
            let _ = space.write32(bridge::PREFETCHABLE_LIMIT_UPPER, upper(last));
        }
        if let (Some(at), Some(a)) = (space.places.acs, self.acs) {
            let _ = space.write16(at + acs::CONTROL, a.control);
        }
        if let (Some(at), Some(s)) = (space.places.sriov, self.sriov)
            && s.enabled > 0
        {
            let _ = space.write16(at + sriov::NUM_VFS, s.enabled);
            let _ = space.write16(at + sriov::CONTROL, sriov::VF_ENABLE | sriov::VF_MEMORY);
        }
        let _ = space.write16(header::COMMAND, self.command);
    }
}

fn bridge_header(layout: &mut Layout) {
    layout.writable(bridge::PRIMARY, &[0xff, 0xff, 0xff]);
    layout.cleared_by_one(bridge::SECONDARY_STATUS, &header::STATUS_W1C.to_le_bytes());
    let address = bridge::WINDOW_ADDRESS.to_le_bytes();
    for at in [bridge::MEMORY_WINDOW, bridge::PREFETCHABLE_WINDOW] {
        layout.writable(at, &address);
        layout.writable(at + 2, &address);
    }
    layout.set16(bridge::PREFETCHABLE_WINDOW, bridge::WINDOW_64);
    layout.set16(bridge::PREFETCHABLE_WINDOW + 2, bridge::WINDOW_64);
    layout.writable(bridge::PREFETCHABLE_BASE_UPPER, &u32::MAX.to_le_bytes());
    layout.writable(bridge::PREFETCHABLE_LIMIT_UPPER, &u32::MAX.to_le_bytes());
    layout.writable(bridge::CONTROL, &bridge::CONTROL_RW.to_le_bytes());
}

fn sriov_capability(layout: &mut Layout, s: Sriov) -> Result<u16, ConfigError> {
    limit(
        "SR-IOV enabled VFs",
        s.enabled.into(),
        s.enabled <= s.total,
        "at most the total",
    )?;
    limit(
        "SR-IOV VF BAR size",
        s.bar_size,
        s.bar_size == 0 || (s.bar_size.is_power_of_two() && s.bar_size >= 4096),
        "0 or a power of two of at least 4096",
    )?;
    let at = layout.place_extended("SR-IOV", extended::SRIOV, sriov::LEN)?;
    let control = sriov::VF_ENABLE | sriov::VF_MEMORY | sriov::ARI_HIERARCHY;
    layout.writable(at + sriov::CONTROL, &control.to_le_bytes());
    layout.set16(at + sriov::INITIAL_VFS, s.total);
    layout.set16(at + sriov::TOTAL_VFS, s.total);
    layout.writable(at + sriov::NUM_VFS, &u16::MAX.to_le_bytes());
    layout.set16(at + sriov::FIRST_OFFSET, s.first_offset);
    layout.set16(at + sriov::STRIDE, s.stride);
    layout.set16(at + sriov::VF_DEVICE_ID, s.device);
    layout.set32(at + sriov::SUPPORTED_PAGES, sriov::MANDATORY_PAGES);
    layout.set32(at + sriov::SYSTEM_PAGE, 1);
    layout.writable(at + sriov::SYSTEM_PAGE, &sriov::MANDATORY_PAGES.to_le_bytes());
    if s.bar_size != 0 {
        layout.base_register(at + sriov::VF_BAR0, Bar::memory64(s.bar_size.into()).prefetchable());
    }
    Ok(at)
}

/// Programs the low half of a window; without one, base above limit closes it.
fn window(space: &mut ConfigSpace, at: u16, window: Option<AddrRange<HostPhys>>) {
    let half = |address: u64| u16::try_from(address >> 16 & u64::from(bridge::WINDOW_ADDRESS)).unwrap_or(0);
    let (base, limit) = match window {
        Some(w) => (half(w.first().raw()), half(w.last().raw())),
        None => (bridge::WINDOW_ADDRESS, 0),
    };
    let _ = space.write16(at, base);
    let _ = space.write16(at + 2, limit);
}

/// The image under construction and where the next capability goes.
struct Layout {
    image: Image,
    /// Where the offset of the next capability is to be written.
    link: u16,
    next: u16,
    /// The header of the last extended capability.
    extended_link: Option<u16>,
    extended_next: u16,
}

impl Layout {
    fn new(is_express: bool) -> Self {
        Self {
            image: Image::new(if is_express {
                pci::EXTENDED_LEN
            } else {
                pci::CONVENTIONAL_LEN
            }),
            link: header::CAPABILITIES,
            next: capability::FIRST,
            extended_link: None,
            extended_next: extended::FIRST,
        }
    }

    fn store(bytes: &mut [u8], at: u16, value: &[u8]) {
        let at = usize::from(at);
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }

    fn set(&mut self, at: u16, value: &[u8]) {
        Self::store(&mut self.image.bytes, at, value);
    }
    fn set8(&mut self, at: u16, value: u8) {
        self.set(at, &[value]);
    }
    fn set16(&mut self, at: u16, value: u16) {
        self.set(at, &value.to_le_bytes());
    }
    fn set32(&mut self, at: u16, value: u32) {
        self.set(at, &value.to_le_bytes());
    }
    fn writable(&mut self, at: u16, mask: &[u8]) {
        Self::store(&mut self.image.writable, at, mask);
    }
    fn cleared_by_one(&mut self, at: u16, mask: &[u8]) {
        Self::store(&mut self.image.cleared_by_one, at, mask);
    }

    /// A BAR answers sizing by itself: address bits below its size are read-only zeros.
    fn base_register(&mut self, at: u16, bar: Bar) {
        let (flags, address) = match bar.kind() {
            BarKind::Io => (pci::bar::IO, pci::bar::IO_ADDRESS),
            BarKind::Memory32 => (0, pci::bar::MEMORY_ADDRESS),
            BarKind::Memory64 => (pci::bar::TYPE_64, pci::bar::MEMORY_ADDRESS),
        };
        let prefetchable = if bar.is_prefetchable() {
            pci::bar::PREFETCHABLE
        } else {
            0
        };
        self.set32(at, flags | prefetchable);
        let mask = (!(bar.size() - 1)).to_le_bytes();
        let low = match mask {
            [a, b, c, d, ..] => u32::from_le_bytes([a, b, c, d]) & address,
        };
        self.writable(at, &low.to_le_bytes());
        if bar.kind() == BarKind::Memory64 {
            self.writable(at + 4, mask.get(4..).unwrap_or_default());
        }
    }

    fn place(&mut self, name: &'static str, id: u8, len: u16) -> Result<u16, ConfigError> {
        let at = self.next;
        if at + len > pci::CONVENTIONAL_LEN {
            return Err(ConfigError::NoRoom(name));
        }
        self.set8(at, id);
        self.set(self.link, &at.to_le_bytes()[..1]);
        self.set16(header::STATUS, header::STATUS_CAPABILITIES);
        self.link = at + capability::NEXT;
        self.next = (at + len).next_multiple_of(4);
        Ok(at)
    }

    fn place_extended(&mut self, name: &'static str, id: u16, len: u16) -> Result<u16, ConfigError> {
        let at = self.extended_next;
        if self.image.bytes.len() < usize::from(pci::EXTENDED_LEN) {
            return Err(ConfigError::NeedsExpress(name));
        }
        if at + len > pci::EXTENDED_LEN {
            return Err(ConfigError::NoRoom(name));
        }
        self.set32(at, 1 << extended::VERSION_SHIFT | u32::from(id));
        if let Some(previous) = self.extended_link {
            // The next offset takes the upper 12 bits of the header, above the version.
            self.set16(previous + 2, at << (extended::NEXT_SHIFT - 16) | 1);
        }
        self.extended_link = Some(at);
        self.extended_next = (at + len).next_multiple_of(4);
        Ok(at)
    }
}
