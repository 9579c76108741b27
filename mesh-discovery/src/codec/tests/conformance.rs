//! gRPC's rules for listeners and routes, case by case: what is taken, what is refused and where, what is taken
//! and reported. A test is named after its row (L: listener, R: routes) and the gRFC behind it.

use envoy_types::pb::envoy::config::core::v3 as core;
use envoy_types::pb::envoy::config::route::v3::{
    self as rds, RouteConfiguration as RoutesProto, route_action::ClusterSpecifier, route_match::PathSpecifier,
};
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3 as adaptive_concurrency;
use envoy_types::pb::envoy::extensions::filters::http::admission_control::v3 as admission_control;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    self as hcm, http_connection_manager::RouteSpecifier,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{RegexMatcher, StringMatcher as StringProto};
use envoy_types::pb::envoy::r#type::v3::{HttpStatus, Percent};
use envoy_types::pb::google::protobuf::{Any, Duration, UInt32Value};
use mesh_core::matcher::TextCondition;
use mesh_core::policy::*;
use prost::Message;

use super::refusals::{changed, number, routes, with_action, with_manager, with_route};
use crate::codec::{self, AnyListener, DecodeError, Decoded, extension, extension::url};

/// What a decoder says of a case.
#[derive(Debug)]
pub(super) enum Says<'a> {
    /// Taken; nothing is reported.
    Taken,
    /// Taken, and these fields are reported.
    Reported(&'a [&'a str]),
    /// Refused because of exactly these fields.
    Refused(&'a [&'a str]),
}

pub(super) fn says<T: std::fmt::Debug>(case: &str, decoded: Result<Decoded<T>, DecodeError>, want: &Says<'_>) {
    match (decoded, want) {
        (Ok(decoded), Says::Taken) => assert_eq!(decoded.unenforced, [], "{case}"),
        (Ok(decoded), Says::Reported(fields)) => {
            let said: Vec<&str> = decoded.unenforced.iter().map(|u| u.field.as_str()).collect();
            assert_eq!(said, *fields, "{case}");
        }
        (Err(error), Says::Refused(fields)) => {
            let said: Vec<&str> = error.problems.iter().map(|p| p.field.as_str()).collect();
            assert_eq!(said, *fields, "{case}: {error}");
        }
        (other, want) => panic!("{case}: {want:?} was expected, not {other:?}"),
    }
}

fn listener(case: &str, change: impl FnOnce(&mut hcm::HttpConnectionManager), want: &Says<'_>) {
    says(case, codec::decode_listener(&with_manager(change)), want);
}

fn route(case: &str, change: impl FnOnce(&mut rds::Route), want: &Says<'_>) {
    says(case, codec::decode_routes(&with_route(change)), want);
}

fn action(case: &str, change: impl FnOnce(&mut rds::RouteAction), want: &Says<'_>) {
    says(case, codec::decode_routes(&with_action(change)), want);
}

fn matching(case: &str, change: impl FnOnce(&mut rds::RouteMatch), want: &Says<'_>) {
    route(case, |r| change(r.r#match.as_mut().unwrap()), want);
}

pub(super) fn decoded_route(resource: &Any) -> Route {
    codec::decode_routes(resource).unwrap().value.virtual_hosts[0].routes[0].clone()
}

pub(super) fn decoded_forward(resource: &Any) -> Forward {
    let RouteAction::Forward(forward) = decoded_route(resource).action else { panic!("a forwarding route") };
    *forward
}

fn seconds(seconds: i64) -> Option<Duration> {
    Some(Duration { seconds, nanos: 0 })
}

fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.into(), ..Default::default() }
}

const AT: &str = "api_listener.api_listener";

#[test]
fn l1_an_api_listener_has_routes_inline_or_from_ads_a27() {
    let source = |specifier| core::ConfigSource { config_source_specifier: Some(specifier), ..Default::default() };
    let rds = |source, name: &str| {
        Some(RouteSpecifier::Rds(hcm::Rds { config_source: source, route_config_name: name.into() }))
    };
    use core::config_source::ConfigSourceSpecifier::{Ads, Path, Self_};
    let from = |specifier| rds(Some(source(specifier)), "r");
    listener("ads", |m| m.route_specifier = from(Ads(Default::default())), &Says::Taken);
    listener("self", |m| m.route_specifier = from(Self_(Default::default())), &Says::Taken);
    let at = format!("{AT}.rds.config_source");
    listener("a file", |m| m.route_specifier = from(Path("f".into())), &Says::Refused(&[&at]));
    listener("no source", |m| m.route_specifier = rds(None, "r"), &Says::Refused(&[&at]));
    let at = format!("{AT}.rds.route_config_name");
    listener("no name", |m| m.route_specifier = rds(Some(source(Ads(Default::default()))), ""), &Says::Refused(&[&at]));
    let scoped = RouteSpecifier::ScopedRoutes(Default::default());
    let at = format!("{AT}.scoped_routes");
    listener("scoped", |m| m.route_specifier = Some(scoped), &Says::Refused(&[&at]));
    listener("none", |m| m.route_specifier = None, &Says::Refused(&[AT]));
    let inline = RoutesProto { name: "r".into(), ..Default::default() };
    listener("inline", |m| m.route_specifier = Some(RouteSpecifier::RouteConfig(inline)), &Says::Taken);
}

