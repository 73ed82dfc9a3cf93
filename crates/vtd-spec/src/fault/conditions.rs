//! The specification's fault table.

use super::FaultReason;

/// The classes of requests that the fault table tells apart. VT-d §7.1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestClass {
    /// Untranslated request without PASID.
    Untranslated,
    /// Untranslated request with PASID.
    UntranslatedPasid,
    /// Translation request without PASID.
    Translation,
    /// Translation request with PASID.
    TranslationPasid,
    /// Translated request without PASID.
    Translated,
    /// Translated request with PASID.
    TranslatedPasid,
    /// Page request, with or without PASID.
    PageRequest,
}

impl RequestClass {
    /// All classes, in the order of the table's columns.
    pub const ALL: [Self; 7] = [
        Self::Untranslated,
        Self::UntranslatedPasid,
        Self::Translation,
        Self::TranslationPasid,
        Self::Translated,
        Self::TranslatedPasid,
        Self::PageRequest,
    ];

    const fn column(self) -> usize {
        match self {
            Self::Untranslated => 0,
            Self::UntranslatedPasid => 1,
            Self::Translation => 2,
            Self::TranslationPasid => 3,
            Self::Translated => 4,
            Self::TranslatedPasid => 5,
            Self::PageRequest => 6,
        }
    }
}

/// What becomes of a request that meets a fault condition. VT-d §7.1.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Response {
    /// UR: reads complete as Unsupported Request, writes are dropped.
    UnsupportedRequest,
    /// CA: completes as Completer Abort.
    CompleterAbort,
    /// A translation completion with success and no permission at all.
    SuccessWithoutAccess,
    /// A translation completion with success and the permissions that the tables grant.
    SuccessWithGranted,
    /// A page group response with code Invalid Request, if the request asks for a response; else it is dropped.
    InvalidRequest,
}

/// One line of the fault table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The specification's name, such as `LCT.4.1`.
    pub name: &'static str,
    /// The code that a fault record shows.
    pub reason: FaultReason,
    /// For each class of [`RequestClass::ALL`]; `None` where the class cannot meet the condition.
    pub responses: [Option<Response>; 7],
}

impl Condition {
    /// The condition with a name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        CONDITIONS.iter().find(|condition| condition.name == name)
    }

    /// What becomes of a request of a class; `None` if it cannot meet the condition.
    #[must_use]
    pub const fn response(&self, class: RequestClass) -> Option<Response> {
        self.responses[class.column()]
    }
}

const fn row(name: &'static str, reason: FaultReason, responses: [Option<Response>; 7]) -> Condition {
    Condition {
        name,
        reason,
        responses,
    }
}

const UR: Option<Response> = Some(Response::UnsupportedRequest);
const CA: Option<Response> = Some(Response::CompleterAbort);
const S0: Option<Response> = Some(Response::SuccessWithoutAccess);
const SE: Option<Response> = Some(Response::SuccessWithGranted);
const IR: Option<Response> = Some(Response::InvalidRequest);
const NO: Option<Response> = None;

