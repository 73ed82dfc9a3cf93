//! DIRTY_PAGES, and UNMAP_DMA with a bitmap.

use iommu_types::{Iova, PAGE_SIZE};

use super::{Bench, Case, Judged, Stop, case, refused, same};
use crate::backend::Backend;
use crate::dirty::DirtyBitmap;
use crate::error::{Errno, VfioError};

fn pages<B: Backend>(b: &Bench<B>, page: u64, pages: u64) -> Result<DirtyBitmap, VfioError> {
    b.container.dirty_pages(b.at(page), pages * PAGE_SIZE, PAGE_SIZE)
}

/// Starts, unless the backend does not tell dirty pages.
fn start<B: Backend>(b: &Bench<B>) -> Judged {
    if b.info.dirty.is_none() {
        return Err(Stop::Skipped("dirty pages are not told".to_owned()));
    }
    Ok(b.container.start_dirty_tracking()?)
}

/// The pages of a bitmap that are dirty, by position.
fn set(bitmap: &DirtyBitmap) -> Vec<u64> {
    (0..bitmap.pages()).filter(|page| bitmap.is_dirty(*page)).collect()
}

pub(super) fn cases<B: Backend>() -> Vec<Case<B>> {
    vec![
        case("dirty: pages are 4 KiB", |b| match b.info.dirty {
            Some(dirty) => same("page sizes", dirty.page_sizes, PAGE_SIZE),
            None => Err(Stop::Skipped("dirty pages are not told".to_owned())),
        }),
        case("dirty: asking before the start is EINVAL", |b| {
            b.map(0, 4)?;
            refused(pages(b, 0, 4), &[Errno::Einval])
        }),
        case("dirty: start and stop can be repeated", |b| {
            start(b)?;
            b.container.start_dirty_tracking()?;
            b.container.stop_dirty_tracking()?;
            Ok(b.container.stop_dirty_tracking()?)
        }),
        case("dirty: asking after the stop is EINVAL", |b| {
            b.map(0, 4)?;
            start(b)?;
            b.container.stop_dirty_tracking()?;
            refused(pages(b, 0, 4), &[Errno::Einval])
        }),
        case("dirty: every page that devices reach", |b| {
            b.map(0, 4)?;
            start(b)?;
            same("pages", set(&pages(b, 0, 4)?), vec![0, 1, 2, 3])?;
            same("pages again", set(&pages(b, 0, 4)?), vec![0, 1, 2, 3])
        }),
        case("dirty: pages mapped after the start", |b| {
            start(b)?;
            b.map(0, 2)?;
            same("pages", set(&pages(b, 0, 2)?), vec![0, 1])
        }),
        case("dirty: holes are clean", |b| {
            start(b)?;
            b.map(1, 2)?;
            b.map(70, 1)?;
            same("pages", set(&pages(b, 0, 100)?), vec![1, 2, 70])
        }),
        case("dirty: nothing mapped, nothing dirty", |b| {
            start(b)?;
            same("pages", set(&pages(b, 0, 200)?), vec![])
        }),
        case("dirty: positions count from the start of the range", |b| {
            start(b)?;
            b.map(67, 1)?;
            b.map(130, 3)?;
            same("pages", set(&pages(b, 3, 200)?), vec![64, 127, 128, 129])
        }),
        case("dirty: no bytes is EINVAL", |b| {
            start(b)?;
            refused(pages(b, 0, 0), &[Errno::Einval])
        }),
        case("dirty: an address inside a page is EINVAL", |b| {
            start(b)?;
            b.map(0, 2)?;
            let result = b.container.dirty_pages(Iova::new(b.base + 8), PAGE_SIZE, PAGE_SIZE);
            refused(result, &[Errno::Einval])
        }),
        case("dirty: half a page is EINVAL", |b| {
            start(b)?;
            refused(
                b.container.dirty_pages(b.at(0), PAGE_SIZE / 2, PAGE_SIZE),
                &[Errno::Einval],
            )
        }),
        case("dirty: pages of 2 MiB are EINVAL", |b| {
            start(b)?;
            refused(b.container.dirty_pages(b.at(0), 2 << 20, 2 << 20), &[Errno::Einval])
        }),
        case("dirty: pages of 0 or 3 bytes are EINVAL", |b| {
            start(b)?;
            refused(b.container.dirty_pages(b.at(0), PAGE_SIZE, 0), &[Errno::Einval])?;
            refused(b.container.dirty_pages(b.at(0), PAGE_SIZE, 3), &[Errno::Einval])
        }),
        case("dirty: half of a mapping is EINVAL", |b| {
            start(b)?;
            b.map(4, 4)?;
            refused(pages(b, 4, 2), &[Errno::Einval])?;
            refused(pages(b, 6, 2), &[Errno::Einval])?;
            refused(pages(b, 0, 6), &[Errno::Einval])?;
            b.exactly(&[(4, 4)])
        }),
        case("unmap dirty: tells bytes and pages", |b| {
            start(b)?;
            b.map(1, 2)?;
            b.map(65, 2)?;
            let (bytes, bitmap) = b.container.dma_unmap_dirty(b.at(0), 128 * PAGE_SIZE)?;
            same("bytes", bytes, 4 * PAGE_SIZE)?;
            same("pages", set(&bitmap), vec![1, 2, 65, 66])?;
            b.exactly(&[])
        }),
        case("unmap dirty: without tracking is EINVAL and changes nothing", |b| {
            b.map(0, 4)?;
            refused(b.container.dma_unmap_dirty(b.at(0), 4 * PAGE_SIZE), &[Errno::Einval])?;
            b.exactly(&[(0, 4)])
        }),
        case("unmap dirty: half of a mapping is EINVAL and changes nothing", |b| {
            start(b)?;
            b.map(0, 4)?;
            refused(b.container.dma_unmap_dirty(b.at(0), 2 * PAGE_SIZE), &[Errno::Einval])?;
            b.exactly(&[(0, 4)])
        }),
        case("unmap: plain, while tracking", |b| {
            start(b)?;
            b.map(0, 4)?;
            same("bytes", b.unmap(0, 4)?, 4 * PAGE_SIZE)?;
            same("pages", set(&pages(b, 0, 4)?), vec![])
        }),
    ]
}
