//! A gRPC server by hand: every call is answered with the server's name, and with who called if the proxy before
//! it says so. No part of the mesh takes part.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::grpc;

/// Serves on a free loopback port until dropped.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Backend {
    pub(crate) async fn start(name: &str) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, name.into()));
        Self { address, _tasks: tasks }
    }
}

async fn accept(listener: TcpListener, name: Arc<str>) {
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
    name: Arc<str>,
    request: Request<Incoming>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, Infallible> {
    // Envoy's account of the client certificate: `By=…;Hash=…;URI=spiffe://…`.
    let account = request.headers().get("x-forwarded-client-cert").and_then(|value| value.to_str().ok());
    let caller = account.and_then(|text| text.split(';').find_map(|part| part.strip_prefix("URI=")));
    let text = caller.map_or_else(|| name.to_string(), |caller| format!("{name} {caller}"));
    let _ = request.into_body().collect().await;
    Ok(grpc::answer(&text))
}
