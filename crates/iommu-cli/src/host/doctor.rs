//! `iommu doctor` and `iommu check`: questions with three answers.

use std::path::PathBuf;

use clap::Args;
use iommu_groups::group;
use iommu_host::check::{self, Plan};
use iommu_host::doctor::State;
use iommu_host::{Item, Machine, doctor, overall};
use iommu_types::Bdf;
use serde_json::{Value, json};

use super::groups::function_json;
use super::names::{Names, printable, prose, short};
use super::select::Filter;
use super::{Answer, Source, next, notes};
use crate::exit::{Failure, Verdict};
use crate::{size, style};

/// Grows when a key changes its meaning.
const SCHEMA: u32 = 1;

/// What `iommu doctor` is told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) source: Source,
}

/// What `iommu check` is told.
#[derive(Debug, Args)]
pub(crate) struct CheckOptions {
    #[command(flatten)]
    pub(crate) guest: Guest,
    #[command(flatten)]
    pub(crate) source: Source,
}

/// A guest, and what it is to have.
#[derive(Debug, Args)]
pub(crate) struct Guest {
    /// Functions to give to one guest: addresses, vendor:device, interfaces or disks
    #[arg(required_unless_present_any = ["slot", "device"], value_name = "DEVICE")]
    functions: Vec<String>,
    /// Memory of the guest, as in 16G
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    mem: Option<u64>,
    #[command(flatten)]
    filter: Filter,
}

impl Guest {
    /// The functions.
    pub(crate) fn functions(&self, machine: &Machine) -> Result<Vec<Bdf>, Failure> {
        self.filter.with(machine, &self.functions)
    }

