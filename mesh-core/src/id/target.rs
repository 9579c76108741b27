//! What an application dials: `reviews:9080`, `api.example.com:443`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;
use std::sync::Arc;

/// A dialled destination: host (lower case, no trailing dot) and port, exactly as the application
/// named it. Completing short names is the control plane's work, for it knows the caller's namespace.
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
    // One string `host:port`: it is the xDS resource name and the key of every table.
    text: Arc<str>,
    host_len: usize,
    port: u16,
}

impl Target {
    /// Builds a target.
    ///
    /// # Errors
    /// The host is empty, longer than 253 bytes, or holds anything but letters, digits, `.`, `-`, `_`
    /// (or a bracketed IPv6 address); or the port is 0.
    pub fn new(host: &str, port: u16) -> Result<Self, InvalidTarget> {
        let trimmed = host.strip_suffix('.').unwrap_or(host);
        let invalid = |reason| InvalidTarget { input: format!("{host}:{port}"), reason };
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
        Ok(Self { text, host_len: trimmed.len(), port })
    }

    /// The host part, lower case.
    pub fn host(&self) -> &str {
        &self.text[..self.host_len]
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, the name under which the listener is asked for over xDS.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

fn is_bracketed_ipv6(host: &str) -> bool {
    let inner = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
}

impl FromStr for Target {
    type Err = InvalidTarget;

    fn from_str(text: &str) -> Result<Self, InvalidTarget> {
        let invalid = |reason| InvalidTarget { input: text.to_owned(), reason };
        let (host, port) = text.rsplit_once(':').ok_or_else(|| invalid("a port is needed, as in reviews:9080"))?;
        let port = port.parse().map_err(|_| invalid("the port must be 1 to 65535"))?;
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
}
