//! How commands end.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::style;

/// The answer of a command that could do its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Everything is as it should be.
    Yes,
    /// Something was found, or is not as predicted or expected.
    Findings,
    /// There is nothing here that this version can work with, and it was said why.
    Unsupported,
}

impl From<Verdict> for ExitCode {
    fn from(verdict: Verdict) -> Self {
        Self::from(match verdict {
            Verdict::Yes => 0,
            Verdict::Findings => 1,
            Verdict::Unsupported => 4,
        })
    }
}

/// Why a command could not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A mistake in what was given: a command line, a machine file, an expectation.
    Input(String),
    /// Something could not be read, written or measured.
    Measure(String),
    /// There is nothing here that this version can work with.
    Nothing(String),
}

impl Failure {
    /// The exit code.
    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Input(_) => 2,
            Self::Measure(_) => 3,
            Self::Nothing(_) => 4,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(text) | Self::Measure(text) | Self::Nothing(text) => f.write_str(text),
        }
    }
}

/// Why what was named on the command line could not be read: a mistake in the name, or the lack of something else.
pub(crate) fn unread(name: &dyn fmt::Display, why: &std::io::Error) -> Failure {
    match why.kind() {
        ErrorKind::NotFound => Failure::Input(format!("{name}: there is no such file; check the name")),
        ErrorKind::IsADirectory => Failure::Input(format!("{name}: this is a folder; name a file")),
        ErrorKind::NotADirectory => Failure::Input(format!("{name}: a part of this path is no folder; check the name")),
        _ => Failure::Measure(format!("{name}: {why}")),
    }
}

/// The largest file that is read: tables and machine files are a few kilobytes.
const LARGEST_FILE: u64 = 16 << 20;

/// Reads a whole file: a table, a machine file, a list of names.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    read_up_to(file, LARGEST_FILE)
}

/// Reads a whole file of `limit` bytes at most.
pub(crate) fn read_up_to(file: &Path, limit: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    // The length that a device or a pipe states means nothing: the reading itself is bounded.
    std::fs::File::open(file)
        .and_then(|opened| opened.take(limit + 1).read_to_end(&mut bytes))
        .map_err(|why| unread(&file.display(), &why))?;
    if bytes.len() as u64 > limit {
        return Err(Failure::Input(format!(
            "{}: longer than {} MiB, which nothing that is meant here is; give another file",
            file.display(),
            limit >> 20
        )));
    }
    Ok(bytes)
}

/// Reads a whole text file.
pub(crate) fn read_text(file: &Path) -> Result<String, Failure> {
    String::from_utf8(read(file)?).map_err(|why| {
        let at = why.utf8_error().valid_up_to();
        let before = why.as_bytes().get(..at).unwrap_or_default();
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        Failure::Input(format!(
            "{}:{line}: the byte at offset {at} is not UTF-8: expected a text file",
            file.display()
        ))
    })
}

/// Prints to standard output, without the colours in it where nobody would see them. A reader that went away (a pipe
/// to `head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(why) if why.kind() != ErrorKind::BrokenPipe => Err(Failure::Measure(format!("standard output: {why}"))),
        _ => Ok(()),
    }
}

/// Says on standard error why a command could not do its work.
pub(crate) fn complain(failure: &Failure) {
    // Where even this cannot be written, the exit code is all that is left.
    let _ = writeln!(anstream::stderr(), "{} {failure}", style::bad("iommu:"));
}
