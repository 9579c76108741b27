//! What an application dials: `reviews:9080`, `xds://authority/reviews:9080`, `dns:///api.example.com:443`,
//! `static:10.0.0.1:80,10.0.0.2:80`.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// A dialled destination: host (lower case, no trailing dot) and port, exactly as the application
/// named it. Completing short names is the control plane's work, for it knows the caller's namespace.
///
/// The text form of a destination of the mesh is `host:port`, or with gRPC's scheme `xds:///host:port`. It may
/// carry the xDS authority that is to be asked about it (gRFC A47); see [`Target::parse_uri`]. Other schemes say
/// that no control plane is asked: see [`Scheme`].
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
    // One string, the key of every table and, without a scheme, the xDS resource name; before it, if there is
    // an authority to ask, `xds://authority/`.
    text: Arc<str>,
    // Small numbers: a large mesh has several copies of ten thousand targets.
    name_begin: u32,
    // Where `host:port` begins, behind the scheme.
    host_begin: u32,
    host_port_len: u16,
    host_len: u16,
    port: u16,
    scheme: Scheme,
}

const XDS: &str = "xds:";

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
        let invalid = |reason| InvalidTarget::new(format!("{host}:{port}"), reason);
        let host = checked_host(host).map_err(invalid)?;
        if port == 0 {
            return Err(invalid(BAD_PORT));
        }
        Ok(Self::of("", Scheme::Mesh, &host, port, ""))
    }

    /// Reads `xds://authority/host:port` beside every form that [`FromStr`] reads. That one refuses an
    /// authority, because it is of use only to those who pass it on to the source of configuration.
    ///
    /// ```
    /// use mesh_core::id::Target;
    /// let target = Target::parse_uri("xds://east/reviews:9080")?;
    /// assert_eq!((target.authority(), target.as_str()), (Some("east"), "reviews:9080"));
    /// # Ok::<(), mesh_core::id::InvalidTarget>(())
    /// ```
    ///
    /// # Errors
    /// As [`Target::new`], or the authority holds a character that a URI's authority may not, or what follows a
    /// scheme is not what [`Scheme`] says.
    pub fn parse_uri(text: &str) -> Result<Self, InvalidTarget> {
        let invalid = |reason| InvalidTarget::new(text, reason);
        if let Some(rest) = text.strip_prefix("dns://") {
            let other_server = "a DNS server cannot be named in a target; give one to the mesh's resolver";
            return Self::dns(rest.strip_prefix('/').ok_or_else(|| invalid(other_server))?).map_err(invalid);
        }
        // `static:80` is a host called static.
        if let Some(list) = text.strip_prefix("static:").filter(|list| list.parse::<u16>().is_err()) {
            return Self::fixed(list).map_err(invalid);
        }
        let (authority, rest) = split_uri(text);
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| invalid("a port is needed, as in reviews:9080"))?;
        let target = Self::new(host, port.parse().map_err(|_| invalid(BAD_PORT))?)?;
        if authority.is_empty() { Ok(target) } else { target.with_authority(authority) }
    }

    /// The same destination of the mesh, asked of an xDS authority (gRFC A47).
    ///
    /// # Errors
    /// The authority is empty or holds anything but letters, digits and `-._~!$&'()*+,;=:@`; or the target is
    /// none that a control plane is asked about.
    pub fn with_authority(&self, authority: &str) -> Result<Self, InvalidTarget> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
        let prefix = format!("{XDS}//{authority}/");
        let invalid = |reason| InvalidTarget::new(format!("{prefix}{}", self.as_str()), reason);
        if authority.is_empty() || !authority.bytes().all(allowed) {
            return Err(invalid("its authority may hold letters, digits and -._~!$&'()*+,;=:@"));
        }
        if self.scheme != Scheme::Mesh {
            return Err(invalid("only a destination of the mesh has an xDS authority"));
        }
        Ok(Self::of(&prefix, Scheme::Mesh, self.host(), self.port, ""))
    }

    /// The xDS authority to ask, if one was named.
    pub fn authority(&self) -> Option<&str> {
        self.text[..self.name_begin as usize].strip_prefix(XDS)?.strip_prefix("//")?.strip_suffix('/')
    }

    /// `port` 0 is left out; `rest` follows it. `xds` is `xds://authority/` or empty.
    fn of(xds: &str, scheme: Scheme, host: &str, port: u16, rest: &str) -> Self {
        let mut text = format!("{xds}{}{host}", scheme.prefix());
        let (name_begin, host_begin) = (xds.len(), text.len() - host.len());
        if port != 0 {
            text.push_str(&format!(":{port}"));
        }
        // Hosts have 253 characters at most; what is before them nobody makes so long.
        let host_port_len = (text.len() - host_begin) as u16;
        text.push_str(rest);
        let (name_begin, host_begin, host_len) = (name_begin as u32, host_begin as u32, host.len() as u16);
        Self { text: text.into(), name_begin, host_begin, host_port_len, host_len, port, scheme }
    }

    fn dns(name: &str) -> Result<Self, &'static str> {
        match name.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port != 0).ok_or(BAD_PORT)?;
                Ok(Self::of("", Scheme::Dns, &checked_host(host)?, port, ""))
            }
            _ if name.starts_with('_') => Ok(Self::of("", Scheme::Dns, &checked_host(name)?, 0, "")),
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
        Ok(Self::of("", Scheme::Static, &host, first.port(), &rest))
    }

    /// Who knows where it is.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host part, lower case; of a static target its first address.
    pub fn host(&self) -> &str {
        &self.tail()[..usize::from(self.host_len)]
    }

    /// The port; 0 for SRV names, whose records tell it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What requests carry as their authority: `host:port`, for SRV names `host`.
    pub fn host_port(&self) -> &str {
        &self.tail()[..usize::from(self.host_port_len)]
    }

    /// The addresses of a static target; none for others.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let list = if self.scheme == Scheme::Static { self.tail() } else { "" };
        list.split(',').filter_map(|address| address.parse().ok())
    }

    /// The whole target: its name in every table. Without a scheme it is `host:port`, the name under which
    /// the listener is asked for over xDS.
    pub fn as_str(&self) -> &str {
        &self.text[self.name_begin as usize..]
    }

    fn tail(&self) -> &str {
        &self.text[self.host_begin as usize..]
    }
}

