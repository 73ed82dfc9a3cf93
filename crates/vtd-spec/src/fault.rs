//! Fault reasons and the conditions behind them. VT-d §7.1.3 (fault conditions), §5.1.4.1 (interrupt remapping fault
//! conditions).
//!
//! A [`FaultReason`] is the code in a fault record. A [`Condition`] is one line of the specification's fault table: several
//! conditions may share a code, and each says what becomes of each class of request.

mod conditions;

pub use conditions::{CONDITIONS, Condition, RequestClass, Response};

iommu_types::open_enum! {
    /// Why a request was blocked: FR of a fault record. VT-d §7.1.3.
    ///
    /// Codes below 20h belong to legacy mode, 20h to 2Bh to interrupt requests, the rest to scalable mode and to the root
    /// table address. 0 is not a reason.
    pub struct FaultReason(u8) {
        /// The root entry of the bus is not present. Condition LRT.2.
        ROOT_NOT_PRESENT = 0x01,
        /// The context entry of the function is not present. Condition LCT.2.
        CONTEXT_NOT_PRESENT = 0x02,
        /// The context entry is programmed wrongly: translation type or address width is not supported, or the top
        /// second-stage table cannot be read. Condition LCT.4.
        CONTEXT_INVALID = 0x03,
        /// The address lies beyond the width that the unit, the page tables or the host translate. Condition LGN.1.
        ADDRESS_BEYOND_WIDTH = 0x04,
        /// No mapping permits writing at the address. Condition LGN.2.
        WRITE_DENIED = 0x05,
        /// No mapping permits reading at the address. Condition LGN.3.
        READ_DENIED = 0x06,
        /// A second-stage paging entry cannot be read. Condition LSS.1.
        PAGING_ENTRY_ACCESS = 0x07,
        /// The root entry cannot be read. Condition LRT.1.
        ROOT_ACCESS = 0x08,
        /// The context entry cannot be read. Condition LCT.1.
        CONTEXT_ACCESS = 0x09,
        /// The root entry has reserved bits set. Condition LRT.3.
        ROOT_RESERVED = 0x0A,
        /// The context entry has reserved bits set. Condition LCT.3.
        CONTEXT_RESERVED = 0x0B,
        /// A second-stage paging entry has reserved bits set. Condition LSS.2.
        PAGING_RESERVED = 0x0C,
        /// The context entry does not let the function use a device-TLB. Condition LCT.5.
        DEVICE_TLB_BLOCKED = 0x0D,
        /// The address after translation lies in the interrupt range. Condition LGN.4.
        OUTPUT_IN_INTERRUPT_RANGE = 0x0E,
        /// The interrupt request has reserved bits set.
        INTERRUPT_REQUEST_RESERVED = 0x20,
        /// The interrupt index lies beyond the interrupt remapping table.
        INTERRUPT_INDEX_BEYOND_TABLE = 0x21,
        /// The interrupt remapping table entry is not present.
        IRTE_NOT_PRESENT = 0x22,
        /// The interrupt remapping table entry cannot be read.
        IRTE_ACCESS = 0x23,
        /// The interrupt remapping table entry has reserved bits set.
        IRTE_RESERVED = 0x24,
        /// Interrupts in compatibility format are blocked.
        COMPATIBILITY_BLOCKED = 0x25,
        /// The requester may not use this interrupt remapping table entry.
        INTERRUPT_SOURCE_INVALID = 0x26,
        /// The posted interrupt descriptor cannot be accessed.
        POSTED_DESCRIPTOR_ACCESS = 0x27,
        /// The posted interrupt descriptor has reserved bits set.
        POSTED_DESCRIPTOR_RESERVED = 0x28,
        /// The access to the interrupt range is not an interrupt request.
        INTERRUPT_RANGE_ACCESS = 0x29,
        /// The unit handles interrupts only in extended interrupt mode, which is off.
        EXTENDED_MODE_REQUIRED = 0x2A,
        /// The unit blocks interrupts while interrupt remapping is off.
        REMAPPING_REQUIRED = 0x2B,
        /// The translation table mode in the root table address is not supported. Condition RTA.1.
        TABLE_MODE_INVALID = 0x30,
        /// The request has a PASID, which legacy mode blocks. Condition RTA.2.
        PASID_IN_LEGACY_MODE = 0x31,
        /// The request is a page request, which legacy mode blocks. Condition RTA.3.
        PAGE_REQUEST_IN_LEGACY_MODE = 0x32,
        /// The unit is in abort-DMA mode and blocks every request. Condition RTA.4.
        ABORT_DMA = 0x33,
        /// The request asks for execute permission, which the unit does not know. Condition RTA.5.
        EXECUTE_REQUESTED = 0x34,
        /// The root entry cannot be read. Condition SRT.1.
        SCALABLE_ROOT_ACCESS = 0x38,
        /// The half of the root entry for this function is not present. Condition SRT.2.
        SCALABLE_ROOT_NOT_PRESENT = 0x39,
        /// The root entry has reserved bits set. Condition SRT.3.
        SCALABLE_ROOT_RESERVED = 0x3A,
        /// The context entry cannot be read. Condition SCT.1.
        SCALABLE_CONTEXT_ACCESS = 0x40,
        /// The context entry of the function is not present. Condition SCT.2.
        SCALABLE_CONTEXT_NOT_PRESENT = 0x41,
        /// The context entry has reserved bits set. Condition SCT.3.
        SCALABLE_CONTEXT_RESERVED = 0x42,
        /// The fields of the context entry contradict each other. Condition SCT.4.
        SCALABLE_CONTEXT_INVALID = 0x43,
        /// The context entry does not let the function use a device-TLB. Condition SCT.5.
        DEVICE_TLB_DISABLED = 0x44,
        /// The context entry does not let the function use PASIDs. Condition SCT.6.
        PASID_DISABLED = 0x45,
        /// The PASID lies beyond the PASID directory. Condition SCT.7.
        PASID_BEYOND_DIRECTORY = 0x46,
        /// The context entry does not let the function send page requests. Condition SCT.8.
        PAGE_REQUEST_DISABLED = 0x47,
        /// The request names the PASID that is set aside for requests without PASID. Condition SCT.9.
        PASID_IS_RID_PASID = 0x48,
        /// The context entry does not allow PASIDs in translated requests. Condition SCT.10.
        TRANSLATED_PASID_DISABLED = 0x49,
        /// The PASID directory entry cannot be read. Condition SPD.1.
        PASID_DIRECTORY_ACCESS = 0x50,
        /// The PASID directory entry is not present. Condition SPD.2.
        PASID_DIRECTORY_NOT_PRESENT = 0x51,
        /// The PASID directory entry has reserved bits set. Condition SPD.3.
        PASID_DIRECTORY_RESERVED = 0x52,
        /// The PASID table entry cannot be read. Condition SPT.1.
        PASID_ENTRY_ACCESS = 0x58,
        /// The PASID table entry is not present. Condition SPT.2.
        PASID_ENTRY_NOT_PRESENT = 0x59,
        /// The PASID table entry has reserved bits set. Condition SPT.3.
        PASID_ENTRY_RESERVED = 0x5A,
        /// The PASID table entry is programmed wrongly: translation type, paging mode or address width is not
        /// supported. Condition SPT.4.
        PASID_ENTRY_INVALID = 0x5B,
        /// The PASID table entry does not allow requests for execute permission. Condition SPT.5.
        EXECUTE_DISABLED = 0x5C,
        /// The PASID table entry does not allow privileged requests. Condition SPT.6.
        SUPERVISOR_DISABLED = 0x5D,
        /// The translated address lies beyond the host permission table. Condition SPT.9.
        HPT_ADDRESS_BEYOND_TABLE = 0x60,
        /// A first-stage paging entry cannot be read. Condition SFS.1.
        FIRST_STAGE_ENTRY_ACCESS = 0x70,
        /// A first-stage paging entry is not present. Condition SFS.2.
        FIRST_STAGE_NOT_PRESENT = 0x71,
        /// A first-stage paging entry has reserved bits set. Condition SFS.3.
        FIRST_STAGE_RESERVED = 0x72,
        /// The top first-stage table cannot be read. Condition SFS.4.
        FIRST_STAGE_ROOT_ACCESS = 0x73,
        /// An address in the first-stage tables lies beyond the width of the second stage. Condition SFS.5.
        FIRST_STAGE_ADDRESS_BEYOND_WIDTH = 0x74,
        /// The second stage does not permit reading the top first-stage table. Condition SFS.6.
        FIRST_STAGE_ROOT_UNREADABLE = 0x75,
        /// The second stage does not permit reading a first-stage table. Condition SFS.7.
        FIRST_STAGE_TABLE_UNREADABLE = 0x76,
        /// The second stage does not permit setting accessed and dirty flags in a first-stage table. Condition SFS.8.
        FIRST_STAGE_TABLE_UNWRITABLE = 0x77,
        /// A second-stage paging entry cannot be read. Condition SSS.1.
        SECOND_STAGE_ENTRY_ACCESS = 0x78,
        /// A second-stage paging entry is not present. Condition SSS.2.
        SECOND_STAGE_NOT_PRESENT = 0x79,
        /// A second-stage paging entry has reserved bits set. Condition SSS.3.
        SECOND_STAGE_RESERVED = 0x7A,
        /// The top second-stage table cannot be read. Condition SSS.4.
        SECOND_STAGE_ROOT_ACCESS = 0x7B,
        /// Second-stage accessed and dirty flags need page walks that snoop. Condition SSS.5.
        SECOND_STAGE_FLAGS_NOT_SNOOPED = 0x7C,
        /// Setting second-stage accessed and dirty flags failed. Condition SSS.6.
        SECOND_STAGE_FLAGS_FAILED = 0x7D,
        /// The address is not canonical. Condition SGN.1.
        NOT_CANONICAL = 0x80,
        /// The first stage keeps user requests out at the address. Condition SGN.2.
        USER_DENIED = 0x81,
        /// The first stage does not permit execution at the address. Condition SGN.3. Not raised any more since
        /// revision 4.1.
        EXECUTE_DENIED = 0x82,
        /// The address lies beyond the host address width. Condition SGN.4.
        ADDRESS_BEYOND_HOST = 0x83,
        /// The address lies beyond the width that the unit or the second stage translate. Condition SGN.5.
        SCALABLE_ADDRESS_BEYOND_WIDTH = 0x84,
        /// No mapping permits writing at the address. Condition SGN.6.
        SCALABLE_WRITE_DENIED = 0x85,
        /// No mapping permits reading at the address. Condition SGN.7.
        SCALABLE_READ_DENIED = 0x86,
        /// The address after translation lies in the interrupt range. Condition SGN.8.
        SCALABLE_OUTPUT_IN_INTERRUPT_RANGE = 0x87,
        /// The PASID is wider than the unit supports. Condition SGN.10.
        PASID_TOO_WIDE = 0x89,
        /// First-stage accessed and dirty flags need page walks that snoop. Condition SFS.9.
        FIRST_STAGE_FLAGS_NOT_SNOOPED = 0x90,
        /// Setting first-stage accessed and dirty flags failed. Condition SFS.10.
        FIRST_STAGE_FLAGS_FAILED = 0x91,
        /// A host permission table entry cannot be read. Condition HPT.1.
        HPT_ENTRY_ACCESS = 0xA0,
        /// A host permission table entry has reserved bits set. Condition HPT.2.
        HPT_RESERVED = 0xA1,
        /// The top host permission table cannot be read. Condition HPT.3.
        HPT_ROOT_ACCESS = 0xA2,
        /// The host permission table permits no zero-length read at the address. Condition HPT.4.
        HPT_ZERO_LENGTH_READ_DENIED = 0xA3,
        /// The host permission table permits no writing at the address. Condition HPT.5.
        HPT_WRITE_DENIED = 0xA4,
        /// The host permission table permits no reading at the address. Condition HPT.6.
        HPT_READ_DENIED = 0xA5,
    }
}

