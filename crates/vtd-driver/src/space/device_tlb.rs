//! Functions that keep translations of a space themselves (`VT-d §4`).

use alloc::vec::Vec;

use iommu_types::omission::{Step, kept};
use iommu_types::{Pasid, Registers, SourceId};

use super::Space;
use crate::error::HardwareError;
use crate::invalidate::Invalidation;
use crate::options::DeviceTlb;
use crate::pages::{Block, Stale};
use crate::shared::{Host, Shared};

/// Who may hold translations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holder {
    pub(crate) source: SourceId,
    /// The PASID under which the function asks for them; `None` for requests without.
    pub(crate) pasid: Option<Pasid>,
    pub(crate) function: DeviceTlb,
}

impl Holder {
    /// The message that makes the function forget `block`, or everything.
    const fn forget(self, block: Option<Block>) -> Invalidation {
        Invalidation::DeviceTlb {
            source: self.source,
            pasid: self.pasid,
            function: self.function,
            block,
        }
    }

    const fn is(&self, source: SourceId, pasid: Option<Pasid>) -> bool {
        let same_pasid = match (self.pasid, pasid) {
            (Some(one), Some(other)) => one.raw() == other.raw(),
            (None, None) => true,
            _ => false,
        };
        same_pasid && self.source.raw() == source.raw()
    }
}

impl Space {
    /// From now on `holder` may hold translations of the space.
    pub(crate) fn add_holder(&self, holder: Holder) {
        self.holders.lock().push(holder);
    }

    /// It holds none any more.
    pub(crate) fn remove_holder(&self, source: SourceId, pasid: Option<Pasid>) {
        self.holders.lock().retain(|holder| !holder.is(source, pasid));
    }

    /// Makes one function forget everything that it may hold under `pasid`.
    pub(crate) fn empty_holder<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        source: SourceId,
        pasid: Option<Pasid>,
    ) -> Result<(), HardwareError> {
        let mut holders = self.holders.lock().clone();
        holders.retain(|holder| holder.is(source, pasid));
        tell(shared, &holders, None)
    }

    /// Makes functions forget what they hold of `stale`, or of everything. Called when the unit's own caches are
    /// confirmed to be clean: a function may ask again at any time, and would be given what they hold (rule D1).
    pub(super) fn invalidate_device_tlbs<R: Registers, P: Host>(
        &self,
        shared: &Shared<R, P>,
        stale: Option<&[Stale]>,
    ) -> Result<(), HardwareError> {
        let holders = self.holders.lock();
        if holders.is_empty() || !kept(Step::DeviceTlbForgotten) {
            return Ok(());
        }
        let holders = holders.clone();
        tell(shared, &holders, stale)
    }
}

/// Sends every holder its messages, all behind one wait; those that need them twice get them again behind another.
fn tell<R: Registers, P: Host>(
    shared: &Shared<R, P>,
    holders: &[Holder],
    stale: Option<&[Stale]>,
) -> Result<(), HardwareError> {
    let messages = |twice: bool| -> Vec<Invalidation> {
        let asked = holders.iter().filter(|holder| !twice || holder.function.twice);
        asked
            .flat_map(|holder| {
                let all = stale.is_none().then(|| holder.forget(None));
                let some = stale.unwrap_or_default().iter();
                all.into_iter()
                    .chain(some.map(|stale| holder.forget(Some(Block::covering(stale.range)))))
            })
            .collect()
    };
    for twice in [false, true] {
        let batch = messages(twice);
        if !batch.is_empty() {
            shared.invalidate(&batch)?;
        }
    }
    Ok(())
}
