//! What is read of a real machine: logs, listings and snapshots.

use std::io::Write;

use iommu_groups::{Rules, group};
use iommu_host::check::Plan;
use iommu_host::log as kernel_log;
use iommu_host::{Machine as Host, blame, check, doctor, plan};
use iommu_testkit::Random;

use crate::firmware::table;
use crate::fuzz;

/// Changes up to `most` places of some bytes.
fn disturb(random: &mut Random, bytes: &mut Vec<u8>, most: u64) {
    for _ in 0..random.below(most) {
        if bytes.is_empty() {
            return;
        }
        let at = random.index(bytes.len());
        match random.below(6) {
            0 => bytes[at] = random.byte(),
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, random.byte()),
            4 => {
                // A piece of it once more somewhere else.
                let end = at + random.index((bytes.len() - at).min(200) + 1);
                let piece = bytes[at..end].to_vec();
                let to = random.index(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => {
                let end = at + random.index((bytes.len() - at).min(200) + 1);
                bytes.drain(at..end);
            }
        }
    }
}

/// Lines of all shapes that kernels have printed, and of what stands around them.
const LOG: &str = "\
[    0.000000] Linux version 6.1.0-18-amd64 (x) #1
[    0.000000] Command line: ro intel_iommu=on
[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009efff] usable
[    0.006000] ACPI: DMAR 0x000000006FFFD000 000070 (v01 INTEL)
[    0.020000] DMAR: Host address width 39
[    0.020001] DMAR: DRHD base: 0x000000fed91000 flags: 0x1
[    0.020002] DMAR: dmar0: reg_base_addr fed91000 ver 1:0 cap d2008c40660462 ecap f050da
[    0.020003] DMAR: RMRR base: 0x0000007b800000 end: 0x0000007fffffff
[    0.020004] DMAR-IR: Enabled IRQ remapping in x2apic mode
[    1.000000] pci 0000:00:1f.0: Adding to iommu group 12
[    1.000001] vmd 0000:00:0e.0: PCI host bridge to bus 10000:e0
[    2.000000] DMAR: DRHD: handling fault status reg 602
[    2.000001] DMAR:[DMA Write] Request device [03:00.1] fault addr fffc0000
[    2.000001] DMAR:[fault reason 02] Present bit in context entry is clear
[    2.000002] DMAR: [DMA Read] Request device [00:02.0] fault addr 8900a000 [fault reason 05] PTE Write access is not set
[    2.000003] DMAR: [DMA Read] Request device [05:00.0] PASID ffffffff fault addr 6c800000 [fault reason 06] x
[    2.000004] DMAR: [DMA Read NO_PASID] Request device [0x00:0x02.0] fault addr 0x7b000 [fault reason 0x06] x
[    2.000005][    T1] DMAR: [DMA Write PASID 0x2] Request device [81:00.0] fault addr 0xffffd000 [fault reason 0x59] x
[    2.000006] DMAR: [INTR-REMAP] Request device [64:00.5] fault index 0x8800 [fault reason 0x25] x
[    2.000007] DMAR: Dump dmar5 table entries for IOVA 0x6c800000
[    2.000008] DMAR: VT-d detected Invalidation Time-out Error: SID ffff
[    2.000009] dmar_fault: 12 callbacks suppressed
";

#[test]
fn log_reader() {
    let known = Host::from_listing(LISTING.as_bytes());
    let topology = known.topology();
    fuzz("log reader", |random| {
        let mut bytes = LOG.as_bytes().to_vec();
        disturb(random, &mut bytes, 24);
        if random.below(16) == 0 {
            bytes = (0..random.below(2000)).map(|_| random.byte()).collect();
        }
        let log = kernel_log::read(&bytes);
        // As editors count: what stands behind the last line's end is no line if it is empty.
        let lines = bytes.split_inclusive(|byte| *byte == b'\n').count();
        assert_eq!(log.lines, lines);
        // One line is one thing at most, and nothing comes from a line that is not there.
        assert!(log.records.len() + log.unread_count <= lines);
        assert!(log.records.iter().all(|record| (1..=lines).contains(&record.line)));
        assert!(log.unread.iter().all(|unread| (1..=lines).contains(&unread.line)));
        for (_, fault) in log.faults() {
            let blame = blame::blame(&known, &topology, fault);
            assert!(!blame.next_step(&known).is_empty() && !blame.address.to_string().is_empty());
        }
    });
}

/// A small machine as `lspci` and other commands show it.
const LISTING: &str = "\
00:01.0 PCI bridge [0604]: Somebody Port [8086:a110] (rev f1) (prog-if 00 [Normal decode])
\tControl: I/O+ Mem+ BusMaster+
\tStatus: Cap+ 66MHz- UDF-
\tIOMMU group: 1
\tBus: primary=00, secondary=01, subordinate=02, sec-latency=0
\tCapabilities: [40] Express (v2) Root Port (Slot+), MSI 00
\tCapabilities: [140 v1] Access Control Services
\t\tACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
\t\tACSCtl:\tSrcValid+ TransBlk- ReqRedir+ CmpltRedir+ UpstreamFwd+ EgressCtrl- DirectTrans-
\tKernel driver in use: pcieport
01:00.0 Ethernet controller [0200]: Somebody NIC [8086:1533]
\tStatus: Cap+ 66MHz-
\tNUMA node: 0
\tIOMMU group: 2
\tCapabilities: [a0] Express (v2) Endpoint, MSI 00
\t\t\tExtTag- FLReset+
\tKernel driver in use: igb
00: 86 80 33 15 07 04 10 00 03 00 00 02 10 00 80 00
10: 00 00 10 df 00 00 00 00 01 e0 00 00 00 00 00 00
30: 00 00 00 00 40 00 00 00 00 00 00 00 0b 01 00 00
40: 01 50 23 c8 08 20 00 00 00 00 00 00 00 00 00 00
10000:e1:00.0 0108: 144d:a80a

DMAR @ 0x0000000000000000
    0000: 44 4D 41 52 40 00 00 00 01 00 00 00 00 00 00 00  DMAR@...........
    0010: 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00  ................
    0020: 00 00 00 00 26 01 00 00 00 00 00 00 00 00 00 00  ....&...........
    0030: 00 00 10 00 01 00 00 00 00 10 D9 FE 00 00 00 00  ................
";

/// Asks a machine everything that can be asked.
fn question(random: &mut Random, machine: &Host) {
    let topology = machine.topology();
    for rules in [Rules::Strict, machine.linux_rules()] {
        let groups = group(&topology, rules);
        let members: usize = groups.all().iter().map(|group| group.members.len()).sum();
        assert_eq!(members, topology.functions().len(), "every function is in one group");
        if topology.functions().is_empty() {
            continue;
        }
        let chosen = topology.functions()[random.index(topology.functions().len())].bdf;
        let guest = Plan::default();
        assert!(!check::check(machine, &topology, &groups, &[chosen], guest).is_empty());
        if let Ok(steps) = plan::plan(machine, &topology, &groups, &[chosen], guest) {
            assert!(steps.chosen().any(|f| f.bdf == chosen));
            // What is never to be written to a shell: anything but names, numbers and the marks between them.
            let harmless = |c: char| c.is_ascii_alphanumeric() || " -_./:>[];\'\"".contains(c);
            let routes = [&steps.driverctl, &steps.virsh, &steps.sysfs];
            for step in routes.iter().flat_map(|route| route.prepare.iter().chain(&route.undo)) {
                assert!(step.command.chars().all(harmless), "{:?}", step.command);
            }
        }
    }
    assert!(!doctor::examine(machine).items.is_empty());
}

#[test]
fn listing_reader() {
    fuzz("listing reader", |random| {
        let mut bytes = LISTING.as_bytes().to_vec();
        disturb(random, &mut bytes, 16);
        question(random, &Host::from_listing(&bytes));
    });
}

/// One entry of a tar archive.
fn entry(out: &mut Vec<u8>, path: &str, kind: u8, target: &str, data: &[u8]) {
    let mut header = [0_u8; 512];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", data.len()).as_bytes());
    header[156] = kind;
    header[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header[257..263].copy_from_slice(b"ustar\0");
    out.extend(header);
    out.extend(data);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// Makes the checksums of all headers right again, as far as the archive can be walked.
fn seal(bytes: &mut [u8]) {
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + 512) {
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let digits = String::from_utf8_lossy(&header[124..135]).into_owned();
        let size = usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).unwrap_or(0);
        at = at.saturating_add(512).saturating_add(size.next_multiple_of(512));
    }
}

/// A snapshot of a machine with a port, a card and a table.
fn snapshot() -> Vec<u8> {
    let mut out = Vec::new();
    let port = "sys/devices/pci0000:00/0000:00:01.0";
    let card = "sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0";
    for (name, target) in [
        ("0000:00:01.0", "../../../devices/pci0000:00/0000:00:01.0"),
        ("0000:01:00.0", "../../../devices/pci0000:00/0000:00:01.0/0000:01:00.0"),
    ] {
        entry(&mut out, &format!("sys/bus/pci/devices/{name}"), b'2', target, b"");
    }
    let mut config = [0_u8; 256];
    config[..16].copy_from_slice(&[0x86, 0x80, 0x10, 0xa1, 7, 4, 0x10, 0, 0xf1, 0, 4, 6, 0, 0, 1, 0]);
    config[0x18..0x1b].copy_from_slice(&[0, 1, 1]);
    config[0x34] = 0x40;
    config[0x40..0x44].copy_from_slice(&[0x10, 0, 0x42, 0]);
    entry(&mut out, &format!("{port}/config"), b'0', "", &config);
    entry(&mut out, &format!("{card}/vendor"), b'0', "", b"0x8086\n");
    entry(&mut out, &format!("{card}/device"), b'0', "", b"0x1533\n");
    entry(&mut out, &format!("{card}/class"), b'0', "", b"0x020000\n");
    entry(
        &mut out,
        &format!("{card}/driver"),
        b'2',
        "../../../../bus/pci/drivers/igb",
        b"",
    );
    entry(
        &mut out,
        &format!("{card}/iommu_group"),
        b'2',
        "../../../../kernel/iommu_groups/2",
        b"",
    );
    entry(
        &mut out,
        "sys/kernel/iommu_groups/2/devices/0000:01:00.0",
        b'2',
        "../x",
        b"",
    );
    entry(&mut out, "sys/kernel/iommu_groups/2/type", b'0', "", b"DMA-FQ\n");
    entry(
        &mut out,
        "sys/kernel/iommu_groups/2/reserved_regions",
        b'0',
        "",
        b"0x00000000fee00000 0x00000000feefffff msi\n",
    );
    entry(&mut out, "sys/firmware/acpi/tables/DMAR", b'0', "", &table());
    entry(
        &mut out,
        "sys/firmware/acpi/tables/APIC",
        b'0',
        "",
        &[b'A', b'P', b'I', b'C', 44, 0, 0, 0],
    );
    entry(
        &mut out,
        "sys/class/iommu/dmar0",
        b'2',
        "../../devices/virtual/iommu/dmar0",
        b"",
    );
    entry(
        &mut out,
        "sys/devices/virtual/iommu/dmar0/intel-iommu/cap",
        b'0',
        "",
        b"d2008c40660462\n",
    );
    entry(
        &mut out,
        "sys/block/sda",
        b'2',
        "../devices/pci0000:00/0000:00:01.0/0000:01:00.0/block/sda",
        b"",
    );
    entry(&mut out, "proc/self/mounts", b'0', "", b"/dev/sda1 / ext4 rw 0 0\n");
    entry(
        &mut out,
        "proc/net/route",
        b'0',
        "",
        b"Iface Destination\neth0 00000000\n",
    );
    entry(&mut out, "proc/iomem", b'0', "", b"00001000-0009ffff : System RAM\n");
    entry(&mut out, "var/log/dmesg", b'0', "", LOG.as_bytes());
    entry(
        &mut out,
        "portcullis/manifest",
        b'0',
        "",
        b"portcullis snapshot 1\nabsent sys/firmware/acpi/tables/IVRS\n",
    );
    seal(&mut out);
    out.extend([0; 1024]);
    out
}

#[test]
fn snapshot_reader() {
    let plain = snapshot();
    let machine = Host::from_bytes(&plain).expect("a snapshot");
    assert_eq!(
        (machine.functions.len(), machine.notes.len()),
        (2, 0),
        "{:?}",
        machine.notes
    );
    fuzz("snapshot reader", |random| {
        let mut bytes = plain.clone();
        disturb(random, &mut bytes, 12);
        // Without this, almost nothing would get past the first header that was touched.
        if random.below(4) != 0 {
            seal(&mut bytes);
        }
        if random.below(4) == 0 {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(&bytes).expect("in memory");
            bytes = encoder.finish().expect("in memory");
            disturb(random, &mut bytes, 2);
        }
        if let Ok(machine) = Host::from_bytes(&bytes) {
            question(random, &machine);
        }
    });
}
