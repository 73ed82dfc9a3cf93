//! `iommu doctor` in guests whose IOMMU works, is switched off, or is broken, each in its own way.

use std::sync::Mutex;

use acpi_dmar::{OwnedDmar, OwnedDrhd, TableFlags};
use e2e::guest::machine::Machine;
use e2e::guest::record::Record;
use e2e::guest::{Guest, Script};
use iommu_types::{HostPhys, Segment};

use super::{folder, only_a_part, tool, tools};

/// One way in which a machine can stand.
struct Case {
    name: &'static str,
    unit: Option<&'static str>,
    parameters: &'static str,
    /// A table whose unit is not where it says.
    broken_table: bool,
    state: &'static str,
    /// Further questions and their answers.
    items: &'static [(&'static str, &'static str)],
}

const WHOLE: Option<&str> = Some("intremap=on,caching-mode=on");

const CASES: [Case; 7] = [
    Case {
        name: "no unit, and the command line asks for it",
        unit: None,
        parameters: "intel_iommu=on",
        broken_table: false,
        state: "FirmwareOff",
        items: &[("table", "no"), ("translation", "no"), ("interrupt-remapping", "no")],
    },
    Case {
        name: "a unit that the kernel is told to leave alone",
        unit: WHOLE,
        parameters: "intel_iommu=off intremap=off",
        broken_table: false,
        state: "KernelOff",
        items: &[("table", "yes"), ("translation", "no"), ("interrupt-remapping", "no")],
    },
    Case {
        name: "all IOMMUs off, interrupt remapping with them",
        unit: WHOLE,
        parameters: "iommu=off intremap=off",
        broken_table: false,
        state: "KernelOff",
        items: &[("translation", "no")],
    },
    Case {
        name: "a table that names a unit where there is none",
        unit: WHOLE,
        parameters: "intel_iommu=on",
        broken_table: true,
        state: "KernelOff",
        items: &[("table", "yes"), ("translation", "no"), ("interrupt-remapping", "no")],
    },
    Case {
        name: "a unit that cannot remap interrupts",
        unit: Some("intremap=off"),
        parameters: "intel_iommu=on",
        broken_table: false,
        state: "Working",
        items: &[
            ("translation", "yes"),
            ("interrupt-remapping", "no"),
            ("identity", "yes"),
        ],
    },
    Case {
        name: "a kernel told not to remap interrupts",
        unit: WHOLE,
        parameters: "intel_iommu=on intremap=off",
        broken_table: false,
        state: "Working",
        items: &[("interrupt-remapping", "no")],
    },
    Case {
        name: "the kernel's own devices passed through",
        unit: WHOLE,
        parameters: "intel_iommu=on iommu=pt",
        broken_table: false,
        state: "Working",
        items: &[("interrupt-remapping", "yes"), ("identity", "no")],
    },
];

/// A register base at which QEMU has nothing.
const NOWHERE: HostPhys = HostPhys::new(0xfed8_0000);

fn broken_table() -> Vec<u8> {
    // The names of QEMU's own table and a higher revision, or Linux does not take it.
    let table = OwnedDmar {
        oem_id: *b"BOCHS ",
        oem_table_id: *b"BXPC    ",
        oem_revision: 2,
        ..OwnedDmar::new(39)
    };
    table
        .flags(TableFlags::INTR_REMAP)
        .with(OwnedDrhd::new(Segment(0), NOWHERE).include_pci_all())
        .build()
        .expect("the table can be built")
}

fn judge(case: &Case, record: &Record) -> Vec<String> {
    let doctor = match tool::answer(record, "doctor") {
        Ok(doctor) => doctor,
        Err(why) => return vec![why],
    };
    let mut wrong = Vec::new();
    // What the case is meant to be, by the kernel itself.
    let works = case.state == "Working";
    if works == record.groups.is_empty() {
        wrong.push(format!("Linux has {} functions in groups", record.groups.len()));
    }
    if (case.state == "FirmwareOff") == record.table.is_some() {
        wrong.push("the table is there where it should not be, or the reverse".to_owned());
    }
    if doctor["state"] != case.state {
        wrong.push(format!("`iommu doctor` says {}", doctor["state"]));
    }
    let remapped = if tool::remaps_interrupts(record) { "yes" } else { "no" };
    for (id, expected) in case.items.iter().copied().chain([("interrupt-remapping", remapped)]) {
        let answer = tool::item(&doctor, id);
        if answer != Some(expected) {
            wrong.push(format!("`iommu doctor`: {id} is {answer:?}, not {expected}"));
        }
    }
    wrong
}

#[test]
fn doctor_tells_firmware_kernel_and_broken_tables_apart() {
    let Some(tools) = tools() else {
        return;
    };
    let failures = Mutex::new(Vec::new());
    let work = |index: usize, case: &Case| {
        let mut machine = Machine::of_shapes(&[0], 1);
        if case.broken_table {
            machine.table = Some(broken_table());
        }
        let guest = Guest {
            unit: case.unit.map(str::to_owned),
            parameters: case.parameters.to_owned(),
            ..Guest::new(machine, Script::Record)
        };
        let wrong = match tools.boot(&folder(&format!("state-{index}")), &guest) {
            Ok(record) => judge(case, &record),
            Err(why) => vec![why.to_string()],
        };
        if !wrong.is_empty() {
            let text = format!("{}:\n  {}", case.name, wrong.join("\n  "));
            failures.lock().expect("no worker panics").push(text);
        }
    };
    let cases = || CASES.iter().step_by(if only_a_part() { 3 } else { 1 });
    std::thread::scope(|scope| {
        for (index, case) in cases().enumerate() {
            scope.spawn(move || work(index, case));
        }
    });
    let failures = failures.into_inner().expect("no worker panics");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("also: doctor in {} states of a machine", cases().count());
}
