//! The application of both sides: an HTTP echo and a gRPC greeter.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tonic::Status;

use crate::Error;
use crate::hello::greeter_server::{Greeter, GreeterServer};
use crate::hello::{HelloReply, HelloRequest};

/// Answers the body it got.
pub(crate) async fn http<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Error>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Error>,
{
    let body = request.into_body().collect().await.map_err(Into::into)?.to_bytes();
    Ok(Response::new(Full::new(body)))
}

/// Answers the name it got.
pub(crate) struct Echo;

/// The greeter as a service.
pub(crate) fn grpc() -> GreeterServer<Echo> {
    GreeterServer::new(Echo)
}

#[tonic::async_trait]
impl Greeter for Echo {
    async fn say_hello(&self, request: tonic::Request<HelloRequest>) -> Result<tonic::Response<HelloReply>, Status> {
        let message = request.into_inner().name;
        Ok(tonic::Response::new(HelloReply { message, caller: String::new() }))
    }
}
