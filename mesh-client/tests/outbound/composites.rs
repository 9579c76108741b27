//! Composite filters (gRFC A103): each request passes the filters that its headers choose.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, COOKIE, SET_COOKIE};
use http::{HeaderName, HeaderValue, Request};
use http_body_util::Empty;
use mesh_client::{Cause, Client, Error};
use mesh_core::error::{Blame, Code, Fault as _};
use mesh_core::policy::{
    AbortStatus, AdaptiveConcurrency, AuthorityRewrite, AuthorizationAction, AuthorizationPolicy, ClusterChoice,
    Composite, DestinationState, ExecuteFilters, Fault, FaultAbort, FaultDelay, FieldMatcher, FilterOverride, Forward,
    HeaderAction, HeaderKey, HeaderOps, HeaderWrite, HttpFilter, HttpFilterKind, LocalRateLimit, MatchPredicate,
    MatcherRule, MatcherTree, OnMatch, PathRewrite, PerMillion, Rewrite, RouteMatch, SessionSource, Snapshot,
    StatefulSession, StringMatcher, TokenBucket, WeightedCluster, WeightedClusters,
};
use mesh_testkit::{EchoServer, policy};

use super::{TARGET, client_of, cluster, forward_with, get, prefix, server_of, snapshot_of_clusters, snapshot_with};

/// A bucket that never fills again, with a status of its own.
fn bucket(max_tokens: u32, status: u16) -> HttpFilterKind {
    let fill_interval = Duration::from_secs(3600);
    HttpFilterKind::RateLimit(LocalRateLimit {
        bucket: Some(TokenBucket { max_tokens, tokens_per_fill: 1, fill_interval }),
        enabled: PerMillion::ALL,
        enforced: PerMillion::ALL,
        status,
        resource_exhausted: false,
        response_headers: Vec::new(),
        request_headers: Vec::new(),
        per_connection: false,
        quota_headers: false,
        retry_after: false,
    })
}

fn abort(status: u16) -> HttpFilterKind {
    let abort = Some(FaultAbort::with(AbortStatus::Http(status), PerMillion::ALL));
    HttpFilterKind::Fault(Some(Fault { abort, ..Fault::default() }))
}

/// A fault that every request meets, and no request is harmed by.
fn harmless() -> HttpFilterKind {
    let delay = Some(FaultDelay::of(Duration::ZERO, PerMillion::ALL));
    HttpFilterKind::Fault(Some(Fault { delay, ..Fault::default() }))
}

fn named(kinds: impl IntoIterator<Item = HttpFilterKind>) -> Vec<HttpFilter> {
    let kinds = kinds.into_iter().enumerate();
    kinds.map(|(i, kind)| HttpFilter { name: format!("filter-{i}"), kind }).collect()
}

fn execute(kinds: impl IntoIterator<Item = HttpFilterKind>) -> OnMatch {
    OnMatch::Execute(Arc::new(ExecuteFilters::all(named(kinds))))
}

/// By the value of `x-tier`.
fn by_tier(ends: &[(&str, OnMatch)], on_no_match: Option<OnMatch>) -> Composite {
    let input = HeaderKey::Header(HeaderName::from_static("x-tier"));
    let map: BTreeMap<String, OnMatch> = ends.iter().map(|(tier, end)| ((*tier).to_owned(), end.clone())).collect();
    Composite::of(MatcherTree { rule: MatcherRule::Exact { input, map }, on_no_match })
}

/// Every request passes these.
pub(crate) fn always(kinds: impl IntoIterator<Item = HttpFilterKind>) -> HttpFilterKind {
    HttpFilterKind::Composite(by_tier(&[], Some(execute(kinds))))
}

/// Half of the requests pass these.
fn half(kinds: impl IntoIterator<Item = HttpFilterKind>) -> HttpFilterKind {
    let chain = ExecuteFilters { share: PerMillion::new(500_000), ..ExecuteFilters::all(named(kinds)) };
    HttpFilterKind::Composite(by_tier(&[], Some(OnMatch::Execute(Arc::new(chain)))))
}

fn filtered(composite: Composite, server: &EchoServer) -> Snapshot {
    filtered_by(HttpFilterKind::Composite(composite), server)
}