#[test]
fn l2_the_filter_chain_a39() {
    let some =
        |url: &str, optional| codec::filter::encode("some", Any { type_url: url.into(), value: Vec::new() }, optional);
    let insert = |url: &'static str, optional: bool| {
        move |m: &mut hcm::HttpConnectionManager| m.http_filters.insert(0, some(url, optional))
    };
    let first = format!("{AT}.http_filters[0]");
    let unknown = "type.googleapis.com/some.Filter";
    listener("unknown", insert(unknown, false), &Says::Refused(&[&first]));
    listener("unknown and optional", insert(unknown, true), &Says::Reported(&["filters[0] some"]));
    for (name, url) in [("rbac", url::RBAC), ("jwt", url::JWT)] {
        listener(name, insert(url, false), &Says::Refused(&[&first]));
        listener(name, insert(url, true), &Says::Reported(&["filters[0] some"]));
    }
    let all = format!("{AT}.http_filters");
    listener("no filter", |m| m.http_filters.clear(), &Says::Refused(&[&all]));
    let name = format!("{first}.name");
    listener("no name", |m| m.http_filters[0].name.clear(), &Says::Refused(&[&name]));
    let second = format!("{AT}.http_filters[1].name");
    let router = |m: &hcm::HttpConnectionManager| m.http_filters[0].clone();
    listener("two routers", |m| m.http_filters.push(router(m)), &Says::Refused(&[&first, &second]));
    listener("the router is not the last", |m| m.http_filters.push(some(url::FAULT, false)), &Says::Refused(&[&first]));
    let wrapped = |value: Vec<u8>, optional: bool| {
        let any = Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".into(), value };
        move |m: &mut hcm::HttpConnectionManager| {
            m.http_filters.insert(0, codec::filter::encode("some", any, optional));
        }
    };
    // Field 1 is the wrapped type, field 2 its JSON.
    let mut named = vec![10, url::SESSION.len() as u8];
    named.extend(url::SESSION.bytes());
    listener("a TypedStruct that says nothing", wrapped(named.clone(), false), &Says::Taken);
    named.extend([18, 5, 10, 3, 10, 1, b'x']);
    listener("one that says something is unknown", wrapped(named.clone(), false), &Says::Refused(&[&first]));
    listener("and skipped if it is optional", wrapped(named.clone(), true), &Says::Reported(&["filters[0] some"]));
    // Where nobody looks at the type, nothing that it says is lost.
    let mut report = codec::Report::new("cluster", "c");
    let any = Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".into(), value: named };
    assert_eq!(extension::unpack::<HttpFault>(&any, &codec::At::ROOT, &mut report), None);
    assert!(!report.is_clean());
}

