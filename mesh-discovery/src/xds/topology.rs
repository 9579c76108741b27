//! From the bootstrap to who is asked for what: equal control planes of several authorities are one
//! (gRFC A47).

use std::collections::HashMap;
use std::sync::Arc;

use super::ads::{Server, ServerId, Servers, Topology};
use super::client::XdsConfig;
use crate::bootstrap::XdsServer;

impl Topology {
    /// The topology, and the control planes by [`ServerId`].
    pub(super) fn of(config: &XdsConfig) -> (Self, Vec<XdsServer>) {
        let bootstrap = &config.bootstrap;
        let mut distinct = Vec::new();
        let mut list = |servers: &[XdsServer], on_reachability_only: bool| {
            let mut ordered: Vec<ServerId> = Vec::new();
            for server in servers {
                let id = distinct.iter().position(|known| known == server).unwrap_or_else(|| {
                    distinct.push(server.clone());
                    distinct.len() - 1
                }) as ServerId;
                // A control plane that is listed twice is no fallback for itself.
                if !ordered.contains(&id) {
                    ordered.push(id);
                }
            }
            Servers { ordered, on_reachability_only }
        };
        let mut authorities = vec![list(&bootstrap.servers, false)];
        let mut by_name = HashMap::new();
        for (name, authority) in &bootstrap.authorities {
            let servers = if authority.servers.is_empty() { &bootstrap.servers } else { &authority.servers };
            by_name.insert(name.clone(), authorities.len() as u16);
            authorities.push(list(servers, authority.fallback_on_reachability_only));
        }
        let servers = distinct
            .iter()
            .map(|server| Server { name: server.uri.to_string(), features: server.features, variant: config.variant })
            .collect();
        let topology = Self {
            node: Arc::new(bootstrap.node.clone()),
            servers,
            authorities,
            by_name,
            resource_timeout: config.resource_timeout,
            transient_timeout: config.transient_resource_timeout,
        };
        (topology, distinct)
    }
}
