//! What a unit has done, in numbers.

/// Reads of structures in memory, by kind. One structure counts once, however many words it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableReads {
    /// Root entries.
    pub root: u64,
    /// Context entries.
    pub context: u64,
    /// PASID directory entries.
    pub pasid_directory: u64,
    /// PASID table entries.
    pub pasid: u64,
    /// Second-stage paging entries.
    pub second_stage: u64,
    /// First-stage paging entries.
    pub first_stage: u64,
    /// Interrupt remapping table entries.
    pub interrupt: u64,
}

impl TableReads {
    /// All of them together.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.root
            + self.context
            + self.pasid_directory
            + self.pasid
            + self.second_stage
            + self.first_stage
            + self.interrupt
    }

    fn add(&mut self, other: &Self) {
        self.root += other.root;
        self.context += other.context;
        self.pasid_directory += other.pasid_directory;
        self.pasid += other.pasid;
        self.second_stage += other.second_stage;
        self.first_stage += other.first_stage;
        self.interrupt += other.interrupt;
    }
}

/// Lookups in one cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lookups {
    /// Lookups that found a usable entry.
    pub hits: u64,
    /// Lookups that did not.
    pub misses: u64,
}

impl Lookups {
    pub(crate) fn count(&mut self, hit: bool) {
        if hit {
            self.hits += 1;
        } else {
            self.misses += 1;
        }
    }

    fn add(&mut self, other: &Self) {
        self.hits += other.hits;
        self.misses += other.misses;
    }
}

/// What one translation did: the part of [`Counters`] that the pure half reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WalkReport {
    /// Structures read from memory.
    pub reads: TableReads,
    /// Context-cache lookups.
    pub context: Lookups,
    /// PASID-cache lookups.
    pub pasid: Lookups,
    /// IOTLB lookups.
    pub iotlb: Lookups,
    /// Paging-structure cache lookups.
    pub paging: Lookups,
    /// Interrupt entry cache lookups.
    pub interrupt: Lookups,
}

impl WalkReport {
    /// Lookups by which entries that were kept helped a memory request.
    pub(crate) const fn translation_hits(&self) -> u64 {
        self.context.hits + self.pasid.hits + self.iotlb.hits + self.paging.hits
    }

    /// Adds what another translation did.
    pub fn add(&mut self, other: &Self) {
        self.reads.add(&other.reads);
        self.context.add(&other.context);
        self.pasid.add(&other.pasid);
        self.iotlb.add(&other.iotlb);
        self.paging.add(&other.paging);
        self.interrupt.add(&other.interrupt);
    }
}

/// Invalidation commands carried out, by target. Register commands and descriptors count alike.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Invalidations {
    /// Context-cache commands.
    pub context: u64,
    /// PASID-cache commands.
    pub pasid: u64,
    /// IOTLB commands (type 2 and the register).
    pub iotlb: u64,
    /// PASID-based IOTLB commands (type 6).
    pub pasid_iotlb: u64,
    /// Interrupt entry cache commands.
    pub interrupt: u64,
    /// Device-TLB commands, with and without PASID.
    pub device: u64,
}

/// What a unit has done since it was made. Never reset by the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Table reads and cache lookups of all translations.
    pub walks: WalkReport,
    /// Requests for memory that were judged.
    pub requests: u64,
    /// Interrupt requests that were judged.
    pub interrupts: u64,
    /// Invalidations.
    pub invalidations: Invalidations,
    /// Descriptors taken from the invalidation queue, waits included.
    pub descriptors: u64,
    /// Wait descriptors completed.
    pub waits: u64,
    /// Requests that were blocked, whatever became of the record.
    pub blocked: u64,
    /// Faults written to a fault recording register.
    pub faults_recorded: u64,
    /// Faults that fault processing disable (FPD) kept out of the log.
    pub faults_suppressed: u64,
    /// Faults lost because the log was full, or folded into a pending record of the same source.
    pub faults_dropped: u64,
    /// The unit's own interrupt messages.
    pub messages: u64,
    /// Uses of the registers that the specification leaves undefined and this model refuses.
    pub misuses: u64,
}
