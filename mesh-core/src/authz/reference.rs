//! A second evaluator, written for plainness: rules in order, texts copied and patterns compiled as it goes. The
//! authorizer is compared with it. It answers with what is surely so and what may be so, as two truth values.

use http::HeaderMap;
use serde_json::{Value, json};

use super::{Attributes, DenialReason};
use crate::jwt::Token;
use crate::policy::{
    AuthorizationAction, AuthorizationPolicy, HeaderKey, HeaderMatch, HeaderMatcher, MetadataMatch, MetadataValue,
    PathMatch, Permission, Principal, StringMatch, StringMatcher,
};

/// (it is surely so, it may be so)
type May = (bool, bool);

fn known(holds: bool) -> May {
    (holds, holds)
}

const UNKNOWN: May = (false, true);

/// The reason, policy and rule of a denial.
pub(super) fn decide(
    policies: &[AuthorizationPolicy],
    of: &Attributes<'_>,
) -> Result<(), (DenialReason, String, Option<String>)> {
    let order = |action: &AuthorizationAction| match action {
        AuthorizationAction::Custom(_) => 0,
        AuthorizationAction::Deny => 1,
        AuthorizationAction::Route => 2,
        _ => 3,
    };
    for turn in 0..4 {
        for policy in policies.iter().filter(|p| !p.dry_run && order(&p.action) == turn) {
            if policy.action == AuthorizationAction::Route && of.request.is_none() {
                continue;
            }
            let allow = matches!(policy.action, AuthorizationAction::Allow | AuthorizationAction::Route);
            let matching = policy.rules.iter().find(|rule| {
                let who = any(rule.principals.iter().map(|p| principal(p, of)));
                let what = any(rule.permissions.iter().map(|p| permission(p, of)));
                let left_out = of.request.is_none()
                    && (rule.principals.iter().any(principal_of_requests)
                        || rule.permissions.iter().any(permission_of_requests));
                if allow { who.0 && what.0 && !left_out } else { who.1 && what.1 }
            });
            let rule = matching.map(|rule| rule.name.clone());
            let reason = match (&policy.action, &rule) {
                (AuthorizationAction::Allow, None) => DenialReason::NotAllowed,
                (AuthorizationAction::Route, None) => DenialReason::NoRoute,
                (AuthorizationAction::Deny, Some(_)) => DenialReason::Denied,
                (AuthorizationAction::Custom(_), Some(_)) => DenialReason::NoAuthorizer,
                _ => continue,
            };
            return Err((reason, policy.name.clone(), rule));
        }
    }
    Ok(())
}

fn any(each: impl Iterator<Item = May>) -> May {
    each.fold((false, false), |a, b| (a.0 || b.0, a.1 || b.1))
}

fn all(each: impl Iterator<Item = May>) -> May {
    each.fold((true, true), |a, b| (a.0 && b.0, a.1 && b.1))
}

fn permission_of_requests(permission: &Permission) -> bool {
    match permission {
        Permission::And(list) | Permission::Or(list) => list.iter().any(permission_of_requests),
        Permission::Not(inner) => permission_of_requests(inner),
        Permission::Header(_) | Permission::Path(_) | Permission::Metadata(_) => true,
        _ => false,
    }
}

fn principal_of_requests(principal: &Principal) -> bool {
    match principal {
        Principal::And(list) | Principal::Or(list) => list.iter().any(principal_of_requests),
        Principal::Not(inner) => principal_of_requests(inner),
        Principal::Header(_) | Principal::Path(_) | Principal::Metadata(_) => true,
        _ => false,
    }
}

fn permission(permission: &Permission, of: &Attributes<'_>) -> May {
    match permission {
        Permission::Any => known(true),
        Permission::And(list) => all(list.iter().map(|p| self::permission(p, of))),
        Permission::Or(list) => any(list.iter().map(|p| self::permission(p, of))),
        Permission::Not(inner) => {
            let (surely, maybe) = self::permission(inner, of);
            (!maybe, !surely)
        }
        Permission::Header(header) => self::header(header, of),
        Permission::Path(path) => self::path(path, of),
        Permission::DestinationPort(port) => known(of.destination.port() == *port),
        Permission::DestinationPorts(a, b) => known(of.destination.port() >= *a && of.destination.port() <= *b),
        Permission::DestinationIp(net) => known(net.contains(&of.destination.ip())),
        Permission::ServerName(name) => {
            let name = StringMatcher { ignore_case: true, ..name.clone() };
            of.server_name.map_or(UNKNOWN, |asked| known(name.matches(asked)))
        }
        Permission::Metadata(token) => self::token(token, of),
    }
}

