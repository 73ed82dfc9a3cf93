//! `iommu trace`: a recorded unit, shown and replayed.

use std::path::{Path, PathBuf};

use clap::Args;
use iommu_serve::trace::{Story, TraceError, replay, show};
use serde_json::json;

use crate::exit::{self, Failure, Verdict};
use crate::help;

/// Grows when a key of the JSON changes its meaning.
const SCHEMA: u32 = 1;

/// What `iommu trace` is told.
#[derive(Debug, Args)]
#[command(after_help = help::TRACE)]
pub(crate) struct Options {
    /// The trace, as `iommu serve --trace` writes it
    file: PathBuf,
    /// Do everything again with a unit of its own, and say where it differs
    #[arg(long)]
    replay: bool,
    /// With --replay: report the rules of the programming protocol that are broken on the way
    #[arg(long, requires = "replay")]
    sanitize: bool,
    /// Print JSON
    #[arg(long, requires = "replay")]
    json: bool,
}

/// The trace in a file.
fn story(file: &Path) -> Result<Story, Failure> {
    let name = file.display();
    let none = |why: &dyn std::fmt::Display| {
        Failure::Input(format!(
            "{name}: this is not a trace: {why}; expected a file that `iommu serve --trace FILE` has written"
        ))
    };
    let bytes = std::fs::read(file).map_err(|why| exit::unread(&name, &why))?;
    let text = String::from_utf8(bytes).map_err(|why| {
        let at = why.utf8_error().valid_up_to();
        none(&format!("it is no text, see the byte at offset {at}"))
    })?;
    let content = |line: &str| !line.trim().is_empty() && !line.trim().starts_with('#');
    let first = text.lines().position(content).map_or(1, |index| index + 1);
    Story::parse(&text).map_err(|why| match why {
        TraceError::Line { line, .. } if line <= first => none(&why),
        // It begins as one.
        why => Failure::Input(format!("{name}: {why}")),
    })
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<Verdict, Failure> {
    let name = options.file.display();
    let wrong = |why: &dyn std::fmt::Display| Failure::Input(format!("{name}: {why}"));
    let story = story(&options.file)?;
    if !options.replay {
        exit::print(&show(&story))?;
        return Ok(Verdict::Yes);
    }
    let outcome = replay(&story, options.sanitize).map_err(|why| wrong(&why))?;
    let clean = outcome.differences.is_empty() && outcome.broken.is_empty();
    if options.json {
        let differences: Vec<_> = outcome
            .differences
            .iter()
            .map(|found| json!({ "line": found.line, "what": found.what }))
            .collect();
        let broken: Vec<_> = outcome
            .broken
            .iter()
            .map(|(line, rule, text)| json!({ "line": line, "rule": rule, "text": text }))
            .collect();
        let value = json!({
            "schema": SCHEMA,
            "operations": outcome.operations,
            "differences": differences,
            "broken": broken,
        });
        exit::print(&format!("{value:#}\n"))?;
    } else {
        let mut said = String::new();
        for found in &outcome.differences {
            said.push_str(&format!("line {}: {}\n", found.line, found.what));
        }
        for (line, _, text) in &outcome.broken {
            said.push_str(&format!("line {line}: rule broken: {text}\n"));
        }
        said.push_str(&format!(
            "{} operations replayed, {} differences, {} rules broken\n",
            outcome.operations,
            outcome.differences.len(),
            outcome.broken.len()
        ));
        exit::print(&said)?;
    }
    Ok(if clean { Verdict::Yes } else { Verdict::Findings })
}
