//! Payloads of replies, and of the server's own commands.

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Regions that it has.
    pub regions: u32,
    /// Kinds of interrupts that it has.
    pub irqs: u32,
}

impl DeviceInfo {
    /// The payload: a PCI device that can be reset.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        const RESET_AND_PCI: u32 = 0b11;
        words(&[16, RESET_AND_PCI, self.regions, self.irqs])
    }
}

/// A region of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Which region.
    pub index: u32,
    /// Bytes; 0 for one that is not there.
    pub size: u64,
}

impl RegionInfo {
    /// The payload: readable and writable through messages, never mappable.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let flags = if self.size == 0 { 0 } else { 0b11 };
        let mut bytes = words(&[32, flags, self.index, 0]);
        bytes.extend(self.size.to_le_bytes());
        bytes.extend(0u64.to_le_bytes());
        bytes
    }
}

/// Interrupts of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqInfo {
    /// Which kind.
    pub index: u32,
    /// How many.
    pub count: u32,
    /// Level-triggered: it can be masked, and masks itself when it is raised.
    pub level: bool,
}

impl IrqInfo {
    /// The payload.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        const EVENTFD: u32 = 0b0001;
        const LEVEL: u32 = 0b0110;
        const NO_RESIZE: u32 = 0b1000;
        let flags = EVENTFD | if self.level { LEVEL } else { NO_RESIZE };
        words(&[16, flags, self.index, self.count])
    }
}

/// The fields before the data of a region read or write.
#[must_use]
pub fn region_access(offset: u64, region: u32, count: u32) -> Vec<u8> {
    let mut bytes = offset.to_le_bytes().to_vec();
    bytes.extend(words(&[region, count]));
    bytes
}

/// The fields before the data of a DMA read or write: the count takes eight bytes here.
#[must_use]
pub fn dma_access(address: u64, count: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    let (first, second) = bytes.split_at_mut(8);
    first.copy_from_slice(&address.to_le_bytes());
    second.copy_from_slice(&count.to_le_bytes());
    bytes
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
