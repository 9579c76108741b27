//! What an application dials: `reviews:9080`, `xds://authority/reviews:9080`, `dns:///api.example.com:443`,
//! `static:10.0.0.1:80,10.0.0.2:80`.

use std::borrow::Cow;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// A dialled destination: host (lower case) and port, exactly as the application
/// named it. Completing short names is the control plane's work, for it knows the caller's namespace.
///
/// A dot at the end of a name says that it is complete: [DNS](Target::dns_name) is asked for it with the dot, and looks for it
/// in no search domain. To everybody else the host has none, and the destination is another one than that of the name without it.
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
    // One string, the key of every table; before it, if there is an authority to ask, `xds://authority/`. Behind it `host:port`
    // once more where it was dialled with more than others are to see: a last dot, a zone.
    text: Arc<str>,
    // Small numbers: a large mesh has several copies of ten thousand targets.
    name_begin: u32,
    name_end: u32,
    // Where `host:port` begins, behind the scheme or behind the name.
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
        let dialled = checked_host(host).map_err(invalid)?;
        if port == 0 {
            return Err(invalid(BAD_PORT));
        }
        Ok(Self::of("", Scheme::Mesh, &dialled, relative(&dialled), port, ""))
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
        Ok(Self::of(&prefix, Scheme::Mesh, self.dns_name(), self.host(), self.port, ""))
    }

    /// The xDS authority to ask, if one was named.
    pub fn authority(&self) -> Option<&str> {
        self.text[..self.name_begin as usize].strip_prefix(XDS)?.strip_prefix("//")?.strip_suffix('/')
    }

    /// `dialled` is the host as it is in the name, and `host` what others see of it. `port` 0 is left out; `rest` follows it.
    /// `xds` is `xds://authority/` or empty.
    fn of(xds: &str, scheme: Scheme, dialled: &str, host: &str, port: u16, rest: &str) -> Self {
        let port_text = if port == 0 { String::new() } else { format!(":{port}") };
        let mut text = format!("{xds}{}{dialled}{port_text}{rest}", scheme.prefix());
        let (name_begin, name_end) = (xds.len() as u32, text.len() as u32);
        let host_begin = if host == dialled {
            xds.len() + scheme.prefix().len()
        } else {
            text.push_str(host);
            text.push_str(&port_text);
            name_end as usize
        };
        // Hosts have 253 characters at most; what is before them nobody makes so long.
        let (host_begin, host_len) = (host_begin as u32, host.len() as u16);
        let host_port_len = host_len + port_text.len() as u16;
        Self { text: text.into(), name_begin, name_end, host_begin, host_port_len, host_len, port, scheme }
    }

    fn dns(name: &str) -> Result<Self, &'static str> {
        match name.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                let port = port.parse().ok().filter(|port| *port != 0).ok_or(BAD_PORT)?;
                let dialled = checked_host(host)?;
                Ok(Self::of("", Scheme::Dns, &dialled, relative(&dialled), port, ""))
            }
            _ if name.starts_with('_') => {
                let dialled = checked_host(name)?;
                Ok(Self::of("", Scheme::Dns, &dialled, relative(&dialled), 0, ""))
            }
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
        let dialled = match first {
            // A zone is of this host alone: it is dialled with it, and nobody else is told of it.
            SocketAddr::V6(v6) if v6.scope_id() != 0 => format!("[{}%{}]", v6.ip(), v6.scope_id()),
            _ => host.clone(),
        };
        Ok(Self::of("", Scheme::Static, &dialled, &host, first.port(), &rest))
    }

    /// Who knows where it is.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host part, lower case and without a dot at its end; of a static target its first address, without its zone.
    pub fn host(&self) -> &str {
        &self.tail()[..usize::from(self.host_len)]
    }

    /// The host part as DNS is to be asked for it: with the dot at its end, if it was dialled with one.
    pub fn dns_name(&self) -> &str {
        let dialled = &self.as_str()[self.scheme.prefix().len()..];
        let length = usize::from(self.host_len);
        match dialled.as_bytes().get(length) {
            Some(b'.') => &dialled[..=length],
            _ => self.host(),
        }
    }

    /// The port; 0 for SRV names, whose records tell it.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What requests carry as their authority: `host:port`, for SRV names `host`. Of a destination of the mesh it is the name
    /// under which the listener is asked for over xDS.
    pub fn host_port(&self) -> &str {
        &self.tail()[..usize::from(self.host_port_len)]
    }

    /// The addresses of a static target; none for others.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        let list = if self.scheme == Scheme::Static { &self.as_str()[self.scheme.prefix().len()..] } else { "" };
        list.split(',').filter_map(|address| address.parse().ok())
    }

    /// The whole target: its name in every table.
    pub fn as_str(&self) -> &str {
        &self.text[self.name_begin as usize..self.name_end as usize]
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

/// A host in the form in which it is kept. Names keep the dot at their end; an address has none.
fn checked_host(host: &str) -> Result<String, &'static str> {
    let trimmed = relative(host);
    if trimmed.is_empty() || trimmed.len() > 253 || trimmed.ends_with('.') {
        return Err("the host must have 1 to 253 characters, and behind them one dot at most");
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if !is_bracketed_ipv6(trimmed) && !trimmed.bytes().all(allowed) {
        return Err("the host may hold letters, digits, '.', '-' and '_', or be an IPv6 address in brackets");
    }
    let is_address = trimmed.starts_with('[') || trimmed.parse::<Ipv4Addr>().is_ok();
    Ok(if is_address { trimmed } else { host }.to_ascii_lowercase())
}

/// A host without the dot at its end.
fn relative(host: &str) -> &str {
    host.strip_suffix('.').unwrap_or(host)
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
        f.write_str(&self.text[..self.name_end as usize])
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
            ("Reviews.default.svc.cluster.local.:80", Some("reviews.default.svc.cluster.local.:80")),
            ("10.0.0.1:1", Some("10.0.0.1:1")),
            ("10.0.0.1.:1", Some("10.0.0.1:1")),
            ("[::1]:65535", Some("[::1]:65535")),
            ("reviews", None),
            ("reviews:0", None),
            ("reviews:65536", None),
            (":80", None),
            (".:80", None),
            ("reviews..:80", None),
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
            // A zone is for whoever connects.
            (
                "static:[fe80::1%2]:80,[fe80::2%3]:80",
                Some((Scheme::Static, "static:[fe80::1%2]:80,[fe80::2%3]:80", "[fe80::1]:80", "[fe80::1]", 80)),
            ),
            // A dot at the end is for DNS.
            ("dns:///Db.test.:80", Some((Scheme::Dns, "dns:///db.test.:80", "db.test:80", "db.test", 80))),
            ("dns:///_grpc._tcp.a.", Some((Scheme::Dns, "dns:///_grpc._tcp.a.", "_grpc._tcp.a", "_grpc._tcp.a", 0))),
            ("dns:///10.0.0.1.:80", Some((Scheme::Dns, "dns:///10.0.0.1:80", "10.0.0.1:80", "10.0.0.1", 80))),
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
            let Some(target) = target else { continue };
            assert_eq!(target.to_string().parse::<Target>().unwrap(), target, "{text}");
        }
        for list in ["127.0.0.1:1,[::1]:2", "[fe80::1%2]:80,[fe80::1%3]:80"] {
            let target: Target = format!("static:{list}").parse().unwrap();
            assert_eq!(target.addresses().map(|a| a.to_string()).collect::<Vec<_>>().join(","), list);
        }
        assert_eq!("reviews:80".parse::<Target>().unwrap().addresses().count(), 0);
    }

    #[test]
    fn a_dot_at_the_end_is_seen_by_dns_alone() {
        for (text, want) in [
            ("Db.test.:80", ("db.test.", "db.test:80")),
            ("db.test:80", ("db.test", "db.test:80")),
            ("dns:///db.test.:80", ("db.test.", "db.test:80")),
            ("dns:///db.test:80", ("db.test", "db.test:80")),
            ("dns:///_grpc._tcp.a.", ("_grpc._tcp.a.", "_grpc._tcp.a")),
            ("dns:///_grpc._tcp.a", ("_grpc._tcp.a", "_grpc._tcp.a")),
            ("xds:///db.test.:80", ("db.test.", "db.test:80")),
            ("xds://east/db.test.:80", ("db.test.", "db.test:80")),
            ("[::1].:80", ("[::1]", "[::1]:80")),
            ("static:10.0.0.1:80", ("10.0.0.1", "10.0.0.1:80")),
        ] {
            let target = Target::parse_uri(text).unwrap();
            assert_eq!((target.dns_name(), target.host_port()), want, "{text}");
            assert_eq!(Target::parse_uri(&target.to_string()).unwrap(), target, "{text}");
        }
        let [with, without] = ["db.test.:80", "db.test:80"].map(|text| text.parse::<Target>().unwrap());
        assert_ne!(with, without);
        assert_ne!(with.as_str(), without.as_str());
    }
}
