//! One connection from its first message to its last.

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use iommu_devices::{ConfigSpace, ResetKind};
use iommu_groups::pci::header;
use rustix::io::Errno;
use vtd_model::EventMessage;

use crate::bus::{Inbox, SessionBus};
use crate::irqs::INTX;
use crate::link::{LinkError, Message, Sender, open};
use crate::protocol::{
    Command, DATA_MAX, DeviceInfo, IrqInfo, Kind, Refusal, RegionInfo, Request, dma_access, region_access,
};
use crate::ram::Ram;
use crate::remapper::{Outlet, Remapper};
use crate::server::Notices;
use crate::slot::{CONFIG_REGION, REGIONS, Role, Slot};

/// Refused requests of one connection that are reported; a peer that goes on gets its error replies in silence.
const REFUSALS_REPORTED: u32 = 20;

/// The unit's interrupts, as messages to the client of its connection.
struct ToClient(Sender);

impl Outlet for ToClient {
    fn interrupt(&self, message: EventMessage) {
        let fields = dma_access(message.address, 4);
        let data = message.data.to_le_bytes();
        // A connection that is gone is noticed by whoever reads from it.
        let _ = self.0.send(
            0,
            Command::DMA_WRITE,
            Kind::Command { no_reply: true },
            &[&fields, &data],
        );
    }
}

/// A connection to one function.
pub(crate) struct Session<'s> {
    slot: &'s Slot,
    remapper: &'s Remapper,
    sender: Sender,
    inbox: RefCell<Inbox>,
    /// Memory that this connection shares; the unit keeps that of its own connection itself.
    ram: Ram,
    agreed: bool,
    /// Bytes of data that the client takes in one message.
    data_max: usize,
    /// Where the unit's registers were last.
    base: Cell<Option<u64>>,
    /// They were placed there just now.
    placed: Cell<bool>,
}

impl<'s> Session<'s> {
    pub(crate) fn new(slot: &'s Slot, remapper: &'s Remapper, socket: UnixStream) -> Result<Self, LinkError> {
        let (receiver, sender) = open(socket, slot.traffic())?;
        if slot.role() == Role::Unit {
            remapper.connect(Box::new(ToClient(sender.clone())));
        }
        Ok(Self {
            slot,
            remapper,
            sender,
            inbox: RefCell::new(Inbox::new(receiver)),
            ram: Ram::default(),
            agreed: false,
            data_max: DATA_MAX as usize,
            base: Cell::new(None),
            placed: Cell::new(false),
        })
    }

    pub(crate) fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// Serves until the client closes the connection or breaks the protocol.
    pub(crate) fn serve(&mut self, notices: &dyn Notices) -> Result<(), LinkError> {
        let mut refusals = 0u32;
        loop {
            let message = self.inbox.borrow_mut().command()?;
            let Some(message) = message else {
                return Ok(());
            };
            let header = message.header;
            let outcome = self.answer(message);
            if let (true, Some(base)) = (self.placed.take(), self.base.get()) {
                notices.placed(base);
            }
            if let Err(refusal) = &outcome {
                refusals = refusals.saturating_add(1);
                if refusals <= REFUSALS_REPORTED {
                    notices.refused(self.slot.name(), refusal);
                }
            }
            if header.kind == (Kind::Command { no_reply: true }) {
                continue;
            }
            match outcome {
                Ok(payload) => {
                    self.sender
                        .send(header.id, header.command, Kind::Reply { error: None }, &[&payload])?;
                }
                Err(refusal) => {
                    let error = u32::try_from(refusal.errno.raw_os_error()).unwrap_or(0);
                    let kind = Kind::Reply { error: Some(error) };
                    self.sender.send(header.id, header.command, kind, &[])?;
                }
            }
        }
    }

