//! What is proof for a certificate, and how a change of roots reaches those who hold one.

use std::sync::Arc;

use mesh_core::id::TrustDomain;
use mesh_core::identity::Identity;
use mesh_core::source::WatchedIdentity;
use parking_lot::Mutex;
use tonic::Code;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::client::Connection;
use super::*;
use crate::ca::tests::{operator, write_operators};
use crate::ca::{
    PodRef, Review, ReviewFailed, Reviewing, RootRotation, RotationStep, ServiceAccountTokens, TokenReviewer,
};

/// A cluster in which the token `a.NAME.c` is of the service account NAME; pods live until they are listed here.
#[derive(Debug, Default)]
struct Cluster {
    gone: Mutex<Vec<String>>,
    down: Mutex<bool>,
    asked: Mutex<usize>,
}

impl TokenReviewer for Cluster {
    fn review<'r>(&'r self, token: &'r str, audiences: &'r [String]) -> Reviewing<'r, Review> {
        *self.asked.lock() += 1;
        let account = token.split('.').nth(1).unwrap_or_default();
        let extra =
            ["pod-name", "pod-uid"].map(|key| (format!("authentication.kubernetes.io/{key}"), vec!["p".to_owned()]));
        let review = Review {
            authenticated: !account.is_empty(),
            audiences: audiences.to_vec(),
            username: format!("system:serviceaccount:default:{account}"),
            groups: vec!["system:serviceaccounts".to_owned()],
            extra: extra.into(),
            ..Review::default()
        };
        let down = *self.down.lock();
        Box::pin(std::future::ready(if down { Err(ReviewFailed("timed out".to_owned())) } else { Ok(review) }))
    }

    fn is_alive<'r>(&'r self, pod: &'r PodRef) -> Reviewing<'r, bool> {
        Box::pin(std::future::ready(Ok(!self.gone.lock().contains(&pod.service_account))))
    }
}

