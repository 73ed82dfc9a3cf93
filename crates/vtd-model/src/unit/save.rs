//! Saving and restoring a unit at any moment.
//!
//! The saved form is little-endian, begins with a mark and a version, and names the unit it belongs to by its version
//! and capability registers. Caches are not in it: a unit may forget at any time. Counters are not either.

use alloc::vec::Vec;

use iommu_types::{AddrRange, HostPhys, Iova, Pasid, SourceId};
use thiserror::Error;
use vtd_spec::register::{
    ContextCommand, GlobalCommand, GlobalStatus, InterruptRemapTableAddress, InvalidationQueueAddress, IotlbInvalidate,
    RootTableAddress, offset,
};

use super::Unit;
use super::device::{DeviceInvalidation, HeldWait, PasidScope};
use super::drain::{DrainState, DrainToken, HeldCommands};
use super::event::{EventMessage, EventSource};
use crate::cache::{Caches, TranslationCache};
use crate::config::UnitConfig;
use crate::registers::RegisterFile;

/// First bytes of a saved unit.
const MARK: [u8; 4] = *b"VTDU";
/// Version of the form that this code writes, and the only one it reads.
const VERSION: u16 = 2;

/// Greatest number of the last drain: tokens count up from there, and must not run over.
const TOKEN_MAX: u64 = u64::MAX / 2;

/// Why saved bytes are not a unit of this configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RestoreError {
    /// The bytes do not begin with the mark of a saved unit.
    #[error("these bytes are not a saved remapping unit")]
    NotAUnit,
    /// A form that this code does not know.
    #[error(
        "the unit was saved in form {0}; this code reads form {VERSION}: restore it with the release that saved it"
    )]
    Version(u16),
    /// The bytes end too early.
    #[error("the saved unit ends in the middle, at byte {0}")]
    Truncated(usize),
    /// Bytes follow the unit.
    #[error("{0} bytes follow the saved unit")]
    Trailing(usize),
    /// The unit that was saved has other capabilities.
    #[error("the saved unit differs in {register}: it has {saved:#x}, this configuration {here:#x}")]
    OtherUnit {
        /// Which register.
        register: &'static str,
        /// Its value in the saved unit.
        saved: u64,
        /// Its value in the configuration.
        here: u64,
    },
    /// A value that no unit can have.
    #[error("the saved {0} is out of range")]
    Value(&'static str),
}

impl Unit<Caches> {
    /// The unit that [`Unit::save`] wrote, with empty caches.
    ///
    /// # Errors
    /// [`RestoreError`]; the bytes may come from anywhere.
    pub fn restore(config: UnitConfig, bytes: &[u8]) -> Result<Self, RestoreError> {
        Unit::new(config).restored(bytes)
    }
}

impl<C: TranslationCache> Unit<C> {
    /// The unit that [`Unit::save`] wrote, with `cache`, which has to be empty.
    ///
    /// # Errors
    /// As [`Unit::restore`].
    pub fn restore_with_cache(config: UnitConfig, cache: C, bytes: &[u8]) -> Result<Self, RestoreError> {
        Self::with_cache(config, cache).restored(bytes)
    }

