//! Firmware tables that lie, break off or ask for everything: the machine and its units come up or say why not,
//! and no function that the table leaves in doubt reaches memory that was not given to it.
//!
//! The judge of "in doubt" is a walk over plain bytes that shares no code with the reader.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail this way, and its helpers too"
)]

use std::time::{Duration, Instant};

use iommu_testkit::Random;
use iommu_types::{Bdf, HostPhys, Iova, Perms};
use iommu_vfio::{Container, Driver, Platform, PlatformOptions};
use soft_platform::{Machine, MachineDescription, MachineOptions, PageRequest, Zone};

/// Tables that are tried.
const CASES: u64 = 600;
/// Longest time that one table may take: far more than any needs, far less than a loop without a bound.
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes before the first structure.
const HEADER: usize = 48;

/// Addresses that firmware might name by mistake.
const ADDRESSES: [u64; 18] = [
    0,
    1,
    0xfff,
    0x1000,
    0x10_0000,
    0x7b80_0000,
    0x8000_0000,
    0xfed9_0000,
    0xfee0_0000,
    0xfeef_ffff,
    0xffff_ffff,
    0x1_0000_0000,
    (1 << 46) - 1,
    1 << 46,
    (1 << 52) - 1,
    1 << 63,
    u64::MAX - 0xfff,
    u64::MAX,
];

