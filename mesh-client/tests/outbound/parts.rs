//! Parts of an aggregate, and priorities of a cluster, that take no connection and refuse none: whoever waits for one waits as long
//! as connecting may take. Servers are streams in memory, and time stands still.

use std::collections::HashMap;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join, join_all};
use http::header::{COOKIE, SET_COOKIE};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use mesh_client::{Client, ClientBuilder, EndpointDump, Error, Io};
use mesh_core::error::{Code, Fault};
use mesh_core::id::ClusterName;
use mesh_core::policy::{
    Address, CircuitBreakers, Cluster, ClusterState, ConnectionOptions, Discovery, Endpoint, Endpoints, Forward,
    HedgePolicy, HttpFilter, HttpFilterKind, Listener, LocalityEndpoints, Mirror, PerMillion, RetryOn, RetryPolicy,
    RouteMatch, SessionSource, Snapshot, StatefulSession, TcpForward, UpstreamProtocol,
};
use mesh_core::source::{Resolve, ResolveError, Resolved, Resolving, Service};
use mesh_core::telemetry::Metrics;
use mesh_testkit::clock::pass;
use mesh_testkit::{FakeResolver, FixedSource, policy};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{TARGET, answer, cluster, fetch, forward_with, get, retrying, server_of};

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const TENTH: Duration = Duration::from_millis(100);
/// Of policy.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
pub(super) const PROTOCOLS: [UpstreamProtocol; 2] = [UpstreamProtocol::Http1, UpstreamProtocol::Http2];
const HOST: &str = "near.example.com";
pub(super) const NEAR: u16 = 1;
pub(super) const BESIDE: u16 = 2;
pub(super) const FAR: u16 = 9;

/// What an address does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// Nothing.
    Silent,
    /// It takes it.
    There,
    /// It refuses it.
    Refusing,
}

/// Servers by the last number of their address.
#[derive(Default)]
pub(super) struct World {
    at: Mutex<HashMap<u16, At>>,
    dials: Mutex<HashMap<u16, usize>>,
}

impl World {
    pub(super) fn with(silent: &[u16]) -> Arc<Self> {
        let world = Arc::<Self>::default();
        silent.iter().for_each(|port| world.set(*port, At::Silent));
        world
    }

    pub(super) fn set(&self, port: u16, at: At) {
        self.at.lock().insert(port, at);
    }

    pub(super) fn dials(&self, port: u16) -> usize {
        self.dials.lock().get(&port).copied().unwrap_or(0)
    }

    pub(super) fn client(
        self: &Arc<Self>,
        snapshot: Snapshot,
        protocol: Option<UpstreamProtocol>,
        metrics: &Arc<Metrics>,
    ) -> Client {
        let resolver = FakeResolver::new();
        resolver.hang(HOST);
        self.builder(FixedSource::of(TARGET, snapshot), protocol, metrics).resolver(resolver).build()
    }

    pub(super) fn builder(
        self: &Arc<Self>,
        source: Arc<FixedSource>,
        protocol: Option<UpstreamProtocol>,
        metrics: &Arc<Metrics>,
    ) -> ClientBuilder {
        let world = self.clone();
        let builder = Client::builder(source).metrics(metrics.clone());
        let random = Mutex::new(fastrand::Rng::with_seed(7));
        builder.random(move |below| random.lock().u64(..below)).connector(move |address| {
            let (world, port) = (world.clone(), port_of(&address));
            async move { world.connect(port, protocol).await }
        })
    }

