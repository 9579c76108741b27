//! The cases of gRPC's proxyless interop suite (psm-interop and grpc/grpc `doc/xds-test-descriptions.md`), each by the
//! number and name it has there, against the process `mesh control-plane`: for gRPC, and for HTTP as well.
//!
//! A test's name begins with the suite's name of the case. What the suite asks a cloud's control plane for is said in
//! manifests here.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Deref;
use std::time::Duration;

use http::{Request, Response};
use http_body_util::BodyExt;
use mesh::context::{self, RequestContext};
use mesh::{Body, Mesh};
use tokio::time::Instant;

use crate::actor::Actor;
use crate::grpc;
use crate::member;
use crate::world::{World, eventually};

/// Both protocols of each case.
pub(crate) const BOTH: [Protocol; 2] = [Protocol::Http, Protocol::Grpc];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    Grpc,
}

/// What a call came to: who answered, or its status (`503`, `14`).
pub(crate) type Outcome = Result<String, String>;

/// The caller of a case.
pub(crate) struct Caller {
    pub(crate) mesh: Mesh,
    pub(crate) protocol: Protocol,
    /// Whom it calls, `host:port`.
    pub(crate) target: &'static str,
}

/// A caller and the control plane that it follows.
struct Case {
    world: World,
    caller: Caller,
}

