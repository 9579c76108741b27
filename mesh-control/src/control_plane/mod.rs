//! [`ControlPlane`]: puts the parts together and runs them.
//!
//! ```text
//! directory ─ Model ─┐                      ┌ xDS ──────────┐
//!                    ├ World ─ Published ───┤               ├ one TLS port (HTTP/2)
//! Registry ──────────┘                      │ certificates ─┤
//!    └──────────────────────────────────────┴ registration ─┘
//! ```

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mesh_core::id::{InvalidSpiffeId, SpiffeId, TrustDomain};
use mesh_core::source::Watched;
use rustls::crypto::CryptoProvider;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::service::Routes;

use crate::ca::{CertificateAuthority, CertificateLife, CertificateService, JoinTokens};
use crate::clock::Clock;
use crate::debug::{self, Debug};
use crate::model::Model;
use crate::registry::{self, AnnounceService, Registry};
use crate::runtime::{self, CertificateError, Port, ServerCertificate, Stop, StopTrigger, Task};
use crate::served::Served;
use crate::source::directory::{self, Directory, WatchError};
use crate::state_dir::{StateDir, StateError};
use crate::translate::Options;
use crate::xds::{AggregatedService, Limits, Nodes};

/// A running control plane. Dropping it stops everything at once; [`ControlPlane::shutdown`] lets
/// clients go first.
pub struct ControlPlane {
    address: SocketAddr,
    debug_address: Option<SocketAddr>,
    insecure_address: Option<SocketAddr>,
    authority: Arc<CertificateAuthority>,
    tokens: Arc<JoinTokens>,
    registry: Arc<Registry>,
    state: StateDir,
    stop: StopTrigger,
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
    names: Vec<String>,
    registration_grace: Duration,
    certificate_life: CertificateLife,
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
            names: Vec::new(),
            registration_grace: Duration::from_secs(10),
            certificate_life: CertificateLife::default(),
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

    /// Mints and takes join tokens of this control plane.
    pub fn join_tokens(&self) -> &JoinTokens {
        &self.tokens
    }

    /// Stops: clients are told, streams end, registrations stay saved for the next start.
    pub async fn shutdown(mut self) {
        // First, so that streams which end now do not count as lost processes.
        self.background.clear();
        self.stop.stop();
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

    /// Mesh-wide settings of translation, trust domain included. Default: Istio's defaults.
    #[must_use]
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
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

    /// Starts on the current Tokio runtime. Manifests that are wrong do not keep it from starting: they
    /// are reported under `/findings`.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(self) -> Result<ControlPlane, StartError> {
        self.refuse_open_ports()?;
        let state = StateDir::open(&self.state_dir)?;
        let tokens = Arc::new(JoinTokens::with_clock(&self.state_dir, self.clock.clone())?);
        let authority = Arc::new(self.authority()?);
        let listener = listen(self.listen).await?;
        let address = local_address(&listener, self.listen)?;
        let (certificate, life) = self.certificate(&authority, address)?;

        let (stop, stopped) = Stop::channel();
        let known = registry::load(&state);
        let registry = Arc::new(Registry::new(known, self.registration_grace, Instant::now()));
        let (directory, model) = self.model()?;
        let served = Served::new(model, registry.watch(), self.options.clone(), &self.clock);
        let nodes = Arc::new(Nodes::default());

        let xds = || {
            let (published, stop) = (served.published(), stopped.clone());
            AggregatedService { published, nodes: nodes.clone(), limits: Limits::default(), stop }.into_server()
        };
        let routes = Routes::new(xds())
            .add_service(CertificateService { authority: authority.clone(), tokens: tokens.clone() }.into_server())
            .add_service(AnnounceService { registry: registry.clone(), stop: stopped.clone() }.into_server())
            .into_axum_router();
        let certificate = Arc::new(certificate);
        let port = |listener, routes, certificate| {
            runtime::spawn(runtime::serve(Port { listener, certificate, routes, stop: stopped.clone() }))
        };
        let mut ports = vec![port(listener, routes, Some(certificate.clone()))];

        let mut insecure_address = None;
        if let Some(asked) = self.insecure_xds {
            let listener = listen(asked).await?;
            insecure_address = Some(local_address(&listener, asked)?);
            tracing::warn!(address = ?insecure_address, "serving configuration without TLS and authentication");
            ports.push(port(listener, Routes::new(xds()).into_axum_router(), None));
        }
        let mut debug_address = None;
        if let Some(asked) = self.debug_listen {
            let listener = listen(asked).await?;
            debug_address = Some(local_address(&listener, asked)?);
            let routes = debug::routes(Debug {
                findings: served.findings(),
                published: served.published(),
                registrations: registry.watch(),
                nodes: nodes.clone(),
                stop: stopped.clone(),
            });
            ports.push(runtime::spawn(runtime::serve_http(listener, routes, stopped.clone())));
        }
        let background = vec![
            runtime::spawn(runtime::renew(certificate, life)),
            runtime::spawn(registry::expire(registry.clone())),
            runtime::spawn(registry::save(registry.clone(), state.clone())),
            runtime::spawn(served.run()),
        ];
        tracing::info!(%address, trust_domain = %self.options.trust_domain, "the control plane is serving");
        Ok(ControlPlane {
            address,
            debug_address,
            insecure_address,
            authority,
            tokens,
            registry,
            state,
            stop,
            ports,
            background,
            _directory: directory,
        })
    }

    fn refuse_open_ports(&self) -> Result<(), StartError> {
        for (what, address) in [("the debug port", self.debug_listen), ("plaintext xDS", self.insecure_xds)] {
            if let Some(address) = address.filter(|address| !address.ip().is_loopback()) {
                return Err(StartError::NotLoopback { what, address });
            }
        }
        Ok(())
    }

    fn authority(&self) -> Result<CertificateAuthority, StateError> {
        let (domain, life) = (self.options.trust_domain.clone(), self.certificate_life);
        CertificateAuthority::open(&self.state_dir, domain, life, self.clock.clone())
    }

    fn certificate(
        &self,
        authority: &Arc<CertificateAuthority>,
        address: SocketAddr,
    ) -> Result<(ServerCertificate, Duration), StartError> {
        let id = SpiffeId::for_service_account(&self.options.trust_domain, "mesh-system", "control-plane")?;
        let mut names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        let listening = Some(address.ip()).filter(|ip| !ip.is_unspecified()).map(|ip: IpAddr| ip.to_string());
        for name in self.names.iter().cloned().chain(listening) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let crypto = self.crypto.clone();
        let crypto = crypto.unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        Ok(ServerCertificate::new(authority.clone(), id, names, crypto)?)
    }

    fn model(&self) -> Result<(Option<Directory>, Watched<Model>), StartError> {
        let Some(path) = &self.manifests else {
            return Ok((None, Watched::fixed(Model::default())));
        };
        let directory = directory::watch(path, crate::source::Limits::default())?;
        let model = directory.model();
        Ok((Some(directory), model))
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

fn local_address(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|source| StartError::Listen { address: asked, source })
}

impl std::fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlPlane").field("address", &self.address).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
