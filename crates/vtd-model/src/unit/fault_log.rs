//! Recording faults (VT-d §7.2.1 primary fault logging, §7.3 fault events, §11.4.7).

use iommu_types::{Access, SystemMemory};
use vtd_spec::Agaw;
use vtd_spec::encoding::AddressType;
use vtd_spec::register::{FaultRecord, FaultedRequest};

use super::{EventSource, Unit};
use crate::cache::TranslationCache;
use crate::condition::Condition;
use crate::request::{Fault, Request, RequestKind};

impl<C: TranslationCache> Unit<C> {
    /// Takes a fault of the pure half to the fault log. [`Unit::dma`] and [`Unit::interrupt`] do it themselves.
    pub fn log(&mut self, fault: &Fault) {
        self.counters.blocked += 1;
        if fault.reason == Fault::SILENT {
            return;
        }
        // 1. Fault processing disable.
        if !fault.recorded {
            self.counters.faults_suppressed += 1;
            return;
        }
        let status = self.fault_status();
        // 2. An overflow that software has not cleared: nothing is recorded.
        // 3. Optional: a record of the same source is pending.
        if status.pfo() || (self.config.compress_faults() && self.has_pending_record(fault)) {
            self.counters.faults_dropped += 1;
            return;
        }
        // 4. The next register is still in use: overflow, which is no event by itself.
        if self.fault_record(self.fault_index).f() {
            self.counters.faults_dropped += 1;
            self.set_fault_status(status.with_pfo(true));
            return;
        }
        // 5. Record; F last. PPF set for the first time is an event.
        let index = self.fault_index;
        self.set_fault_record(index, self.record_of(fault).with_f(true));
        self.counters.faults_recorded += 1;
        self.fault_index = if index == self.config.capability().nfr() {
            0
        } else {
            index + 1
        };
        if !status.ppf() {
            let quiet = !self.has_status(EventSource::Fault);
            self.set_fault_status(status.with_ppf(true).with_fri(index));
            if quiet {
                self.raise_event(EventSource::Fault);
            }
        }
    }

    /// Software wrote a fault recording register, which can only clear F: PPF follows.
    pub(super) fn fault_record_written(&mut self) {
        let pending = self.fault_records().any(|(_, record)| record.f());
        let status = self.fault_status();
        if status.ppf() && !pending {
            self.set_fault_status(status.with_ppf(false));
            // D-26: QEMU looks at IP when FSTS is written.
            if self.config.qemu().is_none() {
                self.event_status_written(EventSource::Fault);
            }
        } else if pending && !self.fault_record(status.fri()).f() {
            // FRI names the first pending record: the oldest that is left, in ring order from the next to be written.
            let count = self.config.capability().fault_record_count();
            let oldest = (0..count)
                .map(|step| (u16::from(self.fault_index) + step) % count)
                .filter_map(|index| u8::try_from(index).ok())
                .find(|index| self.fault_record(*index).f());
            self.set_fault_status(status.with_fri(oldest.unwrap_or(0)));
        }
    }

    /// Software wrote FSTS: cleared errors let the queue go on (VT-d §6.5.2.11).
    pub(super) fn fault_status_written<M: SystemMemory>(&mut self, memory: &M) {
        self.event_status_written(EventSource::Fault);
        // D-15: QEMU's queue waits for the next IQT write.
        if self.config.qemu().is_none() {
            self.run_queue(memory);
        }
    }

    /// The index restarts when neither DMA nor interrupts are remapped (VT-d §7.2.1).
    pub(super) fn reset_fault_index(&mut self) {
        let status = self.status();
        if !status.tes() && !status.ires() {
            self.fault_index = 0;
        }
    }

    fn has_pending_record(&self, fault: &Fault) -> bool {
        self.fault_records()
            .any(|(_, record)| record.f() && record.source() == fault.request.source)
    }

