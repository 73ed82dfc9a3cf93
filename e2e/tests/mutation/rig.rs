//! What scenarios share: a machine that is brought up without panicking, and the ways in which a missing step shows.

use std::fmt;

use iommu_types::{Access, HostPhys, Iova, PAGE_SIZE, Perms, SourceId};
use vtd_driver::{Blocked, Domain, DomainOptions, Requester, TableMode, Translating, Unit};
use vtd_model::{Profile, UnitConfig, UnitConfigBuilder};

use crate::machine::Machine;

/// How a missing step shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// A device reaches memory that it must not reach: a stale translation, or somebody else's.
    Reached,
    /// A device does not reach what is mapped for it.
    Blocked,
    /// An interrupt arrives that must not, or at the wrong processor.
    Interrupted,
    /// The fault log says something else than what happened.
    Log,
    /// The model's sanitizer names a broken rule of the programming protocol.
    Sanitizer,
    /// Hardware refuses, or does not answer.
    Refused,
    /// What the driver must refuse is allowed.
    Allowed,
    /// Tables, descriptors or registers do not hold what the specification asks for. For what this model forgives.
    Words,
}

impl How {
    /// As `RULES.md` has it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Reached => "reached",
            Self::Blocked => "blocked",
            Self::Interrupted => "interrupted",
            Self::Log => "log",
            Self::Sanitizer => "sanitizer",
            Self::Refused => "refused",
            Self::Allowed => "allowed",
            Self::Words => "words",
        }
    }
}

/// Something was noticed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Miss {
    pub(crate) how: How,
    pub(crate) what: String,
}

/// Nothing was noticed, or the first thing that was.
pub(crate) type Verdict = Result<(), Miss>;

pub(crate) fn miss<T>(how: How, what: impl fmt::Display) -> Result<T, Miss> {
    let what = what.to_string();
    Err(Miss { how, what })
}

/// `how` unless `holds`.
pub(crate) fn ensure(holds: bool, how: How, what: impl fmt::Display) -> Verdict {
    if holds { Ok(()) } else { miss(how, what) }
}

/// Operations that succeed with every step taken.
pub(crate) trait Must<T> {
    /// The value; otherwise hardware has refused.
    fn must(self) -> Result<T, Miss>;
}

impl<T, E: fmt::Debug> Must<T> for Result<T, E> {
    fn must(self) -> Result<T, Miss> {
        self.or_else(|error| miss(How::Refused, format_args!("{error:?}")))
    }
}

pub(crate) fn silicon() -> UnitConfigBuilder {
    UnitConfig::builder().profile(Profile::Silicon).sanitizer(true)
}

pub(crate) fn scalable() -> UnitConfigBuilder {
    silicon()
        .scalable_mode(true)
        .scalable_second_stage(true)
        .first_stage(true)
        .pasid_bits(Some(20))
}

pub(crate) fn board(builder: UnitConfigBuilder) -> Machine {
    Machine::new(builder.build().expect("a possible unit"))
}

pub(crate) fn scalable_board(builder: UnitConfigBuilder) -> Machine {
    board(builder).in_mode(TableMode::Scalable)
}

pub(crate) type TestUnit<'m> = Unit<&'m Machine, &'m Machine, Translating>;
pub(crate) type TestDomain<'m> = Domain<&'m Machine, &'m Machine>;

pub(crate) fn taken_over(machine: &Machine) -> Result<Unit<&Machine, &Machine, Blocked>, Miss> {
    let unit = Unit::found(machine, machine, machine.options()).must()?;
    unit.take_over().map_err(|error| error.cause).must()
}

pub(crate) fn up(machine: &Machine) -> Result<TestUnit<'_>, Miss> {
    taken_over(machine)?.enable().map_err(|error| error.cause).must()
}

/// A unit, a domain, and a device in it.
pub(crate) struct Rig<'m> {
    pub(crate) machine: &'m Machine,
    pub(crate) unit: TestUnit<'m>,
    pub(crate) domain: TestDomain<'m>,
    pub(crate) nic: Requester,
}

/// Small pages only, so that tables come and go.
pub(crate) fn small_pages() -> DomainOptions {
    DomainOptions {
        superpages: false,
        ..DomainOptions::default()
    }
}

pub(crate) fn rig(machine: &Machine, options: DomainOptions) -> Result<Rig<'_>, Miss> {
    let unit = up(machine)?;
    let domain = unit.create_domain(options).must()?;
    let nic = Requester::new(source("02:00.0"));
    unit.attach(&nic, &domain).must()?;
    Ok(Rig {
        machine,
        unit,
        domain,
        nic,
    })
}

impl Rig<'_> {
    pub(crate) fn map(&self, at: u64, phys: u64, len: u64) -> Verdict {
        map(&self.domain, at, phys, len)
    }

    /// Unmaps and flushes.
    pub(crate) fn unmap(&self, at: u64, len: u64) -> Verdict {
        unmap(&self.domain, at, len)
    }

    pub(crate) fn reaches(&self, at: u64, phys: u64) -> Verdict {
        reaches(self.machine, self.nic.rid, at, phys)
    }

    pub(crate) fn blocked(&self, at: u64) -> Verdict {
        blocked(self.machine, self.nic.rid, at)
    }
}

pub(crate) fn map(domain: &TestDomain<'_>, at: u64, phys: u64, len: u64) -> Verdict {
    domain.map(Iova::new(at), HostPhys::new(phys), len, Perms::READ).must()
}

pub(crate) fn unmap(domain: &TestDomain<'_>, at: u64, len: u64) -> Verdict {
    let pending = domain.unmap(crate::machine::range(at, len), ()).must()?;
    domain.flush(pending).map_err(|(error, _)| error).must()
}

/// The device reaches exactly `phys`.
pub(crate) fn reaches(machine: &Machine, source: SourceId, at: u64, phys: u64) -> Verdict {
    match machine.dma(source, Iova::new(at), Access::Read) {
        Ok(reached) if reached == HostPhys::new(phys) => Ok(()),
        Ok(reached) => miss(
            How::Reached,
            format_args!("{source} at {at:#x} reaches {reached}, not {phys:#x}"),
        ),
        Err(reason) => miss(
            How::Blocked,
            format_args!("{source} at {at:#x} is blocked with fault {reason:#x}, not let to {phys:#x}"),
        ),
    }
}

/// The device reaches nothing.
pub(crate) fn blocked(machine: &Machine, source: SourceId, at: u64) -> Verdict {
    match machine.dma(source, Iova::new(at), Access::Read) {
        Ok(reached) => miss(
            How::Reached,
            format_args!("{source} at {at:#x} reaches {reached} and must not"),
        ),
        Err(_) => Ok(()),
    }
}

/// No rule of the programming protocol was broken, and no freed memory was written.
pub(crate) fn clean(machine: &Machine) -> Verdict {
    let findings = machine.take_findings();
    ensure(findings.is_empty(), How::Sanitizer, format_args!("{findings:?}"))?;
    let violations = machine.memory.violations();
    ensure(violations.is_empty(), How::Words, format_args!("{violations:?}"))
}

pub(crate) fn source(text: &str) -> SourceId {
    text.parse().expect("a source")
}

/// Bytes of `count` pages.
pub(crate) const fn pages(count: u64) -> u64 {
    count * PAGE_SIZE
}
