//! The rules for composite filters (L5, gRFC A103) and the trees that choose their chains (gRFC A106). See
//! `conformance.rs`.

use envoy_types::pb::envoy::config::core::v3::{RuntimeFractionalPercent, TypedExtensionConfig};
use envoy_types::pb::envoy::config::route::v3::{self as rds, RouteConfiguration as RoutesProto};
use envoy_types::pb::envoy::extensions::common::matching::v3::{ExtensionWithMatcher, ExtensionWithMatcherPerRoute};
use envoy_types::pb::envoy::extensions::filters::common::matcher::action::v3::SkipFilter;
use envoy_types::pb::envoy::extensions::filters::http::composite::v3::{
    Composite as CompositeProto, DynamicConfig, ExecuteFilterAction, FilterChainConfiguration,
};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::jwt_authn::v3::JwtAuthentication as JwtProto;
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::r#type::matcher::v3::HttpRequestHeaderMatchInput;
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::pb::xds::core::v3::TypedExtensionConfig as XdsExtension;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::predicate::{
    MatchType, PredicateList, SinglePredicate, single_predicate,
};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::{FieldMatcher, Predicate};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_tree::{MatchMap, TreeType};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{
    MatcherList, MatcherTree as TreeProto, MatcherType, OnMatch as OnMatchProto, on_match,
};
use envoy_types::pb::xds::r#type::matcher::v3::{
    Matcher, RegexMatcher, StringMatcher as TextProto, string_matcher::MatchPattern,
};
use mesh_core::policy::*;
use prost::Message;

use super::conformance::{Says, says};
use super::conformance_server::{decoded, with_filter, with_manager as with_server_manager};
use super::refusals::{changed, routes, with_manager, with_route};
use crate::codec::{self, AnyListener, extension, extension::url};

const CLIENT: &str = "api_listener.api_listener.http_filters[0]";
const SERVER: &str = "filter_chains[0].filters[0].http_filters[0]";

pub(super) fn named(type_url: &str, message: &impl Message) -> TypedExtensionConfig {
    extension::typed("f", type_url, message)
}

fn xds(type_url: &str, message: &impl Message) -> XdsExtension {
    XdsExtension { name: "x".into(), typed_config: Some(extension::pack(type_url, message)) }
}

fn end(action: XdsExtension) -> OnMatchProto {
    OnMatchProto { keep_matching: false, on_match: Some(on_match::OnMatch::Action(action)) }
}

pub(super) fn skip() -> OnMatchProto {
    end(xds(url::SKIP_FILTER, &SkipFilter {}))
}

pub(super) fn execute(action: &ExecuteFilterAction) -> OnMatchProto {
    end(xds(url::EXECUTE_FILTERS, action))
}

pub(super) fn chain(filters: Vec<TypedExtensionConfig>) -> ExecuteFilterAction {
    let filter_chain = Some(FilterChainConfiguration { typed_config: filters });
    ExecuteFilterAction { filter_chain, ..Default::default() }
}

/// A tree that has one end.
pub(super) fn only(end: OnMatchProto) -> Matcher {
    Matcher { on_no_match: Some(Box::new(end)), matcher_type: None }
}

fn within(tree: Matcher) -> OnMatchProto {
    OnMatchProto { keep_matching: false, on_match: Some(on_match::OnMatch::Matcher(Box::new(tree))) }
}

pub(super) fn composite(tree: Matcher) -> ExtensionWithMatcher {
    ExtensionWithMatcher {
        extension_config: Some(named(url::COMPOSITE, &CompositeProto::default())),
        xds_matcher: Some(tree),
        ..Default::default()
    }
}

fn of_client(config: &ExtensionWithMatcher, is_optional: bool) -> Any {
    let filter = codec::filter::encode("c", extension::pack(url::WITH_MATCHER, config), is_optional);
    with_manager(|manager| manager.http_filters.insert(0, filter))
}

