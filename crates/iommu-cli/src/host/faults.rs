//! `iommu faults`: the faults of a kernel log, and who is behind them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use clap::Args;
use iommu_host::blame::{self, Blame, Culprit};
use iommu_host::log::{self, Event, Fault, Log, QueueError, Request};
use iommu_host::{Knowledge, Machine};
use iommu_types::{Bdf, Pasid, SourceId};
use serde_json::{Value, json};

use super::names::{Names, printable, short};
use super::select::Filter;
use super::{Answer, Source, count};
use crate::exit::{self, Failure, Verdict};
use crate::style;

/// Grows when a key changes its meaning.
const SCHEMA: u32 = 1;
/// Bytes of a log that are read.
const MAX_LOG: u64 = 64 << 20;
/// Kinds of faults that are explained, the most frequent first.
const SHOWN_KINDS: usize = 256;
/// Different addresses that are shown for one kind of fault.
const SHOWN_ADDRESSES: usize = 4;
/// Lines that could not be decoded and are shown.
const SHOWN_UNREAD: usize = 10;

/// What `iommu faults` is told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A log, or `-` for standard input; without it, this machine's (or that of --root)
    log: Option<PathBuf>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    pub(crate) source: Source,
}

/// Faults that are the same but for their address and time.
#[derive(Debug)]
struct Kind<'a> {
    first: &'a Fault,
    first_line: usize,
    last_line: usize,
    count: usize,
    /// Addresses or indices with their numbers.
    places: BTreeMap<u64, usize>,
}

type Key = (SourceId, u8, Option<u8>, Option<Pasid>);

pub(crate) fn run(options: &Options) -> Result<Answer, Failure> {
    let (log, machine) = match &options.log {
        Some(path) => {
            let bytes = read_log(path)?;
            if bytes.iter().all(u8::is_ascii_whitespace) {
                // A `dmesg` that may not read the log writes nothing either: that is no clean bill.
                return Err(Failure::Measure(format!("{}: the log is empty", path.display())));
            }
            // A log that somebody sent is of another machine than this one; the file may list its functions.
            let machine = match &options.source.root {
                Some(_) => options.source.open()?,
                None => Machine::from_listing(&bytes),
            };
            (log::read(&bytes), machine)
        }
        None => {
            let machine = options.source.open()?;
            let log = match &machine.log {
                Knowledge::Known(log) => log.clone(),
                Knowledge::Absent => Log::default(),
                Knowledge::Unknown(why) => {
                    return Err(Failure::Measure(format!("kernel log: {why}; {}", why.remedy())));
                }
            };
            (log, machine)
        }
    };
    let only = only(&options.filter, &machine)?;
    Ok(answer(&log, &machine, &options.source.names()?, only.as_deref()))
}

/// The functions whose faults are asked for. A log alone knows no functions, but addresses.
fn only(filter: &Filter, machine: &Machine) -> Result<Option<Vec<Bdf>>, Failure> {
    match (machine.functions.is_empty(), &filter.slot, &filter.device) {
        (true, _, Some(_)) => Err(Failure::Input(
            "-d: the log does not tell which models the machine has; name the machine with --root".to_owned(),
        )),
        (true, Some(slot), None) => match slot.parse() {
            Ok(bdf) => Ok(Some(vec![bdf])),
            Err(_) => Err(Failure::Input(format!(
                "-s {slot}: the log does not tell which functions the machine has; give a whole address such as 3b:00.0, or name \
                 the machine with --root"
            ))),
        },
        _ => filter.select(machine),
    }
}

