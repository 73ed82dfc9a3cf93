//! Devices that advertise ATS and get it wrong.

use super::Devices;
use crate::function::Function;

/// AMD graphics whose device-TLB misses invalidations. Linux `drivers/pci/quirks.c`, `quirk_amd_harvest_no_ats`.
const BROKEN: Devices = Devices::new(
    0x1002,
    &[
        (0x98e4, 0x98e4),
        (0x6900, 0x6900),
        (0x7310, 0x7310),
        (0x7312, 0x7312),
        (0x7318, 0x7319),
        (0x731a, 0x731b),
        (0x731e, 0x731f),
        (0x7340, 0x7341),
        (0x7347, 0x7347),
        (0x734f, 0x734f),
    ],
);

/// One graphics core, broken in some revision on some boards only. Linux, the same function.
const BROKEN_ON_BOARDS: (Devices, u8, u16, [u16; 3]) = (
    Devices::new(0x1002, &[(0x15d8, 0x15d8)]),
    0xcf,
    0xea50,
    [0xce19, 0xcc10, 0xcc08],
);

/// Whether ATS must stay off although the function advertises it.
pub(crate) fn ats_is_broken(f: &Function) -> bool {
    let (devices, revision, vendor, boards) = BROKEN_ON_BOARDS;
    let on_board = || f.subsystem.is_some_and(|(v, id)| v == vendor && boards.contains(&id));
    BROKEN.contains(f.vendor, f.device)
        || (devices.contains(f.vendor, f.device) && f.revision == revision && on_board())
}
