//! Where two sets of rules disagree about a machine.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use iommu_types::Bdf;

use super::{Explanation, Groups};
use crate::reason::Hop;
use crate::topology::Topology;

/// Functions about which two groupings disagree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Apart by the first rules, together by the second. If the first are those of the running kernel, its
    /// groups promise an isolation that is not there.
    Hole {
        /// A function of the one group.
        a: Bdf,
        /// A function of the other group.
        b: Bdf,
        /// Why they are together by the second rules.
        chain: Vec<Hop>,
    },
    /// Together by the first rules, apart by the second: they are safe to separate, but the first rules do not
    /// allow it.
    Wider {
        /// A function of the one group.
        a: Bdf,
        /// A function of the other group.
        b: Bdf,
        /// Why they are together by the first rules.
        chain: Vec<Hop>,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chain = match self {
            Self::Hole { a, b, chain } => {
                write!(
                    f,
                    "{a} and {b} are in different groups although they can reach each other"
                )?;
                chain
            }
            Self::Wider { a, b, chain } => {
                write!(
                    f,
                    "{a} and {b} are in one group although nothing lets them reach each other"
                )?;
                chain
            }
        };
        for hop in chain {
            write!(f, "; {hop}")?;
        }
        Ok(())
    }
}

/// Compares two groupings of one machine; usually Linux's first, the strict one second.
///
/// For each group of one side that the other side splits, its parts are named once each against the first part,
/// by their lowest functions.
#[must_use]
pub fn differences(topology: &Topology, first: &Groups, second: &Groups) -> Vec<Difference> {
    let mut found = Vec::new();
    for (a, b) in splits(second, first) {
        let chain = chain(topology, second, a, b);
        found.push(Difference::Hole { a, b, chain });
    }
    for (a, b) in splits(first, second) {
        let chain = chain(topology, first, a, b);
        found.push(Difference::Wider { a, b, chain });
    }
    found
}

fn chain(topology: &Topology, groups: &Groups, a: Bdf, b: Bdf) -> Vec<Hop> {
    match groups.explain(topology, a, b) {
        Some(Explanation::Together(hops)) => hops,
        _ => Vec::new(),
    }
}

/// Pairs that are together in `whole` and apart in `parts`: the lowest function of each further part with the
/// lowest of the first.
fn splits(whole: &Groups, parts: &Groups) -> Vec<(Bdf, Bdf)> {
    let mut pairs = Vec::new();
    for group in whole.all() {
        let mut lowest: BTreeMap<usize, Bdf> = BTreeMap::new();
        for member in &group.members {
            if let Some(part) = parts.of(*member) {
                lowest.entry(part.number).or_insert(*member);
            }
        }
        let mut lowest: Vec<Bdf> = lowest.into_values().collect();
        lowest.sort_unstable();
        if let Some((first, others)) = lowest.split_first() {
            pairs.extend(others.iter().map(|other| (*first, *other)));
        }
    }
    pairs
}
