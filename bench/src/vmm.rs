//! B8 and B9 for the unit that threads share: hits, misses, sections, invalidations.

mod threads;

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use iommu_testkit::raw::{self, RawTables, descriptor};
use iommu_types::{Access, HostPhys, Iova, SourceId, SystemMemory};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vtd_model::{AccessWidth, CacheSizes, UnitConfig};
use vtd_spec::register::{GlobalCommand, offset};
use vtd_vmm::{GuestBus, Requester, VmmUnit};

use crate::pair::{Comparison, Random, compare, compare_timed, timed};
use crate::peers::{PAGE, VmMemoryIotlb};
use crate::row::Row;

const SOURCE: u16 = 0x0010;
const DOMAIN: u16 = 1;
const QUEUE: u64 = 0x1_0000;
/// Descriptors of the queue: one page of them.
const QUEUE_LEN: u64 = 256;
/// Bytes of guest memory.
const MEMORY: usize = 128 << 20;

type Unit = VmmUnit<Arc<GuestMemoryMmap>>;

const REQUESTER: Requester = Requester::new(SourceId::from_raw(SOURCE));

/// The page of guest memory behind page `page`: scattered, within the second half of guest memory.
const fn host_page(page: u64) -> u64 {
    0x4000 + (page * 7919) % 0x4000
}

/// A unit with `pages` mapped pages, all of them cached.
fn unit(pages: u64, host_page: impl Fn(u64) -> u64) -> Option<Unit> {
    // Room for the largest case, whose pages follow one another.
    unit_with(4 * 65_536, pages, host_page).map(|(unit, _)| unit)
}

/// A unit with `pages` mapped pages, and the address of its requester's topmost table. It keeps about `kept` pages.
fn unit_with(kept: usize, pages: u64, host_page: impl Fn(u64) -> u64) -> Option<(Unit, u64)> {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).ok()?;
    let (root, top) = {
        let bus = GuestBus(&memory);
        let mut tables = RawTables::new(&bus, 0x10_0000);
        let (root, top) = (tables.page(), tables.page());
        let entry = raw::legacy_context_entry(raw::translation_type::UNTRANSLATED, top, 2, DOMAIN);
        tables.legacy_context(root, SOURCE, entry);
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
        (root, top)
    };
    let sizes = CacheSizes {
        contexts: 64,
        pasids: 64,
        pages: kept,
        tables: 0,
        interrupts: 64,
    };
    let config = UnitConfig::builder()
        .two_phase_waits(true)
        .cache_sizes(Some(sizes))
        .build()
        .ok()?;
    let unit = VmmUnit::new(config, Arc::new(memory), ()).ok()?;
    unit.write(offset::IQA, AccessWidth::Qword, QUEUE);
    unit.write(offset::RTADDR, AccessWidth::Qword, root);
    let on = GlobalCommand::DEFAULT.with_qie(true);
    for command in [on, on.with_srtp(true), on.with_te(true)] {
        unit.write(offset::GCMD, AccessWidth::Dword, command.raw_value().into());
    }
    // Twice: the first page of a size is not kept.
    touch(&unit, (0..pages).chain(0..pages));
    Some((unit, top))
}

/// Has `pages` cached.
fn touch(unit: &Unit, pages: impl Iterator<Item = u64>) {
    let section = unit.enter(REQUESTER);
    for page in pages {
        let _ = section.translate(Iova::new(page * PAGE), 64, Access::Read);
    }
}

/// Translates `turns` addresses in one section.
fn in_one_section(unit: &Unit, trace: &mut Trace, turns: u64) {
    let section = unit.enter(REQUESTER);
    trace.take(turns).for_each(|at| {
        let place = section.translate(Iova::new(at), 64, Access::Read);
        black_box(place.map_or(0, |place| place.phys.raw()));
    });
}

/// Translates `turns` addresses, each in a section of its own.
fn in_own_sections(unit: &Unit, trace: &mut Trace, turns: u64) {
    trace.take(turns).for_each(|at| {
        let section = unit.enter(REQUESTER);
        let place = section.translate(Iova::new(at), 64, Access::Read);
        black_box(place.map_or(0, |place| place.phys.raw()));
    });
}

