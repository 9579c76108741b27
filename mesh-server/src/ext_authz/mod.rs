//! [`ExtAuthz`]: an external authorizer that speaks Envoy's protocol, `envoy.service.auth.v3.Authorization/Check`, as
//! OPA and its like do.
//!
//! Refuses to know how the service is reached: any Tower service that carries HTTP requests will do.

mod wire;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use prost::Message as _;
use tokio::time::timeout;
use tower_service::Service;

use mesh_core::authz::{CheckRequest, CheckResponse, Checking, ExternalAuthorizer, HeaderChange, Refusal, Unavailable};
use mesh_core::error::BoxError;
use mesh_core::id::SpiffeId;
use mesh_core::policy::{CheckedBody, GrpcAuthorizer};

use self::wire::{Checked, HeaderOption};
use crate::layer::grpc_status;

/// Asks a service that implements `envoy.service.auth.v3.Authorization` (Istio `envoyExtAuthzGrpc`).
///
/// It is told method, path, host, headers, addresses, and both sides' SPIFFE IDs, and of the body what the settings say. Of its
/// yes the headers for the application, those to remove and those for the caller are taken; of its no status, headers
/// and body.
///
/// There is no answer if the service cannot be reached, takes too long, or answers with another HTTP status than 200 or
/// another gRPC status than OK: then `fail_open` decides. An answer that came and cannot be read, says nothing, or asks
/// for what is not done is no yes, whatever `fail_open` says. Envoy lets such a request pass where it fails open; but what
/// was said may have been a no, and who can bring a service to say it in a broken way would be let in.
#[derive(Clone)]
pub struct ExtAuthz<S> {
    service: S,
    method: Uri,
    settings: GrpcAuthorizer,
    status: StatusCode,
}

/// Largest answer that is read, bytes.
const MAX_ANSWER: usize = 1 << 20;

/// A provider that cannot be asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the external authorizer {target:?} cannot be asked: {reason}")]
pub struct InvalidProvider {
    target: String,
    reason: String,
}

impl<S> ExtAuthz<S> {
    /// An authorizer that is asked through `service`, as `settings` say.
    ///
    /// # Errors
    /// The target is no `host:port`, the status is none, or it wants more than [`CheckedBody::MOST`] of a body.
    pub fn new(service: S, settings: GrpcAuthorizer) -> Result<Self, InvalidProvider> {
        let invalid = |reason: String| InvalidProvider { target: settings.target.clone(), reason };
        let method = format!("http://{}/envoy.service.auth.v3.Authorization/Check", settings.target);
        let method = method.parse().map_err(|error: http::uri::InvalidUri| invalid(error.to_string()))?;
        let status = StatusCode::from_u16(settings.status_on_error).map_err(|error| invalid(error.to_string()))?;
        if settings.body.is_some_and(|body| body.max_bytes.get() > CheckedBody::MOST) {
            return Err(invalid(format!("of a body it may be told {} bytes at most", CheckedBody::MOST)));
        }
        Ok(Self { service, method, settings, status })
    }

    fn unavailable(&self, reason: impl fmt::Display) -> Unavailable {
        let Self { settings, status, .. } = self;
        let reason = format!("{}: {reason}", settings.target);
        Unavailable { reason, fail_open: settings.fail_open, status: *status }
    }

    /// For an answer that is not understood.
    fn garbled(&self, reason: impl fmt::Display) -> Unavailable {
        Unavailable { fail_open: false, ..self.unavailable(reason) }
    }
}

impl<S> fmt::Debug for ExtAuthz<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExtAuthz").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl<S, RB> ExternalAuthorizer for ExtAuthz<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<RB>> + Clone + Send + Sync + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    RB: http_body::Body<Data = Bytes> + Send,
    RB::Error: Into<BoxError>,
{
    fn check(&self, request: CheckRequest) -> Checking<'_> {
        let as_bytes = self.settings.body.is_some_and(|body| body.as_bytes);
        let message = frame(&attributes(request, as_bytes));
        let service = self.service.clone();
        Box::pin(async move {
            match timeout(self.settings.timeout, exchange(service, &self.method, message)).await {
                Err(_) => Err(self.unavailable(format_args!("no answer within {:?}", self.settings.timeout))),
                Ok(Err(Failed::Silent(reason))) => Err(self.unavailable(reason)),
                Ok(Err(Failed::Garbled(reason))) => Err(self.garbled(reason)),
                Ok(Ok(message)) => read(message).map_err(|reason| self.garbled(reason)),
            }
        })
    }

    fn body(&self) -> Option<CheckedBody> {
        self.settings.body
    }
}

/// Why there is no message to read.
enum Failed {
    /// Nothing was said.
    Silent(String),
    /// Something was.
    Garbled(String),
}

/// One unary call.
async fn exchange<S, RB>(mut service: S, method: &Uri, message: Bytes) -> Result<Bytes, Failed>
where
    S: Service<Request<Full<Bytes>>, Response = Response<RB>>,
    S::Error: Into<BoxError>,
    RB: http_body::Body<Data = Bytes>,
    RB::Error: Into<BoxError>,
{
    let failed = |error: S::Error| Failed::Silent(error.into().to_string());
    let mut request = Request::new(Full::new(message));
    (*request.method_mut(), *request.uri_mut(), *request.version_mut()) =
        (Method::POST, method.clone(), Version::HTTP_2);
    let headers = request.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(header::TE, HeaderValue::from_static("trailers"));
    poll_fn(|cx| service.poll_ready(cx)).await.map_err(failed)?;
    let response = service.call(request).await.map_err(failed)?;
    if response.status() != StatusCode::OK {
        return Err(Failed::Silent(format!("HTTP status {}", response.status())));
    }
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
        let of = if error.is::<LengthLimitError>() { Failed::Garbled } else { Failed::Silent };
        of(format!("its answer cannot be read: {error}"))
    })?;
    // A call that ends at once has its status in the head.
    let status = body.trailers().and_then(grpc_status).or_else(|| grpc_status(&head.headers));
    match status {
        Some(0) => unframe(body.to_bytes()).map_err(Failed::Garbled),
        Some(code) => Err(Failed::Silent(format!("gRPC status {code}"))),
        None => Err(Failed::Silent("no gRPC status".to_owned())),
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

fn unframe(mut frame: Bytes) -> Result<Bytes, String> {
    let Some((&[compressed, a, b, c, d], _)) = frame.split_first_chunk() else {
        return Err("its answer has no message".to_owned());
    };
    let message = frame.split_off(5);
    if compressed != 0 || u32::from_be_bytes([a, b, c, d]) as usize != message.len() {
        return Err("its answer is not one plain message".to_owned());
    }
    Ok(message)
}

fn attributes(request: CheckRequest, as_bytes: bool) -> wire::Check {
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

/// Where Envoy says whether there is more of a body than it tells.
const PARTIAL: &str = "x-envoy-auth-partial-body";

/// Reads an answer. What is not understood of it is no yes.
fn read(message: Bytes) -> Result<CheckResponse, String> {
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
