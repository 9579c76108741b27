//! Linkerd's ServiceProfile: routes with classification, retry and timeout, a retry budget, overrides.

mod condition;

use std::time::Duration;

use mesh_core::policy::{PerMillionRatio, ResponseClass, ResponseMatch, RetryBudget, RouteMatch};
use serde::Deserialize;

use self::condition::ConditionSpec;
use super::check::Check;
use super::kinds::{Kind, LOST_CONDITION};
use super::values::{Loose, duration, is_dns_name, quantity};
use crate::source::decode::Ignored;

/// A ServiceProfile. Its object name is the host it is about.
#[derive(Clone, Debug)]
pub(crate) struct ServiceProfile {
    pub(crate) routes: Vec<ProfileRoute>,
    pub(crate) budget: Option<RetryBudget>,
    /// Zero weights are left out.
    pub(crate) overrides: Vec<DstOverride>,
}

/// Where a part of the traffic goes instead.
#[derive(Clone, Debug)]
pub(crate) struct DstOverride {
    /// Place in the list as written.
    pub(crate) index: usize,
    pub(crate) host: String,
    /// `None` = the port that was dialled.
    pub(crate) port: Option<u16>,
    pub(crate) weight: u32,
}

/// One route.
#[derive(Clone, Debug)]
pub(crate) struct ProfileRoute {
    pub(crate) name: String,
    /// Any of.
    pub(crate) matches: Vec<RouteMatch>,
    pub(crate) classes: Vec<ResponseClass>,
    pub(crate) retryable: bool,
    pub(crate) timeout: Option<Duration>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServiceProfileSpec {
    #[serde(default)]
    routes: Vec<RouteSpec>,
    retry_budget: Option<BudgetSpec>,
    #[serde(default)]
    dst_overrides: Vec<OverrideSpec>,
    #[serde(default)]
    opaque_ports: Vec<Loose>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RouteSpec {
    #[serde(default)]
    name: String,
    condition: Option<ConditionSpec>,
    #[serde(default)]
    response_classes: Vec<ResponseClassSpec>,
    #[serde(default)]
    is_retryable: bool,
    timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ResponseClassSpec {
    condition: Option<ResponseConditionSpec>,
    #[serde(default)]
    is_failure: bool,
}

#[derive(Deserialize)]
struct ResponseConditionSpec {
    status: Option<StatusSpec>,
    all: Option<Vec<ResponseConditionSpec>>,
    any: Option<Vec<ResponseConditionSpec>>,
    not: Option<Box<ResponseConditionSpec>>,
}

#[derive(Deserialize)]
struct StatusSpec {
    min: Option<i64>,
    max: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BudgetSpec {
    retry_ratio: Option<f64>,
    min_retries_per_second: Option<i64>,
    ttl: Option<String>,
}

#[derive(Deserialize)]
struct OverrideSpec {
    #[serde(default)]
    authority: String,
    weight: Option<Loose>,
}

impl Kind for ServiceProfile {
    const GROUP: &'static str = "linkerd.io";
    const KIND: &'static str = "ServiceProfile";
    const VERSIONS: &'static [&'static str] = &["v1alpha2", "v1alpha1"];
    type Spec = ServiceProfileSpec;

    /// A condition that is lost makes the route or the class take more than it should.
    fn strict(ignored: &Ignored) -> Option<&'static str> {
        let lost = ignored.meant("condition") || ignored.path.split('.').any(|step| step == "condition");
        lost.then_some(LOST_CONDITION)
    }

    fn validate(spec: ServiceProfileSpec, check: &mut Check<'_>) -> Self {
        let name = &check.document().name;
        if !is_dns_name(name) || !name.contains('.') {
            let message = format!("{name:?} must be the full host name, such as webapp.default.svc.cluster.local");
            check.error("metadata.name", message);
        }
        let mut routes = Vec::new();
        for (i, route) in spec.routes.iter().enumerate() {
            routes.extend(profile_route(route, check, &format!("spec.routes[{i}]")));
        }
        let budget = spec.retry_budget.as_ref().and_then(|budget| retry_budget(budget, check));
        let mut overrides = Vec::new();
        for (i, entry) in spec.dst_overrides.iter().enumerate() {
            overrides.extend(dst_override(i, entry, check));
        }
        if !spec.opaque_ports.is_empty() {
            check.unenforced("spec.opaquePorts", "an HTTP client speaks HTTP on every port it dials");
        }
        Self { routes, budget, overrides }
    }
}

fn profile_route(spec: &RouteSpec, check: &mut Check<'_>, path: &str) -> Option<ProfileRoute> {
    if spec.name.is_empty() {
        check.error(&format!("{path}.name"), "a route needs a name");
    }
    let Some(condition) = &spec.condition else {
        check.error(&format!("{path}.condition"), "a route needs a condition");
        return None;
    };
    let field = format!("{path}.condition");
    let matches = condition::matches(condition, check, &field)?;
    let mut classes = Vec::new();
    for (i, class) in spec.response_classes.iter().enumerate() {
        let path = format!("{path}.responseClasses[{i}]");
        let Some(condition) = &class.condition else {
            check.error(&format!("{path}.condition"), "a response class needs a condition");
            continue;
        };
        let matcher = response_match(condition, check, &format!("{path}.condition"), 0);
        classes.extend(matcher.map(|matcher| ResponseClass { matcher, is_failure: class.is_failure }));
    }
    let timeout = spec.timeout.as_deref().and_then(|text| check.take(&format!("{path}.timeout"), duration(text)));
    Some(ProfileRoute {
        name: spec.name.clone(),
        matches,
        classes,
        retryable: spec.is_retryable,
        timeout: timeout.filter(|timeout| !timeout.is_zero()),
    })
}

fn response_match(
    spec: &ResponseConditionSpec,
    check: &mut Check<'_>,
    path: &str,
    depth: usize,
) -> Option<ResponseMatch> {
    if depth > 16 {
        check.error(path, "nested too deeply");
        return None;
    }
    let mut parts = Vec::new();
    if let Some(status) = &spec.status {
        parts.push(status_range(status, check, &format!("{path}.status"))?);
    }
    let list = |specs: &[ResponseConditionSpec], field: &str, check: &mut Check<'_>| {
        let found: Option<Vec<_>> = specs
            .iter()
            .enumerate()
            .map(|(i, part)| response_match(part, check, &format!("{path}.{field}[{i}]"), depth + 1))
            .collect();
        found
    };
    if let Some(all) = &spec.all {
        parts.push(ResponseMatch::All(list(all, "all", check)?));
    }
    if let Some(any) = &spec.any {
        parts.push(ResponseMatch::Any(list(any, "any", check)?));
    }
    if let Some(not) = &spec.not {
        parts.push(ResponseMatch::Not(Box::new(response_match(not, check, &format!("{path}.not"), depth + 1)?)));
    }
    match parts.len() {
        0 => {
            check.error(path, "a condition needs a matcher: status, all, any or not");
            None
        }
        1 => parts.pop(),
        _ => Some(ResponseMatch::All(parts)),
    }
}

fn status_range(spec: &StatusSpec, check: &mut Check<'_>, path: &str) -> Option<ResponseMatch> {
    if spec.min.is_none() && spec.max.is_none() {
        check.error(path, "min or max is needed");
        return None;
    }
    let bound = |value: Option<i64>, default: u16, field: &str, check: &mut Check<'_>| {
        let Some(value) = value.filter(|value| *value != 0) else { return Some(default) };
        let read = u16::try_from(value).ok().filter(|status| (100..=599).contains(status));
        check.take(&format!("{path}.{field}"), read.ok_or_else(|| format!("{value} is not between 100 and 599")))
    };
    let min = bound(spec.min, 100, "min", check)?;
    let max = bound(spec.max, 599, "max", check)?;
    if max < min {
        check.error(path, format!("max {max} is below min {min}"));
        return None;
    }
    Some(ResponseMatch::Status { min, max })
}

