//! Random requests against a model of type 1 that keeps one entry a page.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeMap;

use iommu_types::{Bdf, Iova, Perms};
use iommu_vfio::{Container, Driver, Errno, Group, Platform, PlatformOptions, Software, Type1, UserMemory, VfioError};
use proptest::prelude::*;
use soft_platform::{Machine, MachineDescription};

const PAGE: u64 = 4096;
const BASE: u64 = 0xfedf_0000;
const PAGES: u64 = 64;
const MEMORY: u64 = 24 * PAGE;

#[derive(Clone, Debug)]
enum Op {
    Map {
        iova: u64,
        offset: u64,
        size: u64,
        perms: u8,
    },
    Unmap {
        iova: u64,
        size: u64,
    },
    UnmapAll,
    UnmapDirty {
        iova: u64,
        size: u64,
    },
    Track(bool),
    Dirty {
        iova: u64,
        size: u64,
    },
    Write {
        iova: u64,
    },
    Read {
        iova: u64,
    },
}

/// Mostly whole pages around the edge of the interrupt range, sometimes anything.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => (0..PAGES).prop_map(|page| BASE + page * PAGE),
        1 => (0..PAGES * PAGE).prop_map(|byte| BASE + byte),
        1 => Just(u64::MAX - PAGE + 1),
        1 => Just(0),
    ]
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => (1u64..12).prop_map(|pages| pages * PAGE),
        2 => (12..PAGES).prop_map(|pages| pages * PAGE),
        1 => 0u64..PAGE * 2,
        1 => Just(0),
        1 => Just(u64::MAX - PAGE + 1),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let offset = || prop_oneof![6 => (0u64..20).prop_map(|page| page * PAGE), 1 => 0u64..MEMORY];
    prop_oneof![
        8 => (address(), offset(), size(), 0u8..4).prop_map(|(iova, offset, size, perms)| {
            Op::Map { iova, offset, size, perms }
        }),
        5 => (address(), size()).prop_map(|(iova, size)| Op::Unmap { iova, size }),
        1 => Just(Op::UnmapAll),
        2 => (address(), size()).prop_map(|(iova, size)| Op::UnmapDirty { iova, size }),
        1 => any::<bool>().prop_map(Op::Track),
        2 => (address(), size()).prop_map(|(iova, size)| Op::Dirty { iova, size }),
        4 => address().prop_map(|iova| Op::Write { iova }),
        4 => address().prop_map(|iova| Op::Read { iova }),
    ]
}

/// A page knows which mapping it belongs to, where it leads, and what devices may do.
#[derive(Clone, Copy)]
struct Page {
    mapping: u64,
    offset: u64,
    perms: u8,
}

#[derive(Default)]
struct Model {
    pages: BTreeMap<u64, Page>,
    next: u64,
    tracking: bool,
}

type Answer<T> = Result<T, Errno>;

impl Model {
    fn range(iova: u64, size: u64) -> Answer<std::ops::RangeInclusive<u64>> {
        if size == 0 || !size.is_multiple_of(PAGE) || !iova.is_multiple_of(PAGE) {
            return Err(Errno::Einval);
        }
        let last = iova.checked_add(size - 1).ok_or(Errno::Eoverflow)?;
        Ok(iova / PAGE..=last / PAGE)
    }

    fn map(&mut self, iova: u64, offset: u64, size: u64, perms: u8) -> Answer<()> {
        if perms == 0 || (size.is_multiple_of(PAGE) && size > 0 && !offset.is_multiple_of(PAGE)) {
            return Err(Errno::Einval);
        }
        let pages = Self::range(iova, size)?;
        if offset.checked_add(size).is_none_or(|end| end > MEMORY) {
            return Err(Errno::Einval);
        }
        if self.pages.range(pages.clone()).next().is_some() {
            return Err(Errno::Eexist);
        }
        let valid = |page: u64| !(0xfee00..=0xfeeff).contains(&page) && page < 1 << 36;
        if !pages.clone().all(valid) {
            return Err(Errno::Einval);
        }
        self.next += 1;
        for (n, page) in (0..).zip(pages) {
            let offset = offset + n * PAGE;
            let entry = Page {
                mapping: self.next,
                offset,
                perms,
            };
            self.pages.insert(page, entry);
        }
        Ok(())
    }

    /// Whether the range holds only whole mappings.
    fn whole(&self, pages: &std::ops::RangeInclusive<u64>) -> Answer<()> {
        let cut = |inside: u64, outside: Option<u64>| {
            let outside = outside.and_then(|page| self.pages.get(&page));
            matches!((self.pages.get(&inside), outside), (Some(a), Some(b)) if a.mapping == b.mapping)
        };
        let below = cut(*pages.start(), pages.start().checked_sub(1));
        let above = cut(*pages.end(), pages.end().checked_add(1));
        if below || above { Err(Errno::Einval) } else { Ok(()) }
    }

    fn unmap(&mut self, iova: u64, size: u64) -> Answer<u64> {
        let pages = Self::range(iova, size)?;
        self.whole(&pages)?;
        let before = self.pages.len();
        self.pages.retain(|page, _| !pages.contains(page));
        Ok((before - self.pages.len()) as u64 * PAGE)
    }

