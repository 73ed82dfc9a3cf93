//! Writing a trace while a unit runs.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use iommu_types::{BusError, HostPhys, SystemMemory};
use vtd_model::UnitConfig;

use super::record::{Effect, Operation, Record, head};

/// Bytes of records that are written at once. An operation that reads more than fits is written in parts.
const BUFFER: usize = 1 << 16;

/// A trace that is being written. An error ends it; [`Self::finish`] says so.
///
/// Each operation is handed to the operating system whole, so that the file can be replayed whenever the process ended.
#[derive(Debug)]
pub struct TraceFile {
    file: BufWriter<File>,
    failed: Option<io::Error>,
}

impl TraceFile {
    /// Begins the trace of a unit like `config` in a new file.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn create(path: &Path, config: &UnitConfig) -> io::Result<Self> {
        let mut file = BufWriter::with_capacity(BUFFER, File::create(path)?);
        file.write_all(head(config).as_bytes())?;
        file.flush()?;
        Ok(Self { file, failed: None })
    }

    pub(crate) fn put(&mut self, record: &Record) {
        if self.failed.is_none() {
            self.failed = writeln!(self.file, "{record}").err();
        }
    }

    /// Writes what was done, with the words that were read for it before and what came of it after.
    pub(crate) fn operation(&mut self, watched: &Watched, operation: Operation) {
        for (at, value) in &watched.words {
            self.put(&Record::Word(*at, *value));
        }
        self.put(&Record::Do(operation));
        for effect in &watched.effects {
            self.put(&Record::Did(effect.clone()));
        }
    }

    /// Hands everything to the operating system.
    pub(crate) fn flush(&mut self) {
        if self.failed.is_none() {
            self.failed = self.file.flush().err();
        }
    }

    /// Ends the trace.
    ///
    /// # Errors
    /// The first thing that could not be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush();
        self.failed.map_or(Ok(()), Err)
    }
}

/// What a unit did with memory during one operation.
#[derive(Debug, Default)]
pub(crate) struct Watched {
    /// Words that it read before it changed them, in order.
    pub(crate) words: Vec<(HostPhys, u64)>,
    /// What it did.
    pub(crate) effects: Vec<Effect>,
    seen: BTreeSet<HostPhys>,
}

impl Watched {
    /// The word that was read last: for a walk that ends well, the entry that maps the page.
    pub(crate) fn last_word(&self) -> Option<(HostPhys, u64)> {
        self.words.last().copied()
    }

    fn read(&mut self, at: HostPhys, value: u64) {
        if self.seen.insert(at) {
            self.words.push((at, value));
        }
    }

    fn wrote(&mut self, at: HostPhys, effect: Effect) {
        let word = HostPhys::new(at.raw() & !7);
        self.seen.insert(word);
        self.effects.push(effect);
    }
}

/// Memory that notes what is done with it.
pub(crate) struct Recorder<'m, M> {
    memory: &'m M,
    /// `None`: nobody wants to know.
    watched: Option<RefCell<Watched>>,
}

impl<'m, M: SystemMemory> Recorder<'m, M> {
    pub(crate) fn new(memory: &'m M, wanted: bool) -> Self {
        Self {
            memory,
            watched: wanted.then(RefCell::default),
        }
    }

    pub(crate) fn finish(self) -> Watched {
        self.watched.map(RefCell::into_inner).unwrap_or_default()
    }

    fn note(&self, what: impl FnOnce(&mut Watched)) {
        if let Some(watched) = &self.watched {
            what(&mut watched.borrow_mut());
        }
    }
}

impl<M: SystemMemory> SystemMemory for Recorder<'_, M> {
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        let value = self.memory.read_u64(at)?;
        self.note(|watched| watched.read(at, value));
        Ok(value)
    }

    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        self.memory.write_u64(at, value)?;
        self.note(|watched| watched.wrote(at, Effect::Set(at, value)));
        Ok(())
    }

    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        self.memory.write_u32(at, value)?;
        self.note(|watched| watched.wrote(at, Effect::Set32(at, value)));
        Ok(())
    }

    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
        let before = self.memory.compare_exchange_u64(at, current, new)?;
        self.note(|watched| {
            watched.read(at, before);
            if before == current {
                watched.wrote(at, Effect::Set(at, new));
            }
        });
        Ok(before)
    }

    /// Word by word: that is how units read their structures, and how a trace holds them.
    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        if self.watched.is_none() {
            return self.memory.read(at, into);
        }
        let mut place = at;
        for part in into.chunks_mut(8) {
            let word = self.read_u64(HostPhys::new(place.raw() & !7))?.to_le_bytes();
            let skip = usize::try_from(place.raw() & 7).map_err(|_| BusError { at: place })?;
            match (skip, part.len()) {
                (0, len) => part.copy_from_slice(word.get(..len).unwrap_or_default()),
                _ => self.memory.read(place, part)?,
            }
            place = place.checked_add(8).unwrap_or(place);
        }
        Ok(())
    }

    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        self.memory.write(at, from)
    }
}
