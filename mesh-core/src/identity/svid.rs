//! X.509-SVIDs (SPIFFE X509-SVID 1.0): who a certificate names and whether it holds. Pure, and the one place for both
//! sides: parse the ID, pick the bundle of its trust domain, validate the path with that bundle only, then the
//! leaf rules, those of who signed, and the revocation lists.
//!
//! There is no fall-through to DNS names or to the subject. Refuses to know TLS and who is expected.

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use smallvec::SmallVec;
use webpki::{EndEntityCert, ExpirationPolicy, KeyUsage, RevocationCheckDepth, RevocationOptionsBuilder, VerifiedPath};
use x509_parser::certificate::X509Certificate;
use x509_parser::error::X509Error;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;

use super::listed::Remembering;
use super::{TrustBundle, TrustBundles, ways};
use crate::id::{SpiffeId, TrustDomain};

/// Certificates between a leaf and its root that are looked at; real chains have one or two.
pub const MAX_INTERMEDIATES: usize = 8;
/// A certificate, or a chain of them in one text, that is longer is not read.
const MAX_DER: usize = 64 * 1024;

/// Why a peer's certificate was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefused {
    /// The certificate cannot be parsed.
    #[error("the peer's certificate cannot be read: {0}")]
    Unreadable(String),
    /// It does not carry exactly one URI name.
    #[error("the peer's certificate must carry exactly one URI name, a SPIFFE ID; it has {0}")]
    UriNames(usize),
    /// The one URI name is not a SPIFFE ID with a path.
    #[error("the peer's certificate: {0}")]
    NotSpiffe(#[from] crate::id::InvalidSpiffeId),
    /// We hold no bundle for its trust domain.
    #[error("the peer {0} is of a trust domain for which this process has no bundle")]
    UnknownDomain(SpiffeId),
    /// It does not chain to the bundle, has expired, is revoked or may not be used this way.
    #[error("the certificate of {id} is not valid here: {reason}")]
    NotValid {
        /// Who it claims to be.
        id: SpiffeId,
        /// What path validation said.
        reason: String,
    },
    /// The same of a peer that is known by other names, or by none.
    #[error("the peer's certificate is not valid here: {0}")]
    Path(String),
    /// A valid peer, but not the one policy expects.
    #[error("the peer is {got}; the policy of this destination expects {expected}")]
    WrongId {
        /// Who it is.
        got: SpiffeId,
        /// What was expected.
        expected: String,
    },
}

/// What a certificate is shown for; an extended key usage, where there is one, must allow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// By the server of a connection.
    Server,
    /// By the client of a connection.
    Client,
}

impl From<Usage> for KeyUsage {
    fn from(usage: Usage) -> Self {
        match usage {
            Usage::Server => Self::server_auth(),
            Usage::Client => Self::client_auth(),
        }
    }
}

/// The SPIFFE ID of a leaf certificate: exactly one URI name, which must be one.
///
/// # Errors
/// The certificate cannot be read, has no or several URI names, or its name is not a SPIFFE ID.
pub fn peer_spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerRefused> {
    spiffe_id_of(&parse(leaf)?)
}

/// Verifies a chain, leaf first, as it stands at `now`; the ID is the one in the certificate, aliases unresolved.
///
/// # Errors
/// See [`PeerRefused`]; [`PeerRefused::WrongId`] is not among them, for nobody in particular is expected.
pub fn verify_svid(
    chain: &[CertificateDer<'_>],
    bundles: &TrustBundles,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: UnixTime,
    usage: Usage,
) -> Result<SpiffeId, PeerRefused> {
    let (leaf, intermediates) = split(chain)?;
    let parsed = parse(leaf)?;
    let id = spiffe_id_of(&parsed)?;
    let Some(bundle) = bundles.get(&id.trust_domain()) else {
        return Err(PeerRefused::UnknownDomain(id));
    };
    if let Some(Err(error)) = bundles.renamed(&id) {
        // Policy knows it by that name: under the former one no rule for it would find it.
        let reason = format!("under the present name of its trust domain it has no name: {error}");
        return Err(PeerRefused::NotValid { id, reason });
    }
    let judged = match leaf_rules(&parsed, intermediates) {
        Ok(()) => walk(leaf, intermediates, bundle, algorithms, now, usage, |path| signer_rules(path, &id, bundles))
            .unwrap_or_else(|e| Err(in_words(&e))),
        Err(reason) => Err(reason.to_owned()),
    };
    match judged {
        Ok(()) => Ok(id),
        Err(reason) => Err(PeerRefused::NotValid { id, reason }),
    }
}

/// The leaf and what is above it.
fn split<'c, 'd>(
    chain: &'c [CertificateDer<'d>],
) -> Result<(&'c CertificateDer<'d>, &'c [CertificateDer<'d>]), PeerRefused> {
    chain.split_first().ok_or_else(|| PeerRefused::Unreadable("there is none".to_owned()))
}

