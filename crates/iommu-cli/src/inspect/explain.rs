//! One translation, step by step: every entry on the way, where it is, what it holds and what that means.

use iommu_types::{Access, Bdf, HostPhys, Iova, Pasid, Perms, SourceId};
use iommu_vfio::Platform;
use serde::Serialize;
use soft_platform::Service;
use vtd_model::Request;
use vtd_spec::entry::{
    ContextEntry, PasidDirectoryEntry, PasidEntry, RootEntry, ScalableContextEntry, ScalableRootEntry,
};
use vtd_spec::register::TranslationTableMode;
use vtd_spec::{level_shift, table_index};

use super::tables::{Context, Entry, NotMemory, Reader, Route, Stage, add, both};

/// One entry on the way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Step {
    /// What it is.
    pub(crate) what: String,
    /// Where it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) at: Option<String>,
    /// Its words, lowest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) words: Vec<String>,
    /// What it means.
    pub(crate) says: String,
}

/// A translation that was followed.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Explained {
    /// Who asks.
    pub(crate) function: String,
    /// Under which requester ID.
    pub(crate) source: String,
    /// The address.
    pub(crate) iova: String,
    /// The entries.
    pub(crate) steps: Vec<Step>,
    /// Where it leads, if it leads anywhere.
    pub(crate) host_address: Option<String>,
    /// What may be done there: `read`, `write`.
    pub(crate) allowed: Vec<&'static str>,
    /// What the unit itself answers to a read and a write of one byte.
    pub(crate) unit_answers: Vec<String>,
    /// Where the tables and the unit's answers differ.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) findings: Vec<String>,
}

/// The end of a way.
type End = Option<(HostPhys, Perms)>;

struct Way<'a> {
    reader: &'a Reader<'a>,
    steps: Vec<Step>,
}

/// Follows `iova` of `function`.
///
/// # Errors
/// Why there is no way to follow.
pub(crate) fn explain(platform: &Platform, function: Bdf, iova: Iova) -> Result<Explained, String> {
    let machine = platform.machine();
    let info = machine
        .function(function)
        .ok_or_else(|| format!("{function}: the machine has no such function"))?;
    let source = request_id(platform, function);
    let mut explained = Explained {
        function: function.to_string(),
        source: source.to_string(),
        iova: iova.to_string(),
        steps: Vec::new(),
        host_address: None,
        allowed: Vec::new(),
        unit_answers: Vec::new(),
        findings: Vec::new(),
    };
    if source != function.source {
        explained.steps.push(step(
            "requester ID",
            format!("requests of {function} arrive as {source}: a bridge puts its own on them"),
        ));
    }
    let unit = match info.service {
        Service::Unit(unit, why) => {
            explained
                .steps
                .push(step("unit", format!("unit {unit} looks at them: {why}")));
            unit
        }
        other => {
            explained.steps.push(step("unit", other.to_string()));
            if other == Service::Uncovered {
                let all = Perms::READ_WRITE;
                explained.end(Some((HostPhys::new(iova.raw()), all)));
            }
            return Ok(explained);
        }
    };
    let reader = Reader::new(machine, unit).ok_or_else(|| format!("unit {unit} is not there"))?;
    let mut way = Way {
        reader: &reader,
        steps: Vec::new(),
    };
    let end = way.follow(source, iova).map_err(|why| why.to_string())?;
    explained.steps.append(&mut way.steps);
    explained.end(end);
    for (access, name) in [(Access::Read, "read"), (Access::Write, "write")] {
        let asked = machine.with_unit(unit, |unit| unit.dma(machine, &Request::new(source, iova, 1, access)));
        let Some(answer) = asked else { continue };
        let by_tables = end.filter(|(_, perms)| match access {
            Access::Write => perms.write,
            _ => perms.read,
        });
        let (said, answered) = match answer {
            Ok(translation) => (format!("{name}: {}", translation.phys), Some(translation.phys)),
            Err(fault) => {
                let reason = fault.reason;
                (
                    format!("{name}: blocked, {:02x}h {}", reason.0, reason.description()),
                    None,
                )
            }
        };
        if answered != by_tables.map(|(at, _)| at) {
            explained.findings.push(format!(
                "a {name} of {iova} by {source}: the tables say {}, the unit says {said}",
                by_tables.map_or_else(|| "blocked".to_owned(), |(at, _)| at.to_string())
            ));
        }
        explained.unit_answers.push(said);
    }
    Ok(explained)
}