#[tokio::test]
async fn s87_a_service_account_token_is_proof_while_its_pod_lives_and_of_nobody_else() {
    let setup = Setup::new();
    let cluster = Arc::new(Cluster::default());
    let accounts = ServiceAccountTokens::new(cluster.clone(), Vec::new());
    let plane = setup.builder().service_account_tokens(accounts).start().await.unwrap();
    let anonymous = Connection::anonymous(&plane).await;
    let identity = anonymous.certificate(Some("a.reviews.c")).await.unwrap();
    assert_eq!(identity.id().as_str(), "spiffe://cluster.local/ns/default/sa/reviews");
    assert!(anonymous.certificate(Some("a.reviews.c")).await.is_ok(), "such a token is good until it ends");
    assert_eq!(anonymous.certificate(Some("a..c")).await.unwrap_err().code(), Code::Unauthenticated);
    let join = plane.join_tokens().mint("default", "ratings", Duration::from_secs(60)).unwrap();
    assert!(anonymous.certificate(Some(&join)).await.is_ok(), "join tokens are taken all the same");

    // A renewal shows both, and both must be of one workload.
    let reviews = Connection::mutual(&plane, &identity).await;
    assert!(reviews.certificate(Some("a.reviews.c")).await.is_ok());
    let stolen = reviews.certificate(Some("a.ratings.c")).await.unwrap_err();
    assert!(stolen.message().contains("one workload"), "{stolen}");
    let alone = reviews.certificate(None).await.unwrap_err();
    assert!(alone.message().contains("proves no pod that lives"), "{alone}");

    *cluster.down.lock() = true;
    assert_eq!(anonymous.certificate(Some("a.reviews.c")).await.unwrap_err().code(), Code::Unauthenticated);
    *cluster.down.lock() = false;
    cluster.gone.lock().push("reviews".to_owned());
    let gone = reviews.certificate(Some("a.reviews.c")).await.unwrap_err();
    assert!(gone.message().contains("does not exist any more"), "{gone}");

    // The control: without a reviewer such a token is nothing.
    let plain = Setup::new();
    let plain = plain.start().await;
    let refused = Connection::anonymous(&plain).await.certificate(Some("a.reviews.c")).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_root_that_signs_by_itself_is_told_of_at_each_start_with_where_its_key_is() {
    let (log, setup, operators) = (Listening::begin(), Setup::new(), Setup::new());
    let told = || log.lines(&["WARN mesh::ca", "signs by itself", "ca-key.pem", "cacerts"]);
    for start in 1..=2 {
        drop(setup.start().await);
        assert_eq!(told(), start);
    }
    // The control: an operator's intermediate.
    write_operators(operators.state.path(), &operator(1));
    drop(operators.start().await);
    assert_eq!(told(), 2);
}

#[tokio::test]
async fn each_certificate_that_is_issued_or_refused_leaves_a_line_that_says_whose_and_for_what_proof() {
    let log = Listening::begin();
    let setup = Setup::new();
    let plane = setup.start().await;
    let lines = |what: &str| -> Vec<String> {
        let of_it = |line: &&str| line.contains("mesh::ca") && line.contains(what);
        log.text().lines().filter(of_it).map(str::to_owned).collect()
    };
    let holds = |line: &str, parts: &[&str]| assert!(parts.iter().all(|part| line.contains(part)), "{parts:?}: {line}");
    let anonymous = Connection::anonymous(&plane).await;
    let token = plane.join_tokens().mint("default", "reviews", Duration::from_secs(60)).unwrap();
    let identity = anonymous.certificate(Some(&token)).await.unwrap();
    let id = "id=spiffe://cluster.local/ns/default/sa/reviews";
    let issued = lines("certificate issued");
    assert_eq!(issued.len(), 1, "{issued:?}");
    holds(
        &issued[0],
        &["INFO", id, "proof=\"join token\"", "again=false", "peer=anonymous at 127.0.0.1:", "serial=", "not_after="],
    );
    // Of somebody who has one: by that.
    Connection::mutual(&plane, &identity).await.certificate(None).await.unwrap();
    let issued = lines("certificate issued");
    assert_eq!(issued.len(), 2, "{issued:?}");
    holds(
        &issued[1],
        &[id, "proof=\"certificate\"", "peer=spiffe://cluster.local/ns/default/sa/reviews at 127.0.0.1:"],
    );
    // A token that was used, none at all, and somebody else's beside a certificate. Of strangers one line stands for all of
    // a while.
    assert_eq!(lines("certificate refused").len(), 0);
    anonymous.certificate(Some(&token)).await.unwrap_err();
    anonymous.certificate(None).await.unwrap_err();
    let other = plane.join_tokens().mint("default", "ratings", Duration::from_secs(60)).unwrap();
    Connection::mutual(&plane, &identity).await.certificate(Some(&other)).await.unwrap_err();
    let refused = lines("certificate refused");
    assert_eq!((refused.len(), lines("certificate issued").len()), (2, 2), "{refused:?}");
    refused.iter().for_each(|line| holds(line, &["WARN", "peer=", "reason=\""]));
    holds(&refused[0], &["peer=anonymous at 127.0.0.1:", "used before"]);
    holds(&refused[1], &["peer=spiffe://cluster.local/ns/default/sa/reviews at", "the token is of", "sa/ratings"]);
}

#[tokio::test]
async fn s87_a_certificate_alone_is_renewed_only_if_it_began_with_a_join_token() {
    let setup = Setup::new();
    let accounts = ServiceAccountTokens::new(Arc::new(Cluster::default()), Vec::new());
    let plane = setup.builder().service_account_tokens(accounts).start().await.unwrap();
    let join = plane.join_tokens().mint("default", "machine", Duration::from_secs(60)).unwrap();
    let anonymous = Connection::anonymous(&plane).await;
    let mut machine = anonymous.certificate(Some(&join)).await.unwrap();
    // Again and again, for it has nothing else.
    for _ in 0..2 {
        machine = Connection::mutual(&plane, &machine).await.certificate(None).await.unwrap();
    }
    // The token of a pod makes it one that has: the chain is of pods from there on.
    let pod = Connection::mutual(&plane, &machine).await.certificate(Some("a.machine.c")).await.unwrap();
    assert!(Connection::mutual(&plane, &pod).await.certificate(None).await.is_err());
    // The control: nobody reviews tokens, so there are none to show.
    drop(plane);
    let plane = setup.start().await;
    assert!(Connection::mutual(&plane, &pod).await.certificate(None).await.is_ok());
}

#[tokio::test]
async fn a_request_that_is_none_costs_no_question_to_the_cluster_and_is_not_read_to_its_end() {
    let setup = Setup::new();
    let cluster = Arc::new(Cluster::default());
    let accounts = ServiceAccountTokens::new(cluster.clone(), Vec::new());
    let plane = setup.builder().service_account_tokens(accounts).start().await.unwrap();
    let anonymous = Connection::anonymous(&plane).await;
    let code =
        async |bytes: usize| anonymous.certificate_for("A".repeat(bytes), "a.reviews.c").await.unwrap_err().code();
    assert_eq!(code(20 * 1024).await, Code::InvalidArgument, "read, and no signing request");
    assert_eq!(code(80 * 1024).await, Code::OutOfRange);
    assert_eq!(*cluster.asked.lock(), 0);
    assert!(anonymous.certificate(Some("a.reviews.c")).await.is_ok());
    assert_eq!(*cluster.asked.lock(), 1, "the control");
}

/// The authority's list that takes a certificate back and is good until a year's begin.
fn revoking(setup: &Setup, identity: &Identity, until: i32) -> String {
    let key = std::fs::read_to_string(setup.state.path().join("ca-key.pem")).unwrap();
    signed_list(setup, &rcgen::KeyPair::from_pem(&key).unwrap(), identity, until)
}

/// The same signed with any key, in the authority's name.
fn signed_list(setup: &Setup, key: &rcgen::KeyPair, identity: &Identity, until: i32) -> String {
    let read = |file: &str| std::fs::read_to_string(setup.state.path().join(file)).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("root-cert.pem"), key).unwrap();
    let (_, leaf) = X509Certificate::from_der(&identity.certified().cert[0]).unwrap();
    let list = rcgen::CertificateRevocationListParams {
        this_update: rcgen::date_time_ymd(2020, 1, 1),
        next_update: rcgen::date_time_ymd(until, 1, 1),
        crl_number: 1_u64.into(),
        issuing_distribution_point: None,
        revoked_certs: vec![rcgen::RevokedCertParams {
            serial_number: rcgen::SerialNumber::from_slice(leaf.raw_serial()),
            revocation_time: rcgen::date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer).unwrap().pem().unwrap()
}

#[tokio::test]
async fn the_ends_of_the_control_planes_certificate_and_roots_are_metrics() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let (_, metrics) = page(&plane, "localhost", "/metrics").await;
    let root = plane.authority.bundle().not_after();
    assert!(
        metrics.contains(&format!("mesh_certificate_expiry_timestamp_seconds{{of=\"root\"}} {root}\n")),
        "{metrics}"
    );
    assert!(metrics.contains("{of=\"leaf\"} ") && !metrics.contains("of=\"issuer\""), "{metrics}");
    assert!(metrics.contains("mesh_certificate_renewal_failures_total 0\n"), "{metrics}");
    assert!(!metrics.contains("last_failure"), "{metrics}");
}

#[tokio::test]
async fn s67_revocation_lists_are_told_to_members_and_one_that_is_of_no_use_keeps_the_old() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let token = |account: &str| plane.join_tokens().mint("default", account, Duration::from_secs(60)).unwrap();
    let anonymous = Connection::anonymous(&plane).await;
    let member = anonymous.certificate(Some(&token("member"))).await.unwrap();
    let revoked = anonymous.certificate(Some(&token("revoked"))).await.unwrap();
    let goes_on = Connection::mutual(&plane, &member).await;
    let mut stream = goes_on.roots().await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().revocation_lists, Vec::<Vec<u8>>::new());
    let is_cut = Connection::mutual(&plane, &revoked).await;
    let mut theirs = is_cut.roots().await.unwrap();
    assert!(is_cut.certificate(None).await.is_ok(), "the control");

    let file = setup.state.path().join("ca-crl.pem");
    let good = revoking(&setup, &revoked, 2100);
    std::fs::write(&file, &good).unwrap();
    let told = stream.message().await.unwrap().unwrap();
    assert_eq!(told.revocation_lists.len(), 1);
    let trusted = mesh_core::identity::TrustBundle::from_pem(told.roots.as_bytes()).unwrap();
    let trusted = trusted.with_revocation_lists(told.revocation_lists.clone()).unwrap();
    let trusted = mesh_core::identity::TrustBundles::single(TrustDomain::new("cluster.local").unwrap(), trusted);
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let verify = |identity: &Identity| {
        let (now, usage) = (rustls_pki_types::UnixTime::now(), mesh_core::identity::Usage::Client);
        mesh_core::identity::verify_svid(&identity.certified().cert, &trusted, algorithms, now, usage)
    };
    assert!(verify(&member).is_ok());
    assert!(verify(&revoked).is_err());
    // Its connection, too, for a certificate would be given for it there.
    let ended = async { while let Ok(Some(_)) = theirs.message().await {} };
    tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    assert!(is_cut.certificate(None).await.is_err());
    assert!(goes_on.certificate(None).await.is_ok());
    let (_, metrics) = page(&plane, "localhost", "/metrics").await;
    let ends = format!("{{of=\"revocation_list\"}} {}\n", trusted.lists_end().unwrap());
    assert!(metrics.contains(&ends), "{metrics}");

    // Of these none would let anybody in, and none is taken up: the authority says what is wrong with each.
    let other = Setup::new();
    let _other = other.start().await;
    let stranger = rcgen::KeyPair::generate().unwrap();
    let bad = [
        ("garbled", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n".to_owned(), "cannot be read"),
        ("empty", String::new(), "holds no revocation list"),
        ("of another", revoking(&other, &revoked, 2100), "no list in it is of"),
        ("signed by another", signed_list(&setup, &stranger, &revoked, 2100), "not signed with that one's key"),
        ("ended", revoking(&setup, &revoked, 2021), "ended at"),
    ];
    for (what, list, why) in bad {
        std::fs::write(&file, list).unwrap();
        let error = plane.authority.reload().unwrap_err().to_string();
        assert!(error.contains("ca-crl.pem") && error.contains(why), "{what}: {error}");
        assert_eq!(plane.authority.watched_bundle(), told, "{what}");
    }
    // A change of roots brings the list of the new one with it.
    std::fs::write(&file, &good).unwrap();
    let domain = TrustDomain::new("cluster.local").unwrap();
    let rotation = RootRotation::open(setup.state.path(), domain, CertificateLife::default(), Clock::system()).unwrap();
    rotation.advance(true).unwrap();
    let both = loop {
        let told = stream.message().await.unwrap().unwrap();
        if told.roots.matches("BEGIN").count() == 2 {
            break told;
        }
    };
    assert_eq!(both.revocation_lists.len(), 2);
    assert_eq!(both.revocation_lists[0], told.revocation_lists[0], "the operator's is as it was");

    // Control run: taken away in good order, everybody is good again.
    std::fs::remove_file(&file).unwrap();
    while !stream.message().await.unwrap().unwrap().revocation_lists.is_empty() {}
}

