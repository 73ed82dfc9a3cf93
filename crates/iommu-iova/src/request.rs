//! What a caller asks an allocator for.

use core::fmt;

use iommu_types::{Iova, PAGE_SHIFT, PAGE_SIZE, PageSize};

use crate::error::AllocError;

/// The most 4 KiB pages one lease can hold: 1 GiB.
pub const MAX_PAGES: u64 = 1 << (30 - PAGE_SHIFT);

/// A range of addresses that is wanted.
// Two words, so that a request travels in registers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct IovaRequest {
    last: Iova,
    shape: Shape,
}

/// From bit 0 on: the length in pages (56 bits, all ones for that and more), the base-2 logarithm of the alignment
/// (7 bits), and whether addresses below 4 GiB are tried first.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Shape(u64);

impl Shape {
    const ALIGN_SHIFT: u32 = 56;
    const MOST_PAGES: u64 = (1 << Self::ALIGN_SHIFT) - 1;
    const ALIGN: u64 = 0x7f << Self::ALIGN_SHIFT;
    const LOW_FIRST: u64 = 1 << 63;

    const fn pages(self) -> u64 {
        self.0 & Self::MOST_PAGES
    }

    const fn align_order(self) -> u64 {
        (self.0 & Self::ALIGN) >> Self::ALIGN_SHIFT
    }

    /// With an alignment of at least `align`, a power of two.
    const fn align(self, align: u64) -> Self {
        let order = align.trailing_zeros() as u64;
        if order <= self.align_order() {
            return self;
        }
        Self(self.0 & !Self::ALIGN | order << Self::ALIGN_SHIFT)
    }
}

impl IovaRequest {
    /// `pages` 4 KiB pages anywhere.
    #[must_use]
    #[inline]
    pub const fn pages(pages: u64) -> Self {
        Self {
            last: Iova::MAX,
            shape: Shape(if pages < Shape::MOST_PAGES {
                pages
            } else {
                Shape::MOST_PAGES
            }),
        }
    }

    /// As many pages as `len` bytes need.
    #[must_use]
    #[inline]
    pub const fn bytes(len: u64) -> Self {
        Self::pages(len.div_ceil(PAGE_SIZE))
    }

    /// Starts at a multiple of `size`, so that leaves of that size can map it.
    ///
    /// It is always honoured. Where it differs from the length, a fragmented space may be refused although one place
    /// exists: the fast allocator finds those that are certain by length, or by a free block of that size.
    #[must_use]
    #[inline]
    pub const fn aligned_to(mut self, size: PageSize) -> Self {
        self.shape = self.shape.align(size.bytes() >> PAGE_SHIFT);
        self
    }

    /// Starts at a multiple of the length rounded up to a power of two.
    ///
    /// Such a range crosses no boundary of a power of two that is at least as large as itself.
    #[must_use]
    #[inline]
    pub const fn naturally_aligned(mut self) -> Self {
        // Lengths beyond the maximum are refused by `check`.
        if self.shape.pages() <= MAX_PAGES {
            self.shape = self.shape.align(self.shape.pages().next_power_of_two());
        }
        self
    }

    /// Ends at or below `last`: the device's DMA mask. The lowest of several limits counts.
    #[must_use]
    #[inline]
    pub const fn below(mut self, last: Iova) -> Self {
        if last.raw() < self.last.raw() {
            self.last = last;
        }
        self
    }

    /// Tries addresses below 4 GiB first: older PCI bridges and devices do well with them, and a 32-bit address
    /// saves a header word in each request.
    #[must_use]
    #[inline]
    pub const fn low_first(mut self) -> Self {
        self.shape.0 |= Shape::LOW_FIRST;
        self
    }

    /// How many 4 KiB pages are wanted; `u64::MAX` for all lengths that pass the 64-bit space by far.
    #[must_use]
    #[inline]
    pub const fn page_count(self) -> u64 {
        match self.shape.pages() {
            Shape::MOST_PAGES => u64::MAX,
            pages => pages,
        }
    }

