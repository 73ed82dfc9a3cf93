//! Checks on a machine without a remapping unit: everything works, and nothing is kept from anyone.
//!
//! That devices reach all memory is a statement too, and QEMU judges it: DMA that a unit would block has to arrive.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use iommu_dma::{Counters, Direction, Trust, Unprotected};
use iommu_types::{Iova, PAGE_SIZE};
use virtio_drivers::device::blk::SECTOR_SIZE;
use vtd_driver::EventMessage;
use vtd_spec::message::event_xapic_message;

use crate::apic::Apic;
use crate::checks::{Devices, Report};
use crate::console;
use crate::dma::{self, Policy, Use};
use crate::edu::{Edu, TRANSFER};
use crate::hardware::{Ended, Order, far};
use crate::lending::{NARROW, copied_by, far_twin, settled};
use crate::memory::BUFFERS;
use crate::requests::{
    self, Author, DEFERRED, END, STRICT, Session, TRUSTED, UNTRUSTED, WITHHELD, content, exchange, one_page,
};
use crate::rig::{Checked, ensure};

/// Everything a check uses.
struct Machine<'a> {
    devices: &'a Devices,
    apic: &'a Apic,
}

type Check = (&'static str, fn(&Machine<'_>) -> Checked);

/// In the order in which they run.
const CHECKS: &[Check] = &[
    ("a device is driven through the DMA interface", driven),
    ("a write outside of what was lent is not blocked", write_outside),
    ("a read outside of what was lent brings the data", read_outside),
    ("a page stays in a device's reach when it came back", taken_back),
    ("another device writes to what was lent to the first", by_another),
    ("28 address lines do not reach a high buffer", out_of_reach),
    ("a buffer out of the device's reach is copied, and arrives", bounced),
    ("a device raises the interrupt it names", interrupt),
    ("a disk is read and written at memory's own addresses", disk),
    ("a disk works although its buffers were never lent", never_lent),
    ("copies are not made where they keep nothing from a disk", untrusted),
    ("a disk writes to memory of another device", foreign),
    ("a disk works for the next driver", next_driver),
];

/// Says that nothing protects this machine, and uses it all the same.
pub(crate) fn run(report: &mut Report, devices: &Devices, apic: &Apic) {
    console::line(format_args!("WARNING there is no DMAR table. {Unprotected}"));
    let machine = Machine { devices, apic };
    for (name, check) in CHECKS {
        report.check(name, || check(&machine));
    }
}

/// Runs `body` with an adapter in place; what the DMA interface did.
fn lending(policy: Policy, body: impl FnOnce() -> Checked) -> Result<Counters, String> {
    dma::install_direct(policy)?;
    let done = body();
    let counters = settled();
    done?;
    counters
}

impl Machine<'_> {
    const fn edu(&self) -> &Edu {
        let [edu, _] = &self.devices.edus;
        edu
    }

    /// Runs `body` with the disk; what the DMA interface did.
    fn with_disk(&self, policy: Policy, body: impl FnOnce(&mut Session<'_>) -> Checked) -> Result<Counters, String> {
        dma::install_direct(policy)?;
        let mut session = Session::new(&self.devices.disk, None);
        let done = body(&mut session);
        // The device is reset first: it may still own buffers.
        drop(session);
        let removed = dma::remove();
        done?;
        requests::settled(removed?)
    }
}

/// `edu` takes a pattern from page 0 of the buffers, which is lent to it, and writes it to `to`.
fn carries(edu: &Edu, seed: u64, to: Iova) -> Checked {
    BUFFERS.fill(0, seed);
    let from = dma::share(BUFFERS.at(0), PAGE_SIZE, Direction::ToDevice);
    let ended = edu.read_memory(Iova::new(from), TRANSFER) && edu.write_memory(to, TRANSFER);
    dma::unshare(from);
    ensure(ended, "the device's DMA did not end")
}

/// The address of a buffer page, as a device uses it.
fn own_address(page: usize) -> Iova {
    Iova::new(BUFFERS.at(page).raw())
}

fn driven(machine: &Machine<'_>) -> Checked {
    let counters = lending(NARROW, || {
        let address = dma::share(BUFFERS.at(3), PAGE_SIZE, Direction::ToDevice);
        dma::unshare(address);
        ensure(address == BUFFERS.at(3).raw(), "an address was translated")?;
        copied_by(machine.edu(), &BUFFERS, 10, 0x71)
    })?;
    ensure(counters.maps == 3, "the buffers did not go through the interface")?;
    ensure(counters.iovas == 0, "addresses were allocated")?;
    ensure(counters.bounced_bytes == 0, "a buffer within reach was copied")
}

fn write_outside(machine: &Machine<'_>) -> Checked {
    BUFFERS.fill(2, 0);
    lending(NARROW, || carries(machine.edu(), 0x81, own_address(2)))?;
    let arrived = BUFFERS.holds(2, 0x81, TRANSFER);
    ensure(arrived, "the write was blocked: something protects this machine")
}

fn read_outside(machine: &Machine<'_>) -> Checked {
    BUFFERS.fill(3, 0x5ec);
    BUFFERS.fill(4, 0);
    lending(NARROW, || {
        let to = dma::share(BUFFERS.at(4), PAGE_SIZE, Direction::FromDevice);
        let ended =
            machine.edu().read_memory(own_address(3), TRANSFER) && machine.edu().write_memory(Iova::new(to), TRANSFER);
        dma::unshare(to);
        ensure(ended, "the device's DMA did not end")
    })?;
    let arrived = BUFFERS.holds(4, 0x5ec, TRANSFER);
    ensure(arrived, "the read was blocked: something protects this machine")
}

