//! Rules about remapping units.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;

use iommu_types::{HostPhys, Segment};

use super::{KernelVersion, Linter};
use crate::rule::{Needs, Rule};
use crate::structure::Drhd;
use crate::table::{HEADER_LEN, TableFlags};

/// Offset of the table's flags, which promise interrupt remapping.
const FLAGS: usize = 37;

/// The first Linux that maps as many pages of registers as the Size field says.
const KERNEL_WITH_SIZE: KernelVersion = KernelVersion { major: 6, minor: 3 };

impl Linter<'_> {
    pub(super) fn check_units(&mut self) {
        let mut bases: BTreeMap<HostPhys, usize> = BTreeMap::new();
        for (index, unit) in self.units() {
            self.check_base(index, unit);
            if unit.has_usable_base()
                && let Some(first) = bases.insert(unit.register_base(), unit.offset())
            {
                let message = format!(
                    "unit {index} has the base {} of the unit at {first:#x}",
                    unit.register_base()
                );
                self.found(Rule::UnitDuplicate, unit.offset(), message);
            }
            if !unit.include_pci_all() && unit.scopes().next().is_none() {
                let message = format!("unit {index} lists no device, and INCLUDE_PCI_ALL is clear");
                self.found(Rule::UnitWithoutScope, unit.offset(), message);
            }
        }
        self.check_include_all();
        self.check_segments();
        self.check_interrupt_sources();
    }

    fn check_base(&mut self, index: usize, unit: Drhd<'_>) {
        let (offset, base, length) = (unit.offset(), unit.register_base(), unit.register_set_len());
        match base {
            HostPhys::ZERO => {
                let message = format!("the registers of unit {index} are said to be at address 0");
                self.found(Rule::UnitAtZero, offset, message);
                return;
            }
            HostPhys::MAX => {
                let message = format!("the register base of unit {index} is all ones");
                self.found(Rule::UnitAllOnes, offset, message);
                return;
            }
            _ => {}
        }
        if base.raw() % length != 0 {
            let message =
                format!("unit {index}: base {base} is not a multiple of the register set's {length:#x} bytes");
            self.found(Rule::UnitUnaligned, offset, message);
        }
        if let Some(dead) = self.need(self.machine.dead_units, Rule::UnitAllOnes, Needs::Registers)
            && dead.contains(&base)
        {
            let message = format!("the capability registers of unit {index} at {base} read all ones");
            self.found(Rule::UnitAllOnes, offset, message);
        }
        if length > iommu_types::PAGE_SIZE
            && let Some(kernel) = self.need(self.machine.kernel, Rule::UnitSizeIgnored, Needs::Kernel)
            && kernel < KERNEL_WITH_SIZE
        {
            let message =
                format!("unit {index} has {length:#x} bytes of registers, of which Linux {kernel} maps 0x1000");
            self.found(Rule::UnitSizeIgnored, offset, message);
        }
    }

    fn check_include_all(&mut self) {
        let mut catch_all: BTreeMap<Segment, usize> = BTreeMap::new();
        let mut reported: BTreeSet<Segment> = BTreeSet::new();
        let mut segments: BTreeMap<Segment, usize> = BTreeMap::new();
        for (index, unit) in self.units() {
            let segment = unit.segment();
            segments.entry(segment).or_insert(unit.offset());
            match (catch_all.get(&segment), unit.include_pci_all()) {
                (None, true) => {
                    catch_all.insert(segment, unit.offset());
                }
                (Some(first), true) => {
                    let message =
                        format!("unit {index} is INCLUDE_PCI_ALL of segment {segment}, as is the unit at {first:#x}");
                    self.found(Rule::IncludeAllTwice, unit.offset(), message);
                }
                (Some(first), false) if reported.insert(segment) => {
                    let message = format!("unit {index} of segment {segment} follows, at {:#x}", unit.offset());
                    self.found(Rule::IncludeAllNotLast, *first, message);
                }
                (Some(_) | None, false) => {}
            }
        }
        if !self.complete {
            return; // the unit may be in the part that cannot be read
        }
        for (segment, offset) in segments {
            if !catch_all.contains_key(&segment) {
                let message = format!("no unit of segment {segment} is INCLUDE_PCI_ALL");
                self.found(Rule::NoIncludeAll, offset, message);
            }
        }
    }

    fn check_segments(&mut self) {
        let Some(functions) = self.need(self.machine.functions, Rule::SegmentUncovered, Needs::Pci) else {
            return;
        };
        if !self.complete {
            return;
        }
        let covered: BTreeSet<Segment> = self.units().map(|(_, unit)| unit.segment()).collect();
        let existing: BTreeSet<Segment> = functions.iter().map(|function| function.at.segment).collect();
        for segment in existing.difference(&covered) {
            let count = functions.iter().filter(|f| f.at.segment == *segment).count();
            let message = format!("no unit covers PCI segment {segment}, which has {count} functions");
            self.found(Rule::SegmentUncovered, HEADER_LEN, message);
        }
    }

    /// With INTR_REMAP every I/O APIC, and every HPET that sends MSIs, must be listed (VT-d §8.3.1).
    fn check_interrupt_sources(&mut self) {
        if !self.table.flags().contains(TableFlags::INTR_REMAP) {
            return;
        }
        let io_apics = self.need(self.machine.io_apics, Rule::IoApicUncovered, Needs::Madt);
        let hpets = self.need(self.machine.hpets, Rule::HpetUncovered, Needs::Hpet);
        let nothing = crate::NoTopology;
        for id in io_apics.unwrap_or_default() {
            if self.table.io_apic(*id, &nothing).owner == crate::Owner::NotCovered {
                let message = format!("no unit lists the I/O APIC with id {id}");
                self.found(Rule::IoApicUncovered, FLAGS, message);
            }
        }
        for number in hpets.unwrap_or_default() {
            if self.table.hpet(*number, &nothing).owner == crate::Owner::NotCovered {
                let message = format!("no unit lists HPET {number}");
                self.found(Rule::HpetUncovered, FLAGS, message);
            }
        }
    }
}
