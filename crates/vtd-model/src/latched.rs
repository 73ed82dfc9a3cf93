//! The part of a unit's state that decides about requests.

use iommu_types::{AddrRange, HostPhys};
use vtd_spec::register::{InterruptRemapTableAddress, RootTableAddress, TranslationTableMode};

use crate::config::UnitConfig;

/// What commands have made effective (VT-d §11.4.4): the registers that software merely wrote are not in here.
///
/// It is small and plain, so that an embedder can hand a copy to every thread that translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latched {
    /// GSTS.TES.
    pub translation_enabled: bool,
    /// RTADDR as SRTP latched it.
    pub root: RootTableAddress,
    /// GSTS.IRES.
    pub interrupts_enabled: bool,
    /// IRTA as SIRTP latched it.
    pub interrupt_table: InterruptRemapTableAddress,
    /// GSTS.CFIS: compatibility-format interrupts pass.
    pub compatibility_interrupts: bool,
    /// The protected low and high memory region while PMEN.PRS is set (VT-d §11.4.8).
    pub protected: [Option<AddrRange<HostPhys>>; 2],
}

impl Latched {
    /// The state after reset: nothing is translated or remapped.
    pub const RESET: Self = Self {
        translation_enabled: false,
        root: RootTableAddress::DEFAULT,
        interrupts_enabled: false,
        interrupt_table: InterruptRemapTableAddress::DEFAULT,
        compatibility_interrupts: false,
        protected: [None; 2],
    };

    /// How tables are read: RTADDR.TTM.
    pub(crate) const fn table_mode(&self, config: &UnitConfig) -> TranslationTableMode {
        let mode = self.root.ttm();
        if config.qemu().is_none() {
            return mode;
        }
        // D-09, D-33: QEMU looks at the low bit only, and only if it has scalable mode.
        match mode {
            TranslationTableMode::Scalable | TranslationTableMode::AbortDma if config.extended_capability().smts() => {
                TranslationTableMode::Scalable
            }
            _ => TranslationTableMode::Legacy,
        }
    }

    /// Whether host memory at `at` is protected against all DMA.
    #[must_use]
    pub fn is_protected(&self, at: HostPhys) -> bool {
        self.protected.iter().flatten().any(|region| region.contains(at))
    }

    /// Whether any of `range` is protected.
    fn touches_protected(&self, range: AddrRange<HostPhys>) -> bool {
        self.protected.iter().flatten().any(|region| region.overlaps(range))
    }

    /// Whether an answer for host memory `range` has to be narrowed to the page of the request.
    pub(crate) fn splits(&self, range: Option<AddrRange<HostPhys>>) -> bool {
        self.protected != [None; 2] && range.is_none_or(|range| self.touches_protected(range))
    }
}