    fn dirty(&self, iova: u64, size: u64) -> Answer<Vec<u64>> {
        if !self.tracking {
            return Err(Errno::Einval);
        }
        let pages = Self::range(iova, size)?;
        if size / PAGE > 1 << 31 {
            return Err(Errno::Einval);
        }
        self.whole(&pages)?;
        Ok(self
            .pages
            .range(pages.clone())
            .map(|(page, _)| page - pages.start())
            .collect())
    }
}

struct Rig {
    platform: Platform,
    container: Container<Type1>,
    memory: UserMemory,
    disk: Bdf,
}

fn rig() -> Rig {
    let description = MachineDescription::two_socket().unwrap();
    let machine = Machine::build(&description, &description.to_dmar().unwrap()).unwrap();
    let platform = Platform::bring_up(machine, PlatformOptions::default()).unwrap();
    let disk: Bdf = "03:00.0".parse().unwrap();
    platform.bind(disk, Driver::Vfio).unwrap();
    let backend = Software::new(&platform, platform.user("model"));
    let mut container = Container::open(&backend).unwrap();
    let group = Group::open(&backend, platform.group_of(disk).unwrap().id).unwrap();
    container.attach(group.viable().unwrap()).unwrap();
    let container = container.set_iommu().unwrap();
    let memory = container.allocate(MEMORY).unwrap();
    Rig {
        platform,
        container,
        memory,
        disk,
    }
}

fn errno<T>(result: Result<T, VfioError>) -> Answer<T> {
    result.map_err(|error| {
        assert!(error.to_string().len() > 20, "an error says what to do: {error}");
        error.errno()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_backend_answers_as_the_model_does(ops in prop::collection::vec(op(), 1..80)) {
        let rig = rig();
        let mut model = Model::default();
        for (step, op) in ops.into_iter().enumerate() {
            match op {
                Op::Map { iova, offset, size, perms } => {
                    let rights = [Perms::NONE, Perms::READ, Perms::WRITE, Perms::READ_WRITE][usize::from(perms)];
                    let got = errno(rig.container.dma_map(Iova::new(iova), &rig.memory, offset, size, rights));
                    prop_assert_eq!(got, model.map(iova, offset, size, perms), "step {} {:?}", step, op);
                }
                Op::Unmap { iova, size } => {
                    let got = errno(rig.container.dma_unmap(Iova::new(iova), size));
                    prop_assert_eq!(got, model.unmap(iova, size), "step {} {:?}", step, op);
                }
                Op::UnmapAll => {
                    let expected = model.pages.len() as u64 * PAGE;
                    model.pages.clear();
                    prop_assert_eq!(errno(rig.container.dma_unmap_all()), Ok(expected));
                }
                Op::UnmapDirty { iova, size } => {
                    let got = errno(rig.container.dma_unmap_dirty(Iova::new(iova), size))
                        .map(|(bytes, bitmap)| (bytes, bitmap.count()));
                    let expected = model.dirty(iova, size).map(|dirty| dirty.len() as u64);
                    let expected = expected.and_then(|count| Ok((model.unmap(iova, size)?, count)));
                    prop_assert_eq!(got, expected, "step {} {:?}", step, op);
                }
                Op::Track(on) => {
                    model.tracking = on;
                    let result = if on { rig.container.start_dirty_tracking() } else { rig.container.stop_dirty_tracking() };
                    prop_assert!(result.is_ok());
                }
                Op::Dirty { iova, size } => {
                    let got = errno(rig.container.dirty_pages(Iova::new(iova), size, PAGE));
                    let got = got.map(|bitmap| (0..bitmap.pages()).filter(|page| bitmap.is_dirty(*page)).collect());
                    prop_assert_eq!(got, model.dirty(iova, size), "step {} {:?}", step, op);
                }
                Op::Write { iova } => {
                    let value = (step as u64 + 1).to_le_bytes();
                    let at = iova & !7;
                    let sent = rig.platform.machine().with_function(rig.disk, |function, bus| {
                        let _ = function.config_mut().write16(4, 6);
                        function.dma_write(bus, Iova::new(at), &value)
                    });
                    let page = model.pages.get(&(at / PAGE)).filter(|page| page.perms & 2 != 0);
                    prop_assert_eq!(sent.unwrap().is_ok(), page.is_some(), "step {} {:?}", step, op);
                    if let Some(page) = page {
                        let mut there = [0; 8];
                        rig.memory.read(page.offset + at % PAGE, &mut there).unwrap();
                        prop_assert_eq!(there, value);
                    }
                }
                Op::Read { iova } => {
                    let at = iova & !7;
                    let mut bytes = [0; 8];
                    let sent = rig.platform.machine().with_function(rig.disk, |function, bus| {
                        let _ = function.config_mut().write16(4, 6);
                        function.dma_read(bus, Iova::new(at), &mut bytes)
                    });
                    let page = model.pages.get(&(at / PAGE)).filter(|page| page.perms & 1 != 0);
                    prop_assert_eq!(sent.unwrap().is_ok(), page.is_some(), "step {} {:?}", step, op);
                    if let Some(page) = page {
                        let mut there = [0; 8];
                        rig.memory.read(page.offset + at % PAGE, &mut there).unwrap();
                        prop_assert_eq!(bytes, there);
                    }
                }
            }
        }
    }
}
