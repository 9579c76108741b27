//! gRPC's xDS bootstrap file (gRFC A27, A29, A36, A47), unchanged: which control plane, who we are,
//! what our resources are called.
//!
//! Refuses to open a connection. Unknown fields are ignored at every level; an error names the JSON
//! path of what is wrong.

mod json;
mod server;
#[cfg(test)]
mod tests;

pub use self::server::{ChannelCredentials, InvalidServerUri, ServerFeatures, ServerUri, TlsCredentials, XdsServer};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_core::id::{Locality, Target};
use serde_json::{Map, Value};

use self::json::At;

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
    /// Control planes in order of preference, at least one. The first is used.
    pub servers: Vec<XdsServer>,
    /// Who we are.
    pub node: Node,
    /// `server_listener_resource_name_template`: `%s` is the listening `ip:port`. Default
    /// [`DEFAULT_INBOUND_TEMPLATE`].
    pub server_listener_template: String,
    /// `client_default_listener_resource_name_template`: `%s` is the dialled `host:port`. Default `%s`.
    pub client_listener_template: String,
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

/// One certificate provider instance (gRFC A29).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CertificateProvider {
    /// `file_watcher`: PEM files that are read again every so often.
    FileWatcher {
        /// Chain and key; both or neither.
        identity: Option<(String, String)>,
        /// Trusted roots.
        ca_certificate_file: Option<String>,
        /// How often. Default 600 s.
        refresh_interval: Duration,
    },
}

impl Bootstrap {
    /// A bootstrap with one control plane and every default.
    pub fn new(server: XdsServer, node: Node) -> Self {
        Self {
            servers: vec![server],
            node,
            server_listener_template: DEFAULT_INBOUND_TEMPLATE.to_owned(),
            client_listener_template: "%s".to_owned(),
            certificate_providers: BTreeMap::new(),
        }
    }

    /// Reads the JSON text.
    ///
    /// # Errors
    /// It is not JSON, lacks a server, or a field is wrong; the error names the field's path.
    pub fn from_json(text: &str) -> Result<Self, InvalidBootstrap> {
        let root: Value =
            serde_json::from_str(text).map_err(|e| InvalidBootstrap::new("$", format!("not JSON: {e}")))?;
        let root = At::root(&root);
        let servers = root.required("xds_servers")?.items()?;
        if servers.is_empty() {
            return Err(root.at("xds_servers").invalid("it needs at least one server"));
        }
        Ok(Self {
            servers: servers.iter().map(XdsServer::read).collect::<Result<_, _>>()?,
            node: root.optional("node").map_or_else(|| Ok(Node::default()), |node| Node::read(&node))?,
            server_listener_template: root
                .text("server_listener_resource_name_template")?
                .unwrap_or_else(|| DEFAULT_INBOUND_TEMPLATE.to_owned()),
            client_listener_template: root
                .text("client_default_listener_resource_name_template")?
                .unwrap_or_else(|| "%s".to_owned()),
            certificate_providers: read_providers(&root)?,
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
                .map_err(|e| InvalidBootstrap::new("$", format!("{FILE_VARIABLE}={path} cannot be read: {e}")))?;
            return Self::from_json(&text).map(Some);
        }
        set(CONFIG_VARIABLE).map(|text| Self::from_json(&text)).transpose()
    }

    /// The control plane in use: the first.
    pub fn server(&self) -> &XdsServer {
        self.servers.first().expect("a bootstrap is only made with a server")
    }

    /// Resource name of a dialled destination's listener.
    pub fn listener_name(&self, target: &Target) -> String {
        self.client_listener_template.replace("%s", target.as_str())
    }

    /// Resource name of a listening address.
    pub fn inbound_name(&self, address: SocketAddr) -> String {
        self.server_listener_template.replace("%s", &address.to_string())
    }
}

impl Node {
    fn read(at: &At<'_>) -> Result<Self, InvalidBootstrap> {
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

fn read_providers(root: &At<'_>) -> Result<BTreeMap<String, CertificateProvider>, InvalidBootstrap> {
    let Some(providers) = root.optional("certificate_providers") else { return Ok(BTreeMap::new()) };
    let mut read = BTreeMap::new();
    for name in providers.object()?.keys() {
        read.insert(name.clone(), CertificateProvider::read(&providers.at(name))?);
    }
    Ok(read)
}

impl CertificateProvider {
    fn read(at: &At<'_>) -> Result<Self, InvalidBootstrap> {
        let plugin = at.required("plugin_name")?;
        if plugin.string()? != "file_watcher" {
            return Err(plugin.invalid("the only plug-in known is \"file_watcher\""));
        }
        let config = at.required("config")?;
        let identity = json::both_or_neither(&config, "certificate_file", "private_key_file")?;
        let ca_certificate_file = config.text("ca_certificate_file")?;
        if identity.is_none() && ca_certificate_file.is_none() {
            return Err(config.invalid("it names neither a certificate nor roots"));
        }
        let refresh_interval = config.duration("refresh_interval")?.unwrap_or(Duration::from_secs(600));
        Ok(Self::FileWatcher { identity, ca_certificate_file, refresh_interval })
    }
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

impl InvalidBootstrap {
    fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { path: path.into(), reason: reason.into() }
    }
}
