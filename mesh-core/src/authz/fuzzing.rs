//! Entry point for the fuzzer and for the replay of its corpus; not a part of the interface.
//!
//! Bytes choose policies and requests; the authorizer decides about them as the plain evaluator does.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{Attributes, Authorizer, reference};
use crate::identity::PeerIdentity;
use crate::jwt::{Claims, Token, Tokens};
use crate::matcher::RequestView;
use crate::policy::{
    AuthorizationAction, AuthorizationPolicy, AuthorizationRule, AuthorizerProvider, HeaderKey, HeaderMatch,
    HeaderMatcher, MetadataMatch, MetadataValue, PathMatch, Pattern, Permission, Principal, StringMatch, StringMatcher,
};

/// Decides about requests by policies, both of which the bytes choose.
///
/// # Panics
/// The two evaluators disagree.
pub fn decisions(bytes: &[u8]) {
    let mut choose = Choose(bytes);
    let policies: Vec<AuthorizationPolicy> = (0..choose.below(4)).map(|i| choose.policy(i)).collect();
    let authorizer = Authorizer::new(&policies);
    for _ in 0..4 {
        choose.call(|attributes| {
            let got = authorizer.decide(attributes, |_| {});
            let got = got.map_err(|d| (d.reason, d.policy.to_owned(), d.rule.map(str::to_owned)));
            assert_eq!(got, reference::decide(&policies, attributes), "{policies:#?}");
        });
    }
}

const TEXTS: [&str; 8] =
    ["", "a", "admin", "user", "/admin", "public.test", "spiffe://", "spiffe://cluster.local/ns/a/"];
const PATTERNS: [&str; 6] = ["a.*", ".*", "[a-z,]+", "user|admin", ".*/ns/a/.*", ".*/ns/b/.*"];
const PATHS: [&str; 8] = ["/", "/admin", "/admin/", "/admin/users", "/public/a", "/v2example", "/v2", "/a:b"];
const IDS: [&str; 4] = [
    "spiffe://cluster.local/ns/a/sa/web",
    "spiffe://cluster.local/ns/b/sa/web",
    "spiffe://other/ns/a/sa/x",
    "spiffe://td/x/ns/a/ns/b/y",
];
const NETS: [&str; 3] = ["10.0.0.0/8", "192.0.2.0/24", "203.0.113.0/24"];
const FORWARDED: [&str; 4] = ["203.0.113.5", "10.1.1.1", "10.1.1.1, nonsense", "192.0.2.1"];

const TOKEN_TEXTS: [&str; 5] = ["i/ann", "ann", "shop", "read", ""];
const CLAIMS: [&str; 6] = [
    r#"{"iss":"i","sub":"ann","aud":"shop","azp":"app","scope":"read  write","group":["a","user"]}"#,
    r#"{"iss":"i","sub":"bob","aud":["shop","other"],"scope":["read write"],"group":"a","realm":{"role":["admin"]}}"#,
    r#"{"iss":"j","sub":"","aud":[],"azp":"","scope":"","group":[""],"realm":{"role":true}}"#,
    r#"{"iss":"i","sub":7,"aud":7,"group":[1,"a"],"realm":"role"}"#,
    r#"{"iss":"j","sub":"ann","group":true,"realm":{"role":"user"}}"#,
    "{}",
];

/// Deep enough for every kind in every other.
const DEPTH: u8 = 3;

/// Choices from bytes; the first of everything once they have run out.
struct Choose<'a>(&'a [u8]);