    /// What is known of the guest, and of the limits that it will have.
    pub(crate) fn plan(&self, source: &Source) -> Plan {
        Plan {
            memory: self.mem,
            lockable: if source.root.is_none() { lockable() } else { None },
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<Answer, Failure> {
    Ok(diagnosis(&options.source.open()?, &options.source.again()))
}

pub(crate) fn run_check(options: &CheckOptions) -> Result<Answer, Failure> {
    let machine = options.source.open()?;
    let chosen = options.guest.functions(&machine)?;
    let plan = options.guest.plan(&options.source);
    Ok(checked(
        &machine,
        &options.source.names()?,
        &chosen,
        plan,
        &options.source.again(),
    ))
}

/// The limit of locked memory of this process, which is that of a guest started from the same shell.
fn lockable() -> Option<u64> {
    let text = std::fs::read_to_string(PathBuf::from("/proc/self/limits")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        bytes => bytes.parse().ok(),
    }
}

/// What is to be said of the machine; `again` names it in the command to try next.
pub(crate) fn diagnosis(machine: &Machine, again: &str) -> Answer {
    let diagnosis = doctor::examine(machine);
    let text = format!(
        "{}\n\n{}{}{}",
        state_text(diagnosis.state),
        items_text(&diagnosis.items),
        notes(machine),
        next_of(diagnosis.state, again),
    );
    Answer {
        text,
        json: json!({
            "schema": SCHEMA,
            "state": format!("{:?}", diagnosis.state),
            "description": diagnosis.state.describe(),
            "overall": overall(&diagnosis.items).word(),
            "items": items_json(&diagnosis.items),
            "notes": machine.notes,
        }),
        verdict: verdict(&diagnosis.items),
    }
}

/// The state in words, coloured.
pub(crate) fn state_text(state: State) -> String {
    let words = state.describe();
    match state {
        State::Working => style::good(words).to_string(),
        State::Unknown => style::doubt(words).to_string(),
        State::InitFailed | State::KernelOff | State::FirmwareOff => style::bad(words).to_string(),
    }
}

/// What to try next.
fn next_of(state: State, again: &str) -> String {
    let (command, why) = match state {
        State::Working => ("iommu groups", "what has to be assigned together"),
        State::Unknown if again.is_empty() => ("sudo iommu doctor", "root can read what is missing"),
        State::Unknown => ("iommu snapshot", "on that machine, as root: it holds what is missing"),
        State::InitFailed => ("iommu dmar lint", "what is wrong with the firmware's table"),
        State::KernelOff | State::FirmwareOff => ("iommu groups --model linux", "the groups that there would be"),
    };
    let again = if state == State::Unknown { "" } else { again };
    format!("\n{}", next("next:", &format!("{command}{again}"), why))
}

pub(crate) fn checked(machine: &Machine, names: &Names, chosen: &[Bdf], plan: Plan, again: &str) -> Answer {
    let topology = machine.topology();
    let groups = group(&topology, machine.linux_rules());
    let items = check::check(machine, &topology, &groups, chosen, plan);
    let mut text = String::new();
    for bdf in chosen {
        text.push_str(&format!(
            "{} {}\n",
            style::title(short(*bdf)),
            names.label(machine, *bdf)
        ));
    }
    let it = if chosen.len() == 1 { "it" } else { "they" };
    let headline = match overall(&items) {
        iommu_host::Answer::Yes => style::good("can be given to a guest").to_string(),
        iommu_host::Answer::No => style::bad(format!("cannot be given to a guest as {it} {}", be(chosen))).to_string(),
        iommu_host::Answer::Unknown => {
            style::doubt(format!("not known whether {it} can be given to a guest")).to_string()
        }
    };
    text.push_str(&format!("{headline}\n\n{}{}", items_text(&items), notes(machine)));
    let addresses: Vec<String> = chosen.iter().copied().map(short).collect();
    let command = match (overall(&items), machine.has_groups()) {
        (iommu_host::Answer::No, Some(false)) => "iommu doctor".to_owned(),
        (iommu_host::Answer::No, _) => format!("iommu explain {}", addresses.first().map_or("", String::as_str)),
        _ => format!("iommu plan {}", addresses.join(" ")),
    };
    text.push_str(&format!("\n{}", next("next:", &format!("{command}{again}"), "")));
    Answer {
        text,
        json: json!({
            "schema": SCHEMA,
            "functions": chosen.iter().map(|bdf| function_json(machine, names, *bdf)).collect::<Vec<_>>(),
            "overall": overall(&items).word(),
            "items": items_json(&items),
            "notes": machine.notes,
        }),
        verdict: verdict(&items),
    }
}

/// Number of the verb.
const fn be(chosen: &[Bdf]) -> &'static str {
    if chosen.len() == 1 { "is" } else { "are" }
}

/// The answer to all of them, as a command ends.
pub(crate) fn verdict(items: &[Item]) -> Result<Verdict, Failure> {
    match overall(items) {
        iommu_host::Answer::Yes => Ok(Verdict::Yes),
        iommu_host::Answer::No => Ok(Verdict::Findings),
        iommu_host::Answer::Unknown => {
            let open: Vec<&str> = items
                .iter()
                .filter(|item| item.hard && item.answer == iommu_host::Answer::Unknown)
                .map(|item| item.id)
                .collect();
            Err(Failure::Measure(format!("could not be measured: {}", open.join(", "))))
        }
    }
}

pub(crate) fn items_text(items: &[Item]) -> String {
    let mut out = String::new();
    for item in items {
        let word = match (item.answer, item.hard) {
            (iommu_host::Answer::No, false) => style::doubt("warn"),
            (iommu_host::Answer::No, true) => style::bad("no"),
            (iommu_host::Answer::Unknown, _) => style::doubt("unknown"),
            (iommu_host::Answer::Yes, _) => style::good("yes"),
        };
        out.push_str(&format!(
            "{word:7} {}\n        {}\n",
            item.question,
            style::paragraph(&prose(&item.detail), 8, 8)
        ));
        if let Some(advice) = item.advice.as_ref().filter(|_| item.answer != iommu_host::Answer::Yes) {
            out.push_str(&format!(
                "        -> {}\n",
                style::paragraph(&printable(advice), 11, 11)
            ));
        }
    }
    out
}

pub(crate) fn items_json(items: &[Item]) -> Vec<Value> {
    items
        .iter()
        .map(|item| {
            json!({
                "id": item.id,
                "question": item.question,
                "answer": item.answer.word(),
                "hard": item.hard,
                "detail": printable(&item.detail),
                "advice": item.advice,
            })
        })
        .collect()
}
