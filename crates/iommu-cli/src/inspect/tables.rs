//! What a unit's tables say, read from the machine's memory as the specification lays them out.
//!
//! Neither the driver nor the model of the unit is asked: the registers give the root, and from there on every entry is
//! fetched and decoded here. So this is a second opinion on what both believe.

use iommu_types::{DevFn, DomainId, HostPhys, Iova, Pasid, Perms, Registers, SourceId, SystemMemory};
use soft_platform::Machine;
use vtd_spec::entry::{
    ContextEntry, ContextTranslation, FirstStageEntry, FirstStagePagingMode, Irte, PasidDirectoryEntry, PasidEntry,
    PasidTranslation, RootEntry, ScalableContextEntry, ScalableRootEntry, SecondStageEntry,
};
use vtd_spec::register::{GlobalStatus, InterruptRemapTableAddress, RootTableAddress, TranslationTableMode, offset};
use vtd_spec::{Agaw, TABLE_INDEX_BITS, level_shift};

/// Entries of a page table.
const ENTRIES: u64 = 1 << TABLE_INDEX_BITS;
/// Bytes of a page table entry.
const ENTRY: u64 = 8;
/// Page table entries that are read for one domain at most: more than a guest of 16 GiB in 4 KiB pages has.
const MOST_ENTRIES: u64 = 1 << 22;
/// Ranges that are kept for one domain at most.
const MOST_RUNS: usize = 1 << 16;
/// PASID table entries that are looked at for one function at most.
const MOST_PASIDS: u32 = 1 << 12;

/// Which kind of page table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stage {
    /// Second-stage. VT-d §9.8.
    Second,
    /// First-stage. VT-d §9.7.
    First,
}

/// What an entry that is present does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Route {
    /// They are translated by this table.
    Table {
        /// Which kind.
        stage: Stage,
        /// Its root.
        root: HostPhys,
        /// Its levels.
        levels: u8,
    },
    /// They pass as they are.
    PassThrough,
    /// A guest's first stage, its addresses through a second stage: shown, not walked.
    Nested {
        /// Root of the second stage.
        second: HostPhys,
    },
    /// The entry has a code that no unit takes: everything is blocked.
    Unusable,
}

/// A function's way from the root table to its page table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// Whose requests.
    pub(crate) source: SourceId,
    /// The PASID, in scalable mode.
    pub(crate) pasid: Option<Pasid>,
    /// Where its context entry or PASID entry is.
    pub(crate) at: HostPhys,
    /// The tag of its translations.
    pub(crate) domain: DomainId,
    /// Where its requests go.
    pub(crate) route: Route,
}

/// A run of addresses that are mapped to a run of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The first address.
    pub(crate) iova: Iova,
    /// The first byte of memory.
    pub(crate) phys: HostPhys,
    /// Length in bytes.
    pub(crate) len: u64,
    /// What is permitted.
    pub(crate) perms: Perms,
}

/// All that a page table maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mapped {
    /// In ascending order, joined where they touch.
    pub(crate) runs: Vec<Run>,
    /// Leaves of 4 KiB, 2 MiB and 1 GiB.
    pub(crate) leaves: [u64; 3],
    /// Whether a bound ended the reading.
    pub(crate) cut: bool,
}

/// The interrupt remapping table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InterruptTable {
    /// Where it is.
    pub(crate) at: HostPhys,
    /// Its entries.
    pub(crate) entries: u32,
    /// Those that are present.
    pub(crate) present: u32,
}

/// What the registers of a unit say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    /// Whether translation is on (GSTS.TES).
    pub(crate) translating: bool,
    /// Whether interrupts are remapped (GSTS.IRES).
    pub(crate) remapping: bool,
    /// The root table register.
    pub(crate) root: RootTableAddress,
}

/// A table or entry that is not memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {what} at {at} is not memory")]
pub(crate) struct NotMemory {
    /// What was looked for.
    pub(crate) what: &'static str,
    /// Where.
    pub(crate) at: HostPhys,
}

/// Reads the tables of one unit.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    machine: &'a Machine,
    /// Where it starts.
    pub(crate) header: Header,
    interrupts: InterruptRemapTableAddress,
}

impl<'a> Reader<'a> {
    /// The unit with this position among the machine's units.
    pub(crate) fn new(machine: &'a Machine, unit: usize) -> Option<Self> {
        let registers = machine.registers(unit)?;
        let status = GlobalStatus::new_with_raw_value(registers.read32(offset::GSTS));
        Some(Self {
            machine,
            header: Header {
                translating: status.tes(),
                remapping: status.ires(),
                root: RootTableAddress::new_with_raw_value(registers.read64(offset::RTADDR)),
            },
            interrupts: InterruptRemapTableAddress::new_with_raw_value(registers.read64(offset::IRTA)),
        })
    }

