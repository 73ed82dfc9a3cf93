//! What clients ask for.

use super::{Command, DATA_MAX, FDS_MAX, Refusal, Version};

/// Most writes in one [`Request::WriteMulti`].
pub const WRITES_MAX: u64 = 1024;
/// Bytes of one write in a [`Request::WriteMulti`]; its data always takes eight.
const WRITE_LEN: usize = 24;
/// Most interrupts that one message can set up.
const IRQS_MAX: u32 = 2048;

/// A window of client memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaRange {
    /// First address, as devices use it.
    pub address: u64,
    /// Length in bytes, not zero; the last byte does not pass the end of the address space.
    pub len: u64,
}

impl DmaRange {
    fn new(command: Command, address: u64, len: u64) -> Result<Self, Refusal> {
        if len == 0 || address.checked_add(len - 1).is_none() {
            return Err(Refusal::invalid(
                command,
                format!("{len:#x} bytes at {address:#x} are no range of addresses"),
            ));
        }
        Ok(Self { address, len })
    }

    /// The last address.
    #[must_use]
    pub const fn last(&self) -> u64 {
        self.address.saturating_add(self.len - 1)
    }
}

/// What to do with interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqAction {
    /// Hold them back.
    Mask,
    /// Let them through again.
    Unmask,
    /// Say where they go, or raise them.
    Trigger,
}

/// What comes with an [`IrqAction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IrqData<'a> {
    /// Nothing: the action holds for all interrupts named.
    None,
    /// One byte each: zero leaves that interrupt alone.
    Bools(&'a [u8]),
    /// One event file descriptor each, or none at all, which takes them away.
    Events,
}

/// The payload of [`Command::DEVICE_SET_IRQS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetIrqs<'a> {
    /// Which kind: INTx, MSI, MSI-X, …
    pub index: u32,
    /// First interrupt of that kind.
    pub start: u32,
    /// How many.
    pub count: u32,
    /// What to do.
    pub action: IrqAction,
    /// With what.
    pub data: IrqData<'a>,
}

/// One write of a [`Request::WriteMulti`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write<'a> {
    /// Which region.
    pub region: u32,
    /// Byte offset into it.
    pub offset: u64,
    /// What to write, at most eight bytes.
    pub data: &'a [u8],
}

/// The writes of a [`Request::WriteMulti`], judged already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Writes<'a>(&'a [u8]);

impl<'a> Writes<'a> {
    /// The writes in order.
    pub fn iter(&self) -> impl Iterator<Item = Write<'a>> {
        self.0.chunks_exact(WRITE_LEN).filter_map(|bytes| {
            let mut fields = Fields::new(Command::REGION_WRITE_MULTI, bytes);
            let (offset, region, count) = (fields.u64().ok()?, fields.u32().ok()?, fields.u32().ok()?);
            let data = bytes.get(16..16 + usize::try_from(count).ok()?)?;
            Some(Write { region, offset, data })
        })
    }
}

