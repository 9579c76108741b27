//! Where tokens stand in a request: finding them, and taking them out.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::Refusal;
use crate::matcher::{RequestView, are_twins, cookies, decode, remove_header};
use crate::policy::JwtProvider;

/// A place that may hold a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Header {
        name: HeaderName,
        /// What stands before the token, in any case, without the blanks at its end.
        prefix: Box<str>,
        /// At least one blank has to follow the prefix.
        apart: bool,
    },
    Parameter(Box<str>),
    Cookie(Box<str>),
}

/// A token and the place where it was found.
#[derive(Debug)]
pub(super) struct Found<'p, 'r> {
    pub(super) place: &'p Place,
    pub(super) token: Cow<'r, str>,
}

impl Place {
    /// The places of a provider.
    pub(super) fn of(provider: &JwtProvider) -> Box<[Self]> {
        let headers = provider.from_headers.iter().map(|header| Self::header(header.name.clone(), &header.prefix));
        let parameters = provider.from_params.iter().map(|name| Self::Parameter(name.as_str().into()));
        let cookies = provider.from_cookies.iter().map(|name| Self::Cookie(name.as_str().into()));
        let places: Box<[Self]> = headers.chain(parameters).chain(cookies).collect();
        if places.is_empty() {
            let usual = [Self::header(header::AUTHORIZATION, "Bearer "), Self::Parameter("access_token".into())];
            return usual.into();
        }
        places
    }

    fn header(name: HeaderName, prefix: &str) -> Self {
        let word = prefix.trim_end();
        Self::Header { name, prefix: word.into(), apart: word.len() < prefix.len() && !word.is_empty() }
    }

    /// The token that stands here. An empty one is none.
    ///
    /// # Errors
    /// There is more than one value, or one that is no text.
    pub(super) fn find<'r>(&self, request: &RequestView<'r>) -> Result<Option<Cow<'r, str>>, Refusal> {
        let mut only = Only::default();
        match self {
            Self::Header { name, prefix, apart } => {
                for (_, value) in request.headers.iter().filter(|(other, _)| is_one(name, other)) {
                    let token = after(value.as_bytes(), prefix.as_bytes(), *apart);
                    only.see(token.map(|token| text(Cow::Borrowed(token))));
                }
            }
            Self::Parameter(name) => {
                for value in parameters(request.query()).filter(|(key, _)| is(key, name)).map(|(_, value)| value) {
                    only.see((!value.is_empty()).then(|| text(decode(value))));
                }
            }
            Self::Cookie(name) => {
                for value in cookies(request.headers, name) {
                    only.see((!value.is_empty()).then(|| text(Cow::Borrowed(value))));
                }
            }
        }
        only.token()
    }
}

/// The values of one place: one that holds a token is the only one.
#[derive(Default)]
struct Only<'r> {
    seen: usize,
    token: Option<Option<Cow<'r, str>>>,
}

impl<'r> Only<'r> {
    /// Sees a value: without a token, with one, or with one that is no text.
    fn see(&mut self, token: Option<Option<Cow<'r, str>>>) {
        self.seen += 1;
        self.token = self.token.take().or(token);
    }

    fn token(self) -> Result<Option<Cow<'r, str>>, Refusal> {
        match self.token {
            None => Ok(None),
            Some(_) if self.seen > 1 => Err(Refusal::Several),
            Some(None) => Err(Refusal::Form),
            Some(token) => Ok(token),
        }
    }
}

/// What follows a prefix. The names of authentication schemes have no case (RFC 9110, 11.1): an application may find a
/// token behind `bearer`, so it is found here.
fn after<'v>(value: &'v [u8], prefix: &[u8], apart: bool) -> Option<&'v [u8]> {
    let (head, rest) = value.trim_ascii_start().split_at_checked(prefix.len())?;
    if !head.eq_ignore_ascii_case(prefix) || (apart && !rest.first().is_some_and(u8::is_ascii_whitespace)) {
        return None;
    }
    let token = rest.trim_ascii();
    (!token.is_empty()).then_some(token)
}

