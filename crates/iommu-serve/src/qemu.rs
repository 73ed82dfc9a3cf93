//! The QEMU command line that goes with a served machine.

use std::fmt::Write as _;
use std::path::Path;

use crate::server::Server;

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

/// What a Linux guest has to be told: use the unit, and leave interrupts to QEMU, which delivers them.
const KERNEL_WORDS: &str = "console=ttyS0 panic=-1 intel_iommu=on intremap=off";

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
        let words = format!("{KERNEL_WORDS} {}", guest.append);
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
