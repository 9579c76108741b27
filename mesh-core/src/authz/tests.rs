mod change;
mod random;

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::*;
use crate::jwt::{Claims, Token};
use crate::policy::{
    AuthorizationRule, HeaderKey, HeaderMatch, HeaderMatcher, MetadataMatch, MetadataValue, PathMatch, Pattern,
    Permission, Principal, StringMatch, StringMatcher,
};

/// A request that owns its parts.
#[derive(Clone, Debug)]
struct Call {
    authority: &'static str,
    method: Method,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    peer: Option<PeerIdentity>,
    server_name: Option<&'static str>,
    /// Claims of the tokens that hold, with `;` between them, `""` = there is none.
    token: Option<&'static str>,
    trusted_proxies: u32,
}

const WEB: &str = "spiffe://cluster.local/ns/a/sa/web";

fn peer(id: Option<&str>) -> Option<PeerIdentity> {
    let spiffe_id = id.map(|id| id.parse().unwrap());
    Some(PeerIdentity { spiffe_id, address: "10.0.0.1:4000".parse().unwrap() })
}

fn get(path: &'static str) -> Call {
    let (authority, method) = ("public.test", Method::GET);
    let (headers, peer, server_name) = (Vec::new(), peer(Some(WEB)), Some(""));
    Call { authority, method, path, headers, peer, server_name, token: None, trusted_proxies: 0 }
}

impl Call {
    fn with<R>(&self, judge: impl FnOnce(&Attributes<'_>) -> R) -> R {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.headers {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let request = RequestView {
            authority: self.authority,
            method: &self.method,
            path_and_query: self.path,
            scheme: "http",
            headers: &headers,
            draw: &|| 0,
        };
        let (destination, server_name) = ("10.0.0.9:8080".parse().unwrap(), self.server_name);
        let tokens: Option<Tokens> = self.token.map(|claims| {
            let token = |claims| Token::new(&"p".into(), &"payload".into(), Arc::new(claims));
            claims.split(';').filter_map(|claims| Claims::parse(claims.as_bytes())).map(token).collect()
        });
        let request = Some(request);
        let (peer, tokens, trusted_proxies) = (self.peer.as_ref(), tokens.as_ref(), self.trusted_proxies);
        judge(&Attributes { request, peer, destination, server_name, tokens, trusted_proxies })
    }

    fn headers(mut self, headers: &[(&'static str, &'static str)]) -> Self {
        self.headers = headers.to_vec();
        self
    }
}

fn rule(name: &str, permissions: Vec<Permission>, principals: Vec<Principal>) -> AuthorizationRule {
    AuthorizationRule { name: name.to_owned(), permissions, principals }
}

fn policy(name: &str, action: AuthorizationAction, rules: Vec<AuthorizationRule>) -> AuthorizationPolicy {
    AuthorizationPolicy { rules, ..AuthorizationPolicy::new(name, action) }
}

fn path(path: &str) -> Permission {
    Permission::Path(PathMatch::Exact(path.to_owned()))
}

fn is(id: &str) -> Principal {
    Principal::Authenticated(Some(StringMatcher::exact(id)))
}

fn role(value: &str) -> HeaderMatcher {
    HeaderMatcher {
        name: HeaderKey::parse("X-Role").unwrap(),
        value: HeaderMatch::Text(StringMatcher::exact(value)),
        invert: false,
        treat_missing_as_empty: false,
    }
}

fn deciding(policies: &[AuthorizationPolicy], call: &Call) -> Result<(), String> {
    let authorizer = Authorizer::new(policies);
    call.with(|attributes| {
        let verdict = authorizer.decide(attributes, |_| {});
        verdict.map_err(|denial| format!("{:?} {} {}", denial.reason, denial.policy, denial.rule.unwrap_or("-")))
    })
}

fn metadata() -> MetadataMatch {
    let value = MetadataValue::Text(StringMatcher::exact("x"));
    MetadataMatch { filter: "istio_authn".into(), path: vec!["request.auth.principal".into()], value, invert: false }
}

/// The policies of the order of evaluation, each with one rule for one path.
#[test]
fn s47_custom_then_deny_then_allow_and_without_policies_everything() {
    let one =
        |action, name: &str, at: &str| policy(name, action, vec![rule("r", vec![path(at)], vec![Principal::Any])]);
    let custom = || AuthorizationAction::Custom(AuthorizerProvider::named("asker"));
    assert_eq!(deciding(&[], &get("/a")), Ok(()));
    // Listed the wrong way round.
    let all = [
        one(AuthorizationAction::Allow, "allow", "/a"),
        one(AuthorizationAction::Deny, "deny", "/b"),
        one(custom(), "custom", "/c"),
        one(AuthorizationAction::Audit, "audit", "/d"),
    ];
    assert_eq!(deciding(&all, &get("/a")), Ok(()));
    assert_eq!(deciding(&all, &get("/b")), Err("Denied deny r".into()));
    assert_eq!(deciding(&all, &get("/c")), Err("NoAuthorizer custom r".into()));
    assert_eq!(deciding(&all, &get("/d")), Err("NotAllowed allow -".into()));
    let both = [one(AuthorizationAction::Deny, "deny", "/a"), one(custom(), "custom", "/a")];
    assert_eq!(deciding(&both, &get("/a")), Err("NoAuthorizer custom r".into()));
    assert_eq!(deciding(&all[1..], &get("/a")), Ok(()), "nobody demands to be allowed");
    let nothing = [policy("nothing", AuthorizationAction::Allow, Vec::new())];
    assert_eq!(deciding(&nothing, &get("/a")), Err("NotAllowed nothing -".into()));
    // Two stages that allow: both must.
    let two = [one(AuthorizationAction::Allow, "one", "/a"), nothing[0].clone()];
    assert_eq!(deciding(&two, &get("/a")), Err("NotAllowed nothing -".into()));
}

