//! The traits of `iommu-types`, as tests that every implementor can call.
//!
//! Each function panics with the broken promise. They judge only what the trait's documentation says.

use iommu_types::sync::Ordering;
use iommu_types::{
    Access, AddrRange, AddressSpace, BusError, Clock, FrameRequest, HostPhys, Iova, PAGE_SIZE, Perms, Piece,
    SystemMemory, TableFrame, TableMemory,
};

/// [`TableMemory`]: zeroed, naturally aligned, contiguous, disjoint frames below the limit, visible as tables
/// while they are out. Needs room for about 32 pages; gives all of them back.
///
/// # Panics
/// If a promise is broken.
#[track_caller]
pub fn table_memory<T: TableMemory>(memory: &T) {
    let mut frames: Vec<TableFrame> = Vec::new();
    for order in [0, 1, 0, 3, 2, 0] {
        let request = FrameRequest {
            order,
            node: None,
            last: HostPhys::MAX,
        };
        let frame = memory.allocate(request).expect("room for 32 pages");
        assert_eq!(frame.order(), order, "the frame has the order asked for");
        let (base, len) = (frame.base().raw(), PAGE_SIZE << order);
        assert_eq!(base & (len - 1), 0, "frame {base:#x} is aligned to its size");
        for other in &frames {
            let (start, end) = (other.base().raw(), other.base().raw() + (PAGE_SIZE << other.order()));
            assert!(
                base + len <= start || end <= base,
                "frames {base:#x} and {start:#x} overlap"
            );
        }
        for page in (base..base + len).step_by(4096) {
            let table = memory
                .table(HostPhys::new(page))
                .expect("each page of a frame is a table");
            for word in table {
                assert_eq!(word.swap(page | 1, Ordering::AcqRel), 0, "frame {base:#x} is zeroed");
            }
        }
        assert!(
            memory.table(HostPhys::new(base + 8)).is_none(),
            "an address inside a page is no table"
        );
        frames.push(frame);
    }
    for frame in &frames {
        for page in (frame.base().raw()..).step_by(4096).take(1 << frame.order()) {
            let table = memory.table(HostPhys::new(page)).expect("the frame is out");
            let kept = table.iter().all(|word| word.load(Ordering::Acquire) == page | 1);
            assert!(kept, "page {page:#x} keeps what was written to it");
        }
    }
    // The limit is the last byte the frame may have.
    let lowest = frames.iter().map(|f| f.base().raw()).min().expect("frames");
    for last in [lowest.saturating_sub(1), lowest.saturating_add(0xffe), 0xffe] {
        let request = FrameRequest::page(None, HostPhys::new(last));
        if let Ok(frame) = memory.allocate(request) {
            assert!(
                frame.base().raw() + (PAGE_SIZE - 1) <= last,
                "the frame ends at or below its limit"
            );
            frames.push(frame);
        }
    }
    for frame in frames {
        memory.free(frame);
    }
    // Freed memory comes back zeroed.
    for _ in 0..4 {
        let frame = memory
            .allocate(FrameRequest::page(None, HostPhys::MAX))
            .expect("all was given back");
        let table = memory.table(frame.base()).expect("the frame is out");
        for word in table {
            assert_eq!(word.swap(u64::MAX, Ordering::AcqRel), 0, "a reused frame is zeroed");
        }
        memory.free(frame);
    }
}

