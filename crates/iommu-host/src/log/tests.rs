use iommu_types::{Access, Iova, Pasid, SourceId};
use vtd_spec::fault::FaultReason;

use super::*;

fn faults(text: &str) -> Vec<(usize, Fault)> {
    let log = read(text.as_bytes());
    log.faults()
        .map(|(record, fault)| (record.line, fault.clone()))
        .collect()
}

fn dma(device: &str, access: Access, address: u64, reason: u8, text: &str) -> Fault {
    Fault {
        requester: device.parse().expect("valid"),
        request: Request::Dma {
            access,
            address: Iova::new(address),
        },
        pasid: None,
        reason: Some(FaultReason(reason)),
        reason_text: text.to_owned(),
        unit: None,
        details: Vec::new(),
    }
}

#[test]
fn newer_kernels_put_the_domain_before_the_requester() {
    let expected = dma("00:08.0", Access::Write, 0x1234_5000, 5, "PTE Write access is not set");
    let text = "[   12.340214] DMAR: [DMA Write NO_PASID] Request device [0000:00:08.0] fault addr 0x12345000 \
                [fault reason 0x05] PTE Write access is not set\n";
    assert_eq!(faults(text), [(1, expected)]);
}

#[test]
fn two_line_shape_joins_request_and_reason() {
    let expected = dma(
        "03:00.1",
        Access::Write,
        0xfffc_0000,
        2,
        "Present bit in context entry is clear",
    );
    let text = "[ 1.000001] DMAR:[DMA Write] Request device [03:00.1] fault addr fffc0000\n\
                [ 1.000001] DMAR:[fault reason 02] Present bit in context entry is clear\n";
    assert_eq!(faults(text), [(1, expected.clone())]);
    // The older kernel prints both with one call: the second has no prefix.
    let text = "dmar: DMAR:[DMA Write] Request device [03:00.1] fault addr fffc0000 \n\
                [fault reason 02] Present bit in context entry is clear\n";
    assert_eq!(faults(text), [(1, expected.clone())]);
    // Other lines may come between.
    let text = "[ 1.000001] DMAR:[DMA Write] Request device [03:00.1] fault addr fffc0000\n\
                [ 1.000001] usb 1-1: hello\n\
                [ 1.000001] DMAR:[fault reason 02] Present bit in context entry is clear\n";
    assert_eq!(faults(text), [(1, expected)]);
}

#[test]
fn reasons_are_decimal_without_0x_and_hexadecimal_with() {
    let line = |reason: &str| {
        format!(
            "DMAR: [DMA Read] Request device [00:02.0] fault addr 8900a000 [fault reason {reason}] PTE Read access is not set"
        )
    };
    for (text, code) in [("06", 6), ("10", 10), ("0x10", 16), ("37", 0x25), ("0x25", 0x25)] {
        let expected = dma("00:02.0", Access::Read, 0x8900_a000, code, "PTE Read access is not set");
        assert_eq!(faults(&line(text)), [(1, expected)], "{text}");
    }
}

#[test]
fn pasid_ffffffff_is_none_and_a_small_one_is_kept() {
    let line = "DMAR: [DMA Read] Request device [05:00.0] PASID ffffffff fault addr 6c800000 [fault reason 06] PTE Read access is not set";
    let expected = dma("05:00.0", Access::Read, 0x6c80_0000, 6, "PTE Read access is not set");
    assert_eq!(faults(line), [(1, expected.clone())]);
    let pasid = |line: &str| faults(line).first().and_then(|(_, fault)| fault.pasid);
    assert_eq!(pasid(&line.replace("ffffffff", "2a")), Pasid::new(0x2a));
    let newer = "DMAR: [DMA Write PASID 0x2] Request device [81:00.0] fault addr 0xffffd000 [fault reason 0x59] SM: Present bit";
    assert_eq!(pasid(newer), Pasid::new(2));
}

