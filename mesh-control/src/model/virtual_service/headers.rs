//! Header operations of a route or a destination.

use http::{HeaderName, HeaderValue};
use mesh_core::policy::{HeaderAction, HeaderOps, HeaderPolicy, HeaderWrite};

use super::spec::{HeaderOpsSpec, HeadersSpec};
use crate::model::check::Check;

/// Checks header operations; the second value is the authority they set (`host`, `:authority`).
pub(super) fn policy(spec: Option<&HeadersSpec>, check: &mut Check<'_>, path: &str) -> (HeaderPolicy, Option<String>) {
    let Some(spec) = spec else { return (HeaderPolicy::default(), None) };
    let mut authority = None;
    let empty = HeaderOpsSpec::default();
    let request = spec.request.as_ref().unwrap_or(&empty);
    let response = spec.response.as_ref().unwrap_or(&empty);
    let request = ops(request, check, &format!("{path}.request"), Some(&mut authority));
    let response = ops(response, check, &format!("{path}.response"), None);
    (HeaderPolicy { request, response }, authority)
}

fn ops(
    spec: &HeaderOpsSpec,
    check: &mut Check<'_>,
    path: &str,
    mut authority: Option<&mut Option<String>>,
) -> HeaderOps {
    let mut ops = HeaderOps::default();
    let add = spec.add.iter().map(|entry| (entry, HeaderAction::Append, "add"));
    let set = spec.set.iter().map(|entry| (entry, HeaderAction::Overwrite, "set"));
    // Additions first: a name in both lists ends up overwritten.
    for ((name, value), action, list) in add.chain(set) {
        let path = format!("{path}.{list}.{name}");
        let lower = name.to_ascii_lowercase();
        if lower == "host" || lower == ":authority" {
            match authority.as_deref_mut() {
                Some(slot) if slot.is_some() => check.error(&path, "the authority is set twice"),
                Some(slot) => *slot = literal(value, check, &path).map(|_| value.clone()),
                None => check.error(&path, "an answer has no authority"),
            }
            continue;
        }
        if lower.starts_with(':') {
            check.warn(&path, "other pseudo-headers cannot be set; ignored");
            continue;
        }
        let Some(value) = literal(value, check, &path) else { continue };
        if let Some(name) = header_name(name, check, &path) {
            ops.write.push(HeaderWrite { name, value, action });
        }
    }
    for (i, name) in spec.remove.iter().enumerate() {
        let path = format!("{path}.remove[{i}]");
        if name.eq_ignore_ascii_case("host") || name.starts_with(':') {
            check.error(&path, format!("{name:?} cannot be removed"));
        } else if let Some(name) = header_name(name, check, &path) {
            ops.remove.push(name);
        }
    }
    ops
}

fn header_name(name: &str, check: &mut Check<'_>, path: &str) -> Option<HeaderName> {
    check.take(path, HeaderName::try_from(name).map_err(|_| format!("{name:?} is not a header name")))
}

/// A literal value: `%%` stands for `%`, and Envoy's operators are refused by name, since a header that
/// carries the text of an operator instead of its value is worse than none.
fn literal(value: &str, check: &mut Check<'_>, path: &str) -> Option<HeaderValue> {
    let mut text = String::with_capacity(value.len());
    let mut rest = value;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('%') {
            text.push('%');
            rest = tail;
            continue;
        }
        let operator = after.split('%').next().unwrap_or_default();
        check.error(path, format!("the operator %{operator}% is not supported; write %% for a literal percent sign"));
        return None;
    }
    text.push_str(rest);
    check.take(path, HeaderValue::from_str(&text).map_err(|_| format!("{value:?} is not a header value")))
}
