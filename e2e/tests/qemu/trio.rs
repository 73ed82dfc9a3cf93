//! QEMU and two models, programmed alike.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use e2e::differential::{FaultLog, Modelled, Twin, take_faults};
use e2e::qtest::{self, Qemu, QtestError};
use iommu_testkit::Random;
use vtd_model::{Condition, Profile, QemuVersion};
use vtd_spec::register::offset;

pub(crate) const ROOT: u64 = 0x100_0000;
pub(crate) const CONTEXT: u64 = 0x100_1000;
/// Tables from the top level down: one each, and two leaf tables.
pub(crate) const TABLES: [u64; 5] = [0x101_0000, 0x101_1000, 0x101_2000, 0x101_3000, 0x101_4000];
pub(crate) const QUEUE: u64 = 0x103_0000;
pub(crate) const STATUS: u64 = 0x105_0000;
/// Pages that entries point to.
pub(crate) const DATA: u64 = 0x110_0000;
pub(crate) const DATA_PAGES: u64 = 64;
/// A page that stays mapped, to bring to light what a read found.
pub(crate) const WITNESS_IOVA: u64 = 0x1f_f000;
pub(crate) const WITNESS: u64 = 0x104_0000;
pub(crate) const DOMAIN: u64 = 1;
/// The page of 2 MiB that programs map, by number.
pub(crate) const LARGE: u64 = 2;

/// What was compared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) dmas: u32,
    pub(crate) passed: u32,
    pub(crate) interrupts: u32,
    pub(crate) registers: u32,
    pub(crate) reasons: BTreeMap<u8, u32>,
    pub(crate) deviations: BTreeMap<&'static str, u32>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.dmas += other.dmas;
        self.passed += other.passed;
        self.interrupts += other.interrupts;
        self.registers += other.registers;
        for (reason, count) in &other.reasons {
            *self.reasons.entry(*reason).or_default() += count;
        }
        for (number, count) in &other.deviations {
            *self.deviations.entry(number).or_default() += count;
        }
    }

    pub(crate) fn deviates(&mut self, number: &'static str) {
        *self.deviations.entry(number).or_default() += 1;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} DMAs, {} interrupts and {} register accesses with the same answers, {} let through, fault reasons {:x?}, deviations",
            self.dmas, self.interrupts, self.registers, self.passed, self.reasons
        )?;
        for (number, count) in &self.deviations {
            write!(f, " {number} {count} times,")?;
        }
        Ok(())
    }
}

/// QEMU, the model by the specification, and the model in QEMU's profile.
pub(crate) struct Trio {
    pub(crate) qemu: Qemu,
    pub(crate) strict: Modelled,
    pub(crate) alike: Modelled,
    pub(crate) version: QemuVersion,
    pub(crate) tally: Tally,
    /// Descriptors of 256 bits.
    pub(crate) wide: bool,
    /// The next free descriptor, in bytes from the start of the queue.
    tail: u64,
    /// Value of the last wait.
    waits: u64,
    /// Runs of reads of a page that both models let pass, for D-02: pages that QEMU may have in its IOTLB.
    pub(crate) touched: std::collections::BTreeSet<u64>,
    /// The interrupt under way uses a posted entry.
    pub(crate) posted: bool,
    /// The interrupt under way uses an entry with a delivery mode that does not exist.
    pub(crate) unknown_mode: bool,
    /// The interrupt under way uses an entry with a destination of more than 8 bits.
    pub(crate) wide_destination: bool,
    /// The interrupt under way uses a level-triggered entry with a delivery mode that knows only edges.
    pub(crate) edge_only: bool,
    /// The interrupt under way uses an entry that names a range of buses.
    pub(crate) bus_range: bool,
}

