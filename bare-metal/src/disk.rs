//! Checks with a disk: `virtio-drivers` drives it, its buffers go through the DMA interface over a domain of its own.
//!
//! The image begins with sectors that the host filled; the kernel fills those after it, and the host compares all of
//! them when the run is over.

use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use iommu_dma::{Counters, Direction, Invalidation, Trust};
use iommu_types::{Clock, HostPhys, Iova, PAGE_SIZE, Perms, SystemMemory};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use virtio_drivers::transport::{DeviceStatus, Transport};
use vtd_driver::{DomainOptions, FaultReport, InterruptSource, InterruptTarget, Requester};
use vtd_spec::fault::FaultReason;
use vtd_spec::register::FaultedRequest;

use crate::dma::{self, FIXED, Policy, Use};
use crate::hardware::{Dma, Ended, Lent, Order, Request};
use crate::memory::{BOARD, BUFFERS};
use crate::rig::{Checked, Rig, SOURCE, Space, ensure, page, text};
use crate::translation::Check;
use crate::virtio::{Platform, Translated};

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

/// Sectors that the host filled, from 0 on.
const GIVEN: usize = 1024;
/// Where the parts begin that checks fill.
const STRICT: usize = GIVEN;
const DEFERRED: usize = STRICT + PART;
const UNTRUSTED: usize = DEFERRED + PART;
const WITHHELD: usize = UNTRUSTED + PART;
const SECOND: usize = WITHHELD + 8;
/// The first one that stays zero.
const END: usize = SECOND + 56;
/// Sectors of a part.
const PART: usize = 256;
/// Sectors of the disk.
const CAPACITY: u64 = 2048;

/// Who wrote a sector.
#[derive(Clone, Copy)]
enum Author {
    Host = 1,
    Kernel = 2,
}

/// What `sectors` sectors from `first` on hold, in the way the host knows too.
fn content(author: Author, first: usize, sectors: usize) -> Vec<u8> {
    let bytes = first * SECTOR_SIZE..(first + sectors) * SECTOR_SIZE;
    bytes
        .map(|at| {
            let position = u64::try_from(at).unwrap_or(0) | (author as u64) << 40;
            let [.., high] = position.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            high
        })
        .collect()
}

const TRUSTED: Policy = Policy {
    invalidation: Invalidation::Strict,
    trust: Trust::Trusted,
};

/// How long a request may take. With 256 ns an instruction, that is seconds of real time.
const PATIENCE_NS: u64 = 400_000_000_000;
/// How long after a fault: what is blocked need not end.
const AFTER_FAULT_NS: u64 = 200_000_000;
/// Faults of one request, in drains of the fault registers.
const DRAINS: u32 = 64;
/// Faults are looked for once in so many polls.
const POLLS: u32 = 1024;

/// A disk in use.
struct Session<'a> {
    rig: &'a Rig<'a>,
    domain: &'a Arc<Space>,
    driver: Option<VirtIOBlk<Dma, Translated>>,
    faults: Vec<FaultReport>,
}

