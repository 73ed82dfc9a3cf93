//! The way of a function to the client's memory: through the unit, then to what its connection shares.

use std::cell::RefCell;
use std::collections::VecDeque;

use iommu_devices::{Bus, DmaError, DmaErrorKind, MSI_BASE};
use iommu_types::{Access, HostPhys, Iova, SourceId, SystemMemory};
use vtd_model::Request;

use crate::irqs::Irqs;
use crate::link::{LinkError, Message, Receiver, Sender};
use crate::protocol::{Command, Kind, dma_access};
use crate::ram::{Ram, Reach};
use crate::remapper::Remapper;

/// Length of the interrupt range in bytes.
const MSI_LEN: u64 = 1 << 20;
/// Commands of the client that are put off while a function waits for memory.
const PUT_OFF_MAX: usize = 64;
/// The ID of our commands; they are not told apart, since there is at most one that wants a reply.
const ID: u16 = 0xd3a0;

/// Messages that come in, and those that came in while something else was awaited.
#[derive(Debug)]
pub(crate) struct Inbox {
    receiver: Receiver,
    put_off: VecDeque<Message>,
}

impl Inbox {
    pub(crate) const fn new(receiver: Receiver) -> Self {
        Self {
            receiver,
            put_off: VecDeque::new(),
        }
    }

    /// The next command. Replies that nobody waits for any more are passed over.
    pub(crate) fn command(&mut self) -> Result<Option<Message>, LinkError> {
        if let Some(message) = self.put_off.pop_front() {
            return Ok(Some(message));
        }
        loop {
            match self.receiver.receive()? {
                Some(message) if matches!(message.header.kind, Kind::Reply { .. }) => {}
                other => return Ok(other),
            }
        }
    }

    /// The reply to our command; `None` if the client asks for something first that it waits for. It would wait for us
    /// while we wait for it.
    fn reply(&mut self) -> Option<Message> {
        while self.put_off.len() < PUT_OFF_MAX {
            let message = self.receiver.receive().ok()??;
            match message.header.kind {
                Kind::Reply { error } => return error.is_none().then_some(message),
                Kind::Command { no_reply } => {
                    self.put_off.push_back(message);
                    if !no_reply {
                        return None;
                    }
                }
            }
        }
        None
    }
}

/// The bus of one function, for the time of one command of its client.
pub(crate) struct SessionBus<'a> {
    /// `None`: the function is not behind the unit, its addresses are the client's.
    pub(crate) remapper: Option<&'a Remapper>,
    pub(crate) source: SourceId,
    /// The function's ATS is enabled.
    pub(crate) ats: bool,
    pub(crate) ram: &'a Ram,
    pub(crate) irqs: &'a Irqs,
    pub(crate) sender: &'a Sender,
    pub(crate) inbox: &'a RefCell<Inbox>,
    /// Bytes of data that the client takes in one message; not zero.
    pub(crate) data_max: usize,
}

/// The part of a buffer that one answer of the unit holds for.
enum Part<'b> {
    Read(&'b mut [u8]),
    Write(&'b [u8]),
}

impl Part<'_> {
    const fn len(&self) -> usize {
        match self {
            Self::Read(bytes) => bytes.len(),
            Self::Write(bytes) => bytes.len(),
        }
    }

    const fn access(&self) -> Access {
        match self {
            Self::Read(_) => Access::Read,
            Self::Write(_) => Access::Write,
        }
    }
}

