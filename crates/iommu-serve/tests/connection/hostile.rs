//! Clients that break the protocol: they get errors or lose their connection, and nobody else notices.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use iommu_devices::{Bar, Bus, ConfigSpace, Function, ResetKind};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use vtd_model::UnitConfig;

use crate::Rig;
use crate::client::{CONFIG, Client, guest_memory, words};

/// The server answers a well-behaved client.
fn lives(rig: &Rig, socket: &str) {
    let mut client = Client::agreed(&rig.socket(socket));
    assert_eq!(client.read(CONFIG, 0, 2).unwrap().len(), 2);
}

#[test]
fn nothing_is_done_before_the_version_is_agreed_on() {
    let rig = Rig::new();
    let mut client = Client::connect(&rig.socket("engine"));
    assert_eq!(client.ask(4, &[0; 16]), Err(22));
    assert_eq!(client.ask(1, &[9, 0, 0, 0]), Err(22));
    drop(client);
    lives(&rig, "engine");
}

#[test]
fn requests_outside_the_device_are_refused_and_the_connection_goes_on() {
    let rig = Rig::new();
    let mut client = Client::agreed(&rig.socket("engine"));
    assert_eq!(client.read(CONFIG, 0xfff, 2), Err(22));
    assert_eq!(client.read(CONFIG, u64::MAX, 1), Err(22));
    assert_eq!(client.read(99, 0, 1), Err(22));
    assert_eq!(client.write(1, 0, &[0]), Err(22));
    assert_eq!(client.ask(5, &words(&[32, 0, 9, 0])), Err(22));
    assert_eq!(client.ask(6, &words(&[16, 0, 0, 0])), Err(95));
    assert_eq!(client.ask(14, &[]), Err(95));
    assert_eq!(client.ask(9, &[1, 2, 3]), Err(22));
    assert_eq!(client.read(CONFIG, 0, 4).unwrap().len(), 4);
    assert!(
        rig.said
            .refusals
            .lock()
            .unwrap()
            .iter()
            .any(|why| why.contains("region 99"))
    );
}

#[test]
fn file_descriptors_that_do_not_belong_are_refused() {
    let rig = Rig::new();
    let mut client = Client::agreed(&rig.socket("engine"));
    let memory = guest_memory(0x2000);
    let mut payload = words(&[32, 3]);
    payload.extend([0; 16]);
    payload.extend(0x1000u64.to_le_bytes());
    assert_eq!(client.ask_with(2, &payload, &[&memory, &memory]), Err(22));
    let many: Vec<_> = (0..17).map(|_| &memory).collect();
    client.send(2, 0, &payload, &many);
    // More than agreed ends the connection.
    let mut rest = Vec::new();
    let _ = client.socket.read_to_end(&mut rest);
    assert!(rest.is_empty());
    lives(&rig, "engine");
}

#[test]
fn a_connection_that_ends_anywhere_leaves_a_server_that_serves() {
    let rig = Rig::new();
    let mut message = Vec::new();
    message.extend([1, 0, 2, 0]);
    message.extend(words(&[48, 0, 0]));
    message.extend([0; 32]);
    for cut in 0..message.len() {
        let mut client = Client::connect(&rig.socket("engine"));
        client.socket.write_all(&message[..cut]).unwrap();
        drop(client);
    }
    lives(&rig, "engine");
}

#[test]
fn a_length_beyond_the_limit_ends_the_connection_without_its_bytes_being_kept() {
    let rig = Rig::new();
    let mut client = Client::connect(&rig.socket("unit"));
    let mut message = vec![1, 0, 10, 0];
    message.extend(words(&[u32::MAX, 0, 0]));
    client.socket.write_all(&message).unwrap();
    let mut rest = Vec::new();
    client.socket.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    lives(&rig, "unit");
    let ended = rig.said.ended.lock().unwrap().clone();
    assert!(
        ended
            .iter()
            .flatten()
            .any(|why| why.contains("longer than the agreed limit")),
        "{ended:?}"
    );
}

