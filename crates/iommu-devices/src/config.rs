//! Configuration space with the behaviour of each bit.

mod bar;
mod builder;

use iommu_groups::pci::{self, advanced, bridge, capability, express, header, msi, msix, power, sriov};
use iommu_types::{AddrRange, HostPhys, Iova};

pub use self::bar::{Bar, BarKind};
pub use self::builder::{Acs, Ats, ConfigBuilder, ConfigError, MsiX, SoftReset, Sriov, VendorSpecific};
use crate::bus::MsiMessage;

/// Base address registers of a type 0 header.
pub const BARS: usize = 6;

/// What resets a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResetKind {
    /// Function level reset, through the PCI Express or the advanced features capability.
    /// PCIe §6.6.2 (Function Level Reset).
    FunctionLevel,
    /// The way from D3hot to D0 of a function without No Soft Reset.
    /// PCIe §5.3.1.4 (D3 State).
    PowerState,
    /// A reset of the bus above, or power-on. PCIe §6.6.1 (Conventional Reset).
    Conventional,
}

/// What a configuration write set in motion beyond the bits it stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Effects {
    /// The function was told to reset itself; [`crate::Function::config_write`] has already done so.
    pub reset: Option<ResetKind>,
    /// The bridge asserts reset on its secondary bus: everything below it is to be reset.
    pub secondary_reset: bool,
    /// Where requests go may have changed: command register, BARs, bus numbers or windows, ACS control,
    /// ARI forwarding.
    pub routing: bool,
    /// VF Enable or NumVFs may have changed.
    pub virtual_functions: bool,
}

/// Where the capabilities stand that the write path looks at.
#[derive(Clone, Copy, Debug, Default)]
struct Places {
    express: Option<u16>,
    power: Option<u16>,
    msi: Option<u16>,
    msi_x: Option<u16>,
    advanced: Option<u16>,
    acs: Option<u16>,
    ats: Option<u16>,
    sriov: Option<u16>,
}

/// Bytes with the rule of each bit.
#[derive(Clone, Debug)]
struct Image {
    bytes: Box<[u8]>,
    writable: Box<[u8]>,
    cleared_by_one: Box<[u8]>,
}

impl Image {
    fn new(len: u16) -> Self {
        let zeros = || vec![0; usize::from(len)].into_boxed_slice();
        Self {
            bytes: zeros(),
            writable: zeros(),
            cleared_by_one: zeros(),
        }
    }
}

/// The configuration space of one function, 256 bytes or 4 KiB.
///
/// Each bit is read-only, writable, or cleared by a one, as the register it belongs to has it. Base address
/// registers size themselves the way hardware does: their low bits cannot be set. Values are little-endian.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    image: Image,
    /// The bytes after a reset.
    after_reset: Box<[u8]>,
    bars: [Option<Bar>; BARS],
    bridge: bool,
    places: Places,
}

impl ConfigSpace {
    /// A type 0 header: everything that is not a bridge.
    #[must_use]
    pub fn function(vendor: u16, device: u16) -> ConfigBuilder {
        ConfigBuilder::new(vendor, device, false)
    }

    /// A type 1 header: PCI-to-PCI bridges and all PCI Express ports.
    #[must_use]
    pub fn bridge(vendor: u16, device: u16) -> ConfigBuilder {
        ConfigBuilder::new(vendor, device, true)
    }

    /// Length in bytes: 256 without a PCI Express capability, 4096 with it.
    #[must_use]
    pub fn len(&self) -> u16 {
        u16::try_from(self.image.bytes.len()).unwrap_or(pci::EXTENDED_LEN)
    }

