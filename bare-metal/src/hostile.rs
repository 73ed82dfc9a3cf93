//! A hostile guest: nothing that a driver would do, all of it at once.
//!
//! For as long as the command line asks, random accesses, tables, descriptors and rings are thrown at the three functions
//! that `iommu serve` offers: the remapping unit, the disk and the DMA engine. Nothing is checked here; whether the server
//! stays up is for the one who started it to say. What a function does to memory because of all this can hit this kernel
//! too. Addresses are chosen so that it seldom does, and a run that dies can be continued by another with the next seed.

mod functions;
mod random;
mod unit;

use iommu_types::SourceId;

use crate::hardware::{Window, halt, in16, in32, out16};
use crate::pci::Function;
use crate::{console, edu, virtio};

use functions::{Config, Disk, Engine};
use random::Random;
use unit::RemappingUnit;

/// Where the server's functions are: 00:06.0, 00:07.0 and 00:08.0.
const UNIT: Function = Function(SourceId::from_raw(6 << 3));
const DISK: Function = Function(SourceId::from_raw(7 << 3));
const ENGINE: Function = Function(SourceId::from_raw(8 << 3));

/// Bytes of the unit's registers that are used.
const UNIT_LEN: u32 = 0x1000;
/// Bytes of the disk's registers.
const DISK_LEN: u32 = 0x1_0000;

/// The timer of ACPI's power management in QEMU's q35 machine: 24 bits that count up.
const TIMER: u16 = 0x608;
const TIMER_MASK: u32 = 0xff_ffff;
/// Its frequency (ACPI §4.8.2.1).
const TICKS_PER_SECOND: u64 = 3_579_545;
/// Power management control of the same machine, and what turns it off.
const POWER: u16 = 0x604;
const POWER_OFF: u16 = 0x2000;

/// Attacks between two looks at the timer.
const ATTACKS: u32 = 8;

/// What the command line asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    seconds: u64,
    seed: u64,
}

impl Asked {
    /// `hostile=SECONDS` and, if it is there, `seed=N`.
    pub(crate) fn of(line: &str) -> Option<Self> {
        let number = |name: &str| {
            let value = line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name));
            value?.parse().ok()
        };
        Some(Self {
            seconds: number("hostile=")?,
            seed: number("seed=").unwrap_or(0),
        })
    }
}

/// What is attacked.
struct Targets {
    unit: RemappingUnit,
    disk: Disk,
    engine: Engine,
    configs: [Config; 3],
}

impl Targets {
    fn find() -> Option<Self> {
        let unit = Window::new(UNIT.enable().into(), UNIT_LEN)?;
        DISK.enable();
        let common = DISK.capabilities(virtio::VENDOR).find(|at| {
            let [.., kind] = DISK.read(*at).to_le_bytes();
            kind == virtio::COMMON
        })?;
        let [bar, ..] = DISK.read(common + virtio::VENDOR_BAR).to_le_bytes();
        let disk = Window::new(DISK.memory(bar), DISK_LEN)?;
        let common = DISK.read(common + virtio::VENDOR_OFFSET);
        let engine = Window::new(ENGINE.enable().into(), edu::WINDOW)?;
        Some(Self {
            unit: RemappingUnit::new(unit),
            disk: Disk::new(disk, common),
            engine: Engine::new(engine),
            configs: [Config::of(UNIT)?, Config::of(DISK)?, Config::of(ENGINE)?],
        })
    }

    fn attack(&mut self, random: &mut Random) {
        match random.below(32) {
            0 => {
                let [unit, disk, engine] = self.configs;
                random.one([unit, disk, engine]).attack(random);
            }
            1 => random.access(self.unit.registers, UNIT_LEN),
            2 => random.access(self.disk.registers, DISK_LEN),
            3 => random.access(self.engine.registers, edu::WINDOW),
            4 => self.unit.set_tables(random),
            5 => self.unit.set_queue(random),
            6 | 7 => self.unit.submit(random),
            8 => self.unit.command(random),
            9 => self.unit.registers(random),
            10 | 11 => self.unit.set_working_tables(random),
            12 => self.disk.registers(random),
            13..=16 => self.disk.set_up(random),
            17..=23 => self.disk.submit(random),
            _ => self.engine.transfer(random),
        }
        // What was turned off by chance would be out of reach from here on.
        for config in &self.configs {
            config.enable();
        }
    }
}

/// Attacks until the time is over, and turns the machine off.
pub(crate) fn run(asked: Asked) -> ! {
    match Targets::find() {
        Some(targets) => attack(targets, asked),
        None => console::line(format_args!("@ hostile found not all functions")),
    }
    console::line(format_args!("@ end"));
    out16(POWER, in16(POWER) | POWER_OFF);
    halt()
}

fn attack(mut targets: Targets, asked: Asked) {
    let mut random = Random::new(asked.seed);
    for at in unit::pages() {
        unit::fill_with_entries(at, &mut random);
    }
    let (mut rounds, mut ticks, mut said) = (0u64, 0u64, 0u64);
    let mut before = in32(TIMER);
    console::line(format_args!("@ hostile begins"));
    while ticks < asked.seconds.saturating_mul(TICKS_PER_SECOND) {
        for _ in 0..ATTACKS {
            targets.attack(&mut random);
        }
        rounds += 1;
        let now = in32(TIMER);
        ticks += u64::from(now.wrapping_sub(before) & TIMER_MASK);
        before = now;
        if ticks / TICKS_PER_SECOND > said {
            said = ticks / TICKS_PER_SECOND;
            console::line(format_args!("@ hostile second {said} rounds {rounds}"));
        }
    }
    console::line(format_args!("@ hostile rounds {rounds}"));
}
