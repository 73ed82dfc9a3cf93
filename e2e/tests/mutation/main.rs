//! Rules D1 to D25, each left out once: what the driver does because of a rule must be missed when it does not do it.
//!
//! A scenario runs on the model in the `Silicon` profile with the sanitizer on. It passes with every step taken, and
//! fails in the way that is written beside it with one step left out (`iommu_types::omission`). `RULES.md` of the crate
//! `vtd-driver` has the table; a test here holds it against the steps that the code knows.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests report by panicking, also in their helpers"
)]

mod ats;
mod dma_api;
mod entries;
mod faults;
mod interrupts;
#[path = "../driver/machine.rs"]
mod machine;
mod named;
mod pages;
mod protocol;
mod reserved;
mod rig;
mod table;

use iommu_types::omission::{Step, leave_out};

use crate::rig::{How, Verdict};

/// Runs a scenario with `step` taken and with `step` left out.
fn judge(step: Step, how: How, scenario: fn() -> Verdict) {
    assert_eq!(scenario(), Ok(()), "with {step} taken");
    let without = leave_out(step);
    let noticed = scenario();
    drop(without);
    match noticed {
        Ok(()) => panic!("{step} ({}) was left out and nothing noticed", step.rule()),
        Err(miss) => assert_eq!(miss.how, how, "without {step}: {}", miss.what),
    }
}

macro_rules! cases {
    ($( $name:ident: $step:ident, $how:ident, $scenario:path; )*) => {
        /// Every case: the step, how its absence shows, the name of the test and of the scenario.
        const CASES: &[(Step, How, &str, &str)] =
            &[$( (Step::$step, How::$how, stringify!($name), stringify!($scenario)), )*];

        $(
            #[test]
            fn $name() {
                judge(Step::$step, How::$how, $scenario);
            }
        )*
    };
}

