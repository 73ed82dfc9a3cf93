//! Why tables were not changed.

use iommu_types::{AddrRange, HostPhys, Iova, OutOfFrames};
use thiserror::Error;

/// A mapping that was not made. Nothing of it is left in the tables, except where a variant says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum MapError {
    /// Zero bytes, or not whole pages.
    #[error("{len:#x} bytes from {iova} to {phys}: all three must be multiples of 4 KiB, and the length not zero")]
    Misaligned {
        /// First input address.
        iova: Iova,
        /// First output address.
        phys: HostPhys,
        /// Length in bytes.
        len: u64,
    },
    /// The tables cannot translate these input addresses.
    #[error("{len:#x} bytes from {iova} leave {aperture}, which is what tables of this depth translate")]
    OutsideAperture {
        /// First input address.
        iova: Iova,
        /// Length in bytes.
        len: u64,
        /// What the tables translate.
        aperture: AddrRange<Iova>,
    },
    /// The output addresses do not exist on this host.
    #[error("{len:#x} bytes from {phys} pass {last}, the last address of this host")]
    OutsideHost {
        /// First output address.
        phys: HostPhys,
        /// Length in bytes.
        len: u64,
        /// The last host address.
        last: HostPhys,
    },
    /// Neither reading nor writing was granted: such an entry counts as not present.
    #[error("a mapping without any right cannot be expressed; unmap {iova} instead")]
    NoRights {
        /// First input address.
        iova: Iova,
    },
    /// Some of the range is mapped already.
    #[error("{at} is mapped already; unmap it, and wait for the invalidation, before it is mapped anew")]
    Overlap {
        /// The first such address.
        at: Iova,
    },
    /// No memory for a table page.
    #[error(transparent)]
    OutOfFrames(#[from] OutOfFrames),
    /// No memory to keep count of table pages.
    #[error("no memory to hold {tables} table pages while a mapping is prepared; map it in smaller pieces")]
    NoMemory {
        /// Table pages the mapping needs.
        tables: usize,
    },
    /// A table entry points where no table memory is.
    #[error("the table entry for {iova} points to {table}, which is not table memory; the tables are damaged")]
    Damaged {
        /// The input address that leads there.
        iova: Iova,
        /// Where the entry points.
        table: HostPhys,
    },
    /// Somebody changed the same range at the same time: a part of the mapping may exist.
    #[error("the tables for {at} changed during the call; only one caller may work on a range at a time, unmap it")]
    Contended {
        /// Where it was noticed.
        at: Iova,
    },
}

/// An unmap that was refused; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnmapError {
    /// Not whole pages.
    #[error("{range} does not consist of whole 4 KiB pages")]
    Misaligned {
        /// What was asked for.
        range: AddrRange<Iova>,
    },
    /// The tables cannot translate these addresses.
    #[error("{range} leaves {aperture}, which is what tables of this depth translate")]
    OutsideAperture {
        /// What was asked for.
        range: AddrRange<Iova>,
        /// What the tables translate.
        aperture: AddrRange<Iova>,
    },
    /// A page of the range is not mapped.
    #[error("{at} is not mapped; unmap what was mapped, or allow holes")]
    NotMapped {
        /// The first such address.
        at: Iova,
    },
    /// The range cuts a superpage.
    #[error("the range ends inside the superpage {page}; unmap all of it, or allow splitting")]
    Split {
        /// What the superpage maps.
        page: AddrRange<Iova>,
    },
    /// No memory for the table pages that a split needs.
    #[error(transparent)]
    OutOfFrames(#[from] OutOfFrames),
    /// No memory to keep the table pages that come free.
    #[error("no memory to hold {tables} table pages until the flush; unmap in smaller pieces")]
    NoMemory {
        /// Table pages that would come free.
        tables: usize,
    },
    /// A table entry points where no table memory is.
    #[error("the table entry for {iova} points to {table}, which is not table memory; the tables are damaged")]
    Damaged {
        /// The input address that leads there.
        iova: Iova,
        /// Where the entry points.
        table: HostPhys,
    },
}
