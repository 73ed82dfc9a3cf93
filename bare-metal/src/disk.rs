//! Checks with a disk: `virtio-drivers` drives it, its buffers go through the DMA interface over a domain of its own.
//!
//! Requests and the plan of the disk are in `requests`.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;

use iommu_dma::{Counters, Direction, Invalidation, Trust};
use iommu_types::{Clock, HostPhys, Iova, PAGE_SIZE, Perms};
use virtio_drivers::device::blk::SECTOR_SIZE;
use virtio_drivers::transport::{DeviceStatus, Transport};
use vtd_driver::{DomainOptions, FaultReport, InterruptSource, InterruptTarget, Requester};
use vtd_spec::fault::FaultReason;
use vtd_spec::register::FaultedRequest;

use crate::dma::{self, FIXED, Policy, Use};
use crate::hardware::{Ended, Order};
use crate::memory::{BOARD, BUFFERS};
use crate::requests::{
    Author, DEFERRED, END, PATIENCE_NS, SECOND, STRICT, Session, TRUSTED, UNTRUSTED, WITHHELD, content, exchange,
    one_page, settled,
};
use crate::rig::{Checked, Rig, SOURCE, Space, ensure, page, text};
use crate::translation::Check;
use crate::virtio::Platform;

/// In the order in which they run.
pub(crate) const CHECKS: &[Check] = &[
    ("a disk insists on translated addresses", insists),
    ("a disk that was never attached reads nothing", never_attached),
    ("a disk is read and written, each unmap confirmed", strict),
    ("a disk is read and written, unmaps confirmed together", deferred),
    (
        "a disk that is not trusted is read and written through copies",
        untrusted,
    ),
    ("a disk told a buffer's own address brings no data", read_as_it_is),
    ("a disk told a buffer's own address gets no data", written_as_it_is),
    ("a buffer is out of the disk's reach once it is unmapped", unmapped),
    ("a buffer that the disk may only read is not written", read_only),
    ("two devices do not see each other's mappings", of_another),
    ("a disk's interrupts are remapped, and end with their entry", interrupts),
];

/// Requester of the disk.
fn requester(rig: &Rig<'_>) -> Requester {
    Requester::new(rig.disk.source())
}

