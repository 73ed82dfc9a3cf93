//! One requester reaching for one place: the access, what came of it, and the record it left.

use iommu_devices::Bus;
use iommu_dma::ApertureUnit;
use iommu_types::{Bdf, HostPhys, Iova, SourceId, SystemMemory};
use iommu_vfio::{Fault, FaultedAccess, Platform};
use soft_platform::Machine;

use super::kind::{Bench, Through};
use super::matrix::{Logged, Tally};

/// Bytes of one probing access.
const LEN: usize = 8;
/// What a write brings.
const MARKER: [u8; LEN] = *b"REACHED!";
/// What a read must not find out.
const SECRET: [u8; LEN] = *b"secret\x01\x02";

/// What a scratch register shows after a write of the first bytes of `marker`, if it inverts them as `edu` does.
fn inverted(marker: [u8; LEN]) -> [u8; 4] {
    let [a, b, c, d, ..] = marker;
    [!a, !b, !c, !d]
}

/// Where a probe aims, and how it is told whether it arrived.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    /// Memory at a host address.
    Memory(HostPhys),
    /// A scratch register of a function at a host address: it reads back what was written, or its complement.
    Register(HostPhys),
}

impl Place {
    /// The host address.
    pub(crate) const fn at(self) -> HostPhys {
        match self {
            Self::Memory(at) | Self::Register(at) => at,
        }
    }
}

/// What came of the accesses for one cell.
#[derive(Clone, Debug, Default)]
pub(crate) struct Probed {
    /// Accesses that reached the place.
    pub(crate) reached: u32,
    /// The counts.
    pub(crate) tally: Tally,
    /// The first record.
    pub(crate) logged: Option<Logged>,
    /// What was seen, in words.
    pub(crate) evidence: String,
}

/// Probes of functions with a DMA engine on a machine, with or without units in service.
#[derive(Debug)]
pub(crate) struct Prober<'a> {
    machine: &'a Machine,
    /// The driver side, to read fault records; nothing on a machine without IOMMU.
    platform: Option<&'a Platform>,
    /// The aperture that requests pass, if the machine has one.
    aperture: Option<&'a ApertureUnit>,
}

impl<'a> Prober<'a> {
    /// Probes on a machine whose units are in service.
    pub(crate) fn new(platform: &'a Platform) -> Self {
        Self {
            machine: platform.machine(),
            platform: Some(platform),
            aperture: None,
        }
    }

    /// Probes on a machine without units.
    pub(crate) fn without_unit(bench: &'a Bench) -> Self {
        Self {
            machine: &bench.machine,
            platform: None,
            aperture: bench.aperture(),
        }
    }

    /// `requester` writes at `address`, which is to reach `place`.
    pub(crate) fn write(&self, requester: Bdf, address: Iova, place: Place, probed: &mut Probed) -> Result<(), String> {
        let before = self.look(place)?;
        let len = match place {
            Place::Memory(_) => LEN,
            Place::Register(_) => 4,
        };
        // What stands there must not look like an arrival: neither the marker nor what a register makes of it.
        let marker = if before[..len] == MARKER[..len] || before[..4] == inverted(MARKER) {
            SECRET
        } else {
            MARKER
        };
        self.forget();
        let sent = self.send(requester, address, &marker[..len])?;
        let after = self.look(place)?;
        let arrived = after[..len] == marker[..len] || (len == 4 && after[..4] == inverted(marker));
        if !arrived && after != before {
            return Err(format!("{} changed to something that nobody wrote", place.at()));
        }
        self.judge(requester, address, "write", arrived, sent, probed);
        if arrived && let Place::Memory(at) = place {
            self.machine.write(at, &before).map_err(|why| why.to_string())?;
        }
        Ok(())
    }

    /// `requester` reads at `address`, behind which the memory at `place` lies.
    pub(crate) fn read(
        &self,
        requester: Bdf,
        address: Iova,
        place: HostPhys,
        probed: &mut Probed,
    ) -> Result<(), String> {
        let mut before = [0; LEN];
        self.machine.read(place, &mut before).map_err(|why| why.to_string())?;
        self.machine.write(place, &SECRET).map_err(|why| why.to_string())?;
        self.forget();
        let (sent, found) = self
            .machine
            .with_engine(requester, |engine, bus| {
                let bus = &self.through(bus);
                let len = LEN as u64;
                engine.buffer_mut()[..LEN].fill(0);
                let sent = engine.fetch(bus, address, 0, len).map_err(|why| why.to_string());
                (sent, engine.buffer()[..LEN] == SECRET)
            })
            .map_err(|why| why.to_string())?;
        self.machine.write(place, &before).map_err(|why| why.to_string())?;
        self.judge(requester, address, "read", found, sent, probed);
        Ok(())
    }

