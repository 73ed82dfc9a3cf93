//! What people are told while a server runs.

use std::collections::VecDeque;

use vtd_model::{AccessWidth, EventMessage, Fault, Finding, Request, Translation};

use crate::remapper::describe;

/// Register accesses that are kept for the report of a broken rule.
const HISTORY: usize = 16;

/// Where a server says what happens. Calls come from any thread that drives the unit, while it is locked: be quick.
pub trait Report: Send {
    /// The sanitizer found a broken rule of the programming protocol; `trace` is what was done to the unit before, oldest
    /// first.
    fn finding(&mut self, finding: &Finding, text: &str, trace: &[String]);

    /// A request was blocked.
    fn fault(&mut self, fault: &Fault);
}

/// Tells nobody.
impl Report for () {
    fn finding(&mut self, _: &Finding, _: &str, _: &[String]) {}
    fn fault(&mut self, _: &Fault) {}
}

/// The last accesses to the unit, and who is told of trouble.
pub(crate) struct Journal {
    recent: VecDeque<String>,
    report: Box<dyn Report>,
}

impl Journal {
    pub(crate) fn new(report: Box<dyn Report>) -> Self {
        Self {
            recent: VecDeque::with_capacity(HISTORY),
            report,
        }
    }

    fn note(&mut self, line: String) {
        if self.recent.len() == HISTORY {
            self.recent.pop_front();
        }
        self.recent.push_back(line);
    }

    pub(crate) fn read(&mut self, offset: u32, width: AccessWidth, value: u64) {
        self.note(format!("read{} {offset:#x} -> {value:#x}", width.bytes() * 8));
    }

    pub(crate) fn write(&mut self, offset: u32, width: AccessWidth, value: u64) {
        self.note(format!("write{} {offset:#x} <- {value:#x}", width.bytes() * 8));
    }

    pub(crate) fn reset(&mut self) {
        self.note("reset".to_owned());
    }

    pub(crate) fn event(&mut self, message: EventMessage) {
        self.note(format!("interrupt {:#x} <- {:#x}", message.address, message.data));
    }

    pub(crate) fn dma(&mut self, _request: &Request, answer: &Result<Translation, Fault>) {
        if let Err(fault) = answer {
            self.report.fault(fault);
        }
    }

    pub(crate) fn finding(&mut self, finding: &Finding) {
        let trace: Vec<String> = self.recent.iter().cloned().collect();
        self.report.finding(finding, &describe(finding), &trace);
    }
}
