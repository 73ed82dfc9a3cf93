//! A kernel that lets QEMU's remapping unit judge the driver.
//!
//! It reads the DMAR table that QEMU made, brings the unit up with `vtd-driver` through real registers, and sends DMA
//! and interrupts of two `edu` devices and of a virtio disk at it: what is mapped has to arrive, everything else has to
//! be blocked and recorded. The disk is driven by `virtio-drivers` through the DMA interface of `iommu-dma`. Each check prints `PASS name` or `FAIL name: why`; the last line is `END passed failed`.
//!
//! On a machine without a DMAR table the kernel says so, and uses the same devices unprotected (`unprotected`).
//!
//! Words of the command line: `no-unit` says that this machine has no remapping unit; `scalable` drives the unit in scalable mode with second-stage tables, `first-stage`
//! with first-stage ones; `silent-interrupts` says that this QEMU drops blocked interrupts without a record.
//! `hostile=SECONDS` with `seed=N` makes no checks, but attacks the functions that `iommu serve` offers (`hostile`).
#![no_std]
#![no_main]

extern crate alloc;

mod apic;
mod checks;
mod console;
mod disk;
mod dma;
mod edu;
mod firmware;
mod hardware;
mod hostile;
mod interrupts;
mod lending;
mod memory;
mod pci;

mod requests;
mod rig;
mod translation;
mod unprotected;
mod virtio;

use core::panic::PanicInfo;

/// Where the start-up code leads to.
pub(crate) extern "C" fn kernel(start_information: u32) -> ! {
    let mut report = checks::Report::default();
    let line = firmware::command_line(start_information);
    console::line(format_args!("portcullis on bare metal, command line: {line}"));
    if let Some(asked) = hostile::Asked::of(line) {
        hostile::run(asked);
    }
    checks::run(&mut report, rig::Expected::of(line));
    console::line(format_args!("END {} {}", report.passed, report.failed));
    console::exit(report.failed == 0)
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    console::line(format_args!("FAIL {info}"));
    console::exit(false)
}
