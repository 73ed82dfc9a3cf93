use super::*;

const MIB: u64 = 1 << 20;

fn range(first: u64, len: u64) -> AddrRange<HostPhys> {
    AddrRange::from_base_len(HostPhys::new(first), len).expect("valid range")
}

fn two_nodes() -> MachineMemory {
    let ranges = [
        (0, 0, 16 * MIB),
        (0, 4 << 30, 16 * MIB),
        (1, (4 << 30) + 16 * MIB, 32 * MIB),
    ]
    .map(|(node, base, len)| MemoryRange {
        node: NodeId(node),
        range: range(base, len),
    });
    MachineMemory::new(&ranges, &[range(0xf_f800, 0x1000)]).expect("valid layout")
}

#[test]
fn bytes_survive_any_alignment_and_a_region_border() {
    let memory = two_nodes();
    let border = (4u64 << 30) + 16 * MIB;
    for skew in 0..16u64 {
        for len in [1usize, 7, 8, 9, 24, 31, 4097] {
            let data: Vec<u8> = (0..len).map(|i| u8::try_from(i % 251).expect("small")).collect();
            let at = HostPhys::new(border - 20 + skew);
            memory.write(at, &data).expect("memory");
            let mut back = vec![0xee; len];
            memory.read(at, &mut back).expect("memory");
            assert_eq!(back, data, "skew {skew}, {len} bytes");
        }
    }
}

#[test]
fn a_partial_word_leaves_its_neighbours_alone() {
    let memory = two_nodes();
    let at = HostPhys::new(0x2000);
    memory.write_u64(at, u64::MAX).expect("memory");
    memory.write(HostPhys::new(0x2003), &[0, 0]).expect("memory");
    assert_eq!(memory.read_u64(at), Ok(0xffff_ff00_00ff_ffff));
    memory.write_u32(HostPhys::new(0x2004), 0x1234_5678).expect("memory");
    assert_eq!(memory.read_u64(at), Ok(0x1234_5678_00ff_ffff));
    memory.write_u32(at, 0).expect("memory");
    assert_eq!(memory.read_u64(at), Ok(0x1234_5678_0000_0000));
}

#[test]
fn where_nothing_answers_the_first_such_byte_is_named() {
    let memory = two_nodes();
    let hole = HostPhys::new(16 * MIB);
    assert_eq!(memory.read_u64(hole), Err(BusError { at: hole }));
    let at = HostPhys::new(16 * MIB - 4);
    assert_eq!(memory.write(at, &[1; 8]), Err(BusError { at: hole }));
    assert_eq!(memory.read(at, &mut [0; 8]), Err(BusError { at: hole }));
    assert_eq!(
        memory.read_u64(HostPhys::new(4)),
        Err(BusError { at: HostPhys::new(4) })
    );
    assert_eq!(
        memory.write(HostPhys::MAX, &[0; 2]),
        Err(BusError { at: HostPhys::MAX })
    );
}

#[test]
fn compare_exchange_tells_what_was_there() {
    let memory = two_nodes();
    let at = HostPhys::new(0x3000);
    assert_eq!(memory.compare_exchange_u64(at, 0, 5), Ok(0));
    assert_eq!(memory.compare_exchange_u64(at, 0, 6), Ok(5));
    assert_eq!(memory.read_u64(at), Ok(5));
}

#[test]
fn a_guest_is_not_contiguous_and_reserved_pages_stay_out() {
    let memory = two_nodes();
    let pages = memory
        .allocate_pages(PageRequest::scattered(4 * MIB, 64 * 1024).zone(Zone::Below4G))
        .expect("space");
    assert_eq!(pages.bytes(), 4 * MIB);
    for (a, b) in pages.extents().iter().zip(pages.extents().iter().skip(1)) {
        assert_ne!(
            a.last().checked_add(1),
            Some(b.first()),
            "{a} and {b} are neighbours twice"
        );
    }
    for extent in pages.extents() {
        assert!(
            !extent.overlaps(range(0xf_f000, 0x2000)),
            "{extent} holds a reserved page"
        );
    }
    assert_eq!(pages.at(64 * 1024), Some(pages.extents()[1].first()));
    assert_eq!(pages.at(4 * MIB), None);
    memory.release_pages(pages);
}

