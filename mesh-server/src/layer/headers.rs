//! What the server reads from a request's headers and what it takes away. Pure.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header};

use mesh_core::context::{self, RETRIED};
use mesh_core::identity::PeerIdentity;
use mesh_core::matcher::are_twins;
use mesh_core::policy::{InboundListener, InboundTls, Underscores, is_of_peer, is_reserved_header};
use mesh_core::retry::grpc_status_text;

use super::target::Unsettled;
use crate::body::with_trailers;

/// What the mesh wants to know of a request's headers.
#[derive(Default)]
pub(super) struct Seen {
    /// Whether the message is gRPC.
    pub(super) grpc: bool,
    /// The time the caller still waits: `grpc-timeout`, else Envoy's `x-envoy-expected-rq-timeout-ms`. What cannot be
    /// read counts as absent.
    pub(super) timeout: Option<Duration>,
    /// How many `Host` there are.
    pub(super) hosts: usize,
    /// There is a `Connection`.
    pub(super) connection: bool,
    /// How many values of headers came.
    pub(super) count: usize,
}

/// Takes away what only the mesh may set, makes one `Cookie` of several, has secrets kept out of what is printed, and
/// tells what else is there: one walk, for a request has few headers, and a look-up for each that might be among them costs
/// more than all of them.
pub(super) fn read(headers: &mut HeaderMap) -> Seen {
    let mut seen = Seen { count: headers.len(), ..Seen::default() };
    let (mut kind, mut grpc, mut expected, mut strip, mut cookies) = (None, None, None, false, 0);
    for (name, value) in headers.iter_mut() {
        if is_secret(name) {
            value.set_sensitive(true);
            cookies += usize::from(*name == header::COOKIE);
            continue;
        }
        let value = &*value;
        if *name == header::CONTENT_TYPE {
            kind.get_or_insert(value);
        } else if *name == header::HOST {
            seen.hosts += 1;
        } else if *name == header::CONNECTION {
            seen.connection = true;
        } else if *name == context::GRPC_TIMEOUT {
            grpc.get_or_insert(value);
        } else if *name == context::EXPECTED_TIMEOUT {
            expected = Some(value);
        } else {
            strip |= is_stripped(name);
        }
    }
    seen.grpc = kind.is_some_and(context::is_grpc);
    seen.timeout = match grpc {
        Some(value) => context::grpc_timeout(value),
        None => expected.and_then(context::expected_timeout),
    };
    if strip {
        remove(headers, is_stripped);
    }
    if cookies > 1 {
        join_cookies(headers);
    }
    seen
}

/// Takes out of a request's trailers what nobody may tell an application that adds them to its headers: what only the mesh
/// sets or reads, what lets in (RFC 9110, section 6.5.1), and the headers that the filters have `written` or taken away; with
/// `underscores` every name that has one.
pub(crate) fn read_trailers(trailers: &mut HeaderMap, written: &[HeaderName], underscores: bool) {
    let own = |name: &HeaderName| written.iter().any(|own| own == name || are_twins(own, name));
    let other = |name: &HeaderName| underscores && has_underscore(name);
    remove(trailers, |name| is_reserved_header(name) || is_secret(name) || own(name) || other(name));
}

/// Does with headers whose names have an underscore what the listener says.
///
/// # Errors
/// It says that there may be none, and there is one.
pub(super) fn judge_underscores<B: Send + 'static>(
    request: &mut Request<B>,
    listener: Option<&InboundListener>,
) -> Result<(), Unsettled> {
    let action = listener.map_or(Underscores::Allow, |listener| listener.limits.underscores);
    match action {
        Underscores::Allow => return Ok(()),
        Underscores::Reject if request.headers().keys().any(has_underscore) => return Err(Unsettled::Underscore),
        Underscores::Reject => {}
        Underscores::Drop => remove(request.headers_mut(), has_underscore),
    }
    if let Some(body) = with_trailers(request) {
        body.withhold_underscores();
    }
    Ok(())
}

fn has_underscore(name: &HeaderName) -> bool {
    name.as_str().contains('_')
}

