//! Generators of policy in normal form: the server side.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use mesh_core::policy::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::generate::{
    header_matcher, header_name, header_write, instances, path_match, rate_limit, route_match, skipped, string_matcher,
    text, time,
};
use super::generate_composite::of_server;

fn net() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0..=32_u8).prop_map(|(ip, length)| IpNet::new(ip, length).expect("32 fits both families"))
}

/// A condition on a header that does not count as absent.
fn header_seen() -> impl Strategy<Value = HeaderMatcher> {
    header_matcher().prop_map(|matcher| match &matcher.name {
        HeaderKey::Header(name) if name.as_str().ends_with("-bin") => {
            HeaderMatcher { name: HeaderKey::Authority, ..matcher }
        }
        _ => matcher,
    })
}

fn metadata() -> impl Strategy<Value = MetadataMatch> {
    let value = prop_oneof![
        any::<bool>().prop_map(MetadataValue::Present),
        any::<bool>().prop_map(MetadataValue::Bool),
        string_matcher().prop_map(MetadataValue::Text),
        string_matcher().prop_map(MetadataValue::AnyText),
    ];
    let value = value.prop_recursive(2, 4, 2, |inner| vec(inner, 1..3).prop_map(MetadataValue::OneOf));
    (text(), vec(text(), 1..3), value, any::<bool>()).prop_map(|(filter, path, value, invert)| MetadataMatch {
        filter,
        path,
        value,
        invert,
    })
}

fn provider() -> impl Strategy<Value = JwtProvider> {
    let list = || vec(text(), 0..2);
    let keys = prop_oneof![
        Just(JwtKeys::Inline(r#"{"keys": []}"#.to_owned())),
        time().prop_map(|max_age| JwtKeys::Fetched { jwks: r#"{"keys": []}"#.to_owned(), max_age }),
        (text(), text(), time(), time()).prop_map(|(uri, cluster, timeout, cache)| JwtKeys::Remote {
            uri,
            cluster: cluster.as_str().into(),
            timeout,
            cache
        }),
    ];
    let header = (header_name(), text()).prop_map(|(name, prefix)| JwtHeader { name, prefix });
    let told = || header_name().prop_filter("what a token says has no place there", JwtProvider::may_tell_in);
    let claim = (told(), text()).prop_map(|(name, claim)| JwtClaimHeader { name, claim });
    (
        ("[a-z]{0,4}", list(), option::of(string_matcher()), any::<bool>(), option::of(time())),
        keys,
        (any::<bool>(), vec(header, 0..2), list(), list()),
        (option::of(told()), any::<bool>(), vec(claim, 0..2), ("[a-z]{0,4}", list()), 1..1000_u64),
    )
        .prop_map(|(who, keys, from, tell)| JwtProvider {
            issuer: who.0,
            audiences: who.1,
            subjects: who.2,
            require_expiration: who.3,
            max_lifetime: who.4,
            keys,
            forward: from.0,
            from_headers: from.1,
            from_params: from.2,
            from_cookies: from.3,
            payload_header: tell.0,
            pad_payload_header: tell.1,
            claim_headers: tell.2,
            payload_in_metadata: tell.3.0,
            space_delimited: tell.3.1,
            clock_skew: Duration::from_secs(tell.4),
        })
}

/// Demands on the providers `a` and `b`.
fn requirement() -> impl Strategy<Value = JwtRequirement> {
    let provider = (select(vec!["a", "b"]), vec(text(), 0..2))
        .prop_map(|(name, audiences)| JwtRequirement::Provider { name: name.to_owned(), audiences });
    let leaf = prop_oneof![provider, Just(JwtRequirement::AllowMissing), Just(JwtRequirement::AllowMissingOrFailed)];
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..3).prop_map(JwtRequirement::Any),
            vec(inner, 1..3).prop_map(JwtRequirement::All),
        ]
    })
}

/// What only a client knows, and methods, which travel as a condition on a header, have no place on a server.
fn matcher() -> impl Strategy<Value = RouteMatch> {
    route_match().prop_map(|matcher| RouteMatch {
        methods: Vec::new(),
        port: None,
        source_labels: Default::default(),
        source_namespace: None,
        ..matcher
    })
}

/// A route with some of the listener's guards, by their bits, and policies of its own.
type Drawn = (String, RouteMatch, Option<(u8, Vec<AuthorizationPolicy>)>);

fn inbound_routes() -> impl Strategy<Value = Vec<Vec<Drawn>>> {
    let serves = option::of((any::<u8>(), vec(authorization(), 0..2)));
    vec(vec((text(), matcher(), serves), 0..3), 0..3)
}

