//! Owned device scope entries.

use alloc::vec;
use alloc::vec::Vec;

use iommu_types::{DevFn, SourceId};

use crate::scope::{DeviceScope, PathHop, ScopeFlags, ScopeType};

/// A device scope entry to be written; see [`DeviceScope`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedScope {
    /// What the entry names.
    pub kind: ScopeType,
    /// The properties byte; 0 outside SIDP structures.
    pub flags: ScopeFlags,
    /// I/O APIC id, HPET number or ACPI device number; 0 for PCI functions.
    pub enumeration_id: u8,
    /// The bus that the path starts on.
    pub start_bus: u8,
    /// The hops: 1 to 124.
    pub path: Vec<PathHop>,
}

impl OwnedScope {
    fn new(kind: ScopeType, enumeration_id: u8, first: SourceId) -> Self {
        Self {
            kind,
            flags: ScopeFlags::default(),
            enumeration_id,
            start_bus: first.bus(),
            path: vec![hop(first.devfn())],
        }
    }

    /// The function `at` on a root bus. For one behind bridges, start with the first bridge and add a
    /// [`OwnedScope::hop`] for each step down.
    #[must_use]
    pub fn endpoint(at: SourceId) -> Self {
        Self::new(ScopeType::ENDPOINT, 0, at)
    }

    /// The bridge `at` on a root bus and all that is below it; hops as for [`OwnedScope::endpoint`].
    #[must_use]
    pub fn sub_hierarchy(at: SourceId) -> Self {
        Self::new(ScopeType::SUB_HIERARCHY, 0, at)
    }

    /// The I/O APIC `id` of the MADT, whose requests carry `source`.
    #[must_use]
    pub fn io_apic(id: u8, source: SourceId) -> Self {
        Self::new(ScopeType::IO_APIC, id, source)
    }

    /// The HPET `number`, whose requests carry `source`.
    #[must_use]
    pub fn hpet(number: u8, source: SourceId) -> Self {
        Self::new(ScopeType::HPET, number, source)
    }

    /// The namespace device with the `number` of its ANDD, whose requests carry `source`.
    #[must_use]
    pub fn namespace(number: u8, source: SourceId) -> Self {
        Self::new(ScopeType::NAMESPACE, number, source)
    }

    /// The same entry, one bus further down: what was the last hop is now a bridge above `devfn`.
    #[must_use]
    pub fn hop(mut self, devfn: DevFn) -> Self {
        self.path.push(hop(devfn));
        self
    }

    /// The same entry with these properties, which only SIDP structures give a meaning.
    #[must_use]
    pub const fn flags(mut self, flags: ScopeFlags) -> Self {
        self.flags = flags;
        self
    }

    pub(super) fn from_view(view: DeviceScope<'_>) -> Self {
        Self {
            kind: view.kind(),
            flags: view.flags(),
            enumeration_id: view.enumeration_id(),
            start_bus: view.start_bus(),
            path: view.path().collect(),
        }
    }
}

const fn hop(devfn: DevFn) -> PathHop {
    PathHop {
        device: devfn.device(),
        function: devfn.function(),
    }
}
