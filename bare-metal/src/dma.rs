//! The DMA interface as a driver of another crate uses it: buffers are mapped when they are lent to the device, and
//! unmapped when they come back.
//!
//! `virtio-drivers` knows its machine by functions without a receiver, so the adapter in use stands in a static.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_dma::{
    Backend, BouncePool, Buffer, Counters, Device, Direct, Direction, DmaApi, DmaCore, Invalidation, Mapping,
    Translated, Trust,
};
use iommu_iova::{CachedAllocator, IovaSpace};
use iommu_types::{AddrRange, AddressSpace, HostPhys, Iova, PAGE_SIZE, Perms, Piece, UnmapRefused};
use spin::Mutex;
use virtio_drivers::device::blk::SECTOR_SIZE;

use crate::hardware::Lent;
use crate::memory::{BOUNCE, RINGS};
use crate::rig::{Checked, Space, ensure, text};

/// Pages of the rings.
const RING_PAGES: usize = 16;
/// The lowest address that is given out: 0 means none to `virtio-drivers`.
const FIRST: Iova = Iova::new(0x10_0000);
/// An address that is never mapped.
const NOWHERE: u64 = 0x6fff_f000;
/// Addresses that the allocator leaves to the checks.
pub(crate) const FIXED: Iova = Iova::new(0x6000_0000);
const FIXED_LEN: u64 = 0x1000_0000;
/// Writes here are interrupts.
const INTERRUPTS: (u64, u64) = (0xfee0_0000, 0x10_0000);

/// A domain that the API shares with the check.
#[derive(Debug)]
struct Shared(Arc<Space>);

impl AddressSpace for Shared {
    type Error = <Space as AddressSpace>::Error;
    type Pending<L> = <Space as AddressSpace>::Pending<L>;

    fn aperture(&self) -> AddrRange<Iova> {
        AddressSpace::aperture(&*self.0)
    }

    fn map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), Self::Error> {
        AddressSpace::map(&*self.0, iova, phys, len, perms)
    }

    fn map_pieces(&self, base: Iova, pieces: &[Piece], perms: Perms) -> Result<(), (usize, Self::Error)> {
        AddressSpace::map_pieces(&*self.0, base, pieces, perms)
    }

    fn may_be_reachable(error: &Self::Error) -> bool {
        Space::may_be_reachable(error)
    }

    fn unmap<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<Self::Pending<L>, UnmapRefused<Self::Error, L>> {
        AddressSpace::unmap(&*self.0, range, lease)
    }

    fn flush<L>(&self, pending: Self::Pending<L>) -> Result<L, (Self::Error, Self::Pending<L>)> {
        AddressSpace::flush(&*self.0, pending)
    }

    fn flush_all<L>(
        &self,
        pending: impl Iterator<Item = Self::Pending<L>>,
        confirmed: impl FnMut(L),
        kept: impl FnMut(Self::Pending<L>),
    ) -> Result<(), Self::Error> {
        AddressSpace::flush_all(&*self.0, pending, confirmed, kept)
    }
}

/// What a driver does with buffers of data. Rings, headers and answers are always mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// As it should.
    Mapped,
    /// It tells the device the buffer's own address, as a driver that knows no IOMMU.
    AsItIs,
    /// It tells the device an address in this page, whatever is mapped there.
    At(Iova),
}

/// How a device is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    pub(crate) invalidation: Invalidation,
    pub(crate) trust: Trust,
    /// Address lines of the device.
    pub(crate) address_bits: u32,
}

/// The DMA interface of one device, over what this machine has to put between devices and memory.
struct Adapter<B: Backend> {
    api: DmaApi<B, Lent>,
    core: DmaCore<B::Core>,
    device: Device,
    live: Vec<(Iova, Mapping<B>)>,
    rings: [bool; RING_PAGES],
    data: Use,
    trouble: Option<String>,
}

