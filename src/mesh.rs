//! [`Mesh`]: the one handle of a process. It holds one control connection, one identity, one set of metrics
//! and one drain, and hands out clients and servers that share them.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use mesh_client::{Breakers, Channel, Client, Error, Explanation, TcpConnection, Warmed};
use mesh_core::drain::DrainTrigger;
use mesh_core::id::{InvalidTarget, Locality, Target, Workload};
use mesh_core::source::{Identities, InboundSource, WatchedIdentity};
use mesh_core::telemetry::Metrics;
use mesh_discovery::connect::Connector;
use mesh_discovery::lrs::LoadReporter;
use mesh_discovery::registration::{self, Announcement, Registration};
use mesh_discovery::secret::FromFiles;
use mesh_discovery::xds::XdsClient;
use mesh_server::debug::DebugServer;
use mesh_server::{InboundLayer, InboundStats, Readiness, Server};
use rustls::crypto::CryptoProvider;
use tokio::net::TcpListener;

use crate::authority::{self, Authorities};
use crate::builder::MeshBuilder;
use crate::error::StartError;
use crate::listeners::Listeners;
use crate::runtime::ControlRuntime;
use crate::serve::{Raw, Serve};

/// How long [`Mesh::shutdown`] waits: a little longer than the servers' lame duck and drain limit take together, and until
/// five seconds before Kubernetes' usual grace is over.
const DRAIN_LIMIT: Duration = Duration::from_secs(25);

/// How long it waits for the disk after that.
const SAVE_LIMIT: Duration = Duration::from_secs(2);

/// A process's part in the mesh. Cheap to clone; clones are the same part. The last one dropped ends the
/// control connection and its background tasks.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// let mesh = mesh::Mesh::from_env().await?;
/// mesh.ready().await;
/// let request = http::Request::get("http://reviews:9080/").body(mesh::Body::empty())?;
/// let response = mesh.client().send(request).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Mesh {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) client: Client,
    pub(crate) authorities: Authorities,
    pub(crate) identities: Identities,
    pub(crate) inbound: Arc<dyn InboundSource>,
    pub(crate) crypto: Arc<CryptoProvider>,
    pub(crate) workload: Arc<Workload>,
    pub(crate) service_account: String,
    pub(crate) locality: Locality,
    pub(crate) pod_ip: Option<IpAddr>,
    /// What full names of Services end in.
    pub(crate) service_domain: String,
    /// What all clients have in flight.
    pub(crate) breakers: Breakers,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) stats: Arc<InboundStats>,
    pub(crate) drain: DrainTrigger,
    pub(crate) readiness: Readiness,
    pub(crate) listeners: Arc<Listeners>,
    pub(crate) control: Option<Control>,
    pub(crate) debug: Option<DebugServer>,
    // Dropped last: what the others run on.
    pub(crate) runtime: ControlRuntime,
}

/// What a mesh with a control plane has, and a disabled one has not.
pub(crate) struct Control {
    pub(crate) xds: Arc<XdsClient>,
    /// The way to the registry.
    pub(crate) connector: Connector,
    /// Whether there is a proof of identity or a certificate provider, and so a certificate sooner or later.
    pub(crate) certified: bool,
    /// The identities that policy may name, and why there is none yet.
    pub(crate) instances: Vec<FromFiles>,
    /// Tells control planes of the load they want to hear of.
    pub(crate) _load: LoadReporter,
}

impl Mesh {
    /// Begins a mesh with settings of your own; what you leave out comes from the environment.
    pub fn builder() -> MeshBuilder {
        MeshBuilder::default()
    }

    /// Joins the mesh as the environment says; see [`MeshConfig`](crate::config::MeshConfig) for the
    /// variables. Returns without waiting for the control plane: [`ready`](Self::ready) does that.
    ///
    /// # Errors
    /// A variable is missing or wrong, or the debug endpoints cannot listen.
    pub async fn from_env() -> Result<Self, StartError> {
        Self::builder().build().await
    }

