//! Requests to the disk, and what its sectors hold: for checks with a unit and without one.
//!
//! The image begins with sectors that the host filled; the kernel fills those after it, and the host compares all of
//! them when the run is over.

use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use iommu_dma::{Counters, Invalidation, Trust};
use iommu_types::{Clock, HostPhys, Iova, SystemMemory};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use vtd_driver::FaultReport;
use vtd_spec::fault::FaultReason;
use vtd_spec::register::FaultedRequest;

use crate::dma::Policy;
use crate::hardware::{Dma, Ended, Lent, Order, Request};
use crate::memory::BOARD;
use crate::rig::{Checked, Running, ensure, text};
use crate::virtio::{Disk, Platform, Translated};

/// Sectors that the host filled, from 0 on.
pub(crate) const GIVEN: usize = 1024;
/// Where the parts begin that checks fill.
pub(crate) const STRICT: usize = GIVEN;
pub(crate) const DEFERRED: usize = STRICT + PART;
pub(crate) const UNTRUSTED: usize = DEFERRED + PART;
pub(crate) const WITHHELD: usize = UNTRUSTED + PART;
pub(crate) const SECOND: usize = WITHHELD + 8;
/// The first one that stays zero.
pub(crate) const END: usize = SECOND + 56;
/// Sectors of a part.
pub(crate) const PART: usize = 256;
/// Sectors of the disk.
pub(crate) const CAPACITY: u64 = 2048;

/// Who wrote a sector.
#[derive(Clone, Copy)]
pub(crate) enum Author {
    Host = 1,
    Kernel = 2,
}

/// What `sectors` sectors from `first` on hold, in the way the host knows too.
pub(crate) fn content(author: Author, first: usize, sectors: usize) -> Vec<u8> {
    let bytes = first * SECTOR_SIZE..(first + sectors) * SECTOR_SIZE;
    bytes
        .map(|at| {
            let position = u64::try_from(at).unwrap_or(0) | (author as u64) << 40;
            let [.., high] = position.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            high
        })
        .collect()
}

pub(crate) const TRUSTED: Policy = Policy {
    invalidation: Invalidation::Strict,
    trust: Trust::Trusted,
    address_bits: 64,
};

/// How long a request may take. With 256 ns an instruction, that is seconds of real time.
pub(crate) const PATIENCE_NS: u64 = 400_000_000_000;
/// How long after a fault: what is blocked need not end.
const AFTER_FAULT_NS: u64 = 200_000_000;
/// Faults of one request, in drains of the fault registers.
const DRAINS: u32 = 64;
/// Faults are looked for once in so many polls.
const POLLS: u32 = 1024;

/// A disk in use.
pub(crate) struct Session<'a> {
    disk: &'a Disk,
    /// What translates, if anything does.
    unit: Option<&'a Running>,
    driver: Option<VirtIOBlk<Dma, Translated>>,
    pub(crate) faults: Vec<FaultReport>,
}

/// What a request left behind.
pub(crate) struct Left {
    /// The data, where the device was told to put them or to take them from.
    pub(crate) data: Vec<u8>,
    /// Where they lie.
    pub(crate) at: HostPhys,
}

impl<'a> Session<'a> {
    /// A session on a disk that was not started yet; faults are those of `unit`.
    pub(crate) const fn new(disk: &'a Disk, unit: Option<&'a Running>) -> Self {
        Self {
            disk,
            unit,
            driver: None,
            faults: Vec::new(),
        }
    }

    /// Resets the disk.
    pub(crate) fn stop(&mut self) {
        self.driver = None;
    }

    /// Resets the disk and starts it with a new driver.
    pub(crate) fn start(&mut self, vector: Option<u16>) -> Checked {
        self.driver = None;
        let transport = self.disk.transport(Platform { accept: true, vector })?;
        let driver = VirtIOBlk::new(transport).map_err(text)?;
        ensure(driver.capacity() == CAPACITY, "the disk has another size")?;
        self.driver = Some(driver);
        Ok(())
    }

    /// Looks for faults, and keeps them. The disk works at the same time, so that new ones may come meanwhile.
    pub(crate) fn look(&mut self) -> Checked {
        let Some(unit) = self.unit else { return Ok(()) };
        for _ in 0..DRAINS {
            let drained = unit.drain_faults(|report| self.faults.push(report));
            if !drained.map_err(text)?.more {
                return Ok(());
            }
        }
        Err(String::from("faults do not end"))
    }

    /// One request. The data begin at byte `from` of `data`.
    pub(crate) fn run(&mut self, order: Order, sector: usize, data: Vec<u8>, from: usize) -> Result<Ended, String> {
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

    pub(crate) fn read(&mut self, sector: usize, sectors: usize, from: usize) -> Result<Vec<u8>, String> {
        self.transfer(Order::Read, sector, vec![0; from + sectors * SECTOR_SIZE], from)
    }

    pub(crate) fn write(&mut self, sector: usize, content: &[u8], from: usize) -> Checked {
        let mut data = vec![0; from];
        data.extend_from_slice(content);
        self.transfer(Order::Write, sector, data, from).map(|_| ())
    }

    /// A request of one sector that the unit has to stop: the disk is reset, and the memory is as it was left.
    pub(crate) fn stopped(&mut self, order: Order, sector: usize, data: Vec<u8>, from: usize) -> Result<Left, String> {
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
    pub(crate) fn faulted(&mut self, at: Iova, request: FaultedRequest, reason: FaultReason) -> Checked {
        let expected = (self.disk.source(), at.page(), request, reason);
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
pub(crate) fn one_page(fill: u8) -> (Vec<u8>, usize) {
    let mut data: Vec<u8> = Vec::with_capacity(2 * 4096);
    let from = data.as_ptr().align_offset(4096);
    data.resize(from + SECTOR_SIZE, fill);
    (data, from)
}

/// Reads what the host wrote and fills a part, in requests of several sizes that begin on and off page boundaries.
pub(crate) fn exchange(session: &mut Session<'_>, part: usize) -> Checked {
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
pub(crate) fn settled((left, counters): (usize, Counters)) -> Result<Counters, String> {
    ensure(left == 0, "the driver left buffers mapped")?;
    // Header, data and answer of twelve requests, their descriptors, and two parts of the queue.
    ensure(counters.unmaps >= 50, "the buffers did not go through the interface")?;
    Ok(counters)
}