fn taken_back(machine: &Machine<'_>) -> Checked {
    lending(NARROW, || {
        let address = dma::share(BUFFERS.at(5), PAGE_SIZE, Direction::FromDevice);
        dma::unshare(address);
        BUFFERS.fill(5, 0);
        carries(machine.edu(), 0x82, Iova::new(address))
    })?;
    let arrived = BUFFERS.holds(5, 0x82, TRANSFER);
    ensure(arrived, "the write was blocked: something protects this machine")
}

fn by_another(machine: &Machine<'_>) -> Checked {
    let [_, other] = &machine.devices.edus;
    BUFFERS.fill(6, 0);
    lending(NARROW, || {
        let address = dma::share(BUFFERS.at(6), PAGE_SIZE, Direction::FromDevice);
        let done = carries(other, 0x83, Iova::new(address));
        dma::unshare(address);
        done
    })?;
    let arrived = BUFFERS.holds(6, 0x83, TRANSFER);
    ensure(arrived, "the write was blocked: something protects this machine")
}

/// What makes copies necessary: QEMU drops the address bits that the device has no lines for.
fn out_of_reach(machine: &Machine<'_>) -> Checked {
    let twin = far_twin(7)?;
    let beyond = far().at(twin);
    far().fill(twin, 0);
    BUFFERS.fill(7, 0);
    lending(NARROW, || carries(machine.edu(), 0x84, Iova::new(beyond.raw())))?;
    ensure(far().holds(twin, 0, PAGE_SIZE), "the device reaches the high buffer")?;
    ensure(
        BUFFERS.holds(7, 0x84, TRANSFER),
        "the write is not where 28 address lines lead",
    )
}

fn bounced(machine: &Machine<'_>) -> Checked {
    let counters = lending(NARROW, || copied_by(machine.edu(), far(), far_twin(12)?, 0x85))?;
    ensure(counters.bounced_buffers == 2, "not both buffers were copied")?;
    // Those that the device reads are copied to the pool, those that it writes are copied there and back.
    let copied = counters.bounced_bytes;
    ensure(copied == 3 * TRANSFER, &format!("{copied} bytes were copied"))
}

fn interrupt(machine: &Machine<'_>) -> Checked {
    const VECTOR: u8 = 0x71;
    ensure(!machine.apic.requested(VECTOR), "the interrupt came before its message")?;
    let (address, data) = event_xapic_message(machine.apic.id(), VECTOR);
    machine.edu().interrupt(EventMessage {
        address: address.into(),
        data: data.raw_value(),
    });
    ensure(machine.apic.requested(VECTOR), "the interrupt did not arrive")
}

fn disk(machine: &Machine<'_>) -> Checked {
    let counters = machine.with_disk(TRUSTED, |session| exchange(session, STRICT))?;
    ensure(counters.invalidations == 0, "a unit was waited for")?;
    ensure(counters.iovas == 0, "addresses were allocated")?;
    ensure(counters.bounced_bytes == 0, "buffers were copied")
}

/// As a driver that knows no IOMMU: data buffers are not mapped.
fn never_lent(machine: &Machine<'_>) -> Checked {
    dma::install_direct(TRUSTED)?;
    let mut session = Session::new(&machine.devices.disk, None);
    dma::use_data(Use::AsItIs);
    let done = exchange(&mut session, DEFERRED);
    drop(session);
    let removed = dma::remove();
    done?;
    let (left, counters) = removed?;
    ensure(left == 0, "the driver left buffers mapped")?;
    let data = u64::try_from(SECTOR_SIZE).unwrap_or(u64::MAX);
    ensure(counters.bytes / counters.maps.max(1) < data, "data were mapped")
}

fn untrusted(machine: &Machine<'_>) -> Checked {
    let policy = Policy {
        trust: Trust::Untrusted,
        ..TRUSTED
    };
    let counters = machine.with_disk(policy, |session| exchange(session, UNTRUSTED))?;
    ensure(counters.bounced_bytes == 0, "buffers were copied")
}

/// The page is lent to `edu`, by nobody to the disk.
fn foreign(machine: &Machine<'_>) -> Checked {
    const PAGE: usize = 8;
    dma::install_direct(TRUSTED)?;
    let mut session = Session::new(&machine.devices.disk, None);
    BUFFERS.fill(PAGE, 0);
    dma::use_data(Use::At(own_address(PAGE)));
    let (data, from) = one_page(0xa5);
    let done = session
        .start(None)
        .and_then(|()| session.run(Order::Read, 3, data, from));
    drop(session);
    let removed = dma::remove();
    ensure(matches!(done?, Ended::Done(Ok(()), _)), "the disk did not answer")?;
    removed?;
    let words = BUFFERS.words(PAGE).iter();
    let bytes = words.flat_map(|word| word.load(core::sync::atomic::Ordering::SeqCst).to_le_bytes());
    let found: Vec<u8> = bytes.take(SECTOR_SIZE).collect();
    let arrived = found == content(Author::Host, 3, 1);
    ensure(arrived, "the write was blocked: something protects this machine")
}

/// Fills the rest, so that the host finds the disk as in other runs.
fn next_driver(machine: &Machine<'_>) -> Checked {
    dma::install_direct(TRUSTED)?;
    let mut session = Session::new(&machine.devices.disk, None);
    let rest = content(Author::Kernel, WITHHELD, END - WITHHELD);
    let done = session
        .start(None)
        .and_then(|()| session.write(WITHHELD, &rest, 0))
        .and_then(|()| session.read(WITHHELD, END - WITHHELD, 0));
    drop(session);
    let removed = dma::remove();
    let back = done?;
    ensure(back == rest, "what was written does not come back")?;
    ensure(removed?.0 == 0, "the driver left buffers mapped")
}
