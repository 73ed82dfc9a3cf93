//! Interrupt remapping and posting (VT-d §5.1, §5.2, §7.2).

use iommu_types::{HostPhys, SystemMemory};

/// Registers of one unit, raw (VT-d §11.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OracleInterruptUnit {
    /// IRTA as it stood at the last SIRTP.
    pub irta: u64,
    /// GSTS: IRES (bit 25) and CFIS (bit 23) count.
    pub gsts: u32,
    /// CAP.
    pub cap: u64,
    /// ECAP.
    pub ecap: u64,
    /// Host address width in bits.
    pub haw: u32,
}

/// An interrupt as it leaves the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OracleInterrupt {
    /// The vector.
    pub vector: u8,
    /// Delivery mode: 0 fixed, 1 lowest priority, 2 SMI, 4 NMI, 5 INIT, 7 ExtINT.
    pub delivery: u8,
    /// APIC ID, 8 or 32 bits.
    pub destination: u32,
    /// Destination mode: logical rather than physical.
    pub logical: bool,
    /// Redirection hint.
    pub redirect: bool,
    /// Level rather than edge triggered.
    pub level: bool,
}

/// What posting changes (VT-d §5.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Posting {
    /// Host address of the posted interrupt descriptor.
    pub descriptor: u64,
    /// What the descriptor must hold afterwards.
    pub after: [u64; 8],
    /// The notification to be sent, if any.
    pub notify: Option<OracleInterrupt>,
}

/// What comes of an interrupt request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterruptOutcome {
    /// Goes on as it came, in compatibility format.
    Compatibility,
    /// Remapped.
    Remapped(OracleInterrupt),
    /// Posted.
    Posted(Posting),
    /// Dropped, with a fault.
    Fault {
        /// The specification's fault reason.
        reason: u8,
        /// FPD of the IRTE kept a qualified fault out of the log.
        suppressed: bool,
        /// The `interrupt_index` of a remappable request, for the fault record.
        index: Option<u32>,
    },
}

