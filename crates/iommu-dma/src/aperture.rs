//! A classic aperture: one window in low memory that all devices share.
//!
//! Accesses inside the window are translated by a flat table of 32-bit entries, everything else passes untouched. It
//! helps narrow devices and joins scattered pages; it protects from nothing.
//!
//! The hardware is small enough to be modelled beside its driver: [`ApertureUnit`] holds two registers, reads the table
//! from memory as the window's chipset would, and caches what it read until it is told to forget. The driver half,
//! [`Aperture`], sees it only through [`ApertureRegisters`].

use alloc::vec::Vec;

use iommu_iova::{AllocError, CachedAllocator, CoreCache, IovaAllocator, IovaRequest, IovaSpace, Lease, SpaceError};
use iommu_types::{AddrRange, BusError, HostPhys, Iova, PAGE_SHIFT, PAGE_SIZE, Perms, Piece, SystemMemory};
use spin::Mutex;
use thiserror::Error;

use crate::backend::{Backend, Kind, NotMapped, When};
use crate::device::{Buffer, Device};

/// The largest window: 1 GiB.
pub const MAX_WINDOW: u64 = 1 << 30;
/// The smallest window: 32 MiB.
pub const MIN_WINDOW: u64 = 32 << 20;
/// Bytes of a table entry.
const ENTRY: u64 = 4;
/// Valid: the entry translates.
const VALID: u32 = 1;
/// Host address bits 39:32 stand in entry bits 11:4.
const HIGH_SHIFT: u32 = 4;
/// Host address bits 31:12 stand in the same place in the entry.
const LOW_MASK: u32 = 0xffff_f000;
/// The last host address that an entry can name: 40 bits.
const LAST_PHYS: u64 = (1 << 40) - 1;

/// Entry that leads to the page at `phys`; `None` if it cannot name it.
fn encode(phys: HostPhys) -> Option<u32> {
    let low = u32::try_from(phys.raw() & u64::from(LOW_MASK)).ok()?;
    let high = u32::try_from(phys.raw() >> 32).ok().filter(|&high| high <= 0xff)?;
    Some(low | high << HIGH_SHIFT | VALID)
}

/// Page that an entry leads to, if it is valid.
fn decode(entry: u32) -> Option<HostPhys> {
    let high = u64::from(entry >> HIGH_SHIFT & 0xff) << 32;
    (entry & VALID != 0).then(|| HostPhys::new(high | u64::from(entry & LOW_MASK)))
}

/// The registers of an aperture as its driver sees them.
pub trait ApertureRegisters {
    /// Sets where the window lies, and where its table; both take effect at once, and everything cached is forgotten.
    fn set_window(&self, window: AddrRange<Iova>, table: HostPhys);
    /// Forgets every cached entry, and returns once no access uses an old one.
    fn forget(&self);
}

impl<R: ApertureRegisters + ?Sized> ApertureRegisters for &R {
    fn set_window(&self, window: AddrRange<Iova>, table: HostPhys) {
        (**self).set_window(window, table);
    }
    fn forget(&self) {
        (**self).forget();
    }
}

/// An access inside the window that no valid entry translates. The hardware drops it (and may stop the machine).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("no valid entry of the aperture's table translates {at}")]
pub struct ApertureFault {
    /// What the device used.
    pub at: Iova,
}

/// The hardware: a window register, a table register, and a cache of entries.
#[derive(Debug, Default)]
pub struct ApertureUnit {
    state: Mutex<UnitState>,
}

#[derive(Debug, Default)]
struct UnitState {
    window: Option<(AddrRange<Iova>, HostPhys)>,
    /// Direct-mapped: page number and entry.
    cache: [Option<(u64, u32)>; 16],
}

impl ApertureUnit {
    /// Hardware after reset: no window, so nothing is translated.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Where an access to `at` goes. Whoever the device is makes no difference: nothing here knows.
    ///
    /// # Errors
    /// [`ApertureFault`] for an address in the window without a valid entry, or with a table that is not memory.
    pub fn translate<M: SystemMemory>(&self, memory: &M, at: Iova) -> Result<HostPhys, ApertureFault> {
        let fault = ApertureFault { at };
        let mut state = self.state.lock();
        let Some((window, table)) = state.window.filter(|(window, _)| window.contains(at)) else {
            return Ok(HostPhys::new(at.raw()));
        };
        let page = at.offset_from(window.first()).ok_or(fault)? >> PAGE_SHIFT;
        let slots = u64::try_from(state.cache.len()).unwrap_or(1);
        let slot = usize::try_from(page % slots).unwrap_or(0);
        let cached = state.cache.get(slot).copied().flatten().filter(|&(tag, _)| tag == page);
        let entry = if let Some((_, entry)) = cached {
            entry
        } else {
            let mut bytes = [0; 4];
            memory
                .read(table.checked_add(page * ENTRY).ok_or(fault)?, &mut bytes)
                .map_err(|_| fault)?;
            let entry = u32::from_le_bytes(bytes);
            // Only what translates is cached: a device that touched a free address must not spoil it for the next owner.
            if let Some(place) = state.cache.get_mut(slot).filter(|_| decode(entry).is_some()) {
                *place = Some((page, entry));
            }
            entry
        };
        decode(entry)
            .and_then(|phys| phys.checked_add(at.page_offset()))
            .ok_or(fault)
    }
}