/// What a request left behind.
struct Left {
    /// The data, where the device was told to put them or to take them from.
    data: Vec<u8>,
    /// Where they lie.
    at: HostPhys,
}

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
    body: impl FnOnce(&mut Session<'_>) -> Checked,
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
    let mut session = Session {
        rig,
        domain: &domain,
        driver: None,
        faults: Vec::new(),
    };
    let done = body(&mut session);
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

impl Session<'_> {
    /// Resets the disk and starts it with a new driver.
    fn start(&mut self, vector: Option<u16>) -> Checked {
        self.driver = None;
        let transport = self.rig.disk.transport(Platform { accept: true, vector })?;
        let driver = VirtIOBlk::new(transport).map_err(text)?;
        ensure(driver.capacity() == CAPACITY, "the disk has another size")?;
        self.driver = Some(driver);
        Ok(())
    }

    /// Looks for faults, and keeps them. The disk works at the same time, so that new ones may come meanwhile.
    fn look(&mut self) -> Checked {
        for _ in 0..DRAINS {
            let drained = self.rig.unit.drain_faults(|report| self.faults.push(report));
            if !drained.map_err(text)?.more {
                return Ok(());
            }
        }
        Err(String::from("faults do not end"))
    }

    /// One request. The data begin at byte `from` of `data`.
    fn run(&mut self, order: Order, sector: usize, data: Vec<u8>, from: usize) -> Result<Ended, String> {
        let mut driver = self.driver.take().ok_or("the disk was not started")?;
        let (start, mut polls, mut fault, mut trouble) = (BOARD.now_ns(), 0, None, None);
        let tired = || {
            polls += 1;
            if polls % POLLS != 0 {
                return false;
            }
            if let Err(why) = self.look() {
                trouble = Some(why);
                return true;
            }
            let now = BOARD.now_ns();
            if !self.faults.is_empty() {
                fault.get_or_insert(now);
            }
            fault.is_some_and(|fault| now - fault > AFTER_FAULT_NS) || now - start > PATIENCE_NS
        };
        let ended = Request::new(data, from).run(&mut driver, order, sector, tired);
        self.driver = Some(driver);
        if let Some(why) = trouble {
            return Err(why);
        }
        self.look()?;
        ended.map_err(text)
    }

    /// One request that has to be done, without a fault; the data.
    fn transfer(&mut self, order: Order, sector: usize, data: Vec<u8>, from: usize) -> Result<Vec<u8>, String> {
        let ended = self.run(order, sector, data, from)?;
        if let Some(fault) = self.faults.first() {
            return Err(format!("a fault where there should be none: {:x?}", fault.record));
        }
        match ended {
            Ended::Done(Ok(()), data) => Ok(data.get(from..).unwrap_or_default().to_vec()),
            Ended::Done(Err(error), _) => Err(text(error)),
            Ended::Never(_) => Err(String::from("the disk did not answer")),
        }
    }

    fn read(&mut self, sector: usize, sectors: usize, from: usize) -> Result<Vec<u8>, String> {
        self.transfer(Order::Read, sector, vec![0; from + sectors * SECTOR_SIZE], from)
    }

    fn write(&mut self, sector: usize, content: &[u8], from: usize) -> Checked {
        let mut data = vec![0; from];
        data.extend_from_slice(content);
        self.transfer(Order::Write, sector, data, from).map(|_| ())
    }

    /// A request of one sector that the unit has to stop: the disk is reset, and the memory is as it was left.
    fn stopped(&mut self, order: Order, sector: usize, data: Vec<u8>, from: usize) -> Result<Left, String> {
        let ended = self.run(order, sector, data, from)?;
        self.driver = None;
        self.look()?;
        match ended {
            Ended::Done(_, data) => {
                let data = data.get(from..).unwrap_or_default();
                let at = data.as_ptr().expose_provenance();
                Ok(Left {
                    data: data.to_vec(),
                    at: HostPhys::new(u64::try_from(at).map_err(text)?),
                })
            }
            Ended::Never(at) => {
                let mut data = vec![0; SECTOR_SIZE];
                Lent.read(at, &mut data).map_err(text)?;
                Ok(Left { data, at })
            }
        }
    }

    /// All faults so far are the disk's, of this kind, at this page; there is at least one.
    fn faulted(&mut self, at: Iova, request: FaultedRequest, reason: FaultReason) -> Checked {
        let expected = (self.rig.disk.source(), at.page(), request, reason);
        ensure(!self.faults.is_empty(), "no fault was recorded")?;
        for FaultReport { record, .. } in core::mem::take(&mut self.faults) {
            let found = (
                record.source(),
                record.address().page(),
                record.request(),
                record.reason(),
            );
            if found != expected {
                return Err(format!("the fault record says {found:x?}, expected {expected:x?}"));
            }
        }
        Ok(())
    }
}

