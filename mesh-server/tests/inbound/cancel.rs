//! Futures of the server dropped at every point at which they can be (R39), as callers that go away have them dropped:
//! whatever was begun, nothing stays counted, and the next request finds its place free.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tower::{Layer, ServiceExt};

use mesh_core::authz::{CheckRequest, CheckResponse, Checking, ExternalAuthorizer, ExternalAuthorizers};
use mesh_core::error::BoxError;
use mesh_core::policy::{
    AdaptiveConcurrency, AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, CheckedBody,
    HttpFilter, HttpFilterKind, InboundState, InboundTls, Permission, Principal,
};
use mesh_server::debug::DebugServer;
use mesh_server::{Body, Config, ServerBuilder};
use mesh_testkit::drop_after;

use crate::filters::adaptive;
use crate::kit::{Http, World, client_tls, eventually, get, listener, policy, spawn, text, within};

/// Lets everybody in, after a while, who sent a whole body.
#[derive(Debug)]
struct Slow;

impl ExternalAuthorizer for Slow {
    fn body(&self) -> Option<CheckedBody> {
        let max_bytes = 64.try_into().unwrap();
        Some(CheckedBody { max_bytes, allow_partial: false, as_bytes: false })
    }

    fn check(&self, _: CheckRequest) -> Checking<'_> {
        Box::pin(async {
            pause().await;
            Ok(CheckResponse::allowed())
        })
    }
}

/// The same for requests whose body nobody reads.
#[derive(Debug)]
struct Headless;

impl ExternalAuthorizer for Headless {
    fn check(&self, request: CheckRequest) -> Checking<'_> {
        Box::pin(async move {
            pause().await;
            drop(request);
            Ok(CheckResponse::allowed())
        })
    }
}

struct One<A>(Arc<A>);

impl<A: ExternalAuthorizer> ExternalAuthorizers for One<A> {
    fn authorizer(&self, _: &AuthorizerProvider) -> Option<Arc<dyn ExternalAuthorizer>> {
        Some(self.0.clone())
    }
}

async fn pause() {
    for _ in 0..3 {
        tokio::task::yield_now().await;
    }
}

/// Answers after a while, in parts.
async fn in_parts<B>(
    _: Request<B>,
) -> Result<Response<impl http_body::Body<Data = Bytes, Error = BoxError>>, BoxError> {
    pause().await;
    let parts = stream::unfold(0, |part| async move {
        pause().await;
        (part < 3).then(|| (Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"part"))), part + 1))
    });
    Ok(Response::new(StreamBody::new(Box::pin(parts))))
}

/// Somebody is asked about every request, and one at a time may be in flight, by two limits.
fn narrow(limited: bool) -> InboundState {
    let mut listener = listener(InboundTls::Permissive);
    let rule = AuthorizationRule {
        name: "r".to_owned(),
        permissions: vec![Permission::Any],
        principals: vec![Principal::Any],
    };
    let custom = AuthorizationAction::Custom(AuthorizerProvider::named("opa"));
    listener.authorization = vec![AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("p", custom) }];
    if limited {
        let one = AdaptiveConcurrency { max_limit: 1, ..adaptive() };
        let kind = HttpFilterKind::AdaptiveConcurrency(Some(one));
        listener.filters = vec![HttpFilter { name: "one".into(), kind }];
    }
    InboundState::Ready(Arc::new(listener))
}

fn one_place() -> Config {
    let mut config = Config::default();
    config.max_requests = Some(1);
    config
}

