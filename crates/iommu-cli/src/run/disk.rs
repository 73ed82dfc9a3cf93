//! `iommu run --disk FILE`: a virtio disk in the machine, driven through VFIO by a driver that knows nothing of either.
//!
//! The device takes the place of a function that would go to the first guest. The driver is `virtio-drivers`; every byte
//! goes through the rings, the unit's translation and the file. What it overwrites is put back. With `--backend linux`
//! the same driver works on a real device ([`linux`]).

mod hal;
pub(crate) mod linux;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use iommu_devices::virtio::{FileDisk, VirtioBlk, VirtioBlkOptions};
use iommu_types::{Bdf, Iova};
use iommu_vfio::virtio::VirtioTransport;
use iommu_vfio::{
    Backend, Container, Device, DmaPool, Driver, EventFd, FaultedAccess, Group, GroupInfo, IovaPolicy, Platform,
    PlatformOptions, Software,
};
use serde::Serialize;
use soft_platform::FunctionKind;
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};

use super::guests;
use super::source::Source;
use crate::exit::{self, Failure};
use crate::size;

/// Sectors of one request.
const REQUEST: usize = 128;
/// Sectors that are written at most: 4 MiB.
const MOST_SECTORS: usize = 8192;
/// Memory that driver and device share: rings, and room for requests.
const SHARED: u64 = 1 << 20;
/// The last address that the disk is given: what 32 address lines reach.
const LAST: Iova = Iova::new(0x7eff_ffff);
/// Open an event that does not block when it is read (`EFD_NONBLOCK`).
const NON_BLOCKING: i32 = 0o4000;
/// How long the interrupt may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// The driver's memory is process-global, so one disk is rehearsed at a time.
static ONE: Mutex<()> = Mutex::new(());

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub(crate) struct DiskRow {
    /// The file; nothing for a device of the host, whose content is the host's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) file: String,
    /// Where the device stands.
    pub(crate) function: String,
    /// Bytes of the disk.
    pub(crate) bytes: u64,
    /// Bytes that were written, read back, looked up in the file where there is one, and put back.
    pub(crate) verified: u64,
    /// Interrupts of the queue.
    pub(crate) interrupts: u64,
    /// Requests with data that the driver did not map, and those of them that the unit stopped and recorded; on a
    /// device of the host, those whose data stayed where they were.
    pub(crate) withheld: u64,
    /// See `withheld`.
    pub(crate) withheld_blocked: u64,
    /// On a device of the host: faults that the kernel's log tells of these requests (it leaves out some when there are
    /// many); nothing if it cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) withheld_recorded: Option<u64>,
    /// What did not come out as it should.
    #[serde(skip)]
    pub(crate) failed: Vec<String>,
}

type Disk<B = Software> = VirtIOBlk<hal::Shared, VirtioTransport<Device<B>>>;

/// The function of the first guest in whose place a disk can stand: an endpoint with a group of its own.
pub(crate) fn place(platform: &Platform, groups: &[GroupInfo]) -> Option<Bdf> {
    let machine = platform.machine();
    let alone = |group: &&GroupInfo| guests::endpoints(platform, group).len() == 1;
    let candidates: Vec<_> = groups
        .iter()
        .filter(alone)
        .flat_map(|group| guests::endpoints(platform, group))
        .filter_map(|bdf| machine.function(bdf))
        .filter(|function| function.engine && function.dma_bits >= 64)
        .collect();
    let of = |kind| candidates.iter().find(|function| function.kind == kind);
    // A card in a slot if there is one; a table alone names what is built in.
    let found = of(FunctionKind::Endpoint).or_else(|| of(FunctionKind::IntegratedEndpoint));
    found.map(|function| function.bdf)
}

/// The disk in a file. What is no disk is said before anything else is done.
///
/// # Errors
/// Why it cannot be used, and what to do.
pub(crate) fn open(file: &Path) -> Result<FileDisk, Failure> {
    let name = format!("--disk {}", file.display());
    let opened = OpenOptions::new().read(true).write(true).open(file);
    let mut opened = opened.map_err(|why| match why.kind() {
        ErrorKind::NotFound => Failure::Input(format!(
            "{name}: there is no such file; name a file to use as a disk, such as one that `truncate -s 64M {}` makes",
            file.display()
        )),
        _ => exit::unread(&name, &why),
    })?;
    let failed = |why: std::io::Error| Failure::Input(format!("{name}: {why}; name a file or a block device"));
    if opened.seek(SeekFrom::End(0)).map_err(failed)? < SECTOR_SIZE as u64 {
        return Err(Failure::Input(format!(
            "{name}: the file is shorter than a sector of {SECTOR_SIZE} bytes; name a longer one"
        )));
    }
    FileDisk::new(opened, false).map_err(failed)
}

