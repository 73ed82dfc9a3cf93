use std::cell::RefCell;

use iommu_groups::pci::header;
use proptest::prelude::*;

use super::registers as reg;
use super::*;

/// Memory from address 0, and what was asked of it. Accesses beyond its end are blocked.
#[derive(Debug)]
struct Bench {
    memory: RefCell<Vec<u8>>,
    calls: RefCell<Vec<(u64, usize)>>,
    messages: RefCell<Vec<(u64, u32)>>,
}

impl Bench {
    fn new(len: usize) -> Self {
        let memory = (0..len).map(|i| u8::try_from(i % 251).unwrap()).collect();
        Self {
            memory: RefCell::new(memory),
            calls: RefCell::default(),
            messages: RefCell::default(),
        }
    }

    fn range(&self, iova: Iova, len: usize) -> Result<core::ops::Range<usize>, DmaError> {
        self.calls.borrow_mut().push((iova.raw(), len));
        let start = usize::try_from(iova.raw()).unwrap();
        let end = start + len;
        if end <= self.memory.borrow().len() {
            Ok(start..end)
        } else {
            Err(DmaError::new(iova, DmaErrorKind::Blocked))
        }
    }
}

impl Bus for Bench {
    fn dma_read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        let range = self.range(iova, into.len())?;
        into.copy_from_slice(&self.memory.borrow()[range]);
        Ok(())
    }
    fn dma_write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        if (0xfee0_0000..0xfef0_0000).contains(&iova.raw()) {
            let data = u32::from_le_bytes(from.try_into().unwrap());
            self.messages.borrow_mut().push((iova.raw(), data));
            return Ok(());
        }
        let range = self.range(iova, from.len())?;
        self.memory.borrow_mut()[range].copy_from_slice(from);
        Ok(())
    }
}

fn engine(options: DmaEngineOptions) -> DmaEngine {
    let config = DmaEngine::describe(options)
        .bus_master()
        .memory_space()
        .build()
        .unwrap();
    DmaEngine::new(config, options).unwrap()
}

fn write(engine: &mut DmaEngine, bus: &Bench, register: u64, value: u64) {
    engine.bar_write(0, register, &value.to_le_bytes(), bus);
}

fn read32(engine: &mut DmaEngine, register: u64) -> u32 {
    let mut bytes = [0; 4];
    engine.bar_read(0, register, &mut bytes);
    u32::from_le_bytes(bytes)
}

fn read64(engine: &mut DmaEngine, register: u64) -> u64 {
    let mut bytes = [0; 8];
    engine.bar_read(0, register, &mut bytes);
    u64::from_le_bytes(bytes)
}

fn start(engine: &mut DmaEngine, bus: &Bench, source: u64, destination: u64, count: u64, command: u64) {
    write(engine, bus, 0x80, source);
    write(engine, bus, 0x88, destination);
    write(engine, bus, 0x90, count);
    write(engine, bus, 0x98, command);
}

#[test]
fn registers_of_edu_read_as_qemu_documents_them() {
    let bus = Bench::new(0);
    let mut e = engine(DmaEngineOptions::EDU);
    assert_eq!(e.config().read32(0), 0x11e8_1234);
    assert_eq!(read32(&mut e, 0x00), 0x0100_00ed);
    e.bar_write(0, 0x04, &0x1234_5678u32.to_le_bytes(), &bus);
    assert_eq!(read32(&mut e, 0x04), !0x1234_5678);
    for (n, result) in [(0, 1), (5, 120), (12, 479_001_600), (13, 1_932_053_504), (u32::MAX, 0)] {
        e.bar_write(0, 0x08, &n.to_le_bytes(), &bus);
        assert_eq!(read32(&mut e, 0x08), result, "{n}!");
    }
    assert_eq!(read64(&mut e, 0x00), u64::MAX, "8 bytes below 0x80");
    let mut two = [0; 2];
    e.bar_read(0, 0x80, &mut two);
    assert_eq!(two, [0xff; 2]);
}

#[test]
fn the_shortcut_for_large_factorials_agrees_with_the_product() {
    for n in 0..100u32 {
        assert_eq!(factorial(n), (1..=n).fold(1u32, u32::wrapping_mul), "{n}");
    }
}

