//! Registers, structures, descriptors and fault reasons of Intel VT-d.
