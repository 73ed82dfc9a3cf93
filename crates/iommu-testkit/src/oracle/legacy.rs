//! Legacy mode (VT-d §3.4.2, §7.1.3: LRT, LCT, LSS and LGN conditions).

use iommu_types::SystemMemory;

use super::stages::{SecondStage, WalkStop};
use super::{Grant, OracleKind, Trouble, Walk, in_interrupt_range, qualified, unqualified};

pub(super) fn walk<M: SystemMemory>(walk: &mut Walk<'_, M>) -> Result<Grant, Trouble> {
    let (unit, request) = (walk.unit, walk.request);
    let (bus, devfn) = (u64::from(request.sid >> 8), u64::from(request.sid & 0xff));

    // Root entry (VT-d §9.1).
    let [root, root_high] = walk
        .load_words::<2>(unit.root() + 16 * bus)
        .ok_or(unqualified(0x08, "LRT.1"))?;
    if root & 1 == 0 {
        return Err(unqualified(0x01, "LRT.2"));
    }
    if root & (0xffe | unit.above_haw()) != 0 || root_high != 0 {
        return Err(unqualified(0x0a, "LRT.3"));
    }

    // Context entry (VT-d §9.3).
    let [low, high] = walk
        .load_words::<2>((root & !0xfff) + 16 * devfn)
        .ok_or(unqualified(0x09, "LCT.1"))?;
    walk.fpd |= low >> 1 & 1 == 1;
    if low & 1 == 0 {
        return Err(qualified(0x02, "LCT.2"));
    }
    let tt = low >> 2 & 3;
    let mut reserved_low = 0xff0;
    if tt != 2 {
        reserved_low |= unit.above_haw();
    }
    let reserved_high = 1 << 7 | u64::MAX << 24 | unit.above_nd() << 8;
    if low & reserved_low != 0 || high & reserved_high != 0 {
        return Err(qualified(0x0b, "LCT.3"));
    }
    // TT 01 needs ECAP.DT (bit 2), TT 10 needs ECAP.PT (bit 6).
    let supported = match tt {
        0 => true,
        1 => unit.ecap_bit(2),
        2 => unit.ecap_bit(6),
        _ => false,
    };
    if !supported {
        return Err(qualified(0x03, "LCT.4.2"));
    }
    let aw = high & 7;
    if !unit.has_width(aw) {
        return Err(qualified(0x03, "LCT.4.1"));
    }
    if request.kind != OracleKind::U && tt != 1 {
        return Err(qualified(0x0d, "LCT.5"));
    }

    if request.kind == OracleKind::X {
        if request.address & unit.above_haw() != 0 {
            return Err(qualified(0x04, "LGN.1.2"));
        }
        if in_interrupt_range(request.address) {
            return Err(qualified(0x0e, "LGN.4"));
        }
        return Ok(Grant::identity(request.address));
    }
    if tt == 2 {
        if request.address & unit.above_haw() != 0 {
            return Err(qualified(0x04, "LGN.1.3"));
        }
        if in_interrupt_range(request.address) {
            return Err(qualified(0x0e, "LGN.4"));
        }
        return Ok(Grant::identity(request.address));
    }
    if let Some(grant) = walk.interrupt_range_completion() {
        return Ok(grant);
    }
    second_stage(walk, low & !0xfff, aw)
}

fn second_stage<M: SystemMemory>(walk: &Walk<'_, M>, root: u64, aw: u64) -> Result<Grant, Trouble> {
    let (unit, request) = (walk.unit, walk.request);
    if request.address > unit.last_guest(aw) {
        return Err(qualified(0x04, "LGN.1.1"));
    }
    let tables = SecondStage {
        root,
        aw,
        flags: false,
        snooped: false,
    };
    let (host, page_shift, read, write) = match tables.walk(walk, request.address) {
        Ok(leaf) => (leaf.host, leaf.shift, leaf.read, leaf.write),
        Err(WalkStop::TopAccess) => return Err(qualified(0x03, "LCT.4.3")),
        Err(WalkStop::Access) => return Err(qualified(0x07, "LSS.1")),
        Err(WalkStop::Reserved) => return Err(qualified(0x0c, "LSS.2")),
        // Legacy mode has no code for a page that is not present: it lacks the right asked for.
        Err(WalkStop::NotPresent) => (0, 12, false, false),
    };
    if request.kind == OracleKind::T {
        let write = write && walk.translation_writes();
        if (read || write) && in_interrupt_range(host) {
            return Err(qualified(0x0e, "LGN.4"));
        }
        return Ok(Grant {
            host,
            page_shift,
            read,
            write,
            untranslated_only: false,
        });
    }
    if request.writes() && !write {
        return Err(qualified(0x05, "LGN.2"));
    }
    // CAP.ZLR (bit 22): a zero-length read needs no read right where writing is allowed.
    let exempt = request.zero_length && unit.cap_bit(22) && write;
    if request.reads() && !read && !exempt {
        return Err(qualified(0x06, "LGN.3"));
    }
    if in_interrupt_range(host) {
        return Err(qualified(0x0e, "LGN.4"));
    }
    Ok(Grant {
        host,
        page_shift,
        read,
        write,
        untranslated_only: false,
    })
}
