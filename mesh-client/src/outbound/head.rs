//! The head of a request: as the application made it, as routes change it, and as each try sends it.

use http::header::HOST;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version, request};
use hyper::ext::Protocol;
use mesh_core::context::SentHost;
use mesh_core::matcher::{CompiledRoute, RequestView};
use mesh_core::policy::{AuthorityRewrite, Forward, WeightedCluster};
use mesh_core::target::host;
use smallvec::SmallVec;

use crate::body::Outgoing;
use crate::connect::{RequestHead, changes_protocol};
use crate::destination::Destination;

/// A request head that can be sent several times.
pub(crate) struct Head {
    pub(crate) method: Method,
    uri: Uri,
    pub(crate) headers: HeaderMap,
    // The first try takes them: copying them costs more than all else here, and hyper reads one only.
    extensions: Extensions,
    // That one: the `:protocol` of an extended CONNECT (RFC 8441).
    protocol: Option<Protocol>,
    // `Host` where the application gave none: shared with the destination. Empty until that is known.
    host: HeaderValue,
    // What `headers` was before the first try took it. A list, because most requests are sent once and
    // a map costs two allocations; a short one, because it is moved with the request.
    kept: SmallVec<[(HeaderName, HeaderValue); 4]>,
    // There may have been none to keep.
    is_kept: bool,
    taken: bool,
}

/// What one try says beside the request's own headers, and in place of those of the same name.
pub(crate) struct Said<'t>(SmallVec<[(&'t HeaderName, HeaderValue); 2]>);

impl<'t> Said<'t> {
    pub(crate) fn nothing() -> Self {
        Self(SmallVec::new())
    }

    /// In place of what was said under this name before.
    pub(crate) fn say(&mut self, name: &'t HeaderName, value: HeaderValue) {
        match self.0.iter_mut().find(|(said, _)| *said == name) {
            Some((_, said)) => *said = value,
            None => self.0.push((name, value)),
        }
    }
}

/// A WebSocket begins as a request of HTTP: `ws` is `http` and `wss` is `https` (RFC 6455, section 3).
fn ordinary(uri: Uri) -> Uri {
    let scheme = match uri.scheme() {
        Some(scheme) if scheme.as_str().eq_ignore_ascii_case("ws") => Scheme::HTTP,
        Some(scheme) if scheme.as_str().eq_ignore_ascii_case("wss") => Scheme::HTTPS,
        _ => return uri,
    };
    let mut parts = uri.into_parts();
    parts.scheme = Some(scheme);
    Uri::from_parts(parts).unwrap_or_default()
}

impl Head {
    pub(crate) fn new(parts: request::Parts) -> Self {
        let request::Parts { method, uri, headers, extensions, .. } = parts;
        let uri = ordinary(uri);
        let protocol = extensions.get::<Protocol>().cloned();
        let host = HeaderValue::from_static("");
        let (kept, is_kept, taken) = (SmallVec::new(), false, false);
        Self { method, uri, headers, extensions, protocol, host, kept, is_kept, taken }
    }

    /// The destination is known: its name is the `Host` unless the application wrote it in another way.
    pub(crate) fn goes_to(&mut self, destination: &Destination) {
        let host = destination.host();
        self.host = match self.uri.authority() {
            // Nearly always that is how the destination is called.
            Some(authority) if authority.as_str().as_bytes() != host.as_bytes() => {
                HeaderValue::from_str(authority.as_str()).unwrap_or_else(|_| host.clone())
            }
            _ => host.clone(),
        };
    }

    /// Whether it can be sent once more: what the first try took was kept.
    pub(crate) fn is_there(&self) -> bool {
        !self.taken || self.is_kept
    }

    /// The same head once more, for a request beside this one. The headers must not be taken.
    pub(crate) fn copy(&self) -> Self {
        let mut extensions = Extensions::new();
        if let Some(protocol) = self.protocol.clone() {
            extensions.insert(protocol);
        }
        Self {
            method: self.method.clone(),
            uri: self.uri.clone(),
            headers: self.headers.clone(),
            extensions,
            protocol: self.protocol.clone(),
            host: self.host.clone(),
            kept: SmallVec::new(),
            is_kept: false,
            taken: false,
        }
    }

    /// The authority sent: the `Host` header if the application set one, else the URI's.
    pub(crate) fn authority(&self) -> &str {
        host(&self.headers).unwrap_or(&self.host).to_str().unwrap_or_default()
    }

    pub(crate) fn uri(&self) -> &Uri {
        &self.uri
    }

    pub(crate) fn path_and_query(&self) -> &str {
        self.uri.path_and_query().map_or("/", PathAndQuery::as_str)
    }

    /// What of the request decides its route.
    pub(crate) fn view<'h>(&'h self, draw: &'h dyn Fn() -> u32) -> RequestView<'h> {
        RequestView {
            authority: self.authority(),
            method: &self.method,
            path_and_query: self.path_and_query(),
            scheme: self.scheme(),
            headers: &self.headers,
            draw,
        }
    }

