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
