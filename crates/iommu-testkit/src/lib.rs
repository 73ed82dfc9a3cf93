//! Sparse memory, raw table builders, a naive oracle and contract tests.
//!
//! # Purpose
//!
//! Drivers, models and page-table code need memory that watches how it is used, hardware that misbehaves on
//! demand, and a judge that shares none of their code. All of it is here, and none of it is clever.
//!
//! * [`SparseMemory`]: host memory that costs only what is touched. It finds double frees, writes after free
//!   and leaks; it can fail the n-th allocation, answer with bus errors, and show hardware stale cache lines
//!   until they are written back.
//! * [`TestClock`] and [`ScriptedRegisters`]: time and registers under the test's control.
//! * [`raw`]: VT-d tables, interrupt entries and descriptors from plain numbers.
//! * [`oracle`]: what a unit without caches would do with a request, in the specification's order.
//! * [`MappingModel`]: what an address space should hold.
//! * [`contract`]: the promises of the traits in `iommu-types`, as tests for every implementor.
//! * [`strategies`]: inputs for property tests; [`Random`]: numbers for tests that make their own.
//!
//! # Place in the stack
//!
//! Beside the layers, used by tests only. It depends on `iommu-types` alone and knows bit positions by itself:
//! taking them from `vtd-spec` would share its mistakes.
//!
//! # Example
//!
//! ```
//! use iommu_testkit::oracle::{self, OracleAccess, OracleOutcome, OracleRequest, OracleUnit};
//! use iommu_testkit::{SparseMemory, raw};
//!
//! let memory = SparseMemory::new(1 << 30);
//! let mut tables = raw::RawTables::new(&memory, 0x10_0000);
//! let (root, pages) = (tables.page(), tables.page());
//! let context = raw::legacy_context_entry(raw::translation_type::UNTRANSLATED, pages, 2, 5);
//! tables.legacy_context(root, 0x0018, context);
//! tables.second_stage(pages, 4, 0x7000, 0x20_3000, 1, raw::SS_READ);
//!
//! // 16-bit domain-ids, 48-bit addresses, queued invalidation.
//! let unit = OracleUnit { rtaddr: root, cap: 0x2f_0406, ecap: 2, ver: 0x10, haw: 46 };
//! let read = OracleRequest::new(0x0018, 0x7010, OracleAccess::Read);
//! assert!(matches!(oracle::translate(&memory, &unit, &read), OracleOutcome::Pass { host: 0x20_3010, .. }));
//! let write = OracleRequest::new(0x0018, 0x7010, OracleAccess::Write);
//! assert!(matches!(oracle::translate(&memory, &unit, &write), OracleOutcome::Fault { reason: 0x05, .. }));
//! ```
//!
//! # What it does not do
//!
//! The oracle has no caches, no fault log, no queue and no page requests. Nothing here is fast or meant for
//! production; what goes wrong panics.
#![forbid(unsafe_code)]
#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    clippy::missing_panics_doc,
    reason = "an aid of tests reports by panicking"
)]

mod clock;
pub mod contract;
mod mapping;
mod memory;
pub mod oracle;
mod random;
pub mod raw;
mod registers;
pub mod strategies;

pub use clock::TestClock;
pub use mapping::MappingModel;
pub use memory::{FrameCounters, HardwareView, POISON, SparseMemory, SparseMemoryBuilder, Violation};
pub use random::Random;
pub use registers::{RegisterAccess, RegisterFile, ScriptedRegisters};
