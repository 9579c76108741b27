//! Single values of a rule: each becomes one condition of Envoy's RBAC.

use ipnet::IpNet;
use mesh_core::matcher::{Effort, Met, OF_NO_PATH, target_is_met};
use mesh_core::policy::{
    HeaderKey, HeaderMatch, HeaderMatcher, MetadataMatch, MetadataValue, PathMatch, Pattern, Permission, Principal,
    StringMatch, StringMatcher,
};
use mesh_core::target::{EncodedSlash, normalize_path};

use super::super::check::Check;
use super::super::values::{is_label, port as read_port};

/// What can be joined: permissions and principals.
pub(super) trait Tree: Sized {
    fn any() -> Self;
    fn all(list: Vec<Self>) -> Self;
    fn one_of(list: Vec<Self>) -> Self;
    fn not(self) -> Self;
}

impl Tree for Permission {
    fn any() -> Self {
        Self::Any
    }

    fn all(list: Vec<Self>) -> Self {
        Self::And(list)
    }

    fn one_of(list: Vec<Self>) -> Self {
        Self::Or(list)
    }

    fn not(self) -> Self {
        Self::Not(Box::new(self))
    }
}

impl Tree for Principal {
    fn any() -> Self {
        Self::Any
    }

    fn all(list: Vec<Self>) -> Self {
        Self::And(list)
    }

    fn one_of(list: Vec<Self>) -> Self {
        Self::Or(list)
    }

    fn not(self) -> Self {
        Self::Not(Box::new(self))
    }
}

/// All of these; one stands alone.
pub(super) fn all_of<T: Tree>(mut list: Vec<T>) -> T {
    match list.len() {
        0 => T::any(),
        1 => list.remove(0),
        _ => T::all(list),
    }
}

/// Reads a field and its negation: one of the values, and none of the others.
#[allow(clippy::too_many_arguments, reason = "two fields with their names, and where they lead")]
pub(super) fn both<T: Tree>(
    at: &str,
    name: &str,
    values: &[String],
    not_name: &str,
    not_values: &[String],
    check: &mut Check<'_>,
    out: &mut Vec<T>,
    read: impl Fn(&str) -> Result<T, String>,
) {
    let mut list = |name: &str, values: &[String]| {
        let read = values.iter().enumerate().filter_map(|(i, text)| {
            let value = if text.is_empty() { Err("an empty text".to_owned()) } else { read(text) };
            check.take(&format!("{at}.{name}[{i}]"), value)
        });
        let mut read: Vec<T> = read.collect();
        match read.len() {
            0 => None,
            1 => Some(read.remove(0)),
            _ => Some(T::one_of(read)),
        }
    };
    out.extend(list(name, values));
    out.extend(list(not_name, not_values).map(T::not));
}

/// Istio's texts: `x`, `x*`, `*x`, and `*` for anything that is there.
enum Wild<'a> {
    Exact(&'a str),
    Prefix(&'a str),
    Suffix(&'a str),
    Present,
}

impl<'a> Wild<'a> {
    fn read(text: &'a str) -> Result<Self, String> {
        let wild = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(""), _) => return Ok(Self::Present),
            (Some(_), Some(_)) => Err(()),
            (Some(end), None) => Ok((Self::Suffix(end), end)),
            (None, Some(start)) => Ok((Self::Prefix(start), start)),
            (None, None) => Ok((Self::Exact(text), text)),
        };
        match wild {
            Ok((wild, rest)) if !rest.contains('*') => Ok(wild),
            _ => Err(format!("{text:?}: a * stands at the beginning or at the end, and once")),
        }
    }

    /// As a comparison of texts, with `scheme` before a beginning; `None` = present.
    fn text(self, scheme: &str) -> Option<StringMatch> {
        match self {
            Self::Exact(text) => Some(StringMatch::Exact(format!("{scheme}{text}"))),
            Self::Prefix(text) => Some(StringMatch::Prefix(format!("{scheme}{text}"))),
            Self::Suffix(text) => Some(StringMatch::Suffix(text.to_owned())),
            Self::Present => None,
        }
    }
}

fn with_case(pattern: StringMatch) -> StringMatcher {
    StringMatcher { pattern, ignore_case: false }
}

