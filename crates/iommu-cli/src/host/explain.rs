//! `iommu explain`: why a function is grouped as it is, or why two are together or apart.

use acpi_dmar::{Dmar, Owner};
use clap::Args;
use iommu_groups::pci::acs;
use iommu_groups::{AcsBits, Explanation, Function, Groups, Isolation, Lack, Presence, Rules, Topology, group};
use iommu_host::{Buses, Knowledge, Machine};
use iommu_types::Bdf;
use serde_json::{Value, json};

use super::groups::{cause_json, causes, function_json};
use super::names::{Names, printable, prose, short};
use super::select::select_one;
use super::{Answer, Source, next, notes};
use crate::exit::{Failure, Verdict};
use crate::style;

/// Grows when a key changes its meaning.
const SCHEMA: u32 = 1;

/// Other functions that are shown, each with its chain in the JSON.
const SHOWN_OTHERS: usize = 64;

/// What `iommu explain` is told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A function: an address, vendor:device, an interface or a disk
    function: String,
    /// Another one, to say why they are together or apart
    other: Option<String>,
    #[command(flatten)]
    pub(crate) source: Source,
}

pub(crate) fn run(options: &Options) -> Result<Answer, Failure> {
    let machine = options.source.open()?;
    let names = options.source.names()?;
    let a = select_one(&machine, &options.function)?;
    let topology = machine.topology();
    let linux = group(&topology, machine.linux_rules());
    let strict = group(&topology, Rules::Strict);
    match &options.other {
        None => {
            let mut answer = one(&machine, &names, &topology, &linux, &strict, a);
            if topology.get(a).is_some_and(|f| !f.is_bridge()) {
                let command = format!("iommu check {}{}", short(a), options.source.again());
                let why = "whether it can be given to a guest";
                answer.text.push_str(&format!("\n{}", next("next:", &command, why)));
            }
            Ok(answer)
        }
        Some(other) => {
            let b = select_one(&machine, other)?;
            if a == b {
                return Err(Failure::Input(format!(
                    "{} and {other} are the same function; name two",
                    options.function
                )));
            }
            two(&machine, &names, &topology, &linux, &strict, a, b)
                .ok_or_else(|| Failure::Measure(format!("{a} or {b} could not be read")))
        }
    }
}

/// A bridge or function on the way up, and whether it isolates.
fn step(topology: &Topology, f: &Function, rules: Rules) -> String {
    let mut text = format!("{} {}", short(f.bdf), f.describe());
    match f.acs {
        Presence::Present(state) => text.push_str(&format!(
            ", ACS can {} and has on {}",
            AcsBits(state.capability & acs::BASIC),
            AcsBits(state.control & acs::BASIC)
        )),
        Presence::Absent => text.push_str(", no ACS"),
        Presence::Unknown => text.push_str(", ACS not known"),
    }
    match topology.isolation(f, rules) {
        Isolation::Isolated(grounds) => text.push_str(&format!(": {}, {grounds}", style::good("isolates"))),
        Isolation::Lacking(lack) => text.push_str(&format!(": {}, {lack}", style::doubt("does not isolate"))),
    }
    text
}

/// The same for programs: yes, no, or null for not known.
fn step_json(topology: &Topology, f: &Function, rules: Rules) -> Value {
    let isolation = topology.isolation(f, rules);
    let lack = isolation.lack();
    let acs = f.acs.present();
    let bits = |bits: u16| AcsBits(bits & acs::BASIC).to_string();
    json!({
        "address": f.bdf.to_string(),
        "kind": f.describe(),
        "isolates": match isolation {
            Isolation::Isolated(_) => json!(true),
            Isolation::Lacking(Lack::Unknown) => Value::Null,
            Isolation::Lacking(_) => json!(false),
        },
        "because": match isolation {
            Isolation::Isolated(grounds) => grounds.to_string(),
            Isolation::Lacking(lack) => lack.to_string(),
        },
        "lacks": lack.map(|lack| lack.code()),
        "missing_controls": lack.and_then(|lack| lack.missing()).map(|bits| bits.to_string()),
        "acs_capability": acs.map(|acs| bits(acs.capability)),
        "acs_control": acs.map(|acs| bits(acs.control)),
    })
}

