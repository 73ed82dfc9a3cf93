//! `iommu serve` and `iommu trace` as a person uses them.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::rig::{Rig, unit};
use crate::{check_disk, programs};

/// Seconds after which a guest that does not end is ended.
const PATIENCE: &str = "300";

#[test]
fn the_tool_prints_each_broken_rule_with_its_entry_and_the_accesses_before() {
    let Some(programs) = programs(true) else { return };
    let Some(hostile) = std::env::var_os("PORTCULLIS_HOSTILE") else {
        println!("compared: nothing, since no hostile kernel is named");
        return;
    };
    let mut rig = Rig::new(&programs, unit());
    rig.finish();
    let sockets = std::env::temp_dir().join(format!("served-rules-{}", std::process::id()));
    // A guest that breaks every rule there is.
    let output = Command::new("timeout")
        .arg(PATIENCE)
        .arg(&programs.tools.iommu)
        .args([
            "serve",
            "--engine",
            "--sanitize",
            "--append",
            "hostile=5 seed=1",
            "--disk",
        ])
        .arg(rig.disk())
        .arg("--sockets")
        .arg(&sockets)
        .arg("--boot")
        .arg(hostile)
        .arg("--qemu")
        .arg(&programs.tools.qemu)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let _ = std::fs::remove_dir_all(&sockets);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // The exit status that says so.
    assert_eq!(output.status.code(), Some(1), "{said}");
    let mut reports = said.split("iommu: rule broken: ").skip(1);
    let named = reports.clone().count();
    let whole = reports.any(|report| {
        let mut lines = report.lines();
        lines.next().is_some_and(|rule| rule.contains(" by 00:0"))
            && lines
                .next()
                .is_some_and(|entry| entry.contains("    the entry at 0x") && entry.ends_with(" now"))
            && lines
                .next()
                .is_some_and(|access| access.contains("    write") || access.contains("    read"))
    });
    assert!(whole, "{said}");
    println!("also: {named} broken rules of a hostile guest printed by the tool");
}

#[test]
fn the_command_that_the_tool_prints_boots_linux_and_the_trace_of_it_replays() {
    let Some(programs) = programs(true) else { return };
    // For its guest and its disk; the server is the tool.
    let mut rig = Rig::new(&programs, unit());
    rig.finish();
    let file = |name: &str| rig.folder().join(name);
    let (trace, table, errors) = (file("tool.trace"), file("tool-dmar.bin"), file("tool.err"));
    let sockets = std::env::temp_dir().join(format!("served-tool-{}", std::process::id()));
    // Without the engine, firmware places the unit elsewhere than usual.
    let mut server = Command::new(&programs.tools.iommu)
        .args(["serve", "--sanitize", "--print-qemu", "--disk"])
        .arg(rig.disk())
        .arg("--sockets")
        .arg(&sockets)
        .arg("--write-dmar")
        .arg(&table)
        .arg("--trace")
        .arg(&trace)
        .arg("--qemu")
        .arg(&programs.tools.qemu)
        .stdout(Stdio::piped())
        .stderr(File::create(&errors).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines();
    let command = lines
        .find_map(|line| line.ok().filter(|line| line.contains("-acpitable")))
        .expect("a command is printed");
    assert!(command.contains(&table.display().to_string()), "{command}");

    // Only what to boot is added.
    let guest = format!(
        "{command} -kernel '{}' -initrd '{}' -append 'console=ttyS0 quiet panic=-1 intel_iommu=on intremap=off \
         no_timer_check served=disk iommu.strict=1'",
        programs.tools.kernel.display(),
        file("initramfs").display()
    );
    let run = Command::new("timeout")
        .args([PATIENCE, "sh", "-c", &guest])
        .stdin(Stdio::null())
        .output();
    // However it ends: the trace has to be whole.
    server.kill().unwrap();
    server.wait().unwrap();
    let _ = std::fs::remove_dir_all(&sockets);
    let console = String::from_utf8_lossy(&run.unwrap().stdout).into_owned();
    let said = std::fs::read_to_string(&errors).unwrap();
    let all = format!("{said}\n{console}");
    assert!(console.contains("@ same") && console.contains("@ end"), "{all}");
    assert!(console.contains("0000:00:07.0"), "{all}");
    assert!(
        !said.contains("rule broken") && !said.contains("cannot find it"),
        "{all}"
    );
    check_disk(&programs, &rig);

    let ask = |words: &[&str]| {
        let output = Command::new(&programs.tools.iommu)
            .arg("trace")
            .arg(&trace)
            .args(words)
            .output();
        let output = output.unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.code(), text)
    };
    let (code, shown) = ask(&[]);
    assert_eq!(code, Some(0));
    assert!(
        shown.contains("RTADDR") && shown.contains("GCMD"),
        "{}",
        &shown[..shown.len().min(2000)]
    );
    let (code, replayed) = ask(&["--replay", "--sanitize", "--json"]);
    assert_eq!(code, Some(0), "{replayed}");
    let replayed: serde_json::Value = serde_json::from_str(&replayed).unwrap();
    let operations = replayed["operations"].as_u64().unwrap();
    assert!(operations > 1000, "{replayed}");
    let none = serde_json::json!([]);
    assert!(
        replayed["differences"] == none && replayed["broken"] == none,
        "{replayed}"
    );
    println!("also: the printed command boots Linux; {operations} operations of its trace replay without a difference");
}
