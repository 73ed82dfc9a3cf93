//! The aperture: random lists come and go while a device uses them; judged by the unit, and by plain reads of the table.
#![allow(clippy::expect_used, clippy::panic, reason = "a test reports by panicking")]

// Only a part of what the tests share is used here.
#[allow(dead_code, reason = "shared with the other tests")]
mod common;

use common::bytes;
use iommu_dma::{Aperture, ApertureUnit, Buffer, Device, Direction, DmaApi, Mapping};
use iommu_testkit::SparseMemory;
use iommu_types::{HostPhys, Iova};
use proptest::prelude::*;

const WINDOW: u64 = 0x8000_0000;
const LEN: u64 = 32 << 20;
const TABLE: u64 = 0x10_0000;

#[derive(Clone, Debug)]
enum Op {
    /// Buffers: page above 4 GiB, offset in it, length.
    Map(Vec<(u64, u64, u64)>),
    Unmap(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let offset = prop_oneof![3 => Just(0u64), 1 => 0u64..0x1000];
    let len = prop_oneof![3 => Just(0x1000u64), 1 => Just(0x5000u64), 2 => 1u64..0x2800];
    let list = prop::collection::vec((0u64..0x1_0000, offset, len), 1..6);
    prop_oneof![3 => list.prop_map(Op::Map), 2 => any::<usize>().prop_map(Op::Unmap)]
}

/// Where the table leads, in plain numbers: bit 0 is valid, 31:12 and 11:4 are address bits 31:12 and 39:32.
fn entry(memory: &SparseMemory, at: u64) -> Option<u64> {
    let word = bytes(memory, TABLE + 4 * ((at - WINDOW) >> 12), 4);
    let word = u64::from(u32::from_le_bytes(word.try_into().expect("four bytes")));
    (word & 1 != 0).then_some(word & 0xffff_f000 | (word >> 4 & 0xff) << 32)
}

/// The bytes of buffers, one host address for each page that is touched.
fn places(list: &[Buffer]) -> Vec<u64> {
    let touched = |b: &Buffer| {
        let (first, last) = (b.phys.raw(), b.phys.raw() + b.len - 1);
        (first >> 12..=last >> 12)
            .map(move |page| first.max(page << 12))
            .collect::<Vec<_>>()
    };
    list.iter().flat_map(touched).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_window_leads_to_what_is_mapped_and_nowhere_else(ops in prop::collection::vec(op(), 1..40)) {
        let memory = SparseMemory::builder().ram(0, 1 << 30).ram(1 << 32, 1 << 30).build();
        let unit = ApertureUnit::new();
        let aperture = Aperture::new(&unit, &memory, Iova::new(WINDOW), LEN, HostPhys::new(TABLE)).expect("a window");
        let api = DmaApi::new(aperture, &memory);
        let mut core = api.new_core();
        let device = Device::with_address_bits(32);
        let mut live: Vec<(Mapping<_>, Vec<Buffer>)> = Vec::new();
        let mut seen: Vec<u64> = Vec::new();
        for op in ops {
            match op {
                Op::Map(list) => {
                    let list: Vec<_> = list.iter().map(|&(page, offset, len)| {
                        Buffer::new(HostPhys::new((1 << 32) + page * 0x1000 + offset), len)
                    }).collect();
                    let mapping = api.map_sg(&mut core, &device, &list, Direction::Bidirectional).expect("room");
                    prop_assert_eq!(mapping.bounced_bytes(), 0);
                    live.push((mapping, list));
                }
                Op::Unmap(which) => {
                    if !live.is_empty() {
                        let (mapping, _) = live.swap_remove(which % live.len());
                        api.unmap(&mut core, mapping).expect("confirmed");
                    }
                }
            }
            // The device walks through everything that is mapped, page by page; the unit caches what it finds.
            let mut mapped = std::collections::BTreeMap::new();
            for (mapping, list) in &live {
                let mut expected = places(list).into_iter();
                for segment in mapping.segments() {
                    let (first, end) = (segment.address.raw(), segment.address.raw() + segment.len);
                    prop_assert!(first >= WINDOW && end <= WINDOW + LEN);
                    for page in first >> 12..=(end - 1) >> 12 {
                        let at = first.max(page << 12);
                        let to = unit.translate(&memory, Iova::new(at)).expect("mapped").raw();
                        prop_assert_eq!(Some(to), expected.next(), "through the unit, at {:#x}", at);
                        prop_assert_eq!(entry(&memory, at), Some(to & !0xfff), "in the table, at {:#x}", at);
                        prop_assert_eq!(mapped.insert(page, to), None, "two mappings share a page of the window");
                        seen.push(page);
                    }
                }
                prop_assert_eq!(expected.next(), None);
            }
            // What once was mapped leads nowhere, cached or not.
            seen.sort_unstable();
            seen.dedup();
            for page in seen.iter().filter(|page| !mapped.contains_key(page)) {
                let at = page << 12;
                prop_assert!(unit.translate(&memory, Iova::new(at)).is_err(), "{:#x} is stale", at);
                prop_assert_eq!(entry(&memory, at), None);
            }
        }
    }
}
