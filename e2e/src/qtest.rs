//! QEMU's `intel-iommu` without a guest, driven through the qtest protocol.
//!
//! The processor of the machine halts in its reset vector; every register write, table and DMA comes from here.
//! `edu`, QEMU's educational device, is the requester: its DMA engine reads memory, and its MSI, aimed at an
//! ordinary address, is a synchronous four-byte write.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use thiserror::Error;

/// Where QEMU places the register window of its remapping unit.
pub const UNIT: u64 = 0xfed9_0000;
/// The requester ID of the `edu` device: 00:04.0.
pub const EDU_SOURCE: u16 = 0x0020;

const EDU_SLOT: u32 = 4;
const EDU_BAR: u64 = 0xfe00_0000;
/// The device-internal address of `edu`'s buffer.
const EDU_BUFFER: u64 = 0x4_0000;
/// How long a DMA may take before the device counts as stuck.
const EDU_PATIENCE: Duration = Duration::from_secs(20);

/// What can go wrong with the other process.
#[derive(Debug, Error)]
pub enum QtestError {
    /// It could not be started, or its pipes broke: it died.
    #[error("QEMU cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// It answered something that is not `OK`.
    #[error("QEMU answered {answer:?} to {command:?}")]
    Refused {
        /// What was asked.
        command: String,
        /// What came back.
        answer: String,
    },
    /// The DMA engine did not come to an end.
    #[error("the edu device did not finish a DMA")]
    Stuck,
}

/// Asks `program` for its version, as in `(11, 1)`.
///
/// # Errors
/// [`QtestError`] if it cannot be started or says something else.
pub fn version(program: &Path) -> Result<(u16, u16), QtestError> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut numbers = text
        .split_whitespace()
        .skip_while(|word| *word != "version")
        .nth(1)
        .unwrap_or_default()
        .split('.')
        .map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(QtestError::Refused {
            command: "--version".to_owned(),
            answer: text,
        }),
    }
}

/// A running QEMU with one remapping unit and one `edu` device.
#[derive(Debug)]
pub struct Qemu {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// Where QEMU notes the interrupts that its unit passes on.
    trace: File,
}

