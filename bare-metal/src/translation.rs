//! Checks of DMA inside and outside of mappings.

use alloc::vec::Vec;

use iommu_types::{AddrRange, HostPhys, Iova, PAGE_SIZE, PageSize, Perms};
use vtd_driver::{DomainOptions, EventMessage};
use vtd_spec::fault::FaultReason;
use vtd_spec::message::event_xapic_message;
use vtd_spec::register::FaultedRequest;

use crate::edu::TRANSFER;
use crate::memory::{BOARD, BUFFERS, LARGE};
use crate::rig::{Checked, Rig, ensure, page, text};

/// A check by its name.
pub(crate) type Check = (&'static str, fn(&Rig<'_>) -> Checked);

/// In the order in which they run, on one attached device.
pub(crate) const CHECKS: &[Check] = &[
    ("a device reads and writes mapped pages", both_directions),
    ("high addresses are translated", high_addresses),
    ("neighbouring pages go to different frames", neighbours),
    ("a write to a read-only page is blocked", read_only),
    ("a write outside of mappings is blocked", write_outside),
    ("a read outside of mappings brings no data", read_outside),
    ("a transfer that leaves a mapping is blocked from there", leaving),
    ("a stale translation is used until the flush, not after", until_flushed),
    ("an address mapped again leads to the new frame", mapped_again),
    ("one flush ends many mappings", flushed_together),
    ("a 2 MiB page is used and unmapped whole", large_page),
    ("a table is replaced by a 2 MiB page", table_replaced),
    ("a 1 GiB page is used", huge_page),
    ("a fault raises the unit's event", fault_event),
    ("a silenced device is blocked without record", silenced),
    ("a detached device is blocked, attached again it works", detached),
    ("a device moved to another domain sees that domain only", moved),
    (
        "a device on another bus shares the domain while it is attached",
        on_another_bus,
    ),
];

const fn at(page: u64) -> Iova {
    Iova::new(0x1001_0000 + page * PAGE_SIZE)
}

fn both_directions(rig: &Rig<'_>) -> Checked {
    rig.map(at(1), 1, Perms::READ_WRITE)?;
    rig.lands(0x11, at(1), 1)
}

/// Near the end of the domain, through its whole depth of tables; 47 bits at most, as the first stage has them.
fn high_addresses(rig: &Rig<'_>) -> Checked {
    let last = rig.domain.aperture().last().raw().min((1 << 47) - 1);
    let high = Iova::new(last - 3 * PAGE_SIZE).page();
    rig.map(high, 2, Perms::READ_WRITE)?;
    rig.lands(0x12, high, 2)?;
    rig.unmap(page(high))?;
    rig.write_blocked(high, 2, rig.expected.unmapped_write)
}

fn neighbours(rig: &Rig<'_>) -> Checked {
    let buffers = [9, 4, 7, 5];
    for (number, buffer) in (0..).zip(buffers) {
        rig.map(at(8 + number), buffer, Perms::READ_WRITE)?;
    }
    for (number, buffer) in (0..).zip(buffers) {
        rig.lands(0x40 + number, at(8 + number), buffer)?;
    }
    for (number, buffer) in (0u64..).zip(buffers) {
        let arrived = BUFFERS.holds(buffer, 0x40 + number, TRANSFER);
        ensure(arrived, "a page was overwritten through another one's address")?;
    }
    let range = AddrRange::from_base_len(at(8), 4 * PAGE_SIZE).ok_or("no range")?;
    rig.unmap(range)
}

fn read_only(rig: &Rig<'_>) -> Checked {
    rig.map(at(2), 2, Perms::READ)?;
    rig.load(0x13)?;
    // Nothing was read through the page before: the unit has to look at its permissions.
    rig.write_blocked(at(2), 2, rig.expected.write_denied)?;
    BUFFERS.fill(2, 0x14);
    rig.read(at(2))?;
    rig.no_fault()?;
    rig.write(at(1))?;
    ensure(BUFFERS.holds(1, 0x14, TRANSFER), "the read-only page was not read")
}

fn write_outside(rig: &Rig<'_>) -> Checked {
    rig.load(0x15)?;
    // The frame's own address, as a device would use that knows it.
    let physical = Iova::new(BUFFERS.at(3).raw());
    rig.write_blocked(physical, 3, rig.expected.unmapped_write)?;
    rig.write_blocked(at(100), 3, rig.expected.unmapped_write)
}

fn read_outside(rig: &Rig<'_>) -> Checked {
    BUFFERS.fill(3, 0x5ec);
    rig.load(0x16)?;
    let physical = Iova::new(BUFFERS.at(3).raw());
    rig.read(physical)?;
    rig.faulted(physical, FaultedRequest::Read, rig.expected.unmapped_read)?;
    rig.write(at(1))?;
    rig.no_fault()?;
    ensure(
        !BUFFERS.holds(1, 0x5ec, 8),
        "the device got data from outside of its mappings",
    )
}

