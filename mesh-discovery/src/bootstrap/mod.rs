//! gRPC's xDS bootstrap file (gRFC A27, A29, A36, A47, A65, A71, A87, A97), unchanged: which control
//! planes, who we are, what our resources are called, where certificates come from.
//!
//! Refuses to open a connection. Unknown fields are ignored at every level; an error names the JSON
//! path of what is wrong.

mod authority;
mod credentials;
pub mod name;
mod provider;
mod server;
#[cfg(test)]
mod tests;

pub use self::authority::Authority;
pub use self::credentials::{CallCredentials, ChannelCredentials, TlsCredentials};
pub use self::provider::{CertificateProvider, FileWatcher};
pub use self::server::{InvalidServerUri, ServerFeatures, ServerUri, XdsServer};

use std::collections::BTreeMap;
use std::net::SocketAddr;

use mesh_core::id::{Locality, Scheme, Target};
use serde_json::{Map, Value};

use crate::json::{At, Invalid};

/// Environment variable with the path of the bootstrap file; wins over [`CONFIG_VARIABLE`].
pub const FILE_VARIABLE: &str = "GRPC_XDS_BOOTSTRAP";
/// Environment variable with the bootstrap itself, as JSON.
pub const CONFIG_VARIABLE: &str = "GRPC_XDS_BOOTSTRAP_CONFIG";
/// Name of a listening address when the bootstrap has no template: what istiod serves to proxyless nodes.
pub const DEFAULT_INBOUND_TEMPLATE: &str = "xds.istio.io/grpc/lds/inbound/%s";

/// A bootstrap that was read and checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Bootstrap {
    /// Control planes in order of preference, at least one (gRFC A71).
    pub servers: Vec<XdsServer>,
    /// Who we are.
    pub node: Node,
    /// `server_listener_resource_name_template`: `%s` is the listening `ip:port`. Default
    /// [`DEFAULT_INBOUND_TEMPLATE`].
    pub server_listener_template: String,
    /// `client_default_listener_resource_name_template`: `%s` is the dialled `host:port`, percent-encoded in
    /// an `xdstp` name. Default `%s`.
    pub client_listener_template: String,
    /// `authorities` by name (gRFC A47).
    pub authorities: BTreeMap<String, Authority>,
    /// `certificate_providers` by instance name.
    pub certificate_providers: BTreeMap<String, CertificateProvider>,
}

/// The node as it is sent on the first request of a stream (`envoy.config.core.v3.Node`).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Identifier, free text. Default empty.
    pub id: String,
    /// Cluster, free text. Default empty.
    pub cluster: String,
    /// Where we run. Default unknown.
    pub locality: Locality,
    /// Anything else, passed on unread.
    pub metadata: Map<String, Value>,
}

impl Bootstrap {
    /// A bootstrap with one control plane and every default.
    pub fn new(server: XdsServer, node: Node) -> Self {
        Self {
            servers: vec![server],
            node,
            server_listener_template: DEFAULT_INBOUND_TEMPLATE.to_owned(),
            client_listener_template: "%s".to_owned(),
            authorities: BTreeMap::new(),
            certificate_providers: BTreeMap::new(),
        }
    }

    /// Reads the JSON text.
    ///
    /// # Errors
    /// It is not JSON, lacks a server, or a field is wrong; the error names the field's path.
    pub fn from_json(text: &str) -> Result<Self, InvalidBootstrap> {
        let root: Value = serde_json::from_str(text).map_err(|e| Invalid::whole(format!("not JSON: {e}")))?;
        Ok(Self::read(&At::root(&root))?)
    }

    fn read(root: &At<'_>) -> Result<Self, Invalid> {
        let servers = XdsServer::read_all(&root.required("xds_servers")?)?;
        if servers.is_empty() {
            return Err(root.at("xds_servers").invalid("it needs at least one server"));
        }
        let text_or = |name: &str, default: &str| Ok(root.text(name)?.unwrap_or_else(|| default.to_owned()));
        Ok(Self {
            servers,
            node: root.optional("node").map_or_else(|| Ok(Node::default()), |node| Node::read(&node))?,
            server_listener_template: text_or("server_listener_resource_name_template", DEFAULT_INBOUND_TEMPLATE)?,
            client_listener_template: text_or("client_default_listener_resource_name_template", "%s")?,
            authorities: read_map(root, "authorities", Authority::read)?,
            certificate_providers: read_map(root, "certificate_providers", |_, at| CertificateProvider::read(at))?,
        })
    }

