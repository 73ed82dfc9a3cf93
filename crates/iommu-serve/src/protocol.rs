//! The vfio-user protocol: messages as bytes.
//!
//! Everything here is pure: bytes in, values out, and back. What a peer sends is never trusted; a message that breaks a
//! rule becomes a [`Refusal`], which the session answers with an error reply. Numbers are in the byte order of the host,
//! as the protocol has it; this server runs on little-endian machines only, and says so by encoding little-endian.

mod header;
mod reply;
mod request;
mod version;

pub use header::{Command, HEADER_LEN, Header, Kind};
pub use reply::{DeviceInfo, IrqInfo, RegionInfo, dma_access, region_access};
pub use request::{DmaRange, IrqAction, IrqData, Request, SetIrqs, WRITES_MAX, Write, Writes};
pub use version::{Capabilities, VERSION_MAJOR, VERSION_MINOR, Version};

use rustix::io::Errno;
use thiserror::Error;

/// Most bytes of data in one read or write message, as this server tells its peers (`max_data_xfer_size`).
pub const DATA_MAX: u32 = 1 << 20;
/// Most bytes of a message without its header: the data and the fields before it.
pub const PAYLOAD_MAX: u32 = DATA_MAX + 4096;
/// Most file descriptors that one message may carry (`max_msg_fds`).
pub const FDS_MAX: usize = 16;
/// Most DMA windows that one connection may hold (`max_dma_maps`).
pub const DMA_MAPS_MAX: usize = 1024;

/// A request that is not carried out; the peer gets `errno`, the log gets `why`.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{command:?} refused with error {errno}: {why}", errno = self.errno.raw_os_error())]
pub struct Refusal {
    /// Which command.
    pub command: Command,
    /// The UNIX error number that goes into the reply.
    pub errno: Errno,
    /// The broken rule, for people.
    pub why: String,
}

impl Refusal {
    /// Refuses `command` with EINVAL.
    pub fn invalid(command: Command, why: impl Into<String>) -> Self {
        Self::with(command, Errno::INVAL, why)
    }

    /// Refuses `command` with `errno`.
    pub fn with(command: Command, errno: Errno, why: impl Into<String>) -> Self {
        Self {
            command,
            errno,
            why: why.into(),
        }
    }
}
