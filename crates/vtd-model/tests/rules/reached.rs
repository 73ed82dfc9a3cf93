//! Every line of the specification's fault table, and every fault code of interrupts, is reached by a test that is named here,
//! or belongs to a feature that no unit of this model advertises (VT-d §7.1.3, §5.1.4.1).

use std::collections::{BTreeMap, BTreeSet};

use vtd_model::{Condition, Profile, UnitConfigBuilder};
use vtd_spec::FaultReason;
use vtd_spec::fault::CONDITIONS;
use vtd_spec::register::{Capability, ExtendedCapability};

use crate::rig::{reached_by, spec};
use crate::{interrupts, legacy, races, scalable};

/// A test and the conditions that it reaches.
struct Row {
    test: &'static str,
    run: fn(),
    conditions: &'static [&'static str],
}

macro_rules! rows {
    ($( $test:path => [$($condition:literal),* $(,)?], )*) => {
        &[$( Row { test: stringify!($test), run: $test, conditions: &[$($condition),*] }, )*]
    };
}

/// One test for each condition; the names are those of `vtd_spec::fault::CONDITIONS`, or the code in brackets for interrupts.
const REACHED: &[Row] = rows! {
    legacy::reserved_table_modes_block_every_request => ["RTA.1.1", "RTA.1.2", "RTA.1.3"],
    legacy::requests_with_pasid_are_blocked_in_legacy_mode => ["RTA.2"],
    scalable::queue::abort_dma_mode_blocks_every_request => ["RTA.4"],
    scalable::structures::execute_and_privileged_requests_need_their_permission => ["RTA.5", "SPT.5", "SPT.6"],
    legacy::root_entry_conditions_block_with_their_codes => ["LRT.1", "LRT.2", "LRT.3"],
    legacy::context_entry_conditions_block_with_their_codes => ["LCT.1", "LCT.2", "LCT.3", "LCT.4.1", "LCT.4.2"],
    legacy::unreadable_tables_fault_by_level => ["LCT.4.3", "LSS.1"],
    legacy::translated_requests_pass_only_where_the_context_allows_them => ["LCT.5", "LGN.1.2"],
    legacy::an_address_above_the_guest_width_is_blocked_even_if_the_tables_are_wider => ["LGN.1.1"],
    legacy::pass_through_checks_the_host_width_only => ["LGN.1.3"],
    legacy::a_mapping_into_the_interrupt_range_is_blocked => ["LGN.4"],
    legacy::reserved_bits_of_present_paging_entries_block => ["LSS.2"],
    scalable::structures::root_and_context_conditions_block_with_their_codes => ["SRT.1", "SRT.2", "SRT.3", "SCT.1", "SCT.2", "SCT.3", "SCT.4.2"],
    scalable::structures::requests_that_the_context_does_not_allow_are_blocked => ["SCT.5", "SCT.6", "SCT.7", "SCT.9", "SGN.10"],
    scalable::structures::pasid_structures_block_with_their_codes => ["SPD.1", "SPD.2", "SPD.3", "SPT.1", "SPT.2", "SPT.3", "SPT.4.1", "SPT.4.2", "SPT.4.3", "SPT.4.4"],
    scalable::stages::first_stage_conditions_block_with_their_codes => ["SFS.1", "SFS.2", "SFS.3", "SFS.4", "SGN.1", "SGN.2", "SGN.8.1"],
    scalable::nested::nested_conditions_block_with_their_codes => ["SFS.5", "SFS.6", "SFS.7", "SFS.8", "SSS.2"],
    scalable::stages::flags_without_snooping_block => ["SFS.9", "SSS.5"],
    races::flags_that_cannot_be_written_block_with_their_codes => ["SFS.10", "SSS.6"],
    scalable::stages::second_stage_conditions_block_with_scalable_codes => ["SSS.1", "SSS.3", "SSS.4", "SGN.5", "SGN.6", "SGN.7"],
    scalable::structures::pass_through_checks_width_and_interrupt_range => ["SGN.4.1", "SGN.4.2", "SGN.8.3"],
    scalable::structures::translation_requests_get_answers_by_the_fault_table => ["SGN.8.2"],
    interrupts::the_sub_handle_is_added => ["(20h)"],
    interrupts::an_index_beyond_the_table_is_refused_without_reading_it => ["(21h)"],
    interrupts::entries_that_are_absent_reserved_or_unreadable_block => ["(22h)", "(23h)", "(24h)"],
    interrupts::compatibility_interrupts_pass_by_mode_and_flag => ["(25h)"],
    legacy::only_aligned_double_word_writes_may_enter_the_interrupt_range => ["(29h)"],
    legacy::unmapped_pages_fault_by_what_was_asked => ["LGN.2", "LGN.3"],
    interrupts::source_validation_compares_under_the_qualifier => ["(26h)"],
};

/// Whether the feature behind a condition is advertised.
type Advertised = fn(&Capability, &ExtendedCapability) -> bool;

