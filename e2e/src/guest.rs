//! Linux in a QEMU guest, asked what it makes of a machine.
//!
//! The kernel boots on a processor in software with an initial file system that holds busybox, a script, the kernel
//! modules of VFIO and the host tool `iommu`. The script prints what the kernel knows (configuration spaces, groups,
//! the DMAR table, its messages about it) and what the tool answers there, and turns the machine off; that takes a
//! few seconds. The machines come from [`machine`], what was printed is a [`Record`].

pub mod archive;
pub mod machine;
pub mod messages;
mod packed;
pub mod record;

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use self::archive::Archive;
use self::machine::Machine;
use self::record::{Malformed, Record};

/// How long a guest may take. A usual one takes five seconds where nothing else runs; this is against hanging only.
const PATIENCE: Duration = Duration::from_secs(600);
/// Between two looks at whether the guest has ended.
const LOOK: Duration = Duration::from_millis(20);
/// The kernel's command line is cut off after this many bytes.
const COMMAND_LINE: usize = 2047;
/// Guests of this process that run at the same time; the others wait.
const GUESTS: usize = 2;

/// The applets that scripts use.
const APPLETS: [&str; 30] = [
    "base64", "basename", "cat", "cp", "depmod", "dmesg", "echo", "grep", "gzip", "head", "hexdump", "insmod", "kill",
    "ln", "ls", "mkdir", "modprobe", "mount", "mv", "poweroff", "printf", "readlink", "rm", "seq", "sh", "sleep",
    "tee", "test", "uname", "usleep",
];

/// What every script starts with.
const COMMON: &str = include_str!("../guest/common.sh");

/// What a guest is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Script {
    /// What the kernel and our tool make of the machine.
    Record,
    /// To give one endpoint of every group to user space as our tool says, and to take it back.
    Plan,
    /// To run `vfio-guest` on the functions listed in the file `/functions`.
    Vfio,
}

impl Script {
    const fn text(self) -> &'static str {
        match self {
            Self::Record => include_str!("../guest/record.sh"),
            Self::Plan => include_str!("../guest/plan.sh"),
            Self::Vfio => include_str!("../guest/vfio.sh"),
        }
    }
}

/// A machine, what it is started with, and what it is asked.
#[derive(Clone, Debug)]
pub struct Guest {
    /// Its devices.
    pub machine: Machine,
    /// Properties of its remapping unit, as in `intremap=on`; without them it has none.
    pub unit: Option<String>,
    /// What the kernel is told about the IOMMU.
    pub parameters: String,
    /// Further files by absolute path.
    pub files: Vec<(String, Vec<u8>)>,
    /// What it is asked.
    pub script: Script,
}

impl Guest {
    /// A guest whose unit is complete and used.
    #[must_use]
    pub fn new(machine: Machine, script: Script) -> Self {
        Self {
            machine,
            unit: Some("intremap=on,caching-mode=on".to_owned()),
            parameters: "intel_iommu=on iommu=nopt".to_owned(),
            files: Vec::new(),
            script,
        }
    }

    fn command_line(&self) -> String {
        // With many functions the messages about the table are long gone from a buffer of the usual size. Link power
        // management is off since Linux trips over it where ports stand in odd places.
        let mut line = format!(
            "console=ttyS0 quiet panic=-1 log_buf_len=4M pcie_aspm=off no_timer_check {}",
            self.parameters
        );
        // A driver whose interrupts do not arrive waits for minutes.
        if !self.machine.needs_nvme_driver {
            line.push_str(" initcall_blacklist=nvme_init");
        }
        if !self.machine.acs.is_empty() {
            let settings: Vec<String> = self.machine.acs.iter().map(ToString::to_string).collect();
            line = format!("{line} pci=config_acs={}", settings.join(";"));
        }
        line
    }
}

/// Why a guest gave no answer.
#[derive(Debug, Error)]
pub enum GuestError {
    /// A file could not be read or written, or QEMU could not be started.
    #[error("{what}: {source}")]
    Io {
        /// The file or program.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// QEMU was still running at the end of its time.
    #[error("the guest did not end within {} s; the console is in {}", PATIENCE.as_secs(), console.display())]
    Hangs {
        /// Where its console was written.
        console: PathBuf,
    },
    /// QEMU ended before the record did.
    #[error("the guest printed no whole record ({why}); the console is in {}\n{tail}", console.display())]
    Record {
        /// What is wrong with the record.
        why: Malformed,
        /// Where its console was written.
        console: PathBuf,
        /// The end of what it printed, and what QEMU said.
        tail: String,
    },
    /// Linux would not see the end of its command line.
    #[error("the kernel's command line has {len} bytes, of which it takes 2047")]
    CommandLine {
        /// Its length in bytes.
        len: usize,
    },
}

/// The programs that a guest needs.
#[derive(Clone, Debug)]
pub struct Tools {
    /// Starts QEMU 11 or newer with the arguments that follow.
    pub qemu: PathBuf,
    /// A kernel image with Intel's IOMMU driver, NVMe and the serial console built in.
    pub kernel: PathBuf,
    /// A busybox that needs no library.
    pub busybox: PathBuf,
    /// A folder with modules of that kernel: those of VFIO, `pci-pf-stub`, and what they need.
    pub modules: PathBuf,
    /// Our host tool, which needs no library either.
    pub iommu: PathBuf,
}

impl Tools {
    /// What `PORTCULLIS_QEMU`, `_KERNEL`, `_BUSYBOX`, `_MODULES` and `_IOMMU` name; `None` unless all are set.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let path = |name: &str| std::env::var_os(format!("PORTCULLIS_{name}")).map(PathBuf::from);
        Some(Self {
            qemu: path("QEMU")?,
            kernel: path("KERNEL")?,
            busybox: path("BUSYBOX")?,
            modules: path("MODULES")?,
            iommu: path("IOMMU")?,
        })
    }

