//! Instructions of small kernels, counted by valgrind: the same on every run, so they gate where times cannot.
//!
//! This program runs itself twice under the counter with different numbers of turns; the difference is free of
//! everything that happens once.

use std::hint::black_box;
use std::process::Command;

use iommu_dma::Invalidation;
use iommu_iova::{IovaAllocator, IovaRequest, Lease};
use iommu_pagetable::{Config, Levels, PageTable, SecondStage, UnmapRules};
use iommu_types::{AddrRange, HostPhys, Iova, Perms};

use crate::dma;
use crate::iova::sides;
use crate::pagetable::Arena;
use crate::peers::PAGE;
use crate::row::Row;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A kernel by name, and how many instructions a turn may take: what was counted, and two in a hundred more.
const KERNELS: [(&str, &str, f64); 8] = [
    ("iova-ring", "free + alloc, 1 page", 82.0),
    ("map-unmap-1", "map + unmap, 1 x 4K", 308.0),
    ("map-unmap-1-kept", "map + unmap, 1 x 4K, position kept", 262.0),
    ("map-unmap-256", "map + unmap, 256 x 4K", 2770.0),
    ("dma-strict", "DMA unmap + map, strict, driver side", 686.0),
    ("dma-deferred", "DMA unmap + map, deferred 256, driver side", 715.0),
    ("dma-list-256", "map_sg + unmap_sg, 256 pages, strict", 35_312.0),
    // Most of it is the unit's and the driver's own: reported, without a limit.
    (
        "dma-unit",
        "DMA unmap + map + translation, strict, with the unit",
        f64::INFINITY,
    ),
];
/// Turns of the two runs.
const TURNS: [u64; 2] = [2_000, 12_000];
const BASE: u64 = 0x40_0000_0000;

/// Runs a kernel for `turns` turns; tells whether there is one of that name.
pub(crate) fn run(kernel: &str, turns: u64) -> Outcome<()> {
    match kernel {
        "iova-ring" => ring(turns),
        "map-unmap-1" => tables(turns, 1, false),
        "map-unmap-1-kept" => tables(turns, 1, true),
        "map-unmap-256" => tables(turns, 256, false),
        "dma-strict" => dma::turns(turns, Invalidation::Strict),
        "dma-deferred" => dma::turns(turns, Invalidation::Deferred { entries: 256 }),
        "dma-list-256" => dma::list_turns(turns),
        "dma-unit" => dma::unit_turns(turns),
        other => Err(format!("there is no kernel {other}").into()),
    }
}

fn ring(turns: u64) -> Outcome<()> {
    let iovas = sides::ours()?;
    let mut core = iovas.new_core();
    let mut live: Vec<Option<Lease>> = Vec::new();
    for _ in 0..256 {
        live.push(Some(iovas.allocate(&mut core, IovaRequest::pages(1))?));
    }
    let mut at = 0;
    for _ in 0..turns {
        if let Some(lease) = live[at].take() {
            iovas.free(&mut core, lease);
        }
        live[at] = iovas.allocate(&mut core, IovaRequest::pages(black_box(1))).ok();
        at = (at + 1) % live.len();
    }
    match live.iter().all(Option::is_some) {
        true => Ok(()),
        false => Err("a request failed".into()),
    }
}

fn tables(turns: u64, pages: u64, kept: bool) -> Outcome<()> {
    let memory = Arena::new(16);
    let table = PageTable::new(SecondStage::default(), Config::new(Levels::Four), &memory)
        .map_err(|error| error.to_string())?;
    let beside = Iova::new(BASE + 511 * PAGE);
    table.map(&memory, beside, HostPhys::new(BASE), PAGE, Perms::READ)?;
    let mut walker = table.walker(&memory);
    for turn in 0..turns {
        let at = Iova::new(black_box(BASE + turn % 128 * PAGE));
        let (to, len) = (HostPhys::new(BASE), pages * PAGE);
        let range = AddrRange::from_base_len(at, len).ok_or("no range")?;
        let unmapped = if kept {
            walker.map(at, to, len, Perms::READ_WRITE)?;
            walker.unmap(range, UnmapRules::STRICT)?
        } else {
            table.map(&memory, at, to, len, Perms::READ_WRITE)?;
            table.unmap(&memory, range, UnmapRules::STRICT)?
        };
        if unmapped.pages() != pages || unmapped.structure_changed() {
            return Err("not what was mapped".into());
        }
    }
    Ok(())
}

/// A row for each kernel.
///
/// # Errors
/// There is no valgrind here, or it did not count.
pub(crate) fn rows() -> Outcome<Vec<Row>> {
    let mut rows = Vec::new();
    for (kernel, case, most) in KERNELS {
        let [few, many] = [count(kernel, TURNS[0])?, count(kernel, TURNS[1])?];
        #[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
        let each = (many.saturating_sub(few)) as f64 / (TURNS[1] - TURNS[0]) as f64;
        rows.push(if most.is_finite() {
            Row::counted("Ir", case.to_owned(), [each, most], "the limit", most)
        } else {
            Row::figure("Ir", case.to_owned(), each, "")
        });
    }
    Ok(rows)
}

/// Instructions of one run.
fn count(kernel: &str, turns: u64) -> Outcome<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["--kernel", kernel, "--turns", &turns.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    let counted = text.lines().find_map(|line| line.split("Collected :").nth(1));
    match counted {
        Some(counted) if output.status.success() => Ok(counted.trim().parse()?),
        _ => Err(format!("valgrind did not count {kernel}: {}", text.trim()).into()),
    }
}
