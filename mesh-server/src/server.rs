//! [`Server`]: serves a Tower service on a listening socket as the mesh's policy says.

use std::future::Future;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use tokio::net::TcpListener;
use tower_service::Service;

use mesh_core::error::BoxError;

use crate::inbound::{Door, run};
use crate::{Body, InboundLayer, InboundStats, Readiness, ServerBuilder};

/// The inbound side of the mesh. Cheap to clone; may serve several listeners of the same policy.
///
/// Strict and permissive mutual TLS on one port, HTTP/1.1 and HTTP/2, upgrades (WebSockets), the
/// [inbound layer](InboundLayer) for every request.
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
            run(listener, address, door, readiness, service).await;
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
