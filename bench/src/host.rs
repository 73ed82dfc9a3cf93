//! H1 to H3: what people wait for at the host tool: a table decoded, a large machine grouped with its reasons, one command.

use std::collections::HashMap;
use std::hint::black_box;
use std::process::{Command, Stdio};
use std::time::Duration;

use acpi_dmar::{Dmar, OwnedAndd, OwnedAtsr, OwnedDmar, OwnedDrhd, OwnedRmrr, OwnedScope, Structure};
use iommu_groups::{BusId, ConfigAccess, Facts, LinuxVersion, Roots, Rules, Topology, group};
use iommu_types::{AddrRange, Bdf, DevFn, HostPhys, Segment, SourceId};

use crate::pair::timed;
use crate::row::{Measure, Row, measured};

/// Length of the longest DMAR table that was found in 370 real machines.
const TABLE_BYTES: usize = 1286;
/// Decoding it.
const DECODE_NS: f64 = 5_000.0;
/// Grouping 10,000 functions with all reasons.
const GROUP_NS: f64 = 100e6;
/// `iommu groups` on the machine that this runs on, from start to end of the process.
const COMMAND_NS: f64 = 30e6;

pub(crate) fn rows(quick: bool) -> Vec<Row> {
    let benchmarks: [(&str, Measure); 3] = [("H1", decode), ("H2", large_machine), ("H3", command)];
    measured(quick, &benchmarks)
}

/// Median of the time that one call takes, in nanoseconds.
fn median_ns(turns: usize, mut call: impl FnMut() -> Duration) -> f64 {
    let mut times: Vec<Duration> = (0..turns).map(|_| call()).collect();
    times.sort_unstable();
    times
        .get(times.len() / 2)
        .map_or(f64::NAN, |time| time.as_secs_f64() * 1e9)
}

/// A table of the length and shape of the longest real one: two units, nine regions with 75 scopes.
fn longest_table() -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    const SEGMENT: Segment = Segment(0);
    let at = |n: u8| -> Result<SourceId, Box<dyn std::error::Error>> {
        Ok(SourceId::new(n % 8, DevFn::new(n % 32, n % 8).ok_or("in range")?))
    };
    let mut table = OwnedDmar::new(46);
    let mut listed = OwnedDrhd::new(SEGMENT, HostPhys::new(0xfbef_e000));
    for n in 0..8 {
        listed = listed.scope(OwnedScope::sub_hierarchy(at(n)?));
    }
    let mut rest = OwnedDrhd::new(SEGMENT, HostPhys::new(0xf4ff_e000)).include_pci_all();
    for n in 0..20 {
        rest = rest.scope(OwnedScope::io_apic(n, at(n)?));
    }
    table = table.with(listed).with(rest);
    for region in 0..9_u8 {
        let base = 0xbdf0_0000 + u64::from(region) * 0x1_0000;
        let range = AddrRange::new(HostPhys::new(base), HostPhys::new(base + 0xffff)).ok_or("ordered")?;
        let mut rmrr = OwnedRmrr::new(SEGMENT, range);
        for n in 0..8 + u8::from(region < 3) {
            rmrr = rmrr.scope(OwnedScope::endpoint(at(n)?));
        }
        table = table.with(rmrr);
    }
    let mut atsr = OwnedAtsr::new(SEGMENT);
    for n in 0..17 {
        atsr = atsr.scope(OwnedScope::sub_hierarchy(at(n)?));
    }
    let bytes = table.with(atsr).with(OwnedAndd::new(1, "\\_SB.PCI0.I2C")).build()?;
    if bytes.len() != TABLE_BYTES {
        return Err(format!("the table has {} bytes", bytes.len()).into());
    }
    Ok(bytes)
}

/// Reads every field that a driver reads: units, regions, scopes with their paths.
fn read_all(bytes: &[u8]) -> Option<u64> {
    let table = Dmar::parse(bytes).ok()?;
    let mut sum = u64::from(table.host_address_bits());
    for structure in table.structures() {
        let structure = structure.ok()?;
        sum = sum.wrapping_add(match structure {
            Structure::Drhd(unit) => unit.register_base().raw(),
            Structure::Rmrr(rmrr) => rmrr.base().raw() ^ rmrr.limit().raw(),
            _ => u64::from(structure.kind().0),
        });
        let Some((_, scopes)) = structure.scope_list() else {
            continue;
        };
        for scope in scopes {
            let scope = scope.ok()?;
            for hop in scope.path() {
                sum = sum.wrapping_add(u64::from(hop.device) << 3 | u64::from(hop.function));
            }
        }
    }
    Some(sum)
}

fn decode(quick: bool) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    const BATCH: u32 = 100;
    let bytes = longest_table()?;
    read_all(&bytes).ok_or("the table cannot be read")?;
    let turns = if quick { 20 } else { 1000 };
    let ns = median_ns(turns, || {
        timed(|| {
            for _ in 0..BATCH {
                black_box(read_all(black_box(&bytes)));
            }
        })
    });
    let case = format!("decode a DMAR table of {TABLE_BYTES} bytes");
    Ok(vec![Row::alone("H1", case, ns / f64::from(BATCH), Some(DECODE_NS))])
}

/// Configuration space up to the end of the ACS capability; the rest reads as zero.
type Space = [u32; 0x110 / 4];

