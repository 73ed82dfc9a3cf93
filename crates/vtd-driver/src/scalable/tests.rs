//! Scalable mode: what the tables say, judged by the oracle, and what the unit is told.

use arbitrary_int::{u3, u4, u5, u6, u10};
use iommu_types::{Access, AddrRange, GuestPhys, Iova, Perms, SystemMemory};
use vtd_spec::register::{Capability, ExtendedCapability, Version, offset};

use super::*;
use crate::testing::Obedient;
use crate::{
    AttachError, DestroyError, Domain, DomainError, DomainOptions, GuestTable, MapError, PassThrough, Requester,
    ReservedRegion, Stage, TableMode, Translating, Unit, UnitError, UnitOptions, UnitQuirks,
};

/// Global context, PASID and IOTLB invalidation, in this order.
const GLOBAL: [[u64; 2]; 3] = [[0x11, 0], [0x37, 0], [0xd2, 0]];

fn capability() -> Capability {
    Capability::DEFAULT
        .with_nd(u3::new(2))
        .with_sagaw(u5::new(0b100))
        .with_mgaw(u6::new(47))
        .with_fro(u10::new(0x40))
        .with_sslps(u4::new(3))
        .with_psi(true)
        .with_mamv(u6::new(18))
        .with_drd(true)
        .with_dwd(true)
}

fn extended() -> ExtendedCapability {
    ExtendedCapability::DEFAULT
        .with_c(true)
        .with_qi(true)
        .with_pt(true)
        .with_sc(true)
        .with_smts(true)
        .with_ssts(true)
        .with_fsts(true)
        .with_nest(true)
        .with_smpwcs(true)
}

fn unit_of(cap: Capability, ecap: ExtendedCapability) -> Obedient {
    Obedient::new(Version::new_with_raw_value(0x50), cap, ecap)
}

type TestUnit<'m> = Unit<&'m Obedient, &'m Obedient, Translating>;

fn translating(hardware: &Obedient) -> TestUnit<'_> {
    translating_with(hardware, UnitQuirks::default())
}

fn translating_with(hardware: &Obedient, quirks: UnitQuirks) -> TestUnit<'_> {
    let options = UnitOptions {
        pass_through: PassThrough::AllowedForTrustedDevices,
        quirks,
        ..Obedient::options(TableMode::Scalable)
    };
    let unit = Unit::found(hardware, hardware, options).expect("found");
    let unit = unit.take_over().map_err(|error| error.cause).expect("taken over");
    unit.enable().map_err(|error| error.cause).expect("enabled")
}

fn domain<'m>(unit: &TestUnit<'m>, stage: Stage) -> Domain<&'m Obedient, &'m Obedient> {
    let options = DomainOptions {
        stage,
        ..DomainOptions::default()
    };
    unit.create_domain(options).expect("a domain")
}

fn requester(text: &str) -> Requester {
    Requester::new(text.parse().expect("a source"))
}

fn range(base: u64, len: u64) -> AddrRange<Iova> {
    AddrRange::from_base_len(Iova::new(base), len).expect("a range")
}

#[test]
fn bring_up_clears_context_pasid_and_translation_caches_in_this_order() {
    let hardware = unit_of(capability(), extended());
    let _unit = translating(&hardware);
    assert_eq!(hardware.take_descriptors(), GLOBAL);
    assert!(
        hardware
            .walk("02:00.0".parse().expect("valid"), Iova::new(0x1000), Access::Read)
            .is_err()
    );
}

#[test]
fn a_queue_runs_a_wait_before_anything_depends_on_it() {
    let hardware = unit_of(capability().with_esrtps(true), extended());
    let _unit = translating(&hardware);
    assert_eq!(hardware.take_descriptors(), [[0; 2]; 0]);
    let tail = Registers::read64(&&hardware, offset::IQT);
    assert_eq!(tail, 32, "one descriptor of 256 bits");
}

