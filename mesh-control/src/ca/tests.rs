//! The authority against the inputs of a hostile requester, and against its own state directory.

mod operator;

use std::os::unix::fs::PermissionsExt;
use std::time::UNIX_EPOCH;

use rcgen::{BasicConstraints, DnType, Issuer, PublicKeyData};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, oid_registry};

use super::material::KEY_FILE;
use super::*;

const NOW: u64 = 1_800_000_000;

fn authority(home: &Path, life: CertificateLife) -> Result<CertificateAuthority, StateError> {
    let clock = Clock::new(|| UNIX_EPOCH + Duration::from_secs(NOW));
    CertificateAuthority::open(home, TrustDomain::new("cluster.local").unwrap(), life, clock)
}

fn reviews() -> SpiffeId {
    "spiffe://cluster.local/ns/default/sa/reviews".parse().unwrap()
}

fn csr(change: impl FnOnce(&mut CertificateParams)) -> (KeyPair, String) {
    csr_of(KeyPair::generate().unwrap(), change)
}

fn csr_of(key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> (KeyPair, String) {
    let mut params = CertificateParams::default();
    change(&mut params);
    let pem = params.serialize_request(&key).unwrap().pem().unwrap();
    (key, pem)
}

#[test]
fn s86_of_a_request_only_the_public_key_is_used() {
    let home = tempfile::tempdir().unwrap();
    let ca = authority(home.path(), CertificateLife::default()).unwrap();
    let (key, pem) = csr(|params| {
        params.distinguished_name.push(DnType::CommonName, "admin");
        params.subject_alt_names = vec![
            SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap()),
            SanType::DnsName("api.example.com".try_into().unwrap()),
        ];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.custom_extensions = vec![rcgen::CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0])];
    });
    let issued = ca.issue(&RequestedKey::from_csr_pem(&pem).unwrap(), &reviews(), None).unwrap();

    let (_, leaf) = X509Certificate::from_der(&issued.leaf).unwrap();
    assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.get_extension_unique(&oid_registry::OID_X509_EXT_SUBJECT_ALT_NAME).unwrap().unwrap();
    assert!(names.critical, "an empty subject demands it");
    let names = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
    assert_eq!(names[..], [GeneralName::URI(reviews().as_str())]);
    let constraints = leaf.basic_constraints().unwrap().unwrap();
    assert!(!constraints.value.ca);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical);
    assert_eq!(usage.value.flags, 1, "digitalSignature alone");
    let extended = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.server_auth && extended.client_auth && !extended.any);
    assert_eq!(issued.chain_pem.len(), 2);
    assert_eq!(CertificateDer::from_pem_slice(issued.chain_pem[0].as_bytes()).unwrap(), issued.leaf);
    assert_eq!(CertificateDer::from_pem_slice(issued.chain_pem[1].as_bytes()).unwrap(), ca.bundle().roots()[0]);
    assert_eq!(issued.intermediates, []);
    mesh_core::identity::peer_spiffe_id(&issued.leaf).unwrap();
}

#[test]
fn s86_bad_requests_are_refused() {
    let refused = |pem: &str| RequestedKey::from_csr_pem(pem).unwrap_err();
    assert_eq!(refused(""), CsrRefused::Unreadable);
    assert_eq!(
        refused("-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"),
        CsrRefused::Unreadable
    );
    assert!(matches!(refused(&"A".repeat(1 << 20)), CsrRefused::TooLong(_)));
    // Signed by somebody else than the owner of the key in it.
    let (_, good) = csr(|_| {});
    let mut der = CertificateSigningRequestDer::from_pem_slice(good.as_bytes()).unwrap().to_vec();
    let last = der.len() - 1;
    der[last] ^= 1;
    assert!(matches!(refused(&csr_pem(&der)), CsrRefused::Signature | CsrRefused::Unreadable));
    assert!(RequestedKey::from_csr_pem(&good).is_ok(), "the control");
    let (_, odd) = csr_of(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap(), |_| {});
    assert_eq!(refused(&odd), CsrRefused::Key);
    assert_eq!(refused(RSA_1024), CsrRefused::Key);
}

