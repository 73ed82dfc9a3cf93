//! The pure half: from a request to an answer (VT-d §3, §7.1).
//!
//! [`translate`] changes nothing but the caches it is given and, where tables ask for it, their accessed and dirty
//! flags. Any number of threads can run it over one [`Latched`] state.

mod direct;
mod first_stage;
mod flags;
mod legacy;
mod scalable;
mod second_stage;
mod stages;

use iommu_types::{Access, AddrRange, HostPhys, Iova, PageSize, Perms, SystemMemory};
use vtd_spec::fault::FaultReason;
use vtd_spec::fault::Response;
use vtd_spec::message;
use vtd_spec::register::TranslationTableMode;

use crate::cache::{CachedPage, Stamp, TranslationCache};
use crate::condition::Condition;
use crate::config::UnitConfig;
use crate::counters::WalkReport;
use crate::latched::Latched;
use crate::request::{Fault, Request, RequestKind, Translation};
use crate::sanitizer::NoCache;

pub use direct::{DirectPage, DirectWalker};

/// Bytes of the write that is an interrupt request.
const INTERRUPT_BYTES: u64 = 4;

/// The answer to a request and what it took to find it.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Outcome {
    /// The answer. A fault that says `recorded` still has to be logged ([`crate::Unit::log`]).
    pub result: Result<Translation, Fault>,
    /// Table reads and cache lookups.
    pub report: WalkReport,
}

/// Why a walk ended without a translation.
#[derive(Clone, Copy, Debug)]
enum Stop {
    /// A condition of the specification.
    Condition(Condition),
    /// A block that has no fault reason.
    Silent,
}

impl From<Condition> for Stop {
    fn from(condition: Condition) -> Self {
        Self::Condition(condition)
    }
}

/// Answers one request for memory.
///
/// The unit answers for the page of `request.address`; a request that continues past [`Translation::page`] is
/// issued again from there. A 4-byte aligned write without PASID into the interrupt range is an interrupt request
/// and belongs to [`crate::remap_interrupt`]; here it is blocked without a record.
pub fn translate<M, C>(latched: &Latched, config: &UnitConfig, memory: &M, cache: &mut C, request: &Request) -> Outcome
where
    M: SystemMemory,
    C: TranslationCache,
{
    let mut report = WalkReport::default();
    let result = answer(latched, config, memory, cache, request, &mut report);
    Outcome { result, report }
}

/// [`translate`] with the report added to one that is kept anyway.
pub(crate) fn answer<M, C>(
    latched: &Latched,
    config: &UnitConfig,
    memory: &M,
    cache: &mut C,
    request: &Request,
    report: &mut WalkReport,
) -> Result<Translation, Fault>
where
    M: SystemMemory,
    C: TranslationCache,
{
    run(latched, config, memory, cache, request, report, false)
}

/// What tables alone would answer at this moment: no cache is asked, none is filled, no flag is set in any table. For
/// explaining and checking.
pub fn inspect<M: SystemMemory>(latched: &Latched, config: &UnitConfig, memory: &M, request: &Request) -> Outcome {
    let mut report = WalkReport::default();
    let result = run(latched, config, memory, &mut NoCache, request, &mut report, true);
    Outcome { result, report }
}

fn run<M, C>(
    latched: &Latched,
    config: &UnitConfig,
    memory: &M,
    cache: &mut C,
    request: &Request,
    report: &mut WalkReport,
    keeps_tables_unchanged: bool,
) -> Result<Translation, Fault>
where
    M: SystemMemory,
    C: TranslationCache,
{
    let stamp = cache.stamp();
    let mut walk = Walk {
        latched,
        config,
        memory,
        cache,
        request,
        stamp,
        report,
        fault_processing_disabled: false,
        second_stage_only: false,
        keeps_tables_unchanged,
    };
    walk.run()
        .and_then(|answer| walk.outside_protected(answer))
        .or_else(|stop| walk.answer(stop))
}

/// One translation under way.
struct Walk<'a, M, C> {
    latched: &'a Latched,
    config: &'a UnitConfig,
    memory: &'a M,
    cache: &'a mut C,
    request: &'a Request,
    stamp: Stamp,
    report: &'a mut WalkReport,
    /// FPD in any structure read so far.
    fault_processing_disabled: bool,
    /// Only second-stage tables translate the request.
    second_stage_only: bool,
    /// Only look: no flag is set in any table.
    keeps_tables_unchanged: bool,
}

