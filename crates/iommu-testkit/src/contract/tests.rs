use std::cell::RefCell;
use std::fmt;

use iommu_types::UnmapRefused;

use super::*;
use crate::{MappingModel, SparseMemory, TestClock};

#[test]
fn sparse_memory_keeps_its_contracts() {
    let memory = SparseMemory::new(1 << 20);
    table_memory(&memory);
    memory.assert_clean();
    let ram = AddrRange::from_base_len(HostPhys::new(0x1000), 0x2000).expect("two pages");
    system_memory(&memory, ram, HostPhys::new(1 << 20));
    system_memory(&memory.hardware(), ram, HostPhys::new(1 << 20));
    let deaf = SparseMemory::builder().ram(0, 1 << 20).non_coherent().build();
    table_memory(&deaf);
    system_memory(&deaf.hardware(), ram, HostPhys::new(1 << 20));
}

#[test]
fn the_test_clock_keeps_its_contract() {
    clock(&TestClock::new(), 1_000_000_000);
}

#[test]
#[should_panic(expected = "does not end")]
fn a_clock_that_stands_still_is_found_out() {
    clock(&TestClock::new().advancing(0, 0), 1);
}

#[derive(Debug)]
struct Refused;
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("refused")
    }
}
impl std::error::Error for Refused {}

/// The reference as an address space; `lazy` leaves pages mapped after a flush.
#[derive(Default)]
struct Reference {
    model: RefCell<MappingModel>,
    lazy: bool,
}

impl AddressSpace for Reference {
    type Error = Refused;
    type Pending<L> = (AddrRange<Iova>, L);

    fn aperture(&self) -> AddrRange<Iova> {
        AddrRange::new(Iova::ZERO, Iova::new((1 << 48) - 1)).expect("ordered")
    }
    fn map(&self, iova: Iova, phys: HostPhys, len: u64, perms: Perms) -> Result<(), Refused> {
        let fits = iova.raw().checked_add(len).is_some_and(|end| end <= 1 << 48);
        (fits && self.model.borrow_mut().map(iova, phys, len, perms))
            .then_some(())
            .ok_or(Refused)
    }
    fn unmap<L>(&self, range: AddrRange<Iova>, lease: L) -> Result<Self::Pending<L>, UnmapRefused<Refused, L>> {
        match self.model.borrow().whole_mappings(range) {
            Some(_) => Ok((range, lease)),
            None => Err(UnmapRefused { error: Refused, lease }),
        }
    }
    fn flush<L>(&self, (range, lease): Self::Pending<L>) -> Result<L, (Refused, Self::Pending<L>)> {
        if !self.lazy {
            self.model.borrow_mut().unmap(range);
        }
        Ok(lease)
    }
}

#[test]
fn the_reference_keeps_the_address_space_contract() {
    let space = Reference::default();
    address_space(&space, Iova::new(0x10_0000), HostPhys::new(0x20_0000), |at, access| {
        space.model.borrow().translate(at, access)
    });
    assert!(space.model.borrow().is_empty());
}

#[test]
#[should_panic(expected = "no access after the flush")]
fn a_space_that_forgets_to_flush_is_found_out() {
    let space = Reference {
        lazy: true,
        ..Reference::default()
    };
    address_space(&space, Iova::new(0x10_0000), HostPhys::new(0x20_0000), |at, access| {
        space.model.borrow().translate(at, access)
    });
}
