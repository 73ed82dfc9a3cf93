//! PCI topology, DMA aliases, ACS and IOMMU groups with reasons.
