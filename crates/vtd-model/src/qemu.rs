//! Where QEMU's `intel-iommu` departs from the specification.

use iommu_types::Access;
use vtd_spec::FaultReason;

use crate::condition::Condition;

/// A QEMU whose departures from the specification are known: [`Profile::Qemu`](crate::Profile::Qemu).
///
/// A VMM that takes a guest over from QEMU, or a test that compares with it, can ask for the same answers. Each
/// departure has a number; the test that runs random programs on both (`e2e`, test `qemu`) uses the same numbers.
///
/// | number | what QEMU does | here |
/// |---|---|---|
/// | D-01 | a first-stage write of a page that was read before leaves D clear | implemented |
/// | D-02 | what a page in its IOTLB does not permit is dropped without a fault | implemented |
/// | D-03 | the canonical check of first-stage addresses uses AW | implemented |
/// | D-04 | the type of a PASID entry is judged before P; 7.2 answers 58h for whatever is wrong with a PASID structure | implemented |
/// | D-05, D-06, D-31 | scalable mode answers with the codes of legacy mode, except for write permission of first-stage tables | implemented |
/// | D-07 | the PASID field of records without PASID: all-ones, with PP in scalable mode (7.2) | implemented |
/// | D-08 | reserved bits of PASID directory entries and of PASID entries are not judged | implemented |
/// | D-09, D-33 | table modes of RTADDR are not judged: bit 10 means scalable mode if there is one, everything else legacy mode | implemented |
/// | D-10 | pass-through has no address limit | implemented |
/// | D-15 | the queue goes on at the next IQT write, not when IQE is cleared | implemented |
/// | D-17 | there is no IQERCD_REG | implemented |
/// | D-18 | QIE can be cleared only while the last descriptor was a wait and the queue is empty | implemented |
/// | D-20 | IQA reads the base in use, with the size last written | implemented |
/// | D-21 | register-based invalidation stays in progress while the queue is enabled | implemented |
/// | D-22, D-25 | the process ends (7.2): a wait with status write and interrupt, 64-bit writes of FECTL and IECTL | not: both are carried out |
/// | D-26 | clearing F in the record leaves IP set until FSTS is written | implemented |
/// | D-27 | the upper address registers of events hold nothing | implemented |
/// | D-28 | interrupts in compatibility format pass, CFI is ignored | implemented |
/// | D-29 | posted entries are taken for remapped ones | implemented |
/// | D-30 | the bus range of SVT = 10 is compared the wrong way round | implemented |
/// | D-32 | TE needs no root pointer | implemented |
/// | D-34 | nested translation is treated as second-stage (7.2) | implemented |
/// | D-36 | faults of one source are folded into one record | implemented |
/// | D-43 | faults of interrupts are not recorded (7.2) | implemented |
/// | D-44 | all fields that a GCMD write changes are carried out | implemented |
/// | others | | not |
/// | E-01 | records keep address bits above the widest address width | implemented |
/// | E-02 | 0Bh is recorded although fault processing is disabled | implemented |
/// | E-03 | permissions are judged entry by entry on the way down, before reserved bits | implemented |
/// | E-04 | first-stage flags are set on the way down, also for requests that fault later | implemented |
/// | E-05 | first-stage flags are set although walks do not snoop | implemented |
/// | E-06 | FPD of PASID structures does not count for faults of PASID structures: no matter which of the two has it | implemented |
/// | E-07 | the entry of an interrupt is judged before reserved bits of the message's data | implemented |
/// | E-08 | source validation is left out for requester ff:1f.7, which stands for an unknown one | implemented |
/// | E-09 | the interrupt index is a sum of 16 bits | implemented |
/// | E-10 | reserved bits of an interrupt entry are judged before its source validation | implemented |
/// | E-11 | the delivery modes 3 and 6 of an interrupt entry, which do not exist, pass | not: such an interrupt has no form here, it is blocked with 24h |
/// | E-12 | the upper bits of an interrupt entry's destination are not judged without extended interrupt mode | implemented |
/// | E-13 | IEDATA holds 32 bits without extended interrupt mode | implemented |
/// | E-14 | the trigger mode of an interrupt entry counts also with delivery modes that are edge-triggered | implemented |
///
/// QEMU keys its IOTLB by requester and looks there first; here the key is requester and domain, and the context entry
/// comes first. The difference shows only to software that leaves invalidations out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum QemuVersion {
    /// 7.2: second-stage only, no records of interrupt faults.
    V7_2,
    /// 11.1.
    V11_1,
}

impl QemuVersion {
    /// The code that QEMU records for `condition` (D-04 to D-06, D-31), met in second-stage tables or not.
    pub(crate) const fn reason(self, condition: Condition, access: Access, second_stage: bool) -> FaultReason {
        let denied = match access {
            Access::Read => FaultReason::READ_DENIED,
            _ => FaultReason::WRITE_DENIED,
        };
        match condition {
            Condition::Srt1 => FaultReason::ROOT_ACCESS,
            Condition::Srt2 => FaultReason::ROOT_NOT_PRESENT,
            Condition::Srt3 => FaultReason::ROOT_RESERVED,
            Condition::Sct1 => FaultReason::CONTEXT_ACCESS,
            Condition::Sct2 => FaultReason::CONTEXT_NOT_PRESENT,
            Condition::Sct3 => FaultReason::CONTEXT_RESERVED,
            Condition::Sss1 => FaultReason::PAGING_ENTRY_ACCESS,
            Condition::Sss2 => denied,
            Condition::Sss3 => FaultReason::PAGING_RESERVED,
            Condition::Sss4 => FaultReason::CONTEXT_INVALID,
            Condition::Sgn6 | Condition::Sgn7 if second_stage => denied,
            Condition::Spd1
            | Condition::Spd2
            | Condition::Spt1
            | Condition::Spt2
            | Condition::Spt4_1
            | Condition::Spt4_2
                if matches!(self, Self::V7_2) =>
            {
                FaultReason::PASID_ENTRY_ACCESS
            }
            Condition::Sgn5 => FaultReason::ADDRESS_BEYOND_WIDTH,
            _ => condition.reason(),
        }
    }
}
