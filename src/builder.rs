//! Putting a [`Mesh`] together: the only place that knows all four crates.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mesh_client::{Breakers, Client, ClientBuilder, InFlight};
use mesh_core::balance::{Candidates, Draw, MakeNamed, Picker};
use mesh_core::drain;
use mesh_core::id::{Locality, Workload};
use mesh_core::identity::{LifeLeft, TrustBundles};
use mesh_core::source::{DestinationSource, Identities, InboundSource, Resolve, Watched, WatchedIdentity};
use mesh_core::telemetry::load::LoadStore;
use mesh_core::telemetry::{Metrics, Renewals};
use mesh_discovery::bootstrap::{FileWatcher, XdsServer};
use mesh_discovery::connect::Connector;
use mesh_discovery::lrs;
use mesh_discovery::secret::{self, FromFiles, SecretConfig};
use mesh_discovery::target::TargetSource;
use mesh_discovery::xds::{GrpcTransport, SnapshotConfig, XdsClient, XdsConfig, status_service};
use mesh_server::Readiness;
use mesh_server::debug::{Content, DebugServer, prometheus};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::UnixTime;
use serde::Serialize;
use tokio::runtime::Handle;

use crate::authority::{self, OfAuthority};
use crate::config::{INSTANCE, MeshConfig, NO_CONTROL_PLANE, ProcessEnv, Vars};
use crate::error::StartError;
use crate::fleet::in_fleet;
use crate::listeners::Listeners;
use crate::mesh::{Control, Inner, Mesh};
use crate::passthrough::Passthrough;
use crate::runtime::{ControlRuntime, Pulse};

/// Settings of a [`Mesh`]. A setter that names an environment variable wins over it; others have none, and some variables have no
/// setter.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct MeshBuilder {
    config: Option<MeshConfig>,
    settings: BTreeMap<&'static str, String>,
    crypto: Option<Arc<CryptoProvider>>,
    metrics: Option<Arc<Metrics>>,
    resolver: Option<Arc<dyn Resolve>>,
    identity: Option<WatchedIdentity>,
    debug_drain: bool,
    client: Option<Adjust>,
    balancers: Balancers,
}

/// Load-balancing policies of the application's own, by name.
#[derive(Clone, Default)]
struct Balancers(BTreeMap<String, Arc<MakeNamed>>);

impl Balancers {
    fn names(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }

    /// Gives them to a client, before what else the application says of it.
    fn then(self, client: Option<Adjust>) -> Option<Adjust> {
        if self.0.is_empty() {
            return client;
        }
        let adjust = move |builder: ClientBuilder| {
            let builder = self.0.iter().fold(builder, |builder, (name, make)| {
                let make = make.clone();
                builder.balancer(name, move |config, candidates, draw| make(config, candidates, draw))
            });
            match &client {
                Some(Adjust(adjust)) => adjust(builder),
                None => builder,
            }
        };
        Some(Adjust(Arc::new(adjust)))
    }
}

impl fmt::Debug for Balancers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The application's word on how its client is built.
#[derive(Clone)]
struct Adjust(Arc<dyn Fn(ClientBuilder) -> ClientBuilder + Send + Sync>);

impl fmt::Debug for Adjust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Adjust")
    }
}

impl MeshBuilder {
    /// All that is read from the environment otherwise, in place of that and of every setter that names a variable.
    ///
    /// ```no_run
    /// use mesh::config::{MeshConfig, ProcessEnv};
    ///
    /// let mut config = MeshConfig::from_vars(&ProcessEnv)?;
    /// config.client_number = Some(2);
    /// let builder = mesh::Mesh::builder().config(config);
    /// # Ok::<(), mesh::config::InvalidConfig>(())
    /// ```
    pub fn config(mut self, config: MeshConfig) -> Self {
        self.config = Some(config);
        self
    }

    /// Address of the control plane (`MESH_CONTROL_PLANE`).
    pub fn control_plane(self, address: impl ToString) -> Self {
        self.set("MESH_CONTROL_PLANE", address.to_string())
    }

    /// No control plane (`MESH_CONTROL_PLANE=none`): destinations are found by DNS or are lists of addresses
    /// ([`TargetSource`]), servers take plaintext, and nothing is announced. The application's code stays the
    /// same when one comes.
    pub fn standalone(self) -> Self {
        self.set("MESH_CONTROL_PLANE", NO_CONTROL_PLANE.to_owned())
    }

