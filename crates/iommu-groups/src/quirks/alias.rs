//! Devices that use requester IDs other than their own, and bridges that do so for what is below them.

use iommu_types::DevFn;

use super::{Devices, Source};
use crate::function::{DevFnSet, Function};
use crate::pci::class;

/// Which requester IDs, all on the function's own bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AliasEffect {
    /// This function number of the function's own slot.
    OwnSlot(u8),
    /// These devices and functions, each as the packed byte.
    Fixed(&'static [u8]),
    /// Functions 0 to `n` of all 32 devices.
    EveryDevice(u8),
    /// All 256.
    All,
    /// Those in a table in the function's BAR 0: the caller has to supply them.
    FromRegisters,
}

impl AliasEffect {
    /// Adds what a function at `own` uses besides itself.
    pub(crate) fn add_to(self, own: DevFn, mask: &mut DevFnSet) {
        let mut add = |raw: u8| {
            if raw != own.raw() {
                mask.insert(DevFn::from_raw(raw));
            }
        };
        match self {
            Self::OwnSlot(function) => add(own.raw() & !7 | function & 7),
            Self::Fixed(devfns) => devfns.iter().for_each(|raw| add(*raw)),
            Self::EveryDevice(last) => (0..=u8::MAX).filter(|raw| raw & 7 <= last).for_each(add),
            Self::All => (0..=u8::MAX).for_each(add),
            Self::FromRegisters => {}
        }
    }
}

/// A function that uses more requester IDs than its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AliasQuirk {
    /// Which functions.
    pub devices: Devices,
    /// Only boards with one of these subsystem vendors and subsystems; empty for all.
    pub boards: &'static [(u16, u16)],
    /// Only functions of this base class and subclass.
    pub class: Option<u16>,
    /// Which requester IDs.
    pub effect: AliasEffect,
    /// Where it is known from.
    pub source: Source,
}

const fn alias(devices: Devices, effect: AliasEffect, source: &'static str) -> AliasQuirk {
    AliasQuirk {
        devices,
        boards: &[],
        class: None,
        effect,
        source: Source(source),
    }
}

const FUNC0: &str = "Linux drivers/pci/quirks.c, quirk_dma_func0_alias";
const FUNC1: &str = "Linux drivers/pci/quirks.c, quirk_dma_func1_alias";

/// All of them.
static ALIASES: [AliasQuirk; 11] = [
    alias(
        Devices::new(0x1180, &[(0xe832, 0xe832), (0xe476, 0xe476)]),
        AliasEffect::OwnSlot(0),
        FUNC0,
    ),
    alias(
        Devices::new(
            0x1b4b,
            &[
                (0x9120, 0x9120),
                (0x9123, 0x9123),
                (0x9125, 0x9125),
                (0x9128, 0x9128),
                (0x9130, 0x9130),
                (0x9170, 0x9170),
                (0x9172, 0x9172),
                (0x917a, 0x917a),
                (0x9182, 0x9183),
                (0x91a0, 0x91a0),
                (0x9215, 0x9215),
                (0x9220, 0x9220),
                (0x9230, 0x9230),
            ],
        ),
        AliasEffect::OwnSlot(1),
        FUNC1,
    ),
    alias(
        Devices::new(0x1103, &[(0x0642, 0x0642), (0x0645, 0x0645)]),
        AliasEffect::OwnSlot(1),
        FUNC1,
    ),
    alias(
        Devices::new(0x197b, &[(0x2392, 0x2392)]),
        AliasEffect::OwnSlot(1),
        FUNC1,
    ),
    alias(
        Devices::new(0x1c28, &[(0x0122, 0x0122)]),
        AliasEffect::OwnSlot(1),
        FUNC1,
    ),
    AliasQuirk {
        devices: Devices::new(0x9005, &[(0x0285, 0x0285)]),
        boards: &[(0x9005, 0x02bb), (0x9005, 0x02bc)],
        class: None,
        effect: AliasEffect::Fixed(&[0x08]),
        source: Source("Linux drivers/pci/quirks.c, quirk_fixed_dma_alias"),
    },
    alias(
        Devices::new(0x8086, &[(0x2260, 0x2260), (0x2264, 0x2264)]),
        AliasEffect::Fixed(&[0x80, 0x88, 0x93]),
        "Linux drivers/pci/quirks.c, quirk_mic_x200_dma_alias",
    ),
    alias(
        Devices::new(0x8086, &[(0x2954, 0x2956), (0x2958, 0x295a)]),
        AliasEffect::EveryDevice(4),
        "Linux drivers/pci/quirks.c, quirk_pex_vca_alias",
    ),
    alias(
        Devices::new(0x10b5, &[(0x87b0, 0x87b1)]),
        AliasEffect::All,
        "Linux drivers/pci/quirks.c, quirk_plx_ntb_dma_alias",
    ),
    AliasQuirk {
        devices: Devices::new(
            0x11f8,
            &[
                (0x8531, 0x8536),
                (0x8541, 0x8546),
                (0x8551, 0x8556),
                (0x8561, 0x8566),
                (0x8571, 0x8576),
            ],
        ),
        boards: &[],
        class: Some(class::OTHER_BRIDGE),
        effect: AliasEffect::FromRegisters,
        source: Source("Linux drivers/pci/quirks.c, quirk_switchtec_ntb_dma_alias"),
    },
    AliasQuirk {
        devices: Devices::new(
            0x11f8,
            &[
                (0x4000, 0x4000),
                (0x4028, 0x4028),
                (0x4036, 0x4036),
                (0x4052, 0x4052),
                (0x4068, 0x4068),
                (0x4084, 0x4084),
                (0x4100, 0x4100),
                (0x4128, 0x4128),
                (0x4136, 0x4136),
                (0x4152, 0x4152),
                (0x4168, 0x4168),
                (0x4184, 0x4184),
                (0x4200, 0x4200),
                (0x4228, 0x4228),
                (0x4236, 0x4236),
                (0x4252, 0x4252),
                (0x4268, 0x4268),
                (0x4284, 0x4284),
                (0x4328, 0x4328),
                (0x4336, 0x4336),
                (0x4352, 0x4352),
                (0x4428, 0x4428),
                (0x4436, 0x4436),
                (0x4452, 0x4452),
                (0x4528, 0x4528),
                (0x4536, 0x4536),
                (0x4552, 0x4552),
            ],
        ),
        boards: &[],
        class: Some(class::OTHER_BRIDGE),
        effect: AliasEffect::FromRegisters,
        source: Source("Linux drivers/pci/quirks.c, quirk_switchtec_ntb_dma_alias"),
    },
];

