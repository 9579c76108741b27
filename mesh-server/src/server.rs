//! [`Server`]: serves a Tower service, or raw connections, on a listening socket as the mesh's policy says.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tower_service::Service;

use mesh_core::error::BoxError;
use mesh_core::policy::InboundState;

use crate::inbound::{Door, run};
use crate::{
    Accepted, Body, Http1Connection, Http2Connection, InboundLayer, InboundStats, RawConnection, Readiness,
    ServerBuilder,
};

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
    /// [`Config::unwelcome_limit`](crate::Config); [`Config::raw_idle_timeout`](crate::Config) ends silent ones, and
    /// [`Config::max_connection_age`](crate::Config) old ones, which have [`Config::drain_limit`](crate::Config) from then on. Limits
    /// on connections count, those on requests do not. It counts as open until the handler has returned and the connection is dropped.
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

    /// Takes one socket as policy says, for an application that has a loop and an HTTP server of its own: plaintext or mutual
    /// TLS by the port's mode, the first byte, the handshake, whether it is HTTP/1 or HTTP/2, each within its time limit. `None` =
    /// refused, or gone without a word; [`stats`](Self::stats) say why.
    ///
    /// On what is returned, [`Config::header_read_timeout`](crate::Config) and
    /// [`Config::max_control_frames`](crate::Config) hold; [`http1`](Self::http1) and [`http2`](Self::http2) bring the other
    /// limits of a connection, [`request`](Self::request) those of a request's body, and the number of connections is for the
    /// application to bound. Each of its requests is judged by
    /// the policy of the moment where it goes through [`Accepted::layer`](crate::Accepted::layer). When its peer is not trusted
    /// any more, or is a plaintext one and the port turns strict, reading and writing fail at once, and with them what is in
    /// flight; when a new policy may refuse what was open to it, after [`Config::unwelcome_limit`](crate::Config)
    /// ([`Accepted::leaving`](crate::Accepted::leaving)). A task that waits for either hears of it.
    /// When it is as old as the listener's `max_connection_age` or [`Config::max_connection_age`](crate::Config) allow, HTTP/1.1
    /// answers say that it takes no further request and [`Accepted::leaving`](crate::Accepted::leaving) resolves; it is not cut for
    /// that, and nobody else drains it. Best called in the connection's own task, for a handshake may take its
    /// time.
    ///
    /// ```
    /// use hyper_util::rt::TokioIo;
    /// use hyper_util::service::TowerToHyperService;
    /// use mesh_server::Server;
    /// use tower::ServiceBuilder;
    ///
    /// async fn serve(server: Server, listener: tokio::net::TcpListener, router: axum::Router) -> std::io::Result<()> {
    ///     loop {
    ///         let (tcp, peer) = listener.accept().await?;
    ///         let (server, router) = (server.clone(), router.clone());
    ///         tokio::spawn(async move {
    ///             let Some(connection) = server.accept(tcp, peer).await else { return };
    ///             let own = server.clone();
    ///             let service = ServiceBuilder::new().map_request(move |request| own.request(request));
    ///             let service = TowerToHyperService::new(service.layer(connection.layer()).service(router));
    ///             let io = TokioIo::new(connection);
    ///             let _ = if io.inner().is_http2() {
    ///                 server.http2().serve_connection(io, service).await
    ///             } else {
    ///                 server.http1().serve_connection(io, service).with_upgrades().await
    ///             };
    ///         });
    ///     }
    /// }
    /// ```
    pub async fn accept(&self, tcp: TcpStream, peer: SocketAddr) -> Option<Accepted> {
        self.door.accept(tcp, peer).await
    }

    /// A request of [`accept`](Self::accept)'s connections with its body as services behind [`serve`](Self::serve) have it, for
    /// what is around [`Accepted::layer`](crate::Accepted::layer): with [`Config::body_idle_timeout`](crate::Config), to be read
    /// by external authorizers that want it, and without trailers that say what no header of a caller may. Without this a
    /// body has none of the three.
    pub fn request(&self, request: Request<Incoming>) -> Request<Body> {
        Body::of(request, self.door.config.body_idle_timeout)
    }

    /// hyper's HTTP/1 with the limits of this server's [`Config`](crate::Config), for connections of [`accept`](Self::accept).
    /// How old a connection may get the connection says itself ([`Accepted::leaving`](crate::Accepted::leaving)).
    pub fn http1(&self) -> http1::Builder {
        self.door.http1.clone()
    }

    /// Serves HTTP/1.1 over a connection of [`accept`](Self::accept), or of another acceptor, as [`serve`](Self::serve) does and
    /// for less than hyper's [`http1`](Self::http1): with the limits of this server's [`Config`](crate::Config) and the bodies that
    /// [`request`](Self::request) makes. Requests whose head and body are there at once, nearly all, are read and answered
    /// here; a connection on which anything else comes (a body that is still on its way or in chunks, an upgrade, HTTP/1.0, no
    /// HTTP at all) is hyper's from there on. [`Accepted::layer`](crate::Accepted::layer) or
    /// [`inbound_layer`](Self::inbound_layer) is to be around `service`, which is called as it is, and not called again before its answer
    /// has ended. Nobody but the loop ends the connection in peace ([`Http1Connection::leave`]), which is to be called once
    /// [`Accepted::leaving`](crate::Accepted::leaving) says so.
    pub fn serve_http1<T, S, RB>(&self, io: T, service: S) -> Http1Connection<T, S, RB>
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        S: Service<Request<Body>, Response = Response<RB>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        RB: http_body::Body<Data = Bytes> + Send + 'static,
        RB::Error: Into<BoxError>,
    {
        self.door.own_http1.serve(io, None, service)
    }

    /// Serves HTTP/2 over a connection of [`accept`](Self::accept), or of another acceptor, as [`serve`](Self::serve) does and
    /// for less than hyper's [`http2`](Self::http2): with the limits of this server's [`Config`](crate::Config), the streams that
    /// the policy of the moment allows, and the bodies that [`request`](Self::request) makes. [`Accepted::layer`](crate::Accepted::layer)
    /// or [`inbound_layer`](Self::inbound_layer) is to be around `service`, which is called as it is. Each request is a task of
    /// its own on the runtime that polls the connection; on one of a single thread (`current_thread`) only once it waits for
    /// something: up to there it is served within the poll of the connection, and its task's id, task-locals and span are those of who
    /// polls that. Nothing limits here how long the peer may take until it speaks, and
    /// nobody but the loop ends the connection in peace ([`Http2Connection::leave`]), which is to be called once
    /// [`Accepted::leaving`](crate::Accepted::leaving) says so.
    pub fn serve_http2<T, S, RB>(&self, io: T, service: S) -> Http2Connection<T, S>
    where
        T: AsyncRead + AsyncWrite + Unpin,
        S: Service<Request<Body>, Response = Response<RB>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        RB: http_body::Body<Data = Bytes> + Send + 'static,
        RB::Error: Into<BoxError>,
    {
        let streams = self.streams().unwrap_or(self.door.config.max_concurrent_streams);
        self.door.own_http2.serve(io, streams, service)
    }

    /// hyper's HTTP/2 with these limits, with the concurrent streams that the policy of the moment allows: to be asked for each connection.
    pub fn http2(&self) -> http2::Builder<TokioExecutor> {
        let mut http2 = self.door.http2.clone();
        if let Some(streams) = self.streams() {
            http2.max_concurrent_streams(streams);
        }
        http2
    }

    /// How many the policy of the moment allows at once, if it says so.
    fn streams(&self) -> Option<u32> {
        match &**self.door.inbound.load() {
            InboundState::Ready(listener) => listener.limits.max_concurrent_streams,
            InboundState::Pending | InboundState::Failed(_) => None,
        }
    }

    /// The per-request part alone, for an application with an acceptor of its own. What is being served when policy changes
    /// goes on: connections are that acceptor's to end. It knows no peer
    /// unless that acceptor puts a [`PeerIdentity`](crate::PeerIdentity) into the extensions. While a policy that was
    /// [given](ServerBuilder::inbound) has not come, requests get 503 (`MESH-1003`); if none was given, they pass. Where policy
    /// demands mutual TLS, those whose peer has no SPIFFE ID get 403 (`MESH-2001`). Bodies are that acceptor's: no limit of time is on
    /// them, nobody reads them for an external authorizer, and their trailers stay as they came, unless they come from
    /// [`request`](Self::request).
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