/// What Istio makes of each field for a port that is not HTTP.
#[test]
fn of_a_raw_connection_what_is_about_requests_never_allows_and_never_keeps_from_denying() {
    let raw = |policies: &[AuthorizationPolicy]| {
        let authorizer = Authorizer::new(policies);
        get("/a").with(|attributes| {
            let raw = Attributes { request: None, tokens: None, ..*attributes };
            authorizer.decide(&raw, |_| {}).is_ok()
        })
    };
    let (port, other) = (Permission::DestinationPort(8080), Permission::DestinationPort(1));
    let not = |inner: Permission| Permission::Not(Box::new(inner));
    let net = |net: &str| net.parse().unwrap();
    let (web, anyone) = (vec![is(WEB)], vec![Principal::Any]);
    let with = |principal: Principal| vec![Principal::And(vec![is(WEB), principal])];
    let custom = AuthorizationAction::Custom(AuthorizerProvider::named("asker"));
    for (permission, principals, allowed, denied) in [
        // What a connection has.
        (Permission::Any, web.clone(), true, true),
        (Permission::Any, vec![is("spiffe://cluster.local/ns/a/sa/other")], false, false),
        (port.clone(), web.clone(), true, true),
        (other.clone(), web.clone(), false, false),
        (Permission::DestinationIp(net("10.0.0.0/24")), web.clone(), true, true),
        (Permission::ServerName(StringMatcher::exact("")), anyone.clone(), true, true),
        (Permission::Any, with(Principal::DirectRemoteIp(net("10.0.0.1/32"))), true, true),
        (Permission::Any, with(Principal::RemoteIp(net("10.0.0.1/32"))), true, true),
        (Permission::Any, with(Principal::RemoteIp(net("10.0.0.2/32"))), false, false),
        // What only requests have, alone, negated, and beside what a connection has.
        (path("/a"), web.clone(), false, true),
        (path("/other"), web.clone(), false, true),
        (not(path("/other")), anyone.clone(), false, true),
        (not(Permission::Header(role("admin"))), anyone.clone(), false, true),
        (Permission::Metadata(metadata()), anyone.clone(), false, true),
        (Permission::And(vec![port.clone(), path("/a")]), web.clone(), false, true),
        (Permission::And(vec![other, path("/a")]), web.clone(), false, false),
        (Permission::Any, with(Principal::Metadata(metadata())), false, true),
        (path("/a"), vec![is("spiffe://cluster.local/ns/a/sa/other")], false, false),
        // Istio drops the whole rule, though one of its operations could hold.
        (Permission::Or(vec![port, path("/a")]), web, false, true),
    ] {
        let of = |action| [policy("p", action, vec![rule("r", vec![permission.clone()], principals.clone())])];
        assert_eq!(raw(&of(AuthorizationAction::Allow)), allowed, "ALLOW {permission:?} {principals:?}");
        assert_eq!(!raw(&of(AuthorizationAction::Deny)), denied, "DENY {permission:?} {principals:?}");
        assert_eq!(!raw(&of(custom.clone())), denied, "CUSTOM {permission:?} {principals:?}");
    }
    let routes = [policy("p", AuthorizationAction::Route, vec![rule("r", vec![path("/b")], anyone)])];
    assert!(raw(&routes), "there are no routes to find");
    assert!(deciding(&routes, &get("/a")).is_err(), "control: a request must have one");
}

