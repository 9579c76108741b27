//! The stock gRPC client as a child process: `xds_client.py`, one line an order, one line an answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::python;

/// One process, one channel. Ends when dropped.
pub(crate) struct StockClient {
    _child: Child,
    orders: ChildStdin,
    reports: Lines<BufReader<ChildStdout>>,
}

/// What came of a number of calls.
#[derive(Debug, PartialEq, Eq, serde::Deserialize)]
pub(crate) struct Report {
    /// How often each backend answered.
    pub(crate) answers: BTreeMap<String, u32>,
    /// How often each failure was seen.
    pub(crate) errors: BTreeMap<String, u32>,
}

impl StockClient {
    /// Opens a channel to `target`, with a bootstrap in gRPC's format.
    pub(crate) fn start(target: &str, bootstrap: &Value) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/xds_client.py");
        let mut child = Command::new(python::interpreter())
            .arg(script)
            .arg(target)
            .env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string())
            .env_remove("GRPC_XDS_BOOTSTRAP")
            // While no call is under way, this client looks at its control plane only so often (5 s is its
            // default).
            .env("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "20")
            // A proxy of the machine has no business with loopback.
            .env("no_grpc_proxy", "127.0.0.1,localhost")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the interpreter was made just before");
        let orders = child.stdin.take().expect("piped");
        let reports = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { _child: child, orders, reports }
    }

    /// Makes `calls` calls one after the other.
    pub(crate) async fn call(&mut self, calls: u32, metadata: &[(&str, &str)]) -> Report {
        let order = format!("{}\n", json!({ "calls": calls, "metadata": metadata }));
        self.orders.write_all(order.as_bytes()).await.expect("the client reads its orders");
        let line = self.reports.next_line().await.expect("the client writes text");
        let line = line.expect("the client ended before it answered; its error is above");
        serde_json::from_str(&line).expect("a report is JSON")
    }
}

impl Report {
    /// Every call was answered by `backend`.
    pub(crate) fn all(calls: u32, backend: &str) -> Self {
        Self { answers: BTreeMap::from([(backend.to_owned(), calls)]), errors: BTreeMap::new() }
    }

    pub(crate) fn from(&self, backend: &str) -> u32 {
        self.answers.get(backend).copied().unwrap_or_default()
    }
}
