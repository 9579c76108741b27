//! What an application dials: `reviews:9080`, `api.example.com:443`, `xds://authority/reviews:9080`.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;

/// A dialled destination: host (lower case, no trailing dot) and port, exactly as the application
/// named it. Completing short names is the control plane's work, for it knows the caller's namespace.
///
/// The text form is `host:port`, or with gRPC's scheme `xds:///host:port`. A target may carry the xDS
/// authority that is to be asked about it (gRFC A47); see [`Target::parse_uri`].
///
/// ```
/// use mesh_core::id::Target;
/// let target: Target = "Reviews:9080".parse()?;
/// assert_eq!(target.to_string(), "reviews:9080");
/// assert_eq!((target.host(), target.port()), ("reviews", 9080));
/// # Ok::<(), mesh_core::id::InvalidTarget>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Target {
    // One string: `host:port`, the xDS resource name and the key of every table; before it, if there is
    // an authority, `xds://authority/`.
    text: Arc<str>,
    prefix_len: usize,
    host_len: usize,
    port: u16,
}

const SCHEME: &str = "xds:";

impl Target {
    /// Builds a target.
    ///
    /// # Errors
    /// The host is empty, longer than 253 bytes, or holds anything but letters, digits, `.`, `-`, `_`
    /// (or a bracketed IPv6 address); or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Self, InvalidTarget> {
        let trimmed = host.strip_suffix('.').unwrap_or(host);
        let invalid = |reason| InvalidTarget::new(format!("{host}:{port}"), reason);
        if trimmed.is_empty() || trimmed.len() > 253 {
            return Err(invalid("the host must have 1 to 253 characters"));
        }
        if port == 0 {
            return Err(invalid("the port must be 1 to 65535"));
        }
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        if !is_bracketed_ipv6(trimmed) && !trimmed.bytes().all(allowed) {
            return Err(invalid(
                "the host may hold letters, digits, '.', '-' and '_', or be an IPv6 address in brackets",
            ));
        }
        let text: Arc<str> = format!("{}:{port}", trimmed.to_ascii_lowercase()).into();
        Ok(Self { text, prefix_len: 0, host_len: trimmed.len(), port })
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
    /// As [`Target::new`], or the authority holds a character that a URI's authority may not.
    pub fn parse_uri(text: &str) -> Result<Self, InvalidTarget> {
        let (authority, rest) = split_uri(text);
        let (host, port) =
            rest.rsplit_once(':').ok_or_else(|| InvalidTarget::new(text, "a port is needed, as in reviews:9080"))?;
        let port = port.parse().map_err(|_| InvalidTarget::new(text, "the port must be 1 to 65535"))?;
        let target = Self::new(host, port)?;
        if authority.is_empty() { Ok(target) } else { target.with_authority(authority) }
    }

    /// The same destination, asked of an xDS authority (gRFC A47).
    ///
    /// # Errors
    /// The authority is empty or holds anything but letters, digits and `-._~!$&'()*+,;=:@`.
    pub fn with_authority(&self, authority: &str) -> Result<Self, InvalidTarget> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&b);
        if authority.is_empty() || !authority.bytes().all(allowed) {
            let input = format!("{SCHEME}//{authority}/{}", self.as_str());
            return Err(InvalidTarget::new(input, "its authority may hold letters, digits and -._~!$&'()*+,;=:@"));
        }
        let prefix = format!("{SCHEME}//{authority}/");
        let text = format!("{prefix}{}", self.as_str()).into();
        Ok(Self { text, prefix_len: prefix.len(), host_len: self.host_len, port: self.port })
    }

    /// The xDS authority to ask, if one was named.
    pub fn authority(&self) -> Option<&str> {
        self.text[..self.prefix_len].strip_prefix(SCHEME)?.strip_prefix("//")?.strip_suffix('/')
    }

    /// The host part, lower case.
    pub fn host(&self) -> &str {
        &self.as_str()[..self.host_len]
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, the name under which the listener is asked for over xDS.
    pub fn as_str(&self) -> &str {
        &self.text[self.prefix_len..]
    }
}

/// The authority, empty if there is none, and the rest of `xds://authority/rest`, `xds:rest` or `rest`.
fn split_uri(text: &str) -> (&str, &str) {
    let Some(rest) = text.strip_prefix(SCHEME) else { return ("", text) };
    match rest.strip_prefix("//") {
        Some(rest) => rest.split_once('/').unwrap_or((rest, "")),
        None => ("", rest.strip_prefix('/').unwrap_or(rest)),
    }
}

fn is_bracketed_ipv6(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
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
}
