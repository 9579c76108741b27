//! What a GRPCRoute takes: methods and headers, as conditions on requests. A call of gRPC is a request for
//! `/package.Service/Method`.

use mesh_core::policy::{PathMatch, Permission};
use serde::Deserialize;

use super::super::check::Check;
use super::route::{HeaderSpec, RouteCondition, condition_of, pattern};

/// One `matches` entry of a GRPCRoute.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(crate) struct GrpcMatchSpec {
    method: Option<MethodSpec>,
    headers: Vec<HeaderSpec>,
}

#[derive(Deserialize)]
struct MethodSpec {
    r#type: Option<String>,
    service: Option<String>,
    method: Option<String>,
}

/// One element of a path.
const ANY: &str = "[^/]+";

pub(super) fn condition(spec: &GrpcMatchSpec, check: &mut Check<'_>, at: &str) -> RouteCondition {
    let (mut kind, mut length) = (0, 0);
    let mut path = PathMatch::Regex(check.patterns.read(&format!("/{ANY}/{ANY}")).expect("it is one"));
    if let Some(method) = &spec.method {
        let at = format!("{at}.method");
        let (service, name) = (method.service.as_deref(), method.method.as_deref());
        let read = match method.r#type.as_deref().unwrap_or("Exact") {
            _ if service.is_none() && name.is_none() => Err("a service or a method is required".to_owned()),
            // One method of one service is a path. A service by itself is the beginning of one, and no more specific.
            "Exact" => {
                exact(service, name, check, &at).map(|path| (if let PathMatch::Exact(_) = path { 2 } else { 0 }, path))
            }
            "RegularExpression" => {
                let group = |text: Option<&str>| text.map_or(ANY.to_owned(), |text| format!("(?:{text})"));
                // Each has to be one by itself, or it could reach over its end.
                let each = [service, name]
                    .into_iter()
                    .flatten()
                    .try_for_each(|text| check.patterns.read(text).map(drop).map_err(|error| error.reason));
                each.and_then(|()| pattern(&format!("/{}/{}", group(service), group(name)), check, &at))
                    .map(|path| (1, path))
            }
            other => Err(format!("{other:?} is not one of Exact, RegularExpression")),
        };
        if let Some((rank, read)) = check.take(&at, read) {
            (kind, path) = (rank, read);
            // As in the path.
            length = service.map_or(0, |service| service.len() + 1 + name.map_or(0, |name| name.len() + 1));
        }
    }
    condition_of(vec![Permission::Path(path)], &spec.headers, (kind, length, spec.method.is_some()), check, at)
}

fn exact(service: Option<&str>, method: Option<&str>, check: &mut Check<'_>, at: &str) -> Result<PathMatch, String> {
    let is_name = |text: &&str| {
        let starts = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        text.split('.').all(starts) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
    };
    if let Some(other) = [service, method].into_iter().flatten().find(|text| !is_name(text)) {
        return Err(format!("{other:?} is no name of gRPC: write letters, digits, _ and, in a service, dots"));
    }
    match (service, method) {
        (Some(service), Some(method)) => Ok(PathMatch::Exact(format!("/{service}/{method}"))),
        (service, method) => {
            let part = |text: Option<&str>| text.map_or(ANY.to_owned(), |text| text.replace('.', "\\."));
            pattern(&format!("/{}/{}", part(service), part(method)), check, at)
        }
    }
}
