//! Reading takes no memory, measured at the allocator, for the thread that reads.
#![allow(clippy::expect_used, reason = "tests")]
#![allow(unsafe_code, reason = "the allocator's trait is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use acpi_dmar::{
    Dmar, NoTopology, OwnedAndd, OwnedAtsr, OwnedDmar, OwnedDrhd, OwnedRhsa, OwnedRmrr, OwnedScope, Structure,
};
use iommu_types::{AddrRange, Bdf, HostPhys, Segment, SourceId};

/// The system's allocator, counting.
struct Counting;

thread_local! {
    /// Of this thread: the harness has threads of its own, which ask for memory when they like.
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator as it is; the counter does not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A table as large as the largest real one: 1,286 bytes or a little more.
fn large() -> Vec<u8> {
    let source = |raw: u16| SourceId::from_raw(raw);
    let mut table = OwnedDmar::new(46);
    for index in 0..4_u16 {
        let mut unit = OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_0000 + u64::from(index) * 0x1000));
        for function in 0..8 {
            unit = unit.scope(OwnedScope::sub_hierarchy(source(index << 8 | function << 3)));
        }
        table = table.with(unit);
    }
    table = table.with(OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_8000)).include_pci_all());
    for index in 0..9_u16 {
        let region = AddrRange::from_base_len(HostPhys::new(0x7b00_0000 + u64::from(index) * 0x1_0000), 0x1000);
        let mut rmrr = OwnedRmrr::new(Segment(0), region.expect("no wrap"));
        for function in 0..9 {
            rmrr = rmrr.scope(OwnedScope::endpoint(source(index << 8 | function)));
        }
        table = table.with(rmrr);
    }
    table
        .with(OwnedAtsr::new(Segment(0)).scope(OwnedScope::sub_hierarchy(source(8))))
        .with(OwnedRhsa {
            register_base: HostPhys::new(0xfed9_8000),
            proximity_domain: 0,
        })
        .with(OwnedAndd::new(1, "\\_SB.PCI0.I2C0"))
        .build()
        .expect("fits")
}

#[test]
fn the_reader_takes_no_memory() {
    let bytes = large();
    assert!(bytes.len() >= 1286, "{}", bytes.len());
    let before = CALLS.with(Cell::get);

    let table = Dmar::parse(&bytes).expect("sound");
    let (mut structures, mut hops) = (0, 0);
    for structure in table.structures() {
        let structure = structure.expect("sound");
        structures += 1;
        if let Structure::Andd(andd) = structure {
            assert!(andd.name().is_some());
        }
        if let Some((_, scopes)) = structure.scope_list() {
            hops += scopes.map(|scope| scope.expect("sound").path().count()).sum::<usize>();
        }
    }
    let owned = (0..64_u16)
        .filter(|raw| {
            let function = Bdf::new(Segment(0), SourceId::from_raw(raw << 3));
            !matches!(table.owner(function, &NoTopology), acpi_dmar::Owner::NotCovered)
        })
        .count();

    let calls = CALLS.with(Cell::get) - before;
    assert_eq!((structures, hops, owned), (17, 114, 64));
    assert_eq!(calls, 0, "the reader asked for memory {calls} times");
    assert!(before > 0, "the counter counts");
}
