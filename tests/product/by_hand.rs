//! README's section "By hand": what its `cargo run` commands start (the binary, two examples), in three
//! processes. That cargo resolves those commands is the tidy tests' business.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::support::{eventually, plain_get};

pub(crate) const MESH: &str = env!("CARGO_BIN_EXE_mesh");

/// Builds the examples where the binary was built; gives their directory.
pub(crate) async fn examples() -> PathBuf {
    let profile = Path::new(MESH).parent().unwrap();
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).arg("build").arg("--target-dir").arg(profile.parent().unwrap());
    // The features of the whole workspace, as the tests have them: nothing is compiled a second time.
    let features = if cfg!(feature = "dns") { "mesh/cli,mesh/dns" } else { "mesh/cli" };
    cargo.args(["--workspace", "--features", features, "--example", "hello_server", "--example", "hello_client"]);
    cargo.args(["--example", "bookinfo"]);
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    let built = cargo.output().await.unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    profile.join("examples")
}

/// A running process; killed when dropped.
pub(crate) fn spawn(command: &mut Command) -> Child {
    command.kill_on_drop(true).stdin(Stdio::null()).spawn().unwrap()
}

/// `mesh control-plane` on free ports.
pub(crate) struct Plane {
    pub(crate) process: Child,
    pub(crate) state: PathBuf,
    pub(crate) address: String,
    pub(crate) debug: SocketAddr,
}

impl Plane {
    async fn start(manifests: &Path, state: &Path) -> Self {
        Self::start_with(manifests, state, &[]).await
    }

    /// The same with further arguments.
    pub(crate) async fn start_with(manifests: &Path, state: &Path, more: &[&str]) -> Self {
        let mut command = Command::new(MESH);
        command.args(["control-plane", "--listen", "127.0.0.1:0", "--debug", "127.0.0.1:0", "-o", "json"]);
        command.args(more).arg("--manifests").arg(manifests).arg("--state").arg(state).stdout(Stdio::piped());
        let mut process = spawn(&mut command);
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("a line once it serves");
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert!(Path::new(ready["root_cert"].as_str().unwrap()).is_file());
        let text = |name: &str| ready[name].as_str().unwrap().to_owned();
        Self { process, state: state.to_owned(), address: text("address"), debug: text("debug").parse().unwrap() }
    }

    /// Runs a program as README has it: `eval` of the token's variables, then the program.
    pub(crate) fn joined(&self, account: &str, program: &Path) -> Command {
        let script = r#"variables="$("$0" cert token --state "$1" --control-plane "$2" --service-account "$3")" || exit 3
            eval "$variables"
            exec "$4""#;
        let mut command = Command::new("sh");
        command.args(["-c", script, MESH]).arg(&self.state).args([&self.address, account]).arg(program);
        command
    }

    pub(crate) async fn registrations(&self) -> Vec<Value> {
        let (_, body) = plain_get(self.debug, "/registrations").await.unwrap();
        serde_json::from_str(&body).unwrap()
    }
}

/// Whether the process was there to be sent a signal.
pub(crate) async fn signal(process: &Child, name: &str) -> bool {
    let pid = process.id().expect("it has not been waited for").to_string();
    Command::new("kill").args([name, &pid]).status().await.unwrap().success()
}

