//! The exact steps that give functions to a guest, and those that take them back.
//!
//! A group changes hands as a whole: as long as one of its functions has a driver of the host, the kernel refuses to
//! give any of them away. So the steps cover every endpoint of every group that a chosen function is in; bridges and
//! ports stay with their driver, which the kernel allows. Three routes lead to the same end, and one is enough:
//! driverctl (lasts over a restart), libvirt, and plain sysfs (works in any shell, busybox included).
//!
//! Nothing here writes to a machine: the commands are text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use iommu_groups::{Groups, Topology};
use iommu_types::Bdf;

use crate::check::{self, Plan};
use crate::item::{Answer, Item, overall};
use crate::knowledge::{Knowledge, Obstacle};
use crate::machine::Machine;

/// The driver that hands a function to user space.
pub const DRIVER: &str = "vfio-pci";
/// Where sysfs has the functions.
const DEVICES: &str = "/sys/bus/pci/devices";

/// Why a function takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The guest is to have it.
    Chosen,
    /// It shares a group with a chosen one. It can be left idle, or be given to the same guest.
    Companion,
}

/// Who has a function now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// No driver.
    Nobody,
    /// A driver that hands it to user space, by name.
    UserSpace(String),
    /// `pci-stub`, which leaves it alone.
    Stub,
    /// A driver of the host, by name.
    Host(String),
    /// It is not known.
    Unknown(Obstacle),
}

/// One endpoint that changes hands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where it is.
    pub bdf: Bdf,
    /// Why it takes part.
    pub role: Role,
    /// Who has it now.
    pub holder: Holder,
}

/// A group of which something is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupToMove {
    /// The kernel's number of this boot; `None` where the group is computed.
    pub number: Option<u32>,
    /// Its endpoints, ascending.
    pub endpoints: Vec<Bdf>,
    /// Its bridges and ports, ascending: they stay as they are.
    pub bridges: Vec<Bdf>,
    /// Members that are no PCI functions, by the kernel's names.
    pub others: Vec<String>,
    /// Whether its extent is certain: it is the kernel's own, or all that it rests on could be read.
    pub certain: bool,
}

/// What a command is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Load the driver.
    Load,
    /// Say which driver the function is for.
    Override,
    /// Take the function from the driver that has it.
    Unbind,
    /// Let the driver that it is for have it.
    Bind,
    /// Give the function back to the host.
    GiveBack,
}

/// One command for a POSIX shell run by root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What it is for.
    pub purpose: Purpose,
    /// The function it is about; `None` for the machine as a whole.
    pub function: Option<Bdf>,
    /// The command, one line.
    pub command: String,
}

/// How long a route's effect lasts by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Until {
    /// It is undone: restarts do not end it.
    Undone,
    /// It is undone, or the host restarts.
    Restart,
    /// Of chosen functions, the guest ends; of companions, they are given back or the host restarts.
    GuestEnd,
}

/// Commands that do it, and commands that undo it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// To be run in this order. Empty if there is nothing left to do.
    pub prepare: Vec<Step>,
    /// To be run in this order, once no guest uses the functions. It gives back what the steps take, and what a driver of
    /// user space has already: so it can be asked for before the steps are carried out, which restores the driver of
    /// today, or long after, when the kernel picks the driver.
    pub undo: Vec<Step>,
    /// How long the effect lasts.
    pub lasts: Until,
}

