//! One certificate: key, signing request, the CA's answer, and everything that is checked of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::TrustDomain;
use mesh_core::identity::{
    Identity, InvalidBundle, InvalidIdentity, PeerRefused, TrustBundle, TrustBundles, Usage, peer_spiffe_id,
    verify_path, verify_svid,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::mounted::Mounted;
use super::{JoinToken, TokenFiles, lists};
use crate::bootstrap::ChannelCredentials;
use crate::connect::{ConnectError, Connector, status_text};
use crate::proto::certificate::{IstioCertificateRequest, IstioCertificateResponse, IstioCertificateServiceClient};
use crate::proto::trust::{FederatedBundle, TrustBundleServiceClient, WatchTrustBundle};

/// Time for the CA's answer once connected.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks a CA for certificates.
#[derive(Clone)]
pub struct CertificateAuthorityClient {
    connector: Connector,
    validity: Duration,
    trust_domain: Option<TrustDomain>,
    aliases: Vec<TrustDomain>,
    mounted: Arc<Mounted>,
    tokens: Arc<TokenFiles>,
}

/// How a request for a certificate is proved.
pub(super) enum Proof<'a> {
    /// By a token, as at first; what is left of an identity says which roots to trust.
    Token(Option<&'a JoinToken>, Option<&'a Identity>),
    /// By the certificate of the moment, over mutual TLS; and by a token beside it if that is good more than once.
    Certificate(&'a Identity, Option<&'a JoinToken>),
}

/// Why a stream of roots brings no more.
pub(super) enum RootsEnded {
    /// The authority has no such thing: other roots come with the next certificate.
    Unsupported,
    /// The connection was made and nothing was said over it: so it is for who shows a certificate that is not trusted.
    Untold(String),
    /// Something else.
    Broken(String),
}

impl CertificateAuthorityClient {
    /// A client of the CA that `connector` reaches. `validity` is the life asked for; a certificate of
    /// another trust domain than `trust_domain` and its aliases is refused.
    pub fn new(connector: Connector, validity: Duration, trust_domain: Option<TrustDomain>) -> Self {
        Self { connector, validity, trust_domain, aliases: Vec::new(), mounted: Arc::default(), tokens: Arc::default() }
    }

    /// Further names of the trust domain, former ones and one to come: a certificate may be of either
    /// ([`TrustBundles::alias`](mesh_core::identity::TrustBundles::alias)). Default: none.
    #[must_use]
    pub fn trust_domain_aliases(mut self, aliases: Vec<TrustDomain>) -> Self {
        self.aliases = aliases;
        self
    }

    /// The first identity, proved by a token.
    ///
    /// # Errors
    /// The token cannot be read, the CA cannot be reached or says no, or its answer does not hold.
    pub async fn first(&self, token: Option<&JoinToken>, now: u64) -> Result<Identity, CertificateRefused> {
        self.issue(Proof::Token(token, None), 0, now).await
    }

    /// The next identity, proved by the current one over mutual TLS.
    ///
    /// # Errors
    /// As for the first; or the new certificate names somebody else.
    pub async fn renew(&self, current: &Identity, now: u64) -> Result<Identity, CertificateRefused> {
        self.renew_with(current, None, now).await
    }

    /// The same with the token of a service account beside it, which proves that the workload is still there.
    pub(super) async fn renew_with(
        &self,
        current: &Identity,
        token: Option<&JoinToken>,
        now: u64,
    ) -> Result<Identity, CertificateRefused> {
        let key = new_key()?;
        let answer = self.ask(Proof::Certificate(current, token), &key, now).await?;
        let next = self.identity(answer, &key, current.generation() + 1, lists_of(current), now).await?;
        // A mesh that is renamed gives its members their new name so.
        let renamed = next.bundles().aliased(current.id());
        if next.id() != current.id() && renamed.as_ref() != Some(next.id()) {
            return Err(CertificateRefused::OtherName { got: next.id().to_string(), want: current.id().to_string() });
        }
        Ok(next)
    }

    /// The names of the trust domain that were configured.
    fn names(&self) -> impl Iterator<Item = &TrustDomain> {
        self.trust_domain.iter().chain(&self.aliases)
    }

