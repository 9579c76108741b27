//! The seam between the protocol and the network: a transport opens streams of requests and responses.

use std::sync::Arc;

use envoy_types::pb::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use envoy_types::pb::envoy::service::discovery::v3::{DiscoveryRequest, DiscoveryResponse};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::connect::{Connection, Connector, MAX_MESSAGE, status_text};

/// Opens ADS streams to one control plane.
pub trait Transport: Send + 'static {
    /// The control plane's address, for reports.
    fn server(&self) -> String;

    /// Opens a stream. It counts as open when requests can be written, not when the server has
    /// answered: many servers say nothing before they are asked.
    fn open(&mut self) -> BoxFuture<'_, Result<AdsStream, StreamError>>;
}

/// One ADS stream. It is closed by dropping it.
pub struct AdsStream {
    /// Takes requests, in order, no faster than the network does.
    pub requests: mpsc::Sender<DiscoveryRequest>,
    /// Responses; ends with the stream, after an error if there was one.
    pub responses: BoxStream<'static, Result<DiscoveryResponse, StreamError>>,
}

/// Why a stream could not be opened or broke. Only a text: status codes of the control plane must not
/// reach the application (gRFC A54).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StreamError(Arc<str>);

impl StreamError {
    /// An error that says `reason`.
    pub fn new(reason: impl Into<Arc<str>>) -> Self {
        Self(reason.into())
    }
}

/// ADS over gRPC, a new connection for every stream.
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
    fn server(&self) -> String {
        self.connector.server()
    }

    fn open(&mut self) -> BoxFuture<'_, Result<AdsStream, StreamError>> {
        Box::pin(async {
            let connection = self.connector.connect().await.map_err(|e| StreamError::new(e.to_string()))?;
            Ok(ads_stream(connection))
        })
    }
}

fn ads_stream(connection: Connection) -> AdsStream {
    // One request of buffer: a subscription counts as written only when the one before it has left.
    let (requests, outgoing) = mpsc::channel(1);
    let responses = async move {
        let mut client = AggregatedDiscoveryServiceClient::with_origin(connection.clone(), connection.origin())
            .max_decoding_message_size(MAX_MESSAGE);
        match client.stream_aggregated_resources(ReceiverStream::new(outgoing)).await {
            // The connection lives as long as its stream.
            Ok(answer) => answer
                .into_inner()
                .map(move |item| {
                    let _open = &connection;
                    item.map_err(|status| StreamError::new(status_text(&status)))
                })
                .boxed(),
            Err(status) => stream::once(std::future::ready(Err(StreamError::new(status_text(&status))))).boxed(),
        }
    };
    AdsStream { requests, responses: stream::once(responses).flatten().boxed() }
}
