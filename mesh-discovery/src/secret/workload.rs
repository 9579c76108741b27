//! An identity from the SPIFFE Workload API: an agent on the node says who this process is, on a stream.
//!
//! Each message is the full truth: a bundle that is absent is trusted no more. A message that cannot be used, and a
//! federated bundle or revocation list that cannot be read, leave what was good before.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::{SpiffeId, TrustDomain};
use mesh_core::identity::{
    Identity, InvalidBundle, InvalidIdentity, PeerRefused, TrustBundle, TrustBundles, Usage, certificates_of_der,
    peer_spiffe_id, verify_svid,
};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use tonic::Streaming;
use zeroize::{Zeroize, Zeroizing};

use super::lists;
use crate::bootstrap::{ChannelCredentials, ServerUri, XdsServer};
use crate::clock::Clock;
use crate::connect::{ConnectError, Connection, Connector, status_text};
use crate::proto::workload::{WorkloadApiClient, X509Svid, X509SvidResponse};

/// Which agent is asked, and for which identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadApi {
    server: ServerUri,
    hint: Option<String>,
}

/// A text that is not an endpoint of the Workload API.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an agent's endpoint: give unix:///path or tcp://ip:port")]
pub struct InvalidEndpoint(String);

impl WorkloadApi {
    /// Asks for the identity that the operator calls so. Default: the first one, which is the agent's choice.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// `SPIFFE_ENDPOINT_SOCKET` (SPIFFE Workload Endpoint 4): `unix:///path` or `tcp://ip:port`.
impl FromStr for WorkloadApi {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let invalid = || InvalidEndpoint(text.to_owned());
        let server = if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') || path.contains(['?', '#']) {
                return Err(invalid());
            }
            ServerUri::Unix(path.to_owned())
        } else {
            // No names: who answers for a name would be who this process is.
            let address: std::net::SocketAddr =
                text.strip_prefix("tcp://").and_then(|address| address.parse().ok()).ok_or_else(invalid)?;
            ServerUri::Tcp { host: address.ip().to_string(), port: address.port() }
        };
        Ok(Self { server, hint: None })
    }
}

/// The agent, the stream to it, and what was good of it last.
pub(super) struct Agent {
    connector: Connector,
    /// It lasts as long as its connection.
    stream: Option<(Streaming<X509SvidResponse>, Connection)>,
    reading: Reading,
    clock: Clock,
}

/// Turns messages into identities.
struct Reading {
    hint: Option<String>,
    crypto: Arc<CryptoProvider>,
    federated: BTreeMap<TrustDomain, TrustBundle>,
    lists: Vec<Vec<u8>>,
    generation: u64,
}

