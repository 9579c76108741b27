//! The policy of which the benches' servers ask each request.

use mesh_core::id::SpiffeId;
use mesh_core::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, PathMatch, Permission, Principal, StringMatcher,
};

/// Ten rules of an ALLOW policy, each for paths that begin with another one and for `caller` (without one for anybody); the last
/// one is for `path`.
pub(crate) fn ten(path: &str, caller: Option<&SpiffeId>) -> AuthorizationPolicy {
    let who = || caller.map_or(Principal::Any, |id| Principal::Authenticated(Some(StringMatcher::exact(id.as_str()))));
    let rule = |path: String| AuthorizationRule {
        name: path.clone(),
        permissions: vec![Permission::Path(PathMatch::Prefix(path))],
        principals: vec![who()],
    };
    let rules = (0..9).map(|n| format!("/v1/{n}")).chain([path.to_owned()]).map(rule).collect();
    AuthorizationPolicy { rules, ..AuthorizationPolicy::new("allow", AuthorizationAction::Allow) }
}
