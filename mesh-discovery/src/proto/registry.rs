//! `mesh.registry.v1.RegistryService`: a process tells the control plane which service it serves, for
//! clusters without Kubernetes.
//!
//! One bidirectional stream: a request per announcement or withdrawal, one answer per request in the
//! same order. A stream that ends without a withdrawal leaves its endpoint for a grace period.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxStream, Bytes, StdError, async_trait, http};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::rpc::{self, Method, MethodServer};

/// Full name of the service.
pub const SERVICE_NAME: &str = "mesh.registry.v1.RegistryService";
const ANNOUNCE: &str = "/mesh.registry.v1.RegistryService/Announce";

/// One endpoint of one service port.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Announcement {
    /// Service name, such as `reviews`.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Namespace; must be that of the authenticated identity.
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// Port of the service, as callers dial it.
    #[prost(uint32, tag = "3")]
    pub service_port: u32,
    /// Where the process listens, `ip:port`.
    #[prost(string, tag = "4")]
    pub address: String,
    /// Labels of the workload, for subsets and selectors.
    #[prost(btree_map = "string, string", tag = "5")]
    pub labels: BTreeMap<String, String>,
    /// Region.
    #[prost(string, tag = "6")]
    pub region: String,
    /// Zone.
    #[prost(string, tag = "7")]
    pub zone: String,
    /// Sub-zone.
    #[prost(string, tag = "8")]
    pub sub_zone: String,
    /// Whether the listener accepts mesh mTLS. The control plane takes that for granted of whoever has a certificate.
    #[prost(bool, tag = "9")]
    pub mesh_tls: bool,
    /// Protocol of the port: `http`, `http2`, `grpc` or `tcp`.
    #[prost(string, tag = "10")]
    pub port_protocol: String,
    /// Workload name, for telemetry.
    #[prost(string, tag = "11")]
    pub workload: String,
    /// Service account, which becomes part of the expected peer identity.
    #[prost(string, tag = "12")]
    pub service_account: String,
}

/// The end of this stream's announcement.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Withdrawal {}

/// One message of the announcing side.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AnnounceRequest {
    /// What is asked.
    #[prost(oneof = "announce_request::Action", tags = "1, 2")]
    pub action: Option<announce_request::Action>,
}

/// The kinds of [`AnnounceRequest`].
pub mod announce_request {
    /// What is asked.
    // A message lives for a moment; a box would only make it harder to build.
    #[allow(clippy::large_enum_variant)]
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Action {
        /// Take this endpoint in, or replace this stream's.
        #[prost(message, tag = "1")]
        Announce(super::Announcement),
        /// Take this stream's endpoint out now.
        #[prost(message, tag = "2")]
        Withdraw(super::Withdrawal),
    }
}

impl AnnounceRequest {
    /// Takes an endpoint in.
    pub fn announce(announcement: Announcement) -> Self {
        Self { action: Some(announce_request::Action::Announce(announcement)) }
    }

    /// Takes the stream's endpoint out.
    pub fn withdraw() -> Self {
        Self { action: Some(announce_request::Action::Withdraw(Withdrawal {})) }
    }
}

/// The answer to one [`AnnounceRequest`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AnnounceResponse {
    /// Whether it was done.
    #[prost(bool, tag = "1")]
    pub accepted: bool,
    /// Why it was not, and what to do; of one that was, what is odd about it.
    #[prost(string, tag = "2")]
    pub reason: String,
}

/// Client of the registration service over any gRPC transport.
#[derive(Clone, Debug)]
pub struct RegistryServiceClient<T> {
    inner: Grpc<T>,
}

impl<T> RegistryServiceClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    /// A client over `transport`.
    pub fn new(transport: T) -> Self {
        Self { inner: Grpc::new(transport) }
    }

    /// A client over a transport that does not know its scheme and authority.
    pub fn with_origin(transport: T, origin: http::Uri) -> Self {
        Self { inner: Grpc::with_origin(transport, origin) }
    }

    /// Opens the stream of announcements.
    ///
    /// # Errors
    /// The status with which the server refuses the stream, or `UNKNOWN`/`UNAVAILABLE` when the
    /// connection fails.
    pub async fn announce(
        &mut self,
        requests: impl tonic::IntoStreamingRequest<Message = AnnounceRequest>,
    ) -> Result<Response<Streaming<AnnounceResponse>>, Status> {
        rpc::ready(&mut self.inner).await?;
        let mut requests = requests.into_streaming_request();
        rpc::mark(&mut requests, SERVICE_NAME, "Announce");
        self.inner.streaming(requests, PathAndQuery::from_static(ANNOUNCE), ProstCodec::new()).await
    }
}

/// What a registry does.
#[async_trait]
pub trait RegistryService: Send + Sync + 'static {
    /// Takes a stream of announcements and answers each.
    async fn announce(
        &self,
        requests: Request<Streaming<AnnounceRequest>>,
    ) -> Result<Response<BoxStream<AnnounceResponse>>, Status>;
}

/// The registration service as a Tower service.
pub type RegistryServiceServer<T> = MethodServer<Announce, T>;

/// Its method.
#[derive(Debug)]
pub enum Announce {}

impl<T: RegistryService> Method<T> for Announce {
    const SERVICE: &'static str = SERVICE_NAME;
    const PATH: &'static str = ANNOUNCE;

    async fn answer<B>(service: Arc<T>, request: http::Request<B>) -> http::Response<Body>
    where
        B: tonic::codegen::Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let method = service_fn(move |request| {
            let service = service.clone();
            async move { service.announce(request).await }
        });
        rpc::codec().streaming(method, request).await
    }
}
