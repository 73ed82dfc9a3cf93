//! Arbitrary bytes against everything that reads bytes from outside, for as long as there is time.
//!
//! `PORTCULLIS_FUZZ_SECONDS` is the time for each target; half a second without it. The generator is seeded, and
//! the seed is printed: `PORTCULLIS_FUZZ_SEED` repeats a run. A target fails by panicking, by an endless loop (the
//! whole test has a limit of its own where it is run), or by breaking what it asserts.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

use std::io::Write;
use std::time::{Duration, Instant};

use acpi_dmar::lint::{self, Machine};
use acpi_dmar::{Dmar, NoTopology};
use iommu_groups::{BusId, ConfigAccess, LinuxVersion, Rules, Topology, group};
use iommu_host::check::Plan;
use iommu_host::log as kernel_log;
use iommu_host::{Machine as Host, blame, check, doctor, plan};
use iommu_testkit::SparseMemory;
use iommu_testkit::raw::{self, RawTables};
use iommu_types::{Access, AddrRange, Bdf, HostPhys, Iova, Pasid, Segment, SourceId, SystemMemory};
use vtd_model::{AccessWidth, InterruptRequest, Profile, Request, RequestKind, Unit, UnitConfig};
use vtd_spec::register::offset;

/// A generator with a printed seed (xorshift64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[2]
    }
    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap_or(0)
    }
    /// A number whose interesting values are likely: small, one bit, near the top, anything.
    fn word(&mut self) -> u64 {
        match self.below(4) {
            0 => self.below(16),
            1 => 1 << self.below(64),
            2 => u64::MAX - self.below(0x2000),
            _ => self.next(),
        }
    }
}

/// Runs `target` until the time is over; says how often.
fn fuzz(name: &str, mut target: impl FnMut(&mut Random)) {
    let number = |variable: &str| std::env::var(variable).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("PORTCULLIS_FUZZ_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |now| now.subsec_nanos().into())
    });
    println!("{name}: PORTCULLIS_FUZZ_SEED={seed}");
    let time = number("PORTCULLIS_FUZZ_SECONDS").map_or(Duration::from_millis(500), Duration::from_secs);
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (start, mut runs) = (Instant::now(), 0_u64);
    while start.elapsed() < time {
        target(&mut random);
        runs += 1;
    }
    println!("fuzzed: {runs} runs of {name}");
    assert!(runs > 0);
}

/// A table to start from: two units, a reserved region, an affinity.
fn table() -> Vec<u8> {
    use acpi_dmar::{OwnedDmar, OwnedDrhd, OwnedRmrr, OwnedScope};
    let source = |text: &str| text.parse::<SourceId>().expect("valid");
    let region = AddrRange::from_base_len(HostPhys::new(0x7b80_0000), 0x1_0000).expect("no wrap");
    OwnedDmar::new(46)
        .with(OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_0000)).scope(OwnedScope::endpoint(source("00:02.0"))))
        .with(OwnedDrhd::new(Segment(0), HostPhys::new(0xfed9_1000)).include_pci_all())
        .with(OwnedRmrr::new(Segment(0), region).scope(OwnedScope::endpoint(source("00:14.0"))))
        .build()
        .expect("a small table")
}

#[test]
fn table_reader() {
    let plain = table();
    fuzz("table reader", |random| {
        let mut bytes = plain.clone();
        for _ in 0..random.below(8) {
            let at = random.index(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.byte(),
                1 => bytes[at] ^= 1 << random.below(8),
                2 => bytes.truncate(at.max(1)),
                _ => bytes.insert(at, random.byte()),
            }
        }
        if random.below(16) == 0 {
            bytes = (0..random.below(300)).map(|_| random.byte()).collect();
        }
        let _ = lint::lint_bytes(&bytes, &Machine::default());
        if let Ok(table) = Dmar::inspect(&bytes) {
            // The walk ends within the bytes: every structure is at least four of them long.
            assert!(table.structures().count() <= bytes.len() / 4 + 1);
            let function = Bdf::new(Segment(0), SourceId::from_raw(0x00a0));
            let _ = table.owner(function, &NoTopology);
        }
    });
}