/// Runs it on a machine of its own, with the disk at `function`.
///
/// # Errors
/// What could not be set up.
pub(crate) fn rehearse(
    source: &Source,
    function: Bdf,
    file: &Path,
    unsafe_interrupts: bool,
) -> Result<DiskRow, Failure> {
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let name = file.display().to_string();
    let disk = open(file)?;
    let mut row = DiskRow {
        file: name.clone(),
        function: function.to_string(),
        ..DiskRow::default()
    };
    let measure = |why: String| Failure::Measure(format!("--disk {name}: {why}"));
    let options = VirtioBlkOptions::default();
    let config = VirtioBlk::describe(options)
        .build()
        .map_err(|why| measure(why.to_string()))?;
    let card = VirtioBlk::new(config, Box::new(disk), options).map_err(|why| measure(why.to_string()))?;
    let machine = source.machine()?;
    machine
        .replace(function, Box::new(card))
        .map_err(|why| measure(why.to_string()))?;
    let options = PlatformOptions {
        unsafe_interrupts,
        ..PlatformOptions::default()
    };
    let platform = Platform::bring_up(machine, options).map_err(|why| measure(why.to_string()))?;
    let done = drive(&platform, function, file, &mut row);
    // No driver is left: it was dropped with what `drive` had.
    hal::remove();
    done.map_err(|why| measure(why.to_string()))?;
    Ok(row)
}

/// Opens the device as a user-space driver does, and works with it.
fn drive(platform: &Platform, function: Bdf, file: &Path, row: &mut DiskRow) -> Result<(), Box<dyn std::error::Error>> {
    let info = platform.group_of(function).ok_or("the disk is in no group")?;
    for member in guests::endpoints(platform, &info) {
        platform.bind(member, Driver::Vfio)?;
    }
    let backend = Software::new(platform, platform.user("disk driver"));
    let group = Group::open(&backend, info.id)?.viable()?;
    let mut container = Container::open(&backend)?;
    container.attach(group)?;
    let container = container.set_iommu()?;
    let device = container.open_device(function)?;
    let pool = DmaPool::new(container, IovaPolicy::Allocated { last: LAST })?;
    if !hal::install(pool.buffer(SHARED)?) {
        return Err("the memory to share is not in one piece".into());
    }
    let events = [EventFd::new(NON_BLOCKING)?, EventFd::new(NON_BLOCKING)?];
    let [changes, queue] = &events;
    let transport = VirtioTransport::open(device, &[changes, queue])?;
    let mut disk: Disk = VirtIOBlk::new(transport)?;
    row.bytes = disk.capacity().saturating_mul(SECTOR_SIZE as u64);
    let sectors = usize::try_from(disk.capacity()).unwrap_or(usize::MAX).min(MOST_SECTORS);
    if sectors == 0 {
        return Err("the file is shorter than a sector of 512 bytes".into());
    }
    write_and_read(&mut disk, Some(&mut File::open(file)?), sectors, row)?;
    row.interrupts = wait(queue)?;
    withhold(&mut disk, platform, function, row)
}

/// Writes sectors, reads them back, looks them up in the file if there is one, and puts back what was there.
fn write_and_read<B: Backend>(
    disk: &mut Disk<B>,
    mut file: Option<&mut File>,
    sectors: usize,
    row: &mut DiskRow,
) -> Result<(), Box<dyn std::error::Error>> {
    let mut first = 0;
    while first < sectors {
        let count = REQUEST.min(sectors - first);
        let mut before = vec![0; count * SECTOR_SIZE];
        disk.read_blocks(first, &mut before)?;
        let pattern = pattern(first, count);
        let mut back = vec![0; count * SECTOR_SIZE];
        let done = disk
            .write_blocks(first, &pattern)
            .and_then(|()| disk.read_blocks(first, &mut back));
        let written = file.as_mut().map(|file| sectors_of(file, first, count));
        // Whatever comes of it, the disk gets its own back.
        let restored = disk.write_blocks(first, &before).and_then(|()| disk.flush());
        restored.map_err(|why| format!("sectors {first} and after could not be put back, they are lost: {why}"))?;
        done?;
        if back != pattern {
            row.failed.push(format!(
                "what is read back of sectors {first} and after is not what was written"
            ));
        }
        if written.transpose()?.is_some_and(|written| written != pattern) {
            row.failed.push(format!(
                "what is in the file of sectors {first} and after is not what was written"
            ));
        }
        let after = match file.as_mut() {
            Some(file) => sectors_of(file, first, count)?,
            None => {
                disk.read_blocks(first, &mut back)?;
                back
            }
        };
        if after != before {
            row.failed
                .push(format!("sectors {first} and after were not put back; they are lost"));
        }
        row.verified += (count * SECTOR_SIZE) as u64;
        first += count;
    }
    Ok(())
}

