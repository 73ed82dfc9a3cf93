//! What was set up against what the tables say.

use std::collections::BTreeMap;

use iommu_types::{Bdf, HostPhys, Iova, Perms, SourceId};
use iommu_vfio::{Platform, RegionOutcome};

use super::explain::rights;
use super::tables::{Context, Mapped, Route, Run, join};
use crate::run::guests::Guest;

/// Differences of one domain that are told; more would say the same.
const TOLD: usize = 8;

/// What everybody was given.
pub(crate) struct Given<'a> {
    platform: &'a Platform,
    guests: &'a [Guest],
}

/// Whose a function is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// A guest's, by its name.
    Guest(String),
    /// The host's, with memory that firmware reserves for it.
    Reserved,
    /// The host's, with nothing.
    Host,
}

impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Guest(name) => f.write_str(name),
            Self::Reserved => f.write_str("host, reserved memory only"),
            Self::Host => f.write_str("host"),
        }
    }
}

impl<'a> Given<'a> {
    /// What a platform and its guests say.
    pub(crate) const fn new(platform: &'a Platform, guests: &'a [Guest]) -> Self {
        Self { platform, guests }
    }

    fn guest(&self, function: Bdf) -> Option<&'a Guest> {
        let has = |guest: &&Guest| guest.groups.iter().any(|group| group.members.contains(&function));
        self.guests.iter().find(has)
    }

    /// Functions that a unit looks at whose requests can arrive with `source`.
    pub(crate) fn functions(&self, unit: usize, source: SourceId) -> Vec<Bdf> {
        let machine = self.platform.machine();
        machine
            .functions()
            .filter(|function| function.service.unit() == Some(unit))
            .filter(|function| {
                let requester = self.platform.requester(function.bdf);
                requester.rid == source || requester.aliases.contains(&source)
            })
            .map(|function| function.bdf)
            .collect()
    }

    /// Whose a function is.
    pub(crate) fn owner(&self, function: Bdf) -> Owner {
        match self.guest(function) {
            Some(guest) => Owner::Guest(guest.name.clone()),
            None if self.regions(function, true).is_empty() => Owner::Host,
            None => Owner::Reserved,
        }
    }

    /// Reserved regions that are mapped for a function: those that name it, or somebody whom a unit cannot tell from it;
    /// for a guest's function those of all of the guest, since they share a memory map. With `whole_group` also those of
    /// others in the host's group.
    fn regions(&self, function: Bdf, whole_group: bool) -> Vec<Run> {
        let guest = self.guest(function);
        let group = self.platform.group_of(function).filter(|_| whole_group);
        let own = self.ids(function);
        let concerned = |listed: &Bdf| match guest {
            Some(guest) => guest.groups.iter().any(|group| group.members.contains(listed)),
            None => {
                let together = group.as_ref().is_some_and(|group| group.members.contains(listed));
                together || self.ids(*listed).iter().any(|id| own.contains(id))
            }
        };
        let steps = self.platform.report().regions.iter();
        steps
            .filter(|step| step.outcome == RegionOutcome::Mapped && !(guest.is_some() && step.relaxable))
            .filter(|step| step.functions.iter().any(concerned))
            .filter_map(|step| {
                let range = step.range?.to_pages();
                Some(Run {
                    iova: Iova::new(range.first().raw()),
                    phys: range.first(),
                    len: range.len()?,
                    perms: Perms::READ_WRITE,
                })
            })
            .collect()
    }

    /// The unit and the requester IDs of a function.
    fn ids(&self, function: Bdf) -> Vec<(Option<usize>, SourceId)> {
        let unit = self
            .platform
            .machine()
            .function(function)
            .and_then(|info| info.service.unit());
        let requester = self.platform.requester(function);
        let ids = std::iter::once(requester.rid).chain(requester.aliases);
        ids.map(|id| (unit, id)).collect()
    }

    /// All that is to be mapped for a function.
    fn expected(&self, function: Bdf, whole_group: bool) -> Vec<Run> {
        let mut runs = self.regions(function, whole_group);
        for mapping in self.guest(function).iter().flat_map(|guest| guest.container.mappings()) {
            let mut iova = mapping.range.first();
            for memory in &mapping.memory {
                let Some(len) = memory.len() else { continue };
                runs.push(Run {
                    iova,
                    phys: memory.first(),
                    len,
                    perms: mapping.perms,
                });
                iova = iova.checked_add(len).unwrap_or(Iova::MAX);
            }
        }
        runs
    }

    /// What of a unit's entries does not fit what was given.
    pub(crate) fn entries(&self, unit: usize, contexts: &[Context]) -> Vec<String> {
        let mut findings = Vec::new();
        for context in contexts {
            let source = context.source;
            let functions = self.functions(unit, source);
            let nobody = functions.iter().all(|function| self.owner(*function) == Owner::Host);
            if nobody {
                let whose = if functions.is_empty() {
                    "no function has".to_owned()
                } else {
                    "was given to nobody".to_owned()
                };
                findings.push(format!("unit {unit} has an entry for {source}, which {whose}"));
            }
        }
        // Who has something must have an entry.
        for function in self.platform.machine().functions() {
            let expected = !function.kind.is_bridge()
                && (self.guest(function.bdf).is_some() || !self.regions(function.bdf, false).is_empty());
            if function.service.unit() != Some(unit) || !expected || self.platform.unit_of(function.bdf).is_err() {
                continue;
            }
            let requester = self.platform.requester(function.bdf);
            for source in std::iter::once(requester.rid).chain(requester.aliases) {
                if contexts.iter().all(|context| context.source != source) {
                    findings.push(format!(
                        "unit {unit} has no entry for {source}, under which requests of {} can arrive",
                        function.bdf
                    ));
                }
            }
        }
        findings
    }

    /// What a domain maps that it should not, and the other way round. `functions` share it.
    pub(crate) fn mappings(&self, name: &str, functions: &[Bdf], mapped: &Mapped) -> Vec<String> {
        let Some(first) = functions.first() else {
            return Vec::new();
        };
        let (least, most) = (self.expected(*first, false), self.expected(*first, true));
        let mut findings = Vec::new();
        if mapped.cut {
            findings.push(format!("{name}: too large to be read whole; it was not compared"));
            return findings;
        }
        let (there, least, most) = (in_order(&mapped.runs), in_order(&least), in_order(&most));
        if least == there {
            return findings;
        }
        tell(&mut findings, &there, &most, |run| {
            format!("{name} maps {run}, which nobody asked for")
        });
        tell(&mut findings, &least, &there, |run| {
            format!("{name} does not map {run}, which was asked for")
        });
        findings
    }

    /// Domains that functions of different owners share.
    pub(crate) fn shared(&self, unit: usize, contexts: &[Context]) -> Vec<String> {
        let mut owners: BTreeMap<Route, Vec<(SourceId, Owner)>> = BTreeMap::new();
        for context in contexts {
            for function in self.functions(unit, context.source) {
                let entry = owners.entry(context.route).or_default();
                entry.push((context.source, self.owner(function)));
            }
        }
        let mut findings = Vec::new();
        for (route, users) in owners {
            let Some(((first, whose), others)) = users.split_first() else {
                continue;
            };
            let guests = |owner: &Owner| matches!(owner, Owner::Guest(_));
            let stranger = others.iter().find(|(_, owner)| owner != whose);
            if let (Route::Table { root, .. }, Some((other, owner))) = (route, stranger)
                && (guests(whose) || guests(owner))
            {
                findings.push(format!(
                    "unit {unit}: {first} ({whose}) and {other} ({owner}) share the table at {root}"
                ));
            }
        }
        findings
    }
}

