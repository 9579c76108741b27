//! Connectors of the application's own, beneath the balancer: what stands in for TCP and unix sockets.

use std::io;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use mesh_core::policy::Address;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connected stream of bytes; implemented for everything that reads and writes.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Makes the connections to endpoints, in place of TCP and unix sockets: through a tunnel, say, or within a
/// simulated network. TLS, HTTP, pools and the connect timeout stay the client's.
///
/// Implemented for closures:
///
/// ```
/// use mesh_client::{Client, Io};
/// use mesh_core::policy::Address;
/// use mesh_testkit::{EchoServer, FixedSource, policy};
///
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// let server = EchoServer::start("v1").await;
/// let source = FixedSource::of("reviews:9080", policy::snapshot_to(&["203.0.113.1:80".parse().unwrap()]));
/// let elsewhere = server.address();
/// let client = Client::builder(source)
///     .connector(move |_: Address| async move {
///         Ok(Box::new(tokio::net::TcpStream::connect(elsewhere).await?) as Box<dyn Io>)
///     })
///     .build();
///
/// let request = http::Request::get("http://reviews:9080/").body(String::new()).unwrap();
/// assert_eq!(client.send(request).await?.headers()["x-echo-server"], "v1");
/// # Ok::<(), mesh_client::Error>(()) }).unwrap();
/// ```
pub trait Connect: Send + Sync + 'static {
    /// Connects to `address`: a socket address, or a unix socket. Names have been looked up.
    fn connect(&self, address: Address) -> BoxFuture<'static, io::Result<Box<dyn Io>>>;
}

impl<C, F> Connect for C
where
    C: Fn(Address) -> F + Send + Sync + 'static,
    F: Future<Output = io::Result<Box<dyn Io>>> + Send + 'static,
{
    fn connect(&self, address: Address) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        Box::pin(self(address))
    }
}

/// The application's connector, if it has one.
pub(crate) type Custom = Option<Arc<dyn Connect>>;