/// An adapter, whatever it stands on.
trait Interface: Send {
    fn use_data(&mut self, data: Use);
    fn counters(&self) -> Counters;
    fn flush(&mut self) -> Checked;
    fn allocate(&mut self, pages: usize) -> Option<(Iova, HostPhys)>;
    fn release(&mut self, address: u64, at: HostPhys) -> Option<bool>;
    fn share(&mut self, buffer: Buffer, direction: Direction) -> Option<Iova>;
    fn end(&mut self, address: u64) -> bool;
    fn finish(self: Box<Self>) -> Result<(usize, Counters), String>;
}

static ADAPTER: Mutex<Option<Box<dyn Interface>>> = Mutex::new(None);

/// Puts an adapter into place that maps in `domain`.
pub(crate) fn install(domain: &Arc<Space>, policy: Policy) -> Checked {
    let last = domain.aperture().last();
    let range = |first, len| AddrRange::from_base_len(Iova::new(first), len).ok_or("no range");
    let addresses = AddrRange::new(FIRST, last).ok_or("the domain is too small")?;
    let space = IovaSpace::new(addresses).map_err(text)?;
    let space = space
        .reserve(range(FIXED.raw(), FIXED_LEN)?)
        .reserve(range(INTERRUPTS.0, INTERRUPTS.1)?);
    let backend = Translated::new(Shared(domain.clone()), CachedAllocator::new(space), policy.invalidation);
    install_on(backend, policy)
}

/// Puts an adapter into place for a machine without a unit: devices use memory's own addresses.
pub(crate) fn install_direct(policy: Policy) -> Checked {
    install_on(Direct, policy)
}

fn install_on<B>(backend: B, policy: Policy) -> Checked
where
    B: Backend<Core: Send, Held: Send, Error: 'static> + Send + 'static,
{
    let pool = BouncePool::new(BOUNCE.at(0), BOUNCE.bytes(), 1).map_err(text)?;
    let api = DmaApi::new(backend, Lent).with_pool(pool);
    let core = api.new_core();
    *ADAPTER.lock() = Some(Box::new(Adapter {
        api,
        core,
        device: Device::with_address_bits(policy.address_bits).trust(policy.trust),
        live: Vec::new(),
        rings: [false; RING_PAGES],
        data: Use::Mapped,
        trouble: None,
    }));
    Ok(())
}

/// What the driver does with data from now on.
pub(crate) fn use_data(data: Use) {
    with(|adapter| {
        adapter.use_data(data);
        Some(())
    });
}

/// What was counted so far.
pub(crate) fn counters() -> Counters {
    with(|adapter| Some(adapter.counters())).unwrap_or_default()
}

/// Has every unmap confirmed that was put off.
pub(crate) fn flush() -> Checked {
    with(|adapter| Some(adapter.flush())).unwrap_or(Ok(()))
}

/// Takes the adapter away, with the mappings that are left; how many those were, and what it did.
pub(crate) fn remove() -> Result<(usize, Counters), String> {
    let adapter = ADAPTER.lock().take();
    adapter.ok_or("there is no adapter")?.finish()
}

fn with<T>(run: impl FnOnce(&mut dyn Interface) -> Option<T>) -> Option<T> {
    ADAPTER.lock().as_mut().and_then(|adapter| run(&mut **adapter))
}

impl<B: Backend<Error: 'static>> Adapter<B> {
    /// Notes a mapping under its one address.
    fn note(&mut self, made: Result<Mapping<B>, String>) -> Option<Iova> {
        let mapping = match made {
            Ok(mapping) => mapping,
            Err(why) => {
                self.trouble = Some(why);
                return None;
            }
        };
        let Some(segment) = mapping.segment() else {
            self.trouble = Some(format!("a buffer in one piece became {:?}", mapping.segments()));
            self.unmap(mapping);
            return None;
        };
        self.live.push((segment.address, mapping));
        Some(segment.address)
    }

    fn unmap(&mut self, mapping: Mapping<B>) {
        if let Err(error) = self.api.unmap(&mut self.core, mapping) {
            self.trouble = Some(text(error));
        }
    }
}

