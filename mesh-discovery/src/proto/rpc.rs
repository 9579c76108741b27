//! What `tonic-build` would generate around a method, once instead of per service: bounds on the
//! transport and the answer to an unknown path.

use tonic::body::Body;
use tonic::client::{Grpc, GrpcService};
use tonic::codegen::{Bytes, StdError};
use tonic::{GrpcMethod, Status};

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

/// The answer to a method that the service does not have.
pub(super) fn unimplemented() -> http::Response<Body> {
    Status::unimplemented("the service has no such method").into_http()
}