/// [`SystemMemory`]: `ram` is at least two pages of memory that may be overwritten, at `hole` nothing answers.
///
/// # Panics
/// If a promise is broken.
#[track_caller]
pub fn system_memory<M: SystemMemory>(memory: &M, ram: AddrRange<HostPhys>, hole: HostPhys) {
    let base = ram.to_pages().first().raw();
    let at = |offset: u64| HostPhys::new(base + offset);
    let word = 0x1122_3344_5566_7788;
    assert_eq!(memory.write_u64(at(0), word), Ok(()));
    assert_eq!(memory.read_u64(at(0)), Ok(word), "a word reads as written");
    let mut bytes = [0; 8];
    assert_eq!(memory.read(at(0), &mut bytes), Ok(()));
    assert_eq!(bytes, word.to_le_bytes(), "words are little-endian");
    assert_eq!(memory.write_u32(at(4), 0xaabb_ccdd), Ok(()));
    assert_eq!(
        memory.read_u64(at(0)),
        Ok(0xaabb_ccdd_5566_7788),
        "32-bit writes keep the rest"
    );
    assert_eq!(memory.write_u32(at(0), 1), Ok(()));
    assert_eq!(
        memory.read_u64(at(0)),
        Ok(0xaabb_ccdd_0000_0001),
        "32-bit writes keep the rest"
    );

    assert_eq!(memory.write_u64(at(8), 5), Ok(()));
    assert_eq!(
        memory.compare_exchange_u64(at(8), 5, 6),
        Ok(5),
        "an exchange tells the old value"
    );
    assert_eq!(
        memory.compare_exchange_u64(at(8), 5, 7),
        Ok(6),
        "a failed exchange tells the value"
    );
    assert_eq!(memory.read_u64(at(8)), Ok(6), "a failed exchange changes nothing");

    for (offset, len) in [(0, 1u8), (3, 7), (1, 16), (0xffd, 9), (0xfff, 2)] {
        let text: Vec<u8> = (1..=len).collect();
        assert_eq!(memory.write(at(offset), &vec![0; text.len() + 2]), Ok(()));
        assert_eq!(memory.write(at(offset + 1), &text), Ok(()));
        let mut back = vec![0xff; text.len() + 2];
        assert_eq!(memory.read(at(offset), &mut back), Ok(()));
        assert_eq!(back[1..=text.len()], text, "{len} bytes at offset {:#x}", offset + 1);
        assert_eq!((back[0], back[text.len() + 1]), (0, 0), "neighbours stay as they are");
    }
    for odd in [1, 4, 7] {
        let error = Err(BusError { at: at(odd) });
        assert_eq!(memory.read_u64(at(odd)), error, "words are aligned");
        assert_eq!(memory.compare_exchange_u64(at(odd), 0, 0), error, "words are aligned");
        assert_eq!(memory.write_u64(at(odd), 0).err(), error.err(), "words are aligned");
    }
    assert!(memory.write_u32(at(2), 0).is_err(), "32-bit words are aligned");

    let silent = BusError { at: hole };
    assert_eq!(memory.read_u64(hole), Err(silent), "nothing answers at the hole");
    assert_eq!(memory.write_u64(hole, 0), Err(silent), "nothing answers at the hole");
    assert_eq!(
        memory.read(hole, &mut bytes),
        Err(silent),
        "nothing answers at the hole"
    );
    assert_eq!(memory.write(hole, &bytes), Err(silent), "nothing answers at the hole");
}

/// [`Clock`]: time never goes back and a polling loop comes to an end.
///
/// # Panics
/// If a promise is broken, or if a million turns take less than `within_ns` nanoseconds.
#[track_caller]
pub fn clock<C: Clock>(clock: &C, within_ns: u64) {
    let start = clock.now_ns();
    let mut last = start;
    for _ in 0..1_000_000 {
        clock.relax();
        let now = clock.now_ns();
        assert!(now >= last, "time went back from {last} to {now}");
        last = now;
        if now - start >= within_ns {
            return;
        }
    }
    panic!("a polling loop of {within_ns} ns does not end");
}

