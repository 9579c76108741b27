//! What a mutual TLS handshake of the mesh costs against the same one of plain rustls, both ends in memory and in turn:
//! same keys, same versions, same groups, certificates of both sides verified; here by SPIFFE ID and by the roots of its
//! trust domain, there by name and by one pool of roots. Then with what the mesh's own accept and connect do with the peer's
//! chain after it, with one root and, as while roots change, with two. And what the identity of a caller and ten rules cost
//! each request ([`requests`]).
//!
//! `cargo xtask bench handshake`, with `-o json` for programs. The goal: at least 0.95 of plain rustls' handshakes.

#![allow(missing_docs, reason = "a bench")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench")]

mod requests;
#[path = "../common/rows.rs"]
mod rows;
#[path = "../common/rules.rs"]
mod rules;

use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_core::identity::{
    Identity, TrustBundle, TrustBundles, Usage, client_config, peer_spiffe_id, root_of, server_config,
};
use mesh_core::policy::StringMatcher;
use mesh_testkit::{CertificateSpec, TestCa, crypto};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use self::rows::Row;

const ROUNDS: usize = 400;
/// Handshakes of one kind before the other one has its turn.
const TURN: u32 = 4;

type Pair = (Arc<ClientConfig>, Arc<ServerConfig>);

/// The ends of a handshake, and by what their mesh looks at the peer's chain after it.
struct Kind {
    pair: Pair,
    after: Option<TrustBundles>,
}

fn main() {
    let json = std::env::args().any(|arg| arg == "json");
    let ca = TestCa::new();
    let (one, two) = (trusting(&ca, None), trusting(&ca, Some(&TestCa::in_domain("next.test"))));
    let kinds = [
        Kind { pair: of_rustls(&ca, b"h2"), after: None },
        Kind { pair: of_mesh(&ca, b"h2"), after: None },
        Kind { pair: trusted_by(&ca, &one), after: Some(one) },
        Kind { pair: trusted_by(&ca, &two), after: Some(two) },
    ];
    let mut took = [const { Vec::new() }; 4];
    for round in 0..ROUNDS + 20 {
        // The first ones warm up; who begins changes.
        for place in 0..kinds.len() {
            let kind = (place + round) % kinds.len();
            let turn = turn(&kinds[kind]);
            if round >= 20 {
                took[kind].push(turn);
            }
        }
    }
    let [bare, mesh, one, two] = took.map(median);
    let against = |took: Duration| took.as_secs_f64() / bare.as_secs_f64();
    let micros = |took: Duration| took.as_secs_f64() * 1e6 / f64::from(TURN);
    rows::print(
        &[
            Row::new("handshake, both ends", "us", micros(mesh), None),
            Row::new("handshake of plain rustls, both ends", "us", micros(bare), None),
            Row::new("handshake_against_plain", "", against(mesh), 1.0 / 0.95),
            Row::new("accept_and_connect_against_plain", "", against(one), None),
            Row::new("accept_and_connect_with_two_roots_against_plain", "", against(two), None),
            Row::new("identity_and_policy_per_request", "ns", requests::identity_and_policy(&ca), 1_000.0),
            Row::new("server_request_against_plain", "", requests::against_plain(&ca), None),
        ],
        json,
    );
}

fn of_mesh(ca: &TestCa, alpn: &[u8]) -> Pair {
    pair(&ca.identity("default", "web"), &ca.identity("default", "reviews"), alpn)
}

fn trusted_by(ca: &TestCa, bundles: &TrustBundles) -> Pair {
    let [client, server] = ["web", "reviews"].map(|name| ca.identity("default", name).trusting(bundles.clone()));
    pair(&client, &server, b"h2")
}

fn trusting(ca: &TestCa, next: Option<&TestCa>) -> TrustBundles {
    let roots = [Some(ca), next].into_iter().flatten().map(|ca| ca.root().clone());
    TrustBundles::single(ca.id("default", "web").trust_domain(), TrustBundle::new(roots).unwrap())
}

fn pair(client: &Identity, server: &Identity, alpn: &[u8]) -> Pair {
    let expected = [StringMatcher::exact(server.id().as_str())];
    let client = client_config(client, &expected, &[alpn], &crypto()).unwrap();
    (Arc::new(client), Arc::new(server_config(server, true, &[alpn], &crypto()).unwrap()))
}

/// As an application would set rustls up for itself, without resumption as there is none in the mesh.
fn of_rustls(ca: &TestCa, alpn: &[u8]) -> Pair {
    let mut roots = RootCertStore::empty();
    roots.add(ca.root().clone()).unwrap();
    let roots = Arc::new(roots);
    let certified = |account: &str| {
        let spec =
            CertificateSpec { dns: vec!["localhost".to_owned()], ..CertificateSpec::of(&ca.id("default", account)) };
        Arc::new(SingleCertAndKey::from(ca.certified(&spec)))
    };
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), crypto()).build().unwrap();
    let mut client = ClientConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_webpki_verifier(verifier)
        .with_client_cert_resolver(certified("web"));
    client.alpn_protocols = vec![alpn.to_vec()];
    client.resumption = Resumption::disabled();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, crypto()).build().unwrap();
    let mut server = ServerConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certified("reviews"));
    server.alpn_protocols = vec![alpn.to_vec()];
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    (Arc::new(client), Arc::new(server))
}

fn turn(Kind { pair: (client, server), after }: &Kind) -> Duration {
    let algorithms = crypto().signature_verification_algorithms.all;
    let begun = Instant::now();
    for _ in 0..TURN {
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(client.clone(), name).unwrap();
        let (client, server) = handshake(client, ServerConnection::new(server.clone()).unwrap());
        if let Some(bundles) = after {
            let seen = |chain: &[CertificateDer<'static>], usage| {
                let id = peer_spiffe_id(&chain[0]).unwrap();
                let id = bundles.aliased(&id).unwrap_or(id);
                let root = root_of(chain, bundles, algorithms, UnixTime::now(), usage).unwrap();
                std::hint::black_box((id, root, chain.to_vec()));
            };
            seen(server.peer_certificates().unwrap(), Usage::Client);
            seen(client.peer_certificates().unwrap(), Usage::Server);
        }
    }
    begun.elapsed()
}

fn handshake(mut client: ClientConnection, mut server: ServerConnection) -> (ClientConnection, ServerConnection) {
    let mut flight = Vec::with_capacity(8192);
    while client.is_handshaking() || server.is_handshaking() {
        flight.clear();
        while client.wants_write() {
            client.write_tls(&mut flight).unwrap();
        }
        let mut input = &flight[..];
        while !input.is_empty() {
            server.read_tls(&mut input).unwrap();
            server.process_new_packets().unwrap();
        }
        flight.clear();
        while server.wants_write() {
            server.write_tls(&mut flight).unwrap();
        }
        let mut input = &flight[..];
        while !input.is_empty() {
            client.read_tls(&mut input).unwrap();
            client.process_new_packets().unwrap();
        }
    }
    assert_eq!(client.alpn_protocol(), server.alpn_protocol());
    (client, server)
}

fn median<T: PartialOrd + Copy>(mut all: Vec<T>) -> T {
    all.sort_unstable_by(|one, other| one.partial_cmp(other).unwrap());
    all[all.len() / 2]
}