/// What comes of the DWORD write of `data` to `address` in FEE0_0000h to FEEF_FFFFh by `sid`.
pub fn remap_interrupt<M: SystemMemory>(
    memory: &M,
    unit: &OracleInterruptUnit,
    sid: u16,
    address: u64,
    data: u32,
) -> InterruptOutcome {
    let fault = |reason, suppressed, index| InterruptOutcome::Fault {
        reason,
        suppressed,
        index,
    };
    let ecap = |bit: u32| unit.ecap >> bit & 1 == 1;
    let (ires, cfis) = (unit.gsts >> 25 & 1 == 1, unit.gsts >> 23 & 1 == 1);
    // IRTA.EIME, bit 11, if ECAP.EIM (bit 4) has it.
    let eime = unit.irta >> 11 & 1 == 1 && ecap(4);
    let load = |at: u64| memory.read_u64(HostPhys::new(at)).ok();

    // Remapping off: ECAP.IRREQ (bit 62) units block everything.
    if !ires {
        return if ecap(62) {
            fault(0x2b, false, None)
        } else {
            InterruptOutcome::Compatibility
        };
    }
    // ECAP.EIMER (bit 61) units work in extended mode only.
    if ecap(61) && !eime {
        return fault(0x2a, false, None);
    }
    // VT-d §5.1.2: address bit 4 tells the formats apart.
    if address >> 4 & 1 == 0 {
        return if eime || !cfis {
            fault(0x25, false, None)
        } else {
            InterruptOutcome::Compatibility
        };
    }
    // Remappable format: handle 14:0 in address 19:5, handle 15 in bit 2, SHV in bit 3.
    let address = address & 0xffff_ffff;
    let handle = address >> 5 & 0x7fff | (address >> 2 & 1) << 15;
    let index = if address >> 3 & 1 == 1 {
        if data >> 16 != 0 {
            return fault(0x20, false, u32::try_from(handle).ok());
        }
        handle + u64::from(data & 0xffff)
    } else {
        handle
    };
    let number = u32::try_from(index).ok();
    // IRTA.S, bits 3:0: 2^(S+1) entries.
    let at = (unit.irta & !0xfff & !(u64::MAX << unit.haw)) + 16 * index;
    if index >> ((unit.irta & 0xf) + 1) != 0 || at >> unit.haw != 0 {
        return fault(0x21, false, number);
    }
    let (Some(low), Some(high)) = (load(at), load(at + 8)) else {
        return fault(0x23, false, number);
    };
    let fpd = low >> 1 & 1 == 1;
    if low & 1 == 0 {
        return fault(0x22, fpd, number);
    }
    if !source_matches(high, sid) {
        return fault(0x26, fpd, number);
    }
    let posted = low >> 15 & 1 == 1;
    // VT-d §9.10, §9.11. IM needs CAP.PI (bit 59).
    let pi = unit.cap >> 59 & 1 == 1;
    let bad = if posted {
        let reserved_low = 0x3f << 2 | 3 << 12 | 0x3fff << 24;
        let pda_high = high >> 32 << 32;
        !pi || low & reserved_low != 0 || high >> 20 & 0xfff != 0 || pda_high >> unit.haw != 0
    } else {
        // Without EIME the destination is 47:40 only.
        let reserved_low = 7 << 12 | 0xff << 24 | if eime { 0 } else { 0xffff << 48 | 0xff << 32 };
        low & reserved_low != 0 || high >> 20 != 0 || matches!(low >> 5 & 7, 3 | 6)
    };
    if bad || high >> 18 & 3 == 3 {
        return fault(0x24, fpd, number);
    }
    if !posted {
        let destination = if eime { low >> 32 } else { low >> 40 & 0xff };
        return InterruptOutcome::Remapped(OracleInterrupt {
            vector: byte(low >> 16),
            delivery: byte(low >> 5 & 7),
            destination: u32::try_from(destination).unwrap_or(0),
            logical: low >> 2 & 1 == 1,
            redirect: low >> 3 & 1 == 1,
            // VT-d §9.10 TM: SMI, NMI, INIT and ExtINT are edge whatever the entry says.
            level: low >> 4 & 1 == 1 && low >> 5 & 7 < 2,
        });
    }

    // PDA 31:6 in bits 63:38, PDA 63:32 in bits 127:96.
    let descriptor = high >> 32 << 32 | low >> 38 << 6;
    let mut words = [0; 8];
    for (at, word) in (descriptor..).step_by(8).zip(&mut words) {
        let Some(value) = load(at) else {
            return fault(0x27, fpd, number);
        };
        *word = value;
    }
    // VT-d §9.12: 271:258, 287:280, NDST bits that the mode does not use, 511:320.
    let unused_ndst = if eime { 0 } else { (0xffff_00ff) << 32 };
    if words[4] & (0x3fff << 2 | 0xff << 24 | unused_ndst) != 0 || words[5..].iter().any(|w| *w != 0) {
        return fault(0x28, fpd, number);
    }
    let mut after = words;
    let vector = low >> 16 & 0xff;
    if let Some(word) = usize::try_from(vector / 64).ok().and_then(|n| after.get_mut(n)) {
        *word |= 1 << (vector % 64);
    }
    let (on, sn, urgent) = (words[4] & 1 == 1, words[4] >> 1 & 1 == 1, low >> 14 & 1 == 1);
    let notify = !on && (urgent || !sn);
    if notify {
        after[4] |= 1;
    }
    let ndst = words[4] >> 32;
    InterruptOutcome::Posted(Posting {
        descriptor,
        after,
        notify: notify.then(|| OracleInterrupt {
            vector: byte(words[4] >> 16),
            delivery: 0,
            destination: u32::try_from(if eime { ndst } else { ndst >> 8 & 0xff }).unwrap_or(0),
            logical: false,
            redirect: false,
            level: false,
        }),
    })
}

/// Source validation (VT-d §9.10, SVT, SQ and SID).
fn source_matches(high: u64, sid: u16) -> bool {
    let (expected, sid) = (high & 0xffff, u64::from(sid));
    match high >> 18 & 3 {
        1 => {
            let ignored = match high >> 16 & 3 {
                0 => 0,
                1 => 0b100,
                2 => 0b110,
                _ => 0b111,
            };
            (expected ^ sid) & !ignored == 0
        }
        2 => (expected >> 8..=expected & 0xff).contains(&(sid >> 8)),
        _ => true,
    }
}

fn byte(value: u64) -> u8 {
    value.to_le_bytes()[0]
}
