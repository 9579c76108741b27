//! The process `mesh control-plane` over a directory of manifests, and what an operator sees of it. It can be
//! killed and started again at its place.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use mesh_control::ca::JoinTokens;
use mesh_testkit::ReservedAddress;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

/// Patience with processes that are not ours; nothing waits for its end when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    process: Child,
    place: Place,
    /// Nobody else takes its ports while it is dead.
    _kept: [ReservedAddress; 3],
    manifests: TempDir,
    state: TempDir,
    /// More arguments of the process.
    arguments: Vec<String>,
}

/// Where a control plane listens.
#[derive(Clone, Copy, Debug, PartialEq, serde::Deserialize)]
struct Place {
    address: SocketAddr,
    debug: SocketAddr,
    insecure_xds: SocketAddr,
}

impl World {
    /// Starts on loopback with these manifests, xDS in plaintext beside TLS.
    pub(crate) async fn start(manifests: &[(&str, String)]) -> Self {
        Self::start_with(manifests, &[]).await
    }

    /// The same with more arguments.
    pub(crate) async fn start_with(manifests: &[(&str, String)], arguments: &[&str]) -> Self {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let (folder, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        for (name, text) in manifests {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let kept = [(); 3].map(|()| ReservedAddress::new());
        let [address, debug, insecure_xds] = [&kept[0], &kept[1], &kept[2]].map(ReservedAddress::address);
        let place = Place { address, debug, insecure_xds };
        let process = start(&folder, &state, place, &arguments).await;
        Self { process, place, _kept: kept, manifests: folder, state, arguments }
    }

    /// Ends the process at once, without a word to anybody (SIGKILL).
    pub(crate) async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    /// Starts it again where it was.
    pub(crate) async fn resume(&mut self) {
        self.process = start(&self.manifests, &self.state, self.place, &self.arguments).await;
    }

    /// Where xDS, certificates and registration are, over TLS.
    pub(crate) fn address(&self) -> SocketAddr {
        self.place.address
    }

    pub(crate) fn root_cert(&self) -> PathBuf {
        self.state.path().join("root-cert.pem")
    }

    /// A join token of a service account.
    pub(crate) fn token(&self, account: &str) -> String {
        let tokens = JoinTokens::open(self.state.path()).unwrap();
        tokens.mint("default", account, Duration::from_secs(60)).unwrap()
    }

    /// A directory with key, certificate and roots of a service account, as `mesh cert issue` makes it.
    pub(crate) async fn certificate(&self, account: &str) -> PathBuf {
        let out = self.state.path().join("certs").join(account);
        let issued = Command::new(env!("CARGO_BIN_EXE_mesh"))
            .args(["cert", "issue", "--service-account", account, "--state"])
            .arg(self.state.path())
            .arg("--out")
            .arg(&out)
            .status();
        assert!(issued.await.unwrap().success());
        out
    }

    /// What a stock client without a certificate is started with.
    pub(crate) fn bootstrap(&self, node: &str) -> Value {
        json!({
            "xds_servers": [{
                "server_uri": self.place.insecure_xds.to_string(),
                "channel_creds": [{ "type": "insecure" }],
                "server_features": ["xds_v3"],
            }],
            "node": { "id": node, "metadata": { "NAMESPACE": "default" } },
        })
    }

    /// Writes a manifest, as an operator would.
    pub(crate) fn apply(&self, name: &str, text: &str) {
        // A rename is seen whole or not at all.
        let written = tempfile::NamedTempFile::new_in(self.state.path()).unwrap();
        std::fs::write(written.path(), text).unwrap();
        written.persist(self.manifests.path().join(name)).unwrap();
    }

    /// A page of the debug port.
    pub(crate) async fn debug(&self, path: &str) -> String {
        page(self.place.debug, path).await
    }

    /// The entry of a client in `/sync`, once it has accepted everything it was sent.
    async fn in_sync(&self, node: &str) -> Value {
        eventually(&format!("{node} has accepted everything it was sent"), async || {
            let nodes: Vec<Value> = serde_json::from_str(&self.debug("/sync").await).unwrap();
            let found = nodes.into_iter().find(|entry| entry["node"] == node)?;
            let types = found["types"].as_array()?;
            types.iter().all(|entry| entry["version_acked"] == entry["version_sent"]).then_some(found)
        })
        .await
    }

    /// Waits until a client is there with so many types, and has accepted the newest of all.
    pub(crate) async fn has(&self, node: &str, types: usize) {
        eventually(&format!("{node} has everything"), async || {
            let nodes: Vec<Value> = serde_json::from_str(&self.debug("/sync").await).unwrap();
            let found = nodes.into_iter().find(|entry| entry["node"] == node && entry["in_sync"] == true)?;
            (found["types"].as_array()?.len() == types).then_some(())
        })
        .await;
    }

    /// `/sync` and the counters show that the client asked for so many types and refused nothing.
    pub(crate) async fn assert_nothing_refused(&self, node: &str, types: usize) {
        let node = self.in_sync(node).await;
        let entries = node["types"].as_array().expect("a list of types");
        assert_eq!(entries.len(), types, "{node}");
        assert!(entries.iter().all(|entry| entry["nack"] == Value::Null), "{node}");
        assert_eq!(self.refused().await, 0, "mesh_control_nacks_total");
    }

    /// How many responses clients of this run refused.
    pub(crate) async fn refused(&self) -> u64 {
        let metrics = self.debug("/metrics").await;
        let count = metrics.lines().find_map(|line| line.strip_prefix("mesh_control_nacks_total "));
        count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no count: {metrics}"))
    }
}

async fn start(manifests: &TempDir, state: &TempDir, place: Place, arguments: &[String]) -> Child {
    let mut process = Command::new(env!("CARGO_BIN_EXE_mesh"))
        .args(["control-plane", "--output", "json", "--manifests"])
        .arg(manifests.path())
        .arg("--state")
        .arg(state.path())
        .args(["--listen", &place.address.to_string(), "--debug", &place.debug.to_string()])
        .args(["--insecure-xds", &place.insecure_xds.to_string()])
        .args(arguments)
        .env("RUST_LOG", "warn")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("it starts").unwrap();
    let line = line.expect("the control plane ended before it served; its error is above");
    assert_eq!(serde_json::from_str::<Place>(&line).unwrap(), place);
    process
}

/// A page over plain HTTP.
pub(crate) async fn page(address: SocketAddr, path: &str) -> String {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get(path).header("host", address.to_string()).body(Empty::<bytes::Bytes>::new());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    String::from_utf8(body.to_vec()).unwrap()
}

/// Asks again and again until there is a value.
pub(crate) async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let mut again = tokio::time::interval(Duration::from_millis(50));
    let asking = async {
        loop {
            again.tick().await;
            if let Some(value) = ask().await {
                return value;
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("never came: {what}"))
}
