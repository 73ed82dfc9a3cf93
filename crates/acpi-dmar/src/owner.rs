//! Which unit serves a device: explicit scope before INCLUDE_PCI_ALL, per segment (VT-d §8.3, §8.3.1).

use core::fmt;

use iommu_types::{Bdf, SourceId};

use crate::matching::{ScopeMatch, match_scope};
use crate::scope::{DeviceScope, PathEnd, ScopeType};
use crate::structure::{Drhd, Malformed, Structure};
use crate::table::Dmar;
use crate::topology::BusTopology;

/// Who serves a device. Offsets are bytes from the start of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The unit with this index (its position among [`Dmar::units`]), and the statement that says so.
    Unit(usize, Why),
    /// No unit: the whole table was read and nothing in it covers the device. Its DMA is not remapped.
    NotCovered,
    /// It cannot be known. Treat the device as one that no unit contains.
    Unknown(Doubt),
}

impl Owner {
    /// The unit's index, when it is known.
    #[must_use]
    pub const fn unit(self) -> Option<usize> {
        match self {
            Self::Unit(index, _) => Some(index),
            Self::NotCovered | Self::Unknown(_) => None,
        }
    }
}

/// The statement of the table that makes a unit the owner of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A scope entry names the function itself.
    Named {
        /// Offset of the entry.
        scope: usize,
        /// The path starts on a bus that is not a root bus. It was taken for the function's own bus, as
        /// Linux does; the firmware should give the path from the root.
        broken_path: bool,
    },
    /// A sub-hierarchy entry names a bridge above the function.
    Below {
        /// Offset of the entry.
        scope: usize,
        /// The bridge.
        bridge: Bdf,
    },
    /// No unit lists the function, and the unit serves all the rest of the segment.
    IncludePciAll {
        /// Offset of the unit's structure.
        unit: usize,
    },
    /// A scope entry lists the I/O APIC, HPET or namespace device.
    Listed {
        /// Offset of the entry.
        scope: usize,
        /// What the entry names.
        kind: ScopeType,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named {
                scope,
                broken_path: false,
            } => write!(f, "named by the scope at {scope:#x}"),
            Self::Named {
                scope,
                broken_path: true,
            } => write!(
                f,
                "named by the scope at {scope:#x}, whose path does not start on a root bus"
            ),
            Self::Below { scope, bridge } => write!(f, "below {bridge}, named by the scope at {scope:#x}"),
            Self::IncludePciAll { unit } => write!(f, "not listed; INCLUDE_PCI_ALL of the unit at {unit:#x}"),
            Self::Listed { scope, kind } => write!(f, "{kind} listed by the scope at {scope:#x}"),
        }
    }
}

/// Why the owner of a device cannot be known. Offsets are bytes from the start of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// The walk over the table hit something unreadable: a unit that lists the device may be behind it.
    Unreadable(Malformed),
    /// A scope path that may lead to the device, or above it, cannot be followed.
    Path {
        /// Offset of the entry.
        scope: usize,
    },
    /// A unit without INCLUDE_PCI_ALL lists something of an unknown type, which may be the device.
    UnknownScope {
        /// Offset of the entry.
        scope: usize,
    },
    /// Two units claim the device equally well.
    Conflict {
        /// Offset of the first claim (entry or unit).
        first: usize,
        /// Offset of the second.
        second: usize,
    },
    /// The unit that serves the device has no usable register base (0 or all ones).
    UnusableUnit {
        /// Index of the unit.
        index: usize,
        /// Offset of the unit's structure.
        unit: usize,
    },
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable(malformed) => write!(f, "the table cannot be read to its end: {malformed}"),
            Self::Path { scope } => write!(f, "the path of the scope at {scope:#x} cannot be followed"),
            Self::UnknownScope { scope } => write!(f, "the scope at {scope:#x} has an unknown type"),
            Self::Conflict { first, second } => {
                write!(f, "claimed by two units, at {first:#x} and at {second:#x}")
            }
            Self::UnusableUnit { index, unit } => {
                write!(
                    f,
                    "unit {index} at {unit:#x} serves it, but has no usable register base"
                )
            }
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit(index, why) => write!(f, "unit {index}: {why}"),
            Self::NotCovered => f.write_str("no unit covers it"),
            Self::Unknown(doubt) => write!(f, "unknown: {doubt}"),
        }
    }
}