#[test]
fn the_accepted_kinds_of_key_are_signed() {
    let home = tempfile::tempdir().unwrap();
    let ca = authority(home.path(), CertificateLife::default()).unwrap();
    for kind in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519] {
        let (key, pem) = csr_of(KeyPair::generate_for(kind).unwrap(), |_| {});
        let issued = ca.issue(&RequestedKey::from_csr_pem(&pem).unwrap(), &reviews(), None).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.leaf).unwrap();
        assert_eq!(leaf.public_key().raw, key.subject_public_key_info());
    }
}

#[test]
fn s86_life_is_kept_within_its_bounds_and_start_lies_back() {
    let home = tempfile::tempdir().unwrap();
    let (_, pem) = csr(|_| {});
    let key = RequestedKey::from_csr_pem(&pem).unwrap();
    let life = |life, wished: Option<u64>| {
        let ca = authority(home.path(), life).unwrap();
        let issued = ca.issue(&key, &reviews(), wished.map(Duration::from_secs)).unwrap();
        let (_, leaf) = X509Certificate::from_der(&issued.leaf).unwrap();
        let validity = leaf.validity();
        assert_eq!(validity.not_after.timestamp() as u64, issued.not_after);
        (NOW - validity.not_before.timestamp() as u64, issued.not_after - NOW)
    };
    let usual = CertificateLife::default();
    assert_eq!(life(usual, None), (300, 86_400));
    assert_eq!(life(usual, Some(10 * 365 * 86_400)), (300, 86_400));
    assert_eq!(life(usual, Some(u64::MAX)), (300, 86_400));
    assert_eq!(life(usual, Some(0)), (75, 300));
    assert_eq!(life(usual, Some(3_600)), (300, 3_600));
    assert_eq!(life(CertificateLife::at_most(Duration::from_secs(8)), None), (2, 8));
}

#[test]
fn serial_numbers_differ_even_for_one_key() {
    let home = tempfile::tempdir().unwrap();
    let ca = authority(home.path(), CertificateLife::default()).unwrap();
    let (_, pem) = csr(|_| {});
    let key = RequestedKey::from_csr_pem(&pem).unwrap();
    let serial = || {
        let issued = ca.issue(&key, &reviews(), None).unwrap();
        X509Certificate::from_der(&issued.leaf).unwrap().1.raw_serial().to_vec()
    };
    assert_ne!(serial(), serial());
}

#[test]
fn an_identity_of_another_trust_domain_is_not_signed() {
    let home = tempfile::tempdir().unwrap();
    let ca = authority(home.path(), CertificateLife::default()).unwrap();
    let (_, pem) = csr(|_| {});
    let foreign = "spiffe://other.example/ns/default/sa/reviews".parse().unwrap();
    let result = ca.issue(&RequestedKey::from_csr_pem(&pem).unwrap(), &foreign, None);
    assert!(matches!(result, Err(IssueError::ForeignDomain { .. })));
}

#[test]
fn the_root_survives_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let first = authority(home.path(), CertificateLife::default()).unwrap();
    let second = authority(home.path(), CertificateLife::default()).unwrap();
    assert_eq!(first.bundle(), second.bundle());
    let bundle = first.bundle();
    let (_, root) = X509Certificate::from_der(&bundle.roots()[0]).unwrap();
    let constraints = root.basic_constraints().unwrap().unwrap();
    assert_eq!((constraints.value.ca, constraints.value.path_len_constraint), (true, Some(0)));
    assert!(root.key_usage().unwrap().unwrap().value.key_cert_sign());
}