fn some<T: Clone>(of: &[T], bits: u8) -> Vec<T> {
    of.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1).map(|(_, item)| item.clone()).collect()
}

pub(super) fn jwt() -> impl Strategy<Value = JwtAuthentication> {
    let rule =
        (matcher(), option::of(requirement())).prop_map(|(matcher, requirement)| JwtRule { matcher, requirement });
    (provider(), provider(), vec(rule, 0..3), any::<bool>()).prop_map(|(a, b, rules, bypass_cors_preflight)| {
        let providers = [("a".to_owned(), a), ("b".to_owned(), b)].into();
        JwtAuthentication { name: String::new(), providers, rules, bypass_cors_preflight }
    })
}

fn permission() -> impl Strategy<Value = Permission> {
    let leaf = prop_oneof![
        Just(Permission::Any),
        header_seen().prop_map(Permission::Header),
        path_match().prop_map(Permission::Path),
        (1..=u16::MAX).prop_map(Permission::DestinationPort),
        any::<(u16, u16)>().prop_map(|(a, b)| Permission::DestinationPorts(a.min(b), a.max(b))),
        metadata().prop_map(Permission::Metadata),
        net().prop_map(Permission::DestinationIp),
        string_matcher().prop_map(Permission::ServerName),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..3).prop_map(Permission::And),
            vec(inner.clone(), 1..3).prop_map(Permission::Or),
            inner.prop_map(|inner| Permission::Not(Box::new(inner))),
        ]
    })
}

fn principal() -> impl Strategy<Value = Principal> {
    let leaf = prop_oneof![
        Just(Principal::Any),
        option::of(string_matcher()).prop_map(Principal::Authenticated),
        net().prop_map(Principal::DirectRemoteIp),
        net().prop_map(Principal::RemoteIp),
        header_seen().prop_map(Principal::Header),
        path_match().prop_map(Principal::Path),
        metadata().prop_map(Principal::Metadata),
    ];
    leaf.prop_recursive(3, 8, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..3).prop_map(Principal::And),
            vec(inner.clone(), 1..3).prop_map(Principal::Or),
            inner.prop_map(|inner| Principal::Not(Box::new(inner))),
        ]
    })
}

/// Names that repeat, so that filters and keys have to be told apart.
fn few_names() -> impl Strategy<Value = String> {
    select(vec!["", "a", "b", "a#1", "default/allow", "envoy.filters.http.router"]).prop_map(str::to_owned)
}

fn checked_body() -> impl Strategy<Value = CheckedBody> {
    (1..=CheckedBody::MOST, any::<bool>(), any::<bool>()).prop_map(|(max, allow_partial, as_bytes)| CheckedBody {
        max_bytes: NonZeroU32::new(max).expect("at least 1"),
        allow_partial,
        as_bytes,
    })
}

fn authorizer_protocol() -> impl Strategy<Value = AuthorizerProtocol> {
    let names = || vec(select(vec!["x-user", "x-auth-*", "*-id"]), 0..3);
    let names = || {
        names().prop_map(|names| {
            names.into_iter().map(|name| name.parse::<NamePattern>().expect("a pattern")).collect::<Vec<_>>()
        })
    };
    let added = vec(header_write(), 0..2).prop_map(|mut added| {
        added.iter_mut().for_each(|write| write.action = HeaderAction::Overwrite);
        added
    });
    let http = (text(), names(), added, names(), names(), names()).prop_map(
        |(path_prefix, request_headers, added_headers, upstream_on_allow, downstream_on_allow, downstream_on_deny)| {
            AuthorizerProtocol::Http(Box::new(HttpCheck {
                path_prefix,
                request_headers,
                added_headers,
                upstream_on_allow,
                downstream_on_allow,
                downstream_on_deny,
            }))
        },
    );
    prop_oneof![Just(AuthorizerProtocol::Grpc), http]
}