/// Configuration space of a few functions, full of anything.
#[derive(Debug)]
struct Noise(Vec<(Bdf, Vec<u8>)>);

impl ConfigAccess for Noise {
    fn read32(&self, bdf: Bdf, offset: u16) -> Option<u32> {
        let Some((_, space)) = self.0.iter().find(|(known, _)| *known == bdf) else {
            return Some(u32::MAX);
        };
        let at = usize::from(offset & !3);
        space
            .get(at..at + 4)
            .and_then(|bytes| Some(u32::from_le_bytes(bytes.try_into().ok()?)))
    }
}

#[test]
fn configuration_space_walker() {
    fuzz("configuration space walker", |random| {
        let functions = (0..1 + random.below(6))
            .map(|_| {
                let source = SourceId::from_raw(u16::try_from(random.below(0x400)).expect("small"));
                let mut space: Vec<u8> = (0..256 + random.below(2) * 512).map(|_| random.byte()).collect();
                // Something that is there, with a header type and a capability list.
                space[0..2].copy_from_slice(&[0x86, 0x80]);
                space[0x0e] = random.byte() & 0x83;
                space[0x06] |= 0x10;
                space[0x34] = random.byte() & 0xfc;
                (Bdf::new(Segment(0), source), space)
            })
            .collect();
        let topology = Topology::scan(
            &Noise(functions),
            &[BusId {
                segment: Segment(0),
                bus: 0,
            }],
        );
        for rules in [Rules::Strict, Rules::Linux(LinuxVersion::new(6, 12))] {
            let groups = group(&topology, rules);
            let members: usize = groups.all().iter().map(|group| group.members.len()).sum();
            assert_eq!(members, topology.functions().len(), "every function is in one group");
        }
    });
}

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
        let lines = bytes.split(|byte| *byte == b'\n').count();
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

const SOURCE: u16 = 0x0018;
const QUEUE: u64 = 0x20_0000;

/// A unit of some kind with tables, a queue and an interrupt table in place.
fn unit(random: &mut Random, memory: &SparseMemory) -> Unit {
    let profile = if random.below(2) == 0 {
        Profile::Spec
    } else {
        Profile::Silicon
    };
    let mut builder = UnitConfig::builder()
        .profile(profile)
        .caching_mode(random.below(2) == 0);
    if random.below(2) == 0 {
        builder = builder.full_scalable_mode();
    }
    let mut tables = RawTables::new(memory, 0x10_0000);
    let (root, top, interrupts) = (tables.page(), tables.page(), tables.page());
    tables.legacy_context(
        root,
        SOURCE,
        raw::legacy_context_entry(raw::translation_type::UNTRANSLATED, top, 2, 1),
    );
    for page in 0..8 {
        tables.second_stage(
            top,
            4,
            page << 12,
            0x30_0000 + (page << 12),
            1,
            raw::SS_READ | raw::SS_WRITE,
        );
    }
    let mut unit = Unit::new(builder.build().expect("consistent"));
    for (register, value) in [
        (offset::RTADDR, root),
        (offset::IQA, QUEUE),
        (offset::IRTA, interrupts | 7),
    ] {
        unit.write(memory, register, AccessWidth::Qword, value);
    }
    for command in [
        1_u64 << 30,
        1 << 26,
        1 << 26 | 1 << 24,
        1 << 26 | 1 << 25,
        1 << 31 | 1 << 26 | 1 << 25,
    ] {
        unit.write(memory, offset::GCMD, AccessWidth::Dword, command);
    }
    unit
}

fn memory() -> SparseMemory {
    SparseMemory::builder().data(0, 8 << 20).build()
}