    /// Carries out a command; the payload of its reply.
    fn answer(&mut self, message: Message) -> Result<Vec<u8>, Refusal> {
        let command = message.header.command;
        let request = Request::parse(command, &message.payload)?;
        if !self.agreed && !matches!(request, Request::Version(_)) {
            return Err(Refusal::invalid(command, "the version has to be agreed on first"));
        }
        match request {
            Request::Version(version) => {
                if self.agreed {
                    return Err(Refusal::invalid(command, "the version was agreed on already"));
                }
                let answer = version.answer()?;
                self.data_max = version.data_max()?;
                self.agreed = true;
                Ok(answer.to_bytes())
            }
            Request::DmaMap {
                range,
                readable,
                writable,
                offset,
            } => {
                let file = only(command, message.fds)?.map(|file| (file, offset));
                match self.slot.role() {
                    Role::Unit => self.remapper.map(range, (readable, writable), file)?,
                    Role::Behind | Role::Bypass => self.ram.map(range, readable, writable, file)?,
                }
                Ok(Vec::new())
            }
            Request::DmaUnmap { range } => {
                match self.slot.role() {
                    Role::Unit => self.remapper.unmap(range)?,
                    Role::Behind | Role::Bypass => self.ram.unmap(range)?,
                }
                // The reply repeats the request.
                Ok(message.payload)
            }
            Request::DeviceInfo => Ok(DeviceInfo {
                regions: REGIONS,
                irqs: Slot::irq_indices(),
            }
            .to_bytes()),
            Request::RegionInfo { index } => {
                let size = self
                    .slot
                    .region_size(index)
                    .ok_or_else(|| Refusal::invalid(command, format!("there is no region {index}")))?;
                Ok(RegionInfo { index, size }.to_bytes())
            }
            Request::RegionIoFds { .. } => Err(Refusal::with(
                command,
                Errno::OPNOTSUPP,
                "regions are reached through messages only",
            )),
            Request::IrqInfo { index } => {
                let count = self
                    .slot
                    .irqs
                    .count(index)
                    .ok_or_else(|| Refusal::invalid(command, format!("there is no kind of interrupt {index}")))?;
                let level = index == INTX;
                Ok(IrqInfo { index, count, level }.to_bytes())
            }
            Request::SetIrqs(what) => {
                self.slot.irqs.set(&what, message.fds)?;
                Ok(Vec::new())
            }
            Request::RegionRead { region, offset, count } => {
                let mut bytes = region_access(offset, region, count);
                let fields = bytes.len();
                let count = usize::try_from(count).map_err(|_| Refusal::invalid(command, "too long for this host"))?;
                self.in_region(command, region, offset, count)?;
                bytes.resize(fields + count, 0);
                self.read(region, offset, bytes.get_mut(fields..).unwrap_or_default());
                Ok(bytes)
            }
            Request::RegionWrite(write) => {
                self.in_region(command, write.region, write.offset, write.data.len())?;
                self.write(write.region, write.offset, write.data);
                let count = u32::try_from(write.data.len()).unwrap_or(u32::MAX);
                Ok(region_access(write.offset, write.region, count))
            }
            Request::WriteMulti(writes) => {
                for write in writes.iter() {
                    self.in_region(command, write.region, write.offset, write.data.len())?;
                    self.write(write.region, write.offset, write.data);
                }
                let count = u64::try_from(writes.iter().count()).unwrap_or(u64::MAX);
                Ok(count.to_le_bytes().to_vec())
            }
            Request::Reset => {
                let mut function = self.slot.function();
                function.reset(ResetKind::Conventional);
                self.remapper.forget_device(self.slot.source());
                self.update_level(function.config());
                Ok(Vec::new())
            }
        }
    }

    /// Refuses accesses that do not lie within a region.
    fn in_region(&self, command: Command, region: u32, offset: u64, len: usize) -> Result<(), Refusal> {
        let size = self
            .slot
            .region_size(region)
            .ok_or_else(|| Refusal::invalid(command, format!("there is no region {region}")))?;
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
        if end.is_none_or(|end| end > size) {
            return Err(Refusal::invalid(
                command,
                format!("{len:#x} bytes at {offset:#x} are not within region {region}, which has {size:#x}"),
            ));
        }
        Ok(())
    }

    fn read(&self, region: u32, offset: u64, into: &mut [u8]) {
        let mut function = self.slot.function();
        match (region, u8::try_from(region), u16::try_from(offset)) {
            (CONFIG_REGION, _, Ok(offset)) => function.config_read(offset, into),
            (_, Ok(bar), _) => function.bar_read(bar, offset, into),
            _ => into.fill(u8::MAX),
        }
    }

    fn write(&self, region: u32, offset: u64, from: &[u8]) {
        let mut function = self.slot.function();
        let bus = SessionBus {
            remapper: (self.slot.role() != Role::Bypass).then_some(self.remapper),
            source: self.slot.source(),
            ats: function.config().ats_enabled(),
            ram: &self.ram,
            irqs: &self.slot.irqs,
            sender: &self.sender,
            inbox: &self.inbox,
            data_max: self.data_max,
        };
        match (region, u8::try_from(region), u16::try_from(offset)) {
            (CONFIG_REGION, _, Ok(offset)) => {
                // Clients decode addresses and number buses themselves; resets were carried out.
                let _ = function.config_write(offset, from);
                function.settle(&bus);
                if bus.ats && !function.config().ats_enabled() {
                    self.remapper.forget_device(self.slot.source());
                }
                if self.slot.role() == Role::Unit {
                    self.look_at_base(function.config());
                }
            }
            (_, Ok(bar), _) => function.bar_write(bar, offset, from, &bus),
            _ => {}
        }
        self.update_level(function.config());
    }

    /// Notes where the client has placed the unit's registers. While it moves them they are nowhere, which counts for nothing.
    fn look_at_base(&self, config: &ConfigSpace) {
        let now = config.bar_range(0).map(|range| range.first().raw());
        if now.is_some() && self.base.replace(now) != now {
            self.placed.set(true);
        }
    }

    /// Passes the level of INTx on.
    fn update_level(&self, config: &ConfigSpace) {
        let asserted = config.read16(header::STATUS) & header::STATUS_INTX != 0;
        self.slot.irqs.set_level(asserted);
    }
}

impl Drop for Session<'_> {
    /// The protocol has it so: memory and interrupts go with the connection, the state of the device stays. Whatever ended the
    /// session, a panic of the function included, the client is told by the end of its connection.
    fn drop(&mut self) {
        self.sender.close();
        self.slot.irqs.clear();
        if self.slot.role() == Role::Unit {
            self.remapper.disconnect();
        }
    }
}

/// The one file that a message may carry.
fn only(command: Command, fds: Vec<OwnedFd>) -> Result<Option<OwnedFd>, Refusal> {
    let mut fds = fds.into_iter();
    match (fds.next(), fds.next()) {
        (first, None) => Ok(first),
        _ => Err(Refusal::invalid(command, "a window of memory has at most one file")),
    }
}