    /// No mesh: clients dial what they are told, servers take plaintext. For tests, with the same types.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub fn disabled() -> Result<Self, StartError> {
        crate::builder::disabled()
    }

    pub(crate) fn from_inner(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    /// A client: a `tower::Service<http::Request<B>>` that is always ready and cheap to clone.
    pub fn client(&self) -> Client {
        self.inner.client.clone()
    }

    /// A channel to one destination for generated tonic clients: `reviews:9080` or gRPC's `xds:///reviews:9080`, as
    /// the mesh knows it; `xds://NAME/reviews:9080`, a destination of one of the bootstrap's `authorities` (gRFC A47);
    /// `dns:///greeter.example.com:50051`, every address of the name; `dns:///_grpc._tcp.greeter.example.com`, its
    /// SRV records; or `static:10.0.0.1:50051,10.0.0.2:50051`. The last three ask no control plane. A disabled
    /// mesh dials what `xds` names.
    ///
    /// # Errors
    /// The text is no such target, or names an authority that the bootstrap does not declare.
    pub fn channel(&self, target: &str) -> Result<Channel, InvalidTarget> {
        let (client, target) = self.of_target(target)?;
        client.channel(target.as_str())
    }

    /// A raw connection to an endpoint of `target`, which is named as for [`channel`](Self::channel): balanced, within
    /// the cluster's limits, over mutual TLS where policy says so, and counted. A VirtualService's `tcp` and `tls`
    /// routes decide where it goes; see [`TcpConnection`] for what becomes of it afterwards, when its endpoint is gone above all.
    ///
    /// ```no_run
    /// # async fn example(mesh: mesh::Mesh) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    /// use tokio::io::AsyncReadExt;
    ///
    /// let mut connection = mesh.connect("mysql.default:3306").await?;
    /// let greeting = connection.read_u8().await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The text is no such target, or no endpoint can be connected to as policy demands: the error's code says which.
    pub async fn connect(&self, target: &str) -> Result<TcpConnection, Error> {
        let (client, target) = self.of_target(target)?;
        client.connect(target.as_str()).await
    }

    /// Connects to the endpoints of `target`, which is named as for [`channel`](Self::channel), before there is a request
    /// for them: see [`Client::warm`], and [`Channel::warm`] for gRPC.
    ///
    /// # Errors
    /// The text is no such target, or nothing is known of it in time.
    pub async fn warm(&self, target: &str) -> Result<Warmed, Error> {
        let (client, target) = self.of_target(target)?;
        client.warm(target.as_str()).await
    }

    /// The client that knows a target, and the target as that client has it.
    fn of_target(&self, target: &str) -> Result<(&Client, Target), InvalidTarget> {
        let target = Target::parse_uri(target)?;
        let client = match &self.inner.control {
            Some(_) => authority::choose(&target, &self.inner.client, &self.inner.authorities)?,
            None => &self.inner.client,
        };
        Ok((client, target))
    }

    /// Serves an axum router, a tonic service or any Tower service on a listener; see [`Serve`].
    pub fn serve<S>(&self, listener: TcpListener, service: S) -> Serve<S> {
        Serve::new(self.clone(), listener, service, "http")
    }

    /// Serves connections that carry no HTTP: `handler` is called with each that policy lets in. What of policy holds for
    /// them says [`Server::serve_tcp`]; of the settings of [`Serve`] those on requests mean nothing.
    ///
    /// ```no_run
    /// # async fn example(mesh: mesh::Mesh) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::AsyncWriteExt;
    ///
    /// let listener = tokio::net::TcpListener::bind("0.0.0.0:3306").await?;
    /// let greet = |mut connection: mesh::RawConnection| async move {
    ///     let who = connection.peer().spiffe_id.as_ref().map_or("nobody".to_owned(), ToString::to_string);
    ///     let _ = connection.write_all(format!("hello, {who}\n").as_bytes()).await;
    /// };
    /// mesh.serve_tcp(listener, greet).service("mysql", 3306).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn serve_tcp<H>(&self, listener: TcpListener, handler: H) -> Serve<Raw<H>> {
        Serve::new(self.clone(), listener, Raw(handler), "tcp")
    }

    /// The per-request half of the server for applications with an acceptor of their own: context, metrics,
    /// access log. It knows no peer unless that acceptor puts a [`PeerIdentity`](crate::PeerIdentity) into
    /// the request's extensions, and **no policy**: AuthorizationPolicy and PeerAuthentication are enforced by
    /// [`serve`](Self::serve) only, which asks the control plane for those of its address.
    pub fn inbound_layer(&self) -> InboundLayer {
        Server::builder()
            .workload(self.inner.workload.clone())
            .metrics(self.inner.metrics.clone())
            .build()
            .inbound_layer()
    }

    /// Who this process is, whom it trusts and until when: now, and as it is renewed. `None` until the first certificate
    /// has come, and for ever where nothing gives one. What policy may name beside it (gRFC A29) is
    /// [`identities`](Self::identities).
    pub fn identity(&self) -> WatchedIdentity {
        self.inner.identities.own().clone()
    }

    /// Who this process is, and the identities of the bootstrap's other certificate provider instances.
    pub fn identities(&self) -> &Identities {
        &self.inner.identities
    }

    /// Waits until there is a connection to a control plane, which has sent its HTTP/2 preface (or a snapshot of the last good
    /// configuration is there, see `MESH_SNAPSHOT`), and, if a proof of identity or a certificate provider is configured, until
    /// the first certificate is there; a further provider instance may fail. No destination is asked for by that, so a control
    /// plane that will refuse our stream is not found out: many gRPC servers say nothing of a stream before its first response.
    /// The first request tells. At once for a disabled mesh.
    pub async fn ready(&self) {
        if let Some(control) = &self.inner.control {
            if control.certified {
                self.inner.identities.own().clone().wait_for(Option::is_some).await;
            }
            for FromFiles { identity, roots, refusal } in &control.instances {
                let (mut identity, mut roots, mut refusal) = (identity.clone(), roots.clone(), refusal.clone());
                tokio::select! {
                    _ = identity.wait_for(Option::is_some) => {}
                    _ = roots.wait_for(Option::is_some) => {}
                    _ = refusal.wait_for(Option::is_some) => {}
                }
            }
            control.xds.ready().await;
        }
    }

    /// Where a request would go and why; sends nothing. It knows what is known now: a destination asked
    /// about for the first time is pending.
    pub fn explain(&self, request: &Request<()>) -> Explanation {
        self.inner.client.explain(request)
    }

    /// The same for [`connect`](Self::connect): where a raw connection would go and why.
    ///
    /// # Errors
    /// `target` is not a destination.
    pub fn explain_connect(&self, target: &str) -> Result<Explanation, Error> {
        self.inner.client.explain_connect(target)
    }

    /// Where the debug endpoints listen, if they do.
    pub fn debug_address(&self) -> Option<SocketAddr> {
        self.inner.debug.as_ref().map(DebugServer::address)
    }

    /// Begins the drain of every server of this mesh and returns at once.
    pub fn begin_shutdown(&self) {
        self.inner.readiness.drain();
        self.inner.drain.drain();
    }

    /// Drains every server: waits until callers had time to learn of it and what is in flight has finished, at
    /// most 25 s. Then writes what has changed of the snapshot on disk, if there is to be one, in at most 2 s.
    pub async fn shutdown(&self) {
        self.begin_shutdown();
        if tokio::time::timeout(DRAIN_LIMIT, self.inner.drain.finished()).await.is_err() {
            let left = self.inner.drain.guards();
            tracing::warn!(target: "mesh::lifecycle", left, "the drain limit is over; connections are left");
        }
        if let Some(control) = &self.inner.control {
            let saved = tokio::time::timeout(SAVE_LIMIT, control.xds.save()).await;
            if let Err(reason) = saved.unwrap_or_else(|_| Err(format!("it took longer than {SAVE_LIMIT:?}"))) {
                tracing::warn!(target: "mesh::lifecycle", reason, "the last changes of the configuration are not in its snapshot");
            }
        }
    }

    pub(crate) fn announcement(&self, target: &Target, address: SocketAddr, protocol: &str) -> Announcement {
        let inner = &self.inner;
        Announcement {
            service: target.host().to_owned(),
            namespace: inner.workload.namespace.clone(),
            service_port: target.port().into(),
            address: address.to_string(),
            labels: inner.workload.labels.clone(),
            region: inner.locality.region.clone(),
            zone: inner.locality.zone.clone(),
            sub_zone: inner.locality.sub_zone.clone(),
            mesh_tls: inner.control.as_ref().is_some_and(|control| control.certified),
            port_protocol: protocol.to_owned(),
            workload: inner.workload.name.clone(),
            service_account: inner.service_account.clone(),
        }
    }

    /// Announces an endpoint; `None` for a disabled mesh.
    pub(crate) fn announce(&self, announcement: Announcement) -> Option<Registration> {
        let control = self.inner.control.as_ref()?;
        Some(registration::announce(announcement, control.connector.clone(), self.inner.runtime.handle()))
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("workload", &self.inner.workload.name)
            .field("identity", self.inner.identities.own())
            .finish_non_exhaustive()
    }
}
