//! Whether the IOMMU works, and if not, who turned it off: judged by what is in effect, never by the command line alone.

use acpi_dmar::{Dmar, Owner, Severity, TableFlags};

use crate::buses::Buses;
use crate::item::{self, Answer, Item};
use crate::knowledge::{Knowledge, Obstacle};
use crate::lint;
use crate::log::{BootEvent, IrqMode};
use crate::machine::Machine;

/// How far the machine got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The kernel translates, or at least groups, the DMA of its devices.
    Working,
    /// There are units, but no groups: the kernel could not start them.
    InitFailed,
    /// The firmware has a table, but the kernel uses no unit.
    KernelOff,
    /// The firmware has no table.
    FirmwareOff,
    /// It cannot be known from what could be read.
    Unknown,
}

impl State {
    /// In words.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Working => "working: the kernel has IOMMU groups",
            Self::InitFailed => "the kernel found remapping units and could not start them",
            Self::KernelOff => "the firmware offers remapping units, and the kernel does not use them",
            Self::FirmwareOff => "the firmware offers no remapping units",
            Self::Unknown => "not known: too little could be read",
        }
    }
}

/// What the examination found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// How far it got.
    pub state: State,
    /// Questions and answers.
    pub items: Vec<Item>,
}

/// What offers a guest a remapping unit.
const GUEST_SETUP: &str = "this machine is a virtual machine: its hypervisor has to give it a virtual IOMMU (QEMU: -machine \
                           q35,kernel-irqchip=split -device intel-iommu,intremap=on; libvirt: <iommu model='intel'/>)";
const SETUP: &str = "turn on `VT-d`, `Intel Virtualization Technology for Directed I/O` or `IOMMU` in the firmware's setup; it is often \
                     below Chipset, System Agent or Northbridge, and some machines need `Virtualization` on as well";

/// Examines a machine.
#[must_use]
pub fn examine(machine: &Machine) -> Diagnosis {
    let state = state(machine);
    let mut items = vec![table(machine), in_use(machine, state), interrupts(machine)];
    items.extend(units_off(machine));
    items.extend(identity(machine));
    items.extend(lint_findings(machine));
    items.extend(coverage(machine));
    items.extend(taints(machine));
    items.extend(leftovers(machine));
    items.extend(firmware_complaints(machine));
    Diagnosis { state, items }
}

/// Whether the log starts with the kernel itself, so that what it does not say was not said.
fn log_is_whole(machine: &Machine) -> bool {
    machine
        .boot_events()
        .any(|(_, event)| matches!(event, BootEvent::Version(_)))
}

/// Whether the firmware has a table: from itself, else from the log.
fn has_table(machine: &Machine) -> Knowledge<()> {
    match &machine.dmar {
        Knowledge::Known(_) => Knowledge::Known(()),
        Knowledge::Absent => Knowledge::Absent,
        Knowledge::Unknown(why) => {
            let said = machine.boot_events().any(|(_, event)| {
                matches!(
                    event,
                    BootEvent::TableFound { .. }
                        | BootEvent::HostAddressWidth(_)
                        | BootEvent::Drhd { .. }
                        | BootEvent::Unit { .. }
                        | BootEvent::IrqRemapping(_)
                )
            });
            if said {
                Knowledge::Known(())
            } else if log_is_whole(machine) {
                Knowledge::Absent
            } else {
                Knowledge::Unknown(why.clone())
            }
        }
    }
}

fn state(machine: &Machine) -> State {
    match machine.has_groups() {
        Some(true) => State::Working,
        None => State::Unknown,
        Some(false) => {
            let units = machine.units.known().map(|units| !units.is_empty());
            match (units, has_table(machine)) {
                (Some(true), _) => State::InitFailed,
                (_, Knowledge::Known(())) => State::KernelOff,
                (_, Knowledge::Absent) if machine.ivrs.known().is_some() => State::KernelOff,
                (_, Knowledge::Absent) => State::FirmwareOff,
                (_, Knowledge::Unknown(_)) => State::Unknown,
            }
        }
    }
}

fn table(machine: &Machine) -> Item {
    const QUESTION: &str = "does the firmware describe remapping units (DMAR)?";
    match has_table(machine) {
        Knowledge::Known(()) => Item::hard("table", QUESTION, Answer::Yes, "the table is there"),
        Knowledge::Absent if machine.ivrs.known().is_some() => Item::hard(
            "table",
            QUESTION,
            Answer::Yes,
            "the machine has AMD's table (IVRS) instead, which is not judged here",
        ),
        // Other platforms have groups without either table.
        Knowledge::Absent if machine.has_groups() == Some(true) => Item::soft(
            "table",
            QUESTION,
            Answer::No,
            "there is none, but the kernel has groups by other means",
        ),
        Knowledge::Absent => Item::hard("table", QUESTION, Answer::No, "there is none").advise(
            if machine.platform.is_guest == Knowledge::Known(true) {
                GUEST_SETUP
            } else {
                SETUP
            },
        ),
        Knowledge::Unknown(why) => unknown("table", QUESTION, &why),
    }
}

