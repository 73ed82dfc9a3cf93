//! Every single-bit field at its bit, typed from the specification's figures: one flag set among many could otherwise change
//! places with its neighbour unseen.

use crate::descriptor::{DeviceTlbInvalidation, IotlbInvalidation, PageGroupResponse, PasidDeviceTlbInvalidation};
use crate::descriptor::{PasidIotlbInvalidation, WaitDescriptor};
use crate::entry::{
    ContextEntry, FirstStageEntry, HptTableEntry, Irte, PageRequestDescriptor, PasidControl, PasidDirectoryEntry,
    PasidFirstStage, PasidHostPermission, PasidTags, PostedInterruptControl, PostedIrte, RootEntry,
    ScalableContextEntry, ScalableRootEntry, SecondStageEntry,
};
use crate::message::{CompatibilityAddress, CompatibilityData, IoApicEntry, RemappableAddress};
use crate::register::{
    Capability, ContextCommand, EnhancedCommandCapability3, EnhancedCommandResponse, EventControl, ExtendedCapability,
    FaultRecord, FaultStatus, InterruptRemapTableAddress, InvalidateAddress, InvalidationCompletionStatus,
    IotlbInvalidate, MtrrCapability, MtrrDefaultType, MtrrVariableMask, PageRequestStatus, PerfAddressTypeFilter,
    PerfCapability, PerfCounterCapability, PerfCounterConfig, PerfDomainFilter, PerfInterruptStatus, PerfLevelFilter,
    PerfPasidFilter, PerfRequesterFilter, ProtectedMemoryEnable, RootTableAddress, VirtualCommandCapability,
    VirtualCommandResponse,
};

macro_rules! assert_bits {
    ($( $type:ident: $( $mask:ident $bit:literal ),+ );+ $(;)?) => {
        $( $( assert_eq!($type::$mask(), 1 << $bit, concat!(stringify!($type), "::", stringify!($mask))); )+ )+
    };
}

#[test]
fn register_flags_stand_at_their_bits() {
    assert_bits! {
        Capability: rwbf_mask 4, plmr_mask 5, phmr_mask 6, cm_mask 7, zlr_mask 22, psi_mask 39, dwd_mask 54, drd_mask 55,
            fs1gp_mask 56, pi_mask 59, fs5lp_mask 60, ecmds_mask 61, esirtps_mask 62, esrtps_mask 63;
        ExtendedCapability: c_mask 0, qi_mask 1, dt_mask 2, ir_mask 3, eim_mask 4, pt_mask 6, sc_mask 7, mts_mask 25,
            nest_mask 26, prs_mask 29, srs_mask 31, nwfs_mask 33, eafs_mask 34, pasid_mask 40, dit_mask 41, pds_mask 42,
            smts_mask 43, vcs_mask 44, ssads_mask 45, ssts_mask 46, fsts_mask 47, smpwcs_mask 48, rps_mask 49,
            tdxcs_mask 50, pms_mask 51, adms_mask 52, rprivs_mask 53, hpts_mask 55, ptrs_mask 56, ssirws_mask 57,
            sms_mask 58, hpt1gps_mask 59, rdts_mask 60, eimer_mask 61, irreq_mask 62;
        RootTableAddress: ssirwe_mask 7;
        ContextCommand: icc_mask 63;
        InvalidateAddress: ih_mask 6;
        IotlbInvalidate: dw_mask 48, dr_mask 49, ivt_mask 63;
        FaultStatus: pfo_mask 0, ppf_mask 1, iqe_mask 4, ice_mask 5, ite_mask 6;
        EventControl: ip_mask 30, im_mask 31;
        ProtectedMemoryEnable: prs_mask 0, epm_mask 31;
        InvalidationCompletionStatus: iwc_mask 0;
        InterruptRemapTableAddress: eime_mask 11;
        PageRequestStatus: ppr_mask 0, pro_mask 1;
        FaultRecord: t2_mask 92, privilege_mask 93, exe_mask 94, pp_mask 95, t1_mask 126, f_mask 127;
        MtrrCapability: fix_mask 8, wc_mask 10;
        MtrrDefaultType: fe_mask 10, e_mask 11;
        MtrrVariableMask: v_mask 11;
        PerfCapability: rid_filter_mask 32, did_filter_mask 33, pasid_filter_mask 34, at_filter_mask 35,
            level_filter_mask 36, cwe_mask 48, gfs_mask 49, ios_mask 50, pccs_mask 51;
        PerfInterruptStatus: pis_mask 0;
        PerfCounterConfig: en_mask 0, io_mask 1, gfo_mask 2;
        PerfRequesterFilter: en_mask 31;
        PerfDomainFilter: en_mask 31;
        PerfPasidFilter: en_mask 31;
        PerfAddressTypeFilter: en_mask 31;
        PerfLevelFilter: en_mask 31;
        PerfCounterCapability: pcc_mask 0, ios_mask 16, gfs_mask 17;
        EnhancedCommandResponse: ip_mask 0;
        EnhancedCommandCapability3: ecnts_mask 48, dcnts_mask 49, rcfgs_mask 50, rcnts_mask 51, fcnts_mask 52,
            ufcnts_mask 53;
        VirtualCommandResponse: ip_mask 0;
        VirtualCommandCapability: ns_mask 0, pas_mask 1, fps_mask 2;
    }
}

