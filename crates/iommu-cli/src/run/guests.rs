//! Two guests: who gets which groups, their memory, their devices.

use iommu_types::{Bdf, GuestPhys, HostPhys, Iova, Perms};
use iommu_vfio::{
    Container, Device, Driver, GroupId, GroupInfo, GuestMemory, Platform, Type1, UserId, UserMemory, VfioError,
};
use soft_platform::{FunctionInfo, Machine, PageRequest, Zone};

/// Longest run of host memory behind a guest's: what a host that has been up for a while has to offer.
const EXTENT: u64 = 256 << 10;
/// Where the pages for probing are mapped: in the gap that a PC's memory leaves below 4 GiB, within reach of
/// devices with 32 address lines.
const PROBE: u64 = 0xc800_0000;
const PAGE: u64 = 4096;

/// A guest with its memory and devices.
#[derive(Debug)]
pub(crate) struct Guest {
    /// What it is called.
    pub(crate) name: String,
    /// Its memory map.
    pub(crate) container: Container<Type1>,
    /// Its memory.
    pub(crate) memory: GuestMemory,
    /// Its devices: endpoints that can be opened.
    pub(crate) devices: Vec<Device>,
    /// Its groups.
    pub(crate) groups: Vec<GroupInfo>,
    /// Two pages of its own, mapped apart from its memory.
    probe: UserMemory,
    /// A page of its own that no device sees, at an address where no guest has memory: what others reach for.
    pub(crate) victim: HostPhys,
}

impl Guest {
    /// The functions it has.
    pub(crate) fn functions(&self) -> impl Iterator<Item = Bdf> + '_ {
        self.devices.iter().map(Device::function)
    }

    /// A page that it can only read: where devices see it, and where it is.
    pub(crate) fn read_only(&self) -> Option<(Iova, HostPhys)> {
        Some((Iova::new(PROBE), self.probe.at(0)?))
    }

    /// A page to map, use and unmap: where devices see it, and where it is.
    pub(crate) fn passing(&self) -> Option<(Iova, HostPhys)> {
        Some((Iova::new(PROBE + PAGE), self.probe.at(PAGE)?))
    }

    /// Maps the passing page.
    pub(crate) fn map_passing(&self) -> Result<(), VfioError> {
        self.container
            .dma_map(Iova::new(PROBE + PAGE), &self.probe, PAGE, PAGE, Perms::READ_WRITE)
    }

    /// Unmaps the passing page; when this returns no device can use it.
    pub(crate) fn unmap_passing(&self) -> Result<(), VfioError> {
        self.container.dma_unmap(Iova::new(PROBE + PAGE), PAGE).map(drop)
    }

    /// Whether its devices have something mapped at `at`.
    pub(crate) fn maps(&self, at: Iova) -> bool {
        self.container
            .mappings()
            .iter()
            .any(|mapping| mapping.range.contains(at))
    }

    /// Where the host keeps guest address `at`.
    pub(crate) fn translate(&self, at: u64) -> Option<HostPhys> {
        self.memory.translate(GuestPhys::new(at))
    }
}

/// A page that belongs to `user`, at a host address that is no guest address of memory: a device that names it
/// names nothing of its own guest.
pub(crate) fn victim(platform: &Platform, user: UserId, mem: u64) -> Result<HostPhys, VfioError> {
    let request = |zone| PageRequest::contiguous(PAGE).zone(zone).at_or_above(past_guest(mem));
    let memory = platform
        .allocate(user, request(Zone::Below4G))
        .or_else(|_| platform.allocate(user, request(Zone::Above4G)))?;
    memory.at(0).ok_or(VfioError::OutsideMemory {
        offset: 0,
        size: PAGE,
        len: memory.len(),
    })
}

/// The first address past the memory of a guest that has `mem` bytes. What does not fit below the gap of a PC
/// stands from 4 GiB up.
pub(crate) const fn past_guest(mem: u64) -> HostPhys {
    const HOLE: u64 = 3 << 30;
    HostPhys::new(if mem <= HOLE {
        mem
    } else {
        mem.saturating_add((4 << 30) - HOLE)
    })
}

/// Hands groups to a guest, gives it memory and maps it.
pub(crate) fn create(platform: &Platform, name: &str, groups: &[GroupInfo], mem: u64) -> Result<Guest, VfioError> {
    let user = platform.user(name);
    let mut container = Container::new(platform, user);
    for group in groups {
        for member in endpoints(platform, group) {
            platform.bind(member, Driver::Vfio)?;
        }
        let viable = platform.open_group(group.id)?.viable().map_err(VfioError::from)?;
        container.attach(viable).map_err(VfioError::from)?;
    }
    let container = container.set_iommu().map_err(VfioError::from)?;
    let memory = GuestMemory::new(platform.allocate(user, PageRequest::scattered(mem, EXTENT))?);
    container.map_guest(&memory, Perms::READ_WRITE)?;
    let probe = platform.allocate(user, PageRequest::contiguous(2 * PAGE))?;
    container.dma_map(Iova::new(PROBE), &probe, 0, PAGE, Perms::READ)?;
    let victim = victim(platform, user, mem)?;
    let mut devices = Vec::new();
    for member in groups.iter().flat_map(|group| endpoints(platform, group)) {
        let device = container.open_device(member)?;
        device.set_bus_master(true);
        devices.push(device);
    }
    Ok(Guest {
        name: name.to_owned(),
        container,
        memory,
        devices,
        groups: groups.to_vec(),
        probe,
        victim,
    })
}

