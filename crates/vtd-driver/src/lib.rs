//! A driver for Intel VT-d remapping units.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod attach;
mod capabilities;
mod command;
mod domain;
mod error;
mod fault;
mod health;
mod ids;
mod interrupt;
mod invalidate;
mod options;
mod pages;
mod queue;
mod shared;
mod space;
mod structures;
mod unit;
mod wait;

pub use attach::{AttachError, DetachError};
pub use capabilities::Capabilities;
pub use command::Command;
pub use domain::{
    DestroyError, Domain, DomainError, DomainOptions, FlushError, MapError, NotDestroyed, PendingFlush, SpaceError,
    UnmapError,
};
pub use error::{HardwareError, Reachable, TableError, Unconfirmed, UnitError};
pub use fault::{Drained, EventMessage, FaultReport};
pub use health::Health;
pub use interrupt::{
    ApicMode, InterruptBlock, InterruptError, InterruptOptions, InterruptSource, InterruptTarget,
};
pub use options::{PassThrough, Requester, ReservedRegion, UnitOptions};
pub use shared::Host;
pub use unit::{Blocked, BringUpError, Found, ReserveError, State, TakenOver, Translating, Unit};
pub use wait::Timeouts;
