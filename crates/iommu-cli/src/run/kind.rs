//! What stands between devices and memory in a rehearsal: a remapping unit, a classic aperture, or nothing.

use clap::ValueEnum;
use iommu_devices::{Bus, DmaError, DmaErrorKind};
use iommu_dma::{ApertureUnit, MIN_WINDOW, aperture_runs, aperture_table_len};
use iommu_types::{AddrRange, HostPhys, Iova};
use soft_platform::{Machine, MachineDescription, PageRequest, Zone};

/// The choice of `--iommu`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// The units of the machine's DMAR table
    #[default]
    Vtd,
    /// One window in low memory, translated for all devices alike; everything else is open
    Aperture,
    /// Nothing: devices use the addresses of memory
    None,
}

impl Kind {
    /// The name in tables and in JSON.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Vtd => "VT-d",
            Self::Aperture => "aperture",
            Self::None => "none",
        }
    }
}

/// A classic aperture in a machine: its hardware, and where its window and table are.
#[derive(Debug)]
pub(crate) struct Window {
    /// The hardware.
    pub(crate) unit: ApertureUnit,
    /// First address of the window.
    pub(crate) base: Iova,
    /// Length in bytes.
    pub(crate) len: u64,
    /// Where the table is.
    pub(crate) table: HostPhys,
}

/// A machine without remapping units, with or without an aperture.
#[derive(Debug)]
pub(crate) struct Bench {
    /// The machine.
    pub(crate) machine: Machine,
    /// The aperture, if it has one.
    pub(crate) window: Option<Window>,
}

impl Bench {
    /// The machine of a description without units.
    pub(crate) fn bare(description: &MachineDescription) -> Result<Self, String> {
        let machine = Machine::without_iommu(description).map_err(|why| why.to_string())?;
        Ok(Self { machine, window: None })
    }

    /// The same with an aperture: the smallest there is, at the highest place below 4 GiB where neither memory nor
    /// devices answer.
    pub(crate) fn with_aperture(description: &MachineDescription) -> Result<Self, String> {
        let mut bench = Self::bare(description)?;
        let base = free_window(description, &bench.machine)
            .ok_or("no aperture: no 32 MiB below 4 GiB are free of memory and devices")?;
        let request = PageRequest::contiguous(aperture_table_len(MIN_WINDOW));
        let table = bench.machine.memory().allocate_pages(request.zone(Zone::Below4G));
        let table = table.map_err(|why| why.to_string())?;
        bench.window = Some(Window {
            unit: ApertureUnit::new(),
            base,
            len: MIN_WINDOW,
            table: table.at(0).ok_or("the aperture's table lies nowhere")?,
        });
        Ok(bench)
    }

    /// Which kind it is.
    pub(crate) const fn kind(&self) -> Kind {
        match self.window {
            Some(_) => Kind::Aperture,
            None => Kind::None,
        }
    }

    /// The aperture's hardware.
    pub(crate) fn aperture(&self) -> Option<&ApertureUnit> {
        self.window.as_ref().map(|window| &window.unit)
    }
}

/// The base of a free window: outside of all host bridges' windows if there is room, else where no register lies.
fn free_window(description: &MachineDescription, machine: &Machine) -> Option<Iova> {
    /// Where processors have their local interrupt controllers, and machines the registers of chipsets.
    const CHIPSET: (u64, u64) = (0xfe00_0000, 0xffff_ffff);
    /// Windows of bridges end on a multiple of this after the registers behind them.
    const MARGIN: u64 = 1 << 20;
    let ends = |first: HostPhys, last: HostPhys| (first.raw(), last.raw());
    let memory = machine.memory().ranges().map(|memory| memory.range);
    let units = description
        .units
        .iter()
        .map(|unit| (unit.base.raw(), unit.base.raw() | 0xfff));
    let always: Vec<(u64, u64)> = memory
        .map(|range| ends(range.first(), range.last()))
        .chain(units)
        .chain([CHIPSET])
        .collect();
    let windows = description.host_bridges.iter().map(|bridge| bridge.window);
    let windows: Vec<(u64, u64)> = windows.map(|range| ends(range.first(), range.last())).collect();
    let registers: Vec<(u64, u64)> = machine
        .functions()
        .filter_map(|function| machine.bar_range(function.bdf, 0))
        .map(|range| (range.first().raw(), range.last().raw() | (MARGIN - 1)))
        .collect();
    // At most 127 places of 32 MiB.
    let place = |taken: &[(u64, u64)]| {
        let mut places = (1..(4 << 30) / MIN_WINDOW).rev().map(|place| place * MIN_WINDOW);
        places.find(|base| {
            let last = base + (MIN_WINDOW - 1);
            let free = |(first, end): &(u64, u64)| last < *first || *base > *end;
            always.iter().chain(taken).all(free)
        })
    };
    place(&windows).or_else(|| place(&registers)).map(Iova::new)
}

/// A function's bus with an aperture at the root complex, or without one.
pub(crate) struct Through<'a> {
    /// The aperture.
    pub(crate) aperture: Option<&'a ApertureUnit>,
    /// The machine whose memory holds its table.
    pub(crate) machine: &'a Machine,
    /// The bus behind it.
    pub(crate) bus: &'a dyn Bus,
}

