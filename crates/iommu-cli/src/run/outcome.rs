//! The result of a run as JSON and as the exit code.

use iommu_vfio::GroupInfo;
use serde::Serialize;

use super::disk::DiskRow;
use super::dma_api::{LIST, Work};
use super::expect::Difference;
use super::kind::Kind;
use super::matrix::{Cell, Tally, Verdict};

/// Version of the JSON's shape; it changes when a field changes its meaning or goes away.
const SCHEMA: &str = "portcullis-run-1";

/// Everything that a run reports.
#[derive(Debug, Serialize)]
pub(crate) struct Outcome {
    schema: &'static str,
    /// What it ran on: `software`, or `linux` for a device of this machine.
    pub(crate) backend: &'static str,
    /// What stands between devices and memory: `VT-d`, `aperture` or `none`; `host` where the kernel's IOMMU does.
    pub(crate) iommu: &'static str,
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
    /// The same work side by side: without IOMMU, with an aperture if there is room for one, with VT-d if it was run.
    pub(crate) comparison: Vec<ComparisonRow>,
    /// What a driver did with a disk (`--disk`, `--device`); nothing without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) disk: Option<DiskRow>,
    /// What is not as it was kept (`--expect`); nothing without such a file.
    pub(crate) differences: Option<Vec<DifferenceRow>>,
}

/// The figures to look at first.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Summary {
    /// Every result equals its prediction, and the kept matrix where one was given.
    pub(crate) ok: bool,
    /// Every result equals its prediction, whatever was kept.
    pub(crate) as_predicted: bool,
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
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct ComparisonRow {
    /// Which.
    pub(crate) iommu: &'static str,
    /// Cells of its access matrix that were reached.
    pub(crate) cells_allowed: u64,
    /// Cells that were not.
    pub(crate) cells_blocked: u64,
    /// DMAs issued by the DMA API's work and by the forbidden accesses.
    pub(crate) dmas: u64,
    /// Pages of the DMA API's scatter list.
    pub(crate) scatter_pages: u64,
    /// Segments that the scatter list became.
    pub(crate) scatter_segments: u64,
    /// Bytes copied through bounce buffers.
    pub(crate) bytes_bounced: u64,
    /// How often the DMA API waited for the hardware to forget a mapping.
    pub(crate) invalidations: u64,
    /// Forbidden accesses tried: those that the groups and mappings of the VT-d machine forbid.
    pub(crate) forbidden_tried: u64,
    /// Forbidden accesses that did not reach their target.
    pub(crate) forbidden_blocked: u64,
    /// Blocked accesses of the matrix that left a record with the right source and address.
    pub(crate) faults_recorded: u64,
}

impl ComparisonRow {
    /// A row without figures.
    pub(crate) fn new(kind: Kind) -> Self {
        Self {
            iommu: kind.name(),
            ..Self::default()
        }
    }

    /// Takes in what the DMA API did.
    pub(crate) fn take_work(&mut self, work: &Work) {
        self.dmas += work.dmas;
        self.scatter_pages = LIST;
        self.scatter_segments = work.segments;
        self.bytes_bounced = work.bounced;
        self.invalidations = work.invalidations;
    }

    /// Takes in a matrix.
    pub(crate) fn take_cells(&mut self, cells: &[Cell]) {
        let count = |verdict| u64::try_from(cells.iter().filter(|c| c.seen == verdict).count()).unwrap_or(u64::MAX);
        self.cells_allowed = count(Verdict::Allowed);
        self.cells_blocked = count(Verdict::Blocked);
        self.faults_recorded = cells.iter().map(|cell| u64::from(cell.tally.recorded)).sum();
    }

    /// Takes in forbidden accesses.
    pub(crate) fn take_forbidden(&mut self, tried: u64, blocked: u64) {
        self.dmas += tried;
        self.forbidden_tried = tried;
        self.forbidden_blocked = blocked;
    }
}

/// A cell that is not as it was kept.
#[derive(Clone, Debug, Serialize)]
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
            backend: "software",
            iommu: Kind::Vtd.name(),
            machine: String::new(),
            error: None,
            summary: Summary::default(),
            groups: Vec::new(),
            matrix: Vec::new(),
            comparison: Vec::new(),
            disk: None,
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
