//! A guest in small: memory, tables, a queue.
#![allow(dead_code, reason = "not every test binary uses every helper")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iommu_testkit::raw::{self, RawTables};
use iommu_types::{HostPhys, SourceId, SystemMemory};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vtd_model::{AccessWidth, UnitConfig};
use vtd_spec::register::offset;
use vtd_vmm::{GuestBus, Listener, Requester, VmmUnit};

pub(crate) type Memory = GuestMemoryMmap<AtomicBitmap>;

pub(crate) const MEMORY: usize = 64 << 20;
pub(crate) const DEVICE: u16 = 0x0010;
pub(crate) const DOMAIN: u16 = 7;
pub(crate) const RW: u64 = raw::SS_READ | raw::SS_WRITE;

/// Where things are in guest memory: tables from here up.
const TABLES: u64 = 0x10_0000;
const QUEUE: u64 = 0x8_0000;
pub(crate) const STATUS: u64 = 0x9_0000;
/// Descriptors in the queue: one page of them.
const QUEUE_LEN: u32 = 256;

const QIE: u64 = 1 << 26;
const TE: u64 = 1 << 31;
const IRE: u64 = 1 << 25;

pub(crate) fn device() -> Requester {
    Requester::new(SourceId::from_raw(DEVICE))
}

pub(crate) struct Guest<L: Listener = ()> {
    pub(crate) unit: VmmUnit<Arc<Memory>, L>,
    pub(crate) top: u64,
    next_table: u64,
    tail: AtomicU32,
}

pub(crate) fn config() -> UnitConfig {
    UnitConfig::builder().two_phase_waits(true).build().expect("consistent")
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self::with(config(), ())
    }
}

impl<L: Listener> Guest<L> {
    /// Translation on, queue on, [`DEVICE`] in domain [`DOMAIN`] with empty tables.
    pub(crate) fn with(config: UnitConfig, listener: L) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).expect("memory");
        let (root, top, irt, next_table) = {
            let bus = GuestBus(&memory);
            let mut tables = RawTables::new(&bus, TABLES);
            let (root, top, irt) = (tables.page(), tables.page(), tables.page());
            let entry = raw::legacy_context_entry(raw::translation_type::UNTRANSLATED, top, 2, DOMAIN);
            tables.legacy_context(root, DEVICE, entry);
            (root, top, irt, tables.page())
        };
        let unit = VmmUnit::new(config, Arc::new(memory), listener).expect("goes with threads");
        let guest = Self {
            unit,
            top,
            next_table,
            tail: AtomicU32::new(0),
        };
        guest.unit.write(offset::IQA, AccessWidth::Qword, QUEUE);
        guest.command(QIE);
        guest.unit.write(offset::IRTA, AccessWidth::Qword, irt | 7);
        guest.command(QIE | 1 << 24);
        guest.command(QIE | IRE);
        guest.unit.write(offset::RTADDR, AccessWidth::Qword, root);
        guest.command(QIE | IRE | 1 << 30);
        guest.command(QIE | IRE | TE);
        assert_eq!(
            guest.unit.read(offset::GSTS, AccessWidth::Dword),
            TE | 1 << 30 | QIE | IRE | 1 << 24
        );
        guest
    }

    pub(crate) fn command(&self, command: u64) {
        self.unit.write(offset::GCMD, AccessWidth::Dword, command);
    }

    pub(crate) fn bus(&self) -> GuestBus<'_, Memory> {
        GuestBus(self.unit.memory())
    }

    /// Maps a page of `level` in the tables of [`DEVICE`], or clears it with no flags.
    pub(crate) fn map(&mut self, iova: u64, phys: u64, level: u32, flags: u64) {
        let memory = Arc::clone(self.unit.memory());
        let bus = GuestBus(&*memory);
        let mut tables = RawTables::new(&bus, self.next_table);
        tables.second_stage(self.top, 4, iova, phys, level, flags);
        self.next_table = tables.page();
    }

    /// Puts descriptors into the queue and tells the unit.
    pub(crate) fn submit(&self, descriptors: &[[u64; 2]]) {
        for descriptor in descriptors {
            let tail = self.tail.load(Ordering::Relaxed);
            for (word, at) in descriptor.iter().zip([0, 8]) {
                self.bus()
                    .write_u64(HostPhys::new(QUEUE + u64::from(tail) * 16 + at), *word)
                    .expect("queue");
            }
            self.tail.store((tail + 1) % QUEUE_LEN, Ordering::Relaxed);
        }
        self.unit.write(
            offset::IQT,
            AccessWidth::Qword,
            u64::from(self.tail.load(Ordering::Relaxed)) << 4,
        );
    }

    pub(crate) fn status(&self) -> u32 {
        let mut bytes = [0; 4];
        self.bus().read(HostPhys::new(STATUS), &mut bytes).expect("memory");
        u32::from_le_bytes(bytes)
    }

    /// Submits `descriptor` and a wait that writes `value`.
    pub(crate) fn invalidate(&self, descriptor: [u64; 2], value: u32) {
        self.submit(&[descriptor, raw::descriptor::wait_status(STATUS, value)]);
    }
}
