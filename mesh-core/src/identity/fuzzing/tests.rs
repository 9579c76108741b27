//! The corpora of the fuzzer, replayed. `UPDATE_CORPUS=1` writes them anew; what a fuzzer finds is added by hand and
//! stays.

use std::path::PathBuf;

use super::super::tests::{RATINGS, REVIEWS, Root, leaf, provider, rows};
use super::*;
use crate::id::TrustDomain;

fn folder(target: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// Writes a sample, and the same cut off and bent.
fn write(target: &str, name: &str, bytes: &[u8]) {
    std::fs::create_dir_all(folder(target)).unwrap();
    let file = |kind: &str| folder(target).join(format!("{name}{kind}"));
    std::fs::write(file(""), bytes).unwrap();
    std::fs::write(file("-cut"), &bytes[..bytes.len() * 2 / 3]).unwrap();
    let mut bent = bytes.to_vec();
    bent[bytes.len() / 3] ^= 0x55;
    std::fs::write(file("-bent"), bent).unwrap();
}

fn replay(target: &str, play: impl Fn(&[u8])) {
    let files = std::fs::read_dir(folder(target)).unwrap();
    let played = files.map(|file| play(&std::fs::read(file.unwrap().path()).unwrap())).count();
    assert!(played >= 3, "{played} files of {target}");
}

fn renew() {
    let root = Root::new();
    let pem = |der: &[u8]| {
        let text = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, der);
        let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>().join("\n");
        format!("-----BEGIN CERTIFICATE-----\n{lines}\n-----END CERTIFICATE-----\n")
    };
    let one = pem(&root.der);
    write("bundle", "one.pem", one.as_bytes());
    write("bundle", "two.pem", (one + &pem(&Root::new().der)).as_bytes());
    write("bundle", "two.der", &[&root.der[..], &Root::new().der].concat());
    let named = |uris: &[&str]| [&root.issue(&leaf(uris)).cert[0][..], &root.der].concat();
    write("svid", "good", &named(&[REVIEWS]));
    write("svid", "two-names", &named(&[REVIEWS, RATINGS]));
    write("svid", "no-name", &named(&[]));
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
fn the_corpora_of_the_fuzzer_replay_without_a_panic() {
    if std::env::var_os("UPDATE_CORPUS").is_some() {
        renew();
    }
    replay("spiffe_id", |bytes| spiffe_id(&String::from_utf8_lossy(bytes)));
    replay("svid", svid);
    replay("bundle", bundle);
    replay("crl", crl);
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