impl Qemu {
    /// Starts `program` with the given properties of `intel-iommu` (as in `aw-bits=48,intremap=off`).
    ///
    /// `folder`, which no other QEMU may use, takes the firmware image, which is a halted processor, and the trace
    /// of interrupts.
    ///
    /// # Errors
    /// [`QtestError`] if it cannot be started or the device cannot be set up.
    pub fn start(program: &Path, folder: &Path, iommu: &str) -> Result<Self, QtestError> {
        std::fs::create_dir_all(folder)?;
        let firmware = halted_processor(folder)?;
        let trace_path = folder.join("trace.log");
        File::create(&trace_path)?;
        let mut child = Command::new(program)
            .args([
                "-machine",
                "q35",
                "-accel",
                "tcg",
                "-icount",
                "shift=0,sleep=off",
                "-m",
                "512",
            ])
            .args(["-display", "none", "-nodefaults", "-no-user-config", "-bios"])
            .arg(firmware)
            .arg("-device")
            .arg(format!("intel-iommu,{iommu}"))
            .args([
                "-device",
                &format!("edu,addr={EDU_SLOT:02x}.0,dma_mask=0xffffffffffffffff"),
            ])
            .args(["-trace", "vtd_ir_remap_msi", "-D"])
            .arg(&trace_path)
            .args(["-qtest", "stdio", "-qtest-log", "none"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(QtestError::Io(io::ErrorKind::BrokenPipe.into()));
        };
        let mut qemu = Self {
            child,
            input,
            output: BufReader::new(output),
            trace: File::open(trace_path)?,
        };
        qemu.config_write(0x10, u32::try_from(EDU_BAR).unwrap_or_default())?;
        // Memory space and bus master: without the latter a DMA vanishes without any fault.
        qemu.config_write(0x04, 0x6)?;
        Ok(qemu)
    }

    /// Sends one line and returns what follows `OK` in the answer.
    fn command(&mut self, command: &str) -> Result<String, QtestError> {
        self.input.write_all(command.as_bytes())?;
        self.input.write_all(b"\n")?;
        self.input.flush()?;
        loop {
            let mut answer = String::new();
            if self.output.read_line(&mut answer)? == 0 {
                return Err(QtestError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            let answer = answer.trim();
            if answer.starts_with("IRQ") {
                continue;
            }
            return match answer.strip_prefix("OK") {
                Some(rest) => Ok(rest.trim().to_owned()),
                None => Err(QtestError::Refused {
                    command: command.to_owned(),
                    answer: answer.to_owned(),
                }),
            };
        }
    }

    fn number(&mut self, command: &str) -> Result<u64, QtestError> {
        let answer = self.command(command)?;
        let digits = answer.trim_start_matches("0x");
        u64::from_str_radix(digits, 16).map_err(|_| QtestError::Refused {
            command: command.to_owned(),
            answer,
        })
    }

    /// Writes a configuration register of the `edu` device.
    fn config_write(&mut self, register: u32, value: u32) -> Result<(), QtestError> {
        let address = 0x8000_0000 + (EDU_SLOT << 11) + register;
        self.command(&format!("outl 0xcf8 {address:#x}"))?;
        self.command(&format!("outl 0xcfc {value:#x}"))?;
        Ok(())
    }

    /// Reads a 32-bit word as the processor would.
    ///
    /// # Errors
    /// [`QtestError`] if QEMU is gone.
    pub fn read32(&mut self, at: u64) -> Result<u32, QtestError> {
        Ok(u32::try_from(self.number(&format!("readl {at:#x}"))?).unwrap_or(u32::MAX))
    }

    /// Reads a 64-bit word as the processor would.
    ///
    /// # Errors
    /// [`QtestError`] if QEMU is gone.
    pub fn read64(&mut self, at: u64) -> Result<u64, QtestError> {
        self.number(&format!("readq {at:#x}"))
    }

    /// Writes a 32-bit word as the processor would.
    ///
    /// # Errors
    /// [`QtestError`] if QEMU is gone.
    pub fn write32(&mut self, at: u64, value: u32) -> Result<(), QtestError> {
        self.command(&format!("writel {at:#x} {value:#x}")).map(drop)
    }

    /// Writes a 64-bit word as the processor would.
    ///
    /// # Errors
    /// [`QtestError`] if QEMU is gone.
    pub fn write64(&mut self, at: u64, value: u64) -> Result<(), QtestError> {
        self.command(&format!("writeq {at:#x} {value:#x}")).map(drop)
    }

    /// Zeroes memory.
    ///
    /// # Errors
    /// [`QtestError`] if QEMU is gone.
    pub fn zero(&mut self, at: u64, len: u64) -> Result<(), QtestError> {
        self.command(&format!("memset {at:#x} {len:#x} 0x0")).map(drop)
    }

    /// The device reads four bytes at `iova` into its own buffer; [`Self::dma_write_back`] shows what they were.
    ///
    /// # Errors
    /// [`QtestError`] if QEMU is gone or the device is stuck.
    pub fn dma_read(&mut self, iova: u64) -> Result<(), QtestError> {
        self.write64(EDU_BAR + 0x80, iova)?;
        self.write64(EDU_BAR + 0x88, EDU_BUFFER)?;
        self.write64(EDU_BAR + 0x90, 4)?;
        self.write64(EDU_BAR + 0x98, 1)?;
        self.dma_end()
    }

    /// The device writes back at `iova` the four bytes that it read last.
    ///
    /// # Errors
    /// [`QtestError`] if QEMU is gone or the device is stuck.
    pub fn dma_write_back(&mut self, iova: u64) -> Result<(), QtestError> {
        self.write64(EDU_BAR + 0x80, EDU_BUFFER)?;
        self.write64(EDU_BAR + 0x88, iova)?;
        self.write64(EDU_BAR + 0x90, 4)?;
        self.write64(EDU_BAR + 0x98, 3)?;
        self.dma_end()
    }

    fn dma_end(&mut self) -> Result<(), QtestError> {
        let start = Instant::now();
        while start.elapsed() < EDU_PATIENCE {
            if self.read64(EDU_BAR + 0x98)? & 1 == 0 {
                return Ok(());
            }
        }
        Err(QtestError::Stuck)
    }

    /// The device writes `value` (16 bits, as the data of an MSI; the upper half of the four bytes is zero) at
    /// `iova`, at once: its MSI is aimed there.
    ///
    /// # Errors
    /// [`QtestError`] if QEMU is gone.
    pub fn dma_write(&mut self, iova: u64, value: u32) -> Result<(), QtestError> {
        let [low, high] = [iova & 0xffff_ffff, iova >> 32].map(|half| u32::try_from(half).unwrap_or_default());
        self.config_write(0x44, low)?;
        self.config_write(0x48, high)?;
        self.config_write(0x4c, value)?;
        self.config_write(0x40, 0x0081_0005)?;
        self.write32(EDU_BAR + 0x60, 1)?;
        self.write32(EDU_BAR + 0x64, 1)
    }
}

impl Qemu {
    /// The device writes four bytes at once at `iova` with its DMA engine, all 32 bits of `value`. They are brought
    /// to the device from `staging`, memory that its reads must reach unchanged.
    ///
    /// # Errors
    /// [`QtestError`] if QEMU is gone or the device is stuck.
    pub fn dma_write_wide(&mut self, iova: u64, value: u32, staging: u64) -> Result<(), QtestError> {
        self.write32(staging, value)?;
        self.dma_read(staging)?;
        self.dma_write_back(iova)
    }

    /// The interrupts that the unit has passed on since the last call, as messages: address and data.
    ///
    /// # Errors
    /// [`QtestError`] if the trace cannot be read.
    pub fn take_interrupts(&mut self) -> Result<Vec<(u64, u32)>, QtestError> {
        let mut text = String::new();
        self.trace.read_to_string(&mut text)?;
        Ok(text.lines().filter_map(traced_message).collect())
    }
}

/// The message behind the arrow of `vtd_ir_remap_msi (addr 0x…, data 0x…) -> (addr 0x…, data 0x…)`, unless the unit
/// drops it, which the trace does not say in words: then it is neither unchanged nor asserted (bit 14 of the data).
fn traced_message(line: &str) -> Option<(u64, u32)> {
    fn message(text: &str) -> Option<(u64, u32)> {
        let (address, data) = text.split_once(", data 0x")?;
        let address = u64::from_str_radix(address, 16).ok()?;
        let data = u32::from_str_radix(data.trim_end().trim_end_matches(')'), 16).ok()?;
        Some((address, data))
    }
    let (before, after) = line.split_once(" -> (addr 0x")?;
    let (before, after) = (message(before.split_once("(addr 0x")?.1), message(after)?);
    (after.1 >> 14 & 1 == 1 || before == Some(after)).then_some(after)
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Nothing is lost with the process: the machine in it has no disk.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A firmware image whose reset vector halts with interrupts off: `cli; hlt; jmp` back to `hlt`.
fn halted_processor(folder: &Path) -> io::Result<PathBuf> {
    const RESET_VECTOR: usize = 0xfff0;
    let mut image = vec![0xff_u8; 0x1_0000];
    if let Some(code) = image.get_mut(RESET_VECTOR..RESET_VECTOR + 4) {
        code.copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
    }
    let path = folder.join("halted.bin");
    std::fs::write(&path, image)?;
    Ok(path)
}
