//! What routes that come on their own make of a server's filters.

use super::*;
use crate::policy::{
    AuthorizationAction, Composite, Domain, ExecuteFilters, HeaderPolicy, InboundTls, JwtKeys, JwtProvider,
    LocalRateLimit, MatcherRule, MatcherTree, OnMatch, PerMillion, VirtualHost,
};

fn limit(status: u16) -> LocalRateLimit {
    LocalRateLimit {
        bucket: None,
        enabled: PerMillion::ALL,
        enforced: PerMillion::ALL,
        status,
        resource_exhausted: false,
        response_headers: Vec::new(),
        request_headers: Vec::new(),
        per_connection: false,
        quota_headers: false,
        retry_after: false,
    }
}

#[test]
fn a103_a_route_of_rds_has_another_tree() {
    let composite = |end| Composite::of(MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(end) });
    let chain = OnMatch::Execute(Arc::new(ExecuteFilters::all(Vec::new())));
    let (of_listener, of_route) = (composite(OnMatch::Skip), composite(chain));
    let mut listener = InboundListener::new("l", "127.0.0.1:1".parse().unwrap(), InboundTls::Strict);
    let kind = HttpFilterKind::Composite(of_listener.clone());
    listener.filters = vec![HttpFilter { name: "c".to_owned(), kind }];
    let mut own = Route::new(RouteMatch::any(), RouteAction::NonForwarding);
    own.filters = Arc::new([("c".to_owned(), FilterOverride::Composite(of_route.clone()).into())].into());
    let host = VirtualHost {
        name: "h".to_owned(),
        domains: vec![Domain::new("*").unwrap()],
        routes: vec![own, Route::new(RouteMatch::any(), RouteAction::NonForwarding)],
        headers: HeaderPolicy::default(),
        retry: None,
    };
    let table = RouteConfiguration {
        name: "r".to_owned(),
        virtual_hosts: vec![host],
        headers: HeaderPolicy::default(),
        retry_budget: None,
    };
    let routed = listener.with_routes(&table);
    let kinds: Vec<_> = routed.routes.iter().map(|route| &route.serves.as_ref().unwrap().filters[0].kind).collect();
    assert_eq!(kinds, [&HttpFilterKind::Composite(of_route), &HttpFilterKind::Composite(of_listener)]);
    // Also into one that looks at callers.
    let policy = AuthorizationPolicy::new("p", AuthorizationAction::Deny);
    let judging = ExecuteFilters { authorization: vec![policy], ..ExecuteFilters::all(Vec::new()) };
    let judging = composite(OnMatch::Execute(Arc::new(judging)));
    let mut table = table;
    let change = FilterOverride::Composite(judging.clone());
    table.virtual_hosts[0].routes[0].filters = Arc::new([("c".to_owned(), change.into())].into());
    let routed = listener.with_routes(&table);
    let first = routed.routes.iter().next().unwrap().serves.as_ref().unwrap();
    assert_eq!(first.filters[0].kind, HttpFilterKind::Composite(judging));
}

#[test]
fn routes_that_change_the_same_share_their_guards() {
    let mut listener = InboundListener::new("l", "127.0.0.1:1".parse().unwrap(), InboundTls::Strict);
    let kind = HttpFilterKind::RateLimit(limit(429));
    listener.filters = vec![HttpFilter { name: "limit".to_owned(), kind }];
    let route = |name: &str, by: Option<FilterOverride>| {
        let mut route = Route::new(RouteMatch::any(), RouteAction::NonForwarding);
        route.filters = Arc::new(by.map(|by| (name.to_owned(), by.into())).into_iter().collect());
        route
    };
    let other = |status| Some(FilterOverride::RateLimit(limit(status)));
    let routes = vec![
        route("limit", None),
        // Of no filter of this listener.
        route("another", other(500)),
        route("limit", Some(FilterOverride::Enabled)),
        route("limit", other(500)),
        route("limit", other(500)),
        route("limit", other(501)),
        route("limit", Some(FilterOverride::Disabled)),
    ];
    let host = VirtualHost {
        name: "h".to_owned(),
        domains: vec![Domain::new("*").unwrap()],
        routes,
        headers: HeaderPolicy::default(),
        retry: None,
    };
    let table = RouteConfiguration {
        name: "r".to_owned(),
        virtual_hosts: vec![host.clone(), host],
        headers: HeaderPolicy::default(),
        retry_budget: None,
    };
    // Before tokens or after.
    let early = InboundListener { before: listener.filters.clone(), filters: Vec::new(), ..listener.clone() };
    let (early, listener) = (early.with_routes(&table), listener.with_routes(&table));
    for (early, late) in early.routes.iter().zip(listener.routes.iter()) {
        let guards = |route: &InboundRoute| route.serves.clone().unwrap();
        assert_eq!((&guards(early).before, guards(early).filters.len()), (&guards(late).filters, 0));
    }
    let guards: Vec<_> = listener.routes.iter().map(|route| route.serves.as_ref().unwrap()).collect();
    let first = |of: &Arc<Guards>| guards.iter().position(|one| Arc::ptr_eq(one, of)).unwrap();
    let shared: Vec<usize> = guards.iter().map(|of| first(of)).collect();
    assert_eq!(shared, [0, 0, 0, 3, 3, 5, 6].repeat(2));
    let status = |at: usize| match guards[at].filters.first().map(|filter| &filter.kind) {
        Some(HttpFilterKind::RateLimit(limit)) => limit.status,
        _ => 0,
    };
    assert_eq!([0, 3, 5, 6].map(status), [429, 500, 501, 0]);
}

