//! What keeps apart and what belongs together: two meshes in one process, no mesh at all, one trace.

use axum::Router;
use axum::extract::State;
use axum::routing::get;
use http::HeaderMap;
use mesh::Mesh;

use crate::probe;
use crate::support::{Plane, Running, call, eventually, plain_get};

const REVIEWS: &str = "http://reviews:9080/";

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: { name: default }
spec: { mtls: { mode: STRICT } }
";

#[tokio::test]
async fn two_meshes_in_one_process_do_not_meet() {
    let (here, there) = (Plane::start().await, Plane::start().await);
    here.write("mode.yaml", STRICT);
    let mine = here.answering("reviews", "", "here").await;
    let _theirs = there.answering("reviews", "", "there").await;
    let (local, foreign) = (here.caller("productpage").await, there.caller("productpage").await);
    for _ in 0..10 {
        assert_eq!(call(&local, REVIEWS, &[]).await.unwrap().1, "here");
        assert_eq!(call(&foreign, REVIEWS, &[]).await.unwrap().1, "there");
    }

    eventually("the server is strict", || async {
        (plain_get(mine.address, "/").await.unwrap().0 == 403).then_some(())
    })
    .await;
    let (member, stranger) = (probe::identity(&here, "visitor").await, probe::identity(&there, "visitor").await);
    assert_eq!(member.id(), stranger.id(), "the same name, vouched for by another authority");
    let refused = probe::get(mine.address, &probe::trusting(&stranger, &here)).await;
    assert!(refused.is_err(), "{refused:?}");
    assert!(probe::get(mine.address, &stranger).await.is_err(), "nor does the stranger trust the server");
    // The control.
    assert_eq!(probe::get(mine.address, &member).await.unwrap(), (200, "here".to_owned()));
}

#[tokio::test]
async fn a_disabled_mesh_talks_plaintext_with_the_same_types() {
    let app = Router::new().fallback(get(|| async { "plain" }));
    let server = Running::serve(Mesh::disabled().unwrap(), "reviews", app).await;
    let client = Mesh::disabled().unwrap();
    client.ready().await;
    let uri = format!("http://{}/", server.address);
    assert_eq!(call(&client, &uri, &[]).await.unwrap().1, "plain");
    assert_eq!(plain_get(server.address, "/").await.unwrap(), (200, "plain".to_owned()));
}

/// What a service of the chain knows.
#[derive(Clone)]
struct Link {
    mesh: Mesh,
    next: Option<&'static str>,
}

/// The `traceparent` received, then what the next ones received, a line each.
async fn pass_on(State(Link { mesh, next }): State<Link>, headers: HeaderMap) -> String {
    let mut lines = headers.get("traceparent").map_or("none", |value| value.to_str().unwrap()).to_owned();
    if let Some(next) = next {
        lines += "\n";
        lines += &call(&mesh, next, &[]).await.unwrap().1;
    }
    lines
}

/// As [`pass_on`], from a task that knows nothing of the request it works for.
async fn lose_the_thread(state: State<Link>, headers: HeaderMap) -> String {
    tokio::spawn(pass_on(state, headers)).await.unwrap()
}

async fn link(plane: &Plane, name: &str, next: Option<&'static str>) -> Running {
    let mesh = plane.process(name, "").build().await.unwrap();
    let app = Router::new().route("/", get(pass_on)).route("/lost", get(lose_the_thread));
    let running = Running::serve(mesh.clone(), name, app.with_state(Link { mesh, next })).await;
    plane.registered(running.address).await;
    running
}

#[tokio::test]
async fn one_trace_goes_through_three_services_without_help() {
    let plane = Plane::start().await;
    let _chain = [
        link(&plane, "c", None).await,
        link(&plane, "b", Some("http://c:9080/")).await,
        link(&plane, "a", Some("http://b:9080/")).await,
    ];
    let caller = plane.caller("caller").await;
    let began = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = [("traceparent", began)];
    assert_eq!(call(&caller, "http://a:9080/", &trace).await.unwrap().1, [began; 3].join("\n"));

    // The controls: who leaves the request's context loses its trace, and nobody in the mesh begins one.
    assert_eq!(call(&caller, "http://a:9080/lost", &trace).await.unwrap().1, [began, "none", "none"].join("\n"));
    assert_eq!(call(&caller, "http://a:9080/", &[]).await.unwrap().1, ["none"; 3].join("\n"));
}
