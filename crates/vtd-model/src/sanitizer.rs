//! Watching a driver: rules of the programming protocol, and uses of translations that tables no longer hold.

use alloc::collections::VecDeque;

use iommu_types::{HostPhys, Perms};

use crate::cache::{Invalidation, Stamp, TranslationCache};
use crate::condition::Condition;
use crate::interrupt::{Interrupt, InterruptRequest};
use crate::request::{Fault, Request, Translation};

/// Findings that are kept until they are taken; later ones are counted only.
const FINDINGS_MAX: usize = 256;

macro_rules! rules {
    ($( $(#[$meta:meta])* $name:ident $text:literal, )*) => {
        /// A rule of the programming protocol. The names are stable: tests and reports may rely on them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Rule {
            $( $(#[$meta])* $name, )*
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &'static [Self] = &[$( Self::$name, )*];

            /// The stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$name => $text, )*
                }
            }
        }
    };
}

rules! {
    /// A GCMD write changes one field (VT-d §11.4.4.1).
    OneField "gcmd-one-field",
    /// GCMD is not written while a command is in progress (VT-d §11.4.4.1).
    CommandInProgress "gcmd-in-progress",
    /// TE is set after a root table pointer was set (VT-d §11.4.4.1).
    TeWithoutRoot "te-without-root",
    /// IRE is set after an interrupt table pointer was set (VT-d §11.4.4.1).
    IreWithoutTable "ire-without-table",
    /// After SRTP without ESRTPS, context, PASID and IOTLB caches are invalidated globally before TE (VT-d §6.6).
    RootNotInvalidated "root-not-invalidated",
    /// After SIRTP without ESIRTPS, the interrupt entry cache is invalidated globally before IRE (VT-d §6.7).
    TableNotInvalidated "interrupt-table-not-invalidated",
    /// The table mode changes under TES only with ESRTPS (VT-d §11.4.5).
    ModeWhileEnabled "table-mode-while-enabled",
    /// EIME does not change under IRES (VT-d §11.4.10).
    EimeWhileEnabled "eime-while-enabled",
    /// CCMD and IOTLB_REG are used only where they work, with a defined granularity (VT-d §6.5.1).
    RegisterInvalidation "register-invalidation-ignored",
    /// The status address of a wait descriptor is memory (VT-d §6.5.2.9).
    StatusAddress "wait-status-not-memory",
    /// The queue is disabled only when it is empty (VT-d §6.5.2).
    QueueNotEmpty "queue-disabled-while-busy",
    /// Protected memory base and limit do not change while PRS is set (VT-d §11.4.8.2).
    ProtectedWhileEnabled "protected-memory-while-enabled",
    /// A translation was used that the tables no longer hold; software may still invalidate. Deferred invalidation does this
    /// on purpose.
    OpenWindow "open-window",
    /// A translation was used although the tables lead elsewhere by now, or are tables no more: no invalidation covered
    /// the change.
    StaleTranslation "stale-translation",
    /// A request was blocked by a cached fault although the tables hold a translation (caching mode).
    StaleFault "stale-fault",
    /// An interrupt went by a cached entry that has changed.
    StaleInterrupt "stale-interrupt",
}

/// A broken rule, with what it was seen on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// Which rule.
    pub rule: Rule,
    /// The request that used something stale.
    pub request: Option<Request>,
    /// The interrupt request that used something stale.
    pub interrupt: Option<InterruptRequest>,
    /// Where the request went.
    pub used: Option<HostPhys>,
    /// Where the tables lead now.
    pub fresh: Option<HostPhys>,
}

impl Finding {
    pub(crate) const fn of(rule: Rule) -> Self {
        Self {
            rule,
            request: None,
            interrupt: None,
            used: None,
            fresh: None,
        }
    }
}

/// What the sanitizer remembers. A unit has one only if it is switched on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sanitizer {
    findings: VecDeque<Finding>,
    lost: u64,
    /// Global invalidations that are due since the root table pointer was set.
    pub(crate) root: DueInvalidations,
    /// A global interrupt entry cache invalidation is due.
    pub(crate) interrupt_due: bool,
}

/// Which global invalidations are due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct DueInvalidations {
    pub(crate) context: bool,
    pub(crate) pasid: bool,
    pub(crate) iotlb: bool,
}