/// The authority, empty if there is none, and the rest of `xds://authority/rest`, `xds:rest` or `rest`.
fn split_uri(text: &str) -> (&str, &str) {
    let Some(rest) = text.strip_prefix(XDS) else { return ("", text) };
    match rest.strip_prefix("//") {
        Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
        None => ("", rest.strip_prefix('/').unwrap_or(rest)),
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
        // An authority cannot be named here: nobody would ask it.
        match split_uri(text) {
            ("", _) => Self::parse_uri(text),
            _ => {
                Err(InvalidTarget::new(text, "an xDS authority cannot be named here; dial it through `Mesh::channel`"))
            }
        }
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
    reason: Cow<'static, str>,
}

impl InvalidTarget {
    /// Says why `input` cannot be dialled.
    pub fn new(input: impl Into<String>, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { input: input.into(), reason: reason.into() }
    }

    /// What was dialled.
    pub fn input(&self) -> &str {
        &self.input
    }
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
            ("xds:///Reviews:9080", Some("reviews:9080")),
            ("xds:reviews:9080", Some("reviews:9080")),
            ("xds:///reviews", None),
            ("xds://a/reviews:9080", None),
            ("xds://reviews:9080", None),
            ("xds:", None),
        ] {
            let target = text.parse::<Target>().ok();
            assert_eq!(target.as_ref().map(Target::as_str), want, "{text}");
        }
    }

    #[test]
    fn a47_an_authority_is_part_of_the_target_and_not_of_its_name() {
        let plain: Target = "reviews:9080".parse().unwrap();
        let east = Target::parse_uri("xds://east.example.com:1/Reviews:9080").unwrap();
        assert_eq!(east.authority(), Some("east.example.com:1"));
        assert_eq!((east.as_str(), east.host(), east.port()), ("reviews:9080", "reviews", 9080));
        assert_eq!(east.to_string(), "xds://east.example.com:1/reviews:9080");
        assert_eq!(plain.with_authority("east.example.com:1").unwrap(), east);
        assert_ne!(plain, east);
        assert_eq!(plain.authority(), None);
        assert_eq!(Target::parse_uri("xds:///reviews:9080").unwrap(), plain);
        for text in ["xds://a b/reviews:80", "xds://a%20b/reviews:80", "xds://east/reviews", "xds://east", "xds://"] {
            assert!(Target::parse_uri(text).is_err(), "{text}");
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
