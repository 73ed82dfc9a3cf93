//! The file format: what each key may hold, and where mistakes are.

use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::value::{Address, BusRange, Bytes, Ids, ScopePath};
use super::{DescriptionError, FunctionKind, MachineDescription, check};

/// A mistake and the bytes of the file it is in.
#[derive(Debug)]
pub(super) struct Mistake {
    pub(super) span: Range<usize>,
    pub(super) problem: String,
}

impl Mistake {
    pub(super) fn at<T>(spanned: &Spanned<T>, problem: impl Into<String>) -> Self {
        Self {
            span: spanned.span(),
            problem: problem.into(),
        }
    }

    /// Line and column of the mistake in `text`.
    pub(super) fn locate(self, file: &str, text: &str) -> DescriptionError {
        let before = text.get(..self.span.start).unwrap_or(text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        DescriptionError {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before.get(line_start..).unwrap_or_default().chars().count() + 1,
            problem: self.problem,
        }
    }
}

/// Reads and checks a description.
pub(super) fn read(text: &str) -> Result<MachineDescription, Mistake> {
    let file: File = toml::from_str(text).map_err(|error| Mistake {
        span: error.span().unwrap_or_default(),
        problem: error.message().to_owned(),
    })?;
    check::description(&file)
}

fn yes() -> bool {
    true
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct File {
    pub(super) name: String,
    pub(super) host_address_width: Spanned<u8>,
    #[serde(default = "yes")]
    pub(super) interrupt_remapping: bool,
    #[serde(default)]
    pub(super) x2apic_opt_out: bool,
    #[serde(default)]
    pub(super) dma_opt_in: bool,
    pub(super) memory: Vec<Spanned<Memory>>,
    pub(super) host_bridge: Vec<Spanned<HostBridge>>,
    #[serde(default)]
    pub(super) unit: Vec<Spanned<Unit>>,
    #[serde(default)]
    pub(super) rmrr: Vec<Spanned<Rmrr>>,
    #[serde(default)]
    pub(super) atsr: Vec<Spanned<Atsr>>,
    #[serde(default)]
    pub(super) satc: Vec<Spanned<Satc>>,
    pub(super) function: Vec<Spanned<Function>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Memory {
    pub(super) node: u32,
    pub(super) base: Bytes,
    pub(super) size: Bytes,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct HostBridge {
    #[serde(default)]
    pub(super) segment: u16,
    pub(super) buses: BusRange,
    pub(super) window: Spanned<Window>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Window {
    pub(super) base: Bytes,
    pub(super) size: Bytes,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Unit {
    pub(super) name: Spanned<String>,
    pub(super) base: Spanned<Bytes>,
    #[serde(default)]
    pub(super) segment: u16,
    pub(super) node: Option<u32>,
    #[serde(default)]
    pub(super) include_pci_all: bool,
    #[serde(default)]
    pub(super) scope: Vec<Spanned<Scope>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kind {
    Endpoint,
    SubHierarchy,
    IoApic,
    Hpet,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Scope {
    pub(super) kind: Kind,
    pub(super) path: ScopePath,
    pub(super) id: Option<u8>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Rmrr {
    #[serde(default)]
    pub(super) segment: u16,
    pub(super) base: Bytes,
    pub(super) size: Bytes,
    pub(super) scope: Vec<Spanned<Scope>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Atsr {
    #[serde(default)]
    pub(super) segment: u16,
    #[serde(default)]
    pub(super) all_ports: bool,
    #[serde(default)]
    pub(super) scope: Vec<Spanned<Scope>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Satc {
    #[serde(default)]
    pub(super) segment: u16,
    #[serde(default)]
    pub(super) atc_required: bool,
    pub(super) scope: Vec<Spanned<Scope>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub(super) enum AcsBit {
    #[serde(rename = "SV")]
    SourceValidation,
    #[serde(rename = "TB")]
    TranslationBlocking,
    #[serde(rename = "RR")]
    RequestRedirect,
    #[serde(rename = "CR")]
    CompletionRedirect,
    #[serde(rename = "UF")]
    UpstreamForwarding,
    #[serde(rename = "EC")]
    EgressControl,
    #[serde(rename = "DT")]
    DirectTranslated,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(super) struct Function {
    pub(super) name: Spanned<String>,
    pub(super) bdf: Option<Spanned<Address>>,
    pub(super) parent: Option<Spanned<String>>,
    pub(super) slot: Option<Spanned<Slot>>,
    pub(super) kind: Spanned<FunctionKind>,
    pub(super) ids: Ids,
    pub(super) class: Option<Spanned<u32>>,
    #[serde(default)]
    pub(super) multifunction: bool,
    pub(super) buses: Option<Spanned<BusRange>>,
    pub(super) acs: Option<Vec<AcsBit>>,
    pub(super) dma_bits: Option<Spanned<u8>>,
    #[serde(default)]
    pub(super) engine: bool,
    #[serde(default)]
    pub(super) registers: bool,
}

/// Device and function on the bus below a parent: `"00.1"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(pub(super) iommu_types::DevFn);

impl<'de> Deserialize<'de> for Slot {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(deserializer)?;
        // The bus is only there to use the one parser of such addresses.
        let parsed: Option<iommu_types::SourceId> = format!("00:{text}").parse().ok();
        parsed.map(|source| Self(source.devfn())).ok_or_else(|| {
            D::Error::invalid_value(
                serde::de::Unexpected::Str(&text),
                &"device.function in hexadecimal, as in \"00.1\"",
            )
        })
    }
}