#[test]
fn s28_of_several_values_one_is_enough_to_deny_and_all_are_needed_to_allow() {
    let of =
        |action| [policy("p", action, vec![rule("r", vec![Permission::Header(role("admin"))], vec![Principal::Any])])];
    let (deny, allow) = (of(AuthorizationAction::Deny), of(AuthorizationAction::Allow));
    let (user, admin) = (("x-role", "user"), ("x-role", "admin"));
    for (headers, denied, allowed) in [
        (&[user, admin][..], true, false),
        (&[admin, user], true, false),
        // Joined, as other engines look at them, they are another value.
        (&[admin, admin], true, false),
        (&[admin], true, true),
        (&[user], false, false),
        (&[], false, false),
        // S29: values that the sender joined.
        (&[("x-role", "user,admin")], true, false),
        (&[("x-role", "user, admin")], true, false),
        // S33: a twin is the same header to many an application, and another one to the rest.
        (&[("x_role", "admin")], true, false),
        (&[admin, ("x_role", "user")], true, false),
        (&[("x_role", "user")], false, false),
    ] {
        let call = get("/").headers(headers);
        assert_eq!(deciding(&deny, &call).is_err(), denied, "{headers:?}");
        assert_eq!(deciding(&allow, &call).is_ok(), allowed, "{headers:?}");
    }
    // Cookies are divided by semicolons, and joined by them.
    let cookie =
        |value: &str| Permission::Header(HeaderMatcher { name: HeaderKey::parse("cookie").unwrap(), ..role(value) });
    for (headers, wanted, denied) in [
        (&[("cookie", "a=1"), ("cookie", "b=2")][..], "a=1; b=2", true),
        (&[("cookie", "a=1; b=2")], "a=1; b=2", true),
        (&[("cookie", "a=1; b=2")], "b=2", true),
        (&[("cookie", "a=1"), ("cookie", "b=2")], "a=1,b=2", false),
        (&[("cookie", "b=2"), ("cookie", "a=1")], "a=1; b=2", false),
    ] {
        let of = |action| [policy("p", action, vec![rule("r", vec![cookie(wanted)], vec![Principal::Any])])];
        let call = get("/").headers(headers);
        assert_eq!(deciding(&of(AuthorizationAction::Deny), &call).is_err(), denied, "{headers:?}");
    }
    // The same turned round, as `notValues` are: of whoever is no admin.
    let not = Permission::Not(Box::new(Permission::Header(role("admin"))));
    let of = |action| [policy("p", action, vec![rule("r", vec![not.clone()], vec![Principal::Any])])];
    let (deny, allow) = (of(AuthorizationAction::Deny), of(AuthorizationAction::Allow));
    for (headers, denied, allowed) in [
        (&[user, admin][..], true, false),
        (&[admin, admin], true, false),
        (&[admin], false, false),
        (&[user], true, true),
        (&[], true, true),
    ] {
        let call = get("/").headers(headers);
        assert_eq!(deciding(&deny, &call).is_err(), denied, "{headers:?}");
        assert_eq!(deciding(&allow, &call).is_ok(), allowed, "{headers:?}");
    }
    // A matcher that is inverted, as Envoy's are over xDS.
    let letters = HeaderMatch::Text(StringMatcher {
        pattern: StringMatch::Regex(Pattern::new("[ab]+").unwrap()),
        ignore_case: false,
    });
    let other = Permission::Header(HeaderMatcher { value: letters, invert: true, ..role("") });
    let of = |action| [policy("p", action, vec![rule("r", vec![other.clone()], vec![Principal::Any])])];
    let (deny, allow) = (of(AuthorizationAction::Deny), of(AuthorizationAction::Allow));
    for (values, denied, allowed) in [
        // "a,a"
        (&["a", "a"][..], true, false),
        (&["a", "c"], true, false),
        (&["c", "d"], true, true),
        (&["a"], false, false),
        (&["c"], true, true),
        (&[], false, false),
    ] {
        let headers: Vec<_> = values.iter().map(|value| ("x-role", *value)).collect();
        let call = get("/").headers(&headers);
        assert_eq!(deciding(&deny, &call).is_err(), denied, "{values:?}");
        assert_eq!(deciding(&allow, &call).is_ok(), allowed, "{values:?}");
    }
}

