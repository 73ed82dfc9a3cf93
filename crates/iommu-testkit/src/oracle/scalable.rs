//! Scalable mode (VT-d §3.4.3, §7.1.3: SRT, SCT, SPD, SPT and SGN conditions).

use iommu_types::SystemMemory;

use super::stages::{FirstStage, SecondStage};
use super::{
    Grant, OracleKind, Trouble, Walk, hpt, in_interrupt_range, page_meets_interrupt_range, qualified, unqualified,
};

pub(super) fn walk<M: SystemMemory>(walk: &mut Walk<'_, M>) -> Result<Grant, Trouble> {
    let (unit, request) = (walk.unit, walk.request);
    let (bus, devfn) = (u64::from(request.sid >> 8), u64::from(request.sid & 0xff));

    // Root entry (VT-d §9.2): lower half for devfn 00h-7Fh, upper half for 80h-FFh.
    let half = unit.root() + 16 * bus + 8 * (devfn >> 7);
    let root = walk.load(half).ok_or(unqualified(0x38, "SRT.1"))?;
    if root & 1 == 0 {
        return Err(unqualified(0x39, "SRT.2"));
    }
    if root & (0xffe | unit.above_haw()) != 0 {
        return Err(unqualified(0x3a, "SRT.3"));
    }

    // Context entry (VT-d §9.4).
    let context = walk
        .load_words::<4>((root & !0xfff) + 32 * (devfn & 0x7f))
        .ok_or(unqualified(0x40, "SCT.1"))?;
    let entry = context[0];
    walk.fpd |= entry >> 1 & 1 == 1;
    if entry & 1 == 0 {
        return Err(qualified(0x41, "SCT.2"));
    }
    let reserved = context_reserved(walk);
    if context.iter().zip(reserved).any(|(word, mask)| word & mask != 0) {
        return Err(qualified(0x42, "SCT.3"));
    }
    // ECAP.PSS (39:35): PASIDs of PSS + 1 bits.
    if request
        .pasid
        .is_some_and(|pasid| u64::from(pasid) >> ((unit.ecap >> 35 & 0x1f) + 1) != 0)
    {
        return Err(qualified(0x89, "SGN.10"));
    }
    let bit = |n: u32| entry >> n & 1 == 1;
    let (dte, paside, pre, hpte, eptr) = (bit(2), bit(3), bit(4), bit(5), bit(6));
    let rid_pasid = context[1] & 0xf_ffff;
    let too_big = |pasid: u64| pasid >> ((entry >> 9 & 7) + 13) != 0;
    let translated = request.kind == OracleKind::X;
    if pre && !dte {
        return Err(qualified(0x43, "SCT.4.1"));
    }
    if too_big(rid_pasid) {
        return Err(qualified(0x43, "SCT.4.2"));
    }
    if eptr && !paside && (translated || request.pasid.is_none()) {
        return Err(qualified(0x43, "SCT.4.3"));
    }
    if request.kind != OracleKind::U && !dte {
        return Err(qualified(0x44, "SCT.5"));
    }
    if let Some(pasid) = request.pasid.map(u64::from) {
        if !translated && !paside {
            return Err(qualified(0x45, "SCT.6"));
        }
        if too_big(pasid) {
            return Err(qualified(0x46, "SCT.7"));
        }
        if pasid == rid_pasid {
            return Err(qualified(0x48, "SCT.9"));
        }
        if translated && !eptr {
            return Err(qualified(0x49, "SCT.10"));
        }
    }
    if translated && !hpte {
        return pass_translated(walk);
    }

    let pasid = request.pasid.map_or(rid_pasid, u64::from);
    let supervisor = match request.pasid {
        Some(_) => request.privileged,
        // RID_PRIV, bit 84; reserved, hence 0, without ECAP.RPRIVS.
        None => context[1] >> 20 & 1 == 1,
    };
    let entry = pasid_entry(walk, context[0] & !0xfff, pasid, hpte)?;
    let (pgtt, aw) = (entry[0] >> 6 & 7, entry[0] >> 2 & 7);
    if !translated {
        // VT-d §7.1.3 SPT.5: execution is not supported (no ERS); units of version 8 answer RTA.5 before.
        if unit.version_major() <= 7 && request.pasid.is_some() && request.execute {
            return Err(qualified(0x5c, "SPT.5"));
        }
        // SRE, bit 128.
        if supervisor && entry[2] & 1 == 0 {
            return Err(qualified(0x5d, "SPT.6"));
        }
    }
    if translated {
        let table = hpt::Table {
            root: entry[4] & !0xfff,
            size: entry[4] & 3,
        };
        table.check(walk)?;
        return pass_translated(walk);
    }
    if let Some(grant) = walk.interrupt_range_completion() {
        return Ok(grant);
    }

    // PWSNP (bit 87) counts only with ECAP.SMPWCS (bit 48), without which it is reserved.
    let snooped = entry[1] >> 23 & 1 == 1;
    let second = SecondStage {
        root: entry[0] & !0xfff,
        aw,
        flags: entry[0] >> 9 & 1 == 1,
        snooped,
    };
    let first = FirstStage {
        root: entry[2] & !0xfff,
        levels: if entry[2] >> 2 & 3 == 1 { 5 } else { 4 },
        write_protect: entry[2] >> 4 & 1 == 1,
        extended_flag: entry[2] >> 7 & 1 == 1,
        snooped,
        supervisor,
        below: (pgtt == 3).then_some(second),
    };
    let grant = match pgtt {
        1 => {
            let leaf = first.walk(walk, request.address)?;
            Grant {
                host: leaf.address,
                page_shift: leaf.shift,
                read: true,
                write: leaf.write,
                untranslated_only: false,
            }
        }
        2 => {
            if request.address > unit.last_guest(aw) {
                return Err(qualified(0x84, "SGN.5"));
            }
            second_stage(walk, &second, request.address)?
        }
        3 => {
            let leaf = first.walk(walk, request.address)?;
            if leaf.address > unit.last_guest(aw) {
                return Err(qualified(0x74, "SFS.5"));
            }
            let below = second_stage(walk, &second, leaf.address)?;
            Grant {
                page_shift: below.page_shift.min(leaf.shift),
                write: below.write && leaf.write,
                ..below
            }
        }
        _ => return pass_through(walk),
    };
    finish(walk, grant)
}

