//! Composite filters (gRFC A103): each request passes the filters that its headers choose, and none steps round those that
//! look at who calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, Composite, ExecuteFilters, Fault, HeaderKey,
    HttpFilter, HttpFilterKind, InboundListener, InboundState, InboundTls, JwtAuthentication, JwtKeys, JwtProvider,
    JwtRequirement, JwtRule, MatcherRule, MatcherTree, OnMatch, PathMatch, PerMillion, Permission, Principal,
    RouteMatch,
};
use mesh_server::Config;

use crate::audit;
use crate::filters::bucket;
use crate::kit::{Client, Http, World, eventually, get, listener, read, text, within};

/// Denies what is below `/admin`.
fn no_admin() -> AuthorizationPolicy {
    let rule = AuthorizationRule {
        name: "admin".to_owned(),
        permissions: vec![Permission::Path(PathMatch::Prefix("/admin".into()))],
        principals: vec![Principal::Any],
    };
    AuthorizationPolicy { rules: vec![rule], ..AuthorizationPolicy::new("no-admin", AuthorizationAction::Deny) }
}

/// Nobody may do anything.
fn nobody() -> AuthorizationPolicy {
    AuthorizationPolicy::new("nobody", AuthorizationAction::Allow)
}

fn judged(authorization: Vec<AuthorizationPolicy>) -> ExecuteFilters {
    ExecuteFilters { authorization, ..ExecuteFilters::all(Vec::new()) }
}

fn limited(max_tokens: u32) -> ExecuteFilters {
    let kind = HttpFilterKind::RateLimit(bucket(max_tokens));
    ExecuteFilters::all(vec![HttpFilter { name: "limit".to_owned(), kind }])
}

fn execute(filters: ExecuteFilters) -> OnMatch {
    OnMatch::Execute(Arc::new(filters))
}

/// By the value of `x-tier`.
fn by_tier(ends: &[(&str, OnMatch)], on_no_match: Option<OnMatch>) -> Composite {
    let map: BTreeMap<String, OnMatch> = ends.iter().map(|(tier, end)| ((*tier).to_owned(), end.clone())).collect();
    let input = HeaderKey::parse("x-tier").unwrap();
    Composite::of(MatcherTree { rule: MatcherRule::Exact { input, map }, on_no_match })
}

fn filter(name: &str, composite: Composite) -> HttpFilter {
    HttpFilter { name: name.to_owned(), kind: HttpFilterKind::Composite(composite) }
}

fn composed(composite: Composite) -> InboundListener {
    InboundListener { filters: vec![filter("composite", composite)], ..listener(InboundTls::Permissive) }
}

/// A server, and how often its application was asked.
struct Counted {
    world: World,
    calls: Arc<AtomicUsize>,
}

impl Counted {
    async fn start(listener: InboundListener) -> Self {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let service = tower::service_fn(move |_| {
            counted.fetch_add(1, Ordering::Relaxed);
            async { text("served") }
        });
        let state = InboundState::Ready(Arc::new(listener));
        Self { world: World::start(state, Config::default(), service).await, calls }
    }

    /// What is refused reaches nobody.
    async fn status(&self, client: &mut Client, request: Request<Empty<Bytes>>) -> u16 {
        let status = within(read(within(client.send(request)).await.unwrap())).await.unwrap().0;
        assert_eq!(self.calls.swap(0, Ordering::Relaxed), usize::from(status == 200), "{status}");
        audit::taken();
        status
    }

    async fn statuses(&self, client: &mut Client, tier: &str, asked: usize) -> Vec<u16> {
        let mut statuses = Vec::new();
        for _ in 0..asked {
            statuses.push(self.status(client, of_tier(&[tier], "/")).await);
        }
        statuses
    }
}

