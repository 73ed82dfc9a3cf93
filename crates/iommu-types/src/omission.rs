//! Steps of a driver that tests can leave out, to show that they would be missed.
//!
//! A rule that nobody can break on purpose is a rule that nobody has tested. Each [`Step`] is one thing that a driver
//! does because of a [`Rule`]; code that takes the step asks [`kept`] first. Without the cargo feature `mutation`,
//! which tests alone switch on, [`kept`] is the constant `true` and the question is compiled away. With it, a test may
//! leave one step out, on its own thread and for as long as it holds the value of `leave_out`; nothing is left out
//! unless a test does so, and other threads never notice.
//!
//! Which test misses which step is told by `RULES.md` of the crate `vtd-driver`.

use core::fmt;

/// A rule that some driver has been caught breaking: D1 to D25 of `RULES.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule(pub u8);

impl Rule {
    /// The last one.
    pub const LAST: Self = Self(25);
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "D{}", self.0)
    }
}

macro_rules! steps {
    ($( $(#[$meta:meta])* $step:ident $rule:literal $name:literal, )*) => {
        /// One thing that the driver does because of a rule.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Step {
            $( $(#[$meta])* $step, )*
        }

        impl Step {
            /// Every step.
            pub const ALL: &'static [Self] = &[$( Self::$step, )*];

            /// The rule that it is taken for.
            #[must_use]
            pub const fn rule(self) -> Rule {
                match self {
                    $( Self::$step => Rule($rule), )*
                }
            }

            /// The stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$step => $name, )*
                }
            }
        }
    };
}

steps! {
    /// An entry that was taken away is dropped from the context cache.
    ContextForgotten 1 "context-forgotten",
    /// What the PASID cache made of the entry is dropped after that.
    PasidCacheForgotten 1 "pasid-cache-forgotten",
    /// The translations of a domain are dropped when devices leave it and before its identifier is reused.
    TranslationsForgotten 1 "translations-forgotten",
    /// A new root table is followed by the invalidation of everything.
    RootForgotten 1 "root-forgotten",
    /// Functions with a device-TLB are told what was unmapped.
    DeviceTlbForgotten 1 "device-tlb-forgotten",
    /// They are told last, when the unit itself has forgotten it.
    DeviceTlbLast 1 "device-tlb-last",
    /// Each of these waits for the one before: hardware may carry out what is behind one wait in any order.
    DependentWaits 1 "dependent-waits",
    /// An entry loses its presence first and the rest when hardware has forgotten it.
    PresenceFirst 2 "presence-first",
    /// In caching mode a new entry is flushed as the absence that may be cached.
    AbsentEntryForgotten 3 "absent-entry-forgotten",
    /// In caching mode a new mapping is flushed too.
    AbsentPageForgotten 3 "absent-page-forgotten",
    /// Units with write buffers are told to flush them after a new entry.
    WriteBuffersFlushed 3 "write-buffers-flushed",
    /// A lease comes back after the invalidation of what it stands for.
    LeaseWaits 4 "lease-waits",
    /// Table pages are freed after the invalidation that covers them.
    TablesWait 4 "tables-wait",
    /// Addresses and copies of a mapping that hardware did not confirm stay out of use.
    DoubtKept 4 "doubt-kept",
    /// A wait has a status slot and a number of its own, and a unit that lost one is not trusted again.
    WaitsStayApart 5 "waits-stay-apart",
    /// Every unit of a memory map is asked to flush, also when one does not confirm.
    EveryUnitAsked 5 "every-unit-asked",
    /// Completion is the status write of the wait descriptor.
    StatusWrite 6 "status-write",
    /// The block of a page-selective invalidation covers the last page also where the first is not aligned.
    WholeRange 7 "whole-range",
    /// Tables that make place for a superpage are flushed before.
    PrunedTablesFlushed 8 "pruned-tables-flushed",
    /// The hint that no table went away is given only when none did.
    HintEarned 9 "hint-earned",
    /// Each domain has an identifier of its own.
    OwnIdentifier 10 "own-identifier",
    /// There are as many identifiers as the unit says.
    IdentifiersCounted 10 "identifiers-counted",
    /// Identifier 0 is not used.
    ZeroUnused 10 "zero-unused",
    /// Root, context, PASID and interrupt entries are written back for units that do not snoop.
    StructuresWrittenBack 11 "structures-written-back",
    /// Page-table entries are written back for units that do not snoop.
    PagesWrittenBack 11 "pages-written-back",
    /// ATS is turned on in the function after its entry is valid.
    AtsAfterEntry 12 "ats-after-entry",
    /// ATS is turned off and the device-TLB emptied before the entry goes.
    AtsOffFirst 12 "ats-off-first",
    /// ATS is used only where firmware's tables allow it.
    AtsListed 12 "ats-listed",
    /// PASIDs are given only to functions whose PASID capability was on before ATS.
    PasidBeforeAts 12 "pasid-before-ats",
    /// The physical function is named only to units that throttle by it.
    ThrottleOffered 12 "throttle-offered",
    /// Every ID that the requests of a device may carry is attached.
    EveryAlias 13 "every-alias",
    /// Reserved regions are mapped before translation is on.
    ReservedBeforeTranslation 14 "reserved-before-translation",
    /// They are mapped in a domain before their device enters it.
    ReservedThroughAttach 14 "reserved-through-attach",
    /// They are reachable again after their device has left.
    ReservedAfterDetach 14 "reserved-after-detach",
    /// They are rounded outwards to pages, their limit included.
    ReservedOutwards 14 "reserved-outwards",
    /// Tables have a depth that the unit supports.
    SupportedDepth 15 "supported-depth",
    /// Pass-through names the largest width of the unit.
    PassThroughWidest 15 "pass-through-widest",
    /// A fault record is freed when it was read.
    RecordsFreed 16 "records-freed",
    /// Reading goes on at the first record after the last.
    RingWraps 16 "ring-wraps",
    /// An overflow is cleared, so that recording goes on.
    OverflowCleared 16 "overflow-cleared",
    /// An interrupt entry names who may use it.
    SourceChecked 17 "source-checked",
    /// A changed interrupt entry is dropped from the interrupt entry cache.
    InterruptForgotten 17 "interrupt-forgotten",
    /// A new interrupt table is followed by the invalidation of all entries, before it is used.
    InterruptTableForgotten 17 "interrupt-table-forgotten",
    /// Interrupts in compatibility format are blocked.
    CompatibilityBlocked 17 "compatibility-blocked",
    /// 32-bit APIC IDs are used only where the unit has them.
    ExtendedModeOffered 17 "extended-mode-offered",
    /// The unit's own interrupt is masked when it is handed on.
    EventMasked 19 "event-masked",
    /// What a previous owner left enabled is turned off before tables and queue change.
    OldOwnerOff 20 "old-owner-off",
    /// Blocks are not cut below the size of the leaves they are to drop.
    LeafSizes 21 "leaf-sizes",
    /// A global command is one command, and lasting bits.
    OneCommand 22 "one-command",
    /// A write-buffer flush is over when its status is clear.
    WriteBufferWait 23 "write-buffer-wait",
    /// Devices that are not trusted cannot claim a quirk that grants something.
    QuirksNeedTrust 24 "quirks-need-trust",
    /// Devices that are not trusted keep no translations of their own.
    AtsNeedsTrust 24 "ats-needs-trust",
    /// Unmapping for devices that are not trusted is never put off.
    UntrustedStrict 24 "untrusted-strict",
    /// Devices that are not trusted do not see what shares a page with their buffer.
    UntrustedBounced 24 "untrusted-bounced",
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether `step` is to be taken: always, unless a test leaves it out.
#[cfg(not(feature = "mutation"))]
#[inline(always)]
#[must_use]
pub const fn kept(step: Step) -> bool {
    let _ = step;
    true
}

#[cfg(feature = "mutation")]
pub use switch::{Omission, kept, leave_out};

#[cfg(feature = "mutation")]
mod switch {
    extern crate std;

    use core::cell::Cell;

    use super::Step;

    std::thread_local! {
        static LEFT_OUT: Cell<Option<Step>> = const { Cell::new(None) };
    }

    /// Whether `step` is to be taken: always, unless this thread leaves it out.
    #[inline]
    #[must_use]
    pub fn kept(step: Step) -> bool {
        LEFT_OUT.get() != Some(step)
    }

    /// From here on this thread leaves `step` out, until the value is dropped. One at a time: the last one counts.
    #[must_use = "the step is taken again when this is dropped"]
    pub fn leave_out(step: Step) -> Omission {
        Omission(LEFT_OUT.replace(Some(step)))
    }

    /// A step that is left out while this lives.
    #[derive(Debug)]
    pub struct Omission(Option<Step>);

    impl Drop for Omission {
        fn drop(&mut self) {
            LEFT_OUT.set(self.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_rules_are_known() {
        for (index, step) in Step::ALL.iter().enumerate() {
            assert!(
                Step::ALL
                    .iter()
                    .skip(index + 1)
                    .all(|other| other.name() != step.name())
            );
            assert!((Rule(1)..=Rule::LAST).contains(&step.rule()), "{step}");
        }
    }

    #[test]
    fn every_step_is_taken_unless_a_test_says_otherwise() {
        assert!(Step::ALL.iter().all(|step| kept(*step)));
    }

    #[cfg(feature = "mutation")]
    #[test]
    fn a_step_is_left_out_on_one_thread_and_for_a_while() {
        extern crate std;
        let without = leave_out(Step::WholeRange);
        assert!(!kept(Step::WholeRange) && kept(Step::StatusWrite));
        std::thread::spawn(|| assert!(kept(Step::WholeRange)))
            .join()
            .expect("kept there");
        drop(without);
        assert!(kept(Step::WholeRange));
    }
}
