//! One served function and what its connections share.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_devices::{ConfigSpace, Function};
use iommu_groups::pci::{header, msi, msix};
use iommu_types::SourceId;

use crate::irqs::{INDICES, Irqs, KINDS};
use crate::link::Traffic;

/// Regions of a VFIO PCI device: six BARs, the ROM, configuration space, VGA.
pub(crate) const REGIONS: u32 = 9;
/// VFIO index of configuration space.
pub(crate) const CONFIG_REGION: u32 = 7;

/// What a function is to the unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is the unit.
    Unit,
    /// Its DMA goes through the unit.
    Behind,
    /// Its addresses are the client's: the unit is left out.
    Bypass,
}

/// A function with a socket.
#[derive(Debug)]
pub struct Slot {
    name: String,
    source: SourceId,
    role: Role,
    function: Mutex<Box<dyn Function>>,
    pub(crate) irqs: Irqs,
    traffic: Arc<Traffic>,
}

impl Slot {
    pub(crate) fn new(name: String, source: SourceId, role: Role, function: Box<dyn Function>) -> Self {
        let irqs = Irqs::new(interrupts(function.config()));
        Self {
            name,
            source,
            role,
            function: Mutex::new(function),
            irqs,
            traffic: Arc::default(),
        }
    }

    /// What people and sockets call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it is plugged in: requester ID of its DMA, and the address that the client must give it.
    pub const fn source(&self) -> SourceId {
        self.source
    }

    /// Messages of all its connections.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    pub(crate) const fn role(&self) -> Role {
        self.role
    }

    /// The function itself.
    pub fn function(&self) -> MutexGuard<'_, Box<dyn Function>> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Bytes of region `index`; 0 for one that is not there, `None` for one that no PCI device has.
    pub(crate) fn region_size(&self, index: u32) -> Option<u64> {
        if index == CONFIG_REGION {
            return Some(self.function().config().len().into());
        }
        let bar = u8::try_from(index).ok().filter(|_| index < REGIONS)?;
        Some(self.function().config().bar(bar).map_or(0, |bar| bar.size()))
    }

    /// Kinds of interrupts that VFIO counts.
    pub(crate) const fn irq_indices() -> u32 {
        INDICES
    }
}

/// How many interrupts of each kind a function has: INTx, MSI, MSI-X.
fn interrupts(config: &ConfigSpace) -> [u32; KINDS] {
    let pin = u32::from(config.read8(header::INTERRUPT_PIN) != 0);
    let messages = config.msi_at().map_or(0, |at| {
        let control = config.read16(at + msi::CONTROL);
        1 << (control >> msi::CAPABLE_SHIFT & msi::COUNT_MASK).min(msi::MAX_LOG2_VECTORS.into())
    });
    let vectors = config
        .msi_x_at()
        .map_or(0, |at| u32::from(config.read16(at + msix::CONTROL) & msix::SIZE) + 1);
    [pin, messages, vectors]
}
