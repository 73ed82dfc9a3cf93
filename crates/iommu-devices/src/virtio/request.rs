//! One request to a disk: a chain of buffers, a header in front and a status byte at the end.
//! Virtio §5.2.6 (Device Operation of block devices).

use iommu_types::Iova;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::disk::Disk;
use crate::bus::{Bus, DmaError, DmaErrorKind};

/// Bytes of a sector, in which requests count whatever the block size.
pub(super) const SECTOR: u64 = 512;
/// Most data buffers of a request, as the device tells its driver (`seg_max`).
pub(super) const MAX_DATA_SEGMENTS: u32 = 126;
/// Most buffers of a request with header and status.
pub(super) const MAX_SEGMENTS: usize = 128;
/// Longest data buffer in bytes, as the device tells its driver (`size_max`).
pub(super) const MAX_SEGMENT_LEN: u32 = 256 << 10;
/// Most data of a request in bytes: what those two allow.
const MAX_DATA: u64 = 126 * (256 << 10);
/// Most sectors that one request writes zeros to, as the device tells its driver.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 16;
/// Length of the buffer between disk and bus, in bytes.
pub(super) const BUFFER: usize = 128 << 10;
/// Bytes of a serial number.
pub(super) const ID_LEN: usize = 20;
/// Bytes of a request's header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of a range to write zeros to: sector, sectors, flags.
const RANGE: usize = 16;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) at: u64,
    pub(super) len: u32,
    pub(super) writable: bool,
}

/// A chain or ring that breaks the rules: the device can do no more for its driver than say so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// The ring, the status byte or the used entry cannot be reached.
    Dma(DmaError),
    /// The chain has no header or no status byte, has them in the wrong order, or is too long.
    Chain,
    /// The ring's index is impossible.
    Ring,
}

/// How a request ended.
type Status = Result<(), u32>;

/// What serving a request needs.
pub(super) struct Worker<'a> {
    pub(super) disk: &'a mut dyn Disk,
    pub(super) buffer: &'a mut [u8],
    pub(super) bus: &'a dyn Bus,
    pub(super) id: &'a [u8; ID_LEN],
    /// Writes are durable before they are acknowledged.
    pub(super) write_through: bool,
    /// The last access to a buffer that was stopped.
    pub(super) stopped: &'a mut Option<DmaError>,
}

