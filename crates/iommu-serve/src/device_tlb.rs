//! Device-TLBs: translations that functions keep beyond one access (PCIe ATS; VT-d §4).
//!
//! A function whose ATS is enabled asks the unit once for a page and then sends requests with the translated address. What it
//! keeps is dropped when the unit says so, before the unit tells software that the invalidation is complete. The entries are
//! kept here, under the unit's lock, and not in each function: any served function can have ATS that way.

use std::collections::BTreeMap;

use iommu_types::{Access, AddrRange, HostPhys, Iova, SourceId};
use vtd_model::{DeviceInvalidation, Request, RequestKind, Translation};

/// Entries of one function; the oldest makes room for a new one.
const ENTRIES_MAX: usize = 64;

/// A translation that a function keeps.
#[derive(Clone, Copy, Debug)]
struct Entry {
    page: AddrRange<Iova>,
    first: HostPhys,
    access: [bool; 2],
}

/// The device-TLBs of all functions.
#[derive(Debug, Default)]
pub(crate) struct DeviceTlbs(BTreeMap<SourceId, Vec<Entry>>);

/// How a function with ATS goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// With this request, whose address is translated already; the number of bytes for which that holds.
    Translated(Request, u64),
    /// By asking the unit first.
    Ask(Request),
}

impl DeviceTlbs {
    /// The way for `request`, which is an untranslated one.
    pub(crate) fn way(&self, request: Request) -> Way {
        let wanted = index(request.access);
        let kept = self.0.get(&request.source).into_iter().flatten().find(|entry| {
            entry.page.contains(request.address) && wanted.iter().zip(entry.access).all(|(wanted, has)| !wanted || has)
        });
        match kept.and_then(|entry| Some((entry, request.address.offset_from(entry.page.first())?))) {
            Some((entry, offset)) => {
                let left = (entry.page.last().raw() - request.address.raw())
                    .saturating_add(1)
                    .min(request.len);
                let at = Iova::new(entry.first.raw().wrapping_add(offset));
                let translated = Request::new(request.source, at, left, request.access);
                Way::Translated(translated.with_kind(RequestKind::Translated), left)
            }
            None => {
                // A translation request is a kind of read, whatever it is for; the no-write flag says that it is for no more.
                let ask = Request::new(request.source, request.address, request.len, Access::Read);
                let ask = ask.with_kind(RequestKind::Translation);
                Way::Ask(if wanted == [true, false] {
                    ask.with_no_write()
                } else {
                    ask
                })
            }
        }
    }

    /// Keeps what the unit answered to a translation request. False if the answer is none that can be used: the function
    /// sends its request untranslated then.
    pub(crate) fn keep(&mut self, request: &Request, answer: &Translation) -> bool {
        let granted = [answer.perms.read, answer.perms.write];
        let usable = index(request.access)
            .iter()
            .zip(granted)
            .all(|(wanted, has)| !wanted || has);
        let offset = request.address.offset_from(answer.page.first());
        let first = offset.and_then(|offset| answer.phys.raw().checked_sub(offset));
        let (Some(first), true, false) = (first, usable, answer.untranslated_only) else {
            return false;
        };
        let entries = self.0.entry(request.source).or_default();
        entries.retain(|entry| !entry.page.overlaps(answer.page));
        if entries.len() == ENTRIES_MAX {
            entries.remove(0);
        }
        entries.push(Entry {
            page: answer.page,
            first: HostPhys::new(first),
            access: granted,
        });
        true
    }

    /// Drops what an invalidation names (VT-d §6.5.2.5). Only translations without PASID are kept here.
    pub(crate) fn invalidate(&mut self, what: &DeviceInvalidation) {
        let Some(entries) = self.0.get_mut(&what.source) else {
            return;
        };
        let len = 1u64
            .checked_shl(u32::from(what.order) + PAGE_SHIFT)
            .filter(|len| *len != 0);
        let range = len.and_then(|len| AddrRange::from_base_len(what.first, len));
        match range {
            Some(range) => entries.retain(|entry| !entry.page.overlaps(range)),
            None => entries.clear(),
        }
    }

    /// Forgets everything of one function: its ATS was disabled or it was reset.
    pub(crate) fn forget(&mut self, source: SourceId) {
        self.0.remove(&source);
    }

    /// Forgets everything, as a reset of the machine does.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Base-2 logarithm of the pages that invalidations count in.
const PAGE_SHIFT: u32 = 12;

/// Whether an access reads and whether it writes.
fn index(access: Access) -> [bool; 2] {
    let needs = access.needs();
    [needs.read, needs.write]
}
