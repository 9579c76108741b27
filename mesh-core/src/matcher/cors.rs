//! Answers to browsers' cross-origin questions (Fetch standard, "CORS protocol"), as Envoy's CORS filter
//! gives them.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::TextCondition;
use crate::policy::{Cors, StringMatch, StringMatcher};

/// A [`Cors`] policy, compiled.
#[derive(Debug)]
pub struct CorsRules {
    origins: Box<[Origin]>,
    forward_unmatched: bool,
    credentials: bool,
    methods: Allowed,
    headers: Allowed,
    // `None` = the header is not sent.
    expose: Option<HeaderValue>,
    max_age: Option<HeaderValue>,
}

/// What a preflight is told that it may.
#[derive(Debug)]
enum Allowed {
    /// The header is not sent.
    Unsaid,
    /// `*`: whatever it asks for. In words, for with credentials browsers take `*` for a name.
    Asked,
    Listed(HeaderValue),
}

#[derive(Debug)]
enum Origin {
    /// `*`.
    Any,
    Text(TextCondition),
}

/// What CORS makes of a request.
#[derive(Debug, PartialEq, Eq)]
pub enum CorsVerdict {
    /// Nothing: no browser asks, or its origin is not allowed.
    Pass,
    /// It is forwarded, and the answer gets these headers: see [`CorsRules::decorate`].
    Allow(HeaderValue),
    /// It is a preflight: the answer is 200 with these headers and no body.
    Answer(HeaderMap),
}

impl CorsRules {
    /// Compiles a policy. Text that cannot be a header value is left out of the answers.
    pub fn new(policy: &Cors) -> Self {
        let list = |items: &[String]| {
            let text = items.join(",");
            (!text.is_empty()).then(|| HeaderValue::try_from(text).ok()).flatten()
        };
        Self {
            origins: policy.allow_origins.iter().map(Origin::new).collect(),
            forward_unmatched: policy.forward_unmatched,
            credentials: policy.allow_credentials,
            methods: Allowed::new(list(&policy.allow_methods)),
            headers: Allowed::new(list(&policy.allow_headers)),
            expose: list(&policy.expose_headers),
            max_age: policy.max_age.map(|age| HeaderValue::from(age.as_secs())),
        }
    }

    /// Judges a request.
    pub fn judge(&self, method: &Method, headers: &HeaderMap) -> CorsVerdict {
        let Some(origin) = headers.get(header::ORIGIN).filter(|origin| !origin.is_empty()) else {
            return CorsVerdict::Pass;
        };
        let allowed = self.origins.iter().any(|allowed| allowed.holds(origin));
        let asked = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD);
        let preflight = *method == Method::OPTIONS && asked.is_some_and(|asked| !asked.is_empty());
        match (allowed, preflight) {
            (true, true) => CorsVerdict::Answer(self.preflight(origin, headers)),
            (true, false) => CorsVerdict::Allow(origin.clone()),
            // Without a header that allows it, the browser stops here.
            (false, true) if !self.forward_unmatched => CorsVerdict::Answer(HeaderMap::new()),
            (false, _) => CorsVerdict::Pass,
        }
    }

    fn preflight(&self, origin: &HeaderValue, asked: &HeaderMap) -> HeaderMap {
        let mut headers = HeaderMap::new();
        self.allow(origin, &mut headers);
        let methods = self.methods.of(asked.get(header::ACCESS_CONTROL_REQUEST_METHOD));
        set(&mut headers, header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let names = self.headers.of(asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS));
        set(&mut headers, header::ACCESS_CONTROL_ALLOW_HEADERS, names);
        set(&mut headers, header::ACCESS_CONTROL_MAX_AGE, self.max_age.as_ref());
        headers
    }

    /// Adds to an answer what lets a page of `origin` read it. What the application set is replaced.
    pub fn decorate(&self, origin: &HeaderValue, headers: &mut HeaderMap) {
        self.allow(origin, headers);
        set(headers, header::ACCESS_CONTROL_EXPOSE_HEADERS, self.expose.as_ref());
    }

    fn allow(&self, origin: &HeaderValue, headers: &mut HeaderMap) {
        set(headers, header::ACCESS_CONTROL_ALLOW_ORIGIN, Some(origin));
        let credentials = self.credentials.then(|| HeaderValue::from_static("true"));
        set(headers, header::ACCESS_CONTROL_ALLOW_CREDENTIALS, credentials.as_ref());
    }
}

impl Allowed {
    fn new(listed: Option<HeaderValue>) -> Self {
        match listed {
            None => Self::Unsaid,
            Some(all) if all == "*" => Self::Asked,
            Some(listed) => Self::Listed(listed),
        }
    }

    fn of<'a>(&'a self, asked: Option<&'a HeaderValue>) -> Option<&'a HeaderValue> {
        match self {
            Self::Unsaid => None,
            Self::Asked => asked,
            Self::Listed(listed) => Some(listed),
        }
    }
}

