//! What the debug server answers. Pure, and never reads a request's body.

use std::net::IpAddr;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;

use super::{Content, DebugServerBuilder};

const TEXT: &str = "text/plain; charset=utf-8";

const INDEX: &str = "/healthz      200 while the process runs
/readyz       200 when ready, 503 with the reasons when not
/metrics      Prometheus text
/config_dump  configuration as received and understood
/clusters     destinations and their endpoints
/drain        POST begins the drain, where that was asked for
";

/// How a content type of gRPC begins.
const GRPC: &[u8] = b"application/grpc";

/// Whether a request is for the gRPC service.
pub(super) fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    request.version() == Version::HTTP_2 && kind.is_some_and(|kind| kind.as_bytes().starts_with(GRPC))
}

pub(super) fn respond<B>(content: &DebugServerBuilder, request: &Request<B>) -> Response<Full<Bytes>> {
    if !known_host(content, request) {
        // A web page can make a browser send requests here under a name of its own (DNS rebinding).
        let text = "the Host header names neither loopback nor an allowed host\n";
        return text_response(StatusCode::MISDIRECTED_REQUEST, text);
    }
    let post = request.uri().path() == "/drain";
    let allowed = if post { "POST" } else { "GET, HEAD" };
    let method = request.method();
    if post != (method == Method::POST) || !(post || method == Method::GET || method == Method::HEAD) {
        let mut response = text_response(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        return response;
    }
    match request.uri().path() {
        "/" => text_response(StatusCode::OK, INDEX),
        "/healthz" => text_response(StatusCode::OK, "ok\n"),
        "/readyz" => readyz(content),
        "/metrics" => show(content.metrics.as_ref()),
        "/config_dump" => show(content.config_dump.as_ref()),
        "/clusters" => show(content.clusters.as_ref()),
        "/drain" => drain(content, request),
        _ => text_response(StatusCode::NOT_FOUND, "no such path; / lists them\n"),
    }
}

fn readyz(content: &DebugServerBuilder) -> Response<Full<Bytes>> {
    let readiness = &content.readiness;
    let ready = readiness.is_ready();
    let mut text = String::from(if ready { "ready\n" } else { "" });
    if readiness.draining() {
        text.push_str("draining\n");
    }
    let reasons = readiness.reasons().into_iter().map(|(name, why)| format!("{name}: {why}"));
    let notes = content.notes.as_ref().map(|notes| notes()).unwrap_or_default();
    for line in reasons.chain(notes) {
        // A reason may hold what somebody else wrote, and has one line.
        text.push_str(&line.replace(char::is_control, " "));
        text.push('\n');
    }
    text_response(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
}

fn show(content: Option<&Content>) -> Response<Full<Bytes>> {
    match content {
        Some(make) => {
            let (kind, body) = make();
            response(StatusCode::OK, kind, body)
        }
        None => text_response(StatusCode::NOT_FOUND, "nothing to show here in this process\n"),
    }
}

fn drain<B>(content: &DebugServerBuilder, request: &Request<B>) -> Response<Full<Bytes>> {
    // Browsers send Origin with every POST of a page: none of them has any business here.
    if request.headers().contains_key(header::ORIGIN) {
        return text_response(StatusCode::FORBIDDEN, "not from a web page\n");
    }
    match &content.drain {
        Some(drain) => {
            drain();
            text_response(StatusCode::ACCEPTED, "draining\n")
        }
        None => text_response(StatusCode::NOT_FOUND, "nothing to drain in this process\n"),
    }
}

/// Whether the request names a host under which this server may be reached. An address literal cannot
/// be a rebound name, so beyond loopback every one is fine (a pod's own, which Prometheus dials).
pub(super) fn known_host<B>(content: &DebugServerBuilder, request: &Request<B>) -> bool {
    let Some(authority) = authority(request) else { return false };
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return ip.is_loopback() || content.beyond_loopback || content.hosts.iter().any(|known| known == bare);
    }
    host.eq_ignore_ascii_case("localhost") || content.hosts.iter().any(|known| known.eq_ignore_ascii_case(host))
}

/// `:authority` of HTTP/2; the one `Host` of HTTP/1.1, whatever its target says.
fn authority<B>(request: &Request<B>) -> Option<Authority> {
    if request.version() == Version::HTTP_2 {
        return request.uri().authority().cloned();
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return None };
    host.to_str().ok()?.parse().ok()
}

fn text_response(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, TEXT, text.into())
}

