//! What is known of one machine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arbitrary_int::u4;
use iommu_groups::{AcsControl, BusId, ConfigAccess, Facts, LinuxVersion, Roots, Rules, Topology};
use iommu_types::{AddrRange, Bdf, HostPhys, Iova, NodeId};
use vtd_spec::register::{Capability, ExtendedCapability, Version};

use crate::config::ConfigSpace;
use crate::knowledge::Knowledge;
use crate::listing;
use crate::log::{BootEvent, Log};
use crate::platform::Platform;
use crate::snapshot;
use crate::sysfs;
use crate::tar::{self, ArchiveError};
use crate::tree::Tree;

/// Bytes of a file that a machine is read from.
const MAX_FILE: u64 = 128 << 20;

/// Where a machine was read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A root folder: `/` for the machine that this program runs on.
    Root(PathBuf),
    /// An archive with parts of sysfs and procfs.
    Snapshot,
    /// The text of `lspci` and other commands.
    Listing,
}

/// A PCI function as the system shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// Where it is.
    pub bdf: Bdf,
    /// Its configuration space, as far as it was seen.
    pub config: ConfigSpace,
    /// Vendor and device ID. A listing without numbers leaves them unknown.
    pub identity: Knowledge<(u16, u16)>,
    /// What the listing calls it: class, vendor and device in words.
    pub description: Option<String>,
    /// The kernel's number of its IOMMU group. Numbers differ from one boot to the next.
    pub group: Knowledge<u32>,
    /// The driver that is bound to it.
    pub driver: Knowledge<String>,
    /// The memory node it is close to.
    pub node: Knowledge<NodeId>,
    /// The physical function, of a virtual one.
    pub physical_function: Option<Bdf>,
    /// The function whose requester ID its requests carry, of one behind a VMD.
    pub real_dma: Option<Bdf>,
    /// Network interfaces it provides.
    pub interfaces: Vec<String>,
    /// Disks it provides.
    pub disks: Vec<String>,
    /// Whether the firmware used it for the console.
    pub boot_display: Knowledge<bool>,
    /// The ways in which the kernel can reset it, best first.
    pub reset_methods: Knowledge<Vec<String>>,
}

/// A group as the running kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelGroup {
    /// Its number.
    pub number: u32,
    /// Its PCI functions.
    pub functions: Vec<Bdf>,
    /// Other members, by the kernel's names.
    pub others: Vec<String>,
    /// Its domain type: `DMA`, `DMA-FQ`, `identity`, `blocked`, …
    pub kind: Knowledge<String>,
    /// Addresses its devices cannot use, or must have mapped one to one.
    pub reserved: Knowledge<Vec<ReservedRegion>>,
}

/// A range of I/O virtual addresses that a group may not use freely.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The addresses.
    pub range: AddrRange<Iova>,
    /// The kernel's word: `direct`, `direct-relaxable`, `msi`, `reserved`.
    pub kind: String,
}

/// A remapping unit as the running kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Its name, `dmar0`.
    pub name: String,
    /// Register base.
    pub address: Knowledge<HostPhys>,
    /// Version of the architecture. VT-d §11.4.1 (VER_REG).
    pub version: Knowledge<Version>,
    /// VT-d §11.4.2 (CAP_REG).
    pub cap: Knowledge<Capability>,
    /// VT-d §11.4.3 (ECAP_REG).
    pub ecap: Knowledge<ExtendedCapability>,
    /// Domains in use.
    pub domains_used: Knowledge<u32>,
}

/// A version as the kernel writes it, `1:0`; `None` if a part does not fit its field.
pub(crate) fn version(major: u8, minor: u8) -> Option<Version> {
    let (major, minor) = (u4::try_new(major).ok()?, u4::try_new(minor).ok()?);
    Some(Version::DEFAULT.with_max(major).with_min(minor))
}

