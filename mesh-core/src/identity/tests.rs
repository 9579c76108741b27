//! Whole handshakes in memory, with certificates as a good, a careless and a hostile authority would
//! issue them.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConnection, ServerConnection};

use super::*;
use crate::id::TrustDomain;
use crate::policy::{StringMatch, StringMatcher};

mod chains;
mod lists;
pub(super) mod rows;
mod sessions;

pub(super) const REVIEWS: &str = "spiffe://cluster.local/ns/default/sa/reviews";
pub(super) const RATINGS: &str = "spiffe://cluster.local/ns/default/sa/ratings";

/// A root and what it signs.
pub(super) struct Root {
    pub(super) der: CertificateDer<'static>,
    name: DistinguishedName,
    issuer: Issuer<'static, KeyPair>,
}

impl Root {
    pub(super) fn new() -> Self {
        Self::of(KeyPair::generate().unwrap())
    }

    fn of(key: KeyPair) -> Self {
        Self::made(CertificateParams::default(), key)
    }

    fn named(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        Self::made(params, KeyPair::generate().unwrap())
    }

    fn made(mut params: CertificateParams, key: KeyPair) -> Self {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let der = params.self_signed(&key).unwrap().der().clone();
        Self { der, name: params.distinguished_name.clone(), issuer: Issuer::new(params, key) }
    }

    pub(super) fn issue(&self, params: &CertificateParams) -> CertifiedKey {
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        CertifiedKey::from_der(vec![leaf.der().clone()], key, &provider()).unwrap()
    }

    fn bundles(&self) -> TrustBundles {
        let bundle = TrustBundle::new([self.der.clone()]).unwrap();
        TrustBundles::single(TrustDomain::new("cluster.local").unwrap(), bundle)
    }

    fn identity(&self, id: &str) -> Identity {
        Identity::new(self.issue(&leaf(&[id])), self.bundles(), 1).unwrap()
    }
}