fn regex(pattern: &str) -> Result<StringMatch, String> {
    Pattern::new(pattern).map(StringMatch::Regex).map_err(|error| error.reason)
}

fn header_of(name: HeaderKey, value: HeaderMatch) -> HeaderMatcher {
    HeaderMatcher { name, value, invert: false, treat_missing_as_empty: false }
}

/// A host in any case, with or without a port and the dot of a full name; with a port, that one.
pub(super) fn host(text: &str) -> Result<Permission, String> {
    let name = |host: &str| format!(r"{}\.?", Pattern::escape(host.strip_suffix('.').unwrap_or(host)));
    let dotted = |host: &str| match host.rsplit_once(':') {
        Some((of, port)) if !of.ends_with(':') && port.bytes().all(|b| b.is_ascii_digit()) => {
            format!("{}:{port}", name(of))
        }
        _ => format!("{}(:[0-9]*)?", name(host)),
    };
    let value = match Wild::read(text)? {
        Wild::Exact(host) => HeaderMatch::Text(with_case(regex(&format!("(?i){}", dotted(host)))?)),
        Wild::Suffix(host) => HeaderMatch::Text(with_case(regex(&format!("(?i).*{}", dotted(host)))?)),
        Wild::Prefix(host) => {
            HeaderMatch::Text(StringMatcher { pattern: StringMatch::Prefix(host.to_owned()), ignore_case: true })
        }
        Wild::Present => HeaderMatch::Present(true),
    };
    Ok(Permission::Header(header_of(HeaderKey::Authority, value)))
}

pub(super) fn method(text: &str) -> Result<Permission, String> {
    let value =
        Wild::read(text)?.text("").map_or(HeaderMatch::Present(true), |text| HeaderMatch::Text(with_case(text)));
    Ok(Permission::Header(header_of(HeaderKey::Method, value)))
}

pub(super) fn port(text: &str) -> Result<Permission, String> {
    let number = text.parse::<i64>().map_err(|_| format!("{text:?} is not a port"))?;
    read_port(number).map(Permission::DestinationPort)
}

/// A path in normal form, or a template.
pub(super) fn path(text: &str) -> Result<Permission, String> {
    if let Some(odd) = text.chars().find(|c| ['?', '#'].contains(c)) {
        return Err(format!("{text:?}: paths are compared without their query, so there is no {odd:?} in them"));
    }
    if text.contains(['{', '}']) {
        // Wildcards stand for what is in normal form by itself.
        normal(&text.replace("{**}", "x").replace("{*}", "x"))?;
        return template(text).map(Permission::Path);
    }
    Ok(Permission::Path(match Wild::read(text)? {
        Wild::Exact(path) => PathMatch::Exact(normal(path)?),
        Wild::Prefix(path) => PathMatch::Prefix(normal(path)?),
        Wild::Suffix(end) => {
            // After some element: its own beginning may be the rest of one.
            normal(&format!("/x{end}"))?;
            PathMatch::Regex(Pattern::new(&format!(".*{}", Pattern::escape(end))).map_err(|e| e.reason)?)
        }
        Wild::Present => PathMatch::Prefix("/".to_owned()),
    }))
}

/// The path, if it is in the form in which requests have it.
pub(in crate::model) fn normal(path: &str) -> Result<String, String> {
    match normalize_path(path, EncodedSlash::Keep) {
        Ok(normal) if normal == path => Ok(path.to_owned()),
        Ok(normal) => Err(format!(
            "requests never have this path, because theirs is brought to its normal form; write {normal:?}"
        )),
        Err(error) => Err(format!("requests never have this path: {error}")),
    }
}

/// `{*}` is one element, `{**}` any number of them, and the last of the two.
fn template(text: &str) -> Result<PathMatch, String> {
    let Some(path) = text.strip_prefix('/') else { return Err(format!("{text:?} does not begin with a slash")) };
    let (mut pattern, mut ended) = (String::new(), false);
    for segment in path.split('/') {
        pattern.push('/');
        match segment {
            "{*}" | "{**}" if ended => return Err(format!("{text:?}: {{**}} is the last of its wildcards")),
            "{*}" => pattern.push_str("[^/]+"),
            "{**}" => {
                pattern.push_str(".*");
                ended = true;
            }
            plain if plain.contains(['{', '}', '*']) => {
                return Err(format!("{text:?}: an element is a text, {{*}} or {{**}}, not {plain:?}"));
            }
            plain => pattern.push_str(&Pattern::escape(plain)),
        }
    }
    Pattern::new(&pattern).map(PathMatch::Regex).map_err(|error| error.reason)
}

