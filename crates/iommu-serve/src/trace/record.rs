//! The records of a trace, printed and parsed.

use std::fmt;

use iommu_types::{Access, HostPhys, Iova, SourceId};
use thiserror::Error;
use vtd_model::cache::CacheSizes;
use vtd_model::{AccessWidth, ConfigError, RequestKind, UnitConfig};
use vtd_spec::FaultReason;
use vtd_spec::register::{Capability, ExtendedCapability};

use super::FORMAT;

/// Most records that are read from a file.
const RECORDS_MAX: usize = 1 << 24;

/// Largest cache of a unit that is replayed.
const CACHE_MAX: usize = 1 << 16;

/// What became of a DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It reaches this host address.
    Reaches(HostPhys),
    /// It is blocked.
    Blocked(FaultReason),
}

/// What is done to a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A register is read.
    Read {
        /// Byte offset.
        offset: u32,
        /// How wide.
        width: AccessWidth,
        /// What it read.
        value: u64,
    },
    /// A register is written.
    Write {
        /// Byte offset.
        offset: u32,
        /// How wide.
        width: AccessWidth,
        /// What is written.
        value: u64,
    },
    /// A device accesses memory.
    Dma {
        /// Who.
        source: SourceId,
        /// What it wants to do.
        access: Access,
        /// Where.
        address: Iova,
        /// How many bytes.
        len: u64,
        /// Untranslated, or what a device-TLB sends.
        kind: RequestKind,
        /// What became of it.
        answer: Answer,
    },
    /// The unit is reset.
    Reset,
}

/// What the unit does in turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A 64-bit word is written.
    Set(HostPhys, u64),
    /// A 32-bit word is written.
    Set32(HostPhys, u32),
    /// An interrupt message is sent: address and data.
    Event(u64, u32),
    /// A rule is broken: its name, and text for people.
    Broken(String, String),
}

/// A line of a trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// What memory holds from here on, as far as the unit sees it.
    Word(HostPhys, u64),
    /// Something is done to the unit.
    Do(Operation),
    /// The unit did something.
    Did(Effect),
}

/// Why a text is no trace.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TraceError {
    /// A line that the format does not have.
    #[error("line {line}: {why}")]
    Line {
        /// Its number, from 1 on.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// The unit is one that this model cannot be.
    #[error("the trace is of a unit that cannot be replayed here: {0}")]
    Unit(String),
    /// More records than can be held.
    #[error("the trace has more than {RECORDS_MAX} records: cut it")]
    TooLong,
}

/// A whole trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Story {
    /// The unit.
    pub capability: Capability,
    /// The rest of the unit.
    pub extended: ExtendedCapability,
    /// Bits of a host address.
    pub host_address_width: u8,
    /// Architecture version, major and minor.
    pub version: (u8, u8),
    /// Sizes of its caches; `None` for the usual ones.
    pub caches: Option<CacheSizes>,
    /// What happened, with the number of each line.
    pub records: Vec<(usize, Record)>,
}