/// Verifies a chain that was let in before by the roots and revocation lists as they are now. That its leaf has ended
/// meanwhile is no reason to refuse it: its owner proved who it is while it was good, and how old a connection grows is
/// limited elsewhere.
///
/// # Errors
/// As [`verify_svid`].
pub fn verify_again(
    chain: &[CertificateDer<'_>],
    bundles: &TrustBundles,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: UnixTime,
    usage: Usage,
) -> Result<SpiffeId, PeerRefused> {
    verify_svid(chain, bundles, algorithms, before_its_end(chain, now), usage)
}

/// The same of a chain that was let in whoever it names: see [`verify_path`].
///
/// # Errors
/// [`PeerRefused::Path`].
pub fn verify_path_again(
    chain: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: UnixTime,
    usage: Usage,
) -> Result<(), PeerRefused> {
    let (leaf, intermediates) = split(chain)?;
    let at = before_its_end(chain, now);
    verify_path(leaf, intermediates, bundle, algorithms, at, usage).map_err(|e| PeerRefused::Path(in_words(&e)))
}

fn before_its_end(chain: &[CertificateDer<'_>], now: UnixTime) -> UnixTime {
    let end = chain.first().and_then(super::tls::validity).map_or(u64::MAX, |(_, end)| end);
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_secs().min(end)))
}

/// The root by which a chain was let in, under its [short name](super::root_name). Where its trust domain has one only, or the
/// chain names one only as an issuer, it is that one, and nothing is verified again; `None` if none can be. Only of a chain
/// that was let in: of another one it is not asked what it would cost.
pub fn root_of<'b>(
    chain: &[CertificateDer<'_>],
    bundles: &'b TrustBundles,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: UnixTime,
    usage: Usage,
) -> Option<&'b str> {
    let (leaf, intermediates) = chain.split_first()?;
    let bundle = bundles.get(&peer_spiffe_id(leaf).ok()?.trust_domain())?;
    if let [only] = bundle.names() {
        return Some(only);
    }
    let anchors = bundle.anchors();
    let certificates: SmallVec<[_; 4]> = chain.iter().filter_map(|der| EndEntityCert::try_from(der).ok()).collect();
    let is_named = |anchor: &TrustAnchor<'_>| certificates.iter().any(|cert| cert.issuer() == &*anchor.subject);
    let mut named = anchors.iter().zip(bundle.names()).filter(|(anchor, _)| is_named(anchor));
    match (named.next(), named.next()) {
        (Some((_, only)), None) => return Some(only),
        (None, _) => return None,
        // Roots of one name: their signatures tell.
        (Some(_), Some(_)) => {}
    }
    let cert = EndEntityCert::try_from(leaf).ok()?;
    let path =
        cert.verify_for_usage(algorithms, anchors, intermediates, now, KeyUsage::from(usage), None, None).ok()?;
    let at = anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()))?;
    Some(&bundle.names()[at])
}

/// The certificates of a text of DER after DER, as the SPIFFE Workload API sends chains and bundles.
///
/// # Errors
/// It is empty, longer than 64 KiB, or holds something else.
pub fn certificates_of_der(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, PeerRefused> {
    if der.len() > MAX_DER {
        return Err(PeerRefused::Unreadable(format!("{} bytes; at most {MAX_DER} are read", der.len())));
    }
    let mut found = Vec::new();
    while !der.is_empty() || found.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|e| PeerRefused::Unreadable(e.to_string()))?;
        found.push(CertificateDer::from(der[..der.len() - rest.len()].to_vec()));
        der = rest;
    }
    Ok(found)
}

