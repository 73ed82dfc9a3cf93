//! Where two sets of rules disagree about a machine.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::fmt;

use iommu_types::Bdf;

use super::{Chains, Groups};
use crate::reason::Hop;

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
/// by their lowest functions. The chain leads from the part to the first one.
#[must_use]
pub fn differences(first: &Groups, second: &Groups) -> Vec<Difference> {
    let holes = splits(second, first)
        .into_iter()
        .map(|(a, b, chain)| Difference::Hole { a, b, chain });
    let wider = splits(first, second)
        .into_iter()
        .map(|(a, b, chain)| Difference::Wider { a, b, chain });
    holes.chain(wider).collect()
}

/// Pairs that are together in `whole` and apart in `parts`: the lowest function of the first part with the lowest
/// of each other part, and why they are together.
fn splits(whole: &Groups, parts: &Groups) -> Vec<(Bdf, Bdf, Vec<Hop>)> {
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
        if let Some((first, others)) = lowest.split_first()
            && !others.is_empty()
        {
            let chains = Chains::to(*first, whole.reasons(group));
            pairs.extend(others.iter().map(|other| (*first, *other, chains.from(*other))));
        }
    }
    pairs
}
