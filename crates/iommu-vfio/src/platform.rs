//! The host side: units in service, groups, who has what.

mod bring_up;
mod fault;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_groups::{Groups, Hop, Rules, Topology};
use iommu_types::{AddrRange, Bdf, HostPhys};
use soft_platform::{Arrival, Machine, PageRequest, Service, UnitRegisters};
use vtd_driver::{Ioas, Requester, Timeouts, Translating, Unit};

pub use self::bring_up::{AcsStep, BringUp, RegionOutcome, RegionStep, UnitStep};
pub use self::fault::{Fault, FaultDrain, FaultedAccess};
use crate::error::{Uncontained, VfioError};
use crate::group::{Group, GroupHandle, GroupId, Opened};
use crate::memory::UserMemory;
use crate::software::{Events, SoftGroup};
use crate::user::{PageOwners, UserId};

/// A unit of the machine in the driver's hands.
pub type DriverUnit = Unit<UnitRegisters, Machine, Translating>;
/// A memory map of the driver over units of the machine.
pub(crate) type Space = Ioas<UnitRegisters, Machine>;

/// How a platform is brought up.
#[derive(Clone, Copy, Debug)]
pub struct PlatformOptions {
    /// By which rules functions are grouped.
    pub rules: Rules,
    /// Whether groups can be assigned although their unit does not remap interrupts: a guest can then raise any
    /// interrupt of the host.
    pub unsafe_interrupts: bool,
    /// Entries of each unit's interrupt remapping table: a power of two from 256 to 65536.
    pub interrupt_entries: u32,
    /// How many bytes of memory a user may have mapped for devices, as RLIMIT_MEMLOCK has it on Linux; memory that is
    /// mapped twice counts twice. No limit if `None`.
    pub pin_limit: Option<u64>,
    /// How long the driver waits for units.
    pub timeouts: Timeouts,
}

impl Default for PlatformOptions {
    /// Strict groups, interrupts must be safe, 256 entries.
    fn default() -> Self {
        Self {
            rules: Rules::Strict,
            unsafe_interrupts: false,
            interrupt_entries: 256,
            pin_limit: None,
            timeouts: Timeouts::default(),
        }
    }
}

/// A platform that cannot be brought up at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlatformError {
    /// The machine has no table.
    #[error(
        "the machine has no DMAR table, so there are no units to bring up. NO IOMMU, NO ISOLATION: every device reaches \
         all memory that it can address; turn on the IOMMU (VT-d) in the firmware's setup, or give the virtual machine \
         one (QEMU: -device intel-iommu)"
    )]
    NoTable,
}

/// What drives a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Driver {
    /// A driver of the host.
    #[default]
    Host,
    /// The driver that hands it to users.
    Vfio,
    /// None.
    None,
}

/// Who has a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    User(UserId),
    Host,
}

/// A group as users see it.
#[derive(Clone, Debug)]
pub struct GroupInfo {
    /// Its number.
    pub id: GroupId,
    /// Its functions, bridges included, ascending.
    pub members: Vec<Bdf>,
    /// Why they cannot be kept apart.
    pub reasons: Vec<Hop>,
    /// Whether the answer rests on something unknown.
    pub uncertain: bool,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    users: Vec<String>,
    pub(crate) pages: PageOwners,
    /// Bytes that each user has mapped for devices.
    pub(crate) pinned: BTreeMap<UserId, u64>,
    drivers: BTreeMap<Bdf, Driver>,
    pub(crate) open: BTreeSet<GroupId>,
    pub(crate) owners: BTreeMap<GroupId, Owner>,
}

pub(crate) struct Shared {
    pub(crate) machine: Machine,
    /// By position among the machine's units; `Err` tells why one is not in service.
    units: Vec<Result<DriverUnit, String>>,
    pub(crate) topology: Topology,
    groups: Groups,
    report: BringUp,
    pub(crate) options: PlatformOptions,
    /// Interrupts that are counted in eventfds.
    pub(crate) events: Arc<Events>,
    state: Mutex<State>,
}

