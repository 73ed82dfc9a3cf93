use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use super::*;
use crate::Machine;

/// A folder that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("portcullis-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("temporary folder");
        Self(path)
    }

    fn file(&self, path: &str, bytes: &[u8]) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("folder");
        fs::write(path, bytes).expect("file");
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().expect("has one")).expect("folder");
        symlink(target, path).expect("link");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_snapshot_tells_the_same_as_the_machine_it_was_taken_of() {
    let root = Scratch::new("snapshot");
    let nic = "sys/devices/pci0000:00/0000:00:02.0";
    let mut config = vec![0u8; 256];
    config[..4].copy_from_slice(&[0x86, 0x80, 0x33, 0x15]);
    root.file(&format!("{nic}/config"), &config);
    root.file(&format!("{nic}/vendor"), b"0x8086\n");
    root.file(&format!("{nic}/device"), b"0x1533\n");
    root.file(&format!("{nic}/numa_node"), b"1\n");
    root.link(&format!("{nic}/iommu_group"), "../../../kernel/iommu_groups/3");
    root.link(&format!("{nic}/driver"), "../../../bus/pci/drivers/igb");
    root.link(
        "sys/bus/pci/devices/0000:00:02.0",
        "../../../devices/pci0000:00/0000:00:02.0",
    );
    root.file("sys/kernel/iommu_groups/3/type", b"DMA\n");
    root.file("sys/kernel/iommu_groups/3/devices/0000:00:02.0", b"");
    root.file("sys/firmware/acpi/tables/FACP", b"x");
    root.file("sys/class/net/lo", b"");
    root.file(&format!("{nic}/net/enx001b21aabbcc/mtu"), b"1500\n");
    root.link(
        "sys/class/net/enx001b21aabbcc",
        "../../devices/pci0000:00/0000:00:02.0/net/enx001b21aabbcc",
    );
    root.link(
        "sys/devices/virtual/net/br0/lower_enx001b21aabbcc",
        "../../../pci0000:00/0000:00:02.0/net/enx001b21aabbcc",
    );
    root.link("sys/class/net/br0", "../../devices/virtual/net/br0");
    root.file("proc/net/route", b"Iface Destination Gateway\nbr0 00000000 0100A8C0\n");
    root.file(&format!("{nic}/block/sda/sda1/partition"), b"1\n");
    root.link("sys/block/sda", "../devices/pci0000:00/0000:00:02.0/block/sda");
    root.file(
        "proc/cmdline",
        b"root=UUID=3f1b2c4d-0000-1111-2222-abcdefabcdef intel_iommu=on\n",
    );
    root.file(
        "proc/self/mounts",
        b"/dev/sda1 / ext4 rw 0 0\nsecret:/x /mnt nfs rw 0 0\n",
    );
    root.file("var/log/dmesg", b"[ 1.000000] DMAR: Host address width 39\n");

    // A root file system on what is on no known disk: any disk may be the one.
    let gone = Scratch::new("snapshot-no-disk");
    gone.file("proc/self/mounts", b"/dev/sdb1 / ext4 rw 0 0\n");
    gone.file(&format!("{nic}/vendor"), b"0x8086\n");
    gone.link(
        "sys/bus/pci/devices/0000:00:02.0",
        "../../../devices/pci0000:00/0000:00:02.0",
    );
    assert!(Machine::open(&gone.0).expect("a machine").vital_disks.is_unknown());

    let live = Machine::open(&root.0).expect("a machine");
    for scrubbed in [false, true] {
        let taken = take(&root.0, scrubbed);
        let text = String::from_utf8_lossy(&taken.bytes);
        assert!(!text.contains("secret"));
        assert_eq!(text.contains("3f1b2c4d"), !scrubbed);
        let read = Machine::from_bytes(&taken.bytes).expect("valid");
        let mut expected = live.functions.clone();
        let card = expected.values_mut().next().expect("one");
        assert_eq!(card.interfaces, ["enx001b21aabbcc"]);
        if scrubbed {
            card.interfaces = vec!["enx-mac1".to_owned()];
        }
        assert_eq!(read.functions, expected, "scrubbed: {scrubbed}");
        assert_eq!(text.contains("001b21aabbcc"), !scrubbed);
        assert!(!text.contains("0100A8C0"), "a gateway is nobody's business");
        // The default route leads over the bridge, and so over the card.
        let vital = read.vital_interfaces.known().expect("known");
        assert!(
            vital.contains(&expected.values().next().expect("one").interfaces[0]),
            "{vital:?}"
        );
        assert_eq!(read.groups, live.groups);
        assert_eq!(read.log, live.log);
        // The machine has no such table, and the snapshot knows that.
        assert!(live.dmar.is_absent() && read.dmar.is_absent(), "{:?}", read.dmar);
        assert_eq!(live.vital_disks, Knowledge::Known(vec!["sda".to_owned()]));
        assert_eq!(read.vital_disks, live.vital_disks, "the partition leads to its disk");
        assert_eq!(read.units, live.units);
        assert_eq!(read.root_buses, live.root_buses);
    }
}

#[test]
fn a_snapshot_of_a_snapshot_tells_the_same_and_can_be_scrubbed_late() {
    let root = Scratch::new("snapshot-again");
    let nic = "sys/devices/pci0000:00/0000:00:02.0";
    root.file(&format!("{nic}/vendor"), b"0x8086\n");
    root.link(
        "sys/bus/pci/devices/0000:00:02.0",
        "../../../devices/pci0000:00/0000:00:02.0",
    );
    root.file(
        "proc/cmdline",
        b"root=UUID=3f1b2c4d-0000-1111-2222-abcdefabcdef intel_iommu=on\n",
    );
    let full = take(&root.0, false);
    assert_eq!(take_again(&full.bytes, false).expect("valid").bytes, full.bytes);
    let scrubbed = take_again(&full.bytes, true).expect("valid");
    assert_eq!(scrubbed.bytes, take(&root.0, true).bytes);
    assert!(take_again(b"no archive", true).is_err() || take_again(b"no archive", true).is_ok_and(|s| s.files == 0));
}
