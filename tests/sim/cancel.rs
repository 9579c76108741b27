//! Futures of the client dropped at every point at which they can be (R39): whatever was begun, nothing stays counted,
//! and the next request finds its place free.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, join};
use futures_util::{FutureExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use mesh_client::{Breakers, Client, ClientBuilder, InFlight, Io, LimitLayer};
use mesh_core::error::BoxError;
use mesh_core::policy::{
    AdaptiveConcurrency, Address, Balancer, CircuitBreakers, Discovery, Endpoint, FAULT_FILTER, FailureAccrual, Fault,
    FaultDelay, HedgePolicy, HttpFilter, HttpFilterKind, HttpProxy, MeshTls, MinRtt, Mirror, PerMillion,
    PerMillionRatio, RetryBudget, RetryOn, RetryPolicy, RouteAction, Snapshot, UpstreamTls,
};
use mesh_core::retry::RetryThrottling;
use mesh_core::source::{Resolve, Resolved, Resolving};
use mesh_testkit::{CertificateSpec, FixedSource, TestCa, clock, crypto, drop_after};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, copy_bidirectional};
use tokio::runtime::Handle;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tower::{Layer, ServiceExt};

use crate::each_seed;
use crate::fleet::{Door, Fleet, Handler, Wire};
use crate::load::{Policy, TARGET, read, request};

pub(crate) const TICK: Duration = Duration::from_millis(5);

/// Answers after a tick: `/fail` with 503, everything else with three chunks and trailers, a tick apart. `/now` is
/// answered at once.
fn in_parts() -> Handler {
    Arc::new(|request| {
        async move {
            let (fails, now) = (request.uri().path() == "/fail", request.uri().path() == "/now");
            let _ = request.into_body().collect().await;
            if !now {
                clock::pass(TICK).await;
            }
            if fails {
                let mut response = Response::new(Empty::new().boxed_unsync());
                *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                return response;
            }
            let parts = stream::unfold(0, |part| async move {
                clock::pass(TICK).await;
                let frame = match part {
                    0..3 => Frame::data(Bytes::from_static(b"part")),
                    3 => Frame::trailers(HeaderMap::from_iter([(http::header::AGE, 1.into())])),
                    _ => return None,
                };
                Some((Ok(frame), part + 1))
            });
            Response::new(StreamBody::new(parts).boxed_unsync())
        }
        .boxed()
    })
}

/// A use of the client.
struct Case {
    name: &'static str,
    policy: Policy,
    act: fn(Client) -> BoxFuture<'static, ()>,
    /// What policy has beside.
    shape: fn(&mut Snapshot),
    build: fn(ClientBuilder) -> ClientBuilder,
    /// What it began goes on for a while without it.
    detached: bool,
}

impl Case {
    fn new(name: &'static str, policy: Policy, act: fn(Client) -> BoxFuture<'static, ()>) -> Self {
        Self { name, policy, act, shape: |_| {}, build: |client| client, detached: false }
    }
}

async fn fetch(client: Client, path: &'static str) {
    if let Ok(answer) = client.send(request(Method::GET, path, "")).await {
        let _ = read(answer).await;
    }
}

async fn upload(client: Client) {
    let chunks = stream::unfold(0, |chunk| async move {
        clock::pass(TICK).await;
        (chunk < 3).then(|| (Ok::<_, BoxError>(Frame::data(Bytes::from_static(b"chunk"))), chunk + 1))
    });
    let upload = Request::post(format!("http://{TARGET}/")).body(StreamBody::new(Box::pin(chunks))).unwrap();
    if let Ok(answer) = client.send(upload).await {
        let _ = read(answer).await;
    }
}

async fn grpc(client: Client) {
    let call = Request::post(format!("http://{TARGET}/s/M")).header("content-type", "application/grpc");
    let call = call.header("te", "trailers").header("grpc-timeout", "1S").body(String::from("\0\0\0\0\0")).unwrap();
    if let Ok(answer) = client.send(call).await {
        let _ = read(answer).await;
    }
}