#[test]
fn random_messages_leave_a_server_that_serves() {
    let rig = Rig::new();
    let mut runner = TestRunner::new(Config {
        cases: 64,
        failure_persistence: None,
        ..Config::default()
    });
    let message = (0u16..20, any::<u32>(), proptest::collection::vec(any::<u8>(), 0..64));
    let messages = proptest::collection::vec(message, 1..20);
    let unit = any::<bool>();
    runner
        .run(&(unit, messages), |(unit, messages)| {
            let mut client = Client::agreed(&rig.socket(if unit { "unit" } else { "engine" }));
            for (command, flags, payload) in messages {
                let mut bytes = vec![1, 0];
                bytes.extend(command.to_le_bytes());
                bytes.extend(u32::try_from(16 + payload.len()).unwrap().to_le_bytes());
                bytes.extend((flags & 0x11).to_le_bytes());
                bytes.extend([0; 4]);
                bytes.extend(&payload);
                if client.socket.write_all(&bytes).is_err() {
                    break;
                }
            }
            Ok(())
        })
        .unwrap();
    lives(&rig, "unit");
    lives(&rig, "engine");
}

/// A function with a mistake: it panics when it is written to, and if `twice` when it is reset after that.
#[derive(Debug)]
struct Mistaken {
    config: ConfigSpace,
    written: bool,
    twice: bool,
}

impl Mistaken {
    fn boxed(twice: bool) -> Box<Self> {
        let config = ConfigSpace::function(1, 2).bar(0, Bar::memory32(4096)).build().unwrap();
        let written = false;
        Box::new(Self { config, written, twice })
    }
}

impl Function for Mistaken {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn bar_read(&mut self, _: u8, _: u64, into: &mut [u8]) {
        into.fill(self.written.into());
    }
    #[expect(clippy::panic, reason = "the mistake that the test is about")]
    fn bar_write(&mut self, _: u8, _: u64, _: &[u8], _: &dyn Bus) {
        self.written = true;
        panic!("a mistake of the function");
    }
    fn reset(&mut self, _: ResetKind) {
        assert!(!(self.twice && self.written), "a mistake of the reset");
        self.written = false;
    }
}

/// Writes to the function beside the unit; its connection is closed.
fn provoke(rig: &Rig) {
    let mut client = Client::agreed(&rig.socket("beside"));
    client.post(0, 0, &[1, 2, 3, 4]);
    let mut rest = Vec::new();
    client.socket.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
}

#[test]
fn a_function_that_panics_ends_its_connection_and_no_other_and_serves_the_next_client() {
    let rig = Rig::beside(UnitConfig::builder(), Mistaken::boxed(false));
    let mut engine = Client::agreed(&rig.socket("engine"));
    for _ in 0..3 {
        provoke(&rig);
        // As after power-on.
        let mut next = Client::agreed(&rig.socket("beside"));
        assert_eq!(next.read32(0, 0), 0);
    }
    assert_eq!(engine.ask(4, &words(&[16, 0, 0, 0])).map(|answer| answer.len()), Ok(16));
    lives(&rig, "unit");
    let ended = rig.said.ended.lock().unwrap().clone();
    let told = |why: &&String| why.contains("panicked") && why.contains("next client is served");
    assert_eq!(ended.iter().flatten().filter(told).count(), 3, "{ended:?}");
}

#[test]
fn a_function_that_cannot_be_reset_after_a_panic_serves_nobody_and_says_so() {
    let rig = Rig::beside(UnitConfig::builder(), Mistaken::boxed(true));
    provoke(&rig);
    // Nobody is there any more: a client is let in by the system at most, and not answered.
    if let Ok(mut client) = UnixStream::connect(rig.socket("beside")) {
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut rest = Vec::new();
        let _ = client.read_to_end(&mut rest);
        assert!(rest.is_empty());
    }
    lives(&rig, "engine");
    lives(&rig, "unit");
    let ended = rig.said.ended.lock().unwrap().clone();
    assert!(
        ended.iter().flatten().any(|why| why.contains("serves nobody any more")),
        "{ended:?}"
    );
}

#[test]
fn one_connection_is_ended_from_this_side_and_its_socket_takes_the_next_client() {
    let rig = Rig::new();
    assert!(!rig.server().hang_up("engine") && !rig.server().hang_up("nobody"));
    let mut unit = Client::agreed(&rig.socket("unit"));
    let mut engine = Client::agreed(&rig.socket("engine"));
    assert!(rig.server().hang_up("engine"));
    let mut rest = Vec::new();
    engine.socket.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    lives(&rig, "engine");
    // The other connection never noticed.
    assert_eq!(unit.ask(4, &words(&[16, 0, 0, 0])).map(|answer| answer.len()), Ok(16));
    let ended = rig.said.ended.lock().unwrap().clone();
    assert_eq!(ended.first(), Some(&Some("this side ended it".to_owned())), "{ended:?}");
}