    /// Finds and reads the bootstrap that the environment names: the file of [`FILE_VARIABLE`], else
    /// the text of [`CONFIG_VARIABLE`]. `None` when neither is set or both are empty.
    ///
    /// # Errors
    /// The file cannot be read, or as [`Bootstrap::from_json`].
    pub fn from_env(variable: &dyn Fn(&str) -> Option<String>) -> Result<Option<Self>, InvalidBootstrap> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        if let Some(path) = set(FILE_VARIABLE) {
            let text = std::fs::read_to_string(&path)
                .map_err(|e| Invalid::whole(format!("{FILE_VARIABLE}={path} cannot be read: {e}")))?;
            return Self::from_json(&text).map(Some);
        }
        set(CONFIG_VARIABLE).map(|text| Self::from_json(&text)).transpose()
    }

    /// The control planes to ask for a resource, in order of preference: those of the authority of an
    /// `xdstp` name, else those of the top level. Empty if the bootstrap does not know the authority: then
    /// there is nobody to ask, which is an error of the one who named the resource (gRFC A47).
    pub fn servers_for(&self, resource_name: &str) -> &[XdsServer] {
        let Some(authority) = name::authority(resource_name) else { return &self.servers };
        match self.authorities.get(&*authority) {
            None => &[],
            Some(authority) if authority.servers.is_empty() => &self.servers,
            Some(authority) => &authority.servers,
        }
    }

    /// The control plane of choice: the first.
    pub fn server(&self) -> &XdsServer {
        self.servers.first().expect("a bootstrap is only made with a server")
    }

    /// Resource name of a dialled destination's listener: the template of its authority if it has one, else
    /// the default template. The name is [normal](name::normalise). For an authority that the bootstrap does
    /// not know it is a name that no server is [asked for](Self::servers_for).
    pub fn listener_name(&self, target: &Target) -> String {
        // Of another scheme it is nobody's.
        let name = if target.scheme() == Scheme::Mesh { target.host_port() } else { target.as_str() };
        match target.authority() {
            None => name::fill(&self.client_listener_template, name),
            Some(authority) => match self.authorities.get(authority) {
                Some(known) => name::fill(&known.client_listener_template, name),
                None => name::fill(&name::default_template(authority), name),
            },
        }
    }

    /// Resource name of a listening address; [normal](name::normalise).
    pub fn inbound_name(&self, address: SocketAddr) -> String {
        name::fill(&self.server_listener_template, &address.to_string())
    }
}

impl Node {
    fn read(at: &At<'_>) -> Result<Self, Invalid> {
        let text = |name: &str| Ok(at.text(name)?.unwrap_or_default());
        let locality = match at.optional("locality") {
            None => Locality::default(),
            Some(locality) => {
                let part = |name: &str| Ok(locality.text(name)?.unwrap_or_default());
                Locality { region: part("region")?, zone: part("zone")?, sub_zone: part("sub_zone")? }
            }
        };
        let metadata = at.optional("metadata").map(|m| m.object().cloned()).transpose()?.unwrap_or_default();
        Ok(Self { id: text("id")?, cluster: text("cluster")?, locality, metadata })
    }
}

fn read_map<T>(
    root: &At<'_>,
    name: &str,
    read: impl Fn(&str, &At<'_>) -> Result<T, Invalid>,
) -> Result<BTreeMap<String, T>, Invalid> {
    let Some(map) = root.optional(name) else { return Ok(BTreeMap::new()) };
    map.entries()?.map(|(key, at)| Ok((key.to_owned(), read(key, &at)?))).collect()
}

/// A bootstrap that cannot be used: which field, why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("xDS bootstrap: {path}: {reason}")]
pub struct InvalidBootstrap {
    /// JSON path, such as `xds_servers[0].channel_creds`; `$` is the whole document.
    pub path: String,
    /// Why it is refused.
    pub reason: String,
}

impl From<Invalid> for InvalidBootstrap {
    fn from(Invalid { path, reason }: Invalid) -> Self {
        Self { path, reason }
    }
}
