use std::io::Write;

use super::*;
use crate::knowledge::Knowledge;
use crate::tree::Tree;

fn sample() -> Archive {
    let mut archive = Archive::default();
    archive.insert("sys/a".to_owned(), Entry::File(b"hello".to_vec()));
    archive.insert(format!("sys/{}", "long/".repeat(40) + "b"), Entry::File(vec![7; 1000]));
    archive.insert("sys/link".to_owned(), Entry::Link("a".to_owned()));
    archive.insert("sys/deep".to_owned(), Entry::Link("long/".repeat(30)));
    archive
}

fn zipped(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

fn raw(path: &str, kind: u8, target: &str, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    plain_header(&mut out, path, kind, data.len(), target);
    out.extend(data);
    pad(&mut out);
    out
}

#[test]
fn written_archives_read_back_plain_and_compressed() {
    let bytes = write(&sample());
    for bytes in [bytes.clone(), zipped(&bytes)] {
        assert!(is_archive(&bytes));
        let contents = read(&bytes).expect("valid");
        assert!(contents.notes.is_empty(), "{:?}", contents.notes);
        assert!(contents.archive.iter().eq(sample().iter()));
    }
}

#[test]
fn entries_that_point_outside_are_left_out_and_counted() {
    let mut bytes = raw("../../etc/passwd", b'0', "", b"x");
    bytes.extend(raw("/etc/shadow", b'0', "", b"x"));
    bytes.extend(raw("sys/up", b'2', "../../../etc/passwd", b""));
    bytes.extend(raw("sys/hard", b'1', "../../x", b""));
    bytes.extend(raw("sys/null", b'3', "", b""));
    bytes.extend(raw("sys/ok", b'0', "", b"fine"));
    let contents = read(&bytes).expect("valid");
    let paths: Vec<_> = contents.archive.iter().map(|(path, _)| path.to_owned()).collect();
    assert_eq!(paths, ["sys", "sys/ok"]);
    assert_eq!(contents.notes.len(), 2, "{:?}", contents.notes);
    assert!(contents.notes[0].starts_with("4 entries"));
}

#[test]
fn an_absolute_link_stays_inside_the_archive() {
    let mut bytes = raw("sys/x", b'2', "/etc/passwd", b"");
    bytes.extend(raw("etc/passwd", b'0', "", b"inside"));
    let tree = Tree::Archive(read(&bytes).expect("valid").archive);
    assert_eq!(tree.text("sys/x"), Knowledge::Known("inside".to_owned()));
}

#[test]
fn a_bomb_is_refused_before_it_fills_memory() {
    let bomb = zipped(&vec![0; MAX_BYTES + 1]);
    assert!(bomb.len() < 2 << 20);
    assert_eq!(read(&bomb).map(|_| ()), Err(ArchiveError::TooLarge));
}

#[test]
fn sizes_that_lie_end_the_archive_with_a_note() {
    for size in ["77777777777", "0000000100z", "\u{0}"] {
        let mut bytes = raw("sys/ok", b'0', "", b"fine");
        let mut liar = raw("sys/liar", b'0', "", b"");
        liar[124..124 + size.len()].copy_from_slice(size.as_bytes());
        let sum = format!("{:06o}\0 ", checksum(&liar[..BLOCK]));
        liar[148..156].copy_from_slice(sum.as_bytes());
        bytes.extend(liar);
        let contents = read(&bytes).expect("the first entry is fine");
        assert!(contents.archive.len() >= 2, "{size}");
    }
}

#[test]
fn truncated_and_damaged_archives_keep_what_stands_before() {
    let bytes = write(&sample());
    for end in (0..bytes.len()).step_by(97) {
        let _ = read(&bytes[..end]);
    }
    let compressed = zipped(&bytes);
    for end in 0..compressed.len() {
        let _ = read(&compressed[..end]);
    }
    let mut damaged = raw("sys/ok", b'0', "", b"fine");
    damaged.extend([0x55; BLOCK]);
    let contents = read(&damaged).expect("starts well");
    assert_eq!((contents.archive.len(), contents.notes.len()), (2, 1));
    assert_eq!(read(&[0x55; BLOCK]).map(|_| ()), Err(ArchiveError::NoHeader(0)));
}

#[test]
fn pax_paths_count_and_broken_pax_records_end_quietly() {
    let record = b"18 path=sys/longer\n30 linkpath=x";
    let mut bytes = raw("pax", b'x', "", record);
    bytes.extend(raw("short", b'0', "", b"v"));
    let contents = read(&bytes).expect("valid");
    assert!(
        contents.archive.iter().any(|(path, _)| path == "sys/longer"),
        "{contents:?}"
    );
}
