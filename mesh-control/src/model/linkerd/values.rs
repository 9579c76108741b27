//! What Linkerd's policy kinds share: label selectors, identities, networks.

use std::collections::BTreeMap;

use ipnet::IpNet;
use mesh_core::policy::{Principal, StringMatch, StringMatcher};
use serde::Deserialize;

use super::super::authorization_policy::matchers::ip;
use super::super::check::Check;

/// A selector of labels, as Kubernetes has it. Empty = everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct LabelSelector {
    labels: BTreeMap<String, String>,
    expressions: Vec<Expression>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expression {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    DoesNotExist(String),
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct LabelSelectorSpec {
    match_labels: BTreeMap<String, String>,
    match_expressions: Vec<ExpressionSpec>,
}

#[derive(Deserialize)]
struct ExpressionSpec {
    #[serde(default)]
    key: String,
    #[serde(default)]
    operator: String,
    #[serde(default)]
    values: Vec<String>,
}

impl LabelSelector {
    pub(super) fn read(spec: LabelSelectorSpec, check: &mut Check<'_>, at: &str) -> Self {
        let mut expressions = Vec::new();
        for (i, spec) in spec.match_expressions.into_iter().enumerate() {
            let at = format!("{at}.matchExpressions[{i}]");
            let ExpressionSpec { key, operator, values } = spec;
            let listed = matches!(operator.as_str(), "In" | "NotIn");
            if key.is_empty() {
                check.error(&format!("{at}.key"), "the name of a label is needed");
            }
            if listed == values.is_empty() {
                check.error(&format!("{at}.values"), "In and NotIn need values, and the others have none");
            }
            expressions.push(match operator.as_str() {
                "In" => Expression::In(key, values),
                "NotIn" => Expression::NotIn(key, values),
                "Exists" => Expression::Exists(key),
                "DoesNotExist" => Expression::DoesNotExist(key),
                other => {
                    check.error(
                        &format!("{at}.operator"),
                        format!("{other:?} is not one of In, NotIn, Exists, DoesNotExist"),
                    );
                    continue;
                }
            });
        }
        Self { labels: spec.match_labels, expressions }
    }

    /// Whether it picks what has these labels.
    pub(crate) fn picks(&self, labels: &BTreeMap<String, String>) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.expressions.iter().all(|expression| match expression {
                Expression::In(key, values) => labels.get(key).is_some_and(|value| values.contains(value)),
                Expression::NotIn(key, values) => !labels.get(key).is_some_and(|value| values.contains(value)),
                Expression::Exists(key) => labels.contains_key(key),
                Expression::DoesNotExist(key) => !labels.contains_key(key),
            })
    }
}

/// All of these; one stands alone.
pub(crate) fn all_of_principals(mut list: Vec<Principal>) -> Principal {
    match list.len() {
        0 => Principal::Any,
        1 => list.remove(0),
        _ => Principal::And(list),
    }
}

fn authenticated(pattern: StringMatch) -> Principal {
    Principal::Authenticated(Some(StringMatcher { pattern, ignore_case: false }))
}