fn text(bytes: Cow<'_, [u8]>) -> Option<Cow<'_, str>> {
    match bytes {
        Cow::Borrowed(bytes) => std::str::from_utf8(bytes).ok().map(Cow::Borrowed),
        Cow::Owned(bytes) => String::from_utf8(bytes).ok().map(Cow::Owned),
    }
}

fn parameters(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn is(key: &str, name: &str) -> bool {
    *decode(key) == *name.as_bytes()
}

/// A path and query without what stands at these places; `None` = it has nothing of it.
pub(super) fn without_parameters(path_and_query: &str, places: &[Place]) -> Option<String> {
    let (path, query) = path_and_query.split_once('?')?;
    let goes = |pair: &str| {
        let key = pair.split_once('=').map_or(pair, |(key, _)| key);
        places.iter().any(|place| matches!(place, Place::Parameter(name) if is(key, name)))
    };
    if !query.split('&').any(goes) {
        return None;
    }
    let mut out = path.to_owned();
    for pair in query.split('&').filter(|pair| !goes(pair)) {
        out.push(if out.len() == path.len() { '?' } else { '&' });
        out.push_str(pair);
    }
    Some(out)
}

/// Takes what stands at these places out of the headers.
pub(super) fn remove(headers: &mut HeaderMap, places: &[Place]) {
    let mut cookies: Vec<&str> = Vec::new();
    for place in places {
        match place {
            Place::Header { name, .. } => remove_header(headers, name),
            Place::Cookie(name) => cookies.push(name),
            Place::Parameter(_) => {}
        }
    }
    if !cookies.is_empty() {
        remove_cookies(headers, &cookies);
    }
}

/// Keeps the values of headers out of what is printed and indexed.
pub(super) fn hide(headers: &mut HeaderMap, names: &[HeaderName]) {
    if names.is_empty() {
        return;
    }
    for (_, value) in headers.iter_mut().filter(|(name, _)| names.iter().any(|secret| is_one(secret, name))) {
        value.set_sensitive(true);
    }
}

/// Whether two names are one to what reads headers as CGI does.
fn is_one(name: &HeaderName, other: &HeaderName) -> bool {
    name == other || are_twins(name, other)
}

fn remove_cookies(headers: &mut HeaderMap, names: &[&str]) {
    let goes = |pair: &[u8]| {
        let key = pair.split(|b| *b == b'=').next().unwrap_or_default().trim_ascii();
        names.iter().any(|name| name.as_bytes() == key)
    };
    let left: Vec<HeaderValue> = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| {
            let pairs = value.as_bytes().split(|b| *b == b';').filter(|pair| !goes(pair));
            let kept = pairs.map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty()).collect::<Vec<_>>();
            // A part of a header's value is one again.
            (!kept.is_empty()).then(|| HeaderValue::from_bytes(&kept.join(&b"; "[..])).ok()).flatten()
        })
        .collect();
    headers.remove(header::COOKIE);
    for mut value in left {
        // As all of it was.
        value.set_sensitive(true);
        headers.append(header::COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn find(place: &Place, path: &str, headers: &[(&'static str, &str)]) -> Result<Option<String>, Refusal> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let request = RequestView {
            authority: "",
            method: &Method::GET,
            path_and_query: path,
            scheme: "http",
            headers: &map,
            draw: &|| 0,
        };
        Ok(place.find(&request)?.map(Cow::into_owned))
    }

    #[test]
    fn a_header_holds_a_token_behind_its_prefix() {
        let bearer = Place::header(header::AUTHORIZATION, "Bearer ");
        for (value, want) in [
            ("Bearer t", Some("t")),
            ("bearer t", Some("t")),
            ("BEARER \t t", Some("t")),
            ("Bearer a, Bearer b", Some("a, Bearer b")),
            ("Bearer", None),
            ("Bearert", None),
            ("Basic t", None),
            ("", None),
        ] {
            let found = find(&bearer, "/", &[("authorization", value)]);
            assert_eq!(found, Ok(want.map(str::to_owned)), "{value}");
        }
        let bare = Place::header(HeaderName::from_static("x-jwt"), "");
        assert_eq!(find(&bare, "/", &[("x-jwt", " t ")]), Ok(Some("t".to_owned())));
        assert_eq!(find(&bare, "/", &[("x-jwt", "é")]), Ok(Some("é".to_owned())));
        assert_eq!(find(&bare, "/", &[("x_jwt", "t")]), Ok(Some("t".to_owned())), "one name to CGI");
        assert_eq!(find(&bare, "/", &[("x-jwt", "t"), ("x_jwt", "u")]), Err(Refusal::Several));
        let two = |a, b| find(&bearer, "/", &[("authorization", a), ("authorization", b)]);
        assert_eq!(two("Bearer t", "Bearer t"), Err(Refusal::Several));
        assert_eq!(two("Basic t", "Bearer t"), Err(Refusal::Several));
        assert_eq!(two("Basic t", "Digest t"), Ok(None));
    }

    #[test]
    fn a_parameter_and_a_cookie_hold_one() {
        let parameter = Place::Parameter("access_token".into());
        for (path, want) in [
            ("/?a=b&access_token=t", Ok(Some("t"))),
            ("/?access%5Ftoken=%74", Ok(Some("t"))),
            ("/?access_token", Ok(None)),
            ("/?access_token=%ff", Err(Refusal::Form)),
            ("/?access_token=t&access_token=t", Err(Refusal::Several)),
            ("/?access_token&access_token=t", Err(Refusal::Several)),
            ("/access_token=t", Ok(None)),
        ] {
            assert_eq!(find(&parameter, path, &[]), want.map(|token| token.map(str::to_owned)), "{path}");
        }
        let cookie = Place::Cookie("s".into());
        assert_eq!(find(&cookie, "/", &[("cookie", "a=b; s=t")]), Ok(Some("t".to_owned())));
        assert_eq!(find(&cookie, "/", &[("cookie", "s=t"), ("cookie", "s=u")]), Err(Refusal::Several));
        assert_eq!(find(&cookie, "/", &[("cookie", "s=; ss=t")]), Ok(None));
    }

    #[test]
    fn what_is_taken_out_leaves_the_rest_as_it_was() {
        let places = [Place::Parameter("t".into()), Place::Cookie("s".into())];
        for (path, want) in [
            ("/a?t=1", Some("/a")),
            ("/a?t=1&b=2&%74=3&c", Some("/a?b=2&c")),
            ("/a?b&&t", Some("/a?b&")),
            ("/a?b=t", None),
            ("/t", None),
        ] {
            assert_eq!(without_parameters(path, &places).as_deref(), want, "{path}");
        }
        let mut headers = HeaderMap::new();
        for value in ["a=b;s=1; c=\"d\"", "s=2", "x"] {
            headers.append("cookie", HeaderValue::from_static(value));
        }
        remove(&mut headers, &places);
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=b; c=\"d\"", "x"]);
        assert!(headers.get_all("cookie").iter().all(HeaderValue::is_sensitive), "what is left is as secret (S92)");
    }
}
