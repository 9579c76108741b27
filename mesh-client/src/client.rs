//! The public face of the outbound path.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response};
use mesh_core::error::BoxError;
use mesh_core::id::{InvalidTarget, Target};
use mesh_core::source::DestinationSource;

use crate::body::{Body, Payload};
use crate::builder::ClientBuilder;
use crate::destination::Destinations;
use crate::env::Env;
use crate::error::Error;
use crate::explain::{ClientDump, Explanation, dump, explain, explain_connect};
use crate::grpc::Channel;
use crate::outbound::warm::Warmed;
use crate::outbound::{self, Head};
use crate::tcp::TcpConnection;

/// Sends HTTP requests as policy says: routed, balanced, retried, limited, over mutual TLS.
///
/// A Tower service that is always ready; cloning is cheap and clones share everything. The destination
/// of a request is its URI's authority (`http://reviews:9080/reviews/0`), else its `Host` header; a
/// `Host` header beside an authority is what is sent and what chooses the virtual host.
///
/// When the last clone is dropped, idle connections close; requests in flight end in peace.
///
/// # Several runtimes
/// A client may be used from several tokio runtimes, at once or one after the other (one for each test or core, one for a call).
/// What looks after a destination (policy, names, health) runs on the runtime of its first request. When that runtime has ended,
/// the next request from another begins it there, and goes by the newest policy itself. One that is there and driven by nobody
/// is taken for ended after 10 s: for so long requests from other runtimes may go by what it heard last. Who wants to have
/// it heard at once gives a runtime that is always driven
/// ([`ClientBuilder::runtime`](crate::ClientBuilder::runtime)); a mesh has one.
///
/// Connections are driven by the runtime that made them and carry the requests of that one, as those of Envoy's workers do: two
/// runtimes have two HTTP/2 connections to an endpoint. They close with their runtime. Only where limits allow no further
/// connection is one of another runtime taken, and if nobody drives that, the request ends with its timeout.
///
/// # Other protocols than HTTP
/// What `hyper::upgrade::on` makes of an answer to a request with `Upgrade` (a WebSocket) or `CONNECT` over HTTP/1.1 is the
/// application's. Until it is dropped it counts as a connection and as a request under way. Once its endpoint is gone it goes on,
/// or has a [limit](crate::ClientBuilder::raw_drain_limit) to end if there is one, whether anybody uses it or not: then it is
/// closed, and reading and writing fail with [`ConnectionAborted`](std::io::ErrorKind::ConnectionAborted) and the names of the
/// cluster and the endpoint, unless the endpoint has come back meanwhile.
///
/// # With reqwest
/// What reqwest has built goes over the mesh, and the answer is reqwest's again: both are `http`'s types beneath, so that this
/// crate needs to know nothing of it. Timeouts, redirects and connections are the mesh's: a `reqwest::Client` is only there to
/// build requests.
///
/// ```
/// use mesh_client::Client;
/// use reqwest::ResponseBuilderExt;
///
/// type BoxError = Box<dyn std::error::Error + Send + Sync>;
///
/// async fn execute(client: &Client, request: reqwest::Request) -> Result<reqwest::Response, BoxError> {
///     let url = request.url().clone();
///     let request = http::Request::<reqwest::Body>::try_from(request)?;
///     let (head, body) = client.send(request).await?.into_parts();
///     // So that the answer knows its URL, which `http` has no place for; else `map(reqwest::Body::wrap).into()` would do.
///     let mut answer = http::Response::builder().status(head.status).version(head.version).url(url).body(())?;
///     *answer.headers_mut() = head.headers;
///     Ok(answer.map(|()| reqwest::Body::wrap(body)).into())
/// }
/// ```
#[derive(Clone)]
pub struct Client {
    env: Arc<Env>,
    destinations: Arc<Destinations>,
}

/// The answer of a [`Client`].
pub type ResponseFuture = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>> + Send>>;

impl Client {
    /// A client of the destinations that `source` knows.
    pub fn builder(source: Arc<dyn DestinationSource>) -> ClientBuilder {
        ClientBuilder::new(source)
    }

    pub(crate) fn of(env: Arc<Env>, destinations: Arc<Destinations>) -> Self {
        Self { env, destinations }
    }

