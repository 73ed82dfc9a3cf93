//! B14: the VFIO layer over a machine in software: maps, lookups, a guest that is assigned, a disk.

#[path = "../../crates/iommu-vfio/examples/support/hal.rs"]
mod hal;

use std::hint::black_box;
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use iommu_devices::virtio::{MemoryDisk, VirtioBlk, VirtioBlkOptions};
use iommu_groups::pci::header;
use iommu_types::{AddrRange, Bdf, HostPhys, Iova, NodeId, Perms};
use iommu_vfio::virtio::{PciFunction, VirtioTransport};
use iommu_vfio::{Container, Driver, Group, Platform, PlatformOptions, Software, Type1, UserMemory};
use soft_platform::{Machine, MachineDescription, MemoryRange, PageRequest, Zone};
use virtio_drivers::device::blk::VirtIOBlk;

use self::hal::SharedMemory;
use crate::pair::{Random, compare, median};
use crate::row::{Row, measured};

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const PAGE: u64 = 4096;
const LARGE: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

pub(crate) fn rows(quick: bool) -> Vec<Row> {
    measured(
        quick,
        &[
            ("B14 maps", maps),
            ("B14 lookup", lookup),
            ("B14 guest", guest),
            ("B14 disk", disk),
        ],
    )
}

/// A machine with enough memory for a large guest.
fn description() -> Outcome<MachineDescription> {
    let mut description = MachineDescription::two_socket()?;
    let range = |base, len| AddrRange::from_base_len(HostPhys::new(base), len).ok_or("no range");
    description.memory = vec![
        MemoryRange {
            node: NodeId(0),
            range: range(0, 2 * GIB)?,
        },
        MemoryRange {
            node: NodeId(0),
            range: range(4 * GIB, 80 * GIB)?,
        },
        MemoryRange {
            node: NodeId(1),
            range: range(84 * GIB, 2 * GIB)?,
        },
    ];
    Ok(description)
}

struct Host {
    platform: Platform,
    backend: Software,
    device: Bdf,
}

fn host() -> Outcome<Host> {
    let description = description()?;
    let machine = Machine::build(&description, &description.to_dmar()?)?;
    let platform = Platform::bring_up(machine, PlatformOptions::default())?;
    let device: Bdf = "03:00.0".parse()?;
    platform.bind(device, Driver::Vfio)?;
    let user = platform.user("bench");
    Ok(Host {
        backend: Software::new(&platform, user),
        platform,
        device,
    })
}

impl Host {
    fn container(&self) -> Outcome<Container<Type1>> {
        let group = self.platform.group_of(self.device).ok_or("no group")?.id;
        let mut container = Container::open(&self.backend)?;
        container.attach(Group::open(&self.backend, group)?.viable()?)?;
        Ok(container.set_iommu()?)
    }

    fn memory(&self, bytes: u64) -> Outcome<UserMemory> {
        let request = PageRequest::contiguous(bytes).zone(Zone::Above4G);
        Ok(self.platform.allocate(self.backend.user(), request)?)
    }
}

#[expect(clippy::cast_precision_loss, reason = "times and counts stay far below 2^52")]
fn per(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e9 / count as f64
}

/// One mapping of many pages in a container of its own, which has no tables yet: the time of the map for one page of
/// `page` bytes.
fn map_time(host: &Host, memory: &UserMemory, offset: u64, size: u64, page: u64, turns: u32) -> Outcome<f64> {
    let mut times = Vec::new();
    for _ in 0..turns {
        let container = host.container()?;
        let start = Instant::now();
        container.dma_map(Iova::new(4 * GIB), memory, offset, size, Perms::READ_WRITE)?;
        times.push(per(start.elapsed(), size / page));
        container.close()?;
    }
    Ok(median(&mut times))
}

/// Offset of the first byte of `memory` that lies on 2 MiB.
fn aligned(memory: &UserMemory) -> Outcome<u64> {
    let first = memory.at(0).ok_or("no memory")?.raw();
    Ok(first.next_multiple_of(LARGE) - first)
}