#[tokio::test]
async fn a_request_dropped_at_any_point_gives_its_places_back_r39() {
    for (limited, config) in [(true, Config::default()), (false, one_place())] {
        let settings = |server: ServerBuilder| server.authorizers(Arc::new(One(Arc::new(Headless))));
        let never_called = tower::service_fn(|_| async { text("over a connection") });
        let world = World::start_with(narrow(limited), config, settings, never_called).await;
        let service = world.server.inbound_layer().layer(tower::service_fn(in_parts::<Empty<Bytes>>));
        let ask = || service.clone().oneshot(get("/"));
        let whole = async || {
            let answer = ask().await.unwrap();
            let status = answer.status();
            answer.into_body().collect().await.unwrap();
            status
        };
        let mut points = 0;
        for times in 0.. {
            let done = drop_after(times, whole()).await;
            assert_eq!(whole().await, 200, "limited: {limited}, dropped after {times} polls");
            points += 1;
            if done.is_some() {
                break;
            }
        }
        assert!(points > 15, "{points}");
        // The control: the place of one that is in flight is taken, to the end of its body.
        let unread = ask().await.unwrap();
        assert_eq!((unread.status().as_u16(), whole().await.as_u16()), (200, 503));
        drop(unread);
        assert_eq!(whole().await, 200);
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_at_any_byte_leaves_no_place_taken_r39() {
    let settings = |server: ServerBuilder| server.authorizers(Arc::new(One(Arc::new(Slow))));
    let service = tower::service_fn(in_parts::<Body>);
    let world = World::start_with(narrow(false), one_place(), settings, service).await;
    let request = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n4\r\nmore\r\n0\r\n\r\n";
    let status = async || {
        let mut client = world.plain(Http::Two).await;
        within(client.get("/")).await.unwrap().0
    };
    for sent in 0..=request.len() {
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        tcp.write_all(&request.as_bytes()[..sent]).await.unwrap();
        // As far as it comes with this.
        pause().await;
        drop(tcp);
        within(async { while status().await != 200 {} }).await;
    }
    // The control: one that stays, with half a body, has the only place.
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(&request.as_bytes()[..request.len() - 5]).await.unwrap();
    within(async { while status().await != 503 {} }).await;
    drop(tcp);
    within(async { while status().await != 200 {} }).await;
}

#[tokio::test]
async fn a_connection_dropped_while_it_is_let_in_is_closed_r39() {
    let world = World::hello(InboundTls::Permissive).await;
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = door.local_addr().unwrap();
    let tls = client_tls(&world.ca.identity("default", "productpage"), Http::One);
    for times in 0.. {
        let tls = tokio_rustls::TlsConnector::from(tls.clone());
        let caller = spawn(async move {
            let tcp = TcpStream::connect(address).await.unwrap();
            let mut io = tls.connect("mesh".try_into().unwrap(), tcp).await?;
            io.write_all(b"GET / HTTP/1.1\r\n").await?;
            io.read_u8().await
        });
        let (tcp, peer) = within(door.accept()).await.unwrap();
        let accepted = within(drop_after(times, world.server.accept(tcp, peer))).await;
        let let_in = accepted.is_some();
        // It is let in, and dropped all the same.
        assert!(accepted.is_none_or(|accepted| accepted.is_some()), "it is welcome");
        assert!(within(caller).await.unwrap().is_err(), "dropped after {times} polls, it stayed open");
        if let_in {
            assert!(times > 3, "{times}");
            break;
        }
    }
}

#[tokio::test]
async fn a_debug_server_dropped_as_it_is_bound_leaves_its_address_free_r39() {
    // On an address of loopback that no other test uses, so that a port which was free stays so.
    let own = SocketAddr::from(([127, 39, 0, 2], 0));
    let address = TcpListener::bind(own).await.unwrap().local_addr().unwrap();
    for times in 0.. {
        let bound = drop_after(times, DebugServer::builder().bind(address)).await;
        let done = bound.is_some();
        if let Some(server) = bound {
            let server = server.unwrap();
            assert!(TcpListener::bind(address).await.is_err(), "control: while it is there the address is taken");
            drop(server);
        }
        within(async {
            while TcpListener::bind(address).await.is_err() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        if done {
            break;
        }
    }
}

#[tokio::test]
async fn a_raw_connection_dropped_at_any_point_is_not_counted_r39() {
    for times in 0..9 {
        let world =
            World::start_raw(policy(InboundTls::Permissive), Config::default(), move |mut connection| async move {
                // Reads, writes, and is dropped in the middle of either.
                drop_after(times, async {
                    let mut byte = [0; 1];
                    while connection.read_exact(&mut byte).await.is_ok() {
                        pause().await;
                        let _ = connection.write_all(&byte).await;
                    }
                })
                .await;
            })
            .await;
        let counted = || {
            let mut sum = (0, 0);
            world.metrics.visit_tcp(|_, _, series| {
                sum.0 += series.opened();
                sum.1 += series.closed();
            });
            sum
        };
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        tcp.write_all(b"abc").await.unwrap();
        within(async {
            while counted().0 == 0 {
                tokio::task::yield_now().await
            }
        })
        .await;
        eventually(|| (counted() == (1, 1)).then_some(())).await;
        // A reset is as good as an end.
        let _ = within(tcp.read_to_end(&mut Vec::new())).await;
    }
    // The control: one that stays is counted as open.
    let world = World::start_raw(policy(InboundTls::Permissive), Config::default(), |connection| async move {
        std::future::pending::<()>().await;
        drop(connection);
    })
    .await;
    let open = || {
        let mut open = false;
        world.metrics.visit_tcp(|_, _, series| open |= series.opened() == 1 && series.closed() == 0);
        open
    };
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    tcp.write_all(b"a").await.unwrap();
    eventually(|| open().then_some(())).await;
}