#[test]
fn entry_flags_stand_at_their_bits() {
    assert_bits! {
        RootEntry: p_mask 0;
        ScalableRootEntry: lp_mask 0, up_mask 64;
        ContextEntry: p_mask 0, fpd_mask 1;
        ScalableContextEntry: p_mask 0, fpd_mask 1, dte_mask 2, paside_mask 3, pre_mask 4, hpte_mask 5, eptr_mask 6,
            rid_priv_mask 84;
        PasidDirectoryEntry: p_mask 0, fpd_mask 1;
        PasidControl: p_mask 0, fpd_mask 1, ssade_mask 9;
        PasidTags: pwsnp_mask 23, pgsnp_mask 24, cd_mask 25, emte_mask 26;
        PasidFirstStage: sre_mask 0, wpe_mask 4, eafe_mask 7;
        PasidHostPermission: hptpfd_mask 2;
        SecondStageEntry: r_mask 0, w_mask 1, ipat_mask 6, ps_mask 7, a_mask 8, d_mask 9, snp_mask 11, ir_mask 61,
            iw_mask 62;
        FirstStageEntry: p_mask 0, rw_mask 1, us_mask 2, pwt_mask 3, pcd_mask 4, a_mask 5, d_mask 6, ps_mask 7, g_mask 8,
            ea_mask 10, xd_mask 63;
        HptTableEntry: av_mask 64;
        Irte: p_mask 0, fpd_mask 1, dm_mask 2, rh_mask 3, tm_mask 4, im_mask 15;
        PostedIrte: p_mask 0, fpd_mask 1, urg_mask 14, im_mask 15;
        PostedInterruptControl: on_mask 0, sn_mask 1;
        PageRequestDescriptor: pp_mask 8, exr_mask 52, pmr_mask 53, rdr_mask 64, wrr_mask 65, lpig_mask 66;
    }
}

#[test]
fn descriptor_and_message_flags_stand_at_their_bits() {
    assert_bits! {
        IotlbInvalidation: dw_mask 6, dr_mask 7, ih_mask 70;
        DeviceTlbInvalidation: s_mask 64;
        WaitDescriptor: if_mask 4, sw_mask 5, fn_mask 6, pd_mask 7;
        PasidIotlbInvalidation: ih_mask 70;
        PasidDeviceTlbInvalidation: gi_mask 64, s_mask 75;
        PageGroupResponse: pp_mask 4, ignored_mask 66;
        RemappableAddress: shv_mask 3, format_mask 4;
        CompatibilityAddress: dm_mask 2, rh_mask 3, format_mask 4;
        CompatibilityData: level_mask 14, tm_mask 15;
        IoApicEntry: delivery_status_mask 12, polarity_mask 13, remote_irr_mask 14, tm_mask 15, mask_mask 16,
            format_mask 48;
    }
}