/// Who serves an I/O APIC, HPET or namespace device, and the source ID that its requests carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Located {
    /// The unit. INCLUDE_PCI_ALL does not count here: such a device is listed or not covered.
    pub owner: Owner,
    /// The source ID that the listing entry's path gives; `None` when there is no owner or no known path.
    pub source: Option<SourceId>,
}

/// A unit's claim on a device.
#[derive(Clone, Copy)]
struct Claim<'a> {
    /// Lower is closer: 0 for the function itself, else the number of buses below the named bridge.
    distance: u16,
    index: usize,
    unit: Drhd<'a>,
    /// Offset of what claims.
    at: usize,
    why: Why,
}

impl Claim<'_> {
    fn into_owner(self) -> Owner {
        if self.unit.has_usable_base() {
            Owner::Unit(self.index, self.why)
        } else {
            Owner::Unknown(Doubt::UnusableUnit {
                index: self.index,
                unit: self.unit.offset(),
            })
        }
    }
}

/// The closest claim so far, and the other unit that claims equally well.
#[derive(Default)]
struct Claims<'a> {
    best: Option<Claim<'a>>,
    rival: Option<usize>,
}

impl<'a> Claims<'a> {
    fn add(&mut self, claim: Claim<'a>) {
        match self.best {
            Some(best) if best.distance < claim.distance => {}
            Some(best) if best.distance == claim.distance => {
                // Two entries for one unit agree; some firmware lists a unit twice.
                if best.unit.register_base() != claim.unit.register_base() {
                    self.rival.get_or_insert(claim.at);
                }
            }
            _ => {
                self.best = Some(claim);
                self.rival = None;
            }
        }
    }

    /// The owner by these claims, or `None` without any.
    fn owner(&self) -> Option<Owner> {
        let best = self.best?;
        Some(match self.rival {
            Some(second) => Owner::Unknown(Doubt::Conflict { first: best.at, second }),
            None => best.into_owner(),
        })
    }

    fn has_exact(&self) -> bool {
        self.best.is_some_and(|best| best.distance == 0)
    }
}

impl<'a> Dmar<'a> {
    /// Which unit serves the PCI function `function`.
    ///
    /// An entry that names the function wins, then the sub-hierarchy of the nearest bridge above it, then the
    /// segment's INCLUDE_PCI_ALL unit. A virtual function is served by the unit of its physical function
    /// ([`BusTopology::listed_as`]).
    ///
    /// What cannot be read or followed is never assumed away. If the walk over the table ended early, the
    /// answer is [`Owner::Unknown`] for every function; if one scope list or path cannot be read, it is for
    /// every function that the unreadable part may name.
    #[must_use]
    pub fn owner<T: BusTopology + ?Sized>(self, function: Bdf, topology: &T) -> Owner {
        let function = topology.listed_as(function).unwrap_or(function);
        let mut explicit = Claims::default();
        let mut rest = Claims::default();
        let mut doubt = None;
        let mut index = 0;
        for structure in self.structures() {
            let unit = match structure {
                Ok(Structure::Drhd(unit)) => unit,
                Ok(_) => continue,
                Err(malformed) => return Owner::Unknown(Doubt::Unreadable(malformed)),
            };
            if unit.segment() == function.segment {
                if unit.include_pci_all() {
                    let at = unit.offset();
                    rest.add(Claim {
                        distance: u16::MAX,
                        index,
                        unit,
                        at,
                        why: Why::IncludePciAll { unit: at },
                    });
                }
                for scope in unit.scopes() {
                    match claim_of(unit, index, scope, function, topology) {
                        Ok(Some(claim)) => explicit.add(claim),
                        Ok(None) => {}
                        Err(found) => doubt = doubt.or(Some(found)),
                    }
                }
            }
            index += 1;
        }
        // Nothing is closer than the function itself, so no doubt about other entries matters then.
        if let Some(doubt) = doubt
            && !explicit.has_exact()
        {
            return Owner::Unknown(doubt);
        }
        explicit.owner().or_else(|| rest.owner()).unwrap_or(Owner::NotCovered)
    }

    /// Which unit remaps the interrupts of the I/O APIC with this id (as in the MADT), and its source ID.
    #[must_use]
    pub fn io_apic<T: BusTopology + ?Sized>(self, id: u8, topology: &T) -> Located {
        self.locate(ScopeType::IO_APIC, id, topology)
    }

