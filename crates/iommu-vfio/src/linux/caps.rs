//! What IOMMU_GET_INFO answers: a structure and a chain of capabilities behind it.

use iommu_types::{AddrRange, Iova};
use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
};

use crate::backend::{DirtyInfo, Type1Info};

/// Most capabilities that are looked at: a chain that leads back ends here.
const MAX_CAPABILITIES: usize = 32;
/// Most ranges that are taken over.
const MAX_RANGES: usize = 4096;

/// Bytes in the machine's own order, as the kernel writes them.
struct Answer<'a>(&'a [u8]);

impl Answer<'_> {
    fn bytes<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }
    fn u16(&self, at: usize) -> Option<u16> {
        self.bytes(at).map(u16::from_ne_bytes)
    }
    fn u32(&self, at: usize) -> Option<u32> {
        self.bytes(at).map(u32::from_ne_bytes)
    }
    fn u64(&self, at: usize) -> Option<u64> {
        self.bytes(at).map(u64::from_ne_bytes)
    }
}

/// Reads the answer; what it does not hold is left out. Offsets: flags 4, page sizes 8, first capability 16; of a
/// capability: identifier 0, next 4, body 8.
pub(super) fn info(bytes: &[u8]) -> Type1Info {
    let answer = Answer(bytes);
    let flags = answer.u32(4).unwrap_or(0);
    let mut info = Type1Info {
        page_sizes: iommu_types::PAGE_SIZE,
        ranges: Vec::new(),
        free_mappings: None,
        dirty: None,
    };
    if flags & VFIO_IOMMU_INFO_PGSIZES != 0 {
        info.page_sizes = answer.u64(8).unwrap_or(0);
    }
    let offset = |at: usize| answer.u32(at).and_then(|offset| usize::try_from(offset).ok());
    let mut next = match flags & VFIO_IOMMU_INFO_CAPS {
        0 => None,
        _ => offset(16),
    };
    for _ in 0..MAX_CAPABILITIES {
        let Some(at) = next.filter(|at| *at != 0) else { break };
        let Some(id) = answer.u16(at) else { break };
        match u32::from(id) {
            VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => info.ranges = ranges(&answer, at),
            VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION => {
                if let (Some(page_sizes), Some(longest_bitmap)) = (answer.u64(at + 16), answer.u64(at + 24)) {
                    info.dirty = Some(DirtyInfo {
                        page_sizes,
                        longest_bitmap,
                    });
                }
            }
            VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => info.free_mappings = answer.u32(at + 8),
            _ => {}
        }
        next = offset(at + 4);
    }
    info
}

/// The valid ranges: how many at 8, then first and last address of each from 16.
fn ranges(answer: &Answer<'_>, at: usize) -> Vec<AddrRange<Iova>> {
    let count = answer
        .u32(at + 8)
        .and_then(|count| usize::try_from(count).ok())
        .unwrap_or(0);
    (0..count.min(MAX_RANGES))
        .map_while(|n| {
            let at = at + 16 + 16 * n;
            Some((answer.u64(at)?, answer.u64(at + 8)?))
        })
        .filter_map(|(first, last)| AddrRange::new(Iova::new(first), Iova::new(last)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer as Linux 6.12 gives it on x86.
    fn answer() -> Vec<u8> {
        let mut words: Vec<u32> = vec![0, 3, 0x4020_1000, 0, 24, 0];
        // Migration at 24: header, flags, padding, page sizes, longest bitmap.
        words.extend([1 << 16 | 2, 56, 0, 0, 4096, 0, 1 << 28, 0]);
        // Mappings left at 56.
        words.extend([1 << 16 | 3, 72, 65535, 0]);
        // Ranges at 72.
        words.extend([1 << 16 | 1, 0, 2, 0]);
        words.extend([0, 0, 0xfedf_ffff, 0, 0xfef0_0000, 0, 0xffff_ffff, 0x7f]);
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn an_answer_of_the_kernel_is_read() {
        let info = info(&answer());
        assert_eq!(info.page_sizes, 0x4020_1000);
        assert_eq!(info.granule(), 4096);
        assert_eq!(info.free_mappings, Some(65535));
        let dirty = DirtyInfo {
            page_sizes: 4096,
            longest_bitmap: 1 << 28,
        };
        assert_eq!(info.dirty, Some(dirty));
        let ranges: Vec<_> = info.ranges.iter().map(|r| (r.first().raw(), r.last().raw())).collect();
        assert_eq!(ranges, [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)]);
    }

    #[test]
    fn a_short_answer_and_a_chain_that_leads_back_end() {
        let whole = answer();
        for len in 0..whole.len() {
            let _ = info(&whole[..len]);
        }
        let mut circle = answer();
        circle[28..32].copy_from_slice(&24u32.to_ne_bytes());
        assert_eq!(info(&circle).free_mappings, None);
    }
}