fn parse<'c>(leaf: &'c CertificateDer<'_>) -> Result<X509Certificate<'c>, PeerRefused> {
    let unreadable = |reason: &dyn ToString| PeerRefused::Unreadable(reason.to_string());
    if leaf.len() > MAX_DER {
        return Err(unreadable(&"it is longer than any certificate"));
    }
    match X509Certificate::from_der(leaf) {
        Ok(([], cert)) => Ok(cert),
        Ok(_) => Err(unreadable(&"something follows it")),
        Err(e) => Err(unreadable(&e)),
    }
}

fn spiffe_id_of(cert: &X509Certificate<'_>) -> Result<SpiffeId, PeerRefused> {
    let unreadable = |e: X509Error| PeerRefused::Unreadable(e.to_string());
    let names = cert.subject_alternative_name().map_err(unreadable)?;
    let names = names.iter().flat_map(|san| &san.value.general_names);
    // A name that cannot be read counts as well: a second URI must not hide behind bad encoding.
    let mut uris = names.filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        GeneralName::Invalid(..) => Some(""),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(uri.parse()?),
        (None, _) => Err(PeerRefused::UriNames(0)),
        (Some(_), Some(_)) => Err(PeerRefused::UriNames(2 + uris.count())),
    }
}

/// What a workload's certificate must be beside valid (X509-SVID 4.3, 4.4, 5.2). That it is no CA is checked by path
/// validation, which also reads the dates and asks whether the extended key usage allows the direction. What an authority
/// must write is demanded here too, though a verifier need not: one that does not write it makes no SVIDs.
fn leaf_rules(cert: &X509Certificate<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), &'static str> {
    if intermediates.len() > MAX_INTERMEDIATES {
        return Err("its chain is too long");
    }
    // RFC 5280, 4.2.1.6: the name must not be passed over where there is no other one.
    let names_critical = matches!(cert.subject_alternative_name(), Ok(Some(names)) if names.critical);
    if cert.subject().iter().next().is_none() && !names_critical {
        return Err("its subject is empty, and its subject alternative name is not marked as critical");
    }
    match cert.key_usage() {
        Ok(Some(usage)) if usage.value.key_cert_sign() || usage.value.crl_sign() => {
            return Err("its key may sign certificates");
        }
        Ok(Some(usage)) if !usage.value.digital_signature() => {
            return Err("its key may not be used to sign handshakes");
        }
        Ok(Some(usage)) if !usage.critical => return Err("its key usage is not marked as critical"),
        Ok(Some(_)) => {}
        Ok(None) => return Err("it has no key usage; that of an SVID has digitalSignature and is critical"),
        Err(_) => return Err("its key usage cannot be read"),
    }
    match cert.extended_key_usage() {
        Ok(Some(usage)) if !(usage.value.server_auth && usage.value.client_auth) => {
            Err("its extended key usage is not for servers and clients both, as that of an SVID is")
        }
        Ok(_) => Ok(()),
        Err(_) => Err("its extended key usage cannot be read"),
    }
}

