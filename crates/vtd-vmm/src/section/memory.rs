//! A section as guest memory of rust-vmm.

use std::iter::FusedIterator;

use iommu_types::{Access, Iova};
use vm_memory::bitmap::{BS, MS};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::iommu::{Error as IommuError, IovaRange};
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    GuestMemoryResult, Permissions, VolatileSlice,
};
use vtd_model::Fault;

use super::{Place, Section};
use crate::bus::GuestBus;
use crate::listener::Listener;

/// Slices of guest memory behind the unit, one for each run of pages: neighbours on both sides may come as one slice.
///
/// Translates as it goes: a fault in the middle comes after the slices before it, and ends the iteration.
#[derive(Debug)]
pub struct Slices<'s, 'u, S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> {
    section: &'s Section<'u, S, L>,
    at: u64,
    left: usize,
    access: Option<Access>,
}

/// Bytes that a check looks at: what one virtio descriptor can name. A guest can map one page everywhere, so without a
/// bound a check of a long range would not end.
const CHECK_MAX: usize = 1 << 32;

/// The one access that stands for what vm-memory asks. Reading and writing is two accesses on a bus; one that needs both
/// rights is judged the same as both.
const fn access_of(permissions: Permissions) -> Option<Access> {
    match permissions {
        Permissions::No => None,
        Permissions::Read => Some(Access::Read),
        Permissions::Write => Some(Access::Write),
        Permissions::ReadWrite => Some(Access::Atomic),
    }
}

fn refused(base: u64, length: usize, reason: String) -> GuestMemoryError {
    let iova_range = IovaRange {
        base: GuestAddress(base),
        length,
    };
    GuestMemoryError::IommuError(IommuError::CannotResolve { iova_range, reason })
}

/// Whether `count` bytes from `at` stay within the 64-bit space.
fn fits(at: u64, count: usize) -> bool {
    count == 0 || u64::try_from(count - 1).is_ok_and(|beyond| at.checked_add(beyond).is_some())
}

impl<'s, S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> Slices<'s, '_, S, L> {
    /// How far the run that begins at `place` goes: over pages that follow each other in guest memory too, as far as they
    /// are found without a walk.
    #[inline]
    fn run_of(&self, place: Place, access: Access) -> u64 {
        let (mut run, left) = (place.len, self.left as u64);
        // Each turn goes at least a page on, up to the end of what was asked for or of guest memory.
        while run < left
            && let Some(at) = self.at.checked_add(run)
            && let Some(next) = self.section.hit(Iova::new(at), left - run, access)
            && Some(next.phys) == place.phys.checked_add(run)
        {
            run += next.len;
        }
        run
    }

    /// The next run with translations that `ask` gives.
    fn advance(
        &mut self,
        ask: impl FnOnce(Iova, u64, Access) -> Result<Place, Fault>,
    ) -> GuestMemoryResult<VolatileSlice<'s, MS<'s, S::M>>> {
        let (at, left) = (self.at, self.left);
        let Some(access) = self.access else {
            return Err(refused(at, left, "access without a right".to_owned()));
        };
        let place = ask(Iova::new(at), left as u64, access).map_err(|fault| refused(at, left, fault.to_string()))?;
        let len = usize::try_from(self.run_of(place, access)).unwrap_or(left).min(left);
        let slice = GuestBus(self.section.memory())
            .run(place.phys, len)
            .filter(|slice| !slice.is_empty())
            .ok_or(GuestMemoryError::InvalidGuestAddress(GuestAddress(place.phys.raw())))?;
        self.left -= slice.len();
        // Wraps only together with `left` reaching 0.
        self.at = at.wrapping_add(slice.len() as u64);
        Ok(slice)
    }
}

impl<'s, S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> Iterator for Slices<'s, '_, S, L> {
    type Item = GuestMemoryResult<VolatileSlice<'s, MS<'s, S::M>>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let section = self.section;
        let next = self.advance(|at, len, access| section.translate(at, len, access));
        if next.is_err() {
            self.left = 0;
        }
        Some(next)
    }
}

impl<S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> FusedIterator for Slices<'_, '_, S, L> {}

impl<'s, S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> GuestMemorySliceIterator<'s, MS<'s, S::M>>
    for Slices<'s, '_, S, L>
{
}

/// Addresses are IOVAs of the section's requester. Dirty bits are set by address in guest memory, which is what migration
/// needs, since slices are those of the memory behind the unit.
impl<S: GuestAddressSpace<M: GuestMemoryBackend>, L: Listener> GuestMemory for Section<'_, S, L> {
    type PhysicalMemory = S::M;
    type Bitmap = <<S::M as GuestMemoryBackend>::R as GuestMemoryRegion>::B;

    /// Looks without recording a fault. No bytes are always accessible; a range past the end of the space or longer than
    /// 4 GiB never.
    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        let mut slices = Slices {
            section: self,
            at: addr.0,
            left: count,
            access: access_of(access),
        };
        fits(addr.0, count)
            && count <= CHECK_MAX
            && loop {
                if slices.left == 0 {
                    break true;
                }
                // Each turn goes at least one byte on, and in guest memory a page or a region.
                if slices.advance(|at, len, access| self.probe(at, len, access)).is_err() {
                    break false;
                }
            }
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> GuestMemoryResult<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        if !fits(addr.0, count) {
            return Err(GuestMemoryError::GuestAddressOverflow);
        }
        Ok(Slices {
            section: self,
            at: addr.0,
            left: count,
            access: access_of(access),
        })
    }
}
