//! [`Serve`]: one listener of this process, from the first policy to the end of the drain.

use std::collections::HashMap;
use std::future::{Future, IntoFuture};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use mesh_core::authz::ExternalAuthorizer;
use mesh_core::error::BoxError;
use mesh_core::id::Target;
use mesh_core::policy::InboundState;
use mesh_core::source::Watched;
use mesh_discovery::registration::{Announcement, Registration};
use mesh_server::{Config, LoadReporter, RawConnection, Server, lifecycle};
use tokio::net::TcpListener;
use tokio::time::timeout;
use tower_service::Service;

use crate::authorizers::Authorizers;
use crate::error::ServeError;
use crate::listeners::{Hold, Own};
use crate::mesh::Mesh;

/// A listener about to be served; await it to serve.
///
/// In this order: ask the control plane for the policy of the address; accept connections as it says;
/// announce the process (if [`service`](Self::service) was named) once the policy is there, so that nobody is
/// sent here to be refused; on SIGTERM, SIGINT or [`Mesh::begin_shutdown`]: not ready, withdrawn, requests served
/// for a little longer with the word that this server leaves ([`lame_duck`](Self::lame_duck)), no new ones,
/// requests in flight finish, done.
///
/// There is no gRPC health service at this port unless the application has one (`tonic-health`: `Check` and `Watch`), and what
/// that says is the application's: clients of the mesh hear that a server leaves from the control plane and by GOAWAY. For who
/// looks at nothing but gRPC health (gRFC A17), turn it to `NOT_SERVING` before [`Mesh::begin_shutdown`].
#[must_use = "nothing is served until this is awaited"]
pub struct Serve<S> {
    mesh: Mesh,
    listener: TcpListener,
    own: Own,
    service: S,
    announced: Option<(String, u16)>,
    advertised: Option<SocketAddr>,
    protocol: &'static str,
    signals: bool,
    config: Config,
    load: Option<LoadReporter>,
    authorizers: HashMap<String, Arc<dyn ExternalAuthorizer>>,
}

/// What serves raw connections in the place of requests: a handler of [`RawConnection`]s.
#[derive(Clone)]
pub struct Raw<H>(pub(crate) H);

impl<S> Serve<S> {
    /// `protocol` = what the port is announced as.
    pub(crate) fn new(mesh: Mesh, listener: TcpListener, service: S, protocol: &'static str) -> Self {
        let (announced, advertised, signals) = (None, None, true);
        let (config, load, authorizers) = (Config::default(), None, HashMap::new());
        let own = mesh.inner().listeners.own(&listener);
        Self { mesh, listener, own, service, announced, advertised, protocol, signals, config, load, authorizers }
    }

    /// Announces the process as an endpoint of this service and service port. Without it nothing is
    /// announced: in Kubernetes the endpoints come from the cluster.
    pub fn service(mut self, name: impl Into<String>, port: u16) -> Self {
        self.announced = Some((name.into(), port));
        self
    }

    /// The address others connect to. Default: the listener's, with `POD_IP` in place of `0.0.0.0`.
    pub fn advertise(mut self, address: SocketAddr) -> Self {
        self.advertised = Some(address);
        self
    }

    /// Announces the port as HTTP/2 (for gRPC). Default: HTTP/1.1, or TCP where raw connections are served. The server takes
    /// both anyway.
    pub fn http2(mut self) -> Self {
        self.protocol = "http2";
        self
    }

    /// How long a draining server goes on serving, so that callers learn in time that it leaves, though nobody is
    /// connected at the moment. Default 2 s, enough where this mesh's control plane tells them; where endpoints
    /// travel through the Kubernetes API take 5 s.
    pub fn lame_duck(mut self, time: Duration) -> Self {
        self.config.lame_duck = time;
        self
    }

    /// Limits of the server, [`lame_duck`](Self::lame_duck) among them. Default: [`Config::default`].
    pub fn limits(mut self, limits: Config) -> Self {
        self.config = limits;
        self
    }

    /// Tells callers of the load of this listener and of what the application says of itself, so that weighted round
    /// robin and Prequal can go by it: with each answer, on ORCA's stream, and to probes. See [`LoadReporter`]. Default:
    /// nobody is told anything.
    pub fn load_reports(mut self, load: LoadReporter) -> Self {
        self.load = Some(load);
        self
    }

    /// Whom CUSTOM policies ask that name this provider, in the place of the service that the mesh's
    /// `extensionProviders` have under that name. Default: that service; what nobody decides about is denied.
    pub fn authorizer(mut self, provider: impl Into<String>, authorizer: Arc<dyn ExternalAuthorizer>) -> Self {
        self.authorizers.insert(provider.into(), authorizer);
        self
    }

    /// Leaves SIGTERM and SIGINT to the application, which then calls [`Mesh::begin_shutdown`].
    pub fn without_signals(mut self) -> Self {
        self.signals = false;
        self
    }
}

impl<S, RB> IntoFuture for Serve<S>
where
    S: Service<Request<mesh_server::Body>, Response = Response<RB>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    RB: http_body::Body<Data = Bytes> + Send + 'static,
    RB::Error: Into<BoxError>,
{
    type Output = Result<(), ServeError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run(|server, listener, service| server.serve(listener, service)))
    }
}

impl<H, F> IntoFuture for Serve<Raw<H>>
where
    H: Fn(RawConnection) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    type Output = Result<(), ServeError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run(|server, listener, Raw(handler)| server.serve_tcp(listener, handler)))
    }
}

