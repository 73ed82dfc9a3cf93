//! A function without logic of its own.

use crate::bus::Bus;
use crate::config::{BARS, BarKind, ConfigSpace, ResetKind};
use crate::function::Function;

/// Most bytes of one BAR that are backed by memory; a BAR can be larger than a test machine should allocate.
pub const INERT_LIMIT: usize = 1 << 20;

/// Configuration space plus BARs that are plain memory: bridges, ports, and functions that only have to be
/// there. [`Function::dma_read`] and [`Function::dma_write`] make it issue any DMA a test wants.
#[derive(Debug)]
pub struct PlainFunction {
    config: ConfigSpace,
    /// Backing of each BAR, allocated at the first write; it reads zero until then.
    memory: [Vec<u8>; BARS],
}

impl PlainFunction {
    /// A function with this configuration space.
    #[must_use]
    pub fn new(config: ConfigSpace) -> Self {
        Self {
            config,
            memory: Default::default(),
        }
    }

    /// How much of memory BAR `bar` is backed, in bytes.
    fn backed(&self, bar: u8) -> usize {
        match self.config.bar(bar) {
            Some(found) if found.kind() != BarKind::Io => {
                usize::try_from(found.size()).unwrap_or(INERT_LIMIT).min(INERT_LIMIT)
            }
            _ => 0,
        }
    }
}

impl Function for PlainFunction {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn bar_read(&mut self, bar: u8, offset: u64, into: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let n = self.backed(bar).saturating_sub(start).min(into.len());
        let (inside, outside) = into.split_at_mut(n);
        outside.fill(0xff);
        let written = self
            .memory
            .get(usize::from(bar))
            .and_then(|memory| memory.get(start..start + n));
        match written {
            Some(bytes) => inside.copy_from_slice(bytes),
            None => inside.fill(0),
        }
    }

    fn bar_write(&mut self, bar: u8, offset: u64, from: &[u8], _bus: &dyn Bus) {
        let backed = self.backed(bar);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let n = backed.saturating_sub(start).min(from.len());
        if let Some(memory) = self.memory.get_mut(usize::from(bar))
            && n > 0
        {
            memory.resize(backed, 0);
            if let (Some(place), Some(bytes)) = (memory.get_mut(start..start + n), from.get(..n)) {
                place.copy_from_slice(bytes);
            }
        }
    }

    fn reset(&mut self, _kind: ResetKind) {
        self.config.reset();
        self.memory = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use iommu_groups::pci::{PortType, header};
    use iommu_types::Iova;

    use super::*;
    use crate::bus::{DmaError, DmaErrorKind, NoBus};
    use crate::config::Bar;

    #[test]
    fn bars_are_memory_up_to_a_limit() {
        let config = ConfigSpace::function(1, 2)
            .bar(0, Bar::memory64(1 << 40))
            .build()
            .unwrap();
        let mut function = PlainFunction::new(config);
        let mut back = [7; 4];
        function.bar_read(0, 0x1000, &mut back);
        assert_eq!(back, [0; 4]);
        function.bar_write(0, 0xf_fffe, &[1, 2, 3, 4], &NoBus);
        function.bar_read(0, 0xf_fffe, &mut back);
        assert_eq!(back, [1, 2, 0xff, 0xff]);
        function.bar_write(3, 0, &[1], &NoBus);
        function.bar_read(9, u64::MAX, &mut back);
        assert_eq!(back, [0xff; 4]);
        function.reset(ResetKind::Conventional);
        function.bar_read(0, 0xf_fffe, &mut back);
        assert_eq!(back[..2], [0, 0]);
    }

    #[test]
    fn a_port_issues_requests_only_as_bus_master() {
        let config = ConfigSpace::bridge(1, 2).express(PortType::ROOT_PORT).build().unwrap();
        let mut port = PlainFunction::new(config);
        let at = Iova::new(0x1000);
        let refused = port.dma_write(&NoBus, at, &[0; 4]);
        assert_eq!(refused, Err(DmaError::new(at, DmaErrorKind::BusMasterDisabled)));
        let _ = port.config_write(header::COMMAND, &[4, 0]);
        let sent = port.dma_write(&NoBus, at, &[0; 4]);
        assert_eq!(sent, Err(DmaError::new(at, DmaErrorKind::Unclaimed)));
    }
}
