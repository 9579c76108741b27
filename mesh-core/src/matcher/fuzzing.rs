//! Entry points for the fuzzer and for the replay of its corpora; not a part of the interface.
//!
//! Bytes choose header matchers and the headers that they look at, or are an authority; what is decided about them is what
//! the plain matcher decides.

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::host::HostIndex;
use super::{HeaderCondition, RequestView, reference};
use crate::policy::{
    Domain, HeaderKey, HeaderMatch, HeaderMatcher, HeaderPolicy, Pattern, StringMatch, StringMatcher, VirtualHost,
};
use crate::target::check_authority;

const NAMES: [&str; 10] =
    ["x-role", "x_role", "x-other", "x-bin", "host", "te", ":authority", ":method", ":path", ":scheme"];
const SENT: [&str; 5] = ["x-role", "x_role", "x-other", "x-bin", "te"];
const TEXTS: [&str; 10] = ["", "a", "admin", "ADMIN", "user,admin", "a.test", "/admin?x=1", "GET", "3", " 3 "];
const PATTERNS: [&str; 6] = ["a.*", ".*", "[a-z,]+", "(?i)admin|user", "\u{e4}?", "(?s).{3}"];
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
    let (reads_te, values) = match &matcher.name {
        HeaderKey::Header(name) => (name == http::header::TE, headers.get_all(name).iter().count()),
        _ => (false, 1),
    };
    // Of several values routes see all of them joined, rules each.
    if !reads_te && values < 2 {
        assert!(maybe || !holds, "{matcher:?} {headers:?}: it holds, and no rule sees how");
        assert!(holds || !surely, "{matcher:?} {headers:?}: it does not hold, and a rule is sure of it");
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
        if check_authority(authority).is_ok() {
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

    /// The corpus of the fuzzer. `UPDATE_CORPUS=1` writes its seeds anew; what a fuzzer finds is added by hand and stays.
    #[test]
    fn the_corpus_is_replayed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/headers");
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            let mut random = fastrand::Rng::with_seed(28);
            for i in 0..16 {
                let bytes: Vec<u8> = (0..16 << (i % 4)).map(|_| random.u8(..)).collect();
                std::fs::write(folder.join(format!("random-{i}")), bytes).unwrap();
            }
        }
        let files = std::fs::read_dir(folder).unwrap();
        let played = files.map(|file| headers(&std::fs::read(file.unwrap().path()).unwrap())).count();
        assert!(played >= 16, "{played} files");
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
