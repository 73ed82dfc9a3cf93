//! What people are told while a server runs, and the memory behind it.

use std::collections::{BTreeMap, VecDeque};

use iommu_types::{Access, HostPhys, Iova, SourceId};
use vtd_model::{AccessWidth, EventMessage, Fault, Finding, Request, RequestKind, Translation};

use crate::remapper::describe;
use crate::trace::{Answer, Effect, Operation, Record, TraceFile, Watched};

/// Register accesses that are kept for the report of a broken rule.
const HISTORY: usize = 16;
/// Pages whose entries are remembered for the report of a broken rule.
const ENTRIES_MAX: usize = 1 << 14;

/// A rule of the programming protocol that the guest's driver broke.
#[derive(Clone, Debug)]
pub struct BrokenRule {
    /// What the sanitizer found.
    pub finding: Finding,
    /// The same for people.
    pub text: String,
    /// The entry that maps the page, where one is concerned: its address, what it was when the unit used it first, and what
    /// it is now, as far as they are known.
    pub entry: Option<Entry>,
    /// What was done to the unit before, oldest first.
    pub trace: Vec<String>,
}

/// An entry of a table then and now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub at: HostPhys,
    /// What it was when the translation was made.
    pub before: Option<u64>,
    /// What it is now.
    pub now: u64,
}

/// Where a server says what happens. Calls come from any thread that drives the unit, while it is locked: be quick.
pub trait Report: Send {
    /// The sanitizer found a broken rule.
    fn broken(&mut self, rule: &BrokenRule);

    /// A request was blocked.
    fn fault(&mut self, fault: &Fault);
}

/// Tells nobody.
impl Report for () {
    fn broken(&mut self, _: &BrokenRule) {}
    fn fault(&mut self, _: &Fault) {}
}

/// The last accesses to the unit, the entries it used, the trace, and who is told of trouble.
pub(crate) struct Journal {
    recent: VecDeque<String>,
    entries: BTreeMap<(SourceId, Iova), (HostPhys, u64)>,
    pub(crate) trace: Option<TraceFile>,
    report: Box<dyn Report>,
}

impl Journal {
    pub(crate) fn new(report: Box<dyn Report>) -> Self {
        Self {
            recent: VecDeque::with_capacity(HISTORY),
            entries: BTreeMap::new(),
            trace: None,
            report,
        }
    }

    fn note(&mut self, line: String) {
        if self.recent.len() == HISTORY {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }

    /// A register was read or written, or the unit was reset.
    pub(crate) fn operation(&mut self, operation: Operation, watched: &Watched) {
        let line = match operation {
            Operation::Read { offset, width, value } => access("read", offset, width, value),
            Operation::Write { offset, width, value } => access("write", offset, width, value),
            Operation::Dma { .. } | Operation::Reset => Record::Do(operation).to_string(),
        };
        self.note(line);
        if operation == Operation::Reset {
            self.entries.clear();
        }
        if let Some(trace) = &mut self.trace {
            trace.operation(watched, operation);
        }
    }

    pub(crate) fn event(&mut self, message: EventMessage) {
        self.note(format!("interrupt {:#x} <- {:#x}", message.address, message.data));
        self.effect(Effect::Event(message.address, message.data));
    }

    /// Something that the unit did after the operation itself.
    pub(crate) fn effect(&mut self, effect: Effect) {
        if let Some(trace) = &mut self.trace {
            trace.put(&Record::Did(effect));
        }
    }

    /// A request was answered; `watched` is what was read for it.
    pub(crate) fn dma(&mut self, request: &Request, answer: &Result<Translation, Fault>, watched: &Watched) {
        if let Some(trace) = &mut self.trace {
            let answer = match answer {
                Ok(translation) => Answer::Reaches(translation.phys),
                Err(fault) => Answer::Blocked(fault.reason),
            };
            let operation = Operation::Dma {
                source: request.source,
                access: purpose(request),
                address: request.address,
                len: request.len,
                kind: request.kind,
                answer,
            };
            trace.operation(watched, operation);
        }
        // A translation request that is refused is no harm: the request itself follows untranslated.
        if let (Err(fault), false) = (answer, request.kind == RequestKind::Translation) {
            self.report.fault(fault);
        }
    }

    /// The translation was fine: what maps it now is what a later report calls before.
    pub(crate) fn remember(&mut self, request: &Request, translation: &Translation, watched: &Watched) {
        if let Some(entry) = watched.last_word()
            && (self.entries.len() < ENTRIES_MAX || self.entries.contains_key(&key(request, translation)))
        {
            self.entries.insert(key(request, translation), entry);
        }
    }

    pub(crate) fn broken(&mut self, finding: Finding, used: Option<&Translation>, watched: &Watched) {
        let before = finding
            .request
            .zip(used)
            .and_then(|(request, used)| self.entries.get(&key(&request, used)).copied());
        let entry = match (watched.last_word(), before) {
            (Some((at, now)), before) => Some(Entry {
                at,
                before: before.filter(|(place, _)| *place == at).map(|(_, value)| value),
                now,
            }),
            (None, _) => None,
        };
        let text = describe(&finding);
        self.effect(Effect::Broken(finding.rule.name().to_owned(), text.clone()));
        let rule = BrokenRule {
            finding,
            text,
            entry: entry.filter(|_| finding.request.is_some()),
            trace: self.recent.iter().cloned().collect(),
        };
        self.report.broken(&rule);
    }

    /// What was done is complete: from here on the trace survives whatever happens to this process.
    pub(crate) fn settle(&mut self) {
        if let Some(trace) = &mut self.trace {
            trace.flush();
        }
    }
}

/// What a request is for: translation requests are reads that say so by their no-write flag.
const fn purpose(request: &Request) -> Access {
    match (request.kind, request.no_write) {
        (RequestKind::Translation, false) => Access::Write,
        _ => request.access,
    }
}

fn key(request: &Request, translation: &Translation) -> (SourceId, Iova) {
    (request.source, translation.page.first())
}

fn access(what: &str, offset: u32, width: AccessWidth, value: u64) -> String {
    format!("{what}{} {offset:#x} {value:#x}", width.bytes() * 8)
}