impl SessionBus<'_> {
    /// Does as much of `part` as one translation and one window allow; how many bytes that were.
    fn step(&self, iova: Iova, part: &mut Part<'_>) -> Result<usize, DmaErrorKind> {
        let wanted = u64::try_from(part.len()).map_err(|_| DmaErrorKind::OutOfRange)?;
        let access = part.access();
        let outcome = match self.remapper {
            None => self.reach(HostPhys::new(iova.raw()), wanted, part),
            Some(remapper) => {
                let request = Request::new(self.source, iova, wanted, access);
                remapper
                    .access(&request, self.ats, |at, len| self.reach(at, len, part))
                    .map_err(|_| DmaErrorKind::Blocked)?
            }
        };
        match outcome? {
            Outcome::Done(done) => Ok(done),
            // Waiting for the client under the unit's lock would stop every other function: this memory is not shared, so
            // nothing that an invalidation protects can be reused behind our back before the client itself sees to it.
            Outcome::Ask(at, len) => self.ask(at, len, part),
        }
    }

    fn reach(&self, at: HostPhys, len: u64, part: &mut Part<'_>) -> Result<Outcome, DmaErrorKind> {
        let write = matches!(part, Part::Write(_));
        let (reach, len) = self.ram.reach(at.raw(), len, write);
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(part.len());
        match reach {
            Reach::Nothing => Err(DmaErrorKind::Unclaimed),
            Reach::Messages => Ok(Outcome::Ask(at, len.min(self.data_max))),
            Reach::Mapped => {
                let copied = match part {
                    Part::Read(into) => self.ram.read(at, into.get_mut(..len).unwrap_or_default()),
                    Part::Write(from) => self.ram.write(at, from.get(..len).unwrap_or_default()),
                };
                copied.map_err(|_| DmaErrorKind::Unclaimed)?;
                Ok(Outcome::Done(len))
            }
        }
    }

    /// Reaches memory that the client did not share, by message.
    fn ask(&self, at: HostPhys, len: usize, part: &mut Part<'_>) -> Result<usize, DmaErrorKind> {
        let fields = dma_access(at.raw(), u64::try_from(len).map_err(|_| DmaErrorKind::OutOfRange)?);
        match part {
            Part::Write(from) => {
                let data = from.get(..len).unwrap_or_default();
                self.sender
                    .send(
                        ID,
                        Command::DMA_WRITE,
                        Kind::Command { no_reply: true },
                        &[&fields, data],
                    )
                    .map_err(|_| DmaErrorKind::Unclaimed)?;
            }
            Part::Read(into) => {
                self.sender
                    .send(ID, Command::DMA_READ, Kind::Command { no_reply: false }, &[&fields])
                    .map_err(|_| DmaErrorKind::Unclaimed)?;
                let reply = self.inbox.borrow_mut().reply().ok_or(DmaErrorKind::Unclaimed)?;
                let data = reply.payload.get(fields.len()..).unwrap_or_default();
                let (Some(data), Some(into)) = (data.get(..len), into.get_mut(..len)) else {
                    return Err(DmaErrorKind::Unclaimed);
                };
                into.copy_from_slice(data);
            }
        }
        Ok(len)
    }

    /// Whether `iova` is an interrupt message when four bytes are written there.
    fn is_interrupt(iova: Iova, len: usize) -> bool {
        len == 4 && iova.raw().wrapping_sub(MSI_BASE.raw()) < MSI_LEN
    }
}

enum Outcome {
    Done(usize),
    Ask(HostPhys, usize),
}

impl Bus for SessionBus<'_> {
    fn dma_read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        let mut at = iova;
        let mut rest = into;
        while !rest.is_empty() {
            let done = self
                .step(at, &mut Part::Read(rest))
                .map_err(|kind| DmaError::new(at, kind))?;
            rest = rest.get_mut(done..).unwrap_or_default();
            at = next(at, done)?;
        }
        Ok(())
    }

    fn dma_write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        if Self::is_interrupt(iova, from.len()) {
            // Interrupt remapping belongs to the client here, which delivers interrupts itself.
            let fields = dma_access(iova.raw(), 4);
            return self
                .sender
                .send(
                    ID,
                    Command::DMA_WRITE,
                    Kind::Command { no_reply: true },
                    &[&fields, from],
                )
                .map_err(|_| DmaError::new(iova, DmaErrorKind::Unclaimed));
        }
        let mut at = iova;
        let mut rest = from;
        while !rest.is_empty() {
            let done = self
                .step(at, &mut Part::Write(rest))
                .map_err(|kind| DmaError::new(at, kind))?;
            rest = rest.get(done..).unwrap_or_default();
            at = next(at, done)?;
        }
        Ok(())
    }

    fn raise(&self, vector: u16) -> bool {
        self.irqs.raise(vector);
        true
    }
}

/// The address `done` bytes on. The end of the address space is only passed by requests that passed it to begin with.
fn next(at: Iova, done: usize) -> Result<Iova, DmaError> {
    if done == 0 {
        return Err(DmaError::new(at, DmaErrorKind::Unclaimed));
    }
    let done = u64::try_from(done).unwrap_or(u64::MAX);
    Ok(Iova::new(at.raw().wrapping_add(done)))
}
