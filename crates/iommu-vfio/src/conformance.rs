//! The rules of type 1, version 2, as a list of cases that any backend must answer alike.
//!
//! [`run`] works on whatever a [`Backend`] stands on: the machine in software in a test of this process, or Linux inside
//! a guest, where a small program calls it and prints the results. It is written from the rules and judges by what a
//! user sees: success, error number, bytes unmapped, pages dirty.
//!
//! Where kernels differ among themselves a case accepts each of their answers and names one of [`EXCEPTIONS`]; the last of
//! them is about what DMA reaches, which the cases do not try.

mod dirty;
mod map;
mod owner;
mod unmap;

use std::fmt;

use iommu_types::{AddrRange, Bdf, Iova, PAGE_SIZE, Perms};

use crate::backend::{Backend, Type1Info};
use crate::container::{Container, Type1};
use crate::error::{Errno, VfioError};
use crate::group::Group;

/// Where kernels or backends answer differently, with the reason; cases name them by position, from 1.
pub const EXCEPTIONS: [&str; 4] = [
    "a range that passes the end of the 64-bit space is EINVAL up to Linux 6.17 and EOVERFLOW since; this crate says EOVERFLOW in software",
    "kernels before 5.10 do not tell how many mappings are left, so a limit cannot be tried",
    "UNMAP_DMA of a range that ends with the 64-bit space unmaps nothing up to Linux 6.17, which computes its end as 0; mappings go since, and in software",
    "Linux lets devices read what is mapped for writing alone, since its second-stage entries have both rights; in software such a read is blocked",
];

/// Bytes that a case can map.
const MEMORY: u64 = 4 << 20;
/// Bytes of addresses around [`Bench::base`] that can be mapped.
const ROOM: u64 = 64 << 20;
/// Most mappings that a case makes to reach a limit.
const MOST_MAPPINGS: u32 = 1 << 17;

/// What came of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As the rule has it.
    Passed,
    /// The backend cannot be asked; why not.
    Skipped(String),
    /// Otherwise; what was expected and what came.
    Failed(String),
}

/// A case and what came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaseResult {
    /// What was tried.
    pub name: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

impl fmt::Display for CaseResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.outcome {
            Outcome::Passed => write!(f, "ok      {}", self.name),
            Outcome::Skipped(why) => write!(f, "skipped {}: {why}", self.name),
            Outcome::Failed(why) => write!(f, "FAILED  {}: {why}", self.name),
        }
    }
}

/// What ends a case early.
enum Stop {
    Failed(String),
    Skipped(String),
}

impl From<VfioError> for Stop {
    fn from(error: VfioError) -> Self {
        Self::Failed(format!("{} ({error})", error.errno()))
    }
}

type Judged = Result<(), Stop>;

/// One case.
struct Case<B: Backend> {
    name: &'static str,
    run: fn(&Bench<B>) -> Judged,
}

const fn case<B: Backend>(name: &'static str, run: fn(&Bench<B>) -> Judged) -> Case<B> {
    Case { name, run }
}

/// A container with one device, nothing mapped, and memory to map.
struct Bench<B: Backend> {
    backend: B,
    function: Bdf,
    container: Container<Type1, B>,
    info: Type1Info,
    memory: B::Memory,
    /// An address from which [`ROOM`] bytes can be mapped, a multiple of 1 GiB.
    base: u64,
}

/// Runs every case with the group of `function`, which must be viable and free. Each case gets a container of its own.
#[must_use]
pub fn run<B: Backend>(backend: &B, function: Bdf) -> Vec<CaseResult> {
    cases::<B>()
        .into_iter()
        .map(|case| {
            let judged = Bench::new(backend, function).and_then(|bench| {
                let judged = (case.run)(&bench);
                bench.finish().and(judged)
            });
            let outcome = match judged {
                Ok(()) => Outcome::Passed,
                Err(Stop::Failed(why)) => Outcome::Failed(why),
                Err(Stop::Skipped(why)) => Outcome::Skipped(why),
            };
            CaseResult {
                name: case.name,
                outcome,
            }
        })
        .collect()
}

/// The names of all cases, in the order in which [`run`] goes through them.
#[must_use]
pub fn names<B: Backend>() -> Vec<&'static str> {
    cases::<B>().iter().map(|case| case.name).collect()
}

