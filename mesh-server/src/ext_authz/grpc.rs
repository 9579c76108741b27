//! The question and the answer over gRPC: one unary call of `envoy.service.auth.v3.Authorization/Check`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ::http::uri::Authority;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::Full;
use prost::Message as _;

use mesh_core::authz::{CheckRequest, CheckResponse, HeaderChange, Refusal};
use mesh_core::id::SpiffeId;

use super::wire::{self, Checked, HeaderOption};
use super::{Answered, Failed, PARTIAL};
use crate::layer::grpc_status;

const DEADLINE_EXCEEDED: i32 = 4;
const UNAVAILABLE: i32 = 14;

const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";

/// The call.
pub(super) fn question(to: &Authority, of: CheckRequest, as_bytes: bool) -> Result<Request<Full<Bytes>>, Failed> {
    let uri = Uri::builder().scheme("http").authority(to.clone()).path_and_query(METHOD).build();
    let uri = uri.map_err(|error| Failed::Garbled(error.to_string()))?;
    let mut question = Request::new(Full::new(frame(&attributes(of, as_bytes))));
    (*question.method_mut(), *question.uri_mut(), *question.version_mut()) = (Method::POST, uri, Version::HTTP_2);
    let headers = question.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    Ok(question)
}

/// What a caller could bring about (large headers: HTTP 413 and 431, RESOURCE_EXHAUSTED, INVALID_ARGUMENT) is no silence.
pub(super) fn answer((head, body): Answered) -> Result<CheckResponse, Failed> {
    if head.status != StatusCode::OK {
        let failed = if head.status.is_server_error() { Failed::Silent } else { Failed::Garbled };
        return Err(failed(format!("HTTP status {}", head.status)));
    }
    // A call that ends at once has its status in the head.
    match body.trailers().and_then(grpc_status).or_else(|| grpc_status(&head.headers)) {
        Some(0) => unframe(body.to_bytes()).and_then(read).map_err(Failed::Garbled),
        Some(code @ (DEADLINE_EXCEEDED | UNAVAILABLE)) => Err(Failed::Silent(format!("gRPC status {code}"))),
        Some(code) => Err(Failed::Garbled(format!("gRPC status {code}"))),
        None => Err(Failed::Garbled("no gRPC status".to_owned())),
    }
}

fn frame(message: &wire::Check) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(5 + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).expect("head and told body are bounded far below 4 GiB"));
    message.encode(&mut out).expect("the buffer grows");
    out.freeze()
}

pub(super) fn unframe(mut frame: Bytes) -> Result<Bytes, String> {
    let Some((&[compressed, a, b, c, d], _)) = frame.split_first_chunk() else {
        return Err("its answer has no message".to_owned());
    };
    let message = frame.split_off(5);
    if compressed != 0 || u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err("its answer is not one plain message".to_owned());
    }
    Ok(message)
}

pub(super) fn attributes(request: CheckRequest, as_bytes: bool) -> wire::Check {
    let peer = |address: Option<SocketAddr>, id: Option<&SpiffeId>| wire::Peer {
        address: address.map(|address| wire::Address {
            socket_address: Some(wire::SocketAddress {
                address: address.ip().to_string(),
                port_value: address.port().into(),
            }),
        }),
        principal: id.map(ToString::to_string).unwrap_or_default(),
    };
    let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let scheme = if request.caller.is_some() { "https" } else { "http" };
    let protocol = if request.version == Version::HTTP_2 { "HTTP/2" } else { "HTTP/1.1" };
    let (body, raw_body) = match &request.body {
        None => (String::new(), Bytes::new()),
        Some(body) if as_bytes => (String::new(), body.bytes.clone()),
        Some(body) => (String::from_utf8_lossy(&body.bytes).into_owned(), Bytes::new()),
    };
    let http = wire::HttpRequest {
        id: header("x-request-id").to_owned(),
        method: request.method.to_string(),
        headers: joined(&request, scheme),
        path: request.path_and_query.clone(),
        host: request.authority.clone(),
        scheme: scheme.to_owned(),
        // Not known, as Envoy says it.
        size: header("content-length").parse().unwrap_or(-1),
        protocol: protocol.to_owned(),
        body,
        raw_body,
    };
    let sni = request.server_name;
    wire::Check {
        attributes: Some(wire::Attributes {
            source: Some(peer(request.source, request.caller.as_ref())),
            destination: Some(peer(Some(request.destination), request.own.as_ref())),
            request: Some(wire::AskedRequest { http: Some(http) }),
            tls_session: (!sni.is_empty()).then_some(wire::TlsSession { sni }),
        }),
    }
}

