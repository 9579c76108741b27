//! The stock Envoy as a child process. Its configuration is the one in the manual (`src/manual/peers.md`), with
//! the places of this test put in.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::python;
use crate::world::{World, eventually, page};

const MANUAL: &str = include_str!("../../src/manual/peers.md");

/// The block of the manual that begins with this fence.
pub(crate) fn of_manual(fence: &str) -> &'static str {
    let (_, rest) = MANUAL.split_once(&format!("```{fence}\n")).expect("the manual has the block");
    rest.split_once("\n```").expect("the block ends").0
}

/// The two forms of the protocol.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    StateOfTheWorld,
    Delta,
}

/// One process. Ends when dropped.
pub(crate) struct Envoy {
    pub(crate) node: String,
    admin: SocketAddr,
    _process: Child,
    _files: TempDir,
}

impl Envoy {
    /// Starts as service account `edge`. `application` is the process behind its inbound listener, and `change`
    /// may alter the manual's configuration further.
    pub(crate) async fn start(
        world: &World,
        form: Form,
        application: SocketAddr,
        change: impl FnOnce(String) -> String,
    ) -> Self {
        let envoy = Self::begin(world, &format!("envoy-{form:?}"), form, application, change).await;
        envoy.ready().await;
        envoy
    }

    /// The same under a name of its own, and without waiting for its configuration.
    pub(crate) async fn begin(
        world: &World,
        node: &str,
        form: Form,
        application: SocketAddr,
        change: impl FnOnce(String) -> String,
    ) -> Self {
        let files = TempDir::new().unwrap();
        let certificates = world.certificate("edge").await;
        let text = configuration(world, node, form, application, &certificates);
        let (config, admin) = (files.path().join("envoy.yaml"), files.path().join("admin"));
        std::fs::write(&config, change(text)).unwrap();
        let process = Command::new(python::envoy())
            .arg("--config-path")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin)
            // Several on one machine, and no files shared between a process and its successor.
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"])
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let admin = eventually("Envoy listens", async || std::fs::read_to_string(&admin).ok()?.parse().ok()).await;
        Self { node: node.to_owned(), admin, _process: process, _files: files }
    }

    /// Waits until it has everything it was waiting for.
    pub(crate) async fn ready(&self) {
        eventually("Envoy is ready", async || {
            let info: Value = serde_json::from_str(&self.admin("/server_info").await).ok()?;
            (info["state"] == "LIVE").then_some(())
        })
        .await;
    }

    /// A page of its admin port.
    pub(crate) async fn admin(&self, path: &str) -> String {
        page(self.admin, path).await
    }

    /// Where a listener is, once it is there.
    pub(crate) async fn listener(&self, name: &str) -> SocketAddr {
        eventually(&format!("the listener {name}"), async || {
            let all: Value = serde_json::from_str(&self.admin("/listeners?format=json").await).ok()?;
            let found = all["listener_statuses"].as_array()?.iter().find(|listener| listener["name"] == name)?;
            let socket = &found["local_address"]["socket_address"];
            Some(SocketAddr::new(
                socket["address"].as_str()?.parse().ok()?,
                socket["port_value"].as_u64()?.try_into().ok()?,
            ))
        })
        .await
    }

    /// The serial number of the certificate it shows to the mesh.
    pub(crate) async fn own_certificate(&self) -> String {
        let all: Value = serde_json::from_str(&self.admin("/certs").await).unwrap();
        let own =
            all["certificates"].as_array().unwrap().iter().find_map(|entry| entry["cert_chain"].as_array()?.first());
        own.expect("it has one")["serial_number"].to_string()
    }

    /// It refused nothing: neither its counters nor its own account of its configuration say so.
    pub(crate) async fn assert_nothing_refused(&self) {
        let stats = self.admin("/stats?filter=update_rejected").await;
        assert!(stats.contains("cluster_manager.cds.update_rejected"), "{stats}");
        let refused: Vec<&str> = stats.lines().filter(|line| !line.ends_with(": 0")).collect();
        let dump = self.admin("/config_dump").await;
        assert!(refused.is_empty() && !dump.contains("\"error_state\""), "{refused:?}\n{dump}");
    }
}

fn configuration(world: &World, node: &str, form: Form, application: SocketAddr, certificates: &Path) -> String {
    let api = match form {
        Form::StateOfTheWorld => "GRPC",
        Form::Delta => "DELTA_GRPC",
    };
    let port = |port: u16| format!("port_value: {port} }}");
    let places = [
        ("id: edge-1", format!("id: {node}")),
        ("api_type: DELTA_GRPC # or GRPC", format!("api_type: {api}")),
        ("/etc/mesh/certs", certificates.display().to_string()),
        // Some roots or other: nothing here leaves the machine.
        ("/etc/ssl/certs/ca-certificates.crt", certificates.join("root.pem").display().to_string()),
        (&port(15000), port(0)),
        (&port(15006), port(0)),
        (&port(9080), port(0)),
        (&port(15012), port(world.address().port())),
        (&port(8080), port(application.port())),
    ];
    places.iter().fold(of_manual("yaml").to_owned(), |text, (from, to)| {
        assert!(text.contains(from), "the manual's configuration has {from:?}");
        text.replace(from, to)
    })
}
