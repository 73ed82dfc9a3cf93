//! `iommu serve --boot`: QEMU as a child, with the unit where its firmware puts it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use iommu_serve::Server;
use iommu_serve::qemu;

use super::{Options, guest, write_table};
use crate::exit::{Failure, Verdict};

use super::voice::Voice;

/// How long firmware may take to place the unit's registers. Emulated processors are slow on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often is looked whether it has.
const PACE: Duration = Duration::from_millis(20);

/// A QEMU that does not outlive its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, and need not be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Learns the unit's address in a dry start, then runs the guest to its end.
pub(super) fn run(
    server: &Server,
    options: &Options,
    kernel: &Path,
    table: &Path,
    voice: &Voice,
) -> Result<Verdict, Failure> {
    let arguments = qemu::arguments(server, &guest(options, Some(kernel)), table);
    let base = learn(server, options, &arguments)?;
    write_table(server, table, base)?;
    let mut running = start(options, &arguments, Stdio::inherit())?;
    let status = running.0.wait().map_err(|why| failed(options, &why))?;
    let ended_at = server.machine().unit_base();
    if ended_at.is_some_and(|now| now != base) {
        return Err(Failure::Measure(format!(
            "firmware placed the unit at {base:#x} in the dry start and elsewhere in the real one: \
             the guest could not find it"
        )));
    }
    if !status.success() {
        return Err(Failure::Measure(format!("{} ended with {status}", options.qemu)));
    }
    summarise(server, voice);
    Ok(if voice.findings() == 0 {
        Verdict::Yes
    } else {
        Verdict::Findings
    })
}

fn summarise(server: &Server, voice: &Voice) {
    for slot in server.machine().slots() {
        let traffic = slot.traffic();
        let (received, sent) = (traffic.received(), traffic.sent());
        eprintln!("iommu: {}: {received} messages received, {sent} sent", slot.name());
    }
    eprintln!(
        "iommu: {} requests blocked, {} rules broken",
        voice.faults(),
        voice.findings()
    );
}

/// Starts QEMU until its firmware has placed the unit's registers and switched them on.
fn learn(server: &Server, options: &Options, arguments: &[String]) -> Result<u64, Failure> {
    let mut running = start(options, arguments, Stdio::null())?;
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if let Some(base) = server.machine().unit_base() {
            return Ok(base);
        }
        if let Some(status) = running.0.try_wait().map_err(|why| failed(options, &why))? {
            return Err(Failure::Measure(format!(
                "{} ended with {status} before its firmware ran",
                options.qemu
            )));
        }
        thread::sleep(PACE);
    }
    Err(Failure::Measure(format!(
        "firmware did not place the unit's registers within {} s",
        PATIENCE.as_secs()
    )))
}

fn start(options: &Options, arguments: &[String], console: Stdio) -> Result<Running, Failure> {
    Command::new(&options.qemu)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(console)
        .spawn()
        .map(Running)
        .map_err(|why| failed(options, &why))
}

fn failed(options: &Options, why: &std::io::Error) -> Failure {
    Failure::Measure(format!(
        "{}: {why}: name a QEMU of 10.1 or later with vfio-user-pci by --qemu",
        options.qemu
    ))
}
