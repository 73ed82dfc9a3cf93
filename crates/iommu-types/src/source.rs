//! Who a request comes from: segment, bus, device and function.

use core::fmt;
use core::str::FromStr;

/// A PCI segment group, which Linux calls domain: buses of two segments are different buses.
///
/// Firmware tables and VT-d know 16 bits of it. Operating systems number domains of their own above that: Linux has
/// the functions below a VMD in 10000 and up. Such a domain is no segment of any remapping unit ([`Self::firmware`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Segment(pub u32);

impl Segment {
    /// The number as firmware tables have it; `None` for a domain that only an operating system knows.
    #[must_use]
    pub fn firmware(self) -> Option<u16> {
        u16::try_from(self.0).ok()
    }
}

impl From<u16> for Segment {
    fn from(number: u16) -> Self {
        Self(number.into())
    }
}

impl fmt::Display for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

/// Device and function on a bus: device in bits 7:3, function in bits 2:0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DevFn(u8);

impl DevFn {
    /// Device `device` (0 to 31), function `function` (0 to 7), or `None` outside these limits.
    #[must_use]
    pub const fn new(device: u8, function: u8) -> Option<Self> {
        if device < 32 && function < 8 {
            Some(Self(device << 3 | function))
        } else {
            None
        }
    }

    /// From the packed byte.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Self {
        Self(raw)
    }

    /// The packed byte.
    #[must_use]
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// The device number.
    #[must_use]
    pub const fn device(self) -> u8 {
        self.0 >> 3
    }

    /// The function number.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 & 7
    }
}

impl fmt::Debug for DevFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for DevFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}.{:x}", self.device(), self.function())
    }
}

/// A requester ID, which VT-d calls source-id: bus in bits 15:8, device 7:3, function 2:0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SourceId(u16);

impl SourceId {
    /// The requester ID of a function.
    #[must_use]
    pub const fn new(bus: u8, devfn: DevFn) -> Self {
        Self((bus as u16) << 8 | devfn.0 as u16)
    }

    /// From the 16-bit form.
    #[must_use]
    pub const fn from_raw(raw: u16) -> Self {
        Self(raw)
    }

    /// The 16-bit form.
    #[must_use]
    pub const fn raw(self) -> u16 {
        self.0
    }

    /// The bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Device and function.
    #[must_use]
    pub const fn devfn(self) -> DevFn {
        DevFn(self.0.to_be_bytes()[1])
    }
}

impl fmt::Debug for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{}", self.bus(), self.devfn())
    }
}

/// A PCI function with its segment; prints and parses as `ssss:bb:dd.f`, with up to eight digits for domains above
/// ffff.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bdf {
    /// The segment group.
    pub segment: Segment,
    /// Bus, device and function.
    pub source: SourceId,
}

impl Bdf {
    /// The function `source` of `segment`.
    #[must_use]
    pub const fn new(segment: Segment, source: SourceId) -> Self {
        Self { segment, source }
    }

    /// The bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        self.source.bus()
    }

    /// Device and function.
    #[must_use]
    pub const fn devfn(self) -> DevFn {
        self.source.devfn()
    }
}

impl fmt::Debug for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.segment, self.source)
    }
}

/// A text that is not `[ssss:]bb:dd.f` in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParseBdfError {
    /// The separators are not where they belong.
    Shape,
    /// A part is not a hexadecimal number of at most its number of digits.
    Number,
    /// Device above 1f or function above 7.
    DeviceOrFunction,
}

impl fmt::Display for ParseBdfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Shape => "expected [segment:]bus:device.function, as in 0000:00:1f.3 or 00:1f.3",
            Self::Number => {
                "segment, bus, device and function are hexadecimal numbers (0000-ffffffff, 00-ff, 00-1f, 0-7)"
            }
            Self::DeviceOrFunction => "the device number ends at 1f and the function number at 7",
        })
    }
}

impl core::error::Error for ParseBdfError {}

/// A hexadecimal number of one to `digits` digits, without sign or prefix.
fn hex(text: &str, digits: usize) -> Result<u32, ParseBdfError> {
    let plain = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !plain {
        return Err(ParseBdfError::Number);
    }
    u32::from_str_radix(text, 16).map_err(|_| ParseBdfError::Number)
}

fn byte(text: &str) -> Result<u8, ParseBdfError> {
    u8::try_from(hex(text, 2)?).map_err(|_| ParseBdfError::Number)
}

impl FromStr for SourceId {
    type Err = ParseBdfError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (bus, devfn) = text.split_once(':').ok_or(ParseBdfError::Shape)?;
        let (device, function) = devfn.split_once('.').ok_or(ParseBdfError::Shape)?;
        let devfn = DevFn::new(byte(device)?, byte(function)?).ok_or(ParseBdfError::DeviceOrFunction)?;
        Ok(Self::new(byte(bus)?, devfn))
    }
}

impl FromStr for Bdf {
    type Err = ParseBdfError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            Some((segment, rest)) if rest.contains(':') => Ok(Self {
                segment: Segment(hex(segment, 8)?),
                source: rest.parse()?,
            }),
            _ => Ok(Self {
                segment: Segment(0),
                source: text.parse()?,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn source_ids_print_as_people_write_them() {
        let nic: Bdf = "0001:3b:1f.7".parse().expect("valid");
        assert_eq!(nic.source.raw(), 0x3bff);
        assert_eq!(nic.segment, Segment(1));
        assert_eq!(nic.to_string(), "0001:3b:1f.7");
        assert_eq!("00:1d.0".parse::<Bdf>().expect("valid").to_string(), "0000:00:1d.0");
        assert_eq!(nic.segment.firmware(), Some(1));
    }

    #[test]
    fn domains_above_ffff_are_themselves_and_no_segment_of_firmware() {
        let disk: Bdf = "10000:e1:00.0".parse().expect("valid");
        assert_eq!(disk.to_string(), "10000:e1:00.0");
        assert_ne!(disk, "0000:e1:00.0".parse().expect("valid"));
        assert_eq!(disk.segment.firmware(), None);
        assert_eq!(
            "ffffffff:00:00.0".parse::<Bdf>().expect("valid").segment,
            Segment(u32::MAX)
        );
        assert_eq!(Segment::from(0xffff).firmware(), Some(0xffff));
    }

    #[test]
    fn nonsense_is_refused_with_its_kind() {
        assert_eq!("00:20.0".parse::<SourceId>(), Err(ParseBdfError::DeviceOrFunction));
        assert_eq!("00:1f.8".parse::<SourceId>(), Err(ParseBdfError::DeviceOrFunction));
        assert_eq!("001f.0".parse::<SourceId>(), Err(ParseBdfError::Shape));
        assert_eq!("zz:1f.0".parse::<SourceId>(), Err(ParseBdfError::Number));
        assert_eq!("+0:1f.0".parse::<SourceId>(), Err(ParseBdfError::Number));
        assert_eq!("123456789:00:1f.0".parse::<Bdf>(), Err(ParseBdfError::Number));
        assert_eq!("".parse::<Bdf>(), Err(ParseBdfError::Shape));
    }
}
