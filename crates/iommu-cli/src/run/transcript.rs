//! What a run says while it goes.

use crate::exit::{Failure, print};

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
            "{}{:2}  {title}\n",
            if self.step > 1 { "\n" } else { "" },
            self.step
        ))
    }

    /// A line below the heading.
    pub(crate) fn line(&self, text: &str) -> Result<(), Failure> {
        self.put(&format!("    {text}\n"))
    }

    /// A block of its own, printed as it is.
    pub(crate) fn block(&self, text: &str) -> Result<(), Failure> {
        self.put(&format!("\n{text}"))
    }

    fn put(&self, text: &str) -> Result<(), Failure> {
        if self.silent { Ok(()) } else { print(text) }
    }
}