fn filtered_by(kind: HttpFilterKind, server: &EchoServer) -> Snapshot {
    let mut snapshot = snapshot_with(forward_with(None), cluster("test"), &[server]);
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "composite".into(), kind }];
    snapshot
}

fn of_tier(tier: &str) -> Request<Empty<Bytes>> {
    let mut request = get("/");
    if !tier.is_empty() {
        request.headers_mut().insert("x-tier", tier.parse().unwrap());
    }
    request
}

/// The status of an answer, and of a refusal.
async fn status(client: &Client, request: Request<Empty<Bytes>>) -> u16 {
    match client.send(request).await {
        Ok(answer) => super::read(answer).await.unwrap().status().as_u16(),
        Err(error) => error.http_status().as_u16(),
    }
}

async fn statuses(client: &Client, tier: &str, asked: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..asked {
        statuses.push(status(client, of_tier(tier)).await);
    }
    statuses
}

fn undecided(error: &Error) {
    assert!(matches!(error.cause(), Cause::NoFilters { filter, .. } if &**filter == "composite"), "{error}");
    assert_eq!((error.code(), error.http_status().as_u16(), error.grpc_status()), (Code::NO_FILTERS, 503, 14));
    assert_eq!((error.blame(), error.attempts()), (Blame::Configuration, 0));
}

#[tokio::test]
async fn a103_a_request_passes_the_filters_that_its_headers_choose() {
    let server = EchoServer::start("one").await;
    let ends = [("bulk", execute([bucket(1, 421)])), ("none", OnMatch::Skip), ("broken", execute([abort(555)]))];
    let (client, _) = client_of(filtered(by_tier(&ends, None), &server));
    assert_eq!(statuses(&client, "bulk", 3).await, [200, 421, 421]);
    assert_eq!(statuses(&client, "none", 3).await, [200; 3]);
    assert_eq!(statuses(&client, "broken", 2).await, [555; 2]);
    let before = server.requests();
    // Nothing is found: the request fails, UNAVAILABLE, and nobody is sent it.
    for content_type in ["text/plain", "application/grpc"] {
        let mut request = of_tier("other");
        request.headers_mut().insert(CONTENT_TYPE, content_type.parse().unwrap());
        undecided(&client.send(request).await.unwrap_err());
    }
    undecided(&client.send(of_tier("")).await.unwrap_err());
    assert_eq!(server.requests(), before);
    // The control: a composite without a matcher does nothing.
    let (client, _) = client_of(filtered(Composite::default(), &server));
    assert_eq!(statuses(&client, "", 3).await, [200; 3]);
}

#[tokio::test]
async fn a103_chains_are_passed_in_their_order_and_within_one_another() {
    let server = EchoServer::start("one").await;
    // Each fault is waited for: what comes after it, inside and around, is passed once and in its order.
    let innermost = always([harmless(), harmless(), bucket(3, 421)]);
    let inner = [innermost, harmless(), bucket(2, 422)];
    let mut snapshot = filtered(by_tier(&[], Some(execute(inner))), &server);
    let listener = Arc::make_mut(&mut snapshot.listener);
    listener.filters.extend(named([harmless(), bucket(1, 423)]));
    let (client, _) = client_of(snapshot);
    assert_eq!(statuses(&client, "", 5).await, [200, 423, 422, 421, 421]);
}

#[tokio::test]
async fn a103_a_share_of_requests_passes_the_filters() {
    let server = EchoServer::start("one").await;
    for (share, expected) in [(0, 0..=0), (500_000, 50..=150), (1_000_000, 200..=200)] {
        let chain = ExecuteFilters { share: PerMillion::new(share), ..ExecuteFilters::all(named([abort(555)])) };
        let end = OnMatch::Execute(Arc::new(chain));
        let (client, _) = client_of(filtered(by_tier(&[], Some(end)), &server));
        let aborted = statuses(&client, "", 200).await.into_iter().filter(|status| *status == 555).count();
        assert!(expected.contains(&aborted), "{aborted} of 200 for {share}");
    }
}

