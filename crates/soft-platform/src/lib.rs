//! A machine in software: units, memory, functions and a PCI fabric.
#![forbid(unsafe_code)]

mod description;
mod memory;

pub use description::{
    AtsrDescription, BusRange, DescriptionError, FunctionDescription, FunctionKind, HostBridge, MachineDescription,
    RmrrDescription, SatcDescription, ScopeDescription, ScopeKind, ScopePath, TWO_SOCKET, UnitDescription,
};
pub use memory::{
    LAST_32_BIT, MachineMemory, MemoryLayoutError, MemoryRange, OutOfPages, PageRequest, Pages, Placement, Zone,
};