fn of_server(config: &ExtensionWithMatcher) -> Any {
    with_filter(url::WITH_MATCHER, config)
}

fn client(case: &str, config: &ExtensionWithMatcher, want: &Says<'_>) {
    says(case, codec::decode_listener(&of_client(config, false)), want);
}

fn server(case: &str, config: &ExtensionWithMatcher, want: &Says<'_>) {
    says(case, codec::decode_listener(&of_server(config)), want);
}

/// The composite of a client's listener.
fn read(config: &ExtensionWithMatcher) -> Composite {
    let AnyListener::Outbound(listener) = codec::decode_listener(&of_client(config, false)).unwrap().value else {
        panic!("a client's listener")
    };
    let HttpFilterKind::Composite(composite) = &listener.filters[0].kind else { panic!("{listener:?}") };
    composite.clone()
}

fn input(name: &str) -> XdsExtension {
    xds(url::HEADER_INPUT, &HttpRequestHeaderMatchInput { header_name: name.into() })
}

fn text(pattern: MatchPattern) -> TextProto {
    TextProto { ignore_case: false, match_pattern: Some(pattern) }
}

fn single(input: XdsExtension, matcher: Option<single_predicate::Matcher>) -> Predicate {
    Predicate { match_type: Some(MatchType::SinglePredicate(SinglePredicate { input: Some(input), matcher })) }
}

fn exact(name: &str, value: &str) -> Predicate {
    let value = text(MatchPattern::Exact(value.into()));
    single(input(name), Some(single_predicate::Matcher::ValueMatch(value)))
}

fn list(predicate: Option<Predicate>, on_match: Option<OnMatchProto>) -> Matcher {
    let list = MatcherList { matchers: vec![FieldMatcher { predicate, on_match }] };
    Matcher { on_no_match: None, matcher_type: Some(MatcherType::MatcherList(list)) }
}

fn map(input: XdsExtension, tree_type: Option<TreeType>) -> Matcher {
    let tree = TreeProto { input: Some(input), tree_type };
    Matcher { on_no_match: None, matcher_type: Some(MatcherType::MatcherTree(tree)) }
}

fn entries(keys: &[&str]) -> MatchMap {
    MatchMap { map: keys.iter().map(|key| ((*key).to_owned(), skip())).collect() }
}

#[test]
fn l5_a_composite_is_wrapped_with_its_matcher_a103() {
    let tree = || only(skip());
    client("as gRPC takes it", &composite(tree()), &Says::Taken);
    server("the same of a server", &composite(tree()), &Says::Taken);
    // Without a tree it does nothing.
    client("no matcher", &ExtensionWithMatcher { xds_matcher: None, ..composite(tree()) }, &Says::Taken);
    assert_eq!(read(&ExtensionWithMatcher { xds_matcher: None, ..composite(tree()) }), Composite::default());
    let at = format!("{CLIENT}.extension_config.typed_config");
    let other =
        ExtensionWithMatcher { extension_config: Some(named(url::FAULT, &HttpFault::default())), ..composite(tree()) };
    client("another filter", &other, &Says::Refused(&[&at]));
    client("none", &ExtensionWithMatcher { extension_config: None, ..composite(tree()) }, &Says::Refused(&[&at]));
    // The deprecated form would decide, and nobody reads it.
    let at = format!("{CLIENT}.matcher");
    let both = ExtensionWithMatcher { matcher: Some(Default::default()), ..composite(tree()) };
    client("both forms", &both, &Says::Reported(&[&at]));
    client("the deprecated form", &ExtensionWithMatcher { xds_matcher: None, ..both }, &Says::Refused(&[&at]));
    // Its type is known: that it is optional makes nothing good that is wrong.
    let optional = codec::decode_listener(&of_client(&ExtensionWithMatcher::default(), true));
    says("optional", optional, &Says::Refused(&[&format!("{CLIENT}.extension_config.typed_config")]));
    let names =
        CompositeProto { named_filter_chains: [("a".to_owned(), Default::default())].into(), ..Default::default() };
    let named_chains =
        ExtensionWithMatcher { extension_config: Some(named(url::COMPOSITE, &names)), ..composite(tree()) };
    let at = format!("{CLIENT}.extension_config.typed_config.named_filter_chains");
    client("named chains", &named_chains, &Says::Refused(&[&at]));
    // By itself, as a newer Envoy takes it, it is an unknown filter.
    let bare = |optional| {
        let config = extension::pack(url::COMPOSITE, &CompositeProto::default());
        codec::decode_listener(&with_manager(|m| {
            m.http_filters.insert(0, codec::filter::encode("c", config, optional))
        }))
    };
    says("bare", bare(false), &Says::Refused(&[CLIENT]));
    says("bare and optional", bare(true), &Says::Reported(&["filters[0] c"]));
}

