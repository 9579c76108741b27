//! The dependency policy of `.deny.toml`. `cargo deny` enforces it where it is installed (it finds the
//! file by itself); otherwise the same file is read here for its plainest rules: licences, banned crates,
//! crates that may be there only once. Refuses to know advisories (`advisories.rs`): they change without a commit.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use crate::workspace::{Workspace, run as run_cargo};
use crate::{Failure, Outcome};

pub(crate) const FILE: &str = ".deny.toml";

/// Checks the normal and build dependencies of what is shipped, with every feature on.
pub(crate) fn run(workspace: &Workspace) -> Outcome {
    if has_cargo_deny(workspace) {
        return run_cargo(&mut workspace.cargo(["deny", "--all-features", "check", "licenses", "bans", "sources"]));
    }
    let text = read(workspace)?;
    let policy = Policy::parse(&text).map_err(Failure::Because)?;
    let problems = policy.problems(&dependencies(workspace)?);
    if problems.is_empty() {
        eprintln!("xtask: {FILE}: licences, bans and duplicates are in order (cargo-deny is not installed)");
        return Ok(());
    }
    Err(Failure::Because(format!("{FILE} is violated:\n  {}", problems.join("\n  "))))
}

fn read(workspace: &Workspace) -> Result<String, Failure> {
    std::fs::read_to_string(workspace.root.join(FILE))
        .map_err(|error| Failure::because(format!("cannot read {FILE}: {error}")))
}

/// The advisories that are known and borne.
pub(crate) fn ignored_advisories(workspace: &Workspace) -> Result<Vec<String>, Failure> {
    let table: toml::Table = read(workspace)?.parse().map_err(|error| Failure::because(format!("{FILE}: {error}")))?;
    let name = |entry: &toml::Value| string(entry).or_else(|| entry.get("id").and_then(string));
    Ok(list(table.get("advisories"), "ignore").filter_map(name).collect())
}

fn has_cargo_deny(workspace: &Workspace) -> bool {
    let probe = workspace.cargo(["deny", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    probe.is_ok_and(|status| status.success())
}

/// `cargo tree` rather than `cargo metadata`: the latter also lists what only an optional feature that
/// nobody turns on would bring.
fn dependencies(workspace: &Workspace) -> Result<Vec<Dependency>, Failure> {
    let output = workspace
        .cargo(["tree", "--workspace", "--exclude", "xtask", "--exclude", "mesh-testkit", "--all-features"])
        .args(["--target", "all", "--edges", "normal,build", "--prefix", "none", "--format", "{p}|{l}"])
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| Failure::because(format!("cannot start cargo: {error}")))?;
    if !output.status.success() {
        return Err(Failure::because(format!("cargo tree failed: {}", output.status)));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(Dependency::parse).collect::<BTreeSet<_>>().into_iter().collect())
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Dependency {
    name: String,
    version: String,
    licence: String,
}

impl Dependency {
    /// Reads `name v1.2.3 (source)|licence (*)`, `cargo tree`'s line in the format asked for.
    fn parse(line: &str) -> Option<Self> {
        let (package, licence) = line.split_once('|')?;
        let mut words = package.split_whitespace();
        let name = words.next()?.to_owned();
        let version = words.next()?.trim_start_matches('v').to_owned();
        Some(Self { name, version, licence: licence.trim_end_matches("(*)").trim().to_owned() })
    }
}

/// The part of `.deny.toml` that is checked here, with cargo-deny's meaning.
#[derive(Debug, Default)]
struct Policy {
    licences: BTreeSet<String>,
    exceptions: BTreeMap<String, BTreeSet<String>>,
    banned: BTreeSet<String>,
    only_once: BTreeSet<String>,
}

impl Policy {
    fn parse(text: &str) -> Result<Self, String> {
        let table: toml::Table = text.parse().map_err(|error| format!("{FILE}: {error}"))?;
        let words = |value: Option<&toml::Value>| -> BTreeSet<String> {
            value.and_then(toml::Value::as_array).into_iter().flatten().filter_map(string).collect()
        };
        let licences = table.get("licenses");
        let mut policy = Self { licences: words(licences.and_then(|part| part.get("allow"))), ..Self::default() };
        for exception in list(licences, "exceptions") {
            let name = name_of(exception).ok_or("an exception of [licenses] names no crate")?;
            policy.exceptions.insert(name, words(exception.get("allow")));
        }
        for ban in list(table.get("bans"), "deny") {
            let name = name_of(ban).ok_or("an entry of [bans] deny names no crate")?;
            let duplicates_only = ban.get("deny-multiple-versions").and_then(toml::Value::as_bool) == Some(true);
            if duplicates_only {
                policy.only_once.insert(name)
            } else {
                policy.banned.insert(name)
            };
        }
        Ok(policy)
    }

    fn problems(&self, dependencies: &[Dependency]) -> Vec<String> {
        let mut problems = Vec::new();
        let mut versions = BTreeMap::<&str, BTreeSet<&str>>::new();
        for Dependency { name, version, licence } in dependencies {
            versions.entry(name).or_default().insert(version);
            if self.banned.contains(name) {
                problems.push(format!("{name} {version} is banned; `cargo tree -i {name}` shows who wants it"));
            }
            let excepted = self.exceptions.get(name);
            let allowed = |one: &str| self.licences.contains(one) || excepted.is_some_and(|list| list.contains(one));
            if !licence_allows(licence, &allowed) {
                problems.push(format!("{name} {version} has the licence `{licence}`, which is not on the list"));
            }
        }
        for name in &self.only_once {
            if let Some(found) = versions.get(name.as_str()).filter(|found| found.len() > 1) {
                problems.push(format!("{name} is there more than once: {found:?}"));
            }
        }
        problems
    }
}

fn list<'a>(part: Option<&'a toml::Value>, key: &str) -> impl Iterator<Item = &'a toml::Value> {
    part.and_then(|part| part.get(key)).and_then(toml::Value::as_array).into_iter().flatten()
}

