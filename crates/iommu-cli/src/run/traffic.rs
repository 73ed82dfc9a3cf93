//! Real data through translated addresses.

use std::time::Instant;

use iommu_types::{Bdf, HostPhys, Iova, SystemMemory};
use soft_platform::{Machine, Pages};

use crate::progress::Progress;

/// One function's part of the work: copy `len` bytes from `source` to `destination` in its own address space.
#[derive(Debug)]
pub(crate) struct Copy<'a> {
    /// Who copies.
    pub(crate) function: Bdf,
    /// Where from.
    pub(crate) source: Iova,
    /// Where to.
    pub(crate) destination: Iova,
    /// How much in one round; a multiple of 8.
    pub(crate) len: u64,
    /// The memory behind the address space.
    pub(crate) memory: &'a Pages,
}

/// What the copying came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Copied {
    /// Bytes copied and compared.
    pub(crate) bytes: u64,
    /// Seconds, comparing included.
    pub(crate) seconds: f64,
    /// DMA requests of the engines (one each way for each piece).
    pub(crate) dmas: u64,
    /// What went wrong, if anything.
    pub(crate) problem: Option<String>,
}

/// Bytes that an engine takes in at once at most.
const PIECE: u64 = 1 << 20;

/// Copies round after round until `bytes` are copied. Each round has its own pattern, so that data of an
/// earlier round cannot pass for this one's.
pub(crate) fn copy(machine: &Machine, work: &[Copy<'_>], bytes: u64) -> Copied {
    let start = Instant::now();
    let mut progress = Progress::begin("copying through translated DMA", bytes);
    let mut copied = Copied::default();
    let mut round = 1;
    while copied.bytes < bytes && !work.is_empty() {
        for part in work {
            if let Err(problem) = one_round(machine, part, round, &mut copied) {
                copied.problem = Some(format!("{} in round {round}: {problem}", part.function));
                copied.seconds = start.elapsed().as_secs_f64();
                return copied;
            }
            progress.at(copied.bytes);
        }
        round += 1;
    }
    copied.seconds = start.elapsed().as_secs_f64();
    copied
}

fn one_round(machine: &Machine, part: &Copy<'_>, round: u64, copied: &mut Copied) -> Result<(), String> {
    let mut expected = vec![0; usize::try_from(PIECE.min(part.len)).unwrap_or_default()];
    let mut found = expected.clone();
    let mut done = 0;
    while done < part.len {
        let len = PIECE.min(part.len - done);
        let size = usize::try_from(len).map_err(|_| "a piece does not fit in memory".to_owned())?;
        let (expected, found) = (&mut expected[..size], &mut found[..size]);
        fill(expected, round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (part.source.raw() + done));
        memory_write(machine, part.memory, part.source.raw() + done, expected)?;
        let at = |base: Iova| base.checked_add(done).ok_or_else(|| "the buffer passes the end of the space".to_owned());
        let (source, destination) = (at(part.source)?, at(part.destination)?);
        machine
            .with_engine(part.function, |engine, bus| {
                let piece = len.min(engine.buffer().len() as u64);
                let mut moved = 0;
                while moved < len {
                    let now = piece.min(len - moved);
                    let from = source.checked_add(moved).unwrap_or(Iova::MAX);
                    let to = destination.checked_add(moved).unwrap_or(Iova::MAX);
                    engine.fetch(bus, from, 0, now).map_err(|why| why.to_string())?;
                    engine.store(bus, to, 0, now).map_err(|why| why.to_string())?;
                    moved += now;
                    copied.dmas += 2;
                }
                Ok::<(), String>(())
            })
            .map_err(|why| why.to_string())??;
        memory_read(machine, part.memory, part.destination.raw() + done, found)?;
        if let Some(at) = first_difference(expected, found) {
            return Err(format!("byte {at:#x} from {destination} is {:#04x}, not {:#04x}", found[at], expected[at]));
        }
        done += len;
        copied.bytes += len;
    }
    Ok(())
}

fn first_difference(expected: &[u8], found: &[u8]) -> Option<usize> {
    if expected == found {
        return None;
    }
    expected.iter().zip(found).position(|(a, b)| a != b)
}

/// A pattern that looks random and depends on the seed in every word.
fn fill(bytes: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for word in bytes.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
    }
}

/// Splits `len` bytes at `offset` of scattered memory into pieces that are contiguous in host memory.
fn pieces(memory: &Pages, offset: u64, len: usize) -> impl Iterator<Item = (Option<HostPhys>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done >= len {
            return None;
        }
        let at = offset + done as u64;
        let rest_of_page = usize::try_from(4096 - (at & 4095)).unwrap_or(1);
        let now = rest_of_page.min(len - done);
        let range = done..done + now;
        done += now;
        Some((memory.at(at), range))
    })
}

/// Writes scattered memory, as its owner (a guest's processor) does.
pub(crate) fn memory_write(machine: &Machine, memory: &Pages, offset: u64, bytes: &[u8]) -> Result<(), String> {
    for (at, range) in pieces(memory, offset, bytes.len()) {
        let at = at.ok_or_else(|| format!("offset {offset:#x} is outside the memory"))?;
        machine.write(at, &bytes[range]).map_err(|why| why.to_string())?;
    }
    Ok(())
}

/// Reads scattered memory, as its owner does.
pub(crate) fn memory_read(machine: &Machine, memory: &Pages, offset: u64, bytes: &mut [u8]) -> Result<(), String> {
    for (at, range) in pieces(memory, offset, bytes.len()) {
        let at = at.ok_or_else(|| format!("offset {offset:#x} is outside the memory"))?;
        machine.read(at, &mut bytes[range]).map_err(|why| why.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_two_rounds_differ_everywhere() {
        let (mut a, mut b) = ([0; 4096], [0; 4096]);
        fill(&mut a, 1 << 32);
        fill(&mut b, 2 << 32);
        assert!(a.chunks(8).zip(b.chunks(8)).all(|(a, b)| a != b));
        assert_eq!(first_difference(&a, &a), None);
        let mut c = a;
        c[77] ^= 1;
        assert_eq!(first_difference(&a, &c), Some(77));
    }
}
