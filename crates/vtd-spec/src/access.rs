//! What reads and writes of registers do: access class, reset value and masks, as data. VT-d §11.3 (Register Attributes), §11.4.
//!
//! [`REGISTERS`] lists every register at a fixed offset; registers whose place the capabilities tell stand in constants of
//! their own, with offsets from the start of their block. A model keeps one stored value a register and passes each write through
//! [`AccessMasks::write`]; a command register's side effects come on top.
//!
//! ```
//! use vtd_spec::access::RegisterSpec;
//! use vtd_spec::register::offset;
//!
//! let fsts = RegisterSpec::at(offset::FSTS).expect("fixed register");
//! // PFO, PPF and IQE are set; software acknowledges PFO and IQE, and PPF is not its to clear.
//! assert_eq!(fsts.masks.write(0x13, 0x11), 0x02);
//! ```

mod map;

pub use map::{
    COUNTER_REGISTERS, FAULT_RECORD_HIGH, FAULT_RECORD_LOW, INVALIDATE_ADDRESS, IOTLB_INVALIDATE, REGISTERS,
};

use crate::features::UnitFeatures;
use crate::register::offset;

/// Size of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RegisterWidth {
    /// 32 bits; accessed as a whole.
    Bits32,
    /// 64 bits; accessed as a whole or in two aligned halves.
    Bits64,
}

impl RegisterWidth {
    /// Size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Bits32 => 4,
            Self::Bits64 => 8,
        }
    }
}

/// What software may do with a register as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AccessClass {
    /// RO: writes change nothing.
    ReadOnly,
    /// RW: every field keeps what is written.
    ReadWrite,
    /// WO: fields act when written and read as 0 here, where the specification leaves reads undefined.
    WriteOnly,
    /// RW1C: every field that writes affect is cleared by writing 1.
    WriteOneToClear,
    /// Fields of several of these classes.
    Mixed,
}

/// What a write does to each bit. Bits in no mask are read only or reserved. VT-d §11.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AccessMasks {
    /// RW: bits that keep what is written.
    pub rw: u64,
    /// RW1C: bits that a written 1 clears and a written 0 leaves alone.
    pub w1c: u64,
    /// WO: bits that act when written and read as 0.
    pub wo: u64,
}

impl AccessMasks {
    /// The one masked write that every register goes through: the stored value after software wrote `value`.
    ///
    /// Write-only bits are stored too, so that the command they stand for can be carried out.
    #[must_use]
    pub const fn write(&self, old: u64, value: u64) -> u64 {
        let stored = self.rw | self.wo;
        ((old & !stored) | (value & stored)) & !(value & self.w1c)
    }

    /// What software reads of a stored value.
    #[must_use]
    pub const fn read(&self, stored: u64) -> u64 {
        stored & !self.wo
    }

    /// The same masks without the bits of `missing`, which then ignore writes.
    #[must_use]
    pub const fn without(&self, missing: u64) -> Self {
        Self {
            rw: self.rw & !missing,
            w1c: self.w1c & !missing,
            wo: self.wo & !missing,
        }
    }
}

/// Which capability a register comes with. VT-d §11.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Presence {
    /// On every unit.
    Always,
    /// ECAP.EIM.
    ExtendedInterrupts,
    /// CAP.PLMR.
    ProtectedLow,
    /// CAP.PHMR.
    ProtectedHigh,
    /// ECAP.QI.
    Queue,
    /// ECAP.QI and ECAP.EIM.
    QueueExtended,
    /// ECAP.IR.
    InterruptRemapping,
    /// ECAP.PRS.
    PageRequests,
    /// ECAP.PRS and ECAP.EIM.
    PageRequestsExtended,
    /// ECAP.MTS.
    MemoryTypes,
    /// ECAP.PMS.
    PerformanceMonitoring,
    /// CAP.ECMDS.
    EnhancedCommands,
    /// ECAP.RDTS.
    RdtTags,
    /// ECAP.VCS.
    VirtualCommands,
}

impl Presence {
    /// Whether a unit with these features has the register. Otherwise its offset is reserved: reads give 0, writes do nothing.
    #[must_use]
    pub const fn is_met(self, features: &UnitFeatures) -> bool {
        let (cap, ecap) = (features.capability, features.extended);
        match self {
            Self::Always => true,
            Self::ExtendedInterrupts => ecap.eim(),
            Self::ProtectedLow => cap.plmr(),
            Self::ProtectedHigh => cap.phmr(),
            Self::Queue => ecap.qi(),
            Self::QueueExtended => ecap.qi() && ecap.eim(),
            Self::InterruptRemapping => ecap.ir(),
            Self::PageRequests => ecap.prs(),
            Self::PageRequestsExtended => ecap.prs() && ecap.eim(),
            Self::MemoryTypes => ecap.mts(),
            Self::PerformanceMonitoring => ecap.pms(),
            Self::EnhancedCommands => cap.ecmds(),
            Self::RdtTags => ecap.rdts(),
            Self::VirtualCommands => ecap.vcs(),
        }
    }
}

