//! Classes of attack on rules as they arrive, by their number: what is not understood, wherever it stands, refuses the
//! listener and is never left out of a rule; each with the same rule without the trick taken.

use envoy_types::pb::envoy::config::core::v3::CidrRange;
use envoy_types::pb::envoy::config::listener::v3::{Filter, Listener, filter::ConfigType};
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac as Rules, permission, permission::Rule, principal, principal::Identifier,
};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    PathMatcher, RegexMatcher, StringMatcher, path_matcher, string_matcher::MatchPattern,
};
use envoy_types::pb::google::protobuf::{Any, UInt32Value};

use super::conformance_server::with_filter;
use super::refusals::changed;
use super::refusals_cluster::inbound;
use crate::codec::{self, extension::url};

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

#[test]
fn s46_a_rule_about_bytes_and_not_requests_refuses_the_listener() {
    let with = |type_url: &str| {
        changed::<Listener>(codec::encode_inbound(&inbound()), |listener| {
            let config = Any { type_url: type_url.to_owned(), value: Vec::new() };
            let filter = Filter { name: "f".into(), config_type: Some(ConfigType::TypedConfig(config)) };
            listener.filter_chains[0].filters.insert(0, filter);
        })
    };
    let network = "type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC";
    assert!(codec::decode_listener(&with(network)).is_err());
    // The control: the same principal in the filter of requests, with and without the asterisk's pattern.
    for name in [pattern(MatchPattern::Suffix("/sa/web".into())), regex(".*/sa/web")] {
        assert!(takes(vec![anything()], vec![principal(named(name))]));
    }
    assert!(codec::decode_listener(&codec::encode_inbound(&inbound())).is_ok());
}

#[test]
fn s40_a_pattern_has_a_limited_size_and_many_of_them_are_taken() {
    let with = |text: &str| takes(vec![permission(Rule::Header(header("x-role", regex(text))))], vec![anybody()]);
    for text in ["a{10}", "(a+)+b", &"a".repeat(1024)] {
        assert!(with(text), "{text:.20}");
    }
    for text in
        ["(a{1000}){1000}", "((a{100}){100}){100}", r"\pL{1000}\pL{1000}", &"a".repeat(1 << 20), &"a".repeat(1025)]
    {
        assert!(!with(text), "{text:.20}");
    }
    let many = (0..2000).map(|i| permission(Rule::UrlPath(path(Some(regex(&format!("/a/{i}/[^/]+")))))));
    assert!(takes(many.collect(), vec![anybody()]));
}
