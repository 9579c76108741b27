//! The hash of a request, for balancers that keep requests of one key together (gRFC A42, Envoy
//! `hash_policy`).
//!
//! Refuses to know which balancer uses it.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use regex_automata::meta::Regex;
use twox_hash::XxHash64;

use super::Draw;
use crate::matcher::{cookies, decode, first_value, replace_all, separator};
use crate::policy::{HashPolicy, HashSource};

/// The hash policies of a route, compiled.
#[derive(Debug, Default)]
pub struct HashRules(Box<[Rule]>);

#[derive(Debug)]
struct Rule {
    source: Source,
    terminal: bool,
}

#[derive(Debug)]
enum Source {
    Header { name: HeaderName, rewrite: Option<(Box<Regex>, Box<str>)> },
    Cookie { name: Box<str>, path: Box<str>, ttl: Option<Duration> },
    Query(Box<[u8]>),
    Caller,
    ChannelId,
}

/// What of a request decides its hash.
#[derive(Clone, Copy, Debug)]
pub struct HashInput<'a> {
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its query without the `?`; may be empty.
    pub query: &'a str,
    /// Address of whoever sent the request for which it is sent; `None` = it is sent for none, or nobody knows: then this
    /// client is its source, as the one application behind a sidecar is.
    pub source: Option<IpAddr>,
    /// One random number for the life of the client.
    pub channel_id: u64,
}

/// A request's hash, and what the answer must set for the next request to have the same.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Hashed {
    /// `None` if no policy found anything to hash: any endpoint will do.
    pub hash: Option<u64>,
    /// `Set-Cookie` values of cookies that were made.
    pub cookies: Vec<HeaderValue>,
}

impl HashRules {
    /// Compiles policies.
    pub fn new(policies: &[HashPolicy]) -> Self {
        let rule = |policy: &HashPolicy| Rule { source: Source::new(&policy.source), terminal: policy.terminal };
        Self(policies.iter().map(rule).collect())
    }

    /// Whether there is nothing to hash.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The hash of a request: that of each policy, rotated left and combined by exclusive or; a terminal
    /// policy with a hash ends the list (gRFC A42). `draw` makes the values of cookies.
    pub fn hash(&self, input: &HashInput<'_>, draw: &mut Draw<'_>) -> Hashed {
        let mut hashed = Hashed::default();
        for rule in &self.0 {
            if let Some(own) = rule.source.hash(input, &mut hashed.cookies, draw) {
                hashed.hash = Some(hashed.hash.map_or(own, |before| before.rotate_left(1) ^ own));
            }
            if rule.terminal && hashed.hash.is_some() {
                break;
            }
        }
        hashed
    }
}

impl Source {
    fn new(policy: &HashSource) -> Self {
        match policy {
            HashSource::Header { name, rewrite } => {
                let rewrite = rewrite.as_ref();
                let rewrite = rewrite.map(|r| (Box::new(r.pattern.searcher()), r.substitution.as_str().into()));
                Self::Header { name: name.clone(), rewrite }
            }
            HashSource::Cookie { name, path, ttl } => {
                Self::Cookie { name: name.as_str().into(), path: path.as_str().into(), ttl: *ttl }
            }
            HashSource::Query(name) => Self::Query(name.as_bytes().into()),
            HashSource::SourceAddress => Self::Caller,
            HashSource::ChannelId => Self::ChannelId,
        }
    }

    fn hash(&self, input: &HashInput<'_>, cookies: &mut Vec<HeaderValue>, draw: &mut Draw<'_>) -> Option<u64> {
        match self {
            Self::Header { name, rewrite } => {
                let value = header(input.headers, name)?;
                match rewrite {
                    None => Some(hash_of(&value)),
                    Some((pattern, substitution)) => {
                        let (text, mut out) = (String::from_utf8_lossy(&value), String::new());
                        replace_all(pattern, substitution, &text, &mut out);
                        Some(hash_of(out.as_bytes()))
                    }
                }
            }
            Self::Cookie { name, path, ttl } => match (cookie(input.headers, name), ttl) {
                (Some(value), _) => Some(hash_of(value.as_bytes())),
                (None, None) => None,
                (None, Some(ttl)) => {
                    let value = format!("{:016x}", draw(u64::MAX));
                    // Quoted, as Envoy does it.
                    cookies.extend(set_cookie(name, &format!("\"{value}\""), path, *ttl));
                    Some(hash_of(value.as_bytes()))
                }
            },
            Self::Query(name) => first_value(input.query, name).map(|value| hash_of(&decode(value))),
            Self::Caller => Some(of_source(input.source, input.channel_id)),
            Self::ChannelId => Some(input.channel_id),
        }
    }
}

/// The hash of whoever something is sent for, as in [`HashInput::source`]. One caller has one, over whichever family of addresses its
/// connection was accepted.
pub fn of_source(source: Option<IpAddr>, channel_id: u64) -> u64 {
    source.map_or(channel_id, |address| hash_of(address.to_canonical().to_string().as_bytes()))
}

/// The value of a header, several joined by commas, cookies by semicolons. Binary metadata of gRPC is not hashed (gRFC A42).
fn header<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<Cow<'h, [u8]>> {
    if name.as_str().ends_with("-bin") {
        return None;
    }
    let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let first = values.next()?;
    let Some(second) = values.next() else { return Some(Cow::Borrowed(first)) };
    let separator = separator(name);
    let mut joined = [first, separator, second].concat();
    for value in values {
        joined.extend_from_slice(separator);
        joined.extend_from_slice(value);
    }
    Some(Cow::Owned(joined))
}

