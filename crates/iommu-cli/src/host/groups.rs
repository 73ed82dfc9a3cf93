//! `iommu groups`: what is grouped with what.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Args, ValueEnum};
use iommu_groups::{Difference, Groups, Hop, Reason, Rules, Topology, differences, group};
use iommu_host::{Knowledge, Machine};
use iommu_types::Bdf;
use serde_json::{Value, json};

use super::names::{Names, printable, prose, short};
use super::select::Filter;
use super::{Answer, Source, count, next, notes};
use crate::exit::{Failure, Verdict};
use crate::style;

/// Grows when a key changes its meaning.
const SCHEMA: u32 = 1;

/// Whose groups are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Model {
    /// The running kernel's if it has any, else as Linux would make them
    Auto,
    /// As Linux makes them
    Linux,
    /// As PCI Express defines access control
    Strict,
}

/// How they are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// With drivers and reasons
    Text,
    /// `IOMMU Group N <line of lspci -nn>`, as the well-known shell loop prints it, sorted by number
    Shell,
}

/// What `iommu groups` is told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Whose groups
    #[arg(long, value_enum, default_value = "auto")]
    model: Model,
    /// How to show them
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Show functions below their bridges, with the group of each
    #[arg(long, conflicts_with = "format")]
    tree: bool,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    pub(crate) source: Source,
}

/// What is shown of the groups, and how.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// Whose groups.
    pub(crate) model: Model,
    /// How they are shown.
    pub(crate) format: Format,
    /// Below their bridges.
    pub(crate) tree: bool,
    /// Only groups that one of these functions is in; `None` for all.
    pub(crate) only: Option<Vec<Bdf>>,
    /// The same machine again, at the end of a command to try next.
    pub(crate) again: String,
}

impl Default for View {
    fn default() -> Self {
        Self {
            model: Model::Auto,
            format: Format::Text,
            tree: false,
            only: None,
            again: String::new(),
        }
    }
}

/// A group to show.
#[derive(Debug)]
struct Shown {
    number: u32,
    functions: Vec<Bdf>,
    others: Vec<String>,
    kind: Option<String>,
    uncertain: bool,
}

pub(crate) fn run(options: &Options) -> Result<Answer, Failure> {
    let machine = options.source.open()?;
    let view = View {
        model: options.model,
        format: options.format,
        tree: options.tree,
        only: options.filter.select(&machine)?,
        again: options.source.again(),
    };
    Ok(answer(&machine, &options.source.names()?, &view))
}

/// Whether something that groups rest on could not be read.
pub(crate) fn uncertain(groups: &Groups) -> bool {
    groups.all().iter().any(|group| group.uncertain)
}

pub(crate) fn answer(machine: &Machine, names: &Names, view: &View) -> Answer {
    let model = view.model;
    let topology = machine.topology();
    let linux = group(&topology, machine.linux_rules());
    let strict = group(&topology, Rules::Strict);
    let from_kernel = model == Model::Auto && machine.has_groups() == Some(true);
    let (source, mut shown) = if from_kernel {
        ("kernel", kernel_groups(machine, &linux))
    } else if model == Model::Strict {
        ("strict", computed_groups(&strict))
    } else {
        ("linux", computed_groups(&linux))
    };
    let reasons = if source == "strict" { &strict } else { &linux };
    let all = shown.len();
    if let Some(only) = &view.only {
        let only: BTreeSet<Bdf> = only.iter().copied().collect();
        shown.retain(|group| group.functions.iter().any(|bdf| only.contains(bdf)));
    }
    let disagreement = from_kernel && !uncertain(&linux) && disagrees(machine, &linux);
    let holes: Vec<Difference> = if uncertain(&strict) {
        Vec::new()
    } else {
        differences(&linux, &strict)
            .into_iter()
            .filter(|difference| matches!(difference, Difference::Hole { .. }))
            .collect()
    };
    let text = if view.format == Format::Shell {
        shell(machine, names, &shown)
    } else {
        let mut out = heading(machine, source, &shown, all);
        if view.tree {
            out.push_str(&tree_text(machine, names, &topology, &shown, view.only.is_some()));
        } else {
            out.push_str(&list(machine, names, reasons, &shown));
        }
        if disagreement {
            out.push_str(&format!(
                "\n{} the kernel's groups are not those that its own rules give for this topology; was it started with \
                 pcie_acs_override, or is a quirk missing here? Compare with {}\n",
                style::bad("finding:"),
                style::command("iommu groups --model linux"),
            ));
        }
        if uncertain(&linux) {
            out.push_str(&format!(
                "\n{} parts of configuration space could not be read, so isolation is not known everywhere; run as root, or \
                 read a snapshot that root took\n",
                style::doubt("unknown:"),
            ));
        }
        if model != Model::Strict && !holes.is_empty() {
            out.push_str(&format!(
                "\n{} {} of groups can reach each other although Linux keeps them apart (--model strict joins them; \
                 `iommu explain` says how)\n",
                style::doubt("finding:"),
                count(holes.len(), "pair"),
            ));
        }
        out.push_str(&notes(machine));
        out.push_str(&next_of(machine, &topology, &shown, &view.again));
        out
    };
    Answer {
        text,
        json: json!({
            "schema": SCHEMA,
            "source": source,
            "groups": shown.iter().map(|group| json!({
                "number": group.number,
                "type": group.kind,
                "uncertain": group.uncertain,
                "functions": group.functions.iter().map(|bdf| function_json(machine, names, *bdf)).collect::<Vec<_>>(),
                "others": group.others,
                "because": named_causes(hops(reasons, group)).iter().map(|(cause, hop)| cause_json(cause, hop)).collect::<Vec<_>>(),
            })).collect::<Vec<_>>(),
            "kernel_disagrees": from_kernel.then_some(disagreement),
            "uncertain": uncertain(&linux),
            "holes": holes.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "problems": topology.problems().iter().map(ToString::to_string).collect::<Vec<_>>(),
            "notes": machine.notes,
            "not_judged": machine.wide_domains,
        }),
        verdict: Ok(if disagreement { Verdict::Findings } else { Verdict::Yes }),
    }
}

