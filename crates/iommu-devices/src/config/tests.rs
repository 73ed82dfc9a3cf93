use iommu_groups::pci::{self, PortType, acs, capability, express, extended, header, msi, power, sriov};
use iommu_types::{AddrRange, HostPhys, Iova};

use super::*;

fn nic() -> ConfigBuilder {
    ConfigSpace::function(0x8086, 0x1521).class(0x02_00_00)
}

/// The list as software walks it: identifiers in order.
fn capabilities(space: &ConfigSpace) -> Vec<u8> {
    let mut found = Vec::new();
    let mut at = u16::from(space.read8(header::CAPABILITIES));
    while at != 0 && found.len() < 48 {
        found.push(space.read8(at));
        at = space.read8(at + capability::NEXT).into();
    }
    found
}

fn extended_capabilities(space: &ConfigSpace) -> Vec<u16> {
    let mut found = Vec::new();
    let mut at = extended::FIRST;
    while at != 0 && found.len() < 960 {
        let head = space.read32(at);
        if head == 0 {
            break;
        }
        assert_eq!(head >> 16 & 0xf, 1, "version");
        found.push(u16::try_from(head & 0xffff).unwrap());
        at = u16::try_from(head >> 20).unwrap();
    }
    found
}

#[test]
fn identity_and_class_stand_where_the_header_has_them() {
    let space = nic()
        .revision(3)
        .subsystem(0x1028, 0x1f60)
        .multifunction()
        .build()
        .unwrap();
    assert_eq!(space.len(), 256);
    assert_eq!(
        space.bytes()[..16],
        [0x86, 0x80, 0x21, 0x15, 0, 0, 0, 0, 3, 0, 0, 2, 0, 0, 0x80, 0]
    );
    assert_eq!(space.read32(0x2c), 0x1f60_1028);
}

#[test]
fn identity_cannot_be_written() {
    let mut space = nic().build().unwrap();
    let _ = space.write32(0, 0);
    let _ = space.write32(header::REVISION, 0);
    assert_eq!(space.read32(0), 0x1521_8086);
    assert_eq!(space.read32(8), 0x0200_0000);
}

#[test]
fn writing_ones_to_a_bar_reads_back_its_size() {
    let mut space = nic()
        .bar(0, Bar::memory32(0x2_0000))
        .bar(1, Bar::io(32))
        .bar(2, Bar::memory64(1 << 33).prefetchable().at(0x40_0000_0000))
        .build()
        .unwrap();
    for at in (0x10..0x28).step_by(4) {
        let _ = space.write32(at, u32::MAX);
    }
    assert_eq!(space.read32(0x10), 0xfffe_0000);
    assert_eq!(space.read32(0x14), 0xffff_ffe1);
    assert_eq!(space.read32(0x18), 0x0000_000c);
    assert_eq!(space.read32(0x1c), 0xffff_fffe);
    assert_eq!(space.read32(0x20), 0, "not implemented");
}

#[test]
fn a_bar_decodes_only_with_memory_space_on_and_an_address() {
    let mut space = nic()
        .bar(0, Bar::memory64(0x1000).at(0x1_0000_2000))
        .bar(2, Bar::memory32(0x1000))
        .build()
        .unwrap();
    let inside = HostPhys::new(0x1_0000_2ffc);
    assert_eq!(space.decode(inside), None);
    let _ = space.write16(header::COMMAND, header::COMMAND_MEMORY);
    assert_eq!(space.decode(inside), Some((0, 0xffc)));
    assert_eq!(space.decode(HostPhys::new(0x1_0000_3000)), None);
    assert_eq!(space.decode(HostPhys::new(0)), None, "BAR 2 holds zero");
}

