//! What a guest can make a unit hold, measured at the allocator. One test, so that nobody else allocates meanwhile.
#![allow(clippy::expect_used, reason = "helpers of tests")]
#![allow(unsafe_code, reason = "the allocator's trait is unsafe to implement")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{DOMAIN, Guest, Memory, RW};
use iommu_testkit::raw::{self, RawTables, descriptor, translation_type};
use iommu_types::{Access, Iova, SourceId};
use vtd_model::{AccessWidth, CacheSizes, InterruptRequest, UnitConfig};
use vtd_spec::register::offset;
use vtd_vmm::{GuestBus, VmmUnit};

/// The system's allocator, counting.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    let live = LIVE.fetch_add(bytes, Ordering::Relaxed) + bytes;
    PEAK.fetch_max(live, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator as it is; the counters do not touch the memory.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
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

/// What the default may hold at most.
const DEFAULT_MAX: usize = 8 << 20;

/// Requesters that the guest sets up, more than have a number at the same time.
const BUSES: u16 = 24;
const IOVA: u64 = 0x7000_0000;
const PAGES: u64 = 64;

/// A context entry for every function of [`BUSES`] buses, every one with a domain of its own, all with the same tables.
fn populate(guest: &mut Guest) {
    for page in 0..PAGES {
        guest.map(IOVA + page * 0x1000, 0x20_0000 + page * 0x1000, 1, RW);
    }
    guest.map(0x4000_0000, 0x20_0000, 2, RW | raw::PAGE_SIZE_BIT);
    let (memory, top) = (Arc::clone(guest.unit.memory()), guest.top);
    let bus = GuestBus(&*memory);
    let mut tables = RawTables::new(&bus, 0x200_0000);
    for source in 0..BUSES << 8 {
        let entry = raw::legacy_context_entry(translation_type::UNTRANSLATED, top, 2, source);
        tables.legacy_context(0x10_0000, source, entry);
    }
    // An interrupt entry of any kind, for all indexes that the table has.
    for index in 0..256 {
        let words = raw::irte(0x41, 0x300, 0);
        tables.put_words(0x10_2000 + index * 16, &words);
    }
}

fn besiege(guest: &Guest) {
    for round in 0..3u64 {
        for source in 0..BUSES << 8 {
            let section = guest.unit.enter(SourceId::from_raw(source));
            for page in 0..2 {
                let at = IOVA + (u64::from(source) + page + round) % PAGES * 0x1000;
                let _ = section.translate(Iova::new(at), 8, Access::Read);
            }
            let _ = section.translate(Iova::new(0x4000_0000), 8, Access::Write);
            let _ = section.translate(Iova::new(0x1_0000), 8, Access::Read);
        }
        for index in 0..2048u32 {
            let request = InterruptRequest {
                source: SourceId::from_raw(0x10),
                address: raw::remappable_address(u16::try_from(index).expect("small"), false),
                data: 0,
            };
            let _ = guest.unit.interrupt(&request, |_| ());
        }
        // More news for the listener than are kept one by one, in one write.
        let mut commands: Vec<_> = (0..200).map(|index| descriptor::interrupt_entries(index, 0)).collect();
        commands.extend([descriptor::iotlb_domain(DOMAIN), descriptor::WAIT_INTERRUPT]);
        guest.submit(&commands);
        guest.submit(&[descriptor::CONTEXT_GLOBAL, descriptor::IOTLB_GLOBAL]);
    }
    for at in (0..guest.unit.window_len()).step_by(4) {
        if !(offset::GCMD..offset::GCMD + 4).contains(&at) {
            guest.unit.write(at, AccessWidth::Dword, u64::MAX);
        }
    }
}

#[test]
fn a_guest_makes_a_unit_hold_no_more_than_its_bound() {
    let large = CacheSizes {
        pages: 50_000,
        ..common::config().caches()
    };
    let configs = [
        (common::config(), DEFAULT_MAX),
        (
            UnitConfig::builder()
                .two_phase_waits(true)
                .cache_sizes(Some(large))
                .fault_records(256)
                .build()
                .expect("consistent"),
            DEFAULT_MAX,
        ),
        (
            UnitConfig::builder()
                .two_phase_waits(true)
                .sanitizer(true)
                .build()
                .expect("consistent"),
            DEFAULT_MAX,
        ),
    ];
    for (config, most) in configs {
        let bound = VmmUnit::<Arc<Memory>>::memory_bound(&config);
        assert!(bound <= most, "{bound}");
        let mut guest = Guest::with(config, ());
        populate(&mut guest);
        // The memory of the guest is the embedder's: what the unit holds is what its end gives back.
        let memory = Arc::clone(guest.unit.memory());
        PEAK.store(LIVE.load(Ordering::Relaxed), Ordering::Relaxed);
        besiege(&guest);
        let (with, peak) = (LIVE.load(Ordering::Relaxed), PEAK.load(Ordering::Relaxed));
        assert!(guest.unit.counters().requests > 10_000 || config.sanitizer());
        drop(guest);
        let without = LIVE.load(Ordering::Relaxed);
        drop(memory);
        let held = with - without + size_of::<VmmUnit<Arc<Memory>>>();
        assert!(held <= bound, "{held} of {bound}");
        // The guest's side of this program, its lists of commands, is in the peak too.
        assert!(peak - without <= bound + 0x1_0000, "{} of {bound}", peak - without);
        assert!(held > bound / 3, "the bound is no empty promise: {held} of {bound}");
    }
}
