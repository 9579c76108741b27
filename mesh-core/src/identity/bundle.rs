//! Trust bundles: the roots of each trust domain, never merged across domains.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, TrustAnchor};

use crate::id::TrustDomain;

/// The roots of one trust domain. At least one.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Arc<[CertificateDer<'static>]>,
    anchors: Arc<[TrustAnchor<'static>]>,
}

impl TrustBundle {
    /// Reads DER roots.
    ///
    /// # Errors
    /// There is none, or one is not a certificate.
    pub fn new(roots: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Self, InvalidBundle> {
        let roots: Arc<[_]> = roots.into_iter().collect();
        if roots.is_empty() {
            return Err(InvalidBundle("it holds no certificate".to_owned()));
        }
        let anchors = roots
            .iter()
            .map(|der| webpki::anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()))
            .collect::<Result<_, _>>()
            .map_err(|e| InvalidBundle(format!("a root cannot be read: {e}")))?;
        Ok(Self { roots, anchors })
    }

    /// The roots as DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots as path validation uses them.
    pub fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({} roots)", self.roots.len())
    }
}

/// Bundles by trust domain.
#[derive(Clone, Debug, Default)]
pub struct TrustBundles(BTreeMap<TrustDomain, TrustBundle>);

impl TrustBundles {
    /// One domain's bundle.
    pub fn single(domain: TrustDomain, bundle: TrustBundle) -> Self {
        Self(BTreeMap::from([(domain, bundle)]))
    }

    /// The bundle of a domain.
    pub fn get(&self, domain: &TrustDomain) -> Option<&TrustBundle> {
        self.0.get(domain)
    }

    /// Adds or replaces a domain's bundle.
    pub fn insert(&mut self, domain: TrustDomain, bundle: TrustBundle) {
        self.0.insert(domain, bundle);
    }

    /// All domains and bundles.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &TrustBundle)> {
        self.0.iter()
    }
}

/// A trust bundle that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("trust bundle: {0}")]
pub struct InvalidBundle(String);
