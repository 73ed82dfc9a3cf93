//! What comes in from devices and what goes back to them.

use core::fmt;

use iommu_types::{Access, AddrRange, HostPhys, Iova, Pasid, Perms, SourceId};
use vtd_spec::FaultReason;
use vtd_spec::fault::Response;

use crate::condition::Condition;

/// The address type of a memory request (PCIe AT field, VT-d §4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// AT = 00: the address is an IOVA and the unit translates it.
    Untranslated,
    /// AT = 01: the device asks for a translation to keep in its device-TLB (ATS).
    Translation,
    /// AT = 10: the address is a host address that an earlier translation completion returned.
    Translated,
}

/// One memory request as it reaches the remapping unit.
///
/// The struct is built with [`Request::new`] and the `with_…` methods, so that a new attribute does not break
/// callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct Request {
    /// Who asks: the requester ID on the bus, aliases already applied.
    pub source: SourceId,
    /// The PASID prefix, if the request carries one.
    pub pasid: Option<Pasid>,
    /// The first byte asked for. For [`RequestKind::Translated`] it is a host address.
    pub address: Iova,
    /// Bytes asked for; 0 with [`Access::Read`] is a zero-length read. The unit answers for the page that
    /// holds `address`: whoever issues the request splits it where [`Translation::page`] ends.
    pub len: u64,
    /// What the device wants to do.
    pub access: Access,
    /// Untranslated, translation or translated request.
    pub kind: RequestKind,
    /// Privileged-mode requested (PR bit of the PASID prefix); meaningless without a PASID.
    pub privileged: bool,
    /// Execute requested (ER bit of the PASID prefix); meaningless without a PASID.
    pub execute: bool,
    /// The no-write flag of a translation request.
    pub no_write: bool,
    /// The no-snoop attribute: the device asks that processor caches are not snooped.
    pub no_snoop: bool,
}

impl Request {
    /// An untranslated request without PASID.
    #[must_use]
    pub const fn new(source: SourceId, address: Iova, len: u64, access: Access) -> Self {
        Self {
            source,
            pasid: None,
            address,
            len,
            access,
            kind: RequestKind::Untranslated,
            privileged: false,
            execute: false,
            no_write: false,
            no_snoop: false,
        }
    }

    /// An untranslated read of `len` bytes.
    #[must_use]
    pub const fn read(source: SourceId, address: Iova, len: u64) -> Self {
        Self::new(source, address, len, Access::Read)
    }

    /// An untranslated write of `len` bytes.
    #[must_use]
    pub const fn write(source: SourceId, address: Iova, len: u64) -> Self {
        Self::new(source, address, len, Access::Write)
    }

    /// The same request with a PASID prefix.
    #[must_use]
    pub const fn with_pasid(mut self, pasid: Pasid) -> Self {
        self.pasid = Some(pasid);
        self
    }

    /// The same request with another address type.
    #[must_use]
    pub const fn with_kind(mut self, kind: RequestKind) -> Self {
        self.kind = kind;
        self
    }

    /// The same request in privileged mode (only counts together with a PASID).
    #[must_use]
    pub const fn with_privilege(mut self) -> Self {
        self.privileged = true;
        self
    }

    /// The same request with execute requested (only counts together with a PASID).
    #[must_use]
    pub const fn with_execute(mut self) -> Self {
        self.execute = true;
        self
    }

    /// The same translation request with the no-write flag.
    #[must_use]
    pub const fn with_no_write(mut self) -> Self {
        self.no_write = true;
        self
    }

    /// The same request with the no-snoop attribute.
    #[must_use]
    pub const fn with_no_snoop(mut self) -> Self {
        self.no_snoop = true;
        self
    }

