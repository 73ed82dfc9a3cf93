//! Logs, listings and archives of real machines.
//!
//! They are not in the repository: `PORTCULLIS_SAMPLES` names the folder that has them. Without it these tests
//! say that they were skipped.

use std::fs;
use std::io::Write;
use std::path::PathBuf;

use iommu_host::log::{self, BootEvent, Request};

fn sample(test: &str, path: &str) -> Option<Vec<u8>> {
    let Some(root) = std::env::var_os("PORTCULLIS_SAMPLES") else {
        // Not captured, unlike `eprintln!`: a skipped judge must be seen.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: PORTCULLIS_SAMPLES is not set");
        return None;
    };
    let path = PathBuf::from(root).join(path);
    Some(fs::read(&path).unwrap_or_else(|why| panic!("{}: {why}", path.display())))
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
