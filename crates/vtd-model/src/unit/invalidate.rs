//! Register-based invalidation (VT-d §6.5.1, §11.4.6) and what all invalidations have in common.

use vtd_spec::encoding::{ContextGranularity, IotlbGranularity};
use vtd_spec::register::{InvalidateAddress, TranslationTableMode, offset};

use super::Unit;
use super::drain::Completion;
use crate::cache::{
    ContextInvalidation, InterruptInvalidation, Invalidation, IotlbInvalidation, PageBlock, PasidInvalidation,
    TranslationCache,
};
use crate::sanitizer::Rule;

impl<C: TranslationCache> Unit<C> {
    /// Software wrote the upper half of CCMD.
    pub(super) fn context_command(&mut self) {
        if self.context_register().icc() {
            if !self.is_asynchronous() && !self.ignores_register_invalidation() {
                self.complete_context_command();
            }
        } else if self.holds_context() {
            // Not software decides when it is complete.
            let busy = self.context_register().with_icc(true);
            self.registers.set64(offset::CCMD, busy.raw_value());
        }
    }

    /// Software wrote the upper half of IOTLB_REG.
    pub(super) fn iotlb_command(&mut self) {
        if self.iotlb_register().ivt() {
            if !self.is_asynchronous() && !self.ignores_register_invalidation() {
                self.complete_iotlb_command();
            }
        } else if self.holds_iotlb() {
            let busy = self.iotlb_register().with_ivt(true);
            let at = self.config.extended_capability().iotlb_offset();
            self.registers.set64(at, busy.raw_value());
        }
    }

    /// D-21: while its queue is enabled, QEMU leaves commands through registers in progress.
    fn ignores_register_invalidation(&self) -> bool {
        self.config.qemu().is_some() && self.status().qies()
    }

    /// The delayed half of a register command; true if there was one.
    pub(super) fn step_register_invalidation(&mut self) -> bool {
        if !self.is_asynchronous() {
            return false;
        }
        if self.context_register().icc() && !self.holds_context() {
            self.complete_context_command();
            return true;
        }
        if self.iotlb_register().ivt() && !self.holds_iotlb() {
            self.complete_iotlb_command();
            return true;
        }
        false
    }

    /// Whether the registers invalidate at all: not while the queue is in use, not from version 6 on, not in
    /// scalable mode (VT-d §6.5.1).
    fn registers_invalidate(&self) -> bool {
        !self.status().qies()
            && !self.config.version().ignores_register_invalidation()
            && self.latched.table_mode(&self.config) == TranslationTableMode::Legacy
    }

    /// VT-d §11.4.6.1 (CCMD_REG).
    fn complete_context_command(&mut self) {
        let command = self.context_register();
        let scope = match command.cirg() {
            ContextGranularity::None => None,
            ContextGranularity::Global => Some(ContextInvalidation::Global),
            ContextGranularity::Domain => Some(ContextInvalidation::Domain(self.domain(command.did()))),
            ContextGranularity::Device => Some(ContextInvalidation::Device {
                source: command.source(),
                ignore: command.fm().ignored(),
                domain: self.domain(command.did()),
            }),
        };
        let actual = match scope.filter(|_| self.registers_invalidate()) {
            Some(scope) => {
                self.invalidate_context(scope);
                command.cirg()
            }
            None => {
                self.misuse(Rule::RegisterInvalidation);
                ContextGranularity::None
            }
        };
        self.complete(Completion::Context(actual));
    }

    /// VT-d §11.4.6.3 (IOTLB_REG), §11.4.6.4 (IVA_REG).
    fn complete_iotlb_command(&mut self) {
        let command = self.iotlb_register();
        let cap = self.config.capability();
        let at = self.config.extended_capability().invalidate_address_offset();
        let address = InvalidateAddress::new_with_raw_value(self.registers.get64(at));
        let domain = self.domain(command.did());
        let (scope, granularity) = match command.iirg() {
            IotlbGranularity::None => (None, IotlbGranularity::None),
            IotlbGranularity::Global => (Some(IotlbInvalidation::Global), IotlbGranularity::Global),
            // Without page-selective invalidation a page request acts on the domain.
            IotlbGranularity::Page if !cap.psi() => (Some(IotlbInvalidation::Domain(domain)), IotlbGranularity::Domain),
            IotlbGranularity::Domain => (Some(IotlbInvalidation::Domain(domain)), IotlbGranularity::Domain),
            IotlbGranularity::Page if address.am().value() > cap.max_address_mask() => (None, IotlbGranularity::None),
            IotlbGranularity::Page => {
                let pages = PageBlock::new(address.address().raw(), address.am().value(), address.ih());
                (Some(IotlbInvalidation::Pages { domain, pages }), IotlbGranularity::Page)
            }
        };
        let actual = match scope.filter(|_| self.registers_invalidate()) {
            Some(scope) => {
                self.invalidate_iotlb(scope);
                granularity
            }
            None => {
                self.misuse(Rule::RegisterInvalidation);
                IotlbGranularity::None
            }
        };
        self.complete(Completion::Iotlb(actual));
    }

    /// A domain identifier with the bits that the unit implements; the others are ignored (VT-d §6.5).
    pub(super) fn domain(&self, raw: u16) -> iommu_types::DomainId {
        let bits = self.config.capability().domain_id_bits();
        iommu_types::DomainId(raw & u16::MAX.checked_shr(16 - u32::from(bits)).unwrap_or(u16::MAX))
    }

    /// Every invalidation of the unit's own caches passes here.
    pub(super) fn invalidate(&mut self, what: Invalidation) {
        self.cache.invalidate(&what);
        self.sanitize(|sanitizer| match what {
            Invalidation::Context(ContextInvalidation::Global) => sanitizer.root.context = false,
            Invalidation::Pasid(PasidInvalidation::Global) => sanitizer.root.pasid = false,
            Invalidation::Iotlb(IotlbInvalidation::Global) => sanitizer.root.iotlb = false,
            Invalidation::Interrupt(InterruptInvalidation::Global) => sanitizer.interrupt_due = false,
            _ => {}
        });
    }

    pub(super) fn invalidate_context(&mut self, what: ContextInvalidation) {
        self.counters.invalidations.context += 1;
        self.invalidate(Invalidation::Context(what));
    }

    pub(super) fn invalidate_iotlb(&mut self, what: IotlbInvalidation) {
        self.counters.invalidations.iotlb += 1;
        self.invalidate(Invalidation::Iotlb(what));
    }
}