#[test]
fn impossible_bars_are_refused() {
    let build = |index, bar| nic().bar(index, bar).build().map(|_| ());
    assert_eq!(build(6, Bar::memory32(4096)), Err(ConfigError::NoSuchBar(6)));
    assert_eq!(build(5, Bar::memory64(4096)), Err(ConfigError::NoSuchBar(5)));
    assert!(matches!(
        build(0, Bar::memory32(3000)),
        Err(ConfigError::ImpossibleBar { .. })
    ));
    assert!(matches!(
        build(0, Bar::memory32(0)),
        Err(ConfigError::ImpossibleBar { .. })
    ));
    assert!(matches!(
        build(0, Bar::memory32(4096).at(1 << 32)),
        Err(ConfigError::ImpossibleBar { .. })
    ));
    assert!(matches!(
        build(0, Bar::memory32(4096).at(0x800)),
        Err(ConfigError::ImpossibleBar { .. })
    ));
    let overlapping = nic().bar(0, Bar::memory64(4096)).bar(1, Bar::memory32(4096)).build();
    assert_eq!(overlapping.map(|_| ()), Err(ConfigError::NoSuchBar(1)));
    let third_of_bridge = ConfigSpace::bridge(1, 2).bar(2, Bar::memory32(4096)).build();
    assert_eq!(third_of_bridge.map(|_| ()), Err(ConfigError::NoSuchBar(2)));
}

#[test]
fn capabilities_form_lists_that_end() {
    let space = nic()
        .bar(0, Bar::memory32(0x4000))
        .express(PortType::ENDPOINT)
        .power_management(SoftReset::Resets)
        .msi(2)
        .msi_x(MsiX {
            vectors: 16,
            bar: 0,
            table: 0x2000,
            pending: 0x3000,
        })
        .advanced_features()
        .acs(Acs::ISOLATING)
        .ats(Ats {
            queue_depth: 32,
            page_aligned: true,
        })
        .pri(64)
        .pasid(20)
        .ari(1)
        .serial_number(0x0011_2233_4455_6677)
        .sriov(Sriov {
            total: 8,
            enabled: 0,
            first_offset: 0x80,
            stride: 2,
            device: 0x1520,
            bar_size: 0x4000,
        })
        .build()
        .unwrap();
    assert_eq!(space.len(), 4096);
    assert_eq!(capabilities(&space), [0x01, 0x05, 0x10, 0x11, 0x13]);
    assert_eq!(
        extended_capabilities(&space),
        [0x03, 0x0e, 0x0d, 0x0f, 0x10, 0x13, 0x1b]
    );
    assert_eq!(space.read16(header::STATUS) & 0x10, 0x10);
    // Serial number first, so its bytes stand at 0x104.
    assert_eq!(space.read32(0x104), 0x4455_6677);
    assert_eq!(space.read32(0x108), 0x0011_2233);
}

#[test]
fn a_conventional_function_has_no_extended_space() {
    let mut space = nic().msi(0).build().unwrap();
    assert_eq!(space.read32(0x100), 0xffff_ffff);
    assert_eq!(space.read32(0xfe) >> 16, 0xffff, "a read across the end");
    assert_eq!(space.write32(0x100, 5), Effects::default());
    let error = nic().acs(Acs::ISOLATING).build().map(|_| ());
    assert_eq!(error, Err(ConfigError::NeedsExpress("ACS")));
}

#[test]
fn port_types_go_with_their_header() {
    let port = ConfigSpace::function(1, 2).express(PortType::ROOT_PORT).build();
    assert!(matches!(port, Err(ConfigError::WrongHeader { bridge: false, .. })));
    let endpoint = ConfigSpace::bridge(1, 2).express(PortType::ENDPOINT).build();
    assert!(matches!(endpoint, Err(ConfigError::WrongHeader { bridge: true, .. })));
    let port = ConfigSpace::bridge(1, 2)
        .express(PortType::DOWNSTREAM_PORT)
        .build()
        .unwrap();
    let at = port.express_at().unwrap();
    assert_eq!(port.read16(at + express::CAPABILITIES), 0x0062);
}

#[test]
fn only_capable_acs_controls_can_be_set() {
    let mut port = ConfigSpace::bridge(1, 2)
        .express(PortType::ROOT_PORT)
        .acs(Acs {
            capability: acs::SOURCE_VALIDATION | acs::REQUEST_REDIRECT,
            control: acs::REQUIRED,
        })
        .build()
        .unwrap();
    let at = port.acs_at().unwrap();
    assert_eq!(port.read16(at + acs::CONTROL), 0x05);
    let effects = port.write16(at + acs::CONTROL, 0xffff);
    assert!(effects.routing);
    assert_eq!(port.read16(at + acs::CONTROL), 0x05);
    let _ = port.write16(at + acs::CONTROL, 0);
    assert_eq!(port.read16(at + acs::CONTROL), 0);
}