/// The request that a second value spoils, and the same without it; `sent` are values of one header.
#[test]
fn s28_s32_no_second_value_gets_by_a_range_an_inverted_matcher_or_one_of_absence() {
    let admin = || HeaderMatch::Text(StringMatcher::exact("admin"));
    let (range, present) = (HeaderMatch::Range { start: 1, end: 5 }, HeaderMatch::Present);
    let plain = |value: HeaderMatch| HeaderMatcher { value, ..role("") };
    let not = |value| HeaderMatcher { invert: true, ..plain(value) };
    let or_missing = |matcher| HeaderMatcher { treat_missing_as_empty: true, ..matcher };
    for (matcher, sent, denied, allowed) in [
        (plain(range.clone()), &["4"][..], true, true),
        (plain(range.clone()), &["9"], false, false),
        (plain(range.clone()), &["4", "9"], true, false),
        (plain(range.clone()), &["9", "4"], true, false),
        // Joined they are no number.
        (plain(range.clone()), &["4", "4"], true, false),
        (plain(range.clone()), &["9", "8"], false, false),
        (plain(range.clone()), &["9,4"], true, false),
        (not(range.clone()), &["9"], true, true),
        (not(range.clone()), &["4"], false, false),
        (not(range.clone()), &["9", "4"], true, false),
        (not(range.clone()), &["4", "9"], true, false),
        (not(range.clone()), &["4", "4"], true, false),
        (not(range.clone()), &["9", "8"], true, true),
        (not(range.clone()), &["9,4"], true, false),
        (not(range.clone()), &[], false, false),
        (or_missing(not(range.clone())), &[], true, true),
        (or_missing(plain(range)), &[], false, false),
        (not(admin()), &["user"], true, true),
        (not(admin()), &["admin"], false, false),
        (not(admin()), &["user", "admin"], true, false),
        (not(admin()), &["admin", "user"], true, false),
        (not(admin()), &["admin", "admin"], true, false),
        (not(admin()), &[], false, false),
        // Absent it is empty where the matcher says so, and what is there is read as ever.
        (or_missing(not(admin())), &[], true, true),
        (or_missing(not(admin())), &["user"], true, true),
        (or_missing(not(admin())), &["admin"], false, false),
        (or_missing(not(admin())), &["user", "admin"], true, false),
        (or_missing(not(admin())), &["", "admin"], true, false),
        (or_missing(plain(admin())), &[], false, false),
        (or_missing(plain(admin())), &["admin", "user"], true, false),
        (or_missing(role("")), &[], true, true),
        (or_missing(role("")), &[""], true, true),
        (or_missing(role("")), &["", "user"], true, false),
        (or_missing(role("")), &["user"], false, false),
        (role(""), &[], false, false),
        // How many there are is nothing to a test of presence.
        (plain(present(true)), &["a", "b"], true, true),
        (not(present(true)), &["a", "b"], false, false),
        (plain(present(false)), &["a", "b"], false, false),
        (not(present(false)), &["a", "b"], true, true),
    ] {
        let rules = || vec![rule("r", vec![Permission::Header(matcher.clone())], vec![Principal::Any])];
        let headers: Vec<_> = sent.iter().map(|value| ("x-role", *value)).collect();
        let call = get("/").headers(&headers);
        let of = |action| deciding(&[policy("p", action, rules())], &call);
        assert_eq!(of(AuthorizationAction::Deny).is_err(), denied, "DENY {matcher:?} {sent:?}");
        assert_eq!(of(AuthorizationAction::Allow).is_ok(), allowed, "ALLOW {matcher:?} {sent:?}");
    }
}

/// Each kind of matcher, inverted or not, for a header that is there or is not, with absence taken for an empty value or not,
/// in a rule that denies and in one that allows.
#[test]
fn s32_an_absent_header_satisfies_presence_tests_only() {
    let pattern = |pattern| HeaderMatch::Text(StringMatcher { pattern, ignore_case: false });
    // What each makes of the value `11`, of an empty one, and of none.
    let kinds = [
        (pattern(StringMatch::Exact("11".into())), [true, false]),
        (pattern(StringMatch::Exact(String::new())), [false, true]),
        (pattern(StringMatch::Prefix("1".into())), [true, false]),
        (pattern(StringMatch::Suffix("1".into())), [true, false]),
        (pattern(StringMatch::Contains("1".into())), [true, false]),
        (pattern(StringMatch::Regex(Pattern::new(".1").unwrap())), [true, false]),
        (pattern(StringMatch::Regex(Pattern::new(".*").unwrap())), [true, true]),
        (HeaderMatch::Range { start: 10, end: 20 }, [true, false]),
        (HeaderMatch::Present(true), [true, false]),
        (HeaderMatch::Present(false), [false, true]),
    ];
    for (value, [of_value, of_empty]) in kinds {
        for (invert, present, treat_missing_as_empty) in
            (0..8).map(|bits| (bits & 1 == 1, bits & 2 == 2, bits & 4 == 4))
        {
            let tells_absence = matches!(value, HeaderMatch::Present(_)) || treat_missing_as_empty;
            let want = match present {
                true => of_value != invert,
                false => tells_absence && of_empty != invert,
            };
            let matcher = HeaderMatcher { value: value.clone(), invert, treat_missing_as_empty, ..role("") };
            let headers: &[_] = if present { &[("x-role", "11")] } else { &[] };
            let of = |action| {
                let rules = vec![rule("r", vec![Permission::Header(matcher.clone())], vec![Principal::Any])];
                deciding(&[policy("p", action, rules)], &get("/").headers(headers)).is_ok()
            };
            assert_eq!(!of(AuthorizationAction::Deny), want, "DENY {matcher:?} {present}");
            assert_eq!(of(AuthorizationAction::Allow), want, "ALLOW {matcher:?} {present}");
        }
    }
}

#[test]
fn s35_a_pattern_does_not_miss_a_value_that_is_no_text() {
    let admin = HeaderMatch::Text(StringMatcher {
        pattern: StringMatch::Regex(Pattern::new("(?i)admin.*").unwrap()),
        ignore_case: false,
    });
    let is_allowed = |action, invert, value: &[u8]| {
        let what = Permission::Header(HeaderMatcher { value: admin.clone(), invert, ..role("") });
        let authorizer = Authorizer::new(&[policy("p", action, vec![rule("r", vec![what], vec![Principal::Any])])]);
        let headers =
            HeaderMap::from_iter([(HeaderName::from_static("x-role"), HeaderValue::from_bytes(value).unwrap())]);
        get("/").with(|attributes| {
            let request = attributes.request.map(|request| RequestView { headers: &headers, ..request });
            authorizer.decide(&Attributes { request, ..*attributes }, |_| {}).is_ok()
        })
    };
    for invert in [false, true] {
        assert!(!is_allowed(AuthorizationAction::Deny, invert, b"admin\xff"), "{invert}");
        assert!(!is_allowed(AuthorizationAction::Allow, invert, b"admin\xff"), "{invert}");
    }
    // The control: of text it can tell.
    assert!(
        is_allowed(AuthorizationAction::Deny, false, b"user")
            && is_allowed(AuthorizationAction::Allow, false, b"admin1")
    );
}

