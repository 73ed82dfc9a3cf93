//! The host tool `iommu`.

fn main() {}
