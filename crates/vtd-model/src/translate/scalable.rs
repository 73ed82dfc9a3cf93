//! Scalable mode: root, context and PASID tables (VT-d §3.4.3, §9.2, §9.4 to §9.6).

use iommu_types::{HostPhys, Pasid, SystemMemory};
use vtd_spec::entry::FirstStagePagingMode;
use vtd_spec::entry::{PasidDirectoryEntry, PasidEntry, PasidTranslation, ScalableContextEntry, ScalableRootEntry};
use vtd_spec::message;

use super::{Stop, Walk};
use crate::cache::{CachedContext, CachedPasid, Context, PasidContext, ScalableContext, Stage, TranslationCache};
use crate::condition::Condition;
use crate::qemu::QemuVersion;
use crate::request::{RequestKind, Translation};

/// What a walk does with an entry that it read and that turned out wrong.
const fn is_unreadable(condition: Condition) -> bool {
    matches!(
        condition,
        Condition::Srt1 | Condition::Sct1 | Condition::Spd1 | Condition::Spt1
    )
}

impl<M: SystemMemory, C: TranslationCache> Walk<'_, M, C> {
    /// VT-d §7.1.3, conditions SRT to SGN in the order of a walk.
    pub(super) fn scalable(&mut self) -> Result<Translation, Stop> {
        let (request, extended) = (self.request, self.config.extended_capability());
        let context = self.scalable_context()?;
        let translated = request.kind == RequestKind::Translated;
        // SGN.10: a PASID wider than ECAP.PSS. It is qualified, so FPD must be known: after the context entry is read.
        let too_wide = |pasid: Pasid| pasid.raw() >> (u32::from(extended.pss().value()) + 1).min(31) != 0;
        if request.pasid.is_some_and(too_wide) {
            return Err(Condition::Sgn10.into());
        }
        // SCT.4: the entry contradicts itself. SCT.4.3 is not told to untranslated and translation requests with PASID.
        if context.page_requests && !context.device_tlb {
            return Err(Condition::Sct4_1.into());
        }
        if context.rid_pasid >= context.pasid_count {
            return Err(Condition::Sct4_2.into());
        }
        if context.translated_pasid && !context.pasid_enable && (translated || request.pasid.is_none()) {
            return Err(Condition::Sct4_3.into());
        }
        // SCT.5 to SCT.10: the entry does not allow the request.
        if request.kind != RequestKind::Untranslated && !context.device_tlb {
            return Err(Condition::Sct5.into());
        }
        if let Some(pasid) = request.pasid {
            if !translated && !context.pasid_enable {
                return Err(Condition::Sct6.into());
            }
            if pasid.raw() >= context.pasid_count {
                return Err(Condition::Sct7.into());
            }
            if pasid.raw() == context.rid_pasid {
                return Err(Condition::Sct9.into());
            }
            if translated && !context.translated_pasid {
                return Err(Condition::Sct10.into());
            }
        }
        // Without a host permission table (not modelled) a translated request needs no PASID structure.
        if translated {
            return self.scalable_translated();
        }
        let pasid = request.pasid.map_or(context.rid_pasid, Pasid::raw);
        let privileged = if request.pasid.is_some() {
            request.privileged
        } else {
            context.rid_privileged
        };
        let entry = self.pasid_entry(&context, pasid)?;
        // SPT.5: execute requests are not supported; units of version 8 answered RTA.5 before.
        if request.pasid.is_some() && request.execute {
            return Err(Condition::Spt5.into());
        }
        if privileged && !entry.supervisor {
            return Err(Condition::Spt6.into());
        }
        // S.1 and S.2, requests without PASID.
        if request.kind == RequestKind::Translation && request.pasid.is_none() && self.is_interrupt_address() {
            return Ok(self.interrupt_range_completion());
        }
        if entry.stage == Stage::PassThrough {
            return self.scalable_pass_through(&entry);
        }
        self.scalable_stages(&entry, pasid, privileged)
    }

    /// SGN.4.1, SGN.8.3.
    fn scalable_translated(&self) -> Result<Translation, Stop> {
        if self.address() > self.config.host_address_limit() {
            return Err(Condition::Sgn4_1.into());
        }
        if self.is_interrupt_address() {
            return Err(Condition::Sgn8_3.into());
        }
        Ok(self.unchanged())
    }

    /// SGN.4.2, SGN.8.1: pass-through is limited by the host width and must not reach the interrupt range.
    fn scalable_pass_through(&self, entry: &PasidContext) -> Result<Translation, Stop> {
        // D-10: QEMU does not look.
        if self.address() > self.config.host_address_limit() && self.config.qemu().is_none() {
            return Err(Condition::Sgn4_2.into());
        }
        let untranslated = self.request.kind == RequestKind::Untranslated;
        if untranslated && message::is_interrupt_address(self.address()) {
            return Err(Condition::Sgn8_1.into());
        }
        let mut answer = self.unchanged();
        answer.snooped |= entry.page_snoops;
        answer.no_snoop_forbidden = entry.page_snoops;
        if !untranslated {
            answer.perms.write = !self.no_write();
        }
        Ok(answer)
    }

    /// The context entry of the requester, from the cache or from the tables.
    fn scalable_context(&mut self) -> Result<ScalableContext, Stop> {
        let source = self.request.source;
        let cached = self.cache.context(source).filter(|cached| cached.scalable);
        self.report.context.count(cached.is_some());
        let context = match cached {
            Some(cached) => cached,
            None => {
                let (fault_processing_disabled, entry) = self.read_scalable_context();
                let read = CachedContext {
                    entry: entry.map(Context::Scalable),
                    fault_processing_disabled,
                    scalable: true,
                };
                if self.may_cache(entry.err()) {
                    self.cache.fill_context(self.stamp, source, read);
                }
                read
            }
        };
        self.fault_processing_disabled = context.fault_processing_disabled;
        match context.entry? {
            Context::Scalable(context) => Ok(context),
            // Not reached: the filter above keeps entries of the other mode out.
            Context::Legacy(_) => Err(Condition::Sct3.into()),
        }
    }

    /// Whether an entry may be cached: a good one always, a bad one in caching mode, one that could not be read never.
    fn may_cache(&self, fault: Option<Condition>) -> bool {
        fault.is_none_or(|condition| self.config.caches_faults() && !is_unreadable(condition))
    }

    /// FPD as far as it was read, and the entry or what is wrong with it.
    fn read_scalable_context(&mut self) -> (bool, Result<ScalableContext, Condition>) {
        let features = self.config.features();
        let source = self.request.source;
        // VT-d §9.2 (Scalable-mode Root Entry): SRT.1 to SRT.3, for the half that serves the function.
        self.report.reads.root += 1;
        let root = self
            .latched
            .root
            .root_table()
            .checked_add(u64::from(source.bus()) * ScalableRootEntry::BYTES);
        let Some(Ok(words)) = root.map(|at| self.memory.read_words::<2>(at)) else {
            return (false, Err(Condition::Srt1));
        };
        let Some(table) = ScalableRootEntry::from_words(words).context_table(source.devfn()) else {
            return (false, Err(Condition::Srt2));
        };
        let half = ScalableRootEntry::half(source.devfn());
        let reserved = words.iter().zip(ScalableRootEntry::reserved(features)).nth(half);
        if reserved.is_none_or(|(word, mask)| word & mask != 0) {
            return (false, Err(Condition::Srt3));
        }
        // VT-d §9.4 (Scalable-mode Context Entry): SCT.1 to SCT.3.
        self.report.reads.context += 1;
        let at = table.checked_add(ScalableContextEntry::byte_offset(source.devfn()));
        let Some(Ok(words)) = at.map(|at| self.memory.read_words::<4>(at)) else {
            return (false, Err(Condition::Sct1));
        };
        let [low, high, ..] = words;
        let entry = ScalableContextEntry::from_words([low, high]);
        let fpd = entry.fpd();
        if !entry.p() {
            return (fpd, Err(Condition::Sct2));
        }
        let reserved = ScalableContextEntry::reserved(features);
        if words.iter().zip(reserved).any(|(word, mask)| word & mask != 0) {
            return (fpd, Err(Condition::Sct3));
        }
        let context = ScalableContext {
            device_tlb: entry.dte(),
            pasid_enable: entry.paside(),
            page_requests: entry.pre(),
            translated_pasid: entry.eptr(),
            pasid_count: entry.max_pasid().raw() + 1,
            directory: entry.pasid_directory().raw(),
            rid_pasid: entry.rid_pasid().value(),
            rid_privileged: entry.rid_priv(),
        };
        (fpd, Ok(context))
    }

    /// The PASID-table entry, from the cache or from the tables.
    fn pasid_entry(&mut self, context: &ScalableContext, pasid: u32) -> Result<PasidContext, Stop> {
        let source = self.request.source;
        let cached = self.cache.pasid(source, pasid);
        self.report.pasid.count(cached.is_some());
        let entry = match cached {
            Some(cached) => cached,
            None => {
                let (fault_processing_disabled, entry) = self.read_pasid_entry(context, pasid);
                let read = CachedPasid {
                    entry,
                    fault_processing_disabled,
                };
                if self.may_cache(entry.err()) {
                    self.cache.fill_pasid(self.stamp, source, pasid, read);
                }
                read
            }
        };
        self.fault_processing_disabled |= entry.fault_processing_disabled;
        Ok(entry.entry?)
    }

    /// FPD of the PASID structures, and the entry or what is wrong with it.
    fn read_pasid_entry(&mut self, context: &ScalableContext, pasid: u32) -> (bool, Result<PasidContext, Condition>) {
        let (fpd, entry) = self.read_pasid_structures(context, pasid);
        // E-06: QEMU looks for FPD only behind PASID structures that it can use.
        let counts = entry.is_ok() || self.config.qemu().is_none();
        (fpd && counts, entry)
    }

    fn read_pasid_structures(
        &mut self,
        context: &ScalableContext,
        pasid: u32,
    ) -> (bool, Result<PasidContext, Condition>) {
        let features = self.config.features();
        let Some(number) = Pasid::new(pasid) else {
            return (false, Err(Condition::Sct7));
        };
        // VT-d §9.5 (PASID Directory Entry): SPD.1 to SPD.3.
        self.report.reads.pasid_directory += 1;
        let offset = u64::from(PasidDirectoryEntry::index(number)) * PasidDirectoryEntry::BYTES;
        let at = HostPhys::new(context.directory).checked_add(offset);
        let Some(Ok(word)) = at.map(|at| self.memory.read_u64(at)) else {
            return (false, Err(Condition::Spd1));
        };
        let directory = PasidDirectoryEntry::new_with_raw_value(word);
        let qemu = self.config.qemu();
        if !directory.p() {
            return (directory.fpd(), Err(Condition::Spd2));
        }
        // D-08: QEMU does not look.
        if word & PasidDirectoryEntry::reserved(features) != 0 && qemu.is_none() {
            return (directory.fpd(), Err(Condition::Spd3));
        }
        // VT-d §9.6 (PASID Table Entry): SPT.1 to SPT.4.
        self.report.reads.pasid += 1;
        let at = directory
            .pasid_table()
            .checked_add(u64::from(PasidEntry::index(number)) * PasidEntry::BYTES);
        let Some(Ok(words)) = at.map(|at| self.memory.read_words::<8>(at)) else {
            return (directory.fpd(), Err(Condition::Spt1));
        };
        let entry = PasidEntry::from_words(words);
        let fpd = directory.fpd() || entry.control.fpd();
        // D-04: QEMU judges the type first.
        if let (Some(QemuVersion::V11_1), Err(condition)) = (qemu, self.stage(&entry)) {
            return (directory.fpd(), Err(condition));
        }
        if !entry.control.p() {
            return (fpd, Err(Condition::Spt2));
        }
        let reserved = entry.reserved(features, false);
        if words.iter().zip(reserved).any(|(word, mask)| word & mask != 0) && qemu.is_none() {
            return (fpd, Err(Condition::Spt3));
        }
        (fpd, self.judge_pasid_entry(&entry))
    }

    /// SPT.4.2: the translation type.
    fn stage(&self, entry: &PasidEntry) -> Result<Stage, Condition> {
        let ecap = self.config.extended_capability();
        match entry.control.translation() {
            Some(PasidTranslation::FirstStage) if ecap.fsts() => Ok(Stage::First),
            Some(PasidTranslation::SecondStage) if ecap.ssts() => Ok(Stage::Second),
            Some(PasidTranslation::Nested) if ecap.nest() => Ok(Stage::Nested),
            // D-34.
            Some(PasidTranslation::Nested) if self.config.is_qemu_7() => Ok(Stage::Second),
            Some(PasidTranslation::PassThrough) if ecap.pt() => Ok(Stage::PassThrough),
            _ => Err(Condition::Spt4_2),
        }
    }

    /// The width of first-stage addresses. D-03: QEMU takes it from AW.
    fn canonical_bits(&self, entry: &PasidEntry, levels: u8) -> u8 {
        match self.config.qemu() {
            Some(_) => (30 + 9 * entry.control.aw().value()).min(64),
            None => 12 + 9 * levels,
        }
    }

    /// SPT.4.1 to SPT.4.4.
    fn judge_pasid_entry(&self, entry: &PasidEntry) -> Result<PasidContext, Condition> {
        let cap = self.config.capability();
        let stage = self.stage(entry)?;
        let second = matches!(stage, Stage::Second | Stage::Nested);
        let agaw = entry.control.agaw().filter(|agaw| cap.supports_agaw(*agaw));
        if second && agaw.is_none() {
            return Err(Condition::Spt4_1);
        }
        let first_levels = match entry.first_stage.fspm() {
            _ if !stage.uses_first() => 4,
            FirstStagePagingMode::FourLevel => 4,
            FirstStagePagingMode::FiveLevel if cap.fs5lp() => 5,
            _ => return Err(Condition::Spt4_3),
        };
        let context = PasidContext {
            stage,
            domain: entry.tags.domain(),
            second_root: entry.control.second_stage_table().raw(),
            second_levels: agaw.map_or(0, |agaw| agaw.levels()),
            second_dirty: second && entry.control.ssade(),
            first_root: entry.first_stage.fsptptr().value() << iommu_types::PAGE_SHIFT,
            first_levels,
            canonical_bits: self.canonical_bits(entry, first_levels),
            supervisor: entry.first_stage.sre(),
            write_protect: entry.first_stage.wpe(),
            extended_accessed: entry.first_stage.eafe(),
            // E-05: QEMU does not ask.
            walk_snoops: entry.tags.pwsnp() || self.config.qemu().is_some(),
            page_snoops: entry.tags.pgsnp(),
        };
        if stage == Stage::Nested && context.first_root > context.second_stage().address_limit(self.config) {
            return Err(Condition::Spt4_4);
        }
        Ok(context)
    }
}
