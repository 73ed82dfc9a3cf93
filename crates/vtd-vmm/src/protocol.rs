//! The lock-free parts, over atomics that a model checker can replace.
//!
//! Three small pieces carry the guarantee of this crate:
//!
//! * [`Readers`]: who is inside a section, and when everyone who was inside at some moment has left;
//! * [`Line`]: one cache line of words that readers copy without writing to it;
//! * [`Iotlb`]: the lines, and the generations that make an invalidation one store.
//!
//! They are generic over [`Word`], so that `tests/loom.rs` checks this code itself and not a copy of it.

mod iotlb;
mod line;
mod readers;
mod word;

pub(crate) use iotlb::SPACE_BITS;
pub use iotlb::{Fill, Hit, Iotlb, Page, PageSet, Sample, View};
pub use line::{Line, LineGuard, WORDS};
pub use readers::{Readers, Ticket};
pub use word::Word;