#[tokio::test]
async fn s67_a_certificate_that_the_authority_took_back_is_nobody_to_the_control_plane() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let token = |account: &str| plane.join_tokens().mint("default", account, Duration::from_secs(60)).unwrap();
    let anonymous = Connection::anonymous(&plane).await;
    let revoked = anonymous.certificate(Some(&token("revoked"))).await.unwrap();
    let other = anonymous.certificate(Some(&token("other"))).await.unwrap();
    assert!(Connection::mutual(&plane, &revoked).await.certificate(None).await.is_ok(), "the control");

    let domain = TrustDomain::new("cluster.local").unwrap();
    let mut inside = plane.identity("default", "embedded").unwrap();
    let first: Arc<Identity> = inside.load_full().as_ref().clone().unwrap();
    let before = first.bundles().get(&domain).unwrap().clone();
    std::fs::write(setup.state.path().join("ca-crl.pem"), revoking(&setup, &revoked, 2100)).unwrap();
    // Who is in the process has taken the list up; the port is told by the same news.
    inside.wait_for(|i| i.as_ref().is_some_and(|i| i.bundles().get(&domain) != Some(&before))).await;
    while Connection::mutual(&plane, &revoked).await.certificate(None).await.is_ok() {}
    assert!(Connection::mutual(&plane, &other).await.certificate(None).await.is_ok(), "only that one");
}