    /// `N` words of something.
    pub(crate) fn words<const N: usize>(&self, what: &'static str, at: HostPhys) -> Result<[u64; N], NotMemory> {
        self.machine.read_words(at).map_err(|_| NotMemory { what, at })
    }

    /// Where the root entry of a bus is.
    pub(crate) fn root_entry(&self, bus: u8) -> HostPhys {
        add(self.header.root.root_table(), u64::from(bus) * RootEntry::BYTES)
    }

    /// Every function that has an entry which is present.
    pub(crate) fn contexts(&self) -> Result<Vec<Context>, NotMemory> {
        let mut contexts = Vec::new();
        for bus in 0..=u8::MAX {
            let at = self.root_entry(bus);
            match self.header.root.ttm() {
                TranslationTableMode::Legacy => {
                    let entry = RootEntry::from_words(self.words("root entry", at)?);
                    if entry.p() {
                        self.legacy_bus(bus, entry.context_table(), &mut contexts)?;
                    }
                }
                TranslationTableMode::Scalable => {
                    let entry = ScalableRootEntry::from_words(self.words("root entry", at)?);
                    self.scalable_bus(bus, entry, &mut contexts)?;
                }
                TranslationTableMode::AbortDma | TranslationTableMode::Reserved => {}
            }
        }
        Ok(contexts)
    }

    fn legacy_bus(&self, bus: u8, table: HostPhys, contexts: &mut Vec<Context>) -> Result<(), NotMemory> {
        for devfn in (0..=u8::MAX).map(DevFn::from_raw) {
            let at = add(table, u64::from(devfn.raw()) * ContextEntry::BYTES);
            let entry = ContextEntry::from_words(self.words("context entry", at)?);
            if entry.p() {
                contexts.push(Context {
                    source: SourceId::new(bus, devfn),
                    pasid: None,
                    at,
                    domain: entry.domain(),
                    route: legacy_route(entry),
                });
            }
        }
        Ok(())
    }

    fn scalable_bus(&self, bus: u8, root: ScalableRootEntry, contexts: &mut Vec<Context>) -> Result<(), NotMemory> {
        for devfn in (0..=u8::MAX).map(DevFn::from_raw) {
            let Some(table) = root.context_table(devfn) else {
                continue;
            };
            let at = add(table, ScalableContextEntry::byte_offset(devfn));
            let entry = ScalableContextEntry::from_words(self.words("context entry", at)?);
            if entry.p() {
                self.pasids(SourceId::new(bus, devfn), entry, contexts)?;
            }
        }
        Ok(())
    }

    /// The PASID entries of one function that are present.
    fn pasids(
        &self,
        source: SourceId,
        context: ScalableContextEntry,
        contexts: &mut Vec<Context>,
    ) -> Result<(), NotMemory> {
        let last = context.max_pasid().raw();
        let mut looked = 0;
        let mut number = 0;
        while number <= last && looked < MOST_PASIDS {
            let Some(pasid) = Pasid::new(number) else { break };
            let directory = u64::from(PasidDirectoryEntry::index(pasid)) * PasidDirectoryEntry::BYTES;
            let [word] = self.words("PASID directory entry", add(context.pasid_directory(), directory))?;
            let entry = PasidDirectoryEntry::new_with_raw_value(word);
            // A directory entry stands for the PASIDs of one table.
            let next = (number | 0x3f) + 1;
            if !entry.p() {
                number = next;
                looked += 1;
                continue;
            }
            while number < next {
                let Some(pasid) = Pasid::new(number) else { break };
                let at = add(
                    entry.pasid_table(),
                    u64::from(PasidEntry::index(pasid)) * PasidEntry::BYTES,
                );
                let entry = PasidEntry::from_words(self.words("PASID entry", at)?);
                if entry.control.p() {
                    contexts.push(Context {
                        source,
                        pasid: Some(pasid),
                        at,
                        domain: entry.tags.domain(),
                        route: pasid_route(&entry),
                    });
                }
                number += 1;
                looked += 1;
            }
        }
        Ok(())
    }

    /// All that a page table maps.
    pub(crate) fn mapped(&self, stage: Stage, root: HostPhys, levels: u8) -> Result<Mapped, NotMemory> {
        let mut mapped = Mapped::default();
        let mut budget = MOST_ENTRIES;
        self.table(stage, root, levels, 0, Perms::READ_WRITE, &mut mapped, &mut budget)?;
        Ok(mapped)
    }

