//! Snapshots that are damaged, and what is made of them.

use crate::fixture;
use crate::{Dice, each_case, iommu, path, scratch};

/// Something wrong with an archive, or with what it holds.
fn damage_archive(archive: &mut Vec<u8>, dice: &mut Dice) {
    match dice.below(6) {
        0 => archive.truncate(dice.below(archive.len())),
        1 => {
            for _ in 0..=dice.below(200) {
                let at = dice.below(archive.len());
                archive[at] ^= 1 << dice.below(8);
            }
        }
        // Texts and numbers that files hold.
        2 => {
            let (from, to) = dice.pick(&[
                ("0000:01:00.0", "0000:ff:1f.7"),
                ("iommu_groups/1", "iommu_groups/9"),
                ("drivers/nouveau", "drivers/$(a;b)c"),
                ("drivers/igb", "drivers/../"),
                ("pci0000:00", "pci\x1b[31m:00"),
                ("0x000000007a", "0xffffffffff"),
                ("fed90000", "zzzzzzzz"),
                ("DMAR: [DMA", "DMAR: DMA]"),
                ("nvme0n1p2", "../../../"),
                ("root=/dev/", "\u{9b}31mxxxx"),
            ]);
            let (from, to) = (from.as_bytes(), to.as_bytes());
            let mut at = 0;
            while let Some(found) = archive[at..].windows(from.len()).position(|bytes| bytes == from) {
                at += found;
                let len = to.len().min(from.len());
                archive[at..at + len].copy_from_slice(&to[..len]);
                at += from.len();
            }
        }
        // Configuration space: capability lists, bus numbers, header types.
        3 => {
            let spaces: Vec<usize> = archive
                .chunks_exact(512)
                .enumerate()
                .filter(|(_, block)| block.starts_with(&[0x34, 0x12]))
                .map(|(block, _)| block * 512)
                .collect();
            for _ in 0..=dice.below(4) {
                let at = spaces.get(dice.below(spaces.len())).copied().unwrap_or_default();
                let at = at + dice.pick(&[0x06, 0x0e, 0x19, 0x1a, 0x34, 0x41, 0x42, 0x102, 0x103]);
                if let Some(byte) = archive.get_mut(at) {
                    *byte = dice.pick(&[0, 1, 2, 0x40, 0x81, 0xff]);
                }
            }
        }
        4 => {
            let at = 512 * dice.below(archive.len() / 512);
            let block = archive[at..at + 512].to_vec();
            let to = 512 * dice.below(archive.len() / 512);
            archive.splice(to..to, block);
        }
        _ => {
            let at = 512 * dice.below(archive.len() / 512);
            archive.drain(at..(at + 512 * (1 + dice.below(8))).min(archive.len()));
        }
    }
}

/// A line of a script that is neither a comment nor one of the shapes that plans have.
fn strange_line(script: &str) -> Option<&str> {
    const SHAPES: [&str; 5] = [
        "echo ",
        "[ -d /sys/bus/pci/drivers/vfio-pci ] || modprobe ",
        "if [ -e /sys/",
        "set -e",
        "exit 1",
    ];
    let harmless = |c: char| c.is_ascii_alphanumeric() || " /:.-_+>|[];&\",".contains(c);
    script.lines().find(|line| {
        let known = SHAPES.iter().any(|shape| line.starts_with(shape)) && line.chars().all(harmless);
        !(line.starts_with('#') || known)
    })
}

#[test]
fn damaged_snapshots_give_a_message_or_a_part_and_no_strange_command() {
    let machine = fixture::Fixture::new("hostile");
    let file = scratch("snapshot.tar");
    let root = machine.root.clone();
    let taken = iommu("take", &["snapshot", "--root", path(&root), path(&file)]);
    assert_eq!(taken.status.code(), Some(0));
    let sound = std::fs::read(&file).expect("it was written");
    let commands: [&[&str]; 12] = [
        &[],
        &["groups"],
        &["groups", "--tree", "-s", "01:"],
        &["explain", "01:00.0"],
        &["explain", "eth0", "nvme0n1"],
        &["check", "01:00.0"],
        &["plan", "01:00.0", "--format", "sysfs", "--anyway"],
        &["plan", "04:00.0", "--format", "sysfs", "--undo", "--anyway"],
        &["plan", "01:00.0", "--json"],
        &["doctor"],
        &["faults", "-s", "04:00.1"],
        &["dmar", "lint"],
    ];
    let mut codes = [0; 5];
    each_case(|case| {
        let mut dice = Dice::new(case);
        let mut archive = sound.clone();
        for _ in 0..=dice.below(3) {
            if archive.len() > 1024 {
                damage_archive(&mut archive, &mut dice);
            }
        }
        std::fs::write(&file, &archive).expect("writable");
        let command = commands[usize::try_from(case).expect("small") % commands.len()];
        let name = format!("snapshot {case} {command:?}");
        let output = iommu(&name, &[command, &["--root", path(&file)]].concat());
        codes[usize::try_from(output.status.code().unwrap_or_default()).expect("0 to 4")] += 1;
        let text = String::from_utf8(output.stdout).expect("UTF-8 whatever the machine says");
        let terminal = |c: char| c.is_control() && c != '\n';
        assert!(!text.chars().any(terminal), "{name}: nothing that a terminal obeys");
        if command.contains(&"sysfs") {
            assert_eq!(strange_line(&text), None, "{name}: {text}");
        }
    });
    assert!(codes[0] > 0 && codes[1] > 0, "some are still of use: {codes:?}");
}
