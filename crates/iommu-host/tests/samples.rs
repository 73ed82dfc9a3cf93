//! Logs, listings and archives of real machines.
//!
//! They are not in the repository: `PORTCULLIS_SAMPLES` names the folder that has them. Without it these tests
//! say that they were skipped.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use iommu_groups::group;
use iommu_host::log::{self, BootEvent, Request};
use iommu_host::{Machine, caps};
use iommu_types::Bdf;

fn sample(test: &str, path: &str) -> Option<Vec<u8>> {
    let Some(root) = std::env::var_os("PORTCULLIS_SAMPLES") else {
        // Not captured, unlike `eprintln!`: a skipped judge must be seen.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: PORTCULLIS_SAMPLES is not set");
        return None;
    };
    let path = PathBuf::from(root).join(path);
    let read = fs::read(&path);
    assert!(read.is_ok(), "{}: {read:?}", path.display());
    read.ok()
}

/// Name, faults, and the function that most of them come from.
const LOGS: [(&str, usize, &str); 3] = [
    ("logs/16-dmesg-hp-dl388p-gen8-rmrr-faults.txt", 22, "01:00.2"),
    ("logs/24-dmesg-lenovo-t450s-xhci-faults.txt", 3, "00:16.7"),
    ("logs/26-marvell-88se9125-dma-alias.txt", 2, "03:00.1"),
];

#[test]
fn every_fault_line_of_the_sample_logs_is_read() {
    for (name, count, device) in LOGS {
        let Some(bytes) = sample("every_fault_line_of_the_sample_logs_is_read", name) else {
            return;
        };
        let log = log::read(&bytes);
        assert_eq!(log.unread, [], "{name}");
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.matches("fault addr").count();
        let faults: Vec<_> = log.faults().map(|(_, fault)| fault).collect();
        assert_eq!((faults.len(), lines), (count, count), "{name}");
        let device = device.parse().expect("valid");
        assert!(
            faults.iter().filter(|fault| fault.requester == device).count() * 2 > count,
            "{name}"
        );
        assert!(
            faults
                .iter()
                .all(|fault| fault.reason.is_some() && fault.pasid.is_none())
        );
        assert!(faults.iter().all(|fault| matches!(fault.request, Request::Dma { .. })));
    }
}

#[test]
fn the_boot_log_of_a_server_tells_units_regions_and_groups() {
    let Some(bytes) = sample("the_boot_log_of_a_server_tells_units_regions_and_groups", LOGS[0].0) else {
        return;
    };
    let log = log::read(&bytes);
    let count = |is: fn(&BootEvent) -> bool| log.boot().filter(|(_, event)| is(event)).count();
    assert_eq!(count(|event| matches!(event, BootEvent::Unit { .. })), 2);
    assert_eq!(count(|event| matches!(event, BootEvent::Rmrr(_))), 9);
    assert_eq!(count(|event| matches!(event, BootEvent::X2ApicOptOut)), 1);
    assert!(count(|event| matches!(event, BootEvent::GroupAdded { .. })) > 140);
    assert!(log.suppressed > 0);
}

#[test]
fn every_complete_fault_of_the_catalogue_is_read() {
    let Some(bytes) = sample(
        "every_complete_fault_of_the_catalogue_is_read",
        "logs/36-kernel-message-catalogue.tsv",
    ) else {
        return;
    };
    let text = String::from_utf8_lossy(&bytes);
    let (mut faults, mut units, mut groups) = (0, 0, 0);
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let example = line.rsplit('\t').next().unwrap_or_default();
        let log = log::read(example.as_bytes());
        let whole = example.contains("Request device") && example.contains("[fault reason 0");
        if whole {
            assert_eq!((log.faults().count(), log.unread_count), (1, 0), "{example}");
            faults += 1;
        }
        units += log
            .boot()
            .filter(|(_, event)| matches!(event, BootEvent::Unit { .. }))
            .count();
        groups += log
            .boot()
            .filter(|(_, event)| matches!(event, BootEvent::GroupRemoved { .. }))
            .count();
    }
    assert_eq!(faults, 9);
    assert!(units >= 1 && groups >= 1, "{units} {groups}");
}