    async fn connect(&self, port: u16, protocol: Option<UpstreamProtocol>) -> std::io::Result<Box<dyn Io>> {
        *self.dials.lock().entry(port).or_default() += 1;
        let at = self.at.lock().get(&port).copied().unwrap_or(At::There);
        match at {
            At::Silent => std::future::pending().await,
            At::Refusing => Err(std::io::ErrorKind::ConnectionRefused.into()),
            At::There => Ok(serve(port, protocol)),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "a server of this test")]
fn serve(port: u16, protocol: Option<UpstreamProtocol>) -> Box<dyn Io> {
    let (ours, mut theirs) = tokio::io::duplex(4096);
    match protocol {
        Some(protocol) => tokio::spawn(answer(theirs, protocol, move |request: Request<Incoming>| {
            let body = Empty::<Bytes>::new().map_err(|never| match never {});
            // A path that is a number is the status to answer with.
            let status = request.uri().path()[1..].parse().unwrap_or(200);
            Response::builder().status(status).header("x-echo-server", port.to_string()).body(body).unwrap()
        })),
        None => tokio::spawn(async move { _ = theirs.write_u16(port).await }),
    };
    Box::new(ours)
}

fn port_of(address: &Address) -> u16 {
    match address {
        Address::Socket(address) => address.port(),
        other => panic!("{other}"),
    }
}

pub(super) fn at(port: u16) -> Endpoint {
    Endpoint::new(Address::Socket(([10, 0, 0, 1], port).into()))
}

/// How a request may find another place to go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Form {
    /// Parts of an aggregate, the first with so many endpoints.
    Parts(u16),
    /// The same, the first a name that nobody answers for.
    Name,
    /// Priorities of one cluster.
    Priorities,
    /// There is none: the control.
    Alone,
}

const FORMS: [Form; 4] = [Form::Parts(1), Form::Parts(2), Form::Name, Form::Priorities];

pub(super) fn group(priority: u32, endpoints: Vec<Endpoint>) -> LocalityEndpoints {
    LocalityEndpoints { locality: Default::default(), priority, weight: NonZeroU32::MIN, endpoints }
}

pub(super) fn snapshot(form: Form, forward: Forward, protocol: UpstreamProtocol) -> Snapshot {
    let connection = ConnectionOptions { protocol, ..ConnectionOptions::default() };
    let of = |name: &str| Cluster { connection: connection.clone(), ..cluster(name) };
    let routes = policy::routes([policy::forward(RouteMatch::any(), forward)]);
    let all = Cluster { discovery: Discovery::Aggregate(vec!["near".into(), "far".into()]), ..of("test") };
    let of_parts = |near, endpoints| {
        let parts = [(all, vec![]), (near, endpoints), (of("far"), vec![at(FAR)])];
        policy::snapshot(routes.clone(), parts)
    };
    match form {
        Form::Parts(1) => of_parts(of("near"), vec![at(NEAR)]),
        Form::Parts(_) => of_parts(of("near"), vec![at(NEAR), at(BESIDE)]),
        Form::Name => {
            let name = Endpoint::new(Address::Name { host: HOST.into(), port: NEAR });
            let names = policy::endpoints(&"near".into(), vec![name]);
            of_parts(Cluster { discovery: Discovery::LogicalDns(names.into()), ..of("near") }, vec![])
        }
        Form::Priorities => {
            let localities = vec![group(0, vec![at(NEAR), at(BESIDE)]), group(1, vec![at(FAR)])];
            let found = Endpoints { localities, ..policy::endpoints(&"test".into(), vec![]) };
            let mut snapshot = policy::snapshot(routes, [(of("test"), vec![])]);
            change(&mut snapshot, "test", |_, endpoints| *endpoints = found);
            snapshot
        }
        Form::Alone => policy::snapshot(routes, [(of("test"), vec![at(NEAR), at(BESIDE)])]),
    }
}

pub(super) fn change(snapshot: &mut Snapshot, name: &str, change: impl FnOnce(&mut Cluster, &mut Endpoints)) {
    let state = snapshot.clusters.get_mut(&ClusterName::new(name)).unwrap();
    let ClusterState::Ready { cluster, endpoints } = state else { panic!("{state:?}") };
    change(Arc::make_mut(cluster), Arc::make_mut(endpoints));
}

/// Each request of this one has a connection of its own.
pub(super) fn one_each(form: Form, protocol: UpstreamProtocol) -> Snapshot {
    let mut snapshot = snapshot(form, forward_with(None), protocol);
    change(&mut snapshot, "near", |cluster, _| cluster.connection.max_requests_per_connection = Some(1));
    snapshot
}

/// The same for raw connections.
pub(super) fn raw(form: Form) -> Snapshot {
    let mut snapshot = snapshot(form, forward_with(None), UpstreamProtocol::Http1);
    let mut tcp = TcpForward::to("test".into());
    tcp.max_connect_attempts = NonZeroU32::new(3).unwrap();
    Arc::make_mut(&mut snapshot.listener).tcp = Some(tcp);
    snapshot
}

