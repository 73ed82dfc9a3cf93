//! What documents say about sources and tests, held against the tree: `SPEC-COVERAGE.md`, and the table of hostile classes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// This crate, and the top of the repository.
const CRATE: &str = env!("CARGO_MANIFEST_DIR");
const TOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// The cells of the rows of a table, without its head.
fn rows<'a>(text: &'a str, line_start: &'a str) -> impl Iterator<Item = Vec<&'a str>> {
    text.lines()
        .filter_map(move |line| line.strip_prefix(line_start)?.strip_prefix("| "))
        .skip(1)
        .map(|row| row.split('|').map(str::trim).collect())
}

/// The functions of a source that stand behind `#[test]`.
fn tests_in(path: &Path) -> BTreeSet<String> {
    let source = text(path);
    let mut lines = source.lines().map(str::trim);
    let mut names = BTreeSet::new();
    while lines.any(|line| line == "#[test]") {
        let declared = lines.find_map(|line| line.split_once("fn ")).expect("a function");
        names.extend(declared.1.split_once('(').map(|(name, _)| name.to_owned()));
    }
    names
}

/// Rust sources below a folder, relative to it.
fn sources(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(&next).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let relative = path.strip_prefix(folder).expect("below it");
                found.insert(relative.to_str().expect("a name").to_owned());
            }
        }
    }
    found
}

/// The first of the folders in which a named file is.
fn place(name: &str, folders: &[PathBuf]) -> PathBuf {
    let found = folders
        .iter()
        .map(|folder| folder.join(name))
        .find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} does not exist"))
}

/// Reads a cell such as "`file.rs` `a_test`, `another`; `other.rs`": files exist, and tests are in the file before them.
/// Answers the files, and how many tests are named.
fn judge_tests<'a>(cell: &'a str, folders: &[PathBuf]) -> (BTreeSet<&'a str>, usize) {
    let (mut files, mut count) = (BTreeSet::new(), 0);
    let mut here = BTreeSet::new();
    for name in quoted(cell) {
        if Path::new(name).extension().is_some_and(|ending| ending == "rs") {
            here = tests_in(&place(name, folders));
            files.insert(name);
        } else {
            assert!(here.contains(name), "{name} is no test there: {cell}");
            count += 1;
        }
    }
    (files, count)
}

#[test]
fn each_hostile_class_is_a_named_test() {
    let own = Path::new(CRATE).join("tests/rules");
    let folders = [own.clone(), Path::new(TOP).join("crates")];
    let table = text(&own.join("hostile_classes.rs"));
    let mut classes = Vec::new();
    let mut named = BTreeSet::new();
    for row in rows(&table, "//! ") {
        let [class, _, tests, ..] = row.as_slice() else {
            panic!("a row of three cells: {row:?}")
        };
        if class.starts_with("---") {
            continue;
        }
        let (_, count) = judge_tests(tests, &folders);
        assert!(count > 0, "{class} has no test");
        named.extend(quoted(tests));
        classes.push(*class);
    }
    let all: Vec<String> = (1..=24).map(|class| format!("S-{class:02}")).collect();
    assert_eq!(classes, all);
    // A test that carries a class in its name stands in the table.
    for file in ["hostile_classes.rs", "hostile_tables.rs"] {
        for test in tests_in(&own.join(file)) {
            assert!(named.contains(test.as_str()), "{test} is not in the table");
        }
    }
}

#[test]
fn the_coverage_names_each_source_and_each_test_file_and_nothing_else() {
    let (src, rules) = (Path::new(CRATE).join("src"), Path::new(CRATE).join("tests/rules"));
    let top = Path::new(TOP).to_path_buf();
    let coverage = text(&top.join("SPEC-COVERAGE.md"));
    let (mut files, mut tests) = (BTreeSet::new(), BTreeSet::new());
    for row in rows(&coverage, "") {
        let [section, _, file, test, judge, status, ..] = row.as_slice() else {
            panic!("a row of six cells: {row:?}")
        };
        if section.starts_with("---") {
            continue;
        }
        for name in quoted(file) {
            place(name, &[src.clone(), top.clone()]);
            files.insert(name);
        }
        tests.extend(judge_tests(test, &[rules.clone(), CRATE.into(), top.clone()]).0);
        let absent = status.contains("not advertised") && file.is_empty();
        assert_eq!(judge.is_empty(), absent, "{section}: a judge, or not advertised");
    }
    // The paragraphs name files by their place in the repository.
    let prose = coverage.lines().filter(|line| !line.starts_with('|'));
    for name in prose.flat_map(quoted).filter(|name| name.contains('/')) {
        place(name, std::slice::from_ref(&top));
    }
    let missing: Vec<_> = sources(&src)
        .into_iter()
        .filter(|name| !files.contains(name.as_str()))
        .collect();
    assert!(missing.is_empty(), "sources that no row names: {missing:?}");
    let helpers = ["main.rs", "rig.rs"];
    let missing: Vec<_> = sources(&rules)
        .into_iter()
        .filter(|name| !tests.contains(name.as_str()) && !helpers.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "tests that no row names: {missing:?}");
}