impl Origin {
    fn new(matcher: &StringMatcher) -> Self {
        match &matcher.pattern {
            StringMatch::Exact(text) if text == "*" => Self::Any,
            _ => Self::Text(TextCondition::new(matcher)),
        }
    }

    fn holds(&self, origin: &HeaderValue) -> bool {
        match self {
            Self::Any => true,
            Self::Text(text) => text.holds(origin.as_bytes()),
        }
    }
}

fn set(headers: &mut HeaderMap, name: HeaderName, value: Option<&HeaderValue>) {
    if let Some(value) = value {
        headers.insert(name, value.clone());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn policy(origin: StringMatch) -> Cors {
        Cors {
            allow_origins: vec![StringMatcher { pattern: origin, ignore_case: false }],
            allow_methods: vec!["GET".into(), "PUT".into()],
            allow_headers: vec!["x-one".into()],
            expose_headers: vec!["x-two".into(), "x-three".into()],
            max_age: Some(Duration::from_secs(600)),
            allow_credentials: true,
            forward_unmatched: true,
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    const PREFLIGHT: &[(&str, &str)] = &[("origin", "https://a.test"), ("access-control-request-method", "PUT")];

    #[test]
    fn a_preflight_of_an_allowed_origin_is_answered_with_what_is_allowed() {
        let rules = CorsRules::new(&policy(StringMatch::Suffix(".test".into())));
        let CorsVerdict::Answer(answer) = rules.judge(&Method::OPTIONS, &headers(PREFLIGHT)) else { panic!() };
        let want = headers(&[
            ("access-control-allow-origin", "https://a.test"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET,PUT"),
            ("access-control-allow-headers", "x-one"),
            ("access-control-max-age", "600"),
        ]);
        assert_eq!(answer, want);
        // What the policy does not name is not said.
        let bare = Cors { allow_origins: policy(StringMatch::Exact("*".into())).allow_origins, ..Cors::default() };
        let CorsVerdict::Answer(answer) = CorsRules::new(&bare).judge(&Method::OPTIONS, &headers(PREFLIGHT)) else {
            panic!()
        };
        assert_eq!(answer, headers(&[("access-control-allow-origin", "https://a.test")]));
    }

    #[test]
    fn a_preflight_that_may_anything_is_told_in_the_words_it_asks_with() {
        let all = || vec!["*".to_owned()];
        let policy = Cors {
            allow_methods: all(),
            allow_headers: all(),
            max_age: None,
            ..policy(StringMatch::Prefix("h".into()))
        };
        let asked = [PREFLIGHT, &[("access-control-request-headers", "x-one,x-two")]].concat();
        let CorsVerdict::Answer(answer) = CorsRules::new(&policy).judge(&Method::OPTIONS, &headers(&asked)) else {
            panic!()
        };
        let want = headers(&[
            ("access-control-allow-origin", "https://a.test"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "PUT"),
            ("access-control-allow-headers", "x-one,x-two"),
        ]);
        assert_eq!(answer, want);
    }

    #[test]
    fn a_preflight_of_a_stranger_is_forwarded_or_answered_with_nothing() {
        let mut policy = policy(StringMatch::Exact("https://b.test".into()));
        assert_eq!(CorsRules::new(&policy).judge(&Method::OPTIONS, &headers(PREFLIGHT)), CorsVerdict::Pass);
        policy.forward_unmatched = false;
        let answer = CorsRules::new(&policy).judge(&Method::OPTIONS, &headers(PREFLIGHT));
        assert_eq!(answer, CorsVerdict::Answer(HeaderMap::new()));
    }

    #[test]
    fn an_ordinary_request_is_forwarded_and_its_answer_decorated_if_the_origin_is_allowed() {
        let rules = CorsRules::new(&policy(StringMatch::Exact("https://a.test".into())));
        let origin = HeaderValue::from_static("https://a.test");
        for (method, asking, want) in [
            (Method::GET, &[("origin", "https://a.test")][..], CorsVerdict::Allow(origin.clone())),
            // An OPTIONS of the application's own.
            (Method::OPTIONS, &[("origin", "https://a.test")], CorsVerdict::Allow(origin.clone())),
            (Method::PUT, PREFLIGHT, CorsVerdict::Allow(origin.clone())),
            (Method::GET, &[("origin", "https://c.test")], CorsVerdict::Pass),
            (Method::GET, &[("origin", "")], CorsVerdict::Pass),
            (Method::GET, &[], CorsVerdict::Pass),
        ] {
            assert_eq!(rules.judge(&method, &headers(asking)), want, "{method} {asking:?}");
        }
        let mut answer = headers(&[("access-control-allow-origin", "*"), ("x-own", "1")]);
        rules.decorate(&origin, &mut answer);
        let want = headers(&[
            ("access-control-allow-origin", "https://a.test"),
            ("access-control-allow-credentials", "true"),
            ("access-control-expose-headers", "x-two,x-three"),
            ("x-own", "1"),
        ]);
        assert_eq!(answer, want);
    }
}