fn retry_budget(spec: &BudgetSpec, check: &mut Check<'_>) -> Option<RetryBudget> {
    let ratio = spec.retry_ratio.unwrap_or(0.2);
    if !(0.0..=1000.0).contains(&ratio) {
        check.error("spec.retryBudget.retryRatio", format!("{ratio} is not between 0 and 1000"));
        return None;
    }
    let floor = spec.min_retries_per_second.unwrap_or(10);
    let read = u32::try_from(floor).map_err(|_| format!("{floor} is not a number of retries"));
    let min_retries_per_second = check.take("spec.retryBudget.minRetriesPerSecond", read)?;
    let Some(text) = spec.ttl.as_deref() else {
        check.error("spec.retryBudget.ttl", "a ttl is needed, such as 10s");
        return None;
    };
    let ttl = check.take("spec.retryBudget.ttl", duration(text))?;
    if ttl < Duration::from_secs(1) || ttl > Duration::from_secs(60) {
        check.error("spec.retryBudget.ttl", format!("{text:?} is not between 1s and 60s"));
        return None;
    }
    // In range by the check above, so the conversion keeps the value.
    let retry_ratio = PerMillionRatio((ratio * 1e6).round() as u64);
    Some(RetryBudget { retry_ratio, min_retries_per_second, ttl })
}

/// Linkerd completes an authority without a port by the port that was dialled.
fn dst_override(index: usize, spec: &OverrideSpec, check: &mut Check<'_>) -> Option<DstOverride> {
    let path = format!("spec.dstOverrides[{index}]");
    let (host, number) = match spec.authority.rsplit_once(':') {
        Some((host, number)) => (host, Some(number)),
        None => (spec.authority.as_str(), None),
    };
    let host = host.trim_end_matches('.');
    let number = number.map(|number| number.parse::<u16>().ok().filter(|port| *port > 0));
    if !is_dns_name(host) || number == Some(None) {
        let message =
            format!("{:?} is not a host with a port, such as web.default.svc.cluster.local:80", spec.authority);
        check.error(&format!("{path}.authority"), message);
        return None;
    }
    let Some(Loose(weight)) = &spec.weight else {
        check.error(&format!("{path}.weight"), "a weight is needed");
        return None;
    };
    let weight = check.take(&format!("{path}.weight"), quantity(weight))?;
    let host = host.to_ascii_lowercase();
    (weight > 0).then_some(DstOverride { index, host, port: number.flatten(), weight })
}
