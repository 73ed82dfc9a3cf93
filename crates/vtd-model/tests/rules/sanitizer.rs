//! What the sanitizer reports, and what it does not.

use iommu_testkit::raw::{self, descriptor, translation_type};
use vtd_model::{Profile, Rule, UnitConfigBuilder};
use vtd_spec::register::{GlobalCommand, offset};

use crate::rig::{DID, NIC, Rig, spec};

fn watched() -> UnitConfigBuilder {
    spec().sanitizer(true)
}

fn findings(rig: &mut Rig) -> Vec<Rule> {
    std::iter::from_fn(|| rig.unit.take_finding())
        .map(|finding| finding.rule)
        .collect()
}

/// A unit brought up by the book, with one page mapped and cached.
fn ready(builder: UnitConfigBuilder) -> (Rig, u64) {
    let mut rig = Rig::new(builder);
    rig.enable_queue();
    rig.set_root(rig.root);
    rig.invalidate(&[descriptor::CONTEXT_GLOBAL, descriptor::IOTLB_GLOBAL]);
    rig.command(|c| c.with_te(true));
    let top = rig.tables.page();
    rig.context(NIC, translation_type::UNTRANSLATED, top, 2, DID);
    rig.map(top, 0x1000, 0x5000);
    rig.host(NIC, 0x1000);
    (rig, top)
}

#[test]
fn a_driver_that_keeps_the_rules_gives_no_finding() {
    for profile in [Profile::Spec, Profile::Silicon] {
        let (mut rig, top) = ready(watched().profile(profile));
        rig.host(NIC, 0x1000);
        // Unmapped, invalidated, mapped elsewhere.
        rig.tables.second_stage(top, 4, 0x1000, 0, 1, 0);
        rig.invalidate(&[descriptor::iotlb_pages(DID, 0x1000, 0, true)]);
        rig.map(top, 0x1000, 0x6000);
        assert_eq!(rig.host(NIC, 0x1000), 0x6000);
        assert_eq!(rig.host(NIC, 0x1000), 0x6000);
        let table = rig.tables.page();
        rig.write64(offset::IRTA, table);
        rig.command(|c| c.with_sirtp(true));
        rig.invalidate(&[descriptor::INTERRUPT_GLOBAL]);
        rig.command(|c| c.with_ire(true));
        rig.command(|c| c.with_te(false));
        rig.command(|c| c.with_qie(false));
        assert_eq!(findings(&mut rig), []);
    }
}

#[test]
fn a_use_after_unmap_is_an_open_window() {
    let (mut rig, top) = ready(watched());
    rig.tables.second_stage(top, 4, 0x1000, 0, 1, 0);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    let finding = rig.unit.take_finding().expect("seen");
    assert_eq!(finding.rule, Rule::OpenWindow);
    assert_eq!(finding.used.map(|at| at.raw()), Some(0x5000));
    assert_eq!(
        (finding.fresh, finding.request.map(|request| request.source.raw())),
        (None, Some(NIC))
    );
    // Fewer rights than before.
    rig.tables.second_stage(top, 4, 0x1000, 0x5000, 1, raw::SS_READ);
    let _ = rig.write(NIC, 0x1000);
    assert_eq!(findings(&mut rig), [Rule::OpenWindow]);
}

#[test]
fn a_use_after_the_page_was_given_to_another_is_a_violation() {
    let (mut rig, top) = ready(watched());
    rig.map(top, 0x1000, 0x6000);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    assert_eq!(findings(&mut rig), [Rule::StaleTranslation]);
    // A table page that holds something else by now.
    let above = rig.tables.entry_at(top, 4, 0x1000, 2, raw::SS_READ | raw::SS_WRITE);
    rig.tables.put(above, iommu_testkit::POISON);
    rig.host(NIC, 0x1000);
    assert_eq!(findings(&mut rig), [Rule::StaleTranslation]);
    // Looking sets no flag and fills no cache: the same again.
    rig.host(NIC, 0x1000);
    assert_eq!(findings(&mut rig), [Rule::StaleTranslation]);
}

#[test]
fn a_forgotten_invalidation_after_a_map_in_caching_mode_is_seen() {
    let (mut rig, top) = ready(watched().profile(Profile::Silicon).caching_mode(true));
    let _ = rig.read(NIC, 0x2000);
    rig.map(top, 0x2000, 0x7000);
    let _ = rig.read(NIC, 0x2000);
    assert_eq!(findings(&mut rig), [Rule::StaleFault]);
}

