//! `iommu serve`: a remapping unit and functions behind it, for a VMM in another process.

mod boot;
mod voice;

use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use iommu_devices::virtio::{FileDisk, VirtioBlk, VirtioBlkOptions};
use iommu_devices::{Ats, DmaEngine, DmaEngineOptions, Function};
use iommu_serve::qemu::{self, BootError, Guest, Launch, USUAL_BASE};
use iommu_serve::trace::TraceFile;
use iommu_serve::{Machine, Server};
use iommu_types::{DevFn, SourceId};
use vtd_model::UnitConfig;
use vtd_model::cache::CacheSizes;

use crate::exit::{self, Failure, Verdict};
use crate::help;

use voice::Voice;

/// Device number of the unit on the client's root bus; the functions follow.
const UNIT_DEVICE: u8 = 6;
/// The last device number that is used; QEMU has devices of its own at the end of the bus.
const LAST_DEVICE: u8 = 0x1d;
/// The ATS capability of functions. Software enables it where the unit can serve it.
const DEVICE_TLB: Ats = Ats {
    queue_depth: 32,
    page_aligned: true,
};

/// Caches of a unit that is watched.
const WATCHED_CACHES: CacheSizes = CacheSizes {
    contexts: 256,
    pasids: 256,
    pages: 4096,
    tables: 1024,
    interrupts: 256,
};

/// How the unit translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Legacy mode: root and context tables, second-stage
    Legacy,
    /// Scalable mode: PASID tables, first-stage
    Scalable,
}

/// What `iommu serve` is told.
#[derive(Debug, Args)]
#[command(after_help = help::SERVE)]
pub(crate) struct Options {
    /// Directory for the sockets, one for each function
    #[arg(long, value_name = "DIR", default_value = "iommu-serve")]
    sockets: PathBuf,
    /// A disk behind the unit, in a file; with ":ro" after the name it is read-only
    #[arg(long = "disk", value_name = "FILE[:ro]")]
    disks: Vec<String>,
    /// A DMA engine with the registers of QEMU's edu behind the unit
    #[arg(long)]
    engine: bool,
    /// How the unit translates
    #[arg(long, value_enum, default_value = "legacy")]
    mode: Mode,
    /// Levels of page tables
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(3..=5))]
    levels: u8,
    /// Caching mode: the unit may cache entries that are not present
    #[arg(long)]
    caching_mode: bool,
    /// Device-TLBs: the unit serves translation requests, and functions keep what they are told
    #[arg(long)]
    ats: bool,
    /// Report each rule of the programming protocol that the guest's driver breaks
    #[arg(long)]
    sanitize: bool,
    /// Record everything that goes into the unit and comes out of it, for `iommu trace`
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Leave the unit out: functions use the guest's addresses as they are, for comparison
    #[arg(long)]
    bypass: bool,
    /// Write the DMAR table that goes with the unit
    #[arg(long, value_name = "FILE")]
    write_dmar: Option<PathBuf>,
    /// Where the guest's firmware will place the unit's registers [default: what a short start of --qemu shows, or
    /// 0xfeb10000 where that cannot be started]
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    unit_base: Option<u64>,
    /// Print the QEMU command line that goes with the sockets, and serve
    #[arg(long)]
    print_qemu: bool,
    /// Start QEMU with this kernel; the unit's address is learned in a short start before
    #[arg(long, value_name = "KERNEL", conflicts_with = "print_qemu")]
    boot: Option<PathBuf>,
    /// Initial file system for --boot
    #[arg(long, value_name = "FILE", requires = "boot")]
    initrd: Option<PathBuf>,
    /// More words for the kernel's command line
    #[arg(long, value_name = "WORDS", default_value = "")]
    append: String,
    /// Memory of the guest in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    memory: u32,
    /// Processors of the guest
    #[arg(long, value_name = "N", default_value_t = 1)]
    processors: u32,
    /// The QEMU to start
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
}

