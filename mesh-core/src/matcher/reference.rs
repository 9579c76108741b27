//! A second matcher, written for plainness from the words of gRFC A27, A28 and Envoy's documentation:
//! it lower-cases, allocates and compiles as it goes. The table is compared with it, by property and by fuzzing.
#![cfg_attr(not(test), allow(dead_code, reason = "the fuzzer compares a part, the tests all of it"))]

use super::{RequestView, authority};
use crate::id::Workload;
use crate::policy::{
    HeaderKey, HeaderMatch, HeaderMatcher, PathMatch, Pattern, QueryMatch, QueryMatcher, RouteConfiguration,
    RouteMatch, StringMatch, StringMatcher, VirtualHost,
};

/// Position of the virtual host and of the route.
pub(super) fn route(
    config: &RouteConfiguration,
    port: u16,
    caller: &Workload,
    request: &RequestView<'_>,
) -> Option<(usize, usize)> {
    let host = virtual_host(&config.virtual_hosts, request.authority)?;
    let index = config.virtual_hosts[host].routes.iter().position(|r| matches(&r.matcher, port, caller, request))?;
    Some((host, index))
}

pub(super) fn virtual_host(hosts: &[VirtualHost], authority: &str) -> Option<usize> {
    let full = authority.to_lowercase();
    let bare = match full.rfind(':') {
        Some(at) if full[at + 1..].chars().all(|c| c.is_ascii_digit()) && is_host(&full[..at]) => &full[..at],
        _ => &full,
    };
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    let domains = || hosts.iter().enumerate().flat_map(|(i, h)| h.domains.iter().map(move |d| (i, d.as_str())));
    let exact = |name: &str| domains().find(|(_, domain)| *domain == name).map(|(i, _)| i);
    let longest = |fits: &dyn Fn(&str) -> Option<usize>| {
        let mut found: Vec<_> = domains().filter_map(|(i, domain)| Some((i, fits(domain)?))).collect();
        found.sort_by_key(|(_, length)| std::cmp::Reverse(*length));
        found.first().map(|(i, _)| *i)
    };
    // Whether `*` leaves a text and stands for something.
    let length = |text: &str, name: &str| (!text.is_empty() && name.len() > text.len()).then_some(text.len());
    let by_rule = |name: &str| {
        let suffix =
            |domain: &str| domain.strip_prefix('*').filter(|t| name.ends_with(t)).and_then(|t| length(t, name));
        let prefix =
            |domain: &str| domain.strip_suffix('*').filter(|t| name.starts_with(t)).and_then(|t| length(t, name));
        exact(name).filter(|_| name != "*").or_else(|| longest(&suffix)).or_else(|| longest(&prefix))
    };
    // gRFC A27 knows the whole authority alone; a port is left out where that leaves nothing but `*`.
    by_rule(&full).or_else(|| by_rule(bare)).or_else(|| exact("*"))
}

/// Of a bare IPv6 address the last colon begins no port.
fn is_host(text: &str) -> bool {
    text.ends_with(']') || !text.contains(':')
}

fn matches(policy: &RouteMatch, port: u16, caller: &Workload, request: &RequestView<'_>) -> bool {
    let (path, query) = request.path_and_query.split_once('?').unwrap_or((request.path_and_query, ""));
    policy.port.is_none_or(|want| want == port)
        && policy.source_namespace.as_ref().is_none_or(|want| *want == caller.namespace)
        && policy.source_labels.iter().all(|(key, value)| caller.labels.get(key) == Some(value))
        && path_matches(&policy.path, policy.case_sensitive, path)
        && (policy.methods.is_empty() || policy.methods.iter().any(|m| m == request.method.as_str()))
        && policy.headers.iter().all(|header| header_matches(header, request))
        && policy.query.iter().all(|parameter| query_matches(parameter, query))
        && policy.fraction.is_none_or(|share| (request.draw)() < share.get())
}

fn path_matches(policy: &PathMatch, case_sensitive: bool, path: &str) -> bool {
    let fold = |text: &str| if case_sensitive { text.to_owned() } else { text.to_lowercase() };
    match policy {
        PathMatch::Exact(want) => fold(path) == fold(want),
        PathMatch::Prefix(want) => fold(path).starts_with(&fold(want)),
        PathMatch::PathSeparatedPrefix(want) => {
            let want = fold(want.strip_suffix('/').unwrap_or(want));
            fold(path) == want || fold(path).starts_with(&format!("{want}/"))
        }
        PathMatch::Regex(pattern) => covers(pattern.as_str(), path),
    }
}