fn principal(principal: &Principal, of: &Attributes<'_>) -> May {
    match principal {
        Principal::Any => known(true),
        Principal::And(list) => all(list.iter().map(|p| self::principal(p, of))),
        Principal::Or(list) => any(list.iter().map(|p| self::principal(p, of))),
        Principal::Not(inner) => {
            let (surely, maybe) = self::principal(inner, of);
            (!maybe, !surely)
        }
        Principal::Authenticated(name) => match of.peer {
            None => UNKNOWN,
            Some(peer) => known(match (&peer.spiffe_id, name) {
                (None, _) => false,
                (Some(_), None) => true,
                (Some(id), Some(name)) => name.matches(&id.to_string()),
            }),
        },
        Principal::DirectRemoteIp(net) => of.peer.map_or(UNKNOWN, |peer| known(net.contains(&peer.address.ip()))),
        Principal::RemoteIp(net) => match of.peer {
            None => UNKNOWN,
            Some(peer) => {
                let mut said = vec![Some(peer.address.ip())];
                let headers = of.request.map_or_else(HeaderMap::new, |request| request.headers.clone());
                for value in headers.get_all("x-forwarded-for") {
                    said.extend(
                        value.to_str().expect("headers here are text").split(',').map(|ip| ip.trim().parse().ok()),
                    );
                }
                if let Some(back) = usize::try_from(of.trusted_proxies).ok().filter(|back| *back > 0) {
                    // The peer is no part of the header.
                    let forwarded = said.split_off(1);
                    said = match forwarded.len().checked_sub(back) {
                        Some(at) => vec![forwarded[at]],
                        None => said,
                    };
                }
                let inside = |ip: &Option<std::net::IpAddr>| ip.map(|ip| net.contains(&ip));
                (said.iter().all(|ip| inside(ip) == Some(true)), said.iter().any(|ip| inside(ip) != Some(false)))
            }
        },
        Principal::Header(header) => self::header(header, of),
        Principal::Path(path) => self::path(path, of),
        Principal::Metadata(token) => self::token(token, of),
    }
}

/// Writes down what the two filters would note of each token, and looks there.
fn token(token: &MetadataMatch, of: &Attributes<'_>) -> May {
    let istio = token.filter == "istio_authn";
    let note: fn(&Token) -> Value = match (token.filter.as_str(), token.path[0].as_str()) {
        ("envoy.filters.http.jwt_authn", _) => as_envoy,
        ("istio_authn", "request.auth.claims") if token.path.len() > 1 => as_istio,
        ("istio_authn", "request.auth.principal" | "request.auth.audiences" | "request.auth.presenter")
            if token.path.len() == 1 =>
        {
            as_istio
        }
        _ => return UNKNOWN,
    };
    let Some(tokens) = of.tokens else { return UNKNOWN };
    let under_key = |other: &&Token| istio || !other.key.is_empty() && *other.key == *token.path[0];
    let mut noted: Vec<Value> = tokens.iter().filter(under_key).map(note).collect();
    if noted.is_empty() {
        noted.push(json!({}));
    }
    let holds = noted.iter().map(|noted| {
        let mut value = Some(noted);
        for key in &token.path {
            value = value.and_then(|value| value.as_object()?.get(key));
        }
        is(&token.value, value, istio) != token.invert
    });
    let holds: Vec<bool> = holds.collect();
    (!holds.contains(&false), holds.contains(&true))
}

fn is(wanted: &MetadataValue, value: Option<&Value>, istio: bool) -> bool {
    // Istio's filter notes texts only.
    let empty = |value: &Value| match value {
        _ if !istio => false,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => !list.iter().any(|value| value.as_str().is_some_and(|text| !text.is_empty())),
        _ => true,
    };
    match (wanted, value) {
        (MetadataValue::OneOf(list), value) => list.iter().any(|wanted| is(wanted, value, istio)),
        (MetadataValue::Present(wanted), value) => value.is_some_and(|value| !empty(value)) == *wanted,
        (_, None) => false,
        (MetadataValue::Bool(wanted), Some(value)) => !istio && *value == Value::Bool(*wanted),
        (MetadataValue::Text(text), Some(Value::String(value))) => text.matches(value),
        (MetadataValue::AnyText(text), Some(Value::String(value))) => istio && text.matches(value),
        (MetadataValue::Text(_), Some(Value::Array(_))) if !istio => false,
        (MetadataValue::Text(text) | MetadataValue::AnyText(text), Some(Value::Array(list))) => {
            list.iter().any(|value| value.as_str().is_some_and(|value| text.matches(value)))
        }
        _ => false,
    }
}

fn as_envoy(token: &Token) -> Value {
    let claims = Value::Object(token.claims.json().clone());
    Value::Object([(token.key.to_string(), claims)].into_iter().collect())
}