/// One sector of data on one page, and the byte at which it begins.
fn one_page(fill: u8) -> (Vec<u8>, usize) {
    let mut data: Vec<u8> = Vec::with_capacity(2 * 4096);
    let from = data.as_ptr().align_offset(4096);
    data.resize(from + SECTOR_SIZE, fill);
    (data, from)
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
    session(rig, TRUSTED, false, |session| {
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

/// Reads what the host wrote and fills a part, in requests of several sizes that begin on and off page boundaries.
fn exchange(session: &mut Session<'_>, part: usize) -> Checked {
    session.start(None)?;
    let shapes = [(1, 0), (8, 0), (128, 24), (PART - 137, 4093)];
    let mut sector = 0;
    for (sectors, from) in shapes {
        let read = session.read(sector, sectors, from)?;
        ensure(
            read == content(Author::Host, sector, sectors),
            "what was read is not what the host wrote",
        )?;
        let written = part + sector;
        let content = content(Author::Kernel, written, sectors);
        session.write(written, &content, from)?;
        let back = session.read(written, sectors, 8)?;
        ensure(back == content, "what was written does not come back")?;
        sector += sectors;
    }
    ensure(sector == PART, "the part is not full")
}

/// All buffers came back, and the counters are plausible.
fn settled((left, counters): (usize, Counters)) -> Result<Counters, String> {
    ensure(left == 0, "the driver left buffers mapped")?;
    // Header, data and answer of twelve requests, their descriptors, and two parts of the queue.
    ensure(counters.unmaps >= 50, "the buffers did not go through the interface")?;
    Ok(counters)
}

fn strict(rig: &Rig<'_>) -> Checked {
    let done = session(rig, TRUSTED, true, |session| exchange(session, STRICT))?;
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
    let done = session(rig, policy, true, |session| {
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
    let done = session(rig, policy, true, |session| exchange(session, UNTRUSTED))?;
    let counters = settled(done)?;
    ensure(counters.bounced_buffers > 0, "parts of pages were not copied")?;
    ensure(counters.bounced_bytes < counters.bytes, "whole pages were copied")
}

/// As a driver that knows no IOMMU: the buffer is not mapped.
fn read_as_it_is(rig: &Rig<'_>) -> Checked {
    session(rig, TRUSTED, true, |session| {
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
    session(rig, TRUSTED, true, |session| {
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
    session(rig, TRUSTED, true, |session| {
        session.start(None)?;
        let (data, from) = one_page(0xa5);
        let at = data.as_ptr().expose_provenance() + from;
        let at = HostPhys::new(u64::try_from(at).map_err(text)?);
        let mapped = session.domain.map(FIXED, at, PAGE_SIZE, Perms::WRITE);
        mapped.map_err(text)?;
        dma::use_data(Use::At(FIXED));
        let Ended::Done(Ok(()), mut data) = session.run(Order::Read, 3, data, from)? else {
            return Err(String::from("the mapped buffer was not read into"));
        };
        let arrived = data.get(from..) == Some(content(Author::Host, 3, 1).as_slice());
        ensure(arrived, "the data are not in the mapped buffer")?;
        let pending = session.domain.unmap(page(FIXED), ());
        let pending = pending.map_err(|refused| text(refused.error))?;
        session.domain.flush(pending).map_err(|(error, _)| text(error))?;
        data.fill(0xa5);
        let left = session.stopped(Order::Read, 3, data, from)?;
        ensure(left.at == at, "another buffer was used")?;
        session.faulted(FIXED, FaultedRequest::Write, rig.expected.unmapped_write)?;
        ensure(left.data == [0xa5; SECTOR_SIZE], "a blocked disk changed memory")
    })
    .map(|_| ())
}

fn read_only(rig: &Rig<'_>) -> Checked {
    session(rig, TRUSTED, true, |session| {
        session.start(None)?;
        let (data, from) = one_page(0xa5);
        let at = data.as_ptr().expose_provenance() + from;
        let at = HostPhys::new(u64::try_from(at).map_err(text)?);
        session.domain.map(FIXED, at, PAGE_SIZE, Perms::READ).map_err(text)?;
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
    session(rig, TRUSTED, true, |session| {
        session.start(None)?;
        rig.load(0x61)?;
        session
            .domain
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
    session(rig, TRUSTED, true, |session| {
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
        session.driver = None;
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
    session(rig, TRUSTED, true, |session| {
        session.start(None)?;
        let content = content(Author::Kernel, SECOND, END - SECOND);
        session.write(SECOND, &content, 0)?;
        let back = session.read(SECOND, END - SECOND, 0)?;
        ensure(back == content, "what was written does not come back")
    })
    .map(|_| ())
}
