//! The conditions that block a request: VT-d §7.1.3 for memory, §5.1.4.1 for interrupts.
//!
//! Several conditions share a fault reason; which completion a translation or translated request gets depends on the
//! condition. The facts stand in `vtd-spec`'s fault table, this type names its lines.

use vtd_spec::FaultReason;
use vtd_spec::fault::{self, RequestClass, Response};

use crate::request::{Request, RequestKind};

macro_rules! conditions {
    ($( $name:ident $text:literal $reason:ident, )*) => {
        /// A condition by its name in the specification: LRT.2 as `Lrt2`. Conditions of interrupt requests have no
        /// names there; theirs begin with `Ir`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[expect(missing_docs, reason = "the specification's names; vtd_spec::fault::CONDITIONS has their texts")]
        pub enum Condition {
            $( $name, )*
        }

        impl Condition {
            /// Every condition that this model can meet.
            pub const ALL: &'static [Self] = &[$( Self::$name, )*];

            /// The specification's name, or the fault code in brackets for interrupt requests.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $( Self::$name => $text, )*
                }
            }

            /// The code that a fault record shows.
            #[must_use]
            pub const fn reason(self) -> FaultReason {
                match self {
                    $( Self::$name => FaultReason::$reason, )*
                }
            }
        }
    };
}

conditions! {
    Rta1_1 "RTA.1.1" TABLE_MODE_INVALID,
    Rta1_2 "RTA.1.2" TABLE_MODE_INVALID,
    Rta1_3 "RTA.1.3" TABLE_MODE_INVALID,
    Rta1_4 "RTA.1.4" TABLE_MODE_INVALID,
    Rta2 "RTA.2" PASID_IN_LEGACY_MODE,
    Rta4 "RTA.4" ABORT_DMA,
    Rta5 "RTA.5" EXECUTE_REQUESTED,
    Lrt1 "LRT.1" ROOT_ACCESS,
    Lrt2 "LRT.2" ROOT_NOT_PRESENT,
    Lrt3 "LRT.3" ROOT_RESERVED,
    Lct1 "LCT.1" CONTEXT_ACCESS,
    Lct2 "LCT.2" CONTEXT_NOT_PRESENT,
    Lct3 "LCT.3" CONTEXT_RESERVED,
    Lct4_1 "LCT.4.1" CONTEXT_INVALID,
    Lct4_2 "LCT.4.2" CONTEXT_INVALID,
    Lct4_3 "LCT.4.3" CONTEXT_INVALID,
    Lct5 "LCT.5" DEVICE_TLB_BLOCKED,
    Lgn1_1 "LGN.1.1" ADDRESS_BEYOND_WIDTH,
    Lgn1_2 "LGN.1.2" ADDRESS_BEYOND_WIDTH,
    Lgn1_3 "LGN.1.3" ADDRESS_BEYOND_WIDTH,
    Lgn2 "LGN.2" WRITE_DENIED,
    Lgn3 "LGN.3" READ_DENIED,
    Lgn4 "LGN.4" OUTPUT_IN_INTERRUPT_RANGE,
    Lss1 "LSS.1" PAGING_ENTRY_ACCESS,
    Lss2 "LSS.2" PAGING_RESERVED,
    Srt1 "SRT.1" SCALABLE_ROOT_ACCESS,
    Srt2 "SRT.2" SCALABLE_ROOT_NOT_PRESENT,
    Srt3 "SRT.3" SCALABLE_ROOT_RESERVED,
    Sct1 "SCT.1" SCALABLE_CONTEXT_ACCESS,
    Sct2 "SCT.2" SCALABLE_CONTEXT_NOT_PRESENT,
    Sct3 "SCT.3" SCALABLE_CONTEXT_RESERVED,
    Sct4_1 "SCT.4.1" SCALABLE_CONTEXT_INVALID,
    Sct4_2 "SCT.4.2" SCALABLE_CONTEXT_INVALID,
    Sct4_3 "SCT.4.3" SCALABLE_CONTEXT_INVALID,
    Sct5 "SCT.5" DEVICE_TLB_DISABLED,
    Sct6 "SCT.6" PASID_DISABLED,
    Sct7 "SCT.7" PASID_BEYOND_DIRECTORY,
    Sct9 "SCT.9" PASID_IS_RID_PASID,
    Sct10 "SCT.10" TRANSLATED_PASID_DISABLED,
    Spd1 "SPD.1" PASID_DIRECTORY_ACCESS,
    Spd2 "SPD.2" PASID_DIRECTORY_NOT_PRESENT,
    Spd3 "SPD.3" PASID_DIRECTORY_RESERVED,
    Spt1 "SPT.1" PASID_ENTRY_ACCESS,
    Spt2 "SPT.2" PASID_ENTRY_NOT_PRESENT,
    Spt3 "SPT.3" PASID_ENTRY_RESERVED,
    Spt4_1 "SPT.4.1" PASID_ENTRY_INVALID,
    Spt4_2 "SPT.4.2" PASID_ENTRY_INVALID,
    Spt4_3 "SPT.4.3" PASID_ENTRY_INVALID,
    Spt4_4 "SPT.4.4" PASID_ENTRY_INVALID,
    Spt5 "SPT.5" EXECUTE_DISABLED,
    Spt6 "SPT.6" SUPERVISOR_DISABLED,
    Sfs1 "SFS.1" FIRST_STAGE_ENTRY_ACCESS,
    Sfs2 "SFS.2" FIRST_STAGE_NOT_PRESENT,
    Sfs3 "SFS.3" FIRST_STAGE_RESERVED,
    Sfs4 "SFS.4" FIRST_STAGE_ROOT_ACCESS,
    Sfs5 "SFS.5" FIRST_STAGE_ADDRESS_BEYOND_WIDTH,
    Sfs6 "SFS.6" FIRST_STAGE_ROOT_UNREADABLE,
    Sfs7 "SFS.7" FIRST_STAGE_TABLE_UNREADABLE,
    Sfs8 "SFS.8" FIRST_STAGE_TABLE_UNWRITABLE,
    Sfs9 "SFS.9" FIRST_STAGE_FLAGS_NOT_SNOOPED,
    Sfs10 "SFS.10" FIRST_STAGE_FLAGS_FAILED,
    Sss1 "SSS.1" SECOND_STAGE_ENTRY_ACCESS,
    Sss2 "SSS.2" SECOND_STAGE_NOT_PRESENT,
    Sss3 "SSS.3" SECOND_STAGE_RESERVED,
    Sss4 "SSS.4" SECOND_STAGE_ROOT_ACCESS,
    Sss5 "SSS.5" SECOND_STAGE_FLAGS_NOT_SNOOPED,
    Sss6 "SSS.6" SECOND_STAGE_FLAGS_FAILED,
    Sgn1 "SGN.1" NOT_CANONICAL,
    Sgn2 "SGN.2" USER_DENIED,
    Sgn4_1 "SGN.4.1" ADDRESS_BEYOND_HOST,
    Sgn4_2 "SGN.4.2" ADDRESS_BEYOND_HOST,
    Sgn5 "SGN.5" SCALABLE_ADDRESS_BEYOND_WIDTH,
    Sgn6 "SGN.6" SCALABLE_WRITE_DENIED,
    Sgn7 "SGN.7" SCALABLE_READ_DENIED,
    Sgn8_1 "SGN.8.1" SCALABLE_OUTPUT_IN_INTERRUPT_RANGE,
    Sgn8_2 "SGN.8.2" SCALABLE_OUTPUT_IN_INTERRUPT_RANGE,
    Sgn8_3 "SGN.8.3" SCALABLE_OUTPUT_IN_INTERRUPT_RANGE,
    Sgn10 "SGN.10" PASID_TOO_WIDE,
    IrRequest "(20h)" INTERRUPT_REQUEST_RESERVED,
    IrIndex "(21h)" INTERRUPT_INDEX_BEYOND_TABLE,
    IrNotPresent "(22h)" IRTE_NOT_PRESENT,
    IrUnreadable "(23h)" IRTE_ACCESS,
    IrReserved "(24h)" IRTE_RESERVED,
    IrCompatibility "(25h)" COMPATIBILITY_BLOCKED,
    IrSource "(26h)" INTERRUPT_SOURCE_INVALID,
    IrIllegalAccess "(29h)" INTERRUPT_RANGE_ACCESS,
    IrExtendedRequired "(2Ah)" EXTENDED_MODE_REQUIRED,
    IrRequired "(2Bh)" REMAPPING_REQUIRED,
}