impl Story {
    /// Reads a trace.
    ///
    /// # Errors
    /// [`TraceError`] with the first line that is wrong.
    pub fn parse(text: &str) -> Result<Self, TraceError> {
        let mut lines = (1..)
            .zip(text.lines())
            .map(|(number, line)| (number, line.trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'));
        let missing = |what: &str| TraceError::Line {
            line: 1,
            why: format!("{what} is missing"),
        };
        let (number, first) = lines.next().ok_or_else(|| missing("the first line"))?;
        if first != FORMAT {
            return Err(TraceError::Line {
                line: number,
                why: format!("a trace begins with {FORMAT:?}"),
            });
        }
        let (number, unit) = lines.next().ok_or_else(|| missing("the line of the unit"))?;
        let mut story = Self::unit(unit).map_err(|why| TraceError::Line { line: number, why })?;
        for (number, line) in lines {
            if story.records.len() == RECORDS_MAX {
                return Err(TraceError::TooLong);
            }
            let record = parse(line).map_err(|why| TraceError::Line { line: number, why })?;
            story.records.push((number, record));
        }
        Ok(story)
    }

    fn unit(line: &str) -> Result<Self, String> {
        let mut words = line.split(' ');
        if words.next() != Some("unit") {
            return Err("the second line says which unit it is: unit cap=… ecap=… haw=… version=…".to_owned());
        }
        let mut story = Self {
            capability: Capability::new_with_raw_value(0),
            extended: ExtendedCapability::new_with_raw_value(0),
            host_address_width: 48,
            version: (5, 0),
            caches: None,
            records: Vec::new(),
        };
        for word in words {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| format!("{word:?} is not name=value"))?;
            match name {
                "cap" => story.capability = Capability::new_with_raw_value(number(value)?),
                "ecap" => story.extended = ExtendedCapability::new_with_raw_value(number(value)?),
                "haw" => story.host_address_width = narrow(value)?,
                "version" => {
                    let (major, minor) = value.split_once('.').ok_or("a version is major.minor")?;
                    story.version = (narrow(major)?, narrow(minor)?);
                }
                "caches" => story.caches = Some(caches(value)?),
                _ => return Err(format!("a unit has no {name:?}")),
            }
        }
        Ok(story)
    }

    /// The unit, with or without the sanitizer.
    ///
    /// # Errors
    /// [`TraceError::Unit`] if the model has not all that the unit had.
    pub fn config(&self, sanitizer: bool) -> Result<UnitConfig, TraceError> {
        let config = UnitConfig::builder()
            .resembling(self.capability, self.extended)
            .host_address_width(self.host_address_width)
            .version(self.version)
            .cache_sizes(self.caches)
            .sanitizer(sanitizer)
            .build()
            .map_err(|why: ConfigError| TraceError::Unit(why.to_string()))?;
        let (capability, extended) = (config.capability(), config.extended_capability());
        if (capability, extended) != (self.capability, self.extended) {
            return Err(TraceError::Unit(format!(
                "CAP {:#x}, ECAP {:#x} become {:#x}, {:#x}",
                self.capability.raw_value(),
                self.extended.raw_value(),
                capability.raw_value(),
                extended.raw_value()
            )));
        }
        Ok(config)
    }
}

/// The first two lines of a trace of a unit like `config`.
pub(super) fn head(config: &UnitConfig) -> String {
    let version = config.version();
    let caches = config.caches();
    format!(
        "{FORMAT}\nunit cap={:#x} ecap={:#x} haw={} version={}.{} caches={},{},{},{},{}\n",
        config.capability().raw_value(),
        config.extended_capability().raw_value(),
        config.host_address_width(),
        version.max().value(),
        version.min().value(),
        caches.contexts,
        caches.pasids,
        caches.pages,
        caches.tables,
        caches.interrupts
    )
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(at, value) => write!(f, "word {:#x} {value:#x}", at.raw()),
            Self::Do(Operation::Read { offset, width, value }) => {
                write!(f, "read {} {offset:#x} {value:#x}", width.bytes() * 8)
            }
            Self::Do(Operation::Write { offset, width, value }) => {
                write!(f, "write {} {offset:#x} {value:#x}", width.bytes() * 8)
            }
            Self::Do(Operation::Dma {
                source,
                access,
                address,
                len,
                kind,
                answer,
            }) => {
                let kind = match kind {
                    RequestKind::Untranslated => "dma",
                    RequestKind::Translation => "ask",
                    RequestKind::Translated => "hit",
                };
                write!(f, "{kind} {source} {access} {:#x} {len:#x} ", address.raw())?;
                match answer {
                    Answer::Reaches(at) => write!(f, "ok {:#x}", at.raw()),
                    Answer::Blocked(reason) => write!(f, "fault {:#x}", reason.0),
                }
            }
            Self::Do(Operation::Reset) => f.write_str("reset"),
            Self::Did(Effect::Set(at, value)) => write!(f, "set {:#x} {value:#x}", at.raw()),
            Self::Did(Effect::Set32(at, value)) => write!(f, "set32 {:#x} {value:#x}", at.raw()),
            Self::Did(Effect::Event(address, data)) => write!(f, "event {address:#x} {data:#x}"),
            Self::Did(Effect::Broken(rule, text)) => write!(f, "broken {rule} {text}"),
        }
    }
}

