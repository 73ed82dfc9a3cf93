//! A guest's memory map as devices of the guest see it.

use std::collections::BTreeMap;
use std::sync::Arc;

use iommu_types::{AddrRange, Bdf, GuestPhys, Iova, Perms};

use crate::backend::{Backend, DmaMemory};
use crate::container::{Container, Type1};
use crate::device::Device;
use crate::dirty::DirtyBitmap;
use crate::error::VfioError;
use crate::group::{Group, Refused, Viable};
use crate::software::Software;

/// A range of a guest's addresses and the memory behind it.
#[derive(Debug)]
pub struct GuestRange<M> {
    /// Where the guest sees it: whole pages.
    pub at: GuestPhys,
    /// The memory; several ranges can share it.
    pub memory: Arc<M>,
    /// Where in the memory the range starts, in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub size: u64,
    /// What devices may do: [`Perms::READ`] for ROM, which the guest cannot change through them either.
    pub perms: Perms,
}

impl<M> Clone for GuestRange<M> {
    fn clone(&self) -> Self {
        Self {
            memory: self.memory.clone(),
            ..*self
        }
    }
}

impl<M: DmaMemory> GuestRange<M> {
    /// All of `memory` at `at`, for reading and writing.
    #[must_use]
    pub fn ram(at: GuestPhys, memory: Arc<M>) -> Self {
        let size = memory.size();
        Self {
            at,
            memory,
            offset: 0,
            size,
            perms: Perms::READ_WRITE,
        }
    }

    /// `size` bytes of the memory from `offset` on instead.
    #[must_use]
    pub fn part(mut self, offset: u64, size: u64) -> Self {
        self.offset = offset;
        self.size = size;
        self
    }

    /// The same, but devices may only read.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.perms = Perms::READ;
        self
    }
}

/// A guest's memory map: devices use guest physical addresses, and reach what the map holds and nothing else.
///
/// It is filled once for all devices of the guest, on whatever units: a group that joins sees what is there, a range that
/// is added is seen by every device. Holes are simply not in the map.
///
/// ```
/// # use std::sync::Arc;
/// # use iommu_types::{Bdf, GuestPhys, Iova};
/// # use iommu_vfio::{Container, Driver, Group, GuestAddressSpace, GuestRange, Platform, PlatformOptions, Software};
/// # use soft_platform::{Machine, MachineDescription};
/// # let description = MachineDescription::two_socket()?;
/// # let machine = Machine::build(&description, &description.to_dmar()?)?;
/// # let platform = Platform::bring_up(machine, PlatformOptions::default())?;
/// # let disk: Bdf = "03:00.0".parse()?;
/// # platform.bind(disk, Driver::Vfio)?;
/// # let backend = Software::new(&platform, platform.user("guest"));
/// # let mut container = Container::open(&backend)?;
/// # container.attach(Group::open(&backend, platform.group_of(disk).ok_or("none")?.id)?.viable()?)?;
/// # let container = container.set_iommu()?;
/// let ram = Arc::new(container.allocate(2 << 20)?);
/// let rom = Arc::new(container.allocate(64 << 10)?);
/// let mut guest = GuestAddressSpace::new(container);
/// guest.add(vec![
///     GuestRange::ram(GuestPhys::new(0), ram.clone()).part(0, 0xa_0000),
///     GuestRange::ram(GuestPhys::new(0x10_0000), ram).part(0x10_0000, 1 << 20),
///     GuestRange::ram(GuestPhys::new(0xfff_0000), rom).read_only(),
/// ])?;
/// let device = guest.open_device(disk)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct GuestAddressSpace<B: Backend = Software> {
    container: Container<Type1, B>,
    ranges: BTreeMap<GuestPhys, GuestRange<B::Memory>>,
}

/// A guest physical address as devices use it.
fn iova(at: GuestPhys) -> Iova {
    Iova::new(at.raw())
}

impl<B: Backend> GuestAddressSpace<B> {
    /// An empty map in `container`, in which nothing is mapped yet.
    #[must_use]
    pub const fn new(container: Container<Type1, B>) -> Self {
        Self {
            container,
            ranges: BTreeMap::new(),
        }
    }

