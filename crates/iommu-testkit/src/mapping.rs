//! What an address space should hold, kept the obvious way.

use std::collections::BTreeMap;

use iommu_types::{Access, AddrRange, HostPhys, Iova, PAGE_SIZE, Perms};

/// Reference for anything that maps I/O virtual addresses: a table of pages, and one of mappings.
///
/// It refuses what [`iommu_types::AddressSpace`] refuses, for the same reasons, and knows no page sizes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MappingModel {
    /// Start of a page → host page and rights.
    pages: BTreeMap<u64, (u64, Perms)>,
    /// First byte of a mapping → last byte.
    mappings: BTreeMap<u64, u64>,
}

impl MappingModel {
    /// Nothing mapped.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Maps `len` bytes; `false`, with nothing changed, on overlap, misalignment, `len` 0 or addresses that
    /// pass the end of either space.
    pub fn map(&mut self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> bool {
        let (iova, phys) = (iova.raw(), phys.raw());
        let aligned = (iova | phys | len) & (PAGE_SIZE - 1) == 0;
        let ends = len
            .checked_sub(1)
            .and_then(|more| Some((iova.checked_add(more)?, phys.checked_add(more)?)));
        let Some((last, _)) = ends.filter(|_| aligned) else {
            return false;
        };
        if self.pages.range(iova..=last).next().is_some() {
            return false;
        }
        for offset in (0..len).step_by(4096) {
            self.pages.insert(iova + offset, (phys + offset, perms));
        }
        self.mappings.insert(iova, last);
        true
    }

    /// The mappings that lie wholly in `range`, or `None` if one is cut by it or there is none.
    #[must_use]
    pub fn whole_mappings(&self, range: AddrRange<Iova>) -> Option<Vec<AddrRange<Iova>>> {
        let (first, last) = (range.first().raw(), range.last().raw());
        let touched: Vec<(u64, u64)> = self
            .mappings
            .range(..=last)
            .filter(|(_, end)| **end >= first)
            .map(|(start, end)| (*start, *end))
            .collect();
        if touched.is_empty() || touched.iter().any(|(start, end)| *start < first || *end > last) {
            return None;
        }
        touched
            .into_iter()
            .map(|(start, end)| AddrRange::new(Iova::new(start), Iova::new(end)))
            .collect()
    }

    /// Removes the mappings in `range`; answers how many pages went, 0 (and nothing changed) if
    /// [`Self::whole_mappings`] has no answer.
    pub fn unmap(&mut self, range: AddrRange<Iova>) -> usize {
        let Some(whole) = self.whole_mappings(range) else {
            return 0;
        };
        let before = self.pages.len();
        for mapping in whole {
            let (first, last) = (mapping.first().raw(), mapping.last().raw());
            self.mappings.remove(&first);
            self.pages.retain(|at, _| *at < first || *at > last);
        }
        before - self.pages.len()
    }

    /// Where `access` to byte `at` goes, if it may.
    #[must_use]
    pub fn translate(&self, at: Iova, access: Access) -> Option<HostPhys> {
        let (phys, perms) = self.pages.get(&at.page().raw())?;
        perms.allows(access).then(|| HostPhys::new(phys + at.page_offset()))
    }

    /// All mapped pages, lowest first: start, host page, rights.
    pub fn pages(&self) -> impl Iterator<Item = (Iova, HostPhys, Perms)> + '_ {
        self.pages
            .iter()
            .map(|(at, (phys, perms))| (Iova::new(*at), HostPhys::new(*phys), *perms))
    }

    /// All mappings, lowest first.
    pub fn mappings(&self) -> impl Iterator<Item = AddrRange<Iova>> + '_ {
        self.mappings
            .iter()
            .filter_map(|(first, last)| AddrRange::new(Iova::new(*first), Iova::new(*last)))
    }

    /// How many 4 KiB pages are mapped.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether nothing is mapped.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, len: u64) -> AddrRange<Iova> {
        AddrRange::from_base_len(Iova::new(first), len).expect("in the space")
    }

    #[test]
    fn mappings_translate_with_their_rights() {
        let mut model = MappingModel::new();
        assert!(model.map(Iova::new(0x1000), HostPhys::new(0x9000), 0x2000, Perms::READ));
        assert_eq!(
            model.translate(Iova::new(0x2fff), Access::Read),
            Some(HostPhys::new(0xafff))
        );
        assert_eq!(model.translate(Iova::new(0x2fff), Access::Write), None);
        assert_eq!(model.translate(Iova::new(0x3000), Access::Read), None);
        assert_eq!(
            (model.len(), model.pages().count(), model.mappings().count()),
            (2, 2, 1)
        );
    }

    #[test]
    fn impossible_mappings_change_nothing() {
        let mut model = MappingModel::new();
        let perms = Perms::READ_WRITE;
        assert!(model.map(Iova::new(0x4000), HostPhys::new(0), 0x1000, perms));
        for (iova, phys, len) in [
            (0x3000, 0, 0x2000),
            (0x1001, 0, 0x1000),
            (0x1000, 1, 0x1000),
            (0x1000, 0, 0x1001),
            (0x1000, 0, 0),
            (!0xfff, 0, 0x2000),
        ] {
            assert!(!model.map(Iova::new(iova), HostPhys::new(phys), len, perms));
        }
        assert_eq!(model.len(), 1);
        assert!(model.map(Iova::new(!0xfff), HostPhys::new(0), 0x1000, perms));
    }

    #[test]
    fn only_whole_mappings_go() {
        let mut model = MappingModel::new();
        for at in [0x1000, 0x5000] {
            assert!(model.map(Iova::new(at), HostPhys::new(0), 0x2000, Perms::READ));
        }
        assert_eq!(model.unmap(range(0x1000, 0x1000)), 0);
        assert_eq!(model.unmap(range(0x0000, 0x6000)), 0);
        assert_eq!(model.unmap(range(0x9000, 0x1000)), 0);
        assert_eq!(model.unmap(range(0x0000, 0x8000)), 4);
        assert!(model.is_empty());
    }
}
