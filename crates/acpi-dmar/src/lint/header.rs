//! Rules about the header and the sequence of structures.

use alloc::format;

use super::Linter;
use crate::bytes::{byte, checksum};
use crate::rule::{Needs, Rule, Severity};
use crate::structure::StructureType;
use crate::table::{HEADER_LEN, TableFlags};

/// Offsets of the header's fields.
mod at {
    pub(super) const CHECKSUM: usize = 9;
    pub(super) const HOST_ADDRESS_WIDTH: usize = 36;
    pub(super) const FLAGS: usize = 37;
    pub(super) const RESERVED: usize = 38;
}

/// Linux rejects a table with fewer host address bits.
const LEAST_ADDRESS_BITS: u16 = 12;

impl Linter<'_> {
    pub(super) fn check_header(&mut self) {
        let table = self.table;
        let header = table.header();

        // The sum of a part says nothing about the whole.
        if table.missing_len().is_none() && !table.checksum_ok() {
            let sum = checksum(table.bytes());
            let right = header.checksum.wrapping_sub(sum);
            let message = format!(
                "the bytes of the table sum to {sum:#04x} instead of 0; the checksum byte is {:#04x}, {right:#04x} would fit",
                header.checksum
            );
            self.found(Rule::Checksum, at::CHECKSUM, message);
        }

        let bits = table.host_address_bits();
        if bits < LEAST_ADDRESS_BITS {
            let message = format!("the host address width is {bits} bits");
            self.found(Rule::WidthTooSmall, at::HOST_ADDRESS_WIDTH, message);
        }
        if let Some(cpu) = self.need(self.machine.cpu_address_bits, Rule::NarrowerThanCpu, Needs::Cpu)
            && bits < cpu
        {
            let message = format!("DMA reaches {bits} address bits, the CPU {cpu}");
            self.found(Rule::NarrowerThanCpu, at::HOST_ADDRESS_WIDTH, message);
        }

        self.check_flags(header.flags);
        if header.flags.reserved() != 0 || header.reserved != [0; 10] {
            let (offset, what) = match header.flags.reserved() {
                0 => (at::RESERVED, "the reserved bytes of the header are not 0".into()),
                bits => (at::FLAGS, format!("flags {bits:#04x} are reserved")),
            };
            self.found(Rule::ReservedBits, offset, what);
        }

        if !table.trailing().is_empty() {
            let count = table.trailing().len();
            let message = format!("{count} bytes after the last structure are too few for another");
            self.found(Rule::TrailingBytes, table.bytes().len() - count, message);
        }
        if table.bytes_after() > 0 {
            let message = format!("{} bytes follow the end of the table", table.bytes_after());
            self.found(Rule::TrailingBytes, table.bytes().len(), message);
        }
    }

    fn check_flags(&mut self, flags: TableFlags) {
        let remaps = flags.contains(TableFlags::INTR_REMAP);
        if !remaps {
            let message = "INTR_REMAP is clear: interrupts of assigned devices cannot be confined";
            self.found(Rule::NoInterruptRemapping, at::FLAGS, message.into());
        }
        if flags.contains(TableFlags::X2APIC_OPT_OUT) {
            let message = "X2APIC_OPT_OUT is set: the firmware asks not to enable x2APIC";
            self.found(Rule::X2ApicOptOut, at::FLAGS, message.into());
            if !remaps {
                let message = "X2APIC_OPT_OUT is set, INTR_REMAP is clear";
                self.found(Rule::OptOutWithoutRemapping, at::FLAGS, message.into());
            }
        }
        if flags.contains(TableFlags::DMA_CTRL_PLATFORM_OPT_IN) {
            let (severity, message) = if self.machine.has_groups == Some(false) {
                let message = "DMA_CTRL_PLATFORM_OPT_IN is set, yet the kernel has no IOMMU group";
                (Severity::Warning, message)
            } else {
                let message = "DMA_CTRL_PLATFORM_OPT_IN is set: the platform's own DMA stays inside RMRRs";
                (Severity::Info, message)
            };
            self.found_as(Rule::PlatformOptIn, severity, at::FLAGS, message.into());
        }
    }

    pub(super) fn check_structures(&mut self) {
        let mut highest = StructureType::DRHD;
        for structure in self.table.structures() {
            let structure = match structure {
                Ok(structure) => structure,
                Err(malformed) => {
                    self.malformed(malformed);
                    continue;
                }
            };
            let (kind, offset) = (structure.kind(), structure.offset());
            if kind.name().is_none() {
                let message = format!("structure of type {} ({} bytes)", kind.0, structure.bytes().len());
                self.found(Rule::UnknownStructure, offset, message);
            }
            if kind < highest {
                let message = format!("{kind:?} follows {highest:?}");
                self.found(Rule::TypeOrder, offset, message);
            }
            highest = highest.max(kind);
            for (reserved, mask) in reserved(kind) {
                let bits = byte(structure.bytes(), *reserved) & mask;
                if bits != 0 {
                    let message = format!("{kind:?} byte {reserved} has reserved bits {bits:#04x} set");
                    self.found(Rule::ReservedBits, offset + reserved, message);
                }
            }
        }
        if self.complete && self.table.units().next().is_none() {
            let message = "the table defines no remapping unit (DRHD)";
            self.found(Rule::NoUnit, HEADER_LEN, message.into());
        }
    }
}

/// Reserved bits in the fixed part of a structure: byte and mask (VT-d §8.3 to §8.9).
const fn reserved(kind: StructureType) -> &'static [(usize, u8)] {
    const ALL: u8 = 0xff;
    match kind {
        StructureType::DRHD => &[(4, 0xfe), (5, 0xf0)],
        StructureType::RMRR | StructureType::SIDP => &[(4, ALL), (5, ALL)],
        StructureType::ATSR | StructureType::SATC => &[(4, 0xfe), (5, ALL)],
        StructureType::RHSA => &[(4, ALL), (5, ALL), (6, ALL), (7, ALL)],
        StructureType::ANDD => &[(4, ALL), (5, ALL), (6, ALL)],
        _ => &[],
    }
}
