//! The keys of token issuers that a RequestAuthentication names by URL: fetched here, once for the mesh, and handed to
//! servers inside their listeners. What a manifest makes this process dial is checked where it is dialled.
//!
//! ```text
//! Model ─ sources ─► Refresh ─ due ─► Fetch ─ resolve, check the addresses, TLS ─► issuer
//!                       └─► Keys ─► World (listeners, findings)
//! ```
//!
//! Refuses to know which workloads the keys are for.

mod address;
mod fetch;
mod refresh;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use ipnet::IpNet;
use serde::Serialize;

pub use self::fetch::RootsError;
pub(crate) use self::fetch::{Fetch, FetchError};
pub(crate) use self::refresh::{LONGEST, Refresh};
use crate::model::KeySource;

/// How keys of issuers are fetched: in 10 s at most, whatever a rule grants, and four at once for the manifests of one
/// namespace, which may name a hundred sources.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FetchOptions {
    /// Networks that are not public and from which keys may be fetched all the same, such as that of an issuer in the
    /// cluster. Default none: loopback, link-local, private and other special addresses are refused.
    pub networks: Vec<IpNet>,
    /// PEM file of roots that are trusted in addition to the system's. Default none.
    pub roots: Option<PathBuf>,
    /// Between two fetches. A fetch that failed is tried again sooner. Default 20 min, Istio's.
    pub refresh: Duration,
    /// How long keys hold that cannot be fetched anew; and, once a server has them, while it hears nothing of a control
    /// plane. Default 24 h.
    pub max_age: Duration,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            networks: Vec::new(),
            roots: None,
            refresh: Duration::from_secs(20 * 60),
            max_age: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// What is known of each source that a manifest names. One that is not there was not asked yet.
pub(crate) type Keys = BTreeMap<KeySource, Known>;

/// What is known of one source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Known {
    /// The last good document; none once the issuer has taken all its keys back.
    pub(crate) document: Option<Arc<str>>,
    /// Why there is no newer one.
    pub(crate) failure: Option<String>,
    /// How long the document holds at a server that hears nothing of a control plane; zero before there was one.
    #[serde(skip)]
    pub(crate) max_age: Duration,
}