/// Translated requests without HPT, or after it: VT-d §7.1.3 SGN.4.1, SGN.8.3.
fn pass_translated<M: SystemMemory>(walk: &Walk<'_, M>) -> Result<Grant, Trouble> {
    let address = walk.request.address;
    if address & walk.unit.above_haw() != 0 {
        return Err(qualified(0x83, "SGN.4.1"));
    }
    if in_interrupt_range(address) {
        return Err(qualified(0x87, "SGN.8.3"));
    }
    Ok(Grant::identity(address))
}

/// PGTT 100: VT-d §7.1.3 SGN.4.2, SGN.8.1 (which speaks of untranslated requests only).
fn pass_through<M: SystemMemory>(walk: &Walk<'_, M>) -> Result<Grant, Trouble> {
    let request = walk.request;
    if request.address & walk.unit.above_haw() != 0 {
        return Err(qualified(0x83, "SGN.4.2"));
    }
    if request.kind == OracleKind::U && in_interrupt_range(request.address) {
        return Err(qualified(0x87, "SGN.8.1"));
    }
    let mut grant = Grant::identity(request.address);
    if request.kind == OracleKind::T {
        grant.write = walk.translation_writes();
    }
    Ok(grant)
}

/// The second-stage walk of the final address: SSS conditions, then SGN.6 and SGN.7.
fn second_stage<M: SystemMemory>(walk: &mut Walk<'_, M>, second: &SecondStage, address: u64) -> Result<Grant, Trouble> {
    let request = walk.request;
    let translation = request.kind == OracleKind::T;
    let dirties = if translation {
        walk.translation_writes()
    } else {
        request.writes()
    };
    let leaf = second.walk_scalable(walk, address, dirties)?;
    if !translation {
        if request.writes() && !leaf.write {
            return Err(qualified(0x85, "SGN.6"));
        }
        // CAP.ZLR (bit 22).
        let exempt = request.zero_length && walk.unit.cap_bit(22) && leaf.write;
        if request.reads() && !leaf.read && !exempt {
            return Err(qualified(0x86, "SGN.7"));
        }
    }
    Ok(Grant {
        host: leaf.host,
        page_shift: leaf.shift,
        read: leaf.read,
        write: leaf.write,
        untranslated_only: false,
    })
}

/// SGN.8, and what a translation request is told.
fn finish<M: SystemMemory>(walk: &Walk<'_, M>, mut grant: Grant) -> Result<Grant, Trouble> {
    if walk.request.kind == OracleKind::T {
        grant.write &= walk.translation_writes();
        // VT-d §7.1.3 SGN.8.2: the whole translated range counts.
        if (grant.read || grant.write) && page_meets_interrupt_range(grant.host, grant.page_shift) {
            return Err(qualified(0x87, "SGN.8.2"));
        }
    } else if in_interrupt_range(grant.host) {
        return Err(qualified(0x87, "SGN.8.1"));
    }
    Ok(grant)
}

/// Reserved bits of a scalable context entry (VT-d §9.4), given the capabilities.
fn context_reserved<M>(walk: &Walk<'_, M>) -> [u64; 4] {
    let unit = walk.unit;
    let mut low = unit.above_haw() | 3 << 7;
    // DTE needs ECAP.DT, PASIDE ECAP.PASID, PRE ECAP.PRS, HPTE ECAP.HPTS, EPTR ECAP.PTRS.
    for (field, capability) in [(2, 2), (3, 40), (4, 29), (5, 55), (6, 56)] {
        if !unit.ecap_bit(capability) {
            low |= 1 << field;
        }
    }
    let mut high = u64::MAX << 21;
    if !unit.ecap_bit(49) {
        high |= 0xf_ffff;
    }
    if !unit.ecap_bit(53) {
        high |= 1 << 20;
    }
    [low, high, u64::MAX, u64::MAX]
}

