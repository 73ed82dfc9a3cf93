use super::*;
use iommu_types::{BusError, SystemMemory};

const M: u64 = 1 << 20;

fn page(memory: &SparseMemory) -> TableFrame {
    memory
        .allocate(FrameRequest::page(None, HostPhys::MAX))
        .expect("enough memory")
}

#[test]
fn untouched_memory_reads_zero_and_keeps_what_is_written() {
    let memory = SparseMemory::new(1 << 46);
    let at = HostPhys::new((1 << 46) - 8);
    assert_eq!(memory.read_u64(at), Ok(0));
    memory.write_u64(at, 0x1122_3344_5566_7788).expect("memory");
    memory
        .write_u32(HostPhys::new(at.raw() + 4), 0xaabb_ccdd)
        .expect("memory");
    assert_eq!(memory.read_u64(at), Ok(0xaabb_ccdd_5566_7788));
    let mut bytes = [0; 3];
    memory.read(HostPhys::new(at.raw() + 3), &mut bytes).expect("memory");
    assert_eq!(bytes, [0x55, 0xdd, 0xcc]);
}

#[test]
fn bytes_cross_words_and_pages() {
    let memory = SparseMemory::new(4 * M);
    let text: Vec<u8> = (0..=255).collect();
    memory.write(HostPhys::new(0xf81), &text).expect("memory");
    let mut back = vec![0; 256];
    memory.read(HostPhys::new(0xf81), &mut back).expect("memory");
    assert_eq!(back, text);
    assert_eq!(memory.read_u64(HostPhys::new(0x1000)), Ok(0x8685_8483_8281_807f));
}

#[test]
fn accesses_outside_memory_name_the_first_silent_byte() {
    let memory = SparseMemory::new(M);
    let end = BusError { at: HostPhys::new(M) };
    assert_eq!(memory.read_u64(HostPhys::new(M)), Err(end));
    assert_eq!(memory.write(HostPhys::new(M - 4), &[0; 8]), Err(end));
    let odd = HostPhys::new(0x1004);
    assert_eq!(memory.read_u64(odd), Err(BusError { at: odd }));
    memory.break_bus(AddrRange::new(HostPhys::new(0x2004), HostPhys::new(0x2007)).expect("ordered"));
    let broken = BusError {
        at: HostPhys::new(0x2004),
    };
    assert_eq!(memory.read_u64(HostPhys::new(0x2000)), Err(broken));
    assert_eq!(memory.read_u64(HostPhys::new(0x2008)), Ok(0));
    memory.heal_bus();
    assert_eq!(memory.read_u64(HostPhys::new(0x2000)), Ok(0));
}

#[test]
fn compare_exchange_tells_what_was_there() {
    let memory = SparseMemory::new(M);
    let at = HostPhys::new(0x10);
    assert_eq!(memory.compare_exchange_u64(at, 0, 5), Ok(0));
    assert_eq!(memory.compare_exchange_u64(at, 0, 6), Ok(5));
    assert_eq!(memory.read_u64(at), Ok(5));
}

#[test]
fn frames_are_highest_first_aligned_and_below_the_limit() {
    let memory = SparseMemory::new(16 * M);
    let top = page(&memory);
    assert_eq!(top.base(), HostPhys::new(16 * M - 0x1000));
    let four = FrameRequest {
        order: 2,
        node: None,
        last: HostPhys::MAX,
    };
    let four = memory.allocate(four).expect("enough");
    assert_eq!(four.base(), HostPhys::new(16 * M - 0x8000));
    let low = memory
        .allocate(FrameRequest::page(None, HostPhys::new(0x4_5fff)))
        .expect("enough");
    assert_eq!(low.base(), HostPhys::new(0x4_5000));
    let lower = memory
        .allocate(FrameRequest::page(None, HostPhys::new(0x4_5ffe)))
        .expect("enough");
    assert_eq!(lower.base(), HostPhys::new(0x4_4000));
    assert_eq!(memory.counters().live, 4);
    for frame in [top, four, low, lower] {
        memory.free(frame);
    }
    memory.assert_clean();
    assert_eq!(memory.counters().peak, 4);
}

#[test]
fn the_preferred_node_comes_first_and_another_serves_when_it_is_full() {
    let memory = SparseMemory::builder()
        .ram_on_node(0, 0x1000, NodeId(0))
        .ram_on_node(0x10_0000, 0x2000, NodeId(1))
        .build();
    let on_zero = FrameRequest::page(Some(NodeId(0)), HostPhys::MAX);
    assert_eq!(memory.allocate(on_zero).map(|f| f.base()), Ok(HostPhys::new(0)));
    assert_eq!(memory.allocate(on_zero).map(|f| f.base()), Ok(HostPhys::new(0x10_1000)));
    assert_eq!(memory.allocate(on_zero).map(|f| f.base()), Ok(HostPhys::new(0x10_0000)));
    assert_eq!(memory.allocate(on_zero), Err(OutOfFrames(on_zero)));
}

