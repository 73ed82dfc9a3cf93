use iommu_groups::pci::acs;

use super::*;

fn refused(change: impl Fn(String) -> String) -> DescriptionError {
    let text = change(TWO_SOCKET.to_owned());
    assert_ne!(text, TWO_SOCKET, "the change must apply");
    MachineDescription::parse("m.toml", &text).expect_err("must be refused")
}

#[test]
fn the_default_machine_is_sound_and_as_described() {
    let machine = MachineDescription::two_socket().expect("sound");
    assert_eq!(machine.units.len(), 4);
    assert!(machine.units[3].include_pci_all);
    assert_eq!(machine.units[1].node, Some(NodeId(1)));
    assert_eq!(machine.rmrrs[0].range.len(), Some(64 << 10));
    let sound = machine.function("0c:04.0".parse().expect("bdf")).expect("there");
    let bridge = &machine.functions[sound.parent.expect("below the bridge")];
    assert_eq!(bridge.kind, FunctionKind::PcieToPciBridge);
    assert_eq!(sound.dma_bits, 32);
    let port = machine.function("00:14.0".parse().expect("bdf")).expect("there");
    assert_eq!(
        port.acs.map(|word| word & acs::REQUEST_REDIRECT),
        Some(acs::REQUEST_REDIRECT)
    );
    let nic = machine.function("06:00.1".parse().expect("bdf")).expect("there");
    assert_eq!(nic.acs, None);
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    let error = refused(|text| text.replacen("\nengine = true", "\nengin = true", 1));
    let line = TWO_SOCKET
        .lines()
        .position(|line| line == "engine = true")
        .expect("there")
        + 1;
    assert_eq!(error.line, line, "{error}");
    assert!(
        error.problem.contains("engin") && error.problem.contains("engine"),
        "{error}"
    );
    assert!(error.to_string().starts_with("m.toml:"), "{error}");
}

#[test]
fn each_mistake_is_refused_where_it_stands() {
    let cases: &[(&str, &str, &str)] = &[
        ("host-address-width = 46", "host-address-width = 60", "32 to 52"),
        ("size = \"2 GiB\"", "size = \"2 GB\"", "number of bytes"),
        ("base = \"4 GiB\"", "base = \"1 GiB\"", "overlaps memory"),
        ("base = 0x8000_0000", "base = 0x7fff_f000", "overlaps memory"),
        (
            "base = 0xfed9_1000",
            "base = 0xfed9_0000",
            "unit dmar0 has this base too",
        ),
        ("base = 0xfed9_0000", "base = 0x1000", "not memory"),
        ("base = 0xfed9_0000", "base = 0", "not 0"),
        ("base = 0xfed9_0000", "base = 0xfed9_0800", "multiples of 4 KiB"),
        ("path = \"00:14.0\"", "path = \"00:24.0\"", "a path from a root bus"),
        ("bdf = \"06:00.1\"", "bdf = \"06:00.0\"", "is taken"),
        ("bdf = \"06:00.1\"", "bdf = \"06:01.1\"", "device number 00"),
        ("bdf = \"06:00.1\"", "bdf = \"07:00.1\"", "nothing leads to bus 07"),
        ("buses = \"02-04\"", "buses = \"02-05\"", "inside 01-04"),
        ("buses = \"04\"", "buses = \"03\"", "overlap those of switch port 0"),
        ("buses = \"0c\"\n", "", "expected `buses`"),
        (
            "kind = \"switch-upstream\"",
            "kind = \"switch-downstream\"",
            "expected it below switch-upstream",
        ),
        (
            "kind = \"conventional\"",
            "kind = \"endpoint\"",
            "expected it below root-port",
        ),
        ("kind = \"conventional\"", "kind = \"sound\"", "unknown variant"),
        ("dma-bits = 32", "dma-bits = 40", "32 or 64"),
        ("ids = \"8086:2020\"", "ids = \"8086\"", "vendor and device ID"),
        ("class = 0x060000", "class = 0x01060000", "24 bits"),
        (
            "name = \"NIC port 1\"",
            "name = \"NIC port 0\"",
            "another function has this name",
        ),
        ("buses = \"0c\"", "buses = \"0c\"\nengine = true", "no DMA engine"),
        ("kind = \"io-apic\", id = 8", "kind = \"io-apic\"", "expected `id`"),
        ("kind = \"io-apic\", id = 8", "kind = \"endpoint\"", "not possible here"),
        (
            "multifunction = true\nids = \"15b3:1015\"",
            "ids = \"15b3:1015\"",
            "function 0",
        ),
        ("\n[[atsr]]", "\n[[atsr]]\nall-ports = true", "either"),
        ("acs = [\"SV\"", "acs = [\"VS\"", "unknown variant"),
    ];
    for (from, to, expected) in cases {
        let error = refused(|text| text.replacen(from, to, 1));
        assert!(error.problem.contains(expected), "{from:?} -> {to:?}: {error}");
        assert!(error.line > 1, "{error}");
    }
}

#[test]
fn a_function_may_be_named_by_parent_and_slot() {
    let text = TWO_SOCKET.replacen("bdf = \"06:00.1\"", "parent = \"root port B\"\nslot = \"00.1\"", 1);
    let machine = MachineDescription::parse("m.toml", &text).expect("sound");
    assert_eq!(machine, MachineDescription::two_socket().expect("sound"));
    let error = refused(|text| text.replacen("bdf = \"06:00.1\"", "parent = \"root port X\"\nslot = \"00.1\"", 1));
    assert!(error.problem.contains("name of a bridge"), "{error}");
}

#[test]
fn a_file_that_is_not_there_is_an_error_with_its_name() {
    let error = MachineDescription::load(Path::new("/nowhere/m.toml")).expect_err("not there");
    assert!(error.to_string().contains("/nowhere/m.toml"), "{error}");
}

#[test]
fn the_table_of_the_default_machine_reads_back_as_described() {
    let machine = MachineDescription::two_socket().expect("sound");
    let bytes = machine.to_dmar().expect("fits");
    let table = acpi_dmar::Dmar::parse(&bytes).expect("a table");
    assert!(table.checksum_ok());
    assert_eq!(table.first_malformed(), None);
    assert_eq!(table.host_address_bits(), 46);
    let bases: Vec<_> = table.units().map(|unit| unit.register_base()).collect();
    assert_eq!(bases, machine.units.iter().map(|unit| unit.base).collect::<Vec<_>>());
    assert_eq!(table.rmrrs().count(), 1);
    assert_eq!(table.atsrs().count(), 1);
    assert_eq!(
        table.rhsas().map(|rhsa| rhsa.proximity_domain()).collect::<Vec<_>>(),
        [0, 1, 1, 0]
    );
    let scopes: Vec<String> = table
        .units()
        .last()
        .expect("four units")
        .scopes()
        .map(|scope| scope.expect("readable").to_string())
        .collect();
    assert_eq!(scopes.len(), 2, "{scopes:?}");
}
