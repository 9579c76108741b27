//! The rows of the threat list about certificates, each with the same peer without the trick.

use std::time::Duration;

use rcgen::{CertificateRevocationListParams, DnType, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber};
use rustls::pki_types::UnixTime;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, NamedGroup, ProtocolVersion, SupportedProtocolVersion};

use super::*;

/// What is said of a client with such a certificate and, which must be the same, of a server.
fn said(root: &Root, params: &CertificateParams) -> PeerRefused {
    refusal(root, &forged(root.issue(params), root.bundles()))
}

fn accepted(root: &Root, params: &CertificateParams) {
    let good = root.identity(RATINGS);
    let peer = forged(root.issue(params), root.bundles());
    assert!(handshake(&good, &peer, &[], true).is_ok() && handshake(&peer, &good, &[], true).is_ok(), "control");
}

fn not_valid(refused: PeerRefused) -> String {
    match refused {
        PeerRefused::NotValid { reason, .. } => reason,
        other => panic!("{other}"),
    }
}

pub(super) fn verify(
    chain: &[CertificateDer<'_>],
    bundles: &TrustBundles,
    now: UnixTime,
) -> Result<SpiffeId, PeerRefused> {
    verify_svid(chain, bundles, provider().signature_verification_algorithms.all, now, Usage::Client)
}

#[test]
fn s44_no_name_but_the_uri_is_asked_for_who_a_peer_is() {
    let root = Root::new();
    let mut named = leaf(&[REVIEWS]);
    named.distinguished_name.push(DnType::CommonName, RATINGS);
    named.subject_alt_names.push(SanType::DnsName(RATINGS.try_into().unwrap()));
    let peer = forged(root.issue(&named), root.bundles());
    let client = root.identity(REVIEWS);
    let wrong = handshake(&client, &peer, &[StringMatcher::exact(RATINGS)], true).unwrap_err().0;
    assert!(matches!(refused(wrong), PeerRefused::WrongId { got, .. } if got.as_str() == REVIEWS));
    assert!(handshake(&client, &peer, &[StringMatcher::exact(REVIEWS)], true).is_ok(), "control");
}

#[test]
fn s55_none_two_or_an_unreadable_uri_name_is_nobody() {
    let root = Root::new();
    assert_eq!(said(&root, &leaf(&[])), PeerRefused::UriNames(0));
    assert_eq!(said(&root, &leaf(&[REVIEWS, RATINGS])), PeerRefused::UriNames(2));
    assert_eq!(said(&root, &leaf(&[REVIEWS, REVIEWS])), PeerRefused::UriNames(2), "the same twice");
    // A SAN extension of its own beside the first one.
    let mut twice = leaf(&[REVIEWS]);
    let second = [&[0x30, RATINGS.len() as u8 + 2, 0x86, RATINGS.len() as u8], RATINGS.as_bytes()].concat();
    twice.custom_extensions.push(rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], second));
    // rustls itself would not show it.
    let twice = twice.signed_by(&KeyPair::generate().unwrap(), &root.issuer).unwrap().der().clone();
    let refused = verify(&[twice], &root.bundles(), UnixTime::now()).unwrap_err();
    assert!(matches!(refused, PeerRefused::Unreadable(_)), "{refused}");
    let mut beside = leaf(&[REVIEWS]);
    beside.subject_alt_names.push(SanType::DnsName("reviews.default.svc".try_into().unwrap()));
    accepted(&root, &beside);
}

#[test]
fn s56_what_is_not_a_spiffe_id_of_a_workload_is_refused() {
    let root = Root::new();
    for odd in [
        "SPIFFE://cluster.local/ns/default/sa/web",
        "spiffe://Cluster.Local/ns/default/sa/web",
        "spiffe://cluster.local",
        "spiffe://cluster.local/",
        "spiffe://cluster.local/ns/default/sa/web/",
        "spiffe://cluster.local//a",
        "spiffe://cluster.local/./a",
        "spiffe://cluster.local/a/../b",
        "spiffe://cluster.local/a%2fb",
        "spiffe://cluster.local/a?q",
        "spiffe://cluster.local/a#f",
        "spiffe://cluster.local:443/a",
        "spiffe://u@cluster.local/a",
        "spiffe:///a",
        "https://cluster.local/a",
    ] {
        assert!(matches!(said(&root, &leaf(&[odd])), PeerRefused::NotSpiffe(_)), "{odd}");
    }
    let of_length = |length: usize| format!("spiffe://cluster.local/{}", "a".repeat(length - 23));
    assert!(matches!(said(&root, &leaf(&[&of_length(2_049)])), PeerRefused::NotSpiffe(_)));
    accepted(&root, &leaf(&[&of_length(2_048)]));
    // The path is compared as it is.
    let peer = root.identity("spiffe://cluster.local/ns/default/sa/Reviews");
    let client = root.identity(RATINGS);
    assert!(handshake(&client, &peer, &[StringMatcher::exact(REVIEWS)], true).is_err());
    assert!(handshake(&client, &root.identity(REVIEWS), &[StringMatcher::exact(REVIEWS)], true).is_ok(), "control");
}

