//! `iommu plan`: the commands that give functions to a guest, and those that take them back.

use clap::{Args, ValueEnum};
use iommu_groups::group;
use iommu_host::check::Plan;
use iommu_host::plan::{self, Assignment, Holder, Move, PlanError, Purpose, Role, Route, Step, Until};
use iommu_host::{Item, Machine};
use iommu_types::Bdf;
use serde_json::{Value, json};

use super::doctor::{Guest, items_json, items_text, verdict};
use super::groups::function_json;
use super::names::{Names, printable, prose, short};
use super::{Answer, Source, next, notes};
use crate::exit::{Failure, Verdict};
use crate::style;

/// Grows when a key changes its meaning.
const SCHEMA: u32 = 1;

/// How the commands are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// All ways side by side, with what to know before
    Text,
    /// A script with driverctl: lasts over restarts
    Driverctl,
    /// A script with virsh, for use with the output of `--format xml`
    Virsh,
    /// The devices for a libvirt domain, as `virsh edit` or `virsh attach-device` takes them
    Xml,
    /// A script for any POSIX sh, busybox's too, that writes to sysfs: lasts until the next restart
    Sysfs,
}

/// What `iommu plan` is told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    guest: Guest,
    /// How to give the commands
    #[arg(long, value_enum, default_value = "text")]
    format: Format,
    /// Only the commands that take the functions back; before the plan is carried out they restore the drivers of now, after
    /// it the kernel picks the drivers
    #[arg(long)]
    undo: bool,
    /// Print the commands although something stands in the way
    #[arg(long)]
    anyway: bool,
    #[command(flatten)]
    pub(crate) source: Source,
}

/// What is wanted of a plan.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// How the commands are given.
    pub(crate) format: Format,
    /// Only those that take the functions back.
    pub(crate) undo: bool,
    /// Even if something stands in the way.
    pub(crate) anyway: bool,
    /// The same machine again, at the end of a command to try next.
    pub(crate) again: String,
}

pub(crate) fn run(options: &Options) -> Result<Answer, Failure> {
    let machine = options.source.open()?;
    let chosen = options.guest.functions(&machine)?;
    let view = View {
        format: options.format,
        undo: options.undo,
        anyway: options.anyway,
        again: options.source.again(),
    };
    answer(
        &machine,
        &options.source.names()?,
        &chosen,
        options.guest.plan(&options.source),
        &view,
    )
}

pub(crate) fn answer(
    machine: &Machine,
    names: &Names,
    chosen: &[Bdf],
    guest: Plan,
    view: &View,
) -> Result<Answer, Failure> {
    let topology = machine.topology();
    let groups = group(&topology, machine.linux_rules());
    let assignment = plan::plan(machine, &topology, &groups, chosen, guest).map_err(|why: PlanError| {
        Failure::Input(match why {
            PlanError::Bridge(_) => format!("{why} (`iommu groups --tree` shows them)"),
            why => why.to_string(),
        })
    })?;
    drivers_are_names(&assignment)?;
    // What stands in the way of taking a function away does not stand in the way of giving it back.
    let forth = view.anyway || assignment.answer() != iommu_host::Answer::No;
    let allowed = forth || view.undo;
    let text = match view.format {
        Format::Text => text(machine, names, &assignment, view, allowed),
        Format::Xml => xml(machine, names, &assignment, view, allowed),
        Format::Driverctl => script(machine, names, &assignment, &assignment.driverctl, view, allowed),
        Format::Virsh => script(machine, names, &assignment, &assignment.virsh, view, allowed),
        Format::Sysfs => script(machine, names, &assignment, &assignment.sysfs, view, allowed),
    };
    let verdict = match verdict(&assignment.items) {
        _ if view.undo => Ok(Verdict::Yes),
        Ok(Verdict::Findings) if view.anyway => Ok(Verdict::Yes),
        verdict => verdict,
    };
    Ok(Answer {
        text,
        json: plan_json(machine, names, &assignment, forth, allowed),
        verdict,
    })
}

/// Names of drivers stand in commands: what is none of a kernel's module names gets into none.
fn drivers_are_names(assignment: &Assignment) -> Result<(), Failure> {
    for f in &assignment.functions {
        if let Holder::Host(driver) | Holder::UserSpace(driver) = &f.holder {
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '+');
            if driver.is_empty() || driver.starts_with('.') || !driver.chars().all(plain) {
                return Err(Failure::Input(format!(
                    "{}: {:?} is no name that a driver has; no command is made of it",
                    f.bdf,
                    printable(driver)
                )));
            }
        }
    }
    Ok(())
}

