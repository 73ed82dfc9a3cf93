//! [`Profile::Qemu`]: some departures that its table claims; the judge of all is the comparison with QEMU.

use iommu_testkit::SparseMemory;
use iommu_testkit::raw::{self, descriptor};
use iommu_types::{HostPhys, Iova, SystemMemory};
use vtd_model::{AccessWidth, Fault, Profile, QemuVersion, Request, Unit, UnitConfig};
use vtd_spec::FaultReason;
use vtd_spec::register::offset;

use crate::rig::{DID, NIC, Rig, STATUS, spec};

/// Legacy tables that map page 0 of bus 0, device 0 for reading only, translation on.
fn read_only_page(profile: Profile) -> (Unit, SparseMemory) {
    let memory = SparseMemory::new(0x10_0000);
    for (at, word) in [
        (0x1000, 0x2001),
        (0x2000, 0x3001),
        (0x2008, 0x0102),
        (0x3000, 0x4003),
        (0x4000, 0x5003),
        (0x5000, 0x6003),
        (0x6000, 0x7001),
    ] {
        memory.write_u64(HostPhys::new(at), word).expect("memory");
    }
    let mut unit = Unit::new(UnitConfig::builder().profile(profile).build().expect("consistent"));
    unit.write(&memory, offset::RTADDR, AccessWidth::Qword, 0x1000);
    for command in [0x4000_0000, 0x8000_0000] {
        unit.write(&memory, offset::GCMD, AccessWidth::Dword, command);
    }
    (unit, memory)
}

#[test]
fn a_write_through_a_cached_read_only_page_is_silent_only_as_qemu() {
    let source = "00:00.0".parse().expect("a source");
    for (profile, reason) in [
        (Profile::Spec, FaultReason::WRITE_DENIED),
        (Profile::Qemu(QemuVersion::V11_1), Fault::SILENT),
    ] {
        let (mut unit, memory) = read_only_page(profile);
        let write = Request::write(source, Iova::new(0), 4);
        let cold = unit.dma(&memory, &write).expect_err("read-only");
        assert_eq!(cold.reason, FaultReason::WRITE_DENIED);
        unit.dma(&memory, &Request::read(source, Iova::new(0), 4))
            .expect("readable");
        let warm = unit.dma(&memory, &write).expect_err("read-only");
        assert_eq!(warm.reason, reason, "{profile:?}");
    }
}

#[test]
fn several_fields_in_one_command_are_carried_out_only_as_qemu() {
    for (profile, status) in [(Profile::Spec, 0), (Profile::Qemu(QemuVersion::V7_2), 0xC000_0000)] {
        let memory = SparseMemory::new(0x1_0000);
        let mut unit = Unit::new(UnitConfig::builder().profile(profile).build().expect("consistent"));
        unit.write(&memory, offset::GCMD, AccessWidth::Dword, 0xC000_0000);
        assert_eq!(unit.read(offset::GSTS, AccessWidth::Dword), status, "{profile:?}");
    }
}

#[test]
fn table_modes_that_the_unit_does_not_have_are_legacy_mode_only_as_qemu() {
    let source = "00:00.0".parse().expect("a source");
    // D-33: scalable mode on a unit without; D-09: the reserved mode, and abort-DMA mode.
    for (mode, code) in [(1u64 << 10, 0x30), (2 << 10, 0x30), (3 << 10, 0x30)] {
        for profile in [Profile::Spec, Profile::Qemu(QemuVersion::V11_1)] {
            let (mut unit, memory) = read_only_page(profile);
            unit.write(&memory, offset::GCMD, AccessWidth::Dword, 0);
            unit.write(&memory, offset::RTADDR, AccessWidth::Qword, 0x1000 | mode);
            for command in [0x4000_0000, 0x8000_0000] {
                unit.write(&memory, offset::GCMD, AccessWidth::Dword, command);
            }
            let read = unit.dma(&memory, &Request::read(source, Iova::new(0), 4));
            match profile {
                Profile::Spec => assert_eq!(read.expect_err("no such mode").reason, FaultReason(code)),
                _ => assert_eq!(read.expect("legacy tables").phys, HostPhys::new(0x7000)),
            }
        }
    }
}

