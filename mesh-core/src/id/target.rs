//! What an application dials: `reviews:9080`, `dns:///api.example.com:443`, `static:10.0.0.1:80,10.0.0.2:80`.

use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// A dialled destination: host (lower case, no trailing dot) and port, exactly as the application
/// named it. Completing short names is the control plane's work, for it knows the caller's namespace.
///
/// A scheme in front says that no control plane is asked: see [`Scheme`].
///
/// ```
/// use mesh_core::id::{Scheme, Target};
/// let target: Target = "Reviews:9080".parse()?;
/// assert_eq!(target.to_string(), "reviews:9080");
/// assert_eq!((target.host(), target.port()), ("reviews", 9080));
///
/// let target: Target = "dns:///reviews.example.com:9080".parse()?;
/// assert_eq!((target.scheme(), target.host_port()), (Scheme::Dns, "reviews.example.com:9080"));
/// # Ok::<(), mesh_core::id::InvalidTarget>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    // One string: it is the key of every table and, without a scheme, the xDS resource name.
    text: Arc<str>,
    scheme: Scheme,
    // Where the authority ends and, before it, the host; it begins after the scheme.
    authority_end: usize,
    host_len: usize,
    port: u16,
}

/// Who knows where a destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scheme {
    /// The mesh: `reviews:9080`.
    Mesh,
    /// DNS (gRPC's `dns` scheme): `dns:///reviews:9080`, every address of the name; or
    /// `dns:///_grpc._tcp.reviews`, without a port, the SRV records of the name (RFC 2782).
    Dns,
    /// The target itself: `static:10.0.0.1:80,10.0.0.2:80`.
    Static,
}

impl Scheme {
    fn prefix(self) -> &'static str {
        match self {
            Self::Mesh => "",
            Self::Dns => "dns:///",
            Self::Static => "static:",
        }
    }
}

impl Target {
    /// Builds a target of the mesh.
    ///
    /// # Errors
    /// The host is empty, longer than 253 bytes, or holds anything but letters, digits, `.`, `-`, `_`
    /// (or a bracketed IPv6 address); or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Self, InvalidTarget> {
        let invalid = |reason| InvalidTarget { input: format!("{host}:{port}"), reason };
        let host = checked_host(host).map_err(invalid)?;
        if port == 0 {
            return Err(invalid(BAD_PORT));
        }
        Ok(Self::of(Scheme::Mesh, &host, port, ""))
    }

    /// `port` 0 is left out; `rest` follows the authority.
    fn of(scheme: Scheme, host: &str, port: u16, rest: &str) -> Self {
        let mut text = format!("{}{host}", scheme.prefix());
        if port != 0 {
            text.push_str(&format!(":{port}"));
        }
        let authority_end = text.len();
        text.push_str(rest);
        Self { text: text.into(), scheme, authority_end, host_len: host.len(), port }
    }

    fn dns(name: &str) -> Result<Self, &'static str> {
        match name.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port != 0).ok_or(BAD_PORT)?;
                Ok(Self::of(Scheme::Dns, &checked_host(host)?, port, ""))
            }
            _ if name.starts_with('_') => Ok(Self::of(Scheme::Dns, &checked_host(name)?, 0, "")),
            _ => Err("a port is needed, as in dns:///reviews:9080; SRV names begin with '_' and have none"),
        }
    }

    fn fixed(list: &str) -> Result<Self, &'static str> {
        let parse = |text: &str| text.trim().parse::<SocketAddr>().ok().filter(|address| address.port() != 0);
        let mut addresses = list.split(',').map(parse);
        let wrong = "give addresses with ports, as in static:10.0.0.1:80,[::1]:80";
        let first = addresses.next().flatten().ok_or(wrong)?;
        let mut rest = String::new();
        for address in addresses {
            rest.push_str(&format!(",{}", address.ok_or(wrong)?));
        }
        let host = if first.is_ipv6() { format!("[{}]", first.ip()) } else { first.ip().to_string() };
        Ok(Self::of(Scheme::Static, &host, first.port(), &rest))
    }

    /// Who knows where it is.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host part, lower case; of a static target its first address.
    pub fn host(&self) -> &str {
        let begin = self.scheme.prefix().len();
        &self.text[begin..begin + self.host_len]
    }

    /// The port; 0 for SRV names, whose records tell it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What requests carry as their authority: `host:port`, for SRV names `host`.
    pub fn host_port(&self) -> &str {
        &self.text[self.scheme.prefix().len()..self.authority_end]
    }

    /// The addresses of a static target; none for others.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let list = if self.scheme == Scheme::Static { &self.text[self.scheme.prefix().len()..] } else { "" };
        list.split(',').filter_map(|address| address.parse().ok())
    }

    /// The whole target: its name in every table. Without a scheme it is `host:port`, the name under which
    /// the listener is asked for over xDS.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

