//! Where a machine comes from: the embedded sample, a machine file, or a firmware table.

use std::path::Path;

use soft_platform::MachineDescription;

use crate::exit::{Failure, read_text};

/// The description in `file`, or the embedded two-socket server.
pub(crate) fn describe(file: Option<&Path>) -> Result<MachineDescription, Failure> {
    let described = match file {
        None => MachineDescription::two_socket(),
        Some(file) => MachineDescription::parse(&file.display().to_string(), &read_text(file)?),
    };
    described.map_err(|why| Failure::Input(why.to_string()))
}
