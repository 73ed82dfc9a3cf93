//! From what a file says to a machine that can exist.

use std::collections::HashMap;

use iommu_groups::pci::acs;
use iommu_types::{AddrRange, Bdf, HostPhys, NodeId, PAGE_SIZE, Segment, SourceId};
use toml::Spanned;

use super::file::{self, AcsBit, File, Kind, Mistake};
use super::{
    AtsrDescription, BusRange, FunctionDescription, FunctionKind, HostBridge, MachineDescription, RmrrDescription,
    SatcDescription, ScopeDescription, ScopeKind, UnitDescription,
};
use crate::memory::{LAST_32_BIT, MemoryRange};

type Checked<T> = Result<T, Mistake>;

pub(super) fn description(file: &File) -> Checked<MachineDescription> {
    let width = *file.host_address_width.get_ref();
    if !(32..=52).contains(&width) {
        return Err(Mistake::at(
            &file.host_address_width,
            format!("host-address-width is {width}: expected 32 to 52 bits"),
        ));
    }
    let memory = memory(&file.memory, width)?;
    let host_bridges = host_bridges(&file.host_bridge, &memory)?;
    let units = units(&file.unit, &memory)?;
    Ok(MachineDescription {
        name: file.name.clone(),
        host_address_width: width,
        interrupt_remapping: file.interrupt_remapping,
        x2apic_opt_out: file.x2apic_opt_out,
        dma_opt_in: file.dma_opt_in,
        rmrrs: each(&file.rmrr, rmrr)?,
        atsrs: each(&file.atsr, atsr)?,
        satcs: each(&file.satc, satc)?,
        functions: functions(&file.function, &host_bridges)?,
        memory,
        host_bridges,
        units,
    })
}

fn each<T, U>(items: &[Spanned<T>], convert: impl Fn(&Spanned<T>) -> Checked<U>) -> Checked<Vec<U>> {
    items.iter().map(convert).collect()
}

/// `size` bytes from `base`, which must be whole pages below 2^52.
fn pages<T>(at: &Spanned<T>, what: &str, base: u64, size: u64) -> Checked<AddrRange<HostPhys>> {
    let range = AddrRange::from_base_len(HostPhys::new(base), size).filter(|range| range.last().raw() >> 52 == 0);
    match range {
        Some(range) if range.to_pages() == range => Ok(range),
        Some(_) => Err(Mistake::at(
            at,
            format!("{what} of {size:#x} bytes at {base:#x}: expected base and size to be multiples of 4 KiB"),
        )),
        None => Err(Mistake::at(
            at,
            format!("{what} of {size:#x} bytes at {base:#x}: expected at least 4 KiB, ending below 2^52"),
        )),
    }
}

fn memory(items: &[Spanned<file::Memory>], width: u8) -> Checked<Vec<MemoryRange>> {
    let mut memory: Vec<MemoryRange> = Vec::new();
    for item in items {
        let entry = item.get_ref();
        let range = pages(item, "memory", entry.base.0, entry.size.0)?;
        if range.last().raw() >> width != 0 {
            return Err(Mistake::at(
                item,
                format!("memory {range} ends above the host-address-width: expected an end below 2^{width}"),
            ));
        }
        if let Some(other) = memory.iter().find(|other| other.range.overlaps(range)) {
            return Err(Mistake::at(
                item,
                format!(
                    "memory {range} overlaps memory {}: expected separate ranges",
                    other.range
                ),
            ));
        }
        memory.push(MemoryRange {
            node: NodeId(entry.node),
            range,
        });
    }
    memory.sort_by_key(|range| range.range.first());
    Ok(memory)
}

