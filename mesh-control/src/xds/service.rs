//! The aggregated discovery service over gRPC: joins a stream of requests, the published revisions and
//! a [`Session`].

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use futures_util::{Stream, stream};
use mesh_core::drain::DrainWatch;
use mesh_core::source::Watched;
use tonic::{Request, Response, Status, Streaming};

use super::nodes::{NodeEntry, NodeStatus};
use super::session::Session;
use super::{Limits, Nodes, Published, scope};
use crate::runtime::Peer;

/// The xDS service.
pub(crate) struct AggregatedService {
    pub(crate) published: Watched<Published>,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) limits: Limits,
    pub(crate) drain: DrainWatch,
}

impl AggregatedService {
    pub(crate) fn into_server(self) -> AggregatedDiscoveryServiceServer<Self> {
        let limit = self.limits.request_bytes;
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(limit)
    }
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for AggregatedService {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        let peer = Peer::of(request.extensions())?;
        // Refused before a byte of the stream is read.
        scope::scope_of(&peer.caller, None)?;
        let entry = self.nodes.enter(self.limits.streams).ok_or_else(|| {
            Status::resource_exhausted(format!("the control plane serves {} streams already", self.limits.streams))
        })?;
        let stream = AdsStream {
            requests: request.into_inner(),
            published: self.published.clone(),
            limits: self.limits,
            drain: self.drain.clone(),
            peer,
            node: String::new(),
            entry,
            session: None,
            ready: VecDeque::new(),
        };
        Ok(Response::new(Box::pin(stream::unfold(Some(stream), |stream| async move { stream?.next().await }))))
    }

    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn delta_aggregated_resources(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("incremental xDS is not served yet; use StreamAggregatedResources"))
    }
}

/// One open stream.
struct AdsStream {
    requests: Streaming<DiscoveryRequest>,
    published: Watched<Published>,
    limits: Limits,
    drain: DrainWatch,
    peer: Peer,
    node: String,
    entry: NodeEntry,
    /// None until the first request has said who asks.
    session: Option<Session>,
    ready: VecDeque<DiscoveryResponse>,
}

impl AdsStream {
    /// The next response, with the stream to go on with; `None` as stream ends it.
    async fn next(mut self) -> Option<(Result<DiscoveryResponse, Status>, Option<Self>)> {
        loop {
            if let Some(response) = self.ready.pop_front() {
                self.entry.nodes().pushes.fetch_add(1, Ordering::Relaxed);
                return Some((Ok(response), Some(self)));
            }
            tokio::select! {
                () = self.drain.drained() => return None,
                request = self.requests.message() => match request {
                    Ok(Some(request)) => {
                        if let Err(status) = self.request(request) {
                            return Some((Err(status), None));
                        }
                    }
                    Ok(None) => return None,
                    Err(status) => {
                        tracing::debug!(peer = %self.peer, code = ?status.code(), "a configuration stream broke");
                        return None;
                    }
                },
                () = self.published.changed() => self.publish(),
            }
        }
    }

    fn request(&mut self, request: DiscoveryRequest) -> Result<(), Status> {
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let scope = scope::scope_of(&self.peer.caller, request.node.as_ref())?;
                self.node = request.node.as_ref().map(|node| node.id.chars().take(256).collect()).unwrap_or_default();
                tracing::info!(peer = %self.peer, node = ?self.node, namespace = %scope.namespace, "configuration stream opened");
                self.session.insert(Session::new(scope, self.limits, self.published.load_full()))
            }
        };
        let type_url = request.type_url.clone();
        let outcome = session.request(request).map_err(|e| Status::resource_exhausted(e.to_string()))?;
        if let Some(reason) = outcome.nacked {
            self.entry.nodes().nacks.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(peer = %self.peer, node = ?self.node, %type_url, %reason, "a client refused configuration; it keeps its last good one");
        }
        self.ready.extend(outcome.response);
        self.report();
        Ok(())
    }

    fn publish(&mut self) {
        if let Some(session) = &mut self.session {
            self.ready.extend(session.publish(self.published.load_full()));
            self.report();
        }
    }

    fn report(&self) {
        let Some(session) = &self.session else { return };
        self.entry.update(NodeStatus {
            node: self.node.clone(),
            identity: self.peer.caller.identity().cloned(),
            namespace: session.scope().namespace.clone(),
            address: self.peer.address,
            types: session.status(),
        });
    }
}
