//! Outside tools, unpacked below `target/tools` without root and without changing the system.
//!
//! Packages come from the Debian mirror that this machine's own apt is configured for, through a private apt
//! state, and are unpacked with `dpkg -x`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::target;

/// The folder of the workspace.
///
/// Cargo tells where it is when it starts this program. What it told at compile time is the second choice: a tree that was
/// moved, or copied with its target folder, is not compiled anew, and would work on the tree that it came from.
pub(crate) fn workspace() -> PathBuf {
    workspace_of(std::env::var_os("CARGO_MANIFEST_DIR"))
}

/// The same, where cargo told this folder of our package.
fn workspace_of(told: Option<OsString>) -> PathBuf {
    let package = told.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&package)
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// A `cargo` command in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace()).args(arguments);
    command
}

/// Runs a command and returns its standard output, or its tail and exit status as an error.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let result = command.output().map_err(|e| format!("cannot start {command:?}: {e}"))?;
    let text = String::from_utf8_lossy(&result.stdout).into_owned();
    if result.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&result.stderr);
    let tail: Vec<&str> = text.lines().chain(errors.lines()).collect();
    let tail = tail[tail.len().saturating_sub(60)..].join("\n");
    Err(format!(
        "{:?} ended with {}\n{tail}",
        command.get_program(),
        result.status
    ))
}

/// A set of Debian packages with everything they need, unpacked into a root of their own.
#[derive(Debug)]
pub(crate) struct Unpacked {
    root: PathBuf,
}

/// Which packages to unpack, and from which suites.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Selection {
    /// The folder below `target/tools`.
    name: &'static str,
    /// Suites of the Debian archive.
    suites: &'static [&'static str],
    /// The suite to prefer, where it is not the default one.
    prefer: Option<&'static str>,
    /// The packages; what they depend on comes along, the C library included.
    packages: &'static [&'static str],
}

impl Selection {
    /// The folder below `target/tools`, which tells people what it is.
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    /// Where the packages are. It does not follow cargo's target folder: they are the same for every build, and are fetched once.
    fn folder(&self) -> PathBuf {
        workspace().join("target/tools").join(self.name)
    }
}

/// The compiler and disassembler of ACPI tables, which knows DMAR.
pub(crate) const IASL: Selection = Selection {
    name: "iasl",
    suites: &["bookworm"],
    prefer: None,
    packages: &["acpica-tools"],
};

/// QEMU 7.2, whose `intel-iommu` has legacy mode and second-stage scalable mode.
pub(crate) const QEMU_7: Selection = Selection {
    name: "qemu-7.2",
    suites: &["bookworm"],
    prefer: None,
    packages: &["qemu-system-x86"],
};

/// QEMU 11.1, whose `intel-iommu` has first-stage tables too.
pub(crate) const QEMU_11: Selection = Selection {
    name: "qemu-11.1",
    suites: &["trixie", "trixie-backports"],
    prefer: Some("trixie-backports"),
    packages: &["qemu-system-x86"],
};

/// A small Linux kernel with Intel's IOMMU driver built in, and the programs of its guest.
pub(crate) const LINUX_6_12: Selection = Selection {
    name: "linux-6.12",
    suites: &["trixie"],
    prefer: None,
    packages: &["linux-image-cloud-amd64", "busybox-static"],
};

/// The same from the release before.
pub(crate) const LINUX_6_1: Selection = Selection {
    name: "linux-6.1",
    suites: &["bookworm"],
    prefer: None,
    packages: &["linux-image-cloud-amd64", "busybox-static"],
};

/// The same as new as there is one.
pub(crate) const LINUX_BACKPORTED: Selection = Selection {
    name: "linux-backported",
    suites: &["trixie", "trixie-backports"],
    prefer: Some("trixie-backports"),
    packages: &["linux-image-cloud-amd64", "busybox-static"],
};

/// Programs of the ext4 file system: to make one in a guest, and to check one from outside.
pub(crate) const E2FS: Selection = Selection {
    name: "e2fsprogs",
    suites: &["trixie"],
    prefer: None,
    packages: &["e2fsprogs"],
};

