//! A VMM in small, to copy from: the unit's registers on a bus, a virtio queue behind it, interrupts out.
//!
//! The "guest" at the end is played by this program; in a VMM it is the guest's kernel.

use std::error::Error;
use std::sync::Arc;
use std::thread;

use iommu_types::{Access, Iova, SourceId};
use virtio_queue::{Queue, QueueT};
use vm_device::bus::{MmioAddress, MmioRange};
use vm_device::device_manager::{IoManager, MmioManager};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vtd_model::cache::InterruptInvalidation;
use vtd_model::{EventMessage, InterruptRequest, UnitConfig};
use vtd_spec::register::{GlobalCommand, offset};
use vtd_vmm::{Listener, MsiMessage, Requester, VmmUnit};

/// Where the DMAR table of the guest says the unit is.
const UNIT_BASE: u64 = 0xFED9_0000;

/// The hypervisor's way to interrupt a vCPU; with KVM this is `KVM_SIGNAL_MSI`.
struct Hypervisor;

impl Hypervisor {
    fn signal(&self, message: MsiMessage) {
        println!("interrupt: {message:x?}");
    }
}

/// What the unit tells the VMM by itself.
struct News(Arc<Hypervisor>);

impl Listener for News {
    fn event(&self, event: EventMessage) {
        // The unit's own interrupts are not remapped; KVM takes them in the form the guest wrote.
        let [a, b, c, d, e, f, g, h] = event.address.to_le_bytes();
        self.0.signal(MsiMessage {
            address_low: u32::from_le_bytes([a, b, c, d]),
            address_high: u32::from_le_bytes([e, f, g, h]),
            data: event.data,
        });
    }

    fn interrupt_entries_changed(&self, what: InterruptInvalidation) {
        // Here irqfd routes that were remapped in advance are remapped again.
        println!("interrupt entries changed: {what:?}");
    }
}

type Unit = VmmUnit<Arc<GuestMemoryMmap>, News>;

/// A device with one queue that answers every request with zeros.
struct Device {
    requester: Requester,
    unit: Arc<Unit>,
    hypervisor: Arc<Hypervisor>,
    queue: Queue,
    /// What the guest wrote to the device's MSI-X table.
    msi: (u64, u32),
}

impl Device {
    /// Runs on the device's thread when the guest notifies the queue.
    fn process(&mut self) -> usize {
        let mut served = 0;
        // One section for each request: it is short, so invalidations never wait long for it.
        while self.serve() {
            served += 1;
        }
        if served > 0 {
            self.interrupt();
        }
        served
    }

    fn serve(&mut self) -> bool {
        let dma = self.unit.enter(self.requester);
        let Some(chain) = self.queue.pop_descriptor_chain(&dma) else {
            return false;
        };
        let (head, mut written) = (chain.head_index(), 0);
        for part in chain.writable() {
            let zeros = vec![0; usize::try_from(part.len().min(1 << 20)).unwrap_or(0)];
            match dma.write_slice(&zeros, part.addr()) {
                Ok(()) => written += part.len(),
                // Blocked by the unit, which has recorded the fault for the guest.
                Err(why) => println!("request {head}: {why}"),
            }
        }
        self.queue.add_used(&dma, head, written).is_ok()
    }

    fn interrupt(&self) {
        let (address, data) = self.msi;
        let request = InterruptRequest {
            source: self.requester.source,
            address,
            data,
        };
        let delivered = self
            .unit
            .interrupt(&request, |interrupt| self.hypervisor.signal(interrupt.to_kvm_x2apic()));
        if let Err(why) = delivered {
            println!("interrupt dropped: {why}");
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    run().map(|_| ())
}

/// Requests served with translation off and on, and faults recorded.
fn run() -> Result<(usize, usize, u64), Box<dyn Error>> {
    // The machine: memory, the unit on the MMIO bus, a device behind it.
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 16 << 20)])?);
    let hypervisor = Arc::new(Hypervisor);
    let config = UnitConfig::builder().two_phase_waits(true).build()?;
    let unit = Arc::new(VmmUnit::new(
        config,
        Arc::clone(&memory),
        News(Arc::clone(&hypervisor)),
    )?);
    let mut bus = IoManager::new();
    let window = MmioRange::new(MmioAddress(UNIT_BASE), u64::from(unit.window_len()))?;
    bus.register_mmio(window, Arc::clone(&unit) as Arc<_>)?;
    let mut device = Device {
        requester: Requester::new("00:03.0".parse::<SourceId>()?),
        unit: Arc::clone(&unit),
        hypervisor,
        queue: guest::queue()?,
        msi: (0xFEE0_1000, 0x41),
    };

    // The guest: sets up its queue, then switches translation on with tables that map nothing.
    guest::offer(&memory, 0)?;
    let before = device.process();
    println!("translation off: {before} request(s) served");
    let write32 = |at: u32, value: u32| bus.mmio_write(MmioAddress(UNIT_BASE + u64::from(at)), &value.to_le_bytes());
    write32(offset::RTADDR, 0x80_0000)?;
    write32(offset::GCMD, GlobalCommand::DEFAULT.with_srtp(true).raw_value())?;
    write32(offset::GCMD, GlobalCommand::DEFAULT.with_te(true).raw_value())?;
    guest::offer(&memory, 1)?;
    let served = thread::spawn(move || device.process())
        .join()
        .map_err(|_| "the device's thread died")?;
    println!("translation on, nothing mapped: {served} request(s) served");

    // A device model of one's own can also ask for single places.
    let nic = Requester::new("00:04.0".parse::<SourceId>()?);
    let blocked = unit.section(nic, |dma| dma.translate(Iova::new(0x5000), 64, Access::Write));
    println!(
        "{}",
        blocked
            .err()
            .map_or_else(|| "allowed".to_owned(), |fault| fault.to_string())
    );
    let faults = unit.counters().faults_recorded;
    println!("faults recorded: {faults}");
    Ok((before, served, faults))
}

#[test]
fn it_serves_what_translation_lets_through() {
    assert_eq!(run().ok(), Some((1, 0, 2)));
}

/// The other side.
mod guest {
    use super::{Bytes, Error, GuestAddress, GuestMemoryMmap, Queue, QueueT};

    /// The queue as the guest's driver sets it up.
    pub(crate) fn queue() -> Result<Queue, Box<dyn Error>> {
        let mut queue = Queue::new(16)?;
        queue.set_size(16);
        queue.set_desc_table_address(Some(0x1_0000), Some(0));
        queue.set_avail_ring_address(Some(0x1_1000), Some(0));
        queue.set_used_ring_address(Some(0x1_2000), Some(0));
        queue.set_ready(true);
        Ok(queue)
    }

    /// Offers request number `index`: a buffer of 512 bytes for the device to write.
    pub(crate) fn offer(memory: &GuestMemoryMmap, index: u16) -> Result<(), Box<dyn Error>> {
        let at = u64::from(index);
        memory.write_obj(0x2_0000 + at * 512, GuestAddress(0x1_0000 + at * 16))?;
        memory.write_obj([512u32, 2], GuestAddress(0x1_0000 + at * 16 + 8))?;
        memory.write_obj(index, GuestAddress(0x1_1000 + 4 + at * 2))?;
        memory.write_obj(index + 1, GuestAddress(0x1_1000 + 2))?;
        Ok(())
    }
}
