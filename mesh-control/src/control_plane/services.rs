//! Which service is reached on which port.

use std::sync::Arc;

use mesh_core::drain::DrainWatch;
use mesh_core::source::Watched;
use tonic::service::Routes;

use crate::ca::{CertificateAuthority, CertificateService, Federation, JoinTokens, ServiceAccountTokens, TrustService};
use crate::debug::{self, Debug};
use crate::finding::Finding;
use crate::jwks::Keys;
use crate::load::{LoadBook, LoadService};
use crate::model::Model;
use crate::registry::{AnnounceService, Registry};
use crate::runtime::{Refusals, ServerCertificate, Vital};
use crate::xds::{AggregatedService, Cache, Limits, Nodes};

/// What the services of a control plane share.
pub(super) struct Services {
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) federation: Arc<Federation>,
    pub(super) tokens: Arc<JoinTokens>,
    pub(super) accounts: Option<ServiceAccountTokens>,
    pub(super) registry: Arc<Registry>,
    pub(super) model: Watched<Model>,
    pub(super) cache: Arc<Cache>,
    pub(super) findings: Watched<Vec<Finding>>,
    pub(super) keys: Watched<Keys>,
    pub(super) nodes: Arc<Nodes>,
    pub(super) load: Arc<LoadBook>,
    /// Clients are asked for their load, so that they are heard.
    pub(super) load_reports: bool,
    pub(super) load_streams: Arc<Nodes>,
    pub(super) root_streams: Arc<Nodes>,
    pub(super) certificate: Arc<ServerCertificate>,
    pub(super) refusals: Arc<Refusals>,
    pub(super) drain: DrainWatch,
    pub(super) vital: Arc<Vital>,
}

impl Services {
    /// The TLS port: everything a mesh member needs.
    pub(super) fn mesh(&self) -> axum::Router {
        let (authority, federation, drain) = (self.authority.clone(), self.federation.clone(), self.drain.clone());
        let (tokens, accounts) = (self.tokens.clone(), self.accounts.clone());
        let certificates =
            CertificateService::new(authority.clone(), federation.clone(), tokens, accounts, self.refusals.clone());
        let (streams, refusals) = (self.root_streams.clone(), self.refusals.clone());
        let trust = TrustService::new(authority, federation, streams, refusals, drain);
        let (registry, model, refusals) = (self.registry.clone(), self.model.clone(), self.refusals.clone());
        let registration = AnnounceService { registry, model, refusals, drain: self.drain.clone() };
        self.xds_and_load()
            .add_service(certificates.into_server())
            .add_service(trust.into_server())
            .add_service(registration.into_server())
            .into_axum_router()
    }

    /// The plaintext port: configuration, load reports if they are asked for, and nothing that hands out or takes in identity.
    pub(super) fn xds_alone(&self) -> axum::Router {
        self.xds_and_load().into_axum_router()
    }

    fn xds_and_load(&self) -> Routes {
        let routes = Routes::new(self.xds());
        if self.load_reports { routes.add_service(self.load()) } else { routes }
    }

    /// The debug port.
    pub(super) fn debug(&self) -> axum::Router {
        debug::routes(Debug {
            findings: self.findings.clone(),
            keys: self.keys.clone(),
            cache: self.cache.clone(),
            registrations: self.registry.watch(),
            nodes: self.nodes.clone(),
            other_streams: [self.load_streams.clone(), self.root_streams.clone()],
            load: self.load.clone(),
            certificate: self.certificate.clone(),
            refusals: self.refusals.clone(),
            drain: self.drain.clone(),
            vital: self.vital.clone(),
        })
    }

    fn xds(&self) -> AggregatedService {
        AggregatedService {
            cache: self.cache.clone(),
            nodes: self.nodes.clone(),
            limits: Limits::default(),
            refusals: self.refusals.clone(),
            drain: self.drain.clone(),
        }
    }

    fn load(&self) -> LoadService {
        LoadService {
            book: self.load.clone(),
            streams: self.load_streams.clone(),
            limits: LoadService::limits(),
            refusals: self.refusals.clone(),
            drain: self.drain.clone(),
        }
    }
}
