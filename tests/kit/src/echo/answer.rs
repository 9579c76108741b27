//! One request and its answer.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use tokio::sync::watch;

use super::{Behaviour, Fate, Received, Shared};
use mesh_core::error::BoxError;
use mesh_core::id::SpiffeId;
use mesh_core::orca;

pub(super) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Answers one request; `fate` is that of its connection.
pub(super) async fn answer(
    shared: Arc<Shared>,
    peer: Option<SpiffeId>,
    fate: Arc<watch::Sender<Fate>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, BoxError> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let (method, uri, version, headers) = (parts.method, parts.uri, parts.version, parts.headers);
    let received = Received { method, uri, version, headers, body, peer };
    // Both before the count, so that whoever waited for the count finds the request.
    shared.received.lock().push(received.clone());
    let mut releases = shared.releases.subscribe();
    shared.requests.send_modify(|n| *n += 1);

    let usual = *shared.usual.lock();
    let scripted = shared.script.lock().pop_front();
    match scripted.unwrap_or(usual) {
        Behaviour::Echo => echo(&shared.name, received, StatusCode::OK),
        Behaviour::Status(status) => echo(&shared.name, received, StatusCode::from_u16(status)?),
        Behaviour::Grpc(status) => {
            let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            response.headers_mut().insert("grpc-status", HeaderValue::from(status));
            Ok(response)
        }
        Behaviour::GrpcTrailers(status) => {
            let body = Full::new(Bytes::from_static(&[0; 5])).map_err(|never| match never {});
            let mut response = Response::new(body.with_trailers(grpc_end(status)?).boxed_unsync());
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            Ok(response)
        }
        Behaviour::Bare(status, headers) => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            Ok(response.body(Empty::new().map_err(|never| match never {}).boxed_unsync())?)
        }
        Behaviour::Stall => {
            let rest = futures_util::stream::once(async move {
                // An error means that the server is gone: that ends the body as well.
                let _ = releases.changed().await;
                None
            });
            let begun = futures_util::stream::once(async { Some(Ok(Frame::data(Bytes::from_static(b"begun")))) });
            let frames =
                futures_util::StreamExt::filter_map(futures_util::StreamExt::chain(begun, rest), std::future::ready);
            Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
        }
        Behaviour::Serving(serving) => {
            // A framed message of one field: `status` is 1 or 2.
            let message = Bytes::from(vec![0, 0, 0, 0, 2, 0x08, if serving { 1 } else { 2 }]);
            let body = Full::new(message).map_err(|never| match never {});
            let mut response = Response::new(body.with_trailers(grpc_end(0)?).boxed_unsync());
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            Ok(response)
        }
        Behaviour::Reporting(text) => report(&shared.name, received, text, releases),
        Behaviour::Hold => {
            releases.changed().await?;
            echo(&shared.name, received, StatusCode::OK)
        }
        Behaviour::CloseConnection => {
            fate.send_replace(Fate::Closes);
            std::future::pending().await
        }
        Behaviour::Leave => {
            fate.send_replace(Fate::Leaves);
            echo(&shared.name, received, StatusCode::OK)
        }
        Behaviour::RefuseStream => Err(h2::Error::from(h2::Reason::REFUSED_STREAM).into()),
    }
}

/// A load report in the form that fits the request.
fn report(
    name: &str,
    request: Received,
    text: &str,
    releases: watch::Receiver<u64>,
) -> Result<Response<Body>, BoxError> {
    let value = HeaderValue::from_str(&format!("TEXT {text}"))?;
    let headers = HeaderMap::from_iter([(orca::TEXT.clone(), value)]);
    match request.uri.path() {
        orca::STREAM_PATH => {
            let report = orca::read(&headers).ok_or("no report in this text")?;
            let message = orca::frame(&orca::encode(&report));
            let first = futures_util::stream::once(std::future::ready(message.clone()));
            let others = futures_util::stream::unfold((releases, message), |(mut releases, message)| async {
                releases.changed().await.ok()?;
                Some((message.clone(), (releases, message)))
            });
            let messages = futures_util::StreamExt::chain(first, others);
            let frames = futures_util::StreamExt::map(messages, |message| Ok(Frame::data(message)));
            let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
            Ok(response)
        }
        orca::PROBE_PATH => {
            let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response.headers_mut().extend(headers);
            Ok(response)
        }
        _ => {
            let mut response = echo(name, request, StatusCode::OK)?;
            if response.headers().get("content-type").is_none() {
                response.headers_mut().extend(headers);
                return Ok(response);
            }
            Ok(response.map(|body| {
                let add = move |mut frame: Frame<Bytes>| {
                    if let Some(trailers) = frame.trailers_mut() {
                        trailers.extend(headers.clone());
                    }
                    frame
                };
                body.map_frame(add).boxed_unsync()
            }))
        }
    }
}

fn echo(name: &str, request: Received, status: StatusCode) -> Result<Response<Body>, BoxError> {
    let host = request.headers.get("host").and_then(|value| value.to_str().ok());
    let authority = request.uri.authority().map(|a| a.as_str()).or(host).unwrap_or_default();
    let path = request.uri.path_and_query().map_or("/", |path| path.as_str());
    let peer = request.peer.as_ref().map_or("-", SpiffeId::as_str);
    let mut response = Response::builder()
        .status(status)
        .header("x-echo-server", name)
        .header("x-echo-method", request.method.as_str())
        .header("x-echo-path", path)
        .header("x-echo-authority", authority)
        .header("x-echo-version", format!("{:?}", request.version))
        .header("x-echo-peer", peer);
    let content_type = request.headers.get("content-type");
    if let Some(value) = content_type {
        response = response.header("content-type", value);
    }
    let grpc = content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let body = Full::new(request.body).map_err(|never| match never {});
    if !grpc {
        return Ok(response.body(body.boxed_unsync())?);
    }
    Ok(response.body(body.with_trailers(grpc_end(0)?).boxed_unsync())?)
}

/// Trailers that say OK.
fn grpc_end(status: i32) -> Result<std::future::Ready<Option<Result<HeaderMap, BoxError>>>, BoxError> {
    let trailers = HeaderMap::from_iter([("grpc-status".parse()?, HeaderValue::from(status))]);
    Ok(std::future::ready(Some(Ok(trailers))))
}
