//! Session affinity: requests of one session go to one endpoint, which the client remembers in a cookie
//! or a header (gRFC A55, A60; Envoy `stateful_session`).
//!
//! The value is the base64 of the endpoint's address; where the route splits over several clusters, of
//! `address;cluster:name`, so that the session stays in its cluster too.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderValue};

use super::hash::{cookie, set_cookie};
use crate::id::ClusterName;
use crate::policy::{Address, SessionSource, StatefulSession};

/// Where a session is pinned to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pinned {
    /// The endpoint.
    pub address: Address,
    /// Its cluster, if the route splits over several.
    pub cluster: Option<ClusterName>,
}

/// What a request says of its session. `None` if it has none yet, if what it says makes no sense, or if
/// its path is outside of the cookie's.
pub fn read(policy: &StatefulSession, headers: &HeaderMap, path: &str) -> Option<Pinned> {
    let value = match &policy.source {
        SessionSource::Cookie { name, .. } => cookie(headers, name).filter(|_| applies(policy, path))?,
        SessionSource::Header(name) => headers.get(name)?.to_str().ok()?,
    };
    let text = String::from_utf8(STANDARD.decode(value).ok()?).ok()?;
    let (addresses, cluster) = match text.split_once(";cluster:") {
        Some((addresses, cluster)) => (addresses, Some(ClusterName::new(cluster))),
        None => (text.as_str(), None),
    };
    // Of an endpoint with several addresses the first is its name.
    let address = parse(addresses.split(',').next()?)?;
    Some(Pinned { address, cluster })
}

/// Whether requests of this path have sessions (RFC 6265, section 5.1.4).
pub fn applies(policy: &StatefulSession, path: &str) -> bool {
    let SessionSource::Cookie { path: own, .. } = &policy.source else { return true };
    let Some(rest) = path.strip_prefix(own.as_str()) else { return false };
    rest.is_empty() || own.is_empty() || own.ends_with('/') || rest.starts_with('/')
}

/// Tells the client in the answer's headers where its session is now.
pub fn write(policy: &StatefulSession, pinned: &Pinned, headers: &mut HeaderMap) {
    let text = match &pinned.cluster {
        Some(cluster) => format!("{};cluster:{cluster}", pinned.address),
        None => pinned.address.to_string(),
    };
    let value = STANDARD.encode(text);
    match &policy.source {
        SessionSource::Cookie { name, path, ttl } => {
            if let Some(line) = set_cookie(name, &value, path, *ttl) {
                headers.append(SET_COOKIE, line);
            }
        }
        SessionSource::Header(name) => {
            // Base64 is always a header value.
            if let Ok(value) = HeaderValue::try_from(value) {
                headers.insert(name.clone(), value);
            }
        }
    }
}

fn parse(text: &str) -> Option<Address> {
    if let Ok(socket) = text.parse() {
        return Some(Address::Socket(socket));
    }
    if let Some(path) = text.strip_prefix("unix:") {
        return Some(Address::Unix(path.into()));
    }
    let (host, port) = text.rsplit_once(':')?;
    Some(Address::Name { host: host.into(), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderName;
    use http::header::COOKIE;

    use super::*;

    fn by_cookie(path: &str) -> StatefulSession {
        let source = SessionSource::Cookie { name: "sid".into(), path: path.into(), ttl: Duration::from_secs(120) };
        StatefulSession { source, strict: false }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let addresses = ["10.0.0.1:80", "[fd00::1]:80", "unix:/run/a.sock", "db.example:5432"];
        let header = SessionSource::Header(HeaderName::from_static("x-session"));
        for policy in [by_cookie("/"), StatefulSession { source: header, strict: false }] {
            for (text, cluster) in
                addresses.into_iter().zip([None, Some(ClusterName::new("outbound|80|v1|a"))].into_iter().cycle())
            {
                let pinned = Pinned { address: parse(text).unwrap(), cluster };
                let mut answer = HeaderMap::new();
                write(&policy, &pinned, &mut answer);
                let mut request = HeaderMap::new();
                if let Some(line) = answer.get(SET_COOKIE) {
                    let line = line.to_str().unwrap();
                    assert!(line.ends_with("; Max-Age=120; Path=/; HttpOnly"), "{line}");
                    request.insert(COOKIE, line.split(';').next().unwrap().parse().unwrap());
                } else {
                    request = answer;
                }
                assert_eq!(read(&policy, &request, "/x"), Some(pinned));
            }
        }
    }

    #[test]
    fn the_value_is_the_one_grpc_writes() {
        let pinned = Pinned { address: parse("10.0.0.1:80").unwrap(), cluster: Some("c".into()) };
        let mut answer = HeaderMap::new();
        write(&by_cookie(""), &pinned, &mut answer);
        let value = STANDARD.encode("10.0.0.1:80;cluster:c");
        assert_eq!(answer[SET_COOKIE], format!("sid={value}; Max-Age=120; HttpOnly"));
    }

    #[test]
    fn a_path_outside_of_the_cookies_has_no_session() {
        for (own, path, want) in [
            ("", "/a", true),
            ("/", "/a", true),
            ("/a", "/a", true),
            ("/a", "/a/b", true),
            ("/a", "/ab", false),
            ("/a/", "/a/b", true),
            ("/a/", "/a", false),
            ("/a", "/", false),
        ] {
            assert_eq!(applies(&by_cookie(own), path), want, "{own} {path}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_no_session() {
        for value in ["", "%%%", "AAAA", &STANDARD.encode("no port"), &STANDARD.encode("host:99999")] {
            let mut headers = HeaderMap::new();
            headers.insert(COOKIE, format!("sid={value}").parse().unwrap());
            assert_eq!(read(&by_cookie(""), &headers, "/"), None, "{value:?}");
        }
    }
}
