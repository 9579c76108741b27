//! SPIFFE names (SPIFFE-ID 1.0): `spiffe://<trust domain>/<path>`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Serialize, Serializer};

/// A SPIFFE trust domain: lower-case letters, digits, `.`, `-`, `_`; at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Checks and takes a trust domain name.
    ///
    /// # Errors
    /// The text is empty, too long, or has a character outside the SPIFFE set.
    pub fn new(name: &str) -> Result<Self, InvalidSpiffeId> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
        if name.is_empty() || name.len() > 255 || !name.bytes().all(allowed) {
            return Err(InvalidSpiffeId {
                input: name.to_owned(),
                reason: "a trust domain has 1 to 255 of a-z, 0-9, '.', '-', '_'",
            });
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SPIFFE ID with a path (an ID without one names a signing authority and never a workload).
///
/// ```
/// use mesh_core::id::SpiffeId;
/// let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/reviews".parse()?;
/// assert_eq!(id.kubernetes(), Some(("default", "reviews")));
/// assert!("spiffe://cluster.local/ns/../sa/x".parse::<SpiffeId>().is_err());
/// # Ok::<(), mesh_core::id::InvalidSpiffeId>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    uri: Arc<str>,
    domain_len: usize,
}

const SCHEME: &str = "spiffe://";
/// SPIFFE-ID 1.0 section 2.3: implementations must support 2048 bytes and may refuse more.
const MAX_LEN: usize = 2048;

impl SpiffeId {
    /// The Kubernetes form `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`.
    ///
    /// # Errors
    /// A part is empty or holds a character that a SPIFFE path may not.
    pub fn for_service_account(domain: &TrustDomain, namespace: &str, account: &str) -> Result<Self, InvalidSpiffeId> {
        format!("{SCHEME}{domain}/ns/{namespace}/sa/{account}").parse()
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> TrustDomain {
        TrustDomain(self.uri[SCHEME.len()..SCHEME.len() + self.domain_len].into())
    }

    /// The path, with its leading slash.
    pub fn path(&self) -> &str {
        &self.uri[SCHEME.len() + self.domain_len..]
    }

    /// `(namespace, service account)` when the path has the Kubernetes form.
    pub fn kubernetes(&self) -> Option<(&str, &str)> {
        let mut parts = self.path().split('/').skip(1);
        match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some("ns"), Some(namespace), Some("sa"), Some(account), None) => Some((namespace, account)),
            _ => None,
        }
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        let invalid = |reason| InvalidSpiffeId { input: text.chars().take(256).collect(), reason };
        if text.len() > MAX_LEN {
            return Err(invalid("longer than 2048 bytes"));
        }
        let rest = text.strip_prefix(SCHEME).ok_or_else(|| invalid("it must begin with spiffe://"))?;
        let slash = rest.find('/').ok_or_else(|| invalid("a workload's ID needs a path"))?;
        let domain = TrustDomain::new(&rest[..slash])?;
        for segment in rest[slash + 1..].split('/') {
            if segment.is_empty() || segment == "." || segment == ".." {
                return Err(invalid("path segments may not be empty, '.' or '..'"));
            }
            if !segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
                return Err(invalid("path segments hold letters, digits, '.', '-', '_' only"));
            }
        }
        Ok(Self { uri: text.into(), domain_len: domain.as_str().len() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.uri)
    }
}

/// A text that is not a SPIFFE ID or trust domain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not a SPIFFE name: {reason}")]
pub struct InvalidSpiffeId {
    input: String,
    reason: &'static str,
}
