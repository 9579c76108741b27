//! What a mutual TLS handshake of the mesh costs against the same one of plain rustls, both ends in memory and in turn:
//! same keys, same versions, same groups, certificates of both sides verified; here by SPIFFE ID and by the roots of its
//! trust domain, there by name and by one pool of roots. And what the identity of a caller and ten rules cost each request.
//!
//! `cargo xtask bench handshake`, with `-o json` for programs. The goal: at least 0.95 of plain rustls' handshakes.

#![allow(missing_docs, reason = "a bench")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench")]

#[path = "common/rows.rs"]
mod rows;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::Request;
use mesh_core::authz::{Attributes, Authorizer};
use mesh_core::identity::{PeerIdentity, client_config, server_config};
use mesh_core::matcher::RequestView;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, PathMatch, Permission, Principal, StringMatcher,
};
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
const REQUESTS: u32 = 1_000_000;

type Pair = (Arc<ClientConfig>, Arc<ServerConfig>);

fn main() {
    let json = std::env::args().any(|arg| arg == "json");
    let ca = TestCa::new();
    let (ours, plain) = (of_mesh(&ca), of_rustls(&ca));
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
            Row::new("identity_and_policy_per_request", "ns", identity_and_policy(&ca), 1_000.0),
        ],
        json,
    );
}

fn of_mesh(ca: &TestCa) -> Pair {
    let (client, server) = (ca.identity("default", "web"), ca.identity("default", "reviews"));
    let expected = [StringMatcher::exact(server.id().as_str())];
    let client = client_config(&client, &expected, &[b"h2"], &crypto()).unwrap();
    (Arc::new(client), Arc::new(server_config(&server, true, &[b"h2"], &crypto()).unwrap()))
}

/// As an application would set rustls up for itself, without resumption as there is none in the mesh.
fn of_rustls(ca: &TestCa) -> Pair {
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
    client.alpn_protocols = vec![b"h2".to_vec()];
    client.resumption = Resumption::disabled();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, crypto()).build().unwrap();
    let mut server = ServerConfig::builder_with_provider(crypto())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certified("reviews"));
    server.alpn_protocols = vec![b"h2".to_vec()];
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

/// Puts the caller of a connection into a request's extensions, reads it again, and decides by ten rules, the last of which
/// allows, in nanoseconds.
fn identity_and_policy(ca: &TestCa) -> f64 {
    let peer = PeerIdentity { spiffe_id: Some(ca.id("default", "web")), address: ([127, 0, 0, 1], 4000).into() };
    let rule = |n: u32| AuthorizationRule {
        name: n.to_string(),
        permissions: vec![Permission::Path(PathMatch::PathSeparatedPrefix(format!("/v1/{n}")))],
        principals: vec![Principal::Authenticated(Some(StringMatcher::exact(ca.id("default", "web").as_str())))],
    };
    let rules = (0..10).map(rule).collect();
    let policy = AuthorizationPolicy { rules, ..AuthorizationPolicy::new("allow", AuthorizationAction::Allow) };
    let authorizer = Authorizer::new(&[policy]);
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        let mut request = Request::get("/v1/9/x").body(()).unwrap();
        request.extensions_mut().insert(black_box(&peer).clone());
        let view = RequestView {
            authority: "reviews:9080",
            method: request.method(),
            path_and_query: request.uri().path(),
            scheme: "http",
            headers: request.headers(),
            draw: &|| 0,
        };
        let attributes = Attributes {
            request: Some(view),
            peer: request.extensions().get::<PeerIdentity>(),
            destination: ([127, 0, 0, 1], 9080).into(),
            server_name: None,
            tokens: None,
        };
        assert!(authorizer.decide(black_box(&attributes), |_| {}).is_ok());
    }
    begun.elapsed().as_secs_f64() * 1e9 / f64::from(REQUESTS)
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all[all.len() / 2]
}