#[tokio::test]
async fn a_change_of_roots_is_told_at_once_and_taken_up_in_the_process_too() {
    let setup = Setup::new();
    let plane = setup.start().await;
    let mut inside = plane.identity("default", "embedded").unwrap();
    let first: Arc<Identity> = inside.load_full().as_ref().clone().unwrap();
    assert_eq!(first.id().as_str(), "spiffe://cluster.local/ns/default/sa/embedded");
    let connection = Connection::mutual(&plane, &first).await;
    let mut stream = connection.roots().await.unwrap();
    let count = |message: &mesh_discovery::proto::trust::TrustBundle| message.roots.matches("BEGIN").count();
    let now = stream.message().await.unwrap().unwrap();
    assert_eq!((now.trust_domain.as_str(), count(&now)), ("cluster.local", 1));

    let domain = TrustDomain::new("cluster.local").unwrap();
    let life = CertificateLife::default();
    let rotation = RootRotation::open(setup.state.path(), domain.clone(), life, Clock::system()).unwrap();
    assert_eq!(rotation.advance(false).unwrap().step, RotationStep::Added);
    let both = stream.message().await.unwrap().unwrap();
    assert_eq!(count(&both), 2);
    let roots = |identity: &Option<Arc<Identity>>, wanted: usize| {
        identity.as_ref().is_some_and(|i| i.bundles().get(&domain).unwrap().roots().len() == wanted)
    };
    inside.wait_for(|identity| roots(identity, 2)).await;
    assert!(rotation.advance(false).is_err(), "too early");
    assert_eq!(rotation.advance(true).unwrap().step, RotationStep::Switched);
    assert_eq!(rotation.advance(true).unwrap().step, RotationStep::Idle);
    // The certificate that was shown is of the root that is out now: its holder is told so, and that is all.
    let mut told = None;
    while let Ok(Some(message)) = stream.message().await {
        told = Some(message);
    }
    assert!(connection.certificate(None).await.is_err());
    inside.wait_for(|identity| roots(identity, 1)).await;
    let next = inside.load_full().as_ref().clone().unwrap();
    let alone = Connection::mutual(&plane, &next).await.roots().await.unwrap().message().await.unwrap().unwrap();
    assert!(count(&alone) == 1 && alone.roots != now.roots);
    assert_eq!(told.as_ref(), Some(&alone), "before it was cut");
    // Who lost its root has no certificate to ask with: the roots are told to everybody, once.
    let mut stranger = Connection::anonymous(&plane).await.roots().await.unwrap();
    assert_eq!(stranger.message().await.unwrap(), Some(alone));
    assert_eq!(stranger.message().await.unwrap(), None);
}

