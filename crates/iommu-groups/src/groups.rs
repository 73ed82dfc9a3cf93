//! Groups: which functions cannot be kept apart.

mod compare;
mod linux;
mod strict;

use alloc::collections::BTreeMap;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use iommu_types::Bdf;

pub use self::compare::{Difference, differences};
use crate::acs::{Grounds, Isolation};
use crate::problem::Problem;
use crate::reason::{Hop, Reason};
use crate::topology::Topology;

/// A Linux release, as far as its grouping rules differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinuxVersion {
    /// The major number.
    pub major: u16,
    /// The minor number.
    pub minor: u16,
}

impl LinuxVersion {
    /// Newer than every rule that is known here.
    pub const LATEST: Self = Self::new(u16::MAX, 0);

    /// Release `major.minor`.
    ///
    /// Releases differ in the devices they know to isolate, as far as [`crate::AcsQuirk::linux_since`] says: from
    /// 5.8 on Intel's integrated endpoints, from 6.3 and 6.13 on Wangxun network cards. Stable releases of older
    /// kernels took these over; give such a kernel as the release it took them from.
    #[must_use]
    pub const fn new(major: u16, minor: u16) -> Self {
        Self { major, minor }
    }

    pub(crate) fn at_least(self, (major, minor): (u16, u16)) -> bool {
        self >= Self::new(major, minor)
    }
}

/// By which rules functions are grouped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rules {
    /// As Linux does, its known holes included: what `/sys/kernel/iommu_groups` shows.
    Linux(LinuxVersion),
    /// As PCI Express defines access control: whoever can reach another's memory, or be mistaken for it, shares
    /// its group. The result does not depend on the order of discovery.
    Strict,
}

/// Functions that cannot be kept apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Position among the groups, in order of each one's first function. Not the kernel's number.
    pub number: usize,
    /// The functions, ascending.
    pub members: Vec<Bdf>,
    /// Whether the answer rests on something unknown. The group may then be too large, or, where requester IDs
    /// are not known, too small.
    pub uncertain: bool,
}

/// All groups of a machine with the reasons.
#[derive(Clone, Debug)]
pub struct Groups {
    rules: Rules,
    groups: Vec<Group>,
    of: BTreeMap<Bdf, usize>,
    /// Reasons of each group; every hop connects two of its members.
    hops: Vec<Vec<Hop>>,
}

/// What the two algorithms hand over.
struct Draft {
    /// A number for each function: equal for those that are together.
    of: Vec<usize>,
    /// Reasons, between indices of functions.
    hops: Vec<(usize, usize, Reason)>,
}

/// Why two functions are together, or what stands between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Explanation {
    /// The shortest chain of reasons from the first to the second; empty if they are the same.
    Together(Vec<Hop>),
    /// They are apart; these stand between them.
    Apart(Vec<Barrier>),
}

/// Something that keeps two functions apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// A port or function that sends everything up.
    Isolates {
        /// Which one.
        at: Bdf,
        /// Why it does.
        grounds: Grounds,
    },
    /// The two ways meet only in the root complex, which passes everything to the IOMMU.
    RootComplex,
}

impl fmt::Display for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Isolates { at, grounds } => write!(f, "{at} sends everything up to the IOMMU: {grounds}"),
            Self::RootComplex => {
                f.write_str("their ways up meet only in the root complex, which passes every request to the IOMMU")
            }
        }
    }
}

/// Groups the functions of a machine.
#[must_use]
pub fn group(topology: &Topology, rules: Rules) -> Groups {
    let draft = match rules {
        Rules::Linux(version) => linux::group(topology, version),
        Rules::Strict => strict::group(topology),
    };
    Groups::assemble(topology, rules, draft)
}

impl Groups {
    fn assemble(topology: &Topology, rules: Rules, draft: Draft) -> Self {
        let mut number_of: BTreeMap<usize, usize> = BTreeMap::new();
        let mut groups: Vec<Group> = Vec::new();
        let mut of = BTreeMap::new();
        for (f, key) in topology.functions().iter().zip(&draft.of) {
            let number = *number_of.entry(*key).or_insert(groups.len());
            if number == groups.len() {
                groups.push(Group {
                    number,
                    members: Vec::new(),
                    uncertain: false,
                });
            }
            if let Some(group) = groups.get_mut(number) {
                group.members.push(f.bdf);
            }
            of.insert(f.bdf, number);
        }
        let mut hops = vec![Vec::new(); groups.len()];
        for (a, b, reason) in draft.hops {
            let (Some(a), Some(b)) = (topology.function(a), topology.function(b)) else {
                continue;
            };
            let (Some(number), Some(other)) = (of.get(&a.bdf), of.get(&b.bdf)) else {
                continue;
            };
            if number != other {
                continue;
            }
            if let (Some(list), Some(group)) = (hops.get_mut(*number), groups.get_mut(*number)) {
                group.uncertain |= reason.is_uncertain();
                list.push(Hop {
                    from: a.bdf,
                    to: b.bdf,
                    reason,
                });
            }
        }
        for problem in topology.problems() {
            if let Problem::AliasesNotKnown { function } = problem
                && let Some(group) = of.get(function).and_then(|number| groups.get_mut(*number))
            {
                group.uncertain = true;
            }
        }
        for group in &mut groups {
            group.members.sort_unstable();
        }
        Self {
            rules,
            groups,
            of,
            hops,
        }
    }