/// The first cookie of a name, without the quotes it may have.
pub fn cookie<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    cookies(headers, name).next().and_then(|value| std::str::from_utf8(value).ok())
}

/// A `Set-Cookie` value with the attributes that Envoy gives it; a `ttl` of zero makes a session cookie. `None` if name or
/// path cannot stand in a header.
pub fn set_cookie(name: &str, value: &str, path: &str, ttl: Duration) -> Option<HeaderValue> {
    let mut text = format!("{name}={value}");
    if !ttl.is_zero() {
        text.push_str(&format!("; Max-Age={}", ttl.as_secs()));
    }
    if !path.is_empty() {
        text.push_str("; Path=");
        text.push_str(path);
    }
    text.push_str("; HttpOnly");
    HeaderValue::try_from(text).ok()
}

fn hash_of(bytes: &[u8]) -> u64 {
    XxHash64::oneshot(0, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{Pattern, RegexRewrite};

    fn policy(source: HashSource, terminal: bool) -> HashPolicy {
        HashPolicy { source, terminal }
    }

    fn by_header(name: &'static str) -> HashSource {
        HashSource::Header { name: HeaderName::from_static(name), rewrite: None }
    }

    fn hash(policies: &[HashPolicy], headers: &[(&'static str, &'static str)], query: &str) -> Hashed {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        let input = HashInput { headers: &map, query, source: None, channel_id: 99 };
        HashRules::new(policies).hash(&input, &mut |_| 0xabc)
    }

    #[test]
    fn each_source_hashes_its_value_and_nothing_else() {
        let rewrite = RegexRewrite { pattern: Pattern::new("^user-(.*)@.*$").unwrap(), substitution: r"\1".into() };
        let rewritten = HashSource::Header { name: HeaderName::from_static("x"), rewrite: Some(rewrite) };
        let cookie = |ttl| HashSource::Cookie { name: "sid".into(), path: "/a".into(), ttl };
        let of = |text: &str| Some(hash_of(text.as_bytes()));
        for (source, headers, query, want) in [
            (by_header("x"), &[("x", "one")][..], "", of("one")),
            (by_header("x"), &[("x", "one"), ("x", "two"), ("x", "three")], "", of("one,two,three")),
            (by_header("x"), &[("y", "one")], "", None),
            (by_header("x-bin"), &[("x-bin", "one")], "", None),
            (rewritten, &[("x", "user-7@host")], "", of("7")),
            (cookie(None), &[("cookie", "a=b; sid=one;c=d")], "", of("one")),
            (cookie(None), &[("cookie", "a=b"), ("cookie", "sid=\"one\"")], "", of("one")),
            (cookie(None), &[("cookie", "asid=one")], "", None),
            (HashSource::Query("k".into()), &[], "a=b&k=o%6ee&k=two", of("one")),
            (HashSource::Query("k".into()), &[], "a=k", None),
            (HashSource::ChannelId, &[], "", Some(99)),
            (HashSource::SourceAddress, &[], "", Some(99)),
        ] {
            let got = hash(&[policy(source.clone(), false)], headers, query);
            assert_eq!(got, Hashed { hash: want, cookies: Vec::new() }, "{source:?} {headers:?} {query}");
        }
        let rules = HashRules::new(&[policy(HashSource::SourceAddress, false)]);
        for (source, want) in [("10.0.0.1", "10.0.0.1"), ("::ffff:10.0.0.1", "10.0.0.1"), ("fd00::1", "fd00::1")] {
            let source = Some(source.parse().unwrap());
            let input = HashInput { headers: &HeaderMap::new(), query: "", source, channel_id: 9 };
            assert_eq!(rules.hash(&input, &mut |_| 0).hash, of(want), "{source:?}");
        }
    }

    #[test]
    fn a_missing_cookie_is_made_and_hashes_as_it_will_when_it_comes_back() {
        let source = |ttl, path: &str| HashSource::Cookie { name: "sid".into(), path: path.into(), ttl: Some(ttl) };
        for (ttl, path, want) in [
            (60, "/a", "sid=\"0000000000000abc\"; Max-Age=60; Path=/a; HttpOnly"),
            (0, "", "sid=\"0000000000000abc\"; HttpOnly"),
        ] {
            let policies = [policy(source(Duration::from_secs(ttl), path), false)];
            let made = hash(&policies, &[], "");
            assert_eq!(made.cookies, [want]);
            let back = hash(&policies, &[("cookie", "sid=\"0000000000000abc\"")], "");
            assert_eq!(back, Hashed { hash: made.hash, cookies: Vec::new() });
        }
        let broken = hash(&[policy(source(Duration::ZERO, "/\n"), false)], &[], "");
        assert!(broken.hash.is_some() && broken.cookies.is_empty(), "what cannot be a header is not set");
    }

    #[test]
    fn hashes_are_combined_and_a_terminal_policy_ends_the_list() {
        let (a, b) = (hash_of(b"a"), hash_of(b"b"));
        let headers = &[("x", "a"), ("y", "b")];
        let list = |first, second, terminal| [policy(by_header(first), terminal), policy(by_header(second), false)];
        for (policies, want) in [
            (list("x", "y", false), Some(a.rotate_left(1) ^ b)),
            (list("y", "x", false), Some(b.rotate_left(1) ^ a)),
            (list("x", "y", true), Some(a)),
            (list("none", "y", true), Some(b)),
            (list("none", "neither", true), None),
        ] {
            assert_eq!(hash(&policies, headers, "").hash, want, "{policies:?}");
        }
    }
}
