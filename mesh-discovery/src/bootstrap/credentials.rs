//! How a connection to a control plane is secured and what every RPC on it carries: `channel_creds` and
//! `call_creds` of a server.

use std::time::Duration;

use mesh_core::id::{SpiffeId, TrustDomain};

use crate::json::{At, DEFAULT_REFRESH, Invalid, both_or_neither, refresh_interval};

/// `channel_creds` (gRFC A27, A65).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ChannelCredentials {
    /// Plaintext.
    Insecure,
    /// TLS.
    Tls(TlsCredentials),
}

/// Files of `tls` channel credentials. They are read for every connection; when that fails, what was read
/// last stays in use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TlsCredentials {
    /// PEM file of trusted roots. None = the system's.
    pub ca_certificate_file: Option<String>,
    /// PEM files of our chain and key. None = the mesh identity, where there is one.
    pub identity: Option<(String, String)>,
    /// The one SPIFFE ID that the server's certificate must have, beside the name it was dialled by (`server_spiffe_id`,
    /// which gRPC does not know). None = any certificate of that name will do.
    pub server_id: Option<SpiffeId>,
    /// Further trust domains by which that may be the same one: other names of the mesh's. Default: none.
    pub server_id_aliases: Vec<TrustDomain>,
    /// How old the files' content may be when a connection is made. Default 600 s. A connection keeps to
    /// it by reading them anew.
    pub refresh_interval: Duration,
}

impl Default for TlsCredentials {
    fn default() -> Self {
        Self {
            ca_certificate_file: None,
            identity: None,
            server_id: None,
            server_id_aliases: Vec::new(),
            refresh_interval: DEFAULT_REFRESH,
        }
    }
}

/// One entry of `call_creds` (gRFC A97): what is sent with every RPC.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallCredentials {
    /// `jwt_token_file`: a bearer token out of a file, as Kubernetes projects it.
    JwtTokenFile {
        /// The file.
        path: String,
    },
}

impl ChannelCredentials {
    /// The first entry of a known type wins.
    pub(super) fn read(at: &At<'_>) -> Result<Self, Invalid> {
        for entry in at.items()? {
            match entry.required("type")?.string()? {
                "insecure" => return Ok(Self::Insecure),
                "tls" => {
                    return entry
                        .optional("config")
                        .map_or_else(|| Ok(TlsCredentials::default()), read_tls)
                        .map(Self::Tls);
                }
                _ => {}
            }
        }
        Err(at.invalid("no entry has a known type; known are \"insecure\" and \"tls\""))
    }
}

fn read_tls(config: At<'_>) -> Result<TlsCredentials, Invalid> {
    config.object()?;
    Ok(TlsCredentials {
        ca_certificate_file: config.text("ca_certificate_file")?,
        identity: both_or_neither(&config, "certificate_file", "private_key_file")?,
        server_id: server_id(&config)?,
        server_id_aliases: Vec::new(),
        refresh_interval: refresh_interval(&config)?,
    })
}

fn server_id(config: &At<'_>) -> Result<Option<SpiffeId>, Invalid> {
    let Some(id) = config.text("server_spiffe_id")? else { return Ok(None) };
    let field = config.required("server_spiffe_id")?;
    id.parse().map(Some).map_err(|e| field.invalid(format!("{e}")))
}

impl CallCredentials {
    /// Every entry of a known type counts; others are passed over.
    pub(super) fn read_all(at: &At<'_>) -> Result<Vec<Self>, Invalid> {
        let mut known = Vec::new();
        for entry in at.items()? {
            if entry.required("type")?.string()? == "jwt_token_file" {
                let file = entry.required("config")?.required("jwt_token_file")?;
                let path = file.string()?.to_owned();
                if path.is_empty() {
                    return Err(file.invalid("it must name a file"));
                }
                known.push(Self::JwtTokenFile { path });
            }
        }
        Ok(known)
    }
}
