//! Bytes of owned tables. Reserved fields are written as 0.

use alloc::vec::Vec;

use iommu_types::Segment;

use super::{OwnedDmar, OwnedScope, OwnedStructure};
use crate::bytes::checksum;
use crate::scope::DeviceScope;
use crate::structure::{STRUCTURE_HEADER, StructureType};
use crate::table::{HEADER_LEN, SIGNATURE};

/// Offset of the checksum byte.
const CHECKSUM: usize = 9;

/// Why a table cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// A scope entry's path has no hop, or more than its length byte can count.
    #[error("structure {structure}: a device scope path has 1 to 124 hops, not {hops}")]
    Path {
        /// Index of the structure.
        structure: usize,
        /// Number of hops in the path.
        hops: usize,
    },
    /// A segment does not fit: only the operating system knows it.
    #[error("structure {structure}: segment {segment} does not fit the 16 bits that a table has for it")]
    Segment {
        /// Index of the structure.
        structure: usize,
        /// The segment.
        segment: Segment,
    },
    /// A structure is longer than its length field can say.
    #[error("structure {structure} takes {length} bytes, and 65535 are the most; spread its scopes over several")]
    StructureLength {
        /// Index of the structure.
        structure: usize,
        /// Its length in bytes.
        length: usize,
    },
    /// The table is longer than its length field can say.
    #[error("the table takes {length} bytes, which its 32-bit length field cannot say")]
    TableLength {
        /// Its length in bytes.
        length: usize,
    },
}

pub(super) fn table(table: &OwnedDmar) -> Result<Vec<u8>, BuildError> {
    let mut body = Vec::new();
    for (index, owned) in table.structures.iter().enumerate() {
        body.extend(structure(index, owned)?);
    }
    let length = HEADER_LEN + body.len();
    let length = u32::try_from(length).map_err(|_| BuildError::TableLength { length })?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend(SIGNATURE);
    bytes.extend(length.to_le_bytes());
    bytes.push(table.revision);
    bytes.push(0); // the checksum, when all else is known
    bytes.extend(table.oem_id);
    bytes.extend(table.oem_table_id);
    bytes.extend(table.oem_revision.to_le_bytes());
    bytes.extend(table.creator_id);
    bytes.extend(table.creator_revision.to_le_bytes());
    bytes.push(table.host_address_width);
    bytes.push(table.flags.0);
    bytes.extend(table.reserved);
    bytes.extend(body);
    let sum = checksum(&bytes);
    if let Some(byte) = bytes.get_mut(CHECKSUM) {
        *byte = sum.wrapping_neg();
    }
    Ok(bytes)
}

/// The bytes of one structure; `index` is only for the error.
pub(super) fn structure(index: usize, owned: &OwnedStructure) -> Result<Vec<u8>, BuildError> {
    let mut body = Vec::new();
    let mut scopes: &[OwnedScope] = &[];
    let kind = match owned {
        OwnedStructure::Drhd(s) => {
            body.extend([s.flags, s.size]);
            body.extend(segment(index, s.segment)?);
            body.extend(s.register_base.raw().to_le_bytes());
            scopes = &s.scopes;
            StructureType::DRHD
        }
        OwnedStructure::Rmrr(s) => {
            body.extend([0; 2]);
            body.extend(segment(index, s.segment)?);
            body.extend(s.base.raw().to_le_bytes());
            body.extend(s.limit.raw().to_le_bytes());
            scopes = &s.scopes;
            StructureType::RMRR
        }
        OwnedStructure::Atsr(s) => {
            body.extend([s.flags, 0]);
            body.extend(segment(index, s.segment)?);
            scopes = &s.scopes;
            StructureType::ATSR
        }
        OwnedStructure::Rhsa(s) => {
            body.extend([0; 4]);
            body.extend(s.register_base.raw().to_le_bytes());
            body.extend(s.proximity_domain.to_le_bytes());
            StructureType::RHSA
        }
        OwnedStructure::Andd(s) => {
            body.extend([0, 0, 0, s.device_number]);
            body.extend(&s.name);
            StructureType::ANDD
        }
        OwnedStructure::Satc(s) => {
            body.extend([s.flags, 0]);
            body.extend(segment(index, s.segment)?);
            scopes = &s.scopes;
            StructureType::SATC
        }
        OwnedStructure::Sidp(s) => {
            body.extend([0; 2]);
            body.extend(segment(index, s.segment)?);
            scopes = &s.scopes;
            StructureType::SIDP
        }
        OwnedStructure::Raw(s) => {
            body.extend(&s.body);
            s.kind
        }
    };
    for entry in scopes {
        scope(index, entry, &mut body)?;
    }
    let length = STRUCTURE_HEADER + body.len();
    let stated = u16::try_from(length).map_err(|_| BuildError::StructureLength {
        structure: index,
        length,
    })?;
    let mut bytes = Vec::with_capacity(length);
    bytes.extend(kind.0.to_le_bytes());
    bytes.extend(stated.to_le_bytes());
    bytes.extend(body);
    Ok(bytes)
}

/// The bytes of a segment number; `structure` is only for the error.
fn segment(structure: usize, segment: Segment) -> Result<[u8; 2], BuildError> {
    let number = segment.firmware().ok_or(BuildError::Segment { structure, segment })?;
    Ok(number.to_le_bytes())
}

fn scope(index: usize, entry: &OwnedScope, to: &mut Vec<u8>) -> Result<(), BuildError> {
    let hops = entry.path.len();
    let wrong_path = BuildError::Path { structure: index, hops };
    if hops == 0 {
        return Err(wrong_path);
    }
    let length = u8::try_from(DeviceScope::FIXED + 2 * hops).map_err(|_| wrong_path)?;
    to.extend([
        entry.kind.0,
        length,
        entry.flags.0,
        0,
        entry.enumeration_id,
        entry.start_bus,
    ]);
    to.extend(entry.path.iter().flat_map(|hop| [hop.device, hop.function]));
    Ok(())
}