/// Who is there, and after which time, of a raw connection.
pub(super) async fn greeted(client: &Client) -> Result<(u16, Duration), Error> {
    let begun = Instant::now();
    let mut connection = client.connect(TARGET).await?;
    Ok((connection.read_u16().await.unwrap(), begun.elapsed()))
}

/// Until one answers; `within` that.
pub(super) async fn until(client: &Client, port: u16, within: Duration) {
    let begun = Instant::now();
    while ask(client).await.ok().is_none_or(|(server, _)| server != port.to_string()) {
        assert!(begun.elapsed() < within, "{port}");
        pass(TENTH).await;
    }
}

/// Who has answered, and after which time.
pub(super) async fn ask(client: &Client) -> Result<(String, Duration), Error> {
    let begun = Instant::now();
    let answer = fetch(client, "/").await?;
    Ok((server_of(&answer).to_owned(), begun.elapsed()))
}

pub(super) fn far(after: Duration) -> (String, Duration) {
    (FAR.to_string(), after)
}

/// Requests counted as answered by status, and all of them.
fn counted(metrics: &Metrics) -> (u64, u64) {
    let (mut well, mut all) = (0, 0);
    metrics.visit(|_, outcome, counters| {
        all += counters.requests();
        well += if outcome.code == 200 { counters.requests() } else { 0 };
    });
    (well, all)
}

