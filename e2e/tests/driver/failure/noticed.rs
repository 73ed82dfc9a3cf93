//! The tests of failures, with a driver that leaves something out: they have to notice.

use iommu_types::omission::{Step, leave_out};

use super::{devices, interrupts, mappings};

#[test]
#[should_panic(expected = "assertion `left == right` failed")]
fn tables_that_are_freed_before_the_flush_is_confirmed() {
    let _without = leave_out(Step::TablesWait);
    mappings::what_was_not_flushed_keeps_lease_and_tables();
}

#[test]
#[should_panic(expected = "the tables say None")]
fn a_context_entry_that_stays_cached() {
    let _without = leave_out(Step::ContextForgotten);
    devices::a_device_that_was_not_detached_keeps_its_domain_from_being_destroyed();
}

#[test]
#[should_panic(expected = "assertion `left == right` failed")]
fn ats_that_is_on_before_the_entry_is_valid() {
    let _without = leave_out(Step::AtsAfterEntry);
    devices::ats_is_not_turned_on_for_a_device_that_was_not_attached();
}

#[test]
#[should_panic(expected = "the tables say None")]
fn a_device_tlb_that_was_not_told() {
    let _without = leave_out(Step::DeviceTlbForgotten);
    mappings::what_was_not_flushed_keeps_lease_and_tables();
}

#[test]
#[should_panic(expected = "arrives()")]
fn an_interrupt_entry_that_stays_cached() {
    let _without = leave_out(Step::InterruptForgotten);
    interrupts::an_interrupt_that_was_not_moved_goes_where_it_went_or_is_named();
}
