//! `iommu serve --boot`: QEMU as a child, with the unit where its firmware puts it.

use std::process::Stdio;

use iommu_serve::Server;
use iommu_serve::qemu::{BootError, Launch};

use super::voice::Voice;
use crate::exit::{Failure, Verdict};

/// Learns the unit's address in a dry start, then runs the guest to its end.
pub(super) fn run(server: &Server, launch: &Launch, voice: &Voice) -> Result<Verdict, Failure> {
    let failed = |why: BootError| Failure::Measure(why.to_string());
    let base = launch.learn(server).map_err(failed)?;
    voice.expect(base);
    let mut running = launch.start(server, Stdio::inherit()).map_err(failed)?;
    let status = running
        .child()
        .wait()
        .map_err(|why| Failure::Measure(why.to_string()))?;
    if server.machine().unit_base().is_some_and(|now| now != base) {
        return Err(Failure::Measure(format!(
            "firmware placed the unit at {base:#x} in the dry start and elsewhere in the real one: \
             the guest could not find it"
        )));
    }
    if !status.success() {
        return Err(Failure::Measure(format!("QEMU ended with {status}")));
    }
    Voice::say(&summary(server, voice));
    Ok(if voice.findings() == 0 {
        Verdict::Yes
    } else {
        Verdict::Findings
    })
}

fn summary(server: &Server, voice: &Voice) -> String {
    let mut parts = Vec::new();
    for slot in server.machine().slots() {
        let traffic = slot.traffic();
        let (received, sent) = (traffic.received(), traffic.sent());
        parts.push(format!("{}: {received} messages received, {sent} sent", slot.name()));
    }
    parts.push(format!(
        "{} requests blocked, {} rules broken",
        voice.faults(),
        voice.findings()
    ));
    parts.join("; ")
}