#[test]
fn a_dma_moves_the_bytes_in_one_bus_call_each_way() {
    let bus = Bench::new(0x4000);
    let mut e = engine(DmaEngineOptions::default());
    start(&mut e, &bus, 0x123, 0x4_0010, 0xff0, 1);
    assert_eq!(e.buffer()[0x10..], bus.memory.borrow()[0x123..0x1113]);
    assert_eq!(read32(&mut e, 0x98), 0, "start bit is clear again");
    assert_eq!(read32(&mut e, 0xa0), reg::STATUS_DONE);
    start(&mut e, &bus, 0x4_0010, 0x2000, 0x20, 1 | 2);
    assert_eq!(bus.memory.borrow()[0x2000..0x2020], bus.memory.borrow()[0x123..0x143]);
    assert_eq!(*bus.calls.borrow(), [(0x123, 0xff0), (0x2000, 0x20)]);
    assert_eq!(read64(&mut e, reg::BYTES_MOVED), 0xff0 + 0x20);
}

#[test]
fn a_write_without_the_start_bit_does_nothing() {
    let bus = Bench::new(0x1000);
    let mut e = engine(DmaEngineOptions::default());
    start(&mut e, &bus, 0, 0x4_0000, 16, 2 | 4);
    assert!(bus.calls.borrow().is_empty());
    assert_eq!(read32(&mut e, 0x24), 0);
}

#[test]
fn a_blocked_dma_shows_reason_and_address_until_cleared() {
    let bus = Bench::new(0x1000);
    let mut e = engine(DmaEngineOptions::default());
    start(&mut e, &bus, 0x4_0000, 0x8000_0000_0000, 64, 3);
    assert_eq!(read32(&mut e, 0xa0), reg::STATUS_ERROR | 1 << 8);
    assert_eq!(read64(&mut e, 0xa8), 0x8000_0000_0000);
    assert_eq!(e.last_error().unwrap().kind, DmaErrorKind::Blocked);
    e.bar_write(0, 0xa0, &u32::MAX.to_le_bytes(), &bus);
    assert_eq!((read32(&mut e, 0xa0), read64(&mut e, 0xa8)), (0, 0));
}

#[test]
fn bus_master_enable_gates_every_request() {
    let bus = Bench::new(0x1000);
    let mut e = engine(DmaEngineOptions::default());
    let _ = e.config_write(header::COMMAND, &[0, 0]);
    let error = e.fetch(&bus, Iova::new(0x100), 0, 16).unwrap_err();
    assert_eq!(error, DmaError::new(Iova::new(0x100), DmaErrorKind::BusMasterDisabled));
    assert!(bus.calls.borrow().is_empty());
}

#[test]
fn a_28_bit_engine_loses_high_address_bits_and_says_so() {
    let bus = Bench::new(0x4000);
    let mut e = engine(DmaEngineOptions::EDU);
    start(&mut e, &bus, 0xf_1000_2000, 0x4_0000, 16, 1);
    assert_eq!(*bus.calls.borrow(), [(0x2000, 16)]);
    assert_eq!(read32(&mut e, 0xa0), reg::STATUS_DONE | reg::STATUS_ADDRESS_CUT);
}

#[test]
fn ranges_outside_the_buffer_are_refused_without_a_request() {
    let bus = Bench::new(0x4000);
    let mut e = engine(DmaEngineOptions::default());
    for (inside, count) in [
        (0x3_ffff, 1),
        (0x4_0000, 4097),
        (0x4_1000, 1),
        (0, 16),
        (u64::MAX, 2),
        (0x4_0000, u64::MAX),
    ] {
        for (source, destination, command) in [(0, inside, 1), (inside, 0, 3)] {
            start(&mut e, &bus, source, destination, count, command);
            assert_eq!(e.last_error().map(|error| error.kind), Some(DmaErrorKind::OutOfRange));
        }
    }
    assert!(bus.calls.borrow().is_empty());
}

#[test]
fn a_dma_past_the_end_of_the_address_space_is_refused() {
    let bus = Bench::new(0);
    let mut e = engine(DmaEngineOptions::default());
    let error = e.store(&bus, Iova::new(u64::MAX), 0, 2).unwrap_err();
    assert_eq!(error.kind, DmaErrorKind::OutOfRange);
    assert!(bus.calls.borrow().is_empty());
}

#[test]
fn completion_interrupts_go_out_as_a_message_or_on_the_line() {
    let bus = Bench::new(0x1000);
    let mut e = engine(DmaEngineOptions::default());
    start(&mut e, &bus, 0, 0x4_0000, 16, 1 | 4);
    assert!(e.line_asserted());
    assert_eq!(
        e.config().read16(header::STATUS) & header::STATUS_INTX,
        header::STATUS_INTX
    );
    assert_eq!(read32(&mut e, 0x24), 0x100);
    e.bar_write(0, 0x64, &0x100u32.to_le_bytes(), &bus);
    assert!(!e.line_asserted());
    assert_eq!(e.config().read16(header::STATUS) & header::STATUS_INTX, 0);

    let at = e.config().msi_at().unwrap();
    let _ = e.config_write(at + 4, &0xfee0_0000u32.to_le_bytes());
    let _ = e.config_write(at + 12, &0x41u16.to_le_bytes());
    let _ = e.config_write(at + 2, &1u16.to_le_bytes());
    start(&mut e, &bus, 0, 0x4_0000, 16, 1 | 4);
    assert_eq!(*bus.messages.borrow(), [(0xfee0_0000, 0x41)]);
    assert!(!e.line_asserted());
}

