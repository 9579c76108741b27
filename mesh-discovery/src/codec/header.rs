//! Header operations. Values are literal on our side; Envoy's format operators are refused.

use envoy_types::pb::envoy::config::core::v3::{
    HeaderValue as ValueProto, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use http::{HeaderName, HeaderValue};
use mesh_core::policy::{HeaderAction, HeaderOps, HeaderPolicy, HeaderWrite};

use super::report::{At, Report};

/// The four lists in which every level of a route configuration carries its header operations.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) request_add: Vec<HeaderValueOption>,
    pub(super) request_remove: Vec<String>,
    pub(super) response_add: Vec<HeaderValueOption>,
    pub(super) response_remove: Vec<String>,
}

/// Writes a policy's four lists.
pub(super) fn encode(policy: &HeaderPolicy) -> Lists {
    let names = |ops: &HeaderOps| ops.remove.iter().map(|n| n.as_str().to_owned()).collect();
    Lists {
        request_add: policy.request.write.iter().map(write).collect(),
        request_remove: names(&policy.request),
        response_add: policy.response.write.iter().map(write).collect(),
        response_remove: names(&policy.response),
    }
}

/// Reads the four lists of a message that has the usual field names.
macro_rules! read_policy {
    ($proto:expr, $at:expr, $report:expr) => {
        ::mesh_core::policy::HeaderPolicy {
            request: $crate::codec::header::read_ops(
                (&$proto.request_headers_to_add, "request_headers_to_add"),
                (&$proto.request_headers_to_remove, "request_headers_to_remove"),
                $at,
                $report,
            ),
            response: $crate::codec::header::read_ops(
                (&$proto.response_headers_to_add, "response_headers_to_add"),
                (&$proto.response_headers_to_remove, "response_headers_to_remove"),
                $at,
                $report,
            ),
        }
    };
}
pub(super) use read_policy;

/// Reads one direction.
pub(super) fn read_ops(
    (add, add_name): (&[HeaderValueOption], &str),
    (remove, remove_name): (&[String], &str),
    at: &At<'_>,
    report: &mut Report,
) -> HeaderOps {
    let write = add.iter().enumerate().filter_map(|(i, o)| read_write(o, &at.item(add_name, i), report)).collect();
    let remove =
        remove.iter().enumerate().filter_map(|(i, n)| read_name(n, &at.item(remove_name, i), report)).collect();
    HeaderOps { write, remove }
}

/// Writes one operation.
pub(super) fn write(op: &HeaderWrite) -> HeaderValueOption {
    let mut header = ValueProto { key: op.name.as_str().to_owned(), ..Default::default() };
    match std::str::from_utf8(op.value.as_bytes()) {
        Ok(text) => header.value = text.replace('%', "%%"),
        Err(_) => {
            header.raw_value = op
                .value
                .as_bytes()
                .iter()
                .flat_map(|b| std::iter::repeat_n(*b, if *b == b'%' { 2 } else { 1 }))
                .collect();
        }
    }
    let action = match op.action {
        HeaderAction::Append => HeaderAppendAction::AppendIfExistsOrAdd,
        HeaderAction::Overwrite => HeaderAppendAction::OverwriteIfExistsOrAdd,
        HeaderAction::AddIfAbsent => HeaderAppendAction::AddIfAbsent,
        HeaderAction::OverwriteIfPresent => HeaderAppendAction::OverwriteIfExists,
    };
    HeaderValueOption {
        header: Some(header),
        append_action: action.into(),
        keep_empty_value: op.value.is_empty(),
        ..Default::default()
    }
}

/// Reads one operation; an empty value that is not to be kept is no operation, as in Envoy.
pub(super) fn read_write(proto: &HeaderValueOption, at: &At<'_>, report: &mut Report) -> Option<HeaderWrite> {
    let at = at.field("header");
    let Some(header) = &proto.header else {
        report.problem(&at, "a header is required");
        return None;
    };
    let raw = if header.value.is_empty() { header.raw_value.as_slice() } else { header.value.as_bytes() };
    let name = read_name(&header.key, &at.field("key"), report);
    let value = literal(raw, &at.field("value"), report)?;
    if value.is_empty() && !proto.keep_empty_value {
        return None;
    }
    let Ok(value) = HeaderValue::from_bytes(&value) else {
        report.problem(&at.field("value"), "not a header value");
        return None;
    };
    let action = match (&proto.append, HeaderAppendAction::try_from(proto.append_action)) {
        // The field that `append_action` replaced.
        (Some(append), _) if append.value => HeaderAction::Append,
        (Some(_), _) => HeaderAction::Overwrite,
        (None, Ok(HeaderAppendAction::AppendIfExistsOrAdd)) => HeaderAction::Append,
        (None, Ok(HeaderAppendAction::OverwriteIfExistsOrAdd)) => HeaderAction::Overwrite,
        (None, Ok(HeaderAppendAction::AddIfAbsent)) => HeaderAction::AddIfAbsent,
        (None, Ok(HeaderAppendAction::OverwriteIfExists)) => HeaderAction::OverwriteIfPresent,
        (None, Err(_)) => {
            report.problem(&at, format!("append_action {} is not known", proto.append_action));
            return None;
        }
    };
    Some(HeaderWrite { name: name?, value, action })
}

fn read_name(text: &str, at: &At<'_>, report: &mut Report) -> Option<HeaderName> {
    let name = HeaderName::try_from(text).ok();
    if name.is_none() {
        report.problem(at, format!("{text:?} is not a header name that may be changed"));
    }
    name
}

/// Reads a text in Envoy's substitution format that holds no operator: `%%` is a percent sign.
pub(super) fn literal(raw: &[u8], at: &At<'_>, report: &mut Report) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'%' {
            if rest.first() != Some(&b'%') {
                report.problem(at, format!("the operator {} is not supported", operator(rest)));
                return None;
            }
            rest = &rest[1..];
        }
        out.push(byte);
    }
    Some(out)
}

/// The operator that begins after a percent sign, for the message.
fn operator(after: &[u8]) -> String {
    let end = after.iter().position(|b| *b == b'%').map_or(after.len(), |end| end + 1);
    let shown: String = String::from_utf8_lossy(&after[..end]).chars().take(64).collect();
    format!("%{shown}")
}
