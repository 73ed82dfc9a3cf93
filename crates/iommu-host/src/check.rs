//! Whether functions can be given to a guest, and what stands in the way.

use std::collections::BTreeSet;

use acpi_dmar::{Applies, Dmar, Owner};
use iommu_groups::{Groups, Topology, pci};
use iommu_types::{Bdf, HostPhys};

use crate::buses::Buses;
use crate::caps;
use crate::doctor;
use crate::item::{self, Answer, Item};
use crate::knowledge::Knowledge;
use crate::machine::{Machine, Unit};

/// The driver that takes a device and does nothing with it.
pub(crate) const STUB: &str = "pci-stub";
/// Drivers that leave a device alone, or hand it to user space.
const HARMLESS: [&str; 2] = [STUB, "pcieport"];
/// The question whether everything else in the groups is off the host's drivers.
pub(crate) const VIABLE: &str = "viable";
/// The kernel's word for a reserved region that stops an assignment.
const DIRECT: &str = "direct";
/// Base classes of devices whose reserved regions Linux relaxes: display controllers, and USB below serial buses.
const DISPLAY: u32 = 0x03;
const USB: u32 = 0x0c03;

/// What is to be done with the functions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Memory of the guest in bytes, if it is known.
    pub memory: Option<u64>,
    /// Memory that the caller may lock, in bytes, if it is known.
    pub lockable: Option<u64>,
}

/// Checks whether `chosen` can be given to one guest.
///
/// `groups` are those of Linux's rules for `topology`; the running kernel's own count more where it has any.
#[must_use]
pub fn check(machine: &Machine, topology: &Topology, groups: &Groups, chosen: &[Bdf], plan: Plan) -> Vec<Item> {
    let mut items = vec![translation(machine)];
    items.push(endpoints(topology, chosen));
    let (members, certain) = members(machine, groups, chosen);
    items.push(viable(machine, topology, chosen, &members, certain));
    items.push(reserved(machine, topology, chosen, &members));
    items.push(doctor::interrupts(machine));
    items.extend(vital(machine, topology, &members));
    items.push(reset(machine, topology, chosen));
    items.extend(width(machine, topology, chosen, plan));
    items.extend(memory_lock(plan));
    // Where the kernel's groups are not those of the hardware, nothing above can be trusted.
    items.extend(doctor::taints(machine));
    items
}

fn list(functions: &[Bdf]) -> String {
    const SHOWN: usize = 8;
    let mut text: Vec<String> = functions.iter().take(SHOWN).map(Bdf::to_string).collect();
    if functions.len() > SHOWN {
        text.push(format!("and {} more", functions.len() - SHOWN));
    }
    text.join(" ")
}

fn translation(machine: &Machine) -> Item {
    const QUESTION: &str = "does the kernel use an IOMMU?";
    match machine.has_groups() {
        Some(true) => Item::hard("iommu", QUESTION, Answer::Yes, "it has groups"),
        Some(false) => Item::hard("iommu", QUESTION, Answer::No, "it has no groups").advise("`iommu doctor` says why"),
        None => {
            let why = machine.groups.obstacle();
            let item = Item::hard(
                "iommu",
                QUESTION,
                Answer::Unknown,
                why.map_or_else(String::new, ToString::to_string),
            );
            match why {
                Some(why) => item.advise(why.remedy()),
                None => item,
            }
        }
    }
}

fn endpoints(topology: &Topology, chosen: &[Bdf]) -> Item {
    const QUESTION: &str = "are all of them endpoints?";
    let bridges: Vec<Bdf> = chosen
        .iter()
        .copied()
        .filter(|bdf| topology.get(*bdf).is_some_and(iommu_groups::Function::is_bridge))
        .collect();
    if bridges.is_empty() {
        Item::hard(
            "endpoints",
            QUESTION,
            Answer::Yes,
            item::count(chosen.len(), "function"),
        )
    } else {
        Item::hard(
            "endpoints",
            QUESTION,
            Answer::No,
            format!("bridges: {}", list(&bridges)),
        )
        .advise("leave bridges to pcieport: only the endpoints of a group are bound to vfio-pci")
    }
}

