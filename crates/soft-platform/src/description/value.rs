//! Values that a machine file writes as text or as numbers.

use std::fmt;

use iommu_types::{DevFn, SourceId};
use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

/// A number of bytes or an address: an integer (decimal or `0x…`), or text with a unit such as `"2 GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bytes(pub(super) u64);

/// Parses `"<number> [KiB|MiB|GiB|TiB]"`; the number is decimal or starts with `0x`, `_` may group digits.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let (number, shift) = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)]
        .iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, *shift)))
        .unwrap_or((text, 0));
    let digits: String = number.trim().chars().filter(|c| *c != '_').collect();
    let value = match digits.strip_prefix("0x") {
        Some(hex) if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            u64::from_str_radix(hex, 16).ok()?
        }
        None if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    value.checked_mul(1u64 << shift)
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct BytesVisitor;
        impl Visitor<'_> for BytesVisitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of bytes, as in 4096, 0x1000 or \"2 GiB\"")
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Bytes, E> {
                u64::try_from(value)
                    .map(Bytes)
                    .map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(value), &self))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Bytes, E> {
                Ok(Bytes(value))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Bytes, E> {
                bytes(text)
                    .map(Bytes)
                    .ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(BytesVisitor)
    }
}

/// A range of bus numbers, written `"01-05"` or `"01"` in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange {
    /// The first bus: for a bridge, the one right below it.
    pub first: u8,
    /// The last bus.
    pub last: u8,
}

impl BusRange {
    /// Whether `bus` is inside.
    #[must_use]
    pub const fn contains(self, bus: u8) -> bool {
        self.first <= bus && bus <= self.last
    }

    fn parse(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = Self {
            first: hex(first)?,
            last: hex(last)?,
        };
        (range.first <= range.last).then_some(range)
    }
}

impl fmt::Display for BusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}-{:02x}", self.first, self.last)
    }
}

/// One or two hexadecimal digits.
fn hex(text: &str) -> Option<u8> {
    let plain = (1..=2).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    plain.then(|| u8::from_str_radix(text, 16).ok())?
}

/// How a DMAR table names a device: a bus to start from, and the device and function to take on each bus on the
/// way. Written `"00:14.0"`, with further hops after slashes: `"00:14.0/00.0/01.0"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopePath {
    /// The bus the path starts from.
    pub start_bus: u8,
    /// Device and function on each bus; never empty.
    pub hops: Vec<DevFn>,
}

impl ScopePath {
    fn parse(text: &str) -> Option<Self> {
        let (start, rest) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let first: SourceId = start.parse().ok()?;
        let mut hops = vec![first.devfn()];
        for hop in rest.into_iter().flat_map(|rest| rest.split('/')) {
            let (device, function) = hop.split_once('.')?;
            hops.push(DevFn::new(hex(device)?, hex(function)?)?);
        }
        Some(Self {
            start_bus: first.bus(),
            hops,
        })
    }
}

impl fmt::Display for ScopePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:", self.start_bus)?;
        for (index, hop) in self.hops.iter().enumerate() {
            write!(f, "{}{hop}", if index == 0 { "" } else { "/" })?;
        }
        Ok(())
    }
}

/// Implements `Deserialize` for a type with `fn parse(&str) -> Option<Self>`.
macro_rules! from_text {
    ($type:ty, $parse:expr, $expected:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                let parse: fn(&str) -> Option<Self> = $parse;
                parse(&text).ok_or_else(|| D::Error::invalid_value(serde::de::Unexpected::Str(&text), &$expected))
            }
        }
    };
}
from_text!(
    BusRange,
    Self::parse,
    "bus numbers in hexadecimal, lowest first, as in \"01-05\" or \"01\""
);
from_text!(
    ScopePath,
    Self::parse,
    "a path from a root bus, as in \"00:14.0\" or \"00:14.0/00.0\""
);

/// A function's address: `"00:14.0"`, or with its segment `"0001:00:14.0"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address(pub(super) iommu_types::Bdf);

from_text!(
    Address,
    |text| text.parse().ok().map(Self),
    "[segment:]bus:device.function in hexadecimal, as in \"00:14.0\""
);

/// Vendor and device ID: `"8086:1521"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ids(pub(super) u16, pub(super) u16);

from_text!(
    Ids,
    |text| {
        let (vendor, device) = text.split_once(':')?;
        let id = |text: &str| {
            let plain = text.len() == 4 && text.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u16::from_str_radix(text, 16).ok())?
        };
        Some(Self(id(vendor)?, id(device)?))
    },
    "vendor and device ID in hexadecimal, as in \"8086:1521\""
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_or_text_with_a_unit() {
        assert_eq!(bytes("2 GiB"), Some(2 << 30));
        assert_eq!(bytes("64KiB"), Some(64 << 10));
        assert_eq!(bytes("0xfed9_0000"), Some(0xfed9_0000));
        assert_eq!(bytes("4096"), Some(4096));
        for bad in ["", "GiB", "2 GB", "-1", "0x", "1.5 GiB", "99999999 TiB", "+1"] {
            assert_eq!(bytes(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn paths_and_buses_print_as_they_are_written() {
        for text in ["00:14.0", "00:14.0/00.0/1f.7", "80:01.3"] {
            assert_eq!(ScopePath::parse(text).expect(text).to_string(), text);
        }
        for bad in ["", "00", "00:20.0", "00:14.0/", "00:14.0/00", "00:14.0/00.8", "/00.0"] {
            assert_eq!(ScopePath::parse(bad), None, "{bad:?}");
        }
        assert_eq!(BusRange::parse("01-0f").expect("valid").to_string(), "01-0f");
        assert_eq!(BusRange::parse("05-01"), None);
        assert_eq!(BusRange::parse("100"), None);
    }
}
