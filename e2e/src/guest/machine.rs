//! Machines of generated shape, as arguments for QEMU.
//!
//! [`Machine::of_shapes`] puts known arrangements side by side; [`Machine::grown`] lets a tree of ports, bridges
//! and functions grow at random, arrangements that no vendor would sell included. Both come from a seed alone.

mod build;
mod shape;
mod table;

use std::fmt;

use acpi_dmar::BuildError;

use self::build::Build;
use self::shape::SHAPES;

/// The controls of one port that Linux is told to set or clear when it switches ACS on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcsSetting {
    /// The port: bus, device and function on the root bus, then device and function for each bridge below.
    pub path: String,
    /// Source validation, translation blocking, request redirect, completion redirect, upstream forwarding.
    pub controls: [bool; 5],
}

impl fmt::Display for AcsSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Highest bit first; direct translation and egress control stay as they are.
        f.write_str("xx")?;
        for on in self.controls.iter().rev() {
            f.write_str(if *on { "1" } else { "0" })?;
        }
        write!(f, "@{}", self.path)
    }
}

/// A function on a root bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RootFunction {
    /// The number of the root bus.
    pub bus: u8,
    /// The device number.
    pub device: u8,
    /// The function number.
    pub function: u8,
    /// Whether there is a bus below it.
    pub is_bridge: bool,
}

/// A machine for a guest.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    /// What is in it, for people.
    pub name: String,
    /// Arguments for QEMU, besides those that every machine has.
    pub arguments: Vec<String>,
    /// What Linux is to do with ACS.
    pub acs: Vec<AcsSetting>,
    /// The functions on root buses, those of the chipset included.
    pub root_functions: Vec<RootFunction>,
    /// Whether a function's virtual ones are switched on by Linux's NVMe driver.
    pub needs_nvme_driver: bool,
    /// A DMAR table that takes the place of QEMU's own.
    pub table: Option<Vec<u8>>,
}

impl Machine {
    /// How many arrangements [`Self::of_shapes`] knows.
    pub const SHAPES: usize = SHAPES.len();

    /// A machine with these arrangements, by number below [`Self::SHAPES`], with details by `seed`.
    #[must_use]
    pub fn of_shapes(shapes: &[usize], seed: u64) -> Self {
        let mut build = Build::new(seed);
        let mut names = Vec::new();
        for (name, shape) in shapes.iter().filter_map(|index| SHAPES.get(*index)) {
            shape(&mut build);
            names.push(*name);
        }
        build.finish(names.join(", "))
    }

    /// A machine with the arrangements of these names. Names that it does not know are left out.
    #[must_use]
    pub fn named(names: &[&str], seed: u64) -> Self {
        let number = |name: &&str| SHAPES.iter().position(|(known, _)| known == name);
        let shapes: Vec<usize> = names.iter().filter_map(number).collect();
        Self::of_shapes(&shapes, seed)
    }

    /// A machine in which about `functions` functions grew at random.
    #[must_use]
    pub fn grown(functions: usize, seed: u64) -> Self {
        let mut build = Build::new(seed);
        build.grow_all(functions);
        build.finish("grown at random".to_owned())
    }

    /// The same machine with a DMAR table that we build: with a structure of every type, and often with a unit
    /// that leaves some devices out.
    ///
    /// # Errors
    /// [`BuildError`] if the table cannot be built.
    pub fn with_table(mut self, seed: u64) -> Result<Self, BuildError> {
        self.table = Some(table::table(&self.root_functions, seed)?);
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_is_written_with_the_highest_control_first() {
        let setting = AcsSetting {
            path: "0:3.0/0.1".to_owned(),
            controls: [true, false, true, true, false],
        };
        assert_eq!(setting.to_string(), "xx01101@0:3.0/0.1");
    }

    #[test]
    fn a_seed_makes_one_machine_and_another_seed_another() {
        let arguments = |seed| Machine::grown(60, seed).arguments;
        assert_eq!(arguments(7), arguments(7));
        assert_ne!(arguments(7), arguments(8));
    }

    #[test]
    fn no_two_functions_get_the_same_place() {
        for seed in 0..200 {
            let all: Vec<usize> = (0..Machine::SHAPES).collect();
            for machine in [Machine::grown(90, seed), Machine::of_shapes(&all, seed)] {
                let places: Vec<_> = machine
                    .arguments
                    .iter()
                    .filter_map(|argument| Some(&argument[argument.find("bus=d").or(argument.find("bus=p"))?..]))
                    .map(|argument| argument.replace(",multifunction=on", ""))
                    .collect();
                let different: std::collections::BTreeSet<_> = places.iter().collect();
                assert_eq!(places.len(), different.len(), "seed {seed}");
                assert!(places.len() > 60, "seed {seed}: {}", places.len());
            }
        }
    }
}