impl Deref for Case {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// A path that gRPC and HTTP can both have.
pub(crate) const PATH: &str = "/psm.Test/Unary";
const EMPTY: &str = "/psm.Test/Empty";

impl Case {
    /// A control plane with these manifests, and a caller.
    async fn new(protocol: Protocol, manifests: &[(&str, String)]) -> Self {
        let world = World::start(manifests).await;
        let mesh = member::join(&world, "caller", "app=caller,tier=gold").await;
        Self { world, caller: Caller { mesh, protocol, target: "psm.example.com:9080" } }
    }
}

impl Caller {
    pub(crate) async fn call_with(&self, path: &str, headers: &[(&str, &str)]) -> Outcome {
        let mut request = Request::post(format!("http://{}{path}", self.target));
        if self.protocol == Protocol::Grpc {
            request = request.header("content-type", "application/grpc").header("te", "trailers");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if self.protocol == Protocol::Grpc { Body::from("\0\0\0\0\0") } else { Body::empty() };
        match self.mesh.client().send(request.body(body).unwrap()).await {
            Ok(answer) => self.read(answer).await,
            Err(error) => Err(self.status(error.http_status().as_u16(), error.grpc_status())),
        }
    }

    async fn read(&self, answer: Response<Body>) -> Outcome {
        if self.protocol == Protocol::Grpc {
            // `200, grpc-status Some("14"), …`
            let status = |text: String| text.split('"').nth(1).unwrap_or_default().to_owned();
            return grpc::read(answer).await.map_err(status);
        }
        let status = answer.status();
        let text = answer.into_body().collect().await.map_err(|error| error.to_string())?.to_bytes();
        if status == 200 { Ok(String::from_utf8(text.to_vec()).unwrap()) } else { Err(status.as_u16().to_string()) }
    }

    /// A status as this case's protocol has it.
    fn status(&self, http: u16, grpc: i32) -> String {
        if self.protocol == Protocol::Grpc { grpc.to_string() } else { http.to_string() }
    }

    pub(crate) async fn call(&self) -> Outcome {
        self.call_with(PATH, &[]).await
    }

    /// Who answered how many of so many calls; failures by their status.
    pub(crate) async fn calls(&self, count: usize, headers: &[(&str, &str)]) -> BTreeMap<String, usize> {
        let mut report = BTreeMap::new();
        for _ in 0..count {
            let who = self.call_with(PATH, headers).await.unwrap_or_else(|status| status);
            *report.entry(who).or_default() += 1;
        }
        report
    }

    /// Calls until so many in a row are answered by all of these and by nobody else.
    pub(crate) async fn becomes(&self, count: usize, who: &[&str]) {
        eventually(&format!("{:?}: answers of {who:?} alone", self.protocol), async || {
            let report = self.calls(count, &[]).await;
            report.keys().eq(&sorted(who)).then_some(())
        })
        .await;
    }
}

fn sorted(who: &[&str]) -> Vec<String> {
    let mut who: Vec<_> = who.iter().map(|name| (*name).to_owned()).collect();
    who.sort();
    who
}

/// A host with these servers; `labels` are those of each.
fn hosted(host: &str, servers: &[(&Actor, &str)]) -> String {
    let mut text = format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: ServiceEntry\n\
         metadata: {{ name: {host}, namespace: default }}\n\
         spec:\n\
         \x20 hosts: [{host}.example.com]\n\
         \x20 location: MESH_INTERNAL\n\
         \x20 resolution: STATIC\n\
         \x20 ports: [{{ number: 9080, name: http, protocol: HTTP }}]\n\
         \x20 endpoints:\n"
    );
    for (actor, labels) in servers {
        let (ip, port) = (actor.address.ip(), actor.address.port());
        writeln!(text, "    - {{ address: {ip}, ports: {{ http: {port} }}, labels: {{ {labels} }} }}").unwrap();
    }
    text
}

fn psm(servers: &[&Actor]) -> (&'static str, String) {
    let servers: Vec<_> = servers.iter().map(|actor| (*actor, "app: psm")).collect();
    ("psm.yaml", hosted("psm", &servers))
}

/// A DestinationRule for `psm`.
fn policy(policy: &str) -> (&'static str, String) {
    let text = format!(
        "apiVersion: networking.istio.io/v1\n\
         kind: DestinationRule\n\
         metadata: {{ name: psm, namespace: default }}\n\
         spec: {{ host: psm.example.com, trafficPolicy: {{ {policy} }} }}\n"
    );
    ("rule.yaml", text)
}

/// A VirtualService for `psm` with these routes, one a line.
fn routes(routes: &str) -> (&'static str, String) {
    let mut text = "apiVersion: networking.istio.io/v1\n\
         kind: VirtualService\n\
         metadata: { name: psm, namespace: default }\n\
         spec:\n  hosts: [psm.example.com]\n  http:\n"
        .to_owned();
    routes
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .for_each(|line| writeln!(text, "    - {line}").unwrap());
    ("routes.yaml", text)
}

const TO_PSM: &str = "route: [{ destination: { host: psm.example.com } }]";
const TO_OTHER: &str = "route: [{ destination: { host: other.example.com } }]";

pub(crate) async fn actors<const N: usize>(names: [&'static str; N]) -> [Actor; N] {
    let all = futures_util::future::join_all(names.map(Actor::start)).await;
    all.try_into().unwrap_or_else(|_| unreachable!("one for each name"))
}

#[tokio::test]
async fn baseline_and_round_robin_01_03() {
    let [a, b, c] = actors(["a", "b", "c"]).await;
    for protocol in BOTH {
        let case = Case::new(protocol, &[psm(&[&a, &b, &c]), policy("loadBalancer: { simple: ROUND_ROBIN }")]).await;
        case.becomes(6, &["a", "b", "c"]).await;
        let report = case.calls(99, &[]).await;
        assert!(report.len() == 3 && report.values().all(|count| count.abs_diff(33) <= 1), "{protocol:?}: {report:?}");
    }
}

#[tokio::test]
async fn affinity_04_05() {
    for protocol in BOTH {
        let mut all = actors(["a", "b", "c"]).await.map(Some);
        let servers: Vec<_> = all.iter().flatten().collect();
        let hash = "loadBalancer: { consistentHash: { httpHeaderName: x-user } }, \
                    outlierDetection: { consecutive5xxErrors: 1, baseEjectionTime: 60s, maxEjectionPercent: 100 }";
        let case = Case::new(protocol, &[psm(&servers), policy(hash)]).await;
        case.becomes(100, &["a", "b", "c"]).await;
        let mine = case.calls(100, &[("x-user", "jason")]).await;
        assert_eq!(mine.len(), 1, "{protocol:?}: {mine:?}");
        let mut heard = std::collections::BTreeSet::new();
        for user in 0..30 {
            heard.extend(case.calls(1, &[("x-user", &format!("user-{user}"))]).await.into_keys());
        }
        assert!(heard.len() >= 2, "{protocol:?}: {heard:?}");
        // Gone: its requests all go to one other.
        let gone = all.iter_mut().find(|actor| actor.as_ref().is_some_and(|actor| mine.contains_key(actor.name)));
        *gone.unwrap() = None;
        // Until it is ejected, they go to who follows it in the ring; then to who has its place in the ring without it.
        eventually("they go to one other", async || {
            let now = case.calls(100, &[("x-user", "jason")]).await;
            (now.len() == 1 && now != mine && now.keys().all(|who| who.len() == 1)).then_some(())
        })
        .await;
    }
}

/// Servers with an open connection of this caller.
fn connected(caller: &Caller) -> usize {
    let dump = caller.mesh.client().dump();
    let endpoints = dump.destinations.iter().flat_map(|it| &it.clusters).flat_map(|it| &it.endpoints);
    endpoints.filter(|endpoint| endpoint.open_connections > 0).count()
}

#[tokio::test]
async fn affinity_04_one_connection_and_a_server_that_refuses_to_serve() {
    for protocol in BOTH {
        let [a, b, c] = actors(["a", "b", "c"]).await;
        let hash = "loadBalancer: { consistentHash: { httpHeaderName: x-user } }, \
                    outlierDetection: { consecutive5xxErrors: 1, interval: 500ms, baseEjectionTime: 60s, \
                    maxEjectionPercent: 100 }";
        let case = Case::new(protocol, &[psm(&[&a, &b, &c]), policy(hash)]).await;
        let jason = [("x-user", "jason")];
        eventually("it is answered", async || case.call_with(PATH, &jason).await.ok()).await;
        let mine = case.calls(100, &jason).await;
        assert_eq!((mine.len(), connected(&case)), (1, 1), "{protocol:?}: {mine:?}");
        // It is there and takes connections, but serves nobody.
        let refuses = [&a, &b, &c].into_iter().find(|actor| mine.contains_key(actor.name)).unwrap();
        refuses.fail(true).await;
        eventually("the others carry its requests", async || {
            let report = case.calls(20, &jason).await;
            (report.len() == 1 && report != mine && report.keys().all(|who| who.len() == 1)).then_some(())
        })
        .await;
        let now = case.calls(100, &jason).await;
        assert!(now.len() == 1 && !now.contains_key(refuses.name), "{protocol:?}: {mine:?}, then {now:?}");
        // The control: callers that differ have connections to the others.
        for user in 0..30 {
            case.calls(1, &[("x-user", &format!("user-{user}"))]).await;
        }
        assert!(connected(&case) >= 2, "{protocol:?}");
    }
}

#[tokio::test]
async fn change_backend_service_07() {
    let [a, b] = actors(["a", "b"]).await;
    for protocol in BOTH {
        let other = ("other.yaml", hosted("other", &[(&b, "app: other")]));
        let case = Case::new(protocol, &[psm(&[&a]), other, routes(TO_PSM)]).await;
        case.becomes(20, &["a"]).await;
        case.world.apply("routes.yaml", &routes(TO_OTHER).1);
        case.becomes(100, &["b"]).await;
    }
}

#[tokio::test]
async fn circuit_breaking_08() {
    for protocol in BOTH {
        // HTTP/1.1 has a connection for each, and so many files not everybody may open.
        let of = |count: usize| if protocol == Protocol::Grpc { count } else { count / 10 };
        let [a, b] = actors(["a", "b"]).await;
        let limits = |unary: usize, empty: usize| {
            let limit = |most| format!("connectionPool: {{ http: {{ http2MaxRequests: {most} }} }}");
            let other = policy(&limit(of(empty))).1.replace("psm", "other");
            ("rule.yaml", format!("{}---\n{other}", policy(&limit(of(unary))).1))
        };
        let other = ("other.yaml", hosted("other", &[(&b, "app: other")]));
        let table = routes(&format!("{{ match: [{{ uri: {{ exact: {EMPTY} }} }}], {TO_OTHER} }}\n{{ {TO_PSM} }}"));
        let case = Case::new(protocol, &[psm(&[&a]), other, table, limits(500, 1000)]).await;
        case.becomes(5, &["a"]).await;
        let caller = &case.caller;
        let kept = |path: &'static str, count: usize| {
            let call = move |_| caller.call_with(path, &[("rpc-behavior", "keep-open")]);
            Box::pin(futures_util::future::join_all((0..of(count)).map(call)))
        };
        let (mut unary, mut empty, mut more) = (kept(PATH, 800), kept(EMPTY, 1200), kept(PATH, 800));
        let settles = |at: &'static str, actor| async move {
            eventually(at, async || (Actor::kept(actor).await == of(at.parse().unwrap())).then_some(())).await;
        };
        tokio::select! {
            outcomes = &mut unary => unreachable!("they are kept open: {outcomes:?}"),
            outcomes = &mut empty => unreachable!("they are kept open: {outcomes:?}"),
            _ = async { tokio::join!(settles("500", &a), settles("1000", &b)) } => {}
        }
        let full = Err(case.status(503, 14));
        assert_eq!((case.call().await, case.call_with(EMPTY, &[]).await), (full.clone(), full), "one more of each");
        case.world.apply("rule.yaml", &limits(800, 1000).1);
        // The new limit holds for what comes now, and what is in flight counts on.
        let raised = async {
            eventually("the limit is raised", async || case.call().await.ok()).await;
            tokio::select! {
                outcomes = &mut more => unreachable!("they are kept open: {outcomes:?}"),
                () = settles("800", &a) => {}
            }
        };
        tokio::select! {
            outcomes = &mut unary => unreachable!("they are kept open: {outcomes:?}"),
            outcomes = &mut empty => unreachable!("they are kept open: {outcomes:?}"),
            () = raised => {}
        }
        tokio::join!(a.release(), b.release());
        let (unary, empty, more) = futures_util::future::join3(unary, empty, more).await;
        let answered = [unary, empty, more].map(|of| of.iter().filter(|outcome| outcome.is_ok()).count());
        assert_eq!(answered, [of(500), of(1000), of(300)], "{protocol:?}");
    }
}

