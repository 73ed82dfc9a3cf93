//! No IOMMU.

use core::convert::Infallible;
use core::fmt;

use iommu_iova::IovaRequest;
use iommu_types::{Iova, Perms, Piece};

use crate::backend::{Backend, Kind, NotMapped, When};
use crate::device::{Buffer, Device};

/// No IOMMU: devices use host addresses, and nothing keeps them from any of them.
///
/// There is nothing to hold back here; the type exists so that a program states what it does without, and so that
/// [`Kind`] can say it to whoever asks. Nor would copies keep an untrusted device from anything: buffers are copied
/// only where the device cannot address them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Direct;

/// What a program says, as loudly as it can, when it goes on with [`Direct`] because it found no IOMMU.
///
/// ```
/// use iommu_dma::{Kind, Unprotected};
///
/// let said = Unprotected.to_string();
/// assert!(said.starts_with(Unprotected::FACT) && said.ends_with(Unprotected::REMEDY));
/// assert!(Kind::Direct.to_string().contains(Unprotected::FACT));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unprotected;

impl Unprotected {
    /// What holds without an IOMMU.
    pub const FACT: &'static str = "NO IOMMU, NO ISOLATION: every device reaches all memory that it can address";
    /// What to do about it.
    pub const REMEDY: &'static str =
        "turn on the IOMMU (VT-d) in the firmware's setup, or give the virtual machine one (QEMU: -device intel-iommu)";
}

impl fmt::Display for Unprotected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", Self::FACT, Self::REMEDY)
    }
}

impl Backend for Direct {
    type Core = ();
    type Held = Infallible;
    type Stuck = Infallible;
    type Error = NotTranslated;

    fn kind(&self) -> Kind {
        Kind::Direct
    }

    fn new_core(&self) {}

    fn translates(&self, _device: &Device, _buffers: &[Buffer]) -> bool {
        false
    }

    fn map(
        &self,
        _core: &mut (),
        _request: IovaRequest,
        _pieces: &[Piece],
        _perms: Perms,
    ) -> Result<(Iova, Infallible), NotMapped<NotTranslated>> {
        Err(NotTranslated.into())
    }

    fn unmap(&self, _core: &mut (), held: Infallible, _when: When) -> Result<(), (NotTranslated, Infallible)> {
        match held {}
    }

    fn retry(&self, _core: &mut (), stuck: Infallible) -> Result<(), (NotTranslated, Infallible)> {
        match stuck {}
    }

    fn flush(&self, _core: &mut ()) -> Result<(), NotTranslated> {
        Ok(())
    }

    fn retire(&self, _core: ()) -> Result<(), NotTranslated> {
        Ok(())
    }

    fn invalidations(&self, _core: &()) -> u64 {
        0
    }
}

/// Something asked for translation where there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no IOMMU to translate addresses; use the memory's own")]
pub struct NotTranslated;
