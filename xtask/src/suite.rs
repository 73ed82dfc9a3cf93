//! The test command: every check in order, cheap ones first.

use crate::report::{Outcome, Report};
use crate::tools::{cargo, output};
use crate::{bare_metal, bench, iasl, layers, linux, no_std, qemu, rehearsal, samples, serve, target, tools, vfio};

/// How much to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Depth {
    /// Under ten minutes on two cores; what cannot run here is skipped and said.
    Default,
    /// Everything; a skipped judge fails.
    Full,
    /// Everything, with long property tests.
    Nightly,
}

impl Depth {
    /// The depth that the command line asks for.
    pub(crate) fn from_flags(full: bool, nightly: bool) -> Self {
        match (full, nightly) {
            (_, true) => Self::Nightly,
            (true, false) => Self::Full,
            (false, false) => Self::Default,
        }
    }
}

/// Runs the suite, or the checks of it whose name contains `only`, and prints its table.
pub(crate) fn run(depth: Depth, only: Option<String>) -> Result<(), String> {
    let mut report = Report::new(depth >= Depth::Full, only);
    report.check("format", 1, || command(&["fmt", "--all", "--check"], "rustfmt agrees"));
    report.check("layers", 30, layers::check);
    report.check("lints", 1, || {
        command(
            &[
                "clippy",
                "--quiet",
                "--workspace",
                "--all-targets",
                "--",
                "-D",
                "warnings",
            ],
            "clippy has no warning",
        )
    });
    report.check("tests", 900, || tests(&["test", "--workspace", "--all-targets"], depth));
    report.check("documentation examples", 20, || {
        tests(&["test", "--workspace", "--doc"], depth)
    });
    report.check("documentation", 1, documentation);
    report.check("no_std", 9, no_std::check);
    // The main job is what users build; the default form saves a build and takes the one that guests need as well.
    let tool = if depth == Depth::Default {
        target::tool
    } else {
        target::users_tool
    };
    report.check("build of the tool", 1, || match tool() {
        Ok(tool) => Outcome::passed(1, tool.display().to_string()),
        Err(why) => Outcome::Failed(why),
    });
    report.check("rehearsal on the sample", 1, || rehearsal::check(tool));
    report.check("real tables", 60, samples::check);
    report.check("iasl on tables", 1, iasl::check);
    let (least, dmas) = match depth {
        Depth::Default => (2_000, 2_500),
        Depth::Full => (50_000, 50_000),
        Depth::Nightly => (1_000_000, 1_000_000),
    };
    report.check("model against QEMU 11.1", least, || qemu::check(tools::QEMU_11, dmas));
    report.check("driver on QEMU 11.1, bare metal", 282, || {
        bare_metal::check(tools::QEMU_11, bare_metal::RUNS_11)
    });
    let functions = if depth == Depth::Default { 200 } else { 800 };
    report.check("groups against Linux", functions, || linux::check(depth));
    report.check("VFIO against Linux", 90, vfio::check);
    let boots = if depth == Depth::Default { 2 } else { 28 };
    report.check("Linux on our unit", boots, || serve::check(depth, None));
    if depth >= Depth::Full {
        report.check("fuzzing", 9, || fuzz(depth));
        report.check("model against QEMU 7.2", 50_000, || qemu::check(tools::QEMU_7, dmas));
        report.check("driver on QEMU 7.2, bare metal", 229, || {
            bare_metal::check(tools::QEMU_7, bare_metal::RUNS_7)
        });
        report.check("lints, bare metal", 1, bare_metal::lints);
        report.check("benchmarks run", 1, || match bench::run(None, true) {
            Ok(()) => Outcome::passed(1, "all rows measured (quick form)"),
            Err(why) => Outcome::Failed(why),
        });
    }
    report.finish()
}

/// A cargo command that passes by its exit status.
fn command(arguments: &[&str], detail: &str) -> Outcome {
    match output(&mut cargo(arguments)) {
        Ok(_) => Outcome::passed(1, detail),
        Err(why) => Outcome::Failed(why),
    }
}

/// Test binaries of cargo; counts what passed.
fn tests(arguments: &[&str], depth: Depth) -> Outcome {
    let mut command = cargo(arguments);
    if depth == Depth::Nightly {
        command.env("PROPTEST_CASES", "4096");
    }
    let text = match output(&mut command) {
        Ok(text) => text,
        Err(why) => return Outcome::Failed(why),
    };
    let (passed, ignored) = count(&text);
    if ignored > 0 {
        return Outcome::Failed(format!("{ignored} tests are ignored: a test runs or does not exist"));
    }
    Outcome::passed(passed, format!("{passed} tests passed"))
}

/// The fuzz targets with time to spend on each; the default run gives them half a second as ordinary tests.
fn fuzz(depth: Depth) -> Outcome {
    let seconds = if depth == Depth::Nightly { "600" } else { "30" };
    let mut command = tools::release_test("fuzz");
    match output(command.env("PORTCULLIS_FUZZ_SECONDS", seconds)) {
        Ok(text) => {
            let targets = text.lines().filter(|line| line.contains("fuzzed: ")).count();
            Outcome::passed(targets, format!("{targets} targets, {seconds} s each"))
        }
        Err(why) => Outcome::Failed(why),
    }
}

/// Sums up the `test result:` lines: passed and ignored.
fn count(text: &str) -> (usize, usize) {
    let number_before = |line: &str, word: &str| {
        line.split([';', '.'])
            .find_map(|part| part.trim().strip_suffix(word)?.trim().parse::<usize>().ok())
            .unwrap_or(0)
    };
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("test result: ok."))
        .fold((0, 0), |sum, line| {
            (
                sum.0 + number_before(line, "passed"),
                sum.1 + number_before(line, "ignored"),
            )
        })
}

/// Builds all documentation; a broken link is an error.
fn documentation() -> Outcome {
    let mut command = cargo(&["doc", "--quiet", "--workspace", "--no-deps"]);
    command.env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private-intra-doc-links");
    match output(&mut command) {
        Ok(_) => Outcome::passed(1, "no broken link"),
        Err(why) => Outcome::Failed(why),
    }
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn results_of_several_binaries_add_up() {
        let text = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
                    running 3 tests\n\
                    test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(count(text), (15, 1));
    }
}