impl ApertureRegisters for ApertureUnit {
    fn set_window(&self, window: AddrRange<Iova>, table: HostPhys) {
        *self.state.lock() = UnitState {
            window: Some((window, table)),
            ..UnitState::default()
        };
    }

    fn forget(&self) {
        self.state.lock().cache = [None; 16];
    }
}

/// An aperture that cannot be set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ApertureError {
    /// The window is no power of two of a size hardware knows, or not aligned to it, or not in low memory.
    #[error(
        "{len:#x} bytes at {base} are no aperture: a power of two from 32 MiB to 1 GiB, at a multiple of it, below 4 GiB"
    )]
    Window {
        /// First address.
        base: Iova,
        /// Length in bytes.
        len: u64,
    },
    /// Nothing in the window can be handed out.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// The table is not on a page boundary.
    #[error("the table at {table} must lie on a page boundary")]
    Table {
        /// Where it lies.
        table: HostPhys,
    },
    /// The table is not memory.
    #[error(transparent)]
    Bus(#[from] BusError),
    /// No addresses are free in the window.
    #[error(transparent)]
    Full(#[from] AllocError),
    /// An entry cannot name the page.
    #[error("the page at {phys} lies above {LAST_PHYS:#x}, the last address that an aperture entry can name")]
    Beyond {
        /// The page.
        phys: HostPhys,
    },
}

/// The driver half of an aperture: a [`Backend`] that translates only where that helps.
///
/// A device that reaches a buffer by itself is left to do so. One that does not, or that is given a list of buffers
/// that lie apart, gets addresses in the window. Every other device can use those as well.
#[derive(Debug)]
pub struct Aperture<R, M> {
    registers: R,
    memory: M,
    table: HostPhys,
    window: AddrRange<Iova>,
    iovas: CachedAllocator,
}

/// What keeps a mapping in the window.
#[derive(Debug)]
#[must_use = "a mapping that is dropped stays in the window for ever"]
pub struct InWindow {
    lease: Lease,
}

impl<R: ApertureRegisters, M: SystemMemory> Aperture<R, M> {
    /// Switches a window of `len` bytes at `base` on, with its table (4 bytes for each page) at `table`.
    ///
    /// The window must not lie where memory or devices answer.
    ///
    /// # Errors
    /// [`ApertureError`]; nothing is switched on then.
    pub fn new(registers: R, memory: M, base: Iova, len: u64, table: HostPhys) -> Result<Self, ApertureError> {
        let sized = len.is_power_of_two() && (MIN_WINDOW..=MAX_WINDOW).contains(&len);
        let window = AddrRange::from_base_len(base, len);
        let window = window.filter(|w| sized && base.raw() & (len - 1) == 0 && w.last().raw() >> 32 == 0);
        let window = window.ok_or(ApertureError::Window { base, len })?;
        if table.page_offset() != 0 {
            return Err(ApertureError::Table { table });
        }
        let iovas = CachedAllocator::new(IovaSpace::new(window)?);
        let aperture = Self {
            registers,
            memory,
            table,
            window,
            iovas,
        };
        // Nothing may be valid before the window is switched on.
        for page in 0..len >> PAGE_SHIFT {
            aperture.set(page, 0)?;
        }
        aperture.registers.set_window(window, table);
        Ok(aperture)
    }

    /// The window.
    pub const fn window(&self) -> AddrRange<Iova> {
        self.window
    }

    fn set(&self, page: u64, entry: u32) -> Result<(), BusError> {
        let at = self
            .table
            .checked_add(page * ENTRY)
            .ok_or(BusError { at: self.table })?;
        self.memory.write_u32(at, entry)
    }

    /// Table entries of `len` bytes from `iova`.
    fn pages(&self, iova: Iova, len: u64) -> core::ops::Range<u64> {
        let first = iova.offset_from(self.window.first()).unwrap_or(0) >> PAGE_SHIFT;
        first..first + (len >> PAGE_SHIFT)
    }

    /// Writes the entries of all pieces of a block.
    fn write(&self, base: Iova, pieces: &[Piece]) -> Result<(), ApertureError> {
        for piece in pieces {
            let iova = base.checked_add(piece.offset).unwrap_or(base);
            for (n, page) in (0..).zip(self.pages(iova, piece.len)) {
                let phys = piece.phys.checked_add(n * PAGE_SIZE);
                let phys = phys.ok_or(ApertureError::Beyond { phys: piece.phys })?;
                self.set(page, encode(phys).ok_or(ApertureError::Beyond { phys })?)?;
            }
        }
        Ok(())
    }

    /// Makes the entries of a lease invalid, has the hardware forget them, and frees the addresses.
    fn clear(&self, core: &mut ApertureCore, held: InWindow) -> Result<(), (ApertureError, InWindow)> {
        let range = held.lease.range();
        for page in self.pages(range.first(), range.len().unwrap_or(0)) {
            if let Err(error) = self.set(page, 0) {
                return Err((error.into(), held));
            }
        }
        self.registers.forget();
        core.invalidations += 1;
        self.iovas.free(&mut core.iova, held.lease);
        Ok(())
    }
}

/// What a core keeps for an [`Aperture`].
#[derive(Debug)]
pub struct ApertureCore {
    iova: CoreCache,
    invalidations: u64,
}

impl<R: ApertureRegisters, M: SystemMemory> Backend for Aperture<R, M> {
    type Core = ApertureCore;
    type Held = InWindow;
    type Stuck = InWindow;
    type Error = ApertureError;

    fn kind(&self) -> Kind {
        Kind::Aperture
    }

    fn new_core(&self) -> ApertureCore {
        ApertureCore {
            iova: self.iovas.new_core(),
            invalidations: 0,
        }
    }

    fn translates(&self, device: &Device, buffers: &[Buffer]) -> bool {
        let apart = |pair: &[Buffer]| match pair {
            [one, two] => one.phys.checked_add(one.len) != Some(two.phys),
            _ => false,
        };
        buffers.iter().any(|&buffer| !device.reaches(buffer)) || buffers.windows(2).any(apart)
    }

    fn map(
        &self,
        core: &mut ApertureCore,
        request: IovaRequest,
        pieces: &[Piece],
        _perms: Perms,
    ) -> Result<(Iova, InWindow), NotMapped<ApertureError>> {
        let lease = self.iovas.allocate(&mut core.iova, request);
        let lease = lease.map_err(ApertureError::from)?;
        let base = lease.iova();
        let held = InWindow { lease };
        match self.write(base, pieces) {
            Ok(()) => Ok((base, held)),
            Err(error) => {
                // What cannot be taken back stays out of use: the lease is dropped with it.
                let cleared = self.clear(core, held).map_err(drop);
                Err(NotMapped {
                    error,
                    in_doubt: cleared.is_err(),
                })
            }
        }
    }

    fn unmap(&self, core: &mut ApertureCore, held: InWindow, _when: When) -> Result<(), (ApertureError, InWindow)> {
        self.clear(core, held)
    }

    fn retry(&self, core: &mut ApertureCore, stuck: InWindow) -> Result<(), (ApertureError, InWindow)> {
        self.clear(core, stuck)
    }

    fn flush(&self, _core: &mut ApertureCore) -> Result<(), ApertureError> {
        Ok(())
    }

    fn retire(&self, core: ApertureCore) -> Result<(), ApertureError> {
        self.iovas.retire(core.iova);
        Ok(())
    }

    fn invalidations(&self, core: &ApertureCore) -> u64 {
        core.invalidations
    }
}

/// Bytes of table memory that a window of `len` bytes needs.
#[must_use]
pub const fn aperture_table_len(len: u64) -> u64 {
    (len >> PAGE_SHIFT) * ENTRY
}

/// Where accesses to `len` bytes at `at` go, page by page: what a device sees through the hardware.
///
/// # Errors
/// [`ApertureFault`] at the first page that is not translated.
pub fn aperture_runs<M: SystemMemory>(
    unit: &ApertureUnit,
    memory: &M,
    at: Iova,
    len: u64,
) -> Result<Vec<Buffer>, ApertureFault> {
    let mut runs = Vec::new();
    let mut done = 0;
    while done < len {
        let here = at.checked_add(done).ok_or(ApertureFault { at })?;
        let part = (PAGE_SIZE - here.page_offset()).min(len - done);
        let phys = unit.translate(memory, here)?;
        runs.push(Buffer::new(phys, part));
        done += part;
    }
    Ok(runs)
}