impl Unpacked {
    /// The folder that stands for the root of the file system.
    pub(crate) fn folder(&self) -> &Path {
        &self.root
    }

    /// A command for a program of the packages, run with their own C library.
    pub(crate) fn command(&self, program: &str) -> Command {
        let libraries = LIBRARIES.map(|folder| self.root.join(folder));
        let mut command = Command::new(self.root.join(self.loader()));
        command
            .arg("--library-path")
            .arg(std::env::join_paths(libraries).unwrap_or_default())
            .arg(self.root.join(program));
        command
    }

    /// The dynamic loader of the packages, below their root.
    fn loader(&self) -> String {
        let places = LIBRARIES.map(|folder| format!("{folder}/ld-linux-x86-64.so.2"));
        let there = places.iter().find(|place| self.root.join(place).exists());
        there.cloned().unwrap_or_default()
    }

    /// A small script that starts a program of the packages like [`Self::command`], for programs that take the
    /// path of another one. It looks for the packages beside itself, so that a tree can be moved with it.
    pub(crate) fn launcher(&self, program: &str) -> Result<PathBuf, String> {
        use std::os::unix::fs::PermissionsExt;
        let script = self.root.with_file_name("launch");
        let (loader, libraries) = (
            self.loader(),
            LIBRARIES.map(|folder| format!("$root/{folder}")).join(":"),
        );
        // QEMU keeps its accelerators in modules and its firmware in `share`.
        let text = format!(
            "#!/bin/sh\nroot=$(dirname \"$(readlink -f \"$0\")\")/root\n\
             export QEMU_MODULE_DIR=\"$root/usr/lib/x86_64-linux-gnu/qemu\"\n\
             exec \"$root/{loader}\" --library-path \"{libraries}\" \"$root/{program}\" -L \"$root/usr/share/qemu\" \
             -L \"$root/usr/share/seabios\" \"$@\"\n"
        );
        // A script that somebody may be starting is left alone, or replaced as a whole.
        if fs::read_to_string(&script).is_ok_and(|there| there == text) {
            return Ok(script);
        }
        let new = script.with_extension(std::process::id().to_string());
        let failed = |e: std::io::Error| format!("{}: {e}", script.display());
        fs::write(&new, text).map_err(failed)?;
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).map_err(failed)?;
        fs::rename(&new, &script).map_err(failed)?;
        Ok(script)
    }
}

/// Where packages keep their libraries, below their root; older suites have them in the second.
const LIBRARIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];

/// Unpacks a selection, or finds it unpacked.
///
/// The error says why it cannot be had; that is a reason to skip, not a failure of the project.
pub(crate) fn unpack(selection: Selection) -> Result<Unpacked, String> {
    let folder = selection.folder();
    let root = folder.join("root");
    let complete = folder.join("complete");
    if !complete.exists() {
        let config = private_apt(&folder.join("apt"), selection.suites)?;
        let apt = |arguments: &[&str]| {
            output(
                Command::new("apt-get")
                    .env("APT_CONFIG", &config)
                    .env("LC_ALL", "C")
                    .args(["-q", "-y"])
                    .args(arguments),
            )
        };
        apt(&["update"]).map_err(|e| format!("package lists cannot be fetched: {e}"))?;
        let mut install = vec!["install", "--download-only"];
        install.extend(selection.prefer.iter().flat_map(|suite| ["-t", suite]));
        install.extend(selection.packages);
        apt(&install).map_err(|e| format!("{} cannot be fetched: {e}", selection.packages.join(", ")))?;
        let archives = fs::read_dir(folder.join("apt/cache/archives")).map_err(|e| e.to_string())?;
        for archive in archives
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|x| x == "deb"))
        {
            output(Command::new("dpkg").arg("-x").arg(&archive).arg(&root))?;
        }
        fs::write(&complete, "").map_err(|e| e.to_string())?;
    }
    Ok(Unpacked { root })
}

