//! Containers, groups and devices: VFIO over the software platform.