/// A control plane of this trust domain.
async fn plane_of(setup: &Setup, domain: &str) -> ControlPlane {
    setup.builder().trust_domain(TrustDomain::new(domain).unwrap()).start().await.unwrap()
}

/// What an identity in the process trusts now.
fn inside(identity: &WatchedIdentity) -> Arc<Identity> {
    identity.load_full().as_ref().clone().unwrap()
}

#[tokio::test]
async fn s62_members_are_told_of_federated_domains_and_these_are_nobody_to_the_control_plane() {
    let (here, there) = (Setup::new(), Setup::new());
    let (plane, other) = (here.start().await, plane_of(&there, "other.example").await);
    let token = plane.join_tokens().mint("default", "member", Duration::from_secs(60)).unwrap();
    let member = Connection::anonymous(&plane).await.certificate(Some(&token)).await.unwrap();
    let member = Connection::mutual(&plane, &member).await;
    let mut stream = member.roots().await.unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().federated, []);

    // Each takes what the other one hands over.
    let federate = |of: &ControlPlane, at: &Setup| {
        let file = at.state.path().join("federated-bundles.json");
        std::fs::write(file, of.authority.bundle_map().unwrap()).unwrap();
    };
    federate(&other, &here);
    federate(&plane, &there);
    let told = stream.message().await.unwrap().unwrap();
    assert_eq!((told.federated.len(), told.trust_domain.as_str()), (1, "cluster.local"));
    assert_eq!(told.federated[0].trust_domain, "other.example");
    assert_eq!(told.federated[0].roots, [other.authority.bundle().roots()[0].to_vec()]);
    let (home, away) = (TrustDomain::new("cluster.local").unwrap(), TrustDomain::new("other.example").unwrap());
    let mut of_plane = plane.identity("default", "embedded").unwrap();
    let mut of_other = other.identity("default", "embedded").unwrap();
    of_plane.wait_for(|i| i.as_ref().is_some_and(|i| i.bundles().get(&away).is_some())).await;
    of_other.wait_for(|i| i.as_ref().is_some_and(|i| i.bundles().get(&home).is_some())).await;

    // The guest's certificate holds for members, and is none to the control plane: no renewal, configuration, roots.
    let (guest, own) = (inside(&of_other), inside(&of_plane));
    let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let (now, usage) = (rustls_pki_types::UnixTime::now(), mesh_core::identity::Usage::Client);
    let held = mesh_core::identity::verify_svid(&guest.certified().cert, own.bundles(), algorithms, now, usage);
    assert_eq!(held.unwrap().as_str(), "spiffe://other.example/ns/default/sa/embedded");
    for (who, taken) in [(&guest, false), (&own, true)] {
        let connection = Connection::mutual(&plane, who).await;
        assert_eq!(connection.certificate(None).await.is_ok(), taken, "{who:?}");
        assert_eq!(connection.roots().await.is_ok(), taken, "{who:?}");
        assert_eq!(connection.ads().await.is_ok(), taken, "{who:?}");
        assert_eq!(connection.announce().await.is_ok(), taken, "{who:?}");
    }

    // What an operator says later to be a name of ours is taken from the other domain.
    let alias = "{apiVersion: v1, kind: ConfigMap, metadata: {name: istio, namespace: istio-system}, \
                 data: {mesh: 'trustDomainAliases: [other.example]'}}";
    here.write("mesh.yaml", alias);
    assert_eq!(stream.message().await.unwrap().unwrap().federated, []);
    here.write("mesh.yaml", "# none\n");
    assert_eq!(stream.message().await.unwrap().unwrap(), told);
    std::fs::remove_file(here.state.path().join("federated-bundles.json")).unwrap();
    assert_eq!(stream.message().await.unwrap().unwrap().federated, []);
}