    /// Whom to trust: our own domain, its aliases, and those that the authority names beside it. Of our names its own roots
    /// alone vouch, whatever it says.
    fn bundles(&self, domain: &TrustDomain, own: TrustBundle, federated: Vec<FederatedBundle>) -> TrustBundles {
        let mut bundles = TrustBundles::single(domain.clone(), own);
        for alias in self.names().filter(|name| *name != domain) {
            bundles.alias(alias.clone(), domain.clone());
        }
        for FederatedBundle { trust_domain: name, roots } in federated {
            let read = || {
                let other = TrustDomain::new(&name).map_err(|e| e.to_string())?;
                if other == *domain || self.names().any(|name| *name == other) {
                    return Err(format!("it is a name of {domain}, of which only that one's roots vouch"));
                }
                let bundle = TrustBundle::new(roots.into_iter().map(CertificateDer::from));
                Ok((other, bundle.map_err(|e| e.to_string())?))
            };
            match read() {
                Ok((other, bundle)) => bundles.insert(other, bundle),
                Err(error) => {
                    tracing::error!(domain = name, %error, "a federated trust domain of the authority is passed over");
                }
            }
        }
        bundles
    }

    /// Waits until the authority names other roots than those of `current`, and gives it with them. Whose certificate is
    /// refused, for its root may be gone, asks without one. Where the authority has no such thing, the root file may.
    pub(super) async fn other_roots(&self, current: &Identity, now: impl Fn() -> u64) -> Result<Identity, RootsEnded> {
        let told = match self.roots_over(&self.connector, current, &now).await {
            Err(RootsEnded::Untold(_)) => self.roots_over(&self.connector.unshown(), current, &now).await,
            told => told,
        };
        match told {
            Err(RootsEnded::Unsupported) => {
                self.mounted.tells(false);
                self.mounted_roots(current).await.ok_or(RootsEnded::Unsupported)
            }
            told => told,
        }
    }

    /// `current` with what the root file says now, if that counts and is something else.
    pub(super) async fn mounted_roots(&self, current: &Identity) -> Option<Identity> {
        // Who gives lists says whom to trust by itself.
        let roots = self.mounted.look(self.root_file()?).await.filter(|_| lists_of(current).is_empty())?;
        let mut bundles = current.bundles().clone();
        bundles.insert(current.id().trust_domain(), TrustBundle::new(roots).ok()?);
        (*current.bundles() != bundles).then(|| current.trusting(bundles))
    }

    async fn roots_over(
        &self,
        connector: &Connector,
        current: &Identity,
        now: &impl Fn() -> u64,
    ) -> Result<Identity, RootsEnded> {
        let broken = |reason: &dyn ToString| RootsEnded::Broken(reason.to_string());
        let connection = connector.connect_as(Some(current)).await.map_err(|e| broken(&e))?;
        let mut client = TrustBundleServiceClient::with_origin(connection.clone(), connection.origin());
        let mut told = false;
        let status = |told: bool| {
            move |status: tonic::Status| match status.code() {
                tonic::Code::Unimplemented => RootsEnded::Unsupported,
                _ if told => RootsEnded::Broken(status_text(&status)),
                _ => RootsEnded::Untold(status_text(&status)),
            }
        };
        let mut stream = client.watch(WatchTrustBundle {}).await.map_err(status(told))?.into_inner();
        let domain = current.id().trust_domain();
        while let Some(message) = stream.message().await.map_err(status(told))? {
            told = true;
            self.mounted.tells(true);
            // A mesh that was renamed meanwhile has the roots of either name.
            if !self.names().chain([&domain]).any(|name| name.as_str() == message.trust_domain) {
                return Err(broken(&format!("roots of {}, not of {domain}", message.trust_domain)));
            }
            let (before, own) = (lists_of(current), &*current.certified().cert);
            let algorithms = self.connector.crypto().signature_verification_algorithms.all;
            let bundle = TrustBundle::from_pem(message.roots.as_bytes())
                .and_then(|roots| lists::newer(roots, message.revocation_lists, before, own, algorithms, now()))
                .map_err(|e| broken(&e))?;
            let bundles = self.bundles(&domain, bundle, message.federated);
            if *current.bundles() != bundles {
                return Ok(current.trusting(bundles));
            }
        }
        Err(broken(&"it ended"))
    }