fn leaving(rig: &Rig<'_>) -> Checked {
    // The frames are neighbours, the mapping is of the first only.
    rig.load(0x17)?;
    BUFFERS.fill(2, 0x18);
    let half_in = Iova::new(at(4).raw() + PAGE_SIZE / 2);
    rig.map(at(4), 1, Perms::READ_WRITE)?;
    rig.write(half_in)?;
    rig.faulted(at(5), FaultedRequest::Write, rig.expected.unmapped_write)?;
    ensure(
        BUFFERS.holds(2, 0x18, PAGE_SIZE),
        "the frame behind the mapping was written",
    )?;
    rig.unmap(page(at(4)))
}

/// That the unit caches is no duty of it. It shows that the flush is what ends the access.
fn until_flushed(rig: &Rig<'_>) -> Checked {
    rig.map(at(3), 3, Perms::READ_WRITE)?;
    rig.lands(0x19, at(3), 3)?;
    let range = page(at(3));
    let pending = rig.domain.unmap(range, 7).map_err(|refused| text(refused.error))?;
    BUFFERS.fill(3, 0);
    rig.write(at(3))?;
    rig.no_fault()?;
    let cached = BUFFERS.holds(3, 0x19, TRANSFER);
    let lease = rig.domain.flush(pending).map_err(|(error, _)| text(error))?;
    ensure(lease == 7, "another lease came back")?;
    rig.write_blocked(at(3), 3, rig.expected.unmapped_write)?;
    ensure(cached, "this unit does not cache, so flushes are not judged")
}

fn mapped_again(rig: &Rig<'_>) -> Checked {
    rig.map(at(3), 3, Perms::READ_WRITE)?;
    rig.lands(0x1a, at(3), 3)?;
    rig.unmap(page(at(3)))?;
    rig.map(at(3), 4, Perms::READ_WRITE)?;
    BUFFERS.fill(3, 0x1b);
    rig.lands(0x1c, at(3), 4)?;
    ensure(BUFFERS.holds(3, 0x1b, PAGE_SIZE), "the old frame was written")?;
    rig.unmap(page(at(3)))
}

fn flushed_together(rig: &Rig<'_>) -> Checked {
    let mut pending = Vec::new();
    for number in 16..20 {
        rig.map(at(number), 5, Perms::READ_WRITE)?;
        rig.lands(0x50 + number, at(number), 5)?;
        let token = rig.domain.unmap(page(at(number)), number);
        pending.push(token.map_err(|refused| text(refused.error))?);
    }
    let leases = rig.domain.flush_all(pending).map_err(|(error, _)| text(error))?;
    ensure(leases == [16, 17, 18, 19], "other leases came back")?;
    for number in 16..20 {
        rig.write_blocked(at(number), 5, rig.expected.unmapped_write)?;
    }
    Ok(())
}

const LARGE_AT: Iova = Iova::new(0x1100_0000);
const LARGE_LEN: u64 = 2 << 20;

/// First and last page of the 2 MiB page are written; then it goes, and both are blocked.
fn large_page(rig: &Rig<'_>) -> Checked {
    let tables = BOARD.table_pages();
    rig.domain
        .map(LARGE_AT, LARGE.0.at(0), LARGE_LEN, Perms::READ_WRITE)
        .map_err(text)?;
    ensure(BOARD.table_pages() == tables, "it was mapped by small pages")?;
    large_page_ends(rig, 0x21)
}

fn large_page_ends(rig: &Rig<'_>, seed: u64) -> Checked {
    let ends = [(LARGE_AT, 0), (Iova::new(LARGE_AT.raw() + LARGE_LEN - PAGE_SIZE), 511)];
    for (to, index) in ends {
        LARGE.0.fill(index, 0);
        rig.load(seed)?;
        rig.write(to)?;
        rig.no_fault()?;
        ensure(
            LARGE.0.holds(index, seed, TRANSFER),
            "the write is not in the 2 MiB page",
        )?;
    }
    rig.unmap(AddrRange::from_base_len(LARGE_AT, LARGE_LEN).ok_or("no range")?)?;
    for (to, index) in ends {
        LARGE.0.fill(index, 2);
        rig.write(to)?;
        rig.faulted(to, FaultedRequest::Write, rig.expected.unmapped_write)?;
        ensure(LARGE.0.holds(index, 2, PAGE_SIZE), "a blocked write changed memory")?;
    }
    Ok(())
}

/// Small pages, then a large one at the same address: the unit must not walk the old table any more.
fn table_replaced(rig: &Rig<'_>) -> Checked {
    rig.map(LARGE_AT, 6, Perms::READ_WRITE)?;
    rig.lands(0x22, LARGE_AT, 6)?;
    rig.unmap(page(LARGE_AT))?;
    let range = AddrRange::from_base_len(LARGE_AT, LARGE_LEN).ok_or("no range")?;
    let pending = rig.domain.prune(range, ()).map_err(|refused| text(refused.error))?;
    rig.domain.flush(pending).map_err(|(error, _)| text(error))?;
    BUFFERS.fill(6, 3);
    rig.domain
        .map(LARGE_AT, LARGE.0.at(0), LARGE_LEN, Perms::READ_WRITE)
        .map_err(text)?;
    large_page_ends(rig, 0x23)?;
    ensure(
        BUFFERS.holds(6, 3, PAGE_SIZE),
        "the frame of the small page was written",
    )
}

