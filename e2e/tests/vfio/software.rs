//! The software backend, asked the same.

use std::fs::OpenOptions;
use std::path::Path;

use iommu_devices::virtio::{FileDisk, VirtioBlk, VirtioBlkOptions};
use iommu_dma::Unprotected;
use iommu_types::Bdf;
use iommu_vfio::{Driver, Platform, PlatformOptions, Software};
use soft_platform::{Machine, MachineDescription};

/// Where the embedded machine has a function that moves data.
const FUNCTION: &str = "03:00.0";

fn start(options: PlatformOptions, change: impl FnOnce(&Machine, Bdf)) -> (Software, Bdf) {
    let description = MachineDescription::two_socket().expect("the embedded machine is sound");
    let table = description.to_dmar().expect("its table can be built");
    let machine = Machine::build(&description, &table).expect("it can be built");
    let function: Bdf = FUNCTION.parse().expect("an address");
    change(&machine, function);
    let platform = Platform::bring_up(machine, options).expect("its units start");
    platform.bind(function, Driver::Vfio).expect("it can be bound");
    let user = platform.user("driver");
    (Software::new(&platform, user), function)
}

/// A backend, and a function on it with a DMA engine.
pub(crate) fn engine() -> (Software, Bdf) {
    start(PlatformOptions::default(), |_, _| ())
}

/// As [`engine`], for a user who may have so many bytes pinned.
pub(crate) fn engine_with_limit(bytes: u64) -> (Software, Bdf) {
    let options = PlatformOptions {
        pin_limit: Some(bytes),
        ..PlatformOptions::default()
    };
    start(options, |_, _| ())
}

/// A backend, and a function on it with a virtio disk over an image.
pub(crate) fn disk(image: &Path) -> (Software, Bdf) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(image)
        .expect("the image is there");
    let file = FileDisk::new(file, false).expect("it can be a disk");
    let options = VirtioBlkOptions::default();
    let config = VirtioBlk::describe(options)
        .build()
        .expect("its configuration space is sound");
    let disk = VirtioBlk::new(config, Box::new(file), options).expect("it is a disk");
    start(PlatformOptions::default(), |machine, function| {
        machine.replace(function, Box::new(disk)).expect("it takes the place");
    })
}

#[test]
fn a_machine_without_a_table_is_refused_with_the_words_of_the_dma_api() {
    let description = MachineDescription::two_socket().expect("the embedded machine is sound");
    let machine = Machine::without_iommu(&description).expect("it can be built");
    let refused = Platform::bring_up(machine, PlatformOptions::default()).expect_err("there are no units");
    let said = refused.to_string();
    assert!(said.contains("no DMAR table"), "{said}");
    assert!(said.ends_with(&Unprotected.to_string()), "{said}");
}
