//! What `tonic-build` would generate around a method, once instead of per service: bounds on the
//! transport, and a server that answers one path.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::{BoxFuture, Bytes, Service, StdError, http};
use tonic::server::NamedService;
use tonic::{GrpcMethod, Status};
use tonic_prost::ProstCodec;

/// What a client needs of its transport.
pub(super) async fn ready<T>(grpc: &mut Grpc<T>) -> Result<(), Status>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    grpc.ready().await.map_err(|e| Status::unknown(format!("the connection was not ready: {}", e.into())))
}

/// Marks a request with the method it is for, as interceptors and telemetry expect it.
pub(super) fn mark<M>(request: &mut tonic::Request<M>, service: &'static str, method: &'static str) {
    request.extensions_mut().insert(GrpcMethod::new(service, method));
}

/// The one method of a gRPC service, as implementations `T` of that service answer it.
pub trait Method<T>: 'static {
    /// Full name of the service.
    const SERVICE: &'static str;
    /// Path of the method.
    const PATH: &'static str;

    /// Answers a request for this method.
    fn answer<B>(service: Arc<T>, request: http::Request<B>) -> impl Future<Output = http::Response<Body>> + Send
    where
        B: tonic::codegen::Body + Send + 'static,
        B::Error: Into<StdError> + Send + 'static;
}

/// A gRPC service of one method as a Tower service; other paths are `UNIMPLEMENTED`.
pub struct MethodServer<M, T> {
    service: Arc<T>,
    method: PhantomData<fn() -> M>,
}

impl<M, T> MethodServer<M, T> {
    /// Serves `service`.
    pub fn new(service: T) -> Self {
        Self { service: Arc::new(service), method: PhantomData }
    }
}

impl<M, T> Clone for MethodServer<M, T> {
    fn clone(&self) -> Self {
        Self { service: self.service.clone(), method: PhantomData }
    }
}

impl<M: Method<T>, T> fmt::Debug for MethodServer<M, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MethodServer").field(&M::PATH).finish()
    }
}

impl<M: Method<T>, T> NamedService for MethodServer<M, T> {
    const NAME: &'static str = M::SERVICE;
}

impl<M, T, B> Service<http::Request<B>> for MethodServer<M, T>
where
    M: Method<T>,
    T: Send + Sync + 'static,
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
        let service = self.service.clone();
        Box::pin(async move {
            if request.uri().path() != M::PATH {
                return Ok(Status::unimplemented("the service has no such method").into_http());
            }
            Ok(M::answer(service, request).await)
        })
    }
}

/// Longest question that these services read. Nobody has to prove anything before it is read, and the longest one that is
/// taken, a signing request or an announcement, is well below.
const MAX_QUESTION: usize = 64 * 1024;

/// The messages of a method on the wire.
pub(super) fn codec<Answer, Question>() -> tonic::server::Grpc<ProstCodec<Answer, Question>>
where
    Answer: prost::Message + Send + 'static,
    Question: prost::Message + Default + Send + 'static,
{
    tonic::server::Grpc::new(ProstCodec::new()).max_decoding_message_size(MAX_QUESTION)
}
