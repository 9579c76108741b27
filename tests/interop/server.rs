//! The stock gRPC server as a child process: `xds_server.py`.

use std::net::SocketAddr;
use std::process::Stdio;

use mesh_testkit::ReservedAddress;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin};

use crate::python;

/// One process, one xDS server. Ends when dropped.
pub(crate) struct StockServer {
    pub(crate) address: SocketAddr,
    _child: Child,
    /// It serves until this is closed.
    _open: ChildStdin,
}

impl StockServer {
    /// Serves at `address`; its name and its callers' are what it answers.
    pub(crate) async fn start(name: &str, address: SocketAddr, bootstrap: &Value) -> Self {
        let mut child = python::script("xds_server.py", bootstrap)
            .args([&address.to_string(), name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter was made just before");
        let open = child.stdin.take().expect("piped");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let line = lines.next_line().await.expect("the server writes text");
        assert_eq!(line.as_deref(), Some("started"), "its error is above");
        Self { address, _child: child, _open: open }
    }
}

/// A port nobody listens on, for peers that cannot choose one for themselves: the name of a server's listener
/// holds its port. Nobody else is given it as long as the tests run.
pub(crate) fn free_address() -> SocketAddr {
    let reserved = ReservedAddress::new();
    let address = reserved.address();
    std::mem::forget(reserved);
    address
}
