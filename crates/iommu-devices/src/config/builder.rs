//! Building a configuration space from what the device is.

mod lay_out;
mod layout;
mod parts;

use iommu_groups::pci::{self, PortType, header};
use iommu_types::{AddrRange, HostPhys};

use self::layout::Layout;
pub use self::parts::{Acs, Ats, MsiX, SoftReset, Sriov, VendorSpecific};
use super::{Bar, ConfigSpace, Places};

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
    vendor_specific: Vec<VendorSpecific>,
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
            vendor_specific: Vec::new(),
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

    /// Adds a vendor-specific capability; several stand in the order in which they were added.
    #[must_use]
    pub fn vendor_specific(mut self, capability: VendorSpecific) -> Self {
        self.vendor_specific.push(capability);
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
            lay_out::bridge_header(&mut layout);
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
}