    /// Which unit remaps the MSIs of the HPET with this number, and its source ID.
    #[must_use]
    pub fn hpet<T: BusTopology + ?Sized>(self, number: u8, topology: &T) -> Located {
        self.locate(ScopeType::HPET, number, topology)
    }

    /// Which unit serves the ACPI namespace device with this number (of its ANDD), and its source ID.
    #[must_use]
    pub fn namespace_device<T: BusTopology + ?Sized>(self, number: u8, topology: &T) -> Located {
        self.locate(ScopeType::NAMESPACE, number, topology)
    }

    /// Which unit serves the namespace device with this full path, `\_SB.PCI0.I2C0` for example.
    ///
    /// Without an ANDD of that name the answer is [`Owner::NotCovered`] if the whole table was read.
    #[must_use]
    pub fn namespace_path<T: BusTopology + ?Sized>(self, path: &str, topology: &T) -> Located {
        let owner = match self.andds().find(|andd| andd.name() == Some(path)) {
            Some(andd) => return self.namespace_device(andd.device_number(), topology),
            None => match self.first_malformed() {
                Some(malformed) => Owner::Unknown(Doubt::Unreadable(malformed)),
                None => Owner::NotCovered,
            },
        };
        Located { owner, source: None }
    }

    fn locate<T: BusTopology + ?Sized>(self, kind: ScopeType, id: u8, topology: &T) -> Located {
        let unknown = |doubt| Located {
            owner: Owner::Unknown(doubt),
            source: None,
        };
        let mut found: Option<(Claim<'a>, DeviceScope<'a>)> = None;
        let mut claims = Claims::default();
        let mut doubt = None;
        let mut index = 0;
        for structure in self.structures() {
            let unit = match structure {
                Ok(Structure::Drhd(unit)) => unit,
                Ok(_) => continue,
                Err(malformed) => return unknown(Doubt::Unreadable(malformed)),
            };
            for scope in unit.scopes() {
                let scope = match scope {
                    Ok(scope) => scope,
                    Err(malformed) => {
                        doubt = doubt.or(Some(Doubt::Unreadable(malformed)));
                        continue;
                    }
                };
                if scope.kind() == kind && scope.enumeration_id() == id {
                    let claim = Claim {
                        distance: 0,
                        index,
                        unit,
                        at: scope.offset(),
                        why: Why::Listed {
                            scope: scope.offset(),
                            kind,
                        },
                    };
                    found.get_or_insert((claim, scope));
                    claims.add(claim);
                }
            }
            index += 1;
        }
        let Some((claim, scope)) = found else {
            return doubt.map_or(
                Located {
                    owner: Owner::NotCovered,
                    source: None,
                },
                unknown,
            );
        };
        let source = match scope.resolve(claim.unit.segment(), topology) {
            PathEnd::At(at) => Some(at.source),
            PathEnd::Nowhere | PathEnd::Unknown => None,
        };
        let owner = claims.owner().unwrap_or(Owner::NotCovered);
        Located {
            owner,
            source: source.filter(|_| owner.unit().is_some()),
        }
    }
}

/// The claim that one scope entry makes on `function`, or why that cannot be known.
fn claim_of<'a, T: BusTopology + ?Sized>(
    unit: Drhd<'a>,
    index: usize,
    scope: Result<DeviceScope<'a>, Malformed>,
    function: Bdf,
    topology: &T,
) -> Result<Option<Claim<'a>>, Doubt> {
    let scope = scope.map_err(Doubt::Unreadable)?;
    let at = scope.offset();
    let (distance, why) = match scope.kind() {
        ScopeType::ENDPOINT | ScopeType::SUB_HIERARCHY => {
            match match_scope(scope, unit.segment(), function, topology) {
                ScopeMatch::No => return Ok(None),
                ScopeMatch::Unknown => return Err(Doubt::Path { scope: at }),
                ScopeMatch::Named { broken_path } => (0, Why::Named { scope: at, broken_path }),
                ScopeMatch::Below { bridge, buses } => (buses, Why::Below { scope: at, bridge }),
            }
        }
        ScopeType::IO_APIC | ScopeType::HPET | ScopeType::NAMESPACE => return Ok(None),
        // In the INCLUDE_PCI_ALL unit it makes no difference what it names.
        _ if unit.include_pci_all() => return Ok(None),
        _ => return Err(Doubt::UnknownScope { scope: at }),
    };
    Ok(Some(Claim {
        distance,
        index,
        unit,
        at,
        why,
    }))
}