#[test]
fn devices_in_both_halves_of_a_bus_reach_what_is_mapped_in_either_stage() {
    for stage in [Stage::Second, Stage::First] {
        let hardware = unit_of(capability(), extended());
        let unit = translating(&hardware);
        let domain = domain(&unit, stage);
        domain
            .map(
                Iova::new(0x20_0000),
                HostPhys::new(0x4000_0000),
                0x40_1000,
                Perms::READ_WRITE,
            )
            .expect("mapped");
        domain
            .map(Iova::new(0x10_0000), HostPhys::new(0x9000), 0x1000, Perms::READ)
            .expect("mapped");
        let devices = ["02:03.1", "02:1f.7"].map(requester);
        for device in &devices {
            unit.attach(device, &domain).expect("attached");
            let reach = |at, access| hardware.walk(device.rid, Iova::new(at), access);
            assert_eq!(
                reach(0x60_0008, Access::Write),
                Ok(HostPhys::new(0x4040_0008)),
                "{stage:?}"
            );
            assert_eq!(reach(0x10_0000, Access::Read), Ok(HostPhys::new(0x9000)));
            assert!(reach(0x10_0000, Access::Write).is_err() && reach(0x10_1000, Access::Read).is_err());
        }
        assert!(
            hardware
                .walk("02:00.0".parse().expect("valid"), Iova::new(0x20_0000), Access::Read)
                .is_err()
        );

        // Attribution of faults reads the same tables.
        let lookup = |device: &Requester| lookup(&&hardware, HostPhys::new(hardware.root_table()), device.rid, None);
        assert_eq!(lookup(&devices[1]), Some(domain.id()));
        for device in &devices {
            hardware.take_descriptors();
            unit.detach(device).expect("detached");
            let id = u64::from(domain.id().0) << 16;
            let source = u64::from(device.rid.raw()) << 32;
            // Context of the device, PASID cache and translations of the domain.
            assert_eq!(
                hardware.take_descriptors(),
                [[source | id | 0x31, 0], [id | 0x07, 0], [id | 0xe2, 0]]
            );
            assert!(hardware.walk(device.rid, Iova::new(0x10_0000), Access::Read).is_err());
        }
        assert_eq!(lookup(&devices[1]), None);
        domain.destroy().expect("destroyed");
        assert_eq!(hardware.memory.violations(), []);
    }
}

#[test]
fn first_stage_unmaps_are_flushed_by_pasid_and_new_mappings_need_no_flush_in_caching_mode() {
    let hardware = unit_of(capability().with_cm(true), extended());
    let unit = translating(&hardware);
    let (first, second) = (domain(&unit, Stage::First), domain(&unit, Stage::Second));
    let [one, two] = [&first, &second].map(|domain| u64::from(domain.id().0) << 16);
    hardware.take_descriptors();
    for domain in [&first, &second] {
        domain
            .map(Iova::new(0x8000), HostPhys::new(0x9000), 0x2000, Perms::READ)
            .expect("mapped");
    }
    assert_eq!(hardware.take_descriptors(), [[two | 0xf2, 0x8001]]);
    for (domain, expected) in [(&first, [one | 0x36, 0x8041]), (&second, [two | 0xf2, 0x8041])] {
        let pending = domain.unmap(range(0x8000, 0x2000), ()).expect("mapped");
        domain.flush(pending).expect("flushed");
        assert_eq!(hardware.take_descriptors(), [expected]);
    }
    // A new device: what was cached about its absence goes under domain 0.
    unit.attach(&requester("02:00.0"), &first).expect("attached");
    let fresh = [[0x0200_0000_0031, 0], [0x07, 0], [one | 0xe2, 0]];
    assert_eq!(hardware.take_descriptors(), [GLOBAL.as_slice(), &fresh].concat());
}

/// The PASID entry of requests without PASID, as it stands in memory.
fn entry_of(hardware: &Obedient, source: SourceId) -> PasidEntry {
    let at = |table: HostPhys, offset: u64| HostPhys::new(table.raw() + offset);
    let memory = &hardware.memory;
    let root = memory.read_words(at(HostPhys::new(hardware.root_table()), u64::from(source.bus()) * 16));
    let contexts = ScalableRootEntry::from_words(root.expect("memory")).context_table(source.devfn());
    let context = at(
        contexts.expect("present"),
        ScalableContextEntry::byte_offset(source.devfn()),
    );
    let context = ScalableContextEntry::from_words(memory.read_words(context).expect("memory"));
    let directory = memory.read_u64(context.pasid_directory()).expect("memory");
    let table = PasidDirectoryEntry::new_with_raw_value(directory).pasid_table();
    PasidEntry::from_words(memory.read_words(table).expect("memory"))
}

