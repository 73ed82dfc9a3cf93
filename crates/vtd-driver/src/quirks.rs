//! Hardware that needs something else than the specification says, as data.

use iommu_types::omission::{Step, kept};

/// A PCI function, as its configuration header names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionId {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Base class: 3 is display.
    pub base_class: u8,
}

/// What to do otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuirkEffect {
    /// Do not translate the integrated graphics device: leave its unit off.
    NoGraphicsTranslation,
    /// Flush write buffers though `CAP_REG.RWBF` is 0: [`UnitQuirks::flush_write_buffers`].
    FlushWriteBuffers,
    /// Never clear TE on the graphics unit: [`UnitQuirks::keep_translation_on`].
    KeepTranslationOn,
    /// No deferred unmapping for graphics, or none of its translation, depending on how firmware set up its
    /// shadow table.
    StrictGraphics,
    /// Send each device-TLB invalidation twice.
    DeviceTlbTwice,
    /// Do not remap interrupts on this chipset.
    NoInterruptRemapping,
    /// Identity-map the sound controller if firmware gave its unit no translation cache entries for isochronous traffic,
    /// which the configuration space of the matching function tells: VTISOCHCTRL, entries 0, and not switched over to
    /// the other unit.
    IsochronousSound,
    /// First-stage PASID entries need the unit's address width: [`UnitQuirks::first_stage_width`].
    FirstStageWidth,
}

/// One entry of [`QUIRKS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quirk {
    vendor: u16,
    /// Device IDs, after `mask`.
    devices: &'static [u16],
    mask: u16,
    /// Only functions of this base class.
    base_class: Option<u8>,
    /// Whether it also holds for devices that are not trusted, which can fake their IDs: only what grants a
    /// device nothing may (rule D24).
    untrusted_too: bool,
    /// What to do.
    pub effect: QuirkEffect,
    /// Why.
    pub reason: &'static str,
}

const INTEL: u16 = 0x8086;
const DISPLAY: u8 = 3;

/// A quirk of Intel chipsets and integrated devices.
const fn intel(devices: &'static [u16], effect: QuirkEffect, reason: &'static str) -> Quirk {
    Quirk {
        vendor: INTEL,
        devices,
        mask: 0xffff,
        base_class: None,
        untrusted_too: false,
        effect,
        reason,
    }
}

const G4X: &[u16] = &[0x2a40, 0x2e00, 0x2e10, 0x2e20, 0x2e30, 0x2e40, 0x2e90];

/// All quirks, in no particular order.
pub const QUIRKS: &[Quirk] = &[
    intel(
        G4X,
        QuirkEffect::NoGraphicsTranslation,
        "Mobile 4 and G4x: graphics does not work translated",
    ),
    intel(
        G4X,
        QuirkEffect::FlushWriteBuffers,
        "Mobile 4 and G4x: RWBF is not reported, and needed",
    ),
    intel(
        &[
            0x1602, 0x1606, 0x160a, 0x160b, 0x160d, 0x160e, 0x1612, 0x1616, 0x161a, 0x161b, 0x161d, 0x161e, 0x1622,
            0x1626, 0x162a, 0x162b, 0x162d, 0x162e, 0x1632, 0x1636, 0x163a, 0x163b, 0x163d, 0x163e,
        ],
        QuirkEffect::NoGraphicsTranslation,
        "Broadwell: graphics does not work translated",
    ),
    intel(
        &[0x0040, 0x0044, 0x0062, 0x006a],
        QuirkEffect::StrictGraphics,
        "Calpella: the shadow graphics table needs idle graphics before each flush",
    ),
    Quirk {
        mask: 0xff00,
        base_class: Some(DISPLAY),
        ..intel(
            &[0x4500, 0x4600, 0x4c00, 0x4e00, 0x8a00, 0x9800, 0x9a00, 0xa700],
            QuirkEffect::KeepTranslationOn,
            "integrated graphics since Ice Lake: the unit hangs when TE is cleared",
        )
    },
    Quirk {
        mask: 0xfffc,
        untrusted_too: true,
        ..intel(
            &[0x4940],
            QuirkEffect::DeviceTlbTwice,
            "QAT on Sapphire Rapids: an invalidation can be overtaken by a translation in flight",
        )
    },
    intel(
        &[0x3403, 0x3405, 0x3406],
        QuirkEffect::NoInterruptRemapping,
        "5500, 5520 and X58: early steppings lose remapped interrupts",
    ),
    intel(
        &[0x342e],
        QuirkEffect::IsochronousSound,
        "Tylersburg: sound (8086:3a3e) stutters translated if firmware gave its unit no TLB entries",
    ),
    // The chip itself knows no scalable mode, so that the effect is on QEMU's machine only.
    intel(
        &[0x29c0],
        QuirkEffect::FirstStageWidth,
        "Q35 as QEMU up to 11.1 has it: first-stage addresses are limited by AW, which such entries do not use",
    ),
];