/// A machine whose units are in service: everything is blocked that nobody was given.
///
/// A cheap handle; clones are the same platform.
#[derive(Clone)]
pub struct Platform {
    pub(crate) shared: Arc<Shared>,
}

impl fmt::Debug for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Platform")
            .field("machine", &self.shared.machine)
            .field("groups", &self.shared.groups.all().len())
            .finish_non_exhaustive()
    }
}

impl Platform {
    /// Takes every unit of the machine over, keeps what firmware reserves, turns translation and interrupt
    /// remapping on, and forms the groups. What happened on the way is in [`Platform::report`].
    ///
    /// A unit that fails is no error here: its functions are not contained, and nothing hands them to a user.
    ///
    /// # Errors
    /// [`PlatformError::NoTable`].
    pub fn bring_up(machine: Machine, options: PlatformOptions) -> Result<Self, PlatformError> {
        bring_up::platform(machine, options)
    }

    /// What happened when the units were brought up.
    #[must_use]
    pub fn report(&self) -> &BringUp {
        &self.shared.report
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.shared.machine
    }

    /// The machine's functions as configuration space shows them.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.shared.topology
    }

    /// The groups with their reasons, for explanations.
    #[must_use]
    pub fn grouping(&self) -> &Groups {
        &self.shared.groups
    }

    /// All groups.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupInfo> {
        self.shared.groups.all().iter().map(|group| self.info(group)).collect()
    }

    fn info(&self, group: &iommu_groups::Group) -> GroupInfo {
        GroupInfo {
            id: GroupId(group.number),
            members: group.members.clone(),
            reasons: self.shared.groups.reasons(group).to_vec(),
            uncertain: group.uncertain,
        }
    }

    /// The group of a function.
    #[must_use]
    pub fn group_of(&self, function: Bdf) -> Option<GroupInfo> {
        self.shared.groups.of(function).map(|group| self.info(group))
    }

    /// The group with number `id`.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<GroupInfo> {
        self.shared.groups.all().get(id.0).map(|group| self.info(group))
    }

    /// Opens a group. It can be open once.
    ///
    /// # Errors
    /// [`VfioError::NoGroup`], [`VfioError::GroupOpen`].
    pub fn open_group(&self, id: GroupId) -> Result<Group<Opened>, VfioError> {
        self.open_handle(id).map(|handle| Group::opened(SoftGroup(handle)))
    }

    pub(crate) fn open_handle(&self, id: GroupId) -> Result<GroupHandle, VfioError> {
        if self.group(id).is_none() {
            return Err(VfioError::NoGroup(id));
        }
        if !self.state().open.insert(id) {
            return Err(VfioError::GroupOpen(id));
        }
        Ok(GroupHandle {
            platform: self.clone(),
            id,
        })
    }

    /// What drives `function` now.
    #[must_use]
    pub fn driver(&self, function: Bdf) -> Driver {
        self.state().drivers.get(&function).copied().unwrap_or_default()
    }

    /// Changes what drives `function`. While a user or a host driver has the group, nothing is bound or unbound.
    ///
    /// # Errors
    /// [`VfioError::NoFunction`], [`VfioError::GroupOwned`].
    pub fn bind(&self, function: Bdf, driver: Driver) -> Result<(), VfioError> {
        let group = self.group_of(function).ok_or(VfioError::NoFunction(function))?.id;
        let mut state = self.state();
        if let Some(owner) = state.owners.get(&group) {
            let owner = state.owner_name(*owner);
            return Err(VfioError::GroupOwned { group, owner });
        }
        state.drivers.insert(function, driver);
        Ok(())
    }

    /// A new user: the owner of memory, groups and containers.
    #[must_use]
    pub fn user(&self, name: &str) -> UserId {
        let mut state = self.state();
        let id = UserId(u32::try_from(state.users.len()).unwrap_or(u32::MAX));
        state.users.push(name.to_owned());
        id
    }

    /// What a user is called.
    #[must_use]
    pub fn user_name(&self, user: UserId) -> String {
        self.state().user_name(user)
    }

    /// Memory that belongs to `user` from now on, zeroed.
    ///
    /// # Errors
    /// [`VfioError::OutOfMemory`].
    pub fn allocate(&self, user: UserId, request: PageRequest) -> Result<UserMemory, VfioError> {
        let pages = self.shared.machine.memory().allocate_pages(request)?;
        self.state().pages.insert(user, pages.extents());
        Ok(UserMemory::new(self.clone(), user, pages))
    }

    /// The owner of the page at `at`, by name; `None` for the host.
    #[must_use]
    pub fn page_owner(&self, at: HostPhys) -> Option<String> {
        let page = AddrRange::page_around(at, iommu_types::PageSize::Size4K);
        let state = self.state();
        // No user has this number: whoever owns the page is reported as someone else.
        let nobody = UserId(u32::MAX);
        let owner = state.pages.check(nobody, page).err()?.owner?;
        Some(state.user_name(owner))
    }

    /// Takes the interrupts that arrived since the last call, oldest first.
    #[must_use]
    pub fn take_interrupts(&self) -> Vec<Arrival> {
        self.shared.machine.take_interrupts()
    }

    /// The unit at position `index`, if it is in service.
    #[must_use]
    pub fn unit(&self, index: usize) -> Option<&DriverUnit> {
        self.shared.units.get(index)?.as_ref().ok()
    }

    /// The unit that translates the DMA of `function`.
    ///
    /// # Errors
    /// [`Uncontained`] if there is none.
    pub fn unit_of(&self, function: Bdf) -> Result<&DriverUnit, Uncontained> {
        let service = self.shared.machine.function(function).map(|info| info.service);
        match service {
            Some(Service::Unit(unit, _)) => match self.shared.units.get(unit) {
                Some(Ok(driver)) => Ok(driver),
                Some(Err(why)) => Err(Uncontained::UnitFailed { unit, why: why.clone() }),
                None => Err(Uncontained::NotCovered),
            },
            Some(Service::Blocked(doubt)) => Err(Uncontained::Unknown(doubt)),
            Some(Service::Uncovered) | None => Err(Uncontained::NotCovered),
        }
    }

    /// A function with every requester ID that its requests can carry.
    #[must_use]
    pub fn requester(&self, function: Bdf) -> Requester {
        requester(&self.shared.topology, function)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        // Every change is one insertion or removal: a panic leaves nothing half done.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a group to `owner`, unless somebody has it.
    pub(crate) fn claim(&self, group: GroupId, owner: Owner) -> Result<(), VfioError> {
        let mut state = self.state();
        match state.owners.get(&group) {
            Some(current) => Err(VfioError::GroupOwned {
                group,
                owner: state.owner_name(*current),
            }),
            None => {
                state.owners.insert(group, owner);
                Ok(())
            }
        }
    }

    pub(crate) fn unclaim(&self, group: GroupId) {
        self.state().owners.remove(&group);
    }
}

impl State {
    pub(crate) fn user_name(&self, user: UserId) -> String {
        let index = usize::try_from(user.0).unwrap_or(usize::MAX);
        self.users.get(index).cloned().unwrap_or_else(|| user.to_string())
    }

    pub(crate) fn owner_name(&self, owner: Owner) -> String {
        match owner {
            Owner::User(user) => self.user_name(user),
            Owner::Host => "a host driver".to_owned(),
        }
    }
}

fn requester(topology: &Topology, function: Bdf) -> Requester {
    let aliases = topology.aliases(function).into_iter().map(|alias| alias.source);
    Requester::with_aliases(function.source, aliases.filter(|source| *source != function.source))
}
