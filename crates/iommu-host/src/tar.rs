//! A small reader and writer of tar archives (POSIX.1-1988 `ustar`, GNU long names, pax paths).
//!
//! Nothing is ever unpacked to disk: an archive becomes a [`Tree`](crate::tree::Tree) in memory. Numbers of
//! entries and bytes are bounded, and compressed archives are bounded after expansion.

use std::io::Read;

use crate::tree::{Archive, Entry, joined, normalise};

/// Bytes of an archive after decompression. A large server's configuration space, tables and log need 40 MiB.
pub(crate) const MAX_BYTES: usize = 128 << 20;
/// Entries of an archive.
const MAX_ENTRIES: usize = 1 << 19;
/// Bytes of a long name.
const MAX_NAME: usize = 4096;
const BLOCK: usize = 512;

/// Why an archive cannot be read at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArchiveError {
    /// It expands to more than the limit.
    #[error("the archive holds more than {MAX_BYTES} bytes, which no machine description needs")]
    TooLarge,
    /// It has too many entries.
    #[error("the archive has more than {MAX_ENTRIES} entries, which no machine description needs")]
    TooMany,
    /// The compressed data is damaged before anything could be read.
    #[error("the compressed data is damaged: {0}")]
    Compression(String),
    /// There is no tar header where one should be.
    #[error("there is no tar header at byte {0}")]
    NoHeader(usize),
}

/// What was read, and what was left out.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) archive: Archive,
    /// In words.
    pub(crate) notes: Vec<String>,
}

/// Whether `bytes` start like a tar archive, plain or compressed with gzip.
pub(crate) fn is_archive(bytes: &[u8]) -> bool {
    is_gzip(bytes) || bytes.get(257..262) == Some(b"ustar")
}

fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x1f, 0x8b])
}

/// Reads an archive.
pub(crate) fn read(bytes: &[u8]) -> Result<Contents, ArchiveError> {
    if !is_gzip(bytes) {
        if bytes.len() > MAX_BYTES {
            return Err(ArchiveError::TooLarge);
        }
        return unpack(bytes);
    }
    let (expanded, damaged) = gunzip(bytes, MAX_BYTES)?;
    let mut contents = unpack(&expanded)?;
    if let Some(why) = damaged {
        contents
            .notes
            .push(format!("the archive is damaged, so its end is missing: {why}"));
    }
    Ok(contents)
}

/// Expands gzip data to at most `limit` bytes; with what went wrong after the bytes returned.
pub(crate) fn gunzip(bytes: &[u8], limit: usize) -> Result<(Vec<u8>, Option<String>), ArchiveError> {
    let mut expanded = Vec::new();
    let result = flate2::read::MultiGzDecoder::new(bytes)
        .take(limit as u64 + 1)
        .read_to_end(&mut expanded);
    if expanded.len() > limit {
        return Err(ArchiveError::TooLarge);
    }
    match result {
        Ok(_) => Ok((expanded, None)),
        Err(why) if expanded.is_empty() => Err(ArchiveError::Compression(why.to_string())),
        Err(why) => Ok((expanded, Some(why.to_string()))),
    }
}

fn unpack(bytes: &[u8]) -> Result<Contents, ArchiveError> {
    let mut contents = Contents::default();
    let (mut outside, mut special, mut unreadable) = (0usize, 0usize, 0usize);
    let (mut long_name, mut long_link) = (None, None);
    let mut at = 0;
    let mut count = 0;
    while let Some(header) = bytes.get(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        if !checksum_ok(header) {
            if at == 0 {
                return Err(ArchiveError::NoHeader(at));
            }
            contents
                .notes
                .push(format!("the archive is damaged at byte {at}: what follows is missing"));
            break;
        }
        count += 1;
        if count > MAX_ENTRIES {
            return Err(ArchiveError::TooMany);
        }
        let start = at + BLOCK;
        let kind = header.get(156).copied().unwrap_or(0);
        // Links and folders have no data, whatever their size field says.
        let size = match kind {
            b'1'..=b'6' => Some(0),
            _ => number(header.get(124..136).unwrap_or_default()),
        };
        let Some(data) = size.and_then(|size| bytes.get(start..start.checked_add(size)?)) else {
            contents
                .notes
                .push(format!("the archive ends inside the entry at byte {at}"));
            break;
        };
        at = start + data.len().next_multiple_of(BLOCK);
        match kind {
            b'L' => {
                long_name = Some(text(data));
                continue;
            }
            b'K' => {
                long_link = Some(text(data));
                continue;
            }
            b'x' => {
                pax(data, &mut long_name, &mut long_link);
                continue;
            }
            b'g' => continue,
            _ => {}
        }
        let name = long_name.take().unwrap_or_else(|| short_name(header));
        let target = long_link
            .take()
            .unwrap_or_else(|| text(header.get(157..257).unwrap_or_default()));
        if name.contains('\u{fffd}') {
            unreadable += 1;
        }
        let Some(path) = normalise(&name).filter(|_| !name.starts_with('/')) else {
            outside += 1;
            continue;
        };
        if path.is_empty() {
            continue;
        }
        let entry = match kind {
            b'0' | 0 | b'7' => Entry::File(data.to_vec()),
            b'5' => Entry::Folder,
            b'2' => {
                if joined(&path, &target).is_none() {
                    outside += 1;
                    continue;
                }
                Entry::Link(target)
            }
            // A hard link names another entry from the root.
            b'1' => match normalise(&target) {
                Some(target) => Entry::Link(format!("/{target}")),
                None => {
                    outside += 1;
                    continue;
                }
            },
            _ => {
                special += 1;
                continue;
            }
        };
        contents.archive.insert(path, entry);
    }
    let mut note = |count: usize, what: &str| {
        if count > 0 {
            contents.notes.push(format!("{count} {what}"));
        }
    };
    note(outside, "entries point outside the archive and were left out");
    note(special, "entries are devices or other special files and were left out");
    note(unreadable, "entries have names that are not UTF-8");
    Ok(contents)
}