impl Quirk {
    /// Whether the quirk is about `function`. Devices that are not `trusted` match only what grants them nothing.
    #[must_use]
    pub fn applies_to(&self, function: FunctionId, trusted: bool) -> bool {
        (trusted || self.untrusted_too || !kept(Step::QuirksNeedTrust))
            && function.vendor == self.vendor
            && self.devices.contains(&(function.device & self.mask))
            && self.base_class.is_none_or(|class| class == function.base_class)
    }
}

/// The quirks of one function.
pub fn quirks_of(function: FunctionId, trusted: bool) -> impl Iterator<Item = &'static Quirk> {
    QUIRKS.iter().filter(move |quirk| quirk.applies_to(function, trusted))
}

/// What is different about one unit, for [`crate::UnitOptions`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnitQuirks {
    /// Flush write buffers though the unit does not ask for it.
    pub flush_write_buffers: bool,
    /// Never clear TE: the unit hangs. Taken over while it translates, it goes from the old tables to the new
    /// ones directly, so everything is blocked from take-over on.
    pub keep_translation_on: bool,
    /// Page-selective invalidation works up to this mask only, whatever `CAP_REG.MAMV` says. The E5's is 9.
    pub max_address_mask: Option<u8>,
    /// Do not use superpages.
    pub no_superpages: bool,
    /// Erratum 772415 of Sapphire Rapids: under guests' tables a second-stage mapping for reading only does not keep
    /// writes out. Such mappings are refused in domains that are parents, and domains that have some are no parents.
    pub no_read_only_parents: bool,
    /// Write the largest width of the unit into AW of first-stage PASID entries, where the specification has it
    /// ignored or reserved (`VT-d §9.6`). Without it such a unit translates 29 bits.
    pub first_stage_width: bool,
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn effects(device: u16, base_class: u8, trusted: bool) -> Vec<QuirkEffect> {
        let function = FunctionId {
            vendor: INTEL,
            device,
            base_class,
        };
        quirks_of(function, trusted).map(|quirk| quirk.effect).collect()
    }

    #[test]
    fn a_function_gets_every_quirk_it_matches() {
        assert_eq!(
            effects(0x2e20, 6, true),
            [QuirkEffect::NoGraphicsTranslation, QuirkEffect::FlushWriteBuffers]
        );
        assert_eq!(effects(0x4c8a, DISPLAY, true), [QuirkEffect::KeepTranslationOn]);
        assert!(effects(0x4c8a, 2, true).is_empty(), "another class");
        assert!(effects(0x1234, DISPLAY, true).is_empty());
        assert_eq!(effects(0x29c0, 6, true), [QuirkEffect::FirstStageWidth]);
    }

    #[test]
    fn a_device_that_is_not_trusted_gets_only_what_grants_it_nothing() {
        assert!(effects(0x2e20, 6, false).is_empty());
        for device in 0x4940..0x4944 {
            assert_eq!(effects(device, 0x0b, false), [QuirkEffect::DeviceTlbTwice]);
        }
        assert!(effects(0x4944, 0x0b, false).is_empty());
    }
}