#[test]
fn a_rules_escapes_are_those_of_requests() {
    for pattern in [
        PathMatch::Exact("/a%3ab".into()),
        PathMatch::Prefix("/a%3A".into()),
        PathMatch::PathSeparatedPrefix("/a%3Ab".into()),
    ] {
        let rules = vec![rule("r", vec![Permission::Path(pattern.clone())], vec![Principal::Any])];
        let deny = [policy("p", AuthorizationAction::Deny, rules)];
        assert!(deciding(&deny, &get("/a:b")).is_err(), "{pattern:?}");
        assert_eq!(deciding(&deny, &get("/ab")), Ok(()), "{pattern:?}");
    }
}

#[test]
fn what_is_not_known_allows_nothing_and_is_no_way_round_a_denial() {
    let unknowns: [(&str, Permission, Principal, Call); 6] = [
        ("nobody looks for tokens", Permission::Metadata(metadata()), Principal::Any, get("/")),
        ("nobody looks for tokens", Permission::Any, Principal::Metadata(metadata()), get("/")),
        ("no path", path("/admin"), Principal::Any, Call { method: Method::CONNECT, ..get("") }),
        ("no peer", Permission::Any, is(WEB), Call { peer: None, ..get("/") }),
        (
            "no host",
            Permission::Header(HeaderMatcher { name: HeaderKey::Authority, ..role("secret.test") }),
            Principal::Any,
            Call { authority: "", ..get("/") },
        ),
        (
            "no server name",
            Permission::ServerName(StringMatcher::exact("a.test")),
            Principal::Any,
            Call { server_name: None, ..get("/") },
        ),
    ];
    for (why, permission, principal, call) in unknowns {
        for inverted in [false, true] {
            let (mut permission, mut principal) = (permission.clone(), principal.clone());
            if inverted && permission == Permission::Any {
                principal = Principal::Not(Box::new(principal));
            } else if inverted {
                permission = Permission::Not(Box::new(permission));
            }
            let rules = vec![rule("r", vec![permission], vec![principal])];
            let of = |action| [policy("p", action, rules.clone())];
            assert!(deciding(&of(AuthorizationAction::Deny), &call).is_err(), "{why} {inverted}");
            assert!(deciding(&of(AuthorizationAction::Allow), &call).is_err(), "{why} {inverted}");
        }
    }
}

const TOKEN: &str = r#"{"iss":"i","sub":"ann","aud":["shop","x"],"azp":"app","scope":"read write","admin":true,
    "group":["admin","dev"],"name":"Ann","realm":{"roles":["owner"]}}"#;

#[test]
fn what_a_token_says_can_be_demanded_as_istio_and_as_envoy_write_it() {
    let text = |pattern| StringMatcher { pattern, ignore_case: false };
    let exact = |text: &str| MetadataValue::AnyText(StringMatcher::exact(text));
    let ann = || StringMatcher::exact("Ann");
    let istio = |path: &[&str], value| ("istio_authn", path.join(" "), value);
    let envoy = |path: &[&str], value| ("envoy.filters.http.jwt_authn", path.join(" "), value);
    let principal = |pattern| istio(&["request.auth.principal"], MetadataValue::Text(text(pattern)));
    let claim = |name, value| istio(&["request.auth.claims", name], value);
    for ((filter, path, value), holds) in [
        (principal(StringMatch::Exact("i/ann".into())), true),
        (principal(StringMatch::Exact("i/an".into())), false),
        (principal(StringMatch::Exact("i/ann/".into())), false),
        (principal(StringMatch::Prefix("i/".into())), true),
        (principal(StringMatch::Suffix("/ann".into())), true),
        (principal(StringMatch::Suffix("/bob".into())), false),
        (istio(&["request.auth.principal"], MetadataValue::Present(true)), true),
        (istio(&["request.auth.audiences"], exact("shop")), true),
        (istio(&["request.auth.audiences"], exact("sho")), false),
        (istio(&["request.auth.presenter"], MetadataValue::Text(StringMatcher::exact("app"))), true),
        (claim("group", exact("dev")), true),
        (claim("group", exact("admin,dev")), false),
        (claim("scope", exact("write")), true),
        (claim("name", exact("Ann")), true),
        (envoy(&["payload", "admin"], MetadataValue::Bool(true)), true),
        (envoy(&["payload", "name"], MetadataValue::OneOf(vec![exact("Ann"), MetadataValue::Text(ann())])), true),
        (envoy(&["payload", "group"], MetadataValue::OneOf(vec![exact("dev"), MetadataValue::Text(ann())])), true),
        (envoy(&["payload", "sub"], MetadataValue::OneOf(vec![exact("ann"), MetadataValue::Bool(true)])), false),
        (claim("nothing", MetadataValue::Present(true)), false),
        (istio(&["request.auth.claims", "realm", "roles"], exact("owner")), true),
        (envoy(&["payload", "sub"], MetadataValue::Text(StringMatcher::exact("ann"))), true),
        (envoy(&["payload", "realm", "roles"], exact("owner")), true),
        (envoy(&["payload", "name"], exact("Ann")), false),
        (envoy(&["payload"], MetadataValue::Present(true)), true),
        (envoy(&["other", "sub"], MetadataValue::Present(true)), false),
    ] {
        let what = format!("{filter} {path} {value:?}");
        let path = path.split(' ').map(str::to_owned).collect();
        let condition = MetadataMatch { filter: filter.to_owned(), path, value, invert: false };
        let of = |action, principal| [policy("p", action, vec![rule("r", vec![Permission::Any], vec![principal])])];
        let plain = || Principal::Metadata(condition.clone());
        let not = || Principal::Not(Box::new(plain()));
        let (allow, deny) = (AuthorizationAction::Allow, AuthorizationAction::Deny);
        let with = Call { token: Some(TOKEN), ..get("/") };
        assert_eq!(deciding(&of(allow.clone(), plain()), &with).is_ok(), holds, "{what}");
        assert_eq!(deciding(&of(allow.clone(), not()), &with).is_ok(), !holds, "not {what}");
        assert_eq!(deciding(&of(deny.clone(), plain()), &with).is_err(), holds, "{what}");
        assert_eq!(deciding(&of(deny.clone(), not()), &with).is_err(), !holds, "not {what}");
        // Who has no token is known to have none: whoever must not be somebody is not.
        let without = Call { token: Some(""), ..get("/") };
        assert!(deciding(&of(allow.clone(), plain()), &without).is_err(), "{what}");
        assert!(deciding(&of(allow, not()), &without).is_ok(), "not {what}");
        assert!(deciding(&of(deny.clone(), plain()), &without).is_ok(), "{what}");
        assert!(deciding(&of(deny, not()), &without).is_err(), "not {what}");
    }
}

