//! `iommu snapshot`: one file that holds what these commands read of a machine.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use iommu_host::snapshot;
use serde_json::json;

use super::Answer;
use crate::exit::{Failure, Verdict};

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
    /// Another root folder than /
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

pub(crate) fn run(options: &Options) -> Result<Answer, Failure> {
    let root = options.root.as_deref().unwrap_or(Path::new("/"));
    if !root.is_dir() {
        return Err(Failure::Input(format!("{}: not a folder", root.display())));
    }
    let taken = snapshot::take(root, options.scrub);
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
        "{}: {} files, {} bytes{}\n",
        options.file.display(),
        taken.files,
        taken.bytes.len(),
        if options.scrub {
            "; look through it before you publish it"
        } else {
            "; it holds serial numbers and names (--scrub takes them out)"
        }
    );
    if !taken.denied.is_empty() {
        text.push_str(&format!(
            "{} paths may only be read by root and are missing: {} …\n",
            taken.denied.len(),
            taken.denied.iter().take(3).cloned().collect::<Vec<_>>().join(", ")
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
        }),
        verdict: Ok(Verdict::Yes),
    })
}
