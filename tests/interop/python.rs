//! A Python environment with the pinned peers, made once under the target directory and used again.
//!
//! Nothing is skipped: what cannot be installed fails the test with what pip said.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const REQUIREMENTS: &str = include_str!("requirements.txt");

/// The environment's interpreter.
pub(crate) fn interpreter() -> &'static Path {
    static INTERPRETER: OnceLock<PathBuf> = OnceLock::new();
    INTERPRETER.get_or_init(|| {
        // Cargo's folder for test data is `<target>/tmp`.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("interop");
        prepare(&folder).unwrap_or_else(|reason| {
            panic!("the interop tests need their peers from PyPI and do not skip without them: {reason}")
        })
    })
}

/// A script of these tests, to be started with a bootstrap in gRPC's format. It ends with its handle.
pub(crate) fn script(name: &str, bootstrap: &serde_json::Value) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(interpreter());
    command
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop").join(name))
        .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string())
        .env_remove("GRPC_XDS_BOOTSTRAP")
        // A proxy of the machine has no business with loopback.
        .env("no_grpc_proxy", "127.0.0.1,localhost")
        .kill_on_drop(true);
    command
}

/// The stock Envoy's binary.
pub(crate) fn envoy() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let find = "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy')";
        let path = run(Command::new(interpreter()).args(["-c", find])).unwrap();
        PathBuf::from(path.trim_end())
    })
}

fn prepare(folder: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    // Two test runs may share a target directory.
    let lock = File::create(folder.join("lock")).map_err(|error| error.to_string())?;
    lock.lock().map_err(|error| error.to_string())?;

    let environment = folder.join("python");
    let interpreter = environment.join("bin").join("python");
    let wanted = format!("{}{REQUIREMENTS}", run(Command::new("python3").arg("--version"))?);
    let stamp = environment.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) && interpreter.exists() {
        return Ok(interpreter);
    }
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))?;
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/requirements.txt");
    run(Command::new(&interpreter)
        .args(["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--only-binary", ":all:"])
        .arg("--requirement")
        .arg(requirements))?;
    fs::write(&stamp, wanted).map_err(|error| error.to_string())?;
    Ok(interpreter)
}

/// Runs to the end and gives what was printed, or a message with both streams.
fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        return Err(format!("{command:?}: {}\n{stdout}{stderr}", output.status));
    }
    Ok(text(&output.stdout))
}

#[test]
fn what_cannot_be_installed_is_an_error_with_the_tools_own_words() {
    interpreter();
    let refused = run(Command::new(interpreter()).args(["-m", "pip", "install", "--no-index", "no-such-package"]));
    assert!(refused.unwrap_err().contains("No matching distribution found for no-such-package"));
    let absent = run(&mut Command::new("no-such-python"));
    assert!(absent.unwrap_err().contains("cannot start"));
}
