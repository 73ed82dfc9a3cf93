//! What is rehearsed: a machine with the bytes of its table.

use std::path::Path;

use soft_platform::{Machine, MachineDescription, MachineOptions};

use super::real;
use crate::exit::{Failure, read};
use crate::machine;

/// Where a machine is to come from.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted<'a> {
    /// A machine file.
    pub(crate) file: Option<&'a Path>,
    /// A firmware table.
    pub(crate) dmar: Option<&'a Path>,
    /// A root folder, or a snapshot.
    pub(crate) root: Option<&'a Path>,
}

/// A machine before it is built.
#[derive(Debug)]
pub(crate) struct Source {
    /// What the machine is called, for people.
    pub(crate) origin: String,
    /// Where the table comes from, for people.
    pub(crate) table_origin: String,
    /// Functions, buses and memory.
    pub(crate) description: MachineDescription,
    /// The table: the only thing that says anything about units.
    pub(crate) dmar: Vec<u8>,
    /// What was assumed where a table alone says nothing.
    pub(crate) notes: Vec<String>,
    /// How the machine is made: what its units can do.
    pub(crate) options: MachineOptions,
}

impl Source {
    /// A root folder or snapshot, a firmware table, a machine file, or the embedded sample.
    pub(crate) fn load(wanted: &Wanted<'_>) -> Result<Self, Failure> {
        let Wanted { file, dmar, root } = *wanted;
        if let Some(root) = root {
            return real::load(root);
        }
        if let Some(table) = dmar {
            let bytes = read(table)?;
            let (description, assumptions) = MachineDescription::from_dmar(&bytes).map_err(|why| {
                let (name, rule) = (table.display(), why.rule());
                Failure::Input(format!("{name}: {rule}: {why}. {}", rule.advice()))
            })?;
            let name = table.display().to_string();
            return Ok(Self {
                origin: format!("the machine of {name}"),
                table_origin: name,
                description,
                dmar: bytes,
                notes: assumptions.iter().map(ToString::to_string).collect(),
                options: MachineOptions::default(),
            });
        }
        let description = machine::describe(file)?;
        let dmar = description
            .to_dmar()
            .map_err(|why| Failure::Input(format!("{}: {why}", description.name)))?;
        let origin = match file {
            Some(file) => format!("{} ({})", description.name, file.display()),
            None => format!("{} (embedded sample)", description.name),
        };
        Ok(Self {
            table_origin: "built from the machine file".to_owned(),
            origin,
            description,
            dmar,
            notes: Vec::new(),
            options: MachineOptions::default(),
        })
    }

    /// Builds the machine.
    pub(crate) fn machine(&self) -> Result<Machine, Failure> {
        Machine::build_with(&self.description, &self.dmar, self.options)
            .map_err(|why| Failure::Input(format!("{}: {why}", self.origin)))
    }
}