#[test]
fn s57_a_nul_or_another_control_in_the_name_does_not_end_it() {
    let root = Root::new();
    for odd in ["\0", "\0.evil.test", "\n", "/\0"] {
        let uri = format!("{REVIEWS}{odd}");
        assert!(matches!(said(&root, &leaf(&[&uri])), PeerRefused::NotSpiffe(_)), "{uri:?}");
    }
    accepted(&root, &leaf(&[REVIEWS]));
}

#[test]
fn s58_an_authority_is_no_workload() {
    let root = Root::new();
    let mut ca = leaf(&[REVIEWS]);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    not_valid(said(&root, &ca));
    for usage in [KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign] {
        let mut signer = leaf(&[REVIEWS]);
        signer.key_usages.push(usage);
        assert!(not_valid(said(&root, &signer)).contains("sign certificates"), "{usage:?}");
    }
    let mut other = leaf(&[REVIEWS]);
    other.key_usages = vec![KeyUsagePurpose::KeyEncipherment];
    assert!(not_valid(said(&root, &other)).contains("handshakes"));
    accepted(&root, &leaf(&[REVIEWS]));
}

#[test]
fn s58_a_key_usage_is_there_and_critical() {
    let root = Root::new();
    let mut without = leaf(&[REVIEWS]);
    without.key_usages.clear();
    assert!(not_valid(said(&root, &without)).contains("no key usage"));
    // The same bits in an extension that a reader may pass over.
    let of = |critical: bool| {
        let mut own = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 0x80]);
        own.set_criticality(critical);
        let mut params = without.clone();
        params.custom_extensions = vec![own];
        params
    };
    assert!(not_valid(said(&root, &of(false))).contains("critical"));
    accepted(&root, &of(true));
    // As istiod, cert-manager and SPIRE write them.
    let mut theirs = leaf(&[REVIEWS]);
    theirs.key_usages.extend([KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyAgreement]);
    accepted(&root, &theirs);
}

/// As Go's x509, and with it istiod, SPIRE and cert-manager, writes it: critical if the subject is empty, else not.
#[test]
fn s58_the_name_is_critical_where_the_subject_is_empty() {
    let root = Root::new();
    let name = [&[0x86, u8::try_from(REVIEWS.len()).unwrap()], REVIEWS.as_bytes()].concat();
    let names = [&[0x30, u8::try_from(name.len()).unwrap()], &name[..]].concat();
    let of = |subject: Option<&str>, critical: bool| {
        let mut own = rcgen::CustomExtension::from_oid_content(&[2, 5, 29, 17], names.clone());
        own.set_criticality(critical);
        let mut params = leaf(&[]);
        params.distinguished_name = rcgen::DistinguishedName::new();
        if let Some(subject) = subject {
            params.distinguished_name.push(rcgen::DnType::OrganizationName, subject);
        }
        params.custom_extensions = vec![own];
        params
    };
    assert!(not_valid(said(&root, &of(None, false))).contains("subject is empty"));
    for fine in [of(None, true), of(Some("SPIRE"), false), of(Some("SPIRE"), true)] {
        accepted(&root, &fine);
    }
}

#[test]
fn s59_an_extended_key_usage_must_allow_the_direction() {
    let root = Root::new();
    let with = |usages: &[ExtendedKeyUsagePurpose]| {
        let mut params = leaf(&[REVIEWS]);
        params.extended_key_usages = usages.to_vec();
        forged(root.issue(&params), root.bundles())
    };
    let (client, server) = (ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth);
    let good = root.identity(RATINGS);
    // A SVID is for both directions, whichever it is shown in.
    for odd in [ExtendedKeyUsagePurpose::CodeSigning, ExtendedKeyUsagePurpose::Any, client.clone(), server.clone()] {
        let odd = with(&[odd]);
        assert!(not_valid(refusal(&root, &odd)).contains("both"));
        assert!(handshake(&good, &odd, &[], true).is_err() && handshake(&odd, &good, &[], true).is_err());
    }
    for fine in
        [vec![], vec![client.clone(), server.clone()], vec![client, server, ExtendedKeyUsagePurpose::CodeSigning]]
    {
        let fine = with(&fine);
        assert!(handshake(&good, &fine, &[], true).is_ok() && handshake(&fine, &good, &[], true).is_ok(), "control");
    }
}

#[test]
fn s60_a_spiffe_id_in_another_kind_of_name_is_none() {
    let root = Root::new();
    let mut dns = leaf(&[]);
    dns.subject_alt_names = vec![
        SanType::DnsName(REVIEWS.try_into().unwrap()),
        SanType::Rfc822Name(REVIEWS.try_into().unwrap()),
        SanType::IpAddress([127, 0, 0, 1].into()),
    ];
    dns.distinguished_name.push(DnType::CommonName, REVIEWS);
    assert_eq!(said(&root, &dns), PeerRefused::UriNames(0));
    dns.subject_alt_names.push(SanType::URI(REVIEWS.try_into().unwrap()));
    accepted(&root, &dns);
}

