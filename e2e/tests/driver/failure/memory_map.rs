//! A memory map that fails at step N: what a device may still reach stays its owner's.

use std::sync::Arc;

use iommu_types::{AddrRange, HostPhys, Iova, PAGE_SIZE, Perms};
use vtd_driver::{DomainOptions, Ioas, OwnerId, PageOwners};

use super::{ABORT, BLOCK, FAR, FRAME, Kind, at_every_step, hard_and};
use crate::machine::range;

const GUEST: OwnerId = OwnerId(7);
/// The guest's memory.
const MEMORY: (u64, u64) = (0x100_0000, BLOCK.1);

fn memory() -> AddrRange<HostPhys> {
    AddrRange::from_base_len(HostPhys::new(MEMORY.0), MEMORY.1).expect("a range")
}

fn options(kind: &Kind) -> DomainOptions {
    DomainOptions {
        superpages: false,
        stage: kind.stage,
        ..DomainOptions::default()
    }
}

#[test]
fn memory_that_a_guests_devices_may_reach_is_not_given_back() {
    let (base, len) = BLOCK;
    let every = |_: &Kind| true;
    at_every_step(every, &hard_and(&[FRAME, ABORT]), |bench, moments| {
        let (unit, disk) = (&bench.unit, &bench.disk);
        let owners = Arc::new(PageOwners::new());
        owners.grant(GUEST, memory()).expect("free");
        let guest = Ioas::owned_by(options(&bench.kind), GUEST, owners.clone());
        // Mapped before there is a device, so that joining repeats it.
        let early = HostPhys::new(MEMORY.0);
        guest.map(FAR, early, PAGE_SIZE, Perms::READ).expect("its own");
        moments.arm();
        let joined = guest.attach(unit, disk);
        let mapped = joined
            .is_ok()
            .then(|| guest.map(Iova::new(base), HostPhys::new(MEMORY.0), len, Perms::READ));
        let unmapped = matches!(mapped, Some(Ok(())))
            .then(|| guest.unmap(range(base, len), ()).expect("takes no memory"))
            .map(|pending| guest.flush(pending).map_err(|(error, _)| error));
        let left = matches!(unmapped, Some(Ok(()))).then(|| guest.detach(unit, disk));
        let destroyed = matches!(left, Some(Ok(()))).then(|| guest.destroy().is_ok());
        moments.mend();
        let reached = [FAR, Iova::new(base), Iova::new(base + 0x3000)].map(|at| bench.reach(disk, at));
        for phys in reached.into_iter().flatten() {
            assert!(memory().contains(phys), "{phys} is not the guest's");
        }
        let done = destroyed == Some(true);
        match owners.revoke(GUEST, memory()) {
            Ok(()) => assert_eq!(reached, [None; 3], "the host's memory again"),
            Err(_) => assert!(!done, "all of it was given up, and confirmed"),
        }
        done
    });
}
