//! [`ControlPlane`]: puts the parts together and runs them.
//!
//! ```text
//! directory ─ Model ─┐                      ┌ xDS ──────────┐
//!                    ├ World ─ Published ───┤               ├ one TLS port (HTTP/2)
//! Registry ──────────┘                      │ certificates ─┤
//!    └──────────────────────────────────────┴ registration ─┘
//! ```

mod services;
mod start;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::drain::DrainTrigger;
use mesh_core::id::{InvalidSpiffeId, SpiffeId, TrustDomain};
use mesh_core::source::WatchedIdentity;
use rustls::crypto::CryptoProvider;

use crate::ca::{CertificateAuthority, CertificateLife, Federation, JoinTokens, ServiceAccountTokens};
use crate::clock::Clock;
use crate::jwks::{FetchOptions, RootsError};
use crate::model::AccessPolicy;
use crate::registry::{self, Registration, Registry};
use crate::runtime::{self, CertificateError, Task};
use crate::source::directory::{Directory, WatchError};
use crate::state_dir::{StateDir, StateError};
use crate::translate::Options;

/// A running control plane. Dropping it stops everything at once; [`ControlPlane::shutdown`] lets
/// clients go first.
pub struct ControlPlane {
    address: SocketAddr,
    debug_address: Option<SocketAddr>,
    insecure_address: Option<SocketAddr>,
    authority: Arc<CertificateAuthority>,
    federation: Arc<Federation>,
    tokens: Arc<JoinTokens>,
    registry: Arc<Registry>,
    state: StateDir,
    crypto: Arc<CryptoProvider>,
    drain: DrainTrigger,
    /// Tasks that end by themselves once told to stop.
    ports: Vec<Task>,
    /// Tasks that run until they are dropped.
    background: Vec<Task>,
    _directory: Option<Directory>,
}

/// Settings of a [`ControlPlane`]; made by [`ControlPlane::builder`].
#[derive(Clone, Debug)]
pub struct Builder {
    manifests: Option<PathBuf>,
    state_dir: PathBuf,
    listen: SocketAddr,
    debug_listen: Option<SocketAddr>,
    insecure_xds: Option<SocketAddr>,
    options: Options,
    jwks: FetchOptions,
    names: Vec<String>,
    registration_grace: Duration,
    certificate_life: CertificateLife,
    service_account_tokens: Option<ServiceAccountTokens>,
    clock: Clock,
    crypto: Option<Arc<CryptoProvider>>,
}