pub(crate) fn one(
    machine: &Machine,
    names: &Names,
    topology: &Topology,
    linux: &Groups,
    strict: &Groups,
    bdf: Bdf,
) -> Answer {
    let rules = linux.rules();
    let mut out = format!("{} {}\n", style::title(short(bdf)), names.label(machine, bdf));
    let kernel = machine.functions.get(&bdf).map(|f| &f.group);
    match kernel {
        Some(Knowledge::Known(number)) => out.push_str(&format!("in the kernel's group {number}\n")),
        Some(Knowledge::Unknown(why)) => {
            out.push_str(&format!("the kernel's group is not known: {why}; {}\n", why.remedy()))
        }
        _ => out.push_str("in no group of the running kernel\n"),
    }
    if let Some(unit) = unit(machine, topology, bdf) {
        out.push_str(&format!("{unit}\n"));
    }
    out.push_str(&heading("the IOMMU sees its requests as"));
    let aliases = topology.aliases(bdf);
    for alias in &aliases {
        out.push_str(&format!("  {} ({})\n", alias.source, prose(&alias.via.to_string())));
    }
    out.push_str(&heading("the way up"));
    let own = topology.get(bdf);
    let path: Vec<String> = own
        .into_iter()
        .chain(topology.bridges_above(bdf))
        .map(|f| step(topology, f, rules))
        .collect();
    for step in &path {
        out.push_str(&format!("  {step}\n"));
    }
    let together: Vec<Bdf> = linux
        .of(bdf)
        .map(|group| group.members.iter().copied().filter(|other| *other != bdf).collect())
        .unwrap_or_default();
    let mut chains = Vec::new();
    if together.is_empty() {
        out.push_str(&heading("nothing else is in its group"));
    } else {
        let others = if together.len() == 1 {
            "in its group is 1 other".to_owned()
        } else {
            format!("in its group are {} others", together.len())
        };
        out.push_str(&heading(&others));
        for other in together.iter().take(SHOWN_OTHERS) {
            out.push_str(&format!("  {} {}\n", short(*other), names.label(machine, *other)));
            if let Some(Explanation::Together(chain)) = linux.explain(topology, bdf, *other) {
                chains.push((*other, chain));
            }
        }
        if together.len() > SHOWN_OTHERS {
            out.push_str(&format!("  and {} more\n", together.len() - SHOWN_OTHERS));
        }
        out.push_str(&heading("because"));
        for cause in causes(chains.iter().flat_map(|(_, chain)| chain)) {
            out.push_str(&format!("  {}\n", style::paragraph(&cause, 2, 4)));
        }
        if let Some(peer) = together
            .iter()
            .filter_map(|other| topology.get(*other))
            .find(|f| f.has_memory)
        {
            out.push_str(&format!(
                "\n{} {} could write to the memory of {} directly, past the IOMMU, if an address it uses happens to be there\n",
                style::title("what it means:"),
                short(bdf),
                short(peer.bdf)
            ));
        }
    }
    let uncertain = linux.of(bdf).is_none_or(|group| group.uncertain);
    if uncertain {
        out.push_str(&format!(
            "\n{} parts of configuration space could not be read, so the group may really be smaller; run as root\n",
            style::doubt("unknown:")
        ));
    }
    let unread = |f: &Function| matches!(topology.isolation(f, rules), Isolation::Lacking(Lack::Unknown));
    if !uncertain && own.into_iter().chain(topology.bridges_above(bdf)).any(unread) {
        out.push_str(&format!(
            "\n{} what could not be read changes nothing about the group; root can read it\n",
            style::doubt("unknown:")
        ));
    }
    let holes: Vec<Bdf> = strict
        .of(bdf)
        .map(|group| {
            let more = |other: &Bdf| linux.together(bdf, *other) == Some(false);
            group.members.iter().copied().filter(more).collect()
        })
        .unwrap_or_default();
    if !holes.is_empty() && !uncertain {
        out.push_str(&format!(
            "\n{} by PCI Express's own rules these are not kept apart from it, although Linux says so\n",
            style::doubt("finding:")
        ));
        let mut chains = Vec::new();
        for other in holes.iter().take(SHOWN_OTHERS) {
            out.push_str(&format!("  {} {}\n", short(*other), names.label(machine, *other)));
            if let Some(Explanation::Together(chain)) = strict.explain(topology, bdf, *other) {
                chains.extend(chain);
            }
        }
        out.push_str("because\n");
        for cause in causes(&chains) {
            out.push_str(&format!("  {}\n", style::paragraph(&cause, 2, 4)));
        }
    }
    out.push_str(&notes(machine));
    Answer {
        text: out,
        json: json!({
            "schema": SCHEMA,
            "function": function_json(machine, names, bdf),
            "kernel_group": kernel.and_then(Knowledge::known),
            "aliases": aliases.iter().map(|alias| json!({
                "requester": alias.source.to_string(), "via": alias.via.to_string(),
            })).collect::<Vec<_>>(),
            "unit": unit(machine, topology, bdf),
            "way_up": path.iter().map(|step| anstream::adapter::strip_str(step).to_string()).collect::<Vec<_>>(),
            "path": own.into_iter().chain(topology.bridges_above(bdf)).map(|f| step_json(topology, f, rules)).collect::<Vec<_>>(),
            "together_with": chains.iter().map(|(other, chain)| json!({
                "function": function_json(machine, names, *other), "because": hops_json(chain),
            })).collect::<Vec<_>>(),
            "uncertain": uncertain,
            "reachable_by_strict_rules": holes.iter().map(ToString::to_string).collect::<Vec<_>>(),
        }),
        verdict: Ok(Verdict::Yes),
    }
}