fn read_log(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let failed = |why: std::io::Error| exit::unread(&path.display(), &why);
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        std::io::stdin()
            .lock()
            .take(MAX_LOG + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(MAX_LOG + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    Ok(bytes)
}

/// What the log says, in the light of what is known of the machine.
pub(crate) fn answer(log: &Log, machine: &Machine, names: &Names, only: Option<&[Bdf]>) -> Answer {
    let topology = machine.topology();
    let mut kinds: BTreeMap<Key, Kind<'_>> = BTreeMap::new();
    // Segment 0 is meant where the log does not say: it prints source IDs alone.
    let wanted = |fault: &Fault| {
        only.is_none_or(|only| {
            let culprit = blame::blame(machine, &topology, fault).culprit.function();
            only.iter()
                .any(|bdf| bdf.source == fault.requester || Some(*bdf) == culprit)
        })
    };
    for (record, fault) in log.faults().filter(|(_, fault)| wanted(fault)) {
        let (what, place) = match fault.request {
            Request::Dma { access, address } => {
                (if access == iommu_types::Access::Read { 0 } else { 1 }, address.raw())
            }
            Request::Interrupt { index } => (2, u64::from(index)),
        };
        let key = (fault.requester, what, fault.reason.map(|reason| reason.0), fault.pasid);
        let kind = kinds.entry(key).or_insert(Kind {
            first: fault,
            first_line: record.line,
            last_line: record.line,
            count: 0,
            places: BTreeMap::new(),
        });
        kind.count += 1;
        kind.last_line = record.line;
        *kind.places.entry(place).or_default() += 1;
    }
    let mut kinds: Vec<Kind<'_>> = kinds.into_values().collect();
    kinds.sort_by_key(|kind| (std::cmp::Reverse(kind.count), kind.first_line));
    let left_out = kinds.len().saturating_sub(SHOWN_KINDS);
    kinds.truncate(SHOWN_KINDS);
    let blamed: Vec<Vec<Blame>> = kinds
        .iter()
        .map(|kind| {
            kind.places
                .keys()
                .take(SHOWN_ADDRESSES)
                .map(|place| blame::blame(machine, &topology, &at(kind.first, *place)))
                .collect()
        })
        .collect();
    let queue: Vec<(usize, QueueError)> = log
        .records
        .iter()
        .filter_map(|record| match record.event {
            Event::Queue(error) => Some((record.line, error)),
            _ => None,
        })
        .collect();
    let clean = kinds.is_empty() && (only.is_some() || log.unread_count == 0 && queue.is_empty());
    Answer {
        text: text(log, machine, names, (&kinds, left_out), &blamed, &queue),
        json: json!({
            "schema": SCHEMA,
            "lines": log.lines,
            "faults": log.faults().count(),
            "faults_shown": kinds.iter().map(|kind| kind.count).sum::<usize>(),
            "suppressed": log.suppressed,
            "cut": log.cut,
            "kinds": kinds.iter().zip(&blamed).map(|(kind, blamed)| kind_json(machine, kind, blamed)).collect::<Vec<_>>(),
            "kinds_left_out": left_out,
            "queue_errors": queue.iter().map(|(line, error)| json!({"line": line, "error": queue_text(*error)})).collect::<Vec<_>>(),
            "unread_count": log.unread_count,
            "unread": log.unread.iter().map(|unread| json!({
                "line": unread.line, "why": unread.why.to_string(), "text": printable(&unread.text),
            })).collect::<Vec<_>>(),
        }),
        verdict: Ok(if clean { Verdict::Yes } else { Verdict::Findings }),
    }
}

/// The same fault at another address.
fn at(fault: &Fault, place: u64) -> Fault {
    let mut fault = fault.clone();
    if let Request::Dma { address, .. } = &mut fault.request {
        *address = iommu_types::Iova::new(place);
    }
    fault
}

fn reason_text(fault: &Fault) -> String {
    match fault.reason {
        Some(reason) => {
            let name = reason.name().map_or("unknown code", |_| reason.description());
            format!("{:#04x}: {name}", reason.0)
        }
        None => "lost from the log".to_owned(),
    }
}

fn request_text(fault: &Fault) -> String {
    let what = match fault.request {
        Request::Dma { access, .. } => access.to_string(),
        Request::Interrupt { .. } => "interrupt".to_owned(),
    };
    match fault.pasid {
        Some(pasid) => format!("{what} with PASID {:#x}", pasid.raw()),
        None => what,
    }
}

fn culprit_text(machine: &Machine, names: &Names, requester: SourceId, culprit: Culprit) -> String {
    let described = |bdf| {
        let (driver, group) = blame::driver_and_group(machine, bdf);
        let mut text = format!("{} {}", short(bdf), names.label(machine, bdf));
        if let Some(driver) = driver {
            text.push_str(&format!(", driver {}", printable(driver)));
        }
        if let Some(group) = group {
            text.push_str(&format!(", group {group}"));
        }
        text
    };
    match culprit {
        Culprit::Function(bdf) => described(bdf),
        Culprit::Alias(bdf) => format!("{}; this model also sends requests as {requester}", described(bdf)),
        Culprit::SameSlot(bdf) => format!("there is no {requester}; a guess: {}", described(bdf)),
        Culprit::BridgeAbove(bdf) => format!("there is no {requester}; a guess, the bridge above: {}", described(bdf)),
        Culprit::Nobody => format!("there is no {requester} on this machine"),
        Culprit::Unknown => "the machine's functions are not known".to_owned(),
    }
}

fn queue_text(error: QueueError) -> String {
    match error {
        QueueError::Refused(reason) => format!("the unit refused an invalidation descriptor, code {reason:#x}"),
        QueueError::TimedOut(source) => format!("a device-TLB did not answer in time, requester {source:#06x}"),
        QueueError::Unexpected(source) => format!("a device-TLB answered what nobody asked, requester {source:#06x}"),
    }
}

fn text(
    log: &Log,
    machine: &Machine,
    names: &Names,
    (kinds, left_out): (&[Kind<'_>], usize),
    blamed: &[Vec<Blame>],
    queue: &[(usize, QueueError)],
) -> String {
    let total = log.faults().count();
    let shown: usize = kinds.iter().map(|kind| kind.count).sum();
    let mut out = if total == 0 {
        style::good(format!("no fault in {}", count(log.lines, "line"))).to_string()
    } else {
        format!(
            "{} in {}, of {}",
            style::bad(count(total, "fault")),
            count(log.lines, "line"),
            count(kinds.len() + left_out, "kind"),
        )
    };
    if shown < total && left_out == 0 {
        out.push_str(&format!("; shown are the {shown} of the functions asked for"));
    }
    out.push('\n');
    if log.suppressed > 0 {
        out.push_str(&format!(
            "the kernel left out {}: counts are lower bounds\n",
            match log.suppressed {
                1 => "1 more message".to_owned(),
                messages => format!("{messages} more messages"),
            }
        ));
    }
    for (kind, blamed) in kinds.iter().zip(blamed) {
        let lines = if kind.first_line == kind.last_line {
            format!("line {}", kind.first_line)
        } else {
            format!("lines {}-{}", kind.first_line, kind.last_line)
        };
        out.push_str(&format!(
            "\n{} x{} {}\n",
            style::title(format!("{} {}", kind.first.requester, request_text(kind.first))),
            kind.count,
            style::faint(format!("({lines})")),
        ));
        out.push_str(&format!("  reason   {}\n", reason_text(kind.first)));
        if let Some(blame) = blamed.first() {
            let who = culprit_text(machine, names, kind.first.requester, blame.culprit);
            out.push_str(&format!("  device   {who}\n"));
        }
        for ((place, count), blame) in kind.places.iter().zip(blamed) {
            let label = if matches!(kind.first.request, Request::Interrupt { .. }) {
                "index   "
            } else {
                "address "
            };
            let words = style::paragraph(&format!("{place:#x} x{count}: {}", blame.address), 11, 13);
            out.push_str(&format!("  {label} {words}\n"));
        }
        if kind.places.len() > SHOWN_ADDRESSES {
            out.push_str(&format!(
                "           and {}\n",
                count(kind.places.len() - SHOWN_ADDRESSES, "other")
            ));
        }
        if let Some(blame) = blamed.first() {
            let likely = style::paragraph(&printable(blame.verdict_text()), 11, 11);
            let next = style::paragraph(&printable(&blame.next_step(machine)), 11, 11);
            out.push_str(&format!("  likely   {likely}\n  next     {next}\n"));
        }
    }
    if left_out > 0 {
        out.push_str(&format!("\nand {}\n", count(left_out, "rarer kind")));
    }
    for (line, error) in queue {
        out.push_str(&format!("\nline {line}: {}\n", queue_text(*error)));
    }
    if log.unread_count > 0 {
        out.push_str(&format!(
            "\n{} and could not be decoded:\n",
            match log.unread_count {
                1 => "1 line looks like a fault".to_owned(),
                lines => format!("{lines} lines look like faults"),
            }
        ));
        for unread in log.unread.iter().take(SHOWN_UNREAD) {
            out.push_str(&format!(
                "  line {}: {}: {}\n",
                unread.line,
                unread.why,
                printable(&unread.text)
            ));
        }
    }
    if log.cut {
        out.push_str("\nthe log is too long: its end was left out\n");
    }
    out
}

fn kind_json(machine: &Machine, kind: &Kind<'_>, blamed: &[Blame]) -> Value {
    let fault = kind.first;
    let first = blamed.first();
    let culprit = first.and_then(|blame| blame.culprit.function());
    let (driver, group) = culprit.map_or((None, None), |bdf| blame::driver_and_group(machine, bdf));
    json!({
        "requester": fault.requester.to_string(),
        "request": match fault.request {
            Request::Dma { access, .. } => access.to_string(),
            Request::Interrupt { .. } => "interrupt".to_owned(),
        },
        "pasid": fault.pasid.map(Pasid::raw),
        "reason": fault.reason.map(|reason| reason.0),
        "reason_name": fault.reason.and_then(|reason| reason.name()),
        "reason_text": printable(&fault.reason_text),
        "count": kind.count,
        "first_line": kind.first_line,
        "last_line": kind.last_line,
        "unit": fault.unit,
        "device": culprit.map(|bdf| bdf.to_string()),
        "device_known_by": first.map(|blame| match blame.culprit {
            Culprit::Function(_) => "requester",
            Culprit::Alias(_) => "alias",
            Culprit::SameSlot(_) | Culprit::BridgeAbove(_) => "guess",
            Culprit::Nobody => "nobody",
            Culprit::Unknown => "unknown",
        }),
        "driver": driver,
        "group": group,
        "likely": first.map(|blame| blame.verdict_text()),
        "next": first.map(|blame| blame.next_step(machine)),
        "places": kind.places.iter().zip(blamed).map(|((place, count), blame)| json!({
            "at": format!("{place:#x}"), "count": count, "kind": blame.address.to_string(),
        })).collect::<Vec<_>>(),
        "places_count": kind.places.len(),
    })
}
