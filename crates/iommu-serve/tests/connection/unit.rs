//! The unit and what is behind it, as a guest drives them.

use std::os::fd::OwnedFd;

use rustix::event::{EventfdFlags, eventfd};

use crate::Rig;
use crate::client::{CONFIG, Client, guest_memory, peek, poke, words};

const GCMD: u64 = 0x18;
const GSTS: u64 = 0x1c;
const RTADDR: u64 = 0x20;
const FSTS: u64 = 0x34;
const FECTL: u64 = 0x38;
const FEDATA: u64 = 0x3c;
const FEADDR: u64 = 0x40;
const TE: u32 = 1 << 31;
const SRTP: u32 = 1 << 30;

/// The engine's registers, from the description of `edu`.
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const BUFFER: u64 = 0x4_0000;

const MEMORY: u64 = 4 << 20;

/// Root table at 0x1000, context table at 0x2000, four levels from 0x3000 on: IOVA 0x10_0000 of 00:07.0 is 0x20_0000.
fn tables(memory: &OwnedFd) {
    let word = |at: u64, value: u64| poke(memory, at, &value.to_le_bytes());
    word(0x1000, 0x2001);
    let context = 0x2000 + (7 << 3) * 16;
    word(context, 0x3001);
    word(context + 8, 2 | 1 << 8);
    word(0x3000, 0x4003);
    word(0x4000, 0x5003);
    word(0x5000, 0x6003);
    word(0x6000 + 0x100 * 8, 0x20_0003);
}

fn command(unit: &mut Client, bit: u32) {
    unit.write(0, GCMD, &bit.to_le_bytes()).unwrap();
    assert_eq!(unit.read32(0, GSTS) & bit, bit);
}

/// Points the unit at its tables, drops what it cached, and enables translation.
pub(crate) fn enable(unit: &mut Client) {
    unit.write(0, RTADDR, &0x1000u64.to_le_bytes()).unwrap();
    command(unit, SRTP);
    // CCMD and IOTLB: both global, as software has to after SRTP.
    unit.write(0, 0x28, &(1u64 << 63 | 1 << 61).to_le_bytes()).unwrap();
    let iro = (unit.read64(0, 0x10) >> 8 & 0x3ff) * 16;
    unit.write(0, iro + 8, &(1u64 << 63 | 1 << 60).to_le_bytes()).unwrap();
    command(unit, TE);
}

/// The clients of both functions and the memory that they share.
pub(crate) struct Guest {
    pub(crate) unit: Client,
    pub(crate) engine: Client,
    pub(crate) memory: OwnedFd,
}

pub(crate) fn guest(rig: &Rig) -> Guest {
    let memory = guest_memory(MEMORY);
    let mut unit = Client::agreed(&rig.socket("unit"));
    unit.map(0, MEMORY, Some(&memory)).unwrap();
    let mut engine = Client::agreed(&rig.socket("engine"));
    engine.map(0, MEMORY, Some(&memory)).unwrap();
    engine.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    tables(&memory);
    Guest { unit, engine, memory }
}

/// Lets the engine write the first `count` bytes of its buffer to `iova`.
pub(crate) fn store(engine: &mut Client, iova: u64, count: u64) {
    for (register, value) in [(SOURCE, BUFFER), (DESTINATION, iova), (COUNT, count), (COMMAND, 3)] {
        engine.post(0, register, &value.to_le_bytes());
    }
}

#[test]
fn a_dma_goes_where_the_guests_tables_lead_and_nowhere_else() {
    let rig = Rig::new();
    let Guest {
        mut unit,
        mut engine,
        memory,
    } = guest(&rig);
    engine.write(0, BUFFER, &[0xa5; 8]).unwrap();
    enable(&mut unit);

    store(&mut engine, 0x10_0ff8, 8);
    engine.read32(0, 0);
    assert_eq!(peek::<8>(&memory, 0x20_0ff8), [0xa5; 8]);

    store(&mut engine, 0x10_1000, 8);
    engine.read32(0, 0);
    assert_eq!(peek::<8>(&memory, 0x10_1000), [0; 8]);
    assert_eq!(unit.read32(0, FSTS) & 2, 2);
    let faults = rig.said.faults.lock().unwrap().clone();
    assert_eq!(faults.len(), 1);
    assert!(faults[0].contains("00:07.0"), "{faults:?}");
}