impl Sanitizer {
    pub(crate) fn report(&mut self, finding: Finding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push_back(finding);
        } else {
            self.lost += 1;
        }
    }

    /// Most bytes that a sanitizer takes on the heap, its own place included. A queue grows by doubling.
    pub(crate) const fn memory_bound() -> usize {
        size_of::<Self>() + FINDINGS_MAX.next_power_of_two() * size_of::<Finding>()
    }

    /// Bytes that it takes on the heap now, its own place included.
    pub(crate) fn memory_held(&self) -> usize {
        size_of::<Self>() + self.findings.capacity() * size_of::<Finding>()
    }

    pub(crate) fn take(&mut self) -> Option<Finding> {
        self.findings.pop_front()
    }

    pub(crate) const fn lost(&self) -> u64 {
        self.lost
    }
}

/// How a request was answered with the help of translations that were kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// It went to a host address, with these rights; without rights it was told that there is nothing.
    Answered(HostPhys, Perms),
    /// It was blocked.
    Blocked,
}

impl Use {
    /// The use that an answer of [`crate::translate()`] is.
    #[must_use]
    pub const fn of(answer: &Result<Translation, Fault>) -> Self {
        match answer {
            Ok(translation) => Self::Answered(translation.phys, translation.perms),
            Err(_) => Self::Blocked,
        }
    }

    fn host(self) -> Option<HostPhys> {
        match self {
            Self::Answered(phys, perms) => (!perms.is_none()).then_some(phys),
            Self::Blocked => None,
        }
    }

    /// Compares the use with a fresh walk.
    pub(crate) fn judge(self, request: &Request, fresh: &Result<Translation, Fault>) -> Option<Finding> {
        let rule = match (self, fresh) {
            (Self::Answered(_, perms), Ok(fresh)) if perms.is_none() && fresh.perms.is_none() => return None,
            (Self::Answered(phys, perms), Ok(fresh)) if phys == fresh.phys && fresh.perms.contains(perms) => {
                return None;
            }
            (Self::Answered(_, perms), Ok(_)) if perms.is_none() => Rule::StaleFault,
            (Self::Answered(..), Ok(fresh)) if fresh.perms.is_none() => Rule::OpenWindow,
            // The page is the same, but permits less.
            (Self::Answered(phys, _), Ok(fresh)) if phys == fresh.phys => Rule::OpenWindow,
            (Self::Answered(..), Ok(_)) => Rule::StaleTranslation,
            (Self::Answered(..), Err(fault)) if fault.condition.is_some_and(is_absent) => Rule::OpenWindow,
            (Self::Answered(..), Err(_)) => Rule::StaleTranslation,
            (Self::Blocked, Ok(_)) => Rule::StaleFault,
            (Self::Blocked, Err(_)) => return None,
        };
        Some(Finding {
            request: Some(*request),
            used: self.host(),
            fresh: Self::of(fresh).host(),
            ..Finding::of(rule)
        })
    }
}

/// Compares what a cached interrupt remapping entry made of an interrupt with what the table says now.
pub(crate) fn judge_interrupt(
    request: &InterruptRequest,
    used: &Result<Interrupt, Fault>,
    fresh: &Result<Interrupt, Fault>,
) -> Option<Finding> {
    let rule = match (used, fresh) {
        (Ok(used), Ok(fresh)) if used == fresh => return None,
        (Ok(_), Err(fault)) if fault.condition.is_some_and(is_absent) => Rule::OpenWindow,
        (Ok(_), _) => Rule::StaleInterrupt,
        (Err(_), Ok(_)) => Rule::StaleFault,
        (Err(_), Err(_)) => return None,
    };
    Some(Finding {
        interrupt: Some(*request),
        ..Finding::of(rule)
    })
}

/// Conditions of an entry that is gone, or permits less than it did: an unmap that is not yet invalidated.
const fn is_absent(condition: Condition) -> bool {
    matches!(
        condition,
        Condition::Lrt2
            | Condition::Lct2
            | Condition::Lgn2
            | Condition::Lgn3
            | Condition::Srt2
            | Condition::Sct2
            | Condition::Spd2
            | Condition::Spt2
            | Condition::Sfs2
            | Condition::Sss2
            | Condition::Sgn2
            | Condition::Sgn6
            | Condition::Sgn7
            | Condition::IrNotPresent
    )
}

/// A cache that holds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoCache;

impl TranslationCache for NoCache {
    fn stamp(&mut self) -> Stamp {
        Stamp(0)
    }
    fn invalidate(&mut self, _: &Invalidation) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    #[test]
    fn rule_names_are_distinct() {
        let names: BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        assert_eq!(names.len(), Rule::ALL.len());
    }

    #[test]
    fn findings_are_bounded() {
        let mut sanitizer = Sanitizer::default();
        for _ in 0..FINDINGS_MAX + 3 {
            sanitizer.report(Finding::of(Rule::OneField));
        }
        assert_eq!(sanitizer.lost(), 3);
        assert_eq!(core::iter::from_fn(|| sanitizer.take()).count(), FINDINGS_MAX);
    }
}
