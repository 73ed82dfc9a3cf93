//! The DMA API over a domain that fails at step N: memory, addresses and copies that a device may still reach are not
//! used for anything else.

use std::cell::RefCell;

use iommu_dma::{
    BouncePool, Buffer, Device, Direction, DmaApi, DmaCore, DmaError, Invalidation, Mapping, Translated,
    TranslatedCore, Trust, UnmapError,
};
use iommu_iova::{IovaSpace, ReferenceAllocator};
use iommu_testkit::HardwareView;
use iommu_types::{AddrRange, HostPhys, Iova, PAGE_SIZE};
use vtd_driver::DomainOptions;

use super::{ABORT, Bench, DEAFEN, FRAME, FUNCTION, Failure, Kind, Moments, at_every_step, hard_and};
use crate::machine::{Machine, TestDomain};

/// The addresses that the allocator has, in pages: so few that all of them can be looked at, the highest two below
/// another table than the rest.
const WINDOW: (u64, u64) = (0x60_0000 - 14 * PAGE_SIZE, 16);
/// Buffers, one page each.
const MEMORY: u64 = 0x300_0000;
/// Bounce buffers: as much as one of the buffers takes, and not more.
const POOL: (u64, u64) = (0x400_0000, PAGE_SIZE);

type Over<'m> = Translated<TestDomain<'m>, ReferenceAllocator>;
type Api<'m> = DmaApi<Over<'m>, HardwareView<'m>>;
type Core<'m> = DmaCore<TranslatedCore<TestDomain<'m>, ReferenceAllocator>>;

fn page(number: u64) -> Iova {
    Iova::new(WINDOW.0 + number * PAGE_SIZE)
}

fn buffer(number: u64) -> Buffer {
    Buffer::new(HostPhys::new(MEMORY + number * 2 * PAGE_SIZE), PAGE_SIZE)
}

/// Part of a page, which an untrusted device gets a copy of.
fn part() -> Buffer {
    Buffer::new(HostPhys::new(MEMORY + 0x10_0100), 0x80)
}

fn api<'m>(bench: &Bench<'m>, invalidation: Invalidation) -> Api<'m> {
    let options = DomainOptions {
        superpages: false,
        stage: bench.kind.stage,
        ..DomainOptions::default()
    };
    let domain = bench.unit.create_domain(options).expect("a domain");
    if bench.kind.ats {
        bench
            .unit
            .attach_with_ats(&bench.disk, &domain, FUNCTION, || {})
            .expect("attached");
    } else {
        bench.unit.attach(&bench.disk, &domain).expect("attached");
    }
    let window = AddrRange::from_base_len(page(0), WINDOW.1 * PAGE_SIZE).expect("a range");
    let iovas = ReferenceAllocator::new(IovaSpace::new(window).expect("a space"));
    let pool = BouncePool::new(HostPhys::new(POOL.0), POOL.1, 1).expect("a pool");
    let backend = Translated::new(domain, iovas, invalidation);
    DmaApi::new(backend, bench.machine.memory.hardware()).with_pool(pool)
}

/// Memory that the API did not give back, since the device may reach it.
#[derive(Default)]
struct Doubt {
    memory: RefCell<Vec<HostPhys>>,
}

impl Doubt {
    fn add(&self, buffers: &[Buffer]) {
        let pages = buffers.iter().map(|buffer| buffer.phys.page());
        self.memory.borrow_mut().extend(pages);
    }

    /// What the device reaches is what is in doubt.
    fn judge(&self, machine: &Machine, bench: &Bench<'_>, api: &Api<'_>) {
        for at in (0..WINDOW.1).map(page) {
            let reached = bench.reach(&bench.disk, at).or_else(|| {
                let held = bench.kind.ats.then(|| machine.dma_with_ats(bench.disk.rid, None, at));
                held.flatten()
            });
            let Some(phys) = reached.map(HostPhys::page) else {
                continue;
            };
            assert!(
                api.backend().iovas().live_pages() > 0,
                "{at} leads somewhere and is free"
            );
            if (POOL.0..POOL.0 + POOL.1).contains(&phys.raw()) {
                let used = api.pool().expect("given").used_slots();
                assert!(used > 0, "the device reaches a bounce buffer that is free");
            } else {
                assert!(self.memory.borrow().contains(&phys), "{phys} was given back");
            }
        }
    }
}