impl FaultReason {
    /// The specification's name of the condition, without the number of its variant (`LCT.4` stands for LCT.4.1 to LCT.4.3);
    /// `None` for interrupt faults, which have no name, and for unknown codes.
    #[must_use]
    pub const fn condition(self) -> Option<&'static str> {
        match self {
            Self::ROOT_NOT_PRESENT => Some("LRT.2"),
            Self::CONTEXT_NOT_PRESENT => Some("LCT.2"),
            Self::CONTEXT_INVALID => Some("LCT.4"),
            Self::ADDRESS_BEYOND_WIDTH => Some("LGN.1"),
            Self::WRITE_DENIED => Some("LGN.2"),
            Self::READ_DENIED => Some("LGN.3"),
            Self::PAGING_ENTRY_ACCESS => Some("LSS.1"),
            Self::ROOT_ACCESS => Some("LRT.1"),
            Self::CONTEXT_ACCESS => Some("LCT.1"),
            Self::ROOT_RESERVED => Some("LRT.3"),
            Self::CONTEXT_RESERVED => Some("LCT.3"),
            Self::PAGING_RESERVED => Some("LSS.2"),
            Self::DEVICE_TLB_BLOCKED => Some("LCT.5"),
            Self::OUTPUT_IN_INTERRUPT_RANGE => Some("LGN.4"),
            Self::TABLE_MODE_INVALID => Some("RTA.1"),
            Self::PASID_IN_LEGACY_MODE => Some("RTA.2"),
            Self::PAGE_REQUEST_IN_LEGACY_MODE => Some("RTA.3"),
            Self::ABORT_DMA => Some("RTA.4"),
            Self::EXECUTE_REQUESTED => Some("RTA.5"),
            Self::SCALABLE_ROOT_ACCESS => Some("SRT.1"),
            Self::SCALABLE_ROOT_NOT_PRESENT => Some("SRT.2"),
            Self::SCALABLE_ROOT_RESERVED => Some("SRT.3"),
            Self::SCALABLE_CONTEXT_ACCESS => Some("SCT.1"),
            Self::SCALABLE_CONTEXT_NOT_PRESENT => Some("SCT.2"),
            Self::SCALABLE_CONTEXT_RESERVED => Some("SCT.3"),
            Self::SCALABLE_CONTEXT_INVALID => Some("SCT.4"),
            Self::DEVICE_TLB_DISABLED => Some("SCT.5"),
            Self::PASID_DISABLED => Some("SCT.6"),
            Self::PASID_BEYOND_DIRECTORY => Some("SCT.7"),
            Self::PAGE_REQUEST_DISABLED => Some("SCT.8"),
            Self::PASID_IS_RID_PASID => Some("SCT.9"),
            Self::TRANSLATED_PASID_DISABLED => Some("SCT.10"),
            Self::PASID_DIRECTORY_ACCESS => Some("SPD.1"),
            Self::PASID_DIRECTORY_NOT_PRESENT => Some("SPD.2"),
            Self::PASID_DIRECTORY_RESERVED => Some("SPD.3"),
            Self::PASID_ENTRY_ACCESS => Some("SPT.1"),
            Self::PASID_ENTRY_NOT_PRESENT => Some("SPT.2"),
            Self::PASID_ENTRY_RESERVED => Some("SPT.3"),
            Self::PASID_ENTRY_INVALID => Some("SPT.4"),
            Self::EXECUTE_DISABLED => Some("SPT.5"),
            Self::SUPERVISOR_DISABLED => Some("SPT.6"),
            Self::HPT_ADDRESS_BEYOND_TABLE => Some("SPT.9"),
            Self::FIRST_STAGE_ENTRY_ACCESS => Some("SFS.1"),
            Self::FIRST_STAGE_NOT_PRESENT => Some("SFS.2"),
            Self::FIRST_STAGE_RESERVED => Some("SFS.3"),
            Self::FIRST_STAGE_ROOT_ACCESS => Some("SFS.4"),
            Self::FIRST_STAGE_ADDRESS_BEYOND_WIDTH => Some("SFS.5"),
            Self::FIRST_STAGE_ROOT_UNREADABLE => Some("SFS.6"),
            Self::FIRST_STAGE_TABLE_UNREADABLE => Some("SFS.7"),
            Self::FIRST_STAGE_TABLE_UNWRITABLE => Some("SFS.8"),
            Self::SECOND_STAGE_ENTRY_ACCESS => Some("SSS.1"),
            Self::SECOND_STAGE_NOT_PRESENT => Some("SSS.2"),
            Self::SECOND_STAGE_RESERVED => Some("SSS.3"),
            Self::SECOND_STAGE_ROOT_ACCESS => Some("SSS.4"),
            Self::SECOND_STAGE_FLAGS_NOT_SNOOPED => Some("SSS.5"),
            Self::SECOND_STAGE_FLAGS_FAILED => Some("SSS.6"),
            Self::NOT_CANONICAL => Some("SGN.1"),
            Self::USER_DENIED => Some("SGN.2"),
            Self::EXECUTE_DENIED => Some("SGN.3"),
            Self::ADDRESS_BEYOND_HOST => Some("SGN.4"),
            Self::SCALABLE_ADDRESS_BEYOND_WIDTH => Some("SGN.5"),
            Self::SCALABLE_WRITE_DENIED => Some("SGN.6"),
            Self::SCALABLE_READ_DENIED => Some("SGN.7"),
            Self::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE => Some("SGN.8"),
            Self::PASID_TOO_WIDE => Some("SGN.10"),
            Self::FIRST_STAGE_FLAGS_NOT_SNOOPED => Some("SFS.9"),
            Self::FIRST_STAGE_FLAGS_FAILED => Some("SFS.10"),
            Self::HPT_ENTRY_ACCESS => Some("HPT.1"),
            Self::HPT_RESERVED => Some("HPT.2"),
            Self::HPT_ROOT_ACCESS => Some("HPT.3"),
            Self::HPT_ZERO_LENGTH_READ_DENIED => Some("HPT.4"),
            Self::HPT_WRITE_DENIED => Some("HPT.5"),
            Self::HPT_READ_DENIED => Some("HPT.6"),
            _ => None,
        }
    }

    /// What happened, as a fragment of a sentence for people.
    #[must_use]
    pub const fn description(self) -> &'static str {
        match self {
            Self::ROOT_NOT_PRESENT => "the root entry of the bus is not present",
            Self::CONTEXT_NOT_PRESENT | Self::SCALABLE_CONTEXT_NOT_PRESENT => {
                "the context entry of the function is not present"
            }
            Self::CONTEXT_INVALID => {
                "the context entry is programmed wrongly: translation type or address width is not supported, or the top second-stage table cannot be read"
            }
            Self::ADDRESS_BEYOND_WIDTH => {
                "the address lies beyond the width that the unit, the page tables or the host translate"
            }
            Self::WRITE_DENIED | Self::SCALABLE_WRITE_DENIED => "no mapping permits writing at the address",
            Self::READ_DENIED | Self::SCALABLE_READ_DENIED => "no mapping permits reading at the address",
            Self::PAGING_ENTRY_ACCESS | Self::SECOND_STAGE_ENTRY_ACCESS => "a second-stage paging entry cannot be read",
            Self::ROOT_ACCESS | Self::SCALABLE_ROOT_ACCESS => "the root entry cannot be read",
            Self::CONTEXT_ACCESS | Self::SCALABLE_CONTEXT_ACCESS => "the context entry cannot be read",
            Self::ROOT_RESERVED | Self::SCALABLE_ROOT_RESERVED => "the root entry has reserved bits set",
            Self::CONTEXT_RESERVED | Self::SCALABLE_CONTEXT_RESERVED => "the context entry has reserved bits set",
            Self::PAGING_RESERVED | Self::SECOND_STAGE_RESERVED => "a second-stage paging entry has reserved bits set",
            Self::DEVICE_TLB_BLOCKED | Self::DEVICE_TLB_DISABLED => {
                "the context entry does not let the function use a device-TLB"
            }
            Self::OUTPUT_IN_INTERRUPT_RANGE | Self::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE => {
                "the address after translation lies in the interrupt range"
            }
            Self::INTERRUPT_REQUEST_RESERVED => "the interrupt request has reserved bits set",
            Self::INTERRUPT_INDEX_BEYOND_TABLE => "the interrupt index lies beyond the interrupt remapping table",
            Self::IRTE_NOT_PRESENT => "the interrupt remapping table entry is not present",
            Self::IRTE_ACCESS => "the interrupt remapping table entry cannot be read",
            Self::IRTE_RESERVED => "the interrupt remapping table entry has reserved bits set",
            Self::COMPATIBILITY_BLOCKED => "interrupts in compatibility format are blocked",
            Self::INTERRUPT_SOURCE_INVALID => "the requester may not use this interrupt remapping table entry",
            Self::POSTED_DESCRIPTOR_ACCESS => "the posted interrupt descriptor cannot be accessed",
            Self::POSTED_DESCRIPTOR_RESERVED => "the posted interrupt descriptor has reserved bits set",
            Self::INTERRUPT_RANGE_ACCESS => "the access to the interrupt range is not an interrupt request",
            Self::EXTENDED_MODE_REQUIRED => "the unit handles interrupts only in extended interrupt mode, which is off",
            Self::REMAPPING_REQUIRED => "the unit blocks interrupts while interrupt remapping is off",
            Self::TABLE_MODE_INVALID => "the translation table mode in the root table address is not supported",
            Self::PASID_IN_LEGACY_MODE => "the request has a PASID, which legacy mode blocks",
            Self::PAGE_REQUEST_IN_LEGACY_MODE => "the request is a page request, which legacy mode blocks",
            Self::ABORT_DMA => "the unit is in abort-DMA mode and blocks every request",
            Self::EXECUTE_REQUESTED => "the request asks for execute permission, which the unit does not know",
            Self::SCALABLE_ROOT_NOT_PRESENT => "the half of the root entry for this function is not present",
            Self::SCALABLE_CONTEXT_INVALID => "the fields of the context entry contradict each other",
            Self::PASID_DISABLED => "the context entry does not let the function use PASIDs",
            Self::PASID_BEYOND_DIRECTORY => "the PASID lies beyond the PASID directory",
            Self::PAGE_REQUEST_DISABLED => "the context entry does not let the function send page requests",
            Self::PASID_IS_RID_PASID => "the request names the PASID that is set aside for requests without PASID",
            Self::TRANSLATED_PASID_DISABLED => "the context entry does not allow PASIDs in translated requests",
            Self::PASID_DIRECTORY_ACCESS => "the PASID directory entry cannot be read",
            Self::PASID_DIRECTORY_NOT_PRESENT => "the PASID directory entry is not present",
            Self::PASID_DIRECTORY_RESERVED => "the PASID directory entry has reserved bits set",
            Self::PASID_ENTRY_ACCESS => "the PASID table entry cannot be read",
            Self::PASID_ENTRY_NOT_PRESENT => "the PASID table entry is not present",
            Self::PASID_ENTRY_RESERVED => "the PASID table entry has reserved bits set",
            Self::PASID_ENTRY_INVALID => {
                "the PASID table entry is programmed wrongly: translation type, paging mode or address width is not supported"
            }
            Self::EXECUTE_DISABLED => "the PASID table entry does not allow requests for execute permission",
            Self::SUPERVISOR_DISABLED => "the PASID table entry does not allow privileged requests",
            Self::HPT_ADDRESS_BEYOND_TABLE => "the translated address lies beyond the host permission table",
            Self::FIRST_STAGE_ENTRY_ACCESS => "a first-stage paging entry cannot be read",
            Self::FIRST_STAGE_NOT_PRESENT => "a first-stage paging entry is not present",
            Self::FIRST_STAGE_RESERVED => "a first-stage paging entry has reserved bits set",
            Self::FIRST_STAGE_ROOT_ACCESS => "the top first-stage table cannot be read",
            Self::FIRST_STAGE_ADDRESS_BEYOND_WIDTH => {
                "an address in the first-stage tables lies beyond the width of the second stage"
            }
            Self::FIRST_STAGE_ROOT_UNREADABLE => "the second stage does not permit reading the top first-stage table",
            Self::FIRST_STAGE_TABLE_UNREADABLE => "the second stage does not permit reading a first-stage table",
            Self::FIRST_STAGE_TABLE_UNWRITABLE => {
                "the second stage does not permit setting accessed and dirty flags in a first-stage table"
            }
            Self::SECOND_STAGE_NOT_PRESENT => "a second-stage paging entry is not present",
            Self::SECOND_STAGE_ROOT_ACCESS => "the top second-stage table cannot be read",
            Self::SECOND_STAGE_FLAGS_NOT_SNOOPED => "second-stage accessed and dirty flags need page walks that snoop",
            Self::SECOND_STAGE_FLAGS_FAILED => "setting second-stage accessed and dirty flags failed",
            Self::NOT_CANONICAL => "the address is not canonical",
            Self::USER_DENIED => "the first stage keeps user requests out at the address",
            Self::EXECUTE_DENIED => "the first stage does not permit execution at the address",
            Self::ADDRESS_BEYOND_HOST => "the address lies beyond the host address width",
            Self::SCALABLE_ADDRESS_BEYOND_WIDTH => {
                "the address lies beyond the width that the unit or the second stage translate"
            }
            Self::PASID_TOO_WIDE => "the PASID is wider than the unit supports",
            Self::FIRST_STAGE_FLAGS_NOT_SNOOPED => "first-stage accessed and dirty flags need page walks that snoop",
            Self::FIRST_STAGE_FLAGS_FAILED => "setting first-stage accessed and dirty flags failed",
            Self::HPT_ENTRY_ACCESS => "a host permission table entry cannot be read",
            Self::HPT_RESERVED => "a host permission table entry has reserved bits set",
            Self::HPT_ROOT_ACCESS => "the top host permission table cannot be read",
            Self::HPT_ZERO_LENGTH_READ_DENIED => "the host permission table permits no zero-length read at the address",
            Self::HPT_WRITE_DENIED => "the host permission table permits no writing at the address",
            Self::HPT_READ_DENIED => "the host permission table permits no reading at the address",
            _ => "the unit reports a reason that this version does not know",
        }
    }

    /// Whether the fault is qualified: neither recorded nor reported if FPD was set in a structure read on the way. The request
    /// is blocked all the same. Unknown codes count as not qualified.
    #[must_use]
    pub const fn is_qualified(self) -> bool {
        self.name().is_some() && !self.is_unqualified()
    }

    const fn is_unqualified(self) -> bool {
        matches!(
            self,
            Self::ROOT_NOT_PRESENT
                | Self::ROOT_ACCESS
                | Self::CONTEXT_ACCESS
                | Self::ROOT_RESERVED
                | Self::INTERRUPT_REQUEST_RESERVED
                | Self::INTERRUPT_INDEX_BEYOND_TABLE
                | Self::IRTE_ACCESS
                | Self::COMPATIBILITY_BLOCKED
                | Self::INTERRUPT_RANGE_ACCESS
                | Self::EXTENDED_MODE_REQUIRED
                | Self::REMAPPING_REQUIRED
                | Self::TABLE_MODE_INVALID
                | Self::PASID_IN_LEGACY_MODE
                | Self::PAGE_REQUEST_IN_LEGACY_MODE
                | Self::ABORT_DMA
                | Self::EXECUTE_REQUESTED
                | Self::SCALABLE_ROOT_ACCESS
                | Self::SCALABLE_ROOT_NOT_PRESENT
                | Self::SCALABLE_ROOT_RESERVED
                | Self::SCALABLE_CONTEXT_ACCESS
                | Self::PASID_DIRECTORY_ACCESS
                | Self::PASID_ENTRY_ACCESS
        )
    }

    /// Whether the fault concerns an interrupt request: codes 20h to 2Bh.
    #[must_use]
    pub const fn is_interrupt(self) -> bool {
        self.0 >= 0x20 && self.0 <= 0x2B
    }

    /// The lines of the fault table with this code; none for interrupt faults and unknown codes.
    pub fn conditions(self) -> impl Iterator<Item = &'static Condition> {
        CONDITIONS.iter().filter(move |condition| condition.reason == self)
    }

    /// What becomes of a request of a class that faults for this reason; `None` if the class cannot meet it, or if the code is
    /// unknown.
    #[must_use]
    pub fn response(self, class: RequestClass) -> Option<Response> {
        if self.is_interrupt() {
            return (class == RequestClass::Untranslated).then_some(Response::UnsupportedRequest);
        }
        self.conditions().find_map(|condition| condition.response(class))
    }

    /// Whether a request of a class that faults for this reason is recorded, if FPD does not suppress it. Recoverable outcomes
    /// of translation requests are not. VT-d §7.1.2.
    ///
    /// A class that cannot meet the reason, and an unknown code, count as recorded: nothing is hidden.
    #[must_use]
    pub fn is_recorded(self, class: RequestClass) -> bool {
        match self.response(class) {
            // A failed update of flags is told to the function and logged (§7.1.3, note at SFS.10).
            Some(Response::SuccessWithoutAccess) => self == Self::FIRST_STAGE_FLAGS_FAILED,
            Some(Response::SuccessWithGranted) => false,
            _ => true,
        }
    }
}

