//! What the host itself cannot do without: the disks of its file systems, the interfaces that it is reached over.

use std::collections::BTreeSet;

use super::base_name;
use crate::knowledge::{Knowledge, Obstacle};
use crate::tree::Tree;

/// Disks below `/`, `/boot`, `/boot/efi` and `/usr`, as far as their device names lead to one.
pub(super) fn disks(tree: &Tree) -> Knowledge<Vec<String>> {
    let mounts = match tree.read("proc/self/mounts", 1 << 20) {
        Knowledge::Known(mounts) => mounts,
        Knowledge::Absent => return Knowledge::Unknown(Obstacle::NotIncluded("proc/self/mounts".to_owned())),
        Knowledge::Unknown(obstacle) => return Knowledge::Unknown(obstacle),
    };
    let devices = String::from_utf8_lossy(&mounts)
        .lines()
        .filter_map(|line| {
            let (device, rest) = line.strip_prefix("/dev/")?.split_once(' ')?;
            let place = rest.split(' ').next()?;
            matches!(place, "/" | "/boot" | "/boot/efi" | "/usr" | "/var" | "/home")
                .then(|| base_name(device).to_owned())
        })
        .take(MAX_DEVICES)
        .collect();
    disks_below(tree, devices)
}

/// Block devices that are followed down to disks.
const MAX_DEVICES: usize = 256;
/// Disks of a machine that are looked at.
const MAX_DISKS: usize = 4096;

/// The disks that block devices lie on: themselves, the disk of a partition, what a mapped device or array is made of.
/// Unknown if one leads to no disk: any disk may be the one.
fn disks_below(tree: &Tree, mut devices: Vec<String>) -> Knowledge<Vec<String>> {
    let listed = tree.names("sys/block");
    // Mapped devices are mounted by another name than sysfs uses.
    let known: Vec<(&String, Option<String>)> = listed
        .known()
        .into_iter()
        .flatten()
        .take(MAX_DISKS)
        .map(|disk| (disk, tree.text(&format!("sys/block/{disk}/dm/name")).known().cloned()))
        .collect();
    let mut seen = BTreeSet::new();
    let mut disks = BTreeSet::new();
    while let Some(name) = devices.pop() {
        if seen.len() >= MAX_DEVICES || !seen.insert(name.clone()) {
            continue;
        }
        let lies_on = |(disk, mapped): &&(&String, Option<String>)| {
            **disk == name || mapped.as_ref() == Some(&name) || tree.has(&format!("sys/block/{disk}/{name}"))
        };
        let mut found = false;
        for (disk, _) in known.iter().filter(lies_on) {
            found = true;
            match tree.names(&format!("sys/block/{disk}/slaves")).known() {
                Some(below) if !below.is_empty() => devices.extend(below.iter().take(MAX_DEVICES).cloned()),
                _ => {
                    disks.insert((*disk).clone());
                }
            }
        }
        if !found {
            let why = "which disk this is on cannot be told".to_owned();
            return Knowledge::Unknown(Obstacle::Failed(format!("/dev/{name}"), why));
        }
    }
    Knowledge::Known(disks.into_iter().collect())
}

/// Where the kernel lists network interfaces.
const INTERFACES: &str = "sys/class/net";
/// Links in an interface's folder to the interfaces it is made of: ports of a bridge, parts of a bond, the carrier of
/// a VLAN.
pub(crate) const LOWER: &str = "lower_";
/// Interfaces that are followed down to devices.
const MAX_INTERFACES: usize = 1024;

/// Interfaces that a default route leads over, and those that such ones are made of.
pub(super) fn interfaces(tree: &Tree) -> Knowledge<Vec<String>> {
    let mut names = match tree.read("proc/net/route", 1 << 20) {
        Knowledge::Known(table) => routes(&String::from_utf8_lossy(&table)),
        Knowledge::Absent => return Knowledge::Unknown(Obstacle::NotIncluded("proc/net/route".to_owned())),
        Knowledge::Unknown(obstacle) => return Knowledge::Unknown(obstacle),
    };
    // Kernels without IPv6 have no such table.
    if let Knowledge::Known(table) = tree.read("proc/net/ipv6_route", 1 << 20) {
        names.extend(routes_v6(&String::from_utf8_lossy(&table)));
    }
    let mut found = BTreeSet::new();
    while let Some(name) = names.pop() {
        if found.len() >= MAX_INTERFACES || !found.insert(name.clone()) {
            continue;
        }
        let parts = tree.names(&format!("{INTERFACES}/{name}"));
        let lower = parts
            .known()
            .into_iter()
            .flatten()
            .filter_map(|part| part.strip_prefix(LOWER));
        names.extend(lower.take(MAX_INTERFACES).map(str::to_owned));
    }
    Knowledge::Known(found.into_iter().collect())
}

/// Destination 0 in the kernel's table: interface, then destination.
fn routes(table: &str) -> Vec<String> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, destination) = (words.next()?, words.next()?);
            (destination == "00000000").then(|| name.to_owned())
        })
        .collect()
}

/// Destination and length of prefix, then much else, then the interface. The loopback has a route that refuses.
pub(crate) fn routes_v6(table: &str) -> Vec<String> {
    table
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let (destination, length) = (words.next()?, words.next()?);
            let name = words.next_back()?;
            let default = destination.bytes().all(|b| b == b'0') && length == "00";
            (default && name != "lo").then(|| name.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Archive, Entry};

    #[test]
    fn a_route_over_a_bridge_of_bonds_needs_the_cards_below() {
        let mut archive = Archive::default();
        let v4 = "Iface Destination\nbr0 00000000\neth7 0000A8C0\n";
        let v6 = "00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe80 00000400 1 0 1 wlan0\n\
            00000000000000000000000000000000 00 00000000000000000000000000000000 00 0 ffffffff 1 0 200200 lo\n\
            fe800000000000000000000000000000 40 00000000000000000000000000000000 00 0 00000100 1 0 1 eth7\n";
        for (path, text) in [("proc/net/route", v4), ("proc/net/ipv6_route", v6)] {
            archive.insert(path.to_owned(), Entry::File(text.as_bytes().to_vec()));
        }
        for (upper, lower) in [("br0", "bond0"), ("bond0", "eth0"), ("bond0", "eth1"), ("bond0", "br0")] {
            let path = format!("{INTERFACES}/{upper}/{LOWER}{lower}");
            archive.insert(path, Entry::Link(format!("../{lower}")));
        }
        let names = ["bond0", "br0", "eth0", "eth1", "wlan0"].map(str::to_owned).to_vec();
        assert_eq!(interfaces(&Tree::Archive(archive)), Knowledge::Known(names));
    }
}