/// Servers of the first choice and of the second.
fn tiers(first: &[&Actor], second: &[&Actor]) -> (&'static str, String) {
    let servers: Vec<_> = first
        .iter()
        .map(|actor| (*actor, "tier: gold"))
        .chain(second.iter().map(|actor| (*actor, "tier: lead")))
        .collect();
    ("psm.yaml", hosted("psm", &servers))
}

/// Who has the caller's `tier` first; who fails is left at once and comes back soon.
const FAILOVER: &str = "loadBalancer: { simple: ROUND_ROBIN, localityLbSetting: { enabled: true, failoverPriority: [tier] } }, \
     outlierDetection: { consecutive5xxErrors: 2, interval: 500ms, baseEjectionTime: 1s, maxEjectionPercent: 100 }";

#[tokio::test]
async fn failover_11_and_gentle_failover_40() {
    for protocol in BOTH {
        let [a, b, c, s] = actors(["a", "b", "c", "s"]).await;
        let case = Case::new(protocol, &[tiers(&[&a, &b, &c], &[&s]), policy(FAILOVER)]).await;
        case.becomes(60, &["a", "b", "c"]).await;
        // Two of three fail: a third is left, of which Envoy makes 1.4 times as much; the rest goes on.
        a.fail(true).await;
        b.fail(true).await;
        case.becomes(60, &["c", "s"]).await;
        c.fail(true).await;
        case.becomes(60, &["s"]).await;
        for actor in [&a, &b, &c] {
            actor.fail(false).await;
        }
        case.becomes(60, &["a", "b", "c"]).await;
    }
}