#[test]
fn l3_overrides_are_keyed_by_instance_name_and_the_most_specific_wins_a39() {
    let abort = |status| Fault {
        abort: Some(FaultAbort::with(AbortStatus::Http(status), PerMillion::ALL)),
        ..Fault::default()
    };
    let pack = |status| extension::pack(url::FAULT, &codec::fault::encode(&abort(status)));
    let resource = changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
        proto.typed_per_filter_config.insert("a".into(), pack(501));
        proto.typed_per_filter_config.insert("b".into(), pack(501));
        let host = &mut proto.virtual_hosts[0];
        host.typed_per_filter_config.insert("b".into(), pack(502));
        host.typed_per_filter_config.insert("c".into(), pack(502));
        let off = rds::FilterConfig { disabled: true, ..Default::default() };
        host.routes[0].typed_per_filter_config.insert("c".into(), extension::pack(url::FILTER_CONFIG, &off));
        host.routes[0].typed_per_filter_config.insert("d".into(), pack(503));
        host.typed_per_filter_config.insert("e".into(), extension::pack(url::FILTER_CONFIG, &off));
        let on = rds::FilterConfig { config: Some(Any::default()), ..Default::default() };
        host.routes[0].typed_per_filter_config.insert("e".into(), extension::pack(url::FILTER_CONFIG, &on));
        // That it is on hides nothing.
        host.typed_per_filter_config.insert("g".into(), pack(504));
        host.routes[0].typed_per_filter_config.insert("g".into(), extension::pack(url::FILTER_CONFIG, &on));
        // Nor does a place between that turns it off.
        proto.typed_per_filter_config.insert("h".into(), pack(505));
        host.typed_per_filter_config.insert("h".into(), extension::pack(url::FILTER_CONFIG, &off));
        host.routes[0].typed_per_filter_config.insert("h".into(), extension::pack(url::FILTER_CONFIG, &on));
    });
    let fault = |status| FilterOverride::Fault(abort(status));
    let (off, on) = (FilterOverride::Disabled, FilterOverride::Enabled);
    let want = [("a", fault(501)), ("b", fault(502)), ("c", off), ("d", fault(503)), ("e", on), ("g", fault(504))];
    let want = want.into_iter().chain([("h", fault(505))]);
    let want: FilterOverrides = want.into_iter().map(|(name, filter)| (name.to_owned(), filter.into())).collect();
    assert_eq!(*decoded_route(&resource).filters, want);

    let with = |any: Any| move |r: &mut rds::Route| _ = r.typed_per_filter_config.insert("f".into(), any);
    let unknown = || Any { type_url: "type.googleapis.com/some.Override".into(), value: Vec::new() };
    let wrap = |is_optional| {
        let config = rds::FilterConfig { config: Some(unknown()), is_optional, disabled: false };
        extension::pack(url::FILTER_CONFIG, &config)
    };
    let at = "virtual_hosts[0].routes[0].typed_per_filter_config[\"f\"]";
    route("unknown", with(unknown()), &Says::Refused(&[at]));
    route("nothing", with(Any::default()), &Says::Refused(&[at]));
    route("unknown, wrapped", with(wrap(false)), &Says::Refused(&[at]));
    route("unknown and optional", with(wrap(true)), &Says::Reported(&[at]));
    let rbac = Any { type_url: url::RBAC_PER_ROUTE.into(), value: Vec::new() };
    route("of the other side", with(rbac), &Says::Taken);
    let bad = Any { type_url: url::FAULT.into(), value: vec![7] };
    route("broken", with(bad), &Says::Refused(&[at]));
    // A weighted cluster beats its route.
    let split = rds::WeightedCluster {
        clusters: vec![rds::weighted_cluster::ClusterWeight {
            name: "v1".into(),
            weight: number(1),
            typed_per_filter_config: [("d".to_owned(), pack(504))].into(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let forward =
        decoded_forward(&with_action(|a| a.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(split))));
    let ClusterChoice::Weighted(split) = forward.to else { panic!("a split") };
    assert_eq!(*split.entries()[0].filters["d"], fault(504));
}

#[test]
fn l4_what_would_change_the_callers_address_is_refused_a41() {
    let at = format!("{AT}.xff_num_trusted_hops");
    listener("trusted hops", |m| m.xff_num_trusted_hops = 1, &Says::Refused(&[&at]));
    let at = format!("{AT}.original_ip_detection_extensions");
    let change = |m: &mut hcm::HttpConnectionManager| m.original_ip_detection_extensions.push(Default::default());
    listener("detection extensions", change, &Says::Refused(&[&at]));
}

#[test]
fn r1_virtual_hosts_are_told_apart_by_domains_a27() {
    let domains = |list: &[&str]| {
        let list: Vec<String> = list.iter().map(|d| (*d).to_owned()).collect();
        changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| proto.virtual_hosts[0].domains = list)
    };
    let first = "virtual_hosts[0].domains[0]";
    for (list, want) in [
        (&["a", "*.a", "a.*", "*"][..], Says::Taken),
        (&[], Says::Refused(&["virtual_hosts[0].domains"])),
        (&["a*b"], Says::Refused(&[first])),
        (&["*a*"], Says::Refused(&[first])),
        (&[""], Says::Refused(&[first])),
        (&["a", "A"], Says::Refused(&["virtual_hosts[0].domains[1]"])),
    ] {
        says(&format!("{list:?}"), codec::decode_routes(&domains(list)), &want);
    }
}

#[test]
fn r2_a_path_condition_is_required_a28() {
    let at = "virtual_hosts[0].routes[0].match";
    let path = |specifier| move |m: &mut rds::RouteMatch| m.path_specifier = specifier;
    matching("none", path(None), &Says::Refused(&[at]));
    matching("exact", path(Some(PathSpecifier::Path("/a".into()))), &Says::Taken);
    matching("regex", path(Some(PathSpecifier::SafeRegex(regex("/a.*")))), &Says::Taken);
    let bad = format!("{at}.safe_regex.regex");
    matching("no regex", path(Some(PathSpecifier::SafeRegex(regex("(")))), &Says::Refused(&[&bad]));
    matching("elements", path(Some(PathSpecifier::PathSeparatedPrefix("/a".into()))), &Says::Taken);
    let bad = format!("{at}.path_separated_prefix");
    matching("a slash", path(Some(PathSpecifier::PathSeparatedPrefix("/a/".into()))), &Says::Refused(&[&bad]));
    let bad = format!("{at}.connect_matcher");
    matching("connect", path(Some(PathSpecifier::ConnectMatcher(Default::default()))), &Says::Refused(&[&bad]));
    let bad = format!("{at}.path_match_policy");
    matching("extension", path(Some(PathSpecifier::PathMatchPolicy(Default::default()))), &Says::Refused(&[&bad]));
    route("no match", |r| r.r#match = None, &Says::Refused(&[at]));
}

#[test]
fn r3_header_conditions_a28_a63() {
    use rds::header_matcher::HeaderMatchSpecifier as Specifier;
    let header = |name: &str, specifier| rds::HeaderMatcher {
        name: name.into(),
        header_match_specifier: specifier,
        ..Default::default()
    };
    let with = |header| move |m: &mut rds::RouteMatch| m.headers.push(header);
    for specifier in [
        Specifier::ExactMatch("a".into()),
        Specifier::PrefixMatch("a".into()),
        Specifier::SuffixMatch("a".into()),
        Specifier::ContainsMatch("a".into()),
        Specifier::SafeRegexMatch(regex("a+")),
        Specifier::RangeMatch(Default::default()),
        Specifier::PresentMatch(false),
    ] {
        matching(&format!("{specifier:?}"), with(header("x", Some(specifier))), &Says::Taken);
    }
    let at = |name: &str| format!("virtual_hosts[0].routes[0].match.headers[0].{name}");
    let bad = Specifier::SafeRegexMatch(regex("("));
    matching("no regex", with(header("x", Some(bad))), &Says::Refused(&[&at("safe_regex_match.regex")]));
    let empty = Specifier::StringMatch(StringProto::default());
    matching("no pattern", with(header("x", Some(empty))), &Says::Refused(&[&at("string_match")]));
    matching("no name", with(header("", None)), &Says::Refused(&[&at("name")]));
}

#[test]
fn r4_query_cookie_and_method_conditions_are_ours() {
    let at = "virtual_hosts[0].routes[0].match";
    let query = rds::QueryParameterMatcher { name: "q".into(), ..Default::default() };
    matching("query", |m| m.query_parameters.push(query), &Says::Taken);
    let absent = rds::QueryParameterMatcher {
        name: "q".into(),
        query_parameter_match_specifier: Some(
            rds::query_parameter_matcher::QueryParameterMatchSpecifier::PresentMatch(false),
        ),
    };
    matching("query without it", |m| m.query_parameters.push(absent), &Says::Taken);
    let name = format!("{at}.query_parameters[0].name");
    matching("no name", |m| m.query_parameters.push(Default::default()), &Says::Refused(&[&name]));
    let cookie = |name: &str| rds::CookieMatcher {
        name: name.into(),
        string_match: Some(codec::matcher::exact("v2")),
        invert_match: true,
    };
    matching("cookie", |m| m.cookies.push(cookie("c")), &Says::Taken);
    let (name, text) = (format!("{at}.cookies[0].name"), format!("{at}.cookies[0].string_match"));
    matching("no cookie name", |m| m.cookies.push(cookie("")), &Says::Refused(&[&name]));
    let bare = rds::CookieMatcher { name: "c".into(), ..Default::default() };
    matching("no cookie text", |m| m.cookies.push(bare), &Says::Refused(&[&text]));
    matching("grpc", |m| m.grpc = Some(Default::default()), &Says::Taken);
    let grpc = decoded_route(&with_route(|r| r.r#match.as_mut().unwrap().grpc = Some(Default::default()))).matcher;
    let HeaderMatch::Text(types) = &grpc.headers[0].value else { panic!("{grpc:?}") };
    let types = TextCondition::new(types);
    for (content_type, is_grpc) in [
        ("application/grpc", true),
        ("application/grpc+proto", true),
        ("application/grpc-web", false),
        ("application/grpcx", false),
        ("application/json", false),
    ] {
        assert_eq!(types.holds(content_type.as_bytes()), is_grpc, "{content_type}");
    }
    // Conditions that nobody evaluates would make the route wider than meant.
    for (name, change) in [
        ("tls_context", (|m| m.tls_context = Some(Default::default())) as fn(&mut rds::RouteMatch)),
        ("dynamic_metadata", |m| m.dynamic_metadata.push(Default::default())),
        ("filter_state", |m| m.filter_state.push(Default::default())),
    ] {
        matching(name, change, &Says::Refused(&[&format!("{at}.{name}")]));
    }
}

#[test]
fn r5_runtime_fractions_a28() {
    use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
    let fraction = |numerator, denominator| {
        let default_value = Some(FractionalPercent { numerator, denominator });
        with_route(|r| {
            r.r#match.as_mut().unwrap().runtime_fraction =
                Some(core::RuntimeFractionalPercent { default_value, runtime_key: "unset".into() });
        })
    };
    for (numerator, denominator, want) in [(7, 0, 70_000), (7, 1, 700), (7, 2, 7), (101, 0, 1_000_000)] {
        let share = decoded_route(&fraction(numerator, denominator)).matcher.fraction;
        assert_eq!(share, Some(PerMillion::new(want)), "{numerator}/{denominator}");
    }
    let at = "virtual_hosts[0].routes[0].match.runtime_fraction.denominator";
    says("unknown denominator", codec::decode_routes(&fraction(1, 9)), &Says::Refused(&[at]));
    // A key that nobody looks up, and no share beside it: never, and not always.
    let keyed = core::RuntimeFractionalPercent { default_value: None, runtime_key: "unset".into() };
    let route = decoded_route(&with_route(|r| {
        r.r#match.as_mut().unwrap().runtime_fraction = Some(keyed.clone());
        let Some(rds::route::Action::Route(action)) = &mut r.action else { panic!("it forwards") };
        let mirror = rds::route_action::RequestMirrorPolicy {
            cluster: "m".into(),
            runtime_fraction: Some(keyed),
            ..Default::default()
        };
        action.request_mirror_policies.push(mirror);
    }));
    assert_eq!(route.matcher.fraction, Some(PerMillion::NONE));
    let RouteAction::Forward(forward) = &route.action else { panic!("it forwards") };
    assert_eq!(forward.mirrors[0].share, PerMillion::NONE);
}

#[test]
fn r6_a_route_without_a_known_cluster_is_dropped_a28() {
    let dropped = |specifier: Option<ClusterSpecifier>| {
        let decoded = codec::decode_routes(&with_action(|a| a.cluster_specifier = specifier)).unwrap();
        assert_eq!(decoded.value.virtual_hosts[0].routes, []);
        assert_eq!(decoded.unenforced[0].field, "virtual_hosts[0].routes[0].route");
    };
    dropped(None);
    dropped(Some(ClusterSpecifier::InlineClusterSpecifierPlugin(Default::default())));
    let at = "virtual_hosts[0].routes[0].route.cluster";
    let nameless = Some(ClusterSpecifier::Cluster(String::new()));
    action("no name", |a| a.cluster_specifier = nameless, &Says::Refused(&[at]));
}

#[test]
fn r7_other_actions_are_taken_a28() {
    use rds::route::Action;
    let at = "virtual_hosts[0].routes[0]";
    let with = |action| move |r: &mut rds::Route| r.action = action;
    route("redirect", with(Some(Action::Redirect(Default::default()))), &Says::Taken);
    let answer = rds::DirectResponseAction { status: 418, ..Default::default() };
    route("direct response", with(Some(Action::DirectResponse(answer))), &Says::Taken);
    route("non-forwarding", with(Some(Action::NonForwardingAction(Default::default()))), &Says::Taken);
    let filter = format!("{at}.filter_action");
    route("filter action", with(Some(Action::FilterAction(Default::default()))), &Says::Reported(&[&filter]));
    // Nothing, or what a newer protocol has.
    route("none", with(None), &Says::Reported(&[at]));
    let none = decoded_route(&with_route(with(None))).action;
    assert!(matches!(none, RouteAction::DirectResponse(DirectResponse { status: 501, .. })), "{none:?}");
    let status = format!("{at}.direct_response.status");
    route("no status", with(Some(Action::DirectResponse(Default::default()))), &Says::Refused(&[&status]));
    let file = core::DataSource {
        specifier: Some(core::data_source::Specifier::Filename("/etc/passwd".into())),
        ..Default::default()
    };
    let answer = rds::DirectResponseAction { status: 200, body: Some(file), ..Default::default() };
    let body = format!("{at}.direct_response.body");
    route("a file", with(Some(Action::DirectResponse(answer))), &Says::Refused(&[&body]));
}

#[test]
fn r8_weights_sum_to_something_that_fits_a28() {
    let split = |weights: &[Option<u32>]| {
        let entry = |weight: &Option<u32>| rds::weighted_cluster::ClusterWeight {
            name: "c".into(),
            weight: weight.map(|value| UInt32Value { value }),
            ..Default::default()
        };
        let clusters = weights.iter().map(entry).collect();
        let split = rds::WeightedCluster { clusters, total_weight: number(3), ..Default::default() };
        move |a: &mut rds::RouteAction| a.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(split))
    };
    let at = "virtual_hosts[0].routes[0].route.weighted_clusters";
    action("an entry of 0 and a total that is not the sum", split(&[Some(0), Some(9)]), &Says::Taken);
    action("none", split(&[]), &Says::Refused(&[at]));
    action("all 0", split(&[Some(0), None]), &Says::Refused(&[at]));
    action("too much", split(&[Some(u32::MAX), Some(1)]), &Says::Refused(&[at]));
    // A part that a header names costs its route, and no other.
    let part = |name: &str, cluster_header: &str, weight: Option<u32>| rds::weighted_cluster::ClusterWeight {
        name: name.into(),
        cluster_header: cluster_header.into(),
        weight: weight.and_then(number),
        ..Default::default()
    };
    let of = |clusters: Vec<rds::weighted_cluster::ClusterWeight>| {
        with_action(|a| {
            let split = rds::WeightedCluster { clusters, ..Default::default() };
            a.cluster_specifier = Some(ClusterSpecifier::WeightedClusters(split));
        })
    };
    let named = |name: &str, cluster_header: &str| of(vec![part(name, cluster_header, Some(1))]);
    let resource = changed::<RoutesProto>(named("", "x-cluster"), |proto| {
        let other = RoutesProto::decode(&*codec::encode_routes(&routes()).value).unwrap();
        proto.virtual_hosts[0].routes.extend(other.virtual_hosts[0].routes.clone());
    });
    let header = format!("{at}.clusters[0].cluster_header");
    says("by header", codec::decode_routes(&resource), &Says::Reported(&[&header]));
    let left = codec::decode_routes(&resource).unwrap().value;
    assert_eq!(left.virtual_hosts[0].routes, routes().virtual_hosts[0].routes);
    says("by name beside one", codec::decode_routes(&named("c", "x-cluster")), &Says::Reported(&[&header]));
    // One that is never drawn costs nothing.
    for weight in [Some(0), None] {
        let resource = of(vec![part("", "x-cluster", weight), part("c", "", Some(1))]);
        says("never by header", codec::decode_routes(&resource), &Says::Taken);
        let plain = codec::decode_routes(&of(vec![part("c", "", Some(1))])).unwrap().value;
        assert_eq!(codec::decode_routes(&resource).unwrap().value, plain);
    }
    says("all never", codec::decode_routes(&of(vec![part("", "x-cluster", Some(0))])), &Says::Refused(&[at]));
    let name = format!("{at}.clusters[0].name");
    says("by neither", codec::decode_routes(&named("", "")), &Says::Refused(&[&name]));
}

#[test]
fn r9_r10_clusters_by_header_are_ours_and_plugins_are_unknown() {
    let by_header = |name: &str| {
        let name = name.to_owned();
        move |a: &mut rds::RouteAction| a.cluster_specifier = Some(ClusterSpecifier::ClusterHeader(name))
    };
    action("by header", by_header("x-cluster"), &Says::Reported(&["virtual_hosts[0].routes[0].to.header"]));
    let at = "virtual_hosts[0].routes[0].route.cluster_header";
    action("no header name", by_header(":x y"), &Says::Refused(&[at]));
    let declared = |is_optional| {
        let url = "type.googleapis.com/grpc.lookup.v1.RouteLookupClusterSpecifier";
        let lookup = Any { type_url: url.into(), value: Vec::new() };
        let extension = Some(core::TypedExtensionConfig { name: "p".into(), typed_config: Some(lookup) });
        rds::ClusterSpecifierPlugin { is_optional, extension }
    };
    let plugin = |is_optional| {
        changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
            proto.cluster_specifier_plugins.push(declared(is_optional));
        })
    };
    says("plugin", codec::decode_routes(&plugin(false)), &Says::Refused(&["cluster_specifier_plugins[0]"]));
    says("optional plugin", codec::decode_routes(&plugin(true)), &Says::Taken);
    // A route may refer to what is declared and optional, and is passed over; not to what is not declared.
    let referring = |plugins: Vec<_>| {
        changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
            proto.cluster_specifier_plugins = plugins;
            let Some(rds::route::Action::Route(action)) = &mut proto.virtual_hosts[0].routes[0].action else {
                panic!("it forwards")
            };
            action.cluster_specifier = Some(ClusterSpecifier::ClusterSpecifierPlugin("p".into()));
        })
    };
    let at = "virtual_hosts[0].routes[0].route.cluster_specifier_plugin";
    says("undeclared", codec::decode_routes(&referring(Vec::new())), &Says::Refused(&[at]));
    let required = codec::decode_routes(&referring(vec![declared(false)]));
    says("not optional", required, &Says::Refused(&["cluster_specifier_plugins[0]"]));
    let passed_over = codec::decode_routes(&referring(vec![declared(true)])).unwrap();
    assert_eq!((passed_over.value.virtual_hosts[0].routes.len(), passed_over.unenforced.len()), (0, 1));
}

