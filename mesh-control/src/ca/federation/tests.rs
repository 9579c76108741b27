use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use mesh_core::id::TrustDomain;
use mesh_core::identity::TrustBundle;
use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, SanType};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::ca::{CertificateLife, RootRotation};
use crate::clock::Clock;

const OWN: &str = "cluster.local";
const OTHER: &str = "other.example";

/// A state directory, and what are our names besides.
struct World {
    home: tempfile::TempDir,
    aliases: Arc<Mutex<Vec<String>>>,
}

fn domain(name: &str) -> TrustDomain {
    TrustDomain::new(name).unwrap()
}

fn clock() -> Clock {
    Clock::new(|| UNIX_EPOCH + Duration::from_secs(1_800_000_000))
}

fn authority(home: &Path, name: &str) -> CertificateAuthority {
    CertificateAuthority::open(home, domain(name), CertificateLife::default(), clock()).unwrap()
}

impl World {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap(), aliases: Arc::default() }
    }

    fn open(&self) -> Federation {
        let aliases = self.aliases.clone();
        let names = move || std::iter::once(OWN.to_owned()).chain(aliases.lock().iter().cloned()).collect();
        Federation::open(Arc::new(authority(self.home.path(), OWN)), names)
    }

    fn write(&self, text: impl AsRef<[u8]>) {
        std::fs::write(self.home.path().join(FILE), text).unwrap();
    }
}

/// What another mesh would hand over, and its root.
fn other(name: &str) -> (String, TrustBundle) {
    let home = tempfile::tempdir().unwrap();
    let other = authority(home.path(), name);
    (other.bundle_map().unwrap(), other.bundle())
}

