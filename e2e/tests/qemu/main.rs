//! The model against QEMU: the same random programs must give the same answers.
//!
//! `PORTCULLIS_QEMU` names the program and `PORTCULLIS_QEMU_DMAS` the number of DMAs; without the former the test
//! says that it compared nothing (`cargo xtask test` then counts it as skipped).
//!
//! Two models run beside QEMU. One has QEMU's profile ([`vtd_model::QemuVersion`]) and must give its answers to the
//! letter. The other follows the specification; where it differs, the difference must be one of a catalogue,
//! recognised by its cause and not by its effect, so that any other difference fails. The numbers up to D-49 are
//! those of the reference on emulators, the numbers with E were found here; both stand in the profile's table
//! ([`vtd_model::QemuVersion`]), with what the profile does not have. Two of them the test knows by itself: D-07 and
//! E-01 are fields of the record.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a test reports by panicking, its helpers too"
)]

mod interrupts;
mod legacy;
mod registers;
mod scalable;
mod trio;

use trio::Tally;

type Part = fn(u32) -> Result<Option<Tally>, e2e::qtest::QtestError>;

/// The parts, and the share of the DMAs that each gets in percent. Those that every QEMU has come to all.
const PARTS: [(&str, Part, u32); 5] = [
    ("legacy mode", legacy::run, 50),
    ("scalable mode, second stage", scalable::second_stage, 50),
    ("scalable mode, first stage", scalable::first_stage, 30),
    ("interrupt remapping", interrupts::run, 30),
    ("registers", registers::run, 30),
];

#[test]
fn random_programs_give_the_same_answers_on_qemu_and_on_the_model() {
    if std::env::var_os("PORTCULLIS_QEMU").is_none() {
        println!("compared: nothing, PORTCULLIS_QEMU names no QEMU");
        return;
    }
    let dmas = std::env::var("PORTCULLIS_QEMU_DMAS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(2000);
    let mut total = Tally::default();
    // Each part has a QEMU of its own.
    let parts = std::thread::scope(|scope| {
        let running = PARTS.map(|(name, run, share)| (name, scope.spawn(move || run(dmas / 100 * share))));
        running.map(|(name, part)| {
            let tally = part
                .join()
                .unwrap_or_else(|_| panic!("the part `{name}` failed, see above"));
            (name, tally.expect("QEMU stays alive"))
        })
    });
    for (name, tally) in parts {
        match tally {
            Some(tally) => {
                println!("{name}: {tally}");
                total.add(&tally);
            }
            None => println!("{name}: this QEMU does not have it"),
        }
    }
    println!("compared: {total}");
}
