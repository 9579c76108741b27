//! The same requests through the whole mesh stack: route table, timeout and deadline, retry policy and budget, picker, breaker,
//! outlier detection, pool, mutual TLS, authorization, request context with its trace, metrics on both sides. There is one
//! endpoint, so that both stacks have the same connections: what it costs to choose among several is `pick`'s to tell. Nothing
//! exports traces yet, so none is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Request;
use http_body_util::{BodyExt, Full};
use mesh::{Channel, Client};
use mesh_core::policy::{
    Address, CircuitBreakers, Cluster, Endpoint, EndpointMetadata, InboundListener, InboundState, InboundTls,
    OutlierDetection, PerMillionRatio, RetryBudget, RetryPolicy, RouteAction, Snapshot, UpstreamProtocol,
};
use mesh_core::source::Watched;
use mesh_core::telemetry::Metrics;
use mesh_server::Server;
use mesh_testkit::{FixedSource, TestCa, policy};
use tokio::runtime::Handle;
use tower::service_fn;

use crate::hello::HelloRequest;
use crate::hello::greeter_client::GreeterClient;
use crate::load::{Worker, Workers};
use crate::{Error, Protocol, Running, echo, rules};

const TARGET: &str = "echo:8080";

/// Starts a server on `server` and as many workers of one client, both sides with metrics and with every
/// per-request feature there is; mutual TLS between them as this server demands it.
pub(crate) async fn start(
    ca: &TestCa,
    protocol: Protocol,
    workers: usize,
    server: &Handle,
    tls: InboundTls,
) -> Result<(Running, Workers), Error> {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
    let address = listener.local_addr()?;
    let caller = ca.id("default", "client");
    let allowed = rules::ten("/", (tls != InboundTls::Disable).then_some(&caller));
    let inbound = InboundListener { authorization: vec![allowed], ..policy::inbound(address, tls) };
    let mesh_server = Server::builder()
        .identity(ca.watched("default", "server"))
        .crypto(mesh_testkit::crypto())
        .inbound(Watched::fixed(InboundState::Ready(Arc::new(inbound))))
        .metrics(Arc::<Metrics>::default())
        .build();
    let mut running = Running::default();
    running.spawn(server, async move {
        let listener = crate::listener(listener)?;
        match protocol {
            Protocol::Grpc => mesh_server.serve(listener, echo::grpc()).await?,
            _ => mesh_server.serve(listener, service_fn(echo::http)).await?,
        }
        Ok::<_, Error>(())
    });

    let client = Client::builder(FixedSource::of(TARGET, snapshot(ca, protocol, address, tls)))
        .identity(ca.watched("default", "client"))
        .crypto(mesh_testkit::crypto())
        .metrics(Arc::<Metrics>::default())
        .build();
    let mut all: Workers = Vec::with_capacity(workers);
    for _ in 0..workers {
        all.push(match protocol {
            Protocol::Grpc => Box::new(Grpc(GreeterClient::new(client.channel(TARGET)?))),
            _ => Box::new(Http(client.clone())),
        });
    }
    Ok((running, all))
}

/// One endpoint, with the breaker, the ejection and the retry policy that Istio's defaults amount to, Linkerd's budget and a
/// timeout.
fn snapshot(ca: &TestCa, protocol: Protocol, address: SocketAddr, tls: InboundTls) -> Snapshot {
    let mut cluster = match tls {
        InboundTls::Disable => Cluster::new("echo".into()),
        _ => policy::mtls_cluster("echo", &[ca.id("default", "server").as_str()]),
    };
    cluster.breaker = CircuitBreakers { max_requests: Some(1024), max_retries: Some(64), ..CircuitBreakers::default() };
    cluster.outlier = Some(OutlierDetection::default());
    if protocol != Protocol::Http1 {
        cluster.connection.protocol = UpstreamProtocol::Http2;
    }
    let endpoint = Endpoint {
        metadata: Arc::new(EndpointMetadata { mesh_tls: tls != InboundTls::Disable, ..EndpointMetadata::default() }),
        ..Endpoint::new(Address::Socket(address))
    };
    let mut snapshot = policy::snapshot_of(cluster, [endpoint]);
    let mut routes = (*snapshot.routes).clone();
    routes.retry_budget = Some(RetryBudget {
        retry_ratio: PerMillionRatio(200_000),
        min_retries_per_second: 10,
        ttl: Duration::from_secs(10),
    });
    let host = &mut routes.virtual_hosts[0];
    host.retry = Some(RetryPolicy::istio_default());
    for route in &mut host.routes {
        if let RouteAction::Forward(forward) = &mut route.action {
            forward.timeout = Some(Duration::from_secs(15));
        }
    }
    snapshot.routes = Arc::new(routes);
    snapshot
}

struct Http(Client);

impl Worker for Http {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let request = Request::post("http://echo:8080/").body(Full::new(body))?;
            let response = self.0.send(request).await?;
            response.into_body().collect().await?;
            Ok(())
        })
    }
}

struct Grpc(GreeterClient<Channel>);

impl Worker for Grpc {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let name = String::from_utf8(body.into())?;
            self.0.say_hello(HelloRequest { name }).await?;
            Ok(())
        })
    }
}
