//! Files, folders and links of a machine: live below a root folder, or in an archive.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::knowledge::{Knowledge, Obstacle};

/// A file that is read in parts: parts of some files of sysfs cost time to make.
#[derive(Debug)]
pub(crate) enum Parts<'a> {
    /// A file of this system.
    File(std::fs::File),
    /// What an archive holds.
    Bytes(&'a [u8]),
}

impl Parts<'_> {
    /// The bytes from `offset` on, `length` of them at most; none where reading fails or the file ends.
    pub(crate) fn read(&self, offset: u16, length: usize) -> Vec<u8> {
        match self {
            Self::File(file) => {
                let mut bytes = vec![0; length];
                let mut done = 0;
                // A read gives at least a byte or ends the loop.
                while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
                    match file.read_at(rest, u64::from(offset) + done as u64) {
                        Ok(0) => break,
                        Ok(read) => done += read,
                        Err(why) if why.kind() == ErrorKind::Interrupted => {}
                        Err(_) => break,
                    }
                }
                bytes.truncate(done);
                bytes
            }
            Self::Bytes(bytes) => {
                let rest = bytes.get(usize::from(offset)..).unwrap_or_default();
                rest.get(..length).unwrap_or(rest).to_vec()
            }
        }
    }
}

/// Names that one folder may have. A machine has at most 65,536 functions a segment.
const MAX_NAMES: usize = 1 << 17;
/// Links that one path may lead through.
const MAX_LINKS: usize = 32;

/// Where the files of a machine come from. Paths are relative to the root, with `/` between their parts.
#[derive(Clone, Debug)]
pub(crate) enum Tree {
    /// A folder of this system; `/` for the machine itself.
    Folder(PathBuf),
    /// What an archive holds.
    Archive(Archive),
}

/// A file, folder or link in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    File(Vec<u8>),
    Folder,
    /// Where it leads, as text; never followed outside the archive.
    Link(String),
}

/// The contents of an archive, by normalised path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Archive {
    entries: BTreeMap<String, Entry>,
    /// What its maker looked for and did not find, and what it was not permitted to read.
    missing: BTreeMap<String, Missing>,
}

/// Why a snapshot lacks something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The machine has it not.
    Absent,
    /// Whoever took the snapshot may not read it.
    NotPermitted,
}

impl Archive {
    /// Adds an entry under a path that [`normalise`] returned. The first of a name counts.
    pub(crate) fn insert(&mut self, path: String, entry: Entry) {
        // The folders above exist, named or not.
        let mut above = path.as_str();
        while let Some((parent, _)) = above.rsplit_once('/') {
            if self.entries.contains_key(parent) {
                break;
            }
            self.entries.insert(parent.to_owned(), Entry::Folder);
            above = parent;
        }
        self.entries.entry(path).or_insert(entry);
    }

    /// Notes that the machine lacks `path`, or that it could not be read.
    pub(crate) fn note_missing(&mut self, path: String, why: Missing) {
        self.missing.insert(path, why);
    }

    /// Why there is nothing at a path.
    fn why_not<T>(&self, path: &str) -> Knowledge<T> {
        // The note names the real folder, whatever links the question goes through.
        let real = path
            .rsplit_once('/')
            .and_then(|(parent, name)| Some(format!("{}/{name}", self.resolve(parent)?)));
        let noted = self.missing.get(path).or_else(|| self.missing.get(real.as_deref()?));
        match noted {
            Some(Missing::Absent) => Knowledge::Absent,
            Some(Missing::NotPermitted) => Knowledge::Unknown(Obstacle::NotPermitted(format!("/{path}"))),
            None => Knowledge::Unknown(Obstacle::NotIncluded(path.to_owned())),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_str(), entry))
    }

    /// How many entries there are.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry at a path, links in it followed.
    fn get(&self, path: &str) -> Option<&Entry> {
        let mut path = normalise(path)?;
        for _ in 0..MAX_LINKS {
            match self.entries.get(&path) {
                Some(Entry::Link(target)) => path = joined(&path, target)?,
                Some(entry) => return Some(entry),
                None => path = self.through_link(&path)?,
            }
        }
        None
    }

    /// The same path with the first link on the way replaced by where it leads.
    fn through_link(&self, path: &str) -> Option<String> {
        let mut end = 0;
        while let Some(next) = path.get(end..).and_then(|rest| rest.find('/')) {
            end += next;
            let above = path.get(..end)?;
            if let Some(Entry::Link(target)) = self.entries.get(above) {
                let rest = path.get(end + 1..)?;
                return normalise(&format!("{}/{rest}", joined(above, target)?));
            }
            end += 1;
        }
        None
    }

    fn names(&self, path: &str) -> Option<Vec<String>> {
        let mut path = normalise(path)?;
        for _ in 0..MAX_LINKS {
            match self.entries.get(&path) {
                Some(Entry::Link(target)) => path = joined(&path, target)?,
                Some(Entry::File(_)) => return None,
                Some(Entry::Folder) => {
                    let prefix = format!("{path}/");
                    let names = self
                        .entries
                        .range(prefix.clone()..)
                        .take_while(|(name, _)| name.starts_with(&prefix))
                        .filter_map(|(name, _)| name.strip_prefix(&prefix))
                        .filter(|name| !name.contains('/'))
                        .take(MAX_NAMES)
                        .map(str::to_owned)
                        .collect();
                    return Some(names);
                }
                None => path = self.through_link(&path)?,
            }
        }
        None
    }
}

