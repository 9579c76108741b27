//! `mesh.trust.v1.TrustBundleService`: the roots and revocation lists of a trust domain and the roots of those it is
//! federated with, now and as they change, for who holds a certificate of it; who has none is told them once.
//!
//! Other control planes do not have it: their clients learn of other roots with the next certificate.

use std::sync::Arc;

use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxStream, Bytes, StdError, async_trait, http};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::rpc::{self, Method, MethodServer};
use crate::connect::MAX_MESSAGE;

/// Full name of the service.
pub const SERVICE_NAME: &str = "mesh.trust.v1.TrustBundleService";
const WATCH: &str = "/mesh.trust.v1.TrustBundleService/Watch";

/// Asks for the roots of the caller's own trust domain.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct WatchTrustBundle {}

/// The roots of a trust domain: all of them, in the place of what was sent before.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TrustBundle {
    /// The trust domain.
    #[prost(string, tag = "1")]
    pub trust_domain: String,
    /// PEM.
    #[prost(string, tag = "2")]
    pub roots: String,
    /// Revocation lists of what signs in that trust domain, DER; none = nobody was taken back.
    #[prost(bytes = "vec", repeated, tag = "3")]
    pub revocation_lists: Vec<Vec<u8>>,
    /// The trust domains beside it whose peers are let in, each by roots of its own; one that is missing is trusted no
    /// more.
    #[prost(message, repeated, tag = "4")]
    pub federated: Vec<FederatedBundle>,
}

/// The roots of a federated trust domain.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct FederatedBundle {
    /// The trust domain.
    #[prost(string, tag = "1")]
    pub trust_domain: String,
    /// DER.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub roots: Vec<Vec<u8>>,
}

/// Client of the service over any gRPC transport.
#[derive(Clone, Debug)]
pub struct TrustBundleServiceClient<T> {
    inner: Grpc<T>,
}

impl<T> TrustBundleServiceClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    /// A client over a transport that does not know its scheme and authority.
    pub fn with_origin(transport: T, origin: http::Uri) -> Self {
        Self { inner: Grpc::with_origin(transport, origin).max_decoding_message_size(MAX_MESSAGE) }
    }

    /// Opens the stream of roots.
    ///
    /// # Errors
    /// The status with which the server refuses the stream, or `UNKNOWN`/`UNAVAILABLE` when the connection fails.
    pub async fn watch(
        &mut self,
        request: impl tonic::IntoRequest<WatchTrustBundle>,
    ) -> Result<Response<Streaming<TrustBundle>>, Status> {
        rpc::ready(&mut self.inner).await?;
        let mut request = request.into_request();
        rpc::mark(&mut request, SERVICE_NAME, "Watch");
        self.inner.server_streaming(request, PathAndQuery::from_static(WATCH), ProstCodec::new()).await
    }
}

/// Who knows the roots.
#[async_trait]
pub trait TrustBundleService: Send + Sync + 'static {
    /// The roots of the caller's trust domain, and every change of them.
    async fn watch(&self, request: Request<WatchTrustBundle>) -> Result<Response<BoxStream<TrustBundle>>, Status>;
}

/// The service as a Tower service.
pub type TrustBundleServiceServer<T> = MethodServer<Watch, T>;

/// Its method.
#[derive(Debug)]
pub enum Watch {}

impl<T: TrustBundleService> Method<T> for Watch {
    const SERVICE: &'static str = SERVICE_NAME;
    const PATH: &'static str = WATCH;

    async fn answer<B>(service: Arc<T>, request: http::Request<B>) -> http::Response<Body>
    where
        B: tonic::codegen::Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let method = service_fn(move |request| {
            let service = service.clone();
            async move { service.watch(request).await }
        });
        rpc::codec().server_streaming(method, request).await
    }
}
