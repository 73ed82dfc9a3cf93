use iommu_groups::{Rules, group};
use iommu_host::{Machine, log};
use serde_json::json;

use super::names::Names;
use super::select::{select, select_one};
use super::{Answer, caps, doctor, explain, faults, groups};
use crate::exit::{Failure, Verdict};

/// A root port without ACS, a multifunction NIC below it, and a disk on a port with ACS.
const LISTING: &str = "\
00:01.0 PCI bridge [0604]: Vendor Port A [1234:0001]
\tStatus: Cap+ 66MHz-
\tBus: primary=00, secondary=01, subordinate=01, sec-latency=0
\tIOMMU group: 0
\tCapabilities: [40] Express (v2) Root Port (Slot+), MSI 00
\tKernel driver in use: pcieport

00:02.0 PCI bridge [0604]: Vendor Port B [1234:0002]
\tStatus: Cap+ 66MHz-
\tBus: primary=00, secondary=02, subordinate=02, sec-latency=0
\tIOMMU group: 1
\tCapabilities: [40] Express (v2) Root Port (Slot+), MSI 00
\tCapabilities: [100 v1] Access Control Services
\t\tACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
\t\tACSCtl:\tSrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
\tKernel driver in use: pcieport

01:00.0 Ethernet controller [0200]: Vendor NIC [1234:0010]
\tStatus: Cap+ 66MHz-
\tRegion 0: Memory at df000000 (32-bit, non-prefetchable) [size=512K]
\tIOMMU group: 0
\tCapabilities: [40] Express (v2) Endpoint, MSI 00
\tKernel driver in use: igb

02:00.0 Non-Volatile memory controller [0108]: Vendor Disk [1234:0020]
\tStatus: Cap+ 66MHz-
\tIOMMU group: 2
\tCapabilities: [40] Express (v2) Endpoint, MSI 00
\tKernel driver in use: nvme
";

const LOG: &str = "\
[    0.0] not a stamp
DMAR: dmar0: reg_base_addr fed90000 ver 1:0 cap d2008c40660462 ecap f050da
[   10.000001] DMAR: DRHD: handling fault status reg 2
[   10.000002] DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0x0 [fault reason 0x05] PTE Write access is not set
[   11.000002] DMAR: [DMA Write NO_PASID] Request device [01:00.0] fault addr 0x1000 [fault reason 0x05] PTE Write access is not set
dmar_fault: 4 callbacks suppressed
";

fn machine() -> Machine {
    Machine::from_listing(format!("{LISTING}\n{LOG}").as_bytes())
}

fn one_function(answer: &Machine, selector: &str) -> String {
    select_one(answer, selector).expect("one").to_string()
}

/// The answer without its colours.
fn plain(answer: Answer) -> Answer {
    Answer {
        text: crate::style::plain(&answer.text),
        ..answer
    }
}

fn is_findings(answer: &Answer) -> bool {
    matches!(answer.verdict, Ok(Verdict::Findings))
}

#[test]
fn selectors_mean_what_people_write() {
    let machine = machine();
    for selector in [
        "01:00.0",
        "0000:01:00.0",
        "pci_0000_01_00_0",
        "/sys/bus/pci/devices/0000:01:00.0",
        "1234:0010",
        "1:",
        "01:00",
    ] {
        assert_eq!(one_function(&machine, selector), "0000:01:00.0", "{selector}");
    }
    assert_eq!(select(&machine, "1234:0001").expect("there").len(), 1);
    assert_eq!(select(&machine, "0:").expect("two ports").len(), 2);
    assert_eq!(select(&machine, "1.0").expect("device 1").len(), 1);
    for selector in ["03:00.0", "eth0", "zz:zz.z", "", "ffff:ffff"] {
        assert!(
            matches!(select(&machine, selector), Err(Failure::Input(_))),
            "{selector}"
        );
    }
    assert!(matches!(select_one(&machine, "0:"), Err(Failure::Input(_))));
}

