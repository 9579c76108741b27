//! What a filter makes of requests with tokens in every place.

use http::{Method, Request};

use super::*;
use crate::jwt::{Authenticator, Token};
use crate::matcher::RequestView;
use crate::policy::{
    JwtAuthentication, JwtClaimHeader, JwtHeader, JwtRequirement, JwtRule, PathMatch, RouteMatch, StringMatcher,
};

/// What became of a request: its tokens' principals, its target and its headers.
type Outcome = Result<(Vec<String>, String, Vec<String>), Refusal>;

fn get(target: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let request = Request::get(target).header("host", "a.test");
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value)).body(()).unwrap()
}

fn judge(filter: &JwtAuthentication, request: Request<()>) -> Outcome {
    let (tokens, request) = passed(&Authenticator::new(filter), request)?;
    let principal = |token: &Token| format!("{} {}", token.provider, token.claims.principal().unwrap_or("-"));
    let headers = request.headers().iter().filter(|(name, _)| *name != "host");
    let headers = headers.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
    Ok((tokens.iter().map(principal).collect(), request.uri().to_string(), headers.collect()))
}

fn passed(authenticator: &Authenticator, mut request: Request<()>) -> Result<(Vec<Token>, Request<()>), Refusal> {
    let uri = request.uri().clone();
    let view = RequestView {
        authority: "a.test",
        method: request.method(),
        path_and_query: uri.path_and_query().map_or("", |path| path.as_str()),
        scheme: "http",
        headers: request.headers(),
        draw: &|| 0,
    };
    let passed = authenticator.judge(&view, Duration::from_secs(NOW))?;
    let tokens = authenticator.apply(passed, &mut request)?;
    Ok((tokens, request))
}

fn passes(filter: &JwtAuthentication, request: Request<()>) -> Result<(), Refusal> {
    judge(filter, request).map(drop)
}

fn of(issuer: &Issuer, name: &str) -> JwtProvider {
    JwtProvider {
        audiences: vec!["shop".to_owned()],
        ..JwtProvider::new(format!("https://{name}.test"), JwtKeys::Inline(issuer.jwks.clone()))
    }
}