/// [`AddressSpace`]: `at` is page aligned, with sixteen unmapped pages inside the aperture; `phys` is page
/// aligned, with sixteen pages that may be mapped; `probe` tells where an access of an attached device goes.
///
/// # Panics
/// If a promise is broken.
#[track_caller]
pub fn address_space<A, P>(space: &A, at: Iova, phys: HostPhys, probe: P)
where
    A: AddressSpace,
    P: Fn(Iova, Access) -> Option<HostPhys>,
{
    let page = |n: u64| Iova::new(at.raw() + n * PAGE_SIZE);
    let host = |n: u64| HostPhys::new(phys.raw() + n * PAGE_SIZE);
    let pages = |n: u64, count: u64| AddrRange::from_base_len(page(n), count * PAGE_SIZE).expect("in the aperture");
    assert!(
        space.aperture().covers(pages(0, 16)),
        "sixteen pages of the aperture at {at}"
    );
    assert_eq!(probe(page(0), Access::Read), None, "nothing is mapped at first");

    // On return devices can use the mapping, with its rights and no others.
    for (n, perms) in [(0, Perms::READ), (1, Perms::WRITE), (2, Perms::READ_WRITE)] {
        space.map(page(n), host(n), PAGE_SIZE, perms).expect("a free page");
        let there = HostPhys::new(host(n).raw() + 0xff8);
        for access in [Access::Read, Access::Write, Access::Atomic] {
            let expected = perms.allows(access).then_some(there);
            let last_word = Iova::new(page(n).raw() + 0xff8);
            assert_eq!(probe(last_word, access), expected, "{access} of a page mapped {perms}");
        }
    }
    assert_eq!(probe(page(3), Access::Read), None, "the page behind a mapping");

    // What is refused changes nothing.
    let perms = Perms::READ_WRITE;
    for (iova, phys, len) in [
        (page(2), host(5), PAGE_SIZE),
        (page(2), host(5), 3 * PAGE_SIZE),
        (Iova::new(page(4).raw() + 0x800), host(4), PAGE_SIZE),
        (page(4), HostPhys::new(host(4).raw() + 0x800), PAGE_SIZE),
        (page(4), host(4), 0x800),
        (page(4), host(4), 0),
    ] {
        assert!(
            space.map(iova, phys, len, perms).is_err(),
            "mapping {len:#x} bytes from {iova} to {phys} is refused"
        );
    }
    if let Some(beyond) = space.aperture().last().checked_add(1)
        && beyond.page_offset() == 0
    {
        assert!(
            space.map(beyond, host(4), PAGE_SIZE, perms).is_err(),
            "addresses beyond the aperture are refused"
        );
    }
    assert_eq!(
        probe(page(2), Access::Write),
        Some(host(2)),
        "refusals leave mappings alone"
    );
    for n in 3..16 {
        assert_eq!(probe(page(n), Access::Read), None, "refusals map nothing");
    }

    // The lease comes back from a refused unmap at once, from another through flush only.
    match space.unmap(pages(9, 1), 77u64) {
        Err(refused) => assert_eq!(refused.lease, 77, "the lease comes back"),
        Ok(_) => panic!("unmapping what is not mapped is refused"),
    }
    for n in 0..3 {
        let Ok(pending) = space.unmap(pages(n, 1), n) else {
            panic!("a whole mapping can be unmapped");
        };
        match space.flush(pending) {
            Ok(lease) => assert_eq!(lease, n, "the lease comes back"),
            Err((error, _)) => panic!("the flush is confirmed: {error}"),
        }
        for access in [Access::Read, Access::Write] {
            assert_eq!(probe(page(n), access), None, "no access after the flush");
        }
    }

    // Freed addresses serve again, with other memory.
    space.map(page(0), host(8), 4 * PAGE_SIZE, perms).expect("free again");
    for n in 0..4 {
        assert_eq!(
            probe(page(n), Access::Write),
            Some(host(8 + n)),
            "a fresh mapping, not an old one"
        );
    }
    let Ok(pending) = space.unmap(pages(0, 4), ()) else {
        panic!("a whole mapping can be unmapped");
    };
    assert!(space.flush(pending).is_ok(), "the flush is confirmed");
    for n in 0..4 {
        assert_eq!(probe(page(n), Access::Read), None, "no access after the flush");
    }
    pieces(space, page(0), host(0), &probe);
}

/// A list of pieces is mapped where each of them says; one that cannot be mapped ends it, and what was mapped before it
/// is told and stays.
fn pieces<A, P>(space: &A, base: Iova, phys: HostPhys, probe: P)
where
    A: AddressSpace,
    P: Fn(Iova, Access) -> Option<HostPhys>,
{
    let page = |n: u64| Iova::new(base.raw() + n * PAGE_SIZE);
    let host = |n: u64| HostPhys::new(phys.raw() + n * PAGE_SIZE);
    let piece = |n: u64, to: u64, pages: u64| Piece {
        offset: n * PAGE_SIZE,
        phys: host(to),
        len: pages * PAGE_SIZE,
    };
    let list = [piece(0, 9, 1), piece(1, 3, 1), piece(2, 5, 2), piece(6, 1, 1)];
    let gone = |n: u64, pages: u64| {
        let range = AddrRange::from_base_len(page(n), pages * PAGE_SIZE).expect("in the aperture");
        let Ok(pending) = space.unmap(range, ()) else {
            panic!("{range} is mapped");
        };
        assert!(space.flush(pending).is_ok(), "the flush is confirmed");
    };
    space.map_pieces(base, &list, Perms::WRITE).expect("free pages");
    for (n, to) in [
        (0, Some(9)),
        (1, Some(3)),
        (2, Some(5)),
        (3, Some(6)),
        (4, None),
        (5, None),
        (6, Some(1)),
    ] {
        assert_eq!(probe(page(n), Access::Write), to.map(host), "page {n} of a list");
        assert_eq!(probe(page(n), Access::Read), None, "a list has the rights it was given");
    }
    for (n, pages) in [(0, 1), (1, 1), (2, 2), (6, 1)] {
        gone(n, pages);
    }
    // The third piece meets a mapping.
    space
        .map(page(3), host(0), PAGE_SIZE, Perms::READ)
        .expect("a free page");
    let (done, _) = space
        .map_pieces(base, &list, Perms::WRITE)
        .expect_err("a piece overlaps a mapping");
    assert!(done <= 2, "pieces at the front are told, the one that failed is not");
    for n in [2, 6] {
        assert_eq!(
            probe(page(n), Access::Write),
            None,
            "nothing from the piece that failed on"
        );
    }
    for n in 0..done as u64 {
        gone(n, 1);
    }
    gone(3, 1);
    for n in 0..8 {
        assert_eq!(probe(page(n), Access::Write), None, "nothing is left of a list");
    }
}

#[cfg(test)]
mod tests;