impl Through<'_> {
    /// Calls `each` with address and extent, in bytes of the request, of each run that the aperture makes of it.
    fn runs(
        &self,
        iova: Iova,
        len: usize,
        mut each: impl FnMut(&dyn Bus, Iova, std::ops::Range<usize>) -> Result<(), DmaError>,
    ) -> Result<(), DmaError> {
        let Some(unit) = self.aperture else {
            return each(self.bus, iova, 0..len);
        };
        let bytes = u64::try_from(len).unwrap_or(u64::MAX);
        let dropped = |at| DmaError::new(at, DmaErrorKind::Unclaimed);
        let runs = aperture_runs(unit, self.machine, iova, bytes).map_err(|fault| dropped(fault.at))?;
        let mut done = 0;
        for run in runs {
            let end = usize::try_from(run.len).map_err(|_| dropped(iova))? + done;
            each(self.bus, Iova::new(run.phys.raw()), done..end)?;
            done = end;
        }
        Ok(())
    }
}

impl Bus for Through<'_> {
    fn dma_read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        let len = into.len();
        self.runs(iova, len, |bus, at, part| {
            bus.dma_read(at, into.get_mut(part).unwrap_or_default())
        })
    }

    fn dma_write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        self.runs(iova, from.len(), |bus, at, part| {
            bus.dma_write(at, from.get(part).unwrap_or_default())
        })
    }
}

/// The window as a range, for people.
pub(crate) fn extent(window: &Window) -> Option<AddrRange<Iova>> {
    AddrRange::from_base_len(window.base, window.len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use iommu_dma::ApertureRegisters;
    use iommu_types::SystemMemory;

    #[test]
    fn the_window_lies_where_nothing_else_answers() {
        let description = MachineDescription::two_socket().expect("sound");
        let bench = Bench::with_aperture(&description).expect("there is room");
        let range = extent(bench.window.as_ref().expect("made")).expect("in range");
        assert!(range.last().raw() < 4 << 30);
        let (first, last) = (HostPhys::new(range.first().raw()), HostPhys::new(range.last().raw()));
        for memory in &description.memory {
            assert!(!memory.range.contains(first) && !memory.range.contains(last));
        }
        for bridge in &description.host_bridges {
            assert!(!bridge.window.contains(first) && !bridge.window.contains(last));
        }
    }

    #[test]
    fn a_machine_that_a_table_fills_has_room_for_a_window_too() {
        let dmar = MachineDescription::two_socket()
            .expect("sound")
            .to_dmar()
            .expect("a table");
        let (description, _) = MachineDescription::from_dmar(&dmar).expect("a machine");
        let bench = Bench::with_aperture(&description).expect("there is room");
        let range = extent(bench.window.as_ref().expect("made")).expect("in range");
        for function in bench.machine.functions() {
            if let Some(bar) = bench.machine.bar_range(function.bdf, 0) {
                let apart = bar.last().raw() < range.first().raw() || bar.first().raw() > range.last().raw();
                assert!(apart, "{}: {bar}", function.bdf);
            }
        }
    }

    #[test]
    fn a_request_through_the_window_is_split_at_pages_and_follows_the_table() {
        let description = MachineDescription::two_socket().expect("sound");
        let bench = Bench::with_aperture(&description).expect("there is room");
        let window = bench.window.as_ref().expect("made");
        let requester = bench.machine.functions().find(|f| f.engine).expect("one").bdf;
        let machine = &bench.machine;
        machine.set_command(requester, iommu_groups::pci::header::COMMAND_BUS_MASTER, true);
        window.unit.set_window(extent(window).expect("in range"), window.table);
        // Two pages that lie in the other order, as the table of this hardware has them: address and bit 0.
        for (place, page) in [(0, 0x30_1000_u32), (1, 0x20_0000)] {
            let at = window.table.checked_add(4 * place).expect("in range");
            machine.write(at, &(page | 1).to_le_bytes()).expect("memory");
        }
        let bus = machine.bus(requester).expect("there");
        let bus = Through {
            aperture: bench.aperture(),
            machine,
            bus: &bus,
        };
        let at = window.base.checked_add(4092).expect("in range");
        bus.dma_write(at, b"abcdefgh").expect("both pages are valid");
        let mut found = [0; 8];
        machine.read(HostPhys::new(0x30_1ffc), &mut found[..4]).expect("memory");
        machine.read(HostPhys::new(0x20_0000), &mut found[4..]).expect("memory");
        assert_eq!(&found, b"abcdefgh");
        let mut back = [0; 8];
        bus.dma_read(at, &mut back).expect("both pages are valid");
        assert_eq!(&back, b"abcdefgh");
        let invalid = window.base.checked_add(8192).expect("in range");
        assert!(bus.dma_write(invalid, b"x").is_err());
        // Outside of the window nothing is translated.
        bus.dma_write(Iova::new(0x40_0000), b"open").expect("memory");
        machine.read(HostPhys::new(0x40_0000), &mut found[..4]).expect("memory");
        assert_eq!(&found[..4], b"open");
    }
}
