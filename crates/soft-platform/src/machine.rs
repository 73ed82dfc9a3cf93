//! The machine: memory, units and functions, put together.

mod assemble;
mod functions;

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use acpi_dmar::{Dmar, ParseError, Why};
use iommu_types::{
    Access, AddrRange, Bdf, BusError, Clock, Coherence, FrameRequest, HostPhys, Iova, OutOfFrames, SourceId,
    SystemMemory, Table, TableFrame, TableMemory,
};
use vtd_model::{Profile, UnitConfigBuilder};

pub use self::functions::{FunctionInfo, NoFunction};
use crate::description::{Assumption, MachineDescription};
use crate::fabric::{Meters, SharedDecodes};
use crate::interrupts::{Arrival, Sink};
use crate::memory::{MachineMemory, MemoryLayoutError};
use crate::route::Tree;
use crate::units::{RefusedUnit, UnitSlot};

/// Blocks by the platform that are kept until somebody asks for them; older ones make room.
const KEPT_BLOCKS: usize = 1024;

/// A machine in software.
///
/// A cheap handle: clones are the same machine, and any number of threads may use it. It is the host of a
/// driver ([`TableMemory`], [`Coherence`], [`Clock`]) and what its units and functions see of memory
/// ([`SystemMemory`]).
#[derive(Clone)]
pub struct Machine {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) description: MachineDescription,
    pub(crate) dmar: Vec<u8>,
    pub(crate) memory: MachineMemory,
    /// What is kept out of use for firmware.
    pub(crate) reserved: Vec<AddrRange<HostPhys>>,
    pub(crate) units: Vec<UnitSlot>,
    pub(crate) refused: Vec<RefusedUnit>,
    pub(crate) functions: Vec<functions::Slot>,
    pub(crate) tree: Tree,
    /// What each function answers to, in the order of `functions`. Never held while another lock is taken.
    pub(crate) decodes: SharedDecodes,
    pub(crate) interrupts: Sink,
    pub(crate) blocked: Mutex<VecDeque<PlatformBlock>>,
    pub(crate) meters: Meters,
    pub(crate) uncovered: Uncovered,
    started: Instant,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.shared.description.name)
            .field("units", &self.shared.units.len())
            .field("functions", &self.shared.functions.len())
            .finish_non_exhaustive()
    }
}

/// What happens to DMA of a function that a table, read to its end, leaves to no unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Uncovered {
    /// It reaches memory, as on hardware.
    #[default]
    Passes,
    /// The platform blocks it.
    Blocked,
}

/// How a machine is made.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineOptions {
    /// Behaviour of the units where the specification leaves freedom.
    pub profile: Profile,
    /// What the units are able to do; the host address width is taken from the table.
    pub unit: UnitConfigBuilder,
    /// What happens to DMA that no unit covers.
    pub uncovered: Uncovered,
}

/// Who looks at the DMA of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// The unit with this position among the machine's units, and the statement of the table that says so.
    Unit(usize, Why),
    /// No unit: the whole table was read, and nothing in it covers the function.
    Uncovered,
    /// It cannot be known, so the platform lets nothing through.
    Blocked(acpi_dmar::Doubt),
}

impl Service {
    /// The unit's position, if there is one.
    #[must_use]
    pub const fn unit(self) -> Option<usize> {
        match self {
            Self::Unit(index, _) => Some(index),
            Self::Uncovered | Self::Blocked(_) => None,
        }
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit(index, why) => write!(f, "unit {index}: {why}"),
            Self::Uncovered => f.write_str("no unit: nothing in the table covers it, its DMA is not remapped"),
            Self::Blocked(doubt) => write!(f, "no unit, blocked: {doubt}"),
        }
    }
}

/// A request that the platform itself stopped, since no unit could be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformBlock {
    /// The function that sent it.
    pub function: Bdf,
    /// The requester ID as it arrived.
    pub source: SourceId,
    /// The address.
    pub address: Iova,
    /// What it wanted to do.
    pub access: Access,
    /// Why there is nobody to ask.
    pub service: Service,
}

impl fmt::Display for PlatformBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} by {} blocked by the platform: {}",
            self.access, self.address, self.function, self.service
        )
    }
}

/// A machine that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The bytes are not a DMAR table.
    #[error("the firmware table cannot be used: {0}")]
    Table(#[from] ParseError),
    /// Addresses are too short for a machine.
    #[error(
        "the firmware table cannot be used: the host address width (offset 36) gives addresses {0} bits, and no \
         machine with VT-d has fewer than {min}; the firmware has to be corrected", min = assemble::MODEL_WIDTHS.start()
    )]
    Width(u16),
    /// The memory of the description is impossible.
    #[error(transparent)]
    Memory(#[from] MemoryLayoutError),
    /// Registers of devices do not fit where they belong.
    #[error(
        "no address left in the window {window} for the registers of {function}: make the host bridge's window larger"
    )]
    WindowFull {
        /// The function without an address.
        function: Bdf,
        /// The window of its host bridge.
        window: AddrRange<HostPhys>,
    },
    /// A function cannot be built as described.
    #[error("function {function} cannot be built: {problem}")]
    Function {
        /// The function.
        function: Bdf,
        /// What is impossible about it.
        problem: String,
    },
    /// The units cannot be built with these options.
    #[error("the units cannot be built with these options: {0}")]
    Unit(#[from] vtd_model::ConfigError),
}

