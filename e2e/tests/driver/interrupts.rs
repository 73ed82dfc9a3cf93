//! Interrupt remapping, from the entry to the processor.

use vtd_driver::{ApicMode, InterruptError, InterruptOptions, InterruptSource, InterruptTarget, Polarity};
use vtd_model::{Interrupt, Profile, UnitConfig};
use vtd_spec::FaultReason;

use crate::machine::{Machine, source};

fn machine(caching: bool) -> Machine {
    let config = UnitConfig::builder().profile(Profile::Silicon).caching_mode(caching);
    Machine::new(config.build().expect("valid"))
}

#[test]
fn a_message_arrives_from_its_source_only_and_follows_its_target() {
    for caching in [false, true] {
        let machine = machine(caching);
        let unit = machine.translating();
        unit.start_interrupt_remapping(InterruptOptions {
            entries: 512,
            mode: ApicMode::X2Apic,
        })
        .expect("on");
        let nic = source("02:00.0");
        let block = unit
            .allocate_interrupts(1, InterruptSource::Requester(nic))
            .expect("an entry");
        let message = block.message(0).expect("one");
        let send = |from| machine.interrupt(from, message.address, message.data);
        assert!(send(nic).is_err(), "blocked until it has a target");

        unit.set_interrupt(&block, 0, Some(InterruptTarget::fixed(0x41, 0x1_0002)))
            .expect("set");
        let Ok(Interrupt::Remapped(arrived)) = send(nic) else {
            panic!("blocked")
        };
        assert_eq!((arrived.vector, arrived.destination), (0x41, 0x1_0002));
        assert_eq!(send(source("02:00.1")), Err(FaultReason::INTERRUPT_SOURCE_INVALID.0));

        unit.set_interrupt(&block, 0, Some(InterruptTarget::fixed(0x52, 1)))
            .expect("set");
        let Ok(Interrupt::Remapped(arrived)) = send(nic) else {
            panic!("blocked")
        };
        assert_eq!((arrived.vector, arrived.destination), (0x52, 1));

        unit.release_interrupts(block).expect("released");
        assert!(send(nic).is_err());
    }
}

#[test]
fn compatibility_format_interrupts_are_blocked_once_remapping_is_on() {
    let machine = machine(false);
    let unit = machine.translating();
    let forged = |machine: &Machine| machine.interrupt(source("02:00.0"), 0xfee0_1000, 0x31);
    assert!(matches!(forged(&machine), Ok(Interrupt::Unmodified { .. })));
    unit.start_interrupt_remapping(InterruptOptions::default()).expect("on");
    assert!(forged(&machine).is_err());
}

#[test]
fn multi_message_interrupts_select_their_entry_by_the_data() {
    let machine = machine(false);
    let unit = machine.translating();
    unit.start_interrupt_remapping(InterruptOptions::default()).expect("on");
    let buses = InterruptSource::BusRange { first: 4, last: 5 };
    let _other = unit.allocate_interrupts(3, buses).expect("entries");
    let block = unit.allocate_interrupts(4, buses).expect("entries");
    for (number, vector) in (0..4).zip(0x60..) {
        unit.set_interrupt(&block, number, Some(InterruptTarget::fixed(vector, 3)))
            .expect("set");
    }
    let message = block.multi_message();
    for (number, vector) in (0..4).zip(0x60..) {
        let answer = machine.interrupt(source("05:1f.7"), message.address, message.data | number);
        assert_eq!(answer.map(|interrupt| interrupt.vector()), Ok(vector));
    }
    assert!(
        machine
            .interrupt(source("06:00.0"), message.address, message.data)
            .is_err()
    );
}