/// A machine of four segments: root ports with large multifunction devices, and with switches.
#[derive(Default)]
struct Large {
    functions: HashMap<Bdf, Space>,
    roots: Vec<BusId>,
}

impl ConfigAccess for Large {
    fn read32(&self, function: Bdf, offset: u16) -> Option<u32> {
        let Some(space) = self.functions.get(&function) else {
            return Some(u32::MAX);
        };
        Some(space.get(usize::from(offset / 4)).copied().unwrap_or(0))
    }
}

/// Kinds of PCI Express functions, as their capability has them.
const ENDPOINT: u32 = 0;
const ROOT_PORT: u32 = 4;
const UPSTREAM: u32 = 5;
const DOWNSTREAM: u32 = 6;

impl Large {
    /// Adds a function: its kind, the buses below a bridge, and whether it has access control.
    fn put(&mut self, at: Bdf, kind: u32, buses: Option<(u8, u8)>, acs: bool) {
        let mut space: Space = [0; 0x110 / 4];
        let mut set = |offset: usize, value: u32| {
            if let Some(dword) = space.get_mut(offset / 4) {
                *dword = value;
            }
        };
        set(0x00, 0x0001_1234);
        set(0x04, 0x0010_0000);
        set(0x08, if buses.is_some() { 0x0604_0000 } else { 0x0200_0000 });
        set(0x0c, if buses.is_some() { 0x0081_0000 } else { 0x0080_0000 });
        if let Some((first, last)) = buses {
            set(0x18, u32::from_le_bytes([at.bus(), first, last, 0]));
        } else {
            set(0x10, 0xdf00_0000);
        }
        set(0x34, 0x40);
        set(0x40, 0x0002_0010 | kind << 20);
        if acs {
            set(0x100, 0x0001_000d);
            set(0x104, 0x001d_001d);
        }
        self.functions.insert(at, space);
    }

    fn build() -> Option<Self> {
        const SEGMENTS: u32 = 4;
        let mut machine = Self::default();
        for segment in (0..SEGMENTS).map(Segment) {
            machine.roots.push(BusId::new(segment, 0));
            let at = |bus: u8, n: u8| Bdf::new(segment, SourceId::new(bus, DevFn::from_raw(n)));
            let mut bus = 1_u8;
            for port in 0..25_u8 {
                // Every fourth port and every third device lacks access control.
                let acs = !port.is_multiple_of(4);
                let slot = 8 + port;
                if port.is_multiple_of(2) {
                    machine.put(at(0, slot), ROOT_PORT, Some((bus, bus)), acs);
                    for n in 0..100 {
                        machine.put(at(bus, n), ENDPOINT, None, !port.is_multiple_of(3));
                    }
                    bus += 1;
                    continue;
                }
                machine.put(at(0, slot), ROOT_PORT, Some((bus, bus + 9)), acs);
                machine.put(at(bus, 0), UPSTREAM, Some((bus + 1, bus + 9)), false);
                for below in 0..8 {
                    let link = bus + 2 + below;
                    machine.put(at(bus + 1, below * 8), DOWNSTREAM, Some((link, link)), acs);
                    for n in 0..12 {
                        machine.put(at(link, n), ENDPOINT, None, !below.is_multiple_of(3));
                    }
                }
                bus = bus.checked_add(10)?;
            }
        }
        Some(machine)
    }
}

fn large_machine(quick: bool) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let machine = Large::build().ok_or("too many buses")?;
    let functions: Vec<Bdf> = machine.functions.keys().copied().collect();
    if functions.len() < 10_000 {
        return Err(format!("only {} functions", functions.len()).into());
    }
    let facts = Facts::default();
    let (mut groups, mut reasons) = (0, 0);
    let turns = if quick { 3 } else { 41 };
    let ns = median_ns(turns, || {
        timed(|| {
            let given = functions.iter().copied();
            let topology = Topology::from_functions(&machine, given, Roots::Given(&machine.roots), &facts);
            let computed = group(&topology, Rules::Linux(LinuxVersion::LATEST));
            groups = computed.all().len();
            reasons = computed.all().iter().map(|group| computed.reasons(group).len()).sum();
            black_box(&computed);
        })
    });
    if groups < 100 || reasons < functions.len() / 4 {
        return Err(format!("{groups} groups with {reasons} reasons: not the machine that is meant").into());
    }
    let case = format!("{} functions, {groups} groups, {reasons} reasons", functions.len());
    Ok(vec![Row::alone("H2", case, ns, Some(GROUP_NS))])
}

/// The whole command, which stands beside this program when both are built in one folder.
fn command(quick: bool) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let binary = std::env::current_exe()?.with_file_name("iommu");
    if !binary.is_file() {
        return Err("build it too: cargo build --release -p iommu-cli".into());
    }
    let run = || {
        Command::new(&binary)
            .arg("groups")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
    };
    run()?;
    let mut failed = false;
    let turns = if quick { 3 } else { 101 };
    let ns = median_ns(turns, || timed(|| failed |= run().is_err()));
    if failed {
        return Err("it did not start every time".into());
    }
    Ok(vec![Row::alone(
        "H3",
        "iommu groups on this machine, whole process".to_owned(),
        ns,
        Some(COMMAND_NS),
    )])
}
