//! The same requests through the whole mesh stack: route table, timeout and deadline, retry policy and budget, picker, breaker,
//! outlier detection, pool, mutual TLS, authorization, request context, metrics on both sides; one request in a hundred carries a
//! trace on. There is one endpoint, so that both stacks have the same connections: what it costs to choose among several is
//! `pick`'s to tell.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Request;
use http_body_util::{BodyExt, Full};
use mesh::{Channel, Client};
use mesh_core::policy::{
    Address, Cluster, Endpoint, EndpointMetadata, InboundListener, InboundState, InboundTls, Snapshot, UpstreamProtocol,
};
use mesh_core::source::Watched;
use mesh_core::telemetry::Metrics;
use mesh_server::Server;
use mesh_testkit::{FixedSource, TestCa, policy};
use tokio::runtime::Handle;
use tower::service_fn;

use crate::features::Traces;
use crate::hello::HelloRequest;
use crate::hello::greeter_client::GreeterClient;
use crate::load::{Worker, Workers};
use crate::{Error, Protocol, Running, echo, features, rules};

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
            Protocol::Grpc => Box::new(Grpc(GreeterClient::new(client.channel(TARGET)?), Traces::default())),
            _ => Box::new(Http(client.clone(), Traces::default())),
        });
    }
    Ok((running, all))
}

fn snapshot(ca: &TestCa, protocol: Protocol, address: SocketAddr, tls: InboundTls) -> Snapshot {
    let mut cluster = match tls {
        InboundTls::Disable => Cluster::new("echo".into()),
        _ => policy::mtls_cluster("echo", &[ca.id("default", "server").as_str()]),
    };
    if protocol != Protocol::Http1 {
        cluster.connection.protocol = UpstreamProtocol::Http2;
    }
    let endpoint = Endpoint {
        metadata: Arc::new(EndpointMetadata { mesh_tls: tls != InboundTls::Disable, ..EndpointMetadata::default() }),
        ..Endpoint::new(Address::Socket(address))
    };
    features::snapshot(cluster, endpoint)
}

struct Http(Client, Traces);

impl Worker for Http {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        let Self(client, traces) = self;
        Box::pin(traces.request(async {
            let request = Request::post("http://echo:8080/").body(Full::new(body))?;
            let response = client.send(request).await?;
            response.into_body().collect().await?;
            Ok(())
        }))
    }
}

struct Grpc(GreeterClient<Channel>, Traces);

impl Worker for Grpc {
    fn exchange(&mut self, body: Bytes) -> BoxFuture<'_, Result<(), Error>> {
        let Self(client, traces) = self;
        Box::pin(traces.request(async {
            let name = String::from_utf8(body.into())?;
            client.say_hello(HelloRequest { name }).await?;
            Ok(())
        }))
    }
}
