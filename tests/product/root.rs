//! The root is changed by hand under five hundred requests a second, over processes of their own: control plane, server and
//! the command. None is lost (R26); without the overlap many are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mesh::Mesh;
use serde_json::Value;
use tokio::process::{Child, Command};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;

use crate::by_hand::{MESH, Plane, examples, signal, spawn};
use crate::support::{becomes, call, eventually};

pub(crate) const HELLO: &str = "http://hello:8080/";
pub(crate) const GREETING: &str = "hello, spiffe://cluster.local/ns/default/sa/caller\n";
/// Of certificates, in seconds: a change of roots takes a few of these. A machine may stand still for nearly half of one.
const LIFE: &str = "20";

/// Requests at a fixed rate, whether those before have been answered or not.
pub(crate) struct Rate {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    failed: Arc<AtomicBool>,
    task: JoinHandle<Vec<String>>,
}

impl Rate {
    /// Ten every 20 ms; `ask` sends one and tells what failed of it.
    pub(crate) fn of_five_hundred<F>(mesh: &Mesh, ask: impl Fn(Mesh) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Option<String>> + Send + 'static,
    {
        let (stop, sent, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default(), Arc::default());
        let (until, count, any, mesh) = (stop.clone(), sent.clone(), Arc::<AtomicBool>::clone(&failed), mesh.clone());
        let task = tokio::spawn(async move {
            let (mut under_way, mut failures) = (JoinSet::new(), Vec::new());
            let mut pace = tokio::time::interval(Duration::from_millis(20));
            // A machine that stood still would have seconds of them sent at once: that is no rate, and nobody's handshakes are in time.
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while !until.load(Ordering::Relaxed) {
                pace.tick().await;
                for _ in 0..10 {
                    under_way.spawn(ask(mesh.clone()));
                }
                count.fetch_add(10, Ordering::Relaxed);
                while let Some(done) = under_way.try_join_next() {
                    failures.extend(done.unwrap());
                }
                any.store(!failures.is_empty(), Ordering::Relaxed);
            }
            while let Some(done) = under_way.join_next().await {
                failures.extend(done.unwrap());
            }
            failures
        });
        Self { stop, sent, failed, task }
    }

    /// Ends it; requests and what failed of them.
    pub(crate) async fn end(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        (self.sent.load(Ordering::Relaxed), self.task.await.unwrap())
    }

    /// Waits until `count` more requests have been sent.
    pub(crate) async fn more(&self, count: usize) {
        let until = self.sent.load(Ordering::Relaxed) + count;
        eventually("the load goes on", || async { (self.sent.load(Ordering::Relaxed) >= until).then_some(()) }).await;
    }
}

async fn greet(mesh: Mesh) -> Option<String> {
    match call(&mesh, HELLO, &[]).await {
        Ok((status, text)) if status == 200 && text == GREETING => None,
        Ok((status, text)) => Some(format!("{status} {text}")),
        Err(error) => Some(error.to_string()),
    }
}

/// HTTP/1.1, and a connection is good for twenty requests: twenty-five handshakes a second. None is sent twice, which would
/// hide what is lost.
const SHORT_CONNECTIONS: &str = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: hello, namespace: default}
spec:
  hosts: [hello]
  http: [{route: [{destination: {host: hello}}], retries: {attempts: 0}}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: hello, namespace: default}
spec:
  host: hello
  trafficPolicy: {connectionPool: {http: {maxRequestsPerConnection: 20}}}
";

/// A control plane, a server that greets, and a caller.
pub(crate) struct World {
    pub(crate) plane: Plane,
    pub(crate) caller: Mesh,
    pub(crate) server: Child,
    _home: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        Self::start_with(SHORT_CONNECTIONS).await
    }

    pub(crate) async fn start_with(manifest: &str) -> Self {
        let examples = examples().await;
        let home = tempfile::tempdir().unwrap();
        let (manifests, state) = (home.path().join("manifests"), home.path().join("state"));
        std::fs::create_dir(&manifests).unwrap();
        std::fs::write(manifests.join("hello.yaml"), manifest).unwrap();
        let plane = Plane::start_with(&manifests, &state, &["--certificate-ttl", LIFE]).await;
        let server = spawn(&mut plane.joined("hello", &examples.join("hello_server")));
        eventually("hello_server is registered", || async { plane.registrations().await.pop() }).await;
        let tokens = mesh_control::ca::JoinTokens::open(&state).unwrap();
        let token = tokens.mint("default", "caller", Duration::from_secs(60)).unwrap();
        let caller = Mesh::builder()
            .control_plane(&plane.address)
            .root_cert(state.join("root-cert.pem"))
            .service_account("caller")
            .join_token(token);
        let caller = caller.build().await.unwrap();
        becomes(&caller, HELLO, &[], GREETING).await;
        Self { plane, caller, server, _home: home }
    }

    /// `mesh cert rotate-root`: the step that was made, or `None` if it would cut somebody off.
    async fn rotate(&self, more: &[&str]) -> Option<String> {
        let mut command = Command::new(MESH);
        command.args(["cert", "rotate-root", "-o", "json", "--certificate-ttl", LIFE, "--state"]);
        let output = command.arg(&self.plane.state).args(more).output().await.unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => {
                let state: Value = serde_json::from_slice(&output.stdout).unwrap();
                Some(state["step"].as_str().unwrap().to_owned())
            }
            code => {
                assert_eq!(code, Some(1), "{told}");
                None
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_root_changed_under_five_hundred_requests_a_second_loses_none_r26() {
    let world = World::start().await;
    let load = Rate::of_five_hundred(&world.caller, greet);
    load.more(500).await;
    for step in ["added", "switched", "idle"] {
        let made = eventually("the next step is safe", || world.rotate(&[])).await;
        assert_eq!(made, step);
        load.more(1_000).await;
    }
    let (sent, failures) = load.end().await;
    assert!(failures.is_empty(), "{} of {sent}: {:#?}", failures.len(), &failures[..failures.len().min(5)]);
    assert!(sent >= 3_500, "{sent}");
}

/// The control.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_overlap_a_root_changed_under_load_costs_requests_r26() {
    let world = World::start().await;
    let load = Rate::of_five_hundred(&world.caller, greet);
    load.more(500).await;
    // Members hear of the last step alone, however long the disk takes for each.
    assert!(signal(&world.plane.process, "-STOP").await);
    for step in ["added", "switched", "idle"] {
        assert_eq!(world.rotate(&["--force"]).await.as_deref(), Some(step));
    }
    assert!(signal(&world.plane.process, "-CONT").await);
    eventually("somebody is cut off", || async { load.failed.load(Ordering::Relaxed).then_some(()) }).await;
    let (sent, failures) = load.end().await;
    assert!(!failures.is_empty(), "of {sent}");
}
