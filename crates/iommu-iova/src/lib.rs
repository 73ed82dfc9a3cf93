//! Allocators for I/O virtual addresses.
