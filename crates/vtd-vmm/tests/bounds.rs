//! What one command of a guest costs, in accesses to shared words: the same however much is kept and however much the
//! command names.
#![allow(clippy::expect_used, reason = "helpers of tests")]

mod common;

use std::cell::Cell;

use common::{DOMAIN, Guest, device};
use iommu_testkit::raw::descriptor;
use iommu_types::sync::{self, AtomicU64, Ordering, fence};
use iommu_types::{Access, HostPhys, Iova, PageSize, Perms, SystemMemory};
use vtd_model::{AccessWidth, DESCRIPTORS_PER_WRITE};
use vtd_spec::register::offset;
use vtd_vmm::protocol::{Fill, Iotlb, Page, PageSet, View, Word};

thread_local! {
    static STEPS: Cell<u64> = const { Cell::new(0) };
}

/// An atomic that counts how often it is touched.
#[derive(Debug)]
struct Counted(AtomicU64);

impl Counted {
    fn touch(&self) -> &AtomicU64 {
        STEPS.set(STEPS.get() + 1);
        &self.0
    }
}

impl sync::Word for Counted {
    fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }
    fn load(&self, order: Ordering) -> u64 {
        self.touch().load(order)
    }
    fn store(&self, value: u64, order: Ordering) {
        self.touch().store(value, order);
    }
    fn compare_exchange(&self, current: u64, new: u64, success: Ordering, failure: Ordering) -> Result<u64, u64> {
        self.touch().compare_exchange(current, new, success, failure)
    }
    fn fetch_add(&self, value: u64, order: Ordering) -> u64 {
        self.touch().fetch_add(value, order)
    }
    fn fetch_and(&self, value: u64, order: Ordering) -> u64 {
        self.touch().fetch_and(value, order)
    }
}

impl Word for Counted {
    fn swap(&self, value: u64, order: Ordering) -> u64 {
        self.touch().swap(value, order)
    }
    fn fetch_sub(&self, value: u64, order: Ordering) -> u64 {
        self.touch().fetch_sub(value, order)
    }
    fn fetch_or(&self, value: u64, order: Ordering) -> u64 {
        self.touch().fetch_or(value, order)
    }
    fn fence(order: Ordering) {
        fence(order);
    }
}

fn steps(act: impl FnOnce()) -> u64 {
    STEPS.set(0);
    act();
    STEPS.get()
}

/// 8 pages of each of 3 sizes, a line of 9 words for each.
const PAGES_STEPS: u64 = 3 * 8 * 9 + 8;
const DOMAIN_STEPS: u64 = 2;

/// A cache for 64K pages of one domain, with `kept` pages of 4 KiB in it, and some large ones.
fn iotlb(kept: u64) -> Iotlb<Counted> {
    let iotlb = Iotlb::new(4 * 65_536, 2);
    for size in PageSize::ALL {
        iotlb.announce(Some(size), None);
    }
    let sample = iotlb.sample();
    let view = View {
        space: 1,
        domain: 1,
        generation: iotlb.generation(1),
        epoch: sample.epoch,
    };
    let mut filled = 0;
    for number in 0..kept {
        let page = Page {
            base: number << 12,
            size: PageSize::Size4K,
            phys: number << 12,
            perms: Perms::READ_WRITE,
        };
        filled += u64::from(iotlb.fill(&sample, &view, &page) == Fill::Kept);
    }
    assert_eq!(filled, kept);
    iotlb
}

#[test]
fn a_command_touches_a_fixed_number_of_words_whatever_is_kept_and_however_wide_it_is() {
    for kept in [0, 1, 65_536] {
        let iotlb = iotlb(kept);
        for order in 0..=52 {
            let last = (1u128 << (12 + order)) - 1;
            let last = u64::try_from(last).expect("at most 64 bits");
            let block = PageSet::new(Iova::new(0), Iova::new(last)).expect("in order");
            let most = steps(|| iotlb.drop_pages(1, block));
            assert!(most <= PAGES_STEPS, "{kept} pages, order {order}: {most}");
        }
        let domain = steps(|| iotlb.drop_domain(1));
        let all = steps(|| iotlb.drop_all());
        assert!(
            domain <= DOMAIN_STEPS && all <= DOMAIN_STEPS,
            "{kept} pages: {domain}, {all}"
        );
    }
}

#[test]
fn a_ring_of_wide_flushes_is_one_write_of_as_many_steps_as_it_has_descriptors() {
    // The largest ring, behind everything else in memory.
    const RING: u64 = 0x200_0000;
    const SLOTS: u64 = 32_768;
    const _: () = assert!(SLOTS > DESCRIPTORS_PER_WRITE as u64);
    let mut guest = Guest::new();
    guest.map(0x7000_0000, 0x20_0000, 1, common::RW);
    guest.command(1 << 31 | 1 << 25);
    guest.unit.write(offset::IQA, AccessWidth::Qword, RING | 7);
    guest.command(1 << 31 | 1 << 25 | 1 << 26);
    let widest = u64::from(common::config().capability().max_address_mask());
    for slot in 0..SLOTS {
        let words = match slot % 4 {
            0 => descriptor::iotlb_pages(DOMAIN, 0, widest, false),
            1 => descriptor::iotlb_pages(DOMAIN + 1, 0, widest, true),
            2 => descriptor::IOTLB_GLOBAL,
            _ => descriptor::iotlb_domain(DOMAIN),
        };
        let words = if slot == SLOTS - 2 {
            descriptor::wait_status(common::STATUS, 77)
        } else {
            words
        };
        for (word, at) in words.into_iter().zip([0, 8]) {
            guest
                .bus()
                .write_u64(HostPhys::new(RING + slot * 16 + at), word)
                .expect("memory");
        }
    }
    let before = guest.unit.counters();
    guest.unit.write(offset::IQT, AccessWidth::Qword, (SLOTS - 1) << 4);
    assert_eq!(guest.status(), 77);
    let after = guest.unit.counters();
    assert_eq!(after.descriptors - before.descriptors, SLOTS - 1);
    assert_eq!(after.invalidations.iotlb - before.invalidations.iotlb, SLOTS - 2);
    let read = guest.unit.section(device(), |dma| {
        dma.translate(Iova::new(0x7000_0000), 8, Access::Read)
            .map(|place| place.phys.raw())
    });
    assert_eq!(read, Ok(0x20_0000));
}