/// Everything that is to be done for an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The groups, by their lowest function.
    pub groups: Vec<GroupToMove>,
    /// All endpoints of these groups, ascending.
    pub functions: Vec<Move>,
    /// With `driverctl`. Companions are bound as well.
    pub driverctl: Route,
    /// With `virsh`, for use with [`Move::hostdev`], which lets libvirt move the chosen functions itself: only
    /// companions need commands.
    pub virsh: Route,
    /// With writes to sysfs.
    pub sysfs: Route,
    /// What stands in the way or should be known, as [`check::check`] finds it. Whether the others of the groups
    /// are off the host's drivers is left out, because the steps see to that.
    pub items: Vec<Item>,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// No function is chosen.
    #[error("no function is chosen: name at least one endpoint")]
    Nothing,
    /// The machine has no such function.
    #[error("{0} is not on this machine: `iommu groups` lists what is")]
    NoSuchFunction(Bdf),
    /// A bridge is chosen.
    #[error(
        "{0} is a bridge: bridges and ports stay with the host (their driver does no harm to a group); choose the \
         endpoints below it"
    )]
    Bridge(Bdf),
}

/// Works out how to give `chosen` to one guest.
///
/// `groups` are those of Linux's rules for `topology`; the running kernel's own count where it has any. `guest` is
/// what is known of the guest, for [`Assignment::items`].
///
/// # Errors
///
/// If nothing is chosen, or something that does not exist or is a bridge.
pub fn plan(
    machine: &Machine,
    topology: &Topology,
    groups: &Groups,
    chosen: &[Bdf],
    guest: Plan,
) -> Result<Assignment, PlanError> {
    let chosen: BTreeSet<Bdf> = chosen.iter().copied().collect();
    if chosen.is_empty() {
        return Err(PlanError::Nothing);
    }
    for bdf in &chosen {
        match topology.get(*bdf) {
            None => return Err(PlanError::NoSuchFunction(*bdf)),
            Some(f) if f.is_bridge() => return Err(PlanError::Bridge(*bdf)),
            Some(_) => {}
        }
    }
    let to_move = groups_of(machine, topology, groups, &chosen);
    let endpoints: BTreeSet<Bdf> = to_move.iter().flat_map(|group| &group.endpoints).copied().collect();
    let functions: Vec<Move> = endpoints
        .into_iter()
        .map(|bdf| Move {
            bdf,
            role: if chosen.contains(&bdf) {
                Role::Chosen
            } else {
                Role::Companion
            },
            holder: holder(machine, bdf),
        })
        .collect();
    let chosen: Vec<Bdf> = chosen.into_iter().collect();
    let mut items = check::check(machine, topology, groups, &chosen, guest);
    items.retain(|item| item.id != check::VIABLE);
    items.push(extent(&to_move));
    items.push(companions(&functions));
    items.extend(virtual_functions(topology, &functions));
    Ok(Assignment {
        driverctl: driverctl(&functions),
        virsh: virsh(&functions),
        sysfs: sysfs(machine, &functions),
        groups: to_move,
        functions,
        items,
    })
}

/// The groups of the chosen functions, in the order of their lowest member.
fn groups_of(machine: &Machine, topology: &Topology, groups: &Groups, chosen: &BTreeSet<Bdf>) -> Vec<GroupToMove> {
    let is_bridge = |bdf: &Bdf| topology.get(*bdf).is_some_and(iommu_groups::Function::is_bridge);
    let mut found: BTreeMap<Bdf, GroupToMove> = BTreeMap::new();
    for bdf in chosen {
        let number = machine.functions.get(bdf).and_then(|f| f.group.known());
        let kernel = number.and_then(|number| machine.groups.known()?.get(number));
        let (number, mut members, others, certain) = match (kernel, groups.of(*bdf)) {
            (Some(kernel), _) => (
                Some(kernel.number),
                kernel.functions.clone(),
                kernel.others.clone(),
                true,
            ),
            (None, Some(group)) => (None, group.members.clone(), Vec::new(), !group.uncertain),
            (None, None) => (None, vec![*bdf], Vec::new(), false),
        };
        // A listing may leave out what it is asked about.
        members.push(*bdf);
        members.sort_unstable();
        members.dedup();
        let Some(first) = members.first().copied() else {
            continue;
        };
        let (bridges, endpoints) = members.into_iter().partition(is_bridge);
        found.entry(first).or_insert(GroupToMove {
            number,
            endpoints,
            bridges,
            others,
            certain,
        });
    }
    found.into_values().collect()
}

