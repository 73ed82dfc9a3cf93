//! Inputs for property tests, biased to where things break.

use iommu_types::{Access, HostPhys, Iova, PageSize, Perms, SystemMemory};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::oracle::{OracleAccess, OracleKind, OracleRequest};

/// Addresses of up to `bits` bits (1 to 64): small ones, both sides of powers of two and of table boundaries,
/// the interrupt range and its neighbours, the last ones, and any.
pub fn raw_address(bits: u32) -> impl Strategy<Value = u64> + Clone {
    let mask = u64::MAX >> (64 - bits.clamp(1, 64));
    let near = |centre: u64| (-16i64..16).prop_map(move |by| centre.wrapping_add_signed(by));
    prop_oneof![
        2 => 0u64..0x8000,
        2 => (9u32..64, -16i64..16).prop_map(|(shift, by)| (1u64 << shift).wrapping_add_signed(by)),
        1 => near(0xfee0_0000),
        1 => near(0xfef0_0000),
        1 => 0xfee0_0000u64..0xfef0_0000,
        1 => (0u64..0x8000).prop_map(|below| u64::MAX - below),
        2 => any::<u64>(),
    ]
    .prop_map(move |address| address & mask)
}

/// As [`raw_address`], as a device issues it.
pub fn iova(bits: u32) -> impl Strategy<Value = Iova> + Clone {
    raw_address(bits).prop_map(Iova::new)
}

/// Starts of pages of `size` below `2^bits`.
pub fn page_start(bits: u32, size: PageSize) -> impl Strategy<Value = u64> + Clone {
    raw_address(bits).prop_map(move |address| address & !(size.bytes() - 1))
}

/// One of the page sizes, small ones more often.
pub fn page_size() -> impl Strategy<Value = PageSize> + Clone {
    prop_oneof![
        4 => Just(PageSize::Size4K),
        2 => Just(PageSize::Size2M),
        1 => Just(PageSize::Size1G),
    ]
}

/// Rights, never none.
pub fn perms() -> impl Strategy<Value = Perms> + Clone {
    prop_oneof![
        1 => Just(Perms::READ),
        1 => Just(Perms::WRITE),
        2 => Just(Perms::READ_WRITE),
    ]
}

/// Read, write or both.
pub fn access() -> impl Strategy<Value = Access> + Clone {
    prop_oneof![
        3 => Just(Access::Read),
        3 => Just(Access::Write),
        1 => Just(Access::Atomic),
    ]
}

/// Source IDs: one of `known`, seldom a stranger.
pub fn sid(known: &[u16]) -> impl Strategy<Value = u16> + Clone + use<> {
    let known = if known.is_empty() { vec![0] } else { known.to_vec() };
    prop_oneof![
        9 => proptest::sample::select(known),
        1 => any::<u16>(),
    ]
}

/// PASIDs: small, around directory boundaries, any of 20 bits.
pub fn pasid() -> impl Strategy<Value = u32> + Clone {
    prop_oneof![
        4 => 0u32..8,
        2 => 0x3eu32..0x42,
        1 => (13u32..20, 0u32..2).prop_map(|(shift, below)| (1 << shift) - below),
        1 => 0u32..0x10_0000,
    ]
}

/// Requests without crossing a 4 KiB boundary: mostly untranslated accesses of the sources `known` to
/// `addresses`.
pub fn request<S>(known: &[u16], addresses: S) -> impl Strategy<Value = OracleRequest> + Clone + use<S>
where
    S: Strategy<Value = u64> + Clone,
{
    let kind = prop_oneof![
        6 => Just(OracleKind::U),
        2 => Just(OracleKind::T),
        1 => Just(OracleKind::X),
    ];
    let len = prop_oneof![2 => Just(8u32), 1 => Just(4u32), 1 => Just(1u32), 1 => Just(64u32)];
    let pasid = prop_oneof![3 => Just(None), 1 => pasid().prop_map(Some)];
    let flags = (
        proptest::bool::weighted(0.1),
        any::<bool>(),
        proptest::bool::weighted(0.1),
        any::<bool>(),
    );
    (sid(known), pasid, addresses, len, kind, access(), flags).prop_map(
        |(sid, pasid, address, len, kind, access, (zero_length, privileged, execute, no_write))| {
            let access = OracleAccess::from(access);
            OracleRequest {
                sid,
                pasid,
                address: address & !(u64::from(len) - 1),
                len,
                kind,
                access,
                zero_length: zero_length && access == OracleAccess::Read,
                privileged: privileged && pasid.is_some(),
                execute: execute && pasid.is_some(),
                no_write: no_write && kind == OracleKind::T,
            }
        },
    )
}

