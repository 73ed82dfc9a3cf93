//! Size classes: lengths that a core keeps in stock.

/// Longest range that is kept in stock, in pages: 2 MiB.
pub(crate) const MAX_CACHED: u64 = LENGTHS as u64 - 1;
/// How many lengths the class table answers for, 0 included.
const LENGTHS: usize = 513;
/// Number of classes: 1 to 8, then four for each doubling.
pub(crate) const CLASSES: usize = 32;

/// Length of each class in pages. Four steps for each doubling waste less than a quarter.
const PAGES: [u64; CLASSES] = {
    let mut pages = [0; CLASSES];
    let mut class = 0;
    let mut next: u64 = 1;
    let mut step = 1;
    while class < CLASSES {
        pages[class] = next;
        class += 1;
        if next >= 8 && next.is_power_of_two() {
            step = next / 4;
        }
        next += step;
    }
    pages
};

/// For each length, the class that holds it.
const CLASS_OF: [u8; LENGTHS] = {
    let mut of = [0; LENGTHS];
    let mut pages = 0;
    let mut class = 0u8;
    while pages < of.len() {
        if pages as u64 > PAGES[class as usize] {
            class += 1;
        }
        of[pages] = class;
        pages += 1;
    }
    of
};

/// The class that holds `pages` pages; `None` for lengths that are not kept in stock.
#[inline]
pub(crate) fn class_of(pages: u64) -> Option<usize> {
    if pages == 0 {
        return None;
    }
    let class = CLASS_OF.get(usize::try_from(pages).ok()?)?;
    Some(usize::from(*class))
}

/// The length of a class in pages.
#[inline]
pub(crate) fn class_pages(class: usize) -> u64 {
    PAGES.get(class).copied().unwrap_or(MAX_CACHED)
}

/// The alignment, in pages, that everything in a class has: the length where that is a power of two, else one page.
pub(crate) const fn class_align(pages: u64) -> u64 {
    if pages.is_power_of_two() { pages } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_their_lengths_and_waste_less_than_a_quarter() {
        assert_eq!(class_pages(0), 1);
        assert_eq!(class_pages(CLASSES - 1), MAX_CACHED);
        for pages in 1..=MAX_CACHED {
            let class = class_of(pages).expect("in stock");
            let held = class_pages(class);
            assert!(held >= pages && 4 * (held - pages) < pages, "{pages} in {held}");
            assert!(class == 0 || class_pages(class - 1) < pages);
        }
        assert_eq!(class_of(MAX_CACHED + 1), None);
    }
}
