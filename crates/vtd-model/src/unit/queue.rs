//! Queued invalidation (VT-d §6.5.2, §11.4.9).

use iommu_types::SystemMemory;
use vtd_spec::descriptor::{
    ContextCacheInvalidation, DescriptorType, DeviceTlbInvalidation, InterruptEntryInvalidation,
    IotlbInvalidation as IotlbDescriptor, PasidCacheInvalidation, PasidDeviceTlbInvalidation, PasidIotlbInvalidation,
    WaitDescriptor,
};
use vtd_spec::encoding::{
    ContextGranularity, InterruptGranularity, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity,
};
use vtd_spec::register::{
    DescriptorWidth, InvalidationCompletionStatus, InvalidationQueueErrorRecord, InvalidationQueueHead,
    InvalidationQueueTail, QueueError, TranslationTableMode, offset,
};

use super::device::{HeldWait, PasidScope};
use super::drain::DrainState;
use super::{EventSource, Unit};
use crate::cache::{
    ContextInvalidation, InterruptInvalidation, Invalidation, IotlbInvalidation, PageBlock, PasidInvalidation,
    TranslationCache,
};
use crate::sanitizer::Rule;

/// Descriptors that one register write processes at most; what is left, [`Unit::step`] does. A descriptor looks at each
/// cache entry a few times at most (the page sizes), and touches memory twice at most (fetch, status).
pub const DESCRIPTORS_PER_WRITE: u32 = 4096;

/// Words that a fetch of several descriptors reads.
const BATCH_WORDS: usize = 16;
const BATCH_BYTES: u64 = 8 * BATCH_WORDS as u64;
/// Descriptors in it: so many, if they have 128 bits.
const BATCH_MAX: u32 = 8;

impl<C: TranslationCache> Unit<C> {
    /// Processes the queue as far as one register write may; asynchronous profiles leave it to [`Unit::step`].
    pub(super) fn run_queue<M: SystemMemory>(&mut self, memory: &M) {
        if self.is_asynchronous() {
            return;
        }
        let mut left = DESCRIPTORS_PER_WRITE;
        while left > 0 {
            let batched = if left < BATCH_MAX { 0 } else { self.run_batch(memory) };
            let done = match batched {
                0 if !self.step_queue(memory) => return,
                0 => 1,
                done => done,
            };
            left = left.saturating_sub(done);
        }
    }

    /// Head and tail, if there is a descriptor between them and the queue runs.
    fn pending(&self) -> Option<(u64, InvalidationQueueTail)> {
        let status = self.fault_status();
        if !self.status().qies() || status.iqe() || status.ite() || self.drain.awaited.is_some() {
            return None;
        }
        let head = InvalidationQueueHead::new_with_raw_value(self.registers.get64(offset::IQH)).byte_offset();
        let tail = InvalidationQueueTail::new_with_raw_value(self.registers.get64(offset::IQT));
        (head != tail.byte_offset()).then_some((head, tail))
    }

    /// Processes one descriptor (VT-d §6.5.2); false if there is none, or the queue has stopped.
    pub(super) fn step_queue<M: SystemMemory>(&mut self, memory: &M) -> bool {
        let Some((head, tail)) = self.pending() else {
            return false;
        };
        match self.descriptor(memory, head, tail) {
            Ok(true) => {
                self.advance(head, 1);
                true
            }
            // The descriptor at the head waits for the embedder: a drain, or device-TLBs. Only a drain that was asked
            // for just now is progress.
            Ok(false) => self.drain.awaited.is_some(),
            Err(error) => {
                self.stop_queue(error);
                true
            }
        }
    }

    /// Takes `count` descriptors from `head` on out of the queue.
    fn advance(&mut self, head: u64, count: u32) {
        self.counters.descriptors += u64::from(count);
        let next = head + u64::from(count) * self.queue.dw().bytes();
        let next = if next >= self.queue.byte_len() { 0 } else { next };
        let next = InvalidationQueueHead::DEFAULT.with_byte_offset(next);
        self.registers.set64(offset::IQH, next.raw_value());
    }

