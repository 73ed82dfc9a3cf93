//! Help texts, completion scripts and manual pages.

use std::path::PathBuf;

use clap::{Args, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

use crate::exit::{self, Failure, Verdict};

/// What the tool is, above the list of its commands.
pub(crate) const ABOUT: &str = "\
Shows which device can reach which memory, and why.

An IOMMU stands between devices and memory. Devices that it cannot tell apart, or that can reach
each other before it, form a group, and only whole groups can be given to a guest. This tool says
what is grouped with what and why, whether a device can be assigned and what stands in the way,
what a DMA fault means, and rehearses an assignment in software. No command changes the machine,
except `iommu run --backend linux`, which has to be asked for.";

/// The next steps, below it.
pub(crate) const START: &str = "\
Where to start:
  iommu                       what this machine has, and what to try next
  iommu doctor                whether the IOMMU works; if not, whether firmware or kernel is the cause
  iommu groups                what has to be assigned together, and why
  iommu explain 3b:00.0       why a device is grouped as it is
  iommu check 3b:00.0         whether a device can be given to a guest, and what stands in the way
  iommu plan 3b:00.0          the commands that give it to a guest
  iommu faults dmesg.txt      which device is behind the faults of a log, and what to do
  iommu run                   rehearse an assignment in software: no hardware, root or network needed

Devices are named as in lspci: 3b:00.0, 0000:3b:00.0, 3b: (a bus), 8086:1533 (a model); also
pci_0000_3b_00_0, a path in sysfs, or an interface or disk such as eth0 or nvme0n1.

Another machine: --root takes a copy of its root folder, a snapshot (`iommu snapshot` writes one),
or the text of `lspci -nnvvv` or `lspci -nnxxxx` with dmesg and acpidump in the same file.

Exit codes, the same for all commands:
  0  yes: as it should be, or as predicted
  1  findings: the answer is no, or something differs from what was predicted or expected
  2  a mistake on the command line or in a file that was given, or no such file
  3  something could not be read, written or measured, mostly for lack of rights
  4  not supported: there is nothing here that this version can work with";

/// Examples and exit codes of one command.
macro_rules! after {
    ($name:ident, $examples:literal, $yes:literal, $no:literal, $unsupported:literal) => {
        pub(crate) const $name: &str = concat!(
            "Examples:\n",
            $examples,
            "\nExit codes:\n  0  ",
            $yes,
            "\n  1  ",
            $no,
            "\n  2  a mistake on the command line or in a file that was given\n",
            "  3  something could not be read or measured\n  4  ",
            $unsupported
        );
    };
}

after!(
    GROUPS,
    "  iommu groups                        every group, with the reasons
  iommu groups -s 3b:00.0             the group of one device
  iommu groups -d 10de:               the groups of one vendor's devices
  iommu groups --tree                 functions below their bridges
  iommu groups --format shell         one line a function, as the well-known shell loop prints it
  iommu groups --model strict         as PCI Express defines access control, not as Linux takes it
  iommu groups --root snapshot.tar    those of another machine
",
    "the groups are known, and the kernel has those that its own rules give",
    "the running kernel has other groups than its rules give for this topology",
    "not used: groups are told on every platform"
);
after!(
    EXPLAIN,
    "  iommu explain 3b:00.0               the way up to the IOMMU, and why it shares its group
  iommu explain eth0 nvme0n1          why two devices are together or apart
",
    "explained, and the kernel agrees",
    "the running kernel has the two together or apart against its own rules",
    "not used: groups are explained on every platform"
);
after!(
    FAULTS,
    "  iommu faults                        of this machine's log
  dmesg | iommu faults -              of standard input
  iommu faults --root snapshot.tar    of another machine
  iommu faults -s 3b:00.0 log.txt     only those of one device
",
    "no fault in the log",
    "there are faults, or lines that look like some and could not be decoded",
    "not used"
);
after!(
    CAPS,
    "  iommu caps                          every unit: widths, features, what is missing for what
  iommu caps --root snapshot.tar      those of another machine
",
    "the registers of all units are known",
    "not used: what a unit lacks is no mistake",
    "the kernel uses no unit, or only units of another maker"
);
after!(
    DOCTOR,
    "  iommu doctor                        firmware off, kernel off, start failed, or working
  iommu doctor --json                 for a compliance check: `overall` is yes, no or unknown
",
    "it works, and nothing weakens it",
    "it does not work, or something weakens it",
    "not used"
);
after!(
    CHECK,
    "  iommu check 3b:00.0                 one device
  iommu check -d 8086:1533            all of one model, for one guest
  iommu check eth0 --mem 16G          with the memory limit that the guest needs
",
    "they can be given to a guest",
    "they cannot, and it is said what stands in the way",
    "not used"
);
after!(
    RUN,
    "  iommu run                                         the embedded two-socket server, all in software
  iommu run --dmar DMAR.bin --keep matrix           a machine from its table; keep what came out
  iommu run --disk disk.img                         with a user-space driver's disk behind the unit
  iommu run --backend linux --device 3b:00.0        the same driver on a virtio disk of this machine

--backend linux uses a real device, which has to be on vfio-pci already (`iommu plan` prints how). \
Its first 4 MiB are overwritten, compared and put back, 64 KiB at a time; what is being overwritten is \
lost if the machine stops or the command is killed at that moment, so use a disk whose content you can \
do without.
",
    "everything came out as predicted; the disk was left as it was",
    "something came out otherwise, or differs from a kept matrix",
    "nothing to rehearse: no table, no unit, no /dev/vfio, no virtio disk on vfio-pci"
);
after!(
    SERVE,
    "  iommu serve --disk disk.img --print-qemu          wait for a QEMU that is started by hand
  iommu serve --disk disk.img --sanitize \\
      --boot vmlinuz --initrd initrd.gz             start it, with Linux's own driver under the sanitizer
  iommu serve --disk disk.img --mode scalable       scalable mode with first-stage translation
",
    "the guest ended, or the server was told to",
    "the guest's driver broke rules of the programming protocol",
    "not used"
);
after!(
    TRACE,
    "  iommu trace run.trace                             registers by name, descriptors decoded
  iommu trace run.trace --replay                    do it again with no VM, and compare
  iommu trace run.trace --replay --sanitize         and name the rules that the driver broke
",
    "shown, or replayed as it was recorded",
    "the replay differs, or rules of the programming protocol were broken",
    "not used"
);
after!(
    PLAN,
    "  iommu plan 3b:00.0                  the commands, in each of the usual ways
  iommu plan 3b:00.0 --format sysfs   a script for sh
  iommu plan eth0 --format xml        the devices for a libvirt domain
  iommu plan 3b:00.0 --undo           the way back; best kept before the plan is carried out
",
    "this is how it is done",
    "it must not be done: it is said why, and no command is printed (--anyway prints them)",
    "not used"
);
after!(
    SNAPSHOT,
    "  sudo iommu snapshot machine.tar     everything that the other commands read
  iommu snapshot --scrub machine.tar  without serial numbers, addresses and names
  iommu groups --root machine.tar     on any other machine
",
    "it is written",
    "not used",
    "not used"
);
after!(
    DMAR,
    "  iommu dmar show                     this machine's table (root only: it may not be read by others)
  iommu dmar lint DMAR.bin            what is wrong with a table
  iommu dmar build --output DMAR.bin  the table of the embedded sample machine
",
    "the table is sound",
    "at least one rule found an error or a warning",
    "the machine has no such table"
);
after!(
    DMAR_SHOW,
    "  iommu dmar show                     this machine's table (root only: it may not be read by others)
  iommu dmar show DMAR.bin            a file: the table, or the text of acpidump
  iommu dmar show --root machine.tar  that of another machine
",
    "the table is sound",
    "a rule found an error or a warning (`iommu dmar lint` says which findings count)",
    "the machine has no such table"
);
after!(
    DMAR_LINT,
    "  iommu dmar lint                     this machine's table, with all that is known of the machine
  iommu dmar lint DMAR.bin            a file alone: rules that need the machine are not judged
  iommu dmar lint --fail-on error     warnings are shown and do not count
  iommu dmar lint --explain L21       what a rule is about
",
    "no finding that counts",
    "findings of at least the severity of --fail-on",
    "the machine has no such table"
);
after!(
    DMAR_BUILD,
    "  iommu dmar build --output t.bin                       of the embedded two-socket server
  iommu dmar build machine.toml --output t.bin          of a machine file
  iommu dmar build --root machine.tar --output t.bin    that of a real machine, decoded and built again
",
    "it is written",
    "not used",
    "the machine has no such table"
);

/// What `iommu completions` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iommu completions bash > ~/.local/share/bash-completion/completions/iommu
  iommu completions zsh > ~/.zfunc/_iommu
  iommu completions fish > ~/.config/fish/completions/iommu.fish

Exit codes: 0 printed, 2 a shell that is not known, 3 it could not be written")]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints a completion script.
pub(crate) fn completions(options: &Completions) -> Result<Verdict, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(options.shell, &mut crate::Arguments::command(), "iommu", &mut script);
    exit::print(&String::from_utf8_lossy(&script))?;
    Ok(Verdict::Yes)
}