#[test]
fn l5_the_actions_of_a_composite_a103() {
    let fault = || named(url::FAULT, &HttpFault::default());
    let at = |name: &str| format!("{CLIENT}.xds_matcher.on_no_match{name}");
    let of = |action: &ExecuteFilterAction| composite(only(execute(action)));
    let single = ExecuteFilterAction { typed_config: Some(fault()), ..Default::default() };
    client("one filter", &of(&single), &Says::Taken);
    client(
        "a chain",
        &of(&chain(vec![fault(), extension::typed("g", url::FAULT, &HttpFault::default())])),
        &Says::Taken,
    );
    client("neither", &of(&ExecuteFilterAction::default()), &Says::Refused(&[&at(".action.typed_config")]));
    let both =
        ExecuteFilterAction { typed_config: Some(extension::typed("", "t", &SkipFilter {})), ..chain(vec![fault()]) };
    client("a chain beside it counts", &of(&both), &Says::Reported(&[&at(".action.typed_config")]));
    let dynamic = ExecuteFilterAction { dynamic_config: Some(DynamicConfig::default()), ..single.clone() };
    client("discovered, with one that is not", &of(&dynamic), &Says::Reported(&[&at(".action.dynamic_config")]));
    let dynamic = ExecuteFilterAction { typed_config: None, ..dynamic };
    client("discovered", &of(&dynamic), &Says::Refused(&[&at(".action.typed_config")]));
    client("no filter", &of(&chain(Vec::new())), &Says::Refused(&[&at(".action.filter_chain.typed_config")]));
    let twice = at(".action.filter_chain.typed_config[1].name");
    client("two of one name", &of(&chain(vec![fault(), fault()])), &Says::Refused(&[&twice]));
    let at_name = at(".action.typed_config.name");
    let nameless = ExecuteFilterAction {
        typed_config: Some(extension::typed("", url::FAULT, &HttpFault::default())),
        ..Default::default()
    };
    client("no name", &of(&nameless), &Says::Refused(&[&at_name]));
    client(
        "another action",
        &composite(only(end(xds(url::FAULT, &HttpFault::default())))),
        &Says::Refused(&[&at(".action")]),
    );
    client("no action", &composite(only(OnMatchProto::default())), &Says::Refused(&[&at("")]));
    // The share of requests: what is unset is refused, and more than all is all.
    let sampled = |default_value| {
        let share = RuntimeFractionalPercent { default_value, runtime_key: "key".into() };
        of(&ExecuteFilterAction { sample_percent: Some(share), ..single.clone() })
    };
    client("no share", &sampled(None), &Says::Refused(&[&at(".action.sample_percent.default_value")]));
    for (numerator, want) in [(25, PerMillion::new(250_000)), (0, PerMillion::NONE), (4_000_000_000, PerMillion::ALL)] {
        let composite = read(&sampled(Some(FractionalPercent { numerator, denominator: 0 })));
        assert_eq!(composite.chains()[0].share, want, "{numerator}");
    }
    assert_eq!(read(&of(&single)).chains()[0].share, PerMillion::ALL);
}

