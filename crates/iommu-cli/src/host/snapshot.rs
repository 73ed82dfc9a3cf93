//! `iommu snapshot`: one file that holds what these commands read of a machine.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use iommu_host::snapshot::{self, Snapshot};
use serde_json::json;

use super::{Answer, count};
use crate::exit::{self, Failure, Verdict};

/// The largest snapshot that is read.
const LARGEST_SNAPSHOT: u64 = 128 << 20;
/// Paths that are missing and are shown.
const SHOWN_PATHS: usize = 3;
/// Grows when a key changes its meaning.
const SCHEMA: u32 = 1;

/// What `iommu snapshot` is told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Where to write it; the other commands read it with --root
    file: PathBuf,
    /// Take out serial numbers, network addresses, host and user names, and identifiers of file systems
    #[arg(long)]
    scrub: bool,
    /// Another root folder than /, or a snapshot that was taken before, to scrub it now
    #[arg(long, value_name = "DIR|FILE")]
    root: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

fn taken(root: &Path, scrub: bool) -> Result<Snapshot, Failure> {
    if root.is_dir() {
        return Ok(snapshot::take(root, scrub));
    }
    let wrong = |why: &dyn std::fmt::Display| Failure::Input(format!("{}: {why}", root.display()));
    let bytes = exit::read_up_to(root, LARGEST_SNAPSHOT)?;
    let taken = snapshot::take_again(&bytes, scrub).map_err(|why| wrong(&why))?;
    if taken.files == 0 {
        return Err(wrong(
            &"neither a root folder nor a snapshot: nothing in it is of a machine",
        ));
    }
    Ok(taken)
}

pub(crate) fn run(options: &Options) -> Result<Answer, Failure> {
    let root = options.root.as_deref().unwrap_or(Path::new("/"));
    let taken = taken(root, options.scrub)?;
    let failed = |why: std::io::Error| Failure::Measure(format!("{}: {why}", options.file.display()));
    // It tells a lot about the machine: nobody else gets to read it unasked.
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&options.file)
        .map_err(failed)?;
    file.write_all(&taken.bytes).map_err(failed)?;
    let mut text = format!(
        "{}: {}, {} bytes{}\n",
        options.file.display(),
        count(taken.files, "file"),
        taken.bytes.len(),
        if options.scrub {
            "; look through it before you publish it"
        } else {
            "; it holds serial numbers and names (--scrub takes them out)"
        }
    );
    if !taken.denied.is_empty() {
        let shown = taken
            .denied
            .iter()
            .take(SHOWN_PATHS)
            .cloned()
            .collect::<Vec<_>>()
            .join(", ");
        text.push_str(&format!(
            "{} may only be read by root: missing {} {shown}{}\n",
            count(taken.denied.len(), "path"),
            if taken.denied.len() == 1 { "is" } else { "are" },
            if taken.denied.len() > SHOWN_PATHS { ", …" } else { "" }
        ));
    }
    if taken.cut > 0 {
        text.push_str(&format!(
            "configuration space of {} is cut to its first 64 bytes, without capabilities: take the snapshot as root\n",
            count(taken.cut, "function")
        ));
    }
    Ok(Answer {
        text,
        json: json!({
            "schema": SCHEMA,
            "file": options.file.display().to_string(),
            "files": taken.files,
            "bytes": taken.bytes.len(),
            "scrubbed": options.scrub,
            "denied": taken.denied,
            "cut": taken.cut,
        }),
        verdict: Ok(Verdict::Yes),
    })
}
