//! What the oracle must know of a unit's registers.

/// Registers of one unit, raw, as latched (VT-d §11.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OracleUnit {
    /// RTADDR as it stood at the last SRTP.
    pub rtaddr: u64,
    /// CAP.
    pub cap: u64,
    /// ECAP.
    pub ecap: u64,
    /// VER.
    pub ver: u32,
    /// Host address width in bits.
    pub haw: u32,
}

impl OracleUnit {
    /// The bit of CAP.
    pub(super) const fn cap_bit(&self, bit: u32) -> bool {
        self.cap >> bit & 1 == 1
    }

    /// The bit of ECAP.
    pub(super) const fn ecap_bit(&self, bit: u32) -> bool {
        self.ecap >> bit & 1 == 1
    }

    /// VER.MAX, bits 7:4.
    pub(super) const fn version_major(&self) -> u32 {
        self.ver >> 4 & 0xf
    }

    /// RTADDR.RTA; bits at and above the host address width are not implemented.
    pub(super) const fn root(&self) -> u64 {
        self.rtaddr & !0xfff & !self.above_haw()
    }

    /// RTADDR.SSIRWE, bit 7, if ECAP.SSIRWS (bit 57) has it.
    pub(super) const fn ssirwe(&self) -> bool {
        self.rtaddr >> 7 & 1 == 1 && self.ecap_bit(57)
    }

    /// Bits 63:HAW: reserved in every pointer.
    pub(super) const fn above_haw(&self) -> u64 {
        u64::MAX << self.haw
    }

    /// Bits of a 16-bit domain-id that CAP.ND (bits 2:0: 4 + 2·ND bits) does not implement.
    pub(super) const fn above_nd(&self) -> u64 {
        0xffff & !((1 << (4 + 2 * (self.cap & 7))) - 1)
    }

    /// The last address that second-stage translation with address-width code `aw` takes: below both
    /// MGAW (CAP 21:16, plus one) and 30 + 9·AW bits.
    pub(super) const fn last_guest(&self, aw: u64) -> u64 {
        let (mgaw, agaw) = ((self.cap >> 16 & 0x3f) + 1, 30 + 9 * aw);
        let bits = if mgaw < agaw { mgaw } else { agaw };
        if bits >= 64 { u64::MAX } else { (1 << bits) - 1 }
    }

    /// Whether SAGAW (CAP 12:8) has address-width code `aw`. Codes other than 1, 2, 3 are reserved.
    pub(super) const fn has_width(&self, aw: u64) -> bool {
        aw >= 1 && aw <= 3 && self.cap >> (8 + aw) & 1 == 1
    }
}
