//! Lines of a log as text: without what surrounds the kernel's message.

use std::borrow::Cow;
use std::fmt;

/// Bytes of a line that are looked at. The longest messages of the kernel have about a thousand.
const MAX_LINE: usize = 4096;

/// The kernel's time stamp: microseconds since it started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub u64);

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// A line of text.
#[derive(Clone, Debug)]
pub(super) struct Line<'a> {
    /// From 1.
    pub(super) number: usize,
    pub(super) stamp: Option<Stamp>,
    /// What follows the stamp, or the whole line; nothing in it that a terminal would obey.
    pub(super) text: Cow<'a, str>,
}

/// All lines of `bytes`.
pub(super) fn clean_lines(bytes: &[u8]) -> impl Iterator<Item = Line<'_>> {
    // What follows the last newline is a line only if there is something.
    let lines = bytes.split_inclusive(|byte| *byte == b'\n').enumerate();
    lines.map(|(index, line)| {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.get(..MAX_LINE).unwrap_or(line);
        let text = clean(line);
        let (stamp, start) = find_stamp(&text);
        let text = match text {
            Cow::Borrowed(text) => Cow::Borrowed(text.get(start..).unwrap_or(text).trim()),
            Cow::Owned(text) => Cow::Owned(text.get(start..).unwrap_or(&text).trim().to_owned()),
        };
        Line {
            number: index + 1,
            stamp,
            text,
        }
    })
}

/// Text without control characters; bytes that are no UTF-8 become U+FFFD.
fn clean(line: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(line);
    if text.chars().any(|c| c.is_control() && c != '\t') {
        Cow::Owned(text.chars().filter(|c| *c == '\t' || !c.is_control()).collect())
    } else {
        text
    }
}

/// The stamp `[   12.345678]` and where the text behind it starts. A syslog prefix may stand before it, the
/// thread or processor `[    T1]` behind it.
fn find_stamp(text: &str) -> (Option<Stamp>, usize) {
    let mut from = 0;
    while let Some(open) = text.get(from..).and_then(|rest| rest.find('[')).map(|at| at + from) {
        let Some(close) = text.get(open..).and_then(|rest| rest.find(']')).map(|at| at + open) else {
            break;
        };
        let inside = text.get(open + 1..close).unwrap_or_default().trim();
        if let Some(stamp) = parse_stamp(inside) {
            let mut start = close + 1;
            let rest = text.get(start..).unwrap_or_default();
            let trimmed = rest.trim_start();
            if let Some(thread) = trimmed
                .strip_prefix('[')
                .and_then(|rest| rest.split_once(']'))
                .map(|(t, _)| t)
                && is_thread(thread.trim())
            {
                start += rest.len() - trimmed.len() + thread.len() + 2;
            }
            // `journalctl -o short-monotonic` names host and sender behind the stamp.
            let behind = text.get(start..).unwrap_or_default();
            return (Some(stamp), start + sender(behind, 2).unwrap_or(0));
        }
        from = close + 1;
    }
    // Without a stamp, a syslog prefix still ends in `kernel:`.
    let start = sender(text, usize::MAX).or_else(|| date(text)).unwrap_or(0);
    (None, start)
}

/// Where the text behind `kernel: ` starts, if that is among the first `words`.
fn sender(text: &str, words: usize) -> Option<usize> {
    const KERNEL: &str = " kernel: ";
    let at = text.find(KERNEL)?;
    let before = text.get(..at)?;
    (before.split_whitespace().count() < words).then_some(at + KERNEL.len())
}

