//! Policies and calls without end, about which the authorizer decides as the plain evaluator does.

use http::Method;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

fn text_matcher() -> impl Strategy<Value = StringMatcher> {
    let text = select(vec!["", "a", "admin", "user", "/admin", "public.test", "user,admin", "spiffe://"]);
    let pattern = prop_oneof![
        text.clone().prop_map(|t| StringMatch::Exact(t.into())),
        text.clone().prop_map(|t| StringMatch::Prefix(t.into())),
        text.clone().prop_map(|t| StringMatch::Suffix(t.into())),
        text.prop_map(|t| StringMatch::Contains(t.into())),
        select(vec!["a.*", ".*", "[a-z,]+", "user|admin"]).prop_map(|t| StringMatch::Regex(Pattern::new(t).unwrap())),
    ];
    (pattern, any::<bool>()).prop_map(|(pattern, ignore_case)| StringMatcher { pattern, ignore_case })
}

fn metadata_match() -> impl Strategy<Value = MetadataMatch> {
    let of = select(vec![
        ("istio_authn", vec!["request.auth.principal"]),
        ("istio_authn", vec!["request.auth.audiences"]),
        ("istio_authn", vec!["request.auth.claims", "group"]),
        ("istio_authn", vec!["request.auth.claims", "scope"]),
        ("istio_authn", vec!["request.auth.claims"]),
        ("envoy.filters.http.jwt_authn", vec!["payload"]),
        ("envoy.filters.http.jwt_authn", vec!["payload", "realm", "roles"]),
        ("envoy.filters.http.jwt_authn", vec!["payload", "sub"]),
        ("another", vec!["payload", "sub"]),
    ]);
    let text = || select(vec!["i/ann", "ann", "shop", "read", "admin", ""]).prop_map(StringMatcher::exact);
    let value = prop_oneof![
        any::<bool>().prop_map(MetadataValue::Present),
        any::<bool>().prop_map(MetadataValue::Bool),
        text().prop_map(MetadataValue::Text),
        text().prop_map(MetadataValue::AnyText),
        text_matcher().prop_map(MetadataValue::AnyText),
    ];
    let value = value.prop_recursive(1, 2, 2, |inner| vec(inner, 1..3).prop_map(MetadataValue::OneOf));
    (of, value, any::<bool>()).prop_map(|((filter, path), value, invert)| MetadataMatch {
        filter: filter.to_owned(),
        path: path.into_iter().map(str::to_owned).collect(),
        value,
        invert,
    })
}

fn header_matcher() -> impl Strategy<Value = HeaderMatcher> {
    let name = select(vec!["x-role", "x-other", ":method", ":authority", ":path"]);
    let value = prop_oneof![
        4 => text_matcher().prop_map(HeaderMatch::Text),
        1 => any::<bool>().prop_map(HeaderMatch::Present),
        1 => Just(HeaderMatch::Range { start: 1, end: 5 }),
    ];
    (name, value, any::<bool>(), any::<bool>()).prop_map(|(name, value, invert, treat_missing_as_empty)| {
        HeaderMatcher { name: HeaderKey::parse(name).unwrap(), value, invert, treat_missing_as_empty }
    })
}

const PATHS: [&str; 6] = ["/", "/admin", "/admin/", "/admin/users", "/public/a", "/v2example"];
const IDS: [&str; 4] =
    [WEB, "spiffe://cluster.local/ns/b/sa/web", "spiffe://other/ns/a/sa/x", "spiffe://td/x/ns/a/ns/b/y"];

fn path_match() -> impl Strategy<Value = PathMatch> {
    let path = select(PATHS.to_vec());
    prop_oneof![
        4 => path.clone().prop_map(|p| PathMatch::Exact(p.into())),
        1 => path.prop_map(|p| PathMatch::Prefix(p.into())),
        1 => select(vec!["/admin", "/v2"]).prop_map(|p| PathMatch::PathSeparatedPrefix(p.into())),
        1 => Just(PathMatch::Regex(Pattern::new("/[^/]+/.*").unwrap())),
    ]
}

