//! One question about a machine, with a three-valued answer.

/// Yes, no, or not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// Yes, as it should be.
    Yes,
    /// No.
    No,
    /// It could not be found out.
    Unknown,
}

impl Answer {
    /// In one word.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }
}

/// A question with its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// A stable name.
    pub id: &'static str,
    /// The question; *yes* is the good answer.
    pub question: &'static str,
    /// The answer.
    pub answer: Answer,
    /// What it rests on.
    pub detail: String,
    /// What to do, if something should be done.
    pub advice: Option<String>,
    /// Whether *no* stands in the way; else it is a warning.
    pub hard: bool,
}

impl Item {
    /// A question of which *no* stands in the way.
    pub(crate) fn hard(id: &'static str, question: &'static str, answer: Answer, detail: impl Into<String>) -> Self {
        Self {
            id,
            question,
            answer,
            detail: detail.into(),
            advice: None,
            hard: true,
        }
    }

    /// A question of which *no* is a warning.
    pub(crate) fn soft(id: &'static str, question: &'static str, answer: Answer, detail: impl Into<String>) -> Self {
        Self {
            hard: false,
            ..Self::hard(id, question, answer, detail)
        }
    }

    /// With something to do.
    pub(crate) fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }
}

/// A number with its word: `1 group`, `2 groups`.
#[must_use]
pub fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The answer to all: *no* if something hard is, else *unknown* if something hard is, else *yes*.
#[must_use]
pub fn overall<'a>(items: impl IntoIterator<Item = &'a Item>) -> Answer {
    let mut answer = Answer::Yes;
    for item in items.into_iter().filter(|item| item.hard) {
        match item.answer {
            Answer::No => return Answer::No,
            Answer::Unknown => answer = Answer::Unknown,
            Answer::Yes => {}
        }
    }
    answer
}