fn as_istio(token: &Token) -> Value {
    let mut noted = json!({"request.auth.claims": {}});
    let text = |name: &str| token.claims.json().get(name).and_then(Value::as_str);
    let named = |name| text(name).filter(|text| !text.is_empty());
    if let (Some(issuer), Some(subject)) = (named("iss"), named("sub")) {
        noted["request.auth.principal"] = json!(issuer.to_owned() + "/" + subject);
    }
    for (attribute, claim) in [("request.auth.audiences", "aud"), ("request.auth.presenter", "azp")] {
        if let Some(value) = token.claims.json().get(claim) {
            noted[attribute] = value.clone();
        }
    }
    for (name, value) in token.claims.json() {
        noted["request.auth.claims"][name] = match value {
            Value::String(text) if name == "scope" => text.split_whitespace().collect(),
            other => other.clone(),
        };
    }
    noted
}

fn path(path: &PathMatch, of: &Attributes<'_>) -> May {
    let Some(request) = of.request else { return UNKNOWN };
    let given = request.path_and_query;
    if !given.starts_with('/') {
        return UNKNOWN;
    }
    let given = given.split('?').next().unwrap_or_default();
    known(match path {
        PathMatch::Exact(want) => given == want,
        PathMatch::Prefix(want) => given.starts_with(want.as_str()),
        PathMatch::PathSeparatedPrefix(want) => given == want || given.starts_with(&format!("{want}/")),
        PathMatch::Regex(pattern) => pattern.compiled().is_match(given),
    })
}

fn header(header: &HeaderMatcher, of: &Attributes<'_>) -> May {
    let Some(request) = of.request else { return UNKNOWN };
    let pseudo = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let values: Vec<String> = match &header.name {
        HeaderKey::Authority => {
            let Some(authority) = pseudo(request.authority) else { return UNKNOWN };
            let mut any_case = header.clone();
            if let HeaderMatch::Text(text) = &mut any_case.value {
                text.ignore_case = true;
            }
            let host = authority.split(':').next().unwrap_or_default().to_owned();
            let (whole, bare) = (read(&any_case, vec![authority]), read(&any_case, vec![host]));
            return if header.invert { (whole.0 && bare.0, whole.1) } else { (whole.0, whole.1 || bare.1) };
        }
        HeaderKey::Method => vec![request.method.to_string()],
        HeaderKey::Scheme => pseudo(request.scheme).into_iter().collect(),
        HeaderKey::Path => match request.path_and_query {
            path if path == "*" || path.starts_with('/') => vec![path.to_owned()],
            _ => return UNKNOWN,
        },
        HeaderKey::Header(name) => {
            let own = read(header, texts(request.headers, name.as_str()));
            let dashed = |name: &str| name.replace('_', "-");
            let twins = request.headers.keys().map(|other| other.as_str());
            let twins = twins.filter(|other| *other != name.as_str() && dashed(other) == dashed(name.as_str()));
            return twins
                .map(|twin| read(header, texts(request.headers, twin)))
                .fold(own, |(every, some), twin| (every && twin.0, some || twin.1));
        }
    };
    read(header, values)
}

fn read(header: &HeaderMatcher, values: Vec<String>) -> May {
    let text = |want: &StringMatcher, value: &str| match &want.pattern {
        StringMatch::Contains(part) if want.ignore_case => {
            value.to_ascii_lowercase().contains(&part.to_ascii_lowercase())
        }
        _ => want.matches(value),
    };
    let test = |value: &str| match &header.value {
        HeaderMatch::Text(want) => text(want, value),
        HeaderMatch::Range { start, end } => value.trim().parse::<i64>().is_ok_and(|n| n >= *start && n < *end),
        HeaderMatch::Present(_) => unreachable!(),
    };
    if let HeaderMatch::Present(wanted) = header.value {
        return known((values.is_empty() != wanted) != header.invert);
    }
    let values = match values.is_empty() && header.treat_missing_as_empty {
        true => vec![String::new()],
        false => values,
    };
    if values.is_empty() {
        return known(false);
    }
    // A reading is each value, and all of them joined as other engines join them; to deny, each element of a list as well.
    let readings = || values.iter().cloned().chain([values.join(",")]);
    let every = readings().all(|value| test(&value));
    let listed = matches!(header.name, HeaderKey::Header(_));
    let some = readings().any(|value| test(&value) || listed && value.split(',').any(|part| test(part.trim())));
    if header.invert { (!some, !every) } else { (every, some) }
}

fn texts(headers: &HeaderMap, name: &str) -> Vec<String> {
    headers.get_all(name).iter().map(|value| value.to_str().expect("headers here are text").to_owned()).collect()
}
