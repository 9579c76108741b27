//! The processes: starts them, replaces and kills them, and takes all of them down.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
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

    /// One line about it, for people.
    pub(crate) fn line(&self) -> String {
        let (name, version, pid) = (&self.name, &self.version, self.pid().unwrap_or_default());
        let debug = self.ready.debug.map(|debug| format!("http://{debug}/")).unwrap_or_default();
        format!("{name:<14} {version} pid {pid:<8} {debug}")
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
    // In this order: dropped children are killed before their directory goes.
    pub(crate) apps: Vec<Process>,
    pub(crate) plane: Process,
    home: Home,
}

/// The working directory: state, logs and manifests; removed when dropped.
pub(crate) struct Home {
    dir: tempfile::TempDir,
    manifests: PathBuf,
}

impl Home {
    /// Reads the manifests of `given`, or of the example, and leaves them as they are: the control plane
    /// watches a copy.
    pub(crate) fn with_copy(given: Option<&Path>) -> Result<Self> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bookinfo/mesh");
        let from = given.unwrap_or(&own);
        let home = Self::watching(PathBuf::new())?;
        let manifests = home.dir.path().join("mesh");
        copy_manifests(from, &manifests)
            .map_err(|error| format!("cannot copy the manifests of {}: {error}", from.display()))?;
        Ok(Self { manifests, ..home })
    }

    /// The control plane watches `manifests` where they are.
    pub(crate) fn watching(manifests: PathBuf) -> Result<Self> {
        Ok(Self { dir: tempfile::Builder::new().prefix("bookinfo-").tempdir()?, manifests })
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }
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
    /// Starts everything. Dropping the future kills what it has started.
    pub(crate) async fn start(home: Home, listen: SocketAddr) -> Result<Self> {
        let plane = start_plane(&home, any_port(), any_port()).await?;
        let address = plane.ready.address;
        let starts = APPS.map(|(name, version)| {
            let listen = if name == "productpage" { listen } else { any_port() };
            start_app(&home, address, name, version, listen)
        });
        let apps = try_join_all(starts).await?;
        Ok(Self { apps, plane, home })
    }

    /// Starts the control plane again, at the addresses where it was.
    pub(crate) async fn restart_plane(&mut self) -> Result<()> {
        self.plane = start_plane(&self.home, self.plane.ready.address, self.plane_debug()).await?;
        Ok(())
    }

    /// What the control plane watches.
    pub(crate) fn manifests(&self) -> &Path {
        &self.home.manifests
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

    /// Starts a new process in the place of each that has ended, the control plane first; says which, or why
    /// not. May be dropped at any time.
    pub(crate) async fn replace_ended(&mut self) -> Vec<Result<String>> {
        let mut done = Vec::new();
        if self.plane.ended() {
            match self.restart_plane().await {
                Ok(()) => done.push(Ok(self.plane.line())),
                // No application becomes ready without it.
                Err(error) => return vec![Err(error)],
            }
        }
        let Self { apps, plane, home } = self;
        let (home, address) = (&*home, plane.ready.address);
        let replaced = join_all(apps.iter_mut().filter_map(|app| app.ended().then_some(app)).map(|app| async move {
            let listen = if app.name == "productpage" { app.ready.address } else { any_port() };
            *app = start_app(home, address, &app.name, &app.version, listen).await?;
            Ok(app.line())
        }));
        tokio::select! {
            biased;
            replaced = replaced => done.extend(replaced),
            // Those that wait for it would wait in vain: the next call begins with it.
            _ = plane.child.wait() => {}
        }
        done
    }

    /// Ends everything, applications first, and removes the working directory; says how many processes are left.
    pub(crate) async fn stop(mut self) -> Result<usize> {
        let stops = self.apps.iter_mut().map(Process::stop);
        try_join_all(stops).await?;
        self.plane.stop().await?;
        let left = self.apps.iter_mut().filter_map(|process| (!process.ended()).then_some(())).count();
        let left = left + usize::from(!self.plane.ended());
        self.home.dir.close()?;
        Ok(left)
    }

    /// The end of every process's log, to explain a failure.
    pub(crate) fn logs(&self) -> String {
        let mut out = String::new();
        let entries = std::fs::read_dir(self.home.dir.path()).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log")) {
            out += &format!("--- {}\n{}\n", path.file_name().unwrap_or_default().to_string_lossy(), tail(&path));
        }
        out
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

/// Copies the files that a control plane reads.
fn copy_manifests(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if entry.path().extension().is_some_and(|e| e == "yaml" || e == "yml") {
            std::fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

async fn start_plane(home: &Home, listen: SocketAddr, debug: SocketAddr) -> Result<Process> {
    let mut command = self_command()?;
    command.args(["control-plane", "--listen", &listen.to_string(), "--debug", &debug.to_string()]);
    command.arg("--manifests").arg(&home.manifests).arg("--state").arg(home.state());
    spawn(home.dir.path(), "control-plane", "v1", command).await
}

async fn start_app(home: &Home, plane: SocketAddr, name: &str, version: &str, listen: SocketAddr) -> Result<Process> {
    let account = format!("bookinfo-{name}");
    let token = JoinTokens::open(&home.state())?.mint("default", &account, Duration::from_secs(60))?;
    let mut command = self_command()?;
    command
        .args(["app", name, "--version", version, "--listen", &listen.to_string()])
        .env("MESH_CONTROL_PLANE", plane.to_string())
        .env("MESH_ROOT_CERT", home.state().join("root-cert.pem"))
        .env("MESH_JOIN_TOKEN", token)
        .env("MESH_LABELS", format!("app={name},version={version}"))
        .env("MESH_DEBUG_ADDR", "127.0.0.1:0")
        .env("POD_NAMESPACE", "default")
        .env("SERVICE_ACCOUNT", account);
    spawn(home.dir.path(), name, version, command).await
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
        let log = tail(&dir.join(format!("{name}-{version}.log")));
        return Err(format!("{name} {version} did not start:\n{log}").into());
    }
    Ok(Process { name: name.into(), version: version.into(), ready: serde_json::from_str(&line)?, child, stdin })
}