/// Up to `most` requests in a row.
pub fn requests<S>(known: &[u16], addresses: S, most: usize) -> impl Strategy<Value = Vec<OracleRequest>> + use<S>
where
    S: Strategy<Value = u64> + Clone,
{
    proptest::collection::vec(request(known, addresses), 1..=most.max(1))
}

/// One page to be mapped, aligned to its size on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMapping {
    /// Where devices see it.
    pub iova: Iova,
    /// Where it lies.
    pub phys: HostPhys,
    /// Its size.
    pub size: PageSize,
    /// Its rights.
    pub perms: Perms,
}

/// Pages at addresses of up to `iova_bits` bits that map memory below `2^host_bits`. Two of a list may overlap.
pub fn page_mapping(iova_bits: u32, host_bits: u32) -> impl Strategy<Value = PageMapping> + Clone {
    (raw_address(iova_bits), raw_address(host_bits), page_size(), perms()).prop_map(|(iova, phys, size, perms)| {
        let mask = !(size.bytes() - 1);
        PageMapping {
            iova: Iova::new(iova & mask),
            phys: HostPhys::new(phys & mask),
            size,
            perms,
        }
    })
}

/// A step of a state-machine test of an address space.
#[derive(Clone, Debug)]
pub enum MappingStep {
    /// Map `pages` pages.
    Map {
        /// First page, counted from the start of the space.
        page: u64,
        /// How many.
        pages: u64,
        /// Host page number of the first.
        host_page: u64,
        /// The rights.
        perms: Perms,
    },
    /// Unmap one of the mappings that exist then, picked by the index.
    UnmapOne(Index),
    /// Unmap a run of pages, whole mappings or not.
    UnmapRun {
        /// First page.
        page: u64,
        /// How many.
        pages: u64,
    },
    /// Look at one page.
    Probe(u64),
}

/// Steps within a space of `space_pages` pages and `host_pages` pages of memory.
pub fn mapping_steps(
    space_pages: u64,
    host_pages: u64,
    most: usize,
) -> impl Strategy<Value = Vec<MappingStep>> + Clone {
    let run = prop_oneof![4 => 1u64..8, 1 => Just(512u64), 1 => 500u64..1200];
    let map = (0..space_pages, run.clone(), 0..host_pages, perms()).prop_map(|(page, pages, host_page, perms)| {
        MappingStep::Map {
            page,
            pages,
            host_page,
            perms,
        }
    });
    let step = prop_oneof![
        4 => map,
        3 => any::<Index>().prop_map(MappingStep::UnmapOne),
        1 => (0..space_pages, run).prop_map(|(page, pages)| MappingStep::UnmapRun { page, pages }),
        2 => (0..space_pages).prop_map(MappingStep::Probe),
    ];
    proptest::collection::vec(step, 1..=most.max(1))
}

/// One bit of one table word to be turned over.
#[derive(Clone, Copy, Debug)]
pub struct Corruption {
    page: Index,
    word: u64,
    bit: u32,
}

impl Corruption {
    /// Turns the bit over in one of the table pages at `pages`; answers the word's address and the bit.
    ///
    /// # Panics
    /// If `pages` is empty or not memory.
    #[track_caller]
    pub fn apply<M: SystemMemory>(&self, memory: &M, pages: &[u64]) -> (HostPhys, u32) {
        let at = HostPhys::new(pages[self.page.index(pages.len())] + 8 * self.word);
        let value = memory.read_u64(at).expect("tables lie in memory");
        memory
            .write_u64(at, value ^ 1 << self.bit)
            .expect("tables lie in memory");
        (at, self.bit)
    }

    /// As [`Self::apply`], among words that hold something: most words of a table are zero.
    ///
    /// # Panics
    /// If `pages` holds no word other than zero, or is not memory.
    #[track_caller]
    pub fn apply_to_used<M: SystemMemory>(&self, memory: &M, pages: &[u64]) -> (HostPhys, u32) {
        let used: Vec<(u64, u64)> = pages
            .iter()
            .flat_map(|page| (*page..).step_by(8).take(512))
            .map(|at| (at, memory.read_u64(HostPhys::new(at)).expect("tables lie in memory")))
            .filter(|(_, value)| *value != 0)
            .collect();
        let (at, value) = used[self.page.index(used.len())];
        let at = HostPhys::new(at);
        memory
            .write_u64(at, value ^ 1 << self.bit)
            .expect("tables lie in memory");
        (at, self.bit)
    }
}

/// Any bit of any table word; low bits (flags) as often as the rest together.
pub fn corruption() -> impl Strategy<Value = Corruption> + Clone {
    let bit = prop_oneof![1 => 0u32..12, 1 => 12u32..64];
    (any::<Index>(), 0u64..512, bit).prop_map(|(page, word, bit)| Corruption { page, word, bit })
}

#[cfg(test)]
mod tests;
