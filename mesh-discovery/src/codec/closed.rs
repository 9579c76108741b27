//! Conditions on tokens in the words of servers that check none. To gRPC such a condition is false, or true if it is
//! inverted (gRFC A41): a DENY rule with one would never deny. They are written so that there it keeps an ALLOW rule
//! from allowing and no DENY rule from denying; who can check tokens reads them as they were meant.
//!
//! ```text
//! M                     where false is safe already
//! or(M, not(M))         true for whoever cannot tell
//! and(M, not(M))        false for whoever cannot tell
//! ```

use envoy_types::pb::envoy::config::rbac::v3::{
    Permission as PermissionProto, Principal as PrincipalProto, rbac::Action,
};
use mesh_core::policy::{MetadataMatch, Permission, Principal};

use super::authorization::{encode_permission, encode_principal};

/// What a condition on tokens must be where nobody can check it; `None` = it does not matter.
#[derive(Clone, Copy)]
pub(super) struct Closed(Option<bool>);

impl Closed {
    pub(super) fn of(action: Action) -> Self {
        Self(match action {
            Action::Allow => Some(false),
            Action::Deny => Some(true),
            Action::Log => None,
        })
    }

    pub(super) fn permission(self, permission: &Permission) -> PermissionProto {
        encode_permission(&self.rewrite(permission))
    }

    pub(super) fn principal(self, principal: &Principal) -> PrincipalProto {
        encode_principal(&self.rewrite(principal))
    }

    fn rewrite<T: Tree>(self, condition: &T) -> T {
        let Some(wanted) = self.0 else { return condition.clone() };
        let all = |list: &[T]| list.iter().map(|inner| self.rewrite(inner)).collect();
        match condition.parts() {
            Parts::And(list) => T::and(all(list)),
            Parts::Or(list) => T::or(all(list)),
            Parts::Not(inner) => T::not(Self(Some(!wanted)).rewrite(inner)),
            // What gRPC takes it for.
            Parts::Token(token) if token.invert == wanted => condition.clone(),
            Parts::Token(_) => {
                let both = vec![condition.clone(), T::not(condition.clone())];
                if wanted { T::or(both) } else { T::and(both) }
            }
            Parts::Other => condition.clone(),
        }
    }
}

/// Reads what [`Closed`] writes: the condition that a list is made of, once plain and once negated.
pub(super) fn meant<T: Tree>(list: &[T]) -> Option<T> {
    let [plain, negated] = list else { return None };
    let Parts::Token(token) = plain.parts() else { return None };
    match negated.parts() {
        Parts::Not(inner) if matches!(inner.parts(), Parts::Token(other) if other == token) => Some(plain.clone()),
        _ => None,
    }
}

/// Permissions and principals.
pub(super) trait Tree: Clone {
    fn parts(&self) -> Parts<'_, Self>;
    fn and(list: Vec<Self>) -> Self;
    fn or(list: Vec<Self>) -> Self;
    fn not(inner: Self) -> Self;
}

pub(super) enum Parts<'a, T> {
    And(&'a [T]),
    Or(&'a [T]),
    Not(&'a T),
    Token(&'a MetadataMatch),
    Other,
}

macro_rules! tree {
    ($kind:ident) => {
        impl Tree for $kind {
            fn parts(&self) -> Parts<'_, Self> {
                match self {
                    Self::And(list) => Parts::And(list),
                    Self::Or(list) => Parts::Or(list),
                    Self::Not(inner) => Parts::Not(inner),
                    Self::Metadata(token) => Parts::Token(token),
                    _ => Parts::Other,
                }
            }

            fn and(list: Vec<Self>) -> Self {
                Self::And(list)
            }

            fn or(list: Vec<Self>) -> Self {
                Self::Or(list)
            }

            fn not(inner: Self) -> Self {
                Self::Not(Box::new(inner))
            }
        }
    };
}

tree!(Permission);
tree!(Principal);

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::rbac::v3::permission::Rule;
    use mesh_core::policy::{MetadataValue, StringMatcher};

    use super::*;

    /// What a server thinks that knows no tokens.
    fn in_grpc(permission: &PermissionProto) -> bool {
        match permission.rule.as_ref().unwrap() {
            Rule::Any(any) => *any,
            Rule::AndRules(set) => set.rules.iter().all(in_grpc),
            Rule::OrRules(set) => set.rules.iter().any(in_grpc),
            Rule::NotRule(inner) => !in_grpc(inner),
            Rule::Metadata(token) => token.invert,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_condition_on_tokens_fails_closed_where_nobody_checks_them() {
        for invert in [false, true] {
            let token = Permission::Metadata(MetadataMatch {
                filter: "istio_authn".into(),
                path: vec!["request.auth.principal".into()],
                value: MetadataValue::Text(StringMatcher::exact("a/b")),
                invert,
            });
            let not = Permission::Not(Box::new(token.clone()));
            let nested = Permission::Or(vec![Permission::And(vec![Permission::Any, not.clone()]), not.clone()]);
            for permission in [token.clone(), not.clone(), Permission::Not(Box::new(not.clone())), nested] {
                assert!(in_grpc(&Closed::of(Action::Deny).permission(&permission)), "{permission:?}");
                assert!(!in_grpc(&Closed::of(Action::Allow).permission(&permission)), "{permission:?}");
            }
            // The control: as it stands one of the two rules would let everybody pass.
            assert_eq!(in_grpc(&encode_permission(&token)), invert);
        }
    }
}
