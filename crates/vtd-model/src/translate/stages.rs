//! First-stage, second-stage and nested translation of scalable mode (VT-d §3.6 to §3.8), and what their results
//! permit.

use iommu_types::{Access, HostPhys, Perms, SystemMemory};
use vtd_spec::message;

use super::first_stage::{FirstStage, scalable_condition};
use super::flags::{Applied, Updates};
use super::legacy::nothing_at;
use super::second_stage::{SecondPage, SecondStage};
use super::{Stop, Walk, low_bits};
use crate::cache::{AddressSpaceTag, CachedPage, PasidContext, Stage, TranslationCache};
use crate::condition::Condition;
use crate::request::{RequestKind, Translation};

/// How often a walk starts again because software changed an entry between its reading and the setting of its flags.
const RESTARTS_MAX: u32 = 16;

impl PasidContext {
    /// The second stage of the entry.
    pub(super) const fn second_stage(&self) -> SecondStage {
        SecondStage {
            root: HostPhys::new(self.second_root),
            levels: self.second_levels,
            flags: self.second_dirty,
            snooped: self.walk_snoops,
        }
    }

    const fn first_stage(&self, below: Option<(SecondStage, AddressSpaceTag)>) -> FirstStage {
        FirstStage {
            root: self.first_root,
            levels: self.first_levels,
            width: self.canonical_bits,
            extended_flag: self.extended_accessed,
            snooped: self.walk_snoops,
            below,
        }
    }

    /// The tag of second-stage table pointers: domain and address, whoever walks.
    fn second_tag(&self, exact: bool) -> AddressSpaceTag {
        AddressSpaceTag {
            domain: self.domain,
            pasid: AddressSpaceTag::LEGACY,
            stage: Stage::Second,
            roots: if exact {
                [self.second_levels.into(), self.second_root]
            } else {
                [0, 0]
            },
        }
    }

    /// The tag of finished translations.
    fn tag(&self, pasid: u32, exact: bool) -> AddressSpaceTag {
        AddressSpaceTag {
            domain: self.domain,
            pasid,
            stage: self.stage,
            roots: if exact {
                // Table pointers end in zeroes, which leaves room for the levels.
                [
                    self.first_root | u64::from(self.first_levels),
                    self.second_root | u64::from(self.second_levels),
                ]
            } else {
                [0, 0]
            },
        }
    }
}

