//! Requests that no client library writes: paths, authorities and lengths of more than one meaning.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use mesh_core::policy::InboundTls;
use mesh_server::Config;

use crate::kit::{World, policy, text, within};
use crate::raw::Verdict::{self, Refused, Served, Stream};
use crate::raw::{get, request, verdict};
use crate::transport::raw;

type Case = (&'static str, Vec<u8>, Verdict);

/// Runs every case and names all that differ.
async fn hold(world: &World, cases: Vec<Case>) {
    let mut wrong = Vec::new();
    for (name, bytes, want) in cases {
        let got = verdict(world, &bytes).await;
        if got != want {
            wrong.push(format!("{name}: {got:?}, not {want:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[tokio::test]
async fn s12_a_path_without_a_leading_slash_reaches_nobody() {
    let served = Arc::new(AtomicUsize::new(0));
    let count = served.clone();
    let service = tower::service_fn(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
        async { text("hello") }
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    // A form that no path has: h2 resets the stream, and nobody is asked.
    let grpc: &[(&str, &str)] = &[("content-type", "application/grpc")];
    for more in [grpc, &[]] {
        assert_eq!(verdict(&world, &request(1, &get("/pkg.Svc/Method", more))).await, Served);
        assert_eq!(served.swap(0, Ordering::Relaxed), 1);
        for path in ["pkg.Svc/Method", "pkg.Svc"] {
            assert_eq!(verdict(&world, &request(1, &get(path, more))).await, Stream, "{path}");
            assert_eq!(served.load(Ordering::Relaxed), 0, "{path}");
        }
    }
}

#[tokio::test]
async fn s14_no_path_is_so_long_that_its_end_is_lost() {
    let mut config = Config::default();
    config.max_header_bytes = 1 << 24;
    let service = tower::service_fn(|request: http::Request<mesh_server::Body>| async move {
        assert_eq!(request.uri().query(), Some("end"), "the end of the path is lost");
        text("hello")
    });
    let world = World::start(policy(InboundTls::Permissive), config, service).await;
    // Up to 65,534 bytes of a target are taken by the library: what is below that is refused by the limit alone.
    for (length, http1_says, http2_says) in [
        (50_000, "200", Served),
        (61_500, "431", Refused(431)),
        (63_000, "431", Refused(431)),
        (65_000, "431", Refused(431)),
        (65_534, "431", Refused(431)),
        (65_536, "431", Refused(431)),
        (70_000, "431", Refused(431)),
    ] {
        let path = format!("/{}?end", "a".repeat(length));
        let got = verdict(&world, &request(1, &get(&path, &[]))).await;
        assert_eq!(got, http2_says, "HTTP/2, {length}");
        let got = http1(&world, &format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
        assert_eq!(got, http1_says, "HTTP/1.1, {length}");
    }
}

#[tokio::test]
async fn s20_two_authorities_are_refused_and_the_first_of_uri_and_host_counts() {
    let service = tower::service_fn(|request: http::Request<mesh_server::Body>| async move {
        assert_eq!(request.uri().authority().map(|a| a.as_str()), Some("reviews"));
        assert!(!request.headers().contains_key("host"), "the application must not see the other authority");
        text("hello")
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let with = |more: &[(&'static str, &'static str)]| request(1, &get("/", more));
    hold(
        &world,
        vec![
            ("one", with(&[]), Served),
            ("a Host that says something else", with(&[("host", "secret.test")]), Served),
            ("two :authority", with(&[(":authority", "secret.test")]), Stream),
            ("two Host", with(&[("host", "reviews"), ("host", "secret.test")]), Refused(400)),
        ],
    )
    .await;
    let world = World::hello(InboundTls::Permissive).await;
    let one = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert_eq!(http1(&world, one).await, "200");
    assert_eq!(http1(&world, &one.replace("host: a", "host: a\r\nhost: b")).await, "400");
}

#[tokio::test]
async fn s73_no_message_has_two_lengths() {
    let world = World::hello(InboundTls::Permissive).await;
    let post = |framing: &str, body: &str| {
        format!("POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{framing}\r\n\r\n{body}")
    };
    assert_eq!(http1(&world, &post("content-length: 1", "x")).await, "200");
    assert_eq!(http1(&world, &post("transfer-encoding: chunked", "1\r\nx\r\n0\r\n\r\n")).await, "200");
    for framing in [
        "content-length: 1\r\ncontent-length: 2",
        "content-length: 1, 2",
        "content-length: +1",
        "content-length: 0x1",
        "content-length: -1",
        "content-length : 1",
        "content-length:\r\n 1",
        "content-length: 6\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 6",
        "transfer-encoding: chunked\r\nx: y\r\nContent-Length:0",
        "content-length: 0\r\nx: y\r\nTRANSFER-ENCODING:\tChunked",
        "transfer-encoding: chunked\r\ncontent-length: x",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        "transfer-encoding: identity\r\ntransfer-encoding: chunked",
        "transfer-encoding: identity",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: xchunked",
        "transfer-encoding: \x0bchunked",
    ] {
        for body in ["x", "0\r\n\r\n"] {
            assert_eq!(http1(&world, &post(framing, body)).await, "400", "{framing:?}");
        }
    }
    let old = "POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    assert_eq!(http1(&world, old).await, "400");
}

/// Wherever on a connection the message with two lengths stands: what is before it is answered, and nothing after it.
#[tokio::test]
async fn s73_what_one_reader_takes_for_a_body_is_a_request_to_nobody() {
    let service = tower::service_fn(|request: http::Request<mesh_server::Body>| async move {
        let path = request.uri().path().to_owned();
        // Read, so that the next request is.
        http_body_util::BodyExt::collect(request.into_body()).await?;
        text(format!("asked {path};"))
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let hidden = "GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let last = "GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let (length, size) = (hidden.len() + 5, hidden.len());
    let cl_te = format!("content-length: {length}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n{hidden}");
    let te_cl = format!("transfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n{size:x}\r\n{hidden}\r\n0\r\n\r\n");
    let before = [
        String::new(),
        "GET /first HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(),
        format!("POST /first HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n{hidden}"),
        format!(
            "POST /first HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{size:x}\r\n{hidden}\r\n0\r\n\r\n"
        ),
    ];
    for first in &before {
        for twice in [&cl_te, &te_cl] {
            let answers =
                raw(world.address, format!("{first}POST /two HTTP/1.1\r\nhost: a\r\n{twice}{last}").as_bytes()).await;
            let asked: Vec<_> = answers.match_indices("asked ").map(|(at, _)| &answers[at + 6..]).collect();
            let only_first =
                asked.len() == usize::from(!first.is_empty()) && asked.iter().all(|it| it.starts_with("/first;"));
            assert!(only_first && answers.contains("HTTP/1.1 400"), "{first}{twice}: {answers}");
        }
        // The controls: with one length all is as it is meant.
        let once = format!("content-length: {size}\r\n\r\n{hidden}");
        let answers =
            raw(world.address, format!("{first}POST /two HTTP/1.1\r\nhost: a\r\n{once}{last}").as_bytes()).await;
        assert!(answers.contains("asked /two;") && answers.ends_with("asked /last;"), "{answers}");
        assert!(!answers.contains("smuggled"), "{answers}");
    }
}

/// A line feed alone ends no line of trailers: hyper reads on, and what follows is looked at as what hyper takes it for.
#[tokio::test]
async fn s73_trailers_hide_no_message_with_two_lengths() {
    let service = tower::service_fn(|request: http::Request<mesh_server::Body>| async move {
        let path = request.uri().path().to_owned();
        let _ = http_body_util::BodyExt::collect(request.into_body()).await;
        text(format!("asked {path};"))
    });
    let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
    let first = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n";
    let two = "POST /two HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n";
    let right = two.replace("content-length: 5", "connection: close");
    for (trailers, second, reached) in [
        ("\nCONNECT a:1 HTTP/1.1\r\n\r\n", two, false),
        ("\r\n", two, false),
        // The control.
        ("x: y\r\n\r\n", &right, true),
    ] {
        let answers = raw(world.address, format!("{first}{trailers}{second}").as_bytes()).await;
        assert_eq!(answers.contains("asked /two;"), reached, "{trailers:?}: {answers}");
    }
}

/// The status of what an HTTP/1.1 server answers to these bytes; empty if it says nothing.
async fn http1(world: &World, bytes: &str) -> String {
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    let _ = tcp.write_all(bytes.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = within(tcp.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned()
}