    /// PEM file with the control plane's root certificate (`MESH_ROOT_CERT`).
    pub fn root_cert(self, path: impl AsRef<Path>) -> Self {
        self.set("MESH_ROOT_CERT", path.as_ref().to_string_lossy().into_owned())
    }

    /// The SPIFFE ID that the control plane's certificate must have (`MESH_CONTROL_PLANE_ID`). Default: that of the
    /// service account `control-plane` in the namespace `mesh-system` of the trust domain. `any`: the name it is dialled
    /// by is enough, for a control plane behind something that ends its TLS. A bootstrap has `server_spiffe_id` for it.
    pub fn control_plane_id(self, id: impl Into<String>) -> Self {
        self.set("MESH_CONTROL_PLANE_ID", id.into())
    }

    /// The mesh's trust domain (`MESH_TRUST_DOMAIN`): a certificate for a join token must be of it. Default
    /// `cluster.local`.
    pub fn trust_domain(self, domain: impl Into<String>) -> Self {
        self.set("MESH_TRUST_DOMAIN", domain.into())
    }

    /// Other names of the trust domain, separated by commas: former ones, and one that it is about to have
    /// (`MESH_TRUST_DOMAIN_ALIASES`). Its peers and its control plane may be of any of them. Default: none.
    pub fn trust_domain_aliases(self, aliases: impl Into<String>) -> Self {
        self.set("MESH_TRUST_DOMAIN_ALIASES", aliases.into())
    }

    /// gRPC's bootstrap as JSON (`GRPC_XDS_BOOTSTRAP_CONFIG`), instead of the two above and of a bootstrap
    /// file that the environment names.
    pub fn bootstrap(self, json: impl Into<String>) -> Self {
        self.set("MESH_CONTROL_PLANE", String::new())
            .set("GRPC_XDS_BOOTSTRAP", String::new())
            .set("GRPC_XDS_BOOTSTRAP_CONFIG", json.into())
    }

    /// Join token for the first certificate (`MESH_JOIN_TOKEN`).
    pub fn join_token(self, token: impl Into<String>) -> Self {
        self.set("MESH_JOIN_TOKEN", token.into())
    }

    /// Namespace of this process (`POD_NAMESPACE`).
    pub fn namespace(self, namespace: impl Into<String>) -> Self {
        self.set("POD_NAMESPACE", namespace.into())
    }

    /// Service account of this process (`SERVICE_ACCOUNT`).
    pub fn service_account(self, account: impl Into<String>) -> Self {
        self.set("SERVICE_ACCOUNT", account.into())
    }

    /// Labels, in the form `app=reviews,version=v1` (`MESH_LABELS`).
    pub fn labels(self, labels: impl Into<String>) -> Self {
        self.set("MESH_LABELS", labels.into())
    }

    /// Where the debug endpoints listen (`MESH_DEBUG_ADDR`). Default: they don't.
    pub fn debug_address(self, address: SocketAddr) -> Self {
        self.set("MESH_DEBUG_ADDR", address.to_string())
    }

    /// `POST /drain` at the debug endpoints begins the drain. Default: nothing there changes anything. Whoever can have a
    /// request sent to the debug address takes this process out of service with it, and so can the application, if it
    /// can be made to call an address of the caller's; [`Mesh::begin_shutdown`] needs no such door.
    pub fn debug_drain(mut self) -> Self {
        self.debug_drain = true;
        self
    }

    /// The file that keeps the last good configuration, for a start while no control plane can be reached
    /// (`MESH_SNAPSHOT`). Default: none is kept.
    pub fn snapshot(self, path: impl AsRef<Path>) -> Self {
        self.set("MESH_SNAPSHOT", path.as_ref().to_string_lossy().into_owned())
    }

    /// The file with the key that marks the snapshot as this node's own (`MESH_SNAPSHOT_KEY`), made where it is missing.
    /// Default: beside the snapshot, `.key` at the end of its name.
    pub fn snapshot_key(self, path: impl AsRef<Path>) -> Self {
        self.set("MESH_SNAPSHOT_KEY", path.as_ref().to_string_lossy().into_owned())
    }