    /// Processes the descriptors at the head that need nothing but the caches, with one fetch for several of them, as
    /// hardware may. Tells how many; whatever else is at the head is left to [`Self::step_queue`].
    fn run_batch<M: SystemMemory>(&mut self, memory: &M) -> u32 {
        let Some((head, tail)) = self.pending() else { return 0 };
        let Ok(wide) = self.check_queue(tail) else { return 0 };
        // Software owns what is behind the tail.
        let end = if head < tail.byte_offset() {
            tail.byte_offset()
        } else {
            self.queue.byte_len()
        };
        if end.saturating_sub(head) < BATCH_BYTES {
            return 0;
        }
        let at = self.queue.base().checked_add(head);
        let Some(Ok(words)) = at.map(|at| memory.read_words::<BATCH_WORDS>(at)) else {
            return 0;
        };
        let mut done = 0;
        if wide {
            let (descriptors, _) = words.as_chunks::<4>();
            for [low, high, rest @ ..] in descriptors {
                if self.cache_descriptor([*low, *high], *rest == [0, 0], wide) != Some(Ok(())) {
                    break;
                }
                done += 1;
            }
        } else {
            let (descriptors, _) = words.as_chunks::<2>();
            for words in descriptors {
                if self.cache_descriptor(*words, true, wide) != Some(Ok(())) {
                    break;
                }
                done += 1;
            }
        }
        if done > 0 {
            self.last_was_wait = false;
            self.advance(head, done);
        }
        done
    }

    /// Whether the queue can go on with this tail: its descriptors' width if so.
    fn check_queue(&self, tail: InvalidationQueueTail) -> Result<bool, QueueError> {
        let (queue, ecap) = (self.queue, self.config.extended_capability());
        // IQT first (VT-d §11.4.9.2): it is checked when it is written.
        if tail.byte_offset() >= queue.byte_len() {
            return Err(QueueError::TAIL_OUT_OF_RANGE);
        }
        if !tail.is_aligned(queue.dw()) {
            return Err(QueueError::TAIL_MISALIGNED);
        }
        // Then what the mode accepts (VT-d §6.5.2, table of descriptor types).
        let wide = queue.dw() == DescriptorWidth::Bits256;
        match self.latched.table_mode(&self.config) {
            TranslationTableMode::Reserved => return Err(QueueError::INVALID_TABLE_MODE),
            TranslationTableMode::Scalable | TranslationTableMode::AbortDma if !wide => {
                return Err(QueueError::INVALID_WIDTH);
            }
            _ if wide && !ecap.smts() && !ecap.adms() => return Err(QueueError::INVALID_WIDTH),
            _ => {}
        }
        Ok(wide)
    }

    /// Checks, fetches and carries out the descriptor at `head`. `Ok(false)` leaves it there to be looked at again.
    fn descriptor<M: SystemMemory>(
        &mut self,
        memory: &M,
        head: u64,
        tail: InvalidationQueueTail,
    ) -> Result<bool, QueueError> {
        let wide = self.check_queue(tail)?;
        let at = self.queue.base().checked_add(head).ok_or(QueueError::FETCH_FAILED)?;
        let words = if wide {
            memory.read_words::<4>(at)
        } else {
            memory.read_words::<2>(at).map(|[low, high]| [low, high, 0, 0])
        };
        let [low, high, rest @ ..] = words.map_err(|_| QueueError::FETCH_FAILED)?;
        let (words, upper_clear) = ([low, high], rest == [0, 0]);
        self.last_was_wait = DescriptorType::of(low) == DescriptorType::WAIT;
        if let Some(done) = self.cache_descriptor(words, upper_clear, wide) {
            return done.map(|()| true);
        }
        let device_tlbs = self.config.extended_capability().dt();
        match DescriptorType::of(low) {
            DescriptorType::DEVICE_TLB if device_tlbs => {
                self.device_descriptor(DeviceTlbInvalidation::from_words(words), upper_clear)
            }
            DescriptorType::PASID_DEVICE_TLB if device_tlbs => {
                self.pasid_device_descriptor(PasidDeviceTlbInvalidation::from_words(words), upper_clear)
            }
            DescriptorType::WAIT => self.wait_descriptor(memory, WaitDescriptor::from_words(words), upper_clear),
            _ => Err(QueueError::INVALID_TYPE),
        }
    }

    /// Carries out a descriptor that needs nothing but the unit's own caches; `None` if it is of another type. An error
    /// has changed nothing.
    #[inline]
    fn cache_descriptor(&mut self, words: [u64; 2], upper_clear: bool, wide: bool) -> Option<Result<(), QueueError>> {
        let [low, _] = words;
        let kind = DescriptorType::of(low);
        let legacy = || self.latched.table_mode(&self.config) == TranslationTableMode::Legacy;
        if kind.needs_256_bits() && (!wide || legacy()) {
            return Some(Err(QueueError::INVALID_TYPE));
        }
        let done = match kind {
            DescriptorType::CONTEXT_CACHE => {
                self.context_descriptor(ContextCacheInvalidation::from_words(words), upper_clear)
            }
            DescriptorType::IOTLB => self.iotlb_descriptor(IotlbDescriptor::from_words(words), upper_clear),
            DescriptorType::PASID_IOTLB => {
                self.pasid_iotlb_descriptor(PasidIotlbInvalidation::from_words(words), upper_clear)
            }
            DescriptorType::PASID_CACHE => {
                self.pasid_cache_descriptor(PasidCacheInvalidation::from_words(words), upper_clear)
            }
            DescriptorType::INTERRUPT_ENTRY if self.config.extended_capability().ir() => {
                self.interrupt_descriptor(InterruptEntryInvalidation::from_words(words), upper_clear)
            }
            _ => return None,
        };
        self.drain_needed |= done.is_ok();
        Some(done)
    }

