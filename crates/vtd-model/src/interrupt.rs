//! Interrupt remapping (VT-d §5.1).

use iommu_types::{Access, HostPhys, Iova, SourceId, SystemMemory};
use vtd_spec::encoding::DeliveryMode;
use vtd_spec::entry::{Irte, SourceValidation};
use vtd_spec::message::{self, MessageFormat, RemappableAddress, RemappableData};

use crate::cache::{CachedInterrupt, TranslationCache};
use crate::condition::Condition;
use crate::config::UnitConfig;
use crate::counters::WalkReport;
use crate::latched::Latched;
use crate::request::{Fault, Request};

/// An interrupt as a device, I/O APIC or HPET sends it: a 4-byte write into the interrupt range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InterruptRequest {
    /// Who sends it; for an I/O APIC or HPET the source that the DMAR device scope gives.
    pub source: SourceId,
    /// The address written to.
    pub address: u64,
    /// The data written.
    pub data: u32,
}

impl InterruptRequest {
    /// The interrupt request as a memory request, as faults report it.
    const fn as_request(&self) -> Request {
        Request::new(self.source, Iova::new(self.address), 4, Access::Write)
    }
}

/// An interrupt that may be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Interrupt {
    /// Delivered as the device wrote it, in compatibility format.
    Unmodified {
        /// Address as written.
        address: u64,
        /// Data as written.
        data: u32,
    },
    /// Built from an interrupt remapping table entry.
    Remapped(RemappedInterrupt),
}

impl Interrupt {
    /// The vector that the destination receives.
    #[must_use]
    pub const fn vector(&self) -> u8 {
        match self {
            Self::Unmodified { data, .. } => message::CompatibilityData::new_with_raw_value(*data).vector(),
            Self::Remapped(interrupt) => interrupt.vector,
        }
    }
}

/// What an interrupt remapping table entry makes of an interrupt (VT-d §5.1.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemappedInterrupt {
    /// Index of the entry.
    pub index: u16,
    /// APIC ID or logical destination: 8 bits, or 32 bits in extended interrupt mode.
    pub destination: u32,
    /// The destination is logical.
    pub logical: bool,
    /// Redirection hint.
    pub redirection_hint: bool,
    /// Delivery mode.
    pub delivery_mode: DeliveryMode,
    /// Level triggered; edge otherwise.
    pub level: bool,
    /// Vector.
    pub vector: u8,
}

/// The answer to an interrupt request and what it took to find it.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct InterruptOutcome {
    /// The answer. A fault that says `recorded` still has to be logged ([`crate::Unit::log`]).
    pub result: Result<Interrupt, Fault>,
    /// Table reads and cache lookups.
    pub report: WalkReport,
}

/// Answers one interrupt request: the pure half of [`crate::Unit::interrupt`].
///
/// An address outside FEE0_0000h to FEEF_FFFFh is no interrupt request; it is blocked without a record.
pub fn remap_interrupt<M, C>(
    latched: &Latched,
    config: &UnitConfig,
    memory: &M,
    cache: &mut C,
    request: &InterruptRequest,
) -> InterruptOutcome
where
    M: SystemMemory,
    C: TranslationCache,
{
    let mut remap = Remap {
        latched,
        config,
        request,
        report: WalkReport::default(),
        index: None,
        fault_processing_disabled: false,
    };
    let result = if message::is_interrupt_address(request.address) {
        remap.run(memory, cache).map_err(|condition| remap.fault(condition))
    } else {
        Err(Fault::silent(request.as_request()))
    };
    InterruptOutcome {
        result,
        report: remap.report,
    }
}

struct Remap<'a> {
    latched: &'a Latched,
    config: &'a UnitConfig,
    request: &'a InterruptRequest,
    report: WalkReport,
    index: Option<u16>,
    fault_processing_disabled: bool,
}

