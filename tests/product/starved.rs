//! An application that starves its own runtime, and one that asks for names without end: neither costs the process
//! its place in the mesh, nor memory.

use std::net::SocketAddr;
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use mesh::Mesh;

use crate::support::{FREE, Plane, becomes, call, eventually, plain_get};

const REVIEWS: &str = "http://reviews:9080/";

const ROUTES: &str = "
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: { name: reviews }
spec:
  hosts: [reviews]
  http:
    - match: [{ uri: { prefix: /while-blocked } }]
      directResponse: { status: 200, body: { string: two } }
    - route: [{ destination: { host: reviews } }]
";

fn expiry(mesh: &Mesh) -> u64 {
    mesh.identity().load_full().as_ref().as_ref().unwrap().not_after()
}

/// For how long the application's runtime stands still, and how often it did.
async fn stalled(debug: SocketAddr) -> (f64, f64) {
    let text = plain_get(debug, "/metrics").await.unwrap().1;
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap().parse().unwrap()
    };
    (value("mesh_runtime_stalled_seconds"), value("mesh_runtime_stalls_total"))
}

/// R36 at test scale. The control is the application's own task, which stands still for as long.
#[tokio::test]
async fn an_application_that_blocks_its_runtime_keeps_its_identity_and_its_configuration_r36() {
    for workers in [0, 3] {
        blocked(workers).await;
    }
}

/// All of an application's threads are blocked: its only one, or so many workers and the one that began them.
async fn blocked(workers: usize) {
    let plane = Plane::with(|builder| builder.certificate_ttl(Duration::from_secs(12))).await;
    let _reviews = plane.answering("reviews", "", "one").await;
    let mesh = plane.process("productpage", "").debug_address(FREE);

    // Blocked for as long as the test likes.
    let (blocked, release) = (mpsc::channel::<()>(), mpsc::channel::<()>());
    let (joined, member) = tokio::sync::oneshot::channel();
    let application = std::thread::spawn(move || {
        let mut builder = match workers {
            0 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = builder.worker_threads(workers.max(1)).enable_all().build().unwrap();
        runtime.block_on(async move {
            let mesh = mesh.build().await.unwrap();
            assert_eq!(call(&mesh, REVIEWS, &[]).await.unwrap().1, "one");
            let debug = mesh.debug_address().unwrap();
            eventually("the control: it runs", || async { (stalled(debug).await.0 == 0.0).then_some(()) }).await;
            joined.send(mesh.clone()).unwrap();
            let (at_work, go_on) = (Arc::new(Barrier::new(workers + 1)), Arc::new(Barrier::new(workers + 1)));
            for _ in 0..workers {
                let (at_work, go_on) = (at_work.clone(), go_on.clone());
                tokio::spawn(async move {
                    at_work.wait();
                    go_on.wait();
                });
            }
            // Each of them has a thread to itself.
            at_work.wait();
            let beside = tokio::spawn(async { 1 });
            blocked.0.send(()).unwrap();
            release.1.recv().unwrap();
            assert!(!beside.is_finished(), "the control: nothing else ran on this runtime");
            go_on.wait();
            // What came meanwhile counts at once.
            becomes(&mesh, "http://reviews:9080/while-blocked", &[], "two").await;
            eventually("the stall is over", || async { (stalled(debug).await.0 == 0.0).then_some(()) }).await;
        })
    });
    let mesh: Mesh = member.await.unwrap();
    blocked.1.recv().unwrap();

    for renewal in 1..=2 {
        let before = expiry(&mesh);
        eventually(&format!("renewal {renewal}"), || async { (expiry(&mesh) > before).then_some(()) }).await;
    }
    let debug = mesh.debug_address().unwrap();
    for page in ["/healthz", "/readyz"] {
        assert_eq!(plain_get(debug, page).await.unwrap().0, 200, "{page}");
    }
    eventually("the stall is seen", || async { (stalled(debug).await.0 >= 1.0).then_some(()) }).await;
    assert!(stalled(debug).await.1 >= 1.0);
    assert!(plain_get(debug, "/readyz").await.unwrap().1.contains("runtime: "), "and told");
    plane.write("routes.yaml", ROUTES);
    eventually("a change arrives", || async {
        plain_get(debug, "/config_dump").await.unwrap().1.contains("/while-blocked").then_some(())
    })
    .await;
    release.0.send(()).unwrap();
    // Not waited for here: who serves the first answers runs on this thread.
    tokio::task::spawn_blocking(|| application.join()).await.unwrap().unwrap();
}

/// R38 at test scale: what a request says makes no series. Names of services do, up to a bound.
#[tokio::test]
async fn paths_and_headers_without_end_make_no_series_r38() {
    let plane = Plane::start().await;
    let reviews = plane.answering("reviews", "", "hello").await;
    let mesh = plane.process("productpage", "").debug_address(FREE).build().await.unwrap();
    let server = reviews.mesh.debug_address().unwrap();
    let client = mesh.debug_address().unwrap();
    let series = async |debug| plain_get(debug, "/metrics").await.unwrap().1.lines().count();
    call(&mesh, REVIEWS, &[]).await.unwrap();
    let before = (series(client).await, series(server).await);
    for number in 1..=1000 {
        let path = format!("{REVIEWS}{number}?user={number}");
        assert_eq!(call(&mesh, &path, &[("x-request-id", &number.to_string())]).await.unwrap().1, "hello");
    }
    assert_eq!((series(client).await, series(server).await), before);
}