fn unknown(id: &'static str, question: &'static str, why: &Obstacle) -> Item {
    Item::hard(id, question, Answer::Unknown, why.to_string()).advise(why.remedy())
}

/// A parameter of the command line that turns the IOMMU off.
fn off_by_command_line(machine: &Machine) -> Option<&str> {
    let line = machine.boot_parameters.known()?;
    line.split_whitespace().find(|word| {
        matches!(
            *word,
            "intel_iommu=off" | "iommu=off" | "amd_iommu=off" | "intel_iommu=off,"
        )
    })
}

/// The line of the log that says why there are no groups, and what to do about it.
fn failure(machine: &Machine) -> Option<(String, &'static str)> {
    const FIRMWARE: &str = "update the firmware; `iommu dmar show` says what is wrong with the table";
    machine.boot_events().find_map(|(line, event)| {
        let (words, advice) = match event {
            BootEvent::ParseFailure => ("the kernel gave the table up".to_owned(), FIRMWARE),
            BootEvent::FirmwareBug(words) => (words.clone(), FIRMWARE),
            BootEvent::NoAddressWidth { unit } => (no_width(*unit), WIDTH_ADVICE),
            BootEvent::DeviceFailed { device, error } => (
                format!("{device} could not be given to its unit, error {error}"),
                "a newer kernel may know the machine better; report it with the whole log",
            ),
            _ => return None,
        };
        Some((format!("line {line} of the log: {words}"), advice))
    })
}

fn no_width(unit: u32) -> String {
    format!("dmar{unit} offers no address width that the kernel can use (CAP.SAGAW)")
}

const WIDTH_ADVICE: &str = "`iommu caps` decodes its registers; update the firmware, or in a virtual machine give the virtual IOMMU \
                            another width (QEMU: aw-bits=48)";

