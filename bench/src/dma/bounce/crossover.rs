//! The length at which a copy costs as much as a strict mapping.

use std::hint::black_box;

use iommu_dma::{Buffer, Device, Direction, Invalidation};
use iommu_types::{HostPhys, SourceId};

use super::super::unit::{self, Machine};
use super::{BUFFERS, MEMORY, Outcome, api, narrow, number};
use crate::pair::{medians, timed};
use crate::peers::{FlatMemory, PAGE};
use crate::row::Row;

/// Lengths between which the crossover is looked for.
const STEPS: [u64; 11] = [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];
/// What a wait for an invalidation takes on hardware: 2,100 cycles at 3 GHz (see the reference).
const HARDWARE_WAIT: f64 = 700.0;

/// The length at which copying to the device costs as much as a strict mapping: against the driver with the model of a
/// unit in its thread, and against the driver's own part and the time that hardware would take, which is a derived figure.
pub(super) fn rows(quick: bool, memory: &FlatMemory, hot: bool) -> Outcome<Vec<Row>> {
    let machine = Machine::new(false)?;
    let driver = machine.driver()?;
    let strict = unit::api(&driver, &machine, SourceId::from_raw(0x0100), Invalidation::Strict)?;
    let alone = super::super::api(Invalidation::Strict, memory)?;
    let bounce = api(memory)?;
    let (mut strict_core, mut alone_core, mut core) = (strict.new_core(), alone.new_core(), bounce.new_core());
    let (wide, narrow) = (Device::with_address_bits(64), narrow());
    let beside = Buffer::new(HostPhys::new(BUFFERS), PAGE);
    // Mappings beside keep the tables, as other traffic of a device does.
    let kept = strict.map(&mut strict_core, &wide, beside, Direction::ToDevice)?;
    let kept_alone = alone.map(&mut alone_core, &wide, beside, Direction::ToDevice)?;
    let mut failed = 0_u64;
    let (mut on_model, mut on_hardware) = (Vec::new(), Vec::new());
    for len in STEPS {
        // Cold ones lie one behind the other in 64 MiB.
        let places = if hot { 1 } else { (MEMORY - BUFFERS) / len };
        let place = |turn: u64| Buffer::new(HostPhys::new(BUFFERS + (turn * 7919 % places) * len), len);
        let (mut turn, mut other, mut third) = (0_u64, places / 3, places / 3 * 2);
        let times = medians(
            quick,
            &mut [
                &mut |turns| {
                    timed(|| {
                        for _ in 0..turns {
                            turn += 1;
                            let mapping = bounce.map(&mut core, &narrow, place(turn), Direction::ToDevice);
                            failed += u64::from(!mapping.is_ok_and(|mapping| bounce.unmap(&mut core, mapping).is_ok()));
                        }
                    })
                },
                &mut |turns| {
                    timed(|| {
                        for _ in 0..turns {
                            other += 1;
                            let mapping = strict.map(&mut strict_core, &wide, place(other), Direction::ToDevice);
                            let done = mapping.is_ok_and(|mapping| strict.unmap(&mut strict_core, mapping).is_ok());
                            black_box(done);
                        }
                    })
                },
                &mut |turns| {
                    timed(|| {
                        for _ in 0..turns {
                            third += 1;
                            let mapping = alone.map(&mut alone_core, &wide, place(third), Direction::ToDevice);
                            black_box(mapping.is_ok_and(|mapping| alone.unmap(&mut alone_core, mapping).is_ok()));
                        }
                    })
                },
            ],
        );
        let &[copy, model, driver] = times.as_slice() else {
            return Err("a side was not timed".into());
        };
        on_model.push((len, copy - model));
        on_hardware.push((len, copy - driver - HARDWARE_WAIT));
    }
    strict
        .unmap(&mut strict_core, kept)
        .map_err(|error| format!("{error:?}"))?;
    alone
        .unmap(&mut alone_core, kept_alone)
        .map_err(|error| format!("{error:?}"))?;
    if failed > 0 {
        return Err(format!("{failed} operations failed").into());
    }
    let heat = if hot { "hot" } else { "cold" };
    let row = |what: &str, steps: &[(u64, f64)]| {
        let (sign, at) = crossing(steps);
        let case = format!("bounce to the device = strict map, {what}, {heat}{sign}");
        Row::figure("B12", case, at, "B")
    };
    Ok(vec![
        row("unit in the thread", &on_model),
        row("a wait of 700 ns (derived)", &on_hardware),
    ])
}

/// Where the difference becomes positive, between two lengths in proportion; a note where that is outside of all.
fn crossing(steps: &[(u64, f64)]) -> (&'static str, f64) {
    let positive = steps.iter().position(|&(_, more)| more > 0.0);
    match positive {
        Some(0) => (", below", steps.first().map_or(0.0, |&(len, _)| number(len))),
        Some(above) => match steps.get(above - 1..=above) {
            Some(&[(low, less), (high, more)]) => {
                let part = -less / (more - less);
                ("", number(low) + part * number(high - low))
            }
            _ => (", not found", 0.0),
        },
        None => (", above", steps.last().map_or(0.0, |&(len, _)| number(len))),
    }
}
