//! What a unit is able to do, from which its capability registers follow.

mod builder;

use thiserror::Error;
use vtd_spec::UnitFeatures;
use vtd_spec::register::{Capability, ExtendedCapability, Version};

use crate::cache::CacheSizes;
use crate::qemu::QemuVersion;
use crate::registers::RegisterFile;
use crate::sanitizer::Sanitizer;
use crate::unit::Unit;

pub use builder::UnitConfigBuilder;

/// How a unit behaves where the specification leaves freedom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Profile {
    /// Every command is complete when the register write returns, faulting entries are never cached, cached
    /// translations are tagged with the tables they came from.
    #[default]
    Spec,
    /// As hardware at its least helpful: commands and queue progress only through
    /// [`crate::Unit::step`], caches are small and keep what they may, paging-structure caches are on,
    /// caching mode caches faulting entries. A driver that leaves out a step fails here.
    Silicon,
    /// As QEMU's `intel-iommu`, known departures from the specification included ([`QemuVersion`]), for VMMs that must
    /// look the same and for comparisons. Everything else is as with `Spec`.
    Qemu(QemuVersion),
}

/// A combination of settings that no unit can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The host address width is out of range.
    #[error("a host address width of {0} bits does not exist: choose 32 to 52")]
    HostWidth(u8),
    /// The guest address width is out of range.
    #[error(
        "a guest address width of {guest} bits: choose at least the host address width ({host}) and at most 64 (VT-d §11.4.2, CAP_REG.MGAW)"
    )]
    GuestWidth {
        /// MGAW asked for.
        guest: u8,
        /// Host address width.
        host: u8,
    },
    /// No second-stage width, which only newer units without DMA remapping may report.
    #[error("no second-stage width: name at least one, or make the version 6.0 or later (VT-d §11.4.2, CAP_REG.SAGAW)")]
    NoWidth,
    /// Domain identifiers of an impossible width.
    #[error("domain identifiers of {0} bits: choose 4, 6, 8, 10, 12, 14 or 16 (VT-d §11.4.2, CAP_REG.ND)")]
    DomainIdBits(u8),
    /// 1 GiB without 2 MiB pages.
    #[error("second-stage pages of 1 GiB need those of 2 MiB (VT-d §11.4.2, CAP_REG.SSLPS)")]
    LargePages,
    /// Number of fault recording registers.
    #[error("{0} fault recording registers: choose 1 to 256 (VT-d §11.4.2, CAP_REG.NFR)")]
    FaultRecords(u16),
    /// Address mask value.
    #[error("a maximum address mask value of {0} does not fit 6 bits (VT-d §11.4.2, CAP_REG.MAMV)")]
    AddressMask(u8),
    /// Handle mask value.
    #[error("a maximum handle mask value of {0} does not fit 4 bits (VT-d §11.4.3, ECAP_REG.MHMV)")]
    HandleMask(u8),
    /// Version.
    #[error(
        "architecture version {major}.{minor}: both numbers have 4 bits and the major one is at least 1 (VT-d §11.4.1, VER_REG)"
    )]
    Version {
        /// Major version asked for.
        major: u8,
        /// Minor version asked for.
        minor: u8,
    },
    /// PASID width.
    #[error("PASIDs of {0} bits: choose 1 to 20 (VT-d §11.4.3, ECAP_REG.PSS)")]
    PasidBits(u8),
    /// A feature without the one it rests on.
    #[error("{feature} needs {needs} (VT-d {section})")]
    Needs {
        /// The feature asked for.
        feature: &'static str,
        /// What has to be switched on too.
        needs: &'static str,
        /// Where the specification says so.
        section: &'static str,
    },
    /// Two features that exclude each other.
    #[error("{feature} excludes {other} (VT-d {section})")]
    Excludes {
        /// One.
        feature: &'static str,
        /// The other.
        other: &'static str,
        /// Where the specification says so.
        section: &'static str,
    },
    /// Register blocks that cover each other or lie out of reach.
    #[error("the {block} block at {at:#x} overlaps other registers, is not 16-byte aligned, or ends past {limit:#x}")]
    Placement {
        /// Which block.
        block: &'static str,
        /// Its byte offset.
        at: u32,
        /// The last reachable byte offset plus one.
        limit: u32,
    },
}