/// What those between a leaf and its root must be (X509-SVID 3.2, 4.3), of which path validation looks at dates, signatures
/// and cA alone: who has a key usage signs certificates by it (RFC 5280, 6.1.4 n); who has a SPIFFE ID has one without a
/// path, and whoever signed the leaf one of the leaf's trust domain or of an alias. One without a SPIFFE ID may stand there.
fn signer_rules(path: &VerifiedPath<'_>, leaf: &SpiffeId, bundles: &TrustBundles) -> Result<(), String> {
    for (above, signer) in path.intermediate_certificates().enumerate() {
        let der = signer.der();
        let cert = parse(&der).map_err(|e| format!("of a certificate above it: {e}"))?;
        match cert.key_usage() {
            Ok(Some(usage)) if !usage.value.key_cert_sign() => {
                return Err(format!("{} signed, whose key usage has no keyCertSign", cert.subject()));
            }
            Ok(_) => {}
            Err(_) => return Err(format!("the key usage of {}, who signed, cannot be read", cert.subject())),
        }
        let names =
            cert.subject_alternative_name().map_err(|e| format!("the names of a signer cannot be read: {e}"))?;
        for name in names.iter().flat_map(|names| &names.value.general_names) {
            let GeneralName::URI(uri) = name else { continue };
            let Some(domain) = uri.split_once("://").filter(|(scheme, _)| scheme.eq_ignore_ascii_case("spiffe")) else {
                continue;
            };
            let Ok(domain) = TrustDomain::new(domain.1) else {
                return Err(format!("{uri:?} signed: the SPIFFE ID of a signer is a trust domain without a path"));
            };
            if above == 0 && !bundles.are_one(&domain, &leaf.trust_domain()) {
                return Err(format!("an authority of {domain} signed it, which is another trust domain"));
            }
        }
    }
    Ok(())
}

/// What path validation said, for those who have to do something about it.
pub(super) fn in_words(error: &webpki::Error) -> String {
    let apart = |from: &UnixTime, to: &UnixTime| to.as_secs().saturating_sub(from.as_secs());
    match error {
        webpki::Error::CertExpired { time, not_after } => {
            format!("it ended {} seconds ago and was not renewed (CertExpired)", apart(not_after, time))
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            format!("it begins in {} seconds: check the clocks of both ends (CertNotValidYet)", apart(time, not_before))
        }
        webpki::Error::UnknownIssuer => "no root that is trusted here signed it (UnknownIssuer)".to_owned(),
        webpki::Error::CertRevoked => "its authority took it back (CertRevoked)".to_owned(),
        webpki::Error::UnknownRevocationStatus => {
            "no revocation list tells of it, and there are some (UnknownRevocationStatus)".to_owned()
        }
        webpki::Error::CrlExpired { time, next_update } => {
            format!("the revocation list that tells of it ended {} seconds ago (CrlExpired)", apart(next_update, time))
        }
        webpki::Error::MaximumPathBuildCallsExceeded => {
            "its chain can be put together in too many ways (MaximumPathBuildCallsExceeded)".to_owned()
        }
        other => other.to_string(),
    }
}

/// Verifies that a chain leads to a root of `bundle` and is not revoked, whoever it names. One that could be put together in
/// very many ways, for its certificates have the same names, is refused at once: to go them all costs seconds.
///
/// # Errors
/// It cannot be read, does not lead there, has expired, is revoked or may not be used this way.
pub fn verify_path(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: UnixTime,
    usage: Usage,
) -> Result<(), webpki::Error> {
    walk(leaf, intermediates, bundle, algorithms, now, usage, |_| ())
}

/// The same, and what is to be said of the path that was found.
fn walk<T>(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    now: UnixTime,
    usage: Usage,
    say: impl FnOnce(&VerifiedPath<'_>) -> T,
) -> Result<T, webpki::Error> {
    let cert = EndEntityCert::try_from(leaf)?;
    ways::check(&cert, intermediates)?;
    let lists: Vec<_> = bundle.revoked().iter().collect();
    // Whose state no list tells, is refused: lists are there because somebody wants them to count. That is of the leaf and
    // of all that stands between it and the root.
    let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|options| {
        options.with_depth(RevocationCheckDepth::Chain).with_expiration_policy(ExpirationPolicy::Enforce).build()
    });
    let remembering: Vec<_> = match revocation {
        Some(_) => algorithms.iter().map(|by| Remembering::new(*by, bundle)).collect(),
        None => Vec::new(),
    };
    let remembering: Vec<&dyn SignatureVerificationAlgorithm> = remembering.iter().map(|by| by as _).collect();
    let algorithms = if remembering.is_empty() { algorithms } else { &remembering };
    let usage = KeyUsage::from(usage);
    let path = cert.verify_for_usage(algorithms, bundle.anchors(), intermediates, now, usage, revocation, None)?;
    Ok(say(&path))
}