fn response(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    // The content type is the application's: one that is no header value must not be a panic.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_str(kind).unwrap_or(HeaderValue::from_static(TEXT)));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::Readiness;
    use crate::debug::DebugServer;

    fn ask(content: &DebugServerBuilder, method: &str, path: &str, headers: &[(&str, &str)]) -> StatusCode {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        respond(content, &request.body(()).unwrap()).status()
    }

    #[test]
    fn only_known_hosts_are_answered() {
        let closed = DebugServer::builder().allow_host("mesh.example");
        for (host, want) in [
            ("127.0.0.1:9901", StatusCode::OK),
            ("localhost", StatusCode::OK),
            ("LOCALHOST:1", StatusCode::OK),
            ("[::1]:9901", StatusCode::OK),
            ("mesh.example:80", StatusCode::OK),
            ("evil.example:9901", StatusCode::MISDIRECTED_REQUEST),
            ("127.0.0.1.evil.example", StatusCode::MISDIRECTED_REQUEST),
            ("10.1.2.3:9901", StatusCode::MISDIRECTED_REQUEST),
            ("", StatusCode::MISDIRECTED_REQUEST),
        ] {
            assert_eq!(ask(&closed, "GET", "/healthz", &[("host", host)]), want, "{host}");
        }
        assert_eq!(ask(&closed, "GET", "/healthz", &[]), StatusCode::MISDIRECTED_REQUEST);
        let open = DebugServer::builder().beyond_loopback();
        assert_eq!(ask(&open, "GET", "/healthz", &[("host", "10.1.2.3:9901")]), StatusCode::OK);
        assert_eq!(ask(&open, "GET", "/healthz", &[("host", "evil.example")]), StatusCode::MISDIRECTED_REQUEST);
    }

    #[test]
    fn drain_is_a_post_and_not_of_a_web_page() {
        let drained = Arc::new(AtomicBool::new(false));
        let seen = drained.clone();
        let content = DebugServer::builder().on_drain(Arc::new(move || seen.store(true, Ordering::Relaxed)));
        let host = ("host", "localhost");
        assert_eq!(ask(&content, "GET", "/drain", &[host]), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(ask(&content, "POST", "/healthz", &[host]), StatusCode::METHOD_NOT_ALLOWED);
        assert_eq!(ask(&content, "DELETE", "/healthz", &[host]), StatusCode::METHOD_NOT_ALLOWED);
        let page = ("origin", "http://localhost");
        assert_eq!(ask(&content, "POST", "/drain", &[host, page]), StatusCode::FORBIDDEN);
        assert!(!drained.load(Ordering::Relaxed));
        assert_eq!(ask(&content, "POST", "/drain", &[host]), StatusCode::ACCEPTED);
        assert!(drained.load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn s91_what_somebody_else_wrote_makes_no_line_of_a_page_and_no_script() {
        let readiness = Readiness::default();
        readiness.hold("listener", "no such policy \"\nready\r\n\u{1b}[2J<script>");
        let clusters: Content = Arc::new(|| ("application/json", Bytes::from_static(b"{\"<script>\":1}")));
        let content = DebugServer::builder().readiness(readiness.clone()).clusters(clusters);
        let page = async |path: &str| {
            let request = Request::get(path).header("host", "localhost").body(()).unwrap();
            let (head, body) = respond(&content, &request).into_parts();
            let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
            // What a browser would take for a page of its own is shown to it as text.
            assert_eq!(head.headers[header::X_CONTENT_TYPE_OPTIONS], "nosniff", "{path}");
            assert_ne!(head.headers[header::CONTENT_TYPE].as_bytes()[..9], b"text/html"[..], "{path}");
            String::from_utf8(body.to_vec()).unwrap()
        };
        assert_eq!(page("/readyz").await, "listener: no such policy \" ready   [2J<script>\n");
        assert_eq!(page("/clusters").await, "{\"<script>\":1}");
        // The control: two reasons are two lines.
        readiness.hold("policy", "pending");
        assert_eq!(page("/readyz").await.lines().count(), 2);
    }

    #[test]
    fn readiness_and_missing_content_have_their_status() {
        let readiness = Readiness::default();
        let content = DebugServer::builder().readiness(readiness.clone());
        let host = ("host", "localhost");
        assert_eq!(ask(&content, "HEAD", "/readyz", &[host]), StatusCode::OK);
        readiness.hold("policy", "pending");
        assert_eq!(ask(&content, "GET", "/readyz", &[host]), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask(&content, "GET", "/clusters", &[host]), StatusCode::NOT_FOUND);
        assert_eq!(ask(&content, "GET", "/etc/passwd", &[host]), StatusCode::NOT_FOUND);
        assert_eq!(ask(&content, "GET", "/", &[host]), StatusCode::OK);
    }
}
