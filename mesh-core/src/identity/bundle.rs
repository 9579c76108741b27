//! Trust bundles: the roots of each trust domain, never merged across domains.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use crate::id::{SpiffeId, TrustDomain};

/// The roots of one trust domain, at least one, and its revocation lists. Equal if both are.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Arc<[CertificateDer<'static>]>,
    anchors: Arc<[TrustAnchor<'static>]>,
    names: Arc<[Box<str>]>,
    not_after: u64,
    revoked: Arc<[CertRevocationList<'static>]>,
    // The lists as they came, to compare.
    lists: Arc<[Vec<u8>]>,
}

/// Roots of one trust domain; a rollover needs two.
const MAX_ROOTS: usize = 64;
/// Revocation lists of one trust domain.
const MAX_LISTS: usize = 64;
/// Bytes of one revocation list: some 100,000 certificates.
const MAX_LIST: usize = 4 << 20;

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
        if roots.len() > MAX_ROOTS {
            return Err(InvalidBundle(format!("it holds {} certificates; at most {MAX_ROOTS} are taken", roots.len())));
        }
        let anchors = roots
            .iter()
            .map(|der| webpki::anchor_from_trusted_cert(der).map(|anchor| anchor.to_owned()))
            .collect::<Result<_, _>>()
            .map_err(|e| InvalidBundle(format!("a root cannot be read: {e}")))?;
        let not_after = roots.iter().filter_map(super::tls::validity).map(|(_, end)| end).min().unwrap_or_default();
        let names = roots.iter().map(|root| root_name(root).into()).collect();
        Ok(Self { roots, anchors, names, not_after, revoked: Arc::default(), lists: Arc::default() })
    }

    /// Reads PEM roots.
    ///
    /// # Errors
    /// As for DER; or it is not PEM.
    pub fn from_pem(pem: &[u8]) -> Result<Self, InvalidBundle> {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        Self::new(roots.map_err(|e| InvalidBundle(format!("it is not PEM: {e}")))?)
    }

    /// The same roots with revocation lists (DER), instead of those it had. With at least one, a peer is refused whose
    /// state, or that of a certificate between it and its root, no list tells, and so is one whose list has ended.
    /// Default: none, and nobody is asked.
    ///
    /// # Errors
    /// A list is too long or cannot be read.
    pub fn with_revocation_lists(self, lists: Vec<Vec<u8>>) -> Result<Self, InvalidBundle> {
        if lists.len() > MAX_LISTS {
            return Err(InvalidBundle(format!("{} revocation lists; at most {MAX_LISTS} are taken", lists.len())));
        }
        let read = |der: &Vec<u8>| {
            if der.len() > MAX_LIST {
                return Err(InvalidBundle(format!("a revocation list of {} bytes; at most {MAX_LIST}", der.len())));
            }
            let list = OwnedCertRevocationList::from_der(der);
            list.map(Into::into).map_err(|e| InvalidBundle(format!("a revocation list cannot be read: {e}")))
        };
        let revoked = lists.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { revoked, lists: lists.into(), ..self })
    }

    /// The revocation lists as they came: DER. None = nobody is asked whether a certificate was taken back.
    pub fn revocation_lists(&self) -> &[Vec<u8>] {
        &self.lists
    }

    /// Checks that the revocation lists can stand in for those of before: each that is of a root or of an authority in
    /// `own`, the chain of our own certificate if there is one, is signed by it and good at `now` (seconds since the Unix
    /// epoch), and whoever signed that certificate, or without one some root, has one. By others a whole mesh would be refused.
    ///
    /// # Errors
    /// They are of somebody else, or have ended.
    pub fn check_revocation_lists(&self, own: &[CertificateDer<'_>], now: u64) -> Result<(), InvalidBundle> {
        let unreadable = |e: &dyn fmt::Display| InvalidBundle(format!("a revocation list cannot be compared: {e}"));
        let parse = |der| X509Certificate::from_der(der).map(|(_, cert)| cert).map_err(|e| unreadable(&e));
        let above = own.iter().skip(1).chain(&*self.roots);
        let authorities = above.map(|der| parse(der)).collect::<Result<Vec<_>, _>>()?;
        let leaf = own.first().map(|leaf| parse(leaf)).transpose()?;
        let mut told = self.lists.is_empty();
        for list in &*self.lists {
            let (_, list) = CertificateRevocationList::from_der(list).map_err(|e| unreadable(&e))?;
            let mut named = authorities.iter().filter(|authority| authority.subject() == list.issuer()).peekable();
            if named.peek().is_none() {
                continue;
            }
            if !named.any(|authority| list.verify_signature(authority.public_key()).is_ok()) {
                let of = list.issuer();
                return Err(InvalidBundle(format!("the revocation list of {of} is not signed with that one's key")));
            }
            let end = list.next_update().and_then(|end| u64::try_from(end.timestamp()).ok());
            if let Some(end) = end.filter(|end| *end <= now) {
                return Err(InvalidBundle(format!(
                    "the revocation list of {} ended at {end} (Unix time)",
                    list.issuer()
                )));
            }
            told |= leaf.as_ref().is_none_or(|leaf| leaf.issuer() == list.issuer());
        }
        match (told, leaf) {
            (true, _) => Ok(()),
            (false, Some(leaf)) => {
                Err(InvalidBundle(format!("no revocation list is of {}, who signed ours", leaf.issuer())))
            }
            (false, None) => Err(InvalidBundle("no revocation list is of a root in it".to_owned())),
        }
    }

    /// The same as path validation uses them.
    pub(super) fn revoked(&self) -> &[CertRevocationList<'static>] {
        &self.revoked
    }

    /// The roots as DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// When the first of the roots ends, seconds since the Unix epoch. Nobody is refused for it: a root is trusted
    /// because it is configured.
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// A short name of each root, in their order: see [`root_name`].
    pub(super) fn names(&self) -> &[Box<str>] {
        &self.names
    }

    /// The roots as path validation uses them.
    pub fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

/// A short name of a root: the first 16 digits of the SHA-256 of its DER. Enough to tell those of one mesh apart, and what
/// `openssl x509 -fingerprint -sha256` begins with.
pub fn root_name(root: &[u8]) -> String {
    digest::digest(&digest::SHA256, root).as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({} roots)", self.roots.len())
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.roots == other.roots && self.lists == other.lists
    }
}