fn name_of(entry: &toml::Value) -> Option<String> {
    string(entry).or_else(|| entry.get("crate").or_else(|| entry.get("name")).and_then(string))
}

fn string(value: &toml::Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

/// Whether an SPDX expression can be satisfied with allowed licences: `AND` binds tighter than `OR`, the
/// old `/` means `OR`, and `X WITH Y` is one licence. Anything it cannot read is not allowed.
fn licence_allows(expression: &str, allowed: &impl Fn(&str) -> bool) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) == Some(true) && rest.is_empty()
}

fn any_of(words: &mut &[&str], allowed: &impl Fn(&str) -> bool) -> Option<bool> {
    let mut verdict = all_of(words, allowed)?;
    while take(words, "OR") {
        verdict |= all_of(words, allowed)?;
    }
    Some(verdict)
}

fn all_of(words: &mut &[&str], allowed: &impl Fn(&str) -> bool) -> Option<bool> {
    let mut verdict = one(words, allowed)?;
    while take(words, "AND") {
        verdict &= one(words, allowed)?;
    }
    Some(verdict)
}

fn one(words: &mut &[&str], allowed: &impl Fn(&str) -> bool) -> Option<bool> {
    if take(words, "(") {
        let verdict = any_of(words, allowed)?;
        return take(words, ")").then_some(verdict);
    }
    let (licence, rest) = words.split_first()?;
    *words = rest;
    if take(words, "WITH") {
        let (exception, rest) = words.split_first()?;
        *words = rest;
        return Some(allowed(&format!("{licence} WITH {exception}")));
    }
    Some(allowed(licence))
}

fn take(words: &mut &[&str], word: &str) -> bool {
    let found = words.first() == Some(&word);
    if found {
        *words = &words[1..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
        [licenses]
        allow = ["MIT", "ISC"]
        exceptions = [{ crate = "odd", allow = ["CC0-1.0"] }]
        [bans]
        deny = [{ crate = "openssl-sys" }, "ring", { crate = "hyper", deny-multiple-versions = true }]
    "#;

    fn dependency(line: &str) -> Dependency {
        Dependency::parse(line).unwrap()
    }

    #[test]
    fn reads_a_line_of_cargo_tree() {
        let read = dependency("rustls v0.23.46|Apache-2.0 OR ISC OR MIT (*)");
        assert_eq!((&*read.name, &*read.version, &*read.licence), ("rustls", "0.23.46", "Apache-2.0 OR ISC OR MIT"));
        assert_eq!(dependency("mesh v0.1.0 (/w/mesh)|MIT").version, "0.1.0");
        assert_eq!(Dependency::parse(""), None);
    }

    #[test]
    fn each_rule_finds_its_violation_and_nothing_else() {
        let policy = Policy::parse(POLICY).unwrap();
        let good = ["a v1.0.0|MIT", "odd v1.0.0|CC0-1.0", "hyper v1.0.0|MIT", "b v1.0.0|MIT", "b v2.0.0|ISC"];
        assert!(policy.problems(&good.map(dependency)).is_empty());

        for bad in ["openssl-sys v0.9.0|MIT", "ring v0.17.0|ISC", "c v1.0.0|GPL-3.0", "c v1.0.0|CC0-1.0", "c v1.0.0|"] {
            assert_eq!(policy.problems(&[dependency(bad)]).len(), 1, "{bad}");
        }
        let twice = policy.problems(&["hyper v0.14.0|MIT", "hyper v1.0.0|MIT"].map(dependency));
        assert_eq!(twice, [r#"hyper is there more than once: {"0.14.0", "1.0.0"}"#]);
    }

    #[test]
    fn licence_expressions_are_read_as_spdx() {
        let allowed = |one: &str| ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].contains(&one);
        let cases = [
            ("MIT", true),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("GPL-3.0 AND (MIT OR ISC)", false),
            ("ISC AND (GPL-3.0 OR MIT)", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("MIT OR", false),
            ("(MIT", false),
            ("MIT ISC", false),
            ("", false),
        ];
        for (expression, expected) in cases {
            assert_eq!(licence_allows(expression, &allowed), expected, "{expression:?}");
        }
    }

    #[test]
    fn a_broken_policy_file_is_an_error() {
        assert!(Policy::parse("[licenses").is_err());
        assert!(Policy::parse("[bans]\ndeny = [{ version = \"1\" }]").is_err());
    }
}