    /// VT-d §6.5.2.1.
    fn context_descriptor(&mut self, d: ContextCacheInvalidation, upper_clear: bool) -> Result<(), QueueError> {
        check(upper_clear && d.raw_value() & ContextCacheInvalidation::RESERVED == 0)?;
        let domain = self.domain(d.did());
        self.invalidate_context(match d.g() {
            // The specification names no code for a reserved granularity; a reserved field is what it is.
            ContextGranularity::None => return Err(QueueError::RESERVED_FIELD),
            ContextGranularity::Global => ContextInvalidation::Global,
            ContextGranularity::Domain => ContextInvalidation::Domain(domain),
            ContextGranularity::Device => ContextInvalidation::Device {
                source: d.source(),
                ignore: d.fm().ignored(),
                domain,
            },
        });
        Ok(())
    }

    /// VT-d §6.5.2.3.
    fn iotlb_descriptor(&mut self, d: IotlbDescriptor, upper_clear: bool) -> Result<(), QueueError> {
        check(upper_clear && d.raw_value() & IotlbDescriptor::RESERVED == 0)?;
        let cap = self.config.capability();
        let domain = self.domain(d.did());
        self.invalidate_iotlb(match d.g() {
            IotlbGranularity::Global => IotlbInvalidation::Global,
            IotlbGranularity::Domain => IotlbInvalidation::Domain(domain),
            // Page-selective without CAP.PSI, or more pages than CAP.MAMV allows: refused, so that a driver that
            // relies on it finds out.
            IotlbGranularity::Page if cap.psi() && d.am().value() <= cap.max_address_mask() => {
                IotlbInvalidation::Pages {
                    domain,
                    pages: PageBlock::new(d.address().raw(), d.am().value(), d.ih()),
                }
            }
            IotlbGranularity::None | IotlbGranularity::Page => return Err(QueueError::RESERVED_FIELD),
        });
        Ok(())
    }

    /// VT-d §6.5.2.2.
    fn pasid_cache_descriptor(&mut self, d: PasidCacheInvalidation, upper_clear: bool) -> Result<(), QueueError> {
        check(upper_clear && d.raw_value() & PasidCacheInvalidation::RESERVED == 0)?;
        let domain = self.domain(d.did());
        let what = match d.g() {
            PasidCacheGranularity::Global => PasidInvalidation::Global,
            PasidCacheGranularity::Domain => PasidInvalidation::Domain(domain),
            PasidCacheGranularity::Pasid => PasidInvalidation::Pasid(domain, d.pasid().raw()),
            PasidCacheGranularity::Reserved => return Err(QueueError::RESERVED_FIELD),
        };
        self.counters.invalidations.pasid += 1;
        self.invalidate(Invalidation::Pasid(what));
        Ok(())
    }

    /// VT-d §6.5.2.4. Any address mask is accepted.
    fn pasid_iotlb_descriptor(&mut self, d: PasidIotlbInvalidation, upper_clear: bool) -> Result<(), QueueError> {
        check(upper_clear && d.raw_value() & PasidIotlbInvalidation::RESERVED == 0)?;
        let (domain, pasid) = (self.domain(d.did()), d.pasid().raw());
        let what = match d.g() {
            PasidIotlbGranularity::Pasid => IotlbInvalidation::Pasid { domain, pasid },
            PasidIotlbGranularity::Page => IotlbInvalidation::PasidPages {
                domain,
                pasid,
                pages: PageBlock::new(d.address().raw(), d.am().value(), d.ih()),
            },
            PasidIotlbGranularity::Reserved0 | PasidIotlbGranularity::Reserved1 => {
                return Err(QueueError::RESERVED_FIELD);
            }
        };
        self.counters.invalidations.pasid_iotlb += 1;
        self.invalidate(Invalidation::Iotlb(what));
        Ok(())
    }

