//! Addresses for BARs and bridge windows, as firmware assigns them before an operating system starts.

use std::collections::HashMap;

use iommu_types::{AddrRange, Bdf, HostPhys};

use crate::description::MachineDescription;

/// Granularity of a bridge's memory window, in bytes.
const WINDOW: u64 = 1 << 20;
/// Least distance of two BARs: functions that go to different owners never share a page.
const PAGE: u64 = 1 << 12;

/// The window of a host bridge is too small for what is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowFull {
    /// The function that got no address.
    pub(crate) function: Bdf,
    /// The window.
    pub(crate) window: AddrRange<HostPhys>,
}

/// What firmware programmed.
#[derive(Debug, Default)]
pub(crate) struct Placement {
    /// Base address of BAR 0 of a function, by index.
    pub(crate) bars: HashMap<usize, u64>,
    /// Window of a bridge, by index.
    pub(crate) windows: HashMap<usize, AddrRange<HostPhys>>,
}

/// Places a BAR of `size(index)` bytes for every function that wants one.
pub(crate) fn place(
    description: &MachineDescription,
    size: impl Fn(usize) -> Option<u64>,
) -> Result<Placement, WindowFull> {
    let mut placer = Placer {
        description,
        size: &size,
        placement: Placement::default(),
    };
    for bridge in &description.host_bridges {
        let roots = |index: usize| {
            description.functions.get(index).is_some_and(|function| {
                function.parent.is_none()
                    && function.bdf.segment == bridge.segment
                    && function.bdf.bus() == bridge.buses.first
            })
        };
        let indices: Vec<usize> = (0..description.functions.len()).filter(|index| roots(*index)).collect();
        placer.bus(&indices, bridge.window.first().raw(), bridge.window)?;
    }
    Ok(placer.placement)
}

struct Placer<'a> {
    description: &'a MachineDescription,
    size: &'a dyn Fn(usize) -> Option<u64>,
    placement: Placement,
}

impl Placer<'_> {
    /// Places the functions of one bus from `cursor` on; returns the first free address. The recursion is as
    /// deep as bridges nest: 256 buses at most.
    fn bus(&mut self, indices: &[usize], cursor: u64, window: AddrRange<HostPhys>) -> Result<u64, WindowFull> {
        let mut cursor = cursor;
        for &index in indices {
            let Some(function) = self.description.functions.get(index) else {
                continue;
            };
            if let Some(size) = (self.size)(index) {
                let base = cursor.next_multiple_of(size.max(PAGE));
                let end = base.saturating_add(size.max(PAGE));
                if end - 1 > window.last().raw() {
                    return Err(WindowFull {
                        function: function.bdf,
                        window,
                    });
                }
                self.placement.bars.insert(index, base);
                cursor = end;
            }
        }
        for &index in indices {
            let is_bridge = |function: &crate::description::FunctionDescription| function.kind.is_bridge();
            if !self.description.functions.get(index).is_some_and(is_bridge) {
                continue;
            }
            let below: Vec<usize> = self
                .description
                .functions
                .iter()
                .enumerate()
                .filter(|(_, function)| function.parent == Some(index))
                .map(|(index, _)| index)
                .collect();
            let base = cursor.next_multiple_of(WINDOW);
            let end = self.bus(&below, base, window)?.next_multiple_of(WINDOW);
            if let Some(range) = AddrRange::from_base_len(HostPhys::new(base), end - base) {
                self.placement.windows.insert(index, range);
                cursor = end;
            }
        }
        Ok(cursor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_nest_and_no_two_bars_share_a_page() {
        let machine = MachineDescription::two_socket().expect("sound");
        let size = |index: usize| machine.functions[index].engine.then_some(2 << 20);
        let placement = place(&machine, size).expect("fits");
        let mut ranges: Vec<_> = placement
            .bars
            .iter()
            .map(|(index, base)| {
                (
                    *index,
                    AddrRange::from_base_len(HostPhys::new(*base), 2 << 20).expect("range"),
                )
            })
            .collect();
        ranges.sort_by_key(|(_, range)| range.first());
        for (a, b) in ranges.iter().zip(ranges.iter().skip(1)) {
            assert!(!a.1.overlaps(b.1));
        }
        for (index, range) in ranges {
            let mut parent = machine.functions[index].parent;
            while let Some(above) = parent {
                assert!(placement.windows[&above].covers(range), "{index} below {above}");
                parent = machine.functions[above].parent;
            }
        }
    }

    #[test]
    fn a_full_window_names_the_function_that_does_not_fit() {
        let machine = MachineDescription::two_socket().expect("sound");
        let full = place(&machine, |index| machine.functions[index].engine.then_some(512 << 20)).expect_err("full");
        assert_eq!(full.window, machine.host_bridges[0].window);
    }
}