    fn fault_records(&self) -> impl Iterator<Item = (u8, FaultRecord)> + '_ {
        (0..=self.config.capability().nfr()).map(|index| (index, self.fault_record(index)))
    }

    fn fault_record(&self, index: u8) -> FaultRecord {
        let at = self
            .config
            .capability()
            .fault_record_offset(index.min(self.config.capability().nfr()));
        FaultRecord::from_words([self.registers.get64(at), self.registers.get64(at + 8)])
    }

    fn set_fault_record(&mut self, index: u8, record: FaultRecord) {
        let at = self.config.capability().fault_record_offset(index);
        let [low, high] = record.to_words();
        self.registers.set64(at, low);
        self.registers.set64(at + 8, high);
    }

    /// VT-d §11.4.7.6 (FRCD_REG).
    fn record_of(&self, fault: &Fault) -> FaultRecord {
        let record = FaultRecord::DEFAULT
            .with_source(fault.request.source)
            .with_reason(fault.reason);
        if fault.condition.is_some_and(Condition::is_interrupt) {
            return match fault.interrupt_index {
                Some(index) => record.with_interrupt_index(index),
                None => record,
            };
        }
        let extended = self.config.extended_capability();
        let request = &fault.request;
        let record = record
            .with_address(iommu_types::Iova::new(
                request.address.raw() & self.recorded_address_bits(),
            ))
            .with_request(match request.access {
                Access::Read => FaultedRequest::Read,
                Access::Write => FaultedRequest::Write,
                Access::Atomic => FaultedRequest::Atomic,
            })
            .with_at(if extended.dt() {
                address_type(request)
            } else {
                AddressType::Untranslated
            });
        match request.pasid {
            // Without PASID support the fields do not exist.
            Some(pasid) if extended.pasid() => record
                .with_pasid(Some(pasid))
                .with_exe(request.execute && request.access == Access::Read)
                .with_privilege(privilege(request)),
            // D-07: what the field holds where the request had no PASID.
            None if self.config.is_qemu_7() => {
                let (pp, pv) = qemu_7_pasid(fault.condition);
                record.with_pp(pp).with_pv(arbitrary_int::u20::extract_u32(pv, 0))
            }
            _ => record,
        }
    }

    /// Address bits above the widest supported address width are recorded as 0.
    fn recorded_address_bits(&self) -> u64 {
        // E-01.
        if self.config.qemu().is_some() {
            return u64::MAX;
        }
        let cap = self.config.capability();
        // First-stage addresses are canonical: their upper bits are recorded as the width of the stage has them.
        let first = self.config.extended_capability().fsts();
        let widest = if first && cap.fs5lp() {
            Some(Agaw::Bits57)
        } else {
            cap.largest_agaw()
        };
        match widest {
            Some(agaw) => agaw.max_address(),
            None => u64::MAX,
        }
    }
}

/// PP and PV of QEMU 7.2 for a request without PASID: something only if a page walk faulted.
const fn qemu_7_pasid(condition: Option<Condition>) -> (bool, u32) {
    match condition {
        Some(
            Condition::Lss1
            | Condition::Lss2
            | Condition::Lgn1_1
            | Condition::Lgn2
            | Condition::Lgn3
            | Condition::Lgn4
            | Condition::Lct4_3,
        ) => (false, 0xFFFF),
        Some(
            Condition::Sss1
            | Condition::Sss2
            | Condition::Sss3
            | Condition::Sss4
            | Condition::Sgn5
            | Condition::Sgn6
            | Condition::Sgn7
            | Condition::Sgn8_1,
        ) => (true, 0),
        _ => (false, 0),
    }
}

const fn address_type(request: &Request) -> AddressType {
    match request.kind {
        RequestKind::Untranslated => AddressType::Untranslated,
        RequestKind::Translation => AddressType::TranslationRequest,
        RequestKind::Translated => AddressType::Translated,
    }
}

const fn privilege(request: &Request) -> vtd_spec::register::Privilege {
    if request.privileged {
        vtd_spec::register::Privilege::Supervisor
    } else {
        vtd_spec::register::Privilege::User
    }
}
