//! A raw client of the control plane: TLS, HTTP/2, gRPC, and nothing of this library's own client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::envoy::service::load_stats::v3::load_reporting_service_client::LoadReportingServiceClient;
use envoy_types::pb::envoy::service::load_stats::v3::{LoadStatsRequest, LoadStatsResponse};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mesh_core::identity::{Identity, TrustBundle, TrustBundles, client_config};
use mesh_core::policy::StringMatcher;
use mesh_discovery::proto::certificate::{IstioCertificateRequest, IstioCertificateServiceClient};
use mesh_discovery::proto::registry::{AnnounceRequest, AnnounceResponse, Announcement, RegistryServiceClient};
use mesh_discovery::proto::trust::{TrustBundle as WatchedBundle, TrustBundleServiceClient, WatchTrustBundle};
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::{Request, Status, Streaming};
use tower_service::Service;

use crate::ControlPlane;
use crate::xds::Kind;

/// A test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// One HTTP/2 connection as a transport.
#[derive(Clone)]
pub(super) struct Connection(SendRequest<Body>);

impl Service<http::Request<Body>> for Connection {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, hyper::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

impl Connection {
    /// As a process without a certificate, which knows the root and the name `localhost`.
    pub(super) async fn anonymous(plane: &ControlPlane) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(plane.root_cert_path()).unwrap()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Self::tls(plane, config).await
    }

    /// As a workload with a certificate, which expects the control plane's SPIFFE ID.
    pub(super) async fn mutual(plane: &ControlPlane, identity: &Identity) -> Self {
        let expected = StringMatcher::exact("spiffe://cluster.local/ns/mesh-system/sa/control-plane");
        Self::tls(plane, client_config(identity, &[expected], &[b"h2"], &provider()).unwrap()).await
    }

    async fn tls(plane: &ControlPlane, config: ClientConfig) -> Self {
        let tcp = TcpStream::connect(plane.address()).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        Self::over(TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap()).await
    }

    pub(super) async fn plaintext(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap()).await
    }

    async fn over(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(io)).await.unwrap();
        #[expect(clippy::disallowed_methods, reason = "lives as long as the test")]
        tokio::spawn(connection);
        Self(sender)
    }

    fn origin() -> http::Uri {
        http::Uri::from_static("https://localhost")
    }

    /// Asks for a certificate with a request of the caller's making.
    pub(super) async fn certificate_for(&self, csr: String, token: &str) -> Result<(), Status> {
        let mut request = Request::new(IstioCertificateRequest { csr, ..IstioCertificateRequest::default() });
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let mut client = IstioCertificateServiceClient::with_origin(self.clone(), Self::origin());
        client.create_certificate(request).await.map(drop)
    }

    /// Asks for a certificate with a fresh key.
    pub(super) async fn certificate(&self, token: Option<&str>) -> Result<Arc<Identity>, Status> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        // Names that nobody may have for the asking.
        let admin = "spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(admin)];
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        let mut request = Request::new(IstioCertificateRequest { csr, ..IstioCertificateRequest::default() });
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        let mut client = IstioCertificateServiceClient::with_origin(self.clone(), Self::origin());
        let chain = client.create_certificate(request).await?.into_inner().cert_chain;
        let chain: Vec<_> = chain.iter().map(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).collect();
        let root = TrustBundle::new(chain.last().cloned()).unwrap();
        let domain = mesh_core::id::TrustDomain::new("cluster.local").unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let key = provider().key_provider.load_private_key(key).unwrap();
        let certified = CertifiedKey::new(chain[..1].to_vec(), key);
        Ok(Arc::new(Identity::new(certified, TrustBundles::single(domain, root), 1).unwrap()))
    }

    /// Watches the roots to trust.
    pub(super) async fn roots(&self) -> Result<Streaming<WatchedBundle>, Status> {
        let mut client = TrustBundleServiceClient::with_origin(self.clone(), Self::origin());
        Ok(client.watch(WatchTrustBundle {}).await?.into_inner())
    }

    pub(super) async fn announce(&self) -> Result<Announcer, Status> {
        let (requests, stream) = mpsc::channel(8);
        let mut client = RegistryServiceClient::with_origin(self.clone(), Self::origin());
        let answers = client.announce(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Announcer { requests, answers })
    }

    pub(super) async fn ads(&self) -> Result<Ads, Status> {
        let (requests, stream) = mpsc::channel(8);
        let mut client = AggregatedDiscoveryServiceClient::with_origin(self.clone(), Self::origin());
        let responses = client.stream_aggregated_resources(ReceiverStream::new(stream)).await?.into_inner();
        Ok(Ads { requests, responses })
    }

    /// Reports load once; gives the answers. The stream lasts as long as they do.
    pub(super) async fn report(&self, report: LoadStatsRequest) -> Result<Streaming<LoadStatsResponse>, Status> {
        let mut client = LoadReportingServiceClient::with_origin(self.clone(), Self::origin());
        let requests = tokio_stream::iter([report]).chain(tokio_stream::pending());
        Ok(client.stream_load_stats(requests).await?.into_inner())
    }

    /// Opens a delta stream with one request and gives its responses.
    pub(super) async fn delta(
        &self,
        request: DeltaDiscoveryRequest,
    ) -> Result<Streaming<DeltaDiscoveryResponse>, Status> {
        let client = AggregatedDiscoveryServiceClient::with_origin(self.clone(), Self::origin());
        let mut client = client.max_decoding_message_size(64 << 20);
        // The stream stays open: the client has said all it has to say, for the moment.
        let requests = tokio_stream::iter([request]).chain(tokio_stream::pending());
        Ok(client.delta_aggregated_resources(requests).await?.into_inner())
    }
}

