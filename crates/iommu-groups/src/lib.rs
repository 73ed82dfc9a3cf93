//! PCI topology, DMA aliases, ACS and IOMMU groups with reasons.
#![no_std]
#![forbid(unsafe_code)]

pub mod pci;
