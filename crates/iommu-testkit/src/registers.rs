//! Registers that follow a script, remember, or misbehave.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use iommu_types::Registers;

/// One access to a register window.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum RegisterAccess {
    /// A 32-bit read at an offset, and what it returned.
    Read32(u32, u32),
    /// A 64-bit read at an offset, and what it returned.
    Read64(u32, u64),
    /// A 32-bit write.
    Write32(u32, u32),
    /// A 64-bit write.
    Write64(u32, u64),
}

impl fmt::Debug for RegisterAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Read32(at, value) => write!(f, "read32 {at:#05x} -> {value:#x}"),
            Self::Read64(at, value) => write!(f, "read64 {at:#05x} -> {value:#x}"),
            Self::Write32(at, value) => write!(f, "write32 {at:#05x} <- {value:#x}"),
            Self::Write64(at, value) => write!(f, "write64 {at:#05x} <- {value:#x}"),
        }
    }
}

/// The values behind a window, in 32-bit words.
#[derive(Clone, Debug, Default)]
pub struct RegisterFile {
    words: BTreeMap<u32, u32>,
}

impl RegisterFile {
    /// The 32-bit register at `offset`; 0 until it is set.
    #[must_use]
    pub fn get32(&self, offset: u32) -> u32 {
        self.words.get(&offset).copied().unwrap_or(0)
    }

    /// The 64-bit register at `offset`.
    #[must_use]
    pub fn get64(&self, offset: u32) -> u64 {
        u64::from(self.get32(offset)) | u64::from(self.get32(offset.wrapping_add(4))) << 32
    }

    /// Sets the 32-bit register at `offset`.
    pub fn set32(&mut self, offset: u32, value: u32) {
        self.words.insert(offset, value);
    }

    /// Sets the 64-bit register at `offset`.
    pub fn set64(&mut self, offset: u32, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.set32(offset, u32::from_le_bytes([a, b, c, d]));
        self.set32(offset.wrapping_add(4), u32::from_le_bytes([e, f, g, h]));
    }
}

type Reaction = Box<dyn FnMut(&mut RegisterFile, RegisterAccess) + Send>;

struct State {
    file: RegisterFile,
    script: VecDeque<RegisterAccess>,
    scripted: bool,
    log: Vec<RegisterAccess>,
    silent: bool,
    stuck: Vec<(u32, u32, u32)>,
    reaction: Option<Reaction>,
}

/// A register window for tests of drivers.
///
/// Without further orders it stores what is written and logs each access. It can hold the driver to a
/// [script](Self::expect), [react](Self::react) to writes, keep bits [stuck](Self::stick), and
/// [fall silent](Self::silence) as a removed device does.
///
/// ```
/// use iommu_testkit::{RegisterAccess, ScriptedRegisters};
/// use iommu_types::Registers;
///
/// let registers = ScriptedRegisters::new(0x1000);
/// registers.expect([RegisterAccess::Read32(0x1c, 0), RegisterAccess::Write32(0x18, 1 << 31)]);
/// let status = registers.read32(0x1c);
/// registers.write32(0x18, status | 1 << 31);
/// registers.assert_done();
/// ```
pub struct ScriptedRegisters {
    window_len: u32,
    state: Mutex<State>,
}

impl fmt::Debug for ScriptedRegisters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state();
        f.debug_struct("ScriptedRegisters")
            .field("window_len", &self.window_len)
            .field("script", &state.script)
            .field("log", &state.log)
            .field("silent", &state.silent)
            .field("stuck", &state.stuck)
            .finish_non_exhaustive()
    }
}