/// The validated description of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitConfig {
    profile: Profile,
    version: Version,
    features: UnitFeatures,
    caches: CacheSizes,
    window_len: u32,
    two_phase_waits: bool,
    compress_faults: bool,
    sanitizer: bool,
}

impl UnitConfig {
    /// Starts from a unit that serves legacy mode completely: 4-level tables, 2 MiB and 1 GiB pages, queued
    /// invalidation, interrupt remapping with 32-bit destinations, pass-through, 8 fault records.
    #[must_use]
    pub fn builder() -> UnitConfigBuilder {
        UnitConfigBuilder::default()
    }

    /// Behaviour where the specification leaves freedom.
    #[must_use]
    pub const fn profile(&self) -> Profile {
        self.profile
    }

    /// VER_REG.
    #[must_use]
    pub const fn version(&self) -> Version {
        self.version
    }

    /// CAP_REG.
    #[must_use]
    pub const fn capability(&self) -> Capability {
        self.features.capability
    }

    /// ECAP_REG.
    #[must_use]
    pub const fn extended_capability(&self) -> ExtendedCapability {
        self.features.extended
    }

    /// What decides which bits of structures are reserved.
    #[must_use]
    pub const fn features(&self) -> &UnitFeatures {
        &self.features
    }

    /// Host address width in bits.
    #[must_use]
    pub const fn host_address_width(&self) -> u8 {
        self.features.host_address_width
    }

    /// The last host address there can be.
    #[must_use]
    pub const fn host_address_limit(&self) -> u64 {
        match u64::MAX.checked_shr(64 - self.features.host_address_width as u32) {
            Some(limit) => limit,
            None => 0,
        }
    }

    /// Sizes of the caches.
    #[must_use]
    pub const fn caches(&self) -> CacheSizes {
        self.caches
    }

    /// Most bytes that a [`Unit`] of this configuration holds with its own caches, whatever the guest does: the
    /// unit itself with its device-TLB messages, register window, caches, and the sanitizer's findings. All of it but the
    /// findings is taken when the unit is made. Less than 2 MiB by default; [`UnitConfigBuilder::cache_sizes`],
    /// [`UnitConfigBuilder::domain_id_bits`] and [`UnitConfigBuilder::sanitizer`] decide.
    /// [`Unit::memory_held`] is what a unit holds now.
    #[must_use]
    pub fn memory_bound(&self) -> usize {
        let domains = usize::try_from(self.capability().domain_count()).unwrap_or(usize::MAX);
        size_of::<Unit>()
            .saturating_add(self.caches.memory_bound(domains))
            .saturating_add(self.memory_bound_without_caches())
    }

    /// As [`Self::memory_bound`], with caches of the embedder's ([`Unit::with_cache`]) and without the unit itself.
    #[must_use]
    pub fn memory_bound_without_caches(&self) -> usize {
        let sanitizer = if self.sanitizer { Sanitizer::memory_bound() } else { 0 };
        RegisterFile::memory_bound(self.window_len).saturating_add(sanitizer)
    }

    /// Length of the register window in bytes, a multiple of 4 KiB.
    #[must_use]
    pub const fn window_len(&self) -> u32 {
        self.window_len
    }

    /// Whether wait descriptors and commands through registers ask the embedder to drain requests in flight before they show
    /// as complete ([`crate::Unit::take_drain`]).
    #[must_use]
    pub const fn two_phase_waits(&self) -> bool {
        self.two_phase_waits
    }

    /// Whether a fault is folded into a pending record of the same source; always with [`Profile::Qemu`] (D-36).
    #[must_use]
    pub const fn compress_faults(&self) -> bool {
        self.compress_faults || self.qemu().is_some()
    }

    /// Whether the sanitizer watches ([`crate::Unit::take_finding`]).
    #[must_use]
    pub const fn sanitizer(&self) -> bool {
        self.sanitizer
    }

