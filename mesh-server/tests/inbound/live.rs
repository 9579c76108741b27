//! Requests that are being served while policy changes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use mesh_core::error::BoxError;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, InboundState, InboundTls, PathMatch, Permission,
    Principal, StringMatcher,
};
use mesh_server::Config;

use crate::kit::{Client, Http, World, get, listener, policy, read, spawn, text, within};

/// A server whose answers are a stream that the test feeds: each gets what is sent.
struct Streams {
    world: World,
    feed: watch::Sender<u32>,
}

impl Streams {
    async fn start(unwelcome_limit: Duration) -> Self {
        let (feed, fed) = watch::channel(0);
        let service = tower::service_fn(move |_| {
            let fed = fed.clone();
            async move {
                let frames = futures_util::stream::unfold(fed, |mut fed| async move {
                    fed.changed().await.ok()?;
                    let now = *fed.borrow_and_update();
                    Some((Ok::<_, BoxError>(Frame::data(Bytes::from(now.to_string()))), fed))
                });
                Ok::<_, BoxError>(Response::new(StreamBody::new(frames)))
            }
        });
        let mut config = Config::default();
        config.unwelcome_limit = unwelcome_limit;
        config.lame_duck = Duration::from_millis(10);
        Self { world: World::start(policy(InboundTls::Permissive), config, service).await, feed }
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
    for version in [Http::One, Http::Two] {
        let streams = Streams::start(Duration::from_millis(20)).await;
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
async fn s51_what_only_a_request_can_tell_is_asked_of_the_next_one() {
    for version in [Http::One, Http::Two] {
        let streams = Streams::start(Duration::from_millis(20)).await;
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

#[tokio::test]
async fn s51_a_connection_that_the_application_took_over_is_cut_too() {
    for refused in [true, false] {
        let (taken, mut took) = mpsc::channel(1);
        let service = tower::service_fn(move |mut request: http::Request<mesh_server::Body>| {
            let taken = taken.clone();
            async move {
                let upgrade = hyper::upgrade::on(&mut request);
                spawn(async move {
                    taken.send(hyper_util::rt::TokioIo::new(upgrade.await.unwrap())).await.unwrap();
                });
                let switching =
                    Response::builder().status(101).header("connection", "upgrade").header("upgrade", "echo");
                Ok::<_, BoxError>(switching.body(http_body_util::Empty::<Bytes>::new()).unwrap())
            }
        });
        let mut config = Config::default();
        config.unwelcome_limit = Duration::from_millis(20);
        let world = World::start(policy(InboundTls::Permissive), config, service).await;
        let mut tcp = TcpStream::connect(world.address).await.unwrap();
        let request = b"GET / HTTP/1.1\r\nhost: reviews\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        tcp.write_all(request).await.unwrap();
        let mut head = [0; 12];
        within(tcp.read_exact(&mut head)).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 101");
        let mut io = within(took.recv()).await.unwrap();
        // The application waits for bytes that do not come.
        let waiting = spawn(async move {
            let mut byte = [0; 1];
            let read = io.read_exact(&mut byte).await.map(|_| byte[0]);
            (read, io)
        });
        let who = if refused { Principal::Any } else { Principal::Authenticated(None) };
        let rule =
            AuthorizationRule { name: "r".to_owned(), permissions: vec![Permission::Any], principals: vec![who] };
        let mut changed = listener(InboundTls::Permissive);
        changed.authorization =
            vec![AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("p", AuthorizationAction::Deny) }];
        world.policy.publish(InboundState::Ready(Arc::new(changed)));
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
