//! One entry of `xds_servers`: address, channel credentials, features.

use std::fmt;
use std::str::FromStr;

use super::InvalidBootstrap;
use super::json::{At, both_or_neither};

/// A control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XdsServer {
    /// Where it is.
    pub uri: ServerUri,
    /// How the connection is secured.
    pub credentials: ChannelCredentials,
    /// What it wants or can.
    pub features: ServerFeatures,
}

/// Where a control plane is: `host:port`, `dns:///host:port` or `unix:///path`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerUri {
    /// Over TCP; the host is a DNS name or an IP address without brackets.
    Tcp {
        /// Host.
        host: String,
        /// Port.
        port: u16,
    },
    /// Over a unix socket, as Istio's agent offers it.
    Unix(String),
}

/// `channel_creds` (gRFC A27, A65).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChannelCredentials {
    /// Plaintext.
    Insecure,
    /// TLS.
    Tls(TlsCredentials),
}

/// Files of `tls` channel credentials; read anew for every connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsCredentials {
    /// PEM file of trusted roots. None = the system's.
    pub ca_certificate_file: Option<String>,
    /// PEM files of our chain and key. None = the mesh identity, where there is one.
    pub identity: Option<(String, String)>,
}

/// `server_features`; unknown ones are ignored (gRFC A30, A53, A81, A88).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerFeatures {
    /// `ignore_resource_deletion`: implied here, deletions always keep the last good resource.
    pub ignore_resource_deletion: bool,
    /// `trusted_xds_server`: it may order authority rewriting.
    pub trusted_xds_server: bool,
}

impl XdsServer {
    pub(super) fn read(at: &At<'_>) -> Result<Self, InvalidBootstrap> {
        let uri = at.required("server_uri")?;
        let features = at.optional("server_features").map(|f| read_features(&f)).transpose()?.unwrap_or_default();
        Ok(Self {
            uri: uri.string()?.parse().map_err(|e: InvalidServerUri| uri.invalid(e.to_string()))?,
            credentials: ChannelCredentials::read(&at.required("channel_creds")?)?,
            features,
        })
    }
}

impl ChannelCredentials {
    /// The first entry of a known type wins.
    fn read(at: &At<'_>) -> Result<Self, InvalidBootstrap> {
        for entry in at.items()? {
            match entry.required("type")?.string()? {
                "insecure" => return Ok(Self::Insecure),
                "tls" => {
                    let Some(config) = entry.optional("config") else {
                        return Ok(Self::Tls(TlsCredentials::default()));
                    };
                    config.object()?;
                    // Checked because gRPC checks it; files are read for every connection anyway.
                    config.duration("refresh_interval")?;
                    return Ok(Self::Tls(TlsCredentials {
                        ca_certificate_file: config.text("ca_certificate_file")?,
                        identity: both_or_neither(&config, "certificate_file", "private_key_file")?,
                    }));
                }
                _ => {}
            }
        }
        Err(at.invalid("no entry has a known type; known are \"insecure\" and \"tls\""))
    }
}

fn read_features(at: &At<'_>) -> Result<ServerFeatures, InvalidBootstrap> {
    let mut features = ServerFeatures::default();
    // An entry that is not a string is a feature of the future, not a mistake.
    for name in at.items()?.iter().filter_map(|item| item.string().ok()) {
        match name {
            "ignore_resource_deletion" => features.ignore_resource_deletion = true,
            "trusted_xds_server" => features.trusted_xds_server = true,
            _ => {}
        }
    }
    Ok(features)
}

impl FromStr for ServerUri {
    type Err = InvalidServerUri;

    fn from_str(text: &str) -> Result<Self, InvalidServerUri> {
        let invalid = |reason| InvalidServerUri { input: text.to_owned(), reason };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(invalid("the path is missing")) } else { Ok(Self::Unix(path.to_owned())) };
        }
        let name = text.strip_prefix("dns:").map_or(text, |rest| rest.trim_start_matches('/'));
        let (host, port) = name.rsplit_once(':').ok_or_else(|| invalid("a port is needed, as in localhost:15010"))?;
        let port = port.parse().map_err(|_| invalid("the port must be 1 to 65535"))?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains('/') {
            return Err(invalid("it must be host:port, dns:///host:port or unix:///path"));
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for ServerUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{path}"),
        }
    }
}

/// A text that is not a control plane's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a server address: {reason}")]
pub struct InvalidServerUri {
    input: String,
    reason: &'static str,
}
