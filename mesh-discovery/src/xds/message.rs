//! What is said on a stream, in words of our own: neither gRPC nor protobuf types, one form for both
//! variants of the protocol.
//!
//! A [`Transport`](super::Transport) carries these to and from the wire. Refuses to know what a
//! resource means: its body is bytes of a named type.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::bootstrap::Node;
use crate::codec::{self, Packed};

/// The name of a resource, shared by everything that speaks of it.
pub type Name = Arc<str>;

/// Which variant of the protocol a stream speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Variant {
    /// `DeltaAggregatedResources`: names and resources are sent as they come and go.
    Delta,
    /// `StreamAggregatedResources`: every request holds all names of its type.
    StateOfTheWorld,
}

/// A request to a control plane.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Request {
    /// Type of the resources.
    pub type_url: &'static str,
    /// Who we are; in the first request of a stream only (gRFC A27).
    pub node: Option<Arc<Node>>,
    /// Nonce of the newest response of the type (state of the world), or of the response that this
    /// answers (delta); empty if there is none.
    pub nonce: String,
    /// Why the response with this nonce is refused. None = it is not.
    pub error: Option<String>,
    /// What is asked for.
    pub ask: Ask,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// State of the world: everything that is wanted of the type.
    World {
        /// Version of the last response that was accepted as a whole; empty if there was none.
        version: Name,
        /// All names.
        names: Arc<[Name]>,
    },
    /// Delta: what changes in the subscription.
    Changes {
        /// Names wanted from now on.
        subscribe: Vec<Name>,
        /// Names wanted no longer.
        unsubscribe: Vec<Name>,
        /// Name and version of what we hold from an earlier stream of this server; in the first request of a type on a
        /// stream only.
        initial_versions: Vec<(Name, Name)>,
    },
}

/// A response of a control plane.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    /// Type of the resources.
    pub type_url: String,
    /// Version of the whole (state of the world), or a text for debugging (delta).
    pub version: String,
    /// To be repeated in the answer.
    pub nonce: String,
    /// Resources.
    pub resources: Vec<Resource>,
    /// Names that do not exist, or no longer (delta).
    pub removed: Vec<String>,
    /// Names that the control plane cannot give (xRFC TP3).
    pub errors: Vec<ResourceError>,
}

/// One resource of a response, out of its wrapper.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource {
    /// Name by its wrapper. Empty = as the body says.
    pub name: String,
    /// Version of its own (delta). Empty = the response's.
    pub version: String,
    /// How long it lives unless it is given again or renewed. None = until it is replaced or removed.
    pub ttl: Option<Duration>,
    /// Its content. None = as before: a sign of life, which renews it.
    pub body: Option<Body>,
}

/// The bytes of a resource and their type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body {
    /// Type.
    pub type_url: Cow<'static, str>,
    /// Protobuf; mostly a part of the response it came in.
    pub bytes: Bytes,
}

impl Body {
    /// Bytes of this type.
    pub fn new(type_url: &str, bytes: impl Into<Bytes>) -> Self {
        let known = [codec::LISTENER, codec::ROUTES, codec::CLUSTER, codec::ENDPOINTS];
        // No response of a large mesh copies the same text ten thousand times.
        let known = known.into_iter().find(|known| *known == type_url);
        Self { type_url: known.map_or_else(|| type_url.to_owned().into(), Cow::Borrowed), bytes: bytes.into() }
    }
}

impl<'a> From<&'a Body> for Packed<'a> {
    fn from(body: &'a Body) -> Self {
        Self { type_url: &body.type_url, bytes: &body.bytes }
    }
}

/// A resource that the control plane cannot give.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceError {
    /// Which.
    pub name: String,
    /// What sort of failure, as far as it matters (gRFC A88).
    pub cause: Cause,
    /// Why, in words of the control plane; may be empty.
    pub message: String,
}

/// What sort of failure a control plane reports for a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cause {
    /// It does not exist (`NOT_FOUND`).
    NotFound,
    /// We may not see it (`PERMISSION_DENIED`).
    Denied,
    /// Anything else.
    #[default]
    Other,
}

/// Why a stream could not be opened or broke. Only a text: status codes of the control plane must not
/// reach the application (gRFC A54).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct StreamError {
    reason: Name,
    unsupported: bool,
}

impl StreamError {
    /// An error that says `reason`.
    pub fn new(reason: impl Into<Name>) -> Self {
        Self { reason: reason.into(), unsupported: false }
    }

    /// The server does not have the variant that the stream was opened for (`UNIMPLEMENTED`).
    pub fn unsupported(reason: impl Into<Name>) -> Self {
        Self { reason: reason.into(), unsupported: true }
    }

    pub(super) fn is_unsupported(&self) -> bool {
        self.unsupported
    }
}