fn host_bridges(items: &[Spanned<file::HostBridge>], memory: &[MemoryRange]) -> Checked<Vec<HostBridge>> {
    let mut bridges: Vec<HostBridge> = Vec::new();
    for item in items {
        let entry = item.get_ref();
        let at = entry.window.get_ref();
        let window = pages(&entry.window, "window", at.base.0, at.size.0)?;
        if window.last() > LAST_32_BIT {
            return Err(Mistake::at(
                &entry.window,
                format!("window {window} reaches past 4 GiB: expected an end at or below {LAST_32_BIT}"),
            ));
        }
        if let Some(range) = memory.iter().find(|range| range.range.overlaps(window)) {
            return Err(Mistake::at(
                &entry.window,
                format!(
                    "window {window} overlaps memory {}: expected addresses without memory",
                    range.range
                ),
            ));
        }
        let segment = Segment::from(entry.segment);
        let clash = |other: &HostBridge| {
            other.window.overlaps(window)
                || (other.segment == segment
                    && (other.buses.contains(entry.buses.first) || entry.buses.contains(other.buses.first)))
        };
        if let Some(other) = bridges.iter().find(|other| clash(other)) {
            return Err(Mistake::at(
                item,
                format!(
                    "host bridge with buses {} and window {window} collides with the one with buses {} and window {}: \
                     expected buses and windows of its own",
                    entry.buses, other.buses, other.window
                ),
            ));
        }
        bridges.push(HostBridge {
            segment,
            buses: entry.buses,
            window,
        });
    }
    Ok(bridges)
}

fn scopes(items: &[Spanned<file::Scope>], allowed: &[Kind]) -> Checked<Vec<ScopeDescription>> {
    each(items, |item| {
        let scope = item.get_ref();
        if !allowed.contains(&scope.kind) {
            return Err(Mistake::at(
                item,
                format!(
                    "scope of kind {:?} is not possible here: expected {allowed:?}",
                    scope.kind
                ),
            ));
        }
        let id = || {
            scope
                .id
                .ok_or_else(|| Mistake::at(item, "expected `id`: the APIC ID or HPET number"))
        };
        let kind = match scope.kind {
            Kind::IoApic => ScopeKind::IoApic(id()?),
            Kind::Hpet => ScopeKind::Hpet(id()?),
            Kind::Endpoint | Kind::SubHierarchy if scope.id.is_some() => {
                return Err(Mistake::at(item, "`id` is for io-apic and hpet scopes: remove it"));
            }
            Kind::Endpoint => ScopeKind::Endpoint,
            Kind::SubHierarchy => ScopeKind::SubHierarchy,
        };
        Ok(ScopeDescription {
            kind,
            path: scope.path.clone(),
        })
    })
}

fn units(items: &[Spanned<file::Unit>], memory: &[MemoryRange]) -> Checked<Vec<UnitDescription>> {
    let mut units: Vec<UnitDescription> = Vec::new();
    for item in items {
        let entry = item.get_ref();
        let segment = Segment::from(entry.segment);
        let registers = pages(&entry.base, "registers", entry.base.get_ref().0, PAGE_SIZE)?;
        if let Some(other) = units.iter().find(|unit| unit.base == registers.first()) {
            return Err(Mistake::at(
                &entry.base,
                format!("unit {} has this base too: expected an address of its own", other.name),
            ));
        }
        if registers.first() == HostPhys::ZERO || memory.iter().any(|range| range.range.overlaps(registers)) {
            return Err(Mistake::at(
                &entry.base,
                format!("registers at {registers}: expected an address that is not 0 and not memory"),
            ));
        }
        if let Some(other) = units
            .iter()
            .find(|unit| unit.segment == segment && unit.include_pci_all)
        {
            return Err(Mistake::at(
                item,
                format!(
                    "unit {} serves everything else of segment {segment}: expected it to be the last unit of the segment",
                    other.name
                ),
            ));
        }
        let allowed: &[Kind] = if entry.include_pci_all {
            &[Kind::IoApic, Kind::Hpet]
        } else {
            &[Kind::Endpoint, Kind::SubHierarchy, Kind::IoApic, Kind::Hpet]
        };
        if entry.scope.is_empty() && !entry.include_pci_all {
            return Err(Mistake::at(item, "expected `scope` or `include-pci-all = true`"));
        }
        units.push(UnitDescription {
            name: entry.name.get_ref().clone(),
            base: registers.first(),
            segment,
            node: entry.node.map(NodeId),
            include_pci_all: entry.include_pci_all,
            scopes: scopes(&entry.scope, allowed)?,
        });
    }
    Ok(units)
}

