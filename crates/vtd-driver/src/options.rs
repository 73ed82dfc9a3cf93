//! What the host tells the driver about a unit.

use iommu_types::omission::{Step, kept};
use iommu_types::{AddrRange, FrameRequest, HostPhys, NodeId, SourceId};

use alloc::vec::Vec;

use crate::fault::FaultBudget;
use crate::quirks::UnitQuirks;
use crate::wait::Timeouts;

/// Facts and policy for one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitOptions {
    /// Host address width in bits, from the DMAR table; tables are placed below.
    pub host_address_width: u8,
    /// The NUMA node that RHSA names for the unit; tables and queue are placed there if possible.
    pub node: Option<NodeId>,
    /// How long to wait for the hardware.
    pub timeouts: Timeouts,
    /// Whether devices may be let through untranslated at all.
    pub pass_through: PassThrough,
    /// The kind of tables.
    pub mode: TableMode,
    /// What is different about this unit, see [`crate::QUIRKS`].
    pub quirks: UnitQuirks,
    /// When a requester's faults become a storm.
    pub fault_budget: FaultBudget,
}

impl Default for UnitOptions {
    /// 39 address bits (every unit has them), no node, default timeouts, no pass-through, legacy mode.
    fn default() -> Self {
        Self {
            host_address_width: 39,
            node: None,
            timeouts: Timeouts::default(),
            pass_through: PassThrough::Refused,
            mode: TableMode::Legacy,
            quirks: UnitQuirks::default(),
            fault_budget: FaultBudget::default(),
        }
    }
}

impl UnitOptions {
    /// One page for a table of this unit.
    pub(crate) fn page(&self) -> FrameRequest {
        let last = 1u64
            .checked_shl(u32::from(self.host_address_width))
            .map_or(u64::MAX, |end| end - 1);
        FrameRequest::page(self.node, HostPhys::new(last))
    }
}

/// Which tables a unit walks (`VT-d §11.4.5 (RTADDR_REG.TTM)`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableMode {
    /// Root, context and second-stage tables: every unit that translates.
    #[default]
    Legacy,
    /// PASID tables between context entries and page tables: first-stage and nested domains. Only units with
    /// `ECAP_REG.SMTS`.
    Scalable,
}

/// Whether a device may reach all of memory untranslated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PassThrough {
    /// Never.
    #[default]
    Refused,
    /// Where [`crate::Unit::attach_pass_through`] is called for it. A device in pass-through can read and write
    /// all memory; this is for devices that are trusted as the kernel is.
    AllowedForTrustedDevices,
}

/// A device as the unit sees it: the requester ID it has, and every other ID its requests may carry.
///
/// Behind a PCIe-to-PCI bridge requests carry the bridge's ID; some functions use the ID of another function.
/// All of them are attached, detached and flushed together (rule D13).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The device's own requester ID.
    pub rid: SourceId,
    /// The others, without `rid`; duplicates are harmless.
    pub aliases: Vec<SourceId>,
}

impl Requester {
    /// A device whose requests carry its own ID only.
    #[must_use]
    pub const fn new(rid: SourceId) -> Self {
        Self {
            rid,
            aliases: Vec::new(),
        }
    }

    /// A device with aliases.
    #[must_use]
    pub fn with_aliases(rid: SourceId, aliases: impl IntoIterator<Item = SourceId>) -> Self {
        Self {
            rid,
            aliases: aliases.into_iter().collect(),
        }
    }

    /// All IDs, each once, in ascending order.
    pub(crate) fn ids(&self) -> Vec<SourceId> {
        if !kept(Step::EveryAlias) {
            return Vec::from([self.rid]);
        }
        let mut ids: Vec<SourceId> = self.aliases.iter().copied().chain([self.rid]).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// What the driver has to know of a function to let it keep translations, and to keep its device-TLB clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceTlb {
    /// Invalidate queue depth of the function's ATS capability; 0 stands for 32.
    pub queue_depth: u8,
    /// Page Aligned Request of the ATS capability: the function asks for whole pages. Others are refused.
    pub page_aligned: bool,
    /// The function's PASID capability is on. It cannot be switched on later: what happens to a function whose PASID
    /// capability changes while its ATS is on is undefined (PCI Express, ATS and PASID capabilities).
    pub pasid: bool,
    /// The physical function, if the requester is a virtual one.
    pub physical_function: Option<SourceId>,
    /// Where the DMAR table allows ATS for the function; `None`, nowhere, is refused.
    pub listed: Option<AtsListing>,
    /// Whether the function is trusted: with ATS it says by itself which host addresses it was given (rule D24).
    pub trusted: bool,
    /// Send each invalidation twice ([`crate::QuirkEffect::DeviceTlbTwice`]).
    pub twice: bool,
}

/// Where the DMAR table allows ATS for a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AtsListing {
    /// Below a root port that an ATSR structure names (`VT-d §8.5`).
    RootPort,
    /// It is an integrated endpoint of an SATC structure (`VT-d §8.8`).
    Integrated {
        /// ATC_REQUIRED: the endpoint does not work without ATS. In legacy mode it then uses ATS by itself, and
        /// software must leave it alone.
        required: bool,
    },
}

impl From<SourceId> for Requester {
    fn from(rid: SourceId) -> Self {
        Self::new(rid)
    }
}

/// Memory that firmware lets devices use on their own (RMRR of the DMAR table). It is identity-mapped for the
/// devices it is for, from before translation is enabled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The memory, both ends included; rounded outwards to pages.
    pub range: AddrRange<HostPhys>,
    /// The devices that use it.
    pub requesters: Vec<Requester>,
    /// Whether a device keeps access only while nobody has attached it to a domain of their own. For regions
    /// that serve the boot phase only, such as those of USB and graphics controllers (rule D14).
    pub relaxable: bool,
}
