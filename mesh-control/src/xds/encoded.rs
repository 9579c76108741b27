//! [`Encoded`]: a resource as bytes, with the version that its content has.
//!
//! Refuses to know who gets it.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::Resource;
use super::account::{Account, Charge, ENCODED};
use super::naming::Naming;
use crate::translate::NodeScope;

/// A resource, encoded once and shared by every stream that is sent it.
pub(crate) struct Encoded {
    pub(crate) name: Arc<str>,
    pub(crate) version: Version,
    /// A `google.protobuf.Any`, encoded.
    pub(crate) any: Bytes,
    /// The clusters that it names.
    pub(super) naming: Naming,
    /// Paid by whoever had it made.
    _charge: Charge,
}

/// The version of one resource: a hash of its policy, so that equal resources have equal versions in
/// every run and every replica of one release. Not of the bytes: equal policies may encode to different
/// ones, for protobuf maps have no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Version(u64);

impl Encoded {
    pub(crate) fn new(name: Arc<str>, version: Version, any: &Any, naming: Naming, account: &Arc<Account>) -> Self {
        let any: Bytes = any.encode_to_vec().into();
        let charge = Charge::new(account, ENCODED + any.len());
        Self { name, version, any, naming, _charge: charge }
    }
}

impl Version {
    /// What a client that knows no such version is taken to have.
    pub(crate) const UNKNOWN: Self = Self(0);

    pub(crate) fn of(resource: &Resource, scope: &NodeScope) -> Self {
        let mut hasher = DefaultHasher::new();
        // Another release may encode the same policy in another way.
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        (scope.dialect, &scope.secrets).hash(&mut hasher);
        resource.hash(&mut hasher);
        Self(hasher.finish().max(1))
    }

    /// Reads what [`fmt::Display`] wrote; anything else is a version that nothing has.
    pub(crate) fn parse(text: &str) -> Self {
        u64::from_str_radix(text, 16).map_or(Self::UNKNOWN, Self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for Encoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} ({} bytes)", self.name, self.version, self.any.len())
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::policy::Cluster;

    use super::*;
    use crate::translate::Dialect;

    fn cluster(limit: u32) -> Resource {
        let mut cluster = Cluster::new("a".into());
        cluster.breaker.max_requests = Some(limit);
        Resource::Cluster(Box::new(cluster))
    }

    #[test]
    fn equal_resources_have_equal_versions_and_others_do_not() {
        let of = |limit, dialect| Version::of(&cluster(limit), &NodeScope { dialect, ..NodeScope::default() });
        let version = of(1, Dialect::Proxyless);
        assert_eq!(version, of(1, Dialect::Proxyless));
        assert_ne!(version, of(2, Dialect::Proxyless));
        assert_ne!(version, of(1, Dialect::Envoy), "it may be encoded in another way");
        let with_files = NodeScope { dialect: Dialect::Envoy, secrets: Some("/certs".into()), ..NodeScope::default() };
        assert_ne!(of(1, Dialect::Envoy), Version::of(&cluster(1), &with_files));
        assert_eq!(Version::parse(&version.to_string()), version);
        for odd in ["", "7/1", "not hex", "11112222333344445"] {
            assert_eq!(Version::parse(odd), Version::UNKNOWN, "{odd}");
        }
    }
}
