//! Commands, the queue, take-over: the protocol between driver and unit.

use iommu_types::{HostPhys, Iova, Perms};
use vtd_driver::{DomainOptions, Ioas, Requester};

use crate::machine::{Machine, range};
use crate::rig::{How, Must, Verdict, blocked, board, clean, ensure, map, reaches, rig, silicon, source, up};

pub(crate) fn the_previous_owners_mappings_are_gone() -> Verdict {
    let machine = board(silicon());
    let nic = Requester::new(source("02:00.0"));
    {
        let old = up(&machine)?;
        let domain = old.create_domain(DomainOptions::default()).must()?;
        map(&domain, 0x1000, 0x9000, 0x1000)?;
        old.attach(&nic, &domain).must()?;
        reaches(&machine, nic.rid, 0x1000, 0x9000)?;
    }
    let _unit = up(&machine)?;
    blocked(&machine, nic.rid, 0x1000)?;
    clean(&machine)
}

pub(crate) fn what_lies_in_write_buffers_is_seen() -> Verdict {
    let config = silicon().write_buffer_flush(true).build().expect("a possible unit");
    let machine = Machine::with_write_buffers(config);
    let rig = rig(&machine, DomainOptions::default())?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    clean(&machine)
}

pub(crate) fn a_late_status_write_confirms_nothing_else() -> Verdict {
    let machine = board(silicon());
    let rig = rig(&machine, DomainOptions::default())?;
    for (at, phys) in [(0x1000, 0x9000), (0x8000, 0xa000)] {
        rig.map(at, phys, 0x1000)?;
        rig.reaches(at, phys)?;
    }
    let first = rig.domain.unmap(range(0x1000, 0x1000), ()).must()?;
    machine.frozen.set(true);
    let given_up = rig.domain.flush(first);
    machine.frozen.set(false);
    ensure(
        given_up.is_err(),
        How::Allowed,
        "a unit that stands still confirms nothing",
    )?;
    // Its wait is still in the ring, and is carried out now.
    let second = rig.domain.unmap(range(0x8000, 0x1000), ()).must()?;
    match rig.domain.flush(second) {
        // A token that is kept is no harm: its addresses are not used.
        Err(_) => Ok(()),
        Ok(()) => rig.blocked(0x8000),
    }
}

pub(crate) fn a_unit_that_is_stuck_does_not_keep_the_others_from_flushing() -> Verdict {
    let (stuck, other) = (board(silicon()), board(silicon()));
    let units = [up(&stuck)?, up(&other)?];
    let nic = Requester::new(source("02:00.0"));
    let guest = Ioas::new(DomainOptions::default());
    guest
        .map(Iova::new(0x1000), HostPhys::new(0x9000), 0x1000, Perms::READ)
        .must()?;
    for unit in &units {
        guest.attach(unit, &nic).must()?;
    }
    reaches(&other, nic.rid, 0x1000, 0x9000)?;
    let pending = guest.unmap(range(0x1000, 0x1000), ()).must()?;
    stuck.frozen.set(true);
    let flushed = guest.flush(pending);
    ensure(flushed.is_err(), How::Allowed, "one unit has not confirmed")?;
    blocked(&other, nic.rid, 0x1000)?;
    clean(&other)
}

pub(crate) fn fetched_is_not_carried_out() -> Verdict {
    let machine = board(silicon());
    let rig = rig(&machine, DomainOptions::default())?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    rig.reaches(0x1000, 0x9000)?;
    machine.fetches_ahead.set(true);
    rig.unmap(0x1000, 0x1000)?;
    rig.blocked(0x1000)?;
    clean(&machine)
}

pub(crate) fn each_command_is_one_command() -> Verdict {
    let machine = board(silicon());
    let unit = up(&machine);
    clean(&machine)?;
    unit.map(drop)
}

pub(crate) fn commands_wait_for_each_other() -> Verdict {
    let config = silicon().write_buffer_flush(true).build().expect("a possible unit");
    let machine = Machine::with_write_buffers(config);
    let rig = rig(&machine, DomainOptions::default());
    clean(&machine)?;
    let rig = rig?;
    rig.map(0x1000, 0x9000, 0x1000)?;
    rig.map(0x2000, 0xa000, 0x1000)?;
    clean(&machine)
}