#[tokio::test]
async fn failover_11_one_primary_down_sends_nothing_to_the_secondary() {
    for protocol in BOTH {
        let [a, b, c, d, e, s] = actors(["a", "b", "c", "d", "e", "s"]).await;
        let case = Case::new(protocol, &[tiers(&[&a, &b, &c, &d, &e], &[&s]), policy(FAILOVER)]).await;
        case.becomes(60, &["a", "b", "c", "d", "e"]).await;
        // Four of five are left, of which Envoy makes 1.4 times as much: that is all of it.
        a.fail(true).await;
        eventually("it is left", async || {
            let report = case.calls(60, &[]).await;
            assert!(!report.contains_key("s"), "{protocol:?}: {report:?}");
            report.keys().eq(&sorted(&["b", "c", "d", "e"])).then_some(())
        })
        .await;
        // The control: two of five are left, which is too few.
        b.fail(true).await;
        c.fail(true).await;
        case.becomes(60, &["d", "e", "s"]).await;
    }
}

#[tokio::test]
async fn secondary_locality_gets_requests_on_primary_failure_36() {
    for protocol in BOTH {
        let [a, b, s, t] = actors(["a", "b", "s", "t"]).await;
        let case = Case::new(protocol, &[tiers(&[&a, &b], &[&s, &t]), policy(FAILOVER)]).await;
        case.becomes(20, &["a", "b"]).await;
        let places = [("a", a.address), ("b", b.address)];
        drop((a, b));
        case.becomes(60, &["s", "t"]).await;
        let mut back = Vec::new();
        for (name, place) in places {
            back.push(Actor::start_at(name, place).await);
        }
        case.becomes(60, &["a", "b"]).await;
        // The second choice is idle.
        let report = case.calls(100, &[]).await;
        assert_eq!(report.keys().collect::<Vec<_>>(), ["a", "b"], "{protocol:?}: {report:?}");
    }
}