    /// Nothing is ready while this process listens on a socket that is not the mesh's own, where no policy is enforced
    /// (`MESH_OTHER_LISTENERS=refuse`): `/readyz` is 503 and [`Serve::service`](crate::Serve::service) announces nothing, for
    /// the reason `MESH-2010`. On Linux only. Default: the log tells of each, once. One that is bound after the
    /// process was ready counts once it has been there for a minute or two; what is announced stays so then.
    pub fn refuse_other_listeners(self) -> Self {
        self.set("MESH_OTHER_LISTENERS", "refuse".to_owned())
    }

    /// Where this process may listen beside the mesh: ports, or addresses with their ports, as in `9090,127.0.0.1:9229`
    /// (`MESH_ALLOWED_LISTENERS`). Another `Mesh` or a control plane in the same process is to be listed too.
    pub fn allow_listeners(self, listeners: impl Into<String>) -> Self {
        self.set("MESH_ALLOWED_LISTENERS", listeners.into())
    }

    /// The cryptography of all TLS. Default: aws-lc-rs, made for this mesh; the process default is not
    /// touched.
    pub fn crypto(mut self, provider: Arc<CryptoProvider>) -> Self {
        self.crypto = Some(provider);
        self
    }

    /// Who this process is, from a source of the application's own: a control plane in the same process
    /// (`ControlPlane::identity`), say. It goes before a join token, an agent and files. Default: none. Without effect
    /// where there is no control plane, whose policy would ask for it.
    pub fn identity(mut self, identity: WatchedIdentity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// Where requests are counted. Default: metrics of this mesh's own.
    pub fn metrics(mut self, metrics: Arc<Metrics>) -> Self {
        self.metrics = Some(metrics);
        self
    }

    /// Who looks names up: endpoints that are names, and `dns:///` targets. Default: with the feature `dns`
    /// `mesh::dns::DnsResolver` with the servers of `/etc/resolv.conf`; without it, or where that file is of no use, the
    /// operating system, which tells no TTL and knows no SRV records.
    pub fn resolver(mut self, resolver: Arc<dyn Resolve>) -> Self {
        self.resolver = Some(resolver);
        self
    }

    /// Settings of the client that have no variable: pickers of the application's own, its number in its fleet, a
    /// connector beneath the balancers. They come after the mesh's, so one of those that is set here is overruled.
    /// Asked once for each client that there is, one for each xDS authority.
    ///
    /// ```
    /// # let builder = mesh::Mesh::builder();
    /// // The third of a StatefulSet, where policy gives each client a part of the endpoints.
    /// let builder = builder.client(|client| client.number(2));
    /// ```
    pub fn client(mut self, adjust: impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + 'static) -> Self {
        self.client = Some(Adjust(Arc::new(adjust)));
        self
    }

    /// A load-balancing policy of the application's own, which a control plane chooses by its name, as in gRPC (gRFC A52): a
    /// cluster's `load_balancing_policy` has a `TypedStruct` whose type ends in `/name`. Of `name`, too, only what stands behind
    /// its last `/` counts. `make` is given what that says, as a JSON
    /// object, and the endpoints to choose among, one priority of a cluster usually; `None`, or a panic, has requests go in
    /// turn. What endpoints say of their load with answers (ORCA) the picker hears (`Picker::hear`); streams of reports it cannot
    /// ask for. Where the control plane lists another policy after it, clients that have none of this name take that; one that is
    /// listed alone is refused by them.
    ///
    /// ```
    /// use mesh::parts::mesh_core::balance::{Candidates, Draw, Pick, Picker};
    ///
    /// /// Everything to the endpoint of one number, another one for retries.
    /// #[derive(Debug)]
    /// struct Fixed { number: usize, of: usize }
    ///
    /// impl Picker for Fixed {
    ///     fn pick(&self, pick: &Pick<'_>, _: &mut Draw<'_>) -> Option<usize> {
    ///         let mut round = (0..self.of).map(|step| (self.number + step) % self.of);
    ///         round.clone().find(|index| !pick.tried.contains(index)).or_else(|| round.next())
    ///     }
    /// }
    ///
    /// // For {"typed_config": {"@type": "type.googleapis.com/xds.type.v3.TypedStruct",
    /// //      "type_url": "type.googleapis.com/example.Fixed", "value": {"number": 2}}}
    /// let builder = mesh::Mesh::builder().balancer("example.Fixed", |config, candidates: &Candidates, _: &mut Draw<'_>| {
    ///     let config: serde_json::Value = serde_json::from_str(config).ok()?;
    ///     let number = usize::try_from(config["number"].as_u64()?).ok()?;
    ///     Some(Box::new(Fixed { number, of: candidates.len() }) as Box<dyn Picker>)
    /// });
    /// ```
    pub fn balancer(
        mut self,
        name: impl Into<String>,
        make: impl Fn(&str, &Candidates, &mut Draw<'_>) -> Option<Box<dyn Picker>> + Send + Sync + 'static,
    ) -> Self {
        let mut name = name.into();
        name.drain(..name.rfind('/').map_or(0, |slash| slash + 1));
        self.balancers.0.insert(name, Arc::new(make));
        self
    }

    fn set(mut self, variable: &'static str, value: String) -> Self {
        self.settings.insert(variable, value);
        self
    }

    /// Joins the mesh. Returns without waiting for the control plane.
    ///
    /// # Errors
    /// A setting is missing or wrong, or the debug endpoints cannot listen.
    pub async fn build(self) -> Result<Mesh, StartError> {
        let config = match self.config {
            Some(config) => config,
            None => MeshConfig::from_vars(&Settings(&self.settings))?,
        };
        let runtime = ControlRuntime::start().map_err(StartError::Runtime)?;
        let pulse = Handle::try_current().ok().map(|application| runtime.watch(application));
        let crypto = self.crypto.unwrap_or_else(default_crypto);
        let metrics = self.metrics.unwrap_or_default();
        let listeners = Arc::new(Listeners::new(config.refuse_other_listeners, config.allowed_listeners.clone()));
        let (debug, pod_ip) = (config.debug_address.map(|address| (address, self.debug_drain, pulse)), config.pod_ip);
        let service_domain = config.service_domain().map(str::to_owned);
        let files = config.identity_files().cloned();
        let certified = self.identity.is_some();
        let others = config.other_files().filter(|(name, _)| !certified || *name != INSTANCE);
        let others: Vec<(String, FileWatcher)> = others.map(|(name, files)| (name.to_owned(), files.clone())).collect();
        let Some(bootstrap) = config.bootstrap else {
            let parts = Parts::without_control_plane(runtime, crypto, metrics, self.resolver, TargetSource::alone());
            let parts = Parts { adjust: self.client, number: config.client_number, ..parts };
            let mut inner = parts.join(config.workload, config.service_account, config.locality, None, Vec::new());
            inner.pod_ip = pod_ip;
            return with_debug(inner, debug).await;
        };

        let mut connector = Connector::new(bootstrap.server().clone(), crypto.clone());
        let default_provider = self.identity.is_some() || config.proof.is_some() || config.workload_api.is_some();
        let aliases = config.trust_domain_aliases;
        let aliased = |identity| runtime.aliased(identity, &aliases);
        let renewals = || metrics.renewals().clone();
        let follow = |files| secret::spawn_files(files, crypto.clone(), renewals(), runtime.handle());
        let source = if let Some(identity) = self.identity {
            Some((aliased(identity), Watched::fixed(None)))
        } else if let Some(proof) = config.proof {
            let mut secret = SecretConfig::new(Some(proof));
            (secret.trust_domain, secret.trust_domain_aliases) = (Some(config.trust_domain), aliases.clone());
            secret.renewals = renewals();
            Some(secret::spawn(secret, connector.clone(), runtime.handle()))
        } else if let Some(api) = config.workload_api {
            let (identity, refusal) = secret::spawn_workload_api(api, crypto.clone(), renewals(), runtime.handle());
            Some((aliased(identity), refusal))
        } else {
            files.map(|files| {
                let FromFiles { identity, refusal, .. } = follow(files);
                (aliased(identity), refusal)
            })
        };
        let certified = source.is_some();
        if let Some((identity, refusal)) = &source {
            connector = connector.with_identity(identity.clone()).with_refusal(refusal.clone());
        }
        let own = source.map_or_else(|| Watched::fixed(None), |(identity, _)| identity);
        let (certified_others, roots): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|(_, files)| files.identity.is_some());
        let [others, roots] = [certified_others, roots]
            .map(|files| files.into_iter().map(|(name, files)| (name, follow(files))).collect::<Vec<_>>());
        let named = others.iter().map(|(name, files)| (name.as_str().into(), aliased(files.identity.clone())));
        let trusted = roots.iter().map(|(name, files)| (name.as_str().into(), files.roots.clone()));
        let identities = Identities::new(own, named).with_roots(trusted);
        let instances = others.into_iter().chain(roots).map(|(_, files)| files).collect();
        let authorities: Vec<_> = bootstrap.authorities.keys().cloned().collect();
        let transport = |server: &XdsServer| GrpcTransport::new(connector.to(server.clone()));
        let mut xds = XdsConfig::new(bootstrap);
        (xds.default_provider, xds.balancers) = (default_provider, self.balancers.names());
        xds.snapshot = snapshot(config.snapshot, config.snapshot_key);
        let xds = Arc::new(XdsClient::spawn(xds, transport, runtime.handle()));
        let load = Arc::<LoadStore>::default();
        let reporter = lrs::spawn(&xds, &load, |server| connector.to(server.clone()), runtime.handle());
        let control = Control { xds: xds.clone(), connector, certified, instances, _load: reporter };

        let (resolver, destinations) = (self.resolver, Arc::new(TargetSource::beside(xds.clone())) as _);
        let load = Some(load);
        let (inbound, adjust, number) = (xds, self.balancers.then(self.client), config.client_number);
        let parts =
            Parts { runtime, crypto, metrics, load, identities, resolver, destinations, inbound, adjust, number };
        let mut inner =
            parts.join(config.workload, config.service_account, config.locality, Some(control), authorities);
        (inner.pod_ip, inner.listeners) = (pod_ip, listeners);
        inner.service_domain = service_domain.unwrap_or(inner.service_domain);
        with_debug(inner, debug).await
    }
}

fn snapshot(path: Option<PathBuf>, key: Option<PathBuf>) -> Option<SnapshotConfig> {
    let mut snapshot = SnapshotConfig::new(path?);
    if let Some(key) = key {
        snapshot.key = key;
    }
    Some(snapshot)
}

/// A mesh that passes everything through.
pub(crate) fn disabled() -> Result<Mesh, StartError> {
    let runtime = ControlRuntime::start().map_err(StartError::Runtime)?;
    let destinations = TargetSource::beside(Arc::new(Passthrough));
    let parts = Parts::without_control_plane(runtime, default_crypto(), Arc::default(), None, destinations);
    let account = "default".to_owned();
    Ok(Mesh::from_inner(parts.join(Workload::default(), account, Locality::default(), None, Vec::new())))
}

/// What every mesh is made of.
struct Parts {
    runtime: ControlRuntime,
    crypto: Arc<CryptoProvider>,
    metrics: Arc<Metrics>,
    load: Option<Arc<LoadStore>>,
    identities: Identities,
    resolver: Option<Arc<dyn Resolve>>,
    destinations: Arc<dyn DestinationSource>,
    inbound: Arc<dyn InboundSource>,
    adjust: Option<Adjust>,
    /// Which of its fleet this process is.
    number: Option<u32>,
}

impl Parts {
    fn without_control_plane(
        runtime: ControlRuntime,
        crypto: Arc<CryptoProvider>,
        metrics: Arc<Metrics>,
        resolver: Option<Arc<dyn Resolve>>,
        destinations: TargetSource,
    ) -> Self {
        let (identities, inbound) = (Identities::new(Watched::fixed(None), []), Arc::new(Passthrough));
        let (load, destinations) = (None, Arc::new(destinations) as _);
        Self { runtime, crypto, metrics, load, identities, resolver, destinations, inbound, adjust: None, number: None }
    }

