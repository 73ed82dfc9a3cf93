//! Interrupt remapping (`VT-d §5.1`): the table, its entries, and the messages that name them.

use alloc::vec;
use alloc::vec::Vec;

use arbitrary_int::u4;
use iommu_types::omission::{Step, kept};
use iommu_types::sync::{Ordering, fence};
use iommu_types::{FrameRequest, HostPhys, PAGE_SIZE, Registers, SourceId, TableFrame};
use thiserror::Error;
use vtd_spec::encoding::{DeliveryMode, FunctionMask};
use vtd_spec::entry::{Irte, SourceValidation};
use vtd_spec::message::{IoApicEntry, RemappableAddress, RemappableData};
use vtd_spec::register::{InterruptRemapTableAddress, offset};

use crate::capabilities::Capabilities;
use crate::command::Command;
use crate::error::{HardwareError, Reachable, TableError, Unconfirmed};
use crate::fault::EventMessage;
use crate::invalidate::{Invalidation, Invalidator};
use crate::queue::table_word;
use crate::shared::{Host, Shared};

/// How APICs are addressed, for the whole system alike (rule D17).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApicMode {
    /// 8-bit APIC IDs.
    #[default]
    XApic,
    /// 32-bit APIC IDs. Only if every unit has `ECAP_REG.EIM` and firmware does not object.
    X2Apic,
}

impl ApicMode {
    /// What all units of a machine can do alike: 32-bit APIC IDs if every one has them, 8-bit ones if none insists on
    /// the others; `None` if they contradict each other. Units that do not remap interrupts have no say.
    #[must_use]
    pub fn common<'a>(units: impl IntoIterator<Item = &'a Capabilities>) -> Option<Self> {
        let (mut extended, mut classic) = (true, true);
        for unit in units.into_iter().filter(|unit| unit.ecap.ir()) {
            extended &= unit.ecap.eim();
            classic &= !unit.ecap.eimer();
        }
        match (extended, classic) {
            (true, _) => Some(Self::X2Apic),
            (false, true) => Some(Self::XApic),
            (false, false) => None,
        }
    }
}

/// How interrupt remapping is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptOptions {
    /// Entries of the table: a power of two, 256 (one page) to 65536.
    pub entries: u32,
    /// How APICs are addressed.
    pub mode: ApicMode,
}

impl Default for InterruptOptions {
    /// 256 entries, 8-bit APIC IDs.
    fn default() -> Self {
        Self {
            entries: 256,
            mode: ApicMode::XApic,
        }
    }
}

/// Whose requests may use an interrupt entry. There is no way to allow everybody (rule D17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterruptSource {
    /// This requester only.
    Requester(SourceId),
    /// Any function of this requester's device: for HPETs, whose function number firmware often gets wrong.
    AnyFunction(SourceId),
    /// Any requester on these buses, both included: for devices behind a PCIe-to-PCI bridge, whose requests may
    /// carry the bridge's ID.
    BusRange {
        /// The first bus.
        first: u8,
        /// The last bus.
        last: u8,
    },
}

impl InterruptSource {
    /// `VT-d §9.9 (IRTE)`: SVT, SQ and SID.
    fn apply(self, entry: Irte) -> Irte {
        if !kept(Step::SourceChecked) {
            return entry;
        }
        match self {
            Self::Requester(source) => entry
                .with_svt(SourceValidation::Requester)
                .with_sq(FunctionMask::Exact)
                .with_source(source),
            Self::AnyFunction(source) => entry
                .with_svt(SourceValidation::Requester)
                .with_sq(FunctionMask::Bits2To0)
                .with_source(source),
            Self::BusRange { first, last } => entry
                .with_svt(SourceValidation::BusRange)
                .with_sid(u16::from_be_bytes([first, last])),
        }
    }
}

/// Where an interrupt goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptTarget {
    /// The vector.
    pub vector: u8,
    /// The APIC ID, or the set of them if `logical`.
    pub destination: u32,
    /// Logical destination mode.
    pub logical: bool,
    /// Level triggered: for I/O APIC pins only.
    pub level: bool,
    /// Delivery mode.
    pub delivery: DeliveryMode,
}

