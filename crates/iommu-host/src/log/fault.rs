//! Fault lines.

use iommu_types::{Access, DevFn, Iova, Pasid, SourceId};
use vtd_spec::fault::FaultReason;

use super::Why;
use super::cursor::{Cursor, fit};

/// What a device asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Request {
    /// To read or write memory.
    Dma {
        /// Which of the two.
        access: Access,
        /// The page it named.
        address: Iova,
    },
    /// To raise an interrupt.
    Interrupt {
        /// Index of the remapping entry that the request names.
        index: u32,
    },
}

/// A request that a unit blocked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Who asked. Kernels do not print the segment.
    pub requester: SourceId,
    /// For what.
    pub request: Request,
    /// The process address space, if the request carried one.
    pub pasid: Option<Pasid>,
    /// Why it was blocked; `None` if the log has lost that part.
    pub reason: Option<FaultReason>,
    /// The kernel's words for the reason, which differ between versions.
    pub reason_text: String,
    /// Number of the unit, where a table dump behind the fault names it (`dmar5`).
    pub unit: Option<u32>,
    /// The kernel's dump of table entries behind the fault, as it stands there.
    pub details: Vec<String>,
}

/// What one or more joined lines hold.
#[derive(Debug)]
pub(super) enum Piece {
    /// A fault.
    Whole(Fault),
    /// The start of one.
    Part(Partial),
    /// Something like a fault.
    Unread(Why),
    /// Something else.
    Other,
}

/// How far the start of a fault goes.
#[derive(Clone, Debug)]
pub(super) struct Partial {
    stage: u8,
    fault: Option<Fault>,
}

impl PartialEq for Partial {
    fn eq(&self, other: &Self) -> bool {
        self.stage == other.stage
    }
}

impl PartialOrd for Partial {
    fn partial_cmp(&self, other: &Self) -> Option<core::cmp::Ordering> {
        self.stage.partial_cmp(&other.stage)
    }
}

impl Partial {
    const fn at(stage: u8) -> Self {
        Self { stage, fault: None }
    }

    pub(super) const fn is_whole_but_reason(&self) -> bool {
        self.fault.is_some()
    }

    /// The fault without its reason. An address that is not that of a page has lost digits.
    pub(super) fn into_fault(self) -> Option<Fault> {
        self.fault.filter(|fault| match fault.request {
            Request::Dma { address, .. } => address.raw() & 0xfff == 0,
            Request::Interrupt { .. } => true,
        })
    }
}

/// A line of a table dump behind a fault.
#[derive(Debug)]
pub(super) struct Detail {
    pub(super) unit: Option<u32>,
    pub(super) text: String,
}

const REASON: &str = "[fault reason";
const STARTS: [&str; 4] = ["[DMA Read", "[DMA Write", "[INTR-REMAP]", "INTR-REMAP: Request device"];

/// Whether a fault starts in the line.
pub(super) fn starts(text: &str) -> bool {
    STARTS.iter().any(|start| text.contains(start))
}

/// The message without the names of the parts of the kernel before it.
pub(super) fn without_prefix(mut text: &str) -> &str {
    for _ in 0..3 {
        text = text.trim_start();
        let rest = ["DMAR:", "dmar:", "DMAR-IR:", "INTR-REMAP:"]
            .iter()
            .find_map(|prefix| text.strip_prefix(prefix));
        match rest {
            Some(rest) => text = rest,
            None => break,
        }
    }
    text
}

/// Reads a fault.
pub(super) fn piece(text: &str) -> Piece {
    let Some((start, mut at)) = STARTS
        .iter()
        .find_map(|start| Cursor::after(text, start).map(|at| (*start, at)))
    else {
        return no_start(text);
    };
    match read(start, &mut at) {
        Ok(fault) => Piece::Whole(fault),
        // Where nothing is left, more may follow.
        Err(stage) if at.0.trim().is_empty() => Piece::Part(Partial::at(stage)),
        Err(_) => Piece::Unread(Why::Garbled),
    }
    .or_without_reason(start, text)
}

impl Piece {
    /// If only the reason is missing, everything else counts.
    fn or_without_reason(self, start: &str, text: &str) -> Self {
        let Self::Unread(_) = self else { return self };
        let Some(mut at) = Cursor::after(text, start) else {
            return self;
        };
        match read_request(start, &mut at) {
            Ok(fault) if is_cut_reason(at.0.trim()) => Self::Part(Partial {
                stage: 3,
                fault: Some(fault),
            }),
            _ => self,
        }
    }
}

/// Whether a text is the beginning of a reason, or nothing.
fn is_cut_reason(rest: &str) -> bool {
    rest.is_empty() || REASON.starts_with(rest) || (rest.starts_with(REASON) && !rest.contains(']'))
}

