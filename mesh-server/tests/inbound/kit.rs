//! A running server with its policy, identity and drain in the test's hands, and clients to call it.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tower_service::Service;

use mesh_core::drain::{self, DrainTrigger};
use mesh_core::error::BoxError;
use mesh_core::id::Workload;
use mesh_core::identity::{Identity, client_config, peer_spiffe_id};
use mesh_core::policy::{InboundListener, InboundState, InboundTls};
use mesh_core::source::{Publisher, Watched};
use mesh_core::telemetry::Metrics;
use mesh_server::{Body, Config, LoadReporter, RawConnection, Server, ServerBuilder};
use mesh_testkit::{CertificateSpec, TestCa, crypto};

use crate::audit;

/// A server under test.
pub(crate) struct World {
    pub(crate) ca: TestCa,
    pub(crate) policy: Publisher<InboundState>,
    pub(crate) identity: Publisher<Option<Arc<Identity>>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) drain: DrainTrigger,
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    pub(crate) serving: JoinHandle<std::io::Result<()>>,
}

/// The listener's policy with one transport mode.
pub(crate) fn listener(tls: InboundTls) -> InboundListener {
    mesh_testkit::policy::inbound(([127, 0, 0, 1], 80).into(), tls)
}

/// An identity of one authority that trusts another.
pub(crate) fn identity_trusting(own: &TestCa, account: &str, trusted: &TestCa) -> Arc<Identity> {
    let certified = own.certified(&CertificateSpec::of(&own.id("default", account)));
    Arc::new(Identity::new(certified, trusted.bundles(), 1).unwrap())
}

pub(crate) fn policy(tls: InboundTls) -> InboundState {
    InboundState::Ready(Arc::new(listener(tls)))
}

impl World {
    /// A server that answers every request with `hello`.
    pub(crate) async fn hello(tls: InboundTls) -> Self {
        Self::start(policy(tls), Config::default(), tower::service_fn(|_| async { text("hello") })).await
    }

    pub(crate) async fn start<S, RB>(state: InboundState, config: Config, service: S) -> Self
    where
        S: Service<Request<Body>, Response = Response<RB>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        RB: http_body::Body<Data = Bytes> + Send + 'static,
        RB::Error: Into<BoxError>,
    {
        Self::start_with(state, config, |server| server, service).await
    }

    /// The same; it tells callers of its load, if there is something to tell.
    pub(crate) async fn start_telling<S, RB>(
        state: InboundState,
        config: Config,
        load: Option<LoadReporter>,
        service: S,
    ) -> Self
    where
        S: Service<Request<Body>, Response = Response<RB>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        RB: http_body::Body<Data = Bytes> + Send + 'static,
        RB::Error: Into<BoxError>,
    {
        let telling = |server: ServerBuilder| match load {
            Some(load) => server.load_reports(load),
            None => server,
        };
        Self::start_with(state, config, telling, service).await
    }

    /// The same with further settings.
    pub(crate) async fn start_with<S, RB>(
        state: InboundState,
        config: Config,
        settings: impl FnOnce(ServerBuilder) -> ServerBuilder,
        service: S,
    ) -> Self
    where
        S: Service<Request<Body>, Response = Response<RB>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        RB: http_body::Body<Data = Bytes> + Send + 'static,
        RB::Error: Into<BoxError>,
    {
        Self::serving(state, config, settings, |server, listener| spawn(server.serve(listener, service))).await
    }

    /// A server of raw connections.
    pub(crate) async fn start_raw<F: Future<Output = ()> + Send + 'static>(
        state: InboundState,
        config: Config,
        handler: impl Fn(RawConnection) -> F + Clone + Send + 'static,
    ) -> Self {
        let serve = |server: &Server, listener| spawn(server.serve_tcp(listener, handler));
        Self::serving(state, config, |server| server, serve).await
    }

    async fn serving(
        state: InboundState,
        config: Config,
        settings: impl FnOnce(ServerBuilder) -> ServerBuilder,
        serve: impl FnOnce(&Server, TcpListener) -> JoinHandle<std::io::Result<()>>,
    ) -> Self {
        audit::listen();
        let ca = TestCa::new();
        let (policy, inbound) = Watched::channel(state);
        let (identity, own) = Watched::channel(Some(ca.identity("default", "reviews")));
        let (drain, draining) = drain::channel();
        let metrics = Arc::<Metrics>::default();
        let workload = Workload {
            name: "reviews-v1".to_owned(),
            namespace: "default".to_owned(),
            canonical_name: "reviews".to_owned(),
            ..Workload::default()
        };
        let server = Server::builder()
            .identity(own)
            .crypto(crypto())
            .inbound(inbound)
            .workload(Arc::new(workload))
            .metrics(metrics.clone())
            .drain(draining)
            .config(config);
        let server = settings(server).build();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = serve(&server, listener);
        Self { ca, policy, identity, metrics, drain, server, address, serving }
    }

    /// A plaintext connection.
    pub(crate) async fn plain(&self, version: Http) -> Client {
        Client::over(TcpStream::connect(self.address).await.unwrap(), version).await.unwrap()
    }

    /// A mutual TLS connection as `default/productpage` of the server's own mesh.
    pub(crate) async fn mutual(&self, version: Http) -> Client {
        let identity = self.ca.identity("default", "productpage");
        self.mutual_as(&identity, version).await.unwrap()
    }

    pub(crate) async fn mutual_as(&self, identity: &Identity, version: Http) -> Result<Client, BoxError> {
        self.mutual_with(client_tls(identity, version), version).await
    }

    /// The status of the answer to a request over mutual TLS that offers these protocols.
    pub(crate) async fn offering(&self, alpn: &[&[u8]], version: Http) -> Result<u16, BoxError> {
        let tls = client_config(&self.ca.identity("default", "productpage"), &[], alpn, &crypto())?;
        let tcp = TcpStream::connect(self.address).await?;
        let tls = TlsConnector::from(Arc::new(tls)).connect("mesh".try_into()?, tcp).await?;
        Ok(Client::over(tls, version).await?.get("/").await?.0)
    }

    pub(crate) async fn mutual_with(&self, tls: Arc<ClientConfig>, version: Http) -> Result<Client, BoxError> {
        let tcp = TcpStream::connect(self.address).await?;
        let tls = TlsConnector::from(tls).connect("mesh".try_into()?, tcp).await?;
        let (_, session) = tls.get_ref();
        assert_eq!(session.alpn_protocol(), Some(version.alpn()));
        let leaf = session.peer_certificates().and_then(|chain| chain.first()).expect("TLS servers have one");
        let server = peer_spiffe_id(leaf)?.to_string();
        let resumed = session.handshake_kind() == Some(HandshakeKind::Resumed);
        let client = Client::over(tls, version).await?;
        let client = Client { server: Some(server), resumed, ..client };
        Ok(client)
    }
}