/// The groups as the file beside the listing has them.
fn expected_partition(name: &str) -> Option<Vec<Vec<Bdf>>> {
    let bytes = sample(name, name)?;
    let mut groups: BTreeMap<String, Vec<Bdf>> = BTreeMap::new();
    for line in String::from_utf8_lossy(&bytes)
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let mut fields = line.split('\t');
        let (Some(bdf), Some(group)) = (fields.next(), fields.next()) else {
            continue;
        };
        if let Ok(bdf) = bdf.parse() {
            groups.entry(group.to_owned()).or_default().push(bdf);
        }
    }
    let mut partition: Vec<_> = groups.into_values().collect();
    partition.iter_mut().for_each(|group| group.sort_unstable());
    partition.sort_unstable();
    Some(partition)
}

/// Name, functions, groups.
const LISTINGS: [(&str, usize, usize); 3] = [
    ("groups/20-report-pex8748-lspci-dmesg", 42, 17),
    ("groups/31-lspci-alderlake-groups-acs", 29, 22),
    ("groups/33-lspci-cometlake-u-groups", 22, 16),
];

#[test]
fn listings_of_real_machines_give_the_groups_that_their_kernels_reported() {
    for (name, functions, count) in LISTINGS {
        let Some(bytes) = sample(
            "listings_of_real_machines_give_the_groups_that_their_kernels_reported",
            &format!("{name}.txt"),
        ) else {
            return;
        };
        let machine = Machine::from_listing(&bytes);
        let expected = expected_partition(&format!("{name}.tsv")).expect("it is there");
        assert_eq!((machine.functions.len(), expected.len()), (functions, count), "{name}");
        assert_eq!(
            machine.kernel_partition(),
            Some(expected.clone()),
            "{name}: groups as listed"
        );
        let topology = machine.topology();
        let groups = group(&topology, machine.linux_rules());
        let mut found: Vec<Vec<Bdf>> = groups.all().iter().map(|group| group.members.clone()).collect();
        found.sort_unstable();
        assert_eq!(found, expected, "{name}: groups as computed");
    }
}

#[test]
fn a_listing_with_a_log_tells_units_and_command_line_too() {
    let Some(bytes) = sample(
        "a_listing_with_a_log_tells_units_and_command_line_too",
        &format!("{}.txt", LISTINGS[0].0),
    ) else {
        return;
    };
    let machine = Machine::from_listing(&bytes);
    assert_eq!(machine.units.known().map(Vec::len), Some(2));
    assert_eq!(machine.kernel.known().map(String::as_str), Some("6.18.0-rc7"));
    assert!(
        machine
            .boot_parameters
            .known()
            .is_some_and(|line| line.contains("vmlinuz"))
    );
    assert!(machine.dmar.is_unknown());
}

#[test]
fn a_snapshot_of_another_tool_opens_and_says_what_it_lacks() {
    let Some(bytes) = sample(
        "a_snapshot_of_another_tool_opens_and_says_what_it_lacks",
        "sysfs/ghw-intel-i7-1270P-23dev-15groups.tar.gz",
    ) else {
        return;
    };
    let machine = Machine::from_bytes(&bytes).expect("opens");
    assert_eq!(machine.functions.len(), 23);
    assert_eq!(machine.groups.known().map(BTreeMap::len), Some(15));
    assert!(machine.units.is_unknown() && machine.dmar.is_unknown() && machine.log.is_unknown());
    let nvme = machine
        .functions
        .get(&"04:00.0".parse().expect("valid"))
        .expect("there");
    assert_eq!(nvme.disks, ["nvme0n1"]);
    assert_eq!(nvme.driver.known().map(String::as_str), Some("nvme"));
    assert!(nvme.identity.known().is_some());
    // ACS is in configuration space, which the archive lacks: unknown, so nothing may pass for isolated by it.
    let topology = machine.topology();
    assert_eq!(topology.functions().len(), 23);
    assert!(topology.functions().iter().all(|f| !f.acs.is_present()));
}

#[test]
fn capability_registers_of_real_units_decode_as_the_table_says() {
    let Some(bytes) = sample(
        "capability_registers_of_real_units_decode_as_the_table_says",
        "caps/37-real-cap-ecap-values.tsv",
    ) else {
        return;
    };
    let mut count = 0;
    for line in String::from_utf8_lossy(&bytes)
        .lines()
        .filter(|line| !line.starts_with('#'))
    {
        let fields: Vec<_> = line.split('\t').collect();
        let [_, cap, ecap, decoded, ..] = fields.as_slice() else {
            continue;
        };
        let number = |text: &str| u64::from_str_radix(text, 16).expect("hexadecimal");
        assert_eq!(caps::summary(number(cap), number(ecap)), *decoded, "{cap} {ecap}");
        count += 1;
    }
    assert_eq!(count, 17);
}
