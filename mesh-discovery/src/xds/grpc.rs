//! The streams over gRPC, with Envoy's messages: the only place of the client that knows either.

use std::time::Duration;

use envoy_types::pb::envoy::service::discovery::v3 as wire;
use envoy_types::pb::google::{protobuf as pb, rpc};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt};
use http::uri::PathAndQuery;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::{Code, Status, Streaming};

use super::message::{Ask, Body, Cause, Name, Request, Resource, ResourceError, Response, StreamError, Variant};
use super::node;
use super::transport::{AdsStream, Transport};
use super::wire::{Bounded, DeltaResource, DeltaResponse, Failure, Packed, WorldResponse};
use crate::codec;
use crate::connect::{Connection, Connector, MAX_MESSAGE, status_text};

const WORLD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";
const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// ADS over gRPC, a new connection for every stream; it is lent to load reports.
pub struct GrpcTransport {
    connector: Connector,
}

impl GrpcTransport {
    /// A transport over `connector`'s connections.
    pub fn new(connector: Connector) -> Self {
        Self { connector }
    }
}

impl Transport for GrpcTransport {
    fn open(&mut self, variant: Variant) -> BoxFuture<'static, Result<AdsStream, StreamError>> {
        let connector = self.connector.clone();
        Box::pin(async move {
            let connection = connector.connect_to_lend().await.map_err(|e| StreamError::new(e.to_string()))?;
            // One request of buffer: a subscription counts as written only when the one before it has left.
            let (requests, outgoing) = mpsc::channel(1);
            let outgoing = ReceiverStream::new(outgoing);
            let responses = match variant {
                Variant::StateOfTheWorld => stream::once(world(connection, outgoing)).flatten().boxed(),
                Variant::Delta => stream::once(delta(connection, outgoing)).flatten().boxed(),
            };
            Ok(AdsStream { requests, responses })
        })
    }

    fn is_held_up(&self) -> bool {
        self.connector.waits_for_identity()
    }
}

type Responses = BoxStream<'static, Result<Response, StreamError>>;

/// What a generated client does, but for the responses' type.
async fn stream_over<Q, A>(
    connection: &Connection,
    method: &'static str,
    requests: impl Stream<Item = Q> + Send + 'static,
) -> Result<tonic::Response<Streaming<A>>, Status>
where
    Q: Message + Send + Sync + 'static,
    A: Message + Default + Send + Sync + 'static,
{
    let grpc = Grpc::with_origin(connection.clone(), connection.origin());
    let mut grpc = grpc.max_decoding_message_size(MAX_MESSAGE);
    grpc.ready().await.map_err(|error| Status::unknown(format!("the connection was not ready: {error}")))?;
    grpc.streaming(tonic::Request::new(requests), PathAndQuery::from_static(method), Bounded::default()).await
}

async fn world(connection: Connection, outgoing: ReceiverStream<Request>) -> Responses {
    let answer = stream_over(&connection, WORLD, outgoing.map(world_request)).await;
    incoming(connection, answer, world_response)
}

async fn delta(connection: Connection, outgoing: ReceiverStream<Request>) -> Responses {
    let answer = stream_over(&connection, DELTA, outgoing.map(delta_request)).await;
    incoming(connection, answer, delta_response)
}

fn incoming<S, M>(
    connection: Connection,
    answer: Result<tonic::Response<S>, Status>,
    read: impl Fn(M) -> Response + Send + 'static,
) -> Responses
where
    S: Stream<Item = Result<M, Status>> + Send + 'static,
    M: Send + 'static,
{
    match answer {
        Ok(answer) => answer
            .into_inner()
            .map(move |item| {
                // The connection lives as long as its stream.
                let _open = &connection;
                item.map(&read).map_err(|status| error(&status))
            })
            .boxed(),
        Err(status) => stream::once(std::future::ready(Err(error(&status)))).boxed(),
    }
}

fn error(status: &Status) -> StreamError {
    match status.code() {
        Code::Unimplemented => StreamError::unsupported(status_text(status)),
        _ => StreamError::new(status_text(status)),
    }
}

fn world_request(request: Request) -> wire::DiscoveryRequest {
    let (version_info, resource_names) = match request.ask {
        Ask::World { version, names } => (version.to_string(), texts(&names)),
        Ask::Changes { .. } => Default::default(),
    };
    wire::DiscoveryRequest {
        version_info,
        node: request.node.map(|node| node::to_wire(&node)),
        resource_names,
        type_url: request.type_url.to_owned(),
        response_nonce: request.nonce,
        error_detail: request.error.map(refusal),
        ..Default::default()
    }
}

