//! Floods: cheap for who sends them, and what keeps them from being dear for who gets them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::AsyncWriteExt;
use tokio::sync::{mpsc, watch};

use mesh_core::policy::{HeaderKey, HeaderMatch, HeaderMatcher, InboundTls, PathMatch, PerMillion};
use mesh_server::{Config, Priority, Refusal};

use crate::kit::{Http, World, get as plain_get, policy, read, spawn, text, within};
use crate::raw::Verdict::{Alive, Connection, Served};
use crate::raw::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, PRIORITY, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, frame, get, goes_on, next, request, verdict, verdict_or_alive,
};

async fn world(config: Config) -> World {
    World::start(policy(InboundTls::Permissive), config, tower::service_fn(|_| async { text("hello") })).await
}

/// A server whose application keeps requests and neither reads nor answers them.
async fn silent(config: Config) -> World {
    let service = tower::service_fn(|request: http::Request<mesh_server::Body>| async move {
        let _request = request;
        std::future::pending::<()>().await;
        text("never")
    });
    World::start(policy(InboundTls::Permissive), config, service).await
}

/// Requests that are begun and taken back at once.
pub(crate) fn rapid_reset(times: u32) -> Vec<u8> {
    let cancel = [0, 0, 0, 8];
    (0..times)
        .flat_map(|n| [request(2 * n + 1, &get("/", &[])), frame(RST_STREAM, 0, 2 * n + 1, &cancel)].concat())
        .collect()
}

#[tokio::test]
async fn rapid_resets_end_the_connection() {
    assert_eq!(verdict(&silent(Config::default()).await, &rapid_reset(1000)).await, Connection);
}

#[tokio::test]
async fn without_the_limit_rapid_resets_go_on() {
    let mut config = Config::default();
    (config.max_pending_resets, config.max_control_frames) = (100_000, None);
    assert_eq!(verdict_or_alive(&silent(config).await, &rapid_reset(1000)).await, Alive);
}

/// The same with time for each request to reach the application before it is taken back, which h2 does not count.
#[tokio::test]
async fn requests_that_are_begun_and_taken_back_without_end_end_the_connection_r30() {
    for (limit, rounds) in [(Config::default().max_control_frames, None), (None, Some(100))] {
        let mut config = Config::default();
        config.max_control_frames = limit;
        let (world, most) = counted(config).await;
        let mut tcp = tokio::net::TcpStream::connect(world.address).await.unwrap();
        let mut bytes = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        let mut ended = None;
        for round in 0..100_u32 {
            let streams = (round * 100..(round + 1) * 100).map(|n| 2 * n + 1);
            bytes.extend(streams.clone().flat_map(|stream| request(stream, &get("/", &[]))));
            bytes.extend(frame(PING, 0, 0, b"begun..."));
            let answered = async {
                tcp.write_all(&bytes).await.ok()?;
                while next(&mut tcp).await.filter(|(kind, ..)| *kind != GOAWAY)?.3 != b"begun..." {}
                Some(())
            };
            if within(answered).await.is_none() {
                ended = Some(round);
                break;
            }
            bytes = streams.flat_map(|stream| frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])).collect();
        }
        match rounds {
            None => assert!(ended.is_some_and(|round| round <= 20), "{ended:?}"),
            Some(_) => assert_eq!(ended, None, "the control"),
        }
        assert!(most.load(Ordering::Relaxed) <= 256);
    }
}

/// What makes us reset a stream whose request is being answered, each in another way (CVE-2025-8671, "MadeYouReset").
pub(crate) const PROVOCATIONS: [&str; 3] =
    ["a window above 2^31-1", "a stream that depends on itself", "more body than announced"];

pub(crate) fn provoked_resets(how: &str, times: u32) -> Vec<u8> {
    let one = |n: u32| {
        let stream = 2 * n + 1;
        let mut headers = get("/", &[("content-length", "1")]);
        headers[0].1 = "POST";
        let open = frame(HEADERS, END_HEADERS, stream, &block(&headers));
        let [whole, more] = match how {
            "a window above 2^31-1" => [open, frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])],
            "a stream that depends on itself" => {
                [open, frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[16]].concat())]
            }
            _ => [open, frame(DATA, END_STREAM, stream, b"more")],
        };
        [whole, more].concat()
    };
    (0..times).flat_map(one).collect()
}

