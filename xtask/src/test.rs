//! `cargo xtask test`: the tiers in order, and one closing line.

use clap::ValueEnum;

use crate::tally::{self, Tally};
use crate::workspace::{FEATURES, Workspace};
use crate::{Failure, Outcome, examples};

/// A tier of tests; each but `unit` and `examples` is one test target of the root package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Inline tests, doctests, the crates' own `tests/` folders, tidy.
    Unit,
    /// The product over loopback.
    Product,
    /// The gRPC xDS cases and the security inputs.
    Conformance,
    /// Peers that nobody here wrote.
    Interop,
    /// A simulated network.
    Sim,
    /// Every example with `--smoke`.
    Examples,
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Product => "product",
            Self::Conformance => "conformance",
            Self::Interop => "interop",
            Self::Sim => "sim",
            Self::Examples => "examples",
        }
    }

    fn run(self, workspace: &Workspace, args: &[String]) -> Result<Option<Tally>, Failure> {
        match self {
            Self::Unit => unit(workspace, args).map(Some),
            Self::Examples => examples::run(workspace),
            Self::Product | Self::Conformance | Self::Interop | Self::Sim => {
                if !workspace.root_targets("test").contains(&self.name()) {
                    return Ok(None);
                }
                cargo_test(workspace, &["--test", self.name()], args).map(Some)
            }
        }
    }
}

/// Runs `only`, or every tier; the last line printed is `N passed, N failed`.
pub(crate) fn run(workspace: &Workspace, only: Option<Tier>, args: &[String]) -> Outcome {
    let tiers = Tier::value_variants().iter().filter(|tier| only.is_none_or(|only| only == **tier));
    let mut total = Tally::default();
    let mut closing = Vec::new();
    for tier in tiers {
        let tally = tier.run(workspace, args)?;
        let result = tally.map_or_else(|| "no tests in this tier yet".to_owned(), |tally| tally.to_string());
        closing.push(format!("{:<12} {result}", tier.name()));
        total += tally.unwrap_or_default();
    }
    println!();
    closing.iter().for_each(|line| println!("{line}"));
    println!("{total}");
    if total.failed == 0 { Ok(()) } else { Err(Failure::Told) }
}

fn unit(workspace: &Workspace, args: &[String]) -> Result<Tally, Failure> {
    let mut selection = vec!["--lib", "--bins"];
    let tidy = workspace.root_targets("test").into_iter().filter(|name| *name == "tidy");
    for name in tidy.chain(workspace.member_tests()) {
        selection.extend(["--test", name]);
    }
    let mut tally = cargo_test(workspace, &selection, args)?;
    tally += cargo_test(workspace, &["--doc"], args)?;
    tally += interleavings(workspace, args)?;
    Ok(tally)
}

/// Every order of threads: one small crate, whose atomics work nowhere else with this feature.
fn interleavings(workspace: &Workspace, args: &[String]) -> Result<Tally, Failure> {
    let selection = ["test", "--package", "mesh-core", "--features", "_loom", "--test", "interleavings"];
    let mut command = workspace.cargo(selection);
    if !args.is_empty() {
        command.arg("--").args(args);
    }
    tally::run(&mut command)
}

// Always the whole workspace: a narrower selection would resolve other features and compile it anew.
fn cargo_test(workspace: &Workspace, selection: &[&str], args: &[String]) -> Result<Tally, Failure> {
    let mut command = workspace.cargo(["test", "--workspace", "--no-fail-fast", "--features", FEATURES]);
    command.args(selection);
    if !args.is_empty() {
        command.arg("--").args(args);
    }
    tally::run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_run_from_the_cheapest_to_the_dearest_under_their_own_names() {
        let names: Vec<_> = Tier::value_variants().iter().map(|tier| tier.name()).collect();
        assert_eq!(names, ["unit", "product", "conformance", "interop", "sim", "examples"]);
        for tier in Tier::value_variants() {
            assert_eq!(Tier::from_str(tier.name(), false), Ok(*tier));
        }
    }
}
