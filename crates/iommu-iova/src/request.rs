//! What a caller asks an allocator for.

use iommu_types::{Iova, PAGE_SHIFT, PAGE_SIZE, PageSize};

use crate::error::AllocError;

/// The most 4 KiB pages one lease can hold: 1 GiB.
pub const MAX_PAGES: u64 = 1 << (30 - PAGE_SHIFT);

/// A range of addresses that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IovaRequest {
    pages: u64,
    align: u64,
    last: Iova,
    low_first: bool,
}

impl IovaRequest {
    /// `pages` 4 KiB pages anywhere.
    #[must_use]
    pub const fn pages(pages: u64) -> Self {
        Self {
            pages,
            align: 1,
            last: Iova::MAX,
            low_first: false,
        }
    }

    /// As many pages as `len` bytes need.
    #[must_use]
    pub const fn bytes(len: u64) -> Self {
        Self::pages(len.div_ceil(PAGE_SIZE))
    }

    /// Starts at a multiple of `size`, so that leaves of that size can map it.
    ///
    /// It is always honoured. Where it differs from the length, a fragmented space may be refused although one place
    /// exists: the fast allocator finds those that are certain by length, or by a free block of that size.
    #[must_use]
    pub const fn aligned_to(mut self, size: PageSize) -> Self {
        let align = size.bytes() >> PAGE_SHIFT;
        if align > self.align {
            self.align = align;
        }
        self
    }

    /// Starts at a multiple of the length rounded up to a power of two.
    ///
    /// Such a range crosses no boundary of a power of two that is at least as large as itself.
    #[must_use]
    pub const fn naturally_aligned(mut self) -> Self {
        // `pages` beyond the maximum is refused by `check`; it must only not overflow here.
        if self.pages <= MAX_PAGES {
            let align = self.pages.next_power_of_two();
            if align > self.align {
                self.align = align;
            }
        }
        self
    }

    /// Ends at or below `last`: the device's DMA mask. The lowest of several limits counts.
    #[must_use]
    pub const fn below(mut self, last: Iova) -> Self {
        if last.raw() < self.last.raw() {
            self.last = last;
        }
        self
    }

    /// Tries addresses below 4 GiB first: older PCI bridges and devices do well with them, and a 32-bit address
    /// saves a header word in each request.
    #[must_use]
    pub const fn low_first(mut self) -> Self {
        self.low_first = true;
        self
    }

    /// How many 4 KiB pages are wanted.
    #[must_use]
    pub const fn page_count(self) -> u64 {
        self.pages
    }

    /// The alignment wanted, in 4 KiB pages: a power of two.
    #[must_use]
    pub const fn align_pages(self) -> u64 {
        self.align
    }

    /// The last address that will do.
    #[must_use]
    pub const fn last(self) -> Iova {
        self.last
    }

    /// Whether addresses below 4 GiB are tried first.
    #[must_use]
    pub const fn is_low_first(self) -> bool {
        self.low_first
    }

    /// Number of the last page that lies wholly at or below the limit; `None` if not even page 0 does.
    pub(crate) const fn last_page(self) -> Option<u64> {
        match self.last.checked_add(1) {
            None => Some(u64::MAX >> PAGE_SHIFT),
            Some(end) => (end.raw() >> PAGE_SHIFT).checked_sub(1),
        }
    }

    /// Refuses lengths that no lease has.
    pub(crate) const fn check(self) -> Result<(), AllocError> {
        if self.pages == 0 {
            return Err(AllocError::ZeroPages);
        }
        if self.pages > MAX_PAGES {
            return Err(AllocError::TooLarge { pages: self.pages });
        }
        Ok(())
    }

    /// The answer when nothing fits.
    pub(crate) const fn exhausted(self) -> AllocError {
        AllocError::Exhausted {
            pages: self.pages,
            align: self.align,
            last: self.last,
        }
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