#[test]
fn r11_timeouts_a31() {
    let max = |whole: Option<Duration>, header: Option<Duration>| {
        decoded_forward(&with_action(|a| {
            a.timeout = None;
            a.max_stream_duration = Some(rds::route_action::MaxStreamDuration {
                max_stream_duration: whole,
                grpc_timeout_header_max: header,
                grpc_timeout_header_offset: None,
            });
        }))
    };
    let limits = |forward: Forward| (forward.timeout, forward.max_stream_duration, forward.grpc_timeout_max);
    let s = |seconds| Some(std::time::Duration::from_secs(seconds));
    for [whole, header] in [[None, None], [s(3), None], [s(3), s(5)], [s(3), s(0)], [s(0), s(5)], [None, s(0)]] {
        let proto = |time: Option<std::time::Duration>| time.and_then(|time| seconds(time.as_secs() as i64));
        assert_eq!(limits(max(proto(whole), proto(header))), (None, whole, header), "0 is not the same as none");
    }
    // A ceiling like the timeout counts in the place of a shorter life of all streams; otherwise it is the timeout, told
    // to gRPC.
    for (whole, kept) in [(Some(1), true), (Some(5), true), (Some(7), false), (Some(0), false), (None, false)] {
        let forward = decoded_forward(&with_action(|a| {
            a.timeout = seconds(5);
            a.max_stream_duration = Some(rds::route_action::MaxStreamDuration {
                max_stream_duration: whole.and_then(seconds),
                grpc_timeout_header_max: seconds(5),
                grpc_timeout_header_offset: None,
            });
        }));
        assert_eq!((forward.timeout, forward.grpc_timeout_max), (s(5), s(5).filter(|_| kept)), "{whole:?}");
    }
    // The listener's stands for all routes without one of their own.
    for longest in [None, s(3)] {
        let decoded = codec::decode_listener(&with_manager(|m| {
            let max_stream_duration = longest.and_then(|longest| seconds(longest.as_secs() as i64));
            let options = core::HttpProtocolOptions { max_stream_duration, ..Default::default() };
            m.common_http_protocol_options = Some(options);
        }));
        let AnyListener::Outbound(listener) = decoded.unwrap().value else { panic!("an API listener") };
        assert_eq!(listener.max_stream_duration, longest);
    }
    let at = "virtual_hosts[0].routes[0].route.timeout";
    action("negative", |a| a.timeout = seconds(-1), &Says::Refused(&[at]));
}

