//! The DMA API over any address space, and the lesser IOMMUs.
