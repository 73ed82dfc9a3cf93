use super::*;
use crate::tree::{Archive, Entry};

fn tree(entries: &[(&str, &str)]) -> Tree {
    let mut archive = Archive::default();
    for (path, text) in entries {
        let entry = match text.strip_prefix("-> ") {
            Some(target) => Entry::Link(target.to_owned()),
            None => Entry::File(text.as_bytes().to_vec()),
        };
        archive.insert((*path).to_owned(), entry);
    }
    Tree::Archive(archive)
}

const PORT: &str = "sys/devices/pci0000:00/0000:00:06.0";
const VMD: &str = "sys/devices/pci0000:00/0000:00:0e.0";
const DISK: &str = "sys/devices/pci0000:00/0000:00:06.0/0000:04:00.0";

fn machine() -> Machine {
    let path = |folder: &str, name: &str| format!("{folder}/{name}");
    let entries = [
        (
            "sys/bus/pci/devices/0000:00:06.0".to_owned(),
            "-> ../../../devices/pci0000:00/0000:00:06.0",
        ),
        (
            "sys/bus/pci/devices/0000:04:00.0".to_owned(),
            "-> ../../../devices/pci0000:00/0000:00:06.0/0000:04:00.0",
        ),
        (
            "sys/bus/pci/devices/0000:00:0e.0".to_owned(),
            "-> ../../../devices/pci0000:00/0000:00:0e.0",
        ),
        (
            "sys/bus/pci/devices/10000:e1:00.0".to_owned(),
            "-> ../../../devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0/10000:e1:00.0",
        ),
        (
            "sys/bus/pci/devices/10000:e0:06.0".to_owned(),
            "-> ../../../devices/pci0000:00/0000:00:0e.0/pci10000:e0/10000:e0:06.0",
        ),
        (path(VMD, "vendor"), "0x8086\n"),
        (path(VMD, "device"), "0x467f\n"),
        (path(VMD, "class"), "0x010400\n"),
        (path(VMD, "pci10000:e0/10000:e0:06.0/vendor"), "0x8086\n"),
        (path(VMD, "pci10000:e0/10000:e0:06.0/device"), "0x464d\n"),
        (path(VMD, "pci10000:e0/10000:e0:06.0/class"), "0x060400\n"),
        (path(VMD, "pci10000:e0/10000:e0:06.0/10000:e1:00.0/vendor"), "0x144d\n"),
        (path(VMD, "pci10000:e0/10000:e0:06.0/10000:e1:00.0/device"), "0xa80a\n"),
        (path(VMD, "pci10000:e0/10000:e0:06.0/10000:e1:00.0/class"), "0x010802\n"),
        (path(PORT, "vendor"), "0x8086\n"),
        (path(PORT, "device"), "0x464d\n"),
        (path(PORT, "class"), "0x060400\n"),
        (path(PORT, "revision"), "0x02\n"),
        (path(PORT, "iommu_group"), "-> ../../../kernel/iommu_groups/5"),
        (path(DISK, "vendor"), "0x144d\n"),
        (path(DISK, "device"), "0xa80a\n"),
        (path(DISK, "class"), "0x010802\n"),
        (path(DISK, "driver"), "-> ../../../../bus/pci/drivers/nvme"),
        (path(DISK, "numa_node"), "-1\n"),
        (path(DISK, "iommu_group"), "-> ../../../../kernel/iommu_groups/14"),
        ("sys/kernel/iommu_groups/14/type".to_owned(), "DMA-FQ\n"),
        (
            "sys/kernel/iommu_groups/14/reserved_regions".to_owned(),
            "0x00000000fee00000 0x00000000feefffff msi\nnonsense\n",
        ),
        ("sys/kernel/iommu_groups/14/devices/0000:04:00.0".to_owned(), "-> ../x"),
        ("sys/kernel/iommu_groups/14/devices/idma64.0".to_owned(), "-> ../x"),
        (
            "sys/class/iommu/dmar10".to_owned(),
            "-> ../../devices/virtual/iommu/dmar10",
        ),
        (
            "sys/class/iommu/dmar2".to_owned(),
            "-> ../../devices/virtual/iommu/dmar2",
        ),
        (
            "sys/devices/virtual/iommu/dmar2/intel-iommu/cap".to_owned(),
            "d2008c40660462\n",
        ),
        (
            "sys/devices/virtual/iommu/dmar2/intel-iommu/ecap".to_owned(),
            "f050da\n",
        ),
        (
            "sys/devices/virtual/iommu/dmar2/intel-iommu/version".to_owned(),
            "1:0\n",
        ),
        (
            "sys/block/nvme0n1".to_owned(),
            "-> ../devices/pci0000:00/0000:00:06.0/0000:04:00.0/nvme/nvme0/nvme0n1",
        ),
        (path(DISK, "nvme/nvme0/nvme0n1/nvme0n1p2/start"), "1\n"),
        ("sys/block/dm-0".to_owned(), "-> ../devices/virtual/block/dm-0"),
        ("sys/devices/virtual/block/dm-0/dm/name".to_owned(), "root\n"),
        ("sys/devices/virtual/block/dm-0/slaves/nvme0n1p2".to_owned(), "-> ../x"),
        ("proc/self/mounts".to_owned(), "/dev/mapper/root / ext4 rw 0 0\n"),
        (
            "proc/net/route".to_owned(),
            "Iface Destination\neth0 00000000\neth1 0000A8C0\n",
        ),
        ("proc/cmdline".to_owned(), "ro intel_iommu=on\n"),
        ("proc/version".to_owned(), "Linux version 6.12.3-amd64 (x) #1\n"),
        ("var/log/dmesg".to_owned(), "[ 1.000000] DMAR: Host address width 39\n"),
    ];
    let entries: Vec<(&str, &str)> = entries.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    read(&tree(&entries), Origin::Snapshot)
}