impl Remap<'_> {
    fn fault(&self, condition: Condition) -> Fault {
        let suppressed = condition.is_qualified() && self.fault_processing_disabled;
        Fault::new(self.request.as_request(), condition)
            .with_interrupt_index(self.index)
            // D-43.
            .suppressed_if(suppressed || self.config.is_qemu_7())
    }

    /// VT-d §5.1.4 in its order.
    fn run<M: SystemMemory, C: TranslationCache>(&mut self, memory: &M, cache: &mut C) -> Result<Interrupt, Condition> {
        let (extended, table) = (self.config.extended_capability(), self.latched.interrupt_table);
        let unmodified = Interrupt::Unmodified {
            address: self.request.address,
            data: self.request.data,
        };
        // Remapping off: everything passes, in either format, unless the unit requires remapping (2Bh).
        if !self.latched.interrupts_enabled {
            return if extended.irreq() {
                Err(Condition::IrRequired)
            } else {
                Ok(unmodified)
            };
        }
        // A unit that only knows extended interrupt mode (2Ah).
        if extended.eimer() && !table.eime() {
            return Err(Condition::IrExtendedRequired);
        }
        // The address fits 32 bits: the caller made sure that it lies in the interrupt range.
        let raw = u32::try_from(self.request.address).map_err(|_| Condition::IrRequest)?;
        if MessageFormat::of(raw) == MessageFormat::Compatibility {
            // D-28.
            let passes = !table.eime() && self.latched.compatibility_interrupts || self.config.qemu().is_some();
            return if passes {
                Ok(unmodified)
            } else {
                Err(Condition::IrCompatibility)
            };
        }
        let address = RemappableAddress::new_with_raw_value(raw);
        // Reserved bits of the request (20h): those of the data with a sub-handle.
        let reserved = address.shv() && self.request.data & RemappableData::RESERVED != 0;
        if reserved && self.config.qemu().is_none() {
            return Err(Condition::IrRequest);
        }
        // The sum has up to 17 bits and is compared as such (21h).
        let index = address.interrupt_index(RemappableData::new_with_raw_value(self.request.data));
        // E-09.
        let index = if self.config.qemu().is_some() {
            index & 0xFFFF
        } else {
            index
        };
        self.index = u16::try_from(index).ok();
        let (Some(index), true) = (self.index, index < table.entries()) else {
            return Err(Condition::IrIndex);
        };
        let at = table.table().checked_add(u64::from(index) * Irte::BYTES);
        let at = at
            .filter(|at| at.raw() <= self.config.host_address_limit())
            .ok_or(Condition::IrIndex)?;
        let entry = self.entry(memory, cache, index, at)?;
        let interrupt = self.judge(entry, index)?;
        // E-07: QEMU looks here.
        if reserved {
            self.index = None;
            return Err(Condition::IrRequest);
        }
        Ok(Interrupt::Remapped(interrupt))
    }

    /// The entry from the cache or from the table (23h), present (22h).
    fn entry<M: SystemMemory, C: TranslationCache>(
        &mut self,
        memory: &M,
        cache: &mut C,
        index: u16,
        at: HostPhys,
    ) -> Result<Irte, Condition> {
        let cached = cache.interrupt(index);
        self.report.interrupt.count(cached.is_some());
        let entry = match cached {
            Some(cached) => Irte::from_words(cached.words),
            None => {
                let stamp = cache.stamp();
                self.report.reads.interrupt += 1;
                let words = memory.read_words::<2>(at).map_err(|_| Condition::IrUnreadable)?;
                let entry = Irte::from_words(words);
                // Faulting entries are not cached outside caching mode (VT-d §6.1).
                if self.config.caches_faults() || (entry.p() && !self.has_reserved(entry)) {
                    cache.fill_interrupt(stamp, index, CachedInterrupt { words });
                }
                entry
            }
        };
        self.fault_processing_disabled = entry.fpd();
        if entry.p() {
            Ok(entry)
        } else {
            Err(Condition::IrNotPresent)
        }
    }

    fn has_reserved(&self, entry: Irte) -> bool {
        self.has_reserved_bits(entry) || entry.delivery_mode().is_none()
    }

    fn has_reserved_bits(&self, entry: Irte) -> bool {
        let reserved = Irte::reserved(self.config.features(), self.latched.interrupt_table.eime());
        // D-29, E-12: QEMU does not look at the interrupt mode and at the destination.
        let judged = if self.config.qemu().is_some() {
            entry.with_im(false).with_dst(0)
        } else {
            entry
        };
        judged.raw_value() & reserved != 0
    }

    /// Source validation (26h), then the programming of the entry (24h): the order of VT-d §5.1.4.
    fn judge(&self, entry: Irte, index: u16) -> Result<RemappedInterrupt, Condition> {
        // E-10: QEMU looks here.
        if self.config.qemu().is_some() && self.has_reserved_bits(entry) {
            return Err(Condition::IrReserved);
        }
        let source = self.request.source;
        let allowed = match entry.svt() {
            SourceValidation::None => true,
            SourceValidation::Requester => entry.sq().matches(source, entry.source()),
            SourceValidation::BusRange => {
                let [first, last] = entry.sid().to_be_bytes();
                // D-30: QEMU takes the fields the other way round.
                let range = if self.config.qemu().is_some() {
                    last..=first
                } else {
                    first..=last
                };
                range.contains(&source.bus())
            }
            // The specification names no code for the reserved type; a source that cannot be validated is refused
            // as one that was not (as every known implementation does).
            SourceValidation::Reserved => false,
        };
        // E-08.
        let unknown = self.config.qemu().is_some() && source.raw() == u16::MAX;
        if !allowed && !unknown {
            return Err(Condition::IrSource);
        }
        if self.has_reserved(entry) {
            return Err(Condition::IrReserved);
        }
        let delivery_mode = entry.delivery_mode().ok_or(Condition::IrReserved)?;
        Ok(RemappedInterrupt {
            index,
            destination: entry.destination(self.latched.interrupt_table.eime()),
            logical: entry.dm(),
            redirection_hint: entry.rh(),
            delivery_mode,
            // E-14.
            level: entry.tm() && (self.config.qemu().is_some() || !delivery_mode.is_always_edge()),
            vector: entry.v(),
        })
    }
}
