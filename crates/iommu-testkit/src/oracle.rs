//! A remapping unit without caches, registers or cleverness: what the tables say, read in the specification's
//! order with plain numbers.
//!
//! It is meant to judge `vtd-model` and emulators, so it shares nothing with them: it knows bit positions by
//! itself. Each step names the condition of the specification's fault tables (VT-d §7.1.3: `LRT.2`, `SGN.5` …)
//! or the structure (VT-d §9) it reads.
//!
//! It never writes memory. Accessed and dirty flags come back as a list of bits to be set.
//!
//! # Choices where the specification leaves freedom
//!
//! * RTADDR checks come in the order RTA.1.1 … RTA.1.4, RTA.4, RTA.2, RTA.5.
//! * Legacy context entry: reserved bits, then TT, then AW, then blocking of T and X requests.
//! * Scalable context entry: SGN.10 after SCT.3, then SCT.4 to SCT.10 in table order.
//! * Paging entries: reserved bits are judged level by level, permissions after the whole walk.
//! * SRT.3 looks only at the half of the root entry that the request uses.
//! * Nested: first-stage permissions and flags come before the second-stage walk of the final page.
//! * IRTE: source validation comes before the check of reserved fields; `SVT = 3` is a reserved field (24h).
//! * Reserved memory-type codes (EMT, PAT values 2 and 3) are not faults.

mod hpt;
mod interrupt;
mod legacy;
mod scalable;
mod stages;
mod unit;

use iommu_types::SystemMemory;

pub use interrupt::{InterruptOutcome, OracleInterrupt, OracleInterruptUnit, Posting, remap_interrupt};
pub use unit::OracleUnit;

/// What kind of request reaches the unit (PCIe address type).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OracleKind {
    /// Untranslated.
    U,
    /// A translation request of a device-TLB.
    T,
    /// Translated: the address comes out of a device-TLB.
    X,
}

/// What the request does with memory; of no meaning for translation requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OracleAccess {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Both, in one step.
    Atomic,
}

impl From<iommu_types::Access> for OracleAccess {
    fn from(access: iommu_types::Access) -> Self {
        match access {
            iommu_types::Access::Read => Self::Read,
            iommu_types::Access::Write => Self::Write,
            iommu_types::Access::Atomic => Self::Atomic,
        }
    }
}

/// One request; it must not cross a 4 KiB boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OracleRequest {
    /// The requester: bus 15:8, device 7:3, function 2:0.
    pub sid: u16,
    /// The PASID of the request's prefix.
    pub pasid: Option<u32>,
    /// The first byte.
    pub address: u64,
    /// Bytes moved; matters in the interrupt range only.
    pub len: u32,
    /// Untranslated, translation or translated.
    pub kind: OracleKind,
    /// Read, write or both.
    pub access: OracleAccess,
    /// A read of no bytes.
    pub zero_length: bool,
    /// Privileged mode requested (prefix bit PR); of no meaning without PASID.
    pub privileged: bool,
    /// Execution requested (prefix bit); of no meaning without PASID.
    pub execute: bool,
    /// A translation request's no-write flag.
    pub no_write: bool,
}

impl OracleRequest {
    /// An untranslated request of eight bytes without PASID.
    #[must_use]
    pub const fn new(sid: u16, address: u64, access: OracleAccess) -> Self {
        Self {
            sid,
            pasid: None,
            address,
            len: 8,
            kind: OracleKind::U,
            access,
            zero_length: false,
            privileged: false,
            execute: false,
            no_write: false,
        }
    }

    /// A translation request without PASID.
    #[must_use]
    pub const fn translation(sid: u16, address: u64) -> Self {
        let mut request = Self::new(sid, address, OracleAccess::Read);
        request.kind = OracleKind::T;
        request
    }

    /// A translated request without PASID.
    #[must_use]
    pub const fn translated(sid: u16, address: u64, access: OracleAccess) -> Self {
        let mut request = Self::new(sid, address, access);
        request.kind = OracleKind::X;
        request
    }