#[test]
fn functions_come_with_driver_group_disk_and_place() {
    let machine = machine();
    let disk = machine
        .functions
        .get(&"04:00.0".parse().expect("valid"))
        .expect("there");
    assert_eq!(disk.driver, Knowledge::Known("nvme".to_owned()));
    assert_eq!(disk.group, Knowledge::Known(14));
    assert_eq!(disk.identity, Knowledge::Known((0x144d, 0xa80a)));
    assert_eq!(disk.node, Knowledge::Absent);
    assert_eq!(disk.disks, ["nvme0n1"]);
    assert_eq!(
        machine.root_buses,
        Some(vec![BusId::new(Segment(0), 0), BusId::new(Segment(0x1_0000), 0xe0)])
    );
    let topology = machine.topology();
    assert_eq!(
        topology.parent(disk.bdf).map(|f| f.bdf.to_string()),
        Some("0000:00:06.0".to_owned())
    );
    // Capabilities are in configuration space, which this snapshot lacks.
    assert!(topology.get(disk.bdf).is_some_and(|f| f.port.is_unknown()));
}

#[test]
fn functions_behind_a_vmd_keep_their_domain_and_use_its_requester_id() {
    let machine = machine();
    let (vmd, disk) = ("0000:00:0e.0", "10000:e1:00.0");
    let at = |text: &str| text.parse::<Bdf>().expect("valid");
    assert_eq!(machine.functions.get(&at(disk)).expect("there").real_dma, Some(at(vmd)));
    assert_eq!(machine.functions.get(&at(vmd)).expect("there").real_dma, None);
    let topology = machine.topology();
    assert_eq!(topology.problems(), []);
    assert_eq!(topology.requester(at(disk)), Some(at(vmd)));
    assert_eq!(topology.parent(at(disk)).expect("there").bdf, at("10000:e0:06.0"));
    let groups = iommu_groups::group(&topology, machine.linux_rules());
    assert_eq!(groups.together(at(disk), at(vmd)), Some(true));
    assert_eq!(groups.together(at("0000:04:00.0"), at(vmd)), Some(false));
}