    fn join(
        mut self,
        workload: Workload,
        account: String,
        locality: Locality,
        control: Option<Control>,
        authorities: Vec<String>,
    ) -> Inner {
        let (workload, breakers) = (Arc::new(workload), Breakers::default());
        self.resolver = self.resolver.take().or_else(default_resolver);
        let client = self.client(self.destinations.clone(), &workload, &breakers);
        let of_authority = |name: String| {
            let source = OfAuthority { name: name.clone(), source: self.destinations.clone() };
            (name, self.client(Arc::new(source), &workload, &breakers))
        };
        Inner {
            client,
            authorities: authorities.into_iter().map(of_authority).collect(),
            identities: self.identities,
            inbound: self.inbound,
            crypto: self.crypto,
            workload,
            service_account: account,
            locality,
            pod_ip: None,
            service_domain: "svc.cluster.local".to_owned(),
            breakers,
            metrics: self.metrics,
            stats: Arc::default(),
            drain: drain::channel().0,
            readiness: Readiness::default(),
            listeners: Arc::new(Listeners::new(false, Vec::new())),
            control,
            debug: None,
            runtime: self.runtime,
        }
    }
}

impl Parts {
    fn client(
        &self,
        destinations: Arc<dyn DestinationSource>,
        workload: &Arc<Workload>,
        breakers: &Breakers,
    ) -> Client {
        let mut client = Client::builder(destinations)
            .identity(self.identities.clone())
            .crypto(self.crypto.clone())
            .workload(workload.clone())
            .metrics(self.metrics.clone())
            .breakers(breakers.clone())
            .runtime(self.runtime.handle().clone());
        if let Some(resolver) = &self.resolver {
            client = client.resolver(resolver.clone());
        }
        if let Some(load) = &self.load {
            client = client.load(load.clone());
        }
        if let Some(number) = self.number {
            client = client.number(in_fleet(number, workload));
        }
        match &self.adjust {
            Some(Adjust(adjust)) => adjust(client).build(),
            None => client.build(),
        }
    }
}

/// Adds the debug endpoints, if they have an address, and whether one of them drains.
async fn with_debug(
    mut inner: Inner,
    debug: Option<(SocketAddr, bool, Option<Arc<Pulse>>)>,
) -> Result<Mesh, StartError> {
    if let Some((address, drains, pulse)) = debug {
        let (readiness, drain) = (inner.readiness.clone(), inner.drain.clone());
        let (client, authorities) = (inner.client.clone(), inner.authorities.clone());
        let xds = inner.control.as_ref().map(|control| control.xds.clone());
        let (metrics, stats) = (inner.metrics.clone(), inner.stats.clone());
        let (breakers, identities) = (inner.breakers.clone(), inner.identities.clone());
        let (watched, listeners, trusted) = (pulse.clone(), inner.listeners.clone(), inner.identities.clone());
        let metrics = prometheus::content(env!("CARGO_PKG_VERSION"), metrics, stats, move |out| {
            if let Some(pulse) = &watched {
                prometheus::runtime_stalls(out, pulse.stalled(), pulse.stalls());
            }
            prometheus::in_flight(out, &in_flight(&breakers));
            prometheus::certificate_expiry(out, &identities);
            prometheus::other_listeners(out, listeners.others());
            if let Some(xds) = &xds {
                prometheus::config_unenforced(out, xds.unenforced());
                prometheus::config_resources(out, xds.standings());
                prometheus::config_unconfirmed(out, xds.status().unconfirmed_seconds.unwrap_or_default());
            }
        });
        let renewals = inner.metrics.renewals().clone();
        let mut builder = DebugServer::builder()
            .readiness(inner.readiness.clone())
            .notes(Arc::new(move || {
                let stalled = pulse.as_ref().and_then(|pulse| standing_still(pulse.stalled()));
                let list = ending_list(whom_we_trust(&trusted), UnixTime::now().as_secs());
                unrenewed(&renewals).into_iter().chain(list).chain(stalled).collect()
            }))
            .metrics(metrics)
            .clusters(json(move || authority::dump(&client, &authorities)));
        if drains {
            builder = builder.on_drain(Arc::new(move || {
                readiness.drain();
                drain.drain();
            }));
        }
        if let Some(control) = &inner.control {
            let xds = control.xds.clone();
            builder = builder.grpc(status_service(xds.clone())).config_dump(json(move || xds.config_dump()));
        }
        // On the control thread: an application that blocks its runtime still answers probes.
        let server = inner.runtime.run(builder.bind(address)).await;
        let server = server.map_err(|source| StartError::Debug { address, source })?;
        inner.listeners.own_debug(server.address());
        inner.debug = Some(server);
    }
    Ok(Mesh::from_inner(inner))
}

/// What `/readyz` says of certificates. It serves on meanwhile: out of service nobody is by it before the end.
fn unrenewed(renewals: &Renewals) -> Option<String> {
    let left = renewals.life_left();
    match left {
        _ if renewals.is_root_gone() => Some(
            "certificate: its root is trusted no more, so peers refuse it; a token is needed for a new one (the log says \
             what was tried)"
                .to_owned(),
        ),
        LifeLeft::Ample | LifeLeft::Half => None,
        LifeLeft::Quarter | LifeLeft::Tenth => Some(format!(
            "certificate: {} percent of its life or less is left and it was not renewed; the log says why",
            left.percent()
        )),
        LifeLeft::Nothing => Some("certificate: it has ended and was not renewed; peers refuse it".to_owned()),
    }
}

fn whom_we_trust(identities: &Identities) -> impl Iterator<Item = TrustBundles> {
    let shown = std::iter::once(identities.own()).chain(identities.named().map(|(_, identity)| identity));
    let beside =
        shown.filter_map(|identity| Option::as_ref(&identity.load()).map(|identity| identity.bundles().clone()));
    beside.chain(identities.roots().filter_map(|(_, roots)| Option::clone(&roots.load())))
}

/// What `/readyz` says of the revocation list that is nearest to its end.
fn ending_list(trusted: impl Iterator<Item = TrustBundles>, now: u64) -> Option<String> {
    let lists = trusted.flat_map(|trusted| trusted.list_lives().cloned().collect::<Vec<_>>());
    let (left, list) = lists.map(|list| (list.left(now), list)).max_by_key(|(left, _)| *left)?;
    match left {
        LifeLeft::Ample | LifeLeft::Half => None,
        LifeLeft::Quarter | LifeLeft::Tenth => Some(format!(
            "revocation list of {}: {} percent of its life or less is left and none has followed it; when it ends, whoever \
             that one signed is refused",
            list.issuer,
            left.percent()
        )),
        LifeLeft::Nothing => Some(format!(
            "revocation list of {}: it has ended, so whoever that one signed is refused; have it sign a newer one",
            list.issuer
        )),
    }
}

/// What `/readyz` says of the application's runtime. Whether to restart it is for a probe of the application's own to say.
fn standing_still(stalled: Duration) -> Option<String> {
    let seconds = stalled.as_secs();
    (seconds > 0)
        .then(|| format!("runtime: the application's has run no task for {seconds} s; something blocks its threads"))
}

/// What is in flight in each cluster; while its EDS service changes, what is in flight for both.
fn in_flight(breakers: &Breakers) -> Vec<prometheus::InFlight> {
    let mut clusters: Vec<prometheus::InFlight> = Vec::new();
    for state in breakers.snapshot() {
        let counts = [state.default, state.high].map(|of: InFlight| [of.requests, of.retries, of.pending]);
        match clusters.last_mut().filter(|(cluster, ..)| cluster == state.cluster.as_str()) {
            Some((_, sums, connections)) => {
                let sums = sums.as_flattened_mut().iter_mut();
                sums.zip(counts.as_flattened()).for_each(|(sum, count)| *sum += count);
                *connections += state.connections;
            }
            None => clusters.push((state.cluster.to_string(), counts, state.connections)),
        }
    }
    clusters
}

fn json<T: Serialize>(dump: impl Fn() -> T + Send + Sync + 'static) -> Content {
    Arc::new(move || {
        let text = serde_json::to_vec_pretty(&dump()).unwrap_or_default();
        ("application/json", Bytes::from(text))
    })
}

/// The resolver that knows TTLs and SRV records, if it is a part of this build; none = the operating system.
#[cfg(feature = "dns")]
fn default_resolver() -> Option<Arc<dyn Resolve>> {
    match mesh_discovery::dns::DnsResolver::builder().build() {
        Ok(resolver) => Some(Arc::new(resolver)),
        Err(error) => {
            tracing::warn!(%error, "names are looked up by the operating system, which tells neither TTLs nor SRV records");
            None
        }
    }
}

#[cfg(not(feature = "dns"))]
fn default_resolver() -> Option<Arc<dyn Resolve>> {
    None
}

fn default_crypto() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The builder's settings over the environment.
struct Settings<'a>(&'a BTreeMap<&'static str, String>);

impl Vars for Settings<'_> {
    fn var(&self, name: &str) -> Option<String> {
        // A setting that is empty hides the variable.
        self.0.get(name).map_or_else(|| ProcessEnv.var(name), |set| Some(set.clone()).filter(|set| !set.is_empty()))
    }

