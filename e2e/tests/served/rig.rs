//! A served machine, a guest on it, and what both say.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use e2e::guest::Tools;
use e2e::guest::archive::Archive;
use iommu_devices::virtio::{FileDisk, VirtioBlk, VirtioBlkOptions};
use iommu_devices::{Ats, DmaEngine, DmaEngineOptions};
use iommu_serve::protocol::Refusal;
use iommu_serve::qemu::{Guest, Launch, Running};
use iommu_serve::trace::TraceFile;
use iommu_serve::{BrokenRule, Machine, Notices, Remapper, Report, Server};
use vtd_model::cache::CacheSizes;
use vtd_model::{Fault, UnitConfig, UnitConfigBuilder};

/// Bytes of the disk.
pub(crate) const DISK: u64 = 32 << 20;
/// Bytes of the file whose contents are known on both sides.
const CONTENTS: usize = 3 << 20;
/// How long a guest may take; against hanging only.
const PATIENCE: Duration = Duration::from_secs(300);
/// Faults, broken rules and notices that are kept of each: a hostile guest makes millions.
const SAID_MAX: usize = 1 << 10;
/// The largest library that a guest's program gets.
const LIBRARY_MAX: u64 = 8 << 20;

/// One guest at a time: the machine has other things to do.
static RUNNING: Mutex<()> = Mutex::new(());

/// The programs, and those of the file system.
pub(crate) struct Programs {
    pub(crate) tools: Tools,
    e2fs: PathBuf,
    /// The user-space driver that runs on `/dev/vfio`.
    driver: PathBuf,
}

impl Programs {
    /// What the environment names; `None` unless all are there.
    pub(crate) fn find() -> Option<Self> {
        Some(Self {
            tools: Tools::from_environment()?,
            e2fs: std::env::var_os("PORTCULLIS_E2FS").map(PathBuf::from)?,
            driver: std::env::var_os("PORTCULLIS_VFIO_GUEST").map(PathBuf::from)?,
        })
    }

    fn libraries(&self) -> PathBuf {
        self.e2fs.join("usr/lib/x86_64-linux-gnu")
    }

    /// A program of the file system's tools, with their own C library.
    pub(crate) fn e2fs(&self, program: &str) -> Command {
        let mut command = Command::new(self.libraries().join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(self.libraries());
        let place = ["usr/sbin", "sbin"]
            .into_iter()
            .map(|folder| self.e2fs.join(folder).join(program))
            .find(|path| path.exists())
            .expect("the package has the program");
        command.arg(place);
        command
    }

    fn initial_files(&self) -> Vec<u8> {
        let mut archive = Archive::default();
        for folder in ["bin", "dev", "e2fs", "modules"] {
            archive.folder(folder);
        }
        archive.character_device("dev/console", 5, 1);
        archive.file("bin/busybox", true, &fs::read(&self.tools.busybox).unwrap());
        archive.file("init", true, include_bytes!("../../guest/served.sh"));
        archive.file("contents", false, &contents());
        archive.file("bin/vfio-guest", true, &fs::read(&self.driver).unwrap());
        for module in fs::read_dir(&self.tools.modules).unwrap().flatten() {
            let name = module.file_name().to_string_lossy().into_owned();
            archive.file(&format!("modules/{name}"), false, &fs::read(module.path()).unwrap());
        }
        for library in fs::read_dir(self.libraries()).unwrap().flatten() {
            let name = library.file_name().to_string_lossy().into_owned();
            let small = fs::metadata(library.path()).is_ok_and(|file| file.is_file() && file.len() < LIBRARY_MAX);
            if name.contains(".so") && small {
                archive.file(&format!("e2fs/{name}"), true, &fs::read(library.path()).unwrap());
            }
        }
        let program = self.e2fs("mke2fs").get_args().last().map(PathBuf::from).unwrap();
        archive.file("e2fs/mke2fs", true, &fs::read(program).unwrap());
        archive.finish()
    }
}

/// The bytes of the known file.
pub(crate) fn contents() -> Vec<u8> {
    (0..CONTENTS)
        .map(|at| u8::try_from((at * 31 + at / 4096) % 251).unwrap())
        .collect()
}

/// What a server said.
#[derive(Debug, Default)]
pub(crate) struct Said {
    pub(crate) faults: Mutex<Vec<String>>,
    pub(crate) broken: Mutex<Vec<BrokenRule>>,
    pub(crate) notices: Mutex<Vec<String>>,
}

impl Said {
    /// The names of the broken rules.
    pub(crate) fn rules(&self) -> Vec<&'static str> {
        self.broken
            .lock()
            .unwrap()
            .iter()
            .map(|rule| rule.finding.rule.name())
            .collect()
    }
}

/// Keeps `said`, unless there is enough already.
fn keep<T>(list: &Mutex<Vec<T>>, said: impl FnOnce() -> T) {
    let mut list = list.lock().unwrap();
    if list.len() < SAID_MAX {
        list.push(said());
    }
}

struct Ear(Arc<Said>);

