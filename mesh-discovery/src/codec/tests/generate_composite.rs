//! Generators of policy in normal form: composite filters.

use std::sync::Arc;

use mesh_core::policy::*;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use super::generate::{admission, concurrency, fault, header_name, rate_limit, session, share, string_matcher, text};
use super::generate_inbound::{authorization, jwt};

/// A header that is looked at: a path that a server may never see is refused.
fn input() -> impl Strategy<Value = HeaderKey> {
    prop_oneof![
        header_name().prop_map(|name| match name.as_str().ends_with("-bin") {
            true => HeaderKey::Authority,
            false => HeaderKey::Header(name),
        }),
        Just(HeaderKey::Method),
        Just(HeaderKey::Scheme),
    ]
}

fn predicate() -> impl Strategy<Value = MatchPredicate> {
    let leaf = (input(), string_matcher()).prop_map(|(input, value)| MatchPredicate::Header { input, value });
    leaf.prop_recursive(2, 6, 3, |inner| {
        prop_oneof![
            vec(inner.clone(), 1..3).prop_map(MatchPredicate::And),
            vec(inner.clone(), 1..3).prop_map(MatchPredicate::Or),
            inner.prop_map(|inner| MatchPredicate::Not(Box::new(inner))),
        ]
    })
}

/// Trees whose ends are these.
fn tree(end: BoxedStrategy<OnMatch>) -> impl Strategy<Value = MatcherTree> {
    let level = |end: BoxedStrategy<OnMatch>| {
        let field = (predicate(), end.clone()).prop_map(|(predicate, on_match)| FieldMatcher { predicate, on_match });
        let map = || (input(), btree_map(text(), end.clone(), 1..3));
        let rule = prop_oneof![
            vec(field, 1..3).prop_map(MatcherRule::List),
            map().prop_map(|(input, map)| MatcherRule::Exact { input, map }),
            map().prop_map(|(input, map)| MatcherRule::Prefix { input, map }),
        ];
        let otherwise =
            end.clone().prop_map(|end| MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(end) });
        let tree = (rule, option::of(end)).prop_map(|(rule, on_no_match)| MatcherTree { rule, on_no_match });
        prop_oneof![4 => tree, 1 => otherwise].boxed()
    };
    let inner = level(end.clone()).prop_map(|tree| OnMatch::Matcher(Box::new(tree)));
    level(prop_oneof![3 => end, 1 => inner].boxed())
}

fn composite_of(filters: BoxedStrategy<ExecuteFilters>) -> BoxedStrategy<Composite> {
    let end =
        prop_oneof![1 => Just(OnMatch::Skip), 3 => filters.prop_map(|filters| OnMatch::Execute(Arc::new(filters)))];
    let tree = option::weighted(0.9, tree(end.boxed()));
    tree.prop_map(|matcher| Composite { matcher: matcher.map(Arc::new) }).boxed()
}

fn named(kinds: Vec<HttpFilterKind>) -> Vec<HttpFilter> {
    let filters = kinds.into_iter().enumerate();
    filters.map(|(i, kind)| HttpFilter { name: format!("filter-{i}"), kind }).collect()
}

/// Chains of such filters, of which one may be a composite of such chains.
fn composites(
    chain: impl Fn(BoxedStrategy<HttpFilterKind>) -> BoxedStrategy<ExecuteFilters>,
    kind: BoxedStrategy<HttpFilterKind>,
) -> BoxedStrategy<Composite> {
    let inner = composite_of(chain(kind.clone())).prop_map(HttpFilterKind::Composite);
    composite_of(chain(prop_oneof![4 => kind, 1 => inner].boxed()))
}

/// One of a client.
pub(super) fn of_client() -> impl Strategy<Value = Composite> {
    elsewhere(client)
}

/// One of a server.
pub(super) fn of_server() -> impl Strategy<Value = Composite> {
    elsewhere(server)
}

/// Makes it where there is stack enough: with routes around it, it outgrows a test's.
fn elsewhere(strategy: fn() -> BoxedStrategy<Composite>) -> impl Strategy<Value = Composite> {
    any::<[u8; 32]>().prop_map(move |seed| {
        let make = move || {
            let random = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
            let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), random);
            strategy().new_tree(&mut runner).expect("a composite").current()
        };
        let thread = std::thread::Builder::new().stack_size(8 << 20).spawn(make).expect("a thread");
        thread.join().expect("it is made")
    })
}

fn client() -> BoxedStrategy<Composite> {
    let kind = prop_oneof![
        option::of(fault()).prop_map(|f| HttpFilterKind::Fault(f.filter(|f| *f != Fault::default()))).boxed(),
        rate_limit().prop_map(HttpFilterKind::RateLimit).boxed(),
        option::of(admission()).prop_map(HttpFilterKind::AdmissionControl).boxed(),
        option::of(concurrency()).prop_map(HttpFilterKind::AdaptiveConcurrency).boxed(),
        option::of(session()).prop_map(HttpFilterKind::Session).boxed(),
    ];
    let chain = |kind| {
        let chain = (vec(kind, 1..3).boxed(), share());
        chain.prop_map(|(kinds, share)| ExecuteFilters { share, ..ExecuteFilters::all(named(kinds)) }).boxed()
    };
    composites(chain, kind.boxed())
}

/// What a policy in a composite may be: nothing travels beside it.
fn alone((i, policy): (usize, AuthorizationPolicy)) -> AuthorizationPolicy {
    let action = match policy.action {
        AuthorizationAction::Custom(_) | AuthorizationAction::Route => AuthorizationAction::Deny,
        action => action,
    };
    let rules = policy.rules.into_iter().enumerate();
    let rules = rules.map(|(i, rule)| AuthorizationRule { name: format!("rule-{i}"), ..rule }).collect();
    // Two of one name are one filter.
    let name = format!("rbac-{}", if i == 1 && policy.dry_run { 0 } else { i });
    AuthorizationPolicy { name, action, rules, dry_run: policy.dry_run && i > 0, ..policy }
}

fn token(jwt: JwtAuthentication) -> JwtAuthentication {
    let mut jwt = JwtAuthentication { name: "jwt".to_owned(), ..jwt };
    for provider in jwt.providers.values_mut() {
        if let JwtKeys::Fetched { jwks, .. } = &provider.keys {
            provider.keys = JwtKeys::Inline(jwks.clone());
        }
    }
    jwt
}

fn server() -> BoxedStrategy<Composite> {
    let kind = prop_oneof![
        rate_limit().prop_map(HttpFilterKind::RateLimit).boxed(),
        option::of(concurrency()).prop_map(HttpFilterKind::AdaptiveConcurrency).boxed(),
    ];
    let (jwt, authorization) = (jwt().prop_map(token).boxed(), authorization().boxed());
    let chain = |kind| {
        let guards = (option::of(jwt.clone()), vec(authorization.clone(), 0..3));
        let chain =
            (guards, vec(kind, 1..3).boxed(), share()).prop_map(|((jwt, policies), kinds, share)| ExecuteFilters {
                jwt: jwt.into_iter().collect(),
                authorization: policies.into_iter().enumerate().map(alone).collect(),
                share,
                ..ExecuteFilters::all(named(kinds))
            });
        chain.boxed()
    };
    composites(chain, kind.boxed())
}