pub(super) fn authorization() -> impl Strategy<Value = AuthorizationPolicy> {
    let service = (authorizer_protocol(), text(), time(), any::<bool>(), 200..600u16, option::of(checked_body()))
        .prop_map(|(protocol, target, timeout, fail_open, status_on_error, body)| AuthorizerService {
            protocol,
            target,
            timeout,
            fail_open,
            status_on_error,
            body,
        });
    let action = prop_oneof![
        Just(AuthorizationAction::Allow),
        Just(AuthorizationAction::Deny),
        Just(AuthorizationAction::Audit),
        (text(), option::of(service)).prop_map(|(name, service)| {
            AuthorizationAction::Custom(Box::new(AuthorizerProvider { name, service }))
        }),
        Just(AuthorizationAction::Route),
    ];
    let rule = (few_names(), vec(permission(), 1..3), vec(principal(), 1..3))
        .prop_map(|(name, permissions, principals)| AuthorizationRule { name, permissions, principals });
    let audit =
        select(vec![AuditCondition::None, AuditCondition::OnDeny, AuditCondition::OnAllow, AuditCondition::Both]);
    (few_names(), action, any::<bool>(), vec(rule, 0..4), audit)
        .prop_map(|(name, action, dry_run, rules, audit)| AuthorizationPolicy { name, action, dry_run, rules, audit })
}

pub(super) fn inbound() -> impl Strategy<Value = InboundListener> {
    let tls = select(vec![InboundTls::Strict, InboundTls::Permissive, InboundTls::Disable]);
    let underscores = select(vec![Underscores::Allow, Underscores::Reject, Underscores::Drop]);
    let limits = (option::of(any::<u32>()), option::of(any::<u32>()), option::of(time()), underscores).prop_map(
        |(max_connections, max_concurrent_streams, max_connection_age, underscores)| InboundLimits {
            max_connections,
            max_concurrent_streams,
            max_connection_age,
            underscores,
        },
    );
    let rate = || (1..=u32::MAX).prop_map(|n| NonZeroU32::new(n).expect("at least 1"));
    let group = (vec(text(), 0..3), rate()).prop_map(|(callers, per_second)| CallerGroup { callers, per_second });
    let callers = (option::of(rate()), vec(group, 0..3)).prop_map(|(each, groups)| CallerRateLimit { each, groups });
    let kind = prop_oneof![
        rate_limit().prop_map(HttpFilterKind::RateLimit),
        callers.prop_map(HttpFilterKind::CallerRateLimit),
        of_server().prop_map(HttpFilterKind::Composite),
        skipped(),
    ];
    let kinds = vec(kind, 0..3);
    let routes = option::of(inbound_routes());
    let guards = (vec(jwt(), 0..2), vec(authorization(), 0..4), kinds, routes);
    let tls = (tls, instances());
    (text(), any::<IpAddr>(), 1..=u16::MAX, tls, guards, (limits, any::<u32>())).prop_map(
        |(name, ip, port, (tls, instances), (mut jwt, authorization, kinds, routes), (limits, trusted_proxies))| {
            // Plaintext shows no certificate.
            let instances = Some(instances).filter(|_| tls != InboundTls::Disable).unwrap_or_default();
            // Instance names are unique.
            for (i, jwt) in jwt.iter_mut().enumerate() {
                jwt.name = format!("jwt-{i}");
            }
            let filters = kinds.into_iter().enumerate();
            let mut filters: Vec<_> =
                filters.map(|(i, kind)| HttpFilter { name: format!("filter-{i}"), kind }).collect();
            let address = SocketAddr::new(ip, port);
            let is_limit = |filter: &HttpFilter| !matches!(filter.kind, HttpFilterKind::Skipped { .. });
            let early = usize::from(filters.first().is_some_and(is_limit));
            let before = filters.drain(..early).collect::<Vec<_>>();
            // A server asks RBAC after these, and tells them behind it: what takes tokens away may not stand there.
            filters.retain(|filter| !matches!(&filter.kind, HttpFilterKind::Composite(c) if c.reads_tokens()));
            let route = |(name, matcher, serves): Drawn| {
                let serves = serves.map(|(bits, own)| {
                    let authorization = [some(&authorization, bits), own].concat();
                    let (before, filters) = (some(&before, bits), some(&filters, bits));
                    Arc::new(Guards { before, jwt: some(&jwt, bits), authorization, filters })
                });
                InboundRoute { name, matcher, serves }
            };
            let host = |(i, routes): (usize, Vec<_>)| InboundHost {
                name: format!("host-{i}"),
                domains: vec![Domain::new(&format!("{i}.test")).expect("a name")],
                routes: routes.into_iter().map(route).collect(),
            };
            let routes = match routes {
                Some(hosts) => InboundRoutes::Listed(hosts.into_iter().enumerate().map(host).collect()),
                None => InboundRoutes::All,
            };
            InboundListener {
                name,
                address,
                tls,
                instances,
                before,
                jwt,
                authorization,
                filters,
                routes,
                limits,
                trusted_proxies,
            }
        },
    )
}