/// Headers by name, values joined by a comma, and HTTP/2's pseudo-headers among them, as Envoy sends them.
fn joined(request: &CheckRequest, scheme: &str) -> BTreeMap<String, String> {
    let pseudo = [
        (":method", request.method.as_str()),
        (":path", &request.path_and_query),
        (":authority", &request.authority),
        (":scheme", scheme),
    ];
    let mut all: BTreeMap<String, String> =
        pseudo.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    for name in request.headers.keys().filter(|name| *name != header::HOST) {
        let values: Vec<_> =
            request.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        all.insert(name.as_str().to_owned(), values.join(","));
    }
    if let Some(body) = &request.body {
        all.insert(PARTIAL.to_owned(), body.partial.to_string());
    }
    all
}

/// Reads an answer. What is not understood of it is no yes.
pub(super) fn read(message: Bytes) -> Result<CheckResponse, String> {
    let answer = Checked::decode(message).map_err(|error| format!("its answer cannot be read: {error}"))?;
    match (answer.status.map(|status| status.code), answer.denied, answer.ok) {
        (Some(0) | None, None, Some(ok)) => allowed(ok),
        (Some(0), None, None) => Ok(CheckResponse::allowed()),
        // Envoy takes a message without anything in it for a yes. It is what a server that forgot to decide sends.
        (None, None, None) => Err("its answer is empty: it says neither yes nor no".to_owned()),
        (_, denied, _) => Ok(CheckResponse::Denied(refusal(denied.unwrap_or_default()))),
    }
}

fn allowed(ok: wire::Allowed) -> Result<CheckResponse, String> {
    if !(ok.query_to_set.is_empty() && ok.query_to_remove.is_empty()) {
        return Err("it asks for changes of the query, which are not made".to_owned());
    }
    let asked = ok.headers.len() + ok.headers_to_remove.len() + ok.response_headers.len();
    if asked > HeaderChange::MOST {
        return Err(format!("it asks for {asked} changes of headers; at most {} are made", HeaderChange::MOST));
    }
    // Unless it says otherwise a header is set for the application, and added for the caller.
    let mut request = changes(ok.headers, HeaderChange::Set)?;
    for name in ok.headers_to_remove.iter().filter(|name| !name.starts_with(':')) {
        request.push(HeaderChange::Remove(name.parse().map_err(|_| format!("{name:?} is no header"))?));
    }
    Ok(CheckResponse::Allowed { request, response: changes(ok.response_headers, HeaderChange::Append)? })
}

/// A no stays one: what cannot be read of it is left out, for without an answer a provider may let the request pass.
fn refusal(denied: wire::Denied) -> Refusal {
    let code = denied.status.map_or(403, |status| status.code);
    let status = u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    // No answer, and no permission either: a refusal with another status.
    let status = status.filter(|status| status.as_u16() >= 200).unwrap_or(StatusCode::FORBIDDEN);
    let mut headers = HeaderMap::new();
    let readable = denied.headers.into_iter().filter_map(|option| change(option, HeaderChange::Set).ok());
    HeaderChange::apply(&readable.take(HeaderChange::MOST).collect::<Vec<_>>(), &mut headers);
    Refusal { status, headers, body: denied.body.into() }
}

/// What comes of a header that does not say how it is added.
type Plain = fn(HeaderName, HeaderValue) -> HeaderChange;

fn changes(options: Vec<HeaderOption>, plain: Plain) -> Result<Vec<HeaderChange>, String> {
    options.into_iter().map(|option| change(option, plain)).collect()
}

fn change(option: HeaderOption, plain: Plain) -> Result<HeaderChange, String> {
    let header = option.header.unwrap_or_default();
    let name: HeaderName = header.key.parse().map_err(|_| format!("{:?} is no header", header.key))?;
    let value = if header.value.is_empty() { &header.raw_value[..] } else { header.value.as_bytes() };
    let value = HeaderValue::from_bytes(value).map_err(|_| format!("the value of {name} is no header's"))?;
    Ok(match (option.append, option.append_action) {
        (Some(true), _) => HeaderChange::Append(name, value),
        (Some(false), _) => HeaderChange::Set(name, value),
        // Numbers of HeaderValueOption.HeaderAppendAction.
        (None, 0) => plain(name, value),
        (None, 1) => HeaderChange::SetIfAbsent(name, value),
        (None, 2) => HeaderChange::Set(name, value),
        (None, 3) => HeaderChange::SetIfPresent(name, value),
        (None, other) => return Err(format!("it wants {name} added in the unknown way {other}")),
    })
}