/// What a bridge does to the requester IDs of what is below it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BridgeQuirkKind {
    /// A PCIe-to-PCI bridge that hides its PCI Express capability: requests from below carry its secondary bus
    /// number with device and function zero.
    HiddenExpress,
    /// Translation takes place here: nothing above changes the requester ID any more.
    TranslationRoot,
}

/// A bridge that is not what it looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BridgeQuirk {
    /// Which bridges.
    pub devices: Devices,
    /// What they do.
    pub kind: BridgeQuirkKind,
    /// Where it is known from.
    pub source: Source,
}

impl BridgeQuirk {
    /// What is known about bridges with this identity, whether or not they stand where it applies.
    #[must_use]
    pub fn known(vendor: u16, device: u16) -> Option<&'static Self> {
        BRIDGES.iter().find(|quirk| quirk.devices.contains(vendor, device))
    }
}

const HIDDEN: Source = Source("Linux drivers/pci/quirks.c, quirk_use_pcie_bridge_dma_alias");

/// All of them.
static BRIDGES: [BridgeQuirk; 5] = [
    BridgeQuirk {
        devices: Devices::new(0x1b21, &[(0x1080, 0x1080)]),
        kind: BridgeQuirkKind::HiddenExpress,
        source: HIDDEN,
    },
    BridgeQuirk {
        devices: Devices::new(0x10e3, &[(0x8113, 0x8113)]),
        kind: BridgeQuirkKind::HiddenExpress,
        source: HIDDEN,
    },
    BridgeQuirk {
        devices: Devices::new(0x1283, &[(0x8892, 0x8893)]),
        kind: BridgeQuirkKind::HiddenExpress,
        source: HIDDEN,
    },
    BridgeQuirk {
        devices: Devices::new(0x8086, &[(0x244e, 0x244e)]),
        kind: BridgeQuirkKind::HiddenExpress,
        source: HIDDEN,
    },
    BridgeQuirk {
        devices: Devices::new(0x14e4, &[(0x9000, 0x9000), (0x9084, 0x9084)]),
        kind: BridgeQuirkKind::TranslationRoot,
        source: Source("Linux drivers/pci/quirks.c, quirk_bridge_cavm_thrx2_pcie_root"),
    },
];

/// The alias quirks of a function.
pub(crate) fn dma_aliases(f: &Function) -> impl Iterator<Item = &'static AliasQuirk> + use<> {
    let (vendor, device, subsystem, class) = (f.vendor, f.device, f.subsystem, f.class_code());
    ALIASES.iter().filter(move |quirk| {
        quirk.devices.contains(vendor, device)
            && quirk.class.is_none_or(|wanted| wanted == class)
            && (quirk.boards.is_empty() || subsystem.is_some_and(|board| quirk.boards.contains(&board)))
    })
}

/// The bridge quirks of a function, whether or not it stands where they apply.
pub(crate) fn bridge_quirks(f: &Function) -> Option<&'static BridgeQuirk> {
    BridgeQuirk::known(f.vendor, f.device)
}