pub(super) fn header_matches(policy: &HeaderMatcher, request: &RequestView<'_>) -> bool {
    let pseudo = |text: &str| (!text.is_empty()).then(|| text.as_bytes().to_vec());
    let value = match &policy.name {
        HeaderKey::Method => pseudo(request.method.as_str()),
        HeaderKey::Scheme => pseudo(request.scheme),
        HeaderKey::Authority => pseudo(request.authority),
        HeaderKey::Path => pseudo(request.path_and_query),
        HeaderKey::Header(name) if name.as_str() == "host" => pseudo(request.authority),
        HeaderKey::Header(name) if name.as_str().ends_with("-bin") => None,
        HeaderKey::Header(name) => {
            let values: Vec<_> = request.headers.get_all(name).iter().map(|v| v.as_bytes()).collect();
            let between: &[u8] = if name.as_str() == "cookie" { b"; " } else { b"," };
            (!values.is_empty()).then(|| values.join(between))
        }
    };
    let number = |text: &[u8]| String::from_utf8(text.to_vec()).ok()?.trim_matches([' ', '\t']).parse::<i64>().ok();
    let of_authority = matches!(&policy.name, HeaderKey::Authority)
        || matches!(&policy.name, HeaderKey::Header(name) if name.as_str() == "host");
    let holds = match (&policy.value, value) {
        (HeaderMatch::Present(wanted), value) => value.is_some() == *wanted,
        (_, None) if !policy.treat_missing_as_empty => return false,
        (HeaderMatch::Text(matcher), value) if of_authority => {
            let text = value.unwrap_or_default();
            match &matcher.pattern {
                StringMatch::Regex(pattern) => {
                    String::from_utf8(text).is_ok_and(|text| covers_authority(pattern, &text))
                }
                _ => text_matches(&authority::in_normal_form(matcher), &text),
            }
        }
        (HeaderMatch::Text(matcher), value) => text_matches(matcher, &value.unwrap_or_default()),
        (HeaderMatch::Range { start, end }, value) => {
            number(&value.unwrap_or_default()).is_some_and(|n| *start <= n && n < *end)
        }
    };
    if policy.invert { !holds } else { holds }
}

fn query_matches(policy: &QueryMatcher, query: &str) -> bool {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let value = pairs.filter(|(key, _)| *key == policy.name).map(|(_, value)| value.replace("%2C", ",")).next();
    match (&policy.value, value) {
        (QueryMatch::Present(present), value) => *present == value.is_some(),
        (QueryMatch::Text(_), None) => false,
        (QueryMatch::Text(matcher), Some(value)) => text_matches(matcher, value.as_bytes()),
    }
}

fn text_matches(matcher: &StringMatcher, text: &[u8]) -> bool {
    let fold = |text: &[u8]| if matcher.ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
    let given = fold(text);
    match &matcher.pattern {
        StringMatch::Exact(want) => given == fold(want.as_bytes()),
        StringMatch::Prefix(want) => given.starts_with(&fold(want.as_bytes())),
        StringMatch::Suffix(want) => given.ends_with(&fold(want.as_bytes())),
        StringMatch::Contains(want) => {
            let want = fold(want.as_bytes());
            (0..=given.len()).any(|at| given[at..].starts_with(&want))
        }
        StringMatch::Regex(pattern) => std::str::from_utf8(text).is_ok_and(|text| covers(pattern.as_str(), text)),
    }
}

/// Whether the pattern covers it, and case says nothing.
fn covers_authority(pattern: &Pattern, text: &str) -> bool {
    let expression = authority::in_any_case(regex_syntax::parse(pattern.as_str()).expect("it is a pattern already"));
    covers(&expression.to_string(), text)
}

/// Whether some match of the pattern, anchored at both ends, is the whole text.
fn covers(pattern: &str, text: &str) -> bool {
    use regex_automata::nfa::thompson::pikevm::PikeVM;
    let vm = PikeVM::new(&format!(r"\A(?:{pattern})\z")).expect("it is a pattern already");
    vm.is_match(&mut vm.create_cache(), text)
}
