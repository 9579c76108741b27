//! Requests of one session go to one server (gRFC A55): `cargo run --example sticky_sessions`.
//!
//! Three servers, no control plane. The first answer sets a cookie that names its server; who sends it back stays
//! there, who does not is balanced as ever, and a session whose server is gone moves to another one. It fails if
//! that is not what happens, so `--smoke` changes nothing.

#![allow(clippy::print_stdout, reason = "a program that reports")]
#![allow(clippy::disallowed_methods, reason = "a program owns its tasks until it ends")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::header::{COOKIE, SET_COOKIE};
use http_body_util::BodyExt;
use mesh::Body;
use mesh::parts::mesh_client::Client;
use mesh::parts::mesh_core::id::Target;
use mesh::parts::mesh_core::policy::{
    Cluster, DestinationState, HttpFilter, HttpFilterKind, Listener, RetryOn, RetryPolicy, SessionSource, Snapshot,
    StatefulSession,
};
use tokio::sync::oneshot;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// A server that says its name, until it is told to stop.
async fn serve(name: &'static str) -> Result<(SocketAddr, oneshot::Sender<()>), Failure> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let app = Router::new().fallback(get(move || async move { name }));
    let (stop, stopped) = oneshot::channel();
    let stopped = async move { drop(stopped.await) };
    tokio::spawn(async move { axum::serve(listener, app).with_graceful_shutdown(stopped).await });
    Ok((address, stop))
}

/// One cluster whose sessions are kept by a cookie.
fn snapshot(addresses: Vec<SocketAddr>) -> Snapshot {
    let on = RetryOn { connect_failure: true, ..RetryOn::default() };
    let cluster = Cluster::of_addresses("shop", addresses);
    let mut snapshot = Snapshot::of_one_cluster("shop:80", cluster, Some(RetryPolicy::new(2, on)));
    let cookie = SessionSource::Cookie { name: "server".to_owned(), path: "/".to_owned(), ttl: Duration::ZERO };
    let session = HttpFilterKind::Session(Some(StatefulSession { source: cookie, strict: false }));
    let filter = HttpFilter { name: "sessions".to_owned(), kind: session };
    snapshot.listener = Arc::new(Listener { filters: vec![filter], ..Listener::clone(&snapshot.listener) });
    snapshot
}

/// Who answers, and the cookie that it sets.
async fn ask(client: &Client, cookie: Option<&str>) -> Result<(String, Option<String>), Failure> {
    let mut request = http::Request::get("http://shop/cart").body(Body::empty())?;
    if let Some(cookie) = cookie {
        request.headers_mut().insert(COOKIE, cookie.parse()?);
    }
    let answer = client.send(request).await?;
    let set = answer.headers().get(SET_COOKIE).and_then(|set| set.to_str().ok()?.split(';').next());
    let set = set.map(str::to_owned);
    let name = answer.into_body().collect().await?.to_bytes();
    Ok((String::from_utf8(name.to_vec())?, set))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut servers = Vec::new();
    for name in ["anna", "ben", "clara"] {
        servers.push((name, serve(name).await?));
    }
    let snapshot = Arc::new(snapshot(servers.iter().map(|(_, (address, _))| *address).collect()));
    let client = Client::builder(Arc::new(move |_: &Target| DestinationState::Ready(snapshot.clone()))).build();

    let mut others = BTreeSet::new();
    for _ in 0..60 {
        others.insert(ask(&client, None).await?.0);
    }
    let (home, cookie) = ask(&client, None).await?;
    let cookie = cookie.ok_or("the first answer sets a cookie")?;
    for _ in 0..30 {
        let (name, set) = ask(&client, Some(&cookie)).await?;
        if name != home || set.is_some() {
            return Err(format!("the session of {home} was answered by {name}").into());
        }
    }
    println!("without a cookie answered {others:?}; with {cookie:?} always {home}");
    if others.len() != 3 {
        return Err("without a cookie all three should have answered".into());
    }

    // Dropping the sender stops the server, a few turns of the runtime later.
    servers.retain(|(name, _)| *name != home);
    let (moved, set) = loop {
        let (name, set) = ask(&client, Some(&cookie)).await?;
        if name != home {
            break (name, set);
        }
        tokio::task::yield_now().await;
    };
    println!("{home} is gone: the session moved to {moved}, which says so with {set:?}");
    if set.is_none() {
        return Err("the client must be told of its new server".into());
    }
    Ok(())
}