#[tokio::test]
async fn secondary_locality_gets_no_requests_on_partial_primary_failure_37() {
    for protocol in BOTH {
        let [a, b, c, d, s, t] = actors(["a", "b", "c", "d", "s", "t"]).await;
        let case = Case::new(protocol, &[tiers(&[&a, &b, &c, &d], &[&s, &t]), policy(FAILOVER)]).await;
        case.becomes(40, &["a", "b", "c", "d"]).await;
        // Half of the first choice is taken out by whoever knows, as gRPC's control plane does, and dies.
        case.world.apply("psm.yaml", &tiers(&[&a, &b], &[&s, &t]).1);
        eventually("those that are left carry everything", async || {
            let report = case.calls(100, &[]).await;
            assert!(report.keys().all(|who| ["a", "b", "c", "d"].contains(&who.as_str())), "{protocol:?}: {report:?}");
            (report.len() == 2).then_some(())
        })
        .await;
        drop((c, d));
        let report = case.calls(200, &[]).await;
        assert_eq!(report.keys().collect::<Vec<_>>(), ["a", "b"], "{protocol:?}: {report:?}");
        // The control: those that die while they are listed leave too few, and the rest goes on.
        drop(b);
        case.becomes(60, &["a", "s", "t"]).await;
    }
}

#[tokio::test]
async fn outlier_detection_16() {
    for protocol in BOTH {
        let [a, b, c] = actors(["a", "b", "c"]).await;
        let rule = "loadBalancer: { simple: ROUND_ROBIN }, outlierDetection: \
                    { consecutive5xxErrors: 3, interval: 500ms, baseEjectionTime: 2s, maxEjectionPercent: 50 }";
        let case = Case::new(protocol, &[psm(&[&a, &b, &c]), policy(rule)]).await;
        case.becomes(30, &["a", "b", "c"]).await;
        b.fail(true).await;
        case.becomes(60, &["a", "c"]).await;
        b.fail(false).await;
        case.becomes(30, &["a", "b", "c"]).await;
    }
}

