//! Clients that break the protocol: they get errors or lose their connection, and nobody else notices.

use std::io::{Read, Write};

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

/// A function with a mistake: it panics when it is written to.
#[derive(Debug)]
struct Mistaken(ConfigSpace);

impl Function for Mistaken {
    fn config(&self) -> &ConfigSpace {
        &self.0
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.0
    }
    fn bar_read(&mut self, _: u8, _: u64, into: &mut [u8]) {
        into.fill(0);
    }
    #[expect(clippy::panic, reason = "the mistake that the test is about")]
    fn bar_write(&mut self, _: u8, _: u64, _: &[u8], _: &dyn Bus) {
        panic!("a mistake of the function");
    }
    fn reset(&mut self, _: ResetKind) {}
}

#[test]
fn a_function_that_panics_ends_its_connection_and_no_other() {
    let config = ConfigSpace::function(1, 2).bar(0, Bar::memory32(4096)).build().unwrap();
    let rig = Rig::beside(UnitConfig::builder(), Box::new(Mistaken(config)));
    let mut client = Client::agreed(&rig.socket("beside"));
    client.post(0, 0, &[1, 2, 3, 4]);
    let mut rest = Vec::new();
    client.socket.read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    lives(&rig, "engine");
    lives(&rig, "unit");
}
