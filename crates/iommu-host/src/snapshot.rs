//! One file that holds what this crate reads of a machine, for somebody else to look at.
//!
//! It is a tar archive with the paths of sysfs, procfs and the ACPI tables as they are, so that other tools can
//! read it too, and a manifest that says what the machine has not and what could not be read. Nothing in it says
//! who made it; with scrubbing, serial numbers, network addresses, host and user names and identifiers of file
//! systems are taken out.

mod scrub;

use std::path::Path;

use crate::knowledge::{Knowledge, Obstacle};
use crate::platform::{CPUINFO, CPUINFO_HEAD, NAMESPACE};
use crate::sysfs::vital::{LOWER, routes_v6};
use crate::sysfs::{DEVICES, GROUPS, LOGS, MAX_TABLE, PARAMETERS, TABLES, UNITS};
use crate::tar::{self, ArchiveError};
use crate::tree::{Archive, Entry, Missing, Tree, joined};

/// Where the manifest stands.
pub(crate) const MANIFEST: &str = "portcullis/manifest";
/// Version of the manifest's form.
const VERSION: u32 = 1;
/// Bytes of configuration space that sysfs shows to everybody.
const HEADER_LEN: usize = 64;
/// Partitions of one disk, or parts of one array, that are kept.
const MAX_PARTS: usize = 256;
/// Missing paths that are taken from one manifest.
const MAX_MISSING: usize = 1 << 18;

/// A snapshot.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The archive.
    pub bytes: Vec<u8>,
    /// Files in it.
    pub files: usize,
    /// Paths that could not be read for lack of rights.
    pub denied: Vec<String>,
    /// Functions whose configuration space is cut to its header, which is what sysfs shows without rights.
    pub cut: usize,
}

/// Files of a PCI function.
const FUNCTION_FILES: [&str; 10] = [
    "vendor",
    "device",
    "class",
    "revision",
    "subsystem_vendor",
    "subsystem_device",
    "config",
    "numa_node",
    "reset_method",
    "boot_vga",
];
/// Links of a PCI function.
const FUNCTION_LINKS: [&str; 3] = ["driver", "iommu_group", "physfn"];
/// Files of a unit.
const UNIT_FILES: [&str; 6] = ["address", "cap", "ecap", "version", "domains_supported", "domains_used"];
/// Tables of the firmware that say something about DMA.
const ACPI_TABLES: [&str; 8] = ["DMAR", "IVRS", "MCFG", "SRAT", "APIC", "HPET", "HPET1", "HPET2"];
/// Other files.
const FILES: [&str; 6] = [
    "proc/cmdline",
    "proc/version",
    "proc/sys/kernel/osrelease",
    "proc/iomem",
    "proc/modules",
    "etc/os-release",
];

/// Takes a snapshot of the machine below a root folder.
#[must_use]
pub fn take(root: &Path, scrub: bool) -> Snapshot {
    take_of(Tree::Folder(root.to_owned()), root.as_os_str() == "/", scrub)
}

/// Takes a snapshot of what an archive holds: to scrub one that was taken in full, or to have another tool's in this form.
///
/// # Errors
///
/// If the archive cannot be read at all.
pub fn take_again(archive: &[u8], scrub: bool) -> Result<Snapshot, ArchiveError> {
    let mut contents = tar::read(archive)?;
    read_manifest(&mut contents.archive);
    Ok(take_of(Tree::Archive(contents.archive), false, scrub))
}

/// `live` is this very machine, whose log is not in a file.
fn take_of(tree: Tree, live: bool, scrub: bool) -> Snapshot {
    let mut taker = Taker {
        tree,
        archive: Archive::default(),
        missing: Vec::new(),
        denied: Vec::new(),
        cut: 0,
        files: 0,
        scrub,
        names: scrub::Names::default(),
    };
    taker.everything(live);
    let mut manifest = format!("portcullis snapshot {VERSION}\n");
    for (path, why) in &taker.missing {
        let word = match why {
            Missing::Absent => "absent",
            Missing::NotPermitted => "denied",
        };
        manifest.push_str(&format!("{word} {path}\n"));
    }
    taker
        .archive
        .insert(MANIFEST.to_owned(), Entry::File(manifest.into_bytes()));
    Snapshot {
        bytes: tar::write(&taker.archive),
        files: taker.files,
        denied: taker.denied,
        cut: taker.cut,
    }
}