impl Report for Ear {
    fn broken(&mut self, rule: &BrokenRule) {
        keep(&self.0.broken, || rule.clone());
    }
    fn fault(&mut self, fault: &Fault) {
        keep(&self.0.faults, || fault.to_string());
    }
}

impl Notices for Said {
    fn connected(&self, _: &str) {}
    fn ended(&self, slot: &str, why: Option<&str>) {
        keep(&self.notices, || {
            format!("{slot}: {}", why.unwrap_or("closed by the client"))
        });
    }
    fn refused(&self, slot: &str, refusal: &Refusal) {
        keep(&self.notices, || format!("{slot}: {refusal}"));
    }
}

/// A machine with a disk and an engine behind a unit, and a guest that is not started yet.
pub(crate) struct Rig {
    server: Option<Server>,
    pub(crate) said: Arc<Said>,
    folder: PathBuf,
    launch: Launch,
    /// The process that runs, or ran last.
    qemu: u32,
    _alone: MutexGuard<'static, ()>,
}

/// Which way disks have to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Through,
    /// The disk has a twin beside the unit, `/dev/vdb` to the guest: for comparison.
    Both,
}

impl Rig {
    pub(crate) fn new(programs: &Programs, unit: UnitConfigBuilder) -> Self {
        Self::with(programs, unit, Way::Through, None)
    }

