//! B8: translating an address that is cached, and one that has to be walked for.

use std::hint::black_box;

use iommu_testkit::SparseMemory;
use iommu_testkit::raw::{self, RawTables};
use iommu_types::{Iova, SourceId};
use vtd_model::{AccessWidth, CacheSizes, Request, Unit, UnitConfig};
use vtd_spec::register::offset;

use crate::pair::{Random, compare};
use crate::peers::{LockedMap, PAGE, VmMemoryIotlb};
use crate::row::Row;

const SOURCE: u16 = 0x0010;
/// Mappings in the address space of the requester.
const PAGES: [u64; 2] = [1024, 16_384];

/// The host page behind page `page`: scattered, so that no two neighbours can be merged into one mapping.
const fn host_page(page: u64) -> u64 {
    0x10_0000 + (page * 7919) % 0x8_0000
}

/// A unit with translation on and `pages` mapped pages.
fn unit(pages: u64, caches: CacheSizes) -> Option<(Unit, SparseMemory)> {
    let memory = SparseMemory::new(64 << 20);
    let mut tables = RawTables::new(&memory, 0x10_0000);
    let root = tables.page();
    let top = tables.page();
    tables.legacy_context(
        root,
        SOURCE,
        raw::legacy_context_entry(raw::translation_type::UNTRANSLATED, top, 2, 1),
    );
    for page in 0..pages {
        tables.second_stage(
            top,
            4,
            page * PAGE,
            host_page(page) * PAGE,
            1,
            raw::SS_READ | raw::SS_WRITE,
        );
    }
    let mut unit = Unit::new(UnitConfig::builder().cache_sizes(Some(caches)).build().ok()?);
    unit.write(&memory, offset::RTADDR, AccessWidth::Qword, root);
    unit.write(&memory, offset::GCMD, AccessWidth::Dword, 1 << 30);
    unit.write(&memory, offset::GCMD, AccessWidth::Dword, 1 << 31);
    Some((unit, memory))
}

/// Runs the comparisons.
pub(crate) fn rows(quick: bool) -> Vec<Row> {
    PAGES
        .iter()
        .flat_map(|&pages| hit_rows(quick, pages).into_iter().chain(miss_rows(quick, pages)))
        .collect()
}

/// Draws one of `pages` pages; the same sequence for both sides.
fn address(random: &mut Random, pages: u64) -> u64 {
    (random.next() % pages) * PAGE + 0x40
}

fn translate_batch(unit: &mut Unit, memory: &SparseMemory, random: &mut Random, pages: u64, turns: u64) {
    for _ in 0..turns {
        let request = Request::read(SourceId::from_raw(SOURCE), Iova::new(address(random, pages)), 64);
        let _ = black_box(unit.dma(memory, &request));
    }
}

fn hit_rows(quick: bool, pages: u64) -> Vec<Row> {
    // Room for every page with some to spare: a set-associative cache does not fill evenly.
    let sizes = CacheSizes {
        contexts: 64,
        pasids: 64,
        pages: 4 * 16_384,
        tables: 1024,
        interrupts: 64,
    };
    let Some((mut unit, memory)) = unit(pages, sizes) else {
        return Vec::new();
    };
    for page in 0..pages {
        let _ = unit.dma(
            &memory,
            &Request::read(SourceId::from_raw(SOURCE), Iova::new(page * PAGE), 64),
        );
    }
    let iotlb = VmMemoryIotlb::new(pages, host_page);
    let map = LockedMap::new(pages, host_page);
    let [mut our_draw, mut peer_draw] = [Random::new(11), Random::new(11)];
    let mut ours = |turns| translate_batch(&mut unit, &memory, &mut our_draw, pages, turns);
    let against_iotlb = compare(quick, &mut ours, &mut |turns| {
        for _ in 0..turns {
            black_box(iotlb.lookup(address(&mut peer_draw, pages)));
        }
    });
    let [mut our_draw, mut peer_draw] = [Random::new(11), Random::new(11)];
    let mut ours = |turns| translate_batch(&mut unit, &memory, &mut our_draw, pages, turns);
    let against_map = compare(quick, &mut ours, &mut |turns| {
        for _ in 0..turns {
            black_box(map.lookup(address(&mut peer_draw, pages)));
        }
    });
    vec![
        Row::at_least(
            "B8",
            format!("hit, {pages} mappings"),
            &against_iotlb,
            "vm-memory Iotlb",
            20.0,
        ),
        Row::at_least(
            "B8",
            format!("hit, {pages} mappings"),
            &against_map,
            "RwLock<BTreeMap>",
            10.0,
        ),
    ]
}

fn miss_rows(quick: bool, pages: u64) -> Vec<Row> {
    // One entry each: every page is walked for, with the context entry cached.
    let sizes = CacheSizes {
        contexts: 64,
        pasids: 64,
        pages: 1,
        tables: 1,
        interrupts: 1,
    };
    let Some((mut unit, memory)) = unit(pages, sizes) else {
        return Vec::new();
    };
    let iotlb = VmMemoryIotlb::new(pages, host_page);
    let [mut our_draw, mut peer_draw] = [Random::new(13), Random::new(13)];
    let mut ours = |turns| translate_batch(&mut unit, &memory, &mut our_draw, pages, turns);
    let comparison = compare(quick, &mut ours, &mut |turns| {
        for _ in 0..turns {
            black_box(iotlb.lookup(address(&mut peer_draw, pages)));
        }
    });
    vec![Row::reported(
        "B8",
        format!("miss (4-level walk), {pages} mappings"),
        &comparison,
        "vm-memory Iotlb (a hit)",
    )]
}
