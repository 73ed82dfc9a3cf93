//! A client of the protocol, written from its description and not from the server's code.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

pub(crate) const CONFIG: u32 = 7;

/// A message of the server.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) id: u16,
    pub(crate) command: u16,
    pub(crate) flags: u32,
    pub(crate) error: u32,
    pub(crate) payload: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) socket: UnixStream,
    next: u16,
    /// Commands of the server that came in while a reply was awaited.
    pub(crate) commands: Vec<Message>,
}

impl Client {
    pub(crate) fn connect(path: &Path) -> Self {
        let socket = UnixStream::connect(path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self {
            socket,
            next: 1,
            commands: Vec::new(),
        }
    }

    /// Connected, with the version agreed on.
    pub(crate) fn agreed(path: &Path) -> Self {
        Self::with(path, r#"{"max_msg_fds":8,"write_multiple":true}"#)
    }

    /// Connected, with the version agreed on, by a client of these capabilities.
    pub(crate) fn with(path: &Path, capabilities: &str) -> Self {
        let mut client = Self::connect(path);
        let mut hello = vec![0, 0, 1, 0];
        hello.extend(format!("{{\"capabilities\":{capabilities}}}\0").bytes());
        let answer = client.ask(1, &hello).unwrap();
        assert_eq!(answer[..4], [0, 0, 1, 0]);
        client
    }

    pub(crate) fn send(&mut self, command: u16, flags: u32, payload: &[u8], fds: &[&OwnedFd]) -> u16 {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let mut bytes = Vec::new();
        bytes.extend(id.to_le_bytes());
        bytes.extend(command.to_le_bytes());
        bytes.extend(u32::try_from(16 + payload.len()).unwrap().to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(0u32.to_le_bytes());
        bytes.extend(payload);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(32))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        if !fds.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let sent = sendmsg(&self.socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL).unwrap();
        self.socket.write_all(&bytes[sent..]).unwrap();
        id
    }

    pub(crate) fn receive(&mut self) -> Message {
        let mut header = [0; 16];
        self.socket.read_exact(&mut header).unwrap();
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let mut payload = vec![0; usize::try_from(word(4)).unwrap() - 16];
        self.socket.read_exact(&mut payload).unwrap();
        Message {
            id: u16::from_le_bytes([header[0], header[1]]),
            command: u16::from_le_bytes([header[2], header[3]]),
            flags: word(8),
            error: word(12),
            payload,
        }
    }

    /// Sends a command and waits for its reply: the payload, or the error number.
    pub(crate) fn ask_with(&mut self, command: u16, payload: &[u8], fds: &[&OwnedFd]) -> Result<Vec<u8>, u32> {
        let id = self.send(command, 0, payload, fds);
        loop {
            let message = self.receive();
            if message.flags & 0xf == 0 {
                self.commands.push(message);
                continue;
            }
            assert_eq!((message.id, message.command), (id, command));
            return if message.flags & 0x20 != 0 {
                Err(message.error)
            } else {
                Ok(message.payload)
            };
        }
    }

    pub(crate) fn ask(&mut self, command: u16, payload: &[u8]) -> Result<Vec<u8>, u32> {
        self.ask_with(command, payload, &[])
    }

    pub(crate) fn map(&mut self, address: u64, len: u64, file: Option<&OwnedFd>) -> Result<Vec<u8>, u32> {
        let mut payload = words(&[32, 3]);
        payload.extend(0u64.to_le_bytes());
        payload.extend(address.to_le_bytes());
        payload.extend(len.to_le_bytes());
        self.ask_with(2, &payload, file.as_slice())
    }

    pub(crate) fn unmap(&mut self, address: u64, len: u64) -> Result<Vec<u8>, u32> {
        let mut payload = words(&[24, 0]);
        payload.extend(address.to_le_bytes());
        payload.extend(len.to_le_bytes());
        self.ask(3, &payload)
    }

    pub(crate) fn read(&mut self, region: u32, offset: u64, count: u32) -> Result<Vec<u8>, u32> {
        let mut payload = offset.to_le_bytes().to_vec();
        payload.extend(words(&[region, count]));
        Ok(self.ask(9, &payload)?.split_off(16))
    }

    pub(crate) fn read32(&mut self, region: u32, offset: u64) -> u32 {
        u32::from_le_bytes(self.read(region, offset, 4).unwrap().try_into().unwrap())
    }

    pub(crate) fn read64(&mut self, region: u32, offset: u64) -> u64 {
        u64::from_le_bytes(self.read(region, offset, 8).unwrap().try_into().unwrap())
    }

    pub(crate) fn write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<Vec<u8>, u32> {
        self.ask(10, &write_payload(region, offset, data))
    }

    /// A write that wants no reply.
    pub(crate) fn post(&mut self, region: u32, offset: u64, data: &[u8]) {
        self.send(10, 0x10, &write_payload(region, offset, data), &[]);
    }
}

fn write_payload(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut payload = offset.to_le_bytes().to_vec();
    payload.extend(words(&[region, u32::try_from(data.len()).unwrap()]));
    payload.extend(data);
    payload
}

pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Guest memory the way QEMU's memfd backend makes it.
pub(crate) fn guest_memory(len: u64) -> OwnedFd {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    ftruncate(&file, len).unwrap();
    fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL).unwrap();
    file
}

pub(crate) fn poke(memory: &OwnedFd, at: u64, bytes: &[u8]) {
    assert_eq!(rustix::io::pwrite(memory, bytes, at).unwrap(), bytes.len());
}

pub(crate) fn peek<const N: usize>(memory: &OwnedFd, at: u64) -> [u8; N] {
    let mut bytes = [0; N];
    assert_eq!(rustix::io::pread(memory, &mut bytes, at).unwrap(), N);
    bytes
}