/// Why a control plane does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The state directory cannot be used.
    #[error(transparent)]
    State(#[from] StateError),
    /// The manifest directory cannot be watched.
    #[error(transparent)]
    Manifests(#[from] WatchError),
    /// A port cannot be opened.
    #[error("cannot listen on {address}: {source}; choose another address or stop what listens there")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A port without TLS that others could reach.
    #[error("{what} has neither TLS nor authentication and is refused on {address}: use a loopback address")]
    NotLoopback {
        /// Which port.
        what: &'static str,
        /// The address asked for.
        address: SocketAddr,
    },
    /// The control plane has no certificate for itself.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The roots for fetching keys of issuers cannot be read.
    #[error(transparent)]
    Jwks(#[from] RootsError),
    /// The control plane's own SPIFFE ID cannot be formed.
    #[error(transparent)]
    Identity(#[from] InvalidSpiffeId),
}

impl ControlPlane {
    /// Settings, all at their defaults.
    pub fn builder() -> Builder {
        Builder {
            manifests: None,
            state_dir: PathBuf::from("mesh-state"),
            listen: SocketAddr::from(([127, 0, 0, 1], 15012)),
            debug_listen: Some(SocketAddr::from(([127, 0, 0, 1], 15014))),
            insecure_xds: None,
            options: Options::default(),
            jwks: FetchOptions::default(),
            names: Vec::new(),
            registration_grace: Duration::from_secs(10),
            certificate_life: CertificateLife::default(),
            service_account_tokens: None,
            clock: Clock::system(),
            crypto: None,
        }
    }

    /// Where xDS, certificates and registration are served, over TLS.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where the debug port listens.
    pub fn debug_address(&self) -> Option<SocketAddr> {
        self.debug_address
    }

    /// Where xDS is served in plaintext.
    pub fn insecure_address(&self) -> Option<SocketAddr> {
        self.insecure_address
    }

    /// The root certificate by which clients know this control plane and each other.
    pub fn root_cert_path(&self) -> &Path {
        self.authority.root_path()
    }

    /// An identity for a mesh in this process: signed by the authority without token and network, renewed at half its
    /// life and when the roots change, until the last reader is dropped.
    ///
    /// # Errors
    /// The names make no SPIFFE ID, or the authority cannot sign.
    pub fn identity(&self, namespace: &str, service_account: &str) -> Result<WatchedIdentity, StartError> {
        let id = SpiffeId::for_service_account(self.authority.trust_domain(), namespace, service_account)?;
        Ok(runtime::identity(self.authority.clone(), self.federation.clone(), id, self.crypto.clone())?)
    }

    /// Mints and takes join tokens of this control plane.
    pub fn join_tokens(&self) -> &JoinTokens {
        &self.tokens
    }

    /// Adds or replaces endpoints without processes that announce them, for benches and tests of scale.
    #[doc(hidden)]
    pub fn hold(&self, registrations: Vec<Registration>) {
        self.registry.hold(registrations, tokio::time::Instant::now());
    }

    /// Takes such endpoints out.
    #[doc(hidden)]
    pub fn let_go(&self, registrations: &[Registration]) {
        self.registry.let_go(registrations);
    }

    /// Stops: clients are told, streams end, registrations stay saved for the next start.
    pub async fn shutdown(mut self) {
        // First, so that streams which end now do not count as lost processes.
        for task in self.background.drain(..) {
            task.cancelled().await;
        }
        // Now nobody else saves: those who wait for it are answered.
        registry::save_now(&self.registry, &self.state);
        self.drain.drain();
        for port in self.ports.drain(..) {
            port.finished().await;
        }
        registry::save_now(&self.registry, &self.state);
    }
}

impl Builder {
    /// Directory (or file) of manifests, watched for changes. Default: none, services come from
    /// registrations alone.
    #[must_use]
    pub fn manifests(mut self, path: impl Into<PathBuf>) -> Self {
        self.manifests = Some(path.into());
        self
    }

    /// Directory of the CA key and of what must survive a restart; made (mode 0700) where missing. One
    /// control plane at a time may use it. Default `mesh-state` in the working directory.
    #[must_use]
    pub fn state_dir(mut self, path: impl Into<PathBuf>) -> Self {
        self.state_dir = path.into();
        self
    }

    /// Where to listen. Default `127.0.0.1:15012`; port 0 takes a free one.
    #[must_use]
    pub fn listen(mut self, address: SocketAddr) -> Self {
        self.listen = address;
        self
    }

    /// Where the debug port listens; loopback only. Default `127.0.0.1:15014`; `None` = nowhere.
    #[must_use]
    pub fn debug_listen(mut self, address: Option<SocketAddr>) -> Self {
        self.debug_listen = address;
        self
    }

    /// Where xDS is served without TLS, for stock clients on a laptop; loopback only. Default nowhere.
    #[must_use]
    pub fn insecure_xds(mut self, address: Option<SocketAddr>) -> Self {
        self.insecure_xds = address;
        self
    }

    /// The trust domain of every identity. Default `cluster.local`.
    #[must_use]
    pub fn trust_domain(mut self, domain: TrustDomain) -> Self {
        self.options.trust_domain = domain;
        self
    }

    /// Former names of the trust domain, as Istio's `trustDomainAliases` and in addition to those of the MeshConfig. Roots that
    /// name one of these, and only of these, may stand among the authority's. Default: none.
    #[must_use]
    pub fn trust_domain_aliases(mut self, aliases: Vec<TrustDomain>) -> Self {
        self.options.trust_domain_aliases = aliases;
        self
    }

    /// Mesh-wide settings of translation, trust domain included. Default: Istio's defaults.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// How keys of token issuers are fetched (RequestAuthentication). Default: from public addresses alone.
    #[must_use]
    pub fn jwks(mut self, options: FetchOptions) -> Self {
        self.jwks = options;
        self
    }

    /// Who may call a port that no Linkerd Server guards, where no annotation says so. Default: everybody.
    #[must_use]
    pub fn default_inbound_policy(mut self, policy: AccessPolicy) -> Self {
        self.options.default_inbound_policy = policy;
        self
    }

    /// Asks clients to report the load they put on each cluster (LRS), for `/load` and the metrics. Default: they
    /// are not asked, and what they say all the same is not taken in.
    #[must_use]
    pub fn load_reports(mut self, wanted: bool) -> Self {
        self.options.load_reports = wanted;
        self
    }

    /// DNS names and IP addresses under which clients reach this control plane, beside `localhost`, the
    /// loopback addresses and the listening address. Default none.
    #[must_use]
    pub fn names(mut self, names: Vec<String>) -> Self {
        self.names = names;
        self
    }

    /// How long the endpoint of a lost process stays. Default 10 s.
    #[must_use]
    pub fn registration_grace(mut self, grace: Duration) -> Self {
        self.registration_grace = grace;
        self
    }

    /// How long certificates live at most. Default 24 h; below 5 min, shorter wishes are granted too.
    #[must_use]
    pub fn certificate_ttl(mut self, ttl: Duration) -> Self {
        self.certificate_life = CertificateLife::at_most(ttl);
        self
    }

    /// Takes service account tokens of Kubernetes as proof of identity. Default: join tokens and certificates alone.
    #[must_use]
    pub fn service_account_tokens(mut self, tokens: ServiceAccountTokens) -> Self {
        self.service_account_tokens = Some(tokens);
        self
    }

    /// The clock of certificates and tokens. Default: the operating system's.
    #[must_use]
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// The crypto provider of TLS. Default: aws-lc-rs.
    #[must_use]
    pub fn crypto(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.crypto = Some(provider);
        self
    }
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPlane").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