/// R30 at test scale.
#[tokio::test]
async fn resets_that_a_peer_provokes_end_the_connection() {
    const ENHANCE_YOUR_CALM: u32 = 11;
    // Some provoke by what counts as a control frame, too.
    let mut config = Config::default();
    config.max_control_frames = None;
    let (limited, most) = counted(config.clone()).await;
    config.max_local_resets = 1_000_000;
    let (unlimited, _) = counted(config).await;
    let (by_default, _) = counted(Config::default()).await;
    for how in PROVOCATIONS {
        let (few, flood) = (provoked_resets(how, 400), provoked_resets(how, 3000));
        assert_eq!(goes_on(by_default.address, &few).await, Ok(()), "{how}: a few are no flood");
        assert!(goes_on(by_default.address, &flood).await.is_err(), "{how}");
        assert_eq!(goes_on(limited.address, &flood).await, Err(Some(ENHANCE_YOUR_CALM)), "{how}");
        assert_eq!(goes_on(unlimited.address, &flood).await, Ok(()), "{how}: the control");
    }
    let most = most.load(Ordering::Relaxed);
    assert!(most <= 256, "{most} requests were in the hands of the application at once");
}

/// A server whose application answers at `/served` only, and how many requests it had at once at most.
pub(crate) async fn counted(config: Config) -> (World, Arc<AtomicUsize>) {
    struct Running(Arc<AtomicUsize>);
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    let (running, most) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let seen = most.clone();
    let service = tower::service_fn(move |request: http::Request<mesh_server::Body>| {
        let now = running.fetch_add(1, Ordering::Relaxed) + 1;
        seen.fetch_max(now, Ordering::Relaxed);
        let running = Running(running.clone());
        async move {
            let _running = running;
            if request.uri().path() != "/served" {
                std::future::pending::<()>().await;
            }
            text("hello")
        }
    });
    (World::start(policy(InboundTls::Permissive), config, service).await, most)
}

#[tokio::test]
async fn a_block_without_an_end_ends_the_connection() {
    let world = world(Config::default()).await;
    let mut flood = frame(HEADERS, END_STREAM, 1, &block(&get("/", &[])));
    let (part, none) = (frame(CONTINUATION, 0, 1, &block(&[("a", "b")])), frame(CONTINUATION, 0, 1, &[]));
    // A few are no flood.
    let mut few = [&flood[..], &part, &part].concat();
    few.extend(frame(CONTINUATION, END_HEADERS, 1, &[]));
    assert_eq!(verdict(&world, &few).await, Served);
    let mut empty = flood.clone();
    for _ in 0..20_000 {
        flood.extend(&part);
        empty.extend(&none);
    }
    assert_eq!(verdict(&world, &flood).await, Connection);
    assert_eq!(verdict(&world, &empty).await, Connection);
}

#[tokio::test]
async fn data_without_data_ends_the_connection() {
    let world = silent(Config::default()).await;
    let mut headers = get("/", &[]);
    headers[0].1 = "POST";
    let head = frame(HEADERS, END_HEADERS, 1, &block(&headers));
    let nothing = frame(DATA, 0, 1, &[]);
    assert_eq!(verdict_or_alive(&world, &[&head[..], &nothing, &nothing].concat()).await, Alive);
    let flood = [head, nothing.repeat(20_000)].concat();
    assert_eq!(verdict(&world, &flood).await, Connection);
}

/// hyper hands none of these on, so that they are h2's. Each is tried at its edge: another version's value is seen here, and has
/// to be judged before it is written into `Config`'s documentation.
#[tokio::test]
async fn what_is_left_to_h2_is_what_the_configuration_says() {
    let mut headers = get("/", &[]);
    headers[0].1 = "POST";
    let head = frame(HEADERS, END_HEADERS, 1, &block(&headers));
    let data = |payload: &[u8], times: usize| [head.clone(), frame(DATA, 0, 1, payload).repeat(times)].concat();
    // Small DATA frames that nobody has read: 256 bytes each, a 32nd of the window together.
    for (window, most) in [(Config::default().connection_window, (1 << 19) / 255), (40_000, 25_600 / 255)] {
        let mut config = Config::default();
        config.connection_window = window;
        let world = silent(config).await;
        assert_eq!(verdict_or_alive(&world, &data(b"a", most)).await, Alive, "{window}");
        assert_eq!(verdict_or_alive(&world, &data(b"a", most + 1)).await, Connection, "{window}");
    }
    let world = silent(Config::default()).await;
    assert_eq!(verdict_or_alive(&world, &data(b"", 100)).await, Alive);
    assert_eq!(verdict_or_alive(&world, &data(b"", 101)).await, Connection);
    // CONTINUATION frames before the last one: the largest head has 60 KiB, for which 3 frames of 16 KiB do.
    let hello = self::world(Config::default()).await;
    let (first, more) = (frame(HEADERS, END_STREAM, 1, &block(&get("/", &[]))), frame(CONTINUATION, 0, 1, &[]));
    let end = frame(CONTINUATION, END_HEADERS, 1, &[]);
    assert_eq!(verdict(&hello, &[&first[..], &more.repeat(5), &end].concat()).await, Served);
    assert_eq!(verdict(&hello, &[&first[..], &more.repeat(6), &end].concat()).await, Connection);
    // Streams that were reset here: 50. They are known for a second of h2's own clock, which does not stand still.
    assert!(last_is_forgotten(&world, 51).await);
    let mut known = false;
    for _ in 0..20 {
        known = known || !last_is_forgotten(&world, 50).await;
    }
    assert!(known);
}

