//! The client as a process has it: its own gRPC over loopback, on a thread of its own, whose CPU is what a change costs.

use std::net::{Ipv4Addr, SocketAddr};

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use mesh_discovery::bootstrap::{Bootstrap, ChannelCredentials, Node, XdsServer};
use mesh_discovery::connect::Connector;
use mesh_discovery::xds::{GrpcTransport, Variant, XdsClient, XdsConfig};
use prost::Message;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use crate::cpus::Cpus;
use crate::median;
use crate::plane::{Asked, Book, Requests, Size, Stream, TYPES, World};
use crate::rows::Row;
use crate::runtime::ServerThread;
use crate::{Error, Scale, cpu};

/// Threads of the two clients.
const LARGE: &str = "large";
const SMALL: &str = "small";

/// One change, in a large world and a small one in turn. All threads share a CPU: to wake one on another CPU costs whoever does it,
/// in a virtual machine twice as much as the change itself, and where the control plane is elsewhere there is nobody to wake.
pub(crate) fn rows(runtime: &Runtime, scale: &Scale) -> Result<Vec<Row>, Error> {
    let plane = ServerThread::start()?;
    let (in_large, in_small) = (ServerThread::named(LARGE)?, ServerThread::named(SMALL)?);
    let (large, small) = (in_large.handle().clone(), in_small.handle().clone());
    Cpus::of_process()?.pin_together(&[plane.handle(), &large, &small])?;
    // On the control plane's thread: what is measured is woken by the network alone.
    let measured = plane.handle().spawn(measured(large, small, *scale));
    runtime.block_on(measured)?
}

async fn measured(large: Handle, small: Handle, scale: Scale) -> Result<Vec<Row>, Error> {
    let mut large = load(&large, Size { clusters: scale.clusters, endpoints: 10 }).await?;
    let mut small = load(&small, Size { clusters: 10, endpoints: 10 }).await?;
    let (mut costs, mut ratios) = (Vec::new(), Vec::new());
    for pair in 0..scale.pairs {
        let (small, large) = if pair % 2 == 0 {
            let small = change(&mut small, SMALL, scale.changes).await?;
            (small, change(&mut large, LARGE, scale.changes).await?)
        } else {
            let large = change(&mut large, LARGE, scale.changes).await?;
            (change(&mut small, SMALL, scale.changes).await?, large)
        };
        costs.push(large);
        ratios.push(large / small);
    }
    Ok(vec![
        Row::new("change_from_socket", "us", median(costs), 30.0),
        Row::new("change_from_socket_against_10_clusters", "ratio", median(ratios), 1.3),
    ])
}

/// CPU microseconds of the client's `thread` for one change: to be woken, to read it, to publish it, to acknowledge it. The
/// next one is sent when the one before is to be seen and acknowledged, as they come to a process that is not behind.
async fn change(world: &mut World, thread: &str, changes: usize) -> Result<f64, Error> {
    let clusters = world.clusters();
    let at = |i: usize| (i * 7919 + 1) % clusters;
    let mut prepared = Vec::with_capacity(changes);
    for i in 0..changes {
        prepared.push((at(i), world.revision() + 1, world.change(at(i))?));
    }
    let before = cpu::seconds_of(thread)?;
    for (n, revision, bytes) in prepared {
        world.push([bytes]).await?;
        if !world.shows(n, revision) {
            return Err("a change is acknowledged and not to be seen".into());
        }
    }
    Ok((cpu::seconds_of(thread)? - before) * 1e6 / changes as f64)
}

/// A world whose client is on this runtime and whose control plane is on the current one.
async fn load(client: &Handle, size: Size) -> Result<World, Error> {
    let (sender, streams) = mpsc::unbounded_channel();
    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).await?;
    let address = listener.local_addr()?;
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let service = AggregatedDiscoveryServiceServer::new(Plane(sender));
    Handle::current().spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let xds = XdsServer::new(address.to_string().parse()?, ChannelCredentials::Insecure);
    let connector = Connector::new(xds.clone(), mesh_testkit::crypto());
    let mut config = XdsConfig::new(Bootstrap::new(xds, Node::default()));
    config.variant = Some(Variant::Delta);
    let transport = |server: &XdsServer| GrpcTransport::new(connector.to(server.clone()));
    let client = XdsClient::spawn(config, transport, client);
    World::load_by(client, streams, Variant::Delta, size, Book::of(Variant::Delta, size)?).await
}

/// A control plane that hands its streams over.
struct Plane(mpsc::UnboundedSender<Stream>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Plane {
    type StreamAggregatedResourcesStream = BoxStream<'static, Result<DiscoveryResponse, Status>>;
    type DeltaAggregatedResourcesStream = BoxStream<'static, Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let mut incoming = request.into_inner();
        let (asked, requests) = mpsc::unbounded_channel();
        let (responses, outgoing) = mpsc::unbounded_channel::<Vec<u8>>();
        let stream = Stream { requests: Requests::Socket(requests), responses };
        self.0.send(stream).map_err(|_| Status::unavailable("nobody listens"))?;
        Handle::current().spawn(async move {
            // The end of either side is the end of both.
            while let Ok(Some(request)) = incoming.message().await {
                let Some(type_url) = TYPES.into_iter().find(|known| *known == request.type_url) else { return };
                let names = request.resource_names_subscribe.len();
                let error = request.error_detail.map(|status| status.message);
                if asked.send(Asked { type_url, names, error }).is_err() {
                    return;
                }
            }
        });
        // Made into a message once more: what that costs is the control plane's.
        let read = |bytes: Vec<u8>| {
            DeltaDiscoveryResponse::decode(bytes.as_slice()).map_err(|error| Status::internal(error.to_string()))
        };
        Ok(Response::new(UnboundedReceiverStream::new(outgoing).map(read).boxed()))
    }
}