#[test]
fn a_first_stage_entry_has_an_address_width_only_where_a_quirk_wants_it() {
    // A unit without second stage, to which AW is reserved.
    let alone = extended().with_ssts(false).with_nest(false);
    let device = requester("02:03.1");
    for (first_stage_width, expected) in [(false, 0), (true, 2)] {
        let hardware = unit_of(capability(), alone);
        let quirks = UnitQuirks {
            first_stage_width,
            ..UnitQuirks::default()
        };
        let unit = translating_with(&hardware, quirks);
        let domain = domain(&unit, Stage::First);
        unit.attach(&device, &domain).expect("attached");
        let control = entry_of(&hardware, device.rid).control;
        assert_eq!(control.translation(), Some(PasidTranslation::FirstStage));
        assert_eq!(control.aw().value(), expected);
    }
}

#[test]
fn pass_through_reaches_all_memory() {
    let hardware = unit_of(capability(), extended());
    let unit = translating(&hardware);
    let device = requester("02:00.0");
    unit.attach_pass_through(&device).expect("attached");
    let at = Iova::new(0x1234_5678);
    assert_eq!(
        hardware.walk(device.rid, at, Access::Write),
        Ok(HostPhys::new(at.raw()))
    );
    unit.detach(&device).expect("detached");
    assert!(hardware.walk(device.rid, at, Access::Write).is_err());
}

#[test]
fn a_guests_tables_translate_within_its_parent_and_unmapping_there_flushes_both() {
    const GUEST_ROOT: u64 = 0x1000;
    let hardware = unit_of(capability(), extended());
    let unit = translating(&hardware);
    let parent = domain(&unit, Stage::Second);
    let memory = HostPhys::new(0x800_0000);
    parent
        .map(Iova::ZERO, memory, 0x20_0000, Perms::READ_WRITE)
        .expect("mapped");
    // The guest maps 5000h to its page 6000h: four tables, each entry present, writable, for users, accessed.
    for (table, index, entry) in [
        (0x1, 0, 0x2027_u64),
        (0x2, 0, 0x3027),
        (0x3, 0, 0x4027),
        (0x4, 5, 0x6067),
    ] {
        let at = HostPhys::new(memory.raw() + table * 0x1000 + index * 8);
        hardware.memory.write_u64(at, entry).expect("memory");
    }
    let guest = GuestTable {
        root: GuestPhys::new(GUEST_ROOT),
        five_levels: false,
    };
    let nested = unit.create_nested(&parent, guest).expect("a domain");
    let device = requester("02:00.0");
    unit.attach_nested(&device, &nested).expect("attached");
    let reach = |at| hardware.walk(device.rid, Iova::new(at), Access::Write);
    assert_eq!(reach(0x5010), Ok(HostPhys::new(memory.raw() + 0x6010)));
    assert!(reach(0x6000).is_err());

    let [upper, lower] = [parent.id(), nested.id()].map(|id| u64::from(id.0) << 16);
    hardware.take_descriptors();
    nested.invalidate(range(0x5000, 0x1000), true).expect("confirmed");
    assert_eq!(hardware.take_descriptors(), [[lower | 0x36, 0x5040]]);
    let pending = parent.unmap(range(0, 0x20_0000), ()).expect("mapped");
    parent.flush(pending).expect("flushed");
    // A 2 MiB leaf went; both identifiers tag results of the table.
    assert_eq!(
        hardware.take_descriptors(),
        [[upper | 0xf2, 0x49], [lower | 0xf2, 0x49]]
    );
    assert!(reach(0x5010).is_err());

    let refused = parent.destroy().expect_err("the nested domain is there");
    assert!(matches!(refused.cause, DestroyError::Parent(_)));
    unit.detach(&device).expect("detached");
    nested.destroy().expect("destroyed");
    refused.domain.destroy().expect("destroyed");
}

