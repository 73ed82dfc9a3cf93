//! Known topologies and the groups they have.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test that cannot go on says so by panicking, helpers included"
)]

mod quirks;
mod reading;
mod requester_ids;
mod slots;
#[path = "../support/mod.rs"]
mod support;
mod switches;
mod virtual_functions;
