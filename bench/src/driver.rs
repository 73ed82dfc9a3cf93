//! B6: mapping one page and unmapping it again, through the driver and through its page tables alone.

use std::hint::black_box;

use iommu_types::{AddrRange, HostPhys, Iova, Perms};
use soft_platform::{Machine, MachineDescription};
use vtd_driver::{DomainOptions, Unit, UnitOptions};

use crate::pair::compare;
use crate::peers::{LockedMap, PAGE, X86Tables};
use crate::row::Row;

/// Pages that the batches walk through.
const PAGES: u64 = 512;
const BASE: u64 = 0x4000_0000;

const fn iova(turn: u64) -> u64 {
    BASE + (turn % PAGES) * PAGE
}

/// Runs the comparisons; says why there are none if the machine cannot be made.
pub(crate) fn rows(quick: bool) -> Vec<Row> {
    measure(quick).unwrap_or_else(|why| {
        eprintln!("B6 was not measured: {why}");
        Vec::new()
    })
}

fn measure(quick: bool) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let description = MachineDescription::two_socket()?;
    let machine = Machine::build(&description, &description.to_dmar()?)?;
    let registers = machine.registers(0).ok_or("the machine has no unit")?;
    let unit = Unit::found(registers, machine.clone(), UnitOptions::default())?;
    let unit = unit
        .take_over()
        .map_err(|error| error.cause)?
        .enable()
        .map_err(|error| error.cause)?;
    let domain = unit.create_domain(DomainOptions::default())?;
    // A page that stays, so that tables above the leaf are not built and freed every time.
    domain.map(Iova::new(BASE - PAGE), HostPhys::new(0), PAGE, Perms::READ_WRITE)?;
    domain.map(
        Iova::new(BASE + PAGES * PAGE),
        HostPhys::new(0),
        PAGE,
        Perms::READ_WRITE,
    )?;

    let mut failed = 0_u64;
    let mut strict = |turns: u64| {
        for turn in 0..turns {
            let at = Iova::new(iova(turn));
            let mapped = domain
                .map(at, HostPhys::new(0x10_0000), PAGE, Perms::READ_WRITE)
                .is_ok();
            let done = AddrRange::from_base_len(at, PAGE)
                .and_then(|range| domain.unmap(range, ()).ok())
                .is_some_and(|pending| domain.flush(pending).is_ok());
            failed += u64::from(!(mapped && done));
        }
    };
    let mut tables = X86Tables::new();
    let against_tables = compare(quick, &mut strict, &mut |turns| {
        for turn in 0..turns {
            tables.map_unmap(black_box(iova(turn)), 0x10_0000);
        }
    });
    let map = LockedMap::new(0, |page| page);
    let against_map = compare(quick, &mut strict, &mut |turns| {
        for turn in 0..turns {
            map.map_unmap(black_box(iova(turn)), 0x10_0000);
        }
    });
    if failed > 0 {
        return Err(format!("{failed} operations failed").into());
    }
    let case = || "map + unmap + confirmed flush, one page, driver on model".to_owned();
    Ok(vec![
        Row::reported("B6", case(), &against_tables, "x86_64 crate (no invalidation)"),
        Row::reported("B6", case(), &against_map, "RwLock<BTreeMap> (no tables)"),
    ])
}