/// A command of a client with its payload.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request<'a> {
    /// Agree on a version.
    Version(Version),
    /// Memory is shared.
    DmaMap {
        /// Where.
        range: DmaRange,
        /// Devices may read it.
        readable: bool,
        /// Devices may write it.
        writable: bool,
        /// Where it begins in the file that comes along, in bytes.
        offset: u64,
    },
    /// Memory is taken back.
    DmaUnmap {
        /// Exactly a range that was mapped.
        range: DmaRange,
    },
    /// What kind of device it is.
    DeviceInfo,
    /// A region's size and rights.
    RegionInfo {
        /// Which region.
        index: u32,
    },
    /// File descriptors of a region: this server has none.
    RegionIoFds {
        /// Which region.
        index: u32,
    },
    /// How many interrupts of a kind there are.
    IrqInfo {
        /// Which kind.
        index: u32,
    },
    /// Interrupt set-up.
    SetIrqs(SetIrqs<'a>),
    /// A read of a region.
    RegionRead {
        /// Which region.
        region: u32,
        /// Byte offset.
        offset: u64,
        /// Bytes, at most [`DATA_MAX`].
        count: u32,
    },
    /// A write to a region.
    RegionWrite(RegionWrite<'a>),
    /// Several small writes.
    WriteMulti(Writes<'a>),
    /// Reset.
    Reset,
}

/// The payload of [`Command::REGION_WRITE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionWrite<'a> {
    /// Which region.
    pub region: u32,
    /// Byte offset.
    pub offset: u64,
    /// What to write.
    pub data: &'a [u8],
}

impl<'a> Request<'a> {
    /// Reads the payload of `command`.
    ///
    /// # Errors
    /// [`Refusal`] names the field and its rule; `EOPNOTSUPP` for a command that this server does not know.
    pub fn parse(command: Command, payload: &'a [u8]) -> Result<Self, Refusal> {
        let mut fields = Fields::new(command, payload);
        match command {
            Command::VERSION => Version::parse(payload).map(Self::Version),
            Command::DMA_MAP => {
                let (_argsz, flags) = (fields.u32()?, fields.u32()?);
                let (offset, address, len) = (fields.u64()?, fields.u64()?, fields.u64()?);
                Ok(Self::DmaMap {
                    range: DmaRange::new(command, address, len)?,
                    readable: flags & 1 != 0,
                    writable: flags & 2 != 0,
                    offset,
                })
            }
            Command::DMA_UNMAP => {
                let (_argsz, _flags) = (fields.u32()?, fields.u32()?);
                let (address, len) = (fields.u64()?, fields.u64()?);
                Ok(Self::DmaUnmap {
                    range: DmaRange::new(command, address, len)?,
                })
            }
            Command::DEVICE_GET_INFO => Ok(Self::DeviceInfo),
            Command::DEVICE_GET_REGION_INFO => Ok(Self::RegionInfo { index: fields.index()? }),
            Command::DEVICE_GET_REGION_IO_FDS => Ok(Self::RegionIoFds { index: fields.index()? }),
            Command::DEVICE_GET_IRQ_INFO => Ok(Self::IrqInfo { index: fields.index()? }),
            Command::DEVICE_SET_IRQS => Self::set_irqs(fields),
            Command::REGION_READ => {
                let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
                if count > DATA_MAX {
                    return Err(fields.refuse("more bytes are asked for than max_data_xfer_size"));
                }
                Ok(Self::RegionRead { region, offset, count })
            }
            Command::REGION_WRITE => {
                let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
                if count > DATA_MAX || usize::try_from(count) != Ok(fields.rest.len()) {
                    return Err(fields.refuse("count is not the number of bytes that follow"));
                }
                let data = fields.rest;
                Ok(Self::RegionWrite(RegionWrite { region, offset, data }))
            }
            Command::REGION_WRITE_MULTI => {
                let count = fields.u64()?;
                let whole = fields.rest.len().is_multiple_of(WRITE_LEN);
                if count > WRITES_MAX || !whole || usize::try_from(count) != Ok(fields.rest.len() / WRITE_LEN) {
                    return Err(fields.refuse("the number of writes is not the number that follows"));
                }
                let writes = Writes(fields.rest);
                if writes.iter().count() != fields.rest.len() / WRITE_LEN || writes.iter().any(|w| w.data.len() > 8) {
                    return Err(fields.refuse("a write of a batch has more than 8 bytes"));
                }
                Ok(Self::WriteMulti(writes))
            }
            Command::DEVICE_RESET => Ok(Self::Reset),
            _ => Err(Refusal::with(
                command,
                rustix::io::Errno::OPNOTSUPP,
                "the command is unknown here",
            )),
        }
    }

    fn set_irqs(mut fields: Fields<'a>) -> Result<Self, Refusal> {
        let (_argsz, flags, index) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (start, count) = (fields.u32()?, fields.u32()?);
        if count > IRQS_MAX || start.checked_add(count).is_none_or(|end| end > IRQS_MAX) {
            return Err(fields.refuse("no device has so many interrupts"));
        }
        let data = match flags & 0b111 {
            0b001 => IrqData::None,
            0b010 if usize::try_from(count) == Ok(fields.rest.len()) => IrqData::Bools(fields.rest),
            0b100 if usize::try_from(count).is_ok_and(|count| count <= FDS_MAX) => IrqData::Events,
            0b010 => return Err(fields.refuse("one byte must follow for each interrupt")),
            0b100 => return Err(fields.refuse("more interrupts than file descriptors fit into a message")),
            _ => return Err(fields.refuse("exactly one kind of data must be named")),
        };
        let action = match flags & 0b11_1000 {
            0b00_1000 => IrqAction::Mask,
            0b01_0000 => IrqAction::Unmask,
            0b10_0000 => IrqAction::Trigger,
            _ => return Err(fields.refuse("exactly one action must be named")),
        };
        Ok(Self::SetIrqs(SetIrqs {
            index,
            start,
            count,
            action,
            data,
        }))
    }
}

/// The fields of a payload, read in order.
struct Fields<'a> {
    command: Command,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    const fn new(command: Command, rest: &'a [u8]) -> Self {
        Self { command, rest }
    }

    fn refuse(&self, why: &str) -> Refusal {
        Refusal::invalid(self.command, why)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        match self.rest.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.rest = rest;
                Ok(*head)
            }
            None => Err(self.refuse("the message ends inside its fields")),
        }
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        self.take().map(u64::from_le_bytes)
    }

    /// argsz, flags, then the index.
    fn index(&mut self) -> Result<u32, Refusal> {
        let (_argsz, _flags) = (self.u32()?, self.u32()?);
        self.u32()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_dma_window_has_a_length_and_does_not_wrap() {
        let map = words(&[32, 3, 0x1000, 0, 0x8000_0000, 0, 0x4000_0000, 0]);
        let Ok(Request::DmaMap {
            range,
            readable,
            writable,
            offset,
        }) = Request::parse(Command::DMA_MAP, &map)
        else {
            panic!("refused");
        };
        assert_eq!(
            (range.address, range.len, range.last()),
            (0x8000_0000, 0x4000_0000, 0xbfff_ffff)
        );
        assert!(readable && writable);
        assert_eq!(offset, 0x1000);
        let empty = words(&[32, 3, 0, 0, 0x1000, 0, 0, 0]);
        assert!(Request::parse(Command::DMA_MAP, &empty).is_err());
        let wrapping = words(&[24, 0, 0xffff_f000, 0xffff_ffff, 0x1001, 0]);
        assert!(Request::parse(Command::DMA_UNMAP, &wrapping).is_err());
    }

    #[test]
    fn counts_have_to_match_what_follows() {
        let write = |count: u32, data: &[u8]| [words(&[0x18, 0, 0, count]), data.to_vec()].concat();
        assert!(Request::parse(Command::REGION_WRITE, &write(4, &[1, 2, 3, 4])).is_ok());
        assert!(Request::parse(Command::REGION_WRITE, &write(5, &[1, 2, 3, 4])).is_err());
        assert!(Request::parse(Command::REGION_WRITE, &write(3, &[1, 2, 3, 4])).is_err());
        assert!(Request::parse(Command::REGION_READ, &words(&[0, 0, 7, DATA_MAX + 1])).is_err());
    }

    #[test]
    fn batches_are_read_in_order_and_refused_as_a_whole() {
        let one = |offset: u32, count: u32| words(&[offset, 0, 0, count, 0xaabb_ccdd, 0]);
        let batch = [words(&[2, 0]), one(0x10, 4), one(0x18, 8)].concat();
        let Ok(Request::WriteMulti(writes)) = Request::parse(Command::REGION_WRITE_MULTI, &batch) else {
            panic!("refused");
        };
        let offsets: Vec<_> = writes.iter().map(|w| (w.offset, w.data.len())).collect();
        assert_eq!(offsets, [(0x10, 4), (0x18, 8)]);
        let long = [words(&[1, 0]), one(0, 9)].concat();
        assert!(Request::parse(Command::REGION_WRITE_MULTI, &long).is_err());
        let short = [words(&[2, 0]), one(0, 4)].concat();
        assert!(Request::parse(Command::REGION_WRITE_MULTI, &short).is_err());
    }

    #[test]
    fn interrupt_flags_name_one_kind_of_data_and_one_action() {
        let set = |flags: u32, count: u32| words(&[20, flags, 2, 0, count]);
        assert!(Request::parse(Command::DEVICE_SET_IRQS, &set(0x24, 3)).is_ok());
        for flags in [0, 0x20, 0x07, 0x23, 0x1c] {
            assert!(
                Request::parse(Command::DEVICE_SET_IRQS, &set(flags, 1)).is_err(),
                "{flags:#x}"
            );
        }
        assert!(Request::parse(Command::DEVICE_SET_IRQS, &set(0x24, 17)).is_err());
        assert!(Request::parse(Command::DEVICE_SET_IRQS, &set(0x21, u32::MAX)).is_err());
    }

    proptest! {
        #[test]
        fn no_payload_panics(command in 0u16..20, payload in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(Command(command), &payload);
        }
    }
}
