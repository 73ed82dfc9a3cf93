//! What the checks are made of: the device, the unit, and what has to be recorded.

use core::fmt::Display;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use iommu_types::{AddrRange, Iova, PAGE_SIZE, Perms, Registers};
use vtd_driver::{Domain, FaultReport, Requester, Stage, TableMode, Translating, Unit};
use vtd_spec::fault::FaultReason;
use vtd_spec::register::{DescriptorWidth, FaultedRequest, InvalidationQueueAddress, InvalidationQueueTail, offset};

use crate::apic::Apic;
use crate::edu::{Edu, TRANSFER};
use crate::hardware::Window;
use crate::memory::{BUFFERS, Board};
use crate::virtio::Disk;

/// The result of a check.
pub(crate) type Checked = Result<(), String>;
/// A unit that translates.
pub(crate) type Running = Unit<Window, &'static Board, Translating>;
/// An address space on it.
pub(crate) type Space = Domain<Window, &'static Board>;

/// The address and the page from which the device's buffer is loaded.
pub(crate) const SOURCE: Iova = Iova::new(0x1000_0000);
const SOURCE_PAGE: usize = 0;

/// How this run is to be judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    /// The machine has a remapping unit.
    pub(crate) unit: bool,
    pub(crate) mode: TableMode,
    pub(crate) stage: Stage,
    /// Blocked interrupts are recorded as faults.
    pub(crate) interrupt_faults: bool,
    /// Writing where nothing is mapped.
    pub(crate) unmapped_write: FaultReason,
    /// Reading where nothing is mapped.
    pub(crate) unmapped_read: FaultReason,
    /// Writing to a page that is mapped for reading.
    pub(crate) write_denied: FaultReason,
}

impl Expected {
    /// What the command line asks for.
    pub(crate) fn of(line: &str) -> Self {
        let has = |word: &str| line.split_ascii_whitespace().any(|other| other == word);
        let legacy = Self {
            unit: !has("no-unit"),
            mode: TableMode::Legacy,
            stage: Stage::Second,
            interrupt_faults: !has("silent-interrupts"),
            unmapped_write: FaultReason::WRITE_DENIED,
            unmapped_read: FaultReason::READ_DENIED,
            write_denied: FaultReason::WRITE_DENIED,
        };
        let scalable = Self {
            mode: TableMode::Scalable,
            ..legacy
        };
        if !has("first-stage") {
            // In scalable mode QEMU keeps legacy mode's reasons for the second stage.
            return if has("scalable") { scalable } else { legacy };
        }
        Self {
            stage: Stage::First,
            unmapped_write: FaultReason::FIRST_STAGE_NOT_PRESENT,
            unmapped_read: FaultReason::FIRST_STAGE_NOT_PRESENT,
            write_denied: FaultReason::SCALABLE_WRITE_DENIED,
            ..scalable
        }
    }
}

/// An error as text.
pub(crate) fn text(error: impl Display) -> String {
    error.to_string()
}

/// An error if something that has to hold does not.
pub(crate) fn ensure(holds: bool, otherwise: &str) -> Checked {
    if holds { Ok(()) } else { Err(otherwise.to_string()) }
}

/// One page at `at`.
pub(crate) fn page(at: Iova) -> AddrRange<Iova> {
    AddrRange::page_around(at, iommu_types::PageSize::Size4K)
}

/// Everything a check uses.
pub(crate) struct Rig<'a> {
    pub(crate) unit: &'a Running,
    pub(crate) domain: &'a Space,
    /// The device that is attached for the checks.
    pub(crate) edu: &'a Edu,
    /// A device on another bus.
    pub(crate) other: &'a Edu,
    pub(crate) disk: &'a Disk,
    pub(crate) apic: &'a Apic,
    /// The unit's registers, to look at.
    pub(crate) registers: Window,
    pub(crate) expected: Expected,
}

