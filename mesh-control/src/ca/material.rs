//! What an authority signs with and what it tells workloads to trust, out of the state directory.
//!
//! ```text
//! ca-key.pem       the key that signs
//! root-cert.pem    the trust bundle: every root that counts now
//! ca-cert.pem      the certificate of the key, if it is not itself a root: an operator's intermediate
//! cert-chain.pem   what stands between it and the root, root excluded; may be absent
//! ca-crl.pem       what was taken back: a revocation list of each that signed what is trusted; may be absent
//! ```
//!
//! The names and their meaning are those of Istio's secret `cacerts`. Which root signs is told by the key alone, so
//! a rollover is one rename.

use std::hash::{BuildHasher, RandomState};

use mesh_core::id::TrustDomain;
use mesh_core::identity::{TrustBundle, newest_lists, root_name};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyUsagePurpose, PublicKeyData,
    SanType,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, SubjectPublicKeyInfo, X509Certificate};
use zeroize::Zeroizing;

use super::key::Key;
use super::revoked::RevocationLists;
use super::{BACK_DATE, ROOT_FILE, TrustDomains, set_validity};
use crate::clock::Clock;
use crate::state_dir::{StateDir, StateError};

pub(super) const KEY_FILE: &str = "ca-key.pem";
const SIGNING_FILE: &str = "ca-cert.pem";
const CHAIN_FILE: &str = "cert-chain.pem";
pub(super) const REVOKED_FILE: &str = "ca-crl.pem";
const ROOT_LIFE: std::time::Duration = std::time::Duration::from_secs(10 * 365 * 86_400);

/// One state of the files.
pub(super) struct Material {
    pub(super) issuer: Issuer<'static, Key>,
    /// What a leaf is presented with: the signing certificate and those above it; none if a root signs.
    pub(super) intermediates: Vec<CertificateDer<'static>>,
    pub(super) bundle: TrustBundle,
    pub(super) roots_pem: String,
    /// The root under which it signs.
    pub(super) root: CertificateDer<'static>,
    /// No leaf lives longer than what signs it.
    pub(super) not_after: u64,
    /// When its revocation lists end, if it has some.
    pub(super) lists_end: Option<u64>,
    /// Of the files as they were read, to see changes. Not they themselves: one is the key.
    seen: u64,
    hasher: RandomState,
}

/// Key, roots, signing certificate, chain and revocation lists.
type Files = [Option<Zeroizing<Vec<u8>>>; 5];

impl Material {
    /// Reads the files; key (ECDSA P-256) and root (10 years) are made where there is neither.
    pub(super) fn open(dir: &StateDir, domains: &TrustDomains, clock: &Clock) -> Result<Self, StateError> {
        let unusable = |reason: String| StateError::Content { path: dir.path(ROOT_FILE), reason };
        let key = match (dir.read_secret(KEY_FILE)?, dir.read(ROOT_FILE)?) {
            (Some(pem), _) => read_key(dir, KEY_FILE, &pem)?,
            (None, None) => generate_key(dir)?,
            (None, Some(_)) => {
                return Err(unusable(format!(
                    "its key {KEY_FILE} is missing; restore it, or remove the certificate too"
                )));
            }
        };
        if dir.read(ROOT_FILE)?.is_none() {
            if dir.read(SIGNING_FILE)?.is_some() {
                return Err(unusable(format!(
                    "it is missing, and {SIGNING_FILE} is no root; put the operator's root there"
                )));
            }
            // A root made anew from the same key and name is the same trust anchor to every peer.
            let pem = self_signed_root(&key, &domains.own, clock).map_err(|e| unusable(e.to_string()))?;
            dir.write(ROOT_FILE, pem.as_bytes())?;
        }
        Self::read(dir, domains)
    }