impl ScriptedRegisters {
    /// A window of `window_len` bytes of zeroes.
    #[must_use]
    pub fn new(window_len: u32) -> Self {
        Self {
            window_len,
            state: Mutex::new(State {
                file: RegisterFile::default(),
                script: VecDeque::new(),
                scripted: false,
                log: Vec::new(),
                silent: false,
                stuck: Vec::new(),
                reaction: None,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at or changes the stored values behind the driver's back.
    pub fn with_file<T>(&self, with: impl FnOnce(&mut RegisterFile) -> T) -> T {
        with(&mut self.state().file)
    }

    /// Holds all further accesses to these, in this order; reads return the value given. May be called again
    /// to lengthen the script.
    pub fn expect(&self, accesses: impl IntoIterator<Item = RegisterAccess>) {
        let mut state = self.state();
        state.script.extend(accesses);
        state.scripted = true;
    }

    /// Calls `reaction` after each write was stored.
    pub fn react(&self, reaction: impl FnMut(&mut RegisterFile, RegisterAccess) + Send + 'static) {
        self.state().reaction = Some(Box::new(reaction));
    }

    /// Keeps the bits `mask` of the 32-bit register at `offset` at `value`, whatever is written.
    pub fn stick(&self, offset: u32, mask: u32, value: u32) {
        self.state().stuck.push((offset, mask, value));
    }

    /// From now on reads return all-ones and writes are lost, as with a device that is gone.
    pub fn silence(&self) {
        self.state().silent = true;
    }

    /// The accesses so far, oldest first.
    #[must_use]
    pub fn log(&self) -> Vec<RegisterAccess> {
        self.state().log.clone()
    }

    /// The writes so far, oldest first.
    #[must_use]
    pub fn writes(&self) -> Vec<RegisterAccess> {
        let is_write = |a: &RegisterAccess| matches!(a, RegisterAccess::Write32(..) | RegisterAccess::Write64(..));
        self.state().log.iter().copied().filter(is_write).collect()
    }

    /// Panics if part of the script was not played.
    ///
    /// # Panics
    /// With what is left of the script.
    #[track_caller]
    pub fn assert_done(&self) {
        let state = self.state();
        assert!(state.script.is_empty(), "accesses that never came: {:?}", state.script);
    }

    fn check(&self, offset: u32, bytes: u32) {
        assert!(
            offset.is_multiple_of(bytes) && offset.checked_add(bytes).is_some_and(|end| end <= self.window_len),
            "an access of {bytes} bytes at {offset:#x} does not fit the window of {:#x} bytes",
            self.window_len
        );
    }

    fn read(&self, offset: u32, bytes: u32) -> u64 {
        self.check(offset, bytes);
        let mut state = self.state();
        let low_half = |value: u64| value & 0xffff_ffff;
        let mut value = state.file.get64(offset);
        for (at, mask, stuck) in &state.stuck {
            if *at == offset {
                value = value & !u64::from(*mask) | u64::from(stuck & mask);
            } else if *at == offset.wrapping_add(4) {
                value = value & !(u64::from(*mask) << 32) | u64::from(stuck & mask) << 32;
            }
        }
        if state.silent {
            value = u64::MAX;
        } else if state.scripted {
            value = match state.script.pop_front() {
                Some(RegisterAccess::Read32(at, value)) if at == offset && bytes == 4 => u64::from(value),
                Some(RegisterAccess::Read64(at, value)) if at == offset && bytes == 8 => value,
                other => panic!("a read of {bytes} bytes at {offset:#x} instead of {other:?}"),
            };
        }
        if bytes == 4 {
            value = low_half(value);
        }
        let access = match u32::try_from(value) {
            Ok(value) if bytes == 4 => RegisterAccess::Read32(offset, value),
            _ => RegisterAccess::Read64(offset, value),
        };
        state.log.push(access);
        value
    }

    fn write(&self, access: RegisterAccess) {
        let (offset, bytes) = match access {
            RegisterAccess::Write64(offset, _) | RegisterAccess::Read64(offset, _) => (offset, 8),
            RegisterAccess::Write32(offset, _) | RegisterAccess::Read32(offset, _) => (offset, 4),
        };
        self.check(offset, bytes);
        let mut guard = self.state();
        let state = &mut *guard;
        state.log.push(access);
        if state.silent {
            return;
        }
        if state.scripted {
            let next = state.script.pop_front();
            assert!(next == Some(access), "{access:?} instead of {next:?}");
        }
        match access {
            RegisterAccess::Write32(_, value) => state.file.set32(offset, value),
            RegisterAccess::Write64(_, value) => state.file.set64(offset, value),
            RegisterAccess::Read32(..) | RegisterAccess::Read64(..) => {}
        }
        if let Some(reaction) = &mut state.reaction {
            reaction(&mut state.file, access);
        }
    }
}

impl Registers for ScriptedRegisters {
    fn read32(&self, offset: u32) -> u32 {
        u32::try_from(self.read(offset, 4)).unwrap_or(u32::MAX)
    }
    fn read64(&self, offset: u32) -> u64 {
        self.read(offset, 8)
    }
    fn write32(&self, offset: u32, value: u32) {
        self.write(RegisterAccess::Write32(offset, value));
    }
    fn write64(&self, offset: u32, value: u64) {
        self.write(RegisterAccess::Write64(offset, value));
    }
    fn window_len(&self) -> u32 {
        self.window_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_and_accesses_logged() {
        let registers = ScriptedRegisters::new(0x100);
        registers.write64(0x20, 0x1122_3344_5566_7788);
        assert_eq!(registers.read32(0x24), 0x1122_3344);
        registers.write32(0x20, 1);
        assert_eq!(registers.read64(0x20), 0x1122_3344_0000_0001);
        let expected = [
            RegisterAccess::Write64(0x20, 0x1122_3344_5566_7788),
            RegisterAccess::Read32(0x24, 0x1122_3344),
            RegisterAccess::Write32(0x20, 1),
            RegisterAccess::Read64(0x20, 0x1122_3344_0000_0001),
        ];
        assert_eq!(registers.log(), expected);
        assert_eq!(registers.writes(), [expected[0], expected[2]]);
    }

    #[test]
    fn reactions_answer_writes() {
        let registers = ScriptedRegisters::new(0x100);
        registers.react(|file, access| {
            if let RegisterAccess::Write32(0x18, command) = access {
                file.set32(0x1c, command);
            }
        });
        registers.write32(0x18, 1 << 26);
        assert_eq!(registers.read32(0x1c), 1 << 26);
    }

    #[test]
    fn stuck_bits_and_silence_win_over_contents() {
        let registers = ScriptedRegisters::new(0x100);
        registers.stick(0x1c, 0x3, 0x2);
        registers.with_file(|file| file.set64(0x18, 0x5_0000_0001));
        assert_eq!(registers.read32(0x1c), 0x6);
        assert_eq!(registers.read64(0x18), 0x6_0000_0001);
        registers.silence();
        registers.write32(0x18, 9);
        assert_eq!(registers.read32(0x18), u32::MAX);
        assert_eq!(registers.read64(0x18), u64::MAX);
    }

    #[test]
    #[should_panic(expected = "write32 0x018 <- 0x2 instead of Some(write32 0x018 <- 0x1)")]
    fn a_departure_from_the_script_is_told() {
        let registers = ScriptedRegisters::new(0x100);
        registers.expect([RegisterAccess::Write32(0x18, 1)]);
        registers.write32(0x18, 2);
    }

    #[test]
    #[should_panic(expected = "accesses that never came: [read32 0x01c -> 0x0]")]
    fn an_unplayed_script_is_told() {
        let registers = ScriptedRegisters::new(0x100);
        registers.expect([RegisterAccess::Read32(0x1c, 0)]);
        registers.assert_done();
    }

    #[test]
    #[should_panic(expected = "does not fit the window")]
    fn accesses_outside_the_window_are_told() {
        let _ = ScriptedRegisters::new(0x100).read64(0xfc);
    }
}
