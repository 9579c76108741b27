//! Two meshes with an authority each, whose operators hand each other their roots: who is let in, as whom, and for how long.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use mesh::parts::mesh_core::id::TrustDomain;
use mesh::parts::mesh_core::identity::{Identity, TrustBundle};
use mesh::{Mesh, PeerIdentity};
use mesh_control::Clock;
use mesh_control::ca::{CertificateAuthority, CertificateLife};
use mesh_testkit::TestCa;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::probe;
use crate::support::{Plane, Running, becomes, call, eventually};

const HERE: &str = "here.example";
const THERE: &str = "there.example";

/// A mesh: a control plane, and a server `reviews` that says who called.
struct Side {
    domain: &'static str,
    plane: Plane,
    server: Running,
}

impl Side {
    async fn start(domain: &'static str) -> Self {
        let named = TrustDomain::new(domain).unwrap();
        let plane = Plane::with(move |builder| builder.trust_domain(named.clone())).await;
        let name = |peer: PeerIdentity| async move { peer.spiffe_id.map_or("nobody".to_owned(), |id| id.to_string()) };
        let mesh = plane.process("reviews", "").trust_domain(domain).build().await.unwrap();
        let server = Running::serve(mesh, "reviews", Router::new().fallback(any(name))).await;
        plane.registered(server.address).await;
        Self { domain, plane, server }
    }

    async fn caller(&self, account: &str) -> Mesh {
        self.plane.process(account, "").trust_domain(self.domain).build().await.unwrap()
    }

    /// Makes the other side's server known here, by its name of there.
    fn reach(&self, other: &Side) {
        let (domain, port) = (other.domain, other.server.address.port());
        let known = format!(
            "
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: partner}}
spec:
  hosts: [reviews.{domain}]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: 9080, name: http, protocol: HTTP, targetPort: {port}}}]
  endpoints: [{{address: 127.0.0.1}}]
  subjectAltNames: ['spiffe://{domain}/ns/default/sa/reviews']
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: partner}}
spec:
  host: reviews.{domain}
  trafficPolicy: {{tls: {{mode: ISTIO_MUTUAL}}}}
"
        );
        self.plane.write("partner.yaml", known);
    }

    /// Lets in, of all the world, one account of the other side.
    fn allow(&self, other: &Side, account: &str) {
        let principal = format!("{}/ns/default/sa/{account}", other.domain);
        let policy = format!(
            "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: reviews}}
spec: {{selector: {{matchLabels: {{app: reviews}}}}, rules: [{{from: [{{source: {{principals: [{principal}]}}}}]}}]}}
"
        );
        self.plane.write("authz.yaml", policy);
    }

    /// Takes the roots that the other side hands over.
    fn trust(&self, other: &Side) {
        let (state, domain) = (other.plane.state_dir(), TrustDomain::new(other.domain).unwrap());
        let theirs = CertificateAuthority::open(state, domain, CertificateLife::default(), Clock::system()).unwrap();
        std::fs::write(self.bundles(), theirs.bundle_map().unwrap()).unwrap();
    }

    fn bundles(&self) -> std::path::PathBuf {
        self.plane.state_dir().join("federated-bundles.json")
    }

    /// Whoever has this side's key and signs with it for this trust domain.
    fn signing_for(&self, domain: &str) -> TestCa {
        TestCa::of_pem(domain, &self.plane.state("root-cert.pem"), &self.plane.state("ca-key.pem"))
    }

    /// What a certificate signed here for `web` of a trust domain opens at the server of `at`.
    async fn visit(&self, domain: &str, at: &Side) -> std::io::Result<(u16, String)> {
        probe::get(at.server.address, &self.visitor(domain, at)).await
    }

    fn visitor(&self, domain: &str, at: &Side) -> Identity {
        let visitor = self.signing_for(domain).identity("default", "web");
        let mut bundles = visitor.bundles().clone();
        let roots = TrustBundle::from_pem(at.plane.state("root-cert.pem").as_bytes()).unwrap();
        bundles.insert(TrustDomain::new(at.domain).unwrap(), roots);
        visitor.trusting(bundles)
    }
}