#[tokio::test(start_paused = true)]
async fn what_takes_no_connection_and_refuses_none_costs_no_request_while_something_else_is_there() {
    for (form, protocol) in FORMS.into_iter().flat_map(|form| PROTOCOLS.map(|protocol| (form, protocol))) {
        let (world, metrics) = (World::with(&[NEAR, BESIDE]), Arc::<Metrics>::default());
        let client = world.client(snapshot(form, forward_with(None), protocol), Some(protocol), &metrics);
        // Those that nobody could have warned wait once, whatever they come across.
        for (answer, number) in join_all((0..20).map(|_| ask(&client))).await.into_iter().zip(0..) {
            assert_eq!(answer.unwrap(), far(CONNECT_TIMEOUT), "{number} of {form:?} {protocol:?}");
        }
        // What they waited for was not that one's time.
        let clusters = client.dump().destinations.into_iter().flat_map(|destination| destination.clusters);
        let answered = clusters.flat_map(|cluster| cluster.endpoints).find(|one| one.address == at(FAR).address);
        assert!(answered.unwrap().latency.unwrap() < SECOND, "{form:?} {protocol:?}");
        // Two minutes, in which its time is over more than once.
        for number in 0..1200 {
            let (server, took) = ask(&client).await.unwrap();
            // Of two endpoints one may have been left that nobody has tried.
            assert_eq!(server, FAR.to_string());
            assert!(took.is_zero(), "{number} of {form:?} {protocol:?}: {took:?}");
            pass(TENTH).await;
        }
        assert_eq!(counted(&metrics), (1220, 1220), "{form:?} {protocol:?}");
        if let Form::Name = form {
            continue;
        }
        world.set(NEAR, At::There);
        until(&client, NEAR, 45 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn where_there_is_nothing_else_it_costs_each() {
    for protocol in PROTOCOLS {
        let (world, metrics) = (World::with(&[NEAR, BESIDE]), Arc::<Metrics>::default());
        let client = world.client(snapshot(Form::Alone, forward_with(None), protocol), Some(protocol), &metrics);
        for answer in join_all((0..20).map(|_| ask(&client))).await {
            assert_eq!(answer.unwrap_err().code(), Code::CONNECT_TIMEOUT);
        }
        assert_eq!((counted(&metrics), world.dials(FAR)), ((0, 20), 0));
    }
}

#[tokio::test(start_paused = true)]
async fn a_strict_session_stays_with_an_endpoint_that_takes_no_connection() {
    for protocol in PROTOCOLS {
        let mut snapshot = snapshot(Form::Parts(1), forward_with(None), protocol);
        let source = SessionSource::Cookie { name: "sid".into(), path: "/".into(), ttl: Duration::ZERO };
        let kind = HttpFilterKind::Session(Some(StatefulSession { source, strict: true }));
        Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "session".into(), kind }];
        let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
        let client = || world.client(snapshot.clone(), Some(protocol), &metrics);
        let pinned = fetch(&client(), "/").await.unwrap();
        let cookie = pinned.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
        assert_eq!(server_of(&pinned), NEAR.to_string());
        world.set(NEAR, At::Silent);
        let with_cookie = || {
            let mut request = get("/");
            request.headers_mut().insert(COOKIE, cookie.parse().unwrap());
            request
        };
        let stays = client();
        assert_eq!(stays.send(with_cookie()).await.unwrap_err().code(), Code::CONNECT_TIMEOUT);
        assert_eq!(world.dials(FAR), 0);
        // Control: one that begins goes on.
        assert_eq!(ask(&client()).await.unwrap(), far(CONNECT_TIMEOUT));
    }
}

#[tokio::test(start_paused = true)]
async fn what_refuses_costs_no_request_either() {
    for (form, protocol) in FORMS[..2].iter().flat_map(|form| PROTOCOLS.map(|protocol| (*form, protocol))) {
        let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
        [NEAR, BESIDE].into_iter().for_each(|port| world.set(port, At::Refusing));
        let client = world.client(snapshot(form, forward_with(None), protocol), Some(protocol), &metrics);
        for _ in 0..600 {
            assert_eq!(ask(&client).await.unwrap(), far(Duration::ZERO), "{form:?} {protocol:?}");
            pass(TENTH).await;
        }
        // Whoever looks whether they are back does so less and less often.
        assert!((2..40).contains(&(world.dials(NEAR) + world.dials(BESIDE))), "{form:?} {protocol:?}");
        assert_eq!(counted(&metrics), (600, 600));
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_leaves_the_part_that_has_let_no_try_in() {
    let on = RetryOn { gateway_error: true, connect_failure: true, ..RetryOn::default() };
    let retry = RetryPolicy { per_try_timeout: Some(2 * SECOND), ..retrying(2, on) };
    for protocol in PROTOCOLS {
        let (world, metrics) = (World::with(&[NEAR]), Arc::<Metrics>::default());
        let forward = forward_with(Some(retry.clone()));
        let client = world.client(snapshot(Form::Parts(1), forward, protocol), Some(protocol), &metrics);
        for answer in join_all((0..20).map(|_| ask(&client))).await {
            let (server, took) = answer.unwrap();
            assert_eq!(server, FAR.to_string());
            assert!((2 * SECOND..3 * SECOND).contains(&took), "{took:?}");
        }
        assert_eq!(counted(&metrics), (20, 20));
        // Control: without another part each of the three tries waits as long.
        let forward = forward_with(Some(retry.clone()));
        let alone =
            World::with(&[NEAR, BESIDE]).client(snapshot(Form::Alone, forward, protocol), Some(protocol), &metrics);
        let error = ask(&alone).await.unwrap_err();
        assert_eq!((error.code(), error.attempts()), (Code::TIMEOUT, 3), "{error}");
    }
}

/// However seldom they come, and whoever limits their time: nobody else is there when connecting has failed.
#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_for_a_connection_warns_others() {
    for (form, protocol) in FORMS.into_iter().flat_map(|form| PROTOCOLS.map(|protocol| (form, protocol))) {
        let (world, metrics) = (World::with(&[NEAR, BESIDE]), Arc::<Metrics>::default());
        let forward = Forward { timeout: Some(3 * SECOND), ..forward_with(None) };
        let client = world.client(snapshot(form, forward, protocol), Some(protocol), &metrics);
        let mut lost = 0;
        for _ in 0..20 {
            match ask(&client).await {
                Ok(answer) => assert_eq!(answer, far(Duration::ZERO)),
                Err(error) => {
                    assert_eq!(error.code(), Code::TIMEOUT);
                    lost += 1;
                }
            }
            pass(60 * SECOND).await;
        }
        // One is enough for a part. Of a priority each endpoint may have to be come across.
        let most = if let Form::Priorities = form { 2 } else { 1 };
        assert!((1..=most).contains(&lost), "{form:?} {protocol:?}: {lost}");
        // Those who did not wait for long say nothing.
        let (world, metrics) = (World::with(&[NEAR, BESIDE]), Arc::<Metrics>::default());
        let client = world.client(snapshot(form, forward_with(None), protocol), Some(protocol), &metrics);
        for _ in 0..4 {
            assert!(tokio::time::timeout(9 * TENTH, ask(&client)).await.is_err());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tries_side_by_side_go_on_to_another_part_as_well() {
    let hedge = HedgePolicy { initial_requests: 2, additional_request: PerMillion::NONE, on_per_try_timeout: false };
    for protocol in PROTOCOLS {
        let (world, metrics) = (World::with(&[NEAR, BESIDE]), Arc::<Metrics>::default());
        let forward = Forward { hedge: Some(hedge.clone()), ..forward_with(None) };
        let client = world.client(snapshot(Form::Parts(2), forward, protocol), Some(protocol), &metrics);
        assert_eq!(ask(&client).await.unwrap(), far(CONNECT_TIMEOUT));
        assert_eq!(ask(&client).await.unwrap(), far(Duration::ZERO));
        assert_eq!(counted(&metrics), (2, 2));
    }
}

#[tokio::test(start_paused = true)]
async fn raw_connections_go_on_to_another_part_and_come_back_too() {
    for form in [Form::Parts(1), Form::Parts(2), Form::Priorities, Form::Alone] {
        let (world, metrics) = (World::with(&[NEAR, BESIDE]), Arc::<Metrics>::default());
        let client = world.client(raw(form), None, &metrics);
        let first = join_all((0..20).map(|_| greeted(&client))).await;
        if let Form::Alone = form {
            // The control.
            assert!(first.into_iter().all(|one| one.unwrap_err().code() == Code::CONNECT_TIMEOUT));
            continue;
        }
        for one in first {
            assert_eq!(one.unwrap(), (FAR, CONNECT_TIMEOUT), "{form:?}");
        }
        // Whoever gives up warns others, too.
        if let Form::Parts(1) = form {
            let impatient = world.client(raw(form), None, &Arc::default());
            assert!(tokio::time::timeout(SECOND, greeted(&impatient)).await.is_err());
            assert_eq!(greeted(&impatient).await.unwrap(), (FAR, Duration::ZERO));
        }
        for _ in 0..600 {
            assert_eq!(greeted(&client).await.unwrap(), (FAR, Duration::ZERO), "{form:?}");
            pass(TENTH).await;
        }
        let mut flags = Vec::new();
        metrics.visit_tcp(|_, flag, series| flags.push((flag, series.opened())));
        assert_eq!(flags, [("-", 620)], "{form:?}");
        world.set(NEAR, At::There);
        let back = Instant::now();
        while greeted(&client).await.unwrap().0 != NEAR {
            assert!(back.elapsed() < 45 * SECOND, "{form:?}");
            pass(TENTH).await;
        }
    }
}

/// One is back that nobody asks, for the request waits for another one, which is silent now and keeps it for longer than it has.
#[tokio::test(start_paused = true)]
async fn where_all_are_away_each_of_them_is_looked_at() {
    let forms = [Form::Parts(1), Form::Parts(2), Form::Priorities];
    for (form, protocol) in forms.into_iter().flat_map(|form| PROTOCOLS.map(|protocol| (form, protocol))) {
        let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
        [NEAR, BESIDE, FAR].into_iter().for_each(|port| world.set(port, At::Refusing));
        let forward = Forward { timeout: Some(3 * SECOND), ..forward_with(None) };
        let client = world.client(snapshot(form, forward, protocol), Some(protocol), &metrics);
        ask(&client).await.unwrap_err();
        pass(60 * SECOND).await;
        [NEAR, BESIDE].into_iter().for_each(|port| world.set(port, At::Silent));
        world.set(FAR, At::There);
        until(&client, FAR, 2 * CONNECT_TIMEOUT).await;
        for _ in 0..300 {
            assert_eq!(ask(&client).await.unwrap(), far(Duration::ZERO), "{form:?} {protocol:?}");
            pass(TENTH).await;
        }
    }
    for form in forms {
        let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
        [NEAR, BESIDE, FAR].into_iter().for_each(|port| world.set(port, At::Refusing));
        let client = world.client(raw(form), None, &metrics);
        greeted(&client).await.unwrap_err();
        pass(60 * SECOND).await;
        [NEAR, BESIDE].into_iter().for_each(|port| world.set(port, At::Silent));
        world.set(FAR, At::There);
        let begun = Instant::now();
        while tokio::time::timeout(3 * SECOND, greeted(&client)).await.is_err() {
            assert!(begun.elapsed() < 2 * CONNECT_TIMEOUT, "{form:?}");
        }
        for _ in 0..300 {
            assert_eq!(greeted(&client).await.unwrap(), (FAR, Duration::ZERO), "{form:?}");
            pass(TENTH).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn of_very_many_who_are_away_none_is_left_out() {
    const ALL: Range<u16> = 100..300;
    let protocol = UpstreamProtocol::Http1;
    let mut snapshot = snapshot(Form::Parts(1), forward_with(None), protocol);
    let found = policy::endpoints(&"near".into(), ALL.map(at).collect());
    change(&mut snapshot, "near", |_, endpoints| *endpoints = found);
    let (world, metrics) = (World::with(&ALL.collect::<Vec<_>>()), Arc::<Metrics>::default());
    let client = world.client(snapshot, Some(protocol), &metrics);
    // Until each of them was come across.
    let mut rounds = 0;
    while join_all((0..100).map(|_| ask(&client))).await.into_iter().any(|answer| !answer.unwrap().1.is_zero()) {
        rounds += 1;
        assert!(rounds < 40);
    }
    for _ in 0..600 {
        assert_eq!(ask(&client).await.unwrap(), far(Duration::ZERO));
        pass(TENTH).await;
    }
    // So many at once, and so often is each dialled.
    let last = ALL.end - 1;
    let (dials, begun) = (world.dials(last), Instant::now());
    while world.dials(last) == dials {
        assert!(begun.elapsed() < 120 * SECOND, "it is left out");
        assert_eq!(ask(&client).await.unwrap(), far(Duration::ZERO));
        pass(TENTH).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_away_for_good_makes_nobody_wait_for_another_one() {
    for protocol in PROTOCOLS {
        let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
        [NEAR, BESIDE].into_iter().for_each(|port| world.set(port, At::Refusing));
        let client = world.client(one_each(Form::Parts(2), protocol), Some(protocol), &metrics);
        // Its time is as long as it gets.
        for _ in 0..1200 {
            assert_eq!(ask(&client).await.unwrap(), far(Duration::ZERO), "{protocol:?}");
            pass(TENTH).await;
        }
        world.set(BESIDE, At::There);
        until(&client, BESIDE, 45 * SECOND).await;
        world.set(BESIDE, At::Refusing);
        until(&client, FAR, SECOND).await;
        world.set(BESIDE, At::There);
        until(&client, BESIDE, 2 * SECOND).await;
    }
}

#[tokio::test(start_paused = true)]
async fn that_there_is_no_room_for_a_connection_does_not_say_that_one_can_be_had() {
    for protocol in PROTOCOLS {
        let forward = Forward { timeout: Some(3 * SECOND), ..forward_with(None) };
        let mut snapshot = snapshot(Form::Parts(1), forward, protocol);
        change(&mut snapshot, "near", |cluster, _| cluster.breaker.max_connections = Some(1));
        let (world, metrics) = (World::with(&[NEAR]), Arc::<Metrics>::default());
        let client = world.client(snapshot, Some(protocol), &metrics);
        assert_eq!(ask(&client).await.unwrap_err().code(), Code::TIMEOUT);
        // That one's goes on meanwhile.
        for _ in 0..100 {
            assert_eq!(ask(&client).await.unwrap(), far(Duration::ZERO), "{protocol:?}");
            pass(TENTH).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_goes_on_to_a_part_that_was_away_long_ago_if_there_is_no_other() {
    for protocol in PROTOCOLS {
        let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
        [NEAR, FAR].into_iter().for_each(|port| world.set(port, At::Refusing));
        let client = world.client(one_each(Form::Parts(1), protocol), Some(protocol), &metrics);
        ask(&client).await.unwrap_err();
        world.set(NEAR, At::There);
        until(&client, NEAR, 5 * SECOND).await;
        // Nobody asks it.
        pass(60 * SECOND).await;
        world.set(FAR, At::There);
        assert_eq!(ask(&client).await.unwrap().0, NEAR.to_string(), "{protocol:?}");
        world.set(NEAR, At::Refusing);
        assert_eq!(ask(&client).await.unwrap(), far(Duration::ZERO), "{protocol:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn copies_come_back_to_the_first_part_as_well() {
    let protocol = UpstreamProtocol::Http1;
    let mirror = Mirror { cluster: "test".into(), share: PerMillion::ALL, shadow_host: false };
    let forward = Forward { mirrors: vec![mirror], ..Forward::to("main".into()) };
    let mut snapshot = snapshot(Form::Parts(1), forward, protocol);
    let endpoints = Arc::new(policy::endpoints(&"main".into(), vec![at(BESIDE)]));
    snapshot.clusters.insert("main".into(), ClusterState::Ready { cluster: Arc::new(cluster("main")), endpoints });
    let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
    world.set(NEAR, At::Refusing);
    let client = world.client(snapshot, Some(protocol), &metrics);
    let some = async || {
        for _ in 0..50 {
            assert_eq!(ask(&client).await.unwrap().0, BESIDE.to_string());
            pass(TENTH).await;
        }
    };
    some().await;
    assert!(world.dials(FAR) > 0, "the next part has them");
    let dials = world.dials(NEAR);
    world.set(NEAR, At::There);
    some().await;
    some().await;
    assert!(world.dials(NEAR) > dials);
    // Nobody connects for who is there.
    let dials = world.dials(NEAR);
    some().await;
    assert_eq!(world.dials(NEAR), dials);
}

#[tokio::test(start_paused = true)]
async fn one_further_connection_that_is_slow_sends_nobody_away_from_who_answers() {
    let protocol = UpstreamProtocol::Http1;
    let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
    let client = world.client(snapshot(Form::Parts(1), forward_with(None), protocol), Some(protocol), &metrics);
    until(&client, NEAR, SECOND).await;
    world.set(NEAR, At::Silent);
    let others = async {
        for _ in 0..40 {
            assert_eq!(ask(&client).await.unwrap(), (NEAR.to_string(), Duration::ZERO));
            pass(TENTH).await;
        }
    };
    // The connection is in use when it looks for one, and not when it gives up.
    let impatient = tokio::time::timeout(2 * SECOND + TENTH / 2, ask(&client));
    let ((), gave_up) = join(others, impatient).await;
    assert!(gave_up.is_err() && world.dials(NEAR) == 2);
}

#[tokio::test(start_paused = true)]
async fn people_are_told_that_one_is_away() {
    for (form, stays) in [(Form::Parts(1), true), (Form::Priorities, true), (Form::Alone, false)] {
        let protocol = UpstreamProtocol::Http1;
        let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
        [NEAR, BESIDE].into_iter().for_each(|port| world.set(port, At::Refusing));
        let client = world.client(snapshot(form, forward_with(None), protocol), Some(protocol), &metrics);
        let is_reachable = || {
            let clusters = client.dump().destinations.into_iter().flat_map(|destination| destination.clusters);
            let is_near = |one: &EndpointDump| one.address == at(NEAR).address;
            let cluster = clusters.into_iter().find(|cluster| cluster.endpoints.iter().any(is_near)).unwrap();
            let reachable = cluster.endpoints.iter().find(|one| is_near(one)).unwrap().reachable;
            // The rest of priorities is known to be there.
            let takes = if reachable || matches!(form, Form::Priorities) { Some(PerMillion::ALL) } else { None };
            assert_eq!(cluster.availability, takes, "{form:?}");
            reachable
        };
        let answer = ask(&client).await;
        assert_eq!((answer.is_ok(), is_reachable()), (stays, false), "{form:?}");
        pass(60 * SECOND).await;
        assert!(!is_reachable(), "{form:?}");
        [NEAR, BESIDE].into_iter().for_each(|port| world.set(port, At::There));
        until(&client, NEAR, 45 * SECOND).await;
        assert!(is_reachable(), "{form:?}");
    }
}

/// A resolver that answers when it may: with addresses, with none, or not at all.
#[derive(Debug)]
struct Held {
    may: watch::Sender<bool>,
    addresses: Result<Vec<IpAddr>, ResolveError>,
}

impl Resolve for Held {
    fn addresses<'r>(&'r self, _host: &'r str) -> Resolving<'r, IpAddr> {
        Box::pin(async move {
            self.may.subscribe().wait_for(|may| *may).await.unwrap();
            self.addresses.clone().map(|records| Resolved { records, ttl: None, lacks: None })
        })
    }

    fn services<'r>(&'r self, _name: &'r str) -> Resolving<'r, Service> {
        Box::pin(async { Err(ResolveError::NotFound) })
    }
}

/// An aggregate of names and a cluster that others find; `mark` makes it another one.
fn named_first(protocol: UpstreamProtocol, host: &str, mark: Option<u32>) -> Snapshot {
    let connection = ConnectionOptions { protocol, ..ConnectionOptions::default() };
    let breaker = CircuitBreakers { max_requests: mark, ..CircuitBreakers::default() };
    let of = |name: &str| Cluster { connection: connection.clone(), ..cluster(name) };
    let named = Endpoint::new(Address::Name { host: host.into(), port: NEAR });
    let discovery = Discovery::StrictDns(policy::endpoints(&"near".into(), vec![named]).into());
    let all = Cluster { discovery: Discovery::Aggregate(vec!["near".into(), "far".into()]), ..of("test") };
    let parts = [(all, vec![]), (Cluster { discovery, breaker, ..of("near") }, vec![]), (of("far"), vec![at(FAR)])];
    let mut snapshot =
        policy::snapshot(policy::routes([policy::forward(RouteMatch::any(), forward_with(None))]), parts);
    snapshot.listener =
        Arc::new(Listener { tcp: Some(TcpForward::to("test".into())), ..Listener::clone(&snapshot.listener) });
    snapshot
}

#[tokio::test(start_paused = true)]
async fn names_of_a_part_are_waited_for_before_another_one_has_its_requests() {
    let there = || Ok(vec![IpAddr::from([10, 0, 0, 1])]);
    for protocol in PROTOCOLS {
        for (addresses, server) in [
            (there(), NEAR),
            (Ok(vec![]), FAR),
            (Err(ResolveError::NotFound), FAR),
            (Err(ResolveError::Failed("no".into())), FAR),
        ] {
            let held = Arc::new(Held { may: watch::Sender::new(false), addresses });
            let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
            let source = FixedSource::of(TARGET, named_first(protocol, HOST, None));
            let client = world.builder(source.clone(), Some(protocol), &metrics).resolver(held.clone()).build();
            let mut both = pin!(join_all((0..20).map(|_| ask(&client))));
            assert!(tokio::time::timeout(TENTH, &mut both).await.is_err(), "nobody knows where the first is");
            assert_eq!((world.dials(NEAR), world.dials(FAR)), (0, 0));
            held.may.send_replace(true);
            for answer in both.await {
                assert_eq!(answer.unwrap(), (server.to_string(), TENTH));
            }
            assert_eq!(ask(&client).await.unwrap(), (server.to_string(), Duration::ZERO), "control: it is known now");
            assert_eq!(counted(&metrics), (21, 21));
            // The names change: the same once more.
            held.may.send_replace(false);
            source.set_snapshot(TARGET, named_first(protocol, "other.example.com", Some(9)));
            let marked = |client: &Client| {
                let dump = client.dump().destinations[0].clone();
                dump.clusters.iter().any(|cluster| cluster.default_limits.max_requests == Some(9))
            };
            while !marked(&client) {
                tokio::task::yield_now().await;
            }
            let mut again = pin!(ask(&client));
            assert!(tokio::time::timeout(TENTH, &mut again).await.is_err());
            held.may.send_replace(true);
            assert_eq!(again.await.unwrap(), (server.to_string(), TENTH));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn raw_connections_wait_for_the_names_of_a_part_too() {
    for (addresses, server) in [(Ok(vec![IpAddr::from([10, 0, 0, 1])]), NEAR), (Ok(vec![]), FAR)] {
        let held = Arc::new(Held { may: watch::Sender::new(false), addresses });
        let (world, metrics) = (World::with(&[]), Arc::<Metrics>::default());
        let source = FixedSource::of(TARGET, named_first(UpstreamProtocol::Http1, HOST, None));
        let client = world.builder(source, None, &metrics).resolver(held.clone()).build();
        let mut connection = pin!(client.connect(TARGET));
        assert!(tokio::time::timeout(TENTH, &mut connection).await.is_err());
        held.may.send_replace(true);
        assert_eq!(connection.await.unwrap().read_u16().await.unwrap(), server);
    }
}
