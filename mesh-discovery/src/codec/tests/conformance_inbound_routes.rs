//! gRPC's rules for the routes of a server, case by case (R: routes, L: listener, V: server side; gRFC A36, A39, A41).
//! Nothing of a table is passed over: what a server does not follow it does not serve. See `conformance.rs`.

use std::sync::Arc;

use envoy_types::pb::envoy::config::route::v3::{
    FilterConfig, NonForwardingAction, RedirectAction, Route as RouteProto, RouteConfiguration as RoutesProto,
    RouteMatch as MatchProto, VirtualHost as HostProto, route, route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::common::matching::v3::ExtensionWithMatcherPerRoute;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::{
    PerRouteConfig, jwt_requirement::RequiresType, per_route_config::RequirementSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as LimitProto;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac as RbacProto, RbacPerRoute};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, Rds, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::r#type::v3::TokenBucket as BucketProto;
use envoy_types::pb::google::protobuf::{Any, Duration};
use mesh_core::policy::*;

use super::conformance::{Says, says};
use super::conformance_composite::{chain, composite, execute, named, only, skip};
use super::conformance_server::{demand, rules, with_manager};
use crate::codec::{self, Packed, extension, extension::url};

const TABLE: &str = "filter_chains[0].filters[0].route_config";

fn serve() -> Option<route::Action> {
    Some(route::Action::NonForwardingAction(NonForwardingAction {}))
}

fn route(prefix: &str, action: Option<route::Action>) -> RouteProto {
    let path = MatchProto { path_specifier: Some(PathSpecifier::Prefix(prefix.into())), ..Default::default() };
    RouteProto { r#match: Some(path), action, ..Default::default() }
}

fn host(domain: &str, routes: Vec<RouteProto>) -> HostProto {
    HostProto { name: domain.into(), domains: vec![domain.into()], routes, ..Default::default() }
}

fn table(m: &mut HttpConnectionManager) -> &mut RoutesProto {
    let Some(RouteSpecifier::RouteConfig(routes)) = &mut m.route_specifier else { panic!("inline") };
    routes
}

fn with_hosts(hosts: Vec<HostProto>) -> Any {
    with_manager(|m| table(m).virtual_hosts = hosts)
}

/// With the filter `f` of this type, and these virtual hosts.
fn with_filter(type_url: &str, config: &impl prost::Message, hosts: Vec<HostProto>) -> Any {
    let filter = codec::filter::encode("f", extension::pack(type_url, config), false);
    with_manager(|m| {
        m.http_filters.insert(0, filter);
        table(m).virtual_hosts = hosts;
    })
}

/// What a listener is together with routes that come on their own; a refusal of any of the three.
pub(super) fn joined(inline: &Any) -> Option<Result<InboundListener, codec::DecodeError>> {
    let (listener, routes) = mesh_testkit::xds::apart(&inline.value, "r")?;
    let alone = codec::decode_listener(Packed { type_url: codec::LISTENER, bytes: &listener })
        .and_then(|_| codec::decode_routes(Packed { type_url: codec::ROUTES, bytes: &routes }));
    Some(alone.and_then(|_| codec::join(&listener, &routes)).map(|joined| joined.value))
}

/// A listener with these routes in it. It says the same of what they do where they come on their own.
fn decoded(inline: &Any) -> InboundListener {
    let listener = super::conformance_server::decoded(inline);
    if let Some(joined) = joined(inline) {
        assert_eq!(joined, Ok(listener.clone()));
    }
    listener
}

fn inline(case: &str, resource: &Any, want: &Says<'_>) {
    let read = codec::decode_listener(resource);
    let joined = joined(resource).expect("routes that can come on their own");
    assert_eq!(joined.is_ok(), read.is_ok(), "{case}: {joined:?}");
    says(case, read, want);
}

fn changing(mut route: RouteProto, config: Any) -> RouteProto {
    route.typed_per_filter_config.insert("f".into(), config);
    route
}

/// Of every route, in order: whether it serves.
fn serves(listener: &InboundListener) -> Vec<bool> {
    listener.routes.iter().map(|route| route.serves.is_some()).collect()
}

fn guards(listener: &InboundListener) -> Vec<&Guards> {
    listener.routes.iter().map(|route| &**route.serves.as_ref().expect("it serves")).collect()
}

#[test]
fn r1_r6_r7_a_table_that_does_not_serve_all_alike_is_kept_as_it_is_a36() {
    let plain = decoded(&with_hosts(vec![host("*", vec![route("/", serve())])]));
    assert_eq!(plain.routes, InboundRoutes::All, "the control");
    // A route behind one that takes everything is never reached.
    let behind = vec![route("/", serve()), route("/admin", None)];
    assert_eq!(decoded(&with_hosts(vec![host("*", behind)])).routes, InboundRoutes::All);
    let redirect = Some(route::Action::Redirect(RedirectAction::default()));
    for (name, hosts, want) in [
        ("no virtual host", vec![], vec![]),
        ("no route", vec![host("*", vec![])], vec![]),
        ("one authority", vec![host("a.test", vec![route("/", serve())])], vec![true]),
        ("one path", vec![host("*", vec![route("/a", serve())])], vec![true]),
        (
            "another action first",
            vec![host("*", vec![route("/admin", redirect), route("/", serve())])],
            vec![false, true],
        ),
        ("no action", vec![host("*", vec![route("/", None)])], vec![false]),
        (
            "two virtual hosts",
            vec![host("a.test", vec![route("/", None)]), host("*", vec![route("/", serve())])],
            vec![false, true],
        ),
    ] {
        let listener = decoded(&with_hosts(hosts));
        assert!(matches!(listener.routes, InboundRoutes::Listed(_)), "{name}");
        assert_eq!(serves(&listener), want, "{name}");
    }
    let refuses = with_hosts(vec![host("*", vec![route("/a", None)])]);
    says(
        "what is not served is said",
        codec::decode_listener(&refuses),
        &Says::Reported(&["routes.virtual_hosts[0].routes[0]"]),
    );
}

#[test]
fn r1_r2_conditions_of_a_servers_routes_are_checked_as_a_clients_a28() {
    let at = |rest: &str| format!("{TABLE}.virtual_hosts[0].{rest}");
    let refused = |name: &str, change: &dyn Fn(&mut HostProto), field: &str| {
        let mut host = host("a.test", vec![route("/", serve())]);
        change(&mut host);
        says(name, codec::decode_listener(&with_hosts(vec![host])), &Says::Refused(&[&at(field)]));
    };
    refused("no domain", &|h| h.domains.clear(), "domains");
    refused("a star inside", &|h| h.domains = vec!["a.*.test".into()], "domains[0]");
    refused("a matcher tree", &|h| h.matcher = Some(Default::default()), "matcher");
    refused("no match", &|h| h.routes[0].r#match = None, "routes[0].match");
    let no_path = |h: &mut HostProto| h.routes[0].r#match = Some(MatchProto::default());
    refused("no path", &no_path, "routes[0].match");
    let metadata = |h: &mut HostProto| {
        h.routes[0].r#match.as_mut().unwrap().dynamic_metadata = vec![Default::default()];
    };
    refused("dynamic metadata", &metadata, "routes[0].match.dynamic_metadata");
    let twice = with_hosts(vec![host("a.test", vec![]), host("A.test", vec![])]);
    let field = format!("{TABLE}.virtual_hosts[1].domains[0]");
    inline("a domain of two", &twice, &Says::Refused(&[&field]));
    let plugin = with_manager(|m| table(m).cluster_specifier_plugins.push(Default::default()));
    let field = format!("{TABLE}.cluster_specifier_plugins[0]");
    inline("r10: a plugin", &plugin, &Says::Refused(&[&field]));
}

#[test]
fn l3_the_most_specific_place_changes_an_rbac_filter_a39_a41() {
    let none = || extension::pack(url::RBAC_PER_ROUTE, &RbacPerRoute { rbac: Some(RbacProto::default()) });
    let other = || extension::pack(url::RBAC_PER_ROUTE, &RbacPerRoute { rbac: Some(rules(None)) });
    let off = || extension::pack(url::FILTER_CONFIG, &FilterConfig { disabled: true, ..Default::default() });
    let mut inner = host("a.test", vec![changing(route("/open", serve()), off()), route("/", serve())]);
    inner.typed_per_filter_config.insert("f".into(), other());
    let outer = host("*", vec![changing(route("/", serve()), none()), route("/never", serve())]);
    let resource = with_filter(url::RBAC, &rules(None), vec![inner, outer]);
    let listener = decoded(&resource);
    let policies: Vec<Vec<&str>> =
        guards(&listener).iter().map(|g| g.authorization.iter().map(|p| p.name.as_str()).collect()).collect();
    assert_eq!(policies, [vec![], vec!["f@virtual_hosts[0]"], vec![], vec!["f"]]);
    assert_eq!(listener.authorization.len(), 1, "what has no route keeps the filter's own rules");
    // An inner place turns on again what an outer one turned off.
    let mut shut = host("a.test", vec![changing(route("/", serve()), other())]);
    shut.typed_per_filter_config.insert("f".into(), off());
    let listener = decoded(&with_filter(url::RBAC, &rules(None), vec![shut]));
    assert_eq!(guards(&listener)[0].authorization.len(), 1);
    // The same on the one route that takes all.
    let all = |config| {
        decoded(&with_filter(url::RBAC, &rules(None), vec![host("*", vec![changing(route("/", serve()), config)])]))
    };
    assert_eq!((all(none()).authorization.len(), all(off()).authorization.len()), (0, 0));
    assert_eq!(all(other()).authorization[0].name, "f");
    let limit = extension::pack(url::RATE_LIMIT, &LimitProto::default());
    let mismatched = with_filter(url::RBAC, &rules(None), vec![host("*", vec![changing(route("/", serve()), limit)])]);
    let field = "filter_chains[0].filters[0].http_filters[0]";
    inline("another filter's", &mismatched, &Says::Refused(&[field]));
}

/// Envoy: `config: {}` turns a filter on, and has no configuration of its own to hide the one further out.
#[test]
fn l3_that_a_filter_is_on_says_nothing_of_how_a39() {
    let on = || {
        let config = FilterConfig { config: Some(Any::default()), ..Default::default() };
        extension::pack(url::FILTER_CONFIG, &config)
    };
    let off = || extension::pack(url::FILTER_CONFIG, &FilterConfig { disabled: true, ..Default::default() });
    let other = || extension::pack(url::RBAC_PER_ROUTE, &RbacPerRoute { rbac: Some(rules(None)) });
    let no_rules = || extension::pack(url::RBAC_PER_ROUTE, &RbacPerRoute { rbac: None });
    // The filter's own are none: what is judged by rules is judged by the virtual host's.
    let judged = |outer: Option<Any>, own: &RbacProto| {
        let mut host = host("a.test", vec![changing(route("/", serve()), on())]);
        host.typed_per_filter_config.extend(outer.map(|config| ("f".to_owned(), config)));
        guards(&decoded(&with_filter(url::RBAC, own, vec![host])))[0].authorization.len()
    };
    let empty = RbacProto::default();
    assert_eq!((judged(Some(other()), &empty), judged(None, &empty)), (1, 0), "with the control");
    assert_eq!((judged(Some(off()), &rules(None)), judged(Some(no_rules()), &rules(None))), (1, 0));
    // A place between that turns it off hides it as little.
    let turned_off_between = |off: Option<Any>| {
        let mut host = host("a.test", vec![changing(route("/", serve()), on())]);
        host.typed_per_filter_config.extend(off.map(|config| ("f".to_owned(), config)));
        let resource = with_manager(|m| {
            m.http_filters.insert(0, codec::filter::encode("f", extension::pack(url::RBAC, &empty), false));
            table(m).typed_per_filter_config.insert("f".into(), other());
            table(m).virtual_hosts = vec![host];
        });
        guards(&decoded(&resource))[0].authorization.len()
    };
    assert_eq!((turned_off_between(Some(off())), turned_off_between(None)), (1, 1));
}

#[test]
fn l3_what_demands_nothing_of_one_kind_turns_off_no_filter_of_another() {
    let no_rules = extension::pack(url::RBAC_PER_ROUTE, &RbacPerRoute { rbac: None });
    let disabled = PerRouteConfig { requirement_specifier: Some(RequirementSpecifier::Disabled(true)) };
    let no_demand = extension::pack(url::JWT_PER_ROUTE, &disabled);
    let tokens = demand(RequiresType::ProviderName("p".into()));
    let on = |config: &Any| vec![host("*", vec![changing(route("/", serve()), config.clone())])];
    let field = "filter_chains[0].filters[0].http_filters[0]";
    let says_of = |name: &str, resource: Any, want: &Says<'_>| inline(name, &resource, want);
    says_of("no rules for tokens", with_filter(url::JWT, &tokens, on(&no_rules)), &Says::Refused(&[field]));
    says_of("no demand on rules", with_filter(url::RBAC, &rules(None), on(&no_demand)), &Says::Refused(&[field]));
    // The controls.
    says_of("no demand", with_filter(url::JWT, &tokens, on(&no_demand)), &Says::Taken);
    says_of("no rules", with_filter(url::RBAC, &rules(None), on(&no_rules)), &Says::Taken);
}

#[test]
fn l3_routes_change_demands_on_tokens_and_limits_a39() {
    let mut config = demand(RequiresType::ProviderName("p".into()));
    let lax = RequiresType::AllowMissing(Default::default());
    config.requirement_map.insert(
        "lax".into(),
        envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::JwtRequirement { requires_type: Some(lax) },
    );
    let per_route =
        |specifier| extension::pack(url::JWT_PER_ROUTE, &PerRouteConfig { requirement_specifier: Some(specifier) });
    let routes = vec![
        changing(route("/lax", serve()), per_route(RequirementSpecifier::RequirementName("lax".into()))),
        changing(route("/open", serve()), per_route(RequirementSpecifier::Disabled(true))),
        route("/", serve()),
    ];
    let listener = decoded(&with_filter(url::JWT, &config, vec![host("*", routes)]));
    let requirements: Vec<_> =
        guards(&listener).iter().map(|g| g.jwt.first().map(|jwt| jwt.rules[0].requirement.clone().unwrap())).collect();
    let named = JwtRequirement::Provider { name: "p".into(), audiences: vec![] };
    assert_eq!(requirements, [Some(JwtRequirement::AllowMissing), None, Some(named)]);
    // A route that is to be chosen anew once the tokens are read.
    config.providers.get_mut("p").unwrap().clear_route_cache = true;
    let several = || vec![route("/a", serve()), route("/", serve())];
    let again = codec::decode_listener(&with_filter(url::JWT, &config, vec![host("*", several())]));
    let field = "filter_chains[0].filters[0].http_filters[0].providers[\"p\"].clear_route_cache";
    says("routes chosen anew", again, &Says::Refused(&[field]));
    // The control: there is one for all.
    let one = codec::decode_listener(&with_filter(url::JWT, &config, vec![host("*", vec![route("/", serve())])]));
    says("one route", one, &Says::Taken);

    let limit = |max_tokens| LimitProto {
        token_bucket: Some(BucketProto {
            max_tokens,
            tokens_per_fill: None,
            fill_interval: Some(Duration { seconds: 1, nanos: 0 }),
        }),
        ..Default::default()
    };
    let other = |max| extension::pack(url::RATE_LIMIT, &limit(max));
    let routes =
        vec![changing(route("/a", serve()), other(1)), changing(route("/b", serve()), other(1)), route("/", serve())];
    let listener = decoded(&with_filter(url::RATE_LIMIT, &limit(9), vec![host("*", routes)]));
    let names: Vec<&str> = guards(&listener).iter().map(|g| g.filters[0].name.as_str()).collect();
    assert_eq!(
        names,
        ["f@virtual_hosts[0].routes[0]", "f@virtual_hosts[0].routes[1]", "f"],
        "each place has its bucket"
    );
}

#[test]
fn what_routes_change_is_bounded_and_its_names_are_nobody_elses() {
    let off = || extension::pack(url::RATE_LIMIT, &LimitProto::default());
    let many = |routes: usize, bytes: usize| {
        let big = LimitProto { stat_prefix: "x".repeat(bytes), ..Default::default() };
        let routes = (0..routes).map(|i| changing(route(&format!("/{i}"), serve()), off()));
        codec::decode_listener(&with_filter(url::RATE_LIMIT, &big, vec![host("*", routes.collect())]))
    };
    let at = "filter_chains[0].filters[0].http_filters";
    says("40 places of a megabyte", many(40, 1 << 20), &Says::Refused(&[at]));
    says("20", many(20, 1 << 20), &Says::Taken);
    let taken = with_manager(|m| {
        for name in ["f", "f@virtual_hosts[0].routes[0]"] {
            let limit = extension::pack(url::RATE_LIMIT, &LimitProto::default());
            m.http_filters.insert(0, codec::filter::encode(name, limit, false));
        }
        let routes = vec![changing(route("/a", serve()), off()), route("/", serve())];
        table(m).virtual_hosts = vec![host("*", routes)];
    });
    inline("a name of another", &taken, &Says::Refused(&[&format!("{at}[1]")]));
}

/// A megabyte that a virtual host says is there once, however many routes it has; with each of them that changes another
/// filter it counts.
#[test]
fn what_a_virtual_host_changes_is_not_copied_for_each_of_its_routes() {
    use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, permission, principal};
    let everything = Policy {
        permissions: vec![Permission { rule: Some(permission::Rule::Any(true)) }],
        principals: vec![Principal { identifier: Some(principal::Identifier::Any(true)) }],
        ..Default::default()
    };
    let mut big = rules(None);
    big.rules.as_mut().unwrap().policies.insert("x".repeat(1 << 20), everything);
    let big = extension::pack(url::RBAC_PER_ROUTE, &RbacPerRoute { rbac: Some(big) });
    let off = extension::pack(url::FILTER_CONFIG, &FilterConfig { disabled: true, ..Default::default() });
    let resource = |number: usize, off: Option<&Any>| {
        let routes = (0..number).map(|i| {
            let mut route = route(&format!("/{i}"), serve());
            route.typed_per_filter_config.extend(off.map(|off| ("g".to_owned(), off.clone())));
            route
        });
        let mut host = host("a.test", routes.collect());
        host.typed_per_filter_config.insert("f".into(), big.clone());
        with_manager(|m| {
            for name in ["f", "g"] {
                m.http_filters.insert(0, codec::filter::encode(name, extension::pack(url::RBAC, &rules(None)), false));
            }
            table(m).virtual_hosts = vec![host];
        })
    };
    let alike = decoded(&resource(20_000, None));
    let all = guards(&alike);
    assert_eq!((all.len(), all[0].authorization.len()), (20_000, 2));
    assert!(all.iter().all(|guards| std::ptr::eq(*guards, all[0])), "they share one");
    let at = "filter_chains[0].filters[0].http_filters";
    says("each has another filter off", codec::decode_listener(&resource(40, Some(&off))), &Says::Refused(&[at]));
    says("20", codec::decode_listener(&resource(20, Some(&off))), &Says::Taken);
    // What nobody configured counts too: there may be thousands of filters.
    let many = with_manager(|m| {
        for i in 0..2_000 {
            let none = extension::pack(url::RBAC, &RbacProto::default());
            m.http_filters.insert(0, codec::filter::encode(&i.to_string(), none, false));
        }
        let off = |(i, mut route): (usize, RouteProto)| {
            route.typed_per_filter_config.insert(i.to_string(), off.clone());
            route
        };
        let routes = (0..1_000).map(|i| (i, route(&format!("/{i}"), serve())));
        table(m).virtual_hosts = vec![host("*", routes.map(off).collect())];
    });
    inline("many empty filters", &many, &Says::Refused(&[at]));
}

#[test]
fn a_disabled_filter_is_off_where_no_route_turns_it_on() {
    let on = extension::pack(url::FILTER_CONFIG, &FilterConfig { config: Some(Any::default()), ..Default::default() });
    let routes = |config: Option<Any>| {
        let route = route("/guarded", serve());
        vec![host("*", vec![config.map_or(route.clone(), |config| changing(route, config)), self::route("/", serve())])]
    };
    let with = |config: Option<Any>| {
        let mut filter = codec::filter::encode("f", extension::pack(url::RBAC, &rules(None)), false);
        filter.disabled = true;
        with_manager(|m| {
            m.http_filters.insert(0, filter);
            table(m).virtual_hosts = routes(config);
        })
    };
    let policies =
        |resource: &Any| guards(&decoded(resource)).iter().map(|g| g.authorization.len()).collect::<Vec<_>>();
    assert_eq!(policies(&with(Some(on))), [1, 0]);
    let rules = extension::pack(url::RBAC_PER_ROUTE, &RbacPerRoute { rbac: Some(rules(None)) });
    assert_eq!(policies(&with(Some(rules))), [1, 0]);
    assert_eq!(policies(&with(None)), [0, 0]);
    assert_eq!(decoded(&with(None)).authorization, []);
    // Not so where nobody says that it is a word on the filter.
    let field = format!("{TABLE}.virtual_hosts[0].routes[0].typed_per_filter_config[\"f\"]");
    says("nothing at all", codec::decode_listener(&with(Some(Any::default()))), &Says::Refused(&[&field]));
}

#[test]
fn v4_routes_of_rds_are_waited_for_a36() {
    let over_rds = |m: &mut HttpConnectionManager| {
        let config_source = Some(codec::common::ads());
        m.route_specifier = Some(RouteSpecifier::Rds(Rds { config_source, route_config_name: "r".into() }));
    };
    assert_eq!(decoded(&with_manager(over_rds)).routes, InboundRoutes::Named("r".into()));
    // Filters are read with nothing changed, whoever may change them: what nobody knows is refused at once.
    for (case, type_url, want) in [
        ("rules", url::RBAC, Says::Taken),
        ("a filter that nobody knows", "test/unknown", Says::Refused(&["filter_chains[0].filters[0].http_filters[0]"])),
    ] {
        let resource = with_manager(|m| {
            m.http_filters.insert(0, codec::filter::encode("f", extension::pack(type_url, &rules(None)), false));
            over_rds(m);
        });
        says(case, codec::decode_listener(&resource), &want);
    }
    let at = "filter_chains[0].filters[0].rds";
    let elsewhere = with_manager(|m| {
        m.route_specifier = Some(RouteSpecifier::Rds(Rds { config_source: None, route_config_name: String::new() }));
    });
    let fields = [&format!("{at}.config_source")[..], &format!("{at}.route_config_name")];
    says("l1: no source, no name", codec::decode_listener(&elsewhere), &Says::Refused(&fields));
    let scoped = with_manager(|m| m.route_specifier = Some(RouteSpecifier::ScopedRoutes(Default::default())));
    let field = "filter_chains[0].filters[0].scoped_routes";
    says("l1: scoped routes", codec::decode_listener(&scoped), &Says::Refused(&[field]));
    let none = with_manager(|m| m.route_specifier = None);
    says("l1: no routes", codec::decode_listener(&none), &Says::Refused(&["filter_chains[0].filters[0]"]));
}

/// Routes of which one serves are a server's, and are read as those in a listener are; all others are a client's.
#[test]
fn v4_routes_that_serve_are_refused_for_what_a_servers_are_refused_for_a36() {
    let of = |action: Option<route::Action>, change: &dyn Fn(&mut HostProto)| {
        let mut host = host("*", vec![route("/", action)]);
        change(&mut host);
        let routes = RoutesProto { name: "r".into(), virtual_hosts: vec![host], ..Default::default() };
        codec::decode_routes(&extension::pack(codec::ROUTES, &routes))
    };
    let elsewhere = || Some(route::Action::Redirect(RedirectAction::default()));
    let both = |case: &str, change: &dyn Fn(&mut HostProto), server: Says<'_>, client: Says<'_>| {
        says(case, of(serve(), change), &server);
        says(case, of(elsewhere(), change), &client);
    };
    both("nothing", &|_| {}, Says::Taken, Says::Taken);
    let field = ["virtual_hosts[0].require_tls"];
    both("TLS of plaintext callers", &|host| host.require_tls = 1, Says::Refused(&field), Says::Reported(&field));
    // Paths are brought to their normal form first.
    let never = |host: &mut HostProto| {
        let specifier = PathSpecifier::Path("/a/../b".into());
        host.routes.insert(
            0,
            RouteProto {
                r#match: Some(MatchProto { path_specifier: Some(specifier), ..Default::default() }),
                ..route("/", elsewhere())
            },
        );
    };
    both("a path that no request has", &never, Says::Refused(&["virtual_hosts[0].routes[0].match"]), Says::Taken);
    let fault = execute(&chain(vec![named(url::FAULT, &HttpFault::default())]));
    let tree = ExtensionWithMatcherPerRoute { xds_matcher: Some(only(fault)) };
    let tree = extension::pack(url::WITH_MATCHER_PER_ROUTE, &tree);
    let field = "virtual_hosts[0].typed_per_filter_config[\"f\"].xds_matcher.on_no_match.action.filter_chain.typed_config[0].typed_config";
    let clients = |host: &mut HostProto| _ = host.typed_per_filter_config.insert("f".into(), tree.clone());
    both("a client's filter", &clients, Says::Refused(&[field]), Says::Taken);
    // Rules need no listener to be read, wherever they are written.
    let unread = RbacPerRoute { rbac: Some(RbacProto { matcher: Some(Default::default()), ..Default::default() }) };
    let unread = extension::pack(url::RBAC_PER_ROUTE, &unread);
    let rules = |host: &mut HostProto| _ = host.typed_per_filter_config.insert("f".into(), unread.clone());
    let field = "virtual_hosts[0].typed_per_filter_config[\"f\"].matcher";
    both("rules that are not known", &rules, Says::Refused(&[field]), Says::Taken);
    // What a client does not do is not said of a server's.
    let buffers = |host: &mut HostProto| host.per_request_buffer_limit_bytes = codec::common::uint32(1);
    both(
        "a client's limit",
        &buffers,
        Says::Taken,
        Says::Reported(&["virtual_hosts[0].per_request_buffer_limit_bytes"]),
    );
}

/// What only a client can know keeps a route from serving, wherever it is written.
#[test]
fn conditions_that_only_a_client_can_know_stay_with_the_route_of_a_server() {
    let mut matcher = RouteMatch::any();
    matcher.port = Some(80);
    matcher.source_namespace = Some("a".into());
    let of = |matcher: &RouteMatch| InboundRoute {
        name: "r".into(),
        matcher: matcher.clone(),
        serves: Some(Arc::default()),
    };
    let hosts = vec![InboundHost {
        name: "h".into(),
        domains: vec![Domain::new("*").unwrap()],
        routes: vec![of(&matcher), of(&RouteMatch::any())],
    }];
    let listener = InboundListener {
        routes: InboundRoutes::Listed(hosts.into()),
        ..InboundListener::new("l", "127.0.0.1:80".parse().unwrap(), InboundTls::Strict)
    };
    assert_eq!(decoded(&codec::encode_inbound(&listener)).routes, listener.routes);
}

#[test]
fn l5_a_route_of_a_server_has_another_tree_a103() {
    let of = |action: Option<RbacProto>| {
        let action = action.map(|rbac| execute(&chain(vec![named(url::RBAC, &rbac)])));
        only(action.unwrap_or_else(skip))
    };
    let per_route = |tree| {
        let tree = ExtensionWithMatcherPerRoute { xds_matcher: Some(tree) };
        extension::pack(url::WITH_MATCHER_PER_ROUTE, &tree)
    };
    let changed = |matcher: Any| vec![host("*", vec![changing(route("/a", serve()), matcher), route("/", serve())])];
    let shut = || of(Some(rules(None)));
    let listener = decoded(&with_filter(url::WITH_MATCHER, &composite(of(None)), changed(per_route(shut()))));
    let judges = |filters: &[HttpFilter]| match filters {
        [HttpFilter { name, kind: HttpFilterKind::Composite(composite) }] => (name.clone(), composite.judges()),
        other => panic!("{other:?}"),
    };
    let each: Vec<_> = listener.routes.iter().map(|route| judges(&route.serves.as_ref().unwrap().filters)).collect();
    assert_eq!(each, [("f@virtual_hosts[0].routes[0]".to_owned(), true), ("f".to_owned(), false)]);
    assert_eq!(judges(&listener.filters), ("f".to_owned(), false));
    // A tree is none of another filter's.
    let field = "filter_chains[0].filters[0].http_filters[0]";
    let tree = with_filter(url::RBAC, &rules(None), changed(per_route(shut())));
    inline("a tree for another filter", &tree, &Says::Refused(&[field]));
    // Here the side is known.
    let fault = only(execute(&chain(vec![named(url::FAULT, &HttpFault::default())])));
    let tree = with_filter(url::WITH_MATCHER, &composite(of(None)), changed(per_route(fault)));
    let field = format!(
        "{TABLE}.virtual_hosts[0].routes[0].typed_per_filter_config[\"f\"].xds_matcher.on_no_match.action.filter_chain.typed_config[0].typed_config"
    );
    inline("a client's filter", &tree, &Says::Refused(&[&field]));
    // By itself, as a newer Envoy takes it, it is an unknown filter.
    let resource = with_filter(url::COMPOSITE, &LimitProto::default(), vec![host("*", vec![route("/", serve())])]);
    let field = "filter_chains[0].filters[0].http_filters[0]";
    inline("composite", &resource, &Says::Refused(&[field]));
}