/// Who moves, in words.
fn moved_line(machine: &Machine, names: &Names, f: &Move, undo: bool) -> String {
    let why = match f.role {
        Role::Chosen => "for the guest",
        Role::Companion => "shares its group",
    };
    let stays = if undo { !f.goes_back() } else { !f.needs_binding() };
    let now = match &f.holder {
        Holder::Nobody => "no driver now".to_owned(),
        holder if stays => format!("stays with {holder}"),
        holder => format!("now with {holder}"),
    };
    format!(
        "{} {}  {why}, {}",
        short(f.bdf),
        names.label(machine, f.bdf),
        printable(&now)
    )
}

/// A command as it works wherever the driver comes from: built in, loaded already, or a module.
fn command_of(step: &Step) -> String {
    match step.purpose {
        Purpose::Load => format!("[ -d /sys/bus/pci/drivers/{} ] || {}", plan::DRIVER, step.command),
        _ => step.command.clone(),
    }
}

const fn lasts(route: &Route) -> &'static str {
    match route.lasts {
        Until::Undone => "lasts over restarts, until it is undone",
        Until::Restart => "lasts until it is undone or the host restarts",
        Until::GuestEnd => "lasts until the guest ends for the chosen ones, until it is undone for the others",
    }
}

/// What is lost once the steps are carried out.
fn way_back(assignment: &Assignment) -> Option<&'static str> {
    let left = assignment.functions.iter().any(Move::has_left);
    left.then_some("which driver they had before is not known any more: the kernel picks the one that claims the model")
}

fn refusal(items: &[Item]) -> String {
    let no: Vec<&str> = items
        .iter()
        .filter(|item| item.hard && item.answer == iommu_host::Answer::No)
        .map(|item| item.id)
        .collect();
    format!("it must not be done as things are: {}", no.join(", "))
}

fn text(machine: &Machine, names: &Names, assignment: &Assignment, view: &View, allowed: bool) -> String {
    let mut out = String::new();
    for f in &assignment.functions {
        let line = moved_line(machine, names, f, view.undo);
        out.push_str(&match f.role {
            Role::Chosen => format!("{}\n", style::title(line)),
            Role::Companion => format!("{line}\n"),
        });
    }
    let open: Vec<Item> = assignment.warnings().cloned().collect();
    if !open.is_empty() && !view.undo {
        out.push_str(&format!(
            "\n{}\n{}",
            style::title("before you do it"),
            items_text(&open)
        ));
    }
    if !allowed {
        out.push_str(&format!(
            "\n{}; no command is printed ({} prints them)\n",
            style::bad(refusal(&assignment.items)),
            style::command("--anyway")
        ));
        out.push_str(&notes(machine));
        return out;
    }
    out.push_str(if view.undo {
        "\nThe way back is the way that was taken; all commands are for root, none of them has been run.\n"
    } else {
        "\nOne of these ways is enough; all commands are for root, none of them has been run.\n"
    });
    if let Some(words) = way_back(assignment) {
        out.push_str(&format!(
            "{}\n",
            style::paragraph(&sentence(&format!("{words}.")), 0, 0)
        ));
    }
    let mut way = |name: &str, route: &Route, before: &str| {
        out.push_str(&format!("\n{} ({})\n", style::title(name), lasts(route)));
        if !view.undo {
            if route.prepare.is_empty() && before.is_empty() {
                out.push_str("  nothing is left to do\n");
            }
            for step in &route.prepare {
                out.push_str(&format!("  {}\n", style::command(command_of(step))));
            }
            out.push_str(before);
        }
        if !route.undo.is_empty() {
            out.push_str(&format!("  {}\n", style::faint("to undo it, once no guest uses them:")));
            for step in &route.undo {
                out.push_str(&format!("    {}\n", step.command));
            }
        }
    };
    way("driverctl", &assignment.driverctl, "");
    let mut devices = "  in the domain (virsh edit GUEST), below <devices>:\n".to_owned();
    for f in assignment.chosen() {
        for line in f.hostdev(true).lines() {
            devices.push_str(&format!("    {line}\n"));
        }
    }
    way("libvirt", &assignment.virsh, if view.undo { "" } else { &devices });
    way("sysfs", &assignment.sysfs, "");
    if !view.undo {
        out.push_str(&format!("\n{}\n", style::title("then, without libvirt")));
        let options: Vec<String> = assignment.chosen().map(Move::qemu_option).collect();
        out.push_str(&format!("  qemu-system-x86_64 … {}\n", options.join(" ")));
    }
    out.push_str(&notes(machine));
    let undo = if view.undo { " --undo" } else { "" };
    let command = format!(
        "iommu plan {} --format sysfs{undo}{}",
        chosen_text(assignment),
        view.again
    );
    out.push_str(&format!("\n{}", next("next:", &command, "a script for sh")));
    out
}

