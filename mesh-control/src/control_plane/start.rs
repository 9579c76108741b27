//! Starting: each part in turn, then the tasks that run them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_core::drain;
use mesh_core::id::SpiffeId;
use mesh_core::source::Watched;
use rustls::crypto::CryptoProvider;
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::services::Services;
use super::{Builder, ControlPlane, StartError};
use crate::ca::{CertificateAuthority, Federation, JoinTokens, TrustDomains};
use crate::jwks::{Fetch, Refresh};
use crate::model::Model;
use crate::registry::{self, Registry};
use crate::runtime::{self, Bounds, Port, ServerCertificate, Speaks, Task};
use crate::served::{Held, Served, run_name};
use crate::source::Limits;
use crate::source::directory::{self, Directory};
use crate::source::kept::Kept;
use crate::state_dir::{StateDir, StateError};
use crate::translate::{Options, own_names};

impl Builder {
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
        let (listener, address) = listen(self.listen).await?;
        let crypto = self.crypto.clone();
        let crypto = crypto.unwrap_or_else(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
        let (certificate, life) = self.certificate(&authority, address, &crypto)?;

        let (known, saves) = registry::load(&state);
        let registry = Arc::new(Registry::new(known, self.registration_grace, Instant::now()).after_saves(saves));
        let kept = self.manifests.is_some().then(|| Kept::open(&state)).transpose()?;
        let former = kept.as_ref().and_then(Kept::former);
        let (directory, model) = self.model(kept)?;
        let (named_by, options) = (model.clone(), self.options.clone());
        let federation = Arc::new(Federation::open(authority.clone(), move || own_names(&named_by.load(), &options)));
        let ask = Fetch::new(self.jwks.clone(), crypto.clone())?.ask();
        let keys = Refresh::new(model.clone(), ask, self.jwks.clone(), self.clock.clone(), Some(state.clone()));
        let (held, (trigger, drain)) = (Held::load(Some(state.clone())), drain::channel());
        let (run, options) = (run_name(&self.clock), self.options.clone());
        let served = Served::new(model.clone(), registry.watch(), keys.keys(), options, held, run).after(former);
        let services = Services {
            authority,
            federation: federation.clone(),
            tokens,
            accounts: self.service_account_tokens.clone(),
            registry,
            model,
            cache: served.cache(),
            findings: served.findings(),
            keys: keys.keys(),
            nodes: Arc::default(),
            load: Arc::default(),
            load_reports: self.options.load_reports,
            load_streams: Arc::default(),
            root_streams: Arc::default(),
            certificate: certificate.clone(),
            refusals: Arc::default(),
            drain: drain.clone(),
            vital: Arc::default(),
        };

        // Before the first port: what is announced there is a change already.
        let background = vec![
            services.vital.keep("renewal of its certificate", runtime::renew(certificate.clone(), life)),
            services.vital.keep("authority's files", runtime::follow(services.authority.clone(), federation.clone())),
            services.vital.keep("end of registrations", registry::expire(services.registry.clone())),
            services.vital.keep("registrations on disk", registry::save(services.registry.clone(), state.clone())),
            services.vital.keep("keys of issuers", keys.run()),
            services.vital.keep("publication", served.run()),
        ];
        let mut ports = vec![runtime::spawn(runtime::serve(Port {
            listener,
            speaks: Speaks::Secured(certificate),
            routes: services.mesh(),
            bounds: Bounds::default(),
            refusals: services.refusals.clone(),
            drain,
        }))];
        let insecure_address = self.open_insecure(&services, &mut ports).await?;
        let debug_address = self.open_debug(&services, &mut ports).await?;
        tracing::info!(%address, trust_domain = %self.options.trust_domain, "the control plane is serving");
        let Services { authority, tokens, registry, .. } = services;
        Ok(ControlPlane {
            address,
            debug_address,
            insecure_address,
            authority,
            federation,
            tokens,
            registry,
            state,
            crypto,
            drain: trigger,
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

    async fn open_insecure(
        &self,
        services: &Services,
        ports: &mut Vec<Task>,
    ) -> Result<Option<SocketAddr>, StartError> {
        let Some(asked) = self.insecure_xds else { return Ok(None) };
        let (listener, address) = listen(asked).await?;
        tracing::warn!(%address, "serving configuration without TLS and authentication");
        let (routes, drain) = (services.xds_alone(), services.drain.clone());
        ports.push(runtime::spawn(runtime::serve(Port {
            listener,
            speaks: Speaks::Plaintext,
            routes,
            bounds: Bounds::default(),
            refusals: services.refusals.clone(),
            drain,
        })));
        Ok(Some(address))
    }

    async fn open_debug(&self, services: &Services, ports: &mut Vec<Task>) -> Result<Option<SocketAddr>, StartError> {
        let Some(asked) = self.debug_listen else { return Ok(None) };
        let (listener, address) = listen(asked).await?;
        ports.push(runtime::spawn(runtime::serve(Port {
            listener,
            speaks: Speaks::Pages,
            routes: services.debug(),
            bounds: Bounds::of_pages(),
            refusals: services.refusals.clone(),
            drain: services.drain.clone(),
        })));
        Ok(Some(address))
    }

    fn authority(&self) -> Result<CertificateAuthority, StateError> {
        let Options { trust_domain, trust_domain_aliases, .. } = &self.options;
        let domains = TrustDomains::new(trust_domain.clone(), trust_domain_aliases.clone());
        let authority =
            CertificateAuthority::open(&self.state_dir, domains, self.certificate_life, self.clock.clone())?;
        if let Some(key) = authority.key_of_root() {
            tracing::warn!(
                target: "mesh::ca",
                key = %key.display(),
                "the mesh's root signs by itself and was made here, unless somebody put it there: keep a copy of its key, for \
                 without it nobody's certificate is renewed, and let nobody read it, for it makes anybody anyone. To give a \
                 root of your own, whose key stays elsewhere, put an intermediate of it there: ca-key.pem, ca-cert.pem, \
                 cert-chain.pem and root-cert.pem, as in Istio's secret cacerts",
            );
        }
        Ok(authority)
    }

    fn certificate(
        &self,
        authority: &Arc<CertificateAuthority>,
        address: SocketAddr,
        crypto: &Arc<CryptoProvider>,
    ) -> Result<(Arc<ServerCertificate>, Duration), StartError> {
        let id = SpiffeId::for_service_account(&self.options.trust_domain, "mesh-system", "control-plane")?;
        let mut names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        let listening = Some(address.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string());
        for name in self.names.iter().cloned().chain(listening) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let (certificate, life) = ServerCertificate::new(authority.clone(), id, names, crypto.clone())?;
        Ok((Arc::new(certificate), life))
    }

    fn model(&self, kept: Option<Kept>) -> Result<(Option<Directory>, Watched<Model>), StartError> {
        let Some((path, kept)) = self.manifests.as_ref().zip(kept) else {
            return Ok((None, Watched::fixed(Model::default())));
        };
        let directory = directory::watch_and_keep(path, Limits::default(), kept)?;
        let model = directory.model();
        Ok((Some(directory), model))
    }
}

async fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}
