//! The composite filter (gRFC A103): which filters a request passes is decided by a tree of conditions on its headers
//! (gRFC A106, `xds.type.matcher.v3.Matcher`).
//!
//! ```text
//! request ─ tree ─┬─ skip: it goes on
//!                 ├─ a chain of filters, for a share of requests: it passes them and goes on
//!                 └─ nothing found: it fails
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::{
    AuthorizationAction, AuthorizationPolicy, HeaderKey, HttpFilter, HttpFilterKind, JwtAuthentication, PerMillion,
    StringMatcher,
};

/// A composite filter (`envoy.extensions.filters.http.composite.v3.Composite` within an `ExtensionWithMatcher`). On either
/// side, and within itself: at most [`Composite::MAX_DEPTH`] one within another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Composite {
    /// What decides. None = the filter does nothing.
    pub matcher: Option<Arc<MatcherTree>>,
}

/// A tree of conditions (`xds.type.matcher.v3.Matcher`): at most [`MatcherTree::MAX_DEPTH`] one within another.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct MatcherTree {
    /// The conditions.
    pub rule: MatcherRule,
    /// What follows where none of them leads anywhere. None = nothing is found.
    pub on_no_match: Option<OnMatch>,
}

/// The conditions of one level.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MatcherRule {
    /// The first that holds, and leads somewhere, counts (`matcher_list`).
    List(Vec<FieldMatcher>),
    /// What stands for the whole value of a header (`exact_match_map`). A header that is not there has none.
    Exact {
        /// The header.
        input: HeaderKey,
        /// By value.
        map: BTreeMap<String, OnMatch>,
    },
    /// What stands for the longest beginning of a header's value that leads somewhere (`prefix_match_map`).
    Prefix {
        /// The header.
        input: HeaderKey,
        /// By beginning.
        map: BTreeMap<String, OnMatch>,
    },
}

/// A condition and what follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct FieldMatcher {
    /// The condition.
    pub predicate: MatchPredicate,
    /// What follows where it holds.
    pub on_match: OnMatch,
}

/// A condition on a request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MatchPredicate {
    /// The value of a header; one that is not there holds nothing.
    Header {
        /// The header.
        input: HeaderKey,
        /// Its value, several of one name joined with commas.
        value: StringMatcher,
    },
    /// All of them.
    And(Vec<MatchPredicate>),
    /// One of them.
    Or(Vec<MatchPredicate>),
    /// It does not hold.
    Not(Box<MatchPredicate>),
}

/// What follows a condition.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnMatch {
    /// Further conditions. Where they find nothing, the search goes on as if this one had not held.
    Matcher(Box<MatcherTree>),
    /// No filter (`SkipFilter`).
    Skip,
    /// These filters (`ExecuteFilterAction`).
    Execute(Arc<ExecuteFilters>),
}

/// Filters that a request passes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ExecuteFilters {
    /// Demands on tokens; a server's only, and asked first. Over xDS no composite with some can be sent that stands in
    /// [`InboundListener::filters`](super::InboundListener::filters) beside authorization: it is refused. Their keys do not age
    /// ([`JwtKeys::Fetched`](super::JwtKeys::Fetched) is a listener's).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jwt: Vec<JwtAuthentication>,
    /// Authorization policies; a server's only, and asked after tokens. None of them asks an external authorizer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub authorization: Vec<AuthorizationPolicy>,
    /// The others, in order: of a server, composites after its policies, and then the limits, for what it does not let pass takes
    /// nothing from them.
    pub filters: Vec<HttpFilter>,
    /// Share of requests that pass them; the others go on as if they were not there. Default all.
    pub share: PerMillion,
}

impl ExecuteFilters {
    /// Filters that every request passes.
    pub fn all(filters: Vec<HttpFilter>) -> Self {
        Self { jwt: Vec::new(), authorization: Vec::new(), filters, share: PerMillion::ALL }
    }

    /// Whether they look at who calls, which only a server can.
    pub fn are_a_servers(&self) -> bool {
        !self.jwt.is_empty() || !self.authorization.is_empty()
    }

    /// Whether they decide about who calls: what only observes does not. A token that nobody has to show may be refused as well, and
    /// says what the application is told of its caller.
    pub fn judge(&self) -> bool {
        !self.jwt.is_empty() || self.enforced().next().is_some()
    }

    fn enforced(&self) -> impl Iterator<Item = &AuthorizationPolicy> {
        self.authorization.iter().filter(|policy| !policy.dry_run && policy.action != AuthorizationAction::Audit)
    }

    fn decide_alike(&self, other: &Self) -> bool {
        self.share == other.share
            && JwtAuthentication::demand_alike(&self.jwt, &other.jwt)
            && self.enforced().eq(other.enforced())
            && judge_alike(&self.filters, &other.filters)
    }
}