fn holder(machine: &Machine, bdf: Bdf) -> Holder {
    match machine.functions.get(&bdf).map(|f| &f.driver) {
        Some(Knowledge::Known(driver)) if driver == check::STUB => Holder::Stub,
        Some(Knowledge::Known(driver)) if check::is_harmless(driver) => Holder::UserSpace(driver.clone()),
        Some(Knowledge::Known(driver)) => Holder::Host(driver.clone()),
        Some(Knowledge::Absent) => Holder::Nobody,
        Some(Knowledge::Unknown(why)) => Holder::Unknown(why.clone()),
        None => Holder::Unknown(Obstacle::NotIncluded(format!("{DEVICES}/{bdf}"))),
    }
}

/// Whether the groups are known to be as large as they are here.
fn extent(groups: &[GroupToMove]) -> Item {
    const QUESTION: &str = "is it certain what is in their groups?";
    if groups.iter().all(|group| group.certain) {
        let from = if groups.iter().all(|group| group.number.is_some()) {
            "the kernel's own groups"
        } else {
            "computed from configuration space"
        };
        Item::hard("extent", QUESTION, Answer::Yes, from)
    } else {
        Item::hard(
            "extent",
            QUESTION,
            Answer::Unknown,
            "they rest on configuration space that could not be read, and may be smaller than shown",
        )
        .advise("run as root, or read a snapshot that root took")
    }
}

/// What has to come along.
fn companions(functions: &[Move]) -> Item {
    const QUESTION: &str = "do the chosen functions have their groups to themselves?";
    let others: Vec<String> = functions
        .iter()
        .filter(|f| f.role == Role::Companion)
        .map(|f| match &f.holder {
            Holder::Host(driver) => format!("{} ({driver})", f.bdf),
            _ => f.bdf.to_string(),
        })
        .collect();
    if others.is_empty() {
        Item::soft("companions", QUESTION, Answer::Yes, "no other endpoint is in them")
    } else {
        Item::soft("companions", QUESTION, Answer::No, others.join(", ")).advise(
            "the host loses them too: leave them idle on vfio-pci, or give them to the same guest; another slot may keep them \
             apart (`iommu explain` says what joins them)",
        )
    }
}

/// Physical functions whose virtual ones go away with their driver.
fn virtual_functions(topology: &Topology, functions: &[Move]) -> Option<Item> {
    const QUESTION: &str = "do all virtual functions stay?";
    let owners: BTreeSet<Bdf> = topology
        .functions()
        .iter()
        .filter_map(|f| f.physical_function)
        .filter(|owner| functions.iter().any(|f| f.bdf == *owner && f.needs_binding()))
        .collect();
    let list: Vec<String> = owners.iter().map(Bdf::to_string).collect();
    (!list.is_empty()).then(|| {
        Item::soft(
            "virtual-functions",
            QUESTION,
            Answer::No,
            format!("those of {} go when its driver lets it go", list.join(", ")),
        )
        .advise("give away a virtual function instead of the physical one, if that is enough")
    })
}

fn driverctl(functions: &[Move]) -> Route {
    let moved = || functions.iter().filter(|f| f.needs_binding());
    let given_back = || functions.iter().filter(|f| f.goes_back());
    let step = |purpose, f: &Move, command| Step {
        purpose,
        function: Some(f.bdf),
        command,
    };
    Route {
        prepare: moved()
            .map(|f| step(Purpose::Bind, f, format!("driverctl set-override {} {DRIVER}", f.bdf)))
            .collect(),
        undo: given_back()
            .map(|f| step(Purpose::GiveBack, f, format!("driverctl unset-override {}", f.bdf)))
            .collect(),
        lasts: Until::Undone,
    }
}