impl Rig<'_> {
    /// The device as the driver names it.
    pub(crate) fn requester(&self) -> Requester {
        Requester::new(self.edu.source())
    }

    /// The same with the two devices exchanged.
    pub(crate) const fn exchanged(&self) -> Self {
        Self {
            edu: self.other,
            other: self.edu,
            ..*self
        }
    }

    /// The tail of the invalidation queue, in descriptors, and how many the ring has.
    pub(crate) fn tail(&self) -> (u64, u64) {
        let queue = InvalidationQueueAddress::new_with_raw_value(self.registers.read64(offset::IQA));
        let tail = InvalidationQueueTail::new_with_raw_value(self.registers.read64(offset::IQT));
        // QEMU 7.2 does not give IQA.DW back; the driver uses 256 bits wherever the unit knows them.
        let width = if self.unit.features().ecap.smts() {
            DescriptorWidth::Bits256
        } else {
            DescriptorWidth::Bits128
        };
        let size = width.bytes();
        (tail.byte_offset() / size, queue.byte_len() / size)
    }

    /// Maps a page of the buffers.
    pub(crate) fn map(&self, at: Iova, buffer: usize, perms: Perms) -> Checked {
        self.domain.map(at, BUFFERS.at(buffer), PAGE_SIZE, perms).map_err(text)
    }

    /// Unmaps and waits until the unit has confirmed.
    pub(crate) fn unmap(&self, range: AddrRange<Iova>) -> Checked {
        let pending = self.domain.unmap(range, ()).map_err(|refused| text(refused.error))?;
        self.domain.flush(pending).map_err(|(error, _)| text(error))
    }

    /// Puts a pattern into the device's buffer, by way of a page that is mapped for that at [`SOURCE`].
    pub(crate) fn load(&self, seed: u64) -> Checked {
        BUFFERS.fill(SOURCE_PAGE, seed);
        self.read(SOURCE)?;
        self.no_fault()
    }

    /// The device reads [`TRANSFER`] bytes.
    pub(crate) fn read(&self, from: Iova) -> Checked {
        ensure(self.edu.read_memory(from, TRANSFER), "the device's read did not end")
    }

    /// The device writes [`TRANSFER`] bytes.
    pub(crate) fn write(&self, to: Iova) -> Checked {
        ensure(self.edu.write_memory(to, TRANSFER), "the device's write did not end")
    }

    /// The device writes its buffer, loaded with `seed`, to `to`, and it arrives in a buffer page.
    pub(crate) fn lands(&self, seed: u64, to: Iova, buffer: usize) -> Checked {
        BUFFERS.fill(buffer, 0);
        self.load(seed)?;
        self.write(to)?;
        self.no_fault()?;
        let arrived = BUFFERS.holds(buffer, seed, TRANSFER);
        ensure(arrived, "what the device wrote is not in the mapped page")
    }

    /// The device writes to `to`; it changes nothing in a buffer page, and the fault is recorded.
    pub(crate) fn write_blocked(&self, to: Iova, buffer: usize, reason: FaultReason) -> Checked {
        BUFFERS.fill(buffer, 1);
        self.write(to)?;
        self.faulted(to, FaultedRequest::Write, reason)?;
        let untouched = BUFFERS.holds(buffer, 1, PAGE_SIZE);
        ensure(untouched, "a blocked write changed memory")
    }

    /// All faults that are recorded.
    pub(crate) fn faults(&self) -> Result<Vec<FaultReport>, String> {
        let mut reports = Vec::new();
        let drained = self.unit.drain_faults(|report| reports.push(report)).map_err(text)?;
        ensure(!drained.more, "fault records are left after a drain")?;
        Ok(reports)
    }

    /// No fault is recorded.
    pub(crate) fn no_fault(&self) -> Checked {
        match self.faults()?.first() {
            None => Ok(()),
            Some(fault) => Err(format!("a fault where there should be none: {:x?}", fault.record)),
        }
    }

    /// Exactly one fault is recorded: of the device, at this page, with this reason.
    pub(crate) fn faulted(&self, at: Iova, request: FaultedRequest, reason: FaultReason) -> Checked {
        let faults = self.faults()?;
        let [FaultReport { record, .. }] = faults.as_slice() else {
            return Err(format!("{} faults recorded, not 1", faults.len()));
        };
        let found = (record.source(), record.address(), record.request(), record.reason());
        let expected = (self.edu.source(), at.page(), request, reason);
        if found == expected {
            Ok(())
        } else {
            Err(format!("the fault record says {found:x?}, expected {expected:x?}"))
        }
    }
}