#[test]
fn shapes_of_newer_kernels_decode() {
    let five_14 = "DMAR: [DMA Read NO_PASID] Request device [0x00:0x02.0] fault addr 0x7b000 [fault reason 0x06] PTE Read access is not set";
    let expected = dma("00:02.0", Access::Read, 0x7_b000, 6, "PTE Read access is not set");
    assert_eq!(faults(five_14), [(1, expected)]);
    let newest = "May 1 00:00:01 host kernel: [   12.345678][    T1] DMAR: [DMA Write NO_PASID] Request device [81:00.0] fault addr 0xffffd000 [fault reason 0x59] SM: Present bit in PASID entry is clear";
    let expected = dma(
        "81:00.0",
        Access::Write,
        0xffff_d000,
        0x59,
        "SM: Present bit in PASID entry is clear",
    );
    assert_eq!(faults(newest), [(1, expected)]);
}

#[test]
fn interrupt_faults_decode_in_all_shapes() {
    for line in [
        "DMAR: [INTR-REMAP] Request device [64:00.5] fault index 0x8800 [fault reason 0x25] Blocked a compatibility format interrupt request",
        "DMAR: [INTR-REMAP] Request device [0x64:0x00.5] fault index 0x8800 [fault reason 0x25] Blocked",
        "DMAR: [INTR-REMAP] Request device [64:00.5] fault index 8800 [fault reason 37] Blocked",
        "DMAR: INTR-REMAP: Request device [[64:00.5] fault index 8800 \nINTR-REMAP:[fault reason 37] Blocked",
    ] {
        let found = faults(line);
        let [(1, fault)] = found.as_slice() else {
            panic!("{line}: {found:?}")
        };
        assert_eq!(fault.request, Request::Interrupt { index: 0x8800 }, "{line}");
        assert_eq!(fault.reason, Some(FaultReason::COMPATIBILITY_BLOCKED), "{line}");
        assert_eq!(fault.requester, "64:00.5".parse::<SourceId>().expect("valid"));
    }
}

#[test]
fn lines_wrapped_by_a_mailer_are_joined() {
    let text = "DMAR: [DMA Read NO_PASID] Request device [81:00.0]\nfault addr 0xffffd000 [fault reason\n0x59] SM: Present bit\n";
    let expected = dma("81:00.0", Access::Read, 0xffff_d000, 0x59, "SM: Present bit");
    assert_eq!(faults(text), [(1, expected)]);
}

#[test]
fn a_fault_without_reason_counts_without_reason_unless_digits_are_lost() {
    let whole = faults("DMAR: [DMA Read] Request device [00:02.0] fault addr 8900a000\n[ 1.000000] usb: x\n");
    assert_eq!(whole.first().map(|(_, fault)| fault.reason), Some(None));
    let log = read(b"DMAR: [DMA Read] Request device [00:02.0] fault addr 8900a\n");
    assert_eq!(log.faults().count(), 0);
    assert_eq!(log.unread.first().map(|unread| unread.why), Some(Why::CutShort));
}

#[test]
fn garbled_faults_are_reported_and_never_guessed() {
    for (line, why) in [
        ("DMAR: [DMA Read] Reques", Why::Garbled),
        ("DMAR: [DMA Read]", Why::CutShort),
        (
            "DMAR: [DMA Rad] Request device [00:02.0] fault addr 1000 [fault reason 06] x",
            Why::Garbled,
        ),
        ("DMAR: [DMA Read] Request device [00:0", Why::CutShort),
        (
            "DMAR: [DMA Read] Request device [00:02.9] fault addr 1000 [fault reason 06] x",
            Why::Garbled,
        ),
        (
            "DMAR: [DMA Read] Request device [00:02.0] fault addr 10zz [fault reason 06] x",
            Why::Garbled,
        ),
        (
            "DMAR: [DMA Read] Request device [00:02.0] fault addr 1000 [fault reason 999] x",
            Why::Garbled,
        ),
        ("DMAR:[fault reason 06] PTE Read access is not set", Why::ReasonAlone),
        (
            "AMD-Vi: Event logged [IO_PAGE_FAULT device=00:14.1 domain=0x0003 address=0x0]",
            Why::OtherIommu,
        ),
    ] {
        let log = read(line.as_bytes());
        assert_eq!(log.faults().count(), 0, "{line}");
        let unread: Vec<_> = log.unread.iter().map(|unread| (unread.line, unread.why)).collect();
        assert_eq!(unread, [(1, why)], "{line}");
    }
}

