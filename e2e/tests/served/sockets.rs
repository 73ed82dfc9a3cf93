//! One socket of several that ends while the disk is written.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::ending::are_there;
use crate::programs;
use crate::rig::{Rig, unit};

/// Who ends the connection.
#[derive(Clone, Copy, Debug)]
enum Side {
    Client,
    Server,
}

/// Where the connection ends: how many blocks were acknowledged by then, and how much later that is, in microseconds. Writes
/// are under way then, in any state.
type Moment = (usize, u64);

/// What the engine's first register holds; all-ones if nobody answers.
const ENGINE: &str = "engine 0x010000ED";
/// Signs of life of the other functions that are waited for.
const SIGNS: usize = 5;
/// How long both ends may take to notice; against hanging only.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ends the connection of `name` from one side.
fn end(rig: &Rig, name: &str, side: Side) {
    match side {
        Side::Server => assert!(rig.server().hang_up(name)),
        Side::Client => shut_down(rig.qemu(), &rig.socket(name)),
    }
}

/// Shuts down the socket of process `pid` that is connected to `path`, and no other.
fn shut_down(pid: u32, path: &Path) {
    let process = Pid::from_raw(pid.try_into().unwrap()).unwrap();
    let process = pidfd_open(process, PidfdFlags::empty()).unwrap();
    let numbers = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut found = 0;
    for number in numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
        // What was closed meanwhile was not the socket.
        let Ok(file) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else {
            continue;
        };
        let socket = UnixStream::from(file);
        if socket.peer_addr().is_ok_and(|peer| peer.as_pathname() == Some(path)) {
            socket.shutdown(std::net::Shutdown::Both).unwrap();
            found += 1;
        }
    }
    assert_eq!(found, 1, "{}", path.display());
}

/// What both ends have said so far: notices about connections that have ended, and bytes of QEMU's complaints.
fn said(rig: &Rig) -> (usize, usize) {
    (rig.said.notices.lock().unwrap().len(), rig.complaints().len())
}

/// Waits until both ends have said more than `before`: the new notices, the server's first.
fn wait_for_both(rig: &Rig, before: (usize, usize)) -> Vec<String> {
    let bad = ["failed to read header", "Unable to write to socket"];
    let begun = Instant::now();
    loop {
        let notices: Vec<_> = rig
            .said
            .notices
            .lock()
            .unwrap()
            .iter()
            .skip(before.0)
            .cloned()
            .collect();
        let complaints = rig.complaints().split_off(before.1);
        if !notices.is_empty() && bad.iter().any(|words| complaints.contains(words)) {
            return notices;
        }
        assert!(begun.elapsed() < PATIENCE, "{notices:?}\n{complaints}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The socket takes a client, whose version is answered.
fn takes_a_client(path: &Path) {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    // Message 1, command 1, 20 bytes in all: version 0.1, without capabilities.
    client
        .write_all(&[1, 0, 1, 0, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0])
        .unwrap();
    let mut answer = [0; 16];
    client.read_exact(&mut answer).unwrap();
    // The same message, a reply, no error.
    assert_eq!(
        (&answer[..4], answer[8], &answer[12..]),
        (&[1, 0, 1, 0][..], 1, &[0; 4][..])
    );
}

/// Ends one connection while the disk is written. The others live on, nothing acknowledged is lost, and the socket takes the
/// next client.
fn one_ends(name: &str, side: Side, (enough, later): Moment) {
    let Some(programs) = programs(true) else { return };
    let mut rig = Rig::new(&programs, unit());
    let case = format!("{name}, {side:?}, {enough} blocks and {later} us");
    let mut acknowledged = BTreeSet::new();
    let (mut answers, mut since) = (0, None);
    let mut notices = Vec::new();
    let talk = rig.run("sockets", "", |rig, line| {
        if let Some(number) = line.strip_prefix("wrote ") {
            acknowledged.insert(number.parse().unwrap());
        }
        answers += usize::from(line == ENGINE);
        let faults = rig.said.faults.lock().unwrap().len();
        match since {
            None if acknowledged.len() >= enough && answers > 0 && faults > 0 => {
                thread::sleep(Duration::from_micros(later));
                let before = said(rig);
                end(rig, name, side);
                notices = wait_for_both(rig, before);
                since = Some((acknowledged.len(), answers, faults));
                takes_a_client(&rig.socket(name));
            }
            _ => {}
        }
        let Some((blocks, earlier, blocked)) = since else {
            return true;
        };
        match name {
            // Without its unit, Linux waits for ever for the next invalidation.
            "unit" => false,
            // The engine's registers answer, and the unit goes on to block and to report what it does.
            "disk0" => answers < earlier + SIGNS || faults < blocked + SIGNS,
            _ => acknowledged.len() < blocks + SIGNS,
        }
    });
    let what = format!("{case}\n{}", talk.console);
    let (_, earlier, blocked) = since.expect(&what);
    let why = match side {
        Side::Client => "closed by the client",
        Side::Server => "this side ended it",
    };
    // Nobody else's connection has ended.
    assert_eq!(notices, [format!("{name}: {why}")], "{what}");
    if name == "disk0" {
        assert!(
            answers >= earlier + SIGNS && rig.said.faults.lock().unwrap().len() >= blocked + SIGNS,
            "{what}"
        );
    }
    are_there(&acknowledged, |number| rig.block(number));
    // A new QEMU finds everything in its place.
    let again = rig.run("disk", "", |_, _| true);
    assert!(again.says("same"), "{case}\n{}", again.console);
    println!(
        "also: one socket ended ({case}): the others live on, none of {} acknowledged writes is lost",
        acknowledged.len()
    );
}

#[test]
fn a_disk_that_loses_its_client_leaves_the_other_functions_and_all_acknowledged_writes() {
    one_ends("disk0", Side::Client, (3, 1_700));
    one_ends("disk0", Side::Client, (41, 9_300));
}

#[test]
fn a_disk_that_ends_its_connection_leaves_the_other_functions_and_all_acknowledged_writes() {
    one_ends("disk0", Side::Server, (17, 4_100));
    one_ends("disk0", Side::Server, (88, 300));
}

#[test]
fn a_unit_whose_connection_ends_leaves_connections_and_all_acknowledged_writes() {
    one_ends("unit", Side::Client, (29, 6_900));
    one_ends("unit", Side::Server, (7, 2_300));
}

#[test]
fn an_engine_whose_connection_ends_leaves_the_disk_that_goes_on_writing() {
    one_ends("engine", Side::Client, (11, 3_700));
    one_ends("engine", Side::Server, (53, 12_100));
}