#[test]
fn s61_an_empty_name_expects_nobody_and_no_names_still_want_a_valid_peer() {
    let (root, other) = (Root::new(), Root::new());
    let (client, server) = (root.identity(REVIEWS), root.identity(RATINGS));
    assert!(handshake(&client, &server, &[StringMatcher::exact("")], true).is_err());
    let impostor = forged(other.issue(&leaf(&[RATINGS])), root.bundles());
    assert!(handshake(&client, &impostor, &[], true).is_err());
    assert!(handshake(&client, &server, &[], true).is_ok(), "control");
    // No bundle at all is no trust at all.
    let mistrusting = forged(root.issue(&leaf(&[REVIEWS])), TrustBundles::default());
    assert!(handshake(&mistrusting, &server, &[], true).is_err());
}

#[test]
fn s62_the_bundle_is_that_of_the_peers_own_domain() {
    let (root, other) = (Root::new(), Root::new());
    let domain = |name: &str| TrustDomain::new(name).unwrap();
    let bundle = |root: &Root| TrustBundle::new([root.der.clone()]).unwrap();
    let now = UnixTime::now();
    let (of_old, of_b) = (leaf(&["spiffe://old.test/ns/default/sa/reviews"]), leaf(&["spiffe://td-b/guest"]));
    let mut bundles = root.bundles();
    let check = |root: &Root, params: &CertificateParams, bundles: &TrustBundles| {
        verify(&root.issue(params).cert, bundles, now)
    };
    assert!(matches!(check(&other, &leaf(&[REVIEWS]), &bundles), Err(PeerRefused::NotValid { .. })));
    assert!(matches!(check(&other, &of_b, &bundles), Err(PeerRefused::UnknownDomain(_))), "no entry");
    bundles.insert(domain("td-b"), bundle(&other));
    assert!(check(&other, &of_b, &bundles).is_ok(), "control: federated");
    assert!(matches!(check(&other, &leaf(&[REVIEWS]), &bundles), Err(PeerRefused::NotValid { .. })), "and no further");
    assert!(matches!(check(&root, &of_b, &bundles), Err(PeerRefused::NotValid { .. })));

    assert!(matches!(check(&root, &of_old, &bundles), Err(PeerRefused::UnknownDomain(_))));
    bundles.alias(domain("old.test"), domain("cluster.local"));
    let id = check(&root, &of_old, &bundles).unwrap();
    assert_eq!(bundles.aliased(&id).unwrap().as_str(), REVIEWS);
    assert_eq!(bundles.aliased(&REVIEWS.parse().unwrap()), None);
    assert!(check(&other, &of_old, &bundles).is_err(), "another domain's root");
    // An alias with a bundle of its own is a domain of its own.
    bundles.insert(domain("old.test"), bundle(&other));
    assert!(check(&root, &of_old, &bundles).is_err());
    assert_eq!(bundles.aliased(&id), None);
}

/// Policy would know it by neither of its names.
#[test]
fn s62_a_peer_whose_present_name_is_too_long_is_refused() {
    let root = Root::new();
    let (former, present) = ("old.test", "cluster.local");
    let named = |path: usize| leaf(&[&format!("spiffe://{former}/{}", "a".repeat(path))]);
    let longest = 2048 - "spiffe://".len() - present.len() - 1;
    let now = UnixTime::now();
    let mut bundles = root.bundles();
    bundles
        .insert(TrustDomain::new(former).unwrap(), bundles.get(&TrustDomain::new(present).unwrap()).unwrap().clone());
    assert!(verify(&root.issue(&named(longest + 1)).cert, &bundles, now).is_ok(), "control: its own domain");
    let mut bundles = root.bundles();
    bundles.alias(TrustDomain::new(former).unwrap(), TrustDomain::new(present).unwrap());
    let id = verify(&root.issue(&named(longest)).cert, &bundles, now).unwrap();
    assert_eq!(bundles.aliased(&id).unwrap().as_str().len(), 2048);
    let refused = verify(&root.issue(&named(longest + 1)).cert, &bundles, now).unwrap_err();
    assert!(not_valid(refused).contains("longer than 2048 bytes"));
}

#[test]
fn s62_a_client_takes_a_server_under_its_former_trust_domain() {
    let root = Root::new();
    let server = forged(root.issue(&leaf(&["spiffe://old.test/ns/default/sa/ratings"])), root.bundles());
    let expected = [StringMatcher::exact(RATINGS)];
    let mut bundles = root.bundles();
    let client = |bundles: &TrustBundles| Identity::new(root.issue(&leaf(&[REVIEWS])), bundles.clone(), 1).unwrap();
    assert!(handshake(&client(&bundles), &server, &expected, true).is_err(), "control");
    bundles.alias(TrustDomain::new("old.test").unwrap(), TrustDomain::new("cluster.local").unwrap());
    assert!(handshake(&client(&bundles), &server, &expected, true).is_ok());
    assert!(handshake(&client(&bundles), &server, &[StringMatcher::exact(REVIEWS)], true).is_err());
}

