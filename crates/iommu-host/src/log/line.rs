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
    bytes.split(|byte| *byte == b'\n').enumerate().map(|(index, line)| {
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
            return (Some(stamp), start);
        }
        from = close + 1;
    }
    // Without a stamp, a syslog prefix still ends in `kernel:`.
    let start = text.find(" kernel: ").map_or(0, |at| at + " kernel: ".len());
    (None, start)
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
    fn control_characters_and_broken_utf8_do_no_harm() {
        assert_eq!(one(b"\x1b[31mDMAR\xff\x00: x").1, "[31mDMAR\u{fffd}: x");
        assert_eq!(one(&[b'['; 100_000]).1.len(), MAX_LINE);
        assert_eq!(one(b"[99999999999999999999.000000] x").0, None);
    }
}
