//! Code of the application that panics beneath a client (R37): the request that met it ends, nothing stays counted, and the
//! next one is served.

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::Request;
use http_body::Frame;
use mesh_client::{Breakers, Client, ClientBuilder, InFlight, Io};
use mesh_core::balance::{Draw, Pick, Picker};
use mesh_core::error::BoxError;
use mesh_core::policy::{Address, UpstreamProtocol};
use mesh_testkit::{EchoServer, FixedSource, policy};

use super::{TARGET, cluster, fetch};

/// Panics the first time.
#[derive(Clone, Debug, Default)]
struct Once(Arc<AtomicBool>);

impl Once {
    fn meet(&self) {
        assert!(self.0.swap(true, Ordering::Relaxed), "as ordered");
    }
}

impl Picker for Once {
    fn pick(&self, _: &Pick<'_>, _: &mut Draw<'_>) -> Option<usize> {
        self.meet();
        Some(0)
    }
}

/// A body of one chunk.
struct Upload {
    once: Once,
    sent: bool,
}

impl http_body::Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.once.meet();
        let first = !std::mem::replace(&mut self.sent, true);
        Poll::Ready(first.then(|| Ok(Frame::data(Bytes::from_static(b"chunk")))))
    }
}

async fn dial(address: Address) -> std::io::Result<Box<dyn Io>> {
    let Address::Socket(address) = address else { unreachable!("it is one") };
    Ok(Box::new(tokio::net::TcpStream::connect(address).await?))
}

type Build = fn(ClientBuilder, Once) -> ClientBuilder;

/// Where it panics: in code that the builder is given, or else in the request's body.
const PLACES: [(&str, Option<Build>); 5] = [
    ("a picker", Some(|client, once| client.picker(move |_, _, _| Some(Box::new(once.clone()))))),
    (
        "the making of a picker",
        Some(|client, once| {
            client.picker(move |_, _, _| {
                once.meet();
                None
            })
        }),
    ),
    (
        "a connector",
        Some(|client, once| {
            client.connector(move |address| {
                once.meet();
                dial(address)
            })
        }),
    ),
    (
        "a connection that is being made",
        Some(|client, once| {
            client.connector(move |address| {
                let once = once.clone();
                async move {
                    tokio::task::yield_now().await;
                    once.meet();
                    dial(address).await
                }
            })
        }),
    ),
    ("a body", None),
];

#[tokio::test]
async fn code_of_the_application_that_panics_costs_its_request_and_leaves_nothing_behind_r37() {
    for protocol in [UpstreamProtocol::Http1, UpstreamProtocol::Http2] {
        for (place, build) in PLACES {
            let server = EchoServer::start("a").await;
            let mut cluster = cluster("test");
            cluster.connection.protocol = protocol;
            let source = FixedSource::of(TARGET, policy::snapshot_of(cluster, [server.endpoint()]));
            let (breakers, once) = (Breakers::default(), Once::default());
            let client = Client::builder(source).breakers(breakers.clone()).config_wait(Duration::from_secs(60));
            let client = match build {
                Some(build) => build(client, once.clone()).build(),
                None => client.build(),
            };
            let upload = Upload { once: if build.is_none() { once.clone() } else { spent() }, sent: false };
            let request = Request::post(format!("http://{TARGET}/")).body(upload).unwrap();
            let met = within(AssertUnwindSafe(client.send(request)).catch_unwind()).await;
            assert!(once.0.load(Ordering::Relaxed), "{place}: control: it was met");
            drop(met);
            // As any connection that could not be made it is tried again after a while.
            within(async { while fetch(&client, "/").await.is_err() {} }).await;
            for _ in 0..3 {
                let answer = within(fetch(&client, "/")).await;
                assert_eq!(answer.unwrap().status(), 200, "{protocol:?}, {place}");
            }
            for state in breakers.snapshot() {
                assert_eq!([state.default, state.high], [InFlight::default(); 2], "{protocol:?}, {place}");
            }
        }
    }
}

/// One that panics no more.
fn spent() -> Once {
    Once(Arc::new(AtomicBool::new(true)))
}

/// Waits for what must come.
async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it must come")
}
