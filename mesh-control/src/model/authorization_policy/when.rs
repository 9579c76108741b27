//! The conditions of a rule: a key, and values that it has or has not.

use http::header::TE;
use mesh_core::policy::{HeaderKey, Permission, Principal, is_of_peer};
use serde::Deserialize;

use super::super::check::Check;
use super::matchers::{self, both};

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct WhenSpec {
    key: Option<String>,
    values: Vec<String>,
    not_values: Vec<String>,
}

/// Adds a condition to those of the operation or to those of the source.
pub(super) fn when(
    spec: &WhenSpec,
    check: &mut Check<'_>,
    at: &str,
    also: &mut Vec<Permission>,
    by: &mut Vec<Principal>,
) {
    let Some(key) = spec.key.as_deref() else { return check.error(&format!("{at}.key"), "a key is needed") };
    if spec.values.is_empty() && spec.not_values.is_empty() {
        return check.error(at, "values or notValues are needed");
    }
    let own = check.document().namespace.clone();
    let path = format!("{at}.key");
    let mut source = |check: &mut Check<'_>, read: &dyn Fn(&str) -> Result<Principal, String>| {
        both(at, "values", &spec.values, "notValues", &spec.not_values, check, by, read);
    };
    let mut operation = |check: &mut Check<'_>, read: fn(&str) -> Result<Permission, String>| {
        both(at, "values", &spec.values, "notValues", &spec.not_values, check, also, read);
    };
    match key {
        "source.ip" => source(check, &matchers::peer_ip),
        "remote.ip" => source(check, &matchers::remote_ip),
        "source.namespace" => source(check, &matchers::namespace),
        "source.principal" => source(check, &matchers::principal),
        "source.serviceAccount" => source(check, &|text| matchers::service_account(text, &own)),
        "source.trustDomain" => source(check, &matchers::trust_domain),
        "destination.ip" => operation(check, matchers::destination_ip),
        "destination.port" => operation(check, matchers::port),
        "connection.sni" => operation(check, matchers::server_name),
        "request.auth.principal" => source(check, &matchers::request_principal),
        "request.auth.audiences" => source(check, &|text| matchers::claim(&["aud".to_owned()], text)),
        "request.auth.presenter" => source(check, &|text| matchers::claim(&["azp".to_owned()], text)),
        "destination.namespace" | "destination.labels" | "destination.user" | "destination.name" => {
            check.error(&path, format!("{key:?} is retired; use spec.selector and the policy's namespace"));
        }
        _ => match (keys_of(key, "request.headers"), keys_of(key, "request.auth.claims")) {
            (Some(names), _) => match names.as_slice() {
                [name] => match header_name(name) {
                    Ok(name) => source(check, &|text| matchers::header(&name, text)),
                    Err(why) => check.error(&path, why),
                },
                _ => check.error(&path, "one header is named: request.headers[x-name]"),
            },
            (_, Some(claims)) => source(check, &|text| matchers::claim(&claims, text)),
            _ => check.error(
                &path,
                format!(
                    "{key:?} is not supported; there are request.headers[name], source.ip, remote.ip, \
                     source.namespace, source.principal, source.serviceAccount, source.trustDomain, \
                     request.auth.principal, request.auth.audiences, request.auth.presenter, \
                     request.auth.claims[name], destination.ip, destination.port and connection.sni"
                ),
            ),
        },
    }
}

pub(in crate::model) fn header_name(name: &str) -> Result<HeaderKey, String> {
    match HeaderKey::parse(name).map_err(|error| error.reason)? {
        HeaderKey::Scheme => Err("\":scheme\" may not be asked for (gRFC A41)".to_owned()),
        HeaderKey::Header(name) if name.as_str().starts_with("grpc-") => {
            Err(format!("{:?} is gRPC's own and may not be asked for (gRFC A41)", name.as_str()))
        }
        // The first two count as absent (gRFC A41), the others a server takes away.
        HeaderKey::Header(name) if name == TE || name.as_str().ends_with("-bin") || is_of_peer(&name) => {
            Err(format!("{:?} is never seen by a rule, which would therefore never match", name.as_str()))
        }
        name => Ok(name),
    }
}

/// The keys of `<map>[a][b]`.
fn keys_of(key: &str, map: &str) -> Option<Vec<String>> {
    let inside = key.strip_prefix(map)?.strip_prefix('[')?.strip_suffix(']')?;
    let keys: Vec<String> = inside.split("][").map(str::to_owned).collect();
    keys.iter().all(|key| !key.is_empty() && !key.contains(['[', ']'])).then_some(keys)
}