/// The fault table, by code. Columns as in [`RequestClass::ALL`]. VT-d §7.1.3.
#[rustfmt::skip] // one condition a line, as in the specification
pub const CONDITIONS: [Condition; 87] = [
    row("LRT.2", FaultReason::ROOT_NOT_PRESENT, [UR, NO, UR, NO, UR, NO, NO]),
    row("LCT.2", FaultReason::CONTEXT_NOT_PRESENT, [UR, NO, UR, NO, UR, NO, NO]),
    row("LCT.4.1", FaultReason::CONTEXT_INVALID, [UR, NO, CA, NO, UR, NO, NO]),
    row("LCT.4.2", FaultReason::CONTEXT_INVALID, [UR, NO, CA, NO, UR, NO, NO]),
    row("LCT.4.3", FaultReason::CONTEXT_INVALID, [UR, NO, CA, NO, NO, NO, NO]),
    row("LGN.1.1", FaultReason::ADDRESS_BEYOND_WIDTH, [UR, NO, S0, NO, NO, NO, NO]),
    row("LGN.1.2", FaultReason::ADDRESS_BEYOND_WIDTH, [NO, NO, NO, NO, UR, NO, NO]),
    row("LGN.1.3", FaultReason::ADDRESS_BEYOND_WIDTH, [UR, NO, NO, NO, NO, NO, NO]),
    row("LGN.2", FaultReason::WRITE_DENIED, [UR, NO, SE, NO, NO, NO, NO]),
    row("LGN.3", FaultReason::READ_DENIED, [UR, NO, SE, NO, NO, NO, NO]),
    row("LSS.1", FaultReason::PAGING_ENTRY_ACCESS, [UR, NO, CA, NO, NO, NO, NO]),
    row("LRT.1", FaultReason::ROOT_ACCESS, [UR, NO, CA, NO, UR, NO, NO]),
    row("LCT.1", FaultReason::CONTEXT_ACCESS, [UR, NO, CA, NO, UR, NO, NO]),
    row("LRT.3", FaultReason::ROOT_RESERVED, [UR, NO, CA, NO, UR, NO, NO]),
    row("LCT.3", FaultReason::CONTEXT_RESERVED, [UR, NO, CA, NO, UR, NO, NO]),
    row("LSS.2", FaultReason::PAGING_RESERVED, [UR, NO, CA, NO, NO, NO, NO]),
    row("LCT.5", FaultReason::DEVICE_TLB_BLOCKED, [NO, NO, UR, NO, UR, NO, NO]),
    row("LGN.4", FaultReason::OUTPUT_IN_INTERRUPT_RANGE, [UR, NO, CA, NO, UR, NO, NO]),
    row("RTA.1.1", FaultReason::TABLE_MODE_INVALID, [UR, UR, CA, CA, UR, UR, IR]),
    row("RTA.1.2", FaultReason::TABLE_MODE_INVALID, [UR, UR, CA, CA, UR, UR, IR]),
    row("RTA.1.3", FaultReason::TABLE_MODE_INVALID, [UR, UR, CA, CA, UR, UR, IR]),
    row("RTA.1.4", FaultReason::TABLE_MODE_INVALID, [UR, NO, CA, NO, UR, NO, NO]),
    row("RTA.2", FaultReason::PASID_IN_LEGACY_MODE, [NO, UR, NO, UR, NO, UR, NO]),
    row("RTA.3", FaultReason::PAGE_REQUEST_IN_LEGACY_MODE, [NO, NO, NO, NO, NO, NO, IR]),
    row("RTA.4", FaultReason::ABORT_DMA, [UR, UR, UR, UR, UR, UR, IR]),
    row("RTA.5", FaultReason::EXECUTE_REQUESTED, [NO, UR, NO, UR, NO, UR, NO]),
    row("SRT.1", FaultReason::SCALABLE_ROOT_ACCESS, [UR, UR, CA, CA, UR, UR, IR]),
    row("SRT.2", FaultReason::SCALABLE_ROOT_NOT_PRESENT, [UR, UR, UR, UR, UR, UR, IR]),
    row("SRT.3", FaultReason::SCALABLE_ROOT_RESERVED, [UR, UR, CA, CA, UR, UR, IR]),
    row("SCT.1", FaultReason::SCALABLE_CONTEXT_ACCESS, [UR, UR, CA, CA, UR, UR, IR]),
    row("SCT.2", FaultReason::SCALABLE_CONTEXT_NOT_PRESENT, [UR, UR, UR, UR, UR, UR, IR]),
    row("SCT.3", FaultReason::SCALABLE_CONTEXT_RESERVED, [UR, UR, CA, CA, UR, UR, IR]),
    row("SCT.4.1", FaultReason::SCALABLE_CONTEXT_INVALID, [UR, UR, CA, CA, UR, UR, IR]),
    row("SCT.4.2", FaultReason::SCALABLE_CONTEXT_INVALID, [UR, UR, CA, CA, UR, UR, IR]),
    row("SCT.4.3", FaultReason::SCALABLE_CONTEXT_INVALID, [UR, NO, CA, NO, UR, UR, IR]),
    row("SCT.5", FaultReason::DEVICE_TLB_DISABLED, [NO, NO, UR, UR, UR, UR, NO]),
    row("SCT.6", FaultReason::PASID_DISABLED, [NO, UR, NO, UR, NO, NO, IR]),
    row("SCT.7", FaultReason::PASID_BEYOND_DIRECTORY, [NO, UR, NO, UR, NO, UR, IR]),
    row("SCT.8", FaultReason::PAGE_REQUEST_DISABLED, [NO, NO, NO, NO, NO, NO, IR]),
    row("SCT.9", FaultReason::PASID_IS_RID_PASID, [NO, UR, NO, UR, NO, UR, IR]),
    row("SCT.10", FaultReason::TRANSLATED_PASID_DISABLED, [NO, NO, NO, NO, NO, UR, NO]),
    row("SPD.1", FaultReason::PASID_DIRECTORY_ACCESS, [UR, UR, CA, CA, CA, CA, IR]),
    row("SPD.2", FaultReason::PASID_DIRECTORY_NOT_PRESENT, [UR, UR, S0, S0, UR, UR, IR]),
    row("SPD.3", FaultReason::PASID_DIRECTORY_RESERVED, [UR, UR, CA, CA, CA, CA, IR]),
    row("SPT.1", FaultReason::PASID_ENTRY_ACCESS, [UR, UR, CA, CA, CA, CA, IR]),
    row("SPT.2", FaultReason::PASID_ENTRY_NOT_PRESENT, [UR, UR, S0, S0, UR, UR, IR]),
    row("SPT.3", FaultReason::PASID_ENTRY_RESERVED, [UR, UR, CA, CA, CA, CA, IR]),
    row("SPT.4.1", FaultReason::PASID_ENTRY_INVALID, [UR, UR, CA, CA, CA, CA, IR]),
    row("SPT.4.2", FaultReason::PASID_ENTRY_INVALID, [UR, UR, CA, CA, CA, CA, IR]),
    row("SPT.4.3", FaultReason::PASID_ENTRY_INVALID, [UR, UR, CA, CA, CA, CA, IR]),
    row("SPT.4.4", FaultReason::PASID_ENTRY_INVALID, [UR, UR, CA, CA, CA, CA, IR]),
    row("SPT.5", FaultReason::EXECUTE_DISABLED, [NO, UR, NO, S0, NO, NO, NO]),
    row("SPT.6", FaultReason::SUPERVISOR_DISABLED, [UR, UR, S0, S0, NO, NO, NO]),
    row("SPT.9", FaultReason::HPT_ADDRESS_BEYOND_TABLE, [NO, NO, NO, NO, UR, UR, NO]),
    row("SFS.1", FaultReason::FIRST_STAGE_ENTRY_ACCESS, [UR, UR, S0, S0, NO, NO, NO]),
    row("SFS.2", FaultReason::FIRST_STAGE_NOT_PRESENT, [UR, UR, S0, S0, NO, NO, NO]),
    row("SFS.3", FaultReason::FIRST_STAGE_RESERVED, [UR, UR, S0, S0, NO, NO, NO]),
    row("SFS.4", FaultReason::FIRST_STAGE_ROOT_ACCESS, [UR, UR, S0, S0, NO, NO, NO]),
    row("SFS.5", FaultReason::FIRST_STAGE_ADDRESS_BEYOND_WIDTH, [UR, UR, S0, S0, NO, NO, NO]),
    row("SFS.6", FaultReason::FIRST_STAGE_ROOT_UNREADABLE, [UR, UR, S0, S0, NO, NO, NO]),
    row("SFS.7", FaultReason::FIRST_STAGE_TABLE_UNREADABLE, [UR, UR, S0, S0, NO, NO, NO]),
    row("SFS.8", FaultReason::FIRST_STAGE_TABLE_UNWRITABLE, [UR, UR, S0, S0, NO, NO, NO]),
    row("SSS.1", FaultReason::SECOND_STAGE_ENTRY_ACCESS, [UR, UR, CA, CA, NO, NO, NO]),
    row("SSS.2", FaultReason::SECOND_STAGE_NOT_PRESENT, [UR, UR, S0, S0, NO, NO, NO]),
    row("SSS.3", FaultReason::SECOND_STAGE_RESERVED, [UR, UR, CA, CA, NO, NO, NO]),
    row("SSS.4", FaultReason::SECOND_STAGE_ROOT_ACCESS, [UR, UR, CA, CA, NO, NO, NO]),
    row("SSS.5", FaultReason::SECOND_STAGE_FLAGS_NOT_SNOOPED, [UR, UR, CA, CA, NO, NO, NO]),
    row("SSS.6", FaultReason::SECOND_STAGE_FLAGS_FAILED, [UR, UR, CA, CA, NO, NO, NO]),
    row("SGN.1", FaultReason::NOT_CANONICAL, [UR, UR, S0, S0, NO, NO, NO]),
    row("SGN.2", FaultReason::USER_DENIED, [UR, UR, S0, S0, NO, NO, NO]),
    row("SGN.4.1", FaultReason::ADDRESS_BEYOND_HOST, [NO, NO, NO, NO, UR, UR, NO]),
    row("SGN.4.2", FaultReason::ADDRESS_BEYOND_HOST, [UR, UR, S0, S0, NO, NO, NO]),
    row("SGN.5", FaultReason::SCALABLE_ADDRESS_BEYOND_WIDTH, [UR, UR, S0, S0, NO, NO, NO]),
    row("SGN.6", FaultReason::SCALABLE_WRITE_DENIED, [UR, UR, SE, SE, NO, NO, NO]),
    row("SGN.7", FaultReason::SCALABLE_READ_DENIED, [UR, UR, SE, SE, NO, NO, NO]),
    row("SGN.8.1", FaultReason::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE, [UR, UR, CA, CA, UR, UR, NO]),
    row("SGN.8.2", FaultReason::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE, [UR, UR, CA, CA, UR, UR, NO]),
    row("SGN.8.3", FaultReason::SCALABLE_OUTPUT_IN_INTERRUPT_RANGE, [UR, UR, CA, CA, UR, UR, NO]),
    row("SGN.10", FaultReason::PASID_TOO_WIDE, [NO, UR, NO, UR, NO, UR, NO]),
    row("SFS.9", FaultReason::FIRST_STAGE_FLAGS_NOT_SNOOPED, [UR, UR, S0, S0, NO, NO, NO]),
    row("SFS.10", FaultReason::FIRST_STAGE_FLAGS_FAILED, [UR, UR, S0, S0, NO, NO, NO]),
    row("HPT.1", FaultReason::HPT_ENTRY_ACCESS, [NO, NO, NO, NO, CA, CA, NO]),
    row("HPT.2", FaultReason::HPT_RESERVED, [NO, NO, NO, NO, CA, CA, NO]),
    row("HPT.3", FaultReason::HPT_ROOT_ACCESS, [NO, NO, NO, NO, CA, CA, NO]),
    row("HPT.4", FaultReason::HPT_ZERO_LENGTH_READ_DENIED, [NO, NO, NO, NO, UR, UR, NO]),
    row("HPT.5", FaultReason::HPT_WRITE_DENIED, [NO, NO, NO, NO, UR, UR, NO]),
    row("HPT.6", FaultReason::HPT_READ_DENIED, [NO, NO, NO, NO, UR, UR, NO]),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Spot values typed from the table, one of each kind.
    #[test]
    fn responses_match_the_table() {
        use RequestClass::{PageRequest, Translated, Translation, TranslationPasid, Untranslated, UntranslatedPasid};
        let response = |name, class| Condition::named(name).expect("in the table").response(class);
        assert_eq!(response("LRT.2", Translation), UR);
        assert_eq!(response("LRT.1", Translation), CA);
        assert_eq!(response("LGN.1.1", Translation), S0);
        assert_eq!(response("LGN.2", Translation), SE);
        assert_eq!(response("LGN.2", UntranslatedPasid), NO);
        assert_eq!(response("SCT.4.3", UntranslatedPasid), NO);
        assert_eq!(response("SCT.4.1", UntranslatedPasid), UR);
        assert_eq!(response("SPD.2", TranslationPasid), S0);
        assert_eq!(response("SPT.4.4", Translated), CA);
        assert_eq!(response("HPT.2", Translated), CA);
        assert_eq!(response("RTA.3", PageRequest), IR);
        assert_eq!(response("RTA.3", Untranslated), NO);
    }

    #[test]
    fn conditions_that_share_a_code_agree_on_every_response() {
        for a in &CONDITIONS {
            for b in a.reason.conditions() {
                for class in RequestClass::ALL {
                    if let (Some(x), Some(y)) = (a.response(class), b.response(class)) {
                        assert_eq!(x, y, "{} and {} for {class:?}", a.name, b.name);
                    }
                }
            }
        }
    }

    #[test]
    fn every_known_reason_but_the_removed_one_has_a_condition_or_is_about_interrupts() {
        for code in 0..=255 {
            let reason = FaultReason(code);
            let listed = reason.conditions().next().is_some() || reason.is_interrupt();
            let expected = reason.name().is_some() && reason != FaultReason::EXECUTE_DENIED;
            assert_eq!(listed, expected, "{reason:?}");
        }
    }

    #[test]
    fn names_extend_the_name_of_their_reason() {
        for condition in &CONDITIONS {
            let family = condition.reason.condition().expect("named");
            let rest = condition.name.strip_prefix(family).expect("same family");
            assert!(rest.is_empty() || rest.starts_with('.'), "{}", condition.name);
        }
    }
}
