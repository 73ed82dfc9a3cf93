//! The profile that finds what emulators hide.

use std::sync::atomic::Ordering;

use iommu_testkit::SparseMemory;
use iommu_testkit::raw::{self, translation_type};
use iommu_types::{Coherence, FrameRequest, HostPhys, Iova, SourceId, TableMemory};
use vtd_model::{AccessWidth, Condition, Profile, Request, Unit, UnitConfigBuilder};
use vtd_spec::register::{ContextCommand, GlobalCommand, offset};

use crate::rig::{DID, NIC, Rig, STATUS, spec};

fn silicon() -> UnitConfigBuilder {
    spec().profile(Profile::Silicon)
}

#[test]
fn commands_complete_later_and_the_pointer_status_drops_meanwhile() {
    let mut rig = Rig::new(silicon());
    rig.set_root(rig.root);
    assert!(rig.status().rtps());
    let again = GlobalCommand::DEFAULT.with_srtp(true).raw_value();
    rig.write32(offset::GCMD, again);
    assert!(!rig.status().rtps());
    assert!(rig.unit.step(rig.memory));
    assert!(rig.status().rtps());
    assert!(!rig.unit.step(rig.memory));
}

#[test]
fn a_second_command_before_the_first_is_done_is_lost() {
    let mut rig = Rig::new(silicon());
    rig.write32(offset::GCMD, GlobalCommand::DEFAULT.with_srtp(true).raw_value());
    rig.write32(offset::GCMD, GlobalCommand::DEFAULT.with_te(true).raw_value());
    rig.settle();
    assert!(!rig.status().tes());
    assert_eq!(rig.unit.counters().misuses, 1);
}

#[test]
fn descriptors_take_a_step_each() {
    let mut rig = Rig::new(silicon());
    rig.enable_queue();
    rig.enqueue(&[raw::descriptor::IOTLB_GLOBAL, raw::descriptor::wait_status(STATUS, 1)]);
    rig.write64(offset::IQT, 0x20);
    assert_eq!((rig.peek(STATUS), rig.read64(offset::IQH)), (0, 0));
    assert!(rig.unit.step(rig.memory));
    assert_eq!((rig.peek(STATUS), rig.read64(offset::IQH)), (0, 0x10));
    assert!(rig.unit.step(rig.memory));
    assert_eq!(rig.peek(STATUS), 1);
}

#[test]
fn register_invalidations_complete_later() {
    let mut rig = Rig::new(silicon());
    rig.write64(offset::CCMD, 0xA000_0000_0000_0000);
    assert!(ContextCommand::new_with_raw_value(rig.read64(offset::CCMD)).icc());
    assert!(rig.unit.step(rig.memory));
    assert!(!ContextCommand::new_with_raw_value(rig.read64(offset::CCMD)).icc());
}

#[test]
fn caching_mode_keeps_faulting_entries_until_they_are_invalidated() {
    let (mut rig, top) = Rig::with_domain(silicon().caching_mode(true));
    // A page that was not present.
    assert_eq!(rig.fault(NIC, 0x1000), (0x06, "LGN.3"));
    rig.map(top, 0x1000, 0x5000);
    assert_eq!(rig.fault(NIC, 0x1000), (0x06, "LGN.3"));
    rig.invalidate(&[raw::descriptor::iotlb_pages(DID, 0x1000, 0, false)]);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    // A context entry that was not present is tagged with domain 0.
    assert_eq!(rig.fault(0x30, 0x1000), (0x02, "LCT.2"));
    rig.context(0x30, translation_type::UNTRANSLATED, top, 2, DID);
    rig.invalidate(&[raw::descriptor::context_device(DID, 0x30, 0)]);
    assert_eq!(rig.fault(0x30, 0x1000), (0x02, "LCT.2"));
    rig.invalidate(&[raw::descriptor::context_device(0, 0x30, 0)]);
    assert_eq!(rig.host(0x30, 0x1000), 0x5000);
}

#[test]
fn without_caching_mode_faulting_entries_are_not_kept() {
    let (mut rig, top) = Rig::with_domain(silicon());
    assert_eq!(rig.fault(NIC, 0x1000), (0x06, "LGN.3"));
    rig.map(top, 0x1000, 0x5000);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
}

#[test]
fn a_hint_that_only_leaves_changed_keeps_the_pointers_to_tables() {
    for (leaf_only, host) in [(true, 0x5000), (false, 0x9000)] {
        let (mut rig, top) = Rig::with_domain(silicon());
        rig.map(top, 0x1000, 0x5000);
        rig.host(NIC, 0x1000);
        // Another table of the lowest level takes the place of the first.
        let link = raw::SS_READ | raw::SS_WRITE;
        let above = rig.tables.entry_at(top, 4, 0x1000, 2, link);
        let page = rig.tables.page();
        rig.tables.put(page + 8, 0x9000 | link);
        rig.tables.put(above, page | link);
        rig.invalidate(&[raw::descriptor::iotlb_pages(DID, 0x1000, 0, leaf_only)]);
        assert_eq!(rig.host(NIC, 0x1000), host, "a wrong hint is found out");
    }
}