impl<B> Interface for Adapter<B>
where
    B: Backend<Core: Send, Held: Send, Error: 'static> + Send,
{
    fn use_data(&mut self, data: Use) {
        self.data = data;
    }

    fn counters(&self) -> Counters {
        self.api.counters(&self.core)
    }

    fn flush(&mut self) -> Checked {
        self.api.flush(&mut self.core).map_err(text)
    }

    fn allocate(&mut self, pages: usize) -> Option<(Iova, HostPhys)> {
        let first = (0..RING_PAGES).find(|first| {
            let run = self.rings.get(*first..first + pages);
            run.is_some_and(|run| !run.contains(&true))
        })?;
        for index in first..first + pages {
            RINGS.clear(index);
        }
        let at = RINGS.at(first);
        let len = PAGE_SIZE * u64::try_from(pages).ok()?;
        let made = self
            .api
            .map_coherent(&mut self.core, &self.device, &[Buffer::new(at, len)]);
        let address = self.note(made.map_err(text))?;
        self.rings.get_mut(first..first + pages)?.fill(true);
        Some((address, at))
    }

    fn release(&mut self, address: u64, at: HostPhys) -> Option<bool> {
        let first = RINGS.index(at)?;
        let position = self.live.iter().position(|(iova, _)| iova.raw() == address)?;
        let pages = self.live.get(position)?.1.byte_len() / PAGE_SIZE;
        let pages = usize::try_from(pages).ok()?;
        self.rings.get_mut(first..first + pages)?.fill(false);
        Some(self.end(address))
    }

    fn share(&mut self, buffer: Buffer, direction: Direction) -> Option<Iova> {
        let is_data = usize::try_from(buffer.len).is_ok_and(|len| len >= SECTOR_SIZE);
        match self.data {
            Use::AsItIs if is_data => Some(Iova::new(buffer.phys.raw())),
            Use::At(page) if is_data => page.checked_add(buffer.phys.page_offset()),
            _ => {
                let made = self.api.map(&mut self.core, &self.device, buffer, direction);
                self.note(made.map_err(text))
            }
        }
    }

    /// Ends the mapping at an address; whether there was one.
    fn end(&mut self, address: u64) -> bool {
        let position = self.live.iter().position(|(at, _)| at.raw() == address);
        let Some(position) = position else { return false };
        let (_, mapping) = self.live.swap_remove(position);
        self.unmap(mapping);
        true
    }

    fn finish(mut self: Box<Self>) -> Result<(usize, Counters), String> {
        let left = self.live.len();
        while let Some((_, mapping)) = self.live.pop() {
            self.unmap(mapping);
        }
        if let Some(trouble) = self.trouble {
            return Err(trouble);
        }
        let slots = self.api.pool().map_or(0, BouncePool::used_slots);
        ensure(slots == 0, "bounce buffers are still in use")?;
        let counters = self.api.retire(self.core).map_err(text)?;
        ensure(counters.maps == counters.unmaps, "not everything mapped was unmapped")?;
        Ok((left, counters))
    }
}

/// Pages for a ring, zeroed: the address for the device, and where they are.
pub(crate) fn allocate(pages: usize) -> Option<(Iova, HostPhys)> {
    with(|adapter| adapter.allocate(pages))
}

/// Takes the pages of a ring back; whether they had been given.
pub(crate) fn release(address: u64, at: HostPhys) -> bool {
    with(|adapter| adapter.release(address, at)).unwrap_or(false)
}

/// Lends a buffer to the device: the address to use, which leads nowhere if there was trouble.
pub(crate) fn share(at: HostPhys, len: u64, direction: Direction) -> u64 {
    with(|adapter| adapter.share(Buffer::new(at, len), direction)).map_or(NOWHERE, Iova::raw)
}

/// Takes a buffer back. One that was never mapped needs nothing.
pub(crate) fn unshare(address: u64) {
    with(|adapter| Some(adapter.end(address)));
}