    /// The alignment wanted, in 4 KiB pages: a power of two.
    #[must_use]
    #[inline]
    pub const fn align_pages(self) -> u64 {
        1 << self.shape.align_order()
    }

    /// The last address that will do.
    #[must_use]
    #[inline]
    pub const fn last(self) -> Iova {
        self.last
    }

    /// Whether addresses below 4 GiB are tried first.
    #[must_use]
    #[inline]
    pub const fn is_low_first(self) -> bool {
        self.shape.0 & Shape::LOW_FIRST != 0
    }

    /// The length to look a class up with: rounded to a power of two where alignment is asked for. `None` if more of it
    /// is asked for than classes have.
    #[inline]
    pub(crate) const fn class_length(self) -> Option<u64> {
        let pages = self.shape.pages();
        if self.shape.align_order() == 0 {
            return Some(pages);
        }
        // At most 2^56, so that this does not overflow.
        let rounded = pages.next_power_of_two();
        if self.align_pages() <= rounded {
            Some(rounded)
        } else {
            None
        }
    }

    /// Number of the last page that lies wholly at or below the limit; `None` if not even page 0 does.
    #[inline]
    pub(crate) const fn last_page(self) -> Option<u64> {
        match self.last.checked_add(1) {
            None => Some(u64::MAX >> PAGE_SHIFT),
            Some(end) => (end.raw() >> PAGE_SHIFT).checked_sub(1),
        }
    }

    /// Refuses lengths that no lease has.
    pub(crate) const fn check(self) -> Result<(), AllocError> {
        match self.page_count() {
            0 => Err(AllocError::ZeroPages),
            1..=MAX_PAGES => Ok(()),
            pages => Err(AllocError::TooLarge { pages }),
        }
    }

    /// The answer when nothing fits.
    pub(crate) const fn exhausted(self) -> AllocError {
        AllocError::Exhausted {
            pages: self.page_count(),
            align: self.align_pages(),
            last: self.last,
        }
    }
}

impl fmt::Debug for IovaRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IovaRequest")
            .field("pages", &self.page_count())
            .field("align", &self.align_pages())
            .field("last", &self.last)
            .field("low_first", &self.is_low_first())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_inside_a_page_excludes_that_page() {
        let request = IovaRequest::pages(1);
        assert_eq!(request.last_page(), Some((1 << 52) - 1));
        assert_eq!(request.below(Iova::new(0xffff_ffff)).last_page(), Some(0xf_ffff));
        assert_eq!(request.below(Iova::new(0xffff_fffe)).last_page(), Some(0xf_fffe));
        assert_eq!(request.below(Iova::new(0xffe)).last_page(), None);
    }

    #[test]
    fn a_request_keeps_what_it_was_given_in_two_words() {
        let request = IovaRequest::pages(MAX_PAGES).low_first().aligned_to(PageSize::Size1G);
        assert_eq!((request.page_count(), request.align_pages()), (MAX_PAGES, MAX_PAGES));
        assert!(request.is_low_first() && !IovaRequest::pages(1).naturally_aligned().is_low_first());
        assert_eq!(request.below(Iova::new(7)).last(), Iova::new(7));
        assert_eq!(size_of::<IovaRequest>(), 16);
    }

    #[test]
    fn lengths_round_up_and_alignment_only_grows() {
        assert_eq!(IovaRequest::bytes(4097).page_count(), 2);
        assert_eq!(IovaRequest::pages(5).naturally_aligned().align_pages(), 8);
        let superpage = IovaRequest::pages(5).aligned_to(PageSize::Size2M);
        assert_eq!(superpage.naturally_aligned().align_pages(), 512);
        assert_eq!(
            IovaRequest::pages(u64::MAX).naturally_aligned().check(),
            Err(AllocError::TooLarge { pages: u64::MAX })
        );
        assert_eq!(IovaRequest::bytes(0).check(), Err(AllocError::ZeroPages));
    }
}
