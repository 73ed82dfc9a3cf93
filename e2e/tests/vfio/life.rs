//! A driver that is killed leaves nothing behind.

use e2e::guest::record::Record;
use e2e::vfio::churn;

/// Mappings of the host's own drivers are below this, the program's from here on.
const PROGRAM: u64 = 1 << 30;
/// The signal that ends a process at once, as a shell tells it.
const KILLED: i32 = 128 + 9;

/// Pages that are held for devices, and domains in use.
fn held(record: &Record, name: &str) -> Option<(i64, String)> {
    let text = record.text(name).into_owned();
    let number = |key: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(key)?.trim().parse::<i64>().ok())
    };
    let pages = number("nr_foll_pin_acquired ")? - number("nr_foll_pin_released ")?;
    let domains = text.lines().find(|line| line.starts_with("domains "))?;
    Some((pages, domains.to_owned()))
}

/// Bytes that were mapped and unmapped, by the kernel's trace:
/// `… map: IOMMU: iova=0x0000000040000000 - 0x0000000040001000 paddr=0x… size=4096`.
fn traced(trace: &str) -> (u64, u64) {
    let value = |line: &str, key: &str| {
        let (_, rest) = line.split_once(key)?;
        let word = rest.split_whitespace().next()?;
        match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => word.parse().ok(),
        }
    };
    let (mut mapped, mut unmapped) = (0, 0);
    for line in trace.lines() {
        if value(line, "iova=").is_none_or(|iova| iova < PROGRAM) {
            continue;
        }
        if line.contains(" unmap: IOMMU:") {
            unmapped += value(line, "unmapped_size=").unwrap_or(0);
        } else if line.contains(" map: IOMMU:") {
            mapped += value(line, " size=").unwrap_or(0);
        }
    }
    (mapped, unmapped)
}

/// Returns how often the driver was killed.
pub(crate) fn judge(record: &Record, wrong: &mut Vec<String>) -> usize {
    let (backend, function) = super::software::engine();
    let mut steps = 0_usize;
    churn::run(&backend, function, |_| steps += 1).expect("a driver's life goes well in software");
    let before = held(record, "held before");
    let mut kills = 0;
    let mut most = 0;
    let mut judge = |name: &str, of: &str, status: i32, expected: &[i32]| {
        if !expected.contains(&status) {
            wrong.push(format!("{name} ended with {status}: {}", record.text(name)));
        }
        kills += usize::from(status == KILLED);
        let after = held(record, &format!("held {of}"));
        if before.is_none() || after != before {
            wrong.push(format!(
                "{name}: {before:?} was held before, {after:?} after: {}",
                record.text(name)
            ));
        }
        let (mapped, unmapped) = traced(&record.text(&format!("trace {of}")));
        if mapped != unmapped {
            wrong.push(format!(
                "{name}: {mapped:#x} bytes were mapped and {unmapped:#x} unmapped"
            ));
        }
        most = most.max(mapped);
    };
    // One kill before each step, and a life to its end.
    for step in 0..=steps {
        let name = format!("churn {step}");
        let Some(status) = record.statuses.get(&name) else {
            judge(&name, &step.to_string(), -1, &[]);
            continue;
        };
        judge(
            &name,
            &step.to_string(),
            *status,
            if step == steps { &[0] } else { &[KILLED] },
        );
    }
    for (name, status) in &record.statuses {
        if let Some(wait) = name.strip_prefix("cut ") {
            judge(name, &format!("cut {wait}"), *status, &[KILLED, 0]);
        }
    }
    if most == 0 {
        wrong.push("the trace tells of no mapping".to_owned());
    }
    kills
}
