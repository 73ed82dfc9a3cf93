//! Devices that isolate without saying so, or say so in registers of their own.

use super::{Devices, Source};
use crate::Presence;
use crate::function::{Function, Layout};
use crate::pci::{PortType, acs};

/// What the vendor, or an experiment, says about a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcsQuirkKind {
    /// The functions of the device cannot reach each other.
    Functions,
    /// The port redirects as ACS would.
    Port,
    /// As `Port`, for root ports.
    RootPort,
    /// As `Port`, for root ports and switch downstream ports.
    RootOrDownstreamPort,
    /// As `Port`, for integrated endpoints: VT-d lets them reach only what their translated address names.
    IntegratedEndpoint,
    /// Requests between functions of a multifunction device on the root bus go up, if the machine has an AMD
    /// IOMMU.
    AmdSouthbridge,
    /// As `Port`, once software has turned it on in registers of the chipset.
    PchPort,
}

/// A device whose isolation ACS does not show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcsQuirk {
    /// Which functions.
    pub devices: Devices,
    /// What is said about them.
    pub kind: AcsQuirkKind,
    /// Where it is known from.
    pub source: Source,
    /// The first Linux release (major, minor) that knows it, where that is established; stable releases of older
    /// kernels may have taken it over.
    pub linux_since: Option<(u16, u16)>,
}

impl AcsQuirk {
    const fn since(mut self, major: u16, minor: u16) -> Self {
        self.linux_since = Some((major, minor));
        self
    }

    /// What is known about devices with this identity, as far as it is said about functions of kind `port`
    /// (`None` for conventional PCI): for whoever has to behave as the device does.
    pub fn known(vendor: u16, device: u16, port: Option<PortType>) -> impl Iterator<Item = &'static Self> {
        QUIRKS.iter().chain(&MORE).filter(move |quirk| {
            quirk.devices.contains(vendor, device)
                && match quirk.kind {
                    AcsQuirkKind::RootPort | AcsQuirkKind::PchPort => port == Some(PortType::ROOT_PORT),
                    AcsQuirkKind::RootOrDownstreamPort => {
                        matches!(port, Some(PortType::ROOT_PORT | PortType::DOWNSTREAM_PORT))
                    }
                    AcsQuirkKind::IntegratedEndpoint => port == Some(PortType::INTEGRATED_ENDPOINT),
                    AcsQuirkKind::Functions | AcsQuirkKind::Port | AcsQuirkKind::AmdSouthbridge => true,
                }
        })
    }
}

impl AcsQuirkKind {
    /// The ACS controls that count as on; what remains of the ones asked for is missing.
    #[must_use]
    pub const fn provides(self) -> u16 {
        match self {
            Self::Functions => acs::REQUIRED | acs::TRANSLATION_BLOCKING | acs::DIRECT_TRANSLATED,
            Self::Port | Self::RootPort | Self::RootOrDownstreamPort | Self::IntegratedEndpoint | Self::PchPort => {
                acs::REQUIRED
            }
            Self::AmdSouthbridge => acs::REQUEST_REDIRECT | acs::COMPLETION_REDIRECT,
        }
    }

    /// The controls that mean something for the device.
    pub(crate) const fn applicable(self) -> u16 {
        match self {
            Self::AmdSouthbridge => {
                acs::REQUEST_REDIRECT | acs::COMPLETION_REDIRECT | acs::EGRESS_CONTROL | acs::DIRECT_TRANSLATED
            }
            _ => 0xffff,
        }
    }
}

const fn quirk(devices: Devices, kind: AcsQuirkKind, source: &'static str) -> AcsQuirk {
    AcsQuirk {
        devices,
        kind,
        source: Source(source),
        linux_since: None,
    }
}

const MF: &str = "Linux drivers/pci/quirks.c, pci_quirk_mf_endpoint_acs";
const AMD: &str = "Linux drivers/pci/quirks.c, pci_quirk_amd_sb_acs";
const PCH: &str = "Linux drivers/pci/quirks.c, pci_quirk_intel_pch_acs";
const RP: &str = "Linux drivers/pci/quirks.c, root ports with ACS-equivalent isolation";
const WANGXUN: &str = "Linux drivers/pci/quirks.c, pci_quirk_wangxun_nic_acs";
const ZHAOXIN: &str = "Linux drivers/pci/quirks.c, pci_quirk_zhaoxin_pcie_ports_acs";

