//! The result of a run as JSON and as the exit code.

use iommu_vfio::GroupInfo;
use serde::Serialize;

use super::expect::Difference;
use super::matrix::{Cell, Tally, Verdict};

/// Version of the JSON's shape; it changes when a field changes its meaning or goes away.
const SCHEMA: &str = "portcullis-run-1";

/// Everything that a run reports.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    schema: &'static str,
    /// The machine's name; empty if there was none to speak of.
    pub(crate) machine: String,
    /// Why the rehearsal did not get to its end: a mistake in what was given (exit code 2), something that could
    /// not be read or written (3), nothing to rehearse (4). Nothing if it did.
    pub(crate) error: Option<String>,
    /// What it comes to.
    pub(crate) summary: Summary,
    /// Which functions stand together.
    pub(crate) groups: Vec<GroupRow>,
    /// One element for each cell of the access matrix.
    pub(crate) matrix: Vec<CellRow>,
    /// With and without IOMMU.
    pub(crate) comparison: Vec<ComparisonRow>,
    /// What is not as it was kept (`--expect`); nothing without such a file.
    pub(crate) differences: Option<Vec<DifferenceRow>>,
}

/// The figures to look at first.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Summary {
    /// Every result equals its prediction, and the kept matrix where one was given.
    pub(crate) ok: bool,
    /// Bytes that DMA engines copied through translated addresses, each compared.
    pub(crate) bytes_moved: u64,
    /// Seconds that the copying took, comparing included.
    pub(crate) seconds: f64,
    /// Accesses that groups and mappings forbid.
    pub(crate) forbidden: Forbidden,
    /// Checks besides the matrix that did not come out as predicted.
    pub(crate) failed_checks: Vec<String>,
}

/// Forbidden accesses.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Forbidden {
    /// How many were tried.
    pub(crate) tried: u64,
    /// How many did not reach their target.
    pub(crate) blocked: u64,
    /// How many left a record with the right source and address: in the log of their unit, or with the platform
    /// where the table leaves no unit to ask.
    pub(crate) logged: u64,
}

impl Forbidden {
    /// Counts accesses in that were made outside of the matrix.
    pub(crate) fn add(&mut self, tally: Tally) {
        self.tried += u64::from(tally.tried);
        self.blocked += u64::from(tally.stopped);
        self.logged += u64::from(tally.recorded);
    }
}

/// One group.
#[derive(Debug, Serialize)]
pub(crate) struct GroupRow {
    /// Its number.
    pub(crate) id: usize,
    /// Its functions.
    pub(crate) functions: Vec<String>,
    /// Why they are together.
    pub(crate) reasons: Vec<String>,
}

/// One cell of the matrix.
#[derive(Debug, Serialize)]
pub(crate) struct CellRow {
    requester: String,
    target: &'static str,
    predicted: &'static str,
    seen: &'static str,
    because: String,
    evidence: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<FaultRow>,
}

#[derive(Debug, Serialize)]
struct FaultRow {
    source: String,
    address: String,
    reason: String,
}

/// The same work under one kind of IOMMU.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ComparisonRow {
    /// Which.
    pub(crate) iommu: &'static str,
    /// DMAs issued.
    pub(crate) dmas: u64,
    /// Bytes copied through bounce buffers.
    pub(crate) bytes_bounced: u64,
    /// Forbidden accesses tried.
    pub(crate) forbidden_tried: u64,
    /// Forbidden accesses that did not reach their target.
    pub(crate) forbidden_blocked: u64,
}

impl ComparisonRow {
    /// A row without figures.
    pub(crate) const fn new(iommu: &'static str) -> Self {
        Self {
            iommu,
            dmas: 0,
            bytes_bounced: 0,
            forbidden_tried: 0,
            forbidden_blocked: 0,
        }
    }
}

/// A cell that is not as it was kept.
#[derive(Debug, Serialize)]
pub(crate) struct DifferenceRow {
    /// Who.
    pub(crate) requester: String,
    /// Against what.
    pub(crate) target: &'static str,
    /// As kept.
    pub(crate) kept: Option<&'static str>,
    /// As seen.
    pub(crate) seen: Option<&'static str>,
}

impl Default for Outcome {
    /// An outcome without results.
    fn default() -> Self {
        Self {
            schema: SCHEMA,
            machine: String::new(),
            error: None,
            summary: Summary::default(),
            groups: Vec::new(),
            matrix: Vec::new(),
            comparison: Vec::new(),
            differences: None,
        }
    }
}

impl Outcome {
    /// Takes the matrix in and counts what it forbade.
    pub(crate) fn take_matrix(&mut self, cells: &[Cell]) {
        for cell in cells.iter().filter(|cell| cell.predicted == Verdict::Blocked) {
            self.summary.forbidden.add(cell.tally);
        }
        self.matrix = cells.iter().map(CellRow::from).collect();
    }
}

impl From<&Cell> for CellRow {
    fn from(cell: &Cell) -> Self {
        Self {
            requester: cell.requester.to_string(),
            target: cell.target.name(),
            predicted: cell.predicted.name(),
            seen: cell.seen.name(),
            because: cell.because.clone(),
            evidence: cell.evidence.clone(),
            fault: cell.logged.as_ref().map(|logged| FaultRow {
                source: logged.source.clone(),
                address: logged.address.clone(),
                reason: logged.reason.clone(),
            }),
        }
    }
}

impl From<Difference> for DifferenceRow {
    fn from(difference: Difference) -> Self {
        Self {
            requester: difference.requester.to_string(),
            target: difference.target.name(),
            kept: difference.kept.map(Verdict::name),
            seen: difference.seen.map(Verdict::name),
        }
    }
}

impl From<GroupInfo> for GroupRow {
    fn from(group: GroupInfo) -> Self {
        Self {
            id: group.id.0,
            functions: group.members.iter().map(ToString::to_string).collect(),
            reasons: group.reasons.iter().map(ToString::to_string).collect(),
        }
    }
}
