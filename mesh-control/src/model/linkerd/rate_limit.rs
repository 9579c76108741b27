//! HTTPLocalRateLimitPolicy: how many requests a Server takes, of all and of each caller.

use std::num::NonZeroU32;

use serde::Deserialize;

use super::super::check::Check;
use super::super::kinds::Kind;
use super::super::reference::RefSpec;
use crate::source::decode::Ignored;

const GROUP: &str = "policy.linkerd.io";

/// An HTTPLocalRateLimitPolicy. All rates are requests a second.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkerdRateLimit {
    /// Name of a Server of its namespace.
    pub(crate) server: String,
    pub(crate) total: Option<NonZeroU32>,
    pub(crate) identity: Option<NonZeroU32>,
    pub(crate) overrides: Vec<RateOverride>,
}

/// Some callers' limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RateOverride {
    pub(crate) rate: NonZeroU32,
    /// Namespace and name of service accounts.
    pub(crate) accounts: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RateLimitSpec {
    target_ref: Option<RefSpec>,
    total: Option<RateSpec>,
    identity: Option<RateSpec>,
    #[serde(default)]
    overrides: Vec<OverrideSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RateSpec {
    requests_per_second: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OverrideSpec {
    requests_per_second: Option<i64>,
    #[serde(default)]
    client_refs: Vec<RefSpec>,
}

impl Kind for LinkerdRateLimit {
    const GROUP: &'static str = GROUP;
    const KIND: &'static str = "HTTPLocalRateLimitPolicy";
    const VERSIONS: &'static [&'static str] = &["v1alpha1"];
    type Spec = RateLimitSpec;

    fn strict(_: &Ignored) -> Option<&'static str> {
        Some("without it more requests might be served")
    }

    fn validate(spec: RateLimitSpec, check: &mut Check<'_>) -> Self {
        let own = check.document().namespace.clone();
        let server = match &spec.target_ref {
            Some(target) if target.of() == (GROUP, "Server") && !target.name.is_empty() => {
                if target.namespace.as_ref().is_some_and(|namespace| *namespace != own) {
                    check.error("spec.targetRef.namespace", "a policy is for a Server of its own namespace");
                }
                target.name.clone()
            }
            _ => {
                check.error("spec.targetRef", format!("a Server (group {GROUP}) is needed"));
                String::new()
            }
        };
        let mut limit = |spec: Option<&RateSpec>, at: &str| {
            rate(spec?.requests_per_second, None, &format!("{at}.requestsPerSecond"), check)
        };
        let total = limit(spec.total.as_ref(), "spec.total");
        let identity = spec
            .identity
            .as_ref()
            .and_then(|spec| rate(spec.requests_per_second, total, "spec.identity.requestsPerSecond", check));
        let mut overrides = Vec::new();
        for (i, one) in spec.overrides.iter().enumerate() {
            let at = format!("spec.overrides[{i}]");
            let accounts = accounts(&one.client_refs, &own, &at, check);
            if let Some(rate) = rate(one.requests_per_second, total, &format!("{at}.requestsPerSecond"), check) {
                overrides.push(RateOverride { rate, accounts });
            }
        }
        if spec.total.is_none() && spec.identity.is_none() && spec.overrides.is_empty() {
            check.error("spec", "nothing is limited: one of total, identity and overrides is needed");
        }
        Self { server, total, identity, overrides }
    }
}

/// Requests a second: above 0, and not above those of all callers together.
fn rate(given: Option<i64>, total: Option<NonZeroU32>, at: &str, check: &mut Check<'_>) -> Option<NonZeroU32> {
    let read = given.and_then(|given| u32::try_from(given).ok()).and_then(NonZeroU32::new);
    match (read, total) {
        (None, _) => check.error(at, "a number of requests above 0 is needed"),
        (Some(rate), Some(total)) if rate > total => {
            check.error(at, format!("it is above the {total} of spec.total, which hold for all callers together"));
        }
        _ => {}
    }
    read
}

fn accounts(refs: &[RefSpec], own: &str, at: &str, check: &mut Check<'_>) -> Vec<(String, String)> {
    if refs.is_empty() {
        check.error(&format!("{at}.clientRefs"), "at least one ServiceAccount is needed");
    }
    let mut accounts = Vec::new();
    for (i, one) in refs.iter().enumerate() {
        if one.of() != ("core", "ServiceAccount") || one.name.is_empty() {
            check.error(&format!("{at}.clientRefs[{i}]"), "a ServiceAccount is needed");
            continue;
        }
        accounts.push((one.namespace.clone().unwrap_or_else(|| own.to_owned()), one.name.clone()));
    }
    accounts
}
