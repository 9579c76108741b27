//! The control plane goes away: what is known goes on, and what changes meanwhile is caught up with.

use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::any;
use mesh_testkit::ReservedAddress;

use crate::probe;
use crate::support::{FREE, Load, Plane, Running, becomes, call, eventually};

const REVIEWS: &str = "http://reviews:9080/";

/// Of certificates, where they are to be renewed.
const LIFE: Duration = Duration::from_secs(16);

const MAINTENANCE: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: reviews }
spec:
  hosts: [reviews]
  http:
  - directResponse: { status: 200, body: { string: maintenance } }
";

#[tokio::test]
async fn requests_survive_a_control_plane_that_is_gone_and_edits_count_when_it_is_back() {
    let mut plane = Plane::start().await;
    let servers = [plane.answering("reviews", "", "hello").await, plane.answering("reviews", "", "hello").await];
    let caller = plane.caller("productpage").await;
    becomes(&caller, REVIEWS, &[], "hello").await;
    let load = Load::begin(&caller, REVIEWS);
    load.more(50).await;

    plane.stop().await;
    load.more(200).await;
    plane.resume().await;
    for server in &servers {
        assert!(plane.has_registered(server.address).await, "kept across the restart");
    }
    load.more(100).await;
    let tally = load.all_well().await;
    assert_eq!(tally.answers.len(), 1, "{tally:?}");

    plane.write("routes.yaml", MAINTENANCE);
    becomes(&caller, REVIEWS, &[], "maintenance").await;
}

/// R09: nobody tells of the dead and of those who return; calls themselves find out.
#[tokio::test]
async fn servers_that_die_and_return_while_the_control_plane_is_away_leave_the_rotation_and_come_back() {
    let mut plane = Plane::start().await;
    let _stays = plane.answering("reviews", "", "stays").await;
    let place = ReservedAddress::new();
    let mesh = plane.process("reviews", "").debug_address(FREE).build().await.unwrap();
    let app = Router::new().fallback(any(|| async { "leaves" }));
    let leaves = Running::serve_at(place.address(), mesh.clone(), "reviews", app.clone()).await;
    plane.registered(leaves.address).await;
    let caller = plane.caller("productpage").await;
    becomes(&caller, REVIEWS, &[], "stays").await;
    becomes(&caller, REVIEWS, &[], "leaves").await;

    plane.stop().await;
    drop(leaves);
    // Requests may be on their way when it dies; from the first answers of the other one on, none is lost.
    eventually("the dead one is out of the rotation", || async {
        for _ in 0..20 {
            call(&caller, REVIEWS, &[]).await.ok().filter(|(_, answer)| answer == "stays")?;
        }
        Some(())
    })
    .await;
    let load = Load::begin(&caller, REVIEWS);
    load.more(50).await;
    let _back = Running::serve_at(place.address(), mesh, "reviews", app).await;
    becomes(&caller, REVIEWS, &[], "leaves").await;
    load.more(50).await;
    load.all_well().await;
}

#[tokio::test]
async fn every_process_announces_itself_again_after_a_restart() {
    // Without grace nothing is kept for anybody: who is listed has come back.
    let mut plane = Plane::with(|builder| builder.registration_grace(Duration::ZERO)).await;
    let server = plane.answering("reviews", "", "hello").await;
    plane.stop().await;
    plane.resume().await;
    plane.registered(server.address).await;
}

#[tokio::test]
async fn certificates_renew_under_load_and_an_absent_authority_is_waited_for() {
    let mut plane = Plane::with(|builder| builder.certificate_ttl(LIFE)).await;
    let server = plane.answering("reviews", "", "hello").await;
    let caller = plane.caller("productpage").await;
    becomes(&caller, REVIEWS, &[], "hello").await;
    let visitor = probe::identity(&plane, "visitor").await;
    let first = probe::certificate_of(server.address, &visitor).await;
    let load = Load::begin(&caller, REVIEWS);
    let renewed = async |known: &rustls::pki_types::CertificateDer<'static>| {
        eventually("the server shows a new certificate", || async {
            let shown = probe::certificate_of(server.address, &visitor).await;
            (shown != *known).then_some(shown)
        })
        .await
    };
    let second = renewed(&first).await;

    // Away until the next renewal has been due (at six tenths of a life, at the latest), but not for so
    // long that the certificate ends.
    let seen = Instant::now();
    plane.stop().await;
    eventually("a renewal was due", || async { (seen.elapsed() > LIFE.mul_f32(0.61)).then_some(()) }).await;
    assert_eq!(probe::certificate_of(server.address, &visitor).await, second, "the valid one stays in use");
    plane.resume().await;
    renewed(&second).await;
    load.more(50).await;
    load.all_well().await;
    // New connections too: nobody lives on old handshakes.
    let fresh = plane.caller("visitor").await;
    assert_eq!(call(&fresh, REVIEWS, &[]).await.unwrap().1, "hello");
}