fn virsh(functions: &[Move]) -> Route {
    let companions = || functions.iter().filter(|f| f.role == Role::Companion);
    // A chosen one that has left the host already was not moved by libvirt, or its guest did not give it back.
    let left = |f: &&Move| f.goes_back() && (f.role == Role::Companion || !f.needs_binding());
    Route {
        prepare: companions().filter(|f| f.needs_binding()).map(Move::detach).collect(),
        undo: functions.iter().filter(left).map(Move::reattach).collect(),
        lasts: Until::GuestEnd,
    }
}

fn sysfs(machine: &Machine, functions: &[Move]) -> Route {
    let (mut prepare, mut undo) = (Vec::new(), Vec::new());
    if functions.iter().any(Move::needs_binding) && !has_driver(machine) {
        prepare.push(Step {
            purpose: Purpose::Load,
            function: None,
            command: format!("modprobe {DRIVER}"),
        });
    }
    for f in functions {
        let bdf = f.bdf;
        let at = format!("{DEVICES}/{bdf}");
        let step = |purpose, command| Step {
            purpose,
            function: Some(bdf),
            command,
        };
        let unbind = format!("echo {bdf} > {at}/driver/unbind");
        let probe = format!("echo {bdf} > /sys/bus/pci/drivers_probe");
        if f.needs_binding() {
            prepare.push(step(Purpose::Override, format!("echo {DRIVER} > {at}/driver_override")));
            match &f.holder {
                Holder::Nobody => {}
                Holder::Host(_) | Holder::UserSpace(_) | Holder::Stub => {
                    prepare.push(step(Purpose::Unbind, unbind.clone()));
                }
                Holder::Unknown(_) => prepare.push(step(
                    Purpose::Unbind,
                    format!("if [ -e {at}/driver ]; then {unbind}; fi"),
                )),
            }
            prepare.push(step(Purpose::Bind, probe.clone()));
        }
        if f.goes_back() {
            undo.push(step(Purpose::Unbind, unbind));
            // A line that is empty takes the override away.
            undo.push(step(Purpose::Override, format!("echo > {at}/driver_override")));
            match &f.holder {
                Holder::Nobody => {}
                Holder::Host(driver) if is_plain(driver) => undo.push(step(
                    Purpose::GiveBack,
                    format!("echo {bdf} > /sys/bus/pci/drivers/{driver}/bind"),
                )),
                // Without an override the kernel finds the driver that claims the model.
                _ => undo.push(step(Purpose::GiveBack, probe)),
            }
        }
    }
    Route {
        prepare,
        undo,
        lasts: Until::Restart,
    }
}

/// Whether a driver's name is what names of drivers are. Snapshots come from anybody, and what stands in a command is
/// run by root.
fn is_plain(driver: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    !driver.starts_with('.') && driver.chars().all(plain)
}

/// Whether the driver is known to be in the kernel already.
fn has_driver(machine: &Machine) -> bool {
    let in_use = machine
        .functions
        .values()
        .any(|f| f.driver.known().is_some_and(|driver| driver == DRIVER));
    let module = DRIVER.replace('-', "_");
    in_use
        || machine.module_parameters.known().is_some_and(|parameters| {
            parameters
                .keys()
                .any(|name| name.split_once('.').is_some_and(|(owner, _)| owner == module))
        })
}

impl Move {
    /// Whether it must be bound to [`DRIVER`]. A companion that a driver of user space or `pci-stub` has can stay.
    #[must_use]
    pub fn needs_binding(&self) -> bool {
        match (&self.holder, self.role) {
            (Holder::UserSpace(_), _) | (Holder::Stub, Role::Companion) => false,
            (Holder::Nobody | Holder::Host(_) | Holder::Unknown(_), _) | (Holder::Stub, Role::Chosen) => true,
        }
    }

