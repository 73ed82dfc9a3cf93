//! A machine from sysfs, procfs and ACPI tables: live, below another root, or in a snapshot.

use std::collections::{BTreeMap, BTreeSet};

use iommu_groups::BusId;
use iommu_groups::pci::{bridge, class, header};
use iommu_types::{AddrRange, Bdf, HostPhys, Iova, NodeId, Segment};
use vtd_spec::register::{Capability, ExtendedCapability};

use crate::config::ConfigSpace;
use crate::knowledge::{Knowledge, Obstacle};
use crate::listing;
use crate::log::{self, Log};
use crate::machine::{self, KernelGroup, Machine, Origin, PciFunction, ReservedRegion, Unit};
use crate::platform::Platform;
use crate::tree::Tree;
use crate::vmd;

mod space;
pub(crate) mod vital;

/// Bytes of an ACPI table.
pub(crate) const MAX_TABLE: usize = 1 << 20;
/// Functions of a machine.
const MAX_FUNCTIONS: usize = 1 << 17;
/// Where sysfs lists PCI functions.
pub(crate) const DEVICES: &str = "sys/bus/pci/devices";
/// Where the kernel shows its groups.
pub(crate) const GROUPS: &str = "sys/kernel/iommu_groups";
/// Where the kernel shows its IOMMUs.
pub(crate) const UNITS: &str = "sys/class/iommu";
/// Where the firmware's tables are.
pub(crate) const TABLES: &str = "sys/firmware/acpi/tables";
/// Files of VFIO modules that tell how they were loaded.
pub(crate) const PARAMETERS: [(&str, &str); 4] = [
    ("vfio_iommu_type1", "allow_unsafe_interrupts"),
    ("vfio_iommu_type1", "dma_entry_limit"),
    ("vfio", "enable_unsafe_noiommu_mode"),
    ("vfio_pci", "disable_idle_d3"),
];
/// Where logs may be, first the one that a snapshot holds.
pub(crate) const LOGS: [&str; 3] = ["var/log/dmesg", "var/log/kern.log", "var/log/messages"];

pub(crate) fn read(tree: &Tree, origin: Origin) -> Machine {
    let mut notes = Vec::new();
    let mut wide_domains = Vec::new();
    let mut places: BTreeMap<Bdf, Place> = BTreeMap::new();
    for name in tree.names(DEVICES).known().into_iter().flatten().take(MAX_FUNCTIONS) {
        match name.parse::<Bdf>() {
            Ok(bdf) => {
                places.insert(bdf, Place::find(tree, name));
            }
            Err(_) if name.contains(':') => wide_domains.push(name.clone()),
            Err(_) => notes.push(format!("{DEVICES}/{name} is no PCI address")),
        }
    }
    let log = kernel_log(tree, &origin);
    let interfaces = owners(tree, "sys/class/net");
    let disks = owners(tree, "sys/block");
    let hierarchy = Hierarchy::of(&places);
    let mut functions: BTreeMap<Bdf, PciFunction> = places
        .iter()
        .map(|(bdf, place)| (*bdf, function(tree, *bdf, place, &hierarchy)))
        .collect();
    for (bdf, name) in interfaces {
        if let Some(f) = functions.get_mut(&bdf) {
            f.interfaces.push(name);
        }
    }
    for (bdf, name) in disks {
        if let Some(f) = functions.get_mut(&bdf) {
            f.disks.push(name);
        }
    }
    vmd::resolve(&mut functions, log.known());
    let roots: BTreeSet<BusId> = places.values().filter_map(|place| place.root).collect();
    let (units, other_iommus) = units(tree, log.known());
    let groups = groups(tree, &functions);
    Machine {
        functions,
        root_buses: (!roots.is_empty()).then(|| roots.into_iter().collect()),
        wide_domains,
        groups,
        units,
        other_iommus,
        dmar: acpi_table(tree, "DMAR"),
        ivrs: acpi_table(tree, "IVRS").map(|_| ()),
        platform: Platform::read(tree, log.known()),
        boot_parameters: tree.text("proc/cmdline"),
        kernel: kernel_release(tree),
        log,
        module_parameters: module_parameters(tree),
        vital_disks: vital::disks(tree),
        vital_interfaces: vital::interfaces(tree),
        origin,
        notes,
    }
}

/// Where a function hangs, as the path of its folder says.
#[derive(Clone, Debug, Default)]
struct Place {
    /// The folder with its files.
    folder: String,
    /// The root bus above it.
    root: Option<BusId>,
    /// The bridge right above it.
    parent: Option<Bdf>,
    /// The function that the root bus is behind: a VMD.
    behind: Option<Bdf>,
}