#[test]
fn s63_a_bundle_is_read_whole_or_not_at_all() {
    let (one, two) = (Root::new(), Root::new());
    let both = [&one.der[..], &two.der[..]].concat();
    assert_eq!(certificates_of_der(&both).unwrap(), [one.der.clone(), two.der.clone()]);
    for bad in
        [&both[..both.len() - 1], &[&both[..], b"x"].concat(), &[], &vec![0x30; 70_000], b"\x30\x84\xff\xff\xff\xff"]
    {
        assert!(certificates_of_der(bad).is_err());
    }
    let good = TrustBundle::new(certificates_of_der(&both).unwrap()).unwrap();
    assert_eq!(good, TrustBundle::new([one.der.clone(), two.der.clone()]).unwrap());
    assert!(TrustBundle::new(vec![one.der.clone(); 65]).is_err(), "too many");
    assert!(TrustBundle::new([one.der.clone(), CertificateDer::from(vec![0x30, 0])]).is_err(), "one bad root");
    for bad in
        ["", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "-----BEGIN CERTIFICATE-----"]
    {
        assert!(TrustBundle::from_pem(bad.as_bytes()).is_err(), "{bad:?}");
    }
}

/// A root's list of revoked serials, valid for an hour around `at`.
pub(in crate::identity) fn list(root: &Root, serials: &[u64], at: u64) -> Vec<u8> {
    let time = |seconds: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let revoked = |serial: &u64| RevokedCertParams {
        serial_number: SerialNumber::from(*serial),
        revocation_time: time(at),
        reason_code: Some(RevocationReason::KeyCompromise),
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: time(at - 1_800),
        next_update: time(at + 1_800),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(&root.issuer).unwrap().der().to_vec()
}

fn numbered(root: &Root, serial: u64) -> Vec<CertificateDer<'static>> {
    let mut params = leaf(&[REVIEWS]);
    params.serial_number = Some(SerialNumber::from(serial));
    root.issue(&params).cert
}

fn with_lists(root: &Root, lists: Vec<Vec<u8>>) -> Result<TrustBundles, InvalidBundle> {
    let bundle = TrustBundle::new([root.der.clone()])?.with_revocation_lists(lists)?;
    Ok(TrustBundles::single(TrustDomain::new("cluster.local").unwrap(), bundle))
}

#[test]
fn s67_a_revoked_certificate_and_one_whose_state_is_unknown_are_refused() {
    let (root, other) = (Root::new(), Root::new());
    let now = UnixTime::now();
    let at = now.as_secs();
    let bundles = with_lists(&root, vec![list(&root, &[7], at)]).unwrap();
    assert!(not_valid(verify(&numbered(&root, 7), &bundles, now).unwrap_err()).contains("Revoked"));
    assert!(verify(&numbered(&root, 8), &bundles, now).is_ok(), "control");
    assert!(verify(&numbered(&root, 7), &root.bundles(), now).is_ok(), "control: no lists");
    // The list is another authority's, so nobody says that this one is not revoked.
    let bundles = with_lists(&root, vec![list(&other, &[7], at)]).unwrap();
    not_valid(verify(&numbered(&root, 8), &bundles, now).unwrap_err());
    // What a list has to say ends.
    let bundles = with_lists(&root, vec![list(&root, &[7], at - 86_400)]).unwrap();
    not_valid(verify(&numbered(&root, 8), &bundles, now).unwrap_err());
}

/// An authority that `root` signed.
fn intermediate(root: &Root, serial: u64) -> Root {
    authority(root, |params| params.serial_number = Some(SerialNumber::from(serial)))
}

pub(in crate::identity) fn authority(root: &Root, change: impl FnOnce(&mut CertificateParams)) -> Root {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    change(&mut params);
    let der = params.signed_by(&key, &root.issuer).unwrap().der().clone();
    Root { der, name: params.distinguished_name.clone(), issuer: Issuer::new(params, key) }
}

#[test]
fn s67_what_stands_between_a_leaf_and_its_root_is_asked_about_too() {
    let root = Root::new();
    let between = intermediate(&root, 5);
    let chain = [numbered(&between, 7), vec![between.der.clone()]].concat();
    let now = UnixTime::now();
    let of = |by: &Root, serials: &[u64]| list(by, serials, now.as_secs());
    let judged = |lists| verify(&chain, &with_lists(&root, lists).unwrap(), now);
    for revoked in [vec![of(&root, &[5]), of(&between, &[])], vec![of(&root, &[]), of(&between, &[7])]] {
        assert!(not_valid(judged(revoked).unwrap_err()).contains("Revoked"));
    }
    // The list of its root is not there.
    not_valid(judged(vec![of(&between, &[])]).unwrap_err());
    assert!(judged(vec![of(&root, &[]), of(&between, &[])]).is_ok(), "control");
    assert!(judged(Vec::new()).is_ok(), "control: no lists");
}

/// What a chain of one more authority, changed in this way, is told of a leaf of ours.
fn signed_by(root: &Root, bundles: &TrustBundles, change: impl FnOnce(&mut CertificateParams)) -> Result<(), String> {
    let between = authority(root, change);
    let chain = [between.issue(&leaf(&[REVIEWS])).cert, vec![between.der]].concat();
    match verify(&chain, bundles, UnixTime::now()) {
        Ok(id) => {
            assert_eq!(id.as_str(), REVIEWS);
            Ok(())
        }
        Err(refused) => Err(not_valid(refused)),
    }
}