/// The requester ID that requests of a function arrive with: its own, unless a bridge above replaces it.
fn request_id(platform: &Platform, function: Bdf) -> SourceId {
    let iova = Iova::new(0);
    match platform.machine().route(function, iova) {
        Some(soft_platform::Route::Upstream { source }) => source,
        _ => function.source,
    }
}

fn step(what: &str, says: String) -> Step {
    Step {
        what: what.to_owned(),
        at: None,
        words: Vec::new(),
        says,
    }
}

impl Explained {
    fn end(&mut self, end: End) {
        let Some((at, perms)) = end else { return };
        self.host_address = Some(at.to_string());
        self.allowed.extend(perms.read.then_some("read"));
        self.allowed.extend(perms.write.then_some("write"));
    }
}

impl Way<'_> {
    fn note(&mut self, what: String, at: HostPhys, words: &[u64], says: String) {
        self.steps.push(Step {
            what,
            at: Some(at.to_string()),
            words: words.iter().map(|word| format!("{word:#018x}")).collect(),
            says,
        });
    }

    fn follow(&mut self, source: SourceId, iova: Iova) -> Result<End, NotMemory> {
        let header = self.reader.header;
        if !header.translating {
            self.steps.push(step(
                "registers",
                "translation is off: the address is the memory's own".to_owned(),
            ));
            return Ok(Some((HostPhys::new(iova.raw()), Perms::READ_WRITE)));
        }
        let (root, mode) = (header.root.root_table(), header.root.ttm());
        self.steps.push(step(
            "registers",
            format!("translation is on, {mode:?} mode, root table at {root}"),
        ));
        let route = match mode {
            TranslationTableMode::Legacy => self.legacy(source)?,
            TranslationTableMode::Scalable => self.scalable(source)?,
            TranslationTableMode::AbortDma | TranslationTableMode::Reserved => None,
        };
        match route.map(|context| context.route) {
            None => Ok(None),
            Some(Route::PassThrough) => Ok(Some((HostPhys::new(iova.raw()), Perms::READ_WRITE))),
            Some(Route::Table { stage, root, levels }) => self.pages(stage, root, levels, iova),
            Some(Route::Nested { .. }) => {
                let says = "nested translation: the guest's tables are not followed here";
                self.steps.push(step("first stage", says.to_owned()));
                Ok(None)
            }
            Some(Route::Unusable) => Ok(None),
        }
    }

    fn legacy(&mut self, source: SourceId) -> Result<Option<Context>, NotMemory> {
        let at = self.reader.root_entry(source.bus());
        let words = self.reader.words("root entry", at)?;
        let root = RootEntry::from_words(words);
        let what = format!("root entry of bus {:02x}", source.bus());
        if !root.p() {
            self.note(
                what,
                at,
                &words,
                "not present: every function of the bus is blocked".to_owned(),
            );
            return Ok(None);
        }
        let table = root.context_table();
        self.note(what, at, &words, format!("present, context table at {table}"));
        let at = add(table, u64::from(source.devfn().raw()) * ContextEntry::BYTES);
        let words = self.reader.words("context entry", at)?;
        let entry = ContextEntry::from_words(words);
        let what = format!("context entry of {source}");
        if !entry.p() {
            self.note(what, at, &words, "not present: the function is blocked".to_owned());
            return Ok(None);
        }
        let context = self.context(source, None)?;
        let says = context.as_ref().map_or_else(String::new, describe);
        self.note(what, at, &words, says);
        Ok(context)
    }

    fn scalable(&mut self, source: SourceId) -> Result<Option<Context>, NotMemory> {
        let at = self.reader.root_entry(source.bus());
        let words = self.reader.words("root entry", at)?;
        let root = ScalableRootEntry::from_words(words);
        let what = format!("root entry of bus {:02x}", source.bus());
        let Some(table) = root.context_table(source.devfn()) else {
            self.note(
                what,
                at,
                &words,
                "this half is not present: its functions are blocked".to_owned(),
            );
            return Ok(None);
        };
        self.note(
            what,
            at,
            &words,
            format!("present, context table of this half at {table}"),
        );
        let at = add(table, ScalableContextEntry::byte_offset(source.devfn()));
        let words: [u64; 2] = self.reader.words("context entry", at)?;
        let entry = ScalableContextEntry::from_words(words);
        let what = format!("context entry of {source}");
        if !entry.p() {
            self.note(what, at, &words, "not present: the function is blocked".to_owned());
            return Ok(None);
        }
        let (directory, pasid) = (entry.pasid_directory(), entry.request_id_pasid());
        self.note(
            what,
            at,
            &words,
            format!(
                "present, PASID directory at {directory}; requests without PASID count as PASID {}",
                pasid.raw()
            ),
        );
        let at = add(
            directory,
            u64::from(PasidDirectoryEntry::index(pasid)) * PasidDirectoryEntry::BYTES,
        );
        let words: [u64; 1] = self.reader.words("PASID directory entry", at)?;
        let [word] = words;
        let entry = PasidDirectoryEntry::new_with_raw_value(word);
        let what = format!("PASID directory entry of PASID {}", pasid.raw());
        if !entry.p() {
            self.note(what, at, &words, "not present: the request is blocked".to_owned());
            return Ok(None);
        }
        let table = entry.pasid_table();
        self.note(what, at, &words, format!("present, PASID table at {table}"));
        let at = add(table, u64::from(PasidEntry::index(pasid)) * PasidEntry::BYTES);
        let words: [u64; 8] = self.reader.words("PASID entry", at)?;
        let what = format!("PASID entry of PASID {}", pasid.raw());
        let context = self.context(source, Some(pasid))?;
        let says = context
            .as_ref()
            .map_or_else(|| "not present: the request is blocked".to_owned(), describe);
        self.note(what, at, words.get(..3).unwrap_or_default(), says);
        Ok(context)
    }

    /// The way of a requester as [`Reader::contexts`] finds it.
    fn context(&self, source: SourceId, pasid: Option<Pasid>) -> Result<Option<Context>, NotMemory> {
        let mut contexts = self.reader.contexts()?.into_iter();
        Ok(contexts.find(|context| context.source == source && context.pasid == pasid))
    }

    fn pages(&mut self, stage: Stage, root: HostPhys, levels: u8, iova: Iova) -> Result<End, NotMemory> {
        let bits = level_shift(levels + 1);
        if iova.raw() >> bits != 0 {
            let says = format!("{iova} has bits above the {bits} that {levels} levels translate: it is blocked");
            self.steps.push(step("page tables", says));
            return Ok(None);
        }
        let (mut table, mut granted) = (root, Perms::READ_WRITE);
        for level in (1..=levels).rev() {
            let index = table_index(iova.raw(), level);
            let at = add(table, index as u64 * 8);
            let words: [u64; 1] = self.reader.words("page table entry", at)?;
            let [word] = words;
            let entry = Entry::decode(stage, level, word);
            let what = format!("level {level} entry {index}");
            let Some(perms) = entry.perms else {
                let size = crate::size::show(1 << level_shift(level));
                self.note(
                    what,
                    at,
                    &words,
                    format!("not present: nothing of these {size} is mapped"),
                );
                return Ok(None);
            };
            granted = both(granted, perms);
            if entry.leaf {
                let size = 1_u64 << level_shift(level);
                let page = HostPhys::new(entry.address.raw() & !(size - 1));
                let says = format!("{}: the page of {} at {page}", rights(perms), crate::size::show(size));
                self.note(what, at, &words, says);
                return Ok(Some((add(page, iova.raw() & (size - 1)), granted)));
            }
            self.note(
                what,
                at,
                &words,
                format!("{}: the next table at {}", rights(perms), entry.address),
            );
            table = entry.address;
        }
        Ok(None)
    }
}

/// Rights in words.
pub(crate) const fn rights(perms: Perms) -> &'static str {
    match (perms.read, perms.write) {
        (true, true) => "read and write",
        (true, false) => "read only",
        (false, true) => "write only",
        (false, false) => "nothing",
    }
}

/// Where a context's requests go, in words.
pub(crate) fn describe(context: &Context) -> String {
    let domain = context.domain.0;
    match context.route {
        Route::Table { stage, root, levels } => {
            let stage = match stage {
                Stage::Second => "second",
                Stage::First => "first",
            };
            format!("present, domain {domain}, {stage}-stage table with {levels} levels at {root}")
        }
        Route::PassThrough => format!("present, domain {domain}, addresses pass as they are"),
        Route::Nested { second } => format!("present, domain {domain}, nested, second-stage table at {second}"),
        Route::Unusable => format!("present, domain {domain}, with a code that no unit takes: everything is blocked"),
    }
}