impl Choose<'_> {
    fn below(&mut self, bound: u8) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first % bound
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    fn of(&mut self, list: &[&'static str]) -> &'static str {
        list[usize::from(self.below(u8::try_from(list.len()).unwrap_or(u8::MAX)))]
    }

    fn net(&mut self) -> ipnet::IpNet {
        self.of(&NETS).parse().expect("a network")
    }

    fn policy(&mut self, i: u8) -> AuthorizationPolicy {
        let action = match self.below(5) {
            0 => AuthorizationAction::Allow,
            1 => AuthorizationAction::Deny,
            2 => AuthorizationAction::Audit,
            3 => AuthorizationAction::Custom(AuthorizerProvider::named("asker")),
            _ => AuthorizationAction::Route,
        };
        let rules = (0..self.below(6)).map(|j| AuthorizationRule {
            name: format!("r{j}"),
            permissions: (0..self.below(3)).map(|_| self.permission(DEPTH)).collect(),
            principals: (0..self.below(3)).map(|_| self.principal(DEPTH)).collect(),
        });
        let rules = rules.collect();
        AuthorizationPolicy { rules, dry_run: self.below(8) == 1, ..AuthorizationPolicy::new(format!("p{i}"), action) }
    }

    fn permission(&mut self, depth: u8) -> Permission {
        match self.below(if depth == 0 { 8 } else { 11 }) {
            0 => Permission::Any,
            1 => Permission::Header(self.header()),
            2 | 3 => Permission::Path(self.path()),
            4 => Permission::DestinationPort(if self.flag() { 80 } else { 8080 }),
            5 => Permission::DestinationPorts(8000, 8090),
            6 => Permission::DestinationIp(self.net()),
            7 => {
                if self.flag() {
                    Permission::ServerName(self.text())
                } else {
                    Permission::Metadata(self.token())
                }
            }
            8 => Permission::And((0..self.below(3)).map(|_| self.permission(depth - 1)).collect()),
            9 => Permission::Or((0..self.below(3)).map(|_| self.permission(depth - 1)).collect()),
            _ => Permission::Not(Box::new(self.permission(depth - 1))),
        }
    }

    fn principal(&mut self, depth: u8) -> Principal {
        match self.below(if depth == 0 { 9 } else { 12 }) {
            0 => Principal::Any,
            1 => Principal::Authenticated(None),
            2 => Principal::Authenticated(Some(StringMatcher::exact(self.of(&IDS)))),
            3 => Principal::Authenticated(Some(self.text())),
            4 => Principal::DirectRemoteIp(self.net()),
            5 => Principal::RemoteIp(self.net()),
            6 => Principal::Header(self.header()),
            7 => Principal::Path(self.path()),
            8 => Principal::Metadata(self.token()),
            9 => Principal::And((0..self.below(3)).map(|_| self.principal(depth - 1)).collect()),
            10 => Principal::Or((0..self.below(3)).map(|_| self.principal(depth - 1)).collect()),
            _ => Principal::Not(Box::new(self.principal(depth - 1))),
        }
    }

    fn token(&mut self) -> MetadataMatch {
        let (filter, path): (_, &[&str]) = match self.below(10) {
            0 => ("istio_authn", &["request.auth.principal"]),
            1 => ("istio_authn", &["request.auth.audiences"]),
            2 => ("istio_authn", &["request.auth.presenter"]),
            3 => ("istio_authn", &["request.auth.claims", "scope"]),
            4 => ("istio_authn", &["request.auth.claims", "group"]),
            5 => ("istio_authn", &["request.auth.claims", "realm", "role"]),
            6 => ("envoy.filters.http.jwt_authn", &["payload", "sub"]),
            7 => ("envoy.filters.http.jwt_authn", &["payload", "group"]),
            8 => ("envoy.filters.http.jwt_authn", &["other"]),
            _ => ("another", &["payload"]),
        };
        let value = self.token_value(1);
        let path = path.iter().map(|key| (*key).to_owned()).collect();
        MetadataMatch { filter: filter.to_owned(), path, value, invert: self.flag() }
    }

    fn token_value(&mut self, depth: u8) -> MetadataValue {
        match self.below(4 + depth) {
            0 => MetadataValue::Present(self.flag()),
            1 => MetadataValue::Bool(self.flag()),
            2 => MetadataValue::Text(self.token_text()),
            3 => MetadataValue::AnyText(self.token_text()),
            _ => MetadataValue::OneOf((0..self.below(3)).map(|_| self.token_value(depth - 1)).collect()),
        }
    }

    fn token_text(&mut self) -> StringMatcher {
        if self.flag() { StringMatcher::exact(self.of(&TOKEN_TEXTS)) } else { self.text() }
    }

    fn tokens(&mut self) -> Option<Tokens> {
        let tokens = (0..self.below(4).checked_sub(1)?).map(|_| {
            let claims = Claims::parse(self.of(&CLAIMS).as_bytes()).expect("claims");
            Token::new(&"p".into(), &self.of(&["payload", "other", ""]).into(), claims.into())
        });
        Some(tokens.collect())
    }

    fn pattern(&mut self) -> Pattern {
        Pattern::new(self.of(&PATTERNS)).expect("a pattern")
    }

    fn text(&mut self) -> StringMatcher {
        let pattern = match self.below(5) {
            0 => StringMatch::Exact(self.of(&TEXTS).into()),
            1 => StringMatch::Prefix(self.of(&TEXTS).into()),
            2 => StringMatch::Suffix(self.of(&TEXTS).into()),
            3 => StringMatch::Contains(self.of(&TEXTS).into()),
            _ => StringMatch::Regex(self.pattern()),
        };
        StringMatcher { pattern, ignore_case: self.flag() }
    }

    fn path(&mut self) -> PathMatch {
        match self.below(4) {
            0 => PathMatch::Exact(self.of(&PATHS).into()),
            1 => PathMatch::Prefix(self.of(&PATHS).into()),
            2 => PathMatch::PathSeparatedPrefix(self.of(&["/admin", "/v2", "/public"]).into()),
            _ => PathMatch::Regex(self.pattern()),
        }
    }

    fn header(&mut self) -> HeaderMatcher {
        let name = self.of(&["x-role", "x-other", ":method", ":authority", ":path"]);
        let value = match self.below(4) {
            0 => HeaderMatch::Present(self.flag()),
            1 => HeaderMatch::Range { start: 1, end: 5 },
            _ => HeaderMatch::Text(self.text()),
        };
        let name = HeaderKey::parse(name).expect("a header's name");
        HeaderMatcher { name, value, invert: self.flag(), treat_missing_as_empty: self.flag() }
    }

    fn call(&mut self, judge: impl FnOnce(&Attributes<'_>)) {
        let mut headers = HeaderMap::new();
        for _ in 0..self.below(4) {
            let name = HeaderName::from_static(self.of(&["x-role", "x-other", "x_role"]));
            headers.append(name, HeaderValue::from_static(self.of(&["user", "admin", "user,admin", "", "3", "a, b"])));
        }
        if self.flag() {
            headers.append("x-forwarded-for", HeaderValue::from_static(self.of(&FORWARDED)));
        }
        let spiffe_id = self.flag().then(|| self.of(&IDS).parse().expect("an ID"));
        let peer = PeerIdentity { spiffe_id, address: ([10, 0, 0, 1], 4000).into() };
        let method = if self.flag() { Method::GET } else { Method::POST };
        let path = match self.below(12) {
            0 => self.of(&["", "*", "?x=1", "/admin?x=1"]),
            _ => self.of(&PATHS),
        };
        let request = RequestView {
            authority: self.of(&["public.test", "admin", "", "admin:80"]),
            method: &method,
            path_and_query: path,
            scheme: "http",
            headers: &headers,
            draw: &|| 0,
        };
        let server_name = self.flag().then(|| self.of(&["", "a", "public.test"]));
        let peer = (self.below(8) > 0).then_some(&peer);
        let tokens = self.tokens();
        let (destination, tokens) = (([10, 0, 0, 9], 8080).into(), tokens.as_ref());
        // A raw connection has neither request nor tokens.
        let raw = self.below(8) == 1;
        let (request, tokens) = (Some(request).filter(|_| !raw), tokens.filter(|_| !raw));
        let trusted_proxies = u32::from(self.below(4));
        judge(&Attributes { request, peer, destination, server_name, tokens, trusted_proxies });
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The corpus of the fuzzer. `UPDATE_CORPUS=1` writes it anew; what a fuzzer finds is added by hand and stays.
    #[test]
    fn the_corpus_is_replayed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/authz");
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            let mut random = fastrand::Rng::with_seed(5);
            for i in 0..16 {
                let bytes: Vec<u8> = (0..32 << (i % 5)).map(|_| random.u8(..)).collect();
                std::fs::write(folder.join(format!("random-{i}")), bytes).unwrap();
            }
        }
        let files = std::fs::read_dir(folder).unwrap();
        let played = files.map(|file| decisions(&std::fs::read(file.unwrap().path()).unwrap())).count();
        assert!(played >= 16, "{played} files");
    }

    #[test]
    fn random_bytes_make_both_evaluators_decide_alike() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..3000 {
            let bytes: Vec<u8> = (0..random.usize(..400)).map(|_| random.u8(..)).collect();
            decisions(&bytes);
        }
    }
}
