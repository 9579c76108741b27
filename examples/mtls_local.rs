//! Mutual TLS between two processes that know no control plane: certificates out of files, a server that takes one caller and a
//! client that takes one server, and a rotation while they talk.
//!
//! `cargo run --example mtls_local` writes certificates, keys and roots as PEM files and follows them as a process does whose
//! certificates somebody else renews (cert-manager, say). A server demands mutual TLS and lets in the account `web`: once with
//! the mesh's own loop, and once with a loop and an HTTP server of the program's own. Each is called by `web`, by another
//! account, by somebody without a certificate, and by `web` under the belief that the server is somebody else; only the first
//! gets an answer. Then the server's files are replaced while `web` goes on calling: new connections see the new
//! certificate, and no request fails. The program asserts all of it and fails otherwise, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::Request;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use mesh::parts::mesh_client::{Body, Client};
use mesh::parts::mesh_core::id::Target;
use mesh::parts::mesh_core::identity::{client_config, root_name};
use mesh::parts::mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, Cluster, DestinationState, InboundListener,
    InboundState, InboundTls, MeshTls, Permission, Principal, Snapshot, StringMatcher, UpstreamTls,
};
use mesh::parts::mesh_core::source::{Watched, WatchedIdentity};
use mesh::parts::mesh_discovery::bootstrap::FileWatcher;
use mesh::parts::mesh_discovery::secret::spawn_files;
use mesh::parts::mesh_server::{PeerIdentity, Server};
use mesh_testkit::TestCa;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_rustls::TlsConnector;
use tower::{Layer, ServiceBuilder};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const API: &str = "spiffe://cluster.local/ns/default/sa/api";
const WEB: &str = "spiffe://cluster.local/ns/default/sa/web";

#[tokio::main]
async fn main() -> Result<(), Failure> {
    // In place of your own authority, which writes the files.
    let ca = TestCa::new();
    let folder = tempfile::tempdir()?;
    for (name, by_hand) in [("the mesh's loop", false), ("a loop of its own", true)] {
        let files = Files::written(&ca, folder.path(), "api")?;
        let address = serve(files.follow().await, by_hand).await?;
        let web = Files::written(&ca, folder.path(), "web")?.follow().await;
        println!("a server with {name}");
        check(&ca, address, web.clone()).await?;
        rotate(&ca, &files, address, web).await?;
    }
    Ok(())
}

/// The files of one account.
struct Files {
    folder: PathBuf,
    account: &'static str,
}

impl Files {
    fn written(ca: &TestCa, within: &Path, account: &'static str) -> Result<Self, Failure> {
        let files = Self { folder: within.join(account), account };
        std::fs::create_dir_all(&files.folder)?;
        files.put("ca.pem", ca.root_pem())?;
        files.renew(ca)?;
        Ok(files)
    }

    /// Another certificate with another key. Between the two renames they do not belong together; whoever looks then goes on
    /// with the last pair that did, and looks again.
    fn renew(&self, ca: &TestCa) -> Result<(), Failure> {
        let (chain, key) = ca.pem("default", self.account);
        self.put("tls.key", &key)?;
        self.put("tls.crt", &chain)
    }

    /// Nobody sees half of a file, and nobody else may read a key: a temporary file is its owner's.
    fn put(&self, name: &str, text: &str) -> Result<(), Failure> {
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(text.as_bytes())?;
        file.persist(self.folder.join(name))?;
        Ok(())
    }

