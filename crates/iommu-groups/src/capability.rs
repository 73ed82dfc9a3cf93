//! Bounded walks over the two capability lists.

use crate::access::{ConfigAccess, Reader};
use crate::pci::{self, capability, extended, header};
use crate::problem::ListFault;

/// Entries that fit between offset 0x40 and 0x100 at 4 bytes each: a longer list runs in a circle.
const MAX_CAPABILITIES: usize = 48;
/// Entries that fit between offset 0x100 and 0x1000 at 4 bytes each: a longer list runs in a circle.
const MAX_EXTENDED: usize = 960;

/// How a list ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Properly: what was not seen is not there.
    Clean,
    /// The list cannot be read at all.
    Unknown,
    /// Improperly, at this offset.
    Fault(u16, ListFault),
}

/// Walks the list in the first 256 bytes; `visit` gets identifier and offset. PCIe §7.5.1.1.11 (Capabilities
/// Pointer).
pub(crate) fn walk<A: ConfigAccess>(reader: &Reader<'_, A>, cardbus: bool, mut visit: impl FnMut(u8, u16)) -> End {
    let Some(status) = reader.read16(header::STATUS) else {
        return End::Unknown;
    };
    if status & header::STATUS_CAPABILITIES == 0 {
        return End::Clean;
    }
    // CardBus bridges keep the pointer elsewhere.
    let pointer = if cardbus {
        header::CARDBUS_CAPABILITIES
    } else {
        header::CAPABILITIES
    };
    let Some(mut at) = reader.read8(pointer).map(u16::from) else {
        return End::Unknown;
    };
    for _ in 0..MAX_CAPABILITIES {
        at &= !3;
        if at == 0 {
            return End::Clean;
        }
        if at < capability::FIRST {
            return End::Fault(at, ListFault::Outside);
        }
        let Some([id, next, ..]) = reader.read32(at).map(u32::to_le_bytes) else {
            // Without privileges Linux shows the first 64 bytes only: that is no fault of the list.
            return End::Fault(at, ListFault::Unreadable);
        };
        if id == 0xff {
            return End::Fault(at, ListFault::NoAnswer);
        }
        visit(id, at);
        at = next.into();
    }
    if at == 0 {
        End::Clean
    } else {
        End::Fault(at, ListFault::Loop)
    }
}

/// Walks the list from byte 256; `visit` gets identifier and offset. PCIe §7.6.3 (PCI Express Extended
/// Capability Header).
pub(crate) fn walk_extended<A: ConfigAccess>(reader: &Reader<'_, A>, mut visit: impl FnMut(u16, u16)) -> End {
    let mut at = extended::FIRST;
    for _ in 0..MAX_EXTENDED {
        let Some(head) = reader.read32(at) else {
            return if at == extended::FIRST {
                End::Unknown
            } else {
                End::Fault(at, ListFault::Unreadable)
            };
        };
        if head == pci::NO_FUNCTION {
            // A bridge or host that does not forward extended configuration requests answers like this.
            return if at == extended::FIRST {
                End::Unknown
            } else {
                End::Fault(at, ListFault::NoAnswer)
            };
        }
        if head == 0 {
            // The list is empty; an empty entry further on ends it, as it does for Linux.
            return End::Clean;
        }
        let [low, high, ..] = head.to_le_bytes();
        visit(u16::from_le_bytes([low, high]), at);
        let next = u16::try_from(head >> extended::NEXT_SHIFT).unwrap_or(0) & !3;
        if next == 0 {
            return End::Clean;
        }
        if next < extended::FIRST {
            return End::Fault(next, ListFault::Outside);
        }
        at = next;
    }
    End::Fault(at, ListFault::Loop)
}