#[test]
fn two_scattered_pages_are_apart() {
    let memory = two_nodes();
    let pages = memory
        .allocate_pages(PageRequest::scattered(8192, 4096))
        .expect("space");
    let [a, b] = pages.extents() else {
        panic!("{:?}", pages.extents());
    };
    assert_ne!(a.last().checked_add(1), Some(b.first()));
    memory.release_pages(pages);
}

#[test]
fn zones_and_nodes_are_kept_and_refusals_take_nothing() {
    let memory = two_nodes();
    let high = memory
        .allocate_pages(PageRequest::contiguous(MIB).zone(Zone::Above4G))
        .expect("space");
    assert!(high.extents()[0].first() > LAST_32_BIT);
    let far = memory
        .allocate_pages(PageRequest::contiguous(MIB).node(NodeId(1)))
        .expect("space");
    assert_eq!(memory.node_of(far.extents()[0].first()), Some(NodeId(1)));
    let free = memory.free_bytes(None);
    let request = PageRequest::scattered(40 * MIB, MIB).node(NodeId(1));
    assert_eq!(memory.allocate_pages(request), Err(OutOfPages(request)));
    assert_eq!(memory.free_bytes(None), free);
    let text = OutOfPages(request).to_string();
    assert!(text.contains("40 MiB") && text.contains("on node 1"), "{text}");
}

#[test]
fn pages_are_zero_again_when_they_are_handed_out_again() {
    let memory = two_nodes();
    let request = PageRequest::contiguous(MIB).node(NodeId(1));
    let pages = memory.allocate_pages(request).expect("space");
    let at = pages.extents()[0].first();
    memory.write(at, &[0xaa; 64]).expect("memory");
    memory.release_pages(pages);
    let again = memory.allocate_pages(request).expect("space");
    assert_eq!(again.extents()[0].first(), at);
    assert_eq!(memory.read_u64(at), Ok(0));
    memory.release_pages(again);
}

#[test]
fn only_pages_handed_out_as_tables_are_tables() {
    let memory = two_nodes();
    let frame = memory
        .allocate(FrameRequest {
            order: 2,
            node: Some(NodeId(1)),
            last: HostPhys::MAX,
        })
        .expect("space");
    let base = frame.base();
    assert_eq!(base.raw() % 0x4000, 0);
    assert_eq!(memory.node_of(base), Some(NodeId(1)));
    let third = HostPhys::new(base.raw() + 0x3000);
    memory.table(third).expect("table")[511].store(7, Ordering::Relaxed);
    assert_eq!(memory.read_u64(HostPhys::new(third.raw() + 0xff8)), Ok(7));
    assert!(memory.table(HostPhys::new(base.raw() + 8)).is_none());
    assert!(memory.table(HostPhys::new(0x5000)).is_none());
    assert!(memory.table(HostPhys::MAX).is_none());
    let stray = TableFrame::from_allocator(HostPhys::new(0x5000), 0);
    let free = memory.free_bytes(None);
    memory.free(stray);
    assert_eq!(memory.free_bytes(None), free, "a frame that was never handed out");
    memory.free(frame);
    assert!(memory.table(third).is_none());
    let again = memory
        .allocate(FrameRequest::page(Some(NodeId(1)), HostPhys::MAX))
        .expect("space");
    assert_eq!(
        memory.table(again.base()).expect("table")[511].load(Ordering::Relaxed),
        0
    );
    memory.free(again);
}

#[test]
fn tables_stay_below_what_the_unit_can_address() {
    let memory = two_nodes();
    let frame = memory
        .allocate(FrameRequest::page(Some(NodeId(1)), LAST_32_BIT))
        .expect("falls back to the node that has low memory");
    assert!(frame.base() < LAST_32_BIT);
    memory.free(frame);
    let request = FrameRequest::page(None, HostPhys::new(0xfff - 1));
    assert_eq!(memory.allocate(request), Err(OutOfFrames(request)));
}

#[test]
fn overlapping_or_ragged_memory_is_refused() {
    let node = NodeId(0);
    let a = MemoryRange {
        node,
        range: range(0, 0x2000),
    };
    let b = MemoryRange {
        node,
        range: range(0x1000, 0x1000),
    };
    assert!(matches!(
        MachineMemory::new(&[b, a], &[]),
        Err(MemoryLayoutError::Overlap(..))
    ));
    let ragged = MemoryRange {
        node,
        range: range(0, 0x1800),
    };
    assert!(matches!(
        MachineMemory::new(&[ragged], &[]),
        Err(MemoryLayoutError::Unaligned(_))
    ));
}