#[test]
fn tables_are_known_only_while_they_are_out() {
    let memory = SparseMemory::new(M);
    assert!(memory.table(HostPhys::new(0x1000)).is_none());
    let frame = page(&memory);
    let base = frame.base();
    let table = memory.table(base).expect("out");
    table[3].store(9, Ordering::Release);
    assert_eq!(memory.read_u64(HostPhys::new(base.raw() + 24)), Ok(9));
    assert!(memory.table(HostPhys::new(base.raw() + 8)).is_none());
    memory.free(frame);
    assert!(memory.table(base).is_none());
    assert_eq!(memory.read_u64(base), Ok(POISON));
    let again = page(&memory);
    assert_eq!(again.base(), base);
    assert_eq!(memory.read_u64(base), Ok(0));
    memory.free(again);
    memory.adopt(HostPhys::new(0x1000));
    assert!(memory.table(HostPhys::new(0x1000)).is_some());
}

#[test]
fn misuse_of_frames_is_recorded() {
    let memory = SparseMemory::new(M);
    let frame = page(&memory);
    let base = frame.base();
    let twin = TableFrame::from_allocator(base, 0);
    memory.free(frame);
    memory.free(twin);
    memory.free(TableFrame::from_allocator(HostPhys::new(1 << 40), 0));
    memory.write_u64(HostPhys::new(base.raw() + 8), 1).expect("memory");
    let after_free = Violation::WrittenAfterFree {
        at: HostPhys::new(base.raw() + 8),
        found: 1,
    };
    let expected = [
        Violation::FreedTwice { base },
        Violation::NotHandedOut {
            base: HostPhys::new(1 << 40),
            order: 0,
        },
        after_free,
    ];
    assert_eq!(memory.violations(), expected);
    let _leaked = page(&memory);
    assert_eq!(memory.violations(), expected);
    assert_eq!(memory.live_frames(), [(base, 0)]);
}

#[test]
fn chosen_allocations_fail() {
    let memory = SparseMemory::new(M);
    memory.fail_allocation(1);
    let any = FrameRequest::page(None, HostPhys::MAX);
    assert!(memory.allocate(any).is_ok());
    assert!(memory.allocate(any).is_err());
    assert!(memory.allocate(any).is_ok());
    memory.fail_allocations_after(0);
    assert!(memory.allocate(any).is_err());
    assert!(memory.allocate(any).is_err());
    memory.heal_allocations();
    assert!(memory.allocate(any).is_ok());
    assert_eq!(memory.counters().refused, 3);
}

#[test]
fn hardware_that_does_not_snoop_sees_only_lines_that_were_written_back() {
    let memory = SparseMemory::builder().ram(0, M).non_coherent().build();
    let frame = page(&memory);
    let base = frame.base();
    let at = |n: u64| HostPhys::new(base.raw() + n);
    let hardware = memory.hardware();
    assert_eq!(hardware.read_u64(base), Ok(POISON));
    memory.write_back(base, 0x1000);
    assert_eq!(hardware.read_u64(base), Ok(0));

    let table = memory.table(base).expect("out");
    table[0].store(1, Ordering::Release);
    table[7].store(7, Ordering::Release);
    table[8].store(8, Ordering::Release);
    assert_eq!(hardware.read_u64(base), Ok(0));
    assert_eq!(memory.unseen_by_hardware(), [base, at(56), at(64)]);
    memory.write_back(at(8), 1);
    assert_eq!(hardware.read_words::<2>(at(56)), Ok([7, 0]));
    assert_eq!(memory.unseen_by_hardware(), [at(64)]);

    // What hardware writes, both see.
    assert_eq!(hardware.compare_exchange_u64(at(64), 8, 9), Ok(0));
    assert_eq!(hardware.compare_exchange_u64(at(64), 0, 9), Ok(0));
    assert_eq!((hardware.read_u64(at(64)), memory.read_u64(at(64))), (Ok(9), Ok(9)));
    hardware.write_u64(at(64), 10).expect("memory");
    assert_eq!(memory.read_u64(at(64)), Ok(10));
    assert_eq!(memory.take_write_backs().len(), 2);

    // Snooped frames and plain memory need no write-back.
    memory.snoop(AddrRange::from_base_len(base, 0x1000).expect("a page"));
    table[9].store(9, Ordering::Release);
    assert_eq!(hardware.read_u64(at(72)), Ok(9));
    memory.write_u64(HostPhys::new(0x100), 3).expect("memory");
    assert_eq!(hardware.read_u64(HostPhys::new(0x100)), Ok(3));
    memory.free(frame);
}

#[test]
fn frames_that_came_back_merge_into_larger_ones() {
    let memory = SparseMemory::new(0x4000);
    let any = FrameRequest::page(None, HostPhys::MAX);
    let frames: Vec<TableFrame> = (0..4).map(|_| memory.allocate(any).expect("four pages")).collect();
    let whole = FrameRequest { order: 2, ..any };
    assert!(memory.allocate(whole).is_err());
    // Neither order nor neighbours matter.
    let [top, third, second, first] = <[TableFrame; 4]>::try_from(frames).expect("four");
    for frame in [third, first, second, top] {
        memory.free(frame);
    }
    assert_eq!(memory.allocate(whole).map(|f| f.base()), Ok(HostPhys::new(0)));
}