#[tokio::test]
async fn a103_a_route_has_another_tree_and_its_entries_too() {
    let server = EchoServer::start("one").await;
    let own = |status| FilterOverride::Composite(by_tier(&[], Some(execute([abort(status)]))));
    let with = |filters: &[(&str, FilterOverride)]| {
        filters.iter().map(|(name, own)| ((*name).to_owned(), Arc::new(own.clone()))).collect()
    };
    let mut entry = WeightedCluster::new("test".into(), 1);
    entry.filters = with(&[("composite", own(553))]);
    let split = ClusterChoice::Weighted(WeightedClusters::new(vec![entry]).unwrap());
    let route = |path: &str, to: Forward, filters: &[(&str, FilterOverride)]| {
        let mut route = policy::forward(prefix(path), to);
        route.filters = Arc::new(with(filters));
        route
    };
    let forward = || Forward::to("test".into());
    let routes = policy::routes([
        route("/own", forward(), &[("composite", own(551))]),
        route("/off", forward(), &[("composite", FilterOverride::Disabled)]),
        route("/none", forward(), &[("composite", FilterOverride::Composite(Composite::default()))]),
        route("/entry", Forward { to: split, ..forward() }, &[("composite", own(552))]),
        route("/", forward(), &[("other", own(559))]),
    ]);
    let mut snapshot = filtered(by_tier(&[], Some(execute([abort(550)]))), &server);
    snapshot.routes = Arc::new(routes);
    let (client, _) = client_of(snapshot);
    for (path, want) in [("/own", 551), ("/off", 200), ("/none", 200), ("/entry", 553), ("/else", 550)] {
        assert_eq!(status(&client, get(path)).await, want, "{path}");
    }
}

#[tokio::test]
async fn a103_a_servers_filters_fail_the_requests_that_choose_them() {
    let server = EchoServer::start("one").await;
    let authorization = vec![AuthorizationPolicy::new("p", AuthorizationAction::Deny)];
    let chain = ExecuteFilters { authorization, ..ExecuteFilters::all(named([bucket(1, 421)])) };
    let ends = [("server", OnMatch::Execute(Arc::new(chain))), ("client", OnMatch::Skip)];
    let (client, _) = client_of(filtered(by_tier(&ends, None), &server));
    undecided(&client.send(of_tier("server")).await.unwrap_err());
    assert_eq!(server.requests(), 0);
    assert_eq!(statuses(&client, "client", 2).await, [200; 2]);
}

#[tokio::test]
async fn limits_in_a_composite_outlive_what_changes_around_them() {
    let server = EchoServer::start("one").await;
    let ends = [("a", execute([bucket(2, 421)])), ("b", execute([bucket(2, 421)]))];
    let snapshot = filtered(by_tier(&ends, None), &server);
    let (client, source) = client_of(snapshot.clone());
    // Equal limits of two chains are two.
    assert_eq!((statuses(&client, "a", 1).await, statuses(&client, "b", 1).await), (vec![200], vec![200]));
    let mut changed = snapshot;
    Arc::make_mut(&mut changed.routes).name = "other".into();
    // One of them stands before those there are.
    let first = ("0", execute([bucket(2, 421)]));
    let more = [first, ends[0].clone(), ends[1].clone(), ("c", execute([abort(555)]))];
    let kind = HttpFilterKind::Composite(by_tier(&more, None));
    Arc::make_mut(&mut changed.listener).filters = vec![HttpFilter { name: "composite".into(), kind }];
    source.set(TARGET, DestinationState::Ready(Arc::new(changed)));
    let in_force = async {
        while status(&client, of_tier("c")).await != 555 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), in_force).await.unwrap();
    assert_eq!(statuses(&client, "0", 3).await, [200, 200, 421]);
    assert_eq!((statuses(&client, "a", 2).await, statuses(&client, "b", 2).await), (vec![200, 421], vec![200, 421]));
}

/// What the bucket has left that is in the composite.
fn tokens(client: &Client, path: &str) -> u64 {
    let explained = client.explain(&Request::get(format!("http://{TARGET}{path}")).body(()).unwrap());
    assert_eq!(explained.error, None);
    let filters = serde_json::to_value(&explained.filters[0]).unwrap()["composite"]["filters"].clone();
    let tokens = filters.as_array().unwrap().iter().find_map(|filter| filter["rate_limit"]["tokens"].as_u64());
    tokens.unwrap_or_else(|| panic!("no bucket: {filters}"))
}

