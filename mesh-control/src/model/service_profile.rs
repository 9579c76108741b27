//! Linkerd's ServiceProfile: routes with classification, retry and timeout, a retry budget, overrides.

use std::time::Duration;

use mesh_core::policy::{PathMatch, PerMillionRatio, ResponseClass, ResponseMatch, RetryBudget, RouteMatch};
use serde::Deserialize;

use super::check::Check;
use super::kinds::Kind;
use super::values::{Loose, duration, is_dns_name, pattern, quantity};

/// Most matches one condition may expand to.
const MAX_ALTERNATIVES: usize = 64;

/// A ServiceProfile. Its object name is the host it is about.
#[derive(Clone, Debug)]
pub(crate) struct ServiceProfile {
    pub(crate) routes: Vec<ProfileRoute>,
    pub(crate) budget: Option<RetryBudget>,
    /// `(authority without port, weight)`; zero weights are left out.
    pub(crate) overrides: Vec<(String, u32)>,
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
struct ConditionSpec {
    method: Option<String>,
    path_regex: Option<String>,
    all: Option<Vec<ConditionSpec>>,
    any: Option<Vec<ConditionSpec>>,
    not: Option<Box<ConditionSpec>>,
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
            overrides.extend(dst_override(entry, check, &format!("spec.dstOverrides[{i}]")));
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
    let matches = alternatives(condition, check, &field, 0)?;
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

/// Brings a condition to "any of these matches": route matches have no `any` or `not` of their own.
fn alternatives(spec: &ConditionSpec, check: &mut Check<'_>, path: &str, depth: usize) -> Option<Vec<RouteMatch>> {
    let empty = spec.method.is_none() && spec.path_regex.is_none();
    if empty && spec.all.is_none() && spec.any.is_none() && spec.not.is_none() {
        check.error(path, "a condition needs a matcher: method, pathRegex, all, any or not");
        return None;
    }
    if depth > 16 {
        check.error(path, "nested too deeply");
        return None;
    }
    let mut found = vec![RouteMatch::any()];
    if let Some(method) = &spec.method {
        found[0].methods.push(method.to_ascii_uppercase());
    }
    if let Some(regex) = &spec.path_regex {
        // Anchored at both ends by Linkerd; Pattern always covers the whole path.
        let regex = pattern(regex, check, &format!("{path}.pathRegex"))?;
        found[0].path = PathMatch::Regex(regex);
    }
    for (i, part) in spec.all.iter().flatten().enumerate() {
        let part = alternatives(part, check, &format!("{path}.all[{i}]"), depth + 1)?;
        found = product(&found, &part, check, path)?;
    }
    if let Some(parts) = &spec.any {
        let mut any = Vec::new();
        for (i, part) in parts.iter().enumerate() {
            any.extend(alternatives(part, check, &format!("{path}.any[{i}]"), depth + 1)?);
        }
        found = product(&found, &any, check, path)?;
    }
    if spec.not.is_some() {
        check.error(
            &format!("{path}.not"),
            "a negated condition is not supported; put the opposite route first instead",
        );
        return None;
    }
    Some(found)
}

/// Every pair of both lists, joined; pairs that cannot both hold drop out.
fn product(left: &[RouteMatch], right: &[RouteMatch], check: &mut Check<'_>, path: &str) -> Option<Vec<RouteMatch>> {
    let mut joined = Vec::new();
    for a in left {
        for b in right {
            match join(a, b) {
                Joined::Both(both) => joined.push(*both),
                Joined::Never => {}
                Joined::Unsayable => {
                    check.error(path, "two different pathRegex must both hold; write them as one expression");
                    return None;
                }
            }
        }
    }
    if joined.is_empty() {
        check.error(path, "the parts contradict each other: nothing ever matches");
        return None;
    }
    if joined.len() > MAX_ALTERNATIVES {
        check.error(path, format!("expands to {} matches; at most {MAX_ALTERNATIVES}", joined.len()));
        return None;
    }
    Some(joined)
}

enum Joined {
    Both(Box<RouteMatch>),
    Never,
    Unsayable,
}

fn join(a: &RouteMatch, b: &RouteMatch) -> Joined {
    let mut both = a.clone();
    let any = RouteMatch::any();
    if a.path == any.path {
        both.path = b.path.clone();
    } else if b.path != any.path && b.path != a.path {
        return Joined::Unsayable;
    }
    if a.methods.is_empty() {
        both.methods = b.methods.clone();
    } else if !b.methods.is_empty() {
        both.methods.retain(|method| b.methods.contains(method));
        if both.methods.is_empty() {
            return Joined::Never;
        }
    }
    Joined::Both(Box::new(both))
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

fn dst_override(spec: &OverrideSpec, check: &mut Check<'_>, path: &str) -> Option<(String, u32)> {
    let host = spec.authority.rsplit_once(':').map_or(spec.authority.as_str(), |(host, _)| host);
    let host = host.trim_end_matches('.');
    if !is_dns_name(host) {
        check.error(&format!("{path}.authority"), format!("{:?} is not a host with a port", spec.authority));
        return None;
    }
    let Some(Loose(weight)) = &spec.weight else {
        check.error(&format!("{path}.weight"), "a weight is needed");
        return None;
    };
    let weight = check.take(&format!("{path}.weight"), quantity(weight))?;
    (weight > 0).then(|| (host.to_ascii_lowercase(), weight))
}
