//! Who asks for memory.

use iommu_types::{Access, Iova, Pasid, SourceId};
use vtd_model::Request;

/// Who issues requests: a requester ID, and the PASID and privilege of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Requester {
    /// Requester ID on the bus, aliases already applied.
    pub source: SourceId,
    /// PASID prefix of the requests, if they carry one.
    pub pasid: Option<Pasid>,
    /// Privileged-mode requested; counts only together with a PASID.
    pub privileged: bool,
}

impl Requester {
    /// A requester without PASID.
    #[must_use]
    pub const fn new(source: SourceId) -> Self {
        Self {
            source,
            pasid: None,
            privileged: false,
        }
    }

    /// The same requester with a PASID.
    #[must_use]
    pub const fn with_pasid(mut self, pasid: Pasid) -> Self {
        self.pasid = Some(pasid);
        self
    }

    /// The same requester in privileged mode.
    #[must_use]
    pub const fn with_privilege(mut self) -> Self {
        self.privileged = true;
        self
    }

    /// The request of `len` bytes at `address` that this requester issues.
    #[must_use]
    pub const fn request(&self, address: Iova, len: u64, access: Access) -> Request {
        let mut request = Request::new(self.source, address, len, access);
        if let Some(pasid) = self.pasid {
            request = request.with_pasid(pasid);
            if self.privileged {
                request = request.with_privilege();
            }
        }
        request
    }

    /// One number for each requester, never 0.
    #[inline]
    pub(crate) fn key(&self) -> u64 {
        let pasid = self
            .pasid
            .map_or(0, |pasid| u64::from(pasid.raw()) << 2 | 2 | u64::from(self.privileged));
        1 << 63 | u64::from(self.source.raw()) << 32 | pasid
    }
}

impl From<SourceId> for Requester {
    fn from(source: SourceId) -> Self {
        Self::new(source)
    }
}