/// Root ports of Intel chipsets before the 100 series.
const PCH_PORTS: [Devices; 2] = [
    Devices::new(
        0x8086,
        &[
            (0x3b42, 0x3b51),
            (0x1c10, 0x1c1f),
            (0x1e10, 0x1e1f),
            (0x8c10, 0x8c1f),
            (0x9c10, 0x9c1b),
            (0x9c90, 0x9c9b),
            (0x8d10, 0x8d1e),
        ],
    ),
    Devices::even(0x8086, &[(0x1d10, 0x1d1e), (0x8c90, 0x8c9e)]),
];

/// Intel chipsets of the 100 and 200 series, whose ACS registers are dwords.
/// Linux `drivers/pci/quirks.c`, `pci_quirk_intel_spt_pch_acs`; Intel erratum 30.
const WIDE_REGISTERS: Devices = Devices::new(
    0x8086,
    &[
        (0xa110, 0xa11f),
        (0xa167, 0xa16a),
        (0xa290, 0xa29f),
        (0xa2e7, 0xa2ee),
        (0x9d10, 0x9d1b),
    ],
);

/// From such a capability: where the control register stands.
pub(crate) const WIDE_ACS_CONTROL: u16 = 0x08;

/// Of the older chipsets' ports: the register that holds their source validation (MPC2, then IRBNCE).
pub(crate) const PCH_VALIDATION: u16 = 0xd8;
/// Of [`PCH_VALIDATION`]: the bit that turns it on.
pub(crate) const PCH_VALIDATION_ON: u32 = 1 << 26;

/// All others, in the order in which the first that applies decides.
static QUIRKS: [AcsQuirk; 19] = [
    quirk(
        Devices::new(0x1002, &[(0x4383, 0x4385), (0x4399, 0x4399), (0x439c, 0x439d)]),
        AcsQuirkKind::AmdSouthbridge,
        AMD,
    ),
    quirk(
        Devices::new(0x1022, &[(0x7809, 0x7809), (0x780f, 0x780f)]),
        AcsQuirkKind::AmdSouthbridge,
        AMD,
    ),
    quirk(
        Devices::new(0x1924, &[(0x0903, 0x0903), (0x0923, 0x0923), (0x0a03, 0x0a03)]),
        AcsQuirkKind::Functions,
        MF,
    ),
    quirk(
        Devices::new(
            0x8086,
            &[
                (0x105e, 0x1060),
                (0x10a7, 0x10a7),
                (0x10a9, 0x10a9),
                (0x10c6, 0x10c6),
                (0x10c9, 0x10c9),
                (0x10d6, 0x10d6),
                (0x10d9, 0x10d9),
                (0x10db, 0x10db),
                (0x10dd, 0x10dd),
                (0x10e1, 0x10e1),
                (0x10e6, 0x10e8),
                (0x10f1, 0x10f1),
                (0x10f7, 0x10fc),
                (0x1507, 0x1507),
                (0x1509, 0x150a),
                (0x150d, 0x1511),
                (0x1514, 0x1514),
                (0x1516, 0x1516),
                (0x1518, 0x1518),
                (0x151c, 0x151c),
                (0x1521, 0x1524),
                (0x1526, 0x1527),
                (0x1529, 0x152a),
                (0x154d, 0x154d),
                (0x154f, 0x154f),
                (0x1551, 0x1551),
                (0x1558, 0x1558),
                (0x15b7, 0x15b8),
            ],
        ),
        AcsQuirkKind::Functions,
        MF,
    ),
    quirk(
        Devices::all(0x8086),
        AcsQuirkKind::IntegratedEndpoint,
        "Linux drivers/pci/quirks.c, pci_quirk_rciep_acs; VT-d (Root-Complex Peer to Peer Considerations)",
    )
    .since(5, 8),
    quirk(PCH_PORTS[0], AcsQuirkKind::PchPort, PCH),
    quirk(PCH_PORTS[1], AcsQuirkKind::PchPort, PCH),
    quirk(Devices::new(0x17cb, &[(0x0400, 0x0401)]), AcsQuirkKind::Port, RP),
    quirk(Devices::new(0x1dbf, &[(0x0401, 0x0401)]), AcsQuirkKind::Port, RP),
    quirk(Devices::new(0x19a2, &[(0x0710, 0x0710)]), AcsQuirkKind::Functions, MF),
    quirk(Devices::new(0x10df, &[(0x0720, 0x0720)]), AcsQuirkKind::Functions, MF),
    quirk(
        Devices::new(0x177d, &[(0xa000, 0xa7ff), (0xaf84, 0xaf84), (0xb884, 0xb884)]),
        AcsQuirkKind::RootPort,
        "Linux drivers/pci/quirks.c, pci_quirk_cavium_acs",
    ),
    quirk(
        Devices::new(0x177d, &[(0xa026, 0xa026), (0xa059, 0xa059), (0xa060, 0xa060)]),
        AcsQuirkKind::Functions,
        MF,
    ),
    quirk(Devices::new(0x10e8, &[(0xe004, 0xe004)]), AcsQuirkKind::Port, RP),
    quirk(Devices::new(0x1def, &[(0xe005, 0xe00c)]), AcsQuirkKind::Port, RP),
    quirk(
        Devices::new(0x14e4, &[(0x16d7, 0x16d7), (0x1750, 0x1752), (0x1760, 0x1763)]),
        AcsQuirkKind::Functions,
        MF,
    ),
    quirk(Devices::new(0x14e4, &[(0xd714, 0xd714)]), AcsQuirkKind::Port, RP),
    quirk(
        Devices::new(0x1c36, &[(0x0031, 0x0031)]),
        AcsQuirkKind::RootPort,
        "Linux drivers/pci/quirks.c, pci_quirk_al_acs",
    ),
    quirk(
        Devices::new(0x1d17, &[(0x3038, 0x3038), (0x3104, 0x3104), (0x9083, 0x9083)]),
        AcsQuirkKind::Functions,
        MF,
    ),
];