#[tokio::test]
async fn a103_a_request_is_looked_at_as_it_came() {
    let server = EchoServer::start("one").await;
    let is = |input, value: &str| MatchPredicate::Header { input, value: StringMatcher::exact(value) };
    let tier = HeaderKey::Header(HeaderName::from_static("x-tier"));
    let came = MatchPredicate::And(vec![is(HeaderKey::Path, "/a/x"), is(HeaderKey::Authority, TARGET)]);
    let list = vec![
        FieldMatcher { predicate: is(tier, "added"), on_match: execute([abort(555)]) },
        FieldMatcher { predicate: came, on_match: execute([sticky("one"), harmless(), bucket(2, 421)]) },
    ];
    let tree = MatcherTree { rule: MatcherRule::List(list), on_no_match: None };
    let mut snapshot = filtered(Composite::of(tree), &server);
    let authority = Some(AuthorityRewrite::Literal("other.test".into()));
    let rewrite = Rewrite { path: Some(PathRewrite::Prefix("/".into())), authority, ..Rewrite::default() };
    let mut route = policy::forward(prefix("/a/"), Forward { rewrite, ..forward_with(None) });
    let write = HeaderWrite {
        name: HeaderName::from_static("x-tier"),
        value: HeaderValue::from_static("added"),
        action: HeaderAction::Overwrite,
    };
    route.headers.request = HeaderOps { write: vec![write], remove: Vec::new() };
    snapshot.routes = Arc::new(policy::routes([route]));
    let (client, _) = client_of(snapshot);
    for left in [2, 1] {
        let answer = client.send(get("/a/x")).await.unwrap();
        let echoed =
            ["x-echo-path", "x-echo-authority"].map(|name| answer.headers()[name].to_str().unwrap().to_owned());
        assert_eq!(echoed, ["/x", "other.test"]);
        assert!(answer.headers()[SET_COOKIE].to_str().unwrap().starts_with("one="), "of the same choice");
        assert_eq!(server.received().last().unwrap().headers["x-tier"], "added");
        assert_eq!(status(&client, get("/a/y")).await, 503, "the control");
        // Whoever asks what would be done is told the same.
        assert_eq!(tokens(&client, "/a/x"), left - 1);
    }
    assert_eq!(status(&client, get("/a/x")).await, 421);
}

#[tokio::test]
async fn a103_one_draw_decides_about_the_session_and_the_limits_of_a_composite() {
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(filtered_by(half([sticky("one"), bucket(1000, 421)]), &server));
    super::fetch(&client, "/").await.unwrap();
    let mut passed = 0;
    for asked in 0..60 {
        let before = tokens(&client, "/");
        let answer = client.send(get("/")).await.unwrap();
        let has_session = answer.headers().contains_key(SET_COOKIE);
        super::read(answer).await.unwrap();
        assert_eq!(before - tokens(&client, "/"), u64::from(has_session), "request {asked}");
        passed += u32::from(has_session);
    }
    assert!((10..50).contains(&passed), "{passed} of 60");
}

#[tokio::test]
async fn a103_a_composite_within_another_has_a_draw_of_its_own() {
    let server = EchoServer::start("one").await;
    let (client, _) = client_of(filtered_by(half([half([sticky("one"), abort(555)])]), &server));
    let aborted = statuses(&client, "", 400).await.into_iter().filter(|status| *status == 555).count();
    let (client, _) = client_of(filtered_by(half([half([sticky("one")])]), &server));
    let mut sessions = 0;
    for _ in 0..400 {
        let answer = client.send(get("/")).await.unwrap();
        sessions += usize::from(answer.headers().contains_key(SET_COOKIE));
        super::read(answer).await.unwrap();
    }
    // A quarter; one draw for both would be half.
    assert!((50..150).contains(&aborted) && (50..150).contains(&sessions), "{aborted}, {sessions} of 400");
}

