//! `iommu run --backend linux --device BDF`: the driver of the rehearsal on a virtio disk of this machine.
//!
//! The device has to be on a VFIO driver already: nothing is taken away from another driver. What is overwritten is put
//! back. The proof of isolation needs no log: a page that the device can write is unmapped, and must then stay as it is.

use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use iommu_groups::pci::header;
use iommu_host::log::Request;
use iommu_host::{Knowledge, Machine};
use iommu_types::{Bdf, PAGE_SIZE, Perms};
use iommu_vfio::virtio::VirtioTransport;
use iommu_vfio::{Backend, Container, Device, DmaMemory, DmaPool, EventFd, Group, IovaPolicy, Linux, VfioError};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};

use super::{Disk, DiskRow, LAST, MOST_SECTORS, NON_BLOCKING, ONE, PATIENCE, SHARED, hal, wait, write_and_read};
use crate::exit::Failure;

/// The container's node, which is there when the kernel has VFIO.
const NODE: &str = "/dev/vfio/vfio";
/// Vendor and device of a modern virtio disk. Virtio 1.3 §4.1.2 (PCI Device Discovery), §5.2.1 (Device ID).
const IDENTITY: [u16; 2] = [0x1af4, 0x1042];
/// Until the kernel has printed a fault. Only a figure of the report depends on it.
const LOGGED: Duration = Duration::from_millis(300);

/// Why the device was not driven to the end.
#[derive(Debug)]
pub(crate) enum Stop {
    /// There is nothing here to work with; what to do.
    Unsupported(String),
    /// A mistake in what was given, or something that could not be done.
    Failed(Failure),
}

/// Something that failed, in its words.
struct Why(Stop);

impl From<VfioError> for Why {
    fn from(why: VfioError) -> Self {
        let mut text = why.to_string();
        if matches!(why, VfioError::UnsafeInterrupts(_)) {
            text.push_str(" (`modprobe vfio_iommu_type1 allow_unsafe_interrupts=1`)");
        }
        Self(match why {
            VfioError::NoFunction(function) => Stop::Failed(Failure::Input(format!(
                "no such function {function} on this machine; `iommu groups` lists them"
            ))),
            VfioError::NoIommu(_)
            | VfioError::NoGroup(_)
            | VfioError::NoVfioDriver(_)
            | VfioError::NotViable { .. }
            | VfioError::NotForUsers(_)
            | VfioError::UnsafeInterrupts(_)
            | VfioError::InterruptCount { .. }
            | VfioError::NotVirtio { .. } => Stop::Unsupported(text),
            _ => Stop::Failed(Failure::Measure(text)),
        })
    }
}

impl From<virtio_drivers::Error> for Why {
    fn from(why: virtio_drivers::Error) -> Self {
        Self::from(format!("the disk's driver: {why}"))
    }
}

impl From<String> for Why {
    fn from(why: String) -> Self {
        Self(Stop::Failed(Failure::Measure(why)))
    }
}

fn unsupported(why: String) -> Why {
    Why(Stop::Unsupported(why))
}

/// Drives the virtio disk at `function`.
///
/// # Errors
/// [`Stop`], with the function and what to do.
pub(crate) fn drive(function: Bdf) -> Result<DiskRow, Stop> {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut row = DiskRow {
        function: function.to_string(),
        ..DiskRow::default()
    };
    let done = prepare(function).and_then(|pool| {
        let done = work(&pool, function, &mut row);
        // No driver is left: `work` had it.
        hal::remove();
        done
    });
    let named = |why: String| format!("--device {function}: {why}");
    done.map_err(|Why(stop)| match stop {
        Stop::Unsupported(why) => Stop::Unsupported(named(why)),
        Stop::Failed(Failure::Input(why)) => Stop::Failed(Failure::Input(named(why))),
        Stop::Failed(Failure::Measure(why)) => Stop::Failed(Failure::Measure(named(why))),
        Stop::Failed(Failure::Nothing(why)) => Stop::Failed(Failure::Nothing(named(why))),
    })?;
    Ok(row)
}

/// A container with the function's group, which nothing was opened of yet.
fn prepare(function: Bdf) -> Result<DmaPool<Linux>, Why> {
    if !Path::new(NODE).exists() {
        return Err(unsupported(format!(
            "there is no {NODE}: the kernel has no VFIO, or this environment does not see it; load its modules (`modprobe \
             vfio-pci`) with the IOMMU on (`iommu doctor` tells), then bind the device (`iommu plan {function}`)"
        )));
    }
    let backend = Linux::new();
    let id = backend.group_of(function)?;
    let driver = backend.driver(function);
    if !driver.as_deref().is_some_and(|driver| driver.starts_with("vfio")) {
        let now = driver.map_or_else(
            || "it has no driver".to_owned(),
            |driver| format!("its driver is {driver}"),
        );
        return Err(unsupported(format!(
            "{now}, not vfio-pci, and nothing is taken away from a driver here; `iommu check {function}` says whether it can be \
             handed over, `iommu plan {function}` how"
        )));
    }
    let group = Group::open(&backend, id)?.viable().map_err(VfioError::from)?;
    let mut container = Container::open(&backend)?;
    container.attach(group).map_err(VfioError::from)?;
    let container = container.set_iommu().map_err(VfioError::from)?;
    Ok(DmaPool::new(container, IovaPolicy::Allocated { last: LAST })?)
}