#[test]
fn a_forgotten_iotlb_invalidation_after_a_context_change_is_found_out() {
    let (mut rig, top) = Rig::with_domain(silicon());
    rig.map(top, 0x1000, 0x5000);
    rig.host(NIC, 0x1000);
    // New tables under the same domain identifier.
    let other = rig.tables.page();
    rig.map(other, 0x1000, 0x6000);
    rig.context(NIC, translation_type::UNTRANSLATED, other, 2, DID);
    rig.invalidate(&[raw::descriptor::context_device(DID, NIC, 0)]);
    assert_eq!(rig.host(NIC, 0x1000), 0x5000);
    rig.invalidate(&[raw::descriptor::iotlb_domain(DID)]);
    assert_eq!(rig.host(NIC, 0x1000), 0x6000);
}

#[test]
fn small_caches_evict_but_never_lie() {
    let (mut rig, top) = Rig::with_domain(silicon());
    for page in 1..200u64 {
        rig.map(top, page << 12, (page << 12) + 0x100_0000);
    }
    for _ in 0..2 {
        for page in 1..200u64 {
            assert_eq!(rig.host(NIC, page << 12), (page << 12) + 0x100_0000);
        }
    }
    assert!(rig.unit.counters().walks.iotlb.misses > 200);
}

/// Memory whose table frames the processor caches, a unit whose walks do not snoop (ECAP.C = 0), and the frames of the
/// NIC's tables from the top down. The unit sees memory as hardware does.
struct NonCoherent {
    memory: SparseMemory,
    unit: Unit,
    tables: [HostPhys; 4],
    entries: [HostPhys; 2],
}

impl NonCoherent {
    /// Everything is written, nothing is written back.
    fn new() -> Self {
        let memory = SparseMemory::builder().ram(0, 16 << 20).non_coherent().build();
        let config = silicon().coherent(false).build().expect("consistent");
        assert!(!config.extended_capability().c());
        let any = FrameRequest::page(None, HostPhys::MAX);
        let frame = || memory.allocate(any).expect("memory").base();
        let [root, context] = [(); 2].map(|()| frame());
        let tables = [(); 4].map(|()| frame());
        let this = Self {
            unit: Unit::new(config),
            tables,
            entries: [root, context],
            memory,
        };
        this.store(root, 0, context.raw() | 1);
        let words = raw::legacy_context_entry(translation_type::UNTRANSLATED, tables[0].raw(), 2, DID);
        for (at, word) in (usize::from(NIC) * 2..).zip(words) {
            this.store(context, at, word);
        }
        for pair in tables.windows(2) {
            this.store(pair[0], 0, pair[1].raw() | 3);
        }
        this.store(tables[3], 1, 0x5000 | 3);
        this
    }

    /// A store of the processor to word `at` of a table.
    fn store(&self, table: HostPhys, at: usize, word: u64) {
        let words = self.memory.table(table).expect("a frame");
        words[at].store(word, Ordering::Release);
    }

    /// The processor writes back the whole table.
    fn write_back(&self, table: HostPhys) {
        self.memory.write_back(table, 4096);
    }

    fn run(&mut self, at: u32, value: u64) {
        let hardware = self.memory.hardware();
        self.unit.write(&hardware, at, AccessWidth::Qword, value);
        while self.unit.step(&hardware) {}
    }

    fn read(&mut self) -> Result<u64, Option<Condition>> {
        let request = Request::read(SourceId::from_raw(NIC), Iova::new(0x1000), 8);
        let answer = self.unit.dma(&self.memory.hardware(), &request);
        answer.map(|answer| answer.phys.raw()).map_err(|fault| fault.condition)
    }

    /// Drops everything, through registers.
    fn invalidate(&mut self) {
        let at = self.unit.config().extended_capability().iotlb_offset();
        self.run(offset::CCMD, 1 << 63 | 1 << 61);
        self.run(at, 1 << 63 | 1 << 60);
    }
}

#[test]
fn a_unit_that_does_not_snoop_reads_each_table_as_it_was_written_back() {
    let mut machine = NonCoherent::new();
    let [root, context] = machine.entries;
    machine.run(offset::RTADDR, root.raw());
    machine.run(offset::GCMD, 1 << 30);
    machine.run(offset::GCMD, 1 << 31);
    let order = [root, context].into_iter().chain(machine.tables);
    for table in order {
        machine.invalidate();
        assert!(machine.read().is_err(), "{table} is not written back");
        machine.write_back(table);
    }
    machine.invalidate();
    assert_eq!(machine.read(), Ok(0x5000));
}

#[test]
fn a_change_that_is_not_written_back_is_not_seen_even_after_an_invalidation() {
    let mut machine = NonCoherent::new();
    let [root, context] = machine.entries;
    for table in [root, context].into_iter().chain(machine.tables) {
        machine.write_back(table);
    }
    machine.run(offset::RTADDR, root.raw());
    machine.run(offset::GCMD, 1 << 30);
    machine.run(offset::GCMD, 1 << 31);
    assert_eq!(machine.read(), Ok(0x5000));
    let leaf = machine.tables[3];
    machine.store(leaf, 1, 0x6000 | 3);
    machine.invalidate();
    assert_eq!(machine.read(), Ok(0x5000), "the line is still in the processor's cache");
    machine.write_back(leaf);
    assert_eq!(machine.read(), Ok(0x5000), "and now in the IOTLB");
    machine.invalidate();
    assert_eq!(machine.read(), Ok(0x6000));
    // The same for a page that goes away: the mistake that reads freed memory.
    machine.store(leaf, 1, 0);
    machine.invalidate();
    assert_eq!(machine.read(), Ok(0x6000));
    machine.write_back(leaf);
    machine.invalidate();
    assert_eq!(machine.read(), Err(Some(Condition::Lgn3)));
}
