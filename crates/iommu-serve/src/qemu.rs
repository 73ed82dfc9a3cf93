//! The QEMU command line that goes with a served machine.

use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use acpi_dmar::BuildError;
use iommu_devices::ResetKind;
use thiserror::Error;

use crate::firmware::dmar_table;
use crate::server::Server;

/// How long firmware may take to place the unit's registers. Emulated processors are slow on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often is looked whether it has.
const PACE: Duration = Duration::from_millis(20);

/// Where firmware places the unit's registers in a machine with nothing but the served functions, mostly.
pub const USUAL_BASE: u64 = 0xfeb1_0000;

/// Why there is no guest.
#[derive(Debug, Error)]
pub enum BootError {
    /// QEMU cannot be started or waited for.
    #[error("{program}: {why}: a QEMU of 10.1 or later with vfio-user-pci is needed", program = program.display())]
    Qemu {
        /// What was to be started.
        program: PathBuf,
        /// What the operating system says.
        why: io::Error,
    },
    /// The table cannot be built.
    #[error(transparent)]
    Table(#[from] BuildError),
    /// The table cannot be written.
    #[error("{file}: {why}", file = file.display())]
    Write {
        /// Where it was to be.
        file: PathBuf,
        /// What the operating system says.
        why: io::Error,
    },
    /// QEMU ended in the dry start.
    #[error("QEMU ended with {0} before its firmware ran")]
    Early(ExitStatus),
    /// The unit got no address.
    #[error("firmware did not place the unit's registers within {} s", PATIENCE.as_secs())]
    Unplaced,
}

/// A QEMU that does not outlive its owner.
#[derive(Debug)]
pub struct Running(Child);

impl Running {
    /// The process.
    pub const fn child(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended already cannot be killed, and need not be.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How a guest is started on a served machine.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The program, `qemu-system-x86_64` or one that takes the same arguments.
    pub program: PathBuf,
    /// The guest.
    pub guest: Guest,
    /// Where the DMAR table goes.
    pub table: PathBuf,
}

impl Launch {
    /// Starts QEMU until its firmware has placed the unit's registers, ends it, and writes the table with their address. The
    /// same command line places them in the same place again. Returns the address. The functions are reset before: none has
    /// an address of an earlier client.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn learn(&self, server: &Server) -> Result<u64, BootError> {
        self.write_table(server, USUAL_BASE)?;
        for slot in server.machine().slots() {
            slot.function().reset(ResetKind::Conventional);
        }
        let mut running = self.start(server, Stdio::null())?;
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if let Some(base) = server.machine().unit_base() {
                drop(running);
                self.write_table(server, base)?;
                return Ok(base);
            }
            if let Some(status) = running.0.try_wait().map_err(|why| self.failed(why))? {
                return Err(BootError::Early(status));
            }
            thread::sleep(PACE);
        }
        Err(BootError::Unplaced)
    }

    /// Starts the guest; what it prints on its console goes to `console`.
    ///
    /// # Errors
    /// [`BootError::Qemu`].
    pub fn start(&self, server: &Server, console: Stdio) -> Result<Running, BootError> {
        Command::new(&self.program)
            .args(arguments(server, &self.guest, &self.table))
            .stdin(Stdio::null())
            .stdout(console)
            .spawn()
            .map(Running)
            .map_err(|why| self.failed(why))
    }

    /// Writes the DMAR table of `server` with the unit's registers at `base`.
    ///
    /// # Errors
    /// [`BootError::Table`], [`BootError::Write`].
    pub fn write_table(&self, server: &Server, base: u64) -> Result<(), BootError> {
        let machine = server.machine();
        let table = dmar_table(machine.remapper().config(), base, machine.behind())?;
        std::fs::write(&self.table, table).map_err(|why| BootError::Write {
            file: self.table.clone(),
            why,
        })
    }

    fn failed(&self, why: io::Error) -> BootError {
        BootError::Qemu {
            program: self.program.clone(),
            why,
        }
    }
}

/// How the guest is to be run, as far as the served machine does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Virtual processors.
    pub processors: u32,
    /// Kernel image.
    pub kernel: Option<String>,
    /// Initial file system.
    pub initrd: Option<String>,
    /// More words for the kernel's command line.
    pub append: String,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            memory_mib: 512,
            processors: 1,
            kernel: None,
            initrd: None,
            append: String::new(),
        }
    }
}

/// What a Linux guest has to be told on its kernel's command line: use the unit, and leave interrupts to QEMU, which delivers
/// them. Without the second, Linux claims the unit's registers before PCI devices have theirs, moves them, and panics.
pub const LINUX_WORDS: &str = "intel_iommu=on intremap=off";

/// The arguments of `qemu-system-x86_64`, its name not included. `table` is the file with the DMAR table.
///
/// Memory has to be a shared memfd: only then does QEMU pass it to the server. Every function stands at the address that the
/// table names, on the root bus.
pub fn arguments(server: &Server, guest: &Guest, table: &Path) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut push = |option: &str, value: String| words.extend([option.to_owned(), value]);
    let memory = guest.memory_mib;
    push("-machine", "q35,memory-backend=ram".to_owned());
    push("-accel", "tcg".to_owned());
    push(
        "-object",
        format!("memory-backend-memfd,id=ram,size={memory}M,share=on"),
    );
    push("-m", format!("{memory}M"));
    push("-smp", guest.processors.to_string());
    push("-acpitable", format!("file={}", escaped(&table.display().to_string())));
    for (slot, socket) in server.machine().slots().iter().zip(server.sockets()) {
        let source = slot.source();
        let socket = socket.display().to_string();
        let device = serde_json::json!({
            "driver": "vfio-user-pci",
            "socket": { "path": socket, "type": "unix" },
            "addr": format!("{:x}.{:x}", source.devfn().device(), source.devfn().function()),
        });
        push("-device", device.to_string());
    }
    if let Some(kernel) = &guest.kernel {
        push("-kernel", kernel.clone());
        // The timer is not judged by the speed of an emulated processor: on a busy host that ends the boot.
        let words = format!("console=ttyS0 panic=-1 {LINUX_WORDS} no_timer_check {}", guest.append);
        push("-append", words.trim_end().to_owned());
    }
    if let Some(initrd) = &guest.initrd {
        push("-initrd", initrd.clone());
    }
    words.extend(["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"].map(str::to_owned));
    words
}

/// A comma separates options for QEMU; two of them are a comma.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

/// The arguments as one line for a shell.
pub fn shell_line(program: &str, arguments: &[String]) -> String {
    let mut line = program.to_owned();
    for word in arguments {
        let plain = !word.is_empty()
            && word
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./=,:+%@".contains(c));
        if plain {
            let _ = write!(line, " {word}");
        } else {
            let _ = write!(line, " '{}'", word.replace('\'', r"'\''"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_the_shell_come_out_as_they_went_in() {
        let words = ["-append".to_owned(), "a b".to_owned(), "it's".to_owned(), String::new()];
        assert_eq!(shell_line("qemu", &words), r"qemu -append 'a b' 'it'\''s' ''");
        assert_eq!(escaped("a,b"), "a,,b");
    }
}
