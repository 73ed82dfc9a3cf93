//! Machine files and kept matrices with mistakes and noise in them.

use crate::{Dice, MACHINE, each_case, path, rehearse, scratch, wrongly_open};

#[test]
fn mistakes_in_machine_files_name_file_and_line() {
    let file = scratch("machine.toml");
    // What is replaced by what; each has to be found by the reader.
    let mistakes = [
        ("host-address-width = 46", "host-address-width = 0"),
        ("host-address-width = 46", "host-address-width = 255"),
        ("host-address-width = 46", "host-address-width = -1"),
        ("base = 0x0", "base = 0xffff_ffff_ffff_f000"),
        ("size = \"2 GiB\"", "size = \"99999999 TiB\""),
        ("size = \"2 GiB\"", "size = 1"),
        ("buses = \"00-ff\"", "buses = \"ff-00\""),
        ("buses = \"01-04\"", "buses = \"00-04\""),
        ("buses = \"02-04\"", "buses = \"01-04\""),
        ("buses = \"0b-0c\"", "buses = \"04-0c\""),
        ("bdf = \"03:00.0\"", "bdf = \"00:14.0\""),
        ("bdf = \"03:00.0\"", "bdf = \"09:00.0\""),
        ("bdf = \"03:00.0\"", "parent = \"nobody\"\nslot = \"00.0\""),
        ("bdf = \"03:00.0\"", "parent = \"NVMe disk\"\nslot = \"00.0\""),
        ("bdf = \"03:00.0\"", "bdf = \"0001:03:00.0\""),
        ("kind = \"switch-upstream\"", "kind = \"magic\""),
        ("kind = \"switch-upstream\"", "kind = \"endpoint\""),
        (
            "window = { base = 0x8000_0000, size = \"1 GiB\" }",
            "window = { base = 0, size = \"1 GiB\" }",
        ),
        (
            "window = { base = 0x8000_0000, size = \"1 GiB\" }",
            "window = { base = 0xffff_f000, size = \"1 GiB\" }",
        ),
        ("base = 0xfed9_1000", "base = 0xfed9_0000"),
        ("base = 0xfed9_1000", "base = 0"),
        ("path = \"00:14.0\"", "path = \"00:99.9\""),
        ("path = \"00:14.0\"", "path = \"/\""),
        ("\n[[rmrr]]", "\n[[rmrr"),
        ("\n[[rmrr]]", "\n[[reserved]]"),
        ("name = \"two-socket\"", "name = 7"),
        ("dma-bits = 32", "dma-bits = 33"),
        ("name = \"GPU\"", "name = \"NVMe disk\""),
        ("ids = \"144d:a808\"", "ids = \"144d-a808\""),
    ];
    for (from, to) in mistakes {
        assert!(MACHINE.contains(from), "{from:?} is in the sample");
        std::fs::write(&file, MACHINE.replacen(from, to, 1)).expect("writable");
        let (code, report) = rehearse(to, &[path(&file)]);
        assert_eq!(code, Some(2), "{from:?} -> {to:?}");
        let said = report["error"].as_str().unwrap_or_default();
        let place = said.split_once("machine.toml:").map_or("", |(_, place)| place);
        assert!(
            place.starts_with(|c: char| c.is_ascii_digit()),
            "{from:?} -> {to:?}: {said}"
        );
    }
}

#[test]
fn noise_in_machine_files_and_kept_matrices_ends_with_a_message() {
    let (machine, kept) = (scratch("noise.toml"), scratch("noise.kept"));
    let sound = scratch("sound.kept");
    let (code, _) = rehearse("keep", &["--keep", path(&sound)]);
    assert_eq!(code, Some(0));
    let matrix = std::fs::read(&sound).expect("it was kept");
    let noisy = |text: &[u8], dice: &mut Dice| {
        let mut text = text.to_vec();
        match dice.below(4) {
            0 => text.truncate(dice.below(text.len())),
            1 => {
                let at = dice.below(text.len());
                text[at] = dice.pick(&[0, 0xff, b'"', b'\n', b'#', b'9', b']']);
            }
            2 => {
                let (at, len) = (dice.below(text.len()), dice.below(80));
                text.drain(at..(at + len).min(text.len()));
            }
            _ => {
                let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
                let (a, b) = (dice.below(lines.len()), dice.below(lines.len()));
                let mut lines = lines.clone();
                lines.swap(a, b);
                text = lines.concat();
            }
        }
        text
    };
    each_case(|case| {
        let mut dice = Dice::new(case);
        let name = format!("noise {case}");
        if case % 2 == 0 {
            std::fs::write(&machine, noisy(MACHINE.as_bytes(), &mut dice)).expect("writable");
            let (_, report) = rehearse(&name, &[path(&machine)]);
            let open = wrongly_open(&report);
            assert!(open.is_empty(), "{name}: {open:?}");
        } else {
            std::fs::write(&kept, noisy(&matrix, &mut dice)).expect("writable");
            let (code, _) = rehearse(&name, &["--expect", path(&kept)]);
            assert!(matches!(code, Some(0..=2)), "{name}: {code:?}");
        }
    });
}
