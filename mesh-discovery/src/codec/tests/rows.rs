//! Classes of attack on rules as they arrive, by their number: what is not understood, wherever it stands, refuses the
//! listener and is never left out of a rule; each with the same rule without the trick taken.

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3::{Filter, Listener, filter::ConfigType};
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac as Rules, permission, permission::Rule, principal, principal::Identifier,
};
use envoy_types::pb::envoy::config::route::v3::{
    CorsPolicy, HeaderMatcher, header_matcher::HeaderMatchSpecifier, route::Action,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    PathMatcher, RegexMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern,
};
use envoy_types::pb::google::protobuf::{Any, UInt32Value};

use mesh_core::authz::{Attributes, Authorizer};
use mesh_core::identity::PeerIdentity;
use mesh_core::matcher::{PathCondition, RequestView};
use mesh_core::policy::{MAX_PATTERNS, Pattern};

use super::conformance_server::{with_filter, with_manager};
use super::refusals::{changed, with_route};
use super::refusals_cluster::inbound;
use crate::codec::{self, AnyListener, extension, extension::url};

fn permission(rule: Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn principal(identifier: Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

fn anything() -> Permission {
    permission(Rule::Any(true))
}

fn anybody() -> Principal {
    principal(Identifier::Any(true))
}

/// Whether a listener with one rule is taken.
fn takes(permissions: Vec<Permission>, principals: Vec<Principal>) -> bool {
    let policy = Policy { permissions, principals, ..Default::default() };
    let rules = Rules { policies: [("p".to_owned(), policy)].into(), ..Default::default() };
    codec::decode_listener(&with_filter(url::RBAC, &Rbac { rules: Some(rules), ..Default::default() })).is_ok()
}

fn pattern(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

fn regex(text: &str) -> StringMatcher {
    pattern(MatchPattern::SafeRegex(RegexMatcher { regex: text.to_owned(), ..Default::default() }))
}

fn header(name: &str, text: StringMatcher) -> HeaderMatcher {
    let specifier = HeaderMatchSpecifier::StringMatch(text);
    HeaderMatcher { name: name.to_owned(), header_match_specifier: Some(specifier), ..Default::default() }
}

fn path(text: Option<StringMatcher>) -> PathMatcher {
    PathMatcher { rule: text.map(path_matcher::Rule::Path) }
}

fn net(address: &str, bits: u32) -> CidrRange {
    CidrRange { address_prefix: address.to_owned(), prefix_len: Some(UInt32Value { value: bits }) }
}

fn named(text: StringMatcher) -> Identifier {
    Identifier::Authenticated(principal::Authenticated { principal_name: Some(text) })
}

/// A permission by itself and in every kind of set, one in the other.
fn permission_nestings(inner: Permission) -> Vec<Permission> {
    let set = |inner: Permission| permission::Set { rules: vec![anything(), inner] };
    let and = |inner| permission(Rule::AndRules(set(inner)));
    let or = |inner| permission(Rule::OrRules(set(inner)));
    let not = |inner| permission(Rule::NotRule(Box::new(inner)));
    let i = || inner.clone();
    vec![i(), and(i()), or(i()), not(i()), and(or(not(i()))), not(and(or(i()))), or(not(and(i())))]
}

fn principal_nestings(inner: Principal) -> Vec<Principal> {
    let set = |inner: Principal| principal::Set { ids: vec![anybody(), inner] };
    let and = |inner| principal(Identifier::AndIds(set(inner)));
    let or = |inner| principal(Identifier::OrIds(set(inner)));
    let not = |inner| principal(Identifier::NotId(Box::new(inner)));
    let i = || inner.clone();
    vec![i(), and(i()), or(i()), not(i()), and(or(not(i()))), not(and(or(i()))), or(not(and(i())))]
}

#[test]
fn s31_s41_s42_what_is_not_understood_refuses_the_rule_however_deep_it_stands() {
    let good = || pattern(MatchPattern::Exact("a".into()));
    for (inner, taken) in [
        (Some(Rule::Header(header("x-role", good()))), true),
        (Some(Rule::Header(header("x-role", regex("a+")))), true),
        (Some(Rule::UrlPath(path(Some(good())))), true),
        (Some(Rule::DestinationIp(net("10.0.0.0", 8))), true),
        (Some(Rule::DestinationPort(80)), true),
        (Some(Rule::RequestedServerName(good())), true),
        (Some(Rule::Header(header("x-role", regex("(")))), false),
        (Some(Rule::Header(header("", good()))), false),
        (Some(Rule::Header(header("x role", good()))), false),
        (Some(Rule::Header(header("x-role", StringMatcher::default()))), false),
        (Some(Rule::UrlPath(path(None))), false),
        (Some(Rule::UrlPath(path(Some(regex("[a"))))), false),
        (Some(Rule::DestinationIp(net("10.0.0", 8))), false),
        (Some(Rule::DestinationIp(net("10.0.0.0", 33))), false),
        (Some(Rule::DestinationPort(65_536)), false),
        (Some(Rule::RequestedServerName(StringMatcher::default())), false),
        (Some(Rule::Matcher(Default::default())), false),
        (Some(Rule::UriTemplate(Default::default())), false),
        (Some(Rule::Any(false)), false),
        (None, false),
    ] {
        for permission in permission_nestings(Permission { rule: inner.clone() }) {
            let got = takes(vec![anything(), permission.clone()], vec![anybody()]);
            assert_eq!(got, taken, "{permission:?}");
        }
    }
    for (inner, taken) in [
        (Some(named(good())), true),
        (Some(Identifier::DirectRemoteIp(net("10.0.0.0", 8))), true),
        (Some(Identifier::Header(header("x-role", good()))), true),
        (Some(Identifier::UrlPath(path(Some(good())))), true),
        (Some(named(StringMatcher::default())), false),
        (Some(named(regex("*"))), false),
        (Some(Identifier::RemoteIp(net("::/0", 0))), false),
        (Some(Identifier::Header(header("x-role", regex("(")))), false),
        (Some(Identifier::UrlPath(path(None))), false),
        (Some(Identifier::FilterState(Default::default())), false),
        (Some(Identifier::Any(false)), false),
        (None, false),
    ] {
        for principal in principal_nestings(Principal { identifier: inner.clone() }) {
            assert_eq!(takes(vec![anything()], vec![anybody(), principal.clone()]), taken, "{principal:?}");
        }
    }
}

#[test]
fn s43_s45_a_set_or_a_text_of_nothing_is_no_condition() {
    assert!(takes(vec![anything()], vec![anybody()]));
    assert!(!takes(vec![], vec![anybody()]));
    assert!(!takes(vec![anything()], vec![]));
    for empty in
        [Rule::AndRules(Default::default()), Rule::OrRules(Default::default()), Rule::NotRule(Default::default())]
    {
        assert!(!takes(vec![permission(empty)], vec![anybody()]));
    }
    for empty in [Identifier::AndIds(Default::default()), Identifier::OrIds(Default::default())] {
        assert!(!takes(vec![anything()], vec![principal(empty)]));
    }
    // As Envoy validates: every text begins with nothing, ends with it and has it in it.
    for (text, taken) in [
        (MatchPattern::Prefix(String::new()), false),
        (MatchPattern::Suffix(String::new()), false),
        (MatchPattern::Contains(String::new()), false),
        (MatchPattern::Prefix("a".into()), true),
        (MatchPattern::Suffix("a".into()), true),
        (MatchPattern::Contains("a".into()), true),
        (MatchPattern::Exact(String::new()), true),
    ] {
        assert_eq!(takes(vec![anything()], vec![principal(named(pattern(text.clone())))]), taken, "{text:?}");
        let of_header = Rule::Header(header("x-role", pattern(text.clone())));
        assert_eq!(takes(vec![permission(of_header)], vec![anybody()]), taken, "{text:?}");
    }
}

/// The rule `*/sa/web` in the filter of connections, as a control plane sends it for a port of bytes (CVE-2020-16844).
fn of_connections() -> Filter {
    let suffix = principal(named(pattern(MatchPattern::Suffix("/sa/web".into()))));
    let policy = Policy { permissions: vec![anything()], principals: vec![suffix], ..Default::default() };
    let rules = Rules { policies: [("p".to_owned(), policy)].into(), ..Default::default() };
    let rbac = NetworkRbac { rules: Some(rules), stat_prefix: "tcp.".into(), ..Default::default() };
    let network = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
    Filter { name: "rbac".into(), config_type: Some(ConfigType::TypedConfig(extension::pack(network, &rbac))) }
}

#[test]
fn s46_a_rule_about_bytes_and_not_requests_refuses_the_listener() {
    let with = |change: fn(&mut Vec<Filter>)| {
        let resource = changed::<Listener>(codec::encode_inbound(&inbound()), |listener| {
            listener.filter_chains.iter_mut().for_each(|chain| change(&mut chain.filters));
        });
        codec::decode_listener(&resource).is_ok()
    };
    // Before what reads requests; in its place; and before what passes bytes on.
    assert!(!with(|filters| filters.insert(0, of_connections())));
    assert!(!with(|filters| *filters = vec![of_connections()]));
    assert!(!with(|filters| {
        let proxy = extension::pack(url::TCP_PROXY, &TcpProxy { stat_prefix: "tcp".into(), ..Default::default() });
        let proxy = Filter { name: "tcp".into(), config_type: Some(ConfigType::TypedConfig(proxy)) };
        *filters = vec![of_connections(), proxy];
    }));
    assert!(with(|_| {}), "control");
}

fn allows(authorizer: &Authorizer, peer: &PeerIdentity) -> bool {
    let request = Some(RequestView {
        authority: "a",
        method: &http::Method::GET,
        path_and_query: "/",
        scheme: "https",
        headers: &http::HeaderMap::new(),
        draw: &|| 0,
    });
    let (destination, server_name, tokens) = (([10, 0, 0, 2], 80).into(), None, None);
    authorizer
        .decide(&Attributes { request, peer: Some(peer), destination, server_name, tokens, trusted_proxies: 0 }, |_| {})
        .is_ok()
}

#[test]
fn s46_the_end_of_a_principal_is_the_end_of_an_identity() {
    for name in [pattern(MatchPattern::Suffix("/sa/web".into())), regex(".*/sa/web")] {
        let policy =
            Policy { permissions: vec![anything()], principals: vec![principal(named(name))], ..Default::default() };
        let rules = Rules { policies: [("p".to_owned(), policy)].into(), ..Default::default() };
        let resource = with_filter(url::RBAC, &Rbac { rules: Some(rules), ..Default::default() });
        let AnyListener::Inbound(listener) = codec::decode_listener(&resource).unwrap().value else { panic!() };
        let authorizer = Authorizer::new(&listener.authorization);
        for (id, allowed) in [
            ("spiffe://td/ns/a/sa/web", true),
            ("spiffe://other/ns/b/sa/web", true),
            ("spiffe://td/ns/a/sa/webs", false),
            ("spiffe://td/ns/a/sa/web/sa/admin", false),
            ("spiffe://td/ns/a/xsa/web", false),
        ] {
            let peer = PeerIdentity { spiffe_id: Some(id.parse().unwrap()), address: ([10, 0, 0, 1], 1).into() };
            assert_eq!(allows(&authorizer, &peer), allowed, "{id}");
        }
        assert!(!allows(&authorizer, &PeerIdentity { spiffe_id: None, address: ([10, 0, 0, 1], 1).into() }), "nobody");
    }
}

#[test]
fn s40_a_pattern_has_a_limited_size_and_all_of_a_resource_together_too() {
    let with = |text: &str| takes(vec![permission(Rule::Header(header("x-role", regex(text))))], vec![anybody()]);
    for text in ["a{10}", "(a+)+b", &"a".repeat(1024)] {
        assert!(with(text), "{text:.20}");
    }
    for text in
        ["(a{1000}){1000}", "((a{100}){100}){100}", r"\pL{1000}\pL{1000}", &"a".repeat(1 << 20), &"a".repeat(1025)]
    {
        assert!(!with(text), "{text:.20}");
    }
    let many = |count: usize, text: &str| {
        let one = |i: usize| permission(Rule::UrlPath(path(Some(regex(&text.replace('I', &i.to_string()))))));
        takes((0..count).map(one).collect(), vec![anybody()])
    };
    // Each of them is within its own bound.
    assert!(many(MAX_PATTERNS, "/a/I/b?") && !many(MAX_PATTERNS + 1, "/a/I/b?"));
    assert!(many(1, r"/I/\pL{20}") && !many(1000, r"/I/\pL{20}"));
}

/// Those of a route on paths, headers and queries, and of its origins (CORS) count together.
#[test]
fn s40_patterns_of_a_route_have_a_common_bound_too() {
    let all = |headers: usize, origins: usize| {
        let numbered = |i: usize| regex(&format!("/{i}"));
        let resource = with_route(|route| {
            let matcher = route.r#match.as_mut().unwrap();
            matcher.headers = (0..headers).map(|i| header("x-role", numbered(i))).collect();
            let Some(Action::Route(action)) = &mut route.action else { panic!("it forwards") };
            let allow_origin_string_match = (0..origins).map(numbered).collect();
            action.cors = Some(CorsPolicy { allow_origin_string_match, ..Default::default() });
        });
        codec::decode_routes(&resource).is_ok()
    };
    assert!(all(10, 10) && all(MAX_PATTERNS - 10, 10) && !all(MAX_PATTERNS - 10, 11));
}

#[test]
fn s40_the_largest_patterns_that_are_taken_cost_a_bounded_amount_of_room_and_time() {
    // For each form the most repetitions that are taken: to check and to hold them takes no more than what the bound of
    // a compiled pattern lets be built, however they are written.
    for form in [r"\pL{N}", "(?i)k{N}", r"(\w{N}|\d{N})"] {
        let taken = |n: usize| Pattern::new(&form.replace('N', &n.to_string())).ok();
        let (mut most, mut refused) = (1, 1 << 17);
        assert!(taken(most).is_some() && taken(refused).is_none(), "{form}");
        while refused - most > 1 {
            let middle = (most + refused) / 2;
            *(if taken(middle).is_some() { &mut most } else { &mut refused }) = middle;
        }
        let room = taken(most).unwrap().compiled().memory_usage();
        assert!(room < 8 << 20, "{form} {most} times: {room} bytes");
    }
    // An engine that goes back and tries again never comes to the end of these.
    for hostile in ["(a+)+b", "(a*)*b", "(a|a)*b", "(.*)(.*)(.*)(.*)c"] {
        let (text, end) = ("a".repeat(50_000), &hostile[hostile.len() - 1..]);
        let pattern = Pattern::new(hostile).unwrap().compiled();
        assert!(!pattern.is_match(&text) && pattern.is_match(&format!("{text}{end}")), "{hostile}");
    }
}

/// One `not_rule` in the other, as many as said, with `any` inside.
fn nested(depth: usize) -> Any {
    // Written from its end: a length stands before what it counts.
    let mut backwards = vec![1, 3 << 3];
    for _ in 0..depth {
        let mut head = vec![(8 << 3) | 2];
        prost::encoding::encode_varint(backwards.len() as u64, &mut head);
        backwards.extend(head.iter().rev());
    }
    let rule: Vec<u8> = backwards.into_iter().rev().collect();
    let field = |number: u8, inside: &[u8]| {
        let mut bytes = vec![(number << 3) | 2];
        prost::encoding::encode_varint(inside.len() as u64, &mut bytes);
        [bytes, inside.to_vec()].concat()
    };
    let anybody = prost::Message::encode_to_vec(&anybody());
    let policy = [field(1, &rule), field(2, &anybody)].concat();
    let entry = [field(1, b"p"), field(2, &policy)].concat();
    let value = field(1, &field(2, &entry));
    let filter = codec::filter::encode("f", Any { type_url: url::RBAC.to_owned(), value }, false);
    with_manager(|manager| manager.http_filters.insert(0, filter))
}

#[test]
fn s90_a_message_nested_without_end_is_refused() {
    for (depth, taken) in [(1, true), (10, true), (1_000, false), (100_000, false)] {
        assert_eq!(codec::decode_listener(&nested(depth)).is_ok(), taken, "{depth}");
    }
}

#[test]
fn a_path_that_ends_or_holds_is_compared_as_requests_have_it() {
    let decoded = |text| {
        let policy = Policy {
            permissions: vec![permission(Rule::UrlPath(path(Some(text))))],
            principals: vec![anybody()],
            ..Default::default()
        };
        let rules = Rules { policies: [("p".to_owned(), policy)].into(), ..Default::default() };
        let resource = with_filter(url::RBAC, &Rbac { rules: Some(rules), ..Default::default() });
        let AnyListener::Inbound(listener) = codec::decode_listener(&resource).unwrap().value else { panic!() };
        match &listener.authorization[0].rules[0].permissions[..] {
            [mesh_core::policy::Permission::Path(path)] => PathCondition::new(path, true),
            other => panic!("{other:?}"),
        }
    };
    let folded = |pattern| StringMatcher { ignore_case: true, ..self::pattern(pattern) };
    // A request for `/x%3aadmin` is one for `/x:admin` when it is judged.
    for text in [
        pattern(MatchPattern::Suffix("%3aadmin".into())),
        pattern(MatchPattern::Contains("%3Aadm".into())),
        folded(MatchPattern::Exact("/X%3aadmin".into())),
        folded(MatchPattern::Prefix("/X%3a".into())),
    ] {
        let condition = decoded(text.clone());
        assert!(condition.holds("/x:admin"), "{text:?}");
        // The control: an escape that a normal path keeps is no other text.
        assert!(!condition.holds("/x%2Fadmin"), "{text:?}");
    }
}
