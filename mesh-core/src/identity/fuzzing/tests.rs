//! The corpora of the fuzzer, replayed. `UPDATE_CORPUS=1` writes them anew; what a fuzzer finds is added by hand and
//! stays.

use std::path::PathBuf;
use std::sync::Once;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyUsagePurpose, SanType, date_time_ymd};

use super::super::tests::{RATINGS, REVIEWS, Root, leaf, provider, rows};
use super::*;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Writes a sample as it is.
fn keep(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    std::fs::create_dir_all(folder(target)).unwrap();
    std::fs::write(folder(target).join(name), bytes).unwrap();
}

/// Writes a sample, and the same cut off and bent.
fn write(target: &str, name: &str, bytes: &[u8]) {
    keep(target, name, bytes);
    let file = |kind: &str| folder(target).join(format!("{name}{kind}"));
    std::fs::write(file("-cut"), &bytes[..bytes.len() * 2 / 3]).unwrap();
    let mut bent = bytes.to_vec();
    bent[bytes.len() / 3] ^= 0x55;
    std::fs::write(file("-bent"), bent).unwrap();
}

/// Plays each file, and holds what is said of it: nothing of those that are not listed.
fn replay<T: PartialEq + std::fmt::Debug>(target: &str, play: impl Fn(&[u8]) -> Option<T>, said: &[(&str, T)]) {
    static RENEWED: Once = Once::new();
    RENEWED.call_once(|| {
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            renew();
        }
    });
    let mut heard = 0;
    for file in std::fs::read_dir(folder(target)).unwrap() {
        let file = file.unwrap();
        let said = said.iter().find(|(name, _)| file.file_name() == **name).map(|(_, said)| said);
        let played = play(&std::fs::read(file.path()).unwrap());
        // What a bit makes of a sample is as its keys are, which are others each time.
        let any = said.is_none() && file.file_name().to_string_lossy().ends_with("-bent");
        assert!(any || played.as_ref() == said, "{target}: {file:?}: {played:?}, not {said:?}");
        heard += usize::from(said.is_some());
    }
    assert_eq!(heard, said.len(), "a file of {target} is missing");
}

fn pem_of(der: &[u8]) -> String {
    let text = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n");
    format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
}

fn one_pem(root: &Root) -> String {
    pem_of(&root.der)
}

/// Names that are none, and one that is (SPIFFE-ID 2).
const SPIFFE_IDS: [(&str, &str); 11] = [
    ("short", "spiffe://td/x"),
    ("upper-domain", "spiffe://TD/x"),
    ("upper-scheme", "SPIFFE://td/x"),
    ("empty-segment", "spiffe://td//a"),
    ("dot-segments", "spiffe://td/a/../b"),
    ("escape", "spiffe://td/a%2fb"),
    ("query", "spiffe://td/x?q"),
    ("fragment", "spiffe://td/x#f"),
    ("port", "spiffe://td:443/x"),
    ("user", "spiffe://u@td/x"),
    ("slash-at-the-end", "spiffe://td/x/"),
];

/// Leaves and chains that break one rule each, and two that break none.
fn svids(root: &Root) {
    let changed = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = leaf(&[REVIEWS]);
        change(&mut params);
        [&root.issue(&params).cert[0][..], &root.der].concat()
    };
    let usages = |usages: &[KeyUsagePurpose]| changed(&|params| params.key_usages = usages.to_vec());
    keep("svid", "ca", changed(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)));
    keep("svid", "signs-certificates", usages(&[KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign]));
    keep("svid", "signs-lists", usages(&[KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign]));
    keep("svid", "signs-no-handshakes", usages(&[KeyUsagePurpose::KeyEncipherment]));
    keep("svid", "no-key-usage", usages(&[]));
    keep("svid", "for-servers", changed(&|params| params.extended_key_usages.truncate(1)));
    keep("svid", "for-anybody", changed(&|params| params.extended_key_usages.clear()));
    let of_2020 = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 1, 2));
    keep("svid", "ended", changed(&|params| (params.not_before, params.not_after) = of_2020));
    keep("svid", "begins", changed(&|params| params.not_before = date_time_ymd(2060, 1, 1)));
    for (name, id) in SPIFFE_IDS {
        keep("svid", &format!("named-{name}"), [&root.issue(&leaf(&[id])).cert[0][..], &root.der].concat());
    }
    let below = |change: &dyn Fn(&mut CertificateParams)| {
        let between = rows::authority(root, change);
        [&between.issue(&leaf(&[REVIEWS])).cert[0][..], &between.der, &root.der].concat()
    };
    keep("svid", "chain", below(&|_| {}));
    keep("svid", "chain-of-no-signer", below(&|params| params.key_usages = vec![KeyUsagePurpose::CrlSign]));
    let uri = |uri: &str| SanType::URI(uri.try_into().unwrap());
    for (name, id) in [("chain-of-another-domain", "spiffe://other"), ("chain-of-a-workload", RATINGS)] {
        keep("svid", name, below(&|params| params.subject_alt_names = vec![uri(id)]));
    }
}

