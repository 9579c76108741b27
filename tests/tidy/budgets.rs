//! How large things may grow, and that every module says what it is.

use crate::assert_tidy;
use crate::tree::{File, repository};

/// Lines of a file. Inline tests do not count; a `tests.rs` does.
const FILE_LINES: usize = 800;
/// Lines of a function, from `fn` to the closing brace. Functions of inline test modules are free.
const FUNCTION_LINES: usize = 80;

fn findings(file: &File) -> Vec<String> {
    let Some(rust) = &file.rust else { return Vec::new() };
    let mut findings = Vec::new();
    let lines = file.text.lines().count() - rust.test_line_count();
    if lines > FILE_LINES {
        findings.push(format!("{}: {lines} lines, the budget is {FILE_LINES}", file.path));
    }
    // What a `tests.rs` tests stands in the file beside it.
    let headed = file.text.starts_with("//!") || file.text.starts_with("#![doc = include_str!");
    if !headed && file.name() != "tests.rs" {
        findings.push(format!("{}: does not begin with `//!`", file.path));
    }
    for function in rust.functions.iter().filter(|function| !rust.is_test_line(function.line)) {
        if function.length > FUNCTION_LINES {
            let (path, line, name, length) = (&file.path, function.line, &function.name, function.length);
            findings.push(format!("{path}:{line}: {name} has {length} lines, the budget is {FUNCTION_LINES}"));
        }
    }
    findings
}

#[test]
fn files_and_functions_stay_within_their_budgets() {
    let found: Vec<_> = repository().iter().flat_map(findings).collect();
    assert_tidy(&found, "Split by what a reader looks for; begin each module with what it is and refuses to know.");
}

#[test]
fn what_is_over_budget_is_found() {
    let function = |lines: usize| format!("fn f() {{\n{}}}\n", "    g();\n".repeat(lines - 2));
    let count = |text: &str| findings(&File::new("a/src/lib.rs", &format!("//! a\n{text}"))).len();

    assert_eq!(count(&function(FUNCTION_LINES)), 0);
    assert_eq!(count(&function(FUNCTION_LINES + 1)), 1);
    assert_eq!(count(&format!("trait T {{\n{}}}", function(FUNCTION_LINES + 1))), 1);
    assert_eq!(count(&format!("#[cfg(test)]\nmod tests {{\n{}}}", function(FUNCTION_LINES + 1))), 0);

    assert_eq!(count(&"// line\n".repeat(FILE_LINES - 1)), 0);
    assert_eq!(count(&"// line\n".repeat(FILE_LINES)), 1);
    assert_eq!(count(&format!("#[cfg(test)]\nmod tests {{\n{}}}", "// line\n".repeat(FILE_LINES))), 0);

    assert_eq!(findings(&File::new("a/src/lib.rs", "mod b;")).len(), 1, "no header");
    assert!(findings(&File::new("a/src/b/tests.rs", "use super::*;")).is_empty());
    assert!(findings(&File::new("README.md", "no Rust")).is_empty());
}
