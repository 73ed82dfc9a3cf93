//! Assigning devices of the default machine: what is refused, what is reached, what is blocked and logged.

#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "a test may fail this way, and its helpers too"
)]

mod bring_up;
mod owners;
mod reach;

use iommu_types::{Bdf, Iova};
use iommu_vfio::{Container, Driver, Group, GuestMemory, Platform, PlatformOptions, Type1, UserId, Viable};
use soft_platform::{Machine, MachineDescription, MachineOptions, PageRequest};

pub(crate) const NVME: &str = "03:00.0";
pub(crate) const GPU: &str = "04:00.0";
pub(crate) const NIC0: &str = "06:00.0";
pub(crate) const NIC1: &str = "06:00.1";
pub(crate) const ACCELERATOR: &str = "00:1d.0";
pub(crate) const USB: &str = "00:1a.0";
pub(crate) const SD: &str = "00:1e.0";
pub(crate) const SOUND: &str = "0c:04.0";
pub(crate) const SERIAL: &str = "0c:05.0";
pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn bdf(text: &str) -> Bdf {
    text.parse().expect("bdf")
}

pub(crate) fn platform() -> Platform {
    platform_with(MachineOptions::default())
}

pub(crate) fn platform_with(options: MachineOptions) -> Platform {
    let description = MachineDescription::two_socket().expect("sound");
    let table = description.to_dmar().expect("fits");
    let machine = Machine::build_with(&description, &table, options).expect("builds");
    Platform::bring_up(machine, PlatformOptions::default()).expect("has a table")
}

pub(crate) fn viable(platform: &Platform, function: &str) -> Group<Viable> {
    let group = platform.group_of(bdf(function)).expect("there");
    for member in &group.members {
        platform.bind(*member, Driver::Vfio).expect("free");
    }
    platform.open_group(group.id).expect("closed").viable().expect("viable")
}

pub(crate) fn container(platform: &Platform, user: UserId, function: &str) -> Container<Type1> {
    let mut container = Container::new(platform, user);
    container.attach(viable(platform, function)).expect("free");
    container.set_iommu().expect("attaches")
}

pub(crate) fn guest(platform: &Platform, user: UserId, bytes: u64) -> GuestMemory {
    let request = PageRequest::scattered(bytes, 256 << 10);
    GuestMemory::new(platform.allocate(user, request).expect("memory"))
}

pub(crate) fn store(platform: &Platform, function: &str, to: Iova, data: &[u8]) -> bool {
    platform
        .machine()
        .with_engine(bdf(function), |engine, bus| {
            engine.buffer_mut()[..data.len()].copy_from_slice(data);
            engine.store(bus, to, 0, data.len() as u64).is_ok()
        })
        .expect("has an engine")
}

pub(crate) fn fetch(platform: &Platform, function: &str, from: Iova, len: usize) -> Option<Vec<u8>> {
    platform
        .machine()
        .with_engine(bdf(function), |engine, bus| {
            engine.fetch(bus, from, 0, len as u64).ok()?;
            Some(engine.buffer()[..len].to_vec())
        })
        .expect("has an engine")
}

/// The one fault that was recorded since the last call.
pub(crate) fn the_fault(platform: &Platform) -> iommu_vfio::Fault {
    let mut drain = platform.drain_faults();
    assert_eq!(drain.faults.len(), 1, "{:?}", drain.faults);
    drain.faults.remove(0)
}