/// A path without `.`, `..` and doubled slashes; `None` if it leads outside.
pub(crate) fn normalise(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            _ => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// Where a link at `path` leads.
pub(crate) fn joined(path: &str, target: &str) -> Option<String> {
    if target.starts_with('/') {
        return normalise(target);
    }
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    normalise(&format!("{parent}/{target}"))
}

impl Tree {
    /// The first bytes of a file. A file with more than `limit` bytes is unknown, not cut.
    pub(crate) fn read(&self, path: &str, limit: usize) -> Knowledge<Vec<u8>> {
        match self {
            Self::Folder(root) => read_file(&root.join(path), path, limit),
            Self::Archive(archive) => match archive.get(path) {
                Some(Entry::File(bytes)) if bytes.len() > limit => {
                    Knowledge::Unknown(Obstacle::TooLarge(path.to_owned(), limit))
                }
                Some(Entry::File(bytes)) => Knowledge::Known(bytes.clone()),
                Some(Entry::Folder | Entry::Link(_)) => Knowledge::Unknown(Obstacle::Malformed(path.to_owned())),
                None => archive.why_not(path),
            },
        }
    }

    /// The first bytes of a file, at most `limit`; what follows is left out.
    pub(crate) fn head(&self, path: &str, limit: usize) -> Knowledge<Vec<u8>> {
        match self {
            Self::Folder(root) => read_head(&root.join(path), path, limit),
            Self::Archive(_) => self.read(path, usize::MAX).map(|mut bytes| {
                bytes.truncate(limit);
                bytes
            }),
        }
    }

    /// A short text file without the blanks around it.
    pub(crate) fn text(&self, path: &str) -> Knowledge<String> {
        self.read(path, 1 << 16)
            .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The names in a folder, sorted.
    /// A file, to be read in parts; `None` if it is not there or may not be read.
    pub(crate) fn parts(&self, path: &str) -> Option<Parts<'_>> {
        match self {
            Self::Folder(root) => std::fs::File::open(root.join(path)).ok().map(Parts::File),
            Self::Archive(archive) => match archive.get(path)? {
                Entry::File(bytes) => Some(Parts::Bytes(bytes)),
                Entry::Folder | Entry::Link(_) => None,
            },
        }
    }

    pub(crate) fn names(&self, path: &str) -> Knowledge<Vec<String>> {
        match self {
            Self::Folder(root) => match std::fs::read_dir(root.join(path)) {
                Ok(entries) => {
                    let mut names: Vec<String> = entries
                        .take(MAX_NAMES)
                        .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
                        .collect();
                    names.sort_unstable();
                    Knowledge::Known(names)
                }
                Err(why) => refused(path, &why),
            },
            Self::Archive(archive) => archive
                .names(path)
                .map_or_else(|| archive.why_not(path), Knowledge::Known),
        }
    }

    /// Where a link leads, as text.
    pub(crate) fn link(&self, path: &str) -> Knowledge<String> {
        match self {
            Self::Folder(root) => match std::fs::read_link(root.join(path)) {
                Ok(target) => Knowledge::Known(target.to_string_lossy().into_owned()),
                Err(why) => refused(path, &why),
            },
            Self::Archive(archive) => {
                let normal = normalise(path);
                let entry = normal.as_ref().and_then(|path| {
                    // Links above the last part are followed, the last one is the answer.
                    let (parent, name) = path.rsplit_once('/')?;
                    let real = archive.resolve(parent)?;
                    archive.entries.get(&format!("{real}/{name}"))
                });
                match entry {
                    Some(Entry::Link(target)) => Knowledge::Known(target.clone()),
                    Some(_) => Knowledge::Unknown(Obstacle::Malformed(path.to_owned())),
                    None => {
                        // The folder is complete where it is there at all.
                        let parent = normal.as_deref().and_then(|path| path.rsplit_once('/')).map(|(p, _)| p);
                        if parent.is_some_and(|parent| archive.resolve(parent).is_some()) {
                            Knowledge::Absent
                        } else {
                            archive.why_not(path)
                        }
                    }
                }
            }
        }
    }

    /// Whether something is at a path.
    pub(crate) fn has(&self, path: &str) -> bool {
        match self {
            Self::Folder(root) => root.join(path).exists(),
            Self::Archive(archive) => archive.get(path).is_some(),
        }
    }
}

impl Archive {
    /// The path of a folder with all links in it followed.
    fn resolve(&self, path: &str) -> Option<String> {
        let mut path = normalise(path)?;
        for _ in 0..MAX_LINKS {
            match self.entries.get(&path) {
                Some(Entry::Link(target)) => path = joined(&path, target)?,
                Some(_) => return Some(path),
                None => path = self.through_link(&path)?,
            }
        }
        None
    }
}

fn refused<T>(path: &str, why: &std::io::Error) -> Knowledge<T> {
    match why.kind() {
        ErrorKind::NotFound => Knowledge::Absent,
        ErrorKind::PermissionDenied => Knowledge::Unknown(Obstacle::NotPermitted(format!("/{path}"))),
        _ => Knowledge::Unknown(Obstacle::Failed(format!("/{path}"), why.to_string())),
    }
}

fn read_file(file: &Path, path: &str, limit: usize) -> Knowledge<Vec<u8>> {
    // Sizes that sysfs states are not to be trusted, so one byte more is asked for.
    match read_head(file, path, limit.saturating_add(1)) {
        Knowledge::Known(bytes) if bytes.len() > limit => {
            Knowledge::Unknown(Obstacle::TooLarge(format!("/{path}"), limit))
        }
        other => other,
    }
}

fn read_head(file: &Path, path: &str, limit: usize) -> Knowledge<Vec<u8>> {
    let opened = match std::fs::File::open(file) {
        Ok(opened) => opened,
        Err(why) => return refused(path, &why),
    };
    let mut bytes = Vec::new();
    match opened.take(limit as u64).read_to_end(&mut bytes) {
        Ok(_) => Knowledge::Known(bytes),
        Err(why) => refused(path, &why),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, Entry)]) -> Tree {
        let mut archive = Archive::default();
        for (path, entry) in entries {
            archive.insert((*path).to_owned(), entry.clone());
        }
        Tree::Archive(archive)
    }

    #[test]
    fn paths_cannot_leave_the_root() {
        assert_eq!(normalise("./sys//bus/../class/"), Some("sys/class".to_owned()));
        assert_eq!(normalise("../etc/passwd"), None);
        assert_eq!(normalise("sys/../../etc"), None);
        assert_eq!(joined("sys/bus/x", "../../kernel/1"), Some("kernel/1".to_owned()));
        assert_eq!(joined("sys/x", "../../../etc"), None);
        assert_eq!(joined("sys/x", "/etc/y"), Some("etc/y".to_owned()));
    }

    #[test]
    fn links_are_followed_inside_and_circles_end() {
        let tree = archive(&[
            ("sys/devices/a/vendor", Entry::File(b"0x8086\n".to_vec())),
            ("sys/devices/a/group", Entry::Link("../../kernel/7".to_owned())),
            ("sys/bus/a", Entry::Link("../devices/a".to_owned())),
            ("sys/loop", Entry::Link("loop".to_owned())),
            ("sys/out", Entry::Link("../../../etc/passwd".to_owned())),
        ]);
        assert_eq!(tree.text("sys/bus/a/vendor"), Knowledge::Known("0x8086".to_owned()));
        assert_eq!(
            tree.link("sys/bus/a/group"),
            Knowledge::Known("../../kernel/7".to_owned())
        );
        assert_eq!(tree.link("sys/bus/a/driver"), Knowledge::Absent);
        assert!(tree.link("sys/none/driver").is_unknown());
        assert!(tree.read("sys/loop", 10).is_unknown());
        assert!(tree.read("sys/out", 10).is_unknown());
        assert_eq!(
            tree.names("sys/bus/a"),
            Knowledge::Known(vec!["group".to_owned(), "vendor".to_owned()])
        );
        assert_eq!(
            tree.read("sys/bus/a/vendor", 3),
            Knowledge::Unknown(Obstacle::TooLarge("sys/bus/a/vendor".to_owned(), 3))
        );
    }
}
