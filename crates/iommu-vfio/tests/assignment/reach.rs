//! What assigned devices reach: memory, other functions, interrupts.

use iommu_types::{AddrRange, AddressSpace, GuestPhys, Iova, Perms, SystemMemory};
use iommu_vfio::{Driver, Errno, FaultedAccess, HostSpace, VfioError};
use soft_platform::{PageRequest, Sender, Zone};
use vtd_driver::InterruptTarget;

use crate::{
    ACCELERATOR, GPU, MIB, NIC0, NIC1, NVME, SD, SERIAL, SOUND, bdf, container, fetch, guest, platform, store,
    the_fault,
};

#[test]
fn a_guest_moves_data_through_its_own_addresses() {
    let platform = platform();
    let user = platform.user("guest A");
    for function in [NVME, NIC1, SOUND] {
        let owned = container(&platform, user, function);
        let guest = guest(&platform, user, 4 * MIB);
        owned.map_guest(&guest, Perms::READ_WRITE).expect("maps");
        let device = owned.open_device(bdf(function)).expect("on a VFIO driver");
        device.set_bus_master(true);
        // Over the border of two runs that are apart in host memory.
        let at = (256 << 10) - 1000;
        let data: Vec<u8> = (0..5000u32).map(|i| (i % 253) as u8).collect();
        assert!(store(&platform, function, Iova::new(at), &data), "{function}");
        let mut seen = vec![0; 5000];
        guest.read(GuestPhys::new(at), &mut seen).expect("guest memory");
        assert_eq!(seen, data, "{function}");
        guest.write(GuestPhys::new(at), &[0x77; 5000]).expect("guest memory");
        assert_eq!(fetch(&platform, function, Iova::new(at), 5000), Some(vec![0x77; 5000]));
        assert!(platform.drain_faults().faults.is_empty());
        drop(device);
        assert_eq!(owned.dma_unmap_all().expect("confirmed"), 4 * MIB);
        owned.close().expect("closes");
        guest
            .into_memory()
            .release()
            .map_err(|(error, _)| error)
            .expect("nothing is mapped any more");
    }
}

/// The access matrix of one guest's device: each cell once.
#[test]
fn each_cell_of_the_matrix_is_as_mappings_and_groups_predict() {
    let platform = platform();
    let (a, b) = (platform.user("guest A"), platform.user("guest B"));
    let region = platform.report().regions[0].range.expect("range").first();
    for function in [NVME, GPU, NIC0, NIC1, ACCELERATOR, SD, SOUND, SERIAL] {
        let owned = container(&platform, a, function);
        let mine = guest(&platform, a, MIB);
        let theirs = guest(&platform, b, MIB);
        let host = platform
            .machine()
            .memory()
            .allocate_pages(PageRequest::contiguous(4096).zone(Zone::Below4G))
            .expect("memory");
        let high = Iova::new(0x4000_0000);
        owned
            .dma_map(high, mine.memory(), 0, 0x4000, Perms::READ_WRITE)
            .expect("maps");
        owned
            .dma_map(Iova::new(0x5000_0000), mine.memory(), 0x4000, 0x1000, Perms::READ)
            .expect("maps");
        let device = owned.open_device(bdf(function)).expect("opens");
        device.set_bus_master(true);
        let _ = platform.drain_faults();

        assert!(store(&platform, function, high, &[1; 128]), "{function}: own mapping");
        assert!(
            fetch(&platform, function, Iova::new(0x5000_0000), 16).is_some(),
            "{function}: read-only read"
        );
        let blocked = [
            ("read-only written", 0x5000_0000),
            (
                "other guest",
                theirs.translate(GuestPhys::new(0)).expect("memory").raw(),
            ),
            ("host memory", host.extents()[0].first().raw()),
            ("reserved region", region.raw()),
        ];
        for (what, at) in blocked {
            // A 32-bit function cannot even say a higher address.
            if at >> 32 != 0 && device.info().expect("there").dma_bits == 32 {
                continue;
            }
            assert!(
                !store(&platform, function, Iova::new(at), &[9; 64]),
                "{function}: {what}"
            );
            let fault = the_fault(&platform);
            assert!(fault.functions.contains(&bdf(function)), "{function}: {what}: {fault}");
            assert_eq!(fault.owner.as_deref(), Some("guest A"));
        }
        // The interrupt range: a message that was not given to this function.
        assert!(
            !store(&platform, function, Iova::new(0xfee0_0000), &[0x31, 0, 0, 0]),
            "{function}: MSI"
        );
        assert!(matches!(the_fault(&platform).access, FaultedAccess::Interrupt(_)));
        assert!(platform.take_interrupts().is_empty());
        // Registers of others: only functions of the same group are reached, and no unit sees it.
        for peer in [NVME, NIC0, NIC1, SOUND, SERIAL] {
            let (from, to) = (bdf(function), bdf(peer));
            if from == to {
                continue;
            }
            let together = platform.grouping().together(from, to).expect("there");
            let bar = platform.machine().bar_range(to, 0).expect("answers");
            let at = Iova::new(bar.first().raw() + iommu_devices::registers::BUFFER);
            assert_eq!(
                store(&platform, function, at, &[5; 4]),
                together,
                "{function} -> {peer}"
            );
            assert_eq!(platform.drain_faults().faults.len(), usize::from(!together));
        }
        // Unmapped again.
        assert_eq!(owned.dma_unmap(high, 0x4000).expect("confirmed"), 0x4000);
        assert!(!store(&platform, function, high, &[1; 4]), "{function}: unmapped again");
        assert_eq!(platform.drain_faults().faults.len(), 1);
        drop(device);
        owned.close().expect("closes");
        platform.machine().memory().release_pages(host);
        for guest in [mine, theirs] {
            guest.into_memory().release().map_err(|(error, _)| error).expect("free");
        }
    }
}

