//! Which addresses a device's DMA reaches, seen from the memory.

use std::fmt;

use iommu_types::{Bdf, Iova, PAGE_SIZE, Perms};
use iommu_vfio::{Backend, Container, DmaMemory, Type1, VfioError};

use super::engine::{Engine, EngineError};

/// Bytes of one transfer.
const BYTES: u64 = 512;
/// What untouched memory holds.
const CANARY: u8 = 0xc5;

// The pages of the program's memory, and what each is for.
const SOURCE: u64 = 0;
const OWN: u64 = 1;
const READ_ONLY: u64 = 2;
const WRITE_ONLY: u64 = 3;
const TAKEN_BACK: u64 = 4;
const NEVER_MAPPED: u64 = 5;
const PAGES: u64 = 6;

/// A transfer, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What was tried.
    pub name: String,
    /// The address that the device was given.
    pub iova: Iova,
    /// Whether the device writes to memory.
    pub writes: bool,
    /// Whether data moved.
    pub moved: bool,
    /// Whether it should.
    pub expected: bool,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |yes, one, other| if yes { one } else { other };
        write!(
            f,
            "probe {} {} {:#x} {} {}",
            word(self.moved == self.expected, "right", "WRONG"),
            word(self.moved, "moved", "blocked"),
            self.iova.raw(),
            word(self.writes, "write", "read"),
            self.name
        )
    }
}

/// A device, its memory, and what was tried.
struct Bench<B: Backend, F> {
    container: Container<Type1, B>,
    engine: Engine<B>,
    memory: B::Memory,
    base: Iova,
    probes: Vec<Probe>,
    after: F,
}

/// Tries every kind of address with the function, whose group must be viable and free. `physical` tells the physical
/// address of a page of the memory, where that can be known: nothing must reach it until it is mapped there. `after`
/// is told of every probe: a kernel logs a few faults in a row only.
///
/// # Errors
/// [`EngineError`] if the device cannot be used; a transfer that is blocked is none.
pub fn run<B: Backend>(
    backend: &B,
    function: Bdf,
    physical: impl Fn(&B::Memory, u64) -> Option<Iova>,
    after: impl Fn(&Probe),
) -> Result<Vec<Probe>, EngineError> {
    let container = super::container(backend, function)?;
    let base = super::base(&container)?;
    let memory = container.allocate(PAGES * PAGE_SIZE)?;
    let engine = Engine::open(&container, function)?;
    let mut bench = Bench {
        container,
        engine,
        memory,
        base,
        probes: Vec::new(),
        after,
    };
    bench.all(physical)?;
    Ok(bench.probes)
}

/// What the source page holds: no two runs of bytes are alike, and none is the canary's.
fn pattern(salt: u8) -> Vec<u8> {
    (0..BYTES)
        .map(|at| u8::try_from(at % 191).unwrap_or(0) ^ salt)
        .collect()
}

impl<B: Backend, F: Fn(&Probe)> Bench<B, F> {
    fn all(&mut self, physical: impl Fn(&B::Memory, u64) -> Option<Iova>) -> Result<(), EngineError> {
        for (page, perms) in [
            (SOURCE, Perms::READ),
            (OWN, Perms::READ_WRITE),
            (READ_ONLY, Perms::READ),
            (WRITE_ONLY, Perms::WRITE),
            (TAKEN_BACK, Perms::READ_WRITE),
        ] {
            self.map(self.at(page), page, perms)?;
        }
        let nowhere = self.at(4096);
        self.write("into its own mapping", self.at(OWN), Some(OWN))?;
        self.write("into a read-only mapping", self.at(READ_ONLY), None)?;
        self.write("into a write-only mapping", self.at(WRITE_ONLY), Some(WRITE_ONLY))?;
        self.write("to an address that was never mapped", nowhere, None)?;
        self.write("into a mapping that will go", self.at(TAKEN_BACK), Some(TAKEN_BACK))?;
        self.container.dma_unmap(self.at(TAKEN_BACK), PAGE_SIZE)?;
        // What the IOMMU cached of it must be gone too.
        self.write("into a mapping that is gone", self.at(TAKEN_BACK), None)?;
        self.read("from a read-only mapping", self.at(READ_ONLY), Some(READ_ONLY))?;
        self.read("from a write-only mapping", self.at(WRITE_ONLY), None)?;
        self.read("from an address that was never mapped", self.at(4097), None)?;
        if let Some(target) = physical(&self.memory, NEVER_MAPPED) {
            self.write("to the physical address of the program's memory", target, None)?;
            // The aim was right: mapped at that very address, the page is hit.
            self.map(target, NEVER_MAPPED, Perms::READ_WRITE)?;
            self.write("to the same address once it is mapped", target, Some(NEVER_MAPPED))?;
            self.container.dma_unmap(target, PAGE_SIZE)?;
        }
        Ok(())
    }

