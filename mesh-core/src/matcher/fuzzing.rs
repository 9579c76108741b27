//! Entry points for the fuzzer and for the replay of its corpora; not a part of the interface.
//!
//! Bytes choose matchers, routes and what they look at, or are an authority; what is decided about them is what the plain
//! matcher decides.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::host::HostIndex;
use super::{HeaderCondition, RequestView, RouteTable, reference};
use crate::id::Workload;
use crate::policy::{
    Domain, Forward, HeaderKey, HeaderMatch, HeaderMatcher, HeaderPolicy, PathMatch, Pattern, QueryMatch, QueryMatcher,
    Route, RouteAction, RouteConfiguration, RouteMatch, StringMatch, StringMatcher, VirtualHost,
};
use crate::target::normalize_authority;

const NAMES: [&str; 10] =
    ["x-role", "x_role", "x-other", "x-bin", "host", "te", ":authority", ":method", ":path", ":scheme"];
const SENT: [&str; 5] = ["x-role", "x_role", "x-other", "x-bin", "te"];
const TEXTS: [&str; 10] = ["", "a", "admin", "ADMIN", "user,admin", "a.test", "/admin?x=1", "GET", "3", " 3 "];
const PATTERNS: [&str; 8] =
    ["a.*", ".*", "[a-z,]+", "(?i)admin|user", "\u{e4}?", "(?s).{3}", "[^A-Z]+", "A.*Test|[^a-z]{2,}"];
const ELEMENTS: [&str; 10] = ["a", "A", "b", "ab", "/", "?", "a=1", "&", "ä", "."];
const DOMAINS: [&str; 12] =
    ["*", "a*", "a.test", "a.test:80", "*.test", "*-b.test", "b.*", "*.test:81", "[::1]", "127.0.0.1", "x.*", "*x"];

/// Decides about a request, and about an answer, by a header matcher.
///
/// # Panics
/// The two matchers disagree, or a rule for the header is surer of itself than of what may be.
pub fn headers(bytes: &[u8]) {
    let mut choose = Choose(bytes);
    let matcher = choose.matcher();
    let mut headers = HeaderMap::new();
    for _ in 0..choose.below(4) {
        let name = HeaderName::from_static(SENT[choose.below(SENT.len())]);
        if let Ok(value) = HeaderValue::from_bytes(&choose.text()) {
            headers.append(name, value);
        }
    }
    let method = if choose.flag() { Method::GET } else { Method::POST };
    let (authority, path) = (String::from_utf8(choose.text()), String::from_utf8(choose.text()));
    let request = RequestView {
        authority: &authority.unwrap_or_default(),
        method: &method,
        path_and_query: &path.unwrap_or_default(),
        scheme: if choose.flag() { "http" } else { "" },
        headers: &headers,
        draw: &|| 0,
    };
    let condition = HeaderCondition::new(&matcher);
    let holds = condition.holds(&request);
    assert_eq!(holds, reference::header_matches(&matcher, &request), "{matcher:?} {headers:?}");
    let of_answer = RequestView { authority: "", method: &Method::GET, path_and_query: "", scheme: "", ..request };
    let of_request = !matches!(&matcher.name, HeaderKey::Header(name) if name != http::header::HOST);
    if !of_request {
        assert_eq!(condition.holds_response(&headers), reference::header_matches(&matcher, &of_answer), "{matcher:?}");
    }
    let (surely, maybe) = HeaderCondition::for_rbac(&matcher).readings(&request);
    assert!(maybe || !surely, "{matcher:?} {headers:?}: sure of what may not be");
    if matches!(&matcher.name, HeaderKey::Header(name) if name == http::header::TE) {
        return;
    }
    // All values joined are one reading, each value alone is one.
    let alone = |(name, value): (&HeaderName, &HeaderValue)| HeaderMap::from_iter([(name.clone(), value.clone())]);
    let is_about = |name: &HeaderName| matches!(&matcher.name, HeaderKey::Header(own) if own == name);
    let each = headers.iter().filter(|(name, _)| is_about(name)).map(alone);
    for headers in each.chain([headers.clone()]) {
        let holds = reference::header_matches(&matcher, &RequestView { headers: &headers, ..request });
        assert!(maybe || !holds, "{matcher:?} {headers:?}: it holds, and no rule sees how");
        assert!(holds || !surely, "{matcher:?} {headers:?}: it does not hold, and a rule is sure of it");
    }
}

