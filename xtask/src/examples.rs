//! Builds every example and runs each with `--smoke`: an example asserts what it claims and exits
//! non-zero otherwise.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Failure;
use crate::tally::Tally;
use crate::workspace::{FEATURES, Workspace, announce};

/// An example that has not ended by then hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// What an example is given beside `--smoke`. Examples that are not listed need nothing more.
const EXTRA_ARGS: &[(&str, &[&str])] = &[];

/// Runs them all; `None` if there are none.
pub(crate) fn run(workspace: &Workspace) -> Result<Option<Tally>, Failure> {
    let names = workspace.root_targets("example");
    if names.is_empty() {
        return Ok(None);
    }
    let built = build(workspace)?;
    let mut tally = Tally::default();
    for name in names {
        let executable = built.iter().find(|(built, _)| built == name).map(|(_, path)| path);
        let verdict = match executable {
            Some(path) => smoke(workspace, name, path),
            None => Err("was not built".to_owned()),
        };
        match &verdict {
            Ok(()) => println!("example {name} ... ok"),
            Err(reason) => println!("example {name} ... FAILED: {reason}"),
        }
        tally += Tally::one(verdict.is_ok());
    }
    Ok(Some(tally))
}

/// The examples' names and executables. Those that do not compile are missing; why is on the screen.
fn build(workspace: &Workspace) -> Result<Vec<(String, PathBuf)>, Failure> {
    let mut command = workspace.cargo(["build", "--workspace", "--examples", "--keep-going", "--features", FEATURES]);
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    announce(&command);
    let output = command.output().map_err(|error| Failure::because(format!("cannot start cargo: {error}")))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(executable).collect())
}

/// Name and path if this message of cargo says that an example was built.
fn executable(message: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(message).ok()?;
    if message["target"]["kind"][0] != "example" {
        return None;
    }
    Some((message["target"]["name"].as_str()?.to_owned(), message["executable"].as_str()?.into()))
}

fn smoke(workspace: &Workspace, name: &str, executable: &PathBuf) -> Result<(), String> {
    let extra = EXTRA_ARGS.iter().find(|(listed, _)| *listed == name).map_or(&[][..], |(_, args)| args);
    let mut command = Command::new(executable);
    command.current_dir(&workspace.root).arg("--smoke").args(extra).stdin(Stdio::null());
    announce(&command);
    let mut child = command.spawn().map_err(|error| error.to_string())?;
    match wait(&mut child, PATIENCE).map_err(|error| error.to_string())? {
        Some(status) if status.success() => Ok(()),
        Some(status) => Err(status.to_string()),
        None => Err(format!("still running after {} s", PATIENCE.as_secs())),
    }
}

/// Waits until the child ends; one that outlives `patience` is killed and gives `None`.
fn wait(child: &mut Child, patience: Duration) -> std::io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        // The standard library has no wait with a time limit.
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_messages_of_built_examples_name_an_executable() {
        let built =
            r#"{"reason":"compiler-artifact","target":{"kind":["example"],"name":"bookinfo"},"executable":"/t/b"}"#;
        assert_eq!(executable(built), Some(("bookinfo".to_owned(), PathBuf::from("/t/b"))));
        let library = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"mesh"},"executable":null}"#;
        assert_eq!(executable(library), None);
        assert_eq!(executable(r#"{"reason":"build-finished","success":true}"#), None);
        assert_eq!(executable("not JSON"), None);
    }

    #[test]
    fn a_child_without_end_is_killed() {
        // `rustc -` waits for a program on its input.
        let mut endless = Command::new("rustc");
        let mut child = endless.arg("-").stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        assert!(wait(&mut child, Duration::from_millis(100)).unwrap().is_none());
        assert!(child.try_wait().unwrap().is_some(), "killed and reaped");
    }
}