    fn at(&self, page: u64) -> Iova {
        Iova::new(self.base.raw() + page * PAGE_SIZE)
    }

    fn map(&self, iova: Iova, page: u64, perms: Perms) -> Result<(), VfioError> {
        self.container
            .dma_map(iova, &self.memory, page * PAGE_SIZE, PAGE_SIZE, perms)
    }

    fn content(&self, page: u64) -> Result<Vec<u8>, VfioError> {
        let mut bytes = vec![0; usize::try_from(BYTES).unwrap_or_default()];
        self.memory.read_at(page * PAGE_SIZE, &mut bytes)?;
        Ok(bytes)
    }

    /// A pattern of its own goes into the device's buffer, the canary everywhere else.
    fn prepare(&self) -> Result<Vec<u8>, EngineError> {
        let salt = u8::try_from(self.probes.len() % 64).unwrap_or(0) << 1;
        let sent = pattern(salt);
        self.memory.write_at(SOURCE * PAGE_SIZE, &sent)?;
        self.engine.load(self.at(SOURCE), BYTES)?;
        for page in 0..PAGES {
            self.memory.write_at(page * PAGE_SIZE, &vec![CANARY; sent.len()])?;
        }
        Ok(sent)
    }

    /// The device writes to `iova`, which should change the page `hits` and no other.
    fn write(&mut self, name: &str, iova: Iova, hits: Option<u64>) -> Result<(), EngineError> {
        let sent = self.prepare()?;
        self.engine.store(iova, BYTES)?;
        // Exactly the page that was meant has changed, and is whole.
        let mut as_expected = true;
        for page in 0..PAGES {
            let content = self.content(page)?;
            as_expected &= if hits == Some(page) {
                content == sent
            } else {
                content.iter().all(|byte| *byte == CANARY)
            };
        }
        let expected = hits.is_some();
        self.done(Probe {
            name: name.to_owned(),
            iova,
            writes: true,
            moved: expected == as_expected,
            expected,
        });
        Ok(())
    }

    /// The device reads from `iova`, where the page `from` should be seen, and writes what it got to its own mapping.
    fn read(&mut self, name: &str, iova: Iova, from: Option<u64>) -> Result<(), EngineError> {
        let sent = self.prepare()?;
        let secret = pattern(0x80);
        for page in 0..PAGES {
            self.memory.write_at(page * PAGE_SIZE, &secret)?;
        }
        self.engine.load(iova, BYTES)?;
        self.memory.write_at(OWN * PAGE_SIZE, &vec![CANARY; sent.len()])?;
        self.engine.store(self.at(OWN), BYTES)?;
        self.done(Probe {
            name: name.to_owned(),
            iova,
            writes: false,
            moved: self.content(OWN)? == secret,
            expected: from.is_some(),
        });
        Ok(())
    }

    fn done(&mut self, probe: Probe) {
        (self.after)(&probe);
        self.probes.push(probe);
    }
}
