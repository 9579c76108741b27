//! A server is restarted again and again under five hundred requests a second, over processes of their own and by SIGTERM:
//! none is lost, though nobody sends one twice (R34). Where it is killed some are.

use mesh::{Body, Mesh};

use crate::by_hand::{examples, signal, spawn};
use crate::root::{HELLO, Rate, World};
use crate::support::eventually;

const RESTARTS: usize = 3;

fn manifest(upgrade: &str) -> String {
    format!(
        "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{ name: hello, namespace: default }}
spec:
  hosts: [hello]
  http: [{{ route: [{{ destination: {{ host: hello }} }}], retries: {{ attempts: 0 }} }}]
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{ name: hello, namespace: default }}
spec: {{ host: hello, trafficPolicy: {{ connectionPool: {{ http: {{ h2UpgradePolicy: {upgrade} }} }} }} }}
"
    )
}

/// A request whose method forbids sending it twice. The server has nothing for it, and says so: an answer like any other.
async fn post(mesh: Mesh) -> Option<String> {
    let request = http::Request::post(HELLO).body(Body::empty()).unwrap();
    match mesh.client().send(request).await {
        Ok(response) if response.status() == 405 => None,
        Ok(response) => Some(response.status().to_string()),
        Err(error) => Some(error.to_string()),
    }
}

/// Requests that were sent, and what failed of them, while the server is ended with this signal, another being there.
async fn restarted(upgrade: &str, end: &str) -> (usize, Vec<String>) {
    let mut world = World::start_with(&manifest(upgrade)).await;
    let hello = examples().await.join("hello_server");
    let load = Rate::of_five_hundred(&world.caller, post);
    for _ in 0..RESTARTS {
        load.more(250).await;
        let next = spawn(&mut world.plane.joined("hello", &hello));
        eventually("the next one is registered", || async {
            (world.plane.registrations().await.len() == 2).then_some(())
        })
        .await;
        load.more(250).await;
        let mut left = std::mem::replace(&mut world.server, next);
        if end == "-KILL" {
            // With requests in it.
            assert!(signal(&left, "-STOP").await);
            load.more(100).await;
        }
        assert!(signal(&left, end).await);
        let ended = left.wait().await.unwrap();
        assert_eq!(ended.code(), (end == "-TERM").then_some(0));
        eventually("it is withdrawn", || async { (world.plane.registrations().await.len() == 1).then_some(()) }).await;
    }
    load.more(250).await;
    load.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_under_five_hundred_requests_a_second_lose_none_though_nobody_retries_r34() {
    for upgrade in ["UPGRADE", "DO_NOT_UPGRADE"] {
        let (sent, failures) = restarted(upgrade, "-TERM").await;
        assert!(
            failures.is_empty(),
            "{upgrade}: {} of {sent}: {:#?}",
            failures.len(),
            &failures[..failures.len().min(5)]
        );
        assert!(sent >= 1_750, "{sent}");
    }
}

/// The control.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_servers_are_killed_requests_are_lost_r34() {
    let (sent, failures) = restarted("UPGRADE", "-KILL").await;
    assert!(!failures.is_empty(), "of {sent}");
}
