//! Answers that come from policy and not from an endpoint: redirects, direct responses, aborts.

use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body::Body as _;
use mesh_core::matcher::CompiledRoute;
use mesh_core::policy::{AbortStatus, DirectResponse, Redirect};
use mesh_core::retry::{grpc_status_of, http_status_of};

use super::head::Head;
use crate::body::Body;
use crate::grpc;

/// Performs a redirect (Envoy `RedirectAction`).
pub(crate) fn redirect(policy: &Redirect, route: &CompiledRoute, head: &Head) -> Response<Body> {
    let scheme = policy.scheme.as_deref().unwrap_or(head.scheme());
    let authority = head.authority();
    let (own_host, own_port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port.parse().ok()),
        _ => (authority, None),
    };
    let host = policy.host.as_deref().unwrap_or(own_host);
    let port: Option<u16> = match policy.port {
        Some(port) => Some(port),
        // A new host comes without the old one's port; with a new scheme the old one's default port goes, another stays.
        None if policy.host.is_some() => None,
        None => own_port.filter(|port| scheme == head.scheme() || *port != default_port(head.scheme())),
    };
    let port = port.filter(|port| *port != default_port(scheme)).map(|port| format!(":{port}")).unwrap_or_default();
    let path = route.rewrite_path(head.path_and_query());
    let path = path.as_deref().unwrap_or(head.path_and_query());
    let path =
        if policy.strip_query && !policy.has_own_query() { path.split('?').next().unwrap_or(path) } else { path };

    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(policy.code).unwrap_or(StatusCode::MOVED_PERMANENTLY);
    if let Ok(location) = HeaderValue::try_from(format!("{scheme}://{host}{port}{path}")) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn default_port(scheme: &str) -> u16 {
    if scheme == "https" { 443 } else { 80 }
}

/// Answers at once.
pub(crate) fn direct(policy: &DirectResponse) -> Response<Body> {
    let status = StatusCode::from_u16(policy.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = Response::new(Body::from(bytes::Bytes::from(policy.body.clone())));
    *response.status_mut() = status;
    response
}

/// An answer whose head says what its body is, as Envoy's do: to `HEAD` that is all there is of it.
pub(crate) fn described(mut response: Response<Body>, method: &Method) -> Response<Body> {
    let length = response.body().size_hint().lower();
    if length > 0 {
        let headers = response.headers_mut();
        // Policy may have said what it is.
        headers.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("text/plain"));
        headers.insert(header::CONTENT_LENGTH, length.into());
        if *method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
    }
    response
}

/// The answer to a browser's preflight.
pub(crate) fn preflight(headers: HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = headers;
    response
}

/// The answer of an injected fault, in the protocol of the request.
pub(crate) fn abort(status: AbortStatus, grpc_request: bool) -> Response<Body> {
    const TEXT: &str = "fault filter abort";
    let (http, grpc) = match status {
        AbortStatus::Http(code) => {
            let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            (status, grpc_status_of(status))
        }
        AbortStatus::Grpc(code) => {
            let code = i32::try_from(code).unwrap_or(2);
            (http_status_of(code), code)
        }
    };
    if grpc_request {
        return grpc_answer(grpc, TEXT);
    }
    let mut response = Response::new(Body::from(TEXT));
    *response.status_mut() = http;
    response
}

fn grpc_answer(code: i32, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    let mut headers: HeaderMap = grpc::status_headers(code, message);
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    *response.headers_mut() = headers;
    response
}
