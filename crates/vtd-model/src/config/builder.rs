//! Building a [`UnitConfig`] and judging it.

use arbitrary_int::{u3, u4, u5, u6, u10};
use vtd_spec::register::{Capability, ExtendedCapability, Version, offset};
use vtd_spec::{Agaw, UnitFeatures};

use super::{ConfigError, Profile, UnitConfig};
use crate::cache::CacheSizes;

/// Cache sizes of [`Profile::Spec`]. They are fixed when the unit is made: with 65536 domains a unit holds less than
/// two megabytes, whatever the guest does.
const SPEC_CACHES: CacheSizes = CacheSizes {
    contexts: 1024,
    pasids: 1024,
    pages: 4096,
    tables: 0,
    interrupts: 1024,
};

/// Cache sizes of [`Profile::Silicon`]: small enough to evict in a test, large enough to keep stale entries.
const SILICON_CACHES: CacheSizes = CacheSizes {
    contexts: 8,
    pasids: 8,
    pages: 64,
    tables: 32,
    interrupts: 16,
};

/// Bytes of one register page; the window is a whole number of them.
const REGISTER_PAGE: u32 = 0x1000;
/// Where the invalidate address register goes unless the builder says otherwise: the last free place before
/// the MTRR block.
const DEFAULT_IVA: u32 = 0x0F0;
/// Where fault recording registers go if they fit: behind the MTRR block.
const DEFAULT_RECORDS: u32 = 0x220;
/// Bytes of a fault recording register, and of the IVA and IOTLB registers together.
const RECORD_BYTES: u32 = 16;

