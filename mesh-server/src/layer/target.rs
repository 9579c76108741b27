//! Settles what a request asks for before anybody decides on it: one path, one authority, no header that another
//! one may take away. Policy and application see the result.

use std::borrow::Cow;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderValue, Method, Request, header};

use mesh_core::matcher::PathCondition;
use mesh_core::policy::PathMatch;
use mesh_core::target::{EncodedSlash, MalformedTarget, normalize_authority, normalize_path};

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
/// which then has no `Host` beside it that says something else. Most requests are not changed.
///
/// # Errors
/// The request has more than one meaning. It is unchanged then.
pub(super) fn settle<B>(request: &mut Request<B>, seen: &Seen, slashes: &Slashes) -> Result<(), Unsettled> {
    let (authority, host) = settled_authority(request, seen.host)?;
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
    fn of(given: &str) -> Result<Self, MalformedTarget> {
        Ok(match normalize_authority(given)? {
            Cow::Borrowed(_) => Self::Stays,
            Cow::Owned(normal) => Self::Becomes(normal.try_into().map_err(|_| MalformedTarget::Authority)?),
        })
    }
}

/// The authority to put in place of the URI's, if that is not in normal form, and what becomes of `Host`.
fn settled_authority<B>(request: &Request<B>, has_host: bool) -> Result<(Option<Authority>, Host), Unsettled> {
    let host = if has_host {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return Err(Unsettled::Hosts);
        }
        host
    } else {
        None
    };
    let host = host.map(|host| host.as_bytes());
    let Some(authority) = request.uri().authority() else {
        // An empty one says that there is none (RFC 9112, section 3.2).
        let host = match host.filter(|host| !host.is_empty()) {
            Some(host) => Host::of(std::str::from_utf8(host).map_err(|_| MalformedTarget::Authority)?)?,
            None => Host::Stays,
        };
        return Ok((None, host));
    };
    let normal = normalize_authority(authority.as_str())?;
    let host = match host {
        None => Host::Stays,
        Some(host) if host == normal.as_bytes() => Host::Stays,
        Some(host) if host == authority.as_str().as_bytes() => Host::of(authority.as_str())?,
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
    let Cow::Owned(mut path) = slashes.normal(given.path())? else { return Ok(None) };
    if grpc {
        return Err(Unsettled::Grpc);
    }
    if let Some(query) = given.query() {
        path.push('?');
        path.push_str(query);
    }
    Ok(Some(path.try_into().map_err(|_| MalformedTarget::Escape)?))
}
