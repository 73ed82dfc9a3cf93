//! The layering of the workspace: dependencies point down, never sideways.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::report::Outcome;
use crate::tools::{cargo, output};

/// Crates by layer; see `ARCHITECTURE.md`.
const LAYERS: [&[&str]; 8] = [
    &["iommu-types"],
    &["acpi-dmar", "vtd-spec"],
    &["iommu-iova", "iommu-pagetable"],
    &["iommu-dma", "iommu-groups", "vtd-driver", "vtd-model"],
    &["iommu-devices", "vtd-vmm"],
    &["soft-platform"],
    &["iommu-host", "iommu-serve", "iommu-vfio"],
    &["iommu-cli"],
];

/// Crates that no layer may use except in tests, and that may use any layer; the test kit itself only uses
/// layer 0, so that it cannot share a mistake with what it judges.
const DEVELOPMENT: [&str; 3] = ["bench", "e2e", "xtask"];
const TEST_KIT: &str = "iommu-testkit";

fn layer(name: &str) -> Option<usize> {
    LAYERS.iter().position(|crates| crates.contains(&name))
}

/// Compares `cargo metadata` with the layers.
pub(crate) fn check() -> Outcome {
    match violations() {
        Ok((edges, wrong)) if wrong.is_empty() => Outcome::passed(edges, format!("{edges} dependencies point down")),
        Ok((_, wrong)) => Outcome::Failed(wrong.join("; ")),
        Err(why) => Outcome::Failed(why),
    }
}

fn violations() -> Result<(usize, Vec<String>), String> {
    let text = output(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&text).map_err(|e| format!("cargo metadata: {e}"))?;
    let packages = metadata["packages"]
        .as_array()
        .ok_or("cargo metadata lists no packages")?;
    let own: BTreeMap<&str, &Value> = packages.iter().filter_map(|p| Some((p["name"].as_str()?, p))).collect();

    let mut edges = 0;
    let mut wrong = Vec::new();
    for (&name, package) in &own {
        let from = layer(name);
        if from.is_none() && name != TEST_KIT && !DEVELOPMENT.contains(&name) {
            wrong.push(format!(
                "{name} has no layer: give it one in xtask and in ARCHITECTURE.md"
            ));
            continue;
        }
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let Some(to) = dependency["name"].as_str().filter(|to| own.contains_key(to)) else {
                continue;
            };
            edges += 1;
            let for_tests = dependency["kind"].as_str() == Some("dev");
            if let Some(problem) = judge(name, from, to, for_tests) {
                wrong.push(problem);
            }
        }
    }
    Ok((edges, wrong))
}

/// What is wrong with one edge, if anything.
fn judge(name: &str, from: Option<usize>, to: &str, for_tests: bool) -> Option<String> {
    // A crate's tests may ask for the crate itself with more features.
    if DEVELOPMENT.contains(&name) || (for_tests && to == name) {
        return None;
    }
    if to == TEST_KIT {
        return (!for_tests).then(|| format!("{name} uses {to} outside its tests"));
    }
    let Some(down) = layer(to) else {
        return Some(format!("{name} depends on {to}, which is for development only"));
    };
    let below = match from {
        // The test kit uses layer 0 only.
        None => down == 0,
        Some(from) => down < from,
    };
    (!below).then(|| format!("{name} depends on {to}, which is not below it"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_up_or_sideways_is_named() {
        assert!(judge("vtd-driver", layer("vtd-driver"), "vtd-spec", false).is_none());
        assert!(judge("vtd-driver", layer("vtd-driver"), "vtd-model", false).is_some());
        assert!(judge("vtd-driver", layer("vtd-driver"), "vtd-model", true).is_some());
        assert!(judge("vtd-spec", layer("vtd-spec"), "vtd-driver", false).is_some());
    }

    #[test]
    fn the_test_kit_stays_on_layer_zero_and_out_of_products() {
        assert!(judge(TEST_KIT, None, "vtd-spec", false).is_some());
        assert!(judge(TEST_KIT, None, "iommu-types", false).is_none());
        assert!(judge("vtd-model", layer("vtd-model"), TEST_KIT, false).is_some());
        assert!(judge("vtd-model", layer("vtd-model"), TEST_KIT, true).is_none());
    }
}