/// Addresses in random order, drawn before anything is timed: drawing costs as much as a lookup.
struct Trace {
    /// A power of two of them.
    addresses: Vec<u64>,
    next: usize,
}

impl Trace {
    /// Addresses in `pages` pages; the same for every caller.
    fn new(pages: u64) -> Self {
        let mut random = Random::new(11);
        Self {
            addresses: (0..8192).map(|_| (random.next() % pages) * PAGE + 0x40).collect(),
            next: 0,
        }
    }

    /// The next `turns` addresses.
    fn take(&mut self, turns: u64) -> impl Iterator<Item = u64> {
        let count = usize::try_from(turns).unwrap_or(usize::MAX);
        let mask = self.addresses.len() - 1;
        let start = self.next;
        self.next = (start + count) & mask;
        (start..start + count).map(move |at| self.addresses.get(at & mask).copied().unwrap_or(0))
    }
}

/// Runs the comparisons.
pub(crate) fn rows(quick: bool) -> Vec<Row> {
    let mut rows = Vec::new();
    for pages in [1024, 16_384] {
        rows.extend(hits(quick, pages));
    }
    rows.extend(threads::rows(quick));
    rows.extend(misses(quick));
    for pages in [64, 65_536] {
        rows.extend(invalidations(quick, pages));
    }
    rows.extend(copies(quick));
    rows
}

/// A row whose target is a number of nanoseconds.
fn at_most(id: &'static str, case: String, comparison: &Comparison, peer: &'static str, ns: f64) -> Row {
    let reported = Row::reported(id, case, comparison, peer);
    Row {
        target: format!("<= {ns} ns"),
        met: Some(comparison.ours_ns <= ns),
        ..reported
    }
}

fn hits(quick: bool, pages: u64) -> Vec<Row> {
    let Some(unit) = unit(pages, host_page) else {
        return Vec::new();
    };
    let iotlb = VmMemoryIotlb::new(pages, host_page);
    let [mut ours, mut theirs] = [Trace::new(pages), Trace::new(pages)];
    let mut peer = |turns| {
        theirs.take(turns).for_each(|at| {
            black_box(iotlb.lookup(at));
        })
    };
    let inside = compare(quick, &mut |turns| in_one_section(&unit, &mut ours, turns), &mut peer);
    let whole = compare(quick, &mut |turns| in_own_sections(&unit, &mut ours, turns), &mut peer);
    vec![
        Row::at_least(
            "B8",
            format!("shared hit, {pages} mappings"),
            &inside,
            "vm-memory Iotlb",
            20.0,
        ),
        at_most(
            "B8",
            format!("shared hit, {pages} mappings"),
            &inside,
            "vm-memory Iotlb",
            6.0,
        ),
        at_most(
            "B8",
            format!("section with one hit, {pages} mappings"),
            &whole,
            "vm-memory Iotlb",
            20.0,
        ),
    ]
}

/// Steps of a table walk: levels of the requester's tables.
const LEVELS: u32 = 4;

/// What nobody can do without: reads an entry of each level, looks whether it is there, goes on to what it points to.
fn bare_walk(bus: &GuestBus<'_, GuestMemoryMmap>, top: u64, address: u64) -> Option<u64> {
    let mut table = top;
    for level in (0..LEVELS).rev() {
        let index = address >> (12 + 9 * level) & 0x1FF;
        let entry = bus.read_u64(HostPhys::new(table + index * 8)).ok()?;
        if entry & raw::SS_READ == 0 {
            return None;
        }
        table = entry & 0x000F_FFFF_FFFF_F000;
    }
    Some(table + (address & (PAGE - 1)))
}

/// Addresses that have to be walked for, against nothing but the walk.
fn misses(quick: bool) -> Vec<Row> {
    // More pages than tables that the processor's first cache holds; the unit keeps three of them.
    let pages = 16_384;
    let Some((unit, top)) = unit_with(1, pages, host_page) else {
        return Vec::new();
    };
    let bus = GuestBus(&**unit.memory());
    let [mut ours, mut theirs] = [Trace::new(pages), Trace::new(pages)];
    let comparison = compare(
        quick,
        &mut |turns| in_one_section(&unit, &mut ours, turns),
        &mut |turns| {
            theirs.take(turns).for_each(|at| {
                black_box(bare_walk(&bus, top, at));
            });
        },
    );
    let case = format!("shared miss, {pages} mappings");
    let reported = Row::reported("B8", case, &comparison, "bare walk, same memory");
    let most = 1.0 / comparison.ratio_low;
    vec![Row {
        target: format!("<= 1.5x the walk (high end of the interval {most:.2}x)"),
        met: Some(most <= 1.5),
        ..reported
    }]
}