async fn channel(client: Client) {
    let call = Request::post("/s/M").header("content-type", "application/grpc").header("te", "trailers");
    let call = call.body(tonic::body::Body::empty()).unwrap();
    let Ok(answer) = client.channel(TARGET).unwrap().oneshot(call).await;
    let _ = read(answer).await;
}

async fn warmed_channel(client: Client) {
    let _ = client.channel(TARGET).unwrap().warm().await;
    channel(client).await;
}

/// A request written and its answer read by hand.
async fn bytes(client: Client) {
    let Ok(mut connection) = client.connect(TARGET).await else { return };
    let request = b"GET / HTTP/1.1\r\nhost: fleet\r\nconnection: close\r\n\r\n";
    let mut answer = Vec::new();
    if connection.write_all(request).await.is_ok() && connection.read_to_end(&mut answer).await.is_ok() {
        assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
    }
    let _ = connection.shutdown().await;
}

/// A copy of each request to the servers that it goes to itself.
pub(crate) fn mirrored(snapshot: &mut Snapshot) {
    let mirror = Mirror { cluster: "fleet".into(), share: PerMillion::ALL, shadow_host: false };
    let routes = Arc::make_mut(&mut snapshot.routes);
    let RouteAction::Forward(forward) = &mut routes.virtual_hosts[0].routes[0].action else { panic!("it forwards") };
    forward.mirrors = vec![mirror];
}

/// One request at a time waits a tick before it is sent.
fn delayed(snapshot: &mut Snapshot) {
    let delay = Some(FaultDelay::of(TICK, PerMillion::ALL));
    let kind = HttpFilterKind::Fault(Some(Fault { delay, max_active: Some(1), ..Fault::default() }));
    Arc::make_mut(&mut snapshot.listener).filters.push(HttpFilter { name: FAULT_FILTER.into(), kind });
}

fn two_at_once(client: Client) -> BoxFuture<'static, ()> {
    join(fetch(client.clone(), "/"), fetch(client, "/")).map(drop).boxed()
}

fn cases() -> Vec<Case> {
    let one_connection = |mut policy: Policy| {
        policy.cluster.breaker = CircuitBreakers { max_connections: Some(1), ..CircuitBreakers::default() };
        policy.cluster.connection.max_concurrent_streams = Some(1);
        policy
    };
    let hedge = HedgePolicy { initial_requests: 2, additional_request: PerMillion::NONE, on_per_try_timeout: true };
    let hedging = Policy { hedge: Some(hedge), ..Policy::http2().retrying(2, Some(TICK / 2)) };
    let case = Case::new;
    vec![
        case("HTTP/1.1", Policy::default(), |client| fetch(client, "/").boxed()),
        case("HTTP/2", Policy::http2(), |client| fetch(client, "/").boxed()),
        case("a body that is streamed", Policy::default().retrying(1, None), |client| upload(client).boxed()),
        case("gRPC", Policy::http2(), |client| grpc(client).boxed()),
        case("retries", Policy::default().retrying(3, None), |client| fetch(client, "/fail").boxed()),
        case("tries that take too long", Policy::http2().retrying(2, Some(TICK / 2)), |client| {
            fetch(client, "/").boxed()
        }),
        case("tries side by side", hedging, |client| fetch(client, "/fail").boxed()),
        case("waiting for a connection", one_connection(Policy::default()), two_at_once),
        case("waiting for a stream", one_connection(Policy::http2()), two_at_once),
        Case {
            build: |client| client.queue_wait(TICK),
            ..case("waiting a tick for a connection", one_connection(Policy::default()), two_at_once)
        },
        Case {
            build: |client| client.fail_fast(TICK),
            ..case("failing fast", one_connection(Policy::default()), two_at_once)
        },
        case("a raw connection", Policy::default(), |client| async move { drop(client.connect(TARGET).await) }.boxed()),
        case("connections made beforehand", Policy::http2(), |client| {
            async move {
                let _ = client.warm(TARGET).await;
                fetch(client, "/").await;
            }
            .boxed()
        }),
        case("bytes over a raw connection", Policy::default(), |client| bytes(client).boxed()),
        case("a channel", Policy::http2(), |client| channel(client).boxed()),
        case("a channel's connections made beforehand", Policy::http2(), |client| warmed_channel(client).boxed()),
        Case { shape: delayed, ..case("a delay", Policy::default(), |client| fetch(client, "/").boxed()) },
        Case {
            shape: mirrored,
            detached: true,
            ..case("a mirror", Policy::default(), |client| fetch(client, "/").boxed())
        },
    ]
}