fn kernel_groups(machine: &Machine, linux: &Groups) -> Vec<Shown> {
    let groups = machine.groups.known().into_iter().flat_map(BTreeMap::values);
    groups
        .map(|group| Shown {
            number: group.number,
            functions: group.functions.clone(),
            others: group.others.clone(),
            kind: group.kind.known().cloned(),
            uncertain: group
                .functions
                .iter()
                .any(|bdf| linux.of(*bdf).is_none_or(|group| group.uncertain)),
        })
        .collect()
}

fn computed_groups(groups: &Groups) -> Vec<Shown> {
    groups
        .all()
        .iter()
        .map(|group| Shown {
            number: u32::try_from(group.number).unwrap_or(u32::MAX),
            functions: group.members.clone(),
            others: Vec::new(),
            kind: None,
            uncertain: group.uncertain,
        })
        .collect()
}

/// Whether the kernel's partition differs from the computed one, over functions that both know.
fn disagrees(machine: &Machine, linux: &Groups) -> bool {
    let Some(kernel) = machine.kernel_partition() else {
        return false;
    };
    let mut known: Vec<Vec<Bdf>> = kernel
        .into_iter()
        .map(|group| group.into_iter().filter(|bdf| linux.of(*bdf).is_some()).collect())
        .filter(|group: &Vec<Bdf>| !group.is_empty())
        .collect();
    let grouped: BTreeSet<Bdf> = known.iter().flatten().copied().collect();
    let mut computed: Vec<Vec<Bdf>> = linux
        .all()
        .iter()
        .map(|group| {
            group
                .members
                .iter()
                .copied()
                .filter(|bdf| grouped.contains(bdf))
                .collect()
        })
        .filter(|group: &Vec<Bdf>| !group.is_empty())
        .collect();
    known.sort_unstable();
    computed.sort_unstable();
    known != computed
}

fn heading(machine: &Machine, source: &str, shown: &[Shown], all: usize) -> String {
    let functions: usize = shown.iter().map(|group| group.functions.len()).sum();
    let whose = match (source, &machine.groups) {
        ("kernel", _) => "as the running kernel has them".to_owned(),
        ("strict", _) => "as PCI Express defines access control".to_owned(),
        (_, Knowledge::Known(groups)) if groups.is_empty() => {
            "as Linux would make them; the running kernel has none, since it uses no IOMMU (`iommu doctor` says why)"
                .to_owned()
        }
        (_, Knowledge::Unknown(why)) => format!("as Linux would make them; the kernel's own are not known: {why}"),
        _ => "as Linux makes them".to_owned(),
    };
    let of = if shown.len() < all {
        format!(" of {all}")
    } else {
        String::new()
    };
    format!(
        "{} in {}{of}, {whose}\n",
        count(functions, "function"),
        count(shown.len(), "group")
    )
}

