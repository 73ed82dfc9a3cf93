//! Which rows must be met, and what keeps the others from their targets.
//!
//! Times bind on a quiet machine only, so a missed gate fails a run only where it is asked to (`--gate`).

use crate::row::Row;

/// Rows that must be met: benchmark, how the case begins, how the target begins.
const GATES: [(&str, &str, &str); 19] = [
    ("B1", "free + alloc, 1 page", "<= 8 ns"),
    ("B4", "alloc + free, 513 pages, 500000", "<= 1000 ns"),
    ("B6", "map, 1 x 4K", "<= 10 ns"),
    ("B6", "unmap, 1 x 4K", "<= 10 ns"),
    ("B6", "table bytes", "<="),
    ("B6", "lines flushed", "<="),
    ("B7", "table bytes", "<="),
    ("B10", "invalidations a pair", "<="),
    ("B10", "waits a pair", "<="),
    ("B11", "reads per 4 KiB, 40 flows", "<= 1.06"),
    ("B12", "bytes copied", "<="),
    ("B12", "pages of the pool", "<="),
    ("B13", "output segments", "<="),
    ("B13", "IOVAs of", "<="),
    ("B13", "invalidations of", "<="),
    ("B13", "waits of", "<="),
    ("B14", "map 256 MiB", "<= 5 ns"),
    ("B14", "map 3 GiB", "<= 100 ns"),
    ("Ir", "", "<="),
];

/// Why buffers outside the cache cost more than their copies.
const COLD: &str = "45 ns of a mapping (a lock, a search, a list of slots); in the bare loop the misses of successive \
                    copies also overlap more";
/// Why pages with a host page each cost more than a run.
const SCATTERED: &str = "each piece is checked and placed by itself, and the list of them is made; the single pass zeroes no \
                         tables and checks nothing";
/// What a strict pair with the unit is made of.
const UNIT: &str = "5,100 instructions: 4,400 of them a doorbell, an invalidation and a wait with its drain under the unit's \
                    lock, and the driver's queue; what hardware does in 2,100 cycles";

/// What limits a row: benchmark, how the case begins, the reason.
const LIMITS: &[(&str, &str, &str)] = &[
    (
        "B1",
        "free + alloc, 1 page",
        "79 instructions of checks against the array's ten; the peers take half as long as where the targets were set",
    ),
    (
        "B2",
        "",
        "a class is looked up for each length, and what it rounds to is kept; the array knows one length",
    ),
    (
        "B3",
        "the Linux-shaped peer itself",
        "this core runs it in half the time of the one where the original was measured",
    ),
    (
        "B3",
        "(a)",
        "two visits of the tree are 100 to 130 ns; the peer scans 37 us here, 66 to 121 where the target was set",
    ),
    (
        "B4",
        "alloc + free, 513 pages, 500000",
        "the peer's search of the whole space leaves nothing of ours in any cache; against the others it is 0.7 us",
    ),
    (
        "B5",
        "(a) speed-up",
        "whether a second processor is free, and at what clock both run then",
    ),
    (
        "B5",
        "(b)",
        "the peer finds a gap at once in this trace; where the target was set it scanned under its lock",
    ),
    (
        "B6",
        "map + unmap, 1 x 4K",
        "each call walks from the root and checks limits; a kept position halves it (Walker)",
    ),
    (
        "B6",
        "map + unmap, 256 x 4K",
        "one store for each entry: within 1.3 of a bare check and store pass; the peer's loop is fast in one process",
    ),
    (
        "B6",
        "map, 256 x 4K, against",
        "one store for each entry: within 1.3 of a bare check and store pass; the peer's loop is fast in one process",
    ),
    (
        "B6",
        "map, 256 x 4K",
        "one look and one store for each entry; second-level cache under load",
    ),
    (
        "B6",
        "unmap, 256 x 4K",
        "one look and one store for each entry; second-level cache under load",
    ),
    ("B7", "map 2 GiB as scattered", SCATTERED),
    ("B7", "map 16 GiB as scattered", SCATTERED),
    ("B7", "map 64 GiB as scattered", SCATTERED),
    (
        "B7",
        "map",
        "memory bandwidth, shared with the rest of the host: pages are zeroed and written once",
    ),
    (
        "B7",
        "unmap",
        "memory bandwidth: every entry is looked at before its table goes",
    ),
    ("B7", "", "memory bandwidth and whether a second processor is free"),
    ("B10", "strict + translation", UNIT),
    (
        "B10",
        "",
        "700 instructions at more than five a cycle: 80 in the allocator, 240 in the tables, the rest is the mapping itself, \
         104 bytes that go to memory and come back",
    ),
    ("B12", "64 bytes to the device, cold", COLD),
    ("B12", "256 bytes to the device, cold", COLD),
    ("B12", "1500 bytes to the device, cold", COLD),
    ("B12", "4096 bytes to the device, cold", COLD),
    ("B12", "64 bytes from the device, cold", COLD),
    ("B12", "256 bytes from the device, cold", COLD),
    ("B12", "1500 bytes from the device, cold", COLD),
    ("B12", "64 bytes both ways, cold", COLD),
    ("B12", "256 bytes both ways, cold", COLD),
    ("B12", "1500 bytes both ways, cold", COLD),
    ("B12", "4096 bytes both ways, cold", COLD),
    (
        "B12",
        "256 of 4096 bytes synced",
        "what the mapping knows of the copy lies in memory that is as cold as the bytes",
    ),
    (
        "B12",
        "65536 bytes from the device, 2 threads",
        "the caches and the memory that both threads copy through",
    ),
    (
        "B12",
        "",
        "a lock and a search for the slot, and the list of slots is allocated for each mapping",
    ),
    (
        "B13",
        "",
        "beside one entry for each page: a pass over the buffers that lays them out, and one that makes the segments",
    ),
    (
        "B14",
        "find one of",
        "two searches in cached keys, one line of a value that is not cached, a lock",
    ),
];

fn begins(row: &Row, (id, case): (&str, &str)) -> bool {
    row.id == id && row.case.starts_with(case)
}

/// Whether the row must be met.
pub(crate) fn is_gate(row: &Row) -> bool {
    GATES
        .iter()
        .any(|&(id, case, target)| begins(row, (id, case)) && row.target.starts_with(target))
}

/// What keeps a missed row from its target; nothing for rows that are met, or only reported.
pub(crate) fn limit(row: &Row) -> Option<&'static str> {
    if row.met != Some(false) {
        return None;
    }
    let known = LIMITS.iter().find(|&&(id, case, _)| begins(row, (id, case)));
    Some(known.map_or("not known; see the reference", |&(_, _, why)| why))
}