#[test]
fn s94_a_state_directory_that_does_not_fit_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let usual = CertificateLife::default();
    authority(home.path(), usual).unwrap();

    let clock = Clock::new(|| UNIX_EPOCH + Duration::from_secs(NOW));
    let other = CertificateAuthority::open(home.path(), TrustDomain::new("other.example").unwrap(), usual, clock);
    assert!(matches!(other, Err(StateError::Content { .. })), "another trust domain");

    let key = home.path().join(KEY_FILE);
    let kept = std::fs::read(&key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(authority(home.path(), usual), Err(StateError::TooOpen { mode: 0o644, .. })));
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(authority(home.path(), usual).is_ok(), "the control");

    std::fs::write(&key, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(matches!(authority(home.path(), usual), Err(StateError::Content { .. })), "another key");
    std::fs::remove_file(&key).unwrap();
    assert!(matches!(authority(home.path(), usual), Err(StateError::Content { .. })), "no key");

    // The certificate alone can be made again: same name and key are the same trust anchor.
    std::fs::write(&key, kept).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::remove_file(home.path().join(ROOT_FILE)).unwrap();
    assert!(authority(home.path(), usual).is_ok());
}

/// An operator's root and an intermediate of it, as PEM, and the intermediate's key.
pub(crate) fn operator(path: u8) -> (String, String, String) {
    let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "operator's root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&root_key).unwrap();
    let issuer = Issuer::new(params.clone(), root_key);
    params.distinguished_name.push(DnType::CommonName, "intermediate");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.use_authority_key_identifier_extension = true;
    let intermediate = params.signed_by(&key, &issuer).unwrap();
    (root.pem(), intermediate.pem(), key.serialize_pem())
}

pub(crate) fn write_operators(home: &Path, (root, intermediate, key): &(String, String, String)) {
    for (file, text) in [("root-cert.pem", root), ("ca-cert.pem", intermediate), (KEY_FILE, key)] {
        std::fs::write(home.join(file), text).unwrap();
        std::fs::set_permissions(home.join(file), std::fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn an_operators_intermediate_signs_and_is_presented_with_the_leaf() {
    let home = tempfile::tempdir().unwrap();
    let given = operator(1);
    write_operators(home.path(), &given);
    let ca = authority(home.path(), CertificateLife::default()).unwrap();
    let (_, pem) = csr(|_| {});
    let issued = ca.issue(&RequestedKey::from_csr_pem(&pem).unwrap(), &reviews(), None).unwrap();
    assert_eq!((issued.chain_pem.len(), issued.intermediates.len()), (3, 1));
    assert_eq!(issued.chain_pem[2], given.0);
    let bundles = mesh_core::identity::TrustBundles::single(reviews().trust_domain(), ca.bundle());
    let verify = |chain: &[CertificateDer<'_>]| {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let now = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(NOW));
        mesh_core::identity::verify_svid(chain, &bundles, algorithms, now, mesh_core::identity::Usage::Client)
    };
    assert_eq!(verify(&[issued.leaf.clone(), issued.intermediates[0].clone()]), Ok(reviews()));
    assert!(verify(&[issued.leaf]).is_err(), "control: nothing leads to the root");

    // Another pair comes: both files, or nothing.
    let next = operator(1);
    std::fs::write(home.path().join("ca-cert.pem"), &next.1).unwrap();
    assert!(ca.reload().is_err(), "half of it");
    assert_eq!(ca.bundle(), TrustBundle::from_pem(given.0.as_bytes()).unwrap());
    write_operators(home.path(), &(format!("{}{}", given.0, next.0), next.1, next.2));
    assert!(ca.reload().unwrap());
    assert_eq!(ca.bundle().roots().len(), 2);
    assert!(!ca.reload().unwrap(), "nothing new");

    let rotation =
        RootRotation::open(home.path(), reviews().trust_domain(), CertificateLife::default(), Clock::system());
    assert!(matches!(rotation.unwrap().advance(true), Err(RotateError::NotOurs)));
}

#[test]
fn an_intermediate_that_no_root_signed_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (given, other) = (operator(1), operator(1));
    write_operators(home.path(), &(other.0, given.1.clone(), given.2.clone()));
    assert!(matches!(authority(home.path(), CertificateLife::default()), Err(StateError::Content { .. })));
    write_operators(home.path(), &given);
    assert!(authority(home.path(), CertificateLife::default()).is_ok(), "control");
}

/// A state directory, its control plane's authority and the command, at a time that is moved.
struct Rotating {
    home: tempfile::TempDir,
    now: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Rotating {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), now: std::sync::Arc::new(NOW.into()) }
    }

    fn clock(&self) -> Clock {
        let now = self.now.clone();
        Clock::new(move || UNIX_EPOCH + Duration::from_secs(now.load(std::sync::atomic::Ordering::Relaxed)))
    }

    fn pass(&self, seconds: u64) {
        self.now.fetch_add(seconds, std::sync::atomic::Ordering::Relaxed);
    }

    fn authority(&self) -> CertificateAuthority {
        let life = CertificateLife::default();
        CertificateAuthority::open(self.home.path(), reviews().trust_domain(), life, self.clock()).unwrap()
    }

    fn command(&self, force: bool) -> Result<RotationState, RotateError> {
        let life = CertificateLife::default();
        RootRotation::open(self.home.path(), reviews().trust_domain(), life, self.clock()).unwrap().advance(force)
    }
}

