//! The processes: starts them, replaces and kills them, and takes all of them down.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use mesh_control::ca::JoinTokens;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::apps::Result;
use crate::role::Ready;

/// How long a process may take to say that it is ready.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a process may take to finish what it is doing.
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// One running child.
pub(crate) struct Process {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) ready: Ready,
    child: Child,
    // Dropping it tells the child to end.
    stdin: Option<ChildStdin>,
}

impl Process {
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGKILL: no goodbye.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// Whether it has ended by itself or was killed from outside.
    pub(crate) fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks it to drain and end; kills it when it does not.
    pub(crate) async fn stop(&mut self) -> Result<()> {
        drop(self.stdin.take());
        if tokio::time::timeout(STOP_LIMIT, self.child.wait()).await.is_err() {
            self.child.kill().await?;
        }
        Ok(())
    }
}

/// All children and where they keep their things.
pub(crate) struct Fleet {
    dir: tempfile::TempDir,
    pub(crate) manifests: PathBuf,
    pub(crate) plane: Process,
    pub(crate) apps: Vec<Process>,
}

/// Every application process: two of each version of reviews, so that one may die.
const APPS: [(&str, &str); 11] = [
    ("ratings", "v1"),
    ("details", "v1"),
    ("webapp", "v1"),
    ("webapp", "v2"),
    ("reviews", "v1"),
    ("reviews", "v1"),
    ("reviews", "v2"),
    ("reviews", "v2"),
    ("reviews", "v3"),
    ("reviews", "v3"),
    ("productpage", "v1"),
];

impl Fleet {
    /// Starts everything. Without `manifests` the control plane reads a copy of the example's own.
    pub(crate) async fn start(manifests: Option<PathBuf>, listen: SocketAddr) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("bookinfo-").tempdir()?;
        let manifests = match manifests {
            Some(given) => given,
            None => copy_manifests(&dir.path().join("mesh"))?,
        };
        let plane = start_plane(dir.path(), &manifests, any_port()).await?;
        let mut fleet = Self { dir, manifests, plane, apps: Vec::new() };
        let starts = APPS.map(|(name, version)| {
            let listen = if name == "productpage" { listen } else { any_port() };
            fleet.start_app(name, version, listen)
        });
        fleet.apps = futures_util::future::try_join_all(starts).await?;
        Ok(fleet)
    }

    /// Starts one application process.
    pub(crate) async fn start_app(&self, name: &str, version: &str, listen: SocketAddr) -> Result<Process> {
        let state = self.state();
        let account = format!("bookinfo-{name}");
        let token = JoinTokens::open(&state)?.mint("default", &account, Duration::from_secs(60))?;
        let mut command = self_command()?;
        command
            .args(["app", name, "--version", version, "--listen", &listen.to_string()])
            .env("MESH_CONTROL_PLANE", self.plane.ready.address.to_string())
            .env("MESH_ROOT_CERT", state.join("root-cert.pem"))
            .env("MESH_JOIN_TOKEN", token)
            .env("MESH_LABELS", format!("app={name},version={version}"))
            .env("MESH_DEBUG_ADDR", "127.0.0.1:0")
            .env("POD_NAMESPACE", "default")
            .env("SERVICE_ACCOUNT", account);
        spawn(self.dir.path(), name, version, command).await
    }

    /// Starts the control plane again, at the address where it was.
    pub(crate) async fn restart_plane(&mut self) -> Result<()> {
        self.plane = start_plane(self.dir.path(), &self.manifests, self.plane.ready.address).await?;
        Ok(())
    }

    /// Address of productpage.
    pub(crate) fn page(&self) -> SocketAddr {
        self.find("productpage", "v1").expect("productpage is started with the fleet").ready.address
    }

    /// Debug address of the control plane.
    pub(crate) fn plane_debug(&self) -> SocketAddr {
        self.plane.ready.debug.expect("the control plane is started with a debug port")
    }

    /// The first process of an application and version.
    pub(crate) fn find(&self, name: &str, version: &str) -> Option<&Process> {
        self.apps.iter().find(|process| process.name == name && process.version == version)
    }

    /// Starts a new process in the place of each that has ended.
    pub(crate) async fn replace_ended(&mut self) -> Result<usize> {
        let mut replaced = 0;
        for at in 0..self.apps.len() {
            if self.apps[at].ended() {
                let (name, version) = (self.apps[at].name.clone(), self.apps[at].version.clone());
                let listen = if name == "productpage" { self.apps[at].ready.address } else { any_port() };
                self.apps[at] = self.start_app(&name, &version, listen).await?;
                replaced += 1;
            }
        }
        Ok(replaced)
    }

    /// Ends everything, applications first, and removes the working directory.
    pub(crate) async fn stop(mut self) -> Result<usize> {
        let stops = self.apps.iter_mut().map(Process::stop);
        futures_util::future::try_join_all(stops).await?;
        self.plane.stop().await?;
        let left = self.apps.iter_mut().filter_map(|process| (!process.ended()).then_some(())).count();
        self.dir.close()?;
        Ok(left + usize::from(!self.plane.ended()))
    }

    /// The end of every process's log, to explain a failure.
    pub(crate) fn logs(&self) -> String {
        let mut out = String::new();
        let entries = std::fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log")) {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let tail: Vec<_> = text.lines().rev().take(8).collect();
            out += &format!("--- {}\n", path.file_name().unwrap_or_default().to_string_lossy());
            tail.iter().rev().for_each(|line| out += &format!("{line}\n"));
        }
        out
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

fn copy_manifests(to: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bookinfo/mesh"))? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(to.to_owned())
}

async fn start_plane(dir: &Path, manifests: &Path, listen: SocketAddr) -> Result<Process> {
    let mut command = self_command()?;
    command
        .args(["control-plane", "--listen", &listen.to_string(), "--debug", "127.0.0.1:0"])
        .arg("--manifests")
        .arg(manifests)
        .arg("--state")
        .arg(dir.join("state"));
    spawn(dir, "control-plane", "v1", command).await
}

fn self_command() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    // A group of its own: Ctrl-C reaches the parent only, which then takes the children down in order.
    command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    Ok(command)
}

async fn spawn(dir: &Path, name: &str, version: &str, mut command: Command) -> Result<Process> {
    let log = std::fs::File::options().create(true).append(true).open(dir.join(format!("{name}-{version}.log")))?;
    let mut child = command.stderr(log).spawn()?;
    let stdin = child.stdin.take();
    let stdout = child.stdout.take().ok_or("the child has no standard output")?;
    let mut line = String::new();
    let said = tokio::time::timeout(START_LIMIT, BufReader::new(stdout).read_line(&mut line)).await;
    if !matches!(said, Ok(Ok(n)) if n > 0) {
        let log = std::fs::read_to_string(dir.join(format!("{name}-{version}.log"))).unwrap_or_default();
        return Err(format!("{name} {version} did not start:\n{log}").into());
    }
    Ok(Process { name: name.into(), version: version.into(), ready: serde_json::from_str(&line)?, child, stdin })
}