impl InterruptTarget {
    /// A fixed, edge-triggered interrupt to one APIC.
    #[must_use]
    pub const fn fixed(vector: u8, destination: u32) -> Self {
        Self {
            vector,
            destination,
            logical: false,
            level: false,
            delivery: DeliveryMode::Fixed,
        }
    }
}

/// The level at which an I/O APIC pin is asserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Polarity {
    /// High.
    ActiveHigh,
    /// Low.
    ActiveLow,
}

/// Consecutive entries of a unit's table that belong to one device.
///
/// Not given back by dropping: devices may still send the messages. Use `release_interrupts`.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "dropped interrupt entries are leaked; give them back with Unit::release_interrupts"]
pub struct InterruptBlock {
    table: HostPhys,
    first: u16,
    count: u16,
    source: InterruptSource,
}

impl InterruptBlock {
    /// The first index.
    #[must_use]
    pub const fn first(&self) -> u16 {
        self.first
    }

    /// How many entries.
    #[must_use]
    pub const fn count(&self) -> u16 {
        self.count
    }

    /// The message that raises interrupt `number` of the block (`VT-d §5.1.2.2`), for MSI-X entries, HPETs and
    /// single MSI; `None` if the block is smaller.
    #[must_use]
    pub fn message(&self, number: u16) -> Option<EventMessage> {
        let index = self.index(number)?;
        let address = RemappableAddress::DEFAULT.with_handle(index);
        Some(EventMessage {
            address: u64::from(address.raw_value()),
            data: RemappableData::DEFAULT.raw_value(),
        })
    }

    /// The message for a multi-message MSI: the device puts the number of the interrupt into the low bits of
    /// the data, and the unit adds it to the first index.
    #[must_use]
    pub fn multi_message(&self) -> EventMessage {
        let address = RemappableAddress::DEFAULT.with_handle(self.first).with_shv(true);
        EventMessage {
            address: u64::from(address.raw_value()),
            data: RemappableData::DEFAULT.raw_value(),
        }
    }

    /// The I/O APIC redirection entry that raises interrupt `number` of the block (`VT-d §5.1.5.1`); `None` if the
    /// block is smaller. `target` is what the interrupt was set to: vector and trigger mode have to agree, since
    /// the end of a level interrupt is matched by vector.
    #[must_use]
    pub fn io_apic_entry(
        &self,
        number: u16,
        target: InterruptTarget,
        polarity: Polarity,
        masked: bool,
    ) -> Option<IoApicEntry> {
        let entry = IoApicEntry::DEFAULT
            .with_index(self.index(number)?)
            .with_vector(target.vector)
            .with_tm(target.level)
            .with_polarity(polarity == Polarity::ActiveLow)
            .with_mask(masked);
        Some(entry)
    }

    /// The table index of interrupt `number`.
    #[must_use]
    pub const fn index(&self, number: u16) -> Option<u16> {
        if number < self.count {
            self.first.checked_add(number)
        } else {
            None
        }
    }
}

/// Interrupt remapping could not be set up or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InterruptError {
    /// The unit has none.
    #[error("the unit does not remap interrupts (ECAP.IR = 0)")]
    NotSupported,
    /// Without a queue the unit's interrupt entry cache cannot be invalidated.
    #[error("interrupt remapping needs queued invalidation, which this unit lacks (ECAP.QI = 0)")]
    NoQueue,
    /// The unit cannot address APICs in the mode asked for.
    #[error("the unit cannot be used with APIC mode {0:?} (ECAP.EIM, ECAP.EIMER)")]
    WrongMode(ApicMode),
    /// Not a power of two from 256 to 65536.
    #[error("an interrupt-remapping table has a power of two of 256 to 65536 entries, not {0}")]
    BadSize(u32),
    /// It is on already.
    #[error("interrupt remapping is on already")]
    AlreadyOn,
    /// It was not set up.
    #[error("interrupt remapping is not on; call start_interrupt_remapping first")]
    NotOn,
    /// No run of free entries is long enough.
    #[error("no {wanted} consecutive interrupt entries are free; the table has {entries}")]
    NoEntries {
        /// How many were asked for.
        wanted: u16,
        /// Size of the table.
        entries: u32,
    },
    /// The block has no such interrupt.
    #[error("the block has {count} interrupts, there is no number {number}")]
    OutOfBlock {
        /// What was asked for.
        number: u16,
        /// What there is.
        count: u16,
    },
    /// The block is of another unit.
    #[error("the interrupt block belongs to another unit")]
    OtherUnit,
    /// The APIC ID does not fit the mode.
    #[error("APIC ID {0:#x} needs x2APIC mode; with 8-bit APIC IDs the limit is 0xff")]
    DestinationTooLarge(u32),
    /// Memory for the table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The hardware refused before anything changed.
    #[error(transparent)]
    Hardware(#[from] HardwareError),
    /// Something changed, and the unit did not confirm it.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
}

