//! A driver for Intel VT-d remapping units.
