//! Doing again what a trace says, and comparing.

use std::cell::RefCell;
use std::collections::BTreeMap;

use iommu_types::{Access, BusError, HostPhys, SystemMemory};
use vtd_model::{Request, RequestKind, Unit};

use super::record::{Answer, Effect, Operation, Record, Story, TraceError};

/// Steps that one operation may set off.
const STEPS_MAX: usize = 1 << 17;
/// Differences that are kept; a run that has gone astray differs in everything.
const DIFFERENCES_MAX: usize = 256;

/// Where a replay differs from its trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The line of the operation.
    pub line: usize,
    /// What was different.
    pub what: String,
}

/// What a replay came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Operations done.
    pub operations: usize,
    /// Where it differs from the trace, up to 256 of them.
    pub differences: Vec<Difference>,
    /// Rules that were broken: the line of the operation, the rule's name, and text for people.
    pub broken: Vec<(usize, String, String)>,
}

/// Does everything again that `story` says, with a unit of its own, and compares what comes of it. With `sanitizer`, broken
/// rules come out too, whether the trace has them or not.
///
/// # Errors
/// [`TraceError::Unit`] if the unit is one that this model cannot be.
pub fn replay(story: &Story, sanitizer: bool) -> Result<Outcome, TraceError> {
    let config = story.config(sanitizer)?;
    let mut unit = Unit::new(config);
    let memory = Image::default();
    let mut outcome = Outcome::default();
    let mut records = story.records.iter().peekable();
    while let Some((line, record)) = records.next() {
        let operation = match record {
            Record::Word(at, value) => {
                memory.words.borrow_mut().insert(*at, *value);
                continue;
            }
            // Effects are taken with their operation; those before the first have none.
            Record::Did(_) => continue,
            Record::Do(operation) => *operation,
        };
        let mut expected = Vec::new();
        while let Some((_, Record::Did(effect))) = records.peek() {
            expected.push(effect.clone());
            records.next();
        }
        outcome.operations += 1;
        let mut differ = |what: String| {
            if outcome.differences.len() < DIFFERENCES_MAX {
                outcome.differences.push(Difference { line: *line, what });
            }
        };
        if let Some(what) = perform(&mut unit, &memory, operation) {
            differ(what);
        }
        for _ in 0..STEPS_MAX {
            while let Some(what) = unit.take_device_invalidation() {
                unit.complete_device_invalidation(&memory, what.source, what.tag);
            }
            if !unit.step(&memory) {
                break;
            }
        }
        let mut effects = memory.take_effects();
        while let Some(message) = unit.take_message() {
            effects.push(Effect::Event(message.address, message.data));
        }
        for at in memory.unknown.borrow_mut().drain(..) {
            differ(format!("the unit reads {at}, which the trace does not have"));
        }
        compare(&expected, &effects, &mut differ);
        while let Some(finding) = unit.take_finding() {
            let text = crate::remapper::describe(&finding);
            outcome.broken.push((*line, finding.rule.name().to_owned(), text));
        }
    }
    Ok(outcome)
}

/// Does one operation; what differs.
fn perform(unit: &mut Unit, memory: &Image, operation: Operation) -> Option<String> {
    match operation {
        Operation::Read { offset, width, value } => {
            let read = unit.read(offset, width);
            (read != value).then(|| format!("register {offset:#x} reads {read:#x}, in the trace {value:#x}"))
        }
        Operation::Write { offset, width, value } => {
            unit.write(memory, offset, width, value);
            None
        }
        Operation::Dma {
            source,
            access,
            address,
            len,
            kind,
            answer,
        } => {
            let request = match (kind, access) {
                (RequestKind::Translation, Access::Read) => {
                    Request::read(source, address, len).with_kind(kind).with_no_write()
                }
                (RequestKind::Translation, _) => Request::read(source, address, len).with_kind(kind),
                _ => Request::new(source, address, len, access).with_kind(kind),
            };
            let found = match unit.dma(memory, &request) {
                Ok(translation) => Answer::Reaches(translation.phys),
                Err(fault) => Answer::Blocked(fault.reason),
            };
            (found != answer).then(|| format!("the DMA ends with {found:?}, in the trace {answer:?}"))
        }
        Operation::Reset => {
            *unit = Unit::new(*unit.config());
            None
        }
    }
}

/// Effects have to be the same, apart from findings: these depend on what watches.
fn compare(expected: &[Effect], found: &[Effect], differ: &mut impl FnMut(String)) {
    let counts = |effects: &[Effect], effect: &Effect| effects.iter().filter(|other| *other == effect).count();
    let real = |effect: &&Effect| !matches!(effect, Effect::Broken(..));
    for effect in expected.iter().filter(real) {
        if counts(found, effect) < counts(expected, effect) {
            differ(format!(
                "the trace has {}, the replay has not",
                Record::Did(effect.clone())
            ));
        }
    }
    for effect in found {
        if counts(expected, effect) < counts(found, effect) {
            differ(format!(
                "the replay has {}, the trace has not",
                Record::Did(effect.clone())
            ));
        }
    }
}

/// Memory as far as the trace has it.
#[derive(Default)]
struct Image {
    words: RefCell<BTreeMap<HostPhys, u64>>,
    effects: RefCell<Vec<Effect>>,
    unknown: RefCell<Vec<HostPhys>>,
}

impl Image {
    fn take_effects(&self) -> Vec<Effect> {
        self.effects.take()
    }

    fn merge(&self, at: HostPhys, from: &[u8]) {
        let word = HostPhys::new(at.raw() & !7);
        let mut words = self.words.borrow_mut();
        let mut bytes = words.get(&word).copied().unwrap_or(0).to_le_bytes();
        let skip = usize::try_from(at.raw() & 7).unwrap_or(0);
        for (byte, new) in bytes.iter_mut().skip(skip).zip(from) {
            *byte = *new;
        }
        words.insert(word, u64::from_le_bytes(bytes));
    }
}

impl SystemMemory for Image {
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        if let Some(value) = self.words.borrow().get(&at) {
            return Ok(*value);
        }
        self.unknown.borrow_mut().push(at);
        Err(BusError { at })
    }

    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        self.merge(at, &value.to_le_bytes());
        self.effects.borrow_mut().push(Effect::Set(at, value));
        Ok(())
    }

    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        self.merge(at, &value.to_le_bytes());
        self.effects.borrow_mut().push(Effect::Set32(at, value));
        Ok(())
    }

    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
        let before = self.read_u64(at)?;
        if before == current {
            self.write_u64(at, new)?;
        }
        Ok(before)
    }

    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        let mut place = at;
        for byte in into {
            let word = self.read_u64(HostPhys::new(place.raw() & !7))?.to_le_bytes();
            let skip = usize::try_from(place.raw() & 7).unwrap_or(0);
            *byte = word.get(skip).copied().unwrap_or(0);
            place = place.checked_add(1).ok_or(BusError { at: place })?;
        }
        Ok(())
    }

    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        let mut place = at;
        for byte in from {
            self.merge(place, &[*byte]);
            place = place.checked_add(1).ok_or(BusError { at: place })?;
        }
        Ok(())
    }
}