/// All functions of the groups of the chosen ones, and whether that is certain.
fn members(machine: &Machine, groups: &Groups, chosen: &[Bdf]) -> (BTreeSet<Bdf>, bool) {
    let mut members: BTreeSet<Bdf> = chosen.iter().copied().collect();
    let mut certain = true;
    for bdf in chosen {
        let number = machine.functions.get(bdf).and_then(|f| f.group.known());
        let kernel = number.and_then(|number| machine.groups.known()?.get(number));
        if let Some(group) = kernel {
            members.extend(&group.functions);
        } else if let Some(group) = groups.of(*bdf) {
            certain &= !group.uncertain;
            members.extend(&group.members);
        } else {
            certain = false;
        }
    }
    (members, certain)
}

fn viable(machine: &Machine, topology: &Topology, chosen: &[Bdf], members: &BTreeSet<Bdf>, certain: bool) -> Item {
    const QUESTION: &str = "is everything else in their groups off the host's drivers?";
    let mut in_use = Vec::new();
    let mut unknown = Vec::new();
    for bdf in members.iter().filter(|bdf| !chosen.contains(bdf)) {
        if topology.get(*bdf).is_some_and(iommu_groups::Function::is_bridge) {
            continue;
        }
        match machine.functions.get(bdf).map(|f| &f.driver) {
            Some(Knowledge::Known(driver)) if !is_harmless(driver) => in_use.push((*bdf, driver.as_str())),
            Some(Knowledge::Unknown(_)) | None => unknown.push(*bdf),
            _ => {}
        }
    }
    if !in_use.is_empty() {
        let text: Vec<String> = in_use.iter().map(|(bdf, driver)| format!("{bdf} ({driver})")).collect();
        return Item::hard(VIABLE, QUESTION, Answer::No, format!("still in use: {}", text.join(", "))).advise(
            "unbind them or give them to the same guest; or move the card to a slot whose port isolates (`iommu explain` says what does not)",
        );
    }
    if !unknown.is_empty() {
        return Item::hard(
            VIABLE,
            QUESTION,
            Answer::Unknown,
            format!("drivers not known: {}", list(&unknown)),
        )
        .advise("list with `lspci -nnvvv`, or take a snapshot with `iommu snapshot`");
    }
    if !certain {
        return Item::hard(
            VIABLE,
            QUESTION,
            Answer::Unknown,
            "their groups rest on configuration space that could not be read",
        )
        .advise("run as root, or read a snapshot that root took");
    }
    let others = members.len().saturating_sub(chosen.len());
    Item::hard(
        VIABLE,
        QUESTION,
        Answer::Yes,
        match others {
            0 => "nothing else is in them".to_owned(),
            1 => "1 other, which is not in the way".to_owned(),
            others => format!("{others} others, none in the way"),
        },
    )
}

pub(crate) fn is_harmless(driver: &str) -> bool {
    HARMLESS.contains(&driver)
        || driver.starts_with("vfio")
        || driver.ends_with("-vfio-pci")
        || driver.ends_with("_vfio_pci")
}

fn class_of(machine: &Machine, bdf: Bdf) -> Option<u32> {
    let f = machine.functions.get(&bdf)?;
    f.config.read32(pci::header::REVISION).map(|class| class >> 8)
}

/// Whether Linux relaxes reserved regions of a function.
fn is_relaxable(machine: &Machine, bdf: Bdf) -> Option<bool> {
    let class = class_of(machine, bdf)?;
    Some(class >> 16 == DISPLAY || class >> 8 == USB)
}