/// Runs in ascending order, each once, joined where they touch: two lists that map the same are then equal.
fn in_order(runs: &[Run]) -> Vec<Run> {
    let mut sorted = runs.to_vec();
    sorted.sort_unstable_by_key(|run| (run.iova, run.phys, run.len));
    sorted.dedup();
    let mut joined = Vec::with_capacity(sorted.len());
    for run in sorted {
        join(&mut joined, run);
    }
    joined
}

/// Tells what of `one` is not in `other`, both joined and in ascending order.
fn tell(findings: &mut Vec<String>, one: &[Run], other: &[Run], say: impl Fn(String) -> String) {
    let missing: Vec<&Run> = one.iter().filter(|run| !other.contains(run)).collect();
    for run in missing.iter().take(TOLD) {
        findings.push(say(show(run)));
    }
    if missing.len() > TOLD {
        findings.push(format!("… and {} more of these", missing.len() - TOLD));
    }
}

/// A run for people.
pub(crate) fn show(run: &Run) -> String {
    let last = |at: u64| at.saturating_add(run.len - 1);
    format!(
        "{}..={:#x} to {}..={} ({})",
        run.iova,
        last(run.iova.raw()),
        run.phys,
        HostPhys::new(last(run.phys.raw())),
        rights(run.perms)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_one_side_has_is_told() {
        let run = |iova, len| Run {
            iova: Iova::new(iova),
            phys: HostPhys::new(0x10_0000 + iova),
            len,
            perms: Perms::READ,
        };
        let one = in_order(&[run(0x1000, 0x1000), run(0, 0x1000)]);
        assert_eq!(one, [run(0, 0x2000)]);
        let mut findings = Vec::new();
        tell(&mut findings, &one, &in_order(&[run(0, 0x2000)]), |run| run);
        assert_eq!(findings, Vec::<String>::new());
        tell(&mut findings, &one, &[], |run| format!("extra {run}"));
        assert_eq!(findings, ["extra 0x0..=0x1fff to 0x100000..=0x101fff (read only)"]);
    }
}
