//! `iommu doctor` and `iommu check`: questions with three answers.

use std::path::PathBuf;

use clap::Args;
use iommu_groups::group;
use iommu_host::check::{self, Plan};
use iommu_host::{Item, Machine, doctor, overall};
use iommu_types::Bdf;
use serde_json::{Value, json};

use super::groups::function_json;
use super::names::{Names, printable, short};
use super::select::select;
use super::{Answer, Source, notes};
use crate::exit::{Failure, Verdict};
use crate::size;

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
    /// Functions to give to one guest: addresses, vendor:device, interfaces or disks
    #[arg(required = true)]
    functions: Vec<String>,
    /// Memory of the guest, as in 16G
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    mem: Option<u64>,
    #[command(flatten)]
    pub(crate) source: Source,
}

pub(crate) fn run(options: &Options) -> Result<Answer, Failure> {
    Ok(diagnosis(&options.source.open()?))
}

pub(crate) fn run_check(options: &CheckOptions) -> Result<Answer, Failure> {
    let machine = options.source.open()?;
    let mut chosen: Vec<Bdf> = Vec::new();
    for selector in &options.functions {
        chosen.extend(select(&machine, selector)?);
    }
    chosen.sort_unstable();
    chosen.dedup();
    let plan = Plan {
        memory: options.mem,
        lockable: if options.source.root.is_none() {
            lockable()
        } else {
            None
        },
    };
    Ok(checked(&machine, &Names::of_system(), &chosen, plan))
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

pub(crate) fn diagnosis(machine: &Machine) -> Answer {
    let diagnosis = doctor::examine(machine);
    let text = format!(
        "{}\n\n{}{}",
        diagnosis.state.describe(),
        items_text(&diagnosis.items),
        notes(machine)
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

pub(crate) fn checked(machine: &Machine, names: &Names, chosen: &[Bdf], plan: Plan) -> Answer {
    let topology = machine.topology();
    let groups = group(&topology, machine.linux_rules());
    let items = check::check(machine, &topology, &groups, chosen, plan);
    let mut text = String::new();
    for bdf in chosen {
        text.push_str(&format!("{} {}\n", short(*bdf), names.label(machine, *bdf)));
    }
    let headline = match overall(&items) {
        iommu_host::Answer::Yes => "can be given to a guest",
        iommu_host::Answer::No => "cannot be given to a guest as it is",
        iommu_host::Answer::Unknown => "not known whether it can be given to a guest",
    };
    text.push_str(&format!("{headline}\n\n{}{}", items_text(&items), notes(machine)));
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

fn verdict(items: &[Item]) -> Result<Verdict, Failure> {
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

fn items_text(items: &[Item]) -> String {
    let mut out = String::new();
    for item in items {
        let word = match (item.answer, item.hard) {
            (iommu_host::Answer::No, false) => "warn",
            (answer, _) => answer.word(),
        };
        out.push_str(&format!(
            "{word:7} {}\n        {}\n",
            item.question,
            printable(&item.detail)
        ));
        if let Some(advice) = item.advice.as_ref().filter(|_| item.answer != iommu_host::Answer::Yes) {
            out.push_str(&format!("        -> {}\n", printable(advice)));
        }
    }
    out
}

fn items_json(items: &[Item]) -> Vec<Value> {
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