fn permission() -> impl Strategy<Value = Permission> {
    let net = select(vec!["10.0.0.0/8", "192.0.2.0/24"]);
    let leaf = prop_oneof![
        1 => Just(Permission::Any),
        2 => header_matcher().prop_map(Permission::Header),
        4 => path_match().prop_map(Permission::Path),
        1 => select(vec![80, 8080]).prop_map(Permission::DestinationPort),
        1 => Just(Permission::DestinationPorts(8000, 8090)),
        1 => net.prop_map(|net| Permission::DestinationIp(net.parse().unwrap())),
        1 => text_matcher().prop_map(Permission::ServerName),
        1 => metadata_match().prop_map(Permission::Metadata),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Permission::And),
            vec(inner.clone(), 0..3).prop_map(Permission::Or),
            inner.prop_map(|p| Permission::Not(Box::new(p))),
        ]
    })
}

fn principal() -> impl Strategy<Value = Principal> {
    let net = select(vec!["10.0.0.0/8", "203.0.113.0/24"]);
    let namespace = select(vec![".*/ns/a/.*", ".*/ns/b/.*", ".*/ns/c/.*"]).prop_map(|text| StringMatcher {
        pattern: StringMatch::Regex(Pattern::new(text).unwrap()),
        ignore_case: false,
    });
    let leaf = prop_oneof![
        1 => Just(Principal::Any),
        3 => select(IDS.to_vec()).prop_map(is),
        2 => namespace.prop_map(|name| Principal::Authenticated(Some(name))),
        1 => text_matcher().prop_map(|name| Principal::Authenticated(Some(name))),
        1 => Just(Principal::Authenticated(None)),
        1 => net.clone().prop_map(|net| Principal::DirectRemoteIp(net.parse().unwrap())),
        1 => net.prop_map(|net| Principal::RemoteIp(net.parse().unwrap())),
        1 => header_matcher().prop_map(Principal::Header),
        1 => path_match().prop_map(Principal::Path),
        1 => metadata_match().prop_map(Principal::Metadata),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..3).prop_map(Principal::And),
            vec(inner.clone(), 0..3).prop_map(Principal::Or),
            inner.prop_map(|p| Principal::Not(Box::new(p))),
        ]
    })
}

fn policies() -> impl Strategy<Value = Vec<AuthorizationPolicy>> {
    let action = prop_oneof![
        3 => Just(AuthorizationAction::Allow),
        3 => Just(AuthorizationAction::Deny),
        1 => Just(AuthorizationAction::Audit),
        1 => Just(AuthorizationAction::Custom(AuthorizerProvider::named("asker"))),
        1 => Just(AuthorizationAction::Route),
    ];
    let rules = vec((vec(permission(), 0..3), vec(principal(), 0..3)), 0..5).prop_map(|rules| {
        let named = rules.into_iter().enumerate().map(|(i, (what, who))| rule(&format!("r{i}"), what, who));
        named.collect::<Vec<_>>()
    });
    vec((action, rules, prop::bool::weighted(0.1)), 0..4).prop_map(|list| {
        let named = list.into_iter().enumerate().map(|(i, (action, rules, dry_run))| AuthorizationPolicy {
            dry_run,
            ..policy(&format!("p{i}"), action, rules)
        });
        named.collect()
    })
}

