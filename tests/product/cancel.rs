//! Futures of the facade dropped at every point at which they can be (R39): what was begun is given back, and the same
//! once more finds everything in its place.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use mesh::Mesh;
use mesh_testkit::drop_after;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use crate::support::{FREE, Plane, Running, call, eventually, held, plain_get};

#[tokio::test]
async fn joining_dropped_at_any_point_leaves_its_debug_address_free_r39() {
    // On an address of loopback that no other test uses, so that a port which was free stays so.
    let own = SocketAddr::from(([127, 39, 0, 1], 0));
    let debug = TcpListener::bind(own).await.unwrap().local_addr().unwrap();
    let join = || Mesh::builder().standalone().debug_address(debug).build();
    for times in 0.. {
        let joined = drop_after(times, join()).await;
        let done = joined.is_some();
        if let Some(mesh) = joined {
            let mesh = mesh.unwrap();
            assert_eq!(plain_get(debug, "/healthz").await.unwrap().0, 200);
            assert!(join().await.is_err(), "control: while it is there the address is taken");
            drop(mesh);
        }
        eventually("the address is free", || async { TcpListener::bind(debug).await.ok() }).await;
        if done {
            break;
        }
    }
}

/// The same with a control plane to join, which gives a certificate meanwhile: nothing is left at either end.
#[tokio::test]
async fn joining_a_control_plane_dropped_at_any_point_leaves_nothing_there_r39() {
    let plane = Plane::start().await;
    let own = SocketAddr::from(([127, 39, 0, 2], 0));
    let debug = TcpListener::bind(own).await.unwrap().local_addr().unwrap();
    for times in 0.. {
        let joined = drop_after(times, plane.process("web", "").debug_address(debug).build()).await;
        let done = joined.is_some();
        if let Some(mesh) = joined {
            let mesh = mesh.unwrap();
            assert!(times > 1, "control: it was waited for");
            // What nobody knows of is asked of the control plane.
            call(&mesh, "http://nobody:1/", &[]).await.unwrap_err();
            assert_eq!(plane.json("/sync").await.as_array().unwrap().len(), 1, "control: it is there");
        }
        eventually("the address is free", || async { TcpListener::bind(debug).await.ok() }).await;
        // And the process can join all the same.
        drop(plane.process("web", "").build().await.unwrap());
        eventually("it is gone", || async { plane.json("/sync").await.as_array().unwrap().is_empty().then_some(()) })
            .await;
        if done {
            break;
        }
    }
}

#[tokio::test]
async fn waiting_to_be_ready_dropped_at_any_point_can_be_begun_again_r39() {
    let plane = Plane::start().await;
    for times in 0.. {
        let mesh = plane.process("web", "").build().await.unwrap();
        let ready = drop_after(times, mesh.ready()).await.is_some();
        tokio::time::timeout(Duration::from_secs(20), mesh.ready()).await.expect("it becomes ready");
        if ready {
            assert!(times > 1, "control: it was waited for");
            break;
        }
    }
}

#[tokio::test]
async fn a_shutdown_dropped_once_begun_goes_on_and_can_be_waited_for_again_r39() {
    for times in [0, 1] {
        let (entered, proceed) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let mesh = Mesh::builder().standalone().debug_address(FREE).build().await.unwrap();
        let mut running = Running::serve(mesh, "reviews", Router::new().route("/slow", held(&entered, &proceed))).await;
        let asked = tokio::spawn(plain_get(running.address, "/slow"));
        entered.notified().await;
        assert!(drop_after(times, running.mesh.shutdown()).await.is_none(), "control: it waits for what is in flight");
        let debug = running.mesh.debug_address().unwrap();
        let ready = plain_get(debug, "/readyz").await.unwrap().0;
        assert_eq!(ready, if times == 0 { 200 } else { 503 }, "what was polled has begun the drain");
        tokio::join!(running.mesh.shutdown(), async { proceed.notify_one() });
        let (status, text) = asked.await.unwrap().unwrap();
        assert!(status == 200 && text.contains("finished"), "{status} {text}");
        running.finished().await;
    }
}