#[tokio::test]
async fn remove_neg_17_and_remove_instance_group_38() {
    for protocol in BOTH {
        let [a, b, c, d] = actors(["a", "b", "c", "d"]).await;
        let case =
            Case::new(protocol, &[psm(&[&a, &b, &c, &d]), policy("loadBalancer: { simple: ROUND_ROBIN }")]).await;
        case.becomes(40, &["a", "b", "c", "d"]).await;
        for servers in [vec![&a, &b], vec![&a, &b, &c, &d], vec![&c, &d]] {
            case.world.apply("psm.yaml", &psm(&servers).1);
            let names: Vec<_> = servers.iter().map(|actor| actor.name).collect();
            let wanted = sorted(&names);
            // No call fails on the way there.
            eventually("the others carry everything", async || {
                let report = case.calls(40, &[]).await;
                assert!(report.keys().all(|who| who.len() == 1), "{protocol:?}: {report:?}");
                report.keys().eq(&wanted).then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn fault_injection_29() {
    let [a] = actors(["a"]).await;
    for protocol in BOTH {
        let fault = |fault: &str| {
            routes(&format!(
                "{{ match: [{{ uri: {{ exact: {PATH} }} }}], fault: {{ {fault} }}, {TO_PSM} }}\n{{ {TO_PSM} }}"
            ))
        };
        let abort = |share: f64| format!("abort: {{ httpStatus: 401, percentage: {{ value: {share} }} }}");
        let case = Case::new(protocol, &[psm(&[&a]), fault(&abort(0.0))]).await;
        case.becomes(50, &["a"]).await;
        let aborted = case.status(401, 16);
        case.world.apply("routes.yaml", &fault(&abort(100.0)).1);
        case.becomes(50, &[&aborted]).await;
        assert_eq!(case.call_with("/psm.Test/Other", &[]).await.as_deref(), Ok("a"), "another route has none");
        case.world.apply("routes.yaml", &fault(&abort(50.0)).1);
        case.becomes(50, &["a", &aborted]).await;
        let share = case.calls(400, &[]).await["a"];
        // Six standard deviations.
        assert!(share.abs_diff(200) <= 60, "{protocol:?}: {share} of 400");
        let delay = |share: f64| format!("delay: {{ fixedDelay: 20s, percentage: {{ value: {share} }} }}");
        case.world.apply("routes.yaml", &fault(&delay(100.0)).1);
        let late = Err(case.status(504, 4));
        eventually("all are delayed beyond their deadline", async || (within(&case, 200).await == late).then_some(()))
            .await;
        assert_eq!(case.call_with("/psm.Test/Other", &[]).await.as_deref(), Ok("a"), "another route has none");
        case.world.apply("routes.yaml", &fault(&delay(50.0)).1);
        eventually("some are not delayed", async || within(&case, 200).await.ok()).await;
        // Side by side: those that are delayed all wait for their deadline, which leaves the others time enough.
        let outcomes = futures_util::future::join_all((0..200).map(|_| within(&case, 3000))).await;
        let delayed = outcomes.iter().filter(|outcome| **outcome == late).count();
        assert!(outcomes.iter().all(|outcome| outcome.is_ok() || *outcome == late), "{protocol:?}: {outcomes:?}");
        assert!(delayed.abs_diff(100) <= 42, "{protocol:?}: {delayed} of 200");
        case.world.apply("routes.yaml", &fault(&delay(0.0)).1);
        // Nobody waits for the whole delay meanwhile.
        eventually("none is delayed", async || within(&case, 200).await.ok()).await;
        case.becomes(50, &["a"]).await;
    }
}

/// A call that may take so many milliseconds, as one made for a request with that deadline.
pub(crate) async fn within(case: &Caller, millis: u64) -> Outcome {
    within_with(case, PATH, &[], millis).await
}

pub(crate) async fn within_with(case: &Caller, path: &str, headers: &[(&str, &str)], millis: u64) -> Outcome {
    let mut served = RequestContext::from_headers(&http::HeaderMap::new());
    served.deadline = Some(Instant::now() + Duration::from_millis(millis));
    context::scope(served.into(), case.call_with(path, headers)).await
}

#[tokio::test]
async fn header_matching_30() {
    let [a, b] = actors(["a", "b"]).await;
    let other = ("other.yaml", hosted("other", &[(&b, "app: other")]));
    let matchers = [
        ("headers: { x-test: { exact: alternate } }", "alternate", "alternative"),
        ("headers: { x-test: { prefix: alt } }", "alternate", "default"),
        ("headers: { x-test: { regex: \"a[a-z]+e\" } }", "alternate", "alternate1"),
        // Present.
        ("headers: { x-test: {} }", "anything", ""),
        // Inverted.
        ("withoutHeaders: { x-test: { exact: default } }", "alternate", "default"),
    ];
    for protocol in BOTH {
        let first = routes(&format!("{{ {TO_PSM} }}"));
        let case = Case::new(protocol, &[psm(&[&a]), other.clone(), first]).await;
        for (number, (matcher, yes, no)) in matchers.iter().enumerate() {
            // A mark of its own, so that it is known to be in force.
            let mark = format!("{{ match: [{{ headers: {{ x-mark: {{ exact: \"{number}\" }} }} }}], {TO_OTHER} }}");
            case.world.apply(
                "routes.yaml",
                &routes(&format!("{mark}\n{{ match: [{{ {matcher} }}], {TO_OTHER} }}\n{{ {TO_PSM} }}")).1,
            );
            let marked = [("x-mark", &*number.to_string())];
            eventually("it is in force", async || {
                (case.call_with(PATH, &marked).await.as_deref() == Ok("b")).then_some(())
            })
            .await;
            assert_eq!(case.call_with(PATH, &[("x-test", yes)]).await.as_deref(), Ok("b"), "{protocol:?}: {matcher}");
            let none: &[(&str, &str)] = if no.is_empty() { &[] } else { &[("x-test", no)] };
            assert_eq!(case.call_with(PATH, none).await.as_deref(), Ok("a"), "{protocol:?}: {matcher}");
        }
    }
}

#[tokio::test]
async fn metadata_filter_31() {
    let [a, b] = actors(["a", "b"]).await;
    let other = ("other.yaml", hosted("other", &[(&b, "app: other")]));
    for protocol in BOTH {
        // By the labels that the caller says are its own: all of them, one of several, none of it.
        for (sources, wanted) in [
            ("[{ sourceLabels: { app: caller, tier: gold } }]", "b"),
            ("[{ sourceLabels: { app: nobody } }, { sourceLabels: { tier: gold } }]", "b"),
            ("[{ sourceLabels: { app: caller, tier: lead } }]", "a"),
        ] {
            let table = routes(&format!("{{ match: {sources}, {TO_OTHER} }}\n{{ {TO_PSM} }}"));
            let case = Case::new(protocol, &[psm(&[&a]), other.clone(), table]).await;
            case.becomes(10, &[wanted]).await;
        }
    }
}

#[tokio::test]
async fn path_matching_32() {
    let [a, b] = actors(["a", "b"]).await;
    let other = ("other.yaml", hosted("other", &[(&b, "app: other")]));
    let (unary, empty, elsewhere) = ("/psm.Test/Unary", "/psm.Test/Empty", "/another.Test/Unary");
    for protocol in BOTH {
        let case = Case::new(protocol, &[psm(&[&a]), other.clone(), routes(&format!("{{ {TO_PSM} }}"))]).await;
        for (matcher, to_other) in [
            ("[{ uri: { exact: /psm.Test/Unary } }]", vec![unary]),
            ("[{ uri: { exact: /psm.Test/Unary } }, { uri: { exact: /psm.Test/Empty } }]", vec![unary, empty]),
            ("[{ uri: { prefix: /psm.Test } }]", vec![unary, empty]),
            ("[{ uri: { regex: \"/.*/Unary\" } }]", vec![unary, elsewhere]),
            ("[{ uri: { exact: /PSM.TEST/UNARY }, ignoreUriCase: true }]", vec![unary]),
        ] {
            case.world.apply("routes.yaml", &routes(&format!("{{ match: {matcher}, {TO_OTHER} }}\n{{ {TO_PSM} }}")).1);
            let all = [unary, empty, elsewhere];
            eventually(&format!("{protocol:?}: {matcher} is in force"), async || {
                let mut right = true;
                for path in all {
                    let wanted = if to_other.contains(&path) { "b" } else { "a" };
                    right &= case.call_with(path, &[]).await.as_deref() == Ok(wanted);
                }
                right.then_some(())
            })
            .await;
        }
    }
}

#[tokio::test]
async fn retry_33() {
    let [a] = actors(["a"]).await;
    for protocol in BOTH {
        let attempts = |number: u32| {
            let on = "5xx,unavailable";
            routes(&format!("{{ retries: {{ attempts: {number}, retryOn: \"{on}\" }}, {TO_PSM} }}"))
        };
        let case = Case::new(protocol, &[psm(&[&a]), attempts(3)]).await;
        case.becomes(5, &["a"]).await;
        let mut id = 0;
        let mut heals = async || {
            id += 1;
            let id = format!("{protocol:?}-{id}");
            case.call_with(PATH, &[("rpc-behavior", "succeed-on-retry-attempt-4"), ("x-id", &id)]).await
        };
        assert_eq!(heals().await, Err(case.status(503, 14)), "three are too few");
        case.world.apply("routes.yaml", &attempts(4).1);
        eventually("four are enough", async || heals().await.ok()).await;
    }
}

#[tokio::test]
async fn timeout_34() {
    let [a] = actors(["a"]).await;
    for protocol in BOTH {
        let table =
            routes(&format!("{{ match: [{{ uri: {{ exact: {PATH} }} }}], timeout: 500ms, {TO_PSM} }}\n{{ {TO_PSM} }}"));
        let case = Case::new(protocol, &[psm(&[&a]), table]).await;
        case.becomes(5, &["a"]).await;
        let kept = [("rpc-behavior", "keep-open")];
        // The other route has no limit: it waits until it is let go.
        let (late, other, ()) =
            tokio::join!(case.call_with(PATH, &kept), case.call_with("/psm.Test/Other", &kept), async {
                eventually("the first is given up", async || (a.kept().await == 2).then_some(())).await;
                eventually("the first is given up", async || (a.kept().await == 1).then_some(())).await;
                a.release().await;
            });
        assert_eq!((late, other.as_deref()), (Err(case.status(504, 4)), Ok("a")), "{protocol:?}");
        // The application's own limit is shorter: of two that begin together it is the first to be over.
        tokio::select! {
            biased;
            late = case.call_with(PATH, &kept) => panic!("{protocol:?}: its route's time was over first: {late:?}"),
            own = within_with(&case, PATH, &kept, 50) => assert_eq!(own, Err(case.status(504, 4)), "{protocol:?}"),
        }
        assert_eq!(case.call().await.as_deref(), Ok("a"));
    }
}

#[tokio::test]
async fn backends_restart_35() {
    for protocol in BOTH {
        let [a, b] = actors(["a", "b"]).await;
        let case = Case::new(protocol, &[psm(&[&a, &b]), policy("loadBalancer: { simple: ROUND_ROBIN }")]).await;
        case.becomes(20, &["a", "b"]).await;
        let places = [("a", a.address), ("b", b.address)];
        drop((a, b));
        assert!(case.call().await.is_err());
        let mut back = Vec::new();
        for (name, place) in places {
            back.push(Actor::start_at(name, place).await);
        }
        case.becomes(20, &["a", "b"]).await;
        let report = case.calls(100, &[]).await;
        assert!(report.values().all(|count| count.abs_diff(50) <= 2), "{protocol:?}: {report:?}");
    }
}

#[tokio::test]
async fn traffic_splitting_39() {
    let [a, b] = actors(["a", "b"]).await;
    let other = ("other.yaml", hosted("other", &[(&b, "app: other")]));
    for protocol in BOTH {
        let split = |weight: u32| {
            let rest = 100 - weight;
            routes(&format!(
                "{{ route: [{{ destination: {{ host: psm.example.com }}, weight: {rest} }}, \
                 {{ destination: {{ host: other.example.com }}, weight: {weight} }}] }}"
            ))
        };
        let case = Case::new(protocol, &[psm(&[&a]), other.clone(), split(0)]).await;
        case.becomes(50, &["a"]).await;
        case.world.apply("routes.yaml", &split(80).1);
        case.becomes(50, &["a", "b"]).await;
        let report = case.calls(1000, &[]).await;
        // Six standard deviations.
        assert!(report["b"].abs_diff(800) <= 76, "{protocol:?}: {report:?}");
    }
}
