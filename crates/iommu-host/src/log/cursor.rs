//! A reader of short texts: literals and numbers, one after the other.

/// What is left of a text.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a>(pub(super) &'a str);

impl<'a> Cursor<'a> {
    /// Right behind the first `marker` in `text`.
    pub(super) fn after(text: &'a str, marker: &str) -> Option<Self> {
        text.find(marker).and_then(|at| text.get(at + marker.len()..)).map(Self)
    }

    /// Passes blanks.
    pub(super) fn blanks(&mut self) -> &mut Self {
        self.0 = self.0.trim_start();
        self
    }

    /// Passes `literal`, with blanks before it.
    pub(super) fn literal(&mut self, literal: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(literal)?;
        Some(())
    }

    /// Passes everything to `marker` and the marker.
    pub(super) fn skip_to(&mut self, marker: &str) -> Option<()> {
        *self = Self::after(self.0, marker)?;
        Some(())
    }

    /// A hexadecimal number with or without `0x`.
    pub(super) fn hex(&mut self) -> Option<u64> {
        self.blanks();
        let rest = self.0.strip_prefix("0x").or_else(|| self.0.strip_prefix("0X"));
        self.number(rest.unwrap_or(self.0), 16)
    }

    /// A decimal number.
    pub(super) fn decimal(&mut self) -> Option<u64> {
        self.blanks();
        self.number(self.0, 10)
    }

    /// A number that says its radix by `0x`.
    pub(super) fn marked(&mut self) -> Option<u64> {
        self.blanks();
        if self.0.starts_with("0x") {
            self.hex()
        } else {
            self.decimal()
        }
    }

    /// The text up to the next blank or the end.
    pub(super) fn word(&mut self) -> &'a str {
        self.blanks();
        let end = self.0.find(char::is_whitespace).unwrap_or(self.0.len());
        let (word, rest) = self.0.split_at(end);
        self.0 = rest;
        word
    }

    fn number(&mut self, text: &'a str, radix: u32) -> Option<u64> {
        let end = text.find(|c: char| !c.is_digit(radix)).unwrap_or(text.len());
        let (digits, rest) = text.split_at(end);
        let value = u64::from_str_radix(digits, radix).ok()?;
        self.0 = rest;
        Some(value)
    }
}

/// A number that has to fit.
pub(super) fn fit<T: TryFrom<u64>>(value: u64) -> Option<T> {
    T::try_from(value).ok()
}