    /// Whether this is a zero-length read, which asks only whether the page can be reached.
    #[must_use]
    pub const fn is_zero_length_read(&self) -> bool {
        self.len == 0 && matches!(self.access, Access::Read)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {:#x} bytes at {} by {}",
            self.access, self.len, self.address, self.source
        )?;
        if let Some(pasid) = self.pasid {
            write!(f, " with PASID {pasid}")?;
        }
        match self.kind {
            RequestKind::Untranslated => Ok(()),
            RequestKind::Translation => f.write_str(" (translation request)"),
            RequestKind::Translated => f.write_str(" (translated request)"),
        }
    }
}

/// The answer to a request that may proceed, and the completion of a translation request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Translation {
    /// Where the request's address lies in host memory.
    pub phys: HostPhys,
    /// The input addresses for which this answer holds: every address in it is translated by the same offset.
    pub page: AddrRange<Iova>,
    /// What the requester may do there. For an untranslated request it contains what was asked, except that a
    /// zero-length read may find only `write`. For a translation request it may be empty: nothing is mapped.
    pub perms: Perms,
    /// The device must use the untranslated address (U bit of a translation completion): the interrupt range.
    pub untranslated_only: bool,
    /// The access snoops processor caches (VT-d §3.10 and the leaf's SNP, PGSNP).
    pub snooped: bool,
    /// N bit of a translation completion: the device must not use no-snoop with this translation.
    pub no_snoop_forbidden: bool,
    /// Priv bit of a translation completion.
    pub privileged: bool,
}

/// A request that was not let through.
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// The request.
    pub request: Request,
    /// Why, in the codes of the specification; [`Fault::SILENT`] where it has none.
    pub reason: FaultReason,
    /// Which of the conditions behind the reason it was; `None` with [`Fault::SILENT`].
    pub condition: Option<Condition>,
    /// What the requester sees. `SuccessWithoutAccess` stands here only for SFS.10, which is answered so and recorded too.
    pub response: Response,
    /// Whether the unit records it: false when fault processing is disabled (FPD) on the way, and for the
    /// blocks that the specification does not record.
    pub recorded: bool,
    /// The interrupt remapping entry that the fault is about, where it is about one.
    pub interrupt_index: Option<u16>,
}

impl Fault {
    /// The reason of a block that the specification neither names nor records: a protected memory region
    /// (VT-d §11.4.8), a malformed request, or ATS traffic while translation is off.
    pub const SILENT: FaultReason = FaultReason(0);

    /// The fault that `condition` means for `request`, to be recorded.
    pub(crate) fn new(request: Request, condition: Condition) -> Self {
        Self {
            request,
            reason: condition.reason(),
            condition: Some(condition),
            response: condition.response(&request),
            recorded: true,
            interrupt_index: None,
        }
    }

    /// The same fault with another code.
    pub(crate) const fn with_reason(mut self, reason: FaultReason) -> Self {
        self.reason = reason;
        self
    }

    /// The same fault, kept out of the log if fault processing is disabled for it.
    pub(crate) const fn suppressed_if(mut self, suppressed: bool) -> Self {
        self.recorded &= !suppressed;
        self
    }

    /// The same fault, about an interrupt remapping entry.
    pub(crate) const fn with_interrupt_index(mut self, index: Option<u16>) -> Self {
        self.interrupt_index = index;
        self
    }

    /// A block that leaves no trace in the fault log.
    pub(crate) const fn silent(request: Request) -> Self {
        Self {
            request,
            reason: Self::SILENT,
            condition: None,
            interrupt_index: None,
            response: Response::UnsupportedRequest,
            recorded: false,
        }
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fault")
            .field("reason", &self.reason)
            .field("condition", &self.condition)
            .field("request", &format_args!("{}", self.request))
            .field("response", &self.response)
            .field("recorded", &self.recorded)
            .finish()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason == Self::SILENT {
            write!(f, "{} blocked without a fault record", self.request)
        } else {
            write!(
                f,
                "{} blocked: {} ({:#04x})",
                self.request,
                self.reason.description(),
                self.reason.0
            )
        }
    }
}

impl core::error::Error for Fault {}
