//! Linux's own VFIO as judge of `iommu-vfio`.
//!
//! In a guest with Intel's IOMMU the static program `vfio-guest` runs the conformance list on `/dev/vfio`, tries with a
//! device's DMA which addresses are reached, reads and writes QEMU's virtio disk, meets a limit on pinned memory, and is
//! killed at every step of a driver's life. All of that runs on the software backend in this process as well: answers have
//! to be the same.
//!
//! `PORTCULLIS_QEMU`, `_KERNEL`, `_BUSYBOX`, `_MODULES`, `_IOMMU` and `_VFIO_GUEST` name the programs; without them the
//! tests say that they compared nothing.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking, its helpers too"
)]

mod life;
mod pins;
mod platter;
mod reach;
mod rules;
mod software;

use std::fs;
use std::path::PathBuf;

use e2e::guest::machine::Machine;
use e2e::guest::record::Record;
use e2e::guest::{Guest, Script, Tools};

/// The DMA engine in the guest.
const ENGINE: &str = "0000:01:00.0";
/// The disk in the guest.
const DISK: &str = "0000:02:00.0";

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("vfio")
}

/// A machine with a DMA engine and a disk whose requests are translated, each below a port of its own.
fn machine() -> Machine {
    let port = |number: u8| format!("pcie-root-port,id=p{number},bus=pcie.0,addr={number:x}.0,chassis={number}");
    let devices = [
        port(2),
        "edu,bus=p2,dma_mask=0xffffffffffffffff".to_owned(),
        port(3),
        "virtio-blk-pci,bus=p3,drive=disk,iommu_platform=on,disable-legacy=on".to_owned(),
    ];
    let disk = folder().join("disk");
    let drive = format!("if=none,id=disk,format=raw,file={}", disk.display());
    let devices = devices.into_iter().flat_map(|device| ["-device".to_owned(), device]);
    Machine {
        name: "a DMA engine and a disk".to_owned(),
        arguments: ["-drive".to_owned(), drive].into_iter().chain(devices).collect(),
        ..Machine::default()
    }
}

/// What the guest said.
fn boot(tools: &Tools, program: &std::path::Path) -> Record {
    fs::create_dir_all(folder()).expect("the folder can be made");
    fs::write(folder().join("disk"), platter::image()).expect("the disk's image can be written");
    let guest = Guest {
        files: vec![
            (
                "bin/vfio-guest".to_owned(),
                fs::read(program).expect("the program is there"),
            ),
            ("functions".to_owned(), format!("{ENGINE} {DISK}\n").into_bytes()),
        ],
        ..Guest::new(machine(), Script::Vfio)
    };
    match tools.boot(&folder(), &guest) {
        Ok(record) => record,
        Err(why) => panic!("{why}"),
    }
}

#[test]
fn a_driver_on_linux_is_told_and_reaches_what_it_would_in_software() {
    let (Some(tools), Some(program)) = (Tools::from_environment(), std::env::var_os("PORTCULLIS_VFIO_GUEST")) else {
        println!("compared: nothing, PORTCULLIS_QEMU and its companions name no programs");
        return;
    };
    let record = boot(&tools, &PathBuf::from(program));
    let mut wrong = Vec::new();
    let cases = rules::judge(&record, &mut wrong);
    let probes = reach::judge(&record, &mut wrong);
    let image = fs::read(folder().join("disk")).expect("the disk's image can be read");
    let interrupts = platter::judge(&record, &image, &mut wrong);
    let kills = life::judge(&record, &mut wrong);
    pins::judge(&record, &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!(
        "compared: {cases} cases on both backends, {probes} probes by DMA, a disk with {interrupts} interrupts, a limit on \
         pinned memory, a driver killed {kills} times; Linux {}",
        record.release
    );
}