/// An address as `0x…` or in decimal.
fn address(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|why| format!("{why}: expected an address such as 0xfebd5000"))
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<Verdict, Failure> {
    let config = config(options)?;
    for (option, file) in [("--boot", &options.boot), ("--initrd", &options.initrd)] {
        if let Some(file) = file {
            readable(option, file)?;
        }
    }
    let voice = Voice::default();
    let machine = machine(options, config, &voice)?;
    if let Some(file) = &options.trace {
        let trace = TraceFile::create(file, &config).map_err(|why| unwritten(file, &why))?;
        machine.remapper().set_trace(Some(trace));
    }
    fs::create_dir_all(&options.sockets)
        .map_err(|why| Failure::Measure(format!("{}: {why}", options.sockets.display())))?;
    let table = options
        .write_dmar
        .clone()
        .unwrap_or_else(|| options.sockets.join("dmar.bin"));
    let server = machine
        .serve(&options.sockets, Arc::new(voice.clone()))
        .map_err(|why| Failure::Measure(why.to_string()))?;
    let launch = Launch {
        program: options.qemu.clone(),
        guest: guest(options),
        table,
    };
    if options.boot.is_some() {
        let verdict = boot::run(&server, &launch, &voice);
        if let (Some(trace), Some(file)) = (server.machine().remapper().set_trace(None), &options.trace) {
            trace.finish().map_err(|why| unwritten(file, &why))?;
        }
        return verdict;
    }
    let (base, learned) = place_unit(options, &server, &launch)?;
    voice.expect(base);
    let mut text = String::new();
    for (slot, socket) in server.machine().slots().iter().zip(server.sockets()) {
        text.push_str(&format!("{} at {}: {}\n", slot.name(), slot.source(), socket.display()));
    }
    if options.print_qemu {
        let arguments = qemu::arguments(&server, &launch.guest, &launch.table);
        text.push_str(&qemu::shell_line(&options.qemu.display().to_string(), &arguments));
        text.push('\n');
    }
    exit::print(&text)?;
    if options.print_qemu {
        Voice::say(&by_hand(options, base, learned));
    }
    let sockets: Vec<String> = server.sockets().map(|socket| socket.display().to_string()).collect();
    Voice::say(&format!("waiting for a VMM on {}; Ctrl-C ends it", sockets.join(", ")));
    server.wait();
    Ok(Verdict::Yes)
}

/// What somebody who starts QEMU by hand has to know.
fn by_hand(options: &Options, base: u64, learned: bool) -> String {
    let source = match (learned, options.unit_base) {
        (true, _) => "as a short start of this command line showed",
        (false, Some(_)) => "as --unit-base says",
        (false, None) => "which is a GUESS: no QEMU was started to see",
    };
    format!(
        "the DMAR table says that the unit is at {base:#x}, {source}\n    \
         Firmware places it, and more devices, more memory or another QEMU move it: Linux then runs without the unit.\n    \
         To find the address, start QEMU with -monitor stdio instead of -serial stdio, type `info pci`, and look for\n    \
         device {UNIT_DEVICE}, BAR0; then give it with --unit-base. A warning comes here when it is elsewhere.\n    \
         A Linux guest needs these words on its kernel's command line: {}\n    \
         Without intremap=off it moves the unit's registers while it boots, and panics.",
        qemu::LINUX_WORDS
    )
}

/// A file that QEMU will read is there: that is said before anything is started.
fn readable(option: &str, file: &Path) -> Result<(), Failure> {
    let name = format!("{option} {}", file.display());
    let unread = |why: std::io::Error| exit::unread(&name, &why);
    if fs::metadata(file).map_err(unread)?.is_dir() {
        return Err(exit::unread(&name, &ErrorKind::IsADirectory.into()));
    }
    fs::File::open(file).map(|_| ()).map_err(unread)
}

/// Writes the table, with the unit where it will be: as told, or as a short start of QEMU shows. Returns the address, and
/// whether it was shown.
fn place_unit(options: &Options, server: &Server, launch: &Launch) -> Result<(u64, bool), Failure> {
    let failed = |why: BootError| Failure::Measure(why.to_string());
    if options.unit_base.is_none() {
        match launch.learn(server) {
            Ok(base) => return Ok((base, true)),
            Err(why @ (BootError::Table(_) | BootError::Write { .. })) => return Err(failed(why)),
            Err(why) => Voice::say(&format!(
                "where firmware places the unit is not known ({why}); the table says {USUAL_BASE:#x}: see --unit-base"
            )),
        }
    }
    let base = options.unit_base.unwrap_or(USUAL_BASE);
    launch.write_table(server, base).map_err(failed)?;
    Ok((base, false))
}

