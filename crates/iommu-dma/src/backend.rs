//! What stands between a device and memory: the part of the API that differs from machine to machine.

use core::fmt;

use iommu_iova::IovaRequest;
use iommu_types::{HostPhys, Iova, Perms, Piece};

use crate::device::{Buffer, Device};
use crate::direct::Unprotected;

/// What kind of protection and translation devices have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// An IOMMU with an address space of its own for the device.
    Translated,
    /// A classic aperture: one window in low memory, shared by all devices.
    Aperture,
    /// Nothing.
    Direct,
}

impl Kind {
    /// Whether a device is kept from memory that was not mapped for it.
    #[must_use]
    pub const fn isolates(self) -> bool {
        matches!(self, Self::Translated)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Translated => "translated: the device reaches what is mapped for it, and nothing else",
            Self::Aperture => {
                "aperture: NO ISOLATION; addresses in the window are translated, all other memory is open"
            }
            Self::Direct => return write!(f, "direct: {}", Unprotected::FACT),
        })
    }
}

/// When an unmap must have reached the hardware.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum When {
    /// Before the call returns.
    Now,
    /// Later, if the backend batches: the device may use the memory until then.
    Later,
}

/// A mapping that was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotMapped<E> {
    /// Why.
    pub error: E,
    /// Devices may use what was to be mapped all the same: the hardware did not confirm that it forgot it. The backend
    /// keeps the addresses out of use; the memory must stay out of use, too.
    pub in_doubt: bool,
}

impl<E> From<E> for NotMapped<E> {
    fn from(error: E) -> Self {
        let in_doubt = false;
        Self { error, in_doubt }
    }
}

/// A way to make memory reachable for a device.
///
/// Implementations are [`crate::Translated`], [`crate::Aperture`] and [`crate::Direct`]; [`crate::DmaApi`] is the
/// same above all of them.
pub trait Backend {
    /// What a core keeps to itself; see `iommu_iova::IovaAllocator::Core`.
    type Core: fmt::Debug;
    /// What keeps a mapping in place.
    type Held;
    /// An unmap that the hardware has not confirmed.
    type Stuck;
    /// Why a mapping could not be made or removed.
    type Error: core::error::Error;

    /// What this protects from.
    fn kind(&self) -> Kind;

    /// A new cache for a core.
    fn new_core(&self) -> Self::Core;

    /// Whether these buffers are to be mapped as one block of translated addresses; otherwise the device uses their
    /// own addresses.
    fn translates(&self, device: &Device, buffers: &[Buffer]) -> bool;

    /// Maps the pieces, which do not overlap, into a block of addresses that satisfies `request`.
    ///
    /// # Errors
    /// No addresses, or the address space refused; nothing is mapped then. [`NotMapped::in_doubt`] tells whether devices
    /// may use it nevertheless.
    fn map(
        &self,
        core: &mut Self::Core,
        request: IovaRequest,
        pieces: &[Piece],
        perms: Perms,
    ) -> Result<(Iova, Self::Held), NotMapped<Self::Error>>;

    /// Maps one run of `len` bytes of whole pages.
    ///
    /// # Errors
    /// `None` if that is not possible; [`Self::map`] then says why. An error is one that leaves devices with what was to
    /// be mapped.
    fn map_run(
        &self,
        core: &mut Self::Core,
        request: IovaRequest,
        phys: HostPhys,
        len: u64,
        perms: Perms,
    ) -> Result<(Iova, Self::Held), Option<Self::Error>> {
        self.map(core, request, &[Piece { offset: 0, phys, len }], perms)
            .map_err(|NotMapped { error, in_doubt }| in_doubt.then_some(error))
    }

    /// Removes a mapping.
    ///
    /// # Errors
    /// The hardware did not confirm; what is not confirmed comes back and can be tried again.
    fn unmap(&self, core: &mut Self::Core, held: Self::Held, when: When) -> Result<(), (Self::Error, Self::Stuck)>;

    /// Tries again to have an unmap confirmed.
    ///
    /// # Errors
    /// As [`Self::unmap`].
    fn retry(&self, core: &mut Self::Core, stuck: Self::Stuck) -> Result<(), (Self::Error, Self::Stuck)>;

    /// Has every unmap of this core confirmed that was put off.
    ///
    /// # Errors
    /// The hardware did not confirm all of them; the rest stays queued.
    fn flush(&self, core: &mut Self::Core) -> Result<(), Self::Error>;

    /// Gives everything `core` holds back; for a core that goes away.
    ///
    /// # Errors
    /// The hardware did not confirm what was put off: those addresses stay out of use for good.
    fn retire(&self, core: Self::Core) -> Result<(), Self::Error>;

    /// How many invalidations (waits for hardware) this core has asked for.
    fn invalidations(&self, core: &Self::Core) -> u64;
}
