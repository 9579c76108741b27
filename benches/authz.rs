//! What an authorization decision costs with 1 to 1,000 rules: found by caller, by path, by its beginning and by
//! namespace, and looked through in order where rules have none of these. `cargo xtask bench authz [NAME] [-o json]`.
//!
//! The goal: 1,000 rules that are found cost at most three times ten, in one run.

#![allow(clippy::print_stdout, missing_docs, reason = "a program, not a library")]

#[path = "common/nanos.rs"]
mod nanos;
#[path = "common/rows.rs"]
mod rows;

use std::hint::black_box;

use http::{HeaderMap, Method};
use mesh_core::authz::{Attributes, Authorizer};
use mesh_core::identity::PeerIdentity;
use mesh_core::matcher::RequestView;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, PathMatch, Pattern, Permission, Principal,
    StringMatch, StringMatcher,
};

use self::nanos::Nanos;

const SIZES: [usize; 4] = [1, 10, 100, 1000];

fn is(pattern: StringMatch) -> Principal {
    Principal::Authenticated(Some(StringMatcher { pattern, ignore_case: false }))
}

/// One rule a number; the request satisfies the last.
fn rule(kind: &str, n: usize) -> AuthorizationRule {
    let any = (Permission::Any, Principal::Any);
    let (permission, principal) = match kind {
        "caller" => (any.0, is(StringMatch::Exact(format!("spiffe://cluster.local/ns/n{n}/sa/web")))),
        "path" => (Permission::Path(PathMatch::Exact(format!("/v1/{n}"))), any.1),
        "namespace" => {
            let pattern = Pattern::new(&format!(".*/ns/n{n}/.*")).expect("a pattern");
            (any.0, is(StringMatch::Regex(pattern)))
        }
        // With an end, so that the rule that matches is the last.
        "prefix" => (Permission::Path(PathMatch::PathSeparatedPrefix(format!("/v1/{n}"))), any.1),
        _ => {
            let pattern = Pattern::new(&format!("/v[12]/{n}")).expect("a pattern");
            (Permission::Path(PathMatch::Regex(pattern)), any.1)
        }
    };
    AuthorizationRule { name: format!("rule {n}"), permissions: vec![permission], principals: vec![principal] }
}

fn main() {
    let mut nanos = Nanos::of_args();
    let (method, headers) = (Method::GET, HeaderMap::new());
    for kind in ["caller", "path", "namespace", "prefix", "in_order"] {
        let mut ten = None;
        for size in SIZES {
            let rules = (0..size).map(|n| rule(kind, n)).collect();
            let policy = AuthorizationPolicy { rules, ..AuthorizationPolicy::new("allow", AuthorizationAction::Allow) };
            let authorizer = Authorizer::new(&[policy]);
            let last = size - 1;
            let path = format!("/v1/{last}");
            let id = format!("spiffe://cluster.local/ns/n{last}/sa/web").parse().expect("an ID");
            let peer = PeerIdentity { spiffe_id: Some(id), address: ([10, 0, 0, 1], 4000).into() };
            let request = RequestView {
                authority: "reviews:9080",
                method: &method,
                path_and_query: &path,
                scheme: "http",
                headers: &headers,
                draw: &|| 0,
            };
            let attributes = Attributes {
                request: Some(request),
                peer: Some(&peer),
                destination: ([10, 0, 0, 2], 9080).into(),
                server_name: Some(""),
                tokens: None,
                trusted_proxies: 0,
            };
            assert!(authorizer.decide(&attributes, |_| {}).is_ok(), "{kind} {size}");
            let goal = ten.filter(|_| size == 1000 && kind != "in_order").map(|ten| 3.0 * ten);
            let step = || authorizer.decide(black_box(&attributes), |_| {}).is_ok();
            let value = nanos.row(&format!("{kind}/{size}"), goal, step);
            if size == 10 {
                ten = value;
            }
        }
    }
    nanos.print();
}
