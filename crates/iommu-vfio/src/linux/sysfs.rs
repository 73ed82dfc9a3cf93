//! What the kernel shows about groups.

use std::fs;
use std::path::{Path, PathBuf};

use iommu_types::Bdf;

use crate::error::VfioError;
use crate::group::GroupId;

fn device(sys: &Path, function: Bdf) -> PathBuf {
    sys.join("bus/pci/devices").join(function.to_string())
}

/// The last part of what a link points at.
fn target(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_str()?.to_owned())
}

pub(super) fn group_of(sys: &Path, function: Bdf) -> Result<GroupId, VfioError> {
    let device = device(sys, function);
    if !device.exists() {
        return Err(VfioError::NoFunction(function));
    }
    let group = target(&device.join("iommu_group")).and_then(|number| number.parse().ok());
    group.map(GroupId).ok_or(VfioError::NoIommu(function))
}

/// The functions of a group, ascending; `None` if there is no such group.
pub(super) fn members(sys: &Path, group: GroupId) -> Option<Vec<Bdf>> {
    let devices = sys.join("kernel/iommu_groups").join(group.to_string()).join("devices");
    let mut members: Vec<Bdf> = fs::read_dir(devices)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    members.sort_unstable();
    Some(members)
}

pub(super) fn driver(sys: &Path, function: Bdf) -> Option<String> {
    target(&device(sys, function).join("driver"))
}

/// Whether a driver leaves DMA alone: those that hand devices to users, and those of ports.
pub(super) fn is_harmless(driver: &str) -> bool {
    matches!(driver, "pci-stub" | "pcieport") || driver.starts_with("vfio")
}

/// The limit of memory that the process may have pinned, in bytes; `None` if there is none.
pub(super) fn pin_limit() -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_drivers_are_read_from_links() {
        let sys = std::env::temp_dir().join(format!("portcullis-sysfs-{}", std::process::id()));
        let function: Bdf = "0000:03:00.0".parse().unwrap();
        let device = sys.join("bus/pci/devices/0000:03:00.0");
        let group = sys.join("kernel/iommu_groups/7/devices/0000:03:00.0");
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(&group).unwrap();
        std::os::unix::fs::symlink("../../../kernel/iommu_groups/7", device.join("iommu_group")).unwrap();
        std::os::unix::fs::symlink("../../drivers/nvme", device.join("driver")).unwrap();
        assert_eq!(group_of(&sys, function).unwrap(), GroupId(7));
        assert_eq!(members(&sys, GroupId(7)), Some(vec![function]));
        assert_eq!(members(&sys, GroupId(8)), None);
        assert_eq!(driver(&sys, function).as_deref(), Some("nvme"));
        let absent: Bdf = "0000:04:00.0".parse().unwrap();
        assert!(matches!(group_of(&sys, absent), Err(VfioError::NoFunction(bdf)) if bdf == absent));
        fs::remove_file(device.join("iommu_group")).unwrap();
        assert!(matches!(group_of(&sys, function), Err(VfioError::NoIommu(_))));
        fs::remove_dir_all(&sys).unwrap();
    }

    #[test]
    fn drivers_that_leave_dma_alone_are_known() {
        for driver in ["vfio-pci", "vfio_pci_core", "pci-stub", "pcieport"] {
            assert!(is_harmless(driver), "{driver}");
        }
        assert!(!is_harmless("nvme"));
    }
}