#[test]
fn kernel_groups_units_and_vital_devices_are_read() {
    let machine = machine();
    let groups = machine.groups.known().expect("known");
    let group = groups.get(&14).expect("there");
    assert_eq!(group.others, ["idma64.0"]);
    assert_eq!(group.kind, Knowledge::Known("DMA-FQ".to_owned()));
    assert_eq!(group.reserved.known().map(Vec::len), Some(1));
    assert_eq!(groups.get(&5).map(|group| group.functions.len()), Some(1));
    let units = machine.units.known().expect("known");
    assert_eq!(
        units.iter().map(|unit| unit.name.as_str()).collect::<Vec<_>>(),
        ["dmar2", "dmar10"]
    );
    assert_eq!(
        units[0].cap.known().map(|cap| cap.raw_value()),
        Some(0xd2_008c_4066_0462)
    );
    assert_eq!(units[0].version.known().map(|version| version.raw_value()), Some(0x10));
    assert!(units[1].cap.is_unknown());
    assert_eq!(machine.vital_disks, Knowledge::Known(vec!["nvme0n1".to_owned()]));
    assert_eq!(machine.vital_interfaces, Knowledge::Known(vec!["eth0".to_owned()]));
    assert_eq!(machine.linux_version(), iommu_groups::LinuxVersion::new(6, 12));
    assert_eq!(machine.boot_events().count(), 1);
}

#[test]
fn what_an_archive_lacks_is_unknown_with_a_remedy() {
    let machine = machine();
    let obstacle = machine.dmar.obstacle().expect("unknown");
    assert!(obstacle.to_string().contains("tables"), "{obstacle}");
    assert!(obstacle.remedy().contains("iommu snapshot"));
    let empty = read(&tree(&[("sys/x", "")]), Origin::Snapshot);
    assert!(empty.groups.is_unknown() && empty.units.is_unknown() && empty.dmar.is_unknown());
    assert!(empty.vital_disks.is_unknown() && empty.log.is_unknown());
}

#[test]
fn links_in_circles_and_a_device_on_itself_end() {
    let machine = read(
        &tree(&[
            // A function below itself, and two bridges below each other.
            (
                "sys/bus/pci/devices/0000:00:01.0",
                "-> ../../../devices/pci0000:00/0000:00:02.0/0000:00:01.0",
            ),
            (
                "sys/bus/pci/devices/0000:00:02.0",
                "-> ../../../devices/pci0000:00/0000:00:01.0/0000:00:02.0",
            ),
            ("sys/devices/pci0000:00/0000:00:02.0/0000:00:01.0/class", "0x060400"),
            ("sys/devices/pci0000:00/0000:00:02.0/0000:00:01.0/vendor", "0x8086"),
            ("sys/devices/pci0000:00/0000:00:02.0/0000:00:01.0/device", "zzz"),
            (
                "sys/devices/pci0000:00/0000:00:02.0/0000:00:01.0/iommu_group",
                "-> iommu_group",
            ),
            // An array that is made of itself.
            ("sys/block/md0", "-> ../devices/virtual/block/md0"),
            ("sys/devices/virtual/block/md0/slaves/md0", "-> ../../md0"),
            ("proc/self/mounts", "/dev/md0 / ext4 rw 0 0\n"),
        ]),
        Origin::Snapshot,
    );
    assert_eq!(machine.functions.len(), 2);
    assert!(
        machine
            .functions
            .values()
            .next()
            .is_some_and(|f| f.group.is_unknown() && f.identity.is_unknown())
    );
    assert_eq!(machine.vital_disks, Knowledge::Known(Vec::new()));
    let _ = machine.topology();
}
