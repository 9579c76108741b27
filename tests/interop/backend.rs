//! A gRPC server by hand: every call is answered with the server's name. No part of the mesh takes part.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// Serves on a free loopback port until dropped.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Backend {
    pub(crate) async fn start(name: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let name = Bytes::copy_from_slice(name.as_bytes());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, name));
        Self { address, _tasks: tasks }
    }
}

async fn accept(listener: TcpListener, name: Bytes) {
    // Owned by this task, so that connections end with it.
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let name = name.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| answer(name.clone(), request));
            let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            // A client that goes away is none of the server's business.
            let _ = serving.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    name: Bytes,
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
    let _ = request.into_body().collect().await;
    // A gRPC message: not compressed, length, bytes.
    let length = u32::try_from(name.len()).expect("names are short").to_be_bytes();
    let message = [&[0], &length[..], &name].concat();
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    let body = Full::new(Bytes::from(message)).with_trailers(async { Some(Ok(trailers)) });
    Ok(Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}