#[test]
fn r12_r13_retries_a44_and_beyond() {
    let at = |name: &str| format!("virtual_hosts[0].routes[0].route.retry_policy.{name}");
    let with = |policy| move |a: &mut rds::RouteAction| a.retry_policy = Some(policy);
    let on = |tokens: &str| rds::RetryPolicy { retry_on: tokens.into(), ..Default::default() };
    let all = "5xx,gateway-error,reset,reset-before-request,connect-failure,refused-stream,retriable-4xx,\
               envoy-ratelimited,retriable-status-codes,retriable-headers,cancelled,deadline-exceeded,internal,\
               resource-exhausted,unavailable";
    action("every condition", with(on(all)), &Says::Taken);
    action("an unknown one", with(on("bogus")), &Says::Reported(&[&at("retry_on[\"bogus\"]")]));
    let none = rds::RetryPolicy { num_retries: number(0), ..Default::default() };
    action("0 retries", with(none), &Says::Refused(&[&at("num_retries")]));
    let backoff = |base, max| rds::RetryPolicy {
        retry_back_off: Some(rds::retry_policy::RetryBackOff { base_interval: base, max_interval: max }),
        ..Default::default()
    };
    action("no base", with(backoff(None, seconds(1))), &Says::Refused(&[&at("retry_back_off.base_interval")]));
    let short = backoff(seconds(2), seconds(1));
    action("max below base", with(short), &Says::Refused(&[&at("retry_back_off.max_interval")]));
    let asked = |names: &[&str]| rds::RetryPolicy {
        rate_limited_retry_back_off: Some(rds::retry_policy::RateLimitedRetryBackOff {
            reset_headers: names
                .iter()
                .map(|n| rds::retry_policy::ResetHeader { name: (*n).into(), ..Default::default() })
                .collect(),
            max_interval: None,
        }),
        ..Default::default()
    };
    action("told by the answer", with(asked(&["retry-after"])), &Says::Taken);
    let bad = at("rate_limited_retry_back_off.reset_headers");
    action("by no header", with(asked(&[])), &Says::Refused(&[&bad]));
    let per_try = rds::RetryPolicy {
        per_try_timeout: seconds(1),
        retriable_status_codes: vec![503],
        retriable_headers: vec![rds::HeaderMatcher { name: "x".into(), ..Default::default() }],
        ..on("retriable-headers")
    };
    action("per-try timeout", with(per_try), &Says::Taken);
    let code = rds::RetryPolicy { retriable_status_codes: vec![99], ..Default::default() };
    action("no status", with(code), &Says::Refused(&[&at("retriable_status_codes[0]")]));
    let hedge = rds::HedgePolicy { initial_requests: number(0), ..Default::default() };
    let at = "virtual_hosts[0].routes[0].route.hedge_policy.initial_requests";
    action("hedging with nothing", |a| a.hedge_policy = Some(hedge), &Says::Refused(&[at]));
}

