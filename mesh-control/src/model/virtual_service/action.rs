//! What an HTTP route does: destinations, redirect, direct response, delegate, rewrite, mirrors.

use mesh_core::policy::{AuthorityRewrite, DirectResponse, PathRewrite, PerMillion, Redirect, Rewrite};

use super::spec::{
    DestinationSpec, DirectResponseSpec, HttpRouteSpec, RedirectSpec, RewriteSpec, RouteDestinationSpec,
};
use super::{Destination, HttpAction, Mirrored, RedirectPort, WeightedDestination, headers};
use crate::model::check::Check;
use crate::model::values::{is_host, is_label, pattern, percent, port};

/// Largest body of a direct response.
const MAX_BODY: usize = 1 << 20;
/// Istio's way to say "replace the matched prefix" in a redirect's `uri`.
const PREFIX_OPERATOR: &str = "%PREFIX()%";

/// Decides what the route does; exactly one action is needed.
pub(super) fn action(spec: &HttpRouteSpec, check: &mut Check<'_>, path: &str, is_delegate: bool) -> Option<HttpAction> {
    let given =
        [!spec.route.is_empty(), spec.redirect.is_some(), spec.direct_response.is_some(), spec.delegate.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        check.error(path, "exactly one of route, redirect, directResponse and delegate is needed");
        return None;
    }
    if spec.redirect.is_some() || spec.direct_response.is_some() {
        for (field, given) in [("fault", spec.fault.is_some()), ("rewrite", spec.rewrite.is_some())] {
            if given {
                check.error(&format!("{path}.{field}"), "not possible on a route that answers by itself");
            }
        }
    }
    if let Some(delegate) = &spec.delegate {
        return delegated(spec, delegate, check, path, is_delegate);
    }
    if let Some(direct) = &spec.direct_response {
        return direct_response(direct, check, &format!("{path}.directResponse")).map(HttpAction::Direct);
    }
    if let Some(redirect) = &spec.redirect {
        return redirection(spec, redirect, check, &format!("{path}.redirect"));
    }
    destinations(&spec.route, check, &format!("{path}.route")).map(HttpAction::Forward)
}

fn delegated(
    spec: &HttpRouteSpec,
    delegate: &super::spec::DelegateSpec,
    check: &mut Check<'_>,
    path: &str,
    is_delegate: bool,
) -> Option<HttpAction> {
    let path = format!("{path}.delegate");
    if is_delegate {
        check.error(&path, "a delegate cannot delegate");
        return None;
    }
    if delegate.name.is_empty() {
        check.error(&format!("{path}.name"), "the name of a VirtualService is needed");
        return None;
    }
    if spec.r#match.iter().any(|block| !block.source_labels.is_empty() && block.source_namespace.is_some()) {
        check.info(&path, "source selectors of the root hold for the delegate's routes too");
    }
    let namespace = delegate.namespace.clone().unwrap_or_else(|| check.document().namespace.clone());
    Some(HttpAction::Delegate { name: delegate.name.clone(), namespace })
}

/// Checks a list of weighted destinations.
pub(super) fn destinations(
    specs: &[RouteDestinationSpec],
    check: &mut Check<'_>,
    path: &str,
) -> Option<Vec<WeightedDestination>> {
    let mut found = Vec::new();
    let mut complete = true;
    for (i, spec) in specs.iter().enumerate() {
        let path = format!("{path}[{i}]");
        let destination = destination(spec.destination.as_ref(), check, &format!("{path}.destination"));
        let weight = u32::try_from(spec.weight).map_err(|_| match spec.weight {
            ..0 => format!("{} is negative", spec.weight),
            _ => format!("{} is too large", spec.weight),
        });
        let weight = check.take(&format!("{path}.weight"), weight);
        let (headers, authority) = headers::policy(spec.headers.as_ref(), check, &format!("{path}.headers"));
        match (destination, weight) {
            (Some(destination), Some(weight)) => {
                found.push(WeightedDestination { destination, weight, headers, authority });
            }
            _ => complete = false,
        }
    }
    for (i, _) in found.iter().enumerate().filter(|(_, entry)| found.len() > 1 && entry.authority.is_some()) {
        let effect = "with several destinations only the route may set the authority";
        check.unenforced(&format!("{path}[{i}].headers.request"), effect);
    }
    let total: u64 = found.iter().map(|entry| u64::from(entry.weight)).sum();
    if complete && found.len() > 1 && (total == 0 || total > u64::from(u32::MAX)) {
        check.error(path, format!("the weights sum to {total}; the sum must be 1 to {}", u32::MAX));
        complete = false;
    }
    complete.then_some(found)
}