#[test]
fn before_translation_is_enabled_addresses_pass_and_a_function_beside_the_unit_never_asks_it() {
    let rig = Rig::new();
    let Guest {
        mut unit,
        mut engine,
        memory,
    } = guest(&rig);
    engine.write(0, BUFFER, &[1; 4]).unwrap();
    store(&mut engine, 0x30_0000, 4);
    engine.read32(0, 0);
    assert_eq!(peek::<4>(&memory, 0x30_0000), [1; 4]);

    enable(&mut unit);
    let mut beside = Client::agreed(&rig.socket("beside"));
    beside.map(0, MEMORY, Some(&memory)).unwrap();
    beside.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    beside.write(0, BUFFER, &[2; 4]).unwrap();
    store(&mut beside, 0x30_0000, 4);
    beside.read32(0, 0);
    assert_eq!(peek::<4>(&memory, 0x30_0000), [2; 4]);
    assert!(rig.said.faults.lock().unwrap().is_empty());
}

#[test]
fn the_units_fault_event_is_a_write_to_the_programmed_address() {
    let rig = Rig::new();
    let Guest {
        mut unit, mut engine, ..
    } = guest(&rig);
    unit.write(0, FEDATA, &0x4041u32.to_le_bytes()).unwrap();
    unit.write(0, FEADDR, &0xfee0_1000u32.to_le_bytes()).unwrap();
    unit.write(0, FECTL, &0u32.to_le_bytes()).unwrap();
    enable(&mut unit);
    store(&mut engine, 0x5000, 4);
    engine.read32(0, 0);
    let event = unit.receive();
    // A DMA_WRITE that wants no reply: address, a count of eight bytes, the data.
    assert_eq!((event.command, event.flags), (12, 0x10));
    let mut expected = 0xfee0_1000u64.to_le_bytes().to_vec();
    expected.extend(4u64.to_le_bytes());
    expected.extend(0x4041u32.to_le_bytes());
    assert_eq!(event.payload, expected);
}

#[test]
fn an_interrupt_of_a_function_reaches_the_event_that_the_client_gave() {
    let rig = Rig::new();
    let Guest { mut engine, .. } = guest(&rig);
    let count = engine.ask(7, &words(&[16, 0, 1, 0])).unwrap();
    assert!(u32::from_le_bytes(count[12..16].try_into().unwrap()) >= 1);
    let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap();
    engine.ask_with(8, &words(&[20, 0x24, 1, 0, 1]), &[&event]).unwrap();
    // MSI is enabled in configuration space, as the guest's driver does it.
    let mut at = engine.read(CONFIG, 0x34, 1).unwrap()[0];
    while engine.read(CONFIG, u64::from(at), 1).unwrap()[0] != 5 {
        at = engine.read(CONFIG, u64::from(at) + 1, 1).unwrap()[0];
        assert_ne!(at, 0);
    }
    engine.write(CONFIG, u64::from(at) + 2, &1u16.to_le_bytes()).unwrap();
    engine.write(0, 0x60, &1u32.to_le_bytes()).unwrap();
    let mut raised = [0; 8];
    rustix::io::read(&event, &mut raised).unwrap();
    assert_eq!(u64::from_ne_bytes(raised), 1);
}

#[test]
fn memory_that_is_not_shared_is_reached_by_messages() {
    let rig = Rig::new();
    let mut engine = Client::agreed(&rig.socket("beside"));
    engine.map(0x10_0000, 0x1000, None).unwrap();
    engine.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    engine.write(0, BUFFER, &[7; 16]).unwrap();
    store(&mut engine, 0x10_0010, 16);
    let wrote = engine.receive();
    assert_eq!(wrote.command, 12);
    assert_eq!(wrote.payload[..8], 0x10_0010u64.to_le_bytes());
    assert_eq!(wrote.payload[16..], [7; 16]);

    for (register, value) in [(SOURCE, 0x10_0000), (DESTINATION, BUFFER), (COUNT, 4), (COMMAND, 1)] {
        engine.post(0, register, &u64::to_le_bytes(value));
    }
    let asked = engine.receive();
    assert_eq!((asked.command, asked.flags), (11, 0));
    let mut reply = asked.payload[..16].to_vec();
    reply.extend([3; 4]);
    answer(&mut engine, asked.id, 11, &reply);
    assert_eq!(engine.read(0, BUFFER, 4).unwrap(), [3; 4]);
}

