//! Trust bundles: the roots of each trust domain, never merged across domains.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest;
use rustls::DistinguishedName;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor};
use webpki::{CertRevocationList, EndEntityCert, OwnedCertRevocationList};
use x509_parser::prelude::{ASN1Time, FromDer, X509Name};

use super::ListLife;
use super::listed::SignedBy;
use super::signed::Signed;
use crate::id::{InvalidSpiffeId, SpiffeId, TrustDomain};

/// The roots of one trust domain, at least one, and its revocation lists. Equal if both are, in whatever order.
#[derive(Clone)]
pub struct TrustBundle {
    roots: Arc<[CertificateDer<'static>]>,
    anchors: Arc<[TrustAnchor<'static>]>,
    names: Arc<[Box<str>]>,
    not_after: u64,
    revoked: Arc<[CertRevocationList<'static>]>,
    // The lists as they came, to compare.
    lists: Arc<[Vec<u8>]>,
    lives: Arc<[ListLife]>,
    // In the order of the lists.
    signed: Arc<[OnceLock<SignedBy>]>,
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
        let (revoked, lists, lives, signed) = (Arc::default(), Arc::default(), Arc::default(), Arc::default());
        Ok(Self { roots, anchors, names, not_after, revoked, lists, lives, signed })
    }

    /// Reads PEM roots: all of them or none.
    ///
    /// # Errors
    /// As for DER; it is not PEM; or the mark at the beginning or the end of a certificate is damaged, for which a reader
    /// would pass it over.
    pub fn from_pem(pem: &[u8]) -> Result<Self, InvalidBundle> {
        let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let roots = roots.map_err(|e| InvalidBundle(format!("it is not PEM: {e}")))?;
        for mark in ["BEGIN CERTIFICATE-----", "END CERTIFICATE-----"] {
            let marks = pem.windows(mark.len()).filter(|part| *part == mark.as_bytes()).count();
            if marks != roots.len() {
                let whole = roots.len();
                return Err(InvalidBundle(format!("it has {marks} times {mark:?} and {whole} whole certificates")));
            }
        }
        Self::new(roots)
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
        let lives = lists.iter().filter_map(|list| ListLife::of(list)).collect();
        let signed = lists.iter().map(|_| OnceLock::new()).collect();
        Ok(Self { revoked, lists: lists.into(), lives, signed, ..self })
    }

    /// The revocation lists as they came: DER. None = nobody is asked whether a certificate was taken back.
    pub fn revocation_lists(&self) -> &[Vec<u8>] {
        &self.lists
    }

    /// Checks that the revocation lists can stand in for those of before: each that is of a root or of an authority in
    /// `own`, the chain of our own certificate if there is one, is signed by it and good at `now` (seconds since the Unix
    /// epoch), and whoever signed that certificate, or without one some root, has one. By others a whole mesh would be refused.
    /// `algorithms` are those by which peers are judged.
    ///
    /// # Errors
    /// They are of somebody else, or have ended.
    pub fn check_revocation_lists(
        &self,
        own: &[CertificateDer<'_>],
        algorithms: &[&dyn SignatureVerificationAlgorithm],
        now: u64,
    ) -> Result<(), InvalidBundle> {
        let unreadable = |e: &dyn fmt::Display| InvalidBundle(format!("a revocation list cannot be compared: {e}"));
        let above = own.iter().skip(1).map(webpki::anchor_from_trusted_cert).collect::<Result<Vec<_>, _>>();
        let above = above.map_err(|e| unreadable(&e))?;
        let leaf = own.first().map(EndEntityCert::try_from).transpose().map_err(|e| unreadable(&e))?;
        let signer = leaf.as_ref().map(|leaf| leaf.issuer());
        let mut told = self.lists.is_empty();
        for (list, der) in self.revoked.iter().zip(&*self.lists) {
            let authorities = above.iter().chain(&*self.anchors);
            let mut named = authorities.filter(|authority| *authority.subject == *list.issuer()).peekable();
            if named.peek().is_none() {
                continue;
            }
            let of = name(list.issuer());
            let signed = Signed::read(der).ok_or_else(|| unreadable(&of))?;
            if !named.any(|authority| signed.is_by(&authority.subject_public_key_info, algorithms)) {
                return Err(InvalidBundle(format!(
                    "the revocation list of {of} is not signed with that one's key, or by an algorithm that is not taken here"
                )));
            }
            let end = signed.end_of_list().and_then(|end| ASN1Time::from_der(end).ok());
            let end = end.and_then(|(_, end)| u64::try_from(end.timestamp()).ok());
            if let Some(end) = end.filter(|end| *end <= now) {
                return Err(InvalidBundle(format!("the revocation list of {of} ended at {end} (Unix time)")));
            }
            told |= signer.is_none_or(|signer| signer == list.issuer());
        }
        match (told, signer) {
            (true, _) => Ok(()),
            (false, Some(signer)) => {
                Err(InvalidBundle(format!("no revocation list is of {}, who signed ours", name(signer))))
            }
            (false, None) => Err(InvalidBundle("no revocation list is of a root in it".to_owned())),
        }
    }

    /// By what the list was found to be signed whose signature is of `body`; `None` if there is no such list.
    pub(super) fn signed_by(&self, body: &[u8]) -> Option<&OnceLock<SignedBy>> {
        let at = self.lists.iter().position(|list| Signed::read(list).is_some_and(|list| list.body() == body))?;
        self.signed.get(at)
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

/// A name (the content of its DER) as it is read.
fn name(content: &[u8]) -> String {
    let name = DistinguishedName::in_sequence(content);
    X509Name::from_der(name.as_ref()).map_or_else(|_| "somebody".to_owned(), |(_, name)| name.to_string())
}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrustBundle({} roots)", self.roots.len())
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        same(&self.roots, &other.roots) && same(&self.lists, &other.lists)
    }
}

/// Whether each holds everything that the other one does; there are few.
fn same<T: PartialEq>(one: &[T], other: &[T]) -> bool {
    let within = |one: &[T], other: &[T]| one.iter().all(|item| other.contains(item));
    one == other || within(one, other) && within(other, one)
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

    /// Of whom the revocation lists tell, and until when; those of roots of nobody in particular among them.
    pub fn list_lives(&self) -> impl Iterator<Item = &ListLife> {
        self.0.bundles.values().chain(self.any()).flat_map(|bundle| bundle.lives.iter())
    }

    /// When the first of all revocation lists ends, seconds since the Unix epoch; `None` if there is none.
    pub fn lists_end(&self) -> Option<u64> {
        self.list_lives().map(|list| list.ends).min()
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

    /// Whether two names are of one domain: the same, or one an alias of the other or of what that stands for.
    pub(super) fn are_one(&self, one: &TrustDomain, other: &TrustDomain) -> bool {
        self.real(one) == self.real(other)
    }

    fn real<'d>(&'d self, domain: &'d TrustDomain) -> &'d TrustDomain {
        let Domains { bundles, aliases, .. } = &*self.0;
        aliases.get(domain).filter(|_| !bundles.contains_key(domain)).unwrap_or(domain)
    }

    /// Who `id` is in the domain that its trust domain is an alias of; `None` if it is no alias.
    pub fn aliased(&self, id: &SpiffeId) -> Option<SpiffeId> {
        // Of a peer whose new name is none nobody gets here.
        self.renamed(id)?.ok()
    }

    /// The same; a name that is longer may be none any more.
    pub(super) fn renamed(&self, id: &SpiffeId) -> Option<Result<SpiffeId, InvalidSpiffeId>> {
        if self.0.aliases.is_empty() {
            return None;
        }
        let domain = id.trust_domain();
        let stands_for = Some(self.real(&domain)).filter(|real| **real != domain)?;
        Some(format!("spiffe://{stands_for}{}", id.path()).parse())
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