#[test]
fn l5_what_is_in_a_composite_is_checked_as_outside_a103() {
    let of = |filter: TypedExtensionConfig| {
        composite(only(execute(&ExecuteFilterAction { typed_config: Some(filter), ..Default::default() })))
    };
    let at = |filter: &str| format!("{filter}.xds_matcher.on_no_match.action.typed_config.typed_config");
    let (on_client, on_server) = (at(CLIENT), at(SERVER));
    let router = of(named(url::ROUTER, &Router::default()));
    client("what ends all", &router, &Says::Refused(&[&on_client]));
    server("what ends all", &router, &Says::Refused(&[&on_server]));
    let unknown = of(named("type.googleapis.com/some.Filter", &SkipFilter {}));
    client("unknown", &unknown, &Says::Refused(&[&on_client]));
    server("unknown", &unknown, &Says::Refused(&[&on_server]));
    // Of the other side: what a listener is for is known there.
    let rbac = of(named(url::RBAC, &Rbac::default()));
    client("rbac of a client", &rbac, &Says::Refused(&[&on_client]));
    server("rbac of a server", &rbac, &Says::Taken);
    let fault = of(named(url::FAULT, &HttpFault::default()));
    client("a fault of a client", &fault, &Says::Taken);
    server("a fault of a server", &fault, &Says::Refused(&[&on_server]));
    server("an external authorizer", &of(named(url::EXT_AUTHZ, &SkipFilter {})), &Says::Refused(&[&on_server]));
    client("cors", &of(named(url::CORS, &SkipFilter {})), &Says::Refused(&[&on_client]));
    let broken = of(TypedExtensionConfig {
        name: "f".into(),
        typed_config: Some(Any { type_url: url::RBAC.into(), value: vec![7] }),
    });
    server("what cannot be read", &broken, &Says::Refused(&[&on_server]));
    // A `TypedStruct` that says nothing stands for what it wraps (gRFC A39), as anywhere.
    let mut wrapped = vec![10, url::FAULT.len() as u8];
    wrapped.extend(url::FAULT.bytes());
    let wrapped = Any { type_url: "type.googleapis.com/xds.type.v3.TypedStruct".into(), value: wrapped };
    let wrapped = of(TypedExtensionConfig { name: "f".into(), typed_config: Some(wrapped) });
    client("a TypedStruct", &wrapped, &Says::Taken);
}