fn filter(name: &str, kind: ChainFilterKind) -> ChainFilter {
    ChainFilter { name: name.to_owned(), disabled: false, kind }
}

fn rules(names: &[&str]) -> Vec<AuthorizationPolicy> {
    names.iter().map(|name| AuthorizationPolicy::new(*name, AuthorizationAction::Allow)).collect()
}

fn demand(provider: &str) -> JwtRequirement {
    JwtRequirement::Provider { name: provider.to_owned(), audiences: Vec::new() }
}

fn tokens() -> ChainFilterKind {
    let provider = JwtProvider::new("i", JwtKeys::Inline(String::new()));
    let demands = JwtAuthentication::required("jwt", [("p".to_owned(), provider)]);
    ChainFilterKind::Tokens { demands, requirements: [("other".to_owned(), demand("p"))].into() }
}

/// A listener with these filters.
fn listener(chain: Vec<ChainFilter>) -> InboundListener {
    let Guards { before, jwt, authorization, filters } = ChainFilter::guards(&chain).expect("they are in order");
    InboundListener {
        routes: InboundRoutes::Named("r".to_owned()),
        before,
        jwt,
        authorization,
        filters,
        chain,
        ..InboundListener::new("l", "127.0.0.1:1".parse().unwrap(), InboundTls::Strict)
    }
}

/// Routes that serve, each with what it changes.
fn table(changes: Vec<Vec<(&str, FilterOverride)>>) -> RouteConfiguration {
    let route = |changes: Vec<(&str, FilterOverride)>| {
        let mut route = Route::new(RouteMatch::any(), RouteAction::NonForwarding);
        route.filters = Arc::new(changes.into_iter().map(|(name, by)| (name.to_owned(), by.into())).collect());
        route
    };
    let host = VirtualHost {
        name: "h".to_owned(),
        domains: vec![Domain::new("*").unwrap()],
        routes: changes.into_iter().map(route).collect(),
        headers: HeaderPolicy::default(),
        retry: None,
    };
    let headers = HeaderPolicy::default();
    RouteConfiguration { name: "r".to_owned(), virtual_hosts: vec![host], headers, retry_budget: None }
}

/// What guards each route; none where it serves nothing.
fn guards_of(listener: &InboundListener, changes: Vec<Vec<(&str, FilterOverride)>>) -> Vec<Option<Arc<Guards>>> {
    let table = table(changes);
    let joined = listener.with_routes(&table);
    assert_eq!(joined.chain, [], "what is joined has all of it in its routes");
    let serves: Vec<_> = joined.routes.iter().map(|route| route.serves.clone()).collect();
    let unfit: Vec<_> = serves.iter().enumerate().filter(|(_, serves)| serves.is_none()).map(|(i, _)| (0, i)).collect();
    assert_eq!(joined.misfits(&table), unfit);
    serves
}

fn names(policies: &[AuthorizationPolicy]) -> Vec<&str> {
    policies.iter().map(|policy| policy.name.as_str()).collect()
}

#[test]
fn l3_routes_of_rds_change_who_may_call_a39_a41() {
    let mut off = filter("off", ChainFilterKind::Authorization(rules(&["b"])));
    off.disabled = true;
    let listener = listener(vec![filter("on", ChainFilterKind::Authorization(rules(&["a"]))), off]);
    assert_eq!(names(&listener.authorization), ["a"], "what has no route keeps the filter's own rules");
    let other = || FilterOverride::Authorization(rules(&["x", "y"]));
    let each = guards_of(
        &listener,
        vec![
            vec![],
            vec![("on", FilterOverride::Disabled)],
            vec![("on", FilterOverride::Enabled)],
            vec![("on", other())],
            vec![("on", other())],
            vec![("on", FilterOverride::Authorization(vec![]))],
            vec![("off", FilterOverride::Enabled)],
            vec![("off", other()), ("nobody", other())],
        ],
    );
    let policies: Vec<_> = each.iter().map(|guards| names(&guards.as_ref().unwrap().authorization)).collect();
    let want: [&[&str]; 8] = [&["a"], &[], &["a"], &["x", "y"], &["x", "y"], &[], &["a", "b"], &["a", "x", "y"]];
    assert_eq!(policies, want);
    let same = |a: usize, b: usize| Arc::ptr_eq(each[a].as_ref().unwrap(), each[b].as_ref().unwrap());
    assert!(same(0, 2) && same(3, 4) && !same(0, 3), "routes that change the same share it");
}