#[test]
fn r14_hash_policies_a42() {
    use rds::route_action::hash_policy::{ConnectionProperties, Cookie, FilterState, Header, QueryParameter};
    use rds::route_action::{HashPolicy as Proto, hash_policy::PolicySpecifier as Kind};
    let decoded = |kind: Kind| {
        decoded_forward(&with_action(|a| a.hash_policy.push(Proto { terminal: true, policy_specifier: Some(kind) })))
    };
    let header = Header { header_name: "x".into(), regex_rewrite: None };
    for kind in [
        Kind::Header(header.clone()),
        Kind::Cookie(Cookie { name: "c".into(), ..Default::default() }),
        Kind::QueryParameter(QueryParameter { name: "q".into() }),
        Kind::ConnectionProperties(ConnectionProperties { source_ip: true }),
        Kind::FilterState(FilterState { key: "io.grpc.channel_id".into() }),
    ] {
        let forward = decoded(kind.clone());
        assert!(forward.hash.len() == 1 && forward.hash[0].terminal, "{kind:?}");
    }
    let skipped = Kind::FilterState(FilterState { key: "other".into() });
    assert_eq!(decoded(skipped).hash, [], "another source is passed over");
    let rewrite = envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute {
        pattern: Some(regex("(")),
        substitution: String::new(),
    };
    let bad = Kind::Header(Header { regex_rewrite: Some(rewrite), ..header });
    let at = "virtual_hosts[0].routes[0].route.hash_policy[0].header.regex_rewrite.pattern.regex";
    action(
        "a rewrite that is no regex",
        |a| a.hash_policy.push(Proto { terminal: false, policy_specifier: Some(bad) }),
        &Says::Refused(&[at]),
    );
}

