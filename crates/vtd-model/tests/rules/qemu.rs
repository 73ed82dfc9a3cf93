//! [`Profile::Qemu`]: some departures that its table claims; the judge of all is the comparison with QEMU.

use iommu_testkit::SparseMemory;
use iommu_types::{HostPhys, Iova, SystemMemory};
use vtd_model::{AccessWidth, Fault, Profile, QemuVersion, Request, Unit, UnitConfig};
use vtd_spec::FaultReason;
use vtd_spec::register::offset;

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
