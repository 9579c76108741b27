//! A control plane over a directory of manifests, and what an operator sees of it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use mesh_control::ControlPlane;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// Patience with processes that are not ours; nothing waits for its end when all is well.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct World {
    control: ControlPlane,
    manifests: TempDir,
    state: TempDir,
}

impl World {
    /// Starts on loopback with these manifests, xDS in plaintext beside TLS.
    pub(crate) async fn start(manifests: &[(&str, String)]) -> Self {
        let (folder, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        for (name, text) in manifests {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let free = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let control = ControlPlane::builder()
            .manifests(folder.path())
            .state_dir(state.path())
            .listen(free)
            .debug_listen(Some(free))
            .insecure_xds(Some(free))
            .start()
            .await
            .unwrap();
        Self { control, manifests: folder, state }
    }

    /// What a stock client is started with.
    pub(crate) fn bootstrap(&self, node: &str) -> Value {
        let address = self.control.insecure_address().expect("asked for at the start");
        json!({
            "xds_servers": [{
                "server_uri": address.to_string(),
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
        let address = self.control.debug_address().expect("asked for at the start");
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

    /// The entry of a client in `/sync`, once it has accepted everything it was sent.
    pub(crate) async fn in_sync(&self, node: &str) -> Value {
        eventually("everything sent is accepted", async || {
            let nodes: Vec<Value> = serde_json::from_str(&self.debug("/sync").await).unwrap();
            let found = nodes.into_iter().find(|entry| entry["node"] == node)?;
            let types = found["types"].as_array()?;
            types.iter().all(|entry| entry["version_acked"] == entry["version_sent"]).then_some(found)
        })
        .await
    }

    pub(crate) async fn shutdown(self) {
        self.control.shutdown().await;
    }
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