/// The heading of a part.
fn heading(text: &str) -> String {
    format!("\n{}\n", style::title(text))
}

/// Which unit of the firmware's table serves the function, and the statement that says so; `None` without a table.
fn unit(machine: &Machine, topology: &Topology, bdf: Bdf) -> Option<String> {
    let table = Dmar::inspect(machine.dmar.known()?).ok()?;
    Some(match table.owner(bdf, &Buses(topology)) {
        Owner::Unit(index, why) => {
            let base = table.units().nth(index).map(|unit| unit.register_base());
            let address = base.map_or_else(String::new, |base| format!(" at {:#x}", base.raw()));
            // The kernel numbers units otherwise than the table does.
            let mut names = machine.units.known().into_iter().flatten();
            let named = names.find(|unit| base.is_some() && unit.address.known() == base.as_ref());
            let name = named.map_or_else(String::new, |unit| format!(" ({})", printable(&unit.name)));
            format!("served by unit {index}{address}{name}: {why}")
        }
        Owner::NotCovered => "served by no unit: its DMA is not remapped".to_owned(),
        Owner::Unknown(doubt) => format!("which unit serves it is not known: {doubt}"),
    })
}

fn hops_json(chain: &[iommu_groups::Hop]) -> Vec<Value> {
    chain
        .iter()
        .map(|hop| {
            let mut value = cause_json(&hop.to_string(), hop);
            if let Some(object) = value.as_object_mut() {
                object.insert("from".into(), json!(hop.from.to_string()));
                object.insert("to".into(), json!(hop.to.to_string()));
            }
            value
        })
        .collect()
}

pub(crate) fn two(
    machine: &Machine,
    names: &Names,
    topology: &Topology,
    linux: &Groups,
    strict: &Groups,
    a: Bdf,
    b: Bdf,
) -> Option<Answer> {
    let explained = linux.explain(topology, a, b)?;
    let by_strict = strict.explain(topology, a, b)?;
    let mut out = format!(
        "{} {}\n{} {}\n\n",
        style::title(short(a)),
        names.label(machine, a),
        style::title(short(b)),
        names.label(machine, b)
    );
    let group_of = |bdf: Bdf| machine.functions.get(&bdf).and_then(|f| f.group.known().copied());
    let kernel = group_of(a).zip(group_of(b)).map(|(a, b)| a == b);
    let mut reasons = Vec::new();
    let together = matches!(explained, Explanation::Together(_));
    match &explained {
        Explanation::Together(chain) => {
            out.push_str(&format!("{}\n", style::doubt("together:")));
            for hop in chain {
                out.push_str(&format!("  {}\n", style::paragraph(&prose(&hop.to_string()), 2, 4)));
                reasons.push(hop.to_string());
            }
        }
        Explanation::Apart(barriers) => {
            out.push_str(&format!("{}\n", style::good("apart:")));
            for barrier in barriers {
                out.push_str(&format!("  {}\n", style::paragraph(&prose(&barrier.to_string()), 2, 4)));
                reasons.push(barrier.to_string());
            }
        }
    }
    if let Some(kernel) = kernel.filter(|kernel| *kernel != together) {
        let word = if kernel { "together" } else { "apart" };
        out.push_str(&format!(
            "\n{} the running kernel has them {word}\n",
            style::bad("finding:")
        ));
    }
    let strictly = matches!(by_strict, Explanation::Together(_));
    if let (Explanation::Together(chain), false) = (&by_strict, together) {
        out.push_str(&format!(
            "\n{} by PCI Express's own rules they can reach each other:\n",
            style::doubt("finding:")
        ));
        for hop in chain {
            out.push_str(&format!("  {}\n", style::paragraph(&prose(&hop.to_string()), 2, 4)));
        }
    }
    out.push_str(&notes(machine));
    Some(Answer {
        text: out,
        json: json!({
            "schema": SCHEMA,
            "a": function_json(machine, names, a),
            "b": function_json(machine, names, b),
            "together": together,
            "because": reasons,
            "together_in_kernel": kernel,
            "together_by_strict_rules": strictly,
        }),
        verdict: Ok(if kernel.is_some_and(|kernel| kernel != together) {
            Verdict::Findings
        } else {
            Verdict::Yes
        }),
    })
}