/// One request of any kind, mostly of the function that has tables.
fn request(random: &mut Random, unit: &mut Unit, memory: &SparseMemory) {
    let source = SourceId::from_raw(if random.below(4) == 0 {
        random.byte().into()
    } else {
        SOURCE
    });
    let access = [Access::Read, Access::Write, Access::Atomic][random.index(3)];
    let address = if random.below(2) == 0 {
        random.below(0x9000)
    } else {
        random.word()
    };
    let mut request = Request::new(source, Iova::new(address), random.below(64), access);
    if random.below(4) == 0 {
        request = request.with_kind([RequestKind::Translation, RequestKind::Translated][random.index(2)]);
    }
    if let Some(pasid) = Pasid::new(random.byte().into()).filter(|_| random.below(4) == 0) {
        request = request.with_pasid(pasid);
    }
    let answer = unit.dma(memory, &request);
    if let Ok(translation) = answer {
        assert!(translation.page.contains(request.address), "{request}: {translation:?}");
    }
    let message = InterruptRequest {
        source,
        address: 0xfee0_0000 | random.below(0x10_0000) & !3,
        data: 7,
    };
    let _ = unit.interrupt(memory, &message);
}

#[test]
fn register_sequences() {
    let memory = memory();
    fuzz("register sequences", |random| {
        let mut unit = unit(random, &memory);
        for _ in 0..64 {
            let at = u32::try_from(random.below(0x1010)).expect("small");
            let width = [AccessWidth::Dword, AccessWidth::Qword][random.index(2)];
            if random.below(4) == 0 {
                let _ = unit.read(at, width);
            } else {
                unit.write(&memory, at, width, random.word());
            }
            request(random, &mut unit, &memory);
            // A unit that never comes to rest would keep the embedder's thread for ever.
            assert!(
                (0..10_000).any(|_| !unit.step(&memory)),
                "the unit does not come to rest"
            );
        }
    });
}

#[test]
fn descriptor_queues() {
    let memory = memory();
    fuzz("descriptor queues", |random| {
        let mut unit = unit(random, &memory);
        for slot in 0..256 {
            let (kind, wild) = (random.below(16), random.below(4) == 0);
            let low = if wild {
                random.next()
            } else {
                kind | random.next() & 0xffff_ffff_ffff_00f0
            };
            for (word, value) in [low, random.word()].into_iter().enumerate() {
                memory
                    .write_u64(HostPhys::new(QUEUE + slot * 16 + word as u64 * 8), value)
                    .expect("memory");
            }
        }
        for _ in 0..16 {
            unit.write(&memory, offset::IQT, AccessWidth::Qword, random.below(0x1100) & !0xf);
            assert!(
                (0..10_000).any(|_| !unit.step(&memory)),
                "the unit does not come to rest"
            );
            // Errors are cleared as a driver does, and the queue goes on.
            unit.write(&memory, offset::FSTS, AccessWidth::Dword, 0x71);
            request(random, &mut unit, &memory);
        }
    });
}

#[test]
fn translation_tables() {
    let memory = memory();
    fuzz("translation tables", |random| {
        let mut unit = unit(random, &memory);
        for _ in 0..32 {
            let at = 0x10_0000 + (random.below(0x8000) & !7);
            let value = match random.below(3) {
                // A pointer back into the tables: loops and levels that do not fit.
                0 => (0x10_0000 + (random.below(8) << 12)) | random.below(0x100),
                1 => random.word(),
                _ => memory.read_u64(HostPhys::new(at)).unwrap_or(0) ^ 1 << random.below(64),
            };
            memory.write_u64(HostPhys::new(at), value).expect("memory");
            request(random, &mut unit, &memory);
        }
    });
}

#[test]
fn saved_state() {
    let memory = memory();
    fuzz("saved state", |random| {
        let mut unit = unit(random, &memory);
        request(random, &mut unit, &memory);
        let mut bytes = unit.save();
        let config = *unit.config();
        for _ in 0..1 + random.below(4) {
            let at = random.index(bytes.len());
            match random.below(3) {
                0 => bytes[at] = random.byte(),
                1 => bytes[at] ^= 1 << random.below(8),
                _ => bytes.truncate(at.max(1)),
            }
        }
        // Whatever is accepted must behave like a unit.
        if let Ok(mut restored) = Unit::restore(config, &bytes) {
            for _ in 0..8 {
                request(random, &mut restored, &memory);
                assert!(
                    (0..10_000).any(|_| !restored.step(&memory)),
                    "the unit does not come to rest"
                );
            }
        }
    });
}
