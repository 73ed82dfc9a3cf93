//! Groups have one owner; containers and devices go in order.

use iommu_types::{Bdf, DevFn, PAGE_SIZE, SourceId};

use super::{Case, case, refused, same};
use crate::backend::Backend;
use crate::container::Container;
use crate::error::{Errno, VfioError};
use crate::group::{Group, GroupId};

pub(super) fn cases<B: Backend>() -> Vec<Case<B>> {
    vec![
        case("group: open twice is EBUSY", |b| {
            let id = b.backend.group_of(b.function)?;
            refused(Group::open(&b.backend, id).map(drop), &[Errno::Ebusy])
        }),
        case("group: one that does not exist is ENOENT", |b| {
            refused(Group::open(&b.backend, GroupId(99_999)).map(drop), &[Errno::Enoent])
        }),
        case("group: a function that does not exist is in none", |b| {
            let nobody = Bdf::new(b.function.segment, SourceId::new(0xfd, DevFn::from_raw(0xff)));
            refused(b.backend.group_of(nobody), &[Errno::Enodev])
        }),
        case("group: holds the function", |b| {
            let id = b.backend.group_of(b.function)?;
            same("a member", b.backend.members(id)?.contains(&b.function), true)?;
            same("groups of the container", b.container.groups(), vec![id])
        }),
        case("group: can be opened again after it was taken out", |b| {
            let id = b.backend.group_of(b.function)?;
            b.container.detach(id)?;
            same("groups", b.container.groups(), vec![])?;
            let group = Group::open(&b.backend, id)?.viable().map_err(VfioError::from)?;
            drop(group);
            Ok(())
        }),
        case("group: taking out one that is not in is ENOENT", |b| {
            refused(b.container.detach(GroupId(99_999)), &[Errno::Enoent])
        }),
        case("group: taking it out while a device is open is EBUSY", |b| {
            let device = b.container.open_device(b.function)?;
            let id = b.backend.group_of(b.function)?;
            refused(b.container.detach(id), &[Errno::Ebusy])?;
            drop(device);
            Ok(b.container.detach(id)?)
        }),
        case("container: an IOMMU without a group is EINVAL", |b| {
            let empty = Container::open(&b.backend)?;
            refused(empty.set_iommu().map(drop).map_err(VfioError::from), &[Errno::Einval])
        }),
        case("container: a second one maps the same addresses", |b| {
            b.map(0, 4)?;
            let id = b.backend.group_of(b.function)?;
            b.container.dma_unmap_all()?;
            b.container.detach(id)?;
            let mut second = Container::open(&b.backend)?;
            let group = Group::open(&b.backend, id)?.viable().map_err(VfioError::from)?;
            second.attach(group).map_err(VfioError::from)?;
            let second = second.set_iommu().map_err(VfioError::from)?;
            second.dma_map(b.at(0), &b.memory, 0, PAGE_SIZE, iommu_types::Perms::READ)?;
            refused(
                second.dma_map(b.at(0), &b.memory, 0, PAGE_SIZE, iommu_types::Perms::READ),
                &[Errno::Eexist],
            )?;
            Ok(second.close()?)
        }),
        case("container: dropped, its group is free and nothing is mapped", |b| {
            let id = b.backend.group_of(b.function)?;
            b.container.detach(id)?;
            for _ in 0..2 {
                let mut next = Container::open(&b.backend)?;
                let group = Group::open(&b.backend, id)?.viable().map_err(VfioError::from)?;
                next.attach(group).map_err(VfioError::from)?;
                let next = next.set_iommu().map_err(VfioError::from)?;
                // What an earlier turn mapped would be in the way.
                next.dma_map(b.at(0), &b.memory, 0, PAGE_SIZE, iommu_types::Perms::READ)?;
                drop(next);
            }
            Ok(())
        }),
        case("device: opens, and again after it was closed", |b| {
            for _ in 0..2 {
                let device = b.container.open_device(b.function)?;
                same("function", device.function(), b.function)?;
            }
            Ok(())
        }),
        case("device: open twice is EBUSY", |b| {
            let device = b.container.open_device(b.function)?;
            refused(b.container.open_device(b.function).map(drop), &[Errno::Ebusy])?;
            drop(device);
            Ok(())
        }),
        case("device: one that is in no group of the container is ENODEV", |b| {
            let nobody = Bdf::new(b.function.segment, SourceId::new(0xfd, DevFn::from_raw(0xff)));
            refused(b.container.open_device(nobody).map(drop), &[Errno::Enodev])
        }),
        case("device: mappings stay when it is closed", |b| {
            b.map(0, 4)?;
            drop(b.container.open_device(b.function)?);
            b.exactly(&[(0, 4)])
        }),
        case("device: configuration space shows the function", |b| {
            let device = b.container.open_device(b.function)?;
            let mut identity = [0; 4];
            device.config_read(0, &mut identity);
            same("is there", identity != [0xff; 4], true)
        }),
        case("device: a region access past its end is EINVAL", |b| {
            let device = b.container.open_device(b.function)?;
            let Some((region, info)) = (0..6).find_map(|index| Some((index, device.region(index)?))) else {
                return Err(super::Stop::Skipped("the device has no region".to_owned()));
            };
            refused(device.region_read(region, info.size, &mut [0; 4]), &[Errno::Einval])?;
            refused(device.region_read(region, u64::MAX, &mut [0; 4]), &[Errno::Einval])
        }),
    ]
}