/// Takes the manifest of an archive to heart, if it has one.
pub(crate) fn read_manifest(archive: &mut Archive) {
    let text = archive.iter().find_map(|(path, entry)| match entry {
        Entry::File(bytes) if path == MANIFEST => Some(String::from_utf8_lossy(bytes).into_owned()),
        _ => None,
    });
    for line in text.unwrap_or_default().lines().skip(1).take(MAX_MISSING) {
        match line.split_once(' ') {
            Some(("absent", path)) => archive.note_missing(path.to_owned(), Missing::Absent),
            Some(("denied", path)) => archive.note_missing(path.to_owned(), Missing::NotPermitted),
            // Later versions may say more.
            _ => {}
        }
    }
}

struct Taker {
    tree: Tree,
    archive: Archive,
    missing: Vec<(String, Missing)>,
    denied: Vec<String>,
    cut: usize,
    files: usize,
    scrub: bool,
    /// What network interfaces are called instead, with scrubbing.
    names: scrub::Names,
}

impl Taker {
    /// Puts an entry into the archive.
    fn keep(&mut self, path: String, entry: Entry) {
        if self.scrub {
            let entry = match entry {
                Entry::Link(target) => Entry::Link(self.names.without_addresses(&target)),
                other => other,
            };
            self.archive.insert(self.names.without_addresses(&path), entry);
        } else {
            self.archive.insert(path, entry);
        }
    }

    fn everything(&mut self, live: bool) {
        for name in self.names(DEVICES) {
            self.function(&name);
        }
        for group in self.names(GROUPS) {
            self.file(&format!("{GROUPS}/{group}/type"));
            self.file(&format!("{GROUPS}/{group}/reserved_regions"));
            for member in self.names(&format!("{GROUPS}/{group}/devices")) {
                self.link(&format!("{GROUPS}/{group}/devices/{member}"));
            }
        }
        for unit in self.names(UNITS) {
            let at = self.link(&format!("{UNITS}/{unit}"));
            for file in UNIT_FILES {
                self.file(&format!("{at}/intel-iommu/{file}"));
            }
        }
        for name in self.names("sys/class/net") {
            let at = self.link(&format!("sys/class/net/{name}"));
            // What bridges, bonds and VLANs are made of.
            let parts = self.tree.names(&at);
            let lower = parts
                .known()
                .into_iter()
                .flatten()
                .filter(|part| part.starts_with(LOWER));
            for part in lower.take(MAX_PARTS) {
                self.link(&format!("{at}/{part}"));
            }
        }
        for name in self.names("sys/block") {
            let at = self.link(&format!("sys/block/{name}"));
            self.disk(&name, &at);
        }
        for table in ACPI_TABLES {
            self.file(&format!("{TABLES}/{table}"));
        }
        // The folder itself tells a machine without the table from a container that hides it.
        if self.tree.has(TABLES) {
            self.keep(TABLES.to_owned(), Entry::Folder);
        }
        self.keep("sys/module".to_owned(), Entry::Folder);
        for (module, parameter) in PARAMETERS {
            self.file(&format!("sys/module/{module}/parameters/{parameter}"));
        }
        for path in FILES {
            self.file(path);
        }
        // Every processor says the same.
        let processor = self.tree.head(CPUINFO, CPUINFO_HEAD).map(|bytes| {
            let text = String::from_utf8_lossy(&bytes);
            let line = text.lines().find(|line| line.starts_with("address sizes"));
            line.map(|line| format!("{line}\n").into_bytes()).unwrap_or_default()
        });
        self.put(CPUINFO, processor);
        for device in self.names(NAMESPACE) {
            let at = self.link(&format!("{NAMESPACE}/{device}"));
            self.file(&format!("{at}/path"));
        }
        self.filtered("proc/self/mounts", |line| {
            line.starts_with("/dev/")
                && matches!(
                    line.split(' ').nth(1),
                    Some("/" | "/boot" | "/boot/efi" | "/usr" | "/var" | "/home")
                )
        });
        // The destination is all that is needed; gateways are nobody's business.
        self.filtered("proc/net/route", |line| {
            line.starts_with("Iface") || line.split_whitespace().nth(1) == Some("00000000")
        });
        self.filtered_by("proc/net/ipv6_route", |line| {
            routes_v6(line).first().map(|name| {
                let nobody = "0".repeat(32);
                format!("{nobody} 00 {nobody} 00 {nobody} 0 0 0 0 {name}\n")
            })
        });
        self.log(live);
    }