#[test]
fn s58_between_a_leaf_and_its_root_stands_who_may_sign_certificates() {
    let root = Root::new();
    let bundles = root.bundles();
    for usages in [
        vec![KeyUsagePurpose::CrlSign],
        vec![KeyUsagePurpose::DigitalSignature],
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign],
    ] {
        let refused = signed_by(&root, &bundles, |params| params.key_usages = usages).unwrap_err();
        assert!(refused.contains("CN=intermediate") && refused.contains("keyCertSign"), "{refused}");
    }
    // cA is path validation's to look at.
    let refused = signed_by(&root, &bundles, |params| params.is_ca = IsCa::ExplicitNoCa).unwrap_err();
    assert!(refused.contains("EndEntityUsedAsCa"), "{refused}");
    // The controls: with it alone; without any key usage, which restricts nothing (RFC 5280, 6.1.4 n); and without cRLSign.
    for usages in [vec![KeyUsagePurpose::KeyCertSign], vec![]] {
        assert_eq!(signed_by(&root, &bundles, |params| params.key_usages = usages), Ok(()));
    }
    // Who stands beside the path signs nothing and is not looked at.
    let idle = authority(&root, |params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    let chain = [root.issue(&leaf(&[REVIEWS])).cert, vec![idle.der]].concat();
    assert!(verify(&chain, &bundles, UnixTime::now()).is_ok());
    // The one above who signed the leaf is looked at as well.
    let upper = authority(&root, |params| params.key_usages = vec![KeyUsagePurpose::CrlSign]);
    let lower = authority(&upper, |params| params.distinguished_name.push(DnType::OrganizationName, "lower"));
    let chain = [lower.issue(&leaf(&[REVIEWS])).cert, vec![lower.der, upper.der]].concat();
    assert!(not_valid(verify(&chain, &bundles, UnixTime::now()).unwrap_err()).contains("keyCertSign"));
}

#[test]
fn s62_an_authority_of_another_domain_or_one_that_is_a_workload_vouches_for_nobody() {
    let root = Root::new();
    let mut bundles = root.bundles();
    let named = |uri: &'static str| {
        move |params: &mut CertificateParams| params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())]
    };
    for (uri, why) in [
        ("spiffe://other-domain", "another trust domain"),
        ("spiffe://cluster.local/ns/default/sa/ratings", "without a path"),
        ("spiffe://cluster.local/", "without a path"),
        ("SPIFFE://cluster.local/ca", "without a path"),
        ("spiffe://", "without a path"),
        ("spiffe://cluster.local?q", "without a path"),
        ("spiffe://u@cluster.local", "without a path"),
    ] {
        let refused = signed_by(&root, &bundles, named(uri)).unwrap_err();
        assert!(refused.contains(why), "{uri}: {refused}");
    }
    let both = |params: &mut CertificateParams| {
        named("spiffe://cluster.local")(params);
        params.subject_alt_names.push(SanType::URI("spiffe://cluster.local/x".try_into().unwrap()));
    };
    assert!(signed_by(&root, &bundles, both).unwrap_err().contains("without a path"));
    // The controls: of its own domain; without any; with names of other kinds, as istiod's has them.
    assert_eq!(signed_by(&root, &bundles, named("spiffe://cluster.local")), Ok(()));
    assert_eq!(signed_by(&root, &bundles, |_| {}), Ok(()));
    let dns = SanType::DnsName("istiod.istio-system.svc".try_into().unwrap());
    assert_eq!(signed_by(&root, &bundles, |params| params.subject_alt_names = vec![dns]), Ok(()));
    assert_eq!(signed_by(&root, &bundles, named("https://ca.example/issuer")), Ok(()));
    // A former name of the domain is one of it.
    let (old, home) = (TrustDomain::new("other-domain").unwrap(), TrustDomain::new("cluster.local").unwrap());
    bundles.alias(old.clone(), home);
    assert_eq!(signed_by(&root, &bundles, named("spiffe://other-domain")), Ok(()));
    // But for one with a bundle of its own.
    bundles.insert(old, TrustBundle::new([Root::new().der]).unwrap());
    assert!(signed_by(&root, &bundles, named("spiffe://other-domain")).unwrap_err().contains("another trust domain"));
    // Above who signed the leaf an authority may be of another domain (X509-SVID 3.2).
    let upper = authority(&root, named("spiffe://parent"));
    let lower = authority(&upper, |params| params.distinguished_name.push(DnType::OrganizationName, "lower"));
    let chain = [lower.issue(&leaf(&[REVIEWS])).cert, vec![lower.der, upper.der]].concat();
    assert!(verify(&chain, &bundles, UnixTime::now()).is_ok());
}

/// An element of DER, shorter than 64 KiB.
fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    let head: &[u8] = match length {
        [0, low @ ..0x80] => &[tag, low],
        [0, low] => &[tag, 0x81, low],
        [high, low] => &[tag, 0x82, high, low],
    };
    [head, content].concat()
}

/// The elements of which one consists: of each the tag, the content, and all of it.
fn elements(mut of: &[u8]) -> Vec<(u8, &[u8], &[u8])> {
    let mut found = Vec::new();
    while let [tag, length, ..] = of {
        let (head, length) = match *length {
            0x81 => (3, usize::from(of[2])),
            0x82 => (4, usize::from(of[2]) << 8 | usize::from(of[3])),
            short => (2, usize::from(short)),
        };
        found.push((*tag, &of[head..head + length], &of[..head + length]));
        of = &of[head + length..];
    }
    found
}