/// What a client counts as under way.
pub(crate) fn counted(client: &Client, breakers: &Breakers) -> Vec<String> {
    let mut found = Vec::new();
    for state in breakers.snapshot() {
        for in_flight in [state.default, state.high] {
            if in_flight != InFlight::default() {
                found.push(format!("{in_flight:?}"));
            }
        }
    }
    let dump = client.dump();
    for endpoint in dump.destinations.iter().flat_map(|it| &it.clusters).flat_map(|it| &it.endpoints) {
        if endpoint.in_flight > 0 {
            found.push(format!("{} in flight at {}", endpoint.in_flight, endpoint.address));
        }
    }
    if dump.mirrors > 0 {
        found.push(format!("{} copies", dump.mirrors));
    }
    found
}

/// A client that may have two requests under way, for nobody can be left behind unnoticed then.
fn client_of(fleet: &Fleet, policy: &Policy, breakers: &Breakers) -> Client {
    builder(fleet, FixedSource::of(TARGET, snapshot_of(fleet, policy, |_| {})), breakers).build()
}

pub(crate) fn snapshot_of(fleet: &Fleet, policy: &Policy, shape: fn(&mut Snapshot)) -> Snapshot {
    let min_rtt = MinRtt::Fixed(Duration::from_secs(1));
    let two = AdaptiveConcurrency { min_limit: 2, max_limit: 2, min_rtt, ..AdaptiveConcurrency::default() };
    let mut snapshot = policy.snapshot(fleet.endpoints());
    let kind = HttpFilterKind::AdaptiveConcurrency(Some(two));
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "two".into(), kind }];
    shape(&mut snapshot);
    snapshot
}

pub(crate) fn builder(fleet: &Fleet, source: Arc<FixedSource>, breakers: &Breakers) -> ClientBuilder {
    let fleet = fleet.clone();
    Client::builder(source).breakers(breakers.clone()).connector(move |address| fleet.connect(&address))
}

/// Drops a use of the client at each point at which it can be.
async fn drop_everywhere(case: Case) {
    let Case { name, policy, act, shape, build, detached } = case;
    let wire = if policy.cluster.connection.protocol == Policy::default().cluster.connection.protocol {
        Wire::Http1
    } else {
        Wire::Http2(100)
    };
    let fleet = Fleet::with(3, wire, in_parts());
    let breakers = Breakers::default();
    let source = FixedSource::of(TARGET, snapshot_of(&fleet, &policy, shape));
    let one = || build(builder(&fleet, source.clone(), &breakers)).build();
    let client = one();
    let mut points = 0;
    // With connections to be made, and with those that are there.
    for fresh in [true, false] {
        for times in 0.. {
            let client = if fresh { one() } else { client.clone() };
            let done = drop_after(times, act(client.clone())).await.is_some();
            if !detached {
                assert_eq!(counted(&client, &breakers), [""; 0], "{name}: dropped after {times} polls");
            }
            clock::pass(Duration::from_secs(1)).await;
            assert_eq!(counted(&client, &breakers), [""; 0], "{name}: a while after {times} polls");
            points += 1;
            if done {
                break;
            }
            assert!(times < 1000, "{name}: it never ends");
        }
    }
    println!("{name}: dropped at {points} points");
    assert!(points > 4, "{name}: {points}");
    let answered = client.send(request(Method::GET, "/now", "")).await.unwrap();
    let seen = counted(&client, &breakers);
    assert!(seen.len() >= 2, "control: what is under way is seen, {seen:?}");
    assert_eq!(seen.iter().any(|what| what.ends_with("copies")), detached, "control: and so are copies, {seen:?}");
    assert!(read(answered).await.is_ok(), "{name}: its places are free");
}