impl<S> Serve<S> {
    async fn run<F: Future<Output = io::Result<()>>>(
        self,
        serve: impl FnOnce(Server, TcpListener, S) -> F,
    ) -> Result<(), ServeError> {
        let (mesh, _own) = (self.mesh, self.own);
        let inner = mesh.inner();
        let bound = self.listener.local_addr()?;
        let address = reachable(self.advertised.unwrap_or(bound), inner.pod_ip);
        if self.announced.is_some() && address.ip().is_unspecified() {
            return Err(ServeError::NoAddress(address));
        }
        let (policy, lame_duck) = (inner.inbound.inbound(address), self.config.lame_duck);
        let mut builder = Server::builder()
            .identity(inner.identities.clone())
            .crypto(inner.crypto.clone())
            .inbound(policy.clone())
            .workload(inner.workload.clone())
            .metrics(inner.metrics.clone())
            .stats(inner.stats.clone())
            .drain(inner.drain.watch())
            .config(self.config)
            .authorizers(Arc::new(Authorizers { own: self.authorizers, client: inner.client.clone() }))
            .readiness(inner.readiness.clone());
        if let Some(load) = self.load {
            builder = builder.load_reports(load);
        }
        let mut announcement = None;
        if let Some((name, port)) = &self.announced {
            let target = Target::new(name, *port)?;
            let host = format!("{}.{}.{}", target.host(), inner.workload.namespace, inner.service_domain);
            builder = builder.service_host(host);
            announcement = Some(mesh.announcement(&target, address, self.protocol));
        }
        // Where no policy comes from anywhere, none is passed by.
        let hold = inner.control.as_ref().map(|_| inner.listeners.hold(&inner.readiness, bound));
        let serving = serve(builder.build(), self.listener, self.service);
        let attendance = attend(&mesh, announcement, policy, hold, self.signals, lame_duck);
        tokio::pin!(serving, attendance);
        tokio::select! {
            served = &mut serving => {
                // Either the listener broke, or a drain with nothing in flight was quicker than the
                // withdrawal, which must not be lost.
                served?;
                attendance.await;
            }
            () = &mut attendance => serving.await?,
        }
        Ok(())
    }
}

/// How long nothing is closed yet because the control plane has not confirmed that it sends nobody here any more.
const WITHDRAWAL: Duration = Duration::from_secs(2);

/// Announces the process when its policy is there; withdraws it when the drain begins, until the lame duck's time is over where
/// the control plane is away. Looks for other listeners meanwhile.
async fn attend(
    mesh: &Mesh,
    announcement: Option<Announcement>,
    policy: Watched<InboundState>,
    hold: Option<Hold>,
    signals: bool,
    lame_duck: Duration,
) {
    let watched = async {
        match &hold {
            Some(hold) => mesh.inner().listeners.watch(hold).await,
            None => std::future::pending().await,
        }
    };
    let drained = mesh.inner().drain.watch().drained();
    let signalled = async {
        if !signals {
            return std::future::pending().await;
        }
        match lifecycle::shutdown_signal().await {
            Ok(name) => tracing::info!(target: "mesh::lifecycle", signal = name, "draining"),
            Err(error) => {
                tracing::warn!(target: "mesh::lifecycle", %error, "no signal handlers: call begin_shutdown yourself");
                std::future::pending().await
            }
        }
    };
    tokio::pin!(drained, signalled, watched);
    let announced = announce_when_ready(mesh, announcement, policy, hold.as_ref());
    tokio::pin!(announced);
    let mut registration = None;
    loop {
        tokio::select! {
            made = &mut announced, if registration.is_none() => registration = Some(made),
            () = &mut drained => break,
            () = &mut signalled => break,
            () = &mut watched => {}
        }
    }
    // Withdrawn before anything is closed: who asks the control plane from now on is sent elsewhere.
    mesh.inner().readiness.drain();
    let Some(Some(registration)) = registration else { return mesh.begin_shutdown() };
    let mut withdrawal = pin!(registration.withdraw());
    let confirmed = timeout(WITHDRAWAL, &mut withdrawal).await.is_ok();
    mesh.begin_shutdown();
    if !confirmed && timeout(lame_duck, withdrawal).await.is_err() {
        tracing::warn!(
            target: "mesh::lifecycle",
            "the control plane could not be told that this process leaves: it goes on naming it for its grace period"
        );
    }
}

async fn announce_when_ready(
    mesh: &Mesh,
    announcement: Option<Announcement>,
    mut policy: Watched<InboundState>,
    hold: Option<&Hold>,
) -> Option<Registration> {
    policy.wait_for(|state| matches!(state, InboundState::Ready(_))).await;
    if let Some(hold) = hold {
        hold.alone().await;
    }
    mesh.announce(announcement?)
}

/// `POD_IP` stands in for "every interface".
fn reachable(address: SocketAddr, pod_ip: Option<std::net::IpAddr>) -> SocketAddr {
    match pod_ip {
        Some(ip) if address.ip().is_unspecified() => SocketAddr::new(ip, address.port()),
        _ => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wildcard_listener_is_reached_at_the_pods_address() {
        let wildcard = "0.0.0.0:80".parse().unwrap();
        let pod = "10.0.0.7".parse().unwrap();
        assert_eq!(reachable(wildcard, Some(pod)).to_string(), "10.0.0.7:80");
        assert_eq!(reachable(wildcard, None), wildcard);
        assert_eq!(reachable("127.0.0.1:80".parse().unwrap(), Some(pod)).to_string(), "127.0.0.1:80");
    }
}