/// The table and which entries are taken.
#[derive(Debug)]
pub(crate) struct InterruptTable {
    frame: TableFrame,
    entries: u32,
    mode: ApicMode,
    used: Vec<bool>,
}

impl InterruptTable {
    /// The first of `count` free consecutive entries, aligned to `count` rounded up to a power of two, so that
    /// one masked invalidation covers them.
    fn find(&self, count: u16) -> Option<usize> {
        let wanted = usize::from(count);
        let step = wanted.next_power_of_two();
        (0..self.used.len()).step_by(step).find(|&first| {
            self.used
                .get(first..first + wanted)
                .is_some_and(|run| run.iter().all(|used| !used))
        })
    }

    fn mark(&mut self, first: u16, count: u16, used: bool) {
        let first = usize::from(first);
        for entry in self.used.iter_mut().skip(first).take(usize::from(count)) {
            *entry = used;
        }
    }
}

impl<R: Registers, P: Host> Shared<R, P> {
    /// `VT-d §5.1.4`, bring-up in the order of the specification.
    pub(crate) fn start_interrupt_remapping(&self, options: InterruptOptions) -> Result<(), InterruptError> {
        let ecap = self.capabilities.ecap;
        if !ecap.ir() {
            return Err(InterruptError::NotSupported);
        }
        if !matches!(self.invalidator, Invalidator::Queue(_)) {
            return Err(InterruptError::NoQueue);
        }
        let extended = options.mode == ApicMode::X2Apic;
        let offered = ecap.eim() || !kept(Step::ExtendedModeOffered);
        if (extended && !offered) || (!extended && ecap.eimer()) {
            return Err(InterruptError::WrongMode(options.mode));
        }
        if !options.entries.is_power_of_two() || !(256..=0x1_0000).contains(&options.entries) {
            return Err(InterruptError::BadSize(options.entries));
        }
        let mut slot = self.interrupts.lock();
        if slot.is_some() {
            return Err(InterruptError::AlreadyOn);
        }
        self.require_health()?;
        let bytes = u64::from(options.entries) * Irte::BYTES;
        let order = u8::try_from((bytes / PAGE_SIZE).ilog2()).unwrap_or(0);
        let request = FrameRequest {
            order,
            ..self.options.page()
        };
        // A zeroed table: no entry is present, every remappable interrupt is blocked.
        let frame = self.host.allocate(request).map_err(TableError::from)?;
        self.write_back(frame.base(), bytes);
        // S counts 2^(S+1) entries.
        let size = u8::try_from(options.entries.ilog2() - 1).unwrap_or(0);
        let address = InterruptRemapTableAddress::DEFAULT
            .with_table(frame.base())
            .with_eime(extended)
            .with_s(u4::extract_u8(size, 0));
        self.registers.write64(offset::IRTA, address.raw_value());
        self.command(Command::SetInterruptTable)?;
        if !self.capabilities.cap.esirtps() && kept(Step::InterruptTableForgotten) {
            self.invalidate(&[Invalidation::InterruptsGlobal])?;
        }
        // Compatibility-format interrupts would go around every check.
        let passes = self.command.lock().compatibility_interrupts();
        if passes && kept(Step::CompatibilityBlocked) {
            self.command(Command::CompatibilityInterrupts(false))?;
        }
        self.command(Command::InterruptRemapping(true))?;
        *slot = Some(InterruptTable {
            used: vec![false; usize::try_from(options.entries).unwrap_or(0)],
            frame,
            entries: options.entries,
            mode: options.mode,
        });
        Ok(())
    }

