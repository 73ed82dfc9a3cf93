//! A machine in software: units, memory, functions and a PCI fabric.
