//! The rules of the specification, one test each: condition and outcome.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    reason = "tests report by panicking and build small numbers"
)]

mod caches;
mod commands;
mod direct;
mod documents;
mod drains;
mod fault_log;
mod hostile;
mod hostile_bounds;
mod hostile_classes;
mod hostile_tables;
mod interrupts;
mod legacy;
mod oracle;
mod oracle_scalable;
mod qemu;
mod queue;
mod races;
mod reached;
mod rig;
mod sanitizer;
mod save;
mod scalable;
mod silicon;
mod staleness;