    /// Whether one of the roots that `identity` trusts still vouches for its own certificate.
    pub(super) fn vouches_for(&self, identity: &Identity, now: u64) -> bool {
        let roots = identity.bundles().get(&identity.id().trust_domain());
        // Who is taken back is told so by the authority; this is about the roots alone.
        let roots = roots.and_then(|bundle| TrustBundle::new(bundle.roots().iter().cloned()).ok());
        let (Some(roots), Some((leaf, above))) = (roots, identity.certified().cert.split_first()) else { return false };
        let within = now.max(identity.not_before()).min(identity.not_after());
        let within = UnixTime::since_unix_epoch(Duration::from_secs(within));
        let algorithms = self.connector.crypto().signature_verification_algorithms.all;
        verify_path(leaf, above, &roots, algorithms, within, Usage::Server).is_ok()
    }

    async fn issue(&self, proof: Proof<'_>, generation: u64, now: u64) -> Result<Identity, CertificateRefused> {
        let key = new_key()?;
        self.issue_for(&key, proof, generation, now).await
    }

    /// The same for a key that there is, which whoever asks again about it keeps.
    pub(super) async fn issue_for(
        &self,
        key: &KeyPair,
        proof: Proof<'_>,
        generation: u64,
        now: u64,
    ) -> Result<Identity, CertificateRefused> {
        let answer = self.ask(proof, key, now).await?;
        self.identity(answer, key, generation, &[], now).await
    }

