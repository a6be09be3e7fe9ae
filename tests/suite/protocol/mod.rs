//! The CNI protocol against the product's binary: what it is given, and exactly what it answers. The lines that the tests
//! name (A1 … I37) are those of `docs/protocol.md`. What the rulesets let through is other modules' business.

mod add;
mod check;
mod concurrency;
mod config;
mod del;
mod environment;
mod gc;
mod guards;
mod hostile;
mod settings;
mod status;
mod vectors;
mod version;

use std::collections::BTreeSet;
use std::path::Path;

/// The lines of `docs/protocol.md` and the tests name each other, and none that is not there.
#[test]
fn the_checklist_and_the_tests_agree() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let checklist = std::fs::read_to_string(root.join("docs/protocol.md")).unwrap();
    let mut tests = BTreeSet::new();
    let mut named_by_tests = BTreeSet::new();
    for entry in std::fs::read_dir(root.join("tests/suite/protocol")).unwrap() {
        let path = entry.unwrap().path();
        let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let source = std::fs::read_to_string(&path).unwrap();
        for (attribute, function) in source.lines().zip(source.lines().skip(1)) {
            if let Some(name) = function.strip_prefix("fn ").filter(|_| attribute == "#[test]") {
                tests.insert(format!("{module}::{}", name.split('(').next().unwrap()));
            }
        }
        named_by_tests.extend(source.lines().filter(|line| line.starts_with("///")).flat_map(labels));
    }
    let rows: Vec<_> = checklist.lines().filter(|line| line.starts_with("| ") && !labels(line).is_empty()).collect();
    let lines: BTreeSet<_> = rows.iter().map(|row| labels(row).remove(0)).collect();
    assert_eq!(lines, named_by_tests, "docs/protocol.md has these lines, and the tests name those");
    for row in rows {
        let named: Vec<_> = row.split('`').filter(|word| word.contains("::")).collect();
        assert!(!named.is_empty(), "no test proves {row}");
        for name in named {
            assert!(tests.contains(name), "{name} is no test; it should prove {row}");
        }
    }
}

/// The words of a line that are a capital letter and a number, as `D19`.
fn labels(line: &str) -> Vec<String> {
    let words = line.split(|character: char| !character.is_ascii_alphanumeric());
    let is_label = |word: &&str| {
        word.strip_prefix(|letter: char| ('A'..='I').contains(&letter))
            .is_some_and(|number| number.parse::<u8>().is_ok_and(|number| (1..=37).contains(&number)))
    };
    words.filter(is_label).map(str::to_owned).collect()
}
