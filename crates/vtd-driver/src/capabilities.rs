//! What a unit can do, as far as the driver acts on it.

use iommu_types::omission::{Step, kept};
use iommu_types::{PageSize, Registers};
use vtd_spec::Agaw;
use vtd_spec::register::offset;
use vtd_spec::register::{Capability, ExtendedCapability, Version};

use crate::error::UnitError;

/// The three registers that describe a unit (`VT-d §11.4.1 (VER_REG)` to `§11.4.3 (ECAP_REG)`), read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The architecture version.
    pub version: Version,
    /// The capability register.
    pub cap: Capability,
    /// The extended capability register.
    pub ecap: ExtendedCapability,
}

impl Capabilities {
    /// Reads the registers and checks that a unit answers and that all its register blocks lie in the window.
    pub(crate) fn read<R: Registers>(registers: &R) -> Result<Self, UnitError> {
        let (cap, ecap) = (registers.read64(offset::CAP), registers.read64(offset::ECAP));
        let version = registers.read32(offset::VER);
        // None of the three has only ones: each has reserved bits. One alone means that the unit vanished in between.
        if cap == u64::MAX || ecap == u64::MAX || version == u32::MAX {
            return Err(UnitError::Absent);
        }
        let this = Self {
            version: Version::new_with_raw_value(version),
            cap: Capability::new_with_raw_value(cap),
            ecap: ExtendedCapability::new_with_raw_value(ecap),
        };
        // Fault records and IOTLB registers lie where the capabilities say, which may be past the first 4 KiB.
        let window = registers.window_len();
        let fault_end = this.cap.fault_record_offset(this.cap.nfr()) + 16;
        let mut blocks = [
            ("fault recording registers", fault_end),
            ("fixed registers", offset::IRTA + 8),
        ]
        .to_vec();
        if this.register_invalidation() {
            blocks.push(("IOTLB registers", this.ecap.iotlb_offset() + 8));
        }
        for (block, end) in blocks {
            if end > window {
                return Err(UnitError::WindowTooSmall { block, end, window });
            }
        }
        Ok(this)
    }

    /// Whether invalidation by registers is what this unit has to be driven by: it has no queue.
    pub(crate) const fn register_invalidation(&self) -> bool {
        !self.ecap.qi() && !self.version.ignores_register_invalidation()
    }

    /// Whether the unit caches entries that are not present (`VT-d §6.1`): every change needs an invalidation.
    #[must_use]
    pub const fn caching_mode(&self) -> bool {
        self.cap.cm()
    }

    /// Whether the unit's walks see the processors' caches (`ECAP_REG.C`).
    #[must_use]
    pub const fn coherent(&self) -> bool {
        self.ecap.c()
    }

    /// The largest address mask of page-selective invalidation; `None` if the unit has none (`CAP_REG.PSI`).
    pub(crate) const fn page_selective(&self) -> Option<u8> {
        if self.cap.psi() {
            Some(self.cap.max_address_mask())
        } else {
            None
        }
    }

    /// The largest page that second-stage leaves can map.
    #[must_use]
    pub const fn largest_page(&self) -> PageSize {
        if self.cap.second_stage_2m() && self.cap.second_stage_1g() {
            PageSize::Size1G
        } else if self.cap.second_stage_2m() {
            PageSize::Size2M
        } else {
            PageSize::Size4K
        }
    }

    /// The width that pass-through entries name: the largest that the unit supports (`VT-d §9.3`).
    pub(crate) fn pass_through_agaw(&self) -> Option<Agaw> {
        if kept(Step::PassThroughWidest) {
            self.cap.largest_agaw()
        } else {
            Agaw::ALL.into_iter().find(|agaw| self.cap.supports_agaw(*agaw))
        }
    }

    /// The table depth for a domain that should translate `width` address bits: the smallest that suffices, or
    /// the largest there is (rule D15). `None` if the unit translates nothing.
    pub(crate) fn agaw_for(&self, width: u8) -> Option<Agaw> {
        if !kept(Step::SupportedDepth) {
            return Some(Agaw::Bits48);
        }
        let fits = |agaw: &Agaw| agaw.width() >= width && self.cap.supports_agaw(*agaw);
        Agaw::ALL.into_iter().find(fits).or_else(|| self.cap.largest_agaw())
    }
}