fn call() -> impl Strategy<Value = Call> {
    let id = prop_oneof![
        4 => select(IDS.to_vec()).prop_map(|id| peer(Some(id))),
        1 => Just(peer(None)),
        1 => Just(None),
    ];
    let headers = vec(
        (select(vec!["x-role", "x-other", "x_role"]), select(vec!["user", "admin", "user,admin", "", "3", "a, b"])),
        0..4,
    );
    let forwarded = select(vec![None, Some("203.0.113.5"), Some("10.1.1.1"), Some("10.1.1.1, nonsense")]);
    let path = prop_oneof![6 => select(PATHS.to_vec()), 1 => select(vec!["", "*", "?x=1", "/admin?x=1"])];
    let rest = (
        select(vec![Method::GET, Method::POST]),
        select(vec!["public.test", "admin", "", "admin:80"]),
        select(vec![None, Some(""), Some("a"), Some("public.test")]),
        select(vec![None, Some(""), Some(TOKEN), Some(TWO), Some(r#"{"iss":"i","sub":"","group":[]}"#)]),
        0..4_u32,
    );
    (path, headers, forwarded, id, rest).prop_map(
        |(path, mut headers, forwarded, peer, (method, authority, server_name, token, trusted_proxies))| {
            headers.extend(forwarded.map(|value| ("x-forwarded-for", value)));
            Call { authority, method, path, headers, peer, server_name, token, trusted_proxies }
        },
    )
}

/// Values of a header, and all of them joined.
const TWICE: [(&[&str], &str); 6] = [
    (&["a", "a"], "a,a"),
    (&["admin", "admin"], "admin,admin"),
    (&["user", "admin"], "user,admin"),
    (&["admin", "a", "user"], "admin,a,user"),
    (&["1", "4"], "1,4"),
    (&["", "user"], ",user"),
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_indexed_authorizer_decides_as_the_plain_one(policies in policies(), calls in vec(call(), 1..6)) {
        let authorizer = Authorizer::new(&policies);
        for call in calls {
            call.with(|attributes| {
                let got = authorizer.decide(attributes, |_| {});
                let got = got.map_err(|d| (d.reason, d.policy.to_owned(), d.rule.map(str::to_owned)));
                prop_assert_eq!(got, reference::decide(&policies, attributes), "{:?}", call);
                Ok(())
            })?;
        }
    }

    /// A rule denies if it holds for any value alone or for all of them joined, and allows if it holds for each of these.
    #[test]
    fn s28_a_header_that_comes_twice_is_read_in_each_way(mut matcher in header_matcher(), sent in select(TWICE.to_vec())) {
        matcher.name = HeaderKey::parse("x-role").unwrap();
        let (values, joined) = sent;
        let holds = |action, values: &[&'static str]| {
            let rules = vec![rule("r", vec![Permission::Header(matcher.clone())], vec![Principal::Any])];
            let headers: Vec<_> = values.iter().map(|value| ("x-role", *value)).collect();
            let allows = action == AuthorizationAction::Allow;
            deciding(&[policy("p", action, rules)], &get("/").headers(&headers)).is_ok() == allows
        };
        let alone = |action: AuthorizationAction| {
            values.iter().chain([&joined]).map(move |value| holds(action.clone(), &[*value]))
        };
        prop_assert_eq!(holds(AuthorizationAction::Deny, values), alone(AuthorizationAction::Deny).any(|holds| holds));
        prop_assert_eq!(holds(AuthorizationAction::Allow, values), alone(AuthorizationAction::Allow).all(|holds| holds));
    }

    /// Which rules of a pool are there before and after.
    #[test]
    fn what_is_kept_open_is_open(pool in policies(), masks in vec((any::<u8>(), any::<u8>()), 4), call in call()) {
        let some = |mask: &dyn Fn(&(u8, u8)) -> u8| -> Vec<AuthorizationPolicy> {
            let each = pool.iter().zip(&masks).filter(|(_, masks)| mask(masks) & 1 == 1);
            each.map(|(policy, masks)| {
                let kept = policy.rules.iter().zip(1..).filter(|(_, bit)| mask(masks) >> bit & 1 == 1);
                AuthorizationPolicy { rules: kept.map(|(rule, _)| rule.clone()).collect(), ..policy.clone() }
            })
            .collect()
        };
        let (before, after) = (some(&|(before, _)| *before), some(&|(before, after)| before ^ (after & before << 1)));
        call.with(|of| {
            let (Some(peer), Some(server_name)) = (of.peer, of.server_name) else { return Ok(()) };
            let caller = Caller { peer, destination: of.destination, server_name };
            prop_assert!(keeps_open(&before, &before, caller));
            prop_assert_eq!(keeps_open(&before, &after, caller), keeps_open_plainly(&before, &after, caller));
            if keeps_open(&before, &after, caller) && Authorizer::new(&before).decide(of, |_| {}).is_ok() {
                prop_assert!(Authorizer::new(&after).decide(of, |_| {}).is_ok(), "{before:#?} {after:#?}");
            }
            Ok(())
        })?;
    }
}