#[test]
fn what_a_unit_cannot_do_is_refused_before_anything_changes() {
    let config = UnitConfig::builder().extended_interrupts(false).build().expect("valid");
    let machine = Machine::new(config);
    let unit = machine.translating();
    let options = InterruptOptions::default();
    let x2apic = InterruptOptions {
        mode: ApicMode::X2Apic,
        ..options
    };
    assert_eq!(
        unit.start_interrupt_remapping(x2apic),
        Err(InterruptError::WrongMode(ApicMode::X2Apic))
    );
    let odd = InterruptOptions {
        entries: 300,
        ..options
    };
    assert_eq!(unit.start_interrupt_remapping(odd), Err(InterruptError::BadSize(300)));
    let nic = InterruptSource::Requester(source("02:00.0"));
    assert_eq!(unit.allocate_interrupts(1, nic), Err(InterruptError::NotOn));
    unit.start_interrupt_remapping(options).expect("on");
    assert_eq!(unit.start_interrupt_remapping(options), Err(InterruptError::AlreadyOn));
    let block = unit.allocate_interrupts(256, nic).expect("all entries");
    assert!(matches!(
        unit.allocate_interrupts(1, nic),
        Err(InterruptError::NoEntries { .. })
    ));
    let wide = Some(InterruptTarget::fixed(0x41, 0x100));
    assert_eq!(
        unit.set_interrupt(&block, 0, wide),
        Err(InterruptError::DestinationTooLarge(0x100))
    );
    unit.release_interrupts(block).expect("released");
}

/// The message that an I/O APIC sends for a redirection entry in remappable format, by plain shifts: format and index
/// are bits 63:48 and 11 of the entry, 19:4 and 2 of the address; vector and trigger mode are data.
fn io_apic_message(entry: u64) -> (u64, u32) {
    let address = 0xfee0_0000 | (entry >> 48) << 4 | (entry >> 11 & 1) << 2;
    let data = (entry & 0xff) | (entry & 1 << 15) | (entry >> 15 & 1) << 14;
    (address, u32::try_from(data).expect("16 bits"))
}

#[test]
fn a_pin_of_an_io_apic_interrupts_through_its_own_entry_and_from_its_own_source_only() {
    let machine = machine(false);
    let unit = machine.translating();
    unit.start_interrupt_remapping(InterruptOptions::default()).expect("on");
    // The source that the DMAR table's device scope names.
    let apic = source("f0:1f.7");
    let pins = unit
        .allocate_interrupts(24, InterruptSource::Requester(apic))
        .expect("entries");
    for (pin, level) in [(0, false), (23, true)] {
        let target = InterruptTarget {
            level,
            ..InterruptTarget::fixed(0x40 + u8::try_from(pin).expect("small"), 2)
        };
        unit.set_interrupt(&pins, pin, Some(target)).expect("set");
        let entry = pins
            .io_apic_entry(pin, target, Polarity::ActiveLow, false)
            .expect("a pin");
        let (address, data) = io_apic_message(entry.raw_value());
        let Ok(Interrupt::Remapped(arrived)) = machine.interrupt(apic, address, data) else {
            panic!("pin {pin} is blocked")
        };
        assert_eq!((arrived.vector, arrived.destination), (target.vector, 2));
        // Another function of the same device is somebody else.
        let forged = machine.interrupt(source("f0:1f.0"), address, data);
        assert_eq!(forged, Err(FaultReason::INTERRUPT_SOURCE_INVALID.0));
    }
    assert!(
        pins.io_apic_entry(24, InterruptTarget::fixed(0x40, 2), Polarity::ActiveLow, false)
            .is_none()
    );
}

#[test]
fn a_timer_of_an_hpet_interrupts_as_any_function_of_its_device_and_as_no_other() {
    let machine = machine(false);
    let unit = machine.translating();
    unit.start_interrupt_remapping(InterruptOptions::default()).expect("on");
    // Firmware often gets the function wrong.
    let hpet = InterruptSource::AnyFunction(source("f0:1f.0"));
    let timers = unit.allocate_interrupts(3, hpet).expect("entries");
    for (timer, vector) in (0..3).zip(0x70..) {
        unit.set_interrupt(&timers, timer, Some(InterruptTarget::fixed(vector, 1)))
            .expect("set");
        let message = timers.message(timer).expect("a timer");
        let send = |from: &str| machine.interrupt(source(from), message.address, message.data);
        for function in ["f0:1f.0", "f0:1f.3", "f0:1f.7"] {
            assert_eq!(send(function).map(|arrived| arrived.vector()), Ok(vector), "{function}");
        }
        for other in ["f0:1e.0", "f1:1f.0"] {
            assert_eq!(send(other), Err(FaultReason::INTERRUPT_SOURCE_INVALID.0), "{other}");
        }
    }
}