/// A list as it is, with an issuing distribution point of this content, and signed anew.
pub(in crate::identity) fn with_distribution_point(root: &Root, list: &[u8], content: &[u8]) -> Vec<u8> {
    let whole = elements(list)[0].1;
    let [(_, signed, _), (_, _, algorithm), _] = elements(whole)[..] else { panic!("a list has three parts") };
    let mut parts: Vec<Vec<u8>> = elements(signed).iter().map(|(_, _, whole)| whole.to_vec()).collect();
    let extensions = parts.pop().unwrap();
    let inside = elements(elements(&extensions)[0].1)[0].1;
    // 2.5.29.28, critical.
    let point = [&[6, 3, 0x55, 0x1d, 28, 1, 1, 0xff][..], &der(4, &der(0x30, content))].concat();
    parts.push(der(0xa0, &der(0x30, &[inside, &der(0x30, &point)].concat())));
    let signed = der(0x30, &parts.concat());
    let signature = rcgen::SigningKey::sign(root.issuer.key(), &signed).unwrap();
    der(0x30, &[signed, algorithm.to_vec(), der(3, &[&[0], &signature[..]].concat())].concat())
}

#[test]
fn s68_a_list_of_some_reasons_that_names_none_is_refused_in_words() {
    let root = Root::new();
    let now = UnixTime::now();
    let plain = list(&root, &[7], now.as_secs());
    let of = |content: &[u8]| with_lists(&root, vec![with_distribution_point(&root, &plain, content)]);
    // RUSTSEC-2026-0104: `onlySomeReasons` of no bits, well-formed; of one bit; and of nothing at all.
    for (bits, why) in [(&[0][..], "Partitioning"), (&[7, 0x80], "Partitioning"), (&[], "BadDer"), (&[1], "BadDer")] {
        let error = of(&der(0x83, bits)).unwrap_err().to_string();
        assert!(error.contains(why), "{bits:?}: {error}");
    }
    // The control: the same with a name in place of the reasons is read, holds, and is heard.
    let named = der(0xa0, &der(0xa0, &der(0x86, b"http://lists.test/one")));
    let bundles = of(&named).unwrap();
    assert!(not_valid(verify(&numbered(&root, 7), &bundles, now).unwrap_err()).contains("Revoked"));
    assert!(verify(&numbered(&root, 8), &bundles, now).is_ok());
}

#[test]
fn s68_a_bad_list_is_refused_as_it_is_read() {
    let root = Root::new();
    let at = UnixTime::now().as_secs();
    let good = list(&root, &[7], at);
    let reason = |lists| with_lists(&root, lists).unwrap_err().to_string();
    for bad in [Vec::new(), good[..good.len() - 1].to_vec(), b"\x30\x03\x83\x01\x00".to_vec()] {
        assert!(reason(vec![good.clone(), bad]).contains("cannot be read"));
    }
    assert!(reason(vec![good.clone(); 65]).contains("65 revocation lists; at most 64 are taken"));
    assert!(with_lists(&root, vec![good]).is_ok(), "control");
}

#[test]
fn s68_a_list_is_well_formed_and_too_long() {
    let root = Root::new();
    let of = |serials: u64| list(&root, &(1..=serials).collect::<Vec<_>>(), UnixTime::now().as_secs());
    let (within, beyond) = (of(80_000), of(160_000));
    assert!(within.len() > 2 << 20 && within.len() <= 4 << 20 && beyond.len() > 4 << 20, "the two are on both sides");
    let reason = with_lists(&root, vec![beyond.clone()]).unwrap_err().to_string();
    assert!(reason.contains(&format!("a revocation list of {} bytes; at most 4194304", beyond.len())), "{reason}");
    // The control: what is refused is a good list, and another one that is shorter is heard.
    assert!(webpki::OwnedCertRevocationList::from_der(&beyond).is_ok());
    assert!(with_lists(&root, vec![within]).is_ok());
}

#[test]
fn s69_a_chain_is_short() {
    let root = Root::new();
    let leaf = root.issue(&leaf(&[REVIEWS])).cert;
    let padded = |count: usize| [leaf.clone(), vec![Root::new().der; count]].concat();
    let now = UnixTime::now();
    assert!(verify(&padded(8), &root.bundles(), now).is_ok(), "control");
    assert!(not_valid(verify(&padded(9), &root.bundles(), now).unwrap_err()).contains("too long"));
    assert!(verify(&[], &root.bundles(), now).is_err());
    let huge = CertificateDer::from([&leaf[0][..], &[0; 70_000]].concat());
    assert!(matches!(verify(&[huge], &root.bundles(), now), Err(PeerRefused::Unreadable(_))));
}

/// The version and the group that a client of only these versions comes to with our server.
fn negotiated(versions: &[&'static SupportedProtocolVersion]) -> (Option<ProtocolVersion>, Option<NamedGroup>) {
    let root = Root::new();
    let verifier = SpiffeServerVerifier::new(root.bundles(), Vec::new(), provider());
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(root.issue(&leaf(&[REVIEWS])))));
    let client = ClientConnection::new(Arc::new(config), ServerName::try_from("ignored.test").unwrap()).unwrap();
    let server = server_config(&root.identity(RATINGS), true, &[], &provider()).unwrap();
    let (client, _) = run(client, ServerConnection::new(Arc::new(server)).unwrap()).unwrap();
    (client.protocol_version(), client.negotiated_key_exchange_group().map(|group| group.name()))
}

