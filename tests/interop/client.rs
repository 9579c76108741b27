//! The stock gRPC client as a child process: `xds_client.py`, one line an order, one line an answer.

use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};

use crate::caller::{Caller, Report};
use crate::python;
use crate::world::PATIENCE;

/// One process, one channel. Ends when dropped.
pub(crate) struct StockClient {
    _child: Child,
    orders: ChildStdin,
    reports: Lines<BufReader<ChildStdout>>,
}

impl StockClient {
    /// Opens a plaintext channel to `target`, with a bootstrap in gRPC's format.
    pub(crate) fn start(target: &str, bootstrap: &Value) -> Self {
        Self::open(target, "insecure", bootstrap)
    }

    /// Opens a channel whose security is what xDS says.
    pub(crate) fn secure(target: &str, bootstrap: &Value) -> Self {
        Self::open(target, "xds", bootstrap)
    }

    fn open(target: &str, credentials: &str, bootstrap: &Value) -> Self {
        let mut child = python::script("xds_client.py", bootstrap)
            .args([target, credentials])
            // While no call is under way, this client looks at its control plane only so often (5 s is its
            // default).
            .env("GRPC_CLIENT_CHANNEL_BACKUP_POLL_INTERVAL_MS", "20")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the interpreter was made just before");
        let orders = child.stdin.take().expect("piped");
        let reports = BufReader::new(child.stdout.take().expect("piped")).lines();
        Self { _child: child, orders, reports }
    }

    /// Calls until it is answered.
    pub(crate) async fn answered(mut self) -> Self {
        let mut again = tokio::time::interval(Duration::from_millis(50));
        let calling = async {
            while !self.call(1, &[]).await.errors.is_empty() {
                again.tick().await;
            }
        };
        tokio::time::timeout(PATIENCE, calling).await.expect("it is answered");
        self
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

impl Caller for StockClient {
    async fn call(&mut self, metadata: &[(&str, &str)]) -> Result<String, String> {
        let report = self.call(1, metadata).await;
        match (report.answers.into_keys().next(), report.errors.into_keys().next()) {
            (Some(answer), _) => Ok(answer),
            (None, error) => Err(error.unwrap_or_default()),
        }
    }
}