#[test]
fn abort_dma_mode_is_scalable_mode_only_as_qemu() {
    // D-09: tables of legacy mode, read as scalable ones.
    for (profile, code) in [
        (Profile::Spec, FaultReason(0x30)),
        (Profile::Qemu(QemuVersion::V7_2), FaultReason::CONTEXT_NOT_PRESENT),
    ] {
        let builder = spec().scalable_mode(true).scalable_second_stage(true).profile(profile);
        let mut rig = Rig::new(builder);
        // The context table has nothing at the place where a scalable entry would be.
        rig.context(NIC, 0, 0x9000, 2, DID);
        rig.set_root(rig.root | 3 << 10);
        rig.command(|c| c.with_te(true));
        assert_eq!(rig.read(NIC, 0x1000).expect_err("blocked").reason, code, "{profile:?}");
    }
}

#[test]
fn the_queue_stays_on_until_a_wait_was_last_only_as_qemu() {
    for (profile, stays) in [(Profile::Spec, false), (Profile::Qemu(QemuVersion::V11_1), true)] {
        let mut rig = Rig::new(spec().profile(profile));
        rig.enable_queue();
        rig.command(|c| c.with_qie(false));
        assert_eq!(rig.status().qies(), stays, "{profile:?}: nothing was processed");
        rig.enable_queue();
        rig.submit(&[descriptor::CONTEXT_GLOBAL]);
        rig.command(|c| c.with_qie(false));
        assert_eq!(rig.status().qies(), stays, "{profile:?}: an invalidation was last");
    }
    let mut rig = Rig::new(spec().profile(Profile::Qemu(QemuVersion::V11_1)));
    rig.enable_queue();
    rig.submit(&[descriptor::CONTEXT_GLOBAL, descriptor::wait_status(STATUS, 1)]);
    // Survives saving.
    rig.unit = Unit::restore(*rig.unit.config(), &rig.unit.save()).expect("its own bytes");
    rig.command(|c| c.with_qie(false));
    assert!(!rig.status().qies());
}

/// A unit in scalable mode whose NIC has PASID structures at these places.
fn scalable(profile: Profile, directory: u64, entry: [u64; 8]) -> Rig {
    let mut rig = Rig::scalable(spec().scalable_mode(true).scalable_second_stage(true).profile(profile));
    let [directory_page, table] = [(); 2].map(|()| rig.tables.page());
    let context = raw::scalable_context_entry(directory_page, 0, 0, 0);
    rig.tables.scalable_context(rig.root, NIC, context);
    rig.tables.put(directory_page, table | directory);
    rig.tables.put_words(table, &entry);
    rig
}

#[test]
fn a_nested_entry_is_a_second_stage_one_only_as_qemu_7() {
    for (profile, code) in [
        (Profile::Spec, FaultReason(0x5B)),
        (Profile::Qemu(QemuVersion::V11_1), FaultReason(0x5B)),
        (Profile::Qemu(QemuVersion::V7_2), FaultReason::READ_DENIED),
    ] {
        // PGTT 011, 4 levels; the table is empty.
        let mut rig = scalable(profile, 1, [1 | 3 << 6 | 2 << 2 | 0x9000, 5, 0, 0, 0, 0, 0, 0]);
        rig.tables.put_words(0x9000, &[0; 512]);
        assert_eq!(rig.read(NIC, 0x1000).expect_err("blocked").reason, code, "{profile:?}");
    }
}

#[test]
fn a_fault_of_pasid_structures_is_recorded_whichever_disables_it_only_as_qemu() {
    // E-06: FPD in the directory entry, in the table entry; the type of the latter does not exist.
    for (directory, low) in [(3, 1 | 7 << 6), (1, 3 | 7 << 6)] {
        for (profile, recorded) in [(Profile::Spec, false), (Profile::Qemu(QemuVersion::V11_1), true)] {
            let mut rig = scalable(profile, directory, [low, 5, 0, 0, 0, 0, 0, 0]);
            let fault = rig.read(NIC, 0x1000).expect_err("blocked");
            assert_eq!(
                (fault.reason, fault.recorded),
                (FaultReason(0x5B), recorded),
                "{profile:?}"
            );
        }
    }
}
