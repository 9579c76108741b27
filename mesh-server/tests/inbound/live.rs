//! Requests that are being served while policy changes.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tower_layer::Layer;
use tower_service::Service;

use mesh_core::error::BoxError;
use mesh_core::id::TrustDomain;
use mesh_core::identity::{TrustBundle, TrustBundles};
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, InboundListener, InboundState, InboundTls, PathMatch,
    Permission, Principal, StringMatcher,
};
use mesh_server::{Config, Server};
use mesh_testkit::{TestCa, clock};

use crate::kit::{Client, Http, World, get, listener, policy, read, spawn, text, within};

/// A server whose answers are a stream that the test feeds: each gets what is sent.
struct Streams {
    world: World,
    feed: watch::Sender<u32>,
}

impl Streams {
    /// `by_hand` = in a loop of the application's own.
    async fn start(unwelcome_limit: Duration, by_hand: bool) -> Self {
        let (feed, fed) = watch::channel(0);
        let mut config = Config::default();
        config.unwelcome_limit = unwelcome_limit;
        config.drain_limit = Duration::from_secs(3600);
        config.lame_duck = Duration::from_millis(10);
        let mut world = World::start(policy(InboundTls::Permissive), config, fed_by(fed.clone())).await;
        if by_hand {
            world.address = serve_by_hand(world.server.clone(), fed_by(fed)).await;
        }
        Self { world, feed }
    }

    /// A stream that somebody has open.
    async fn open(&self, account: &str, path: &str, version: Http) -> (Client, Response<Incoming>) {
        let identity = self.world.ca.identity("default", account);
        let mut client = self.world.mutual_as(&identity, version).await.unwrap();
        let answer = within(client.send(get(path))).await.unwrap();
        assert_eq!(answer.status(), 200);
        (client, answer)
    }

    fn publish(&self, authorization: Vec<AuthorizationPolicy>) {
        let mut listener = listener(InboundTls::Permissive);
        listener.authorization = authorization;
        self.world.policy.publish(InboundState::Ready(Arc::new(listener)));
    }

    /// What is sent now comes out of a stream.
    async fn flows(&self, answer: &mut Response<Incoming>) {
        let mut next = 0;
        self.feed.send_modify(|now| {
            *now += 1;
            next = *now;
        });
        let frame = within(answer.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), next.to_string());
    }
}

fn fed_by<B>(
    fed: watch::Receiver<u32>,
) -> impl Service<
    http::Request<B>,
    Response = Response<impl http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static>,
    Error = BoxError,
    Future: Send + 'static,
> + Clone
+ Send
+ 'static {
    tower::service_fn(move |_| {
        let fed = fed.clone();
        async move {
            let frames = futures_util::stream::unfold(fed, |mut fed| async move {
                fed.changed().await.ok()?;
                let now = *fed.borrow_and_update();
                Some((Ok::<_, BoxError>(Frame::data(Bytes::from(now.to_string()))), fed))
            });
            Ok::<_, BoxError>(Response::new(StreamBody::new(frames)))
        }
    })
}

async fn serve_by_hand<S, RB>(server: Server, service: S) -> SocketAddr
where
    S: Service<http::Request<Incoming>, Response = Response<RB>, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send + 'static,
    RB: http_body::Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    spawn(async move {
        while let Ok((tcp, peer)) = listener.accept().await {
            let (server, service) = (server.clone(), service.clone());
            spawn(async move {
                let Some(connection) = server.accept(tcp, peer).await else { return };
                let service = TowerToHyperService::new(connection.layer().layer(service));
                let io = TokioIo::new(connection);
                let _ = match io.inner().is_http2() {
                    true => server.http2().serve_connection(io, service).await,
                    false => server.http1().serve_connection(io, service).await,
                };
            });
        }
    });
    address
}