/// Bundles of three with the second one damaged.
fn bundles(three: &[String; 3]) {
    let [one, two, three] = three;
    keep("bundle", "three.pem", [one, two, three].map(String::as_str).concat());
    let damaged = |name: &str, from: &str, to: &str| {
        assert!(two.contains(from), "{from}");
        keep("bundle", name, format!("{one}{}{three}", two.replacen(from, to, 1)));
    };
    damaged("damaged-text.pem", "\nMII", "\n!!!");
    damaged("damaged-der.pem", "\nMII", "\nAAA");
    damaged("damaged-begin.pem", "-----BEGIN", "----BEGIN");
    damaged("no-begin.pem", "-----BEGIN CERTIFICATE-----\n", "");
    damaged("no-end.pem", "-----END CERTIFICATE-----\n", "");
    keep(
        "bundle",
        "text-and-key.pem",
        format!("of the mesh\n{one}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n{two}"),
    );
}

fn renew() {
    let root = Root::new();
    let pem = |der: &[u8]| pem_of(der);
    let one = pem(&root.der);
    write("bundle", "one.pem", one.as_bytes());
    write("bundle", "two.pem", (one + &pem(&Root::new().der)).as_bytes());
    write("bundle", "two.der", &[&root.der[..], &Root::new().der].concat());
    let named = |uris: &[&str]| [&root.issue(&leaf(uris)).cert[0][..], &root.der].concat();
    write("svid", "good", &named(&[REVIEWS]));
    write("svid", "two-names", &named(&[REVIEWS, RATINGS]));
    write("svid", "no-name", &named(&[]));
    svids(&root);
    bundles(&[one_pem(&root), one_pem(&Root::new()), one_pem(&Root::new())]);
    for (name, id) in SPIFFE_IDS {
        keep("spiffe_id", name, id);
    }
    write("spiffe_id", "workload", REVIEWS.as_bytes());
    write("spiffe_id", "other", b"spiffe://example.org/a/b.c-d_e");
    write("spiffe_id", "root", b"spiffe://example.org/");
    write("crl", "two", &rows::list(&root, &[7, 8], 1_800_000_000));
    let none = rows::list(&root, &[], 1_800_000_000);
    // Of some reasons, and names none (RUSTSEC-2026-0104).
    write("crl", "empty-reasons", &rows::with_distribution_point(&root, &none, &[0x83, 1, 0]));
    write("crl", "none", &none);
}

#[test]
fn the_corpus_of_spiffe_ids_is_judged_as_it_is_listed() {
    let id = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        spiffe_id(&text);
        text.parse::<SpiffeId>().ok().map(|_| ())
    };
    let good = ["short", "workload", "workload-bent", "workload-cut", "other", "other-bent"];
    replay("spiffe_id", id, &good.map(|name| (name, ())));
}

#[test]
fn the_corpus_of_chains_is_judged_as_it_is_listed() {
    let reviews: SpiffeId = REVIEWS.parse().unwrap();
    let [good, bare, chain] = ["good", "for-anybody", "chain"].map(|name| (name, reviews.clone()));
    replay("svid", whose, &[good, bare, chain, ("named-short", "spiffe://td/x".parse().unwrap())]);
}

#[test]
fn the_corpus_of_bundles_is_judged_as_it_is_listed() {
    let good = [("one.pem", 1), ("two.pem", 2), ("two.der", 2), ("three.pem", 3), ("text-and-key.pem", 2)];
    replay("bundle", roots, &good);
}

#[test]
fn the_corpus_of_revocation_lists_replays_and_the_good_ones_are_heard() {
    let silent = |bytes: &[u8]| {
        crl(bytes);
        None::<()>
    };
    replay("crl", silent, &[]);
    // The good ones are good: the replay reaches the checks behind the parsers.
    let good = std::fs::read(folder("svid").join("good")).unwrap();
    let chain = certificates_of_der(&good).unwrap();
    let bundles =
        TrustBundles::single(TrustDomain::new("cluster.local").unwrap(), TrustBundle::new([chain[1].clone()]).unwrap());
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
    let algorithms = provider().signature_verification_algorithms.all;
    assert_eq!(verify_svid(&chain, &bundles, algorithms, now, Usage::Client).unwrap().as_str(), REVIEWS);
    let told = |list: &str| {
        let list = std::fs::read(folder("crl").join(list)).unwrap();
        let bundle = TrustBundle::new([chain[1].clone()]).unwrap().with_revocation_lists(vec![list]).unwrap();
        let bundles = TrustBundles::single(TrustDomain::new("cluster.local").unwrap(), bundle);
        verify_svid(&chain, &bundles, algorithms, now, Usage::Client)
    };
    assert!(told("none").is_ok() && told("two").is_ok(), "the lists are heard");
}