#[test]
fn r15_rewrites_of_the_authority_a81_and_beyond() {
    use rds::route_action::HostRewriteSpecifier as Host;
    let decoded = |host: Host| {
        let forward = decoded_forward(&with_action(|a| a.host_rewrite_specifier = Some(host)));
        forward.rewrite.authority
    };
    let auto = |value| Host::AutoHostRewrite(envoy_types::pb::google::protobuf::BoolValue { value });
    assert_eq!(decoded(auto(true)), Some(AuthorityRewrite::Endpoint));
    assert_eq!(decoded(auto(false)), None);
    assert_eq!(decoded(Host::HostRewriteLiteral("a".into())), Some(AuthorityRewrite::Literal("a".into())));
    let header = AuthorityRewrite::Header(http::HeaderName::from_static("x"));
    assert_eq!(decoded(Host::HostRewriteHeader("x".into())), Some(header));
    let at = "virtual_hosts[0].routes[0].route";
    let two = |a: &mut rds::RouteAction| {
        a.prefix_rewrite = "/a".into();
        a.path_rewrite = "/b".into();
    };
    action("two path rewrites", two, &Says::Refused(&[at]));
}

#[test]
fn mirrors_and_hedging_of_outer_levels_reach_routes_without_their_own() {
    let mirror = |name: &str| rds::route_action::RequestMirrorPolicy { cluster: name.into(), ..Default::default() };
    let hedge = rds::HedgePolicy { hedge_on_per_try_timeout: true, ..Default::default() };
    let resource = |own: bool| {
        changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
            proto.request_mirror_policies.push(mirror("outer"));
            proto.virtual_hosts[0].hedge_policy = Some(hedge);
            let Some(rds::route::Action::Route(action)) = &mut proto.virtual_hosts[0].routes[0].action else {
                panic!("a forwarding route")
            };
            if own {
                action.request_mirror_policies.push(mirror("own"));
            }
        })
    };
    let forward = decoded_forward(&resource(false));
    assert!(forward.hedge.is_some_and(|hedge| hedge.on_per_try_timeout && hedge.initial_requests == 1));
    assert_eq!(forward.mirrors[0].cluster, "outer".into());
    let forward = decoded_forward(&resource(true));
    assert_eq!((forward.mirrors.len(), &forward.mirrors[0].cluster), (1, &"own".into()));
}

#[test]
fn faults_hold_all_of_a33() {
    let proto = HttpFault {
        upstream_cluster: "c".into(),
        headers: vec![rds::HeaderMatcher { name: "x-chaos".into(), ..Default::default() }],
        max_active_faults: number(3),
        ..codec::fault::encode(&Fault {
            delay: Some(FaultDelay { duration: None, share: PerMillion::ALL, unit: ShareUnit::TenThousand }),
            abort: Some(FaultAbort { status: None, share: PerMillion::ALL, unit: ShareUnit::Hundred }),
            ..Fault::default()
        })
    };
    let filter = codec::filter::encode("fault", extension::pack(url::FAULT, &proto), false);
    let decoded = codec::decode_listener(&with_manager(|m| m.http_filters.insert(0, filter))).unwrap();
    assert_eq!(decoded.unenforced, []);
    let AnyListener::Outbound(listener) = decoded.value else { panic!("a client's listener") };
    let HttpFilterKind::Fault(Some(fault)) = &listener.filters[0].kind else { panic!("a fault filter") };
    let (delay, abort) = (fault.delay.as_ref().unwrap(), fault.abort.as_ref().unwrap());
    assert_eq!((delay.duration, delay.unit), (None, ShareUnit::TenThousand));
    assert_eq!((abort.status, abort.unit), (None, ShareUnit::Hundred));
    assert_eq!((fault.headers.len(), fault.cluster.clone(), fault.max_active), (1, Some("c".into()), Some(3)));
}

/// The listener with this filter first, and what became of the filter.
fn filtered(type_url: &str, message: &impl Message) -> Result<HttpFilterKind, Vec<String>> {
    let filter = codec::filter::encode("f", extension::pack(type_url, message), false);
    let decoded = codec::decode_listener(&with_manager(|m| m.http_filters.insert(0, filter)));
    let place = "api_listener.api_listener.http_filters[0].";
    let fields = |error: DecodeError| {
        error.problems.iter().map(|p| p.field.strip_prefix(place).unwrap_or(&p.field).to_owned()).collect::<Vec<_>>()
    };
    let decoded = decoded.map_err(fields)?;
    assert_eq!(decoded.unenforced, []);
    let AnyListener::Outbound(listener) = decoded.value else { panic!("a client's listener") };
    Ok(listener.filters[0].kind.clone())
}

