//! The SPIFFE Workload API (`SpiffeWorkloadAPI`, X.509 half): how an agent on the node tells a process who it is.
//!
//! Every request carries the metadata `workload.spiffe.io: true`, which keeps browsers and redirects out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxStream, Bytes, StdError, async_trait, http};
use tonic::metadata::MetadataValue;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::rpc::{self, Method, MethodServer};

/// Full name of the service; it has no package.
pub const SERVICE_NAME: &str = "SpiffeWorkloadAPI";
const FETCH_X509_SVID: &str = "/SpiffeWorkloadAPI/FetchX509SVID";
/// Metadata that every request must carry.
pub const SECURITY_HEADER: &str = "workload.spiffe.io";

/// Asks for the caller's identities.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct X509SvidRequest {}

/// Everything that counts now, in the place of what was sent before (`X509SVIDResponse`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct X509SvidResponse {
    /// The caller's identities, the default one first.
    #[prost(message, repeated, tag = "1")]
    pub svids: Vec<X509Svid>,
    /// Revocation lists, DER.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub crl: Vec<Vec<u8>>,
    /// Roots (DER after DER) of federated trust domains, by their names.
    #[prost(btree_map = "string, bytes", tag = "3")]
    pub federated_bundles: BTreeMap<String, Vec<u8>>,
}

/// One identity (`X509SVID`). Its key is never printed.
#[derive(Clone, PartialEq, prost::Message)]
#[prost(skip_debug)]
pub struct X509Svid {
    /// Its SPIFFE ID.
    #[prost(string, tag = "1")]
    pub spiffe_id: String,
    /// DER after DER, the leaf first.
    #[prost(bytes = "vec", tag = "2")]
    pub x509_svid: Vec<u8>,
    /// Private key, PKCS #8 DER.
    #[prost(bytes = "vec", tag = "3")]
    pub x509_svid_key: Vec<u8>,
    /// Roots of its trust domain, DER after DER.
    #[prost(bytes = "vec", tag = "4")]
    pub bundle: Vec<u8>,
    /// What an operator calls it, to choose among several.
    #[prost(string, tag = "5")]
    pub hint: String,
}

impl fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509Svid").field("spiffe_id", &self.spiffe_id).field("hint", &self.hint).finish_non_exhaustive()
    }
}

/// Client of the Workload API over any gRPC transport.
#[derive(Clone, Debug)]
pub struct WorkloadApiClient<T> {
    inner: Grpc<T>,
}

impl<T> WorkloadApiClient<T>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    /// A client over a transport that does not know its scheme and authority.
    pub fn with_origin(transport: T, origin: http::Uri) -> Self {
        Self { inner: Grpc::with_origin(transport, origin) }
    }

    /// Opens the stream of identities.
    ///
    /// # Errors
    /// The status of the agent (`PERMISSION_DENIED`: it knows no identity of this process), or
    /// `UNKNOWN`/`UNAVAILABLE` when the connection fails.
    pub async fn fetch_x509_svid(&mut self) -> Result<Response<Streaming<X509SvidResponse>>, Status> {
        rpc::ready(&mut self.inner).await?;
        let mut request = Request::new(X509SvidRequest {});
        request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
        rpc::mark(&mut request, SERVICE_NAME, "FetchX509SVID");
        self.inner.server_streaming(request, PathAndQuery::from_static(FETCH_X509_SVID), ProstCodec::new()).await
    }
}

/// What an agent does.
#[async_trait]
pub trait WorkloadApi: Send + Sync + 'static {
    /// The caller's identities, and every change of them.
    async fn fetch_x509_svid(
        &self,
        request: Request<X509SvidRequest>,
    ) -> Result<Response<BoxStream<X509SvidResponse>>, Status>;
}

/// The Workload API as a Tower service; a request without the security header is refused.
pub type WorkloadApiServer<T> = MethodServer<Fetch, T>;

/// Its method.
#[derive(Debug)]
pub enum Fetch {}

impl<T: WorkloadApi> Method<T> for Fetch {
    const SERVICE: &'static str = SERVICE_NAME;
    const PATH: &'static str = FETCH_X509_SVID;

    async fn answer<B>(service: Arc<T>, request: http::Request<B>) -> http::Response<Body>
    where
        B: tonic::codegen::Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        if request.headers().get(SECURITY_HEADER).is_none_or(|value| value != "true") {
            return Status::invalid_argument("security header missing from request").into_http();
        }
        let method = service_fn(move |request| {
            let service = service.clone();
            async move { service.fetch_x509_svid(request).await }
        });
        rpc::codec().server_streaming(method, request).await
    }
}
