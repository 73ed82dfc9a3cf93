//! Whether the IOMMU works, and if not, who turned it off: judged by what is in effect, never by the command line alone.

use acpi_dmar::{Dmar, Owner, Severity, TableFlags};

use crate::buses::Buses;
use crate::item::{Answer, Item};
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

const SETUP: &str = "turn on `VT-d`, `Intel Virtualization Technology for Directed I/O` or `IOMMU` in the firmware's setup; it is often \
                     below Chipset, System Agent or Northbridge, and some machines need `Virtualization` on as well";

/// Examines a machine.
#[must_use]
pub fn examine(machine: &Machine) -> Diagnosis {
    let state = state(machine);
    let mut items = vec![table(machine), in_use(machine, state), interrupts(machine)];
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
            let said = machine
                .boot_events()
                .any(|(_, event)| matches!(event, BootEvent::TableFound { .. } | BootEvent::Drhd { .. }));
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
        Knowledge::Absent => Item::hard("table", QUESTION, Answer::No, "there is none").advise(SETUP),
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

fn in_use(machine: &Machine, state: State) -> Item {
    const QUESTION: &str = "does the kernel use them?";
    match state {
        State::Working => {
            let count = machine.groups.known().map_or(0, std::collections::BTreeMap::len);
            Item::hard("translation", QUESTION, Answer::Yes, format!("{count} groups"))
        }
        State::InitFailed | State::KernelOff => {
            let failure = machine.boot_events().find_map(|(line, event)| match event {
                BootEvent::ParseFailure => Some(format!("line {line} of the log: the kernel gave the table up")),
                BootEvent::FirmwareBug(words) => Some(format!("line {line} of the log: {words}")),
                _ => None,
            });
            let mut item = Item::hard("translation", QUESTION, Answer::No, "there are no groups");
            if let Some(word) = off_by_command_line(machine) {
                item.detail = format!("there are no groups, and the command line has {word}");
                item.advice = Some(format!("remove {word} from the kernel's command line"));
            } else if let Some(failure) = failure {
                item.detail = failure;
                item.advice =
                    Some("update the firmware; `iommu dmar show` says what is wrong with the table".to_owned());
            } else {
                item.advice = Some(
                    "add intel_iommu=on to the kernel's command line, and check that the kernel has CONFIG_INTEL_IOMMU"
                        .to_owned(),
                );
            }
            item
        }
        State::FirmwareOff => Item::hard("translation", QUESTION, Answer::No, "there are none to use").advise(SETUP),
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
                format!("{} of {} groups see all memory as it is: {}", identity.len(), groups.len(), shown.join(" ")),
            )
            .advise(
                "their devices can reach all of the host's memory; remove iommu=pt or iommu.passthrough=1 if that is not wanted",
            ),
        );
    }
    let known = kinds.iter().filter(|(_, kind)| kind.is_some()).count();
    Some(if known == kinds.len() {
        Item::soft("identity", QUESTION, Answer::Yes, format!("all {known} groups"))
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
    let detail = format!("{errors} errors, {warnings} warnings");
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
                "not known what {} functions are behind: {}",
                open.len(),
                open.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(" ")
            ),
        )
        .advise("take a snapshot on that machine with `iommu snapshot`, or add the output of `dmesg` to the listing")
    } else if uncovered.is_empty() {
        Item::soft(
            "coverage",
            QUESTION,
            Answer::Yes,
            format!("{} functions", topology.functions().len()),
        )
    } else {
        let shown: Vec<&str> = uncovered.iter().take(8).map(String::as_str).collect();
        Item::hard(
            "coverage",
            QUESTION,
            Answer::No,
            format!("{} are not served: {}", uncovered.len(), shown.join(" ")),
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
mod tests {
    use super::*;
    use crate::item::overall;

    const BOOT: &str = "[ 0.000000] Linux version 6.1.0 (x)\n[ 0.000000] Command line: ro intel_iommu=on\n";
    const NIC: &str = "00:01.0 0200: 8086:1533\n\tStatus: Cap-\n";

    fn diagnose(text: &str) -> Diagnosis {
        examine(&Machine::from_listing(text.as_bytes()))
    }

    fn item<'a>(diagnosis: &'a Diagnosis, id: &str) -> &'a Item {
        diagnosis.items.iter().find(|item| item.id == id).expect("asked")
    }

    #[test]
    fn a_working_machine_is_judged_by_its_groups_and_its_log() {
        let text = format!(
            "{NIC}\tIOMMU group: 1\n\n{BOOT}[ 0.000000] ACPI: DMAR 0x000000006FFFD000 000070 (v01)\n[ 0.000000] DMAR-IR: Enabled IRQ remapping in x2apic mode\n"
        );
        let diagnosis = diagnose(&text);
        assert_eq!(diagnosis.state, State::Working);
        assert_eq!(item(&diagnosis, "interrupt-remapping").answer, Answer::Yes);
        assert_eq!(item(&diagnosis, "table").answer, Answer::Yes);
        assert_eq!(overall(&diagnosis.items), Answer::Yes);
    }

    #[test]
    fn the_command_line_alone_proves_nothing() {
        // It asks for the IOMMU, and nothing else is known.
        let diagnosis = diagnose(&format!("{NIC}\nBOOT_IMAGE=/vmlinuz intel_iommu=on\n"));
        assert_eq!(diagnosis.state, State::Unknown);
        assert_eq!(overall(&diagnosis.items), Answer::Unknown);
        assert!(
            diagnosis
                .items
                .iter()
                .filter(|item| item.answer == Answer::Unknown)
                .all(|item| item.advice.is_some())
        );
    }

    fn bare(change: impl FnOnce(&mut Machine)) -> Diagnosis {
        let mut machine = Machine::from_listing(NIC.as_bytes());
        machine.groups = Knowledge::Known(std::collections::BTreeMap::new());
        machine.units = Knowledge::Known(Vec::new());
        change(&mut machine);
        examine(&machine)
    }

    #[test]
    fn firmware_kernel_and_unknown_are_told_apart() {
        let off = bare(|machine| machine.dmar = Knowledge::Absent);
        assert_eq!(
            (off.state, item(&off, "translation").answer),
            (State::FirmwareOff, Answer::No)
        );
        let kernel = bare(|machine| {
            machine.dmar = Knowledge::Known(vec![0; 48]);
            machine.boot_parameters = Knowledge::Known("ro intel_iommu=off".to_owned());
        });
        assert_eq!(kernel.state, State::KernelOff);
        assert!(
            item(&kernel, "translation")
                .advice
                .as_ref()
                .is_some_and(|advice| advice.contains("intel_iommu=off"))
        );
        let hidden = bare(|_| {});
        assert_eq!(hidden.state, State::Unknown);
        // That there are no groups is known, whoever is to blame.
        assert_eq!(item(&hidden, "translation").answer, Answer::No);
    }

    #[test]
    fn taints_are_found_and_stand_in_the_way() {
        let text = format!(
            "{NIC}\tIOMMU group: 1\n\n{}",
            BOOT.replace("ro", "pcie_acs_override=downstream")
        );
        let diagnosis = diagnose(&text);
        assert_eq!(item(&diagnosis, "acs-override").answer, Answer::No);
        assert_eq!(overall(&diagnosis.items), Answer::No);
    }
}
