//! Page group response.

use arbitrary_int::{u4, u7, u9, u20};
use bitbybit::bitfield;

use super::descriptor;

iommu_types::open_enum! {
    /// RC: outcome of a page request group. VT-d §7.6.1.
    pub struct ResponseCode(u8) {
        /// The pages are available.
        SUCCESS = 0x0,
        /// The request was not allowed.
        INVALID_REQUEST = 0x1,
        /// A permanent error.
        RESPONSE_FAILURE = 0xF,
    }
}

/// Page Group Response Descriptor. VT-d §7.6.1 (Page Group Response Descriptor). Queues of 256-bit descriptors only.
#[bitfield(u128, default = 9, forbid_overlaps, introspect, debug)]
#[derive(PartialEq, Eq, Hash)]
pub struct PageGroupResponse {
    /// Type: 9.
    #[bits([0..=3, 9..=11], rw)]
    kind: u7,
    /// PP: the response has a PASID.
    #[bit(4, rw)]
    pp: bool,
    /// RC: response code; see [`Self::response`].
    #[bits(12..=15, rw)]
    rc: u4,
    /// RID: requester identifier.
    #[bits(16..=31, rw)]
    rid: u16,
    /// PASID, with PP; see [`Self::pasid`].
    #[bits(32..=51, rw)]
    pasid_value: u20,
    /// A bit that hardware ignores; LPIG in earlier revisions.
    #[bit(66, rw)]
    ignored: bool,
    /// PRGI: page request group index.
    #[bits(67..=75, rw)]
    prgi: u9,
}

descriptor!(PageGroupResponse, PAGE_GROUP_RESPONSE);
source_field!(
    PageGroupResponse,
    /// The function that the response goes to.
    source, with_source => rid, with_rid
);
pasid_field!(
    PageGroupResponse,
    /// The PASID of the response, with PP.
    pasid, with_pasid => pasid_value, with_pasid_value
);

impl PageGroupResponse {
    /// Bits that must be 0.
    pub const RESERVED: u128 = !(Self::kind_mask()
        | Self::pp_mask()
        | Self::rc_mask()
        | Self::rid_mask()
        | Self::pasid_value_mask()
        | Self::ignored_mask()
        | Self::prgi_mask());

    /// The outcome.
    #[must_use]
    pub const fn response(self) -> ResponseCode {
        ResponseCode(self.rc().value())
    }

    /// The descriptor with another outcome; bits above 3:0 of the code are dropped.
    #[must_use]
    pub const fn with_response(self, response: ResponseCode) -> Self {
        self.with_rc(u4::extract_u8(response.0, 0))
    }
}

#[cfg(test)]
mod tests {
    use iommu_types::Pasid;

    use super::*;

    #[test]
    fn fields_match_the_figure() {
        let d = PageGroupResponse::from_words([0x0001_2345_0300_F019, 0xA50]);
        assert!(d.pp());
        assert_eq!(d.response(), ResponseCode::RESPONSE_FAILURE);
        assert_eq!(d.source().raw(), 0x0300);
        assert_eq!(d.pasid(), Pasid::new(0x12345).expect("20 bits"));
        assert_eq!(d.prgi().value(), 0x14A);
        let d = PageGroupResponse::DEFAULT.with_response(ResponseCode::INVALID_REQUEST);
        assert_eq!(d.to_words_256(), [0x1009, 0, 0, 0]);
    }

    #[test]
    fn reserved_bits_match_the_figure() {
        assert_eq!(
            crate::layout::split(PageGroupResponse::RESERVED),
            [0xFFF0_0000_0000_01E0, 0xFFFF_FFFF_FFFF_F003]
        );
    }
}
