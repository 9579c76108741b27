//! A root that is removed before its certificates have ended: members that hold nothing else learn of it all the same, and
//! refuse its peers, whether they were there when it was removed or not.

use mesh::parts::mesh_core::id::TrustDomain;
use mesh::parts::mesh_core::identity::Identity;
use mesh_control::Clock;
use mesh_control::ca::{CertificateLife, RootRotation, RotationStep};

use crate::probe;
use crate::support::{Plane, eventually, plain_get};

/// All three steps, whoever is cut off.
fn replace_root(plane: &std::path::Path) {
    let (domain, life) = (TrustDomain::new("cluster.local").unwrap(), CertificateLife::default());
    let rotation = RootRotation::open(plane, domain, life, Clock::system()).unwrap();
    for step in [RotationStep::Added, RotationStep::Switched, RotationStep::Idle] {
        assert_eq!(rotation.advance(true).unwrap().step, step);
    }
}

/// The certificate of one in the hands of somebody who trusts what another one does.
fn trusting_as(identity: &Identity, other: &Identity) -> Identity {
    Identity::new((**identity.certified()).clone(), other.bundles().clone(), 0).unwrap()
}

async fn a_peer_of_the_removed_root_is_refused(mut plane: Plane, away: bool) {
    let server = plane.answering("reviews", "", "hello").await;
    let old = probe::identity(&plane, "left-behind").await;
    assert!(probe::get(server.address, &old).await.is_ok(), "the control: its root is trusted");
    let debug = server.mesh.debug_address().unwrap();
    let ready = async || plain_get(debug, "/readyz").await.unwrap().1;
    assert!(!ready().await.contains("trusted no more"));
    if away {
        plane.stop().await;
        replace_root(plane.state_dir());
        plane.resume().await;
    } else {
        replace_root(plane.state_dir());
    }
    eventually("a peer of the removed root is refused", || async {
        probe::get(server.address, &old).await.is_err().then_some(())
    })
    .await;
    // The server's own certificate is still the old one: who trusts that gets in with a new one.
    let new = trusting_as(&probe::identity(&plane, "fresh").await, &old);
    assert!(probe::get(server.address, &new).await.is_ok());
    eventually("it says that peers refuse it", || async {
        let (_, metrics) = plain_get(debug, "/metrics").await.unwrap();
        let failed = !metrics.contains("mesh_certificate_renewal_failures_total 0\n");
        (failed && ready().await.contains("its root is trusted no more")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_peer_of_a_root_that_was_removed_by_force_is_refused_by_members_whose_own_root_it_was() {
    a_peer_of_the_removed_root_is_refused(Plane::start().await, false).await;
}

#[tokio::test]
async fn members_that_come_back_with_a_certificate_of_a_removed_root_are_told_of_the_new_one() {
    a_peer_of_the_removed_root_is_refused(Plane::start().await, true).await;
}