fn maps(quick: bool) -> Outcome<Vec<Row>> {
    let host = host()?;
    let memory = host.memory(4 * GIB)?;
    let offset = aligned(&memory)?;
    let turns = if quick { 5 } else { 101 };
    // Off by a page against memory, so that no 2 MiB page fits, and off by 2 MiB, so that no 1 GiB page does.
    let small = map_time(&host, &memory, offset + PAGE, 256 << 20, PAGE, turns)?;
    let large = map_time(&host, &memory, offset + LARGE, 3 * GIB, LARGE, turns)?;
    Ok(vec![
        Row::alone("B14", "map 256 MiB, one 4 KiB page of it".to_owned(), small, Some(5.0)),
        Row::alone("B14", "map 3 GiB, one 2 MiB page of it".to_owned(), large, Some(100.0)),
    ])
}

fn lookup(quick: bool) -> Outcome<Vec<Row>> {
    const MAPPINGS: u64 = 65_535;
    let host = host()?;
    let container = host.container()?;
    let memory = host.memory(MAPPINGS * 2 * PAGE)?;
    for n in 0..MAPPINGS {
        container.dma_map(
            Iova::new(4 * GIB + 2 * n * PAGE),
            &memory,
            2 * n * PAGE,
            PAGE,
            Perms::READ,
        )?;
    }
    let mut random = Random::new(0x100c);
    let addresses: Vec<Iova> = (0..4096)
        .map(|_| Iova::new(4 * GIB + 2 * (random.next() % MAPPINGS) * PAGE + 8))
        .collect();
    let mut times = Vec::new();
    for _ in 0..if quick { 5 } else { 301 } {
        let start = Instant::now();
        for at in &addresses {
            if black_box(container.find(black_box(*at))).is_none() {
                return Err("a mapping was not found".into());
            }
        }
        times.push(per(start.elapsed(), 4096));
    }
    let row = Row::alone(
        "B14",
        "find one of 65535 mappings".to_owned(),
        median(&mut times),
        Some(40.0),
    );
    Ok(vec![row])
}

/// From a group that is free to a device that can send: the guest's memory is there before.
fn guest(quick: bool) -> Outcome<Vec<Row>> {
    let host = host()?;
    let memory = host.memory(64 * GIB + 2 * LARGE)?;
    // Off by 2 MiB, so that no 1 GiB page fits.
    let offset = aligned(&memory)? + LARGE;
    let mut times = Vec::new();
    for _ in 0..if quick { 3 } else { 31 } {
        let start = Instant::now();
        let container = host.container()?;
        container.dma_map(Iova::ZERO, &memory, offset, 3 * GIB, Perms::READ_WRITE)?;
        container.dma_map(
            Iova::new(4 * GIB),
            &memory,
            offset + 3 * GIB,
            61 * GIB,
            Perms::READ_WRITE,
        )?;
        let device = container.open_device(host.device)?;
        device.set_bus_master(true);
        times.push(per(start.elapsed(), 1));
        drop(device);
        container.close()?;
    }
    let row = Row::alone(
        "B14",
        "assign a 64 GiB guest, 2 MiB pages".to_owned(),
        median(&mut times),
        Some(50e6),
    );
    Ok(vec![row])
}

/// A function of a machine, as its processors reach it: the same way with and without units.
struct Registers {
    machine: Machine,
    function: Bdf,
}

impl PciFunction for Registers {
    fn function(&self) -> Bdf {
        self.function
    }
    fn config_read(&self, offset: u16, into: &mut [u8]) {
        self.machine.config_read(self.function, offset, into);
    }
    fn read(&self, bar: u8, offset: u64, into: &mut [u8]) {
        let at = self.machine.bar_range(self.function, bar);
        let at = at.and_then(|range| range.first().checked_add(offset));
        if at.is_none_or(|at| self.machine.mmio_read(at, into).is_err()) {
            into.fill(0xff);
        }
    }
    fn write(&self, bar: u8, offset: u64, from: &[u8]) {
        let at = self.machine.bar_range(self.function, bar);
        if let Some(at) = at.and_then(|range| range.first().checked_add(offset)) {
            let _ = self.machine.mmio_write(at, from);
        }
    }
}