#[test]
fn bridge_numbers_and_windows_are_programmed_and_lost_by_reset() {
    let mut port = ConfigSpace::bridge(0x8086, 0x3420)
        .express(PortType::ROOT_PORT)
        .buses(0, 1, 5)
        .memory_window(AddrRange::new(HostPhys::new(0xfe20_0000), HostPhys::new(0xfe3f_ffff)).unwrap())
        .prefetchable_window(AddrRange::new(HostPhys::new(0x40_0000_0000), HostPhys::new(0x40_0fff_ffff)).unwrap())
        .bus_master()
        .build()
        .unwrap();
    assert_eq!(port.buses_below(), Some((1, 5)));
    assert_eq!(port.read32(0x18) & 0xff_ffff, 0x05_01_00);
    assert_eq!(port.read32(0x20), 0xfe30_fe20);
    assert_eq!(port.read32(0x24), 0x0ff1_0001);
    assert_eq!((port.read32(0x28), port.read32(0x2c)), (0x40, 0x40));
    assert!(port.bus_master());
    assert!(port.write(0x19, &[7]).routing);
    assert_eq!(port.buses_below(), Some((7, 5)));
    port.reset();
    assert_eq!(port.buses_below(), Some((0, 0)));
    assert!(!port.bus_master());
}

#[test]
fn a_bridge_without_windows_forwards_nothing() {
    let port = ConfigSpace::bridge(1, 2).build().unwrap();
    let base_and_limit = port.read32(0x20);
    assert!(base_and_limit & 0xfff0 > base_and_limit >> 16, "base above limit");
}

#[test]
fn secondary_bus_reset_is_reported() {
    let mut port = ConfigSpace::bridge(1, 2).build().unwrap();
    assert!(port.write16(0x3e, 0x40).secondary_reset);
    assert!(port.write(0x3c, &[0, 0, 0x40, 0]).secondary_reset);
    assert!(!port.write16(0x3e, 0).secondary_reset);
    let mut endpoint = nic().build().unwrap();
    assert!(!endpoint.write16(0x3e, 0x40).secondary_reset);
}

#[test]
fn function_level_reset_needs_the_capability() {
    let mut with = nic().express(PortType::ENDPOINT).flr().build().unwrap();
    let at = with.express_at().unwrap() + express::DEVICE_CONTROL;
    assert_eq!(with.write16(at, 0x8000).reset, Some(ResetKind::FunctionLevel));
    assert_eq!(with.write(at + 1, &[0x80]).reset, Some(ResetKind::FunctionLevel));
    assert_eq!(with.write16(at, 0x7fff).reset, None);
    assert_eq!(with.read16(at) & 0x8000, 0, "the bit reads as zero");
    let mut without = nic().express(PortType::ENDPOINT).build().unwrap();
    assert_eq!(without.write16(at, 0x8000).reset, None);
    let mut conventional = nic().advanced_features().build().unwrap();
    assert_eq!(conventional.write(0x44, &[1]).reset, Some(ResetKind::FunctionLevel));
}

#[test]
fn leaving_d3_resets_only_functions_that_do_not_keep_their_state() {
    for (soft_reset, expected) in [
        (SoftReset::Resets, Some(ResetKind::PowerState)),
        (SoftReset::Keeps, None),
    ] {
        let mut space = nic().power_management(soft_reset).bus_master().build().unwrap();
        let at = 0x40 + power::CONTROL;
        assert_eq!(space.write16(at, 3).reset, None);
        assert!(!space.bus_master(), "D3 issues no requests");
        assert_eq!(space.write16(at, 0).reset, expected);
        assert_eq!(space.write16(at, 0).reset, None);
    }
}