impl OnMatch {
    fn decide_alike(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Matcher(one), Self::Matcher(other)) => one.decide_alike(other),
            (Self::Execute(one), Self::Execute(other)) => one.decide_alike(other),
            (one, other) => one == other,
        }
    }
}

impl MatcherTree {
    /// One within another, the outermost included (gRFC A106).
    pub const MAX_DEPTH: usize = 16;

    /// What each of its conditions leads to, within it and further in, in a fixed order.
    fn each<'t>(&'t self, see: &mut dyn FnMut(&'t Arc<ExecuteFilters>)) {
        let mut on_match = |on_match: &'t OnMatch| match on_match {
            OnMatch::Matcher(tree) => tree.each(see),
            OnMatch::Skip => {}
            OnMatch::Execute(filters) => see(filters),
        };
        match &self.rule {
            MatcherRule::List(list) => list.iter().for_each(|field| on_match(&field.on_match)),
            MatcherRule::Exact { map, .. } | MatcherRule::Prefix { map, .. } => map.values().for_each(&mut on_match),
        }
        self.on_no_match.iter().for_each(on_match);
    }

    /// Whether the same requests come to ends that decide alike.
    fn decide_alike(&self, other: &Self) -> bool {
        let ends = |one: &BTreeMap<String, OnMatch>, other: &BTreeMap<String, OnMatch>| {
            one.len() == other.len()
                && one.iter().zip(other).all(|((key, one), (same, other))| key == same && one.decide_alike(other))
        };
        let rules = match (&self.rule, &other.rule) {
            (MatcherRule::List(one), MatcherRule::List(other)) => {
                let alike = |(one, other): (&FieldMatcher, &FieldMatcher)| {
                    one.predicate == other.predicate && one.on_match.decide_alike(&other.on_match)
                };
                one.len() == other.len() && one.iter().zip(other).all(alike)
            }
            (MatcherRule::Exact { input, map }, MatcherRule::Exact { input: same, map: other })
            | (MatcherRule::Prefix { input, map }, MatcherRule::Prefix { input: same, map: other }) => {
                input == same && ends(map, other)
            }
            _ => false,
        };
        rules
            && match (&self.on_no_match, &other.on_no_match) {
                (Some(one), Some(other)) => one.decide_alike(other),
                (one, other) => one.is_none() && other.is_none(),
            }
    }
}

impl Composite {
    /// One within another, the outermost included (gRFC A103).
    pub const MAX_DEPTH: usize = 8;

    /// One with this tree.
    pub fn of(matcher: MatcherTree) -> Self {
        Self { matcher: Some(Arc::new(matcher)) }
    }

    /// Every chain that it may choose, without those of composites within them.
    pub fn chains(&self) -> Vec<&Arc<ExecuteFilters>> {
        let mut chains = Vec::new();
        self.matcher.iter().for_each(|tree| tree.each(&mut |chain| chains.push(chain)));
        chains
    }

    /// Whether one of its filters, however deep, is so.
    pub fn has(&self, is: &dyn Fn(&HttpFilterKind) -> bool) -> bool {
        self.chains().iter().flat_map(|chain| &chain.filters).any(|filter| filter.kind.has(is))
    }

    /// Whether one of its chains, however deep, decides about who calls.
    pub fn judges(&self) -> bool {
        self.has_chain(&ExecuteFilters::judge)
    }

    /// Whether one of its chains, however deep, reads tokens.
    pub fn reads_tokens(&self) -> bool {
        self.has_chain(&|chain| !chain.jwt.is_empty())
    }

    fn has_chain(&self, is: &dyn Fn(&ExecuteFilters) -> bool) -> bool {
        let within = |filter: &HttpFilter| matches!(&filter.kind, HttpFilterKind::Composite(c) if c.has_chain(is));
        self.chains().iter().any(|chain| is(chain) || chain.filters.iter().any(within))
    }
}

impl HttpFilterKind {
    /// Whether it is so, or a filter within it is.
    pub fn has(&self, is: &dyn Fn(&Self) -> bool) -> bool {
        is(self) || matches!(self, Self::Composite(composite) if composite.has(is))
    }
}

/// Whether the composites of two lists that decide about who calls do so alike: limits and the keys of token issuers do not count.
pub(super) fn judge_alike(one: &[HttpFilter], other: &[HttpFilter]) -> bool {
    let alike = |one: &Composite, other: &Composite| match (&one.matcher, &other.matcher) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other) || one.decide_alike(other),
        (one, other) => one.is_none() && other.is_none(),
    };
    judging(one).count() == judging(other).count()
        && judging(one).zip(judging(other)).all(|(one, other)| alike(one, other))
}

