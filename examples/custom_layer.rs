//! A layer of your own around the client: `cargo run --example custom_layer`.
//!
//! `mesh::Mesh::client()` is a plain `tower::Service`, so whatever wraps one goes around it: here a layer that
//! signs requests. A tonic client takes the same stack. It fails if the
//! server does not see the signature, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::task::{Context, Poll};

use axum::Router;
use axum::http::HeaderMap;
use axum::routing::get;
use http::{HeaderValue, Request};
use http_body_util::BodyExt;
use mesh::{Body, Mesh};
use tower::{Layer, Service, ServiceExt};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Signs every request.
#[derive(Clone)]
struct SignLayer(HeaderValue);

/// What [`SignLayer`] makes.
#[derive(Clone)]
struct Sign<S> {
    inner: S,
    signature: HeaderValue,
}

impl<S> Layer<S> for SignLayer {
    type Service = Sign<S>;

    fn layer(&self, inner: S) -> Sign<S> {
        Sign { inner, signature: self.0.clone() }
    }
}

impl<S, B> Service<Request<B>> for Sign<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> S::Future {
        request.headers_mut().insert("x-signature", self.signature.clone());
        self.inner.call(request)
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let signature = |headers: HeaderMap| async move { format!("{:?}", headers.get("x-signature")) };
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(get(signature))).await });

    let mesh = Mesh::builder().standalone().build().await?;
    let client = tower::ServiceBuilder::new()
        .layer(SignLayer(HeaderValue::from_static("by hand")))
        .service(mesh.client().clone());

    let request = Request::get(format!("http://{address}/")).body(Body::empty())?;
    let answer = client.oneshot(request).await?;
    let seen = String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec())?;
    println!("the server saw {seen}");
    if seen == r#"Some("by hand")"# { Ok(()) } else { Err("the signature is missing".into()) }
}