#[test]
fn status_bits_are_cleared_by_ones_only() {
    let mut space = nic().power_management(SoftReset::Keeps).build().unwrap();
    // PME Status, set from inside.
    space.image.bytes[0x45] |= 0x80;
    let _ = space.write16(0x44, 0x0003);
    assert_eq!(space.read16(0x44), 0x800b);
    let _ = space.write16(0x44, 0x8000);
    assert_eq!(space.read16(0x44), 0x0008);
}

#[test]
fn msi_sends_what_was_programmed_with_the_vector_in_the_low_bits() {
    let mut space = nic().msi(3).build().unwrap();
    let at = space.msi_at().unwrap();
    assert_eq!(space.read16(at + msi::CONTROL), 0x0086);
    let _ = space.write32(at + msi::ADDRESS, 0xfee0_1003);
    let _ = space.write16(at + msi::DATA, 0x4321);
    assert_eq!(space.msi_message(0), None, "not enabled");
    let _ = space.write16(at + msi::CONTROL, 0x0001 | 2 << 4);
    let message = space.msi_message(6).unwrap();
    assert_eq!(message.address, Iova::new(0xfee0_1000));
    assert_eq!(message.data, 0x4322, "four vectors granted: 6 becomes 2");
}

#[test]
fn virtual_functions_show_no_identity_of_their_own() {
    let vf = nic()
        .virtual_function()
        .express(PortType::ENDPOINT)
        .flr()
        .build()
        .unwrap();
    assert_eq!(vf.read32(0), 0xffff_ffff);
    let mut vf = vf;
    let _ = vf.write16(header::COMMAND, 0xffff);
    assert_eq!(vf.command() & header::COMMAND_MEMORY, 0);
    assert!(vf.bus_master());
    let bar = nic().virtual_function().bar(0, Bar::memory32(4096)).build();
    assert_eq!(bar.map(|_| ()), Err(ConfigError::NoSuchBar(0)));
}

#[test]
fn enabling_virtual_functions_is_reported() {
    let mut pf = nic()
        .express(PortType::ENDPOINT)
        .sriov(Sriov {
            total: 4,
            enabled: 2,
            first_offset: 16,
            stride: 1,
            device: 7,
            bar_size: 0,
        })
        .build()
        .unwrap();
    let at = pf.sriov_at().unwrap();
    assert_eq!(pf.read16(at + sriov::NUM_VFS), 2);
    assert_eq!(pf.read16(at + sriov::CONTROL), 9);
    assert!(pf.write16(at + sriov::CONTROL, 0).virtual_functions);
    assert!(!pf.write16(header::COMMAND, 0).virtual_functions);
}

#[test]
fn all_conventional_capabilities_fit_together() {
    let space = nic()
        .bar(0, Bar::memory32(0x4000))
        .express(PortType::ENDPOINT)
        .msi(5)
        .msi_x(MsiX {
            vectors: 1,
            bar: 0,
            table: 0,
            pending: 0x800,
        })
        .power_management(SoftReset::Keeps)
        .advanced_features()
        .build();
    assert!(space.is_ok());
}

mod properties {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever software writes, wherever, the space stays itself: identity, capability lists and BAR
        /// sizes do not change, and nothing panics.
        #[test]
        fn arbitrary_writes_change_only_what_software_owns(
            writes in prop::collection::vec((0u16..=u16::MAX, prop::collection::vec(any::<u8>(), 0..9)), 0..64),
        ) {
            let mut space = nic()
                .bar(0, Bar::memory64(1 << 20))
                .express(PortType::ENDPOINT)
                .flr()
                .msi(5)
                .acs(Acs::OFF)
                .build()
                .unwrap();
            let (identity, list, more) = (space.read32(0), capabilities(&space), extended_capabilities(&space));
            for (offset, bytes) in writes {
                let _ = space.write(offset, &bytes);
                let _ = space.write(offset % pci::EXTENDED_LEN, &bytes);
                let _ = (space.decode(HostPhys::new(0)), space.msi_message(31));
            }
            prop_assert_eq!(space.read32(0), identity);
            prop_assert_eq!(capabilities(&space), list);
            prop_assert_eq!(extended_capabilities(&space), more);
            prop_assert_eq!(space.bar_base(0).unwrap() % (1 << 20), 0);
        }
    }
}
