//! Sockets of a process beside the mesh's: told of, allowed, or a reason not to be ready.

use std::io::BufRead;
use std::net::SocketAddr;

use axum::Router;
use mesh::Mesh;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Child;

use crate::support::{FREE, Plane, eventually, plain_get};

/// What the process makes of other listeners; set in its process only.
const HOW: &str = "TEST_LISTENERS";
const SAID: &str = "listens at ";
const NAME: &str = "listeners::a_process_that_listens_beside_the_mesh_is_told_of_or_not_ready";

/// Plays both parts: all tests of this process listen, so each member is this test once more, in a process of its own.
#[test]
fn a_process_that_listens_beside_the_mesh_is_told_of_or_not_ready() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    match std::env::var(HOW) {
        Ok(how) => runtime.block_on(member(&how)),
        Err(_) => runtime.block_on(look_at_members()),
    }
}

/// Serves, and listens on a port of its own until there is a word on its standard input; ends with that.
#[expect(clippy::print_stdout, reason = "what the member says to the test that began it")]
async fn member(how: &str) {
    let said = |name: &str| std::env::var(name).unwrap();
    let other = TcpListener::bind(FREE).await.unwrap();
    let port = other.local_addr().unwrap().port();
    let builder = Mesh::builder()
        .control_plane(said("TEST_PLANE"))
        .root_cert(said("TEST_ROOT"))
        .service_account("reviews")
        .labels("app=reviews")
        .join_token(said("TEST_TOKEN"))
        .debug_address(FREE);
    let builder = match how {
        "warns" => builder,
        "refuses" => builder.refuse_other_listeners(),
        _ => builder.refuse_other_listeners().allow_listeners(port.to_string()),
    };
    let mesh = builder.build().await.unwrap();
    let listener = TcpListener::bind(FREE).await.unwrap();
    let places = [mesh.debug_address().unwrap(), listener.local_addr().unwrap(), other.local_addr().unwrap()];
    println!("{SAID}{}", places.map(|place| place.to_string()).join(" "));
    let serving =
        tokio::spawn(mesh.serve(listener, Router::new()).service("reviews", 9080).without_signals().into_future());
    tokio::task::spawn_blocking(move || {
        let mut lines = std::io::stdin().lock().lines();
        let _ = lines.next();
        drop(other);
        while lines.next().is_some() {}
    })
    .await
    .unwrap();
    serving.abort();
}

struct Member {
    child: Child,
    debug: SocketAddr,
    served: SocketAddr,
    other: SocketAddr,
}

impl Member {
    async fn start(plane: &Plane, how: &str) -> Self {
        let places = |line: &str| {
            let (_, places) = line.split_once(SAID)?;
            Some(places.split(' ').map(|place| place.parse().unwrap()).collect::<Vec<SocketAddr>>())
        };
        let (child, _, places) = plane.own_process(NAME, (HOW, how), "reviews", places).await;
        Self { child, debug: places[0], served: places[1], other: places[2] }
    }

    /// Whether it is ready, and what it says of it.
    async fn ready(&self) -> (bool, String) {
        let (status, text) = plain_get(self.debug, "/readyz").await.unwrap();
        (status == 200, text)
    }

    async fn is_ready(&self, plane: &Plane) {
        eventually("it is ready", || async { self.ready().await.0.then_some(()) }).await;
        plane.registered(self.served).await;
    }

    async fn counts(&self, others: u64) {
        let line = format!("mesh_other_listeners {others}\n");
        eventually("others are counted", || async {
            plain_get(self.debug, "/metrics").await.unwrap().1.contains(&line).then_some(())
        })
        .await;
    }
}

async fn look_at_members() {
    let plane = Plane::start().await;
    let warns = Member::start(&plane, "warns").await;
    warns.is_ready(&plane).await;
    warns.counts(1).await;
    assert!(warns.ready().await.0, "told of, and no more");

    let mut refuses = Member::start(&plane, "refuses").await;
    let found = format!("MESH-2010: no policy is enforced at tcp {},", refuses.other);
    eventually("it is found", || async { refuses.ready().await.1.contains(&found).then_some(()) }).await;
    refuses.counts(1).await;
    assert!(!refuses.ready().await.0 && !plane.has_registered(refuses.served).await);

    // The control: the same, where it is as it should be, and once it is gone.
    let allowed = Member::start(&plane, "allowed").await;
    allowed.is_ready(&plane).await;
    allowed.counts(0).await;
    refuses.child.stdin.as_mut().unwrap().write_all(b"close\n").await.unwrap();
    refuses.is_ready(&plane).await;
    refuses.counts(0).await;
}