/// One of the tests of `e2e`, chosen so that cargo takes what the row "tests" has built: of one package alone, dependencies
/// have other features, and nearly everything would be built again.
pub(crate) fn built_test(name: &str) -> Command {
    cargo(&["test", "--workspace", "--test", name, "--", "--nocapture"])
}

/// One of the tests of `e2e`, optimised.
pub(crate) fn release_test(name: &str) -> Command {
    cargo(&[
        "test",
        "--release",
        "--package",
        "e2e",
        "--test",
        name,
        "--",
        "--nocapture",
    ])
}

/// Builds one of our programs so that it needs no library, for a guest that has none; returns where it is.
pub(crate) fn static_program(package: &str, program: &str) -> Result<PathBuf, String> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    // A folder of its own: other flags would make cargo build everything anew each time.
    let folder = target::folder()?.join("static");
    let mut command = cargo(&["build", "--quiet", "--release", "--package", package, "--bin", program]);
    command
        .args(["--target", TARGET, "--target-dir"])
        .arg(folder)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    target::build(&mut command)
}

/// A folder below `target/tools` with these modules of a kernel and those that they need, as `insmod` takes them. What the
/// kernel has built in is left out.
pub(crate) fn modules(kernel: Selection, root: &Unpacked, busybox: &Path, names: &[&str]) -> Result<PathBuf, String> {
    /// More than any module needs.
    const MOST: usize = 32;
    let folder = kernel.folder().join("modules");
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut files = Vec::new();
    for place in ["usr/lib/modules", "lib/modules"] {
        list_modules(&root.folder().join(place), &mut files);
    }
    let built_in = built_in(&files);
    let mut wanted: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut next = 0;
    while let Some(name) = wanted.get(next).cloned() {
        next += 1;
        let Some(file) = files.iter().find(|file| same_module(&module_name(file), &name)) else {
            if built_in.iter().any(|module| same_module(module, &name)) {
                continue;
            }
            return Err(format!("the kernel has no module {name}"));
        };
        let bytes = if file.extension().is_some_and(|x| x == "xz") {
            let result = Command::new(busybox).args(["xz", "-dc"]).arg(file).output();
            let result = result.map_err(|e| format!("{}: {e}", busybox.display()))?;
            if !result.status.success() {
                return Err(format!("{} cannot be unpacked", file.display()));
            }
            result.stdout
        } else {
            fs::read(file).map_err(|e| format!("{}: {e}", file.display()))?
        };
        let plain = folder.join(format!("{}.ko", module_name(file)));
        fs::write(&plain, &bytes).map_err(|e| format!("{}: {e}", plain.display()))?;
        for needed in dependencies(&bytes) {
            if !wanted.contains(&needed) && wanted.len() < MOST {
                wanted.push(needed);
            }
        }
    }
    Ok(folder)
}

/// Whether two names are those of one module: either mark may stand between words.
fn same_module(one: &str, other: &str) -> bool {
    one.replace('-', "_") == other.replace('-', "_")
}

/// The modules that are part of the kernel itself, from the list that lies beside its module files.
fn built_in(files: &[PathBuf]) -> Vec<String> {
    // Module files are in `VERSION/kernel/…`, the list is in `VERSION`.
    let folders = files.first().into_iter().flat_map(|file| file.ancestors());
    folders
        .filter_map(|folder| fs::read_to_string(folder.join("modules.builtin")).ok())
        .flat_map(|list| {
            let names = list.lines().map(|line| module_name(Path::new(line)));
            names.collect::<Vec<_>>()
        })
        .collect()
}

/// All module files below a folder.
fn list_modules(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list_modules(&path, into);
        } else if path.to_string_lossy().contains(".ko") {
            into.push(path);
        }
    }
}

/// `vfio-pci` of `…/vfio-pci.ko.xz`.
fn module_name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.split_once(".ko").map_or(name.clone(), |(name, _)| name.to_owned())
}