impl Trio {
    /// Starts QEMU for the part `part` with the properties that `iommu` names for its version; `None` if it names
    /// none.
    pub(crate) fn start(
        part: &str,
        iommu: impl FnOnce(QemuVersion) -> Option<&'static str>,
    ) -> Result<Option<Self>, QtestError> {
        let program = PathBuf::from(std::env::var_os("PORTCULLIS_QEMU").expect("looked at before"));
        let version = match qtest::version(&program)? {
            (7, _) => QemuVersion::V7_2,
            (11, _) => QemuVersion::V11_1,
            other => panic!("nothing is known about QEMU {other:?}: give its departures a profile"),
        };
        let Some(iommu) = iommu(version) else { return Ok(None) };
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("qemu-{part}-{}", std::process::id()));
        let mut qemu = Qemu::start(&program, &folder, iommu)?;
        let capability = qemu.register64(offset::CAP)?;
        let extended = qemu.register64(offset::ECAP)?;
        let model = |profile| {
            Modelled::resembling(profile, capability, extended).expect("QEMU reports consistent capabilities")
        };
        Ok(Some(Self {
            qemu,
            strict: model(Profile::Spec),
            alike: model(Profile::Qemu(version)),
            version,
            tally: Tally::default(),
            wide: false,
            tail: 0,
            waits: 0,
            touched: std::collections::BTreeSet::new(),
            posted: false,
            unknown_mode: false,
            edge_only: false,
            wide_destination: false,
            bus_range: false,
        }))
    }

    /// Does the same on all three.
    pub(crate) fn all(
        &mut self,
        mut act: impl FnMut(&mut dyn Twin) -> Result<(), QtestError>,
    ) -> Result<(), QtestError> {
        act(&mut self.qemu)?;
        act(&mut self.strict)?;
        act(&mut self.alike)
    }

    pub(crate) fn write(&mut self, at: u64, value: u64) -> Result<(), QtestError> {
        self.all(|twin| twin.write(at, value))
    }

    /// Zeroes a page.
    pub(crate) fn clear(&mut self, page: u64) -> Result<(), QtestError> {
        self.qemu.zero(page, 0x1000)?;
        for word in 0..512 {
            self.strict.write(page + word * 8, 0)?;
            self.alike.write(page + word * 8, 0)?;
        }
        Ok(())
    }

    /// A global command that all three carry out.
    pub(crate) fn command(&mut self, value: u32) -> Result<(), QtestError> {
        self.all(|twin| twin.set_register(offset::GCMD, value))?;
        let status = self.qemu.register(offset::GSTS)?;
        for model in [&mut self.strict, &mut self.alike] {
            assert_eq!(
                status,
                model.register(offset::GSTS)?,
                "global status after command {value:#x}"
            );
        }
        Ok(())
    }

    /// Queue, root table and translation on.
    pub(crate) fn bring_up(&mut self, root: u64) -> Result<(), QtestError> {
        let queue = QUEUE | u64::from(self.wide) << 11;
        self.all(|twin| twin.set_register64(offset::RTADDR, root))?;
        self.command(0x4000_0000)?;
        self.all(|twin| twin.set_register64(offset::IQA, queue))?;
        self.command(0x0400_0000)?;
        self.command(0x8400_0000)
    }

    /// Puts descriptors and a wait into the queues and sees all complete.
    pub(crate) fn invalidate(&mut self, descriptors: &[[u64; 2]]) -> Result<(), QtestError> {
        self.waits += 1;
        let wait = [self.waits << 32 | 0x25, STATUS];
        for words in descriptors.iter().chain(&[wait]) {
            let upper: &[u64] = if self.wide { &[0, 0] } else { &[] };
            for word in words.iter().chain(upper) {
                self.write(QUEUE + self.tail, *word)?;
                self.tail = (self.tail + 8) % 0x1000;
            }
        }
        let tail = self.tail;
        self.all(|twin| twin.set_register64(offset::IQT, tail))?;
        for twin in [&mut self.qemu as &mut dyn Twin, &mut self.strict, &mut self.alike] {
            let done = twin.read(STATUS)?;
            assert_eq!(
                done & 0xffff_ffff,
                self.waits,
                "a wait did not complete: {descriptors:x?}"
            );
        }
        self.touched.clear();
        Ok(())
    }

    /// One DMA on all three, which must agree on memory, status and record. `write` is what is written.
    pub(crate) fn dma(&mut self, iova: u64, write: Option<u32>, situation: &str) -> Result<FaultLog, QtestError> {
        self.tally.dmas += 1;
        self.all(|twin| match write {
            Some(value) => twin.dma_write(iova, value),
            None => twin.dma_read(iova),
        })?;
        let what = format!("{situation}, IOVA {iova:#x}, write {write:x?}");
        let log = self.compare_faults(&what, Some(iova >> 12))?;
        let passed = |model: &Modelled| model.blocked().is_none();
        match (passed(&self.strict), passed(&self.alike)) {
            (true, true) => {
                self.tally.passed += 1;
                self.touched.insert(iova >> 12);
                // The one page of 2 MiB that programs map.
                if iova >> 21 == LARGE {
                    self.touched.extend(LARGE << 9..(LARGE + 1) << 9);
                }
                if write.is_none() {
                    self.show_what_was_read(&what)?;
                }
            }
            (false, false) => {}
            // What QEMU let pass is in its memory now: the others go on from there.
            _ if write.is_some() => self.align_data()?,
            _ => {}
        }
        Ok(log)
    }

    /// Takes the three fault logs and compares them. `page` is the page of a DMA.
    pub(crate) fn compare_faults(&mut self, what: &str, page: Option<u64>) -> Result<FaultLog, QtestError> {
        let qemu = take_faults(&mut self.qemu)?;
        let strict = take_faults(&mut self.strict)?;
        let alike = take_faults(&mut self.alike)?;
        // It then looks at the data of the message (E-07).
        if self.delivers_unknown_mode() && (qemu.status == 0 || qemu.reason() == 0x20) {
            self.tally.deviates("E-11");
            return Ok(strict);
        }
        // Without a status the record is the one before.
        let same = |a: &FaultLog, b: &FaultLog| a.status == b.status && (a.status == 0 || a == b);
        assert!(
            same(&qemu, &alike),
            "QEMU and the model in its profile differ: {qemu:x?}, {alike:x?}, {:?}: {what}",
            self.alike.blocked()
        );
        if strict.status != 0 {
            *self.tally.reasons.entry(strict.reason()).or_default() += 1;
        }
        // Fields of the record that say less or more than they should.
        let mut expected = qemu;
        let no_pasid = expected.details & !0x0fff_ff00_8000_0000;
        if self.version == QemuVersion::V7_2 && expected.details != no_pasid {
            expected.details = no_pasid;
            if qemu.status != 0 {
                self.tally.deviates("D-07");
            }
        }
        if expected.information >> 48 != 0 && self.alike.blocked().is_some_and(|b| !is_interrupt(b.condition)) {
            expected.information &= (1 << 48) - 1;
            if qemu.status != 0 {
                self.tally.deviates("E-01");
            }
        }
        if !same(&expected, &strict) {
            let number = self.cause(page).unwrap_or_else(|| {
                panic!(
                    "QEMU and the specification differ: {qemu:x?}, {strict:x?}, {:?}: {what}",
                    self.strict.blocked()
                )
            });
            self.tally.deviates(number);
        }
        Ok(strict)
    }

    /// The number of the deviation that the last request meets, by its cause.
    fn cause(&self, page: Option<u64>) -> Option<&'static str> {
        use Condition as C;
        let Some(blocked) = self.strict.blocked() else {
            return self.cause_of_block();
        };
        let old = self.version == QemuVersion::V7_2;
        let touched = page.is_some_and(|page| self.touched.contains(&page));
        Some(match blocked.condition? {
            condition if old && is_interrupt(Some(condition)) && self.alike_blocked_by(condition) => "D-43",
            C::Lgn2 | C::Lgn3 | C::Sgn6 | C::Sgn7 if touched => "D-02",
            C::Lct3 | C::Sct3 if !blocked.recorded => "E-02",
            C::Sgn2 | C::Lss2 | C::Sss3 | C::Sfs2 | C::Sfs3 if self.alike_denied() => "E-03",
            _ if self
                .alike
                .blocked()
                .is_some_and(|alike| alike.condition == Some(C::Sgn1)) =>
            {
                "D-03"
            }
            C::Spd2 | C::Spt2 | C::Spt4_1 | C::Spt4_2 if !blocked.recorded => "E-06",
            C::Spt2 | C::Spd2 | C::Spd1 | C::Spt1 => "D-04",
            C::Spt4_2 if old && !self.alike_blocked_by(C::Spt4_2) => "D-34",
            C::Spt4_1 | C::Spt4_2 if old => "D-04",
            C::Rta1_1 | C::Rta1_2 => "D-09",
            C::Rta1_3 => "D-33",
            C::Srt1 | C::Srt2 | C::Sct1 | C::Sct2 => "D-05",
            C::Sss2 | C::Sgn6 | C::Sgn7 => "D-06",
            C::Spd3 | C::Spt3 => "D-08",
            C::Lgn1_3 | C::Sgn4_2 => "D-10",
            C::Srt3 | C::Sct3 | C::Sss3 | C::Sgn5 | C::Sss1 | C::Sss4 => "D-31",
            C::IrRequest => "E-07",
            C::IrIndex => "E-09",
            C::IrCompatibility => "D-28",
            C::IrSource if self.alike_blocked_by(C::IrReserved) => "E-10",
            C::IrReserved if self.wide_destination => "E-12",
            C::IrReserved if self.posted => "D-29",
            C::IrSource if self.bus_range => "D-30",
            C::IrReserved if self.bus_range && self.alike_blocked_by(C::IrSource) => "D-30",
            _ => return None,
        })
    }

    fn alike_blocked_by(&self, condition: Condition) -> bool {
        self.alike
            .blocked()
            .is_some_and(|alike| alike.condition == Some(condition))
    }

    /// E-11, the one difference that the profile does not have: QEMU delivers what no processor understands.
    fn delivers_unknown_mode(&self) -> bool {
        self.unknown_mode && self.alike_blocked_by(Condition::IrReserved)
    }

    /// Whether the model in QEMU's profile met a missing permission.
    fn alike_denied(&self) -> bool {
        use Condition as C;
        let denied = |condition| matches!(condition, C::Lgn2 | C::Lgn3 | C::Sss2 | C::Sgn2 | C::Sgn6 | C::Sgn7);
        self.alike
            .blocked()
            .and_then(|alike| alike.condition)
            .is_some_and(denied)
    }

    /// The same where the specification lets the request pass and QEMU does not.
    fn cause_of_block(&self) -> Option<&'static str> {
        match self.alike.blocked()?.condition {
            _ if self.bus_range => Some("D-30"),
            Some(Condition::Sgn1) => Some("D-03"),
            _ => None,
        }
    }

    /// Brings what the requesters read last to light.
    fn show_what_was_read(&mut self, what: &str) -> Result<(), QtestError> {
        self.all(|twin| twin.dma_write_back(WITNESS_IOVA))?;
        let logs = [
            take_faults(&mut self.qemu)?,
            take_faults(&mut self.strict)?,
            take_faults(&mut self.alike)?,
        ];
        // A program may have unmapped the witness: then nobody shows anything.
        if logs.iter().all(|log| log.status != 0) || self.strict.blocked().is_some() {
            return Ok(());
        }
        let [qemu, strict, alike] = self.words(WITNESS)?;
        assert_eq!(qemu, strict, "the requesters read different data: {what}");
        assert_eq!(qemu, alike, "the requesters read different data: {what}");
        Ok(())
    }

    /// The word at `at` as the model by the specification has it.
    pub(crate) fn strict_word(&mut self, at: u64) -> Result<u64, QtestError> {
        self.strict.read(at)
    }

    /// The interrupts that were passed on since the last look.
    pub(crate) fn compare_interrupts(&mut self, what: &str) -> Result<(), QtestError> {
        let qemu = self.qemu.take_interrupts()?;
        let [strict, alike] = [self.strict.take_interrupts()?, self.alike.take_interrupts()?];
        if self.delivers_unknown_mode() {
            return Ok(());
        }
        assert_eq!(
            qemu, alike,
            "QEMU and the model in its profile deliver differently: {what}"
        );
        if self.edge_only && qemu != strict && !strict.is_empty() {
            self.tally.deviates("E-14");
        } else if qemu == strict {
            self.tally.passed += u32::try_from(qemu.len()).unwrap_or(u32::MAX);
        } else {
            let number = self.cause(None);
            assert!(
                number.is_some(),
                "QEMU {qemu:x?} and the specification {strict:x?} deliver differently: {what}"
            );
        }
        Ok(())
    }

    /// The word at `at` of all three.
    pub(crate) fn words(&mut self, at: u64) -> Result<[u64; 3], QtestError> {
        Ok([self.qemu.read(at)?, self.strict.read(at)?, self.alike.read(at)?])
    }

    /// Every page that entries can point to must hold the same on all three.
    pub(crate) fn compare_memory(&mut self) -> Result<(), QtestError> {
        for page in 0..DATA_PAGES {
            for word in 0..4 {
                let at = DATA + page * 0x1000 + word * 8;
                let [qemu, strict, alike] = self.words(at)?;
                assert_eq!([qemu, qemu], [strict, alike], "memory at {at:#x}");
            }
        }
        Ok(())
    }

    fn align_data(&mut self) -> Result<(), QtestError> {
        for page in 0..DATA_PAGES {
            for word in 0..4 {
                let at = DATA + page * 0x1000 + word * 8;
                let [qemu, _, alike] = self.words(at)?;
                assert_eq!(qemu, alike, "memory at {at:#x}");
                self.strict.write(at, qemu)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn is_interrupt(condition: Option<Condition>) -> bool {
    condition.is_some_and(Condition::is_interrupt)
}

/// The data of an MSI has 16 bits.
pub(crate) fn message_data(random: &mut Random) -> u32 {
    u32::try_from(random.below(1 << 16)).expect("16 bits")
}
