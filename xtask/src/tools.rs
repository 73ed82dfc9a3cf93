//! Outside tools, unpacked below `target/tools` without root and without changing the system.
//!
//! Packages come from the Debian mirror that this machine's own apt is configured for, through a private apt
//! state, and are unpacked with `dpkg -x`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the workspace.
pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
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

/// Debian's compiler and disassembler of ACPI tables, which knows DMAR.
///
/// The error says why it cannot be had; that is a reason to skip, not a failure of the project.
pub(crate) fn iasl() -> Result<PathBuf, String> {
    debian_program("acpica-tools", "usr/bin/iasl")
}

/// A program out of a Debian package: the unpacked one if it is there, else it is fetched.
fn debian_program(package: &str, program: &str) -> Result<PathBuf, String> {
    let tools = workspace().join("target/tools");
    let root = tools.join(package);
    let path = root.join(program);
    if path.exists() {
        return Ok(path);
    }
    let apt = tools.join("apt");
    let config = private_apt(&apt)?;
    let downloads = tools.join("downloads");
    fs::create_dir_all(&downloads).map_err(|e| format!("{}: {e}", downloads.display()))?;
    if !apt.join("updated").exists() {
        output(
            Command::new("apt-get")
                .env("APT_CONFIG", &config)
                .args(["-q", "update"]),
        )
        .map_err(|e| format!("package lists cannot be fetched: {e}"))?;
        fs::write(apt.join("updated"), "").map_err(|e| e.to_string())?;
    }
    output(
        Command::new("apt-get")
            .env("APT_CONFIG", &config)
            .current_dir(&downloads)
            .args(["-q", "download", package]),
    )
    .map_err(|e| format!("package {package} cannot be fetched: {e}"))?;
    let archive = fs::read_dir(&downloads)
        .map_err(|e| e.to_string())?
        .flatten()
        .map(|entry| entry.path())
        .find(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(&format!("{package}_")))
        })
        .ok_or_else(|| format!("apt-get fetched no archive of {package}"))?;
    output(Command::new("dpkg").arg("-x").arg(&archive).arg(&root))?;
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{package} holds no {program}"))
    }
}

/// A private apt state below `folder`; returns its configuration file.
fn private_apt(folder: &Path) -> Result<PathBuf, String> {
    let mirror = debian_mirror().ok_or("this system has no Debian package source configured")?;
    for sub in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(folder.join(sub)).map_err(|e| format!("{}: {e}", folder.display()))?;
    }
    let keyring = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let write = |name: &str, text: String| {
        fs::write(folder.join(name), text).map_err(|e| format!("{}: {e}", folder.join(name).display()))
    };
    write(
        "sources.list",
        format!("deb [signed-by={keyring}] {mirror} bookworm main\n"),
    )?;
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
