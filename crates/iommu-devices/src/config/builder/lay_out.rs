//! From a description to registers.

use iommu_groups::pci::{
    PortType, acs, advanced, ari, ats, bridge, capability, express, extended, header, msi, msix, pasid, power, pri,
    serial, sriov,
};
use iommu_types::{AddrRange, HostPhys};

use super::super::{BARS, Bar, BarKind, ConfigSpace, Places};
use super::layout::Layout;
use super::{ConfigBuilder, ConfigError, SoftReset, Sriov, VendorSpecific};

fn limit(field: &'static str, value: u32, ok: bool, allowed: &'static str) -> Result<(), ConfigError> {
    if ok {
        Ok(())
    } else {
        Err(ConfigError::OutOfRange { field, value, allowed })
    }
}

impl ConfigBuilder {
    pub(super) fn header(&self, layout: &mut Layout) -> Result<(), ConfigError> {
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

    pub(super) fn base_registers(&self, layout: &mut Layout) -> Result<[Option<Bar>; BARS], ConfigError> {
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

    pub(super) fn capabilities(&self, layout: &mut Layout, places: &mut Places) -> Result<(), ConfigError> {
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
            places.msi_x = Some(at);
        }
        for capability in &self.vendor_specific {
            vendor_capability(layout, capability)?;
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

    pub(super) fn extended_capabilities(&self, layout: &mut Layout, places: &mut Places) -> Result<(), ConfigError> {
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
            places.ats = Some(at);
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
    pub(super) fn program(&self, space: &mut ConfigSpace) {
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

/// Bytes of a vendor-specific capability before what the vendor gives a meaning to.
const VENDOR_HEADER: u16 = 3;

fn vendor_capability(layout: &mut Layout, described: &VendorSpecific) -> Result<(), ConfigError> {
    const NAME: &str = "vendor-specific";
    let len = u16::try_from(described.body.len())
        .ok()
        .and_then(|len| u8::try_from(len.checked_add(VENDOR_HEADER)?).ok())
        .ok_or(ConfigError::NoRoom(NAME))?;
    let at = layout.place(NAME, capability::VENDOR_SPECIFIC, u16::from(len))?;
    layout.set8(at + capability::NEXT + 1, len);
    layout.set(at + VENDOR_HEADER, &described.body);
    let writable = described
        .writable
        .get(..described.body.len().min(described.writable.len()));
    layout.writable(at + VENDOR_HEADER, writable.unwrap_or_default());
    Ok(())
}

pub(super) fn bridge_header(layout: &mut Layout) {
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
