//! A real machine.
#![forbid(unsafe_code)]

mod config;
mod knowledge;
pub mod log;
mod tar;
mod tree;

pub use config::ConfigSpace;
pub use knowledge::{Knowledge, Obstacle};
pub use tar::ArchiveError;