fn parse(line: &str) -> Result<Record, String> {
    let words: Vec<&str> = line.split(' ').collect();
    Ok(match words.as_slice() {
        ["word", at, value] => Record::Word(HostPhys::new(number(at)?), number(value)?),
        ["read", bits, offset, value] => Record::Do(Operation::Read {
            offset: narrow(offset)?,
            width: width(bits)?,
            value: number(value)?,
        }),
        ["write", bits, offset, value] => Record::Do(Operation::Write {
            offset: narrow(offset)?,
            width: width(bits)?,
            value: number(value)?,
        }),
        [
            sent @ ("dma" | "ask" | "hit"),
            source,
            access,
            address,
            len,
            what,
            value,
        ] => Record::Do(Operation::Dma {
            kind: match *sent {
                "ask" => RequestKind::Translation,
                "hit" => RequestKind::Translated,
                _ => RequestKind::Untranslated,
            },
            source: source.parse().map_err(|why| format!("{source:?}: {why}"))?,
            access: match *access {
                "read" => Access::Read,
                "write" => Access::Write,
                "atomic" => Access::Atomic,
                _ => return Err(format!("a DMA is read, write or atomic, not {access:?}")),
            },
            address: Iova::new(number(address)?),
            len: number(len)?,
            answer: match *what {
                "ok" => Answer::Reaches(HostPhys::new(number(value)?)),
                "fault" => Answer::Blocked(FaultReason(narrow(value)?)),
                _ => return Err(format!("a DMA ends with ok or fault, not {what:?}")),
            },
        }),
        ["reset"] => Record::Do(Operation::Reset),
        ["set", at, value] => Record::Did(Effect::Set(HostPhys::new(number(at)?), number(value)?)),
        ["set32", at, value] => Record::Did(Effect::Set32(HostPhys::new(number(at)?), narrow(value)?)),
        ["event", address, data] => Record::Did(Effect::Event(number(address)?, narrow(data)?)),
        ["broken", rule, text @ ..] => Record::Did(Effect::Broken((*rule).to_owned(), text.join(" "))),
        _ => return Err(format!("{line:?} is no record")),
    })
}

/// Contexts, PASIDs, pages, tables, interrupt entries.
fn caches(text: &str) -> Result<CacheSizes, String> {
    let sizes: Vec<usize> = text.split(',').map(narrow).collect::<Result<_, _>>()?;
    match *sizes.as_slice() {
        [contexts, pasids, pages, tables, interrupts] if sizes.iter().all(|size| *size <= CACHE_MAX) => {
            Ok(CacheSizes {
                contexts,
                pasids,
                pages,
                tables,
                interrupts,
            })
        }
        _ => Err(format!("caches are five numbers up to {CACHE_MAX}")),
    }
}

fn width(bits: &str) -> Result<AccessWidth, String> {
    match bits {
        "32" => Ok(AccessWidth::Dword),
        "64" => Ok(AccessWidth::Qword),
        _ => Err(format!("registers are accessed by 32 or 64 bits, not {bits:?}")),
    }
}

fn number(word: &str) -> Result<u64, String> {
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.map_err(|why| format!("{word:?} is no number: {why}"))
}

fn narrow<T: TryFrom<u64>>(word: &str) -> Result<T, String> {
    T::try_from(number(word)?).map_err(|_| format!("{word} is too large here"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "portcullis-trace 1\nunit cap=0xd2008c222f0606 ecap=0xf00ffa haw=46 version=5.0\n";

    #[test]
    fn every_record_is_read_as_it_is_printed() {
        let lines = [
            "word 0x1000 0x2001",
            "read 32 0x1c 0x80000000",
            "write 64 0x20 0x1000",
            "dma 00:07.0 write 0xfff0 0x10 ok 0x20000",
            "dma 3b:00.1 atomic 0xfff0 0x8 fault 0x5",
            "ask 3b:00.1 read 0xf000 0x8 ok 0x20000",
            "hit 3b:00.1 read 0x20000 0x8 ok 0x20000",
            "reset",
            "set 0x6800 0x200061",
            "set32 0x7000 0x1",
            "event 0xfee01000 0x4041",
            "broken stale-translation write of 0x10 bytes",
        ];
        let story = Story::parse(&format!("{TEXT}\n# a comment\n{}\n", lines.join("\n"))).unwrap();
        let printed: Vec<String> = story.records.iter().map(|(_, record)| record.to_string()).collect();
        assert_eq!(printed, lines);
        assert_eq!(story.host_address_width, 46);
    }

    #[test]
    fn what_is_no_trace_is_said_with_its_line() {
        for (text, line) in [
            ("", 1),
            ("portcullis-trace 2\n", 1),
            ("portcullis-trace 1\nunit cap\n", 2),
            (&format!("{TEXT}read 16 0 0\n"), 3),
            (&format!("{TEXT}\nset32 0 0x100000000\n"), 4),
            (&format!("{TEXT}dma 00:07.0 look 0 1 ok 0\n"), 3),
        ] {
            match Story::parse(text) {
                Err(TraceError::Line { line: found, .. }) => assert_eq!(found, line, "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