    /// Reads the files as they are.
    pub(super) fn read(dir: &StateDir, domains: &TrustDomains) -> Result<Self, StateError> {
        let files = files(dir)?;
        let unusable = |file: &str, reason: String| StateError::Content { path: dir.path(file), reason };
        let missing = |file| unusable(file, "it is missing".to_owned());
        let key = read_key(dir, KEY_FILE, files[0].as_ref().ok_or_else(|| missing(KEY_FILE))?)?;
        let roots_pem = files[1].as_ref().ok_or_else(|| missing(ROOT_FILE))?;
        let roots_pem =
            String::from_utf8(roots_pem.to_vec()).map_err(|_| unusable(ROOT_FILE, "it is not PEM".to_owned()))?;
        let bundle = TrustBundle::from_pem(roots_pem.as_bytes()).map_err(|e| unusable(ROOT_FILE, e.to_string()))?;
        for root in bundle.roots() {
            check_authority(root, domains).map_err(|e| unusable(ROOT_FILE, e))?;
        }
        let mut above = Vec::new();
        for (file, content) in [(SIGNING_FILE, &files[2]), (CHAIN_FILE, &files[3])] {
            for certificate in
                certificates(content.as_ref().map(|content| content.as_slice())).map_err(|e| unusable(file, e))?
            {
                check_authority(&certificate, domains).map_err(|e| unusable(file, e))?;
                if !above.contains(&certificate) && !bundle.roots().contains(&certificate) {
                    above.push(certificate);
                }
            }
        }
        let (signing, root) = match above.first() {
            Some(signing) if belongs(signing, &key) => {
                (signing.clone(), root_of(&above, &bundle).map_err(|e| unusable(SIGNING_FILE, e))?)
            }
            Some(_) => return Err(unusable(SIGNING_FILE, foreign())),
            None => {
                let root = bundle.roots().iter().find(|root| belongs(root, &key));
                let root = root.ok_or_else(|| unusable(ROOT_FILE, foreign()))?;
                (root.clone(), root.clone())
            }
        };
        let issuers: Vec<_> = above.iter().chain([&root]).cloned().collect();
        // While a root of ours is changed, certificates of both live: a peer of whom no list tells is refused. What an
        // operator trusts beside the root of an intermediate is the operator's affair.
        let telling = if above.is_empty() { bundle.roots() } else { &issuers };
        let revoked = RevocationLists::read(files[4].as_ref().map(|lists| lists.as_slice()), telling)
            .map_err(|e| unusable(REVOKED_FILE, e))?;
        let bundle = bundle.with_revocation_lists(revoked.lists).map_err(|e| unusable(REVOKED_FILE, e.to_string()))?;
        let ends = issuers.iter().map(not_after).collect::<Result<Vec<_>, _>>();
        let ends = ends.map_err(|e| unusable(ROOT_FILE, e))?;
        let issuer = Issuer::from_ca_cert_der(&signing, key).map_err(|e| unusable(SIGNING_FILE, e.to_string()))?;
        let not_after = ends.into_iter().min().unwrap_or_default();
        let hasher = RandomState::new();
        let seen = digest(&files, &hasher);
        let lists_end = revoked.end;
        Ok(Self { issuer, intermediates: above, bundle, roots_pem, root, not_after, lists_end, seen, hasher })
    }

    /// Whether the files say something else now.
    pub(super) fn is_stale(&self, dir: &StateDir) -> Result<bool, StateError> {
        Ok(digest(&files(dir)?, &self.hasher) != self.seen)
    }

    /// Why its revocation lists are of no use at `now` in place of those of `before`: peers refuse everybody by lists that have
    /// ended, and let in by older ones whoever was taken back since.
    pub(super) fn check_lists(&self, before: &[Vec<u8>], dir: &StateDir, now: u64) -> Result<(), StateError> {
        let unusable = |reason| Err(StateError::Content { path: dir.path(REVOKED_FILE), reason });
        if let Some(end) = self.lists_end.filter(|end| *end <= now) {
            return unusable(format!("a list in it ended at {end} (Unix time); put a newer one there"));
        }
        let lists = self.bundle.revocation_lists();
        if newest_lists(lists.to_vec(), before, now) != lists {
            let why = "a list in it is older than the one in force; put the newer one back, or, to take its word back, take the file \
                       out first";
            return unusable(why.to_owned());
        }
        Ok(())
    }

    /// Whether an operator's intermediate signs, whose root is not ours to change.
    pub(super) fn is_subordinate(&self) -> bool {
        !self.intermediates.is_empty()
    }
}

fn files(dir: &StateDir) -> Result<Files, StateError> {
    let open = |name| dir.read(name).map(|content| content.map(Zeroizing::new));
    Ok([dir.read_secret(KEY_FILE)?, open(ROOT_FILE)?, open(SIGNING_FILE)?, open(CHAIN_FILE)?, open(REVOKED_FILE)?])
}

fn digest(files: &Files, hasher: &RandomState) -> u64 {
    hasher.hash_one(files.each_ref().map(|content| content.as_ref().map(|content| content.as_slice())))
}

fn foreign() -> String {
    format!("it does not belong to the key in {KEY_FILE}; restore the pair")
}