/// What `iommu man` is told.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  iommu man groups | man -l -         read one page
  iommu man --dir /usr/share/man/man1 write all of them

Exit codes: 0 printed or written, 2 a command that is not known, 3 they could not be written")]
pub(crate) struct Manual {
    /// The command, as in `iommu man dmar lint`; without it, the page of `iommu` itself
    #[arg(conflicts_with = "dir")]
    command: Vec<String>,
    /// Write the pages of all commands into this folder
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints a manual page, or writes all of them.
pub(crate) fn manual(options: &Manual) -> Result<Verdict, Failure> {
    let mut root = crate::Arguments::command();
    root.build();
    if let Some(dir) = &options.dir {
        write_pages(&root, dir)?;
        return Ok(Verdict::Yes);
    }
    let mut chosen = &root;
    for name in &options.command {
        chosen = chosen.find_subcommand(name).ok_or_else(|| {
            let names: Vec<&str> = visible(chosen).map(Command::get_name).collect();
            Failure::Input(format!("no command {name}; there are: {}", names.join(", ")))
        })?;
    }
    exit::print(&String::from_utf8_lossy(&page(chosen)?))?;
    Ok(Verdict::Yes)
}

fn visible(command: &Command) -> impl Iterator<Item = &Command> {
    command
        .get_subcommands()
        .filter(|command| !command.is_hide_set() && command.get_name() != "help")
}

fn page(command: &Command) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    Man::new(command.clone())
        .source(format!("iommu {}", env!("CARGO_PKG_VERSION")))
        .manual("User Commands")
        .render(&mut bytes)
        .map_err(|why| Failure::Measure(format!("manual page: {why}")))?;
    Ok(bytes)
}

fn write_pages(command: &Command, dir: &std::path::Path) -> Result<(), Failure> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    let file = dir.join(format!("{name}.1"));
    std::fs::write(&file, page(command)?).map_err(|why| Failure::Measure(format!("{}: {why}", file.display())))?;
    visible(command).try_for_each(|below| write_pages(below, dir))
}
