//! What a run says while it goes.

use anstream::adapter::strip_str;

use crate::exit::{Failure, print};
use crate::style;

/// Columns that a line of words may take.
const WIDTH: usize = 120;

/// `text` broken at spaces where it would pass the last column; what follows hangs `indent` columns deep. Words
/// are left whole.
pub(crate) fn wrap(text: &str, indent: usize) -> String {
    let mut wrapped = String::new();
    let mut column = 0;
    // Spaces at the beginning and between columns of a table stay as they are: each word brings those before it.
    for piece in text.split_inclusive(' ') {
        let len = visible(piece.trim_end());
        if column + len > WIDTH && column > indent {
            wrapped.truncate(wrapped.trim_end().len());
            wrapped.push('\n');
            wrapped.extend(std::iter::repeat_n(' ', indent));
            column = indent;
            if piece.trim_end().is_empty() {
                continue;
            }
        }
        wrapped.push_str(piece);
        column += visible(piece);
    }
    wrapped
}

/// Columns that a text takes: colours take none.
fn visible(text: &str) -> usize {
    strip_str(text).to_string().chars().count()
}

/// Numbered steps on standard output; silent when the result is asked for as JSON.
#[derive(Debug)]
pub(crate) struct Transcript {
    silent: bool,
    step: u32,
}

impl Transcript {
    /// A transcript that prints, unless `silent`.
    pub(crate) const fn new(silent: bool) -> Self {
        Self { silent, step: 0 }
    }

    /// The next step's heading.
    pub(crate) fn step(&mut self, title: &str) -> Result<(), Failure> {
        self.step += 1;
        self.put(&format!(
            "{}{:2}  {}\n",
            if self.step > 1 { "\n" } else { "" },
            self.step,
            style::title(title)
        ))
    }

    /// A line below the heading.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        if text.is_empty() {
            return self.put("\n");
        }
        let indent = 8 + text.chars().take_while(|c| *c == ' ').count();
        self.put(&format!("{}\n", wrap(&format!("    {text}"), indent)))
    }

    /// A block of its own, printed as it is.
    pub(crate) fn block(&self, text: &str) -> Result<(), Failure> {
        self.put(&format!("\n{text}"))
    }

    /// A line that is not below a heading.
    pub(crate) fn bare(&self, text: &str) -> Result<(), Failure> {
        self.put(&wrap(text, 4))
    }

    fn put(&self, text: &str) -> Result<(), Failure> {
        if self.silent { Ok(()) } else { print(text) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_break_between_words_and_hang() {
        assert_eq!(wrap("  short  line", 4), "  short  line");
        let text = wrap(&format!("    {}", "words ".repeat(60)), 8);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() > 2, "{text}");
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(lines.iter().skip(1).all(|line| line.starts_with("        w")), "{text}");
        assert_eq!(text.split_whitespace().count(), 60);
        let long = "x".repeat(200);
        assert_eq!(wrap(&format!("a {long} b"), 0), format!("a\n{long}\nb"));
        let coloured = format!("{} {}", style::bad("x".repeat(60)), "y".repeat(59));
        assert_eq!(wrap(&coloured, 4), coloured, "colours take no room");
    }
}
