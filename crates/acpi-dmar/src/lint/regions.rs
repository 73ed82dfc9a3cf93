//! Rules about reserved memory regions.

use alloc::format;
use alloc::vec::Vec;

use iommu_types::{AddrRange, HostPhys, PageSize};

use super::{FunctionList, Linter, MemoryKind, MemoryRegion};
use crate::rule::{Needs, Rule, Severity};
use crate::scope::PathEnd;
use crate::structure::Rmrr;

/// Base class of display controllers.
const CLASS_DISPLAY: u8 = 0x03;
/// Base class and subclass of USB controllers.
const CLASS_USB: [u8; 2] = [0x0c, 0x03];

impl Linter<'_> {
    pub(super) fn check_regions(&mut self) {
        let mut regions = Vec::new();
        let functions = self.machine.functions.map(FunctionList::new);
        for rmrr in self.table.rmrrs() {
            if let Some(region) = self.check_range(rmrr) {
                regions.push((region, rmrr.offset()));
                self.check_memory(rmrr, region);
            }
            if rmrr.scopes().next().is_none() {
                let message = "the region names no device";
                self.found(Rule::RegionWithoutScope, rmrr.offset(), message.into());
            }
            self.check_devices(rmrr, functions.as_ref());
        }
        self.check_overlaps(regions);
    }

    /// The region's range, if it is one.
    fn check_range(&mut self, rmrr: Rmrr<'_>) -> Option<AddrRange<HostPhys>> {
        let (offset, base, limit) = (rmrr.offset(), rmrr.base(), rmrr.limit());
        if base == HostPhys::ZERO && limit == HostPhys::ZERO {
            self.found(Rule::RegionZero, offset, "the region is 0 to 0".into());
            return None;
        }
        let Some(range) = AddrRange::new(base, limit) else {
            let message = format!("the region ends at {limit}, below its base {base}");
            self.found(Rule::RegionInverted, offset, message);
            return None;
        };
        if !range.is_aligned(PageSize::Size4K) {
            let message = format!("the region {range} does not consist of whole pages");
            self.found(Rule::RegionUnaligned, offset, message);
        }
        let bits = self.table.host_address_bits();
        if limit.raw().checked_shr(u32::from(bits)).is_some_and(|above| above != 0) {
            let message = format!("the region {range} does not fit {bits} address bits");
            self.found(Rule::RegionBeyondWidth, offset, message);
        }
        Some(range)
    }

    fn check_memory(&mut self, rmrr: Rmrr<'_>, region: AddrRange<HostPhys>) {
        let memory = self.need(self.machine.memory, Rule::RegionNotReserved, Needs::Memory);
        let Some(memory) = memory else {
            // Overlap with other regions is judged; overlap with RAM is not.
            self.not_judged(Rule::RegionOverlap, Needs::Memory);
            return;
        };
        let usable = memory
            .iter()
            .find(|part| part.kind == MemoryKind::Usable && part.range.overlaps(region));
        if let Some(usable) = usable {
            let message = format!("the region {region} overlaps usable RAM {}", usable.range);
            self.found_as(Rule::RegionOverlap, Severity::Error, rmrr.offset(), message);
        }
        if let Some(gap) = first_gap(region, memory) {
            let message = format!("byte {gap} of the region {region} is not in reserved memory");
            self.found(Rule::RegionNotReserved, rmrr.offset(), message);
        }
    }

    /// A region of a USB or graphics function can be given up; any other locks its devices to the host.
    fn check_devices(&mut self, rmrr: Rmrr<'_>, functions: Option<&FunctionList<'_>>) {
        let Some(list) = self.need(functions, Rule::RegionLocksDevice, Needs::Pci) else {
            return;
        };
        for scope in rmrr
            .scopes()
            .filter_map(Result::ok)
            .filter(|scope| scope.kind().is_pci())
        {
            let PathEnd::At(at) = scope.resolve(rmrr.segment(), list) else {
                continue;
            };
            let Some(function) = list.get(at) else { continue };
            let [base, sub, _] = function.class;
            if base != CLASS_DISPLAY && [base, sub] != CLASS_USB {
                let message = format!(
                    "{at} (class {base:02x}{sub:02x}) is tied to the region at {}",
                    rmrr.base()
                );
                self.found(Rule::RegionLocksDevice, scope.offset(), message);
            }
        }
    }

    fn check_overlaps(&mut self, mut regions: Vec<(AddrRange<HostPhys>, usize)>) {
        regions.sort_by_key(|(region, offset)| (region.first(), *offset));
        let mut reaching: Option<(AddrRange<HostPhys>, usize)> = None;
        for (region, offset) in regions {
            match reaching {
                Some((before, other)) if before.overlaps(region) => {
                    let message = format!("the region {region} overlaps {before} of the RMRR at {other:#x}");
                    self.found(Rule::RegionOverlap, offset, message);
                    if region.last() > before.last() {
                        reaching = Some((region, offset));
                    }
                }
                _ => reaching = Some((region, offset)),
            }
        }
    }
}

/// The first byte of `region` that no reserved range holds.
fn first_gap(region: AddrRange<HostPhys>, memory: &[MemoryRegion]) -> Option<HostPhys> {
    let mut next = region.first();
    // Each round passes the end of one range at least, so there are no more rounds than ranges.
    for _ in 0..=memory.len() {
        let holding = memory
            .iter()
            .find(|part| part.kind == MemoryKind::Reserved && part.range.contains(next));
        let Some(part) = holding else {
            return Some(next);
        };
        if part.range.last() >= region.last() {
            return None;
        }
        next = part.range.last().checked_add(1)?;
    }
    Some(next)
}
