//! What the guest's script printed.

use std::collections::BTreeMap;

use acpi_dmar::{BusTopology, Seen, Upstream};
use iommu_groups::{BusId, ConfigAccess, Facts, LinuxVersion, Roots, Topology};
use iommu_types::{Bdf, Segment};
use thiserror::Error;

use super::packed;

/// Longest thing that the script dumps: an extended configuration space. A DMAR table is shorter.
const LONGEST: usize = 0x1_0000;

/// Why a text is no record.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The script did not start, or did not end.
    #[error("there is no line {0:?}")]
    Missing(&'static str),
    /// A line that the script does not print.
    #[error("the line {0:?} means nothing")]
    Line(String),
    /// A file that did not arrive as it was sent.
    #[error("the file {0:?} cannot be unpacked")]
    File(String),
}

/// What a kernel knows about the machine it runs on.
#[derive(Clone, Debug, Default)]
pub struct Record {
    /// The release, as in `6.12.107+deb13-cloud-amd64`.
    pub release: String,
    /// The root buses.
    pub roots: Vec<BusId>,
    /// The configuration space of every function, as far as the kernel reads it.
    pub spaces: BTreeMap<Bdf, Vec<u8>>,
    /// The number of the group of every function that has one.
    pub groups: BTreeMap<Bdf, u32>,
    /// The DMAR table.
    pub table: Option<Vec<u8>>,
    /// The files that the script sent, the outputs of commands above all.
    pub files: BTreeMap<String, Vec<u8>>,
    /// How commands ended.
    pub statuses: BTreeMap<String, i32>,
    /// The kernel's messages about it, without the time in front.
    pub messages: Vec<String>,
}

/// What the lines of a dump belong to.
enum Section {
    None,
    Config(Bdf),
    Table,
    File(String, String),
    Messages,
}

impl Record {
    /// Reads the console of a guest; what stands before and after the record is passed over.
    ///
    /// # Errors
    /// [`Malformed`] if the record does not start, does not end, or has a line that cannot be read.
    pub fn read(console: &str) -> Result<Self, Malformed> {
        const START: &str = "== record";
        const END: &str = "== end";
        let mut record = Self::default();
        let mut section = Section::None;
        let mut repeats = false;
        let mut lines = console.lines().map(str::trim_end);
        lines.find(|line| *line == START).ok_or(Malformed::Missing(START))?;
        for line in lines {
            if line == END {
                return Ok(record);
            }
            let unreadable = || Malformed::Line(line.to_owned());
            if let Section::Messages = section {
                let message = line.split_once("] ").map_or(line, |(_, message)| message);
                record.messages.push(message.to_owned());
                continue;
            }
            if let Section::File(name, packed) = &mut section {
                if line == "." {
                    let bytes = packed::unpack(packed).ok_or_else(|| Malformed::File(name.clone()))?;
                    record.files.insert(std::mem::take(name), bytes);
                    section = Section::None;
                } else {
                    packed.push_str(line);
                }
                continue;
            }
            // Names may have spaces.
            if let Some(name) = line.strip_prefix("file ") {
                section = Section::File(name.to_owned(), String::new());
                continue;
            }
            let mut words = line.splitn(3, ' ');
            match (words.next().unwrap_or_default(), words.next(), words.next()) {
                ("kernel", Some(release), None) => release.clone_into(&mut record.release),
                ("root", Some(bus), None) => record.roots.push(root(bus).ok_or_else(unreadable)?),
                ("config", Some(function), None) => {
                    let function = function.parse().map_err(|_| unreadable())?;
                    record.spaces.insert(function, Vec::new());
                    section = Section::Config(function);
                    repeats = false;
                }
                ("group", Some(number), Some(function)) => {
                    let function = function.parse().map_err(|_| unreadable())?;
                    record
                        .groups
                        .insert(function, number.parse().map_err(|_| unreadable())?);
                }
                ("table", Some("DMAR"), None) => {
                    record.table = Some(Vec::new());
                    section = Section::Table;
                    repeats = false;
                }
                ("ended", Some(status), Some(name)) => {
                    let status = status.parse().map_err(|_| unreadable())?;
                    record.statuses.insert(name.to_owned(), status);
                }
                ("messages", None, None) => section = Section::Messages,
                ("*", None, None) => repeats = true,
                _ => {
                    let bytes = match section {
                        Section::Config(function) => record.spaces.get_mut(&function),
                        Section::Table => record.table.as_mut(),
                        Section::None | Section::File(..) | Section::Messages => None,
                    };
                    dump(bytes.ok_or_else(unreadable)?, line, repeats).ok_or_else(unreadable)?;
                    repeats = false;
                }
            }
        }
        Err(Malformed::Missing(END))
    }

