//! Settles what a request asks for before anybody decides on it: one path, one authority, no header that another
//! one may take away. Policy and application see the result.

use std::borrow::Cow;
use std::sync::OnceLock;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, header};

use mesh_core::matcher::PathCondition;
use mesh_core::policy::PathMatch;
use mesh_core::target::{self, EncodedSlash, MalformedTarget, normalize_authority, normalize_path};

use super::headers::Seen;

/// Why a request has no single meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unsettled {
    #[error(transparent)]
    Target(#[from] MalformedTarget),
    #[error("there are several Host headers")]
    Hosts,
    #[error("Connection names a header that is not of one hop")]
    Connection,
    #[error("a header has an underscore in its name, and the listener says that none may")]
    Underscore,
    /// gRPC knows its methods by one spelling (CVE-2026-33186).
    #[error("the path of a gRPC request is not in its normal form")]
    Grpc,
}

/// Where an encoded slash may stand in a path.
#[derive(Debug)]
pub(crate) struct Slashes {
    // How paths are read: all in one way, so that what is decided of one is decided of what the application sees.
    read: EncodedSlash,
    // Where what is read as data may be that; `None` = everywhere.
    only_at: Option<Box<[PathCondition]>>,
}

impl Slashes {
    pub(crate) fn new(everywhere: EncodedSlash, at: &[PathMatch]) -> Self {
        if everywhere == EncodedSlash::Keep || at.is_empty() {
            return Self { read: everywhere, only_at: None };
        }
        let at = at.iter().map(|path| PathCondition::new(path, true)).collect();
        Self { read: EncodedSlash::Keep, only_at: Some(at) }
    }

    fn normal<'p>(&self, path: &'p str) -> Result<Cow<'p, str>, MalformedTarget> {
        let normal = normalize_path(path, self.read)?;
        if let Some(at) = &self.only_at
            && has_encoded_slash(&normal)
            && !at.iter().any(|path| path.holds(&normal))
        {
            return Err(MalformedTarget::EncodedSlash);
        }
        Ok(normal)
    }
}

/// Of a path in normal form, whose escapes are in upper case.
fn has_encoded_slash(path: &str) -> bool {
    // Most paths have no escape at all.
    path.contains('%') && (path.contains("%2F") || path.contains("%5C"))
}

/// The authority that the first request of a connection has, if that is in normal form: nearly always all of them have it,
/// and comparing costs a few instructions where reading a name costs ten for each byte.
#[derive(Default)]
pub(super) struct Usual(OnceLock<Box<str>>);

impl Usual {
    fn is(&self, authority: &[u8]) -> bool {
        self.0.get().is_some_and(|usual| usual.as_bytes() == authority)
    }

    fn normal<'a>(&self, authority: &'a str) -> Result<Cow<'a, str>, MalformedTarget> {
        if self.is(authority.as_bytes()) {
            return Ok(Cow::Borrowed(authority));
        }
        let normal = normalize_authority(authority)?;
        if let Cow::Borrowed(plain) = &normal
            && plain.len() <= LONGEST_USUAL
        {
            self.0.get_or_init(|| (*plain).into());
        }
        Ok(normal)
    }
}

/// A DNS name with a port. What is longer is no host's, and not held for the life of a connection.
const LONGEST_USUAL: usize = 253 + ":65535".len();

/// What `Connection` may name: it is no way to have a header taken away that somebody else relies on.
const OF_ONE_HOP: [&str; 9] = [
    "close",
    "keep-alive",
    "upgrade",
    "te",
    "trailer",
    "trailers",
    "transfer-encoding",
    "http2-settings",
    "proxy-connection",
];

/// Brings a request's path and authority to their normal form and leaves it one authority: the URI's where there is one,
/// which then has no `Host` beside it that says something else. Most requests are not changed. `usual` is their connection's.
///
/// # Errors
/// The request has more than one meaning. It is unchanged then.
pub(super) fn settle<B>(
    request: &mut Request<B>,
    seen: &Seen,
    slashes: &Slashes,
    usual: &Usual,
) -> Result<(), Unsettled> {
    let (authority, host) = settled_authority(request, seen.hosts, usual)?;
    if seen.connection {
        check_connection(request.headers())?;
    }
    let path = settled_path(request, seen.grpc, slashes)?;
    if path.is_some() || authority.is_some() {
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = path.or(parts.path_and_query);
        parts.authority = authority.or(parts.authority);
        // It had what takes another form, so what goes with that is there.
        *request.uri_mut() = http::Uri::from_parts(parts).map_err(|_| MalformedTarget::Relative)?;
    }
    match host {
        Host::Stays => {}
        Host::Goes => drop(request.headers_mut().remove(header::HOST)),
        Host::Becomes(host) => drop(request.headers_mut().insert(header::HOST, host)),
    }
    Ok(())
}