impl Place {
    fn find(tree: &Tree, name: &str) -> Self {
        let folder = format!("{DEVICES}/{name}");
        let mut place = Self {
            folder,
            ..Self::default()
        };
        let Knowledge::Known(target) = tree.link(&place.folder) else {
            return place;
        };
        for part in target.split('/') {
            if let Some(root) = part.strip_prefix("pci").and_then(root_bus) {
                place.root = Some(root);
                // A root bus inside another function's folder: everything on it goes through that function.
                place.behind = place.parent.take().or(place.behind);
            } else if part != name
                && let Ok(above) = part.parse()
            {
                place.parent = Some(above);
            }
        }
        place
    }
}

/// `0000:00`, from a folder's name.
fn root_bus(text: &str) -> Option<BusId> {
    let (segment, bus) = text.split_once(':')?;
    Some(BusId::new(
        Segment(u32::from_str_radix(segment, 16).ok()?),
        u8::from_str_radix(bus, 16).ok()?,
    ))
}

/// The last part of a path.
fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The function that each device of a class belongs to.
fn owners(tree: &Tree, class: &str) -> Vec<(Bdf, String)> {
    let Knowledge::Known(names) = tree.names(class) else {
        return Vec::new();
    };
    names
        .into_iter()
        .filter_map(|name| {
            let Knowledge::Known(target) = tree.link(&format!("{class}/{name}")) else {
                return None;
            };
            let owner = target.split('/').filter_map(|part| part.parse().ok()).next_back()?;
            Some((owner, name))
        })
        .collect()
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok()
}

fn function(tree: &Tree, bdf: Bdf, place: &Place, hierarchy: &Hierarchy) -> PciFunction {
    let at = |name: &str| format!("{}/{name}", place.folder);
    let number = |name: &str| match tree.text(&at(name)) {
        Knowledge::Known(text) => hexadecimal(&text),
        _ => None,
    };
    let mut config = space::read(tree, &at("config"), bdf);
    let (vendor, device) = (number("vendor"), number("device"));
    if config.byte(header::VENDOR_ID).is_none() {
        attributes(&mut config, bdf, &number, hierarchy);
    }
    let identity = vendor
        .zip(device)
        .and_then(|(vendor, device)| Some((u16::try_from(vendor).ok()?, u16::try_from(device).ok()?)));
    let group = tree.link(&at("iommu_group")).and_then(|target| {
        base_name(&target).parse().map_or_else(
            |_| Knowledge::Unknown(Obstacle::Malformed(at("iommu_group"))),
            Knowledge::Known,
        )
    });
    let physical_function = match tree.link(&at("physfn")) {
        Knowledge::Known(target) => base_name(&target).parse().ok(),
        _ => None,
    };
    PciFunction {
        bdf,
        config,
        identity: identity.map_or_else(
            || Knowledge::Unknown(Obstacle::NotIncluded(at("vendor"))),
            Knowledge::Known,
        ),
        description: None,
        group,
        driver: tree.link(&at("driver")).map(|target| base_name(&target).to_owned()),
        node: tree.text(&at("numa_node")).and_then(|text| match text.parse::<u32>() {
            Ok(node) => Knowledge::Known(NodeId(node)),
            // The kernel writes -1 where the firmware does not say.
            Err(_) => Knowledge::Absent,
        }),
        physical_function,
        real_dma: place.behind,
        interfaces: Vec::new(),
        disks: Vec::new(),
        boot_display: tree.text(&at("boot_vga")).map(|text| text == "1"),
        reset_methods: tree
            .text(&at("reset_method"))
            .map(|text| text.split_whitespace().map(str::to_owned).collect()),
    }
}

/// Configuration space as far as the attributes beside it tell, for archives that lack it.
fn attributes(config: &mut ConfigSpace, bdf: Bdf, number: &impl Fn(&str) -> Option<u64>, hierarchy: &Hierarchy) {
    let mut word = |at: u16, name: &str| {
        if let Some(value) = number(name).and_then(|value| u16::try_from(value).ok()) {
            config.put(at, &value.to_le_bytes());
        }
    };
    word(header::VENDOR_ID, "vendor");
    word(header::DEVICE_ID, "device");
    word(header::SUBSYSTEM, "subsystem_vendor");
    word(header::SUBSYSTEM + 2, "subsystem_device");
    let Some(code) = number("class").and_then(|code| u32::try_from(code).ok()) else {
        return;
    };
    let revision = number("revision")
        .and_then(|revision| u8::try_from(revision).ok())
        .unwrap_or(0);
    let [interface, sub, base, _] = code.to_le_bytes();
    config.put(header::REVISION, &[revision, interface, sub, base]);
    let is_bridge = u16::from_be_bytes([base, sub]) == class::PCI_BRIDGE;
    let several = hierarchy.slots.get(&slot(bdf)).is_some_and(|count| *count > 1);
    let layout = if is_bridge {
        header::LAYOUT_BRIDGE
    } else {
        header::LAYOUT_FUNCTION
    };
    let several = if several { header::HEADER_MULTIFUNCTION } else { 0 };
    config.put(header::CACHE_LINE_SIZE, &[0, 0, layout | several, 0]);
    if is_bridge && let Some((first, last)) = hierarchy.below.get(&bdf) {
        config.put(bridge::PRIMARY, &[bdf.bus(), *first, *last, 0]);
    }
}