    /// The request with a PASID.
    #[must_use]
    pub const fn with_pasid(mut self, pasid: u32) -> Self {
        self.pasid = Some(pasid);
        self
    }

    /// Whether the answer must allow reading.
    fn reads(&self) -> bool {
        !matches!(self.access, OracleAccess::Write)
    }

    /// Whether the answer must allow writing.
    fn writes(&self) -> bool {
        !matches!(self.access, OracleAccess::Read)
    }
}

/// How the requester hears of a fault (VT-d §7.1.3, columns of the fault table).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Response {
    /// Unsupported request; a write is dropped.
    UnsupportedRequest,
    /// Completer abort.
    CompleterAbort,
}

/// What comes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OracleOutcome {
    /// The access goes to host memory.
    Pass {
        /// The host address of the request's first byte.
        host: u64,
        /// Base-2 logarithm of the smallest page on the way; 12 where nothing was translated.
        page_shift: u32,
        /// The mapping allows reading.
        read: bool,
        /// The mapping allows writing.
        write: bool,
    },
    /// A translation request completes with success.
    Completion {
        /// The host address of the request's address; 0 if no right is granted.
        host: u64,
        /// As in [`OracleOutcome::Pass`].
        page_shift: u32,
        /// R.
        read: bool,
        /// W.
        write: bool,
        /// U: the range may only be accessed untranslated.
        untranslated_only: bool,
    },
    /// The request is blocked and a fault is logged (unless suppressed).
    Fault {
        /// The specification's fault reason.
        reason: u8,
        /// FPD kept a qualified fault out of the log.
        suppressed: bool,
        /// The condition in the specification's fault tables.
        condition: &'static str,
        /// What the requester is told.
        response: Response,
    },
    /// A write to the interrupt range: [`remap_interrupt`] decides.
    Interrupt,
    /// A zero-length read of the interrupt range: completes with undefined data, no memory is touched.
    NoData,
    /// Unsupported request without a logged fault.
    Refused,
}

/// Bits that hardware sets in a paging entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlagUpdate {
    /// Host address of the entry.
    pub at: u64,
    /// The bits, none of them set before.
    pub set: u64,
}

/// The outcome, and what hardware must have written before the request completes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// What comes of the request.
    pub outcome: OracleOutcome,
    /// Accessed and dirty flags that must be set afterwards; empty when nothing is granted. For a request that
    /// faults hardware may set accessed flags but must not set dirty flags.
    pub updates: Vec<FlagUpdate>,
}

/// A condition of the fault tables that holds.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    reason: u8,
    condition: &'static str,
    /// Whether FPD keeps it out of the log.
    qualified: bool,
}

const fn qualified(reason: u8, condition: &'static str) -> Trouble {
    Trouble {
        reason,
        condition,
        qualified: true,
    }
}

const fn unqualified(reason: u8, condition: &'static str) -> Trouble {
    Trouble {
        reason,
        condition,
        qualified: false,
    }
}

/// What a walk grants.
#[derive(Clone, Copy, Debug)]
struct Grant {
    host: u64,
    page_shift: u32,
    read: bool,
    write: bool,
    untranslated_only: bool,
}

impl Grant {
    /// The address as it is, with all rights.
    const fn identity(address: u64) -> Self {
        Self {
            host: address,
            page_shift: 12,
            read: true,
            write: true,
            untranslated_only: false,
        }
    }

    /// No right at all.
    const NOTHING: Self = Self {
        host: 0,
        page_shift: 12,
        read: false,
        write: false,
        untranslated_only: false,
    };
}

/// The walk in progress.
struct Walk<'a, M> {
    memory: &'a M,
    unit: &'a OracleUnit,
    request: &'a OracleRequest,
    /// FPD of the structures read so far, or-ed.
    fpd: bool,
    updates: Vec<FlagUpdate>,
}