/// Everything of a fault. The error is how far it got.
fn read(start: &str, at: &mut Cursor<'_>) -> Result<Fault, u8> {
    let mut fault = read_request(start, at)?;
    if is_cut_reason(at.0.trim()) {
        // Reported through `or_without_reason`, which keeps what is there.
        at.0 = "?";
        return Err(3);
    }
    at.literal(REASON).ok_or(3)?;
    // VT-d §11.4.14 (FRCD_REG): FR is 8 bits.
    let code: u8 = at.marked().and_then(fit).ok_or(3)?;
    at.literal("]").ok_or(3)?;
    fault.reason = Some(FaultReason(code));
    fault.reason_text = at.0.trim().to_owned();
    Ok(fault)
}

/// Everything up to the reason.
fn read_request(start: &str, at: &mut Cursor<'_>) -> Result<Fault, u8> {
    let mut pasid = None;
    let access = match start {
        "[DMA Read" => Some(Access::Read),
        "[DMA Write" => Some(Access::Write),
        _ => None,
    };
    if access.is_some() {
        if at.literal("NO_PASID").is_none() && at.literal("PASID").is_some() {
            pasid = Some(at.hex().ok_or(0)?);
        }
        at.literal("]").ok_or(0)?;
    }
    if start != STARTS[3] {
        at.literal("Request device").ok_or(0)?;
    }
    // Some old kernels print two brackets.
    at.literal("[").ok_or(0)?;
    let _ = at.literal("[");
    let requester = requester(at).ok_or(0)?;
    if at.literal("PASID").is_some() {
        pasid = Some(at.hex().ok_or(1)?);
    }
    at.literal("fault").ok_or(1)?;
    let request = match access {
        Some(access) => {
            at.literal("addr").ok_or(1)?;
            let address = Iova::new(at.hex().ok_or(1)?);
            Request::Dma { access, address }
        }
        None => {
            at.literal("index").ok_or(1)?;
            let index = at.hex().and_then(fit).ok_or(1)?;
            Request::Interrupt { index }
        }
    };
    // Anything right behind the number means that characters are lost.
    if !at.0.is_empty() && !at.0.starts_with(char::is_whitespace) {
        return Err(1);
    }
    Ok(Fault {
        requester,
        request,
        // ffffffff, which is no PASID, means none.
        pasid: pasid.and_then(fit).and_then(Pasid::new),
        reason: None,
        reason_text: String::new(),
        unit: None,
        details: Vec::new(),
    })
}

/// `bb:dd.f]`, each part with or without `0x`; newer kernels put the domain before it, `dddd:bb:dd.f]`. A unit serves one
/// domain, so the requester ID is the same.
fn requester(at: &mut Cursor<'_>) -> Option<SourceId> {
    let mut bus = at.hex()?;
    at.literal(":")?;
    let mut device = at.hex()?;
    if at.literal(":").is_some() {
        bus = device;
        device = at.hex()?;
    }
    let (bus, device) = (fit(bus)?, fit(device)?);
    at.literal(".")?;
    let function = at.hex().and_then(fit)?;
    at.literal("]")?;
    Some(SourceId::new(bus, DevFn::new(device, function)?))
}

/// A line in which no fault starts.
fn no_start(text: &str) -> Piece {
    if text.contains("Request device [") || (text.contains("[DMA") && text.contains("DMAR")) {
        return Piece::Unread(Why::Garbled);
    }
    if let Some(mut at) = Cursor::after(text, "fault addr ")
        && (text.contains(REASON) || at.hex().is_some() && text.contains("DMAR"))
    {
        return Piece::Unread(Why::Garbled);
    }
    if text.contains(REASON) {
        return Piece::Unread(Why::ReasonAlone);
    }
    let other = text.contains("AMD-Vi:") && text.contains("_FAULT")
        || text.contains("arm-smmu") && (text.contains("context fault") || text.contains("event 0x"));
    if other {
        Piece::Unread(Why::OtherIommu)
    } else {
        Piece::Other
    }
}

/// The register in `DRHD: handling fault status reg 2`.
pub(super) fn status(text: &str) -> Option<u32> {
    let mut at = Cursor::after(text, "handling fault ")?;
    at.skip_to("reg ")?;
    at.hex().and_then(fit)
}

/// The number in `dmar_fault: 3 callbacks suppressed`.
pub(super) fn suppressed(text: &str) -> Option<u64> {
    let mut at = Cursor::after(text, "dmar_fault:")?;
    let count = at.decimal()?;
    at.literal("callbacks suppressed")?;
    Some(count)
}

/// A line of the table dump that newer kernels print behind a fault.
pub(super) fn detail(text: &str) -> Option<Detail> {
    let message = without_prefix(text);
    if message.len() == text.len() {
        return None;
    }
    if let Some(mut at) = Cursor::after(message, "Dump dmar") {
        let unit = at.decimal().and_then(fit);
        at.literal("table entries for IOVA")?;
        return Some(Detail {
            unit,
            text: message.to_owned(),
        });
    }
    const DUMPED: [&str; 7] = [
        "root entry: hi",
        "context entry: hi",
        "pasid dir entry:",
        "pasid table entry[",
        "pte level:",
        "PTE not present at level",
        "page table not present",
    ];
    DUMPED.iter().any(|part| message.contains(part)).then(|| Detail {
        unit: None,
        text: message.to_owned(),
    })
}