    fn function(&mut self, name: &str) {
        let at = self.link(&format!("{DEVICES}/{name}"));
        for file in FUNCTION_FILES {
            self.file(&format!("{at}/{file}"));
        }
        let config = self.tree.head(&format!("{at}/config"), HEADER_LEN + 1);
        self.cut += usize::from(config.known().is_some_and(|bytes| bytes.len() == HEADER_LEN));
        for link in FUNCTION_LINKS {
            self.link(&format!("{at}/{link}"));
        }
    }

    /// What leads from a mounted device to its disk: partitions, and for mapped devices and arrays their name and parts.
    fn disk(&mut self, name: &str, at: &str) {
        let Knowledge::Known(below) = self.tree.names(at) else {
            return;
        };
        for part in below.iter().filter(|part| part.starts_with(name)).take(MAX_PARTS) {
            self.keep(format!("{at}/{part}"), Entry::Folder);
        }
        if below.iter().any(|entry| entry == "dm") {
            self.file(&format!("{at}/dm/name"));
        }
        if below.iter().any(|entry| entry == "slaves") {
            for part in self.names(&format!("{at}/slaves")).into_iter().take(MAX_PARTS) {
                self.link(&format!("{at}/slaves/{part}"));
            }
        }
    }

    fn log(&mut self, live: bool) {
        let found = if live {
            crate::kmsg::read()
        } else {
            self.tree.read(LOGS[0], crate::log::MAX_BYTES)
        };
        self.put(LOGS[0], found);
    }

    fn names(&mut self, path: &str) -> Vec<String> {
        match self.tree.names(path) {
            Knowledge::Known(names) => {
                self.keep(path.to_owned(), Entry::Folder);
                names
            }
            other => {
                self.note(path, &other);
                Vec::new()
            }
        }
    }

    /// Puts a link in; returns where it leads, or the path itself.
    fn link(&mut self, path: &str) -> String {
        match self.tree.link(path) {
            Knowledge::Known(target) => {
                let real = joined(path, &target);
                if real.is_some() {
                    self.keep(path.to_owned(), Entry::Link(target));
                }
                real.unwrap_or_else(|| path.to_owned())
            }
            other => {
                self.note(path, &other);
                path.to_owned()
            }
        }
    }

    fn file(&mut self, path: &str) {
        let found = self.tree.read(path, MAX_TABLE);
        self.put(path, found);
    }

    /// The first two words of the lines to keep.
    fn filtered(&mut self, path: &str, keep: impl Fn(&str) -> bool) {
        self.filtered_by(path, |line| {
            let mut words = line.split_whitespace();
            let (first, second) = (words.next()?, words.next()?);
            keep(line).then(|| format!("{first} {second}\n"))
        });
    }

    /// What is made of the lines of a file.
    fn filtered_by(&mut self, path: &str, line: impl Fn(&str) -> Option<String>) {
        let found = self.tree.read(path, MAX_TABLE).map(|bytes| {
            let text = String::from_utf8_lossy(&bytes);
            text.lines().filter_map(line).collect::<String>().into_bytes()
        });
        self.put(path, found);
    }

    fn put(&mut self, path: &str, found: Knowledge<Vec<u8>>) {
        match found {
            Knowledge::Known(mut bytes) => {
                if self.scrub {
                    scrub::scrub(path, &mut self.names, &mut bytes);
                }
                self.files += 1;
                self.keep(path.to_owned(), Entry::File(bytes));
            }
            other => self.note(path, &other),
        }
    }

    fn note<T>(&mut self, path: &str, found: &Knowledge<T>) {
        let cleaned = self.scrub.then(|| self.names.without_addresses(path));
        let path = cleaned.as_deref().unwrap_or(path);
        match found {
            Knowledge::Known(_) => {}
            Knowledge::Absent => self.missing.push((path.to_owned(), Missing::Absent)),
            Knowledge::Unknown(obstacle) => {
                if matches!(obstacle, Obstacle::NotPermitted(_)) {
                    self.missing.push((path.to_owned(), Missing::NotPermitted));
                    self.denied.push(path.to_owned());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