    async fn ask(
        &self,
        proof: Proof<'_>,
        key: &KeyPair,
        now: u64,
    ) -> Result<IstioCertificateResponse, CertificateRefused> {
        let mut params = CertificateParams::default();
        // Names are the CA's to give: it takes them from the proof, never from the request.
        params.distinguished_name = DistinguishedName::new();
        let csr = params.serialize_request(key)?.pem()?;
        let validity_duration = i64::try_from(self.validity.as_secs()).unwrap_or(i64::MAX);
        let mut request = tonic::Request::new(IstioCertificateRequest { csr, validity_duration, metadata: None });
        request.set_timeout(ANSWER_TIMEOUT);
        let connection = match proof {
            Proof::Certificate(identity, token) => {
                let token = match token {
                    Some(token) => match token.read(&self.tokens).await {
                        Ok(text) => Some(text).filter(|text| is_lasting(text)),
                        // A join token's file may be gone; an authority that demands the token says so itself.
                        Err(error) => {
                            tracing::warn!(%error, "the certificate is to be renewed without a token beside it");
                            None
                        }
                    },
                    None => None,
                };
                // An authority that goes by the same clock takes no certificate that has not begun.
                let shown = token.is_none() || now >= identity.not_before();
                if let Some(token) = token {
                    request.metadata_mut().insert("authorization", bearer(&token)?);
                }
                let connector = if shown { &self.connector } else { &self.connector.unshown() };
                connector.connect_as(Some(identity)).await?
            }
            Proof::Token(token, trusting) => {
                if let Some(token) = token {
                    request.metadata_mut().insert("authorization", bearer(&token.read(&self.tokens).await?)?);
                }
                self.connector.unshown().connect_as(trusting).await?
            }
        };
        let mut client = IstioCertificateServiceClient::with_origin(connection.clone(), connection.origin());
        match tokio::time::timeout(ANSWER_TIMEOUT, client.create_certificate(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(CertificateRefused::Status(status_text(&status))),
            Err(_) => Err(CertificateRefused::Status(format!("no answer within {ANSWER_TIMEOUT:?}"))),
        }
    }

    /// Joins chain and key into an identity after checking that it would be accepted by our peers.
    async fn identity(
        &self,
        answer: IstioCertificateResponse,
        key: &KeyPair,
        generation: u64,
        lists_before: &[Vec<u8>],
        now: u64,
    ) -> Result<Identity, CertificateRefused> {
        let mut certificates = Vec::new();
        for pem in &answer.cert_chain {
            let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
            certificates.push(parsed.map_err(|e| CertificateRefused::Chain(format!("it is not PEM: {e}")))?);
        }
        // Leaf first, root last; a chain of one text brings no root.
        let last = if certificates.len() > 1 { certificates.pop().unwrap_or_default() } else { Vec::new() };
        let presented: Vec<_> = certificates.into_iter().flatten().collect();
        let leaf = presented.first().ok_or_else(|| CertificateRefused::Chain("it is empty".to_owned()))?.clone();
        let id = peer_spiffe_id(&leaf)?;
        let domain = id.trust_domain();
        if let Some(want) = self.trust_domain.as_ref().filter(|_| self.names().all(|name| *name != domain)) {
            return Err(CertificateRefused::OtherName { got: id.to_string(), want: format!("trust domain {want}") });
        }
        let mut bundles = self.bundles(&domain, TrustBundle::new(self.roots(last).await?)?, answer.federated);
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let crypto = self.connector.crypto();
        let signing = crypto.key_provider.load_private_key(der).map_err(InvalidIdentity::from)?;
        let (algorithms, at) = (crypto.signature_verification_algorithms.all, Duration::from_secs(now));
        verify_svid(&presented, &bundles, algorithms, UnixTime::since_unix_epoch(at), Usage::Server)
            .map_err(|e| CertificateRefused::Chain(e.to_string()))?;
        if !answer.revocation_lists.is_empty()
            && let Some(roots) = bundles.get(&domain).cloned()
        {
            // After the check: that lists have ended is no reason to be without a certificate when newer ones come.
            let roots = lists::newer(roots, answer.revocation_lists, lists_before, &presented, algorithms, now)?;
            bundles.insert(domain, roots);
        }
        Ok(Identity::new(CertifiedKey::new(presented, signing), bundles, generation)?)
    }

    /// The roots of the answer, which are all that count if the authority tells of roots; else those of the root file beside
    /// them, and alone where the answer has none.
    async fn roots(
        &self,
        answer: Vec<CertificateDer<'static>>,
    ) -> Result<Vec<CertificateDer<'static>>, CertificateRefused> {
        match self.root_file() {
            Some(file) => self.mounted.beside(answer, file).await.map_err(CertificateRefused::Roots),
            None => Ok(answer),
        }
    }

    fn root_file(&self) -> Option<&Path> {
        match self.connector.credentials() {
            ChannelCredentials::Tls(files) => files.ca_certificate_file.as_deref().map(Path::new),
            _ => None,
        }
    }
}

/// A key for a certificate. What signs later is TLS' own copy: this one is wiped when it is dropped.
pub(super) fn new_key() -> Result<Zeroizing<KeyPair>, CertificateRefused> {
    Ok(Zeroizing::new(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?))
}

/// The revocation lists of an identity's own domain.
fn lists_of(identity: &Identity) -> &[Vec<u8>] {
    identity.bundles().get(&identity.id().trust_domain()).map(TrustBundle::revocation_lists).unwrap_or_default()
}

/// A token as the CA takes it; no log shows it.
fn bearer(token: &str) -> Result<tonic::metadata::MetadataValue<tonic::metadata::Ascii>, CertificateRefused> {
    let mut bearer: tonic::metadata::MetadataValue<_> =
        format!("Bearer {token}").parse().map_err(|_| CertificateRefused::TokenText)?;
    bearer.set_sensitive(true);
    Ok(bearer)
}

/// Whether a token is good more than once: a JWT, such as Kubernetes projects for a service account. A join token is
/// spent with the first certificate.
fn is_lasting(token: &str) -> bool {
    token.bytes().filter(|byte| *byte == b'.').count() == 2
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
    /// Those who trust the certificate of the moment are told not to any more, and there is no other one.
    #[error(
        "the root of this process's certificate is trusted no more, so peers refuse it, and a token is needed for a new \
         one: {0}"
    )]
    RootGone(Box<CertificateRefused>),
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
