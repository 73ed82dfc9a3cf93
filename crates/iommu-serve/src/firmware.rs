//! The DMAR table that goes with a served machine.

use acpi_dmar::{BuildError, OwnedDmar, OwnedDrhd, OwnedScope};
use iommu_types::{HostPhys, Segment, SourceId};
use vtd_model::UnitConfig;

/// The table: one unit whose registers are at `base` (a host physical address), with the functions `behind` it listed one by
/// one. It never claims all devices, since devices of the VMM's own are not behind it.
///
/// # Errors
/// [`BuildError`] if there are more functions than a structure can list.
pub fn dmar_table(
    config: &UnitConfig,
    base: u64,
    behind: impl Iterator<Item = SourceId>,
) -> Result<Vec<u8>, BuildError> {
    let unit = behind.fold(OwnedDrhd::new(Segment(0), HostPhys::new(base)), |unit, source| {
        unit.scope(OwnedScope::endpoint(source))
    });
    OwnedDmar::new(config.host_address_width()).with(unit).build()
}