#[test]
fn table_dumps_follow_their_fault() {
    let log = read(
        b"DMAR: [DMA Read NO_PASID] Request device [81:00.0] fault addr 0x1000 [fault reason 0x59] x\n\
          DMAR: Dump dmar5 table entries for IOVA 0x1000\n\
          DMAR: scalable mode root entry: hi 0x0, low 0x1\n",
    );
    let fault = log.faults().next().expect("one").1;
    assert_eq!(fault.unit, Some(5));
    assert_eq!(fault.details.len(), 2);
}

#[test]
fn announcements_suppression_and_queue_errors_decode() {
    let log = read(
        b"DMAR: DRHD: handling fault status reg 602\n\
          DMAR: DRHD: handling fault s[tatus reg 3\n\
          dmar_fault: 17 callbacks suppressed\n\
          DMAR: VT-d detected Invalidation Queue Error: Reason f\n\
          DMAR: VT-d detected Invalidation Time-out Error: SID ffff\n",
    );
    let events: Vec<_> = log.records.iter().map(|record| record.event.clone()).collect();
    assert_eq!(
        events,
        [
            Event::Status(0x602),
            Event::Status(3),
            Event::Suppressed(17),
            Event::Queue(QueueError::Refused(0xf)),
            Event::Queue(QueueError::TimedOut(0xffff)),
        ]
    );
    assert_eq!(log.suppressed, 17);
}

#[test]
fn boot_lines_give_units_regions_and_groups() {
    let log = read(
        b"[    0.000000] DMAR: Host address width 46\n\
          [    0.000000] DMAR: dmar1: reg_base_addr f4ffe000 ver 1:0 cap d2078c106f0462 ecap f020fe\n\
          [    0.000000] DMAR: RMRR base: 0x000000bdffd000 end: 0x000000bdffffff\n\
          [    0.000000] DMAR-IR: IOAPIC id 10 under DRHD base  0xfbafe000 IOMMU 0\n\
          [    0.000000] DMAR-IR: Enabled IRQ remapping in xapic mode\n\
          [    0.000000] pci 0000:00:1f.0: Adding to iommu group 12\n\
          [    0.000000] pci 0g to iommu group 12\n\
          [    0.000000] pci 0000:00:1f.2: DMAR: Setting identity map [0xf4000 - 0xf4fff]\n",
    );
    let boot: Vec<_> = log.boot().map(|(_, event)| event.clone()).collect();
    assert_eq!(boot.len(), 7, "{boot:#?}");
    assert_eq!(boot.first(), Some(&BootEvent::HostAddressWidth(46)));
    assert!(matches!(
        boot.get(1),
        Some(BootEvent::Unit { index: 1, version: (1, 0), cap, .. }) if cap.raw_value() == 0xd2_078c_106f_0462
    ));
    assert!(matches!(boot.get(5), Some(BootEvent::GroupAdded { device, group: 12 }) if device == "0000:00:1f.0"));
}

#[test]
fn noise_costs_nothing_and_yields_nothing() {
    let mut bytes = Vec::new();
    let mut seed = 1u64;
    for _ in 0..10_000 {
        for _ in 0..60 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            bytes.push(seed.to_be_bytes()[0]);
        }
        bytes.extend(b" DMAR: [DMA \n");
    }
    let log = read(&bytes);
    assert!(log.lines >= 10_000);
    assert!(log.unread_count >= 9_000, "looks like faults");
    assert_eq!(log.unread.len(), MAX_UNREAD);
    assert_eq!(log.faults().count(), 0);
}

#[test]
fn every_cut_of_a_fault_line_is_survived() {
    let line = b"[  1.000000] DMAR: [DMA Write PASID 0x2] Request device [0x81:0x00.0] fault addr 0xffffd000 [fault reason 0x59] \xc3\xa9";
    for end in 0..line.len() {
        for start in 0..end {
            let _ = read(&line[start..end]);
        }
    }
}

#[test]
fn lines_are_counted_as_editors_count_them() {
    for (text, lines) in [
        ("", 0),
        ("\n", 1),
        ("x", 1),
        ("x\n", 1),
        ("\n\n", 2),
        ("x\n\n", 2),
        ("x\ny", 2),
    ] {
        assert_eq!(read(text.as_bytes()).lines, lines, "{text:?}");
    }
}