impl<M: SystemMemory> Walk<'_, M> {
    /// One word; `None` where no memory answers.
    fn load(&self, at: u64) -> Option<u64> {
        self.memory.read_u64(iommu_types::HostPhys::new(at)).ok()
    }

    /// Consecutive words.
    fn load_words<const N: usize>(&self, at: u64) -> Option<[u64; N]> {
        let mut words = [0; N];
        for (at, word) in (at..).step_by(8).zip(&mut words) {
            *word = self.load(at)?;
        }
        Some(words)
    }

    /// A condition S.1 or S.2 (VT-d §4.2.3): a translation request without PASID for the interrupt range.
    fn interrupt_range_completion(&self) -> Option<Grant> {
        let asked = self.request.kind == OracleKind::T && self.request.pasid.is_none();
        (asked && in_interrupt_range(self.request.address)).then_some(Grant {
            // S.1: the endpoint may send its interrupts untranslated. S.2: NW = 1, nothing granted.
            write: !self.request.no_write,
            untranslated_only: !self.request.no_write,
            ..Grant::NOTHING
        })
    }

    /// Whether a translation request counts as a write for the dirty flag and gets W (VT-d §4.2.3, NW).
    fn translation_writes(&self) -> bool {
        !(self.request.no_write && self.unit.ecap_bit(33))
    }
}

/// FEE0_0000h to FEEF_FFFFh (VT-d §3.15).
const fn in_interrupt_range(address: u64) -> bool {
    address >> 20 == 0xfee
}

/// Whether a page of `1 << shift` bytes around `host` shares a byte with the interrupt range.
const fn page_meets_interrupt_range(host: u64, shift: u32) -> bool {
    if shift >= 20 {
        0xfee0_0000 >> shift == host >> shift
    } else {
        in_interrupt_range(host)
    }
}

/// What comes of `request` while DMA remapping is enabled (TES = 1).
///
/// The root table, its mode and the capabilities are those of `unit`; everything else is read from `memory`.
/// Protected memory regions and page requests are left out.
pub fn translate<M: SystemMemory>(memory: &M, unit: &OracleUnit, request: &OracleRequest) -> OracleOutcome {
    judge(memory, unit, request).outcome
}

/// As [`translate`], with the accessed and dirty flags that hardware must set.
pub fn judge<M: SystemMemory>(memory: &M, unit: &OracleUnit, request: &OracleRequest) -> Judgement {
    let only = |outcome| Judgement {
        outcome,
        updates: Vec::new(),
    };
    // VT-d §4.2.4: a translated request with PASID on a unit without PTRS is an unsupported request.
    if request.kind == OracleKind::X && request.pasid.is_some() && !unit.ecap_bit(56) {
        return only(OracleOutcome::Refused);
    }
    // VT-d §3.15: untranslated requests without PASID to the interrupt range are never DMA-remapped.
    if request.kind == OracleKind::U && request.pasid.is_none() && in_interrupt_range(request.address) {
        let dword = request.access == OracleAccess::Write && request.len == 4 && request.address & 3 == 0;
        return only(if dword {
            OracleOutcome::Interrupt
        } else if request.zero_length && request.access == OracleAccess::Read {
            OracleOutcome::NoData
        } else {
            blocked(unqualified(0x29, "interrupt range"), false, request.kind)
        });
    }
    let mut walk = Walk {
        memory,
        unit,
        request,
        fpd: false,
        updates: Vec::new(),
    };
    let result = root_table(&mut walk);
    let (fpd, mut updates) = (walk.fpd, walk.updates);
    let outcome = match (result, request.kind) {
        (Ok(grant), OracleKind::T) => completion(grant),
        (Ok(grant), _) => OracleOutcome::Pass {
            host: grant.host,
            page_shift: grant.page_shift,
            read: grant.read,
            write: grant.write,
        },
        // Recoverable: the translation request completes with success and without rights.
        (Err(trouble), OracleKind::T) if recoverable(trouble.reason) => completion(Grant::NOTHING),
        (Err(trouble), kind) => blocked(trouble, fpd, kind),
    };
    let granted = match outcome {
        OracleOutcome::Pass { .. } => true,
        OracleOutcome::Completion { read, write, .. } => read || write,
        _ => false,
    };
    if !granted {
        updates.clear();
    }
    Judgement {
        outcome,
        updates: merged(updates),
    }
}

