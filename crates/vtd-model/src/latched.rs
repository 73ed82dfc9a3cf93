//! The part of a unit's state that decides about requests.

use vtd_spec::register::{InterruptRemapTableAddress, RootTableAddress};

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
}

impl Latched {
    /// The state after reset: nothing is translated or remapped.
    pub const RESET: Self = Self {
        translation_enabled: false,
        root: RootTableAddress::DEFAULT,
        interrupts_enabled: false,
        interrupt_table: InterruptRemapTableAddress::DEFAULT,
        compatibility_interrupts: false,
    };
}
