//! One certificate: key, signing request, the CA's answer, and everything that is checked of it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::TrustDomain;
use mesh_core::identity::{
    Identity, InvalidBundle, InvalidIdentity, PeerRefused, SpiffeServerVerifier, TrustBundle, TrustBundles,
    peer_spiffe_id,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::client::danger::ServerCertVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;

use super::JoinToken;
use crate::bootstrap::ChannelCredentials;
use crate::connect::{ConnectError, Connector, status_text, tls};
use crate::proto::certificate::{IstioCertificateRequest, IstioCertificateServiceClient};

/// Time for the CA's answer once connected.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks a CA for certificates.
#[derive(Clone)]
pub struct CertificateAuthorityClient {
    connector: Connector,
    validity: Duration,
    trust_domain: Option<TrustDomain>,
}

/// How a request for a certificate is proved.
pub(super) enum Proof<'a> {
    /// By a join token.
    Token(Option<&'a JoinToken>),
    /// By the certificate of the moment, over mutual TLS.
    Certificate(&'a Identity),
}

impl CertificateAuthorityClient {
    /// A client of the CA that `connector` reaches. `validity` is the life asked for; a certificate of
    /// another trust domain than `trust_domain` is refused.
    pub fn new(connector: Connector, validity: Duration, trust_domain: Option<TrustDomain>) -> Self {
        Self { connector, validity, trust_domain }
    }

    /// The first identity, proved by a token.
    ///
    /// # Errors
    /// The token cannot be read, the CA cannot be reached or says no, or its answer does not hold.
    pub async fn first(&self, token: Option<&JoinToken>, now: u64) -> Result<Identity, CertificateRefused> {
        self.issue(Proof::Token(token), 0, now).await
    }

    /// The next identity, proved by the current one over mutual TLS.
    ///
    /// # Errors
    /// As for the first; or the new certificate names somebody else.
    pub async fn renew(&self, current: &Identity, now: u64) -> Result<Identity, CertificateRefused> {
        let next = self.issue(Proof::Certificate(current), current.generation() + 1, now).await?;
        if next.id() != current.id() {
            return Err(CertificateRefused::OtherName { got: next.id().to_string(), want: current.id().to_string() });
        }
        Ok(next)
    }

    pub(super) async fn issue(
        &self,
        proof: Proof<'_>,
        generation: u64,
        now: u64,
    ) -> Result<Identity, CertificateRefused> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let chain = self.ask(proof, &key).await?;
        self.identity(&chain, key, generation, now)
    }

    async fn ask(&self, proof: Proof<'_>, key: &KeyPair) -> Result<Vec<String>, CertificateRefused> {
        let mut params = CertificateParams::default();
        // Names are the CA's to give: it takes them from the proof, never from the request.
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(key)?.pem()?;
        let validity_duration = i64::try_from(self.validity.as_secs()).unwrap_or(i64::MAX);
        let mut request = tonic::Request::new(IstioCertificateRequest { csr, validity_duration, metadata: None });
        request.set_timeout(ANSWER_TIMEOUT);
        let connection = match proof {
            Proof::Certificate(identity) => self.connector.connect_as(Some(identity)).await?,
            Proof::Token(token) => {
                if let Some(token) = token {
                    let mut bearer: tonic::metadata::MetadataValue<_> =
                        format!("Bearer {}", token.read().await?).parse().map_err(|_| CertificateRefused::TokenText)?;
                    bearer.set_sensitive(true);
                    request.metadata_mut().insert("authorization", bearer);
                }
                self.connector.connect_as(None).await?
            }
        };
        let mut client = IstioCertificateServiceClient::with_origin(connection.clone(), connection.origin());
        match tokio::time::timeout(ANSWER_TIMEOUT, client.create_certificate(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner().cert_chain),
            Ok(Err(status)) => Err(CertificateRefused::Status(status_text(&status))),
            Err(_) => Err(CertificateRefused::Status(format!("no answer within {ANSWER_TIMEOUT:?}"))),
        }
    }

    /// Joins chain and key into an identity after checking that it would be accepted by our peers.
    fn identity(
        &self,
        chain: &[String],
        key: KeyPair,
        generation: u64,
        now: u64,
    ) -> Result<Identity, CertificateRefused> {
        let mut certificates = Vec::new();
        for pem in chain {
            let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
            certificates.push(parsed.map_err(|e| CertificateRefused::Chain(format!("it is not PEM: {e}")))?);
        }
        // Leaf first, root last; a chain of one text brings no root.
        let last = if certificates.len() > 1 { certificates.pop().unwrap_or_default() } else { Vec::new() };
        let presented: Vec<_> = certificates.into_iter().flatten().collect();
        let leaf = presented.first().ok_or_else(|| CertificateRefused::Chain("it is empty".to_owned()))?.clone();
        let id = peer_spiffe_id(&leaf)?;
        let domain = id.trust_domain();
        if let Some(want) = self.trust_domain.as_ref().filter(|want| **want != domain) {
            return Err(CertificateRefused::OtherName { got: id.to_string(), want: format!("trust domain {want}") });
        }
        let bundles = TrustBundles::single(domain, TrustBundle::new(self.roots(last)?)?);
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let crypto = self.connector.crypto();
        let signing = crypto.key_provider.load_private_key(der).map_err(InvalidIdentity::from)?;
        let verifier = SpiffeServerVerifier::new(bundles.clone(), Vec::new(), crypto.clone());
        let name = ServerName::try_from("localhost").expect("a DNS name");
        verifier
            .verify_server_cert(
                &leaf,
                &presented[1..],
                &name,
                &[],
                UnixTime::since_unix_epoch(Duration::from_secs(now)),
            )
            .map_err(|e| CertificateRefused::Chain(e.to_string()))?;
        Ok(Identity::new(CertifiedKey::new(presented, signing), bundles, generation)?)
    }

    /// The roots of the answer and of the root file, united: during a change of roots both are good.
    fn roots(
        &self,
        mut roots: Vec<CertificateDer<'static>>,
    ) -> Result<Vec<CertificateDer<'static>>, CertificateRefused> {
        if let ChannelCredentials::Tls(files) = self.connector.credentials()
            && let Some(path) = &files.ca_certificate_file
        {
            for root in tls::read_certificates(path).map_err(CertificateRefused::Roots)? {
                if !roots.contains(&root) {
                    roots.push(root);
                }
            }
        }
        Ok(roots)
    }
}