    /// `requester` sends an interrupt message that is not its own; whether `vector` arrives is looked up in what
    /// the processors received.
    pub(crate) fn message(
        &self,
        requester: Bdf,
        address: u64,
        data: u32,
        vector: u8,
        probed: &mut Probed,
    ) -> Result<(), String> {
        let _ = self.machine.take_interrupts();
        self.forget();
        let sent = self.send(requester, Iova::new(address), &data.to_le_bytes())?;
        let arrived = self
            .machine
            .take_interrupts()
            .iter()
            .any(|arrival| arrival.vector == vector);
        self.judge(requester, Iova::new(address), "message", arrived, sent, probed);
        Ok(())
    }

    /// Lets `requester` write `bytes` at `address`; the answer is what its engine was told.
    fn send(&self, requester: Bdf, address: Iova, bytes: &[u8]) -> Result<Result<(), String>, String> {
        self.machine
            .with_engine(requester, |engine, bus| {
                let bus = &self.through(bus);
                engine.buffer_mut()[..bytes.len()].copy_from_slice(bytes);
                engine
                    .store(bus, address, 0, bytes.len() as u64)
                    .map_err(|why| why.to_string())
            })
            .map_err(|why| why.to_string())
    }

    /// A function's bus, with the aperture if there is one.
    fn through<'b>(&'b self, bus: &'b dyn Bus) -> Through<'b> {
        Through {
            aperture: self.aperture,
            machine: self.machine,
            bus,
        }
    }

    /// What stands at a place now.
    fn look(&self, place: Place) -> Result<[u8; LEN], String> {
        let mut bytes = [0; LEN];
        match place {
            Place::Memory(at) => self.machine.read(at, &mut bytes),
            Place::Register(at) => self.machine.mmio_read(at, &mut bytes[..4]),
        }
        .map_err(|why| why.to_string())?;
        Ok(bytes)
    }

    /// Drops records of earlier accesses.
    fn forget(&self) {
        if let Some(platform) = self.platform {
            let _ = platform.drain_faults();
        }
        let _ = self.machine.take_platform_blocks();
    }

    fn judge(
        &self,
        requester: Bdf,
        address: Iova,
        what: &str,
        arrived: bool,
        sent: Result<(), String>,
        probed: &mut Probed,
    ) {
        probed.tally.tried += 1;
        probed.reached += u32::from(arrived);
        if !arrived {
            probed.tally.stopped += 1;
        }
        if let Some(record) = self.record(requester, address) {
            probed.tally.recorded += 1;
            probed.logged.get_or_insert(record);
        }
        if !probed.evidence.is_empty() {
            probed.evidence.push_str("; ");
        }
        let told = sent.err().map_or(String::new(), |why| format!(" ({why})"));
        let came = if arrived { "arrived" } else { "did not arrive" };
        probed.evidence.push_str(&format!("{what} of {address} {came}{told}"));
    }

    /// The record of the last access: of this requester, at this address.
    fn record(&self, requester: Bdf, address: Iova) -> Option<Logged> {
        if let Some(platform) = self.platform {
            let ids: Vec<SourceId> = self.sources(platform, requester);
            let found = platform
                .drain_faults()
                .faults
                .into_iter()
                .find(|fault| matches(fault, &ids, address));
            if let Some(fault) = found {
                return Some(Logged {
                    source: fault.source.to_string(),
                    address: match fault.access {
                        FaultedAccess::Memory(_, page) => page.to_string(),
                        FaultedAccess::Interrupt(index) => format!("interrupt index {index}"),
                    },
                    reason: format!("{:02x}h {}", fault.reason.0, fault.reason.description()),
                });
            }
        }
        let block = self
            .machine
            .take_platform_blocks()
            .into_iter()
            .find(|block| block.function == requester && block.address == address)?;
        Some(Logged {
            source: block.source.to_string(),
            address: block.address.to_string(),
            reason: format!("stopped by the platform: {}", block.service),
        })
    }

    /// The requester IDs that the requests of a function can carry.
    fn sources(&self, platform: &Platform, requester: Bdf) -> Vec<SourceId> {
        let aliases = platform.topology().aliases(requester);
        aliases
            .into_iter()
            .map(|alias| alias.source)
            .chain([requester.source])
            .collect()
    }
}

/// Whether a fault is that of an access to `address` by one of `ids`.
fn matches(fault: &Fault, ids: &[SourceId], address: Iova) -> bool {
    let place = match fault.access {
        FaultedAccess::Memory(_, page) => page == address.page(),
        FaultedAccess::Interrupt(_) => (0xfee0_0000..=0xfeef_ffff).contains(&address.raw()),
    };
    place && ids.contains(&fault.source)
}