/// Segment, bus and device.
fn slot(bdf: Bdf) -> (Segment, u8, u8) {
    (bdf.segment, bdf.bus(), bdf.devfn().device())
}

/// What the paths of all functions say together.
#[derive(Debug, Default)]
struct Hierarchy {
    /// Functions of each slot.
    slots: BTreeMap<(Segment, u8, u8), usize>,
    /// The lowest and highest bus below each bridge that has functions below it.
    below: BTreeMap<Bdf, (u8, u8)>,
}

impl Hierarchy {
    fn of(places: &BTreeMap<Bdf, Place>) -> Self {
        let mut hierarchy = Self::default();
        for (bdf, place) in places {
            *hierarchy.slots.entry(slot(*bdf)).or_default() += 1;
            let mut above = place.parent;
            // A path has no more bridges than there are buses.
            for _ in 0..=u8::MAX {
                let Some(bridge) = above else { break };
                let range = hierarchy.below.entry(bridge).or_insert((bdf.bus(), bdf.bus()));
                *range = (range.0.min(bdf.bus()), range.1.max(bdf.bus()));
                above = places.get(&bridge).and_then(|place| place.parent);
            }
        }
        hierarchy
    }
}

fn groups(tree: &Tree, functions: &BTreeMap<Bdf, PciFunction>) -> Knowledge<BTreeMap<u32, KernelGroup>> {
    let mut groups: BTreeMap<u32, KernelGroup> = BTreeMap::new();
    let listed = tree.names(GROUPS);
    for name in listed.known().into_iter().flatten() {
        let Ok(number) = name.parse() else { continue };
        let members = tree.names(&format!("{GROUPS}/{name}/devices"));
        let mut group = empty_group(tree, number);
        for member in members.known().into_iter().flatten() {
            match member.parse() {
                Ok(bdf) => group.functions.push(bdf),
                Err(_) => group.others.push(member.clone()),
            }
        }
        groups.insert(number, group);
    }
    for f in functions.values() {
        if let Some(number) = f.group.known() {
            let group = groups.entry(*number).or_insert_with(|| empty_group(tree, *number));
            group.functions.push(f.bdf);
        }
    }
    for group in groups.values_mut() {
        group.functions.sort_unstable();
        group.functions.dedup();
    }
    match listed {
        Knowledge::Unknown(obstacle) if groups.is_empty() => {
            // Without any link, sysfs of the functions themselves may still tell.
            if functions.values().any(|f| f.group.is_absent()) {
                Knowledge::Known(groups)
            } else {
                Knowledge::Unknown(obstacle)
            }
        }
        Knowledge::Absent if groups.is_empty() && !tree.has("sys/kernel") => {
            Knowledge::Unknown(Obstacle::NotIncluded(GROUPS.to_owned()))
        }
        _ => Knowledge::Known(groups),
    }
}

fn empty_group(tree: &Tree, number: u32) -> KernelGroup {
    let at = |name: &str| format!("{GROUPS}/{number}/{name}");
    KernelGroup {
        number,
        functions: Vec::new(),
        others: Vec::new(),
        kind: tree.text(&at("type")),
        reserved: tree
            .text(&at("reserved_regions"))
            .map(|text| text.lines().filter_map(reserved_region).collect()),
    }
}

/// `0x00000000fee00000 0x00000000feefffff msi`.
fn reserved_region(line: &str) -> Option<ReservedRegion> {
    let mut words = line.split_whitespace();
    let first = hexadecimal(words.next()?)?;
    let last = hexadecimal(words.next()?)?;
    Some(ReservedRegion {
        range: AddrRange::new(Iova::new(first), Iova::new(last))?,
        kind: words.next()?.to_owned(),
    })
}