/// A service account of the mesh, whatever its trust domain is called.
pub(crate) fn account_of(namespace: &str, account: &str) -> Principal {
    authenticated(StringMatch::Exact(format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")))
}

/// Every service account of a namespace.
pub(super) fn accounts_of(namespace: &str) -> Principal {
    authenticated(StringMatch::Prefix(format!("spiffe://cluster.local/ns/{namespace}/sa/")))
}

/// An identity as Linkerd writes it: `*`, `<account>.<namespace>.serviceaccount.identity.<linkerd>.<trust domain>`,
/// the same with `*` for the account or for both, or a SPIFFE ID. Here it is the SPIFFE ID of that account.
pub(super) fn identity(text: &str) -> Result<Principal, String> {
    if text == "*" {
        return Ok(Principal::Authenticated(None));
    }
    if text.starts_with("spiffe://") {
        return Ok(authenticated(StringMatch::Exact(text.to_owned())));
    }
    let wrong = || {
        format!(
            "{text:?} is not an identity; write <account>.<namespace>.serviceaccount.identity.linkerd.<trust domain>, \
             *.<namespace>.serviceaccount.identity.linkerd.<trust domain>, a SPIFFE ID, or * for every identity"
        )
    };
    let (who, issuer) = text.split_once(".serviceaccount.identity.").ok_or_else(wrong)?;
    let (_, domain) = issuer.split_once('.').filter(|(_, domain)| !domain.contains('*')).ok_or_else(wrong)?;
    if who == "*" {
        return Ok(authenticated(StringMatch::Prefix(format!("spiffe://{domain}/"))));
    }
    // A namespace has no dots in its name; an account may.
    let (account, namespace) = who.rsplit_once('.').ok_or_else(wrong)?;
    if account == "*" && !namespace.contains('*') {
        return Ok(authenticated(StringMatch::Prefix(format!("spiffe://{domain}/ns/{namespace}/sa/"))));
    }
    if who.contains('*') || account.is_empty() || namespace.is_empty() {
        return Err(wrong());
    }
    Ok(authenticated(StringMatch::Exact(format!("spiffe://{domain}/ns/{namespace}/sa/{account}"))))
}

#[derive(Deserialize)]
pub(super) struct NetworkSpec {
    #[serde(default)]
    cidr: String,
    #[serde(default)]
    except: Vec<String>,
}

/// Callers from one of these networks.
pub(super) fn networks(specs: &[NetworkSpec], check: &mut Check<'_>, at: &str) -> Principal {
    let mut any = Vec::new();
    for (i, spec) in specs.iter().enumerate() {
        let at = format!("{at}[{i}]");
        let Some(net) = check.take(&format!("{at}.cidr"), ip(&spec.cidr)) else { continue };
        let mut all = vec![Principal::DirectRemoteIp(net)];
        for (j, text) in spec.except.iter().enumerate() {
            let except = ip(text).and_then(|except| inside(net, except));
            let except = check.take(&format!("{at}.except[{j}]"), except);
            all.extend(except.map(|except| Principal::Not(Box::new(Principal::DirectRemoteIp(except)))));
        }
        any.push(all_of_principals(all));
    }
    Principal::Or(any)
}

fn inside(net: IpNet, except: IpNet) -> Result<IpNet, String> {
    match net.contains(&except) && net != except {
        true => Ok(except),
        false => Err(format!("{except} is not a part of {net}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_a_service_account_in_linkerds_words() {
        let pattern = |text: &str| match identity(text) {
            Ok(Principal::Authenticated(Some(name))) => name.pattern,
            other => panic!("{text}: {other:?}"),
        };
        let suffix = "serviceaccount.identity.linkerd.cluster.local";
        assert_eq!(
            pattern(&format!("web.shop.{suffix}")),
            StringMatch::Exact("spiffe://cluster.local/ns/shop/sa/web".into())
        );
        assert_eq!(
            pattern(&format!("my.web.shop.{suffix}")),
            StringMatch::Exact("spiffe://cluster.local/ns/shop/sa/my.web".into())
        );
        assert_eq!(
            pattern(&format!("*.shop.{suffix}")),
            StringMatch::Prefix("spiffe://cluster.local/ns/shop/sa/".into())
        );
        assert_eq!(pattern(&format!("*.{suffix}")), StringMatch::Prefix("spiffe://cluster.local/".into()));
        assert_eq!(pattern("spiffe://td/vm/1"), StringMatch::Exact("spiffe://td/vm/1".into()));
        assert_eq!(identity("*"), Ok(Principal::Authenticated(None)));
        for bad in ["", "web", "web.shop", "*.cluster.local", &format!("web.{suffix}"), &format!("w*.shop.{suffix}")] {
            assert!(identity(bad).is_err(), "{bad}");
        }
    }
}
