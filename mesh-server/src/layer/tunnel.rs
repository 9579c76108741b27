//! Extended CONNECT, which is how HTTP/2 asks for a WebSocket (RFC 8441): judged as the upgrade that HTTP/1.1 has for it, as
//! Envoy does, so that a rule for `GET` holds over both. The application gets what was sent. Pure.

use http::{HeaderValue, Method, Request, Version, header};
use hyper::ext::Protocol;

/// The protocol that an extended CONNECT asks for.
fn protocol<B>(request: &Request<B>) -> Option<&Protocol> {
    request.extensions().get::<Protocol>().filter(|_| request.version() == Version::HTTP_2)
}

/// Whether a request asks for another protocol, as it was sent or as it is judged: what follows is no body.
pub(super) fn is_tunnel<B>(request: &Request<B>) -> bool {
    request.method() == Method::CONNECT || protocol(request).is_some()
}

/// Makes of an extended CONNECT the GET with `Upgrade` that it stands for.
pub(super) fn as_upgrade<B>(request: &mut Request<B>) {
    if request.method() != Method::CONNECT {
        return;
    }
    // Bytes that no header may have do not come as a protocol; if they did, `Upgrade` would be there all the same.
    let of = |protocol: &Protocol| HeaderValue::from_bytes(protocol.as_ref());
    let Some(protocol) = protocol(request).map(of) else { return };
    let headers = request.headers_mut();
    headers.insert(header::UPGRADE, protocol.unwrap_or(HeaderValue::from_static("")));
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    *request.method_mut() = Method::GET;
}

/// Undoes that. HTTP/2 has neither of the two headers.
pub(super) fn as_sent<B>(request: &mut Request<B>) {
    if request.method() == Method::GET && protocol(request).is_some() {
        *request.method_mut() = Method::CONNECT;
        request.headers_mut().remove(header::UPGRADE);
        request.headers_mut().remove(header::CONNECTION);
    }
}