#[test]
fn a_lost_interrupt_message_is_an_error_of_its_own() {
    let bus = Bench::new(0x1000);
    let mut e = engine(DmaEngineOptions::default());
    let at = e.config().msi_at().unwrap();
    let _ = e.config_write(at + 8, &1u32.to_le_bytes());
    let _ = e.config_write(at + 2, &1u16.to_le_bytes());
    e.bar_write(0, 0x60, &1u32.to_le_bytes(), &bus);
    assert_eq!(read32(&mut e, 0xa0), reg::STATUS_INTERRUPT_LOST | 1 << 8);
    assert_eq!(read64(&mut e, 0xa8), 1 << 32);
}

#[test]
fn function_level_reset_forgets_everything() {
    let bus = Bench::new(0x2000);
    let mut e = engine(DmaEngineOptions::default());
    e.fetch(&bus, Iova::new(1), 0, 4096).unwrap();
    let at = e.config().express_at().unwrap();
    let effects = e.config_write(at + 8, &0x8000u16.to_le_bytes());
    assert_eq!(effects.reset, Some(ResetKind::FunctionLevel));
    assert!(e.buffer().iter().all(|byte| *byte == 0));
    assert!(!e.config().bus_master());
    assert_eq!((e.bytes_moved(), read64(&mut e, 0x90)), (0, 0));
}

#[test]
fn the_buffer_is_reachable_through_the_bar() {
    let bus = Bench::new(0);
    let mut e = engine(DmaEngineOptions::default());
    e.bar_write(0, 0x4_0ffe, &[1, 2, 3], &bus);
    assert_eq!(e.buffer()[0xffe..], [1, 2]);
    let mut back = [0; 4];
    e.bar_read(0, 0x4_0ffd, &mut back);
    assert_eq!(back, [0, 1, 2, 0xff]);
    e.bar_read(0, u64::MAX, &mut back);
    assert_eq!(back, [0xff; 4]);
}

#[test]
fn a_large_buffer_gets_a_bar_that_holds_it() {
    let options = DmaEngineOptions {
        buffer_len: 8 << 20,
        ..DmaEngineOptions::default()
    };
    assert_eq!(options.bar_size(), 16 << 20);
    let bus = Bench::new(8 << 20);
    let mut e = engine(options);
    e.fetch(&bus, Iova::new(0), 0, 8 << 20).unwrap();
    assert_eq!(e.buffer(), *bus.memory.borrow());
    assert_eq!(read32(&mut e, reg::BUFFER_LEN), 8 << 20);
}

#[test]
fn impossible_engines_are_refused() {
    let new =
        |options: DmaEngineOptions, config: ConfigBuilder| DmaEngine::new(config.build().unwrap(), options).map(|_| ());
    let good = DmaEngineOptions::default();
    let bad = DmaEngineOptions {
        buffer_len: 100,
        ..good
    };
    assert_eq!(
        new(bad, DmaEngine::describe(good)),
        Err(DmaEngineError::BufferLength(100))
    );
    let bad = DmaEngineOptions {
        address_bits: 0,
        ..good
    };
    assert_eq!(new(bad, DmaEngine::describe(good)), Err(DmaEngineError::AddressBits(0)));
    let larger = DmaEngineOptions {
        buffer_len: 4 << 20,
        ..good
    };
    assert_eq!(
        new(larger, DmaEngine::describe(good)),
        Err(DmaEngineError::NoWindow { needed: 8 << 20 })
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_register_traffic_neither_panics_nor_leaves_the_bus(
        accesses in prop::collection::vec((0u64..0x100, any::<u64>(), prop::bool::ANY), 0..100),
    ) {
        let bus = Bench::new(0x4000);
        let mut e = engine(DmaEngineOptions::EDU);
        for (offset, value, wide) in accesses {
            let bytes = value.to_le_bytes();
            e.bar_write(0, offset, if wide { &bytes } else { &bytes[..4] }, &bus);
            e.bar_read(0, offset, &mut [0; 8]);
        }
        for (address, len) in bus.calls.borrow().iter() {
            prop_assert!(*address < 1 << 28 && *len <= 4096);
        }
    }
}