#[test]
fn interrupts_arrive_through_entries_that_only_their_device_can_use() {
    let platform = platform();
    let (a, b) = (platform.user("guest A"), platform.user("guest B"));
    for (function, other) in [(NVME, GPU), (SOUND, SD)] {
        let mine = container(&platform, a, function);
        let theirs = container(&platform, b, other);
        let device = mine.open_device(bdf(function)).expect("opens");
        let forger = theirs.open_device(bdf(other)).expect("opens");
        device.set_bus_master(true);
        forger.set_bus_master(true);
        let message = device
            .enable_msi(&[InterruptTarget::fixed(0x42, 1)])
            .expect("entries are free");
        let _ = platform.take_interrupts();
        // A command whose end raises an interrupt: cause 1, through the register that raises causes.
        device
            .region_write(0, iommu_devices::registers::INTERRUPT_RAISE, &1u32.to_le_bytes())
            .expect("inside");
        let arrivals = platform.take_interrupts();
        assert_eq!(arrivals.len(), 1, "{function}");
        assert_eq!((arrivals[0].vector, arrivals[0].destination), (0x42, 1));
        assert!(matches!(arrivals[0].sender, Sender::Function(_)));
        assert_eq!(arrivals[0].entry, device.interrupt_entries().map(|(first, _)| first));

        // The same message from another function: the source does not match.
        assert!(!store(
            &platform,
            other,
            Iova::new(message.address),
            &message.data.to_le_bytes()
        ));
        assert!(platform.take_interrupts().is_empty());
        let fault = the_fault(&platform);
        assert!(matches!(fault.access, FaultedAccess::Interrupt(_)), "{fault}");
        assert_eq!(fault.reason, vtd_spec::fault::FaultReason::INTERRUPT_SOURCE_INVALID);
        assert!(fault.functions.contains(&bdf(other)));
        device.disable_msi().expect("confirmed");
        assert!(!store(
            &platform,
            function,
            Iova::new(message.address),
            &message.data.to_le_bytes()
        ));
        assert!(the_fault(&platform).functions.contains(&bdf(function)));
    }
}