impl Condition {
    /// Whether fault processing disable (FPD) suppresses the record.
    #[must_use]
    pub const fn is_qualified(self) -> bool {
        self.reason().is_qualified()
    }

    /// Whether it is about an interrupt request.
    #[must_use]
    pub const fn is_interrupt(self) -> bool {
        self.reason().condition().is_none()
    }

    /// What becomes of `request`. Untranslated requests always get Unsupported Request, which the specification
    /// recommends; a class that cannot meet the condition gets it too.
    #[must_use]
    pub fn response(self, request: &Request) -> Response {
        let class = match (request.kind, request.pasid.is_some()) {
            (RequestKind::Untranslated, _) => return Response::UnsupportedRequest,
            (RequestKind::Translation, false) => RequestClass::Translation,
            (RequestKind::Translation, true) => RequestClass::TranslationPasid,
            (RequestKind::Translated, false) => RequestClass::Translated,
            (RequestKind::Translated, true) => RequestClass::TranslatedPasid,
        };
        fault::Condition::named(self.name())
            .and_then(|line| line.response(class))
            .unwrap_or(Response::UnsupportedRequest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_named_condition_is_a_line_of_the_specification_with_the_same_code() {
        for condition in Condition::ALL
            .iter()
            .filter(|condition| !condition.name().starts_with('('))
        {
            let line = fault::Condition::named(condition.name()).expect("in the table");
            assert_eq!(line.reason, condition.reason(), "{}", condition.name());
        }
    }
}