    /// The disk holds `image`, or zeros.
    pub(crate) fn with(programs: &Programs, unit: UnitConfigBuilder, way: Way, image: Option<Vec<u8>>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let alone = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("served-{}-{number}", std::process::id()));
        // Socket names have to be short: the folder of the build may be deep.
        let sockets = std::env::temp_dir().join(format!("served-{}-{number}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::create_dir_all(&sockets).unwrap();
        let disk = folder.join("disk.img");
        match image {
            Some(image) => fs::write(&disk, image).unwrap(),
            None => File::create(&disk).unwrap().set_len(DISK).unwrap(),
        }
        let initrd = folder.join("initramfs");
        fs::write(&initrd, programs.initial_files()).unwrap();

        let config = unit
            .interrupt_remapping(false)
            .extended_interrupts(false)
            .build()
            .unwrap();
        let said = Arc::new(Said::default());
        let options = VirtioBlkOptions {
            require_access_platform: false,
            indirect: false,
            ..VirtioBlkOptions::default()
        };
        let back = |disk: &Path| {
            let file = OpenOptions::new().read(true).write(true).open(disk).unwrap();
            Box::new(FileDisk::new(file, false).unwrap())
        };
        // Both have a device-TLB; Linux enables it where the unit can serve one.
        let ats = Ats {
            queue_depth: 32,
            page_aligned: true,
        };
        let block = |disk: &Path| {
            let config = VirtioBlk::describe(options).ats(ats).build().unwrap();
            Box::new(VirtioBlk::new(config, back(disk), options).unwrap())
        };
        let (first, twin) = (block(&disk), folder.join("twin.img"));
        let options = DmaEngineOptions::default();
        let engine = DmaEngine::new(DmaEngine::describe(options).ats(ats).build().unwrap(), options).unwrap();
        let mut machine = Machine::new(config, "00:06.0".parse().unwrap(), Box::new(Ear(Arc::clone(&said))))
            .and_then(|machine| machine.with("disk0", "00:07.0".parse().unwrap(), first))
            .and_then(|machine| machine.with("engine", "00:08.0".parse().unwrap(), Box::new(engine)))
            .unwrap();
        if way == Way::Both {
            fs::copy(&disk, &twin).unwrap();
            machine = machine
                .with_bypass("disk1", "00:09.0".parse().unwrap(), block(&twin))
                .unwrap();
        }
        let server = machine.serve(&sockets, Arc::clone(&said) as Arc<_>).unwrap();
        let launch = Launch {
            program: listening(&programs.tools.qemu, &folder),
            guest: Guest {
                kernel: Some(programs.tools.kernel.display().to_string()),
                initrd: Some(initrd.display().to_string()),
                ..Guest::default()
            },
            table: folder.join("dmar.bin"),
        };
        Self {
            server: Some(server),
            said,
            folder,
            launch,
            qemu: 0,
            _alone: alone,
        }
    }

    /// Boots `kernel` next time, without an initial file system; what would have been booted comes back.
    pub(crate) fn boot_instead(&mut self, kernel: &Path) -> Guest {
        let guest = Guest {
            kernel: Some(kernel.display().to_string()),
            ..Guest::default()
        };
        self.boot(guest)
    }

    /// Boots `guest` next time.
    pub(crate) fn boot(&mut self, guest: Guest) -> Guest {
        std::mem::replace(&mut self.launch.guest, guest)
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub(crate) fn remapper(&self) -> &Arc<Remapper> {
        self.server().machine().remapper()
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.folder.join("disk.img")
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Begins a trace of the unit; where it is written.
    pub(crate) fn trace(&self) -> PathBuf {
        let file = self.folder.join("unit.trace");
        let trace = TraceFile::create(&file, self.remapper().config()).unwrap();
        self.remapper().set_trace(Some(trace));
        file
    }

    /// Ends it.
    pub(crate) fn end_trace(&self) {
        self.remapper().set_trace(None).unwrap().finish().unwrap();
    }

    /// Starts the guest until its firmware has placed the unit's registers, and writes the table with their address.
    pub(crate) fn dry_start(&self) {
        self.launch.learn(self.server()).unwrap();
    }

    /// Runs the guest's `task`; `look` sees each line that it says as it comes, and may stop listening by returning false.
    pub(crate) fn run(&mut self, task: &str, words: &str, mut look: impl FnMut(&Self, &str) -> bool) -> Talk {
        self.launch.guest.append = format!("quiet served={task} {words}");
        self.dry_start();
        self.said.notices.lock().unwrap().clear();
        let mut running = self.launch.start(self.server(), Stdio::piped()).unwrap();
        self.qemu = running.child().id();
        let lines = listen(&mut running);
        let begun = Instant::now();
        let mut talk = Talk::default();
        loop {
            let left = PATIENCE.saturating_sub(begun.elapsed());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    let _ = writeln!(talk.console, "{line}");
                    if let Some(said) = line.trim_end().strip_prefix("@ ") {
                        talk.lines.push(said.to_owned());
                        if !look(self, said) {
                            break;
                        }
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    panic!("the guest did not end within {PATIENCE:?}:\n{}", talk.console)
                }
            }
        }
        drop(running);
        // For whoever reads why a test failed.
        talk.console.push_str(&self.complaints());
        talk
    }

    /// The process of the QEMU that runs.
    pub(crate) const fn qemu(&self) -> u32 {
        self.qemu
    }

    /// What QEMU said on standard error, all runs of this machine together.
    pub(crate) fn complaints(&self) -> String {
        fs::read(self.folder.join(COMPLAINTS))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The socket of a function.
    pub(crate) fn socket(&self, name: &str) -> PathBuf {
        let mut sockets = self.server().sockets();
        let file = format!("{name}.sock");
        sockets.find(|path| path.ends_with(&file)).unwrap().to_path_buf()
    }

    /// Ends the server; what was served is on the disk.
    pub(crate) fn finish(&mut self) {
        let Some(server) = self.server.take() else { return };
        let socket = server.sockets().next().map(Path::to_path_buf);
        drop(server);
        if let Some(folder) = socket.as_deref().and_then(Path::parent) {
            let _ = fs::remove_dir(folder);
        }
    }

    /// The block of 4 KiB number `index` of the disk.
    pub(crate) fn block(&self, index: u64) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        File::open(self.disk())
            .unwrap()
            .read_exact_at(&mut bytes, index * 4096)
            .unwrap();
        bytes
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The file that QEMU's standard error goes to.
const COMPLAINTS: &str = "qemu.err";

/// A script that runs `qemu` and keeps what it says on standard error.
fn listening(qemu: &Path, folder: &Path) -> PathBuf {
    let script = folder.join("qemu");
    let (qemu, complaints) = (qemu.display(), folder.join(COMPLAINTS));
    let text = format!("#!/bin/sh\nexec '{qemu}' \"$@\" 2>> '{}'\n", complaints.display());
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

/// Lines of the console, as they come.
fn listen(running: &mut Running) -> mpsc::Receiver<String> {
    let pipe = running.child().stdout.take().unwrap();
    let (give, take) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            if give.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                break;
            }
        }
    });
    take
}

/// What a guest said.
#[derive(Debug, Default)]
pub(crate) struct Talk {
    pub(crate) console: String,
    pub(crate) lines: Vec<String>,
}

impl Talk {
    pub(crate) fn says(&self, line: &str) -> bool {
        self.lines.iter().any(|said| said == line)
    }

    /// What follows `start` in each line that begins with it.
    pub(crate) fn all(&self, start: &str) -> Vec<&str> {
        self.lines.iter().filter_map(|line| line.strip_prefix(start)).collect()
    }

    /// Messages of the kernel's driver that tell of trouble.
    pub(crate) fn trouble(&self) -> Vec<&str> {
        let bad = ["fault", "Fault", "error", "Invalid", "timeout", "failed"];
        self.all("log ")
            .into_iter()
            .filter(|line| line.contains("DMAR") && bad.iter().any(|word| line.contains(word)))
            .collect()
    }
}

/// A unit as a guest's driver expects it, watched by the sanitizer.
pub(crate) fn unit() -> UnitConfigBuilder {
    watched(UnitConfig::builder())
}

/// The same unit under the sanitizer, with caches that keep what hardware keeps, pointers to tables included.
pub(crate) fn watched(unit: UnitConfigBuilder) -> UnitConfigBuilder {
    unit.sanitizer(true).cache_sizes(Some(CacheSizes {
        contexts: 256,
        pasids: 256,
        pages: 4096,
        tables: 1024,
        interrupts: 256,
    }))
}