/// Runs `body` with the disk in a domain of its own, if `attached`; then everything is taken down again. What the DMA
/// interface did, and how many buffers the device never gave back.
fn session(
    rig: &Rig<'_>,
    policy: Policy,
    attached: bool,
    body: impl FnOnce(&mut Session<'_>, &Space) -> Checked,
) -> Result<(usize, Counters), String> {
    let options = DomainOptions {
        stage: rig.expected.stage,
        ..DomainOptions::default()
    };
    let domain = Arc::new(rig.unit.create_domain(options).map_err(text)?);
    dma::install(&domain, policy)?;
    if attached {
        rig.unit.attach(&requester(rig), &domain).map_err(text)?;
    }
    let mut session = Session::new(rig.disk, Some(rig.unit));
    let done = body(&mut session, &domain);
    // The device is reset first: it may still own buffers.
    drop(session);
    let removed = dma::remove();
    if attached {
        rig.unit.detach(&requester(rig)).map_err(text)?;
    }
    if let Some(domain) = Arc::into_inner(domain) {
        domain.destroy().map_err(text)?;
    }
    done?;
    removed
}

/// The device decides: it takes the features or not (virtio 1.2 §3.1.1).
fn insists(rig: &Rig<'_>) -> Checked {
    const VERSION_1: u64 = 1 << 32;
    let taken = |accept| {
        let mut transport = rig.disk.transport(Platform { accept, vector: None })?;
        transport.set_status(DeviceStatus::empty());
        let driver = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(driver);
        transport.write_driver_features(VERSION_1);
        transport.set_status(driver | DeviceStatus::FEATURES_OK);
        Ok::<_, String>(transport.get_status().contains(DeviceStatus::FEATURES_OK))
    };
    ensure(taken(true)?, "the disk refuses a driver that accepts translation")?;
    ensure(
        !taken(false)?,
        "the disk takes a driver that does not accept translation",
    )
}

fn never_attached(rig: &Rig<'_>) -> Checked {
    session(rig, TRUSTED, false, |session, _| {
        session.start(None)?;
        let left = session.stopped(Order::Read, 0, vec![0xa5; SECTOR_SIZE], 0)?;
        ensure(!session.faults.is_empty(), "no fault was recorded")?;
        for FaultReport { record, .. } in &session.faults {
            let found = (record.source(), record.reason());
            if found != (rig.disk.source(), FaultReason::CONTEXT_NOT_PRESENT) {
                return Err(format!("the fault record says {found:x?}"));
            }
        }
        ensure(left.data == [0xa5; SECTOR_SIZE], "a blocked disk changed memory")
    })
    .map(|_| ())
}

fn strict(rig: &Rig<'_>) -> Checked {
    let done = session(rig, TRUSTED, true, |session, _| exchange(session, STRICT))?;
    let counters = settled(done)?;
    ensure(counters.invalidations == counters.unmaps, "an unmap was not waited for")?;
    ensure(counters.bounced_bytes == 0, "a trusted disk was given copies")
}

fn deferred(rig: &Rig<'_>) -> Checked {
    const ENTRIES: usize = 8;
    let policy = Policy {
        invalidation: Invalidation::Deferred { entries: ENTRIES },
        ..TRUSTED
    };
    let done = session(rig, policy, true, |session, _| {
        exchange(session, DEFERRED)?;
        let before = dma::counters();
        dma::flush()?;
        let after = dma::counters();
        ensure(
            after.invalidations <= before.invalidations + 1,
            "one flush waited often",
        )?;
        one_wait_for_many(rig)
    })?;
    let counters = settled(done)?;
    ensure(
        counters.invalidations * 4 < counters.unmaps,
        "unmaps were not confirmed together",
    )
}

/// The unit is told of several unmaps behind one wait, as its queue shows.
fn one_wait_for_many(rig: &Rig<'_>) -> Checked {
    const UNMAPS: u64 = 6;
    for index in 0..usize::try_from(UNMAPS).map_err(text)? {
        dma::unshare(dma::share(BUFFERS.at(index), PAGE_SIZE, Direction::ToDevice));
    }
    let (before, ring) = rig.tail();
    dma::flush()?;
    let announced = (rig.tail().0 + ring - before) % ring;
    if announced == UNMAPS + 1 {
        return Ok(());
    }
    Err(format!(
        "{UNMAPS} unmaps were {announced} descriptors, not one each and a wait"
    ))
}

fn untrusted(rig: &Rig<'_>) -> Checked {
    let policy = Policy {
        trust: Trust::Untrusted,
        ..TRUSTED
    };
    let done = session(rig, policy, true, |session, _| exchange(session, UNTRUSTED))?;
    let counters = settled(done)?;
    ensure(counters.bounced_buffers > 0, "parts of pages were not copied")?;
    ensure(counters.bounced_bytes < counters.bytes, "whole pages were copied")
}

/// As a driver that knows no IOMMU: the buffer is not mapped.
fn read_as_it_is(rig: &Rig<'_>) -> Checked {
    session(rig, TRUSTED, true, |session, _| {
        session.start(None)?;
        dma::use_data(Use::AsItIs);
        let (data, from) = one_page(0xa5);
        let left = session.stopped(Order::Read, 0, data, from)?;
        let at = Iova::new(left.at.raw());
        session.faulted(at, FaultedRequest::Write, rig.expected.unmapped_write)?;
        ensure(left.data == [0xa5; SECTOR_SIZE], "a blocked disk changed memory")
    })
    .map(|_| ())
}

/// The other way: nothing of the buffer may reach the disk.
fn written_as_it_is(rig: &Rig<'_>) -> Checked {
    const SECRET: u8 = 0x5e;
    session(rig, TRUSTED, true, |session, _| {
        session.start(None)?;
        dma::use_data(Use::AsItIs);
        let (data, from) = one_page(SECRET);
        let left = session.stopped(Order::Write, WITHHELD, data, from)?;
        let at = Iova::new(left.at.raw());
        session.faulted(at, FaultedRequest::Read, rig.expected.unmapped_read)?;
        dma::use_data(Use::Mapped);
        session.start(None)?;
        let on_disk = session.read(WITHHELD, 1, 0)?;
        ensure(!on_disk.contains(&SECRET), "data of an unmapped buffer are on the disk")?;
        session.write(WITHHELD, &content(Author::Kernel, WITHHELD, SECOND - WITHHELD), 0)
    })
    .map(|_| ())
}

/// The same command, address and buffer; only the mapping is gone.
fn unmapped(rig: &Rig<'_>) -> Checked {
    session(rig, TRUSTED, true, |session, domain| {
        session.start(None)?;
        let (data, from) = one_page(0xa5);
        let at = data.as_ptr().expose_provenance() + from;
        let at = HostPhys::new(u64::try_from(at).map_err(text)?);
        let mapped = domain.map(FIXED, at, PAGE_SIZE, Perms::WRITE);
        mapped.map_err(text)?;
        dma::use_data(Use::At(FIXED));
        let Ended::Done(Ok(()), mut data) = session.run(Order::Read, 3, data, from)? else {
            return Err(String::from("the mapped buffer was not read into"));
        };
        let arrived = data.get(from..) == Some(content(Author::Host, 3, 1).as_slice());
        ensure(arrived, "the data are not in the mapped buffer")?;
        let pending = domain.unmap(page(FIXED), ());
        let pending = pending.map_err(|refused| text(refused.error))?;
        domain.flush(pending).map_err(|(error, _)| text(error))?;
        data.fill(0xa5);
        let left = session.stopped(Order::Read, 3, data, from)?;
        ensure(left.at == at, "another buffer was used")?;
        session.faulted(FIXED, FaultedRequest::Write, rig.expected.unmapped_write)?;
        ensure(left.data == [0xa5; SECTOR_SIZE], "a blocked disk changed memory")
    })
    .map(|_| ())
}

fn read_only(rig: &Rig<'_>) -> Checked {
    session(rig, TRUSTED, true, |session, domain| {
        session.start(None)?;
        let (data, from) = one_page(0xa5);
        let at = data.as_ptr().expose_provenance() + from;
        let at = HostPhys::new(u64::try_from(at).map_err(text)?);
        domain.map(FIXED, at, PAGE_SIZE, Perms::READ).map_err(text)?;
        dma::use_data(Use::At(FIXED));
        let left = session.stopped(Order::Read, 0, data, from)?;
        session.faulted(FIXED, FaultedRequest::Write, rig.expected.write_denied)?;
        ensure(left.data == [0xa5; SECTOR_SIZE], "a read-only buffer was written")
    })
    .map(|_| ())
}

/// The other device cannot use the disk's mapping, nor the disk that of the other device.
fn of_another(rig: &Rig<'_>) -> Checked {
    const BUFFER: usize = 8;
    session(rig, TRUSTED, true, |session, domain| {
        session.start(None)?;
        rig.load(0x61)?;
        domain
            .map(FIXED, BUFFERS.at(BUFFER), PAGE_SIZE, Perms::READ_WRITE)
            .map_err(text)?;
        rig.write_blocked(FIXED, BUFFER, rig.expected.unmapped_write)?;
        let before = BUFFERS
            .words(0)
            .first()
            .map(|word| word.load(core::sync::atomic::Ordering::SeqCst));
        dma::use_data(Use::At(SOURCE));
        let (data, from) = one_page(0xa5);
        session.stopped(Order::Read, 0, data, from)?;
        session.faulted(SOURCE, FaultedRequest::Write, rig.expected.unmapped_write)?;
        let after = BUFFERS
            .words(0)
            .first()
            .map(|word| word.load(core::sync::atomic::Ordering::SeqCst));
        ensure(before == after, "the disk wrote to memory of the other device")
    })
    .map(|_| ())
}

/// The first message arrives where its entry leads; without an entry there is none, and data arrive all the same.
fn interrupts(rig: &Rig<'_>) -> Checked {
    const VECTORS: [u8; 2] = [0x61, 0x62];
    let source = InterruptSource::Requester(rig.disk.source());
    let block = rig.unit.allocate_interrupts(1, source).map_err(text)?;
    let message = block.message(0).ok_or("the block is too small")?;
    let target = |vector| Some(InterruptTarget::fixed(vector, rig.apic.id().into()));
    let arrived = |vector| {
        let start = BOARD.now_ns();
        while !rig.apic.requested(vector) {
            if BOARD.now_ns() - start > PATIENCE_NS / 100 {
                return false;
            }
        }
        true
    };
    session(rig, TRUSTED, true, |session, _| {
        rig.disk.set_message(message)?;
        for vector in VECTORS {
            rig.unit.set_interrupt(&block, 0, target(vector)).map_err(text)?;
            session.start(Some(0))?;
            ensure(!rig.apic.requested(vector), "the interrupt came before its request")?;
            session.read(0, 1, 0)?;
            ensure(arrived(vector), "the interrupt did not arrive")?;
        }
        let unused = 0x63;
        rig.unit.set_interrupt(&block, 0, target(unused)).map_err(text)?;
        rig.unit.set_interrupt(&block, 0, None).map_err(text)?;
        session.start(Some(0))?;
        let ended = session.run(Order::Read, 0, vec![0; SECTOR_SIZE], 0)?;
        let Ended::Done(Ok(()), data) = ended else {
            return Err(String::from(
                "data did not arrive although only the interrupt is blocked",
            ));
        };
        ensure(data == content(Author::Host, 0, 1), "other data arrived")?;
        // The message follows the data.
        session.stop();
        session.look()?;
        ensure(
            !rig.apic.requested(unused),
            "an interrupt arrived through a blocked entry",
        )?;
        let faults = core::mem::take(&mut session.faults);
        let found = |fault: &FaultReport| {
            (fault.record.source(), fault.record.reason()) == (rig.disk.source(), FaultReason::IRTE_NOT_PRESENT)
        };
        let recorded = !faults.is_empty() && faults.iter().all(found);
        let expected = if rig.expected.interrupt_faults {
            recorded
        } else {
            faults.is_empty()
        };
        ensure(expected, "the blocked interrupt is not what is recorded")
    })?;
    rig.disk.no_messages();
    rig.unit.release_interrupts(block).map_err(|(error, _)| text(error))
}

/// The disk as the next owner of the unit finds it.
pub(crate) fn after_take_over(rig: &Rig<'_>) -> Checked {
    session(rig, TRUSTED, true, |session, _| {
        session.start(None)?;
        let content = content(Author::Kernel, SECOND, END - SECOND);
        session.write(SECOND, &content, 0)?;
        let back = session.read(SECOND, END - SECOND, 0)?;
        ensure(back == content, "what was written does not come back")
    })
    .map(|_| ())
}
