//! Linux in a QEMU guest, asked what it makes of a machine.
//!
//! The kernel boots on a processor in software with an initial file system that holds nothing but busybox and one
//! script. The script prints what the kernel knows (configuration spaces, groups, the DMAR table, its messages
//! about it) and turns the machine off; that takes a few seconds. The machines come from [`machine`].

pub mod archive;
pub mod machine;
pub mod messages;
pub mod record;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use thiserror::Error;

use self::archive::Archive;
use self::machine::Machine;
use self::record::{Malformed, Record};

/// How long a guest may take. A usual one takes five seconds, on a processor in software.
const PATIENCE: Duration = Duration::from_secs(180);
/// Between two looks at whether the guest has ended.
const LOOK: Duration = Duration::from_millis(20);
/// The kernel's command line is cut off after this many bytes.
const COMMAND_LINE: usize = 2047;

/// The applets that the script uses.
const APPLETS: [&str; 11] = [
    "sh", "mount", "cat", "echo", "hexdump", "dmesg", "grep", "sleep", "poweroff", "ls", "test",
];

/// Prints everything that is to be known, in the form that [`Record`] reads.
const INIT: &str = r#"#!/bin/sh
mount -t proc proc /proc
mount -t sysfs sysfs /sys
# From here on only this script writes to the console.
echo 1 > /proc/sys/kernel/printk
echo "== record"
echo "kernel $(cat /proc/sys/kernel/osrelease)"
cd /sys/bus/pci/devices
for f in *; do
  # Virtual functions are switched on through the driver of the physical one; they need none themselves.
  test -e $f/sriov_numvfs -a -e $f/driver || continue
  echo 0 > $f/sriov_drivers_autoprobe
  cat $f/sriov_totalvfs > $f/sriov_numvfs
done
for r in /sys/devices/pci*; do
  echo "root ${r#/sys/devices/pci}"
done
bytes() {
  hexdump -e '"%05_ax" 16/1 " %02x" "\n"' -e '"%05_Ax\n"' $1
}
for f in *; do
  echo "config $f"
  bytes $f/config
done
for g in /sys/kernel/iommu_groups/*/devices/*; do
  g=${g#/sys/kernel/iommu_groups/}
  echo "group ${g%%/*} ${g##*/}"
done
if test -e /sys/firmware/acpi/tables/DMAR; then
  echo "table DMAR"
  bytes /sys/firmware/acpi/tables/DMAR
fi
echo "messages"
dmesg | grep -e DMAR -e IOMMU -e "correcting type"
echo "== end"
poweroff -f
"#;

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
}

impl Tools {
    /// The programs that `PORTCULLIS_QEMU`, `PORTCULLIS_KERNEL` and `PORTCULLIS_BUSYBOX` name; `None` unless all
    /// three are set.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        Some(Self {
            qemu: path("PORTCULLIS_QEMU")?,
            kernel: path("PORTCULLIS_KERNEL")?,
            busybox: path("PORTCULLIS_BUSYBOX")?,
        })
    }

    /// Boots `machine` and returns what the kernel said about it. `folder` takes the initial file system and
    /// the console's log; guests that run at the same time need one each.
    ///
    /// # Errors
    /// [`GuestError`] if the guest cannot be started, does not end, or prints no whole record.
    pub fn boot(&self, folder: &Path, machine: &Machine) -> Result<Record, GuestError> {
        let failed = |what: &Path| {
            let what = what.display().to_string();
            move |source| GuestError::Io { what, source }
        };
        std::fs::create_dir_all(folder).map_err(failed(folder))?;
        let files = folder.join("initramfs");
        let archive = self.initial_files(machine).map_err(failed(&self.busybox))?;
        std::fs::write(&files, archive).map_err(failed(&files))?;
        let append = command_line(machine);
        if append.len() > COMMAND_LINE {
            return Err(GuestError::CommandLine { len: append.len() });
        }
        let mut command = Command::new(&self.qemu);
        command
            .args(["-machine", "q35", "-accel", "tcg", "-m", "512"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-serial", "stdio"])
            .args(["-device", "intel-iommu,intremap=on,caching-mode=on"])
            .args(&machine.arguments)
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&files)
            .args(["-append", &append])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
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
        std::fs::write(&console, format!("{printed}\n{said}")).map_err(failed(&console))?;
        if !ended {
            return Err(GuestError::Hangs { console });
        }
        Record::read(&printed).map_err(|why| {
            let lines: Vec<&str> = printed.lines().chain(said.lines()).collect();
            let tail = lines[lines.len().saturating_sub(12)..].join("\n");
            GuestError::Record { why, console, tail }
        })
    }

    fn initial_files(&self, machine: &Machine) -> io::Result<Vec<u8>> {
        let mut archive = Archive::default();
        // The kernel looks for replaced tables before anything is unpacked.
        if let Some(table) = &machine.table {
            for folder in ["kernel", "kernel/firmware", "kernel/firmware/acpi"] {
                archive.folder(folder);
            }
            archive.file("kernel/firmware/acpi/dmar.aml", false, table);
        }
        for folder in ["bin", "dev", "proc", "sys"] {
            archive.folder(folder);
        }
        archive.character_device("dev/console", 5, 1);
        archive.file("bin/busybox", true, &std::fs::read(&self.busybox)?);
        for applet in APPLETS {
            archive.link(&format!("bin/{applet}"), "busybox");
        }
        archive.file("init", true, INIT.as_bytes());
        Ok(archive.finish())
    }
}

fn command_line(machine: &Machine) -> String {
    // With many functions the messages about the table are long gone from a buffer of the usual size. Link power
    // management is off since Linux trips over it where ports stand in odd places.
    let mut line =
        "console=ttyS0 quiet panic=-1 log_buf_len=4M pcie_aspm=off no_timer_check intel_iommu=on iommu=nopt".to_owned();
    // Only virtual functions need a driver, and one whose interrupts do not arrive waits for minutes.
    if !machine.has_virtual_functions {
        line.push_str(" initcall_blacklist=nvme_init");
    }
    if !machine.acs.is_empty() {
        let settings: Vec<String> = machine.acs.iter().map(ToString::to_string).collect();
        line = format!("{line} pci=config_acs={}", settings.join(";"));
    }
    line
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
