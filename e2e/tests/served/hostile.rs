//! A guest that does everything that no driver does.

use std::fs;
use std::panic;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vtd_model::UnitConfig;

use crate::programs;
use crate::rig::{Rig, watched};

/// How long the guest attacks by default, in seconds of its own clock.
const SECONDS: u64 = 30;
/// How much memory of its own the server may take meanwhile. The caches of the unit and of the sanitizer and the engine's
/// buffer are all that is to grow; the guest's memory is shared and does not count.
const GROWTH_MAX: u64 = 64 << 20;
/// The guest may hit itself with a DMA and die; then the next one goes on. So often that happens at most.
const BOOTS_MAX: u64 = 24;
/// The threads of the server: one for each function.
const THREADS: [&str; 3] = ["disk0", "engine", "unit"];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Memory of this process that it shares with nobody, in bytes.
fn own_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    let kibibytes: u64 = line.trim().strip_suffix("kB").unwrap().trim().parse().unwrap();
    kibibytes << 10
}

/// The names of the server's threads that live.
fn threads() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir("/proc/self/task")
        .unwrap()
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("comm")).ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| THREADS.contains(&name.as_str()))
        .collect();
    names.sort();
    names
}

/// The seconds and rounds of a line that tells of progress.
fn progress(line: &str) -> Option<(u64, u64)> {
    let (seconds, rounds) = line.strip_prefix("hostile second ")?.split_once(" rounds ")?;
    Some((seconds.parse().ok()?, rounds.parse().ok()?))
}

#[test]
fn a_hostile_guest_leaves_the_server_up_and_its_memory_bounded() {
    let Some(programs) = programs(false) else { return };
    let Some(kernel) = std::env::var_os("PORTCULLIS_HOSTILE").map(PathBuf::from) else {
        println!("compared: nothing, since no hostile kernel is named");
        return;
    };
    let wanted = number("PORTCULLIS_HOSTILE_SECONDS").unwrap_or(SECONDS);
    let first = number("PORTCULLIS_HOSTILE_SEED").unwrap_or(1);

    let unit = watched(UnitConfig::builder().full_scalable_mode()).device_tlb(true);
    let mut rig = Rig::new(&programs, unit);
    let usual = rig.boot_instead(&kernel);
    let panics = Arc::new(AtomicU64::new(0));
    count_panics_of_the_server(&panics);
    let before = own_memory();
    let (mut most, mut seconds, mut rounds, mut boots) = (before, 0, 0, 0);
    while seconds < wanted {
        assert!(
            boots < BOOTS_MAX,
            "the guest does not get far: {seconds} s in {boots} boots"
        );
        let words = format!("hostile={} seed={}", wanted - seconds, first + boots);
        let mut reached = (0, 0);
        let talk = rig.run("hostile", &words, |_, line| {
            most = most.max(own_memory());
            reached = progress(line).unwrap_or(reached);
            line != "end"
        });
        assert!(talk.says("hostile begins"), "{words}\n{}", talk.console);
        // Whatever the guest did to itself, the server is to be as it was.
        assert_eq!(threads(), THREADS, "{words}\n{}", talk.console);
        assert_eq!(panics.load(Ordering::SeqCst), 0, "{words}\n{}", talk.console);
        seconds += reached.0;
        rounds += reached.1;
        boots += 1;
    }
    assert!(most - before < GROWTH_MAX, "{} bytes more", most - before);
    // The attacks got as far as the unit's tables and queues.
    let (faults, broken) = (
        rig.said.faults.lock().unwrap().len(),
        rig.said.broken.lock().unwrap().len(),
    );
    assert!(faults > 0 && broken > 0, "{faults} faults, {broken} broken rules");

    // And a guest that behaves is served: its firmware finds everything in its place, and Linux does where there is time for it.
    rig.said.faults.lock().unwrap().clear();
    rig.said.broken.lock().unwrap().clear();
    rig.boot(usual);
    let then = if crate::is_full() {
        let talk = rig.run("disk", "iommu.strict=1", |_, _| true);
        for step in ["made", "mounted", "same", "end"] {
            assert!(talk.says(step), "{step}\n{}", talk.console);
        }
        assert_eq!(talk.trouble(), Vec::<&str>::new(), "{}", talk.console);
        "Linux"
    } else {
        rig.dry_start();
        "firmware"
    };
    assert_eq!(rig.said.rules(), Vec::<&str>::new(), "{:?}", rig.said.broken);
    println!(
        "also: a hostile guest: {seconds} s, {rounds} rounds, {boots} boots, {} KiB more memory; then {then} was served",
        (most - before) >> 10
    );
}

/// Counts panics in the server's threads, besides reporting them as usual.
fn count_panics_of_the_server(panics: &Arc<AtomicU64>) {
    let (usual, panics) = (panic::take_hook(), Arc::clone(panics));
    panic::set_hook(Box::new(move |info| {
        if std::thread::current()
            .name()
            .is_some_and(|name| THREADS.contains(&name))
        {
            panics.fetch_add(1, Ordering::SeqCst);
        }
        usual(info);
    }));
}