/// Units that the kernel found and leaves off: what is behind them is not translated.
fn units_off(machine: &Machine) -> Option<Item> {
    const QUESTION: &str = "does the kernel use every unit?";
    let mut lines = machine.boot_events().filter_map(|(line, event)| match event {
        BootEvent::NoAddressWidth { unit } => Some((line, no_width(*unit), WIDTH_ADVICE)),
        BootEvent::GraphicsOff => Some((
            line,
            "the unit for graphics is left off, because its model has known defects".to_owned(),
            "the graphics device can reach all memory and cannot be given away; nothing else is touched",
        )),
        _ => None,
    });
    let (line, words, advice) = lines.next()?;
    let more = match lines.count() {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    Some(
        Item::soft(
            "units",
            QUESTION,
            Answer::No,
            format!("line {line} of the log: {words}{more}"),
        )
        .advise(advice),
    )
}

fn in_use(machine: &Machine, state: State) -> Item {
    const QUESTION: &str = "does the kernel use them?";
    match state {
        State::Working => {
            let count = machine.groups.known().map_or(0, std::collections::BTreeMap::len);
            Item::hard("translation", QUESTION, Answer::Yes, item::count(count, "group"))
        }
        State::InitFailed | State::KernelOff => {
            let failure = failure(machine);
            let mut item = Item::hard("translation", QUESTION, Answer::No, "there are no groups");
            if let Some(word) = off_by_command_line(machine) {
                item.detail = format!("there are no groups, and the command line has {word}");
                item.advice = Some(format!("remove {word} from the kernel's command line"));
            } else if let Some((words, advice)) = failure {
                item.detail = words;
                item.advice = Some(advice.to_owned());
            } else {
                item.advice = Some(
                    "add intel_iommu=on to the kernel's command line, and check that the kernel has CONFIG_INTEL_IOMMU"
                        .to_owned(),
                );
            }
            item
        }
        // What to do stands with the table.
        State::FirmwareOff => Item::hard("translation", QUESTION, Answer::No, "there are none to use"),
        State::Unknown => match (&machine.groups, &machine.dmar) {
            (Knowledge::Unknown(why), _) => unknown("translation", QUESTION, why),
            (_, Knowledge::Unknown(why)) => {
                let mut item = Item::hard("translation", QUESTION, Answer::No, "there are no groups");
                item.advice = Some(format!(
                    "whether firmware or kernel is the cause is not known: {why}; {}",
                    why.remedy()
                ));
                item
            }
            _ => Item::hard("translation", QUESTION, Answer::Unknown, "too little could be read"),
        },
    }
}

/// Whether interrupt remapping is on.
#[must_use]
pub fn interrupts(machine: &Machine) -> Item {
    const ID: &str = "interrupt-remapping";
    const QUESTION: &str = "are interrupts remapped, so that a guest cannot forge them?";
    const UNSAFE: &str = "until then VFIO refuses devices unless vfio_iommu_type1.allow_unsafe_interrupts is set, which lets a guest \
                          send any interrupt to the host";
    let mode = machine.boot_events().find_map(|(_, event)| match event {
        BootEvent::IrqRemapping(mode) => Some(*mode),
        _ => None,
    });
    if let Some(mode) = mode {
        let text = match mode {
            IrqMode::X2Apic => "on, in x2APIC mode",
            IrqMode::XApic => "on, in xAPIC mode",
        };
        return Item::hard(ID, QUESTION, Answer::Yes, text);
    }
    let no = |detail: &str| Item::hard(ID, QUESTION, Answer::No, detail).advise(UNSAFE);
    if machine.has_groups() == Some(false) && machine.units.known().is_some_and(Vec::is_empty) {
        return no("the kernel uses no remapping unit");
    }
    if let Some(table) = machine.dmar.known().and_then(|bytes| Dmar::inspect(bytes).ok())
        && !table.flags().contains(TableFlags::INTR_REMAP)
    {
        return no("the firmware's table says that the platform cannot (INTR_REMAP is clear)");
    }
    let lacking = machine
        .units
        .known()
        .into_iter()
        .flatten()
        .find(|unit| unit.ecap.known().is_some_and(|ecap| !ecap.ir()));
    if let Some(unit) = lacking {
        return no(&format!(
            "{} cannot (ECAP.IR is 0), so the kernel leaves it off everywhere",
            unit.name
        ));
    }
    if let Some(line) = machine.boot_parameters.known()
        && let Some(word) = line
            .split_whitespace()
            .find(|word| matches!(*word, "intremap=off" | "nointremap" | "noapic" | "nolapic"))
        && log_is_whole(machine)
    {
        return no(&format!(
            "the log does not say that it was enabled, and the command line has {word}"
        ));
    }
    if log_is_whole(machine) {
        return no(
            "the log does not say that it was enabled: an I/O APIC or HPET in no scope, ECAP.IR, the command line, or the kernel's \
             configuration",
        );
    }
    match &machine.log {
        Knowledge::Unknown(why) => unknown(ID, QUESTION, why),
        _ => Item::hard(
            ID,
            QUESTION,
            Answer::Unknown,
            "the log does not reach back to the start of the kernel",
        )
        .advise("give the log of the whole boot"),
    }
}

/// Groups whose devices are not translated.
fn identity(machine: &Machine) -> Option<Item> {
    const QUESTION: &str = "is the DMA of all groups translated?";
    let groups = machine.groups.known().filter(|groups| !groups.is_empty())?;
    let kinds: Vec<(u32, Option<&String>)> = groups
        .values()
        .map(|group| (group.number, group.kind.known()))
        .collect();
    let identity: Vec<String> = kinds
        .iter()
        .filter(|(_, kind)| kind.is_some_and(|kind| kind == "identity"))
        .map(|(number, _)| number.to_string())
        .collect();
    if !identity.is_empty() {
        let shown: Vec<&str> = identity.iter().take(12).map(String::as_str).collect();
        return Some(
            Item::soft(
                "identity",
                QUESTION,
                Answer::No,
                format!(
                    "not of {} of {}: {}",
                    identity.len(),
                    item::count(groups.len(), "group"),
                    shown.join(" ")
                ),
            )
            .advise(
                "their devices can reach all of the host's memory; remove iommu=pt or iommu.passthrough=1 if that is not wanted",
            ),
        );
    }
    let known = kinds.iter().filter(|(_, kind)| kind.is_some()).count();
    Some(if known == kinds.len() {
        Item::soft(
            "identity",
            QUESTION,
            Answer::Yes,
            match known {
                1 => "of the only one".to_owned(),
                groups => format!("all {groups} groups"),
            },
        )
    } else {
        Item::soft(
            "identity",
            QUESTION,
            Answer::Unknown,
            "the types of some groups are not known",
        )
        .advise("take a snapshot on that machine with `iommu snapshot`")
    })
}

fn lint_findings(machine: &Machine) -> Option<Item> {
    const QUESTION: &str = "is the firmware's table sound?";
    let bytes = machine.dmar.known()?;
    let report = lint::judge(bytes, machine, &machine.topology());
    let errors = report
        .findings
        .iter()
        .filter(|finding| finding.severity >= Severity::Error)
        .count();
    let warnings = report
        .findings
        .iter()
        .filter(|finding| finding.severity == Severity::Warning)
        .count();
    let detail = format!("{}, {}", item::count(errors, "error"), item::count(warnings, "warning"));
    Some(if errors > 0 {
        Item::soft("lint", QUESTION, Answer::No, detail).advise("`iommu dmar show` lists them with advice")
    } else {
        Item::soft("lint", QUESTION, Answer::Yes, detail)
    })
}

/// Functions that no unit serves.
fn coverage(machine: &Machine) -> Option<Item> {
    const QUESTION: &str = "does a unit serve every function?";
    let table = Dmar::inspect(machine.dmar.known()?).ok()?;
    let topology = machine.topology();
    let buses = Buses(&topology);
    let requester = |f: &iommu_groups::Function| topology.requester(f.bdf);
    let uncovered: Vec<String> = topology
        .functions()
        .iter()
        .filter(|f| requester(f).is_some_and(|at| matches!(table.owner(at, &buses), Owner::NotCovered)))
        .map(|f| f.bdf.to_string())
        .collect();
    let open: Vec<String> = topology
        .functions()
        .iter()
        .filter(|f| requester(f).is_none())
        .map(|f| f.bdf.to_string())
        .collect();
    Some(if uncovered.is_empty() && !open.is_empty() {
        Item::hard(
            "coverage",
            QUESTION,
            Answer::Unknown,
            format!(
                "not known what {} behind: {}",
                if open.len() == 1 {
                    "1 function is".to_owned()
                } else {
                    format!("{} functions are", open.len())
                },
                open.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(" ")
            ),
        )
        .advise("take a snapshot on that machine with `iommu snapshot`, or add the output of `dmesg` to the listing")
    } else if uncovered.is_empty() {
        Item::soft(
            "coverage",
            QUESTION,
            Answer::Yes,
            item::count(topology.functions().len(), "function"),
        )
    } else {
        let shown: Vec<&str> = uncovered.iter().take(8).map(String::as_str).collect();
        Item::hard(
            "coverage",
            QUESTION,
            Answer::No,
            format!(
                "not served: {}: {}",
                item::count(uncovered.len(), "function"),
                shown.join(" ")
            ),
        )
        .advise("their DMA is not remapped: do not give them to guests, and ask the vendor for a complete table")
    })
}

pub(crate) fn taints(machine: &Machine) -> Vec<Item> {
    let mut items = Vec::new();
    if let Some(line) = machine.boot_parameters.known() {
        let acs = line
            .split_whitespace()
            .find(|word| word.starts_with("pcie_acs_override"));
        if let Some(word) = acs {
            items.push(
                Item::hard(
                    "acs-override",
                    "are the kernel's groups those of the hardware?",
                    Answer::No,
                    format!("the command line has {word}: a patched kernel pretends isolation that the hardware does not have"),
                )
                .advise("remove it; try another slot, a firmware option for ACS, or pci=config_acs= first"),
            );
        }
    }
    let on = |name: &str| {
        machine
            .module_parameters
            .known()
            .and_then(|parameters| parameters.get(name))
            .is_some_and(|value| matches!(value.as_str(), "Y" | "1"))
    };
    if on("vfio_iommu_type1.allow_unsafe_interrupts") {
        items.push(
            Item::hard(
                "unsafe-interrupts",
                "does VFIO insist on interrupt remapping?",
                Answer::No,
                "vfio_iommu_type1.allow_unsafe_interrupts is set",
            )
            .advise("unset it where interrupt remapping works"),
        );
    }
    if on("vfio.enable_unsafe_noiommu_mode") {
        items.push(
            Item::hard(
                "noiommu",
                "does VFIO insist on an IOMMU?",
                Answer::No,
                "vfio.enable_unsafe_noiommu_mode is set: devices can be used with no isolation at all",
            )
            .advise("unset it where the IOMMU works"),
        );
    }
    items
}

fn leftovers(machine: &Machine) -> Option<Item> {
    let units: Vec<String> = machine
        .boot_events()
        .filter_map(|(_, event)| match event {
            BootEvent::LeftOn { unit } => Some(format!("dmar{unit}")),
            _ => None,
        })
        .collect();
    (!units.is_empty()).then(|| {
        Item::soft(
            "left-on",
            "did the kernel find the units switched off?",
            Answer::No,
            format!("an earlier kernel or the firmware left {} on", units.join(", ")),
        )
        .advise("after kexec this is a defect of the kernel before; devices may have lost interrupts meanwhile")
    })
}

fn firmware_complaints(machine: &Machine) -> Option<Item> {
    let mut bugs = machine.boot_events().filter_map(|(line, event)| match event {
        BootEvent::FirmwareBug(words) => Some((line, words)),
        _ => None,
    });
    let (line, words) = bugs.next()?;
    let more = bugs.count();
    let more = if more > 0 {
        format!(" (and {more} more)")
    } else {
        String::new()
    };
    Some(
        Item::soft(
            "firmware-bug",
            "is the kernel content with the firmware?",
            Answer::No,
            format!("line {line} of the log: {words}{more}"),
        )
        .advise("update the firmware"),
    )
}

#[cfg(test)]
mod tests;