    /// One table and those below it. The recursion is as deep as tables are: five levels.
    #[expect(clippy::too_many_arguments, reason = "what a walk knows at each table")]
    fn table(
        &self,
        stage: Stage,
        table: HostPhys,
        level: u8,
        base: u64,
        above: Perms,
        mapped: &mut Mapped,
        budget: &mut u64,
    ) -> Result<(), NotMemory> {
        for index in 0..ENTRIES {
            if *budget == 0 || mapped.runs.len() >= MOST_RUNS {
                mapped.cut = true;
                return Ok(());
            }
            *budget -= 1;
            let [word] = self.words("page table entry", add(table, index * ENTRY))?;
            let entry = Entry::decode(stage, level, word);
            let Some(perms) = entry.perms.map(|perms| both(perms, above)) else {
                continue;
            };
            let iova = base + (index << level_shift(level));
            if entry.leaf {
                let size = 1 << level_shift(level);
                mapped.push(Run {
                    iova: Iova::new(iova),
                    phys: HostPhys::new(entry.address.raw() & !(size - 1)),
                    len: size,
                    perms,
                });
                if let Some(count) = mapped.leaves.get_mut(usize::from(level.saturating_sub(1))) {
                    *count += 1;
                }
            } else {
                self.table(stage, entry.address, level - 1, iova, perms, mapped, budget)?;
            }
        }
        Ok(())
    }

    /// The interrupt remapping table, if interrupts are remapped.
    pub(crate) fn interrupts(&self) -> Result<Option<InterruptTable>, NotMemory> {
        if !self.header.remapping {
            return Ok(None);
        }
        let at = HostPhys::new(self.interrupts.irta().value() << iommu_types::PAGE_SHIFT);
        let mut present = 0;
        for index in 0..u64::from(self.interrupts.entries()) {
            let entry = Irte::from_words(self.words("interrupt remapping entry", add(at, index * Irte::BYTES))?);
            present += u32::from(entry.p());
        }
        Ok(Some(InterruptTable {
            at,
            entries: self.interrupts.entries(),
            present,
        }))
    }
}

/// A page table entry of either kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// What it permits; nothing if it is not present.
    pub(crate) perms: Option<Perms>,
    /// Whether it maps a page.
    pub(crate) leaf: bool,
    /// The page or the next table.
    pub(crate) address: HostPhys,
}

impl Entry {
    /// Decodes an entry of a table at `level`.
    pub(crate) fn decode(stage: Stage, level: u8, word: u64) -> Self {
        match stage {
            Stage::Second => {
                let entry = SecondStageEntry::new_with_raw_value(word);
                Self {
                    perms: entry.is_present().then(|| entry.perms()),
                    leaf: entry.is_leaf(level),
                    address: entry.address(),
                }
            }
            Stage::First => {
                let entry = FirstStageEntry::new_with_raw_value(word);
                let perms = Perms {
                    read: true,
                    write: entry.rw(),
                };
                Self {
                    perms: entry.p().then_some(perms),
                    leaf: entry.is_leaf(level),
                    address: entry.address(),
                }
            }
        }
    }
}

impl Mapped {
    /// Adds a run that lies above all others.
    fn push(&mut self, run: Run) {
        join(&mut self.runs, run);
    }

    /// Bytes that are mapped.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.len).sum()
    }
}

/// Adds a run, as part of the last one if it continues it.
pub(crate) fn join(runs: &mut Vec<Run>, run: Run) {
    if let Some(last) = runs.last_mut()
        && last.perms == run.perms
        && last.iova.checked_add(last.len) == Some(run.iova)
        && last.phys.checked_add(last.len) == Some(run.phys)
    {
        last.len += run.len;
        return;
    }
    runs.push(run);
}

fn legacy_route(entry: ContextEntry) -> Route {
    match (entry.tt(), entry.agaw()) {
        (ContextTranslation::PassThrough, _) => Route::PassThrough,
        (ContextTranslation::Untranslated | ContextTranslation::WithDeviceTlb, Some(agaw)) => Route::Table {
            stage: Stage::Second,
            root: entry.second_stage_table(),
            levels: agaw.levels(),
        },
        _ => Route::Unusable,
    }
}

fn pasid_route(entry: &PasidEntry) -> Route {
    let second = entry.control.second_stage_table();
    match (entry.control.translation(), entry.control.agaw()) {
        (Some(PasidTranslation::PassThrough), _) => Route::PassThrough,
        (Some(PasidTranslation::SecondStage), Some(agaw)) => Route::Table {
            stage: Stage::Second,
            root: second,
            levels: agaw.levels(),
        },
        (Some(PasidTranslation::FirstStage), _) => {
            let levels = match entry.first_stage.fspm() {
                FirstStagePagingMode::FourLevel => Agaw::Bits48.levels(),
                FirstStagePagingMode::FiveLevel => Agaw::Bits57.levels(),
                _ => return Route::Unusable,
            };
            Route::Table {
                stage: Stage::First,
                root: entry.first_stage.table(),
                levels,
            }
        }
        (Some(PasidTranslation::Nested), _) => Route::Nested { second },
        _ => Route::Unusable,
    }
}

