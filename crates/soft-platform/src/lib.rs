//! A machine in software: units, memory, functions and a PCI fabric.
#![forbid(unsafe_code)]

mod memory;

pub use memory::{
    LAST_32_BIT, MachineMemory, MemoryLayoutError, MemoryRange, OutOfPages, PageRequest, Pages, Placement, Zone,
};