/// The modules that a module says it needs: the text after `depends=` in it.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let text = module.get(at + KEY.len()..).unwrap_or_default();
    let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
    String::from_utf8_lossy(text.get(..end).unwrap_or_default())
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// A private apt state below `folder`; returns its configuration file.
fn private_apt(folder: &Path, suites: &[&str]) -> Result<PathBuf, String> {
    let mirror = debian_mirror().ok_or("this system has no Debian package source configured")?;
    for sub in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(sub)).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let write = |name: &str, text: String| {
        fs::write(folder.join(name), text).map_err(|e| format!("{}: {e}", folder.join(name).display()))
    };
    let source = |suite: &&str| format!("deb [signed-by={keyring}] {mirror} {suite} main\n");
    write("sources.list", suites.iter().map(source).collect())?;
    write("state/status", String::new())?;
    let at = folder.display();
    write(
        "apt.conf",
        format!(
            "Dir::State \"{at}/state\";\nDir::State::status \"{at}/state/status\";\nDir::Cache \"{at}/cache\";\n\
             Dir::Etc::sourcelist \"{at}/sources.list\";\nDir::Etc::sourceparts \"/dev/null\";\n\
             Dir::Etc::main \"/dev/null\";\nDir::Etc::parts \"/dev/null\";\n\
             Dir::Etc::preferencesparts \"/dev/null\";\nAPT::Sandbox::User \"\";\n\
             APT::Install-Recommends \"0\";\nAcquire::Retries \"2\";\nAcquire::http::Timeout \"20\";\n"
        ),
    )?;
    Ok(folder.join("apt.conf"))
}

/// The address of the first Debian archive in the system's apt configuration (security archives aside).
fn debian_mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|e| e.path()));
    }
    files.sort();
    for file in files {
        let known = file.extension().is_some_and(|x| x == "list" || x == "sources");
        let text = if known {
            fs::read_to_string(&file).unwrap_or_default()
        } else {
            String::new()
        };
        let found = text
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .flat_map(str::split_whitespace)
            .find(|word| word.contains("://") && word.trim_end_matches('/').ends_with("/debian"));
        if let Some(address) = found {
            return Some(address.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{Unpacked, dependencies, module_name, output, workspace_of};
    use crate::target;
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    #[test]
    fn a_launcher_starts_what_lies_beside_it_after_a_move() {
        let folder = target::folder()
            .unwrap()
            .join("tmp")
            .join(format!("launcher-{}", std::process::id()));
        let (old, new) = (folder.join("an old place"), folder.join("new"));
        let libraries = old.join("root/lib/x86_64-linux-gnu");
        fs::create_dir_all(&libraries).unwrap();
        // For a loader, a program that prints what it was given.
        std::os::unix::fs::symlink("/bin/echo", libraries.join("ld-linux-x86-64.so.2")).unwrap();
        let unpacked = Unpacked { root: old.join("root") };
        let script = unpacked.launcher("usr/bin/program").unwrap();
        let said = |script: &Path| output(Command::new("sh").arg(script).arg("a b")).unwrap();
        let before = said(&script);
        fs::rename(&old, &new).unwrap();
        let after = said(&new.join("launch"));
        fs::remove_dir_all(&folder).unwrap();
        let (old, new) = (old.to_string_lossy(), new.to_string_lossy());
        assert!(before.contains(&format!(" {old}/root/usr/bin/program ")), "{before}");
        assert_eq!(after, before.replace(&*old, &new));
        assert!(after.ends_with(" a b\n"), "{after}");
    }

    #[test]
    fn a_moved_tree_works_on_itself_not_on_where_it_was_compiled() {
        assert_eq!(workspace_of(Some("/moved/xtask".into())), Path::new("/moved"));
        assert!(workspace_of(None).join("xtask/Cargo.toml").exists());
    }

    #[test]
    fn a_module_names_itself_and_what_it_needs() {
        assert_eq!(module_name(Path::new("a/vfio-pci.ko.xz")), "vfio-pci");
        assert_eq!(module_name(Path::new("vfio.ko")), "vfio");
        assert_eq!(
            dependencies(b"license=GPL\0depends=vfio-pci-core,vfio\0name=x\0"),
            ["vfio-pci-core", "vfio"]
        );
        assert!(dependencies(b"\0depends=\0name=x\0").is_empty());
        assert!(dependencies(b"noise").is_empty());
    }
}
