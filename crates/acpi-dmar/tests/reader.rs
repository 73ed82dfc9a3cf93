//! The reader against tables written by hand, byte by byte.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

use acpi_dmar::{
    Dmar, OwnedDmar, OwnedDrhd, OwnedStructure, ParseError, Rule, ScopeFlags, ScopeType, Structure, StructureType,
};
use iommu_types::{HostPhys, Segment};

/// A header of 48 bytes (host address width 39, INTR_REMAP and the opt-in), with the right length and checksum
/// for `structures`.
fn table(structures: &[u8]) -> Vec<u8> {
    #[rustfmt::skip]
    let mut bytes = vec![
        b'D', b'M', b'A', b'R', 0, 0, 0, 0, 1, 0, b'O', b'E', b'M', b'1', b' ', b' ',
        b'T', b'A', b'B', b'L', b'E', b'-', b'I', b'D', 0x78, 0x56, 0x34, 0x12, b'C', b'R', b'E', b'A',
        0x04, 0x03, 0x02, 0x01, 0x26, 0x05, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    bytes.extend(structures);
    let length = u32::try_from(bytes.len()).expect("short");
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[9] = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    bytes
}

#[rustfmt::skip]
const DRHD: [u8; 28] = [
    0x00, 0x00, 0x1c, 0x00, 0x01, 0x04, 0x34, 0x12, 0x00, 0x10, 0xd9, 0xfe, 0x02, 0x00, 0x00, 0x00,
    0x03, 0x08, 0x00, 0x00, 0x02, 0xf0, 0x1f, 0x00,
    // A second entry cannot be here: 4 bytes are too few.
    0x00, 0x00, 0x00, 0x00,
];

#[rustfmt::skip]
const ALL_TYPES: [u8; 184] = [
    // 0x30 DRHD, one page at fed90000, endpoint 00:02.0
    0x00, 0x00, 0x18, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xd9, 0xfe, 0x00, 0x00, 0x00, 0x00,
    0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00,
    // 0x48 RMRR 7b800000..=7fffffff, endpoint behind 00:1c.5
    0x01, 0x00, 0x22, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x80, 0x7b, 0x00, 0x00, 0x00, 0x00,
    0xff, 0xff, 0xff, 0x7f, 0x00, 0x00, 0x00, 0x00,
    0x01, 0x0a, 0x00, 0x00, 0x00, 0x00, 0x1c, 0x05, 0x00, 0x02,
    // 0x6a ATSR, all ports of segment 1
    0x02, 0x00, 0x08, 0x00, 0x01, 0x00, 0x01, 0x00,
    // 0x72 RHSA, unit fed90000 on node 3
    0x03, 0x00, 0x14, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xd9, 0xfe, 0x00, 0x00, 0x00, 0x00,
    0x03, 0x00, 0x00, 0x00,
    // 0x86 ANDD, device 7 is \_SB.UAR0
    0x04, 0x00, 0x12, 0x00, 0x00, 0x00, 0x00, 0x07, b'\\', b'_', b'S', b'B', b'.', b'U', b'A', b'R',
    b'0', 0x00,
    // 0x98 SATC, required, endpoint 00:05.0
    0x05, 0x00, 0x10, 0x00, 0x01, 0x00, 0x00, 0x00, 0x01, 0x08, 0x00, 0x00, 0x00, 0x00, 0x05, 0x00,
    // 0xa8 SIDP, endpoint 00:05.0 with flags 1c
    0x06, 0x00, 0x10, 0x00, 0x00, 0x00, 0x00, 0x00, 0x01, 0x08, 0x1c, 0x00, 0x00, 0x00, 0x05, 0x00,
    // 0xb8 type 0xffee, six bytes of body
    0xee, 0xff, 0x0a, 0x00, 1, 2, 3, 4, 5, 6,
    // 0xc2 DRHD, size 2, HPET 1 at f0:0f.0 and namespace device 7 at 00:15.1
    0x00, 0x00, 0x20, 0x00, 0x01, 0x02, 0x00, 0x00, 0x00, 0x40, 0xd9, 0xfe, 0x00, 0x00, 0x00, 0x00,
    0x04, 0x08, 0x00, 0x00, 0x01, 0xf0, 0x0f, 0x00, 0x05, 0x08, 0x00, 0x00, 0x07, 0x00, 0x15, 0x01,
    // 0xe2 type 0x7 without body
    0x07, 0x00, 0x06, 0x00, 0xaa, 0xbb,
];

#[test]
fn header_fields_are_read_where_the_specification_puts_them() {
    let bytes = table(&[]);
    let table = Dmar::parse(&bytes).expect("a header");
    let header = table.header();
    assert_eq!((header.length, header.revision), (48, 1));
    assert_eq!(&header.oem_id, b"OEM1  ");
    assert_eq!(&header.oem_table_id, b"TABLE-ID");
    assert_eq!(
        (header.oem_revision, header.creator_revision),
        (0x1234_5678, 0x0102_0304)
    );
    assert_eq!(&header.creator_id, b"CREA");
    assert_eq!(table.host_address_bits(), 39);
    assert_eq!(
        table.flags().names().collect::<Vec<_>>(),
        ["INTR_REMAP", "DMA_CTRL_PLATFORM_OPT_IN"]
    );
    assert!(table.checksum_ok());
    assert_eq!(table.structures().count(), 0);
}

#[test]
fn host_address_width_of_all_ones_does_not_overflow() {
    let mut bytes = table(&[]);
    bytes[36] = 0xff;
    assert_eq!(Dmar::parse(&bytes).expect("a header").host_address_bits(), 256);
}

#[test]
fn every_type_is_read_field_by_field() {
    let bytes = table(&ALL_TYPES);
    let table = Dmar::parse(&bytes).expect("a header");
    let all: Vec<_> = table.structures().collect::<Result<_, _>>().expect("well formed");
    let offsets: Vec<_> = all.iter().map(|s| s.offset()).collect();
    assert_eq!(offsets, [0x30, 0x48, 0x6a, 0x72, 0x86, 0x98, 0xa8, 0xb8, 0xc2, 0xe2]);

    let unit = table.units().nth(1).expect("two units");
    assert!(unit.include_pci_all());
    assert_eq!(unit.register_set_len(), 0x4000);
    assert_eq!(unit.register_base(), HostPhys::new(0xfed9_4000));
    let kinds: Vec<_> = unit.scopes().map(|s| s.expect("whole").kind()).collect();
    assert_eq!(kinds, [ScopeType::HPET, ScopeType::NAMESPACE]);

    let rmrr = table.rmrrs().next().expect("one");
    assert_eq!((rmrr.base().raw(), rmrr.limit().raw()), (0x7b80_0000, 0x7fff_ffff));
    let scope = rmrr.scopes().next().expect("one").expect("whole");
    assert_eq!(scope.to_string(), "[endpoint] bus 00 path 1c.5 00.2");

    let atsr = table.atsrs().next().expect("one");
    assert!(atsr.all_ports());
    assert_eq!(atsr.segment(), Segment(1));

    let rhsa = table.rhsas().next().expect("one");
    assert_eq!((rhsa.register_base().raw(), rhsa.proximity_domain()), (0xfed9_0000, 3));
    assert_eq!(table.proximity_domain(table.units().next().expect("one")), Some(3));
    assert_eq!(table.proximity_domain(unit), None);

    let andd = table.andds().next().expect("one");
    assert_eq!((andd.device_number(), andd.name()), (7, Some("\\_SB.UAR0")));

    assert!(table.satcs().next().expect("one").atc_required());
    let sidp = table
        .sidps()
        .next()
        .expect("one")
        .scopes()
        .next()
        .expect("one")
        .expect("whole");
    assert_eq!(
        sidp.flags(),
        ScopeFlags::REQ_WO_PASID_PGSNP_NOTALLOWED
            .union(ScopeFlags::ATC_HARDENED)
            .union(ScopeFlags::ATC_REQUIRED)
    );

    let Structure::Unknown(unknown) = all[7] else {
        panic!("type 0xffee is unknown");
    };
    assert_eq!(
        (unknown.kind(), unknown.body()),
        (StructureType(0xffee), &[1, 2, 3, 4, 5, 6][..])
    );
}

#[test]
fn a_hand_written_table_comes_out_of_the_builder_unchanged() {
    let bytes = table(&ALL_TYPES);
    let owned = OwnedDmar::from_table(Dmar::parse(&bytes).expect("a header")).expect("well formed");
    assert!(matches!(owned.structures[7], OwnedStructure::Raw(_)));
    assert!(matches!(owned.structures[6], OwnedStructure::Sidp(_)));
    assert_eq!(owned.build().expect("fits"), bytes);
}

#[test]
fn reserved_bytes_survive_the_builder() {
    let mut structures = ALL_TYPES;
    structures[0x48 - 0x30 + 4] = 0x5a; // RMRR, reserved
    structures[0x10 + 3] = 0xa5; // first DRHD, reserved byte of its scope
    let bytes = table(&structures);
    let owned = OwnedDmar::from_table(Dmar::parse(&bytes).expect("a header")).expect("well formed");
    assert_eq!(owned.build().expect("fits"), bytes);
}

#[test]
fn a_scope_list_that_does_not_fill_its_structure_ends_with_an_error() {
    let bytes = table(&DRHD);
    let table = Dmar::parse(&bytes).expect("a header");
    let unit = table.units().next().expect("one");
    assert_eq!((unit.segment(), unit.register_set_len()), (Segment(0x1234), 0x1_0000));
    let mut scopes = unit.scopes();
    assert_eq!(scopes.next().expect("one").expect("whole").enumeration_id(), 2);
    let malformed = scopes.next().expect("an error").expect_err("too short");
    assert_eq!((malformed.offset, malformed.rule), (0x48, Rule::ScopeLength));
    assert_eq!(scopes.next(), None);
}

#[test]
fn scope_lengths_other_than_six_and_pairs_are_refused() {
    for length in [0, 1, 5, 6, 7, 9, 10, 255] {
        let mut structures = ALL_TYPES[..0x18].to_vec();
        structures[0x11] = length;
        let bytes = table(&structures);
        let unit = Dmar::parse(&bytes).expect("a header").units().next().expect("one");
        let malformed = unit.scopes().next().expect("one").expect_err("wrong length");
        assert_eq!((malformed.offset, malformed.length), (0x40, usize::from(length)));
    }
}

#[test]
fn wrong_structure_lengths_end_the_walk_with_offset_and_rule() {
    for (length, rule) in [
        (0, Rule::StructureTooShort),
        (3, Rule::StructureTooShort),
        (0xffff, Rule::StructureOverrun),
        (185 - 0x18, Rule::StructureOverrun),
    ] {
        let mut structures = ALL_TYPES;
        let [low, high] = u16::to_le_bytes(length);
        structures[0x18 + 2] = low;
        structures[0x18 + 3] = high;
        let bytes = table(&structures);
        let table = Dmar::parse(&bytes).expect("a header");
        let walked: Vec<_> = table.structures().collect();
        assert_eq!(walked.len(), 2, "length {length}");
        let malformed = walked[1].expect_err("wrong length");
        assert_eq!((malformed.offset, malformed.rule), (0x48, rule), "length {length}");
        assert_eq!(table.first_malformed(), Some(malformed));
        assert_eq!(OwnedDmar::from_table(table), Err(malformed));
    }
}

#[test]
fn a_structure_shorter_than_its_type_is_an_error_and_the_walk_goes_on() {
    let mut structures = vec![0x03, 0x00, 0x10, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    structures.extend(&ALL_TYPES[..0x18]);
    let bytes = table(&structures);
    let table = Dmar::parse(&bytes).expect("a header");
    let walked: Vec<_> = table.structures().collect();
    let malformed = walked[0].expect_err("an RHSA has 20 bytes");
    assert_eq!(
        (malformed.rule, malformed.length, malformed.limit),
        (Rule::StructureBelowType, 16, 20)
    );
    assert_eq!(table.units().count(), 1);
    assert_eq!(table.first_malformed(), Some(malformed));
}

#[test]
fn unusable_headers_are_refused() {
    let whole = table(&ALL_TYPES);
    assert_eq!(Dmar::parse(&[]), Err(ParseError::TooShort { given: 0 }));
    assert_eq!(Dmar::parse(&whole[..47]), Err(ParseError::TooShort { given: 47 }));
    assert_eq!(Dmar::parse(&[0; 48]), Err(ParseError::Signature { found: [0; 4] }));
    assert_eq!(
        Dmar::parse(&whole[..100]),
        Err(ParseError::Truncated {
            length: 232,
            given: 100
        })
    );
    let mut short = whole.clone();
    short[4] = 47;
    assert_eq!(Dmar::parse(&short), Err(ParseError::LengthBelowHeader { length: 47 }));
}

#[test]
fn a_truncated_table_can_be_inspected_and_its_walk_says_that_it_is() {
    let whole = table(&ALL_TYPES);
    for given in 48..whole.len() {
        let table = Dmar::inspect(&whole[..given]).expect("a header");
        let last = table.structures().last().expect("at least the error");
        assert_eq!(last.expect_err("truncated").rule, Rule::TableTruncated, "{given} bytes");
        assert_eq!(table.structures().filter(Result::is_err).count(), 1, "{given} bytes");
    }
}

#[test]
fn bytes_after_the_table_and_after_the_last_structure_are_counted() {
    let mut bytes = table(&[0x07, 0x00, 0x04, 0x00, 0xee, 0xee]);
    bytes.extend([0; 5]);
    let table = Dmar::parse(&bytes).expect("a header");
    assert_eq!(table.structures().count(), 1);
    assert_eq!(table.first_malformed(), None);
    assert_eq!(table.trailing(), [0xee, 0xee]);
    assert_eq!(table.bytes_after(), 5);
    assert_eq!(
        OwnedDmar::from_table(table).map_err(|e| e.rule),
        Err(Rule::TrailingBytes)
    );
}

#[test]
fn a_wrong_checksum_is_seen_and_not_fatal() {
    let mut bytes = table(&ALL_TYPES);
    bytes[0x38] ^= 0x10;
    let table = Dmar::parse(&bytes).expect("a header");
    assert!(!table.checksum_ok());
    assert_eq!(table.units().count(), 2);
}

#[test]
fn andd_names_without_nul_or_outside_ascii_are_no_names() {
    for (name, expected) in [
        (&b"AB\0"[..], Some("AB")),
        (b"AB", None),
        (b"", None),
        (b"\xc3\xa4\0", None),
        (b"A\0B\0", Some("A")),
    ] {
        let length = u8::try_from(8 + name.len()).expect("short");
        let mut structure = vec![4, 0, length, 0, 0, 0, 0, 1];
        structure.extend(name);
        let bytes = table(&structure);
        let andd = Dmar::parse(&bytes).expect("a header").andds().next().expect("one");
        assert_eq!(andd.name(), expected);
    }
}

#[test]
fn a_domain_that_only_an_operating_system_knows_cannot_be_written() {
    let table = OwnedDmar::new(39).with(OwnedDrhd::new(Segment(0x1_0000), HostPhys::new(0xfed9_0000)));
    let why = table.build().expect_err("does not fit");
    assert_eq!(
        why.to_string(),
        "structure 0: segment 10000 does not fit the 16 bits that a table has for it"
    );
}