fn uri(of: &Side) -> String {
    format!("http://reviews.{}:9080/", of.domain)
}

/// Calls until it is refused in these words.
async fn is_refused(mesh: &Mesh, uri: &str, why: &str) {
    eventually(&format!("{uri} is refused: {why}"), || async {
        let refused = call(mesh, uri, &[]).await.err()?;
        let told = format!("{refused:?} {refused}");
        told.contains(why).then_some(())
    })
    .await;
}

/// A connection of `visitor` that has been answered.
async fn live(address: SocketAddr, visitor: &Identity) -> tokio_rustls::client::TlsStream<tokio::net::TcpStream> {
    let mut live = probe::connect(address, visitor).await.unwrap();
    live.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    assert!(live.read(&mut [0; 1024]).await.unwrap() > 0);
    live
}

#[tokio::test]
async fn s62_two_meshes_with_roots_of_their_own_let_each_others_peers_in_while_they_are_federated() {
    let (here, there) = (Side::start(HERE).await, Side::start(THERE).await);
    let mut callers = Vec::new();
    for (side, other) in [(&here, &there), (&there, &here)] {
        side.reach(other);
        side.allow(other, "web");
        callers.push((side, other, side.caller("web").await, side.caller("elsewhere").await));
    }
    // The control: strangers.
    for (side, other, web, _) in &callers {
        is_refused(web, &uri(other), "for which this process has no bundle").await;
        assert!(side.visit(side.domain, other).await.is_err());
    }
    // Of one side it is not enough: the server does not know its caller.
    here.trust(&there);
    is_refused(&callers[0].2, &uri(&there), "").await;
    assert!(here.visit(HERE, &there).await.is_err());

    there.trust(&here);
    for (side, other, web, elsewhere) in &callers {
        let whole = format!("spiffe://{}/ns/default/sa/web", side.domain);
        becomes(web, &uri(other), &[], &whole).await;
        eventually("policy knows one from the other", || async {
            (call(elsewhere, &uri(other), &[]).await.ok()?.0 == 403).then_some(())
        })
        .await;
        assert_eq!(side.visit(side.domain, other).await.unwrap(), (200, whole));
        // Roots of one domain do not give names of another, whoever is asked.
        for at in [*side, *other] {
            assert!(side.visit(other.domain, at).await.is_err(), "{} signs for {}", side.domain, other.domain);
        }
    }

    // Lists are of the domain whose authority signed them: who is on none of ours because nobody asked, stays.
    let list = there.signing_for(THERE).revocation_list(&[9]);
    std::fs::write(there.plane.state_dir().join("ca-crl.pem"), list).unwrap();
    let (mesh, domain) = (&there.server.mesh, TrustDomain::new(THERE).unwrap());
    mesh.identity()
        .wait_for(|i| i.as_ref().is_some_and(|i| !i.bundles().get(&domain).unwrap().revocation_lists().is_empty()))
        .await;
    assert_eq!(here.visit(HERE, &there).await.unwrap().0, 200);

    // Nor is a bad file an end of it.
    let mut open = live(there.server.address, &here.visitor(HERE, &there)).await;
    std::fs::write(there.bundles(), "{").unwrap();
    let fresh = there.caller("web").await;
    becomes(&fresh, &uri(&here), &[], "spiffe://there.example/ns/default/sa/web").await;

    std::fs::remove_file(there.bundles()).unwrap();
    let closed = tokio::time::timeout(Duration::from_secs(20), open.read_to_end(&mut Vec::new())).await;
    let _ = closed.expect("the connection of a peer that is trusted no more is closed");
    assert!(here.visit(HERE, &there).await.is_err());
    is_refused(&callers[1].2, &uri(&here), "for which this process has no bundle").await;
    is_refused(&callers[0].2, &uri(&there), "").await;
}