/// The stream ends, and with an error: nobody takes it for whole.
async fn ends(answer: &mut Response<Incoming>) {
    within(async {
        while let Some(frame) = answer.frame().await {
            if frame.is_err() {
                return;
            }
        }
        panic!("it ended as if it were whole");
    })
    .await;
}

fn denied(permission: Permission, account: &str) -> AuthorizationPolicy {
    let who = StringMatcher::exact(format!("spiffe://cluster.local/ns/default/sa/{account}"));
    let rule = AuthorizationRule {
        name: "rule".to_owned(),
        permissions: vec![permission],
        principals: vec![Principal::Authenticated(Some(who))],
    };
    AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("denied", AuthorizationAction::Deny) }
}

#[tokio::test]
async fn s51_a_stream_ends_when_a_policy_comes_that_refuses_its_caller_and_others_go_on() {
    for (version, by_hand) in [(Http::One, false), (Http::Two, false), (Http::One, true), (Http::Two, true)] {
        let streams = Streams::start(Duration::from_millis(20), by_hand).await;
        let (_refused, mut refused) = streams.open("refused", "/", version).await;
        let (_welcome, mut welcome) = streams.open("welcome", "/", version).await;
        streams.flows(&mut refused).await;
        streams.publish(vec![denied(Permission::Any, "refused")]);
        ends(&mut refused).await;
        // The controls: somebody else's stream, and one whose policy is published anew and is the same.
        streams.publish(vec![denied(Permission::Any, "refused"), denied(Permission::Any, "a third one")]);
        let (_third, mut third) = streams.open("fourth", "/", version).await;
        streams.publish(vec![denied(Permission::Any, "refused"), denied(Permission::Any, "fourth")]);
        ends(&mut third).await;
        while within(welcome.frame()).await.unwrap().unwrap().into_data().unwrap() != streams.feed.borrow().to_string()
        {
        }
        streams.flows(&mut welcome).await;
        assert_eq!(streams.world.mutual(version).await.send(get("/")).await.unwrap().status(), 200);
    }
}

#[tokio::test]
async fn s51_the_time_that_a_narrower_policy_leaves_is_over_with_strict() {
    for version in [Http::One, Http::Two] {
        let streams = Streams::start(Duration::from_secs(3600), true).await;
        let tcp = TcpStream::connect(streams.world.address).await.unwrap();
        let mut client = Client::over(tcp, version).await.unwrap();
        let mut answer = within(client.send(get("/"))).await.unwrap();
        streams.world.policy.publish(InboundState::Ready(Arc::new(denying(Principal::Any))));
        // The control: it has time.
        streams.flows(&mut answer).await;
        streams.flows(&mut answer).await;
        streams.world.policy.publish(policy(InboundTls::Strict));
        ends(&mut answer).await;
    }
}

#[tokio::test]
async fn s51_the_time_that_another_name_leaves_is_over_when_its_root_is_taken_out() {
    let domain = |name: &str| TrustDomain::new(name).unwrap();
    for version in [Http::One, Http::Two] {
        let streams = Streams::start(Duration::from_secs(3600), true).await;
        let world = &streams.world;
        let (_client, mut answer) = streams.open("web", "/", version).await;
        let publish_root = |root: &TestCa| {
            let root = TrustBundle::new([root.root().clone()]).unwrap();
            let mut bundles = TrustBundles::single(domain("other.test"), root);
            bundles.alias(domain("cluster.local"), domain("other.test"));
            world.identity.publish(Some(Arc::new(world.ca.identity("default", "reviews").trusting(bundles))));
        };
        publish_root(&world.ca);
        // The control: it has time.
        streams.flows(&mut answer).await;
        streams.flows(&mut answer).await;
        publish_root(&TestCa::new());
        ends(&mut answer).await;
    }
}