/// With one `x-tier` for each; an empty one is none.
fn of_tier(tiers: &[&str], path: &str) -> Request<Empty<Bytes>> {
    let mut request = get(path);
    for tier in tiers.iter().filter(|tier| !tier.is_empty()) {
        request.headers_mut().append("x-tier", tier.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn a103_a_request_is_judged_by_the_chain_that_its_headers_choose() {
    let ends = [("outside", execute(judged(vec![no_admin()]))), ("inside", OnMatch::Skip)];
    for before in [false, true] {
        let mut listener = composed(by_tier(&ends, None));
        if before {
            std::mem::swap(&mut listener.before, &mut listener.filters);
        }
        let world = Counted::start(listener).await;
        for version in [Http::One, Http::Two] {
            let mut client = world.world.plain(version).await;
            for (tier, path, want) in [
                ("outside", "/", 200),
                ("outside", "/admin", 403),
                ("inside", "/admin", 200),
                // Nothing is found: nobody is asked, whoever would have been.
                ("other", "/", 503),
                ("", "/", 503),
            ] {
                let status = world.status(&mut client, of_tier(&[tier], path)).await;
                assert_eq!(status, want, "{tier} {path} {version:?}");
            }
        }
        let mut client = world.world.plain(Http::Two).await;
        let mut request = of_tier(&["other"], "/s/m");
        request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        let answer = within(client.send(request)).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers()["grpc-status"].as_bytes()), (200, &b"14"[..]));
    }
    // The control: without a matcher it does nothing.
    let world = Counted::start(composed(Composite::default())).await;
    let mut client = world.world.plain(Http::One).await;
    assert_eq!(world.status(&mut client, get("/admin")).await, 200);
}

#[tokio::test]
async fn what_two_readers_would_read_in_two_ways_chooses_nothing_that_judges() {
    let ends = [("inside", OnMatch::Skip), ("inside,outside", OnMatch::Skip)];
    let otherwise = || Some(execute(judged(vec![nobody()])));
    let world = Counted::start(composed(by_tier(&ends, otherwise()))).await;
    let mut client = world.world.plain(Http::Two).await;
    for (tiers, want) in [
        (&["inside"][..], 200),
        (&["outside"], 403),
        (&["inside", "outside"], 400),
        (&["outside", "inside"], 400),
        // All the same to it.
        (&["outside", "else"], 403),
    ] {
        assert_eq!(world.status(&mut client, of_tier(tiers, "/")).await, want, "{tiers:?}");
    }
    // Under a name that is the same to many an application.
    let mut twin = of_tier(&["outside"], "/");
    twin.headers_mut().insert("x_tier", "inside".parse().unwrap());
    assert_eq!(world.status(&mut client, twin).await, 400);
    // The control: what only limits takes them for a list, as gRPC does.
    let world = Counted::start(composed(by_tier(&ends, Some(execute(limited(1)))))).await;
    let mut client = world.world.plain(Http::Two).await;
    assert_eq!(world.status(&mut client, of_tier(&["inside", "outside"], "/")).await, 200);
}

#[tokio::test]
async fn a103_a_share_of_requests_is_judged() {
    for (share, refused) in
        [(PerMillion::NONE, 0..=0), (PerMillion::new(500_000), 50..=150), (PerMillion::ALL, 200..=200)]
    {
        let chain = ExecuteFilters { share, ..judged(vec![nobody()]) };
        let world = Counted::start(composed(by_tier(&[], Some(execute(chain))))).await;
        let mut client = world.world.plain(Http::One).await;
        let found = world.statuses(&mut client, "", 200).await;
        let count = found.iter().filter(|status| **status == 403).count();
        assert!(refused.contains(&count), "{count} of 200 for {share:?}");
        assert_eq!(found.iter().filter(|status| **status == 200).count(), 200 - count);
    }
}

#[tokio::test]
async fn a103_composites_within_one_another_are_all_passed() {
    let inner = by_tier(&[("a", execute(judged(vec![no_admin()]))), ("b", OnMatch::Skip)], None);
    let mut outer = limited(2);
    outer.filters.push(filter("inner", inner));
    let world = Counted::start(composed(by_tier(&[], Some(execute(outer))))).await;
    let mut client = world.world.plain(Http::One).await;
    // What is refused takes nothing from a limit.
    for (tier, path, want) in
        [("a", "/admin", 403), ("c", "/", 503), ("a", "/", 200), ("b", "/admin", 200), ("b", "/", 429)]
    {
        assert_eq!(world.status(&mut client, of_tier(&[tier], path)).await, want, "{tier} {path}");
    }
}

#[tokio::test]
async fn a103_what_stands_beside_a_composite_judges_as_well() {
    let mut listener = composed(by_tier(&[("inside", OnMatch::Skip)], Some(execute(judged(vec![nobody()])))));
    listener.authorization = vec![no_admin()];
    let world = Counted::start(listener).await;
    let mut client = world.world.plain(Http::One).await;
    for (tier, path, want) in [("inside", "/", 200), ("inside", "/admin", 403), ("", "/", 403)] {
        assert_eq!(world.status(&mut client, of_tier(&[tier], path)).await, want, "{tier} {path}");
    }
}

#[tokio::test]
async fn a103_tokens_are_demanded_of_those_who_choose_it() {
    let provider = JwtProvider::new("https://issuer.test", JwtKeys::Inline(r#"{"keys": []}"#.to_owned()));
    let requirement = Some(JwtRequirement::Provider { name: "p".to_owned(), audiences: Vec::new() });
    let jwt = JwtAuthentication {
        name: "jwt".to_owned(),
        providers: [("p".to_owned(), provider)].into(),
        rules: vec![JwtRule { matcher: RouteMatch::any(), requirement }],
        bypass_cors_preflight: false,
    };
    let chain = ExecuteFilters { jwt: vec![jwt], ..judged(Vec::new()) };
    let ends = [("people", execute(chain)), ("machines", OnMatch::Skip)];
    let world = Counted::start(composed(by_tier(&ends, None))).await;
    let mut client = world.world.plain(Http::One).await;
    assert_eq!(world.statuses(&mut client, "people", 1).await, [401]);
    assert_eq!(world.statuses(&mut client, "machines", 1).await, [200]);
}

#[tokio::test]
async fn a103_a_clients_filters_fail_the_requests_that_choose_them() {
    let fault = HttpFilter { name: "fault".to_owned(), kind: HttpFilterKind::Fault(Some(Fault::default())) };
    let chain = ExecuteFilters { filters: vec![fault], ..judged(vec![no_admin()]) };
    let ends = [("client", execute(chain)), ("server", OnMatch::Skip)];
    let world = Counted::start(composed(by_tier(&ends, None))).await;
    let mut client = world.world.plain(Http::One).await;
    assert_eq!(world.statuses(&mut client, "client", 1).await, [503]);
    assert_eq!(world.statuses(&mut client, "server", 1).await, [200]);
}

#[tokio::test]
async fn limits_in_a_composite_are_of_its_chains_and_outlive_a_change_around_them() {
    for before in [false, true] {
        let ends = [("a", execute(limited(2))), ("b", execute(limited(2)))];
        let with = |ends: &[(&str, OnMatch)]| {
            let mut listener = composed(by_tier(ends, Some(OnMatch::Skip)));
            if before {
                std::mem::swap(&mut listener.before, &mut listener.filters);
            }
            listener
        };
        let world = Counted::start(with(&ends)).await;
        let mut client = world.world.plain(Http::One).await;
        assert_eq!(world.statuses(&mut client, "a", 1).await, [200]);
        assert_eq!(world.statuses(&mut client, "b", 3).await, [200, 200, 429]);
        assert_eq!(world.statuses(&mut client, "none", 3).await, [200; 3]);
        // Another listener, and other chains in the same composite, one of them with an equal limit before the others.
        let (early, shut) = (("A", execute(limited(2))), ("shut", execute(judged(vec![nobody()]))));
        let more = [early, ends[0].clone(), ends[1].clone(), shut];
        world.world.policy.publish(InboundState::Ready(Arc::new(with(&more))));
        // What looks at callers now did not before: the connection is not to be used on.
        within(client.ended).await.unwrap();
        let mut client = world.world.plain(Http::One).await;
        assert_eq!(world.statuses(&mut client, "shut", 1).await, [403]);
        assert_eq!(world.statuses(&mut client, "a", 2).await, [200, 429], "the bucket is the same");
        assert_eq!(world.statuses(&mut client, "b", 1).await, [429]);
        assert_eq!(world.statuses(&mut client, "A", 3).await, [200, 200, 429], "it has one of its own");
    }
}

#[tokio::test]
async fn limits_of_one_connection_in_a_composite_are_its_own() {
    let mut chain = limited(1);
    chain.filters[0].kind =
        HttpFilterKind::RateLimit(mesh_core::policy::LocalRateLimit { per_connection: true, ..bucket(1) });
    let world = Counted::start(composed(by_tier(&[], Some(execute(chain))))).await;
    for _ in 0..2 {
        let mut client = world.world.plain(Http::One).await;
        assert_eq!(world.statuses(&mut client, "", 2).await, [200, 429]);
    }
}

#[tokio::test]
async fn a_raw_connection_chooses_no_chain_that_judges() {
    for (chain, passes) in [(judged(vec![no_admin()]), false), (limited(1), true)] {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = calls.clone();
        let handler = move |connection: mesh_server::RawConnection| {
            counted.fetch_add(1, Ordering::Relaxed);
            async move { drop(connection) }
        };
        let listener = composed(by_tier(&[], Some(execute(chain))));
        let world = World::start_raw(InboundState::Ready(Arc::new(listener)), Config::default(), handler).await;
        let mut stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
        let mut rest = Vec::new();
        // It ends either way.
        let _ = within(tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest)).await;
        if passes {
            eventually(|| (calls.load(Ordering::Relaxed) == 1).then_some(())).await;
        }
        assert_eq!(calls.load(Ordering::Relaxed), usize::from(passes));
    }
}