/// The driver names data that it did not map: the device must not get at them, and the unit records it.
fn withhold(
    disk: &mut Disk,
    platform: &Platform,
    function: Bdf,
    row: &mut DiskRow,
) -> Result<(), Box<dyn std::error::Error>> {
    const SECRET: u8 = 0x5e;
    let requester = platform.requester(function);
    let mut before = [0; SECTOR_SIZE];
    disk.read_blocks(0, &mut before)?;
    let _ = platform.drain_faults();
    for write in [false, true] {
        hal::withhold(true);
        let mut data = [SECRET; SECTOR_SIZE];
        let answer = if write {
            disk.write_blocks(0, &data)
        } else {
            disk.read_blocks(0, &mut data)
        };
        hal::withhold(false);
        row.withheld += 1;
        let recorded = platform.drain_faults().faults.into_iter().any(|fault| {
            let ours = fault.source == requester.rid || requester.aliases.contains(&fault.source);
            ours && matches!(fault.access, FaultedAccess::Memory(_, page) if page == hal::NOWHERE)
        });
        let mut after = [0; SECTOR_SIZE];
        disk.read_blocks(0, &mut after)?;
        let untouched = data == [SECRET; SECTOR_SIZE] && after == before;
        if answer.is_err() && recorded && untouched {
            row.withheld_blocked += 1;
        } else {
            let what = if write { "write" } else { "read" };
            row.failed.push(format!(
                "a {what} with data that were not mapped: answered {answer:?}, recorded {recorded}, untouched {untouched}"
            ));
        }
    }
    Ok(())
}

/// What the file holds.
fn sectors_of(file: &mut File, first: usize, count: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; count * SECTOR_SIZE];
    file.seek(SeekFrom::Start((first * SECTOR_SIZE) as u64))?;
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What is written: each byte tells its place.
fn pattern(first: usize, count: usize) -> Vec<u8> {
    let bytes = (first * SECTOR_SIZE..(first + count) * SECTOR_SIZE).map(|at| at as u64);
    bytes
        .map(|at| {
            let [.., high] = (at | 1 << 40).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
            high
        })
        .collect()
}

/// The count of an event, when it is there.
fn wait(event: &EventFd) -> Result<u64, String> {
    let started = Instant::now();
    loop {
        match event.read() {
            Ok(count) => return Ok(count),
            Err(_) if started.elapsed() < PATIENCE => std::thread::yield_now(),
            Err(why) => return Err(format!("no interrupt of the queue arrived: {why}")),
        }
    }
}

impl DiskRow {
    /// Lines for people.
    pub(crate) fn lines(&self) -> [String; 2] {
        let (verified, bytes) = (size::show(self.verified), size::show(self.bytes));
        let (function, interrupts) = (&self.function, self.interrupts);
        let (withheld, blocked) = (self.withheld, self.withheld_blocked);
        if self.file.is_empty() {
            let recorded = self.withheld_recorded.map_or_else(
                || "the kernel's log cannot be read".to_owned(),
                |count| format!("the kernel's log tells of {count}"),
            );
            return [
                format!("{function}: {verified} of {bytes} written, read back, and put back; {interrupts} interrupts"),
                format!("{function}: {withheld} requests with data that were unmapped, {blocked} stopped; {recorded}"),
            ];
        }
        let file = &self.file;
        [
            format!(
                "{function}: {verified} of {file} ({bytes}) written, read back, found in the file, and put back; \
                 {interrupts} interrupts"
            ),
            format!(
                "{function}: {withheld} requests with data that were not mapped, {blocked} stopped and recorded by the unit"
            ),
        ]
    }
}