    /// VT-d §6.5.2.5.
    fn device_descriptor(&mut self, d: DeviceTlbInvalidation, upper_clear: bool) -> Result<bool, QueueError> {
        check(upper_clear && d.raw_value() & DeviceTlbInvalidation::RESERVED == 0)?;
        // PFSID is reserved without ECAP.DIT.
        check(d.pfsid() == 0 || self.config.extended_capability().dit())?;
        let (first, order) = d.range();
        self.drain_needed = true;
        Ok(self.send_device_invalidation(d.source(), None, first, order))
    }

    /// VT-d §6.5.2.6.
    fn pasid_device_descriptor(
        &mut self,
        d: PasidDeviceTlbInvalidation,
        upper_clear: bool,
    ) -> Result<bool, QueueError> {
        check(upper_clear && d.raw_value() & PasidDeviceTlbInvalidation::RESERVED == 0)?;
        check(d.pfsid() == 0 || self.config.extended_capability().dit())?;
        let (first, order) = d.range();
        let scope = if d.gi() {
            PasidScope::All
        } else {
            PasidScope::One(d.pasid())
        };
        self.drain_needed = true;
        Ok(self.send_device_invalidation(d.source(), Some(scope), first, order))
    }

    /// VT-d §6.5.2.8.
    fn interrupt_descriptor(&mut self, d: InterruptEntryInvalidation, upper_clear: bool) -> Result<(), QueueError> {
        check(upper_clear && d.raw_value() & InterruptEntryInvalidation::RESERVED == 0)?;
        let what = match d.g() {
            InterruptGranularity::Global => InterruptInvalidation::Global,
            InterruptGranularity::Index => {
                let mask = d.im().value();
                check(mask <= self.config.extended_capability().max_handle_mask())?;
                let low = 1u16.checked_shl(u32::from(mask)).map_or(u16::MAX, |size| size - 1);
                InterruptInvalidation::Indexes {
                    first: d.iidx() & !low,
                    last: d.iidx() | low,
                }
            }
        };
        self.counters.invalidations.interrupt += 1;
        self.invalidate(Invalidation::Interrupt(what));
        Ok(())
    }

    /// VT-d §6.5.2.9. Everything before the wait is complete when it is reached, so a fence needs nothing more.
    fn wait_descriptor<M: SystemMemory>(
        &mut self,
        memory: &M,
        d: WaitDescriptor,
        upper_clear: bool,
    ) -> Result<bool, QueueError> {
        check(upper_clear && d.raw_value() & WaitDescriptor::RESERVED == 0)?;
        // PD is reserved without ECAP.PDS.
        check(!d.pd() || self.config.extended_capability().pds())?;
        // Device-TLB invalidations complete before the wait does; it is looked at again when they have.
        if self.held_wait == HeldWait::Aborted {
            self.held_wait = HeldWait::None;
            return Ok(true);
        }
        if self.devices.is_waiting() {
            self.held_wait = HeldWait::Pending;
            return Ok(false);
        }
        self.held_wait = HeldWait::None;
        if self.config.two_phase_waits() && self.drain_needed && !self.drain.done {
            self.drain = DrainState {
                awaited: Some(self.new_token()),
                ..DrainState::default()
            };
            return Ok(false);
        }
        self.drain_needed = false;
        self.drain = DrainState::default();
        if d.sw() {
            // An address that is not memory is the software's mistake and has no defined effect.
            let at = iommu_types::HostPhys::new(d.status_address().raw() & self.config.host_address_limit());
            if memory.write_u32(at, d.status_data()).is_err() {
                self.misuse(Rule::StatusAddress);
            }
        }
        if d.r#if() && !self.has_status(EventSource::InvalidationCompletion) {
            let status = InvalidationCompletionStatus::DEFAULT.with_iwc(true);
            self.registers.set32(offset::ICS, status.raw_value());
            self.raise_event(EventSource::InvalidationCompletion);
        }
        self.counters.waits += 1;
        Ok(true)
    }

    /// VT-d §6.5.2.11, §11.4.9.9 (IQERCD_REG): the head stays at the descriptor, an event is raised.
    fn stop_queue(&mut self, error: QueueError) {
        // D-17: QEMU has no such register.
        if self.config.qemu().is_none() {
            let record = InvalidationQueueErrorRecord::new_with_raw_value(self.registers.get64(offset::IQERCD));
            self.registers
                .set64(offset::IQERCD, record.with_error(error).raw_value());
        }
        let quiet = !self.has_status(EventSource::Fault);
        self.set_fault_status(self.fault_status().with_iqe(true));
        if quiet {
            self.raise_event(EventSource::Fault);
        }
    }
}

fn check(holds: bool) -> Result<(), QueueError> {
    if holds { Ok(()) } else { Err(QueueError::RESERVED_FIELD) }
}