    /// Sends one request; what the Tower service does, without `&mut`.
    pub fn send<B>(&self, request: Request<B>) -> ResponseFuture
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.send_where(request, None)
    }

    /// The same to a destination that the request need not name.
    pub(crate) fn send_to<B>(&self, target: Arc<Target>, request: Request<B>) -> ResponseFuture
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.send_where(request, Some(target))
    }

    fn send_where<B>(&self, request: Request<B>, to: Option<Arc<Target>>) -> ResponseFuture
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        self.start(Head::new(parts), Payload::new(body, self.env.limits.replay), to)
    }

    /// By itself: what is the same for every kind of body is compiled once, beside all that it calls, and not anew in
    /// the crate that sends.
    #[inline(never)]
    fn start(&self, mut head: Head, payload: Payload, to: Option<Arc<Target>>) -> ResponseFuture {
        let destinations = self.destinations.clone();
        // The one box of the outbound path: everything below is one future. It is copied into its box, so its size
        // counts: what an `async fn` takes by value it would hold twice. Room first, for then it is made in its place;
        // a pointer first in it (not a larger value), for then what is not set yet is not copied.
        let room = Box::new_uninit();
        let future = async move { outbound::send(&destinations, to.as_deref(), &mut head, &payload).await };
        let made = Box::write(room, future);
        Box::into_pin(made)
    }

    /// A channel to one destination, for generated tonic clients: `ratings:9080`, or one with a
    /// [`Scheme`](mesh_core::id::Scheme) if the client's source understands it.
    ///
    /// # Errors
    /// `target` is not a destination.
    pub fn channel(&self, target: &str) -> Result<Channel, InvalidTarget> {
        let target: Target = target.parse()?;
        Ok(Channel::new(self.clone(), target))
    }

    /// A raw connection to an endpoint of `target` (`mysql.default:3306`, or one with a
    /// [`Scheme`](mesh_core::id::Scheme) if the client's source understands it): balanced, limited, over the TLS
    /// that policy demands, and counted. It goes where the listener says raw connections go (Envoy's `tcp_proxy`),
    /// else where a `GET /` would go.
    ///
    /// Over mesh mTLS the ALPN protocol is `istio`, as sidecars have it. An endpoint that cannot be reached within
    /// the connect timeout is passed over, as often as policy says; the deadline of the request being served
    /// holds too. Once its endpoint is gone the connection goes on, or for a
    /// [limit](crate::ClientBuilder::raw_drain_limit) if there is one: [`TcpConnection`] tells what is seen of it.
    ///
    /// ```
    /// use mesh_client::Client;
    /// use mesh_testkit::{FixedSource, RawServer, policy};
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// // Says its name in a line, and gives back what it gets.
    /// let server = RawServer::start("mysql").await;
    /// let source = FixedSource::of("mysql.default:3306", policy::snapshot_to(&[server.address()]));
    /// let client = Client::builder(source).build();
    ///
    /// let mut connection = client.connect("mysql.default:3306").await?;
    /// connection.write_all(b"hello").await?;
    /// connection.shutdown().await?;
    /// let mut answer = String::new();
    /// connection.read_to_string(&mut answer).await?;
    /// assert_eq!(answer, "mysql - -\nhello");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// `target` is not a destination, or none of its endpoints can be connected to as policy demands.
    pub async fn connect(&self, target: &str) -> Result<TcpConnection, Error> {
        let target: Target = target.parse()?;
        outbound::tcp::connect(&self.env, &self.destinations, &target).await
    }

    /// Connects to the endpoints of `target` before there is a request for them, so that the first ones need not wait for
    /// TCP and TLS: one connection to each usable endpoint of each of its clusters, 32 at a time, within the limits on
    /// connections. Where there is one already it stays the only one. Without this a connection is made when a request
    /// needs it. One that no request uses ends with the cluster's idle timeout. A destination of thousands of endpoints
    /// costs thousands of connections: give its clusters a balancer that takes a subset.
    ///
    /// gRPC's connections may be others: [`Channel::warm`].
    ///
    /// ```
    /// # use mesh_client::Client;
    /// # use mesh_testkit::{EchoServer, FixedSource, policy};
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// # let server = EchoServer::start("v1").await;
    /// # let client = Client::builder(FixedSource::of("reviews:9080", policy::snapshot_to(&[server.address()]))).build();
    /// let warmed = client.warm("reviews:9080").await?;
    /// assert_eq!((warmed.connected, warmed.failed.len()), (1, 0));
    /// # Ok::<(), mesh_client::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// `target` is not a destination, or nothing is known of it within
    /// [`ClientBuilder::config_wait`]. An endpoint that cannot be reached is no error: see [`Warmed::failed`].
    pub async fn warm(&self, target: &str) -> Result<Warmed, Error> {
        let target: Target = target.parse()?;
        outbound::warm::warm(&self.destinations, &target, false).await
    }

    /// The same for gRPC, which is HTTP/2 whatever policy says.
    pub(crate) async fn warm_grpc(&self, target: &Target) -> Result<Warmed, Error> {
        outbound::warm::warm(&self.destinations, target, true).await
    }

    /// Why a request would go where it would go, without sending it. A destination that nobody has asked
    /// for yet is subscribed to and shown as pending. Where endpoints take turns, this takes one.
    pub fn explain(&self, request: &Request<()>) -> Explanation {
        explain(&self.env, &self.destinations, request)
    }

    /// The same for a raw connection: where [`connect`](Self::connect) would go and why, without connecting.
    ///
    /// # Errors
    /// `target` is not a destination.
    pub fn explain_connect(&self, target: &str) -> Result<Explanation, Error> {
        Ok(explain_connect(&self.env, &self.destinations, &target.parse()?))
    }

    /// Every destination held: clusters, endpoints, connections.
    pub fn dump(&self) -> ClientDump {
        dump(&self.destinations)
    }
}

impl<B> tower_service::Service<Request<B>> for Client
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        // The destination is not known before the request is; waiting happens in the request's future.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture {
        self.send(request)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