fn rmrr(item: &Spanned<file::Rmrr>) -> Checked<RmrrDescription> {
    let entry = item.get_ref();
    if entry.scope.is_empty() {
        return Err(Mistake::at(item, "expected at least one device in `scope`"));
    }
    Ok(RmrrDescription {
        segment: Segment::from(entry.segment),
        range: pages(item, "reserved memory", entry.base.0, entry.size.0)?,
        scopes: scopes(&entry.scope, &[Kind::Endpoint, Kind::SubHierarchy])?,
    })
}

fn atsr(item: &Spanned<file::Atsr>) -> Checked<AtsrDescription> {
    let entry = item.get_ref();
    if entry.all_ports != entry.scope.is_empty() {
        return Err(Mistake::at(
            item,
            "expected either `all-ports = true` or root ports in `scope`",
        ));
    }
    Ok(AtsrDescription {
        segment: Segment::from(entry.segment),
        all_ports: entry.all_ports,
        scopes: scopes(&entry.scope, &[Kind::SubHierarchy])?,
    })
}

fn satc(item: &Spanned<file::Satc>) -> Checked<SatcDescription> {
    let entry = item.get_ref();
    let scopes = scopes(&entry.scope, &[Kind::Endpoint])?;
    if scopes.is_empty() || scopes.iter().any(|scope| scope.path.hops.len() != 1) {
        return Err(Mistake::at(
            item,
            "expected integrated endpoints in `scope`, each with a path of one hop",
        ));
    }
    Ok(SatcDescription {
        segment: Segment::from(entry.segment),
        atc_required: entry.atc_required,
        scopes,
    })
}

impl AcsBit {
    fn mask(self) -> u16 {
        match self {
            Self::SourceValidation => acs::SOURCE_VALIDATION,
            Self::TranslationBlocking => acs::TRANSLATION_BLOCKING,
            Self::RequestRedirect => acs::REQUEST_REDIRECT,
            Self::CompletionRedirect => acs::COMPLETION_REDIRECT,
            Self::UpstreamForwarding => acs::UPSTREAM_FORWARDING,
            Self::EgressControl => acs::EGRESS_CONTROL,
            Self::DirectTranslated => acs::DIRECT_TRANSLATED,
        }
    }
}

/// The class code of a function whose file entry leaves it out.
fn default_class(kind: FunctionKind) -> u32 {
    if kind.is_bridge() {
        0x06_0400 // PCI-to-PCI bridge
    } else {
        0x08_8000 // other system peripheral
    }
}