/// Continued: ports of vendors with long lists.
static MORE: [AcsQuirk; 5] = [
    quirk(
        Devices::new(0x1d17, &[(0x0710, 0x071e), (0x0721, 0x0721), (0x0723, 0x0732)]),
        AcsQuirkKind::RootOrDownstreamPort,
        ZHAOXIN,
    ),
    quirk(
        Devices::new(
            0x1957,
            &[
                (0x8d80, 0x8d83),
                (0x8d88, 0x8d8b),
                (0x8d90, 0x8d93),
                (0x8d98, 0x8d9b),
                (0x8da0, 0x8da1),
                (0x8da8, 0x8da9),
                (0x8db0, 0x8db1),
                (0x8db8, 0x8db9),
            ],
        ),
        AcsQuirkKind::Port,
        "Linux drivers/pci/quirks.c, pci_quirk_nxp_rp_acs",
    ),
    quirk(
        Devices::new(0x8088, &[(0x0100, 0x010f), (0x1001, 0x1001), (0x2001, 0x2001)]),
        AcsQuirkKind::Port,
        WANGXUN,
    )
    .since(6, 3),
    quirk(
        Devices::new(
            0x8088,
            &[
                (0x5010, 0x5010),
                (0x5025, 0x5025),
                (0x5040, 0x5040),
                (0x5110, 0x5110),
                (0x5125, 0x5125),
                (0x5140, 0x5140),
            ],
        ),
        AcsQuirkKind::Port,
        WANGXUN,
    )
    .since(6, 13),
    quirk(
        Devices::new(
            0x0014,
            &[
                (0x3c09, 0x3c09),
                (0x3c19, 0x3c19),
                (0x3c29, 0x3c29),
                (0x7a09, 0x7a09),
                (0x7a19, 0x7a19),
                (0x7a29, 0x7a29),
                (0x7a39, 0x7a39),
                (0x7a49, 0x7a49),
                (0x7a59, 0x7a59),
                (0x7a69, 0x7a69),
            ],
        ),
        AcsQuirkKind::Port,
        "Linux drivers/pci/quirks.c, pci_quirk_loongson_acs",
    ),
];

/// The quirks whose devices include `f` and whose kind of port it is.
pub(crate) fn acs_quirks(f: &Function) -> impl Iterator<Item = &'static AcsQuirk> + use<> {
    AcsQuirk::known(f.vendor, f.device, f.port.present())
}

fn is_root_port(f: &Function) -> bool {
    f.port == Presence::Present(PortType::ROOT_PORT) && f.layout == Layout::Bridge
}

/// Whether the ACS registers of `f` are dwords.
pub(crate) fn has_wide_acs_registers(f: &Function) -> bool {
    is_root_port(f) && WIDE_REGISTERS.contains(f.vendor, f.device)
}

/// Whether `f` is a root port of a chipset that keeps isolation in registers of its own.
pub(crate) fn is_pch_port(f: &Function) -> bool {
    is_root_port(f) && PCH_PORTS.iter().any(|ports| ports.contains(f.vendor, f.device))
}
