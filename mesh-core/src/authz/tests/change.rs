//! What of a listener's policy may change without a word to those who are connected.

use std::time::Duration;

use super::*;
use crate::policy::{
    Composite, Domain, ExecuteFilters, Guards, HttpFilter, HttpFilterKind, InboundHost, InboundListener, InboundRoute,
    InboundRoutes, InboundTls, JwtAuthentication, JwtKeys, JwtProvider, MatcherRule, MatcherTree, OnMatch, RouteMatch,
};

fn keys(jwks: &str) -> JwtKeys {
    JwtKeys::Fetched { jwks: jwks.to_owned(), max_age: Duration::from_secs(60) }
}

fn tokens(provider: JwtProvider) -> Vec<JwtAuthentication> {
    vec![JwtAuthentication::optional("jwt", [("p".to_owned(), provider)])]
}

fn skipped(name: &str) -> HttpFilter {
    HttpFilter { name: name.to_owned(), kind: HttpFilterKind::Skipped { type_url: "limit".to_owned() } }
}

fn whole(guards: Guards) -> InboundListener {
    let Guards { before, jwt, authorization, filters } = guards;
    let listener = InboundListener::new("l", "10.0.0.9:8080".parse().unwrap(), InboundTls::Strict);
    InboundListener { before, jwt, authorization, filters, ..listener }
}

/// Two routes, the first with these guards.
fn routed(guards: Guards) -> InboundListener {
    let route = |name: &str, guards: Guards| InboundRoute {
        name: name.to_owned(),
        matcher: RouteMatch { path: PathMatch::Prefix(name.to_owned()), ..RouteMatch::any() },
        serves: Some(guards.into()),
    };
    let routes = vec![route("/a", guards), route("/", Guards::default())];
    let host = InboundHost { name: "h".to_owned(), domains: vec![Domain::new("*").unwrap()], routes };
    InboundListener { routes: InboundRoutes::Listed([host].into()), ..whole(Guards::default()) }
}

/// Whether a change lets the web service stay.
fn stays(known: &InboundListener, now: &InboundListener) -> bool {
    let (peer, destination) = (peer(Some(WEB)).unwrap(), "10.0.0.9:8080".parse().unwrap());
    let change = PolicyChange::between(&Arc::new(known.clone()), &Arc::new(now.clone()));
    change.keeps_open(Caller { peer: &peer, destination, server_name: "" })
}

#[test]
fn keys_and_limits_come_and_go_with_routes_and_without() {
    let of = |provider: JwtProvider| Guards {
        jwt: tokens(provider),
        authorization: vec![policy("no", AuthorizationAction::Deny, vec![rule("r", vec![path("/x")], vec![is(WEB)])])],
        ..Guards::default()
    };
    let known = || of(JwtProvider::new("i", keys("one")));
    let other_keys = of(JwtProvider::new("i", keys("two")));
    let limited = Guards { before: vec![skipped("a")], filters: vec![skipped("b")], ..known() };
    let mut other_audience = JwtProvider::new("i", keys("one"));
    other_audience.audiences.push("shop".to_owned());
    let denied = policy("no", AuthorizationAction::Deny, vec![rule("r", vec![path("/y")], vec![is(WEB)])]);
    let denied = Guards { authorization: vec![denied], ..known() };
    let no_tokens = Guards { jwt: Vec::new(), ..known() };
    for listener in [whole, routed] {
        let known = listener(known());
        for now in [known.clone(), listener(other_keys.clone()), known.outdated(), listener(limited.clone())] {
            assert!(stays(&known, &now), "{known:#?} to {now:#?}");
            assert!(stays(&now, &known), "{now:#?} to {known:#?}");
        }
        // The control: what decides.
        for now in [of(other_audience.clone()), denied.clone(), no_tokens.clone()] {
            let now = listener(now);
            assert!(!stays(&known, &now), "{known:#?} to {now:#?}");
        }
    }
    assert!(!stays(&whole(known()), &routed(known())));
}

#[test]
fn composites_that_look_at_callers_decide_and_others_do_not() {
    let composite = |authorization| {
        let chain = ExecuteFilters { authorization, ..ExecuteFilters::all(vec![skipped("limit")]) };
        let (rule, on_no_match) = (MatcherRule::List(Vec::new()), Some(OnMatch::Execute(Arc::new(chain))));
        let kind = HttpFilterKind::Composite(Composite::of(MatcherTree { rule, on_no_match }));
        HttpFilter { name: "composite".to_owned(), kind }
    };
    let judging = composite(vec![policy("no", AuthorizationAction::Deny, Vec::new())]);
    let guards = |filters| Guards { filters, ..Guards::default() };
    for listener in [whole, routed] {
        let (none, limits, judges) = (
            listener(guards(Vec::new())),
            listener(guards(vec![composite(Vec::new())])),
            listener(guards(vec![judging.clone()])),
        );
        let early = listener(Guards { before: vec![judging.clone()], ..Guards::default() });
        assert!(stays(&none, &limits) && stays(&limits, &none) && stays(&judges, &judges.clone()));
        for (known, now) in [(&none, &judges), (&limits, &judges), (&judges, &none), (&none, &early)] {
            assert!(!stays(known, now), "{known:#?} to {now:#?}");
        }
    }
}

#[test]
fn routes_decide_alike_whatever_they_are_called_and_not_with_other_paths_or_hosts() {
    let known = routed(Guards::default());
    let change = |change: &dyn Fn(&mut InboundHost)| {
        let InboundRoutes::Listed(hosts) = &known.routes else { panic!("they are listed") };
        let mut hosts = hosts.to_vec();
        change(&mut hosts[0]);
        InboundListener { routes: InboundRoutes::Listed(hosts.into()), ..known.clone() }
    };
    assert!(stays(&known, &change(&|host| host.routes[0].name = "other".to_owned())));
    for other in [
        change(&|host| host.domains[0] = Domain::new("a.test").unwrap()),
        change(&|host| host.routes[0].matcher.path = PathMatch::Prefix("/b".to_owned())),
        change(&|host| host.routes[0].serves = None),
        change(&|host| host.routes.truncate(1)),
    ] {
        assert!(!stays(&known, &other), "{other:#?}");
    }
}
