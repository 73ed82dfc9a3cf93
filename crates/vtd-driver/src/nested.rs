//! Domains of a guest's own tables over a second-stage domain.

use core::fmt;

use alloc::sync::Arc;

use iommu_types::{AddrRange, DomainId, Iova, Registers};

use crate::domain::{NotDestroyed, destroy};
use crate::error::{Reachable, Unconfirmed};
use crate::pages::Stale;
use crate::shared::{Host, Shared};
use crate::space::Space;

/// An address space that a guest maps in first-stage tables of its own; what they lead to goes through the
/// second-stage tables of the parent domain. Scalable mode only.
///
/// The driver cannot see the guest's changes: whoever runs the guest passes its invalidations on.
pub struct NestedDomain<R, P> {
    pub(crate) shared: Arc<Shared<R, P>>,
    pub(crate) space: Arc<Space>,
}

impl<R, P> fmt::Debug for NestedDomain<R, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NestedDomain")
            .field("id", &self.space.id)
            .finish_non_exhaustive()
    }
}

impl<R: Registers, P: Host> NestedDomain<R, P> {
    /// The identifier on the unit.
    #[must_use]
    pub fn id(&self) -> DomainId {
        self.space.id
    }

    /// Makes the unit forget the translations of `range`. `leaf_only` is the guest's statement that it changed
    /// no entry above the lowest level.
    ///
    /// # Errors
    /// [`Unconfirmed`].
    pub fn invalidate(&self, range: AddrRange<Iova>, leaf_only: bool) -> Result<(), Unconfirmed> {
        let domain = self.space.id;
        self.space
            .invalidate(&self.shared, &[Stale { range, leaf_only }])
            .map_err(|cause| Unconfirmed {
                reachable: Reachable::Range { domain, range },
                cause,
            })
    }

    /// Gives the identifier back, after the unit has forgotten everything under it.
    ///
    /// # Errors
    /// [`NotDestroyed`] with the domain, if devices are attached or the unit did not confirm.
    pub fn destroy(self) -> Result<(), NotDestroyed<Self>> {
        let Self { shared, space } = self;
        destroy(&shared, space).map_err(|(cause, space)| NotDestroyed {
            cause,
            domain: Self { shared, space },
        })
    }
}