/// Why a machine cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file or folder cannot be read.
    #[error("{}: {why}", path.display())]
    Read {
        /// The path.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// The file is too large.
    #[error("{}: larger than {MAX_FILE} bytes, which no machine description needs", path.display())]
    TooLarge {
        /// The path.
        path: PathBuf,
    },
    /// The archive cannot be read.
    #[error("{}: {why}", path.display())]
    Archive {
        /// The path.
        path: PathBuf,
        /// Why.
        why: ArchiveError,
    },
    /// Nothing in it describes a machine.
    #[error(
        "{}: no PCI function is described here; expected a folder with sys/bus/pci/devices, a snapshot, or the text \
         of `lspci -vvv` or `lspci -xxxx`",
        path.display()
    )]
    NoMachine {
        /// The path.
        path: PathBuf,
    },
}

/// A machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Where it was read from.
    pub origin: Origin,
    /// Its PCI functions.
    pub functions: BTreeMap<Bdf, PciFunction>,
    /// Buses that no bridge leads to, where the system says so.
    pub root_buses: Option<Vec<BusId>>,
    /// Functions that the system lists under names that are no PCI addresses.
    pub wide_domains: Vec<String>,
    /// The groups of the running kernel, by number.
    pub groups: Knowledge<BTreeMap<u32, KernelGroup>>,
    /// Its remapping units, as the running kernel has them.
    pub units: Knowledge<Vec<Unit>>,
    /// Other IOMMUs that the kernel has, by name: `ivhd0`, `smmu3.0x…`.
    pub other_iommus: Vec<String>,
    /// The DMAR table.
    pub dmar: Knowledge<Vec<u8>>,
    /// Whether there is an IVRS table: the machine has an AMD IOMMU.
    pub ivrs: Knowledge<()>,
    /// What firmware and processor say besides.
    pub platform: Platform,
    /// The kernel's command line.
    pub boot_parameters: Knowledge<String>,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: Knowledge<String>,
    /// The kernel's log.
    pub log: Knowledge<Log>,
    /// Parameters of VFIO modules: (`vfio_iommu_type1.allow_unsafe_interrupts`, `N`). Empty if the modules are not loaded.
    pub module_parameters: Knowledge<BTreeMap<String, String>>,
    /// Disks that hold the root file system or the boot files.
    pub vital_disks: Knowledge<Vec<String>>,
    /// Interfaces that a default route leads over.
    pub vital_interfaces: Knowledge<Vec<String>>,
    /// What was left out or inferred, in words.
    pub notes: Vec<String>,
}

impl ConfigAccess for Machine {
    fn read32(&self, function: Bdf, offset: u16) -> Option<u32> {
        self.functions.get(&function)?.config.read32(offset)
    }
}

impl Machine {
    /// The machine that this program runs on.
    ///
    /// # Errors
    ///
    /// [`OpenError::NoMachine`] if the system shows no PCI function.
    pub fn live() -> Result<Self, OpenError> {
        Self::open(Path::new("/"))
    }

    /// A machine from a root folder, a snapshot, or a listing; which of them is told from the contents.
    ///
    /// # Errors
    ///
    /// If the path cannot be read, or nothing in it describes a machine.
    pub fn open(path: &Path) -> Result<Self, OpenError> {
        let read = |why| OpenError::Read {
            path: path.to_owned(),
            why,
        };
        let metadata = std::fs::metadata(path).map_err(read)?;
        let machine = if metadata.is_dir() {
            sysfs::read(&Tree::Folder(path.to_owned()), Origin::Root(path.to_owned()))
        } else {
            let too_large = || OpenError::TooLarge { path: path.to_owned() };
            if metadata.len() > MAX_FILE {
                return Err(too_large());
            }
            Self::from_bytes(&std::fs::read(path).map_err(read)?).map_err(|why| OpenError::Archive {
                path: path.to_owned(),
                why,
            })?
        };
        if machine.functions.is_empty() && machine.wide_domains.is_empty() {
            return Err(OpenError::NoMachine { path: path.to_owned() });
        }
        Ok(machine)
    }

