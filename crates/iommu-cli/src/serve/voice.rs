//! What a server says while it runs: on standard error, so that the guest's console stays clean.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iommu_serve::protocol::Refusal;
use iommu_serve::{BrokenRule, Notices, Report};
use vtd_model::Fault;

/// Faults that are printed one by one; a guest can cause any number.
const FAULTS_SHOWN: u64 = 64;
/// Findings that are printed one by one.
const FINDINGS_SHOWN: u64 = 256;

#[derive(Debug, Default)]
struct Counts {
    faults: AtomicU64,
    findings: AtomicU64,
    refusals: AtomicU64,
    /// Where the table says that the unit is; 0 before there is a table.
    base: AtomicU64,
}

/// Prints and counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Voice(Arc<Counts>);

impl Voice {
    /// Blocked requests so far.
    pub(crate) fn faults(&self) -> u64 {
        self.0.faults.load(Ordering::Relaxed)
    }

    /// Broken rules so far.
    pub(crate) fn findings(&self) -> u64 {
        self.0.findings.load(Ordering::Relaxed)
    }

    /// The table says that the unit's registers are at `base`.
    pub(crate) fn expect(&self, base: u64) {
        self.0.base.store(base, Ordering::Relaxed);
    }

    pub(crate) fn say(text: &str) {
        // Where this cannot be written, nobody listens.
        let _ = writeln!(anstream::stderr(), "iommu: {text}");
    }
}

impl Report for Voice {
    fn broken(&mut self, rule: &BrokenRule) {
        let number = self.0.findings.fetch_add(1, Ordering::Relaxed);
        if number >= FINDINGS_SHOWN {
            return;
        }
        Self::say(&format!("rule broken: {}", rule.text));
        if let Some(entry) = rule.entry {
            let before = entry
                .before
                .map_or_else(|| "not known".to_owned(), |word| format!("{word:#x}"));
            Self::say(&format!(
                "    the entry at {}: {before} when it was cached, {:#x} now",
                entry.at, entry.now
            ));
        }
        for line in &rule.trace {
            Self::say(&format!("    {line}"));
        }
    }

    fn fault(&mut self, fault: &Fault) {
        if self.0.faults.fetch_add(1, Ordering::Relaxed) < FAULTS_SHOWN {
            Self::say(&format!("blocked: {fault}"));
        }
    }
}

impl Notices for Voice {
    fn connected(&self, slot: &str) {
        Self::say(&format!("{slot}: connected"));
    }

    fn ended(&self, slot: &str, why: Option<&str>) {
        match why {
            None => Self::say(&format!("{slot}: the client closed the connection")),
            Some(why) => Self::say(&format!("{slot}: the connection ended: {why}")),
        }
    }

    fn refused(&self, slot: &str, refusal: &Refusal) {
        self.0.refusals.fetch_add(1, Ordering::Relaxed);
        Self::say(&format!("{slot}: {refusal}"));
    }

    fn placed(&self, base: u64) {
        let expected = self.0.base.load(Ordering::Relaxed);
        if expected != 0 && expected != base {
            Self::say(&format!(
                "firmware placed the unit at {base:#x}, but the table says {expected:#x}: the guest cannot find it; \
                 serve again with --unit-base {base:#x}"
            ));
        }
    }
}
