//! Legacy mode: root table, context table, second-stage tables (VT-d §3.4.2, §9.1, §9.3).

use iommu_types::{Access, HostPhys, PageSize, Perms, SystemMemory};
use vtd_spec::entry::{ContextEntry, ContextTranslation, RootEntry};
use vtd_spec::message;

use super::second_stage::{SecondStage, SecondStop};
use super::{Stop, Walk, low_bits};
use crate::cache::{AddressSpaceTag, CachedContext, CachedPage, Context, LegacyContext, Stage, TranslationCache};
use crate::condition::Condition;
use crate::request::{RequestKind, Translation};

impl<M: SystemMemory, C: TranslationCache> Walk<'_, M, C> {
    /// Steps 1 to 20 of a translation in legacy mode.
    pub(super) fn legacy(&mut self) -> Result<Translation, Stop> {
        let context = self.legacy_context()?;
        // Translation and translated requests are served with TT = 01 only (LCT.5).
        if self.request.kind != RequestKind::Untranslated && !context.device_tlb {
            return Err(Condition::Lct5.into());
        }
        if self.request.kind == RequestKind::Translated {
            return self.legacy_translated();
        }
        if self.request.kind == RequestKind::Translation && self.is_interrupt_address() {
            return Ok(self.interrupt_range_completion());
        }
        if context.pass_through {
            // D-10: QEMU does not look.
            if self.address() > self.config.host_address_limit() && self.config.qemu().is_none() {
                return Err(Condition::Lgn1_3.into());
            }
            // LGN.4 cannot occur: the interrupt range was sorted out before.
            return Ok(self.unchanged());
        }
        self.legacy_second_stage(&context)
    }

    /// A translated request passes with its address as it is (LGN.1.2, LGN.4).
    fn legacy_translated(&self) -> Result<Translation, Stop> {
        if self.address() > self.config.host_address_limit() {
            return Err(Condition::Lgn1_2.into());
        }
        if self.is_interrupt_address() {
            return Err(Condition::Lgn4.into());
        }
        Ok(self.unchanged())
    }

    /// The context entry of the requester, from the cache or from the tables.
    fn legacy_context(&mut self) -> Result<LegacyContext, Stop> {
        let source = self.request.source;
        let cached = self.cache.context(source).filter(|cached| !cached.scalable);
        self.report.context.count(cached.is_some());
        let context = match cached {
            Some(cached) => cached,
            None => {
                let (fault_processing_disabled, entry) = self.read_legacy_context();
                let read = CachedContext {
                    entry,
                    fault_processing_disabled,
                    scalable: false,
                };
                // An entry that could not be read is no entry; the others may be kept as the configuration says.
                let unreadable = matches!(entry, Err(Condition::Lrt1 | Condition::Lct1));
                if entry.is_ok() || (self.config.caches_faults() && !unreadable) {
                    self.cache.fill_context(self.stamp, source, read);
                }
                read
            }
        };
        self.fault_processing_disabled = context.fault_processing_disabled;
        match context.entry? {
            Context::Legacy(context) => Ok(context),
            // Not reached: the filter above keeps entries of the other mode out.
            Context::Scalable(_) => Err(Condition::Lct3.into()),
        }
    }

    /// FPD as far as it was read, and the entry or what is wrong with it.
    fn read_legacy_context(&mut self) -> (bool, Result<Context, Condition>) {
        let features = self.config.features();
        let source = self.request.source;
        // VT-d §9.1 (Root Entry): LRT.1 to LRT.3.
        self.report.reads.root += 1;
        let root = self
            .latched
            .root
            .root_table()
            .checked_add(u64::from(source.bus()) * RootEntry::BYTES);
        let Some(Ok(words)) = root.map(|at| self.memory.read_words::<2>(at)) else {
            return (false, Err(Condition::Lrt1));
        };
        let root = RootEntry::from_words(words);
        if !root.p() {
            return (false, Err(Condition::Lrt2));
        }
        if root.raw_value() & RootEntry::reserved(features) != 0 {
            return (false, Err(Condition::Lrt3));
        }
        // VT-d §9.3 (Context Entry): LCT.1 to LCT.4.
        self.report.reads.context += 1;
        let at = root
            .context_table()
            .checked_add(u64::from(source.devfn().raw()) * ContextEntry::BYTES);
        let Some(Ok(words)) = at.map(|at| self.memory.read_words::<2>(at)) else {
            return (false, Err(Condition::Lct1));
        };
        let entry = ContextEntry::from_words(words);
        (entry.fpd(), self.judge_legacy_context(entry))
    }

    fn judge_legacy_context(&self, entry: ContextEntry) -> Result<Context, Condition> {
        let (features, extended) = (self.config.features(), self.config.extended_capability());
        if !entry.p() {
            return Err(Condition::Lct2);
        }
        let pass_through = entry.tt() == ContextTranslation::PassThrough;
        let reserved = if pass_through {
            ContextEntry::reserved_pass_through(features)
        } else {
            ContextEntry::reserved(features)
        };
        if entry.raw_value() & reserved != 0 {
            return Err(Condition::Lct3);
        }
        // The specification does not rank LCT.4.1 and LCT.4.2: the type first, as it says what the width is for.
        let device_tlb = match entry.tt() {
            ContextTranslation::Untranslated => false,
            ContextTranslation::WithDeviceTlb if extended.dt() => true,
            ContextTranslation::PassThrough if extended.pt() => false,
            _ => return Err(Condition::Lct4_2),
        };
        let Some(agaw) = entry
            .agaw()
            .filter(|agaw| self.config.capability().supports_agaw(*agaw))
        else {
            return Err(Condition::Lct4_1);
        };
        Ok(Context::Legacy(LegacyContext {
            pass_through,
            device_tlb,
            domain: entry.domain(),
            root: entry.second_stage_table().raw(),
            levels: agaw.levels(),
        }))
    }

    fn legacy_second_stage(&mut self, context: &LegacyContext) -> Result<Translation, Stop> {
        let tables = SecondStage {
            root: HostPhys::new(context.root),
            levels: context.levels,
            flags: false,
            snooped: self.config.extended_capability().c(),
        };
        if self.address() > tables.address_limit(self.config) {
            return Err(Condition::Lgn1_1.into());
        }
        let tag = AddressSpaceTag {
            domain: context.domain,
            pasid: AddressSpaceTag::LEGACY,
            stage: Stage::Second,
            roots: if self.config.exact_tags() {
                [u64::from(context.levels), context.root]
            } else {
                [0, 0]
            },
        };
        let cached = self.cache.page(&tag, self.address());
        self.report.iotlb.count(cached.is_some());
        let page = match cached {
            Some(page) => page,
            None => self.walk_legacy(&tables, &tag)?,
        };
        if let Some(condition) = page.fault {
            return Err(condition.into());
        }
        let answer = self.legacy_rights(&page);
        if self.config.qemu().is_none() {
            return answer;
        }
        match (&answer, cached) {
            // D-02.
            (Err(_), Some(_)) => Err(Stop::Silent),
            (Ok(_), None) => {
                self.cache.fill_page(self.stamp, &tag, page);
                answer
            }
            _ => answer,
        }
    }

    /// Walks the tables and keeps what the caches may keep.
    fn walk_legacy(&mut self, tables: &SecondStage, tag: &AddressSpaceTag) -> Result<CachedPage, Stop> {
        let address = self.address();
        let (page, keep) = match self.second_stage(tables, tag, address) {
            Ok(page) => {
                let cached = CachedPage {
                    base: address & !low_bits(page.shift),
                    shift: page.shift,
                    phys: page.phys.raw(),
                    user: page.perms,
                    supervisor: page.perms,
                    user_allowed: true,
                    dirty: true,
                    snoop: page.snoop,
                    fault: None,
                };
                // A page that nothing may use counts as not present (VT-d §9.8).
                let useful = !page.perms.is_none() && self.config.qemu().is_none();
                (cached, useful || self.config.caches_faults())
            }
            Err(SecondStop::TopUnreadable) => return Err(Condition::Lct4_3.into()),
            Err(SecondStop::Unreadable) => return Err(Condition::Lss1.into()),
            Err(stop) => {
                let fault = matches!(stop, SecondStop::Reserved).then_some(Condition::Lss2);
                (nothing_at(address, fault), self.config.caches_faults())
            }
        };
        if keep {
            self.cache.fill_page(self.stamp, tag, page);
        }
        Ok(page)
    }

    /// Permissions, then the place of the result: LGN.2, LGN.3, LGN.4.
    fn legacy_rights(&self, page: &CachedPage) -> Result<Translation, Stop> {
        let mut answer = self.through_page(page, page.user);
        answer.snooped |= page.snoop;
        answer.no_snoop_forbidden = page.snoop;
        if self.request.kind == RequestKind::Translation {
            // A translation completion carries the effective permission instead of a fault.
            answer.perms.write &= !self.no_write();
            if answer.perms.is_none() {
                return Ok(self.no_access());
            }
        } else {
            let wants = self.request.access;
            if wants != Access::Read && !page.user.write {
                return Err(Condition::Lgn2.into());
            }
            let exempt = self.request.is_zero_length_read() && self.config.capability().zlr() && page.user.write;
            if wants != Access::Write && !page.user.read && !exempt {
                return Err(Condition::Lgn3.into());
            }
        }
        if message::is_interrupt_address(answer.phys.raw()) {
            return Err(Condition::Lgn4.into());
        }
        Ok(answer)
    }
}

/// What a cache in caching mode keeps for an address without translation: one small page without rights.
pub(super) fn nothing_at(address: u64, fault: Option<Condition>) -> CachedPage {
    CachedPage {
        base: address & !(PageSize::Size4K.bytes() - 1),
        shift: 12,
        phys: 0,
        user: Perms::NONE,
        supervisor: Perms::NONE,
        user_allowed: true,
        dirty: true,
        snoop: false,
        fault,
    }
}