fn authenticated(pattern: Option<StringMatch>) -> Principal {
    Principal::Authenticated(pattern.map(with_case))
}

/// `<trust domain>/ns/<namespace>/sa/<account>`.
pub(super) fn principal(text: &str) -> Result<Principal, String> {
    if text.contains("://") {
        return Err(format!("{text:?}: principals are written without spiffe://"));
    }
    Ok(authenticated(Wild::read(text)?.text("spiffe://")))
}

pub(super) fn namespace(text: &str) -> Result<Principal, String> {
    let pattern = match Wild::read(text)? {
        Wild::Exact(name) if is_label(name) => name.to_owned(),
        Wild::Exact(name) => return Err(format!("{name:?} is not a namespace")),
        Wild::Prefix(start) => format!("{}[^/]*", Pattern::escape(start)),
        Wild::Suffix(end) => format!("[^/]*{}", Pattern::escape(end)),
        Wild::Present => "[^/]+".to_owned(),
    };
    Ok(authenticated(Some(regex(&format!(".*/ns/{pattern}/.*"))?)))
}

/// `<namespace>/<account>`, or an account of the policy's own namespace. As in Istio, an ID may say more before the
/// namespace, between the two and after the account.
pub(super) fn service_account(text: &str, own: &str) -> Result<Principal, String> {
    let (namespace, account) = text.split_once('/').unwrap_or((own, text));
    let plain = |name: &str| !name.is_empty() && name.split('.').all(is_label);
    if !plain(namespace) || !plain(account) {
        return Err(format!("{text:?} is not a service account; write <account> or <namespace>/<account>"));
    }
    let (namespace, account) = (Pattern::escape(namespace), Pattern::escape(account));
    Ok(authenticated(Some(regex(&format!("spiffe://.+/ns/{namespace}/(.+/|)sa/{account}(/.+)?"))?)))
}

pub(super) fn trust_domain(text: &str) -> Result<Principal, String> {
    if text.contains('/') {
        return Err(format!("{text:?} is not a trust domain"));
    }
    Ok(authenticated(match Wild::read(text)? {
        Wild::Exact(domain) => Some(StringMatch::Prefix(format!("spiffe://{domain}/"))),
        Wild::Prefix(start) => Some(StringMatch::Prefix(format!("spiffe://{start}"))),
        Wild::Suffix(end) => Some(regex(&format!("spiffe://[^/]*{}/.*", Pattern::escape(end)))?),
        Wild::Present => None,
    }))
}

pub(in crate::model) fn ip(text: &str) -> Result<IpNet, String> {
    let whole = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    let net = text.parse::<IpNet>().or_else(|_| whole());
    net.map(|net| net.trunc()).map_err(|_| format!("{text:?} is neither an IP address nor a block such as 10.0.0.0/8"))
}

pub(super) fn peer_ip(text: &str) -> Result<Principal, String> {
    ip(text).map(Principal::DirectRemoteIp)
}

pub(super) fn remote_ip(text: &str) -> Result<Principal, String> {
    ip(text).map(Principal::RemoteIp)
}

pub(super) fn destination_ip(text: &str) -> Result<Permission, String> {
    ip(text).map(Permission::DestinationIp)
}

/// In small letters, as servers see it, stock ones too.
pub(super) fn server_name(text: &str) -> Result<Permission, String> {
    let pattern = match Wild::read(&text.to_ascii_lowercase())?.text("") {
        Some(pattern) => pattern,
        None => regex(".+")?,
    };
    Ok(Permission::ServerName(with_case(pattern)))
}