#[test]
fn mapping_keeps_every_rule_of_type_1_version_2() {
    let platform = platform();
    let user = platform.user("guest");
    let owned = container(&platform, user, NVME);
    let memory = platform.allocate(user, PageRequest::contiguous(MIB)).expect("memory");
    let map = |iova: u64, offset: u64, size: u64, perms| owned.dma_map(Iova::new(iova), &memory, offset, size, perms);
    let errno = |result: Result<(), VfioError>| result.map_err(|error| error.errno());
    let rw = Perms::READ_WRITE;

    assert_eq!(errno(map(0x1000, 0, 0x1000, Perms::NONE)), Err(Errno::Einval));
    assert_eq!(errno(map(0x1000, 0, 0, rw)), Err(Errno::Einval));
    assert_eq!(errno(map(0x1000, 0, 0x1800, rw)), Err(Errno::Einval));
    assert_eq!(errno(map(0x1800, 0, 0x1000, rw)), Err(Errno::Einval));
    assert_eq!(errno(map(0x1000, 0x10, 0x1000, rw)), Err(Errno::Einval));
    assert_eq!(errno(map(u64::MAX - 0xfff, 0, 0x2000, rw)), Err(Errno::Eoverflow));
    assert_eq!(
        errno(map(u64::MAX - 0xfff, 0, 0x1000, rw)),
        Err(Errno::Einval),
        "past the aperture"
    );
    assert_eq!(errno(map(0xfee0_0000, 0, 0x1000, rw)), Err(Errno::Einval), "interrupts");
    assert_eq!(
        errno(map(0x1000, MIB, 0x1000, rw)),
        Err(Errno::Einval),
        "past the memory"
    );
    assert_eq!(errno(map(0x10_0000, 0, 0x4000, rw)), Ok(()));
    assert_eq!(errno(map(0x10_3000, 0, 0x1000, rw)), Err(Errno::Eexist));
    assert_eq!(errno(map(0xf_f000, 0, 0x2000, rw)), Err(Errno::Eexist));
    assert_eq!(errno(map(0x10_4000, 0x4000, 0x2000, Perms::READ)), Ok(()));
    assert_eq!(owned.mappings().len(), 2);

    let unmap = |iova: u64, size: u64| owned.dma_unmap(Iova::new(iova), size).map_err(|error| error.errno());
    assert_eq!(unmap(0x10_0000, 0x1000), Err(Errno::Einval), "bisects at the end");
    assert_eq!(unmap(0x10_1000, 0x3000), Err(Errno::Einval), "bisects at the start");
    assert_eq!(unmap(0x10_0000, 0), Err(Errno::Einval));
    assert_eq!(unmap(0x10_0800, 0x1000), Err(Errno::Einval));
    assert_eq!(owned.mappings().len(), 2, "nothing changed");
    assert_eq!(unmap(0x40_0000, 0x1000), Ok(0), "nothing is mapped there");
    assert_eq!(unmap(0, 0x8000_0000), Ok(0x6000), "several mappings and holes");
    assert_eq!(owned.mappings().len(), 0);
    memory.release().map_err(|(error, _)| error).expect("nothing is mapped");
}

#[test]
fn a_host_driver_maps_two_pages_that_are_apart_as_one() {
    let platform = platform();
    let host: HostSpace = platform.host_space(bdf(SD)).expect("the host's");
    assert!(matches!(
        platform.bind(bdf(SD), Driver::Vfio),
        Err(VfioError::GroupOwned { .. })
    ));
    let request = PageRequest::scattered(0x2000, 0x1000).zone(Zone::Above4G);
    let pages = platform.machine().memory().allocate_pages(request).expect("memory");
    let iova = Iova::new(0x20_0000);
    for (index, page) in (0u64..).zip(pages.extents()) {
        let at = Iova::new(iova.raw() + index * 0x1000);
        host.map(at, page.first(), 0x1000, Perms::READ_WRITE).expect("maps");
    }
    platform.machine().set_command(bdf(SD), 4, true);
    let data: Vec<u8> = (0..0x2000u32).map(|i| (i % 251) as u8).collect();
    assert!(
        store(&platform, SD, iova, &data),
        "32 address bits reach memory above 4 GiB"
    );
    for (page, part) in pages.extents().iter().zip(data.chunks(0x1000)) {
        let mut seen = vec![0; 0x1000];
        platform.machine().read(page.first(), &mut seen).expect("memory");
        assert_eq!(seen, part);
    }
    let range = AddrRange::from_base_len(iova, 0x2000).expect("range");
    let pending = host.unmap(range, ()).map_err(|refused| refused.error).expect("mapped");
    host.flush(pending).map_err(|(error, _)| error).expect("confirmed");
    assert!(!store(&platform, SD, iova, &data));
    drop(host);
    platform.bind(bdf(SD), Driver::Vfio).expect("free again");
}

#[test]
fn threads_map_and_unmap_while_devices_of_other_threads_write() {
    let platform = platform();
    let memories: Vec<_> = [NVME, GPU, NIC0]
        .into_iter()
        .map(|function| {
            let user = platform.user(function);
            let owned = container(&platform, user, function);
            let memory = platform
                .allocate(user, PageRequest::contiguous(0x4000))
                .expect("memory");
            (function, owned, memory)
        })
        .collect();
    std::thread::scope(|scope| {
        for (function, owned, memory) in &memories {
            let platform = &platform;
            scope.spawn(move || {
                let device = owned.open_device(bdf(function)).expect("opens");
                device.set_bus_master(true);
                for round in 0..50u8 {
                    let at = Iova::new(0x1_0000 + u64::from(round) * 0x4000);
                    owned.dma_map(at, memory, 0, 0x4000, Perms::READ_WRITE).expect("maps");
                    assert!(store(platform, function, at, &[round; 0x4000]));
                    owned.dma_unmap(at, 0x4000).expect("confirmed");
                    assert!(!store(platform, function, at, &[0xff; 16]));
                    let mut seen = [0; 16];
                    memory.read(0x3ff0, &mut seen).expect("inside");
                    assert_eq!(seen, [round; 16], "nothing is written after the unmap is confirmed");
                }
            });
        }
    });
}
