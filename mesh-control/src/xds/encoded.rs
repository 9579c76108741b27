//! [`Encoded`]: a resource as bytes, with the version that its content has.
//!
//! Refuses to know who gets it.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::Resource;

/// A resource, encoded once and shared by every stream that is sent it.
pub(crate) struct Encoded {
    pub(crate) name: Arc<str>,
    pub(crate) version: Version,
    /// A `google.protobuf.Any`, encoded.
    pub(crate) any: Bytes,
}

/// The version of one resource: a hash of its policy, so that equal resources have equal versions in
/// every run and every replica of one release. Not of the bytes: equal policies may encode to different
/// ones, for protobuf maps have no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Version(u64);

impl Encoded {
    pub(crate) fn new(name: Arc<str>, version: Version, resource: &Resource) -> Self {
        Self { name, version, any: resource.encode().encode_to_vec().into() }
    }
}

impl Version {
    /// What a client that knows no such version is taken to have.
    pub(crate) const UNKNOWN: Self = Self(0);

    pub(crate) fn of(resource: &Resource) -> Self {
        let mut hasher = DefaultHasher::new();
        // Another release may encode the same policy in another way.
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
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
    use mesh_core::policy::{Cluster, EndpointMetadata};

    use super::*;

    fn cluster(limit: u32) -> Resource {
        let mut cluster = Cluster::new("a".into());
        cluster.breaker.max_requests = Some(limit);
        Resource::Cluster(Box::new(cluster))
    }

    #[test]
    fn equal_resources_have_equal_versions_and_others_do_not() {
        let version = Version::of(&cluster(1));
        assert_eq!(version, Version::of(&cluster(1)));
        assert_ne!(version, Version::of(&cluster(2)));
        assert_eq!(Version::parse(&version.to_string()), version);
        for odd in ["", "7/1", "not hex", "11112222333344445"] {
            assert_eq!(Version::parse(odd), Version::UNKNOWN, "{odd}");
        }
        // What is hashed has an order, unlike the maps of the encoded form.
        let _: fn(&EndpointMetadata) = |metadata| Hash::hash(metadata, &mut DefaultHasher::new());
    }
}
