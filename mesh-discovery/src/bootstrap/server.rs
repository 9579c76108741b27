//! One entry of `xds_servers`: address, credentials, features.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use std::str::FromStr;

use super::{CallCredentials, ChannelCredentials};
use crate::json::{At, Invalid};

/// A control plane. Servers that are equal share a connection, whatever part of the bootstrap names them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct XdsServer {
    /// Where it is.
    pub uri: ServerUri,
    /// How the connection is secured.
    pub credentials: ChannelCredentials,
    /// What is sent with every RPC, all of them (gRFC A97). Default none.
    pub call_credentials: Vec<CallCredentials>,
    /// What it wants or can.
    pub features: ServerFeatures,
}

/// Where a control plane is: `host:port`, `dns:///host:port`, `ipv4:address:port`, `ipv6:[address]:port` or `unix:///path`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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

/// `server_features`; unknown ones are ignored (gRFC A30, A53, A81, A88).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ServerFeatures {
    /// `ignore_resource_deletion` (A53): a resource that the server deleted stays in use. Read and without effect, for so it
    /// is here with every server; what decides is [`fail_on_data_errors`](Self::fail_on_data_errors), before which this one
    /// gives way (A88 puts that in its place).
    pub ignore_resource_deletion: bool,
    /// `trusted_xds_server` (A81): it may order authority rewriting.
    pub trusted_xds_server: bool,
    /// `fail_on_data_errors` (A88): a deletion or a refused resource takes the last good one out of use, whatever
    /// [`ignore_resource_deletion`](Self::ignore_resource_deletion) says.
    pub fail_on_data_errors: bool,
    /// `resource_timer_is_transient_error` (A88): a resource that does not come in time may still come, so
    /// it counts as late and not as missing.
    pub resource_timer_is_transient_error: bool,
}

impl XdsServer {
    /// A server with no call credentials and no features.
    pub fn new(uri: ServerUri, credentials: ChannelCredentials) -> Self {
        Self { uri, credentials, call_credentials: Vec::new(), features: ServerFeatures::default() }
    }

    pub(super) fn read_all(at: &At<'_>) -> Result<Vec<Self>, Invalid> {
        at.items()?.iter().map(Self::read).collect()
    }

    fn read(at: &At<'_>) -> Result<Self, Invalid> {
        let uri = at.required("server_uri")?;
        let calls = at.optional("call_creds").map(|calls| CallCredentials::read_all(&calls)).transpose()?;
        let features = at.optional("server_features").map(|f| read_features(&f)).transpose()?;
        Ok(Self {
            uri: uri.string()?.parse().map_err(|e: InvalidServerUri| uri.invalid(e.to_string()))?,
            credentials: ChannelCredentials::read(&at.required("channel_creds")?)?,
            call_credentials: calls.unwrap_or_default(),
            features: features.unwrap_or_default(),
        })
    }
}

fn read_features(at: &At<'_>) -> Result<ServerFeatures, Invalid> {
    let mut features = ServerFeatures::default();
    // An entry that is not a string is a feature of the future, not a mistake.
    for name in at.items()?.iter().filter_map(|item| item.string().ok()) {
        match name {
            "ignore_resource_deletion" => features.ignore_resource_deletion = true,
            "trusted_xds_server" => features.trusted_xds_server = true,
            "fail_on_data_errors" => features.fail_on_data_errors = true,
            "resource_timer_is_transient_error" => features.resource_timer_is_transient_error = true,
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
        type Fits = fn(&str) -> bool;
        let (name, fits): (_, Fits) = match text.split_once(':') {
            Some(("dns", rest)) => (rest.trim_start_matches('/'), |_| true),
            Some(("ipv4", rest)) if rest.contains(':') => (rest, |host| host.parse::<Ipv4Addr>().is_ok()),
            Some(("ipv6", rest)) if rest.contains(':') => (rest, |host| host.parse::<Ipv6Addr>().is_ok()),
            _ => (text, |_| true),
        };
        if name.contains(',') {
            return Err(invalid("it lists several addresses; name each as a server of its own"));
        }
        let (host, port) = name.rsplit_once(':').ok_or_else(|| invalid("a port is needed, as in localhost:15010"))?;
        let port: NonZeroU16 = port.parse().map_err(|_| invalid("the port must be 1 to 65535"))?;
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        if host.is_empty() || host.contains('/') {
            let forms =
                "it must be host:port, dns:///host:port, ipv4:address:port, ipv6:[address]:port or unix:///path";
            return Err(invalid(forms));
        }
        if bare.is_none() && host.contains(':') {
            return Err(invalid("an IPv6 address needs brackets, as in [::1]:15010"));
        }
        let host = bare.unwrap_or(host);
        if host.is_empty() || !fits(host) {
            return Err(invalid("it is no address of its kind"));
        }
        Ok(Self::Tcp { host: host.to_owned(), port: port.get() })
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
