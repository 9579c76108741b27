//! Who may do what: authorization policies compiled into an [`Authorizer`], which decides about one request at a
//! time and says which rule decided.
//!
//! ```text
//! policies ─ compile ─► stages: CUSTOM, observed ones, DENY, ALLOW ─ decide(request) ─► Ok, or Denial
//!                          │ rules by path, by caller, by namespace; the rest in order
//! ```
//!
//! Every stage must let a request pass, as the RBAC filters of a listener must (gRFC A41); Istio's policies become
//! one stage for each action, so that any of several ALLOW policies is enough. A condition on something that is not
//! known (a token nobody checked, two headers that disagree) is neither true nor false: it keeps a rule from
//! allowing and does not keep it from denying.
//!
//! A CUSTOM policy's rule makes a [`Question`] for an external authorizer instead of a decision; with its answer the
//! decision is taken up again where it was left.
//!
//! Pure: refuses to know connections and answers, and who is asked.

mod condition;
mod counts;
mod external;
mod outlook;
mod rules;
mod token;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(any(test, feature = "fuzzing"))]
mod reference;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use self::counts::Counts;
pub use self::external::{
    CheckBody, CheckRequest, CheckResponse, Checking, ExternalAuthorizer, ExternalAuthorizers, HeaderChange, Refusal,
    Unavailable,
};
pub use self::outlook::{Caller, PolicyChange};
#[cfg(test)]
use self::outlook::{keeps_open, keeps_open_plainly};
use self::rules::Rules;
use crate::identity::PeerIdentity;
use crate::jwt::Tokens;
use crate::matcher::RequestView;
use crate::policy::{AuditCondition, AuthorizationAction, AuthorizationPolicy, AuthorizerProvider};
use crate::telemetry::Decisions;

/// What of a request, or of a raw connection, is judged. The path must be in normal form
/// ([`normalize_path`](crate::target::normalize_path)).
#[derive(Clone, Copy)]
pub struct Attributes<'a> {
    /// Authority (empty = not known), method, path, headers; `None` = a raw connection, which has none of these. There a
    /// condition on requests or tokens cannot be known, an ALLOW rule with one does not match whatever else it says, and
    /// routes are not asked for: as Istio has it for ports that are not HTTP.
    pub request: Option<RequestView<'a>>,
    /// The other end; `None` = not known. One without a SPIFFE ID is known to have none.
    pub peer: Option<&'a PeerIdentity>,
    /// The address that was reached; an unspecified IP is not known.
    pub destination: SocketAddr,
    /// The TLS server name that was asked for; empty = none was, `None` = not known.
    pub server_name: Option<&'a str>,
    /// The request's tokens that hold; `None` = nobody looked for any. With none of them a condition on what a token
    /// says is false, and a negated one true, as Istio has it.
    pub tokens: Option<&'a Tokens>,
    /// How many proxies are trusted to say in `x-forwarded-for` who the original client is
    /// ([`InboundListener::trusted_proxies`](crate::policy::InboundListener)).
    pub trusted_proxies: u32,
}

/// Policies ready to decide. Deciding allocates nothing, unless a header comes more than once.
#[derive(Debug)]
pub struct Authorizer {
    stages: Box<[Stage]>,
}

#[derive(Debug)]
struct Stage {
    policy: Box<str>,
    action: AuthorizationAction,
    dry_run: bool,
    audit: AuditCondition,
    rules: Rules,
    counts: Option<Counts>,
}

/// Why a request is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Denial<'a> {
    /// The policy.
    pub policy: &'a str,
    /// The rule that matched; `None` = none of an ALLOW policy's did.
    pub rule: Option<&'a str>,
    /// Why.
    pub reason: DenialReason,
}

/// Why a request is denied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenialReason {
    /// A rule of a DENY policy matches.
    Denied,
    /// There are ALLOW policies and none of their rules matches.
    NotAllowed,
    /// A rule of a CUSTOM policy matches, and there is nobody to ask.
    NoAuthorizer,
    /// There are routes, and the request has none: it is answered with 404.
    NoRoute,
}

/// What an external authorizer is to say before the decision goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Question<'a> {
    /// Whom to ask.
    pub provider: &'a AuthorizerProvider,
    /// The policy.
    pub policy: &'a str,
    /// The rule that matched.
    pub rule: &'a str,
    /// Where the decision goes on if the answer is yes.
    pub next: Step,
}

impl<'a> Question<'a> {
    /// The denial that it is where nobody can be asked.
    pub fn unanswered(&self) -> Denial<'a> {
        Denial { policy: self.policy, rule: Some(self.rule), reason: DenialReason::NoAuthorizer }
    }
}

/// How far a decision has come. Default: not begun.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Step(usize);

/// A decision that is told besides the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Observation<'a> {
    /// The policy.
    pub policy: &'a str,
    /// The rule that matched.
    pub rule: Option<&'a str>,
    /// Whether the policy lets the request pass.
    pub allowed: bool,
    /// Why it is told.
    pub kind: ObservationKind,
}

/// Why a decision is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ObservationKind {
    /// The policy is evaluated and not enforced (`istio.io/dry-run`, `shadow_rules`).
    DryRun,
    /// A rule of an AUDIT policy matches.
    Audit,
    /// The policy's audit condition asks for it (gRFC A59).
    Logged,
}

