//! A mesh whose trust domain gets another name while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use mesh::Mesh;
use mesh::parts::mesh_core::id::TrustDomain;

use crate::support::{Plane, Running, becomes, call, eventually};

/// Of certificates, so that they are renewed while the test looks on.
const LIFE: Duration = Duration::from_secs(16);
const REVIEWS: &str = "http://reviews:9080/";

fn domain_of(mesh: &Mesh) -> String {
    let identity = mesh.identity().load_full();
    identity.as_ref().as_ref().map(|identity| identity.id().trust_domain().to_string()).unwrap_or_default()
}

#[tokio::test]
async fn a_trust_domain_is_renamed_while_its_members_go_on() {
    let renamed = Arc::<AtomicBool>::default();
    let is_renamed = renamed.clone();
    let domain = |name: &str| TrustDomain::new(name).unwrap();
    let mut plane = Plane::with(move |builder| match is_renamed.load(Ordering::Relaxed) {
        false => builder.certificate_ttl(LIFE).trust_domain(domain("old.test")),
        true => builder
            .certificate_ttl(LIFE)
            .trust_domain(domain("new.test"))
            .trust_domain_aliases(vec![domain("old.test")]),
    })
    .await;
    // Members learn the name that is to come before the control plane has it.
    let member =
        |account: &str| plane.process(account, "").trust_domain("old.test").trust_domain_aliases("new.test").build();
    let (server, caller) = (member("reviews").await.unwrap(), member("productpage").await.unwrap());
    // The control: one that does not.
    let unaware = plane.process("ratings", "").trust_domain("old.test").build().await.unwrap();
    let app = Router::new().fallback(|| async { "hello" });
    let server = Running::serve(server, "reviews", app).await;
    for mesh in [&caller, &unaware] {
        becomes(mesh, REVIEWS, &[], "hello").await;
    }
    plane.stop().await;
    renamed.store(true, Ordering::Relaxed);
    plane.resume().await;
    eventually("both have certificates of the new name", || async {
        // All the while they reach each other, whichever of the two has which name.
        let (status, text) = call(&caller, REVIEWS, &[]).await.unwrap();
        assert_eq!((status.as_u16(), &*text), (200, "hello"));
        [&caller, &server.mesh].iter().all(|mesh| domain_of(mesh) == "new.test").then_some(())
    })
    .await;
    plane.registered(server.address).await;
    assert_eq!(domain_of(&unaware), "old.test", "the control");
    // Whoever is started under the new name knows those as well.
    let fresh = plane.process("details", "").trust_domain("new.test").trust_domain_aliases("old.test");
    let fresh = fresh.build().await.unwrap();
    becomes(&fresh, REVIEWS, &[], "hello").await;
    assert_eq!(domain_of(&fresh), "new.test");
}