pub(super) fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// A correct workload certificate with these URI names.
pub(super) fn leaf(uris: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A set that [`Identity::new`] would refuse to make, for the hostile side.
fn forged(certified: CertifiedKey, bundles: TrustBundles) -> Identity {
    let (not_before, not_after) = (0, u64::MAX);
    Identity {
        id: REVIEWS.parse().unwrap(),
        certified: Arc::new(certified),
        bundles,
        not_before,
        not_after,
        generation: 1,
    }
}

/// What the client and the server found wrong.
type Errors = (Option<rustls::Error>, Option<rustls::Error>);

/// Runs a handshake to its end; the errors of the client and of the server, if any.
fn handshake(
    client: &Identity,
    server: &Identity,
    expected: &[StringMatcher],
    mandatory: bool,
) -> Result<(ClientConnection, ServerConnection), Box<Errors>> {
    let client = client_config(client, expected, &[b"h2"], &provider()).unwrap();
    let name = ServerName::try_from("ignored.test").unwrap();
    let client = ClientConnection::new(Arc::new(client), name).unwrap();
    let server = server_config(server, mandatory, &[b"h2", b"http/1.1"], &provider()).unwrap();
    run(client, ServerConnection::new(Arc::new(server)).unwrap())
}

fn run(
    mut client: ClientConnection,
    mut server: ServerConnection,
) -> Result<(ClientConnection, ServerConnection), Box<Errors>> {
    let (mut client_error, mut server_error) = (None, None);
    // Each round moves one flight; a handshake has fewer.
    for _ in 0..10 {
        let mut flight = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut input = &flight[..];
        while !input.is_empty() && server_error.is_none() {
            server.read_tls(&mut input).unwrap();
            server_error = server.process_new_packets().err();
        }
        let mut flight = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        let mut input = &flight[..];
        while !input.is_empty() && client_error.is_none() {
            client.read_tls(&mut input).unwrap();
            client_error = client.process_new_packets().err();
        }
    }
    match (client_error, server_error) {
        (None, None) if !client.is_handshaking() && !server.is_handshaking() => Ok((client, server)),
        errors => Err(Box::new(errors)),
    }
}

fn refused(error: Option<rustls::Error>) -> PeerRefused {
    let error = error.expect("this side refuses");
    PeerRefused::of(&error).unwrap_or_else(|| panic!("{error}")).clone()
}

/// Why `peer` is refused as a server and as a client by one that trusts `root`; it must be the same.
fn refusal(root: &Root, peer: &Identity) -> PeerRefused {
    let good = root.identity(RATINGS);
    let as_server = refused(handshake(&good, peer, &[], true).unwrap_err().0);
    // The hostile client takes any server.
    let as_client = refused(handshake(peer, &good, &[], true).unwrap_err().1);
    // The words of path validation may name the usage that was asked for; all else is the same.
    match (&as_server, &as_client) {
        (PeerRefused::NotValid { id: one, .. }, PeerRefused::NotValid { id: other, .. }) => assert_eq!(one, other),
        _ => assert_eq!(as_server, as_client),
    }
    as_server
}

#[test]
fn good_peers_meet_and_know_each_other() {
    let root = Root::new();
    let (reviews, ratings) = (root.identity(REVIEWS), root.identity(RATINGS));
    let (client, server) = handshake(&reviews, &ratings, &[StringMatcher::exact(RATINGS)], true).unwrap();
    assert_eq!(client.alpn_protocol(), Some(&b"h2"[..]));
    let id = |certificates: Option<&[CertificateDer<'static>]>| peer_spiffe_id(&certificates.unwrap()[0]).unwrap();
    assert_eq!(id(client.peer_certificates()).as_str(), RATINGS);
    assert_eq!(id(server.peer_certificates()).as_str(), REVIEWS);
}

#[test]
fn s6_a_peer_of_a_domain_without_bundle_is_refused() {
    let root = Root::new();
    // Signed by our own root: the name decides which bundle counts.
    let stranger = forged(root.issue(&leaf(&["spiffe://elsewhere/ns/default/sa/reviews"])), root.bundles());
    assert!(matches!(refusal(&root, &stranger), PeerRefused::UnknownDomain(id) if id.as_str().contains("elsewhere")));
}

#[test]
fn a_peer_that_another_root_signed_is_refused() {
    let (root, other) = (Root::new(), Root::new());
    let impostor = forged(other.issue(&leaf(&[REVIEWS])), root.bundles());
    assert!(matches!(refusal(&root, &impostor), PeerRefused::NotValid { id, .. } if id.as_str() == REVIEWS));
}

#[test]
fn s6_roots_of_one_domain_do_not_vouch_for_another() {
    let (root, other) = (Root::new(), Root::new());
    let elsewhere = TrustDomain::new("elsewhere").unwrap();
    let mut bundles = root.bundles();
    bundles.insert(elsewhere, TrustBundle::new([other.der.clone()]).unwrap());
    let federated = Identity::new(root.issue(&leaf(&[RATINGS])), bundles.clone(), 1).unwrap();

    let guest = forged(other.issue(&leaf(&["spiffe://elsewhere/guest"])), bundles.clone());
    assert!(handshake(&guest, &federated, &[], true).is_ok(), "control: its own domain's root vouches for it");
    let impostor = forged(other.issue(&leaf(&[REVIEWS])), bundles);
    let (_, error) = *handshake(&impostor, &federated, &[], true).unwrap_err();
    assert!(matches!(refused(error), PeerRefused::NotValid { .. }));
}

#[test]
fn s6_a_certificate_needs_exactly_one_uri_name_and_that_a_spiffe_id() {
    let root = Root::new();
    let with = |params: CertificateParams| refusal(&root, &forged(root.issue(&params), root.bundles()));
    assert_eq!(with(leaf(&[])), PeerRefused::UriNames(0));
    assert_eq!(with(leaf(&[REVIEWS, RATINGS])), PeerRefused::UriNames(2));
    assert_eq!(with(leaf(&[REVIEWS, "https://example.com", RATINGS])), PeerRefused::UriNames(3));
    assert!(matches!(with(leaf(&["https://example.com/x"])), PeerRefused::NotSpiffe(_)));
    assert!(matches!(with(leaf(&["spiffe://cluster.local"])), PeerRefused::NotSpiffe(_)));

    let mut dns = leaf(&[]);
    dns.subject_alt_names = vec![SanType::DnsName("reviews.default".try_into().unwrap())];
    assert_eq!(with(dns), PeerRefused::UriNames(0), "no fall-through to DNS names");
}

#[test]
fn an_authority_is_no_workload() {
    let root = Root::new();
    let with = |params: CertificateParams| refusal(&root, &forged(root.issue(&params), root.bundles()));
    let mut ca = leaf(&[REVIEWS]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert!(matches!(with(ca), PeerRefused::NotValid { .. }));
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let mut signer = leaf(&[REVIEWS]);
        signer.key_usages.push(usage);
        assert!(matches!(with(signer), PeerRefused::NotValid { reason, .. } if reason.contains("sign")), "{usage:?}");
    }
}

#[test]
fn dates_and_extended_key_usage_count() {
    let root = Root::new();
    let with = |params: CertificateParams| refusal(&root, &forged(root.issue(&params), root.bundles()));
    let mut expired = leaf(&[REVIEWS]);
    (expired.not_before, expired.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 1, 2));
    assert!(matches!(with(expired), PeerRefused::NotValid { reason, .. } if reason.contains("Expired")));
    let mut early = leaf(&[REVIEWS]);
    early.not_before = date_time_ymd(4000, 1, 1);
    early.not_after = date_time_ymd(4001, 1, 1);
    assert!(matches!(with(early), PeerRefused::NotValid { .. }));
    let mut other_use = leaf(&[REVIEWS]);
    other_use.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
    assert!(matches!(with(other_use), PeerRefused::NotValid { .. }));
}

#[test]
fn s1_a_valid_server_of_another_name_is_refused() {
    let root = Root::new();
    let (reviews, ratings) = (root.identity(REVIEWS), root.identity(RATINGS));
    let prefix = |text: &str| StringMatcher { pattern: StringMatch::Prefix(text.to_owned()), ignore_case: false };
    let wrong = [StringMatcher::exact(REVIEWS), prefix("spiffe://cluster.local/ns/prod/")];
    match refused(handshake(&reviews, &ratings, &wrong, true).unwrap_err().0) {
        PeerRefused::WrongId { got, expected } => {
            assert_eq!(got.as_str(), RATINGS);
            assert!(expected.contains(REVIEWS), "{expected}");
        }
        other => panic!("{other}"),
    }
    let right = [StringMatcher::exact(REVIEWS), prefix("spiffe://cluster.local/ns/default/")];
    assert!(handshake(&reviews, &ratings, &right, true).is_ok(), "control");
}

#[test]
fn a_client_without_certificate_is_refused_unless_it_may_stay_anonymous() {
    let root = Root::new();
    let anonymous = || {
        let verifier = SpiffeServerVerifier::new(root.bundles(), Vec::new(), provider());
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        ClientConnection::new(Arc::new(config), ServerName::try_from("ignored.test").unwrap()).unwrap()
    };
    let server = |mandatory| {
        let config = server_config(&root.identity(RATINGS), mandatory, &[], &provider()).unwrap();
        ServerConnection::new(Arc::new(config)).unwrap()
    };
    let (_, error) = *run(anonymous(), server(true)).unwrap_err();
    assert_eq!(error, Some(rustls::Error::NoCertificatesPresented));
    let (_, server) = run(anonymous(), server(false)).unwrap();
    assert_eq!(server.peer_certificates(), None);
}

#[test]
fn a_second_connection_is_verified_like_the_first() {
    let root = Root::new();
    let client = Arc::new(client_config(&root.identity(REVIEWS), &[], &[], &provider()).unwrap());
    let server = Arc::new(server_config(&root.identity(RATINGS), true, &[], &provider()).unwrap());
    for _ in 0..2 {
        let name = ServerName::try_from("ignored.test").unwrap();
        let client = ClientConnection::new(client.clone(), name).unwrap();
        let (client, _) = run(client, ServerConnection::new(server.clone()).unwrap()).unwrap();
        assert_ne!(client.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    }
}

#[test]
fn an_identity_is_one_consistent_set() {
    let root = Root::new();
    let good = root.identity(REVIEWS);
    assert_eq!(good.id().as_str(), REVIEWS);
    assert!(good.not_before() < good.not_after());

    let foreign_key = PrivateKeyDer::Pkcs8(KeyPair::generate().unwrap().serialize_der().into());
    let foreign_key = provider().key_provider.load_private_key(foreign_key).unwrap();
    let mixed = CertifiedKey::new(good.certified().cert.clone(), foreign_key);
    assert!(matches!(Identity::new(mixed, root.bundles(), 1), Err(InvalidIdentity::Tls(_))));
    let nameless = root.issue(&leaf(&[]));
    assert!(matches!(Identity::new(nameless, root.bundles(), 1), Err(InvalidIdentity::Leaf(_))));
    let key = good.certified().key.clone();
    let empty = CertifiedKey::new(Vec::new(), key);
    assert!(matches!(Identity::new(empty, root.bundles(), 1), Err(InvalidIdentity::NoCertificate)));
    assert!(TrustBundle::new([]).is_err());
    assert!(TrustBundle::new([CertificateDer::from(vec![1, 2, 3])]).is_err());
}

#[test]
fn a_key_is_never_printed() {
    let identity = Root::new().identity(REVIEWS);
    assert!(!format!("{identity:?}").to_lowercase().contains("key"));
}
