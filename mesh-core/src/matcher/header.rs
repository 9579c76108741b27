//! A compiled [`HeaderMatcher`] (gRFC A28).

use http::header::COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

use super::{RequestView, TextCondition, authority};
use crate::policy::{HeaderKey, HeaderMatch, HeaderMatcher};
use crate::target::without_port;

/// A [`HeaderMatcher`] whose regex is compiled.
#[derive(Debug)]
pub struct HeaderCondition {
    source: Source,
    test: Test,
    invert: bool,
    missing_is_empty: bool,
}

#[derive(Debug)]
enum Source {
    Header(HeaderName),
    Method,
    Scheme,
    Authority,
    Path,
    /// `-bin` headers are not text and count as absent (gRFC A28).
    Binary,
}

impl Source {
    fn of(key: &HeaderKey) -> Self {
        match key {
            HeaderKey::Header(name) if name.as_str().ends_with("-bin") => Self::Binary,
            // One thing under two names, as in Envoy: HTTP/1 has `Host`, HTTP/2 `:authority`.
            HeaderKey::Header(name) if name == http::header::HOST => Self::Authority,
            HeaderKey::Header(name) => Self::Header(name.clone()),
            HeaderKey::Method => Self::Method,
            HeaderKey::Scheme => Self::Scheme,
            HeaderKey::Authority => Self::Authority,
            HeaderKey::Path => Self::Path,
        }
    }

    /// `te` counts as absent to rules of filters (gRFC A41).
    fn of_filters(key: &HeaderKey) -> Self {
        match Self::of(key) {
            Self::Header(name) if name == http::header::TE => Self::Binary,
            source => source,
        }
    }

    /// Whether the request has more than one reading of it: several values, or one under a name that is the same to many an
    /// application.
    fn has_readings(&self, request: &RequestView<'_>) -> bool {
        let Self::Header(name) = self else { return false };
        let mut own = 0;
        request.headers.iter().any(|(other, _)| {
            own += u32::from(other == name);
            own > 1 || are_twins(name, other)
        })
    }
}

/// A header whose value is looked up.
#[derive(Debug)]
pub(super) struct HeaderInput(Source);

impl HeaderInput {
    pub(super) fn new(key: &HeaderKey) -> Self {
        Self(Source::of_filters(key))
    }

    /// Whether capitals and small letters are the same in it.
    pub(super) fn ignores_case(&self) -> bool {
        matches!(self.0, Source::Authority)
    }

    /// Whether the request has more than one reading of it.
    pub(super) fn has_readings(&self, request: &RequestView<'_>) -> bool {
        self.0.has_readings(request)
    }

    /// Looks at the value: of several all joined; `None` if it is not there.
    pub(super) fn look<R>(&self, request: &RequestView<'_>, look: impl FnOnce(Option<&[u8]>) -> R) -> R {
        let text = match &self.0 {
            Source::Header(name) => return look_at(name, request.headers, look),
            Source::Method => request.method.as_str(),
            Source::Scheme => request.scheme,
            Source::Authority => request.authority,
            Source::Path => request.path_and_query,
            Source::Binary => "",
        };
        look((!text.is_empty()).then_some(text.as_bytes()))
    }

    /// The same of each reading that it has.
    pub(super) fn look_at_readings(&self, request: &RequestView<'_>, mut look: impl FnMut(Option<&[u8]>)) {
        let Source::Header(name) = &self.0 else { return self.look(request, look) };
        look_at(name, request.headers, &mut look);
        let twins = request.headers.keys().filter(|other| are_twins(name, other));
        for name in std::iter::once(name).chain(twins) {
            look_at(name, request.headers, |joined| {
                if joined.is_some() {
                    look(joined)
                }
            });
            for value in request.headers.get_all(name) {
                look(Some(value.as_bytes()));
                look(Some(value.as_bytes().trim_ascii()));
            }
        }
    }
}

#[derive(Debug)]
enum Test {
    Text(TextCondition),
    Range { start: i64, end: i64 },
    Present(bool),
}

