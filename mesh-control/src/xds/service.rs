//! The aggregated discovery service over gRPC. By hand rather than generated, for its responses hold
//! resources that are encoded already.

use std::convert::Infallible;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures_util::{Stream, stream};
use mesh_core::drain::DrainWatch;
use mesh_core::limit::Pace;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, StdError};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower_service::Service;

use super::cache::Cache;
use super::stream::{AdsStream, Asked};
use super::{Limits, Nodes, scope};
use crate::runtime::{Peer, Refusals};

const STATE: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// The xDS service.
#[derive(Clone)]
pub(crate) struct AggregatedService {
    pub(crate) cache: Arc<Cache>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) limits: Limits,
    pub(crate) refusals: Arc<Refusals>,
    pub(crate) drain: DrainWatch,
}

impl NamedService for AggregatedService {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl<B> Service<http::Request<B>> for AggregatedService
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        match request.uri().path() {
            STATE => Box::pin(service.serve::<DiscoveryRequest, B>(request)),
            DELTA => Box::pin(service.serve::<DeltaDiscoveryRequest, B>(request)),
            _ => Box::pin(async { Ok(Status::unimplemented("the service has no such method").into_http()) }),
        }
    }
}

impl AggregatedService {
    async fn serve<R, B>(self, request: http::Request<B>) -> Result<http::Response<Body>, Infallible>
    where
        R: Asked,
        B: tonic::codegen::Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let limit = self.limits.request_bytes;
        let mut grpc = Grpc::new(ProstCodec::<R::Answer, R>::new()).apply_max_message_size_config(Some(limit), None);
        Ok(grpc.streaming(Open(self, PhantomData), request).await)
    }

    fn open<R: Asked>(self, request: Request<Streaming<R>>) -> Result<Answers<R::Answer>, Status> {
        let peer = Peer::of(request.extensions())?;
        let refusals = self.refusals.clone();
        self.open_for(peer.clone(), request).inspect_err(|status| refusals.stream("configuration", &peer, status))
    }

    fn open_for<R: Asked>(self, peer: Peer, request: Request<Streaming<R>>) -> Result<Answers<R::Answer>, Status> {
        // Refused before a byte of the stream is read.
        scope::scope_of(&peer.caller, None)?;
        let entry = self.nodes.enter(&peer, &self.limits)?;
        let stream = AdsStream {
            requests: request.into_inner(),
            cache: self.cache,
            pace: Pace::new(self.limits.requests, Instant::now()),
            limits: self.limits,
            refusals: self.refusals,
            drain: self.drain,
            peer,
            entry,
            mailbox: None,
        };
        Ok(Box::pin(stream::unfold(Some(stream), |stream| async move { stream?.next().await })))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One method.
struct Open<R>(AggregatedService, PhantomData<R>);

impl<R: Asked> StreamingService<R> for Open<R> {
    type Response = R::Answer;
    type ResponseStream = Answers<R::Answer>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, requests: Request<Streaming<R>>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move { service.open(requests).map(Response::new) })
    }
}