#[test]
fn groups_show_members_drivers_and_reasons() {
    let answer = plain(groups::answer(
        &machine(),
        &Names::default(),
        &groups::View {
            format: groups::Format::Text,
            tree: false,
            ..groups::View::default()
        },
    ));
    assert!(matches!(answer.verdict, Ok(Verdict::Yes)), "{}", answer.text);
    for part in [
        "4 functions in 3 groups, as the running kernel has them",
        "Group 0",
        "driver igb",
        "because 00:01.0 does not isolate what is below it",
    ] {
        assert!(answer.text.contains(part), "{part}\n{}", answer.text);
    }
    assert!(answer.text.contains("it has no ACS capability"), "{}", answer.text);
    assert_eq!(answer.json["schema"], 1);
    assert_eq!(answer.json["groups"].as_array().map(Vec::len), Some(3));
    assert_eq!(answer.json["groups"][2]["functions"][0]["driver"], "nvme");
    // Programs get the reason in parts, and addresses in full.
    let because = answer.json["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|group| group["because"].as_array());
    let because: Vec<_> = because.flatten().collect();
    assert!(!because.is_empty());
    for cause in because {
        assert_eq!(
            (&cause["at"], &cause["lacks"]),
            (&json!("0000:00:01.0"), &json!("no-capability")),
            "{cause}"
        );
        assert!(
            ["upstream", "port"].contains(&cause["code"].as_str().unwrap_or_default()),
            "{cause}"
        );
    }
}

#[test]
fn the_shell_form_has_one_line_a_function_sorted_by_number() {
    let answer = plain(groups::answer(
        &machine(),
        &Names::default(),
        &groups::View {
            format: groups::Format::Shell,
            tree: false,
            ..groups::View::default()
        },
    ));
    let lines: Vec<&str> = answer.text.lines().collect();
    assert_eq!(lines.len(), 4);
    assert_eq!(
        lines[1],
        "IOMMU Group 0 01:00.0 Ethernet controller [0200]: Vendor NIC [1234:0010]"
    );
    assert!(lines[3].starts_with("IOMMU Group 2 02:00.0 "));
}

#[test]
fn the_tree_puts_functions_below_their_bridges() {
    let answer = plain(groups::answer(
        &machine(),
        &Names::default(),
        &groups::View {
            format: groups::Format::Text,
            tree: true,
            ..groups::View::default()
        },
    ));
    let lines: Vec<&str> = answer.text.lines().skip(2).take(4).collect();
    assert!(lines[0].starts_with("    0  00:01.0"), "{lines:?}");
    assert!(lines[1].starts_with("    0    01:00.0"), "{lines:?}");
    assert!(lines[3].starts_with("    2    02:00.0"), "{lines:?}");
}

#[test]
fn a_kernel_that_groups_otherwise_is_a_finding() {
    let other = LISTING.replace("IOMMU group: 2", "IOMMU group: 1");
    let machine = Machine::from_listing(other.as_bytes());
    let answer = plain(groups::answer(
        &machine,
        &Names::default(),
        &groups::View {
            format: groups::Format::Text,
            tree: false,
            ..groups::View::default()
        },
    ));
    assert!(is_findings(&answer), "{}", answer.text);
    assert!(answer.text.contains("pcie_acs_override"));
}

#[test]
fn explain_gives_the_way_up_and_the_chain() {
    let machine = machine();
    let topology = machine.topology();
    let linux = group(&topology, machine.linux_rules());
    let strict = group(&topology, Rules::Strict);
    let bdf = |text: &str| text.parse().expect("valid");
    let names = Names::default();
    let nic = plain(explain::one(
        &machine,
        &names,
        &topology,
        &linux,
        &strict,
        bdf("01:00.0"),
    ));
    for part in [
        "in the kernel's group 0",
        "00:01.0 root port, no ACS",
        "does not isolate",
        "in its group is 1 other",
    ] {
        assert!(nic.text.contains(part), "{part}\n{}", nic.text);
    }
    let apart = plain(
        explain::two(
            &machine,
            &names,
            &topology,
            &linux,
            &strict,
            bdf("01:00.0"),
            bdf("02:00.0"),
        )
        .expect("both exist"),
    );
    assert!(apart.text.contains("apart:"), "{}", apart.text);
    assert_eq!(apart.json["together"], false);
    let together = plain(
        explain::two(
            &machine,
            &names,
            &topology,
            &linux,
            &strict,
            bdf("01:00.0"),
            bdf("00:01.0"),
        )
        .expect("both exist"),
    );
    assert!(together.text.contains("together:"));
    assert!(together.json["because"].as_array().is_some_and(|list| !list.is_empty()));
}

#[test]
fn faults_name_device_driver_group_and_next_step() {
    let machine = machine();
    let answer = plain(faults::answer(
        &log::read(LOG.as_bytes()),
        &machine,
        &Names::default(),
        None,
    ));
    assert!(is_findings(&answer));
    for part in [
        "2 faults in",
        "left out 4 more",
        "01:00.0 write x2 (lines 4-5)",
        "driver igb, group 0",
        "close to 0",
        "next     update the driver",
    ] {
        assert!(answer.text.contains(part), "{part}\n{}", answer.text);
    }
    let kind = &answer.json["kinds"][0];
    assert_eq!(
        (&kind["count"], &kind["reason"], &kind["device"]),
        (&2.into(), &5.into(), &"0000:01:00.0".into())
    );
    let quiet = plain(faults::answer(
        &log::read(b"nothing\n"),
        &machine,
        &Names::default(),
        None,
    ));
    assert!(matches!(quiet.verdict, Ok(Verdict::Yes)));
}

#[test]
fn caps_decode_units_from_the_log_and_say_what_is_missing() {
    let answer = plain(caps::answer(&machine()).expect("units in the log"));
    for part in [
        "dmar0 at 0xfed90000, version 1.0",
        "ND=2 MGAW=39",
        "ready for assignment to guests",
        "scalable mode (SMTS)",
    ] {
        assert!(answer.text.contains(part), "{part}\n{}", answer.text);
    }
    assert_eq!(answer.json["units"][0]["address_bits"], 39);
    let unknown = Machine::from_listing(LISTING.as_bytes());
    assert!(matches!(caps::answer(&unknown), Err(Failure::Measure(_))));
}

#[test]
fn doctor_says_what_is_unknown_and_ends_with_code_3() {
    let answer = plain(doctor::diagnosis(&machine(), ""));
    assert!(matches!(answer.verdict, Err(Failure::Measure(_))), "{}", answer.text);
    assert!(answer.text.starts_with("working"), "{}", answer.text);
    assert_eq!(
        (&answer.json["state"], &answer.json["overall"]),
        (&"Working".into(), &"unknown".into())
    );
    let items = answer.json["items"].as_array().expect("a list");
    assert!(
        items
            .iter()
            .all(|item| item["answer"] != "unknown" || item["advice"].is_string())
    );
}

#[test]
fn check_refuses_a_group_that_is_in_use() {
    let machine = machine();
    let chosen = ["02:00.0".parse().expect("valid")];
    let answer = plain(doctor::checked(
        &machine,
        &Names::default(),
        &chosen,
        iommu_host::check::Plan::default(),
        "",
    ));
    assert!(matches!(answer.verdict, Err(Failure::Measure(_))), "{}", answer.text);
    assert!(answer.text.contains("not known whether"), "{}", answer.text);
    let bridge = ["00:01.0".parse().expect("valid")];
    let answer = plain(doctor::checked(
        &machine,
        &Names::default(),
        &bridge,
        iommu_host::check::Plan::default(),
        "",
    ));
    assert!(is_findings(&answer));
    assert!(answer.text.contains("cannot be given to a guest as it is"));
    assert!(answer.text.contains(" 01:00.0 (igb)"), "{}", answer.text);
}

/// Real listings are not in the repository: `PORTCULLIS_SAMPLES` names the folder that has them.
#[test]
fn real_listings_agree_with_their_kernels_and_real_logs_are_explained() {
    let Some(root) = std::env::var_os("PORTCULLIS_SAMPLES") else {
        use std::io::Write;
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED real_listings_agree_with_their_kernels_and_real_logs_are_explained: PORTCULLIS_SAMPLES is not set"
        );
        return;
    };
    let root = std::path::PathBuf::from(root);
    for name in [
        "20-report-pex8748-lspci-dmesg.txt",
        "31-lspci-alderlake-groups-acs.txt",
        "33-lspci-cometlake-u-groups.txt",
    ] {
        let machine = Machine::open(&root.join("groups").join(name)).expect("readable");
        let answer = plain(groups::answer(
            &machine,
            &Names::default(),
            &groups::View {
                format: groups::Format::Text,
                tree: false,
                ..groups::View::default()
            },
        ));
        assert!(matches!(answer.verdict, Ok(Verdict::Yes)), "{name}\n{}", answer.text);
        assert_eq!(answer.json["kernel_disagrees"], false, "{name}");
    }
    let bytes = std::fs::read(root.join("logs/24-dmesg-lenovo-t450s-xhci-faults.txt")).expect("readable");
    let answer = plain(faults::answer(
        &log::read(&bytes),
        &Machine::from_listing(&bytes),
        &Names::default(),
        None,
    ));
    assert!(
        answer.text.contains("there is no 00:16.7; a guess: 00:16.0"),
        "{}",
        answer.text
    );
    assert_eq!(answer.json["unread_count"], 0);
}
