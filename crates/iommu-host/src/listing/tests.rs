use iommu_groups::{ConfigAccess, Presence, group};

use super::*;

const TEXT: &str = "\
00:1c.0 PCI bridge [0604]: Intel Corporation Port [8086:a110] (rev f1) (prog-if 00 [Normal decode])
\tControl: I/O+ Mem+ BusMaster+ SpecCycle- MemWINV- VGASnoop- ParErr- Stepping- SERR- FastB2B- DisINTx+
\tStatus: Cap+ 66MHz- UDF- FastB2B- ParErr- DEVSEL=fast >TAbort- <TAbort- <MAbort- >SERR- <PERR- INTx-
\tIOMMU group: 3
\tBus: primary=00, secondary=15, subordinate=15, sec-latency=0
\tCapabilities: [40] Express (v2) Root Port (Slot+), MSI 00
\t\tDevCtl2: Completion Timeout: 50us to 50ms, TimeoutDis-, ARIFwd+
\tCapabilities: [140 v1] Access Control Services
\t\tACSCap:\tSrcValid+ TransBlk+ ReqRedir+ CmpltRedir+ UpstreamFwd- EgressCtrl- DirectTrans-
\t\tACSCtl:\tSrcValid- TransBlk- ReqRedir- CmpltRedir- UpstreamFwd- EgressCtrl- DirectTrans-
\tCapabilities: [100 v1] Null
\tKernel driver in use: pcieport

15:00.0 Ethernet controller [0200]: Intel Corporation I210 [8086:1533] (rev 03)
\tControl: I/O- Mem+ BusMaster+
\tStatus: Cap+ 66MHz-
\tRegion 0: Memory at df000000 (32-bit, non-prefetchable) [size=512K]
\tIOMMU group: 4
\tNUMA node: 1
\tCapabilities: [40] Power Management version 3
\t\tStatus: D0 NoSoftRst+ PME-Enable-
\tCapabilities: [a0] Express (v2) Endpoint, MSI 00
\t\t\tExtTag- AttnBtn- AttnInd- PwrInd- RBE+ FLReset+ SlotPowerLimit 0W
\tKernel driver in use: vfio-pci
";

#[test]
fn words_become_configuration_space() {
    let machine = read(TEXT.as_bytes());
    let topology = machine.topology();
    let port = topology.get("00:1c.0".parse().expect("valid")).expect("there");
    assert_eq!(port.describe(), "root port");
    assert_eq!(
        port.buses.map(|buses| (buses.secondary, buses.subordinate)),
        Some((0x15, 0x15))
    );
    assert!(port.ari_forwarding);
    // The wide control register is not shown; Linux has set it where there are groups.
    let Presence::Present(state) = port.acs else {
        panic!("{:?}", port.acs)
    };
    assert_eq!((state.capability, state.control & acs::REQUIRED), (0xf, 0xd));
    let nic = topology.get("15:00.0".parse().expect("valid")).expect("there");
    assert_eq!((nic.describe(), nic.has_memory), ("endpoint", true));
    assert!(nic.resets.flr.is_present());
    assert_eq!(nic.resets.power, Presence::Absent);
    assert_eq!(nic.acs, Presence::Absent);
    assert_eq!(topology.parent(nic.bdf).map(|f| f.bdf), Some(port.bdf));
    let groups = group(&topology, machine.linux_rules());
    assert_eq!(groups.together(port.bdf, nic.bdf), Some(false));
    let nic = machine.functions.get(&nic.bdf).expect("there");
    assert_eq!(nic.driver, Knowledge::Known("vfio-pci".to_owned()));
    assert_eq!(nic.node, Knowledge::Known(NodeId(1)));
    assert_eq!(nic.group, Knowledge::Known(4));
}

#[test]
fn denied_capabilities_are_unknown_and_not_absent() {
    let machine = read(
        b"00:1c.0 PCI bridge [0604]: Intel Corporation Port [8086:0001]\n\
          \tFlags: bus master, fast devsel, latency 0\n\
          \tBus: primary=00, secondary=01, subordinate=01, sec-latency=0\n\
          \tCapabilities: <access denied>\n",
    );
    let topology = machine.topology();
    let port = topology.functions().first().expect("one");
    assert!(port.port.is_unknown() && port.acs.is_unknown(), "{port:?}");
}

#[test]
fn hex_counts_more_than_words_and_damaged_lines_are_told() {
    let machine = read(
        b"00:02.0 VGA compatible controller: Intel Corporation Something\n\
          \tStatus: Cap- 66MHz-\n\
          00: 86 80 a6 46 07 04 10 00 0c 00 00 03 00 00 00 00\n\
          lspci: Unable to load libkmod resources: error -2\n\
          10: 04 00 00 00 60 00 00 00 00 00 00 00 00 00 00 zz\n\
          20: 01 02\n",
    );
    let bdf = "00:02.0".parse().expect("valid");
    assert_eq!(machine.read32(bdf, 0), Some(0x46a6_8086));
    assert_eq!(
        machine.functions.get(&bdf).map(|f| f.identity.clone()),
        Some(Knowledge::Known((0x8086, 0x46a6)))
    );
    assert_eq!(machine.read32(bdf, 4), Some(0x0010_0407));
    assert!(
        machine.notes.iter().any(|note| note.contains("hex lines")),
        "{:?}",
        machine.notes
    );
}

#[test]
fn functions_without_numbers_are_there_and_their_identity_is_unknown() {
    let machine = read(b"3b:00.0 Ethernet controller: Somebody Else NIC\n00:00.0 Host bridge: Intel Corporation X\n");
    assert_eq!(machine.functions.len(), 2);
    assert!(machine.functions.values().all(|f| f.identity.is_unknown()));
    assert_eq!(machine.topology().functions().len(), 2);
    assert!(machine.notes.iter().any(|note| note.contains("-nn")));
}

#[test]
fn wide_domains_are_domains_of_their_own() {
    let machine = read(b"10000:e1:00.0 Non-Volatile memory controller [0108]: X [8086:0a54]\n\tIOMMU group: 1\n");
    let names: Vec<String> = machine.functions.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["10000:e1:00.0"]);
}

#[test]
fn noise_yields_no_functions() {
    let mut bytes = Vec::new();
    let mut seed = 7u64;
    for _ in 0..600_000 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.push(seed.to_be_bytes()[0]);
    }
    assert!(read(&bytes).functions.is_empty());
    let bytes = TEXT.as_bytes();
    for end in 0..bytes.len() {
        let _ = read(&bytes[..end]).topology();
    }
}

#[test]
fn twenty_thousand_functions_in_one_group_cost_no_square() {
    let mut text = String::new();
    for bus in 0..=255u8 {
        for slot in 0..80u8 {
            text.push_str(&format!(
                "{bus:02x}:{:02x}.{} 0200: 1234:0001\n\tIOMMU group: 1\n",
                slot / 8,
                slot % 8
            ));
        }
    }
    let machine = read(text.as_bytes());
    assert_eq!(machine.functions.len(), 256 * 80);
    assert_eq!(
        machine
            .groups
            .known()
            .and_then(|groups| groups.get(&1))
            .map(|group| group.functions.len()),
        Some(256 * 80)
    );
}
