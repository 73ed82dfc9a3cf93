//! Real data through translated addresses.

use std::time::Instant;

use iommu_types::{Bdf, Iova};
use iommu_vfio::UserMemory;
use soft_platform::Machine;

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
    /// The memory behind the address space: addresses are offsets in it.
    pub(crate) memory: &'a UserMemory,
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
    while copied.bytes < bytes && work.iter().any(|part| part.len > 0) {
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
        fill(
            expected,
            round.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (part.source.raw() + done),
        );
        part.memory
            .write(part.source.raw() + done, expected)
            .map_err(|why| why.to_string())?;
        let at = |base: Iova| {
            base.checked_add(done)
                .ok_or_else(|| "the buffer passes the end of the space".to_owned())
        };
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
        part.memory
            .read(part.destination.raw() + done, found)
            .map_err(|why| why.to_string())?;
        if let Some(at) = first_difference(expected, found) {
            return Err(format!(
                "byte {at:#x} from {destination} is {:#04x}, not {:#04x}",
                found[at], expected[at]
            ));
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