/// What two entries on one way permit together.
pub(crate) const fn both(a: Perms, b: Perms) -> Perms {
    Perms {
        read: a.read && b.read,
        write: a.write && b.write,
    }
}

/// An address past another; the last one where it would pass the end.
pub(crate) fn add(at: HostPhys, bytes: u64) -> HostPhys {
    at.checked_add(bytes).unwrap_or(HostPhys::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_only_where_both_sides_continue() {
        let run = |iova, phys| Run {
            iova: Iova::new(iova),
            phys: HostPhys::new(phys),
            len: 0x1000,
            perms: Perms::READ,
        };
        let mut runs = Vec::new();
        join(&mut runs, run(0x1000, 0x8000));
        join(&mut runs, run(0x2000, 0x9000));
        assert_eq!(runs.len(), 1);
        join(&mut runs, run(0x3000, 0xb000));
        join(&mut runs, run(0x5000, 0xc000));
        let writable = Run {
            perms: Perms::READ_WRITE,
            ..run(0x6000, 0xd000)
        };
        join(&mut runs, writable);
        assert_eq!(
            runs.iter().map(|run| run.len).collect::<Vec<_>>(),
            [0x2000, 0x1000, 0x1000, 0x1000]
        );
    }

    /// A unit in scalable mode with one function in a domain, brought up by the driver.
    fn scalable(stage: vtd_driver::Stage) -> (Machine, Mapped, Vec<Context>) {
        use soft_platform::{MachineDescription, MachineOptions};
        use vtd_driver::{DomainOptions, Requester, TableMode, Unit, UnitOptions};
        use vtd_model::UnitConfig;

        let description = MachineDescription::two_socket().expect("sound");
        let options = MachineOptions {
            unit: UnitConfig::builder().full_scalable_mode(),
            ..MachineOptions::default()
        };
        let dmar = description.to_dmar().expect("a table");
        let machine = Machine::build_with(&description, &dmar, options).expect("a machine");
        let registers = machine.registers(0).expect("a unit");
        let options = UnitOptions {
            mode: TableMode::Scalable,
            ..UnitOptions::default()
        };
        let unit = Unit::found(registers, machine.clone(), options).expect("it answers");
        let unit = unit.take_over().expect("it stops").enable().expect("it starts");
        let options = DomainOptions {
            stage,
            ..DomainOptions::default()
        };
        let domain = unit.create_domain(options).expect("a domain");
        let map = |iova, phys, len, perms| domain.map(Iova::new(iova), HostPhys::new(phys), len, perms);
        map(0x1000, 0x20_0000, 0x3000, Perms::READ_WRITE).expect("free");
        map(0x4000_0000, 0x40_0000, 0x20_0000, Perms::READ).expect("free");
        let source = "83:1f.7".parse().expect("valid");
        unit.attach(&Requester::new(source), &domain).expect("attached");

        let reader = Reader::new(&machine, 0).expect("the unit");
        let contexts = reader.contexts().expect("memory");
        let mapped = match contexts.first().map(|context| context.route) {
            Some(Route::Table { stage, root, levels }) => reader.mapped(stage, root, levels).expect("memory"),
            other => panic!("{other:?}"),
        };
        assert!(reader.header.translating);
        assert_eq!(contexts.first().map(|context| context.source), Some(source));
        (machine, mapped, contexts)
    }

    #[test]
    fn scalable_mode_is_read_down_to_the_pages_of_both_stages() {
        for (stage, expected) in [
            (vtd_driver::Stage::Second, Stage::Second),
            (vtd_driver::Stage::First, Stage::First),
        ] {
            let (machine, mapped, contexts) = scalable(stage);
            assert_eq!(contexts.len(), 1, "{contexts:?}");
            let context = contexts.first().expect("one");
            assert!(context.pasid.is_some());
            assert!(matches!(context.route, Route::Table { stage, .. } if stage == expected));
            let runs: Vec<(u64, u64, u64, bool)> = mapped
                .runs
                .iter()
                .map(|run| (run.iova.raw(), run.phys.raw(), run.len, run.perms.write))
                .collect();
            let large = (0x4000_0000, 0x40_0000, 0x20_0000, false);
            assert_eq!(runs, [(0x1000, 0x20_0000, 0x3000, true), large]);
            assert_eq!(mapped.leaves, [3, 1, 0]);
            drop(machine);
        }
    }

    #[test]
    fn an_entry_without_rights_is_not_there() {
        assert_eq!(Entry::decode(Stage::Second, 1, 0x1234_5000).perms, None);
        let entry = Entry::decode(Stage::Second, 2, 0x4020_0083);
        assert!(entry.leaf);
        assert_eq!(entry.perms, Some(Perms::READ_WRITE));
        let read = Entry::decode(Stage::First, 1, 0x5001);
        assert_eq!((read.perms, read.address), (Some(Perms::READ), HostPhys::new(0x5000)));
    }
}
