//! Map, unmap and walk translation tables of both stages.
//!
//! # Purpose
//!
//! One engine works on every table that a remapping unit walks: second-stage and first-stage, three to five levels,
//! pages of 4 KiB, 2 MiB and 1 GiB. What an entry looks like is a [`Format`]; everything else is written once and
//! tested once, for all of them.
//!
//! The engine changes tables. It does not invalidate: what [`PageTable::unmap`] took out may be cached by hardware,
//! so it returns an [`Unmapped`] that says which addresses must be invalidated, whether cached table pointers are
//! affected, and which table pages wait for the flush before they may be used for anything else.
//!
//! # Place in the stack
//!
//! Layer 2: `no_std + alloc`, above `iommu-types` (memory comes from its `TableMemory`) and `vtd-spec` (which knows
//! the bits), below `vtd-driver`.
//!
//! # Who may call what at the same time
//!
//! All operations take `&self`, and there is no lock. A caller owns the range it maps or unmaps, as the holder of an
//! IOVA lease does; callers whose ranges do not overlap need no agreement. They meet only in shared upper tables:
//!
//! * a table page is linked by compare-exchange, complete with all that lies below it; whoever loses moves its entries
//!   to the winner's and frees its own page, which nobody saw;
//! * a table page is unlinked only by a caller whose range covers everything the page translates, so that nobody
//!   else can be working in it. Tables that become empty in smaller steps stay linked until [`PageTable::prune`]
//!   takes them out, on behalf of a caller that owns the whole range they translate.
//!
//! A [`Walker`] keeps its position between operations, and forgets it whenever a table page was unlinked. All of this
//! runs under a model checker as it stands: the kind of word is a parameter, see [`Word`].
//!
//! Two callers that do work on one range at the same time get an unspecified mix of both, and never a memory error.
//!
//! # Example
//!
//! ```
//! use iommu_pagetable::{Config, LeafSizes, Levels, PageTable, SecondStage, UnmapRules};
//! use iommu_testkit::SparseMemory;
//! use iommu_types::{AddrRange, HostPhys, Iova, PageSize, Perms, TableMemory};
//!
//! let memory = SparseMemory::new(1 << 30);
//! let config = Config::new(Levels::Four).leaf_sizes(LeafSizes::ALL);
//! let table = PageTable::new(SecondStage::default(), config, &memory)?;
//!
//! // All three numbers are multiples of 2 MiB: one entry is enough.
//! table.map(&memory, Iova::new(0x4000_0000), HostPhys::new(0x20_0000), 0x20_0000, Perms::READ_WRITE)?;
//! let found = table.lookup(&memory, Iova::new(0x4000_1234)).expect("mapped");
//! assert_eq!((found.phys, found.size), (HostPhys::new(0x20_1234), PageSize::Size2M));
//!
//! let range = AddrRange::from_base_len(Iova::new(0x4000_0000), 0x20_0000).expect("a range");
//! let unmapped = table.unmap(&memory, range, UnmapRules::STRICT)?;
//! // … invalidate `unmapped.range()` and wait for it; only then:
//! for frame in unmapped.into_frames() {
//!     memory.free(frame);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it does not do
//!
//! It does not invalidate caches, choose addresses, or replace a table by a superpage in place (VT-d §6.5.3.3
//! (Guidance to Software for Invalidations) wants a flush between: [`PageTable::prune`], flush, map).
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod build;
mod config;
mod dirty;
mod error;
mod format;
mod leaves;
mod map;
mod span;
mod table;
mod unmap;
mod unmapped;
mod walker;
mod word;

pub use config::{Config, LeafSizes, Levels};
pub use dirty::{DirtyBits, DirtyCleared, DirtyError};
pub use error::{MapError, UnmapError};
pub use format::{FirstStage, Format, SecondStage};
pub use table::{Mapping, PageTable};
pub use unmap::{Holes, Partial, UnmapRules};
pub use unmapped::{Remainder, Unmapped};
pub use walker::Walker;
pub use word::{Tables, Word};