/// A field that ends at its first NUL.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    let field = field.get(..end.min(MAX_NAME)).unwrap_or_default();
    String::from_utf8_lossy(field).into_owned()
}

fn short_name(header: &[u8]) -> String {
    let name = text(header.get(..100).unwrap_or_default());
    let prefix = text(header.get(345..500).unwrap_or_default());
    if header.get(257..263) == Some(b"ustar\0") && !prefix.is_empty() {
        format!("{prefix}/{name}")
    } else {
        name
    }
}

/// Octal digits, or GNU's binary form.
fn number(field: &[u8]) -> Option<usize> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let mut value = usize::from(first & 0x7f);
        for byte in rest {
            value = value.checked_mul(256)?.checked_add(usize::from(*byte))?;
        }
        return Some(value);
    }
    let digits = field
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ')
        .take_while(|byte| !matches!(byte, b' ' | 0));
    let mut value = 0usize;
    for digit in digits {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value = value.checked_mul(8)?.checked_add(usize::from(digit))?;
    }
    Some(value)
}

fn checksum(header: &[u8]) -> usize {
    header
        .iter()
        .enumerate()
        .map(|(at, byte)| usize::from(if (148..156).contains(&at) { b' ' } else { *byte }))
        .sum()
}

fn checksum_ok(header: &[u8]) -> bool {
    number(header.get(148..156).unwrap_or_default()) == Some(checksum(header))
}

/// `LEN key=value` records of a pax header: `path` and `linkpath` count.
fn pax(mut data: &[u8], name: &mut Option<String>, link: &mut Option<String>) {
    while let Some(blank) = data.iter().position(|byte| *byte == b' ') {
        let length = data
            .get(..blank)
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| digits.parse::<usize>().ok());
        let Some(record) = length
            .filter(|length| *length > blank + 1)
            .and_then(|length| data.get(blank + 1..length))
        else {
            return;
        };
        let record = String::from_utf8_lossy(record);
        if let Some((key, value)) = record.trim_end_matches('\n').split_once('=') {
            let value = value.chars().take(MAX_NAME).collect();
            match key {
                "path" => *name = Some(value),
                "linkpath" => *link = Some(value),
                _ => {}
            }
        }
        data = data.get(length.unwrap_or(0)..).unwrap_or_default();
    }
}

/// Writes an archive: owner root, time zero, so that it says nothing about who made it.
pub(crate) fn write(archive: &Archive) -> Vec<u8> {
    let mut out = Vec::new();
    for (path, entry) in archive.iter() {
        match entry {
            Entry::File(bytes) => {
                header(&mut out, path, b'0', bytes.len(), "");
                out.extend(bytes);
                pad(&mut out);
            }
            Entry::Folder => header(&mut out, &format!("{path}/"), b'5', 0, ""),
            Entry::Link(target) => header(&mut out, path, b'2', 0, target),
        }
    }
    out.extend([0; 2 * BLOCK]);
    out
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(BLOCK), 0);
}

fn header(out: &mut Vec<u8>, path: &str, kind: u8, size: usize, target: &str) {
    for (long, kind, limit) in [(path, b'L', 100), (target, b'K', 100)] {
        if long.len() > limit {
            plain_header(out, "././@LongLink", kind, long.len() + 1, "");
            out.extend(long.as_bytes());
            out.push(0);
            pad(out);
        }
    }
    plain_header(out, path, kind, size, target);
}

fn plain_header(out: &mut Vec<u8>, path: &str, kind: u8, size: usize, target: &str) {
    let mut block = [0u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        for (place, byte) in block.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    };
    put(0, path.as_bytes().get(..100).unwrap_or(path.as_bytes()));
    let mode: &[u8] = if kind == b'5' { b"0000755" } else { b"0000644" };
    put(100, mode);
    put(108, b"0000000");
    put(116, b"0000000");
    put(124, format!("{size:011o}").as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, target.as_bytes().get(..100).unwrap_or(target.as_bytes()));
    put(257, b"ustar\x0000");
    put(265, b"root");
    put(297, b"root");
    let sum = format!("{:06o}\0 ", checksum(&block));
    for (place, byte) in block.iter_mut().skip(148).zip(sum.as_bytes()) {
        *place = *byte;
    }
    out.extend(block);
}

#[cfg(test)]
mod tests;