impl Eq for TrustBundle {}

/// Bundles by trust domain: our own, and those of federated domains. Never one pool: a domain's roots vouch for its own
/// names only. But for roots that somebody gives without saying whose they are: there are no others beside them then.
/// Cheap to clone.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustBundles(Arc<Domains>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Domains {
    bundles: BTreeMap<TrustDomain, TrustBundle>,
    aliases: BTreeMap<TrustDomain, TrustDomain>,
    any: Option<TrustBundle>,
}

impl TrustBundles {
    /// One domain's bundle.
    pub fn single(domain: TrustDomain, bundle: TrustBundle) -> Self {
        Self(Arc::new(Domains { bundles: BTreeMap::from([(domain, bundle)]), ..Domains::default() }))
    }

    /// Roots of nobody in particular, as the CA file of a certificate provider (gRFC A29): they vouch for whomever they
    /// signed.
    pub fn of_any_domain(bundle: TrustBundle) -> Self {
        Self(Arc::new(Domains { any: Some(bundle), ..Domains::default() }))
    }

    /// Roots of nobody in particular become those of `domain`; others are left as they are.
    #[must_use]
    pub fn within(self, domain: TrustDomain) -> Self {
        match self.any() {
            Some(bundle) => {
                let (bundles, aliases) = (BTreeMap::from([(domain, bundle.clone())]), self.0.aliases.clone());
                Self(Arc::new(Domains { bundles, aliases, any: None }))
            }
            None => self,
        }
    }

    /// The roots of nobody in particular.
    pub fn any(&self) -> Option<&TrustBundle> {
        self.0.any.as_ref()
    }

    /// When the first of all roots ends, seconds since the Unix epoch.
    pub fn not_after(&self) -> Option<u64> {
        self.0.bundles.values().chain(self.any()).map(TrustBundle::not_after).min()
    }

    /// The bundle of a domain: its own or, for an alias, that of the domain it stands for.
    pub fn get(&self, domain: &TrustDomain) -> Option<&TrustBundle> {
        let Domains { bundles, aliases, any } = &*self.0;
        bundles.get(domain).or_else(|| bundles.get(aliases.get(domain)?)).or(any.as_ref())
    }

    /// Makes `alias` another name of `domain`, as Istio's `trustDomainAliases` does while a mesh is renamed: the roots of
    /// `domain` vouch for it, and its peers are taken for those of `domain`. A bundle of the alias' own goes before.
    pub fn alias(&mut self, alias: TrustDomain, domain: TrustDomain) {
        Arc::make_mut(&mut self.0).aliases.insert(alias, domain);
    }

    /// Who `id` is in the domain that its trust domain is an alias of; `None` if it is no alias.
    pub fn aliased(&self, id: &SpiffeId) -> Option<SpiffeId> {
        let Domains { bundles, aliases, .. } = &*self.0;
        if aliases.is_empty() {
            return None;
        }
        let domain = id.trust_domain();
        let stands_for = aliases.get(&domain).filter(|_| !bundles.contains_key(&domain))?;
        format!("spiffe://{stands_for}{}", id.path()).parse().ok()
    }

    /// Adds or replaces a domain's bundle.
    pub fn insert(&mut self, domain: TrustDomain, bundle: TrustBundle) {
        Arc::make_mut(&mut self.0).bundles.insert(domain, bundle);
    }

    /// All domains and bundles; without the roots of nobody in particular.
    pub fn iter(&self) -> impl Iterator<Item = (&TrustDomain, &TrustBundle)> {
        self.0.bundles.iter()
    }
}

/// A trust bundle that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("trust bundle: {0}")]
pub struct InvalidBundle(String);