#[test]
fn l3_routes_of_rds_have_tokens_demanded_by_name() {
    let listener = listener(vec![filter("jwt", tokens())]);
    let other = FilterOverride::Requirement("other".to_owned());
    let each = guards_of(&listener, vec![vec![], vec![("jwt", other)], vec![("jwt", FilterOverride::Disabled)]]);
    let jwt: Vec<_> = each.iter().map(|guards| &guards.as_ref().unwrap().jwt[..]).collect();
    assert_eq!(jwt[0], listener.jwt);
    assert_eq!((jwt[1][0].name.as_str(), &jwt[1][0].providers), ("jwt@other", &listener.jwt[0].providers));
    assert_eq!(jwt[1][0].rules, [JwtRule { matcher: RouteMatch::any(), requirement: Some(demand("p")) }]);
    assert_eq!(jwt[2], []);
}

#[test]
fn a_route_of_rds_whose_change_does_not_fit_serves_nothing() {
    let skip = Composite::of(MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(OnMatch::Skip) });
    let chain = vec![
        filter("rbac", ChainFilterKind::Authorization(rules(&["a"]))),
        filter("jwt", tokens()),
        filter("limit", ChainFilterKind::Http(HttpFilterKind::RateLimit(limit(429)))),
        filter("skipped", ChainFilterKind::Http(HttpFilterKind::Skipped { type_url: "t".to_owned() })),
    ];
    let requirement = |name: &str| FilterOverride::Requirement(name.to_owned());
    let authorization = || FilterOverride::Authorization(rules(&["x"]));
    for (name, change, serves) in [
        ("rbac", authorization(), true),
        ("jwt", requirement("other"), true),
        ("limit", FilterOverride::RateLimit(limit(500)), true),
        // A server has no such filter, and nothing of its own is to be replaced by it.
        ("rbac", FilterOverride::Fault(Default::default()), true),
        ("jwt", requirement("nobody's"), false),
        ("jwt", authorization(), false),
        ("rbac", requirement("other"), false),
        ("rbac", FilterOverride::RateLimit(limit(500)), false),
        ("limit", authorization(), false),
        ("limit", FilterOverride::Composite(skip.clone()), false),
        ("skipped", authorization(), false),
    ] {
        let said = format!("{name} {change:?}");
        let each = guards_of(&listener(chain.clone()), vec![vec![], vec![(name, change)]]);
        assert!(each[0].is_some(), "the control: what changes nothing");
        assert_eq!(each[1].is_some(), serves, "{said}");
    }
}

#[test]
fn a_route_of_rds_that_turns_a_composite_on_too_late_serves_nothing() {
    let reads = ExecuteFilters { jwt: vec![JwtAuthentication::optional("t", [])], ..ExecuteFilters::all(Vec::new()) };
    let tree = |end| Composite::of(MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(end) });
    let composite = |end| {
        let kind = ChainFilterKind::Http(HttpFilterKind::Composite(tree(end)));
        ChainFilter { disabled: true, ..filter("c", kind) }
    };
    let rbac = || filter("rbac", ChainFilterKind::Authorization(rules(&["a"])));
    let on = || vec![("c", FilterOverride::Enabled)];
    let read = || OnMatch::Execute(Arc::new(reads.clone()));
    for (chain, serves) in [
        (vec![composite(OnMatch::Skip), rbac(), filter("jwt", tokens())], true),
        (vec![rbac(), composite(OnMatch::Skip), filter("jwt", tokens())], false),
        (vec![rbac(), filter("jwt", tokens()), composite(OnMatch::Skip)], true),
        (vec![composite(read()), rbac()], true),
        (vec![rbac(), composite(read())], false),
    ] {
        let each = guards_of(&listener(chain.clone()), vec![vec![], on()]);
        assert_eq!((each[0].is_some(), each[1].is_some()), (true, serves), "{chain:?}");
    }
    // The control: with what it would be too late for off, it is in time.
    let listener = listener(vec![rbac(), composite(read())]);
    let both = vec![("rbac", FilterOverride::Disabled), ("c", FilterOverride::Enabled)];
    assert!(guards_of(&listener, vec![both])[0].is_some());
}

#[test]
fn what_routes_of_rds_hold_is_bounded_and_what_they_share_is_there_once() {
    let big = filter("big", ChainFilterKind::Authorization(rules(&["x".repeat(1 << 20).as_str()])));
    let one = filter("f", ChainFilterKind::Http(HttpFilterKind::RateLimit(limit(429))));
    let listener = listener(vec![big, one]);
    let places = |number: u16, differ: bool| {
        let status = |i| if differ { 400 + i } else { 500 };
        let routes = (0..number).map(|i| vec![("f", FilterOverride::RateLimit(limit(status(i))))]);
        guards_of(&listener, routes.collect()).iter().filter(|guards| guards.is_some()).count()
    };
    assert_eq!(places(20, true), 20);
    assert_eq!(places(40, true), 31, "a megabyte each");
    assert_eq!(places(400, false), 400, "the control: they change the same");
}
