//! The aggregated discovery service over gRPC. By hand rather than generated, for its responses hold
//! resources that are encoded already.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures_util::{Stream, stream};
use http::Extensions;
use mesh_core::drain::DrainWatch;
use mesh_core::limit::Pace;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, StdError};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

use super::cache::Cache;
use super::decode::RequestCodec;
use super::nodes::NodeEntry;
use super::stream::{AdsStream, Asked};
use super::unread::Unread;
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
        // Refused before a byte of the stream is read.
        let (peer, entry) = match self.enter(request.extensions()) {
            Ok(entered) => entered,
            Err(status) => return Ok(status.into_http()),
        };
        let unread = Unread::new(&entry.account, self.limits.bytes_of_one);
        let request = request.map(|body| unread.body(body));
        let limit = self.limits.request_bytes;
        let codec = RequestCodec::<R>::new(unread.clone(), self.limits);
        let mut grpc = Grpc::new(codec).apply_max_message_size_config(Some(limit), None);
        let entered = Some(Entered { service: self, peer, entry, unread });
        Ok(grpc.streaming(Open { entered, request: PhantomData }, request).await)
    }

    fn enter(&self, extensions: &Extensions) -> Result<(Peer, NodeEntry), Status> {
        let peer = Peer::of(extensions)?;
        let entry = scope::scope_of(&peer.caller, None).and_then(|_| self.nodes.enter(&peer, &self.limits));
        let entry = entry.inspect_err(|status| self.refusals.stream("configuration", &peer, status))?;
        Ok((peer, entry))
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Whoever was let in.
struct Entered {
    service: AggregatedService,
    peer: Peer,
    entry: NodeEntry,
    unread: Unread,
}

impl Entered {
    fn open<R: Asked>(self, requests: Streaming<R>) -> Answers<R::Answer> {
        let AggregatedService { cache, limits, refusals, drain, nodes: _ } = self.service;
        let (peer, entry, unread, mailbox) = (self.peer, self.entry, self.unread, None);
        let pace = Pace::new(limits.requests, Instant::now());
        let stream = AdsStream { requests, unread, cache, limits, refusals, drain, peer, entry, pace, mailbox };
        Box::pin(stream::unfold(Some(stream), |stream| async move { stream?.next().await }))
    }
}

/// One call of a method, which opens its stream.
struct Open<R> {
    /// Until it is called, which it is once.
    entered: Option<Entered>,
    request: PhantomData<R>,
}

impl<R: Asked> StreamingService<R> for Open<R> {
    type Response = R::Answer;
    type ResponseStream = Answers<R::Answer>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, requests: Request<Streaming<R>>) -> Self::Future {
        let opened = self.entered.take().map(|entered| Response::new(entered.open(requests.into_inner())));
        ready(opened.ok_or_else(|| Status::internal("the stream is open already")))
    }
}