/// Whether of so many streams that were reset for their peer's errors the last one is not known any more: what still comes for
/// one that is known is passed over without a word.
async fn last_is_forgotten(world: &World, reset: u32) -> bool {
    let mut tcp = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    tcp.write_all(&[hello, provoked_resets(PROVOCATIONS[2], reset)].concat()).await.unwrap();
    let mut resets = 0;
    while resets < reset {
        let (kind, ..) = within(next(&mut tcp)).await.unwrap();
        resets += u32::from(kind == RST_STREAM);
    }
    let mut late = frame(DATA, 0, 2 * reset - 1, b"late");
    // The answer to a ping may overtake what is said of a stream; not that to the one after it.
    for _ in 0..2 {
        late.extend(frame(PING, 0, 0, b"so far.."));
        tcp.write_all(&late).await.unwrap();
        late.clear();
        loop {
            let (kind, flags, ..) = within(next(&mut tcp)).await.unwrap();
            resets += u32::from(kind == RST_STREAM);
            if kind == PING && flags & ACK != 0 {
                break;
            }
        }
    }
    resets > reset
}

#[tokio::test]
async fn floods_of_control_frames_end_the_connection() {
    let unlimited = {
        let mut config = Config::default();
        config.max_control_frames = None;
        world(config).await
    };
    let limited = world(Config::default()).await;
    for (kind, payload) in [
        (PING, &[1; 8][..]),
        (SETTINGS, &[]),
        (PRIORITY, &[0, 0, 0, 0, 16]),
        (WINDOW_UPDATE, &[0, 0, 0, 1]),
        (0x77, b"what"),
    ] {
        let stream = if kind == PRIORITY { 7 } else { 0 };
        let one = frame(kind, 0, stream, payload);
        assert_eq!(verdict_or_alive(&limited, &one.repeat(500)).await, Alive, "{kind}: a few are no flood");
        let before = limited.server.stats().refused(Refusal::Flood);
        assert_eq!(verdict_or_alive(&limited, &one.repeat(10_000)).await, Connection, "{kind}");
        assert_eq!(limited.server.stats().refused(Refusal::Flood), before + 1, "{kind}");
        assert_eq!(verdict_or_alive(&unlimited, &one.repeat(10_000)).await, Alive, "{kind}: the control");
    }
    assert_eq!(limited.plain(Http::Two).await.get("/").await.unwrap().0, 200);
}

#[tokio::test]
async fn who_does_not_read_the_answers_to_a_flood_is_not_read_from() {
    let mut config = Config::default();
    config.max_control_frames = None;
    let world = world(config).await;
    let written = Arc::new(AtomicUsize::new(0));
    let (count, address) = (written.clone(), world.address);
    let flood = spawn(async move {
        let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        tcp.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
        let pings = frame(PING, 0, 0, &[1; 8]).repeat(1000);
        let mut at = 0;
        loop {
            let written = tcp.write(&pings[at..]).await.unwrap();
            count.fetch_add(written, Ordering::Relaxed);
            at = (at + written) % pings.len();
        }
    });
    let mut other = world.plain(Http::Two).await;
    let mut before = usize::MAX;
    // What the sockets hold comes through; then the peer waits, and others are served.
    while written.load(Ordering::Relaxed) != before {
        before = written.load(Ordering::Relaxed);
        assert!(before < 64 << 20, "{before} bytes were read");
        for _ in 0..200 {
            assert_eq!(within(other.get("/")).await.unwrap().0, 200);
        }
    }
    assert!(before > 0 && !flood.is_finished());
    flood.abort();
}