const DAY: u64 = 86_400;

#[test]
fn a_root_is_changed_in_three_steps_none_of_which_cuts_a_live_leaf_off() {
    let world = Rotating::new();
    let ca = world.authority();
    let (_, pem) = csr(|_| {});
    let key = RequestedKey::from_csr_pem(&pem).unwrap();
    let signed_by = |issued: &Issued, root: &CertificateDer<'_>| {
        let (_, root) = X509Certificate::from_der(root).unwrap();
        material::is_signed_with(&issued.leaf, root.public_key())
    };
    let first = ca.bundle().roots()[0].clone();
    ca.issue(&key, &reviews(), None).unwrap();

    let added = world.command(false).unwrap();
    assert_eq!((added.step, added.trusted.len()), (RotationStep::Added, 2));
    assert!(ca.reload().unwrap());
    let second = ca.bundle().roots()[1].clone();
    let between = ca.issue(&key, &reviews(), None).unwrap();
    assert!(signed_by(&between, &first) && between.chain_pem[1].matches("BEGIN").count() == 2, "both are told");
    // Whoever has a certificate of before the first step may know one root only.
    assert!(matches!(world.command(false), Err(RotateError::TooEarly { .. })));
    world.pass(DAY);
    assert!(
        matches!(world.command(false), Err(RotateError::TooEarly { .. })),
        "records say a little more than is true"
    );
    world.pass(DAY / 4 + 5);
    let switched = world.command(false).unwrap();
    assert_eq!((switched.step, &switched.signing), (RotationStep::Switched, &added.trusted[1]));
    assert!(ca.reload().unwrap());
    let after = ca.issue(&key, &reviews(), None).unwrap();
    assert!(signed_by(&after, &second) && after.chain_pem[1].matches("BEGIN").count() == 2);

    // A leaf of the old root, signed shortly before the switch by a process that had not noticed.
    let live = LiveLeaves::open(&StateDir::open(world.home.path()).unwrap()).unwrap().0;
    let now = world.now.load(std::sync::atomic::Ordering::Relaxed);
    live.note(&first, now + DAY, 0).unwrap();
    match world.command(false) {
        Err(error @ RotateError::TooEarly { .. }) => assert!(error.to_string().contains("86400 seconds"), "{error}"),
        other => panic!("{other:?}"),
    }
    world.pass(DAY);
    let removed = world.command(false).unwrap();
    assert_eq!((removed.step, &removed.trusted), (RotationStep::Idle, &switched.trusted[1..].to_vec()));
    assert!(ca.reload().unwrap());
    assert_eq!(ca.bundle().roots(), std::slice::from_ref(&second));
    // A restart knows the same, and the next change begins.
    assert_eq!(world.authority().bundle().roots(), [second]);
    assert_eq!(world.command(false).unwrap().step, RotationStep::Added);
}

