//! Load reports to the control planes that want them (LRS; gRFC A27, A64, A85).
//!
//! ```text
//! LoadStore ──(a cluster that is to be reported comes into use)──▶ stream to the control plane that gave it
//!     ▲                                                                 │ answer: interval, which clusters
//!     └──────────── what happened since the last report ◀── every interval
//! ```
//!
//! A control plane hears of its own clusters only. Without such a cluster there is no stream. What happens while no
//! stream is open is part of the next report. Refuses to know what is counted as what.

#[cfg(test)]
mod tests;
mod untold;
mod wire;
mod worker;

use std::collections::HashSet;
use std::sync::Arc;

use mesh_core::id::ClusterName;
use mesh_core::telemetry::load::LoadStore;
use tokio::runtime::Handle;

use self::worker::Worker;
use crate::bootstrap::XdsServer;
use crate::connect::{AbortOnDrop, Connector};
use crate::xds::{Givers, ServerId, XdsClient, node_to_wire};

/// Reports as long as it is held.
#[derive(Debug)]
pub struct LoadReporter {
    _workers: Vec<AbortOnDrop>,
}

/// Reports what `store` counts to the control planes of `client`: over the connection of the ADS stream where the
/// connectors lend one, else over one of its own.
pub fn spawn(
    client: &XdsClient,
    store: &Arc<LoadStore>,
    connector: impl Fn(&XdsServer) -> Connector,
    runtime: &Handle,
) -> LoadReporter {
    let node = wire::reporting(node_to_wire(client.node()));
    let start = |(id, server): (usize, &XdsServer)| {
        let ours = Ours::new(id as ServerId, client.givers());
        worker::spawn(Worker::new(store.clone(), connector(server), node.clone(), ours), runtime)
    };
    LoadReporter { _workers: client.servers().iter().enumerate().map(start).collect() }
}

/// Which clusters one control plane hears of.
struct Ours {
    id: ServerId,
    givers: Givers,
    /// Those of the last time: what is told of a cluster that nobody gives any more goes where the rest went.
    last: HashSet<ClusterName>,
}

impl Ours {
    fn new(id: ServerId, givers: Givers) -> Self {
        Self { id, givers, last: HashSet::new() }
    }

    fn among(&mut self, names: &[ClusterName]) -> &HashSet<ClusterName> {
        let is_ours = |name: &ClusterName, giver: Option<ServerId>| match giver {
            Some(giver) => giver == self.id,
            // Not known: the first control plane may hear of what has no authority.
            None => self.last.contains(name) || (self.id == 0 && !name.as_str().starts_with("xdstp:")),
        };
        let known = names.iter().zip((self.givers)(names));
        self.last = known.filter(|(name, giver)| is_ours(name, *giver)).map(|(name, _)| name.clone()).collect();
        &self.last
    }
}