const BAD_PORT: &str = "the port must be 1 to 65535";

/// A host in the form in which it is kept.
fn checked_host(host: &str) -> Result<String, &'static str> {
    let trimmed = host.strip_suffix('.').unwrap_or(host);
    if trimmed.is_empty() || trimmed.len() > 253 {
        return Err("the host must have 1 to 253 characters");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if !is_bracketed_ipv6(trimmed) && !trimmed.bytes().all(allowed) {
        return Err("the host may hold letters, digits, '.', '-' and '_', or be an IPv6 address in brackets");
    }
    Ok(trimmed.to_ascii_lowercase())
}

fn is_bracketed_ipv6(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let invalid = |reason| InvalidTarget { input: text.to_owned(), reason };
        if let Some(rest) = text.strip_prefix("dns://") {
            let other_server = "a DNS server cannot be named in a target; give one to the mesh's resolver";
            return Self::dns(rest.strip_prefix('/').ok_or_else(|| invalid(other_server))?).map_err(invalid);
        }
        // `static:80` is a host called static.
        if let Some(list) = text.strip_prefix("static:").filter(|list| list.parse::<u16>().is_err()) {
            return Self::fixed(list).map_err(invalid);
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| invalid("a port is needed, as in reviews:9080"))?;
        let port = port.parse().map_err(|_| invalid(BAD_PORT))?;
        Self::new(host, port)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A text that is not a dialled destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a destination: {reason}")]
pub struct InvalidTarget {
    input: String,
    reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_dialled_and_what_not() {
        for (text, want) in [
            ("Reviews.default:9080", Some("reviews.default:9080")),
            ("reviews.default.svc.cluster.local.:80", Some("reviews.default.svc.cluster.local:80")),
            ("10.0.0.1:1", Some("10.0.0.1:1")),
            ("[::1]:65535", Some("[::1]:65535")),
            ("reviews", None),
            ("reviews:0", None),
            ("reviews:65536", None),
            (":80", None),
            (".:80", None),
            ("::1:80", None),
            ("[]:80", None),
            ("[::1:80", None),
            ("[reviews]:80", None),
            ("a b:80", None),
            ("r\u{e9}views:80", None),
        ] {
            let target = text.parse::<Target>().ok();
            assert_eq!(target.as_ref().map(Target::as_str), want, "{text}");
        }
    }

    #[test]
    fn a_scheme_says_who_knows_the_destination() {
        for (text, want) in [
            ("dns:///Greeter:50051", Some((Scheme::Dns, "dns:///greeter:50051", "greeter:50051", "greeter", 50051))),
            ("dns:///[::1]:80", Some((Scheme::Dns, "dns:///[::1]:80", "[::1]:80", "[::1]", 80))),
            (
                "dns:///_grpc._tcp.a.b",
                Some((Scheme::Dns, "dns:///_grpc._tcp.a.b", "_grpc._tcp.a.b", "_grpc._tcp.a.b", 0)),
            ),
            (
                "static:127.0.0.1:1, [::1]:2",
                Some((Scheme::Static, "static:127.0.0.1:1,[::1]:2", "127.0.0.1:1", "127.0.0.1", 1)),
            ),
            ("static:[::1]:2", Some((Scheme::Static, "static:[::1]:2", "[::1]:2", "[::1]", 2))),
            // Hosts that are called like a scheme.
            ("dns:53", Some((Scheme::Mesh, "dns:53", "dns:53", "dns", 53))),
            ("static:80", Some((Scheme::Mesh, "static:80", "static:80", "static", 80))),
            ("dns://8.8.8.8/greeter:50051", None),
            ("dns:///greeter", None),
            ("dns:///greeter:0", None),
            ("dns:///", None),
            ("dns:///a/b:80", None),
            ("static:", None),
            ("static:greeter:80", None),
            ("static:127.0.0.1:1,", None),
            ("static:127.0.0.1:0", None),
            ("static:127.0.0.1", None),
        ] {
            let target = text.parse::<Target>().ok();
            let got = target.as_ref().map(|t| (t.scheme(), t.as_str(), t.host_port(), t.host(), t.port()));
            assert_eq!(got, want, "{text}");
        }
        let target: Target = "static:127.0.0.1:1,[::1]:2".parse().unwrap();
        assert_eq!(target.addresses().map(|a| a.to_string()).collect::<Vec<_>>(), ["127.0.0.1:1", "[::1]:2"]);
        assert_eq!("reviews:80".parse::<Target>().unwrap().addresses().count(), 0);
    }
}
