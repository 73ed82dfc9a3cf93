//! The archive format of an initial file system: cpio with the `newc` header.

/// The bits of a mode that tell what an entry is.
mod mode {
    pub(super) const FOLDER: u32 = 0o040_755;
    pub(super) const FILE: u32 = 0o100_644;
    pub(super) const PROGRAM: u32 = 0o100_755;
    pub(super) const LINK: u32 = 0o120_777;
    pub(super) const CHARACTER_DEVICE: u32 = 0o020_600;
}

/// Headers, names and contents start at multiples of this many bytes.
const ALIGNMENT: usize = 4;

/// An archive that is being written. Everything in it belongs to root.
#[derive(Clone, Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a folder. Folders come before what is in them.
    pub fn folder(&mut self, name: &str) {
        self.entry(name, mode::FOLDER, [0, 0], &[]);
    }

    /// Adds a file, which may be run if it is a program.
    pub fn file(&mut self, name: &str, program: bool, content: &[u8]) {
        let mode = if program { mode::PROGRAM } else { mode::FILE };
        self.entry(name, mode, [0, 0], content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, name: &str, target: &str) {
        self.entry(name, mode::LINK, [0, 0], target.as_bytes());
    }

    /// Adds a character device.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.entry(name, mode::CHARACTER_DEVICE, [major, minor], &[]);
    }

    /// The bytes of the archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, [0, 0], &[]);
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, [major, minor]: [u32; 2], content: &[u8]) {
        self.entries += 1;
        // The format has no room for more; an initial file system is far smaller.
        let len = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let fields = [
            self.entries,
            mode,
            // Owner, group, links, time of change.
            0,
            0,
            1,
            0,
            len(content.len()),
            // The device that the entry is on, and the one it stands for.
            0,
            0,
            major,
            minor,
            len(name.len() + 1),
            // No checksum.
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn an_entry_is_header_name_and_content_each_padded_to_four_bytes() {
        let mut archive = Archive::default();
        archive.file("init", true, b"12345");
        let bytes = archive.finish();
        let text = String::from_utf8(bytes.clone()).unwrap();
        assert!(text.starts_with("07070100000001000081ed000000000000000000000001"));
        assert_eq!(&text[6 + 6 * 8..6 + 7 * 8], "00000005");
        assert_eq!(&text[6 + 11 * 8..6 + 12 * 8], "00000005");
        // 110 bytes of header and 5 of name make 115.
        assert_eq!(&bytes[110..116], b"init\0\0");
        assert_eq!(&bytes[116..124], b"12345\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(text.contains("TRAILER!!!"));
        assert_eq!(bytes.len() % 4, 0);
    }
}
