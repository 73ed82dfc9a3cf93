//! What a unit can do, from its capability registers.

use vtd_spec::register::{Capability, ExtendedCapability};

/// The fields that people compare, in one line: VT-d §11.4.2 (CAP_REG) and §11.4.3 (ECAP_REG) under their own names.
#[must_use]
pub fn summary(cap: u64, ecap: u64) -> String {
    let c = Capability::new_with_raw_value(cap);
    let e = ExtendedCapability::new_with_raw_value(ecap);
    format!(
        "ND={} MGAW={} SAGAW={:05b} CM={} SLLPS={:04b} NFR={} FRO={:#x} PSI={} | C={} QI={} DT={} IR={} EIM={} PT={} SC={} \
         SMTS={} PASID={} PRS={} IRO={:#x}",
        c.nd().value(),
        c.max_guest_address_width(),
        c.sagaw().value(),
        u8::from(c.cm()),
        c.sslps().value(),
        c.fault_record_count(),
        c.fault_record_offset(0),
        u8::from(c.psi()),
        u8::from(e.c()),
        u8::from(e.qi()),
        u8::from(e.dt()),
        u8::from(e.ir()),
        u8::from(e.eim()),
        u8::from(e.pt()),
        u8::from(e.sc()),
        u8::from(e.smts()),
        u8::from(e.pasid()),
        u8::from(e.prs()),
        e.invalidate_address_offset(),
    )
}

/// One feature of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// The specification's abbreviation.
    pub name: &'static str,
    /// What it is good for.
    pub meaning: &'static str,
    /// Whether the unit has it.
    pub has: bool,
}

/// The features that decide what a machine can be used for.
#[must_use]
pub fn features(cap: Capability, ecap: ExtendedCapability) -> Vec<Feature> {
    let feature = |name, meaning, has| Feature { name, meaning, has };
    vec![
        feature(
            "CM",
            "caching mode: the unit is emulated, and software must tell it of new mappings too",
            cap.cm(),
        ),
        feature("2M", "second-stage pages of 2 MiB", cap.second_stage_2m()),
        feature("1G", "second-stage pages of 1 GiB", cap.second_stage_1g()),
        feature("PSI", "invalidation of single pages", cap.psi()),
        feature("PI", "interrupts posted to guests without an exit", cap.pi()),
        feature("QI", "invalidation through a queue in memory", ecap.qi()),
        feature("IR", "interrupt remapping", ecap.ir()),
        feature("EIM", "x2APIC: interrupts to processors above 255", ecap.eim()),
        feature("PT", "pass-through without page tables", ecap.pt()),
        feature("C", "page walks that snoop processor caches", ecap.c()),
        feature("SC", "forced snooping for devices that ask for none", ecap.sc()),
        feature("DT", "device-TLBs (ATS)", ecap.dt()),
        feature("SMTS", "scalable mode", ecap.smts()),
        feature("PASID", "process address spaces", ecap.pasid()),
        feature("PRS", "page requests: faults that the processor resolves", ecap.prs()),
        feature(
            "FSTS",
            "first-stage translation with the processor's page tables",
            ecap.fsts(),
        ),
        feature("NEST", "nested translation", ecap.nest()),
    ]
}

/// What is missing on a unit for giving devices to guests; empty if nothing is.
#[must_use]
pub fn missing_for_assignment(cap: Capability, ecap: ExtendedCapability) -> Vec<&'static str> {
    let mut missing = Vec::new();
    if cap.largest_agaw().is_none() {
        missing.push("second-stage translation (SAGAW is 0)");
    }
    if !ecap.ir() {
        missing.push("interrupt remapping (IR): a guest could forge interrupts");
    }
    if !ecap.qi() {
        missing.push("queued invalidation (QI), which interrupt remapping needs");
    }
    missing
}

/// What is missing on a unit for sharing virtual addresses with devices (SVA, DSA); empty if nothing is.
#[must_use]
pub fn missing_for_shared_addresses(ecap: ExtendedCapability) -> Vec<&'static str> {
    [
        (ecap.smts(), "scalable mode (SMTS)"),
        (ecap.fsts(), "first-stage translation (FSTS)"),
        (ecap.pasid(), "process address spaces (PASID)"),
        (ecap.prs(), "page requests (PRS)"),
        (ecap.dt(), "device-TLBs (DT)"),
    ]
    .into_iter()
    .filter(|(has, _)| !has)
    .map(|(_, name)| name)
    .collect()
}

/// Address bits that mappings can use: the smallest of what the unit accepts and what its page tables span.
#[must_use]
pub fn address_bits(cap: Capability) -> Option<u8> {
    cap.largest_agaw()
        .map(|agaw| agaw.width().min(cap.max_guest_address_width()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_names_the_fields_of_both_registers() {
        assert_eq!(
            summary(0x8d2_078c_106f_0466, 0xf0_20df),
            "ND=6 MGAW=48 SAGAW=00100 CM=0 SLLPS=0011 NFR=8 FRO=0x100 PSI=1 | C=1 QI=1 DT=1 IR=1 EIM=1 PT=1 SC=1 SMTS=0 PASID=0 \
             PRS=0 IRO=0x200"
        );
    }

    #[test]
    fn readiness_names_what_is_missing() {
        let cap = Capability::new_with_raw_value(0xd2_008c_4066_0462);
        let ecap = ExtendedCapability::new_with_raw_value(0xf0_50da);
        assert!(missing_for_assignment(cap, ecap).is_empty());
        assert_eq!(missing_for_shared_addresses(ecap).len(), 5);
        assert_eq!(address_bits(cap), Some(39));
        let nothing = ExtendedCapability::new_with_raw_value(0);
        assert_eq!(
            missing_for_assignment(Capability::new_with_raw_value(0), nothing).len(),
            3
        );
    }
}