    /// A machine from the bytes of a snapshot or a listing. It may turn out to have no functions.
    ///
    /// # Errors
    ///
    /// If an archive cannot be read at all.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ArchiveError> {
        if !tar::is_archive(bytes) {
            return Ok(listing::read(bytes));
        }
        let mut contents = tar::read(bytes)?;
        snapshot::read_manifest(&mut contents.archive);
        let mut machine = sysfs::read(&Tree::Archive(contents.archive), Origin::Snapshot);
        machine.notes.extend(contents.notes);
        Ok(machine)
    }

    /// A machine from the text of `lspci`, and of `dmesg` and `acpidump` where they stand in it too.
    #[must_use]
    pub fn from_listing(bytes: &[u8]) -> Self {
        listing::read(bytes)
    }

    /// The release of the kernel, as far as grouping rules depend on it; the newest if it is not known.
    #[must_use]
    pub fn linux_version(&self) -> LinuxVersion {
        self.release().unwrap_or(LinuxVersion::LATEST)
    }

    /// The release of the kernel, if it is known.
    pub(crate) fn release(&self) -> Option<LinuxVersion> {
        let mut parts = self.kernel.known()?.split(['.', '-', '+']);
        Some(LinuxVersion::new(
            parts.next()?.parse().ok()?,
            parts.next()?.parse().ok()?,
        ))
    }

    /// The rules of its kernel.
    #[must_use]
    pub fn linux_rules(&self) -> Rules {
        Rules::Linux(self.linux_version())
    }

    /// Whether the kernel has groups at all: it uses an IOMMU.
    #[must_use]
    pub fn has_groups(&self) -> Option<bool> {
        match &self.groups {
            Knowledge::Known(groups) => Some(!groups.is_empty()),
            Knowledge::Absent => Some(false),
            Knowledge::Unknown(_) => None,
        }
    }

    /// Its PCI topology. Which ACS controls count is as found where the kernel uses the IOMMU, and as Linux
    /// would set them where it does not.
    #[must_use]
    pub fn topology(&self) -> Topology {
        let acs = if self.has_groups() == Some(false) {
            AcsControl::Enabled
        } else {
            AcsControl::AsFound
        };
        let virtual_functions = self
            .functions
            .values()
            .filter_map(|f| Some((f.bdf, f.physical_function?)))
            .collect();
        let real_dma = self
            .functions
            .values()
            .filter_map(|f| Some((f.bdf, f.real_dma?)))
            .collect();
        let facts = Facts {
            virtual_functions,
            real_dma,
            amd_iommu: self.ivrs.known().is_some() || self.other_iommus.iter().any(|name| name.starts_with("ivhd")),
            acs,
            ..Facts::default()
        };
        let roots = self.root_buses.as_deref().map_or(Roots::Inferred, Roots::Given);
        Topology::from_functions(self, self.functions.keys().copied(), roots, &facts)
    }

    /// The functions of the kernel's groups as a partition, in ascending order; `None` if it has none or they
    /// are not known.
    #[must_use]
    pub fn kernel_partition(&self) -> Option<Vec<Vec<Bdf>>> {
        let groups = self.groups.known()?;
        if groups.is_empty() {
            return None;
        }
        let mut partition: Vec<Vec<Bdf>> = groups
            .values()
            .map(|group| group.functions.clone())
            .filter(|functions| !functions.is_empty())
            .collect();
        for functions in &mut partition {
            functions.sort_unstable();
        }
        partition.sort_unstable();
        Some(partition)
    }

    /// What the kernel said when it started, with line numbers; nothing if the log is not known.
    pub fn boot_events(&self) -> impl Iterator<Item = (usize, &BootEvent)> {
        self.log.known().into_iter().flat_map(Log::boot)
    }
}