const TWO: &str = r#"{"iss":"A","sub":"ann"};{"iss":"B","sub":"banned"}"#;

#[test]
fn of_several_tokens_none_is_overlooked() {
    let (allow, deny) = (AuthorizationAction::Allow, AuthorizationAction::Deny);
    let of = |action: &AuthorizationAction, principal| {
        [policy("p", action.clone(), vec![rule("r", vec![Permission::Any], vec![principal])])]
    };
    let (both, ann) = (Call { token: Some(TWO), ..get("/") }, Call { token: TWO.split(';').next(), ..get("/") });
    let istio = ("istio_authn", vec!["request.auth.principal"], ["A/ann", "B/banned", "C/other"]);
    let envoy = ("envoy.filters.http.jwt_authn", vec!["payload", "sub"], ["ann", "banned", "other"]);
    for (filter, path, [first, second, nobody]) in [istio, envoy] {
        let condition = |value| {
            let path = path.iter().map(|key| (*key).to_owned()).collect();
            Principal::Metadata(MetadataMatch { filter: filter.to_owned(), path, value, invert: false })
        };
        let is = |text: &str| condition(MetadataValue::Text(StringMatcher::exact(text)));
        let not = |text| Principal::Not(Box::new(is(text)));
        for text in [first, second] {
            assert!(deciding(&of(&deny, is(text)), &both).is_err(), "{text}");
            assert!(deciding(&of(&deny, not(text)), &both).is_err(), "{text}");
            assert!(deciding(&of(&allow, is(text)), &both).is_err(), "{text}");
            assert!(deciding(&of(&allow, not(text)), &both).is_err(), "{text}");
        }
        assert_eq!(deciding(&of(&allow, is(first)), &ann), Ok(()), "{filter}");
        assert_eq!(deciding(&of(&deny, is(second)), &ann), Ok(()), "{filter}");
        // Where the tokens agree it is known.
        assert_eq!(deciding(&of(&deny, is(nobody)), &both), Ok(()), "{filter}");
        assert_eq!(deciding(&of(&allow, not(nobody)), &both), Ok(()), "{filter}");
        assert_eq!(deciding(&of(&allow, condition(MetadataValue::Present(true))), &both), Ok(()), "{filter}");
    }
}

#[test]
fn a_peer_without_a_certificate_is_nobody() {
    let of = |action, principal| [policy("p", action, vec![rule("r", vec![Permission::Any], vec![principal])])];
    let plain = Call { peer: peer(None), ..get("/") };
    let allow = |principal| deciding(&of(AuthorizationAction::Allow, principal), &plain);
    assert!(allow(is(WEB)).is_err() && allow(Principal::Authenticated(None)).is_err());
    let not = Principal::Not(Box::new(is(WEB)));
    assert!(deciding(&of(AuthorizationAction::Deny, not.clone()), &plain).is_err(), "it is not the one let through");
    assert_eq!(deciding(&of(AuthorizationAction::Deny, not), &get("/")), Ok(()));
}