/// A connection that is old has the time of what is in flight, and no longer than policy and trust leave it.
#[tokio::test]
async fn s51_policy_and_trust_are_heard_of_a_connection_that_is_old_already() {
    for (version, distrust) in [(Http::One, false), (Http::Two, false), (Http::One, true), (Http::Two, true)] {
        let streams = Streams::start(Duration::from_millis(20), false).await;
        let mut old = listener(InboundTls::Permissive);
        old.limits.max_connection_age = Some(Duration::from_secs(1));
        streams.world.policy.publish(InboundState::Ready(Arc::new(old)));
        let (_client, mut answer) = streams.open("web", "/", version).await;
        streams.flows(&mut answer).await;
        tokio::time::pause();
        clock::pass(Duration::from_secs(2)).await;
        tokio::time::resume();
        // The control: it has `drain_limit`, for which nobody here waits.
        streams.flows(&mut answer).await;
        streams.flows(&mut answer).await;
        if distrust {
            let stranger = TestCa::new();
            let bundles = TrustBundles::single(
                TrustDomain::new("cluster.local").unwrap(),
                TrustBundle::new([stranger.root().clone()]).unwrap(),
            );
            let own = streams.world.ca.identity("default", "reviews");
            streams.world.identity.publish(Some(Arc::new(own.trusting(bundles))));
        } else {
            streams.publish(vec![denied(Permission::Any, "web")]);
        }
        ends(&mut answer).await;
    }
}

#[tokio::test]
async fn s51_what_only_a_request_can_tell_is_asked_of_the_next_one() {
    for (version, by_hand) in [(Http::One, false), (Http::Two, false), (Http::One, true), (Http::Two, true)] {
        let streams = Streams::start(Duration::from_millis(20), by_hand).await;
        let (_client, mut admin) = streams.open("web", "/admin", version).await;
        streams.publish(vec![denied(Permission::Path(PathMatch::Exact("/admin".into())), "web")]);
        ends(&mut admin).await;
        let identity = streams.world.ca.identity("default", "web");
        let mut again = streams.world.mutual_as(&identity, version).await.unwrap();
        let answer = within(again.send(get("/public"))).await.unwrap();
        assert_eq!(answer.status(), 200);
        drop(answer);
        let mut again = streams.world.mutual_as(&identity, version).await.unwrap();
        assert_eq!(within(again.send(get("/admin"))).await.unwrap().status(), 403);
    }
}

#[tokio::test]
async fn a_change_of_policy_loses_no_request_that_ends_in_time() {
    for version in [Http::One, Http::Two] {
        let (began, mut begins) = mpsc::channel(8);
        let (open, gate) = watch::channel(false);
        let service = tower::service_fn(move |_| {
            let (began, mut gate) = (began.clone(), gate.clone());
            async move {
                began.send(()).await?;
                gate.wait_for(|open| *open).await?;
                text("done")
            }
        });
        let world = World::start(policy(InboundTls::Permissive), Config::default(), service).await;
        let mut client = world.mutual(version).await;
        let in_flight = spawn(client.send(get("/")));
        within(begins.recv()).await.unwrap();
        let mut refusing = listener(InboundTls::Permissive);
        refusing.authorization = vec![denied(Permission::Any, "productpage")];
        world.policy.publish(InboundState::Ready(Arc::new(refusing)));
        assert_eq!(within(world.mutual(version).await.get("/")).await.unwrap().0, 403);
        open.send_replace(true);
        let answer = within(in_flight).await.unwrap().unwrap();
        assert_eq!(within(read(answer)).await.unwrap(), (200, "done".to_owned()), "{version:?}");
        // And its connection has ended, or ends with the word that it does.
        within(client.ended).await.unwrap();
    }
}

