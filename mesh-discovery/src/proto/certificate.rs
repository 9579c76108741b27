//! `istio.v1.auth.IstioCertificateService`: a certificate for a signing request, as istiod and our
//! own control plane issue it.

use std::sync::Arc;

use envoy_types::pb::google::protobuf::Struct;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Bytes, StdError, async_trait, http};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::rpc::{self, Method, MethodServer};
use super::trust::FederatedBundle;
use crate::connect::MAX_MESSAGE;

/// Full name of the service.
pub const SERVICE_NAME: &str = "istio.v1.auth.IstioCertificateService";
const CREATE_CERTIFICATE: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// A request for a certificate (`istio.v1.auth.IstioCertificateRequest`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateRequest {
    /// Signing request, PEM. Names in it are ignored: the caller's authenticated identity decides.
    #[prost(string, tag = "1")]
    pub csr: String,
    /// Wanted life in seconds; 0 = the issuer's default.
    #[prost(int64, tag = "3")]
    pub validity_duration: i64,
    /// Further wishes (`CertSigner`, `ImpersonatedIdentity`).
    #[prost(message, optional, tag = "4")]
    pub metadata: Option<Struct>,
}

/// A certificate chain (`istio.v1.auth.IstioCertificateResponse`).
#[derive(Clone, PartialEq, prost::Message)]
pub struct IstioCertificateResponse {
    /// PEM texts: the leaf first, the root last.
    #[prost(string, repeated, tag = "1")]
    pub cert_chain: Vec<String>,
    /// Revocation lists of what signs in that trust domain, DER: of this library's control plane, so that a certificate
    /// is never used without them. Others leave the field out and pass it over.
    #[prost(bytes = "vec", repeated, tag = "15001")]
    pub revocation_lists: Vec<Vec<u8>>,
    /// The federated trust domains: as the lists, of this library's control plane.
    #[prost(message, repeated, tag = "15002")]
    pub federated: Vec<FederatedBundle>,
}

/// Client of the certificate service over any gRPC transport.
#[derive(Clone, Debug)]
pub struct IstioCertificateServiceClient<T> {
    inner: Grpc<T>,
}

impl<T> IstioCertificateServiceClient<T>
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
        Self { inner: Grpc::with_origin(transport, origin).max_decoding_message_size(MAX_MESSAGE) }
    }

    /// Asks for a certificate.
    ///
    /// # Errors
    /// The status of the server (`UNAUTHENTICATED`, `INVALID_ARGUMENT` for a bad signing request), or
    /// `UNKNOWN`/`UNAVAILABLE` when the connection fails.
    pub async fn create_certificate(
        &mut self,
        request: impl tonic::IntoRequest<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        rpc::ready(&mut self.inner).await?;
        let mut request = request.into_request();
        rpc::mark(&mut request, SERVICE_NAME, "CreateCertificate");
        self.inner.unary(request, PathAndQuery::from_static(CREATE_CERTIFICATE), ProstCodec::new()).await
    }
}

/// What a certificate authority does.
#[async_trait]
pub trait IstioCertificateService: Send + Sync + 'static {
    /// Signs a certificate for the authenticated caller.
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status>;
}

/// The certificate service as a Tower service.
pub type IstioCertificateServiceServer<T> = MethodServer<CreateCertificate, T>;

/// Its method.
#[derive(Debug)]
pub enum CreateCertificate {}

impl<T: IstioCertificateService> Method<T> for CreateCertificate {
    const SERVICE: &'static str = SERVICE_NAME;
    const PATH: &'static str = CREATE_CERTIFICATE;

    async fn answer<B>(service: Arc<T>, request: http::Request<B>) -> http::Response<Body>
    where
        B: tonic::codegen::Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static,
    {
        let method = service_fn(move |request| {
            let service = service.clone();
            async move { service.create_certificate(request).await }
        });
        rpc::codec().unary(method, request).await
    }
}
