//! Commands through registers whose completion software must not see yet.
//!
//! The model carries out GCMD, PMEN, CCMD and IOTLB commands in the register write. Here other threads may be in the middle
//! of accesses that were translated before, so until they are drained the registers show the command as under way.

use vtd_model::{AccessWidth, TranslationCache, Unit, UnitConfig};
use vtd_spec::register::{ContextCommand, IotlbInvalidate, ProtectedMemoryEnable, offset};

/// What is held back, and where.
#[derive(Debug)]
pub(super) struct Held {
    iotlb: u32,
    /// GSTS as it was before a global command.
    global: Option<u32>,
    /// PMEN.PRS as it was before PMEN was written.
    protected: Option<u32>,
    context: bool,
    invalidate: bool,
}

/// The status fields that can be held, as the model has them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Status {
    global: u32,
    protected: u32,
}

impl Status {
    pub(super) fn of<C: TranslationCache>(unit: &mut Unit<C>) -> Self {
        let mut read = |at| u32::try_from(unit.read(at, AccessWidth::Dword)).unwrap_or(0);
        Self {
            global: read(offset::GSTS),
            protected: read(offset::PMEN) & ProtectedMemoryEnable::prs_mask(),
        }
    }
}

/// Whether an access of `width` at `at` covers the double word at `register`.
const fn covers(at: u32, width: AccessWidth, register: u32) -> bool {
    at <= register && register - at < width.bytes()
}

impl Held {
    pub(super) const fn new(config: &UnitConfig) -> Self {
        Self {
            iotlb: config.extended_capability().iotlb_offset(),
            global: None,
            protected: None,
            context: false,
            invalidate: false,
        }
    }

    /// Whether a write there can be such a command.
    pub(super) const fn concerns(&self, at: u32, width: AccessWidth) -> bool {
        covers(at, width, offset::GCMD)
            || covers(at, width, offset::PMEN)
            || covers(at, width, offset::CCMD + 4)
            || covers(at, width, self.iotlb + 4)
    }

    /// The command written at `at` was carried out; `status` is from before.
    pub(super) fn hold(&mut self, at: u32, width: AccessWidth, status: Status) {
        if covers(at, width, offset::GCMD) {
            // A second command while the first is held: the guest did not wait; it sees both complete together.
            self.global.get_or_insert(status.global);
        }
        if covers(at, width, offset::PMEN) {
            self.protected.get_or_insert(status.protected);
        }
        self.context |= covers(at, width, offset::CCMD + 4);
        self.invalidate |= covers(at, width, self.iotlb + 4);
    }

    /// Everything is drained.
    pub(super) fn release(&mut self) {
        (self.global, self.protected, self.context, self.invalidate) = (None, None, false, false);
    }

    /// What software sees where the model has `value`.
    pub(super) fn shown(&self, at: u32, width: AccessWidth, value: u64) -> u64 {
        let mut shown = value;
        for (held, register, field) in [
            (self.global, offset::GSTS, u32::MAX),
            (self.protected, offset::PMEN, ProtectedMemoryEnable::prs_mask()),
        ] {
            if let (Some(held), true) = (held, covers(at, width, register)) {
                let shift = (register - at) * 8;
                shown = shown & !(u64::from(field) << shift) | u64::from(held) << shift;
            }
        }
        for (held, register, flag) in [
            (self.context, offset::CCMD, ContextCommand::icc_mask()),
            (self.invalidate, self.iotlb, IotlbInvalidate::ivt_mask()),
        ] {
            if held && covers(at, width, register + 4) {
                // The flag is in the upper half of the register.
                let half = (flag >> 32) << ((register + 4 - at) * 8);
                shown |= half;
            }
        }
        shown
    }
}
