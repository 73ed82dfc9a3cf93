//! Taking out what tells one machine, or its owner, from another of the same model.

use std::collections::BTreeMap;

use iommu_groups::pci::{EXTENDED_LEN, extended, serial};

/// Capabilities that fit into extended configuration space.
const MAX_CAPABILITIES: usize = 960;

/// Scrubs a file by what it is.
pub(super) fn scrub(path: &str, names: &mut Names, bytes: &mut Vec<u8>) {
    if path.ends_with("/config") {
        serial_numbers(bytes);
    } else if path.starts_with("proc/") || path.starts_with("var/") {
        let text = String::from_utf8_lossy(bytes);
        *bytes = text
            .lines()
            .flat_map(|line| {
                let line = names.without_addresses(&line_without_names(line));
                line.into_bytes().into_iter().chain([b'\n'])
            })
            .collect();
    }
}

/// Zeroes the Device Serial Number capability. PCIe §7.9.3.
fn serial_numbers(config: &mut [u8]) {
    let mut at = extended::FIRST;
    for _ in 0..MAX_CAPABILITIES {
        let start = usize::from(at);
        let Some(head) = config
            .get(start..start + 4)
            .and_then(|head| <[u8; 4]>::try_from(head).ok())
        else {
            return;
        };
        let head = u32::from_le_bytes(head);
        if head == 0 || head == u32::MAX {
            return;
        }
        if head & extended::ID == u32::from(extended::SERIAL_NUMBER) {
            let from = start + usize::from(serial::NUMBER);
            if let Some(number) = config.get_mut(from..start + usize::from(serial::LEN)) {
                number.fill(0);
            }
        }
        let next = u16::try_from(head >> extended::NEXT_SHIFT).unwrap_or(0) & !3;
        if !(extended::FIRST..EXTENDED_LEN).contains(&next) {
            return;
        }
        at = next;
    }
}

/// A line without addresses, identifiers and names.
fn line_without_names(line: &str) -> String {
    let line = if let Some((before, rest)) = line.split_once("Linux version ") {
        // `6.1.0 (user@host) (gcc …)`: the builder.
        let rest = match (rest.find('('), rest.find(')')) {
            (Some(open), Some(close)) if open < close && rest.get(open..close).is_some_and(|who| who.contains('@')) => {
                format!(
                    "{}(builder){}",
                    rest.get(..open).unwrap_or_default(),
                    rest.get(close + 1..).unwrap_or_default()
                )
            }
            _ => rest.to_owned(),
        };
        format!("{before}Linux version {rest}")
    } else {
        line.to_owned()
    };
    let mut out = String::with_capacity(line.len());
    let mut word = String::new();
    for c in line.chars() {
        // Characters that addresses and identifiers are made of.
        if c.is_ascii_alphanumeric() || matches!(c, ':' | '-') {
            word.push(c);
        } else {
            push_word(&mut out, &word);
            word.clear();
            out.push(c);
        }
    }
    push_word(&mut out, &word);
    for marker in [
        "SerialNumber: ",
        "serial ",
        "Serial Number ",
        "hostname=",
        "Hostname: ",
        "Hostname set to ",
    ] {
        if let Some(at) = out.find(marker) {
            let from = at + marker.len();
            let end = out
                .get(from..)
                .and_then(|rest| rest.find([' ', ',']))
                .map_or(out.len(), |end| from + end);
            out.replace_range(from..end, "<removed>");
        }
    }
    out
}

/// Forms of addresses and identifiers: digits of each part, the mark between parts, and what takes their place.
const FORMS: [(&[usize], u8, &str); 6] = [
    (&[8, 4, 4, 4, 12], b'-', "<uuid>"),
    (&[2; 8], b':', "<mac>"),
    (&[2; 6], b':', "<mac>"),
    (&[2; 6], b'-', "<mac>"),
    (&[8, 2], b'-', "<uuid>"),
    (&[4, 4], b'-', "<uuid>"),
];

/// Bytes that `form` takes at the start of `text`, if it stands there whole.
fn taken(text: &[u8], (lengths, mark, _): (&[usize], u8, &str)) -> Option<usize> {
    let mut at = 0;
    for (index, length) in lengths.iter().enumerate() {
        if index > 0 {
            if text.get(at) != Some(&mark) {
                return None;
            }
            at += 1;
        }
        let part = text.get(at..at + length)?;
        if !part.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        at += length;
    }
    Some(at)
}