impl Machine {
    /// The machine of `description` with the units that the table `dmar` names, and only those.
    ///
    /// # Errors
    /// [`MachineError`]. A table with mistakes inside is no error: what can be used is used, the rest is
    /// refused ([`Machine::refused_units`]) or blocked ([`Service::Blocked`]).
    pub fn build(description: &MachineDescription, dmar: &[u8]) -> Result<Self, MachineError> {
        Self::build_with(description, dmar, MachineOptions::default())
    }

    /// As [`Machine::build`], with options.
    ///
    /// # Errors
    /// As [`Machine::build`].
    pub fn build_with(
        description: &MachineDescription,
        dmar: &[u8],
        options: MachineOptions,
    ) -> Result<Self, MachineError> {
        assemble::machine(description, Some(dmar), options)
    }

    /// The machine that a firmware table implies: [`MachineDescription::from_dmar`] with its units, and what was
    /// assumed on the way.
    ///
    /// # Errors
    /// As [`Machine::build`].
    pub fn from_dmar(dmar: &[u8], options: MachineOptions) -> Result<(Self, Vec<Assumption>), MachineError> {
        let (description, assumptions) = MachineDescription::from_dmar(dmar)?;
        Ok((Self::build_with(&description, dmar, options)?, assumptions))
    }

    /// The same machine as if it had no IOMMU: no table, no units, all DMA passes.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn without_iommu(description: &MachineDescription) -> Result<Self, MachineError> {
        assemble::machine(description, None, MachineOptions::default())
    }

    /// What the machine was made from.
    #[must_use]
    pub fn description(&self) -> &MachineDescription {
        &self.shared.description
    }

    /// The firmware table, if there is one.
    #[must_use]
    pub fn dmar(&self) -> Option<Dmar<'_>> {
        Dmar::parse(&self.shared.dmar).ok()
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &MachineMemory {
        &self.shared.memory
    }

    /// Whether the machine keeps all memory of `range` out of use, since firmware reserves it (RMRR). A region
    /// for which it does not (one that would leave nothing to run with) must not be opened to a device.
    #[must_use]
    pub fn keeps_reserved(&self, range: AddrRange<HostPhys>) -> bool {
        self.shared.reserved.iter().any(|kept| kept.covers(range))
    }

    /// Takes the interrupts that arrived since the last call, oldest first.
    #[must_use]
    pub fn take_interrupts(&self) -> Vec<Arrival> {
        self.shared.interrupts.take()
    }

    /// Tells `listener` of each interrupt when it arrives, by the thread that delivers it; one for which it says true
    /// is not kept for [`Self::take_interrupts`]. It must not access the machine, whose locks may be held. Set once;
    /// false if there is a listener already.
    pub fn listen_to_interrupts(&self, listener: impl Fn(&Arrival) -> bool + Send + Sync + 'static) -> bool {
        self.shared.interrupts.listen(Box::new(listener))
    }

    /// Takes the requests that the platform stopped since the last call, oldest first.
    #[must_use]
    pub fn take_platform_blocks(&self) -> Vec<PlatformBlock> {
        let mut blocked = self.shared.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        blocked.drain(..).collect()
    }

    pub(crate) fn log_block(&self, block: PlatformBlock) {
        let mut blocked = self.shared.blocked.lock().unwrap_or_else(PoisonError::into_inner);
        if blocked.len() == KEPT_BLOCKS {
            blocked.pop_front();
        }
        blocked.push_back(block);
    }
}

impl TableMemory for Machine {
    fn allocate(&self, request: FrameRequest) -> Result<TableFrame, OutOfFrames> {
        self.shared.memory.allocate(request)
    }
    fn free(&self, frame: TableFrame) {
        self.shared.memory.free(frame);
    }
    fn table(&self, at: HostPhys) -> Option<&Table> {
        self.shared.memory.table(at)
    }
}

/// The units snoop: there is nothing to write back.
impl Coherence for Machine {
    fn write_back(&self, _at: HostPhys, _len: u64) {}
}

impl Clock for Machine {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.shared.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn relax(&self) {
        if !self.step_units() {
            std::thread::yield_now();
        }
    }
}

impl SystemMemory for Machine {
    fn read_u64(&self, at: HostPhys) -> Result<u64, BusError> {
        self.shared.memory.read_u64(at)
    }
    fn write_u64(&self, at: HostPhys, value: u64) -> Result<(), BusError> {
        self.shared.memory.write_u64(at, value)
    }
    fn write_u32(&self, at: HostPhys, value: u32) -> Result<(), BusError> {
        self.shared.memory.write_u32(at, value)
    }
    fn compare_exchange_u64(&self, at: HostPhys, current: u64, new: u64) -> Result<u64, BusError> {
        self.shared.memory.compare_exchange_u64(at, current, new)
    }
    fn read(&self, at: HostPhys, into: &mut [u8]) -> Result<(), BusError> {
        self.shared.memory.read(at, into)
    }
    fn write(&self, at: HostPhys, from: &[u8]) -> Result<(), BusError> {
        self.shared.memory.write(at, from)
    }
}