    /// The unit as bytes, at any moment: in the middle of the queue, with commands, drains, device-TLB invalidations and
    /// messages outstanding. A restored unit asks for drains and device-TLB invalidations again.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let mut out = Writer(Vec::new());
        out.bytes(&MARK);
        out.u16(VERSION);
        for (_, value) in identity(&self.config) {
            out.u64(value);
        }
        let words = self.registers.words();
        out.u32(u32::try_from(words.len()).unwrap_or(u32::MAX));
        for word in words {
            out.u32(*word);
        }
        out.u64(self.latched.root.raw_value());
        out.u64(self.latched.interrupt_table.raw_value());
        for region in self.latched.protected {
            out.option(
                region.map(|region| [region.first().raw(), region.last().raw()]),
                |out, ends| {
                    ends.into_iter().for_each(|end| out.u64(end));
                },
            );
        }
        out.u8(self.fault_index);
        out.u64(self.queue.raw_value());
        out.u8(u8::from(self.drain_needed));
        out.u8(u8::from(self.drain.done));
        out.option(self.drain.awaited, |out, token| out.u64(token.0));
        out.u8(u8::from(self.last_was_wait));
        out.u64(self.next_token);
        out.option(self.held_commands, |out, held| {
            out.u64(held.token.0);
            out.u32(held.global.0.raw_value());
            out.u32(held.global.1.raw_value());
            out.option(held.protected, |out, on| out.u8(u8::from(on)));
            out.option(held.context, |out, actual| {
                out.u64(ContextCommand::DEFAULT.with_caig(actual).raw_value());
            });
            out.option(held.iotlb, |out, actual| {
                out.u64(IotlbInvalidate::DEFAULT.with_iaig(actual).raw_value());
            });
        });
        out.u8(match self.held_wait {
            HeldWait::None => 0,
            HeldWait::Pending => 1,
            HeldWait::Aborted => 2,
        });
        out.option(self.pending, |out, command| out.u32(command.raw_value()));
        for slot in &self.devices.tags {
            out.option(*slot, |out, (message, _)| {
                out.u16(message.source.raw());
                out.u32(match message.pasid {
                    None => NO_PASID,
                    Some(PasidScope::All) => ALL_PASIDS,
                    Some(PasidScope::One(pasid)) => pasid.raw(),
                });
                out.u64(message.first.raw());
                out.u8(message.order);
            });
        }
        for message in [self.messages.fault, self.messages.invalidation] {
            out.option(message, |out, message| {
                out.u64(message.address);
                out.u32(message.data);
            });
        }
        out.0
    }

    fn restored(mut self, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut from = Reader { bytes, at: 0 };
        if from.array() != Ok(MARK) {
            return Err(RestoreError::NotAUnit);
        }
        match from.u16()? {
            VERSION => {}
            other => return Err(RestoreError::Version(other)),
        }
        for (register, here) in identity(&self.config) {
            let saved = from.u64()?;
            if saved != here {
                return Err(RestoreError::OtherUnit { register, saved, here });
            }
        }
        self.registers = read_registers(&mut from, &self.config)?;
        self.latched.root = RootTableAddress::new_with_raw_value(from.u64()?);
        self.latched.interrupt_table = InterruptRemapTableAddress::new_with_raw_value(from.u64()?);
        self.latched.protected = [read_region(&mut from)?, read_region(&mut from)?];
        self.fault_index = from.u8()?;
        if self.fault_index > self.config.capability().nfr() {
            return Err(RestoreError::Value("fault index"));
        }
        self.queue = InvalidationQueueAddress::new_with_raw_value(from.u64()?);
        self.drain_needed = from.flag("drain state")?;
        self.drain = DrainState {
            done: from.flag("drain state")?,
            // Without two-phase waits nobody would report it.
            awaited: from
                .option("drain", Reader::u64)?
                .filter(|_| self.config.two_phase_waits())
                .map(DrainToken),
            announced: false,
        };
        self.last_was_wait = from.flag("kind of the last descriptor")?;
        self.next_token = from.u64()?;
        self.held_commands = from.option("commands through registers", read_held)?;
        let last = self.drain.awaited.max(self.held_commands.map(|held| held.token));
        if self.next_token > TOKEN_MAX || last > Some(DrainToken(self.next_token)) {
            return Err(RestoreError::Value("number of the last drain"));
        }
        let status = GlobalStatus::new_with_raw_value(self.registers.get32(offset::GSTS));
        let effective = self.held_commands.map_or(status, |held| held.status_after(status));
        self.latched.translation_enabled = effective.tes();
        self.latched.interrupts_enabled = effective.ires();
        self.latched.compatibility_interrupts = effective.cfis();
        if !self.config.two_phase_waits() {
            // Nobody would report the drain.
            self.release_held();
        }
        self.held_wait = match from.u8()? {
            0 => HeldWait::None,
            1 => HeldWait::Pending,
            2 => HeldWait::Aborted,
            _ => return Err(RestoreError::Value("state of the wait descriptor")),
        };
        self.pending = from
            .option("command", Reader::u32)?
            .map(GlobalCommand::new_with_raw_value);
        for (tag, slot) in (0u8..).zip(&mut self.devices.tags) {
            *slot = from
                .option("device-TLB invalidation", |from| read_device(from, tag))?
                .map(|message| (message, false));
        }
        self.messages.fault = read_message(&mut from, EventSource::Fault)?;
        self.messages.invalidation = read_message(&mut from, EventSource::InvalidationCompletion)?;
        match from.bytes.len() - from.at {
            0 => Ok(self),
            left => Err(RestoreError::Trailing(left)),
        }
    }
}

