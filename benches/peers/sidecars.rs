//! Two stock Envoys between a client and a server that know nothing of any mesh: each has one listener, one route and
//! one cluster, and between the two is mutual TLS with SPIFFE identities.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use mesh_testkit::TestCa;
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::hello::HelloRequest;
use crate::hello::greeter_client::GreeterClient;
use crate::load::{Worker, Workers};
use crate::{Error, Protocol, Running, echo};

/// The two processes and the applications at both ends.
pub(crate) struct Sidecars {
    envoys: [Envoy; 2],
    _running: Running,
    _files: TempDir,
}

struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        // It is gone already or goes now.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Sidecars {
    pub(crate) async fn start(
        ca: &TestCa,
        protocol: Protocol,
        workers: usize,
        server: &Handle,
        binary: &Path,
    ) -> Result<(Self, Workers), Error> {
        let files = TempDir::new()?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        let application = listener.local_addr()?;
        let mut running = Running::default();
        running.spawn(server, async move { accept(crate::listener(listener)?, protocol).await });

        std::fs::write(files.path().join("root.pem"), ca.root_pem())?;
        let (inbound, outbound) = (free()?, free()?);
        let envoy = |name: &str, listen: SocketAddr, to: SocketAddr, ends: [&str; 2]| -> Result<Envoy, Error> {
            let (chain, key) = ca.pem("default", name);
            std::fs::write(files.path().join(format!("{name}.pem")), chain)?;
            std::fs::write(files.path().join(format!("{name}-key.pem")), key)?;
            let config = files.path().join(format!("{name}.yaml"));
            std::fs::write(&config, configuration(protocol, listen, to, ends))?;
            let mut command = Command::new(binary);
            command.arg("--config-path").arg(&config);
            command.args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]);
            Ok(Envoy(command.stdin(Stdio::null()).spawn()?))
        };
        let tls = |name: &str, end: &str| security(protocol, name, end, files.path());
        let (serves, dials) = (tls("server", "Downstream"), tls("client", "Upstream"));
        let envoys =
            [envoy("server", inbound, application, [&serves, ""])?, envoy("client", outbound, inbound, ["", &dials])?];
        let all = connect(protocol, workers, outbound, &mut running).await?;
        Ok((Self { envoys, _running: running, _files: files }, all))
    }

    /// CPU time of both processes, nanoseconds.
    pub(crate) fn cpu_nanos(&self) -> Result<u64, Error> {
        let mut total = 0;
        for Envoy(process) in &self.envoys {
            for task in std::fs::read_dir(format!("/proc/{}/task", process.id()))? {
                let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
                total += text.split(' ').next().unwrap_or_default().parse::<u64>()?;
            }
        }
        Ok(total)
    }
}

