//! Devices of this machine.

use serde_json::Value;

use crate::{iommu, path, scratch, short_run, text};

/// A function that no machine of tests has: nothing is touched, however they are run.
const NOWHERE: &str = "fffe:ff:1f.7";

#[test]
fn a_device_of_the_machine_is_used_when_it_is_asked_for_and_only_then() {
    let image = scratch("never.img");
    for (arguments, named) in [
        (&["--backend", "linux"][..], "--device"),
        (&["--device", NOWHERE], "--backend"),
        (&["--backend", "software", "--device", NOWHERE], "--backend linux"),
        (&["--backend", "linux", "--device", "disk"], "--device"),
        (&["--backend", "linux", "--device", NOWHERE, "machine.toml"], "--device"),
        (&["--backend", "linux", "--device", NOWHERE, "--bytes", "1M"], "--bytes"),
        (
            &["--backend", "linux", "--device", NOWHERE, "--iommu", "vtd"],
            "--iommu",
        ),
        (
            &["--backend", "linux", "--device", NOWHERE, "--assign", "03:00.0"],
            "--assign",
        ),
        (
            &["--backend", "linux", "--device", NOWHERE, "--disk", path(&image)],
            "--disk",
        ),
        (&["--backend", "vfio", "--device", NOWHERE], "linux"),
    ] {
        let run = iommu(&[&["run"], arguments].concat());
        let said = text(&run.stderr);
        assert_eq!(run.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(named), "{arguments:?}: {said}");
        assert!(run.stdout.is_empty(), "{arguments:?}: {}", text(&run.stdout));
    }
}

#[test]
fn the_backend_in_software_is_what_there_is_without_one() {
    let run = short_run(&["--json", "--backend", "software"]);
    assert_eq!(run.status.code(), Some(0), "{}", text(&run.stderr));
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    assert_eq!(
        (&report["backend"], &report["iommu"]),
        (&Value::from("software"), &Value::from("VT-d"))
    );
    assert!(report.get("disk").is_none());
}

#[test]
fn without_vfio_or_the_device_it_is_said_what_to_do() {
    let run = iommu(&["run", "--json", "--backend", "linux", "--device", NOWHERE]);
    let report: Value = serde_json::from_slice(&run.stdout).expect("JSON");
    let why = report["error"].as_str().expect("a reason");
    // Where the kernel has VFIO, it is the function that is missing.
    let (code, advice) = if std::path::Path::new("/dev/vfio/vfio").exists() {
        (2, "iommu groups".to_owned())
    } else {
        (4, format!("iommu plan {NOWHERE}"))
    };
    assert_eq!(run.status.code(), Some(code), "{why}");
    assert!(why.contains(NOWHERE) && why.contains(&advice), "{why}");
    assert_eq!(
        (&report["backend"], &report["summary"]["ok"]),
        (&Value::from("linux"), &Value::from(false))
    );

    let run = iommu(&["run", "--backend", "linux", "--device", NOWHERE]);
    assert_eq!(run.status.code(), Some(code));
    let shown = text(&run.stdout) + &text(&run.stderr);
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    assert!(words(&shown).contains(&words(&advice)), "{shown}");
}

#[test]
fn the_help_warns_of_what_a_real_device_risks() {
    let help = text(&iommu(&["run", "--help"]).stdout);
    for part in ["--backend linux", "overwritten, compared and put back", "Exit codes:"] {
        assert!(help.contains(part), "{part}: {help}");
    }
}