#[test]
fn a_future_dropped_at_any_point_leaves_nothing_behind_r39() {
    each_seed(1, || async {
        for case in cases() {
            drop_everywhere(case).await;
        }
    });
}

#[test]
fn a_delay_dropped_at_any_point_gives_its_place_back_r39() {
    each_seed(1, || async {
        let (fleet, breakers) = (Fleet::with(1, Wire::Http1, in_parts()), Breakers::default());
        let source = FixedSource::of(TARGET, snapshot_of(&fleet, &Policy::default(), delayed));
        let client = builder(&fleet, source, &breakers).build();
        let took = async || {
            let begun = Instant::now();
            client.send(request(Method::GET, "/now", "")).await.unwrap();
            begun.elapsed()
        };
        assert!(took().await >= TICK);
        for times in 0..20 {
            drop_after(times, fetch(client.clone(), "/")).await;
            let took = took().await;
            assert!(took >= TICK, "dropped after {times} polls, the next one was delayed by {took:?}");
        }
        let mut waiting = client.send(request(Method::GET, "/", ""));
        assert!((&mut waiting).now_or_never().is_none());
        let took = took().await;
        assert!(took < TICK, "control: while one has the place the next is not delayed, {took:?}");
    });
}

#[test]
fn a_request_within_a_limit_dropped_at_any_point_gives_its_place_back_r39() {
    each_seed(1, || async {
        let (fleet, breakers) = (Fleet::with(1, Wire::Http1, in_parts()), Breakers::default());
        let min_rtt = MinRtt::Fixed(Duration::from_secs(1));
        let one = AdaptiveConcurrency { min_limit: 1, max_limit: 1, min_rtt, ..AdaptiveConcurrency::default() };
        for limit in [LimitLayer::requests(1), LimitLayer::adaptive(&one)] {
            let limited = limit.layer(client_of(&fleet, &Policy::default(), &breakers));
            let send = |path| limited.clone().oneshot(request(Method::GET, path, ""));
            for times in 0..40 {
                let whole = async {
                    let answer = send("/").await.unwrap();
                    let _ = answer.into_body().collect().await;
                };
                drop_after(times, whole).await;
                let answer = send("/now").await;
                assert!(answer.is_ok(), "{limit:?}, dropped after {times} polls: {:?}", answer.err());
            }
            let _unread = send("/now").await.unwrap();
            assert!(send("/now").await.is_err(), "control: {limit:?} is one");
        }
    });
}

#[test]
fn a_wait_for_the_first_configuration_dropped_at_any_point_leaves_nothing_behind_r39() {
    each_seed(1, || async {
        let (fleet, breakers) = (Fleet::with(1, Wire::Http1, in_parts()), Breakers::default());
        let snapshot = || snapshot_of(&fleet, &Policy::default(), |_| {});
        let mut in_vain = 0;
        // The configuration comes, or it does not within the time that there is.
        for comes in [true, false] {
            for times in 0..20 {
                let source = FixedSource::new();
                let client = builder(&fleet, source.clone(), &breakers).config_wait(3 * TICK).build();
                let arrival = async {
                    clock::pass(TICK).await;
                    if comes {
                        source.set_snapshot(TARGET, snapshot());
                    }
                };
                let waiting = join(fetch(client.clone(), "/"), fetch(client.clone(), "/fail"));
                let done = drop_after(times, join(waiting, arrival)).await.is_some();
                in_vain += usize::from(!done);
                assert_eq!(counted(&client, &breakers), [""; 0], "{times} polls");
                source.set_snapshot(TARGET, snapshot());
                clock::pass(Duration::from_secs(1)).await;
                assert_eq!(counted(&client, &breakers), [""; 0], "a while after {times} polls");
                let answered = client.send(request(Method::GET, "/now", "")).await.unwrap();
                assert_eq!(counted(&client, &breakers).len(), 2, "control: what is under way is seen");
                assert!(read(answered).await.is_ok(), "{times} polls: its places are free");
            }
        }
        assert!(in_vain > 4, "dropped {in_vain} times before it ended");
    });
}

