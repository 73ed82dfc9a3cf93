//! Which pages devices have written, as the unit notes it in second-stage tables.

use iommu_pagetable::{DirtyBits, DirtyError};
use iommu_types::{AddrRange, Iova, Registers};
use thiserror::Error;

use crate::domain::Domain;
use crate::error::{Reachable, Unconfirmed};
use crate::pages::Stale;
use crate::shared::Host;
use crate::space::Stages;

/// Written pages could not be told, or not for sure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DirtyReadError {
    /// The domain does not note writes, or not at these addresses.
    #[error(transparent)]
    Table(#[from] DirtyError),
    /// What was reported is true and the bits are cleared, but the unit did not confirm that it forgot them: it may
    /// write through what it has cached without noting it again. Treat all that the error names as written.
    #[error(transparent)]
    Unconfirmed(#[from] Unconfirmed),
}

impl<R: Registers, P: Host> Domain<R, P> {
    /// Reports each page of `range` that devices have written since its bit was last cleared, lowest first; a superpage
    /// counts as a whole. With [`DirtyBits::Clear`] the bits are taken, and on return the unit notes new writes again.
    ///
    /// Needs [`crate::DomainOptions::track_writes`]. What is unmapped takes its bits along: read them before.
    ///
    /// # Errors
    /// [`DirtyReadError`].
    pub fn read_dirty(
        &self,
        range: AddrRange<Iova>,
        bits: DirtyBits,
        report: impl FnMut(AddrRange<Iova>),
    ) -> Result<(), DirtyReadError> {
        let Stages::Second { table, .. } = &self.space.stages else {
            return Err(DirtyError::NotTracked.into());
        };
        let cleared = table.read_dirty(&self.shared.host, range, bits, report)?;
        let Some(range) = cleared.range() else {
            return Ok(());
        };
        // A cached leaf is dirty already, and is not noted a second time (VT-d §3.7.2, accessed and dirty flags).
        let leaf_only = true;
        self.space
            .invalidate(&self.shared, &[Stale { range, leaf_only }])
            .map_err(|cause| {
                let domain = self.space.id;
                let reachable = Reachable::Range { domain, range };
                Unconfirmed { reachable, cause }.into()
            })
    }
}
