//! Mappings: what is unmapped is gone, and its tables with it.

use vtd_driver::{DomainOptions, Requester};

use crate::machine::range;
use crate::rig::{How, Must, Verdict, board, clean, ensure, map, pages, rig, silicon, small_pages, source};

/// What one table of the lowest level translates.
const TABLE: u64 = 0x20_0000;

pub(crate) fn a_page_seen_before_is_usable_once_mapped() -> Verdict {
    let machine = board(silicon().caching_mode(true));
    let rig = rig(&machine, DomainOptions::default())?;
    rig.blocked(0x1000)?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    clean(&machine)
}

pub(crate) fn a_lease_comes_back_when_nobody_uses_it() -> Verdict {
    let machine = board(silicon());
    let rig = rig(&machine, DomainOptions::default())?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    rig.unmap(0x1000, 0x1000)?;
    rig.blocked(0x1000)?;
    clean(&machine)
}

pub(crate) fn a_table_is_not_another_domains_while_it_is_walked() -> Verdict {
    const SECRET: u64 = 0x70_0000;
    let machine = board(silicon());
    let rig = rig(&machine, small_pages())?;
    let other = rig.unit.create_domain(small_pages()).must()?;
    // Nobody is attached there: only its tables can lead to it.
    let disk = Requester::new(source("03:00.0"));
    rig.unit.attach(&disk, &other).must()?;
    rig.map(TABLE, 0x100_0000, TABLE)?;
    rig.reaches(TABLE, 0x100_0000)?;
    let pending = rig.domain.unmap(range(TABLE, TABLE), ()).must()?;
    // As long as nothing is flushed the unit may walk the old table: it must not be anybody's.
    for index in 0..4 {
        map(&other, index << 30, SECRET, 0x1000)?;
    }
    for page in 0..4 {
        if let Ok(reached) = machine.dma(
            rig.nic.rid,
            iommu_types::Iova::new(TABLE + pages(page)),
            iommu_types::Access::Read,
        ) {
            ensure(
                reached.raw() == 0x100_0000 + pages(page),
                How::Reached,
                format_args!("{reached} is another domain's"),
            )?;
        }
    }
    rig.domain.flush(pending).map_err(|(error, _)| error).must()?;
    rig.blocked(TABLE)?;
    clean(&machine)
}

pub(crate) fn the_last_page_of_an_unaligned_range_goes_too() -> Verdict {
    // Too many pieces to be exact, and a multiple of 1024 pages inside: only a block of 4096 pages covers it.
    let (first, count) = (0x601, 0x3fe);
    let machine = board(silicon());
    let rig = rig(&machine, small_pages())?;
    rig.map(pages(first), 0x100_0000, pages(count))?;
    for page in [0, 1, 0x200, count - 1] {
        rig.reaches(pages(first + page), 0x100_0000 + pages(page))?;
    }
    rig.unmap(pages(first), pages(count))?;
    for page in [0, 1, 0x200, count - 1] {
        rig.blocked(pages(first + page))?;
    }
    clean(&machine)
}

pub(crate) fn a_superpage_takes_the_place_of_a_table() -> Verdict {
    let machine = board(silicon());
    let rig = rig(&machine, DomainOptions::default())?;
    let ends = [TABLE, 2 * TABLE - 0x1000];
    for at in ends {
        rig.map(at, 0x9000, 0x1000)?;
        rig.reaches(at, 0x9000)?;
    }
    for at in ends {
        rig.unmap(at, 0x1000)?;
    }
    // The empty table is still cached as the way to its pages.
    let pending = rig.domain.prune(range(TABLE, TABLE), ()).must()?;
    rig.domain.flush(pending).map_err(|(error, _)| error).must()?;
    rig.map(TABLE, 0x4000_0000, TABLE)?;
    for at in ends {
        rig.reaches(at, 0x4000_0000 + at - TABLE)?;
    }
    clean(&machine)
}

pub(crate) fn a_new_table_is_walked_after_the_old_one_went() -> Verdict {
    let machine = board(silicon());
    let rig = rig(&machine, small_pages())?;
    rig.map(TABLE, 0x100_0000, TABLE)?;
    rig.reaches(TABLE, 0x100_0000)?;
    // All pages of the table: it goes with them.
    rig.unmap(TABLE, TABLE)?;
    rig.blocked(TABLE)?;
    // Somebody else has its frame before the address is mapped again.
    let other = rig.unit.create_domain(small_pages()).must()?;
    map(&other, TABLE, 0x70_0000, 0x1000)?;
    rig.map(TABLE, 0x200_0000, 0x1000)?;
    rig.reaches(TABLE, 0x200_0000)?;
    clean(&machine)
}

pub(crate) fn superpages_go_as_a_whole() -> Verdict {
    let machine = board(silicon());
    let rig = rig(&machine, DomainOptions::default())?;
    let parts = [0, TABLE + 0x5000, 3 * TABLE + 0x1f_f000];
    rig.map(2 * TABLE, 0x4000_0000, 4 * TABLE)?;
    for part in parts {
        rig.reaches(2 * TABLE + part, 0x4000_0000 + part)?;
    }
    rig.unmap(2 * TABLE, 4 * TABLE)?;
    for part in parts {
        rig.blocked(2 * TABLE + part)?;
    }
    clean(&machine)
}
