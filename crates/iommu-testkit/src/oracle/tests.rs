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