impl<M: SystemMemory, C: TranslationCache> Walk<'_, M, C> {
    /// A request that goes through tables, from the IOTLB or by a walk.
    pub(super) fn scalable_stages(
        &mut self,
        entry: &PasidContext,
        pasid: u32,
        privileged: bool,
    ) -> Result<Translation, Stop> {
        self.second_stage_only = entry.stage == Stage::Second;
        // SGN.5: second-stage only; nested addresses are judged by the first stage.
        if entry.stage == Stage::Second && self.address() > entry.second_stage().address_limit(self.config) {
            return Err(Condition::Sgn5.into());
        }
        let tag = entry.tag(pasid, self.config.exact_tags());
        // A write through an entry whose dirty flag is not known to be set has to walk again (VT-d §3.6.2).
        let cached = self.cache.page(&tag, self.address()).filter(|page| {
            let perms = if privileged { page.supervisor } else { page.user };
            // D-01: QEMU does not.
            page.dirty || !(self.counts_as_write() && perms.write) || self.config.qemu().is_some()
        });
        self.report.iotlb.count(cached.is_some());
        let page = match cached {
            Some(page) => page,
            None => self.walk_stages(entry, &tag, privileged)?,
        };
        if let Some(condition) = page.fault {
            return Err(condition.into());
        }
        let answer = self.stage_rights(entry, &page, privileged);
        match cached {
            // D-02.
            Some(_) if answer.is_err() && self.config.qemu().is_some() => Err(Stop::Silent),
            _ => answer,
        }
    }

    /// Whether dirty flags are set for the request: a translation request counts as a write unless it says otherwise
    /// (VT-d §4.2.3).
    fn counts_as_write(&self) -> bool {
        match self.request.kind {
            RequestKind::Translation => !self.no_write(),
            _ => self.request.access != Access::Read,
        }
    }

    /// Walks until the flags that the walk needs are set.
    fn walk_stages(
        &mut self,
        entry: &PasidContext,
        tag: &AddressSpaceTag,
        privileged: bool,
    ) -> Result<CachedPage, Stop> {
        for _ in 0..RESTARTS_MAX {
            let mut updates = Updates::new();
            let page = match self.walk_stages_once(entry, tag, privileged, &mut updates) {
                Ok(page) => page,
                Err(condition) => {
                    // Faulting second-stage entries may be kept in caching mode, first-stage results never are.
                    let keep = matches!(condition, Condition::Sss2 | Condition::Sss3) && entry.stage == Stage::Second;
                    if keep && self.config.caches_faults() {
                        let nothing = nothing_at(self.address(), Some(condition));
                        self.cache.fill_page(self.stamp, tag, nothing);
                    }
                    return Err(condition.into());
                }
            };
            // Flags are set only for requests that pass: dirty flags must not be set for others (VT-d §3.6.2).
            self.stage_rights(entry, &page, privileged)?;
            if self.keeps_tables_unchanged {
                return Ok(page);
            }
            match updates.apply(self.memory) {
                Applied::Done => {
                    self.cache.fill_page(self.stamp, tag, page);
                    return Ok(page);
                }
                Applied::Changed => {}
                Applied::Failed(condition) => return Err(condition.into()),
            }
        }
        // Somebody keeps changing the tables: the flags could not be set.
        Err(if entry.stage.uses_first() {
            Condition::Sfs10
        } else {
            Condition::Sss6
        }
        .into())
    }

    fn walk_stages_once(
        &mut self,
        entry: &PasidContext,
        tag: &AddressSpaceTag,
        privileged: bool,
        updates: &mut Updates,
    ) -> Result<CachedPage, Condition> {
        let (address, second) = (self.address(), entry.second_stage());
        let second_tag = entry.second_tag(self.config.exact_tags());
        if entry.stage == Stage::Second {
            let page = self.final_page(&second, &second_tag, address, true, updates)?;
            return Ok(CachedPage {
                base: address & !low_bits(page.shift),
                shift: page.shift,
                phys: page.phys.raw(),
                user: page.perms,
                supervisor: page.perms,
                user_allowed: true,
                dirty: page.dirty,
                snoop: page.snoop,
                fault: None,
            });
        }
        let nested = entry.stage == Stage::Nested;
        let first = entry.first_stage(nested.then_some((second, second_tag)));
        let mut page = self.first_stage(&first, tag, address, updates)?;
        // SGN.2, then SGN.6: what the first stage permits.
        if !privileged && !page.user {
            return Err(Condition::Sgn2);
        }
        let supervisor_writes = page.writable || !entry.write_protect;
        let writes = if privileged { supervisor_writes } else { page.writable };
        let untranslated = self.request.kind == RequestKind::Untranslated;
        if untranslated && self.request.access != Access::Read && !writes {
            return Err(Condition::Sgn6);
        }
        // QEMU has set them on the way down (E-04).
        if self.config.qemu().is_none() {
            page.note_flags(&first, writes && self.counts_as_write(), updates)?;
        }
        let (phys, shift, below, below_dirty, snoop) = if nested {
            if page.output > second.address_limit(self.config) {
                return Err(Condition::Sfs5);
            }
            let below = self.final_page(&second, &second_tag, page.output, writes, updates)?;
            let host = below.host(page.output);
            (host, page.shift.min(below.shift), below.perms, below.dirty, below.snoop)
        } else {
            (page.output, page.shift, Perms::READ_WRITE, true, false)
        };
        let through = |write: bool| below.intersect(Perms { read: true, write });
        Ok(CachedPage {
            base: address & !low_bits(shift),
            shift,
            phys: phys & !low_bits(shift),
            user: through(page.writable),
            supervisor: through(supervisor_writes),
            user_allowed: page.user,
            dirty: page.dirty && below_dirty,
            snoop,
            fault: None,
        })
    }

    /// The second-stage walk of the address that the request ends at: SSS.1 to SSS.6, then SGN.6 and SGN.7.
    /// `may_write` is what the first stage says.
    fn final_page(
        &mut self,
        second: &SecondStage,
        tag: &AddressSpaceTag,
        address: u64,
        may_write: bool,
        updates: &mut Updates,
    ) -> Result<SecondPage, Condition> {
        let mut page = self.second_stage(second, tag, address).map_err(scalable_condition)?;
        if page.perms.is_none() {
            return Err(Condition::Sss2);
        }
        page.note_flags(second, may_write && self.counts_as_write(), updates)?;
        if self.request.kind == RequestKind::Untranslated {
            self.judge_access(page.perms)?;
        }
        Ok(page)
    }

    /// SGN.6, SGN.7.
    fn judge_access(&self, perms: Perms) -> Result<(), Condition> {
        let wants = self.request.access;
        if wants != Access::Read && !perms.write {
            return Err(Condition::Sgn6);
        }
        let exempt = self.request.is_zero_length_read() && self.config.capability().zlr() && perms.write;
        if wants != Access::Write && !perms.read && !exempt {
            return Err(Condition::Sgn7);
        }
        Ok(())
    }

    /// What a finished translation permits this request, then the place of the result (SGN.8).
    fn stage_rights(&self, entry: &PasidContext, page: &CachedPage, privileged: bool) -> Result<Translation, Stop> {
        if !privileged && !page.user_allowed {
            return Err(Condition::Sgn2.into());
        }
        let perms = if privileged { page.supervisor } else { page.user };
        let mut answer = self.through_page(page, perms);
        let snoops = entry.page_snoops || page.snoop;
        answer.snooped |= snoops;
        answer.no_snoop_forbidden = snoops;
        if self.request.kind == RequestKind::Translation {
            answer.perms.write &= !self.no_write();
            if answer.perms.is_none() {
                return Ok(self.no_access());
            }
            // The whole translated range counts.
            let last = page.phys | low_bits(page.shift);
            if page.phys <= message::INTERRUPT_RANGE_LAST && message::INTERRUPT_RANGE_FIRST <= last {
                return Err(Condition::Sgn8_2.into());
            }
        } else {
            self.judge_access(perms)?;
            if message::is_interrupt_address(answer.phys.raw()) {
                return Err(Condition::Sgn8_1.into());
            }
        }
        Ok(answer)
    }
}