/// Opens the disk, which is reset by that.
fn open(pool: &DmaPool<Linux>, function: Bdf, events: &[EventFd; 2]) -> Result<Disk<Linux>, Why> {
    let device = pool.container().open_device(function)?;
    // Before anything is written to it.
    let identity = [header::VENDOR_ID, header::DEVICE_ID].map(|offset| word(&device, offset));
    if identity != IDENTITY {
        let [[vendor, number], [virtio, disk]] = [identity, IDENTITY];
        return Err(unsupported(format!(
            "it is {vendor:04x}:{number:04x}, not a virtio disk ({virtio:04x}:{disk:04x}), and nothing else can be driven; name \
             one, with QEMU `virtio-blk-pci,disable-legacy=on,iommu_platform=on`"
        )));
    }
    let [changes, queue] = events;
    let transport = VirtioTransport::open(device, &[changes, queue])?;
    Ok(VirtIOBlk::new(transport)?)
}

fn word(device: &Device<Linux>, offset: u16) -> u16 {
    let mut bytes = [0; 2];
    device.config_read(offset, &mut bytes);
    u16::from_le_bytes(bytes)
}

fn work(pool: &DmaPool<Linux>, function: Bdf, row: &mut DiskRow) -> Result<(), Why> {
    if !hal::install(pool.buffer(SHARED)?) {
        return Err("the memory to share is not in one piece".to_owned().into());
    }
    let event = || EventFd::new(NON_BLOCKING).map_err(|why| format!("an eventfd: {why}"));
    let events = [event()?, event()?];
    let mut disk = open(pool, function, &events)?;
    if disk.readonly() {
        return Err(unsupported(
            "the disk is read-only, so nothing can be written; name one that can be".to_owned(),
        ));
    }
    row.bytes = disk.capacity().saturating_mul(SECTOR_SIZE as u64);
    let sectors = usize::try_from(disk.capacity()).unwrap_or(usize::MAX).min(MOST_SECTORS);
    if sectors == 0 {
        return Err(unsupported("the disk has no sectors; name one that has".to_owned()));
    }
    write_and_read(&mut disk, None, sectors, row).map_err(|why| why.to_string())?;
    let [_, queue] = &events;
    row.interrupts = wait(queue)?;
    withhold(disk, pool, function, &events, row)
}

/// The disk is sent to a page of this process, first mapped and then not: it must reach the page once only.
fn withhold(
    mut disk: Disk<Linux>,
    pool: &DmaPool<Linux>,
    function: Bdf,
    events: &[EventFd; 2],
    row: &mut DiskRow,
) -> Result<(), Why> {
    let container = pool.container();
    let mut before = [0; SECTOR_SIZE];
    disk.read_blocks(0, &mut before)?;
    let recorded = recorded();
    // What the sector does not hold.
    let secret = if before.contains(&0x5e) {
        [!before[0]; SECTOR_SIZE]
    } else {
        [0x5e; SECTOR_SIZE]
    };
    let page = container.allocate(PAGE_SIZE)?;
    let held = || -> Result<[u8; SECTOR_SIZE], VfioError> {
        let mut bytes = [0; SECTOR_SIZE];
        page.read_at(0, &mut bytes)?;
        Ok(bytes)
    };
    page.write_at(0, &secret)?;
    container.dma_map(hal::NOWHERE, &page, 0, PAGE_SIZE, Perms::READ_WRITE)?;
    let (back, answer) = hal::withheld_request(disk, 0, false, PATIENCE);
    container.dma_unmap(hal::NOWHERE, PAGE_SIZE)?;
    disk = back.ok_or_else(|| "the disk does not answer a read into memory that is mapped".to_owned())?;
    if answer.is_err() || held()? != before {
        row.failed.push(format!(
            "a read into memory that is mapped did not arrive there: answered {answer:?}"
        ));
    }
    for write in [false, true] {
        page.write_at(0, &secret)?;
        let (back, answer) = hal::withheld_request(disk, 0, write, PATIENCE);
        let lost = |why: Why| match why {
            Why(Stop::Failed(Failure::Measure(why)) | Stop::Unsupported(why)) if write => {
                Why::from(format!("sector 0 may not have been put back: {why}"))
            }
            other => other,
        };
        disk = match back {
            Some(disk) => disk,
            // Given up by the device; with a new driver it works again.
            None => open(pool, function, events).map_err(lost)?,
        };
        let mut after = [0; SECTOR_SIZE];
        let read = disk.read_blocks(0, &mut after);
        // A device that believes what it was answered instead of the data may have written that.
        if read.is_err() || after != before {
            put_back(&mut disk, &before).map_err(lost)?;
        }
        read?;
        row.withheld += 1;
        let intact = held()? == secret;
        if intact && after != secret && (write || after == before) {
            row.withheld_blocked += 1;
        } else {
            let what = if write { "write" } else { "read" };
            row.failed.push(format!(
                "a {what} with data that were unmapped: answered {answer:?}, memory untouched {intact}"
            ));
        }
    }
    drop(disk);
    std::thread::sleep(LOGGED);
    row.withheld_recorded = recorded
        .zip(self::recorded())
        .map(|(then, now)| now.saturating_sub(then));
    Ok(())
}

/// Puts sector 0 back and looks.
fn put_back(disk: &mut Disk<Linux>, before: &[u8; SECTOR_SIZE]) -> Result<(), Why> {
    let mut now = [0; SECTOR_SIZE];
    disk.write_blocks(0, before)?;
    disk.flush()?;
    disk.read_blocks(0, &mut now)?;
    if now == *before {
        Ok(())
    } else {
        Err("it does not hold what was written".to_owned().into())
    }
}

/// How many faults at the page that is withheld the kernel's log has; `None` if it cannot be read.
fn recorded() -> Option<u64> {
    let Knowledge::Known(log) = Machine::live().ok()?.log else {
        return None;
    };
    let ours = |request: &Request| matches!(request, Request::Dma { address, .. } if *address == hal::NOWHERE);
    let count = log.faults().filter(|(_, fault)| ours(&fault.request)).count();
    u64::try_from(count).ok()
}
