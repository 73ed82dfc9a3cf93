//! What can go wrong between the driver and the hardware.

use iommu_types::{AddrRange, DomainId, HostPhys, Iova, OutOfFrames, SourceId};
use thiserror::Error;

use crate::command::Command;
use crate::health::Health;
use crate::options::TableMode;

/// The unit did not do what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HardwareError {
    /// The register window no longer answers.
    #[error("register {offset:#x} reads all-ones: the unit is gone; detach its devices and power-cycle it")]
    Gone {
        /// The register that was read.
        offset: u32,
    },
    /// A global command was not acknowledged.
    #[error("{command} was not acknowledged within {waited_ns} ns; the unit cannot be trusted any more")]
    CommandTimeout {
        /// The command.
        command: Command,
        /// How long the driver waited, in nanoseconds.
        waited_ns: u64,
    },
    /// An invalidation was not confirmed.
    #[error("an invalidation was not confirmed within {waited_ns} ns; stale translations may be in use")]
    InvalidationTimeout {
        /// How long the driver waited, in nanoseconds.
        waited_ns: u64,
    },
    /// The unit refused a descriptor (`VT-d §6.5.2.11 (IQE)`); the others of its batch were processed.
    #[error("the unit refused an invalidation descriptor with error information {info}: {words:x?}")]
    DescriptorRefused {
        /// `IQERCD_REG.IQEI`: why.
        info: u8,
        /// The descriptor's first 128 bits.
        words: [u64; 2],
    },
    /// A device did not answer device-TLB invalidations, also not when they were repeated.
    #[error("device {device:?} did not answer device-TLB invalidations; turn its bus mastering off")]
    DeviceTimeout {
        /// The device, if the unit tells (`IQERCD_REG.ITESID`).
        device: Option<SourceId>,
    },
    /// A register command of invalidation was ignored or done more narrowly than asked.
    #[error("the unit ignored a register-based invalidation (answer {answer:#x})")]
    InvalidationIgnored {
        /// The command register after the command.
        answer: u64,
    },
    /// The unit has lost an acknowledgement before and is not used any more.
    #[error("the unit is poisoned ({0}): nothing more can be confirmed")]
    Poisoned(Health),
}

/// What devices may still reach after an operation that was not confirmed. Memory behind it must not be
/// reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reachable {
    /// Old translations of these addresses, by devices of this domain.
    Range {
        /// The domain's identifier on the unit.
        domain: DomainId,
        /// The addresses as devices issue them.
        range: AddrRange<Iova>,
    },
    /// Everything that was mapped in the domain, by this requester and its aliases.
    Requester {
        /// The requester.
        requester: SourceId,
        /// The domain's identifier on the unit; `None` for pass-through, which reaches all memory.
        domain: Option<DomainId>,
    },
    /// The reserved regions of this requester, by it, and by devices of the domain that they were mapped in for it.
    Reserved {
        /// The requester.
        requester: SourceId,
        /// The domain's identifier on the unit.
        domain: DomainId,
    },
    /// These entries of the interrupt-remapping table in their old form.
    Interrupts {
        /// The first index.
        first: u16,
        /// How many.
        count: u16,
    },
    /// All that devices behind the unit could reach before.
    Unit,
}

impl core::fmt::Display for Reachable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Range { domain, range } => write!(f, "addresses {range} of domain {domain}"),
            Self::Requester {
                requester,
                domain: Some(domain),
            } => write!(f, "all of domain {domain} by requester {requester}"),
            Self::Requester {
                requester,
                domain: None,
            } => write!(f, "all memory by requester {requester}"),
            Self::Reserved { requester, domain } => {
                write!(
                    f,
                    "the reserved regions of {requester}, by it and by devices of domain {domain}"
                )
            }
            Self::Interrupts { first, count } => write!(f, "{count} interrupt entries from index {first}"),
            Self::Unit => f.write_str("everything that devices behind the unit could reach before"),
        }
    }
}

/// A change was made in memory, and the unit did not confirm that it gave up the old state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not confirmed, may still be reachable: {reachable}; {cause}")]
pub struct Unconfirmed {
    /// What may still be reachable.
    pub reachable: Reachable,
    /// What happened.
    #[source]
    pub cause: HardwareError,
}

/// A unit could not be brought up or taken down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnitError {
    /// Version, capability or extended capability reads all-ones: there is no unit at this address, or none any more.
    #[error(
        "no remapping unit answers: the capability registers read all-ones; the firmware table is wrong, or the unit gone"
    )]
    Absent,
    /// A register block lies outside the window that was handed in.
    #[error("the {block} end at byte {end:#x}, the register window has {window:#x}; map the larger window")]
    WindowTooSmall {
        /// Which registers.
        block: &'static str,
        /// One past their last byte.
        end: u32,
        /// Length of the window.
        window: u32,
    },
    /// The unit has neither queued nor register-based invalidation.
    #[error("the unit (version {major}) has no form of invalidation that can be used")]
    NoInvalidation {
        /// Major version.
        major: u8,
    },
    /// The unit translates with no number of levels that the driver knows.
    #[error("CAP.SAGAW {sagaw:#x} names no supported table depth; the unit can only remap interrupts")]
    NoTranslation {
        /// The field.
        sagaw: u8,
    },
    /// Scalable mode was asked for.
    #[error("the unit has no scalable mode (ECAP.SMTS = 0); drive it in legacy mode")]
    NoScalableMode,
    /// The unit translates in the other mode, and must neither be switched off nor change the mode while it is on.
    #[error(
        "the unit translates with tables of the other mode and must not be switched off (quirk); drive it in {0:?} mode"
    )]
    ModeLocked(TableMode),
    /// The previous owner's invalidation queue did not run empty.
    #[error("the invalidation queue that was left enabled did not drain within {waited_ns} ns")]
    QueueNotQuiet {
        /// How long the driver waited, in nanoseconds.
        waited_ns: u64,
    },
    /// Memory.
    #[error(transparent)]
    Memory(#[from] TableError),
    /// The hardware.
    #[error(transparent)]
    Hardware(#[from] HardwareError),
}

/// Memory for structures that hardware reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TableError {
    /// There is none.
    #[error("{0}")]
    OutOfFrames(OutOfFrames),
    /// A structure lies at an address that the host does not call table memory.
    #[error("the host knows no table memory at {at}; its TableMemory implementation contradicts itself")]
    NotTableMemory {
        /// The address.
        at: HostPhys,
    },
}

impl From<OutOfFrames> for TableError {
    fn from(error: OutOfFrames) -> Self {
        Self::OutOfFrames(error)
    }
}
