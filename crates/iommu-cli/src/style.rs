//! Colours in text for people, sparingly: headings, verdicts, and commands to type.
//!
//! Text carries its colours as escape sequences from where it is made, and [`crate::exit::print`] takes them out again
//! where nobody would see them: in a pipe or file, with `NO_COLOR`, on a dumb terminal, with `--color never`. Nothing
//! is said by colour alone. Text of firmware, devices and files goes through `printable` first, so that no escape
//! sequence in it survives.

use std::fmt;

use anstyle::{AnsiColor, Style};
use clap::ValueEnum;

/// When output has colours: `auto` is on terminals, unless `NO_COLOR` or `TERM=dumb` is set; `CLICOLOR_FORCE=1` forces
/// them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum When {
    // Comments for rustdoc would make the list of values in the help a page long.
    #[default]
    Auto,
    Always,
    Never,
}

impl When {
    /// What the command line says, before it is parsed: its own error messages have colours too. What makes no
    /// sense is left to the parser.
    pub(crate) fn of_command_line(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Self {
        let mut arguments = arguments
            .into_iter()
            .map_while(|argument| match argument.into_string() {
                Ok(text) if text == "--" => None,
                Ok(text) => Some(text),
                Err(_) => Some(String::new()),
            });
        let mut when = Self::default();
        while let Some(argument) = arguments.next() {
            let value = match argument.strip_prefix("--color") {
                Some("") => arguments.next(),
                Some(rest) => rest.strip_prefix('=').map(str::to_owned),
                None => None,
            };
            if let Some(Ok(found)) = value.map(|value| Self::from_str(&value, false)) {
                when = found;
            }
        }
        when
    }

    /// Holds for all that this program prints from here on.
    pub(crate) fn apply(self) {
        match self {
            Self::Auto => anstream::ColorChoice::Auto,
            Self::Always => anstream::ColorChoice::Always,
            Self::Never => anstream::ColorChoice::Never,
        }
        .write_global();
    }

    /// The same for the help and the error messages of the command line.
    pub(crate) const fn for_clap(self) -> clap::ColorChoice {
        match self {
            Self::Auto => clap::ColorChoice::Auto,
            Self::Always => clap::ColorChoice::Always,
            Self::Never => clap::ColorChoice::Never,
        }
    }
}

/// Text with a colour. Widths and alignments of a format count the text alone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Styled<T> {
    style: Style,
    text: T,
}

impl<T: AsRef<str>> Styled<T> {
    /// Columns that the text takes.
    pub(crate) fn width(&self) -> usize {
        self.text.as_ref().chars().count()
    }
}

impl<T: AsRef<str>> fmt::Display for Styled<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.style.render())?;
        f.pad(self.text.as_ref())?;
        write!(f, "{}", self.style.render_reset())
    }
}

const fn coloured(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(anstyle::Color::Ansi(colour)))
}

/// A heading: what the lines below are about.
pub(crate) const fn title<T>(text: T) -> Styled<T> {
    Styled {
        style: Style::new().bold(),
        text,
    }
}

/// As it should be.
pub(crate) const fn good<T>(text: T) -> Styled<T> {
    Styled {
        style: coloured(AnsiColor::Green),
        text,
    }
}

/// Not as it should be, or not allowed.
pub(crate) const fn bad<T>(text: T) -> Styled<T> {
    Styled {
        style: coloured(AnsiColor::Red).bold(),
        text,
    }
}

/// A warning, or something that is not known.
pub(crate) const fn doubt<T>(text: T) -> Styled<T> {
    Styled {
        style: coloured(AnsiColor::Yellow),
        text,
    }
}

/// Something to type.
pub(crate) const fn command<T>(text: T) -> Styled<T> {
    Styled {
        style: coloured(AnsiColor::Cyan),
        text,
    }
}

/// Less important than the rest of its line.
pub(crate) const fn faint<T>(text: T) -> Styled<T> {
    Styled {
        style: Style::new().dimmed(),
        text,
    }
}

/// Without a colour, for where another has one.
pub(crate) const fn plainly<T>(text: T) -> Styled<T> {
    Styled {
        style: Style::new(),
        text,
    }
}

/// Columns that a line of words takes at most.
const WIDTH: usize = 110;

/// Words without colours, as a paragraph: broken between words where a line would pass the last column, with `indent`
/// columns left free at the left from the second line on. The first line starts at column `start`.
pub(crate) fn paragraph(words: &str, start: usize, indent: usize) -> String {
    let mut text = String::new();
    let mut column = start;
    for word in words.split(' ').filter(|word| !word.is_empty()) {
        let len = word.chars().count();
        let first = text.is_empty();
        if !first && column + 1 + len > WIDTH {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', indent));
            column = indent;
        } else if !first {
            text.push(' ');
            column += 1;
        }
        text.push_str(word);
        column += len;
    }
    text
}

/// The text as it is without colours.
#[cfg(test)]
pub(crate) fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(arguments: &[&str]) -> When {
        When::of_command_line(arguments.iter().map(Into::into))
    }

    #[test]
    fn the_last_valid_choice_on_the_command_line_counts() {
        assert_eq!(of(&["iommu", "groups"]), When::Auto);
        assert_eq!(of(&["iommu", "--color", "never", "groups"]), When::Never);
        assert_eq!(of(&["iommu", "groups", "--color=always"]), When::Always);
        assert_eq!(of(&["iommu", "--color=always", "--color", "never"]), When::Never);
        assert_eq!(of(&["iommu", "--color", "rainbow"]), When::Auto);
        assert_eq!(of(&["iommu", "--colour=never", "--", "--color=never"]), When::Auto);
        assert_eq!(of(&["iommu", "--color"]), When::Auto);
    }

    #[test]
    fn paragraphs_break_between_words_and_hang() {
        let text = paragraph(&"word ".repeat(50), 4, 8);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].len() + 4 <= WIDTH && lines.iter().all(|line| line.len() <= WIDTH));
        assert!(lines.iter().skip(1).all(|line| line.starts_with("        w")));
        assert_eq!(text.split_whitespace().count(), 50);
        assert_eq!(paragraph("", 0, 8), "");
        let long = "x".repeat(300);
        assert_eq!(paragraph(&long, 4, 8), long);
    }

    #[test]
    fn widths_count_the_text_alone_and_plain_text_has_no_escapes() {
        let text = format!("{:7}|", bad("no"));
        assert!(text.contains('\u{1b}'), "{text:?}");
        assert_eq!(plain(&text), "no     |");
    }
}