#[test]
fn a_probe_dropped_at_any_point_leaves_the_way_back_open_r39() {
    each_seed(1, || async {
        for times in 0..20 {
            let fleet = Fleet::with(1, Wire::Http1, in_parts());
            let mut policy = Policy::default();
            let penalty = Duration::from_secs(1);
            policy.cluster.accrual =
                Some(FailureAccrual { min_penalty: penalty, jitter: PerMillion::NONE, ..FailureAccrual::default() });
            let breakers = Breakers::default();
            let client = client_of(&fleet, &policy, &breakers);
            for _ in 0..7 {
                fetch(client.clone(), "/fail").await;
            }
            assert!(client.send(request(Method::GET, "/", "")).await.is_err(), "control: it is out");
            clock::pass(penalty + TICK).await;
            drop_after(times, fetch(client.clone(), "/")).await;
            // At once, and not when somebody's time is over.
            assert!(client.send(request(Method::GET, "/", "")).await.is_ok(), "dropped after {times} polls");
        }
    });
}

#[test]
fn a_connection_attempt_dropped_at_any_point_is_not_counted_r39() {
    each_seed(1, || async {
        for door in [Door::Shut, Door::Silent] {
            for wire in [Wire::Http1, Wire::Http2(100)] {
                let fleet = Fleet::with(2, wire, in_parts());
                fleet.iter().for_each(|server| server.change(|manner| manner.door = door));
                let mut policy = if matches!(wire, Wire::Http1) { Policy::default() } else { Policy::http2() };
                policy.cluster.connection.connect_timeout = TICK;
                let breakers = Breakers::default();
                let client = client_of(&fleet, &policy.retrying(2, None), &breakers);
                for times in 0..20 {
                    drop_after(times, fetch(client.clone(), "/")).await;
                    assert_eq!(counted(&client, &breakers), [""; 0], "{door:?}, {times} polls");
                    drop_after(times, async { drop(client.connect(TARGET).await) }).await;
                    assert_eq!(counted(&client, &breakers), [""; 0], "{door:?}, raw, {times} polls");
                    clock::pass(Duration::from_secs(1)).await;
                    assert!(breakers.snapshot().iter().all(|state| state.connections == 0), "{door:?}, {times} polls");
                }
            }
        }
    });
}

/// What there is to wait for before a connection stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    /// The address of an endpoint that is a name.
    Address,
    /// The endpoints of a cluster that is a name.
    Endpoints,
    Handshake,
    /// The proxy that connects to the endpoint.
    Proxy,
    /// The first of a list, which never answers (gRFC A61).
    List,
}

/// Every name stands for this address, after a tick.
#[derive(Debug)]
struct Slow(IpAddr);

impl Resolve for Slow {
    fn addresses<'r>(&'r self, _: &'r str) -> Resolving<'r, IpAddr> {
        Box::pin(async {
            clock::pass(TICK).await;
            Ok(Resolved { records: vec![self.0], ttl: None, lacks: None })
        })
    }
}