/// What the API is used for, and how.
fn use_it<'m>(bench: &Bench<'m>, moments: &Moments<'_>, machine: &'m Machine, how: (Invalidation, Trust)) -> bool {
    let api = api(bench, how.0);
    let mut core = api.new_core();
    let device = Device::with_address_bits(39).trust(how.1);
    // While the driver waits, the device reads where the next mapping will be.
    let probe = api
        .map(&mut core, &device, buffer(0), Direction::ToDevice)
        .expect("room");
    let next = probe.segment().expect("one").address;
    api.unmap(&mut core, probe).expect("confirmed");
    api.flush(&mut core).expect("confirmed");
    machine.busy.set(Some((bench.disk.rid, next)));

    let doubt = Doubt::default();
    let lists = [vec![part()], vec![buffer(1)], vec![buffer(2), buffer(4), buffer(6)]];
    moments.arm();
    let mut done = true;
    let mut stuck = Vec::new();
    for list in &lists {
        let mapped: Result<Mapping<Over<'m>>, _> = match list[..] {
            [one] => api.map(&mut core, &device, one, Direction::ToDevice),
            _ => api.map_sg(&mut core, &device, list, Direction::ToDevice),
        };
        match mapped {
            Ok(mapping) => {
                if how.0 != Invalidation::Strict {
                    // Until the flush.
                    doubt.add(list);
                }
                if let Err(UnmapError::Unconfirmed(unconfirmed)) = api.unmap(&mut core, mapping) {
                    doubt.add(list);
                    stuck.push(unconfirmed);
                    done = false;
                }
            }
            Err(DmaError::Unconfirmed(_)) => {
                doubt.add(list);
                done = false;
            }
            Err(_) => done = false,
        }
    }
    let flushed = flush(&api, &mut core);
    if flushed && how.0 != Invalidation::Strict && done {
        doubt.memory.borrow_mut().clear();
    }
    moments.mend();
    machine.busy.set(None);
    doubt.judge(machine, bench, &api);
    if bench.is_good() && !(done && flushed) {
        for one in stuck {
            api.retry(&mut core, one).expect("works again");
        }
        assert!(flush(&api, &mut core), "works again");
        doubt.judge(machine, bench, &api);
        // Whatever is free can be used, and leads where it shall.
        let given = api.map(&mut core, &device, buffer(7), Direction::ToDevice);
        let mapping = given.expect("room");
        let at = mapping.segment().expect("one").address;
        assert_eq!(bench.reach(&bench.disk, at), Some(buffer(7).phys));
        api.unmap(&mut core, mapping).expect("confirmed");
        assert!(flush(&api, &mut core));
    }
    done && flushed
}

fn flush<'m>(api: &Api<'m>, core: &mut Core<'m>) -> bool {
    api.flush(core).is_ok()
}

fn at_every_step_of(how: (Invalidation, Trust), felt: &[Failure]) {
    let every = |_: &Kind| true;
    at_every_step(every, felt, |bench, moments| use_it(bench, moments, bench.machine, how));
}

#[test]
fn a_strict_interface_gives_back_what_no_device_reaches() {
    let felt = hard_and(&[FRAME, DEAFEN, ABORT]);
    for trust in [Trust::Trusted, Trust::Untrusted] {
        at_every_step_of((Invalidation::Strict, trust), &felt);
    }
}

#[test]
fn a_deferred_interface_gives_back_what_no_device_reaches() {
    let felt = hard_and(&[FRAME, DEAFEN, ABORT]);
    at_every_step_of((Invalidation::Deferred { entries: 2 }, Trust::Trusted), &felt);
}
