//! What a guest may try (security classes of emulated units).

use iommu_testkit::raw;
use vtd_model::{AccessWidth, Profile};
use vtd_spec::register::offset;

use proptest::prelude::*;

use crate::rig::{QUEUE, Rig, spec};

#[test]
fn every_offset_and_width_is_defined() {
    let mut rig = Rig::new(spec());
    let window = rig.unit.window_len();
    for at in 0..window + 16 {
        for (width, ones) in [
            (AccessWidth::Dword, u64::from(u32::MAX)),
            (AccessWidth::Qword, u64::MAX),
        ] {
            let got = rig.unit.read(at, width);
            if at >= window || at % width.bytes() != 0 {
                assert_eq!(got, ones, "{at:x}");
            }
            let mut other = Rig::new(spec());
            if at % 64 == 0 || at < 0x100 {
                other.unit.write(other.memory, at, width, u64::MAX);
                other.unit.write(other.memory, at, width, 0);
            }
        }
    }
    // Offsets that no register has.
    for at in [0x048, 0x058, 0x064, 0x0C0, 0x100, 0x300, 0x400, 0xE00] {
        rig.write32(at, u32::MAX);
        assert_eq!(rig.read32(at), 0, "{at:x}");
    }
}

#[test]
fn offsets_near_the_end_of_the_number_space_do_not_wrap() {
    let mut rig = Rig::new(spec());
    for at in [u32::MAX, u32::MAX - 3, u32::MAX - 7] {
        assert_eq!(rig.unit.read(at, AccessWidth::Qword), u64::MAX);
        rig.unit.write(rig.memory, at & !7, AccessWidth::Qword, u64::MAX);
    }
}

#[test]
fn pointers_at_the_end_of_the_address_space_fault() {
    let mut rig = Rig::legacy(spec().host_address_width(52));
    rig.set_root(!0xFFF & !0xC00);
    assert_eq!(rig.fault(0xFFFF, 0x1000), (0x08, "LRT.1"));
    rig.command(|c| c.with_qie(false));
    rig.write64(offset::IQT, 0);
    rig.write64(offset::IQA, !0xFFF | 7);
    rig.command(|c| c.with_qie(true));
    rig.write64(offset::IQT, 0x10);
    assert_eq!(rig.queue_error().error().0, 2);
    rig.write64(offset::IRTA, !0xFFF | 0xF);
    rig.command(|c| c.with_sirtp(true));
    rig.command(|c| c.with_ire(true));
    assert_eq!(
        rig.interrupt(1, raw::remappable_address(0xFFFF, false), 0)
            .expect_err("blocked")
            .reason
            .0,
        0x21
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Registers, descriptors and requests of any content: no panic, and bounded work.
    #[test]
    fn any_program_ends(
        silicon in any::<bool>(),
        ring in proptest::collection::vec((0u64..12, any::<u64>(), any::<u64>(), any::<bool>()), 16),
        program in proptest::collection::vec((any::<u8>(), 0u32..0x300, any::<u64>(), any::<bool>()), 1..40),
    ) {
        let profile = if silicon { Profile::Silicon } else { Profile::Spec };
        let mut rig = Rig::legacy(spec().profile(profile).caching_mode(true).device_tlb(true));
        for (slot, (kind, low, high, plain)) in (0u64..).zip(ring) {
            let low = if plain { low & 0xFFFF_FFFF_FFFF_F1F0 | kind } else { low };
            rig.tables.put_words(QUEUE + slot * 16, &[low, high]);
        }
        for (what, at, value, wide) in program {
            match what % 4 {
                0 => drop(rig.read(at as u16, value)),
                1 => drop(rig.interrupt(at as u16, 0xFEE0_0000 | value & 0xF_FFFC, at)),
                2 => rig.write64(offset::IQT, value & 0x1FF0),
                _ => {
                    let (width, align) = if wide { (AccessWidth::Qword, !7) } else { (AccessWidth::Dword, !3) };
                    rig.unit.write(rig.memory, at & align, width, value);
                }
            }
            rig.settle();
        }
    }
}
