//! S69, where a chain costs whoever reads it: certificates of one name that sign each other. Path building goes by names, so
//! that every order of them is a way to a root. Work is counted in signatures, and in webpki's own words.

use std::sync::atomic::{AtomicUsize, Ordering};

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::rows::list;
use super::*;

/// Counts the signatures that are verified by it.
#[derive(Debug)]
struct Counting {
    by: &'static dyn SignatureVerificationAlgorithm,
    count: Arc<AtomicUsize>,
}

impl SignatureVerificationAlgorithm for Counting {
    fn verify_signature(&self, key: &[u8], message: &[u8], signature: &[u8]) -> Result<(), InvalidSignature> {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.by.verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        self.by.public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        self.by.signature_alg_id()
    }
}

/// A provider, and how many signatures of certificates it has verified. Those of handshakes do not count.
fn counting() -> (Arc<CryptoProvider>, Arc<AtomicUsize>) {
    let (mut provider, count) = (aws_lc_rs::default_provider(), Arc::<AtomicUsize>::default());
    let supported = provider.signature_verification_algorithms;
    let counted = supported.all.iter().map(|by| {
        let counting: &'static Counting = Box::leak(Box::new(Counting { by: *by, count: count.clone() }));
        counting as &dyn SignatureVerificationAlgorithm
    });
    let all = counted.collect::<Vec<_>>().leak();
    provider.signature_verification_algorithms = WebPkiSupportedAlgorithms { all, mapping: supported.mapping };
    (Arc::new(provider), count)
}

/// A leaf of REVIEWS' and `above` authorities over it, each signed by the next one: the last by `top`, else by the first.
fn pile(above: &[Root], top: Option<&Root>) -> CertifiedKey {
    let mut leaf = leaf(&[REVIEWS]);
    leaf.subject_alt_names.push(SanType::DnsName("reviews.test".try_into().unwrap()));
    let mut certified = above.first().or(top).expect("somebody signs").issue(&leaf);
    for (at, authority) in above.iter().enumerate() {
        let signer = above.get(at + 1).or(top).unwrap_or(&above[0]);
        let mut params = CertificateParams::default();
        params.distinguished_name = authority.name.clone();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        certified.cert.push(params.signed_by(authority.issuer.key(), &signer.issuer).unwrap().der().clone());
    }
    certified
}

/// So many of one name, each with a key of its own.
fn alike(count: usize) -> Vec<Root> {
    (0..count).map(|_| Root::named("CA")).collect()
}

fn domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