impl<M: SystemMemory, C: TranslationCache> Walk<'_, M, C> {
    /// VT-d §3.15: what kind of request is this, before any table is read.
    fn run(&mut self) -> Result<Translation, Stop> {
        let request = self.request;
        // A write cannot ask for a translation.
        if request.kind == RequestKind::Translation && request.access != Access::Read {
            return Err(Stop::Silent);
        }
        // PASID in translated requests needs ECAP.PTRS.
        if request.kind == RequestKind::Translated
            && request.pasid.is_some()
            && !self.config.extended_capability().ptrs()
        {
            return Err(Stop::Silent);
        }
        let interrupt = self.is_interrupt_address();
        if interrupt && self.is_interrupt_request() {
            return Err(Stop::Silent);
        }
        if !self.latched.translation_enabled {
            return match request.kind {
                RequestKind::Untranslated => Ok(self.unchanged()),
                // ATS traffic needs translation: Unsupported Request, no record.
                RequestKind::Translation | RequestKind::Translated => Err(Stop::Silent),
            };
        }
        // VT-d §3.15 (interrupt address range), requests without PASID.
        if interrupt && request.pasid.is_none() && request.kind == RequestKind::Untranslated {
            return if request.is_zero_length_read() {
                Ok(self.unchanged())
            } else {
                Err(Condition::IrIllegalAccess.into())
            };
        }
        // VT-d §11.4.5 (RTADDR_REG): conditions RTA.1 to RTA.5 of §7.1.3.
        let (root, extended) = (self.latched.root, self.config.extended_capability());
        match self.latched.table_mode(self.config) {
            TranslationTableMode::AbortDma if !extended.adms() => Err(Condition::Rta1_1.into()),
            TranslationTableMode::Reserved => Err(Condition::Rta1_2.into()),
            TranslationTableMode::Scalable if !extended.smts() => Err(Condition::Rta1_3.into()),
            TranslationTableMode::Legacy if root.ssirwe() && extended.ssirws() => Err(Condition::Rta1_4.into()),
            TranslationTableMode::AbortDma => Err(Condition::Rta4.into()),
            TranslationTableMode::Legacy if request.pasid.is_some() => Err(Condition::Rta2.into()),
            // RTA.5: from version 8 on, requests to execute are blocked here.
            _ if self.config.version().faults_execute_requests() && request.pasid.is_some() && request.execute => {
                Err(Condition::Rta5.into())
            }
            TranslationTableMode::Legacy => self.legacy(),
            TranslationTableMode::Scalable => self.scalable(),
        }
    }

    /// VT-d §11.4.8: an access that ends in a protected memory region is blocked and not recorded, whatever TES says. A
    /// translation request is told of the region's page that it may not use it.
    fn outside_protected(&self, mut answer: Translation) -> Result<Translation, Stop> {
        if answer.perms.is_none() || answer.untranslated_only || self.latched.protected == [None; 2] {
            return Ok(answer);
        }
        if self.latched.is_protected(answer.phys) {
            return match self.request.kind {
                RequestKind::Translation => Ok(self.no_access()),
                _ => Err(Stop::Silent),
            };
        }
        // The answer holds for the whole page: none of it may lie in a region.
        let before = answer.page.first().raw();
        let first = answer.phys.checked_sub(self.address() - before.min(self.address()));
        let len = answer.page.len();
        let range = first
            .zip(len)
            .and_then(|(first, len)| AddrRange::from_base_len(first, len));
        if self.latched.splits(range) {
            answer.page = AddrRange::page_around(self.request.address, PageSize::Size4K);
        }
        Ok(answer)
    }

    /// The answer for a walk that was stopped.
    fn answer(&self, stop: Stop) -> Result<Translation, Fault> {
        let request = self.request;
        match stop {
            Stop::Silent => Err(Fault::silent(*request)),
            // Recoverable: a translation completion without permission is an answer, not a fault.
            // SFS.10 is answered so too, and recorded as a fault on top (VT-d §7.1.3).
            Stop::Condition(condition)
                if condition != Condition::Sfs10
                    && matches!(
                        condition.response(request),
                        Response::SuccessWithoutAccess | Response::SuccessWithGranted
                    ) =>
            {
                Ok(self.no_access())
            }
            Stop::Condition(condition) => {
                let qemu = self.config.qemu();
                let reason = qemu.map_or(condition.reason(), |version| {
                    version.reason(condition, request.access, self.second_stage_only)
                });
                // E-02: 0Bh counts as not qualified. D-04: 58h, which 7.2 answers for more than it is for, is not either.
                let qualified = condition.is_qualified()
                    && !(qemu.is_some()
                        && (matches!(condition, Condition::Lct3 | Condition::Sct3)
                            || reason == FaultReason::PASID_ENTRY_ACCESS));
                Err(Fault::new(*request, condition)
                    .with_reason(reason)
                    .suppressed_if(qualified && self.fault_processing_disabled))
            }
        }
    }

    fn address(&self) -> u64 {
        self.request.address.raw()
    }

    /// Whether the request's address lies in FEE0_0000h to FEEF_FFFFh.
    fn is_interrupt_address(&self) -> bool {
        message::is_interrupt_address(self.address())
    }

    /// Whether the request is what devices send as an interrupt: one aligned double word, untranslated, no PASID.
    fn is_interrupt_request(&self) -> bool {
        let request = self.request;
        request.kind == RequestKind::Untranslated
            && request.pasid.is_none()
            && request.access == Access::Write
            && request.len == INTERRUPT_BYTES
            && self.address().is_multiple_of(INTERRUPT_BYTES)
    }

    /// The translation that leaves the address as it is, for the largest range around it that holds no interrupt
    /// address and no address above the host width.
    fn unchanged(&self) -> Translation {
        let limit = self.config.host_address_limit();
        let at = self.address();
        let (low, high) = (message::INTERRUPT_RANGE_FIRST, message::INTERRUPT_RANGE_LAST);
        let (first, last) = if at < low {
            (0, low - 1)
        } else if at <= high {
            (low, high)
        } else if at <= limit {
            (high + 1, limit)
        } else {
            (limit + 1, u64::MAX)
        };
        self.translation(at, first, last, Perms::READ_WRITE)
    }

    fn translation(&self, phys: u64, first: u64, last: u64, perms: Perms) -> Translation {
        let here = AddrRange::page_around(self.request.address, PageSize::Size4K);
        Translation {
            phys: HostPhys::new(phys),
            page: AddrRange::new(Iova::new(first), Iova::new(last)).unwrap_or(here),
            perms,
            untranslated_only: false,
            snooped: !self.request.no_snoop,
            no_snoop_forbidden: false,
            privileged: self.request.privileged && self.request.pasid.is_some(),
        }
    }

    /// A translation completion with Success and R = W = U = S = 0.
    fn no_access(&self) -> Translation {
        let page = AddrRange::page_around(self.request.address, PageSize::Size4K);
        self.translation(self.address(), page.first().raw(), page.last().raw(), Perms::NONE)
    }

    /// Conditions S.1 and S.2 of §7.1.3: a translation request into the interrupt range is told to write there
    /// untranslated, so that the device can send interrupts.
    fn interrupt_range_completion(&self) -> Translation {
        let mut completion = self.no_access();
        // S.2 speaks of the flag as it came, whether or not the unit honours it elsewhere.
        if !self.request.no_write {
            completion.perms = Perms::WRITE;
            completion.untranslated_only = true;
        }
        completion
    }

    /// Whether the request gives up write permission (NW, honoured with ECAP.NWFS).
    fn no_write(&self) -> bool {
        self.request.no_write && self.config.extended_capability().nwfs()
    }

    /// The translation that `page` gives this request, before permissions are judged.
    fn through_page(&self, page: &CachedPage, perms: Perms) -> Translation {
        let offset = self.address() - page.base.min(self.address());
        let last = page.base | low_bits(page.shift);
        self.translation(page.phys.wrapping_add(offset), page.base, last, perms)
    }
}

/// A mask of the low `bits` bits.
const fn low_bits(bits: u8) -> u64 {
    match 1u64.checked_shl(bits as u32) {
        Some(bit) => bit - 1,
        None => u64::MAX,
    }
}
