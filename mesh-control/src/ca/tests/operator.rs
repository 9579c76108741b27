//! Roots and intermediates that an operator changes by hand.

use super::*;

/// By hand no root is lost under which certificates live, as with `rotate-root`.
#[test]
fn an_operators_root_is_taken_out_once_nothing_lives_under_it() {
    let world = Rotating::new();
    let home = world.home.path();
    let (old, new) = (operator(1), operator(1));
    write_operators(home, &old);
    let ca = world.authority();
    let (_, pem) = csr(|_| {});
    let key = RequestedKey::from_csr_pem(&pem).unwrap();
    ca.issue(&key, &reviews(), None).unwrap();
    let both = (format!("{}{}", old.0, new.0), new.1.clone(), new.2.clone());
    let refused = || {
        let error = ca.reload().unwrap_err().to_string();
        assert!(error.contains("leaves out the root") && error.contains("live-leaves/"), "{error}");
        assert!(error.contains(&(NOW + DAY).to_string()), "until when: {error}");
    };
    write_operators(home, &new);
    refused();
    assert_eq!(ca.bundle(), TrustBundle::from_pem(old.0.as_bytes()).unwrap(), "the last good one stays");
    write_operators(home, &both);
    assert!(ca.reload().unwrap(), "the control");
    write_operators(home, &new);
    refused();
    assert_eq!(ca.bundle().roots().len(), 2);
    world.pass(DAY);
    assert!(ca.reload().unwrap());
    assert_eq!(ca.bundle(), TrustBundle::from_pem(new.0.as_bytes()).unwrap());

    // Whoever means it says so: what the error names is removed.
    ca.issue(&key, &reviews(), None).unwrap();
    write_operators(home, &old);
    assert!(ca.reload().is_err());
    for record in std::fs::read_dir(home.join("live-leaves")).unwrap() {
        std::fs::remove_file(record.unwrap().path()).unwrap();
    }
    assert!(ca.reload().unwrap());
}

/// It may be of another mesh, of a former name or of before there were records.
#[test]
fn a_root_of_which_nothing_is_recorded_is_not_taken_out_at_once() {
    let world = Rotating::new();
    let own = world.authority();
    let file = world.home.path().join("root-cert.pem");
    let roots = format!("{}{}", std::fs::read_to_string(&file).unwrap(), operator(1).0);
    std::fs::write(&file, roots).unwrap();
    for _ in 0..2 {
        let safe = NOW + DAY;
        assert!(matches!(world.command(false), Err(RotateError::TooEarly { safe_at, .. }) if safe_at == safe));
        world.pass(DAY / 4);
    }
    world.pass(DAY);
    let state = world.command(false).unwrap();
    assert_eq!((state.step, state.trusted.len()), (RotationStep::Idle, 1));
    assert!(!own.reload().unwrap_or(false) || own.bundle().roots().len() == 1);
}

#[test]
fn what_ends_too_soon_signs_nothing_and_says_what_to_do() {
    let world = Rotating::new();
    let (_, pem) = csr(|_| {});
    let key = RequestedKey::from_csr_pem(&pem).unwrap();
    let ca = world.authority();
    let end = not_after(&ca.bundle().roots()[0]).unwrap();
    world.pass(end - NOW - 300);
    assert_eq!(ca.issue(&key, &reviews(), None).unwrap().life, Duration::from_secs(300), "the control");
    for seconds in [1, 299, DAY] {
        world.pass(seconds);
        let error = ca.issue(&key, &reviews(), None).unwrap_err();
        assert!(matches!(error, IssueError::IssuerEnds { not_after, .. } if not_after == end), "{error}");
        assert!(error.to_string().contains("rotate-root"), "{error}");
    }
}

/// A mesh that is renamed keeps its root, or has the old one beside a new one, and knows the peers of the old name.
#[test]
fn roots_of_a_former_name_of_the_trust_domain_count_on() {
    let (old, new) = (TrustDomain::new("old.test").unwrap(), TrustDomain::new("new.test").unwrap());
    let clock = || Clock::new(|| UNIX_EPOCH + Duration::from_secs(NOW));
    let life = CertificateLife::default();
    let (home, fresh) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = CertificateAuthority::open(home.path(), old.clone(), life, clock()).unwrap();
    let id: SpiffeId = "spiffe://old.test/ns/default/sa/reviews".parse().unwrap();
    let key = RequestedKey::from_csr_pem(&csr(|_| {}).1).unwrap();
    let leaf = before.issue(&key, &id, None).unwrap().leaf;
    // A new authority, to whose roots the old one's is added.
    CertificateAuthority::open(fresh.path(), new.clone(), life, clock()).unwrap();
    let roots = fresh.path().join(ROOT_FILE);
    let both = std::fs::read_to_string(&roots).unwrap() + &std::fs::read_to_string(before.root_path()).unwrap();
    std::fs::write(&roots, both).unwrap();
    for (state, trusted) in [(home.path(), 1), (fresh.path(), 2)] {
        let refused = CertificateAuthority::open(state, new.clone(), life, clock()).err().expect("the control");
        assert!(refused.to_string().contains("--trust-domain-alias"), "{refused}");
        let domains = TrustDomains::new(new.clone(), vec![old.clone()]);
        let ca = CertificateAuthority::open(state, domains.clone(), life, clock()).unwrap();
        RootRotation::open(state, domains, life, clock()).unwrap().state().unwrap();
        assert_eq!(ca.bundle().roots().len(), trusted);
        let present: SpiffeId = "spiffe://new.test/ns/default/sa/reviews".parse().unwrap();
        ca.issue(&key, &present, None).unwrap();
        assert!(ca.issue(&key, &id, None).is_err(), "it signs for the present name alone");
        let mut bundles = mesh_core::identity::TrustBundles::single(new.clone(), ca.bundle());
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let now = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(NOW));
        let usage = mesh_core::identity::Usage::Client;
        let peer = |bundles: &mesh_core::identity::TrustBundles| {
            mesh_core::identity::verify_svid(std::slice::from_ref(&leaf), bundles, algorithms, now, usage)
        };
        assert!(peer(&bundles).is_err(), "the control");
        bundles.alias(old.clone(), new.clone());
        assert_eq!(peer(&bundles).map(|peer| bundles.aliased(&peer)), Ok(Some(present)));
    }
}