macro_rules! builder {
    ($( $(#[$meta:meta])* $name:ident: $type:ty = $default:expr, )*) => {
        /// Builds a [`UnitConfig`]. Every method replaces one setting; [`Self::build`] judges all of them together.
        #[derive(Clone, Copy, Debug)]
        pub struct UnitConfigBuilder {
            $( $name: $type, )*
        }

        impl Default for UnitConfigBuilder {
            fn default() -> Self {
                Self { $( $name: $default, )* }
            }
        }

        impl UnitConfigBuilder {
            $(
                $(#[$meta])*
                #[must_use]
                pub const fn $name(mut self, $name: $type) -> Self {
                    self.$name = $name;
                    self
                }
            )*
        }
    };
}

builder! {
    /// Behaviour where the specification leaves freedom; `Spec` by default.
    profile: Profile = Profile::Spec,
    /// Architecture version, major and minor; 5.0 by default. From 6.0 on, register-based invalidation is
    /// ignored (VT-d §11.4.1, VER_REG).
    version: (u8, u8) = (5, 0),
    /// Host address width in bits, 32 to 52; 48 by default. The DMAR table of the platform reports the same.
    host_address_width: u8 = 48,
    /// Largest guest address width in bits (CAP.MGAW); `None`, the default, means the widest second-stage width,
    /// or the host address width if that is more.
    guest_address_width: Option<u8> = None,
    /// 3-level second-stage tables, 39 bits; on by default.
    three_levels: bool = true,
    /// 4-level second-stage tables, 48 bits; on by default.
    four_levels: bool = true,
    /// 5-level second-stage tables, 57 bits; off by default.
    five_levels: bool = false,
    /// Second-stage pages of 2 MiB; on by default.
    pages_2m: bool = true,
    /// Second-stage pages of 1 GiB; on by default.
    pages_1g: bool = true,
    /// Width of domain identifiers in bits: 4, 6 … 16; 16 by default.
    domain_id_bits: u8 = 16,
    /// Caching mode (CAP.CM): the unit may cache entries that are not present; off by default.
    caching_mode: bool = false,
    /// Software has to flush write buffers (CAP.RWBF); off by default.
    write_buffer_flush: bool = false,
    /// Zero-length reads of write-only pages succeed (CAP.ZLR); on by default.
    zero_length_reads: bool = true,
    /// Page-selective invalidation (CAP.PSI) up to `2^n` pages (CAP.MAMV); `Some(18)`, 1 GiB, by default.
    page_selective: Option<u8> = Some(18),
    /// Number of fault recording registers, 1 to 256; 8 by default.
    fault_records: u16 = 8,
    /// Byte offset of the fault recording registers, a multiple of 16; chosen by default.
    fault_records_at: Option<u32> = None,
    /// Byte offset of the invalidate address register, a multiple of 16; chosen by default.
    invalidate_address_at: Option<u32> = None,
    /// Setting the root table pointer drops all translations by itself (CAP.ESRTPS); off by default.
    enhanced_root_pointer: bool = false,
    /// Setting the interrupt table pointer drops all cached entries by itself (CAP.ESIRTPS); off by default.
    enhanced_interrupt_pointer: bool = false,
    /// Table walks snoop processor caches (ECAP.C); on by default.
    coherent: bool = true,
    /// Queued invalidation (ECAP.QI); on by default.
    queued_invalidation: bool = true,
    /// Interrupt remapping (ECAP.IR); on by default.
    interrupt_remapping: bool = true,
    /// 32-bit interrupt destinations (ECAP.EIM); on by default.
    extended_interrupts: bool = true,
    /// Largest number of interrupt entries, as a power of two, that one command can drop (ECAP.MHMV); 15 by default.
    handle_mask: u8 = 15,
    /// Pass-through contexts (ECAP.PT); on by default.
    pass_through: bool = true,
    /// Snoop control (ECAP.SC); on by default.
    snoop_control: bool = true,
    /// Device-TLBs (ECAP.DT): translation and translated requests; off by default. The embedder has to carry out
    /// [`crate::Unit::take_device_invalidation`].
    device_tlb: bool = false,
    /// The no-write flag of translation requests is honoured (ECAP.NWFS); off by default.
    no_write_flag: bool = false,
    /// Scalable mode (ECAP.SMTS); off by default. Turns none of the features on that need it.
    scalable_mode: bool = false,
    /// Second-stage translation in scalable mode (ECAP.SSTS); off by default.
    scalable_second_stage: bool = false,
    /// First-stage translation (ECAP.FSTS); off by default.
    first_stage: bool = false,
    /// Nested translation (ECAP.NEST); off by default.
    nested: bool = false,
    /// First-stage pages of 1 GiB (CAP.FS1GP); off by default.
    first_stage_1g: bool = false,
    /// First-stage tables of 5 levels (CAP.FS5LP); off by default.
    first_stage_five_levels: bool = false,
    /// Scalable-mode table walks snoop if PWSNP says so (ECAP.SMPWCS); off by default. Accessed and dirty flags need it.
    scalable_walk_coherency: bool = false,
    /// Accessed and dirty flags of second-stage tables (ECAP.SSADS); off by default.
    second_stage_dirty: bool = false,
    /// The extended accessed flag (ECAP.EAFS); off by default.
    extended_accessed: bool = false,
    /// PASIDs of so many bits, 1 to 20 (ECAP.PASID, ECAP.PSS); `None`, no PASIDs, by default.
    pasid_bits: Option<u8> = None,
    /// The PASID of requests without one is programmable (ECAP.RPS); off by default.
    rid_pasid: bool = false,
    /// Privileged requests (ECAP.SRS); off by default.
    supervisor_requests: bool = false,
    /// Requests without PASID can be privileged (ECAP.RPRIVS); off by default.
    rid_privilege: bool = false,
    /// Abort-DMA mode (ECAP.ADMS); off by default.
    abort_dma: bool = false,
    /// Protected low and high memory regions (CAP.PLMR, CAP.PHMR); off by default.
    protected_memory: bool = false,
    /// Sizes of the caches; `None`, the default, takes those of the profile.
    cache_sizes: Option<CacheSizes> = None,
    /// Wait descriptors and commands through registers (GCMD, PMEN, CCMD, IOTLB_REG) ask the embedder to drain requests in
    /// flight before they show as complete ([`crate::Unit::take_drain`]); off by default. For embedders that translate on
    /// several threads.
    two_phase_waits: bool = false,
    /// A fault of a source that already has a record pending is dropped (VT-d §7.2.1); off by default.
    compress_faults: bool = false,
    /// Watches the driver: broken rules of the programming protocol and stale translations come out of
    /// [`crate::Unit::take_finding`]; off by default. Each request that caches helped with is walked again.
    sanitizer: bool = false,
}

impl UnitConfigBuilder {
    /// Takes over what a real unit reports in CAP_REG and ECAP_REG, as far as this model implements it; the
    /// rest is not advertised. Settings made later win.
    #[must_use]
    pub const fn resembling(mut self, capability: Capability, extended: ExtendedCapability) -> Self {
        self.three_levels = capability.supports_agaw(Agaw::Bits39);
        self.four_levels = capability.supports_agaw(Agaw::Bits48);
        self.five_levels = capability.supports_agaw(Agaw::Bits57);
        self.guest_address_width = Some(capability.max_guest_address_width());
        self.pages_2m = capability.second_stage_2m();
        self.pages_1g = capability.second_stage_1g();
        self.domain_id_bits = capability.domain_id_bits();
        self.caching_mode = capability.cm();
        self.write_buffer_flush = capability.rwbf();
        self.zero_length_reads = capability.zlr();
        self.page_selective = if capability.psi() {
            Some(capability.mamv().value())
        } else {
            None
        };
        self.fault_records = capability.fault_record_count();
        self.fault_records_at = Some(capability.fault_record_offset(0));
        self.invalidate_address_at = Some(extended.invalidate_address_offset());
        self.enhanced_root_pointer = capability.esrtps();
        self.enhanced_interrupt_pointer = capability.esirtps();
        self.coherent = extended.c();
        self.queued_invalidation = extended.qi();
        self.interrupt_remapping = extended.ir();
        self.extended_interrupts = extended.eim();
        self.handle_mask = extended.max_handle_mask();
        self.pass_through = extended.pt();
        self.snoop_control = extended.sc();
        self.device_tlb = extended.dt();
        self.no_write_flag = extended.nwfs() && extended.dt();
        self.protected_memory = capability.plmr() && capability.phmr();
        self.abort_dma = extended.adms();
        // Older revisions used some of these bits for what was removed since: they count with scalable mode only.
        let scalable = extended.smts();
        self.scalable_mode = scalable;
        self.scalable_second_stage = scalable && extended.ssts();
        self.first_stage = scalable && extended.fsts();
        self.nested = scalable && extended.nest();
        self.first_stage_1g = self.first_stage && capability.fs1gp();
        self.first_stage_five_levels = self.first_stage && capability.fs5lp();
        self.scalable_walk_coherency = scalable && extended.smpwcs();
        self.second_stage_dirty = scalable && extended.ssads();
        self.extended_accessed = scalable && extended.eafs();
        self.pasid_bits = if scalable && extended.pasid() {
            Some(extended.pasid_bits())
        } else {
            None
        };
        self.rid_pasid = scalable && extended.rps();
        self.supervisor_requests = scalable && extended.srs();
        self.rid_privilege = scalable && extended.rprivs();
        self
    }

    /// Switches everything of scalable mode on that this model has: both stages, nested, flags, 20-bit PASIDs,
    /// privileged requests, abort-DMA mode.
    #[must_use]
    pub const fn full_scalable_mode(mut self) -> Self {
        self.scalable_mode = true;
        self.scalable_second_stage = true;
        self.first_stage = true;
        self.nested = true;
        self.first_stage_1g = true;
        self.scalable_walk_coherency = true;
        self.second_stage_dirty = true;
        self.extended_accessed = true;
        self.pasid_bits = Some(20);
        self.rid_pasid = true;
        self.supervisor_requests = true;
        self.rid_privilege = true;
        self.abort_dma = true;
        self
    }

    /// Judges the settings and derives the capability registers.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting and the rule that it breaks.
    pub fn build(self) -> Result<UnitConfig, ConfigError> {
        self.check_numbers()?;
        self.check_dependencies()?;
        let (version, records_at, iva_at) = (self.version_register()?, self.records_at(), self.iva_at());
        let capability = self.capability(version, records_at)?;
        let extended = self.extended(iva_at);
        let window_len = self.check_placement(records_at, iva_at)?;
        Ok(UnitConfig {
            profile: self.profile,
            version,
            features: UnitFeatures {
                capability,
                extended,
                host_address_width: self.host_address_width,
            },
            caches: self.cache_sizes.unwrap_or(match self.profile {
                Profile::Spec | Profile::Qemu(_) => SPEC_CACHES,
                Profile::Silicon => SILICON_CACHES,
            }),
            window_len,
            two_phase_waits: self.two_phase_waits,
            compress_faults: self.compress_faults,
            sanitizer: self.sanitizer,
        })
    }

    fn check_numbers(&self) -> Result<(), ConfigError> {
        if !(32..=52).contains(&self.host_address_width) {
            return Err(ConfigError::HostWidth(self.host_address_width));
        }
        if !matches!(self.domain_id_bits, 4 | 6 | 8 | 10 | 12 | 14 | 16) {
            return Err(ConfigError::DomainIdBits(self.domain_id_bits));
        }
        if self.pages_1g && !self.pages_2m {
            return Err(ConfigError::LargePages);
        }
        if !(1..=256).contains(&self.fault_records) {
            return Err(ConfigError::FaultRecords(self.fault_records));
        }
        match self.page_selective {
            Some(mask) if mask > 63 => return Err(ConfigError::AddressMask(mask)),
            _ => {}
        }
        match self.pasid_bits {
            Some(bits) if !(1..=20).contains(&bits) => return Err(ConfigError::PasidBits(bits)),
            _ => {}
        }
        if self.handle_mask > 15 {
            return Err(ConfigError::HandleMask(self.handle_mask));
        }
        Ok(())
    }

    fn check_dependencies(&self) -> Result<(), ConfigError> {
        let section = "§11.4.2, CAP_REG, and §11.4.3, ECAP_REG";
        let queue = (self.queued_invalidation, "queued_invalidation");
        let remapping = (self.interrupt_remapping, "interrupt_remapping");
        let scalable = (self.scalable_mode, "scalable_mode");
        let first = (self.first_stage, "first_stage");
        let second = (self.scalable_second_stage, "scalable_second_stage");
        let coherent = (self.scalable_walk_coherency, "scalable_walk_coherency");
        let device = (self.device_tlb, "device_tlb");
        let supervisor = (self.supervisor_requests, "supervisor_requests");
        let rules = [
            (self.device_tlb, "device_tlb", queue),
            (self.no_write_flag, "no_write_flag", device),
            (self.interrupt_remapping, "interrupt_remapping", queue),
            (self.extended_interrupts, "extended_interrupts", remapping),
            // From version 6.0 on the registers do not invalidate, so nothing else could.
            (self.version.0 >= 6, "version 6.0 and later", queue),
            (self.scalable_mode, "scalable_mode", queue),
            (self.scalable_second_stage, "scalable_second_stage", scalable),
            (self.first_stage, "first_stage", scalable),
            (self.nested, "nested", first),
            (self.nested, "nested", second),
            (self.first_stage_1g, "first_stage_1g", first),
            (self.first_stage_five_levels, "first_stage_five_levels", first),
            (self.scalable_walk_coherency, "scalable_walk_coherency", scalable),
            (self.second_stage_dirty, "second_stage_dirty", coherent),
            (self.second_stage_dirty, "second_stage_dirty", second),
            (self.extended_accessed, "extended_accessed", coherent),
            (self.extended_accessed, "extended_accessed", first),
            (self.pasid_bits.is_some(), "pasid_bits", scalable),
            (self.rid_pasid, "rid_pasid", scalable),
            (self.supervisor_requests, "supervisor_requests", scalable),
            (self.rid_privilege, "rid_privilege", supervisor),
        ];
        for (wanted, feature, (present, needs)) in rules {
            if wanted && !present {
                return Err(ConfigError::Needs {
                    feature,
                    needs,
                    section,
                });
            }
        }
        if self.scalable_mode && self.write_buffer_flush {
            return Err(ConfigError::Excludes {
                feature: "scalable_mode",
                other: "write_buffer_flush",
                section,
            });
        }
        Ok(())
    }

    fn version_register(&self) -> Result<Version, ConfigError> {
        let (major, minor) = self.version;
        match (u4::try_new(major), u4::try_new(minor)) {
            (Ok(max), Ok(min)) if major > 0 => Ok(Version::DEFAULT.with_max(max).with_min(min)),
            _ => Err(ConfigError::Version { major, minor }),
        }
    }

    const fn records_at(&self) -> u32 {
        match self.fault_records_at {
            Some(at) => at,
            None if DEFAULT_RECORDS + self.fault_records as u32 * RECORD_BYTES <= offset::PERFCAP => DEFAULT_RECORDS,
            None => REGISTER_PAGE,
        }
    }

    const fn iva_at(&self) -> u32 {
        match self.invalidate_address_at {
            Some(at) => at,
            None => DEFAULT_IVA,
        }
    }

    fn capability(&self, version: Version, records_at: u32) -> Result<Capability, ConfigError> {
        let widths = [
            (self.three_levels, Agaw::Bits39),
            (self.four_levels, Agaw::Bits48),
            (self.five_levels, Agaw::Bits57),
        ];
        let sagaw = widths
            .into_iter()
            .filter(|(on, _)| *on)
            .fold(0, |bits, (_, agaw)| bits | 1 << agaw.code());
        if sagaw == 0 && !version.ignores_register_invalidation() {
            return Err(ConfigError::NoWidth);
        }
        let widest = widths
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, agaw)| agaw.width())
            .max();
        let host = self.host_address_width;
        let guest = self
            .guest_address_width
            .unwrap_or_else(|| host.max(widest.unwrap_or(host)));
        if !(host..=64).contains(&guest) {
            return Err(ConfigError::GuestWidth { guest, host });
        }
        let large = u8::from(self.pages_2m) | u8::from(self.pages_1g) << 1;
        let records = u8::try_from(self.fault_records - 1).unwrap_or(u8::MAX);
        Ok(Capability::DEFAULT
            .with_nd(u3::extract_u8((self.domain_id_bits - 4) / 2, 0))
            .with_rwbf(self.write_buffer_flush)
            .with_plmr(self.protected_memory)
            .with_phmr(self.protected_memory)
            .with_fs1gp(self.first_stage_1g)
            .with_fs5lp(self.first_stage_five_levels)
            .with_cm(self.caching_mode)
            .with_sagaw(u5::extract_u8(sagaw, 0))
            .with_mgaw(u6::extract_u8(guest - 1, 0))
            .with_zlr(self.zero_length_reads)
            .with_fro(u10::extract_u32(records_at / RECORD_BYTES, 0))
            .with_sslps(u4::extract_u8(large, 0))
            .with_psi(self.page_selective.is_some())
            .with_nfr(records)
            .with_mamv(u6::extract_u8(self.page_selective.unwrap_or(0), 0))
            .with_dwd(true)
            .with_drd(true)
            .with_esirtps(self.enhanced_interrupt_pointer)
            .with_esrtps(self.enhanced_root_pointer))
    }

    fn extended(&self, iva_at: u32) -> ExtendedCapability {
        ExtendedCapability::DEFAULT
            .with_c(self.coherent)
            .with_qi(self.queued_invalidation)
            .with_dt(self.device_tlb)
            .with_ir(self.interrupt_remapping)
            .with_eim(self.extended_interrupts)
            .with_pt(self.pass_through)
            .with_sc(self.snoop_control)
            .with_iro(u10::extract_u32(iva_at / RECORD_BYTES, 0))
            .with_mhmv(u4::extract_u8(
                if self.interrupt_remapping { self.handle_mask } else { 0 },
                0,
            ))
            .with_nwfs(self.no_write_flag)
            .with_smts(self.scalable_mode)
            .with_ssts(self.scalable_second_stage)
            .with_fsts(self.first_stage)
            .with_nest(self.nested)
            .with_smpwcs(self.scalable_walk_coherency)
            .with_ssads(self.second_stage_dirty)
            .with_eafs(self.extended_accessed)
            .with_pasid(self.pasid_bits.is_some())
            .with_pss(u5::extract_u8(self.pasid_bits.unwrap_or(1).wrapping_sub(1), 0))
            .with_rps(self.rid_pasid)
            .with_srs(self.supervisor_requests)
            .with_rprivs(self.rid_privilege)
            .with_adms(self.abort_dma)
    }

    /// VT-d §11.4.2 (CAP_REG.FRO), §11.4.3 (ECAP_REG.IRO): both blocks lie in unused space, in units of 16 bytes.
    fn check_placement(&self, records_at: u32, iva_at: u32) -> Result<u32, ConfigError> {
        // FRO and IRO have 10 bits.
        let limit = (1 << u10::BITS) * RECORD_BYTES;
        let records_end = records_at.saturating_add(u32::from(self.fault_records) * RECORD_BYTES);
        let iva_end = iva_at.saturating_add(RECORD_BYTES);
        // The registers that this model has end with IRTA; the ones that follow in the first page belong to
        // features that it does not advertise.
        let fixed_end = offset::IRTA + 8;
        let bad = |at: u32| !at.is_multiple_of(RECORD_BYTES) || at >= limit || at < fixed_end;
        if bad(iva_at) {
            return Err(ConfigError::Placement {
                block: "IOTLB",
                at: iva_at,
                limit,
            });
        }
        if bad(records_at) || (records_at < iva_end && iva_at < records_end) {
            return Err(ConfigError::Placement {
                block: "fault recording",
                at: records_at,
                limit,
            });
        }
        Ok(records_end.max(iva_end).div_ceil(REGISTER_PAGE) * REGISTER_PAGE)
    }
}