fn token(issuer: &Issuer, name: &str) -> String {
    issuer.token(header(), with(claims(), "iss", json!(format!("https://{name}.test"))))
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

fn provider(name: &str) -> JwtRequirement {
    JwtRequirement::Provider { name: name.to_owned(), audiences: Vec::new() }
}

fn filter(providers: &[(&str, &JwtProvider)], requirement: JwtRequirement) -> JwtAuthentication {
    let providers = providers.iter().map(|(name, provider)| ((*name).to_owned(), (*provider).clone()));
    let rules = vec![JwtRule { matcher: RouteMatch::any(), requirement: Some(requirement) }];
    JwtAuthentication { rules, ..JwtAuthentication::optional("jwt", providers) }
}

#[test]
fn what_holds_a_token_or_tells_of_one_is_nobodys_to_print() {
    let issuer = Issuer::new();
    let header = JwtHeader { name: "x-jwt".parse().unwrap(), prefix: String::new() };
    let kept = JwtProvider {
        from_headers: vec![header],
        payload_header: Some("x-payload".parse().unwrap()),
        claim_headers: vec![JwtClaimHeader { name: "x-issuer".parse().unwrap(), claim: "iss".into() }],
        forward: true,
        ..of(&issuer, "a")
    };
    let authenticator = Authenticator::new(&filter(&[("a", &kept)], provider("a")));
    let token = token(&issuer, "a");
    let mut request = get("/", &[("x-jwt", &token), ("x-other", "seen")]);
    let view = RequestView {
        authority: "a.test",
        method: &Method::GET,
        path_and_query: "/",
        scheme: "http",
        headers: &request.headers().clone(),
        draw: &|| 0,
    };
    let passed = authenticator.judge(&view, Duration::from_secs(NOW)).unwrap();
    assert!(format!("{request:?}").contains(&token), "the control: before, it is printed");
    authenticator.apply(passed, &mut request).unwrap();
    let sensitive = |name: &str| request.headers()[name].is_sensitive();
    let names = ["x-jwt", "x-payload", "x-issuer", "x-other", "host"];
    assert_eq!(names.map(sensitive), [true, true, true, false, false]);
    let printed = format!("{request:?}");
    assert!(!printed.contains(token.split('.').nth(1).unwrap()) && !printed.contains("https://a.test"), "{printed}");
    // Where nothing was demanded of it as well.
    let mut other = get("/", &[("x_jwt", &token)]);
    authenticator.apply(crate::jwt::Passed::default(), &mut other).unwrap();
    assert!(other.headers()["x_jwt"].is_sensitive(), "one name to CGI");
}

#[test]
fn s48_optional_means_no_token_at_all_and_not_one_that_does_not_hold() {
    let (a, stranger) = (Issuer::new(), Issuer::new());
    let istio = JwtRequirement::Any(vec![provider("a"), JwtRequirement::AllowMissing]);
    for demand in [JwtRequirement::AllowMissing, istio] {
        let filter = filter(&[("a", &of(&a, "a"))], demand);
        let with = |value: &str| judge(&filter, get("/", &[("authorization", value)]));
        assert_eq!(judge(&filter, get("/", &[])), Ok((vec![], "/".into(), vec![])));
        assert_eq!(with("Basic YTpi").unwrap().2, ["authorization: Basic YTpi"]);
        // The good one passes, is understood and taken out.
        let good = with(&bearer(&token(&a, "a"))).unwrap();
        assert_eq!(good, (vec!["a https://a.test/ann".to_owned()], "/".into(), vec![]));
        for (what, value, why) in [
            ("an issuer nobody knows (CVE-2021-21378)", bearer(&token(&stranger, "b")), Refusal::Issuer),
            ("a key nobody knows", bearer(&token(&stranger, "a")), Refusal::Signature),
            ("no token in form", "Bearer x".to_owned(), Refusal::Form),
            ("another case", format!("bearer {}", token(&stranger, "b")), Refusal::Issuer),
            ("two in one value", format!("{0}, {0}", bearer(&token(&a, "a"))), Refusal::Form),
        ] {
            assert_eq!(with(&value), Err(why), "{what}");
        }
    }
}

#[test]
fn s48_several_tokens_hold_all_or_none() {
    let (a, b) = (Issuer::new(), Issuer::new());
    let header = JwtHeader { name: "x-b".parse().unwrap(), prefix: String::new() };
    let elsewhere = JwtProvider { from_headers: vec![header], ..of(&b, "b") };
    let providers: [(&str, &JwtProvider); 2] = [("a", &of(&a, "a")), ("b", &elsewhere)];
    let optional = JwtRequirement::Any(vec![provider("a"), JwtRequirement::AllowMissing, provider("b")]);
    for demand in [JwtRequirement::AllowMissing, optional] {
        hold_all_or_none(&filter(&providers, demand), &token(&a, "a"), &token(&b, "b"));
    }
}

fn hold_all_or_none(filter: &JwtAuthentication, ta: &str, tb: &str) {
    let two = get("/", &[("authorization", &bearer(ta)), ("x-b", tb)]);
    assert_eq!(judge(filter, two).unwrap().0, ["a https://a.test/ann", "b https://b.test/ann"]);
    for (what, request, why) in [
        ("two headers", get("/", &[("authorization", &bearer(ta)), ("authorization", "Basic x")]), Refusal::Several),
        ("the same twice", get("/", &[("x-b", tb), ("x-b", tb)]), Refusal::Several),
        ("one that does not hold", get("/", &[("authorization", &bearer(ta)), ("x-b", "x")]), Refusal::Form),
        ("a bad one in the query", get("/?access_token=x", &[("authorization", &bearer(ta))]), Refusal::Form),
        ("two in the query", get(&format!("/?access_token={ta}&access_token=x"), &[]), Refusal::Several),
        ("at another's place", get("/", &[("x-b", ta)]), Refusal::Issuer),
        ("at another's place", get("/", &[("authorization", &bearer(tb))]), Refusal::Issuer),
    ] {
        assert_eq!(passes(filter, request), Err(why), "{what}");
    }
}

#[test]
fn s48_a_token_in_the_query_counts_where_the_provider_looks_and_nowhere_else() {
    let a = Issuer::new();
    let token = token(&a, "a");
    let usual = filter(&[("a", &of(&a, "a"))], provider("a"));
    let target = format!("/a?x=1&access_token={token}&y");
    assert_eq!(judge(&usual, get(&target, &[])).unwrap().1, "/a?x=1&y");
    let header = JwtHeader { name: "authorization".parse().unwrap(), prefix: "Bearer ".into() };
    let headers_only = JwtProvider { from_headers: vec![header], ..of(&a, "a") };
    let headers_only = filter(&[("a", &headers_only)], provider("a"));
    assert_eq!(passes(&headers_only, get(&target, &[])), Err(Refusal::Missing));
    assert_eq!(passes(&headers_only, get("/", &[("authorization", &bearer(&token))])), Ok(()));
    for other in ["token", "Access_token", "access_token2"] {
        assert_eq!(passes(&usual, get(&format!("/?{other}={token}"), &[])), Err(Refusal::Missing), "{other}");
    }
}

#[test]
fn demands_combine_as_envoys_do() {
    let (a, b) = (Issuer::new(), Issuer::new());
    let in_cookie = JwtProvider { from_cookies: vec!["b".into()], ..of(&b, "b") };
    let providers: [(&str, &JwtProvider); 2] = [("a", &of(&a, "a")), ("b", &in_cookie)];
    let (ta, tb) = (bearer(&token(&a, "a")), format!("b={}", token(&b, "b")));
    let none = || get("/", &[]);
    let only_a = || get("/", &[("authorization", &*ta)]);
    let only_b = || get("/", &[("cookie", &*tb)]);
    let both = || get("/", &[("authorization", &*ta), ("cookie", &*tb)]);
    let bad = || get("/", &[("authorization", "Bearer x")]);
    let all = || JwtRequirement::All(vec![provider("a"), provider("b")]);
    let any = || JwtRequirement::Any(vec![provider("a"), provider("b")]);
    let lenient = || JwtRequirement::Any(vec![provider("a"), JwtRequirement::AllowMissingOrFailed]);
    let for_other = || JwtRequirement::Provider { name: "a".into(), audiences: vec!["other".into()] };
    let required = JwtAuthentication::required("jwt", providers.map(|(name, of)| (name.to_owned(), of.clone())));
    for (what, filter, request, tokens) in [
        ("one", filter(&providers, provider("a")), only_a(), Ok(1)),
        ("one", filter(&providers, provider("a")), only_b(), Err(Refusal::Missing)),
        ("one", filter(&providers, provider("a")), none(), Err(Refusal::Missing)),
        ("for others", filter(&providers, for_other()), only_a(), Err(Refusal::Audience)),
        ("all", filter(&providers, all()), both(), Ok(2)),
        ("all", filter(&providers, all()), only_b(), Err(Refusal::Missing)),
        ("any", filter(&providers, any()), only_b(), Ok(1)),
        ("any", filter(&providers, any()), both(), Ok(1)),
        ("any", filter(&providers, any()), none(), Err(Refusal::Missing)),
        ("any", filter(&providers, any()), bad(), Err(Refusal::Form)),
        ("any of none", filter(&providers, JwtRequirement::Any(vec![])), both(), Err(Refusal::Missing)),
        ("lenient", filter(&providers, lenient()), bad(), Ok(0)),
        ("lenient", filter(&providers, lenient()), only_a(), Ok(1)),
        ("lenient", filter(&providers, JwtRequirement::AllowMissingOrFailed), both(), Ok(2)),
        ("required", required.clone(), both(), Ok(2)),
        ("required", required.clone(), only_b(), Ok(1)),
        ("required", required.clone(), none(), Err(Refusal::Missing)),
        ("required", required, get("/", &[("authorization", "Bearer x"), ("cookie", &tb)]), Err(Refusal::Form)),
    ] {
        let demand = format!("{what} {:?}", filter.rules[0].requirement);
        assert_eq!(judge(&filter, request).map(|outcome| outcome.0.len()), tokens, "{demand}");
    }
    // What does not hold and is tolerated stays for the application to see; what holds is taken out.
    assert_eq!(judge(&filter(&providers, lenient()), bad()).unwrap().2, ["authorization: Bearer x"]);
    let left = judge(&filter(&providers, provider("b")), get("/", &[("cookie", &format!("x=1; {tb}"))])).unwrap().2;
    assert_eq!(left, ["cookie: x=1"]);
}

const WITHOUT_PATH: [(Method, &str); 2] = [(Method::CONNECT, "a.test:80"), (Method::OPTIONS, "*")];

fn without_path(method: Method, target: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = get("/", headers);
    *request.method_mut() = method;
    *request.uri_mut() = target.parse().unwrap();
    request
}

#[test]
fn a_request_without_a_path_has_to_meet_the_demands_of_all_rules() {
    let (a, b) = (Issuer::new(), Issuer::new());
    let header = JwtHeader { name: "x-b".parse().unwrap(), prefix: String::new() };
    let of_b = JwtProvider { from_headers: vec![header], ..of(&b, "b") };
    let mut filter = filter(&[("a", &of(&a, "a")), ("b", &of_b)], provider("a"));
    let mut insert = |prefix: &str, requirement| {
        let matcher = RouteMatch { path: PathMatch::Prefix(prefix.into()), ..RouteMatch::any() };
        filter.rules.insert(0, JwtRule { matcher, requirement: Some(requirement) });
    };
    insert("/pub", JwtRequirement::AllowMissing);
    insert("/b", provider("b"));
    assert_eq!(passes(&filter, get("/pub", &[])), Ok(()));
    let (ta, tb) = (bearer(&token(&a, "a")), token(&b, "b"));
    let both = [("authorization", &*ta), ("x-b", &*tb)];
    for (method, target) in WITHOUT_PATH {
        let judge = |headers: &[(&'static str, &str)]| judge(&filter, without_path(method.clone(), target, headers));
        for headers in [&both[..0], &both[..1], &both[1..]] {
            assert_eq!(judge(headers), Err(Refusal::Missing), "{target} {headers:?}");
        }
        assert_eq!(judge(&both[..]).unwrap().0.len(), 2, "{target}");
    }
}

#[test]
fn the_first_rule_decides_and_a_request_without_a_path_finds_no_exemption() {
    let a = Issuer::new();
    let mut filter = filter(&[("a", &of(&a, "a"))], provider("a"));
    let open = RouteMatch { path: PathMatch::Prefix("/publi%63/".into()), ..RouteMatch::any() };
    filter.rules.insert(0, JwtRule { matcher: open, requirement: None });
    assert_eq!(passes(&filter, get("/public/a", &[])), Ok(()));
    assert_eq!(passes(&filter, get("/private", &[])), Err(Refusal::Missing));
    for (method, target) in WITHOUT_PATH {
        assert_eq!(passes(&filter, without_path(method, target, &[])), Err(Refusal::Missing), "{target}");
    }
    filter.rules.pop();
    assert_eq!(passes(&filter, get("/private", &[])), Ok(()), "no rule is about it");
}

#[test]
fn a_preflight_may_need_no_token_and_nothing_else_is_one() {
    let a = Issuer::new();
    let mut filter = filter(&[("a", &of(&a, "a"))], provider("a"));
    let preflight = |method, headers: &[(&'static str, &str)]| {
        let mut request = get("/", headers);
        *request.method_mut() = method;
        request
    };
    let whole = [("origin", "https://b.test"), ("access-control-request-method", "GET")];
    assert_eq!(passes(&filter, preflight(Method::OPTIONS, &whole)), Err(Refusal::Missing));
    filter.bypass_cors_preflight = true;
    assert_eq!(passes(&filter, preflight(Method::OPTIONS, &whole)), Ok(()));
    assert_eq!(passes(&filter, preflight(Method::GET, &whole)), Err(Refusal::Missing));
    assert_eq!(passes(&filter, preflight(Method::OPTIONS, &whole[..1])), Err(Refusal::Missing));
}

#[test]
fn the_application_is_told_by_headers_that_nobody_else_can_set() {
    let a = Issuer::new();
    let claim = |name: &str, claim: &str| JwtClaimHeader { name: name.parse().unwrap(), claim: claim.into() };
    let telling = JwtProvider {
        payload_header: Some("x-payload".parse().unwrap()),
        claim_headers: vec![
            claim("x-sub", "sub"),
            claim("x-admin", "admin"),
            claim("x-level", "level"),
            claim("x-role", "realm.role"),
            claim("x-dotted", "https://b.test/c"),
            claim("x-list", "list"),
            claim("x-split", "split"),
            claim("x-none", "none"),
        ],
        forward: true,
        ..of(&a, "a")
    };
    let said = json!({"iss": "https://a.test", "aud": "shop", "sub": "ann", "admin": true, "level": 7, "list": ["a"],
        "realm": {"role": "dev"}, "https://b.test/c": "d", "split": "a\r\nx-admin: true", "none": null});
    let token = a.token(header(), said);
    let forged = [
        ("x-sub", "root"),
        ("x_sub", "root"),
        ("x-none", "root"),
        ("x-payload", "e30"),
        ("x-split", "root"),
        ("x-other", "o"),
    ];
    let optional = filter(&[("a", &telling)], JwtRequirement::AllowMissing);
    assert_eq!(judge(&optional, get("/", &forged)).unwrap().2, ["x-other: o"]);
    let value = bearer(&token);
    let headers = [&forged[..], &[("authorization", &value)]].concat();
    let mut told = judge(&optional, get("/", &headers)).unwrap().2;
    told.sort();
    let payload = token.split('.').nth(1).unwrap();
    assert_eq!(
        told,
        [
            &format!("authorization: {value}"),
            "x-admin: true",
            "x-dotted: d",
            "x-level: 7",
            "x-list: WyJhIl0=",
            "x-other: o",
            &format!("x-payload: {payload}"),
            "x-role: dev",
            "x-sub: ann",
        ]
    );
    let padded = filter(&[("a", &JwtProvider { pad_payload_header: true, ..telling })], JwtRequirement::AllowMissing);
    let told = judge(&padded, get("/", &[("authorization", &value)])).unwrap().2;
    let sent = told.iter().find_map(|line| line.strip_prefix("x-payload: ")).unwrap();
    assert!(sent.len() % 4 == 0 && sent.trim_end_matches('=') == payload, "{sent}");
    // No rule is about it, and still nobody else may set them.
    let idle = JwtAuthentication { rules: Vec::new(), ..optional };
    assert_eq!(judge(&idle, get("/", &forged)).unwrap().2, ["x-other: o"]);
}

#[test]
fn s49_without_usable_keys_no_token_holds() {
    let a = Issuer::new();
    let remote = JwtKeys::Remote {
        uri: "https://a.test/jwks".into(),
        cluster: crate::id::ClusterName::from(""),
        timeout: Duration::from_secs(5),
        cache: Duration::from_secs(600),
    };
    let (ta, tb) = (bearer(&token(&a, "a")), bearer(&token(&a, "b")));
    let (jwks, max_age) = (a.jwks.clone(), Duration::from_secs(600));
    let fetched = JwtProvider { keys: JwtKeys::Fetched { jwks, max_age }, ..of(&a, "a") };
    let fetched = filter(&[("a", &fetched)], JwtRequirement::AllowMissing);
    assert_eq!(passes(&fetched, get("/", &[("authorization", &ta)])), Ok(()), "the control: the same keys in time");
    for (keys, why) in [
        (JwtKeys::Inline(String::new()), Refusal::NoKeys),
        (JwtKeys::Inline(r#"{"keys": []}"#.into()), Refusal::NoKeys),
        (remote, Refusal::NoKeys),
        (JwtKeys::Outdated { max_age }, Refusal::OldKeys),
    ] {
        let broken = JwtProvider { keys, ..of(&a, "a") };
        let filter = filter(&[("a", &broken), ("b", &of(&a, "b"))], JwtRequirement::AllowMissing);
        let authenticator = Authenticator::new(&filter);
        let unusable: Vec<_> = authenticator.unusable().map(|(name, _)| name).collect();
        assert_eq!(unusable, ["a"]);
        assert_eq!(passes(&filter, get("/", &[("authorization", &ta)])), Err(why));
        assert_eq!(passes(&filter, get("/", &[("authorization", &tb)])), Ok(()), "the other's keys are good");
        assert_eq!(passes(&filter, get("/", &[])), Ok(()));
    }
}

#[test]
fn a_subject_may_be_demanded_and_is_compared_whole() {
    let a = Issuer::new();
    let only = |name: &str| JwtProvider { subjects: Some(StringMatcher::exact(name)), ..of(&a, "a") };
    let with = bearer(&token(&a, "a"));
    let passes = |name| passes(&filter(&[("a", &only(name))], provider("a")), get("/", &[("authorization", &with)]));
    assert_eq!((passes("ann"), passes("an")), (Ok(()), Err(Refusal::Subject)));
}

#[test]
fn claims_of_words_are_lists_to_conditions_and_texts_to_the_application() {
    let a = Issuer::new();
    let names = vec!["scope".to_owned(), "sub".to_owned(), "aud".to_owned(), "none".to_owned()];
    let splitting = JwtProvider { space_delimited: names, payload_in_metadata: "payload".into(), ..of(&a, "a") };
    let filter = filter(&[("a", &splitting)], provider("a"));
    let said = json!({"iss": "https://a.test", "aud": ["shop"], "scope": "read  write", "sub": "ann"});
    let request = get("/", &[("authorization", &bearer(&a.token(header(), said)))]);
    let view = RequestView {
        authority: "a.test",
        method: request.method(),
        path_and_query: "/",
        scheme: "http",
        headers: request.headers(),
        draw: &|| 0,
    };
    let authenticator = Authenticator::new(&filter);
    let passed = authenticator.judge(&view, Duration::from_secs(NOW)).unwrap();
    let tokens: crate::jwt::Tokens = authenticator.apply(passed, &mut get("/", &[])).unwrap().into_iter().collect();
    let kept = tokens.iter().next().unwrap().payload().json();
    assert_eq!(
        (&kept["scope"], &kept["sub"], &kept["aud"]),
        (&json!(["read", "write"]), &json!(["ann"]), &json!(["shop"]))
    );
    assert_eq!(tokens.first().unwrap().json()["scope"], json!("read  write"));
    assert_eq!(tokens.of("a"), tokens.first());
    assert_eq!(tokens.of("b"), None);
}

/// Every combination of tokens in three places, of which one is both providers'.
#[test]
fn a_request_passes_exactly_if_each_token_is_one_of_those_that_belong_where_it_stands() {
    let (a, b) = (Issuer::new(), Issuer::new());
    let header = |name: &str| JwtHeader { name: name.parse().unwrap(), prefix: String::new() };
    let at = |provider: JwtProvider, name| JwtProvider {
        from_headers: vec![header(name)],
        from_cookies: vec!["both".into()],
        ..provider
    };
    let providers: [(&str, &JwtProvider); 2] = [("a", &at(of(&a, "a"), "x-a")), ("b", &at(of(&b, "b"), "x-b"))];
    let any = JwtRequirement::Any(vec![provider("a"), provider("b"), JwtRequirement::AllowMissing]);
    let tokens = [None, Some(token(&a, "a")), Some(token(&b, "b")), Some(token(&b, "a"))];
    for demand in [JwtRequirement::AllowMissing, any] {
        let filter = filter(&providers, demand);
        for case in 0..64 {
            let (at_a, at_b, at_both) = (case % 4, case / 4 % 4, case / 16);
            let cookie = tokens[at_both].as_ref().map(|token| format!("both={token}"));
            let mut headers = Vec::new();
            headers.extend(tokens[at_a].as_deref().map(|token| ("x-a", token)));
            headers.extend(tokens[at_b].as_deref().map(|token| ("x-b", token)));
            headers.extend(cookie.as_deref().map(|cookie| ("cookie", cookie)));
            let good = [0, 1].contains(&at_a) && [0, 2].contains(&at_b) && at_both < 3;
            let outcome = judge(&filter, get("/", &headers));
            assert_eq!(outcome.is_ok(), good, "{at_a} {at_b} {at_both}: {outcome:?}");
            if let Ok((_, _, left)) = outcome {
                assert!(left.is_empty(), "{left:?}");
            }
        }
    }
}

/// R38, a quarter of its names of each kind: of callers without end there is left which tokens were good last, and of
/// those that are refused nothing.
#[test]
fn a_hundred_thousand_callers_hold_no_more_than_their_bound_r38() {
    let issuer = Issuer::new();
    let claim_headers = vec![JwtClaimHeader { name: "x-subject".parse().unwrap(), claim: "sub".into() }];
    let policy = JwtProvider { claim_headers, ..of(&issuer, "a") };
    let authenticator = Authenticator::new(&filter(&[("a", &policy)], provider("a")));
    let says = |name: &str, value: String| with(with(claims(), "iss", json!("https://a.test")), name, json!(value));
    let made_up = |header: Value, claims: Value| {
        format!("{}.{}.{}", b64(header.to_string()), b64(claims.to_string()), b64([7; 64]))
    };
    let ask = |token: String| {
        let (tokens, request) = passed(&authenticator, get("/", &[("authorization", &bearer(&token))]))?;
        assert!(request.headers().contains_key("x-subject"));
        Ok(tokens[0].claims.clone())
    };
    let caller =
        |n: u32| issuer.token(header(), with(says("sub", format!("caller-{n}")), &format!("claim-{n}"), json!(n)));
    type Token<'a> = &'a dyn Fn(u32) -> String;
    let kinds: [(&str, Token<'_>, Option<Refusal>, i64); 4] = [
        ("subjects and claims", &caller, None, 96 << 10),
        ("issuers", &|n| made_up(header(), says("iss", format!("https://{n}.test"))), Some(Refusal::Issuer), 1024),
        (
            "keys",
            &|n| made_up(with(header(), "kid", json!(n.to_string())), says("sub", "ann".into())),
            Some(Refusal::NoKey),
            1024,
        ),
        ("signatures", &|n| made_up(header(), says("sub", n.to_string())), Some(Refusal::Signature), 1024),
    ];
    for (what, token, refused, most) in kinds {
        let cost = allocation_counter::measure(|| {
            (0..25_000).for_each(|n| assert_eq!(ask(token(n)).err(), refused, "{what}"));
        });
        assert!(cost.bytes_current <= most, "{what}: {} bytes", cost.bytes_current);
    }
    // The control: who remembers what each of them says.
    let mut remembered = std::collections::HashMap::new();
    let cost = allocation_counter::measure(|| {
        for n in 0..10_000 {
            let claims = ask(caller(n)).unwrap();
            remembered.insert(claims.subject().unwrap().to_owned(), claims);
        }
    });
    assert!(cost.bytes_current > 1 << 20, "{cost:?}");
}