/// A process of `account` in `namespace` that joins with a token.
pub(super) async fn join(plane: &ControlPlane, namespace: &str, account: &str) -> Connection {
    let token = plane.join_tokens().mint(namespace, account, Duration::from_secs(60)).unwrap();
    let identity = Connection::anonymous(plane).await.certificate(Some(&token)).await.unwrap();
    Connection::mutual(plane, &identity).await
}

/// An announcing stream.
pub(super) struct Announcer {
    requests: mpsc::Sender<AnnounceRequest>,
    answers: Streaming<AnnounceResponse>,
}

impl Announcer {
    pub(super) async fn send(&mut self, request: AnnounceRequest) -> AnnounceResponse {
        self.requests.send(request).await.unwrap();
        self.answers.message().await.unwrap().unwrap()
    }

    /// Announces `reviews:9080` at a port of loopback.
    pub(super) async fn reviews(&mut self, port: u16) {
        let announcement = Announcement {
            service: "reviews".into(),
            service_port: 9080,
            address: format!("127.0.0.1:{port}"),
            labels: [("app".to_owned(), "reviews".to_owned())].into(),
            ..Announcement::default()
        };
        let answer = self.send(AnnounceRequest::announce(announcement)).await;
        assert!(answer.accepted, "{}", answer.reason);
    }
}

/// A configuration stream.
pub(super) struct Ads {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Ads {
    pub(super) async fn ask(&self, kind: Kind, names: &[&str], node: Option<Node>) {
        let request = DiscoveryRequest {
            type_url: kind.type_url().to_owned(),
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            node,
            ..DiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// Refuses a response, or accepts it.
    pub(super) async fn acknowledge(&self, response: &DiscoveryResponse, names: &[&str], refusal: Option<&str>) {
        let error = refusal.map(|message| envoy_types::pb::google::rpc::Status {
            code: 3,
            message: message.to_owned(),
            details: Vec::new(),
        });
        let request = DiscoveryRequest {
            type_url: response.type_url.clone(),
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            response_nonce: response.nonce.clone(),
            error_detail: error,
            ..DiscoveryRequest::default()
        };
        self.requests.send(request).await.unwrap();
    }

    /// The next response; `None` once the server has ended the stream.
    pub(super) async fn next(&mut self) -> Option<DiscoveryResponse> {
        tokio::time::timeout(PATIENCE, self.responses.message()).await.expect("a response in time").unwrap()
    }

    pub(super) async fn expect(&mut self, kind: Kind) -> DiscoveryResponse {
        let response = self.next().await.expect("a response");
        assert_eq!(response.type_url, kind.type_url());
        response
    }
}

/// A page of the debug port, asked for under `host`: status line and body.
pub(super) async fn page(plane: &ControlPlane, host: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(plane.debug_address().unwrap()).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}