impl HeaderCondition {
    /// Compiles a matcher.
    pub fn new(policy: &HeaderMatcher) -> Self {
        let source = Source::of(&policy.name);
        let test = match &policy.value {
            HeaderMatch::Text(text) if matches!(source, Source::Authority) => Test::Text(authority::condition(text)),
            HeaderMatch::Text(text) => Test::Text(TextCondition::new(text)),
            HeaderMatch::Range { start, end } => Test::Range { start: *start, end: *end },
            HeaderMatch::Present(wanted) => Test::Present(*wanted),
        };
        Self { source, test, invert: policy.invert, missing_is_empty: policy.treat_missing_as_empty }
    }

    /// What a request's values say: whether it holds for every value as it was sent and for all of them joined, and whether
    /// there is any reading (one value, all of them joined, one element of a list) for which it holds. Joining alone,
    /// which routes do (gRFC A28), would let a second value hide the first from a rule that denies. A header whose name
    /// differs in `_` for `-` alone is one more reading: to many an application the two are one.
    pub(crate) fn readings(&self, request: &RequestView<'_>) -> (bool, bool) {
        let Source::Header(name) = &self.source else {
            if self.asks_in_vain(request) {
                return (false, true);
            }
            let holds = self.holds(request);
            // A port makes no other host of it: a rule for the host alone may mean it as well.
            let bare = matches!(self.source, Source::Authority).then(|| without_port(request.authority)).flatten();
            return match bare.map(|bare| self.decide(Some(bare.as_bytes()))) {
                Some(bare) if self.invert => (holds && bare, holds),
                Some(bare) => (holds, holds || bare),
                None => (holds, holds),
            };
        };
        let (mut every, mut some) = self.readings_of(name, request.headers);
        for twin in request.headers.keys().filter(|other| are_twins(name, other)) {
            let (all, any) = self.readings_of(twin, request.headers);
            (every, some) = (every && all, some || any);
        }
        (every, some)
    }

    /// Whether the request has more than one reading of it: several values, or one under a name that is the same to many an
    /// application.
    pub(super) fn has_readings(&self, request: &RequestView<'_>) -> bool {
        self.source.has_readings(request)
    }

    fn readings_of(&self, name: &HeaderName, headers: &HeaderMap) -> (bool, bool) {
        let mut values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
        let presence = matches!(self.test, Test::Present(_));
        let Some(first) = values.next().filter(|_| !presence) else {
            let holds = self.holds_header(name, headers);
            return (holds, holds);
        };
        let mut values = std::iter::once(first).chain(values).peekable();
        let (mut every, mut some, mut several) = (true, false, false);
        while let Some(value) = values.next() {
            several |= values.peek().is_some();
            if self.is_beyond(value) {
                (every, some) = (false, true);
                continue;
            }
            let holds = self.tests(value);
            every &= holds;
            some = some || holds || self.tests_within(value, separator(name)[0]);
        }
        if several {
            // The joined form, which is what other engines look at.
            let joined = self.holds_header(name, headers) != self.invert;
            (every, some) = (every && joined, some || joined);
        }
        if self.invert { (!some, !every) } else { (every, some) }
    }

    /// The test of what a value is to who takes spaces away or divides lists. HTTP/2 delivers spaces around a value as they are
    /// sent; HTTP/1.1 takes them away.
    fn tests_within(&self, value: &[u8], separator: u8) -> bool {
        let trimmed = value.trim_ascii();
        (trimmed.len() < value.len() && self.tests(trimmed))
            || (value.contains(&separator)
                && value.split(|b| *b == separator).any(|element| self.tests(element.trim_ascii())))
    }

    /// The condition of an RBAC rule: `te` counts as absent (gRFC A41).
    pub(crate) fn for_rbac(policy: &HeaderMatcher) -> Self {
        Self { source: Source::of_filters(&policy.name), ..Self::new(policy) }
    }