fn functions(items: &[Spanned<file::Function>], roots: &[HostBridge]) -> Checked<Vec<FunctionDescription>> {
    let mut functions: Vec<FunctionDescription> = Vec::new();
    let mut names: HashMap<&str, usize> = HashMap::new();
    for item in items {
        let entry = item.get_ref();
        if names.insert(entry.name.get_ref(), functions.len()).is_some() {
            return Err(Mistake::at(
                &entry.name,
                "another function has this name: expected a name of its own",
            ));
        }
        let kind = *entry.kind.get_ref();
        let bdf = address(item, &functions, &names)?;
        if functions.iter().any(|other| other.bdf == bdf) {
            return Err(Mistake::at(
                item,
                format!("{bdf} is taken: expected an address of its own"),
            ));
        }
        let root = roots
            .iter()
            .find(|root| root.segment == bdf.segment && root.buses.contains(bdf.bus()))
            .ok_or_else(|| Mistake::at(item, format!("no [[host-bridge]] has the bus of {bdf}: expected one")))?;
        let parent = if bdf.bus() == root.buses.first {
            None
        } else {
            Some(parent_of(item, bdf, &functions)?)
        };
        let above = parent.and_then(|parent| functions.get(parent));
        check_kind(entry, bdf, above)?;
        let buses = check_buses(
            item,
            bdf,
            above.and_then(|above| above.buses).unwrap_or(root.buses),
            &functions,
        )?;
        if bdf.devfn().function() != 0 {
            // Root ports of one device number need no function 0 here: the root complex may hide it.
            let answered = (kind == FunctionKind::RootPort && entry.multifunction)
                || functions.iter().any(|other| {
                    other.bdf.segment == bdf.segment
                        && same_slot(other.bdf, bdf)
                        && other.bdf.devfn().function() == 0
                        && other.multifunction
                });
            if !answered {
                return Err(Mistake::at(
                    item,
                    format!("{bdf}: expected function 0 of the device before it, with `multifunction = true`"),
                ));
            }
        }
        let dma_bits = entry.dma_bits.as_ref().map_or(64, |bits| *bits.get_ref());
        if let Some(bits) = &entry.dma_bits
            && ![32, 64].contains(bits.get_ref())
        {
            return Err(Mistake::at(bits, format!("dma-bits is {dma_bits}: expected 32 or 64")));
        }
        if entry.engine && kind.is_bridge() {
            return Err(Mistake::at(
                item,
                "a bridge has no DMA engine: remove `engine`, or put a device below it",
            ));
        }
        if entry.registers && !kind.is_bridge() {
            return Err(Mistake::at(
                item,
                "`registers` is for bridges and ports: remove it, other functions have registers anyway",
            ));
        }
        if let Some(class) = &entry.class
            && *class.get_ref() >> 24 != 0
        {
            return Err(Mistake::at(class, "expected a class code of 24 bits, as in 0x020000"));
        }
        functions.push(FunctionDescription {
            name: entry.name.get_ref().clone(),
            bdf,
            kind,
            parent,
            vendor: entry.ids.0,
            device: entry.ids.1,
            class: entry
                .class
                .as_ref()
                .map_or(default_class(kind), |class| *class.get_ref()),
            multifunction: entry.multifunction,
            buses,
            acs: entry
                .acs
                .as_ref()
                .map(|bits| bits.iter().fold(0, |word, bit| word | bit.mask())),
            dma_bits,
            engine: entry.engine,
            registers: entry.registers,
            synthetic: false,
        });
    }
    Ok(functions)
}

fn same_slot(a: Bdf, b: Bdf) -> bool {
    a.bus() == b.bus() && a.devfn().device() == b.devfn().device()
}

/// The address of a function: given, or the slot below a named parent.
fn address(
    item: &Spanned<file::Function>,
    functions: &[FunctionDescription],
    names: &HashMap<&str, usize>,
) -> Checked<Bdf> {
    let entry = item.get_ref();
    match (&entry.bdf, &entry.parent, &entry.slot) {
        (Some(bdf), None, None) => Ok(bdf.get_ref().0),
        (None, Some(parent), Some(slot)) => {
            let above = names
                .get(parent.get_ref().as_str())
                .and_then(|index| functions.get(*index));
            let (above, buses) = above
                .and_then(|above| Some((above, above.buses?)))
                .ok_or_else(|| Mistake::at(parent, "expected the name of a bridge or port that stands before"))?;
            Ok(Bdf::new(
                above.bdf.segment,
                SourceId::new(buses.first, slot.get_ref().0),
            ))
        }
        _ => Err(Mistake::at(
            item,
            "expected `bdf`, or `parent` and `slot`, to say where the function is",
        )),
    }
}