#[tokio::test]
async fn more_headers_than_allowed_are_refused() {
    for (limit, count, want) in [(100, 90, 200), (100, 120, 431), (200, 120, 200), (10, 20, 431)] {
        let mut config = Config::default();
        config.max_headers = limit;
        let world = world(config).await;
        for version in [Http::One, Http::Two] {
            let mut request = plain_get("/");
            for _ in 0..count {
                request.headers_mut().append("x-many", "1".parse().unwrap());
            }
            let response = within(world.plain(version).await.send(request)).await.unwrap();
            assert_eq!(response.status(), want, "{version:?}: {count} of {limit}");
        }
    }
}

#[tokio::test]
async fn more_requests_than_allowed_do_not_reach_the_application() {
    for (most, second) in [(Some(1), 503), (None, 200)] {
        let mut config = Config::default();
        config.max_requests = most;
        let (began, mut begins) = mpsc::channel(8);
        let (open, gate) = watch::channel(false);
        let service = tower::service_fn(move |request: http::Request<mesh_server::Body>| {
            let (began, mut gate) = (began.clone(), gate.clone());
            async move {
                if request.uri().path() == "/slow" {
                    began.send(()).await.unwrap();
                    gate.wait_for(|open| *open).await.unwrap();
                }
                text("done")
            }
        });
        let world = World::start(policy(InboundTls::Permissive), config, service).await;
        let mut busy = world.plain(Http::Two).await;
        let slow = spawn(busy.send(plain_get("/slow")));
        within(begins.recv()).await.unwrap();
        let mut other = world.plain(Http::One).await;
        assert_eq!(within(other.get("/")).await.unwrap().0, second);
        open.send_replace(true);
        let answer = within(slow).await.unwrap().unwrap();
        // The place is free when the body has ended.
        assert_eq!(within(read(answer)).await.unwrap(), (200, "done".to_owned()));
        assert_eq!(within(other.get("/")).await.unwrap().0, 200);
    }
}

#[tokio::test]
async fn when_not_all_can_be_served_those_that_give_way_are_shed_first() {
    let adaptive = mesh_core::policy::AdaptiveConcurrency {
        min_rtt: mesh_core::policy::MinRtt::Fixed(std::time::Duration::from_secs(1)),
        min_limit: 10,
        ..crate::filters::adaptive()
    };
    let share = |percent: f64| PerMillion::from_percent(percent).unwrap();
    let header = HeaderMatcher {
        name: HeaderKey::parse("x-priority").unwrap(),
        value: HeaderMatch::Present(true),
        invert: false,
        treat_missing_as_empty: false,
    };
    let classes = || {
        vec![
            Priority::new(share(20.0)).path(PathMatch::Prefix("/batch/".into())),
            Priority::new(share(50.0)).header(header.clone()),
        ]
    };
    for (limits, classes) in [(true, classes()), (false, classes()), (true, Vec::new())] {
        let mut config = Config::default();
        if limits {
            config.max_requests = Some(10);
        } else {
            config.adaptive_concurrency = Some(adaptive.clone());
        }
        let alike = classes.is_empty();
        config.priorities = classes;
        let (began, mut begins) = mpsc::channel(32);
        let (open, gate) = watch::channel(false);
        let service = tower::service_fn(move |_: http::Request<mesh_server::Body>| {
            let (began, mut gate) = (began.clone(), gate.clone());
            async move {
                began.send(()).await.unwrap();
                gate.wait_for(|open| *open).await.unwrap();
                text("done")
            }
        });
        let world = World::start(policy(InboundTls::Permissive), config, service).await;
        let mut client = world.plain(Http::Two).await;
        let mut served = Vec::new();
        // How many of a class come through when they ask one after the other; the third may give way and does not.
        for (path, marked, most) in [("/batch/a", false, 2), ("/b", true, 5), ("/c", false, 10)] {
            let mut refused = false;
            while !refused {
                let mut request = plain_get(path);
                if marked {
                    request.headers_mut().insert("x-priority", "low".parse().unwrap());
                }
                let mut answer = spawn(client.send(request));
                tokio::select! {
                    Some(()) = begins.recv() => served.push(answer),
                    answer = &mut answer => {
                        assert_eq!(answer.unwrap().unwrap().status(), 503);
                        refused = true;
                    }
                }
            }
            assert_eq!(served.len(), if alike { 10 } else { most }, "{path}");
        }
        open.send_replace(true);
        for answer in served {
            assert_eq!(within(answer).await.unwrap().unwrap().status(), 200);
        }
    }
}