    fn names(&self) -> Vec<String> {
        ProcessEnv.names()
    }
}

#[cfg(test)]
mod tests {
    use mesh_testkit::TestCa;

    use super::*;

    #[test]
    fn a_policy_is_known_by_what_stands_behind_the_last_slash_a52() {
        let names = ["type.googleapis.com/test.Ours", "test.Another", "any.host/of/test.Third"];
        let with = |builder: MeshBuilder, name: &str| builder.balancer(name, |_, _, _| None);
        let builder = names.into_iter().fold(MeshBuilder::default(), with);
        assert_eq!(Vec::from_iter(builder.balancers.names()), ["test.Another", "test.Ours", "test.Third"]);
    }

    #[tokio::test]
    async fn a_configuration_that_is_given_stands_in_place_of_variables_and_setters() {
        let alone = MeshBuilder::default().standalone().service_account("set");
        let mut config = MeshConfig::from_vars(&Settings(&alone.settings)).unwrap();
        assert_eq!(config.service_account, "set");
        config.service_account = "changed".to_owned();
        config.workload.canonical_name = "reviews".to_owned();
        let mesh = MeshBuilder::default().config(config).service_account("ignored").build().await.unwrap();
        assert_eq!(
            (mesh.inner().service_account.as_str(), &*mesh.inner().workload.canonical_name),
            ("changed", "reviews")
        );
        let set = alone.build().await.unwrap();
        assert_eq!(set.inner().service_account, "set", "the control");
    }

