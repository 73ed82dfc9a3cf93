//! Conditions that no test reaches belong to features that no unit of this model advertises.

use vtd_model::{Condition, Profile, UnitConfigBuilder};
use vtd_spec::register::{Capability, ExtendedCapability};

use crate::rig::spec;

/// Whether a capability bit is set.
type Advertised = fn(&ExtendedCapability) -> bool;

/// The capability bit behind each condition that cannot be met: with it clear, the fields that lead there are reserved
/// (VT-d §7.1.3).
const BEHIND: [(Condition, Advertised); 6] = [
    (Condition::Rta1_4, ExtendedCapability::ssirws),
    (Condition::Sct4_1, ExtendedCapability::prs),
    (Condition::Sct4_3, ExtendedCapability::ptrs),
    (Condition::Sct10, ExtendedCapability::ptrs),
    (Condition::IrExtendedRequired, ExtendedCapability::eimer),
    (Condition::IrRequired, ExtendedCapability::irreq),
];

#[test]
fn features_that_are_not_modelled_are_advertised_by_no_unit() {
    // A unit that resembles one with every feature there is takes over what the model has.
    let anything: UnitConfigBuilder = spec().resembling(
        Capability::new_with_raw_value(u64::MAX),
        ExtendedCapability::new_with_raw_value(u64::MAX),
    );
    let builders = [
        spec(),
        spec().full_scalable_mode().device_tlb(true).protected_memory(true),
        spec().full_scalable_mode().profile(Profile::Silicon).caching_mode(true),
        anything,
    ];
    let built: Vec<_> = builders
        .into_iter()
        .filter_map(|builder| builder.build().ok())
        .collect();
    assert!(built.len() >= 3);
    for config in built {
        let ecap = config.extended_capability();
        for (condition, advertised) in BEHIND {
            assert!(!advertised(&ecap), "{condition:?} could be met: it needs a test");
        }
        assert!(
            !config.capability().pi() && !ecap.mts(),
            "posting and memory types come later"
        );
    }
}
