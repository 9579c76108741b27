//! Tests that the manual names are there: a table of proofs with a name that nobody bears proves nothing.

use std::collections::BTreeSet;

use crate::assert_tidy;
use crate::tree::{read, repository};

const PAGE: &str = "src/manual/testing.md";

/// What rows of tables name as tests and files, and there is not. `…` stands for any part of a name.
fn missing(page: &str, functions: &BTreeSet<&str>, paths: &[&str]) -> Vec<String> {
    let rows = page.lines().filter(|line| line.starts_with('|'));
    let names = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    let is_there = |name: &str| match name {
        file if file.ends_with(".rs") => paths.iter().any(|path| ends_with(path, file)),
        folder if folder.contains('/') => paths.iter().any(|path| path.contains(folder)),
        test if test.contains('…') || test.matches('_').count() > 2 => functions.iter().any(|f| fits(f, test)),
        _ => true,
    };
    names.filter(|name| !is_there(name)).map(str::to_owned).collect()
}

fn ends_with(path: &str, file: &str) -> bool {
    path.strip_suffix(file).is_some_and(|rest| rest.is_empty() || rest.ends_with('/'))
}

/// Whether a name has the parts of a pattern in their order.
fn fits(name: &str, pattern: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('…') else { return name == pattern };
    let (middle, end) = rest.rsplit_once('…').unwrap_or(("", rest));
    let inner = name.strip_prefix(start).and_then(|name| name.strip_suffix(end));
    let after = |rest: &str, part: &str| rest.find(part).map(|at| at + part.len());
    inner.is_some_and(|inner| {
        middle.split('…').try_fold(inner, |rest, part| Some(&rest[after(rest, part)?..])).is_some()
    })
}

/// Names of functions in the text of a program.
fn functions(text: &str) -> impl Iterator<Item = &str> {
    text.split("fn ").skip(1).filter_map(|rest| rest.split(['(', '<']).next())
}

#[test]
fn the_tests_that_the_manual_names_are_there() {
    let rust = repository().iter().filter(|file| file.rust.is_some());
    let functions: BTreeSet<_> = rust.flat_map(|file| functions(&file.text)).collect();
    let paths: Vec<_> = repository().iter().map(|file| file.path.as_str()).collect();
    assert_tidy(&missing(&read(PAGE), &functions, &paths), "Name the test that there is, or write it.");
}

#[test]
fn a_name_that_nobody_bears_is_found() {
    let functions = functions("async fn it_holds_x_under_load_r9() {}\nfn a57_b() {}").collect();
    let paths = ["tests/sim/skew.rs"];
    let row = |name: &str| missing(&format!("`not_in_a_row_x`\n| R9 | `{name}` |\n"), &functions, &paths);
    for there in ["it_holds_x_under_load_r9", "it_…_r9", "a57_…", "…_r9", "sim/skew.rs", "tests/sim", "MESH_SEED"]
    {
        assert!(row(there).is_empty(), "{there}");
    }
    for not in ["it_holds_y_under_load_r9", "it_…_r8", "a58_…", "kew.rs", "tests/nothing", "a_b_c_d"] {
        assert_eq!(row(not), [not]);
    }
}
