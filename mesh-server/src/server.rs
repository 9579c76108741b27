//! [`Server`]: serves a Tower service, or raw connections, on a listening socket as the mesh's policy says.

use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use tokio::net::TcpListener;
use tower_service::Service;

use mesh_core::error::BoxError;

use crate::inbound::{Door, run};
use crate::{Body, InboundLayer, InboundStats, RawConnection, Readiness, ServerBuilder};

/// The inbound side of the mesh. Cheap to clone; may serve several listeners of the same policy.
///
/// Strict and permissive mutual TLS on one port, HTTP/1.1 and HTTP/2, upgrades (WebSockets), the
/// [inbound layer](InboundLayer) for every request. Or raw connections, with what of policy holds for them.
#[derive(Clone)]
pub struct Server {
    door: Arc<Door>,
    readiness: Readiness,
}

impl Server {
    /// Begins a server.
    pub fn builder() -> ServerBuilder {
        ServerBuilder::new()
    }

    pub(crate) fn new(door: Arc<Door>, readiness: Readiness) -> Self {
        Self { door, readiness }
    }

    /// Serves until the drain has been triggered, the lame duck's time is over and the last connection has
    /// ended, or the drain limit is reached. Accepts an `axum::Router`, tonic's `Routes` or a generated server, or any Tower service.
    ///
    /// Dropping the future closes the listener and every connection at once, except those the
    /// application took over by an upgrade.
    ///
    /// A panic in the service costs its request, which gets 500 (gRPC: INTERNAL), or whose answer's body breaks off; in a
    /// process built with `panic = "abort"` it ends the process.
    ///
    /// # Errors
    /// The listener's own address cannot be read.
    pub fn serve<S, RB>(
        &self,
        listener: TcpListener,
        service: S,
    ) -> impl Future<Output = io::Result<()>> + Send + use<S, RB>
    where
        S: Service<Request<Body>, Response = Response<RB>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        RB: http_body::Body<Data = Bytes> + Send + 'static,
        RB::Error: Into<BoxError>,
    {
        let (door, readiness) = (self.door.clone(), self.readiness.clone());
        async move {
            let address = listener.local_addr()?;
            let serve = move |door: Arc<Door>, tcp, peer| {
                let service = service.clone();
                async move { door.serve(tcp, peer, service).await }
            };
            run(listener, address, door, readiness, serve).await;
            Ok(())
        }
    }

    /// Serves connections that carry no HTTP, for protocols of the application's own: `handler` is called with each
    /// [`RawConnection`] that policy lets in, and reads and writes plain bytes whether or not there is mutual TLS below.
    ///
    /// The port's mode (PeerAuthentication) holds as for HTTP, but that where TLS is disabled bytes are passed on as they
    /// come, TLS of the application's own among them. On a permissive port a caller that says nothing for
    /// [`Config::detect_timeout`](crate::Config) is taken for a plaintext one that waits for the server to begin. Authorization
    /// policies decide once, before the handler is called, by what is known of a connection: identity and address of the
    /// caller, port and address reached, TLS server name. As with Istio a rule that says something of requests or tokens
    /// does not match if it allows; if it denies, that part is passed over. What a CUSTOM policy matches is denied: authorizers are
    /// asked about requests only. So is everything where a filter of the listener demands a token. A connection that is
    /// denied is reset.
    ///
    /// A policy that comes later and denies an open connection, or a peer that is not trusted any more, ends it after
    /// [`Config::unwelcome_limit`](crate::Config); [`Config::raw_idle_timeout`](crate::Config) ends silent ones. Limits on connections
    /// count, those on requests do not, and the age of a connection does not end it. It counts as open until the handler has
    /// returned and the connection is dropped.
    ///
    /// The future ends as that of [`serve`](Self::serve): what is open when a drain's lame duck time is over has
    /// [`Config::drain_limit`](crate::Config) to end.
    ///
    /// # Errors
    /// The listener's own address cannot be read.
    pub fn serve_tcp<H, F>(
        &self,
        listener: TcpListener,
        handler: H,
    ) -> impl Future<Output = io::Result<()>> + Send + use<H, F>
    where
        H: Fn(RawConnection) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (door, readiness) = (self.door.clone(), self.readiness.clone());
        async move {
            let address = listener.local_addr()?;
            let serve = move |door: Arc<Door>, tcp, peer| {
                let handler = handler.clone();
                async move { door.serve_raw(tcp, peer, handler).await }
            };
            run(listener, address, door, readiness, serve).await;
            Ok(())
        }
    }

    /// The per-request part alone, for an application with an acceptor of its own. It knows no peer
    /// unless that acceptor puts a [`PeerIdentity`](crate::PeerIdentity) into the extensions. While a policy that was
    /// [given](ServerBuilder::inbound) has not come, requests get 503 (`MESH-1003`); if none was given, they pass.
    pub fn inbound_layer(&self) -> InboundLayer {
        self.door.layer.lend()
    }

    /// Counters of connections.
    pub fn stats(&self) -> &Arc<InboundStats> {
        &self.door.stats
    }

    /// Whether the listeners could serve.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }
}
