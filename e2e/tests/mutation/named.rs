//! What the first table in `RULES.md` of the crate `vtd-driver` names: the code that keeps a rule, the tests that judge
//! it. Every name has to be there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::table::cells;

/// The workspace.
fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("in the workspace")
        .to_owned()
}

/// Every Rust file below `folder`, by its path there, with what it says.
fn sources(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(at) = folders.pop() {
        for entry in fs::read_dir(&at)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
        {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.extension().is_some_and(|end| end == "rs") {
                let text = fs::read_to_string(&entry).expect("text");
                let path = entry.strip_prefix(folder).expect("below").to_owned();
                found.push((path, text));
            }
        }
    }
    found
}

/// The names of the tests in a file.
fn tests(text: &str) -> Vec<&str> {
    let mut marked = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        let name = line
            .split_once("fn ")
            .map(|(before, rest)| (before, rest.split(['(', '<']).next()));
        match name {
            Some(("" | "pub(super) ", Some(name))) if marked => {
                found.push(name);
                marked = false;
            }
            // Attributes and comments may stand between the mark and the function.
            _ => marked = line == "#[test]" || (marked && (line.starts_with('#') || line.starts_with('/'))),
        }
    }
    found
}

/// Every test of the crate `vtd-driver` on the model, as `RULES.md` names them: with the modules in front.
fn driver_tests() -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (path, text) in sources(&workspace().join("e2e/tests/driver")) {
        let module = path.with_extension("").to_string_lossy().replace(['/', '\\'], "::");
        all.extend(tests(&text).into_iter().map(|name| format!("{module}::{name}")));
    }
    all
}

/// What stands between back quotes.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// How many of `names` are meant by a name that may end in `…` or `*`.
fn meant(name: &str, names: impl IntoIterator<Item: AsRef<str>>) -> usize {
    let fits = |full: &str| match (name.strip_suffix('…'), name.strip_suffix('*')) {
        (Some(start), _) | (_, Some(start)) => full.starts_with(start),
        _ => full == name,
    };
    names.into_iter().filter(|full| fits(full.as_ref())).count()
}

/// Why `name`, a test, is not to be found; `file` is the file of the crate that was named last.
fn missing_test<'n>(name: &'n str, file: &mut Option<&'n str>) -> Option<String> {
    let at = workspace();
    if name.starts_with("crates/") {
        let found = at.join(name).is_dir() && sources(&at.join(name)).iter().any(|(_, text)| !tests(text).is_empty());
        return (!found).then(|| format!("no tests in {name}"));
    }
    let in_file = |file: &str| {
        let path = at.join("crates/vtd-driver").join(file);
        fs::read_to_string(path).map(|text| tests(&text).into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    if name.starts_with("src/") {
        *file = Some(name);
        let found = in_file(name).is_ok_and(|tests| !tests.is_empty());
        return (!found).then(|| format!("no tests in {name}"));
    }
    let count = match *file {
        _ if name.contains("::") => meant(name, driver_tests()),
        Some(file) => meant(name, in_file(file).unwrap_or_default()),
        None => return Some(format!("{name} follows no file")),
    };
    match count {
        0 => Some(format!("no test {name}")),
        2.. if name.ends_with('…') => Some(format!("{name} may be any of {count} tests")),
        _ => None,
    }
}

/// Whether the driver, or a crate that it is made of, has something of this name.
fn is_in_the_code(name: &str, code: &[(PathBuf, String)]) -> bool {
    if name.ends_with(".rs") {
        return code.iter().any(|(path, _)| path.ends_with(name));
    }
    if name.starts_with("iommu-") {
        return workspace().join("crates").join(name).is_dir();
    }
    let name = name.rsplit("::").next().unwrap_or(name);
    let whole = |text: &str| {
        text.match_indices(name).any(|(at, _)| {
            let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
            !part(text[..at].chars().next_back()) && !part(text[at + name.len()..].chars().next())
        })
    };
    code.iter().any(|(_, text)| whole(text))
}

#[test]
fn every_test_that_the_table_names_is_there() {
    let mut missing = Vec::new();
    for row in cells("Rules") {
        let [rule, _, judges] = &row[..] else {
            panic!("a row of {} cells: {row:?}", row.len())
        };
        let mut file = None;
        missing.extend(quoted(judges).filter_map(|name| Some((rule.clone(), missing_test(name, &mut file)?))));
    }
    assert_eq!(missing, []);
}

#[test]
fn every_rule_names_a_test_or_is_kept_elsewhere() {
    let elsewhere: Vec<String> = cells("Elsewhere").into_iter().map(|cells| cells[0].clone()).collect();
    let without: Vec<String> = cells("Rules")
        .into_iter()
        .filter(|row| row.get(2).is_none_or(|judges| quoted(judges).next().is_none()))
        .map(|row| row[0].clone())
        .collect();
    assert_eq!(without, elsewhere);
}

#[test]
fn what_keeps_a_rule_is_in_the_code() {
    let code = sources(&workspace().join("crates/vtd-driver/src"));
    let gone: Vec<(String, String)> = cells("Rules")
        .into_iter()
        .flat_map(|row| {
            let names: Vec<String> = quoted(&row[1]).map(str::to_owned).collect();
            names.into_iter().map(move |name| (row[0].clone(), name))
        })
        .filter(|(_, name)| !is_in_the_code(name, &code))
        .collect();
    assert_eq!(gone, []);
}

#[test]
fn names_are_found_by_their_start_and_by_all_of_them() {
    let text = "#[test]\nfn one_thing() {}\n#[test]\n#[should_panic]\nfn another() {}\nfn helper() {}\n";
    assert_eq!(tests(text), ["one_thing", "another"]);
    let names = ["x::one", "x::other", "y::one"];
    assert_eq!(
        ["x::o…", "x::one", "x::*", "x::on", "z::*"].map(|name| meant(name, names)),
        [2, 1, 2, 0, 0]
    );
}