fn reserved(machine: &Machine, topology: &Topology, chosen: &[Bdf], members: &BTreeSet<Bdf>) -> Item {
    const QUESTION: &str = "are they free of reserved regions of the firmware (RMRR)?";
    const ADVICE: &str = "the firmware keeps memory mapped for it, so the kernel refuses; on HPE servers the setup option `Shared Memory \
                          Features` of the slot (Gen9 and later) turns that off; `iommu dmar show` lists the regions";
    // The kernel's own word first.
    let mut asked = false;
    for bdf in chosen {
        let number = machine.functions.get(bdf).and_then(|f| f.group.known());
        let group = number.and_then(|number| machine.groups.known()?.get(number));
        if let Some(Knowledge::Known(regions)) = group.map(|group| &group.reserved) {
            asked = true;
            if let Some(region) = regions.iter().find(|region| region.kind == DIRECT) {
                let text = format!("the group of {bdf} has {}", region.range);
                return Item::hard("reserved", QUESTION, Answer::No, text).advise(ADVICE);
            }
        }
    }
    if asked {
        return Item::hard("reserved", QUESTION, Answer::Yes, "the kernel lists none that stops it");
    }
    match &machine.dmar {
        Knowledge::Known(bytes) => {
            let Ok(table) = Dmar::inspect(bytes) else {
                return Item::hard("reserved", QUESTION, Answer::Unknown, "the table cannot be read");
            };
            let buses = Buses(topology);
            let mut doubt = None;
            for rmrr in table.rmrrs() {
                for bdf in members.iter().copied() {
                    // Behind a VMD the VMD is what tables name.
                    let Some(requester) = topology.requester(bdf) else {
                        doubt = doubt.or(Some((bdf, rmrr.offset())));
                        continue;
                    };
                    match rmrr.applies_to(requester, &buses) {
                        Applies::No => {}
                        Applies::Yes { at } if is_relaxable(machine, bdf) == Some(false) => {
                            let text = format!(
                                "{bdf} is named for {:#x}..={:#x} (table offset {at:#x})",
                                rmrr.base().raw(),
                                rmrr.limit().raw()
                            );
                            return Item::hard("reserved", QUESTION, Answer::No, text).advise(ADVICE);
                        }
                        Applies::Yes { .. } if is_relaxable(machine, bdf) == Some(true) => {}
                        Applies::Yes { at } | Applies::Unknown { at } => doubt = Some((bdf, at)),
                    }
                }
            }
            match doubt {
                Some((bdf, at)) => Item::hard(
                    "reserved",
                    QUESTION,
                    Answer::Unknown,
                    format!("{bdf} may be named at table offset {at:#x}"),
                ),
                None => Item::hard(
                    "reserved",
                    QUESTION,
                    Answer::Yes,
                    "the firmware's table names none of them",
                ),
            }
        }
        Knowledge::Absent => Item::hard(
            "reserved",
            QUESTION,
            Answer::Yes,
            "there is no table that could name any",
        ),
        Knowledge::Unknown(why) => {
            Item::hard("reserved", QUESTION, Answer::Unknown, why.to_string()).advise(why.remedy())
        }
    }
}