/// The revocation list (PEM) of a root, signed with the key in `key`.
fn list_of(world: &Rotating, root: &CertificateDer<'_>, key: &str, serials: &[&str]) -> String {
    list_signed_at(world, NOW, root, key, serials)
}

fn list_signed_at(world: &Rotating, signed: u64, root: &CertificateDer<'_>, key: &str, serials: &[&str]) -> String {
    let read = |file: &str| std::fs::read_to_string(world.home.path().join(file)).unwrap();
    let issuer = Issuer::from_ca_cert_der(root, KeyPair::from_pem(&read(key)).unwrap()).unwrap();
    let at = |seconds: u64| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(seconds);
    let revoked = |serial: &&str| rcgen::RevokedCertParams {
        serial_number: SerialNumber::from_slice(&u128::from_str_radix(serial, 16).unwrap().to_be_bytes()),
        revocation_time: at(NOW),
        reason_code: None,
        invalidity_date: None,
    };
    let list = rcgen::CertificateRevocationListParams {
        this_update: at(signed),
        next_update: at(signed + 30 * DAY),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: rcgen::KeyIdMethod::Sha256,
    };
    list.signed_by(&issuer).unwrap().pem().unwrap()
}

#[test]
fn s67_a_root_is_changed_while_there_are_revocation_lists_and_they_hold_throughout() {
    let world = Rotating::new();
    let ca = world.authority();
    let issue = || ca.issue(&RequestedKey::from_csr_pem(&csr(|_| {}).1).unwrap(), &reviews(), None).unwrap();
    let good = |issued: &Issued| {
        let bundles = mesh_core::identity::TrustBundles::single(reviews().trust_domain(), ca.bundle());
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let now = world.now.load(std::sync::atomic::Ordering::Relaxed);
        let now = rustls_pki_types::UnixTime::since_unix_epoch(Duration::from_secs(now));
        let usage = mesh_core::identity::Usage::Client;
        mesh_core::identity::verify_svid(std::slice::from_ref(&issued.leaf), &bundles, algorithms, now, usage).is_ok()
    };
    let write = |lists: &[String]| std::fs::write(world.home.path().join("ca-crl.pem"), lists.concat()).unwrap();
    let (stolen, old) = (issue(), issue());
    let first = ca.bundle().roots()[0].clone();
    write(&[list_of(&world, &first, KEY_FILE, &[&stolen.serial])]);
    assert!(ca.reload().unwrap());
    assert!(!good(&stolen) && good(&old));

    world.command(false).unwrap();
    assert!(ca.reload().unwrap());
    assert_eq!(ca.bundle().revocation_lists().len(), 2, "the new root has one before it signs");
    assert!(!good(&stolen) && good(&old));
    world.command(true).unwrap();
    assert!(ca.reload().unwrap());
    let new = issue();
    assert!(!good(&stolen) && good(&old) && good(&new), "both roots' certificates are told of");

    // While both live either may be taken back, the old root's key is there for it.
    let second = ca.bundle().roots()[1].clone();
    let of_old = |serials: &[&str]| list_of(&world, &first, "last-ca-key.pem", serials);
    let of_new = |serials: &[&str]| list_of(&world, &second, KEY_FILE, serials);
    write(&[of_old(&[&stolen.serial, &old.serial]), of_new(&[])]);
    assert!(ca.reload().unwrap());
    assert!(!good(&stolen) && !good(&old) && good(&new));
    write(&[of_old(&[&stolen.serial]), of_new(&[&new.serial])]);
    assert!(ca.reload().unwrap());
    assert!(!good(&stolen) && good(&old) && !good(&new));
    // A file that forgets the old root would cut off whom it signed: the last good lists stay.
    write(&[of_new(&[])]);
    let refused = ca.reload().unwrap_err().to_string();
    assert!(refused.contains("no list in it is of") && refused.contains("mesh root CA"), "{refused}");
    assert!(good(&old) && !good(&new));

    write(&[of_old(&[&stolen.serial]), of_new(&[])]);
    world.command(true).unwrap();
    assert!(ca.reload().unwrap());
    assert!(good(&new) && !good(&old), "its root is out");
    assert!(!world.home.path().join("last-ca-key.pem").exists(), "and its key with it");
    write(&[of_new(&[])]);
    assert!(ca.reload().unwrap());
    assert!(good(&new));
}