/// Looks a request up in a table of routes, few or so many that the table has an index.
///
/// # Panics
/// The plain matcher finds another route.
pub fn routes(bytes: &[u8]) {
    let mut choose = Choose(bytes);
    let routes: Vec<Route> = (0..choose.below(40)).map(|_| choose.route()).collect();
    let host = |(i, domain): (usize, &&str)| VirtualHost {
        name: i.to_string(),
        domains: vec![Domain::new(domain).expect("a domain")],
        routes: if i % 2 == 0 { routes.clone() } else { routes.iter().rev().cloned().collect() },
        headers: HeaderPolicy::default(),
        retry: None,
    };
    let virtual_hosts = DOMAINS.iter().skip(choose.below(2)).take(3).enumerate().map(host).collect();
    let headers = HeaderPolicy::default();
    let config = RouteConfiguration { name: "r".to_owned(), virtual_hosts, headers, retry_budget: None };
    let (caller, config) = (Workload::default(), Arc::new(config));
    let table = RouteTable::compile(&config, 80, &caller);
    let admin = HeaderMap::from_iter([(HeaderName::from_static("x-role"), HeaderValue::from_static("admin"))]);
    let (nobody, methods) = (HeaderMap::new(), [Method::GET, Method::POST]);
    for _ in 0..4 {
        let (draw, path) = (u32::from(choose.flag()) * 600_000, choose.path());
        let request = RequestView {
            authority: ["a.test", "b.test:80", "abc", "x"][choose.below(4)],
            method: &methods[choose.below(2)],
            path_and_query: &path,
            scheme: "http",
            headers: if choose.flag() { &admin } else { &nobody },
            draw: &|| draw,
        };
        let found = table.route(&request).map(|route| (route.virtual_host, route.index()));
        assert_eq!(found, reference::route(&config, 80, &caller, &request), "{path:?}: {config:#?}");
    }
}

/// Looks an authority up among virtual hosts.
///
/// # Panics
/// The two matchers find different ones.
pub fn host(authority: &str) {
    let host = |(i, domain): (usize, &&str)| VirtualHost {
        name: i.to_string(),
        domains: vec![Domain::new(domain).expect("a domain")],
        routes: Vec::new(),
        headers: HeaderPolicy::default(),
        retry: None,
    };
    for skipped in 0..2 {
        // With one that takes everything, and without.
        let hosts: Vec<VirtualHost> = DOMAINS.iter().skip(skipped).enumerate().map(host).collect();
        let found = HostIndex::new(&hosts).find(authority).map(|hit| hit.virtual_host);
        if normalize_authority(authority).is_ok() {
            assert_eq!(found, reference::virtual_host(&hosts, authority), "{authority:?}");
        }
    }
}

/// Choices from bytes; the first of everything once they have run out.
struct Choose<'a>(&'a [u8]);