/// What path building says by itself.
fn unbounded(
    chain: &[CertificateDer<'static>],
    bundle: &TrustBundle,
    provider: &CryptoProvider,
) -> Result<(), webpki::Error> {
    let (algorithms, usage) = (provider.signature_verification_algorithms.all, KeyUsage::client_auth());
    let leaf = EndEntityCert::try_from(&chain[0]).unwrap();
    leaf.verify_for_usage(algorithms, bundle.anchors(), &chain[1..], UnixTime::now(), usage, None, None).map(drop)
}

#[test]
fn s69_certificates_of_one_name_that_sign_each_other_cost_few_signatures() {
    // Of the same name too, so that its key is tried at every step.
    let root = Root::named("CA");
    let bundle = TrustBundle::new([root.der.clone()]).unwrap();
    // What so many cost, without the bound and with it. webpki has one of its own, far up: a hundred signatures.
    for (above, without, with) in [(1, 2, 2), (2, 5, 5), (3, 16, 16), (4, 65, 65), (5, 100, 0), (8, 100, 0)] {
        let chain = pile(&alike(above), None).cert;
        let (provider, count) = counting();
        assert!(unbounded(&chain, &bundle, &provider).is_err());
        assert_eq!(count.swap(0, Ordering::Relaxed), without, "the control: {above}");
        let algorithms = provider.signature_verification_algorithms.all;
        for usage in [Usage::Client, Usage::Server] {
            let refused = verify_svid(&chain, &root.bundles(), algorithms, UnixTime::now(), usage).unwrap_err();
            assert_eq!(refused.to_string().contains("too many ways"), with == 0, "{above}: {refused}");
            assert_eq!(count.swap(0, Ordering::Relaxed), with, "{above}");
        }
    }
}

#[test]
fn s69_certificates_of_one_name_that_lead_nowhere_cost_few_steps() {
    // No signature is looked at, for no root has the name: only steps. One more than a chain of ours may have.
    let root = Root::named("another");
    let (chain, bundle) = (pile(&alike(9), None).cert, TrustBundle::new([root.der.clone()]).unwrap());
    let exceeded = webpki::Error::MaximumPathBuildCallsExceeded;
    assert_eq!(unbounded(&chain, &bundle, &provider()), Err(exceeded.clone()), "the control: after 200,000 steps");
    let algorithms = provider().signature_verification_algorithms.all;
    let ours = |chain: &[CertificateDer<'static>]| {
        let now = UnixTime::now();
        verify_path(&chain[0], &chain[1..], &bundle, algorithms, now, Usage::Server)
    };
    assert_eq!(ours(&chain), Err(exceeded.clone()));
    let five = pile(&alike(5), None).cert;
    assert_eq!(
        unbounded(&five, &bundle, &provider()),
        Err(webpki::Error::UnknownIssuer),
        "the control: every way is gone"
    );
    assert_eq!(ours(&five), Err(exceeded.clone()));
    // The control: of names of their own they are no more than many.
    let named: Vec<_> = (0..6).map(|at| Root::named(&at.to_string())).collect();
    let good = pile(&named, Some(&root)).cert;
    assert_eq!(ours(&good), Ok(()));
    let beside = |count: usize| [&good[..], &vec![Root::named("beside").der; count]].concat();
    assert_eq!(ours(&beside(94)), Ok(()));
    // Each step looks at all of them, whatever they are.
    assert_eq!(ours(&beside(95)), Err(exceeded));
}

#[test]
fn s69_both_sides_refuse_such_a_chain_before_they_look_at_a_signature() {
    let root = Root::named("CA");
    let good = root.identity(RATINGS);
    let (counted, count) = counting();
    let name = || ServerName::try_from("ignored.test").unwrap();
    let meet = |peer: &Identity| {
        let client =
            ClientConnection::new(Arc::new(client_config(peer, &[], &[], &provider()).unwrap()), name()).unwrap();
        let server = server_config(&good, true, &[], &counted).unwrap();
        let at_server = run(client, ServerConnection::new(Arc::new(server)).unwrap()).map(drop).map_err(|e| e.1);
        let by_server = count.swap(0, Ordering::Relaxed);
        let client =
            ClientConnection::new(Arc::new(client_config(&good, &[], &[], &counted).unwrap()), name()).unwrap();
        let server = server_config(peer, true, &[], &provider()).unwrap();
        let at_client = run(client, ServerConnection::new(Arc::new(server)).unwrap()).map(drop).map_err(|e| e.0);
        [(at_server, by_server), (at_client, count.swap(0, Ordering::Relaxed))]
    };
    let named = [Root::named("one"), Root::named("two")];
    // The controls: a chain of normal length, and a deep one of one name, as nested authorities of SPIRE may have it.
    for (above, signatures) in [(&named[..], 3), (&alike(4), 9)] {
        for (result, count) in meet(&forged(pile(above, Some(&root)), root.bundles())) {
            assert!(result.is_ok(), "{result:?}");
            assert_eq!(count, signatures);
        }
    }
    for (result, count) in meet(&forged(pile(&alike(8), None), root.bundles())) {
        let refused = refused(result.unwrap_err());
        assert!(refused.to_string().contains("too many ways"), "{refused}");
        assert_eq!(count, 0);
    }
}

#[test]
fn s69_to_find_the_root_of_who_was_let_in_costs_no_more_than_to_let_it_in() {
    let roots = [Root::named("CA"), Root::named("CA")];
    let bundle = TrustBundle::new(roots.iter().map(|root| root.der.clone())).unwrap();
    let bundles = TrustBundles::single(domain(), bundle);
    let (provider, count) = counting();
    let algorithms = provider.signature_verification_algorithms.all;
    for above in 0..=4 {
        let chain = pile(&alike(above), Some(&roots[1])).cert;
        assert!(verify_svid(&chain, &bundles, algorithms, UnixTime::now(), Usage::Client).is_ok());
        let verified = count.swap(0, Ordering::Relaxed);
        let root = root_of(&chain, &bundles, algorithms, UnixTime::now(), Usage::Client);
        assert_eq!(root, Some(&*root_name(&roots[1].der)));
        assert_eq!(count.swap(0, Ordering::Relaxed), verified, "{above}");
        assert!(verified <= 2 + 3 * above, "{verified} for {above}");
    }
}

/// A long list is read with every handshake otherwise, and a certificate can be shown by anybody who has seen it.
#[test]
fn s69_the_signature_of_a_revocation_list_is_verified_once() {
    let (root, now) = (Root::named("CA"), UnixTime::now());
    let bundles = |lists: Vec<Vec<u8>>| {
        TrustBundles::single(
            domain(),
            TrustBundle::new([root.der.clone()]).unwrap().with_revocation_lists(lists).unwrap(),
        )
    };
    let (provider, count) = counting();
    let verify = |chain: &[CertificateDer<'static>], bundles: &TrustBundles| {
        let algorithms = provider.signature_verification_algorithms.all;
        let verified = verify_svid(chain, bundles, algorithms, now, Usage::Client).map(drop);
        (verified.is_ok(), count.swap(0, Ordering::Relaxed))
    };
    let (one, other) = (root.issue(&leaf(&[REVIEWS])).cert, root.issue(&leaf(&[RATINGS])).cert);
    let (first, second) = (list(&root, &[], now.as_secs()), list(&root, &[1], now.as_secs()));
    let known = bundles(vec![first]);
    assert_eq!(verify(&one, &known), (true, 2));
    assert_eq!([verify(&one, &known), verify(&other, &known.clone())], [(true, 1); 2], "that of the certificate");
    // The controls: without lists, with another one, and with one that somebody else of the same name signed.
    assert_eq!(verify(&one, &root.bundles()), (true, 1));
    assert_eq!(verify(&one, &bundles(vec![second])), (true, 2));
    let foreign = bundles(vec![list(&Root::named("CA"), &[], now.as_secs())]);
    assert_eq!([verify(&one, &foreign), verify(&one, &foreign)], [(false, 2); 2]);
}

/// Whose key signed a list is told anew for each key: two authorities of one name have lists of their own.
#[test]
fn s67_a_list_that_one_authority_signed_is_not_anothers_of_the_same_name() {
    let (roots, now) = ([Root::named("CA"), Root::named("CA")], UnixTime::now());
    let bundle = TrustBundle::new(roots.iter().map(|root| root.der.clone())).unwrap();
    let bundle = bundle.with_revocation_lists(vec![list(&roots[0], &[], now.as_secs())]).unwrap();
    let bundles = TrustBundles::single(domain(), bundle);
    let algorithms = provider().signature_verification_algorithms.all;
    for _ in 0..2 {
        let [own, others] = [&roots[0], &roots[1]].map(|root| {
            let chain = root.issue(&leaf(&[REVIEWS])).cert;
            verify_svid(&chain, &bundles, algorithms, now, Usage::Client).is_ok()
        });
        assert!(own && !others);
    }
}

#[test]
fn s69_a_verifier_by_names_is_not_asked_of_such_a_chain() {
    let root = Root::named("another");
    let mut roots = RootCertStore::empty();
    roots.add(root.der.clone()).unwrap();
    let by_name = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider()).build().unwrap();
    let bounded = BoundedVerifier::new(by_name.clone());
    let ask = |verifier: &dyn ServerCertVerifier, chain: &[CertificateDer<'static>]| {
        let name = ServerName::try_from("reviews.test").unwrap();
        verifier.verify_server_cert(&chain[0], &chain[1..], &name, &[], UnixTime::now()).map(drop)
    };
    let bomb = pile(&alike(9), None).cert;
    let alone = ask(&*by_name, &bomb).unwrap_err();
    assert!(format!("{alone:?}").contains("MaximumPathBuildCallsExceeded"), "the control: {alone:?}");
    assert!(matches!(refused(ask(&bounded, &bomb).err()), PeerRefused::Path(why) if why.contains("too many ways")));
    // The control: the same name with a chain of normal length.
    assert_eq!(ask(&bounded, &pile(&[Root::named("one")], Some(&root)).cert), Ok(()));
}