/// As where the state folder comes from a backup: whoever was taken back since would be let in again.
#[test]
fn s67_an_older_list_does_not_stand_in_for_a_newer_one_until_that_has_ended_or_is_taken_out() {
    let world = Rotating::new();
    let ca = world.authority();
    let path = world.home.path().join("ca-crl.pem");
    let older = list_of(&world, &ca.bundle().roots()[0], KEY_FILE, &[]);
    world.pass(1);
    let newer = list_signed_at(&world, NOW + 1, &ca.bundle().roots()[0], KEY_FILE, &["07"]);
    let takes = |list: &str| {
        std::fs::write(&path, list).unwrap();
        ca.reload()
    };
    assert!(takes(&older).unwrap());
    assert!(takes(&newer).unwrap());
    let good = ca.bundle().revocation_lists().to_vec();
    let refused = takes(&older).unwrap_err().to_string();
    assert!(refused.contains("ca-crl.pem") && refused.contains("older than the one in force"), "{refused}");
    assert_eq!(ca.bundle().revocation_lists(), good);
    std::fs::remove_file(&path).unwrap();
    assert!(ca.reload().unwrap());
    assert!(takes(&older).unwrap(), "the file was taken out, so it is meant");
}

/// Nothing is made of it, and no more read than may be.
#[test]
fn s68_revocation_lists_of_50_mb_are_refused_and_the_last_good_ones_stay() {
    let world = Rotating::new();
    let ca = world.authority();
    let path = world.home.path().join("ca-crl.pem");
    let list = list_of(&world, &ca.bundle().roots()[0], KEY_FILE, &[]);
    std::fs::write(&path, &list).unwrap();
    assert!(ca.reload().unwrap());
    let good = ca.bundle().revocation_lists().to_vec();
    // A good list with so much behind it that is none, as PEM may have.
    std::fs::write(&path, list + &" ".repeat(50 << 20)).unwrap();
    let refused = ca.reload().unwrap_err().to_string();
    assert!(refused.contains("ca-crl.pem") && refused.contains("16 MiB"), "{refused}");
    assert_eq!(ca.bundle().revocation_lists(), good);
}

#[test]
fn without_revocation_lists_the_old_key_is_gone_with_the_switch() {
    let world = Rotating::new();
    world.authority();
    world.command(true).unwrap();
    world.command(true).unwrap();
    assert!(!world.home.path().join("last-ca-key.pem").exists() && !world.home.path().join("ca-crl.pem").exists());
}

#[test]
fn force_makes_a_step_that_is_too_early() {
    let world = Rotating::new();
    let ca = world.authority();
    let (_, pem) = csr(|_| {});
    ca.issue(&RequestedKey::from_csr_pem(&pem).unwrap(), &reviews(), None).unwrap();
    for step in [RotationStep::Added, RotationStep::Switched, RotationStep::Idle] {
        assert_eq!(world.command(true).unwrap().step, step);
        assert!(ca.reload().unwrap(), "a control plane takes it up");
    }
}

#[test]
fn a_change_of_roots_that_was_cut_short_goes_on_where_it_was() {
    let world = Rotating::new();
    let one = world.authority().bundle();
    // The new key was written and the root was not.
    let dir = StateDir::open(world.home.path()).unwrap();
    dir.write("next-ca-key.pem", KeyPair::generate().unwrap().serialize_pem().as_bytes()).unwrap();
    let life = CertificateLife::default();
    let rotation = RootRotation::open(world.home.path(), reviews().trust_domain(), life, world.clock()).unwrap();
    assert_eq!(rotation.state().unwrap().step, RotationStep::Idle);
    assert_eq!(world.command(false).unwrap().step, RotationStep::Added);
    let ca = world.authority();
    assert_eq!((ca.bundle().roots().len(), &ca.bundle().roots()[0]), (2, &one.roots()[0]));
    // The file that says since when is lost: as if it had begun now.
    std::fs::remove_file(dir.path("root-rotation.json")).unwrap();
    assert!(matches!(world.command(false), Err(RotateError::TooEarly { .. })));
    world.pass(DAY);
    assert_eq!(world.command(false).unwrap().step, RotationStep::Switched, "and it has an end");
}

