//! Pages that must be complete: the error catalogue, the metric list, the manual's table of contents, the
//! README's feature table.

use std::collections::BTreeSet;
use std::fmt::Write;

use mesh_core::error::Code;
use syn::visit::{self, Visit};

use crate::assert_tidy;
use crate::tree::{File, read, repository, root};

const CATALOGUE: &str = "src/manual/errors.md";

const CATALOGUE_HEAD: &str = "\
# Errors

Every failure carries a stable code, printed as `MESH-nnnn`. The table is generated from the code
(`UPDATE_GOLDEN=1 cargo test --test tidy`) and a test keeps the two equal.

*HTTP* and *gRPC* are the status the caller sees when the failure has to be answered; *flag* is the
response flag of access logs and of the metrics' `response_flags` label, with Envoy's meaning (`-` if
Envoy has none). Codes of `MESH-1xxx` come from the calling side, those of `MESH-2xxx` from the receiving
one.

| Code | Name | HTTP | gRPC | Flag | What to do |
|---|---|---|---|---|---|
";

fn catalogue() -> String {
    let mut page = CATALOGUE_HEAD.to_owned();
    for (name, code) in Code::ALL {
        let (http, grpc) = (code.http_status().as_u16(), grpc_name(code.grpc_status()));
        let (flag, remedy) = (code.response_flag(), code.remedy());
        writeln!(page, "| {code} | `{name}` | {http} | {grpc} | `{flag}` | {remedy} |").unwrap();
    }
    page
}

fn grpc_name(code: i32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(code).ok().and_then(|code| NAMES.get(code)).expect("gRPC has 17 status codes")
}

/// The page is as generated; with `UPDATE_GOLDEN` set it is written first.
#[track_caller]
pub(crate) fn assert_golden(path: &str, generated: &str) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(root().join(path), generated).unwrap();
    }
    assert_tidy(&differing_lines(&read(path), generated), "Run `UPDATE_GOLDEN=1 cargo test --test tidy`.");
}

fn differing_lines(page: &str, wanted: &str) -> Vec<String> {
    let [on_page, wanted] = [page, wanted].map(|text| text.lines().collect::<BTreeSet<_>>());
    let missing = wanted.difference(&on_page).map(|line| format!("missing: {line}"));
    let surplus = on_page.difference(&wanted).map(|line| format!("surplus: {line}"));
    missing.chain(surplus).collect()
}

/// Codes used twice, and codes that tell an operator nothing to do.
fn catalogue_findings(all: &[(&str, u16, &str)]) -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut findings = Vec::new();
    for (name, code, remedy) in all {
        if !seen.insert(code) {
            findings.push(format!("{name}: MESH-{code:04} is taken"));
        }
        if remedy.trim().is_empty() || remedy.contains('|') {
            findings.push(format!("{name}: no remedy that fits a table cell"));
        }
    }
    findings
}

/// String constants named by a telemetry module that the page does not mention.
fn undocumented_metrics(sources: &[&File], page: &str) -> Vec<String> {
    /// What was found, and whether public ones are metrics whatever they are called.
    struct Constants(Vec<String>, bool);
    impl<'ast> Visit<'ast> for Constants {
        fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
            if let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(text), .. }) = &*item.expr {
                // Public names are all those of the telemetry module; elsewhere a metric is known by how it begins.
                let of_mesh = text.value().strip_prefix("mesh_").is_some_and(|rest| !rest.ends_with('_'));
                if of_mesh || matches!(item.vis, syn::Visibility::Public(_)) && self.1 {
                    self.0.push(text.value());
                }
            }
            visit::visit_item_const(self, item);
        }
    }
    let mut constants = Constants(Vec::new(), true);
    for file in sources {
        constants.1 = !file.path.contains("/src/") || file.path.starts_with("mesh-core/src/telemetry/");
        constants.visit_file(&syn::parse_file(&file.text).expect("parsed before"));
    }
    constants.0.into_iter().filter(|name| !page.contains(&format!("`{name}`"))).collect()
}

/// What the README's feature list and the manifest do not agree on. `default` needs no entry.
fn feature_findings(readme: &str, manifest: &str) -> Vec<String> {
    let manifest: toml::Table = manifest.parse().expect("cargo reads it too");
    let declared = manifest.get("features").and_then(toml::Value::as_table).into_iter().flatten();
    let declared: BTreeSet<&str> = declared.map(|(name, _)| name.as_str()).filter(|name| *name != "default").collect();
    let Some(section) = section(readme, "cargo feature").or_else(|| section(readme, "feature")) else {
        return vec!["README.md has no section with `features` in its heading".to_owned()];
    };
    let rows = section.lines().filter_map(|line| entry(line)?.split_once('`'));
    let listed: BTreeSet<&str> = rows.map(|(name, _)| name).filter(|name| *name != "default").collect();
    let missing = declared.difference(&listed).map(|name| format!("README.md does not list the feature `{name}`"));
    let surplus = listed.difference(&declared).map(|name| format!("README.md lists `{name}`, which does not exist"));
    missing.chain(surplus).collect()
}

