//! Arbitrary bytes against everything that reads bytes from outside, for as long as there is time.
//!
//! `PORTCULLIS_FUZZ_SECONDS` is the time for each target; half a second without it. The generator is seeded, and
//! the seed is printed: `PORTCULLIS_FUZZ_SEED` repeats a run. A target fails by panicking, by an endless loop (the
//! whole test has a limit of its own where it is run), or by breaking what it asserts.

#![expect(clippy::expect_used, reason = "a test reports by panicking, its helpers too")]

use std::time::{Duration, Instant};

use acpi_dmar::lint::{self, Machine};
use acpi_dmar::{Dmar, NoTopology};
use iommu_groups::{BusId, ConfigAccess, LinuxVersion, Rules, Topology, group};
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
