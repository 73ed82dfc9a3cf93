//! Tables put into memory.

use iommu_types::{HostPhys, PAGE_SIZE, SystemMemory};

use super::{
    FS_PRESENT, FS_USER, FS_WRITE, PAGE_SIZE_BIT, SS_READ, SS_WRITE, legacy_root_entry, pasid_directory_entry,
    scalable_root_half,
};

/// Builds tables in memory, page after page from a chosen address.
///
/// ```
/// use iommu_testkit::{SparseMemory, raw};
///
/// let memory = SparseMemory::new(1 << 30);
/// let mut tables = raw::RawTables::new(&memory, 0x10_0000);
/// let (root, pages) = (tables.page(), tables.page());
/// let context = raw::legacy_context_entry(raw::translation_type::UNTRANSLATED, pages, 2, 5);
/// tables.legacy_context(root, 0x0018, context);
/// tables.second_stage(pages, 4, 0x7000, 0x20_3000, 1, raw::SS_READ | raw::SS_WRITE);
/// ```
#[derive(Debug)]
pub struct RawTables<'m, M> {
    memory: &'m M,
    next: u64,
}

impl<'m, M: SystemMemory> RawTables<'m, M> {
    /// Tables in `memory`, new pages taken from `first_page` upwards.
    #[must_use]
    pub const fn new(memory: &'m M, first_page: u64) -> Self {
        Self {
            memory,
            next: first_page,
        }
    }

    /// The memory the tables lie in.
    #[must_use]
    pub const fn memory(&self) -> &'m M {
        self.memory
    }

    /// The address of a new page of zeroes.
    pub fn page(&mut self) -> u64 {
        self.pages(1)
    }

    /// The address of `count` new contiguous pages of zeroes.
    pub fn pages(&mut self, count: u64) -> u64 {
        let base = self.next;
        self.next += count * PAGE_SIZE;
        for at in (base..self.next).step_by(8) {
            self.put(at, 0);
        }
        base
    }

    /// Writes one word.
    pub fn put(&self, at: u64, value: u64) {
        self.memory
            .write_u64(HostPhys::new(at), value)
            .expect("raw tables lie in memory");
    }

    /// Writes consecutive words.
    pub fn put_words(&self, at: u64, words: &[u64]) {
        for (at, word) in (at..).step_by(8).zip(words) {
            self.put(at, *word);
        }
    }

    /// Reads one word.
    #[must_use]
    pub fn get(&self, at: u64) -> u64 {
        self.memory
            .read_u64(HostPhys::new(at))
            .expect("raw tables lie in memory")
    }

    /// Turns bit `bit` of the word at `at` over.
    pub fn flip(&self, at: u64, bit: u32) {
        self.put(at, self.get(at) ^ 1 << bit);
    }

    /// Where the legacy context entry of `sid` lies; the bus gets a context table if it has none.
    pub fn legacy_context_at(&mut self, root: u64, sid: u16) -> u64 {
        let [bus, devfn] = sid.to_be_bytes().map(u64::from);
        let at = root + 16 * bus;
        if self.get(at) & 1 == 0 {
            let table = self.page();
            self.put_words(at, &legacy_root_entry(table));
        }
        (self.get(at) & !0xfff) + 16 * devfn
    }

    /// Sets the legacy context entry of `sid`; answers where it lies.
    pub fn legacy_context(&mut self, root: u64, sid: u16, entry: [u64; 2]) -> u64 {
        let at = self.legacy_context_at(root, sid);
        self.put_words(at, &entry);
        at
    }

    /// Where the entry of level `level` lies that covers `address` in the tables at `root` with `levels`
    /// levels. Missing tables on the way are made, linked by entries with `link` as their low bits; an entry
    /// counts as present if it shares a bit with `link`.
    pub fn entry_at(&mut self, root: u64, levels: u32, address: u64, level: u32, link: u64) -> u64 {
        let mut table = root;
        for above in (level + 1..=levels).rev() {
            let at = table + 8 * (address >> (12 + 9 * (above - 1)) & 0x1ff);
            if self.get(at) & link == 0 {
                let page = self.page();
                self.put(at, page | link);
            }
            table = self.get(at) & 0x000f_ffff_ffff_f000;
        }
        table + 8 * (address >> (12 + 9 * (level - 1)) & 0x1ff)
    }

    /// Maps one second-stage page: `level` 1, 2 or 3 for 4 KiB, 2 MiB or 1 GiB. Tables in between allow
    /// reading and writing. Answers where the leaf entry lies.
    pub fn second_stage(&mut self, root: u64, levels: u32, address: u64, phys: u64, level: u32, flags: u64) -> u64 {
        let at = self.entry_at(root, levels, address, level, SS_READ | SS_WRITE);
        let large = if level > 1 { PAGE_SIZE_BIT } else { 0 };
        self.put(at, phys | flags | large);
        at
    }

    /// Maps one first-stage page whose tables lie at host addresses. Tables in between allow everything.
    /// Answers where the leaf entry lies.
    pub fn first_stage(&mut self, root: u64, levels: u32, address: u64, phys: u64, level: u32, flags: u64) -> u64 {
        let at = self.entry_at(root, levels, address, level, FS_PRESENT | FS_WRITE | FS_USER);
        let large = if level > 1 { PAGE_SIZE_BIT } else { 0 };
        self.put(at, phys | flags | large);
        at
    }

    /// Sets the scalable context entry of `sid`; answers where it lies. The half of the bus gets a context table
    /// if it has none.
    pub fn scalable_context(&mut self, root: u64, sid: u16, entry: [u64; 4]) -> u64 {
        let [bus, devfn] = sid.to_be_bytes().map(u64::from);
        let half = root + 16 * bus + 8 * (devfn >> 7);
        if self.get(half) & 1 == 0 {
            let table = self.page();
            self.put(half, scalable_root_half(table));
        }
        let at = (self.get(half) & !0xfff) + 32 * (devfn & 0x7f);
        self.put_words(at, &entry);
        at
    }

    /// Sets the PASID entry of `pasid` under the PASID directory; answers where it lies. The directory entry gets
    /// a table if it has none.
    pub fn pasid(&mut self, directory: u64, pasid: u32, entry: [u64; 8]) -> u64 {
        let link = directory + 8 * u64::from(pasid >> 6);
        if self.get(link) & 1 == 0 {
            let table = self.page();
            self.put(link, pasid_directory_entry(table));
        }
        let at = (self.get(link) & !0xfff) + 64 * u64::from(pasid & 0x3f);
        self.put_words(at, &entry);
        at
    }

    /// Sets entry `index` of the interrupt remapping table at `table`; answers where it lies.
    pub fn irte(&mut self, table: u64, index: u32, entry: [u64; 2]) -> u64 {
        let at = table + 16 * u64::from(index);
        self.put_words(at, &entry);
        at
    }
}