/// Devices that the host cannot do without.
fn vital(machine: &Machine, topology: &Topology, members: &BTreeSet<Bdf>) -> Vec<Item> {
    const DISKS: &str = "can the host boot and run without their disks?";
    const NETWORK: &str = "can the host be reached without their interfaces?";
    const SCREEN: &str = "does the host keep a display?";
    let of = |pick: fn(&crate::machine::PciFunction) -> &Vec<String>, vital: &[String]| -> Vec<String> {
        members
            .iter()
            .filter_map(|bdf| machine.functions.get(bdf))
            .flat_map(|f| {
                pick(f)
                    .iter()
                    .filter(|name| vital.contains(name))
                    .map(move |name| format!("{name} on {}", f.bdf))
            })
            .collect()
    };
    let endpoint = |bdf: &Bdf| !topology.get(*bdf).is_some_and(iommu_groups::Function::is_bridge);
    let judge = |id,
                 question,
                 fact: &Knowledge<Vec<String>>,
                 pick: fn(&crate::machine::PciFunction) -> &Vec<String>,
                 advice: &str| {
        match fact {
            Knowledge::Known(vital) => {
                let found = of(pick, vital);
                if found.is_empty() {
                    Item::hard(id, question, Answer::Yes, "none of them is in use for that")
                } else {
                    Item::hard(id, question, Answer::No, found.join(", ")).advise(advice)
                }
            }
            Knowledge::Absent => Item::hard(id, question, Answer::Yes, "none of them is in use for that"),
            Knowledge::Unknown(why) => Item::hard(id, question, Answer::Unknown, why.to_string()).advise(why.remedy()),
        }
    };
    let mut items = vec![
        judge(
            "vital-disk",
            DISKS,
            &machine.vital_disks,
            |f| &f.disks,
            "it holds the host's own file systems: choose another device",
        ),
        judge(
            "vital-network",
            NETWORK,
            &machine.vital_interfaces,
            |f| &f.interfaces,
            "the default route leads over it: move the route first",
        ),
    ];
    let displays: Vec<Bdf> = machine
        .functions
        .keys()
        .copied()
        .filter(|bdf| class_of(machine, *bdf).is_some_and(|class| class >> 16 == DISPLAY))
        .collect();
    let taken: Vec<Bdf> = displays
        .iter()
        .copied()
        .filter(|bdf| members.contains(bdf) && endpoint(bdf))
        .collect();
    if !taken.is_empty() {
        // What the firmware knows and did not use for the console, nobody looks at.
        let unused = taken.iter().all(|bdf| {
            let f = machine.functions.get(bdf);
            f.is_some_and(|f| f.boot_display == Knowledge::Known(false))
        });
        items.push(if taken.len() == displays.len() {
            let detail = format!("{} is all it has", list(&taken));
            let item = if unused {
                Item::soft("vital-display", SCREEN, Answer::No, detail)
            } else {
                Item::hard("vital-display", SCREEN, Answer::No, detail)
            };
            item.advise("if it is to go all the same, make sure first that the host can be reached over the network")
        } else {
            Item::soft(
                "vital-display",
                SCREEN,
                Answer::Yes,
                match displays.len() - taken.len() {
                    1 => "1 other remains".to_owned(),
                    others => format!("{others} others remain"),
                },
            )
        });
    }
    items
}

fn reset(machine: &Machine, topology: &Topology, chosen: &[Bdf]) -> Item {
    const QUESTION: &str = "can each be reset between two owners?";
    let (mut cannot, mut unknown) = (Vec::new(), Vec::new());
    let mut ways = Vec::new();
    for bdf in chosen {
        match machine.functions.get(bdf).map(|f| &f.reset_methods) {
            Some(Knowledge::Known(methods)) if methods.is_empty() => cannot.push(*bdf),
            Some(Knowledge::Known(methods)) => ways.push(format!("{bdf} {}", methods.join(" "))),
            _ => {
                let Some(f) = topology.get(*bdf) else {
                    unknown.push(*bdf);
                    continue;
                };
                // As the kernel calls them.
                let own = [
                    ("flr", f.resets.flr),
                    ("af_flr", f.resets.advanced),
                    ("pm", f.resets.power),
                ];
                let mut names: Vec<&str> = own
                    .iter()
                    .filter(|(_, way)| way.is_present())
                    .map(|(name, _)| *name)
                    .collect();
                if topology.bus_reset_is_private(*bdf) {
                    names.push("bus");
                }
                if !names.is_empty() {
                    ways.push(format!("{bdf} {}", names.join(" ")));
                } else if own.iter().any(|(_, way)| way.is_unknown()) {
                    unknown.push(*bdf);
                } else {
                    cannot.push(*bdf);
                }
            }
        }
    }
    if !cannot.is_empty() {
        let hits: Vec<String> = cannot
            .iter()
            .filter_map(|bdf| Some((bdf, topology.bus_reset_hits(*bdf)?)))
            .filter(|(_, hit)| !hit.is_empty())
            .map(|(bdf, hit)| format!("; of {bdf}, a reset of its bus hits {} too", list(&hit)))
            .collect();
        let detail = format!("no way to reset {} alone{}", list(&cannot), hits.concat());
        Item::soft("reset", QUESTION, Answer::No, detail).advise(
            "a bus reset needs all functions of the bus in the same guest; state may leak from one guest to the next",
        )
    } else if !unknown.is_empty() {
        Item::soft(
            "reset",
            QUESTION,
            Answer::Unknown,
            format!("not known for {}", list(&unknown)),
        )
        .advise("run as root, or read a snapshot that root took")
    } else {
        Item::soft("reset", QUESTION, Answer::Yes, ways.join(", "))
    }
}