    pub(crate) fn scheme(&self) -> &str {
        self.uri.scheme_str().unwrap_or("http")
    }

    /// The scheme, if it is none of HTTP's: whether it is to be encrypted nobody knows.
    pub(crate) fn foreign_scheme(&self) -> Option<&Scheme> {
        self.uri.scheme().filter(|scheme| **scheme != Scheme::HTTP && **scheme != Scheme::HTTPS)
    }

    /// Whether it is to travel over TLS. Without a scheme policy alone says so.
    pub(crate) fn is_https(&self) -> bool {
        self.uri.scheme() == Some(&Scheme::HTTPS)
    }

    /// Sends another authority. What cannot be one is ignored: policy is checked before it gets here.
    pub(crate) fn set_authority(&mut self, authority: &str) {
        if let Ok(value) = HeaderValue::from_str(authority) {
            self.headers.insert(HOST, value);
        }
    }

    /// Sends the authority that the request's extensions ask for, now that its route is chosen.
    pub(crate) fn show_host(&mut self) {
        if let Some(SentHost(host)) = self.extensions.remove() {
            self.headers.insert(HOST, host);
        }
    }

    /// Sends another path. What cannot be one is ignored.
    pub(crate) fn set_path(&mut self, path_and_query: String) {
        if let Ok(path) = PathAndQuery::from_maybe_shared(bytes::Bytes::from(path_and_query)) {
            let mut parts = std::mem::take(&mut self.uri).into_parts();
            parts.path_and_query = Some(path);
            parts.scheme = parts.scheme.or(Some(Scheme::HTTP));
            parts.authority = parts.authority.or_else(|| self.as_authority(&self.headers));
            self.uri = Uri::from_parts(parts).unwrap_or_default();
        }
    }

    /// Rewrites path and authority as the route says, and the entry of its split, if there is one.
    pub(crate) fn rewrite(&mut self, route: &CompiledRoute, forward: &Forward, share: Option<&WeightedCluster>) {
        let before = forward.rewrite.forwarded_host.then(|| self.authority().to_owned());
        let made = match (share.and_then(|share| share.authority.as_deref()), &forward.rewrite.authority) {
            (Some(authority), _) => Some(authority.to_owned()),
            (None, Some(AuthorityRewrite::Literal(authority))) => Some(authority.clone()),
            (None, Some(AuthorityRewrite::Header(name))) => {
                let value = self.headers.get(name).and_then(|value| value.to_str().ok());
                value.filter(|value| !value.is_empty()).map(str::to_owned)
            }
            // Of the path as it came, before it is rewritten.
            (None, Some(AuthorityRewrite::Path { .. })) => {
                route.rewrite_authority(self.uri().path()).filter(|made| !made.is_empty())
            }
            // Which endpoint it is, each try knows.
            (None, Some(AuthorityRewrite::Endpoint) | None) => None,
        };
        if let Some(path) = route.rewrite_path(self.path_and_query()) {
            self.set_path(path);
        }
        if let Some(authority) = made {
            self.set_authority(&authority);
        }
        if let Some(before) = before.and_then(|before| HeaderValue::from_str(&before).ok()) {
            self.headers.append(HeaderName::from_static("x-forwarded-host"), before);
        }
    }

    fn as_authority(&self, headers: &HeaderMap) -> Option<Authority> {
        Authority::try_from(headers.get(HOST).unwrap_or(&self.host).as_bytes()).ok()
    }

    /// Remembers the headers, so that the head can be sent again.
    pub(crate) fn keep(&mut self) {
        if !std::mem::replace(&mut self.is_kept, true) {
            self.kept.extend(self.headers.iter().map(|(name, value)| (name.clone(), value.clone())));
        }
    }

    /// Whether it may change its connection into something else than HTTP/1.1.
    pub(crate) fn changes_protocol(&mut self) -> bool {
        changes_protocol(&self.method, &mut self.headers)
    }