/// What to ask next: about a group that several endpoints share, and about an endpoint that guests are given.
fn next_of(machine: &Machine, topology: &Topology, shown: &[Shown], again: &str) -> String {
    let endpoints = |group: &Shown| -> Vec<Bdf> {
        let is_endpoint = |bdf: &Bdf| topology.get(*bdf).is_some_and(|f| !f.is_bridge());
        group.functions.iter().copied().filter(is_endpoint).collect()
    };
    let shared = shown.iter().map(endpoints).find(|endpoints| endpoints.len() > 1);
    let mut lines = Vec::new();
    if let Some([a, b, ..]) = shared.as_deref() {
        let command = format!("iommu explain {} {}{again}", short(*a), short(*b));
        lines.push((command, "why they are together"));
    }
    let assignable = super::overview::worth_assigning(machine, topology);
    let of_shown = |bdf: &&Bdf| shown.iter().any(|group| group.functions.contains(bdf));
    if let Some(bdf) = assignable.iter().find(of_shown) {
        let command = format!("iommu check {}{again}", short(*bdf));
        lines.push((command, "whether it can be given to a guest"));
    }
    let mut out = String::new();
    for (at, (command, why)) in lines.iter().enumerate() {
        let lead = if at == 0 { "next:" } else { "" };
        out.push_str(if at == 0 { "\n" } else { "" });
        out.push_str(&next(lead, command, why));
    }
    out
}

fn line(machine: &Machine, names: &Names, bdf: Bdf) -> String {
    let mut text = format!("{} {}", style::title(short(bdf)), names.label(machine, bdf));
    let Some(f) = machine.functions.get(&bdf) else {
        return text;
    };
    if let Knowledge::Known(driver) = &f.driver {
        text.push_str(&format!("  {} {}", style::faint("driver"), printable(driver)));
    }
    for name in f.interfaces.iter().chain(&f.disks) {
        text.push_str(&format!("  {}", printable(name)));
    }
    if let Knowledge::Known(node) = f.node {
        text.push_str(&format!("  {} {}", style::faint("node"), node.0));
    }
    text
}

fn list(machine: &Machine, names: &Names, reasons: &Groups, shown: &[Shown]) -> String {
    let mut out = String::new();
    for group in shown {
        out.push_str(&format!("\n{}", style::title(format!("Group {}", group.number))));
        if let Some(kind) = &group.kind {
            out.push_str(&format!("  {}", printable(kind)));
        }
        if group.uncertain {
            out.push_str(&format!("  {}", style::doubt("(isolation not known)")));
        }
        out.push('\n');
        for bdf in &group.functions {
            out.push_str(&format!("  {}\n", line(machine, names, *bdf)));
        }
        for other in &group.others {
            out.push_str(&format!("  {} (no PCI function)\n", printable(other)));
        }
        out.push_str(&why(reasons, group));
    }
    out
}

/// Every hop between members of a group.
fn hops<'a>(groups: &'a Groups, group: &Shown) -> Vec<&'a Hop> {
    let members: BTreeSet<Bdf> = group.functions.iter().copied().collect();
    let numbers: BTreeSet<usize> = members
        .iter()
        .filter_map(|bdf| groups.of(*bdf))
        .map(|group| group.number)
        .collect();
    numbers
        .iter()
        .filter_map(|number| groups.all().get(*number))
        .flat_map(|group| groups.reasons(group))
        .filter(|hop| members.contains(&hop.from) && members.contains(&hop.to))
        .collect()
}

/// The causes of every hop between members of a group, each once.
fn why(groups: &Groups, group: &Shown) -> String {
    let mut out = String::new();
    for cause in causes(hops(groups, group)) {
        let cause = style::paragraph(&cause, 12, 12);
        out.push_str(&format!("    {} {cause}\n", style::faint("because")));
    }
    out
}

/// What stands behind hops: many functions are often together for one missing capability.
pub(crate) fn causes<'a>(hops: impl IntoIterator<Item = &'a Hop>) -> Vec<String> {
    named_causes(hops).into_iter().map(|(cause, _)| prose(&cause)).collect()
}

