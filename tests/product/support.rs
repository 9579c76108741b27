//! What the tests share: a control plane on free ports, processes of its mesh, a steady load, and the one
//! way to wait.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::{MethodRouter, any, get};
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use mesh::{Body, Mesh, MeshBuilder, ServeError};
use mesh_control::{Builder, ControlPlane};
use mesh_testkit::ReservedAddress;
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A free port of loopback.
pub(crate) const FREE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// How long anything may take. Nothing measures it: a test that gets there has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again and again until there is an answer.
#[track_caller]
pub(crate) fn eventually<T, F, A>(what: &str, mut ask: F) -> impl Future<Output = T>
where
    F: FnMut() -> A,
    A: Future<Output = Option<T>>,
{
    let asked_at = std::panic::Location::caller();
    async move {
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        let answer = async {
            loop {
                pace.tick().await;
                if let Some(answer) = ask().await {
                    return answer;
                }
            }
        };
        let answer = tokio::time::timeout(PATIENCE, answer).await;
        answer.unwrap_or_else(|_| panic!("{asked_at}: not within {PATIENCE:?}: {what}"))
    }
}

/// A control plane with its directories; it can be stopped and started again at its place.
pub(crate) struct Plane {
    manifests: TempDir,
    state: TempDir,
    configure: Box<dyn Fn(Builder) -> Builder + Send + Sync>,
    running: Option<ControlPlane>,
    /// Nobody else takes its ports while it is stopped.
    kept: [ReservedAddress; 2],
}

impl Plane {
    pub(crate) async fn start() -> Self {
        Self::with(|builder| builder).await
    }

    /// Runs one test of this program once more, in a process of its own which may join as `account` and is told `how` in a
    /// variable: when it has said a line of which `heard` makes something, and what it says after that.
    pub(crate) async fn own_process<T>(
        &self,
        test: &str,
        (variable, how): (&str, &str),
        account: &str,
        heard: impl Fn(&str) -> Option<T>,
    ) -> (Child, Lines<BufReader<ChildStdout>>, T) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(variable, how)
            .env("TEST_PLANE", self.address().to_string())
            .env("TEST_TOKEN", self.token(account))
            .env("TEST_ROOT", self.root_cert_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut said = BufReader::new(child.stdout.take().unwrap()).lines();
        loop {
            let line = said.next_line().await.unwrap().expect("it says what is waited for");
            if let Some(heard) = heard(&line) {
                return (child, said, heard);
            }
        }
    }

    /// A control plane with settings of its own.
    pub(crate) async fn with(configure: impl Fn(Builder) -> Builder + Send + Sync + 'static) -> Self {
        let configure = Box::new(configure);
        let (manifests, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let kept = [(); 2].map(|()| ReservedAddress::new());
        let mut plane = Self { manifests, state, configure, running: None, kept };
        plane.run().await;
        plane
    }

    async fn run(&mut self) {
        let builder = ControlPlane::builder()
            .manifests(self.manifests.path())
            .state_dir(self.state.path())
            .listen(self.kept[0].address())
            .debug_listen(Some(self.kept[1].address()));
        self.running = Some((self.configure)(builder).start().await.unwrap());
    }

    /// Stops it, so that it can begin again at the same place.
    pub(crate) async fn stop(&mut self) {
        self.running.take().unwrap().shutdown().await;
    }

    pub(crate) async fn resume(&mut self) {
        self.run().await;
    }

    /// Writes a manifest file.
    pub(crate) fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.manifests.path().join(file), text).unwrap();
    }

    /// Builder of a process that may join as `account`, with the label `app` and further `labels`.
    pub(crate) fn process(&self, account: &str, labels: &str) -> MeshBuilder {
        self.stranger(account, labels).join_token(self.token(account))
    }

    /// As [`process`](Self::process), without proof of identity.
    pub(crate) fn stranger(&self, account: &str, labels: &str) -> MeshBuilder {
        Mesh::builder()
            .control_plane(self.address())
            .root_cert(self.root_cert_path())
            .service_account(account)
            .labels(format!("app={account},{labels}"))
    }

    /// The state directory.
    pub(crate) fn state_dir(&self) -> &std::path::Path {
        self.state.path()
    }

    /// A file of the state directory.
    pub(crate) fn state(&self, file: &str) -> String {
        std::fs::read_to_string(self.state.path().join(file)).unwrap()
    }

    pub(crate) fn token(&self, account: &str) -> String {
        self.join_tokens().mint("default", account, Duration::from_secs(60)).unwrap()
    }

    /// A process that only calls.
    pub(crate) async fn caller(&self, account: &str) -> Mesh {
        self.process(account, "").build().await.unwrap()
    }

    /// A process that serves `app` as `service`:9080, and is known to the control plane.
    pub(crate) async fn serve(&self, service: &str, labels: &str, app: Router) -> Running {
        let mesh = self.process(service, labels).debug_address(FREE).build().await.unwrap();
        let running = Running::serve(mesh, service, app).await;
        self.registered(running.address).await;
        running
    }

    /// A process that answers every request for `service` with `answer`.
    pub(crate) async fn answering(&self, service: &str, labels: &str, answer: &'static str) -> Running {
        self.serve(service, labels, Router::new().fallback(any(move || async move { answer }))).await
    }

    pub(crate) async fn registered(&self, address: SocketAddr) {
        eventually("the server is registered", || async { self.has_registered(address).await.then_some(()) }).await;
    }

    pub(crate) async fn has_registered(&self, address: SocketAddr) -> bool {
        let listed = self.json("/registrations").await;
        listed.as_array().unwrap().iter().any(|entry| entry["address"] == address.to_string())
    }

    pub(crate) async fn findings(&self) -> Vec<Value> {
        self.json("/findings").await.as_array().unwrap().clone()
    }

    pub(crate) async fn no_findings(&self) {
        eventually("there are no findings", || async { self.findings().await.is_empty().then_some(()) }).await;
    }

    pub(crate) async fn json(&self, path: &str) -> Value {
        let (status, body) = plain_get(self.debug(), path).await.unwrap();
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    pub(crate) fn debug(&self) -> SocketAddr {
        self.debug_address().unwrap()
    }
}