    /// The identity in the files, now and later.
    async fn follow(&self) -> WatchedIdentity {
        let path = |name: &str| self.folder.join(name).to_string_lossy().into_owned();
        let watcher = FileWatcher {
            identity: Some((path("tls.crt"), path("tls.key"))),
            ca_certificate_file: Some(path("ca.pem")),
            spiffe_trust_bundle_map_file: None,
            certificate_revocation_list_file: None,
            // Minutes, where nobody waits for it.
            refresh_interval: Duration::from_millis(50),
        };
        // Any of rustls' providers; `mesh::Mesh` brings its own.
        let mut identity = spawn_files(watcher, mesh_testkit::crypto(), Arc::default(), &Handle::current()).identity;
        identity.wait_for(Option::is_some).await;
        identity
    }
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
            // Bodies have the server's limits, too.
            let own = server.clone();
            let service = ServiceBuilder::new().map_request(move |request| own.request(request));
            let service = TowerToHyperService::new(service.service(connection.layer().layer(router)));
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

/// Who gets an answer, and who does not.
async fn check(ca: &TestCa, address: SocketAddr, web: WatchedIdentity) -> Result<(), Failure> {
    let good = ask(&client(address, web.clone(), API)).await?;
    println!("web: {good:?}");
    let other = ask(&client(address, ca.watched("default", "other"), API)).await?;
    println!("other: {other:?}");
    let nobody = ask(&client(address, Watched::fixed(None), API)).await;
    println!("nobody: {nobody:?}");
    let mistaken = ask(&client(address, web, "spiffe://cluster.local/ns/default/sa/else")).await;
    println!("web, who looks for somebody else: {mistaken:?}");

    let as_expected = good == answer() && other.0 == 403 && nobody.is_err() && mistaken.is_err();
    if as_expected { Ok(()) } else { Err("somebody got another answer".into()) }
}

/// Replaces the server's files while `web` calls: over the connection that it has, and over a new one each time.
async fn rotate(ca: &TestCa, files: &Files, address: SocketAddr, web: WatchedIdentity) -> Result<(), Failure> {
    let kept = client(address, web.clone(), API);
    let (before, mut requests) = (call_anew(address, &web).await?, 0);
    files.renew(ca)?;
    let seen = async {
        loop {
            let answered = ask(&kept).await?;
            if answered != answer() {
                return Err(Failure::from(format!("after {requests} requests: {answered:?}")));
            }
            let shown = call_anew(address, &web).await?;
            requests += 2;
            if shown != before {
                return Ok(shown);
            }
        }
    };
    let after = tokio::time::timeout(Duration::from_secs(60), seen).await.map_err(|_| "the certificate stayed")??;
    println!("certificate {before} before, {after} after; {requests} requests meanwhile, each with its answer");
    Ok(())
}

/// What `web` is told.
fn answer() -> (u16, String) {
    (200, format!("hello {WEB}"))
}

/// A client as `identity` of a server that must be `peer`.
fn client(address: SocketAddr, identity: WatchedIdentity, peer: &str) -> Client {
    let peer_ids = vec![StringMatcher::exact(peer)];
    let source = move |_: &Target| {
        let mut cluster = Cluster::of_addresses("api", [address]);
        cluster.tls = UpstreamTls::Mesh(MeshTls { peer_ids: peer_ids.clone(), ..MeshTls::default() });
        DestinationState::Ready(Arc::new(Snapshot::of_one_cluster("api:80", cluster, None)))
    };
    Client::builder(Arc::new(source)).identity(identity).crypto(mesh_testkit::crypto()).build()
}

/// Status and text of a call.
async fn ask(client: &Client) -> Result<(u16, String), Failure> {
    let answer = client.send(Request::get("http://api:80/").body(Body::empty())?).await?;
    let status = answer.status().as_u16();
    let text = answer.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

/// A call over a TLS connection of its own, which is how a program connects that has another client than the mesh's; how the
/// SHA-256 of the certificate begins that the server showed.
async fn call_anew(address: SocketAddr, identity: &WatchedIdentity) -> Result<String, Failure> {
    let identity = identity.load_full();
    let identity = identity.as_deref().ok_or("no identity")?;
    let tls = client_config(identity, &[StringMatcher::exact(API)], &[b"http/1.1"], &mesh_testkit::crypto())?;
    let tcp = TcpStream::connect(address).await?;
    let tls = TlsConnector::from(Arc::new(tls)).connect("api".try_into()?, tcp).await?;
    let certificates = tls.get_ref().1.peer_certificates().ok_or("the server showed no certificate")?;
    let shown = root_name(&certificates[0]);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
    tokio::spawn(connection);
    let request = Request::get("/").header("host", "api").body(Empty::<bytes::Bytes>::new())?;
    let status = sender.send_request(request).await?.status();
    if status.is_success() { Ok(shown) } else { Err(format!("a new connection got {status}").into()) }
}