    /// Whether faulting entries are cached: allowed in caching mode (VT-d §6.1), done by `Silicon` only.
    pub(crate) const fn caches_faults(&self) -> bool {
        self.features.capability.cm() && matches!(self.profile, Profile::Silicon)
    }

    /// The QEMU whose departures from the specification are asked for.
    pub(crate) const fn qemu(&self) -> Option<QemuVersion> {
        match self.profile {
            Profile::Qemu(version) => Some(version),
            Profile::Spec | Profile::Silicon => None,
        }
    }

    /// Whether the unit departs from the specification as QEMU 7.2 does.
    pub(crate) const fn is_qemu_7(&self) -> bool {
        matches!(self.profile, Profile::Qemu(QemuVersion::V7_2))
    }

    /// Whether cached pages are tagged with their tables on top of what the architecture asks for.
    pub(crate) const fn exact_tags(&self) -> bool {
        matches!(self.profile, Profile::Spec | Profile::Qemu(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vtd_spec::Agaw;

    #[test]
    fn the_default_unit_reports_what_it_serves() {
        let config = UnitConfig::builder().build().expect("consistent");
        let (cap, ecap) = (config.capability(), config.extended_capability());
        assert_eq!(cap.largest_agaw(), Some(Agaw::Bits48));
        assert_eq!(cap.max_guest_address_width(), 48);
        assert_eq!(cap.fault_record_count(), 8);
        assert_eq!(cap.fault_record_offset(0), 0x220);
        assert!(cap.drd() && cap.dwd() && cap.psi() && !cap.cm() && !cap.esrtps());
        assert!(ecap.qi() && ecap.ir() && ecap.eim() && ecap.pt() && ecap.c() && !ecap.dt() && !ecap.smts());
        assert_eq!(config.window_len(), 0x1000);
        assert_eq!(config.host_address_limit(), (1 << 48) - 1);
    }

    #[test]
    fn many_fault_records_move_to_the_second_page() {
        let config = UnitConfig::builder().fault_records(256).build().expect("consistent");
        assert_eq!(config.capability().fault_record_offset(0), 0x1000);
        assert_eq!(config.window_len(), 0x2000);
    }

    #[test]
    fn a_real_unit_is_resembled_bit_for_bit_where_the_model_implements_it() {
        let cap = Capability::new_with_raw_value(0x00D2_008C_4066_0462);
        let ecap = ExtendedCapability::new_with_raw_value(0x00F0_50DA);
        let config = UnitConfig::builder()
            .resembling(cap, ecap)
            .host_address_width(39)
            .build()
            .expect("consistent");
        assert_eq!(config.capability(), cap);
        assert_eq!(config.extended_capability(), ecap);
    }

    #[test]
    fn inconsistent_settings_are_refused_with_their_rule() {
        let b = UnitConfig::builder();
        let error = |b: UnitConfigBuilder| b.build().expect_err("refused");
        assert_eq!(error(b.host_address_width(53)), ConfigError::HostWidth(53));
        assert_eq!(
            error(b.guest_address_width(Some(40))),
            ConfigError::GuestWidth { guest: 40, host: 48 }
        );
        assert_eq!(error(b.three_levels(false).four_levels(false)), ConfigError::NoWidth);
        assert_eq!(error(b.domain_id_bits(5)), ConfigError::DomainIdBits(5));
        assert_eq!(error(b.pages_2m(false)), ConfigError::LargePages);
        assert_eq!(error(b.fault_records(0)), ConfigError::FaultRecords(0));
        assert_eq!(error(b.fault_records(257)), ConfigError::FaultRecords(257));
        assert_eq!(error(b.page_selective(Some(64))), ConfigError::AddressMask(64));
        assert_eq!(error(b.handle_mask(16)), ConfigError::HandleMask(16));
        assert_eq!(error(b.version((0, 1))), ConfigError::Version { major: 0, minor: 1 });
        assert!(matches!(
            error(b.interrupt_remapping(false)),
            ConfigError::Needs {
                feature: "extended_interrupts",
                ..
            }
        ));
        assert!(matches!(
            error(b.queued_invalidation(false)),
            ConfigError::Needs {
                needs: "queued_invalidation",
                ..
            }
        ));
        assert!(matches!(
            error(b.scalable_mode(true).write_buffer_flush(true)),
            ConfigError::Excludes {
                other: "write_buffer_flush",
                ..
            }
        ));
        assert!(matches!(
            error(b.nested(true)),
            ConfigError::Needs {
                feature: "nested",
                needs: "first_stage",
                ..
            }
        ));
        assert_eq!(
            error(b.scalable_mode(true).pasid_bits(Some(21))),
            ConfigError::PasidBits(21)
        );
        for (block, bad) in [
            ("IOTLB", b.invalidate_address_at(Some(0x80))),
            ("IOTLB", b.invalidate_address_at(Some(0xF8))),
            ("fault recording", b.fault_records_at(Some(0xF0))),
            ("fault recording", b.fault_records_at(Some(0x4000))),
        ] {
            assert!(matches!(error(bad), ConfigError::Placement { block: b, .. } if b == block));
        }
    }

    #[test]
    fn each_feature_needs_what_the_specification_says() {
        let b = UnitConfig::builder();
        let without_queue = b
            .extended_interrupts(false)
            .interrupt_remapping(false)
            .queued_invalidation(false);
        let scalable = b.scalable_mode(true);
        let coherent = scalable.scalable_walk_coherency(true);
        let cases = [
            (without_queue.device_tlb(true), "device_tlb", "queued_invalidation"),
            (b.no_write_flag(true), "no_write_flag", "device_tlb"),
            (
                without_queue.interrupt_remapping(true),
                "interrupt_remapping",
                "queued_invalidation",
            ),
            (
                b.interrupt_remapping(false),
                "extended_interrupts",
                "interrupt_remapping",
            ),
            (
                without_queue.version((6, 0)),
                "version 6.0 and later",
                "queued_invalidation",
            ),
            (
                without_queue.scalable_mode(true),
                "scalable_mode",
                "queued_invalidation",
            ),
            (b.scalable_second_stage(true), "scalable_second_stage", "scalable_mode"),
            (b.first_stage(true), "first_stage", "scalable_mode"),
            (
                scalable.scalable_second_stage(true).nested(true),
                "nested",
                "first_stage",
            ),
            (
                scalable.first_stage(true).nested(true),
                "nested",
                "scalable_second_stage",
            ),
            (scalable.first_stage_1g(true), "first_stage_1g", "first_stage"),
            (
                scalable.first_stage_five_levels(true),
                "first_stage_five_levels",
                "first_stage",
            ),
            (
                b.scalable_walk_coherency(true),
                "scalable_walk_coherency",
                "scalable_mode",
            ),
            (
                scalable.scalable_second_stage(true).second_stage_dirty(true),
                "second_stage_dirty",
                "scalable_walk_coherency",
            ),
            (
                coherent.second_stage_dirty(true),
                "second_stage_dirty",
                "scalable_second_stage",
            ),
            (
                scalable.first_stage(true).extended_accessed(true),
                "extended_accessed",
                "scalable_walk_coherency",
            ),
            (coherent.extended_accessed(true), "extended_accessed", "first_stage"),
            (b.pasid_bits(Some(20)), "pasid_bits", "scalable_mode"),
            (b.rid_pasid(true), "rid_pasid", "scalable_mode"),
            (b.supervisor_requests(true), "supervisor_requests", "scalable_mode"),
            (scalable.rid_privilege(true), "rid_privilege", "supervisor_requests"),
        ];
        for (builder, wanted, missing) in cases {
            match builder.build() {
                Err(ConfigError::Needs { feature, needs, .. }) => assert_eq!((feature, needs), (wanted, missing)),
                other => panic!("{wanted} without {missing}: {other:?}"),
            }
        }
        // All of them together, with what they need.
        let all = b
            .full_scalable_mode()
            .device_tlb(true)
            .no_write_flag(true)
            .first_stage_five_levels(true)
            .version((6, 0));
        assert!(all.build().is_ok());
    }
}