#[test]
fn s38_a_pattern_covers_the_whole_principal() {
    let web = |text| StringMatcher { pattern: StringMatch::Regex(Pattern::new(text).unwrap()), ignore_case: false };
    let allow = |text| {
        let who = vec![Principal::Authenticated(Some(web(text)))];
        [policy("p", AuthorizationAction::Allow, vec![rule("r", vec![Permission::Any], who)])]
    };
    let other = Call { peer: peer(Some("spiffe://cluster.local/ns/a/sa/not-web")), ..get("/") };
    assert!(deciding(&allow("web"), &other).is_err() && deciding(&allow("web"), &get("/")).is_err());
    assert_eq!(deciding(&allow(".*/sa/web"), &get("/")), Ok(()));
}

#[test]
fn s16_a_text_prefix_takes_what_a_segment_prefix_does_not() {
    let allowed = |path: PathMatch, at: &'static str| {
        let rules = vec![rule("r", vec![Permission::Path(path)], vec![Principal::Any])];
        deciding(&[policy("p", AuthorizationAction::Allow, rules)], &get(at)).is_ok()
    };
    for (at, as_segments) in [("/v2example", false), ("/v2", true), ("/v2/example", true)] {
        assert!(allowed(PathMatch::Prefix("/v2".into()), at), "{at}");
        assert_eq!(allowed(PathMatch::PathSeparatedPrefix("/v2".into()), at), as_segments, "{at}");
    }
}

#[test]
fn s25_a_forwarded_address_is_believed_only_where_the_connection_agrees() {
    let of = |action, net: &str| {
        let who = vec![Principal::RemoteIp(net.parse().unwrap())];
        [policy("p", action, vec![rule("r", vec![Permission::Any], who)])]
    };
    // The connection comes from 10.0.0.1.
    for (forwarded, net, denied, allowed) in [
        (&[][..], "10.0.0.0/8", true, true),
        (&[("x-forwarded-for", "203.0.113.5")], "10.0.0.0/8", true, false),
        (&[("x-forwarded-for", "203.0.113.5")], "203.0.113.0/24", true, false),
        (&[("x-forwarded-for", "10.1.1.1, 10.2.2.2")], "10.0.0.0/8", true, true),
        (&[("x-forwarded-for", "[fe80::1%25eth0]:80")], "192.0.2.0/24", true, false),
        (&[("x-forwarded-for", "203.0.113.5")], "192.0.2.0/24", false, false),
    ] {
        let call = get("/").headers(forwarded);
        assert_eq!(deciding(&of(AuthorizationAction::Deny, net), &call).is_err(), denied, "{forwarded:?} {net}");
        assert_eq!(deciding(&of(AuthorizationAction::Allow, net), &call).is_ok(), allowed, "{forwarded:?} {net}");
    }
}

#[test]
fn s25_with_trusted_proxies_the_original_client_is_what_the_first_of_them_says() {
    let of = |action, net: &str| {
        let who = vec![Principal::RemoteIp(net.parse().unwrap())];
        [policy("p", action, vec![rule("r", vec![Permission::Any], who)])]
    };
    // The connection comes from 10.0.0.1.
    for (trusted_proxies, forwarded, client) in [
        (1, &["203.0.113.5"][..], "203.0.113.5"),
        // What the caller has put before is nobody's word.
        (1, &["198.51.100.1, 203.0.113.5"], "203.0.113.5"),
        (1, &["198.51.100.1", "203.0.113.5"], "203.0.113.5"),
        (2, &["192.0.2.9, 198.51.100.1 , 203.0.113.5"], "198.51.100.1"),
        (2, &["198.51.100.1", "203.0.113.5"], "198.51.100.1"),
        // Not through as many.
        (1, &[], "10.0.0.1"),
        (2, &["203.0.113.5"], "10.0.0.1"),
        (u32::MAX, &["203.0.113.5"], "10.0.0.1"),
    ] {
        let forwarded: Vec<_> = forwarded.iter().map(|value| ("x-forwarded-for", *value)).collect();
        let call = Call { trusted_proxies, ..get("/").headers(&forwarded) };
        for net in ["203.0.113.5/32", "198.51.100.1/32", "192.0.2.9/32", "10.0.0.1/32"] {
            let is = net.starts_with(client);
            assert_eq!(deciding(&of(AuthorizationAction::Deny, net), &call).is_err(), is, "{forwarded:?} {net}");
            assert_eq!(deciding(&of(AuthorizationAction::Allow, net), &call).is_ok(), is, "{forwarded:?} {net}");
        }
    }
    let odd = Call { trusted_proxies: 1, ..get("/").headers(&[("x-forwarded-for", "203.0.113.5, unknown")]) };
    for net in ["203.0.113.5/32", "10.0.0.1/32"] {
        assert!(deciding(&of(AuthorizationAction::Deny, net), &odd).is_err(), "nobody knows");
        assert!(deciding(&of(AuthorizationAction::Allow, net), &odd).is_err(), "nobody knows");
    }
}

