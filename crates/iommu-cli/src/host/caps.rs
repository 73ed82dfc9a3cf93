//! `iommu caps`: what the remapping units can do.

use clap::Args;
use iommu_host::{Knowledge, Machine, Unit, caps};
use serde_json::{Value, json};

use super::groups::knowledge_json;
use super::{Answer, Source, notes, printable};
use crate::exit::{Failure, Verdict};
use crate::style;

/// Grows when a key changes its meaning.
const SCHEMA: u32 = 1;

/// What `iommu caps` is told.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    pub(crate) source: Source,
}

pub(crate) fn run(options: &Options) -> Result<Answer, Failure> {
    answer(&options.source.open()?)
}

pub(crate) fn answer(machine: &Machine) -> Result<Answer, Failure> {
    let units = match &machine.units {
        Knowledge::Known(units) => units.as_slice(),
        Knowledge::Absent => &[],
        Knowledge::Unknown(why) => {
            return Err(Failure::Measure(format!("remapping units: {why}; {}", why.remedy())));
        }
    };
    if units.is_empty() {
        let text = if machine.other_iommus.is_empty() {
            "the running kernel uses no remapping unit; `iommu doctor` says why\n".to_owned()
        } else {
            format!(
                "the IOMMUs of this machine are not Intel's ({}): their registers are not decoded\n",
                machine.other_iommus.join(", ")
            )
        };
        return Ok(Answer {
            text,
            json: json!({"schema": SCHEMA, "units": [], "other_iommus": machine.other_iommus}),
            verdict: Ok(Verdict::Unsupported),
        });
    }
    let mut out = String::new();
    for (at, unit) in units.iter().enumerate() {
        out.push_str(if at > 0 { "\n" } else { "" });
        out.push_str(&unit_text(unit));
    }
    out.push_str(&notes(machine));
    let unread = units.iter().any(|unit| unit.cap.is_unknown() || unit.ecap.is_unknown());
    Ok(Answer {
        text: out,
        json: json!({
            "schema": SCHEMA,
            "units": units.iter().map(unit_json).collect::<Vec<_>>(),
            "other_iommus": machine.other_iommus,
        }),
        verdict: if unread {
            Err(Failure::Measure(
                "the registers of some units could not be read".to_owned(),
            ))
        } else {
            Ok(Verdict::Yes)
        },
    })
}

fn unit_text(unit: &Unit) -> String {
    let mut out = style::title(printable(&unit.name)).to_string();
    if let Some(address) = unit.address.known() {
        out.push_str(&format!(" at {:#x}", address.raw()));
    }
    if let Some(version) = unit.version.known() {
        out.push_str(&format!(
            ", version {}.{}",
            version.max().value(),
            version.min().value()
        ));
    }
    out.push('\n');
    let (cap, ecap) = match (&unit.cap, &unit.ecap) {
        (Knowledge::Known(cap), Knowledge::Known(ecap)) => (*cap, *ecap),
        (Knowledge::Unknown(why), _) | (_, Knowledge::Unknown(why)) => {
            out.push_str(&format!("  its registers are not known: {why}; {}\n", why.remedy()));
            return out;
        }
        _ => {
            out.push_str("  the kernel does not show its registers\n");
            return out;
        }
    };
    out.push_str(&format!(
        "  CAP {:#018x}  ECAP {:#018x}\n",
        cap.raw_value(),
        ecap.raw_value()
    ));
    out.push_str(&format!("  {}\n", caps::summary(cap.raw_value(), ecap.raw_value())));
    out.push_str(&format!("  domains           {}", cap.domain_count()));
    if let Some(used) = unit.domains_used.known() {
        out.push_str(&format!(", {used} in use"));
    }
    out.push('\n');
    match caps::address_bits(cap) {
        Some(bits) => out.push_str(&format!("  address bits      {bits}\n")),
        None => out.push_str("  address bits      none: the unit has no second-stage translation\n"),
    }
    for feature in caps::features(cap, ecap) {
        let word = if feature.has {
            style::good("yes")
        } else {
            style::faint("no")
        };
        out.push_str(&format!("  {word:3} {:5} {}\n", feature.name, feature.meaning));
    }
    out.push_str(&readiness(
        "assignment to guests",
        &caps::missing_for_assignment(cap, ecap),
    ));
    out.push_str(&readiness(
        "shared virtual addresses (SVA, DSA)",
        &caps::missing_for_shared_addresses(ecap),
    ));
    out
}

fn readiness(what: &str, missing: &[&str]) -> String {
    if missing.is_empty() {
        format!("  {} for {what}\n", style::good("ready"))
    } else {
        format!(
            "  {} for {what}; missing: {}\n",
            style::doubt("not ready"),
            missing.join(", ")
        )
    }
}

fn unit_json(unit: &Unit) -> Value {
    let both = unit.cap.known().zip(unit.ecap.known());
    json!({
        "name": unit.name,
        "address": knowledge_json(&unit.address, |address| json!(format!("{:#x}", address.raw()))),
        "cap": knowledge_json(&unit.cap, |cap| json!(format!("{:#x}", cap.raw_value()))),
        "ecap": knowledge_json(&unit.ecap, |ecap| json!(format!("{:#x}", ecap.raw_value()))),
        "domains": both.map(|(cap, _)| cap.domain_count()),
        "address_bits": both.and_then(|(cap, _)| caps::address_bits(*cap)),
        "fault_records": both.map(|(cap, _)| cap.fault_record_count()),
        "features": both.map(|(cap, ecap)| {
            caps::features(*cap, *ecap).iter().map(|feature| (feature.name.to_owned(), json!(feature.has))).collect::<serde_json::Map<_, _>>()
        }),
        "missing_for_assignment": both.map(|(cap, ecap)| caps::missing_for_assignment(*cap, *ecap)),
        "missing_for_shared_addresses": both.map(|(_, ecap)| caps::missing_for_shared_addresses(*ecap)),
    })
}