#[test]
fn a_guest_root_outside_its_parent_and_a_first_stage_parent_are_refused() {
    let hardware = unit_of(capability(), extended());
    let unit = translating(&hardware);
    let guest = |root| GuestTable {
        root: GuestPhys::new(root),
        five_levels: false,
    };
    let second = domain(&unit, Stage::Second);
    for root in [0x1008, 1 << 48] {
        assert_eq!(
            unit.create_nested(&second, guest(root)).err(),
            Some(DomainError::NotNestable)
        );
    }
    let first = domain(&unit, Stage::First);
    assert_eq!(
        unit.create_nested(&first, guest(0x1000)).err(),
        Some(DomainError::NotNestable)
    );
    let five = GuestTable {
        five_levels: true,
        ..guest(0x1000)
    };
    assert_eq!(unit.create_nested(&second, five).err(), Some(DomainError::NotNestable));
}

#[test]
fn reserved_regions_work_without_a_second_stage_and_keep_a_device_from_nesting() {
    let hardware = unit_of(capability(), extended());
    let options = Obedient::options(TableMode::Scalable);
    let found = Unit::found(&hardware, &hardware, options).expect("found");
    let mut unit = found.take_over().map_err(|error| error.cause).expect("taken over");
    let device = requester("00:14.0");
    unit.reserve(&ReservedRegion {
        range: AddrRange::from_base_len(HostPhys::new(0x7_0000), 0x1000).expect("a range"),
        requesters: [device.clone()].into(),
        relaxable: false,
    })
    .expect("reserved");
    let unit = unit.enable().map_err(|error| error.cause).expect("enabled");
    let reach = |at| hardware.walk(device.rid, Iova::new(at), Access::Write);
    assert_eq!(reach(0x7_0000), Ok(HostPhys::new(0x7_0000)));
    let parent = domain(&unit, Stage::Second);
    let guest = GuestTable {
        root: GuestPhys::new(0x1000),
        five_levels: false,
    };
    let nested = unit.create_nested(&parent, guest).expect("a domain");
    let refused = unit
        .attach_nested(&device, &nested)
        .expect_err("the region cannot be mapped there");
    assert!(matches!(
        refused,
        AttachError::Reserved {
            cause: MapError::GuestTables,
            ..
        }
    ));
    assert_eq!(reach(0x7_0000), Ok(HostPhys::new(0x7_0000)));

    let hardware = unit_of(capability(), extended().with_ssts(false).with_nest(false));
    let found = Unit::found(&hardware, &hardware, options).expect("found");
    let mut unit = found.take_over().map_err(|error| error.cause).expect("taken over");
    unit.reserve(&ReservedRegion {
        range: AddrRange::from_base_len(HostPhys::new(0x7_0000), 0x1000).expect("a range"),
        requesters: [device.clone()].into(),
        relaxable: true,
    })
    .expect("reserved");
    assert_eq!(
        hardware.walk(device.rid, Iova::new(0x7_0ff8), Access::Write),
        Ok(HostPhys::new(0x7_0ff8))
    );
    assert_eq!(
        unit.create_domain(DomainOptions::default()).err(),
        Some(DomainError::NoTranslation)
    );
}

#[test]
fn scalable_mode_and_first_stage_are_refused_where_the_unit_has_none() {
    let hardware = unit_of(capability(), extended().with_smts(false));
    let found = Unit::found(&hardware, &hardware, Obedient::options(TableMode::Scalable)).expect("found");
    assert_eq!(
        found.take_over().expect_err("no scalable mode").cause,
        UnitError::NoScalableMode
    );

    let found = Unit::found(&hardware, &hardware, Obedient::options(TableMode::Legacy)).expect("found");
    let unit = found.take_over().map_err(|error| error.cause).expect("taken over");
    let first = DomainOptions {
        stage: Stage::First,
        ..DomainOptions::default()
    };
    assert_eq!(unit.create_domain(first).err(), Some(DomainError::NoFirstStage));
}

#[test]
fn a_newer_unit_without_a_queue_is_refused() {
    let ecap = ExtendedCapability::DEFAULT.with_c(true);
    let hardware = Obedient::new(Version::new_with_raw_value(0x60), capability(), ecap);
    let found = Unit::found(&hardware, &hardware, Obedient::options(TableMode::Legacy)).expect("found");
    assert_eq!(
        found.take_over().expect_err("nothing invalidates").cause,
        UnitError::NoInvalidation { major: 6 }
    );
}