#[test]
fn a_client_that_takes_little_at_a_time_gets_little_at_a_time() {
    let rig = Rig::new();
    let mut engine = Client::with(&rig.socket("beside"), r#"{"max_data_xfer_size":8}"#);
    engine.map(0x10_0000, 0x1000, None).unwrap();
    engine.write(CONFIG, 4, &6u16.to_le_bytes()).unwrap();
    engine.write(0, BUFFER, &[7; 20]).unwrap();
    store(&mut engine, 0x10_0010, 20);
    for (at, len) in [(0x10_0010u64, 8), (0x10_0018, 8), (0x10_0020, 4)] {
        let wrote = engine.receive();
        assert_eq!((wrote.command, &wrote.payload[..8]), (12, &at.to_le_bytes()[..]));
        assert_eq!(wrote.payload[16..], vec![7; len]);
    }
}

/// Sends a reply.
fn answer(client: &mut Client, id: u16, command: u16, payload: &[u8]) {
    use std::io::Write;
    let mut bytes = Vec::new();
    bytes.extend(id.to_le_bytes());
    bytes.extend(command.to_le_bytes());
    bytes.extend(u32::try_from(16 + payload.len()).unwrap().to_le_bytes());
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(0u32.to_le_bytes());
    bytes.extend(payload);
    client.socket.write_all(&bytes).unwrap();
}

#[test]
fn memory_goes_with_the_connection_and_with_unmapping() {
    let rig = Rig::new();
    let Guest { mut engine, memory, .. } = guest(&rig);
    engine.write(0, BUFFER, &[9; 4]).unwrap();
    engine.unmap(0, MEMORY).unwrap();
    store(&mut engine, 0x30_0000, 4);
    engine.read32(0, 0);
    assert_eq!(peek::<4>(&memory, 0x30_0000), [0; 4]);
    drop(engine);
    let mut again = Client::agreed(&rig.socket("engine"));
    // The device kept its state, and has no memory until the client shares it anew.
    assert_eq!(again.read(0, BUFFER, 4).unwrap(), [9; 4]);
    again.map(0, MEMORY, Some(&memory)).unwrap();
    store(&mut again, 0x30_0000, 4);
    again.read32(0, 0);
    assert_eq!(peek::<4>(&memory, 0x30_0000), [9; 4]);
}

#[test]
fn the_sanitizer_names_a_stale_translation_and_what_led_to_it() {
    let rig = Rig::with(vtd_model::UnitConfig::builder().sanitizer(true));
    let Guest {
        mut unit,
        mut engine,
        memory,
    } = guest(&rig);
    enable(&mut unit);
    store(&mut engine, 0x10_0000, 4);
    engine.read32(0, 0);
    assert!(rig.said.broken.lock().unwrap().is_empty());
    // The page is replaced by another one behind the unit's back.
    poke(&memory, 0x6000 + 0x100 * 8, &0x21_0003u64.to_le_bytes());
    store(&mut engine, 0x10_0000, 4);
    engine.read32(0, 0);
    let broken = rig.said.broken.lock().unwrap().clone();
    assert_eq!(broken.len(), 1, "{broken:?}");
    assert_eq!(broken[0].finding.rule.name(), "stale-translation");
    let entry = broken[0].entry.unwrap();
    assert_eq!(entry.at.raw(), 0x6000 + 0x100 * 8);
    assert_eq!((entry.before, entry.now), (Some(0x20_0003), 0x21_0003));
    assert!(
        broken[0].trace.iter().any(|line| line.starts_with("write32 0x18")),
        "{broken:?}"
    );
}

#[test]
fn the_unit_is_found_where_its_base_address_register_says() {
    let rig = Rig::new();
    let Guest { mut unit, .. } = guest(&rig);
    assert_eq!(rig.server().machine().unit_base(), None);
    // Sizing, then an address, then memory space enable.
    unit.write(CONFIG, 0x10, &u32::MAX.to_le_bytes()).unwrap();
    let size = !(unit.read32(CONFIG, 0x10) & !0xf) + 1;
    assert_eq!(size, 4096);
    unit.write(CONFIG, 0x10, &0xfebd_5000u32.to_le_bytes()).unwrap();
    unit.write(CONFIG, 4, &2u16.to_le_bytes()).unwrap();
    assert_eq!(rig.server().machine().unit_base(), Some(0xfebd_5000));
    assert_eq!(*rig.said.placed.lock().unwrap(), [0xfebd_5000]);
    // A client that looks again at the size, and puts the address back, has placed nothing anew.
    unit.write(CONFIG, 4, &0u16.to_le_bytes()).unwrap();
    unit.write(CONFIG, 0x10, &0xfebd_5000u32.to_le_bytes()).unwrap();
    unit.write(CONFIG, 4, &2u16.to_le_bytes()).unwrap();
    assert_eq!(*rig.said.placed.lock().unwrap(), [0xfebd_5000]);
    // Bus mastering reads as enabled whatever is written: clients only take interrupts from bus masters.
    assert_eq!(unit.read(CONFIG, 4, 1).unwrap()[0] & 4, 4);
}

#[test]
fn a_write_only_page_is_not_read() {
    let rig = Rig::new();
    let Guest {
        mut unit,
        mut engine,
        memory,
    } = guest(&rig);
    poke(&memory, 0x6000 + 0x100 * 8, &0x20_0002u64.to_le_bytes());
    poke(&memory, 0x20_0000, &[7; 4]);
    enable(&mut unit);
    store(&mut engine, 0x10_0010, 4);
    for (register, value) in [(SOURCE, 0x10_0000), (DESTINATION, BUFFER), (COUNT, 4), (COMMAND, 1)] {
        engine.post(0, register, &u64::to_le_bytes(value));
    }
    assert_eq!(engine.read(0, BUFFER, 4).unwrap(), [0; 4]);
    let faults = rig.said.faults.lock().unwrap().clone();
    assert_eq!(faults.len(), 1, "{faults:?}");
}

/// Enables ATS in the engine's configuration space.
fn enable_ats(engine: &mut Client) {
    let mut at = 0x100;
    loop {
        let header = engine.read32(CONFIG, at);
        if header & 0xffff == 0xf {
            break;
        }
        at = u64::from(header >> 20);
        assert_ne!(at, 0, "no ATS capability");
    }
    engine.write(CONFIG, at + 6, &0x8000u16.to_le_bytes()).unwrap();
}

#[test]
fn a_device_tlb_keeps_a_page_until_its_invalidation_completes() {
    let rig = Rig::with(vtd_model::UnitConfig::builder().device_tlb(true));
    let Guest {
        mut unit,
        mut engine,
        memory,
    } = guest(&rig);
    let word = |at: u64, value: u64| poke(&memory, at, &value.to_le_bytes());
    // Translation type 1: translation requests and translated requests of this function are served.
    word(0x2000 + (7 << 3) * 16, 0x3005);
    word(0x5000 + 0x1000 + 0x100 * 8, 0x20_0003);
    enable_ats(&mut engine);
    // The queue: everything in the unit, then the engine's device-TLB, then a wait that writes 1 to 0x9000.
    word(0x7000, 2 | 1 << 4);
    word(0x7008, 0);
    word(0x7010, 3 | 31 << 16 | 0x38 << 32);
    word(0x7018, 0x10_0000);
    word(0x7020, 5 | 1 << 5 | 1 << 32);
    word(0x7028, 0x9000);
    enable(&mut unit);
    unit.write(0, 0x90, &0x7000u64.to_le_bytes()).unwrap();
    // Enabling the queue must not take TE back.
    unit.write(0, GCMD, &(TE | 1 << 26).to_le_bytes()).unwrap();

    engine.write(0, BUFFER, &[1; 4]).unwrap();
    store(&mut engine, 0x10_0000, 4);
    engine.read32(0, 0);
    assert_eq!(peek::<4>(&memory, 0x20_0000), [1; 4]);

    word(0x6000 + 0x100 * 8, 0x21_0003);
    engine.write(0, BUFFER, &[2; 4]).unwrap();
    store(&mut engine, 0x10_0000, 4);
    engine.read32(0, 0);
    // The engine knows the page, and goes where it was.
    assert_eq!(peek::<4>(&memory, 0x20_0000), [2; 4]);

    unit.write(0, 0x88, &0x30u64.to_le_bytes()).unwrap();
    assert_eq!(peek::<4>(&memory, 0x9000), [1, 0, 0, 0]);
    engine.write(0, BUFFER, &[3; 4]).unwrap();
    store(&mut engine, 0x10_0000, 4);
    engine.read32(0, 0);
    assert_eq!(peek::<4>(&memory, 0x20_0000), [2; 4]);
    assert_eq!(peek::<4>(&memory, 0x21_0000), [3; 4]);
    let faults = rig.said.faults.lock().unwrap().clone();
    assert_eq!(faults, Vec::<String>::new());
}

#[test]
fn a_server_that_nobody_talks_to_does_not_wake_up() {
    let rig = Rig::new();
    let Guest { mut engine, .. } = guest(&rig);
    engine.read32(0, 0);
    let switches = || {
        let mut counted = std::collections::BTreeMap::new();
        for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let of = |file: &str| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let (name, status) = (of("comm"), of("status"));
            if ["unit", "engine", "beside"].contains(&name.trim()) {
                let lines = status.lines().filter(|line| line.contains("ctxt_switches"));
                counted.insert(task.file_name(), lines.map(str::to_owned).collect::<Vec<_>>());
            }
        }
        counted
    };
    // The last answer is on its way to sleep.
    std::thread::sleep(std::time::Duration::from_millis(300));
    // Threads of rigs of other tests have the same names: only those that sleep through count, and ours are among them.
    let before = switches();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let after = switches();
    let asleep = before
        .iter()
        .filter(|(task, count)| after.get(*task) == Some(count))
        .count();
    assert!(asleep >= 3, "{before:?} {after:?}");
}