    /// Whether it asks for the authority or the path of a request that has none.
    fn asks_in_vain(&self, request: &RequestView<'_>) -> bool {
        match self.source {
            Source::Authority => request.authority.is_empty(),
            Source::Path => !(request.path_and_query.starts_with('/') || request.path_and_query == "*"),
            _ => false,
        }
    }

    /// Whether a request satisfies it.
    pub fn holds(&self, request: &RequestView<'_>) -> bool {
        let pseudo = |text: &str| self.decide((!text.is_empty()).then_some(text.as_bytes()));
        match &self.source {
            Source::Header(name) => self.holds_header(name, request.headers),
            Source::Method => pseudo(request.method.as_str()),
            Source::Scheme => pseudo(request.scheme),
            Source::Authority => pseudo(request.authority),
            Source::Path => pseudo(request.path_and_query),
            Source::Binary => self.decide(None),
        }
    }

    /// Whether an answer's headers satisfy it; the request's pseudo-headers are absent there.
    pub fn holds_response(&self, headers: &HeaderMap) -> bool {
        match &self.source {
            Source::Header(name) => self.holds_header(name, headers),
            _ => self.decide(None),
        }
    }

    fn holds_header(&self, name: &HeaderName, headers: &HeaderMap) -> bool {
        look_at(name, headers, |value| self.decide(value))
    }

    fn decide(&self, value: Option<&[u8]>) -> bool {
        if let Test::Present(wanted) = self.test {
            return (value.is_some() == wanted) != self.invert;
        }
        let Some(value) = value.or(self.missing_is_empty.then_some(b"")) else {
            return false;
        };
        self.tests(value) != self.invert
    }

    /// Whether a value is one of which the test cannot tell: a pattern is made of characters, and the value is none.
    fn is_beyond(&self, value: &[u8]) -> bool {
        matches!(&self.test, Test::Text(text) if text.is_pattern()) && std::str::from_utf8(value).is_err()
    }

    /// The test of a value that is there, not inverted.
    fn tests(&self, value: &[u8]) -> bool {
        match &self.test {
            Test::Text(text) => text.holds(value),
            Test::Range { start, end } => integer(value).is_some_and(|n| (*start..*end).contains(&n)),
            Test::Present(wanted) => *wanted,
        }
    }
}

/// Looks at the value of a header: of several all joined.
#[inline]
fn look_at<R>(name: &HeaderName, headers: &HeaderMap, look: impl FnOnce(Option<&[u8]>) -> R) -> R {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => look(first.map(|value| value.as_bytes())),
        Some(_) => {
            let mut joined = SmallVec::<[u8; 256]>::new();
            for (i, value) in headers.get_all(name).iter().enumerate() {
                if i > 0 {
                    joined.extend_from_slice(separator(name));
                }
                joined.extend_from_slice(value.as_bytes());
            }
            look(Some(&joined))
        }
    }
}

/// What stands between the values of a header where they are joined: HTTP/2 cuts cookies in pieces, and all of them are one
/// (RFC 9113, section 8.2.3).
pub(crate) fn separator(name: &HeaderName) -> &'static [u8] {
    if *name == COOKIE { b"; " } else { b"," }
}

/// Whether two names differ, and in `_` for `-` alone.
pub fn are_twins(one: &HeaderName, other: &HeaderName) -> bool {
    let (one, other) = (one.as_str().as_bytes(), other.as_str().as_bytes());
    let dash = |b: u8| if b == b'_' { b'-' } else { b };
    one.len() == other.len() && one != other && one.iter().zip(other).all(|(a, b)| dash(*a) == dash(*b))
}

/// Takes a header out, under each name by which an application may know it.
pub(crate) fn remove_header(headers: &mut HeaderMap, name: &HeaderName) {
    headers.remove(name);
    while let Some(twin) = headers.keys().find(|other| are_twins(name, other)).cloned() {
        headers.remove(twin);
    }
}

fn integer(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value.trim_ascii()).ok()?.parse().ok()
}