impl core::fmt::Display for FaultReason {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02X}h", self.0)?;
        if let Some(condition) = self.condition() {
            write!(f, " ({condition})")?;
        }
        write!(f, ": {}", self.description())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;
    use std::vec::Vec;

    use super::*;

    #[test]
    fn unqualified_codes_are_those_of_the_fault_table() {
        let unqualified: Vec<u8> = (0..=255)
            .filter(|&code| FaultReason(code).name().is_some() && !FaultReason(code).is_qualified())
            .collect();
        assert_eq!(
            unqualified,
            [
                0x01, 0x08, 0x09, 0x0A, 0x20, 0x21, 0x23, 0x25, 0x29, 0x2A, 0x2B, 0x30, 0x31, 0x32, 0x33, 0x34, 0x38,
                0x39, 0x3A, 0x40, 0x50, 0x58
            ]
        );
        assert!(!FaultReason(0xFF).is_qualified());
    }

    #[test]
    fn condition_names_stand_at_their_codes() {
        let name = |code| FaultReason(code).condition();
        assert_eq!(
            [0x01, 0x05, 0x0E, 0x34, 0x49, 0x5D, 0x60, 0x7D, 0x89, 0x91, 0xA5].map(name),
            [
                "LRT.2", "LGN.2", "LGN.4", "RTA.5", "SCT.10", "SPT.6", "SPT.9", "SSS.6", "SGN.10", "SFS.10", "HPT.6"
            ]
            .map(Some)
        );
        assert_eq!([0x00, 0x22, 0x5E, 0x88].map(name), [None; 4]);
    }

    #[test]
    fn every_known_code_has_a_description_of_its_own_kind() {
        let unknown = FaultReason(0).description();
        for code in 0..=255 {
            let reason = FaultReason(code);
            assert_eq!(reason.name().is_some(), reason.description() != unknown, "{code:#x}");
        }
        assert_eq!(
            FaultReason::WRITE_DENIED.to_string(),
            "05h (LGN.2): no mapping permits writing at the address"
        );
        assert_eq!(
            FaultReason::IRTE_NOT_PRESENT.to_string(),
            "22h: the interrupt remapping table entry is not present"
        );
    }

    #[test]
    fn recoverable_outcomes_of_translation_requests_are_not_recorded() {
        use RequestClass::{Translation, TranslationPasid, Untranslated};
        assert!(!FaultReason::WRITE_DENIED.is_recorded(Translation));
        assert!(FaultReason::WRITE_DENIED.is_recorded(Untranslated));
        assert!(!FaultReason::FIRST_STAGE_NOT_PRESENT.is_recorded(TranslationPasid));
        assert!(FaultReason::FIRST_STAGE_FLAGS_FAILED.is_recorded(TranslationPasid));
        assert!(FaultReason::CONTEXT_INVALID.is_recorded(Translation));
    }
}
