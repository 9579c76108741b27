//! `cargo xtask bench [NAME] [ARGS]`: bench targets of the root package, and [`PEERS`], in release. Stdout belongs to the
//! bench, so that `-o json` can be piped.

use crate::workspace::{Workspace, run as run_cargo};
use crate::{Failure, Outcome};

/// Runs one bench with its arguments, or all if the first argument is not a name.
pub(crate) fn run(workspace: &Workspace, args: &[String]) -> Outcome {
    let mut known = workspace.root_targets("bench");
    known.push(PEERS);
    let (chosen, args) = choose(&known, args).map_err(Failure::Because)?;
    for name in chosen {
        let mut command = match name {
            PEERS => workspace.cargo(["run", "--release", "--package", "mesh-peers"]),
            _ => workspace.cargo(["bench", "--package", "mesh", "--bench", name]),
        };
        if !args.is_empty() {
            command.arg("--").args(args);
        }
        run_cargo(&mut command)?;
    }
    Ok(())
}

/// The bench in a package of its own: what we are measured against is not built with the root's tests and examples.
const PEERS: &str = "peers";

fn choose<'a>(known: &[&'a str], args: &'a [String]) -> Result<(Vec<&'a str>, &'a [String]), String> {
    let list = || if known.is_empty() { "none yet".to_owned() } else { known.join(", ") };
    match args.split_first() {
        Some((name, rest)) if !name.starts_with('-') => {
            let found = known.iter().find(|known| *known == name);
            found.map(|name| (vec![*name], rest)).ok_or_else(|| format!("no bench `{name}`; there is: {}", list()))
        }
        _ if known.is_empty() => Err("no bench targets yet".to_owned()),
        _ => Ok((known.to_vec(), args)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_chooses_and_the_rest_is_passed_on() {
        let args = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let known = ["overhead", "pick"];
        let given = args(&["overhead", "-o", "json"]);
        assert_eq!(choose(&known, &given), Ok((vec!["overhead"], &given[1..])));
        let given = args(&["-o", "json"]);
        assert_eq!(choose(&known, &given), Ok((known.to_vec(), &given[..])));
        assert_eq!(choose(&known, &[]), Ok((known.to_vec(), &[][..])));
        assert_eq!(choose(&known, &args(&["over"])), Err("no bench `over`; there is: overhead, pick".to_owned()));
        assert_eq!(choose(&[], &[]), Err("no bench targets yet".to_owned()));
    }
}