    /// Boots a guest and returns what it printed. `folder` takes the initial file system and the console's log;
    /// guests that run at the same time need one each.
    ///
    /// # Errors
    /// [`GuestError`] if the guest cannot be started, does not end, or prints no whole record.
    pub fn boot(&self, folder: &Path, guest: &Guest) -> Result<Record, GuestError> {
        let failed = |what: &Path| {
            let what = what.display().to_string();
            move |source| GuestError::Io { what, source }
        };
        fs::create_dir_all(folder).map_err(failed(folder))?;
        let files = folder.join("initramfs");
        let archive = self.initial_files(guest).map_err(failed(&files))?;
        fs::write(&files, archive).map_err(failed(&files))?;
        let append = guest.command_line();
        if append.len() > COMMAND_LINE {
            return Err(GuestError::CommandLine { len: append.len() });
        }
        let mut command = Command::new(&self.qemu);
        command
            .args(["-machine", "q35", "-accel", "tcg", "-m", "512"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"]);
        if let Some(properties) = &guest.unit {
            command.args(["-device", &format!("intel-iommu,{properties}")]);
        }
        command
            .args(&guest.machine.arguments)
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&files)
            .args(["-append", &append])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let _slot = Slot::take();
        let mut child = command.spawn().map_err(failed(&self.qemu))?;
        let printed = child.stdout.take().map(collect);
        let said = child.stderr.take().map(collect);
        let ended = wait(&mut child).map_err(failed(&self.qemu))?;
        let text = |thread: Option<thread::JoinHandle<Vec<u8>>>| {
            let bytes = thread.and_then(|thread| thread.join().ok()).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (printed, said) = (text(printed), text(said));
        let console = folder.join("console.log");
        fs::write(&console, format!("{printed}\n{said}")).map_err(failed(&console))?;
        if !ended {
            return Err(GuestError::Hangs { console });
        }
        Record::read(&printed).map_err(|why| {
            let lines: Vec<&str> = printed.lines().chain(said.lines()).collect();
            let tail = lines[lines.len().saturating_sub(12)..].join("\n");
            GuestError::Record { why, console, tail }
        })
    }

    fn initial_files(&self, guest: &Guest) -> io::Result<Vec<u8>> {
        let mut archive = Archive::default();
        // The kernel looks for replaced tables before anything is unpacked.
        if let Some(table) = &guest.machine.table {
            for folder in ["kernel", "kernel/firmware", "kernel/firmware/acpi"] {
                archive.folder(folder);
            }
            archive.file("kernel/firmware/acpi/dmar.aml", false, table);
        }
        for folder in ["bin", "dev", "lib", "lib/modules", "modules", "proc", "sys", "tmp"] {
            archive.folder(folder);
        }
        archive.character_device("dev/console", 5, 1);
        archive.file("bin/busybox", true, &fs::read(&self.busybox)?);
        for applet in APPLETS {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
        archive.file("bin/iommu", true, &fs::read(&self.iommu)?);
        for module in fs::read_dir(&self.modules)? {
            let module = module?;
            let name = module.file_name();
            archive.file(
                &format!("modules/{}", name.to_string_lossy()),
                false,
                &fs::read(module.path())?,
            );
        }
        for (path, content) in &guest.files {
            archive.file(path.trim_start_matches('/'), true, content);
        }
        let init = format!("{COMMON}\n{}", guest.script.text());
        archive.file("init", true, init.as_bytes());
        Ok(archive.finish())
    }
}

/// The right to run a guest, until it is dropped.
struct Slot;

static RUNNING: Mutex<usize> = Mutex::new(0);
static ENDED: Condvar = Condvar::new();

impl Slot {
    /// Waits until fewer than [`GUESTS`] run.
    fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = ENDED
            .wait_while(running, |running| *running >= GUESTS)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// Reads a pipe to its end, beside the wait for the process.
fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}

/// Waits for the end; after [`PATIENCE`] makes one. Tells whether it came by itself.
fn wait(child: &mut Child) -> io::Result<bool> {
    let start = Instant::now();
    while child.try_wait()?.is_none() {
        if start.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            return Ok(false);
        }
        thread::sleep(LOOK);
    }
    Ok(true)
}
