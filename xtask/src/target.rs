//! Where cargo puts what it builds.
//!
//! Cargo decides it, by `CARGO_TARGET_DIR`, `CARGO_BUILD_TARGET` and its configuration files; so cargo is asked, and no check
//! knows a path below the target folder.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::tools::{cargo, output, static_program};

/// The target folder of the workspace, for builds of their own and for the files that checks write.
pub(crate) fn folder() -> Result<PathBuf, String> {
    let text = output(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&text).map_err(|e| format!("cargo metadata: {e}"))?;
    let folder = metadata["target_directory"].as_str();
    folder
        .map(PathBuf::from)
        .ok_or_else(|| "cargo metadata names no target folder".to_owned())
}

/// Builds `iommu` so that no check judges an old one; where it is. It is linked as guests need it, since one build is
/// enough for them and for the checks here.
pub(crate) fn tool() -> Result<PathBuf, String> {
    static_program("iommu-cli", "iommu")
}

/// Builds `iommu` as its users do; where it is.
pub(crate) fn users_tool() -> Result<PathBuf, String> {
    build(&mut cargo(&["build", "--quiet", "--release", "--bin", "iommu"]))
}

/// Runs a `cargo build` of one program; where cargo put it.
pub(crate) fn build(command: &mut Command) -> Result<PathBuf, String> {
    command.arg("--message-format=json-render-diagnostics");
    // Of a build that failed, people want what the compiler said, not the messages for programs.
    let text = output(command).map_err(|why| {
        let lines = why.lines().filter(|line| !line.starts_with(MESSAGE));
        lines.collect::<Vec<_>>().join("\n")
    })?;
    executable(&text).ok_or_else(|| format!("{command:?} built no program"))
}

/// How each of cargo's messages for programs begins.
const MESSAGE: &str = "{\"reason\":";

/// The program that the messages of a build name.
fn executable(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["reason"] == "compiler-artifact")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::{executable, folder};
    use std::path::Path;

    #[test]
    fn the_program_is_where_cargo_says_not_where_it_usually_is() {
        let messages = "\
{\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"custom-build\"]},\"executable\":null}
{\"reason\":\"build-script-executed\",\"out_dir\":\"/t/release/build/a/out\"}
not a message
{\"reason\":\"compiler-artifact\",\"target\":{\"kind\":[\"bin\"]},\"executable\":\"/t/triple/release/iommu\"}
{\"reason\":\"build-finished\",\"success\":true}";
        assert_eq!(
            executable(messages).as_deref(),
            Some(Path::new("/t/triple/release/iommu"))
        );
        assert_eq!(executable("{\"reason\":\"build-finished\",\"success\":true}"), None);
    }

    #[test]
    fn the_target_folder_is_the_one_this_test_was_built_in() {
        let program = std::env::current_exe().unwrap();
        assert!(program.starts_with(folder().unwrap()), "{}", program.display());
    }
}