/// PASID field of a saved device-TLB invalidation without PASID; PASIDs have 20 bits.
const NO_PASID: u32 = u32::MAX;
/// PASID field of a saved device-TLB invalidation for every PASID.
const ALL_PASIDS: u32 = u32::MAX - 1;

/// What makes a saved unit this unit.
fn identity(config: &UnitConfig) -> [(&'static str, u64); 4] {
    [
        ("VER_REG", config.version().raw_value().into()),
        ("CAP_REG", config.capability().raw_value()),
        ("ECAP_REG", config.extended_capability().raw_value()),
        ("the host address width", config.host_address_width().into()),
    ]
}

fn read_registers(from: &mut Reader<'_>, config: &UnitConfig) -> Result<RegisterFile, RestoreError> {
    let mut registers = RegisterFile::new(config);
    let count = from.u32()?;
    if count != config.window_len() / 4 {
        return Err(RestoreError::Value("number of registers"));
    }
    for at in (0..count).map(|index| index * 4) {
        registers.set32(at, from.u32()?);
    }
    // What the unit is does not come from the bytes.
    let constant = RegisterFile::new(config);
    for at in [
        offset::VER,
        offset::CAP,
        offset::CAP + 4,
        offset::ECAP,
        offset::ECAP + 4,
    ] {
        registers.set32(at, constant.get32(at));
    }
    Ok(registers)
}

fn read_region(from: &mut Reader<'_>) -> Result<Option<AddrRange<HostPhys>>, RestoreError> {
    from.option("protected region", |from| {
        let (first, last) = (HostPhys::new(from.u64()?), HostPhys::new(from.u64()?));
        AddrRange::new(first, last).ok_or(RestoreError::Value("protected region"))
    })
}

fn read_held(from: &mut Reader<'_>) -> Result<HeldCommands, RestoreError> {
    let mut held = HeldCommands::none(DrainToken(from.u64()?));
    let mut status = || from.u32().map(GlobalStatus::new_with_raw_value);
    held.global = (status()?, status()?);
    held.protected = from.option("PMEN", |from| from.flag("PMEN"))?;
    held.context = from.option(
        "CCMD",
        |from| Ok(ContextCommand::new_with_raw_value(from.u64()?).caig()),
    )?;
    held.iotlb = from.option("IOTLB_REG", |from| {
        Ok(IotlbInvalidate::new_with_raw_value(from.u64()?).iaig())
    })?;
    Ok(held)
}

fn read_device(from: &mut Reader<'_>, tag: u8) -> Result<DeviceInvalidation, RestoreError> {
    Ok(DeviceInvalidation {
        tag,
        source: SourceId::from_raw(from.u16()?),
        pasid: match from.u32()? {
            NO_PASID => None,
            ALL_PASIDS => Some(PasidScope::All),
            raw => Some(PasidScope::One(Pasid::new(raw).ok_or(RestoreError::Value("PASID"))?)),
        },
        first: Iova::new(from.u64()?),
        order: from.u8()?,
    })
}

fn read_message(from: &mut Reader<'_>, source: EventSource) -> Result<Option<EventMessage>, RestoreError> {
    from.option("message", |from| {
        Ok(EventMessage {
            source,
            address: from.u64()?,
            data: from.u32()?,
        })
    })
}

struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_le_bytes());
    }

    /// A flag, and the value if there is one.
    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], RestoreError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let taken = rest
            .first_chunk::<N>()
            .ok_or(RestoreError::Truncated(self.bytes.len()))?;
        self.at += N;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, RestoreError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Result<u16, RestoreError> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, RestoreError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, RestoreError> {
        self.array().map(u64::from_le_bytes)
    }

    fn flag(&mut self, what: &'static str) -> Result<bool, RestoreError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(RestoreError::Value(what)),
        }
    }

    fn option<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Self) -> Result<T, RestoreError>,
    ) -> Result<Option<T>, RestoreError> {
        if self.flag(what)? {
            read(self).map(Some)
        } else {
            Ok(None)
        }
    }
}