impl Worker<'_> {
    /// Serves the request in `segments` and says how many bytes of its writable buffers were written.
    pub(super) fn serve(&mut self, segments: &[Segment]) -> Result<u32, Broken> {
        let readable_count = segments.iter().take_while(|segment| !segment.writable).count();
        let (readable, writable) = segments.split_at(readable_count);
        if segments.len() > MAX_SEGMENTS || writable.iter().any(|segment| !segment.writable) {
            return Err(Broken::Chain);
        }
        let total = |segments: &[Segment]| segments.iter().map(|segment| u64::from(segment.len)).sum::<u64>();
        let out = total(readable).checked_sub(HEADER as u64).ok_or(Broken::Chain)?;
        let room = total(writable).checked_sub(1).ok_or(Broken::Chain)?;
        let mut written = 0;
        let status = self.run(readable, out, writable, room, &mut written);
        let code = match status {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(code) => code,
        };
        let code = u8::try_from(code).unwrap_or_default();
        let status_at = address(writable, room).map_err(Broken::Dma)?;
        self.bus.dma_write(status_at, &[code]).map_err(Broken::Dma)?;
        Ok(u32::try_from(written + 1).unwrap_or(u32::MAX))
    }

    fn run(&mut self, readable: &[Segment], out: u64, writable: &[Segment], room: u64, written: &mut u64) -> Status {
        let mut header = [0; HEADER];
        self.gather(readable, 0, &mut header)?;
        let [a, b, c, d, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([a, b, c, d]) {
            VIRTIO_BLK_T_IN => {
                let at = self.range(sector, room)?;
                *written = room;
                self.pieces(writable, 0, room, |worker, done, iova, n| {
                    let part = worker.buffer.get_mut(..n).unwrap_or_default();
                    worker.disk.read_at(at + done, part).map_err(|_| VIRTIO_BLK_S_IOERR)?;
                    worker
                        .bus
                        .dma_write(iova, part)
                        .map_err(|error| stop(worker.stopped, error))
                })
            }
            VIRTIO_BLK_T_OUT => {
                let at = self.writable_range(sector, out)?;
                self.pieces(readable, HEADER as u64, out, |worker, done, iova, n| {
                    let part = worker.buffer.get_mut(..n).unwrap_or_default();
                    worker
                        .bus
                        .dma_read(iova, part)
                        .map_err(|error| stop(worker.stopped, error))?;
                    worker.disk.write_at(at + done, part).map_err(|_| VIRTIO_BLK_S_IOERR)
                })?;
                self.make_durable()
            }
            VIRTIO_BLK_T_FLUSH => self.disk.flush().map_err(|_| VIRTIO_BLK_S_IOERR),
            VIRTIO_BLK_T_GET_ID => {
                let id = *self.id;
                let n = room.min(ID_LEN as u64);
                *written = n;
                self.pieces(writable, 0, n, |worker, done, iova, n| {
                    let start = usize::try_from(done).unwrap_or(ID_LEN);
                    let part = id.get(start..start + n).unwrap_or_default();
                    worker
                        .bus
                        .dma_write(iova, part)
                        .map_err(|error| stop(worker.stopped, error))
                })
            }
            VIRTIO_BLK_T_WRITE_ZEROES => self.write_zeroes(readable, out),
            _ => Err(VIRTIO_BLK_S_UNSUPP),
        }
    }

    fn write_zeroes(&mut self, readable: &[Segment], out: u64) -> Status {
        if out != RANGE as u64 {
            return Err(VIRTIO_BLK_S_IOERR);
        }
        let mut range = [0; RANGE];
        self.gather(readable, HEADER as u64, &mut range)?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] = range;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([c0, c1, c2, c3]);
        if u32::from_le_bytes(flags) & !VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 {
            return Err(VIRTIO_BLK_S_UNSUPP);
        }
        if sectors > MAX_ZERO_SECTORS {
            return Err(VIRTIO_BLK_S_IOERR);
        }
        let len = u64::from(sectors) * SECTOR;
        let at = self.writable_range(sector, len)?;
        self.buffer.fill(0);
        let mut done = 0;
        while done < len {
            let n = usize::try_from(len - done).unwrap_or(BUFFER).min(self.buffer.len());
            let zeros = self.buffer.get(..n).unwrap_or_default();
            self.disk.write_at(at + done, zeros).map_err(|_| VIRTIO_BLK_S_IOERR)?;
            done += n as u64;
        }
        self.make_durable()
    }

    fn make_durable(&mut self) -> Status {
        if self.write_through {
            self.disk.flush().map_err(|_| VIRTIO_BLK_S_IOERR)?;
        }
        Ok(())
    }

    /// Byte offset of `sector`, if `len` bytes from there are whole sectors on the disk.
    fn range(&self, sector: u64, len: u64) -> Result<u64, u32> {
        let at = sector.checked_mul(SECTOR).ok_or(VIRTIO_BLK_S_IOERR)?;
        let end = at.checked_add(len).ok_or(VIRTIO_BLK_S_IOERR)?;
        let capacity = self.disk.len() / SECTOR * SECTOR;
        // Zeros are written without data, and have their own limit.
        let fits =
            len.is_multiple_of(SECTOR) && end <= capacity && len <= MAX_DATA.max(u64::from(MAX_ZERO_SECTORS) * SECTOR);
        fits.then_some(at).ok_or(VIRTIO_BLK_S_IOERR)
    }

    fn writable_range(&self, sector: u64, len: u64) -> Result<u64, u32> {
        if self.disk.is_read_only() {
            return Err(VIRTIO_BLK_S_IOERR);
        }
        self.range(sector, len)
    }

    /// Reads `into.len()` bytes from byte `skip` of `segments`.
    fn gather(&mut self, segments: &[Segment], skip: u64, into: &mut [u8]) -> Status {
        let len = into.len() as u64;
        self.pieces(segments, skip, len, |worker, done, iova, n| {
            let start = usize::try_from(done).unwrap_or(usize::MAX);
            let part = into.get_mut(start..start + n).unwrap_or_default();
            worker
                .bus
                .dma_read(iova, part)
                .map_err(|error| stop(worker.stopped, error))
        })
    }

    /// Calls `each` for the parts of `len` bytes from byte `skip` of `segments`, each within one buffer and no longer
    /// than the buffer between disk and bus: with the bytes done, the address, and the length.
    fn pieces(
        &mut self,
        segments: &[Segment],
        skip: u64,
        len: u64,
        mut each: impl FnMut(&mut Self, u64, Iova, usize) -> Status,
    ) -> Status {
        let (mut skip, mut done) = (skip, 0);
        for segment in segments {
            let here = u64::from(segment.len);
            let mut at = skip.min(here);
            skip -= at;
            while at < here && done < len {
                let n = usize::try_from((here - at).min(len - done))
                    .unwrap_or(BUFFER)
                    .min(self.buffer.len());
                let iova = segment.at.checked_add(at).map(Iova::new);
                let iova = iova.ok_or_else(|| {
                    let error = DmaError::new(Iova::new(segment.at), DmaErrorKind::OutOfRange);
                    stop(self.stopped, error)
                })?;
                each(self, done, iova, n)?;
                at += n as u64;
                done += n as u64;
            }
        }
        Ok(())
    }
}

/// Remembers what was stopped; the request ends with an error.
fn stop(stopped: &mut Option<DmaError>, error: DmaError) -> u32 {
    *stopped = Some(error);
    VIRTIO_BLK_S_IOERR
}

/// The address of byte `skip` of `segments`.
fn address(segments: &[Segment], skip: u64) -> Result<Iova, DmaError> {
    let mut skip = skip;
    for segment in segments {
        if skip < u64::from(segment.len) {
            let error = DmaError::new(Iova::new(segment.at), DmaErrorKind::OutOfRange);
            return segment.at.checked_add(skip).map(Iova::new).ok_or(error);
        }
        skip -= u64::from(segment.len);
    }
    Err(DmaError::new(Iova::ZERO, DmaErrorKind::OutOfRange))
}
