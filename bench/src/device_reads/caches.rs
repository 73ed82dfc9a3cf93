//! The caches of a unit as the reference describes them, which the trace tells of every request and every invalidation.

/// Entries of a cache, the one that was used last in front.
#[derive(Debug)]
struct Recent {
    keys: Vec<u64>,
    most: usize,
}

impl Recent {
    const fn new(most: usize) -> Self {
        Self { keys: Vec::new(), most }
    }

    /// Whether the key was there. It is afterwards, as the one that was used last.
    fn use_key(&mut self, key: u64) -> bool {
        let found = self.keys.iter().position(|other| *other == key);
        if let Some(at) = found {
            self.keys.remove(at);
        }
        self.keys.insert(0, key);
        self.keys.truncate(self.most);
        found.is_some()
    }
}

/// The caches of the reference: an IOTLB of 64 entries, and of pointers to tables 32, 32 and 64 for regions of 512 GiB,
/// 1 GiB and 2 MiB; each fully associative, the entry that was not used for longest goes first.
#[derive(Debug)]
pub(super) struct Caches {
    /// First pages, with the lowest bit for those of 2 MiB.
    iotlb: Recent,
    pointers: [Recent; 3],
    /// Entries read from memory.
    pub(super) reads: u64,
    /// Requests that the IOTLB did not answer.
    pub(super) misses: u64,
}

/// Base-2 logarithms of the pages that a pointer stands for.
const REGIONS: [u32; 3] = [27, 18, 9];

impl Caches {
    pub(super) const fn new() -> Self {
        Self {
            iotlb: Recent::new(64),
            pointers: [Recent::new(32), Recent::new(32), Recent::new(64)],
            reads: 0,
            misses: 0,
        }
    }

    /// A request in the leaf, of 2 MiB or 4 KiB, that begins with `page`.
    pub(super) fn access(&mut self, page: u64, large: bool) {
        if self.iotlb.use_key(page << 1 | u64::from(large)) {
            return;
        }
        self.misses += 1;
        // The leaf is read; the entries above it as far down as no pointer is kept.
        self.reads += 1;
        let steps = if large { 2 } else { 3 };
        for (cache, region) in self.pointers.iter_mut().zip(REGIONS).take(steps).rev() {
            if cache.use_key(page >> region) {
                break;
            }
            self.reads += 1;
        }
    }

    /// Forgets pages, and pointers on the way to them unless only leaves changed.
    pub(super) fn invalidate(&mut self, first: u64, last: u64, leaves_only: bool) {
        let apart = |key: u64, shift: u32| key > last >> shift || key < first >> shift;
        self.iotlb.keys.retain(|key| {
            let (page, large) = (key >> 1, key & 1 == 1);
            if large { apart(page >> 9, 9) } else { apart(page, 0) }
        });
        if !leaves_only {
            for (cache, region) in self.pointers.iter_mut().zip(REGIONS) {
                cache.keys.retain(|key| apart(*key, region));
            }
        }
    }
}