#[test]
fn l5_composites_are_nested_eight_deep_a103() {
    let nested = |depth: usize| {
        let mut whole = composite(only(skip()));
        for _ in 1..depth {
            let filter = named(url::WITH_MATCHER, &whole);
            whole = composite(only(execute(&ExecuteFilterAction { typed_config: Some(filter), ..Default::default() })));
        }
        whole
    };
    let inner = ".xds_matcher.on_no_match.action.typed_config.typed_config";
    for (filter, case) in [(CLIENT, client as fn(&str, &ExtensionWithMatcher, &Says<'_>)), (SERVER, server)] {
        case("eight", &nested(8), &Says::Taken);
        case("nine", &nested(9), &Says::Refused(&[&format!("{filter}{}", inner.repeat(8))]));
        case("a hundred", &nested(100), &Says::Refused(&[&format!("{filter}{}", inner.repeat(8))]));
    }
}

#[test]
fn l5_a_route_has_another_tree_a103_a39() {
    let per_route =
        |tree| extension::pack(url::WITH_MATCHER_PER_ROUTE, &ExtensionWithMatcherPerRoute { xds_matcher: tree });
    let resource = changed::<RoutesProto>(codec::encode_routes(&routes()), |proto| {
        let host = &mut proto.virtual_hosts[0];
        host.typed_per_filter_config.insert("c".into(), per_route(None));
        host.routes[0].typed_per_filter_config.insert("c".into(), per_route(Some(only(skip()))));
    });
    let routes = codec::decode_routes(&resource).unwrap().value;
    let tree = MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(OnMatch::Skip) };
    let own = &routes.virtual_hosts[0].routes[0].filters["c"];
    assert_eq!(**own, FilterOverride::Composite(Composite::of(tree)), "the more specific one replaces the other");
    // Checked as in a listener. Which side they are for routes do not say: what does not belong fails the requests.
    let with = |tree| {
        move |r: &mut rds::Route| {
            r.typed_per_filter_config.insert("c".into(), per_route(Some(tree)));
        }
    };
    let at = "virtual_hosts[0].routes[0].typed_per_filter_config[\"c\"].xds_matcher";
    let case = |case: &str, tree, want: &Says<'_>| says(case, codec::decode_routes(&with_route(with(tree))), want);
    case("nothing", Matcher::default(), &Says::Refused(&[at]));
    let action = |filter| ExecuteFilterAction { typed_config: Some(filter), ..Default::default() };
    case("a server's", only(execute(&action(named(url::RBAC, &Rbac::default())))), &Says::Taken);
    case("a client's", only(execute(&action(named(url::FAULT, &HttpFault::default())))), &Says::Taken);
    let router = only(execute(&action(named(url::ROUTER, &Router::default()))));
    let at = format!("{at}.on_no_match.action.typed_config.typed_config");
    case("what ends all", router, &Says::Refused(&[&at]));
}

#[test]
fn a106_matchers_their_inputs_and_conditions() {
    let at = |name: &str| format!("{CLIENT}.xds_matcher{name}");
    let case = |name: &str, tree: Matcher, want: &Says<'_>| client(name, &composite(tree), want);
    case("nothing", Matcher::default(), &Says::Refused(&[&at("")]));
    let of = |predicate| list(Some(predicate), Some(skip()));
    case("a condition", of(exact("x", "1")), &Says::Taken);
    let field = ".matcher_list.matchers[0]";
    case("no condition", list(None, Some(skip())), &Says::Refused(&[&at(&format!("{field}.predicate"))]));
    case("no end", list(Some(exact("x", "1")), None), &Says::Refused(&[&at(&format!("{field}.on_match"))]));
    let empty = Matcher { on_no_match: None, matcher_type: Some(MatcherType::MatcherList(MatcherList::default())) };
    case("an empty list", empty, &Says::Refused(&[&at(".matcher_list.matchers")]));
    // gRFC A103: one word for each request.
    let keep = OnMatchProto { keep_matching: true, ..skip() };
    case(
        "keep_matching",
        list(Some(exact("x", "1")), Some(keep.clone())),
        &Says::Refused(&[&at(&format!("{field}.on_match.keep_matching"))]),
    );
    case(
        "further in",
        only(within(only(keep))),
        &Says::Refused(&[&at(".on_no_match.matcher.on_no_match.keep_matching")]),
    );
    // Sets of conditions.
    let set = |list: Vec<Predicate>| PredicateList { predicate: list };
    let joined = |match_type| of(Predicate { match_type: Some(match_type) });
    case("and", joined(MatchType::AndMatcher(set(vec![exact("x", "1"), exact("y", "1")]))), &Says::Taken);
    case("or", joined(MatchType::OrMatcher(set(vec![exact("x", "1")]))), &Says::Taken);
    case("not", joined(MatchType::NotMatcher(Box::new(exact("x", "1")))), &Says::Taken);
    let none = at(&format!("{field}.predicate.or_matcher.predicate"));
    case("or of nothing", joined(MatchType::OrMatcher(set(Vec::new()))), &Says::Refused(&[&none]));
    // Inputs.
    let single_at = |name: &str| at(&format!("{field}.predicate.single_predicate.{name}"));
    for name in ["x", ":path", ":method", ":authority", "content-type"] {
        case(name, of(exact(name, "/s/m")), &Says::Taken);
    }
    let name = single_at("input.header_name");
    for wrong in ["", "X", "a b", ":status", &"x".repeat(16_384)] {
        case(wrong, of(exact(wrong, "1")), &Says::Refused(&[&name]));
    }
    for absent in ["te", "x-bin"] {
        case(absent, of(exact(absent, "1")), &Says::Reported(&[&name]));
    }
    let kind = single_at("input.typed_config");
    let cel = || xds("type.googleapis.com/xds.type.matcher.v3.HttpAttributesCelMatchInput", &SkipFilter {});
    let one = || Some(single_predicate::Matcher::ValueMatch(text(MatchPattern::Exact("1".into()))));
    case("cel", of(single(cel(), one())), &Says::Refused(&[&kind]));
    case("no input", of(single(XdsExtension::default(), one())), &Says::Refused(&[&kind]));
    // Values.
    let value = |pattern| of(single(input("x"), Some(single_predicate::Matcher::ValueMatch(text(pattern)))));
    let regex = |regex: &str| MatchPattern::SafeRegex(RegexMatcher { regex: regex.into(), ..Default::default() });
    case("a pattern", value(regex("a+")), &Says::Taken);
    case("no pattern", value(regex("(")), &Says::Refused(&[&single_at("value_match.safe_regex.regex")]));
    case(
        "a pattern that is too large",
        value(regex("(\\w{500}){500}")),
        &Says::Refused(&[&single_at("value_match.safe_regex.regex")]),
    );
    case(
        "an empty beginning",
        value(MatchPattern::Prefix(String::new())),
        &Says::Refused(&[&single_at("value_match")]),
    );
    let custom = MatchPattern::Custom(XdsExtension::default());
    case("another text matcher", value(custom), &Says::Refused(&[&single_at("value_match.custom")]));
    let custom = single_predicate::Matcher::CustomMatch(XdsExtension::default());
    case("another matcher", of(single(input("x"), Some(custom))), &Says::Refused(&[&single_at("custom_match")]));
    case("no matcher", of(single(input("x"), None)), &Says::Refused(&[&single_at("value_match")]));
    // Maps.
    case("whole values", map(input("x"), Some(TreeType::ExactMatchMap(entries(&["a", ""])))), &Says::Taken);
    case("beginnings", map(input("x"), Some(TreeType::PrefixMatchMap(entries(&["a", ""])))), &Says::Taken);
    let none = at(".matcher_tree.exact_match_map");
    case("no values", map(input("x"), Some(TreeType::ExactMatchMap(MatchMap::default()))), &Says::Refused(&[&none]));
    case("no map", map(input("x"), None), &Says::Refused(&[&at(".matcher_tree")]));
    let custom = TreeType::CustomMatch(XdsExtension::default());
    case("another map", map(input("x"), Some(custom)), &Says::Refused(&[&at(".matcher_tree.custom_match")]));
    let wrong = MatchMap { map: [("a".to_owned(), OnMatchProto::default())].into() };
    let at_entry = at(".matcher_tree.prefix_match_map[\"a\"]");
    case("no end in a map", map(input("x"), Some(TreeType::PrefixMatchMap(wrong))), &Says::Refused(&[&at_entry]));
}

#[test]
fn a106_matchers_are_nested_sixteen_deep() {
    let nested = |depth: usize| (1..depth).fold(only(skip()), |tree, _| only(within(tree)));
    client("sixteen", &composite(nested(16)), &Says::Taken);
    let at = format!("{CLIENT}.xds_matcher{}", ".on_no_match.matcher".repeat(16));
    client("seventeen", &composite(nested(17)), &Says::Refused(&[&at]));
    // Where protobuf itself ends, nothing is read.
    client("a thousand", &composite(nested(1000)), &Says::Refused(&[CLIENT]));
    let deep =
        (0..1000).fold(exact("x", "1"), |inner, _| Predicate { match_type: Some(MatchType::NotMatcher(inner.into())) });
    client("conditions", &composite(list(Some(deep), Some(skip()))), &Says::Refused(&[CLIENT]));
}

#[test]
fn a_path_that_a_server_never_sees_decides_nothing() {
    // A server brings paths to their normal form: what is kept shut by another form would be open.
    let of = |path: &str| composite(list(Some(exact(":path", path)), Some(skip())));
    server("normal", &of("/a/b"), &Says::Taken);
    let at = format!("{SERVER}.xds_matcher.matcher_list.matchers[0].predicate.single_predicate");
    server("not normal", &of("/a/../b"), &Says::Refused(&[&at]));
    // A client sends what it is given.
    client("not normal", &of("/a/../b"), &Says::Taken);
    let entries = MatchMap { map: [("/a//".to_owned(), skip())].into() };
    let at = format!("{SERVER}.xds_matcher.matcher_tree.prefix_match_map[\"/a//\"]");
    let tree = map(input(":path"), Some(TreeType::PrefixMatchMap(entries)));
    server("a beginning that is not normal", &composite(tree), &Says::Refused(&[&at]));
}

#[test]
fn where_a_composite_stands_among_a_servers_filters() {
    let plain = codec::filter::encode("c", extension::pack(url::WITH_MATCHER, &composite(only(skip()))), false);
    let rbac =
        codec::authorization::encode([&AuthorizationPolicy::new("p", AuthorizationAction::Deny)], Default::default());
    let rbac = codec::filter::encode("p", extension::pack(url::RBAC, &rbac[0].filter), false);
    let names = |list: &[HttpFilter]| list.iter().map(|filter| filter.name.clone()).collect::<Vec<_>>();
    for (filters, before, after) in
        [([plain.clone(), rbac.clone()], vec!["c"], vec![]), ([rbac, plain], vec![], vec!["c"])]
    {
        let read = decoded(&with_server_manager(|manager| drop(manager.http_filters.splice(0..0, filters))));
        assert_eq!(
            (names(&read.before), names(&read.filters)),
            (before.into_iter().map(str::to_owned).collect(), after.into_iter().map(str::to_owned).collect(),)
        );
    }
}

#[test]
fn a_server_asks_in_the_order_that_is_listed() {
    // A token that is taken away by one of them would not be seen by the next.
    let (jwt, rbac) = (named(url::JWT, &JwtProto::default()), extension::typed("r", url::RBAC, &Rbac::default()));
    let inner = extension::typed("c", url::WITH_MATCHER, &composite(only(skip())));
    let of = |filters: &[&TypedExtensionConfig]| {
        composite(only(execute(&chain(filters.iter().map(|f| (*f).clone()).collect()))))
    };
    server("as they are asked", &of(&[&jwt, &rbac, &inner]), &Says::Taken);
    let at = |i: usize| format!("{SERVER}.xds_matcher.on_no_match.action.filter_chain.typed_config[{i}]");
    server("rbac before tokens", &of(&[&rbac, &jwt]), &Says::Refused(&[&at(1)]));
    server("a composite before rbac", &of(&[&inner, &rbac]), &Says::Refused(&[&at(1)]));
    server("a composite before tokens", &of(&[&rbac, &inner, &jwt]), &Says::Refused(&[&at(2)]));

    let tokens = chain(vec![named(url::JWT, &JwtProto::default())]);
    let whole = |kind: &str| {
        let (type_url, config) = match kind {
            "t" => (url::WITH_MATCHER, extension::pack(url::WITH_MATCHER, &composite(only(execute(&tokens))))),
            "c" => (url::WITH_MATCHER, extension::pack(url::WITH_MATCHER, &composite(only(skip())))),
            "r" => (url::RBAC, extension::pack(url::RBAC, &Rbac::default())),
            _ => (url::JWT, extension::pack(url::JWT, &JwtProto::default())),
        };
        assert_eq!(config.type_url, type_url);
        codec::filter::encode(kind, config, false)
    };
    for (filters, refused) in [
        (["c", "r", "j"], None),
        (["r", "j", "c"], None),
        (["j", "r", "c"], None),
        (["r", "c", "j"], Some(1)),
        (["t", "r", "c"], None),
        (["j", "t", "r"], None),
        (["c", "r", "t"], Some(2)),
    ] {
        let listener = with_server_manager(|m| drop(m.http_filters.splice(0..0, filters.map(whole))));
        let at = refused.map(|at: usize| format!("filter_chains[0].filters[0].http_filters[{at}]"));
        let at: Vec<&str> = at.iter().map(String::as_str).collect();
        let want = if at.is_empty() { Says::Taken } else { Says::Refused(&at) };
        says(&filters.join(" "), codec::decode_listener(&listener), &want);
    }
}

#[test]
fn an_end_that_no_request_of_a_server_comes_to_is_refused() {
    let of = |name: &str| composite(list(Some(exact(name, "1")), Some(skip())));
    let at = format!("{SERVER}.xds_matcher.matcher_list.matchers[0].predicate.single_predicate.input.header_name");
    for absent in ["te", "x-bin"] {
        server(absent, &of(absent), &Says::Refused(&[&at]));
    }
    // Names of hosts are one whatever their letters.
    for twin in ["a.test", "A.test."] {
        let keys = entries(&["A.test", twin]);
        let twins = |name: &str| composite(map(input(name), Some(TreeType::ExactMatchMap(keys.clone()))));
        let at = format!("{SERVER}.xds_matcher.matcher_tree.exact_match_map[{twin:?}]");
        server("twins", &twins(":authority"), &Says::Refused(&[&at]));
        server("twins of another header", &twins("x"), &Says::Taken);
    }
}

#[test]
fn what_composites_hold_is_counted_together_before_it_is_unfolded() {
    // Each of them is small enough, and unfolds to a hundred times of what it is.
    let many = Any { type_url: url::FAULT.into(), value: [0x12, 0].repeat(1 << 19) };
    let config = |i: usize| TypedExtensionConfig { name: format!("f{i}"), typed_config: Some(many.clone()) };
    let of = |count: usize| composite(only(execute(&chain((0..count).map(config).collect()))));
    for (count, counted) in [(1, false), (4, true)] {
        let said = match codec::decode_listener(&of_client(&of(count), false)) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(said.contains("parts"), counted, "{count}: {said}");
    }
}

#[test]
fn the_deepest_tree_of_the_deepest_composite_needs_little_stack() {
    // Tokio's threads have four times of it, as tests' have.
    const STACK: usize = 512 << 10;
    let deep = || {
        let condition = (0..40)
            .fold(exact("x", "1"), |inner, _| Predicate { match_type: Some(MatchType::NotMatcher(inner.into())) });
        let mut whole = composite(list(Some(condition), Some(skip())));
        for _ in 1..Composite::MAX_DEPTH {
            let filter = named(url::WITH_MATCHER, &whole);
            let action = ExecuteFilterAction { typed_config: Some(filter), ..Default::default() };
            let tree = (1..MatcherTree::MAX_DEPTH).fold(only(execute(&action)), |tree, _| only(within(tree)));
            whole = composite(tree);
        }
        let read = read(&whole);
        assert_eq!(read.clone(), read);
        let tree = read.matcher.as_deref().unwrap();
        drop(mesh_core::matcher::MatchTree::new(tree, &mut |_| ()));
        let filters = vec![HttpFilter { name: "c".into(), kind: HttpFilterKind::Composite(read.clone()) }];
        let listener = Listener { filters, ..Listener::new("l", RouteSource::Named("r".into())) };
        assert!(codec::decode_listener(&codec::encode_listener(&listener)).is_ok());
        assert!(!format!("{read:?}").is_empty() && unenforced(&listener).is_empty());
    };
    std::thread::Builder::new().stack_size(STACK).spawn(deep).unwrap().join().unwrap();
}