/// A certificate that the authority's key has signed for a workload of a trust domain.
fn signed_for(setup: &Setup, domain: &str) -> Arc<Identity> {
    let read = |file: &str| std::fs::read_to_string(setup.state.path().join(file)).unwrap();
    let key = rcgen::KeyPair::from_pem(&read("ca-key.pem")).unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_pem(&read("root-cert.pem"), key).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let id = format!("spiffe://{domain}/ns/default/sa/reviews");
    params.subject_alt_names = vec![rcgen::SanType::URI(id.as_str().try_into().unwrap())];
    params.key_usages = vec![rcgen::KeyUsagePurpose::DigitalSignature];
    let own = rcgen::KeyPair::generate().unwrap();
    let leaf = params.signed_by(&own, &issuer).unwrap().der().clone();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = rustls_pki_types::PrivateKeyDer::try_from(own.serialize_der()).unwrap();
    let certified = rustls::sign::CertifiedKey::from_der(vec![leaf], key, &provider).unwrap();
    // It knows the control plane by the name that that had before.
    let roots = mesh_core::identity::TrustBundle::from_pem(read("root-cert.pem").as_bytes()).unwrap();
    let (former, present) = (TrustDomain::new("cluster.local").unwrap(), TrustDomain::new("new.test").unwrap());
    let mut bundles = mesh_core::identity::TrustBundles::single(former.clone(), roots);
    bundles.alias(present, former);
    Arc::new(Identity::new(certified, bundles, 1).unwrap())
}

