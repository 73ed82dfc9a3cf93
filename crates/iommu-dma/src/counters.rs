//! What a core has done.

/// Counts of one core; add those of all cores for the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Counters {
    /// Mappings made.
    pub maps: u64,
    /// Mappings removed, confirmed or put off.
    pub unmaps: u64,
    /// Buffers given.
    pub buffers: u64,
    /// Segments told to devices.
    pub segments: u64,
    /// Blocks of translated addresses used.
    pub iovas: u64,
    /// Bytes given.
    pub bytes: u64,
    /// Bytes copied to or from bounce buffers.
    pub bounced_bytes: u64,
    /// Buffers of which at least a part was bounced.
    pub bounced_buffers: u64,
    /// Invalidations waited for.
    pub invalidations: u64,
}

impl core::ops::AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.maps += other.maps;
        self.unmaps += other.unmaps;
        self.buffers += other.buffers;
        self.segments += other.segments;
        self.iovas += other.iovas;
        self.bytes += other.bytes;
        self.bounced_bytes += other.bounced_bytes;
        self.bounced_buffers += other.bounced_buffers;
        self.invalidations += other.invalidations;
    }
}
