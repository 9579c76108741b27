//! The same requests through the whole mesh stack: route table, retry policy, P2C, breaker, pool, mutual TLS,
//! inbound policy, request context, metrics on both sides.

use std::num::NonZeroU32;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::Request;
use http_body_util::{BodyExt, Full};
use mesh::{Channel, Client};
use mesh_core::policy::{
    Address, CircuitBreakers, Endpoint, EndpointMetadata, Health, InboundState, InboundTls, RetryPolicy,
    UpstreamProtocol,
};
use mesh_core::source::Watched;
use mesh_core::telemetry::Metrics;
use mesh_server::Server;
use mesh_testkit::{FixedSource, TestCa};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tower::service_fn;

use crate::hello::HelloRequest;
use crate::hello::greeter_client::GreeterClient;
use crate::load::{Side, Worker};
use crate::{Error, Protocol, echo};

const TARGET: &str = "echo:8080";

/// A running meshed server and a client of it.
pub struct Meshed {
    protocol: Protocol,
    client: Client,
    server: AbortHandle,
}

impl Drop for Meshed {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// Starts the server and makes the client, both with metrics and with every per-request feature there is.
pub async fn start(ca: &TestCa, protocol: Protocol) -> Result<Meshed, Error> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?;
    let policy = mesh_testkit::policy::inbound(address, InboundTls::Strict);
    let server = Server::builder()
        .identity(ca.watched("default", "server"))
        .crypto(mesh_testkit::crypto())
        .inbound(Watched::fixed(InboundState::Ready(Arc::new(policy))))
        .metrics(Arc::<Metrics>::default())
        .build();
    let server = match protocol {
        Protocol::Http1 => tokio::spawn(server.serve(listener, service_fn(echo::http))),
        Protocol::Grpc => tokio::spawn(server.serve(listener, echo::grpc())),
    };

    let peer = ca.id("default", "server");
    let mut cluster = mesh_testkit::policy::mtls_cluster("echo", &[peer.as_str()]);
    cluster.breaker = CircuitBreakers { max_requests: Some(1024), max_retries: Some(64), ..CircuitBreakers::default() };
    if protocol == Protocol::Grpc {
        cluster.connection.protocol = UpstreamProtocol::Http2;
    }
    let endpoint = Endpoint {
        address: Address::Socket(address),
        weight: NonZeroU32::MIN,
        health: Health::Healthy,
        metadata: Arc::new(EndpointMetadata { mesh_tls: true, ..EndpointMetadata::default() }),
    };
    let mut snapshot = mesh_testkit::policy::snapshot_of(cluster, [endpoint]);
    let mut routes = (*snapshot.routes).clone();
    routes.virtual_hosts[0].retry = Some(RetryPolicy::istio_default());
    snapshot.routes = Arc::new(routes);
    let client = Client::builder(FixedSource::of(TARGET, snapshot))
        .identity(ca.watched("default", "client"))
        .crypto(mesh_testkit::crypto())
        .metrics(Arc::<Metrics>::default())
        .build();
    Ok(Meshed { protocol, client, server: server.abort_handle() })
}

impl Side for Meshed {
    fn worker(&self) -> BoxFuture<'_, Result<Box<dyn Worker>, Error>> {
        Box::pin(async move {
            Ok(match self.protocol {
                Protocol::Http1 => Box::new(Http(self.client.clone())) as Box<dyn Worker>,
                Protocol::Grpc => Box::new(Grpc(GreeterClient::new(self.client.channel(TARGET)?))),
            })
        })
    }
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