impl Choose<'_> {
    fn below(&mut self, bound: usize) -> usize {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        usize::from(*first) % bound
    }

    fn flag(&mut self) -> bool {
        self.below(2) == 1
    }

    /// One of the list, or the next bytes as they are.
    fn text(&mut self) -> Vec<u8> {
        let choice = self.below(TEXTS.len() + 8);
        if let Some(text) = TEXTS.get(choice) {
            return text.as_bytes().to_vec();
        }
        let (text, rest) = self.0.split_at((choice - TEXTS.len()).min(self.0.len()));
        self.0 = rest;
        text.to_vec()
    }

    fn path(&mut self) -> String {
        (0..self.below(5)).map(|_| ELEMENTS[self.below(ELEMENTS.len())]).fold("/".to_owned(), |path, e| path + e)
    }

    fn route(&mut self) -> Route {
        let path = match self.below(5) {
            0 => PathMatch::Exact(self.path()),
            1 => PathMatch::Prefix(self.path()),
            2 | 3 => PathMatch::PathSeparatedPrefix(self.path()),
            _ => PathMatch::Regex(Pattern::new(["/a.*", "/[ab]+", "(?i)/A/b"][self.below(3)]).expect("a pattern")),
        };
        let mut matcher = RouteMatch { path, case_sensitive: self.below(4) > 0, ..RouteMatch::any() };
        match self.below(6) {
            0 => matcher.headers.push(self.matcher()),
            1 => matcher.methods.push("GET".to_owned()),
            2 => matcher.query.push(QueryMatcher { name: "a".to_owned(), value: QueryMatch::Present(self.flag()) }),
            3 => matcher.fraction = Some(crate::policy::PerMillion::new(500_000)),
            4 => matcher.port = Some(80 + u16::from(self.flag())),
            _ => {}
        }
        Route::new(matcher, RouteAction::Forward(Box::new(Forward::to("c".into()))))
    }

    fn matcher(&mut self) -> HeaderMatcher {
        let name = HeaderKey::parse(NAMES[self.below(NAMES.len())]).expect("a header's name");
        let value = match self.below(5) {
            0 => HeaderMatch::Present(self.flag()),
            1 => HeaderMatch::Range { start: i64::from(self.flag()), end: i64::from(self.flag()) * 5 },
            _ => HeaderMatch::Text(self.condition()),
        };
        HeaderMatcher { name, value, invert: self.flag(), treat_missing_as_empty: self.flag() }
    }

    fn condition(&mut self) -> StringMatcher {
        let kind = self.below(5);
        let pattern = if kind == 4 {
            StringMatch::Regex(Pattern::new(PATTERNS[self.below(PATTERNS.len())]).expect("a pattern"))
        } else {
            let text = String::from_utf8_lossy(&self.text()).into_owned();
            [StringMatch::Exact, StringMatch::Prefix, StringMatch::Suffix, StringMatch::Contains][kind](text)
        };
        StringMatcher { pattern, ignore_case: self.flag() }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The corpora of the fuzzer. `UPDATE_CORPUS=1` writes their seeds anew; what a fuzzer finds is added by hand and stays.
    #[test]
    fn the_corpora_are_replayed() {
        for (target, play) in [("headers", headers as fn(&[u8])), ("route_table", routes)] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
            if std::env::var_os("UPDATE_CORPUS").is_some() {
                std::fs::create_dir_all(&folder).unwrap();
                let mut random = fastrand::Rng::with_seed(28);
                for i in 0..16 {
                    let bytes: Vec<u8> = (0..16 << (i % 4)).map(|_| random.u8(..)).collect();
                    std::fs::write(folder.join(format!("random-{i}")), bytes).unwrap();
                }
            }
            let files = std::fs::read_dir(folder).unwrap();
            let played = files.map(|file| play(&std::fs::read(file.unwrap().path()).unwrap())).count();
            assert!(played >= 16, "{played} files of {target}");
        }
    }

    #[test]
    fn random_tables_route_as_the_plain_matcher_routes() {
        let mut random = fastrand::Rng::with_seed(74);
        for _ in 0..1_000 {
            let bytes: Vec<u8> = (0..random.usize(..300)).map(|_| random.u8(..)).collect();
            routes(&bytes);
        }
    }

    #[test]
    fn random_headers_are_judged_as_the_plain_matcher_judges_them() {
        let mut random = fastrand::Rng::with_seed(63);
        for _ in 0..4_000 {
            let bytes: Vec<u8> = (0..random.usize(..80)).map(|_| random.u8(..)).collect();
            headers(&bytes);
        }
    }

    #[test]
    fn random_authorities_find_the_host_that_the_plain_matcher_finds() {
        const PIECES: [&str; 12] = ["a", "b", ".", ".test", ":80", ":81", ":", "[::1]", "-b", "X", "127.0.0.1", "x"];
        let mut random = fastrand::Rng::with_seed(27);
        for _ in 0..5_000 {
            let text: String = (0..random.usize(..5)).map(|_| PIECES[random.usize(..PIECES.len())]).collect();
            host(&text);
        }
    }
}