/// All of low memory, for reading.
fn huge_page(rig: &Rig<'_>) -> Checked {
    let huge = Iova::new(0x40_0000_0000);
    let len = PageSize::Size1G.bytes();
    let tables = BOARD.table_pages();
    rig.domain.map(huge, HostPhys::new(0), len, Perms::READ).map_err(text)?;
    // At most one table each for the third and the second level.
    ensure(BOARD.table_pages() <= tables + 2, "it was mapped by smaller pages")?;
    BUFFERS.fill(7, 0x24);
    rig.read(Iova::new(huge.raw() + BUFFERS.at(7).raw()))?;
    rig.no_fault()?;
    rig.write(at(1))?;
    ensure(BUFFERS.holds(1, 0x24, TRANSFER), "the page was not read")?;
    rig.unmap(AddrRange::from_base_len(huge, len).ok_or("no range")?)?;
    let inside = Iova::new(huge.raw() + BUFFERS.at(7).raw());
    rig.write_blocked(inside, 7, rig.expected.unmapped_write)
}

/// Two faults, each with an event of its own.
fn fault_event(rig: &Rig<'_>) -> Checked {
    let program = |vector| {
        let (address, data) = event_xapic_message(rig.apic.id(), vector);
        rig.unit.set_fault_event(Some(EventMessage {
            address: address.into(),
            data: data.raw_value(),
        }));
    };
    // QEMU keeps an event pending whose faults were cleared while it was masked, and sends it when it is unmasked.
    program(0x40);
    for vector in [0x41, 0x42] {
        program(vector);
        ensure(!rig.apic.requested(vector), "the event came before the fault")?;
        rig.write_blocked(at(100), 3, rig.expected.unmapped_write)?;
        ensure(rig.apic.requested(vector), "the fault raised no event")?;
    }
    rig.unit.set_fault_event(None);
    Ok(())
}

fn silenced(rig: &Rig<'_>) -> Checked {
    rig.unit.silence(&rig.requester(), true).map_err(text)?;
    BUFFERS.fill(3, 4);
    rig.write(Iova::new(BUFFERS.at(3).raw()))?;
    rig.no_fault()?;
    ensure(BUFFERS.holds(3, 4, PAGE_SIZE), "a blocked write changed memory")?;
    rig.unit.silence(&rig.requester(), false).map_err(text)?;
    rig.write_blocked(at(100), 3, rig.expected.unmapped_write)
}

fn detached(rig: &Rig<'_>) -> Checked {
    rig.lands(0x25, at(1), 1)?;
    rig.unit.detach(&rig.requester()).map_err(text)?;
    rig.write_blocked(at(1), 1, FaultReason::CONTEXT_NOT_PRESENT)?;
    rig.unit.attach(&rig.requester(), rig.domain).map_err(text)?;
    rig.lands(0x26, at(1), 1)
}

fn moved(rig: &Rig<'_>) -> Checked {
    let options = DomainOptions {
        stage: rig.expected.stage,
        ..DomainOptions::default()
    };
    rig.lands(0x27, at(1), 1)?;
    let other = rig.unit.create_domain(options).map_err(text)?;
    let there = Rig { domain: &other, ..*rig };
    there.map(crate::rig::SOURCE, 0, Perms::READ_WRITE)?;
    there.map(at(7), 7, Perms::READ_WRITE)?;
    rig.unit.detach(&rig.requester()).map_err(text)?;
    rig.unit.attach(&rig.requester(), &other).map_err(text)?;
    there.lands(0x28, at(7), 7)?;
    there.write_blocked(at(1), 1, rig.expected.unmapped_write)?;
    rig.unit.detach(&rig.requester()).map_err(text)?;
    other.destroy().map_err(text)?;
    rig.unit.attach(&rig.requester(), rig.domain).map_err(text)?;
    rig.lands(0x29, at(1), 1)?;
    rig.write_blocked(at(7), 7, rig.expected.unmapped_write)
}

fn on_another_bus(rig: &Rig<'_>) -> Checked {
    let there = rig.exchanged();
    rig.lands(0x2a, at(1), 1)?;
    // The bus has no context table yet.
    there.write_blocked(at(1), 1, FaultReason::ROOT_NOT_PRESENT)?;
    rig.unit.attach(&there.requester(), rig.domain).map_err(text)?;
    there.lands(0x2b, at(1), 1)?;
    rig.lands(0x2c, at(1), 1)?;
    rig.unit.detach(&rig.requester()).map_err(text)?;
    there.lands(0x2d, at(1), 1)?;
    rig.write_blocked(at(1), 1, FaultReason::CONTEXT_NOT_PRESENT)?;
    rig.unit.detach(&there.requester()).map_err(text)?;
    rig.unit.attach(&rig.requester(), rig.domain).map_err(text)?;
    rig.lands(0x2e, at(1), 1)?;
    there.write_blocked(at(1), 1, FaultReason::CONTEXT_NOT_PRESENT)
}
