//! `cargo xtask advisories`: the versions in the lock files against RustSec's advisories. `[advisories] ignore` of
//! `.deny.toml` is heeded, as cargo-deny does. Refuses to know where the database comes from: it changes without a commit.

use std::path::Path;

use rustsec::advisory::{Id, Informational};
use rustsec::report::{Report, Settings};
use rustsec::{Database, Lockfile};

use crate::workspace::Workspace;
use crate::{Failure, Outcome, deny};

/// Fails where a version has a known vulnerability.
pub(crate) fn run(workspace: &Workspace, database: &Path) -> Outcome {
    let known = Database::open(database)
        .map_err(|e| Failure::because(format!("no advisories can be read in {}: {e}", database.display())))?;
    let count = known.iter().count();
    if count == 0 {
        return Err(Failure::because(format!("{} holds no advisory", database.display())));
    }
    let ignore = deny::ignored_advisories(workspace)?;
    let ignore = ignore
        .into_iter()
        .map(|id| id.parse().map_err(|e| Failure::because(format!("{}: [advisories] ignore: {id}: {e}", deny::FILE))));
    let ignore: Vec<Id> = ignore.collect::<Result<_, _>>()?;
    let mut vulnerabilities = Vec::new();
    for lock in workspace.lock_files()? {
        let of = lock.strip_prefix(&workspace.root).unwrap_or(&lock).display();
        let locked = Lockfile::load(&lock).map_err(|e| Failure::because(format!("{of} cannot be read: {e}")))?;
        let found = look(&known, &locked, ignore.clone());
        for warning in found.warnings {
            eprintln!("xtask: {of}: {warning}");
        }
        vulnerabilities.extend(found.vulnerabilities.into_iter().map(|found| format!("{of}: {found}")));
    }
    if vulnerabilities.is_empty() {
        eprintln!("xtask: no version has a known vulnerability ({count} advisories)");
        return Ok(());
    }
    Err(Failure::Because(format!("vulnerable versions:\n  {}", vulnerabilities.join("\n  "))))
}

/// One line each.
struct Found {
    vulnerabilities: Vec<String>,
    /// Crates that nobody maintains, or that can be used unsoundly.
    warnings: Vec<String>,
}

fn look(known: &Database, locked: &Lockfile, ignore: Vec<Id>) -> Found {
    let informational_warnings = vec![Informational::Unmaintained, Informational::Unsound];
    let report = Report::generate(known, locked, &Settings { ignore, informational_warnings, ..Settings::default() });
    let vulnerabilities = report.vulnerabilities.list.iter().map(|found| {
        let (package, about) = (&found.package, &found.advisory);
        format!("{} {}: {} {}", package.name, package.version, about.id, about.title)
    });
    let warnings = report.warnings.values().flatten().map(|warning| {
        let about = warning.advisory.as_ref().map_or(String::new(), |about| format!(": {} {}", about.id, about.title));
        let (package, kind) = (&warning.package, warning.kind.as_str());
        format!("{} {} is {kind}{about}", package.name, package.version)
    });
    Found { vulnerabilities: vulnerabilities.collect(), warnings: warnings.collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database(extra: &str, patched: &str) -> Database {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("crates/holey");
        std::fs::create_dir_all(&folder).unwrap();
        let text = format!(
            "```toml\n[advisory]\nid = \"RUSTSEC-2020-0001\"\npackage = \"holey\"\ndate = \"2020-01-01\"\n{extra}\n\
             [versions]\npatched = [{patched}]\n```\n\n# A hole\n\nIt has one.\n"
        );
        std::fs::write(folder.join("RUSTSEC-2020-0001.md"), text).unwrap();
        Database::open(home.path()).unwrap()
    }

    #[test]
    fn a_vulnerable_version_is_found_until_it_is_patched_or_ignored() {
        let locked = |version: &str| -> Lockfile {
            let source = "registry+https://github.com/rust-lang/crates.io-index";
            let text = format!(
                "version = 4\n\n[[package]]\nname = \"holey\"\nversion = \"{version}\"\nsource = \"{source}\"\n"
            );
            text.parse().unwrap()
        };
        let known = database("", "\">= 1.2.0\"");
        let found = look(&known, &locked("1.1.9"), Vec::new());
        assert_eq!(found.vulnerabilities, ["holey 1.1.9: RUSTSEC-2020-0001 A hole"]);
        assert!(look(&known, &locked("1.2.0"), Vec::new()).vulnerabilities.is_empty());
        let id = "RUSTSEC-2020-0001".parse().unwrap();
        assert!(look(&known, &locked("1.1.9"), vec![id]).vulnerabilities.is_empty());

        let unmaintained = database("informational = \"unmaintained\"", "");
        let found = look(&unmaintained, &locked("1.1.9"), Vec::new());
        assert!(found.vulnerabilities.is_empty());
        assert_eq!(found.warnings, ["holey 1.1.9 is unmaintained: RUSTSEC-2020-0001 A hole"]);
    }
}
