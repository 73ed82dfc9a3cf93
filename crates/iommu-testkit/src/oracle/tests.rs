mod interrupt;
mod legacy;
mod scalable;

use super::*;

/// The outcome reduced to what most tests ask for: host address, or fault reason and suppression.
fn brief(outcome: OracleOutcome) -> Result<u64, (u8, bool)> {
    match outcome {
        OracleOutcome::Pass { host, .. } => Ok(host),
        OracleOutcome::Fault { reason, suppressed, .. } => Err((reason, suppressed)),
        other => panic!("neither pass nor fault: {other:?}"),
    }
}

/// The whole column T of the fault table (VT-d §7.1.3), one letter a reason.
#[test]
fn translation_requests_get_the_completion_of_the_fault_table() {
    let success = [
        0x04, 0x51, 0x59, 0x5c, 0x5d, 0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x79, 0x80, 0x81, 0x83, 0x84,
        0x90, 0x91,
    ];
    let unsupported = [
        0x01, 0x02, 0x0d, 0x31, 0x33, 0x34, 0x39, 0x41, 0x44, 0x45, 0x46, 0x48, 0x89,
    ];
    let abort = [
        0x03, 0x07, 0x08, 0x09, 0x0a, 0x0b, 0x0c, 0x0e, 0x30, 0x38, 0x3a, 0x40, 0x42, 0x43, 0x50, 0x52, 0x58, 0x5a,
        0x5b, 0x78, 0x7a, 0x7b, 0x7c, 0x7d, 0x87,
    ];
    let response = |reason, kind| match blocked(qualified(reason, ""), false, kind) {
        OracleOutcome::Fault { response, .. } => response,
        other => panic!("no fault: {other:?}"),
    };
    for reason in 0..=u8::MAX {
        assert_eq!(recoverable(reason), success.contains(&reason), "{reason:#x}");
        if unsupported.contains(&reason) {
            assert_eq!(
                response(reason, OracleKind::T),
                Response::UnsupportedRequest,
                "{reason:#x}"
            );
        }
        if abort.contains(&reason) {
            assert_eq!(response(reason, OracleKind::T), Response::CompleterAbort, "{reason:#x}");
        }
        assert_eq!(response(reason, OracleKind::U), Response::UnsupportedRequest);
        let aborts = [0x50, 0x52, 0x58, 0x5a, 0x5b, 0xa0, 0xa1, 0xa2].contains(&reason);
        let translated = response(reason, OracleKind::X) == Response::CompleterAbort;
        assert_eq!(translated, aborts, "{reason:#x}");
    }
}
