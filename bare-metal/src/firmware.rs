//! What the loader and the firmware left: the command line, and the DMAR table by way of RSDP and RSDT or XSDT.

use crate::hardware::firmware_bytes;

/// Offset of the command line's address in the PVH start information.
const COMMAND_LINE: usize = 24;
/// Longest command line that is read.
const LONGEST_LINE: usize = 256;
/// Where the RSDP is looked for, on 16-byte boundaries (ACPI §5.2.5.1).
const BIOS_AREA: core::ops::Range<u64> = 0xe_0000..0x10_0000;
/// Bytes of the header that all ACPI tables have.
const HEADER: usize = 36;
/// Longest table that is believed.
const LONGEST_TABLE: usize = 1 << 20;

fn word<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// The kernel's command line.
pub(crate) fn command_line(start_information: u32) -> &'static str {
    let line = || {
        let information = firmware_bytes(start_information.into(), COMMAND_LINE + 8)?;
        let at = u64::from_le_bytes(word(information, COMMAND_LINE)?);
        let bytes = firmware_bytes(at, LONGEST_LINE)?;
        core::ffi::CStr::from_bytes_until_nul(bytes).ok()?.to_str().ok()
    };
    line().unwrap_or_default()
}

/// A whole table at a physical address, if it has this signature and its sum is right.
fn table(at: u64, signature: [u8; 4]) -> Option<&'static [u8]> {
    let header = firmware_bytes(at, HEADER)?;
    let len = usize::try_from(u32::from_le_bytes(word(header, 4)?)).ok()?;
    if word(header, 0)? != signature || !(HEADER..=LONGEST_TABLE).contains(&len) {
        return None;
    }
    firmware_bytes(at, len).filter(|bytes| sums_to_zero(bytes))
}

fn sums_to_zero(bytes: &[u8]) -> bool {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) == 0
}

/// The bytes of the DMAR table.
pub(crate) fn dmar() -> Option<&'static [u8]> {
    let rsdp = BIOS_AREA
        .step_by(16)
        .filter_map(|at| firmware_bytes(at, 36))
        .find(|rsdp| rsdp.starts_with(b"RSD PTR ") && rsdp.get(..20).is_some_and(sums_to_zero))?;
    // The first revision has 32-bit addresses only.
    let extended = (rsdp.get(15).copied()? >= 2)
        .then(|| Some(u64::from_le_bytes(word(rsdp, 24)?)))
        .flatten()
        .and_then(|at| table(at, *b"XSDT"));
    let (list, width) = match extended {
        Some(list) => (list, 8),
        None => (table(u32::from_le_bytes(word(rsdp, 16)?).into(), *b"RSDT")?, 4),
    };
    list.get(HEADER..)?.chunks_exact(width).find_map(|entry| {
        let mut address = [0; 8];
        address.get_mut(..width)?.copy_from_slice(entry);
        table(u64::from_le_bytes(address), acpi_dmar::SIGNATURE)
    })
}