fn unwritten(file: &Path, why: &std::io::Error) -> Failure {
    Failure::Measure(format!("{}: {why}", file.display()))
}

/// The unit, as the options have it.
fn config(options: &Options) -> Result<UnitConfig, Failure> {
    // The client delivers interrupts itself, so the unit has none to remap.
    let mut builder = UnitConfig::builder()
        .interrupt_remapping(false)
        .extended_interrupts(false)
        .caching_mode(options.caching_mode)
        .device_tlb(options.ats)
        .sanitizer(options.sanitize);
    if options.sanitize {
        // A driver is watched on a unit that keeps what hardware keeps, pointers to tables included.
        builder = builder.cache_sizes(Some(WATCHED_CACHES));
    }
    builder = match options.levels {
        3 => builder.four_levels(false),
        5 => builder.five_levels(true),
        _ => builder,
    };
    if options.mode == Mode::Scalable {
        builder = builder
            .full_scalable_mode()
            .first_stage_five_levels(options.levels == 5);
    }
    builder.build().map_err(|why| Failure::Input(why.to_string()))
}

/// The unit and what is behind it, one device number after the other.
fn machine(options: &Options, config: UnitConfig, voice: &Voice) -> Result<Machine, Failure> {
    let mut machine = Machine::new(config, place(UNIT_DEVICE)?, Box::new(voice.clone()))
        .map_err(|why| Failure::Measure(why.to_string()))?;
    let mut functions: Vec<(String, Box<dyn Function>)> = Vec::new();
    for (index, disk) in options.disks.iter().enumerate() {
        functions.push((format!("disk{index}"), self::disk(disk)?));
    }
    if options.engine {
        functions.push(("engine".to_owned(), engine()?));
    }
    for (device, (name, function)) in (UNIT_DEVICE + 1..).zip(functions) {
        let added = if options.bypass {
            machine.with_bypass(&name, place(device)?, function)
        } else {
            machine.with(&name, place(device)?, function)
        };
        machine = added.map_err(|why| Failure::Input(why.to_string()))?;
    }
    Ok(machine)
}

fn place(device: u8) -> Result<SourceId, Failure> {
    DevFn::new(device, 0)
        .filter(|_| device <= LAST_DEVICE)
        .map(|devfn| SourceId::new(0, devfn))
        .ok_or_else(|| Failure::Input("more functions than a bus has places for: leave some out".to_owned()))
}

fn disk(word: &str) -> Result<Box<dyn Function>, Failure> {
    let (name, read_only) = match word.strip_suffix(":ro") {
        Some(name) => (name, true),
        None => (word, false),
    };
    let failed = |why: &dyn std::fmt::Display| Failure::Measure(format!("{name}: {why}"));
    let file = OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(name)
        .map_err(|why| exit::unread(&format!("--disk {name}"), &why))?;
    let disk = FileDisk::new(file, read_only).map_err(|why| failed(&why))?;
    // A guest that does not know the unit, or leaves it off, may drive the disk too: addresses pass then.
    let options = VirtioBlkOptions {
        require_access_platform: false,
        // A guest's driver would map the table of each request, and in strict mode wait for one invalidation more.
        indirect: false,
        ..VirtioBlkOptions::default()
    };
    let config = VirtioBlk::describe(options)
        .ats(DEVICE_TLB)
        .build()
        .map_err(|why| failed(&why))?;
    let function = VirtioBlk::new(config, Box::new(disk), options).map_err(|why| failed(&why))?;
    Ok(Box::new(function))
}

fn engine() -> Result<Box<dyn Function>, Failure> {
    let options = DmaEngineOptions::default();
    let built = DmaEngine::describe(options)
        .ats(DEVICE_TLB)
        .build()
        .map_err(|why| why.to_string())
        .and_then(|config| DmaEngine::new(config, options).map_err(|why| why.to_string()));
    Ok(Box::new(built.map_err(Failure::Measure)?))
}

fn guest(options: &Options) -> Guest {
    Guest {
        memory_mib: options.memory,
        processors: options.processors,
        kernel: options.boot.as_ref().map(|file| file.display().to_string()),
        initrd: options.initrd.as_ref().map(|file| file.display().to_string()),
        append: options.append.clone(),
    }
}