/// Register bases of the units that serve the functions, where the table tells it for all of them.
fn serving(machine: &Machine, topology: &Topology, chosen: &[Bdf]) -> Option<BTreeSet<HostPhys>> {
    let table = Dmar::inspect(machine.dmar.known()?).ok()?;
    let base = |bdf: &Bdf| match table.owner(topology.requester(*bdf)?, &Buses(topology)) {
        Owner::Unit(index, _) => Some(table.units().nth(index)?.register_base()),
        _ => None,
    };
    chosen.iter().map(base).collect()
}

fn width(machine: &Machine, topology: &Topology, chosen: &[Bdf], plan: Plan) -> Option<Item> {
    const QUESTION: &str = "do the units' addresses reach far enough?";
    let units = machine.units.known();
    if units.is_some_and(Vec::is_empty) {
        // That no unit is in use is said already.
        return None;
    }
    let serving = serving(machine, topology, chosen);
    let serves = |unit: &&Unit| match (&serving, &unit.address) {
        (Some(serving), Knowledge::Known(address)) => serving.contains(address),
        _ => true,
    };
    let bits = units
        .into_iter()
        .flatten()
        .filter(serves)
        .filter_map(|unit| unit.cap.known())
        .filter_map(|cap| caps::address_bits(*cap))
        .min();
    Some(match (bits, plan.memory) {
        (Some(bits), Some(memory)) if memory.checked_shr(u32::from(bits)).unwrap_or(0) != 0 => Item::hard(
            "width",
            QUESTION,
            Answer::No,
            format!("the narrowest unit has {bits} bits, and {memory:#x} bytes need more"),
        )
        .advise("give the guest less memory"),
        (Some(bits), _) => Item::hard(
            "width",
            QUESTION,
            Answer::Yes,
            format!("{bits} bits; keep the guest's physical addresses, BARs included, below that"),
        ),
        (None, _) => Item::soft("width", QUESTION, Answer::Unknown, "the units' registers are not known")
            .advise("read them as root, or from a log with the boot lines"),
    })
}

/// Memory of the guest is locked; BARs and tables need some besides.
fn memory_lock(plan: Plan) -> Option<Item> {
    const QUESTION: &str = "may the guest's memory be locked?";
    /// What is added for BARs and firmware, in bytes.
    const BESIDES: u64 = 1 << 30;
    let needed = plan.memory?.saturating_add(BESIDES);
    let text = format!("needs RLIMIT_MEMLOCK of about {} MiB", needed >> 20);
    Some(match plan.lockable {
        Some(limit) if limit >= needed => Item::hard("memlock", QUESTION, Answer::Yes, text),
        Some(limit) => Item::hard(
            "memlock",
            QUESTION,
            Answer::No,
            format!("{text}, and {} MiB are allowed here", limit >> 20),
        )
        .advise("raise it (`ulimit -l`, LimitMEMLOCK= in the unit file), or let libvirt do so"),
        None => {
            Item::soft("memlock", QUESTION, Answer::Unknown, text).advise("check the limit of whoever starts the guest")
        }
    })
}

#[cfg(test)]
mod tests;