/// Where the text behind a time for people starts: `[Sun Nov 22 07:50:24 2026]` (`dmesg -T`), `[Nov22 07:50]` and
/// `[  +0.000003]` (`dmesg -H`), `2026-11-22T07:50:24,123456+00:00` (`dmesg --time-format iso`).
fn date(text: &str) -> Option<usize> {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    if let Some(rest) = text.strip_prefix('[') {
        let (inside, _) = rest.split_once(']')?;
        let since = inside.trim().strip_prefix('+').and_then(parse_stamp);
        let is_date = inside.contains(':') && MONTHS.iter().any(|month| inside.contains(month));
        return (since.is_some() || is_date).then_some(inside.len() + 2);
    }
    let (first, _) = text.split_once(' ')?;
    let shape = |at: usize, c: u8| first.as_bytes().get(at) == Some(&c);
    let is_iso = shape(4, b'-') && shape(7, b'-') && shape(10, b'T') && shape(13, b':') && shape(16, b':');
    is_iso.then_some(first.len())
}

fn parse_stamp(text: &str) -> Option<Stamp> {
    let (seconds, micros) = text.split_once('.')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(seconds) || !digits(micros) || micros.len() != 6 {
        return None;
    }
    let whole: u64 = seconds.parse().ok()?;
    let micros: u64 = micros.parse().ok()?;
    Some(Stamp(whole.checked_mul(1_000_000)?.checked_add(micros)?))
}

fn is_thread(text: &str) -> bool {
    text.strip_prefix(['T', 'C'])
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bytes: &[u8]) -> (Option<Stamp>, String) {
        let line = clean_lines(bytes).next().expect("there is one");
        (line.stamp, line.text.into_owned())
    }

    #[test]
    fn stamps_and_prefixes_are_taken_off() {
        let plain = (Some(Stamp(278_999_480)), "DMAR: hello".to_owned());
        assert_eq!(one(b"[  278.999480] DMAR: hello"), plain);
        assert_eq!(one(b"May 30 17:35:46 host kernel: [  278.999480] DMAR: hello\r"), plain);
        assert_eq!(one(b"<4>[  278.999480][    T1] DMAR: hello"), plain);
        assert_eq!(one(b"[  278.999480] [   C0] DMAR: hello"), plain);
        assert_eq!(
            one(b"May 30 host kernel: DMAR: hello"),
            (None, "DMAR: hello".to_owned())
        );
        assert_eq!(
            one(b"  DMAR: [fault reason 06] x"),
            (None, "DMAR: [fault reason 06] x".to_owned())
        );
        assert_eq!(plain.0.expect("set").to_string(), "278.999480");
    }

    #[test]
    fn times_for_people_are_taken_off_like_stamps() {
        for prefix in [
            "[Sun Nov 22 07:50:24 2026] ",
            "[Nov22 07:50] ",
            "[  +0.000003] ",
            "2026-11-22T07:50:24,123456+00:00 ",
            "2026-11-22T07:50:24+0000 host kernel: ",
        ] {
            let line = format!("{prefix}pci 0000:03:00.0: hello");
            assert_eq!(one(line.as_bytes()), (None, "pci 0000:03:00.0: hello".to_owned()));
        }
        let monotonic = one(b"[    1.000000] host kernel: DMAR: hello");
        assert_eq!(monotonic, (Some(Stamp(1_000_000)), "DMAR: hello".to_owned()));
        // What only looks like one is text.
        for line in ["[fault reason 06] x", "[03:00.1] fault addr 0", "[May be] x", "a-b-c d"] {
            assert_eq!(one(line.as_bytes()), (None, line.to_owned()));
        }
        let speaker = one(b"[    1.000000] systemd[1]: said: the kernel: x").1;
        assert_eq!(speaker, "systemd[1]: said: the kernel: x");
    }

    #[test]
    fn lines_are_those_that_an_editor_counts() {
        let count = |text: &str| clean_lines(text.as_bytes()).count();
        assert_eq!(
            [count(""), count("a"), count("a\n"), count("a\n\n"), count("a\nb")],
            [0, 1, 1, 2, 2]
        );
    }

    #[test]
    fn control_characters_and_broken_utf8_do_no_harm() {
        assert_eq!(one(b"\x1b[31mDMAR\xff\x00: x").1, "[31mDMAR\u{fffd}: x");
        assert_eq!(one(&[b'['; 100_000]).1.len(), MAX_LINE);
        assert_eq!(one(b"[99999999999999999999.000000] x").0, None);
    }
}
