//! The driver on the model: each operation is followed by DMA of every device, judged by the testkit's oracle and by
//! what the test asked for.
//!
//! The model runs in the `Silicon` profile wherever caching matters: commands complete late, caches keep what they
//! may, so that a step that the driver leaves out shows as an access that should not have worked, or should have.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests report by panicking, also in their helpers"
)]

mod bring_up;
mod deferred;
mod device_tlb;
mod dirty;
mod failure;
mod interrupts;
mod machine;
mod nested;
mod ownership;
mod pasid;
mod protocol;
mod random;
mod rules;
mod threads;