/// Whether everything in `wanted` is there and is no bridge; if not, what to say about it.
pub(crate) fn check_wishes(machine: &Machine, wanted: &[Bdf]) -> Result<(), String> {
    /// Functions that are listed as what can be asked for.
    const LISTED: usize = 12;
    let list = |functions: &mut dyn Iterator<Item = Bdf>| {
        let mut names: Vec<String> = functions.take(LISTED + 1).map(|bdf| bdf.to_string()).collect();
        if names.len() > LISTED {
            names.truncate(LISTED);
            names.push("…".to_owned());
        }
        if names.is_empty() {
            "there are none".to_owned()
        } else {
            names.join(" ")
        }
    };
    for bdf in wanted {
        let Some(function) = machine.function(*bdf) else {
            let mut all = machine.functions().filter(|other| other.engine).map(|other| other.bdf);
            return Err(format!(
                "--assign {bdf}: the machine has no such function; those with a DMA engine: {}",
                list(&mut all)
            ));
        };
        if function.kind.is_bridge() {
            let below = |other: &FunctionInfo| {
                let mut above = other.parent;
                // Each step goes up: as many as there are buses at most.
                while let Some(at) = above.filter(|at| at != bdf) {
                    above = machine.function(at).and_then(|info| info.parent);
                }
                above.is_some() && !other.kind.is_bridge()
            };
            let mut below = machine.functions().filter(|other| below(other)).map(|other| other.bdf);
            return Err(format!(
                "--assign {bdf}: it is a {}, and bridges stay with the host; name a device below it: {}",
                function.kind,
                list(&mut below)
            ));
        }
    }
    Ok(())
}

/// Why no group is given away without being asked for, and what to do.
pub(crate) fn why_nobody(platform: &Platform) -> String {
    let machine = platform.machine();
    let engines: Vec<Bdf> = machine.functions().filter(|f| f.engine).map(|f| f.bdf).collect();
    let served = engines.iter().find(|bdf| platform.unit_of(**bdf).is_ok());
    match served {
        _ if engines.is_empty() => {
            "no function has a DMA engine; in a machine file, `engine = true` gives it one".to_owned()
        }
        None => "no unit serves a function with a DMA engine; `iommu dmar show` says what is wrong with the table"
            .to_owned(),
        Some(bdf) => format!(
            "each function that a unit serves has memory that firmware reserves, or somebody in its group whom no \
             unit contains; it is given away only when asked for, as in --assign {bdf}"
        ),
    }
}

/// Whether a function of the groups can be told to send something.
pub(crate) fn has_engine(platform: &Platform, groups: &[GroupInfo]) -> bool {
    let machine = platform.machine();
    let engine = |bdf: Bdf| machine.function(bdf).is_some_and(|function| function.engine);
    groups.iter().flat_map(|group| endpoints(platform, group)).any(engine)
}

/// The members of a group that are no bridges.
pub(crate) fn endpoints(platform: &Platform, group: &GroupInfo) -> Vec<Bdf> {
    let machine = platform.machine();
    let endpoint = |bdf: &Bdf| {
        machine
            .function(*bdf)
            .is_some_and(|function| !function.kind.is_bridge())
    };
    group.members.iter().copied().filter(endpoint).collect()
}

/// Which groups go to which guest.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    /// Groups of the first guest.
    pub(crate) first: Vec<GroupInfo>,
    /// Groups of the second.
    pub(crate) second: Vec<GroupInfo>,
}

/// Chooses groups. What `wanted` names goes to the first guest. Without wishes the groups of devices behind
/// ports are dealt out in turn, one by one, and what is built into the chipset stays with the host.
pub(crate) fn plan(platform: &Platform, wanted: &[Bdf]) -> Result<Plan, VfioError> {
    let mut plan = Plan::default();
    for bdf in wanted {
        let group = platform.group_of(*bdf).ok_or(VfioError::NoFunction(*bdf))?;
        if plan.first.iter().all(|known| known.id != group.id) {
            plan.first.push(group);
        }
    }
    let mut candidates = candidates(platform, &plan);
    if wanted.is_empty() {
        // A third of the groups at least stays with the host, so that there is somebody to be blocked by default.
        let dealt = candidates.len().div_ceil(2).max(candidates.len().min(2));
        for (turn, group) in candidates.drain(..dealt.min(candidates.len())).enumerate() {
            if turn % 2 == 0 {
                plan.first.push(group)
            } else {
                plan.second.push(group)
            }
        }
    } else {
        plan.second.extend(candidates.into_iter().next());
    }
    Ok(plan)
}

/// Groups that can be given away without a second thought: an engine in them, a unit that contains them, no
/// reserved memory; devices behind ports first.
fn candidates(platform: &Platform, plan: &Plan) -> Vec<GroupInfo> {
    let machine = platform.machine();
    let taken = |id: GroupId| plan.first.iter().any(|group| group.id == id);
    let reserved: Vec<Bdf> = platform
        .report()
        .regions
        .iter()
        .flat_map(|region| region.functions.clone())
        .collect();
    let mut candidates: Vec<GroupInfo> = platform
        .groups()
        .into_iter()
        .filter(|group| !taken(group.id) && !group.uncertain)
        .filter(|group| {
            let endpoints = endpoints(platform, group);
            let engines = endpoints
                .iter()
                .filter_map(|bdf| machine.function(*bdf))
                .any(|function| function.engine);
            engines
                && endpoints
                    .iter()
                    .all(|bdf| platform.unit_of(*bdf).is_ok() && !reserved.contains(bdf))
        })
        .collect();
    let behind_port = |group: &GroupInfo| {
        endpoints(platform, group).iter().any(|bdf| {
            machine
                .function(*bdf)
                .is_some_and(|function| function.parent.is_some() && !function.kind.is_conventional())
        })
    };
    candidates.sort_by_key(|group| (!behind_port(group), group.members.last().copied()));
    candidates
}