fn cases<B: Backend>() -> Vec<Case<B>> {
    let mut all = map::cases();
    all.extend(unmap::cases());
    all.extend(dirty::cases());
    all.extend(owner::cases());
    all
}

impl<B: Backend> Bench<B> {
    fn new(backend: &B, function: Bdf) -> Result<Self, Stop> {
        let mut container = Container::open(backend)?;
        let group = Group::open(backend, backend.group_of(function)?)?;
        container
            .attach(group.viable().map_err(VfioError::from)?)
            .map_err(VfioError::from)?;
        let container = container.set_iommu().map_err(VfioError::from)?;
        let info = container.info()?;
        let memory = container.allocate(MEMORY)?;
        // The first GiB that is free for the whole room on both sides of a case's addresses.
        let gib = 1u64 << 30;
        let fits = |base: &u64| {
            let wanted = AddrRange::from_base_len(Iova::new(*base), ROOM);
            wanted.is_some_and(|wanted| info.ranges.is_empty() || info.ranges.iter().any(|range| range.covers(wanted)))
        };
        let base = (1..512).map(|n| n * gib).find(fits);
        let base = base.ok_or_else(|| Stop::Skipped("no GiB with room among the valid ranges".to_owned()))?;
        Ok(Self {
            backend: backend.clone(),
            function,
            container,
            info,
            memory,
            base,
        })
    }

    /// Leaves nothing behind.
    fn finish(self) -> Judged {
        let Self { container, memory, .. } = self;
        container.dma_unmap_all()?;
        container.close()?;
        crate::DmaMemory::give_back(memory).map_err(|(error, _)| error)?;
        Ok(())
    }

    /// An address of the case: `page` pages into its room.
    fn at(&self, page: u64) -> Iova {
        Iova::new(self.base + page * PAGE_SIZE)
    }

    fn map(&self, page: u64, pages: u64) -> Result<(), VfioError> {
        self.map_at(self.at(page), pages * PAGE_SIZE)
    }

    fn map_at(&self, iova: Iova, size: u64) -> Result<(), VfioError> {
        self.container.dma_map(iova, &self.memory, 0, size, Perms::READ_WRITE)
    }

    fn unmap(&self, page: u64, pages: u64) -> Result<u64, VfioError> {
        self.container.dma_unmap(self.at(page), pages * PAGE_SIZE)
    }

    /// Fails unless exactly these runs of pages are mapped, in the room: each run is one or more whole mappings, and
    /// nothing is between them. Unmaps them.
    fn exactly(&self, runs: &[(u64, u64)]) -> Judged {
        for (page, pages) in runs {
            // Mapped: another mapping of any page of it is refused.
            for page in [*page, page + pages - 1] {
                refused(self.map(page, 1), &[Errno::Eexist])?;
            }
            same("bytes unmapped", self.unmap(*page, *pages)?, pages * PAGE_SIZE)?;
        }
        same("bytes mapped besides", self.container.dma_unmap_all()?, 0)
    }

    /// The last address that can be mapped.
    fn last(&self) -> Result<Iova, Stop> {
        let last = self.info.ranges.last().map(|range| range.last());
        last.filter(|last| *last < Iova::MAX)
            .ok_or_else(|| Stop::Skipped("everything can be mapped".to_owned()))
    }
}

/// Fails unless `result` is an error with one of these numbers.
fn refused<T: fmt::Debug>(result: Result<T, VfioError>, expected: &[Errno]) -> Judged {
    match result {
        Err(error) if expected.contains(&error.errno()) => Ok(()),
        Err(error) => Err(Stop::Failed(format!(
            "expected {expected:?}, got {}: {error}",
            error.errno()
        ))),
        Ok(value) => Err(Stop::Failed(format!("expected {expected:?}, got {value:?}"))),
    }
}

/// Fails unless both are the same.
fn same<T: fmt::Debug + PartialEq>(what: &str, got: T, expected: T) -> Judged {
    if got == expected {
        Ok(())
    } else {
        Err(Stop::Failed(format!("{what}: expected {expected:?}, got {got:?}")))
    }
}

/// Answers to a range that passes the end of the space: exception 1.
const WRAPS: [Errno; 2] = [Errno::Einval, Errno::Eoverflow];