    /// The release, as far as grouping rules depend on it.
    #[must_use]
    pub fn version(&self) -> Option<LinuxVersion> {
        let mut numbers = self.release.split('.').map_while(|part| part.parse().ok());
        Some(LinuxVersion::new(numbers.next()?, numbers.next()?))
    }

    /// A file that the script sent, as text; empty if it sent none of this name.
    #[must_use]
    pub fn text(&self, name: &str) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(self.files.get(name).map(Vec::as_slice).unwrap_or_default())
    }

    /// The topology of the functions that the kernel lists, below its root buses.
    #[must_use]
    pub fn topology(&self) -> Topology {
        let functions = self.spaces.keys().copied();
        Topology::from_functions(self, functions, Roots::Given(&self.roots), &Facts::default())
    }

    /// The sets of functions that share a group, by the kernel.
    #[must_use]
    pub fn partition(&self) -> Vec<Vec<Bdf>> {
        let mut groups: BTreeMap<u32, Vec<Bdf>> = BTreeMap::new();
        for (function, number) in &self.groups {
            groups.entry(*number).or_default().push(*function);
        }
        let mut partition: Vec<_> = groups.into_values().collect();
        partition.sort_unstable();
        partition
    }
}

impl ConfigAccess for Record {
    fn read32(&self, function: Bdf, offset: u16) -> Option<u32> {
        let Some(space) = self.spaces.get(&function) else {
            return Some(u32::MAX);
        };
        let bytes = space.get(usize::from(offset)..)?.first_chunk()?;
        Some(u32::from_le_bytes(*bytes))
    }
}

/// A topology as the DMAR table's scopes need it.
#[derive(Clone, Copy, Debug)]
pub struct Buses<'t>(pub &'t Topology);

impl BusTopology for Buses<'_> {
    fn function(&self, at: Bdf) -> Seen {
        match self.0.get(at) {
            None => Seen::Absent,
            Some(function) => match function.buses {
                None => Seen::Endpoint,
                Some(buses) => Seen::Bridge {
                    secondary: buses.secondary,
                    subordinate: buses.subordinate,
                },
            },
        }
    }

    fn parent_bridge(&self, segment: Segment, bus: u8) -> Upstream {
        let leads_here = |function: &&iommu_groups::Function| {
            function.bdf.segment == segment && function.buses.is_some_and(|buses| buses.secondary == bus)
        };
        match self.0.functions().iter().find(leads_here) {
            _ if self.0.is_root_bus(BusId::new(segment, bus)) => Upstream::Root,
            Some(bridge) => Upstream::Bridge(bridge.bdf.source),
            None => Upstream::Unknown,
        }
    }

    fn listed_as(&self, function: Bdf) -> Option<Bdf> {
        self.0.get(function)?.physical_function
    }
}

/// A root bus as in `0000:00`.
fn root(text: &str) -> Option<BusId> {
    let (segment, bus) = text.split_once(':')?;
    let segment = u32::from_str_radix(segment, 16).ok()?;
    Some(BusId::new(Segment(segment), u8::from_str_radix(bus, 16).ok()?))
}

