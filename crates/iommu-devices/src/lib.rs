//! Emulated PCI functions over a bus trait.
