//! Groups: what is handed to a user as a whole.

use std::fmt;

use iommu_types::Bdf;

use crate::backend::Backend;
use crate::error::VfioError;
use crate::platform::{Driver, GroupInfo, Platform};
use crate::software::Software;

/// The number of a group on its platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub usize);

impl fmt::Display for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A request that was refused, with the object it was made on, unchanged.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct Refused<T: fmt::Debug> {
    /// Why.
    #[source]
    pub cause: VfioError,
    /// The object.
    pub object: T,
}

impl<T: fmt::Debug> From<Refused<T>> for VfioError {
    fn from(refused: Refused<T>) -> Self {
        refused.cause
    }
}

/// The right to be the one who has a group open.
#[derive(Debug)]
pub(crate) struct GroupHandle {
    pub(crate) platform: Platform,
    pub(crate) id: GroupId,
}

impl Drop for GroupHandle {
    fn drop(&mut self) {
        self.platform.state().open.remove(&self.id);
    }
}

/// State of a [`Group`]: open, nothing checked.
#[derive(Clone, Copy, Debug)]
pub struct Opened;

/// State of a [`Group`]: it can be given to a user as a whole.
#[derive(Clone, Copy, Debug)]
pub struct Viable;

/// A group that is open. Only a viable one goes into a container:
///
/// ```compile_fail
/// # use iommu_vfio::{Container, Group, NoIommu, Opened};
/// fn too_early(container: &mut Container<NoIommu>, group: Group<Opened>) {
///     let _ = container.attach(group); // expected Group<Viable>
/// }
/// ```
///
/// Dropping it closes it.
#[derive(Debug)]
pub struct Group<S, B: Backend = Software> {
    pub(crate) handle: B::Group,
    _state: S,
}

impl<S, B: Backend> Group<S, B> {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> GroupId {
        B::group_id(&self.handle)
    }
}

impl<S> Group<S, Software> {
    /// Its members and the reasons for them.
    #[must_use]
    pub fn info(&self) -> GroupInfo {
        self.handle.0.info()
    }
}

impl<B: Backend> Group<Viable, B> {
    /// A group that was checked before.
    pub(crate) const fn viable_again(handle: B::Group) -> Self {
        Self { handle, _state: Viable }
    }
}

impl<B: Backend> Group<Opened, B> {
    /// Opens group `id` of `backend`. It can be open once.
    ///
    /// # Errors
    /// [`VfioError::NoGroup`], [`VfioError::GroupOpen`]; on Linux also [`VfioError::NoVfioDriver`].
    pub fn open(backend: &B, id: GroupId) -> Result<Self, VfioError> {
        backend.open(id).map(Self::opened)
    }

    pub(crate) const fn opened(handle: B::Group) -> Self {
        Self { handle, _state: Opened }
    }

    /// Checks that the group can be given to a user: every endpoint is on a VFIO driver or on none, one at least
    /// is on a VFIO driver, a unit translates the DMA of each, and nobody can forge interrupts. (Linux tells the last
    /// two when an IOMMU is chosen.)
    ///
    /// # Errors
    /// [`Refused`] with [`VfioError::NotViable`], [`VfioError::NoVfioDriver`], [`VfioError::NotContained`] or
    /// [`VfioError::UnsafeInterrupts`].
    pub fn viable(self) -> Result<Group<Viable, B>, Refused<Self>> {
        match B::check_viable(&self.handle) {
            Ok(()) => Ok(Group::viable_again(self.handle)),
            Err(cause) => Err(Refused { cause, object: self }),
        }
    }
}

impl GroupHandle {
    pub(crate) fn info(&self) -> GroupInfo {
        self.platform.group(self.id).unwrap_or(GroupInfo {
            id: self.id,
            members: Vec::new(),
            reasons: Vec::new(),
            uncertain: true,
        })
    }

    pub(crate) fn check(&self) -> Result<(), VfioError> {
        let platform = &self.platform;
        let group = self.id;
        let endpoints = endpoints(platform, &self.info());
        for member in &endpoints {
            if platform.driver(*member) == Driver::Host {
                return Err(VfioError::NotViable { group, member: *member });
            }
        }
        if !endpoints.iter().any(|member| platform.driver(*member) == Driver::Vfio) {
            return Err(VfioError::NoVfioDriver(group));
        }
        for function in endpoints {
            let unit = platform
                .unit_of(function)
                .map_err(|why| VfioError::NotContained { function, why })?;
            // A unit that remaps nothing lets any device raise any interrupt.
            let remaps = platform
                .report()
                .units
                .iter()
                .any(|step| step.interrupts.is_ok() && platform.unit(step.unit).is_some_and(|u| u.is_same(unit)));
            if !remaps && !platform.shared.options.unsafe_interrupts {
                return Err(VfioError::UnsafeInterrupts(group));
            }
        }
        Ok(())
    }
}

/// The members of a group that are not bridges.
pub(crate) fn endpoints(platform: &Platform, info: &GroupInfo) -> Vec<Bdf> {
    let is_bridge = |bdf: &Bdf| platform.topology().get(*bdf).is_some_and(|f| f.is_bridge());
    info.members.iter().copied().filter(|bdf| !is_bridge(bdf)).collect()
}
