//! The remapping unit as a PCI function: BAR 0 is its register window.

use std::sync::Arc;

use iommu_devices::{Bar, Bus, ConfigError, ConfigSpace, Function, ResetKind};
use iommu_groups::pci::header;
use vtd_model::AccessWidth;

use crate::remapper::Remapper;

/// Vendor of the function: the number that QEMU's own experimental devices use.
const VENDOR: u16 = 0x1234;
/// Device of the function.
const DEVICE: u16 = 0x1d0a;
/// Base class system peripheral, subclass IOMMU (PCI Code and ID Assignment §1.9).
const CLASS: u32 = 0x08_06_00;
/// Smallest BAR of the window: units are described by pages.
const WINDOW_MIN: u64 = 4096;

/// The function.
///
/// It reads as bus master at all times: a client lets it send its interrupts only then, and no driver binds to it that
/// would set the bit.
#[derive(Debug)]
pub struct UnitFunction {
    config: ConfigSpace,
    remapper: Arc<Remapper>,
}

impl UnitFunction {
    /// The function in front of `remapper`.
    ///
    /// # Errors
    /// [`ConfigError`] if the window is larger than a BAR can be.
    pub fn new(remapper: Arc<Remapper>) -> Result<Self, ConfigError> {
        let window = u64::from(remapper.config().window_len())
            .next_power_of_two()
            .max(WINDOW_MIN);
        let config = ConfigSpace::function(VENDOR, DEVICE)
            .class(CLASS)
            .bar(0, Bar::memory32(window))
            .bus_master()
            .build()?;
        Ok(Self { config, remapper })
    }
}

impl Function for UnitFunction {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&self, offset: u16, into: &mut [u8]) {
        self.config.read(offset, into);
        let [low, _] = header::COMMAND_BUS_MASTER.to_le_bytes();
        if let Some(byte) = header::COMMAND
            .checked_sub(offset)
            .and_then(|at| into.get_mut(usize::from(at)))
        {
            *byte |= low;
        }
    }

    /// Four or eight bytes at an offset that is a multiple of their number; anything else reads all-ones (VT-d §11.1).
    fn bar_read(&mut self, bar: u8, offset: u64, into: &mut [u8]) {
        AccessWidth::read_bytes(into, |width| {
            let offset = u32::try_from(offset).ok().filter(|_| bar == 0)?;
            Some(self.remapper.read(offset, width))
        });
    }

    /// Four or eight bytes at an offset that is a multiple of their number; anything else is ignored (VT-d §11.1).
    fn bar_write(&mut self, bar: u8, offset: u64, from: &[u8], _bus: &dyn Bus) {
        if let (0, Some((width, value)), Ok(offset)) = (bar, AccessWidth::of_bytes(from), u32::try_from(offset)) {
            self.remapper.write(offset, width, value);
        }
    }

    fn reset(&mut self, _kind: ResetKind) {
        self.config.reset();
        self.remapper.reset();
    }
}