impl Before {
    fn client(self, fleet: &Fleet, policy: &Policy, ca: &Arc<TestCa>, breakers: &Breakers) -> Client {
        let SocketAddr::V4(address) = fleet.address(0, 0) else { unreachable!("the fleet's are") };
        let name = Endpoint::new(Address::Name { host: "fleet.test".into(), port: 80 });
        let mut policy = policy.clone();
        let mut endpoints = fleet.endpoints();
        match self {
            Self::Address => endpoints = vec![name],
            Self::Endpoints => {
                let all = mesh_testkit::policy::endpoints(&policy.cluster.name, vec![name]);
                policy.cluster.discovery = Discovery::StrictDns(Arc::new(all));
            }
            Self::Handshake => policy.cluster.tls = UpstreamTls::Mesh(MeshTls::default()),
            Self::List => {}
            Self::Proxy => {
                policy.cluster.proxy = Some(HttpProxy { default: Some(Address::Socket(fleet.address(0, 1))) });
            }
        }
        // Other addresses of the same server.
        let silent = fleet.address(0, 2);
        if self == Self::List {
            policy.cluster.balancer = Balancer::PickFirst { shuffle: false };
            endpoints.insert(0, Endpoint::new(Address::Socket(silent)));
        }
        let shown = ca.certified(&CertificateSpec::of(&ca.id("default", "fleet")));
        let acceptor = TlsAcceptor::from(Arc::new(ca.server_showing(shown, &[])));
        let fleet = fleet.clone();
        let connect = move |address: Address| {
            let (far, acceptor) = (fleet.connect(&address), acceptor.clone());
            async move {
                if self == Self::List && address == Address::Socket(silent) {
                    std::future::pending::<()>().await;
                }
                let far = far.await?;
                let (ours, theirs) = tokio::io::duplex(64 * 1024);
                match self {
                    Self::Address | Self::Endpoints | Self::List => return Ok(far),
                    Self::Handshake => drop(tokio::spawn(handshake(acceptor, theirs, far))),
                    Self::Proxy => drop(tokio::spawn(proxy(theirs, far))),
                }
                Ok(Box::new(ours) as Box<dyn Io>)
            }
        };
        Client::builder(FixedSource::of(TARGET, policy.snapshot(endpoints)))
            .crypto(crypto())
            .identity(ca.watched("default", "caller"))
            .resolver(Arc::new(Slow(IpAddr::V4(*address.ip()))))
            .breakers(breakers.clone())
            .connector(connect)
            .build()
    }
}

async fn handshake(acceptor: TlsAcceptor, near: DuplexStream, mut far: Box<dyn Io>) {
    // One that is given up is none of the server's business.
    if let Ok(mut near) = acceptor.accept(near).await {
        let _ = copy_bidirectional(&mut near, &mut far).await;
    }
}

async fn proxy(mut near: DuplexStream, mut far: Box<dyn Io>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = near.read_u8().await else { return };
        head.push(byte);
    }
    assert!(head.starts_with(b"CONNECT "), "{}", String::from_utf8_lossy(&head));
    for part in ["HTTP/1.1 200 ", "OK\r\n\r\n"] {
        clock::pass(TICK).await;
        if near.write_all(part.as_bytes()).await.is_err() {
            return;
        }
    }
    let _ = copy_bidirectional(&mut near, &mut far).await;
}

#[test]
fn a_connection_being_made_dropped_at_any_point_leaves_nothing_behind_r39() {
    let ca = Arc::new(TestCa::new());
    let tasks = || Handle::current().metrics().num_alive_tasks();
    each_seed(1, || async {
        for before in [Before::Address, Before::Endpoints, Before::Handshake, Before::Proxy, Before::List] {
            for (policy, wire) in [(Policy::default(), Wire::Http1), (Policy::http2(), Wire::Http2(100))] {
                let (fleet, breakers) = (Fleet::with(1, wire, in_parts()), Breakers::default());
                let alive = tasks();
                let mut points = 0;
                for times in 0.. {
                    let what = format!("{before:?}, {wire:?}, dropped after {times} polls");
                    let client = before.client(&fleet, &policy, &ca, &breakers);
                    let done = drop_after(times, fetch(client.clone(), "/")).await.is_some();
                    assert_eq!(counted(&client, &breakers), [""; 0], "{what}");
                    clock::pass(Duration::from_secs(1)).await;
                    assert_eq!(counted(&client, &breakers), [""; 0], "{what}, a while later");
                    let answered = client.send(request(Method::GET, "/now", "")).await.unwrap();
                    assert!(counted(&client, &breakers).len() >= 2, "control: what is under way is seen");
                    assert!(read(answered).await.is_ok(), "{what}: its places are free");
                    drop(client);
                    clock::pass(Duration::from_secs(2)).await;
                    let connections: u32 = breakers.snapshot().iter().map(|state| state.connections).sum();
                    assert_eq!((connections, fleet.open(), tasks()), (0, 0, alive), "{what}: nothing is left");
                    points += 1;
                    if done {
                        break;
                    }
                    assert!(times < 1000, "{what}: it never ends");
                }
                println!("{before:?}, {wire:?}: dropped at {points} points");
                assert!(points > 4, "{before:?}: {points}");
            }
        }
    });
}