#[test]
fn dry_runs_and_audits_are_told_and_decide_nothing() {
    let matching = || vec![rule("r", vec![path("/a")], vec![Principal::Any])];
    let dry = AuthorizationPolicy { dry_run: true, ..policy("dry", AuthorizationAction::Deny, matching()) };
    let audit = policy("audit", AuthorizationAction::Audit, matching());
    let mut deny = policy("deny", AuthorizationAction::Deny, matching());
    deny.audit = AuditCondition::OnDeny;
    let told = |policies: &[AuthorizationPolicy], at| {
        let (authorizer, mut told) = (Authorizer::new(policies), Vec::new());
        let allowed = get(at).with(|attributes| {
            let observe =
                |seen: Observation<'_>| told.push(format!("{:?} {} {:?}", seen.kind, seen.policy, seen.allowed));
            authorizer.decide(attributes, observe).is_ok()
        });
        (allowed, told)
    };
    let observed = [dry.clone(), audit.clone()];
    assert_eq!(told(&observed, "/a"), (true, vec!["DryRun dry false".to_owned(), "Audit audit true".to_owned()]));
    assert_eq!(told(&observed, "/b"), (true, vec!["DryRun dry true".to_owned()]));
    // The control: enforced it denies, and what is observed is still told.
    let (allowed, said) = told(&[deny, dry, audit], "/a");
    assert_eq!((allowed, said.len(), &*said[2]), (false, 3, "Logged deny false"));
}

#[test]
fn what_is_only_observed_is_judged_as_it_would_be_enforced_after_the_authorizers_word() {
    let role = || vec![rule("r", vec![Permission::Header(role("admin"))], vec![Principal::Any])];
    let dry = AuthorizationPolicy { dry_run: true, ..policy("dry", AuthorizationAction::Allow, role()) };
    let audit = policy("audit", AuthorizationAction::Audit, role());
    let ask = AuthorizationAction::Custom(AuthorizerProvider::named("opa"));
    let ask = policy("ask", ask, vec![rule("r", vec![Permission::Any], vec![Principal::Any])]);
    let policies = [dry, audit, ask];
    let authorizer = Authorizer::new(&policies);
    let told = |from: Step, call: &Call| {
        let mut told = Vec::new();
        let next = call.with(|of| {
            let observe = |seen: Observation<'_>| told.push(format!("{} {}", seen.policy, seen.allowed));
            authorizer.decide_from(from, of, observe).unwrap().map(|question| question.next)
        });
        (next, told)
    };
    let (next, before) = told(Step::default(), &get("/"));
    assert_eq!(before, Vec::<String>::new());
    // The authorizer says who it is.
    let (next, after) = told(next.unwrap(), &get("/").headers(&[("x-role", "admin")]));
    assert_eq!((next, after), (None, vec!["dry true".to_owned(), "audit true".to_owned()]));
}

#[test]
fn s51_a_change_keeps_open_what_was_open_or_only_a_request_could_tell() {
    use AuthorizationAction::{Allow, Deny};
    let any = || vec![Permission::Any];
    let of = |action: &AuthorizationAction, name: &str, what, who| {
        vec![policy(name, action.clone(), vec![rule(name, what, who)])]
    };
    let open = |before: &[_], after: &[_], id| {
        let peer = peer(id).unwrap();
        let destination = "10.0.0.9:8080".parse().unwrap();
        keeps_open(before, after, Caller { peer: &peer, destination, server_name: "" })
    };
    let no_web = of(&Deny, "web", any(), vec![is(WEB)]);
    let web_only = of(&Allow, "web", any(), vec![is(WEB)]);
    let no_admin = of(&Deny, "admin", vec![path("/admin")], vec![Principal::Any]);
    let admin_only = of(&Allow, "admin", vec![path("/admin")], vec![Principal::Any]);
    let other_port = of(&Deny, "port", vec![Permission::DestinationPort(1)], vec![Principal::Any]);
    let dry = vec![AuthorizationPolicy { dry_run: true, ..no_web[0].clone() }];
    for (before, after, of_web, of_other) in [
        (&[][..], &no_web[..], false, true),
        (&[], &web_only, true, false),
        (&web_only, &web_only, true, true),
        (&web_only, &[], true, true),
        (&no_web, &web_only, true, false),
        // A path is the request's.
        (&[], &no_admin, false, false),
        (&no_admin, &no_admin, true, true),
        (&no_admin, &[&no_admin[..], &no_web].concat(), false, true),
        (&admin_only, &web_only, true, false),
        (&[], &admin_only, false, false),
        (&[], &other_port, true, true),
        (&[], &dry, true, true),
    ] {
        let got = (open(before, after, Some(WEB)), open(before, after, Some("spiffe://cluster.local/ns/b/sa/x")));
        assert_eq!(got, (of_web, of_other), "{before:?} to {after:?}");
    }
    assert!(!open(&[], &web_only, None), "who has no certificate is nobody");
    // A rule beside those of before opens more, in a policy that allows.
    let both = policy("both", Allow, vec![admin_only[0].rules[0].clone(), rule("x", vec![path("/x")], vec![is(WEB)])]);
    assert!(open(&admin_only, std::slice::from_ref(&both), Some(WEB)));
    assert!(!open(std::slice::from_ref(&both), &admin_only, Some(WEB)));
}
