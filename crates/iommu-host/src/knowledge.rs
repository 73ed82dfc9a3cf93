//! Three-valued facts.

use std::fmt;

/// A fact about a machine: known, known not to be there, or unknown with what would make it known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Knowledge<T> {
    /// It is known.
    Known(T),
    /// There is no such thing.
    Absent,
    /// It could not be found out.
    Unknown(Obstacle),
}

/// Why a fact is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Reading it needs rights that the reader lacked; the path.
    NotPermitted(String),
    /// The snapshot or folder does not hold it; the path.
    NotIncluded(String),
    /// The text that the machine was read from does not show it; what would.
    NotShown(&'static str),
    /// It is larger than anything sensible; the path and the limit in bytes.
    TooLarge(String, usize),
    /// Reading it failed for another reason; the path and the error.
    Failed(String, String),
    /// It does not say what it should; the path or name.
    Malformed(String),
}

impl Obstacle {
    /// What would make the fact known.
    #[must_use]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotPermitted(_) => "run as root, or read a snapshot that root took",
            Self::NotIncluded(_) => "take a snapshot with `iommu snapshot` as root on that machine",
            Self::NotShown(what) => what,
            Self::TooLarge(..) | Self::Malformed(_) => "check where the file comes from",
            Self::Failed(..) => "make the path readable and try again",
        }
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPermitted(path) => write!(f, "{path} may only be read by root"),
            Self::NotIncluded(path) => write!(f, "{path} is not included"),
            Self::NotShown(_) => f.write_str("the listing does not show it"),
            Self::TooLarge(path, limit) => write!(f, "{path} is larger than {limit} bytes"),
            Self::Failed(path, why) => write!(f, "{path}: {why}"),
            Self::Malformed(path) => write!(f, "{path} does not say what it should"),
        }
    }
}

impl<T> Knowledge<T> {
    /// The fact, if it is known.
    #[must_use]
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Absent | Self::Unknown(_) => None,
        }
    }

    /// Whether it could not be found out.
    #[must_use]
    pub const fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown(_))
    }

    /// Whether it is known not to be there.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Why it is unknown.
    #[must_use]
    pub const fn obstacle(&self) -> Option<&Obstacle> {
        match self {
            Self::Unknown(obstacle) => Some(obstacle),
            Self::Known(_) | Self::Absent => None,
        }
    }

    /// The same about something made from the value.
    #[must_use]
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Knowledge<U> {
        match self {
            Self::Known(value) => Knowledge::Known(f(value)),
            Self::Absent => Knowledge::Absent,
            Self::Unknown(obstacle) => Knowledge::Unknown(obstacle),
        }
    }

    /// The same about something that the value may not hold.
    #[must_use]
    pub fn and_then<U>(self, f: impl FnOnce(T) -> Knowledge<U>) -> Knowledge<U> {
        match self {
            Self::Known(value) => f(value),
            Self::Absent => Knowledge::Absent,
            Self::Unknown(obstacle) => Knowledge::Unknown(obstacle),
        }
    }
}