    /// The head of one try as HTTP/1.1 writes it, from where it is.
    pub(crate) fn written<'h>(&'h self, said: &'h Said<'_>) -> RequestHead<'h> {
        let Self { method, uri, headers, host, .. } = self;
        RequestHead { method, uri, headers, host: Some(host), beside: &said.0 }
    }

    /// What holds its headers, which are needed no more.
    pub(crate) fn room(&mut self) -> HeaderMap {
        std::mem::take(&mut self.headers)
    }

    /// The request of one try. Takes the headers along; [`again`](Self::again) brings them back.
    pub(crate) fn request(&mut self, http2: bool, said: Said<'_>, body: Outgoing) -> Request<Outgoing> {
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.extensions_mut() = std::mem::take(&mut self.extensions);
        let mut headers = std::mem::take(&mut self.headers);
        self.taken = true;
        if http2 {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = match headers.remove(HOST) {
                None if self.uri.authority().is_some() => self.uri.clone(),
                host => self.uri_with(&host.unwrap_or_else(|| self.host.clone())),
            };
        } else {
            *request.version_mut() = Version::HTTP_11;
            *request.uri_mut() = if self.method == Method::CONNECT {
                // The authority alone (RFC 9112, section 3.2.3).
                self.as_authority(&headers).map_or_else(Uri::default, Uri::from)
            } else {
                self.uri.path_and_query().cloned().map_or_else(Uri::default, Uri::from)
            };
            headers.entry(HOST).or_insert_with(|| self.host.clone());
        }
        for (name, value) in said.0 {
            headers.insert(name, value);
        }
        *request.headers_mut() = headers;
        request
    }

    /// The URI as HTTP/2 sends it, with this authority.
    fn uri_with(&self, host: &HeaderValue) -> Uri {
        let mut parts = self.uri.clone().into_parts();
        parts.scheme = parts.scheme.or(Some(Scheme::HTTP));
        parts.path_and_query = parts.path_and_query.or(Some(PathAndQuery::from_static("/")));
        parts.authority = Authority::try_from(host.as_bytes()).ok();
        Uri::from_parts(parts).unwrap_or_default()
    }

    /// Brings the headers back for another try, as they were kept.
    pub(crate) fn again(&mut self) {
        let taken = std::mem::take(&mut self.taken);
        // Otherwise they are as they were: the try ended before it took them, or wrote them from here.
        if std::mem::take(&mut self.is_kept) || taken {
            self.headers = std::mem::take(&mut self.kept).into_iter().collect_headers();
        }
        if taken && let Some(protocol) = self.protocol.clone() {
            self.extensions.insert(protocol);
        }
    }

    /// Brings the headers back from a request that was not sent.
    pub(crate) fn take_back<B>(&mut self, request: Request<B>) {
        let parts = request.into_parts().0;
        self.taken = false;
        self.extensions = parts.extensions;
        // As it was before the try changed it, if that is known.
        if std::mem::take(&mut self.is_kept) {
            self.headers = std::mem::take(&mut self.kept).into_iter().collect_headers();
            return;
        }
        self.headers = parts.headers;
        // HTTP/2 has it in the URI; `Host` stood for it if it is not the destination's.
        if parts.version == Version::HTTP_2
            && let Some(authority) = parts.uri.authority().filter(|of| of.as_str().as_bytes() != self.host.as_bytes())
        {
            self.set_authority(authority.as_str());
        }
    }
}

trait CollectHeaders {
    fn collect_headers(self) -> HeaderMap;
}

impl<I: Iterator<Item = (HeaderName, HeaderValue)>> CollectHeaders for I {
    /// Keeps several values of one name, which `collect` would drop.
    fn collect_headers(self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(self.size_hint().0);
        for (name, value) in self {
            headers.append(name, value);
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(host: Option<&str>) -> Head {
        let mut request = Request::get("http://a.test/x").body(()).unwrap();
        if let Some(host) = host {
            request.headers_mut().insert(HOST, HeaderValue::from_str(host).unwrap());
        }
        let mut head = Head::new(request.into_parts().0);
        head.host = HeaderValue::from_static("a.test");
        head
    }

    #[test]
    fn a_host_of_one_try_is_not_that_of_the_next() {
        for (http2, sent) in [(true, true), (true, false), (false, true), (false, false)] {
            // Without any header there is nothing to keep, which must be remembered too.
            let mut head = head(None);
            head.keep();
            head.set_authority("endpoint.test");
            head.keep();
            let request = head.request(http2, Said::nothing(), Outgoing::Empty);
            if sent {
                head.again()
            } else {
                head.take_back(request)
            }
            assert_eq!(head.authority(), "a.test", "{http2} {sent}");
        }
        // Over HTTP/1.1 it is written from where it is, and nothing is taken.
        let mut head = head(None);
        head.keep();
        head.set_authority("endpoint.test");
        head.again();
        assert_eq!(head.authority(), "a.test");
    }

    #[test]
    fn a_connect_over_http1_asks_for_an_authority_and_others_for_a_path() {
        for (host, authority) in [(None, "a.test"), (Some("b.test:443"), "b.test:443")] {
            let mut connect = head(host);
            connect.method = Method::CONNECT;
            assert_eq!(connect.request(false, Said::nothing(), Outgoing::Empty).uri(), authority);
            assert_eq!(head(host).request(false, Said::nothing(), Outgoing::Empty).uri(), "/x");
        }
    }

    #[test]
    fn a_request_that_was_not_sent_keeps_its_authority() {
        for (host, http2) in [(Some("b.test"), true), (Some("b.test"), false), (None, true), (None, false)] {
            let mut head = head(host);
            let request = head.request(http2, Said::nothing(), Outgoing::Empty);
            head.take_back(request);
            assert_eq!(head.authority(), host.unwrap_or("a.test"), "{host:?} {http2}");
        }
    }
}
