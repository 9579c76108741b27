//! The four resource types of the client side and how they differ on the wire.

use std::fmt;

use serde::Serialize;

use super::message::Name;
use crate::codec;

/// A resource type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// LDS.
    Listener,
    /// RDS.
    Routes,
    /// CDS.
    Cluster,
    /// EDS.
    Endpoints,
}

impl Kind {
    /// All types, in the order in which they are followed.
    pub(crate) const ALL: [Self; 4] = [Self::Listener, Self::Routes, Self::Cluster, Self::Endpoints];

    /// The place in [`Kind::ALL`].
    pub(crate) fn index(self) -> usize {
        self as usize
    }

    /// The type URL on the wire.
    pub(crate) fn type_url(self) -> &'static str {
        match self {
            Self::Listener => codec::LISTENER,
            Self::Routes => codec::ROUTES,
            Self::Cluster => codec::CLUSTER,
            Self::Endpoints => codec::ENDPOINTS,
        }
    }

    /// Whether this is the type that an `xdstp` name calls so.
    pub(crate) fn is_named(self, name: &str) -> bool {
        self.type_url().strip_prefix("type.googleapis.com/") == Some(name)
    }

    /// The type of a URL, if it is one of ours.
    pub(crate) fn of_type_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.type_url() == url)
    }

    /// Whether every response of the state of the world holds the whole set, so that absence means
    /// deletion (LDS and CDS).
    pub(crate) fn is_full_state(self) -> bool {
        matches!(self, Self::Listener | Self::Cluster)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listener => "listener",
            Self::Routes => "route configuration",
            Self::Cluster => "cluster",
            Self::Endpoints => "endpoints",
        })
    }
}

/// A resource: its type and its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) kind: Kind,
    pub(crate) name: Name,
}

impl Key {
    pub(crate) fn new(kind: Kind, name: impl Into<Name>) -> Self {
        Self { kind, name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.kind, self.name)
    }
}
