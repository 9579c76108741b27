//! Mutual TLS between two processes that know no control plane: certificates, a server that takes one caller and a
//! client that takes one server.
//!
//! `cargo run --example mtls_local` starts a server that demands mutual TLS and lets in the account `web`: once with the mesh's
//! own loop, and once with a loop and an HTTP server of the program's own. Each is called by `web`, by another account, by
//! somebody without a certificate, and by `web` under the belief that the server is somebody else. It fails unless only the
//! first gets an answer, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use http::Request;
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use mesh::parts::mesh_client::{Body, Client};
use mesh::parts::mesh_core::id::Target;
use mesh::parts::mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, Cluster, DestinationState, InboundListener,
    InboundState, InboundTls, MeshTls, Permission, Principal, Snapshot, StringMatcher, UpstreamTls,
};
use mesh::parts::mesh_core::source::{Watched, WatchedIdentity};
use mesh::parts::mesh_server::{PeerIdentity, Server};
use mesh_testkit::TestCa;
use tokio::net::TcpListener;
use tower::Layer;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const API: &str = "spiffe://cluster.local/ns/default/sa/api";
const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // In place of your own authority; `mesh_core::identity::Identity::new` takes the certificates of any.
    let ca = TestCa::new();
    for by_hand in [false, true] {
        let address = serve(ca.watched("default", "api"), by_hand).await?;
        check(&ca, address).await?;
    }
    Ok(())
}

async fn check(ca: &TestCa, address: SocketAddr) -> Result<(), Failure> {
    let good = ask(address, ca.watched("default", "web"), API).await?;
    println!("web: {good:?}");
    let other = ask(address, ca.watched("default", "other"), API).await?;
    println!("other: {other:?}");
    let nobody = ask(address, Watched::fixed(None), API).await;
    println!("nobody: {nobody:?}");
    let mistaken = ask(address, ca.watched("default", "web"), "spiffe://cluster.local/ns/default/sa/else").await;
    println!("web, who looks for somebody else: {mistaken:?}");

    let as_expected = good == (200, format!("hello {WEB}")) && other.0 == 403 && nobody.is_err() && mistaken.is_err();
    if as_expected { Ok(()) } else { Err("somebody got another answer".into()) }
}

/// A server that takes mutual TLS only, and lets in `web`.
async fn serve(identity: WatchedIdentity, by_hand: bool) -> Result<SocketAddr, Failure> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let rule = AuthorizationRule {
        name: "web".to_owned(),
        permissions: vec![Permission::Any],
        principals: vec![Principal::Authenticated(Some(StringMatcher::exact(WEB)))],
    };
    let mut policy = InboundListener::new("example", address, InboundTls::Strict);
    policy.authorization =
        vec![AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("web", AuthorizationAction::Allow) }];
    let inbound = Watched::fixed(InboundState::Ready(Arc::new(policy)));
    // Any of rustls' providers; `mesh::Mesh` brings its own.
    let server = Server::builder().identity(identity).crypto(mesh_testkit::crypto()).inbound(inbound).build();
    let hello = |peer: PeerIdentity| async move {
        peer.spiffe_id.map_or("hello nobody".to_owned(), |id| format!("hello {id}"))
    };
    let router = Router::new().route("/", get(hello));
    if by_hand {
        tokio::spawn(serve_by_hand(server, listener, router));
    } else {
        tokio::spawn(server.serve(listener, router));
    }
    Ok(address)
}

/// What a program does that has a loop of its own: the mesh takes each socket, and judges each request; the rest is hyper's.
async fn serve_by_hand(server: Server, listener: TcpListener, router: Router) -> std::io::Result<()> {
    loop {
        let (tcp, peer) = listener.accept().await?;
        let (server, router) = (server.clone(), router.clone());
        tokio::spawn(async move {
            let Some(connection) = server.accept(tcp, peer).await else { return };
            let service = TowerToHyperService::new(connection.layer().layer(router));
            let io = TokioIo::new(connection);
            // hyper's own builders, with the limits of the server's configuration.
            let ended = if io.inner().is_http2() {
                server.http2().serve_connection(io, service).await
            } else {
                server.http1().serve_connection(io, service).with_upgrades().await
            };
            if let Err(error) = ended {
                println!("a connection of {peer} ended: {error}");
            }
        });
    }
}

/// Status and text of a call as `identity` to a server that must be `peer`.
async fn ask(address: SocketAddr, identity: WatchedIdentity, peer: &str) -> Result<(u16, String), Failure> {
    let peer_ids = vec![StringMatcher::exact(peer)];
    let source = move |_: &Target| {
        let mut cluster = Cluster::of_addresses("api", [address]);
        cluster.tls = UpstreamTls::Mesh(MeshTls { peer_ids: peer_ids.clone(), ..MeshTls::default() });
        DestinationState::Ready(Arc::new(Snapshot::of_one_cluster("api:80", cluster, None)))
    };
    let client = Client::builder(Arc::new(source)).identity(identity).crypto(mesh_testkit::crypto()).build();
    let answer = client.send(Request::get("http://api:80/").body(Body::empty())?).await?;
    let status = answer.status().as_u16();
    let text = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}
