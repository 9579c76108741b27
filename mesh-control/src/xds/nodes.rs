//! [`Nodes`]: who is connected, what each was sent and accepted, and how many streams there may be.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_core::id::SpiffeId;
use parking_lot::Mutex;
use serde::Serialize;

/// One connected client.
#[derive(Clone, Debug, Serialize)]
pub struct NodeStatus {
    /// What it calls itself (`node.id`): a hint.
    pub node: String,
    /// Who it proved to be; none on the plaintext listener.
    pub identity: Option<SpiffeId>,
    /// Namespace whose configuration it gets.
    pub namespace: String,
    /// From where it is connected.
    pub address: SocketAddr,
    /// What it asked for, by type.
    pub types: Vec<TypeStatus>,
}

/// One type of one client.
#[derive(Clone, Debug, Serialize)]
pub struct TypeStatus {
    /// xDS type URL.
    pub type_url: &'static str,
    /// Names asked for.
    pub subscribed: usize,
    /// Names it was sent.
    pub sent: usize,
    /// Some of the names that do not exist.
    pub missing: Vec<String>,
    /// Version of the last response.
    pub version_sent: String,
    /// Version it last accepted.
    pub version_acked: String,
    /// Its refusal of the last response.
    pub nack: Option<NackStatus>,
}

/// A refused response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NackStatus {
    /// Version of the refused response.
    pub version: String,
    /// Its nonce.
    pub nonce: String,
    /// The client's reason.
    pub reason: String,
}

/// Every open stream.
#[derive(Debug, Default)]
pub(crate) struct Nodes {
    open: Mutex<BTreeMap<u64, Option<NodeStatus>>>,
    opened: AtomicU64,
    pub(crate) pushes: AtomicU64,
    pub(crate) nacks: AtomicU64,
}

impl Nodes {
    /// Takes a stream in, unless there are `limit` of them.
    pub(crate) fn enter(self: &Arc<Self>, limit: usize) -> Option<NodeEntry> {
        let mut open = self.open.lock();
        if open.len() >= limit {
            return None;
        }
        let id = self.opened.fetch_add(1, Ordering::Relaxed);
        open.insert(id, None);
        Some(NodeEntry { nodes: self.clone(), id })
    }

    /// The clients that have said who they are, longest connected first.
    pub(crate) fn list(&self) -> Vec<NodeStatus> {
        self.open.lock().values().flatten().cloned().collect()
    }

    /// Streams open now.
    pub(crate) fn streams(&self) -> usize {
        self.open.lock().len()
    }
}

/// One stream's place in [`Nodes`]; dropping it takes the stream out.
#[derive(Debug)]
pub(crate) struct NodeEntry {
    nodes: Arc<Nodes>,
    id: u64,
}

impl NodeEntry {
    pub(crate) fn update(&self, status: NodeStatus) {
        self.nodes.open.lock().insert(self.id, Some(status));
    }

    pub(crate) fn nodes(&self) -> &Nodes {
        &self.nodes
    }
}

impl Drop for NodeEntry {
    fn drop(&mut self) {
        self.nodes.open.lock().remove(&self.id);
    }
}
