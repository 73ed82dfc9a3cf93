//! Which pages devices have written.

use iommu_types::Iova;

use crate::error::VfioError;

/// Longest bitmap in bytes, as Linux has it: 2^31 pages.
pub const LONGEST_BITMAP: u64 = 1 << 28;

/// A bit for each page of a range: set if a device may have written it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBitmap {
    iova: Iova,
    page_size: u64,
    pages: u64,
    words: Vec<u64>,
}

impl DirtyBitmap {
    /// A bitmap of `size` bytes from `iova`, all clean.
    ///
    /// # Errors
    /// [`VfioError::BitmapPageSize`] for pages that are no power of two, [`VfioError::BitmapTooLong`].
    pub(crate) fn clean(iova: Iova, size: u64, page_size: u64) -> Result<Self, VfioError> {
        if !page_size.is_power_of_two() {
            return Err(VfioError::BitmapPageSize {
                page_size,
                granule: iommu_types::PAGE_SIZE,
            });
        }
        let pages = size / page_size;
        let too_long = VfioError::BitmapTooLong {
            iova,
            size,
            longest: LONGEST_BITMAP,
        };
        if pages > LONGEST_BITMAP * 8 {
            return Err(too_long);
        }
        let words = usize::try_from(pages.div_ceil(64)).map_err(|_| too_long)?;
        Ok(Self {
            iova,
            page_size,
            pages,
            words: vec![0; words],
        })
    }

    /// The first address.
    #[must_use]
    pub const fn iova(&self) -> Iova {
        self.iova
    }

    /// Bytes of a page.
    #[must_use]
    pub const fn page_size(&self) -> u64 {
        self.page_size
    }

    /// How many pages there are.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Whether page `page`, counted from the first address, may have been written.
    #[must_use]
    pub fn is_dirty(&self, page: u64) -> bool {
        let word = usize::try_from(page / 64).ok().and_then(|word| self.words.get(word));
        page < self.pages && word.is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// How many pages may have been written.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// The addresses of the pages that may have been written, ascending.
    pub fn dirty(&self) -> impl Iterator<Item = Iova> {
        (0..self.pages)
            .filter(|page| self.is_dirty(*page))
            .filter_map(|page| self.iova.checked_add(page * self.page_size))
    }

    /// The bits, 64 pages a word, the lowest bit first.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// The words, for a kernel to fill.
    #[cfg(target_os = "linux")]
    pub(crate) fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    /// Marks `count` pages from page `first`.
    pub(crate) fn mark(&mut self, first: u64, count: u64) {
        let end = first.saturating_add(count).min(self.pages);
        let mut page = first;
        while page < end {
            let bit = page % 64;
            let run = (64 - bit).min(end - page);
            let mask = if run == 64 { u64::MAX } else { ((1 << run) - 1) << bit };
            if let Some(word) = usize::try_from(page / 64)
                .ok()
                .and_then(|word| self.words.get_mut(word))
            {
                *word |= mask;
            }
            page += run;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_of_pages_are_marked_across_words() {
        let mut bitmap = DirtyBitmap::clean(Iova::new(0x1000), 200 * 4096, 4096).unwrap();
        bitmap.mark(3, 1);
        bitmap.mark(60, 70);
        bitmap.mark(199, 9);
        let expected = |page: u64| page == 3 || (60..130).contains(&page) || page == 199;
        assert!((0..210).all(|page| bitmap.is_dirty(page) == expected(page)));
        assert_eq!(bitmap.count(), 72);
        assert_eq!(bitmap.dirty().next(), Some(Iova::new(0x4000)));
    }

    #[test]
    fn bitmaps_that_cannot_be_are_refused() {
        for page_size in [0, 3, 4097] {
            assert!(DirtyBitmap::clean(Iova::ZERO, 4096, page_size).is_err(), "{page_size}");
        }
        assert!(DirtyBitmap::clean(Iova::ZERO, u64::MAX, 4096).is_err());
    }
}
