//! The access matrix: who was tried against what, what was predicted, what was seen.

use std::fmt;
use std::str::FromStr;

use iommu_types::Bdf;

/// What a requester was tried against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    /// Memory of its own guest, mapped for reading and writing.
    OwnMapping,
    /// A page mapped for reading only, written.
    ReadOnly,
    /// Memory of the other guest.
    OtherGuest,
    /// Memory of the host.
    HostMemory,
    /// Memory that firmware reserves for some device.
    Rmrr,
    /// The interrupt address range, with a message that was not given to this function.
    MsiWindow,
    /// The register window of a function of another group.
    PeerBar,
    /// The register window of a function of the same group.
    GroupPeer,
    /// A page that was mapped, used, and unmapped again.
    UnmappedAgain,
}

impl Target {
    /// All targets in the order of the matrix's columns.
    pub(crate) const ALL: [Self; 9] = [
        Self::OwnMapping,
        Self::ReadOnly,
        Self::OtherGuest,
        Self::HostMemory,
        Self::Rmrr,
        Self::MsiWindow,
        Self::PeerBar,
        Self::UnmappedAgain,
        Self::GroupPeer,
    ];

    /// The name in files and in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::OwnMapping => "own-mapping",
            Self::ReadOnly => "read-only-write",
            Self::OtherGuest => "other-guest",
            Self::HostMemory => "host-memory",
            Self::Rmrr => "rmrr",
            Self::MsiWindow => "msi-window",
            Self::PeerBar => "peer-bar",
            Self::GroupPeer => "group-peer",
            Self::UnmappedAgain => "unmapped-again",
        }
    }

    /// The heading of the column, in two short words.
    pub(crate) const fn heading(self) -> [&'static str; 2] {
        match self {
            Self::OwnMapping => ["own", "mapping"],
            Self::ReadOnly => ["r/o page", "written"],
            Self::OtherGuest => ["other", "guest"],
            Self::HostMemory => ["host", "memory"],
            Self::Rmrr => ["RMRR", ""],
            Self::MsiWindow => ["MSI", "window"],
            Self::PeerBar => ["peer", "BAR"],
            Self::GroupPeer => ["group", "peer"],
            Self::UnmappedAgain => ["unmapped", "again"],
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Target {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|t| t.name() == text).ok_or(())
    }
}

/// What happened to an access, or what is predicted to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    /// It reached its target.
    Allowed,
    /// It did not.
    Blocked,
    /// Neither is certain.
    Unknown,
}

impl Verdict {
    /// All verdicts.
    pub(crate) const ALL: [Self; 3] = [Self::Allowed, Self::Blocked, Self::Unknown];

    /// The word in the matrix, in files and in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Blocked => "blocked",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Verdict {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        Self::ALL.into_iter().find(|v| v.name() == text).ok_or(())
    }
}

/// The record that a remapping unit made of a blocked access, as the driver read it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Logged {
    /// The requester ID in the record.
    pub(crate) source: String,
    /// The address in the record.
    pub(crate) address: String,
    /// The fault reason: number and words.
    pub(crate) reason: String,
}

/// How many accesses were made for a cell, and what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Accesses that were tried.
    pub(crate) tried: u32,
    /// Those that did not reach their target.
    pub(crate) stopped: u32,
    /// Those that left a record with the right source and address.
    pub(crate) recorded: u32,
}

/// One cell of the matrix.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    /// Who tried.
    pub(crate) requester: Bdf,
    /// Against what.
    pub(crate) target: Target,
    /// What groups and mappings predict; unknown where they allow either.
    pub(crate) predicted: Verdict,
    /// Why they predict it.
    pub(crate) because: String,
    /// What was seen.
    pub(crate) seen: Verdict,
    /// How it was seen: what was read back.
    pub(crate) evidence: String,
    /// The unit's record of the access, where it made one.
    pub(crate) logged: Option<Logged>,
    /// What blocks here keeps no record, so that none is asked for.
    pub(crate) silent: bool,
    /// The accesses behind the cell.
    pub(crate) tally: Tally,
}

impl Cell {
    /// Whether the prediction held, and each blocked access that was forbidden left a record.
    pub(crate) fn holds(&self) -> bool {
        match self.predicted {
            Verdict::Unknown => true,
            Verdict::Allowed => self.seen == Verdict::Allowed,
            Verdict::Blocked => {
                self.seen == Verdict::Blocked && (self.silent || self.tally.recorded == self.tally.tried)
            }
        }
    }
}
