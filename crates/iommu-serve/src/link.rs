//! A connection: framed messages with file descriptors over a UNIX socket.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags, recvmsg, sendmsg,
};
use thiserror::Error;

use crate::protocol::{Command, FDS_MAX, HEADER_LEN, Header, Kind, PAYLOAD_MAX};

/// How long a peer may leave a message of ours unread before it counts as gone. Without a limit, a peer that stops reading
/// would stop whoever holds the unit.
const WRITE_PATIENCE: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Socket(#[from] io::Error),
    /// The peer sent something that is no message: what follows cannot be told apart any more.
    #[error("the peer broke the protocol: {0}")]
    Framing(&'static str),
}

/// A message as it came in.
#[derive(Debug)]
pub(crate) struct Message {
    /// Its header.
    pub(crate) header: Header,
    /// What follows the header.
    pub(crate) payload: Vec<u8>,
    /// File descriptors that came along, at most [`FDS_MAX`].
    pub(crate) fds: Vec<OwnedFd>,
}

/// Messages that went over a connection.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Traffic {
    /// Messages received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Messages sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// The two ends of a fresh connection.
///
/// # Errors
/// What the operating system says.
pub(crate) fn open(socket: UnixStream, traffic: &Arc<Traffic>) -> io::Result<(Receiver, Sender)> {
    socket.set_write_timeout(Some(WRITE_PATIENCE))?;
    let writer = socket.try_clone()?;
    let receiver = Receiver {
        socket,
        traffic: Arc::clone(traffic),
    };
    let sender = Sender {
        socket: Arc::new(Mutex::new(writer)),
        traffic: Arc::clone(traffic),
    };
    Ok((receiver, sender))
}

/// The end that messages come out of.
#[derive(Debug)]
pub(crate) struct Receiver {
    socket: UnixStream,
    traffic: Arc<Traffic>,
}

impl Receiver {
    /// Waits for the next message; `None` when the peer has closed the connection between two messages.
    ///
    /// # Errors
    /// [`LinkError`]; the connection is of no more use then.
    pub(crate) fn receive(&mut self) -> Result<Option<Message>, LinkError> {
        let mut bytes = [0; HEADER_LEN];
        let mut fds = Vec::new();
        let mut filled = 0;
        while filled < HEADER_LEN {
            match self.receive_part(bytes.get_mut(filled..).unwrap_or_default(), &mut fds)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(LinkError::Framing("the connection was closed inside a header")),
                more => filled += more,
            }
        }
        let header = Header::parse(&bytes).ok_or(LinkError::Framing("a message is neither command nor reply"))?;
        let payload = usize::try_from(header.size)
            .ok()
            .and_then(|size| size.checked_sub(HEADER_LEN))
            .ok_or(LinkError::Framing("a message is shorter than its header"))?;
        if u32::try_from(payload).is_ok_and(|len| len > PAYLOAD_MAX) {
            return Err(LinkError::Framing("a message is longer than the agreed limit"));
        }
        let mut message = Message {
            header,
            payload: vec![0; payload],
            fds,
        };
        self.socket.read_exact(&mut message.payload)?;
        self.traffic.received.fetch_add(1, Ordering::Relaxed);
        Ok(Some(message))
    }

    /// Reads what is there, file descriptors included. They travel with the first byte of a message.
    fn receive_part(&self, into: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<usize, LinkError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(into)];
            match recvmsg(&self.socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.map_err(io::Error::from)?,
            }
        };
        if received.flags.contains(rustix::net::ReturnFlags::CTRUNC) {
            return Err(LinkError::Framing("more file descriptors than agreed came along"));
        }
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        if fds.len() > FDS_MAX {
            return Err(LinkError::Framing("more file descriptors than agreed came along"));
        }
        Ok(received.bytes)
    }
}

/// The end that messages go into, for any number of threads.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    socket: Arc<Mutex<UnixStream>>,
    traffic: Arc<Traffic>,
}

impl Sender {
    /// Sends a message made of `parts`.
    ///
    /// # Errors
    /// What the operating system says, a peer that does not read for five seconds included.
    pub(crate) fn send(&self, id: u16, command: Command, kind: Kind, parts: &[&[u8]]) -> io::Result<()> {
        let payload: usize = parts.iter().map(|part| part.len()).sum();
        let size = u32::try_from(HEADER_LEN + payload).map_err(|_| io::ErrorKind::InvalidInput)?;
        let header = Header {
            id,
            command,
            size,
            kind,
        };
        let mut bytes = Vec::with_capacity(HEADER_LEN + payload);
        bytes.extend(header.to_bytes());
        for part in parts {
            bytes.extend(*part);
        }
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let sent = match sendmsg(
                &*socket,
                &[IoSlice::new(rest)],
                &mut SendAncillaryBuffer::default(),
                SendFlags::NOSIGNAL,
            ) {
                Err(rustix::io::Errno::INTR) => 0,
                other => other?,
            };
            rest = rest.get(sent..).unwrap_or_default();
        }
        self.traffic.sent.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Closes the connection in both directions: a receiver that waits gets its end.
    pub(crate) fn close(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        // A socket that is closed already is what was wanted.
        let _ = socket.shutdown(std::net::Shutdown::Both);
    }
}
