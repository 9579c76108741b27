//! Generators of policy in normal form: the server side.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use mesh_core::policy::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::generate::{header_matcher, path_match, string_matcher, text, time};

fn net() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0..=32_u8).prop_map(|(ip, length)| IpNet::new(ip, length).expect("32 fits both families"))
}

fn permission() -> impl Strategy<Value = Permission> {
    let leaf = prop_oneof![
        Just(Permission::Any),
        header_matcher().prop_map(Permission::Header),
        path_match().prop_map(Permission::Path),
        (1..=u16::MAX).prop_map(Permission::DestinationPort),
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
        header_matcher().prop_map(Principal::Header),
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

fn authorization() -> impl Strategy<Value = AuthorizationPolicy> {
    let action = prop_oneof![
        Just(AuthorizationAction::Allow),
        Just(AuthorizationAction::Deny),
        Just(AuthorizationAction::Audit),
        text().prop_map(AuthorizationAction::Custom),
    ];
    let rule = (few_names(), vec(permission(), 1..3), vec(principal(), 1..3))
        .prop_map(|(name, permissions, principals)| AuthorizationRule { name, permissions, principals });
    (few_names(), action, any::<bool>(), vec(rule, 0..4))
        .prop_map(|(name, action, dry_run, rules)| AuthorizationPolicy { name, action, dry_run, rules })
}

pub(super) fn inbound() -> impl Strategy<Value = InboundListener> {
    let tls = select(vec![InboundTls::Strict, InboundTls::Permissive, InboundTls::Disable]);
    let limits = (option::of(any::<u32>()), option::of(any::<u32>()), option::of(time())).prop_map(
        |(max_connections, max_concurrent_streams, max_connection_age)| InboundLimits {
            max_connections,
            max_concurrent_streams,
            max_connection_age,
        },
    );
    (text(), any::<IpAddr>(), 1..=u16::MAX, tls, vec(authorization(), 0..4), limits).prop_map(
        |(name, ip, port, tls, authorization, limits)| InboundListener {
            name,
            address: SocketAddr::new(ip, port),
            tls,
            authorization,
            limits,
        },
    )
}