/// A word of letters, digits, colons and dashes, without the addresses and identifiers in it. Long forms may stand
/// inside a word (`luks-…`, `uuid:…`), short ones only as a whole: PCI addresses look like parts of them.
fn push_word(out: &mut String, word: &str) {
    let bytes = word.as_bytes();
    let mut at = 0;
    let mut fresh = true;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let found = FORMS.iter().filter(|_| fresh).find_map(|form| {
            let length = taken(rest, *form)?;
            let (before, behind) = (at == 0, rest.get(length..).unwrap_or_default());
            // A colon at the end belongs to the sentence.
            let ends = behind.iter().all(|byte| *byte == b':');
            let fits = match form.0.len() {
                5 => behind.first().is_none_or(|byte| !byte.is_ascii_hexdigit()),
                _ => before && ends,
            };
            fits.then_some((length, form.2))
        });
        if let Some((length, text)) = found {
            out.push_str(text);
            at += length;
            fresh = false;
        } else {
            // Only bytes of ASCII are in a word.
            let byte = rest.first().copied().unwrap_or(b'?');
            out.push(char::from(byte));
            at += 1;
            fresh = !byte.is_ascii_hexdigit() || byte == b'-' || byte == b':';
        }
    }
}

/// Names of network interfaces that are made of their addresses, and the names that take their place: the same one
/// for the same one, so that what belongs together stays together.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: BTreeMap<String, usize>,
}

impl Names {
    /// A text or path without such names: `enx001b21aabbcc` becomes `enx-mac1`.
    pub(super) fn without_addresses(&mut self, text: &str) -> String {
        const DIGITS: usize = 12;
        let mut out = String::with_capacity(text.len());
        for part in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let word = part.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            let digits = ["enx", "wlx", "wwx", "ibx"]
                .iter()
                .find_map(|kind| word.strip_prefix(kind))
                .filter(|digits| digits.len() == DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit()));
            let Some(digits) = digits else {
                out.push_str(part);
                continue;
            };
            let next = self.known.len() + 1;
            let number = *self.known.entry(digits.to_ascii_lowercase()).or_insert(next);
            out.push_str(word.get(..word.len() - DIGITS).unwrap_or_default());
            out.push_str(&format!("-mac{number}"));
            out.push_str(part.get(word.len()..).unwrap_or_default());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_identifiers_go_and_pci_addresses_stay() {
        let line = "igb 0000:15:00.0 eth0: MAC: 00:1b:21:aa:bb:cc root=UUID=3f1b2c4d-0000-1111-2222-abcdefabcdef EFI=12AB-34CD x";
        assert_eq!(
            line_without_names(line),
            "igb 0000:15:00.0 eth0: MAC: <mac> root=UUID=<uuid> EFI=<uuid> x"
        );
        assert_eq!(
            line_without_names(
                "rd.luks.uuid=luks-3f1b2c4d-0000-1111-2222-abcdefabcdef nqn.2014:uuid:3f1b2c4d-0000-1111-2222-abcdefabcdef PARTUUID=3f1b2c4d-01"
            ),
            "rd.luks.uuid=luks-<uuid> nqn.2014:uuid:<uuid> PARTUUID=<uuid>"
        );
        for kept in [
            "pci 0000:15:00.0: x",
            "10000:e1:00.0",
            "[mem 0x1000-0x1fff]",
            "DMAR-IR: 2026-11-22",
            "hi",
        ] {
            assert_eq!(line_without_names(kept), kept);
        }
        assert_eq!(
            line_without_names("systemd[1]: Hostname set to <joesbox>."),
            "systemd[1]: Hostname set to <removed>"
        );
        assert_eq!(
            line_without_names("Linux version 6.1.0 (joe@box) (gcc 12) #1"),
            "Linux version 6.1.0 (builder) (gcc 12) #1"
        );
        assert_eq!(
            line_without_names("usb 1-1: SerialNumber: ABC123"),
            "usb 1-1: SerialNumber: <removed>"
        );
    }

    #[test]
    fn names_made_of_addresses_become_numbers_that_stay_the_same() {
        let mut names = Names::default();
        assert_eq!(
            names.without_addresses("sys/class/net/enx001b21aabbcc/lower_wlx001B21AABBCD x"),
            "sys/class/net/enx-mac1/lower_wlx-mac2 x"
        );
        assert_eq!(names.without_addresses("enx001B21AABBCC 00000000"), "enx-mac1 00000000");
        for kept in ["eth0", "enp0s31f6", "enx001b21aabb", "0000:00:1f.6/net/eno1", ""] {
            assert_eq!(names.without_addresses(kept), kept);
        }
    }

    #[test]
    fn the_serial_number_capability_is_zeroed_and_circles_end() {
        let mut config = vec![0u8; 4096];
        config[0x100..0x104].copy_from_slice(&(0x1400_0000u32 | 1 << 16 | 1).to_le_bytes());
        config[0x140..0x144].copy_from_slice(&(0x1000_0000u32 | 1 << 16 | 3).to_le_bytes());
        config[0x144..0x14c].fill(0xaa);
        config[0x14c] = 0x55;
        serial_numbers(&mut config);
        assert!(config[0x144..0x14c].iter().all(|byte| *byte == 0));
        assert_eq!(config[0x14c], 0x55);
        serial_numbers(&mut [0xff; 300]);
    }
}