fn destination(spec: Option<&DestinationSpec>, check: &mut Check<'_>, path: &str) -> Option<Destination> {
    let Some(spec) = spec else {
        check.error(path, "a destination is needed");
        return None;
    };
    if spec.host.is_empty() {
        check.error(&format!("{path}.host"), "a host is needed");
        return None;
    }
    if !is_host(&spec.host) || spec.host.contains('*') {
        check.error(&format!("{path}.host"), format!("{:?} is not a host name", spec.host));
        return None;
    }
    if !spec.subset.is_empty() && !is_label(&spec.subset.to_ascii_lowercase()) {
        check.error(&format!("{path}.subset"), format!("{:?} is not a subset name", spec.subset));
        return None;
    }
    let number = match &spec.port {
        None => None,
        Some(selector) => Some(check.take(&format!("{path}.port.number"), port(selector.number))?),
    };
    Some(Destination { host: spec.host.to_ascii_lowercase(), subset: spec.subset.clone(), port: number })
}

fn direct_response(spec: &DirectResponseSpec, check: &mut Check<'_>, path: &str) -> Option<DirectResponse> {
    let status = match u16::try_from(spec.status) {
        Ok(status) if (200..=599).contains(&status) => status,
        _ => {
            check.error(&format!("{path}.status"), format!("{} is not between 200 and 599", spec.status));
            return None;
        }
    };
    let body = match &spec.body {
        None => Vec::new(),
        Some(body) => match (&body.string, &body.bytes) {
            (Some(text), None) => text.clone().into_bytes(),
            (None, Some(text)) => {
                use base64::Engine;
                let read =
                    base64::engine::general_purpose::STANDARD.decode(text).map_err(|e| format!("not base64: {e}"));
                check.take(&format!("{path}.body.bytes"), read)?
            }
            _ => {
                check.error(&format!("{path}.body"), "exactly one of string and bytes is needed");
                return None;
            }
        },
    };
    if body.len() > MAX_BODY {
        check.error(&format!("{path}.body"), format!("{} bytes; at most {MAX_BODY}", body.len()));
        return None;
    }
    if body.len() > MAX_BODY / 10 {
        check.warn(&format!("{path}.body"), "a large body is held in memory by every client");
    }
    Some(DirectResponse { status, body })
}

fn redirection(route: &HttpRouteSpec, spec: &RedirectSpec, check: &mut Check<'_>, path: &str) -> Option<HttpAction> {
    let before = check.findings.len();
    let nothing = spec.uri.is_none() && spec.authority.is_none() && spec.scheme.is_none();
    if nothing && spec.port.is_none() && spec.derive_port.is_none() {
        check.error(path, "nothing is redirected; set uri, authority, scheme or port");
    }
    let code = match spec.redirect_code.unwrap_or(0) {
        0 => 301,
        // Other 3xx codes leave an Istio route without an action; refusing them is kinder.
        code @ (301 | 302 | 303 | 307 | 308) => u16::try_from(code).unwrap_or(301),
        code => {
            check.error(&format!("{path}.redirectCode"), format!("{code} is not one of 301, 302, 303, 307, 308"));
            301
        }
    };
    if let Some(scheme) = spec.scheme.as_deref().filter(|scheme| *scheme != "http" && *scheme != "https") {
        check.error(&format!("{path}.scheme"), format!("{scheme:?} is neither http nor https"));
    }
    if spec.port.is_some() && spec.derive_port.is_some() {
        check.error(path, "only one of port and derivePort may be given");
    }
    let rewrite = spec.uri.as_deref().map(|uri| match uri.strip_prefix(PREFIX_OPERATOR) {
        Some(prefix) => PathRewrite::Prefix(prefix.to_owned()),
        None => PathRewrite::Full(uri.to_owned()),
    });
    if matches!(rewrite, Some(PathRewrite::Prefix(_))) {
        let all_prefix = !route.r#match.is_empty()
            && route.r#match.iter().all(|block| block.uri.as_ref().is_some_and(|uri| uri.prefix.is_some()));
        if !all_prefix {
            check.error(&format!("{path}.uri"), "a prefix is replaced, so every match of the route must be a prefix");
        }
    }
    let mut origin = RedirectPort::Said;
    let mut number = spec.port.and_then(|number| check.take(&format!("{path}.port"), port(number)));
    match spec.derive_port.as_deref() {
        None => {}
        Some("FROM_PROTOCOL_DEFAULT") => number = Some(if spec.scheme.as_deref() == Some("https") { 443 } else { 80 }),
        Some("FROM_REQUEST_PORT") => origin = RedirectPort::Request,
        Some(other) => check.error(
            &format!("{path}.derivePort"),
            format!("{other:?} is neither FROM_PROTOCOL_DEFAULT nor FROM_REQUEST_PORT"),
        ),
    }
    let redirect = Redirect {
        code,
        scheme: spec.scheme.clone(),
        host: spec.authority.clone(),
        port: number,
        path: rewrite,
        strip_query: false,
    };
    (check.findings.len() == before).then_some(HttpAction::Redirect(redirect, origin))
}