#[tokio::test]
async fn an_http1_connection_that_leaves_says_so_to_a_request_that_is_on_its_way() {
    let mut config = Config::default();
    config.lame_duck = Duration::from_secs(3600);
    config.unwelcome_limit = Duration::from_secs(3600);
    let world =
        World::start(policy(InboundTls::Permissive), config, tower::service_fn(|_| async { text("hello") })).await;
    let mut idle = world.mutual(Http::One).await;
    assert_eq!(idle.get("/").await.unwrap().0, 200);
    let mut narrowed = listener(InboundTls::Permissive);
    narrowed.authorization = vec![denied(Permission::Path(PathMatch::Exact("/admin".into())), "productpage")];
    world.policy.publish(InboundState::Ready(Arc::new(narrowed)));
    let mut said = None;
    while said.is_none() {
        let answer: Response<Incoming> = within(idle.send(get("/"))).await.unwrap();
        assert_eq!(answer.status(), 200);
        said = answer.headers().get("connection").cloned();
        assert_eq!(within(read(answer)).await.unwrap().1, "hello");
    }
    assert_eq!(said.unwrap(), "close");
    within(idle.ended).await.unwrap();
}

/// Whoever does as told loses nothing.
#[tokio::test]
async fn a_loop_of_the_applications_own_hears_that_a_connection_has_to_leave() {
    let world = World::hello(InboundTls::Permissive).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, peer) = listener.accept().await.unwrap();
    let client = spawn(Client::over(tcp, Http::Two));
    let connection = within(world.server.accept(accepted, peer)).await.unwrap();
    let leaving = connection.leaving();
    let hello = tower::service_fn(|_: http::Request<Incoming>| async { text("hello") });
    let service = TowerToHyperService::new(connection.layer().layer(hello));
    let http2 = world.server.http2();
    let serving = async {
        let mut serving = std::pin::pin!(http2.serve_connection(TokioIo::new(connection), service));
        tokio::select! {
            ended = serving.as_mut() => return ended,
            () = leaving => serving.as_mut().graceful_shutdown(),
        }
        serving.await
    };
    let asking = async {
        let mut client = client.await.unwrap().unwrap();
        assert_eq!(client.get("/").await.unwrap(), (200, "hello".to_owned()));
        world.policy.publish(InboundState::Ready(Arc::new(denying(Principal::Any))));
        client.ended.await.unwrap();
    };
    let (ended, ()) = within(async { tokio::join!(serving, asking) }).await;
    assert!(ended.is_ok(), "an orderly end");
}

/// A listener that denies this caller all.
fn denying(who: Principal) -> InboundListener {
    let rule = AuthorizationRule { name: "r".to_owned(), permissions: vec![Permission::Any], principals: vec![who] };
    let policy = AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("p", AuthorizationAction::Deny) };
    InboundListener { authorization: vec![policy], ..listener(InboundTls::Permissive) }
}

