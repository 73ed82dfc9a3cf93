//! The rules of the specification, one test each: condition and outcome.
#![allow(
    clippy::cast_possible_truncation,
    reason = "tests build small numbers; truncation would fail them"
)]

mod caches;
mod commands;
mod fault_log;
mod hostile;
mod interrupts;
mod legacy;
mod oracle;
mod queue;
mod rig;
mod silicon;