/// Adds one line of a dump: an offset and up to 16 bytes, or the offset of the end. After a `*`, what lies
/// between is the last line over and over.
fn dump(bytes: &mut Vec<u8>, line: &str, repeats: bool) -> Option<()> {
    const LINE: usize = 16;
    let mut words = line.split_ascii_whitespace();
    let offset = usize::from_str_radix(words.next()?, 16).ok()?;
    if repeats && offset <= LONGEST {
        let last = bytes.get(bytes.len().checked_sub(LINE)?..)?.to_vec();
        while bytes.len() < offset {
            bytes.extend_from_slice(&last);
        }
        // The repeated lines may end in the middle of one.
        bytes.truncate(offset);
    }
    if bytes.len() != offset {
        return None;
    }
    for word in words {
        bytes.push(u8::from_str_radix(word, 16).ok()?);
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONSOLE: &str = "SeaBIOS\r\n\
        == record\r\n\
        kernel 6.12.107+deb13-cloud-amd64\r\n\
        root 0000:00\r\n\
        root 0000:40\r\n\
        config 0000:00:03.0\r\n\
        00000 86 80 c0 29 00 00 00 00 00 00 00 00 00 00 00 01\r\n\
        *\r\n\
        00030 02\r\n\
        00031\r\n\
        group 7 0000:00:03.0\r\n\
        table DMAR\r\n\
        00000 44 4d 41 52\r\n\
        00004\r\n\
        ended 3 the greeting\r\n\
        file the greeting\r\n\
        H4sIAAAAAAAAA8tIzcnJ\r\n\
        5wIAIDA6NgYAAAA=\r\n\
        .\r\n\
        messages\r\n\
        [    0.274453] DMAR: Host address width 48\r\n\
        == end\r\n";

    #[test]
    fn a_record_is_read_with_its_repeated_lines() {
        let record = Record::read(CONSOLE).unwrap();
        let function = "00:03.0".parse().unwrap();
        let space = &record.spaces[&function];
        assert_eq!(space.len(), 0x31);
        assert_eq!((space[0x2f], space[0x30], space[0x10]), (1, 2, 0x86));
        assert_eq!(record.read32(function, 0x20), Some(0x29c0_8086));
        assert_eq!(record.read32(function, 0x30), None);
        assert_eq!(record.read32("00:04.0".parse().unwrap(), 0), Some(u32::MAX));
        assert_eq!(record.groups[&function], 7);
        assert_eq!(record.table.as_deref(), Some(&b"DMAR"[..]));
        assert_eq!(record.statuses["the greeting"], 3);
        assert_eq!(record.text("the greeting"), "hello\n");
        assert_eq!(record.text("nothing"), "");
        assert_eq!(record.messages, ["DMAR: Host address width 48"]);
        assert_eq!(record.version(), Some(LinuxVersion::new(6, 12)));
        assert_eq!(record.roots[1], BusId::new(Segment(0), 0x40));
    }

    #[test]
    fn a_record_that_ends_early_or_makes_no_sense_is_refused() {
        let (early, _) = CONSOLE.split_once("== end").unwrap();
        assert_eq!(Record::read(early).unwrap_err(), Malformed::Missing("== end"));
        assert_eq!(Record::read("Linux").unwrap_err(), Malformed::Missing("== record"));
        let gap = CONSOLE.replace("*\r\n", "");
        assert_eq!(Record::read(&gap).unwrap_err(), Malformed::Line("00030 02".to_owned()));
        let torn = CONSOLE.replace("5wIAIDA6", "5wIAIDA7");
        assert_eq!(
            Record::read(&torn).unwrap_err(),
            Malformed::File("the greeting".to_owned())
        );
        let noise = CONSOLE.replace("group 7", "group x");
        assert!(matches!(Record::read(&noise), Err(Malformed::Line(_))));
    }
}
