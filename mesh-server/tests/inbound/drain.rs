//! The end of a server: drained or dropped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use mesh_core::error::BoxError;
use mesh_core::policy::InboundTls;
use mesh_server::Config;

use crate::kit::{Client, Http, World, eventually, get, policy, read, spawn, text, within};

type Answer = Result<Response<Full<Bytes>>, BoxError>;

/// A server whose handler says that it began, waits for the gate, and says by dropping the sender's
/// clone that it is gone.
async fn gated(config: Config) -> (World, mpsc::Receiver<()>, watch::Sender<bool>) {
    let (began, begins) = mpsc::channel(8);
    let (open, gate) = watch::channel(false);
    let service = tower::service_fn(move |_| {
        let (began, mut gate) = (began.clone(), gate.clone());
        async move {
            began.send(()).await?;
            gate.wait_for(|open| *open).await?;
            let answer: Answer = text("done");
            answer
        }
    });
    (World::start(policy(InboundTls::Permissive), config, service).await, begins, open)
}

fn lame_duck(time: Duration) -> Config {
    let mut config = Config::default();
    config.lame_duck = time;
    config
}

#[tokio::test]
async fn a_lame_duck_serves_those_who_do_not_know_yet_and_tells_them() {
    let service = tower::service_fn(|_| async { text("served") });
    let config = lame_duck(Duration::from_secs(3600));
    let world = World::start(policy(InboundTls::Permissive), config, service).await;
    let (mut idle, mut shared) = (world.plain(Http::One).await, world.plain(Http::Two).await);
    for client in [&mut idle, &mut shared] {
        assert_eq!(client.get("/").await.unwrap().0, 200);
    }
    world.drain.drain();
    // HTTP/2 says so by itself.
    within(shared.ended).await.unwrap();
    let response = within(idle.send(get("/"))).await.unwrap();
    assert_eq!(response.headers().get("connection").unwrap(), "close");
    assert_eq!(within(read(response)).await.unwrap(), (200, "served".to_owned()));
    within(idle.ended).await.unwrap();
    // Callers come all the same for a while.
    let mut late = world.plain(Http::Two).await;
    assert_eq!(late.get("/").await.unwrap().0, 200);
    assert!(!world.serving.is_finished());
}

/// Requests that fail for a caller without retries who spreads them over two servers, and looks only after a while at
/// the readiness of the one that leaves.
async fn lost(version: Http, time: Duration) -> usize {
    let (began, mut begins) = mpsc::channel(8);
    let (open, gate) = watch::channel(false);
    let slow = tower::service_fn(move |request: http::Request<mesh_server::Body>| {
        let (began, mut gate) = (began.clone(), gate.clone());
        async move {
            if request.uri().path() == "/slow" {
                began.send(()).await?;
                gate.wait_for(|open| *open).await?;
            }
            let answer: Answer = text("done");
            answer
        }
    });
    let leaving = World::start(policy(InboundTls::Permissive), lame_duck(time), slow).await;
    let staying = World::hello(InboundTls::Permissive).await;
    let mut busy = leaving.plain(version).await;
    let in_flight = spawn(busy.send(get("/slow")));
    within(begins.recv()).await.unwrap();
    let addresses = [leaving.address, staying.address];
    let mut pool = [None, None];
    let (mut lost, mut gone) = (0, false);
    for n in 0..60 {
        if n == 20 {
            leaving.drain.drain();
            eventually(|| leaving.server.readiness().draining().then_some(())).await;
        }
        if n == 40 {
            gone = !leaving.server.readiness().is_ready();
        }
        let place = if gone { 1 } else { n % 2 };
        lost += usize::from(ask(&mut pool[place], addresses[place], version).await.is_none());
    }
    assert!(gone, "who looks at readiness sees it");
    open.send_replace(true);
    let answer = within(in_flight).await.unwrap().unwrap();
    assert_eq!(within(read(answer)).await.unwrap(), (200, "done".to_owned()), "{version:?}: begun before the drain");
    lost
}

/// One request over a connection that is kept, or a new one in the place of one that has ended. `None` = lost.
async fn ask(kept: &mut Option<Client>, server: SocketAddr, version: Http) -> Option<()> {
    loop {
        let client = match kept {
            Some(client) if !client.ended.is_finished() => client,
            _ => kept.insert(Client::over(TcpStream::connect(server).await.ok()?, version).await.ok()?),
        };
        match within(client.get("/")).await {
            Ok((status, _)) => return (status == 200).then_some(()),
            // It never left: the connection had been told to take no more.
            Err(error) if error.is_canceled() => *kept = None,
            Err(_) => return None,
        }
    }
}