/// Units of Intel's kind, and the names of others.
fn units(tree: &Tree, log: Option<&Log>) -> (Knowledge<Vec<Unit>>, Vec<String>) {
    let names = match tree.names(UNITS) {
        Knowledge::Known(names) => names,
        // The class exists once the kernel has an IOMMU driver, so its absence in a real sysfs means something.
        Knowledge::Absent if tree.has("sys/class") => Vec::new(),
        Knowledge::Absent => return (Knowledge::Unknown(Obstacle::NotIncluded(UNITS.to_owned())), Vec::new()),
        Knowledge::Unknown(obstacle) => {
            let units = log.map_or(Knowledge::Absent, listing::units);
            return match units {
                Knowledge::Known(units) => (Knowledge::Known(units), Vec::new()),
                _ => (Knowledge::Unknown(obstacle), Vec::new()),
            };
        }
    };
    let (ours, others): (Vec<String>, Vec<String>) = names.into_iter().partition(|name| name.starts_with("dmar"));
    let mut units: Vec<Unit> = ours.into_iter().map(|name| unit(tree, name)).collect();
    units.sort_by_key(|unit| unit.name.trim_start_matches("dmar").parse::<u32>().unwrap_or(u32::MAX));
    (Knowledge::Known(units), others)
}

fn unit(tree: &Tree, name: String) -> Unit {
    let at = |file: &str| format!("{UNITS}/{name}/intel-iommu/{file}");
    let number = |file: &str| {
        tree.text(&at(file)).and_then(|text| {
            hexadecimal(&text).map_or_else(|| Knowledge::Unknown(Obstacle::Malformed(at(file))), Knowledge::Known)
        })
    };
    // The kernel writes the version as `1:0`.
    let version = tree.text(&at("version")).and_then(|text| {
        let parse = || {
            let (major, minor) = text.split_once(':')?;
            machine::version(major.parse().ok()?, minor.parse().ok()?)
        };
        parse().map_or_else(
            || Knowledge::Unknown(Obstacle::Malformed(at("version"))),
            Knowledge::Known,
        )
    });
    Unit {
        address: number("address").map(HostPhys::new),
        version,
        cap: number("cap").map(Capability::new_with_raw_value),
        ecap: number("ecap").map(ExtendedCapability::new_with_raw_value),
        domains_used: tree.text(&at("domains_used")).and_then(|text| {
            text.parse().map_or_else(
                |_| Knowledge::Unknown(Obstacle::Malformed(at("domains_used"))),
                Knowledge::Known,
            )
        }),
        name,
    }
}

/// A table of the firmware. Containers hide the folder, which says nothing about the table.
pub(crate) fn acpi_table(tree: &Tree, name: &str) -> Knowledge<Vec<u8>> {
    match tree.read(&format!("{TABLES}/{name}"), MAX_TABLE) {
        Knowledge::Absent if !tree.has(TABLES) => Knowledge::Unknown(Obstacle::NotIncluded(format!("/{TABLES}"))),
        other => other,
    }
}

fn kernel_release(tree: &Tree) -> Knowledge<String> {
    match tree.text("proc/sys/kernel/osrelease") {
        Knowledge::Known(release) => Knowledge::Known(release),
        other => match tree.text("proc/version") {
            Knowledge::Known(version) => version
                .strip_prefix("Linux version ")
                .and_then(|rest| rest.split(' ').next())
                .map_or(other, |release| Knowledge::Known(release.to_owned())),
            _ => other,
        },
    }
}

fn kernel_log(tree: &Tree, origin: &Origin) -> Knowledge<Log> {
    if let Tree::Folder(root) = tree
        && *origin == Origin::Root("/".into())
        && root.as_os_str() == "/"
    {
        return crate::kmsg::read().map(|bytes| log::read(&bytes));
    }
    let mut answer = Knowledge::Unknown(Obstacle::NotIncluded(LOGS[0].to_owned()));
    for path in LOGS {
        match tree.read(path, log::MAX_BYTES) {
            Knowledge::Known(bytes) => return Knowledge::Known(log::read(&bytes)),
            Knowledge::Unknown(obstacle @ Obstacle::NotPermitted(_)) => answer = Knowledge::Unknown(obstacle),
            _ => {}
        }
    }
    answer
}

fn module_parameters(tree: &Tree) -> Knowledge<BTreeMap<String, String>> {
    if !tree.has("sys/module") {
        return Knowledge::Unknown(Obstacle::NotIncluded("sys/module".to_owned()));
    }
    let mut parameters = BTreeMap::new();
    for (module, parameter) in PARAMETERS {
        if let Knowledge::Known(value) = tree.text(&format!("sys/module/{module}/parameters/{parameter}")) {
            parameters.insert(format!("{module}.{parameter}"), value);
        }
    }
    Knowledge::Known(parameters)
}

#[cfg(test)]
mod tests;
