//! A guest's own tables over a domain of its memory.

use iommu_types::{Access, GuestPhys, HostPhys, Iova, PAGE_SIZE, Perms, SystemMemory};
use vtd_driver::{DomainOptions, GuestTable, Requester, TableMode};
use vtd_model::{Profile, UnitConfig};

use crate::machine::{Machine, range, source};

/// Where the guest's memory lies on the host: not where the guest thinks.
const GUEST: u64 = 0x800_0000;
/// Bytes of it.
const SIZE: u64 = 0x20_0000;

/// Writes a guest table entry: present, writable, for user requests, accessed and dirty.
fn set(machine: &Machine, table: u64, index: u64, to: u64) {
    let at = HostPhys::new(GUEST + table + index * 8);
    machine
        .memory
        .write_u64(at, if to == 0 { 0 } else { to | 0x67 })
        .expect("guest memory");
}

#[test]
fn a_guest_maps_in_its_tables_and_the_host_takes_its_memory_away() {
    for caching in [false, true] {
        let config = UnitConfig::builder()
            .profile(Profile::Silicon)
            .caching_mode(caching)
            .scalable_mode(true)
            .scalable_second_stage(true)
            .scalable_walk_coherency(true)
            .first_stage(true)
            .nested(true);
        let machine = Machine::new(config.build().expect("valid")).in_mode(TableMode::Scalable);
        let unit = machine.translating();
        let parent = unit.create_domain(DomainOptions::default()).expect("a domain");
        parent
            .map(Iova::ZERO, HostPhys::new(GUEST), SIZE, Perms::READ_WRITE)
            .expect("mapped");
        // Four levels at 1000h to 4000h of the guest; page 5 is its page 6.
        for (table, to) in [(0x1000, 0x2000), (0x2000, 0x3000), (0x3000, 0x4000)] {
            set(&machine, table, 0, to);
        }
        set(&machine, 0x4000, 5, 0x6000);
        let root = GuestPhys::new(0x1000);
        let guest = GuestTable {
            root,
            five_levels: false,
        };
        let nested = unit.create_nested(&parent, guest).expect("a domain");
        let nic = Requester::new(source("02:00.0"));
        unit.attach_nested(&nic, &nested).expect("attached");
        let reach = |page: u64| machine.dma(nic.rid, Iova::new(page * PAGE_SIZE), Access::Write).ok();
        assert_eq!(reach(5), Some(HostPhys::new(GUEST + 0x6000)));
        assert_eq!(reach(6), None);

        // The guest moves the page, and says so.
        set(&machine, 0x4000, 5, 0x7000);
        nested.invalidate(range(0x5000, PAGE_SIZE), true).expect("confirmed");
        assert_eq!(reach(5), Some(HostPhys::new(GUEST + 0x7000)));

        // A guest that points at what is not its memory reaches nothing.
        set(&machine, 0x4000, 5, SIZE);
        nested.invalidate(range(0x5000, PAGE_SIZE), true).expect("confirmed");
        assert_eq!(reach(5), None);
        set(&machine, 0x4000, 5, 0x7000);
        nested.invalidate(range(0x5000, PAGE_SIZE), true).expect("confirmed");
        assert!(reach(5).is_some());

        // The host takes the memory away: what is cached under the guest's identifier goes too.
        let pending = parent.unmap(range(0, SIZE), "memory").expect("mapped");
        assert_eq!(parent.flush(pending).expect("flushed"), "memory");
        assert_eq!(reach(5), None);

        unit.detach(&nic).expect("detached");
        nested.destroy().expect("destroyed");
        parent.destroy().expect("destroyed");
        assert_eq!(machine.memory.violations(), []);
    }
}