#[tokio::test]
async fn a_drain_loses_no_request_though_nobody_retries() {
    for version in [Http::One, Http::Two] {
        assert_eq!(lost(version, Duration::from_secs(3600)).await, 0, "{version:?}");
        // Control: whoever has not looked yet finds the door closed.
        assert!(lost(version, Duration::ZERO).await >= 5, "{version:?}");
    }
}

#[tokio::test]
async fn without_a_lame_duck_idle_connections_are_closed_at_once() {
    let service = tower::service_fn(|_| async { text("served") });
    let mut world = World::start(policy(InboundTls::Permissive), lame_duck(Duration::ZERO), service).await;
    let mut idle = world.plain(Http::One).await;
    assert_eq!(idle.get("/").await.unwrap().0, 200);
    world.drain.drain();
    within(idle.ended).await.unwrap();
    within(&mut world.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_comes_when_nobody_is_connected_is_served_while_the_duck_is_lame() {
    for (time, served) in [(Duration::from_secs(3600), true), (Duration::ZERO, false)] {
        let service = tower::service_fn(|_| async { text("served") });
        let mut world = World::start(policy(InboundTls::Permissive), lame_duck(time), service).await;
        world.drain.drain();
        eventually(|| world.server.readiness().draining().then_some(())).await;
        assert!(!world.server.readiness().is_ready());
        if served {
            assert_eq!(world.plain(Http::Two).await.get("/").await.unwrap().0, 200);
            assert!(!world.serving.is_finished());
        } else {
            // The control: the door is closed at once.
            within(&mut world.serving).await.unwrap().unwrap();
            assert!(TcpStream::connect(world.address).await.is_err());
        }
    }
}

#[tokio::test]
async fn a_drain_finishes_requests_in_flight_and_refuses_new_connections() {
    for version in [Http::One, Http::Two] {
        let (mut world, mut begins, open) = gated(lame_duck(Duration::ZERO)).await;
        let mut client = world.mutual(version).await;
        let idle = world.plain(version).await;
        let in_flight = spawn(client.send(get("/")));
        within(begins.recv()).await.unwrap();

        world.drain.drain();
        within(idle.ended).await.unwrap();
        eventually(|| world.server.readiness().draining().then_some(())).await;
        assert!(!world.server.readiness().is_ready());
        // The listener is closed.
        eventually(|| std::net::TcpStream::connect(world.address).is_err().then_some(())).await;
        assert!(!world.serving.is_finished(), "{version:?}: a request is in flight");

        open.send_replace(true);
        let response = within(in_flight).await.unwrap().unwrap();
        assert_eq!(within(read(response)).await.unwrap(), (200, "done".to_owned()), "{version:?}");
        within(&mut world.serving).await.unwrap().unwrap();
        within(world.drain.finished()).await;
        within(client.ended).await.unwrap();
    }
}

#[tokio::test]
async fn the_drain_limit_ends_what_does_not_finish() {
    for version in [Http::One, Http::Two] {
        let mut config = lame_duck(Duration::ZERO);
        config.drain_limit = Duration::from_millis(50);
        let (mut world, mut begins, _open) = gated(config).await;
        let mut client = world.plain(version).await;
        let in_flight = spawn(client.send(get("/")));
        within(begins.recv()).await.unwrap();
        world.drain.drain();
        within(&mut world.serving).await.unwrap().unwrap();
        assert!(within(in_flight).await.unwrap().is_err(), "{version:?}");
    }
}

#[tokio::test]
async fn dropping_the_server_closes_sockets_and_ends_handlers() {
    for version in [Http::One, Http::Two] {
        let (held, alive) = watch::channel(());
        let held = Arc::new(held);
        let (began, mut begins) = mpsc::channel(1);
        let service = tower::service_fn(move |_| {
            let (held, began) = (held.clone(), began.clone());
            async move {
                began.send(()).await?;
                std::future::pending::<()>().await;
                drop(held);
                let answer: Answer = text("never");
                answer
            }
        });
        let mut world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
        let mut client = world.mutual(version).await;
        let in_flight = spawn(client.send(get("/")));
        within(begins.recv()).await.unwrap();

        world.serving.abort();
        assert!(within(&mut world.serving).await.unwrap_err().is_cancelled());
        assert!(within(in_flight).await.unwrap().is_err(), "{version:?}");
        within(client.ended).await.unwrap();
        // Every clone of the service and every handler future is gone.
        let mut alive = alive;
        while within(alive.changed()).await.is_ok() {}
        assert_eq!(world.server.readiness().serving(), 0);
    }
}
