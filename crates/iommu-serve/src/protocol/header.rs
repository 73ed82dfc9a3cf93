//! The sixteen bytes before every message.

use iommu_types::open_enum;

/// Bytes of a header.
pub const HEADER_LEN: usize = 16;

/// Bits of the flags word that say what the message is.
const FLAGS_KIND: u32 = 0xf;
/// The kind of a reply.
const FLAGS_REPLY: u32 = 1;
/// The sender of the command wants no reply.
const FLAGS_NO_REPLY: u32 = 1 << 4;
/// The reply reports an error.
const FLAGS_ERROR: u32 = 1 << 5;

open_enum! {
    /// What a message asks for.
    pub struct Command(u16) {
        /// Agree on protocol version and limits: always the first message.
        VERSION = 1,
        /// The client shares memory.
        DMA_MAP = 2,
        /// The client takes memory back.
        DMA_UNMAP = 3,
        /// What kind of device it is.
        DEVICE_GET_INFO = 4,
        /// Size and rights of one region.
        DEVICE_GET_REGION_INFO = 5,
        /// File descriptors through which parts of a region can be notified.
        DEVICE_GET_REGION_IO_FDS = 6,
        /// How many interrupts of a kind there are.
        DEVICE_GET_IRQ_INFO = 7,
        /// Where interrupts go, masking, triggering.
        DEVICE_SET_IRQS = 8,
        /// Read from a region.
        REGION_READ = 9,
        /// Write to a region.
        REGION_WRITE = 10,
        /// The server reads memory of the client.
        DMA_READ = 11,
        /// The server writes memory of the client.
        DMA_WRITE = 12,
        /// Reset the device.
        DEVICE_RESET = 13,
        /// Several small writes to regions at once.
        REGION_WRITE_MULTI = 15,
    }
}

/// Command or reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Asks for something.
    Command {
        /// The sender wants no answer, not even on errors.
        no_reply: bool,
    },
    /// Answers the command with the same message ID.
    Reply {
        /// The UNIX error number, if the command failed; 0 means that it failed without saying how.
        error: Option<u32>,
    },
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the sender of the command, echoed in the reply.
    pub id: u16,
    /// What is asked or answered.
    pub command: Command,
    /// Bytes of the whole message, this header included.
    pub size: u32,
    /// Command or reply.
    pub kind: Kind,
}

impl Header {
    /// Reads a header; `None` if the kind is neither command nor reply, which ends the connection: the stream cannot be
    /// trusted any more.
    #[must_use]
    pub fn parse(bytes: &[u8; HEADER_LEN]) -> Option<Self> {
        let [i0, i1, c0, c1, s0, s1, s2, s3, f0, f1, f2, f3, e0, e1, e2, e3] = *bytes;
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let kind = match flags & FLAGS_KIND {
            0 => Kind::Command {
                no_reply: flags & FLAGS_NO_REPLY != 0,
            },
            FLAGS_REPLY => Kind::Reply {
                error: (flags & FLAGS_ERROR != 0).then(|| u32::from_le_bytes([e0, e1, e2, e3])),
            },
            _ => return None,
        };
        Some(Self {
            id: u16::from_le_bytes([i0, i1]),
            command: Command(u16::from_le_bytes([c0, c1])),
            size: u32::from_le_bytes([s0, s1, s2, s3]),
            kind,
        })
    }

    /// The header as bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let (flags, error) = match self.kind {
            Kind::Command { no_reply } => (if no_reply { FLAGS_NO_REPLY } else { 0 }, 0),
            Kind::Reply { error: None } => (FLAGS_REPLY, 0),
            Kind::Reply { error: Some(errno) } => (FLAGS_REPLY | FLAGS_ERROR, errno),
        };
        let [i0, i1] = self.id.to_le_bytes();
        let [c0, c1] = self.command.0.to_le_bytes();
        let [s0, s1, s2, s3] = self.size.to_le_bytes();
        let [f0, f1, f2, f3] = flags.to_le_bytes();
        let [e0, e1, e2, e3] = error.to_le_bytes();
        [i0, i1, c0, c1, s0, s1, s2, s3, f0, f1, f2, f3, e0, e1, e2, e3]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_have_the_bytes_of_the_protocol() {
        let posted = Header {
            id: 0x1234,
            command: Command::REGION_WRITE,
            size: 36,
            kind: Kind::Command { no_reply: true },
        };
        let bytes = [0x34, 0x12, 10, 0, 36, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(posted.to_bytes(), bytes);
        assert_eq!(Header::parse(&bytes), Some(posted));

        let failed = Header {
            id: 7,
            command: Command::DMA_MAP,
            size: 16,
            kind: Kind::Reply { error: Some(17) },
        };
        let bytes = [7, 0, 2, 0, 16, 0, 0, 0, 0x21, 0, 0, 0, 17, 0, 0, 0];
        assert_eq!(failed.to_bytes(), bytes);
        assert_eq!(Header::parse(&bytes), Some(failed));
    }

    #[test]
    fn a_kind_that_does_not_exist_is_no_header() {
        let mut bytes = [0; HEADER_LEN];
        bytes[8] = 2;
        assert_eq!(Header::parse(&bytes), None);
    }
}