    /// The container.
    #[must_use]
    pub const fn container(&self) -> &Container<Type1, B> {
        &self.container
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = &GuestRange<B::Memory>> {
        self.ranges.values()
    }

    /// Adds ranges: the whole map of a guest that starts, or memory that is plugged in while it runs. All or none.
    ///
    /// # Errors
    /// As [`Container::dma_map`], for the first range that was refused; [`VfioError::Unconfirmed`] instead if what came
    /// before it could not be taken back.
    pub fn add(&mut self, ranges: Vec<GuestRange<B::Memory>>) -> Result<(), VfioError> {
        let mut done: Vec<(Iova, u64)> = Vec::with_capacity(ranges.len());
        for range in &ranges {
            let at = iova(range.at);
            match self
                .container
                .dma_map(at, &range.memory, range.offset, range.size, range.perms)
            {
                Ok(()) => done.push((at, range.size)),
                Err(error) => {
                    for (at, size) in done {
                        self.container.dma_unmap(at, size)?;
                    }
                    return Err(error);
                }
            }
        }
        self.ranges.extend(ranges.into_iter().map(|range| (range.at, range)));
        Ok(())
    }

    /// Takes the range that starts at `at` out: memory that is unplugged. When this returns no device can use it.
    ///
    /// # Errors
    /// [`VfioError::NoGuestMemory`]; as [`Container::dma_unmap`], and the range stays then.
    pub fn remove(&mut self, at: GuestPhys) -> Result<GuestRange<B::Memory>, VfioError> {
        let range = self.ranges.get(&at).ok_or(VfioError::NoGuestMemory(at))?;
        self.container.dma_unmap(iova(at), range.size)?;
        self.ranges.remove(&at).ok_or(VfioError::NoGuestMemory(at))
    }

    /// Puts another group of the guest in: its devices see the whole map.
    ///
    /// # Errors
    /// As [`Container::attach`].
    pub fn attach(&self, group: Group<Viable, B>) -> Result<(), Refused<Group<Viable, B>>> {
        self.container.attach(group)
    }

    /// Opens a device of the guest.
    ///
    /// # Errors
    /// As [`Container::open_device`].
    pub fn open_device(&self, function: Bdf) -> Result<Device<B>, VfioError> {
        self.container.open_device(function)
    }

    /// The range that holds `size` bytes from `at`, and where in its memory they are.
    ///
    /// # Errors
    /// [`VfioError::NoGuestMemory`] if no single range holds them all.
    pub fn find(&self, at: GuestPhys, size: u64) -> Result<(&GuestRange<B::Memory>, u64), VfioError> {
        let none = || VfioError::NoGuestMemory(at);
        let wanted = AddrRange::from_base_len(at, size).ok_or_else(none)?;
        let (first, range) = self.ranges.range(..=at).next_back().ok_or_else(none)?;
        let whole = AddrRange::from_base_len(*first, range.size).ok_or_else(none)?;
        let offset = at.offset_from(*first).filter(|_| whole.covers(wanted));
        offset.map(|offset| (range, range.offset + offset)).ok_or_else(none)
    }

    /// Reads the guest's memory.
    ///
    /// # Errors
    /// [`VfioError::NoGuestMemory`].
    pub fn read(&self, at: GuestPhys, into: &mut [u8]) -> Result<(), VfioError> {
        let (range, offset) = self.find(at, u64::try_from(into.len()).unwrap_or(u64::MAX))?;
        range.memory.read_at(offset, into)
    }

    /// Writes the guest's memory, read-only ranges included: the rights are those of devices.
    ///
    /// # Errors
    /// [`VfioError::NoGuestMemory`].
    pub fn write(&self, at: GuestPhys, from: &[u8]) -> Result<(), VfioError> {
        let (range, offset) = self.find(at, u64::try_from(from.len()).unwrap_or(u64::MAX))?;
        range.memory.write_at(offset, from)
    }

    /// Which pages of the range that starts at `at` devices may have written; for migration, after
    /// [`Container::start_dirty_tracking`].
    ///
    /// # Errors
    /// [`VfioError::NoGuestMemory`]; as [`Container::dirty_pages`].
    pub fn dirty(&self, at: GuestPhys) -> Result<DirtyBitmap, VfioError> {
        let range = self.ranges.get(&at).ok_or(VfioError::NoGuestMemory(at))?;
        let granule = self.container.info()?.granule();
        self.container.dirty_pages(iova(at), range.size, granule)
    }
}