fn parent_of(item: &Spanned<file::Function>, bdf: Bdf, functions: &[FunctionDescription]) -> Checked<usize> {
    functions
        .iter()
        .position(|f| f.bdf.segment == bdf.segment && f.buses.is_some_and(|buses| buses.first == bdf.bus()))
        .ok_or_else(|| {
            Mistake::at(
                item,
                format!(
                    "nothing leads to bus {:02x}: expected a bridge before it whose `buses` start with {:02x}",
                    bdf.bus(),
                    bdf.bus()
                ),
            )
        })
}

fn check_kind(entry: &file::Function, bdf: Bdf, above: Option<&FunctionDescription>) -> Checked<()> {
    use FunctionKind as K;
    let kind = *entry.kind.get_ref();
    let allowed: &[Option<K>] = match kind {
        K::RootPort | K::IntegratedEndpoint => &[None],
        K::SwitchUpstream | K::PcieToPciBridge => &[Some(K::RootPort), Some(K::SwitchDownstream)],
        K::SwitchDownstream => &[Some(K::SwitchUpstream)],
        // An endpoint function may also sit beside the downstream ports inside a switch.
        K::Endpoint => &[Some(K::RootPort), Some(K::SwitchDownstream), Some(K::SwitchUpstream)],
        // Below a port stands a PCIe-to-PCI bridge that does not say what it is.
        K::PciBridge => &[
            None,
            Some(K::PcieToPciBridge),
            Some(K::PciBridge),
            Some(K::RootPort),
            Some(K::SwitchDownstream),
        ],
        K::Conventional => &[None, Some(K::PcieToPciBridge), Some(K::PciBridge)],
    };
    if !allowed.contains(&above.map(|above| above.kind)) {
        let names: Vec<&str> = allowed.iter().map(|kind| kind.map_or("a root bus", K::name)).collect();
        return Err(Mistake::at(
            &entry.kind,
            format!(
                "{kind} {} {bdf} is below {}: expected it below {}",
                entry.name.get_ref(),
                above.map_or("a root bus", |above| above.kind.name()),
                names.join(" or ")
            ),
        ));
    }
    let point_to_point = above.is_some_and(|above| matches!(above.kind, K::RootPort | K::SwitchDownstream));
    if point_to_point && bdf.devfn().device() != 0 {
        return Err(Mistake::at(
            &entry.kind,
            format!("{bdf}: expected device number 00, the only one on a link below a port"),
        ));
    }
    Ok(())
}

/// The buses of a bridge: inside its parent's and apart from everyone else's.
fn check_buses(
    item: &Spanned<file::Function>,
    bdf: Bdf,
    above: BusRange,
    functions: &[FunctionDescription],
) -> Checked<Option<BusRange>> {
    let entry = item.get_ref();
    let kind = *entry.kind.get_ref();
    match &entry.buses {
        None if kind.is_bridge() => Err(Mistake::at(
            item,
            format!("{kind} {bdf}: expected `buses`, as in \"01-03\""),
        )),
        None => Ok(None),
        Some(buses) if !kind.is_bridge() => Err(Mistake::at(
            buses,
            format!("{kind} {bdf} has no bus below it: remove `buses`"),
        )),
        Some(buses) => {
            let range = *buses.get_ref();
            if !(above.contains(range.first) && above.contains(range.last)) || range.contains(bdf.bus()) {
                return Err(Mistake::at(
                    buses,
                    format!(
                        "buses {range} below {bdf}: expected them inside {above} and above bus {:02x}",
                        bdf.bus()
                    ),
                ));
            }
            let sibling = functions.iter().find(|other| {
                other.bdf.segment == bdf.segment
                    && other.bdf.bus() == bdf.bus()
                    && other
                        .buses
                        .is_some_and(|b| b.contains(range.first) || range.contains(b.first))
            });
            match sibling {
                Some(other) => Err(Mistake::at(
                    buses,
                    format!(
                        "buses {range} overlap those of {}: expected buses of its own",
                        other.name
                    ),
                )),
                None => Ok(Some(range)),
            }
        }
    }
}
