//! A unit in software: registers, descriptors, tables, saved state.

use iommu_testkit::raw::{self, RawTables};
use iommu_testkit::{Random, SparseMemory};
use iommu_types::{Access, HostPhys, Iova, Pasid, SourceId, SystemMemory};
use vtd_model::{AccessWidth, InterruptRequest, Profile, Request, RequestKind, Unit, UnitConfig};
use vtd_spec::register::offset;

use crate::fuzz;

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