fn delta_request(request: Request) -> wire::DeltaDiscoveryRequest {
    let (subscribe, unsubscribe, versions) = match request.ask {
        Ask::Changes { subscribe, unsubscribe, initial_versions } => (subscribe, unsubscribe, initial_versions),
        Ask::World { .. } => Default::default(),
    };
    wire::DeltaDiscoveryRequest {
        node: request.node.map(|node| node::to_wire(&node)),
        type_url: request.type_url.to_owned(),
        resource_names_subscribe: texts(&subscribe),
        resource_names_unsubscribe: texts(&unsubscribe),
        initial_resource_versions: versions.into_iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
        response_nonce: request.nonce,
        error_detail: request.error.map(refusal),
        ..Default::default()
    }
}

fn texts(names: &[Name]) -> Vec<String> {
    names.iter().map(|name| name.to_string()).collect()
}

fn refusal(message: String) -> rpc::Status {
    rpc::Status { code: Code::InvalidArgument as i32, message, details: Vec::new() }
}

fn world_response(response: WorldResponse) -> Response {
    Response {
        type_url: response.type_url,
        version: response.version_info,
        nonce: response.nonce,
        resources: response.resources.into_iter().map(unwrapped).collect(),
        removed: Vec::new(),
        errors: response.resource_errors.into_iter().filter_map(resource_error).collect(),
    }
}

fn delta_response(response: DeltaResponse) -> Response {
    let mut removed = response.removed_resources;
    removed.extend(response.removed_resource_names.into_iter().map(|named| named.name));
    Response {
        type_url: response.type_url,
        version: response.system_version_info,
        nonce: response.nonce,
        resources: response.resources.into_iter().map(resource).collect(),
        removed,
        errors: response.resource_errors.into_iter().filter_map(resource_error).collect(),
    }
}

fn resource(resource: DeltaResource) -> Resource {
    let name = match resource.resource_name {
        Some(named) if resource.name.is_empty() => named.name,
        _ => resource.name,
    };
    // What is less than nothing is over at once.
    let span = |ttl: pb::Duration| match (u64::try_from(ttl.seconds), u32::try_from(ttl.nanos)) {
        (Ok(seconds), Ok(nanos)) => Duration::new(seconds, nanos.min(999_999_999)),
        _ => Duration::ZERO,
    };
    let ttl = resource.ttl.map(span);
    Resource { name, version: resource.version, ttl, body: resource.resource.map(body) }
}

/// The state of the world has resources in wrappers where they have a TTL or a name of another form. Their version is the
/// response's.
fn unwrapped(packed: Packed) -> Resource {
    let wrapper = (packed.type_url == codec::RESOURCE).then(|| DeltaResource::decode(packed.value.clone()));
    match wrapper {
        Some(Ok(wrapper)) => Resource { version: String::new(), ..resource(wrapper) },
        _ => Resource { body: Some(body(packed)), ..Resource::default() },
    }
}

fn body(packed: Packed) -> Body {
    // What is not even text is of no type.
    Body::new(std::str::from_utf8(&packed.type_url).unwrap_or_default(), packed.value)
}

fn resource_error(error: Failure) -> Option<ResourceError> {
    let name = error.resource_name?.name;
    let status = error.error_detail.unwrap_or_default();
    let cause = match Code::from_i32(status.code) {
        Code::NotFound => Cause::NotFound,
        Code::PermissionDenied => Cause::Denied,
        _ => Cause::Other,
    };
    Some(ResourceError { name, cause, message: status.message })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use envoy_types::pb::google::protobuf::Duration as Proto;

    use super::*;

    fn wrapped(ttl: Option<Proto>, resource: Option<Packed>) -> Packed {
        let wrapper = DeltaResource { name: "a".into(), version: "7".into(), ttl, resource, resource_name: None };
        Packed { type_url: codec::RESOURCE.into(), value: wrapper.encode_to_vec().into() }
    }

    #[test]
    fn a_wrapper_in_the_state_of_the_world_gives_name_and_time_to_live_and_may_be_empty() {
        let inner = Packed { type_url: codec::LISTENER.into(), value: Bytes::from_static(&[1, 2]) };
        let seconds = |seconds| Some(Proto { seconds, nanos: 0 });
        let broken = Packed { type_url: codec::RESOURCE.into(), value: Bytes::from_static(&[0xff]) };
        let all = [wrapped(seconds(5), Some(inner.clone())), wrapped(seconds(-1), None), inner, broken];
        let read = world_response(WorldResponse { resources: all.to_vec(), ..Default::default() }).resources;
        let listener = Some(Body::new(codec::LISTENER, [1, 2].to_vec()));
        let expected = [
            Resource {
                name: "a".into(),
                ttl: Some(Duration::from_secs(5)),
                body: listener.clone(),
                ..Default::default()
            },
            Resource { name: "a".into(), ttl: Some(Duration::ZERO), ..Default::default() },
            Resource { body: listener, ..Default::default() },
            // Refused by its type.
            Resource { body: Some(Body::new(codec::RESOURCE, [0xff].to_vec())), ..Default::default() },
        ];
        assert_eq!(read, expected);
    }
}
