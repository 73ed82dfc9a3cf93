//! One VT-d remapping unit in software.