#[tokio::test]
async fn members_of_a_former_name_of_the_trust_domain_are_served_and_renewed_into_the_present_one() {
    let setup = Setup::new();
    setup.start().await.shutdown().await;
    let renamed = |aliases: &[&str]| {
        let names = aliases.iter().chain(&["cluster.local"]).map(|name| TrustDomain::new(name).unwrap()).collect();
        setup.builder().trust_domain(TrustDomain::new("new.test").unwrap()).trust_domain_aliases(names)
    };
    // The control: whose root names another trust domain does not even start.
    let refused = setup.builder().trust_domain(TrustDomain::new("new.test").unwrap()).start().await.err().unwrap();
    assert!(refused.to_string().contains("--trust-domain-alias"), "{refused}");
    let plane = renamed(&[]).start().await.unwrap();
    let member = Connection::mutual(&plane, &signed_for(&setup, "cluster.local")).await;
    let next = member.certificate(None).await.unwrap();
    assert_eq!(next.id().as_str(), "spiffe://new.test/ns/default/sa/reviews");
    assert_eq!(member.roots().await.unwrap().message().await.unwrap().unwrap().trust_domain, "new.test");
    let mut ads = member.ads().await.unwrap();
    ads.ask(Kind::Endpoints, &[REVIEWS_EDS], None).await;
    ads.expect(Kind::Endpoints).await;
    let (_, sync) = page(&plane, "localhost", "/sync").await;
    assert!(
        sync.contains("spiffe://new.test/ns/default/sa/reviews") && !sync.contains("spiffe://cluster.local"),
        "{sync}"
    );
    // A token of the workload's speaks for it under either name, and for nobody else.
    let token = |account: &str| plane.join_tokens().mint("default", account, Duration::from_secs(60)).unwrap();
    assert!(member.certificate(Some(&token("reviews"))).await.is_ok());
    assert_eq!(member.certificate(Some(&token("ratings"))).await.unwrap_err().code(), Code::Unauthenticated);
    // The controls: by the same root, of a name that nobody has made an alias, until somebody has.
    let refused = async |plane: &ControlPlane| {
        let stranger = Connection::mutual(plane, &signed_for(&setup, "older.test")).await;
        stranger.certificate(None).await.is_err()
    };
    assert!(refused(&plane).await);
    plane.shutdown().await;
    let plane = renamed(&["older.test"]).start().await.unwrap();
    assert!(!refused(&plane).await);
}
