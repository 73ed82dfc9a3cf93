use super::*;
use crate::SparseMemory;
use crate::oracle::{OracleOutcome, OracleUnit, judge};
use crate::raw::{self, RawTables};

const SID: u16 = 0x0210;

/// Legacy unit: 16-bit domain-ids, 4 levels, MGAW 48, large pages, DT and PT.
const UNIT: OracleUnit = OracleUnit {
    rtaddr: 0x10_0000,
    cap: 6 | 1 << 10 | 47 << 16 | 3 << 34,
    ecap: 0b100_0110,
    ver: 0x10,
    haw: 46,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn addresses_keep_to_their_width(address in raw_address(39), all in raw_address(64), page in page_start(48, PageSize::Size2M)) {
        prop_assert!(address < 1 << 39);
        let _ = all;
        prop_assert!(page < 1 << 48 && page % (2 << 20) == 0);
    }

    #[test]
    fn requests_never_cross_a_page(request in request(&[SID], raw_address(64))) {
        prop_assert_eq!(request.address >> 12, (request.address + (u64::from(request.len) - 1)) >> 12);
        prop_assert!(request.pasid.is_some() || !request.privileged);
    }

    /// What was mapped is what the oracle finds, and nothing else passes.
    #[test]
    fn the_oracle_finds_what_the_builders_mapped(
        mappings in proptest::collection::vec(page_mapping(46, 46), 1..6),
        stray in raw_address(48),
    ) {
        let memory = SparseMemory::new(1 << 22);
        let mut tables = RawTables::new(&memory, 0x10_0000);
        let (root, pages) = (tables.page(), tables.page());
        tables.legacy_context(root, SID, raw::legacy_context_entry(0, pages, 2, 5));
        let mut kept: Vec<PageMapping> = Vec::new();
        let covers = |m: &PageMapping, at: u64| at & !(m.size.bytes() - 1) == m.iova.raw();
        for mapping in mappings {
            let overlaps = |other: &PageMapping| covers(other, mapping.iova.raw()) || covers(&mapping, other.iova.raw());
            if kept.iter().any(overlaps) {
                continue;
            }
            let flags = u64::from(mapping.perms.read) | u64::from(mapping.perms.write) << 1;
            tables.second_stage(pages, 4, mapping.iova.raw(), mapping.phys.raw(), u32::from(mapping.size.level()), flags);
            kept.push(mapping);
        }
        let in_interrupts = |at: u64| at >> 20 == 0xfee;
        let ends = kept.iter().flat_map(|m| [m.iova.raw(), m.iova.raw() + (m.size.bytes() - 1)]);
        for at in ends.chain([stray]).filter(|at| !in_interrupts(*at)) {
            let holder = kept.iter().find(|m| covers(m, at));
            let outcome = judge(&memory, &UNIT, &OracleRequest::new(SID, at, OracleAccess::Write)).outcome;
            match holder {
                Some(m) if m.perms.write => {
                    let host = m.phys.raw() + (at - m.iova.raw());
                    if in_interrupts(host) {
                        let blocked = matches!(outcome, OracleOutcome::Fault { reason: 0x0e, .. });
                        prop_assert!(blocked);
                    } else {
                        let expected = OracleOutcome::Pass {
                            host,
                            page_shift: m.size.shift(),
                            read: m.perms.read,
                            write: true,
                        };
                        prop_assert_eq!(outcome, expected);
                    }
                }
                _ => {
                    let blocked = matches!(outcome, OracleOutcome::Fault { reason: 0x05, .. });
                    prop_assert!(blocked, "{outcome:?}");
                }
            }
        }
    }

    /// Whatever the tables hold, each request gets an answer, and flags are only set, never granted ones.
    #[test]
    fn corrupt_tables_never_confuse_the_oracle(
        scalable in any::<bool>(),
        flips in proptest::collection::vec(corruption(), 1..12),
        requests in requests(&[SID], raw_address(16), 8),
    ) {
        let memory = SparseMemory::new(1 << 22);
        let mut tables = RawTables::new(&memory, 0x10_0000);
        let (root, directory, pages) = (tables.page(), tables.page(), tables.page());
        let mut unit = UNIT;
        if scalable {
            unit.rtaddr |= 1 << 10;
            unit.ecap |= 1 << 43 | 1 << 46 | 1 << 47 | 1 << 26 | 1 << 40 | 19 << 35;
            tables.scalable_context(root, SID, raw::scalable_context_entry(directory, 0, 0, 0b1100));
            for pasid in 0..4 {
                tables.pasid(directory, pasid, raw::pasid_nested(0x10_0000, 4, pages, 2, 1));
            }
        } else {
            tables.legacy_context(root, SID, raw::legacy_context_entry(1, pages, 2, 5));
        }
        for page in 0..8 {
            tables.second_stage(pages, 4, page << 12, page << 12, 1, 3);
        }
        let all: Vec<u64> = (root..tables.page()).step_by(4096).collect();
        for flip in &flips {
            flip.apply_to_used(&memory, &all);
        }
        for request in requests {
            let judged = judge(&memory, &unit, &request);
            if let OracleOutcome::Fault { .. } = judged.outcome {
                prop_assert!(judged.updates.is_empty());
            }
            for update in judged.updates {
                let held = memory.read_u64(HostPhys::new(update.at)).expect("tables lie in memory");
                prop_assert_eq!(held & update.set, 0);
            }
        }
    }
}