fn sticky(name: &str) -> HttpFilterKind {
    let source = SessionSource::Cookie { name: name.into(), path: String::new(), ttl: Duration::ZERO };
    HttpFilterKind::Session(Some(StatefulSession { source, strict: false }))
}

#[tokio::test]
async fn a55_a103_sessions_in_a_composite_are_of_the_requests_that_choose_them() {
    let servers = [EchoServer::start("v1").await, EchoServer::start("v2").await];
    let entries = ["v1", "v2"].map(|name| WeightedCluster::new(name.into(), 50));
    let split = ClusterChoice::Weighted(WeightedClusters::new(entries.to_vec()).unwrap());
    let routes = policy::routes([policy::forward(RouteMatch::any(), Forward { to: split, ..forward_with(None) })]);
    let mut snapshot = snapshot_of_clusters(routes, &[("v1", &servers[0]), ("v2", &servers[1])]);
    let ends = [("one", execute([sticky("one")])), ("two", execute([sticky("two")])), ("none", OnMatch::Skip)];
    let kind = HttpFilterKind::Composite(by_tier(&ends, None));
    Arc::make_mut(&mut snapshot.listener).filters = vec![HttpFilter { name: "composite".into(), kind }];
    let (client, _) = client_of(snapshot);
    for tier in ["one", "two"] {
        let first = client.send(of_tier(tier)).await.unwrap();
        let line = first.headers()[SET_COOKIE].to_str().unwrap().to_owned();
        assert!(line.starts_with(&format!("{tier}=")), "{line}");
        let owner = server_of(&first).to_owned();
        let with_cookie = |tier: &str| {
            let mut request = of_tier(tier);
            request.headers_mut().insert(COOKIE, line.split(';').next().unwrap().parse().unwrap());
            request
        };
        for _ in 0..20 {
            let answer = client.send(with_cookie(tier)).await.unwrap();
            assert_eq!((server_of(&answer), answer.headers().get(SET_COOKIE)), (&*owner, None));
        }
        // The control: who chooses no session has none.
        let mut others = Vec::new();
        for _ in 0..40 {
            let answer = client.send(with_cookie("none")).await.unwrap();
            assert_eq!(answer.headers().get(SET_COOKIE), None);
            others.push(server_of(&answer).to_owned());
        }
        assert!(others.iter().any(|server| *server != owner), "{others:?}");
    }
}

#[tokio::test]
async fn what_a_composite_would_do_is_explained() {
    let server = EchoServer::start("one").await;
    let chain = [bucket(3, 421), HttpFilterKind::AdaptiveConcurrency(Some(AdaptiveConcurrency::default()))];
    let path = MatchPredicate::Header { input: HeaderKey::Path, value: StringMatcher::exact("/limited") };
    let field = FieldMatcher { predicate: path, on_match: execute(chain) };
    let skipped = MatchPredicate::Header { input: HeaderKey::Path, value: StringMatcher::exact("/free") };
    let free = FieldMatcher { predicate: skipped, on_match: OnMatch::Skip };
    let tree = MatcherTree { rule: MatcherRule::List(vec![field, free]), on_no_match: None };
    let (client, _) = client_of(filtered(Composite::of(tree), &server));
    super::fetch(&client, "/limited").await.unwrap();
    let told = |path: &str| {
        let explained = client.explain(&Request::get(format!("http://{TARGET}{path}")).body(()).unwrap());
        (serde_json::to_value(&explained.filters[0]).unwrap()["composite"].clone(), explained.error)
    };
    let (limited, error) = told("/limited");
    assert_eq!((&limited["share"], error), (&serde_json::json!(1_000_000), None));
    assert_eq!(limited["filters"][0]["rate_limit"], serde_json::json!({ "tokens": 2, "most": 3 }));
    assert!(limited["filters"][1]["concurrency"]["limit"].is_u64(), "{limited}");
    let (free, error) = told("/free");
    assert_eq!((&free["filters"], error), (&serde_json::json!([]), None));
    let (nothing, error) = told("/other");
    assert!(nothing["filters"].is_null() && error.is_some_and(|error| error.contains("MESH-1008")), "{nothing}");
}