#[test]
fn a_changed_interrupt_entry_without_invalidation_is_seen() {
    let (mut rig, _) = ready(watched());
    let table = rig.tables.page();
    rig.write64(offset::IRTA, table);
    rig.command(|c| c.with_sirtp(true));
    rig.invalidate(&[descriptor::INTERRUPT_GLOBAL]);
    rig.command(|c| c.with_ire(true));
    rig.tables.irte(table, 0, raw::irte(0x31, 0, 0));
    let message = raw::remappable_address(0, false);
    let _ = rig.interrupt(NIC, message, 0);
    rig.tables.irte(table, 0, raw::irte(0x32, 0, 0));
    let _ = rig.interrupt(NIC, message, 0);
    assert_eq!(findings(&mut rig), [Rule::StaleInterrupt]);
    rig.tables.irte(table, 0, [0, 0]);
    let _ = rig.interrupt(NIC, message, 0);
    assert_eq!(findings(&mut rig), [Rule::OpenWindow]);
}

#[test]
fn each_broken_rule_of_the_protocol_has_its_name() {
    let seen = |break_it: &dyn Fn(&mut Rig)| {
        let (mut rig, _) = ready(watched().protected_memory(true));
        break_it(&mut rig);
        findings(&mut rig).iter().map(|rule| rule.name()).collect::<Vec<_>>()
    };
    assert_eq!(
        seen(&|rig| rig.write32(offset::GCMD, 0)),
        ["gcmd-one-field"],
        "TE and QIE at once"
    );
    assert_eq!(seen(&|rig| rig.command(|c| c.with_ire(true))), ["ire-without-table"]);
    let no_root = |rig: &mut Rig| {
        *rig = Rig::new(watched());
        rig.command(|c| c.with_te(true));
    };
    assert_eq!(seen(&no_root), ["te-without-root"]);
    let not_invalidated = |rig: &mut Rig| {
        rig.command(|c| c.with_te(false));
        rig.set_root(rig.root);
        rig.invalidate(&[descriptor::CONTEXT_GLOBAL, descriptor::iotlb_domain(DID)]);
        rig.command(|c| c.with_te(true));
    };
    assert_eq!(seen(&not_invalidated), ["root-not-invalidated"]);
    let table_not_invalidated = |rig: &mut Rig| {
        rig.command(|c| c.with_sirtp(true));
        rig.command(|c| c.with_ire(true));
    };
    assert_eq!(seen(&table_not_invalidated), ["interrupt-table-not-invalidated"]);
    assert_eq!(
        seen(&|rig| rig.set_root(rig.root | 1 << 10)),
        ["table-mode-while-enabled"]
    );
    let eime = |rig: &mut Rig| {
        rig.command(|c| c.with_sirtp(true));
        rig.invalidate(&[descriptor::INTERRUPT_GLOBAL]);
        rig.command(|c| c.with_ire(true));
        rig.write64(offset::IRTA, 1 << 11);
        rig.command(|c| c.with_sirtp(true));
    };
    assert_eq!(seen(&eime), ["eime-while-enabled"]);
    assert_eq!(
        seen(&|rig| rig.write64(offset::CCMD, 0xA000_0000_0000_0000)),
        ["register-invalidation-ignored"]
    );
    assert_eq!(
        seen(&|rig| rig.submit(&[descriptor::wait_status(1 << 45, 1)])),
        ["wait-status-not-memory"]
    );
    let busy = |rig: &mut Rig| {
        rig.submit(&[[0xF, 0]]);
        rig.command(|c| c.with_qie(false));
    };
    assert_eq!(seen(&busy), ["queue-disabled-while-busy"]);
    let protected = |rig: &mut Rig| {
        rig.write32(offset::PMEN, 1 << 31);
        rig.write32(offset::PLMBASE, 0);
    };
    assert_eq!(seen(&protected), ["protected-memory-while-enabled"]);
    let mut slow = Rig::new(watched().profile(Profile::Silicon));
    for _ in 0..2 {
        slow.write32(offset::GCMD, GlobalCommand::DEFAULT.with_srtp(true).raw_value());
    }
    assert_eq!(findings(&mut slow), [Rule::CommandInProgress]);
}

#[test]
fn switched_off_it_reports_nothing() {
    let (mut rig, top) = ready(spec());
    rig.map(top, 0x1000, 0x6000);
    rig.host(NIC, 0x1000);
    rig.write32(offset::GCMD, 0);
    assert_eq!(findings(&mut rig), []);
    assert_eq!(rig.unit.counters().misuses, 1);
}