fn le16(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// The structures, as far as their lengths make sense.
fn structures(table: &[u8]) -> Vec<Vec<u8>> {
    let (mut at, mut found) = (HEADER, Vec::new());
    while at + 4 <= table.len() {
        let len = le16(table, at + 2);
        if len < 4 || at + len > table.len() {
            break;
        }
        found.push(table[at..at + len].to_vec());
        at += len;
    }
    found
}

/// Header and structures as a table, with lengths and checksum that fit.
fn assemble(header: &[u8], structures: &[Vec<u8>]) -> Vec<u8> {
    let mut table = header[..HEADER.min(header.len())].to_vec();
    table.resize(HEADER, 0);
    table.extend(structures.iter().flatten());
    fix(&mut table);
    table
}

fn fix(table: &mut [u8]) {
    let Ok(len) = u32::try_from(table.len()) else { return };
    if table.len() < HEADER {
        return;
    }
    table[4..8].copy_from_slice(&len.to_le_bytes());
    table[9] = 0;
    table[9] = table
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg();
}

/// A structure of a type that has an address at offset 8 (and a limit at 16, if it is long enough).
fn set_addresses(structure: &mut [u8], dice: &mut Random) {
    for at in [8, 16] {
        if structure.len() >= at + 8 && (at == 8 || structure[0] == 1) {
            let base = dice.pick(ADDRESSES);
            structure[at..at + 8].copy_from_slice(&base.to_le_bytes());
        }
    }
}

/// Scope entries of every kind, many of them impossible.
fn scope_list(dice: &mut Random) -> Vec<u8> {
    let mut list = Vec::new();
    for _ in 0..dice.pick([1_usize, 3, 40, 400, 3000]) {
        let hops = dice.pick([0_u8, 1, 1, 1, 2, 3, 124]);
        let kind = dice.pick([1_u8, 1, 2, 2, 3, 4, 5, 6, 0x77]);
        let len = dice.pick([6 + 2 * hops, 6 + 2 * hops, 6 + 2 * hops, 0, 5, 255]);
        list.extend([kind, len, 0, 0, dice.byte(), dice.pick([0_u8, 0, 0, 1, 0x80, 0xff])]);
        for _ in 0..hops {
            let device = dice.byte();
            list.extend([dice.pick([device % 32, device]), dice.pick([0, 0, device % 8, 0xff])]);
        }
    }
    list.truncate(60_000);
    list
}

/// One change to a table.
fn change(table: Vec<u8>, dice: &mut Random) -> Vec<u8> {
    let mut parts = structures(&table);
    let some = |dice: &mut Random, parts: &[Vec<u8>]| dice.index(parts.len());
    let mut table = table;
    match dice.index(13) {
        // Bits anywhere but in the signature and the length.
        0 | 1 => {
            for _ in 0..=dice.index(6) {
                let at = 36 + dice.index(table.len().saturating_sub(36));
                if let Some(byte) = table.get_mut(at) {
                    *byte ^= 1 << dice.index(8);
                }
            }
            if dice.index(4) > 0 {
                fix(&mut table);
            }
            table
        }
        2 => {
            table.truncate(dice.index(table.len()));
            if dice.index(2) == 0 {
                fix(&mut table);
            }
            table
        }
        // The length of a structure.
        3 => {
            if let Some(last) = parts.len().checked_sub(1) {
                let at: usize = HEADER + parts.iter().take(dice.index(last + 1)).map(Vec::len).sum::<usize>();
                let len = dice.pick([0_u16, 1, 3, 4, 8, 15, 16, 17, 24, 0x7fff, 0xffff]);
                table[at + 2..at + 4].copy_from_slice(&len.to_le_bytes());
                fix(&mut table);
            }
            table
        }
        4 => {
            let from = some(dice, &parts);
            if !parts.is_empty() {
                let part = parts.remove(from);
                parts.insert(dice.index(parts.len() + 1), part);
            }
            assemble(&table, &parts)
        }
        5 => {
            for _ in 0..dice.pick([1, 5, 60]) {
                let from = some(dice, &parts);
                parts.extend(parts.get(from).cloned());
            }
            assemble(&table, &parts)
        }
        6 => {
            parts.retain(|_| dice.index(3) > 0);
            assemble(&table, &parts)
        }
        7 => {
            let kind = dice.byte();
            parts.insert(dice.index(parts.len() + 1), vec![kind, 1, 8, 0, 1, 2, 3, 4]);
            assemble(&table, &parts)
        }
        8 => {
            let at = 36.min(table.len() - 1);
            table[at] = dice.pick([0_u8, 1, 11, 12, 20, 30, 31, 32, 38, 51, 52, 63, 64, 255]);
            fix(&mut table);
            table
        }
        9 => {
            for part in parts.iter_mut().filter(|part| part[0] == 1) {
                set_addresses(part, dice);
            }
            assemble(&table, &parts)
        }
        10 => {
            for part in parts.iter_mut().filter(|part| part[0] == 0) {
                if dice.index(2) == 0 {
                    set_addresses(part, dice);
                }
            }
            assemble(&table, &parts)
        }
        // Segments.
        11 => {
            for part in parts.iter_mut().filter(|part| part.len() >= 8 && part[0] < 3) {
                if dice.index(2) == 0 {
                    part[6..8].copy_from_slice(&dice.pick([0_u16, 1, 2, 0xffff]).to_le_bytes());
                }
            }
            assemble(&table, &parts)
        }
        // Scopes of units, or of any structure.
        _ => {
            for part in &mut parts {
                if part.len() >= 16 && part[0] < 2 && dice.index(3) == 0 {
                    part.extend(scope_list(dice));
                    part.truncate(60_000);
                    let len = u16::try_from(part.len()).expect("truncated").to_le_bytes();
                    part[2..4].copy_from_slice(&len);
                    if part[0] == 0 && dice.index(2) == 0 {
                        part[4] &= !1;
                    }
                }
            }
            assemble(&table, &parts)
        }
    }
}

/// Whether a function may reach everything: the whole table can be walked, and no unit of the segment serves the
/// rest, names something of an unknown kind, has a list that cannot be walked, or names the function itself.
fn surely_uncovered(table: &[u8], function: Bdf) -> bool {
    let mut at = HEADER;
    while at + 4 <= table.len() {
        let (kind, len) = (le16(table, at), le16(table, at + 2));
        if len < 4 || at + len > table.len() {
            return false;
        }
        let part = &table[at..at + len];
        at += len;
        if kind != 0 {
            continue;
        }
        if part.len() < 16 {
            return false;
        }
        if Some(le16(part, 6)) != function.segment.firmware().map(usize::from) {
            continue;
        }
        if part[4] & 1 != 0 {
            return false;
        }
        let mut scope = 16;
        while scope < part.len() {
            let rest = &part[scope..];
            if rest.len() < 6 || usize::from(rest[1]) < 6 || usize::from(rest[1]) > rest.len() {
                return false;
            }
            let path = &rest[6..usize::from(rest[1])];
            let named = rest[5] == function.bus()
                && path == [function.devfn().device(), function.devfn().function()]
                && rest[0] < 3;
            if !(1..=5).contains(&rest[0]) || named {
                return false;
            }
            scope += usize::from(rest[1]);
        }
    }
    true
}

/// Writes a marker with the engine of `function`; whether it arrived at host address `at`.
fn reaches(machine: &Machine, function: Bdf, at: HostPhys) -> bool {
    use iommu_types::SystemMemory as _;
    machine.write_u64(at, 0).expect("memory");
    machine.set_command(function, 4, true);
    let _ = machine
        .with_engine(function, |engine, bus| {
            engine.buffer_mut()[..8].copy_from_slice(b"REACHED!");
            engine.store(bus, Iova::new(at.raw()), 0, 8)
        })
        .expect("has an engine");
    machine.read_u64(at).expect("memory") != 0
}

/// Whether a message that names no remapping entry arrives.
fn interrupts(machine: &Machine, function: Bdf) -> bool {
    let _ = machine.take_interrupts();
    let _ = machine
        .with_engine(function, |engine, bus| {
            engine.buffer_mut()[..4].copy_from_slice(&0xe7_u32.to_le_bytes());
            engine.store(bus, Iova::new(0xfee0_0000), 0, 4)
        })
        .expect("has an engine");
    !machine.take_interrupts().is_empty()
}

/// What came of one table, for the test that the cases are worth their time.
#[derive(Debug, Default)]
struct Seen {
    machines: u32,
    refused: u32,
    contained: u32,
    open: u32,
    blocked: u32,
    assigned: u32,
}

/// Brings a machine up and lets everybody reach for memory that is nobody's business of theirs.
fn rehearse(case: u64, table: &[u8], machine: Machine, seen: &mut Seen) {
    let remaps = table[37] & 1 != 0;
    let platform = Platform::bring_up(machine, PlatformOptions::default()).expect("has a table");
    let machine = platform.machine();
    let page = |zone| {
        let pages = machine
            .memory()
            .allocate_pages(PageRequest::contiguous(4096).zone(zone));
        pages.ok().and_then(|pages| pages.at(0))
    };
    let hosts: Vec<HostPhys> = [Zone::Below4G, Zone::Above4G].into_iter().filter_map(page).collect();
    let functions: Vec<_> = machine.functions().filter(|info| info.engine).cloned().collect();
    let nobody_reaches = |when: &str, seen: &mut Seen| {
        for info in &functions {
            let function = info.bdf;
            let open = surely_uncovered(table, function);
            for at in hosts.iter().filter(|at| info.dma_bits == 64 || at.raw() >> 32 == 0) {
                let reached = reaches(machine, function, *at);
                assert!(
                    open || !reached,
                    "case {case}: {function} ({}) reached {at} {when}",
                    info.service
                );
                if reached {
                    seen.open += 1;
                } else if info.service.unit().is_some() {
                    seen.contained += 1;
                } else {
                    seen.blocked += 1;
                }
            }
            assert!(
                open || !remaps || !interrupts(machine, function),
                "case {case}: {function} ({}) raised an interrupt {when}",
                info.service
            );
        }
    };
    nobody_reaches("while the host has it", seen);

    // A guest, where there can be one: what it gets is its own and nothing else.
    let user = platform.user("guest");
    for info in functions.iter().take(4) {
        let Some(group) = platform.group_of(info.bdf) else {
            continue;
        };
        for member in &group.members {
            let _ = platform.bind(*member, Driver::Vfio);
        }
        let Ok(group) = platform
            .open_group(group.id)
            .and_then(|group| group.viable().map_err(Into::into))
        else {
            continue;
        };
        let mut container = Container::new(&platform, user);
        let Ok(()) = container.attach(group).map(drop) else {
            continue;
        };
        let Ok(container) = container.set_iommu() else { continue };
        let Ok(memory) = platform.allocate(user, PageRequest::contiguous(4096)) else {
            continue;
        };
        // A guest address that is no host page of anybody.
        let iova = Iova::new(0xc800_0000);
        if container.dma_map(iova, &memory, 0, 4096, Perms::READ_WRITE).is_ok() {
            seen.assigned += 1;
            nobody_reaches("while a guest has something", seen);
            container.dma_unmap(iova, 4096).expect("was mapped");
        }
    }
}

#[test]
fn no_table_panics_hangs_or_opens_a_function_that_it_leaves_in_doubt() {
    let description = MachineDescription::two_socket().expect("sound");
    let sound = description.to_dmar().expect("fits");
    let mut seen = Seen::default();
    for case in 0..CASES {
        let mut dice = Random((case + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut table = sound.clone();
        for _ in 0..dice.pick([1, 1, 1, 2, 4]) {
            if table.len() > HEADER {
                table = change(table, &mut dice);
            }
        }
        let start = Instant::now();
        // The machine as it is under a table that is wrong, and the machine that such a table would imply.
        let known = Machine::build(&description, &table);
        let implied = Machine::from_dmar(&table, MachineOptions::default()).map(|(machine, _)| machine);
        for machine in [known, implied] {
            match machine {
                Ok(machine) => {
                    seen.machines += 1;
                    rehearse(case, &table, machine, &mut seen);
                }
                Err(why) => {
                    seen.refused += 1;
                    assert!(!why.to_string().is_empty(), "case {case}");
                }
            }
        }
        assert!(start.elapsed() < PATIENCE, "case {case} took {:?}", start.elapsed());
    }
    // Every kind of end is among the cases.
    assert!(seen.machines > 300 && seen.refused > 10, "{seen:?}");
    assert!(
        seen.contained > 1000 && seen.blocked > 100 && seen.open > 100 && seen.assigned > 100,
        "{seen:?}"
    );
}