    pub(crate) fn allocate_interrupts(
        &self,
        count: u16,
        source: InterruptSource,
    ) -> Result<InterruptBlock, InterruptError> {
        let mut slot = self.interrupts.lock();
        let table = slot.as_mut().ok_or(InterruptError::NotOn)?;
        let none = InterruptError::NoEntries {
            wanted: count,
            entries: table.entries,
        };
        let first = table.find(count).filter(|_| count > 0).ok_or(none)?;
        let first = u16::try_from(first).map_err(|_| none)?;
        table.mark(first, count, true);
        Ok(InterruptBlock {
            table: table.frame.base(),
            first,
            count,
            source,
        })
    }

    /// Makes an interrupt of the block go to `target`, or blocks it if there is none.
    pub(crate) fn set_interrupt(
        &self,
        block: &InterruptBlock,
        number: u16,
        target: Option<InterruptTarget>,
    ) -> Result<(), InterruptError> {
        let slot = self.interrupts.lock();
        let table = slot.as_ref().ok_or(InterruptError::NotOn)?;
        if block.table != table.frame.base() {
            return Err(InterruptError::OtherUnit);
        }
        let count = block.count;
        let index = block
            .index(number)
            .ok_or(InterruptError::OutOfBlock { number, count })?;
        self.require_health()?;
        let extended = table.mode == ApicMode::X2Apic;
        let entry = match target {
            None => Irte::DEFAULT,
            Some(InterruptTarget { destination, .. }) if !extended && destination > 0xff => {
                return Err(InterruptError::DestinationTooLarge(destination));
            }
            Some(target) => Irte::DEFAULT
                .with_p(true)
                .with_v(target.vector)
                .with_destination(target.destination, extended)
                .with_dm(target.logical)
                .with_tm(target.level)
                .with_delivery_mode(target.delivery),
        };
        let [low, high] = block.source.apply(entry).to_words();
        let at = HostPhys::new(table.frame.base().raw() + u64::from(index) * Irte::BYTES);
        let upper = HostPhys::new(at.raw() + 8);
        // The block's source never changes, so the upper word is final before the lower one makes the entry
        // present; everything that a new target changes is in the lower word, one store.
        table_word(&self.host, upper)?.store(high, Ordering::Relaxed);
        table_word(&self.host, at)?.store(low, Ordering::Release);
        self.write_back(at, Irte::BYTES);
        // The entry comes before the doorbell.
        fence(Ordering::SeqCst);
        if !kept(Step::InterruptForgotten) {
            return Ok(());
        }
        self.invalidate(&[Invalidation::Interrupts { first: index, mask: 0 }])
            .map_err(|cause| {
                let reachable = Reachable::Interrupts { first: index, count: 1 };
                Unconfirmed { reachable, cause }.into()
            })
    }

    /// Blocks all interrupts of the block; the entries are free once the unit has confirmed.
    pub(crate) fn release_interrupts(&self, block: InterruptBlock) -> Result<(), (InterruptError, InterruptBlock)> {
        let mut slot = self.interrupts.lock();
        let Some(table) = slot.as_mut() else {
            return Err((InterruptError::NotOn, block));
        };
        if block.table != table.frame.base() {
            return Err((InterruptError::OtherUnit, block));
        }
        let (first, count) = (block.first, block.count);
        for step in 0..u64::from(count) {
            let at = HostPhys::new(table.frame.base().raw() + (u64::from(first) + step) * Irte::BYTES);
            match table_word(&self.host, at) {
                Ok(low) => low.store(0, Ordering::Release),
                Err(error) => return Err((error.into(), block)),
            }
            self.write_back(at, Irte::BYTES);
        }
        fence(Ordering::SeqCst);
        if let Err(cause) = self.invalidate(&self.entry_invalidations(first, count)) {
            let reachable = Reachable::Interrupts { first, count };
            return Err((Unconfirmed { reachable, cause }.into(), block));
        }
        table.mark(first, count, false);
        Ok(())
    }