/// RTADDR checks (VT-d §7.1.3, RTA conditions), then the walk of the mode.
fn root_table<M: SystemMemory>(walk: &mut Walk<'_, M>) -> Result<Grant, Trouble> {
    let (unit, request) = (walk.unit, walk.request);
    let mode = unit.rtaddr >> 10 & 3;
    if mode == 3 && !unit.ecap_bit(52) {
        return Err(unqualified(0x30, "RTA.1.1"));
    }
    if mode == 2 {
        return Err(unqualified(0x30, "RTA.1.2"));
    }
    if mode == 1 && !unit.ecap_bit(43) {
        return Err(unqualified(0x30, "RTA.1.3"));
    }
    if mode == 0 && unit.ssirwe() {
        return Err(unqualified(0x30, "RTA.1.4"));
    }
    if mode == 3 {
        return Err(unqualified(0x33, "RTA.4"));
    }
    if mode == 0 && request.pasid.is_some() {
        return Err(unqualified(0x31, "RTA.2"));
    }
    if unit.version_major() >= 8 && request.pasid.is_some() && request.execute {
        return Err(unqualified(0x34, "RTA.5"));
    }
    if mode == 0 {
        legacy::walk(walk)
    } else {
        scalable::walk(walk)
    }
}

fn completion(grant: Grant) -> OracleOutcome {
    let grant = if grant.read || grant.write {
        grant
    } else {
        Grant::NOTHING
    };
    OracleOutcome::Completion {
        host: if grant.untranslated_only { 0 } else { grant.host },
        page_shift: grant.page_shift,
        read: grant.read,
        write: grant.write,
        untranslated_only: grant.untranslated_only,
    }
}

/// Reasons that complete a translation request with success and no rights (VT-d §7.1.3, column T).
fn recoverable(reason: u8) -> bool {
    matches!(
        reason,
        0x04 | 0x51 | 0x59 | 0x5c | 0x5d | 0x70..=0x77 | 0x79 | 0x80 | 0x81 | 0x83 | 0x84 | 0x90 | 0x91
    )
}

fn blocked(trouble: Trouble, fpd: bool, kind: OracleKind) -> OracleOutcome {
    // VT-d §7.1.3, columns T and X; U and everything not named is an unsupported request.
    let unsupported = match kind {
        OracleKind::U => true,
        OracleKind::T => matches!(
            trouble.reason,
            0x01 | 0x02 | 0x0d | 0x31 | 0x33 | 0x34 | 0x39 | 0x41 | 0x44 | 0x45 | 0x46 | 0x48 | 0x89
        ),
        OracleKind::X => !matches!(trouble.reason, 0x50 | 0x52 | 0x58 | 0x5a | 0x5b | 0xa0..=0xa2),
    };
    OracleOutcome::Fault {
        reason: trouble.reason,
        suppressed: trouble.qualified && fpd,
        condition: trouble.condition,
        response: if unsupported {
            Response::UnsupportedRequest
        } else {
            Response::CompleterAbort
        },
    }
}

/// One update for each entry, in address order.
fn merged(updates: Vec<FlagUpdate>) -> Vec<FlagUpdate> {
    let mut by_entry = std::collections::BTreeMap::new();
    for update in updates {
        *by_entry.entry(update.at).or_insert(0) |= update.set;
    }
    by_entry
        .into_iter()
        .filter(|(_, set)| *set != 0)
        .map(|(at, set)| FlagUpdate { at, set })
        .collect()
}

#[cfg(test)]
mod tests;