/// The root that the last of a chain was signed by.
fn root_of(above: &[CertificateDer<'static>], bundle: &TrustBundle) -> Result<CertificateDer<'static>, String> {
    let der = above.last().map_or(&[][..], |last| &last[..]);
    let last = parse(der)?;
    for root in bundle.roots() {
        let parsed = parse(root)?;
        if parsed.subject() == last.issuer() && is_signed_with(der, parsed.public_key()) {
            return Ok(root.clone());
        }
    }
    Err(format!("no root in {ROOT_FILE} signed it or its {CHAIN_FILE}"))
}

/// Whether what is in `der` is signed with that key: by the algorithms of the members, who are told of nothing that they
/// would refuse.
pub(super) fn is_signed_with(der: &[u8], key: &SubjectPublicKeyInfo<'_>) -> bool {
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    mesh_core::identity::is_signed_with(der, key.raw, algorithms)
}

pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    X509Certificate::from_der(der).map(|(_, cert)| cert).map_err(|e| e.to_string())
}

fn certificates(pem: Option<&[u8]>) -> Result<Vec<CertificateDer<'static>>, String> {
    let Some(pem) = pem else { return Ok(Vec::new()) };
    CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| format!("it is not PEM: {e}"))
}

pub(super) fn belongs(certificate: &CertificateDer<'_>, key: &Key) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, cert)| cert.public_key().raw == key.subject_public_key_info())
}

pub(super) fn read_key(dir: &StateDir, file: &str, pem: &[u8]) -> Result<Key, StateError> {
    Key::from_pem(pem).map_err(|reason| StateError::Content { path: dir.path(file), reason })
}

fn generate_key(dir: &StateDir) -> Result<Key, StateError> {
    let fresh = Key::generate()
        .map_err(|e| StateError::Content { path: dir.path(KEY_FILE), reason: format!("no key can be made: {e}") })?;
    let pem = dir.write_once(KEY_FILE, fresh.to_pem().as_bytes())?;
    read_key(dir, KEY_FILE, &pem)
}

pub(super) fn self_signed_root(key: &Key, domain: &TrustDomain, clock: &Clock) -> Result<String, rcgen::Error> {
    let now = clock.unix_seconds();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, domain.as_str());
    // Of its key: peers find the revocation list of a certificate by the name of who signed it, and while a root is changed
    // there are two.
    let of_key = root_name(&key.subject_public_key_info());
    params.distinguished_name.push(DnType::CommonName, format!("mesh root CA {of_key}"));
    // X.509-SVID 4.1: a signing certificate's SPIFFE ID has no path.
    params.subject_alt_names = vec![SanType::URI(root_uri(domain).as_str().try_into()?)];
    set_validity(&mut params, now.saturating_sub(BACK_DATE.as_secs()), now + ROOT_LIFE.as_secs());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params.self_signed(key)?.pem())
}

fn root_uri(domain: &TrustDomain) -> String {
    format!("spiffe://{domain}")
}

/// Checks that a certificate may sign and is of the trust domain or an alias of it, if it names one.
pub(super) fn check_authority(certificate: &CertificateDer<'_>, domains: &TrustDomains) -> Result<(), String> {
    let (_, cert) = X509Certificate::from_der(certificate).map_err(|e| format!("it cannot be read: {e}"))?;
    if !cert.is_ca() {
        return Err("it may not sign certificates (cA is false)".to_owned());
    }
    if cert.key_usage().map_err(|e| e.to_string())?.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("it may not sign certificates (its key usage lacks keyCertSign)".to_owned());
    }
    let names = cert.subject_alternative_name().map_err(|e| e.to_string())?;
    for name in names.iter().flat_map(|names| names.value.general_names.iter()) {
        if let GeneralName::URI(uri) = name
            && !std::iter::once(&domains.own).chain(&domains.aliases).any(|domain| *uri == root_uri(domain))
        {
            let own = &domains.own;
            return Err(format!(
                "it is for {uri}, not for the trust domain {own}; its place is the state directory, or the entry of a \
                 bundle map, of that one, or make that one an alias (--trust-domain-alias) if it is a former name of it"
            ));
        }
    }
    Ok(())
}

/// When a certificate ends, seconds since the Unix epoch.
pub(crate) fn not_after(certificate: &CertificateDer<'_>) -> Result<u64, String> {
    let cert = parse(certificate)?;
    u64::try_from(cert.validity().not_after.timestamp()).map_err(|_| "its validity cannot be read".to_owned())
}