/// The same with full names, each with the first hop that it stands behind.
fn named_causes<'a>(hops: impl IntoIterator<Item = &'a Hop>) -> Vec<(String, &'a Hop)> {
    let mut seen = BTreeSet::new();
    let mut causes = Vec::new();
    for hop in hops {
        let cause = match hop.reason {
            Reason::Upstream { port, lack } => format!("{port} does not isolate what is below it: {lack}"),
            Reason::Port { lack } => format!("{} does not isolate what is below it: {lack}", hop.to),
            Reason::Slot { function, lack } => {
                format!("{function} can reach the other functions of its device inside it: {lack}")
            }
            Reason::SharedBus { bridge } => {
                format!("{bridge} leads to conventional PCI, where everybody on the bus can read along")
            }
            _ => hop.to_string(),
        };
        if seen.insert(cause.clone()) {
            causes.push((cause, hop));
        }
    }
    causes
}

fn shell(machine: &Machine, names: &Names, shown: &[Shown]) -> String {
    let mut groups: Vec<&Shown> = shown.iter().collect();
    groups.sort_by_key(|group| group.number);
    let mut out = String::new();
    for group in groups {
        for bdf in &group.functions {
            out.push_str(&format!(
                "IOMMU Group {} {} {}\n",
                group.number,
                short(*bdf),
                names.label(machine, *bdf)
            ));
        }
    }
    out
}

/// Functions below their bridges; with `cut`, only those in groups that are shown and the bridges above them.
fn tree_text(machine: &Machine, names: &Names, topology: &Topology, shown: &[Shown], cut: bool) -> String {
    let of: BTreeMap<Bdf, u32> = shown
        .iter()
        .flat_map(|group| group.functions.iter().map(|bdf| (*bdf, group.number)))
        .collect();
    let kept: Option<BTreeSet<Bdf>> = cut.then(|| {
        let above = of.keys().flat_map(|bdf| topology.bridges_above(*bdf)).map(|f| f.bdf);
        above.chain(of.keys().copied()).collect()
    });
    let mut out = format!("{}\n", style::faint("group"));
    // Functions are in bus order, parents first; depth is the number of bridges above.
    let mut stack: Vec<Bdf> = topology
        .functions()
        .iter()
        .filter(|f| topology.parent(f.bdf).is_none())
        .map(|f| f.bdf)
        .collect();
    stack.sort_unstable_by(|a, b| b.cmp(a));
    while let Some(bdf) = stack.pop() {
        if kept.as_ref().is_some_and(|kept| !kept.contains(&bdf)) {
            continue;
        }
        let depth = topology.bridges_above(bdf).count();
        let group = of.get(&bdf).map_or("-".to_owned(), u32::to_string);
        out.push_str(&format!(
            "{group:>5}  {}{}\n",
            "  ".repeat(depth),
            line(machine, names, bdf)
        ));
        let mut below: Vec<Bdf> = topology.below(bdf).map(|f| f.bdf).collect();
        below.sort_unstable_by(|a, b| b.cmp(a));
        stack.extend(below);
    }
    out
}

/// Why functions are together, for programs: the kind of reason, the function that it speaks about, what that lacks.
pub(crate) fn cause_json(words: &str, hop: &Hop) -> Value {
    let lack = hop.reason.lack();
    json!({
        "because": words,
        "code": hop.reason.code(),
        "at": hop.at().map(|bdf| bdf.to_string()),
        "lacks": lack.map(|lack| lack.code()),
        "missing_controls": lack.and_then(|lack| lack.missing()).map(|bits| bits.to_string()),
        "uncertain": hop.reason.is_uncertain(),
    })
}

/// A function, for programs.
pub(crate) fn function_json(machine: &Machine, names: &Names, bdf: Bdf) -> Value {
    let Some(f) = machine.functions.get(&bdf) else {
        return json!({"address": bdf.to_string()});
    };
    let identity = f.identity.known().copied().unzip();
    json!({
        "address": bdf.to_string(),
        "label": names.label(machine, bdf),
        "vendor": identity.0.map(|id: u16| format!("{id:04x}")),
        "device": identity.1.map(|id: u16| format!("{id:04x}")),
        "driver": knowledge_json(&f.driver, |driver| json!(driver)),
        "node": knowledge_json(&f.node, |node| json!(node.0)),
        "interfaces": f.interfaces,
        "disks": f.disks,
    })
}

/// A three-valued fact: the value, null for absent, or an object that says why it is unknown.
pub(crate) fn knowledge_json<T>(fact: &Knowledge<T>, value: impl Fn(&T) -> Value) -> Value {
    match fact {
        Knowledge::Known(known) => value(known),
        Knowledge::Absent => Value::Null,
        Knowledge::Unknown(why) => json!({"unknown": why.to_string(), "remedy": why.remedy()}),
    }
}