/// What a unit in the shape of QEMU's does for each command: looks at every entry.
fn scanned(pages: u64) -> HashMap<u64, (u64, u16)> {
    (0..pages).map(|page| (page, (host_page(page), DOMAIN))).collect()
}

/// The page that the descriptor at `at` of the queue names.
const fn named_page(at: u64, pages: u64) -> u64 {
    (at * 97) % pages
}

/// Makes the descriptor for a page.
type Command<'a> = &'a dyn Fn(u64) -> [u64; 2];

fn invalidations(quick: bool, pages: u64) -> Vec<Row> {
    let Some(unit) = unit(pages, host_page) else {
        return Vec::new();
    };
    let bus = GuestBus(&**unit.memory());
    // What is cached again, untimed: what the next register write names, or everything before each batch of the timing
    // (between register writes that would take minutes; such a command does not look at what is cached).
    let commands: [(&str, bool, Command<'_>); 3] = [
        ("page", true, &|page| {
            descriptor::iotlb_pages(DOMAIN, page * PAGE, 0, true)
        }),
        ("domain", false, &|_| descriptor::iotlb_domain(DOMAIN)),
        ("global", false, &|_| descriptor::IOTLB_GLOBAL),
    ];
    let mut rows = Vec::new();
    let mut tail = 0;
    for (name, each_write, command) in commands {
        for at in 0..QUEUE_LEN {
            for (word, offset) in command(named_page(at, pages)).into_iter().zip([0, 8]) {
                let _ = bus.write_u64(HostPhys::new(QUEUE + at * 16 + offset), word);
            }
        }
        let mut map = scanned(1024);
        let comparison = compare_timed(
            quick,
            &mut |turns| {
                if !each_write {
                    touch(&unit, 0..pages);
                }
                let (mut left, mut took) = (turns, Duration::ZERO);
                while left > 0 {
                    // As drivers queue them: one register write for many descriptors.
                    let many = left.min(QUEUE_LEN / 2);
                    if each_write {
                        touch(&unit, (tail..tail + many).map(|at| named_page(at % QUEUE_LEN, pages)));
                    }
                    tail = (tail + many) % QUEUE_LEN;
                    took += timed(|| unit.write(offset::IQT, AccessWidth::Qword, tail << 4));
                    left -= many;
                }
                took
            },
            &mut |turns| {
                timed(|| {
                    for _ in 0..turns {
                        map.retain(|page, (_, domain)| black_box(*page) != u64::MAX || *domain != DOMAIN);
                    }
                })
            },
        );
        let case = format!("{name} invalidation, {pages} cached");
        rows.push(at_most("B9", case, &comparison, "scan of 1,024", 20.0));
    }
    rows
}

/// Copies through a section against copies straight from guest memory.
fn copies(quick: bool) -> Vec<Row> {
    // The same bytes on both sides: one run of pages, all of them there.
    let Some(unit) = unit(16, |page| 0x4000 + page) else {
        return Vec::new();
    };
    let _ = unit.memory().write_slice(&[0x5A; 65_536], GuestAddress(0x4000 * PAGE));
    let mut rows = Vec::new();
    for (len, ratio) in [(4096, 0.6), (65_536, 0.9)] {
        let mut buffers = [vec![0; len], vec![0; len]];
        let [ours, theirs] = &mut buffers;
        let comparison = compare(
            quick,
            &mut |turns| {
                for _ in 0..turns {
                    let _ = black_box(unit.section(REQUESTER, |dma| dma.read_slice(ours, GuestAddress(0))));
                }
            },
            &mut |turns| {
                for _ in 0..turns {
                    let at = GuestAddress(0x4000 * PAGE);
                    let _ = black_box(unit.memory().read_slice(theirs, at));
                }
            },
        );
        let case = format!("copy of {} KiB through a section", len >> 10);
        rows.push(Row::at_least("B8", case, &comparison, "plain copy", ratio));
    }
    rows
}
