//! What a table is made of: levels, page sizes, limits, coherency.

use core::fmt;

use iommu_types::{HostPhys, NodeId, PAGE_SHIFT, PageSize};

/// Base-2 logarithm of the number of entries in one table.
const INDEX_BITS: u32 = 9;

/// How many tables a walk passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Levels {
    /// 39-bit input addresses.
    Three,
    /// 48-bit input addresses.
    Four,
    /// 57-bit input addresses.
    Five,
}

impl Levels {
    /// All depths, smallest first.
    pub const ALL: [Self; 3] = [Self::Three, Self::Four, Self::Five];

    /// The number of levels; also the level of the root table, level 1 being the lowest.
    #[must_use]
    pub const fn count(self) -> u8 {
        match self {
            Self::Three => 3,
            Self::Four => 4,
            Self::Five => 5,
        }
    }

    /// How many bits of an input address the walk uses.
    #[must_use]
    pub const fn address_bits(self) -> u32 {
        match self {
            Self::Three => PAGE_SHIFT + 3 * INDEX_BITS,
            Self::Four => PAGE_SHIFT + 4 * INDEX_BITS,
            Self::Five => PAGE_SHIFT + 5 * INDEX_BITS,
        }
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} levels", self.count())
    }
}

/// Which leaves a remapping unit understands besides 4 KiB ones (`CAP.SSLPS`; for first-stage `CAP.FS1GP`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct LeafSizes {
    /// 2 MiB leaves.
    pub size_2m: bool,
    /// 1 GiB leaves.
    pub size_1g: bool,
}

impl LeafSizes {
    /// 4 KiB only.
    pub const SMALL: Self = Self {
        size_2m: false,
        size_1g: false,
    };
    /// 4 KiB, 2 MiB and 1 GiB.
    pub const ALL: Self = Self {
        size_2m: true,
        size_1g: true,
    };

    /// Whether leaves of `size` may be written.
    #[must_use]
    pub const fn allows(self, size: PageSize) -> bool {
        match size {
            PageSize::Size4K => true,
            PageSize::Size2M => self.size_2m,
            PageSize::Size1G => self.size_1g,
        }
    }
}

/// What the unit that walks the table can do, and where table pages shall lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    pub(crate) levels: Levels,
    pub(crate) sizes: LeafSizes,
    pub(crate) coherent: bool,
    pub(crate) last_phys: HostPhys,
    pub(crate) node: Option<NodeId>,
}

impl Config {
    /// Tables of this depth, with 4 KiB leaves, walked coherently, for a host with 52 address bits.
    #[must_use]
    pub const fn new(levels: Levels) -> Self {
        Self {
            levels,
            sizes: LeafSizes::SMALL,
            coherent: true,
            last_phys: HostPhys::new((1 << 52) - 1),
            node: None,
        }
    }

    /// Leaves that may be used besides 4 KiB ones.
    #[must_use]
    pub const fn leaf_sizes(mut self, sizes: LeafSizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// The walker does not snoop processor caches (`ECAP.C` or `ECAP.SMPWC` is 0): every change is written back.
    #[must_use]
    pub const fn non_coherent(mut self) -> Self {
        self.coherent = false;
        self
    }

    /// The last host address of the platform (host address width). Neither tables nor pages may lie above it.
    #[must_use]
    pub const fn last_phys(mut self, last: HostPhys) -> Self {
        self.last_phys = last;
        self
    }

    /// The memory node for table pages: that of the unit (RHSA structure).
    #[must_use]
    pub const fn node(mut self, node: Option<NodeId>) -> Self {
        self.node = node;
        self
    }

    /// The depth of the tables.
    #[must_use]
    pub const fn levels(&self) -> Levels {
        self.levels
    }

    /// The leaves that may be used.
    #[must_use]
    pub const fn sizes(&self) -> LeafSizes {
        self.sizes
    }

    /// Whether the walker snoops processor caches.
    #[must_use]
    pub const fn is_coherent(&self) -> bool {
        self.coherent
    }
}