/// What is left of a budget of one retry for each request: the tries of a second one, which fails as well.
#[test]
fn a_request_dropped_at_any_point_leaves_a_budget_as_a_failed_one_would_r39() {
    each_seed(1, || async {
        let ttl = Duration::from_secs(60);
        let budget = RetryBudget { retry_ratio: PerMillionRatio(1_000_000), min_retries_per_second: 0, ttl };
        let policy = Policy { budget: Some(budget), ..Policy::default().retrying(3, None) };
        let mut left = Vec::new();
        for times in 0.. {
            let (fleet, breakers) = (Fleet::with(1, Wire::Http1, in_parts()), Breakers::default());
            let client = client_of(&fleet, &policy, &breakers);
            let done = drop_after(times, fetch(client.clone(), "/fail")).await.is_some();
            clock::pass(Duration::from_secs(1)).await;
            assert_eq!(counted(&client, &breakers), [""; 0], "{times} polls");
            let tries = fleet.seen()[0];
            fetch(client.clone(), "/fail").await;
            let again = fleet.seen()[0] - tries - 1;
            // Two requests have earned two retries: of those the first one has made its own, or was about to. Before it
            // went anywhere it may not have earned one yet, and has cost none.
            let made = tries.saturating_sub(1);
            let wanted = if tries == 0 { 1..=2 } else { 1..=2 - made };
            assert!(wanted.contains(&again), "{tries} tries and {again} retries, {times} polls");
            left.push(again);
            if done {
                assert_eq!((tries, again), (2, 1), "control: one that failed has made its one retry");
                break;
            }
            assert!(times < 100, "it never ends");
        }
        println!("retries that were left: {left:?}");
        assert!(left.len() > 6 && left.contains(&2), "{left:?}");
    });
}

/// gRPC calls: `fail` is UNAVAILABLE, everything else OK, after a tick.
fn calls() -> Handler {
    Arc::new(|request| {
        async move {
            let status = if request.uri().path().ends_with("fail") { "14" } else { "0" };
            clock::pass(TICK).await;
            let response = Response::builder().header("content-type", "application/grpc");
            response.header("grpc-status", status).body(Empty::new().boxed_unsync()).unwrap()
        }
        .boxed()
    })
}

async fn call(client: Client, path: &'static str) {
    let call = Request::post(format!("http://{TARGET}{path}")).header("content-type", "application/grpc");
    if let Ok(answer) = client.send(call.header("te", "trailers").body(String::new()).unwrap()).await {
        let _ = read(answer).await;
    }
}

#[test]
fn calls_dropped_at_any_point_take_no_tokens_of_retries_r39() {
    each_seed(1, || async {
        let on = RetryOn { unavailable: true, ..RetryOn::default() };
        let policy = Policy { retry: Some(RetryPolicy::new(1, on)), ..Policy::http2() };
        let (fleet, breakers) = (Fleet::with(1, Wire::Http2(100), calls()), Breakers::default());
        let source = FixedSource::of(TARGET, policy.snapshot(fleet.endpoints()));
        let throttling = RetryThrottling::new(10, 0.001).unwrap();
        let client = builder(&fleet, source, &breakers).retry_throttling(throttling).build();
        let tries = async |path| {
            let before = fleet.seen()[0];
            call(client.clone(), path).await;
            fleet.seen()[0] - before
        };
        // More often than there are tokens; of those that fail before anybody knows.
        for path in ["/s/well", "/s/fail"] {
            let mut dropped = 0;
            for times in (0..40).map(|times| times % 20) {
                let begun = Instant::now();
                let done = drop_after(times, call(client.clone(), path)).await.is_some();
                dropped += u32::from(!done);
                if path == "/s/fail" && begun.elapsed() >= TICK {
                    break;
                }
                clock::pass(Duration::from_secs(1)).await;
            }
            println!("{dropped} calls to {path} dropped");
            assert_eq!(tries("/s/fail").await, 2, "there are tokens for a retry after calls to {path} were dropped");
        }
        // Control: calls that fail take them.
        for _ in 0..10 {
            call(client.clone(), "/s/fail").await;
        }
        assert_eq!(tries("/s/fail").await, 1, "control: there are none left");
    });
}
