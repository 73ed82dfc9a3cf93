//! Proof that layers 0 to 3 need no standard library.
//!
//! This library has its own panic handler and allocator and links every crate of these layers. A crate that
//! pulled in `std` would bring a second panic handler, and the build would fail.
#![no_std]

use core::alloc::{GlobalAlloc, Layout};

// Linked for the check, not called.
extern crate acpi_dmar as _;
extern crate iommu_dma as _;
extern crate iommu_groups as _;
extern crate iommu_iova as _;
extern crate iommu_pagetable as _;
extern crate iommu_types as _;
extern crate vtd_driver as _;
extern crate vtd_model as _;
extern crate vtd_spec as _;

/// An allocator that has nothing to give: the library is built, never run.
struct Nothing;

// SAFETY: `alloc` always reports failure, so there is never a block that could be misused.
unsafe impl GlobalAlloc for Nothing {
    unsafe fn alloc(&self, _layout: Layout) -> *mut u8 {
        core::ptr::null_mut()
    }
    unsafe fn dealloc(&self, _block: *mut u8, _layout: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Nothing = Nothing;

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        core::hint::spin_loop();
    }
}