/// A port that nobody has a moment later.
fn free() -> std::io::Result<SocketAddr> {
    std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// The transport socket of one end.
fn security(protocol: Protocol, name: &str, end: &str, files: &Path) -> String {
    let folder = files.display();
    // One alone: an Envoy speaks what its cluster says, whatever was agreed on.
    let alpn = if protocol == Protocol::Grpc { "h2" } else { "http/1.1" };
    let demand = if end == "Downstream" { "          require_client_certificate: true\n" } else { "" };
    format!(
        "      transport_socket:\n        name: envoy.transport_sockets.tls\n        typed_config:\n\
         \x20         \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{end}TlsContext\n{demand}\
         \x20         common_tls_context:\n\
         \x20           alpn_protocols: [{alpn}]\n\
         \x20           tls_certificates:\n\
         \x20           - certificate_chain: {{ filename: {folder}/{name}.pem }}\n\
         \x20             private_key: {{ filename: {folder}/{name}-key.pem }}\n\
         \x20           validation_context: {{ trusted_ca: {{ filename: {folder}/root.pem }} }}\n"
    )
}

fn configuration(protocol: Protocol, listen: SocketAddr, to: SocketAddr, [inner, outer]: [&str; 2]) -> String {
    let version = if protocol == Protocol::Grpc { "http2_protocol_options" } else { "http_protocol_options" };
    let (listen, to) = (listen.port(), to.port());
    // A listener's chain is indented as deep as a cluster.
    format!(
        "static_resources:\n  listeners:\n\
         \x20 - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {listen} }} }}\n\
         \x20   filter_chains:\n\
         \x20   - filters:\n\
         \x20     - name: envoy.filters.network.http_connection_manager\n\
         \x20       typed_config:\n\
         \x20         \"@type\": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager\n\
         \x20         stat_prefix: http\n\
         \x20         route_config:\n\
         \x20           virtual_hosts:\n\
         \x20           - name: all\n\
         \x20             domains: [\"*\"]\n\
         \x20             routes: [{{ match: {{ prefix: / }}, route: {{ cluster: next }} }}]\n\
         \x20         http_filters:\n\
         \x20         - name: envoy.filters.http.router\n\
         \x20           typed_config: {{ \"@type\": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}\n\
         {inner}\
         \x20 clusters:\n\
         \x20   - name: next\n\
         \x20     type: STATIC\n\
         \x20     typed_extension_protocol_options:\n\
         \x20       envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n\
         \x20         \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n\
         \x20         explicit_http_config: {{ {version}: {{}} }}\n\
         \x20     load_assignment:\n\
         \x20       cluster_name: next\n\
         \x20       endpoints:\n\
         \x20       - lb_endpoints:\n\
         \x20         - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {to} }} }} }}\n\
         {outer}"
    )
}

pub(crate) async fn accept(listener: TcpListener, protocol: Protocol) -> Result<(), Error> {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await?;
        connections.spawn(async move {
            stream.set_nodelay(true)?;
            let mut server = auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new());
            match protocol {
                Protocol::Http1 => server.serve_connection(TokioIo::new(stream), service_fn(echo::http)).await,
                Protocol::Grpc => {
                    server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(echo::grpc())).await
                }
            }
        });
    }
}

/// Connects as soon as the way through both is open.
async fn connect(protocol: Protocol, workers: usize, to: SocketAddr, running: &mut Running) -> Result<Workers, Error> {
    let mut tries = 0;
    loop {
        let mut all: Workers = Vec::with_capacity(workers);
        let attempt = async {
            match protocol {
                Protocol::Http1 => {
                    for _ in 0..workers {
                        let (sender, connection) = http1::handshake(TokioIo::new(stream(to).await?)).await?;
                        running.spawn(&Handle::current(), connection);
                        all.push(Box::new(Http1(sender)));
                    }
                }
                Protocol::Grpc => {
                    let io = TokioIo::new(stream(to).await?);
                    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                    running.spawn(&Handle::current(), connection);
                    let origin = Uri::from_static("http://echo:8080");
                    for _ in 0..workers {
                        all.push(Box::new(Grpc(GreeterClient::with_origin(Http2(sender.clone()), origin.clone()))));
                    }
                }
            }
            for worker in &mut all {
                worker.exchange(crate::load::body()).await?;
            }
            Ok::<_, Error>(())
        };
        match attempt.await {
            Ok(()) => return Ok(all),
            Err(error) if tries >= 100 => return Err(format!("the way through the sidecars: {error}").into()),
            Err(_) => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn stream(to: SocketAddr) -> Result<TcpStream, Error> {
    let stream = TcpStream::connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

struct Http1(http1::SendRequest<Full<Bytes>>);

impl Worker for Http1 {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let request = Request::post("/").header("host", "echo:8080").body(Full::new(body))?;
            self.0.ready().await?;
            let response = self.0.send_request(request).await?;
            if !response.status().is_success() {
                return Err(response.status().to_string().into());
            }
            response.into_body().collect().await?;
            Ok(())
        })
    }
}

/// hyper's HTTP/2 sender as the Tower service that a generated client wants.
#[derive(Clone)]
struct Http2(http2::SendRequest<tonic::body::Body>);

impl tower::Service<Request<tonic::body::Body>> for Http2 {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper::Error;
    type Future = BoxFuture<'static, Result<Self::Response, hyper::Error>>;

    fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), hyper::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        Box::pin(self.0.send_request(request))
    }
}

struct Grpc(GreeterClient<Http2>);

impl Worker for Grpc {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let name = String::from_utf8(body.into())?;
            self.0.say_hello(HelloRequest { name }).await?;
            Ok(())
        })
    }
}