    /// The rules that were applied.
    #[must_use]
    pub const fn rules(&self) -> Rules {
        self.rules
    }

    /// All groups.
    #[must_use]
    pub fn all(&self) -> &[Group] {
        &self.groups
    }

    /// The group of a function.
    #[must_use]
    pub fn of(&self, bdf: Bdf) -> Option<&Group> {
        self.groups.get(*self.of.get(&bdf)?)
    }

    /// Whether two functions are in one group; `None` if one of them does not exist.
    #[must_use]
    pub fn together(&self, a: Bdf, b: Bdf) -> Option<bool> {
        Some(self.of.get(&a)? == self.of.get(&b)?)
    }

    /// Every reason that holds a group together.
    #[must_use]
    pub fn reasons(&self, group: &Group) -> &[Hop] {
        self.hops.get(group.number).map(Vec::as_slice).unwrap_or_default()
    }

    /// Why `a` and `b` are together, or what keeps them apart; `None` if one of them does not exist.
    ///
    /// `topology` is the one that the groups were made from.
    #[must_use]
    pub fn explain(&self, topology: &Topology, a: Bdf, b: Bdf) -> Option<Explanation> {
        if self.together(a, b)? {
            let hops = self.hops.get(*self.of.get(&a)?)?;
            Some(Explanation::Together(Chains::to(b, hops).from(a)))
        } else {
            Some(Explanation::Apart(self.barriers(topology, a, b)))
        }
    }

    /// What stands between two functions of different groups: on each way up to where they meet, everything
    /// that isolates.
    fn barriers(&self, topology: &Topology, a: Bdf, b: Bdf) -> Vec<Barrier> {
        let way = |bdf| topology.above(topology.index_of(bdf)).collect::<Vec<_>>();
        let (mut up_a, mut up_b) = (way(a), way(b));
        let mut met = false;
        while let (Some(x), Some(y)) = (up_a.last(), up_b.last()) {
            if x != y {
                break;
            }
            met = true;
            up_a.pop();
            up_b.pop();
        }
        let mut barriers = Vec::new();
        for index in up_a.into_iter().chain(up_b) {
            if let Some(f) = topology.function(index)
                && let Isolation::Isolated(grounds) = topology.isolation(f, self.rules)
            {
                barriers.push(Barrier::Isolates { at: f.bdf, grounds });
            }
        }
        if !met {
            barriers.push(Barrier::RootComplex);
        }
        barriers
    }
}

/// The hops of one group as a tree of shortest chains that all lead to one function.
struct Chains {
    root: Bdf,
    /// How each function is one step nearer to the root.
    next: BTreeMap<Bdf, Hop>,
}

impl Chains {
    fn to(root: Bdf, hops: &[Hop]) -> Self {
        let mut edges: BTreeMap<Bdf, Vec<usize>> = BTreeMap::new();
        for (index, hop) in hops.iter().enumerate() {
            edges.entry(hop.from).or_default().push(index);
            edges.entry(hop.to).or_default().push(index);
        }
        let mut next: BTreeMap<Bdf, Hop> = BTreeMap::new();
        let mut queue = VecDeque::from([root]);
        while let Some(at) = queue.pop_front() {
            for hop in edges
                .get(&at)
                .into_iter()
                .flatten()
                .filter_map(|index| hops.get(*index))
            {
                let other = other_end(hop, at);
                if other != root && !next.contains_key(&other) {
                    next.insert(other, *hop);
                    queue.push_back(other);
                }
            }
        }
        Self { root, next }
    }

    /// The chain from `start` to the root. Each step is nearer to the root, so it ends.
    fn from(&self, start: Bdf) -> Vec<Hop> {
        let mut chain = Vec::new();
        let mut at = start;
        while at != self.root
            && let Some(hop) = self.next.get(&at)
        {
            at = other_end(hop, at);
            chain.push(*hop);
        }
        chain
    }
}

fn other_end(hop: &Hop, at: Bdf) -> Bdf {
    if hop.from == at { hop.to } else { hop.from }
}
