//! The rules that a table is judged by: stable ids, severities and advice.

use core::fmt;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Info,
    /// Something works less well, or is likely not what the firmware's author meant.
    Warning,
    /// The table breaks the specification in a way that costs devices, units or safety.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// What a rule must know beyond the table itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Needs {
    /// The table alone.
    Table,
    /// The PCI functions of the machine.
    Pci,
    /// The firmware's memory map.
    Memory,
    /// The physical address width of the CPU.
    Cpu,
    /// The version of the kernel that will read the table.
    Kernel,
    /// The I/O APICs of the MADT.
    Madt,
    /// The HPET tables.
    Hpet,
    /// The registers of the units.
    Registers,
    /// The ACPI namespace.
    Namespace,
}

impl fmt::Display for Needs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Table => "the table",
            Self::Pci => "the machine's PCI functions",
            Self::Memory => "the firmware's memory map",
            Self::Cpu => "the CPU's physical address width",
            Self::Kernel => "the kernel version",
            Self::Madt => "the MADT",
            Self::Hpet => "the HPET table",
            Self::Registers => "the units' registers",
            Self::Namespace => "the ACPI namespace",
        })
    }
}

macro_rules! rules {
    ($( $(#[$meta:meta])* $name:ident = $id:literal, $severity:ident, $needs:ident, $title:literal, $advice:literal; )*) => {
        /// One rule. The id never changes its meaning; new rules get new ids.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Rule {
            $( #[doc = concat!($id, ": ", $title, ".")] $(#[$meta])* $name, )*
        }

        impl Rule {
            /// Every rule, in the order of the ids.
            pub const ALL: &'static [Self] = &[$( Self::$name, )*];

            /// The stable id, `L01` and so on.
            #[must_use]
            pub const fn id(self) -> &'static str {
                match self { $( Self::$name => $id, )* }
            }

            /// How bad it is when the rule is broken, unless the finding says otherwise.
            #[must_use]
            pub const fn severity(self) -> Severity {
                match self { $( Self::$name => Severity::$severity, )* }
            }

            /// The first thing beyond the table that the rule needs; [`Needs::Table`] if nothing.
            #[must_use]
            pub const fn needs(self) -> Needs {
                match self { $( Self::$name => Needs::$needs, )* }
            }

            /// The condition in a few words.
            #[must_use]
            pub const fn title(self) -> &'static str {
                match self { $( Self::$name => $title, )* }
            }

            /// One sentence that says what to do.
            #[must_use]
            pub const fn advice(self) -> &'static str {
                match self { $( Self::$name => $advice, )* }
            }

            /// The rule with this id.
            #[must_use]
            pub fn from_id(id: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|rule| rule.id() == id)
            }
        }
    };
}