impl Authorizer {
    /// Compiles policies. CUSTOM comes first, as in Envoy, whose external authorizers stand before RBAC; then what is only
    /// observed, so that it sees the request that it would be enforced on and no other denial hides it; then DENY, routes and
    /// ALLOW, each in listed order.
    pub fn new(policies: &[AuthorizationPolicy]) -> Self {
        Self::compile(policies, |_| None)
    }

    /// The same; each decision is counted.
    pub fn counted(policies: &[AuthorizationPolicy], decisions: &Decisions) -> Self {
        Self::compile(policies, |policy| Some(Counts::new(policy, decisions)))
    }

    fn compile(policies: &[AuthorizationPolicy], counts: impl Fn(&AuthorizationPolicy) -> Option<Counts>) -> Self {
        let mut stages: Vec<Stage> = policies.iter().map(|policy| Stage::new(policy, counts(policy))).collect();
        stages.sort_by_key(Stage::rank);
        Self { stages: stages.into() }
    }

    /// Whether there is nothing to decide.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Decides about a request where nobody can be asked: what a CUSTOM policy's rule matches is denied. `observe` is
    /// told of decisions that go to a log.
    ///
    /// # Errors
    /// The request is denied.
    pub fn decide<'a>(
        &'a self,
        request: &Attributes<'_>,
        observe: impl FnMut(Observation<'a>),
    ) -> Result<(), Denial<'a>> {
        match self.decide_from(Step::default(), request, observe)? {
            None => Ok(()),
            Some(question) => Err(question.unanswered()),
        }
    }

    /// Decides about a request from a step on: `None` = it is allowed; a question = it is, if the authorizer says so
    /// and the decision from [`Question::next`] on does, about the request as the authorizer left it.
    ///
    /// # Errors
    /// The request is denied.
    pub fn decide_from<'a>(
        &'a self,
        from: Step,
        request: &Attributes<'_>,
        mut observe: impl FnMut(Observation<'a>),
    ) -> Result<Option<Question<'a>>, Denial<'a>> {
        for (at, stage) in self.stages.iter().enumerate().skip(from.0) {
            if request.request.is_none() && stage.action == AuthorizationAction::Route {
                continue;
            }
            // What cannot be known keeps a rule from allowing, and from nothing else.
            let grants = matches!(stage.action, AuthorizationAction::Allow | AuthorizationAction::Route);
            let found = stage.rules.first(request, !grants);
            if let Some(counts) = &stage.counts {
                counts.count(found);
            }
            let rule = found.map(|place| stage.rules.name(place));
            let reason = match (&stage.action, rule) {
                (AuthorizationAction::Allow, None) => Some(DenialReason::NotAllowed),
                (AuthorizationAction::Route, None) => Some(DenialReason::NoRoute),
                (AuthorizationAction::Deny, Some(_)) => Some(DenialReason::Denied),
                (AuthorizationAction::Custom(provider), Some(rule)) if !stage.dry_run => {
                    return Ok(Some(Question { provider, policy: &stage.policy, rule, next: Step(at + 1) }));
                }
                (AuthorizationAction::Custom(_), Some(_)) => Some(DenialReason::NoAuthorizer),
                _ => None,
            };
            if let Some(kind) = stage.observed(rule.is_some(), reason.is_none()) {
                observe(Observation { policy: &stage.policy, rule, allowed: reason.is_none(), kind });
            }
            if let Some(reason) = reason.filter(|_| !stage.dry_run) {
                return Err(Denial { policy: &stage.policy, rule, reason });
            }
        }
        Ok(None)
    }

    /// The policy of the question that a decision goes on after.
    pub fn asked(&self, next: Step) -> Option<&str> {
        self.stages.get(next.0.checked_sub(1)?).map(|stage| &*stage.policy)
    }

    /// The providers of its CUSTOM policies.
    pub fn providers(&self) -> impl Iterator<Item = &AuthorizerProvider> {
        self.stages.iter().filter_map(|stage| match &stage.action {
            AuthorizationAction::Custom(provider) => Some(&**provider),
            _ => None,
        })
    }
}

impl Stage {
    fn new(policy: &AuthorizationPolicy, counts: Option<Counts>) -> Self {
        Self {
            policy: policy.name.as_str().into(),
            action: policy.action.clone(),
            dry_run: policy.dry_run,
            audit: policy.audit,
            rules: Rules::new(&policy.rules),
            counts,
        }
    }

    fn rank(&self) -> u8 {
        match &self.action {
            AuthorizationAction::Custom(_) if !self.dry_run => 0,
            _ if self.dry_run => 1,
            AuthorizationAction::Audit | AuthorizationAction::Custom(_) => 1,
            AuthorizationAction::Deny => 2,
            AuthorizationAction::Route => 3,
            AuthorizationAction::Allow => 4,
        }
    }

    fn observed(&self, matched: bool, allowed: bool) -> Option<ObservationKind> {
        let logged = match self.audit {
            AuditCondition::None => false,
            AuditCondition::OnDeny => !allowed,
            AuditCondition::OnAllow => allowed,
            AuditCondition::Both => true,
        };
        if self.action == AuthorizationAction::Audit {
            return matched.then_some(ObservationKind::Audit);
        }
        if self.dry_run {
            return Some(ObservationKind::DryRun);
        }
        logged.then_some(ObservationKind::Logged)
    }
}