fn judging(filters: &[HttpFilter]) -> impl Iterator<Item = &Composite> {
    filters.iter().filter_map(|filter| match &filter.kind {
        HttpFilterKind::Composite(composite) if composite.judges() => Some(composite),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::LocalRateLimit;

    fn composite(filters: Vec<HttpFilter>, authorization: Vec<AuthorizationPolicy>) -> Composite {
        let chain = ExecuteFilters { authorization, ..ExecuteFilters::all(filters) };
        let rule = MatcherRule::List(Vec::new());
        Composite::of(MatcherTree { rule, on_no_match: Some(OnMatch::Execute(Arc::new(chain))) })
    }

    #[test]
    fn what_lies_deep_within_is_found() {
        let filter = |kind| HttpFilter { name: "f".into(), kind };
        let skipped = || filter(HttpFilterKind::Skipped { type_url: "t".into() });
        let deep = |authorization| {
            let inner = composite(vec![skipped()], authorization);
            composite(vec![filter(HttpFilterKind::Composite(inner))], Vec::new())
        };
        let plain = deep(Vec::new());
        let is_skipped = |kind: &HttpFilterKind| matches!(kind, HttpFilterKind::Skipped { .. });
        let is_limit = |kind: &HttpFilterKind| matches!(kind, HttpFilterKind::RateLimit(LocalRateLimit { .. }));
        assert!(plain.has(&is_skipped) && !plain.has(&is_limit) && !plain.judges());
        let judging_one = deep(vec![AuthorizationPolicy::new("p", AuthorizationAction::Deny)]);
        assert!(judging_one.judges());
        // What only limits counts for nothing.
        let list = |composite: &Composite| [skipped(), filter(HttpFilterKind::Composite(composite.clone()))];
        assert!(judge_alike(&list(&plain), &[]) && !judge_alike(&list(&judging_one), &list(&plain)));
        assert!(judge_alike(&list(&judging_one), &list(&judging_one)));
        assert!(!Composite::default().judges() && Composite::default().chains().is_empty());
    }

    #[test]
    fn what_only_observes_judges_nobody_and_limits_change_no_decision() {
        let policy = |action| AuthorizationPolicy::new("p", action);
        let filter = |composite| [HttpFilter { name: "c".into(), kind: HttpFilterKind::Composite(composite) }];
        let limit =
            |name: &str| HttpFilter { name: name.into(), kind: HttpFilterKind::Skipped { type_url: "t".into() } };
        let with = |filters, policies| filter(composite(filters, policies));
        for observes in [
            AuthorizationPolicy { dry_run: true, ..policy(AuthorizationAction::Deny) },
            policy(AuthorizationAction::Audit),
        ] {
            let one = composite(Vec::new(), vec![observes.clone()]);
            assert!(!one.judges() && one.chains().iter().all(|chain| chain.are_a_servers()));
            let (deny, both) = (policy(AuthorizationAction::Deny), vec![policy(AuthorizationAction::Deny), observes]);
            assert!(judge_alike(&with(Vec::new(), vec![deny.clone()]), &with(vec![limit("l")], both)));
            let allow = policy(AuthorizationAction::Allow);
            assert!(!judge_alike(&with(Vec::new(), vec![deny]), &with(Vec::new(), vec![allow])));
        }
        // A token that nobody has to show is looked at all the same.
        let reads = JwtAuthentication {
            name: "j".into(),
            providers: Default::default(),
            rules: Vec::new(),
            bypass_cors_preflight: false,
        };
        let reads = ExecuteFilters { jwt: vec![reads], ..ExecuteFilters::all(Vec::new()) };
        let inner = OnMatch::Execute(Arc::new(reads));
        let inner = Composite::of(MatcherTree { rule: MatcherRule::List(Vec::new()), on_no_match: Some(inner) });
        assert!(inner.judges() && inner.reads_tokens());
        let outer = composite(filter(inner.clone()).into(), Vec::new());
        assert!(outer.judges() && outer.reads_tokens() && !judge_alike(&filter(outer), &filter(inner)));
        // Another way to the same end is another decision.
        let deny = || composite(Vec::new(), vec![policy(AuthorizationAction::Deny)]);
        let tree = |input: &str, key: &str| {
            let end = deny().matcher.unwrap().on_no_match.clone().unwrap();
            let rule =
                MatcherRule::Exact { input: HeaderKey::parse(input).unwrap(), map: [(key.to_owned(), end)].into() };
            filter(Composite::of(MatcherTree { rule, on_no_match: Some(OnMatch::Skip) }))
        };
        assert!(judge_alike(&tree("a", "1"), &tree("a", "1")));
        assert!(!judge_alike(&tree("a", "1"), &tree("a", "2")) && !judge_alike(&tree("a", "1"), &tree("b", "1")));
        assert!(!judge_alike(&tree("a", "1"), &filter(deny())));
    }
}
