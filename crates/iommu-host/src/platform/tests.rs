use super::*;

fn madt(entries: &[u8]) -> Vec<u8> {
    let mut bytes = b"APIC".to_vec();
    bytes.resize(MADT_ENTRIES, 0);
    bytes.extend(entries);
    bytes
}

#[test]
fn io_apics_are_found_among_other_entries_and_broken_lists_are_unknown() {
    let local = [0, 8, 0, 0, 1, 0, 0, 0];
    let io = |id| [1, 12, id, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];
    let entries = [local.as_slice(), &io(8), &io(2), &local].concat();
    assert_eq!(io_apics(&madt(&entries)), Knowledge::Known(vec![2, 8]));
    assert_eq!(io_apics(&madt(&[])), Knowledge::Known(Vec::new()));
    for broken in [&[1, 0, 5][..], &[1, 1, 5], &[1, 2], &[0, 200, 1]] {
        assert!(io_apics(&madt(broken)).is_unknown(), "{broken:?}");
    }
    assert!(io_apics(b"APIC").is_unknown());
    assert!(io_apics(&[b'x'; 100]).is_unknown());
}

#[test]
fn the_flag_of_hypervisors_is_read_and_its_lack_is_no_answer_without_flags() {
    let flags = |more: &str| format!("processor\t: 0\nflags\t\t: fpu vme{more} sse\n");
    assert_eq!(is_guest(&flags(" hypervisor")), Knowledge::Known(true));
    assert_eq!(is_guest(&flags(" hypervisors")), Knowledge::Known(false));
    assert!(is_guest("processor\t: 0\n").is_unknown());
    let log = crate::log::read(b"[    0.000000] Hypervisor detected: KVM\n");
    let platform = Platform::from_text(&Obstacle::NotShown("x"), &log, |_| None);
    assert_eq!(platform.is_guest, Knowledge::Known(true));
}

#[test]
fn memory_comes_from_iomem_with_what_is_inside_something() {
    let text = "00000000-00000fff : Reserved\n00001000-0009ffff : System RAM\n  00002000-00002fff : Reserved\n\
        7b000000-7b7fffff : ACPI Non-volatile Storage\n7b800000-7fffffff : Reserved\n  7c000000-7fffffff : Graphics Stolen Memory\n\
        80000000-dfffffff : PCI Bus 0000:00\n  c0000000-cfffffff : Reserved\nnonsense\n";
    let Knowledge::Known(map) = memory_of_iomem(text) else {
        panic!("readable")
    };
    let shown: Vec<(u64, bool)> = map
        .iter()
        .map(|region| (region.range.first().raw(), region.kind == MemoryKind::Reserved))
        .collect();
    assert_eq!(
        shown,
        [(0, true), (0x1000, false), (0x7b80_0000, true), (0xc000_0000, true)]
    );
}

#[test]
fn zeros_in_place_of_addresses_are_a_lack_of_rights() {
    let text = "00000000-00000000 : Reserved\n00000000-00000000 : System RAM\n";
    assert_eq!(
        memory_of_iomem(text),
        Knowledge::Unknown(Obstacle::NotPermitted("/proc/iomem".to_owned()))
    );
    assert!(memory_of_iomem("").is_unknown());
}

#[test]
fn the_log_has_the_map_as_the_firmware_gave_it() {
    let log = crate::log::read(
        b"[    0.000000] BIOS-e820: [mem 0x0000000000000000-0x000000000009efff] usable\n\
          [    0.000000] BIOS-e820: [mem 0x00000000000e0000-0x00000000000fffff] reserved\n\
          [    0.000000] BIOS-e820: [mem 0x000000007a000000-0x000000007a0fffff] ACPI NVS\n\
          [    0.000000] BIOS-e820: [mem 0x000000007a000000-garbled\n",
    );
    let map = memory_of_log(&log).expect("there");
    assert_eq!(map.len(), 2);
    assert_eq!(map[1].kind, MemoryKind::Reserved);
    assert_eq!(map[1].range.last().raw(), 0xf_ffff);
}

#[test]
fn address_bits_are_those_of_the_first_processor() {
    let text = "processor\t: 0\naddress sizes\t: 46 bits physical, 48 bits virtual\n";
    assert_eq!(address_bits(text), Knowledge::Known(46));
    assert!(address_bits("processor\t: 0\nBogoMIPS\t: 50\n").is_unknown());
    assert!(address_bits("address sizes\t: many bits physical\n").is_unknown());
}