    /// Whether undoing gives it back to the host: what the steps take, and what a driver of user space has already. A
    /// companion that `pci-stub` has was not taken by any plan.
    #[must_use]
    pub fn goes_back(&self) -> bool {
        self.needs_binding() || matches!(self.holder, Holder::UserSpace(_))
    }

    /// Whether its driver before was the host's and is not known any more: the kernel picks one when it goes back.
    #[must_use]
    pub fn has_left(&self) -> bool {
        matches!(self.holder, Holder::UserSpace(_))
    }

    /// Its name in libvirt: `pci_0000_04_00_0`.
    #[must_use]
    pub fn libvirt_name(&self) -> String {
        libvirt_name(self.bdf)
    }

    /// The libvirt element that gives it to a guest. Managed: libvirt takes it from its driver when the guest starts,
    /// and gives it back when the guest ends. Not managed: it must be detached before ([`Self::detach`]), and stays so.
    #[must_use]
    pub fn hostdev(&self, managed: bool) -> String {
        let devfn = self.bdf.devfn();
        format!(
            "<hostdev mode='subsystem' type='pci' managed='{}'>\n  <driver name='vfio'/>\n  <source>\n    <address \
             domain='0x{}' bus='0x{:02x}' slot='0x{:02x}' function='0x{:x}'/>\n  </source>\n</hostdev>\n",
            if managed { "yes" } else { "no" },
            self.bdf.segment,
            self.bdf.bus(),
            devfn.device(),
            devfn.function(),
        )
    }

    /// The option of QEMU that gives it to a guest.
    #[must_use]
    pub fn qemu_option(&self) -> String {
        format!("-device {DRIVER},host={}", self.bdf)
    }

    /// The `virsh` command that takes it from the host.
    #[must_use]
    pub fn detach(&self) -> Step {
        Step {
            purpose: Purpose::Bind,
            function: Some(self.bdf),
            command: format!("virsh nodedev-detach {}", self.libvirt_name()),
        }
    }

    /// The `virsh` command that gives it back to the host.
    #[must_use]
    pub fn reattach(&self) -> Step {
        Step {
            purpose: Purpose::GiveBack,
            function: Some(self.bdf),
            command: format!("virsh nodedev-reattach {}", self.libvirt_name()),
        }
    }
}

/// The name of a function in libvirt: `pci_0000_04_00_0`.
#[must_use]
pub fn libvirt_name(bdf: Bdf) -> String {
    let devfn = bdf.devfn();
    format!(
        "pci_{}_{:02x}_{:02x}_{:x}",
        bdf.segment,
        bdf.bus(),
        devfn.device(),
        devfn.function()
    )
}

impl Assignment {
    /// The functions that must be bound to [`DRIVER`] and are not yet, ascending.
    pub fn to_bind(&self) -> impl Iterator<Item = &Move> {
        self.functions.iter().filter(|f| f.needs_binding())
    }

    /// The functions that the guest gets, ascending.
    pub fn chosen(&self) -> impl Iterator<Item = &Move> {
        self.functions.iter().filter(|f| f.role == Role::Chosen)
    }

    /// The functions that come along, ascending.
    pub fn companions(&self) -> impl Iterator<Item = &Move> {
        self.functions.iter().filter(|f| f.role == Role::Companion)
    }

    /// What is not as it should be, or is not known.
    pub fn warnings(&self) -> impl Iterator<Item = &Item> {
        self.items.iter().filter(|item| item.answer != Answer::Yes)
    }

    /// Whether the steps lead to a guest that has the functions: *no* if something stands in the way that they do not
    /// remove, such as a disk that the host itself needs.
    #[must_use]
    pub fn answer(&self) -> Answer {
        overall(&self.items)
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("no driver"),
            Self::UserSpace(driver) | Self::Host(driver) => f.write_str(driver),
            Self::Stub => f.write_str(check::STUB),
            Self::Unknown(_) => f.write_str("driver not known"),
        }
    }
}

#[cfg(test)]
mod tests;
