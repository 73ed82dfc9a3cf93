//! Where interrupts arrive.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use iommu_types::SourceId;
use vtd_model::Interrupt;
use vtd_spec::message::{CompatibilityAddress, CompatibilityData};

/// Interrupts that are kept until somebody asks for them; older ones make room.
const KEPT: usize = 4096;

/// Who sent an interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    /// A function, by the requester ID that arrived at the root complex.
    Function(SourceId),
    /// A remapping unit itself, by its position: a fault or completion event.
    Unit(usize),
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(source) => write!(f, "{source}"),
            Self::Unit(index) => write!(f, "unit {index}"),
        }
    }
}

/// An interrupt that arrived at the processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arrival {
    /// Who sent it.
    pub sender: Sender,
    /// The vector.
    pub vector: u8,
    /// APIC ID, or logical destination.
    pub destination: u32,
    /// The interrupt remapping table entry it went through; `None` for one that was delivered as written.
    pub entry: Option<u16>,
}

impl Arrival {
    /// A message in compatibility format, delivered as it was written.
    pub(crate) fn unmodified(sender: Sender, address: u64, data: u32) -> Self {
        Self {
            sender,
            vector: CompatibilityData::new_with_raw_value(data).vector(),
            destination: destination(address),
            entry: None,
        }
    }

    pub(crate) fn remapped(sender: Sender, interrupt: &Interrupt) -> Self {
        match interrupt {
            Interrupt::Unmodified { address, data } => Self::unmodified(sender, *address, *data),
            Interrupt::Remapped(remapped) => Self {
                sender,
                vector: remapped.vector,
                destination: remapped.destination,
                entry: Some(remapped.index),
            },
        }
    }
}

/// The destination that the address of a compatibility-format message names.
fn destination(address: u64) -> u32 {
    let low = u32::try_from(address & u64::from(u32::MAX)).unwrap_or_default();
    u32::from(CompatibilityAddress::new_with_raw_value(low).destination())
}

impl fmt::Display for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "vector {:#04x} at destination {} from {}",
            self.vector, self.destination, self.sender
        )?;
        match self.entry {
            Some(entry) => write!(f, " through entry {entry}"),
            None => f.write_str(", not remapped"),
        }
    }
}

/// Who is told of an interrupt when it arrives; true takes it.
type Listener = Box<dyn Fn(&Arrival) -> bool + Send + Sync>;

/// The interrupts that arrived, oldest first.
#[derive(Default)]
pub(crate) struct Sink {
    arrivals: Mutex<VecDeque<Arrival>>,
    listener: OnceLock<Listener>,
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sink")
            .field("arrivals", &self.arrivals)
            .finish_non_exhaustive()
    }
}

impl Sink {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Arrival>> {
        self.arrivals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets who is told; false if somebody is told already.
    pub(crate) fn listen(&self, listener: Listener) -> bool {
        self.listener.set(listener).is_ok()
    }

    pub(crate) fn push(&self, arrival: Arrival) {
        if self.listener.get().is_some_and(|listener| listener(&arrival)) {
            return;
        }
        let mut arrivals = self.lock();
        if arrivals.len() == KEPT {
            arrivals.pop_front();
        }
        arrivals.push_back(arrival);
    }

    pub(crate) fn take(&self) -> Vec<Arrival> {
        self.lock().drain(..).collect()
    }
}