/// Why an agent brings no identity.
#[derive(Debug, thiserror::Error)]
pub(super) enum AgentRefused {
    #[error("{0}")]
    Connect(#[from] ConnectError),
    #[error("the agent says: {0}")]
    Status(String),
    #[error("the agent ended the stream")]
    Ended,
    #[error("the agent knows no identity of this process{0}")]
    NoIdentity(String),
    #[error("the agent's certificate: {0}")]
    Certificate(#[from] PeerRefused),
    #[error("the agent's certificate is of {got} and the message says {said}")]
    OtherName { got: SpiffeId, said: String },
    #[error("the agent's roots: {0}")]
    Bundle(#[from] InvalidBundle),
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
}

impl Agent {
    pub(super) fn new(api: WorkloadApi, crypto: Arc<CryptoProvider>, clock: Clock) -> Self {
        let server = XdsServer::new(api.server, ChannelCredentials::Insecure);
        let connector = Connector::new(server, crypto.clone());
        let reading = Reading { hint: api.hint, crypto, federated: BTreeMap::new(), lists: Vec::new(), generation: 0 };
        Self { connector, stream: None, reading, clock }
    }

    /// The identity of the next message. After an error the next call connects anew.
    pub(super) async fn next(&mut self) -> Result<Identity, AgentRefused> {
        let (mut stream, connection) = match self.stream.take() {
            Some(open) => open,
            None => self.open().await?,
        };
        let message = stream.message().await.map_err(|status| AgentRefused::Status(status_text(&status)))?;
        let identity = self.reading.take(message.ok_or(AgentRefused::Ended)?, (self.clock)())?;
        self.stream = Some((stream, connection));
        Ok(identity)
    }

    async fn open(&self) -> Result<(Streaming<X509SvidResponse>, Connection), AgentRefused> {
        let connection = self.connector.connect_as(None).await?;
        let mut client = WorkloadApiClient::with_origin(connection.clone(), connection.origin());
        let opened = client.fetch_x509_svid().await.map_err(|status| AgentRefused::Status(status_text(&status)))?;
        Ok((opened.into_inner(), connection))
    }
}

impl Reading {
    fn take(&mut self, message: X509SvidResponse, now: u64) -> Result<Identity, AgentRefused> {
        let X509SvidResponse { svids, crl, federated_bundles } = message;
        let svid = self.choose(svids)?;
        let X509Svid { spiffe_id: said, x509_svid, x509_svid_key, bundle, .. } = svid;
        // Wiped when it is dropped, whatever becomes of the rest.
        let key = Zeroizing::new(x509_svid_key);
        let chain = certificates_of_der(&x509_svid)?;
        let got = peer_spiffe_id(&chain[0])?;
        if got.as_str() != said {
            return Err(AgentRefused::OtherName { got, said });
        }
        let algorithms = self.crypto.signature_verification_algorithms.all;
        let roots = TrustBundle::new(certificates_of_der(&bundle)?)?;
        let own = lists::newer(roots, crl, &self.lists, &chain, algorithms, now)?;
        let lists = own.revocation_lists().to_vec();
        let federated = self.federated(federated_bundles, &got.trust_domain());
        let mut bundles = TrustBundles::single(got.trust_domain(), own);
        for (domain, bundle) in &federated {
            bundles.insert(domain.clone(), bundle.clone());
        }
        verify_svid(&chain, &bundles, algorithms, UnixTime::since_unix_epoch(Duration::from_secs(now)), Usage::Server)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
        let certified = CertifiedKey::from_der(chain, key, &self.crypto).map_err(InvalidIdentity::from)?;
        let identity = Identity::new(certified, bundles, self.generation)?;
        // Only of a message that holds.
        (self.lists, self.federated) = (lists, federated);
        self.generation += 1;
        Ok(identity)
    }

    /// The one that the operator's word means, or the first. Keys of the others are wiped: they are not ours to use.
    fn choose(&self, svids: Vec<X509Svid>) -> Result<X509Svid, AgentRefused> {
        let mut chosen = None;
        for mut svid in svids {
            if chosen.is_none() && self.hint.as_ref().is_none_or(|hint| svid.hint == *hint) {
                chosen = Some(svid);
            } else {
                svid.x509_svid_key.zeroize();
            }
        }
        chosen.ok_or_else(|| {
            AgentRefused::NoIdentity(
                self.hint.as_ref().map(|hint| format!(" that is called {hint:?}")).unwrap_or_default(),
            )
        })
    }

    /// The bundles of other domains; one that cannot be read is the one of before, if there was one.
    fn federated(&self, said: BTreeMap<String, Vec<u8>>, own: &TrustDomain) -> BTreeMap<TrustDomain, TrustBundle> {
        let mut known = BTreeMap::new();
        for (name, der) in said {
            let domain = match TrustDomain::new(name.strip_prefix("spiffe://").unwrap_or(&name)) {
                Ok(domain) if domain == *own => continue,
                Ok(domain) => domain,
                Err(error) => {
                    tracing::warn!(%error, "a federated bundle of the agent is passed over");
                    continue;
                }
            };
            let read = certificates_of_der(&der).map_err(|e| e.to_string());
            match read.and_then(|roots| TrustBundle::new(roots).map_err(|e| e.to_string())) {
                Ok(bundle) => drop(known.insert(domain, bundle)),
                Err(error) => {
                    tracing::error!(%domain, %error, "a federated bundle: the last good one stays in use");
                    if let Some(bundle) = self.federated.get(&domain) {
                        known.insert(domain, bundle.clone());
                    }
                }
            }
        }
        known
    }
}

#[cfg(test)]
mod tests;