    /// One masked invalidation if the unit's mask reaches, else one for each entry.
    fn entry_invalidations(&self, first: u16, count: u16) -> Vec<Invalidation> {
        let mask = u8::try_from(u32::from(count).next_power_of_two().trailing_zeros()).unwrap_or(u8::MAX);
        // Blocks are aligned to their size rounded up, see `InterruptTable::find`.
        if mask <= self.capabilities.ecap.max_handle_mask() {
            return vec![Invalidation::Interrupts { first, mask }];
        }
        (0..count)
            .map(|step| Invalidation::Interrupts {
                first: first.saturating_add(step),
                mask: 0,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(first: u16, count: u16) -> InterruptBlock {
        InterruptBlock {
            table: HostPhys::ZERO,
            first,
            count,
            source: InterruptSource::Requester(SourceId::from_raw(0x18)),
        }
    }

    #[test]
    fn messages_carry_the_index_as_the_specification_example_has_it() {
        let single = block(0x1234, 1).message(0).expect("in the block");
        assert_eq!((single.address, single.data), (0xfee2_4690, 0));
        assert_eq!(block(0x8005, 4).multi_message().address, 0xfee0_00bc);
        assert_eq!(block(0x1234, 1).message(1), None);
    }

    #[test]
    fn an_io_apic_entry_carries_index_and_vector_as_the_specification_example_has_it() {
        let target = InterruptTarget::fixed(0x31, 7);
        let entry = block(0x1234, 1).io_apic_entry(0, target, Polarity::ActiveHigh, false);
        assert_eq!(entry.map(|entry| entry.raw_value()), Some(0x2469_0000_0000_0031));
        let level = InterruptTarget { level: true, ..target };
        let entry = block(0x8000, 1).io_apic_entry(0, level, Polarity::ActiveLow, true);
        // Index bit 15 in bit 11, polarity 13, trigger mode 15, mask 16, format 48.
        assert_eq!(entry.map(|entry| entry.raw_value()), Some(0x0001_0000_0001_a831));
    }

    #[test]
    fn the_weakest_unit_decides_how_apics_are_addressed() {
        let unit = |remaps: bool, wide: bool, only_wide: bool| Capabilities {
            version: vtd_spec::register::Version::new_with_raw_value(0x10),
            cap: vtd_spec::register::Capability::DEFAULT,
            ecap: vtd_spec::register::ExtendedCapability::DEFAULT
                .with_ir(remaps)
                .with_eim(wide)
                .with_eimer(only_wide),
        };
        let [narrow, wide, strict, silent] = [
            unit(true, false, false),
            unit(true, true, false),
            unit(true, true, true),
            unit(false, false, false),
        ];
        assert_eq!(ApicMode::common([&wide, &strict, &silent]), Some(ApicMode::X2Apic));
        assert_eq!(ApicMode::common([&wide, &narrow]), Some(ApicMode::XApic));
        assert_eq!(ApicMode::common([&strict, &narrow]), None);
    }

    #[test]
    fn a_bus_range_has_the_first_bus_in_the_upper_byte() {
        let entry = InterruptSource::BusRange { first: 3, last: 5 }.apply(Irte::DEFAULT);
        assert_eq!((entry.sid(), entry.svt()), (0x0305, SourceValidation::BusRange));
    }

    #[test]
    fn runs_are_aligned_to_their_size_and_holes_are_reused() {
        let mut table = InterruptTable {
            frame: TableFrame::from_allocator(HostPhys::ZERO, 0),
            entries: 16,
            mode: ApicMode::XApic,
            used: vec![false; 16],
        };
        table.mark(0, 1, true);
        assert_eq!(table.find(4), Some(4));
        table.mark(4, 4, true);
        assert_eq!(table.find(3), Some(8));
        assert_eq!(table.find(1), Some(1));
        assert_eq!(table.find(16), None);
        table.mark(4, 4, false);
        assert_eq!(table.find(4), Some(4));
    }
}
