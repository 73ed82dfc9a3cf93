//! What grouping a large machine takes, measured at the allocator. One test, so that nobody else allocates meanwhile.
#![allow(unsafe_code, reason = "the allocator's trait is unsafe to implement")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_groups::{BusId, ConfigAccess, Explanation, LinuxVersion, Rules, Topology, differences, group, pci};
use iommu_types::{Bdf, Segment};

/// The system's allocator, counting.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it is; the counters do not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What a topology with both groupings and all reasons may hold at most.
const MAX: usize = 100 << 20;
const SEGMENTS: u32 = 20;
const PORTS: u8 = 100;
const CARDS: u8 = 4;

/// Ten thousand functions without a byte of memory: 20 segments with 100 root ports each, of which some have no access
/// control, four functions below each, which have none.
struct Synthetic;

impl ConfigAccess for Synthetic {
    fn read32(&self, function: Bdf, offset: u16) -> Option<u32> {
        let (bus, device, number) = (function.bus(), function.devfn().device(), function.devfn().function());
        let port = device * 8 + number;
        let is_port = bus == 0 && port < PORTS;
        let is_card = (1..=PORTS).contains(&bus) && device == 0 && number < CARDS;
        if !is_port && !is_card {
            return Some(pci::NO_FUNCTION);
        }
        let weak = port % 3 == 0;
        Some(match offset {
            0x00 => 0x000c_1b36,
            0x04 => 0x0010_0000,
            0x08 if is_port => 0x0604_0000,
            0x0c => 0x0080_0000 | u32::from(is_port) << 16,
            0x10 if is_card => 0xfe00_0000,
            0x18 if is_port => u32::from_le_bytes([0, port + 1, port + 1, 0]),
            0x34 => 0x40,
            0x40 => 0x0002_0010 | if is_port { 4 << 20 } else { 0 },
            0x100 if is_port && !weak => 0x0001_000d,
            0x104 if is_port && !weak => 0x001d_001f,
            _ => 0,
        })
    }
}

#[test]
fn ten_thousand_functions_with_reasons_take_less_than_100_mib() {
    let roots: Vec<BusId> = (0..SEGMENTS).map(|segment| BusId::new(Segment(segment), 0)).collect();
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);

    let topology = Topology::scan(&Synthetic, &roots);
    let linux = group(&topology, Rules::Linux(LinuxVersion::LATEST));
    let strict = group(&topology, Rules::Strict);
    let holes = differences(&linux, &strict);

    let (peak, live) = (
        PEAK.load(Ordering::Relaxed) - before,
        LIVE.load(Ordering::Relaxed) - before,
    );
    println!("peak {} KiB, kept {} KiB", peak >> 10, live >> 10);
    assert_eq!(topology.functions().len(), 10_000);
    assert!(topology.problems().is_empty());
    // Reasons are part of it: everything below a port without access control is with the port, and says why.
    let mut reasons = 0;
    for members in strict.all() {
        reasons += strict.reasons(members).len();
        let (Some(first), Some(last)) = (members.members.first(), members.members.last()) else {
            continue;
        };
        let chain = strict.explain(&topology, *first, *last);
        assert!(matches!(chain, Some(Explanation::Together(hops)) if hops.is_empty() == (first == last)));
    }
    assert!(reasons > 8_000, "{reasons}");
    assert!(!holes.is_empty());
    assert!(
        peak > 1 << 20,
        "{peak} bytes cannot hold it: the counter counts nothing"
    );
    assert!(peak < MAX, "{peak} bytes");
}