/// Why there is no certificate.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateRefused {
    /// The token file cannot be read.
    #[error("the join token cannot be read from {path}: {reason}", path = path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The token has bytes that cannot be sent.
    #[error("the join token holds characters that cannot be sent: check its file")]
    TokenText,
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The CA said no.
    #[error("the certificate authority refused: {0}")]
    Status(String),
    /// The signing request could not be made.
    #[error("signing request: {0}")]
    Request(#[from] Arc<rcgen::Error>),
    /// The root file cannot be read.
    #[error("trusted roots: {0}")]
    Roots(String),
    /// The chain does not hold.
    #[error("the certificate chain from the authority does not hold: {0}")]
    Chain(String),
    /// The leaf is not a workload certificate.
    #[error("the certificate from the authority: {0}")]
    Leaf(#[from] PeerRefused),
    /// No usable root.
    #[error(transparent)]
    Bundle(#[from] InvalidBundle),
    /// Key and certificate do not belong together, or TLS refuses them.
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
    /// The certificate is for somebody else.
    #[error("the certificate from the authority is for {got}, not for {want}")]
    OtherName {
        /// Its SPIFFE ID.
        got: String,
        /// What was expected.
        want: String,
    },
}

impl From<rcgen::Error> for CertificateRefused {
    fn from(error: rcgen::Error) -> Self {
        Self::Request(Arc::new(error))
    }
}