const DISK: usize = 16 << 20;
const SHARED: u64 = LARGE;

fn plug(machine: &Machine, function: Bdf) -> Outcome<()> {
    let options = VirtioBlkOptions::default();
    let config = VirtioBlk::describe(options).build()?;
    let disk = VirtioBlk::new(config, Box::new(MemoryDisk::new(DISK)), options)?;
    machine.replace(function, Box::new(disk))?;
    Ok(())
}

fn driver<const SLOT: usize>(
    machine: &Machine,
    function: Bdf,
    at: Iova,
    first: NonNull<u8>,
) -> Outcome<VirtIOBlk<SharedMemory<SLOT>, VirtioTransport<Registers>>> {
    machine.set_command(function, header::COMMAND_MEMORY | header::COMMAND_BUS_MASTER, true);
    SharedMemory::<SLOT>::share(at, SHARED, first);
    let registers = Registers {
        machine: machine.clone(),
        function,
    };
    Ok(VirtIOBlk::new(VirtioTransport::new(registers, 0)?)?)
}

fn disk(quick: bool) -> Outcome<Vec<Row>> {
    let description = description()?;
    let function: Bdf = "03:00.0".parse()?;
    // With units, a container and a mapping.
    let machine = Machine::build(&description, &description.to_dmar()?)?;
    plug(&machine, function)?;
    let platform = Platform::bring_up(machine, PlatformOptions::default())?;
    platform.bind(function, Driver::Vfio)?;
    let host = Host {
        backend: Software::new(&platform, platform.user("disk")),
        platform,
        device: function,
    };
    let container = host.container()?;
    let memory = container.allocate(SHARED)?;
    let at = Iova::new(GIB);
    container.dma_map(at, &memory, 0, SHARED, Perms::READ_WRITE)?;
    let device = container.open_device(function)?;
    let first = iommu_vfio::DmaMemory::pointer(&memory).ok_or("memory in pieces")?;
    let mut with = driver::<0>(host.platform.machine(), function, at, first)?;
    // The same machine without units: addresses are those of memory.
    let plain = Machine::without_iommu(&description)?;
    plug(&plain, function)?;
    let pages = plain
        .memory()
        .allocate_pages(PageRequest::contiguous(SHARED).zone(Zone::Above4G))?;
    let phys = pages.at(0).ok_or("no memory")?;
    let words = plain.memory().words(phys, SHARED).ok_or("memory in pieces")?;
    let first = NonNull::from(words).cast();
    let mut without = driver::<1>(&plain, function, Iova::new(phys.raw()), first)?;

    let mut rows = Vec::new();
    for (bytes, name) in [(4096usize, "4 KiB"), (65_536, "64 KiB")] {
        let mut ours = vec![0x5a; bytes];
        let mut theirs = vec![0x5a; bytes];
        let sectors = bytes / 512;
        let mut failed = false;
        let mut side = |turns: u64, read: &mut dyn FnMut(usize) -> bool| {
            for turn in 0..turns {
                let sector = usize::try_from(turn).unwrap_or(0) * sectors % (DISK / 512 - sectors);
                failed |= !read(sector);
            }
        };
        let comparison = {
            let side = std::cell::RefCell::new(&mut side);
            compare(
                quick,
                &mut |turns| (side.borrow_mut())(turns, &mut |sector| with.read_blocks(sector, &mut ours).is_ok()),
                &mut |turns| (side.borrow_mut())(turns, &mut |sector| without.read_blocks(sector, &mut theirs).is_ok()),
            )
        };
        if failed {
            return Err("a request failed".into());
        }
        let (case, peer) = (
            format!("read {name} from a virtio disk"),
            "the same stack without an IOMMU",
        );
        // Throughput is what large requests bring; small ones tell what a request costs.
        rows.push(match bytes {
            65_536.. => Row::at_least("B14", case, &comparison, peer, 0.8),
            _ => Row::reported("B14", case, &comparison, peer),
        });
    }
    drop(with);
    drop(without);
    drop(device);
    Ok(rows)
}
