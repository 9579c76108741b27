//! `istio.v1.auth.IstioCertificateService`: a certificate for a signing request, as istiod and our
//! own control plane issue it.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use envoy_types::pb::google::protobuf::Struct;
use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Bytes, Service, StdError, async_trait, http};
use tonic::server::{NamedService, UnaryService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::rpc;

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
        Self { inner: Grpc::with_origin(transport, origin) }
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
#[derive(Debug)]
pub struct IstioCertificateServiceServer<T> {
    inner: Arc<T>,
}

impl<T> IstioCertificateServiceServer<T> {
    /// Serves `service`.
    pub fn new(service: T) -> Self {
        Self { inner: Arc::new(service) }
    }
}

impl<T> Clone for IstioCertificateServiceServer<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<T> NamedService for IstioCertificateServiceServer<T> {
    const NAME: &'static str = SERVICE_NAME;
}

impl<T, B> Service<http::Request<B>> for IstioCertificateServiceServer<T>
where
    T: IstioCertificateService,
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let inner = self.inner.clone();
        Box::pin(async move {
            if request.uri().path() != CREATE_CERTIFICATE {
                return Ok(rpc::unimplemented());
            }
            Ok(tonic::server::Grpc::new(ProstCodec::new()).unary(CreateCertificate(inner), request).await)
        })
    }
}

struct CreateCertificate<T>(Arc<T>);

impl<T: IstioCertificateService> UnaryService<IstioCertificateRequest> for CreateCertificate<T> {
    type Response = IstioCertificateResponse;
    type Future = BoxFuture<Response<Self::Response>, Status>;

    fn call(&mut self, request: Request<IstioCertificateRequest>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move { inner.create_certificate(request).await })
    }
}
