//! Who may do what: authorization policies compiled into an [`Authorizer`], which decides about one request at a
//! time and says which rule decided.
//!
//! ```text
//! policies ─ compile ─► stages: observed ones, CUSTOM, DENY, ALLOW ─ decide(request) ─► Ok, or Denial
//!                          │ rules by path, by caller, by namespace; the rest in order
//! ```
//!
//! Every stage must let a request pass, as the RBAC filters of a listener must (gRFC A41); Istio's policies become
//! one stage for each action, so that any of several ALLOW policies is enough. A condition on something that is not
//! known (a token nobody checked, two headers that disagree) is neither true nor false: it keeps a rule from
//! allowing and does not keep it from denying.
//!
//! Pure: refuses to know connections and answers.

mod condition;
mod rules;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;

use self::rules::Rules;
use crate::identity::PeerIdentity;
use crate::matcher::RequestView;
use crate::policy::{AuditCondition, AuthorizationAction, AuthorizationPolicy};

/// What of a request is judged. The path must be in normal form
/// ([`normalize_path`](crate::target::normalize_path)).
#[derive(Clone, Copy)]
pub struct Attributes<'a> {
    /// Authority (empty = not known), method, path, headers.
    pub request: RequestView<'a>,
    /// The other end; `None` = not known. One without a SPIFFE ID is known to have none.
    pub peer: Option<&'a PeerIdentity>,
    /// The address that was reached; an unspecified IP is not known.
    pub destination: SocketAddr,
    /// The TLS server name that was asked for; empty = none was, `None` = not known.
    pub server_name: Option<&'a str>,
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
}

/// Why a request is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// A decision that is told besides the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
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
pub enum ObservationKind {
    /// The policy is evaluated and not enforced (`istio.io/dry-run`, `shadow_rules`).
    DryRun,
    /// A rule of an AUDIT policy matches.
    Audit,
    /// The policy's audit condition asks for it (gRFC A59).
    Logged,
}

impl Authorizer {
    /// Compiles policies. What is only observed comes first, so that a denial does not hide it; then CUSTOM, DENY
    /// and ALLOW, each in listed order.
    pub fn new(policies: &[AuthorizationPolicy]) -> Self {
        let mut stages: Vec<Stage> = policies.iter().map(Stage::new).collect();
        stages.sort_by_key(Stage::rank);
        Self { stages: stages.into() }
    }

    /// Whether there is nothing to decide.
    pub fn is_empty(&self) -> bool {
        self.stages.is_empty()
    }

    /// Decides about a request; `observe` is told of decisions that go to a log.
    ///
    /// # Errors
    /// The request is denied.
    pub fn decide<'a>(
        &'a self,
        request: &Attributes<'_>,
        mut observe: impl FnMut(Observation<'a>),
    ) -> Result<(), Denial<'a>> {
        for stage in &self.stages {
            // What cannot be known keeps a rule from allowing, and from nothing else.
            let rule = stage.rules.first(request, stage.action != AuthorizationAction::Allow);
            let reason = match (&stage.action, rule) {
                (AuthorizationAction::Allow, None) => Some(DenialReason::NotAllowed),
                (AuthorizationAction::Deny, Some(_)) => Some(DenialReason::Denied),
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
        Ok(())
    }
}

impl Stage {
    fn new(policy: &AuthorizationPolicy) -> Self {
        Self {
            policy: policy.name.as_str().into(),
            action: policy.action.clone(),
            dry_run: policy.dry_run,
            audit: policy.audit,
            rules: Rules::new(&policy.rules),
        }
    }

    fn rank(&self) -> u8 {
        match &self.action {
            _ if self.dry_run => 0,
            AuthorizationAction::Audit => 0,
            AuthorizationAction::Custom(_) => 1,
            AuthorizationAction::Deny => 2,
            AuthorizationAction::Allow => 3,
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
