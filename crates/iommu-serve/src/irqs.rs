//! Interrupts of a function towards its client: event file descriptors.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use crate::protocol::{Command, IrqAction, IrqData, Refusal, SetIrqs};

/// Kinds of interrupts, by their VFIO index: INTx, MSI, MSI-X.
pub(crate) const KINDS: usize = 3;
/// VFIO index of INTx.
pub(crate) const INTX: u32 = 0;
/// VFIO index of MSI.
pub(crate) const MSI: u32 = 1;
/// VFIO index of MSI-X.
pub(crate) const MSIX: u32 = 2;
/// Kinds that a PCI device of VFIO counts: the three above, errors and requests to be released.
pub(crate) const INDICES: u32 = 5;

/// One interrupt.
#[derive(Debug, Default)]
struct Line {
    event: Option<OwnedFd>,
    masked: bool,
    /// Raised while it was masked.
    pending: bool,
}

impl Line {
    fn raise(&mut self) {
        let Some(event) = self.event.as_ref() else {
            return;
        };
        if self.masked {
            self.pending = true;
            return;
        }
        // An event counter that is full has interrupts pending already.
        let _ = rustix::io::write(event, &1u64.to_ne_bytes());
    }
}

#[derive(Debug, Default)]
struct State {
    lines: [Vec<Line>; KINDS],
    /// The level of INTx.
    asserted: bool,
}

/// Where the interrupts of one function go.
#[derive(Debug)]
pub(crate) struct Irqs {
    counts: [u32; KINDS],
    state: Mutex<State>,
}

impl Irqs {
    /// A function with so many interrupts of each kind.
    pub(crate) fn new(counts: [u32; KINDS]) -> Self {
        Self {
            counts,
            state: Mutex::default(),
        }
    }

