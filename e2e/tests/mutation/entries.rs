//! Root, context and PASID entries: who is let to which domain.

use iommu_types::{HostPhys, Iova, SystemMemory};
use vtd_driver::{DomainError, DomainOptions, PassThrough, Requester, Unit, UnitOptions};
use vtd_spec::register::offset;

use crate::machine::Machine;
use crate::rig::{
    How, Miss, Must, Verdict, blocked, board, clean, ensure, map, miss, reaches, rig, scalable, scalable_board,
    silicon, source, up,
};

pub(crate) fn a_detached_device_is_blocked() -> Verdict {
    let machine = board(silicon());
    let rig = rig(&machine, DomainOptions::default())?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    rig.unit.detach(&rig.nic).must()?;
    rig.blocked(0x1000)?;
    clean(&machine)
}

pub(crate) fn a_device_that_moves_reaches_its_new_domain_only() -> Verdict {
    let machine = scalable_board(scalable());
    let rig = rig(&machine, DomainOptions::default())?;
    let other = rig.unit.create_domain(DomainOptions::default()).must()?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    map(&other, 0x1000, 0xa000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    rig.unit.detach(&rig.nic).must()?;
    rig.unit.attach(&rig.nic, &other).must()?;
    rig.reaches(0x1000, 0xa000)?;
    clean(&machine)
}

pub(crate) fn a_busy_device_that_moves_takes_nothing_along() -> Verdict {
    let machine = scalable_board(scalable());
    let rig = rig(&machine, DomainOptions::default())?;
    let other = rig.unit.create_domain(DomainOptions::default()).must()?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    map(&other, 0x1000, 0xa000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    // As long as the context entry is cached, each of its requests fills the PASID cache again.
    machine.busy.set(Some((rig.nic.rid, Iova::new(0x1000))));
    machine.reorders.set(true);
    rig.unit.detach(&rig.nic).must()?;
    machine.busy.set(None);
    rig.unit.attach(&rig.nic, &other).must()?;
    rig.reaches(0x1000, 0xa000)?;
    clean(&machine)
}

pub(crate) fn an_identifier_that_comes_back_brings_nothing() -> Verdict {
    let machine = board(silicon().domain_id_bits(4));
    let unit = up(&machine)?;
    let first = unit.create_domain(DomainOptions::default()).must()?;
    let id = first.id();
    let nic = Requester::new(source("02:00.0"));
    unit.attach(&nic, &first).must()?;
    map(&first, 0x1000, 0x9000, 0x1000)?;
    reaches(&machine, nic.rid, 0x1000, 0x9000)?;
    unit.detach(&nic).must()?;
    first.destroy().must()?;
    // Identifiers rotate: all others come first.
    let mut others = Vec::new();
    let again = loop {
        let domain = unit.create_domain(DomainOptions::default()).must()?;
        if domain.id() == id {
            break domain;
        }
        others.push(domain);
    };
    unit.attach(&nic, &again).must()?;
    blocked(&machine, nic.rid, 0x1000)?;
    clean(&machine)
}

/// The context entry of 02:00.0, found with plain shifts.
fn context_entry(machine: &Machine) -> Result<HostPhys, Miss> {
    let root = machine.register64(offset::RTADDR) & !0xfff;
    let [entry] = machine.memory.read_words(HostPhys::new(root + 2 * 16)).must()?;
    Ok(HostPhys::new(entry & !0xfff))
}

pub(crate) fn an_entry_is_whole_or_absent() -> Verdict {
    let machine = board(silicon());
    let rig = rig(&machine, DomainOptions::default())?;
    let at = context_entry(&machine)?;
    let present: [u64; 2] = machine.memory.read_words(at).must()?;
    ensure(present[0] & 1 == 1, How::Words, "the entry is present")?;
    machine.watch.set(Some(at));
    machine.take_watched();
    rig.unit.detach(&rig.nic).must()?;
    // Hardware that has read the first word already reads the second one beside it: it must still be there.
    let absent = [present[0] & !1, present[1]];
    let seen = machine.take_watched();
    ensure(
        seen.iter().all(|words| *words == absent),
        How::Words,
        format_args!("at the doorbell the entry holds {seen:x?}, not {absent:x?}"),
    )?;
    ensure(
        machine.memory.read_words(at) == Ok([0, 0]),
        How::Words,
        "nothing is left of the entry afterwards",
    )
}

pub(crate) fn a_device_seen_before_is_let_through_once_attached() -> Verdict {
    let machine = board(silicon().caching_mode(true));
    let unit = up(&machine)?;
    let domain = unit.create_domain(DomainOptions::default()).must()?;
    map(&domain, 0x1000, 0x9000, 0x1000)?;
    let nic = Requester::new(source("02:00.0"));
    blocked(&machine, nic.rid, 0x1000)?;
    unit.attach(&nic, &domain).must()?;
    reaches(&machine, nic.rid, 0x1000, 0x9000)?;
    clean(&machine)
}

pub(crate) fn two_domains_do_not_mix() -> Verdict {
    let machine = board(silicon());
    let rig = rig(&machine, DomainOptions::default())?;
    let other = rig.unit.create_domain(DomainOptions::default()).must()?;
    let disk = Requester::new(source("03:00.0"));
    rig.unit.attach(&disk, &other).must()?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    map(&other, 0x1000, 0xa000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    reaches(&machine, disk.rid, 0x1000, 0xa000)?;
    clean(&machine)
}

pub(crate) fn identifiers_end_where_the_unit_ends() -> Verdict {
    // 16 identifiers, of which 0 is not used.
    let machine = board(silicon().domain_id_bits(4));
    let rig = rig(&machine, DomainOptions::default())?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    let mut domains = Vec::new();
    let refused = loop {
        match rig.unit.create_domain(DomainOptions::default()) {
            Ok(domain) => domains.push(domain),
            Err(error) => break Some(error),
        }
        if domains.len() == 16 {
            break None;
        }
    };
    if let Some(refused) = refused {
        return ensure(refused == DomainError::OutOfIds { usable: 15 }, How::Allowed, refused);
    }
    // What a unit that looks at four bits makes of the identifier that is too large.
    let disk = Requester::new(source("03:00.0"));
    for domain in domains.iter().filter(|domain| domain.id().0 > 15) {
        let at = u64::from(domain.id().0) << 12;
        map(domain, at, 0x10_0000 + at, 0x1000)?;
        rig.unit.attach(&disk, domain).must()?;
        reaches(&machine, disk.rid, at, 0x10_0000 + at)?;
        let pending = domain.unmap(crate::machine::range(at, 0x1000), ()).must()?;
        domain.flush(pending).map_err(|(error, _)| error).must()?;
        blocked(&machine, disk.rid, at)?;
        rig.unit.detach(&disk).must()?;
    }
    miss(How::Allowed, "there are more identifiers than the unit has")
}

pub(crate) fn zero_names_no_domain() -> Verdict {
    // VT-d §6.1: in caching mode, what is cached about entries that are not present carries identifier 0.
    let machine = board(silicon().caching_mode(true));
    let rig = rig(&machine, DomainOptions::default())?;
    ensure(rig.domain.id().0 != 0, How::Words, "a domain carries identifier 0")
}

pub(crate) fn a_unit_that_does_not_snoop_sees_entries() -> Verdict {
    let machine = board(silicon().coherent(false));
    let rig = rig(&machine, DomainOptions::default())?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    clean(&machine)
}

pub(crate) fn every_alias_is_let_through() -> Verdict {
    let machine = board(silicon());
    let rig = rig(&machine, DomainOptions::default())?;
    let bridge = source("04:00.0");
    let card = Requester::with_aliases(source("05:00.0"), [bridge]);
    rig.unit.attach(&card, &rig.domain).must()?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    reaches(&machine, card.rid, 0x1000, 0x9000)?;
    reaches(&machine, bridge, 0x1000, 0x9000)?;
    rig.unit.detach(&card).must()?;
    blocked(&machine, card.rid, 0x1000)?;
    blocked(&machine, bridge, 0x1000)
}

pub(crate) fn a_unit_with_three_levels_translates() -> Verdict {
    let machine = board(silicon().four_levels(false));
    let rig = rig(&machine, DomainOptions::default())?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    clean(&machine)
}

pub(crate) fn pass_through_names_the_widest_tables() -> Verdict {
    let machine = board(silicon().five_levels(true));
    let options = UnitOptions {
        pass_through: PassThrough::AllowedForTrustedDevices,
        ..machine.options()
    };
    let unit = Unit::found(&machine, &machine, options).must()?;
    let unit = unit.take_over().map_err(|error| error.cause).must()?;
    let unit = unit.enable().map_err(|error| error.cause).must()?;
    unit.attach_pass_through(&Requester::new(source("02:00.0"))).must()?;
    let high = Iova::new(1 << 34);
    reaches(&machine, source("02:00.0"), high.raw(), high.raw())?;
    let [low, high] = machine.memory.read_words(context_entry(&machine)?).must()?;
    // TT 10, AW 011 (VT-d §9.3): the largest that SAGAW names.
    ensure(
        (low & 0xf, high & 7) == (0b1001, 3),
        How::Words,
        format_args!("the entry is {low:#x} {high:#x}"),
    )
}