/// A map with these entries.
fn map(entries: &[(&str, &CertificateDer<'_>)]) -> String {
    let entry = |(name, root): &(&str, &CertificateDer<'_>)| {
        let key = json!({"use": "x509-svid", "kty": "EC", "x5c": [BASE64_STANDARD.encode(root)]});
        ((*name).to_owned(), json!({"keys": [key]}))
    };
    json!({"trust_domains": entries.iter().map(entry).collect::<serde_json::Map<_, _>>()}).to_string()
}

fn root(key: &KeyPair, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    change(&mut params);
    params.self_signed(key).unwrap().into()
}

fn names(bundles: &TrustBundles) -> Vec<&str> {
    bundles.iter().map(|(domain, _)| domain.as_str()).collect()
}

#[test]
fn what_another_authority_hands_over_is_trusted_while_it_is_there() {
    let world = World::new();
    let federation = world.open();
    let mut told = federation.watch();
    assert!(names(&federation.bundles()).is_empty() && federation.told().is_empty(), "the control");

    let (theirs, roots) = other(OTHER);
    world.write(&theirs);
    assert!(federation.reload().unwrap());
    assert!(!federation.reload().unwrap(), "nothing new");
    assert_eq!(federation.bundles().get(&domain(OTHER)), Some(&roots));
    let one = FederatedBundle { trust_domain: OTHER.to_owned(), roots: vec![roots.roots()[0].to_vec()] };
    assert_eq!(federation.told(), [one]);
    let own = TrustBundles::single(domain(OWN), federation.authority.bundle());
    assert_eq!(names(&federation.beside(own)), [OWN, OTHER]);
    assert!(futures_util::FutureExt::now_or_never(told.changed()).is_some());

    std::fs::remove_file(world.home.path().join(FILE)).unwrap();
    assert!(federation.reload().unwrap());
    assert!(names(&federation.bundles()).is_empty());
    assert!(names(&world.open().bundles()).is_empty(), "nor is it back after a restart");
    assert!(futures_util::FutureExt::now_or_never(told.changed()).is_some());
}

#[test]
fn s63_a_file_that_is_of_no_use_leaves_the_last_good_one_and_says_of_whom_and_why() {
    let world = World::new();
    *world.aliases.lock() = vec!["old.test".to_owned()];
    let federation = world.open();
    let (good, roots) = other(OTHER);
    world.write(&good);
    federation.reload().unwrap();

    let (one, two) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let plain = root(&one, |_| {});
    let own_key = std::fs::read_to_string(world.home.path().join("ca-key.pem")).unwrap();
    let of_our_key = root(&KeyPair::from_pem(&own_key).unwrap(), |_| {});
    let leaf = root(&one, |params| params.is_ca = IsCa::NoCa);
    let of_another = root(&one, |params| {
        params.subject_alt_names = vec![SanType::URI("spiffe://third.example".try_into().unwrap())];
    });
    let ours = federation.authority.bundle();
    // Two certificates, one key: the same trust anchor to everybody.
    let again = root(&one, |params| params.not_after = rcgen::date_time_ymd(2100, 1, 1));
    for (what, text, why) in [
        ("nothing", String::new(), "not JSON"),
        ("cut short", good[..good.len() / 2].to_owned(), "not JSON"),
        ("too long", " ".repeat(MOST + 1), "at most"),
        ("no certificate", good.replace("MII", "AII"), OTHER),
        ("our own domain", map(&[(OWN, &plain)]), "cluster.local is the trust domain of this mesh"),
        ("an alias of ours", map(&[("old.test", &plain)]), "old.test is the trust domain of this mesh or an alias"),
        ("our own root", map(&[("b.test", &ours.roots()[0])]), "a root of b.test: it is for spiffe://cluster.local"),
        ("our own key", map(&[("b.test", &of_our_key)]), "a root of b.test has the key of this mesh's own authority"),
        ("one root of two", map(&[("a.test", &plain), ("b.test", &again)]), "a root of b.test has the key of a.test"),
        ("a leaf", map(&[("b.test", &leaf)]), "a root of b.test: it may not sign"),
        ("of a third", map(&[("b.test", &of_another)]), "it is for spiffe://third.example"),
        ("one bad of two", map(&[("a.test", &plain), ("old.test", &root(&two, |_| {}))]), "old.test"),
    ] {
        world.write(text);
        let error = federation.reload().unwrap_err().to_string();
        assert!(error.contains(FILE) && error.contains(why), "{what}: {error}");
        assert_eq!(federation.bundles().get(&domain(OTHER)), Some(&roots), "{what}");
        assert_eq!(names(&federation.bundles()), [OTHER], "{what}");
        assert!(!federation.reload().unwrap(), "{what}: it is said once");
        // Nor does a restart forget it.
        assert_eq!(names(&world.open().bundles()), [OTHER], "{what}");
    }
    // The control: the same certificates where nothing is wrong with them, two of one domain among them.
    world.write(map(&[
        ("a.test", &plain),
        ("b.test", &root(&two, |_| {})),
        ("third.example", &other("third.example").1.roots()[0]),
    ]));
    assert!(federation.reload().unwrap());
    assert_eq!(names(&federation.bundles()), ["a.test", "b.test", "third.example"]);
    // Without anything good there is nobody.
    let fresh = World::new();
    fresh.write("{");
    assert!(names(&fresh.open().bundles()).is_empty());
}

#[test]
fn what_cannot_be_kept_for_a_later_start_is_in_force_and_kept_once_it_can_be() {
    let world = World::new();
    let federation = world.open();
    // No file can be written there.
    let kept = world.home.path().join(LAST_GOOD);
    std::fs::create_dir(&kept).unwrap();
    world.write(other(OTHER).0);
    for _ in 0..2 {
        let error = federation.reload().unwrap_err().to_string();
        assert!(error.contains(LAST_GOOD), "{error}");
        assert_eq!(names(&federation.bundles()), [OTHER]);
    }
    assert_eq!(names(&world.open().bundles()), [OTHER], "nor does a start go by what was good last");
    std::fs::remove_dir(&kept).unwrap();
    assert!(!federation.reload().unwrap());
    world.write("{");
    assert_eq!(names(&world.open().bundles()), [OTHER]);
}

#[test]
fn what_becomes_a_name_of_ours_is_nobody_elses_from_then_on() {
    let world = World::new();
    let federation = world.open();
    let [one, two] = [0, 1].map(|_| root(&KeyPair::generate().unwrap(), |_| {}));
    world.write(map(&[("a.test", &one), ("b.test", &two)]));
    federation.reload().unwrap();
    assert_eq!(names(&federation.bundles()), ["a.test", "b.test"], "the control");
    world.aliases.lock().push("a.test".to_owned());
    assert!(
        federation.reload().unwrap_err().to_string().contains("a.test is the trust domain of this mesh or an alias")
    );
    assert_eq!(names(&federation.bundles()), ["b.test"]);
    assert!(names(&world.open().bundles()).is_empty(), "it was never good with that name of ours");
    // Corrected.
    world.write(map(&[("b.test", &two)]));
    assert!(!federation.reload().unwrap());
    assert_eq!(names(&world.open().bundles()), ["b.test"]);
}

#[test]
fn a_bundle_map_tells_every_root_and_its_key() {
    let home = tempfile::tempdir().unwrap();
    let life = CertificateLife::default();
    RootRotation::open(home.path(), domain(OTHER), life, clock()).unwrap().advance(false).unwrap();
    let ca = authority(home.path(), OTHER);
    let map = ca.bundle_map().unwrap();
    assert_eq!(read_bundle_map(map.as_bytes()).unwrap(), TrustBundles::single(domain(OTHER), ca.bundle()));
    let map: Value = serde_json::from_str(&map).unwrap();
    let keys = map["trust_domains"][OTHER]["keys"].as_array().unwrap();
    assert_eq!(keys.len(), 2, "both of a change of roots");
    for (key, root) in keys.iter().zip(ca.bundle().roots()) {
        let bytes = |name: &str| BASE64_URL_SAFE_NO_PAD.decode(key[name].as_str().unwrap()).unwrap();
        let point = [vec![4], bytes("x"), bytes("y")].concat();
        let (_, root) = X509Certificate::from_der(root).unwrap();
        assert_eq!(root.public_key().subject_public_key.data[..], point);
        assert_eq!((key["kty"].as_str(), key["crv"].as_str()), (Some("EC"), Some("P-256")));
    }
    let odd = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    assert_eq!(web_key(&root(&odd, |_| {})).unwrap_err(), "its key is neither RSA nor EC");
    let wider = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert_eq!(web_key(&root(&wider, |_| {})).unwrap()["crv"], "P-384");
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let rsa = web_key(&root(&rsa, |_| {})).unwrap();
    assert_eq!((rsa["kty"].as_str(), rsa["e"].as_str()), (Some("RSA"), Some("AQAB")));
    assert_eq!(BASE64_URL_SAFE_NO_PAD.decode(rsa["n"].as_str().unwrap()).unwrap().len(), 256);
}
