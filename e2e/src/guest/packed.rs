//! Files on a console: compressed, then in Base64.

use std::io::Read;

use flate2::read::GzDecoder;

/// More than anything that a script sends.
const LONGEST: u64 = 64 << 20;

/// The bytes of a file; `None` if something of it is missing or wrong.
pub(super) fn unpack(text: &str) -> Option<Vec<u8>> {
    let packed = decode(text)?;
    let mut bytes = Vec::new();
    GzDecoder::new(packed.as_slice())
        .take(LONGEST)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(bytes)
}

/// Reads Base64 (RFC 4648 §4), without line breaks.
fn decode(text: &str) -> Option<Vec<u8>> {
    let plain = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(plain.len() / 4 * 3 + 3);
    let (mut bits, mut count) = (0_u32, 0_u32);
    for character in plain.bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    // What is left over is padding of zeros.
    (bits & ((1 << count) - 1) == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length_is_read_and_other_text_refused() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("+/8=", b"\xfb\xff"),
        ] {
            assert_eq!(decode(text).as_deref(), Some(bytes));
        }
        assert_eq!(decode("Zm 9"), None);
        assert_eq!(decode("Zh=="), None);
    }

    #[test]
    fn a_file_that_lost_its_end_is_refused() {
        let whole = "H4sIAAAAAAAAA8tIzcnJ5wIAIDA6NgYAAAA=";
        assert_eq!(unpack(whole).as_deref(), Some(&b"hello\n"[..]));
        assert_eq!(unpack(&whole[..whole.len() - 8]), None);
    }
}