    /// Always false: there are at least 256 bytes. Present because `len` is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// All bytes, as a raw dump would show them.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.image.bytes
    }

    /// Whether the header is a bridge's (type 1).
    #[must_use]
    pub const fn is_bridge(&self) -> bool {
        self.bridge
    }

    /// Fills `into` from `offset`; bytes past the end read all-ones, as an aborted request does.
    pub fn read(&self, offset: u16, into: &mut [u8]) {
        let start = usize::from(offset).min(self.image.bytes.len());
        let here = self.image.bytes.get(start..).unwrap_or_default();
        let n = here.len().min(into.len());
        let (head, tail) = into.split_at_mut(n);
        head.copy_from_slice(here.get(..n).unwrap_or_default());
        tail.fill(0xff);
    }

    /// The byte at `offset`.
    #[must_use]
    pub fn read8(&self, offset: u16) -> u8 {
        let mut b = [0; 1];
        self.read(offset, &mut b);
        u8::from_le_bytes(b)
    }

    /// The 16-bit register at `offset`.
    #[must_use]
    pub fn read16(&self, offset: u16) -> u16 {
        let mut b = [0; 2];
        self.read(offset, &mut b);
        u16::from_le_bytes(b)
    }

    /// The 32-bit register at `offset`.
    #[must_use]
    pub fn read32(&self, offset: u16) -> u32 {
        let mut b = [0; 4];
        self.read(offset, &mut b);
        u32::from_le_bytes(b)
    }

    /// Writes `from` at `offset`, bit by bit as each register allows; bytes past the end are dropped.
    ///
    /// A reset that the write asks for is reported, not carried out: [`crate::Function::config_write`] does
    /// that, since the function has state of its own to reset.
    pub fn write(&mut self, offset: u16, from: &[u8]) -> Effects {
        let state_before = self.power_state();
        let image = &mut self.image;
        let rules = image.writable.iter().zip(&image.cleared_by_one);
        for ((byte, (writable, cleared)), value) in image.bytes.iter_mut().zip(rules).skip(offset.into()).zip(from) {
            *byte = ((*byte & !writable) | (value & writable)) & !(value & cleared);
        }
        self.effects(offset, from, state_before)
    }

    /// Writes the 32-bit register at `offset`; see [`Self::write`].
    pub fn write32(&mut self, offset: u16, value: u32) -> Effects {
        self.write(offset, &value.to_le_bytes())
    }

    /// Writes the 16-bit register at `offset`; see [`Self::write`].
    pub fn write16(&mut self, offset: u16, value: u16) -> Effects {
        self.write(offset, &value.to_le_bytes())
    }

    fn effects(&self, offset: u16, from: &[u8], state_before: u16) -> Effects {
        let write = Write { offset, from };
        let mut effects = Effects::default();

        let express_flr = self.places.express.is_some_and(|at| {
            self.read32(at + express::DEVICE_CAPABILITIES) & express::FLR_CAPABLE != 0
                && write.bits16(at + express::DEVICE_CONTROL) & express::INITIATE_FLR != 0
        });
        let advanced_flr = self.places.advanced.is_some_and(|at| {
            self.read8(at + advanced::CAPABILITIES) & advanced::FLR_CAPABLE != 0
                && write.bits16(at + advanced::CONTROL) & u16::from(advanced::INITIATE_FLR) != 0
        });
        let no_soft_reset = self
            .places
            .power
            .is_some_and(|at| self.read16(at + power::CONTROL) & power::NO_SOFT_RESET != 0);
        if express_flr || advanced_flr {
            effects.reset = Some(ResetKind::FunctionLevel);
        } else if state_before == power::STATE_D3HOT && self.power_state() == 0 && !no_soft_reset {
            effects.reset = Some(ResetKind::PowerState);
        }

        if self.bridge {
            effects.secondary_reset = write.bits16(bridge::CONTROL) & bridge::CONTROL_RESET != 0;
        }
        // BARs, bus numbers and windows all stand below the capabilities pointer.
        effects.routing = write.touches(header::COMMAND, 2)
            || write.touches(header::BAR0, header::CAPABILITIES - header::BAR0)
            || self.places.acs.is_some_and(|at| write.touches(at, pci::acs::LEN))
            || self
                .places
                .express
                .is_some_and(|at| write.touches(at + express::DEVICE_CONTROL_2, 2))
            || effects.reset.is_some();
        effects.virtual_functions = self
            .places
            .sriov
            .is_some_and(|at| write.touches(at + sriov::CONTROL, 2) || write.touches(at + sriov::NUM_VFS, 2))
            || (self.places.sriov.is_some() && effects.reset.is_some());
        effects
    }

    /// Puts every register back to its value after power-on: command, BARs and bus numbers are zero then.
    pub fn reset(&mut self) {
        self.image.bytes.copy_from_slice(&self.after_reset);
    }

    fn power_state(&self) -> u16 {
        self.places
            .power
            .map_or(0, |at| self.read16(at + power::CONTROL) & power::STATE)
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.read16(header::COMMAND)
    }

    /// Whether the function may issue requests (Bus Master Enable) and is in D0.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.command() & header::COMMAND_BUS_MASTER != 0 && self.power_state() == 0
    }

    /// Whether the function's memory BARs answer (Memory Space Enable) and it is in D0.
    #[must_use]
    pub fn memory_space(&self) -> bool {
        self.command() & header::COMMAND_MEMORY != 0 && self.power_state() == 0
    }

    /// The base address register `index`; `None` for one that is not implemented and for the upper half of a
    /// 64-bit one.
    #[must_use]
    pub fn bar(&self, index: u8) -> Option<Bar> {
        *self.bars.get(usize::from(index))?
    }

    /// All implemented base address registers with their numbers.
    pub fn bars(&self) -> impl Iterator<Item = (u8, Bar)> {
        (0u8..).zip(self.bars).filter_map(|(index, bar)| Some((index, bar?)))
    }

    /// The address that BAR `index` holds now, decoding or not.
    #[must_use]
    pub fn bar_base(&self, index: u8) -> Option<u64> {
        let bar = self.bar(index)?;
        let at = header::BAR0 + 4 * u16::from(index);
        let low = self.read32(at);
        Some(match bar.kind() {
            BarKind::Io => u64::from(low & pci::bar::IO_ADDRESS),
            BarKind::Memory32 => u64::from(low & pci::bar::MEMORY_ADDRESS),
            BarKind::Memory64 => {
                u64::from(low & pci::bar::MEMORY_ADDRESS) | u64::from(self.read32(at.saturating_add(4))) << 32
            }
        })
    }

    /// The bus addresses that memory BAR `index` answers at; `None` while memory space is disabled or the
    /// register holds zero.
    #[must_use]
    pub fn bar_range(&self, index: u8) -> Option<AddrRange<HostPhys>> {
        let bar = self.bar(index)?;
        if bar.kind() == BarKind::Io || !self.memory_space() {
            return None;
        }
        let base = self.bar_base(index).filter(|base| *base != 0)?;
        AddrRange::from_base_len(HostPhys::new(base), bar.size())
    }

    /// The memory BAR that answers at `at`, and the offset into it in bytes.
    #[must_use]
    pub fn decode(&self, at: HostPhys) -> Option<(u8, u64)> {
        self.bars().find_map(|(index, _)| {
            let range = self.bar_range(index)?;
            range
                .contains(at)
                .then(|| at.offset_from(range.first()))
                .flatten()
                .map(|offset| (index, offset))
        })
    }

    /// The secondary and subordinate bus numbers of a bridge.
    #[must_use]
    pub fn buses_below(&self) -> Option<(u8, u8)> {
        self.bridge
            .then(|| (self.read8(bridge::SECONDARY), self.read8(bridge::SUBORDINATE)))
    }

    /// Offset of the ACS extended capability.
    #[must_use]
    pub const fn acs_at(&self) -> Option<u16> {
        self.places.acs
    }

    /// Offset of the MSI capability.
    #[must_use]
    pub const fn msi_at(&self) -> Option<u16> {
        self.places.msi
    }

    /// Offset of the MSI-X capability.
    #[must_use]
    pub const fn msi_x_at(&self) -> Option<u16> {
        self.places.msi_x
    }

    /// Whether MSI-X is enabled.
    #[must_use]
    pub fn msi_x_enabled(&self) -> bool {
        self.msi_x_control() & msix::ENABLE != 0
    }

    /// Whether MSI-X is enabled and the function as a whole is not masked.
    #[must_use]
    pub fn msi_x_delivers(&self) -> bool {
        self.msi_x_control() & (msix::ENABLE | msix::MASK) == msix::ENABLE
    }

    fn msi_x_control(&self) -> u16 {
        self.places.msi_x.map_or(0, |at| self.read16(at + msix::CONTROL))
    }

    /// The offsets of the capabilities with identifier `id`, in the order of the list.
    pub fn capabilities(&self, id: u8) -> impl Iterator<Item = u16> {
        // The list was laid out by the builder: it ends, and its links cannot be written.
        let first = Some(u16::from(self.read8(header::CAPABILITIES)));
        let links = core::iter::successors(first, |at| Some(u16::from(self.read8(at + capability::NEXT))));
        links.take_while(|at| *at != 0).filter(move |at| self.read8(*at) == id)
    }

    /// Offset of the PCI Express capability.
    #[must_use]
    pub const fn express_at(&self) -> Option<u16> {
        self.places.express
    }

    /// Whether the function has ATS and software has enabled it: it may ask for translations and keep them.
    #[must_use]
    pub fn ats_enabled(&self) -> bool {
        self.places
            .ats
            .is_some_and(|at| self.read16(at + pci::ats::CONTROL) & pci::ats::ENABLE != 0)
    }

    /// Offset of the SR-IOV extended capability.
    #[must_use]
    pub const fn sriov_at(&self) -> Option<u16> {
        self.places.sriov
    }

    /// The message that vector `vector` sends, if MSI is enabled.
    ///
    /// A function that was granted fewer vectors than it can use sends its higher ones with the number reduced
    /// to what was granted (PCIe §7.7.1.2, Multiple Message Enable).
    #[must_use]
    pub fn msi_message(&self, vector: u8) -> Option<MsiMessage> {
        let at = self.places.msi?;
        let control = self.read16(at + msi::CONTROL);
        if control & msi::ENABLE == 0 {
            return None;
        }
        let granted = (control >> msi::ENABLED_SHIFT & msi::COUNT_MASK).min(msi::MAX_LOG2_VECTORS.into());
        let low_bits = (1u16 << granted) - 1;
        let address = u64::from(self.read32(at + msi::ADDRESS)) | u64::from(self.read32(at + msi::ADDRESS_UPPER)) << 32;
        let data = (self.read16(at + msi::DATA) & !low_bits) | (u16::from(vector) & low_bits);
        Some(MsiMessage {
            address: Iova::new(address),
            data: data.into(),
        })
    }

    /// Shows or hides Interrupt Status, which software cannot write.
    pub fn set_intx_status(&mut self, asserted: bool) {
        let status = self.read16(header::STATUS);
        let status = if asserted {
            status | header::STATUS_INTX
        } else {
            status & !header::STATUS_INTX
        };
        if let Some(bytes) = self
            .image
            .bytes
            .get_mut(usize::from(header::STATUS)..usize::from(header::STATUS) + 2)
        {
            bytes.copy_from_slice(&status.to_le_bytes());
        }
    }
}

/// A write, seen from the registers it touches.
struct Write<'a> {
    offset: u16,
    from: &'a [u8],
}

impl Write<'_> {
    fn touches(&self, at: u16, len: u16) -> bool {
        let first = usize::from(self.offset);
        let end = first.saturating_add(self.from.len());
        first < usize::from(at) + usize::from(len) && usize::from(at) < end
    }

    /// The bits written to the 16-bit register at `at`; bytes that the write does not reach count as zero.
    fn bits16(&self, at: u16) -> u16 {
        let byte = |at: u16| {
            at.checked_sub(self.offset)
                .and_then(|i| self.from.get(usize::from(i)))
                .copied()
                .unwrap_or(0)
        };
        u16::from_le_bytes([byte(at), byte(at + 1)])
    }
}

#[cfg(test)]
mod tests;