/// What becomes of the `Host` of a request.
enum Host {
    Stays,
    Goes,
    Becomes(HeaderValue),
}

impl Host {
    fn of(given: &str, usual: &Usual) -> Result<Self, MalformedTarget> {
        Ok(match usual.normal(given)? {
            Cow::Borrowed(_) => Self::Stays,
            Cow::Owned(normal) => Self::Becomes(normal.try_into().map_err(|_| MalformedTarget::Authority)?),
        })
    }
}

/// The authority to put in place of the URI's, if that is not in normal form, and what becomes of `Host`.
fn settled_authority<B>(
    request: &Request<B>,
    hosts: usize,
    usual: &Usual,
) -> Result<(Option<Authority>, Host), Unsettled> {
    if hosts > 1 {
        return Err(Unsettled::Hosts);
    }
    let host = if hosts == 1 { target::host(request.headers()).map(|host| host.as_bytes()) } else { None };
    let Some(authority) = request.uri().authority() else {
        // An empty one says that there is none (RFC 9112, section 3.2).
        let host = match host.filter(|host| !host.is_empty()) {
            Some(host) if usual.is(host) => Host::Stays,
            Some(host) => Host::of(std::str::from_utf8(host).map_err(|_| MalformedTarget::Authority)?, usual)?,
            None => Host::Stays,
        };
        return Ok((None, host));
    };
    let normal = usual.normal(authority.as_str())?;
    let host = match host {
        None => Host::Stays,
        Some(host) if host == normal.as_bytes() => Host::Stays,
        Some(host) if host == authority.as_str().as_bytes() => Host::of(authority.as_str(), usual)?,
        Some(_) => Host::Goes,
    };
    let authority = match normal {
        Cow::Borrowed(_) => None,
        Cow::Owned(normal) => Some(normal.try_into().map_err(|_| MalformedTarget::Authority)?),
    };
    Ok((authority, host))
}

fn check_connection(headers: &HeaderMap) -> Result<(), Unsettled> {
    for value in headers.get_all(header::CONNECTION) {
        for name in value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()) {
            if !OF_ONE_HOP.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes())) {
                return Err(Unsettled::Connection);
            }
        }
    }
    Ok(())
}

/// The path to put in place of the request's, if that is not in normal form.
fn settled_path<B>(request: &Request<B>, grpc: bool, slashes: &Slashes) -> Result<Option<PathAndQuery>, Unsettled> {
    let Some(given) = request.uri().path_and_query() else { return Ok(None) };
    // The two forms of a target that are no paths (RFC 9112, section 3.2).
    let asterisk = given.as_str() == "*" && request.method() == Method::OPTIONS;
    if asterisk || request.method() == Method::CONNECT && request.uri().authority().is_some() && given.as_str() == "/" {
        return Ok(None);
    }
    let normal = slashes.normal(given.path())?;
    // An empty path with a query is the root's (RFC 9110, section 4.2.3), and `path()` says so already; the text does not.
    if matches!(normal, Cow::Borrowed(_)) && given.as_str().starts_with('/') {
        return Ok(None);
    }
    let mut path = normal.into_owned();
    if grpc {
        return Err(Unsettled::Grpc);
    }
    if let Some(query) = given.query() {
        path.push('?');
        path.push_str(query);
    }
    Ok(Some(path.try_into().map_err(|_| MalformedTarget::Escape)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_authorities_than_the_usual_one_are_read_as_ever() {
        let normal = |usual: &Usual, of: &str| usual.normal(of).map(Cow::into_owned);
        for first in ["a.test:80", "A.test", "a..test", "", "a"] {
            let usual = Usual::default();
            let _ = normal(&usual, first);
            for authority in
                ["a.test:80", "A.test:80", "a.test:080", "a.test", "b.test:80", "a..test", "a@b", "", "[::1]:80"]
            {
                let expected = normalize_authority(authority).map(Cow::into_owned);
                assert_eq!(normal(&usual, authority), expected, "{authority} after {first}");
            }
        }
    }

    #[test]
    fn what_is_no_usual_authority_is_not_held() {
        let long = "a".repeat(LONGEST_USUAL + 1);
        for first in ["A.test", "a..test", long.as_str()] {
            let usual = Usual::default();
            let _ = usual.normal(first);
            assert_eq!(usual.0.get(), None, "{first}");
            assert_eq!(usual.normal("a.test"), Ok(Cow::Borrowed("a.test")));
            assert_eq!(usual.0.get().map(|held| &**held), Some("a.test"));
        }
    }
}