fn remove(headers: &mut HeaderMap, which: impl Fn(&HeaderName) -> bool) {
    let names: Vec<_> = headers.keys().filter(|name| which(name)).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// HTTP/2 may cut one `Cookie` in pieces (RFC 9113, section 8.2.3): they are put together before anybody decides, so that
/// nobody cuts it where a rule looks. Those of HTTP/1.1, which should not be several, are read in the same way, as Envoy does.
#[cold]
fn join_cookies(headers: &mut HeaderMap) {
    let crumbs: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let joined = HeaderValue::from_maybe_shared(Bytes::from(crumbs.join(&b"; "[..])));
    let mut joined = joined.expect("what values are made of makes a value");
    joined.set_sensitive(true);
    headers.insert(header::COOKIE, joined);
}

/// Whether a header may hold what lets its reader in elsewhere.
fn is_secret(name: &HeaderName) -> bool {
    *name == header::AUTHORIZATION || *name == header::COOKIE || *name == header::PROXY_AUTHORIZATION
}

/// Whether nobody but the mesh may say it. A twin of the mark of a retry is nobody's word.
fn is_stripped(name: &HeaderName) -> bool {
    is_of_peer(name) || are_twins(&RETRIED, name)
}

/// Whether the word of a request's peer counts that its request is a retry. Where it could have proved who it is and did
/// not, it is nobody's of the mesh: with it anybody could turn off the retries of all that is called for its request.
pub(super) fn is_believed(peer: Option<&PeerIdentity>, listener: Option<&InboundListener>) -> bool {
    peer.is_some_and(|peer| peer.spiffe_id.is_some())
        || listener.is_none_or(|listener| listener.tls == InboundTls::Disable)
}

/// Whether an answer says by its head that the request failed.
pub(super) fn is_failure(status: StatusCode, headers: &HeaderMap) -> bool {
    status.is_server_error() || grpc_status(headers).is_some_and(|status| status != 0)
}

/// Whether the message is gRPC (not gRPC-Web, whose status is inside the body).
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    // By a walk: gRPC's clients say it among the first, and a look-up costs as much as ten of them.
    let kind = headers.iter().find(|(name, _)| **name == header::CONTENT_TYPE);
    kind.is_some_and(|(_, value)| context::is_grpc(value))
}

/// The gRPC status in headers or trailers; one that gRPC does not know is 2 (unknown), as its clients
/// read it.
pub(crate) fn grpc_status(headers: &HeaderMap) -> Option<i32> {
    let code = grpc_status_text(headers)?.parse().unwrap_or(2);
    Some(if (0..=16).contains(&code) { code } else { 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(HeaderName::from_static(name), HeaderValue::from_static(value))])
    }

    #[test]
    fn timeouts_are_read_as_specified() {
        let grpc = |text| read(&mut headers("grpc-timeout", text)).timeout;
        assert_eq!(grpc("250m"), Some(Duration::from_millis(250)));
        assert_eq!(grpc("1s"), None);
        let envoy = |text| read(&mut headers("x-envoy-expected-rq-timeout-ms", text)).timeout;
        assert_eq!(envoy("15"), Some(Duration::from_millis(15)));
        assert_eq!(envoy("0"), None);
        assert_eq!(envoy("x"), None);
        assert_eq!(read(&mut HeaderMap::new()).timeout, None);
    }

    #[test]
    fn cookies_in_pieces_are_one_that_is_not_printed() {
        let mut headers = HeaderMap::new();
        for crumb in ["a=1", "", "b=2; c", "d=\u{e9}"] {
            headers.append(header::COOKIE, HeaderValue::from_bytes(crumb.as_bytes()).unwrap());
        }
        headers.append(header::ACCEPT, HeaderValue::from_static("a"));
        headers.append(header::ACCEPT, HeaderValue::from_static("b"));
        assert_eq!(read(&mut headers).count, 6);
        let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().collect();
        assert_eq!(cookies, ["a=1; ; b=2; c; d=\u{e9}".as_bytes()]);
        assert!(cookies[0].is_sensitive() && headers.get_all(header::ACCEPT).iter().count() == 2);
    }

    #[test]
    fn unknown_grpc_status_is_unknown() {
        assert_eq!(grpc_status(&headers("grpc-status", "5")), Some(5));
        assert_eq!(grpc_status(&headers("grpc-status", "99")), Some(2));
        assert_eq!(grpc_status(&headers("grpc-status", "x")), Some(2));
        assert_eq!(grpc_status(&HeaderMap::new()), None);
    }
}
