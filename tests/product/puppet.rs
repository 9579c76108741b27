//! A control plane that says exactly what a test wants it to, to clients that ask for the state of the world.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use envoy_types::pb::google::protobuf::Any;
use futures_util::Stream;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

pub(crate) const TARGET: &str = "reviews:9080";

/// What a control plane says: a version, and the resources of each type.
#[derive(Clone)]
pub(crate) struct Said {
    pub(crate) version: &'static str,
    pub(crate) resources: BTreeMap<&'static str, Vec<Any>>,
}

/// A control plane that says exactly what the test wants it to.
#[derive(Clone)]
pub(crate) struct Puppet {
    said: watch::Receiver<Said>,
}

type Responses = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Puppet {
    type StreamAggregatedResourcesStream = Responses;
    type DeltaAggregatedResourcesStream = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let (mut requests, mut said) = (request.into_inner(), self.said.clone());
        let (responses, outgoing) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let mut asked: BTreeMap<String, Vec<String>> = BTreeMap::new();
            loop {
                tokio::select! {
                    request = requests.message() => {
                        let Ok(Some(request)) = request else { return };
                        let names = request.resource_names.clone();
                        // An ACK asks for nothing new.
                        if asked.insert(request.type_url.clone(), names.clone()) != Some(names) {
                            say(&said.borrow(), &request.type_url, &responses);
                        }
                    }
                    Ok(()) = said.changed() => {
                        for type_url in asked.keys() {
                            say(&said.borrow(), type_url, &responses);
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(outgoing))))
    }

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("state of the world only"))
    }
}

fn say(said: &Said, type_url: &str, responses: &mpsc::UnboundedSender<Result<DiscoveryResponse, Status>>) {
    let _ = responses.send(Ok(DiscoveryResponse {
        version_info: said.version.to_owned(),
        resources: said.resources.get(type_url).cloned().unwrap_or_default(),
        type_url: type_url.to_owned(),
        nonce: format!("{} {type_url}", said.version),
        ..DiscoveryResponse::default()
    }));
}

impl Puppet {
    /// Says `first` until told otherwise.
    pub(crate) async fn start(first: Said) -> (SocketAddr, watch::Sender<Said>) {
        let (sender, said) = watch::channel(first);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let service = AggregatedDiscoveryServiceServer::new(Self { said });
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        (address, sender)
    }
}
