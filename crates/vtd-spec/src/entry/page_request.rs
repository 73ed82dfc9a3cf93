//! Page request descriptors.

use arbitrary_int::{u9, u20, u52};
use bitbybit::bitfield;
use iommu_types::{Iova, Pasid};

/// Page request descriptor: 32 bytes, written by the unit into the page request queue; the upper 16 bytes are reserved.
/// VT-d §7.4.1.1 (Page Request Descriptor).
#[bitfield(u128, default = 1, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PageRequestDescriptor {
    /// Type: 1.
    #[bits(0..=7, rw)]
    kind: u8,
    /// PP: the request has a PASID.
    #[bit(8, rw)]
    pp: bool,
    /// RID: requester identifier.
    #[bits(16..=31, rw)]
    rid: u16,
    /// PASID, valid with PP; see [`Self::pasid`].
    #[bits(32..=51, rw)]
    pasid_value: u20,
    /// EXR: execute permission is asked for; valid with PP and RDR.
    #[bit(52, rw)]
    exr: bool,
    /// PMR: privileged mode is asked for; valid with PP.
    #[bit(53, rw)]
    pmr: bool,
    /// RDR: read permission is asked for.
    #[bit(64, rw)]
    rdr: bool,
    /// WRR: write permission is asked for.
    #[bit(65, rw)]
    wrr: bool,
    /// LPIG: last page request of its group.
    #[bit(66, rw)]
    lpig: bool,
    /// PRGI: page request group index.
    #[bits(67..=75, rw)]
    prgi: u9,
    /// ADDR: page address, bits 63:12.
    #[bits(76..=127, rw)]
    addr: u52,
}

words128!(PageRequestDescriptor padded);
source_field!(
    PageRequestDescriptor,
    /// Who sent the request.
    source, with_source => rid, with_rid
);
page_address!(
    PageRequestDescriptor,
    Iova,
    /// The page that is asked for.
    address, with_address => addr, with_addr
);

impl PageRequestDescriptor {
    /// The value of the type field.
    pub const KIND: u8 = 1;

    /// The PASID of the request, if it has one.
    #[must_use]
    pub const fn pasid(self) -> Option<Pasid> {
        if self.pp() {
            Some(crate::layout::pasid(self.pasid_value()))
        } else {
            None
        }
    }

    /// The descriptor of a request with or without PASID.
    #[must_use]
    pub const fn with_pasid(self, pasid: Option<Pasid>) -> Self {
        match pasid {
            Some(pasid) => self.with_pp(true).with_pasid_value(u20::extract_u32(pasid.raw(), 0)),
            None => self.with_pp(false).with_pasid_value(u20::extract_u32(0, 0)),
        }
    }

    /// Whether this is a stop marker: the function stops using the PASID. PCI Express, PRI message without access flags.
    #[must_use]
    pub const fn is_stop_marker(self) -> bool {
        self.pp() && self.lpig() && !self.rdr() && !self.wrr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_match_the_figure() {
        let d = PageRequestDescriptor::from_words([0x0031_2345_0300_0101, 0x0000_0000_1234_5A57]);
        assert_eq!(d.kind(), PageRequestDescriptor::KIND);
        assert_eq!(d.pasid(), Pasid::new(0x12345));
        assert_eq!(d.source().raw(), 0x0300);
        assert!(d.exr() && d.pmr() && d.rdr() && d.wrr() && d.lpig());
        assert_eq!(d.prgi().value(), 0x14A);
        assert_eq!(d.address(), Iova::new(0x1234_5000));
        assert!(!d.is_stop_marker());
    }

    #[test]
    fn stop_marker_has_a_pasid_and_no_access() {
        let d = PageRequestDescriptor::from_words([0x0000_0007_0300_0101, 4]);
        assert!(d.is_stop_marker());
        assert!(!d.with_pasid(None).is_stop_marker());
        assert_eq!(d.with_pasid(None).to_words_256(), [0x0300_0001, 4, 0, 0]);
    }
}