rules! {
    Checksum = "L01", Error, Table, "the bytes of the table do not sum to 0",
        "Read the table again from /sys/firmware/acpi/tables/DMAR; if the sum is still wrong, do not trust it and update the firmware.";
    TableTruncated = "L02", Error, Table, "the header's length is larger than the data",
        "Get the whole table: copy the file again in binary mode, as root.";
    StructureTooShort = "L03", Error, Table, "a structure's length is below 4",
        "Update the firmware; everything from this offset on is unreadable, so no device may be assigned on the strength of this table.";
    StructureOverrun = "L04", Error, Table, "a structure runs past the end of the table",
        "Update the firmware; Linux rejects the whole table (\"Record passes table end\").";
    UnknownStructure = "L05", Info, Table, "a structure of an unknown type",
        "Nothing to do: it is skipped by its length; a newer version of this tool may know it.";
    TypeOrder = "L06", Warning, Table, "structure types are not in ascending order",
        "Report it to the firmware vendor; the specification demands ascending order, though drivers rarely depend on it.";
    NoUnit = "L07", Error, Table, "no remapping unit (DRHD) at all",
        "Switch VT-d on in the firmware set-up, or update the firmware; without a DRHD no DMA is remapped.";
    UnitAtZero = "L08", Error, Table, "a unit's registers are said to be at address 0",
        "Switch VT-d on in the firmware set-up: it is most likely off while the DMAR table is still published; else update the firmware.";
    UnitAllOnes = "L09", Error, Registers, "a unit's base, or its CAP and ECAP registers, read all ones",
        "Switch VT-d on in the firmware set-up or update the firmware; the unit does not answer and must be ignored.";
    UnitUnaligned = "L10", Error, Table, "a unit's base is not aligned to its register set",
        "Update the firmware; the base address cannot be right.";
    UnitDuplicate = "L11", Error, Table, "two units have the same base",
        "Update the firmware; until then use the unit once, with the scopes of both entries.";
    UnitSizeIgnored = "L12", Warning, Kernel, "a register set of more than one page, with a kernel that maps one page",
        "Use Linux 6.3 or newer, which maps what the Size field says.";
    IncludeAllNotLast = "L13", Error, Table, "the INCLUDE_PCI_ALL unit is not the last of its segment",
        "Report it to the firmware vendor, and make sure that your driver looks at explicit scopes first.";
    IncludeAllTwice = "L14", Error, Table, "more than one INCLUDE_PCI_ALL unit in a segment",
        "Update the firmware; which of them serves an unlisted device cannot be known.";
    NoIncludeAll = "L15", Warning, Table, "a segment without an INCLUDE_PCI_ALL unit",
        "Check that every function is listed by some unit; DMA of an unlisted one, hot-plugged ones included, is not remapped.";
    UnitWithoutScope = "L16", Warning, Table, "a unit without INCLUDE_PCI_ALL and without scope",
        "Nothing to do if the socket or stack is empty: Linux ignores the unit.";
    ScopeLength = "L17", Error, Table, "a device scope's length is not 6 + 2n, or runs past its structure",
        "Update the firmware; the devices listed from here on cannot be read, so who serves them is unknown.";
    UnknownScope = "L18", Warning, Table, "a device scope of an unknown type",
        "Use a newer version of this tool; until then a device of that unit may be taken for one of another unit.";
    ScopeAbsent = "L19", Warning, Pci, "a scope path leads to a device that does not exist",
        "Usually harmless (a device that the firmware set-up switched off); if the device should exist, check the set-up.";
    ScopeTypeMismatch = "L20", Warning, Pci, "the scope type does not fit the function found",
        "Report it to the firmware vendor; only the function itself is covered, not what is below it.";
    IoApicUncovered = "L21", Error, Madt, "an I/O APIC is in no unit's scope while INTR_REMAP is set",
        "Update the firmware; interrupt remapping cannot be enabled, so do not assign devices to untrusted guests.";
    HpetUncovered = "L22", Warning, Hpet, "an HPET is in no unit's scope while INTR_REMAP is set",
        "Update the firmware; until then do not use MSIs of that timer block.";
    NoInterruptRemapping = "L23", Warning, Table, "the INTR_REMAP flag is clear",
        "Look for an interrupt-remapping or x2APIC option in the firmware set-up; without it a guest with a device can inject interrupts.";
    X2ApicOptOut = "L24", Info, Table, "X2APIC_OPT_OUT is set",
        "Nothing to do; to use x2APIC, look for its option in the firmware set-up.";
    PlatformOptIn = "L25", Info, Table, "DMA_CTRL_PLATFORM_OPT_IN is set",
        "Nothing to do: the firmware promises no DMA outside RMRRs at hand-over, and Linux may force the IOMMU on.";
    RegionZero = "L26", Error, Table, "an RMRR from 0 to 0",
        "Update the firmware; ignore the region, which Linux versions around 5.4 took as a reason to give up.";
    RegionInverted = "L27", Error, Table, "an RMRR ends below its base",
        "Update the firmware; the region cannot be mapped.";
    RegionUnaligned = "L28", Error, Table, "an RMRR's base or end + 1 is not page aligned",
        "Update the firmware; until then the region has to be rounded outwards to whole pages.";
    RegionOverlap = "L29", Warning, Table, "RMRRs overlap each other, or usable RAM",
        "Update the firmware if usable RAM is hit: a device may write to memory that the kernel hands out.";
    RegionNotReserved = "L30", Warning, Memory, "an RMRR is not covered by memory that the firmware reserves",
        "Update the firmware; Linux 5.5 refused such a table, others warn and go on.";
    RegionBeyondWidth = "L31", Error, Table, "an RMRR lies beyond the host address width",
        "Update the firmware; no page table can map the region.";
    RegionWithoutScope = "L32", Warning, Table, "an RMRR without device scope",
        "Report it to the firmware vendor; the region applies to no device.";
    RegionLocksDevice = "L33", Warning, Pci, "an RMRR names devices that are neither USB nor graphics",
        "These functions cannot be assigned; look for the vendor's option that drops the region (HP: \"Shared Memory Features\").";
    AffinityWithoutUnit = "L34", Warning, Table, "an RHSA names a unit that is not in the table",
        "Report it to the firmware vendor; the entry has no effect.";
    NoAtsBelow = "L35", Warning, Pci, "an ATSR names a port without an ATS device below it",
        "Nothing to do unless an ATS device should be there.";
    NamespaceUnmatched = "L36", Warning, Table, "an ANDD without matching ACPI scope, or an ACPI scope without ANDD",
        "Update the firmware; DMA of that namespace device cannot be attributed.";
    NamespaceName = "L37", Warning, Table, "an ANDD's name is not NUL-terminated ASCII, or not in the namespace",
        "Update the firmware; the device cannot be found by this name.";
    NarrowerThanCpu = "L38", Warning, Cpu, "the host address width is below the CPU's physical address bits",
        "Keep DMA buffers below the host address width, or update the firmware.";
    SegmentUncovered = "L39", Error, Pci, "a PCI segment exists that no unit covers",
        "Find the function that does the DMA of that segment (a VMD endpoint, for example) and judge it instead; else do not assign its devices.";
    TrailingBytes = "L40", Warning, Table, "bytes after the last structure",
        "Nothing to do if they are padding; else copy the table again.";
    NotATable = "L41", Error, Table, "the data is not a DMAR table",
        "Give the binary table, as in /sys/firmware/acpi/tables/DMAR (not an iasl listing or a hex dump).";
    StructureBelowType = "L42", Error, Table, "a structure is shorter than its type's fixed part",
        "Update the firmware; the structure cannot be read, so who serves which device is unknown.";
    PathElement = "L43", Error, Table, "a scope path holds a device number above 31 or a function number above 7",
        "Update the firmware; the entry names no function.";
    WidthTooSmall = "L44", Error, Table, "the host address width is below 12 bits",
        "Update the firmware; Linux rejects the whole table.";
    IncludeAllListsPci = "L45", Warning, Table, "an INCLUDE_PCI_ALL unit lists PCI functions",
        "Report it to the firmware vendor; the specification forbids it, though the entries do no harm.";
    NamedTwice = "L46", Error, Table, "two units name the same device",
        "Update the firmware; which of the units serves the device cannot be known.";
    ReservedBits = "L47", Info, Table, "reserved bits are set",
        "Nothing to do: they are ignored; a newer specification may define them.";
    OptOutWithoutRemapping = "L48", Warning, Table, "X2APIC_OPT_OUT is set although INTR_REMAP is clear",
        "Look for an interrupt-remapping option in the firmware set-up; the flag has no meaning without it.";
    ScopeNotAllowedHere = "L49", Warning, Table, "a device scope of a type that this structure cannot hold",
        "Report it to the firmware vendor; the entry is ignored.";
    AllPortsWithScope = "L50", Warning, Table, "an ATSR for all ports lists ports as well",
        "Nothing to do: ALL_PORTS decides, the entries are ignored.";
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_count_up_without_gaps_and_lead_back_to_their_rule() {
        for (rule, number) in Rule::ALL.iter().zip(1_usize..) {
            let digits = rule.id().strip_prefix('L').expect("ids start with L");
            assert_eq!(digits.parse(), Ok(number));
            assert_eq!(Rule::from_id(rule.id()), Some(*rule));
        }
    }

    #[test]
    fn every_advice_is_one_sentence() {
        for rule in Rule::ALL {
            assert!(rule.advice().ends_with('.'), "{rule}");
            assert!(!rule.advice().contains(". "), "{rule}");
        }
    }
}
