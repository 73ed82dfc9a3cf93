//! Protected memory regions (VT-d §11.4.8).

use vtd_spec::register::{ProtectedMemoryEnable, offset, protected_region};

use super::Unit;
use super::drain::Completion;
use crate::cache::TranslationCache;
use crate::registers::PROTECTED_GRANULE_BITS;

impl<C: TranslationCache> Unit<C> {
    /// Software wrote PMEN: PRS follows EPM, once accesses in flight are over. Base and limit count as they stand at this moment; software must not
    /// change them while PRS is set (VT-d §11.4.8.2).
    pub(super) fn protected_memory_written(&mut self) {
        let capability = self.config.capability();
        let enable = ProtectedMemoryEnable::new_with_raw_value(self.registers.get32(offset::PMEN));
        let low = self.registers.get32(offset::PLMBASE).into()..=self.registers.get32(offset::PLMLIMIT).into();
        let high = self.registers.get64(offset::PHMBASE)..=self.registers.get64(offset::PHMLIMIT);
        let region = |on: bool, ends: core::ops::RangeInclusive<u64>| {
            let (base, limit) = ends.into_inner();
            protected_region(base, limit, PROTECTED_GRANULE_BITS).filter(|_| on && enable.epm())
        };
        self.latched.protected = [region(capability.plmr(), low), region(capability.phmr(), high)];
        self.complete(Completion::Protected(enable.epm()));
    }
}