/// By the older one whoever was taken back since would be let in again.
#[test]
fn s67_a_list_goes_before_an_older_one_of_the_same_authority_and_key_until_it_ends() {
    let now = UnixTime::now().as_secs();
    let root = Root::named("CA");
    let (older, newer) = (list(&root, &[], now - 60), list(&root, &[1], now));
    let both = [newer.clone(), older.clone()];
    let after = |lists: &[Vec<u8>], before: &[Vec<u8>], now| newest_lists(lists.to_vec(), before, now);
    for before in [&both[..1], &both] {
        assert_eq!(after(&both[1..], before, now), both[..1]);
    }
    // Peers go by the first one.
    assert_eq!(after(&[older.clone(), newer.clone()], &both[..1], now), [newer.clone(), newer.clone()]);
    assert_eq!(after(&both[1..], &[older.clone(), newer.clone()], now), both[1..]);
    // The controls: there is no other, it is the newer one, a newer one is beside it, and the other has ended.
    assert_eq!(after(&both[1..], &[], now), both[1..]);
    assert_eq!(after(&both[..1], &both[1..], now), both[..1]);
    assert_eq!(after(&both, &both, now), both);
    assert_eq!(after(&both[1..], &both[..1], now + 1_800), both[1..]);
    // Whoever's clock was fast once does not keep its later lists out.
    assert_eq!(after(&both[1..], &[list(&root, &[1], now + 86_400)], now), both[1..]);
    // Others have lists of their own, and so has an authority of the same name with another key.
    for other in [Root::named("CA"), Root::named("another")] {
        let theirs = [list(&other, &[], now - 60)];
        assert_eq!(after(&theirs, &both[..1], now), theirs);
    }
    let rubbish = [b"rubbish".to_vec()];
    assert_eq!(after(&rubbish, &both[..1], now), rubbish);
    assert_eq!(after(&both[1..], &rubbish, now), both[1..]);
}