/// What follows the backquote of a table row or a list item that begins with one.
fn entry(line: &str) -> Option<&str> {
    line.strip_prefix("| `").or_else(|| line.strip_prefix("- `"))
}

/// The text from the heading that contains `word` to the next heading.
fn section<'a>(page: &'a str, word: &str) -> Option<&'a str> {
    let is_heading = |line: &str| line.starts_with('#');
    let (mut start, mut at) = (None, 0);
    for line in page.split_inclusive('\n') {
        match start {
            Some(start) if is_heading(line) => return Some(&page[start..at]),
            None if is_heading(line) && line.to_lowercase().contains(word) => start = Some(at + line.len()),
            _ => {}
        }
        at += line.len();
    }
    start.map(|start| &page[start..])
}

/// Manual pages that rustdoc does not include.
fn orphan_pages(pages: &[&str], index: &str) -> Vec<String> {
    pages.iter().filter(|page| !index.contains(&format!("\"{page}\""))).map(|page| (*page).to_owned()).collect()
}

#[test]
fn the_error_catalogue_is_complete() {
    let all: Vec<_> = Code::ALL.iter().map(|(name, code)| (*name, number(*code), code.remedy())).collect();
    assert_tidy(&catalogue_findings(&all), "Every code is unique and says what an operator does next.");
    assert_golden(CATALOGUE, &catalogue());
}

fn number(code: Code) -> u16 {
    code.to_string().trim_start_matches("MESH-").parse().expect("codes are printed as MESH-nnnn")
}

#[test]
fn every_metric_is_documented() {
    let sources: Vec<_> = repository()
        .iter()
        .filter(|file| file.path.contains("/src/") || file.path.starts_with("src/"))
        .filter(|file| file.rust.is_some() && !file.path.contains("/tests"))
        .collect();
    assert!(sources.iter().any(|file| file.path == "mesh-server/src/debug/prometheus.rs"));
    assert_tidy(&undocumented_metrics(&sources, &read("src/manual/metrics.md")), "Describe it in the metrics page.");
}

#[test]
fn every_manual_page_is_included_in_rustdoc() {
    let pages: Vec<_> = repository().iter().filter_map(|file| file.path.strip_prefix("src/manual/")).collect();
    let pages: Vec<_> = pages.into_iter().filter(|page| page.ends_with(".md")).collect();
    assert!(!pages.is_empty());
    assert_tidy(&orphan_pages(&pages, &read("src/manual/mod.rs")), "Include it in src/manual/mod.rs.");
}

#[test]
fn the_readme_lists_the_features_there_are() {
    assert!(root().join("README.md").exists(), "there is no README.md");
    let found = feature_findings(&read("README.md"), &read("Cargo.toml"));
    assert_tidy(&found, "Keep one entry a feature: - `name`: what it adds.");
}

#[test]
fn gaps_in_pages_are_found() {
    assert!(catalogue_findings(&[("A", 1, "do this"), ("B", 2, "do that")]).is_empty());
    assert_eq!(catalogue_findings(&[("A", 1, "do this"), ("B", 1, "do that")]).len(), 1);
    assert_eq!(catalogue_findings(&[("A", 1, " ")]).len(), 1);
    assert_eq!(differing_lines("a\nb\n", "a\nc\n"), ["missing: c", "surplus: b"]);

    let source = File::new("a.rs", "pub const A: &str = \"a_total\";\nconst B: &str = \"b_total\";");
    assert_eq!(undocumented_metrics(&[&source], "no such metric"), ["a_total"]);
    let elsewhere =
        File::new("mesh-server/src/a.rs", "pub const A: &str = \"a_total\";\nfn f() { const B: &str = \"mesh_b\"; }");
    assert_eq!(undocumented_metrics(&[&elsewhere], "no such metric"), ["mesh_b"]);
    assert!(undocumented_metrics(&[&source], "| `a_total` | counts |").is_empty());

    assert_eq!(orphan_pages(&["a.md", "b.md"], "include_str!(\"a.md\")"), ["b.md"]);
}

#[test]
fn a_wrong_feature_table_is_found() {
    let manifest = "[features]\ndefault = [\"axum\"]\naxum = []\ncli = []";
    let readme =
        |rows: &str| format!("# mesh\n## Features\n| Feature | Adds |\n|---|---|\n{rows}\n## Next\n| `x` | |\n");
    assert!(feature_findings(&readme("| `axum` | a |\n| `cli` | b |"), manifest).is_empty());
    assert!(feature_findings(&readme("| `default` | `axum` |\n| `axum` | a |\n| `cli` | b |"), manifest).is_empty());
    assert!(feature_findings(&readme("- `axum` (default): a\n- `cli`: b"), manifest).is_empty());
    assert_eq!(feature_findings(&readme("| `axum` | a |"), manifest).len(), 1);
    assert_eq!(feature_findings(&readme("| `axum` | a |\n| `cli` | b |\n| `dns` | c |"), manifest).len(), 1);
    assert_eq!(feature_findings("# mesh\n", manifest).len(), 1);
}
