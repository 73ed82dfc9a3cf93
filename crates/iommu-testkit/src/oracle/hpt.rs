//! The host permission table that translated requests are checked against (VT-d §4.2.4, §9.9).

use iommu_types::SystemMemory;

use super::{Trouble, Walk, qualified};

/// HPTPTR and HPTSZ of a PASID entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Table {
    pub(super) root: u64,
    pub(super) size: u64,
}

impl Table {
    /// SPT.9, then HPT.1 to HPT.6; grants nothing by itself.
    pub(super) fn check<M: SystemMemory>(&self, walk: &Walk<'_, M>) -> Result<(), Trouble> {
        let (unit, request) = (walk.unit, walk.request);
        let address = request.address;
        // HPTSZ codes 0 to 3: addresses below 2^49, 2^50, 2^51, 2^52.
        if address >> (49 + self.size) != 0 {
            return Err(qualified(0x60, "SPT.9"));
        }
        let mut table = self.root;
        let mut pair = 0;
        for level in (1..=4u32).rev() {
            let shift = 9 + 8 * level;
            let index = if level == 4 {
                address >> shift
            } else {
                address >> shift & 0xff
            };
            let [low, high] = walk.load_words::<2>(table + 16 * index).ok_or(if level == 4 {
                qualified(0xa2, "HPT.3")
            } else {
                qualified(0xa0, "HPT.1")
            })?;
            // Which four-bit permission pair covers the address; upper bits of each pair are reserved.
            let (pair_shift, pairs) = match level {
                4 => (0, 0),
                3 => (30, 8),
                2 => (21, 16),
                _ => (12, 32),
            };
            let mut reserved = [0xcccc_cccc_cccc_cccc, 0];
            match level {
                4 => reserved[0] = u64::MAX,
                // ECAP.HPT1GPS (bit 59).
                3 if !unit.ecap_bit(59) => reserved[0] = u64::MAX,
                3 => reserved[0] |= 0xffff_ffff << 32,
                2 => {}
                _ => reserved[1] = 0xcccc_cccc_cccc_cccc,
            }
            if level > 1 {
                reserved[1] = 0xffe;
                if high & 1 == 1 {
                    reserved[1] |= unit.above_haw() & ((1 << 52) - 1);
                }
            }
            if low & reserved[0] != 0 || high & reserved[1] != 0 {
                return Err(qualified(0xa1, "HPT.2"));
            }
            if pairs != 0 {
                let slot = address >> pair_shift & (pairs - 1);
                let word = if slot < 16 { low } else { high };
                pair = word >> (4 * (slot & 15)) & 3;
            }
            if pair != 0 || level == 1 || high & 1 == 0 {
                break;
            }
            table = high & ((1 << 52) - 1) & !0xfff;
        }
        let (read, write) = (pair & 1 == 1, pair & 2 == 2);
        // CAP.ZLR (bit 22): a zero-length read passes with any right.
        if request.zero_length && !request.writes() && unit.cap_bit(22) {
            return if pair == 0 {
                Err(qualified(0xa3, "HPT.4"))
            } else {
                Ok(())
            };
        }
        if request.writes() && !write {
            return Err(qualified(0xa4, "HPT.5"));
        }
        if request.reads() && !read {
            return Err(qualified(0xa5, "HPT.6"));
        }
        Ok(())
    }
}