cases! {
    d01_context_cache: ContextForgotten, Reached, entries::a_detached_device_is_blocked;
    d01_pasid_cache: PasidCacheForgotten, Reached, entries::a_device_that_moves_reaches_its_new_domain_only;
    d01_translations: TranslationsForgotten, Reached, entries::an_identifier_that_comes_back_brings_nothing;
    d01_root: RootForgotten, Reached, protocol::the_previous_owners_mappings_are_gone;
    d01_device_tlb: DeviceTlbForgotten, Reached, ats::what_was_unmapped_is_gone_from_the_function;
    d01_device_tlb_last: DeviceTlbLast, Reached, ats::a_function_that_asks_again_gets_nothing_old;
    d01_dependent_waits: DependentWaits, Reached, entries::a_busy_device_that_moves_takes_nothing_along;
    d02_presence_first: PresenceFirst, Words, entries::an_entry_is_whole_or_absent;
    d03_absent_entry: AbsentEntryForgotten, Blocked, entries::a_device_seen_before_is_let_through_once_attached;
    d03_absent_page: AbsentPageForgotten, Blocked, pages::a_page_seen_before_is_usable_once_mapped;
    d03_write_buffers: WriteBuffersFlushed, Blocked, protocol::what_lies_in_write_buffers_is_seen;
    d04_lease: LeaseWaits, Reached, pages::a_lease_comes_back_when_nobody_uses_it;
    d04_tables: TablesWait, Reached, pages::a_table_is_not_another_domains_while_it_is_walked;
    d04_doubt: DoubtKept, Reached, dma_api::a_copy_that_a_device_may_reach_is_not_used_again;
    d05_late_status: WaitsStayApart, Reached, protocol::a_late_status_write_confirms_nothing_else;
    d05_every_unit: EveryUnitAsked, Reached, protocol::a_unit_that_is_stuck_does_not_keep_the_others_from_flushing;
    d06_status_write: StatusWrite, Reached, protocol::fetched_is_not_carried_out;
    d07_whole_range: WholeRange, Reached, pages::the_last_page_of_an_unaligned_range_goes_too;
    d08_pruned_tables: PrunedTablesFlushed, Blocked, pages::a_superpage_takes_the_place_of_a_table;
    d09_hint: HintEarned, Reached, pages::a_new_table_is_walked_after_the_old_one_went;
    d10_own_identifier: OwnIdentifier, Reached, entries::two_domains_do_not_mix;
    d10_counted: IdentifiersCounted, Blocked, entries::identifiers_end_where_the_unit_ends;
    d10_zero: ZeroUnused, Words, entries::zero_names_no_domain;
    d11_structures: StructuresWrittenBack, Blocked, entries::a_unit_that_does_not_snoop_sees_entries;
    d11_pages: PagesWrittenBack, Blocked, entries::a_unit_that_does_not_snoop_sees_entries;
    d12_ats_after_entry: AtsAfterEntry, Blocked, ats::a_function_may_ask_as_soon_as_it_can;
    d12_ats_off_first: AtsOffFirst, Reached, ats::a_function_takes_nothing_along;
    d12_listed: AtsListed, Reached, ats::a_function_that_firmware_does_not_list_has_no_ats;
    d12_pasid_before_ats: PasidBeforeAts, Allowed, ats::pasid_after_ats_is_refused;
    d12_throttle: ThrottleOffered, Refused, ats::a_virtual_function_is_told_by_its_own_name;
    d13_alias: EveryAlias, Blocked, entries::every_alias_is_let_through;
    d14_before_translation: ReservedBeforeTranslation, Blocked, reserved::firmware_keeps_its_memory_from_the_start;
    d14_through_attach: ReservedThroughAttach, Blocked, reserved::firmware_keeps_its_memory_in_a_domain;
    d14_after_detach: ReservedAfterDetach, Blocked, reserved::firmware_has_its_memory_again_after_a_detach;
    d14_outwards: ReservedOutwards, Blocked, reserved::the_limit_of_a_region_belongs_to_it;
    d15_depth: SupportedDepth, Blocked, entries::a_unit_with_three_levels_translates;
    d15_pass_through: PassThroughWidest, Words, entries::pass_through_names_the_widest_tables;
    d16_freed: RecordsFreed, Log, faults::a_fault_is_reported_once;
    d16_wraps: RingWraps, Log, faults::the_log_goes_on_at_its_first_record;
    d16_overflow: OverflowCleared, Log, faults::recording_goes_on_after_an_overflow;
    d17_source: SourceChecked, Interrupted, interrupts::nobody_else_raises_the_interrupt;
    d17_entry: InterruptForgotten, Interrupted, interrupts::an_interrupt_follows_its_target;
    d17_table: InterruptTableForgotten, Interrupted, interrupts::the_previous_owners_interrupts_are_gone;
    d17_compatibility: CompatibilityBlocked, Interrupted, interrupts::compatibility_format_is_blocked;
    d17_extended_mode: ExtendedModeOffered, Interrupted, interrupts::wide_destinations_need_a_unit_that_has_them;
    d19_event: EventMasked, Words, faults::a_unit_that_is_handed_on_is_silent;
    d20_old_owner: OldOwnerOff, Refused, protocol::the_previous_owners_mappings_are_gone;
    d21_leaf_sizes: LeafSizes, Reached, pages::superpages_go_as_a_whole;
    d22_one_command: OneCommand, Sanitizer, protocol::each_command_is_one_command;
    d23_write_buffer_wait: WriteBufferWait, Sanitizer, protocol::commands_wait_for_each_other;
    d24_quirks: QuirksNeedTrust, Allowed, dma_api::a_device_cannot_claim_a_quirk;
    d24_ats: AtsNeedsTrust, Reached, ats::a_function_that_is_not_trusted_has_no_ats;
    d24_strict: UntrustedStrict, Reached, dma_api::an_untrusted_device_loses_access_at_once;
    d24_bounce: UntrustedBounced, Reached, dma_api::an_untrusted_device_sees_its_bytes_only;
}

#[test]
fn every_step_that_the_code_knows_has_a_case_and_no_other() {
    let mut known: Vec<Step> = Step::ALL.to_vec();
    let mut judged: Vec<Step> = CASES.iter().map(|(step, ..)| *step).collect();
    known.sort_unstable();
    judged.sort_unstable();
    assert_eq!(judged, known);
}
