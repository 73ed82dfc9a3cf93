//! `iommu dmar show`: a DMAR table decoded, and what is wrong with it.

mod json;
mod text;

use acpi_dmar::lint::{self, Machine, Report};
use acpi_dmar::{Dmar, Severity};

pub(crate) use json::show_json;

/// A table as people read it.
#[derive(Debug)]
pub(crate) struct Shown {
    /// The text, ending in a newline.
    pub(crate) text: String,
    /// Whether no rule found more than an information.
    pub(crate) clean: bool,
}

/// Decodes the table that `bytes` starts with, as far as it can be read, and judges it by the table alone.
pub(crate) fn show(bytes: &[u8]) -> Shown {
    let report = judge(bytes);
    let table = Dmar::inspect(bytes).ok();
    Shown {
        text: text::render(table, &report),
        clean: is_clean(&report),
    }
}

fn judge(bytes: &[u8]) -> Report {
    lint::lint_bytes(bytes, &Machine::default())
}

fn is_clean(report: &Report) -> bool {
    report.worst().is_none_or(|worst| worst == Severity::Info)
}

/// Text of the firmware: without the NULs that pad it, and nothing in it that a terminal would obey.
fn printable(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let text = bytes.get(..end).unwrap_or(bytes);
    text.iter().fold(String::new(), |mut plain, byte| {
        if matches!(byte, b' '..=b'~') {
            plain.push(char::from(*byte));
        } else {
            plain.push_str(&format!("\\x{byte:02x}"));
        }
        plain
    })
}

#[cfg(test)]
mod tests;