/// Checks a `rewrite` block.
pub(super) fn rewrite(spec: Option<&RewriteSpec>, check: &mut Check<'_>, path: &str) -> Rewrite {
    let Some(spec) = spec else { return Rewrite::default() };
    let authority = spec.authority.clone().map(AuthorityRewrite::Literal);
    let mut rewrite = Rewrite { authority, ..Rewrite::default() };
    match (&spec.uri, &spec.uri_regex_rewrite) {
        (Some(_), Some(_)) => check.error(path, "only one of uri and uriRegexRewrite may be given"),
        (Some(uri), None) => rewrite.path = Some(PathRewrite::Prefix(uri.clone())),
        (None, Some(regex)) => {
            if regex.rewrite.is_empty() {
                check.error(&format!("{path}.uriRegexRewrite.rewrite"), "what to put in place is needed");
            }
            if let Some(pattern) = pattern(&regex.r#match, check, &format!("{path}.uriRegexRewrite.match")) {
                rewrite.path = Some(PathRewrite::Regex { pattern, substitution: regex.rewrite.clone() });
            }
        }
        (None, None) if spec.authority.is_none() => check.error(path, "nothing is rewritten; set uri or authority"),
        (None, None) => {}
    }
    rewrite
}

/// Checks `mirror` and `mirrors`.
pub(super) fn mirrors(spec: &HttpRouteSpec, check: &mut Check<'_>, path: &str) -> Vec<Mirrored> {
    let mut found = Vec::new();
    if spec.mirror.is_some() && !spec.mirrors.is_empty() {
        check.error(&format!("{path}.mirrors"), "only one of mirror and mirrors may be given");
        return found;
    }
    if let Some(mirror) = &spec.mirror {
        let share = match (&spec.mirror_percentage, spec.mirror_percent) {
            (Some(percentage), _) => check.take(&format!("{path}.mirrorPercentage"), percent(percentage)),
            (None, Some(value)) => {
                check.warn(&format!("{path}.mirrorPercent"), "deprecated; use mirrorPercentage.value");
                let read = PerMillion::from_percent(value).map_err(|error| error.reason);
                check.take(&format!("{path}.mirrorPercent"), read)
            }
            (None, None) => Some(PerMillion::ALL),
        };
        let read = destination(Some(mirror), check, &format!("{path}.mirror")).zip(share);
        found.extend(read.map(|(destination, share)| Mirrored { destination, share, field: "mirror".to_owned() }));
    }
    for (i, mirror) in spec.mirrors.iter().enumerate() {
        let (path, field) = (format!("{path}.mirrors[{i}]"), format!("mirrors[{i}].destination"));
        let destination = destination(mirror.destination.as_ref(), check, &format!("{path}.destination"));
        let share = match &mirror.percentage {
            Some(percentage) => check.take(&format!("{path}.percentage"), percent(percentage)),
            None => Some(PerMillion::ALL),
        };
        found.extend(destination.zip(share).map(|(destination, share)| Mirrored { destination, share, field }));
    }
    found.retain(|mirrored| mirrored.share != PerMillion::NONE);
    found
}