#[tokio::test]
async fn the_readmes_three_terminals() {
    let examples = examples().await;
    let home = tempfile::tempdir().unwrap();
    let manifests = home.path().join("manifests");
    std::fs::create_dir(&manifests).unwrap();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bookinfo/mesh")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, manifests.join(path.file_name().unwrap())).unwrap();
    }
    let mut plane = Plane::start(&manifests, &home.path().join("state")).await;

    let mut server = spawn(&mut plane.joined("hello", &examples.join("hello_server")));
    let listed = eventually("hello_server is registered", || async { plane.registrations().await.pop() }).await;
    assert_eq!((&listed["service"], &listed["service_port"]), (&"hello".into(), &8080.into()));
    assert_eq!(listed["service_account"], "hello");

    let Output { status, stdout, .. } =
        plane.joined("caller", &examples.join("hello_client")).stderr(Stdio::inherit()).output().await.unwrap();
    assert!(status.success());
    assert_eq!(String::from_utf8_lossy(&stdout), "hello, spiffe://cluster.local/ns/default/sa/caller\n");

    assert!(signal(&server, "-TERM").await);
    assert_eq!(server.wait().await.unwrap().code(), Some(0));
    assert!(plane.registrations().await.is_empty(), "it took its leave before it went");
    let address: SocketAddr = listed["address"].as_str().unwrap().parse().unwrap();
    assert!(plain_get(address, "/").await.is_err(), "nobody listens there any more");

    assert!(signal(&plane.process, "-TERM").await);
    assert_eq!(plane.process.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn what_cannot_be_done_is_told_and_ends_with_2() {
    let home = tempfile::tempdir().unwrap();
    let nowhere = home.path().join("nowhere");
    let mut command = Command::new(MESH);
    command.args(["control-plane", "--listen", "127.0.0.1:0", "--debug", "127.0.0.1:0", "-o", "json"]);
    let output = command.arg("--manifests").arg(&nowhere).arg("--state").arg(home.path()).output().await.unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(2), true), "{told}");
    assert!(told.contains("nowhere"), "{told}");

    let state = home.path().join("state");
    let cert = async |args: &[&str]| {
        let output = Command::new(MESH).arg("cert").args(args).arg("--state").arg(&state).output().await.unwrap();
        (output.status.code(), output.stdout.is_empty(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // Where no control plane keeps its state nobody takes a token, and nothing is made.
    let (code, silent, told) = cert(&["token", "--service-account", "a"]).await;
    assert!((code, silent) == (Some(2), true) && told.contains("no control plane keeps its state"), "{told}");
    // Nor has anybody roots that others could trust.
    let (code, silent, told) = cert(&["bundle"]).await;
    assert!((code, silent) == (Some(2), true) && told.contains("no control plane keeps its state"), "{told}");
    assert!(!state.exists());
    let out = home.path().join("certs");
    let issue = ["issue", "--service-account", "a", "--out", out.to_str().unwrap()];
    let (code, _, told) = cert(&issue).await;
    assert!(code == Some(0) && told.contains("a new one was made there"), "{told}");
    let (code, _, told) = cert(&issue).await;
    assert!(code == Some(0) && !told.contains("a new one"), "the control: {told}");
    let (code, silent, told) = cert(&["token", "--service-account", "not/a/name"]).await;
    assert!((code, silent) == (Some(2), true) && told.contains("not/a/name"), "{told}");
    // Nothing is cut or raised without a word.
    for (args, bounds) in [
        (["token", "--service-account", "a", "--ttl", "6000", "--namespace", "b"], "1..=600"),
        (["issue", "--service-account", "a", "--ttl", "2", "--out", "b"], "300..=86400"),
    ] {
        let (code, silent, told) = cert(&args).await;
        assert!((code, silent) == (Some(2), true) && told.contains(bounds), "{told}");
    }
    assert_eq!(cert(&["token", "--service-account", "a", "--ttl", "600"]).await.0, Some(0), "the control");
}

#[tokio::test]
async fn a_root_is_changed_by_hand_and_a_step_that_is_too_early_ends_with_1() {
    let home = tempfile::tempdir().unwrap();
    let (state, out) = (home.path().join("state"), home.path().join("certs"));
    let cert = async |args: &[&str]| {
        let output = Command::new(MESH).arg("cert").args(args).arg("--state").arg(&state).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let issued = cert(&["issue", "--service-account", "edge", "--out", out.to_str().unwrap()]).await;
    assert_eq!(issued.0, Some(0), "{issued:?}");
    let bundle = cert(&["bundle"]).await;
    let map: Value = serde_json::from_str(&bundle.1).unwrap();
    let keys = &map["trust_domains"]["cluster.local"]["keys"];
    assert_eq!((bundle.0, keys.as_array().map(Vec::len), &keys[0]["use"]), (Some(0), Some(1), &"x509-svid".into()));
    let elsewhere = cert(&["bundle", "--trust-domain", "elsewhere.test"]).await;
    assert!(elsewhere.0 == Some(2) && elsewhere.1.is_empty(), "the roots of another domain: {elsewhere:?}");
    let renamed = ["bundle", "--trust-domain", "new.test", "--trust-domain-alias", "cluster.local"];
    let renamed = cert(&renamed).await;
    assert!(renamed.0 == Some(0) && renamed.1.contains("new.test"), "{renamed:?}");
    let step = |(code, stdout, stderr): (Option<i32>, String, String)| {
        assert_eq!(code, Some(0), "{stderr}");
        let state: Value = serde_json::from_str(&stdout).unwrap();
        (state["step"].as_str().unwrap().to_owned(), state["trusted"].as_array().unwrap().len())
    };
    assert_eq!(step(cert(&["rotate-root", "-o", "json"]).await), ("added".to_owned(), 2));
    let (code, stdout, stderr) = cert(&["rotate-root"]).await;
    assert!(code == Some(1) && stdout.is_empty() && stderr.contains("--force"), "{code:?} {stdout} {stderr}");
    let (code, stdout, _) = cert(&["rotate-root", "--status"]).await;
    assert!(code == Some(0) && stdout.contains("the old one signs"), "{stdout}");
    // Who reads no more of the answer has it made all the same.
    let mut unread = Command::new(MESH);
    unread.args(["cert", "rotate-root", "--force", "--state"]).arg(&state).stdout(Stdio::piped());
    let mut unread = unread.stderr(Stdio::piped()).spawn().unwrap();
    drop(unread.stdout.take());
    let ended = unread.wait_with_output().await.unwrap();
    assert_eq!(ended.status.code(), Some(0), "{}", String::from_utf8_lossy(&ended.stderr));
    assert_eq!(step(cert(&["rotate-root", "--status", "-o", "json"]).await), ("switched".to_owned(), 2));
    assert_eq!(step(cert(&["rotate-root", "--force", "-o", "json"]).await), ("idle".to_owned(), 1));
    assert_eq!(cert(&["rotate-root", "--trust-domain", "other.test"]).await.0, Some(2), "another domain's directory");
}