/// The TLS side of a client. It remembers sessions, if a server offers to resume them.
pub(crate) fn client_tls(identity: &Identity, version: Http) -> Arc<ClientConfig> {
    Arc::new(client_config(identity, &[], &[version.alpn()], &crypto()).unwrap())
}

impl Drop for World {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Http {
    One,
    Two,
}

impl Http {
    pub(crate) fn alpn(self) -> &'static [u8] {
        match self {
            Self::One => b"http/1.1",
            Self::Two => b"h2",
        }
    }
}

/// One client connection.
pub(crate) struct Client {
    sender: Sender,
    /// The SPIFFE ID of the server.
    pub(crate) server: Option<String>,
    /// Whether TLS took up an earlier session.
    pub(crate) resumed: bool,
    /// Ends when the connection has ended.
    pub(crate) ended: JoinHandle<()>,
}

enum Sender {
    One(hyper::client::conn::http1::SendRequest<Empty<Bytes>>),
    Two(hyper::client::conn::http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    pub(crate) async fn over(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        version: Http,
    ) -> Result<Self, BoxError> {
        let io = TokioIo::new(io);
        let (sender, ended) = match version {
            Http::One => {
                let (sender, connection) = hyper::client::conn::http1::handshake(io).await?;
                (Sender::One(sender), spawn(async { drop(connection.await) }))
            }
            Http::Two => {
                let (sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await?;
                (Sender::Two(sender), spawn(async { drop(connection.await) }))
            }
        };
        Ok(Self { sender, server: None, resumed: false, ended })
    }

    pub(crate) fn send(
        &mut self,
        request: Request<Empty<Bytes>>,
    ) -> impl Future<Output = hyper::Result<Response<Incoming>>> + Send + 'static + use<> {
        let (one, two) = match &mut self.sender {
            Sender::One(sender) => (Some(sender.send_request(request)), None),
            Sender::Two(sender) => (None, Some(sender.send_request(request))),
        };
        async move {
            match (one, two) {
                (Some(sent), _) => sent.await,
                (_, Some(sent)) => sent.await,
                (None, None) => unreachable!("one of them is set"),
            }
        }
    }

    /// Status and body of the answer to a GET.
    pub(crate) async fn get(&mut self, path: &str) -> hyper::Result<(u16, String)> {
        let response = self.send(get(path)).await?;
        read(response).await
    }
}

pub(crate) fn get(path: &str) -> Request<Empty<Bytes>> {
    Request::get(format!("http://reviews:9080{path}")).header("host", "reviews:9080").body(Empty::new()).unwrap()
}

pub(crate) async fn read(response: Response<Incoming>) -> hyper::Result<(u16, String)> {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

pub(crate) fn text(text: impl Into<Bytes>) -> Result<Response<Full<Bytes>>, BoxError> {
    Ok(Response::new(Full::new(text.into())))
}

// The test owns its tasks and the runtime ends with the test.
#[allow(clippy::disallowed_methods)]
pub(crate) fn spawn<F: Future<Output: Send + 'static> + Send + 'static>(future: F) -> JoinHandle<F::Output> {
    tokio::spawn(future)
}

/// Waits until a value is seen; a minute is for ever.
pub(crate) async fn eventually<T>(mut look: impl FnMut() -> Option<T>) -> T {
    within(async {
        loop {
            if let Some(value) = look() {
                return value;
            }
            tokio::task::yield_now().await;
        }
    })
    .await
}

/// Waits for what must come.
pub(crate) async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it must come")
}