/// A header; `*` = it is there.
pub(super) fn header(name: &HeaderKey, text: &str) -> Result<Principal, String> {
    if *name == HeaderKey::Path {
        // With its query, which has no normal form.
        let path = |text: &'_ str| text.split('?').next().unwrap_or_default().to_owned();
        match Wild::read(text)? {
            Wild::Exact(start) | Wild::Prefix(start) => {
                let met =
                    Wild::read(text)?.text("").map(|text| header_of(name.clone(), HeaderMatch::Text(with_case(text))));
                if met.is_some_and(|matcher| target_is_met(&matcher, &mut Effort::default()) == Met::Never) {
                    normal(&path(start))?;
                    return Err(OF_NO_PATH.to_owned());
                }
            }
            // The end of the query, of which everything may be.
            Wild::Suffix(_) | Wild::Present => {}
        }
    }
    let value =
        Wild::read(text)?.text("").map_or(HeaderMatch::Present(true), |text| HeaderMatch::Text(with_case(text)));
    Ok(Principal::Header(header_of(name.clone(), value)))
}

/// `<issuer>/<subject>` of a checked token. The subject is what follows the last slash, because issuers are URLs, and
/// a wildcard stands in one of the two: as Istio has it.
pub(super) fn request_principal(text: &str) -> Result<Principal, String> {
    let never =
        |why: &str| Err(format!("{text:?} is nobody's: {why}; write <issuer>/<subject>, <issuer>/* or */<subject>"));
    let (issuer, subject) = match (text.rsplit_once('/'), Wild::read(text)?) {
        (_, Wild::Present) => (Wild::Present, Wild::Present),
        (Some((issuer, subject)), _) => (Wild::read(issuer)?, Wild::read(subject)?),
        (None, Wild::Suffix(_)) => (Wild::Present, Wild::read(text)?),
        (None, Wild::Prefix(_)) => (Wild::read(text)?, Wild::Present),
        (None, Wild::Exact(_)) => return never("it has no slash between issuer and subject"),
    };
    if matches!(subject, Wild::Exact("")) {
        return never("it has no subject");
    }
    if matches!(issuer, Wild::Exact(url) if url.is_empty() || url.ends_with(":/")) {
        return never("the issuer ends at the last slash");
    }
    let claim = |name: &str, wild: Wild<'_>| {
        Ok::<_, String>(token(vec![name.to_owned()], MetadataValue::Text(with_case(filled(wild)?))))
    };
    Ok(Principal::And(vec![claim("iss", issuer)?, claim("sub", subject)?]))
}

/// A claim of a checked token, to which `keys` lead: a text, or a list of which one matches.
pub(super) fn claim(keys: &[String], text: &str) -> Result<Principal, String> {
    let text = with_case(filled(Wild::read(text)?)?);
    let value = MetadataValue::OneOf(vec![MetadataValue::Text(text.clone()), MetadataValue::AnyText(text)]);
    Ok(token(keys.to_vec(), value))
}

/// As a comparison of texts; `*` is any that is not empty.
fn filled(wild: Wild<'_>) -> Result<StringMatch, String> {
    wild.text("").map_or_else(|| regex(".+"), Ok)
}

fn token(keys: Vec<String>, value: MetadataValue) -> Principal {
    let path = std::iter::once(MetadataMatch::PAYLOAD.to_owned()).chain(keys).collect();
    let filter = MetadataMatch::JWT_AUTHN.to_owned();
    Principal::Metadata(MetadataMatch { filter, path, value, invert: false })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_the_dot_of_a_full_name_is_the_host_without_it() {
        for (rule, asked, holds) in [
            ("secret.test.", "secret.test", true),
            ("secret.test.", "SECRET.test.:80", true),
            ("secret.test.:80", "secret.test:80", true),
            ("secret.test.:80", "secret.test:81", false),
            ("*.test.", "a.test", true),
            ("secret.test", "secret.test.", true),
            ("secret.test.", "secretxtest", false),
            ("secret.test.", "secret.test.public", false),
        ] {
            let Ok(Permission::Header(HeaderMatcher { value: HeaderMatch::Text(text), .. })) = host(rule) else {
                panic!("{rule}");
            };
            let StringMatch::Regex(pattern) = text.pattern else { panic!("{rule}") };
            assert_eq!(pattern.compiled().is_match(asked), holds, "{rule} {asked}");
        }
    }
}
