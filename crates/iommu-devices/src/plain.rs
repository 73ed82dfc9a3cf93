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