#[test]
fn admission_control_has_envoys_defaults_and_bounds() {
    let least = || admission_control::AdmissionControl {
        evaluation_criteria: codec::admission::encode(None).evaluation_criteria,
        ..Default::default()
    };
    let decoded = |change: &dyn Fn(&mut admission_control::AdmissionControl)| {
        let mut proto = least();
        change(&mut proto);
        filtered(url::ADMISSION, &proto)
    };
    assert_eq!(decoded(&|_| {}), Ok(HttpFilterKind::AdmissionControl(Some(AdmissionControl::default()))));
    let off = codec::admission::encode(None);
    assert_eq!(filtered(url::ADMISSION, &off), Ok(HttpFilterKind::AdmissionControl(None)));
    // Less than linear is linear, and a window has a second at least.
    let unusual = decoded(&|p| {
        p.aggression = Some(core::RuntimeDouble { default_value: 0.1, ..Default::default() });
        p.sampling_window = Some(Duration { seconds: 0, nanos: 1 });
    });
    let window = std::time::Duration::from_secs(1);
    let want = AdmissionControl { window, ..AdmissionControl::default() };
    assert_eq!(unusual, Ok(HttpFilterKind::AdmissionControl(Some(want))));
    let percent = |value| Some(core::RuntimePercent { default_value: Some(Percent { value }), ..Default::default() });
    assert_eq!(decoded(&|p| p.sr_threshold = percent(0.9)), Err(vec!["sr_threshold".to_owned()]));
    let too_much = decoded(&|p| p.max_rejection_probability = percent(101.0));
    assert_eq!(too_much, Err(vec!["max_rejection_probability".to_owned()]));
    let endless = |p: &mut admission_control::AdmissionControl| {
        p.aggression = Some(core::RuntimeDouble { default_value: f64::NAN, ..Default::default() });
    };
    assert_eq!(decoded(&endless), Err(vec!["aggression".to_owned()]));
    assert_eq!(decoded(&|p| p.evaluation_criteria = None), Err(vec!["success_criteria".to_owned()]));
    let mut bad = AdmissionControl { grpc_success: vec![17], ..AdmissionControl::default() };
    bad.http_success.push(200..601);
    let fields = ["http_criteria.http_success_status[0]", "grpc_criteria.grpc_success_status[0]"];
    let fields = fields.map(|field| format!("success_criteria.{field}")).to_vec();
    assert_eq!(filtered(url::ADMISSION, &codec::admission::encode(Some(&bad))), Err(fields));
}

#[test]
fn adaptive_concurrency_has_envoys_defaults_and_bounds() {
    use adaptive_concurrency::adaptive_concurrency::ConcurrencyControllerConfig::GradientControllerConfig;
    use adaptive_concurrency::gradient_controller_config::MinimumRttCalculationParams;

    type Gradient = adaptive_concurrency::GradientControllerConfig;
    let decoded = |change: &dyn Fn(&mut Gradient)| {
        let mut proto = codec::concurrency::encode(Some(&AdaptiveConcurrency::default()));
        let Some(GradientControllerConfig(gradient)) = &mut proto.concurrency_controller_config else {
            panic!("a gradient controller")
        };
        change(gradient);
        filtered(url::CONCURRENCY, &proto)
    };
    let on = |policy| Ok(HttpFilterKind::AdaptiveConcurrency(Some(policy)));
    let bare = decoded(&|gradient| {
        gradient.sample_aggregate_percentile = None;
        let limit = gradient.concurrency_limit_params.as_mut().unwrap();
        (limit.max_concurrency_limit, limit.min_concurrency_limit) = (None, None);
        let interval = gradient.min_rtt_calc_params.as_ref().unwrap().interval;
        gradient.min_rtt_calc_params = Some(MinimumRttCalculationParams { interval, ..Default::default() });
    });
    assert_eq!(bare, on(AdaptiveConcurrency::default()));
    let off = codec::concurrency::encode(None);
    assert_eq!(filtered(url::CONCURRENCY, &off), Ok(HttpFilterKind::AdaptiveConcurrency(None)));
    let fixed = |gradient: &mut Gradient| {
        let least = gradient.min_rtt_calc_params.as_mut().unwrap();
        (least.interval, least.fixed_value) = (None, Some(Duration { seconds: 1, nanos: 0 }));
    };
    let min_rtt = MinRtt::Fixed(std::time::Duration::from_secs(1));
    assert_eq!(decoded(&fixed), on(AdaptiveConcurrency { min_rtt, ..AdaptiveConcurrency::default() }));
    // A status that is no error is Envoy's own.
    let mut proto = codec::concurrency::encode(Some(&AdaptiveConcurrency::default()));
    proto.concurrency_limit_exceeded_status = Some(HttpStatus { code: 200 });
    assert_eq!(filtered(url::CONCURRENCY, &proto), on(AdaptiveConcurrency::default()));
    proto.concurrency_controller_config = None;
    assert_eq!(filtered(url::CONCURRENCY, &proto), Err(vec!["gradient_controller_config".to_owned()]));
    let none = decoded(&|gradient| {
        let limit = gradient.concurrency_limit_params.as_mut().unwrap();
        limit.concurrency_update_interval = None;
        limit.max_concurrency_limit = number(0);
        gradient.min_rtt_calc_params = Some(MinimumRttCalculationParams::default());
    });
    let fields = [
        "concurrency_limit_params.concurrency_update_interval",
        "concurrency_limit_params.max_concurrency_limit",
        "min_rtt_calc_params.interval",
    ];
    let fields = fields.map(|field| format!("gradient_controller_config.{field}")).to_vec();
    assert_eq!(none, Err(fields));
}