#[tokio::test]
async fn s51_a_connection_that_the_application_took_over_is_cut_too() {
    for refused in [true, false] {
        let (world, mut tcp, mut io) = took_over(Config::default()).await;
        // The application waits for bytes that do not come.
        let waiting = spawn(async move {
            let mut byte = [0; 1];
            let read = io.read_exact(&mut byte).await.map(|_| byte[0]);
            (read, io)
        });
        let who = if refused { Principal::Any } else { Principal::Authenticated(None) };
        world.policy.publish(InboundState::Ready(Arc::new(denying(who))));
        if refused {
            assert!(within(waiting).await.unwrap().0.is_err());
        } else {
            // The control: it is as good as before, through a drain as well.
            world.drain.drain();
            tcp.write_all(b"x").await.unwrap();
            let (read, mut io) = within(waiting).await.unwrap();
            assert_eq!(read.unwrap(), b'x');
            io.write_all(b"y").await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_connection_that_the_application_took_over_has_an_age_too() {
    for age in [Some(Duration::from_secs(600)), None] {
        let mut config = Config::default();
        config.max_connection_age = age;
        let (_world, mut tcp, mut io) = took_over(config).await;
        let pass = async |time| {
            tokio::time::pause();
            clock::pass(Duration::from_secs(time)).await;
            tokio::time::resume();
        };
        // The age varies by a tenth, and then there are the 22 s of the drain limit.
        pass(539).await;
        tcp.write_all(b"x").await.unwrap();
        assert_eq!(within(io.read_u8()).await.unwrap(), b'x');
        pass(660 + 23 - 539).await;
        if age.is_none() {
            // The control: for ever.
            tcp.write_all(b"y").await.unwrap();
            assert_eq!(within(io.read_u8()).await.unwrap(), b'y');
            continue;
        }
        let ended = within(io.read_u8()).await.unwrap_err();
        assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionAborted);
        drop(io);
        let _ = within(tcp.read_to_end(&mut Vec::new())).await;
    }
}

#[tokio::test]
async fn a_server_that_leaves_waits_for_no_connection_that_was_cut_and_is_kept() {
    let (mut world, mut tcp, io) = took_over(Config::default()).await;
    world.policy.publish(InboundState::Ready(Arc::new(denying(Principal::Any))));
    // The caller hears that it is cut; the application does not ask.
    let _ = within(tcp.read(&mut [0; 1])).await;
    world.drain.drain();
    within(&mut world.serving).await.unwrap().unwrap();
    drop(io);
}

/// A caller that does not read would keep a writer waiting, and so the connection open.
#[tokio::test]
async fn s51_it_is_cut_while_the_application_waits_to_write_and_counts_for_as_long_as_it_has_it() {
    let mut config = Config::default();
    config.max_connections = 1;
    let (world, _silent, mut io) = took_over(config).await;
    let (blocked, full) = oneshot::channel();
    let mut blocked = Some(blocked);
    let waiting = spawn(async move {
        let ended = std::future::poll_fn(|cx| {
            loop {
                match std::task::ready!(std::pin::Pin::new(&mut io).poll_write(cx, &[0; 64 << 10])) {
                    Ok(_) => {}
                    Err(ended) => return std::task::Poll::Ready(ended),
                }
            }
        });
        let mut ended = std::pin::pin!(ended);
        let ended = std::future::poll_fn(|cx| {
            let polled = ended.as_mut().poll(cx);
            blocked.take().filter(|_| polled.is_pending()).map(|blocked| blocked.send(()));
            polled
        })
        .await;
        (ended, io)
    });
    within(full).await.unwrap();
    world.policy.publish(InboundState::Ready(Arc::new(denying(Principal::Any))));
    let (ended, io) = within(waiting).await.unwrap();
    assert_eq!(ended.kind(), std::io::ErrorKind::ConnectionAborted);
    let ask = async || {
        let mut client = Client::over(TcpStream::connect(world.address).await?, Http::One).await?;
        Ok::<_, BoxError>(client.get("/").await?)
    };
    assert!(within(ask()).await.is_err(), "it is open still");
    drop(io);
    within(async { while ask().await.is_err() {} }).await;
}

/// A server and a connection of which both ends are in the test's hands after an upgrade.
async fn took_over(mut config: Config) -> (World, TcpStream, TokioIo<hyper::upgrade::Upgraded>) {
    let (taken, mut took) = mpsc::channel(1);
    let service = tower::service_fn(move |mut request: http::Request<mesh_server::Body>| {
        let taken = taken.clone();
        async move {
            let upgrade = hyper::upgrade::on(&mut request);
            spawn(async move {
                // Nobody takes over what is refused.
                let Ok(upgraded) = upgrade.await else { return };
                taken.send(TokioIo::new(upgraded)).await.unwrap();
            });
            let switching = Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
            Ok::<_, BoxError>(switching.body(http_body_util::Empty::<Bytes>::new()).unwrap())
        }
    });
    config.unwelcome_limit = Duration::from_millis(20);
    let world = World::start(policy(InboundTls::Permissive), config, service).await;
    let mut tcp = TcpStream::connect(world.address).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    tcp.write_all(request).await.unwrap();
    let mut head = [0; 12];
    within(tcp.read_exact(&mut head)).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 101");
    let io = within(took.recv()).await.unwrap();
    (world, tcp, io)
}
