//! A peer in the shape of Linux's allocator of I/O virtual addresses, written from its described behaviour.
//!
//! Ranges live in one ordered map under a spin lock; a search begins at a remembered place and walks down from range to
//! range until a gap is large enough, then once more from the top. In front of it each processor keeps two magazines
//! for each power of two up to 32 pages, under a lock of its own, and exchanges them with a depot of at most 32.

use std::collections::BTreeMap;

use iommu_iova::{Exclusive, LockKind, SpinLock};

type Spin<T> = <SpinLock as LockKind>::Lock<T>;

/// Powers of two that are cached: 1 to 32 pages.
const CLASSES: usize = 6;
const MAGAZINE: usize = 127;
const DEPOT: usize = 32;

/// A range: first page and length in pages.
pub(crate) type Range = (u64, u64);

/// The shared part.
pub(crate) struct Linux {
    tree: Spin<Tree>,
    depots: [Spin<Vec<Vec<u64>>>; CLASSES],
    cached: bool,
}

/// What a processor keeps.
pub(crate) struct Processor {
    classes: [Spin<Magazines>; CLASSES],
}

struct Magazines {
    loaded: Vec<u64>,
    previous: Vec<u64>,
}

/// A range on its place in the order of addresses, linked to its neighbours: a search follows one pointer after the
/// other, as it does through the nodes of a tree.
struct Node {
    first: u64,
    last: u64,
    below: usize,
    above: usize,
}

/// The node above all ranges; also the one below all of them.
const ANCHOR: usize = 0;

struct Tree {
    nodes: Vec<Node>,
    unused: Vec<usize>,
    /// Where the range with this first page is.
    places: BTreeMap<u64, usize>,
    /// The node that a search begins below.
    from: usize,
}

impl Tree {
    fn new(limit: u64) -> Self {
        let anchor = Node {
            first: limit,
            last: 0,
            below: ANCHOR,
            above: ANCHOR,
        };
        Self {
            nodes: vec![anchor],
            unused: Vec::new(),
            places: BTreeMap::new(),
            from: ANCHOR,
        }
    }

    fn allocate(&mut self, pages: u64, align: u64) -> Option<u64> {
        let retry_down_to = self.nodes[self.from].last + 1;
        let found = self.search(self.from, 1, pages, align);
        let (first, above) = found.or_else(|| self.search(ANCHOR, retry_down_to, pages, align))?;
        let below = self.nodes[above].below;
        let node = Node {
            first,
            last: first + pages - 1,
            below,
            above,
        };
        let at = self.unused.pop().unwrap_or(self.nodes.len());
        match self.nodes.get_mut(at) {
            Some(place) => *place = node,
            None => self.nodes.push(node),
        }
        self.nodes[above].below = at;
        self.nodes[below].above = at;
        self.places.insert(first, at);
        self.from = at;
        Some(first)
    }

    /// Walks down from below `above` until a gap is large enough: its place, and the node above it.
    fn search(&self, mut above: usize, low: u64, pages: u64, align: u64) -> Option<(u64, usize)> {
        loop {
            let node = &self.nodes[above];
            let place = node.first.checked_sub(pages)? & !(align - 1);
            if place < low {
                return None;
            }
            if place > self.nodes[node.below].last {
                return Some((place, above));
            }
            above = node.below;
        }
    }

    fn free(&mut self, first: u64) {
        let Some(at) = self.places.remove(&first) else { return };
        let Node { below, above, .. } = self.nodes[at];
        if first >= self.nodes[self.from].first {
            self.from = above;
        }
        self.nodes[below].above = above;
        self.nodes[above].below = below;
        self.unused.push(at);
    }
}

/// What is really set aside for a length: cached lengths are rounded up.
const fn rounded(pages: u64) -> u64 {
    if pages < 1 << (CLASSES - 1) {
        pages.next_power_of_two()
    } else {
        pages
    }
}

fn class(pages: u64) -> Option<usize> {
    let pages = rounded(pages);
    let class = usize::try_from(pages.ilog2()).ok()?;
    (pages.is_power_of_two() && class < CLASSES).then_some(class)
}

impl Linux {
    /// A 48-bit space; `cached` tells whether processors keep magazines.
    pub(crate) fn new(cached: bool) -> Self {
        Self {
            tree: Exclusive::new(Tree::new(1 << 36)),
            depots: std::array::from_fn(|_| Exclusive::new(Vec::new())),
            cached,
        }
    }

    pub(crate) fn processor() -> Processor {
        Processor {
            classes: std::array::from_fn(|_| {
                Exclusive::new(Magazines {
                    loaded: Vec::with_capacity(MAGAZINE),
                    previous: Vec::with_capacity(MAGAZINE),
                })
            }),
        }
    }

    #[inline]
    pub(crate) fn allocate(&self, processor: &Processor, pages: u64) -> Option<Range> {
        let pages = rounded(pages);
        if self.cached
            && let Some(class) = class(pages)
            && let Some(first) = processor.classes[class].with(|magazines| self.pop(magazines, class))
        {
            return Some((first, pages));
        }
        let align = pages.next_power_of_two();
        let first = self.tree.with(|tree| tree.allocate(pages, align))?;
        Some((first, pages))
    }

    fn pop(&self, magazines: &mut Magazines, class: usize) -> Option<u64> {
        if magazines.loaded.is_empty() {
            if !magazines.previous.is_empty() {
                std::mem::swap(&mut magazines.loaded, &mut magazines.previous);
            } else if let Some(full) = self.depots[class].with(Vec::pop) {
                magazines.loaded = full;
            }
        }
        magazines.loaded.pop()
    }

    #[inline]
    pub(crate) fn free(&self, processor: &Processor, (first, pages): Range) {
        match class(pages).filter(|_| self.cached) {
            Some(class) => processor.classes[class].with(|magazines| self.push(magazines, class, first)),
            None => self.tree.with(|tree| tree.free(first)),
        }
    }

    fn push(&self, magazines: &mut Magazines, class: usize, first: u64) {
        if magazines.loaded.len() == MAGAZINE {
            if magazines.previous.len() < MAGAZINE {
                std::mem::swap(&mut magazines.loaded, &mut magazines.previous);
            } else {
                let full = std::mem::replace(&mut magazines.loaded, Vec::with_capacity(MAGAZINE));
                let surplus = self.depots[class].with(|depot| {
                    if depot.len() < DEPOT {
                        depot.push(full);
                        None
                    } else {
                        Some(full)
                    }
                });
                if let Some(surplus) = surplus {
                    // All of them under one lock, as the original does.
                    self.tree
                        .with(|tree| surplus.into_iter().for_each(|first| tree.free(first)));
                }
            }
        }
        magazines.loaded.push(first);
    }
}