#[test]
fn s72_tls_is_1_3_with_a_hybrid_group_or_1_2_with_aead_and_nothing_older() {
    let hybrid = Some(NamedGroup::X25519MLKEM768);
    assert_eq!(negotiated(&[&TLS13, &TLS12]), (Some(ProtocolVersion::TLSv1_3), hybrid));
    let (version, group) = negotiated(&[&TLS12]);
    assert_eq!(version, Some(ProtocolVersion::TLSv1_2));
    assert_ne!(group, hybrid, "it exists in 1.3 only");
    let suites = provider().cipher_suites.iter().map(|suite| format!("{:?}", suite.suite())).collect::<Vec<_>>();
    for suite in suites {
        assert!(suite.contains("GCM") || suite.contains("POLY1305"), "{suite}");
        assert!(suite.starts_with("TLS13") || suite.contains("ECDHE"), "{suite}");
    }
    // Bytes that are no hello.
    for bytes in [b"\x16\x03\x01\xff\xff junk".to_vec(), vec![22; 4096], vec![21, 3, 3, 0, 2, 1, 0]] {
        assert!(greeted(&bytes).0.is_handshaking());
    }
}

/// A server that was sent these bytes, and what it found wrong.
fn greeted(mut bytes: &[u8]) -> (ServerConnection, Option<rustls::Error>) {
    let config = server_config(&Root::new().identity(RATINGS), true, &[], &provider()).unwrap();
    let mut server = ServerConnection::new(Arc::new(config)).unwrap();
    let mut error = None;
    while !bytes.is_empty() && error.is_none() {
        if server.read_tls(&mut bytes).is_err() {
            break;
        }
        error = server.process_new_packets().err();
    }
    (server, error)
}

#[test]
fn s72_a_hello_of_tls_1_0_or_1_1_is_told_that_its_version_is_too_old() {
    // The version that it is of is said in the hello; that of the record is 1.0 for all.
    let hello = |minor: u8| {
        // Groups: x25519 and P-256; signatures: ECDSA with P-256; the extended master secret.
        let extensions = [0, 10, 0, 6, 0, 4, 0, 29, 0, 23, 0, 13, 0, 4, 0, 2, 4, 3, 0, 23, 0, 0];
        // Suites: ECDHE-ECDSA with AES-128 in GCM, and in CBC.
        let suites = [0, 0, 4, 0xc0, 0x2b, 0xc0, 0x09, 1, 0, 0, extensions.len() as u8];
        let body = [&[3, minor][..], &[7; 32], &suites, &extensions].concat();
        let length = body.len() as u8;
        [&[22, 3, 1, 0, length + 4, 1, 0, 0, length][..], &body].concat()
    };
    let answer = |minor: u8| {
        let (mut server, error) = greeted(&hello(minor));
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).unwrap();
        }
        (error, answer)
    };
    for old in [1, 2] {
        let (error, answer) = answer(old);
        assert!(matches!(error, Some(rustls::Error::PeerIncompatible(_))), "{error:?}");
        // A fatal alert, protocol_version (RFC 8446, section 6.2).
        assert!(answer[0] == 21 && answer.ends_with(&[0, 2, 2, 70]), "{answer:?}");
    }
    // The control: the same of 1.2 gets a hello of 1.2 back.
    let (error, answer) = answer(3);
    assert_eq!(error, None);
    assert_eq!((answer[0], answer[5], &answer[9..11]), (22, 2, &[3, 3][..]));
}

#[test]
fn a_peer_may_have_a_key_of_any_kind_that_is_strong_enough() {
    let root = Root::new();
    let good = root.identity(RATINGS);
    for kind in
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519, &rcgen::PKCS_RSA_SHA256]
    {
        let key = KeyPair::generate_for(kind).unwrap();
        let chain = vec![leaf(&[REVIEWS]).signed_by(&key, &root.issuer).unwrap().der().clone()];
        let key = PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let certified = CertifiedKey::from_der(chain, key, &provider()).unwrap();
        let peer = Identity::new(certified, root.bundles(), 1).unwrap();
        assert!(handshake(&good, &peer, &[], true).is_ok() && handshake(&peer, &good, &[], true).is_ok(), "{kind:?}");
    }
}

