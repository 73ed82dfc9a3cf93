//! Why devices were not attached or detached.

use iommu_types::{AddrRange, DomainId, HostPhys, Pasid, SourceId};
use thiserror::Error;

use crate::domain::{DomainError, MapError};
use crate::error::{HardwareError, TableError, Unconfirmed};

/// A device could not be attached. Unless the variant says otherwise it is where it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AttachError {
    /// The requester is attached already.
    #[error("{requester} is attached to domain {domain} already; detach it first")]
    AlreadyAttached {
        /// The requester.
        requester: SourceId,
        /// Where it is.
        domain: DomainId,
    },
    /// Another device uses the same ID in another domain: the two cannot be told apart.
    #[error(
        "requests of {requester} may carry the ID {alias}, which {owner} uses in domain {domain}; attach both to one domain"
    )]
    AliasInUse {
        /// The requester.
        requester: SourceId,
        /// The shared ID.
        alias: SourceId,
        /// Who has it.
        owner: SourceId,
        /// Where.
        domain: DomainId,
    },
    /// An earlier detach was not confirmed, so the ID is not free.
    #[error("{alias} was detached without confirmation; the unit may still use its old entry")]
    DetachUnconfirmed {
        /// The ID.
        alias: SourceId,
    },
    /// The domain belongs to another unit.
    #[error("the domain was created on another unit; create one on the unit that serves the device")]
    OtherUnit,
    /// Firmware needs an identity mapping (RMRR) where the domain maps something else.
    #[error("the reserved region {range} of {requester} cannot be identity-mapped: {cause}")]
    Reserved {
        /// The requester.
        requester: SourceId,
        /// The region.
        range: AddrRange<HostPhys>,
        /// Why.
        cause: MapError,
    },
    /// The policy of the unit forbids pass-through.
    #[error("pass-through is refused by the unit's options; set UnitOptions::pass_through to allow it")]
    PassThroughRefused,
    /// The device's translations cannot be cached in the device.
    #[error("no device-TLB: it needs ECAP.DT, a requester without aliases, and a domain that is not nested")]
    NoDeviceTlb,
    /// The function must not keep translations of its own.
    #[error("ATS of {requester} stays off: {why}")]
    AtsRefused {
        /// The requester.
        requester: SourceId,
        /// Why.
        why: AtsRefusal,
    },
    /// The function's ATS is on, and its PASID capability is not: that order cannot be repaired.
    #[error("PASID was off in {requester} when its ATS was turned on; detach it, enable PASID first, then ATS")]
    PasidAfterAts {
        /// The requester.
        requester: SourceId,
    },
    /// The PASID cannot be used.
    #[error("PASID {pasid}: it needs scalable mode, a number that the unit has (not 0), and its requester attached")]
    NoPasid {
        /// The PASID.
        pasid: Pasid,
    },
    /// The unit cannot pass through.
    #[error("the unit has no pass-through (ECAP.PT = 0); use an identity-mapped domain")]
    NoPassThrough,
    /// No domain identifier is left.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// Memory for a context table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The hardware refused before anything changed.
    #[error(transparent)]
    Hardware(#[from] HardwareError),
    /// Something changed, and the unit did not confirm it.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
}

/// Why a function must not use ATS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AtsRefusal {
    /// It is neither below a root port of an ATSR nor listed by an SATC.
    #[error("no ATSR or SATC structure of the DMAR table allows it")]
    NotListed,
    /// It is not trusted: it could use any host address as one that it was given.
    #[error("the function is not trusted, and with ATS it would vouch for its own addresses")]
    NotTrusted,
    /// Its translation requests are not for whole pages.
    #[error("its ATS capability does not have Page Aligned Request set")]
    NotPageAligned,
    /// In legacy mode the platform runs its ATS.
    #[error("the SATC structure says ATC_REQUIRED: in legacy mode hardware runs its ATS by itself")]
    HardwareManaged,
}

/// A device could not be detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DetachError {
    /// It is not attached.
    #[error("{requester} is not attached")]
    NotAttached {
        /// The requester.
        requester: SourceId,
    },
    /// The device may hold translations: its ATS has to be turned off first.
    #[error("ATS of {requester} is on; detach it with detach_with_ats")]
    AtsOn {
        /// The requester.
        requester: SourceId,
    },
    /// PASIDs of the device are attached.
    #[error("PASIDs of {requester} are attached; detach them first")]
    PasidsAttached {
        /// The requester.
        requester: SourceId,
    },
    /// The device is detached, but not back in the domain that holds its reserved regions: their use is blocked.
    /// Detaching again tries it again.
    #[error("{requester} is detached, but its reserved regions could not be given back: {cause}")]
    ReservedBlocked {
        /// The requester.
        requester: SourceId,
        /// Why.
        cause: HardwareError,
    },
    /// The host's table memory.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The entries are not present any more, but the unit did not confirm that it forgot them. The device
    /// counts as attached; detaching again repeats the invalidation.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
}