/// The capability bit behind each condition that no test reaches: with it clear, the fields and requests that lead there are
/// reserved (VT-d §7.1.3).
const BEHIND: &[(&str, Advertised)] = &[
    ("RTA.1.4", |_, ecap| ecap.ssirws()),
    ("RTA.3", |_, ecap| ecap.prs()),
    ("SCT.4.1", |_, ecap| ecap.prs()),
    ("SCT.4.3", |_, ecap| ecap.ptrs()),
    ("SCT.8", |_, ecap| ecap.prs()),
    ("SCT.10", |_, ecap| ecap.ptrs()),
    ("SPT.9", |_, ecap| ecap.hpts()),
    ("HPT.1", |_, ecap| ecap.hpts()),
    ("HPT.2", |_, ecap| ecap.hpts()),
    ("HPT.3", |_, ecap| ecap.hpts()),
    ("HPT.4", |_, ecap| ecap.hpts()),
    ("HPT.5", |_, ecap| ecap.hpts()),
    ("HPT.6", |_, ecap| ecap.hpts()),
    ("(27h)", |cap, _| cap.pi()),
    ("(28h)", |cap, _| cap.pi()),
    ("(2Ah)", |_, ecap| ecap.eimer()),
    ("(2Bh)", |_, ecap| ecap.irreq()),
];

/// Code by name of all conditions there are. EXECUTE_DENIED has none: no unit raises it any more.
fn all_conditions() -> BTreeMap<String, u8> {
    let interrupts = (0..=u8::MAX)
        .map(FaultReason)
        .filter(|reason| reason.is_interrupt() && reason.name().is_some())
        .map(|reason| (format!("({:02X}h)", reason.0), reason.0));
    let lines = CONDITIONS.iter().map(|line| (line.name.to_owned(), line.reason.0));
    interrupts.chain(lines).collect()
}

#[test]
fn every_condition_is_named_once_with_a_test_or_with_the_feature_that_is_not_advertised() {
    let tested = REACHED.iter().flat_map(|row| row.conditions).copied();
    let named: Vec<&str> = tested.chain(BEHIND.iter().map(|(name, _)| *name)).collect();
    let all = all_conditions();
    let of_table: BTreeSet<&str> = all.keys().map(String::as_str).collect();
    let once: BTreeSet<&str> = named.iter().copied().collect();
    let missing: Vec<_> = of_table.difference(&once).collect();
    let unknown: Vec<_> = once.difference(&of_table).collect();
    assert!(missing.is_empty(), "no test reaches {missing:?}");
    assert!(unknown.is_empty(), "{unknown:?} is no condition");
    assert_eq!(named.len(), once.len(), "a condition stands in one row");
    // The codes behind them are all codes there are but the one that is not raised any more.
    let codes: BTreeSet<u8> = all.values().copied().collect();
    let known = (0..=u8::MAX).filter(|&code| FaultReason(code).name().is_some());
    let rest: Vec<u8> = known.filter(|code| !codes.contains(code)).collect();
    assert_eq!(rest, [FaultReason::EXECUTE_DENIED.0]);
}

#[test]
fn every_condition_is_reached_by_the_test_of_its_row() {
    let codes = all_conditions();
    for row in REACHED {
        let reached = reached_by(row.run);
        for name in row.conditions {
            let expected = (codes[*name], *name);
            assert!(reached.contains(&expected), "{} does not reach {expected:x?}", row.test);
        }
    }
}

#[test]
fn features_whose_conditions_no_test_reaches_are_advertised_by_no_unit() {
    // A unit that resembles one with every feature there is takes over what the model has. Three settings are put right that
    // no unit could have all at once.
    let anything: UnitConfigBuilder = spec()
        .resembling(
            Capability::new_with_raw_value(u64::MAX),
            ExtendedCapability::new_with_raw_value(u64::MAX),
        )
        .write_buffer_flush(false)
        .fault_records_at(None)
        .invalidate_address_at(None);
    let builders = [
        spec(),
        spec().full_scalable_mode().device_tlb(true).protected_memory(true),
        spec().full_scalable_mode().profile(Profile::Silicon).caching_mode(true),
        anything,
    ];
    for builder in builders {
        let config = builder.build().expect("a consistent configuration");
        let (cap, ecap) = (config.capability(), config.extended_capability());
        for (condition, advertised) in BEHIND {
            assert!(!advertised(&cap, &ecap), "{condition} could be met: it needs a test");
        }
        assert!(!ecap.mts(), "memory types come later");
    }
    // Each predicate looks at a bit that a unit could have.
    let (cap, ecap) = (
        Capability::new_with_raw_value(u64::MAX),
        ExtendedCapability::new_with_raw_value(u64::MAX),
    );
    assert!(BEHIND.iter().all(|(_, advertised)| advertised(&cap, &ecap)));
    // What the model can meet at all is what has a test, or is behind a feature.
    for condition in Condition::ALL {
        assert!(all_conditions().contains_key(condition.name()), "{condition:?}");
    }
}