#[test]
fn the_root_that_vouches_for_a_peer_is_known_among_several() {
    let (old, new, stranger) = (Root::new(), Root::new(), Root::new());
    let trusting = |roots: &[&Root]| {
        let bundle = TrustBundle::new(roots.iter().map(|root| root.der.clone())).unwrap();
        TrustBundles::single(TrustDomain::new("cluster.local").unwrap(), bundle)
    };
    let found = |of: &Root, bundles: &TrustBundles, usage| {
        let chain = of.issue(&leaf(&[REVIEWS])).cert;
        let algorithms = provider().signature_verification_algorithms.all;
        root_of(&chain, bundles, algorithms, UnixTime::now(), usage).map(str::to_owned)
    };
    let both = trusting(&[&old, &new]);
    for usage in [Usage::Client, Usage::Server] {
        for root in [&old, &new] {
            assert_eq!(found(root, &both, usage), Some(root_name(&root.der)));
            assert_eq!(found(root, &trusting(&[root]), usage), Some(root_name(&root.der)));
        }
        assert_eq!(found(&stranger, &both, usage), None);
    }
    assert_ne!(root_name(&old.der), root_name(&new.der));
    // Those of names of their own are told apart without a look at a signature.
    let (old, new) = (Root::named("old"), Root::named("new"));
    let both = trusting(&[&old, &new]);
    for root in [&old, &new] {
        let chain = root.issue(&leaf(&[REVIEWS])).cert;
        let unsigned = |bundles| root_of(&chain, bundles, &[], UnixTime::now(), Usage::Client).map(str::to_owned);
        assert_eq!(unsigned(&both), Some(root_name(&root.der)));
        assert_eq!(unsigned(&trusting(&[&stranger, &stranger])), None, "a control: nobody it names");
    }
    // The control: of roots of one name signatures tell, and there are none to tell.
    let (one, other) = (Root::named("same"), Root::named("same"));
    let chain = one.issue(&leaf(&[REVIEWS])).cert;
    assert_eq!(root_of(&chain, &trusting(&[&one, &other]), &[], UnixTime::now(), Usage::Client), None);
    assert_eq!(found(&one, &trusting(&[&one, &other]), Usage::Client), Some(root_name(&one.der)));
    assert_eq!(root_name(b"abc"), "ba7816bf8f01cfea", "the SHA-256 that everybody knows");
}

#[test]
fn who_was_let_in_is_looked_at_again_by_roots_and_lists_and_not_by_the_date() {
    let (root, stranger) = (Root::new(), Root::new());
    let ended = |serial: u64| {
        let mut params = leaf(&[REVIEWS]);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 1, 2));
        params.serial_number = Some(SerialNumber::from(serial));
        root.issue(&params).cert
    };
    let chain = ended(7);
    let algorithms = provider().signature_verification_algorithms.all;
    let again = |bundles: &TrustBundles| verify_again(&chain, bundles, algorithms, UnixTime::now(), Usage::Client);
    assert!(not_valid(verify(&chain, &root.bundles(), UnixTime::now()).unwrap_err()).contains("ended"), "control");
    assert!(again(&root.bundles()).is_ok());
    assert!(again(&stranger.bundles()).is_err(), "its root is out");
    let told = |serials: &[u64]| with_lists(&root, vec![list(&root, serials, UnixTime::now().as_secs())]).unwrap();
    assert!(again(&told(&[8])).is_ok());
    assert!(again(&told(&[7])).is_err(), "it was taken back");
}

#[test]
fn s72_a_hello_in_pieces_is_a_hello() {
    let root = Root::new();
    let client = client_config(&root.identity(REVIEWS), &[], &[], &provider()).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from("ignored.test").unwrap()).unwrap();
    let server = server_config(&root.identity(RATINGS), true, &[], &provider()).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut hello = Vec::new();
    client.write_tls(&mut hello).unwrap();
    for byte in hello {
        server.read_tls(&mut &[byte][..]).unwrap();
        server.process_new_packets().unwrap();
    }
    assert!(run(client, server).is_ok());
}

#[test]
fn s92_a_key_is_never_printed() {
    let root = Root::new();
    let key = KeyPair::generate().unwrap();
    let cert = leaf(&[REVIEWS]).signed_by(&key, &root.issuer).unwrap();
    let private = || PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let provider = provider();
    let certified = CertifiedKey::from_der(vec![cert.der().clone()], private(), &provider).unwrap();
    let identity = Identity::new(certified, root.bundles(), 1).unwrap();
    let (client, server) = (
        client_config(&identity, &[], &[], &provider).unwrap(),
        server_config(&identity, true, &[], &provider).unwrap(),
    );
    let shown = format!("{identity:?} {:?} {client:?} {server:?} {:?}", identity.certified(), private());
    // Where the scalar of a P-256 key stands in PKCS #8.
    let secret = &key.serialize_der()[36..68];
    assert!(!tells(&shown, secret), "{shown}");
    assert!(!format!("{identity:?}").to_lowercase().contains("key"));
    // The control: as bytes and as text it would be found, and the key is the one of these.
    let hex: String = secret.iter().map(|b| format!("{b:02X}")).collect();
    for told in [format!("{:?}", key.serialize_der()), format!("{:#?}", key.serialize_der()), format!("[{hex}]")] {
        assert!(tells(&told, secret), "{told}");
    }
    assert_eq!(
        rcgen::PublicKeyData::subject_public_key_info(&key),
        identity.certified().key.public_key().unwrap().to_vec()
    );
}

/// Whether a text has a part of `secret` in it, as numbers or in hexadecimal digits.
fn tells(text: &str, secret: &[u8]) -> bool {
    let text: String = text.to_lowercase().split_whitespace().collect();
    secret.chunks(8).any(|part| {
        let numbers: String = part.iter().map(|b| format!("{b},")).collect();
        let hex: String = part.iter().map(|b| format!("{b:02x}")).collect();
        text.contains(numbers.trim_end_matches(',')) || text.contains(&hex)
    })
}