#[test]
fn leaves_of_a_state_directory_of_before_the_records_count_as_live() {
    let world = Rotating::new();
    world.authority();
    std::fs::remove_dir_all(world.home.path().join("live-leaves")).unwrap();
    world.command(false).unwrap();
    match world.command(false) {
        Err(RotateError::TooEarly { now, safe_at, .. }) => assert!(safe_at >= now + DAY),
        other => panic!("{other:?}"),
    }
}

/// The corpus of the fuzzer, replayed. `UPDATE_CORPUS=1` writes it anew; what a fuzzer finds is added by hand and stays.
#[test]
fn the_corpus_of_signing_requests_is_read_or_refused() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus/csr");
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        std::fs::create_dir_all(folder).unwrap();
        for (name, kind) in [("p256", &rcgen::PKCS_ECDSA_P256_SHA256), ("ed25519", &rcgen::PKCS_ED25519)] {
            let (_, pem) = csr_of(KeyPair::generate_for(kind).unwrap(), |params| {
                params.distinguished_name.push(DnType::CommonName, "admin");
                params.subject_alt_names = vec![SanType::DnsName("api.example.com".try_into().unwrap())];
            });
            std::fs::write(format!("{folder}/{name}"), &pem).unwrap();
            std::fs::write(format!("{folder}/bad_{name}_cut"), &pem[..pem.len() * 2 / 3]).unwrap();
            let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).unwrap();
            let mut bent = der.to_vec();
            bent[der.len() / 2] ^= 0x55;
            std::fs::write(format!("{folder}/bad_{name}_bent"), csr_pem(&bent)).unwrap();
        }
        std::fs::write(format!("{folder}/bad_rsa1024"), RSA_1024).unwrap();
    }
    let home = tempfile::tempdir().unwrap();
    let ca = fuzzing::authority(home.path());
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let bad = path.file_name().unwrap().to_str().unwrap().starts_with("bad");
        let read = fuzzing::csr(&ca, &String::from_utf8_lossy(&std::fs::read(&path).unwrap()));
        assert_eq!(!read, bad, "{path:?}");
        files += 1;
    }
    assert!(files >= 7, "{files}");
}

fn csr_pem(der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
    format!("-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n", lines.join("\n"))
}

/// A request made with OpenSSL, for this library makes no keys so weak.
const RSA_1024: &str = "\
-----BEGIN CERTIFICATE REQUEST-----\n\
MIIBPzCBqQIBADAAMIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCdEB/z+e0R\n\
8PNnFC4+qkApE49AVchUp9DF1K9rfe9ed0aVU+gMxVD4Cg3/ElAg2tV3ULBSH6Ff\n\
gkGbvbv3vw8He5GfVZ1+dRXDJVNOrfd7+OEji8BHnHCDcavHM5gMeZl5LYQVJ5SD\n\
oa5j9IrKh+dXXoQiKgQvPFOSp/gQwuIp+QIDAQABoAAwDQYJKoZIhvcNAQELBQAD\n\
gYEAjOOAqQTO/LbT7nv9KmEAp87tzm7Lx0yGzkCkCxrd5/QJnRqK+fx73XxKTWPo\n\
VQ9VvdbnKbeyrfgaM8PHso6pVSUAEy3dFrI50aoxVpGtuzP8chBMa0bOiCdqVw9J\n\
BpI5R0okHGNVTH97mBAIzzAol3rkylbhi/7EfkBioLmxmHc=\n\
-----END CERTIFICATE REQUEST-----\n\
";
