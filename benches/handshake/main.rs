//! What a mutual TLS handshake of the mesh costs against the same one of plain rustls, both ends in memory and in turn:
//! same keys, same versions, same groups, certificates of both sides verified; here by SPIFFE ID and by the roots of its
//! trust domain, there by name and by one pool of roots. And what the identity of a caller and ten rules cost each request
//! ([`requests`]).
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

use mesh_core::identity::{client_config, server_config};
use mesh_core::policy::StringMatcher;
use mesh_testkit::{CertificateSpec, TestCa, crypto};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::pki_types::ServerName;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use self::rows::Row;

const ROUNDS: usize = 400;
/// Handshakes of one kind before the other one has its turn.
const TURN: u32 = 4;

type Pair = (Arc<ClientConfig>, Arc<ServerConfig>);

fn main() {
    let json = std::env::args().any(|arg| arg == "json");
    let ca = TestCa::new();
    let (ours, plain) = (of_mesh(&ca, b"h2"), of_rustls(&ca, b"h2"));
    let (mut mesh, mut bare) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS + 20 {
        // The first ones warm up; who begins changes.
        let order = if round % 2 == 0 { [true, false] } else { [false, true] };
        for of_mesh in order {
            let took = turn(if of_mesh { &ours } else { &plain });
            if round >= 20 {
                if of_mesh { mesh.push(took) } else { bare.push(took) }
            }
        }
    }
    let (mesh, bare) = (median(mesh), median(bare));
    let micros = |took: Duration| took.as_secs_f64() * 1e6 / f64::from(TURN);
    rows::print(
        &[
            Row::new("handshake, both ends", "us", micros(mesh), None),
            Row::new("handshake of plain rustls, both ends", "us", micros(bare), None),
            Row::new("handshake_against_plain", "", mesh.as_secs_f64() / bare.as_secs_f64(), 1.0 / 0.95),
            Row::new("identity_and_policy_per_request", "ns", requests::identity_and_policy(&ca), 1_000.0),
            Row::new("server_request_against_plain", "", requests::against_plain(&ca), None),
        ],
        json,
    );
}

fn of_mesh(ca: &TestCa, alpn: &[u8]) -> Pair {
    let (client, server) = (ca.identity("default", "web"), ca.identity("default", "reviews"));
    let expected = [StringMatcher::exact(server.id().as_str())];
    let client = client_config(&client, &expected, &[alpn], &crypto()).unwrap();
    (Arc::new(client), Arc::new(server_config(&server, true, &[alpn], &crypto()).unwrap()))
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

fn turn((client, server): &Pair) -> Duration {
    let begun = Instant::now();
    for _ in 0..TURN {
        let name = ServerName::try_from("localhost").unwrap();
        let client = ClientConnection::new(client.clone(), name).unwrap();
        handshake(client, ServerConnection::new(server.clone()).unwrap());
    }
    begun.elapsed()
}

fn handshake(mut client: ClientConnection, mut server: ServerConnection) {
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
}

fn median<T: PartialOrd + Copy>(mut all: Vec<T>) -> T {
    all.sort_unstable_by(|one, other| one.partial_cmp(other).unwrap());
    all[all.len() / 2]
}
