//! Match blocks of an HTTP route.

use mesh_core::policy::{
    HeaderKey, HeaderMatch, HeaderMatcher, PathMatch, QueryMatch, QueryMatcher, RouteMatch, StringMatch, StringMatcher,
};

use super::spec::MatchSpec;
use super::{MatchBlock, check_gateway_name};
use crate::model::check::Check;
use crate::model::values::{StringMatchSpec, port, string_match};

/// Checks one block; `None` after an error.
pub(super) fn block(spec: &MatchSpec, check: &mut Check<'_>, path: &str, mesh: bool) -> Option<MatchBlock> {
    let errors = check.errors();
    let mut matcher = RouteMatch::any();
    if let Some(uri) = &spec.uri {
        matcher.path = uri_match(uri, check, &format!("{path}.uri"))?;
        matcher.case_sensitive = !spec.ignore_uri_case || matches!(matcher.path, PathMatch::Regex(_));
    }
    pseudo_headers(spec, check, path, &mut matcher);
    for (name, value) in &spec.headers {
        let path = format!("{path}.headers.{name}");
        let Some(value) = string_match(value, check, &path) else { continue };
        let value = value.map_or(HeaderMatch::Present(true), text);
        matcher.headers.extend(header(name, value, false, check, &path, mesh));
    }
    for (name, value) in &spec.without_headers {
        let path = format!("{path}.withoutHeaders.{name}");
        let Some(value) = string_match(value, check, &path) else { continue };
        let (value, invert) = value.map_or((HeaderMatch::Present(false), false), |value| (text(value), true));
        matcher.headers.extend(header(name, value, invert, check, &path, mesh));
    }
    for (name, value) in &spec.query_params {
        let path = format!("{path}.queryParams.{name}");
        let Some(value) = string_match(value, check, &path) else { continue };
        let text = |pattern| QueryMatch::Text(StringMatcher { pattern, ignore_case: false });
        let value = value.map_or(QueryMatch::Present(true), text);
        matcher.query.push(QueryMatcher { name: name.clone(), value });
    }
    if let Some(number) = spec.port {
        matcher.port = check.take(&format!("{path}.port"), port(number));
    }
    matcher.source_labels = spec.source_labels.clone();
    matcher.source_namespace = spec.source_namespace.clone().filter(|namespace| !namespace.is_empty());
    for (i, gateway) in spec.gateways.iter().enumerate() {
        check_gateway_name(gateway, check, &format!("{path}.gateways[{i}]"));
    }
    let stat_prefix = spec.stat_prefix.clone().unwrap_or_default();
    let block = MatchBlock { name: spec.name.clone(), matcher, gateways: spec.gateways.clone(), stat_prefix };
    (check.errors() == errors).then_some(block)
}

fn text(pattern: StringMatch) -> HeaderMatch {
    HeaderMatch::Text(StringMatcher { pattern, ignore_case: false })
}

/// A URI match; unlike elsewhere an empty prefix is allowed and takes everything.
fn uri_match(spec: &StringMatchSpec, check: &mut Check<'_>, path: &str) -> Option<PathMatch> {
    if spec.prefix.as_deref() == Some("") && spec.exact.is_none() && spec.regex.is_none() {
        return Some(PathMatch::Prefix("/".into()));
    }
    Some(match valued(spec, check, path)? {
        // The regex `*`.
        None => PathMatch::Prefix("/".into()),
        Some(StringMatch::Exact(text)) => PathMatch::Exact(text),
        Some(StringMatch::Prefix(text)) => PathMatch::Prefix(text),
        Some(StringMatch::Regex(pattern)) => PathMatch::Regex(pattern),
        Some(StringMatch::Suffix(_) | StringMatch::Contains(_)) => unreachable!("Istio's StringMatch has neither"),
    })
}

/// A StringMatch about what every request has: "present" would say nothing.
fn valued(spec: &StringMatchSpec, check: &mut Check<'_>, path: &str) -> Option<Option<StringMatch>> {
    if spec.exact.is_none() && spec.prefix.is_none() && spec.regex.is_none() {
        check.error(path, "one of exact, prefix and regex is needed");
        return None;
    }
    string_match(spec, check, path)
}

fn pseudo_headers(spec: &MatchSpec, check: &mut Check<'_>, path: &str, matcher: &mut RouteMatch) {
    let parts = [
        (HeaderKey::Scheme, &spec.scheme, "scheme"),
        (HeaderKey::Method, &spec.method, "method"),
        (HeaderKey::Authority, &spec.authority, "authority"),
    ];
    for (key, value, field) in parts {
        let Some(value) = value else { continue };
        match valued(value, check, &format!("{path}.{field}")) {
            Some(Some(StringMatch::Exact(method))) if key == HeaderKey::Method => matcher.methods.push(method),
            Some(Some(pattern)) => matcher.headers.push(HeaderMatcher {
                name: key,
                value: text(pattern),
                invert: false,
                treat_missing_as_empty: false,
            }),
            // Every request has all three.
            Some(None) | None => {}
        }
    }
}

fn header(
    name: &str,
    value: HeaderMatch,
    invert: bool,
    check: &mut Check<'_>,
    path: &str,
    mesh: bool,
) -> Option<HeaderMatcher> {
    if name.starts_with("@request.auth.claims") {
        let what = if mesh { "a match on a claim is only for gateways" } else { "gateways are not served" };
        check.error(path, format!("{what}; match on a header instead"));
        return None;
    }
    let key = check.take(path, HeaderKey::parse(name).map_err(|error| error.reason))?;
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        check.warn(path, "header names are compared in lower case");
    }
    // A missing header satisfies `withoutHeaders`.
    Some(HeaderMatcher { name: key, value, invert, treat_missing_as_empty: invert })
}