/// PASID directory and PASID table (VT-d §9.5, §9.6): SPD and SPT.1 to SPT.4 conditions.
fn pasid_entry<M: SystemMemory>(
    walk: &mut Walk<'_, M>,
    directory: u64,
    pasid: u64,
    hpte: bool,
) -> Result<[u64; 8], Trouble> {
    let unit = walk.unit;
    let link = walk
        .load(directory + 8 * (pasid >> 6))
        .ok_or(unqualified(0x50, "SPD.1"))?;
    walk.fpd |= link >> 1 & 1 == 1;
    if link & 1 == 0 {
        return Err(qualified(0x51, "SPD.2"));
    }
    if link & (0xffc | unit.above_haw()) != 0 {
        return Err(qualified(0x52, "SPD.3"));
    }
    let entry = walk
        .load_words::<8>((link & !0xfff) + 64 * (pasid & 0x3f))
        .ok_or(unqualified(0x58, "SPT.1"))?;
    walk.fpd |= entry[0] >> 1 & 1 == 1;
    if entry[0] & 1 == 0 {
        return Err(qualified(0x59, "SPT.2"));
    }
    let reserved = pasid_reserved(walk, hpte);
    if entry.iter().zip(reserved).any(|(word, mask)| word & mask != 0) {
        return Err(qualified(0x5a, "SPT.3"));
    }
    let (pgtt, aw, fspm) = (entry[0] >> 6 & 7, entry[0] >> 2 & 7, entry[2] >> 2 & 3);
    // PGTT 001 needs ECAP.FSTS, 010 ECAP.SSTS, 011 ECAP.NEST, 100 ECAP.PT.
    let supported = match pgtt {
        1 => unit.ecap_bit(47),
        2 => unit.ecap_bit(46),
        3 => unit.ecap_bit(26),
        4 => unit.ecap_bit(6),
        _ => false,
    };
    if !supported {
        return Err(qualified(0x5b, "SPT.4.2"));
    }
    if matches!(pgtt, 2 | 3) && !unit.has_width(aw) {
        return Err(qualified(0x5b, "SPT.4.1"));
    }
    // FSPM 01 needs CAP.FS5LP (bit 60).
    if matches!(pgtt, 1 | 3) && !(fspm == 0 || fspm == 1 && unit.cap_bit(60)) {
        return Err(qualified(0x5b, "SPT.4.3"));
    }
    if pgtt == 3 && entry[2] & !0xfff > unit.last_guest(aw) {
        return Err(qualified(0x5b, "SPT.4.4"));
    }
    Ok(entry)
}

/// Reserved bits of a PASID entry (VT-d §9.6), given the capabilities.
fn pasid_reserved<M>(walk: &Walk<'_, M>, hpte: bool) -> [u64; 8] {
    let unit = walk.unit;
    let high = unit.above_haw();
    let [ssts, fsts, mts] = [46, 47, 25].map(|bit| unit.ecap_bit(bit));
    let mut words = [
        high | 1 << 5 | 3 << 10,
        unit.above_nd() | 0x7f << 16 | 0x1f << 27,
        high | 1 << 1 | 0xf << 8,
        u64::MAX,
        high | 0x1ff << 3,
        !0xffff,
        u64::MAX,
        u64::MAX,
    ];
    if !ssts {
        // AW, SSADE, SSPTPTR.
        words[0] |= 7 << 2 | 1 << 9 | !0xfff;
    }
    if !unit.ecap_bit(45) {
        words[0] |= 1 << 9;
    }
    // PWSNP needs ECAP.SMPWCS, PGSNP ECAP.SC; CD, EMTE and PAT need ECAP.MTS.
    if !unit.ecap_bit(48) {
        words[1] |= 1 << 23;
    }
    if !unit.ecap_bit(7) {
        words[1] |= 1 << 24;
    }
    words[1] |= if mts {
        0x8888_8888 << 32
    } else {
        0xffff_ffff << 32 | 3 << 25
    };
    // SRE needs ECAP.SRS, EAFE ECAP.EAFS; FSPM, WPE and FSPTPTR need ECAP.FSTS.
    if !unit.ecap_bit(31) {
        words[2] |= 1;
    }
    if !unit.ecap_bit(34) {
        words[2] |= 1 << 7;
    }
    if !fsts {
        words[2] |= 3 << 2 | 1 << 4 | !0xfff;
    }
    // HPTSZ, HPTPFD, HPTPTR and HPTDID: reserved without ECAP.HPTS, ignored without HPTE.
    if !unit.ecap_bit(55) {
        words[4] = u64::MAX;
        words[5] = u64::MAX;
    } else if hpte {
        words[5] |= unit.above_nd();
    }
    words
}