fn chosen_text(assignment: &Assignment) -> String {
    let chosen: Vec<String> = assignment.chosen().map(|f| short(f.bdf)).collect();
    chosen.join(" ")
}

/// Words at the start of a sentence.
fn sentence(words: &str) -> String {
    let mut letters = words.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn script(
    machine: &Machine,
    names: &Names,
    assignment: &Assignment,
    route: &Route,
    view: &View,
    allowed: bool,
) -> String {
    let mut out = "#!/bin/sh\n".to_owned();
    for f in &assignment.functions {
        out.push_str(&format!("# {}\n", moved_line(machine, names, f, view.undo)));
    }
    for item in assignment.warnings().filter(|_| !view.undo) {
        out.push_str(&format!(
            "# {}: {} {}\n",
            item.answer.word(),
            item.question,
            prose(&item.detail)
        ));
    }
    if !allowed {
        let why = refusal(&assignment.items);
        out.push_str(&format!("echo \"{why}\" >&2\nexit 1\n"));
        return out;
    }
    let steps = if view.undo { &route.undo } else { &route.prepare };
    let what = if view.undo {
        let lost = way_back(assignment).map_or_else(String::new, |words| format!(".\n# {}", sentence(words)));
        format!("Takes them back; no guest may use them{lost}")
    } else {
        sentence(lasts(route))
    };
    out.push_str(&format!(
        "# {what}. Run it as root. It stops at the first command that fails.\nset -e\n"
    ));
    if steps.is_empty() {
        out.push_str("# nothing is left to do\n");
    }
    for step in steps {
        out.push_str(&format!("{}\n", command_of(step)));
    }
    out
}

/// Text inside an XML comment, where two hyphens may not stand side by side.
fn comment(text: &str) -> String {
    let mut plain = printable(text);
    while plain.contains("--") {
        plain = plain.replace("--", "- -");
    }
    format!("<!-- {} -->\n", plain.trim_end_matches('-'))
}

fn xml(machine: &Machine, names: &Names, assignment: &Assignment, view: &View, allowed: bool) -> String {
    if !allowed {
        return comment(&refusal(&assignment.items));
    }
    let mut out = String::new();
    let steps = if view.undo {
        &assignment.virsh.undo
    } else {
        &assignment.virsh.prepare
    };
    for step in steps {
        out.push_str(&comment(&format!(
            "{} the guest: {}",
            if view.undo { "after" } else { "before" },
            step.command
        )));
    }
    for f in assignment.chosen().filter(|_| !view.undo) {
        out.push_str(&comment(&moved_line(machine, names, f, view.undo)));
        out.push_str(&f.hostdev(true));
    }
    out
}

fn plan_json(machine: &Machine, names: &Names, assignment: &Assignment, forth: bool, back: bool) -> Value {
    let commands = |steps: &[Step], allowed: bool| -> Vec<String> {
        let steps: &[Step] = if allowed { steps } else { &[] };
        steps.iter().map(command_of).collect()
    };
    let route = |route: &Route| {
        json!({
            "prepare": commands(&route.prepare, forth),
            "undo": commands(&route.undo, back),
            "lasts": match route.lasts {
                Until::Undone => "until-undone",
                Until::Restart => "until-restart",
                Until::GuestEnd => "until-guest-ends",
            },
        })
    };
    json!({
        "schema": SCHEMA,
        "overall": assignment.answer().word(),
        "functions": assignment.functions.iter().map(|f| {
            let mut value = function_json(machine, names, f.bdf);
            if let Some(object) = value.as_object_mut() {
                let role = match f.role {
                    Role::Chosen => "chosen",
                    Role::Companion => "companion",
                };
                object.insert("role".into(), json!(role));
                object.insert("binds".into(), json!(f.needs_binding()));
                object.insert("libvirt".into(), json!(f.libvirt_name()));
            }
            value
        }).collect::<Vec<_>>(),
        "groups": assignment.groups.iter().map(|group| json!({
            "number": group.number,
            "endpoints": group.endpoints.iter().map(Bdf::to_string).collect::<Vec<_>>(),
            "bridges": group.bridges.iter().map(Bdf::to_string).collect::<Vec<_>>(),
            "others": group.others.iter().map(|other| printable(other)).collect::<Vec<_>>(),
            "certain": group.certain,
        })).collect::<Vec<_>>(),
        "driverctl": route(&assignment.driverctl),
        "virsh": route(&assignment.virsh),
        "sysfs": route(&assignment.sysfs),
        "xml": assignment.chosen().filter(|_| forth).map(|f| f.hostdev(true)).collect::<Vec<_>>(),
        "qemu": assignment.chosen().filter(|_| forth).map(Move::qemu_option).collect::<Vec<_>>(),
        "items": items_json(&assignment.items),
        "notes": machine.notes,
    })
}