impl Deref for Plane {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        self.running.as_ref().expect("the control plane runs")
    }
}

/// A serving process of the mesh.
pub(crate) struct Running {
    pub(crate) mesh: Mesh,
    pub(crate) address: SocketAddr,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    pub(crate) async fn serve(mesh: Mesh, service: &str, app: Router) -> Self {
        Self::serve_at(FREE, mesh, service, app).await
    }

    pub(crate) async fn serve_at(place: SocketAddr, mesh: Mesh, service: &str, app: Router) -> Self {
        let listener = TcpListener::bind(place).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = mesh.serve(listener, app).service(service, 9080).without_signals();
        Self { mesh, address, task: tokio::spawn(serve.into_future()) }
    }

    /// Waits until it has finished after a drain.
    pub(crate) async fn finished(&mut self) {
        tokio::time::timeout(PATIENCE, &mut self.task).await.expect("the drain ends").unwrap().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// An answer: status and text.
pub(crate) type Answer = (StatusCode, String);

/// One GET through the mesh.
pub(crate) async fn call(mesh: &Mesh, uri: &str, headers: &[(&str, &str)]) -> Result<Answer, mesh::Error> {
    send(mesh, Method::GET, uri, headers).await
}

/// One request through the mesh; a POST has a body.
async fn send(mesh: &Mesh, method: Method, uri: &str, headers: &[(&str, &str)]) -> Result<Answer, mesh::Error> {
    let body = if method == Method::POST { "posted".into() } else { Body::empty() };
    let mut request = http::Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = mesh.client().send(request.body(body).unwrap()).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8(body.to_vec()).unwrap()))
}

/// Calls until the answer is this one.
pub(crate) async fn becomes(mesh: &Mesh, uri: &str, headers: &[(&str, &str)], want: &str) {
    let what = format!("{uri} {headers:?} answers {want:?}");
    eventually(&what, || async {
        let answer = call(mesh, uri, headers).await;
        answer.is_ok_and(|(status, text)| status == 200 && text == want).then_some(())
    })
    .await;
}

/// One GET over plain TCP, knowing nothing of any mesh.
pub(crate) async fn plain_get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let mut tcp = TcpStream::connect(address).await?;
    exchange(&mut tcp, path).await
}

/// One GET over a connection of its own.
pub(crate) async fn exchange<I>(io: &mut I, path: &str) -> io::Result<(u16, String)>
where
    I: AsyncReadExt + AsyncWriteExt + Unpin,
{
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    io.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    io.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, body.to_owned()))
}

/// Answers "finished" a request once it may `proceed`, and says that it has `entered`.
pub(crate) fn held(entered: &Arc<Notify>, proceed: &Arc<Notify>) -> MethodRouter {
    let (entered, proceed) = (entered.clone(), proceed.clone());
    get(move || async move {
        entered.notify_one();
        proceed.notified().await;
        "finished"
    })
}

/// Requests one after the other from a few tasks, until it is told to stop.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Tally>>,
}

/// What a load has seen.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// How often each text came with status 200.
    pub(crate) answers: BTreeMap<String, usize>,
    /// Everything else.
    pub(crate) failures: Vec<String>,
}

impl Load {
    /// GETs at a walking pace.
    pub(crate) fn begin(mesh: &Mesh, uri: &'static str) -> Self {
        Self::of(mesh, Method::GET, uri, 3, Duration::from_millis(5))
    }

    /// Requests of `workers` at once, each of them every `pace`.
    pub(crate) fn of(mesh: &Mesh, method: Method, uri: &'static str, workers: usize, pace: Duration) -> Self {
        let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let worker = |_| tokio::spawn(work(mesh.clone(), method.clone(), uri, pace, stop.clone(), sent.clone()));
        let tasks = (0..workers).map(worker).collect();
        Self { stop, sent, tasks }
    }

    /// Waits until `count` more requests have been answered.
    pub(crate) async fn more(&self, count: usize) {
        let until = self.sent.load(Ordering::Relaxed) + count;
        eventually("the load goes on", || async { (self.sent.load(Ordering::Relaxed) >= until).then_some(()) }).await;
    }

    /// Ends it; fails if any request failed.
    pub(crate) async fn all_well(self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut sum = Tally::default();
        for task in self.tasks {
            let Tally { answers, failures } = task.await.unwrap();
            sum.failures.extend(failures);
            for (text, count) in answers {
                *sum.answers.entry(text).or_default() += count;
            }
        }
        assert!(sum.failures.is_empty(), "{sum:#?}");
        sum
    }
}

async fn work(
    mesh: Mesh,
    method: Method,
    uri: &'static str,
    pace: Duration,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
) -> Tally {
    let mut tally = Tally::default();
    let mut pace = tokio::time::interval(pace);
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        match send(&mesh, method.clone(), uri, &[]).await {
            Ok((StatusCode::OK, text)) => *tally.answers.entry(text).or_default() += 1,
            Ok((status, text)) => tally.failures.push(format!("{status} {text}")),
            Err(error) => tally.failures.push(error.to_string()),
        }
        sent.fetch_add(1, Ordering::Relaxed);
    }
    tally
}