    #[test]
    fn a_revocation_list_near_its_end_is_told_of() {
        let ca = TestCa::new();
        // It is good for an hour, and a minute of it is over.
        let (with, without, end) = (ca.bundles_revoking(&[]), ca.bundles(), UnixTime::now().as_secs() + 3_600);
        let at = |now: u64| ending_list([without.clone(), with.clone()].into_iter(), now).unwrap_or_default();
        assert_eq!(at(end - 1_800), "");
        assert!(at(end - 900).contains("CN=") && at(end - 900).contains("25 percent"), "{}", at(end - 900));
        assert!(at(end - 300).contains("10 percent"));
        assert!(at(end + 60).contains("it has ended") && at(end + 60).contains("CN="), "{}", at(end + 60));
        assert_eq!(ending_list([without].into_iter(), end + 60), None, "the control");
    }

    /// Whatever the source: an identity of the application's own, an agent's, or one in files, its instances among them.
    #[tokio::test]
    async fn aliases_of_the_trust_domain_hold_for_identities_of_every_source() {
        let (ca, directory) = (TestCa::new(), tempfile::tempdir().unwrap());
        let (chain, key) = ca.pem("default", "reviews");
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let files = serde_json::json!({ "plugin_name": "file_watcher", "config": {
            "certificate_file": write("chain.pem", &chain), "private_key_file": write("key.pem", &key),
            "ca_certificate_file": write("root.pem", ca.root_pem()), "refresh_interval": "600s" } });
        let bootstrap = |instances: &[&str]| {
            let providers: BTreeMap<_, _> = instances.iter().map(|name| (*name, &files)).collect();
            serde_json::json!({
                "xds_servers": [{ "server_uri": "127.0.0.1:1", "channel_creds": [{ "type": "insecure" }],
                    "server_features": ["xds_v3"] }],
                "node": { "id": "test" }, "certificate_providers": providers,
            })
            .to_string()
        };
        let start = || MeshBuilder::default().set("MESH_TRUST_DOMAIN_ALIASES", "old.test".to_owned());
        let own = start().bootstrap(bootstrap(&["other"])).identity(ca.watched("default", "reviews"));
        let of_files = start().bootstrap(bootstrap(&["default", "other"]));
        let former = "spiffe://old.test/ns/default/sa/web".parse().unwrap();
        for builder in [own, of_files] {
            let mesh = builder.build().await.unwrap();
            let identities = mesh.inner().identities.clone();
            for instance in [None, Some("other")] {
                let identity = identities.of(instance).wait_for(Option::is_some).await;
                let named = identity.as_ref().as_ref().unwrap().bundles().aliased(&former);
                assert_eq!(named, Some(ca.id("default", "web")), "{instance:?}");
            }
        }
    }

    #[test]
    fn a_bootstrap_of_the_builder_hides_what_the_environment_says_instead_of_it() {
        let builder = MeshBuilder::default().bootstrap("{}");
        assert_eq!(Settings(&builder.settings).var("GRPC_XDS_BOOTSTRAP_CONFIG").as_deref(), Some("{}"));
        for hidden in ["GRPC_XDS_BOOTSTRAP", "MESH_CONTROL_PLANE"] {
            assert_eq!(builder.settings.get(hidden).map(String::as_str), Some(""), "{hidden}");
        }
        // Every process has this one.
        assert!(Settings(&BTreeMap::new()).var("PATH").is_some(), "control");
        assert_eq!(Settings(&BTreeMap::from([("PATH", String::new())])).var("PATH"), None);
    }
}