    /// How many interrupts of kind `index` there are; `None` for a kind that does not exist.
    pub(crate) fn count(&self, index: u32) -> Option<u32> {
        let kind = usize::try_from(index).ok()?;
        match self.counts.get(kind) {
            Some(count) => Some(*count),
            None => (index < INDICES).then_some(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries out what the client asks.
    pub(crate) fn set(&self, what: &SetIrqs<'_>, fds: Vec<OwnedFd>) -> Result<(), Refusal> {
        let refuse = |why: &str| Refusal::invalid(Command::DEVICE_SET_IRQS, why);
        let count = self
            .count(what.index)
            .ok_or_else(|| refuse("there is no such kind of interrupt"))?;
        if what.start.saturating_add(what.count) > count {
            return Err(refuse("the device has fewer interrupts of this kind"));
        }
        let mut state = self.lock();
        let Some(lines) = usize::try_from(what.index)
            .ok()
            .and_then(|kind| state.lines.get_mut(kind))
        else {
            // Kinds without interrupts: there is nothing to set.
            return Ok(());
        };
        if what.count == 0 && what.data == IrqData::None && what.action == IrqAction::Trigger {
            lines.clear();
            return Ok(());
        }
        let (Ok(start), Ok(len)) = (usize::try_from(what.start), usize::try_from(what.count)) else {
            return Err(refuse("too many interrupts for this host"));
        };
        if lines.len() < start + len {
            lines.resize_with(start + len, Line::default);
        }
        let chosen = lines.get_mut(start..start + len).unwrap_or_default();
        match (what.action, what.data) {
            (IrqAction::Trigger, IrqData::Events) => {
                if !fds.is_empty() && fds.len() != len {
                    return Err(refuse(
                        "one event file descriptor must come along for each interrupt, or none",
                    ));
                }
                let mut fds = fds.into_iter();
                for line in chosen {
                    *line = Line {
                        event: fds.next(),
                        ..Line::default()
                    };
                }
            }
            (_, IrqData::Events) => {
                return Err(Refusal::with(
                    Command::DEVICE_SET_IRQS,
                    Errno::OPNOTSUPP,
                    "masking is done by messages here, not by event file descriptors",
                ));
            }
            (action, data) => {
                let bools = match data {
                    IrqData::Bools(bools) => Some(bools),
                    IrqData::None | IrqData::Events => None,
                };
                for (index, line) in chosen.iter_mut().enumerate() {
                    if bools.is_none_or(|bools| bools.get(index).is_some_and(|wanted| *wanted != 0)) {
                        act(action, line);
                    }
                }
            }
        }
        if what.index == INTX {
            reassert(&mut state);
        }
        Ok(())
    }

    /// Raises vector `vector` of the kind that the client has set up, MSI-X before MSI. Without either there is no
    /// interrupt: the client has not enabled it.
    pub(crate) fn raise(&self, vector: u16) {
        let mut state = self.lock();
        for kind in [MSIX, MSI] {
            let lines = usize::try_from(kind).ok().and_then(|kind| state.lines.get_mut(kind));
            if let Some(lines) = lines.filter(|lines| !lines.is_empty()) {
                if let Some(line) = lines.get_mut(usize::from(vector)) {
                    line.raise();
                }
                return;
            }
        }
    }

    /// Sets the level of INTx.
    pub(crate) fn set_level(&self, asserted: bool) {
        let mut state = self.lock();
        state.asserted = asserted;
        reassert(&mut state);
    }

    /// Forgets every event file descriptor, as when the client is gone.
    pub(crate) fn clear(&self) {
        *self.lock() = State::default();
    }
}

fn act(action: IrqAction, line: &mut Line) {
    match action {
        IrqAction::Mask => line.masked = true,
        IrqAction::Unmask => {
            line.masked = false;
            if core::mem::take(&mut line.pending) {
                line.raise();
            }
        }
        IrqAction::Trigger => line.raise(),
    }
}

/// A level that is asserted and not masked raises its event and masks itself, until the client unmasks it.
fn reassert(state: &mut State) {
    let [lines, ..] = &mut state.lines;
    if let Some(line) = lines.first_mut() {
        line.pending = false;
        if state.asserted && !line.masked && line.event.is_some() {
            line.raise();
            line.masked = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    fn event() -> (OwnedFd, OwnedFd) {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
        (event.try_clone().unwrap(), event)
    }

    fn raised(event: &OwnedFd) -> u64 {
        let mut count = [0; 8];
        rustix::io::read(event, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    fn set(index: u32, start: u32, count: u32, action: IrqAction, data: IrqData<'_>) -> SetIrqs<'_> {
        SetIrqs {
            index,
            start,
            count,
            action,
            data,
        }
    }

    #[test]
    fn msi_x_vectors_raise_the_events_they_were_given() {
        let irqs = Irqs::new([1, 1, 4]);
        let ((first, a), (second, b)) = (event(), event());
        irqs.set(
            &set(MSIX, 1, 2, IrqAction::Trigger, IrqData::Events),
            vec![first, second],
        )
        .unwrap();
        irqs.raise(2);
        irqs.raise(0);
        irqs.raise(99);
        assert_eq!((raised(&a), raised(&b)), (0, 1));
        irqs.set(
            &set(MSIX, 1, 2, IrqAction::Trigger, IrqData::Bools(&[1, 0])),
            Vec::new(),
        )
        .unwrap();
        assert_eq!((raised(&a), raised(&b)), (1, 0));
        irqs.set(&set(MSIX, 0, 0, IrqAction::Trigger, IrqData::None), Vec::new())
            .unwrap();
        irqs.raise(1);
        assert_eq!(raised(&a), 0);
    }

    #[test]
    fn intx_masks_itself_and_comes_again_while_the_level_is_asserted() {
        let irqs = Irqs::new([1, 0, 0]);
        let (given, seen) = event();
        irqs.set(&set(INTX, 0, 1, IrqAction::Trigger, IrqData::Events), vec![given])
            .unwrap();
        irqs.set_level(true);
        irqs.set_level(true);
        assert_eq!(raised(&seen), 1);
        irqs.set(&set(INTX, 0, 1, IrqAction::Unmask, IrqData::None), Vec::new())
            .unwrap();
        assert_eq!(raised(&seen), 1);
        irqs.set_level(false);
        irqs.set(&set(INTX, 0, 1, IrqAction::Unmask, IrqData::None), Vec::new())
            .unwrap();
        assert_eq!(raised(&seen), 0);
    }

    #[test]
    fn what_the_device_does_not_have_is_refused() {
        let irqs = Irqs::new([0, 0, 2]);
        let (given, _seen) = event();
        let many = irqs.set(&set(MSIX, 1, 2, IrqAction::Trigger, IrqData::None), Vec::new());
        assert_eq!(many.unwrap_err().errno, Errno::INVAL);
        let few = irqs.set(&set(MSIX, 0, 2, IrqAction::Trigger, IrqData::Events), vec![given]);
        assert_eq!(few.unwrap_err().errno, Errno::INVAL);
        assert!(
            irqs.set(&set(7, 0, 0, IrqAction::Trigger, IrqData::None), Vec::new())
                .is_err()
        );
        assert_eq!((irqs.count(3), irqs.count(5)), (Some(0), None));
    }
}