/// One register, described as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterSpec {
    /// The specification's name without `_REG`.
    pub name: &'static str,
    /// Offset in bytes from the base of the unit's register block, or of the block that the constant names.
    pub offset: u32,
    /// Size.
    pub width: RegisterWidth,
    /// The capability that the register comes with.
    pub presence: Presence,
    /// What writes do, on a unit with every capability; see [`Self::masks_on`].
    pub masks: AccessMasks,
    /// Value after a power-good reset. Capability registers differ from unit to unit; they show 0 here.
    pub reset: u64,
    /// Bits that keep their value over a warm reset.
    pub sticky: u64,
}

impl RegisterSpec {
    /// The fixed register that holds the byte at an offset; `None` for reserved offsets.
    #[must_use]
    pub fn at(offset: u32) -> Option<&'static Self> {
        let after = REGISTERS.partition_point(|register| register.offset <= offset);
        let register = REGISTERS.get(after.checked_sub(1)?)?;
        (offset - register.offset < register.width.bytes()).then_some(register)
    }

    /// What software may do with the register as a whole.
    #[must_use]
    pub const fn class(&self) -> AccessClass {
        let AccessMasks { rw, w1c, wo } = self.masks;
        match (rw != 0, w1c != 0, wo != 0) {
            (false, false, false) => AccessClass::ReadOnly,
            (true, false, false) => AccessClass::ReadWrite,
            (false, true, false) => AccessClass::WriteOneToClear,
            (false, false, true) => AccessClass::WriteOnly,
            _ => AccessClass::Mixed,
        }
    }

    /// What writes do on a unit with these features: fields whose capability is missing ignore writes.
    ///
    /// The specification lets a unit leave out address bits from the host address width upwards. They are kept here, so
    /// that a table outside memory shows as an access error and never as a table elsewhere.
    #[must_use]
    pub const fn masks_on(&self, features: &UnitFeatures) -> AccessMasks {
        let (cap, ecap) = (features.capability, features.extended);
        let mut missing = 0;
        match self.offset {
            offset::GCMD => {
                if !ecap.qi() {
                    missing |= 1 << 26;
                }
                if !ecap.ir() {
                    // CFI, SIRTP, IRE.
                    missing |= 0x0380_0000;
                }
                if !cap.rwbf() {
                    missing |= 1 << 27;
                }
            }
            offset::RTADDR if !ecap.ssirws() => missing |= 1 << 7,
            offset::FSTS => {
                if !ecap.qi() {
                    missing |= 1 << 4;
                }
                if !ecap.dt() {
                    missing |= 0x60;
                }
            }
            offset::PMEN if !cap.plmr() && !cap.phmr() => missing |= 1 << 31,
            offset::IQA if !ecap.smts() && !ecap.adms() => missing |= 1 << 11,
            offset::IRTA if !ecap.eim() => missing |= 1 << 11,
            _ => {}
        }
        self.masks.without(missing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::features::tests::features;

    #[test]
    fn masked_write_stores_clears_and_leaves_alone() {
        let masks = AccessMasks {
            rw: 0x0F,
            w1c: 0xF0,
            wo: 0xF00,
        };
        // Read-write nibble replaced, written ones cleared, write-only kept for the command, the rest untouched.
        assert_eq!(masks.write(0xA0F5, 0x1B3A), 0xABCA);
        assert_eq!(masks.read(0xABCA), 0xA0CA);
    }

    #[test]
    fn registers_are_in_order_and_do_not_overlap() {
        for pair in REGISTERS.windows(2) {
            let [a, b] = pair else { panic!("windows of two") };
            assert!(a.offset + a.width.bytes() <= b.offset, "{} overlaps {}", a.name, b.name);
            assert_eq!(b.offset % b.width.bytes(), 0, "{} is not aligned", b.name);
        }
    }

    #[test]
    fn masks_of_a_register_are_disjoint_and_fit_its_width() {
        let all = REGISTERS.iter().chain(COUNTER_REGISTERS).chain([
            &FAULT_RECORD_LOW,
            &FAULT_RECORD_HIGH,
            &INVALIDATE_ADDRESS,
            &IOTLB_INVALIDATE,
        ]);
        for r in all {
            let AccessMasks { rw, w1c, wo } = r.masks;
            assert_eq!((rw & w1c, rw & wo, w1c & wo), (0, 0, 0), "{}", r.name);
            if r.width == RegisterWidth::Bits32 {
                assert_eq!((rw | w1c | wo | r.reset | r.sticky) >> 32, 0, "{}", r.name);
            }
            assert_eq!(
                w1c & !r.sticky & !1,
                0,
                "{}: RW1C bits other than the PMU's are sticky",
                r.name
            );
        }
    }

    #[test]
    fn lookup_finds_both_halves_and_no_holes() {
        let name = |offset| RegisterSpec::at(offset).map(|r| r.name);
        assert_eq!(name(0x000), Some("VER"));
        assert_eq!(name(0x004), None);
        assert_eq!((name(0x008), name(0x00C)), (Some("CAP"), Some("CAP")));
        assert_eq!((name(0x018), name(0x01C)), (Some("GCMD"), Some("GSTS")));
        assert_eq!(name(0x030), None);
        assert_eq!(name(0x098), None);
        assert_eq!(name(0x218), Some("MTRR_PHYSMASK9"));
        assert_eq!(name(0xE30), Some("VCCAP"));
        assert_eq!(name(0xE38), None);
    }

    #[test]
    fn only_event_controls_are_not_zero_after_reset() {
        let set = REGISTERS.iter().filter(|r| r.reset != 0);
        for r in set.clone() {
            assert_eq!(r.reset, 0x8000_0000, "{}", r.name);
        }
        assert!(set.map(|r| r.offset).eq([0x038, 0x0A0, 0x0E0, 0x328]));
    }

    #[test]
    fn classes_follow_the_register_map() {
        let class = |offset| RegisterSpec::at(offset).expect("fixed").class();
        assert_eq!(class(offset::CAP), AccessClass::ReadOnly);
        assert_eq!(class(offset::GCMD), AccessClass::WriteOnly);
        assert_eq!(class(offset::RTADDR), AccessClass::ReadWrite);
        assert_eq!(class(offset::ICS), AccessClass::WriteOneToClear);
        assert_eq!(class(offset::CCMD), AccessClass::Mixed);
        assert_eq!(INVALIDATE_ADDRESS.class(), AccessClass::WriteOnly);
    }

    #[test]
    fn missing_capabilities_take_their_fields_away() {
        let none = features(0, 0, 46);
        let mask = |offset, f| RegisterSpec::at(offset).expect("fixed").masks_on(f);
        assert_eq!(mask(offset::GCMD, &none).wo, 0xC000_0000);
        assert_eq!(mask(offset::RTADDR, &none).rw, 0xFFFF_FFFF_FFFF_FC00);
        assert_eq!(mask(offset::FSTS, &none).w1c, 1);
        assert_eq!(mask(offset::PMEN, &none).rw, 0);
        assert_eq!(mask(offset::IQA, &none).rw, 0xFFFF_FFFF_FFFF_F007);
        assert_eq!(mask(offset::IRTA, &none).rw, 0xFFFF_FFFF_FFFF_F00F);
        // RWBF, PLMR; QI, DT, IR, EIM, SMTS, SSIRWS.
        let some = features(0x30, 0x1E | 1 << 43 | 1 << 57, 46);
        for register in REGISTERS {
            assert_eq!(register.masks_on(&some), register.masks, "{}", register.name);
        }
    }

    #[test]
    fn presence_follows_the_capabilities() {
        let queue_only = features(0, 2, 46);
        let present = |offset| RegisterSpec::at(offset).expect("fixed").presence.is_met(&queue_only);
        assert!(present(offset::VER) && present(offset::IQT));
        assert!(!present(offset::IEUADDR) && !present(offset::PQH) && !present(offset::IRTA));
    }

    /// Access masks and layouts were typed apart from each other; here they must name the same bits.
    #[test]
    fn masks_name_the_fields_of_the_layouts() {
        use crate::register::{
            ContextCommand as Ccmd, EnhancedCommand as Ecmd, EventAddress, EventControl, EventData,
            FaultRecord as Frcd, FaultStatus as Fsts, GlobalCommand as Gcmd, InterruptRemapTableAddress as Irta,
            InvalidateAddress as Iva, InvalidationCompletionStatus as Ics, InvalidationQueueAddress as Iqa,
            InvalidationQueueErrorRecord as Iqercd, InvalidationQueueTail as Iqt, IotlbInvalidate as Iotlb,
            MtrrDefaultType, MtrrVariableBase, MtrrVariableMask, PageRequestQueueAddress as Pqa,
            PageRequestQueueHead as Pqh, PageRequestQueueTail as Pqt, PageRequestStatus as Prs,
            PerfCounterConfig as Cfg, PerfInterruptStatus, ProtectedMemoryEnable as Pmen, RdtConfig as Rdtc,
            RootTableAddress as Rtaddr, VirtualCommand as Vcmd,
        };

        let masks = |offset| {
            let AccessMasks { rw, w1c, wo } = RegisterSpec::at(offset).expect("fixed").masks;
            (rw, w1c, wo)
        };
        let gcmd = Gcmd::te_mask()
            | Gcmd::srtp_mask()
            | Gcmd::wbf_mask()
            | Gcmd::qie_mask()
            | Gcmd::ire_mask()
            | Gcmd::sirtp_mask()
            | Gcmd::cfi_mask();
        assert_eq!(masks(offset::GCMD), (0, 0, u64::from(gcmd)));
        assert_eq!(
            masks(offset::RTADDR).0,
            Rtaddr::rta_mask() | Rtaddr::ttm_mask() | Rtaddr::ssirwe_mask()
        );
        assert_eq!(
            masks(offset::CCMD).0,
            Ccmd::icc_mask() | Ccmd::cirg_mask() | Ccmd::did_mask()
        );
        assert_eq!(masks(offset::CCMD).2, Ccmd::fm_mask() | Ccmd::sid_mask());
        let fsts = Fsts::pfo_mask() | Fsts::iqe_mask() | Fsts::ice_mask() | Fsts::ite_mask();
        assert_eq!(masks(offset::FSTS), (0, u64::from(fsts), 0));
        for base in [offset::FECTL, offset::IECTL, offset::PECTL, offset::PERFINTRCTL] {
            assert_eq!(masks(base), (u64::from(EventControl::im_mask()), 0, 0));
            assert_eq!(masks(base + 4), (u64::from(EventData::MESSAGE_DATA), 0, 0));
            assert_eq!(masks(base + 8), (u64::from(EventAddress::ma_mask()), 0, 0));
            assert_eq!(masks(base + 12), (0xFFFF_FFFF, 0, 0));
        }
        assert_eq!(masks(offset::PMEN), (u64::from(Pmen::epm_mask()), 0, 0));
        assert_eq!(masks(offset::IQT).0, Iqt::qt_mask());
        assert_eq!(masks(offset::IQA).0, Iqa::iqa_mask() | Iqa::dw_mask() | Iqa::qs_mask());
        assert_eq!(masks(offset::ICS), (0, u64::from(Ics::iwc_mask()), 0));
        let iqercd = Iqercd::iqei_mask() | Iqercd::itesid_mask() | Iqercd::icesid_mask();
        assert_eq!(RegisterSpec::at(offset::IQERCD).expect("fixed").sticky, iqercd);
        assert_eq!(
            masks(offset::IRTA).0,
            Irta::irta_mask() | Irta::eime_mask() | Irta::s_mask()
        );
        assert_eq!(
            (masks(offset::PQH).0, masks(offset::PQT).0),
            (Pqh::pqh_mask(), Pqt::pqt_mask())
        );
        assert_eq!(masks(offset::PQA).0, Pqa::pqa_mask() | Pqa::pqs_mask());
        assert_eq!(masks(offset::PRS), (0, u64::from(Prs::ppr_mask() | Prs::pro_mask()), 0));
        let mtrrdef = MtrrDefaultType::memory_type_mask() | MtrrDefaultType::fe_mask() | MtrrDefaultType::e_mask();
        assert_eq!(masks(offset::MTRRDEF).0, mtrrdef);
        let (base, mask) = (
            MtrrVariableBase::memory_type_mask() | MtrrVariableBase::physbase_mask(),
            MtrrVariableMask::v_mask() | MtrrVariableMask::physmask_mask(),
        );
        assert_eq!(
            (masks(offset::MTRR_PHYSBASE0).0, masks(offset::MTRR_PHYSMASK0).0),
            (base, mask)
        );
        assert_eq!(masks(offset::PERFINTRSTS).1, u64::from(PerfInterruptStatus::pis_mask()));
        assert_eq!(masks(offset::ECMD).2, Ecmd::command_mask() | Ecmd::operand_mask());
        assert_eq!(masks(offset::RDTC).0, Rdtc::rmid_mask() | Rdtc::clos_mask());
        assert_eq!(masks(offset::VCMD).0, Vcmd::command_mask() | Vcmd::operand_mask());
        assert_eq!(COUNTER_REGISTERS[0].masks.rw, {
            Cfg::io_mask() | Cfg::gfo_mask() | Cfg::egi_mask() | Cfg::es_mask()
        });
        assert_eq!(
            INVALIDATE_ADDRESS.masks.wo,
            Iva::addr_mask() | Iva::ih_mask() | Iva::am_mask()
        );
        let iotlb = Iotlb::ivt_mask() | Iotlb::iirg_mask() | Iotlb::dr_mask() | Iotlb::dw_mask() | Iotlb::did_mask();
        assert_eq!(IOTLB_INVALIDATE.masks.rw, iotlb);
        let frcd = crate::layout::join([FAULT_RECORD_LOW.masks.w1c, FAULT_RECORD_HIGH.masks.w1c]);
        assert_eq!(frcd, Frcd::f_mask());
    }
}
